//! What the layers must hold: counts of bronze, rows of silver and gold.
//!
//! It is worked out from the shop's rows in integers, and shares nothing with the SQL that builds the tables: the
//! meaning of `transforms/*.sql` and `sql/gold/*.sql` is stated here a second time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
use chrono::DateTime;

use super::connector::{Record, RecordKind, Turn};
use super::rows::{Cents, Customer, Order, OrderItem, Product, Rows, Status, Table};

/// The namespaces the sample project's models write to and read from.
pub const SILVER: &str = "shop_silver";
pub const GOLD: &str = "shop_gold";

/// The shop's rows and the records sent about them.
#[derive(Debug, Default)]
pub struct Truth {
    pub(super) customers: Rows<Customer>,
    pub(super) products: Rows<Product>,
    pub(super) orders: Rows<Order>,
    pub(super) order_items: Rows<OrderItem>,
    statuses: BTreeMap<i32, Past<Status>>,
    prices: BTreeMap<i32, Past<Cents>>,
    bronze: BTreeMap<(Table, i32), u64>,
    produced: BTreeMap<(Table, i32), u64>,
    tombstones: u64,
    rejected: u64,
    /// Rules that some row has broken, if only for a while.
    ever_broken: BTreeSet<&'static str>,
}

/// What something was, one thing after the other.
#[derive(Debug)]
struct Past<T> {
    versions: Vec<T>,
    is_over: bool,
}

impl<T> Default for Past<T> {
    fn default() -> Self {
        Past { versions: Vec::new(), is_over: false }
    }
}

impl<T: PartialEq> Past<T> {
    fn becomes(&mut self, value: T) {
        if self.is_over || self.versions.last() != Some(&value) {
            self.versions.push(value);
        }
        self.is_over = false;
    }
}

/// A table's columns and rows as text, sorted; see [`text_rows`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    pub columns: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

#[derive(Debug, thiserror::Error)]
pub enum TruthError {
    #[error("the table has no column `{column}`")]
    NoColumn { column: String },
    #[error("column `{column}` of type {data_type} cannot be compared")]
    Type { column: String, data_type: DataType },
    #[error("column `{column}` cannot be read")]
    Cast { column: String, source: ArrowError },
}

impl Truth {
    /// Every table there is a truth of, as namespace and name.
    pub const TABLES: [(&'static str, &'static str); 11] = [
        (SILVER, "customers"),
        (SILVER, "products"),
        (SILVER, "orders"),
        (SILVER, "order_items"),
        (GOLD, "revenue_per_day"),
        (GOLD, "customer_value"),
        (GOLD, "product_popularity"),
        (GOLD, "order_details"),
        (GOLD, "sales_trends"),
        (GOLD, "daily_summary"),
        (GOLD, "inventory"),
    ];

    /// Tables with a row for each version. They come out of the order of events, and not of the rows there are.
    pub const HISTORIES: [(&'static str, &'static str); 2] =
        [(SILVER, "order_status_history"), (SILVER, "product_price_history")];

    /// Tables with the rows that break a rule.
    pub const QUARANTINES: [(&'static str, &'static str); 1] = [(SILVER, "orders__quarantine")];

    pub(super) fn turn(&mut self, turn: Turn) {
        match turn {
            Turn::Total(total) => self.ever_broken.extend((total < 0).then_some(TOTAL_NOT_NEGATIVE)),
            Turn::Status(id, status) => {
                self.ever_broken.extend((status == Status::Refunded).then_some(ACCEPTED_STATUS));
                self.statuses.entry(id).or_default().becomes(status);
            }
            Turn::Price(id, price) => self.prices.entry(id).or_default().becomes(price),
            Turn::Gone(Table::Orders, id) => self.statuses.entry(id).or_default().is_over = true,
            Turn::Gone(Table::Products, id) => self.prices.entry(id).or_default().is_over = true,
            Turn::Gone(..) => {}
        }
    }

    pub(super) fn count(&mut self, record: &Record) {
        let place = (record.table, record.partition);
        *self.produced.entry(place).or_default() += 1;
        match record.kind {
            RecordKind::Tombstone => self.tombstones += 1,
            RecordKind::Change => *self.bronze.entry(place).or_default() += 1,
            RecordKind::Poison => {
                *self.bronze.entry(place).or_default() += 1;
                self.rejected += 1;
            }
        }
    }

    /// Per topic and partition the records that must be rows of bronze: every change event, those sent again
    /// included, and the poison record.
    pub fn bronze(&self) -> &BTreeMap<(Table, i32), u64> {
        &self.bronze
    }

    pub fn bronze_rows(&self, table: Table) -> u64 {
        self.bronze.iter().filter(|((of, _), _)| *of == table).map(|(_, count)| count).sum()
    }

    /// Per topic and partition all records sent, tombstones too: the next offset, when nothing else wrote there.
    pub fn produced(&self) -> &BTreeMap<(Table, i32), u64> {
        &self.produced
    }

    /// Records that are read and make no row.
    pub fn tombstones(&self) -> u64 {
        self.tombstones
    }

    /// The rules about single rows that some row breaks now, as a table's name and the rule's.
    pub fn broken_rules(&self) -> Vec<Vec<String>> {
        let orders = || self.orders.iter().map(|(_, order)| order);
        let broken = [
            (TOTAL_NOT_NEGATIVE, orders().any(|order| !is_sound(order))),
            (ACCEPTED_STATUS, orders().any(|order| is_sound(order) && order.status == Status::Refunded)),
        ];
        // In the order of their names.
        let mut rules: Vec<_> =
            broken.iter().filter(|(_, is_broken)| *is_broken).map(|(rule, _)| of_orders(rule)).collect();
        rules.sort();
        rules
    }

    /// Those that some row has broken at some time, which a merge may have come by or not.
    pub fn rules_ever_broken(&self) -> Vec<Vec<String>> {
        self.ever_broken.iter().map(|rule| of_orders(rule)).collect()
    }

    /// Orders that break no rule which keeps them out of silver.
    fn sound_orders(&self) -> impl Iterator<Item = (i32, &Order)> {
        self.orders.iter().filter(|(_, order)| is_sound(order))
    }

    fn sales(&self) -> impl Iterator<Item = (i32, &Order)> {
        self.sound_orders().filter(|(_, order)| counts(order))
    }

    /// Rows of bronze that hold a record nobody could decode.
    pub fn rejected(&self) -> u64 {
        self.rejected
    }

    /// The rows a silver or gold table must hold, or nothing for a table the shop does not know. Bookkeeping columns
    /// (those with a leading underscore) are not part of it.
    pub fn table(&self, namespace: &str, name: &str) -> Option<Expected> {
        let (columns, mut rows) = match (namespace, name) {
            (SILVER, "customers") => self.silver_customers(),
            (SILVER, "products") => self.silver_products(),
            (SILVER, "orders") => self.silver_orders(),
            (SILVER, "orders__quarantine") => self.quarantined_orders(),
            (SILVER, "order_items") => self.silver_order_items(),
            (SILVER, "order_status_history") => {
                versions("status", &self.statuses, |status| status_text(*status).to_string())
            }
            (SILVER, "product_price_history") => versions("price", &self.prices, |price| cents_text((*price).into())),
            (GOLD, "revenue_per_day") => self.revenue_per_day(),
            (GOLD, "customer_value") => self.customer_value(),
            (GOLD, "product_popularity") => self.product_popularity(),
            (GOLD, "order_details") => self.order_details(),
            (GOLD, "sales_trends") => self.sales_trends(),
            (GOLD, "daily_summary") => self.daily_summary(),
            (GOLD, "inventory") => self.inventory(),
            _ => return None,
        };
        rows.sort_unstable();
        Some(Expected { columns, rows })
    }

    fn silver_customers(&self) -> Unsorted {
        let columns = vec![
            "id",
            "name",
            "email",
            "country",
            "segment",
            "birth_date",
            "notes",
            "is_active",
            "is_complete",
            "created_at",
            "updated_at",
        ];
        let row = |(id, customer): (i32, &Customer)| {
            vec![
                id.to_string(),
                trim(&customer.name).to_string(),
                trim(&customer.email).to_lowercase(),
                customer.country.to_uppercase(),
                customer.segment.unwrap_or("unknown").to_string(),
                or_null(customer.birth_date, date_text),
                or_null(customer.notes.as_ref(), String::clone),
                customer.is_active.to_string(),
                (customer.segment.is_some() && customer.birth_date.is_some()).to_string(),
                instant_text(customer.created_at_us),
                instant_text(customer.updated_at_us),
            ]
        };
        (columns, self.customers.iter().map(row).collect())
    }

    fn silver_products(&self) -> Unsorted {
        let columns =
            vec!["id", "name", "description", "price", "stock_quantity", "is_in_stock", "created_at", "updated_at"];
        let row = |(id, product): (i32, &Product)| {
            vec![
                id.to_string(),
                product.name.clone(),
                or_null(product.description, str::to_string),
                cents_text(product.price.into()),
                product.stock_quantity.to_string(),
                (product.stock_quantity > 0).to_string(),
                timestamp_text(product.created_at_us),
                timestamp_text(product.updated_at_us),
            ]
        };
        (columns, self.products.iter().map(row).collect())
    }

    fn silver_orders(&self) -> Unsorted {
        (ORDER_COLUMNS.to_vec(), self.sound_orders().map(order_row).collect())
    }

    fn quarantined_orders(&self) -> Unsorted {
        let with_reason = |(id, order): (i32, &Order)| {
            let mut row = order_row((id, order));
            row.push(TOTAL_NOT_NEGATIVE.to_string());
            row
        };
        let kept_apart = self.orders.iter().filter(|(_, order)| !is_sound(order));
        (ORDER_COLUMNS.into_iter().chain(["_rules"]).collect(), kept_apart.map(with_reason).collect())
    }

    fn silver_order_items(&self) -> Unsorted {
        let columns = vec!["id", "order_id", "product_id", "quantity", "price", "line_total", "created_at"];
        let row = |(id, item): (i32, &OrderItem)| {
            vec![
                id.to_string(),
                item.order_id.to_string(),
                item.product_id.to_string(),
                item.quantity.to_string(),
                cents_text(item.price.into()),
                cents_text(line_total(item)),
                timestamp_text(item.created_at_us),
            ]
        };
        (columns, self.order_items.iter().map(row).collect())
    }

    fn revenue_per_day(&self) -> Unsorted {
        #[derive(Default)]
        struct Day {
            orders: i64,
            customers: BTreeSet<i32>,
            revenue: i128,
        }
        let mut days: BTreeMap<i32, Day> = BTreeMap::new();
        for (_, order) in self.sales() {
            let day = days.entry(day_of(order.created_at_us)).or_default();
            day.orders += 1;
            day.customers.insert(order.customer_id);
            day.revenue += i128::from(order.total_amount);
        }
        let row = |(date, day): (&i32, &Day)| {
            vec![
                date_text(*date),
                day.orders.to_string(),
                day.customers.len().to_string(),
                cents_text(day.revenue),
                cents_text(divide_half_up(day.revenue, day.orders.into())),
            ]
        };
        let columns = vec!["order_date", "orders", "customers", "revenue", "average_order_value"];
        (columns, days.iter().map(row).collect())
    }

    fn customer_value(&self) -> Unsorted {
        #[derive(Default)]
        struct Value {
            orders: i64,
            spent: i128,
            first_and_last: Option<(i32, i32)>,
        }
        let mut values: BTreeMap<i32, Value> = BTreeMap::new();
        for (_, order) in self.sales() {
            let value = values.entry(order.customer_id).or_default();
            let day = day_of(order.created_at_us);
            value.orders += 1;
            value.spent += i128::from(order.total_amount);
            value.first_and_last =
                Some(value.first_and_last.map_or((day, day), |(first, last)| (first.min(day), last.max(day))));
        }
        let none = Value::default();
        let row = |(id, customer): (i32, &Customer)| {
            let value = values.get(&id).unwrap_or(&none);
            let segment = if !customer.is_active {
                "inactive"
            } else if value.spent >= VIP_CENTS || value.orders >= 5 {
                "vip"
            } else if value.orders >= 2 {
                "regular"
            } else if value.orders == 1 {
                "new"
            } else {
                "prospect"
            };
            vec![
                id.to_string(),
                trim(&customer.name).to_string(),
                customer.country.to_uppercase(),
                value.orders.to_string(),
                cents_text(value.spent),
                or_null(value.first_and_last, |(first, _)| date_text(first)),
                or_null(value.first_and_last, |(_, last)| date_text(last)),
                segment.to_string(),
            ]
        };
        let columns = vec![
            "customer_id",
            "name",
            "country",
            "orders",
            "lifetime_value",
            "first_order_date",
            "last_order_date",
            "segment",
        ];
        (columns, self.customers.iter().map(row).collect())
    }

    fn product_popularity(&self) -> Unsorted {
        #[derive(Default)]
        struct Sales {
            orders: BTreeSet<i32>,
            units: i64,
            revenue: i128,
        }
        let mut sales: BTreeMap<i32, Sales> = BTreeMap::new();
        for (_, item) in self.order_items.iter() {
            if self.orders.get(item.order_id).is_some_and(|order| is_sound(order) && counts(order)) {
                let product = sales.entry(item.product_id).or_default();
                product.orders.insert(item.order_id);
                product.units += i64::from(item.quantity);
                product.revenue += line_total(item);
            }
        }
        let none = Sales::default();
        let mut ranked: Vec<(i32, &Product, &Sales)> =
            self.products.iter().map(|(id, product)| (id, product, sales.get(&id).unwrap_or(&none))).collect();
        ranked.sort_by_key(|(id, _, sold)| (Reverse(sold.units), *id));
        let row = |(rank, (id, product, sold)): (usize, &(i32, &Product, &Sales))| {
            vec![
                id.to_string(),
                product.name.clone(),
                sold.orders.len().to_string(),
                sold.units.to_string(),
                cents_text(sold.revenue),
                (rank + 1).to_string(),
            ]
        };
        let columns = vec!["product_id", "name", "orders", "units_sold", "revenue", "popularity_rank"];
        (columns, ranked.iter().enumerate().map(row).collect())
    }

    fn order_details(&self) -> Unsorted {
        let columns = vec![
            "order_id",
            "order_date",
            "status",
            "is_sale",
            "total_amount",
            "customer_id",
            "customer_name",
            "country",
            "segment",
            "is_active",
        ];
        let row = |(id, order): (i32, &Order)| {
            let customer = self.customers.get(order.customer_id);
            vec![
                id.to_string(),
                date_text(day_of(order.created_at_us)),
                status_text(order.status).to_string(),
                counts(order).to_string(),
                cents_text(order.total_amount.into()),
                order.customer_id.to_string(),
                or_null(customer, |customer| trim(&customer.name).to_string()),
                or_null(customer, |customer| customer.country.to_uppercase()),
                or_null(customer, |customer| customer.segment.unwrap_or("unknown").to_string()),
                or_null(customer, |customer| customer.is_active.to_string()),
            ]
        };
        (columns, self.sound_orders().map(row).collect())
    }

    fn sales_trends(&self) -> Unsorted {
        let mut revenues: BTreeMap<i32, i128> = BTreeMap::new();
        for (_, order) in self.sales() {
            *revenues.entry(day_of(order.created_at_us)).or_default() += i128::from(order.total_amount);
        }
        let days: Vec<(i32, i128)> = revenues.into_iter().collect();
        let mut so_far = 0;
        let row = |(at, (date, revenue)): (usize, &(i32, i128))| {
            so_far += revenue;
            let last_seven = &days[at.saturating_sub(6)..=at];
            let sum: i128 = last_seven.iter().map(|(_, revenue)| revenue).sum();
            let previous = at.checked_sub(1).map(|before| days[before].1);
            let better = days.iter().filter(|(_, other)| other > revenue).count();
            vec![
                date_text(*date),
                cents_text(*revenue),
                or_null(previous, cents_text),
                or_null(previous, |previous| cents_text(revenue - previous)),
                cents_text(divide_half_up(sum, last_seven.len() as i128)),
                cents_text(so_far),
                (better + 1).to_string(),
            ]
        };
        let columns = vec![
            "order_date",
            "revenue",
            "previous_revenue",
            "revenue_change",
            "average_of_seven",
            "revenue_so_far",
            "revenue_rank",
        ];
        (columns, days.iter().enumerate().map(row).collect())
    }

    fn daily_summary(&self) -> Unsorted {
        #[derive(Default)]
        struct Day {
            orders: i128,
            sales: i128,
            cancelled: i128,
            revenue: i128,
            new_customers: i128,
        }
        let mut days: BTreeMap<i32, Day> = BTreeMap::new();
        for (_, order) in self.sound_orders() {
            let day = days.entry(day_of(order.created_at_us)).or_default();
            day.orders += 1;
            match order.status {
                Status::Pending | Status::Refunded => {}
                Status::Cancelled => day.cancelled += 1,
                Status::Paid | Status::Shipped | Status::Delivered => {
                    day.sales += 1;
                    day.revenue += i128::from(order.total_amount);
                }
            }
        }
        for (_, customer) in self.customers.iter() {
            days.entry(day_of(customer.created_at_us)).or_default().new_customers += 1;
        }
        let row = |(date, day): (&i32, &Day)| {
            // In hundredths of a percent.
            let cancelled = (day.orders > 0).then(|| divide_half_up(day.cancelled * 10_000, day.orders));
            vec![
                date_text(*date),
                day.orders.to_string(),
                day.sales.to_string(),
                day.cancelled.to_string(),
                or_null(cancelled, |hundredths| decimal_text(hundredths, 2)),
                cents_text(day.revenue),
                day.new_customers.to_string(),
            ]
        };
        let columns = vec!["day", "orders", "sales", "cancelled", "cancelled_percent", "revenue", "new_customers"];
        (columns, days.iter().map(row).collect())
    }

    fn inventory(&self) -> Unsorted {
        let mut reserved: BTreeMap<i32, i64> = BTreeMap::new();
        let waits = |order: &Order| matches!(order.status, Status::Pending | Status::Paid);
        for (_, order) in self.sound_orders().filter(|(_, order)| waits(order)) {
            for item in order.item_ids().filter_map(|id| self.order_items.get(id)) {
                *reserved.entry(item.product_id).or_default() += i64::from(item.quantity);
            }
        }
        let row = |(id, product): (i32, &Product)| {
            let (available, reserved) = (i64::from(product.stock_quantity), reserved.get(&id).copied().unwrap_or(0));
            let on_hand = available + reserved;
            let level = match available {
                ..=0 => "out",
                1..20 => "low",
                _ => "enough",
            };
            vec![
                id.to_string(),
                product.name.clone(),
                available.to_string(),
                reserved.to_string(),
                on_hand.to_string(),
                cents_text(i128::from(on_hand) * i128::from(product.price)),
                level.to_string(),
            ]
        };
        let columns = vec!["product_id", "name", "available", "reserved", "on_hand", "value_on_hand", "stock_level"];
        (columns, self.products.iter().map(row).collect())
    }
}

/// What a customer has spent to be a `vip`: 5000.00.
const VIP_CENTS: i128 = 500_000;

type Unsorted = (Vec<&'static str>, Vec<Vec<String>>);

const TOTAL_NOT_NEGATIVE: &str = "total_not_negative";
const ACCEPTED_STATUS: &str = "accepted_values_status";

fn of_orders(rule: &str) -> Vec<String> {
    vec![format!("{SILVER}.orders"), rule.to_string()]
}

/// One that is not is in quarantine.
fn is_sound(order: &Order) -> bool {
    order.total_amount >= 0
}

const ORDER_COLUMNS: [&str; 7] = ["id", "customer_id", "total_amount", "status", "is_sale", "created_at", "updated_at"];

fn order_row((id, order): (i32, &Order)) -> Vec<String> {
    vec![
        id.to_string(),
        order.customer_id.to_string(),
        cents_text(order.total_amount.into()),
        status_text(order.status).to_string(),
        counts(order).to_string(),
        timestamp_text(order.created_at_us),
        timestamp_text(order.updated_at_us),
    ]
}

/// An order counts as a sale once it is paid.
fn counts(order: &Order) -> bool {
    matches!(order.status, Status::Paid | Status::Shipped | Status::Delivered)
}

fn status_text(status: Status) -> &'static str {
    match status {
        Status::Pending => "pending",
        Status::Paid => "paid",
        Status::Shipped => "shipped",
        Status::Delivered => "delivered",
        Status::Cancelled => "cancelled",
        Status::Refunded => "refunded",
    }
}

fn line_total(item: &OrderItem) -> i128 {
    i128::from(item.quantity) * i128::from(item.price)
}

fn divide_half_up(amount: i128, by: i128) -> i128 {
    (2 * amount + by).div_euclid(2 * by)
}

fn day_of(us: i64) -> i32 {
    us.div_euclid(86_400_000_000) as i32
}

/// A row for each version of each.
fn versions<T>(column: &'static str, of: &BTreeMap<i32, Past<T>>, text: impl Fn(&T) -> String) -> Unsorted {
    let rows = of.iter().flat_map(|(id, past)| past.versions.iter().map(|value| vec![id.to_string(), text(value)]));
    (vec!["id", column], rows.collect())
}

/// SQL's `trim` takes spaces only.
fn trim(text: &str) -> &str {
    text.trim_matches(' ')
}

const NULL: &str = "null";

fn or_null<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or_else(|| NULL.to_string(), text)
}

fn cents_text(cents: i128) -> String {
    decimal_text(cents, 2)
}

fn decimal_text(unscaled: i128, scale: u32) -> String {
    let sign = if unscaled < 0 { "-" } else { "" };
    let (digits, unit) = (unscaled.unsigned_abs(), 10u128.pow(scale));
    match scale {
        0 => format!("{sign}{digits}"),
        _ => format!("{sign}{}.{:0width$}", digits / unit, digits % unit, width = scale as usize),
    }
}

fn date_text(days: i32) -> String {
    DateTime::from_timestamp_micros(i64::from(days) * 86_400_000_000)
        .map_or_else(|| format!("day {days}"), |time| time.format("%Y-%m-%d").to_string())
}

fn timestamp_text(us: i64) -> String {
    DateTime::from_timestamp_micros(us)
        .map_or_else(|| format!("microsecond {us}"), |time| time.format("%Y-%m-%dT%H:%M:%S%.6f").to_string())
}

fn instant_text(us: i64) -> String {
    timestamp_text(us) + "Z"
}

/// The rows of some batches as the truth writes them, sorted: integers and booleans plain, decimals with their whole
/// scale, dates and times as ISO 8601 with six digits (an instant with a `Z`), lists by commas, null as `null`.
pub fn text_rows(batches: &[RecordBatch], columns: &[&str]) -> Result<Vec<Vec<String>>, TruthError> {
    let mut rows = Vec::with_capacity(batches.iter().map(RecordBatch::num_rows).sum());
    for batch in batches {
        let first = rows.len();
        rows.resize_with(first + batch.num_rows(), || Vec::with_capacity(columns.len()));
        for column in columns {
            let array =
                batch.column_by_name(column).ok_or_else(|| TruthError::NoColumn { column: (*column).to_string() })?;
            for (row, text) in rows[first..].iter_mut().zip(texts(column, array)?) {
                row.push(text);
            }
        }
    }
    rows.sort_unstable();
    Ok(rows)
}

fn texts(column: &str, array: &dyn Array) -> Result<Vec<String>, TruthError> {
    let cast_to = |data_type: DataType| {
        cast(array, &data_type).map_err(|source| TruthError::Cast { column: column.to_string(), source })
    };
    Ok(match array.data_type() {
        DataType::Boolean => each(array.as_boolean().iter(), |value| value.to_string()),
        DataType::Int32 => each(array.as_primitive::<Int32Type>().iter(), |value| value.to_string()),
        DataType::Int64 => each(array.as_primitive::<Int64Type>().iter(), |value| value.to_string()),
        DataType::Decimal128(_, scale @ 0..) => {
            let scale = u32::from(scale.unsigned_abs());
            each(array.as_primitive::<Decimal128Type>().iter(), |value| decimal_text(value, scale))
        }
        DataType::Date32 => each(array.as_primitive::<Date32Type>().iter(), date_text),
        DataType::Timestamp(_, zone) => {
            let micros = cast_to(DataType::Timestamp(TimeUnit::Microsecond, zone.clone()))?;
            let text = if zone.is_some() { instant_text } else { timestamp_text };
            each(micros.as_primitive::<TimestampMicrosecondType>().iter(), text)
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            each(cast_to(DataType::LargeUtf8)?.as_string::<i64>().iter(), str::to_string)
        }
        DataType::List(_) => {
            let rows = array.as_list::<i32>();
            let joined = |elements: ArrayRef| Ok(texts(column, &elements)?.join(", "));
            rows.iter().map(|elements| elements.map_or(Ok(NULL.to_string()), joined)).collect::<Result<_, _>>()?
        }
        other => return Err(TruthError::Type { column: column.to_string(), data_type: other.clone() }),
    })
}

fn each<T>(values: impl Iterator<Item = Option<T>>, text: impl Fn(T) -> String) -> Vec<String> {
    values.map(|value| or_null(value, &text)).collect()
}
