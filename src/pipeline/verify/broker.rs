//! A bronze table against its topics: what the broker has, bronze has, and nothing besides.
//!
//! The part of each partition that the broker still keeps, up to the marker, is read again, record by record. A record
//! that makes a row must have one; one that makes none must have none; an offset without a record is accounted for. Some
//! records are decoded again, and what they say is compared with the rows there are.
//!
//! A record that was read in several epochs of the table, while its topic stayed the same, makes a row in each.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Int32Type, Int64Type, Schema};
use arrow::error::ArrowError;
use bytes::Bytes;
use futures::TryStreamExt;
use roaring::RoaringTreemap;

use super::bronze::Held;
use super::epochs::{self, Epochs, Span};
use super::report::{At, Check, Difference, Kind, Tally};
use super::rows::{self, Identity, Manner, Rows};
use super::slice::{Slice, hash};
use super::{Failure, Verifier};
use crate::batch::ChangeBatchBuilder;
use crate::bronze;
use crate::change::{Consumed, Decoded, RawRecord};
use crate::decode::Decoder;
use crate::engine::{self, register};
use crate::error::Result;
use crate::layout;
use crate::offsets::{self, Offsets, TopicPartition};
use crate::pipeline::{Dialect, Route};
use crate::quality::literal;
use crate::source::{Assignment, Bounds, FetchLimits, KafkaAdmin, KafkaConfig, KafkaSource, Source, Start};
use crate::table::{At as AtSnapshot, Table};

pub(super) const CHECK: &str = "broker";

/// Decoded records are compared when there are so many, or so many bytes of them.
const COMPARED_AT_ONCE: usize = 8192;
const COMPARED_BYTES: usize = 32 << 20;

const LIMITS: FetchLimits = FetchLimits { records: 8192, bytes: 16 << 20, wait: Duration::from_millis(500) };

/// A broker that is silent for so long, while there is something to read, does not answer.
const SILENCES: usize = 120;

/// How the topics are asked, and what their records become.
pub struct Broker<'a> {
    pub admin: &'a KafkaAdmin,
    pub kafka: KafkaConfig,
    pub dialect: Dialect,
    pub route: &'a (dyn Fn(&str) -> Option<Route> + Send + Sync),
}

/// The part of a partition that is read again.
#[derive(Debug, Clone)]
struct Part {
    from: i64,
    to: i64,
    /// The epochs that should have rows of it, the present one first.
    spans: Vec<Span>,
    /// Whether ingestion has read it; else rows are there by backfills alone.
    is_read: bool,
}

impl Part {
    /// The epochs in which an offset has a row, if its record makes one. What none has read, and is below the marker, is
    /// missing, unless somebody moved the marker past it.
    fn expected(&self, offset: i64) -> Vec<i32> {
        let mut expected: Vec<i32> = self.spans.iter().filter(|span| span.has(offset)).map(|span| span.epoch).collect();
        if expected.is_empty() && self.is_read && !self.spans.iter().any(|span| span.passed.contains(offset)) {
            expected.extend(self.spans.first().map(|span| span.epoch));
        }
        expected
    }
}

/// Compares what the broker keeps of the table's topics with its rows.
pub(super) async fn against_topics(
    verifier: &Verifier<'_>,
    broker: &Broker<'_>,
    table: &Table,
    held: &Held,
) -> Result<Check> {
    let marker = table.marker(offsets::MARKER).map_or(Ok(Offsets::default()), |text| Offsets::parse(&text));
    let Ok(marker) = marker else {
        return Ok(Check::skipped(CHECK, "there is no marker that says what was read"));
    };
    let epochs = Epochs::of(table, marker)?;
    if epochs.partitions().is_empty() {
        return Ok(Check::skipped(CHECK, "there is no marker that says what was read"));
    }
    let mut tally = Tally::new(CHECK, "records", verifier.options.show);
    epochs::apart(&epochs, held).into_iter().for_each(|note| tally.note(note));
    let parts = broker.parts(&epochs, &mut tally).await?;
    let mut reading = Reading {
        verifier,
        broker,
        table,
        held,
        epochs: &epochs,
        decoder: Decoder::new(broker.dialect.format),
        sample: sample(verifier, &parts),
        sampled: BTreeMap::new(),
        consumed: BTreeMap::new(),
        earlier: BTreeMap::new(),
        passed: BTreeMap::new(),
        unsaid: 0,
        not_alike: 0,
        replayed: 0,
        tally,
    };
    let seen =
        broker.each_record(&parts, "read_committed", async |record| reading.record(&parts, record).await).await?;
    for epoch in std::mem::take(&mut reading.sampled) {
        reading.compare(epoch).await?;
    }
    reading.account(&parts, &seen, broker).await?;
    Ok(reading.finish())
}

fn sample(verifier: &Verifier<'_>, parts: &BTreeMap<TopicPartition, Part>) -> Slice {
    let offsets = parts.values().map(|part| part.to - part.from).sum::<i64>();
    match verifier.options.sample {
        Some(wanted) => Slice::sample(wanted, offsets.unsigned_abs()),
        None => Slice::WHOLE,
    }
}

impl Broker<'_> {
    /// What of each partition is below the marker and still there.
    async fn parts(&self, epochs: &Epochs, tally: &mut Tally) -> Result<BTreeMap<TopicPartition, Part>> {
        let there: BTreeSet<TopicPartition> = self.admin.partitions().await?.into_iter().collect();
        let (wanted, gone): (Vec<_>, Vec<_>) = epochs.partitions().into_iter().partition(|at| there.contains(at));
        gone.iter().for_each(|at| tally.note(format!("`{at}` is not there any more")));
        let bounds = self.admin.bounds(wanted.clone()).await?;
        let mut parts = BTreeMap::new();
        for at in wanted {
            let Some(Bounds { first, end }) = bounds.get(&at).copied() else { continue };
            let (spans, _) = epochs.spans(&at);
            let read = epochs.offsets.next(&at.topic, at.partition);
            let added = spans.iter().filter_map(|span| span.backfilled.iter().last()).map(|range| range.next).max();
            let next = read.or(added).unwrap_or(0);
            if read.is_some() && next > end {
                tally.add(Difference {
                    column: Some(offsets::MARKER.to_string()),
                    expected: Some(format!("at most {end}, where the topic ends")),
                    found: Some(next.to_string()),
                    at: Some(place(&at, next)),
                    ..Difference::new(Kind::Differs)
                });
            }
            if first > 0 {
                tally.note(format!("`{at}` is kept from offset {first} on: what was before is not compared"));
            }
            let (from, to) = (first, next.min(end));
            if from < to {
                parts.insert(at, Part { from, to, spans, is_read: read.is_some() });
            }
        }
        Ok(parts)
    }

    /// Reads the parts, and gives which of their offsets have a record.
    async fn each_record(
        &self,
        parts: &BTreeMap<TopicPartition, Part>,
        isolation: &str,
        mut take: impl AsyncFnMut(RawRecord) -> Result<()>,
    ) -> Result<BTreeMap<TopicPartition, RoaringTreemap>> {
        let mut seen: BTreeMap<TopicPartition, RoaringTreemap> = BTreeMap::new();
        if parts.is_empty() {
            return Ok(seen);
        }
        let mut kafka = KafkaConfig { assignment: Assignment::Everything, ..self.kafka.clone() };
        kafka.properties.insert("isolation.level".to_string(), isolation.to_string());
        let mut source = KafkaSource::connect(kafka)?;
        let starts = parts.iter().map(|(at, part)| (at.clone(), Start::At { next: part.from, last: None }));
        let mut positions = source.assign(&starts.collect()).await?;
        let mut silences = 0;
        let is_behind = |at: &TopicPartition, next: i64| parts.get(at).is_some_and(|part| next < part.to);
        while positions.iter().any(|(at, next)| is_behind(at, *next)) {
            let fetched = source.fetch(LIMITS).await?;
            silences = if fetched.records.is_empty() && fetched.positions.is_empty() { silences + 1 } else { 0 };
            if silences > SILENCES {
                let waiting = positions.iter().find(|(at, next)| is_behind(at, **next));
                let at = waiting.map(|(at, next)| format!("`{at}` at offset {next}")).unwrap_or_default();
                return Err(BrokerError::Silent { at }.into());
            }
            for record in fetched.records {
                let at = TopicPartition::new(record.topic.clone(), record.partition);
                if is_behind(&at, record.offset) {
                    seen.entry(at).or_default().insert(record.offset as u64);
                    take(record).await?;
                }
            }
            let done: Vec<TopicPartition> = fetched
                .positions
                .iter()
                .filter(|(at, next)| !is_behind(at, **next))
                .map(|(at, _)| at.clone())
                .collect();
            positions.extend(fetched.positions);
            // What is behind the marker is nobody's business here.
            source.pause(&done)?;
        }
        Ok(seen)
    }
}

#[derive(Debug, thiserror::Error)]
enum BrokerError {
    #[error("the broker has nothing more to give of {at}, and does not say that it ends there")]
    Silent { at: String },

    #[error("records of table `{table}` cannot be made into rows again")]
    Batch {
        table: crate::ids::TableName,
        #[source]
        source: crate::batch::Error,
    },
}

impl crate::error::Situation for BrokerError {
    fn kind(&self) -> crate::error::Kind {
        match self {
            BrokerError::Silent { .. } => crate::error::Kind::Unavailable,
            BrokerError::Batch { .. } => crate::error::Kind::Bug,
        }
    }
}

fn place(at: &TopicPartition, offset: i64) -> At {
    At { topic: at.topic.to_string(), partition: at.partition, offset }
}

struct Reading<'a> {
    verifier: &'a Verifier<'a>,
    broker: &'a Broker<'a>,
    table: &'a Table,
    held: &'a Held,
    epochs: &'a Epochs,
    decoder: Decoder,
    sample: Slice,
    /// By the epoch whose rows they are compared with.
    sampled: BTreeMap<i32, Sampled>,
    /// Records that make no row, by what they are.
    consumed: BTreeMap<&'static str, u64>,
    /// Records whose rows are looked for in an earlier epoch.
    earlier: BTreeMap<i32, u64>,
    /// Records of each topic that somebody moved the marker past.
    passed: BTreeMap<String, u64>,
    /// Rows of files that do not say a record's key or time.
    unsaid: u64,
    /// Rows that were made by other declarations than there are now.
    not_alike: u64,
    replayed: u64,
    tally: Tally,
}

/// Records that are compared next.
#[derive(Default)]
struct Sampled {
    decoded: Vec<Decoded>,
    payloads: HashMap<Identity, (At, Option<Bytes>)>,
    bytes: usize,
}

impl Reading<'_> {
    async fn record(&mut self, parts: &BTreeMap<TopicPartition, Part>, record: RawRecord) -> Result<()> {
        let at = TopicPartition::new(record.topic.clone(), record.partition);
        let Some(part) = parts.get(&at) else { return Ok(()) };
        let expected = part.expected(record.offset);
        if expected.is_empty() {
            // Else it lies between what backfills have done with, and nobody has read it yet.
            let is_passed = part.spans.iter().any(|span| span.passed.contains(record.offset));
            let mut makes_row = |record| !matches!(self.decoder.decode(record), Decoded::Consumed(..));
            if is_passed && makes_row(record) {
                *self.passed.entry(at.topic.to_string()).or_default() += 1;
            }
            return Ok(());
        }
        self.tally.checked += 1;
        let place = place(&at, record.offset);
        let key = record.key.as_ref().map(|key| String::from_utf8_lossy(key).into_owned());
        let decoded = self.decoder.decode(record.clone());
        let what = match &decoded {
            Decoded::Change(event) => format!("the row of an event `{}`", event.op.letter()),
            Decoded::Rejected(_) => "the row of a record that cannot be read".to_string(),
            Decoded::Consumed(_, consumed) => {
                let name = named(*consumed);
                *self.consumed.entry(name).or_default() += 1;
                let has_row = |epoch: &i32| self.has_row(*epoch, &at, record.offset);
                if let Some(epoch) = part.spans.iter().map(|span| span.epoch).find(has_row) {
                    self.tally.add(Difference {
                        key,
                        expected: Some(format!("no row: it is one of the {name}")),
                        found: Some(format!("a row{}", self.in_epoch(epoch))),
                        at: Some(place),
                        ..Difference::new(Kind::Unexpected)
                    });
                }
                return Ok(());
            }
        };
        let identity = identity(&place);
        let is_sampled = self.sample.holds(hash(self.verifier.options.seed, &identity));
        for epoch in expected {
            if epoch != self.epochs.now {
                *self.earlier.entry(epoch).or_default() += 1;
            }
            if !self.has_row(epoch, &at, record.offset) {
                self.tally.add(Difference {
                    key: key.clone(),
                    expected: Some(format!("{what}{}", self.in_epoch(epoch))),
                    at: Some(place.clone()),
                    ..Difference::new(Kind::Missing)
                });
                continue;
            }
            if !is_sampled {
                continue;
            }
            let sampled = self.sampled.entry(epoch).or_default();
            sampled.bytes += record.payload.as_ref().map_or(0, Bytes::len) + 256;
            sampled.payloads.insert(identity.clone(), (place.clone(), record.payload.clone()));
            sampled.decoded.push(decoded.clone());
            if sampled.decoded.len() >= COMPARED_AT_ONCE || sampled.bytes >= COMPARED_BYTES {
                let sampled = std::mem::take(sampled);
                self.compare((epoch, sampled)).await?;
            }
        }
        Ok(())
    }

    fn has_row(&self, epoch: i32, at: &TopicPartition, offset: i64) -> bool {
        self.held.get(&epoch).and_then(|held| held.get(at)).is_some_and(|held| held.contains(offset as u64))
    }

    /// Which rows are meant, where that is not clear.
    fn in_epoch(&self, epoch: i32) -> String {
        if epoch == self.epochs.now { String::new() } else { format!(" in epoch {epoch}") }
    }

    /// Makes rows of the sampled records, and compares them with those there are.
    async fn compare(&mut self, (epoch, sampled): (i32, Sampled)) -> Result<()> {
        let Sampled { decoded, payloads, .. } = sampled;
        let Some(route) = decoded.first().and_then(|of| (self.broker.route)(&of.record().topic)) else { return Ok(()) };
        let failed = |source| BrokerError::Batch { table: self.table.name().clone(), source };
        let images = bronze::images(self.table, route.shape.clone(), route.evolution)?;
        let mut builder = ChangeBatchBuilder::new(images, 0, self.verifier.lake.clock().clone())
            .with_placeholder(self.broker.dialect.placeholder.clone());
        let mut expected = Rows::new(Arc::new(Schema::empty()));
        for decoded in decoded {
            // It says when it is full.
            if builder.rows() > 0 && builder.bytes() >= COMPARED_BYTES {
                push(&mut expected, &builder.finish().map_err(failed)?.rows).map_err(Failure::from)?;
            }
            builder.push(decoded).map_err(failed)?;
        }
        push(&mut expected, &builder.finish().map_err(failed)?.rows).map_err(Failure::from)?;
        let found = self.found(epoch, &payloads).await?;
        self.difference(epoch, &expected, &found, &payloads).map_err(Failure::from)?;
        Ok(())
    }

    /// The rows that bronze has of these records in an epoch.
    async fn found(&self, epoch: i32, of: &HashMap<Identity, (At, Option<Bytes>)>) -> Result<Rows> {
        let mut ranges: BTreeMap<(&str, i32), (i64, i64)> = BTreeMap::new();
        for (at, _) in of.values() {
            let range = ranges.entry((&at.topic, at.partition)).or_insert((at.offset, at.offset));
            *range = (range.0.min(at.offset), range.1.max(at.offset));
        }
        let is_in: Vec<String> = ranges
            .into_iter()
            .map(|((topic, partition), (first, last))| {
                format!(
                    "({} = {} AND {} = {partition} AND {} BETWEEN {first} AND {last})",
                    layout::TOPIC,
                    literal(topic),
                    layout::PARTITION,
                    layout::OFFSET
                )
            })
            .collect();
        let session = self.verifier.engine.session();
        register(&session, self.table.name(), self.table.view(AtSnapshot::Head)?)?;
        let sql = format!(
            "SELECT * FROM {} WHERE coalesce({}, 0) = {epoch} AND ({})",
            self.table.name(),
            layout::EPOCH,
            is_in.join(" OR ")
        );
        let mut rows = engine::query(&session, &sql).await?;
        let mut found = Rows::new(flat_schema(self.table.schema()?.as_ref()));
        while let Some(batch) = rows.try_next().await.map_err(engine::Error::from)? {
            let keep: BooleanArray = identities(&batch).map(|identity| Some(of.contains_key(&identity))).collect();
            let batch = filter_record_batch(&batch, &keep).map_err(Failure::from)?;
            push(&mut found, &batch).map_err(Failure::from)?;
        }
        Ok(found)
    }

    fn difference(
        &mut self,
        epoch: i32,
        expected: &Rows,
        found: &Rows,
        payloads: &HashMap<Identity, (At, Option<Bytes>)>,
    ) -> Result<(), ArrowError> {
        let without = [layout::INGESTED_AT, layout::REPLAYED_AT, layout::EPOCH, layout::ERROR];
        let manner = Manner { without: &without, ..Manner::default() };
        let unlike = rows::compare(expected, found, manner)?;
        let mut passed_over: BTreeSet<Identity> = BTreeSet::new();
        for of in &unlike {
            let (Some(was), Some(is)) = (of.expected_at, of.found_at) else { continue };
            // A record that was corrected says something else than the topic does.
            if found.value(layout::REPLAYED_AT, is).is_some() {
                self.replayed += u64::from(passed_over.insert(of.identity.clone()));
                continue;
            }
            let was_error = expected.value(layout::ERROR, was).is_some();
            let is_error = found.value(layout::ERROR, is).is_some();
            let kept_aside = ["after._unexpected", "before._unexpected"];
            let aside = |rows: &Rows, at| kept_aside.iter().map(|name| rows.value(name, at)).collect::<Vec<_>>();
            let is_alike = was_error == is_error && aside(expected, was) == aside(found, is);
            // Its bytes tell, whatever is made of them now.
            let is_raw =
                is_error && found.bytes(layout::RAW, is) == payloads.get(&of.identity).and_then(|of| of.1.clone());
            if !is_alike && (!is_error || is_raw) {
                self.not_alike += u64::from(passed_over.insert(of.identity.clone()));
            }
        }
        let mut unsaid: BTreeSet<Identity> = BTreeSet::new();
        for of in unlike.into_iter().filter(|of| !passed_over.contains(&of.identity)) {
            let at = payloads.get(&of.identity).map(|(at, _)| at.clone());
            // Files may have a record's value alone.
            let is_unsaid = |name: &str| of.found_at.is_some_and(|place| found.value(name, place).is_none());
            let of_files = [layout::KEY, layout::TIMESTAMP];
            if let (Some(column), Some(at)) = (&of.column, &at)
                && of_files.contains(&column.as_str())
                && is_unsaid(column)
                && self.epochs.is_backfilled(&TopicPartition::new(at.topic.as_str(), at.partition), epoch, at.offset)
            {
                self.unsaid += u64::from(unsaid.insert(of.identity.clone()));
                continue;
            }
            let key = of.expected_at.and_then(|place| expected.value(layout::KEY, place));
            self.tally.add(Difference {
                kind: of.kind,
                key,
                column: of.column,
                expected: of.expected,
                found: of.found,
                at,
                file: None,
            });
        }
        Ok(())
    }

    /// Says what is at the offsets that no record was read of.
    async fn account(
        &mut self,
        parts: &BTreeMap<TopicPartition, Part>,
        seen: &BTreeMap<TopicPartition, RoaringTreemap>,
        broker: &Broker<'_>,
    ) -> Result<()> {
        let none = RoaringTreemap::new();
        // Retention may have taken the beginning meanwhile.
        let bounds = broker.admin.bounds(parts.keys().cloned().collect()).await?;
        let mut gaps: BTreeMap<TopicPartition, Part> = BTreeMap::new();
        let (mut gone, mut without) = (0, 0);
        let mut compacted: Vec<At> = Vec::new();
        for (at, part) in parts {
            let from = bounds.get(at).map_or(part.from, |bounds| bounds.first.max(part.from));
            let seen = seen.get(at).unwrap_or(&none);
            let mut missing = RoaringTreemap::new();
            missing.insert_range(from as u64..part.to.max(from) as u64);
            missing -= seen;
            let mut open = missing.clone();
            for held in part.spans.iter().filter_map(|span| self.held.get(&span.epoch)?.get(at)) {
                let with_row = &missing & held;
                gone += with_row.len();
                compacted.extend(with_row.iter().map(|offset| place(at, offset as i64)));
                open -= with_row;
            }
            without += open.len();
            if let (Some(first), Some(last)) = (open.min(), open.max()) {
                gaps.insert(at.clone(), Part { from: first as i64, to: last as i64 + 1, ..part.clone() });
            }
        }
        if gone > 0 {
            let mut is_compacted: BTreeMap<String, Option<bool>> = BTreeMap::new();
            for topic in compacted.iter().map(|at| at.topic.clone()).collect::<BTreeSet<_>>() {
                let policy = broker.admin.is_compacted(&topic).await;
                is_compacted.insert(topic, policy.ok());
            }
            let (mut taken, mut unknown) = (0, 0);
            for at in compacted {
                match is_compacted.get(&at.topic).copied().flatten() {
                    Some(true) => taken += 1,
                    None => unknown += 1,
                    Some(false) => self.tally.add(Difference {
                        expected: Some("no row: the broker has no such record".to_string()),
                        found: Some("a row".to_string()),
                        at: Some(at),
                        ..Difference::new(Kind::Unexpected)
                    }),
                }
            }
            if taken > 0 {
                self.tally
                    .note(format!("{taken} rows are of records that compaction has taken out of the topic since"));
            }
            if unknown > 0 {
                self.tally.note(format!(
                    "{unknown} rows are of records that the topic does not have any more; the broker did not say whether it \
                     is compacted"
                ));
            }
        }
        if without > 0 {
            let uncommitted = broker.each_record(&gaps, "read_uncommitted", async |_| Ok(())).await?;
            let aborted: u64 = uncommitted
                .iter()
                .map(|(at, all)| {
                    let read = seen.get(at).unwrap_or(&none);
                    (all - read).len()
                })
                .sum();
            let mut what = format!("{without} offsets have no record and no row");
            let rest = without.saturating_sub(aborted);
            match (aborted, rest) {
                (0, _) => what.push_str(": transaction markers, or taken by compaction"),
                (_, 0) => what.push_str(": records of aborted transactions"),
                _ => what.push_str(&format!(
                    ": {aborted} hold records of aborted transactions, {rest} transaction markers or were taken by \
                     compaction"
                )),
            }
            self.tally.note(what);
        }
        Ok(())
    }

    fn finish(mut self) -> Check {
        for (epoch, records) in std::mem::take(&mut self.earlier) {
            self.tally.note(format!("{records} records were compared with the rows of epoch {epoch}"));
        }
        for (topic, records) in std::mem::take(&mut self.passed) {
            self.tally.note(format!(
                "{records} records of `{topic}` have no row: the marker was moved past them by hand, and no backfill \
                 brought them"
            ));
        }
        if !self.consumed.is_empty() {
            let consumed = self.consumed.iter().map(|(name, count)| format!("{count} {name}"));
            let consumed = consumed.collect::<Vec<_>>().join(", ");
            self.tally.note(format!("records that make no row: {consumed}"));
        }
        if self.not_alike > 0 {
            self.tally.note(format!(
                "{} records were not compared by value: they were read by other columns than are declared now",
                self.not_alike
            ));
        }
        if self.unsaid > 0 {
            self.tally.note(format!(
                "{} rows were compared without the record's key or time: they came by a backfill, and do not have it",
                self.unsaid
            ));
        }
        if self.replayed > 0 {
            self.tally.note(format!("{} rows are of records that were corrected and replayed", self.replayed));
        }
        self.tally.finish()
    }
}

fn named(consumed: Consumed) -> &'static str {
    match consumed {
        Consumed::Tombstone => "tombstones",
        Consumed::Heartbeat => "heartbeats",
        Consumed::Transaction => "transaction metadata records",
        Consumed::SchemaChange => "schema changes",
    }
}

fn identity(at: &At) -> Identity {
    let mut bytes = at.topic.as_bytes().to_vec();
    bytes.push(0);
    bytes.extend(at.partition.to_be_bytes());
    bytes.extend(at.offset.to_be_bytes());
    bytes.into_boxed_slice()
}

fn identities(batch: &RecordBatch) -> impl Iterator<Item = Identity> + '_ {
    let topics = batch.column_by_name(layout::TOPIC).and_then(|of| of.as_string_opt::<i32>());
    let partitions = batch.column_by_name(layout::PARTITION).and_then(|of| of.as_primitive_opt::<Int32Type>());
    let offsets = batch.column_by_name(layout::OFFSET).and_then(|of| of.as_primitive_opt::<Int64Type>());
    (0..batch.num_rows()).map(move |row| {
        identity(&At {
            topic: topics.map_or_else(String::new, |of| of.value(row).to_string()),
            partition: partitions.map_or(0, |of| of.value(row)),
            offset: offsets.map_or(0, |of| of.value(row)),
        })
    })
}

fn push(rows: &mut Rows, batch: &RecordBatch) -> Result<(), ArrowError> {
    if batch.num_rows() > 0 {
        rows.push(flat(batch)?, identities(batch));
    }
    Ok(())
}

/// The columns of the row images by themselves: `after.status`.
fn flat_fields(schema: &Schema) -> Vec<(usize, Option<usize>, FieldRef)> {
    let mut fields = Vec::new();
    for (at, field) in schema.fields().iter().enumerate() {
        match field.data_type() {
            DataType::Struct(parts) => {
                for (part, of) in parts.iter().enumerate() {
                    let name = format!("{}.{}", field.name(), of.name());
                    fields.push((at, Some(part), Arc::new(Field::new(name, of.data_type().clone(), true))));
                }
            }
            _ => fields.push((at, None, Arc::new(field.as_ref().clone().with_nullable(true)))),
        }
    }
    fields
}

fn flat_schema(schema: &Schema) -> Arc<Schema> {
    Arc::new(Schema::new(flat_fields(schema).into_iter().map(|(_, _, field)| field).collect::<Vec<_>>()))
}

fn flat(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    let fields = flat_fields(&batch.schema());
    let column = |(at, part, _): &(usize, Option<usize>, FieldRef)| -> Result<ArrayRef, ArrowError> {
        let whole = batch.column(*at);
        let Some(part) = part else { return Ok(whole.clone()) };
        let image = whole.as_struct();
        let field = image.column(*part);
        // Where there is no image, its fields are null.
        let nulls = arrow::buffer::NullBuffer::union(image.nulls(), field.logical_nulls().as_ref());
        Ok(arrow::array::make_array(field.to_data().into_builder().nulls(nulls).build()?))
    };
    let columns = fields.iter().map(column).collect::<Result<Vec<_>, _>>()?;
    let schema = Schema::new(fields.into_iter().map(|(_, _, field)| field).collect::<Vec<_>>());
    RecordBatch::try_new(Arc::new(schema), columns)
}
