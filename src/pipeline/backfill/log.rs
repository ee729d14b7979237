//! Reads ranges of offsets of a log into batches of rows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::BackfillError;
use super::held::{Fate, Held};
use super::reader::{Made, Reading, Seen, builder};
use crate::backfilled::RangeSet;
use crate::batch::ChangeBatchBuilder;
use crate::change::RawRecord;
use crate::decode::Decoder;
use crate::error::Result;
use crate::offsets::{OffsetRange, TopicPartition};
use crate::source::{FetchLimits, Source, Start};

/// What is asked of the log at once: as much as a batch holds.
const LIMITS: FetchLimits = FetchLimits { records: 8_192, bytes: 4 << 20, wait: Duration::from_millis(500) };

/// What a partition lacks, the next part last; and how far that was read.
struct Missing {
    parts: Vec<OffsetRange>,
    next: i64,
}

/// Decodes on the makers' threads.
struct Maker {
    decoder: Decoder,
    builder: ChangeBatchBuilder,
}

/// Reads what the table lacks of these ranges. Says whether it came to their end.
pub(super) async fn read_log(
    mut reading: Reading,
    mut source: Box<dyn Source>,
    ranges: BTreeMap<TopicPartition, OffsetRange>,
    held: Arc<Held>,
) -> Result<(Seen, bool)> {
    let mut seen = Seen::default();
    let mut missing: BTreeMap<TopicPartition, Missing> = BTreeMap::new();
    for (at, range) in ranges {
        let parts: Vec<OffsetRange> = held.missing(&at, range).iter().collect();
        let lacking: i64 = parts.iter().map(|part| part.next - part.from).sum();
        reading.told(range.next - range.from - lacking);
        if let Some(first) = parts.first() {
            let next = first.from;
            missing.insert(at, Missing { parts: parts.into_iter().rev().collect(), next });
        }
    }
    if missing.is_empty() {
        return Ok((seen, true));
    }
    source.partitions().await?;
    let start = |next: i64| Start::At { next, last: None };
    source.assign(&missing.iter().map(|(at, of)| (at.clone(), start(of.next))).collect()).await?;
    let mut maker = None;
    while !missing.is_empty() {
        if *reading.stop.borrow() {
            return Ok((seen, false));
        }
        let fetched = source.fetch(LIMITS).await?;
        let mut records: BTreeMap<TopicPartition, Vec<RawRecord>> = BTreeMap::new();
        for record in fetched.records {
            let at = TopicPartition::new(record.topic.clone(), record.partition);
            records.entry(at).or_default().push(record);
        }
        let mut jumps = BTreeMap::new();
        for (at, position) in fetched.positions {
            let Some(of) = missing.get_mut(&at) else { continue };
            let Some(part) = of.parts.last().copied() else { continue };
            let next = position.min(part.next);
            let range = OffsetRange { from: of.next, next: next.max(of.next) };
            let mut records = records.remove(&at).unwrap_or_default();
            records.retain(|record| (range.from..range.next).contains(&record.offset));
            of.next = range.next;
            if next >= part.next {
                of.parts.pop();
                match of.parts.last() {
                    Some(part) => {
                        of.next = part.from;
                        jumps.insert(at.clone(), start(part.from));
                    }
                    None => {
                        missing.remove(&at);
                        source.pause(std::slice::from_ref(&at))?;
                    }
                }
            }
            if !make(&mut reading, &mut maker, at, range, records, &held, &mut seen).await? {
                return Ok((seen, false));
            }
            reading.told(range.next - range.from);
        }
        if !jumps.is_empty() {
            source.assign(&jumps).await?;
        }
    }
    Ok((seen, true))
}

/// Makes rows of a range's records. `false` when nobody takes them any more.
async fn make(
    reading: &mut Reading,
    maker: &mut Option<Maker>,
    at: TopicPartition,
    range: OffsetRange,
    records: Vec<RawRecord>,
    held: &Arc<Held>,
    seen: &mut Seen,
) -> Result<bool> {
    if range.next <= range.from {
        return Ok(true);
    }
    let is_outdated = reading.images.has_changed().unwrap_or(false);
    let images = reading.images.borrow_and_update().clone();
    let mut taken = match maker.take() {
        Some(maker) if !is_outdated => maker,
        _ => Maker {
            decoder: Decoder::new(reading.dialect.format),
            builder: builder(&images, reading.epoch, &reading.clock, &reading.dialect),
        },
    };
    let held = held.clone();
    let job = move || {
        let made = taken.make(at, range, records, &held);
        (taken, made)
    };
    let (taken, made) = reading.makers.run(job).await.ok_or(BackfillError::ThreadsEnded)?;
    *maker = Some(taken);
    let (made, of_range) = made?;
    *seen += of_range;
    Ok(reading.send.send(made).await.is_ok())
}

impl Maker {
    fn make(
        &mut self,
        at: TopicPartition,
        range: OffsetRange,
        records: Vec<RawRecord>,
        held: &Held,
    ) -> Result<(Made, Seen)> {
        // Offsets that hold no record are done with as well.
        let (mut seen, mut bytes, done) = (Seen::default(), 0, RangeSet::from_iter([range]));
        self.builder.start(at.clone(), range.from)?;
        let new = records.into_iter().filter(|record| {
            let size = record.payload.as_ref().map_or(0, |payload| payload.len());
            seen.bytes += size as u64;
            let fate = held.fate(&at, record.offset);
            match fate {
                Fate::New => bytes += size,
                Fate::Row | Fate::Done => seen.there += 1,
                Fate::Ahead => seen.ahead += 1,
            }
            fate == Fate::New
        });
        self.builder.push_all(new.map(|record| self.decoder.decode(record)))?;
        let batch = self.builder.finish()?;
        Ok((Made { batch, at, done, bytes }, seen))
    }
}
