//! The partitions being read: how far each one is, and its records as they come.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset};

use crate::change::RawRecord;
use crate::offsets::{Positions, RecordMark, TopicPartition};
use crate::source::error::{Error, Result};

/// Records are copied out of the client into pieces of memory up to this size, which their bytes then share.
const PIECE_BYTES: usize = 256 * 1024;

/// The partitions being read.
#[derive(Default)]
pub(super) struct Assigned {
    pub(super) partitions: Vec<Reading>,
    pub(super) index: HashMap<Arc<str>, BTreeMap<i32, usize>>,
    /// Which one the last record was of, since records come in runs.
    last: usize,
}

pub(super) struct Reading {
    pub(super) at: TopicPartition,
    pub(super) next: i64,
    /// The record before `next` that has to be seen again before any other.
    pub(super) unverified: Option<RecordMark>,
    pub(super) is_paused: bool,
    /// Whether the client has it.
    pub(super) is_started: bool,
    /// Whether `next` moved since the last fetch ended.
    pub(super) moved: bool,
    /// The position that the client told when the partition was put to where it is read from. It may be from before
    /// that, so it counts for nothing until it is another one or a record came.
    pub(super) stale: Option<i64>,
}

/// What an offset query found: the oldest offset, and the one behind the newest record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) first: i64,
    pub(super) end: i64,
}

impl Reading {
    /// The offset the client is sent to.
    pub(super) fn start(&self) -> i64 {
        self.unverified.map_or(self.next, |mark| mark.offset)
    }

    /// Compares a record from before the position with the one that was read there. What is compacted away or was
    /// removed meanwhile cannot be compared.
    fn verify(&mut self, message: &BorrowedMessage<'_>) -> Result<()> {
        let Some(mark) = self.unverified.take() else { return Ok(()) };
        if mark.offset != message.offset() {
            tracing::debug!("`{}`: the record at offset {} is no longer there to be compared", self.at, mark.offset);
            return Ok(());
        }
        let found = record(&self.at, message, &mut Arena::default());
        if RecordMark::of(&found) == mark {
            return Ok(());
        }
        Err(Error::Replaced { at: self.at.clone(), offset: mark.offset, mark: Some(mark) })
    }
}

impl Assigned {
    pub(super) fn set(&mut self, at: &TopicPartition, next: i64, unverified: Option<RecordMark>) {
        let (at, stale) = (at.clone(), None);
        let index = self.index.entry(at.topic.clone()).or_default().entry(at.partition);
        match index {
            std::collections::btree_map::Entry::Occupied(index) => {
                let reading = &mut self.partitions[*index.get()];
                *reading = Reading { at, next, unverified, moved: false, stale, ..*reading };
            }
            std::collections::btree_map::Entry::Vacant(index) => {
                index.insert(self.partitions.len());
                let (is_paused, is_started) = (false, false);
                self.partitions.push(Reading { at, next, unverified, is_paused, is_started, moved: false, stale });
            }
        }
    }

    pub(super) fn remove(&mut self, partitions: &[TopicPartition]) {
        if partitions.is_empty() {
            return;
        }
        self.partitions.retain(|reading| !partitions.contains(&reading.at));
        self.index.clear();
        for (index, reading) in self.partitions.iter().enumerate() {
            self.index.entry(reading.at.topic.clone()).or_default().insert(reading.at.partition, index);
        }
    }

    pub(super) fn index_of(&self, topic: &str, partition: i32) -> Option<usize> {
        self.index.get(topic)?.get(&partition).copied()
    }

    /// Where those of the partitions are that are being read.
    pub(super) fn indices<'a>(&self, partitions: impl IntoIterator<Item = &'a TopicPartition>) -> Vec<usize> {
        partitions.into_iter().filter_map(|at| self.index_of(&at.topic, at.partition)).collect()
    }

    pub(super) fn find(&mut self, topic: &str, partition: i32) -> Option<&mut Reading> {
        let is_last = |reading: &Reading| reading.at.partition == partition && *reading.at.topic == *topic;
        if !self.partitions.get(self.last).is_some_and(is_last) {
            self.last = self.index_of(topic, partition)?;
        }
        self.partitions.get_mut(self.last)
    }

    /// A message as a record. Nothing when it is not being read, or is behind the position, which is only said of the
    /// record to see again and of what the client had read before it was told to read elsewhere.
    pub(super) fn take(&mut self, message: &BorrowedMessage<'_>, arena: &mut Arena) -> Result<Option<RawRecord>> {
        if self.find(message.topic(), message.partition()).is_none() {
            return Ok(None);
        }
        let reading = &mut self.partitions[self.last];
        if !reading.is_started {
            return Ok(None);
        }
        reading.stale = None;
        reading.verify(message)?;
        if message.offset() < reading.next {
            return Ok(None);
        }
        reading.next = message.offset() + 1;
        reading.moved = true;
        arena.is_for(self.last);
        Ok(Some(record(&reading.at, message, arena)))
    }

    pub(super) fn take_moved(&mut self) -> Positions {
        let mut positions = Positions::new();
        for reading in &mut self.partitions {
            if std::mem::take(&mut reading.moved) {
                positions.insert(reading.at.clone(), reading.next);
            }
        }
        positions
    }
}

/// Where the bytes of records are copied to. Those of two partitions never share a piece: a record that waits would keep
/// the memory of all that came with it, of a table that is long written.
#[derive(Default)]
pub(in crate::source) struct Arena {
    piece: BytesMut,
    /// How large the last piece was.
    size: usize,
    of: Option<usize>,
}

impl Arena {
    /// What comes next is of this partition.
    fn is_for(&mut self, partition: usize) {
        if self.of.replace(partition) != Some(partition) {
            (self.piece, self.size) = (BytesMut::new(), 0);
        }
    }

    /// Pieces grow with a run of records, so that one that comes alone takes no more than it needs.
    fn copy(&mut self, bytes: &[u8]) -> Bytes {
        if self.piece.capacity() < bytes.len() {
            self.size = (2 * self.size).min(PIECE_BYTES).max(bytes.len());
            self.piece = BytesMut::with_capacity(self.size);
        }
        self.piece.extend_from_slice(bytes);
        self.piece.split().freeze()
    }
}

pub(in crate::source) fn record(at: &TopicPartition, message: &BorrowedMessage<'_>, arena: &mut Arena) -> RawRecord {
    RawRecord {
        topic: at.topic.clone(),
        partition: at.partition,
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key().map(|key| arena.copy(key)),
        payload: message.payload().map(|payload| arena.copy(payload)),
    }
}

pub(super) fn absolute(offset: Offset) -> Option<i64> {
    match offset {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }
}

pub(super) fn check_bounds(at: &TopicPartition, offset: i64, bounds: Bounds) -> Result<()> {
    let Bounds { first, end } = bounds;
    if offset < first {
        return Err(Error::Expired { at: at.clone(), offset, first });
    }
    if offset > end {
        return Err(Error::PastEnd { at: at.clone(), offset, end });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_that_waits_keeps_the_memory_of_no_other_partition() {
        let mut arena = Arena::default();
        let (mut hot, mut cold) = (Vec::new(), Vec::new());
        for number in 0..1_000 {
            arena.is_for(usize::from(number % 10 == 9));
            let copied = arena.copy(&[b'x'; 1_000]);
            if number % 10 == 9 { &mut cold } else { &mut hot }.push(copied);
        }
        drop(arena);
        drop(hot);
        assert!(cold.iter().all(Bytes::is_unique));
    }

    #[test]
    fn a_run_of_records_shares_pieces_that_grow() {
        let mut arena = Arena::default();
        arena.is_for(3);
        arena.copy(&[b'x'; 1_000]);
        assert_eq!(arena.size, 1_000);
        let run: Vec<Bytes> = (0..10_000).map(|_| arena.copy(&[b'y'; 1_000])).collect();
        assert!(run.iter().all(|bytes| bytes[..] == [b'y'; 1_000]));
        let together = run.windows(2).filter(|two| two[0].as_ptr_range().end == two[1].as_ptr()).count();
        assert!(together > 9_900, "{together}");
        let large = arena.copy(&vec![b'z'; 3 * PIECE_BYTES]);
        assert_eq!(large.len(), 3 * PIECE_BYTES);
    }
}
