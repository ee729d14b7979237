//! A project to do harm to: topics of its own on a real broker, read into two bronze tables.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use icestream::clock::Clock;
use icestream::config::Config;
use icestream::ids::TableName;
use icestream::offsets::{MARKER, Offsets};
use icestream::pipeline;
use icestream::table::{Lake, Table};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::auditor::{self, Bronze, Entry, Log, Produced, Sent, Tally, UpTo};
use crate::scrape;
use crate::services::{Services, services};

const START_MS: i64 = 1_767_225_600_000;
const PATIENCE: Duration = Duration::from_secs(120);

/// The first is typed, the second keeps its images as JSON text.
pub const TABLES: [&str; 2] = ["orders", "customers"];
pub const PARTITIONS: i32 = 2;

/// Where a project's tables are.
pub enum Place {
    /// A SQLite file and a folder, in the project's own folder.
    Folder,
    Rest {
        uri: String,
    },
    Glue {
        s3_endpoint: String,
    },
}

pub struct Project {
    folder: tempfile::TempDir,
    pub brokers: String,
    pub prefix: String,
    secrets: Vec<(String, String)>,
    sent: AtomicU64,
    started: Mutex<u32>,
    lake: tokio::sync::OnceCell<Lake>,
}

pub fn shared_broker() -> String {
    let file = std::env::var_os("ICESTREAM_KAFKA_FILE").expect("run these tests with `tests/run`");
    let kafka: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    kafka["brokers"].as_str().unwrap().to_string()
}

impl Project {
    pub async fn new() -> Self {
        Project::at(&shared_broker(), Place::Folder).await
    }

    pub async fn at(brokers: &str, place: Place) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let prefix = format!("t{}", Uuid::new_v4().simple());
        std::fs::write(folder.path().join("icestream.yaml"), settings(&prefix, &place).to_string()).unwrap();
        let columns = json!([{"name": "id", "type": "long"}, {"name": "note", "type": "string"}]);
        let orders = json!({"topic": format!("{prefix}.orders"), "key": ["id"], "columns": columns});
        std::fs::create_dir(folder.path().join("catalog")).unwrap();
        std::fs::write(folder.path().join("catalog/orders.yaml"), orders.to_string()).unwrap();
        let (sent, started, lake) = Default::default();
        let secrets = secrets(&place);
        let project = Project { folder, brokers: brokers.to_string(), prefix, secrets, sent, started, lake };
        project.make_topics(&TABLES).await;
        project
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn topic(&self, table: &str) -> String {
        format!("{}.{table}", self.prefix)
    }

    pub fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", &self.brokers).create().unwrap()
    }

    pub async fn make_topics(&self, tables: &[&str]) {
        let names: Vec<String> = tables.iter().map(|table| self.topic(table)).collect();
        let topics: Vec<NewTopic> =
            names.iter().map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1))).collect();
        let deadline = Instant::now() + PATIENCE;
        // A broker that has just deleted a topic of the same name takes a moment.
        while self.admin().create_topics(&topics, &AdminOptions::new()).await.unwrap().iter().any(Result::is_err) {
            assert!(Instant::now() < deadline, "the topics are not made");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub fn producer(&self) -> ThreadedProducer<DefaultProducerContext> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers).set("linger.ms", "2").set("message.max.bytes", "60000000");
        config.create().unwrap()
    }

    /// Sends so many records to both topics, all partitions in turn: changes, tombstones behind deletes, and now and
    /// then one that nobody can read.
    pub fn send(&self, count: u64) {
        self.send_over(count, PARTITIONS);
    }

    pub fn send_over(&self, count: u64, partitions: i32) {
        let producer = self.producer();
        let first = self.sent.fetch_add(count, Ordering::SeqCst);
        for number in first..first + count {
            let id = number % 50;
            let row = json!({"id": id, "note": format!("note {number} of {}", Uuid::new_v4())});
            let event = |op: &str, before: Value, after: Value| {
                let source = json!({"connector": "postgresql", "lsn": number, "txId": number, "ts_ms": START_MS});
                json!({"op": op, "before": before, "after": after, "source": source}).to_string()
            };
            let payload = match number % 10 {
                7 => Some(event("d", row, Value::Null)),
                8 => None,
                9 if number % 3 == 0 => Some("no event".to_string()),
                _ => Some(event("c", Value::Null, row)),
            };
            let key = json!({"id": id}).to_string();
            let table = TABLES[(number % 2) as usize];
            let partition = (number / 2 % u64::from(partitions.unsigned_abs())) as i32;
            self.put(&producer, table, partition, key.as_bytes(), payload.as_deref().map(str::as_bytes));
        }
        producer.flush(PATIENCE).unwrap();
    }

    /// Sends one record.
    pub fn put(
        &self,
        producer: &ThreadedProducer<DefaultProducerContext>,
        table: &str,
        partition: i32,
        key: &[u8],
        payload: Option<&[u8]>,
    ) {
        let topic = self.topic(table);
        let timestamp = START_MS + self.sent.load(Ordering::SeqCst) as i64;
        let mut record: BaseRecord<'_, [u8], [u8]> =
            BaseRecord::to(&topic).partition(partition).timestamp(timestamp).key(key);
        record.payload = payload;
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    /// What the topics hold, read by a client of the test's own, from the oldest record on.
    pub fn log(&self) -> Produced {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .set("group.id", format!("{}-log", self.prefix))
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .create()
            .unwrap();
        let mut produced = BTreeMap::new();
        let mut list = TopicPartitionList::new();
        let mut ends = BTreeMap::new();
        for table in TABLES {
            let topic = self.topic(table);
            let metadata = consumer.fetch_metadata(Some(&topic), PATIENCE).unwrap();
            for partition in metadata.topics()[0].partitions() {
                let (first, end) = consumer.fetch_watermarks(&topic, partition.id(), PATIENCE).unwrap();
                let entries = vec![Entry::Nothing; usize::try_from(end - first).unwrap()];
                produced.insert((topic.clone(), partition.id()), Log { first, entries });
                list.add_partition_offset(&topic, partition.id(), Offset::Offset(first)).unwrap();
                ends.insert((topic.clone(), partition.id()), end);
            }
        }
        consumer.assign(&list).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut left: u64 = produced.values().map(|log| log.entries.len() as u64).sum();
        while left > 0 {
            assert!(Instant::now() < deadline, "{left} records are not given back");
            let Some(message) = consumer.poll(Duration::from_millis(100)) else { continue };
            let message = message.unwrap();
            let log = produced.get_mut(&(message.topic().to_string(), message.partition())).unwrap();
            let index = usize::try_from(message.offset() - log.first).unwrap();
            log.entries[index] = Entry::Record(Sent {
                key: message.key().map(<[u8]>::to_vec),
                payload: message.payload().map(<[u8]>::to_vec),
                timestamp_ms: message.timestamp().to_millis().unwrap(),
            });
            // No transactions here: each offset holds a record.
            left -= 1;
        }
        Produced(produced)
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_icestream"));
        self.set_up(&mut command, arguments);
        command
    }

    /// As `command`, by a shell that does something first.
    pub fn command_after(&self, preparation: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{preparation}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_icestream")]);
        self.set_up(&mut command, arguments);
        command
    }

    fn set_up(&self, command: &mut Command, arguments: &[&str]) {
        command.args(["--project".as_ref(), self.path().as_os_str()]).args(arguments);
        command.env("ICESTREAM_SOURCE__KAFKA__BROKERS", &self.brokers).env("ICESTREAM_COMMIT__EVERY", "200ms");
        command.envs(self.secrets.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    }

    /// A process that ingests until it is told to end.
    pub fn pod(&self) -> Pod {
        self.pod_of(self.command(&["ingest"]))
    }

    pub fn pod_of(&self, mut command: Command) -> Pod {
        let mut started = self.started.lock().unwrap();
        *started += 1;
        let words = self.path().join(format!("pod-{started}.log"));
        let file = std::fs::File::create(&words).unwrap();
        let process = command.stdout(Stdio::null()).stderr(file).spawn().unwrap();
        Pod { process, words }
    }

    pub fn ingest(&self) -> Output {
        tokio::task::block_in_place(|| self.command(&["ingest", "--drain"]).output().unwrap())
    }

    /// Drains as a scheduler does, which starts a pod again that says that a retry may help.
    pub fn drain(&self, most_tries: u32) -> u32 {
        for tries in 1..=most_tries {
            let output = self.ingest();
            if output.status.success() {
                return tries;
            }
            let words = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(3), "{words}");
            println!("a try that failed: {words}");
        }
        panic!("not drained after {most_tries} tries");
    }

    pub fn config(&self) -> Config {
        Config::load(self.path(), &self.secrets.iter().cloned().collect(), &[]).unwrap()
    }

    pub fn table_name(&self, table: &str) -> TableName {
        TableName::new(self.config().namespaces.bronze, table).unwrap()
    }

    pub async fn lake(&self) -> &Lake {
        let open = || async { pipeline::open_lake(&self.config(), Clock::system()).await.unwrap() };
        self.lake.get_or_init(open).await
    }

    pub async fn table(&self, table: &str) -> Table {
        self.lake().await.table(&self.table_name(table)).await.unwrap()
    }

    /// How many offsets the tables' markers have passed. A table that is not there yet has passed none.
    pub async fn passed(&self) -> i64 {
        let mut passed = 0;
        for table in TABLES {
            // Whatever harms the pods may be in our way as well.
            let Ok(table) = self.lake().await.table(&self.table_name(table)).await else { continue };
            let Some(marker) = table.marker(MARKER) else { continue };
            let offsets = Offsets::parse(&marker).unwrap();
            passed += offsets.topics().flat_map(|(_, topic)| topic.next.values()).sum::<i64>();
        }
        passed
    }

    /// Waits until the markers have passed so many offsets.
    pub async fn wait_for(&self, least: i64) {
        self.wait_longer_for(least, PATIENCE).await;
    }

    pub async fn wait_longer_for(&self, least: i64, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let passed = self.passed().await;
            if passed >= least {
                return;
            }
            assert!(Instant::now() < deadline, "{passed} offsets after {patience:?}, {least} wanted\n{}", self.words());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until everything sent is in bronze.
    pub async fn wait_for_all(&self) {
        self.wait_for(self.sent.load(Ordering::SeqCst) as i64).await;
    }

    /// What the pods said.
    pub fn words(&self) -> String {
        let started = *self.started.lock().unwrap();
        let read = |pod| std::fs::read_to_string(self.path().join(format!("pod-{pod}.log"))).unwrap_or_default();
        (1..=started).map(|pod| format!("pod {pod}:\n{}", read(pod))).collect()
    }

    /// Both tables against what was produced.
    pub async fn audit(&self, produced: &Produced, up_to: UpTo) -> Tally {
        self.audit_by(produced, up_to, async |table| auditor::rows_by_engine(table).await).await
    }

    pub async fn audit_by(
        &self,
        produced: &Produced,
        up_to: UpTo,
        mut rows: impl AsyncFnMut(&Table) -> Vec<crate::canonical::Row>,
    ) -> Tally {
        let config = self.config();
        let mut tables = Vec::new();
        for name in TABLES {
            let table = self.table(name).await;
            let shape = config.table_of_topic(&self.topic(name)).and_then(|of| of.shape.clone());
            tables.push(Bronze::of(&table, [self.topic(name)], shape).with(rows(&table).await));
        }
        auditor::audit(produced, &tables, up_to).unwrap_or_else(|findings| panic!("{findings}\n{}", self.words()))
    }

    /// The audit that ends most tests: nothing was missed of what is in the topics now.
    pub async fn audit_all(&self) -> Tally {
        self.audit(&tokio::task::block_in_place(|| self.log()), UpTo::End).await
    }
}

/// What a project's file does not hold.
fn secrets(place: &Place) -> Vec<(String, String)> {
    if matches!(place, Place::Folder) {
        return Vec::new();
    }
    let Services { secret_key, rest_credential, .. } = services();
    let secrets = [("TEST_SECRET_KEY", secret_key), ("TEST_CREDENTIAL", rest_credential.unwrap_or_default())];
    secrets.map(|(name, value)| (name.to_string(), value)).to_vec()
}

fn settings(prefix: &str, place: &Place) -> Value {
    let Services { s3_endpoint, glue_endpoint, region, access_key, bucket, .. } = match place {
        // Nothing of it is looked at.
        Place::Folder => Services::default(),
        _ => services(),
    };
    let s3 = |endpoint: &str| {
        json!({"s3": {
            "endpoint": endpoint, "region": region, "access_key_id": access_key,
            "secret_access_key": "${TEST_SECRET_KEY}", "path_style": true,
        }})
    };
    let (catalog, warehouse, storage) = match place {
        Place::Folder => (json!({"type": "sqlite", "uri": "lake/catalog.db"}), json!("lake/warehouse"), json!({})),
        Place::Rest { uri } => {
            let warehouse = services().rest_warehouse;
            let catalog =
                json!({"type": "rest", "uri": uri, "warehouse": warehouse, "credential": "${TEST_CREDENTIAL}"});
            (catalog, json!(format!("s3://{bucket}/rest")), s3(&s3_endpoint))
        }
        Place::Glue { s3_endpoint } => (
            json!({"type": "glue", "region": region, "endpoint": glue_endpoint}),
            json!(format!("s3://{bucket}/{prefix}")),
            s3(s3_endpoint),
        ),
    };
    let properties = json!({
        "session.timeout.ms": "6000", "heartbeat.interval.ms": "1000", "topic.metadata.refresh.interval.ms": "1000",
    });
    let kafka = json!({"brokers": "localhost:9092", "topics": [format!("{prefix}.*")], "properties": properties});
    json!({
        "name": prefix, "catalog": catalog, "warehouse": warehouse, "storage": storage,
        "source": {"kafka": kafka, "format": "debezium-json"}, "memory": "512MiB",
    })
}

/// A running process, killed when it is dropped.
pub struct Pod {
    pub process: Child,
    words: PathBuf,
}

impl Pod {
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    pub fn words(&self) -> String {
        std::fs::read_to_string(&self.words).unwrap()
    }

    /// Where it answers, when it was started with `--metrics`.
    pub async fn metrics_address(&self) -> SocketAddr {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(address) = scrape::address_in(&self.words()) {
                return address;
            }
            assert!(Instant::now() < deadline, "{}", self.words());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What it holds in memory that is not part of a file, in bytes.
    pub fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Asks it to end, and waits until it has. A pod that loses a race may be in the middle of it; a retry is all it may
    /// ask for. One that was just started may not have begun to read.
    pub fn end(mut self) {
        self.signal("TERM");
        let ended = tokio::task::block_in_place(|| self.process.wait().unwrap());
        let is_asked_for = matches!(ended.code(), Some(0 | 3 | 143)) || ended.signal() == Some(15);
        assert!(is_asked_for, "{ended:?}: {}", self.words());
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A broker of one test's own, which may die.
pub struct OwnBroker {
    folder: tempfile::TempDir,
    pub brokers: String,
    command: Vec<String>,
    first_pid: u64,
    again: Option<Child>,
}

impl OwnBroker {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let up = format!("{}/tests/services/kafka/up", env!("CARGO_MANIFEST_DIR"));
        let started = Command::new(up).arg(folder.path()).stdin(Stdio::null()).status().unwrap();
        assert!(started.success());
        let told: Value =
            serde_json::from_str(&std::fs::read_to_string(folder.path().join("kafka.json")).unwrap()).unwrap();
        OwnBroker {
            brokers: told["brokers"].as_str().unwrap().to_string(),
            command: serde_json::from_value(told["broker_commands"][0].clone()).unwrap(),
            first_pid: told["broker_pids"][0].as_u64().unwrap(),
            again: None,
            folder,
        }
    }

    pub fn kill(&mut self) {
        match &mut self.again {
            Some(process) => {
                let _ = process.kill();
                let _ = process.wait();
            }
            None => drop(Command::new("kill").args(["-KILL", &self.first_pid.to_string()]).status()),
        }
    }

    /// Starts it again on the same data, and waits until it answers.
    pub fn restart(&mut self) {
        let words = std::fs::File::create(self.folder.path().join("again.log")).unwrap();
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).stdin(Stdio::null()).stdout(words.try_clone().unwrap()).stderr(words);
        self.again = Some(command.spawn().unwrap());
        let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &self.brokers).create().unwrap();
        let deadline = Instant::now() + PATIENCE;
        while client.fetch_metadata(None, Duration::from_secs(1)).is_err() {
            assert!(Instant::now() < deadline, "the broker does not come back");
        }
    }
}

impl Drop for OwnBroker {
    fn drop(&mut self) {
        self.kill();
    }
}
