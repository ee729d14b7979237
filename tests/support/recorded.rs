//! Recorded events on their way into bronze, and whether what stands there is what the database says.
//!
//! The database's values come from `tests/fixtures/**/expected`, in its own words; what was lost before Kafka is listed
//! in `postgres-lost.json` and, for the other ways of sending, in [`LOST`].

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Fields, Float32Type, Float64Type, Int32Type, Int64Type, TimeUnit,
    TimestampMicrosecondType,
};
use bytes::Bytes;
use chrono::{DateTime, NaiveDate, NaiveDateTime, NaiveTime};
use futures::TryStreamExt;
use icestream::batch::ChangeBatchBuilder;
use icestream::bronze::{BronzeDefinition, BronzeTable, Outcome, Staging};
use icestream::change::{ChangeEvent, Decoded, RawRecord};
use icestream::clock::Clock;
use icestream::decode::{Decoder, Format};
use icestream::engine::{self, Engine, EngineOptions};
use icestream::evolution::Evolution;
use icestream::placeholder::{self, Placeholder};
use icestream::row::{Column, ColumnType, Encoding, RowShape};
use icestream::table::{At, Table};
use serde_json::{Map, Value, json};

use crate::support::World;

pub const CONNECTORS: [&str; 2] = ["debezium-postgres", "debezium-mariadb"];

pub fn root() -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).to_path_buf()
}

/// What is in a folder, sorted.
pub fn entries(of: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

pub fn variants(connector: &str) -> Vec<String> {
    let folders = entries(&root().join(connector)).into_iter().filter(|path| path.is_dir());
    let names = folders.map(|path| path.file_name().unwrap().to_string_lossy().into_owned());
    names.filter(|name| name != "expected").collect()
}

/// The recorded topics of a variant.
pub fn topics(connector: &str, variant: &str) -> Vec<PathBuf> {
    let files = entries(&root().join(connector).join(variant));
    files.into_iter().filter(|file| file.to_string_lossy().ends_with(".jsonl.gz")).collect()
}

/// Without added fields, the flattened form cannot be told from any other JSON.
pub fn format(variant: &str) -> Format {
    if variant == "flattened_bare" { Format::Json } else { Format::DebeziumJson }
}

pub fn records(file: &Path) -> Vec<RawRecord> {
    let output = Command::new("gzip").arg("-dc").arg(file).output().unwrap();
    assert!(output.status.success(), "{}", file.display());
    let text = String::from_utf8(output.stdout).unwrap();
    let bytes = |value: &Value| value.as_str().map(|text| Bytes::from(from_base64(text).unwrap()));
    text.lines()
        .map(|line| {
            let record: Value = serde_json::from_str(line).unwrap();
            RawRecord {
                topic: record["topic"].as_str().unwrap().into(),
                partition: record["partition"].as_i64().unwrap() as i32,
                offset: record["offset"].as_i64().unwrap(),
                timestamp_ms: record["timestamp"].as_i64(),
                key: bytes(&record["key"]),
                payload: bytes(&record["value"]),
            }
        })
        .collect()
}

/// `None` for what is no base64.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::new());
    // PostgreSQL breaks its base64 into lines.
    for digit in text.bytes().filter(|digit| !matches!(digit, b'=' | b'\n')) {
        bits = bits << 6 | ALPHABET.iter().position(|known| *known == digit)? as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    Some(bytes)
}

/// In hex; nothing for what is no base64.
fn hex_of_base64(text: &str) -> String {
    from_base64(text).map(|bytes| hex(&bytes)).unwrap_or_default()
}

/// One recorded topic in bronze.
pub struct Topic {
    pub connector: String,
    pub variant: String,
    /// The table as the database calls it, without the `_full` of its twin.
    pub table: String,
    pub is_full: bool,
    pub in_bronze: Table,
    /// Which columns each record said it has, by its offset.
    pub shapes: BTreeMap<i64, Arc<RowShape>>,
    /// The columns of the row images in bronze.
    pub columns: Vec<ImageColumn>,
}

/// A column of bronze's row images.
pub struct ImageColumn {
    pub name: String,
    /// What the records call it.
    pub source: String,
    pub column_type: ColumnType,
}

/// A row of bronze as an engine gives it, every value in the form of [`exact`].
#[derive(Debug, Clone)]
pub struct Row {
    pub cells: Map<String, Value>,
}

/// The columns of bronze that the comparison reads.
pub const COLUMNS: [&str; 7] = ["_offset", "_op", "_key", "before", "after", "_unavailable", "_error"];

/// Variants whose events are no history of one table, step by step.
const NOT_STEP_BY_STEP: [&str; 1] = ["incremental"];

/// So few that a table's columns change within a batch as well as between commits.
const EVENTS_A_COMMIT: usize = 4;

/// Writes every table of a variant through decoding, batches and bronze.
pub async fn write(world: &World, connector: &str, variant: &str) -> Vec<Topic> {
    let mut written = Vec::new();
    if NOT_STEP_BY_STEP.contains(&variant) {
        return written;
    }
    for file in topics(connector, variant) {
        let topic = file.file_name().unwrap().to_string_lossy().replace(".jsonl.gz", "");
        let prefixes = ["public", "icestream"].map(|schema| format!("{variant}.{schema}."));
        let Some(name) = prefixes.iter().find_map(|prefix| topic.strip_prefix(prefix)) else { continue };
        let is_full = name.ends_with("_full");
        let table = name.strip_suffix("_full").unwrap_or(name).replace("Odd_T_ble.1", "Odd Täble.1");
        let events = events(connector, variant, &topic, &file);
        let name = format!("{connector}_{variant}_{topic}").replace(|c: char| !c.is_ascii_alphanumeric(), "_");
        let definition = BronzeDefinition {
            name: world.table(&name.to_lowercase()),
            shape: None,
            evolution: Evolution::Evolve,
            partition: vec!["day(_ingested_at)".to_string()],
            properties: BTreeMap::new(),
        };
        let mut bronze = BronzeTable::open(&world.lake, &definition).await.unwrap();
        let clock = Clock::manual(1_735_689_600_000_000).0;
        let placeholder = Placeholder::parse(placeholder(variant)).unwrap();
        let mut builder =
            ChangeBatchBuilder::new(bronze.images().unwrap(), 0, clock).with_placeholder(Arc::new(placeholder));
        let mut shapes = BTreeMap::new();
        for events in events.chunks(EVENTS_A_COMMIT) {
            for event in events {
                let shape = event.shape.clone().unwrap_or_else(|| panic!("{topic}: no shape for {event:?}"));
                assert_eq!(shapes.insert(event.record.offset, shape), None, "{topic}: an offset comes twice");
                builder.push(Decoded::Change(event.clone())).unwrap();
            }
            let batch = builder.finish().unwrap();
            assert_eq!(batch.counts.unexpected, 0, "{topic}");
            assert_eq!(bronze.stage(&batch).await.unwrap(), Staging::Staged, "{topic}");
            let outcome = bronze.commit(&batch.ranges, &BTreeMap::new(), batch.counts).await.unwrap();
            assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
        }
        let in_bronze = bronze.table().unwrap().clone();
        let columns = image_columns(&in_bronze);
        let (connector, variant) = (connector.to_string(), variant.to_string());
        written.push(Topic { connector, variant, table, is_full, in_bronze, shapes, columns });
    }
    written
}

/// The connector's `unavailable.value.placeholder`.
fn placeholder(variant: &str) -> &'static str {
    if variant == "unavailable" { "hex:ff00" } else { placeholder::DEFAULT }
}

/// What the columns are for stands in their documentation.
fn image_columns(table: &Table) -> Vec<ImageColumn> {
    let schema = table.schema().unwrap();
    let [before, after] = ["before", "after"].map(|image| match schema.field_with_name(image).unwrap().data_type() {
        DataType::Struct(fields) => fields.clone(),
        other => panic!("{}: images are {other}", table.name()),
    });
    let columns = |fields: &Fields| -> Vec<(String, DataType)> {
        fields.iter().map(|field| (field.name().clone(), field.data_type().clone())).collect()
    };
    assert_eq!(columns(&before), columns(&after), "{}", table.name());
    let columns = after.iter().map(|field| {
        let doc = field.metadata().get("doc").map_or("", String::as_str);
        let source = doc.split_once("source column ").map(|(_, name)| serde_json::from_str(name).unwrap());
        let column_type = ColumnType::from_arrow(field.data_type()).unwrap();
        ImageColumn { name: field.name().clone(), source: source.unwrap_or(field.name().clone()), column_type }
    });
    columns.collect()
}

fn decoded(variant: &str, file: &Path) -> Vec<ChangeEvent> {
    let mut decoder = Decoder::new(format(variant));
    let changes = records(file).into_iter().filter_map(|record| match decoder.decode(record) {
        Decoded::Change(event) => Some(event),
        Decoded::Consumed(..) => None,
        Decoded::Rejected(rejected) => panic!("{}: {rejected:?}", file.display()),
    });
    changes.collect()
}

/// A topic's events with their shapes. Where the records bring none, it is the one of the same event where they do.
fn events(connector: &str, variant: &str, topic: &str, file: &Path) -> Vec<ChangeEvent> {
    let mut events = decoded(variant, file);
    if events.iter().any(|event| event.shape.is_some()) {
        return events;
    }
    let with_schemas = topic.replacen(variant, "schemas", 1);
    let file = root().join(connector).join("schemas").join(format!("{with_schemas}.jsonl.gz"));
    let is_row = |event: &&ChangeEvent| event.op.letter() != "t";
    let shapes: Vec<_> = decoded("schemas", &file).iter().filter(is_row).map(|event| event.shape.clone()).collect();
    let is_constant = shapes.windows(2).all(|pair| pair[0] == pair[1]);
    let rows = events.iter().filter(is_row).count();
    assert!(is_constant || rows == shapes.len(), "{topic}: {rows} rows, {} shapes", shapes.len());
    let mut next = shapes.iter().cycle();
    let mut shape = shapes[0].clone();
    for event in &mut events {
        if event.op.letter() != "t" {
            shape = next.next().unwrap().clone();
        }
        event.shape = shape.clone();
    }
    events
}

/// What our own engine says is in the table.
pub async fn read(topic: &Topic) -> Vec<Row> {
    let spill = tempfile::tempdir().unwrap();
    let options = EngineOptions { memory_bytes: 256 << 20, threads: 2, spill_dir: spill.path().to_path_buf() };
    let context = Engine::new(&options).unwrap().session();
    let table = &topic.in_bronze;
    engine::register(&context, table.name(), table.view(At::Head).unwrap()).unwrap();
    let sql = format!("SELECT {} FROM {}", COLUMNS.join(", "), table.name());
    let batches: Vec<RecordBatch> = engine::query(&context, &sql).await.unwrap().try_collect().await.unwrap();
    let mut rows = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let cells = COLUMNS.iter().zip(batch.columns());
            rows.push(Row { cells: cells.map(|(name, column)| (name.to_string(), exact(column, row))).collect() });
        }
    }
    rows
}

/// A value so that nothing of it is lost or out of range: dates and times as numbers, floats as their bits, bytes in hex.
fn exact(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::Int32 => json!(array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => json!(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => json!(format!("{:08x}", array.as_primitive::<Float32Type>().value(row).to_bits())),
        DataType::Float64 => json!(format!("{:016x}", array.as_primitive::<Float64Type>().value(row).to_bits())),
        DataType::Decimal128(..) => json!(array.as_primitive::<Decimal128Type>().value_as_string(row)),
        DataType::Date32 => json!(array.as_primitive::<Date32Type>().value(row)),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            json!(array.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        DataType::Utf8 => json!(array.as_string::<i32>().value(row)),
        DataType::Binary => json!(hex(array.as_binary::<i32>().value(row))),
        DataType::LargeBinary => json!(hex(array.as_binary::<i64>().value(row))),
        DataType::List(_) => {
            let list = array.as_list::<i32>().value(row);
            (0..list.len()).map(|index| exact(&list, index)).collect()
        }
        DataType::Struct(fields) => {
            let pairs = fields.iter().zip(array.as_struct().columns());
            Value::Object(pairs.map(|(field, column)| (field.name().clone(), exact(column, row))).collect())
        }
        other => panic!("bronze has no {other}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a topic's rows say other than the database does, and how many values were compared.
pub fn compare(topic: &Topic, mut rows: Vec<Row>) -> (usize, Vec<String>) {
    let file = root().join(&topic.connector).join("expected").join(format!("{}.json", topic.table));
    let expected: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    rows.sort_by_key(|row| row.cells["_offset"].as_i64());
    let mut comparison = Comparison {
        topic,
        lost: serde_json::from_str(&std::fs::read_to_string(root().join("postgres-lost.json")).unwrap()).unwrap(),
        rows: rows.into(),
        compared: 0,
        wrong: Vec::new(),
    };
    // Sorted as text, which numbers are not.
    let mut snapshot: Vec<&Value> = expected["snapshot"].as_array().unwrap().iter().collect();
    snapshot.sort_by_key(|row| (row["id"].as_str().and_then(|id| id.parse::<i64>().ok()), row["c_number"].is_null()));
    for row in snapshot {
        let step = Step { op: "r", columns: &expected["columns"], before: &Value::Null, after: row };
        comparison.event(&step);
    }
    for step in expected["steps"].as_array().unwrap() {
        let columns = step.get("columns").unwrap_or(&expected["columns"]);
        let op = step["op"].as_str().unwrap();
        let step = Step { op, columns, before: &step["before"], after: &step["after"] };
        comparison.step(&step);
    }
    for row in std::mem::take(&mut comparison.rows) {
        comparison.say(&row, "is in no step");
    }
    (comparison.compared, comparison.wrong)
}

struct Step<'e> {
    op: &'e str,
    columns: &'e Value,
    before: &'e Value,
    after: &'e Value,
}

struct Comparison<'t> {
    topic: &'t Topic,
    lost: Vec<Value>,
    rows: std::collections::VecDeque<Row>,
    compared: usize,
    wrong: Vec<String>,
}

impl Comparison<'_> {
    fn is_bare(&self) -> bool {
        self.topic.variant == "flattened_bare"
    }

    fn next_op(&self) -> Option<&str> {
        self.rows.front().and_then(|row| row.cells["_op"].as_str())
    }

    fn say(&mut self, row: &Row, what: &str) {
        let Topic { connector, variant, table, is_full, .. } = self.topic;
        let twin = if *is_full { "_full" } else { "" };
        self.wrong.push(format!(
            "{connector}/{variant} {table}{twin} offset {} op {}: {what}",
            row.cells["_offset"], row.cells["_op"]
        ));
    }

    fn step(&mut self, step: &Step<'_>) {
        let is_flattened = self.topic.variant.starts_with("flattened");
        match step.op {
            // Flattened, they are gone.
            "t" if is_flattened => {}
            // A changed key is a delete and a create.
            "u" if self.next_op() == Some("d") => {
                self.event(&Step { op: "d", after: &Value::Null, ..*step });
                self.event(&Step { op: "c", ..*step });
            }
            // Nobody's tombstone.
            "d" if self.is_bare() && self.topic.table == "keyless" => {}
            _ => self.event(step),
        }
    }

    fn event(&mut self, step: &Step<'_>) {
        let Some(row) = self.rows.pop_front() else {
            let Topic { connector, variant, table, .. } = self.topic;
            self.wrong.push(format!("{connector}/{variant} {table}: an event with op {} is missing", step.op));
            return;
        };
        let op = if self.is_bare() && matches!(step.op, "r" | "c") { "u" } else { step.op };
        if row.cells["_op"] != op {
            self.say(&row, &format!("is not a `{op}`"));
            return;
        }
        if let Some(error) = row.cells["_error"].as_str() {
            if !self.is_too_far(step, error) {
                self.say(&row, error);
            }
            return;
        }
        match &row.cells["after"] {
            Value::Null if step.after.is_null() || step.op == "d" => {}
            Value::Object(image) if step.op != "d" => self.image(&row, step, image, step.after, step.op != "r"),
            _ => self.say(&row, "has no or a wrong `after`"),
        }
        let is_whole =
            self.topic.is_full || self.topic.table == "keyless" || self.topic.connector == "debezium-mariadb";
        match &row.cells["before"] {
            Value::Null if step.before.is_null() || step.op == "c" || step.op != "d" && !is_whole => {}
            // Flattened events say the new row only.
            Value::Null if step.op == "u" && self.topic.variant.starts_with("flattened") => {}
            Value::Object(image) if is_whole => self.image(&row, step, image, step.before, true),
            Value::Object(image) if step.op == "d" => self.key(&row, step, image),
            _ => self.say(&row, "has no or a wrong `before`"),
        }
    }

    /// What no column can hold is rejected, and that is right: the end of PostgreSQL's calendar is behind the last
    /// microsecond that 64 bits count from 1970.
    fn is_too_far(&self, step: &Step<'_>, error: &str) -> bool {
        let is_last_year = |value: &Value| value.as_str().is_some_and(|text| text.starts_with("294276-"));
        let values = step.after.as_object().unwrap();
        self.topic.table == "extreme_times"
            && error.ends_with("it is out of range")
            && values.iter().any(|(name, value)| is_last_year(value) && error.contains(&format!("`after.{name}`")))
    }

    /// A delete says the columns that are the row's identity.
    fn key(&mut self, row: &Row, step: &Step<'_>, image: &Map<String, Value>) {
        let key: Value = row.cells["_key"].as_str().map_or(json!({}), |key| serde_json::from_str(key).unwrap());
        let mut names: Vec<String> = key.as_object().unwrap().keys().cloned().collect();
        if self.topic.table == "by_index" && self.topic.variant != "flattened_bare" {
            names = vec!["code".to_string()];
        }
        for name in names {
            let mut originals = step.columns.as_object().unwrap().keys();
            let original = originals.find(|column| **column == name || adjusted(column) == name).unwrap();
            match self.sent(row, original) {
                Some(column) => self.cell(row, step, original, &column, image, step.before, true),
                None => self.say(row, &format!("`{name}` is missing")),
            }
        }
    }

    fn image(&mut self, row: &Row, step: &Step<'_>, image: &Map<String, Value>, expected: &Value, streamed: bool) {
        let columns = step.columns.as_object().unwrap();
        let topic = self.topic;
        let mut filled: Vec<&str> = Vec::new();
        for name in columns.keys() {
            match self.sent(row, name) {
                Some(column) => {
                    filled.extend(place(topic, &column).map(|place| place.name.as_str()));
                    self.cell(row, step, name, &column, image, expected, streamed);
                }
                None if self.has_no_field(name, columns[name].as_str().unwrap(), streamed) => {}
                None => self.say(row, &format!("`{name}` is missing")),
            }
        }
        // The columns of rows before and after this one, and of types that the source's column had then.
        for (name, cell) in image {
            if !filled.contains(&name.as_str()) && !cell.is_null() {
                self.say(row, &format!("`{name}` has a value that the database does not have"));
            }
        }
        if image.len() != topic.columns.len() {
            self.say(row, &format!("has {} columns of {}", image.len(), topic.columns.len()));
        }
        for column in self.shape(row).columns.clone() {
            if !columns.keys().any(|name| *name == column.name || adjusted(name) == column.name) {
                self.say(row, &format!("`{}` is a column the database does not have", column.name));
            }
        }
    }

    /// What the record of a row says of its columns.
    fn shape(&self, row: &Row) -> &RowShape {
        &self.topic.shapes[&row.cells["_offset"].as_i64().unwrap()]
    }

    /// A column of the database as the record says it.
    fn sent(&self, row: &Row, name: &str) -> Option<Column> {
        let mut columns = self.shape(row).columns.iter();
        columns.find(|column| column.name == name || column.name == adjusted(name)).cloned()
    }

    fn has_no_field(&self, name: &str, declared: &str, streamed: bool) -> bool {
        let unknown = ["money[]", "tsquery", "xml[]", "interval[]", "point[]", "hstore[]"];
        let left_out = ["pair", "int4multirange", "pg_lsn"];
        unknown.contains(&declared)
            || left_out.contains(&declared) && self.topic.variant == "unknown_skipped"
            || streamed && (self.topic.table.as_str(), name) == ("generated", "twice")
    }

    #[allow(clippy::too_many_arguments, reason = "a cell is where all that is known of a row meets")]
    fn cell(
        &mut self,
        row: &Row,
        step: &Step<'_>,
        name: &str,
        sent: &Column,
        image: &Map<String, Value>,
        expected: &Value,
        streamed: bool,
    ) {
        self.compared += 1;
        let Some(in_bronze) = place(self.topic, sent) else {
            self.say(row, &format!("`{name}` has no column for {}", sent.column_type));
            return;
        };
        let Some(cell) = image.get(&in_bronze.name) else {
            self.say(row, &format!("`{}` is missing", in_bronze.name));
            return;
        };
        let declared = step.columns[name].as_str().unwrap();
        let text = expected[name].as_str();
        let canonical = expected.get(format!("{name}/canonical")).and_then(Value::as_str);
        let place = if std::ptr::eq(expected, step.before) { "before." } else { "" };
        let place = format!("{place}{}", in_bronze.name);
        let is_unavailable = row.cells["_unavailable"]
            .as_array()
            .is_some_and(|names| names.iter().any(|unavailable| *unavailable == place));
        if is_unavailable {
            // Not sent, because it did not change; or the very text that says so, which nobody can tell from it but in a
            // snapshot.
            let is_unchanged = matches!(step.op, "u" | "c") && step.before[name] == step.after[name];
            let is_the_text = row.cells["_op"] != "r" && text == Some(placeholder(&self.topic.variant));
            if !(cell.is_null() && (is_unchanged || is_the_text)) {
                self.say(row, &format!("`{name}` was sent"));
            }
            return;
        }
        let column = &Column { column_type: in_bronze.column_type, ..sent.clone() };
        if agrees(declared, text, canonical, cell, column) {
            return;
        }
        let from = if streamed { "stream" } else { "snapshot" };
        let is_unchanged = matches!(step.op, "u" | "c") && step.before[name] == step.after[name];
        let is_lost = self.lost.iter().any(|lost| {
            lost["table"] == self.topic.table
                && lost["column"] == name
                && (lost["text"] == expected[name] || lost["text"] == "an unchanged toasted value" && is_unchanged)
                && lost["from"].as_array().unwrap().iter().any(|place| place == from)
                && is_sent(&lost["sent"], cell, column)
        });
        let known = Lost { topic: self.topic, declared, name, text, canonical, cell, streamed, is_unchanged };
        if !is_lost && !known.is_in_readme(column) {
            let column = format!("{} {}", column.column_type, column.encoding);
            let cut = |text: &str| text.chars().take(120).collect::<String>();
            let text = text.map_or("null".to_string(), cut);
            self.say(
                row,
                &format!("`{name}` {declared}: `{text}` {canonical:?} became {} ({column})", cut(&cell.to_string())),
            );
        }
    }
}

/// A value that the connector is known to send otherwise, as `tests/fixtures/README.md` says of its ways of sending.
struct Lost<'a> {
    topic: &'a Topic,
    declared: &'a str,
    name: &'a str,
    text: Option<&'a str>,
    canonical: Option<&'a str>,
    cell: &'a Value,
    streamed: bool,
    is_unchanged: bool,
}

impl Lost<'_> {
    fn is_in_readme(&self, column: &Column) -> bool {
        let text = self.text.unwrap_or_default();
        let cell = self.cell.as_str().unwrap_or_default();
        let micros: Option<i64> = self.canonical.and_then(|micros| micros.parse().ok());
        let is_postgres = self.topic.connector == "debezium-postgres";
        match self.topic.variant.as_str() {
            "time_connect" | "doubles" if column.encoding == Encoding::Millis => {
                micros.map(|micros| micros.div_euclid(1000) * 1000) == self.cell.as_i64()
            }
            "time_connect" | "doubles" if column.encoding == Encoding::TimeMillis && !self.cell.is_null() => {
                micros.map(|micros| micros / 1000 * 1000) == span(cell)
            }
            // A time span that is no time of day.
            "doubles" if self.declared.starts_with("time(") || self.declared == "time" => {
                self.cell.is_null() && !micros.is_some_and(|micros| (0..86_400_000_000).contains(&micros))
            }
            "binary_base64" if self.name == "c_bytea" => self.is_unchanged && self.cell.is_null(),
            "time_nanoseconds" if self.cell.is_null() => {
                micros.is_some_and(|micros| micros.checked_mul(1000).is_none())
            }
            "time_nanoseconds" if column.encoding == Encoding::Nanos => {
                (text, cell) == ("infinity", "2262-04-11T23:47:16.854775807")
                    || (text, cell) == ("-infinity", "1677-09-21T00:12:43.145224192")
            }
            "time_isostring" if text == "24:00:00" => cell == "00:00:00Z",
            "time_isostring" if column.column_type == ColumnType::Date && text.ends_with("infinity") => {
                self.cell.as_i64() == Some(if text == "infinity" { 2_146_033_979 } else { -2_147_472_691 })
            }
            "time_isostring" | "time_connect" if self.declared.ends_with("[]") => match self.name {
                "c_time" => matches!(cell, r#"["12:34:56.123Z",null]"# | "[45296123,null]"),
                "c_timestamp" => cell == "[1709210096123,null]",
                "c_date" => cell == r#"["2024-02-29Z","0044-03-15Z",null]"#,
                _ => false,
            },
            // Reckoned in doubles, and cut off at the ends.
            "extremes" | "extremes_isostring" if self.declared == "interval" => {
                let parts = self.canonical.unwrap_or_default().split(' ').step_by(2);
                let parts: Vec<f64> = parts.map(|part| part.parse().unwrap()).collect();
                let micros = parts[0] * 2_629_800e6 + parts[1] * 86_400e6 + parts[2];
                self.cell.as_i64() == Some(micros as i64)
            }
            // Years before our era lose their sign in a snapshot.
            "extremes" | "extremes_isostring" if self.declared == "date" => {
                !self.streamed && text == "4713-01-01 BC" && self.cell.as_i64() == Some(1_001_860)
            }
            "special_precise" => self.cell.is_null() && matches!(text, "NaN" | "Infinity" | "-Infinity"),
            "unknown_included" | "unknown_skipped" => self.cell.is_null() && self.declared == "bit(3)[]",
            _ if is_postgres => false,
            _ => match self.declared {
                _ if text.starts_with("0000-00-00") => {
                    self.cell.is_null() || self.streamed && self.declared == "timestamp" && *self.cell == 0
                }
                _ if self.declared.starts_with("enum") => self.streamed && cell == text.replace(',', "\\,"),
                "year(4)" => text == "0000" && self.cell.as_i64() == Some(if self.streamed { 1900 } else { 2000 }),
                // Six digits of it.
                "float" => {
                    !self.streamed && text.parse::<f32>().is_ok_and(|float| cell == format!("{:08x}", float.to_bits()))
                }
                _ => false,
            },
        }
    }
}

/// Where the values of a record's column are in bronze: in the column of its source that has their type or a wider one.
fn place<'t>(topic: &'t Topic, sent: &Column) -> Option<&'t ImageColumn> {
    let takes = |of_bronze: ColumnType| match (sent.column_type, of_bronze) {
        (ColumnType::Int, ColumnType::Long) | (ColumnType::Float, ColumnType::Double) => true,
        (
            ColumnType::Decimal { precision: narrow, scale },
            ColumnType::Decimal { precision: wide, scale: same_scale },
        ) => narrow <= wide && scale == same_scale,
        (sent, of_bronze) => sent == of_bronze,
    };
    topic.columns.iter().find(|column| column.source == sent.name && takes(column.column_type))
}

/// What the connector makes of names that Avro does not have (`field.name.adjustment.mode`).
fn adjusted(name: &str) -> String {
    let plain = name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '_', "_");
    if plain.starts_with(|c: char| c.is_ascii_digit()) { format!("_{plain}") } else { plain }
}

/// Whether a cell is what the connector is known to have sent in place of the value.
fn is_sent(sent: &Value, cell: &Value, column: &Column) -> bool {
    match (column.column_type, column.encoding) {
        _ if sent.is_null() => cell.is_null(),
        (ColumnType::String, Encoding::Json) => {
            cell.as_str().is_some_and(|text| serde_json::from_str::<Value>(text).unwrap() == *sent)
        }
        (ColumnType::Timestamptz, _) => {
            let time = sent.as_str().map(|text| DateTime::parse_from_rfc3339(text).unwrap().timestamp_micros());
            time.is_some() && time == cell.as_i64()
        }
        (ColumnType::Int, _) if sent.is_string() => sent.as_str().unwrap().parse::<i64>().ok() == cell.as_i64(),
        _ => sent == cell,
    }
}

const BYTES: [&str; 4] = ["bytea", "binary", "varbinary", "blob"];

/// Whether a cell is the value the database has.
fn agrees(declared: &str, text: Option<&str>, canonical: Option<&str>, cell: &Value, column: &Column) -> bool {
    let (Some(text), false) = (text, cell.is_null()) else {
        return text.is_none() && cell.is_null();
    };
    let plain = canonical.unwrap_or(text);
    let cell_text = cell.as_str().unwrap_or_default();
    if let Some(element) = declared.strip_suffix("[]") {
        return serde_json::from_str::<Value>(cell_text).is_ok_and(|sent| array_agrees(element, text, plain, &sent));
    }
    let is_number = declared.starts_with("numeric") || declared == "money" || declared == "price";
    match (column.column_type, column.encoding) {
        (ColumnType::Boolean, _) => *cell == matches!(plain, "true" | "1"),
        (ColumnType::Int | ColumnType::Long, _) if declared.starts_with("interval") => cell.as_i64() == interval(plain),
        (ColumnType::Int | ColumnType::Long, _) if declared.starts_with("bigint") && declared.ends_with("unsigned") => {
            plain.parse::<u64>().ok().map(|value| value as i64) == cell.as_i64()
        }
        (ColumnType::Int | ColumnType::Long, _) => plain.parse::<i64>().ok() == cell.as_i64(),
        (ColumnType::Float, _) if declared == "real" => *cell == plain,
        (ColumnType::Float, _) => plain.parse::<f32>().is_ok_and(|float| *cell == format!("{:08x}", float.to_bits())),
        (ColumnType::Double, _) if declared == "double precision" => *cell == plain,
        (ColumnType::Double, _) => plain.parse::<f64>().is_ok_and(|float| *cell == format!("{:016x}", float.to_bits())),
        (ColumnType::Decimal { .. }, _) => same_number(cell_text, plain),
        (ColumnType::Date, _) => plain.parse::<i64>().ok() == cell.as_i64(),
        (ColumnType::Timestamp | ColumnType::Timestamptz, _) => {
            let micros = match plain {
                "infinity" => Some(i64::MAX),
                "-infinity" => Some(i64::MIN),
                other => other.parse().ok(),
            };
            micros.is_some() && micros == cell.as_i64()
        }
        (ColumnType::Binary, _) if declared.starts_with("bit") => {
            let bits = if declared.ends_with(')') && canonical.is_some() {
                format!("{:b}", plain.parse::<u64>().unwrap())
            } else {
                plain.to_string()
            };
            little_endian(&bits).trim_end_matches("00") == cell_text.trim_end_matches("00")
        }
        (ColumnType::Binary, _) if canonical.is_none() => hex(text.as_bytes()) == cell_text,
        (ColumnType::Binary, _) => hex_of_base64(plain) == cell_text,
        (ColumnType::String, Encoding::TimeMillis | Encoding::TimeMicros | Encoding::TimeNanos) => {
            plain.parse().ok() == span(cell_text)
        }
        (ColumnType::String, Encoding::Nanos) => {
            let time = NaiveDateTime::parse_from_str(cell_text, "%Y-%m-%dT%H:%M:%S%.f").unwrap();
            plain.parse().ok() == Some(time.and_utc().timestamp_micros())
        }
        (ColumnType::String, Encoding::Json) if declared == "hstore" => same_json(plain, cell_text),
        (ColumnType::String, Encoding::Json) => same_geometry(plain, cell_text),
        (ColumnType::String, _) if is_number => same_number(cell_text, plain),
        (ColumnType::String, _) if declared == "hstore" => same_json(plain, cell_text),
        (ColumnType::String, _) if declared.starts_with("time") => {
            let day = |micros: i64| {
                if declared.contains("with time zone") { micros.rem_euclid(86_400_000_000) } else { micros }
            };
            plain.parse().ok().map(day) == span(cell_text.trim_end_matches('Z')).map(day)
        }
        (ColumnType::String, _) if declared.starts_with("interval") => months_days_micros(cell_text) == plain,
        (ColumnType::String, _) if BYTES.iter().any(|bytes| declared.starts_with(bytes)) => {
            cell_text == plain.replace('\n', "") || cell_text == hex_of_base64(plain)
        }
        (ColumnType::String, _) => cell_text == plain,
    }
}

/// Microseconds of `HH:MM:SS.ffffff`, when there is nothing below them.
fn span(text: &str) -> Option<i64> {
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let parts: Vec<&str> = text.split([':', '.']).collect();
    let whole: i64 = parts[..3].iter().fold(0, |seconds, part| seconds * 60 + part.parse::<i64>().unwrap());
    let fraction = format!("{:0<9}", parts.get(3).copied().unwrap_or_default());
    let nanos: i64 = fraction.parse().unwrap();
    (nanos % 1000 == 0).then_some(sign * (whole * 1_000_000 + nanos / 1000))
}

/// Microseconds of `M months D days U microseconds`, a month being 30.4375 days.
fn interval(canonical: &str) -> Option<i64> {
    let parts: Vec<i128> = canonical.split(' ').step_by(2).map(|part| part.parse().unwrap()).collect();
    i64::try_from(parts[0] * 2_629_800_000_000 + parts[1] * 86_400_000_000 + parts[2]).ok()
}

/// `P1Y2M3DT4H5M6.789S` as `M months D days U microseconds`.
fn months_days_micros(iso: &str) -> String {
    let (date, time) = iso[1..].split_once('T').unwrap();
    let part = |text: &str, unit: char| -> f64 {
        let end = text.find(unit);
        let start = |end: usize| text[..end].rfind(|c: char| c.is_alphabetic()).map_or(0, |at| at + 1);
        end.map_or(0.0, |end| text[start(end)..end].parse().unwrap())
    };
    let months = part(date, 'Y') * 12.0 + part(date, 'M');
    let seconds = part(time, 'H') * 3600.0 + part(time, 'M') * 60.0 + part(time, 'S');
    format!("{months} months {} days {} microseconds", part(date, 'D'), (seconds * 1e6).round())
}

/// Whether two numbers in digits are one number.
fn same_number(left: &str, right: &str) -> bool {
    let plain = |text: &str| {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |rest| ("-", rest));
        format!("{sign}{}.{}", whole.trim_start_matches('0'), fraction.trim_end_matches('0'))
    };
    let is_number = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b'.'));
    is_number(left)
        && is_number(right)
        && plain(left).replace("-.", ".") == plain(right).replace("-.", ".")
        && (left.starts_with('-') == right.starts_with('-') || plain(left).trim_start_matches('-') == ".")
        || (left, right) == ("NAN", "NaN")
        || (left, right) == ("POSITIVE_INFINITY", "Infinity")
        || (left, right) == ("NEGATIVE_INFINITY", "-Infinity")
}

fn same_json(left: &str, right: &str) -> bool {
    serde_json::from_str::<Value>(left).unwrap() == serde_json::from_str::<Value>(right).unwrap()
}

/// A bit string as bytes, the last eight bits first.
fn little_endian(bits: &str) -> String {
    let chunks: Vec<&[u8]> = bits.as_bytes().rchunks(8).collect();
    chunks
        .iter()
        .map(|chunk| format!("{:02x}", u8::from_str_radix(std::str::from_utf8(chunk).unwrap(), 2).unwrap()))
        .collect()
}

/// A point, line or circle has its numbers as such; all others are well-known binary, whose last bytes are the numbers.
fn same_geometry(text: &str, sent: &str) -> bool {
    let sent: Value = serde_json::from_str(sent).unwrap();
    if let Some((_, wkb)) = text.split_once([':', ' ', ';'])
        && text.starts_with(|c: char| c.is_ascii_digit())
    {
        return sent["wkb"].as_str().is_some_and(|sent| hex_of_base64(sent) == wkb.to_lowercase());
    }
    let number = |value: &Value| match value {
        Value::String(text) => text.parse::<f64>().unwrap(),
        other => other.as_f64().unwrap(),
    };
    let expected: Vec<f64> = text
        .split(['(', ')', '[', ']', '{', '}', '<', '>', ','])
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().unwrap())
        .collect();
    let named: Vec<&Value> = [
        &sent["x"],
        &sent["y"],
        &sent["a"],
        &sent["b"],
        &sent["c"],
        &sent["center"]["x"],
        &sent["center"]["y"],
        &sent["radius"],
    ]
    .into_iter()
    .filter(|value| !value.is_null())
    .collect();
    let same = |left: f64, right: f64| left == right || left.is_nan() && right.is_nan();
    if !named.is_empty() {
        let found: Vec<f64> = named.into_iter().map(number).collect();
        return expected.len() == found.len() && expected.iter().zip(&found).all(|(left, right)| same(*left, *right));
    }
    // A polygon's ring is closed, and a box is one of four corners.
    let wkb = from_base64(sent["wkb"].as_str().unwrap()).unwrap();
    let header = if wkb[1] == 3 { 13 } else { 9 };
    let numbers = wkb[header..].chunks(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap()));
    let numbers: Vec<f64> = numbers.collect();
    let has_point = |point: &[f64]| numbers.chunks(2).any(|found| same(found[0], point[0]) && same(found[1], point[1]));
    expected.chunks(2).all(has_point) && numbers.iter().all(|number| expected.iter().any(|one| same(*one, *number)))
}

fn array_agrees(element: &str, text: &str, canonical: &str, sent: &Value) -> bool {
    let Some(sent) = sent.as_array() else { return false };
    if element.starts_with("numeric") {
        let expected: Vec<&str> = text.trim_matches(['{', '}']).split(',').filter(|part| !part.is_empty()).collect();
        return expected.len() == sent.len()
            && expected.iter().zip(sent).all(|(expected, sent)| match (*expected, sent) {
                ("NULL", Value::Null) => true,
                (text, Value::String(sent)) if sent.contains('.') || sent.parse::<i64>().is_ok() => {
                    same_number(sent, text)
                }
                (text, Value::String(base64)) => same_number(&scaled(base64, 2), text),
                (text, Value::Number(number)) => number.as_f64() == text.parse().ok(),
                (text, Value::Object(own)) => {
                    let scale = own["scale"].as_u64().unwrap() as usize;
                    same_number(&scaled(own["value"].as_str().unwrap(), scale), text)
                }
                _ => false,
            });
    }
    let expected: Vec<Value> = serde_json::from_str(canonical).unwrap();
    expected.len() == sent.len()
        && expected.iter().zip(sent).all(|(expected, sent)| element_agrees(element, expected, sent))
}

/// The digits of a small unscaled number.
fn scaled(base64: &str, scale: usize) -> String {
    let Some(bytes) = from_base64(base64) else { return String::new() };
    let sign = if bytes[0] & 0x80 == 0 { 0i128 } else { -1 };
    let unscaled = bytes.iter().fold(sign, |number, byte| number << 8 | i128::from(*byte));
    let digits = format!("{:0width$}", unscaled.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    format!("{}{whole}.{fraction}", if unscaled < 0 { "-" } else { "" })
}

fn element_agrees(element: &str, expected: &Value, sent: &Value) -> bool {
    let text = expected.as_str().unwrap_or_default();
    let sent_text = sent.as_str().unwrap_or_default();
    let time =
        |text: &str| NaiveTime::parse_from_str(text, "%H:%M:%S%.f").unwrap().signed_duration_since(NaiveTime::MIN);
    match element {
        _ if expected.is_null() && sent.is_null() => true,
        "real" | "double precision" => match sent.as_f64() {
            Some(sent) => expected.as_f64() == Some(sent),
            None => expected == sent,
        },
        "json" | "jsonb" | "hstore" => serde_json::from_str::<Value>(sent_text).unwrap() == *expected,
        "bytea" => [hex_of_base64(sent_text), sent_text.to_string()].iter().any(|hex| format!("\\x{hex}") == text),
        "date" => {
            let Ok(date) = text.parse::<NaiveDate>() else { return false };
            let days = date.signed_duration_since(NaiveDate::default()).num_days();
            sent.as_i64() == Some(days) || sent_text == format!("{date}Z")
        }
        "time without time zone" => sent_text == format!("{text}Z") || sent.as_i64() == time(text).num_microseconds(),
        "time with time zone" => {
            let (of_day, offset) = text.split_at(text.len() - 6);
            let offset =
                NaiveTime::parse_from_str(&offset[1..], "%H:%M").unwrap().signed_duration_since(NaiveTime::MIN);
            text.as_bytes()[text.len() - 6] == b'+' && time(sent_text.trim_end_matches('Z')) == time(of_day) - offset
        }
        "timestamp without time zone" => {
            let micros = text.parse::<NaiveDateTime>().unwrap().and_utc().timestamp_micros();
            sent.as_i64() == Some(micros) || sent_text == format!("{text}Z")
        }
        "timestamp with time zone" => {
            DateTime::parse_from_rfc3339(text).unwrap() == DateTime::parse_from_rfc3339(sent_text).unwrap()
        }
        _ => expected == sent,
    }
}
