//! `status`, `offsets` and `rejected` over lakes that need no broker.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::TryStreamExt;
use icestream::batch::ChangeBatchBuilder;
use icestream::bronze::{self, BronzeDefinition, BronzeTable};
use icestream::change::RawRecord;
use icestream::clock::Clock;
use icestream::config::Config;
use icestream::decode::{Format, decode};
use icestream::demo::text_rows;
use icestream::engine;
use icestream::ids::TableName;
use icestream::layout::{self, bronze_schema};
use icestream::offsets::MARKER;
use icestream::pipeline;
use icestream::pipeline::rejected::{Replay, replay};
use icestream::table::{At, Premise};
use serde_json::{Value, json};

use super::*;

const TOPIC: &str = "shop.public.parts";

const SETTINGS: &str =
    "name: shop\nevolution: strict\nsource: { kafka: { brokers: \"127.0.0.1:1\", topics: [\"shop.public.*\"] } }\n";

pub(super) const RIGHT: &str = "key: [id]\ncolumns:\n  - { name: id, type: int }\n  - { name: name, type: string }\n  \
                     - { name: price, type: \"decimal(10,2)\", encoding: native }\n  - { name: note, type: string }\n";

/// The price has room for too few digits, and nobody declared the note.
const WRONG: &str = "key: [id]\ncolumns:\n  - { name: id, type: int }\n  - { name: name, type: string }\n  \
                     - { name: price, type: \"decimal(5,2)\", encoding: native }\n";

/// A project over a bronze table that its catalog of then was given some records for.
pub(super) struct Parts {
    folder: TempDir,
}

impl Parts {
    pub(super) async fn new(catalog: &str, records: &[RawRecord]) -> Self {
        let folder = folder_with(&[("icestream.yaml", SETTINGS), ("catalog/parts.yaml", catalog)]);
        let parts = Parts { folder };
        parts.ingest(records, 0).await;
        parts
    }

    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    fn correct(&self) {
        std::fs::write(self.path().join("catalog/parts.yaml"), RIGHT).unwrap();
    }

    fn config(&self) -> Config {
        Config::load(self.path(), &Default::default(), &[]).unwrap()
    }

    /// What ingestion does, without a broker. A later epoch starts at the beginning again.
    pub(super) async fn ingest(&self, records: &[RawRecord], epoch: i32) {
        let config = self.config();
        let lake = pipeline::open_lake(&config, Clock::system()).await.unwrap();
        let route = pipeline::route(&config, TOPIC).unwrap();
        let definition = BronzeDefinition {
            name: route.table,
            shape: route.shape.clone(),
            evolution: route.evolution,
            partition: route.partition,
            properties: Default::default(),
        };
        let mut bronze = BronzeTable::open(&lake, &definition).await.unwrap();
        if epoch > 0 {
            let start = Premise::new().marker_moves(MARKER, bronze.table().unwrap().marker(MARKER), "{}".to_string());
            bronze.table().unwrap().change().premise(start).commit().await.unwrap();
            bronze = BronzeTable::open(&lake, &definition).await.unwrap();
        }
        for chunk in records.chunks(4) {
            let mut builder = ChangeBatchBuilder::new(bronze.images().unwrap(), epoch, Clock::system());
            for record in chunk {
                builder.push(decode(record.clone(), Format::DebeziumJson)).unwrap();
            }
            let batch = builder.finish().unwrap();
            assert_eq!(bronze.stage(&batch).await.unwrap(), bronze::Staging::Staged);
            let outcome = bronze.commit(&batch.ranges, &BTreeMap::new(), batch.counts).await.unwrap();
            assert!(matches!(outcome, bronze::Outcome::Committed(_)));
        }
    }

    pub(super) fn run(&self, args: &str) -> Ended {
        run(self.path(), args)
    }

    /// The rows of a query, as canonical text.
    pub(super) async fn rows(&self, table: &str, columns: &str) -> Vec<Vec<String>> {
        let config = self.config();
        let lake = pipeline::open_lake(&config, Clock::system()).await.unwrap();
        let table: TableName = table.parse().unwrap();
        let session = pipeline::engine(&config).unwrap().session();
        engine::register(&session, &table, lake.table(&table).await.unwrap().view(At::Head).unwrap()).unwrap();
        let sql = format!("SELECT {columns} FROM {table}");
        let batches: Vec<_> = engine::query(&session, &sql).await.unwrap().try_collect().await.unwrap();
        let Some(first) = batches.first().map(|batch| batch.schema()) else { return Vec::new() };
        let names: Vec<&str> = first.fields().iter().map(|field| field.name().as_str()).collect();
        text_rows(&batches, &names).unwrap()
    }

    async fn bronze(&self) -> Vec<Vec<String>> {
        self.rows("shop_bronze.parts", &row_columns()).await
    }

    async fn snapshot(&self) -> Option<i64> {
        let lake = pipeline::open_lake(&self.config(), Clock::system()).await.unwrap();
        lake.table(&"shop_bronze.parts".parse().unwrap()).await.unwrap().snapshot_id()
    }
}

/// Every column but the times of ours; the images' fields one by one.
fn row_columns() -> String {
    let schema = bronze_schema(None);
    let own = schema.fields().iter().map(|field| field.name().as_str());
    let skipped =
        [layout::INGESTED_AT, layout::REPLAYED_AT, layout::BEFORE, layout::AFTER, layout::UNAVAILABLE, layout::RAW];
    let own: Vec<&str> = own.filter(|name| !skipped.contains(name)).collect();
    let images = ["before", "after"].into_iter().flat_map(|image| {
        ["id", "name", "price", "note"].map(|field| format!("{image}['{field}'] AS {image}_{field}"))
    });
    let unavailable = "array_to_string(_unavailable, '|') AS unavailable, encode(_raw, 'hex') AS raw".to_string();
    own.into_iter().map(str::to_string).chain(images).chain([unavailable]).collect::<Vec<_>>().join(", ")
}

pub(super) fn record(partition: i32, offset: i64, key: Option<&str>, payload: &str) -> RawRecord {
    RawRecord {
        topic: TOPIC.into(),
        partition,
        offset,
        timestamp_ms: Some(1_767_225_600_000 + offset),
        key: key.map(|key| Bytes::from(key.to_string())),
        payload: Some(Bytes::from(payload.to_string())),
    }
}

pub(super) fn event(op: &str, before: &str, after: &str, position: i64) -> String {
    format!(
        r#"{{"before":{before},"after":{after},"source":{{"connector":"postgresql","db":"shop","schema":"public","table":"parts","ts_ms":1767225600000,"sequence":"[\"{position}\",\"{position}\"]","lsn":{position},"txId":{position}}},"op":"{op}"}}"#
    )
}

/// Changes of many kinds. With the wrong catalog most are rejected, for several reasons, and some are not.
fn history() -> Vec<RawRecord> {
    let row = |id: i64, price: &str, note: &str| format!(r#"{{"id":{id},"name":"part {id}","price":{price}{note}}}"#);
    let key = |id: i64| format!("{{\"id\": {id}}}");
    let schema_key = |id: i64| format!(r#"{{"schema":{{"type":"struct"}},"payload":{{"id":{id}}}}}"#);
    let null = "null".to_string();
    let of = [
        ("c", key(1), null.clone(), row(1, "10", "")),
        ("c", key(2), null.clone(), row(2, "2.50", "")),
        ("c", schema_key(3), null.clone(), row(3, "3", r#","note":"ä \"quoted\" \u00fc""#)),
        ("u", key(2), row(2, "2.50", ""), row(2, "2.75", r#","note":"__debezium_unavailable_value""#)),
        ("d", key(1), row(1, "10.00", ""), null.clone()),
        ("c", key(4), null.clone(), row(4, "4", "")),
        ("u", key(4), null.clone(), row(4, "12345678.90", r#","note":null"#)),
        ("r", schema_key(5), null.clone(), row(5, "0.01", "")),
        ("d", key(3), row(3, "3", r#","note":"gone""#), null.clone()),
        ("u", key(5), null, row(5, "99999.99", "")),
    ];
    let mut records = Vec::new();
    for (index, (op, key, before, after)) in of.into_iter().enumerate() {
        let (partition, offset) = (index as i32 % 2, index as i64 / 2);
        records.push(record(partition, offset, Some(&key), &event(op, &before, &after, 100 + index as i64)));
    }
    records.push(record(0, 5, Some("{\"id\":6}"), "poison\u{1b}"));
    records
}

/// How many of [`history`] the wrong catalog rejects that the right one does not.
const MENDED: u64 = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_gives_what_ingestion_would_have_given() {
    let records = history();
    let right = Parts::new(RIGHT, &records).await;
    let wrong = Parts::new(WRONG, &records).await;
    let list = wrong.run("rejected list --json").json();
    assert_eq!(list[0]["records"], MENDED + 1, "{list}");
    wrong.run("build").done();
    // With the catalog as it is, nothing can be done, and nothing is.
    let before = wrong.snapshot().await;
    let idle = wrong.run("rejected replay parts --json").json();
    assert_eq!((&idle[0]["replayed"], &idle[0]["snapshot_id"]), (&0.into(), &Value::Null), "{idle}");
    wrong.correct();
    let planned = wrong.run("rejected replay --dry-run --json").json();
    assert_eq!((&planned[0]["replayed"], &planned[0]["dry_run"]), (&MENDED.into(), &true.into()), "{planned}");
    assert_eq!(wrong.snapshot().await, before);

    let one = wrong.run(&format!("rejected replay parts --only {TOPIC}/0/1 --json")).json();
    assert_eq!(one[0]["replayed"], 1, "{one}");
    let rest = wrong.run("rejected replay");
    insta::assert_snapshot!(rest.done(), @"
    shop_bronze.parts: 4 records replayed, 1 still rejected

     records | still rejected because
    ---------+------------------------------------------------------------
           1 | the payload is not JSON: expected value at line 1 column 1
    ");
    assert_eq!(wrong.bronze().await, right.bronze().await);
    let marked = wrong
        .rows(
            "shop_bronze.parts",
            "count(_replayed_at) AS marked, count(_ingested_at) AS ingested, \
               count(*) FILTER (WHERE _replayed_at <= _ingested_at) AS early",
        )
        .await;
    assert_eq!(marked, [[MENDED.to_string(), records.len().to_string(), "0".to_string()]]);

    // Silver takes the late rows in, and again there is nothing more to do.
    let silver = "id, name, price, note, _position";
    wrong.run("build").done();
    right.run("build").done();
    assert_eq!(wrong.rows("shop_silver.parts", silver).await, right.rows("shop_silver.parts", silver).await);
    let before = wrong.snapshot().await;
    assert_eq!(wrong.run("rejected replay --json").json()[0]["replayed"], 0);
    assert_eq!(wrong.snapshot().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_replays_at_once_each_record_becomes_one_row() {
    let records = history();
    let (right, wrong) = (Parts::new(RIGHT, &records).await, Parts::new(WRONG, &records).await);
    wrong.correct();
    let config = wrong.config();
    let lake = pipeline::open_lake(&config, Clock::system()).await.unwrap();
    let (engine, table) = (pipeline::engine(&config).unwrap(), "shop_bronze.parts".parse().unwrap());
    // The first brings the columns, which the others would trip over as well.
    wrong.run(&format!("rejected replay parts --only {TOPIC}/0/1")).done();
    // In one task, each goes on when another waits: all have looked at the table before the first commits.
    let all = Replay::default();
    let replays = (0..3).map(|_| replay(&lake, &engine, &config, &table, &all));
    let replayed = futures::future::try_join_all(replays).await.unwrap();
    assert_eq!(replayed.iter().map(|report| report.replayed).sum::<u64>(), MENDED - 1, "{replayed:?}");
    assert_eq!(wrong.bronze().await, right.bronze().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_record_is_found_mended_and_replayed() {
    let parts = Parts::new(RIGHT, &history()).await;
    let list = parts.run("rejected list parts");
    insta::assert_snapshot!(list.normal(list.done()), @r#"
    shop_bronze.parts: 1 record rejected

     records | reason                                                     | first                                          | last
    ---------+------------------------------------------------------------+------------------------------------------------+------------------------------------------------
           1 | the payload is not JSON: expected value at line 1 column 1 | shop.public.parts/0/5 TIME | shop.public.parts/0/5 TIME

     record                | time                     | key      | reason
    -----------------------+--------------------------+----------+------------------------------------------------------------
     shop.public.parts/0/5 | TIME | {"id":6} | the payload is not JSON: expected value at line 1 column 1
    "#);
    let shown = parts.run(&format!("rejected show parts {TOPIC}/0/5"));
    insta::assert_snapshot!(shown.normal(shown.done()), @r#"
    record       shop.public.parts/0/5
    table        shop_bronze.parts
    reason       the payload is not JSON: expected value at line 1 column 1
    where        line 1, column 1: ⟨here⟩poison\u{1b}
    key          {"id":6}
    time         TIME
    ingested at  TIME
    epoch        0
    payload      7 bytes, text that is not JSON

    poison\u{1b}
    "#);
    assert_eq!(parts.run(&format!("rejected show shop_bronze.parts {TOPIC}/0/5 --raw")).done(), "poison\u{1b}");

    // What is shown, with the value put right, is what is handed in.
    let mut fixed = parts.run(&format!("rejected show parts {TOPIC}/0/5 --json")).json();
    assert_eq!((&fixed["value"], &fixed["text"]), (&Value::Null, &"poison\u{1b}".into()));
    let file = parts.path().join("fixed.json");
    std::fs::write(&file, fixed.to_string()).unwrap();
    insta::assert_snapshot!(parts.run("rejected replay parts --file fixed.json").error(2), @"
    error: `fixed.json` gives no `value` for the record `shop.public.parts/0/5`
      nothing was replayed
      hint: write the payload as it should have been
    ");
    let after = r#"{"id":6,"name":"mended","price":1.50,"note":null}"#;
    fixed["value"] = serde_json::from_str(&event("c", "null", after, 500)).unwrap();
    let elsewhere = json!({ "topic": TOPIC, "partition": 0, "offset": 0, "value": {} });
    std::fs::write(&file, format!("{fixed}\n{elsewhere}\n")).unwrap();
    let mended = parts.run("rejected replay parts --file fixed.json");
    insta::assert_snapshot!(mended.done(), @"
    shop_bronze.parts: 1 record replayed, 0 still rejected
    not rejected, or no more: shop.public.parts/0/0
    ");
    let row =
        parts.rows("shop_bronze.parts", "_offset, after['name'] AS name, _error, encode(_raw, 'hex') AS raw").await;
    let mended: Vec<_> = row.iter().filter(|row| row[0] == "5").collect();
    assert_eq!(mended.len(), 1);
    assert_eq!(mended[0][1], "mended");
    parts.run("build").done();
    let silver = parts.rows("shop_silver.parts", "id, name").await;
    assert!(silver.contains(&vec!["6".to_string(), "mended".to_string()]), "{silver:?}");
    let again = parts.run("rejected replay parts --file fixed.json --json").json();
    assert_eq!((&again[0]["replayed"], again[0]["not_rejected"].as_array().unwrap().len()), (&0.into(), 2));
    assert_eq!(parts.run("rejected list --json").json(), json!([]));
    let none = parts.run("rejected list");
    assert_eq!((none.done(), none.stderr.as_str()), ("", "no record is rejected\n"));
}

/// Offsets come again when a topic was made anew: a replay keeps each record to its own row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_keeps_epochs_apart() {
    let records = history();
    let old = |catalog: &'static str| Parts::new(catalog, &records);
    let (right, wrong) = (old(RIGHT).await, old(WRONG).await);
    for parts in [&right, &wrong] {
        parts.ingest(&records, 1).await;
    }
    wrong.correct();
    assert_eq!(wrong.run("rejected replay --json").json()[0]["replayed"], 2 * MENDED);
    assert_eq!(wrong.bronze().await, right.bronze().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_tables_are_shown_whatever_has_become_of_the_brokers() {
    let parts = Parts::new(RIGHT, &history()).await;
    parts.run("build").done();
    let shape = |status: &Value| {
        let bronze = &status["bronze"][0];
        let topic = &bronze["topics"][0];
        json!([
            bronze["table"],
            bronze["rows"],
            bronze["snapshots"],
            bronze["rejected"]["rows"],
            topic["lag"],
            topic["state"],
            topic["partitions"],
            status["silver"][0]["is_behind"]
        ])
    };
    let expected = json!(["shop_bronze.parts", 11, 3, 1, null, "unknown", 2, false]);
    let quiet = parts.run("status --no-source --json");
    assert_eq!((shape(&quiet.json()), quiet.stderr.as_str()), (expected.clone(), ""));
    let asked = parts.run("status --json");
    assert_eq!(shape(&asked.json()), expected);
    assert!(asked.stderr.contains("lag is unknown: kafka at `127.0.0.1:1` does not answer"), "{asked:?}");
    // A late commit: silver is behind until it is built.
    parts.ingest(&[record(0, 6, Some("{\"id\":9}"), &event("c", "null", r#"{"id":9}"#, 900))], 0).await;
    let status = parts.run("status --no-source --json").json();
    assert_eq!((&status["silver"][0]["is_behind"], &status["silver"][0]["commits_behind"]), (&true.into(), &1.into()));
    // Tables in text, without what differs from run to run.
    let text = parts.run("status --no-source");
    let heads: Vec<&str> = text.done().lines().filter(|line| line.contains("snapshots")).collect();
    assert_eq!(heads.len(), 2, "{text:?}");
    let offsets = parts.run("offsets show --no-source");
    insta::assert_snapshot!(offsets.done(), @"
     table             | partition           | next | first | end | lag | state
    -------------------+---------------------+------+-------+-----+-----+---------
     shop_bronze.parts | shop.public.parts/0 |    7 |       |     |     | unknown
     shop_bronze.parts | shop.public.parts/1 |    5 |       |     |     | unknown
    ");
    assert_eq!(parts.run("offsets show parts --no-source --json").json()[1]["next"], 5);
}

#[test]
fn a_connector_s_own_placeholder_stands_for_what_was_not_sent() {
    let settings = "name: shop\nsource:\n  unavailable_placeholder: \"none \\\"sent\\\"\"\n  \
                    files: { paths: [dump], topic: shop.public.parts }\n";
    let folder = folder_with(&[("icestream.yaml", settings), ("catalog/parts.yaml", RIGHT)]);
    let event = |op: &str, id: i32, note: &str| {
        let after = json!({"id": id, "name": "__debezium_unavailable_value", "price": null, "note": note});
        format!("{}\n", json!({"op": op, "before": null, "after": after}))
    };
    let lines = event("r", 1, "none \"sent\"") + &event("u", 2, "none \"sent\"") + &event("u", 3, "sent");
    std::fs::create_dir(folder.path().join("dump")).unwrap();
    std::fs::write(folder.path().join("dump/0.json"), lines).unwrap();
    run(folder.path(), "ingest --drain").done();
    let mut query = icestream(folder.path(), "query --format csv");
    query.arg("select _op, after['id'] as id, after['name'] as name, after['note'] as note, _unavailable from shop_bronze.parts order by 2");
    insta::assert_snapshot!(Running::start(query).end().done(), @r#"
    _op,id,name,note,_unavailable
    r,1,__debezium_unavailable_value,"none ""sent""",
    u,2,__debezium_unavailable_value,,"[""note""]"
    u,3,__debezium_unavailable_value,sent,
    "#);
    std::fs::write(
        folder.path().join("icestream.yaml"),
        settings.replace("none", "hex:f").replace(" \\\"sent\\\"", ""),
    )
    .unwrap();
    insta::assert_snapshot!(run(folder.path(), "ingest --drain").error(2), @"
    error: icestream.yaml:3:28 source.unavailable_placeholder: `hex:f` is no placeholder: behind `hex:` come two hexadecimal digits for each byte
      hint: `icestream config reference` describes every key
    ");
}

#[test]
fn a_table_that_was_never_made_says_so() {
    let folder = folder_with(&[("icestream.yaml", SETTINGS), ("catalog/parts.yaml", RIGHT)]);
    insta::assert_snapshot!(run(folder.path(), "status --no-source").done(), @"
     bronze            | rows | files | size | snapshots |  last commit | lag | waiting | state | rejected | columns changed
    -------------------+------+-------+------+-----------+--------------+-----+---------+-------+----------+-----------------
     shop_bronze.parts |      |       |      |           | not made yet |   ? |       ? |       |        0 |               0

     silver            | rows | files | size | snapshots |  last commit | behind       | quarantined
    -------------------+------+-------+------+-----------+--------------+--------------+-------------
     shop_silver.parts |      |       |      |           | not made yet | not made yet |           0
    ");
    let status = run(folder.path(), "status --no-source --json").json();
    let told = |layer: &str| json!([status[layer][0]["is_made"], status[layer][0]["rows"]]);
    assert_eq!((told("bronze"), told("silver")), (json!([false, null]), json!([false, null])));
    // Nobody was asked what waits.
    let silver = &status["silver"][0];
    assert_eq!((&silver["is_behind"], &silver["records_behind"]), (&true.into(), &Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_is_refused() {
    let parts = Parts::new(RIGHT, &history()).await;
    insta::assert_snapshot!(parts.run(&format!("rejected show parts {TOPIC}/0/0")).error(2), @"
    error: table `shop_bronze.parts` holds no rejected record `shop.public.parts/0/0`
      hint: `icestream rejected list shop_bronze.parts` lists them; a replayed one is rejected no more
    ");
    insta::assert_snapshot!(parts.run("rejected list party").error(2), @"
    error: there is no table `shop_bronze.party`
      hint: did you mean `shop_bronze.parts`?
    ");
    insta::assert_snapshot!(parts.run("rejected list shop_silver.parts").error(2), @"
    error: table `shop_silver.parts` is not of the bronze layer, which is in `shop_bronze`
      hint: name one of `shop_bronze`; the namespace may be left out
    ");
    insta::assert_snapshot!(parts.run("rejected show parts orders/0").error(2), @"
    error: invalid value 'orders/0' for '<RECORD>': write `topic/partition/offset`, such as `shop.public.orders/0/4711`

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(parts.run("offsets show party --no-source").error(2), @"
    error: there is no table `shop_bronze.party`
      hint: did you mean `shop_bronze.parts`?
    ");
    insta::assert_snapshot!(parts.run("offsets reset parts --to soon").error(2), @"
    error: invalid value 'soon' for '--to <WHERE>': write `earliest`, `latest`, an offset, a time such as `2026-01-31T00:00:00Z`, or `-1h`

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(parts.run("offsets import parts").error(2), @"
    error: the following required arguments were not provided:
      <--from-group <GROUP>|--from-connect <NS.TABLE>>

    Usage: icestream offsets import <--from-group <GROUP>|--from-connect <NS.TABLE>> <TABLE>...

    For more information, try '--help'.
    ");
    parts.run("offsets reset --to latest").error(2);
    parts.run("offsets reset parts --to earliest --rewind --epoch").error(2);
    parts.run("offsets reset parts --to earliest --yes").error(3);
    parts.run("rejected replay --file fixed.json").error(2);
    let bad = folder_with(&[("icestream.yaml", "name: shop\nrejects: { stop_above: 5 }\n")]);
    insta::assert_snapshot!(run(bad.path(), "status").error(2), @"
    error: icestream.yaml:2:24 rejects.stop_above: `5` is not a share; write a number from 0 to 100 with `%`, such as `5%` or `0.5%`
      hint: `icestream config reference` describes every key
    ");
}

#[test]
fn the_demo_s_lake_is_shown() {
    let status = run(demo_lake(), "status --json");
    let rejected: BTreeMap<String, u64> = status.json()["bronze"]
        .as_array()
        .unwrap()
        .iter()
        .map(|table| (table["table"].as_str().unwrap().to_string(), table["rejected"]["rows"].as_u64().unwrap()))
        .collect();
    let listed: BTreeMap<String, u64> = run(demo_lake(), "rejected list --json")
        .json()
        .as_array()
        .unwrap()
        .iter()
        .map(|table| (table["table"].as_str().unwrap().to_string(), table["records"].as_u64().unwrap()))
        .collect();
    assert!(!listed.is_empty());
    assert_eq!(rejected.into_iter().filter(|(_, rows)| *rows > 0).collect::<BTreeMap<_, _>>(), listed);
    assert!(status.json()["silver"].as_array().unwrap().iter().all(|table| table["is_behind"] == false));
    assert!(status.json()["gold"].as_array().unwrap().iter().all(|table| table["is_behind"] == false));
}
