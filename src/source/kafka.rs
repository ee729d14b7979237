//! Kafka, read partition by partition with librdkafka.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt, StreamExt, TryStreamExt};
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::BorrowedMessage;
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::client::{ClientLog, client_config, list_partitions, set_up_error};
use super::error::{Error, Reason, Result, Trouble, trouble};
use super::member::Member;
use super::ownership::{Owned, Ownership, difference};
use super::pattern::TopicPattern;
use super::witness::Witness;
use super::{FetchLimits, Fetched, Source, Start};
use crate::aws::AwsOptions;
use crate::change::RawRecord;
use crate::offsets::{Positions, RecordMark, TopicPartition};

/// How long a broker has to answer a question about topics or offsets.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to wait before looking whether there is any hope of an answer.
pub(super) const SOON: Duration = Duration::from_secs(3);

/// How long to listen for the reason why a broker did not answer.
const COMPLAINT_TIMEOUT: Duration = Duration::from_millis(50);

/// How long a connection may be in trouble, with no record coming, before a probe decides whether to give up. Longer than
/// a broker takes to restart.
const TROUBLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a group waits for a member that asks for no records; `max.poll.interval.ms` sets it.
const PATIENCE: Duration = Duration::from_secs(300);

/// How many partitions are asked for their offsets at once. Each question blocks a thread.
const QUESTIONS_AT_ONCE: usize = 16;

/// Records are copied out of the client into pieces of memory of this size, which their bytes then share.
const ARENA_BYTES: usize = 256 * 1024;

/// Which partitions of its topics a source reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Assignment {
    /// All of them. What several processes read twice is committed once.
    Everything,
    /// Those that the group gives to this process.
    Group,
}

/// Which Kafka to read and how. Its `Debug` shows no property's value, since passwords are among them.
#[derive(Clone)]
pub struct KafkaConfig {
    pub brokers: String,
    /// The consumer group in which partitions are shared, and under which progress is shown to lag tools.
    pub group: String,
    /// Names or patterns with `*`.
    pub topics: Vec<String>,
    pub assignment: Assignment,
    /// How often to look for new topics and partitions.
    pub discover_every: Duration,
    /// librdkafka's properties.
    pub properties: BTreeMap<String, String>,
    /// Who we are to an MSK cluster that asks for IAM. What is not set comes from the default AWS chain.
    pub msk_iam: Option<AwsOptions>,
    /// How many bytes the client may read ahead.
    pub queue_bytes: usize,
}

pub struct KafkaSource {
    brokers: String,
    patterns: Vec<TopicPattern>,
    consumer: Arc<StreamConsumer<ClientLog>>,
    assigned: Assigned,
    ownership: Arc<Ownership>,
    /// What the caller knows to be its own to read.
    told: Owned,
    owner: Owner,
    witness: Witness,
    /// What was met and not judged yet. What is behind records is told when they have been given out.
    postponed: Option<Postponed>,
    trouble_since: Option<Instant>,
    answer_timeout: Duration,
    trouble_timeout: Duration,
}

/// Who says what is this process's to read.
enum Owner {
    Group(Member),
    /// A task that looks for what is new.
    Metadata(JoinHandle<()>),
}

enum Postponed {
    Client(KafkaError),
    Verdict(Error),
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
    /// The record before `next` that has to be seen again before any other.
    unverified: Option<RecordMark>,
    is_paused: bool,
    /// Whether the client has it.
    is_started: bool,
    /// Whether `next` moved since the last fetch ended.
    moved: bool,
    /// The position that the client told when the partition was put to where it is read from. It may be from before
    /// that, so it counts for nothing until it is another one or a record came.
    stale: Option<i64>,
}

/// What an offset query found: the oldest offset, and the one behind the newest record.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    first: i64,
    end: i64,
}

impl KafkaSource {
    /// Sets up the clients. Connections are made when the first question is asked. Has to be called inside a Tokio runtime.
    pub fn connect(config: KafkaConfig) -> Result<Self> {
        let patterns = config.topics.iter().map(|topic| TopicPattern::parse(topic)).collect::<Result<Vec<_>>>()?;
        let (client, tokens) = client_config(&config)?;
        let consumer: StreamConsumer<ClientLog> =
            client.create_with_context(ClientLog::new(tokens.clone())).map_err(|error| set_up_error(&error))?;
        let consumer = Arc::new(consumer);
        let ownership = Arc::new(Ownership::default());
        let owner = match config.assignment {
            Assignment::Group => {
                let patience = config.properties.get("max.poll.interval.ms").and_then(|text| text.parse().ok());
                let patience = patience.map_or(PATIENCE, Duration::from_millis);
                Owner::Group(Member::new(&client, tokens.clone(), patterns.clone(), ownership.clone(), patience)?)
            }
            Assignment::Everything => {
                let found =
                    discover(Arc::downgrade(&consumer), patterns.clone(), ownership.clone(), config.discover_every);
                Owner::Metadata(tokio::spawn(found))
            }
        };
        let witness = Witness::start(&client, tokens, config.discover_every)?;
        Ok(KafkaSource {
            brokers: config.brokers,
            patterns,
            consumer,
            assigned: Assigned::default(),
            ownership,
            told: Owned::new(),
            owner,
            witness,
            postponed: None,
            trouble_since: None,
            answer_timeout: ANSWER_TIMEOUT,
            trouble_timeout: TROUBLE_TIMEOUT,
        })
    }

    /// Asks the brokers something. The client's questions block, so they get a thread. Who is turned away at the door is
    /// told so soon, and not when waiting for an answer ends.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl Fn(&StreamConsumer<ClientLog>, Duration) -> KafkaResult<T> + Send + Sync + 'static,
    ) -> KafkaResult<T> {
        let question = Arc::new(question);
        let soon = SOON.min(self.answer_timeout / 2);
        let mut answer = Err(KafkaError::Canceled);
        for timeout in [soon, self.answer_timeout] {
            let (consumer, question) = (self.consumer.clone(), question.clone());
            // Without an answer, the runtime is being shut down, or the question panicked.
            let asked = tokio::task::spawn_blocking(move || question(&consumer, timeout)).await;
            answer = asked.unwrap_or(Err(KafkaError::Canceled));
            let Err(error) = &answer else { break };
            self.hear_complaints().await;
            if !self.consumer.context().may_pass(error) {
                break;
            }
        }
        answer
    }

    /// Sees to it that the client has a token, where it needs one. It asks for its first when it is listened to, which
    /// nobody does before there is something to read; for later ones it asks while records are read.
    async fn authenticate(&self) -> Result<()> {
        let log = self.consumer.context();
        let Some(tokens) = &log.tokens else { return Ok(()) };
        tokens.ready().await?;
        let deadline = Instant::now() + self.answer_timeout;
        while !log.has_token() && self.assigned.partitions.is_empty() && Instant::now() < deadline {
            self.hear_complaints().await;
        }
        Ok(())
    }

    async fn bounds(&self, partitions: Vec<TopicPartition>) -> Result<BTreeMap<TopicPartition, Bounds>> {
        let questions = partitions.into_iter().map(|at| async move {
            let bounds = self.bounds_of(&at).await?;
            Ok((at, bounds))
        });
        futures::stream::iter(questions).buffer_unordered(QUESTIONS_AT_ONCE).try_collect().await
    }

    async fn bounds_of(&self, at: &TopicPartition) -> Result<Bounds> {
        self.authenticate().await?;
        let deadline = Instant::now() + self.answer_timeout;
        loop {
            let asked = at.clone();
            let question = move |consumer: &StreamConsumer<ClientLog>, timeout| {
                consumer.fetch_watermarks(&asked.topic, asked.partition, timeout)
            };
            let error = match self.ask(question).await {
                Ok((first, end)) => return Ok(Bounds { first, end }),
                Err(error) => error,
            };
            // Of a partition that is new, this client may not have heard yet; asking for all makes it.
            let is_unknown = trouble(error.rdkafka_error_code()) == Trouble::TopicGone;
            if !is_unknown || Instant::now() >= deadline || !self.all_partitions().await?.contains(at) {
                return Err(self.failure(&error, Some(at)));
            }
        }
    }

    /// The situation a client's error means. `at` is the partition it is about, where that is known.
    fn failure(&self, error: &KafkaError, at: Option<&TopicPartition>) -> Error {
        let mut source = Reason::from(error);
        let mut trouble = trouble(error.rdkafka_error_code());
        if trouble == Trouble::Passing
            && let Some((complained, text)) = self.consumer.context().complaint()
        {
            trouble = complained;
            source = Reason::new(text);
        }
        self.situation(error, trouble, source, at)
    }

    fn situation(&self, error: &KafkaError, trouble: Trouble, source: Reason, at: Option<&TopicPartition>) -> Error {
        match Error::new(trouble, &self.brokers, source, at) {
            Error::Unreachable { brokers, source } if matches!(error, KafkaError::MessageConsumptionFatal(_)) => {
                Error::Broken { brokers, source }
            }
            other => other,
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

    /// Judges what was met last. It stays until it is judged, so that a fetch dropped meanwhile does not lose it.
    async fn judge_postponed(&mut self) -> Result<()> {
        let error = match self.postponed.take() {
            None => return Ok(()),
            Some(Postponed::Verdict(error)) => return Err(error),
            Some(Postponed::Client(error)) => error,
        };
        self.postponed = Some(Postponed::Client(error.clone()));
        let verdict = self.judge(error).await;
        self.postponed = None;
        verdict
    }

    /// Turns an error met while reading into one to return, or into nothing when the client tries again by itself.
    async fn judge(&mut self, error: KafkaError) -> Result<()> {
        let met = match trouble(error.rdkafka_error_code()) {
            // Not by a token that expired: the next one is on its way, or its issuer's trouble shows when probing.
            Trouble::Denied if self.consumer.context().is_about_token(&error) => Trouble::Passing,
            met => met,
        };
        match met {
            Trouble::OutOfRange => {
                let partitions = self.assigned.partitions.iter().map(|reading| reading.at.clone()).collect();
                let bounds = self.bounds(partitions).await?;
                self.verify_all();
                for reading in &mut self.assigned.partitions {
                    let bounds = bounds[&reading.at];
                    check_bounds(&reading.at, reading.next, bounds)?;
                    // The record to see again may have left since it was looked for.
                    reading.unverified.take_if(|mark| mark.offset < bounds.first);
                }
                // The position is there after all; the client has stopped reading the partition all the same.
                self.restart_all()
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
            None => {
                self.verify_all();
                self.restart_all()
            }
        }
    }

    /// A group takes away what is deleted too, which is nothing to go on from as if it had been given to another.
    async fn check_not_deleted(&self, lost: &[TopicPartition]) -> Result<()> {
        let Some(first) = lost.first() else { return Ok(()) };
        let there = match self.all_partitions().await {
            Ok(there) => there,
            Err(error) => {
                tracing::debug!(%error, "whether `{first}` is still there is not known");
                return Ok(());
            }
        };
        match lost.iter().find(|at| !there.iter().any(|there| there.topic == at.topic)) {
            Some(at) => Err(Error::TopicMissing { topic: at.topic.to_string(), brokers: self.brokers.clone() }),
            None => Ok(()),
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
            self.consumer.context().forget_complaint();
        }
    }

    async fn all_partitions(&self) -> Result<Vec<TopicPartition>> {
        self.authenticate().await?;
        self.ask(list_partitions).await.map_err(|error| self.failure(&error, None))
    }

    /// Has what was read seen again before anything else is given, for what went wrong may have been a topic that was
    /// made anew.
    fn verify_all(&mut self) {
        for reading in &mut self.assigned.partitions {
            let newest = self.witness.newest(&reading.at).filter(|mark| mark.offset < reading.next);
            reading.unverified = reading.unverified.or(newest);
        }
    }

    /// Reads all partitions on from where they stand. The client drops what it had read ahead.
    fn restart_all(&mut self) -> Result<()> {
        let all: Vec<usize> = (0..self.assigned.partitions.len()).collect();
        self.restart(&all)
    }

    /// Reads partitions on from where they stand, but for those that are paused.
    fn restart(&mut self, indices: &[usize]) -> Result<()> {
        self.stop(indices)?;
        let mut list = TopicPartitionList::new();
        for index in indices {
            let reading = &self.assigned.partitions[*index];
            if !reading.is_paused {
                list.add_partition_offset(&reading.at.topic, reading.at.partition, Offset::Offset(reading.start()))
                    .map_err(|error| self.failure(&error, Some(&reading.at)))?;
            }
        }
        if list.count() == 0 {
            return Ok(());
        }
        self.consumer.incremental_assign(&list).map_err(|error| self.failure(&error, None))?;
        let positions = self.consumer.position().map_err(|error| self.failure(&error, None))?;
        for element in list.elements() {
            if let Some(reading) = self.assigned.find(element.topic(), element.partition()) {
                let told = positions.find_partition(element.topic(), element.partition());
                reading.is_started = true;
                reading.stale = told.and_then(|element| absolute(element.offset()));
            }
        }
        Ok(())
    }

    /// Takes partitions away from the client, with what it had read ahead of them.
    fn stop(&mut self, indices: &[usize]) -> Result<()> {
        let mut list = TopicPartitionList::new();
        for index in indices {
            let reading = &mut self.assigned.partitions[*index];
            if std::mem::take(&mut reading.is_started) {
                list.add_partition(&reading.at.topic, reading.at.partition);
            }
        }
        if list.count() == 0 {
            return Ok(());
        }
        self.consumer.incremental_unassign(&list).map_err(|error| self.failure(&error, None))
    }

    fn abandon(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let indices = self.assigned.indices(partitions);
        self.stop(&indices)?;
        self.assigned.remove(partitions);
        Ok(())
    }

    /// Takes over positions that moved past offsets without records.
    fn pass_gaps(&mut self) {
        let Ok(positions) = self.consumer.position() else { return };
        for element in positions.elements() {
            let told = absolute(element.offset());
            let Some(reading) = self.assigned.find(element.topic(), element.partition()) else { continue };
            if reading.stale.is_some() && reading.stale == told {
                continue;
            }
            reading.stale = None;
            if let Some(next) = told.filter(|next| *next > reading.next) {
                reading.next = next;
                reading.moved = true;
            }
        }
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        if let Owner::Metadata(task) = &self.owner {
            task.abort();
        }
    }
}

#[async_trait]
impl Source for KafkaSource {
    async fn partitions(&mut self) -> Result<Vec<TopicPartition>> {
        let mut found = self.all_partitions().await?;
        found.retain(|at| self.patterns.iter().any(|pattern| pattern.matches(&at.topic)));
        let is_missing = |topic: &&str| !found.iter().any(|at| *at.topic == **topic);
        if let Some(topic) = self.patterns.iter().filter_map(TopicPattern::literal).find(is_missing) {
            return Err(Error::TopicMissing { topic: topic.to_string(), brokers: self.brokers.clone() });
        }
        match &self.owner {
            Owner::Group(member) => member.attend(),
            Owner::Metadata(_) => self.ownership.gain(found),
        }
        self.told = self.ownership.owned();
        Ok(self.told.keys().cloned().collect())
    }

    async fn assign(&mut self, starts: &BTreeMap<TopicPartition, Start>) -> Result<Positions> {
        let bounds = self.bounds(starts.keys().cloned().collect()).await?;
        let mut positions = Positions::new();
        for (at, start) in starts {
            let next = match start {
                Start::Beginning => bounds[at].first,
                Start::At { next, .. } => *next,
            };
            check_bounds(at, next, bounds[at])?;
            positions.insert(at.clone(), next);
        }
        if let Owner::Metadata(_) = &self.owner {
            self.ownership.gain(starts.keys().cloned());
        }
        let owned = self.ownership.owned();
        for (at, next) in &positions {
            let last = match starts[at] {
                Start::At { last: Some(last), .. } if (bounds[at].first..*next).contains(&last.offset) => Some(last),
                _ => None,
            };
            self.told.entry(at.clone()).or_insert_with(|| owned.get(at).copied().unwrap_or_default());
            if let Some(last) = last {
                self.witness.was_told(at, last);
            }
            self.assigned.set(at, *next, last);
        }
        let indices = self.assigned.indices(positions.keys());
        self.restart(&indices)?;
        Ok(positions)
    }

    async fn fetch(&mut self, limits: FetchLimits) -> Result<Fetched> {
        self.judge_postponed().await?;
        if !self.consumer.context().has_token() {
            self.authenticate().await?;
        }
        if let Some(finding) = self.witness.take_finding() {
            return Err(finding);
        }
        let owned = self.ownership.owned();
        let (gained, mut lost) = (difference(&owned, &self.told), Vec::new());
        if let Owner::Group(member) = &self.owner {
            member.attend();
            if let Some((error, reason)) = member.take_failure() {
                return Err(self.situation(&error, trouble(error.rdkafka_error_code()), reason, None));
            }
            lost = difference(&self.told, &owned);
            self.abandon(&lost)?;
            self.witness.retain(|topic| self.assigned.index.contains_key(topic));
            self.check_not_deleted(&lost).await?;
        }
        let consumer = self.consumer.clone();
        let mut stream = consumer.stream();
        let ownership = self.ownership.clone();
        let deadline = Instant::now() + limits.wait;
        let mut records = Vec::new();
        let (mut arena, mut bytes, mut saw_end) = (BytesMut::new(), 0, false);
        while records.len() < limits.records && bytes < limits.bytes {
            let next = match stream.next().now_or_never() {
                Some(next) => next,
                None if saw_end || !records.is_empty() || !gained.is_empty() || !lost.is_empty() => break,
                None => tokio::select! {
                    next = stream.next() => next,
                    () = ownership.changed() => match ownership.owned() == self.told {
                        true => continue,
                        false => break,
                    },
                    () = tokio::time::sleep_until(deadline) => break,
                },
            };
            match next {
                Some(Ok(message)) => match self.assigned.take(&message, &mut arena) {
                    Ok(None) => {}
                    Ok(Some(record)) => {
                        bytes += message.payload_len() + message.key_len();
                        records.push(record);
                    }
                    Err(error) => {
                        let at = TopicPartition::new(message.topic(), message.partition());
                        self.postponed = Some(Postponed::Verdict(error));
                        self.abandon(&[at])?;
                        break;
                    }
                },
                Some(Err(KafkaError::PartitionEOF(_))) => saw_end = true,
                Some(Err(error)) => {
                    self.postponed = Some(Postponed::Client(error));
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
        self.witness.saw(&records);
        self.told = owned;
        Ok(Fetched { records, positions: self.assigned.take_moved(), gained, lost })
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let indices = self.assigned.indices(partitions);
        indices.iter().for_each(|index| self.assigned.partitions[*index].is_paused = true);
        self.stop(&indices)
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        let mut indices = self.assigned.indices(partitions);
        indices.retain(|index| std::mem::take(&mut self.assigned.partitions[*index].is_paused));
        self.restart(&indices)
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
        let committed = added.and_then(|()| match &self.owner {
            Owner::Group(member) => member.commit(&list),
            Owner::Metadata(_) => self.consumer.commit(&list, CommitMode::Async),
        });
        if let Err(error) = committed {
            tracing::debug!(%error, "the group's offsets were not moved");
        }
    }
}

impl Reading {
    /// The offset the client is sent to.
    fn start(&self) -> i64 {
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
        let found = record(&self.at, message, &mut BytesMut::new());
        if RecordMark::of(&found) == mark {
            return Ok(());
        }
        Err(Error::Replaced { at: self.at.clone(), offset: mark.offset, mark: Some(mark) })
    }
}

impl Assigned {
    fn set(&mut self, at: &TopicPartition, next: i64, unverified: Option<RecordMark>) {
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

    fn remove(&mut self, partitions: &[TopicPartition]) {
        if partitions.is_empty() {
            return;
        }
        self.partitions.retain(|reading| !partitions.contains(&reading.at));
        self.index.clear();
        for (index, reading) in self.partitions.iter().enumerate() {
            self.index.entry(reading.at.topic.clone()).or_default().insert(reading.at.partition, index);
        }
    }

    fn index_of(&self, topic: &str, partition: i32) -> Option<usize> {
        self.index.get(topic)?.get(&partition).copied()
    }

    /// Where those of the partitions are that are being read.
    fn indices<'a>(&self, partitions: impl IntoIterator<Item = &'a TopicPartition>) -> Vec<usize> {
        partitions.into_iter().filter_map(|at| self.index_of(&at.topic, at.partition)).collect()
    }

    fn find(&mut self, topic: &str, partition: i32) -> Option<&mut Reading> {
        let is_last = |reading: &Reading| reading.at.partition == partition && *reading.at.topic == *topic;
        if !self.partitions.get(self.last).is_some_and(is_last) {
            self.last = self.index_of(topic, partition)?;
        }
        self.partitions.get_mut(self.last)
    }

    /// A message as a record. Nothing when it is not being read, or is behind the position, which is only said of the
    /// record to see again and of what the client had read before it was told to read elsewhere.
    fn take(&mut self, message: &BorrowedMessage<'_>, arena: &mut BytesMut) -> Result<Option<RawRecord>> {
        let Some(reading) = self.find(message.topic(), message.partition()) else { return Ok(None) };
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
        Ok(Some(record(&reading.at, message, arena)))
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

pub(super) fn record(at: &TopicPartition, message: &BorrowedMessage<'_>, arena: &mut BytesMut) -> RawRecord {
    RawRecord {
        topic: at.topic.clone(),
        partition: at.partition,
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key().map(|key| copy(key, arena)),
        payload: message.payload().map(|payload| copy(payload, arena)),
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

fn absolute(offset: Offset) -> Option<i64> {
    match offset {
        Offset::Offset(offset) => Some(offset),
        _ => None,
    }
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

/// Looks for new topics and partitions for as long as the client is there. One that is gone is for reading to find out.
async fn discover(
    consumer: std::sync::Weak<StreamConsumer<ClientLog>>,
    patterns: Vec<TopicPattern>,
    ownership: Arc<Ownership>,
    every: Duration,
) {
    loop {
        tokio::time::sleep(every).await;
        let consumer = consumer.clone();
        let question = move || consumer.upgrade().map(|consumer| list_partitions(&*consumer, ANSWER_TIMEOUT));
        match tokio::task::spawn_blocking(question).await {
            Ok(Some(Ok(mut found))) => {
                found.retain(|at| patterns.iter().any(|pattern| pattern.matches(&at.topic)));
                ownership.gain(found);
            }
            Ok(Some(Err(error))) => tracing::debug!(%error, "new topics were not looked for"),
            Ok(None) | Err(_) => return,
        }
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
            assignment: Assignment::Everything,
            discover_every: Duration::from_secs(30),
            properties: BTreeMap::new(),
            msk_iam: None,
            queue_bytes: 1 << 20,
        }
    }

    fn at(partition: i32) -> TopicPartition {
        TopicPartition::new(TOPIC, partition)
    }

    fn from(next: i64) -> Start {
        Start::At { next, last: None }
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
        let starts = [(at(0), Start::Beginning), (at(1), from(100))].into();
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
        source.assign(&[(at(0), from(10)), (at(1), from(20))].into()).await.unwrap();
        let ends = source.end_offsets().await.unwrap();
        let few = FetchLimits { records: 30, ..LIMITS };
        let mut before = Vec::new();
        while before.len() < 60 {
            before.extend(source.fetch(few).await.unwrap().records);
        }
        source.assign(&[(at(0), from(5))].into()).await.unwrap();
        let after = drain(&mut source, &ends).await;
        assert_eq!(offsets(&after, 0), (5..150).collect::<Vec<_>>());
        let other = [offsets(&before, 1), offsets(&after, 1)].concat();
        assert_eq!(other, (20..150).collect::<Vec<_>>());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn empty_partitions_end_where_they_start() {
        let (_broker, mut source) = topic([0, 0]).await;
        let starts: BTreeMap<_, _> = [(at(0), Start::Beginning), (at(1), from(0))].into();
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
        let past = source.assign(&[(at(0), from(101))].into()).await.unwrap_err();
        assert!(matches!(past, Error::PastEnd { offset: 101, end: 100, .. }), "{past:?}");
        let expired = source.assign(&[(at(0), from(3))].into()).await.unwrap_err();
        assert!(matches!(expired, Error::Expired { offset: 3, first: 40..60, .. }), "{expired:?}");
        assert_eq!(expired.kind(), Kind::Corrupt);
        let first = source.assign(&[(at(0), Start::Beginning)].into()).await.unwrap()[&at(0)];
        assert!((40..60).contains(&first), "{first}");
        // The broker drops records while they are being read.
        source.assigned.set(&at(0), 3, None);
        source.restart_all().unwrap();
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

    /// A start behind the first `next` records of [`topic`], the last of which is `last`.
    fn behind(next: i64, last: &RawRecord) -> Start {
        Start::At { next, last: Some(RecordMark::of(last)) }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_log_that_is_another_than_before_is_not_read_on() {
        let (_broker, mut source) = topic([120, 120]).await;
        source.assign(&[(at(0), Start::Beginning), (at(1), Start::Beginning)].into()).await.unwrap();
        let ends = source.end_offsets().await.unwrap();
        let before = drain(&mut source, &ends).await;
        let read = |partition, offset| before.iter().find(|r| (r.partition, r.offset) == (partition, offset)).unwrap();
        source.assign(&[(at(0), behind(100, read(0, 97))), (at(1), behind(60, read(1, 59)))].into()).await.unwrap();
        let after = drain(&mut source, &ends).await;
        assert_eq!(offsets(&after, 0), (100..120).collect::<Vec<_>>());
        assert_eq!(offsets(&after, 1), (60..120).collect::<Vec<_>>());
        // The record at 59 is another one, of which nothing is given; the other partition goes on.
        let another = RawRecord { payload: Some("another".into()), ..read(1, 59).clone() };
        let starts = [(at(0), behind(50, read(0, 49))), (at(1), behind(60, &another))];
        source.assign(&starts.into()).await.unwrap();
        let (mut records, mut met) = (Vec::new(), None);
        let all = async {
            while met.is_none() || offsets(&records, 0).len() < 70 {
                match source.fetch(LIMITS).await {
                    Ok(fetched) => records.extend(fetched.records),
                    Err(error) => assert!(met.replace(error).is_none(), "told twice"),
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
        let met = met.unwrap();
        assert!(matches!(&met, Error::Replaced { at: met, offset: 59, .. } if *met == at(1)), "{met:?}");
        assert_eq!((met.kind(), offsets(&records, 1)), (Kind::Corrupt, vec![]));
        assert_eq!(offsets(&records, 0), (50..120).collect::<Vec<_>>());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_held_back_goes_on_where_it_was() {
        let (_broker, mut source) = topic([300, 300]).await;
        source.assign(&[(at(0), Start::Beginning), (at(1), Start::Beginning)].into()).await.unwrap();
        let ends = source.end_offsets().await.unwrap();
        let few = FetchLimits { records: 7, ..LIMITS };
        let mut records = Vec::new();
        for round in 0.. {
            // One partition and then the other, with much of both in the client's queue.
            let (held, free) = (at(round % 2), at(1 - round % 2));
            source.pause(std::slice::from_ref(&held)).unwrap();
            let fetched = source.fetch(few).await.unwrap();
            assert_eq!(offsets(&fetched.records, held.partition), Vec::<i64>::new());
            assert!(!fetched.positions.contains_key(&held));
            records.extend(fetched.records);
            source.resume(&[held, free]).unwrap();
            if offsets(&records, 0).len() >= 50 && offsets(&records, 1).len() >= 50 {
                break;
            }
        }
        records.extend(drain_rest(&mut source, &ends).await);
        assert_eq!(offsets(&records, 0), (0..300).collect::<Vec<_>>());
        assert_eq!(offsets(&records, 1), (0..300).collect::<Vec<_>>());
    }

    /// Everything up to `ends`, for partitions that may have got there already.
    async fn drain_rest(source: &mut KafkaSource, ends: &Positions) -> Vec<RawRecord> {
        let mut records = Vec::new();
        let all = async {
            while source.assigned.partitions.iter().any(|reading| reading.next < ends[&reading.at]) {
                records.extend(source.fetch(LIMITS).await.unwrap().records);
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.expect("the end of the topic is reached");
        records
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_new_topic_is_found_while_reading() {
        let (broker, _) = topic([5, 0]).await;
        let discover_every = Duration::from_millis(50);
        let mut source = KafkaSource::connect(KafkaConfig { discover_every, ..config(broker.brokers()) }).unwrap();
        assert_eq!(source.partitions().await.unwrap(), [at(0), at(1)]);
        source.assign(&[(at(0), Start::Beginning)].into()).await.unwrap();
        broker.create_topic("crm.leads", 1).unwrap();
        broker.create_topic("shop.public.refunds", 2).unwrap();
        let wait = Duration::from_secs(30);
        let found = async {
            loop {
                let fetched = source.fetch(FetchLimits { wait, ..LIMITS }).await.unwrap();
                assert_eq!(fetched.lost, []);
                if !fetched.gained.is_empty() {
                    break fetched.gained;
                }
            }
        };
        let gained = tokio::time::timeout(wait, found).await.unwrap();
        let refunds = |partition| TopicPartition::new("shop.public.refunds", partition);
        assert_eq!(gained, [refunds(0), refunds(1)]);
        assert_eq!(source.fetch(LIMITS).await.unwrap().gained, [], "told once");
    }

    /// A member with what it has.
    struct Reader {
        source: KafkaSource,
        owned: std::collections::BTreeSet<TopicPartition>,
        records: Vec<RawRecord>,
    }

    impl Reader {
        fn join(broker: &EmbeddedBroker, properties: &[(&str, &str)]) -> Self {
            // The embedded broker waits for a session's end before it lets a member join the others.
            let quick = [("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "200")];
            let properties = quick.iter().chain(properties);
            let properties = properties.map(|(name, value)| (name.to_string(), value.to_string())).collect();
            let config = KafkaConfig {
                assignment: Assignment::Group,
                discover_every: Duration::from_millis(200),
                properties,
                ..config(broker.brokers())
            };
            let source = KafkaSource::connect(config).unwrap();
            Reader { source, owned: Default::default(), records: Vec::new() }
        }

        /// One fetch, with what was gained read from its beginning.
        async fn step(&mut self) {
            let fetched = self.source.fetch(LIMITS).await.unwrap();
            for at in &fetched.lost {
                assert!(self.owned.remove(at), "{at} was not owned");
            }
            let starts: BTreeMap<_, _> = fetched.gained.iter().map(|at| (at.clone(), Start::Beginning)).collect();
            self.source.assign(&starts).await.unwrap();
            for at in fetched.gained {
                assert!(self.owned.insert(at.clone()), "{at} was owned already");
            }
            for record in &fetched.records {
                assert!(self.owned.contains(&TopicPartition::new(record.topic.clone(), record.partition)));
            }
            self.records.extend(fetched.records);
        }
    }

    async fn until(what: &str, readers: &mut [&mut Reader], done: impl Fn(&[&mut Reader]) -> bool) {
        let all = async {
            while !done(readers) {
                for reader in readers.iter_mut() {
                    reader.step().await;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), all).await.unwrap_or_else(|_| panic!("{what}"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn members_share_partitions_and_take_over_from_one_that_leaves() {
        let (broker, _) = topic([40, 40]).await;
        let mut first = Reader::join(&broker, &[]);
        let mut second = Reader::join(&broker, &[]);
        assert_eq!(first.source.partitions().await.unwrap(), []);
        until("one has all", &mut [&mut first], |readers| readers[0].owned.len() == 2).await;
        until("both are shared", &mut [&mut first, &mut second], |readers| {
            readers.iter().all(|reader| reader.owned.len() == 1 && reader.records.len() >= 40)
        })
        .await;
        assert!(first.owned.is_disjoint(&second.owned));
        first.source.durable(&first.owned.iter().map(|at| (at.clone(), 17)).collect()).await;
        let theirs = first.owned.clone();
        drop(first);
        until("the other takes over", &mut [&mut second], |readers| readers[0].owned.is_superset(&theirs)).await;
        broker.create_topic("shop.public.refunds", 3).unwrap();
        until("a new topic is shared", &mut [&mut second], |readers| readers[0].owned.len() == 5).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_asks_for_nothing_gives_its_partitions_away() {
        let (broker, _) = topic([10, 10]).await;
        let impatient = [("max.poll.interval.ms", "6000")];
        let mut first = Reader::join(&broker, &impatient);
        let mut second = Reader::join(&broker, &impatient);
        until("one has all", &mut [&mut first], |readers| readers[0].owned.len() == 2).await;
        // The first hangs.
        until("the other has all", &mut [&mut second], |readers| readers[0].owned.len() == 2).await;
        // And goes on, of all that it had nothing.
        let fetched = first.source.fetch(LIMITS).await.unwrap();
        assert_eq!((fetched.lost, fetched.records), (vec![at(0), at(1)], vec![]));
        first.owned.clear();
        until("both are shared", &mut [&mut first, &mut second], |readers| {
            readers.iter().all(|reader| reader.owned.len() == 1)
        })
        .await;
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
