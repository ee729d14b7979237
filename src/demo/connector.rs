//! The records Debezium 3's PostgreSQL connector sends, byte for byte, with the JSON converter and
//! `schemas.enable=false`, `decimal.handling.mode=precise`, adaptive times and tombstones on delete.
//!
//! JSON is written by hand into one buffer per record: a tree of values per event would make the generator slower
//! than the engine it feeds.

use std::collections::VecDeque;

use bytes::Bytes;

use super::rows::{Cents, Customer, Order, OrderItem, Product, Status, Table};

/// A record ready to be produced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub kind: RecordKind,
    pub table: Table,
    /// A function of the key, so that a key's events stay in order: the one Kafka's Java clients use.
    pub partition: i32,
    pub key: Option<Bytes>,
    /// `None` is a tombstone.
    pub payload: Option<Bytes>,
    pub timestamp_ms: i64,
}

impl Record {
    pub fn topic(&self) -> &'static str {
        self.table.topic()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RecordKind {
    /// A change event (op r, c, u or d), sent for the first time or again.
    Change,
    /// The null record behind a delete.
    Tombstone,
    /// Bytes that are no JSON.
    Poison,
}

/// The stored text of a column whose value stayed out of line and was not touched.
pub(super) const UNAVAILABLE: &str = "__debezium_unavailable_value";

/// The place of a row in the initial snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) enum SnapshotPlace {
    First,
    FirstOfTable,
    Middle,
    LastOfTable,
    Last,
}

/// A row as an event shows it.
#[derive(Clone, Copy)]
pub(super) enum Image<'a> {
    Customer(&'a Customer),
    /// As it stands behind an update that did not touch the out-of-line notes.
    CustomerWithoutNotes(&'a Customer),
    Product(&'a Product),
    Order(&'a Order),
    OrderItem(&'a OrderItem),
    /// What REPLICA IDENTITY DEFAULT leaves of a deleted row: its key. The schema still has every column, so Debezium
    /// fills nullable ones with null and the others with their type's zero.
    KeyOnly(Table),
}

/// Where the connector stands in the write-ahead log.
#[derive(Debug)]
pub(super) struct Connector {
    lsn: i64,
    /// Null until the connector has seen a commit, as after a real snapshot.
    last_commit_lsn: Option<i64>,
    tx_id: i64,
    commit_us: i64,
    processed_us: i64,
    /// The records sent last, to be sent again now and then.
    recent: VecDeque<Record>,
    /// What rows have become since the last [`Connector::take_turns`].
    turns: Vec<Turn>,
}

/// What a row has become, of what a history is kept of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Turn {
    Status(i32, Status),
    Total(Cents),
    Price(i32, Cents),
    Gone(Table, i32),
}

const RECENT: usize = 64;

impl Connector {
    pub(super) fn new(start_us: i64) -> Self {
        Connector {
            lsn: 24_023_128,
            last_commit_lsn: None,
            tx_id: 742,
            commit_us: start_us,
            processed_us: start_us,
            recent: VecDeque::with_capacity(RECENT + 1),
            turns: Vec::new(),
        }
    }

    pub(super) fn begin(&mut self, now_us: i64) {
        self.tx_id += 1 + (self.lsn >> 3) % 3;
        self.lsn += 56;
        // Every event of a transaction bears the time of its commit.
        self.commit_us = now_us + 400 + self.lsn % 1_600;
    }

    pub(super) fn commit(&mut self) {
        self.last_commit_lsn = Some(self.lsn);
        self.lsn += 48;
    }

    /// A row of the initial snapshot. All of them share one position.
    pub(super) fn read(&mut self, records: &mut Vec<Record>, id: i32, row: Image<'_>, place: SnapshotPlace) {
        let place = match place {
            SnapshotPlace::First => "first",
            SnapshotPlace::FirstOfTable => "first_in_data_collection",
            SnapshotPlace::Middle => "true",
            SnapshotPlace::LastOfTable => "last_in_data_collection",
            SnapshotPlace::Last => "last",
        };
        self.send(records, id, 'r', place, None, Some(row));
    }

    pub(super) fn insert(&mut self, records: &mut Vec<Record>, id: i32, after: Image<'_>) {
        let bytes = self.send(records, id, 'c', "false", None, Some(after));
        self.advance(bytes);
    }

    /// `before` is null for a table with REPLICA IDENTITY DEFAULT whose key did not change.
    pub(super) fn update(&mut self, records: &mut Vec<Record>, id: i32, before: Option<Image<'_>>, after: Image<'_>) {
        let bytes = self.send(records, id, 'u', "false", before, Some(after));
        self.advance(bytes);
    }

    pub(super) fn delete(&mut self, records: &mut Vec<Record>, id: i32, before: Image<'_>) {
        let bytes = self.send(records, id, 'd', "false", Some(before), None);
        self.send_tombstone(records, before.table(), id);
        self.advance(bytes);
    }

    /// A changed primary key: the old key's delete and tombstone and the new key's create, all of one position.
    pub(super) fn rekey(&mut self, records: &mut Vec<Record>, old_id: i32, new_id: i32, after: Image<'_>) {
        let table = after.table();
        self.send(records, old_id, 'd', "false", Some(Image::KeyOnly(table)), None);
        self.send_tombstone(records, table, old_id);
        let bytes = self.send(records, new_id, 'c', "false", None, Some(after));
        self.advance(bytes);
    }

    /// Sends a run of records again, as they were, starting at the `start`-th of those sent last and with at most
    /// `changes` change events in it.
    ///
    /// Debezium itself, after a crash, would go on from there up to where it was; a producer that retries need not.
    /// The shop is as harsh as the latter: an old event may come again behind newer ones of its key.
    pub(super) fn resend(&mut self, records: &mut Vec<Record>, start: usize, changes: usize) {
        let mut sent = 0;
        for record in self.recent.iter().skip(start).skip_while(|record| record.kind != RecordKind::Change) {
            if record.kind == RecordKind::Change {
                if sent == changes {
                    break;
                }
                sent += 1;
            }
            records.push(record.clone());
        }
    }

    /// Sends an old event of a deleted key again, alone: who forgets what was deleted brings the row back to life.
    pub(super) fn resend_behind_delete(&self, records: &mut Vec<Record>) {
        let Some(tombstone) = self.recent.iter().rev().find(|record| record.kind == RecordKind::Tombstone) else {
            return;
        };
        let same_key = |record: &&Record| record.table == tombstone.table && record.key == tombstone.key;
        let mut events = self.recent.iter().filter(same_key).filter(|record| record.kind == RecordKind::Change);
        // The last of them is the delete itself.
        if let (Some(old), Some(_)) = (events.next(), events.next()) {
            records.push(old.clone());
        }
    }

    pub(super) fn take_turns(&mut self) -> Vec<Turn> {
        std::mem::take(&mut self.turns)
    }

    pub(super) fn recent(&self) -> usize {
        self.recent.len()
    }

    /// What another application's producer wrote to the wrong topic: the framing of a registry's Avro record.
    pub(super) fn poison(&self, records: &mut Vec<Record>) {
        records.push(Record {
            kind: RecordKind::Poison,
            table: Table::Orders,
            partition: 0,
            key: None,
            payload: Some(Bytes::from_static(b"\x00\x00\x00\x00\x2a\x02\x48not a change event\xff\xfe")),
            timestamp_ms: self.sent_ms(),
        });
    }

    fn sent_ms(&self) -> i64 {
        (self.processed_us + 3_000) / 1_000
    }

    /// A log record is about as long as the row it holds.
    fn advance(&mut self, bytes: usize) {
        self.lsn += 56 + ((bytes as i64 / 2) & !7);
    }

    fn send(
        &mut self,
        records: &mut Vec<Record>,
        id: i32,
        op: char,
        snapshot: &str,
        before: Option<Image<'_>>,
        after: Option<Image<'_>>,
    ) -> usize {
        let Some(table) = after.or(before).map(Image::table) else { return 0 };
        match after {
            Some(Image::Order(order)) => {
                self.turns.extend([Turn::Status(id, order.status), Turn::Total(order.total_amount)]);
            }
            Some(Image::Product(product)) => self.turns.push(Turn::Price(id, product.price)),
            None => self.turns.push(Turn::Gone(table, id)),
            Some(_) => {}
        }
        let lag_us = 90_000 + self.tx_id * 7_919 % 300_000;
        self.processed_us = (self.processed_us + 40 + self.lsn % 64).max(self.commit_us + lag_us);

        // Room for all but the few events with long notes.
        let mut out = Vec::with_capacity(1024);
        out.extend_from_slice(b"{\"before\":");
        push_image(&mut out, id, before);
        out.extend_from_slice(b",\"after\":");
        push_image(&mut out, id, after);
        self.push_source(&mut out, table, snapshot);
        out.extend_from_slice(b",\"transaction\":null,\"op\":\"");
        out.push(op as u8);
        out.extend_from_slice(b"\",\"ts_ms\":");
        push_int(&mut out, self.processed_us / 1_000);
        out.extend_from_slice(b",\"ts_us\":");
        push_int(&mut out, self.processed_us);
        out.extend_from_slice(b",\"ts_ns\":");
        push_int(&mut out, self.processed_us * 1_000 + self.lsn % 1_000);
        out.push(b'}');

        let bytes = out.len();
        self.push_record(records, RecordKind::Change, table, id, Some(Bytes::from(out)));
        bytes
    }

    fn send_tombstone(&mut self, records: &mut Vec<Record>, table: Table, id: i32) {
        self.push_record(records, RecordKind::Tombstone, table, id, None);
    }

    fn push_record(
        &mut self,
        records: &mut Vec<Record>,
        kind: RecordKind,
        table: Table,
        id: i32,
        payload: Option<Bytes>,
    ) {
        let key = key_json(id);
        let partition = partition_of(&key, table.partitions());
        let record = Record { kind, table, partition, key: Some(key), payload, timestamp_ms: self.sent_ms() };
        self.recent.push_back(record.clone());
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        records.push(record);
    }

    fn push_source(&self, out: &mut Vec<u8>, table: Table, snapshot: &str) {
        out.extend_from_slice(
            b",\"source\":{\"version\":\"3.1.3.Final\",\"connector\":\"postgresql\",\"name\":\"shop\",\"ts_ms\":",
        );
        push_int(out, self.commit_us / 1_000);
        out.extend_from_slice(b",\"snapshot\":\"");
        out.extend_from_slice(snapshot.as_bytes());
        out.extend_from_slice(b"\",\"db\":\"shop\",\"sequence\":\"[");
        match self.last_commit_lsn {
            None => out.extend_from_slice(b"null"),
            Some(lsn) => {
                out.extend_from_slice(b"\\\"");
                push_int(out, lsn);
                out.extend_from_slice(b"\\\"");
            }
        }
        out.extend_from_slice(b",\\\"");
        push_int(out, self.lsn);
        out.extend_from_slice(b"\\\"]\",\"ts_us\":");
        push_int(out, self.commit_us);
        out.extend_from_slice(b",\"ts_ns\":");
        push_int(out, self.commit_us * 1_000);
        out.extend_from_slice(b",\"schema\":\"public\",\"table\":\"");
        out.extend_from_slice(table.name().as_bytes());
        out.extend_from_slice(b"\",\"txId\":");
        push_int(out, self.tx_id);
        out.extend_from_slice(b",\"lsn\":");
        push_int(out, self.lsn);
        out.extend_from_slice(b",\"xmin\":null}");
    }
}

impl Image<'_> {
    fn table(self) -> Table {
        match self {
            Image::Customer(_) | Image::CustomerWithoutNotes(_) => Table::Customers,
            Image::Product(_) => Table::Products,
            Image::Order(_) => Table::Orders,
            Image::OrderItem(_) => Table::OrderItems,
            Image::KeyOnly(table) => table,
        }
    }
}

fn key_json(id: i32) -> Bytes {
    let mut key = Vec::with_capacity(18);
    key.extend_from_slice(b"{\"id\":");
    push_int(&mut key, i64::from(id));
    key.push(b'}');
    Bytes::from(key)
}

fn push_image(out: &mut Vec<u8>, id: i32, image: Option<Image<'_>>) {
    let Some(image) = image else {
        out.extend_from_slice(b"null");
        return;
    };
    out.extend_from_slice(b"{\"id\":");
    push_int(out, i64::from(id));
    match image {
        Image::Customer(customer) => push_customer(out, customer, customer.notes.as_deref()),
        Image::CustomerWithoutNotes(customer) => push_customer(out, customer, Some(UNAVAILABLE)),
        Image::Product(product) => {
            push_text_field(out, "name", Some(&product.name));
            push_text_field(out, "description", product.description);
            push_decimal_field(out, "price", product.price);
            push_int_field(out, "stock_quantity", i64::from(product.stock_quantity));
            push_int_field(out, "created_at", product.created_at_us);
            push_int_field(out, "updated_at", product.updated_at_us);
        }
        Image::Order(order) => {
            push_int_field(out, "customer_id", i64::from(order.customer_id));
            push_decimal_field(out, "total_amount", order.total_amount);
            push_text_field(out, "status", Some(order.status_text()));
            push_int_field(out, "created_at", order.created_at_us);
            push_int_field(out, "updated_at", order.updated_at_us);
        }
        Image::OrderItem(item) => {
            push_int_field(out, "order_id", i64::from(item.order_id));
            push_int_field(out, "product_id", i64::from(item.product_id));
            push_int_field(out, "quantity", i64::from(item.quantity));
            push_decimal_field(out, "price", item.price);
            push_int_field(out, "created_at", item.created_at_us);
        }
        Image::KeyOnly(table) => out.extend_from_slice(zeros(table).as_bytes()),
    }
    out.push(b'}');
}

fn push_customer(out: &mut Vec<u8>, customer: &Customer, notes: Option<&str>) {
    push_text_field(out, "name", Some(&customer.name));
    push_text_field(out, "email", Some(&customer.email));
    push_text_field(out, "country", Some(customer.country));
    push_text_field(out, "segment", customer.segment);
    match customer.birth_date {
        Some(days) => push_int_field(out, "birth_date", i64::from(days)),
        None => out.extend_from_slice(b",\"birth_date\":null"),
    }
    push_text_field(out, "notes", notes);
    push_name(out, "is_active");
    out.extend_from_slice(if customer.is_active { b"true" } else { b"false" });
    push_name(out, "created_at");
    push_iso(out, customer.created_at_us);
    push_name(out, "updated_at");
    push_iso(out, customer.updated_at_us);
}

/// The columns behind `id` as they stand in a key-only image, see [`Image::KeyOnly`].
fn zeros(table: Table) -> &'static str {
    match table {
        Table::Customers => concat!(
            r#","name":"","email":"","country":"","segment":null,"birth_date":null,"notes":null,"is_active":false,"#,
            r#""created_at":"1970-01-01T00:00:00Z","updated_at":"1970-01-01T00:00:00Z""#
        ),
        Table::Products => {
            r#","name":"","description":null,"price":"AA==","stock_quantity":0,"created_at":0,"updated_at":0"#
        }
        Table::Orders => r#","customer_id":0,"total_amount":"AA==","status":"","created_at":0,"updated_at":0"#,
        Table::OrderItems => r#","order_id":0,"product_id":0,"quantity":0,"price":"AA==","created_at":0"#,
    }
}

fn push_name(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn push_int_field(out: &mut Vec<u8>, name: &str, value: i64) {
    push_name(out, name);
    push_int(out, value);
}

fn push_text_field(out: &mut Vec<u8>, name: &str, value: Option<&str>) {
    push_name(out, name);
    match value {
        Some(text) => push_text(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

fn push_decimal_field(out: &mut Vec<u8>, name: &str, value: Cents) {
    push_name(out, name);
    push_decimal(out, value);
}

fn push_int(out: &mut Vec<u8>, value: i64) {
    let mut digits = [0u8; 20];
    let mut start = digits.len();
    let mut rest = value.unsigned_abs();
    loop {
        start -= 1;
        digits[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[start..]);
}

/// Text as Jackson writes it: beyond ASCII as it is, only quotes, backslashes and control characters escaped.
fn push_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let mut clean_from = 0;
    for (at, byte) in text.bytes().enumerate() {
        if byte >= 0x20 && byte != b'"' && byte != b'\\' {
            continue;
        }
        out.extend_from_slice(&text.as_bytes()[clean_from..at]);
        clean_from = at + 1;
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            _ => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
    }
    out.extend_from_slice(&text.as_bytes()[clean_from..]);
    out.push(b'"');
}

/// Base64 of the shortest big-endian two's complement, as `BigInteger.toByteArray` gives it.
fn push_decimal(out: &mut Vec<u8>, unscaled: i64) {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes = unscaled.to_be_bytes();
    let sign = if unscaled < 0 { 0xff } else { 0x00 };
    let mut start = 0;
    while start < 7 && bytes[start] == sign && (bytes[start + 1] ^ sign) & 0x80 == 0 {
        start += 1;
    }
    out.push(b'"');
    for chunk in bytes[start..].chunks(3) {
        let at = |index: usize| u32::from(chunk.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for index in 0..4 {
            let sextet = (bits >> (18 - 6 * index) & 63) as usize;
            out.push(if index <= chunk.len() { ALPHABET[sextet] } else { b'=' });
        }
    }
    out.push(b'"');
}

/// `timestamptz` has microseconds, and Debezium writes all six digits of them.
fn push_iso(out: &mut Vec<u8>, us: i64) {
    let (day, within_us) = (us.div_euclid(86_400_000_000), us.rem_euclid(86_400_000_000));
    let (year, month, day) = civil(day);
    let seconds = within_us / 1_000_000;
    out.push(b'"');
    push_padded(out, year, 4);
    out.push(b'-');
    push_padded(out, month, 2);
    out.push(b'-');
    push_padded(out, day, 2);
    out.push(b'T');
    push_padded(out, seconds / 3_600, 2);
    out.push(b':');
    push_padded(out, seconds / 60 % 60, 2);
    out.push(b':');
    push_padded(out, seconds % 60, 2);
    out.push(b'.');
    push_padded(out, within_us % 1_000_000, 6);
    out.extend_from_slice(b"Z\"");
}

fn push_padded(out: &mut Vec<u8>, value: i64, width: u32) {
    for place in (0..width).rev() {
        out.push(b'0' + (value / 10i64.pow(place) % 10) as u8);
    }
}

/// Year, month and day of a day since 1970 (Howard Hinnant's `civil_from_days`); a calendar library's formatter costs
/// more than the rest of a customer's event.
fn civil(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day_of_month = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day_of_month)
}

fn partition_of(key: &[u8], partitions: i32) -> i32 {
    (murmur2(key) & 0x7fff_ffff) as i32 % partitions
}

/// The hash of Kafka's default partitioner.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in words.by_ref() {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k = (k ^ k >> 24).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let tail = words.remainder();
    if !tail.is_empty() {
        for (index, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * index);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(M);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_the_shortest_twos_complement() {
        fn check(unscaled: i64, base64: &str) {
            let mut out = Vec::new();
            push_decimal(&mut out, unscaled);
            assert_eq!(String::from_utf8(out).unwrap(), format!("\"{base64}\""), "{unscaled}");
        }
        check(0, "AA==");
        check(1, "AQ==");
        check(127, "fw==");
        check(128, "AIA=");
        check(-1, "/w==");
        check(-128, "gA==");
        check(-129, "/38=");
        check(65_535, "AP//");
        check(123_456_789, "B1vNFQ==");
    }

    #[test]
    fn text_reads_back_through_a_json_library() {
        for text in ["", "plain", "Zoë \"Z\" O'Brien", "a\\b", "line\nline\r\t\u{8}\u{c}\u{1}\u{1f}", "\u{7f}日本"] {
            let mut out = Vec::new();
            push_text(&mut out, text);
            assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), text);
        }
    }

    #[test]
    fn integers_and_instants_are_written_as_others_write_them() {
        for value in [0, 9, 10, -1, 1_234_567, i64::MAX, i64::MIN] {
            let mut out = Vec::new();
            push_int(&mut out, value);
            assert_eq!(out, value.to_string().as_bytes());
        }
        let day_us = 86_400_000_000;
        for us in (-400_000..400_000).step_by(97).map(|day| day * day_us / 10 + day * 1_234_567) {
            let mut out = Vec::new();
            push_iso(&mut out, us);
            let time = chrono::DateTime::from_timestamp_micros(us).unwrap();
            assert_eq!(String::from_utf8(out).unwrap(), time.format("\"%Y-%m-%dT%H:%M:%S%.6fZ\"").to_string());
        }
    }

    #[test]
    fn keys_land_where_kafkas_java_clients_put_them() {
        // The values of Kafka's own test of its hash.
        for (data, hash) in [("21", -973_932_308), ("foobar", -790_332_482), ("a-little-bit-long-string", -985_981_536)]
        {
            assert_eq!(murmur2(data.as_bytes()) as i32, hash, "{data}");
        }
    }

    #[test]
    fn an_event_has_the_shape_debezium_sends() {
        let mut connector = Connector::new(1_700_000_000_000_000);
        let mut records = Vec::new();
        let order = Order {
            customer_id: 7,
            total_amount: 1_999,
            status: Status::Pending,
            spelling: 0,
            created_at_us: 1_700_000_000_000_001,
            updated_at_us: 1_700_000_000_000_001,
            first_item: 1,
            items: 0,
        };
        connector.begin(1_700_000_000_000_000);
        connector.insert(&mut records, 5, Image::Order(&order));
        connector.commit();
        connector.begin(1_700_000_001_000_000);
        connector.delete(&mut records, 5, Image::KeyOnly(Table::Orders));
        connector.commit();

        let texts: Vec<String> = records
            .iter()
            .map(|record| {
                let text = |bytes: &Option<Bytes>| {
                    bytes.as_ref().map_or("null".to_string(), |b| String::from_utf8(b.to_vec()).unwrap())
                };
                format!("{} {}", text(&record.key), text(&record.payload))
            })
            .collect();
        insta::assert_snapshot!(texts.join("\n"), @r#"
        {"id":5} {"before":null,"after":{"id":5,"customer_id":7,"total_amount":"B88=","status":"pending","created_at":1700000000000001,"updated_at":1700000000000001},"source":{"version":"3.1.3.Final","connector":"postgresql","name":"shop","ts_ms":1700000000001,"snapshot":"false","db":"shop","sequence":"[null,\"24023184\"]","ts_us":1700000000001184,"ts_ns":1700000000001184000,"schema":"public","table":"orders","txId":745,"lsn":24023184,"xmin":null},"transaction":null,"op":"c","ts_ms":1700000000290,"ts_us":1700000000290839,"ts_ns":1700000000290839184}
        {"id":5} {"before":{"id":5,"customer_id":0,"total_amount":"AA==","status":"","created_at":0,"updated_at":0},"after":null,"source":{"version":"3.1.3.Final","connector":"postgresql","name":"shop","ts_ms":1700000001001,"snapshot":"false","db":"shop","sequence":"[\"24023504\",\"24023608\"]","ts_us":1700000001001608,"ts_ns":1700000001001608000,"schema":"public","table":"orders","txId":747,"lsn":24023608,"xmin":null},"transaction":null,"op":"d","ts_ms":1700000001307,"ts_us":1700000001307101,"ts_ns":1700000001307101608}
        {"id":5} null
        "#);
    }
}
