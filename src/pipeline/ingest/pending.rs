//! What was read for a table and is not handed over to its lane yet.

use std::collections::VecDeque;

use crate::change::RawRecord;
use crate::offsets::{Positions, TopicPartition};

/// Records are handed to a lane when there are so many of them, or so many bytes: few enough that their columns stay in
/// a processor's cache, and enough that a hand-over costs nothing.
pub(super) const CHUNK_ROWS: usize = 8_192;
pub(super) const CHUNK_BYTES: usize = 4 << 20;

/// Records in the order of offsets within a partition, and how far their partitions were read with them.
#[derive(Default)]
pub(super) struct Chunk {
    pub(super) records: Vec<RawRecord>,
    pub(super) positions: Positions,
    pub(super) bytes: usize,
}

impl Chunk {
    fn is_full(&self) -> bool {
        self.records.len() >= CHUNK_ROWS || self.bytes >= CHUNK_BYTES
    }
}

/// Chunks, of which the last may still grow.
#[derive(Default)]
pub(super) struct Pending {
    chunks: VecDeque<Chunk>,
    bytes: usize,
}

impl Pending {
    pub(super) fn push(&mut self, record: RawRecord, bytes: usize) {
        self.bytes += bytes;
        let chunk = self.growing();
        chunk.bytes += bytes;
        chunk.records.push(record);
    }

    /// The partition was read up to here with what was pushed so far.
    pub(super) fn reached(&mut self, partition: TopicPartition, next: i64) {
        self.growing().positions.insert(partition, next);
    }

    fn growing(&mut self) -> &mut Chunk {
        if self.chunks.back().is_none_or(Chunk::is_full) {
            self.chunks.push_back(Chunk::default());
        }
        let last = self.chunks.len() - 1;
        &mut self.chunks[last]
    }

    /// Whether there is a chunk that will not grow.
    pub(super) fn has_full_chunk(&self) -> bool {
        self.chunks.front().is_some_and(Chunk::is_full)
    }

    /// The chunk to hand over next.
    pub(super) fn pop(&mut self) -> Option<Chunk> {
        let chunk = self.chunks.pop_front()?;
        self.bytes -= chunk.bytes;
        Some(chunk)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn rows(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.records.len()).sum()
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
        let (mut pending, at) = (Pending::default(), TopicPartition::new("t", 0));
        for offset in 0..CHUNK_ROWS as i64 {
            assert!(!pending.has_full_chunk());
            pending.push(record(offset), 10);
        }
        assert!(pending.has_full_chunk());
        pending.reached(at.clone(), CHUNK_ROWS as i64);
        pending.push(record(CHUNK_ROWS as i64), CHUNK_BYTES);
        assert_eq!((pending.rows(), pending.bytes()), (CHUNK_ROWS + 1, 10 * CHUNK_ROWS + CHUNK_BYTES));
        let first = pending.pop().unwrap();
        assert_eq!((first.records.len(), first.bytes), (CHUNK_ROWS, 10 * CHUNK_ROWS));
        assert!(pending.has_full_chunk() && first.positions.is_empty());
        assert_eq!(pending.pop().unwrap().positions[&at], CHUNK_ROWS as i64);
        assert!(pending.pop().is_none() && pending.is_empty() && pending.bytes() == 0);
    }
}
