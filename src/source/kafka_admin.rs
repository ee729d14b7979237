//! Questions to Kafka besides reading: how far topics go, where a time is in them, what a group has committed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::time::Instant;

use super::client::{ClientLog, client_config, list_partitions, set_up_error};
use super::error::{Error, Reason, Result, Trouble, trouble};
use super::kafka::{Arena, KafkaConfig, SOON, record};
use crate::offsets::{Positions, RecordMark, TopicPartition};

const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to listen for the reason why a broker did not answer.
const COMPLAINT_TIMEOUT: Duration = Duration::from_millis(50);

/// How long to wait for one record of each partition, and for the next of them: some may have none.
const RECORDS_TIMEOUT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(2);

/// How many partitions are asked for their offsets at once. Each question blocks a thread.
const QUESTIONS_AT_ONCE: usize = 16;

/// The offsets a partition holds: the oldest, and the one behind the newest that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub first: i64,
    pub end: i64,
}

/// Asks the brokers. It reads nothing into tables and moves nothing.
pub struct KafkaAdmin {
    brokers: String,
    client: ClientConfig,
    consumer: Arc<BaseConsumer<ClientLog>>,
}

impl KafkaAdmin {
    /// Sets up a client; [`KafkaConfig::group`] is the group whose commits it can be asked for, which it never joins.
    pub fn connect(config: &KafkaConfig) -> Result<Self> {
        let (mut client, tokens) = client_config(config)?;
        // Whoever asks is told why there is no answer.
        client.set_log_level(RDKafkaLogLevel::Critical).set("log_level", "2");
        let consumer = client.create_with_context(ClientLog::new(tokens)).map_err(|error| set_up_error(&error))?;
        Ok(KafkaAdmin { brokers: config.brokers.clone(), client, consumer: Arc::new(consumer) })
    }

    /// Whether old records of a topic are taken out when there are newer ones with their key. Not everybody may ask.
    pub async fn is_compacted(&self, topic: &str) -> Result<bool> {
        let tokens = self.consumer.context().tokens.clone();
        let admin: AdminClient<ClientLog> =
            self.client.create_with_context(ClientLog::new(tokens)).map_err(|error| set_up_error(&error))?;
        let options = AdminOptions::new().request_timeout(Some(ANSWER_TIMEOUT));
        let asked = [ResourceSpecifier::Topic(topic)];
        let answer = admin.describe_configs(&asked, &options).await.map_err(|error| self.failure(&error, None))?;
        let unknown = |code| self.failure(&KafkaError::AdminOp(code), None);
        let Some(of_topic) = answer.into_iter().next() else { return Ok(false) };
        let policy = of_topic.map_err(unknown)?.get("cleanup.policy").and_then(|entry| entry.value.clone());
        Ok(policy.is_some_and(|policy| policy.contains("compact")))
    }

    /// The addresses it was set up with.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Every partition of every topic.
    pub async fn partitions(&self) -> Result<Vec<TopicPartition>> {
        self.ask(None, list_partitions).await
    }

    pub async fn bounds(&self, partitions: Vec<TopicPartition>) -> Result<BTreeMap<TopicPartition, Bounds>> {
        let questions = partitions.into_iter().map(|at| async move {
            let asked = at.clone();
            let question = move |consumer: &BaseConsumer<ClientLog>, timeout| {
                consumer.fetch_watermarks(&asked.topic, asked.partition, timeout)
            };
            let (first, end) = self.ask(Some(&at), question).await?;
            Ok((at, Bounds { first, end }))
        });
        futures::stream::iter(questions).buffer_unordered(QUESTIONS_AT_ONCE).try_collect().await
    }

    /// The first offset of each partition whose record is of this time or later. None for a partition that has no such
    /// record.
    pub async fn offsets_at(&self, time_ms: i64, partitions: Vec<TopicPartition>) -> Result<Positions> {
        let asked =
            list(partitions.iter().map(|at| (at, Offset::Offset(time_ms)))).map_err(|e| self.failure(&e, None))?;
        let found = self.ask(None, move |consumer, timeout| consumer.offsets_for_times(asked.clone(), timeout)).await?;
        self.positions(&found)
    }

    /// What the group has committed of these partitions.
    pub async fn committed(&self, partitions: Vec<TopicPartition>) -> Result<Positions> {
        let asked = list(partitions.iter().map(|at| (at, Offset::Invalid))).map_err(|e| self.failure(&e, None))?;
        let found = self.ask(None, move |consumer, timeout| consumer.committed_offsets(asked.clone(), timeout)).await?;
        self.positions(&found)
    }

    /// The time of the first record at or behind each position, milliseconds since 1970, where there is a record.
    pub async fn times(&self, positions: &Positions) -> Result<BTreeMap<TopicPartition, i64>> {
        let positions = positions.clone();
        let read = move |consumer: &BaseConsumer<ClientLog>, _| {
            let times = first_records(consumer, &positions, |message| message.timestamp().to_millis());
            consumer.unassign()?;
            Ok(times?.into_iter().filter_map(|(at, time)| Some((at, time?))).collect())
        };
        self.ask(None, read).await
    }

    /// By what the first record at or behind each position is known again, where there is a record.
    pub async fn marks(&self, positions: &Positions) -> Result<BTreeMap<TopicPartition, RecordMark>> {
        if positions.is_empty() {
            return Ok(BTreeMap::new());
        }
        let positions = positions.clone();
        let read = move |consumer: &BaseConsumer<ClientLog>, _| {
            let marks = first_records(consumer, &positions, |message| {
                let at = TopicPartition::new(message.topic(), message.partition());
                RecordMark::of(&record(&at, message, &mut Arena::default()))
            });
            consumer.unassign()?;
            marks
        };
        self.ask(None, read).await
    }

    fn positions(&self, found: &TopicPartitionList) -> Result<Positions> {
        let mut positions = Positions::new();
        for element in found.elements() {
            let at = TopicPartition::new(element.topic(), element.partition());
            element.error().map_err(|error| self.failure(&error, Some(&at)))?;
            if let Offset::Offset(offset) = element.offset() {
                positions.insert(at, offset);
            }
        }
        Ok(positions)
    }

    /// The client's questions block, so they get a thread. Who is turned away at the door is told so soon. `at` is the
    /// partition that a question is about.
    async fn ask<T: Send + 'static>(
        &self,
        at: Option<&TopicPartition>,
        question: impl Fn(&BaseConsumer<ClientLog>, Duration) -> KafkaResult<T> + Send + 'static,
    ) -> Result<T> {
        if let Some(tokens) = &self.consumer.context().tokens {
            tokens.ready().await?;
        }
        let consumer = self.consumer.clone();
        let ask = move || {
            let deadline = Instant::now() + ANSWER_TIMEOUT;
            while !consumer.context().has_token() && Instant::now() < deadline {
                // It asks for its first token when it is listened to. Nobody has questions for long enough to need another.
                drop(consumer.poll(COMPLAINT_TIMEOUT));
            }
            let mut answer = Err(KafkaError::Canceled);
            for timeout in [SOON, ANSWER_TIMEOUT] {
                answer = question(&consumer, timeout);
                let Err(error) = &answer else { break };
                // The reason comes through the queue of records.
                drop(consumer.poll(COMPLAINT_TIMEOUT));
                if !consumer.context().may_pass(error) {
                    break;
                }
            }
            answer
        };
        // Without an answer, the runtime is being shut down, or the question panicked.
        let answer = tokio::task::spawn_blocking(ask).await.unwrap_or(Err(KafkaError::Canceled));
        answer.map_err(|error| self.failure(&error, at))
    }

    fn failure(&self, error: &KafkaError, at: Option<&TopicPartition>) -> Error {
        let (mut kind, mut source) = (trouble(error.rdkafka_error_code()), Reason::from(error));
        if kind == Trouble::Passing {
            let complaint = self.consumer.context().complaint();
            if let Some((complained, text)) = complaint {
                (kind, source) = (complained, Reason::new(text));
            }
        }
        Error::new(kind, &self.brokers, source, at)
    }
}

impl std::fmt::Debug for KafkaAdmin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaAdmin").field("brokers", &self.brokers).finish_non_exhaustive()
    }
}

fn list<'a>(partitions: impl Iterator<Item = (&'a TopicPartition, Offset)>) -> KafkaResult<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    for (at, offset) in partitions {
        list.add_partition_offset(&at.topic, at.partition, offset)?;
    }
    Ok(list)
}

/// The first record at or behind each position, as `of` makes something of it, where there is one.
pub(super) fn first_records<C: ClientContext + ConsumerContext, T>(
    consumer: &BaseConsumer<C>,
    positions: &Positions,
    of: impl Fn(&BorrowedMessage<'_>) -> T,
) -> KafkaResult<BTreeMap<TopicPartition, T>> {
    consumer.assign(&list(positions.iter().map(|(at, next)| (at, Offset::Offset(*next))))?)?;
    let deadline = Instant::now() + RECORDS_TIMEOUT;
    let mut seen = BTreeMap::new();
    while seen.len() < positions.len() {
        let left = deadline.saturating_duration_since(Instant::now());
        let message = match consumer.poll(left.min(SILENCE)) {
            Some(Ok(message)) => message,
            // The end of a partition, or one whose position is not there any more.
            Some(Err(_)) if !left.is_zero() => continue,
            _ => break,
        };
        let at = TopicPartition::new(message.topic(), message.partition());
        if let Entry::Vacant(first) = seen.entry(at) {
            consumer.pause(&list([(first.key(), Offset::Invalid)].into_iter())?)?;
            first.insert(of(&message));
        }
    }
    Ok(seen)
}
