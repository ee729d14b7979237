//! What an error of the client means: to be waited out, looked into, or told.

use std::time::Duration;

use futures::StreamExt;
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use tokio::time::Instant;

use super::KafkaSource;
use super::assigned::check_bounds;
use crate::offsets::TopicPartition;
use crate::source::error::{Error, Reason, Result, Trouble, trouble};

/// How long a connection may be in trouble, with no record coming, before a probe decides whether to give up. Longer than
/// a broker takes to restart.
pub(super) const TROUBLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long to listen for the reason why a broker did not answer.
const COMPLAINT_TIMEOUT: Duration = Duration::from_millis(50);

pub(super) enum Postponed {
    Client(KafkaError),
    Verdict(Error),
}

impl KafkaSource {
    /// The situation a client's error means. `at` is the partition it is about, where that is known.
    pub(super) fn failure(&self, error: &KafkaError, at: Option<&TopicPartition>) -> Error {
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

    pub(super) fn situation(
        &self,
        error: &KafkaError,
        trouble: Trouble,
        source: Reason,
        at: Option<&TopicPartition>,
    ) -> Error {
        match Error::new(trouble, &self.brokers, source, at) {
            Error::Unreachable { brokers, source } if matches!(error, KafkaError::MessageConsumptionFatal(_)) => {
                Error::Broken { brokers, source }
            }
            other => other,
        }
    }

    /// The client says why it cannot connect through the queue that also holds records, so it is only listened to while
    /// nothing is assigned.
    pub(super) async fn hear_complaints(&self) {
        if self.assigned.partitions.is_empty() {
            let mut stream = self.consumer.stream();
            while let Ok(Some(_)) = tokio::time::timeout(COMPLAINT_TIMEOUT, stream.next()).await {}
        }
    }

    /// Judges what was met last. It stays until it is judged, so that a fetch dropped meanwhile does not lose it.
    pub(super) async fn judge_postponed(&mut self) -> Result<()> {
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
    pub(super) async fn check_not_deleted(&self, lost: &[TopicPartition]) -> Result<()> {
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
    pub(super) async fn check_trouble(&mut self) -> Result<()> {
        if self.trouble_since.is_some_and(|since| since.elapsed() >= self.trouble_timeout) {
            self.all_partitions().await?;
            self.forget_trouble();
        }
        Ok(())
    }

    pub(super) fn forget_trouble(&mut self) {
        if self.trouble_since.take().is_some() {
            self.consumer.context().forget_complaint();
        }
    }
}
