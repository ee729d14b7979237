//! What is known of a table's lane, from the side that gives it work.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::RETRY_FIRST;
use super::pending::{Chunk, Pending};
use crate::error::Error;
use crate::ids::TableName;
use crate::offsets::{RecordMark, TopicPartition};
use crate::pipeline::Breaker;
use crate::pipeline::lane::Work;

/// So many chunks keep a lane at work. More of one table need not be read ahead than this: the client does that.
const ENOUGH_CHUNKS: usize = 4;

/// A table that is read into, and its lane.
pub(super) struct Table {
    pub(super) name: TableName,
    pub(super) topics: BTreeSet<Arc<str>>,
    pub(super) work: mpsc::Sender<Work>,
    pub(super) task: JoinHandle<()>,
    /// Read and not handed over.
    pub(super) pending: Pending,
    /// Handed over, and not decoded yet.
    pub(super) bytes_waiting: usize,
    pub(super) bytes_staged: usize,
    /// What the next commit makes durable.
    pub(super) uncommitted: Uncommitted,
    /// Since when a commit that was asked for is under way.
    pub(super) committing_since: Option<Instant>,
    /// Since when there is no room for more of it.
    pub(super) full_since: Option<Instant>,
    /// Whether its partitions are held back, so that the others' can be read on.
    pub(super) is_paused: bool,
    /// Partitions that wait until the table says how far they are.
    pub(super) joining: BTreeSet<TopicPartition>,
    pub(super) state: State,
    pub(super) failures: u32,
    /// Whether the observer was last told that it fares well.
    pub(super) is_well: bool,
    pub(super) breaker: Breaker,
}

#[derive(Default)]
pub(super) struct Uncommitted {
    pub(super) rows: usize,
    pub(super) bytes: usize,
    pub(super) since: Option<Instant>,
}

pub(super) enum State {
    Reading,
    /// Asked how far it is. Nothing is read for it meanwhile.
    Opening,
    /// To be asked at this time, after it failed.
    Waiting(Instant),
    Stopped(Error),
}

impl Table {
    pub(super) fn is_stopped(&self) -> bool {
        matches!(self.state, State::Stopped(_))
    }

    pub(super) fn is_reading(&self) -> bool {
        matches!(self.state, State::Reading)
    }

    pub(super) fn is_committing(&self) -> bool {
        self.committing_since.is_some()
    }

    pub(super) fn has_uncommitted(&self) -> bool {
        self.uncommitted.since.is_some()
    }

    pub(super) fn bytes_in_flight(&self) -> usize {
        self.bytes_waiting + self.pending.bytes()
    }

    /// Whether it has enough in flight, or as much as there is room left for all: one that is slow leaves half of the room
    /// to the others, two leave a third. Each may have a chunk. One that is held back goes on when half of it is done.
    pub(super) fn is_full(&self, room: usize) -> bool {
        let in_flight = if self.is_paused { 2 * self.bytes_in_flight() } else { self.bytes_in_flight() };
        let chunk = self.pending.chunk_bytes();
        in_flight >= room.clamp(chunk, ENOUGH_CHUNKS * chunk)
    }

    /// Hands over as much as the lane has room for: full chunks, or whatever is pending.
    pub(super) fn hand_over(&mut self, also_small: bool) {
        // One place stays free for a commit.
        while self.work.capacity() > 1 && (also_small || self.pending.has_full_chunk()) {
            let Some(Chunk { records, positions, bytes, .. }) = self.pending.pop() else { return };
            if self.work.try_send(Work::Records { records, positions, bytes }).is_err() {
                // The lane has ended, which will be noticed.
                return;
            }
            self.bytes_waiting += bytes;
        }
    }

    /// Commits what was handed over. What is still pending is for the next commit.
    pub(super) fn begin_commit(&mut self) {
        if self.is_committing() || !self.is_reading() {
            return;
        }
        self.hand_over(true);
        if self.work.try_send(Work::Commit).is_ok() {
            self.committing_since = Some(Instant::now());
            let (rows, bytes, since) = (self.pending.rows(), self.pending.payload_bytes(), self.pending.since());
            self.uncommitted = Uncommitted { rows, bytes, since };
        }
    }

    /// Sees to it that a start notices what was noticed now.
    pub(super) async fn recall(&mut self, at: TopicPartition, mark: RecordMark) {
        let (done, is_done) = oneshot::channel();
        if self.work.send(Work::Recall { at, mark, done }).await.is_ok() {
            // Nothing is ever sent.
            let _ = is_done.await;
        }
    }

    /// Asks the lane how far its table is. It forgets everything else.
    pub(super) fn reopen(&mut self) {
        self.pending.clear();
        self.uncommitted = Uncommitted::default();
        self.committing_since = None;
        match self.work.try_send(Work::Reopen) {
            Ok(()) => self.state = State::Opening,
            // Its queue is full of what it will skip.
            Err(_) => self.state = State::Waiting(Instant::now() + RETRY_FIRST),
        }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        self.task.abort();
    }
}
