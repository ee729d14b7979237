//! The auditor: bronze tables against what was produced, offset by offset.
//!
//! It reads the payloads by its own means (`serde_json` into trees) and shares no code with the decoder. A record that
//! holds a change must be in bronze once, with the values it was sent with; one that no reader could make sense of must
//! be there as the bytes it was; what holds no change must not be there; and the marker must stand at the end.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use chrono::{DateTime, NaiveDate};
use icestream::offsets::MARKER;
use icestream::row::{Column, ColumnType, Encoding, RowShape};
use icestream::table::{At, Table};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use crate::canonical::{self, Row};

/// As chrono counts days.
const DAYS_BEFORE_1970: i32 = 719_163;

const PLACEHOLDER: &str = "__debezium_unavailable_value";

/// A record as it was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sent {
    pub key: Option<Vec<u8>>,
    pub payload: Option<Vec<u8>>,
    pub timestamp_ms: i64,
}

/// What an offset holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    Record(Sent),
    /// Nothing a reader is ever given: a transaction marker, or a record of an aborted transaction.
    Nothing,
    /// A record that compaction took away, perhaps after somebody had read it.
    Compacted(Sent),
}

/// One partition, from its first offset on.
#[derive(Debug, Clone, Default)]
pub struct Log {
    pub first: i64,
    pub entries: Vec<Entry>,
}

impl Log {
    pub fn end(&self) -> i64 {
        self.first + self.entries.len() as i64
    }
}

/// Everything that was produced, by topic and partition.
#[derive(Debug, Clone, Default)]
pub struct Produced(pub BTreeMap<(String, i32), Log>);

/// A bronze table as some reader found it.
#[derive(Debug, Clone, Default)]
pub struct Bronze {
    pub name: String,
    /// The topics whose records belong here.
    pub topics: BTreeSet<String>,
    /// How the row images are typed; `None` where they are JSON text.
    pub shape: Option<RowShape>,
    /// The marker as whoever starts next reads it, and its mirror among the table's properties.
    pub marker: Option<String>,
    pub mirror: Option<String>,
    pub rows: Vec<Row>,
}

/// How far bronze has to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpTo {
    /// To the end of every topic.
    End,
    /// To wherever the marker stands: what is there is right, and more may follow.
    Marker,
}

/// What the auditor counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    pub changes: usize,
    pub rejected: usize,
    pub consumed: usize,
}

/// What is wrong, the first few findings of each audit.
#[derive(Debug)]
pub struct Findings(Vec<String>);

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 12;
        writeln!(f, "the auditor found {} things wrong:", self.0.len())?;
        self.0.iter().take(SHOWN).try_for_each(|finding| writeln!(f, "  {finding}"))
    }
}

impl Bronze {
    /// A table without its rows, which a reader then adds.
    pub fn of(table: &Table, topics: impl IntoIterator<Item = String>, shape: Option<RowShape>) -> Self {
        Bronze {
            name: table.name().to_string(),
            topics: topics.into_iter().collect(),
            shape,
            marker: table.marker(MARKER),
            mirror: table.properties().get(MARKER).cloned(),
            rows: Vec::new(),
        }
    }

    pub fn with(mut self, rows: Vec<Row>) -> Self {
        self.rows = rows;
        self
    }
}

/// The head's rows as our engine finds them.
pub async fn rows_by_engine(table: &Table) -> Vec<Row> {
    named(&canonical::columns(table), canonical::select(table, None).await)
}

/// The head's rows out of its Parquet files, read one after the other.
pub async fn rows_by_files(table: &Table) -> Vec<Row> {
    let view = table.view(At::Head).unwrap();
    let files = view.files(None).await.unwrap();
    let mut rows = Vec::new();
    for file in files {
        assert!(file.deletes.is_empty(), "nothing is ever deleted from bronze");
        let bytes = table.lake().storage().read(&file.path).await.unwrap();
        for batch in ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
            rows.extend(named(&names, canonical::rows_of(&[batch])));
        }
    }
    rows
}

/// Rows given as arrays in the order of these columns.
pub fn named(columns: &[String], rows: Vec<Value>) -> Vec<Row> {
    let row = |row: Value| {
        let Value::Array(values) = row else { panic!("a row is an array: {row}") };
        assert_eq!(values.len(), columns.len());
        columns.iter().cloned().zip(values).collect::<Row>()
    };
    rows.into_iter().map(row).collect()
}

/// Compares the tables with what was produced.
pub fn audit(produced: &Produced, tables: &[Bronze], up_to: UpTo) -> Result<Tally, Findings> {
    let mut audit = Audit { findings: Vec::new(), tally: Tally::default() };
    for table in tables {
        audit.table(produced, table, up_to);
    }
    for (topic, _) in produced.0.keys() {
        let homes = tables.iter().filter(|table| table.topics.contains(topic)).count();
        audit.expect(homes == 1, || format!("topic `{topic}` belongs to {homes} of the tables"));
    }
    if audit.findings.is_empty() { Ok(audit.tally) } else { Err(Findings(audit.findings)) }
}

struct Audit {
    findings: Vec<String>,
    tally: Tally,
}

/// What a record must have become.
#[derive(Debug, PartialEq)]
enum Meaning {
    Consumed,
    Rejected,
    Change(Box<Change>),
}

#[derive(Debug, PartialEq)]
struct Change {
    op: String,
    key: Option<Value>,
    before: Option<Value>,
    after: Option<Value>,
    unavailable: BTreeSet<String>,
}

/// A payload or a value that cannot be what its place asks for.
struct Unfit;

impl Audit {
    fn expect(&mut self, holds: bool, finding: impl FnOnce() -> String) {
        if !holds {
            self.findings.push(finding());
        }
    }

    fn table(&mut self, produced: &Produced, table: &Bronze, up_to: UpTo) {
        let name = &table.name;
        let mut found: BTreeMap<(String, i32, i64), &Row> = BTreeMap::new();
        for row in &table.rows {
            let identity = (|| {
                let partition = i32::try_from(row.get("_topic_partition")?.as_i64()?).ok()?;
                Some((row.get("_topic")?.as_str()?.to_string(), partition, row.get("_offset")?.as_i64()?))
            })();
            let Some(identity) = identity else {
                self.findings.push(format!("{name}: a row without an identity: {row:?}"));
                continue;
            };
            if let Some(_doubled) = found.insert(identity.clone(), row) {
                self.findings.push(format!("{name}: {} is there twice", place(&identity)));
            }
        }
        let next = self.marker(table);
        let mut unheard: BTreeSet<(String, i32)> = next.keys().cloned().collect();
        for (at, log) in produced.0.iter().filter(|((topic, _), _)| table.topics.contains(topic)) {
            unheard.remove(at);
            let marker = next.get(at).copied();
            let is_read = match up_to {
                UpTo::End => log.entries.is_empty() || marker == Some(log.end()),
                UpTo::Marker => marker.is_none_or(|next| (log.first..=log.end()).contains(&next)),
            };
            let (first, end) = (log.first, log.end());
            self.expect(is_read, || {
                format!("{name}: the marker of {} {} is {marker:?}, the log goes from {first} to {end}", at.0, at.1)
            });
            let end = if up_to == UpTo::End { log.end() } else { marker.unwrap_or(log.first) };
            for (offset, entry) in (log.first..).zip(&log.entries) {
                let identity = (at.0.clone(), at.1, offset);
                let row = found.remove(&identity);
                if offset >= end {
                    self.expect(row.is_none(), || format!("{name}: {} is past the marker", place(&identity)));
                    continue;
                }
                self.offset(table, &identity, entry, row);
            }
        }
        for identity in found.keys() {
            self.findings.push(format!("{name}: {} was never produced", place(identity)));
        }
        for (topic, partition) in unheard {
            self.findings.push(format!("{name}: the marker knows `{topic}` {partition}, where nothing was produced"));
        }
    }

    /// The marker's next offsets, read without the product's parser.
    fn marker(&mut self, table: &Bronze) -> BTreeMap<(String, i32), i64> {
        let name = &table.name;
        self.expect(table.marker == table.mirror, || {
            format!("{name}: the marker is {:?}, its mirror {:?}", table.marker, table.mirror)
        });
        let mut next = BTreeMap::new();
        let Some(text) = &table.marker else { return next };
        let parsed: Value = serde_json::from_str(text).unwrap_or_default();
        for (topic, of_topic) in parsed.as_object().into_iter().flatten() {
            for (partition, offset) in of_topic["next"].as_object().into_iter().flatten() {
                match (partition.parse(), offset.as_i64()) {
                    (Ok(partition), Some(offset)) => {
                        next.insert((topic.clone(), partition), offset);
                    }
                    _ => self.findings.push(format!("{name}: the marker has {partition}: {offset}")),
                }
            }
        }
        next
    }

    fn offset(&mut self, table: &Bronze, at: &(String, i32, i64), entry: &Entry, row: Option<&Row>) {
        let name = &table.name;
        let sent = match entry {
            Entry::Record(sent) => sent,
            Entry::Nothing => {
                self.expect(row.is_none(), || format!("{name}: {} holds no record, but has a row", place(at)));
                return;
            }
            Entry::Compacted(_) if row.is_none() => return,
            Entry::Compacted(sent) => sent,
        };
        let meaning = read(sent, &at.0, table.shape.as_ref());
        let Some(row) = row else {
            match meaning {
                Meaning::Consumed => self.tally.consumed += 1,
                _ => self.findings.push(format!("{name}: {} is missing", place(at))),
            }
            return;
        };
        let mut wrong = Vec::new();
        let mut check = |column: &str, is_right: bool| {
            if !is_right {
                wrong.push(format!("{column} is {}", cut(&row.get(column).unwrap_or(&Value::Null).to_string())));
            }
        };
        let is_null = |column: &str| row.get(column).is_some_and(Value::is_null);
        let time = DateTime::from_timestamp_millis(sent.timestamp_ms).map(|time| instant(time.timestamp_micros()));
        check("_timestamp", row.get("_timestamp") == time.map(|time| Value::String(time + "Z")).as_ref());
        match &meaning {
            Meaning::Consumed => check("_offset", false),
            Meaning::Rejected => {
                self.tally.rejected += 1;
                let raw = sent.payload.as_deref().map(|bytes| Value::String(hex(bytes)));
                check("_raw", row.get("_raw") == raw.as_ref());
                check("_error", row.get("_error").and_then(Value::as_str).is_some_and(|reason| !reason.is_empty()));
                // A table that has seen no image yet has no columns for them.
                check("before", row.get("before").is_none_or(Value::is_null));
                check("after", row.get("after").is_none_or(Value::is_null));
                check("_key", rejected_key_is_kept(sent.key.as_deref(), row.get("_key")));
            }
            Meaning::Change(change) => {
                self.tally.changes += 1;
                check("_error", is_null("_error"));
                check("_raw", is_null("_raw"));
                check("_op", row.get("_op").and_then(Value::as_str) == Some(&change.op));
                check("_key", parsed(row.get("_key")) == change.key);
                let is_typed = table.shape.is_some();
                for (column, expected) in [("before", &change.before), ("after", &change.after)] {
                    let found = match (row.get(column), is_typed) {
                        (Some(Value::Null) | None, _) => None,
                        (Some(image), true) => Some(image.clone()),
                        (text, false) => Some(parsed(text).unwrap_or(Value::String("not JSON".to_string()))),
                    };
                    check(column, found == *expected);
                }
                let unavailable = row.get("_unavailable").and_then(Value::as_array).map(Vec::as_slice);
                let unavailable: BTreeSet<&str> =
                    unavailable.unwrap_or_default().iter().filter_map(Value::as_str).collect();
                check("_unavailable", unavailable == change.unavailable.iter().map(String::as_str).collect());
            }
        }
        if !wrong.is_empty() {
            let sent = String::from_utf8_lossy(sent.payload.as_deref().unwrap_or(b"null")).to_string();
            self.findings.push(format!("{name}: {}: {}; sent was {}", place(at), wrong.join(", "), cut(&sent)));
        }
    }
}

fn place((topic, partition, offset): &(String, i32, i64)) -> String {
    format!("`{topic}` {partition} offset {offset}")
}

fn cut(text: &str) -> String {
    text.chars().take(300).collect()
}

fn parsed(text: Option<&Value>) -> Option<Value> {
    serde_json::from_str(text?.as_str()?).ok()
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// What a record must become, by an independent reading.
fn read(sent: &Sent, topic: &str, shape: Option<&RowShape>) -> Meaning {
    let Some(payload) = &sent.payload else { return Meaning::Consumed };
    let key = match sent.key.as_deref().map(serde_json::from_slice::<Value>) {
        Some(Err(_)) => return Meaning::Rejected,
        key => key.and_then(Result::ok).map(unwrapped).filter(|key| !key.is_null()),
    };
    let payload = match serde_json::from_slice(payload).map(unwrapped) {
        Ok(Value::Null) => return Meaning::Consumed,
        Ok(Value::Object(payload)) => payload,
        _ => return Meaning::Rejected,
    };
    if !payload.contains_key("op") {
        return if is_aside(&payload, topic, key.as_ref()) { Meaning::Consumed } else { Meaning::Rejected };
    }
    match change(&payload, key, shape) {
        Ok(change) => Meaning::Change(Box::new(change)),
        Err(Unfit) => Meaning::Rejected,
    }
}

/// What a schema block is wrapped around, or the value itself.
fn unwrapped(value: Value) -> Value {
    match value {
        Value::Object(mut fields)
            if fields.len() == 2
                && fields.contains_key("payload")
                && fields.get("schema").is_some_and(|schema| schema.is_null() || schema.get("type").is_some()) =>
        {
            fields.remove("payload").unwrap_or_default()
        }
        other => other,
    }
}

/// Whether it is one of Debezium's records that hold no change of a row.
fn is_aside(payload: &Map<String, Value>, topic: &str, key: Option<&Value>) -> bool {
    let is_time = |name: &String| ["ts_ms", "ts_us", "ts_ns"].contains(&name.as_str());
    let of_server = key.is_some_and(|key| key.get("serverName").is_some());
    let has = |names: &[&str]| names.iter().all(|name| payload.contains_key(*name));
    (payload.keys().all(is_time) && has(&["ts_ms"]) && (topic.contains("heartbeat") || of_server))
        || (has(&["status", "id", "event_count"]) && (payload["status"] == "BEGIN" || payload["status"] == "END"))
        || has(&["ddl", "databaseName", "source"])
}

fn change(payload: &Map<String, Value>, key: Option<Value>, shape: Option<&RowShape>) -> Result<Change, Unfit> {
    let op = payload["op"].as_str().filter(|op| ["c", "u", "d", "r", "t", "m"].contains(op)).ok_or(Unfit)?.to_string();
    let mut unavailable = BTreeSet::new();
    let before = image(payload.get("before"), "before.", shape, &mut unavailable)?;
    let after = image(payload.get("after"), "", shape, &mut unavailable)?;
    if after.is_none() && ["c", "u", "r"].contains(&op.as_str()) {
        return Err(Unfit);
    }
    if payload.get("source").is_some_and(|source| !source.is_object() && !source.is_null()) {
        return Err(Unfit);
    }
    Ok(Change { op, key, before, after, unavailable })
}

/// A row image in canonical form.
fn image(
    given: Option<&Value>,
    prefix: &str,
    shape: Option<&RowShape>,
    unavailable: &mut BTreeSet<String>,
) -> Result<Option<Value>, Unfit> {
    let fields = match given {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(fields)) => fields,
        Some(_) => return Err(Unfit),
    };
    let mut image = Map::new();
    for column in shape.into_iter().flat_map(|shape| &shape.columns) {
        image.insert(column.name.clone(), Value::Null);
    }
    for (name, value) in fields {
        let column = match shape {
            Some(shape) => Some(shape.columns.iter().find(|column| column.name == *name).ok_or(Unfit)?),
            None => None,
        };
        if *value == PLACEHOLDER {
            unavailable.insert(format!("{prefix}{name}"));
            image.insert(name.clone(), Value::Null);
            continue;
        }
        let value = match column {
            Some(column) if !value.is_null() => typed(value, column)?,
            _ => value.clone(),
        };
        image.insert(name.clone(), value);
    }
    Ok(Some(Value::Object(image)))
}

/// A value of a declared column in canonical form.
fn typed(value: &Value, column: &Column) -> Result<Value, Unfit> {
    let whole = || value.as_i64().ok_or(Unfit);
    Ok(match (column.column_type, column.encoding) {
        (ColumnType::Boolean, _) if value.is_boolean() => value.clone(),
        (ColumnType::String, _) if value.is_string() => value.clone(),
        (ColumnType::Long, _) => whole()?.into(),
        (ColumnType::Int, _) => i32::try_from(whole()?).map_err(|_| Unfit)?.into(),
        (ColumnType::Decimal { precision, scale }, Encoding::Base64) => {
            decimal(value.as_str().ok_or(Unfit)?, precision, scale)?.into()
        }
        (ColumnType::Date, Encoding::Days) => {
            let days = i32::try_from(whole()?).map_err(|_| Unfit)?.checked_add(DAYS_BEFORE_1970).ok_or(Unfit)?;
            let date = NaiveDate::from_num_days_from_ce_opt(days).ok_or(Unfit)?;
            date.format("%Y-%m-%d").to_string().into()
        }
        (ColumnType::Timestamp, Encoding::Micros) => instant(whole()?).into(),
        (ColumnType::Timestamptz, Encoding::Iso) => {
            let time = DateTime::parse_from_rfc3339(value.as_str().ok_or(Unfit)?).map_err(|_| Unfit)?;
            (instant(time.timestamp_micros()) + "Z").into()
        }
        _ if value.is_boolean() || value.is_object() || value.is_array() => return Err(Unfit),
        (ColumnType::String | ColumnType::Boolean, _) => return Err(Unfit),
        (column_type, encoding) => panic!("the auditor cannot read {column_type} as {encoding}"),
    })
}

fn instant(micros: i64) -> String {
    DateTime::from_timestamp_micros(micros).unwrap().format("%Y-%m-%dT%H:%M:%S%.6f").to_string()
}

/// Base64 of an unscaled big-endian number.
fn decimal(text: &str, precision: u8, scale: i8) -> Result<String, Unfit> {
    let bytes = base64(text).ok_or(Unfit)?;
    if bytes.is_empty() || bytes.len() > 16 {
        return Err(Unfit);
    }
    let start = if bytes[0] & 0x80 == 0 { 0i128 } else { -1 };
    let unscaled = bytes.iter().fold(start, |number, byte| number << 8 | i128::from(*byte));
    if unscaled.unsigned_abs() >= 10u128.pow(u32::from(precision)) {
        return Err(Unfit);
    }
    let scale = usize::try_from(scale).unwrap();
    let digits = format!("{:0>width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, part) = digits.split_at(digits.len() - scale);
    let sign = if unscaled < 0 { "-" } else { "" };
    Ok(if scale == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{part}") })
}

fn base64(text: &str) -> Option<Vec<u8>> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for digit in text.trim_end_matches('=').bytes() {
        bits = bits << 6 | DIGITS.iter().position(|known| *known == digit)? as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

/// A rejected record's key: as JSON where it is JSON, else as the text or the bytes it was.
fn rejected_key_is_kept(sent: Option<&[u8]>, found: Option<&Value>) -> bool {
    let key = parsed(found);
    let Some(bytes) = sent else { return key.is_none() };
    if let Ok(json) = serde_json::from_slice::<Value>(bytes) {
        return key == Some(unwrapped(json)).filter(|json| !json.is_null());
    }
    match (&key, std::str::from_utf8(bytes)) {
        (Some(Value::String(text)), Ok(sent)) => *text == sent.trim_ascii(),
        (Some(kept), Err(_)) => kept["base64"].as_str().and_then(base64).as_deref() == Some(bytes),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TOPIC: &str = "shop.public.orders";

    fn shape() -> RowShape {
        let column = |(name, of): (&str, &str)| Column::new(name, of.parse().unwrap(), None).unwrap();
        let columns = [("id", "long"), ("total", "decimal(10,2)"), ("day", "date"), ("at", "timestamptz")];
        RowShape { columns: columns.map(column).to_vec() }
    }

    fn sent(payload: Option<&str>) -> Entry {
        Entry::Record(Sent {
            key: Some(br#"{"id": 7}"#.to_vec()),
            payload: payload.map(|text| text.as_bytes().to_vec()),
            timestamp_ms: 1_735_689_600_123,
        })
    }

    fn produced() -> Produced {
        let change = r#"{"op":"u","before":null,"after":{"id":7,"total":"BOI=","day":20089,"at":"2025-01-01T01:00:00+01:00"},"source":{"lsn":1}}"#;
        let entries = vec![
            sent(Some(change)),
            sent(None),
            sent(Some("poison")),
            Entry::Nothing,
            sent(Some(r#"{"op":"d","before":{"id":7,"day":"__debezium_unavailable_value"},"after":null}"#)),
        ];
        Produced(BTreeMap::from([((TOPIC.to_string(), 1), Log { first: 3, entries })]))
    }

    fn row(offset: i64, more: Value) -> Row {
        let mut row = json!({
            "_topic": TOPIC, "_topic_partition": 1, "_offset": offset, "_timestamp": "2025-01-01T00:00:00.123000Z",
            "_key": r#"{"id":7}"#, "_op": null, "before": null, "after": null, "_unavailable": null, "_error": null,
            "_raw": null,
        });
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row.as_object().unwrap().clone()
    }

    fn bronze() -> Bronze {
        let marker = Some(json!({TOPIC: {"id": "x", "next": {"1": 8}}}).to_string());
        let after = json!({"id": 7, "total": "12.50", "day": "2025-01-01", "at": "2025-01-01T00:00:00.000000Z"});
        let before = json!({"id": 7, "total": null, "day": null, "at": null});
        Bronze {
            name: "shop_bronze.orders".to_string(),
            topics: [TOPIC.to_string()].into(),
            shape: Some(shape()),
            mirror: marker.clone(),
            marker,
            rows: vec![
                row(3, json!({"_op": "u", "after": after})),
                row(5, json!({"_error": "the payload is not JSON", "_raw": "706f69736f6e"})),
                row(7, json!({"_op": "d", "before": before, "_unavailable": ["before.day"]})),
            ],
        }
    }

    /// What the auditor says after a change to what bronze holds.
    fn findings(change: impl FnOnce(&mut Bronze)) -> String {
        let mut table = bronze();
        change(&mut table);
        audit(&produced(), &[table], UpTo::End).unwrap_err().to_string()
    }

    #[test]
    fn what_is_right_is_counted() {
        let tally = audit(&produced(), &[bronze()], UpTo::End).unwrap_or_else(|findings| panic!("{findings}"));
        assert_eq!(tally, Tally { changes: 2, rejected: 1, consumed: 1 });
    }

    #[test]
    fn what_is_wrong_is_named() {
        let lost = findings(|table| drop(table.rows.remove(0)));
        insta::assert_snapshot!(lost, @"
        the auditor found 1 things wrong:
          shop_bronze.orders: `shop.public.orders` 1 offset 3 is missing
        ");
        let doubled = findings(|table| table.rows.push(table.rows[1].clone()));
        insta::assert_snapshot!(doubled, @"
        the auditor found 1 things wrong:
          shop_bronze.orders: `shop.public.orders` 1 offset 5 is there twice
        ");
        let invented = findings(|table| table.rows.push(row(9, json!({"_op": "t"}))));
        insta::assert_snapshot!(invented, @"
        the auditor found 1 things wrong:
          shop_bronze.orders: `shop.public.orders` 1 offset 9 was never produced
        ");
        let in_a_gap = findings(|table| table.rows.push(row(6, json!({"_op": "t"}))));
        insta::assert_snapshot!(in_a_gap, @"
        the auditor found 1 things wrong:
          shop_bronze.orders: `shop.public.orders` 1 offset 6 holds no record, but has a row
        ");
        let of_a_tombstone = findings(|table| table.rows.push(row(4, json!({"_op": "t"}))));
        insta::assert_snapshot!(of_a_tombstone, @"
        the auditor found 1 things wrong:
          shop_bronze.orders: `shop.public.orders` 1 offset 4: _offset is 4; sent was null
        ");
        let short = findings(|table| {
            table.marker = Some(json!({TOPIC: {"next": {"1": 7}}}).to_string());
            table.mirror = table.marker.clone();
        });
        insta::assert_snapshot!(short, @"
        the auditor found 1 things wrong:
          shop_bronze.orders: the marker of shop.public.orders 1 is Some(7), the log goes from 3 to 8
        ");
        let unmirrored = findings(|table| table.mirror = None);
        assert!(unmirrored.contains("its mirror None"), "{unmirrored}");
    }

    #[test]
    fn every_changed_value_is_seen() {
        for (index, column, value) in [
            (0, "_timestamp", json!("2025-01-01T00:00:00.124000Z")),
            (0, "_key", json!(r#"{"id":8}"#)),
            (0, "_op", json!("c")),
            (0, "before", json!({"id": 7, "total": null, "day": null, "at": null})),
            (0, "after", Value::Null),
            (0, "after", json!({"id": 7, "total": "12.51", "day": "2025-01-01", "at": "2025-01-01T00:00:00.000000Z"})),
            (0, "_unavailable", json!(["day"])),
            (0, "_error", json!("rejected for no reason")),
            (1, "_error", Value::Null),
            (1, "_raw", json!("706f69736f6f")),
            (1, "_key", Value::Null),
            (2, "_unavailable", Value::Null),
        ] {
            let found = findings(|table| drop(table.rows[index].insert(column.to_string(), value)));
            assert!(found.contains(&format!("{column} is ")), "{column}: {found}");
        }
    }

    #[test]
    fn up_to_the_marker_nothing_may_lie_behind_it() {
        let mut table = bronze();
        table.marker = Some(json!({TOPIC: {"next": {"1": 6}}}).to_string());
        table.mirror = table.marker.clone();
        let last = table.rows.pop().unwrap();
        assert!(audit(&produced(), std::slice::from_ref(&table), UpTo::Marker).is_ok());
        table.rows.push(last);
        let found = audit(&produced(), &[table], UpTo::Marker).unwrap_err().to_string();
        assert!(found.contains("offset 7 is past the marker"), "{found}");
    }
}
