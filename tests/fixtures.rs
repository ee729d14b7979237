//! Events that a real Debezium sent, recorded by `tests/fixtures/record`: what decoding makes of every one of them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use bytes::Bytes;
use icestream::change::{Decoded, RawRecord};
use icestream::decode::{Decoder, Format};
use serde_json::Value;

fn folders(of: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found
}

fn records(file: &Path) -> Vec<RawRecord> {
    let output = Command::new("gzip").arg("-dc").arg(file).output().unwrap();
    assert!(output.status.success(), "{}", file.display());
    let text = String::from_utf8(output.stdout).unwrap();
    let bytes = |value: &Value| value.as_str().map(|text| Bytes::from(from_base64(text)));
    text.lines()
        .map(|line| {
            let record: Value = serde_json::from_str(line).unwrap();
            RawRecord {
                topic: record["topic"].as_str().unwrap().into(),
                partition: record["partition"].as_i64().unwrap() as i32,
                offset: record["offset"].as_i64().unwrap(),
                timestamp_ms: record["timestamp"].as_i64(),
                key: bytes(&record["key"]),
                payload: bytes(&record["value"]),
            }
        })
        .collect()
}

fn from_base64(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::new());
    for digit in text.bytes().filter(|digit| *digit != b'=') {
        bits = bits << 6 | ALPHABET.iter().position(|known| *known == digit).unwrap() as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

/// Per variant: changes, those of them that say their row's types, consumed records, rejected records.
#[test]
fn every_recorded_event_is_decoded() {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures"));
    let mut shown = String::new();
    for connector in ["debezium-postgres", "debezium-mariadb"] {
        for variant in folders(&root.join(connector)).into_iter().filter(|path| path.is_dir()) {
            let name = variant.file_name().unwrap().to_string_lossy().into_owned();
            if name == "expected" {
                continue;
            }
            let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
            let (mut changes, mut with_shape, mut consumed, mut rejected) = (0, 0, 0, 0);
            // Without added fields, the flattened form cannot be told from any other JSON.
            let format = if name == "flattened_bare" { Format::Json } else { Format::DebeziumJson };
            let mut decoder = Decoder::new(format);
            for file in folders(&variant).iter().filter(|file| file.to_string_lossy().ends_with(".jsonl.gz")) {
                for record in records(file) {
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
