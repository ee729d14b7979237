//! Any history of events in any batches: silver is what folding the events in position order gives.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, BooleanArray, Int32Array, StringArray};
use bytes::Bytes;
use icestream::batch::ChangeBatchBuilder;
use icestream::bronze::{self, BronzeDefinition, BronzeTable};
use icestream::change::RawRecord;
use icestream::clock::Clock;
use icestream::decode::{Format, decode};
use icestream::engine::{self, Engine, EngineOptions};
use icestream::evolution::Evolution;
use icestream::ids::TableName;
use icestream::offsets::TopicPartition;
use icestream::row::{Column, ColumnType, RowShape};
use icestream::silver::{self, OnDelete, SilverModel};
use icestream::table::{At, Lake};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::sqlite_lake;

const TOPIC: &str = "shop.public.parts";

/// One event, as drawn. Its position is where the source had it; its offset is where it stands in the topic.
#[derive(Debug, Clone)]
struct Event {
    key: i32,
    position: u32,
    kind: Kind,
    name: u8,
    note: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Create,
    /// The note may be a placeholder: not sent.
    Update,
    Delete,
    /// Everything at an earlier position is gone.
    Truncate,
}

fn event() -> impl Strategy<Value = Event> {
    let kind = prop_oneof![
        3 => Just(Kind::Create),
        5 => Just(Kind::Update),
        3 => Just(Kind::Delete),
    ];
    (0..6i32, 1..40u32, kind, 0..9u8, proptest::option::of(0..9u8))
        .prop_map(|(key, position, kind, name, note)| Event { key, position, kind, name, note })
}

/// Events of a source that mostly goes forward: positions rise, some events come late or again.
fn history() -> impl Strategy<Value = Vec<Event>> {
    let late = proptest::collection::vec(0..100u8, 60);
    (proptest::collection::vec(event(), 1..60), late, any::<bool>()).prop_map(|(mut events, lateness, truncates)| {
        let count = events.len();
        for index in 0..count {
            match lateness[index % lateness.len()] {
                // As drawn: somewhere in the past or the future.
                0..10 => {}
                // Sent again, byte for byte.
                10..20 if index > 0 => events[index] = events[index / 2].clone(),
                _ => events[index].position = index as u32 + 10,
            }
        }
        if truncates && count > 5 {
            events[count / 2].kind = Kind::Truncate;
            events[count / 2].position = (count / 2) as u32 + 10;
        }
        events
    })
}

fn payload(event: &Event) -> String {
    let row = |note: &str| format!(r#"{{"id":{},"name":"n{}","note":{note}}}"#, event.key, event.name);
    let note = match (event.kind, event.note) {
        (_, Some(note)) => format!("\"long {note}\""),
        (Kind::Update, None) => "\"__debezium_unavailable_value\"".to_string(),
        (_, None) => "null".to_string(),
    };
    let (op, before, after) = match event.kind {
        Kind::Create => ("c", "null".to_string(), row(&note)),
        Kind::Update => ("u", "null".to_string(), row(&note)),
        // What replica identity DEFAULT sends: the key and nothings.
        Kind::Delete => ("d", format!(r#"{{"id":{},"name":"","note":null}}"#, event.key), "null".to_string()),
        Kind::Truncate => ("t", "null".to_string(), "null".to_string()),
    };
    let position = event.position;
    format!(
        r#"{{"before":{before},"after":{after},"source":{{"connector":"postgresql","db":"shop","schema":"public","table":"parts","ts_ms":1700000000000,"sequence":"[\"{position}\",\"{position}\"]","lsn":{position},"txId":1}},"op":"{op}"}}"#
    )
}

/// `id -> (name, note, is_deleted)`.
type Rows = BTreeMap<i32, (String, Option<String>, bool)>;

/// The fold in plain Rust.
fn truth(events: &[Event], on_delete: OnDelete) -> Rows {
    let mut order: Vec<(u32, usize)> =
        events.iter().enumerate().map(|(offset, event)| (event.position, offset)).collect();
    order.sort();
    let truncated_at = events.iter().filter(|event| event.kind == Kind::Truncate).map(|event| event.position).max();
    let mut rows: Rows = BTreeMap::new();
    let mut notes: BTreeMap<i32, Option<String>> = BTreeMap::new();
    for (position, offset) in order {
        let event = &events[offset];
        if event.kind == Kind::Truncate || truncated_at.is_some_and(|at| position <= at) {
            continue;
        }
        if event.kind == Kind::Delete {
            match on_delete {
                OnDelete::Remove => drop(rows.remove(&event.key)),
                OnDelete::Mark => {
                    if let Some(row) = rows.get_mut(&event.key) {
                        row.2 = true;
                    }
                }
            }
            continue;
        }
        let sent = event.note.map(|note| format!("long {note}"));
        if event.kind == Kind::Create || sent.is_some() {
            notes.insert(event.key, sent);
        }
        let note = notes.get(&event.key).cloned().flatten();
        rows.insert(event.key, (format!("n{}", event.name), note, false));
    }
    rows
}

struct Parts {
    lake: Lake,
    engine: Engine,
    bronze: BronzeTable,
    builder: ChangeBatchBuilder,
    offset: i64,
}

impl Parts {
    async fn open(folder: &std::path::Path) -> Self {
        let lake = sqlite_lake(folder).await;
        let column = |name: &str, column_type| Column::new(name, column_type, None).unwrap();
        let shape = Arc::new(RowShape {
            columns: vec![
                column("id", ColumnType::Int),
                column("name", ColumnType::String),
                column("note", ColumnType::String),
            ],
        });
        let definition = BronzeDefinition {
            name: "bronze.parts".parse().unwrap(),
            shape: Some(shape),
            evolution: Evolution::Evolve,
            partition: vec!["day(_ingested_at)".to_string()],
            properties: Default::default(),
        };
        let bronze = BronzeTable::open(&lake, &definition).await.unwrap();
        let options = EngineOptions { memory_bytes: 256 << 20, threads: 2, spill_dir: folder.join("spill") };
        let mut builder = ChangeBatchBuilder::new(bronze.images().unwrap(), 0, Clock::system());
        builder.start(TopicPartition::new(TOPIC, 0), 0).unwrap();
        Parts { lake, engine: Engine::new(&options).unwrap(), bronze, builder, offset: 0 }
    }

    fn push(&mut self, event: &Event) {
        let key = format!(r#"{{"id":{}}}"#, event.key);
        let record = RawRecord {
            topic: TOPIC.into(),
            partition: 0,
            offset: self.offset,
            timestamp_ms: Some(1_700_000_000_000),
            key: (event.kind != Kind::Truncate).then(|| Bytes::from(key)),
            payload: Some(Bytes::from(payload(event))),
        };
        self.offset += 1;
        self.builder.push(decode(record, Format::DebeziumJson)).unwrap();
    }

    async fn commit(&mut self) {
        if self.builder.has_progress() {
            let batch = self.builder.finish().unwrap();
            assert_eq!(batch.counts.rejected, 0);
            assert_eq!(self.bronze.stage(&batch).await.unwrap(), bronze::Staging::Staged);
            let outcome = self.bronze.commit(&batch.ranges, &BTreeMap::new(), batch.counts).await.unwrap();
            assert!(matches!(outcome, bronze::Outcome::Committed(_)));
        }
    }

    async fn merge(&self, model: &SilverModel) {
        silver::merge(&self.lake, &self.engine, model).await.unwrap();
    }

    async fn rows(&self, model: &SilverModel) -> Rows {
        let Some(table) = self.lake.table_if_exists(&model.table).await.unwrap() else { return Rows::new() };
        let session = self.engine.session();
        engine::register(&session, &model.table, table.view(At::Head).unwrap()).unwrap();
        let deleted = if model.on_delete == OnDelete::Mark { "_is_deleted" } else { "false" };
        let sql = format!("SELECT id, name, note, {deleted} AS gone FROM {}", model.table);
        let mut rows = Rows::new();
        for batch in engine::plan(&session, &sql).await.unwrap().collect().await.unwrap() {
            let any = |index: usize| batch.column(index).as_any();
            let ids = any(0).downcast_ref::<Int32Array>().unwrap();
            let names = any(1).downcast_ref::<StringArray>().unwrap();
            let notes = any(2).downcast_ref::<StringArray>().unwrap();
            let gone = any(3).downcast_ref::<BooleanArray>().unwrap();
            for row in 0..batch.num_rows() {
                let note = notes.is_valid(row).then(|| notes.value(row).to_string());
                let value = (names.value(row).to_string(), note, gone.value(row));
                assert!(rows.insert(ids.value(row), value).is_none(), "key {} is there twice", ids.value(row));
            }
        }
        rows
    }
}

fn model(table: &str, on_delete: OnDelete) -> SilverModel {
    SilverModel {
        table: TableName::new("silver", table).unwrap(),
        from: "bronze.parts".parse().unwrap(),
        keys: vec!["id".to_string()],
        on_delete,
        sql: None,
    }
}

/// `cuts` says behind which events a batch ends (1) and a merge runs (2).
async fn check(events: Vec<Event>, cuts: Vec<u8>, on_delete: OnDelete) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let mut parts = Parts::open(folder.path()).await;
    let merged = model("merged", on_delete);
    for (index, event) in events.iter().enumerate() {
        parts.push(event);
        let cut = cuts[index % cuts.len()];
        if cut >= 1 {
            parts.commit().await;
        }
        if cut == 2 {
            parts.merge(&merged).await;
        }
    }
    parts.commit().await;
    parts.merge(&merged).await;
    let expected = truth(&events, on_delete);
    prop_assert_eq!(parts.rows(&merged).await, expected.clone(), "merged bit by bit");
    let rebuilt = model("rebuilt", on_delete);
    parts.merge(&rebuilt).await;
    prop_assert_eq!(parts.rows(&rebuilt).await, expected, "built at once");
    // Running again changes nothing.
    let before = parts.lake.table(&merged.table).await.unwrap().snapshot_id();
    parts.merge(&merged).await;
    prop_assert_eq!(parts.lake.table(&merged.table).await.unwrap().snapshot_id(), before);
    Ok(())
}

/// `ICESTREAM_HISTORIES` sets how many; a failing one is printed whole.
#[test]
fn any_history_in_any_batches_folds_to_the_same_rows() {
    let histories = std::env::var("ICESTREAM_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(16);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: histories, failure_persistence: None, ..Config::default() });
    let cuts = proptest::collection::vec(prop_oneof![6 => Just(0u8), 2 => Just(1u8), 1 => Just(2u8)], 30);
    let on_delete = prop_oneof![Just(OnDelete::Remove), Just(OnDelete::Mark)];
    runner
        .run(&(history(), cuts, on_delete), |(events, cuts, on_delete)| {
            runtime.block_on(check(events, cuts, on_delete))
        })
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bronze_table_made_anew_is_folded_from_its_start() {
    let event = |key: i32, position: u32| Event { key, position, kind: Kind::Create, name: 1, note: None };
    let folder = tempfile::tempdir().unwrap();
    let merged = model("merged", OnDelete::Remove);
    let mut parts = Parts::open(folder.path()).await;
    for position in 1..4 {
        parts.push(&event(position as i32, position));
        parts.commit().await;
    }
    parts.merge(&merged).await;
    assert_eq!(parts.rows(&merged).await.len(), 3);
    parts.lake.drop_table(parts.bronze.name(), true).await.unwrap();
    let mut parts = Parts::open(folder.path()).await;
    parts.push(&event(9, 1));
    parts.commit().await;
    parts.merge(&merged).await;
    assert_eq!(parts.rows(&merged).await.into_keys().collect::<Vec<_>>(), [9]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_builders_at_once_one_yields() {
    let folder = tempfile::tempdir().unwrap();
    let mut parts = Parts::open(folder.path()).await;
    let merged = model("merged", OnDelete::Remove);
    for round in 0..4 {
        for key in 0..5 {
            parts.push(&Event {
                key,
                position: round * 10 + key as u32,
                kind: Kind::Create,
                name: round as u8,
                note: None,
            });
        }
        parts.commit().await;
        let (one, two) = tokio::join!(
            silver::merge(&parts.lake, &parts.engine, &merged),
            silver::merge(&parts.lake, &parts.engine, &merged)
        );
        let outcomes = [one.unwrap(), two.unwrap()];
        let merges = outcomes.iter().filter(|outcome| matches!(outcome, silver::Outcome::Merged(_))).count();
        assert_eq!(merges, 1, "{outcomes:?}");
        let rows = parts.rows(&merged).await;
        assert_eq!(rows.len(), 5);
        assert!(rows.values().all(|row| row.0 == format!("n{round}")));
    }
}
