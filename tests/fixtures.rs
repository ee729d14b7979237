//! Events that a real Debezium sent, recorded by `tests/fixtures/record`: what decoding makes of every one of them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "a test binary exports nothing")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use icestream::batch::ChangeBatchBuilder;
use icestream::change::{ChangeCounts, Decoded, RawRecord};
use icestream::clock::Clock;
use icestream::decode::{Decoder, Format, decode};
use icestream::row::RowShape;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

#[path = "support/recorded.rs"]
mod recorded;

#[path = "support/mod.rs"]
mod support;

use recorded::{CONNECTORS, records, topics, variants};

/// Per variant: changes, those of them that say their row's types, consumed records, rejected records.
#[test]
fn every_recorded_event_is_decoded() {
    let mut shown = String::new();
    for connector in CONNECTORS {
        for name in variants(connector) {
            let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
            let (mut changes, mut with_shape, mut consumed, mut rejected) = (0, 0, 0, 0);
            let mut decoder = Decoder::new(recorded::format(&name));
            for file in topics(connector, &name) {
                for record in records(&file) {
                    match decoder.decode(record) {
                        Decoded::Change(event) => {
                            let has_image = event.before.is_some() || event.after.is_some();
                            assert!(has_image || matches!(event.op.letter(), "t" | "m"), "{event:?}");
                            with_shape += usize::from(event.shape.is_some());
                            changes += 1;
                        }
                        Decoded::Consumed(..) => consumed += 1,
                        Decoded::Rejected(record) => {
                            rejected += 1;
                            *reasons.entry(record.reason).or_default() += 1;
                        }
                    }
                }
            }
            assert!(changes + consumed + rejected > 0, "{name}");
            shown.push_str(&format!("{connector}/{name}: {changes} {with_shape} {consumed} {rejected}\n"));
            for (reason, count) in reasons {
                shown.push_str(&format!("    {count} × {reason}\n"));
            }
        }
    }
    insta::assert_snapshot!(shown, @r"
    debezium-postgres/adjusted_names: 9 5 1 0
    debezium-postgres/binary_base64: 52 48 9 0
    debezium-postgres/binary_hex: 37 33 6 0
    debezium-postgres/decimal_double: 62 58 7 0
    debezium-postgres/decimal_string: 77 73 10 0
    debezium-postgres/extremes: 27 23 0 0
    debezium-postgres/extremes_isostring: 27 23 0 0
    debezium-postgres/flattened: 173 0 0 0
    debezium-postgres/flattened_bare: 43 0 1 0
    debezium-postgres/flattened_schemas: 173 169 30 0
    debezium-postgres/hstore_map: 37 33 6 0
    debezium-postgres/incremental: 45 0 0 0
    debezium-postgres/interval_string: 30 26 3 0
    debezium-postgres/no_tombstones: 25 0 0 0
    debezium-postgres/nulls_kept: 24 20 2 0
    debezium-postgres/odd_names: 9 5 1 0
    debezium-postgres/plain: 277 0 45 0
    debezium-postgres/schemas: 277 273 45 0
    debezium-postgres/special_precise: 13 9 0 0
    debezium-postgres/time_adaptive_microseconds: 30 26 3 0
    debezium-postgres/time_connect: 45 41 6 0
    debezium-postgres/time_isostring: 45 41 6 0
    debezium-postgres/time_microseconds: 30 26 3 0
    debezium-postgres/time_nanoseconds: 30 26 3 0
    debezium-postgres/transactions: 75 0 118 0
    debezium-postgres/transactions_schemas: 29 25 40 0
    debezium-postgres/unavailable: 20 16 3 0
    debezium-postgres/unknown_included: 11 7 0 0
    debezium-postgres/unknown_skipped: 11 7 0 0
    debezium-mariadb/doubles: 73 73 38 0
    debezium-mariadb/flattened: 72 0 29 0
    debezium-mariadb/microseconds: 73 73 38 0
    debezium-mariadb/plain: 73 0 39 0
    debezium-mariadb/schemas: 73 73 38 0
    debezium-mariadb/strings: 73 73 38 0
    ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_recorded_value_in_bronze_is_the_one_the_database_has() {
    let all =
        CONNECTORS.iter().flat_map(|connector| variants(connector).into_iter().map(move |name| (*connector, name)));
    let comparisons = all.map(|(connector, variant)| {
        tokio::spawn(async move {
            let world = support::sqlite_world().await;
            let mut found = Vec::new();
            for topic in recorded::write(&world, connector, &variant).await {
                found.push(recorded::compare(&topic, recorded::read(&topic).await));
            }
            found
        })
    });
    let (mut compared, mut wrong) = (0, Vec::new());
    for comparison in comparisons.collect::<Vec<_>>() {
        for (of_topic, differing) in comparison.await.unwrap() {
            compared += of_topic;
            wrong.extend(differing);
        }
    }
    assert!(wrong.is_empty(), "{} of {compared} values are wrong\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared > 10_000, "only {compared} values were compared");
}

/// Whatever is done to a recorded event, it comes out of decoding and is one row of a batch or a consumed record, and
/// what the decoder remembers of others makes no difference, nor what becomes columns together. `ICESTREAM_FUZZ_SECONDS` makes it go on for longer, with
/// another seed each time, which it says when it fails.
#[test]
fn an_event_changed_in_any_way_is_accounted_for() {
    let seconds = std::env::var("ICESTREAM_FUZZ_SECONDS").ok().map(|text| text.parse::<u64>().unwrap());
    let started = Instant::now();
    let is_over = |round: u64| match seconds {
        Some(seconds) => started.elapsed() >= Duration::from_secs(seconds),
        None => round >= 40,
    };
    let first_seed = if seconds.is_some() { rand::rng().random() } else { 0u64 };
    let recorded = all_recorded();
    let mut shapes: Vec<Arc<RowShape>> = Vec::new();
    for record in &recorded {
        if let Decoded::Change(event) = decode(record.clone(), Format::DebeziumJson)
            && let Some(shape) = event.shape
            && !shapes.contains(&shape)
        {
            shapes.push(shape);
        }
    }
    assert!(shapes.len() > 50, "only {} shapes", shapes.len());
    let (mut round, mut counts) = (0, ChangeCounts::default());
    while !is_over(round) {
        let seed = first_seed.wrapping_add(round);
        let result = std::panic::catch_unwind(|| fuzz(seed, &recorded, &shapes));
        let of_round = result.unwrap_or_else(|_| panic!("seed {seed}"));
        counts.changes += of_round.changes;
        counts.rejected += of_round.rejected;
        round += 1;
    }
    // Changes that break everything, or nothing, would test nothing.
    assert!(counts.changes > 100 && counts.rejected > 100, "{counts:?}");
    println!("{round} rounds of {RECORDS} records: {} changes, {} rejected", counts.changes, counts.rejected);
}

const RECORDS: i64 = 200;

fn all_recorded() -> Vec<RawRecord> {
    let of_connector =
        |connector: &'static str| variants(connector).into_iter().flat_map(move |variant| topics(connector, &variant));
    CONNECTORS.into_iter().flat_map(of_connector).flat_map(|file| records(&file)).collect()
}

fn fuzz(seed: u64, recorded: &[RawRecord], shapes: &[Arc<RowShape>]) -> ChangeCounts {
    let mut random = SmallRng::seed_from_u64(seed);
    let format = if random.random_ratio(1, 4) { Format::Json } else { Format::DebeziumJson };
    let mut decoder = Decoder::new(format);
    // Where few are changed, there are some that are written alike.
    let one_in = random.random_range(1..4);
    // Neighbours are of one table, so that they fit the columns.
    let first = random.random_range(0..recorded.len() - 8);
    let few: Vec<&RawRecord> = recorded[first..first + 8].iter().collect();
    let own = few.iter().find_map(|record| match decode((*record).clone(), format) {
        Decoded::Change(event) => event.shape,
        _ => None,
    });
    let shape = match random.random_range(0..4) {
        0 => None,
        1 => Some(shapes[random.random_range(0..shapes.len())].clone()),
        _ => own,
    };
    let builder = || ChangeBatchBuilder::new(shape.clone(), 0, Clock::manual(0).0);
    let (mut together, mut one_by_one, mut given) = (builder(), builder(), Vec::new());
    for offset in 0..RECORDS {
        let (record, other) = (few[random.random_range(0..few.len())], few[random.random_range(0..few.len())]);
        let mut change = |bytes: &Option<Bytes>, other: &Option<Bytes>, one_in: u32| {
            let bytes = bytes.as_ref()?;
            let other = other.as_deref().unwrap_or_default();
            Some(if random.random_ratio(1, one_in) { changed(bytes, other, &mut random) } else { bytes.clone() })
        };
        let (key, payload) = (change(&record.key, &other.key, 10), change(&record.payload, &other.payload, one_in));
        let topic = record.topic.clone();
        let record = RawRecord { topic, partition: 0, offset, timestamp_ms: None, key, payload };
        let decoded = decoder.decode(record.clone());
        assert_eq!(*decoded.record(), record);
        let by_itself = decode(record, format);
        assert_eq!(decoded, by_itself);
        given.push(decoded);
        one_by_one.push(by_itself).unwrap();
    }
    together.push_all(given).unwrap();
    let (batch, expected) = (together.finish().unwrap(), one_by_one.finish().unwrap());
    assert_eq!(batch.rows, expected.rows);
    assert_eq!((batch.counts, &batch.ranges), (expected.counts, &expected.ranges));
    assert_eq!(batch.dropped, expected.dropped);
    let ChangeCounts { changes, rejected, tombstones, heartbeats, transactions, schema_changes, unexpected: _ } =
        batch.counts;
    assert_eq!((changes + rejected) as usize, batch.rows.num_rows());
    let consumed = tombstones + heartbeats + transactions + schema_changes;
    assert_eq!((changes + rejected + consumed) as i64, RECORDS);
    batch.counts
}

/// A few bytes of a record changed: mostly so that it stays JSON, of another meaning.
fn changed(bytes: &Bytes, other: &[u8], random: &mut SmallRng) -> Bytes {
    const TOKENS: [&str; 30] = [
        "null",
        "true",
        "0",
        "-1",
        "1e400",
        "-9223372036854775808",
        "9223372036854775808",
        "1.5",
        "\"\"",
        "\"infinity\"",
        "\"NaN\"",
        "\"+292278994-08-16T23:00:00Z\"",
        "\"-999999999-02-30\"",
        "\"__debezium_unavailable_value\"",
        "\"////\"",
        "\"gA==\"",
        "\"\\ud800\"",
        "\"\\u0000\"",
        "[]",
        "{}",
        "[[[[",
        "{\"scale\":-2147483648,\"value\":\"AQ==\"}",
        "{\"scale\":2147483647,\"value\":\"gA==\"}",
        "\"d\"",
        "\"__op\":\"d\",",
        "\"type\":\"struct\",",
        "\"scale\":\"99999999999\"",
        "\u{feff}",
        "ß",
        "\u{10ffff}",
    ];
    let mut bytes = bytes.to_vec();
    for _ in 0..random.random_range(1..4) {
        if bytes.is_empty() {
            break;
        }
        let at = random.random_range(0..bytes.len());
        let end = bytes.len().min(at + random.random_range(0..40));
        match random.random_range(0..10) {
            0 => bytes[at] = random.random(),
            1 => bytes[at] ^= 1 << random.random_range(0..8),
            2 => drop(bytes.drain(at..end)),
            3 => bytes.truncate(at),
            4 => {
                let chunk = bytes[at..end].to_vec();
                bytes.splice(at..at, chunk);
            }
            5 if !other.is_empty() => {
                let from = random.random_range(0..other.len());
                let to = other.len().min(from + random.random_range(0..200));
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            // In place of a whole value.
            6..=8 => {
                let colons: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] == b':').collect();
                if let Some(colon) = colons.get(random.random_range(0..colons.len().max(1))) {
                    let rest = &bytes[colon + 1..];
                    let length = rest.iter().position(|byte| matches!(byte, b',' | b'}')).unwrap_or(rest.len());
                    let token = TOKENS[random.random_range(0..TOKENS.len())];
                    bytes.splice(colon + 1..colon + 1 + length, token.bytes());
                }
            }
            _ => {
                let token = TOKENS[random.random_range(0..TOKENS.len())];
                bytes.splice(at..at, token.bytes());
            }
        }
    }
    Bytes::from(bytes)
}
