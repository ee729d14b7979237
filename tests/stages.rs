//! The first three stages put together: a log, its records decoded, and batches of bronze rows.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::AsArray;
use arrow::datatypes::{Int32Type, Int64Type};
use bytes::Bytes;
use icestream::batch::ChangeBatchBuilder;
use icestream::change::{ChangeBatch, ChangeCounts, RawRecord};
use icestream::clock::Clock;
use icestream::decode::{Format, decode};
use icestream::layout;
use icestream::offsets::{OffsetRange, Positions, TopicPartition};
use icestream::row::{Column, RowShape};
use icestream::source::{Assignment, EmbeddedBroker, FetchLimits, KafkaConfig, KafkaSource, Source, Start};
use proptest::prelude::*;

const TOPIC: &str = "shop.public.customers";

fn customers() -> Arc<RowShape> {
    let column = |(name, column_type): (&str, &str)| Column::new(name, column_type.parse().unwrap(), None).unwrap();
    let columns = [("id", "long"), ("email", "string"), ("balance", "decimal(12,2)"), ("seen_at", "timestamptz")];
    Arc::new(RowShape { columns: columns.map(column).to_vec() })
}

fn builder() -> ChangeBatchBuilder {
    ChangeBatchBuilder::new(Some(customers()), 0, Clock::manual(1_735_689_600_000_000).0)
}

fn event(op: &str, id: i64, lsn: i64) -> String {
    let row =
        format!(r#"{{"id":{id},"email":"c{id}@shop.example","balance":"BOI=","seen_at":"2025-01-01T00:00:00Z"}}"#);
    let (before, after) = if op == "d" { (row.as_str(), "null") } else { ("null", row.as_str()) };
    format!(
        r#"{{"before":{before},"after":{after},"source":{{"version":"3.0.8.Final","connector":"postgresql","name":"shop","ts_ms":1735689600123,"snapshot":"false","db":"shop","sequence":"[\"{lsn}\",\"{lsn}\"]","ts_us":1735689600123456,"ts_ns":1735689600123456000,"schema":"public","table":"customers","txId":{lsn},"lsn":{lsn},"xmin":null}},"transaction":null,"op":"{op}","ts_ms":1735689600400}}"#
    )
}

/// The identities of the rows of a batch.
fn identities(batch: &ChangeBatch) -> Vec<(i32, i64)> {
    let partitions = batch.rows.column_by_name(layout::PARTITION).unwrap().as_primitive::<Int32Type>();
    let offsets = batch.rows.column_by_name(layout::OFFSET).unwrap().as_primitive::<Int64Type>();
    partitions.values().iter().copied().zip(offsets.values().iter().copied()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_produced_is_in_the_batches_with_no_gap_and_no_duplicate() {
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic(TOPIC, 2).unwrap();
    let partitions = [TopicPartition::new(TOPIC, 0), TopicPartition::new(TOPIC, 1)];
    let producer = broker.producer().unwrap();
    let durable = producer.durable();
    let generator = tokio::spawn({
        let partitions = partitions.clone();
        async move {
            for id in 0..8_000 {
                let to = &partitions[(id % 2) as usize];
                let key = format!("{{\"id\":{id}}}");
                let (op, is_deleted) = if id % 10 == 8 { ("d", true) } else { ("c", false) };
                let payload = if id == 4_321 { "poison".to_string() } else { event(op, id, 1000 + id) };
                producer.send(to, Some(key.as_bytes()), Some(payload.as_bytes()), id).await.unwrap();
                if is_deleted {
                    producer.send(to, Some(key.as_bytes()), None, id).await.unwrap();
                }
            }
            producer.flush().await.unwrap()
        }
    });

    let mut source = KafkaSource::connect(KafkaConfig {
        brokers: broker.brokers().to_string(),
        group: "icestream-stages".to_string(),
        topics: vec![TOPIC.to_string()],
        assignment: Assignment::Everything,
        discover_every: Duration::from_secs(30),
        properties: BTreeMap::new(),
        msk_iam: None,
        queue_bytes: 1 << 20,
    })
    .unwrap();
    let found = source.partitions().await.unwrap();
    assert_eq!(found, partitions);
    let mut builder = builder();
    let starts = found.into_iter().map(|at| (at, Start::Beginning)).collect();
    for (at, from) in source.assign(&starts).await.unwrap() {
        builder.start(at, from).unwrap();
    }
    let limits = FetchLimits { records: 500, bytes: 1 << 20, wait: Duration::from_millis(100) };
    let mut batches = Vec::new();
    let mut positions = Positions::new();
    let all = async {
        // 8,000 events, and 800 tombstones behind the deletes.
        while positions.values().sum::<i64>() < 8_800 {
            let fetched = source.fetch(limits).await.unwrap();
            for record in fetched.records {
                builder.push(decode(record, Format::DebeziumJson)).unwrap();
            }
            for (at, next) in &fetched.positions {
                builder.advance(at, *next);
            }
            positions.extend(fetched.positions);
            if builder.bytes() > 300_000 {
                batches.push(builder.finish().unwrap());
                durable.reached(&positions);
            }
        }
        batches.push(builder.finish().unwrap());
        durable.reached(&positions);
    };
    tokio::time::timeout(Duration::from_secs(120), all).await.expect("everything produced is read");

    assert_eq!(generator.await.unwrap(), positions);
    assert_eq!(source.end_offsets().await.unwrap(), positions);
    let mut next = Positions::new();
    let mut counts = ChangeCounts::default();
    let mut rows = Vec::new();
    for batch in &batches {
        for (at, OffsetRange { from, next: to }) in &batch.ranges {
            assert_eq!(next.insert(at.clone(), *to).unwrap_or(0), *from, "{at}");
        }
        counts.changes += batch.counts.changes;
        counts.rejected += batch.counts.rejected;
        counts.tombstones += batch.counts.tombstones;
        rows.extend(identities(batch));
    }
    assert_eq!(next, positions);
    assert_eq!(counts, ChangeCounts { changes: 7_999, rejected: 1, tombstones: 800, ..Default::default() });
    let read = rows.len();
    rows.sort();
    rows.dedup();
    assert_eq!((read, rows.len()), (8_000, 8_000));
    assert!(batches.len() > 5, "{}", batches.len());
}

proptest! {
    #[test]
    fn every_record_of_any_bytes_is_accounted_for(payloads in prop::collection::vec(any_payload(), 1..30)) {
        let mut builder = builder();
        for (offset, payload) in (0..).zip(&payloads) {
            let (topic, payload) = (TOPIC.into(), payload.clone().map(Bytes::from));
            let record = RawRecord { topic, partition: 0, offset, timestamp_ms: None, key: payload.clone(), payload };
            builder.push(decode(record, Format::DebeziumJson)).unwrap();
        }
        let batch = builder.finish().unwrap();
        let range = OffsetRange { from: 0, next: payloads.len() as i64 };
        prop_assert_eq!(batch.ranges.values().collect::<Vec<_>>(), [&range]);
        let ChangeCounts { changes, rejected, tombstones, heartbeats, transactions, schema_changes, unexpected } = batch.counts;
        prop_assert_eq!((changes + rejected) as usize, batch.rows.num_rows());
        prop_assert!(unexpected <= changes);
        let consumed = tombstones + heartbeats + transactions + schema_changes;
        prop_assert_eq!((changes + rejected + consumed) as usize, payloads.len());
    }
}

/// Nothing, random bytes, or an event with a few bytes of it changed.
fn any_payload() -> impl Strategy<Value = Option<Vec<u8>>> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    let changed = ("[crudtm]", 0..9i64, edits).prop_map(|(op, id, edits)| {
        let mut bytes = event(&op, id, id).into_bytes();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        Some(bytes)
    });
    prop_oneof![1 => Just(None), 2 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Some), 7 => changed]
}
