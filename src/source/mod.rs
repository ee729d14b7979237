//! Records out of a log, partition by partition: Kafka's, or files read as if they were one.
//!
//! In: which partitions to read and from which offset. Out: [`Fetched`]: records as bytes, and how far each partition
//! was read. **Where to start comes from the caller alone**, which has it from its tables' markers: a source keeps no
//! position of its own, and never goes on from somewhere else than where it was told.
//!
//! It does not know the formats of records, nor what becomes of them.

mod client;
mod embedded;
mod error;
mod files;
mod history;
mod kafka;
mod kafka_admin;
mod lines;
mod member;
mod msk;
mod oidc;
mod ownership;
mod parquet;
mod pattern;
mod token;
mod witness;

pub use self::parquet::ParquetRows;
pub use client::STATISTICS_EVERY;
pub use embedded::{DurableHandle, EmbeddedBroker, EmbeddedProducer};
pub use error::{Error, Result};
pub use files::{FilePlace, FilesConfig, FilesSource};
pub use history::{HistoryFile, Identity, list_history};
pub use kafka::{Assignment, KafkaConfig, KafkaSource};
pub use kafka_admin::{Bounds, KafkaAdmin};
pub use lines::{Line, Lines, MOST_LINE_BYTES};

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;

use crate::change::RawRecord;
use crate::offsets::{Positions, RecordMark, TopicPartition};

/// Where reading of a partition starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the oldest offset there is, for a partition that no table has a marker of.
    Beginning,
    At {
        next: i64,
        /// The last record that was read before `next`. Where the log still has that offset, it has to hold the same
        /// record: otherwise it is another log.
        last: Option<RecordMark>,
    },
}

/// When a fetch has enough. The last record may go over `bytes`.
#[derive(Debug, Clone, Copy)]
pub struct FetchLimits {
    pub records: usize,
    pub bytes: usize,
    /// How long to wait for the first record.
    pub wait: Duration,
}

#[derive(Debug, Default)]
pub struct Fetched {
    /// In the order of offsets within a partition.
    pub records: Vec<RawRecord>,
    /// The partitions that were read further. Their positions pass offsets that hold no record, such as transaction
    /// markers, so that they and not the records tell when an end offset is reached.
    pub positions: Positions,
    /// Partitions that became this process's to read. They are read once they are assigned.
    pub gained: Vec<TopicPartition>,
    /// Partitions that are no longer this process's to read. Nothing more comes from them. One that was lost and gained
    /// again is in both, and has to be assigned again: somebody else may have read it meanwhile.
    pub lost: Vec<TopicPartition>,
}

/// A log that can be read from given offsets.
///
/// After [`assign`](Source::assign) gave offset `n` for a partition, the fetches give each record from `n` on exactly
/// once and in order, until the partition is assigned again. A record that can no longer be given is an error.
#[async_trait]
pub trait Source: Send {
    /// The partitions that are this process's to read now. What changes later is told by the fetches.
    async fn partitions(&mut self) -> Result<Vec<TopicPartition>>;

    /// Adds partitions to those being read, and moves those that are being read already. Gives the offset at which each
    /// of them starts, or an error when the log does not hold it. That it is the log the start was written down for shows
    /// when the first records come: a fetch then fails in place of giving any of that partition.
    async fn assign(&mut self, starts: &BTreeMap<TopicPartition, Start>) -> Result<Positions>;

    /// The next records, as soon as there are some; nothing when there were none for [`FetchLimits::wait`].
    ///
    /// Safe to drop while it waits: nothing is lost.
    async fn fetch(&mut self, limits: FetchLimits) -> Result<Fetched>;

    /// Holds partitions back: nothing more comes from them until they are resumed, and the others go on.
    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    /// Goes on with partitions where they were paused. One that was not paused just goes on.
    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()>;

    /// The end of each partition being read: the offset behind the last record that can be read now.
    async fn end_offsets(&mut self) -> Result<Positions>;

    /// The ends of partitions being read that are known without asking anybody, as of a while ago. A source that is not
    /// told of them knows none.
    fn known_ends(&self) -> Positions {
        Positions::new()
    }

    /// Tells what the tables hold by now. A source may show it to others, but never starts from it.
    async fn durable(&mut self, positions: &Positions);
}
