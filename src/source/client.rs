//! What every Kafka client here is set up with, and where its words go.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::TopicPartitionList;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::types::RDKafkaConfRes;

use super::error::{Error, Result, Trouble, trouble};
use super::kafka::KafkaConfig;
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

/// How much one answer of a broker may hold. Answers come on top of what is queued.
const ANSWER_BYTES: std::ops::RangeInclusive<usize> = 1_000_000..=50 * 1024 * 1024;

/// The settings every client has in common; the properties of the configuration come last.
pub(super) fn client_config(config: &KafkaConfig) -> Result<ClientConfig> {
    let mut client = ClientConfig::new();
    client.set("bootstrap.servers", &config.brokers);
    client.set("group.id", &config.group);
    client.set("enable.auto.commit", "false");
    client.set("enable.auto.offset.store", "false");
    client.set("enable.partition.eof", "true");
    client.set("auto.offset.reset", "error");
    client.set("isolation.level", "read_committed");
    client.set("queued.max.messages.kbytes", (config.queue_bytes / 1024).max(1).to_string());
    let answer = config.queue_bytes.clamp(*ANSWER_BYTES.start(), *ANSWER_BYTES.end());
    client.set("fetch.max.bytes", answer.to_string());
    client.set("topic.metadata.refresh.interval.ms", milliseconds(config.discover_every));
    client.set_log_level(RDKafkaLogLevel::Info);
    for (name, value) in &config.properties {
        if let Some((_, why)) = RESERVED.iter().find(|(reserved, _)| reserved == name) {
            return Err(Error::ReservedProperty { name: name.clone(), why });
        }
        client.set(name, value);
    }
    Ok(client)
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

/// Carries the client's words to our log, and keeps the last complaint for errors that need a reason.
#[derive(Default)]
pub(super) struct ClientLog {
    complaint: Mutex<Option<(Trouble, String)>>,
}

impl ClientLog {
    pub(super) fn complaint(&self) -> Option<(Trouble, String)> {
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn forget_complaint(&self) {
        *self.complaint.lock().unwrap_or_else(PoisonError::into_inner) = None;
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
        if matches!(error, KafkaError::Global(RDKafkaErrorCode::PartitionEOF)) {
            return;
        }
        let trouble = trouble(error.rdkafka_error_code());
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
            .field("assignment", &self.assignment)
            .field("discover_every", &self.discover_every)
            .field("properties", &self.properties.keys().collect::<Vec<_>>())
            .field("queue_bytes", &self.queue_bytes)
            .finish()
    }
}
