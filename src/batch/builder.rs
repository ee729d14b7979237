//! A batch being filled.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use bytes::Bytes;

use super::block::{self, Found};
use super::error::{Error, Result};
use super::image::{self, Columns, Row, Unavailable, Unfit};
use super::plan::{Plan, Plans};
use super::rows::{BronzeRow, ROW_BYTES, Rows};
use crate::change::{
    ChangeBatch, ChangeCounts, ChangeEvent, Consumed, Decoded, FieldNames, Image, Op, RawRecord, Rejected,
};
use crate::clock::Clock;
use crate::evolution::TableImages;
use crate::layout;
use crate::offsets::{OffsetRange, TopicPartition};
use crate::placeholder::Placeholder;
use crate::row::RowShape;

/// What a batch may hold at most. Arrow addresses text with 31 bits, and no column holds more than its batch.
const MOST_BYTES: usize = 1 << 30;

/// Builds one bronze table's batches, one after the other.
///
/// It knows how far each partition was read, across batches, because offsets that hold no record (transaction markers,
/// compacted records) belong to the range of the batch that follows them.
#[derive(Debug)]
pub struct ChangeBatchBuilder {
    schema: SchemaRef,
    plans: Plans,
    epoch: i32,
    clock: Clock,
    placeholder: Arc<Placeholder>,
    partitions: Vec<Progress>,
    /// Which partition the last record was of, since records come in runs.
    last: usize,
    counts: ChangeCounts,
    rows: Rows,
    known: Known,
    bytes: usize,
}

/// The columns that fields are for, of images that were taken apart before they came.
#[derive(Debug, Default)]
struct Known {
    places: Vec<Places>,
    /// Images to be read before anything of them is written: after one that did not fit, since more may follow, and
    /// taking its values out of the columns again costs a copy of them.
    wary: u32,
}

/// Events that become rows together, and their images and partitions.
struct Alike<'a> {
    events: Vec<&'a ChangeEvent>,
    before: Vec<Option<Found<'a>>>,
    after: Vec<Option<Found<'a>>>,
    partitions: Vec<usize>,
}

impl Alike<'_> {
    fn with_capacity(rows: usize) -> Self {
        Alike {
            events: Vec::with_capacity(rows),
            before: Vec::with_capacity(rows),
            after: Vec::with_capacity(rows),
            partitions: Vec::with_capacity(rows),
        }
    }
}

#[derive(Debug)]
struct Places {
    names: Arc<FieldNames>,
    columns: Arc<Columns>,
    /// The column of each name.
    places: Box<[Option<usize>]>,
    are_straight: bool,
}

#[derive(Debug)]
struct Progress {
    partition: TopicPartition,
    range: OffsetRange,
    /// What its last row was like, since a partition's records are in the order of the source.
    shape: Option<Arc<RowShape>>,
}

impl ChangeBatchBuilder {
    /// A builder for a table whose row images are as a bronze table says of itself, or, for a table made for it, of a
    /// shape or JSON text. `epoch` is the operator's count of how often the source was rebuilt.
    pub fn new(images: impl Into<TableImages>, epoch: i32, clock: Clock) -> Self {
        let plans = Plans::new(images.into());
        ChangeBatchBuilder {
            schema: layout::bronze_schema_with(plans.form().data_type()),
            rows: Rows::new(plans.form()),
            known: Known::default(),
            plans,
            epoch,
            clock,
            placeholder: Arc::default(),
            partitions: Vec::new(),
            last: 0,
            counts: ChangeCounts::default(),
            bytes: 0,
        }
    }

    /// What stands for values that were not sent, where it is not what Debezium sends by itself.
    pub fn with_placeholder(self, placeholder: Arc<Placeholder>) -> Self {
        ChangeBatchBuilder { placeholder, ..self }
    }

    /// Says where reading of `partition` starts. Without it, a partition starts at the first record pushed.
    ///
    /// Refused while the batch holds records of the partition, which their range has to cover.
    pub fn start(&mut self, partition: TopicPartition, from: i64) -> Result<()> {
        let index = self.progress(&partition.topic, partition.partition, from);
        let range = &mut self.partitions[index].range;
        if range.next > range.from {
            return Err(Error::Unfinished { partition, next: range.next });
        }
        *range = OffsetRange { from, next: from };
        Ok(())
    }

    pub fn push(&mut self, decoded: Decoded) -> Result<()> {
        self.push_block(std::slice::from_ref(&decoded))
    }

    /// Pushes records in order. Those that are written alike become columns together, which is faster than one by one.
    pub fn push_all(&mut self, decoded: impl IntoIterator<Item = Decoded>) -> Result<()> {
        let mut decoded = decoded.into_iter().fuse();
        let mut block = Vec::with_capacity(block::ROWS);
        loop {
            block.extend(decoded.by_ref().take(block::ROWS));
            if block.is_empty() {
                return Ok(());
            }
            self.push_block(&block)?;
            block.clear();
        }
    }

    fn push_block(&mut self, mut block: &[Decoded]) -> Result<()> {
        while let Some(first) = block.first() {
            let alike = self.push_alike(block)?;
            if alike == 0 {
                self.push_one(first)?;
            }
            block = block.get(alike.max(1)..).unwrap_or_default();
        }
        Ok(())
    }

    fn push_one(&mut self, decoded: &Decoded) -> Result<()> {
        let record = decoded.record();
        let index = self.progress(&record.topic, record.partition, record.offset);
        let offset = record.offset;
        self.check_order(index, offset)?;
        self.check_room(self.bytes, record)?;
        match decoded {
            Decoded::Change(event) => self.push_change(event, index)?,
            Decoded::Rejected(Rejected { record, key, reason }) => {
                self.push_rejected(record, key.as_deref(), None, reason)?;
            }
            Decoded::Consumed(_, Consumed::Tombstone) => self.counts.tombstones += 1,
            Decoded::Consumed(_, Consumed::Heartbeat) => self.counts.heartbeats += 1,
            Decoded::Consumed(_, Consumed::Transaction) => self.counts.transactions += 1,
            Decoded::Consumed(_, Consumed::SchemaChange) => self.counts.schema_changes += 1,
        }
        self.partitions[index].range.next = offset + 1;
        Ok(())
    }

    /// Pushes those at the beginning of a block whose fields were found, and are the table's columns in their order; says
    /// how many they are.
    fn push_alike(&mut self, block: &[Decoded]) -> Result<usize> {
        let Some(Decoded::Change(first)) = block.first() else { return Ok(0) };
        let mut images = first.before.iter().chain(&first.after).peekable();
        if self.known.wary > 0 || images.peek().is_none() || images.any(|image| image.fields().is_none()) {
            return Ok(0);
        }
        let Ok(Plan { columns: Some(columns), next: None }) = self.plans.plan(first.shape.as_ref(), true) else {
            return Ok(0);
        };
        if !self.rows.before.are_those_of(&columns) || !self.rows.after.are_those_of(&columns) {
            return Ok(0);
        }
        let mut alike = Alike::with_capacity(block.len());
        let mut bytes = self.bytes;
        for decoded in block {
            let Decoded::Change(event) = decoded else { break };
            let is_like_the_first = event.shape.as_ref().map(Arc::as_ptr) == first.shape.as_ref().map(Arc::as_ptr)
                && (event.op == Op::Read) == (first.op == Op::Read)
                && (event.before.is_some() || event.after.is_some());
            let record = &event.record;
            if !is_like_the_first || self.check_room(bytes, record).is_err() {
                break;
            }
            let Some(before) = self.known.found(&columns, event.before.as_ref()) else { break };
            let Some(after) = self.known.found(&columns, event.after.as_ref()) else { break };
            let index = self.progress(&record.topic, record.partition, record.offset);
            if self.check_order(index, record.offset).is_err() {
                break;
            }
            self.partitions[index].range.next = record.offset + 1;
            // Nearly what the row will take.
            bytes += ROW_BYTES + record.payload.as_ref().map_or(0, Bytes::len);
            alike.events.push(event);
            alike.before.push(before);
            alike.after.push(after);
            alike.partitions.push(index);
        }
        let Alike { events, before, after, partitions } = &alike;
        if events.is_empty() {
            return Ok(0);
        }
        let placeholder = self.placeholder.clone();
        // A snapshot reads whole rows: what looks like a placeholder there is the value.
        let placeholder = (first.op != Op::Read).then_some(&*placeholder);
        let mut unavailable = Unavailable::new(placeholder);
        let size = match self.rows.before.append_block(before, &columns, layout::BEFORE, &mut unavailable)? {
            None => None,
            Some(of_before) => {
                let of_after = self.rows.after.append_block(after, &columns, layout::AFTER, &mut unavailable)?;
                if of_after.is_none() && before.iter().any(Option::is_some) {
                    self.rows.before.cut_last()?;
                }
                of_after.map(|of_after| of_before + of_after)
            }
        };
        let Some(size) = size else {
            // One of them does not fit.
            self.known.wary = Known::WARY;
            for (event, index) in events.iter().zip(partitions) {
                self.push_change(event, *index)?;
            }
            return Ok(events.len());
        };
        self.rows.before.append_presence(before);
        self.rows.after.append_presence(after);
        for index in partitions {
            self.note_shape(*index, &columns);
        }
        self.counts.changes += events.len() as u64;
        self.bytes += size + self.rows.append_alike(events, unavailable.names);
        Ok(events.len())
    }

    /// Says that `partition` was read up to `next`, past offsets that hold no record.
    pub fn advance(&mut self, partition: &TopicPartition, next: i64) {
        let index = self.progress(&partition.topic, partition.partition, next);
        let range = &mut self.partitions[index].range;
        range.next = range.next.max(next);
    }

    pub fn rows(&self) -> usize {
        self.rows.count
    }

    /// About how many bytes the batch takes in memory.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether there is anything to commit. Consumed records make progress without making rows.
    pub fn has_progress(&self) -> bool {
        self.partitions.iter().any(|progress| progress.range.next > progress.range.from)
    }

    /// The batch filled until now. The next one starts where its ranges end.
    pub fn finish(&mut self) -> Result<ChangeBatch> {
        let rows = self.rows.finish(&self.schema, self.epoch, self.clock.now_us())?;
        let mut batch = ChangeBatch {
            rows,
            ranges: Default::default(),
            counts: std::mem::take(&mut self.counts),
            dropped: self.plans.take_dropped(),
        };
        for Progress { partition, range, .. } in &mut self.partitions {
            if range.next > range.from {
                batch.ranges.insert(partition.clone(), *range);
            }
            range.from = range.next;
        }
        self.bytes = 0;
        Ok(batch)
    }

    fn push_change(&mut self, event: &ChangeEvent, partition: usize) -> Result<()> {
        let has_image = event.before.is_some() || event.after.is_some();
        let plan = match self.plans.plan(event.shape.as_ref(), has_image) {
            Ok(plan) => plan,
            Err(reason) => return self.push_rejected(&event.record, event.key.as_deref(), Some(event), &reason),
        };
        // A snapshot reads whole rows: what looks like a placeholder there is the value.
        let placeholder = (event.op != Op::Read).then_some(&*self.placeholder);
        let mut unavailable = Unavailable::new(placeholder);
        let columns = plan.columns.as_ref();
        let mut read = |image: &'static str, json| self.known.read(columns, json, image, &mut unavailable);
        let before = read(layout::BEFORE, event.before.as_ref());
        let images = before.and_then(|before| Ok((before, read(layout::AFTER, event.after.as_ref())?)));
        let (before, after) = match images {
            Ok(images) => images,
            Err(unfit) => {
                return self.push_rejected(&event.record, event.key.as_deref(), Some(event), &unfit.to_string());
            }
        };
        let unavailable = unavailable.names;
        let has_unexpected = before.has_unexpected() || after.has_unexpected();
        // Only a row that is good changes what the table is.
        if self.plans.adopt(&plan, has_unexpected) {
            let widths = self.rows.fit(self.plans.form())?;
            self.bytes += widths * self.rows.count;
            self.schema = layout::bronze_schema_with(self.plans.form().data_type());
        }
        if let Some(columns) = columns {
            self.note_shape(partition, columns);
        }
        self.counts.changes += 1;
        self.counts.unexpected += u64::from(has_unexpected);
        self.bytes += self.rows.append(BronzeRow {
            record: &event.record,
            key: event.key.as_deref(),
            event: Some(event),
            before,
            after,
            unavailable: &unavailable,
            error: None,
        })?;
        Ok(())
    }

    /// Notes what the last row of a partition was like.
    fn note_shape(&mut self, partition: usize, columns: &Columns) {
        let last = &mut self.partitions[partition].shape;
        if !last.as_ref().is_some_and(|last| Arc::ptr_eq(last, columns.shape())) {
            self.plans.note_dropped(last.as_deref(), columns.shape());
            *last = Some(columns.shape().clone());
        }
    }

    fn push_rejected(
        &mut self,
        record: &RawRecord,
        key: Option<&str>,
        event: Option<&ChangeEvent>,
        reason: &str,
    ) -> Result<()> {
        self.counts.rejected += 1;
        let (before, after) = (Row::Null, Row::Null);
        let error = Some(reason);
        self.bytes += self.rows.append(BronzeRow { record, key, event, before, after, unavailable: &[], error })?;
        Ok(())
    }

    /// The index of a partition's progress, which starts at `first` when it is new.
    fn progress(&mut self, topic: &Arc<str>, partition: i32, first: i64) -> usize {
        let is = |progress: &Progress| progress.partition.partition == partition && progress.partition.topic == *topic;
        if self.partitions.get(self.last).is_some_and(is) {
            return self.last;
        }
        self.last = self.partitions.iter().position(is).unwrap_or(self.partitions.len());
        if self.last == self.partitions.len() {
            let partition = TopicPartition::new(topic.clone(), partition);
            let range = OffsetRange { from: first, next: first };
            self.partitions.push(Progress { partition, range, shape: None });
        }
        self.last
    }

    fn check_order(&self, index: usize, offset: i64) -> Result<()> {
        let Progress { partition, range, .. } = &self.partitions[index];
        if offset < range.next {
            return Err(Error::Repeated { partition: partition.clone(), offset, next: range.next });
        }
        Ok(())
    }

    /// Whether a batch that holds so many bytes can take a record.
    fn check_room(&self, bytes: usize, record: &RawRecord) -> Result<()> {
        let more = record.payload.as_ref().map_or(0, Bytes::len) + record.key.as_ref().map_or(0, Bytes::len);
        if bytes > 0 && bytes + more > MOST_BYTES {
            return Err(Error::Full { bytes, more });
        }
        Ok(())
    }
}

impl Known {
    /// Images have the names of the one before it, or those of the other column.
    const MOST: usize = 16;

    /// How many images to be wary of after one that did not fit.
    const WARY: u32 = 1024;

    /// The fields of an image, where they were found and are the columns in their order; that of a row without one is
    /// nothing.
    #[allow(clippy::option_option)]
    fn found<'a>(&mut self, columns: &Arc<Columns>, image: Option<&'a Image>) -> Option<Option<Found<'a>>> {
        let Some(image) = image else { return Some(None) };
        let (names, spans) = image.fields()?;
        self.places_of(columns, names).are_straight.then_some(Some(Found { json: image.json(), spans }))
    }

    fn places_of(&mut self, columns: &Arc<Columns>, names: &Arc<FieldNames>) -> &Places {
        let is = |known: &Places| Arc::ptr_eq(&known.names, names) && Arc::ptr_eq(&known.columns, columns);
        let index = match self.places.iter().position(is) {
            Some(index) => index,
            None => {
                self.places.truncate(Self::MOST - 1);
                let places = columns.places(names);
                let are_straight = columns.are_straight(&places);
                self.places.insert(0, Places { names: names.clone(), columns: columns.clone(), places, are_straight });
                0
            }
        };
        &self.places[index]
    }

    fn read<'a>(
        &mut self,
        columns: Option<&'a Arc<Columns>>,
        image: Option<&'a Image>,
        name: &'static str,
        unavailable: &mut Unavailable<'_>,
    ) -> Result<Row<'a>, Unfit> {
        let Some(image) = image else { return Ok(Row::Null) };
        let json = image.json();
        let Some(columns) = columns else { return image::read_json(json, name, unavailable) };
        let Some((names, spans)) = image.fields() else { return columns.read(json, name, unavailable) };
        self.wary = self.wary.saturating_sub(1);
        let places = self.places_of(columns, names);
        columns.read_found(json, (names, spans, &places.places), name, unavailable)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use arrow::array::{Array, ArrayRef, AsArray, StructArray};
    use arrow::datatypes::{DataType, Decimal128Type, Int32Type, Int64Type, TimestampMicrosecondType};
    use bytestring::ByteString;
    use proptest::prelude::*;

    use super::*;
    use crate::change::{Op, Span};
    use crate::error::Situation;
    use crate::evolution::{ColumnChange, Evolution, Form};
    use crate::json;
    use crate::row::{Column, ColumnType};

    fn shape(columns: &[(&str, &str)]) -> Arc<RowShape> {
        let column = |(name, column_type): &(&str, &str)| {
            Column::new(name, column_type.parse::<ColumnType>().unwrap(), None).unwrap()
        };
        Arc::new(RowShape { columns: columns.iter().map(column).collect() })
    }

    fn orders() -> Option<Arc<RowShape>> {
        Some(shape(&[
            ("id", "long"),
            ("status", "string"),
            ("total", "decimal(10,2)"),
            ("note", "string"),
            ("image", "binary"),
            ("placed_at", "timestamptz"),
        ]))
    }

    fn builder(shape: Option<Arc<RowShape>>) -> ChangeBatchBuilder {
        let images = TableImages { evolution: Evolution::Strict, ..shape.into() };
        ChangeBatchBuilder::new(images, 3, Clock::manual(1_735_689_600_000_000).0)
    }

    fn record(partition: i32, offset: i64, payload: &str) -> RawRecord {
        RawRecord {
            topic: "shop.public.orders".into(),
            partition,
            offset,
            timestamp_ms: Some(1_735_689_599_000),
            key: None,
            payload: Some(Bytes::copy_from_slice(payload.as_bytes())),
        }
    }

    fn change(offset: i64, before: Option<&str>, after: Option<&str>) -> Decoded {
        let image = |json: &str| ByteString::from(json).into();
        Decoded::Change(ChangeEvent {
            record: record(0, offset, "the payload"),
            key: Some("{\"id\":7}".to_string()),
            op: if after.is_some() { Op::Update } else { Op::Delete },
            source_ts_us: Some(1_735_689_598_000_000),
            position: Some("00000000000000000001:00000000000000000002".to_string()),
            tx_id: Some("771".to_string()),
            source: Some("{\"table\":\"orders\"}".into()),
            before: before.map(image),
            after: after.map(image),
            shape: None,
        })
    }

    fn one(shape: Option<Arc<RowShape>>, before: Option<&str>, after: Option<&str>) -> ChangeBatch {
        let mut builder = builder(shape);
        builder.push(change(5, before, after)).unwrap();
        assert_eq!(builder.rows(), 1);
        builder.finish().unwrap()
    }

    fn text<'a>(batch: &'a ChangeBatch, name: &str) -> Vec<Option<&'a str>> {
        batch.rows.column_by_name(name).unwrap().as_string::<i32>().iter().collect()
    }

    fn image<'a>(batch: &'a ChangeBatch, name: &str) -> &'a StructArray {
        batch.rows.column_by_name(name).unwrap().as_struct()
    }

    fn unavailable(batch: &ChangeBatch) -> Option<Vec<String>> {
        let list = batch.rows.column_by_name(layout::UNAVAILABLE).unwrap().as_list::<i32>();
        let names = |names: Arc<dyn Array>| names.as_string::<i32>().iter().flatten().map(str::to_string).collect();
        list.is_valid(0).then(|| names(list.value(0)))
    }

    /// The reason why a row was rejected, which has to be its only trace.
    fn reason(shape: Option<Arc<RowShape>>, before: Option<&str>, after: Option<&str>) -> String {
        let batch = one(shape, before, after);
        assert_eq!(batch.counts, ChangeCounts { rejected: 1, ..Default::default() });
        for name in [layout::BEFORE, layout::AFTER, layout::UNAVAILABLE] {
            assert_eq!(batch.rows.column_by_name(name).unwrap().null_count(), 1);
        }
        let raw = batch.rows.column_by_name(layout::RAW).unwrap().as_binary::<i64>();
        assert_eq!(raw.value(0), b"the payload");
        assert_eq!(text(&batch, layout::KEY), [Some("{\"id\":7}")]);
        assert_eq!(text(&batch, layout::OP), [Some(if after.is_some() { "u" } else { "d" })]);
        text(&batch, layout::ERROR)[0].unwrap().to_string()
    }

    #[test]
    fn a_change_becomes_a_row_of_typed_columns() {
        let after =
            r#"{"id":7,"status":"päid","total":"BOI=","note":null,"image":"AP8=","placed_at":"2025-01-01T00:00:00Z"}"#;
        let batch = one(orders(), None, Some(after));
        assert_eq!(batch.rows.schema(), layout::bronze_schema(orders().as_deref()));
        let row = image(&batch, layout::AFTER);
        assert_eq!(row.column(0).as_primitive::<Int64Type>().value(0), 7);
        assert_eq!(row.column(1).as_string::<i32>().value(0), "päid");
        assert_eq!(row.column(2).as_primitive::<Decimal128Type>().value(0), 1250);
        assert!(row.column(3).is_null(0));
        assert_eq!(row.column(4).as_binary::<i64>().value(0), [0, 255]);
        assert_eq!(row.column(5).as_primitive::<TimestampMicrosecondType>().value(0), 1_735_689_600_000_000);
        assert!(image(&batch, layout::BEFORE).is_null(0));
        assert_eq!(text(&batch, layout::OP), [Some("u")]);
        assert_eq!(text(&batch, layout::ERROR), [None]);
        assert_eq!(text(&batch, layout::SOURCE), [Some("{\"table\":\"orders\"}")]);
        let micros =
            |name: &str| batch.rows.column_by_name(name).unwrap().as_primitive::<TimestampMicrosecondType>().value(0);
        assert_eq!(micros(layout::TIMESTAMP), 1_735_689_599_000_000);
        assert_eq!(micros(layout::INGESTED_AT), 1_735_689_600_000_000);
        assert_eq!(micros(layout::SOURCE_TS), 1_735_689_598_000_000);
        assert_eq!(batch.rows.column_by_name(layout::EPOCH).unwrap().as_primitive::<Int32Type>().value(0), 3);
        assert!(batch.rows.column_by_name(layout::RAW).unwrap().is_null(0));
    }

    #[test]
    fn fields_come_in_any_order_and_may_be_missing() {
        let batch = one(orders(), Some(r#"{"id":7}"#), Some(r#" { "note" : "n" , "id" : 7 } "#));
        for (name, note) in [(layout::BEFORE, None), (layout::AFTER, Some("n"))] {
            let row = image(&batch, name);
            assert_eq!(row.column(0).as_primitive::<Int64Type>().value(0), 7);
            assert_eq!(row.column(3).as_string::<i32>().iter().next().unwrap(), note);
            assert_eq!(row.column(1).null_count(), 1);
        }
    }

    #[test]
    fn values_that_were_not_sent_are_null_and_named() {
        let before = r#"{"id":7,"note":"__debezium_unavailable_value"}"#;
        let after =
            r#"{"id":7,"note":"__debezium_unavailable_value","image":"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ=="}"#;
        let names = Some(vec!["before.note".to_string(), "note".to_string(), "image".to_string()]);
        let typed = one(orders(), Some(before), Some(after));
        assert_eq!(unavailable(&typed), names);
        assert!(image(&typed, layout::AFTER).column(3).is_null(0));
        assert!(image(&typed, layout::AFTER).column(4).is_null(0));
        let json = one(None, Some(before), Some(after));
        assert_eq!(unavailable(&json), names);
        assert_eq!(text(&json, layout::BEFORE), [Some(r#"{"id":7,"note":null}"#)]);
        assert_eq!(text(&json, layout::AFTER), [Some(r#"{"id":7,"note":null,"image":null}"#)]);
        assert_eq!(unavailable(&one(orders(), None, Some("{}"))), None);
    }

    #[test]
    fn images_without_a_shape_stay_the_text_they_were() {
        let after = r#"{ "id": 7.0, "about": "the __debezium_unavailable_value text" }"#;
        for shape in [None, Some(shape(&[]))] {
            let batch = one(shape, None, Some(after));
            assert_eq!(text(&batch, layout::AFTER), [Some(after)]);
            assert_eq!(text(&batch, layout::BEFORE), [None]);
        }
    }

    #[test]
    fn a_row_that_does_not_fit_is_rejected_with_the_column_and_the_type() {
        let reason = |after: &str| reason(orders(), None, Some(after));
        insta::assert_snapshot!(
            reason(r#"{"id":7,"colour":"red"}"#), @"`after.colour` is not among the declared columns");
        insta::assert_snapshot!(
            reason(r#"{"id":7,"id":8}"#), @"`after.id` is given twice");
        insta::assert_snapshot!(
            reason(r#"{"id":7,"total":12.5}"#),
            @"`after.total` does not fit decimal(10,2) sent as base64: it is a number in digits, which `encoding: native` is for");
        insta::assert_snapshot!(
            reason(r#"{"id":92233720368547758070}"#), @"`after.id` does not fit long sent as native: it is out of range");
        insta::assert_snapshot!(reason("{"), @"`after` is not a JSON object");
        insta::assert_snapshot!(reason("[7]"), @"`after` is not a JSON object");
    }

    /// The image with its fields found already, as events come that are written alike.
    pub(in crate::batch) fn found(json: &str, names: &Arc<FieldNames>) -> Image {
        let mut spans = Vec::new();
        json::each_field::<()>(json, |_, value| {
            let from = value.as_ptr() as usize - json.as_ptr() as usize;
            let (length, escapes) = json::value_in(value.as_bytes()).unwrap();
            spans.push(Span { from: from as u32, to: (from + length) as u32, escapes });
            Ok(())
        })
        .unwrap();
        Image::with_fields(json.into(), names.clone(), spans.into())
    }

    #[test]
    fn images_read_straight_into_their_columns_are_the_same_rows() {
        let names = ["id", "status", "total", "note", "image", "placed_at"];
        let names = Arc::new(FieldNames(names.map(Box::from).into()));
        let image = |number: i64| {
            let (status, total) = match number {
                // Far apart, so that both are met on the way straight in; then some that come together.
                100 => ("\"paid\"", "12.5"),
                1400 | 1402 | 1403 => ("7", "\"BOI=\""),
                _ if number % 7 == 0 => ("null", "null"),
                _ if number % 5 == 0 => ("\"__debezium_unavailable_value\"", "\"BOI=\""),
                _ => ("\"p\\u00e4id\\n\"", "\"BOI=\""),
            };
            format!(
                r#"{{"id":{number},"status":{status},"total":{total},"note":"n{number}","image":"AP8=","placed_at":"2025-01-01T00:00:00Z"}}"#
            )
        };
        let (mut straight, mut careful) = (builder(orders()), builder(orders()));
        let (mut together, mut block) = (builder(orders()), Vec::new());
        for number in 0..3000 {
            // The one before fits even where the one after does not.
            let before = (number % 3 == 0).then(|| image(number + 10_000));
            let after = image(number);
            let Decoded::Change(event) = change(number, before.as_deref(), Some(&after)) else { unreachable!() };
            let before = before.map(|before| found(&before, &names));
            let with_fields = ChangeEvent { before, after: Some(found(&after, &names)), ..event.clone() };
            block.push(Decoded::Change(with_fields.clone()));
            straight.push(Decoded::Change(with_fields)).unwrap();
            careful.push(Decoded::Change(event)).unwrap();
            assert_eq!(straight.bytes(), careful.bytes());
            if number == 2000 {
                together.push_all(block.drain(..)).unwrap();
                let rows = careful.finish().unwrap().rows;
                assert_eq!(straight.finish().unwrap().rows, rows);
                assert_eq!(together.finish().unwrap().rows, rows);
            }
        }
        together.push_all(block).unwrap();
        assert_eq!(together.bytes(), careful.bytes());
        let [straight, careful, together] = [straight, careful, together].map(|mut builder| builder.finish().unwrap());
        assert_eq!(straight.rows, careful.rows);
        assert_eq!(straight.counts, careful.counts);
        assert_eq!(together.rows, careful.rows);
        assert_eq!(together.counts, careful.counts);
    }

    #[test]
    fn a_column_that_comes_with_one_image_is_null_in_the_other() {
        let names = ["id", "status", "total", "note", "image", "placed_at"];
        let old = format!("{{{}}}", names.map(|name| format!(r#""{name}":null"#)).join(","));
        let new = old.replace('}', r#","other":[1]}"#);
        let names_of = |names: &[&str]| Arc::new(FieldNames(names.iter().map(|name| Box::from(*name)).collect()));
        let (of_old, of_new) = (names_of(&names), names_of(&[&names[..], &["other"]].concat()));
        let mut kept = TableImages::from(orders());
        kept.evolution = Evolution::Evolve;
        let mut builder = ChangeBatchBuilder::new(kept, 0, Clock::manual(0).0);
        for number in 0..3 {
            let Decoded::Change(event) = change(number, Some(&old), Some(&new)) else { unreachable!() };
            let (before, after) = (Some(found(&old, &of_old)), Some(found(&new, &of_new)));
            builder.push(Decoded::Change(ChangeEvent { before, after, ..event })).unwrap();
        }
        let batch = builder.finish().unwrap();
        assert_eq!((batch.counts.changes, batch.counts.rejected), (3, 0));
        let other = |name: &str| image(&batch, name).column_by_name("_unexpected").unwrap().as_string::<i32>().clone();
        assert_eq!(other(layout::BEFORE).iter().collect::<Vec<_>>(), [None; 3]);
        assert_eq!(other(layout::AFTER).iter().collect::<Vec<_>>(), [Some(r#"{"other":[1]}"#); 3]);
    }

    #[test]
    fn a_rejected_row_leaves_nothing_of_itself_behind() {
        // Its first columns fit, and so does its `before`.
        let bad = reason(orders(), Some(r#"{"id":1}"#), Some(r#"{"id":7,"status":"paid","total":"no"}"#));
        assert!(bad.starts_with("`after.total`"), "{bad}");
        let mut builder = builder(orders());
        builder.push(change(0, None, Some(r#"{"id":1,"status":"a"}"#))).unwrap();
        builder.push(change(1, Some(r#"{"id":2}"#), Some(r#"{"id":2,"status":"b","total":1}"#))).unwrap();
        builder.push(change(2, Some(r#"{"id":3}"#), Some(r#"{"id":3,"status":"c"}"#))).unwrap();
        let batch = builder.finish().unwrap();
        assert_eq!(batch.counts, ChangeCounts { changes: 2, rejected: 1, ..Default::default() });
        let status: Vec<Option<&str>> = image(&batch, layout::AFTER).column(1).as_string::<i32>().iter().collect();
        assert_eq!(status, [Some("a"), None, Some("c")]);
        let ids: Vec<Option<i64>> =
            image(&batch, layout::BEFORE).column(0).as_primitive::<Int64Type>().iter().collect();
        assert_eq!(ids, [None, None, Some(3)]);
        assert_eq!(image(&batch, layout::AFTER).nulls().unwrap().iter().collect::<Vec<_>>(), [true, false, true]);
    }

    /// Pushes a row of each shape to a table that takes what comes, and shows its columns and rows.
    fn evolved(builder: &mut ChangeBatchBuilder, records: &[(&str, &str)]) -> String {
        let shapes: Vec<(&str, Arc<RowShape>)> = records.iter().map(|(columns, _)| (*columns, of(columns))).collect();
        for (columns, after) in records {
            let next = builder.partitions.first().map_or(0, |progress| progress.range.next);
            let Decoded::Change(mut event) = change(next, None, Some(after)) else { continue };
            // Records of one shape share it, or bring one that is equal.
            event.shape = shapes.iter().find(|(known, _)| known == columns).map(|(_, shape)| shape.clone());
            builder.push(Decoded::Change(event)).unwrap();
        }
        let batch = builder.finish().unwrap();
        let Ok(after) = batch.rows.schema_ref().field_with_name(layout::AFTER).cloned() else {
            return format!("{} rows without images", batch.rows.num_rows());
        };
        let DataType::Struct(fields) = after.data_type() else { return "text".to_string() };
        let names: Vec<&str> = fields.iter().map(|field| field.name().as_str()).collect();
        let mut lines = vec![names.join(" ")];
        let errors = batch.rows.column_by_name(layout::ERROR).unwrap().as_string::<i32>();
        for row in 0..batch.rows.num_rows() {
            let options = arrow::util::display::FormatOptions::default().with_null("-");
            let shown = |column: &ArrayRef| {
                arrow::util::display::ArrayFormatter::try_new(column, &options).unwrap().value(row).to_string()
            };
            lines.push(match errors.is_valid(row) {
                true => format!("rejected: {}", errors.value(row)),
                false => image(&batch, layout::AFTER).columns().iter().map(shown).collect::<Vec<_>>().join(" "),
            });
        }
        lines.extend(batch.dropped.iter().map(ColumnChange::to_string));
        lines.join("\n")
    }

    fn of(columns: &str) -> Arc<RowShape> {
        let columns: Vec<(&str, &str)> =
            columns.split(", ").filter_map(|column| column.trim().split_once(' ')).collect();
        shape(&columns)
    }

    fn open(evolution: Evolution) -> ChangeBatchBuilder {
        let images = TableImages { evolution, declared: None, form: Form::Open };
        ChangeBatchBuilder::new(images, 0, Clock::manual(0).0)
    }

    #[test]
    fn columns_are_added_and_widened_in_the_middle_of_a_batch() {
        let mut builder = open(Evolution::Evolve);
        insta::assert_snapshot!(evolved(&mut builder, &[
            ("id int, n float, d decimal(4,2)", r#"{"id":1,"n":0.1,"d":"BOI="}"#),
            ("id long, d decimal(6,2), note string", r#"{"id":5000000000,"d":"BOI=","note":"a"}"#),
            ("id int, n float, d decimal(4,2)", r#"{"id":2,"n":0.1,"d":"BOI="}"#),
            ("id int, n double", r#"{"id":3,"n":0.1}"#),
            ("id string", r#"{"id":"x"}"#),
            ("id int, n float, d decimal(4,2)", r#"{"id":4,"n":0.1,"d":"BOI="}"#),
        ]), @"
        id n d note id_v2
        1 0.10000000149011612 12.50 - -
        5000000000 - 12.50 a -
        2 0.10000000149011612 12.50 - -
        3 0.1 - - -
        - - - - x
        4 0.10000000149011612 12.50 - -
        `d` is not sent any more
        `n` is not sent any more
        `note` is not sent any more
        ");
        // What it has become it stays.
        insta::assert_snapshot!(evolved(&mut builder, &[("id int", r#"{"id":1}"#), ("id  int", r#"{"id":2}"#)]), @"
        id n d note id_v2
        1 - - - -
        2 - - - -
        `d` is not sent any more
        `n` is not sent any more
        ");
    }

    #[test]
    fn a_row_that_is_rejected_changes_no_column() {
        let mut builder = open(Evolution::Evolve);
        insta::assert_snapshot!(evolved(&mut builder, &[("id int", r#"{"id":"x"}"#)]), @"1 rows without images");
        insta::assert_snapshot!(evolved(&mut builder, &[
            ("id int", r#"{"id":1}"#),
            ("id int, note string", r#"{"id":2,"note":3}"#),
            ("id int, note string", r#"{"id":2,"note":"n","other":[1]}"#),
        ]), @r#"
        id note _unexpected
        1 - -
        rejected: `after.note` does not fit string sent as native: it is a number, and text is expected
        2 n {"other":[1]}
        "#);
        let mut builder = open(Evolution::Strict);
        insta::assert_snapshot!(evolved(&mut builder, &[
            ("id int, s int", r#"{"id":1,"s":1}"#),
            ("id long, s string, note date", r#"{"id":1,"s":"1"}"#),
            ("id int", r#"{"id":1}"#),
            ("id int", r#"{"id":1,"other":1}"#),
        ]), @"
        id s
        1 1
        rejected: its columns need what `evolution: strict` does not do: widened `id` from int to long, added `s_v2` (string) beside `s` (int), added `note` (date)
        1 -
        rejected: `after.other` is not among the declared columns
        `s` is not sent any more
        ");
    }

    #[test]
    fn every_offset_read_is_in_a_range_and_ranges_follow_each_other() {
        let at = |partition| TopicPartition::new("shop.public.orders", partition);
        let range = |from, next| OffsetRange { from, next };
        let mut builder = builder(None);
        builder.start(at(0), 10).unwrap();
        assert!(!builder.has_progress());
        builder.push(Decoded::Consumed(record(0, 12, ""), Consumed::Tombstone)).unwrap();
        builder.push(Decoded::Consumed(record(1, 4, ""), Consumed::Heartbeat)).unwrap();
        assert!(builder.has_progress());
        let first = builder.finish().unwrap();
        assert_eq!(first.rows.num_rows(), 0);
        assert_eq!(first.ranges, [(at(0), range(10, 13)), (at(1), range(4, 5))].into());
        assert_eq!(first.counts, ChangeCounts { tombstones: 1, heartbeats: 1, ..Default::default() });
        assert!(!builder.has_progress());
        builder.advance(&at(0), 15);
        builder.advance(&at(1), 2);
        assert_eq!(builder.finish().unwrap().ranges, [(at(0), range(13, 15))].into());
        builder.start(at(0), 10).unwrap();
        builder.push(Decoded::Consumed(record(0, 10, ""), Consumed::Transaction)).unwrap();
        assert_eq!(builder.finish().unwrap().ranges, [(at(0), range(10, 11))].into());
    }

    #[test]
    fn an_offset_given_again_is_refused() {
        let mut builder = builder(None);
        builder.push(change(5, None, None)).unwrap();
        let error = builder.push(change(5, None, None)).unwrap_err();
        insta::assert_snapshot!(
            error, @"offset 5 of `shop.public.orders/0` was given to a batch that already stands at 6");
        // Nothing of what came before it is lost.
        let more = [6, 7, 7, 8].map(|offset| change(offset, None, Some(r#"{"id":1}"#)));
        assert!(matches!(builder.push_all(more), Err(Error::Repeated { offset: 7, next: 8, .. })));
        assert_eq!(builder.rows(), 3);
        let error = builder.start(TopicPartition::new("shop.public.orders", 0), 0).unwrap_err();
        insta::assert_snapshot!(
            error, @"`shop.public.orders/0` was started anew while a batch stands at its offset 8");
        let full = Error::Full { bytes: 1 << 30, more: 2048 };
        insta::assert_snapshot!(full, @"a batch of 1073741824 bytes cannot take another record of 2048");
        insta::assert_snapshot!(full.hint().unwrap(), @"lower `commit.bytes` so that a batch is committed earlier");
    }

    #[test]
    fn the_size_grows_with_what_is_pushed_and_starts_again() {
        let mut builder = builder(orders());
        builder.push(change(0, None, Some(&format!(r#"{{"status":"{}"}}"#, "x".repeat(10_000))))).unwrap();
        let once = builder.bytes();
        assert!((10_000..12_000).contains(&once), "{once}");
        let batch = builder.finish().unwrap();
        assert_eq!((builder.bytes(), builder.rows()), (0, 0));
        assert!(
            once > batch
                .rows
                .slice(0, 1)
                .columns()
                .iter()
                .map(|c| c.to_data().get_slice_memory_size().unwrap())
                .sum::<usize>()
                / 2
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn any_image_becomes_one_row(images in prop::collection::vec(any_image(), 1..20)) {
            let mut kept = TableImages::from(orders());
            kept.evolution = Evolution::Evolve;
            for mut builder in [builder(None), builder(orders()), ChangeBatchBuilder::new(kept, 0, Clock::system())] {
                for (offset, image) in images.iter().enumerate() {
                    let Decoded::Change(mut event) = change(offset as i64, None, Some("")) else { continue };
                    event.after = Some(ByteString::from(String::from_utf8_lossy(image).into_owned()).into());
                    builder.push(Decoded::Change(event)).unwrap();
                }
                let batch = builder.finish().unwrap();
                prop_assert_eq!(batch.rows.num_rows(), images.len());
                prop_assert_eq!(batch.counts.changes + batch.counts.rejected, images.len() as u64);
                let errors = text(&batch, layout::ERROR).iter().flatten().count() as u64;
                prop_assert_eq!(errors, batch.counts.rejected);
                let range = OffsetRange { from: 0, next: images.len() as i64 };
                prop_assert_eq!(batch.ranges.values().copied().collect::<Vec<_>>(), vec![range]);
            }
        }
    }

    /// Random text, and objects that look like rows with any kind of value in any column.
    fn any_image() -> impl Strategy<Value = Vec<u8>> {
        let name = prop::sample::select(vec!["id", "status", "total", "note", "image", "placed_at", "other"]);
        let value = prop_oneof![
            Just("null".to_string()),
            any::<i64>().prop_map(|number| number.to_string()),
            any::<f64>().prop_map(|number| format!("{number:e}")),
            "\"[A-Za-z0-9+/]{0,12}={0,2}\"",
            "\"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\\.[0-9]{0,10})?(Z|[+-][0-9:]{0,6})\"",
            any::<String>().prop_map(|text| serde_json::Value::String(text).to_string()),
            Just("{\"scale\":2,\"value\":\"AQ==\"}".to_string()),
            Just("\"__debezium_unavailable_value\"".to_string()),
            "\\PC{0,8}",
        ];
        let object = prop::collection::vec((name, value), 0..7).prop_map(|fields| {
            let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            format!("{{{}}}", fields.join(",")).into_bytes()
        });
        prop_oneof![1 => prop::collection::vec(any::<u8>(), 0..64), 9 => object]
    }
}
