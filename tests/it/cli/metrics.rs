//! What a process tells Prometheus and Kubernetes, asked over HTTP.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};

use icestream::offsets::TopicPartition;
use icestream::source::{EmbeddedBroker, EmbeddedProducer};
use serde_json::json;

use super::*;
use crate::scrape::{address_in, ask, scrape};

const TOPIC: &str = "shop.public.orders";
const PARTITIONS: i32 = 2;
/// Records of each partition; the last of them is garbage.
const RECORDS: i64 = 40;

/// Its one row breaks the rule as soon as everything is there.
const SALES: &str = "\
/* icestream
expect: [{ name: few_orders, that: \"orders < 78\", else: warn }]
*/
SELECT count(*) AS orders, sum(total) AS total FROM shop_silver.orders
";

const BROKEN: &str =
    "icestream_broken_rule_rows{table=\"shop_gold.sales\",rule=\"few_orders\",kind=\"that\",severity=\"warn\"}";

/// A topic and a project that reads it.
struct Shop {
    _broker: EmbeddedBroker,
    producer: EmbeddedProducer,
    folder: TempDir,
}

impl Shop {
    async fn new() -> Self {
        let broker = EmbeddedBroker::start().unwrap();
        broker.create_topic(TOPIC, PARTITIONS).unwrap();
        let settings = format!(
            "name: shop\nsource: {{ kafka: {{ brokers: \"{}\", topics: [\"shop.public.*\"] }} }}\n\
             commit: {{ every: 500ms }}\nbuild: {{ every: 1s }}\n",
            broker.brokers()
        );
        let table = "key: [id]\ncolumns:\n  - { name: id, type: long }\n  - { name: total, type: long }\n";
        let folder = folder_with(&[
            ("icestream.yaml", &settings),
            ("catalog/orders.yaml", table),
            ("sql/gold/sales.sql", SALES),
        ]);
        let producer = broker.producer().unwrap();
        let shop = Shop { _broker: broker, producer, folder };
        shop.send().await;
        shop
    }

    /// Each row is new; the source's clock goes on by a second with each.
    async fn send(&self) {
        for partition in 0..PARTITIONS {
            for number in 0..RECORDS {
                let id = number * i64::from(PARTITIONS) + i64::from(partition);
                let row = json!({"id": id, "total": number});
                let source = json!({"connector": "postgresql", "lsn": 100 + id, "txId": 1, "ts_ms": 1_767_225_600_000 + id * 1000});
                let event = json!({"op": "c", "before": null, "after": row, "source": source}).to_string();
                let payload = if number == RECORDS - 1 { "garbage" } else { &event };
                let at = TopicPartition::new(TOPIC, partition);
                self.producer.send(&at, None, Some(payload.as_bytes()), 1_767_225_600_000).await.unwrap();
            }
        }
        self.producer.flush().await.unwrap();
    }

    fn start(&self, args: &str) -> Watched {
        Watched(Some(Running::start(icestream(self.folder.path(), args))))
    }
}

/// A running process that has a person's patience, and does not outlive the test.
struct Watched(Option<Running>);

impl Watched {
    fn running(&mut self) -> &mut Running {
        self.0.as_mut().unwrap()
    }

    /// Where it answers, as its log says.
    fn address(&mut self) -> SocketAddr {
        let stderr = self.running().output.path().join("stderr");
        wait_for("it says where it listens", || address_in(&std::fs::read_to_string(&stderr).unwrap()))
    }

    fn terminate(mut self) -> Ended {
        let running = self.0.take().unwrap();
        let told = Command::new("kill").args(["-TERM", &running.child.id().to_string()]).status().unwrap();
        assert!(told.success());
        running.end()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(running) = &mut self.0 {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < PATIENCE, "{what} is waited for in vain");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn of(family: &str, layer: &str, table: &str) -> String {
    format!("icestream_{family}{{layer=\"{layer}\",table=\"shop_{layer}.{table}\"}}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_numbers_are_those_of_what_was_committed() {
    let shop = Shop::new().await;
    let mut process = shop.start("run --metrics 127.0.0.1:0");
    let address = process.address();
    let sent = (RECORDS * i64::from(PARTITIONS)) as f64;
    let is_there = |numbers: &BTreeMap<String, f64>| {
        let is = |family: &str, layer: &str, table: &str, expected: f64| {
            numbers.get(&of(family, layer, table)).is_some_and(|number| *number == expected)
        };
        is("records_total", "bronze", "orders", sent)
            && is("lag_records", "bronze", "orders", 0.0)
            && is("rows_total", "silver", "orders", 78.0)
            && numbers.get(BROKEN) == Some(&1.0)
            && numbers.contains_key("icestream_last_build_timestamp_seconds")
    };
    let numbers = wait_for("everything", || Some(scrape(address)).filter(is_there));
    let number = |name: &str| numbers.get(name).copied().unwrap_or_else(|| panic!("{name} in {numbers:#?}"));
    assert_eq!(number(&of("rejected_records_total", "bronze", "orders")), 2.0);
    assert_eq!(number(&of("rows_total", "bronze", "orders")), sent);
    // The last event of a partition is garbage, and the newest change is the one before it.
    assert_eq!(number(&of("newest_change_timestamp_seconds", "bronze", "orders")), 1_767_225_677.0);
    for (layer, table) in [("bronze", "orders"), ("silver", "orders"), ("gold", "sales")] {
        assert!(number(&of("last_commit_timestamp_seconds", layer, table)) > 1_767_225_600.0);
        assert!(number(&of("commit_seconds_total", layer, table)) > 0.0);
        assert_eq!(number(&of("failures_total", layer, table)), 0.0);
        assert_eq!(number(&of("table_failing", layer, table)), 0.0);
    }
    assert_eq!(number(&of("table_stopped", "bronze", "orders")), 0.0);
    assert!(number("icestream_builds_total") >= 1.0 && number("icestream_last_build_timestamp_seconds") > 0.0);
    let commits = number(&of("commits_total", "bronze", "orders"));

    // What the process has told is what the tables hold.
    let query = |sql: &str| {
        let mut command = icestream(shop.folder.path(), "query --format csv");
        command.arg(sql);
        Running::start(command).end().done().lines().nth(1).unwrap().to_string()
    };
    assert_eq!(query("select count(*) from shop_bronze.orders"), "80");
    let snapshots = run(shop.folder.path(), "tables snapshots shop_bronze.orders --json").json();
    assert_eq!(snapshots.as_array().map(Vec::len), Some(commits as usize), "{snapshots}");

    assert_eq!(ask(address, "GET", "/livez"), (200, "ok\n".to_string()));
    assert_eq!(ask(address, "GET", "/readyz"), (200, "ok\n".to_string()));
    assert_eq!(ask(address, "GET", "/").0, 404);
    assert_eq!(ask(address, "POST", "/metrics").0, 405);

    // What comes later is counted as well; the same keys again are rows that took the place of others.
    shop.send().await;
    let numbers = wait_for("more", || {
        Some(scrape(address))
            .filter(|numbers| numbers.get(&of("records_total", "bronze", "orders")) == Some(&(2.0 * sent)))
    });
    assert!(numbers[&of("commits_total", "bronze", "orders")] > commits);

    // Somebody who asks nothing does not hold it up.
    let _idle = TcpStream::connect(address).unwrap();
    let told = Instant::now();
    let ended = process.terminate();
    assert!(ended.code == Some(0) && told.elapsed() < PATIENCE, "{ended:?} in {:?}", told.elapsed());
    assert!(TcpStream::connect(address).is_err(), "it listens no more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_in_use_is_said_before_anything_is_done() {
    let shop = Shop::new().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    insta::assert_snapshot!(run(shop.folder.path(), &format!("--log off ingest --metrics {address}")).error(2), @"
    error: metrics cannot be served at `127.0.0.1:PORT`
      caused by: Address already in use (os error 98)
      hint: another process listens there; name another port in `metrics.listen` or `--metrics`, or port 0 for one that is free
    ");
    assert!(!shop.folder.path().join("lake").exists(), "nothing was made");
    let with_variable = |args: &str| {
        let mut command = icestream(shop.folder.path(), args);
        command.env("ICESTREAM_METRICS__LISTEN", &address);
        Running::start(command).end()
    };
    assert_eq!(with_variable("--log off run --drain").code, Some(2));
    // The flag is closer at hand than the variable, and a drain ends with its server.
    assert_eq!(with_variable("--log off ingest --drain --metrics 127.0.0.1:0").code, Some(0));
    let settings = std::fs::read_to_string(shop.folder.path().join("icestream.yaml")).unwrap();
    let settings = format!("{settings}metrics: {{ listen: \"{address}\" }}\n");
    std::fs::write(shop.folder.path().join("icestream.yaml"), settings).unwrap();
    assert_eq!(run(shop.folder.path(), "--log off ingest --drain").code, Some(2));
    insta::assert_snapshot!(run(shop.folder.path(), "run --metrics 9464").stderr, @"
    error: invalid value '9464' for '--metrics <ADDR>': `9464` is no place to listen at; write `address:port`, such as `127.0.0.1:9464`

    For more information, try '--help'.
    ");
}
