//! A log in memory, and the clients that read it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use icestream::change::RawRecord;
use icestream::offsets::{Positions, TopicPartition};
use icestream::source::{Error, FetchLimits, Fetched, Source, Start};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::Gate;
use crate::auditor::{Entry, Log, Produced};

/// What an error says that stands for a broker in trouble.
pub const MADE_UP: &str = "the broker is in trouble";

/// The broker: partitions, and who of a group reads which.
#[derive(Debug, Default)]
pub struct Broker {
    pub partitions: BTreeMap<TopicPartition, Partition>,
    /// Who reads what, where readers share the work; else everybody reads everything.
    pub shares: Option<BTreeMap<u64, BTreeSet<TopicPartition>>>,
}

#[derive(Debug, Default)]
pub struct Partition {
    /// From offset 0 on.
    pub entries: Vec<Entry>,
    /// The oldest offset that is still there.
    pub first: i64,
}

impl Partition {
    pub fn end(&self) -> i64 {
        self.entries.len() as i64
    }
}

impl Broker {
    pub fn produced(&self) -> Produced {
        let log = |(at, partition): (&TopicPartition, &Partition)| {
            ((at.topic.to_string(), at.partition), Log { first: 0, entries: partition.entries.clone() })
        };
        Produced(self.partitions.iter().map(log).collect())
    }

    /// Deals the partitions out anew among those who share them.
    pub fn rebalance(&mut self, dice: &mut SmallRng) {
        let Some(shares) = &mut self.shares else { return };
        shares.values_mut().for_each(BTreeSet::clear);
        for at in self.partitions.keys() {
            let reader = dice.random_range(0..shares.len().max(1));
            shares.values_mut().nth(reader).map(|share| share.insert(at.clone()));
        }
    }
}

/// Is told what a reader calls durable, and checks that it is.
pub type Witness = Arc<dyn Fn(&TopicPartition, i64) + Send + Sync>;

pub struct Reader {
    pub id: u64,
    pub broker: Arc<Mutex<Broker>>,
    pub gate: Gate,
    pub is_calm: Arc<AtomicBool>,
    pub witness: Witness,
    dice: SmallRng,
    next: BTreeMap<TopicPartition, i64>,
    /// What this reader was told that it has.
    told: BTreeSet<TopicPartition>,
    /// What is held back.
    held: BTreeSet<TopicPartition>,
}

impl Reader {
    pub fn new(
        id: u64,
        broker: Arc<Mutex<Broker>>,
        gate: Gate,
        is_calm: Arc<AtomicBool>,
        witness: Witness,
        seed: u64,
    ) -> Self {
        let dice = SmallRng::seed_from_u64(seed);
        Reader {
            id,
            broker,
            gate,
            is_calm,
            witness,
            dice,
            next: BTreeMap::new(),
            told: BTreeSet::new(),
            held: BTreeSet::new(),
        }
    }

    fn stumbles(&mut self, chance: f64) -> Result<(), Error> {
        let stumbles = self.dice.random_bool(chance) && !self.is_calm.load(Ordering::SeqCst);
        match stumbles {
            true => Err(Error::Setup { problem: MADE_UP.to_string() }),
            false => Ok(()),
        }
    }

    fn check(partition: &Partition, at: &TopicPartition, offset: i64) -> Result<(), Error> {
        let (first, end) = (partition.first, partition.end());
        match offset {
            _ if offset < first => Err(Error::Expired { at: at.clone(), offset, first }),
            _ if offset > end => Err(Error::PastEnd { at: at.clone(), offset, end }),
            _ => Ok(()),
        }
    }

    /// What came and went since the last time.
    fn reassigned(&mut self, fetched: &mut Fetched) {
        let broker = self.broker.lock().unwrap();
        let mine: BTreeSet<TopicPartition> = match &broker.shares {
            // Who was taken for dead has nothing.
            Some(shares) => shares.get(&self.id).cloned().unwrap_or_default(),
            None => broker.partitions.keys().cloned().collect(),
        };
        drop(broker);
        fetched.gained = mine.difference(&self.told).cloned().collect();
        let had = self.told.iter().chain(self.next.keys()).filter(|at| !mine.contains(at));
        fetched.lost = had.cloned().collect::<BTreeSet<_>>().into_iter().collect();
        self.next.retain(|at, _| mine.contains(at));
        self.told = mine;
    }

    fn read(&mut self, limits: FetchLimits, fetched: &mut Fetched) -> Result<(), Error> {
        let broker = self.broker.clone();
        let broker = broker.lock().unwrap();
        let mut room = self.dice.random_range(1..=8).min(limits.records);
        // A partition that cannot be read takes no records of the others along.
        for (at, next) in self.next.iter().filter(|(at, _)| !self.held.contains(*at)) {
            Reader::check(&broker.partitions[at], at, *next)?;
        }
        for (at, next) in self.next.iter_mut().filter(|(at, _)| !self.held.contains(*at)) {
            let partition = &broker.partitions[at];
            let before = *next;
            while let Some(entry) = partition.entries.get(*next as usize) {
                match entry {
                    Entry::Record(_) if room == 0 || self.dice.random_bool(0.1) => break,
                    Entry::Record(sent) => {
                        room -= 1;
                        fetched.records.push(RawRecord {
                            topic: at.topic.clone(),
                            partition: at.partition,
                            offset: *next,
                            timestamp_ms: Some(sent.timestamp_ms),
                            key: sent.key.clone().map(Bytes::from),
                            payload: sent.payload.clone().map(Bytes::from),
                        });
                    }
                    // A client passes what holds no record now or with the next fetch.
                    _ if self.dice.random_bool(0.3) => break,
                    _ => {}
                }
                *next += 1;
            }
            if *next > before {
                fetched.positions.insert(at.clone(), *next);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Source for Reader {
    async fn partitions(&mut self) -> Result<Vec<TopicPartition>, Error> {
        self.gate.pass().await;
        self.stumbles(0.02)?;
        let broker = self.broker.lock().unwrap();
        let found: Vec<TopicPartition> = broker.partitions.keys().cloned().collect();
        if broker.shares.is_none() {
            self.told = found.iter().cloned().collect();
        }
        Ok(found)
    }

    async fn assign(&mut self, starts: &BTreeMap<TopicPartition, Start>) -> Result<Positions, Error> {
        self.gate.pass().await;
        self.stumbles(0.02)?;
        let broker = self.broker.lock().unwrap();
        let mut positions = Positions::new();
        for (at, start) in starts {
            let partition = &broker.partitions[at];
            let next = match start {
                Start::Beginning => partition.first,
                Start::At { next, .. } => *next,
            };
            Reader::check(partition, at, next)?;
            positions.insert(at.clone(), next);
        }
        self.next.extend(positions.clone());
        Ok(positions)
    }

    async fn fetch(&mut self, limits: FetchLimits) -> Result<Fetched, Error> {
        self.gate.pass().await;
        self.stumbles(0.01)?;
        let mut fetched = Fetched::default();
        self.reassigned(&mut fetched);
        self.read(limits, &mut fetched)?;
        Ok(fetched)
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        self.held.extend(partitions.iter().cloned());
        Ok(())
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        self.held.retain(|at| !partitions.contains(at));
        Ok(())
    }

    async fn end_offsets(&mut self) -> Result<Positions, Error> {
        self.gate.pass().await;
        let broker = self.broker.lock().unwrap();
        Ok(self.next.keys().map(|at| (at.clone(), broker.partitions[at].end())).collect())
    }

    async fn durable(&mut self, positions: &Positions) {
        positions.iter().for_each(|(at, next)| (self.witness)(at, *next));
    }
}
