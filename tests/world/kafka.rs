//! A real broker: what the shop sends to it is in all three layers, once, whoever reads it and however they are ended.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures::TryStreamExt;
use icestream::clock::Clock;
use icestream::demo::{Record, Shop, Table, Truth, run as demo, text_rows};
use icestream::engine;
use icestream::ids::TableName;
use icestream::pipeline;
use icestream::table::At;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use serde_json::Value;
use uuid::Uuid;

/// A project folder of the sample project, whose topics have a prefix of their own.
struct Project {
    folder: tempfile::TempDir,
    brokers: String,
    prefix: String,
}

impl Project {
    async fn new() -> Self {
        let file = std::env::var_os("ICESTREAM_KAFKA_FILE").expect("run these tests with `tests/run`");
        let kafka: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let brokers = kafka["brokers"].as_str().unwrap().to_string();
        let prefix = format!("t{}", Uuid::new_v4().simple());
        let folder = tempfile::tempdir().unwrap();
        demo::prepare(folder.path()).unwrap();
        for table in Table::ALL {
            let path = folder.path().join(format!("catalog/{}.yaml", table.name()));
            let text = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, text.replace(table.topic(), &format!("{prefix}.{}", table.topic()))).unwrap();
        }
        let settings = folder.path().join("icestream.yaml");
        let text = std::fs::read_to_string(&settings).unwrap();
        let text = text.replace("shop.public.*", &format!("{prefix}.shop.public.*"));
        // Who is killed gives its partitions away when its session ends.
        let topics = "    topics: [";
        let text = text.replacen(topics, &format!("    properties: {{ session.timeout.ms: 6000 }}\n{topics}"), 1);
        std::fs::write(&settings, text).unwrap();
        let project = Project { folder, brokers, prefix };
        project.make_topics().await;
        project
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    async fn make_topics(&self) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", &self.brokers).create().unwrap();
        let names: Vec<(String, i32)> = Table::ALL.map(|table| (self.topic(table), table.partitions())).to_vec();
        let topics: Vec<NewTopic> = names
            .iter()
            .map(|(name, partitions)| NewTopic::new(name, *partitions, TopicReplication::Fixed(1)))
            .collect();
        for made in admin.create_topics(&topics, &AdminOptions::new()).await.unwrap() {
            made.unwrap();
        }
    }

    fn topic(&self, table: Table) -> String {
        format!("{}.{}", self.prefix, table.topic())
    }

    fn producer(&self, transactional: bool) -> ThreadedProducer<DefaultProducerContext> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("linger.ms", "5").set("compression.type", "lz4");
        if transactional {
            config.set("transactional.id", &self.prefix);
        }
        config.create().unwrap()
    }

    /// Sends the shop's life up to so many events.
    fn sell(&self, shop: &mut Shop, until: u64, producer: &ThreadedProducer<DefaultProducerContext>) {
        let mut records = Vec::new();
        while shop.emitted() < until && shop.next_transaction(&mut records) {
            records.iter().for_each(|record| self.send(record, producer));
        }
        producer.flush(Duration::from_secs(30)).unwrap();
    }

    fn send(&self, record: &Record, producer: &ThreadedProducer<DefaultProducerContext>) {
        let topic = self.topic(record.table);
        let mut message: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(&topic).partition(record.partition).timestamp(record.timestamp_ms);
        message.key = record.key.as_deref();
        message.payload = record.payload.as_deref();
        producer.send(message).map_err(|(error, _)| error).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_icestream"));
        command.args(["--project".as_ref(), self.path().as_os_str()]).args(arguments);
        command.env("ICESTREAM_SOURCE__KAFKA__BROKERS", &self.brokers).env("ICESTREAM_COMMIT__EVERY", "300ms");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// Runs a verb to its end and gives the JSON it prints.
    fn verb(&self, arguments: &[&str]) -> Value {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn config(&self) -> icestream::config::Config {
        icestream::config::Config::load(self.path(), &Default::default(), &[]).unwrap()
    }

    /// The rows of a query, as canonical text.
    async fn rows(&self, table: &TableName, columns: &[&str], sql: &str) -> Vec<Vec<String>> {
        let config = self.config();
        let lake = pipeline::open_lake(&config, Clock::system()).await.unwrap();
        let session = pipeline::engine(&config).unwrap().session();
        engine::register(&session, table, lake.table(table).await.unwrap().view(At::Head).unwrap()).unwrap();
        let batches: Vec<_> = engine::query(&session, sql).await.unwrap().try_collect().await.unwrap();
        text_rows(&batches, columns).unwrap()
    }

    /// Every offset that holds a row is in bronze once; silver and gold are what the shop says.
    async fn check(&self, shop: &Shop) {
        let truth = shop.truth();
        for table in Table::ALL {
            let name = TableName::new("shop_bronze", table.name()).unwrap();
            let sql = format!(
                "SELECT _topic_partition AS p, count(*) AS n, count(DISTINCT _offset) AS o FROM {name} GROUP BY _topic_partition"
            );
            let found = self.rows(&name, &["p", "n", "o"], &sql).await;
            let expected: BTreeMap<String, u64> = truth
                .bronze()
                .iter()
                .filter(|((of, _), rows)| *of == table && **rows > 0)
                .map(|((_, partition), rows)| (partition.to_string(), *rows))
                .collect();
            let found: BTreeMap<String, (String, String)> =
                found.into_iter().map(|row| (row[0].clone(), (row[1].clone(), row[2].clone()))).collect();
            let expected: BTreeMap<String, (String, String)> =
                expected.into_iter().map(|(p, n)| (p, (n.to_string(), n.to_string()))).collect();
            assert_eq!(found, expected, "{name}");
        }
        for (namespace, name) in Truth::TABLES {
            let expected = truth.table(namespace, name).unwrap();
            let table = TableName::new(namespace, name).unwrap();
            let columns: Vec<&str> = expected.columns.iter().map(AsRef::as_ref).collect();
            let found = self.rows(&table, &columns, &format!("SELECT {} FROM {table}", columns.join(", "))).await;
            assert!(found == expected.rows, "{table}: {} rows, {} expected", found.len(), expected.rows.len());
        }
        let report = tokio::task::block_in_place(|| self.verb(&["verify", "--all", "--broker", "--json"]));
        let checks = report["tables"].as_array().unwrap().iter().flat_map(|table| table["checks"].as_array().unwrap());
        assert!(checks.into_iter().all(|check| check["verdict"] == "holds"), "{report:#}");
    }
}

fn shop(events: u64) -> Shop {
    Shop::new(7, 1_767_225_600_000_000, events)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_run_takes_up_where_the_last_one_ended() {
    let project = Project::new().await;
    let (mut shop, producer) = (shop(6_000), project.producer(false));
    project.sell(&mut shop, 2_000, &producer);
    let result = project.path().join("result.json");
    let first = project.verb(&["run", "--drain", "--result", result.to_str().unwrap()]);
    assert_eq!(first, serde_json::from_str::<Value>(&std::fs::read_to_string(&result).unwrap()).unwrap());
    project.check(&shop).await;
    // Nothing new: nothing is read, merged or refreshed.
    let idle = project.verb(&["run", "--drain"]);
    assert_eq!((&idle["ingested"]["rows"], &idle["built"]["silver_merges"]), (&0.into(), &0.into()), "{idle}");
    project.sell(&mut shop, u64::MAX, &producer);
    let ingested = project.verb(&["ingest", "--drain"]);
    let rows = |of: &Value| of["ingested"]["rows"].as_u64().unwrap();
    assert_eq!(
        rows(&first) + rows(&ingested),
        Table::ALL.iter().map(|table| shop.truth().bronze_rows(*table)).sum::<u64>()
    );
    let built = project.verb(&["build"]);
    assert!(built["built"]["silver_merges"].as_u64().unwrap() >= 3, "{built}");
    project.check(&shop).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_doubled_and_asked_to_end_the_tables_are_right() {
    let project = Project::new().await;
    let (mut shop, producer) = (shop(20_000), project.producer(false));
    for step in 1..=4 {
        // Two pods of one pipeline, one killed and one asked to end, while the shop goes on.
        let before = bronze_rows(&project).await;
        let mut pods = [project.start(&["run"]), project.start(&["ingest"])];
        project.sell(&mut shop, step * 4_500, &producer);
        wait_for_rows(&project, before + 1_000).await;
        pods[step as usize % 2].kill().unwrap();
        let asked = &mut pods[1 - step as usize % 2];
        let signal = Command::new("kill").args(["-TERM", &asked.id().to_string()]).status().unwrap();
        assert!(signal.success());
        let ended = asked.wait().unwrap();
        // Of two owners of a range one loses, and may be in the middle of it; a retry is all it can ask for. Where the other
        // one brought the rows, this one may not have begun to read.
        assert!(matches!(ended.code(), Some(0 | 1 | 3 | 143)) || ended.signal() == Some(15), "{ended:?}");
        pods[step as usize % 2].wait().unwrap();
    }
    project.sell(&mut shop, u64::MAX, &producer);
    project.verb(&["run", "--drain"]);
    project.check(&shop).await;
}

/// A drain that was ended says that there is more to do; without an end to reach, a signal is how a run ends well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_is_ended_has_more_to_do() {
    let project = Project::new().await;
    let (mut shop, producer) = (shop(30_000), project.producer(false));
    let mut codes = Vec::new();
    for (words, until) in [(["ingest", "--drain"].as_slice(), 15_000), (&["run"], u64::MAX)] {
        let before = bronze_rows(&project).await;
        project.sell(&mut shop, until, &producer);
        // A pace that leaves the time to ask.
        let mut pod = project.start(&[words, &["--set", "commit.rows=500"]].concat());
        wait_for_rows(&project, before + 1).await;
        assert!(Command::new("kill").args(["-TERM", &pod.id().to_string()]).status().unwrap().success());
        codes.push(pod.wait().unwrap().code());
    }
    assert!(matches!(codes[..], [Some(0 | 143), Some(0)]), "{codes:?}");
    project.verb(&["run", "--drain"]);
    project.check(&shop).await;
}

/// Waits until bronze holds at least so many rows.
async fn wait_for_rows(project: &Project, least: u64) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(180);
    loop {
        let rows = bronze_rows(project).await;
        if rows >= least {
            return;
        }
        assert!(tokio::time::Instant::now() < deadline, "{rows} rows after three minutes, {least} wanted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn bronze_rows(project: &Project) -> u64 {
    let lake = pipeline::open_lake(&project.config(), Clock::system()).await.unwrap();
    let mut rows = 0;
    for name in lake.tables("shop_bronze").await.unwrap_or_default() {
        rows += lake.table(&name).await.unwrap().summary().records.unwrap_or(0);
    }
    rows
}

/// Transaction markers take offsets that hold no record, and what was aborted is never seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_leave_gaps_and_aborted_records_stay_out() {
    let project = Project::new().await;
    let (mut shop, producer) = (shop(500), project.producer(true));
    let patience = Duration::from_secs(30);
    producer.init_transactions(patience).unwrap();
    let mut records = Vec::new();
    let mut count = 0;
    while shop.next_transaction(&mut records) {
        if count % 3 == 0 {
            producer.begin_transaction().unwrap();
            records.iter().for_each(|record| project.send(record, &producer));
            // They are to be in the log; and a client that aborts what it has not sent may end what the broker never began.
            producer.flush(patience).unwrap();
            producer.abort_transaction(patience).unwrap();
        }
        count += 1;
        producer.begin_transaction().unwrap();
        records.iter().for_each(|record| project.send(record, &producer));
        producer.commit_transaction(patience).unwrap();
    }
    project.verb(&["run", "--drain"]);
    project.check(&shop).await;
    let again = project.verb(&["run", "--drain"]);
    assert_eq!(again["ingested"]["rows"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_cut_past_the_marker_stops_with_the_choice_spelled_out() {
    let project = Project::new().await;
    let (mut shop, producer) = (shop(3_000), project.producer(false));
    project.sell(&mut shop, 500, &producer);
    project.verb(&["ingest", "--drain"]);
    project.sell(&mut shop, u64::MAX, &producer);
    // What retention does, by hand: everything before an offset past the marker goes.
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &project.brokers).create().unwrap();
    let mut cut = rdkafka::TopicPartitionList::new();
    let (topic, produced) = (project.topic(Table::Orders), shop.truth().produced()[&(Table::Orders, 0)]);
    let offset = rdkafka::Offset::Offset(produced as i64 - 1);
    cut.add_partition_offset(&topic, 0, offset).unwrap();
    admin.delete_records(&cut, &AdminOptions::new()).await.unwrap();
    let output = project.command(&["ingest", "--drain"]).output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(!output.status.success());
    assert!(message.contains("error: ") && message.contains(&topic) && message.contains("hint: "), "{message}");
    assert!(!message.contains("panicked"), "{message}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_do_not_answer_are_an_error_to_retry() {
    let project = Project::new().await;
    let mut command = project.command(&["ingest", "--drain"]);
    let output = command.env("ICESTREAM_SOURCE__KAFKA__BROKERS", "127.0.0.1:1").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
}
