//! Records out of readable rows.
//!
//! A header names the columns, `|` stands between them. Besides the columns of the table and `before.COLUMN`, which is what an
//! update says of the row before it, there are:
//!
//! | column | without it |
//! |---|---|
//! | `op`: c, u, d, r (read by a snapshot) or t (truncate), as Debezium has it | has to be there |
//! | `position`: where the source's log has the change | behind everything so far |
//! | `time`: the source's, `09:30` (of 1 January 2026) or `2026-01-02 09:30` | the broker's, which is always 2025 |
//! | `partition` of the topic | 0 |
//!
//! A value is null where nothing or `null` stands, `''` is an empty text, and `unsent` is what Debezium has in place of a large
//! value that the change did not touch. Offsets count up in each partition.

use std::collections::BTreeMap;

use bytes::Bytes;
use icestream::change::RawRecord;
use icestream::row::{ColumnType, RowShape};
use serde_json::{Map, Value, json};

/// When the broker gets every record: before anything the source's clock says.
const RECEIVED_MS: i64 = 1_735_689_600_000;

/// What a topic's rows are like.
pub struct Captured<'a> {
    pub name: &'a str,
    pub shape: &'a RowShape,
    pub key: &'a [String],
}

/// What the source and the broker have counted.
#[derive(Debug, Default)]
pub struct Log {
    position: i64,
    /// The next offset of each topic and partition.
    next: BTreeMap<(String, i32), i64>,
}

impl Log {
    pub fn next(&self, topic: &str) -> impl Iterator<Item = (i32, i64)> {
        let topic = topic.to_string();
        self.next.iter().filter(move |((of, _), _)| *of == topic).map(|((_, partition), next)| (*partition, *next))
    }

    /// The records of a table of rows.
    pub fn records(&mut self, of: &Captured<'_>, rows: &str) -> Result<Vec<RawRecord>, String> {
        let mut lines = rows.lines().map(|line| line.split('|').map(str::trim).collect::<Vec<_>>());
        let header = lines.next().ok_or("there are no rows")?;
        for name in &header {
            let column = name.strip_prefix("before.").unwrap_or(name);
            let is_known = ["op", "position", "time", "partition"].contains(&column);
            if !is_known && !of.shape.columns.iter().any(|known| known.name == column) {
                return Err(format!("`{}` has no column `{column}`", of.name));
            }
        }
        lines.map(|cells| self.record(of, &header, &cells)).collect()
    }

    fn record(&mut self, of: &Captured<'_>, header: &[&str], cells: &[&str]) -> Result<RawRecord, String> {
        if cells.len() != header.len() {
            return Err(format!(
                "a row has {} values for {} columns: {}",
                cells.len(),
                header.len(),
                cells.join(" | ")
            ));
        }
        let cell = |name: &str| header.iter().position(|column| *column == name).map(|at| cells[at]);
        let op = cell("op").ok_or("the header has no `op`")?;
        let number = |text: &str| text.parse::<i64>().map_err(|_| format!("`{text}` is no number"));
        let position = match cell("position") {
            None => Some(self.position + 1),
            Some("") => None,
            Some(text) => Some(number(text)?),
        };
        self.position = self.position.max(position.unwrap_or(0));
        let image = |prefix: &str| {
            let value = |column: &icestream::row::Column| {
                let value = value(column.column_type, cell(&format!("{prefix}{}", column.name)).unwrap_or(""))?;
                Ok((column.name.clone(), value))
            };
            of.shape.columns.iter().map(value).collect::<Result<Map<String, Value>, String>>().map(Value::Object)
        };
        let has_before = header.iter().zip(cells).any(|(name, cell)| name.starts_with("before.") && !cell.is_empty());
        let (before, after) = match op {
            "c" | "r" => (Value::Null, image("")?),
            "u" if has_before => (image("before.")?, image("")?),
            "u" => (Value::Null, image("")?),
            "d" => (image("")?, Value::Null),
            "t" => (Value::Null, Value::Null),
            other => return Err(format!("`{other}` is no op; there are c, u, d, r and t")),
        };
        let row = if after.is_null() { &before } else { &after };
        let key: Map<String, Value> = of.key.iter().map(|name| (name.clone(), row[name.as_str()].clone())).collect();
        let mut source = json!({
            "connector": "postgresql", "db": "shop", "schema": "public", "table": of.name, "txId": 1,
        });
        if let Some(position) = position {
            source["lsn"] = json!(position);
            source["sequence"] = json!(format!(r#"["{position}","{position}"]"#));
        }
        if let Some(time) = cell("time").filter(|time| !time.is_empty()) {
            source["ts_ms"] = json!(moment(time)?);
        }
        let topic = topic(of.name);
        let partition = match cell("partition") {
            None | Some("") => 0,
            Some(text) => i32::try_from(number(text)?).map_err(|_| format!("`{text}` is no partition"))?,
        };
        let next = self.next.entry((topic.clone(), partition)).or_default();
        *next += 1;
        Ok(RawRecord {
            topic: topic.into(),
            partition,
            offset: *next - 1,
            timestamp_ms: Some(RECEIVED_MS),
            key: (!key.is_empty() && op != "t").then(|| Bytes::from(Value::Object(key).to_string())),
            payload: Some(Bytes::from(
                json!({ "before": before, "after": after, "source": source, "op": op }).to_string(),
            )),
        })
    }
}

pub fn topic(table: &str) -> String {
    format!("shop.public.{table}")
}

/// A value as Debezium writes it, in the encodings that `table` declares.
fn value(column_type: ColumnType, text: &str) -> Result<Value, String> {
    let plain = |text: &str| serde_json::from_str(text).map_err(|_| format!("`{text}` is no {column_type}"));
    match (text, column_type) {
        ("" | "null", _) => Ok(Value::Null),
        ("unsent", _) => Ok(json!("__debezium_unavailable_value")),
        ("''", _) => Ok(json!("")),
        (_, ColumnType::Boolean | ColumnType::Int | ColumnType::Long | ColumnType::Float | ColumnType::Double) => {
            plain(text)
        }
        _ => Ok(json!(text)),
    }
}

fn moment(text: &str) -> Result<i64, String> {
    let full = if text.contains(' ') { text.to_string() } else { format!("2026-01-01 {text}") };
    let parsed = ["%Y-%m-%d %H:%M", "%Y-%m-%d %H:%M:%S"]
        .iter()
        .find_map(|format| chrono::NaiveDateTime::parse_from_str(&full, format).ok());
    parsed.map(|time| time.and_utc().timestamp_millis()).ok_or_else(|| format!("`{text}` is no time"))
}
