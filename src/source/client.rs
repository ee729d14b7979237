//! What every Kafka client here is set up with, and where its words go.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::TopicPartitionList;
use rdkafka::client::OAuthToken;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaConfRes;
use serde::Deserialize;

use super::error::{Error, Result, Trouble, trouble, trouble_said};
use super::kafka::KafkaConfig;
use super::token::{Issuer, Tokens};
use crate::clock::Clock;
use crate::offsets::TopicPartition;

/// Properties that decide where reading starts or ends, which is not the user's to say, or that are set elsewhere.
const RESERVED: &[(&str, &str)] = &[
    ("auto.offset.reset", "where reading starts comes from the tables alone"),
    ("bootstrap.servers", "it is `source.kafka.brokers`"),
    ("metadata.broker.list", "it is `source.kafka.brokers`"),
    ("enable.auto.commit", "what the group has committed follows the tables"),
    ("enable.auto.offset.store", "what the group has committed follows the tables"),
    ("enable.partition.eof", "the end of a partition has to be seen"),
    ("group.id", "it is `source.kafka.group`"),
    ("group.protocol", "members share partitions in the way all brokers know"),
    ("partition.assignment.strategy", "members share partitions by `cooperative-sticky`"),
    ("topic.blacklist", "it follows from `source.kafka.topics`"),
];

/// How much one answer of a broker may hold. Answers come on top of what is queued, and packed: they hold a few times as
/// much once they are read.
const ANSWER_BYTES: std::ops::RangeInclusive<usize> = 1_000_000..=50 * 1024 * 1024;

/// The settings every client has in common, the properties of the configuration last; and where it has tokens from, if it
/// needs any. Those are fetched from now on, by a task.
pub(super) fn client_config(config: &KafkaConfig) -> Result<(ClientConfig, Option<Arc<Tokens>>)> {
    let issuer = Issuer::new(config)?;
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &config.brokers);
    client.set("group.id", &config.group);
    client.set("enable.auto.commit", "false");
    client.set("enable.auto.offset.store", "false");
    client.set("enable.partition.eof", "true");
    client.set("auto.offset.reset", "error");
    client.set("isolation.level", "read_committed");
    client.set("queued.max.messages.kbytes", (config.queue_bytes / 1024).max(1).to_string());
    let answer = (config.queue_bytes / 4).clamp(*ANSWER_BYTES.start(), *ANSWER_BYTES.end());
    // The client does not start where an answer may hold less than a message.
    let message = config.properties.get("message.max.bytes").and_then(|text| text.parse().ok()).unwrap_or(0);
    client.set("fetch.max.bytes", answer.max(message).to_string());
    // A queue that was full is read empty in less time than the second that the client would wait until it asks again.
    client.set("fetch.queue.backoff.ms", "10");
    client.set("topic.metadata.refresh.interval.ms", milliseconds(config.discover_every));
    client.set_log_level(RDKafkaLogLevel::Info);
    if issuer.is_some() {
        client.set("security.protocol", "SASL_SSL").set("sasl.mechanism", "OAUTHBEARER");
    }
    for (name, value) in &config.properties {
        if let Some((_, why)) = RESERVED.iter().find(|(reserved, _)| reserved == name) {
            return Err(Error::ReservedProperty { name: name.clone(), why });
        }
        if !issuer.as_ref().is_some_and(|issuer| issuer.takes(name)) {
            client.set(name, value);
        }
    }
    Ok((client, issuer.map(|issuer| Tokens::start(issuer, Clock::system()))))
}

/// A time as the client's properties have it; they end at an hour and are no less than ten milliseconds.
fn milliseconds(span: Duration) -> String {
    span.as_millis().clamp(10, 3_600_000).to_string()
}

pub(super) fn set_up_error(error: &KafkaError) -> Error {
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

/// Every partition of every topic there is.
pub(super) fn list_partitions(
    consumer: &impl Consumer<ClientLog>,
    timeout: Duration,
) -> KafkaResult<Vec<TopicPartition>> {
    let metadata = consumer.fetch_metadata(None, timeout)?;
    let mut found = Vec::new();
    for topic in metadata.topics() {
        let name: Arc<str> = topic.name().into();
        found.extend(topic.partitions().iter().map(|part| TopicPartition::new(name.clone(), part.id())));
    }
    found.sort();
    Ok(found)
}

/// Carries the client's words to our log, and keeps the last complaint for errors that need a reason. Hands it tokens.
#[derive(Default)]
pub(super) struct ClientLog {
    complaint: Mutex<Option<(Trouble, String)>>,
    pub(super) tokens: Option<Arc<Tokens>>,
    has_token: AtomicBool,
    /// The ends of partitions that the client has read the statistics of, by topic.
    ends: Mutex<BTreeMap<String, BTreeMap<i32, i64>>>,
}

impl ClientLog {
    pub(super) fn new(tokens: Option<Arc<Tokens>>) -> Self {
        ClientLog { tokens, ..ClientLog::default() }
    }

    /// Whether the client was handed its first token, or needs none.
    pub(super) fn has_token(&self) -> bool {
        self.tokens.is_none() || self.has_token.load(Ordering::Relaxed)
    }

    /// Whether an answer that did not come yet may still come.
    pub(super) fn may_pass(&self, error: &KafkaError) -> bool {
        let complained = self.complaint().is_none_or(|(trouble, _)| trouble == Trouble::Passing);
        complained && trouble(error.rdkafka_error_code()) == Trouble::Passing && *error != KafkaError::Canceled
    }

    /// Whether an error may be about a token that was good before.
    pub(super) fn is_about_token(&self, error: &KafkaError) -> bool {
        let code = error.rdkafka_error_code();
        let is_authentication = [RDKafkaErrorCode::Authentication, RDKafkaErrorCode::SaslAuthenticationFailed]
            .iter()
            .any(|authentication| code == Some(*authentication));
        is_authentication && self.tokens.is_some()
    }

    pub(super) fn complaint(&self) -> Option<(Trouble, String)> {
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How far a partition went when the client last told, if it did.
    pub(super) fn end(&self, at: &TopicPartition) -> Option<i64> {
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.get(&*at.topic)?.get(&at.partition).copied()
    }

    pub(super) fn forget_complaint(&self) {
        *self.complaint.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl ClientContext for ClientLog {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    /// Called by whoever listens to the client, so it must not wait.
    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        let Some(tokens) = &self.tokens else {
            // The client makes its first unsecured token by itself, and asks us for the next.
            return Err("an unsecured token is not renewed: set a longer `lifeSeconds`".into());
        };
        let token = tokens.now().map_err(|error| crate::error::Error::from(error).to_string())?;
        self.has_token.store(true, Ordering::Relaxed);
        Ok(token)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
                tracing::debug!(facility, text = message, "kafka client");
            }
            _ => tracing::warn!(facility, text = message, "kafka client"),
        }
    }

    /// Called at intervals where [`STATISTICS_EVERY`] is set. The answers to fetches bring the ends along: nobody is asked.
    fn stats_raw(&self, statistics: &[u8]) {
        match serde_json::from_slice::<Statistics>(statistics) {
            Ok(statistics) => {
                *self.ends.lock().unwrap_or_else(PoisonError::into_inner) = statistics.ends();
            }
            Err(error) => tracing::debug!(%error, "the client's statistics cannot be read"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if matches!(error, KafkaError::Global(RDKafkaErrorCode::PartitionEOF)) {
            return;
        }
        let trouble = trouble_said(error.rdkafka_error_code(), reason);
        let mut complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        // "All brokers down" follows the reason why, which says more.
        if complaint.is_none() || trouble != Trouble::Passing || !reason.contains("brokers are down") {
            *complaint = Some((trouble, reason.to_string()));
        }
    }
}

/// The property by which a client tells its statistics, in milliseconds.
pub const STATISTICS_EVERY: &str = "statistics.interval.ms";

/// What is taken from a client's statistics.
#[derive(Deserialize)]
struct Statistics {
    #[serde(default)]
    topics: BTreeMap<String, TopicStatistics>,
}

#[derive(Deserialize)]
struct TopicStatistics {
    #[serde(default)]
    partitions: BTreeMap<i32, PartitionStatistics>,
}

/// Offsets below zero are not known yet.
#[derive(Deserialize)]
struct PartitionStatistics {
    /// The end for who reads committed transactions alone, as we do.
    ls_offset: i64,
    hi_offset: i64,
}

impl Statistics {
    fn ends(self) -> BTreeMap<String, BTreeMap<i32, i64>> {
        let end = |partition: &PartitionStatistics| {
            [partition.ls_offset, partition.hi_offset].into_iter().find(|offset| *offset >= 0)
        };
        let of_topic = |topic: TopicStatistics| {
            topic.partitions.iter().filter_map(|(number, of)| Some((*number, end(of)?))).collect()
        };
        self.topics.into_iter().map(|(name, topic)| (name, of_topic(topic))).collect()
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
            .field("assignment", &self.assignment)
            .field("discover_every", &self.discover_every)
            .field("properties", &self.properties.keys().collect::<Vec<_>>())
            .field("msk_iam", &self.msk_iam)
            .field("queue_bytes", &self.queue_bytes)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_are_those_of_partitions_that_were_read() {
        let log = ClientLog::default();
        log.stats_raw(
            br#"{"name": "c", "topics": {"t": {"topic": "t", "partitions": {
                "0": {"partition": 0, "ls_offset": 7, "hi_offset": 9, "consumer_lag": 2},
                "1": {"partition": 1, "ls_offset": -1001, "hi_offset": 5},
                "-1": {"partition": -1, "ls_offset": -1001, "hi_offset": -1001}
            }}}}"#,
        );
        log.stats_raw(b"no JSON");
        let end = |topic: &str, partition| log.end(&TopicPartition::new(topic, partition));
        assert_eq!((end("t", 0), end("t", 1), end("t", -1), end("u", 0)), (Some(7), Some(5), None, None));
    }
}
