//! Kafka, read partition by partition with librdkafka.

mod assigned;
mod trouble;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt, TryStreamExt};
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::{Message, Offset, TopicPartitionList};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::client::{ClientLog, STATISTICS_EVERY, client_config, list_partitions, set_up_error};
use super::error::{Error, Result, Trouble, trouble};
use super::member::Member;
use super::ownership::{Owned, Ownership, difference};
use super::pattern::TopicPattern;
use super::witness::Witness;
use super::{FetchLimits, Fetched, Source, Start};
use crate::aws::AwsOptions;
use crate::offsets::{Positions, TopicPartition};
pub(super) use assigned::{Arena, record};
use assigned::{Assigned, Bounds, absolute, check_bounds};
use trouble::{Postponed, TROUBLE_TIMEOUT};

/// How long a broker has to answer a question about topics or offsets.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to wait before looking whether there is any hope of an answer.
pub(super) const SOON: Duration = Duration::from_secs(3);

/// How long a group waits for a member that asks for no records; `max.poll.interval.ms` sets it.
const PATIENCE: Duration = Duration::from_secs(300);

/// How many partitions are asked for their offsets at once. Each question blocks a thread.
const QUESTIONS_AT_ONCE: usize = 16;

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

impl KafkaSource {
    /// Sets up the clients. Connections are made when the first question is asked. Has to be called inside a Tokio runtime.
    pub fn connect(config: KafkaConfig) -> Result<Self> {
        let patterns = config.topics.iter().map(|topic| TopicPattern::parse(topic)).collect::<Result<Vec<_>>>()?;
        let (mut client, tokens) = client_config(&config)?;
        let consumer: StreamConsumer<ClientLog> =
            client.create_with_context(ClientLog::new(tokens.clone())).map_err(|error| set_up_error(&error))?;
        // Nobody listens to what the other clients would tell.
        client.remove(STATISTICS_EVERY);
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
        let (mut arena, mut bytes, mut saw_end) = (Arena::default(), 0, false);
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

    /// What the client has told, where [`STATISTICS_EVERY`] is among its properties.
    fn known_ends(&self) -> Positions {
        let log = self.consumer.context();
        let partitions = self.assigned.partitions.iter();
        partitions.filter_map(|reading| Some((reading.at.clone(), log.end(&reading.at)?))).collect()
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
mod tests;
