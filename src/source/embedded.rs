//! A Kafka broker inside this process, for the demo and for tests: librdkafka's mock cluster.
//!
//! It speaks the real protocol on a loopback port, but keeps no more than 5 MiB or 100,000 batches of a partition, and
//! drops the oldest without a word. [`EmbeddedProducer`] therefore waits while too much of what it sent is not yet
//! durable in a table. Its transactions are not isolated, and it forgets everything when it is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseRecord, DeliveryResult, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message};
use tokio::sync::Notify;

use super::error::{Error, Reason, Result};
use crate::offsets::{Positions, TopicPartition};

/// What a partition may hold that is not durable yet: well below what the broker keeps, since it counts its own framing
/// too and drops whole batches.
const MOST_BYTES: usize = 2 * 1024 * 1024;
const MOST_RECORDS: usize = 50_000;

/// What a record takes at most besides its key and payload, when it is alone in its batch.
const FRAMING_BYTES: usize = 100;

/// A running broker. It ends, with all it holds, when this is dropped.
#[derive(Debug)]
pub struct EmbeddedBroker {
    brokers: String,
    commands: Option<mpsc::Sender<CreateTopic>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct CreateTopic {
    name: String,
    partitions: i32,
    reply: mpsc::Sender<Result<(), KafkaError>>,
}

/// Sends records to an [`EmbeddedBroker`], and is the only one to do so.
pub struct EmbeddedProducer {
    producer: ThreadedProducer<Deliveries>,
    ledger: Arc<Ledger>,
}

/// Tells an [`EmbeddedProducer`] what is durable, so that it may send more.
#[derive(Debug, Clone)]
pub struct DurableHandle {
    ledger: Arc<Ledger>,
}

/// What was sent and how far it got.
#[derive(Debug, Default)]
struct Ledger {
    state: Mutex<LedgerState>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct LedgerState {
    partitions: BTreeMap<TopicPartition, Sent>,
    failure: Option<Reason>,
}

#[derive(Debug, Default)]
struct Sent {
    /// The offset the next record gets.
    next: i64,
    acknowledged: i64,
    /// The sizes of the records that are not durable yet; the last of them is that of `next - 1`.
    waiting: VecDeque<usize>,
    waiting_bytes: usize,
}

struct Deliveries {
    ledger: Arc<Ledger>,
}

impl EmbeddedBroker {
    pub fn start() -> Result<Self> {
        let (commands, inbox) = mpsc::channel::<CreateTopic>();
        let (ready, started) = mpsc::channel();
        // The mock cluster may not leave the thread that made it.
        let serve = move || {
            let cluster = match MockCluster::new(1) {
                Ok(cluster) => cluster,
                Err(error) => return drop(ready.send(Err(error))),
            };
            drop(ready.send(Ok(cluster.bootstrap_servers())));
            for CreateTopic { name, partitions, reply } in inbox {
                drop(reply.send(cluster.create_topic(&name, partitions, 1)));
            }
        };
        let start = "start";
        let thread = std::thread::Builder::new()
            .name("embedded-broker".to_string())
            .spawn(serve)
            .map_err(|error| Error::Embedded { what: start, source: Reason::new(error.to_string()) })?;
        let brokers = started.recv().unwrap_or(Err(KafkaError::Canceled)).map_err(|error| embedded(start, &error))?;
        Ok(EmbeddedBroker { brokers, commands: Some(commands), thread: Some(thread) })
    }

    /// What clients take as `bootstrap.servers`.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<()> {
        let what = "create a topic";
        let (reply, answer) = mpsc::channel();
        let command = CreateTopic { name: name.to_string(), partitions, reply };
        if let Some(commands) = &self.commands {
            drop(commands.send(command));
        }
        answer.recv().unwrap_or(Err(KafkaError::Canceled)).map_err(|error| embedded(what, &error))
    }

    /// A producer for topics that no other producer sends to, and that nothing was sent to yet.
    pub fn producer(&self) -> Result<EmbeddedProducer> {
        let ledger = Arc::new(Ledger::default());
        let producer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            // Retries must neither double nor reorder records, whose offsets are given out before they are confirmed.
            .set("enable.idempotence", "true")
            .set("linger.ms", "5")
            .set("message.timeout.ms", "30000")
            .create_with_context(Deliveries { ledger: ledger.clone() })
            .map_err(|error| embedded("make a producer", &error))?;
        Ok(EmbeddedProducer { producer, ledger })
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl EmbeddedProducer {
    /// Sends a record, as soon as its partition has room for it, and gives its offset. It is not confirmed yet.
    ///
    /// Waits for ever unless somebody tells [`DurableHandle::reached`] of progress.
    pub async fn send(
        &self,
        to: &TopicPartition,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        timestamp_ms: i64,
    ) -> Result<i64> {
        let size = key.map_or(0, <[u8]>::len) + payload.map_or(0, <[u8]>::len) + FRAMING_BYTES;
        loop {
            let changed = self.ledger.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(offset) = self.try_send(to, key, payload, timestamp_ms, size)? {
                return Ok(offset);
            }
            changed.await;
        }
    }

    /// Waits until everything sent is confirmed. Gives the end of each partition.
    pub async fn flush(&self) -> Result<Positions> {
        loop {
            let changed = self.ledger.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            {
                let state = self.ledger.lock();
                state.check()?;
                if state.partitions.values().all(|sent| sent.acknowledged == sent.next) {
                    return Ok(state.partitions.iter().map(|(at, sent)| (at.clone(), sent.next)).collect());
                }
            }
            changed.await;
        }
    }

    pub fn durable(&self) -> DurableHandle {
        DurableHandle { ledger: self.ledger.clone() }
    }

    /// Sends a record if there is room. The ledger stays locked meanwhile, so that offsets are given out in the order in
    /// which the client gets the records.
    fn try_send(
        &self,
        to: &TopicPartition,
        key: Option<&[u8]>,
        payload: Option<&[u8]>,
        timestamp_ms: i64,
        size: usize,
    ) -> Result<Option<i64>> {
        let mut state = self.ledger.lock();
        state.check()?;
        let sent = state.partitions.entry(to.clone()).or_default();
        if !sent.has_room(size) {
            return Ok(None);
        }
        let offset = sent.next;
        let mut record = BaseRecord::with_opaque_to(&to.topic, Box::new((to.clone(), offset)))
            .partition(to.partition)
            .timestamp(timestamp_ms);
        record.key = key;
        record.payload = payload;
        match self.producer.send(record) {
            Ok(()) => {
                sent.push(size);
                Ok(Some(offset))
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(None),
            Err((error, _)) => Err(embedded("take a record", &error)),
        }
    }
}

impl DurableHandle {
    /// Says that every record below the given offsets is durable, or needs no keeping.
    pub fn reached(&self, positions: &Positions) {
        let mut state = self.ledger.lock();
        for (at, next) in positions {
            if let Some(sent) = state.partitions.get_mut(at) {
                sent.forget_below(*next);
            }
        }
        drop(state);
        self.ledger.changed.notify_waiters();
    }
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, LedgerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn confirm(&self, at: &TopicPartition, offset: i64, found: Result<i64, Reason>) {
        let mut state = self.lock();
        match found {
            Ok(found) if found == offset => {
                if let Some(sent) = state.partitions.get_mut(at) {
                    sent.acknowledged = offset + 1;
                }
            }
            Ok(found) => {
                let text = format!("a record of `{at}` meant for offset {offset} was put at {found}");
                state.failure = Some(Reason::new(text));
            }
            Err(reason) => state.failure = Some(reason),
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

impl LedgerState {
    fn check(&self) -> Result<()> {
        match &self.failure {
            Some(source) => Err(Error::Embedded { what: "take a record", source: source.clone() }),
            None => Ok(()),
        }
    }
}

impl Sent {
    /// A record larger than the bound goes alone.
    fn has_room(&self, size: usize) -> bool {
        self.waiting.is_empty() || self.waiting.len() < MOST_RECORDS && self.waiting_bytes + size <= MOST_BYTES
    }

    fn push(&mut self, size: usize) {
        self.waiting.push_back(size);
        self.waiting_bytes += size;
        self.next += 1;
    }

    fn forget_below(&mut self, next: i64) {
        while self.next - (self.waiting.len() as i64) < next {
            let Some(size) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= size;
        }
    }
}

impl ClientContext for Deliveries {
    fn log(&self, _: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(facility, text = message, "embedded producer");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "embedded producer");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<(TopicPartition, i64)>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Self::DeliveryOpaque) {
        let (at, offset) = *sent;
        let found = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(Reason::from(error)),
        };
        self.ledger.confirm(&at, offset, found);
    }
}

impl std::fmt::Debug for EmbeddedProducer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedProducer").field("ledger", &self.ledger).finish_non_exhaustive()
    }
}

fn embedded(what: &'static str, error: &KafkaError) -> Error {
    Error::Embedded { what, source: Reason::from(error) }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn at(partition: i32) -> TopicPartition {
        TopicPartition::new("shop.public.orders", partition)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_producer_waits_for_what_it_sent_to_become_durable() {
        let broker = EmbeddedBroker::start().unwrap();
        broker.create_topic("shop.public.orders", 2).unwrap();
        let producer = broker.producer().unwrap();
        let payload = vec![b'x'; 100_000];
        let mut sent = 0;
        while producer.send(&at(0), None, Some(&payload), 0).now_or_never().is_some() {
            sent += 1;
        }
        assert_eq!(sent, 20);
        // The other partition has room of its own.
        assert_eq!(producer.send(&at(1), None, Some(&payload), 0).await.unwrap(), 0);
        let full = at(0);
        let waiting = producer.send(&full, None, Some(&payload), 0);
        let durable = producer.durable();
        let (offset, ()) = tokio::join!(waiting, async { durable.reached(&[(at(0), 1)].into()) });
        assert_eq!(offset.unwrap(), 20);
        assert_eq!(producer.flush().await.unwrap(), [(at(0), 21), (at(1), 1)].into());
    }

    #[test]
    fn room_is_counted_in_bytes_and_records() {
        let mut sent = Sent::default();
        assert!(sent.has_room(10 * MOST_BYTES));
        for _ in 0..MOST_RECORDS {
            sent.push(1);
        }
        assert!(!sent.has_room(1));
        sent.forget_below(1);
        assert!(sent.has_room(1) && !sent.has_room(MOST_BYTES));
        sent.forget_below(1);
        assert_eq!(sent.waiting.len(), MOST_RECORDS - 1);
        sent.forget_below(i64::MAX);
        assert_eq!((sent.waiting_bytes, sent.next), (0, MOST_RECORDS as i64));
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_sent_is_an_error() {
        let broker = EmbeddedBroker::start().unwrap();
        let producer = broker.producer().unwrap();
        let error = producer.send(&at(0), None, Some(&vec![0; 2_000_000]), 0).await.unwrap_err();
        let error = crate::error::Error::from(error);
        insta::assert_snapshot!(error.render(), @r"
        error: the embedded broker cannot take a record
          caused by: MessageSizeTooLarge (Broker: Message size too large)
        ");
    }
}
