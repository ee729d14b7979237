//! A real broker, read by the source alone: shared by members of a group, with topics that come, grow and go, and records
//! of 20 MB.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use icestream::error::{Kind, Situation};
use icestream::offsets::{Positions, RecordMark, TopicPartition};
use icestream::source::{Assignment, Error, FetchLimits, KafkaConfig, KafkaSource, Source, Start};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::Value;
use uuid::Uuid;

const LIMITS: FetchLimits = FetchLimits { records: 1000, bytes: 1 << 20, wait: Duration::from_millis(100) };
const PATIENCE: Duration = Duration::from_secs(60);

/// Topics of their own at the shared broker.
pub struct Broker {
    pub kafka: Value,
    prefix: String,
    admin: AdminClient<DefaultClientContext>,
    producer: FutureProducer,
}

impl Broker {
    pub fn new() -> Self {
        let file = std::env::var_os("ICESTREAM_KAFKA_FILE").expect("run these tests with `tests/run`");
        let kafka: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", kafka["brokers"].as_str().unwrap());
        let admin = client.create().unwrap();
        let producer = client.set("message.max.bytes", "30000000").create().unwrap();
        Broker { kafka, prefix: format!("g{}", Uuid::new_v4().simple()), admin, producer }
    }

    pub fn topic(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    pub fn at(&self, name: &str, partition: i32) -> TopicPartition {
        TopicPartition::new(self.topic(name), partition)
    }

    pub async fn create(&self, name: &str, partitions: i32) {
        let topic = self.topic(name);
        let topic = NewTopic::new(&topic, partitions, TopicReplication::Fixed(1)).set("max.message.bytes", "30000000");
        self.admin.create_topics(&[topic], &AdminOptions::new()).await.unwrap()[0].clone().unwrap();
    }

    async fn delete(&self, name: &str) {
        self.admin.delete_topics(&[&self.topic(name)], &AdminOptions::new()).await.unwrap()[0].clone().unwrap();
    }

    pub async fn send(&self, at: &TopicPartition, payloads: impl IntoIterator<Item = Vec<u8>>) {
        for payload in payloads {
            let record: FutureRecord<'_, str, [u8]> =
                FutureRecord::to(&at.topic).partition(at.partition).payload(&payload);
            self.producer.send(record, PATIENCE).await.unwrap();
        }
    }

    pub fn config(&self, assignment: Assignment) -> KafkaConfig {
        let properties = [("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "300")];
        KafkaConfig {
            brokers: self.kafka["brokers"].as_str().unwrap().to_string(),
            group: self.prefix.clone(),
            topics: vec![format!("{}.*", self.prefix)],
            assignment,
            discover_every: Duration::from_millis(500),
            properties: properties.map(|(name, value)| (name.to_string(), value.to_string())).into(),
            msk_iam: None,
            queue_bytes: 1 << 20,
        }
    }
}

/// A source with what it was given to read.
pub struct Reader {
    source: KafkaSource,
    owned: BTreeSet<TopicPartition>,
    pub positions: Positions,
    pub error: Option<Error>,
}

impl Reader {
    pub fn new(config: KafkaConfig) -> Self {
        let source = KafkaSource::connect(config).unwrap();
        Reader { source, owned: BTreeSet::new(), positions: Positions::new(), error: None }
    }

    /// Asks for all there is to read, and starts it.
    pub async fn all(&mut self) {
        let partitions = self.source.partitions().await.unwrap();
        let starts = partitions.iter().map(|at| (at.clone(), Start::Beginning)).collect();
        self.source.assign(&starts).await.unwrap();
        self.owned.extend(partitions);
    }

    async fn step(&mut self) {
        let fetched = match self.source.fetch(LIMITS).await {
            Ok(fetched) => fetched,
            Err(error) => return self.error = Some(error),
        };
        fetched.lost.iter().for_each(|at| assert!(self.owned.remove(at)));
        for record in &fetched.records {
            let at = TopicPartition::new(record.topic.clone(), record.partition);
            assert!(self.owned.contains(&at), "{at} is somebody else's");
            let next = self.positions.entry(at).or_default();
            assert_eq!(record.offset, *next);
            *next += 1;
        }
        let start = |at: &TopicPartition| match self.positions.get(at) {
            Some(next) => Start::At { next: *next, last: None },
            None => Start::Beginning,
        };
        let starts: BTreeMap<_, _> = fetched.gained.iter().map(|at| (at.clone(), start(at))).collect();
        self.source.assign(&starts).await.unwrap();
        fetched.gained.into_iter().for_each(|at| assert!(self.owned.insert(at)));
    }
}

pub async fn until(what: &str, readers: &mut [&mut Reader], done: impl Fn(&[&mut Reader]) -> bool) {
    let all = async {
        while !done(readers) {
            for reader in readers.iter_mut() {
                reader.step().await;
            }
        }
    };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        let owned: Vec<_> = readers.iter().map(|reader| (&reader.owned, &reader.error)).collect();
        panic!("{what}: {owned:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_share_what_there_is_and_take_over() {
    let broker = Broker::new();
    broker.create("orders", 4).await;
    for partition in 0..4 {
        broker.send(&broker.at("orders", partition), vec![b"x".to_vec(); 50]).await;
    }
    let mut first = Reader::new(broker.config(Assignment::Group));
    let mut second = Reader::new(broker.config(Assignment::Group));
    until("one has all", &mut [&mut first], |readers| readers[0].owned.len() == 4).await;
    until("both have two", &mut [&mut first, &mut second], |readers| {
        let has_read = |reader: &&mut Reader| reader.owned.iter().all(|at| reader.positions.get(at) == Some(&50));
        readers.iter().all(|reader| reader.owned.len() == 2 && has_read(reader))
    })
    .await;
    assert!(first.owned.is_disjoint(&second.owned));

    // The group's offsets follow, as of the member that owns the partition.
    let mine = first.owned.first().unwrap().clone();
    first.source.durable(&[(mine.clone(), 17)].into()).await;
    let committed = || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", broker.kafka["brokers"].as_str().unwrap())
            .set("group.id", &broker.prefix)
            .create()
            .unwrap();
        let mut list = rdkafka::TopicPartitionList::new();
        list.add_partition(&mine.topic, mine.partition);
        consumer.committed_offsets(list, PATIENCE).unwrap().elements()[0].offset()
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    while committed() != rdkafka::Offset::Offset(17) {
        assert!(std::time::Instant::now() < deadline, "the offset is not committed");
    }

    drop(first);
    until("the other has all", &mut [&mut second], |readers| readers[0].owned.len() == 4).await;
    let topic = broker.topic("orders");
    let more = [NewPartitions::new(&topic, 6)];
    broker.admin.create_partitions(&more, &AdminOptions::new()).await.unwrap()[0].clone().unwrap();
    broker.create("refunds", 1).await;
    until("what is new is found", &mut [&mut second], |readers| readers[0].owned.len() == 7).await;
    broker.delete("refunds").await;
    until("a deleted topic is named", &mut [&mut second], |readers| readers[0].error.is_some()).await;
    let gone = second.error.unwrap();
    assert!(matches!(&gone, Error::TopicMissing { topic, .. } if *topic == broker.topic("refunds")), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_partitions_are_found_without_a_group() {
    let broker = Broker::new();
    broker.create("orders", 1).await;
    let mut reader = Reader::new(broker.config(Assignment::Everything));
    reader.source.partitions().await.unwrap();
    let topic = broker.topic("orders");
    let more = [NewPartitions::new(&topic, 3)];
    broker.admin.create_partitions(&more, &AdminOptions::new()).await.unwrap()[0].clone().unwrap();
    until("the new ones are told", &mut [&mut reader], |readers| readers[0].owned.len() == 2).await;
    assert_eq!(reader.owned, [broker.at("orders", 1), broker.at("orders", 2)].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_20_mb_are_read() {
    let broker = Broker::new();
    broker.create("large", 1).await;
    let at = broker.at("large", 0);
    let payload = |number: u8| vec![number; 20 << 20];
    broker.send(&at, (0..3).map(payload)).await;
    let mut source = KafkaSource::connect(broker.config(Assignment::Everything)).unwrap();
    source.assign(&[(at.clone(), Start::Beginning)].into()).await.unwrap();
    let mut records = Vec::new();
    let all = async {
        while records.len() < 3 {
            records.extend(source.fetch(LIMITS).await.unwrap().records);
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
    for (number, record) in (0..).zip(records) {
        assert!(record.payload.unwrap() == payload(number), "record {number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_anew_is_not_taken_for_the_old_one() {
    let broker = Broker::new();
    broker.create("orders", 1).await;
    let at = broker.at("orders", 0);
    broker.send(&at, (0..5).map(|number| vec![number])).await;
    let mut source = KafkaSource::connect(broker.config(Assignment::Everything)).unwrap();
    source.assign(&[(at.clone(), Start::Beginning)].into()).await.unwrap();
    let mut records = Vec::new();
    let all = async {
        while records.len() < 5 {
            records.extend(source.fetch(LIMITS).await.unwrap().records);
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
    drop(source);
    let start = Start::At { next: 5, last: records.last().map(RecordMark::of) };
    broker.send(&at, [vec![5]]).await;
    let mut source = KafkaSource::connect(broker.config(Assignment::Everything)).unwrap();
    source.assign(&[(at.clone(), start)].into()).await.unwrap();
    let same = async {
        loop {
            let fetched = source.fetch(LIMITS).await.unwrap();
            if let Some(record) = fetched.records.first() {
                break record.offset;
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, same).await.unwrap(), 5);
    drop(source);

    broker.delete("orders").await;
    let there = async {
        let mut source = KafkaSource::connect(broker.config(Assignment::Everything)).unwrap();
        while !source.partitions().await.unwrap().is_empty() {}
    };
    tokio::time::timeout(PATIENCE, there).await.unwrap();
    broker.create("orders", 1).await;
    let broker = Broker { prefix: broker.prefix.clone(), ..Broker::new() };
    broker.send(&at, (0..9).map(|number| vec![number])).await;
    let mut source = KafkaSource::connect(broker.config(Assignment::Everything)).unwrap();
    source.assign(&[(at.clone(), start)].into()).await.unwrap();
    let other = async {
        loop {
            match source.fetch(LIMITS).await {
                Ok(fetched) => assert!(fetched.records.is_empty() && fetched.positions.is_empty()),
                Err(error) => break error,
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, other).await.unwrap();
    assert!(matches!(&error, Error::Replaced { offset: 4, .. }), "{error:?}");
    assert_eq!(error.kind(), Kind::Corrupt);
}
