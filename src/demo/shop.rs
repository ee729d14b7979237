//! The life of the shop, one database transaction at a time.
//!
//! It starts with a snapshot of the customers and products there were. Then people sign up, move, order, pay, change
//! their minds and leave. Behind the snapshot a short script walks through every special case once, so that even a
//! small demo meets all of them; after that they come at random.

use std::collections::VecDeque;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::connector::{Connector, Image, Record, RecordKind, SnapshotPlace};
use super::rows::{Customer, Order, OrderItem, Product, Status, TOAST_BYTES, Table};
use super::truth::Truth;

/// How much of the shop's time its life takes, whatever the number of events: 30 days in microseconds.
pub const SPAN_US: i64 = 30 * DAY_US;

const DAY_US: i64 = 86_400_000_000;

/// Rows of the snapshot handed out at a time; a life transaction is smaller.
const SNAPSHOT_STEP: usize = 256;

/// A deterministic source of the shop's records: the same seed, start and number of events give the same bytes.
#[derive(Debug)]
pub struct Shop {
    rng: SmallRng,
    start_us: i64,
    now_us: i64,
    events: u64,
    emitted: u64,
    snapshot: Snapshot,
    script: VecDeque<Action>,
    poisoned: bool,
    connector: Connector,
    truth: Truth,
    /// Orders that may still move; those found final or gone are dropped when met.
    open_orders: Vec<i32>,
    signups: u64,
}

#[derive(Debug)]
struct Snapshot {
    customers: usize,
    products: usize,
}

#[derive(Debug, Clone, Copy)]
enum Action {
    SignUp,
    SignUpWithLongNotes,
    /// Changes a customer with long notes without touching the notes.
    ChangeAroundLongNotes,
    ChangeCustomer,
    ChangeCustomerKey,
    DeleteCustomer,
    AddProduct,
    ChangeProduct,
    DeleteProduct,
    PlaceOrder,
    AdvanceOrder,
    AmendOrder,
    BookCredit,
    RefundOrder,
    DeleteOrder,
    SendAgain,
    SendAgainBehindDelete,
}

impl Shop {
    /// `events` is the number of change events: records with an op (r, c, u, d), those sent again included. Tombstones
    /// and the one poison record come on top. Every special case occurs from 100 events on.
    pub fn new(seed: u64, start_us: i64, events: u64) -> Self {
        let share = |part: u64, least: u64, most: u64| (events / part).clamp(least, most);
        let customers = share(40, 20, 2_000).min(events);
        let products = share(100, 10, 500).min(events - customers);
        let script = [
            Action::SignUp,
            Action::SignUpWithLongNotes,
            Action::ChangeAroundLongNotes,
            Action::PlaceOrder,
            Action::BookCredit,
            Action::PlaceOrder,
            Action::PlaceOrder,
            Action::AdvanceOrder,
            Action::AdvanceOrder,
            Action::RefundOrder,
            Action::AmendOrder,
            Action::ChangeCustomerKey,
            Action::SendAgain,
            Action::DeleteOrder,
            Action::SendAgainBehindDelete,
            Action::DeleteCustomer,
            Action::AddProduct,
            Action::DeleteProduct,
        ];
        Shop {
            rng: SmallRng::seed_from_u64(seed),
            start_us,
            now_us: start_us,
            events,
            emitted: 0,
            snapshot: Snapshot { customers: customers as usize, products: products as usize },
            script: script.into(),
            poisoned: false,
            connector: Connector::new(start_us),
            truth: Truth::default(),
            open_orders: Vec::new(),
            signups: 0,
        }
    }

    /// Replaces `records` by those of the next transaction (or part of the snapshot), in the order they are produced.
    /// False when the shop's life is over.
    pub fn next_transaction(&mut self, records: &mut Vec<Record>) -> bool {
        records.clear();
        if !self.poisoned && self.emitted >= self.events / 2 {
            self.poisoned = true;
            self.connector.poison(records);
        } else if self.emitted == self.events {
            return false;
        } else if self.truth.customers.issued() < self.snapshot.customers
            || self.truth.products.issued() < self.snapshot.products
        {
            self.read_snapshot(records);
        } else {
            self.live(records);
        }
        for turn in self.connector.take_turns() {
            self.truth.turn(turn);
        }
        for record in records.iter() {
            self.truth.count(record);
            self.emitted += u64::from(record.kind == RecordKind::Change);
        }
        true
    }

    /// The change events there will be.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The change events there have been.
    pub fn emitted(&self) -> u64 {
        self.emitted
    }

    /// What the layers must hold once everything handed out so far is merged.
    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    fn read_snapshot(&mut self, records: &mut Vec<Record>) {
        for _ in 0..SNAPSHOT_STEP {
            let (customer, product) = (self.truth.customers.issued(), self.truth.products.issued());
            let created_at_us = self.start_us - self.rng.random_range(DAY_US..365 * DAY_US);
            if customer < self.snapshot.customers {
                let place = match customer + 1 {
                    _ if customer == 0 => SnapshotPlace::First,
                    next if next < self.snapshot.customers => SnapshotPlace::Middle,
                    _ if self.snapshot.products == 0 => SnapshotPlace::Last,
                    _ => SnapshotPlace::LastOfTable,
                };
                let has_long_notes = self.rng.random_ratio(1, 20);
                let row = self.new_customer(created_at_us, has_long_notes);
                self.connector.read(records, self.truth.customers.next_id(), Image::Customer(&row), place);
                self.truth.customers.insert(row);
            } else if product < self.snapshot.products {
                let place = match product + 1 {
                    next if next == self.snapshot.products => SnapshotPlace::Last,
                    1 => SnapshotPlace::FirstOfTable,
                    _ => SnapshotPlace::Middle,
                };
                let row = self.new_product(created_at_us);
                self.connector.read(records, self.truth.products.next_id(), Image::Product(&row), place);
                self.truth.products.insert(row);
            } else {
                break;
            }
        }
    }

    fn live(&mut self, records: &mut Vec<Record>) {
        self.pass_time();
        let action = match self.script.pop_front() {
            Some(action) => action,
            None => self.choose(),
        };
        self.connector.begin(self.now_us);
        // What cannot happen (no order is open, too few events are left for all of it) gives way to a product's change,
        // which always can: the snapshot's products are never deleted.
        if !self.act(action, records) {
            self.change_product(records);
        }
        self.connector.commit();
    }

    /// The clock follows the share of the events that are out, so that the span is the same for any number of them.
    fn pass_time(&mut self) {
        let snapshot = (self.snapshot.customers + self.snapshot.products) as u64;
        let life = self.events.saturating_sub(snapshot).max(1);
        let lived = self.emitted.saturating_sub(snapshot);
        let per_event_us = SPAN_US / life.min(SPAN_US as u64) as i64;
        let passed_us = (i128::from(SPAN_US) * i128::from(lived) / i128::from(life)) as i64;
        let jitter_us = self.rng.random_range(0..per_event_us.max(1));
        self.now_us = (self.start_us + passed_us + jitter_us).max(self.now_us + 1);
    }

    fn choose(&mut self) -> Action {
        match self.rng.random_range(0..1000) {
            0..180 => Action::PlaceOrder,
            180..636 => Action::AdvanceOrder,
            636..638 => Action::BookCredit,
            638..640 => Action::RefundOrder,
            640..700 => Action::AmendOrder,
            700..720 => Action::DeleteOrder,
            720..800 => Action::SignUp,
            800..890 => Action::ChangeCustomer,
            890..898 => Action::DeleteCustomer,
            898..904 => Action::ChangeCustomerKey,
            904..910 => Action::AddProduct,
            910..914 => Action::DeleteProduct,
            914..918 => Action::SendAgain,
            918..920 => Action::SendAgainBehindDelete,
            _ => Action::ChangeProduct,
        }
    }

    /// Carries an action out, or changes nothing and returns false.
    fn act(&mut self, action: Action, records: &mut Vec<Record>) -> bool {
        match action {
            Action::SignUp => {
                let has_long_notes = self.rng.random_ratio(1, 20);
                self.sign_up(records, has_long_notes)
            }
            Action::SignUpWithLongNotes => self.sign_up(records, true),
            Action::ChangeAroundLongNotes => {
                let newest = self.truth.customers.issued().saturating_sub(1);
                match self.truth.customers.find(newest, Customer::has_toasted_notes) {
                    Some(id) => self.change_customer(records, id, 1),
                    None => false,
                }
            }
            Action::ChangeCustomer => {
                let change = self.rng.random_range(0..6);
                match self.any_customer(|_| true) {
                    Some(id) => self.change_customer(records, id, change),
                    None => false,
                }
            }
            Action::ChangeCustomerKey => self.change_customer_key(records),
            Action::DeleteCustomer => self.delete_customer(records),
            Action::AddProduct => {
                let row = self.new_product(self.now_us);
                self.connector.insert(records, self.truth.products.next_id(), Image::Product(&row));
                self.truth.products.insert(row);
                true
            }
            Action::ChangeProduct => self.change_product(records),
            Action::DeleteProduct => self.delete_product(records),
            Action::PlaceOrder => self.place_order(records),
            Action::AdvanceOrder => self.advance_order(records),
            Action::AmendOrder => self.amend_order(records),
            Action::BookCredit => self.book_credit(records),
            Action::RefundOrder => self.refund_order(records),
            Action::DeleteOrder => self.delete_order(records),
            Action::SendAgain => {
                let start = self.rng.random_range(0..self.connector.recent().max(1));
                let changes = self.rng.random_range(1..=4).min(self.room());
                self.connector.resend(records, start, changes);
                !records.is_empty()
            }
            Action::SendAgainBehindDelete => {
                self.connector.resend_behind_delete(records);
                !records.is_empty()
            }
        }
    }

    /// The change events that may still come.
    fn room(&self) -> usize {
        (self.events - self.emitted) as usize
    }

    fn any_customer(&mut self, accept: impl Fn(&Customer) -> bool) -> Option<i32> {
        let start = self.rng.random_range(0..self.truth.customers.issued().max(1));
        self.truth.customers.find(start, accept)
    }

    fn sign_up(&mut self, records: &mut Vec<Record>, has_long_notes: bool) -> bool {
        let row = self.new_customer(self.now_us, has_long_notes);
        self.connector.insert(records, self.truth.customers.next_id(), Image::Customer(&row));
        self.truth.customers.insert(row);
        true
    }

    fn change_customer(&mut self, records: &mut Vec<Record>, id: i32, change: u8) -> bool {
        let country = self.pick(COUNTRIES);
        let segment = self.pick(SEGMENTS);
        let has_long_notes = self.rng.random_ratio(1, 10);
        let notes = (change == 5).then(|| self.new_notes(has_long_notes));
        let Some(customer) = self.truth.customers.get_mut(id) else { return false };
        customer.updated_at_us = self.now_us;
        match change {
            0 => customer.country = country,
            1 | 2 => customer.segment = segment,
            3 => customer.email = format!("{}.{}", self.signups, customer.email.trim().to_lowercase()),
            4 => customer.is_active = !customer.is_active,
            _ => {}
        }
        // REPLICA IDENTITY DEFAULT: no `before`, and out-of-line notes come along only when they were written.
        let keeps_long_notes = notes.is_none() && customer.has_toasted_notes();
        if let Some(notes) = notes {
            customer.notes = notes;
        }
        let after = if keeps_long_notes { Image::CustomerWithoutNotes(customer) } else { Image::Customer(customer) };
        self.connector.update(records, id, None, after);
        true
    }

    /// Two accounts are merged: the customer goes on under a new id, and the foreign key takes the orders along.
    ///
    /// Not for a customer with long notes: the new key's create would carry the placeholder, and no reader of the
    /// stream could know what it stands for.
    fn change_customer_key(&mut self, records: &mut Vec<Record>) -> bool {
        let room = self.room();
        let is_fit = |row: &Customer| row.orders.len() <= 3 && row.orders.len() + 2 <= room && !row.has_toasted_notes();
        let Some(old_id) = self.any_customer(is_fit) else { return false };
        let Some(mut row) = self.truth.customers.remove(old_id) else { return false };
        row.updated_at_us = self.now_us;
        let new_id = self.truth.customers.next_id();
        self.connector.rekey(records, old_id, new_id, Image::Customer(&row));
        for &order_id in &row.orders {
            if let Some(order) = self.truth.orders.get_mut(order_id) {
                let before = *order;
                order.customer_id = new_id;
                self.connector.update(records, order_id, Some(Image::Order(&before)), Image::Order(order));
            }
        }
        self.truth.customers.insert(row);
        true
    }

    fn delete_customer(&mut self, records: &mut Vec<Record>) -> bool {
        let room = self.room();
        if self.truth.customers.live() <= 5 {
            return false;
        }
        let orders = &self.truth.orders;
        let start = self.rng.random_range(0..self.truth.customers.issued().max(1));
        let found = self.truth.customers.find(start, |row| {
            let items: usize = row.orders.iter().filter_map(|&id| orders.get(id)).map(|o| usize::from(o.items)).sum();
            row.orders.len() <= 1 && row.orders.len() + items < room
        });
        let Some(id) = found else { return false };
        let order_ids = self.truth.customers.get(id).map(|row| row.orders.clone()).unwrap_or_default();
        for order_id in order_ids {
            self.erase_order(records, order_id);
        }
        self.truth.customers.remove(id);
        self.connector.delete(records, id, Image::KeyOnly(Table::Customers));
        true
    }

    fn change_product(&mut self, records: &mut Vec<Record>) -> bool {
        let id = self.rng.random_range(1..=self.snapshot.products.max(1)) as i32;
        let change = self.rng.random_range(-1_500..2_000i64);
        let restock = self.rng.random_range(0..3) == 0;
        let delivered = self.rng.random_range(20..200);
        let Some(product) = self.truth.products.get_mut(id) else { return false };
        if restock {
            product.stock_quantity += delivered;
        } else {
            product.price = (product.price + change).clamp(99, 199_999);
        }
        product.updated_at_us = self.now_us;
        self.connector.update(records, id, None, Image::Product(product));
        true
    }

    fn delete_product(&mut self, records: &mut Vec<Record>) -> bool {
        let first = self.snapshot.products;
        let added = self.truth.products.issued() - first;
        let start = first + self.rng.random_range(0..added.max(1));
        match self.truth.products.find(start, |row| row.references == 0) {
            Some(id) if id as usize > first => {
                self.truth.products.remove(id);
                self.connector.delete(records, id, Image::KeyOnly(Table::Products));
                true
            }
            _ => false,
        }
    }

    fn place_order(&mut self, records: &mut Vec<Record>) -> bool {
        let mut product_ids: Vec<i32> = Vec::with_capacity(3);
        for _ in 0..self.rng.random_range(1..=3) {
            let start = self.rng.random_range(0..self.truth.products.issued().max(1));
            match self.truth.products.find(start, |_| true) {
                Some(id) if !product_ids.contains(&id) => product_ids.push(id),
                _ => {}
            }
        }
        if product_ids.is_empty() || 2 * product_ids.len() >= self.room() {
            return false;
        }
        let Some(customer_id) = self.any_customer(|_| true) else { return false };

        let (order_id, first_item) = (self.truth.orders.next_id(), self.truth.order_items.next_id());
        for &product_id in &product_ids {
            let quantity = self.rng.random_range(1..=4);
            let price = self.truth.products.get(product_id).map_or(0, |product| product.price);
            let created_at_us = self.now_us;
            self.truth.order_items.insert(OrderItem { order_id, product_id, quantity, price, created_at_us });
        }
        let mut order = Order {
            customer_id,
            total_amount: 0,
            status: Status::Pending,
            spelling: self.spelling(),
            created_at_us: self.now_us,
            updated_at_us: self.now_us,
            first_item,
            items: product_ids.len() as u8,
        };
        order.total_amount = self.total_of(&order);

        self.connector.insert(records, order_id, Image::Order(&order));
        for item_id in order.item_ids() {
            if let Some(item) = self.truth.order_items.get(item_id) {
                self.connector.insert(records, item_id, Image::OrderItem(item));
            }
        }
        for item_id in order.item_ids() {
            let Some(&item) = self.truth.order_items.get(item_id) else { continue };
            let Some(product) = self.truth.products.get_mut(item.product_id) else { continue };
            product.references += 1;
            product.stock_quantity -= item.quantity;
            if product.stock_quantity < 0 {
                product.stock_quantity += 100;
            }
            product.updated_at_us = self.now_us;
            self.connector.update(records, item.product_id, None, Image::Product(product));
        }
        if let Some(customer) = self.truth.customers.get_mut(customer_id) {
            customer.orders.push(order_id);
        }
        self.truth.orders.insert(order);
        self.open_orders.push(order_id);
        true
    }

    /// pending → paid → shipped → delivered; until it is shipped an order may be cancelled, and its stock returns.
    fn advance_order(&mut self, records: &mut Vec<Record>) -> bool {
        let Some(id) = self.open_order(|order| !order.status.is_final()) else { return false };
        let Some(&before) = self.truth.orders.get(id) else { return false };
        let can_cancel = usize::from(before.items) < self.room();
        let mut order = before;
        order.status = match before.status {
            Status::Pending if can_cancel && self.rng.random_ratio(15, 100) => Status::Cancelled,
            Status::Paid if can_cancel && self.rng.random_ratio(5, 100) => Status::Cancelled,
            Status::Pending => Status::Paid,
            Status::Paid => Status::Shipped,
            Status::Shipped | Status::Delivered | Status::Cancelled | Status::Refunded => Status::Delivered,
        };
        order.spelling = self.spelling();
        self.write_order(records, id, order);
        if order.status == Status::Cancelled {
            for item_id in order.item_ids() {
                let Some(item) = self.truth.order_items.get(item_id) else { continue };
                let Some(product) = self.truth.products.get_mut(item.product_id) else { continue };
                product.stock_quantity += item.quantity;
                product.updated_at_us = self.now_us;
                self.connector.update(records, item.product_id, None, Image::Product(product));
            }
        }
        true
    }

    /// The customer wants another quantity before paying.
    fn amend_order(&mut self, records: &mut Vec<Record>) -> bool {
        if self.room() < 2 {
            return false;
        }
        let Some(id) = self.open_order(|order| order.status == Status::Pending) else { return false };
        let Some(&before) = self.truth.orders.get(id) else { return false };
        let item_id = self.rng.random_range(before.item_ids());
        let more = self.rng.random_range(1..=3);
        let Some(item) = self.truth.order_items.get_mut(item_id) else { return false };
        item.quantity = item.quantity % 6 + more;
        self.connector.update(records, item_id, None, Image::OrderItem(item));
        let mut order = before;
        order.total_amount = self.total_of(&order);
        self.write_order(records, id, order);
        true
    }

    /// A tool writes the total with the wrong sign. It stays so unless the order is amended.
    fn book_credit(&mut self, records: &mut Vec<Record>) -> bool {
        let Some(id) = self.open_order(|order| order.total_amount > 0) else { return false };
        let Some(&before) = self.truth.orders.get(id) else { return false };
        self.write_order(records, id, Order { total_amount: -before.total_amount, ..before });
        true
    }

    fn refund_order(&mut self, records: &mut Vec<Record>) -> bool {
        let start = self.rng.random_range(0..self.truth.orders.issued().max(1));
        let is_paid = |order: &Order| matches!(order.status, Status::Paid | Status::Shipped | Status::Delivered);
        let Some(id) = self.truth.orders.find(start, is_paid) else { return false };
        let Some(&before) = self.truth.orders.get(id) else { return false };
        let spelling = self.spelling();
        self.write_order(records, id, Order { status: Status::Refunded, spelling, ..before });
        true
    }

    fn delete_order(&mut self, records: &mut Vec<Record>) -> bool {
        let room = self.room();
        let Some(id) = self.open_order(|order| usize::from(order.items) < room) else { return false };
        self.erase_order(records, id);
        true
    }

    fn erase_order(&mut self, records: &mut Vec<Record>, id: i32) {
        let Some(order) = self.truth.orders.remove(id) else { return };
        for item_id in order.item_ids() {
            let Some(item) = self.truth.order_items.remove(item_id) else { continue };
            self.connector.delete(records, item_id, Image::KeyOnly(Table::OrderItems));
            if let Some(product) = self.truth.products.get_mut(item.product_id) {
                product.references -= 1;
            }
        }
        // REPLICA IDENTITY FULL: the whole row comes along.
        self.connector.delete(records, id, Image::Order(&order));
        if let Some(customer) = self.truth.customers.get_mut(order.customer_id) {
            customer.orders.retain(|&other| other != id);
        }
    }

    /// `orders` has REPLICA IDENTITY FULL, so its updates carry the row before.
    fn write_order(&mut self, records: &mut Vec<Record>, id: i32, mut after: Order) {
        after.updated_at_us = self.now_us;
        if let Some(order) = self.truth.orders.get_mut(id) {
            let before = std::mem::replace(order, after);
            self.connector.update(records, id, Some(Image::Order(&before)), Image::Order(order));
        }
    }

    fn total_of(&self, order: &Order) -> i64 {
        let items = order.item_ids().filter_map(|id| self.truth.order_items.get(id));
        items.map(|item| i64::from(item.quantity) * item.price).sum()
    }

    fn open_order(&mut self, accept: impl Fn(&Order) -> bool) -> Option<i32> {
        for _ in 0..64 {
            if self.open_orders.is_empty() {
                return None;
            }
            let index = self.rng.random_range(0..self.open_orders.len());
            let id = self.open_orders[index];
            match self.truth.orders.get(id) {
                Some(order) if !order.status.is_final() => {
                    if accept(order) {
                        return Some(id);
                    }
                }
                _ => {
                    self.open_orders.swap_remove(index);
                }
            }
        }
        None
    }

    fn spelling(&mut self) -> u8 {
        match self.rng.random_range(0..10) {
            0 => 1,
            1 => 2,
            _ => 0,
        }
    }

    fn new_customer(&mut self, created_at_us: i64, has_long_notes: bool) -> Customer {
        self.signups += 1;
        let (first, last) = (self.pick(FIRST_NAMES), self.pick(LAST_NAMES));
        let (mail_first, mail_last) = (first.1, last.1);
        // Web forms let through what nobody trims or folds.
        let name = match self.rng.random_range(0..10) {
            0 => format!(" {} {}", first.0, last.0),
            1 => format!("{} {}  ", first.0, last.0),
            _ => format!("{} {}", first.0, last.0),
        };
        let email = match self.rng.random_range(0..10) {
            0 => format!("{}.{}{}@EXAMPLE.COM ", mail_first.to_uppercase(), mail_last.to_uppercase(), self.signups),
            1 => format!(" {mail_first}.{mail_last}{}@example.org", self.signups),
            _ => format!("{mail_first}.{mail_last}{}@example.com", self.signups),
        };
        let born_on = self.rng.random_range(-9_000..14_000);
        Customer {
            name,
            email,
            country: self.pick(COUNTRIES),
            segment: self.pick(SEGMENTS),
            birth_date: self.rng.random_ratio(4, 5).then_some(born_on),
            notes: self.new_notes(has_long_notes),
            is_active: self.rng.random_ratio(19, 20),
            created_at_us,
            updated_at_us: created_at_us,
            orders: Vec::new(),
        }
    }

    fn new_notes(&mut self, long: bool) -> Option<String> {
        let bytes = match (long, self.rng.random_range(0..4)) {
            (true, _) => TOAST_BYTES + self.rng.random_range(0..600),
            (false, 0) => self.rng.random_range(20..80),
            (false, _) => return None,
        };
        let mut notes = String::with_capacity(bytes + 16);
        while notes.len() < bytes {
            notes.push_str(self.pick(WORDS));
        }
        Some(notes)
    }

    fn new_product(&mut self, created_at_us: i64) -> Product {
        let (kind, finish) = (self.pick(PRODUCTS), self.pick(FINISHES));
        Product {
            name: format!("{finish} {}", kind.0),
            description: kind.1,
            price: self.rng.random_range(199..49_999),
            stock_quantity: self.rng.random_range(50..500),
            created_at_us,
            updated_at_us: created_at_us,
            references: 0,
        }
    }

    fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.rng.random_range(0..among.len())]
    }
}

const FIRST_NAMES: &[(&str, &str)] = &[
    ("Ada", "ada"),
    ("Björn", "bjoern"),
    ("Chloé", "chloe"),
    ("Dmitri", "dmitri"),
    ("Esther", "esther"),
    ("Fatima", "fatima"),
    ("Grace", "grace"),
    ("Hiro", "hiro"),
    ("Inês", "ines"),
    ("Jorge", "jorge"),
    ("Łucja", "lucja"),
    ("Maya", "maya"),
    ("Noor", "noor"),
    ("Robert \"Bob\"", "bob"),
    ("Zoë", "zoe"),
];

const LAST_NAMES: &[(&str, &str)] = &[
    ("Andersson", "andersson"),
    ("Brown", "brown"),
    ("Çelik", "celik"),
    ("Dubois", "dubois"),
    ("Fernández", "fernandez"),
    ("Ivanova", "ivanova"),
    ("Kowalski", "kowalski"),
    ("Müller", "mueller"),
    ("Nguyễn", "nguyen"),
    ("O'Brien", "obrien"),
    ("Rossi", "rossi"),
    ("Smith-Jones", "smithjones"),
    ("田中", "tanaka"),
];

const COUNTRIES: &[&str] = &["DE", "FR", "GB", "JP", "PL", "US", "us", "de", "SE", "BR"];

const SEGMENTS: &[Option<&str>] = &[None, Some("consumer"), Some("business"), Some("education")];

const PRODUCTS: &[(&str, Option<&str>)] = &[
    ("Backpack", Some("20 litres, with a sleeve for a laptop")),
    ("Bottle", Some("Keeps cold for a day\nand warm for half of one")),
    ("Desk Lamp", None),
    ("Headphones", Some("Over the ear, 30 hours")),
    ("Keyboard", Some("Layouts: ISO \\ ANSI")),
    ("27\" Monitor", Some("2560 × 1440")),
    ("Mug", None),
    ("Notebook", Some("A5, 192 pages")),
    ("Chair", Some("Seat at 42 to 53 cm")),
    ("Webcam", Some("1080p, with a \"privacy\" shutter")),
];

const FINISHES: &[&str] = &["Black", "White", "Oak", "Steel", "Blue", "Recycled"];

const WORDS: &[&str] = &[
    "called about the invoice; ",
    "prefers delivery in the morning. ",
    "asked for a quote\n",
    "gift wrapping ",
    "VAT number checked, ",
    "returned the \"blue\" one ",
    "leave with the neighbour, ",
    "größere Menge angefragt. ",
];
