//! The shop's tables and their current rows, as the source database holds them.

/// A captured table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    Customers,
    Products,
    Orders,
    OrderItems,
}

impl Table {
    pub const ALL: [Table; 4] = [Table::Customers, Table::Products, Table::Orders, Table::OrderItems];

    pub fn name(self) -> &'static str {
        match self {
            Table::Customers => "customers",
            Table::Products => "products",
            Table::Orders => "orders",
            Table::OrderItems => "order_items",
        }
    }

    pub fn topic(self) -> &'static str {
        match self {
            Table::Customers => "shop.public.customers",
            Table::Products => "shop.public.products",
            Table::Orders => "shop.public.orders",
            Table::OrderItems => "shop.public.order_items",
        }
    }

    /// The partitions of its topic.
    pub fn partitions(self) -> i32 {
        match self {
            Table::Customers | Table::Products => 2,
            Table::Orders | Table::OrderItems => 4,
        }
    }
}

/// An amount of money in cents: a `decimal(10,2)` without its point.
pub(super) type Cents = i64;

#[derive(Debug, Clone)]
pub(super) struct Customer {
    pub(super) name: String,
    pub(super) email: String,
    pub(super) country: &'static str,
    pub(super) segment: Option<&'static str>,
    /// Days since 1970.
    pub(super) birth_date: Option<i32>,
    pub(super) notes: Option<String>,
    pub(super) is_active: bool,
    pub(super) created_at_us: i64,
    pub(super) updated_at_us: i64,
    /// Not a column: the customer's orders that still exist, for the foreign key's cascades.
    pub(super) orders: Vec<i32>,
}

/// PostgreSQL moves a value out of line when its row passes about 2,000 bytes; `notes` is stored uncompressed
/// (`SET STORAGE EXTERNAL`), so longer notes are out of line and shorter ones never are.
pub(super) const TOAST_BYTES: usize = 2_100;

impl Customer {
    pub(super) fn has_toasted_notes(&self) -> bool {
        self.notes.as_ref().is_some_and(|notes| notes.len() >= TOAST_BYTES)
    }
}

#[derive(Debug, Clone)]
pub(super) struct Product {
    pub(super) name: String,
    pub(super) description: Option<&'static str>,
    pub(super) price: Cents,
    pub(super) stock_quantity: i32,
    pub(super) created_at_us: i64,
    pub(super) updated_at_us: i64,
    /// Not a column: the order items that refer to the product.
    pub(super) references: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Order {
    pub(super) customer_id: i32,
    /// What its items cost; less than nothing after a credit note was booked with the wrong sign.
    pub(super) total_amount: Cents,
    pub(super) status: Status,
    /// Which of the shop's applications wrote the status last, 0 to 2: they never agreed on a spelling.
    pub(super) spelling: u8,
    pub(super) created_at_us: i64,
    pub(super) updated_at_us: i64,
    /// Not columns: an order's items are inserted together and so have ids in a row.
    pub(super) first_item: i32,
    pub(super) items: u8,
}

impl Order {
    pub(super) fn item_ids(&self) -> std::ops::Range<i32> {
        self.first_item..self.first_item + i32::from(self.items)
    }

    pub(super) fn status_text(&self) -> &'static str {
        let spellings = match self.status {
            Status::Pending => ["pending", "PENDING", "Pending "],
            Status::Paid => ["paid", "PAID", "Paid "],
            Status::Shipped => ["shipped", "SHIPPED", "Shipped "],
            Status::Delivered => ["delivered", "DELIVERED", "Delivered "],
            Status::Cancelled => ["cancelled", "CANCELLED", "Cancelled "],
            Status::Refunded => ["refunded", "REFUNDED", "Refunded "],
        };
        spellings[usize::from(self.spelling)]
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Pending,
    Paid,
    Shipped,
    Delivered,
    Cancelled,
    /// What the shop has begun to do, and nobody told those who made the sample project's models.
    Refunded,
}

impl Status {
    /// Nothing happens to such an order any more.
    pub(super) fn is_final(self) -> bool {
        matches!(self, Status::Delivered | Status::Cancelled | Status::Refunded)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct OrderItem {
    pub(super) order_id: i32,
    pub(super) product_id: i32,
    pub(super) quantity: i32,
    pub(super) price: Cents,
    pub(super) created_at_us: i64,
}

/// A table's rows by their serial id. Ids are dense, so a vector is both the fastest map and one in key order.
#[derive(Debug)]
pub(super) struct Rows<T> {
    slots: Vec<Option<T>>,
    live: usize,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Rows { slots: Vec::new(), live: 0 }
    }
}

impl<T> Rows<T> {
    /// The id the next insert gets.
    pub(super) fn next_id(&self) -> i32 {
        self.slots.len() as i32 + 1
    }

    pub(super) fn insert(&mut self, row: T) -> i32 {
        self.slots.push(Some(row));
        self.live += 1;
        self.slots.len() as i32
    }

    pub(super) fn get(&self, id: i32) -> Option<&T> {
        self.slots.get(slot(id))?.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: i32) -> Option<&mut T> {
        self.slots.get_mut(slot(id))?.as_mut()
    }

    pub(super) fn remove(&mut self, id: i32) -> Option<T> {
        let row = self.slots.get_mut(slot(id))?.take()?;
        self.live -= 1;
        Some(row)
    }

    /// The rows there are.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// The ids ever given.
    pub(super) fn issued(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (i32, &T)> {
        self.slots.iter().zip(1..).filter_map(|(slot, id)| slot.as_ref().map(|row| (id, row)))
    }

    /// The first row at or behind `start` (from the first again after the last) that is accepted. At most 256 slots
    /// are looked at, so that a rare find never makes one step of the shop's life slow.
    pub(super) fn find(&self, start: usize, accept: impl Fn(&T) -> bool) -> Option<i32> {
        let count = self.slots.len();
        (0..count.min(256)).map(|step| (start + step) % count).find_map(|slot| {
            let row = self.slots[slot].as_ref()?;
            accept(row).then_some(slot as i32 + 1)
        })
    }
}

fn slot(id: i32) -> usize {
    (id as usize).wrapping_sub(1)
}
