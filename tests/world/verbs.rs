//! Lag seen, offsets moved, a poison record found and replayed: by the verbs, against a real broker.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use futures::TryStreamExt;
use icestream::bronze;
use icestream::clock::Clock;
use icestream::config::Config;
use icestream::demo::text_rows;
use icestream::engine;
use icestream::ids::TableName;
use icestream::pipeline;
use icestream::table::{At, Lake, Table, TableDefinition};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support;

/// A project that reads one topic of two partitions.
struct Parts {
    folder: tempfile::TempDir,
    brokers: String,
    topic: String,
}

/// The shop's records start here, one each second.
const START_MS: i64 = 1_767_225_600_000;

impl Parts {
    async fn new() -> Self {
        let file = std::env::var_os("ICESTREAM_KAFKA_FILE").expect("run these tests with `tests/run`");
        let kafka: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let brokers = kafka["brokers"].as_str().unwrap().to_string();
        let topic = format!("v{}.public.parts", Uuid::new_v4().simple());
        let folder = tempfile::tempdir().unwrap();
        let settings =
            format!("name: shop\nsource: {{ kafka: {{ brokers: \"{brokers}\", topics: [\"{topic}\"] }} }}\n");
        std::fs::write(folder.path().join("icestream.yaml"), settings).unwrap();
        std::fs::create_dir(folder.path().join("catalog")).unwrap();
        let parts = Parts { folder, brokers, topic };
        parts.declare("decimal(10,2)");
        let admin = parts.admin();
        let new = [NewTopic::new(&parts.topic, 2, TopicReplication::Fixed(1))];
        for made in admin.create_topics(&new, &AdminOptions::new()).await.unwrap() {
            made.unwrap();
        }
        parts
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn declare(&self, price: &str) {
        let text = format!(
            "key: [id]\ncolumns:\n  - {{ name: id, type: int }}\n  - {{ name: price, type: \"{price}\", encoding: native }}\n"
        );
        std::fs::write(self.path().join("catalog/parts.yaml"), text).unwrap();
    }

    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    /// Sends parts to a partition, each a second after the one before, from `second` on.
    fn sell(&self, partition: i32, ids: std::ops::Range<i32>, second: i64) {
        for (index, id) in ids.enumerate() {
            let payload = format!(
                r#"{{"before":null,"after":{{"id":{id},"price":{id}.50}},"source":{{"connector":"postgresql","ts_ms":1,"sequence":"[\"{id}\",\"{id}\"]","lsn":{id},"txId":1}},"op":"c"}}"#
            );
            self.send(partition, id, &payload, START_MS + (second + index as i64) * 1000);
        }
    }

    fn send(&self, partition: i32, id: i32, payload: &str, timestamp_ms: i64) {
        let producer: ThreadedProducer<DefaultProducerContext> = self.client().create().unwrap();
        let key = format!("{{\"id\":{id}}}");
        let record: BaseRecord<'_, str, str> =
            BaseRecord::to(&self.topic).partition(partition).timestamp(timestamp_ms).key(key.as_str()).payload(payload);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
    }

    async fn cut(&self, partition: i32, before: i64) {
        let mut cut = TopicPartitionList::new();
        cut.add_partition_offset(&self.topic, partition, Offset::Offset(before)).unwrap();
        self.admin().delete_records(&cut, &AdminOptions::new()).await.unwrap();
    }

    fn run(&self, arguments: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_icestream"));
        command.current_dir(self.path()).args(arguments.split_whitespace());
        command.stdin(Stdio::null()).output().unwrap()
    }

    #[track_caller]
    fn done(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.done(arguments)).unwrap()
    }

    /// The error's text, the topic's name taken out.
    #[track_caller]
    fn error(&self, arguments: &str, code: i32) -> String {
        let output = self.run(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments}: {text}");
        text.replace(&self.topic, "TOPIC")
    }

    async fn lake(&self) -> (Config, Lake) {
        let config = Config::load(self.path(), &Default::default(), &[]).unwrap();
        let lake = pipeline::open_lake(&config, Clock::system()).await.unwrap();
        (config, lake)
    }

    async fn table(&self) -> Table {
        self.lake().await.1.table(&"shop_bronze.parts".parse().unwrap()).await.unwrap()
    }

    async fn rows(&self, table: &str, sql: &str) -> Vec<Vec<String>> {
        let (config, lake) = self.lake().await;
        let name: TableName = table.parse().unwrap();
        let session = pipeline::engine(&config).unwrap().session();
        engine::register(&session, &name, lake.table(&name).await.unwrap().view(At::Head).unwrap()).unwrap();
        let batches: Vec<_> = engine::query(&session, sql).await.unwrap().try_collect().await.unwrap();
        let Some(first) = batches.first().map(|batch| batch.schema()) else { return Vec::new() };
        let names: Vec<&str> = first.fields().iter().map(|field| field.name().as_str()).collect();
        text_rows(&batches, &names).unwrap()
    }

    /// Rows of bronze, how many of them have an identity of their own, and the keys of silver.
    async fn counts(&self) -> (String, String, String) {
        let sql =
            "SELECT count(*) AS n, count(DISTINCT (_topic_partition, _offset, _epoch)) AS o FROM shop_bronze.parts";
        let bronze = self.rows("shop_bronze.parts", sql).await.remove(0);
        let silver = self.rows("shop_silver.parts", "SELECT count(*) AS n FROM shop_silver.parts").await.remove(0);
        (bronze[0].clone(), bronze[1].clone(), silver[0].clone())
    }

    fn lag(&self) -> Value {
        let status = self.json("status --json");
        let topic = &status["bronze"][0]["topics"][0];
        json!([status["bronze"][0]["rows"], topic["lag"], topic["state"]])
    }

    /// `(next, first, end, state)` of each partition.
    fn positions(&self) -> Vec<Value> {
        let rows = self.json("offsets show --json");
        rows.as_array()
            .unwrap()
            .iter()
            .map(|row| json!([row["next"], row["first"], row["end"], row["state"]]))
            .collect()
    }
}

fn counts(bronze: u64, silver: u64) -> (String, String, String) {
    (bronze.to_string(), bronze.to_string(), silver.to_string())
}

/// Topics that nothing was read of are planned as well, and what waits for a table moves those behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_follows_what_waits_in_the_topics() {
    let parts = Parts::new().await;
    parts.sell(0, 0..5, 0);
    let plan = || {
        let plan = parts.json("plan --json");
        let of =
            |table: &Value| json!([table["table"], table["action"], table["records_waiting"], table["reads"]["rows"]]);
        plan["tables"].as_array().unwrap().iter().map(of).collect::<Vec<_>>()
    };
    let both = |bronze: Value, silver: Value| vec![bronze, silver];
    let (bronze, silver) = ("shop_bronze.parts", "shop_silver.parts");
    assert_eq!(plan(), both(json!([bronze, "create", 5, 0]), json!([silver, "create", null, 0])));
    let (_, lake) = parts.lake().await;
    assert!(lake.tables("shop_bronze").await.unwrap().is_empty(), "nothing is made by it");
    parts.done("ingest --drain");
    assert_eq!(plan(), both(json!([bronze, "nothing", 0, 0]), json!([silver, "create", null, 5])));
    parts.done("build");
    assert_eq!(plan(), both(json!([bronze, "nothing", 0, 0]), json!([silver, "nothing", null, 0])));
    parts.sell(1, 5..8, 0);
    assert_eq!(plan(), both(json!([bronze, "change", 3, 0]), json!([silver, "change", null, 0])));
    parts.done("ingest --drain");
    assert_eq!(plan(), both(json!([bronze, "nothing", 0, 0]), json!([silver, "change", null, 3])));
    parts.done("build");
    parts.sell(0, 8..10, 0);
    parts.cut(0, 7).await;
    assert_eq!(plan(), both(json!([bronze, "blocked", 0, 0]), json!([silver, "nothing", null, 0])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lag_and_positions_are_shown() {
    let parts = Parts::new().await;
    parts.sell(0, 0..5, 0);
    assert_eq!(parts.lag(), json!([null, 5, "not started"]));
    let status = parts.json("status --json");
    let of_silver = |status: &Value| {
        let silver = &status["silver"][0];
        json!([silver["is_made"], silver["is_behind"], silver["records_behind"]])
    };
    assert_eq!((&status["bronze"][0]["is_made"], of_silver(&status)), (&false.into(), json!([false, true, 5])));
    let text = parts.done("status");
    let lines: Vec<String> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert!(lines[2].starts_with("shop_bronze.parts | | | | | not made yet | 5 | "), "{text}");
    assert_eq!(lines[6], "shop_silver.parts | | | | | not made yet | not made yet; 5 records wait | 0", "{text}");
    parts.done("ingest --drain");
    let status = parts.json("status --json");
    assert_eq!((&status["bronze"][0]["is_made"], of_silver(&status)), (&true.into(), json!([false, true, 5])));
    assert_eq!(parts.positions(), [json!([5, 0, 5, "ok"]), json!([null, 0, 0, "ok"])]);
    parts.done("run --drain");
    assert_eq!(parts.lag(), json!([5, 0, "ok"]));
    let status = parts.json("status --json");
    assert_eq!(status["bronze"][0]["topics"][0]["lag_seconds"], 0);
    assert_eq!(of_silver(&status), json!([true, false, 0]));
    // The record that waits longest says for how long, and not the newest that was read.
    let now_ms = Clock::system().now_ms();
    parts.send(1, 8, "{}", now_ms - 3_600_000);
    parts.send(1, 9, "{}", now_ms - 60_000);
    let status = parts.json("status --json");
    let topic = &status["bronze"][0]["topics"][0];
    assert_eq!(topic["lag"], 2);
    let seconds = topic["lag_seconds"].as_i64().unwrap();
    assert!((3_600..3_700).contains(&seconds), "{seconds}");
    assert_eq!(parts.positions()[1], json!([null, 0, 2, "not started"]));
    // What retention does.
    parts.done("ingest --drain");
    parts.sell(1, 20..25, 100);
    parts.cut(1, 4).await;
    assert_eq!(parts.positions()[1], json!([2, 4, 7, "expired"]));
    assert_eq!(parts.lag(), json!([7, 3, "expired"]));

    // The way out that the error names.
    let stopped = parts.run("ingest --drain");
    assert!(!stopped.status.success());
    parts.done(&format!("offsets reset --topic {} --partition 1 --to 4 --yes", parts.topic));
    parts.done("ingest --drain");
    let status = parts.json("status --json");
    assert_eq!((&status["bronze"][0]["rejected"]["rows"], parts.lag()), (&2.into(), json!([10, 0, "ok"])));
    assert_eq!(status["silver"][0]["is_behind"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_move_and_no_record_is_there_twice() {
    let parts = Parts::new().await;
    parts.sell(0, 0..10, 0);
    parts.sell(1, 100..104, 0);
    parts.done("run --drain");
    assert_eq!(parts.counts().await, counts(14, 14));
    // Back over rows: not without a word on what becomes of them.
    insta::assert_snapshot!(parts.error("offsets reset parts --to earliest --yes", 2), @"
    error: table `shop_bronze.parts` holds 10 rows of `TOPIC/0` from offset 0 on, and would get them twice
      nothing was moved
      hint: `offsets reset … --rewind` deletes those rows and reads them again; `--epoch` keeps them, for a topic that was deleted and made anew
    ");
    insta::assert_snapshot!(parts.error("offsets reset parts --to earliest --rewind", 2), @"
    error: the offsets were not moved: nobody said yes
      hint: add `--yes` to move them as shown
    ");
    insta::assert_snapshot!(parts.error("offsets reset parts --to 99", 2), @"
    error: offset 99 is not in `TOPIC/0`, which holds 0 to 10
      nothing was moved
      hint: `--to earliest` and `--to latest` always fit
    ");
    let head = parts.table().await.snapshot_id();
    // Six seconds after the start: offset 6 of one partition, the end of the other.
    let planned = parts.done("offsets reset parts --to 2026-01-01T00:00:06Z --rewind --dry-run");
    insta::assert_snapshot!(planned.replace(&parts.topic, "TOPIC"), @"
     table             | partition                                        | now | then | what it means
    -------------------+--------------------------------------------------+-----+------+---------------------------------------
     shop_bronze.parts | TOPIC/0 |  10 |    6 | reads 4 offsets again, deletes 4 rows
     shop_bronze.parts | TOPIC/1 |   4 |    4 | stays
    shop_bronze.parts: 4 rows are deleted and come again when they are read; records that compaction has taken out of the topic do not. Silver is folded anew from all of bronze at the next build
    ");
    assert_eq!(parts.table().await.snapshot_id(), head);
    let moved = parts.json("offsets reset parts --to 2026-01-01T00:00:06Z --rewind --yes --json");
    assert_eq!((&moved[0]["rows_deleted"], &moved[0]["moved"]), (&4.into(), &true.into()), "{moved}");
    assert_eq!(parts.positions(), [json!([6, 0, 10, "ok"]), json!([4, 0, 4, "ok"])]);
    // Silver is a function of bronze, also of a bronze that went back.
    parts.done("build");
    assert_eq!(parts.counts().await, counts(10, 10));
    parts.done("run --drain");
    assert_eq!(parts.counts().await, counts(14, 14));
    let again = parts.json("offsets reset parts --to latest --yes --json");
    assert_eq!(again[0]["moved"], false, "{again}");

    // Forward: what is skipped is not there, and a move back over it needs nothing.
    parts.sell(0, 10..13, 10);
    parts.done("offsets reset parts --to latest --yes");
    parts.done("run --drain");
    assert_eq!(parts.counts().await, counts(14, 14));
    parts.done(&format!("offsets reset --topic {} --partition 0 --to 10 --yes", parts.topic));
    parts.done("run --drain");
    assert_eq!(parts.counts().await, counts(17, 17));

    // A topic made anew: the rows stay, and the epoch keeps them apart from what comes.
    let raised = parts.json("offsets reset parts --to earliest --epoch --yes --json");
    assert_eq!((&raised[0]["epoch"], &raised[0]["rows_deleted"]), (&1.into(), &0.into()), "{raised}");
    let table = parts.table().await;
    assert_eq!(bronze::epoch(&table).unwrap(), 1);
    assert_eq!(parts.positions(), [json!([0, 0, 13, "ok"]), json!([0, 0, 4, "ok"])]);
    assert_eq!(parts.counts().await, counts(17, 17));
    assert_eq!(parts.json("status --json")["bronze"][0]["epoch"], 1);
    parts.done("run --drain");
    assert_eq!(parts.counts().await, counts(34, 17));

    // A source that was restored: what is read from there on is all there is, and bronze keeps what was before.
    let planned = parts.done("offsets reset parts --to 2026-01-01T00:00:06Z --restored --dry-run");
    insta::assert_snapshot!(planned.replace(&parts.topic, "TOPIC"), @"
     table             | partition                                        | now | then | what it means
    -------------------+--------------------------------------------------+-----+------+---------------------------------------
     shop_bronze.parts | TOPIC/0 |  13 |    6 | reads 7 offsets again, deletes 7 rows
     shop_bronze.parts | TOPIC/1 |   4 |    4 | stays
    shop_bronze.parts: epoch 1 becomes 2
    shop_bronze.parts: silver will hold what is read from there on, and nothing else
    ");
    let anew = parts.json("offsets reset parts --to 2026-01-01T00:00:06Z --restored --yes --json");
    assert_eq!((&anew[0]["epoch"], &anew[0]["rows_deleted"]), (&2.into(), &7.into()), "{anew}");
    parts.done("build");
    // One row says where the epoch ended.
    assert_eq!(parts.counts().await, counts(34 - 7 + 1, 0));
    parts.done("run --drain");
    assert_eq!(parts.counts().await, counts(34 + 1, 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_s_offsets_are_taken_over() {
    let parts = Parts::new().await;
    parts.sell(0, 0..10, 0);
    parts.sell(1, 100..104, 0);
    let group = format!("g-{}", parts.topic);
    commit(&parts, &group, &[(0, 7), (1, 4)]);
    insta::assert_snapshot!(parts.error("offsets import --from-group nobody --yes", 2), @"
    error: group `nobody` has committed nothing of the topics that go to these tables
      nothing was moved
      hint: check the group's name; the sink's own is `cg-control-<connector>` or `connect-<connector>`
    ");
    insta::assert_snapshot!(parts.error(&format!("offsets import --from-group {group}"), 2), @"
    error: the offsets were not moved: nobody said yes
      hint: add `--yes` to move them as shown
    ");
    assert_eq!(parts.json("status --json")["bronze"][0]["rows"], Value::Null, "nothing was made");
    let moved = parts.json(&format!("offsets import parts --from-group {group} --yes --json"));
    assert_eq!(moved[0]["partitions"][0]["to"], 7, "{moved}");
    parts.done("run --drain");
    assert_eq!(parts.counts().await, counts(3, 3));
    // Not twice by accident, and never over rows.
    let again = parts.error(&format!("offsets import --from-group {group} --yes"), 2);
    insta::assert_snapshot!(again, @"
    error: table `shop_bronze.parts` holds 3 rows of `TOPIC/0` from offset 7 on, and would get them twice
      nothing was moved
      hint: `offsets reset … --rewind` deletes those rows and reads them again; `--epoch` keeps them, for a topic that was deleted and made anew
    ");
    let held = parts.error(&format!("offsets import --from-group {group} --force --yes"), 2);
    assert!(held.contains("holds 3 rows of `TOPIC/0` from offset 7 on"), "{held}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_connect_sink_left_is_taken_over_without_a_gap() {
    let parts = Parts::new().await;
    parts.sell(0, 0..10, 0);
    parts.sell(1, 100..104, 0);
    let group = format!("connect-{}", parts.topic.replace('.', "-"));
    // The workers announced nine and four records, and the table is complete through the fifth second.
    commit(&parts, &group, &[(0, 9), (1, 4)]);
    let (_, lake) = parts.lake().await;
    let definition = TableDefinition {
        name: "legacy.parts".parse().unwrap(),
        schema: std::sync::Arc::new(support::schema()),
        partition: Vec::new(),
        properties: Default::default(),
    };
    let table = lake.create(&definition).await.unwrap();
    insta::assert_snapshot!(parts.error("offsets import --from-connect legacy.parts --yes", 2), @"
    error: table `legacy.parts` was not written by Kafka Connect's Iceberg sink: no snapshot has `kafka.connect.offsets.…`
      nothing was moved
      hint: name the table that the sink writes to, or use `--from-group`
    ");
    let offsets = format!("kafka.connect.offsets.control.iceberg.{group}");
    let table = table.change().note(&offsets, r#"{"0":17}"#).commit().await.unwrap().table;
    insta::assert_snapshot!(parts.error("offsets import --from-connect legacy.parts --yes", 2).replace(&group, "GROUP"), @"
    error: no commit of the sink to `legacy.parts` says through which time the table is complete
      nothing was moved
      hint: let it commit once while every partition gets records; or stop it when its last commit is done and take its group's offsets as they are: `--from-group GROUP`
    ");
    let complete = ("kafka.connect.valid-through-ts", "2026-01-01T00:00:05Z");
    table.change().note(&offsets, r#"{"0":19}"#).note(complete.0, complete.1).commit().await.unwrap();
    let moved = parts.json("offsets import --from-connect legacy.parts --yes --json");
    let to: Vec<&Value> = moved[0]["partitions"].as_array().unwrap().iter().map(|row| &row["to"]).collect();
    assert_eq!(to, [&json!(5), &json!(4)], "{moved}");
    parts.done("run --drain");
    assert_eq!(parts.counts().await, counts(5, 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_beside_a_running_ingest_is_whole_or_not_at_all() {
    let parts = Parts::new().await;
    parts.sell(0, 0..10, 0);
    parts.done("run --drain");
    let mut command = Command::new(env!("CARGO_BIN_EXE_icestream"));
    command.current_dir(parts.path()).arg("ingest").env("ICESTREAM_COMMIT__EVERY", "100ms");
    let mut pod = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for round in 0..3 {
        parts.sell(0, 10 + round * 5..15 + round * 5, 10);
        // Either it is done, or somebody was faster and it says so.
        let output = parts.run("offsets reset parts --to earliest --rewind --yes");
        let text = String::from_utf8_lossy(&output.stderr).to_string();
        assert!(matches!(output.status.code(), Some(0)) || text.contains("moved while they were looked at"), "{text}");
    }
    pod.kill().unwrap();
    pod.wait().unwrap();
    parts.done("run --drain");
    assert_eq!(parts.counts().await, counts(25, 25));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_catalog_is_put_right_and_its_records_replayed() {
    let parts = Parts::new().await;
    parts.declare("decimal(3,2)");
    parts.sell(0, 0..30, 0);
    parts.done("run --drain");
    assert_eq!(parts.counts().await.2, "10");
    let status = parts.json("status --json");
    assert_eq!(status["bronze"][0]["rejected"]["rows"], 20);
    let list = parts.json("rejected list parts --limit 3 --json");
    assert_eq!((&list[0]["records"], list[0]["newest"].as_array().unwrap().len()), (&20.into(), 3), "{list}");
    assert_eq!(list[0]["reasons"][0]["first"]["offset"], 10);
    let shown = parts.done(&format!("rejected show parts {}/0/29", parts.topic));
    assert!(shown.contains("where        `after.price` is 29.5"), "{shown}");
    parts.declare("decimal(10,2)");
    parts.done("rejected replay parts");
    parts.done("build");
    assert_eq!(parts.counts().await, counts(30, 30));
    let status = parts.json("status --json");
    assert_eq!(
        (&status["bronze"][0]["rejected"]["rows"], &status["bronze"][0]["schema"]["changes"]),
        (&0.into(), &1.into())
    );
    // Reading goes on beside what was replayed.
    parts.sell(0, 30..35, 30);
    parts.done("run --drain");
    assert_eq!(parts.counts().await, counts(35, 35));
}

fn commit(parts: &Parts, group: &str, offsets: &[(i32, i64)]) {
    let consumer: BaseConsumer = parts.client().set("group.id", group).create().unwrap();
    let mut list = TopicPartitionList::new();
    for (partition, next) in offsets {
        list.add_partition_offset(&parts.topic, *partition, Offset::Offset(*next)).unwrap();
    }
    consumer.commit(&list, CommitMode::Sync).unwrap();
}
