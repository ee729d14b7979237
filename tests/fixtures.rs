//! Events that a real Debezium sent, recorded by `tests/fixtures/record`: what decoding makes of every one of them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "a test binary exports nothing")]

use std::collections::BTreeMap;

use icestream::change::Decoded;
use icestream::decode::Decoder;

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
    let world = support::sqlite_world().await;
    let (mut compared, mut wrong) = (0, Vec::new());
    for connector in CONNECTORS {
        for variant in variants(connector) {
            for topic in recorded::write(&world, connector, &variant).await {
                let (of_topic, differing) = recorded::compare(&topic, recorded::read(&topic).await);
                compared += of_topic;
                wrong.extend(differing);
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {compared} values are wrong\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared > 10_000, "only {compared} values were compared");
}
