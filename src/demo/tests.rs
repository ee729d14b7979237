//! The records are read back with a JSON library, folded by position as any reader of the stream may, put through the
//! sample project's own SQL, and compared with the shop's truth.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;
use saphyr::{LoadableYamlNode, Yaml};
use serde_json::Value;

use super::connector::UNAVAILABLE;
use super::*;
use crate::row::{Column, ColumnType, Encoding};

const START_US: i64 = 1_750_000_000_000_000;

/// A change event read back, with the offset it would have got.
struct Event {
    key: String,
    offset: usize,
    position: (u64, u64),
    op: String,
    value: Value,
}

type Row = BTreeMap<String, Value>;

fn records(seed: u64, events: u64) -> (Shop, Vec<Record>) {
    let mut shop = Shop::new(seed, START_US, events);
    let (mut all, mut some) = (Vec::new(), Vec::new());
    while shop.next_transaction(&mut some) {
        all.append(&mut some);
    }
    (shop, all)
}

fn events(records: &[Record], table: Table) -> Vec<Event> {
    let mut events = Vec::new();
    for (offset, record) in records.iter().enumerate() {
        if record.table == table && record.kind == RecordKind::Change {
            let value: Value = serde_json::from_slice(record.payload.as_ref().unwrap()).unwrap();
            let sequence: [Option<String>; 2] =
                serde_json::from_str(value["source"]["sequence"].as_str().unwrap()).unwrap();
            let [commit, lsn] = sequence.map(|part| part.map_or(0, |text| text.parse().unwrap()));
            events.push(Event {
                key: String::from_utf8(record.key.as_ref().unwrap().to_vec()).unwrap(),
                offset,
                position: (commit, lsn),
                op: value["op"].as_str().unwrap().to_string(),
                value,
            });
        }
    }
    events
}

/// The latest row of each key: events in the order of their positions, those sent again skipped.
fn fold(mut events: Vec<Event>) -> BTreeMap<String, Row> {
    events.sort_by_key(|event| (event.position, event.offset));
    let mut seen = HashSet::new();
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for event in events {
        if !seen.insert((event.key.clone(), event.position, event.op.clone())) {
            continue;
        }
        if event.op == "d" {
            assert!(rows.remove(&event.key).is_some(), "{} is deleted twice", event.key);
            continue;
        }
        let known = rows.contains_key(&event.key);
        assert_eq!(known, event.op == "u", "{} {}", event.op, event.key);
        let row = rows.entry(event.key.clone()).or_default();
        for (name, value) in event.value["after"].as_object().unwrap() {
            if value.as_str() == Some(UNAVAILABLE) {
                assert!(row.contains_key(name), "the placeholder stands for nothing");
            } else {
                row.insert(name.clone(), value.clone());
            }
        }
    }
    rows
}

fn project_file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

fn catalog(table: Table) -> Vec<Column> {
    let text = project_file(&format!("catalog/{}.yaml", table.name()));
    let documents = Yaml::load_from_str(&text).unwrap();
    let document = &documents[0];
    assert_eq!(document["topic"].as_str().unwrap(), table.topic());
    assert_eq!(document["key"][0].as_str().unwrap(), "id");
    let column = |node: &Yaml| {
        let column_type: ColumnType = node["type"].as_str().unwrap().parse().unwrap();
        let encoding = node.as_mapping_get("encoding").map(|text| text.as_str().unwrap().parse().unwrap());
        Column::new(node["name"].as_str().unwrap(), column_type, encoding).unwrap()
    };
    document["columns"].as_sequence().unwrap().iter().map(column).collect()
}

fn decode_base64(text: &str) -> i128 {
    const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut bytes) = (0u32, 0, Vec::new());
    for letter in text.chars().filter(|letter| *letter != '=') {
        bits = bits << 6 | ALPHABET.find(letter).unwrap() as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    let sign = if bytes[0] >= 0x80 { -1 } else { 0 };
    bytes.iter().fold(sign, |value, byte| value << 8 | i128::from(*byte))
}

/// A JSON value as text that Arrow casts to the column's type.
fn plain_text(column: &Column, value: &Value) -> Option<String> {
    let micros = |us: i64| chrono::DateTime::from_timestamp_micros(us).unwrap().format("%Y-%m-%dT%H:%M:%S%.6f");
    Some(match (column.encoding, value) {
        (_, Value::Null) => return None,
        (Encoding::Base64, Value::String(text)) => {
            let unscaled = decode_base64(text);
            format!("{}.{:02}", unscaled / 100, unscaled % 100)
        }
        (Encoding::Days, value) => micros(value.as_i64().unwrap() * 86_400_000_000).to_string()[..10].to_string(),
        (Encoding::Micros, value) => micros(value.as_i64().unwrap()).to_string(),
        (_, Value::String(text)) => text.clone(),
        (_, other) => other.to_string(),
    })
}

fn changes(table: Table, rows: &BTreeMap<String, Row>) -> RecordBatch {
    let columns = catalog(table);
    let arrays: Vec<ArrayRef> = columns
        .iter()
        .map(|column| {
            let texts: StringArray = rows.values().map(|row| plain_text(column, &row[&column.name])).collect();
            cast(&texts, &column.column_type.to_arrow()).unwrap()
        })
        .collect();
    let fields: Vec<Field> =
        columns.iter().map(|column| Field::new(&column.name, column.column_type.to_arrow(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

async fn collect(session: &SessionContext, sql: &str) -> Vec<RecordBatch> {
    session.sql(sql).await.unwrap().collect().await.unwrap()
}

fn register(session: &SessionContext, name: &str, batches: Vec<RecordBatch>) {
    let table = MemTable::try_new(batches[0].schema(), vec![batches]).unwrap();
    session.register_table(name, Arc::new(table)).unwrap();
}

/// Folds what was sent, runs `transforms/` and `sql/gold/` over it, and compares each table with the truth.
async fn check_truth(seed: u64, event_count: u64) {
    let (shop, records) = records(seed, event_count);
    #[allow(clippy::disallowed_methods, reason = "a test of the sample project's SQL alone, without the engine")]
    let session = SessionContext::new();
    for namespace in [SILVER, GOLD] {
        collect(&session, &format!("CREATE SCHEMA {namespace}")).await;
    }
    for table in Table::ALL {
        register(&session, "changes", vec![changes(table, &fold(events(&records, table)))]);
        let sql = project_file(&format!("transforms/{}.sql", table.name()));
        let kept = |condition: &str| format!("SELECT * FROM ({sql}) AS rows WHERE {condition}");
        let batches = match table {
            Table::Orders => collect(&session, &kept("total_amount >= 0")).await,
            _ => collect(&session, &sql).await,
        };
        check_table(&shop, SILVER, table.name(), &batches, seed);
        register(&session, &format!("{SILVER}.{}", table.name()), batches);
        session.deregister_table("changes").unwrap();
    }
    for (namespace, name) in Truth::TABLES {
        if namespace == GOLD {
            let batches = collect(&session, &project_file(&format!("sql/gold/{name}.sql"))).await;
            check_table(&shop, GOLD, name, &batches, seed);
            register(&session, &format!("{GOLD}.{name}"), batches);
        }
    }
}

fn check_table(shop: &Shop, namespace: &str, name: &str, batches: &[RecordBatch], seed: u64) {
    let expected = shop.truth().table(namespace, name).unwrap();
    let schema = batches[0].schema();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, expected.columns, "{namespace}.{name}");
    for field in schema.fields() {
        let athena_has_it = matches!(
            field.data_type(),
            DataType::Boolean
                | DataType::Int32
                | DataType::Int64
                | DataType::Date32
                | DataType::Decimal128(..)
                | DataType::Timestamp(..)
                | DataType::Utf8
                | DataType::Utf8View
        );
        assert!(athena_has_it, "{namespace}.{name}.{field}");
        if namespace == GOLD && field.data_type().is_decimal() {
            assert_eq!(field.data_type(), &DataType::Decimal128(18, 2), "{name}.{field}");
        }
    }
    let rows = text_rows(batches, &expected.columns).unwrap();
    assert!(!rows.is_empty(), "{namespace}.{name} is empty");
    for (row, expected) in rows.iter().zip(&expected.rows) {
        assert_eq!(row, expected, "{namespace}.{name}, seed {seed}");
    }
    assert_eq!(rows.len(), expected.rows.len(), "{namespace}.{name}, seed {seed}");
}

#[tokio::test]
async fn the_sample_projects_sql_over_the_folded_events_gives_the_truth() {
    for (seed, event_count) in [(1, 200), (2, 500), (3, 2_000), (4, 20_000), (5, 333), (6, 4_999)] {
        check_truth(seed, event_count).await;
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    assert_eq!(records(7, 3_000).1, records(7, 3_000).1);
    assert_ne!(records(7, 300).1, records(8, 300).1);
}

#[test]
fn there_are_as_many_change_events_as_asked_for_and_one_poison_record() {
    for event_count in [0, 1, 2, 25, 31, 100, 500, 1_001, 10_000] {
        let (shop, records) = records(event_count, event_count);
        let count = |kind| records.iter().filter(|record| record.kind == kind).count() as u64;
        let truth = shop.truth();
        assert_eq!(count(RecordKind::Change), event_count);
        assert_eq!(count(RecordKind::Poison), 1);
        assert_eq!(truth.rejected(), 1);
        assert_eq!(count(RecordKind::Tombstone), truth.tombstones());
        assert_eq!(Table::ALL.iter().map(|table| truth.bronze_rows(*table)).sum::<u64>(), event_count + 1);
        assert_eq!(truth.produced().values().sum::<u64>(), records.len() as u64);
        assert_eq!((shop.events(), shop.emitted()), (event_count, event_count));
        for record in &records {
            assert!((0..record.table.partitions()).contains(&record.partition));
        }
    }
}

#[test]
fn every_special_case_occurs_in_a_small_life() {
    for (seed, event_count) in (0..40).flat_map(|seed| [(seed, 100), (seed, 200), (seed, 500)]) {
        let (_, records) = records(seed, event_count);
        let mut found = BTreeSet::new();
        let (mut sent, mut deleted) = (HashSet::new(), HashSet::new());
        for table in Table::ALL {
            for event in events(&records, table) {
                found.insert(format!("{} {}", table.name(), event.op));
                if event.value["after"]["notes"].as_str() == Some(UNAVAILABLE) {
                    found.insert("placeholder".to_string());
                }
                if table == Table::Orders
                    && event.value["after"]["total_amount"].as_str().is_some_and(|total| decode_base64(total) < 0)
                {
                    found.insert("negative total".to_string());
                }
                if event.op == "u" {
                    let has_before = !event.value["before"].is_null();
                    assert_eq!(has_before, table == Table::Orders, "replica identity of {}", table.name());
                }
                let followed_by = &records[event.offset + 1..];
                if event.op == "d" {
                    let tombstone = &followed_by[0];
                    assert_eq!(tombstone.kind, RecordKind::Tombstone);
                    assert_eq!((tombstone.table, &tombstone.payload), (table, &None));
                    assert_eq!(tombstone.key, records[event.offset].key);
                }
                let created = followed_by.get(1).filter(|next| {
                    let text = next.payload.as_ref().map(|bytes| String::from_utf8_lossy(bytes)).unwrap_or_default();
                    let lsn = format!("\"lsn\":{},", event.value["source"]["lsn"]);
                    next.table == table && text.contains("\"op\":\"c\"") && text.contains(&lsn)
                });
                if event.op == "d" && created.is_some() {
                    found.insert("changed key".to_string());
                }
                if event.op == "d" {
                    deleted.insert((table, event.key.clone()));
                } else if deleted.contains(&(table, event.key.clone())) {
                    // Ids are never given twice, so this can only be an old event.
                    found.insert("sent again behind the delete".to_string());
                }
                if !sent.insert((table, event.key, event.position, event.op)) {
                    found.insert("sent again".to_string());
                }
            }
        }
        let expected = [
            "changed key",
            "customers c",
            "customers d",
            "customers r",
            "customers u",
            "negative total",
            "order_items c",
            "order_items d",
            "order_items u",
            "orders c",
            "orders d",
            "orders u",
            "placeholder",
            "products c",
            "products d",
            "products r",
            "products u",
            "sent again",
            "sent again behind the delete",
        ];
        let missing: Vec<_> = expected.iter().filter(|case| !found.contains(**case)).collect();
        assert!(missing.is_empty(), "seed {seed}, {event_count} events: {missing:?}");
    }
}

#[test]
fn positions_rise_and_times_stay_within_the_span() {
    let (_, records) = records(11, 5_000);
    let mut seen = HashSet::new();
    let mut last = (0, 0);
    let mut all: Vec<Event> = Table::ALL.iter().flat_map(|table| events(&records, *table)).collect();
    all.sort_by_key(|event| event.offset);
    for event in all {
        let source = &event.value["source"];
        assert_eq!(source["lsn"].as_u64().unwrap(), event.position.1);
        let commit_us = source["ts_us"].as_i64().unwrap();
        assert!((START_US..START_US + SPAN_US + SPAN_US / 1_000).contains(&commit_us));
        let is_new = seen.insert((event.key, event.position, event.op));
        assert!(!is_new || event.position >= last, "{:?} follows {last:?}", event.position);
        last = last.max(event.position);
    }
}

#[test]
fn an_events_columns_are_those_of_the_catalog() {
    let (_, records) = records(12, 500);
    for table in Table::ALL {
        let declared: Vec<String> = catalog(table).into_iter().map(|column| column.name).collect();
        for event in events(&records, table) {
            for image in ["before", "after"] {
                if let Some(row) = event.value[image].as_object() {
                    assert_eq!(row.keys().collect::<Vec<_>>(), declared.iter().collect::<Vec<_>>());
                }
            }
        }
    }
}

#[test]
fn an_order_is_worth_its_items_and_refers_to_what_exists() {
    let (shop, _) = records(13, 20_000);
    let truth = shop.truth();
    let mut totals: HashMap<i32, i64> = HashMap::new();
    for (_, item) in truth.order_items.iter() {
        assert!(truth.products.get(item.product_id).is_some());
        *totals.entry(item.order_id).or_default() += item.price * i64::from(item.quantity);
    }
    for (id, order) in truth.orders.iter() {
        assert!(truth.customers.get(order.customer_id).unwrap().orders.contains(&id));
        assert_eq!(totals.remove(&id), Some(order.total_amount.abs()));
    }
    assert!(totals.is_empty());
}
