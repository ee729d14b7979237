//! Whether topics that are being read are still those they were.
//!
//! A topic that is deleted and made anew looks to a reader like the one before as soon as it has grown past the reader's
//! position, and the client library goes on without a word. So a record that was read is read again from time to time,
//! one of each topic, and has to be the same. **The record compared is the oldest that was not compared yet**, and the one
//! for the next time is chosen before it is read: whatever happens in between shows this time or the next.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaResult;
use rdkafka::message::{BorrowedMessage, Message};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::client::{ClientLog, set_up_error};
use super::error::{Error, Result};
use super::kafka::{Arena, record};
use super::kafka_admin::first_records;
use super::token::Tokens;
use crate::change::RawRecord;
use crate::offsets::{RecordMark, TopicPartition};

/// How long a broker has to say how far a partition goes.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// How much an answer may hold: one record of each partition is wanted.
const ANSWER_BYTES: &str = "1000000";
const PARTITION_BYTES: &str = "16384";

/// One record of a topic, by which the topic is known again.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sight {
    at: TopicPartition,
    mark: RecordMark,
}

type Sights = BTreeMap<Arc<str>, Sight>;

/// The records of a topic that was known by one of them.
#[derive(Debug)]
struct Seen {
    /// To be compared next.
    oldest: Sight,
    newest: Sight,
}

/// Looks for as long as it is there.
pub(super) struct Witness {
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    seen: BTreeMap<Arc<str>, Seen>,
    findings: Vec<Error>,
}

impl Witness {
    /// Sets up a client, which connects when there is something to compare. `client` are the settings of the one that
    /// reads, and `tokens` where it has its own from.
    pub(super) fn start(client: &ClientConfig, tokens: Option<Arc<Tokens>>, every: Duration) -> Result<Self> {
        let mut config = client.clone();
        config.set("fetch.max.bytes", ANSWER_BYTES).set("message.max.bytes", ANSWER_BYTES);
        config.set("max.partition.fetch.bytes", PARTITION_BYTES).set("queued.max.messages.kbytes", "1024");
        let consumer: BaseConsumer<ClientLog> =
            config.create_with_context(ClientLog::new(tokens)).map_err(|error| set_up_error(&error))?;
        let state = Arc::new(Mutex::new(State::default()));
        let task = tokio::spawn(look(Arc::new(consumer), state.clone(), every));
        Ok(Witness { state, task })
    }

    /// Takes note of records that are given out.
    pub(super) fn saw(&self, records: &[RawRecord]) {
        let mut newest: Vec<&RawRecord> = Vec::new();
        for record in records.iter().rev() {
            // Records of a topic come in runs.
            let is_known = |known: &&RawRecord| Arc::ptr_eq(&known.topic, &record.topic);
            if !newest.last().is_some_and(is_known) && !newest.iter().any(is_known) {
                newest.push(record);
            }
        }
        if newest.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        for record in newest {
            let at = TopicPartition::new(record.topic.clone(), record.partition);
            state.note(Sight { at, mark: RecordMark::of(record) });
        }
    }

    /// Takes note of a record that was read before reading began here.
    pub(super) fn was_told(&self, at: &TopicPartition, mark: RecordMark) {
        let mut state = lock(&self.state);
        if !state.seen.contains_key(&at.topic) {
            state.note(Sight { at: at.clone(), mark });
        }
    }

    /// The newest record of a partition's topic, if it is of that partition.
    pub(super) fn newest(&self, at: &TopicPartition) -> Option<RecordMark> {
        let state = lock(&self.state);
        state.seen.get(&at.topic).map(|seen| &seen.newest).filter(|sight| sight.at == *at).map(|sight| sight.mark)
    }

    /// Forgets topics that are no longer read.
    pub(super) fn retain(&self, is_read: impl Fn(&str) -> bool) {
        lock(&self.state).seen.retain(|topic, _| is_read(topic));
    }

    /// A topic that is another one than before. Each is told once.
    pub(super) fn take_finding(&self) -> Option<Error> {
        lock(&self.state).findings.pop()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What became of the records of a round.
#[derive(Debug, Default)]
struct Round {
    /// The first record at or behind each offset.
    found: BTreeMap<TopicPartition, RecordMark>,
    /// Partitions whose oldest record is behind the offset.
    gone: BTreeSet<TopicPartition>,
}

impl State {
    fn note(&mut self, sight: Sight) {
        match self.seen.entry(sight.at.topic.clone()) {
            Entry::Occupied(mut seen) => seen.get_mut().newest = sight,
            Entry::Vacant(seen) => drop(seen.insert(Seen { oldest: sight.clone(), newest: sight })),
        }
    }

    /// `newest` were the newest when the round began: what was found the same in it was so when they were given out.
    fn conclude(&mut self, asked: Sights, newest: &Sights, round: &Round) {
        for (topic, sight) in asked {
            let Some(seen) = self.seen.get_mut(&topic).filter(|seen| seen.oldest == sight) else { continue };
            if round.contradicts(&sight) {
                let Sight { at, mark } = sight;
                self.findings.push(Error::Replaced { at, offset: mark.offset, mark: Some(mark) });
                self.seen.remove(&topic);
            } else if round.settles(&sight.at)
                && let Some(newest) = newest.get(&topic)
            {
                seen.oldest = newest.clone();
            }
        }
    }
}

async fn look(consumer: Arc<BaseConsumer<ClientLog>>, state: Arc<Mutex<State>>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        let sights = |of: fn(&Seen) -> &Sight| -> Sights {
            lock(&state).seen.iter().map(|(topic, seen)| (topic.clone(), of(seen).clone())).collect()
        };
        let (newest, asked) = (sights(|seen| &seen.newest), sights(|seen| &seen.oldest));
        if asked.is_empty() {
            continue;
        }
        let (consumer, asks) = (consumer.clone(), asked.clone());
        let reading = tokio::task::spawn_blocking(move || {
            let deadline = Instant::now() + ANSWER_TIMEOUT;
            while !consumer.context().has_token() && Instant::now() < deadline {
                // It asks for its first token when it is listened to.
                drop(consumer.poll(Duration::from_millis(50)));
            }
            let round = Round::read(&consumer, &asks);
            // Whatever became of it, nothing is read between the rounds.
            drop(consumer.unassign());
            round
        });
        match reading.await {
            Ok(Ok(round)) => lock(&state).conclude(asked, &newest, &round),
            Ok(Err(error)) => tracing::debug!(%error, "no records were looked at again"),
            Err(_) => return,
        }
    }
}

impl Round {
    fn read(consumer: &BaseConsumer<ClientLog>, sights: &Sights) -> KafkaResult<Self> {
        let offsets = sights.values().map(|Sight { at, mark }| (at.clone(), mark.offset)).collect();
        let mark = |message: &BorrowedMessage<'_>| {
            let at = TopicPartition::new(message.topic(), message.partition());
            RecordMark::of(&record(&at, message, &mut Arena::default()))
        };
        let mut round = Round { found: first_records(consumer, &offsets, mark)?, gone: BTreeSet::new() };
        for Sight { at, mark } in sights.values() {
            if !round.found.contains_key(at)
                && consumer.fetch_watermarks(&at.topic, at.partition, ANSWER_TIMEOUT)?.0 > mark.offset
            {
                round.gone.insert(at.clone());
            }
        }
        Ok(round)
    }

    /// Whether there is another record where one was seen.
    fn contradicts(&self, Sight { at, mark }: &Sight) -> bool {
        self.found.get(at).is_some_and(|found| found.offset == mark.offset && found != mark)
    }

    /// Whether looking for it again tells no more: it is there, or retention or compaction took it away.
    fn settles(&self, at: &TopicPartition) -> bool {
        self.found.contains_key(at) || self.gone.contains(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_record_at_the_offset_is_a_contradiction_and_nothing_else_is() {
        let mark = |offset, hash| RecordMark { offset, timestamp_ms: Some(1), hash };
        let at = TopicPartition::new("t", 3);
        let check = |found: Option<RecordMark>, is_gone: bool, expected: (bool, bool)| {
            let round = Round {
                found: found.map(|found| (at.clone(), found)).into_iter().collect(),
                gone: is_gone.then(|| at.clone()).into_iter().collect(),
            };
            let sight = Sight { at: at.clone(), mark: mark(7, 1) };
            assert_eq!((round.contradicts(&sight), round.settles(&at)), expected, "{found:?}");
        };
        check(Some(mark(7, 1)), false, (false, true));
        check(Some(mark(7, 2)), false, (true, true));
        check(Some(RecordMark { timestamp_ms: Some(2), ..mark(7, 1) }), false, (true, true));
        // Compacted away, expired, or not to be had now.
        check(Some(mark(9, 2)), false, (false, true));
        check(None, true, (false, true));
        check(None, false, (false, false));
    }

    #[test]
    fn the_oldest_record_since_the_last_comparison_is_compared() {
        let at = TopicPartition::new("t", 0);
        let sight = |offset| Sight { at: at.clone(), mark: RecordMark { offset, timestamp_ms: None, hash: 1 } };
        let sights = |offset| Sights::from([("t".into(), sight(offset))]);
        let found = |offset, hash| Round {
            found: [(at.clone(), RecordMark { offset, timestamp_ms: None, hash })].into(),
            gone: BTreeSet::new(),
        };
        let mut state = State::default();
        let stands = |state: &State, oldest, newest| {
            let seen = &state.seen["t"];
            assert_eq!((&seen.oldest, &seen.newest), (&sight(oldest), &sight(newest)));
        };
        state.note(sight(3));
        state.note(sight(5));
        stands(&state, 3, 5);
        // 9 is given out while 3 is looked for.
        state.note(sight(9));
        state.conclude(sights(3), &sights(5), &found(3, 1));
        stands(&state, 5, 9);
        // Nobody answered, and then there is another record.
        state.conclude(sights(5), &sights(9), &Round::default());
        stands(&state, 5, 9);
        state.conclude(sights(5), &sights(9), &found(5, 2));
        assert!(state.seen.is_empty());
        let told = state.findings.pop();
        assert!(matches!(&told, Some(Error::Replaced { offset: 5, mark: Some(_), .. })), "{told:?}");
        assert_eq!(told.and_then(|error| error.topic().map(str::to_string)).as_deref(), Some("t"));
    }
}
