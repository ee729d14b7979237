//! What was read for a table and is not handed over to its lane yet.

use std::collections::VecDeque;

use tokio::time::Instant;

use crate::change::RawRecord;
use crate::offsets::{Positions, TopicPartition};

/// Records are handed to a lane when there are so many of them, or so many bytes: few enough that their columns stay in
/// a processor's cache, and enough that a hand-over costs nothing.
pub(super) const CHUNK_ROWS: usize = 8_192;
pub(super) const CHUNK_BYTES: usize = 4 << 20;

/// What a record takes besides its key and payload.
const RECORD_BYTES: usize = size_of::<RawRecord>();

/// Records in the order of offsets within a partition, and how far their partitions were read with them.
pub(super) struct Chunk {
    pub(super) records: Vec<RawRecord>,
    pub(super) positions: Positions,
    /// What it takes in memory.
    pub(super) bytes: usize,
    /// When the first of it was read.
    since: Instant,
}

/// Chunks, of which the last may still grow.
pub(super) struct Pending {
    chunks: VecDeque<Chunk>,
    bytes: usize,
    rows: usize,
    /// How large a chunk becomes.
    chunk_bytes: usize,
}

impl Pending {
    pub(super) fn new(chunk_bytes: usize) -> Self {
        Pending { chunks: VecDeque::new(), bytes: 0, rows: 0, chunk_bytes }
    }

    pub(super) fn clear(&mut self) {
        *self = Pending::new(self.chunk_bytes);
    }

    /// Takes a record with so many bytes of key and payload.
    pub(super) fn push(&mut self, record: RawRecord, bytes: usize) {
        let bytes = bytes + RECORD_BYTES;
        self.bytes += bytes;
        self.rows += 1;
        let chunk = self.growing();
        chunk.bytes += bytes;
        chunk.records.push(record);
    }

    /// The partition was read up to here with what was pushed so far.
    pub(super) fn reached(&mut self, partition: TopicPartition, next: i64) {
        self.growing().positions.insert(partition, next);
    }

    fn is_full(&self, chunk: &Chunk) -> bool {
        chunk.records.len() >= CHUNK_ROWS || chunk.bytes >= self.chunk_bytes
    }

    fn growing(&mut self) -> &mut Chunk {
        if self.chunks.back().is_none_or(|last| self.is_full(last)) {
            let (records, positions) = (Vec::new(), Positions::new());
            self.chunks.push_back(Chunk { records, positions, bytes: 0, since: Instant::now() });
        }
        let last = self.chunks.len() - 1;
        &mut self.chunks[last]
    }

    /// Whether there is a chunk that will not grow.
    pub(super) fn has_full_chunk(&self) -> bool {
        self.chunks.front().is_some_and(|first| self.is_full(first))
    }

    /// The chunk to hand over next.
    pub(super) fn pop(&mut self) -> Option<Chunk> {
        let chunk = self.chunks.pop_front()?;
        self.bytes -= chunk.bytes;
        self.rows -= chunk.records.len();
        Some(chunk)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(super) fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    /// When the first of it was read.
    pub(super) fn since(&self) -> Option<Instant> {
        self.chunks.front().map(|chunk| chunk.since)
    }

    /// What it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bytes of keys and payloads.
    pub(super) fn payload_bytes(&self) -> usize {
        self.bytes - self.rows * RECORD_BYTES
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: i64) -> RawRecord {
        RawRecord { topic: "t".into(), partition: 0, offset, timestamp_ms: None, key: None, payload: None }
    }

    #[test]
    fn chunks_are_full_by_rows_or_bytes_and_positions_follow_their_records() {
        let (mut pending, at) = (Pending::new(CHUNK_BYTES), TopicPartition::new("t", 0));
        for offset in 0..CHUNK_ROWS as i64 {
            assert!(!pending.has_full_chunk());
            pending.push(record(offset), 10);
        }
        assert!(pending.has_full_chunk());
        pending.reached(at.clone(), CHUNK_ROWS as i64);
        pending.push(record(CHUNK_ROWS as i64), CHUNK_BYTES);
        assert_eq!((pending.rows(), pending.payload_bytes()), (CHUNK_ROWS + 1, 10 * CHUNK_ROWS + CHUNK_BYTES));
        let first = pending.pop().unwrap();
        assert_eq!((first.records.len(), first.bytes), (CHUNK_ROWS, (10 + RECORD_BYTES) * CHUNK_ROWS));
        assert!(pending.has_full_chunk() && first.positions.is_empty());
        assert_eq!(pending.pop().unwrap().positions[&at], CHUNK_ROWS as i64);
        assert!(pending.pop().is_none() && pending.is_empty() && pending.bytes() == 0);
    }

    #[test]
    fn records_that_hold_nothing_take_room_as_well() {
        let mut pending = Pending::new(1_000);
        let read = pending.since();
        (0..100).for_each(|offset| pending.push(record(offset), 0));
        assert!(read.is_none() && pending.since().is_some());
        assert!(pending.has_full_chunk() && pending.bytes() >= 100 * RECORD_BYTES && pending.payload_bytes() == 0);
    }
}
