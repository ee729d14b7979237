//! Membership in a consumer group that hands out partitions and reads none.
//!
//! A client of its own joins the group. It acknowledges what the group gives and takes, and assigns nothing to itself, so
//! it never fetches: reading is done by another client, from offsets the tables know. **The group is left while nobody
//! asks for records**, so that a pipeline that hangs does not keep partitions from others; and it is told of nothing but
//! this, for what is committed does not depend on it.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::TopicPartitionList;
use rdkafka::client::OAuthToken;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;

use super::client::{ClientLog, set_up_error};
use super::error::{Error, Reason, Result, Trouble, trouble};
use super::ownership::Ownership;
use super::pattern::TopicPattern;
use super::token::Tokens;
use crate::offsets::TopicPartition;

/// How often the group is listened to.
const LISTEN_EVERY: Duration = Duration::from_millis(100);

/// How long leaving the group may take when a process ends. Without a farewell the group waits for the session to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// A member of a group. It leaves when it is dropped.
pub(super) struct Member {
    /// The thread owns the client, since leaving the group blocks.
    consumer: Weak<BaseConsumer<MemberContext>>,
    attendance: Arc<Attendance>,
    /// Dropped to end the thread.
    stay: Option<mpsc::Sender<()>>,
    /// Closed when the thread has left the group.
    left: Mutex<mpsc::Receiver<()>>,
}

#[derive(Default)]
struct Attendance {
    /// When records were last asked for.
    asked: Mutex<Option<Instant>>,
    /// An error that listening on does not heal.
    failure: Mutex<Option<KafkaError>>,
}

struct MemberContext {
    log: ClientLog,
    patterns: Vec<TopicPattern>,
    ownership: Arc<Ownership>,
}

impl Member {
    /// Sets up the client. The group is joined when records are first asked for.
    pub(super) fn new(
        config: &ClientConfig,
        tokens: Option<Arc<Tokens>>,
        patterns: Vec<TopicPattern>,
        ownership: Arc<Ownership>,
        patience: Duration,
    ) -> Result<Self> {
        let mut config = config.clone();
        config.set("partition.assignment.strategy", "cooperative-sticky");
        if !patterns.iter().any(TopicPattern::means_internal_topics) {
            config.set("topic.blacklist", "^__");
        }
        let subscription: Vec<String> = patterns.iter().map(TopicPattern::subscription).collect();
        let context = MemberContext { log: ClientLog::new(tokens), patterns, ownership };
        let consumer: Arc<BaseConsumer<MemberContext>> =
            Arc::new(config.create_with_context(context).map_err(|error| set_up_error(&error))?);
        let weak = Arc::downgrade(&consumer);
        let attendance = Arc::new(Attendance::default());
        let (stay, ended) = mpsc::channel();
        let (leaving, left) = mpsc::channel();
        let attend = {
            let attendance = attendance.clone();
            move || {
                attend(&consumer, &subscription, &attendance, patience, &ended);
                drop(consumer);
                drop::<mpsc::Sender<()>>(leaving);
            }
        };
        std::thread::Builder::new()
            .name("group-member".to_string())
            .spawn(attend)
            .map_err(|error| Error::Setup { problem: error.to_string() })?;
        Ok(Member { consumer: weak, attendance, stay: Some(stay), left: Mutex::new(left) })
    }

    /// Says that records are being asked for.
    pub(super) fn attend(&self) {
        *self.attendance.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// What went wrong in a way that waiting does not heal.
    pub(super) fn take_failure(&self) -> Option<(KafkaError, Reason)> {
        let error = self.attendance.failure.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let complaint = self.consumer.upgrade().and_then(|consumer| consumer.context().log.complaint());
        let reason = match complaint {
            Some((complained, text)) if complained == trouble(error.rdkafka_error_code()) => Reason::new(text),
            _ => Reason::from(&error),
        };
        Some((error, reason))
    }

    /// Moves the group's offsets, as the member that it knows.
    pub(super) fn commit(&self, offsets: &TopicPartitionList) -> KafkaResult<()> {
        self.consumer.upgrade().map_or(Ok(()), |consumer| consumer.commit(offsets, CommitMode::Async))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stay = None;
        let left = self.left.get_mut().unwrap_or_else(PoisonError::into_inner);
        if left.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
            tracing::debug!("the group was not left in time; its coordinator will notice by itself");
        }
    }
}

/// Listens to the group until the sender of `ended` is gone.
fn attend(
    consumer: &BaseConsumer<MemberContext>,
    subscription: &[String],
    attendance: &Attendance,
    patience: Duration,
    ended: &mpsc::Receiver<()>,
) {
    let subscription: Vec<&str> = subscription.iter().map(String::as_str).collect();
    let mut is_subscribed = false;
    while ended.try_recv() != Err(mpsc::TryRecvError::Disconnected) {
        let asked = *attendance.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let is_asked = asked.is_some_and(|asked| asked.elapsed() < patience);
        if is_asked && !is_subscribed {
            match consumer.subscribe(&subscription) {
                Ok(()) => is_subscribed = true,
                Err(error) => attendance.fail(error),
            }
        } else if !is_asked && is_subscribed {
            tracing::warn!("no records were asked for in {patience:?}: leaving the group to those who do");
            consumer.unsubscribe();
            is_subscribed = false;
        }
        // It is asked for a token as soon as it is listened to, and asks again much later.
        if consumer.context().log.tokens.as_ref().is_some_and(|tokens| !tokens.is_ready()) {
            // Whether it is the end shows above.
            let _ = ended.recv_timeout(LISTEN_EVERY);
            continue;
        }
        // Nothing is assigned, so there is nothing to read.
        if let Some(Err(error)) = consumer.poll(LISTEN_EVERY) {
            let is_fatal = matches!(error, KafkaError::MessageConsumptionFatal(_));
            // Who reads has the same tokens, and knows what becomes of them.
            let is_denied = trouble(error.rdkafka_error_code()) == Trouble::Denied;
            if is_fatal || is_denied && !consumer.context().log.is_about_token(&error) {
                attendance.fail(error);
            } else {
                tracing::debug!(%error, "the group is in trouble");
            }
        }
    }
}

impl Attendance {
    fn fail(&self, error: KafkaError) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

impl ClientContext for MemberContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.log.generate_oauth_token(config)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(error, reason);
    }
}

impl ConsumerContext for MemberContext {
    /// The group keeps its own account of who has what. What is acknowledged here is that it was heard.
    fn rebalance(&self, consumer: &BaseConsumer<Self>, code: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let partitions: Vec<TopicPartition> = list
            .elements()
            .iter()
            .filter(|element| self.patterns.iter().any(|pattern| pattern.matches(element.topic())))
            .map(|element| TopicPartition::new(element.topic(), element.partition()))
            .collect();
        let nothing = TopicPartitionList::new();
        let heard = if code == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            tracing::info!(partitions = partitions.len(), "the group gave partitions");
            self.ownership.gain(partitions);
            consumer.incremental_assign(&nothing)
        } else {
            tracing::info!(partitions = partitions.len(), "the group took partitions");
            self.ownership.lose(partitions);
            // While the group is being left, there is no protocol to speak.
            consumer.incremental_unassign(&nothing).or_else(|_| consumer.unassign())
        };
        if let Err(error) = heard {
            tracing::warn!(%error, "the group was not answered");
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        self.log.commit_callback(result, offsets);
    }
}
