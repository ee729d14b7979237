//! Kafka, read partition by partition with librdkafka.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt, TryStreamExt};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{CommitMode, Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaConfRes;
use rdkafka::{ClientContext, Message, Offset, TopicPartitionList};
use tokio::time::Instant;

use super::error::{Error, Reason, Result, Trouble, trouble};
use super::pattern::TopicPattern;
use super::{FetchLimits, Fetched, Source, Start};
use crate::change::RawRecord;
use crate::offsets::{Positions, TopicPartition};

/// How long a broker has to answer a question about topics or offsets.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to listen for the reason why a broker did not answer.
const COMPLAINT_TIMEOUT: Duration = Duration::from_millis(50);

/// How long a connection may be in trouble, with no record coming, before a probe decides whether to give up. Longer than
/// a broker takes to restart.
const TROUBLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How many partitions are asked for their offsets at once. Each question blocks a thread.
const QUESTIONS_AT_ONCE: usize = 16;

/// Records are copied out of the client into pieces of memory of this size, which their bytes then share.
const ARENA_BYTES: usize = 256 * 1024;

/// Properties that decide where reading starts or ends, which is not the user's to say, or that are set elsewhere.
const RESERVED: &[(&str, &str)] = &[
    ("auto.offset.reset", "where reading starts comes from the tables alone"),
    ("bootstrap.servers", "it is `source.kafka.brokers`"),
    ("metadata.broker.list", "it is `source.kafka.brokers`"),
    ("enable.auto.commit", "what the group has committed follows the tables"),
    ("enable.auto.offset.store", "what the group has committed follows the tables"),
    ("enable.partition.eof", "the end of a partition has to be seen"),
    ("group.id", "it is `source.kafka.group`"),
];

/// Which Kafka to read and how. Its `Debug` shows no property's value, since passwords are among them.
#[derive(Clone)]
pub struct KafkaConfig {
    pub brokers: String,
    /// The consumer group under which progress is shown to lag tools.
    pub group: String,
    /// Names or patterns with `*`.
    pub topics: Vec<String>,
    /// librdkafka's properties.
    pub properties: BTreeMap<String, String>,
    /// How many bytes the client may read ahead.
    pub queue_bytes: usize,
}

pub struct KafkaSource {
    brokers: String,
    patterns: Vec<TopicPattern>,
    consumer: Arc<StreamConsumer<ClientLog>>,
    assigned: Assigned,
    /// An error that was met and not judged yet. One behind records is told when they have been given out.
    postponed: Option<KafkaError>,
    trouble_since: Option<Instant>,
    answer_timeout: Duration,
    trouble_timeout: Duration,
}

/// The partitions being read.
#[derive(Default)]
struct Assigned {
    partitions: Vec<Reading>,
    index: HashMap<Arc<str>, BTreeMap<i32, usize>>,
    /// Which one the last record was of, since records come in runs.
    last: usize,
}

struct Reading {
    at: TopicPartition,
    next: i64,
    /// Whether `next` moved since the last fetch ended.
    moved: bool,
    /// Whether a record or the end was seen since the partition was put to where it is read from.
    has_started: bool,
}

/// What an offset query found: the oldest offset, and the one behind the newest record.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    first: i64,
    end: i64,
}

/// Carries the client's words to our log, and keeps the last complaint for errors that need a reason.
#[derive(Default)]
struct ClientLog {
    complaint: Mutex<Option<(Trouble, String)>>,
}

impl KafkaSource {
    /// Sets up a client. Connections are made when the first question is asked. Has to be called inside a Tokio runtime.
    pub fn connect(config: KafkaConfig) -> Result<Self> {
        let patterns = config.topics.iter().map(|topic| TopicPattern::parse(topic)).collect::<Result<_>>()?;
        let client: ClientConfig = client_config(&config)?;
        let consumer = client.create_with_context(ClientLog::default()).map_err(|error| set_up_error(&error))?;
        Ok(KafkaSource {
            brokers: config.brokers,
            patterns,
            consumer: Arc::new(consumer),
            assigned: Assigned::default(),
            postponed: None,
            trouble_since: None,
            answer_timeout: ANSWER_TIMEOUT,
            trouble_timeout: TROUBLE_TIMEOUT,
        })
    }

    /// Asks the brokers something. The client's questions block, so they get a thread.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&StreamConsumer<ClientLog>, Duration) -> KafkaResult<T> + Send + 'static,
    ) -> KafkaResult<T> {
        let (consumer, timeout) = (self.consumer.clone(), self.answer_timeout);
        // Without an answer, the runtime is being shut down, or the question panicked.
        let answer = tokio::task::spawn_blocking(move || question(&consumer, timeout)).await;
        let answer = answer.unwrap_or(Err(KafkaError::Canceled));
        if answer.is_err() {
            self.hear_complaints().await;
        }
        answer
    }

    async fn bounds(&self, partitions: Vec<TopicPartition>) -> Result<BTreeMap<TopicPartition, Bounds>> {
        let questions = partitions.into_iter().map(|at| async move {
            let asked = at.clone();
            let question = move |consumer: &StreamConsumer<ClientLog>, timeout| {
                consumer.fetch_watermarks(&asked.topic, asked.partition, timeout)
            };
            match self.ask(question).await {
                Ok((first, end)) => Ok((at, Bounds { first, end })),
                Err(error) => Err(self.failure(&error, Some(&at))),
            }
        });
        futures::stream::iter(questions).buffer_unordered(QUESTIONS_AT_ONCE).try_collect().await
    }

    /// The situation a client's error means. `at` is the partition it is about, where that is known.
    fn failure(&self, error: &KafkaError, at: Option<&TopicPartition>) -> Error {
        let brokers = self.brokers.clone();
        let mut source = Reason::from(error);
        let mut trouble = trouble(error.rdkafka_error_code());
        if trouble == Trouble::Passing {
            let complaint = self.consumer.context().complaint.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some((complained, text)) = complaint {
                trouble = complained;
                source = Reason::new(text);
            }
        }
        match (trouble, at) {
            (Trouble::TopicGone, Some(at)) => Error::TopicMissing { topic: at.topic.to_string(), brokers },
            (Trouble::Denied, _) => Error::Denied { brokers, source },
            _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => Error::Broken { brokers, source },
            _ => Error::Unreachable { brokers, source },
        }
    }

    /// The client says why it cannot connect through the queue that also holds records, so it is only listened to while
    /// nothing is assigned.
    async fn hear_complaints(&self) {
        if self.assigned.partitions.is_empty() {
            let mut stream = self.consumer.stream();
            while let Ok(Some(_)) = tokio::time::timeout(COMPLAINT_TIMEOUT, stream.next()).await {}
        }
    }

    /// Judges the error that was met last. It stays until it is judged, so that a fetch dropped meanwhile does not lose it.
    async fn judge_postponed(&mut self) -> Result<()> {
        let Some(error) = self.postponed.clone() else { return Ok(()) };
        let verdict = self.judge(error).await;
        self.postponed = None;
        verdict
    }

    /// Turns an error met while reading into one to return, or into nothing when the client tries again by itself.
    async fn judge(&mut self, error: KafkaError) -> Result<()> {
        match trouble(error.rdkafka_error_code()) {
            Trouble::OutOfRange => {
                let partitions = self.assigned.partitions.iter().map(|reading| reading.at.clone()).collect();
                let bounds = self.bounds(partitions).await?;
                for Reading { at, next, .. } in &self.assigned.partitions {
                    check_bounds(at, *next, bounds[at])?;
                }
                // The position is there after all; the client has stopped reading the partition all the same.
                self.reassign()
            }
            Trouble::Passing if !matches!(error, KafkaError::MessageConsumptionFatal(_)) => {
                tracing::debug!(%error, "kafka is in trouble");
                self.trouble_since.get_or_insert_with(Instant::now);
                Ok(())
            }
            Trouble::TopicGone => self.name_missing_topic(&error).await,
            _ => Err(self.failure(&error, None)),
        }
    }

    /// The client does not say which topic is gone. It may as well be a broker that has not heard of it yet.
    async fn name_missing_topic(&mut self, error: &KafkaError) -> Result<()> {
        let there = self.all_partitions().await?;
        let gone = self.assigned.partitions.iter().find(|reading| !there.contains(&reading.at));
        match gone {
            Some(reading) => Err(self.failure(error, Some(&reading.at))),
            None => self.reassign(),
        }
    }

    /// Gives up when the brokers still do not answer after a long time of trouble.
    async fn check_trouble(&mut self) -> Result<()> {
        if self.trouble_since.is_some_and(|since| since.elapsed() >= self.trouble_timeout) {
            self.all_partitions().await?;
            self.forget_trouble();
        }
        Ok(())
    }

    fn forget_trouble(&mut self) {
        if self.trouble_since.take().is_some() {
            *self.consumer.context().complaint.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    async fn all_partitions(&self) -> Result<Vec<TopicPartition>> {
        let list = |consumer: &StreamConsumer<ClientLog>, timeout| {
            let metadata = consumer.fetch_metadata(None, timeout)?;
            let mut found = Vec::new();
            for topic in metadata.topics() {
                let name: Arc<str> = topic.name().into();
                found.extend(topic.partitions().iter().map(|part| TopicPartition::new(name.clone(), part.id())));
            }
            found.sort();
            Ok(found)
        };
        self.ask(list).await.map_err(|error| self.failure(&error, None))
    }

    /// Reads all partitions on from where they stand. The client drops what it had read ahead.
    fn reassign(&mut self) -> Result<()> {
        let mut list = TopicPartitionList::with_capacity(self.assigned.partitions.len());
        for Reading { at, next, .. } in &self.assigned.partitions {
            list.add_partition_offset(&at.topic, at.partition, Offset::Offset(*next))
                .map_err(|error| self.failure(&error, Some(at)))?;
        }
        self.consumer.assign(&list).map_err(|error| self.failure(&error, None))
    }

    /// Takes over positions that moved past offsets without records.
    fn pass_gaps(&mut self) {
        let Ok(positions) = self.consumer.position() else { return };
        for element in positions.elements() {
            // Until something came from where the partition was put, the client may still tell where it was before.
            if let Offset::Offset(next) = element.offset()
                && let Some(reading) = self.assigned.find(element.topic(), element.partition())
                && reading.has_started
                && next > reading.next
            {
                reading.next = next;
                reading.moved = true;
            }
        }
    }
}

#[async_trait]
impl Source for KafkaSource {
    async fn partitions(&mut self) -> Result<Vec<TopicPartition>> {
        let mut found = self.all_partitions().await?;
        found.retain(|at| self.patterns.iter().any(|pattern| pattern.matches(&at.topic)));
        let is_missing = |topic: &&str| !found.iter().any(|at| *at.topic == **topic);
        match self.patterns.iter().filter_map(TopicPattern::literal).find(is_missing) {
            Some(topic) => Err(Error::TopicMissing { topic: topic.to_string(), brokers: self.brokers.clone() }),
            None => Ok(found),
        }
    }

    async fn assign(&mut self, starts: &BTreeMap<TopicPartition, Start>) -> Result<Positions> {
        let bounds = self.bounds(starts.keys().cloned().collect()).await?;
        let mut positions = Positions::new();
        for (at, start) in starts {
            let bounds = bounds[at];
            let next = match start {
                Start::Beginning => bounds.first,
                Start::At(offset) => *offset,
            };
            check_bounds(at, next, bounds)?;
            positions.insert(at.clone(), next);
        }
        for (at, next) in &positions {
            self.assigned.set(at, *next);
        }
        self.reassign()?;
        Ok(positions)
    }

    async fn fetch(&mut self, limits: FetchLimits) -> Result<Fetched> {
        self.judge_postponed().await?;
        let consumer = self.consumer.clone();
        let mut stream = consumer.stream();
        let deadline = Instant::now() + limits.wait;
        let mut records = Vec::new();
        let (mut arena, mut bytes, mut saw_end) = (BytesMut::new(), 0, false);
        while records.len() < limits.records && bytes < limits.bytes {
            let next = match stream.next().now_or_never() {
                Some(next) => next,
                None if saw_end || !records.is_empty() => break,
                None => match tokio::time::timeout_at(deadline, stream.next()).await {
                    Ok(next) => next,
                    Err(_) => break,
                },
            };
            match next {
                Some(Ok(message)) => {
                    if let Some(record) = self.assigned.take(&message, &mut arena) {
                        bytes += message.payload_len() + message.key_len();
                        records.push(record);
                    }
                }
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    saw_end = true;
                    self.assigned.saw_end_of(partition);
                }
                Some(Err(error)) => {
                    self.postponed = Some(error);
                    if !records.is_empty() {
                        break;
                    }
                    self.judge_postponed().await?;
                }
                None => break,
            }
        }
        if saw_end || records.is_empty() {
            self.pass_gaps();
        }
        if !records.is_empty() || saw_end {
            self.forget_trouble();
        } else {
            self.check_trouble().await?;
        }
        Ok(Fetched { records, positions: self.assigned.take_moved(), ..Fetched::default() })
    }

    async fn end_offsets(&mut self) -> Result<Positions> {
        let partitions = self.assigned.partitions.iter().map(|reading| reading.at.clone()).collect();
        let bounds = self.bounds(partitions).await?;
        Ok(bounds.into_iter().map(|(at, bounds)| (at, bounds.end)).collect())
    }

    async fn durable(&mut self, positions: &Positions) {
        let mut list = TopicPartitionList::with_capacity(positions.len());
        let added = positions
            .iter()
            .try_for_each(|(at, next)| list.add_partition_offset(&at.topic, at.partition, Offset::Offset(*next)));
        if let Err(error) = added.and_then(|()| self.consumer.commit(&list, CommitMode::Async)) {
            tracing::debug!(%error, "the group's offsets were not moved");
        }
    }
}

impl Assigned {
    fn set(&mut self, at: &TopicPartition, next: i64) {
        match self.find(&at.topic, at.partition) {
            Some(reading) => *reading = Reading { at: at.clone(), next, moved: false, has_started: false },
            None => {
                let index = self.partitions.len();
                self.index.entry(at.topic.clone()).or_default().insert(at.partition, index);
                self.partitions.push(Reading { at: at.clone(), next, moved: false, has_started: false });
            }
        }
    }

    fn find(&mut self, topic: &str, partition: i32) -> Option<&mut Reading> {
        let is_last = |reading: &Reading| reading.at.partition == partition && *reading.at.topic == *topic;
        if !self.partitions.get(self.last).is_some_and(is_last) {
            self.last = *self.index.get(topic)?.get(&partition)?;
        }
        self.partitions.get_mut(self.last)
    }

    /// A message as a record. Nothing when it is behind the position, which is only said of what the client had read
    /// before it was told to read elsewhere.
    fn take(&mut self, message: &BorrowedMessage<'_>, arena: &mut BytesMut) -> Option<RawRecord> {
        let offset = message.offset();
        let reading = self.find(message.topic(), message.partition()).filter(|reading| offset >= reading.next)?;
        reading.next = offset + 1;
        reading.moved = true;
        reading.has_started = true;
        Some(RawRecord {
            topic: reading.at.topic.clone(),
            partition: reading.at.partition,
            offset,
            timestamp_ms: message.timestamp().to_millis(),
            key: message.key().map(|key| copy(key, arena)),
            payload: message.payload().map(|payload| copy(payload, arena)),
        })
    }

    /// The client tells the end of a partition without its topic.
    fn saw_end_of(&mut self, partition: i32) {
        let readings = self.partitions.iter_mut().filter(|reading| reading.at.partition == partition);
        readings.for_each(|reading| reading.has_started = true);
    }

    fn take_moved(&mut self) -> Positions {
        let mut positions = Positions::new();
        for reading in &mut self.partitions {
            if std::mem::take(&mut reading.moved) {
                positions.insert(reading.at.clone(), reading.next);
            }
        }
        positions
    }
}

/// Copies bytes to the end of the arena, or to a new one when it is used up.
fn copy(bytes: &[u8], arena: &mut BytesMut) -> Bytes {
    if arena.capacity() < bytes.len() {
        *arena = BytesMut::with_capacity(ARENA_BYTES.max(bytes.len()));
    }
    arena.extend_from_slice(bytes);
    arena.split().freeze()
}

fn check_bounds(at: &TopicPartition, offset: i64, bounds: Bounds) -> Result<()> {
    let Bounds { first, end } = bounds;
    if offset < first {
        return Err(Error::Expired { at: at.clone(), offset, first });
    }
    if offset > end {
        return Err(Error::PastEnd { at: at.clone(), offset, end });
    }
    Ok(())
}

fn client_config(config: &KafkaConfig) -> Result<ClientConfig> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &config.brokers);
    client.set("group.id", &config.group);
    client.set("enable.auto.commit", "false");
    client.set("enable.auto.offset.store", "false");
    client.set("enable.partition.eof", "true");
    client.set("auto.offset.reset", "error");
    client.set("isolation.level", "read_committed");
    client.set("queued.max.messages.kbytes", (config.queue_bytes / 1024).max(1).to_string());
    client.set_log_level(RDKafkaLogLevel::Info);
    for (name, value) in &config.properties {
        if let Some((_, why)) = RESERVED.iter().find(|(reserved, _)| reserved == name) {
            return Err(Error::ReservedProperty { name: name.clone(), why });
        }
        client.set(name, value);
    }
    Ok(client)
}

fn set_up_error(error: &KafkaError) -> Error {
    match error {
        KafkaError::ClientConfig(result, _, name, _) => {
            let problem = match result {
                RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN => "there is no such property",
                _ => "its value is not valid",
            };
            Error::Property { name: name.clone(), problem }
        }
        KafkaError::ClientCreation(problem) => Error::Setup { problem: problem.clone() },
        other => Error::Setup { problem: other.to_string() },
    }
}

impl ClientContext for ClientLog {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(facility, text = message, "kafka client");
            }
            _ => tracing::warn!(facility, text = message, "kafka client"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let trouble = trouble(error.rdkafka_error_code());
        let is_end = matches!(error, KafkaError::Global(rdkafka::error::RDKafkaErrorCode::PartitionEOF));
        if is_end {
            return;
        }
        let mut complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        // "All brokers down" follows the reason why, which says more.
        if complaint.is_none() || trouble != Trouble::Passing || !reason.contains("brokers are down") {
            *complaint = Some((trouble, reason.to_string()));
        }
    }
}

impl ConsumerContext for ClientLog {
    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            tracing::debug!(%error, "the group's offsets were not moved");
        }
    }
}

impl fmt::Debug for KafkaConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaConfig")
            .field("brokers", &self.brokers)
            .field("group", &self.group)
            .field("topics", &self.topics)
            .field("properties", &self.properties.keys().collect::<Vec<_>>())
            .field("queue_bytes", &self.queue_bytes)
            .finish()
    }
}

impl fmt::Debug for KafkaSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSource").field("brokers", &self.brokers).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Kind, Situation};
    use crate::source::EmbeddedBroker;

    const TOPIC: &str = "shop.public.orders";
    const LIMITS: FetchLimits = FetchLimits { records: 100, bytes: 1 << 20, wait: Duration::from_millis(200) };

    fn config(brokers: &str) -> KafkaConfig {
        KafkaConfig {
            brokers: brokers.to_string(),
            group: "icestream-test".to_string(),
            topics: vec!["shop.public.*".to_string()],
            properties: BTreeMap::new(),
            queue_bytes: 1 << 20,
        }
    }

    fn at(partition: i32) -> TopicPartition {
        TopicPartition::new(TOPIC, partition)
    }

    /// A topic of two partitions with `counts` records in them.
    async fn topic(counts: [i64; 2]) -> (EmbeddedBroker, KafkaSource) {
        let broker = EmbeddedBroker::start().unwrap();
        broker.create_topic(TOPIC, 2).unwrap();
        let producer = broker.producer().unwrap();
        for (partition, count) in (0..).zip(counts) {
            for offset in 0..count {
                let payload = format!("{partition}:{offset}");
                let payload = Some(payload.as_bytes()).filter(|_| offset % 10 != 9);
                assert_eq!(producer.send(&at(partition), Some(b"k"), payload, 1000 + offset).await.unwrap(), offset);
            }
        }
        let sent = producer.flush().await.unwrap();
        assert_eq!(sent.values().sum::<i64>(), counts.iter().sum::<i64>());
        let source = KafkaSource::connect(config(broker.brokers())).unwrap();
        (broker, source)
    }

    /// Everything up to `ends`, in the order it came.
    async fn drain(source: &mut KafkaSource, ends: &Positions) -> Vec<RawRecord> {
        let mut records = Vec::new();
        let mut positions = Positions::new();
        let all = async {
            while !ends.iter().all(|(at, end)| positions.get(at).is_some_and(|next| next >= end)) {
                let fetched = source.fetch(LIMITS).await.unwrap();
                records.extend(fetched.records);
                positions.extend(fetched.positions);
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("the end of the topic is reached");
        assert_eq!(&positions, ends);
        records
    }

    fn offsets(records: &[RawRecord], partition: i32) -> Vec<i64> {
        records.iter().filter(|record| record.partition == partition).map(|record| record.offset).collect()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn two_partitions_are_read_to_their_ends_once_and_in_order() {
        let (_broker, mut source) = topic([250, 120]).await;
        assert_eq!(source.partitions().await.unwrap(), [at(0), at(1)]);
        let starts = [(at(0), Start::Beginning), (at(1), Start::At(100))].into();
        assert_eq!(source.assign(&starts).await.unwrap(), [(at(0), 0), (at(1), 100)].into());
        let ends = source.end_offsets().await.unwrap();
        assert_eq!(ends, [(at(0), 250), (at(1), 120)].into());
        let records = drain(&mut source, &ends).await;
        assert_eq!(offsets(&records, 0), (0..250).collect::<Vec<_>>());
        assert_eq!(offsets(&records, 1), (100..120).collect::<Vec<_>>());
        for record in records {
            let text = format!("{}:{}", record.partition, record.offset);
            let payload = Some(Bytes::from(text)).filter(|_| record.offset % 10 != 9);
            assert_eq!(record.payload, payload);
            assert_eq!(record.key.as_deref(), Some(&b"k"[..]));
            assert_eq!(record.timestamp_ms, Some(1000 + record.offset));
        }
        assert!(source.fetch(LIMITS).await.unwrap().positions.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_partition_moved_back_is_read_again_and_the_other_goes_on() {
        let (_broker, mut source) = topic([150, 150]).await;
        source.assign(&[(at(0), Start::At(10)), (at(1), Start::At(20))].into()).await.unwrap();
        let ends = source.end_offsets().await.unwrap();
        let few = FetchLimits { records: 30, ..LIMITS };
        let mut before = Vec::new();
        while before.len() < 60 {
            before.extend(source.fetch(few).await.unwrap().records);
        }
        source.assign(&[(at(0), Start::At(5))].into()).await.unwrap();
        let after = drain(&mut source, &ends).await;
        assert_eq!(offsets(&after, 0), (5..150).collect::<Vec<_>>());
        let other = [offsets(&before, 1), offsets(&after, 1)].concat();
        assert_eq!(other, (20..150).collect::<Vec<_>>());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn empty_partitions_end_where_they_start() {
        let (_broker, mut source) = topic([0, 0]).await;
        let starts: BTreeMap<_, _> = [(at(0), Start::Beginning), (at(1), Start::At(0))].into();
        assert_eq!(source.assign(&starts).await.unwrap(), source.end_offsets().await.unwrap());
        let fetched = source.fetch(LIMITS).await.unwrap();
        assert!(fetched.records.is_empty() && fetched.positions.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_offset_that_is_not_there_is_an_error_and_no_new_start() {
        let broker = EmbeddedBroker::start().unwrap();
        broker.create_topic(TOPIC, 1).unwrap();
        let producer = broker.producer().unwrap();
        let payload = vec![b'x'; 100_000];
        for next in 1..=100 {
            producer.send(&at(0), None, Some(&payload), 0).await.unwrap();
            producer.flush().await.unwrap();
            producer.durable().reached(&[(at(0), next)].into());
        }
        let mut source = KafkaSource::connect(config(broker.brokers())).unwrap();
        let past = source.assign(&[(at(0), Start::At(101))].into()).await.unwrap_err();
        assert!(matches!(past, Error::PastEnd { offset: 101, end: 100, .. }), "{past:?}");
        let expired = source.assign(&[(at(0), Start::At(3))].into()).await.unwrap_err();
        assert!(matches!(expired, Error::Expired { offset: 3, first: 40..60, .. }), "{expired:?}");
        assert_eq!(expired.kind(), Kind::Corrupt);
        let first = source.assign(&[(at(0), Start::Beginning)].into()).await.unwrap()[&at(0)];
        assert!((40..60).contains(&first), "{first}");
        // The broker drops records while they are being read.
        source.assigned.set(&at(0), 3);
        source.reassign().unwrap();
        let met = async {
            loop {
                match source.fetch(LIMITS).await {
                    Ok(fetched) => assert!(fetched.records.is_empty(), "{:?}", fetched.positions),
                    Err(error) => break error,
                }
            }
        };
        let met = tokio::time::timeout(Duration::from_secs(60), met).await.unwrap();
        assert!(matches!(met, Error::Expired { offset: 3, .. }), "{met:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_durable_shows_as_the_group_s_offsets() {
        let (_broker, mut source) = topic([20, 20]).await;
        let starts = [(at(0), Start::Beginning), (at(1), Start::Beginning)].into();
        source.assign(&starts).await.unwrap();
        source.durable(&[(at(0), 7), (at(1), 11)].into()).await;
        let committed = async {
            loop {
                let ask = |consumer: &StreamConsumer<ClientLog>, timeout| {
                    let mut list = TopicPartitionList::new();
                    list.add_partition_range(TOPIC, 0, 1);
                    let found = consumer.committed_offsets(list, timeout)?;
                    Ok(found.elements().iter().map(|element| element.offset()).collect::<Vec<_>>())
                };
                if source.ask(ask).await.unwrap() == [Offset::Offset(7), Offset::Offset(11)] {
                    break;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), committed).await.expect("the offsets are committed");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_named_topic_has_to_exist_and_a_pattern_may_match_nothing() {
        let (broker, _) = topic([0, 0]).await;
        let with_topics = |topics: &[&str]| {
            let topics = topics.iter().map(|topic| topic.to_string()).collect();
            KafkaSource::connect(KafkaConfig { topics, ..config(broker.brokers()) }).unwrap()
        };
        assert_eq!(with_topics(&["crm.*"]).partitions().await.unwrap(), []);
        assert_eq!(with_topics(&[TOPIC]).partitions().await.unwrap(), [at(0), at(1)]);
        let error = with_topics(&["shop.*", "crm.leads"]).partitions().await.unwrap_err();
        assert_eq!(error.to_string(), format!("topic `crm.leads` does not exist on `{}`", broker.brokers()));
    }

    #[tokio::test]
    async fn a_broker_that_is_not_there_is_named_with_the_reason() {
        let mut source = KafkaSource::connect(config("127.0.0.1:1")).unwrap();
        source.answer_timeout = Duration::from_secs(1);
        let error = crate::error::Error::from(source.partitions().await.unwrap_err());
        assert_eq!(error.kind(), Kind::Unavailable);
        let chain = error.chain();
        assert_eq!(chain[0], "kafka at `127.0.0.1:1` does not answer");
        assert!(chain[1].contains("refused"), "{chain:?}");
    }

    #[tokio::test]
    async fn a_property_that_cannot_be_is_refused_without_its_value() {
        let check = |name: &str, value: &str| {
            let mut config = config("127.0.0.1:1");
            config.properties.insert(name.to_string(), value.to_string());
            assert!(!format!("{config:?}").contains(value));
            crate::error::Error::from(KafkaSource::connect(config).unwrap_err()).render()
        };
        insta::assert_snapshot!(check("auto.offset.reset", "latest"), @r"
        error: kafka property `auto.offset.reset` cannot be set: where reading starts comes from the tables alone
          hint: remove `auto.offset.reset` from `source.kafka.properties`
        ");
        insta::assert_snapshot!(check("sasl.pasword", "s3cret"), @r"
        error: kafka property `sasl.pasword` is not accepted: there is no such property
          hint: check `source.kafka.properties.sasl.pasword` against librdkafka's CONFIGURATION.md
        ");
        insta::assert_snapshot!(check("security.protocol", "s3cret"), @r"
        error: kafka property `security.protocol` is not accepted: its value is not valid
          hint: check `source.kafka.properties.security.protocol` against librdkafka's CONFIGURATION.md
        ");
    }
}
