//! `verify` against a real broker: what the topics hold is in bronze, whatever became of them, and what is not is found.

use std::time::{Duration, Instant};

use icestream::engine;
use icestream::ids::TableName;
use icestream::offsets::{MARKER, Offsets};
use icestream::pipeline;
use icestream::table::{At, Premise};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{Message, Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::auditor::Entry;
use crate::ingest_faults::remake;
use crate::project::{Project, TABLES};

const PATIENCE: Duration = Duration::from_secs(60);
const START_MS: i64 = 1_767_225_600_000;

impl Project {
    /// What `verify --all --broker` says, and with which exit code it ends.
    fn verify(&self, code: i32) -> Value {
        let output = tokio::task::block_in_place(|| {
            self.command(&["verify", "--all", "--broker", "--json", "--show", "100"]).output().unwrap()
        });
        let words = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{words}\n{said}");
        serde_json::from_str(&said).unwrap()
    }

    /// Runs a verb that has to succeed.
    fn done(&self, arguments: &[&str]) {
        let output = tokio::task::block_in_place(|| self.command(arguments).output().unwrap());
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Takes rows out of the table of orders that the topic holds, and has each of them found.
    async fn loses(&self, rows: &str, told: &[&str]) {
        self.replace("orders", &format!("SELECT * FROM of.t WHERE ({rows}) IS DISTINCT FROM true")).await;
        let report = self.verify(1);
        let mut found = differences(&report, "orders");
        found.sort();
        assert_eq!(found, told, "{report:#}");
    }

    /// Puts what a query gives in the place of a table's rows. It calls the table `of.t`.
    async fn replace(&self, table: &str, sql: &str) {
        let table = self.table(table).await;
        let session = pipeline::engine(&self.config()).unwrap().session();
        let name: TableName = "of.t".parse().unwrap();
        engine::register(&session, &name, table.view(At::Head).unwrap()).unwrap();
        let mut writer = table.writer(None).unwrap();
        for batch in engine::plan(&session, sql).await.unwrap().collect().await.unwrap() {
            writer.write(&batch).await.unwrap();
        }
        table.change().replace_all(writer.finish().await.unwrap()).commit().await.unwrap();
    }
}

/// What the check against the broker says of a table.
fn broker<'a>(report: &'a Value, table: &str) -> &'a Value {
    let tables = report["tables"].as_array().unwrap();
    let table = tables.iter().find(|of| of["table"].as_str().unwrap().ends_with(table)).unwrap();
    table["checks"].as_array().unwrap().iter().find(|check| check["check"] == "broker").unwrap()
}

/// Kind, offset, column, expected and found of each difference.
fn differences(report: &Value, table: &str) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_string();
    let line = |of: &Value| {
        let at = format!("{}/{}", of["at"]["partition"], of["at"]["offset"]);
        let parts = [text(&of["kind"]), at, text(&of["column"]), text(&of["expected"]), text(&of["found"])];
        parts.join(" | ")
    };
    broker(report, table)["differences"].as_array().map(|all| all.iter().map(line).collect()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_bronze_lacks_of_a_topic_or_says_otherwise_is_found() {
    let project = Project::new().await;
    project.send(200);
    project.drain(3);
    let healthy = project.verify(0);
    let (typed, text) = (broker(&healthy, "orders"), broker(&healthy, "customers"));
    assert_eq!([&typed["verdict"], &text["verdict"]], ["holds", "holds"], "{healthy:#}");
    assert_eq!([&typed["checked"], &text["checked"]], [100, 100], "{healthy:#}");
    // Tombstones stand behind deletes; number 8 of ten is one.
    assert_eq!(typed["notes"], json!(["records that make no row: 20 tombstones"]), "{healthy:#}");

    project.replace("orders", "SELECT * FROM of.t WHERE NOT (_topic_partition = 1 AND _offset = 3)").await;
    let report = project.verify(1);
    insta::assert_snapshot!(differences(&report, "orders").join("\n"), @"missing | 1/3 | - | the row of an event `c` | -");

    let project = Project::new().await;
    project.send(200);
    project.drain(3);
    let altered = "SELECT * REPLACE (CASE WHEN _topic_partition = 0 AND _offset = 5 THEN named_struct('id', after['id'], \
                   'note', 'altered') ELSE after END AS after) FROM of.t";
    project.replace("orders", altered).await;
    let report = project.verify(1);
    let found = differences(&report, "orders");
    assert!(
        found.len() == 1
            && found[0].starts_with("differs | 0/5 | after.note | note ")
            && found[0].ends_with(" | altered"),
        "{found:?}"
    );

    // A marker that is ahead has passed records that nobody read.
    let project = Project::new().await;
    project.send(100);
    project.drain(3);
    project.send(100);
    let table = project.table("customers").await;
    let mut ahead = Offsets::parse(&table.marker(MARKER).unwrap()).unwrap();
    let (topic, next) = (project.topic("customers"), ahead.next(&project.topic("customers"), 0).unwrap());
    ahead.set(&topic, 0, next + 2);
    ahead.set(&topic, 1, 1000);
    let premise = Premise::new().marker_moves(MARKER, table.marker(MARKER), ahead.to_string());
    table.change().premise(premise).commit().await.unwrap();
    let report = project.verify(1);
    let found = differences(&report, "customers");
    assert!(found.iter().any(|line| line.starts_with(&format!("missing | 0/{next} | - | the row of"))), "{found:?}");
    assert!(
        found.contains(&"differs | 1/1000 | icestream.offsets | at most 50, where the topic ends | 1000".to_string()),
        "{found:?}"
    );
}

/// The notes of the check against the broker, which found nothing.
fn notes(report: &Value, table: &str) -> Vec<String> {
    let check = broker(report, table);
    assert_eq!(check["verdict"], "holds", "{report:#}");
    let notes = check["notes"].as_array().into_iter().flatten();
    notes.map(|note| note.as_str().unwrap().to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_epoch_of_one_topic_is_held_against_it() {
    let project = Project::new().await;
    project.send(200);
    project.drain(3);
    // Epoch 0 keeps what is before offset 20. The topic is the same one, whatever is said of it: epoch 2 reads a second
    // time what the others have from offset 10 on.
    project.done(&["offsets", "reset", "orders", "--to", "20", "--restored", "--yes"]);
    project.send(100);
    project.drain(3);
    project.done(&["offsets", "reset", "orders", "--to", "10", "--epoch", "--yes"]);
    project.drain(3);
    let marker = project.table("orders").await.marker(MARKER).unwrap();
    assert!(marker.contains(r#""began":{"0":[[1,20,20,true],[2,10,75,true]],"1":[[1,20,20,true],[2,10,75,true]]}"#));
    let healthy = project.verify(0);
    assert_eq!(
        notes(&healthy, "orders"),
        [
            "32 records were compared with the rows of epoch 0",
            "88 records were compared with the rows of epoch 1",
            "records that make no row: 30 tombstones",
        ]
    );
    assert_eq!(broker(&healthy, "orders")["checked"], 150);
    let rows = "_topic_partition = 0 AND (_offset = 5 OR coalesce(_epoch, 0) = 1 AND _offset = 30 OR \
                coalesce(_epoch, 0) = 2 AND _offset = 15)";
    let told = [
        "missing | 0/15 | - | the row of an event `c` | -",
        "missing | 0/30 | - | the row of an event `c` in epoch 1 | -",
        "missing | 0/5 | - | the row of an event `c` in epoch 0 | -",
    ];
    project.loses(rows, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_marker_was_moved_past_is_told_and_not_missing() {
    let project = Project::new().await;
    project.send(200);
    project.done(&["offsets", "reset", "orders", "--to", "latest", "--yes"]);
    project.send(100);
    project.drain(3);
    let topic = project.topic("orders");
    let passed = |records: u64| {
        format!(
            "{records} records of `{topic}` have no row: the marker was moved past them by hand, and no backfill brought them"
        )
    };
    assert_eq!(
        notes(&project.verify(0), "orders"),
        [passed(80), "records that make no row: 10 tombstones".to_string()]
    );
    let (from, to) = (format!("{topic}/0=0"), format!("{topic}/0=10"));
    project.done(&["backfill", "--from-offset", &from, "--to-offset", &to]);
    assert_eq!(
        notes(&project.verify(0), "orders"),
        [passed(72), "records that make no row: 12 tombstones".to_string()]
    );
    let told = ["missing | 0/5 | - | the row of an event `c` | -", "missing | 0/55 | - | the row of an event `c` | -"];
    project.loses("_topic_partition = 0 AND _offset IN (5, 55)", &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_a_topic_that_is_gone_are_told_and_not_compared() {
    let project = Project::new().await;
    project.send(200);
    project.drain(3);
    remake(&project, &TABLES, 400).await;
    for table in TABLES {
        project.done(&["offsets", "reset", table, "--to", "earliest", "--epoch", "--yes"]);
    }
    project.drain(3);
    project.done(&["offsets", "reset", "orders", "--to", "30", "--restored", "--yes"]);
    project.drain(3);
    let healthy = project.verify(0);
    let gone = |table: &str, rows: u64| {
        format!(
            "{rows} rows of epoch 0 are not compared: `{}` was made anew when epoch 1 began, and its records of before are \
             gone",
            project.topic(table)
        )
    };
    assert_eq!(notes(&healthy, "customers"), [gone("customers", 100)]);
    let of_orders = notes(&healthy, "orders");
    assert_eq!(
        of_orders,
        [
            gone("orders", 80),
            "48 records were compared with the rows of epoch 1".to_string(),
            "records that make no row: 40 tombstones".to_string()
        ]
    );
    let rows = "_topic_partition = 0 AND (_epoch = 1 AND _offset = 5 OR _epoch = 2 AND _offset = 95)";
    let told = [
        "missing | 0/5 | - | the row of an event `c` in epoch 1 | -",
        "missing | 0/95 | - | the row of an event `c` | -",
    ];
    project.loses(rows, &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_from_the_topic_is_held_against_it_before_and_after_maintenance() {
    let project = Project::new().await;
    project.send(200);
    // Nobody has begun to ingest.
    project.done(&["backfill", "--from-time", "1970-01-01"]);
    assert_eq!(notes(&project.verify(0), "orders"), ["records that make no row: 20 tombstones"]);
    project.send(100);
    project.drain(3);
    for _ in 0..4 {
        project.send(20);
        project.drain(3);
    }
    let healthy = project.verify(0);
    assert_eq!(broker(&healthy, "orders")["checked"], 190, "{healthy:#}");
    let before = project.table("orders").await;
    let mut maintain = project.command(&["maintain", "--remove-orphans"]);
    maintain.env("ICESTREAM_MAINTAIN__MAX_SNAPSHOTS", "3").env("ICESTREAM_MAINTAIN__KEEP_SNAPSHOTS", "2");
    let maintained = tokio::task::block_in_place(|| maintain.output().unwrap());
    assert!(maintained.status.success(), "{}", String::from_utf8_lossy(&maintained.stderr));
    let after = project.table("orders").await;
    assert!(after.snapshots().len() < before.snapshots().len(), "{:?}", after.snapshots());
    assert_eq!(notes(&project.verify(0), "orders"), notes(&healthy, "orders"));
    let told = ["missing | 0/5 | - | the row of an event `c` | -", "missing | 0/60 | - | the row of an event `c` | -"];
    project.loses("_topic_partition = 0 AND _offset IN (5, 60)", &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_from_files_is_held_against_the_topic_as_far_as_they_tell() {
    let project = Project::new().await;
    project.send(200);
    project.done(&["offsets", "reset", "orders", "--to", "latest", "--yes"]);
    let topic = project.topic("orders");
    let produced = tokio::task::block_in_place(|| project.log());
    let files = project.path().join("files");
    std::fs::create_dir(&files).unwrap();
    for ((_, partition), log) in produced.0.iter().filter(|((name, _), _)| *name == topic) {
        let mut lines = String::new();
        for (offset, entry) in log.entries.iter().enumerate() {
            let Entry::Record(sent) = entry else { continue };
            let Some(payload) = &sent.payload else { continue };
            let value: Value = serde_json::from_slice(payload).unwrap();
            lines.push_str(&format!("{}\n", json!({"value": value, "offset": offset})));
        }
        std::fs::write(files.join(format!("{topic}+{partition}+0000000000.json")), lines).unwrap();
    }
    project.done(&["backfill", "--files", &format!("{}/*.json", files.display())]);
    project.send(100);
    project.drain(3);
    let healthy = project.verify(0);
    assert_eq!(
        notes(&healthy, "orders"),
        [
            "records that make no row: 10 tombstones",
            "80 rows were compared without the record's key or time: they came by a backfill, and do not have it",
        ]
    );
    let told = ["missing | 0/5 | - | the row of an event `c` | -", "missing | 0/60 | - | the row of an event `c` | -"];
    project.loses("_topic_partition = 0 AND _offset IN (5, 60)", &told).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_that_transactions_leave_are_accounted_for() {
    let project = Project::new().await;
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", &project.brokers)
        .set("transactional.id", &project.prefix)
        .create()
        .unwrap();
    let topic = project.topic("orders");
    tokio::task::block_in_place(|| {
        producer.init_transactions(PATIENCE).unwrap();
        for (number, commits) in [(1, true), (2, false), (3, true)] {
            producer.begin_transaction().unwrap();
            let payload = json!({"op": "c", "after": {"id": number, "note": "n"}}).to_string();
            let key = json!({"id": number}).to_string();
            for _ in 0..2 {
                let record = BaseRecord::to(&topic).partition(0).key(&key).payload(&payload);
                producer.send(record).map_err(|(error, _)| error).unwrap();
            }
            // What is aborted before it is sent leaves nothing behind.
            producer.flush(PATIENCE).unwrap();
            match commits {
                true => producer.commit_transaction(PATIENCE).unwrap(),
                false => producer.abort_transaction(PATIENCE).unwrap(),
            }
        }
    });
    project.send_over(10, 1);
    project.drain(3);
    let report = project.verify(0);
    let notes = broker(&report, "orders")["notes"].as_array().unwrap().clone();
    let expected = "5 offsets have no record and no row: 2 hold records of aborted transactions, 3 transaction markers or \
                    were taken by compaction";
    assert!(notes.contains(&expected.into()), "{report:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_topic_has_less_than_bronze() {
    let project = Project::new().await;
    let topic = format!("{}.compacted", project.prefix);
    // Nothing is taken out before it was read.
    let new = NewTopic::new(&topic, 1, TopicReplication::Fixed(1)).set("retention.ms", "-1");
    for made in project.admin().create_topics(&[new], &AdminOptions::new()).await.unwrap() {
        made.unwrap();
    }
    let producer = project.producer();
    let put = |id: i32, number: i32| {
        let payload = json!({"op": "c", "after": {"id": id, "note": number}}).to_string();
        let key = json!({"id": id}).to_string();
        // By the time of its records the broker tells when a segment is old.
        let timestamp = START_MS + i64::from(number) * 1000;
        let record = BaseRecord::to(&topic).partition(0).key(&key).payload(&payload).timestamp(timestamp);
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(PATIENCE).unwrap();
    };
    (0..20).for_each(|number| put(1, number));
    project.drain(3);
    let config = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("delete.retention.ms", "100"),
        ("max.compaction.lag.ms", "200"),
    ];
    let compacted = AlterConfig::new(ResourceSpecifier::Topic(&topic));
    let compacted = config.iter().fold(compacted, |config, (key, value)| config.set(key, value));
    for altered in project.admin().alter_configs(&[compacted], &AdminOptions::new()).await.unwrap() {
        altered.unwrap();
    }
    // The segment that is written to is never compacted: each of these begins another one.
    let deadline = Instant::now() + 3 * PATIENCE;
    let mut number = 100;
    while tokio::task::block_in_place(|| records(&project.brokers, &topic)) > 10 {
        assert!(Instant::now() < deadline, "the topic is not compacted");
        put(2, number);
        number += 1;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    project.drain(3);
    let report = project.verify(0);
    let check = broker(&report, "compacted");
    let notes = check["notes"].to_string();
    assert!(notes.contains("rows are of records that compaction has taken out of the topic since"), "{report:#}");
}

/// How many of a topic's first twenty offsets have a record.
fn records(brokers: &str, topic: &str) -> usize {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", format!("{topic}-count"))
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let mut count = 0;
    while let Some(Ok(message)) = consumer.poll(Duration::from_secs(5)) {
        if message.offset() >= 20 {
            break;
        }
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_does_not_answer_is_a_part_that_was_skipped() {
    let project = Project::new().await;
    project.send(20);
    project.drain(3);
    let run = |arguments: &[&str]| {
        let mut command = project.command(arguments);
        command.env("ICESTREAM_SOURCE__KAFKA__BROKERS", "127.0.0.1:1");
        tokio::task::block_in_place(|| command.output().unwrap())
    };
    let output = run(&["verify", "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (output.status.code(), &broker(&report, "orders")["verdict"]),
        (Some(0), &"skipped".into()),
        "{report:#}"
    );
    let output = run(&["verify", "--broker"]);
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(run(&["verify", "--no-broker"]).status.code(), Some(0));
}
