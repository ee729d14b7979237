use bytes::Bytes;

use super::*;
use crate::change::RawRecord;
use crate::error::{Kind, Situation};
use crate::offsets::RecordMark;
use crate::source::EmbeddedBroker;

const TOPIC: &str = "shop.public.orders";
const LIMITS: FetchLimits = FetchLimits { records: 100, bytes: 1 << 20, wait: Duration::from_millis(200) };

fn config(brokers: &str) -> KafkaConfig {
    KafkaConfig {
        brokers: brokers.to_string(),
        group: "icestream-test".to_string(),
        topics: vec!["shop.public.*".to_string()],
        assignment: Assignment::Everything,
        discover_every: Duration::from_secs(30),
        properties: BTreeMap::new(),
        msk_iam: None,
        queue_bytes: 1 << 20,
    }
}

fn at(partition: i32) -> TopicPartition {
    TopicPartition::new(TOPIC, partition)
}

fn from(next: i64) -> Start {
    Start::At { next, last: None }
}

/// A topic of two partitions with `counts` records in them.
async fn topic(counts: [i64; 2]) -> (EmbeddedBroker, KafkaSource) {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic(TOPIC, 2).unwrap();
    let producer = broker.producer().unwrap();
    for (partition, count) in (0..).zip(counts) {
        for offset in 0..count {
            let payload = format!("{partition}:{offset}");
            let payload = Some(payload.as_bytes()).filter(|_| offset % 10 != 9);
            assert_eq!(producer.send(&at(partition), Some(b"k"), payload, 1000 + offset).await.unwrap(), offset);
        }
    }
    let sent = producer.flush().await.unwrap();
    assert_eq!(sent.values().sum::<i64>(), counts.iter().sum::<i64>());
    let source = KafkaSource::connect(config(broker.brokers())).unwrap();
    (broker, source)
}

/// Everything up to `ends`, in the order it came.
async fn drain(source: &mut KafkaSource, ends: &Positions) -> Vec<RawRecord> {
    let mut records = Vec::new();
    let mut positions = Positions::new();
    let all = async {
        while !ends.iter().all(|(at, end)| positions.get(at).is_some_and(|next| next >= end)) {
            let fetched = source.fetch(LIMITS).await.unwrap();
            records.extend(fetched.records);
            positions.extend(fetched.positions);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("the end of the topic is reached");
    assert_eq!(&positions, ends);
    records
}

fn offsets(records: &[RawRecord], partition: i32) -> Vec<i64> {
    records.iter().filter(|record| record.partition == partition).map(|record| record.offset).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_partitions_are_read_to_their_ends_once_and_in_order() {
    let (_broker, mut source) = topic([250, 120]).await;
    assert_eq!(source.partitions().await.unwrap(), [at(0), at(1)]);
    let starts = [(at(0), Start::Beginning), (at(1), from(100))].into();
    assert_eq!(source.assign(&starts).await.unwrap(), [(at(0), 0), (at(1), 100)].into());
    let ends = source.end_offsets().await.unwrap();
    assert_eq!(ends, [(at(0), 250), (at(1), 120)].into());
    let records = drain(&mut source, &ends).await;
    assert_eq!(offsets(&records, 0), (0..250).collect::<Vec<_>>());
    assert_eq!(offsets(&records, 1), (100..120).collect::<Vec<_>>());
    for record in records {
        let text = format!("{}:{}", record.partition, record.offset);
        let payload = Some(Bytes::from(text)).filter(|_| record.offset % 10 != 9);
        assert_eq!(record.payload, payload);
        assert_eq!(record.key.as_deref(), Some(&b"k"[..]));
        assert_eq!(record.timestamp_ms, Some(1000 + record.offset));
    }
    assert!(source.fetch(LIMITS).await.unwrap().positions.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_moved_back_is_read_again_and_the_other_goes_on() {
    let (_broker, mut source) = topic([150, 150]).await;
    source.assign(&[(at(0), from(10)), (at(1), from(20))].into()).await.unwrap();
    let ends = source.end_offsets().await.unwrap();
    let few = FetchLimits { records: 30, ..LIMITS };
    let mut before = Vec::new();
    while before.len() < 60 {
        before.extend(source.fetch(few).await.unwrap().records);
    }
    source.assign(&[(at(0), from(5))].into()).await.unwrap();
    let after = drain(&mut source, &ends).await;
    assert_eq!(offsets(&after, 0), (5..150).collect::<Vec<_>>());
    let other = [offsets(&before, 1), offsets(&after, 1)].concat();
    assert_eq!(other, (20..150).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_partitions_end_where_they_start() {
    let (_broker, mut source) = topic([0, 0]).await;
    let starts: BTreeMap<_, _> = [(at(0), Start::Beginning), (at(1), from(0))].into();
    assert_eq!(source.assign(&starts).await.unwrap(), source.end_offsets().await.unwrap());
    let fetched = source.fetch(LIMITS).await.unwrap();
    assert!(fetched.records.is_empty() && fetched.positions.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_that_is_not_there_is_an_error_and_no_new_start() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic(TOPIC, 1).unwrap();
    let producer = broker.producer().unwrap();
    let payload = vec![b'x'; 100_000];
    for next in 1..=100 {
        producer.send(&at(0), None, Some(&payload), 0).await.unwrap();
        producer.flush().await.unwrap();
        producer.durable().reached(&[(at(0), next)].into());
    }
    let mut source = KafkaSource::connect(config(broker.brokers())).unwrap();
    let past = source.assign(&[(at(0), from(101))].into()).await.unwrap_err();
    assert!(matches!(past, Error::PastEnd { offset: 101, end: 100, .. }), "{past:?}");
    let expired = source.assign(&[(at(0), from(3))].into()).await.unwrap_err();
    assert!(matches!(expired, Error::Expired { offset: 3, first: 40..60, .. }), "{expired:?}");
    assert_eq!(expired.kind(), Kind::Corrupt);
    let first = source.assign(&[(at(0), Start::Beginning)].into()).await.unwrap()[&at(0)];
    assert!((40..60).contains(&first), "{first}");
    // The broker drops records while they are being read.
    source.assigned.set(&at(0), 3, None);
    source.restart_all().unwrap();
    let met = async {
        loop {
            match source.fetch(LIMITS).await {
                Ok(fetched) => assert!(fetched.records.is_empty(), "{:?}", fetched.positions),
                Err(error) => break error,
            }
        }
    };
    let met = tokio::time::timeout(Duration::from_secs(60), met).await.unwrap();
    assert!(matches!(met, Error::Expired { offset: 3, .. }), "{met:?}");
}

/// A start behind the first `next` records of [`topic`], the last of which is `last`.
fn behind(next: i64, last: &RawRecord) -> Start {
    Start::At { next, last: Some(RecordMark::of(last)) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_another_than_before_is_not_read_on() {
    let (_broker, mut source) = topic([120, 120]).await;
    source.assign(&[(at(0), Start::Beginning), (at(1), Start::Beginning)].into()).await.unwrap();
    let ends = source.end_offsets().await.unwrap();
    let before = drain(&mut source, &ends).await;
    let read = |partition, offset| before.iter().find(|r| (r.partition, r.offset) == (partition, offset)).unwrap();
    source.assign(&[(at(0), behind(100, read(0, 97))), (at(1), behind(60, read(1, 59)))].into()).await.unwrap();
    let after = drain(&mut source, &ends).await;
    assert_eq!(offsets(&after, 0), (100..120).collect::<Vec<_>>());
    assert_eq!(offsets(&after, 1), (60..120).collect::<Vec<_>>());
    // The record at 59 is another one, of which nothing is given; the other partition goes on.
    let another = RawRecord { payload: Some("another".into()), ..read(1, 59).clone() };
    let starts = [(at(0), behind(50, read(0, 49))), (at(1), behind(60, &another))];
    source.assign(&starts.into()).await.unwrap();
    let (mut records, mut met) = (Vec::new(), None);
    let all = async {
        while met.is_none() || offsets(&records, 0).len() < 70 {
            match source.fetch(LIMITS).await {
                Ok(fetched) => records.extend(fetched.records),
                Err(error) => assert!(met.replace(error).is_none(), "told twice"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
    let met = met.unwrap();
    assert!(matches!(&met, Error::Replaced { at: met, offset: 59, .. } if *met == at(1)), "{met:?}");
    assert_eq!((met.kind(), offsets(&records, 1)), (Kind::Corrupt, vec![]));
    assert_eq!(offsets(&records, 0), (50..120).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_held_back_goes_on_where_it_was() {
    let (_broker, mut source) = topic([300, 300]).await;
    source.assign(&[(at(0), Start::Beginning), (at(1), Start::Beginning)].into()).await.unwrap();
    let ends = source.end_offsets().await.unwrap();
    let few = FetchLimits { records: 7, ..LIMITS };
    let mut records = Vec::new();
    for round in 0.. {
        // One partition and then the other, with much of both in the client's queue.
        let (held, free) = (at(round % 2), at(1 - round % 2));
        source.pause(std::slice::from_ref(&held)).unwrap();
        let fetched = source.fetch(few).await.unwrap();
        assert_eq!(offsets(&fetched.records, held.partition), Vec::<i64>::new());
        assert!(!fetched.positions.contains_key(&held));
        records.extend(fetched.records);
        source.resume(&[held, free]).unwrap();
        if offsets(&records, 0).len() >= 50 && offsets(&records, 1).len() >= 50 {
            break;
        }
    }
    records.extend(drain_rest(&mut source, &ends).await);
    assert_eq!(offsets(&records, 0), (0..300).collect::<Vec<_>>());
    assert_eq!(offsets(&records, 1), (0..300).collect::<Vec<_>>());
}

/// Everything up to `ends`, for partitions that may have got there already.
async fn drain_rest(source: &mut KafkaSource, ends: &Positions) -> Vec<RawRecord> {
    let mut records = Vec::new();
    let all = async {
        while source.assigned.partitions.iter().any(|reading| reading.next < ends[&reading.at]) {
            records.extend(source.fetch(LIMITS).await.unwrap().records);
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.expect("the end of the topic is reached");
    records
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_topic_is_found_while_reading() {
    let (broker, _) = topic([5, 0]).await;
    let discover_every = Duration::from_millis(50);
    let mut source = KafkaSource::connect(KafkaConfig { discover_every, ..config(broker.brokers()) }).unwrap();
    assert_eq!(source.partitions().await.unwrap(), [at(0), at(1)]);
    source.assign(&[(at(0), Start::Beginning)].into()).await.unwrap();
    broker.create_topic("crm.leads", 1).unwrap();
    broker.create_topic("shop.public.refunds", 2).unwrap();
    let wait = Duration::from_secs(30);
    let found = async {
        loop {
            let fetched = source.fetch(FetchLimits { wait, ..LIMITS }).await.unwrap();
            assert_eq!(fetched.lost, []);
            if !fetched.gained.is_empty() {
                break fetched.gained;
            }
        }
    };
    let gained = tokio::time::timeout(wait, found).await.unwrap();
    let refunds = |partition| TopicPartition::new("shop.public.refunds", partition);
    assert_eq!(gained, [refunds(0), refunds(1)]);
    assert_eq!(source.fetch(LIMITS).await.unwrap().gained, [], "told once");
}

/// A member with what it has.
struct Reader {
    source: KafkaSource,
    owned: std::collections::BTreeSet<TopicPartition>,
    records: Vec<RawRecord>,
}

impl Reader {
    fn join(broker: &EmbeddedBroker, properties: &[(&str, &str)]) -> Self {
        // The embedded broker waits for a session's end before it lets a member join the others.
        let quick = [("session.timeout.ms", "6000"), ("heartbeat.interval.ms", "200")];
        let properties = quick.iter().chain(properties);
        let properties = properties.map(|(name, value)| (name.to_string(), value.to_string())).collect();
        let config = KafkaConfig {
            assignment: Assignment::Group,
            discover_every: Duration::from_millis(200),
            properties,
            ..config(broker.brokers())
        };
        let source = KafkaSource::connect(config).unwrap();
        Reader { source, owned: Default::default(), records: Vec::new() }
    }

    /// One fetch, with what was gained read from its beginning.
    async fn step(&mut self) {
        let fetched = self.source.fetch(LIMITS).await.unwrap();
        for at in &fetched.lost {
            assert!(self.owned.remove(at), "{at} was not owned");
        }
        let starts: BTreeMap<_, _> = fetched.gained.iter().map(|at| (at.clone(), Start::Beginning)).collect();
        self.source.assign(&starts).await.unwrap();
        for at in fetched.gained {
            assert!(self.owned.insert(at.clone()), "{at} was owned already");
        }
        for record in &fetched.records {
            assert!(self.owned.contains(&TopicPartition::new(record.topic.clone(), record.partition)));
        }
        self.records.extend(fetched.records);
    }
}

async fn until(what: &str, readers: &mut [&mut Reader], done: impl Fn(&[&mut Reader]) -> bool) {
    let all = async {
        while !done(readers) {
            for reader in readers.iter_mut() {
                reader.step().await;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_share_partitions_and_take_over_from_one_that_leaves() {
    let (broker, _) = topic([40, 40]).await;
    let mut first = Reader::join(&broker, &[]);
    let mut second = Reader::join(&broker, &[]);
    assert_eq!(first.source.partitions().await.unwrap(), []);
    until("one has all", &mut [&mut first], |readers| readers[0].owned.len() == 2).await;
    until("both are shared", &mut [&mut first, &mut second], |readers| {
        readers.iter().all(|reader| reader.owned.len() == 1 && reader.records.len() >= 40)
    })
    .await;
    assert!(first.owned.is_disjoint(&second.owned));
    first.source.durable(&first.owned.iter().map(|at| (at.clone(), 17)).collect()).await;
    let theirs = first.owned.clone();
    drop(first);
    until("the other takes over", &mut [&mut second], |readers| readers[0].owned.is_superset(&theirs)).await;
    broker.create_topic("shop.public.refunds", 3).unwrap();
    until("a new topic is shared", &mut [&mut second], |readers| readers[0].owned.len() == 5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_asks_for_nothing_gives_its_partitions_away() {
    let (broker, _) = topic([10, 10]).await;
    let impatient = [("max.poll.interval.ms", "6000")];
    let mut first = Reader::join(&broker, &impatient);
    let mut second = Reader::join(&broker, &impatient);
    until("one has all", &mut [&mut first], |readers| readers[0].owned.len() == 2).await;
    // The first hangs.
    until("the other has all", &mut [&mut second], |readers| readers[0].owned.len() == 2).await;
    // And goes on, of all that it had nothing.
    let fetched = first.source.fetch(LIMITS).await.unwrap();
    assert_eq!((fetched.lost, fetched.records), (vec![at(0), at(1)], vec![]));
    first.owned.clear();
    until("both are shared", &mut [&mut first, &mut second], |readers| {
        readers.iter().all(|reader| reader.owned.len() == 1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_durable_shows_as_the_group_s_offsets() {
    let (_broker, mut source) = topic([20, 20]).await;
    let starts = [(at(0), Start::Beginning), (at(1), Start::Beginning)].into();
    source.assign(&starts).await.unwrap();
    source.durable(&[(at(0), 7), (at(1), 11)].into()).await;
    let committed = async {
        loop {
            let ask = |consumer: &StreamConsumer<ClientLog>, timeout| {
                let mut list = TopicPartitionList::new();
                list.add_partition_range(TOPIC, 0, 1);
                let found = consumer.committed_offsets(list, timeout)?;
                Ok(found.elements().iter().map(|element| element.offset()).collect::<Vec<_>>())
            };
            if source.ask(ask).await.unwrap() == [Offset::Offset(7), Offset::Offset(11)] {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), committed).await.expect("the offsets are committed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_topic_has_to_exist_and_a_pattern_may_match_nothing() {
    let (broker, _) = topic([0, 0]).await;
    let with_topics = |topics: &[&str]| {
        let topics = topics.iter().map(|topic| topic.to_string()).collect();
        KafkaSource::connect(KafkaConfig { topics, ..config(broker.brokers()) }).unwrap()
    };
    assert_eq!(with_topics(&["crm.*"]).partitions().await.unwrap(), []);
    assert_eq!(with_topics(&[TOPIC]).partitions().await.unwrap(), [at(0), at(1)]);
    let error = with_topics(&["shop.*", "crm.leads"]).partitions().await.unwrap_err();
    assert_eq!(error.to_string(), format!("topic `crm.leads` does not exist on `{}`", broker.brokers()));
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_named_with_the_reason() {
    let mut source = KafkaSource::connect(config("127.0.0.1:1")).unwrap();
    source.answer_timeout = Duration::from_secs(1);
    let error = crate::error::Error::from(source.partitions().await.unwrap_err());
    assert_eq!(error.kind(), Kind::Unavailable);
    let chain = error.chain();
    assert_eq!(chain[0], "kafka at `127.0.0.1:1` does not answer");
    assert!(chain[1].contains("refused"), "{chain:?}");
}

#[tokio::test]
async fn a_property_that_cannot_be_is_refused_without_its_value() {
    let check = |name: &str, value: &str| {
        let mut config = config("127.0.0.1:1");
        config.properties.insert(name.to_string(), value.to_string());
        assert!(!format!("{config:?}").contains(value));
        crate::error::Error::from(KafkaSource::connect(config).unwrap_err()).render()
    };
    insta::assert_snapshot!(check("auto.offset.reset", "latest"), @r"
    error: kafka property `auto.offset.reset` cannot be set: where reading starts comes from the tables alone
      hint: remove `auto.offset.reset` from `source.kafka.properties`
    ");
    insta::assert_snapshot!(check("sasl.pasword", "s3cret"), @r"
    error: kafka property `sasl.pasword` is not accepted: there is no such property
      hint: check `source.kafka.properties.sasl.pasword` against librdkafka's CONFIGURATION.md
    ");
    insta::assert_snapshot!(check("security.protocol", "s3cret"), @r"
    error: kafka property `security.protocol` is not accepted: its value is not valid
      hint: check `source.kafka.properties.security.protocol` against librdkafka's CONFIGURATION.md
    ");
}

#[tokio::test]
async fn larger_messages_may_be_asked_for_under_any_budget() {
    let property = ("message.max.bytes".to_string(), "10485760".to_string());
    KafkaSource::connect(KafkaConfig { properties: [property].into(), ..config("127.0.0.1:1") }).unwrap();
}
