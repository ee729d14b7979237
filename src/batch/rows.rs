//! Bronze rows being put together: a builder for each column.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, Int32Array, Int32Builder, Int64Builder, LargeBinaryBuilder, ListBuilder, StringBuilder,
    TimestampMicrosecondArray, TimestampMicrosecondBuilder,
};
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;

use super::error::{Error, Result};
use super::image::{self, Images, Row};
use crate::change::{ChangeEvent, RawRecord};
use crate::evolution::Form;
use crate::layout::{self, UTC};

/// What the fixed-width columns and the offsets of the texts take in a row.
pub(super) const ROW_BYTES: usize = 96;

/// The builders of bronze's columns, in order; those that are the same in each row of a batch are made at its end.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) count: usize,
    room: Room,
    /// The topic of the last rows, and how many of them are not in `topic` yet: most tables are of one topic.
    last_topic: Option<Arc<str>>,
    same_topic: usize,
    /// The last rows, in which what only bad rows have is null, and not in its builders yet.
    good: usize,
    topic: StringBuilder,
    partition: Int32Builder,
    offset: Int64Builder,
    timestamp: TimestampMicrosecondBuilder,
    key: StringBuilder,
    op: StringBuilder,
    source_ts: TimestampMicrosecondBuilder,
    position: StringBuilder,
    tx_id: StringBuilder,
    source: StringBuilder,
    pub(super) before: Images,
    pub(super) after: Images,
    unavailable: ListBuilder<StringBuilder>,
    error: StringBuilder,
    raw: LargeBinaryBuilder,
}

/// How much the last batch held, which the next one most likely holds as well. A builder that grows step by step copies
/// what it has each time; one that is made for more than comes keeps memory from others.
#[derive(Debug, Clone, Copy, Default)]
struct Room {
    rows: usize,
    /// Bytes of text.
    topic: usize,
    key: usize,
    position: usize,
    tx_id: usize,
    source: usize,
}

/// One row of bronze, found good.
pub(super) struct BronzeRow<'a> {
    pub(super) record: &'a RawRecord,
    pub(super) key: Option<&'a str>,
    pub(super) event: Option<&'a ChangeEvent>,
    pub(super) before: Row<'a>,
    pub(super) after: Row<'a>,
    pub(super) unavailable: &'a [(usize, String)],
    pub(super) error: Option<&'a str>,
}

impl Rows {
    pub(super) fn new(form: &Form) -> Self {
        let instants = || TimestampMicrosecondBuilder::with_capacity(0).with_timezone(UTC);
        let text = || StringBuilder::with_capacity(0, 0);
        Rows {
            count: 0,
            room: Room::default(),
            last_topic: None,
            same_topic: 0,
            good: 0,
            topic: text(),
            partition: Int32Builder::with_capacity(0),
            offset: Int64Builder::with_capacity(0),
            timestamp: instants(),
            key: text(),
            op: text(),
            source_ts: instants(),
            position: text(),
            tx_id: text(),
            source: text(),
            before: Images::new(form),
            after: Images::new(form),
            unavailable: ListBuilder::with_capacity(text(), 0).with_field(layout::unavailable_element()),
            error: text(),
            raw: LargeBinaryBuilder::with_capacity(0, 0),
        }
    }

    /// Makes the builders of a batch's first row.
    fn make_room(&mut self) {
        let room = self.room;
        let text = |bytes| StringBuilder::with_capacity(room.rows, bytes);
        let instants = || TimestampMicrosecondBuilder::with_capacity(room.rows).with_timezone(UTC);
        self.topic = text(room.topic);
        self.partition = Int32Builder::with_capacity(room.rows);
        self.offset = Int64Builder::with_capacity(room.rows);
        self.timestamp = instants();
        self.key = text(room.key);
        self.op = text(room.rows);
        self.source_ts = instants();
        self.position = text(room.position);
        self.tx_id = text(room.tx_id);
        self.source = text(room.source);
    }

    /// Makes room for images of another form and says how many bytes that takes for each row, about.
    pub(super) fn fit(&mut self, form: &Form) -> Result<usize> {
        let before = self.before.width();
        self.before.fit(form)?;
        self.after.fit(form)?;
        Ok(2 * (self.after.width() - before))
    }

    /// Appends a row and says how many bytes it takes, about.
    pub(super) fn append(&mut self, row: BronzeRow<'_>) -> Result<usize> {
        let BronzeRow { record, key, event, before, after, unavailable, error } = row;
        let raw = record.payload.as_ref().filter(|_| error.is_some());
        let position = event.and_then(|event| event.position.as_deref());
        let tx_id = event.and_then(|event| event.tx_id.as_deref());
        let source = event.and_then(|event| event.source.as_deref());
        let texts = [Some(&*record.topic), key, position, tx_id, source, error];
        let size = ROW_BYTES
            + texts.iter().flatten().map(|text| text.len()).sum::<usize>()
            + unavailable.iter().map(|(_, name)| name.len() + 4).sum::<usize>()
            + raw.map_or(0, Bytes::len)
            + before.size()
            + after.size();
        if self.count == 0 {
            self.make_room();
        }
        self.before.append(before)?;
        self.after.append(after)?;
        self.count += 1;
        if self.last_topic.as_ref().is_none_or(|last| *last != record.topic) {
            self.append_topics();
            self.last_topic = Some(record.topic.clone());
        }
        self.same_topic += 1;
        self.partition.append_value(record.partition);
        self.offset.append_value(record.offset);
        self.timestamp.append_option(record.timestamp_ms.and_then(|ms| ms.checked_mul(1000)));
        self.key.append_option(key);
        self.op.append_option(event.map(|event| event.op.letter()));
        self.source_ts.append_option(event.and_then(|event| event.source_ts_us));
        self.position.append_option(position);
        self.tx_id.append_option(tx_id);
        self.source.append_option(source);
        self.append_rest(unavailable, error, raw);
        Ok(size)
    }

    /// Appends rows whose images are in their columns, and says how many bytes the rest of them takes, about. Of values
    /// that were not sent, there are the names, each with its row.
    pub(super) fn append_alike(&mut self, events: &[&ChangeEvent], mut unavailable: Vec<(usize, String)>) -> usize {
        if self.count == 0 {
            self.make_room();
        }
        self.count += events.len();
        let mut size = ROW_BYTES * events.len();
        for ChangeEvent { record, .. } in events {
            if !self.last_topic.as_ref().is_some_and(|last| Arc::ptr_eq(last, &record.topic) || *last == record.topic) {
                self.append_topics();
                self.last_topic = Some(record.topic.clone());
            }
            self.same_topic += 1;
            size += record.topic.len();
        }
        let records = || events.iter().map(|event| &event.record);
        records().for_each(|record| self.partition.append_value(record.partition));
        records().for_each(|record| self.offset.append_value(record.offset));
        let micros = |record: &RawRecord| record.timestamp_ms.and_then(|ms| ms.checked_mul(1000));
        records().for_each(|record| self.timestamp.append_option(micros(record)));
        let mut append = |builder: &mut StringBuilder, text: Option<&str>| {
            size += text.map_or(0, str::len);
            builder.append_option(text);
        };
        events.iter().for_each(|event| append(&mut self.key, event.key.as_deref()));
        events.iter().for_each(|event| append(&mut self.position, event.position.as_deref()));
        events.iter().for_each(|event| append(&mut self.tx_id, event.tx_id.as_deref()));
        events.iter().for_each(|event| append(&mut self.source, event.source.as_deref()));
        events.iter().for_each(|event| self.op.append_value(event.op.letter()));
        events.iter().for_each(|event| self.source_ts.append_option(event.source_ts_us));
        if unavailable.is_empty() {
            self.good += events.len();
            return size;
        }
        unavailable.sort_by_key(|(row, _)| *row);
        let mut unavailable = unavailable.as_slice();
        for row in 0..events.len() {
            let (of_row, rest) = unavailable.split_at(unavailable.partition_point(|(of, _)| *of <= row));
            size += of_row.iter().map(|(_, name)| name.len() + 4).sum::<usize>();
            self.append_rest(of_row, None, None);
            unavailable = rest;
        }
        size
    }

    /// Appends what only few rows have.
    fn append_rest(&mut self, unavailable: &[(usize, String)], error: Option<&str>, raw: Option<&Bytes>) {
        if error.is_none() && unavailable.is_empty() {
            self.good += 1;
            return;
        }
        self.append_good();
        unavailable.iter().for_each(|(_, name)| self.unavailable.values().append_value(name));
        self.unavailable.append(!unavailable.is_empty());
        self.error.append_option(error);
        self.raw.append_option(raw);
    }

    fn append_topics(&mut self) {
        if let Some(topic) = &self.last_topic {
            self.topic.append_value_n(topic, std::mem::take(&mut self.same_topic));
        }
    }

    fn append_good(&mut self) {
        let good = std::mem::take(&mut self.good);
        self.unavailable.append_nulls(good);
        self.error.append_nulls(good);
        self.raw.append_nulls(good);
    }

    pub(super) fn finish(&mut self, schema: &SchemaRef, epoch: i32, now_us: i64) -> Result<RecordBatch> {
        let count = std::mem::take(&mut self.count);
        self.append_topics();
        self.append_good();
        let ingested_at = TimestampMicrosecondArray::from_value(now_us, count).with_timezone(UTC);
        let text = |builder: &mut StringBuilder, bytes: &mut usize| -> ArrayRef {
            *bytes = image::roomy(builder.values_slice().len());
            Arc::new(builder.finish())
        };
        let room = &mut self.room;
        room.rows = count;
        let mut arrays: Vec<ArrayRef> = vec![
            text(&mut self.topic, &mut room.topic),
            Arc::new(self.partition.finish()),
            Arc::new(self.offset.finish()),
            Arc::new(self.timestamp.finish()),
            Arc::new(ingested_at),
            text(&mut self.key, &mut room.key),
            Arc::new(self.op.finish()),
            Arc::new(self.source_ts.finish()),
            text(&mut self.position, &mut room.position),
            Arc::new(Int32Array::from_value(epoch, count)),
            text(&mut self.tx_id, &mut room.tx_id),
            text(&mut self.source, &mut room.source),
        ];
        arrays.extend(self.before.finish()?);
        arrays.extend(self.after.finish()?);
        arrays.push(Arc::new(self.unavailable.finish()));
        arrays.push(Arc::new(self.error.finish()));
        arrays.push(Arc::new(self.raw.finish()));
        arrays.push(Arc::new(TimestampMicrosecondArray::new_null(count).with_timezone(UTC)));
        RecordBatch::try_new(schema.clone(), arrays).map_err(Error::Columns)
    }
}
