//! A change event in the stages it goes through: bytes as read, a decoded event or a rejected record, a batch of rows.
//!
//! These types are the vocabulary `source/`, `decode/`, `batch/` and `bronze/` share; none of them knows the Kafka
//! client, a JSON library's tree or an Iceberg type.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use bytestring::ByteString;

use crate::evolution::ColumnChange;
use crate::json::Escapes;
use crate::offsets::{OffsetRange, TopicPartition};
use crate::row::RowShape;

/// One record as the source gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRecord {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
    /// The broker's time of the record, milliseconds since 1970.
    pub timestamp_ms: Option<i64>,
    pub key: Option<Bytes>,
    /// `None` is a tombstone.
    pub payload: Option<Bytes>,
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    Create,
    Update,
    Delete,
    /// A row as a snapshot found it.
    Read,
    Truncate,
    Message,
}

impl Op {
    /// Debezium's letter, which is also what bronze's `_op` holds.
    pub fn letter(self) -> &'static str {
        match self {
            Op::Create => "c",
            Op::Update => "u",
            Op::Delete => "d",
            Op::Read => "r",
            Op::Truncate => "t",
            Op::Message => "m",
        }
    }

    pub fn from_letter(letter: &str) -> Option<Op> {
        match letter {
            "c" => Some(Op::Create),
            "u" => Some(Op::Update),
            "d" => Some(Op::Delete),
            "r" => Some(Op::Read),
            "t" => Some(Op::Truncate),
            "m" => Some(Op::Message),
            _ => None,
        }
    }
}

/// A decoded change. Row images stay JSON text: `batch/` turns them into columns, where their types are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeEvent {
    /// What it was decoded from. Kept, because a row image may still turn out not to fit its table's columns.
    pub record: RawRecord,
    /// The key as JSON text.
    pub key: Option<String>,
    pub op: Op,
    /// When the source committed the change, microseconds since 1970.
    pub source_ts_us: Option<i64>,
    /// The source's position, fixed width, so that text order is stream order.
    pub position: Option<String>,
    pub tx_id: Option<String>,
    /// What the source block says besides, as JSON text.
    pub source: Option<Arc<str>>,
    pub before: Option<Image>,
    pub after: Option<Image>,
    /// The columns of the images, where the record itself says them.
    pub shape: Option<Arc<RowShape>>,
}

/// A row as JSON text of one object.
#[derive(Debug, Clone)]
pub struct Image {
    json: ByteString,
    fields: Option<(Arc<FieldNames>, Box<[Span]>)>,
}

/// The names of an object's fields, in order. Images that share them were written alike.
#[derive(Debug, PartialEq, Eq)]
pub struct FieldNames(pub Box<[Box<str>]>);

/// Where a value's text is in an image: its first byte, and the one behind it; and what backslashes are in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) escapes: Escapes,
}

impl Span {
    /// Its part of a text.
    pub fn of(self, text: &str) -> Option<&str> {
        text.get(self.from as usize..self.to as usize)
    }
}

impl Image {
    /// An image whose fields were found already: a value for each name, and nothing else is in `json`.
    pub fn with_fields(json: ByteString, names: Arc<FieldNames>, values: Box<[Span]>) -> Self {
        Image { json, fields: Some((names, values)) }
    }

    pub fn json(&self) -> &str {
        &self.json
    }

    /// Names and values, where they are known without reading.
    pub fn fields(&self) -> Option<(&Arc<FieldNames>, &[Span])> {
        self.fields.as_ref().map(|(names, values)| (names, &**values))
    }
}

impl From<ByteString> for Image {
    fn from(json: ByteString) -> Self {
        Image { json, fields: None }
    }
}

/// What is known of an image beside its text follows from it.
impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        self.json == other.json
    }
}

impl Eq for Image {}

/// A record that could not be made a change event, with the reason. It becomes a bronze row all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    pub record: RawRecord,
    /// The key as JSON text. A key that is not JSON becomes a JSON string of its text, or `{"base64":"…"}`.
    pub key: Option<String>,
    pub reason: String,
}

/// What decoding one record gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    Change(ChangeEvent),
    Rejected(Rejected),
    /// Read and done with: it holds no change. Its offset still counts as read.
    Consumed(RawRecord, Consumed),
}

impl Decoded {
    pub fn record(&self) -> &RawRecord {
        match self {
            Decoded::Change(event) => &event.record,
            Decoded::Rejected(rejected) => &rejected.record,
            Decoded::Consumed(record, _) => record,
        }
    }
}

/// Records that carry no change of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Consumed {
    /// The null record Debezium sends behind a delete, for log compaction.
    Tombstone,
    Heartbeat,
    /// Begin and end of a source transaction.
    Transaction,
    /// A DDL statement from the schema history.
    SchemaChange,
}

/// Bronze rows ready to be written, with the offsets they stand for.
#[derive(Debug, Clone)]
pub struct ChangeBatch {
    /// In the columns of [`crate::layout::bronze_schema_with`], those of the row images being as wide as the widest row
    /// so far needs them. Has no rows when every record of the ranges was consumed.
    pub rows: RecordBatch,
    /// The offsets read, whether they held a row, a consumed record or nothing.
    pub ranges: BTreeMap<TopicPartition, OffsetRange>,
    pub counts: ChangeCounts,
    /// Columns that records stopped having. Their rows are null there.
    pub dropped: Vec<ColumnChange>,
}

/// What the records of a batch were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChangeCounts {
    pub changes: u64,
    pub rejected: u64,
    pub tombstones: u64,
    pub heartbeats: u64,
    pub transactions: u64,
    pub schema_changes: u64,
    /// Changes, of `changes`, with fields that no column was declared for.
    pub unexpected: u64,
}

impl AddAssign for ChangeCounts {
    fn add_assign(&mut self, other: Self) {
        let ChangeCounts { changes, rejected, tombstones, heartbeats, transactions, schema_changes, unexpected } =
            other;
        self.changes += changes;
        self.rejected += rejected;
        self.tombstones += tombstones;
        self.heartbeats += heartbeats;
        self.transactions += transactions;
        self.schema_changes += schema_changes;
        self.unexpected += unexpected;
    }
}
