//! A thousand short random histories of a pipeline, each ending in the auditor.
//!
//! Everything runs in this process: a log in memory with gaps, compaction, retention and new partitions; up to three
//! owners of the same tables at once, each reading all of it or its share; and a catalog that loses requests and answers
//! or gets them late. One owner goes on at a time, until it asks somebody for something; there the history's dice decide
//! who is next, and who dies. In the end one owner drains the log, and every offset must be in bronze once.
//!
//! `ICESTREAM_HISTORIES` sets how many, `ICESTREAM_SEED` the first one's seed. A failure prints the seed of its history.
//! A replay rolls the same dice; only how far a disk has got when an owner dies may differ.
//!
//! That it can fail was seen by breaking the program on purpose. Each of these was found within so many histories:
//!
//! | broken | found by |
//! |---|---|
//! | a range that starts behind the marker is committed | 4 |
//! | after losing a range, an owner reads on from where it was | 126 |
//! | a commit whose answer got lost is not looked for in the history | 8 |
//! | positions that pass offsets without a record are dropped | 34 |
//! | the source is told of a position before it is durable | 4 |
//! | a commit that failed is passed over | 7 |
//! | a commit whose answer got lost counts as not applied, and its files go | 7 |

mod catalog;
mod gate;
mod log;

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;
use std::time::{Duration, Instant};

use icestream::clock::Clock;
use icestream::decode::Format;
use icestream::error::{Error, Kind};
use icestream::evolution::Evolution;
use icestream::ids::TableName;
use icestream::offsets::{MARKER, TopicPartition};
use icestream::pipeline::{CommitTriggers, Ingest, IngestReport, Route, Until, unobserved};
use icestream::row::{Column, RowShape};
use icestream::table::Lake;
use icestream::table::storage::{Storage, StorageOptions};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::sync::watch;

use crate::auditor::{self, Bronze, Entry, Sent, Tally, UpTo};
use catalog::{Line, Memory};
use gate::Gate;
use log::{Broker, MADE_UP, Reader, Witness};

const START_US: i64 = 1_767_225_600_000_000;
const DAY_US: i64 = 86_400_000_000;

/// How many turns an owner may take to do what it was asked to, which is a few dozen.
const PATIENCE: u32 = 5_000;

/// What happened in all histories together.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    owners: usize,
    deaths: usize,
    errors: usize,
    stops: usize,
    tally: Tally,
}

#[test]
fn every_history_ends_with_every_offset_in_bronze_once() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let histories = number("ICESTREAM_HISTORIES").unwrap_or(1000);
    let first = number("ICESTREAM_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    println!("ICESTREAM_SEED={first}");
    let started = Instant::now();
    #[cfg(feature = "failpoints")]
    dying::arm();
    let next = Arc::new(AtomicU64::new(0));
    let (told, outcomes) = mpsc::channel();
    // Owners that lost a race wait a little, so there is work for more threads than there are cores.
    for _ in 0..6 * std::thread::available_parallelism().map_or(2, usize::from) {
        let (next, told) = (next.clone(), told.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            loop {
                let seed = first + next.fetch_add(1, Ordering::SeqCst);
                if seed >= first + histories || told.send((seed, None)).is_err() {
                    return;
                }
                let mut history = History::new(seed);
                let run = std::panic::AssertUnwindSafe(|| runtime.block_on(history.run()));
                let outcome = std::panic::catch_unwind(run).unwrap_or(Err("it panicked; see above".to_string()));
                if told.send((seed, Some((outcome, history.trace, history.seen)))).is_err() {
                    return;
                }
            }
        });
    }
    drop(told);
    let mut under_way = BTreeSet::new();
    let mut seen = Seen::default();
    // A thread that spins cannot be ended, only left behind.
    loop {
        match outcomes.recv_timeout(Duration::from_secs(60)) {
            Ok((seed, None)) => drop(under_way.insert(seed)),
            Ok((seed, Some((outcome, trace, of_history)))) => {
                under_way.remove(&seed);
                seen.add(&of_history);
                if let Err(problem) = outcome {
                    println!("{}", trace.join("\n"));
                    let index = seed - first;
                    panic!("history {index} failed: {problem}\nreplay: ICESTREAM_SEED={seed} ICESTREAM_HISTORIES=1");
                }
            }
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("these seeds' histories do not end: {under_way:?}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(under_way.is_empty(), "the threads of these seeds' histories died: {under_way:?}");
    println!("{histories} histories in {:.1} s: {seen:?}", started.elapsed().as_secs_f64());
    // Otherwise the dice have fallen into a rut.
    if histories >= 100 {
        let counts =
            [seen.deaths, seen.errors, seen.stops, seen.tally.changes, seen.tally.rejected, seen.tally.consumed];
        assert!(seen.owners as u64 > 2 * histories && counts.iter().all(|count| *count > 0), "{seen:?}");
    }
}

impl Seen {
    fn add(&mut self, other: &Seen) {
        self.owners += other.owners;
        self.deaths += other.deaths;
        self.errors += other.errors;
        self.stops += other.stops;
        self.tally.changes += other.tally.changes;
        self.tally.rejected += other.tally.rejected;
        self.tally.consumed += other.tally.consumed;
    }
}

/// Owners that die inside a step, where nothing is asked of anybody.
#[cfg(feature = "failpoints")]
mod dying {
    use std::cell::Cell;

    thread_local! {
        /// How many steps this thread's owner still takes.
        pub static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    pub struct Died;

    pub fn arm() {
        for step in [
            "ingest-before-durable",
            "bronze-after-files",
            "commit-after-manifests",
            "commit-after-manifest-list",
            "commit-before-swap",
            "commit-after-swap",
        ] {
            fail::cfg_callback(step, || {
                let left = LEFT.get();
                LEFT.set(left.map(|left| left.saturating_sub(1)));
                if left == Some(0) {
                    LEFT.set(None);
                    std::panic::resume_unwind(Box::new(Died));
                }
            })
            .unwrap();
        }
    }
}

/// A process that owns the tables, or thinks so.
struct Owner {
    id: u64,
    gate: Gate,
    tell: watch::Sender<Until>,
    work: Pin<Box<dyn Future<Output = Result<IngestReport, Error>>>>,
}

/// How a turn of an owner ended.
enum Turn {
    Over,
    Died,
    Ended(Box<Result<IngestReport, Error>>),
}

struct History {
    dice: SmallRng,
    broker: Arc<Mutex<Broker>>,
    memory: Arc<Memory>,
    storage: Storage,
    is_calm: Arc<AtomicBool>,
    routes: BTreeMap<String, Route>,
    owners: Vec<Owner>,
    next_owner: u64,
    trace: Vec<String>,
    seen: Seen,
    /// What a reader called durable although it was not.
    lies: Arc<Mutex<Vec<String>>>,
    _folder: tempfile::TempDir,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut dice = SmallRng::seed_from_u64(seed);
        // In memory where there is such a place, since a history syncs hundreds of files.
        let place = ["/dev/shm".into(), std::env::temp_dir()].into_iter().find(|place| place.is_dir()).unwrap();
        let folder = tempfile::tempdir_in(place).unwrap();
        let routes = routes(&mut dice);
        let mut broker = Broker::default();
        for topic in routes.keys() {
            for partition in 0..dice.random_range(1..=2) {
                broker.partitions.insert(TopicPartition::new(topic.as_str(), partition), Default::default());
            }
        }
        broker.shares = dice.random_bool(0.5).then(BTreeMap::new);
        History {
            dice,
            broker: Arc::new(Mutex::new(broker)),
            memory: Arc::new(Memory::new(format!("file://{}", folder.path().display()))),
            storage: Storage::new(StorageOptions::default()).unwrap(),
            is_calm: Arc::default(),
            routes,
            owners: Vec::new(),
            next_owner: 1,
            trace: Vec::new(),
            seen: Seen::default(),
            lies: Arc::default(),
            _folder: folder,
        }
    }

    async fn run(&mut self) -> Result<(), String> {
        self.produce(6);
        for _ in 0..self.dice.random_range(12..30) {
            self.act().await?;
        }
        self.end().await
    }

    async fn act(&mut self) -> Result<(), String> {
        match self.dice.random_range(0..100) {
            _ if self.owners.is_empty() => self.start(),
            0..6 if self.owners.len() < 3 => self.start(),
            6..22 => self.produce(5),
            22..25 => self.add_partition(),
            25..28 => self.expire(),
            28..31 => self.compact(),
            31..36 => self.rebalance(),
            36..41 => {
                let owner = self.any_owner();
                self.die(owner, "killed");
            }
            41..44 => {
                let owner = self.any_owner();
                self.note(format!("owner {} is asked to end", self.owners[owner].id));
                self.owners[owner].tell.send_replace(Until::Now);
            }
            44..47 => {
                self.note("what was under way arrives");
                self.memory.deliver();
            }
            _ => {
                let owner = self.any_owner();
                let turns = self.dice.random_range(1..=10);
                let dies_after = self.dice.random_bool(0.04).then(|| self.dice.random_range(0..4));
                #[cfg(feature = "failpoints")]
                dying::LEFT.set(self.dice.random_bool(0.06).then(|| self.dice.random_range(0..6)));
                self.go_on(owner, turns, dies_after).await?;
            }
        }
        Ok(())
    }

    /// What is left of the owners ends in one way or the other, one of them drains the log, and the auditor looks.
    async fn end(&mut self) -> Result<(), String> {
        #[cfg(feature = "failpoints")]
        dying::LEFT.set(None);
        self.is_calm.store(self.dice.random_bool(0.7), Ordering::SeqCst);
        while !self.owners.is_empty() {
            let left = self.owners.len();
            if self.dice.random_bool(0.5) {
                self.die(0, "killed");
            } else {
                self.owners[0].tell.send_replace(Until::Now);
                self.go_on(0, PATIENCE, None).await?;
                if self.owners.len() == left {
                    return Err(format!("owner {} was asked to end, and does not", self.owners[0].id));
                }
            }
        }
        self.is_calm.store(true, Ordering::SeqCst);
        self.memory.deliver();
        self.broker.lock().unwrap().shares = None;
        let is_cut = self.dice.random_bool(0.03).then(|| self.expire_too_much()).flatten();
        self.note("one owner drains the log");
        let mut owner = self.owner(true);
        let mut turns = 0;
        let drained = loop {
            turns += 1;
            match turn(&mut owner, None).await {
                Turn::Over if turns < PATIENCE => {}
                Turn::Ended(outcome) => break *outcome,
                _ => return Err("the drain does not come to an end".to_string()),
            }
        };
        match (drained, &is_cut) {
            (Ok(_), None) => {}
            (Err(error), Some(at)) if is_expired(&error) => {
                let text = error.render();
                let is_clear = text.contains(&format!("`{}` partition {}", at.topic, at.partition));
                if !is_clear || !text.contains("hint: ") || error.kind() != Kind::Corrupt {
                    return Err(format!("retention passed the marker of {at}, and the error is {text}"));
                }
                self.seen.stops += 1;
            }
            (Ok(_), Some(at)) => return Err(format!("retention passed the marker of {at}, and nothing was said")),
            (Err(error), _) => return Err(format!("the drain failed: {}", error.render())),
        }
        let lies = std::mem::take(&mut *self.lies.lock().unwrap());
        if !lies.is_empty() {
            return Err(lies.join("\n"));
        }
        self.audit(if is_cut.is_some() { UpTo::Marker } else { UpTo::End }).await
    }

    async fn audit(&mut self, up_to: UpTo) -> Result<(), String> {
        let line = Line::new(self.memory.clone(), Gate::default(), self.is_calm.clone(), 0);
        let lake = Lake::new(Arc::new(line), self.storage.clone(), Clock::system());
        let names: BTreeSet<&TableName> = self.routes.values().map(|route| &route.table).collect();
        let mut tables = Vec::new();
        for name in names {
            let of_table: Vec<&Route> = self.routes.values().filter(|route| route.table == *name).collect();
            let shape = of_table[0].shape.as_deref().cloned();
            let topics = of_table.iter().map(|route| route.topic.clone());
            // A table without declared columns is made by the first record.
            tables.push(match lake.table_if_exists(name).await.map_err(|error| error.to_string())? {
                Some(table) => Bronze::of(&table, topics, shape).with(auditor::rows_by_files(&table).await),
                None => Bronze {
                    name: name.to_string(),
                    topics: topics.collect(),
                    shape,
                    marker: None,
                    mirror: None,
                    rows: Vec::new(),
                },
            });
        }
        let produced = self.broker.lock().unwrap().produced();
        self.seen.tally = auditor::audit(&produced, &tables, up_to).map_err(|findings| findings.to_string())?;
        Ok(())
    }

    fn note(&mut self, what: impl Into<String>) {
        self.trace.push(what.into());
    }

    fn any_owner(&mut self) -> usize {
        self.dice.random_range(0..self.owners.len())
    }

    fn start(&mut self) {
        let drains = self.dice.random_bool(0.3);
        let owner = self.owner(drains);
        let id = owner.id;
        self.note(format!("owner {id} starts{}", if drains { ", to drain" } else { "" }));
        if let Some(shares) = &mut self.broker.lock().unwrap().shares {
            shares.insert(id, BTreeSet::new());
        }
        self.broker.lock().unwrap().rebalance(&mut self.dice);
        self.owners.push(owner);
    }

    fn owner(&mut self, drains: bool) -> Owner {
        self.seen.owners += 1;
        let (id, gate) = (self.next_owner, Gate::default());
        self.next_owner += 1;
        let line = Line::new(self.memory.clone(), gate.clone(), self.is_calm.clone(), self.dice.random());
        // No two clocks agree.
        let (clock, _) = Clock::manual(START_US + self.dice.random_range(-2 * DAY_US..2 * DAY_US));
        let lake = Lake::new(Arc::new(line), self.storage.clone(), clock);
        let (broker, is_calm) = (self.broker.clone(), self.is_calm.clone());
        let source = Reader::new(id, broker, gate.clone(), is_calm, self.witness(), self.dice.random());
        let triggers = CommitTriggers {
            every: if self.dice.random_bool(0.3) { Duration::ZERO } else { Duration::from_secs(3600) },
            rows: self.dice.random_range(1..=12),
            bytes: if self.dice.random_bool(0.2) { self.dice.random_range(1..3000) } else { 1 << 20 },
            // Sometimes so little that a table has to commit before the next record is read.
            memory: if self.dice.random_bool(0.2) { self.dice.random_range(100..3000) } else { 1 << 20 },
        };
        let (tell, until) = watch::channel(Until::Forever);
        let (routes, teller) = (self.routes.clone(), tell.clone());
        let work = Box::pin(async move {
            let route = |topic: &str| routes.get(topic).cloned();
            let mut ingest =
                Ingest::start(&lake, Box::new(source), route, Format::DebeziumJson, triggers, unobserved()).await?;
            if drains {
                let end = ingest.end().await?;
                teller.send_if_modified(|until| {
                    let is_asked_to_end = *until == Until::Now;
                    if !is_asked_to_end {
                        *until = Until::Reached(end);
                    }
                    !is_asked_to_end
                });
            }
            ingest.run(until).await
        });
        Owner { id, gate, tell, work }
    }

    /// Nothing may be called durable that no commit holds.
    fn witness(&self) -> Witness {
        let (memory, lies, routes) = (self.memory.clone(), self.lies.clone(), self.routes.clone());
        Arc::new(move |at, next| {
            let marker = memory.property(&routes[&*at.topic].table, MARKER).unwrap_or_default();
            let committed = next_of(&marker, at);
            if committed.is_none_or(|committed| committed < next) {
                lies.lock()
                    .unwrap()
                    .push(format!("{at} is called durable up to {next}, the marker says {committed:?}"));
            }
        })
    }

    /// Lets an owner take turns, until it ends or dies.
    async fn go_on(&mut self, index: usize, turns: u32, mut dies_after: Option<u32>) -> Result<(), String> {
        let id = self.owners[index].id;
        for taken in 0..turns {
            match turn(&mut self.owners[index], dies_after.as_mut()).await {
                Turn::Over => {}
                Turn::Died => {
                    self.die(index, "dies in a step");
                    return Ok(());
                }
                Turn::Ended(outcome) => {
                    let told = match outcome.as_ref() {
                        Ok(report) => format!("ends after {} rows in {} commits", report.rows, report.commits),
                        Err(error) => error.render(),
                    };
                    self.note(format!("owner {id}, {taken} turns: {told}"));
                    self.leave(index);
                    let Err(error) = *outcome else { return Ok(()) };
                    self.seen.errors += 1;
                    // A reader that fell far behind others finds that its records have been cut off.
                    let may_be = error.kind() == Kind::Unavailable
                        || is_made_up(&error)
                        || is_expired(&error)
                        || is_death(&error);
                    return if may_be { Ok(()) } else { Err(format!("owner {id} failed: {}", error.render())) };
                }
            }
        }
        self.note(format!("owner {id}, {turns} turns"));
        Ok(())
    }

    fn die(&mut self, index: usize, how: &str) {
        self.seen.deaths += 1;
        self.note(format!("owner {} {how}", self.owners[index].id));
        self.leave(index);
    }

    /// The others hear of it now, or with the next rebalance.
    fn leave(&mut self, index: usize) {
        self.owners.remove(index);
        if self.dice.random_bool(0.5) {
            self.rebalance();
        }
    }

    fn rebalance(&mut self) {
        let mut broker = self.broker.lock().unwrap();
        let owners: BTreeSet<u64> = self.owners.iter().map(|owner| owner.id).collect();
        if let Some(shares) = &mut broker.shares {
            shares.retain(|id, _| owners.contains(id));
            // One may be taken for dead that is not, and one that was comes back.
            for id in owners {
                if self.dice.random_bool(0.1) {
                    shares.remove(&id);
                } else {
                    shares.entry(id).or_default();
                }
            }
        }
        broker.rebalance(&mut self.dice);
        let shares = broker.shares.as_ref().map(|shares| format!("a rebalance: {shares:?}"));
        drop(broker);
        self.trace.extend(shares);
    }

    fn produce(&mut self, most: usize) {
        let broker = self.broker.clone();
        let mut broker = broker.lock().unwrap();
        for (at, partition) in &mut broker.partitions {
            for _ in 0..self.dice.random_range(0..=most) {
                let entry = entry(&mut self.dice, &at.topic, partition.end());
                partition.entries.push(entry);
            }
        }
        let ends: Vec<String> = broker.partitions.iter().map(|(at, of)| format!("{at} to {}", of.end())).collect();
        self.note(format!("produced: {}", ends.join(", ")));
    }

    fn add_partition(&mut self) {
        let mut broker = self.broker.lock().unwrap();
        let topic =
            broker.partitions.keys().nth(self.dice.random_range(0..broker.partitions.len())).unwrap().topic.clone();
        let count = broker.partitions.keys().filter(|at| at.topic == topic).count() as i32;
        if count < 4 {
            broker.partitions.insert(TopicPartition::new(topic, count), Default::default());
        }
        drop(broker);
        self.note("a partition is added");
    }

    /// Retention takes what bronze has.
    fn expire(&mut self) {
        let mut broker = self.broker.lock().unwrap();
        for (at, partition) in &mut broker.partitions {
            let marker = self.memory.property(&self.routes[&*at.topic].table, MARKER).unwrap_or_default();
            if let Some(next) = next_of(&marker, at) {
                partition.first = partition.first.max(self.dice.random_range(0..=next));
            }
        }
        drop(broker);
        self.note("retention takes what bronze has");
    }

    /// Retention takes what bronze does not have yet, where there is such a record.
    fn expire_too_much(&mut self) -> Option<TopicPartition> {
        let mut broker = self.broker.lock().unwrap();
        for (at, partition) in &mut broker.partitions {
            let marker = self.memory.property(&self.routes[&*at.topic].table, MARKER).unwrap_or_default();
            if let Some(next) = next_of(&marker, at).filter(|next| *next < partition.end()) {
                partition.first = next + 1;
                return Some(at.clone());
            }
        }
        None
    }

    /// Takes records away that bronze does not have yet, though an owner may have read them.
    fn compact(&mut self) {
        let mut broker = self.broker.lock().unwrap();
        for partition in broker.partitions.values_mut() {
            let index = self.dice.random_range(0..partition.entries.len().max(1));
            if let Some(entry @ Entry::Record(_)) = partition.entries.get_mut(index)
                && let Entry::Record(sent) = std::mem::replace(entry, Entry::Nothing)
            {
                *entry = Entry::Compacted(sent);
            }
        }
        drop(broker);
        self.note("compaction");
    }
}

/// One turn: until the owner asks somebody for something, or, where it is to die, so many waits further.
async fn turn(owner: &mut Owner, mut dies_after: Option<&mut u32>) -> Turn {
    let Owner { gate, work, .. } = owner;
    poll_fn(|context| {
        let poll = std::panic::AssertUnwindSafe(|| work.as_mut().poll(context));
        let polled = match std::panic::catch_unwind(poll) {
            Ok(polled) => polled,
            #[cfg(feature = "failpoints")]
            Err(panic) if panic.is::<dying::Died>() => return Poll::Ready(Turn::Died),
            Err(panic) => std::panic::resume_unwind(panic),
        };
        match polled {
            Poll::Ready(outcome) => Poll::Ready(Turn::Ended(Box::new(outcome))),
            Poll::Pending => match dies_after.as_deref_mut() {
                Some(0) => Poll::Ready(Turn::Died),
                left => {
                    left.into_iter().for_each(|left| *left -= 1);
                    if gate.was_reached() { Poll::Ready(Turn::Over) } else { Poll::Pending }
                }
            },
        }
    })
    .await
}

fn is_made_up(error: &Error) -> bool {
    error.render().contains(MADE_UP)
}

/// A failpoint may end the task of one table.
fn is_death(error: &Error) -> bool {
    cfg!(feature = "failpoints") && error.render().contains("the task that writes table")
}

fn is_expired(error: &Error) -> bool {
    error.render().contains("is no longer there, the oldest is")
}

/// A marker's next offset of a partition.
fn next_of(marker: &str, at: &TopicPartition) -> Option<i64> {
    let marker: serde_json::Value = serde_json::from_str(marker).ok()?;
    marker[&*at.topic]["next"][at.partition.to_string()].as_i64()
}

/// One to three topics, of which two may share a table.
fn routes(dice: &mut SmallRng) -> BTreeMap<String, Route> {
    let columns = [("id", "long"), ("note", "string")];
    let column = |(name, of): (&str, &str)| Column::new(name, of.parse().unwrap(), None).unwrap();
    let shape = Arc::new(RowShape { columns: columns.map(column).to_vec() });
    let shares_table = dice.random_bool(0.3);
    let is_typed: Vec<bool> = (0..3).map(|_| dice.random_bool(0.5)).collect();
    let by_day = dice.random_bool(0.3);
    let of_topic = |index: usize| {
        let table = if shares_table { index / 2 } else { index };
        Route {
            topic: format!("shop.topic{index}"),
            table: TableName::new("bronze", format!("table{table}")).unwrap(),
            shape: is_typed[table].then(|| shape.clone()),
            evolution: Evolution::Evolve,
            stop_above: None,
            partition: if by_day { vec!["day(_timestamp)".to_string()] } else { Vec::new() },
            // Compressing a handful of rows takes longer than all the rest.
            properties: [("write.parquet.compression-codec".to_string(), "uncompressed".to_string())].into(),
        }
    };
    (0..dice.random_range(1..=3)).map(of_topic).map(|route| (route.topic.clone(), route)).collect()
}

/// What the next offset holds.
fn entry(dice: &mut SmallRng, topic: &str, offset: i64) -> Entry {
    let id = dice.random_range(0..4);
    let row = json!({"id": id, "note": format!("{topic} {offset}")});
    let (mut key, mut is_tombstone) = (Some(json!({"id": id}).to_string().into_bytes()), false);
    let event = |op: &str, before: serde_json::Value, after: serde_json::Value| json!({"op": op, "before": before, "after": after, "source": {"connector": "postgresql", "lsn": offset}, "ts_ms": 1});
    let null = || serde_json::Value::Null;
    let payload = match dice.random_range(0..100) {
        0..12 => return Entry::Nothing,
        12..22 => {
            is_tombstone = true;
            String::new()
        }
        22..25 => "not an event".to_string(),
        25..28 => event("x", null(), row).to_string(),
        28..31 => event("c", null(), null()).to_string(),
        31..33 => {
            key = Some(vec![0xff, id]);
            event("c", null(), row).to_string()
        }
        33..36 => json!({"status": "BEGIN", "id": "7", "event_count": null}).to_string(),
        36..45 => event("d", row, null()).to_string(),
        45..55 => event("u", null(), json!({"id": id, "note": "__debezium_unavailable_value"})).to_string(),
        55..65 => json!({"schema": {"type": "struct"}, "payload": event("r", null(), row)}).to_string(),
        _ => event("c", null(), row).to_string(),
    };
    // Bytes that are no text.
    let mut payload = payload.into_bytes();
    if dice.random_bool(0.03) {
        payload = (0..dice.random_range(0..40)).map(|_| 0x80 | dice.random::<u8>()).collect();
    }
    let timestamp_ms = START_US / 1000 + offset + i64::from(id) * DAY_US / 1000;
    Entry::Record(Sent { key, payload: (!is_tombstone).then_some(payload), timestamp_ms })
}
