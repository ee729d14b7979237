//! `discover` with a real broker: what it drafts is what the shop's events are read with.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use icestream::demo::{Record, Shop, Table};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;
use uuid::Uuid;

/// What `pg_dump --schema-only` says of the shop.
const SCHEMA: &str = "
SET client_encoding = 'UTF8';
CREATE TABLE public.customers (id integer NOT NULL, name text, email text, country text, segment text, birth_date date,
    notes text, is_active boolean, created_at timestamp with time zone, updated_at timestamp with time zone);
CREATE TABLE public.products (id integer NOT NULL, name text, description text, price numeric(10,2),
    stock_quantity integer, created_at timestamp without time zone, updated_at timestamp without time zone);
CREATE TABLE public.orders (id integer NOT NULL, customer_id integer, total_amount numeric(10,2), status text,
    created_at timestamp without time zone, updated_at timestamp without time zone);
CREATE TABLE public.order_items (id integer NOT NULL, order_id integer, product_id integer, quantity integer,
    price numeric(10,2), created_at timestamp without time zone);
COPY public.orders (id) FROM stdin;
1
\\.
ALTER TABLE ONLY public.orders ADD CONSTRAINT orders_pkey PRIMARY KEY (id);
";

fn brokers() -> String {
    let file = std::env::var_os("ICESTREAM_KAFKA_FILE").expect("run these tests with `tests/run`");
    let kafka: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    kafka["brokers"].as_str().unwrap().to_string()
}

fn icestream(project: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_icestream"));
    command.arg("--project").arg(project).args(arguments).stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

/// The topics of the shop, filled with its life. Says how many rows of bronze that is, and how many of them rejected.
async fn fill(brokers: &str, prefix: &str) -> (u64, u64) {
    let client = || ClientConfig::new().set("bootstrap.servers", brokers).clone();
    let admin: AdminClient<DefaultClientContext> = client().create().unwrap();
    let names: Vec<(String, i32)> =
        Table::ALL.map(|table| (format!("{prefix}.{}", table.topic()), table.partitions())).to_vec();
    let topics: Vec<NewTopic> =
        names.iter().map(|(name, count)| NewTopic::new(name, *count, TopicReplication::Fixed(1))).collect();
    for made in admin.create_topics(&topics, &AdminOptions::new()).await.unwrap() {
        made.unwrap();
    }
    let producer: ThreadedProducer<DefaultProducerContext> = client().set("linger.ms", "5").create().unwrap();
    let mut shop = Shop::new(11, 1_767_225_600_000_000, 5_000);
    let mut records: Vec<Record> = Vec::new();
    while shop.next_transaction(&mut records) {
        for record in &records {
            let topic = format!("{prefix}.{}", record.table.topic());
            let mut message: BaseRecord<'_, [u8], [u8]> =
                BaseRecord::to(&topic).partition(record.partition).timestamp(record.timestamp_ms);
            message.key = record.key.as_deref();
            message.payload = record.payload.as_deref();
            producer.send(message).map_err(|(error, _)| error).unwrap();
        }
    }
    producer.flush(Duration::from_secs(30)).unwrap();
    let rows = Table::ALL.iter().map(|table| shop.truth().bronze_rows(*table)).sum();
    // The shop sends one record that is garbage.
    (rows, 1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_drafted_takes_every_record_and_moves_no_offsets() {
    let (brokers, prefix) = (brokers(), format!("d{}", Uuid::new_v4().simple()));
    let (rows, rejected) = fill(&brokers, &prefix).await;
    let project = tempfile::tempdir().unwrap();
    let settings = format!(
        "name: shop\ncatalog: {{ type: sqlite, uri: catalog.db }}\nwarehouse: warehouse\nsource:\n  kafka: {{ brokers: \
         \"{brokers}\", group: {prefix}, topics: [\"{prefix}.*\"] }}\n"
    );
    std::fs::write(project.path().join("icestream.yaml"), settings).unwrap();
    let schema = project.path().join("schema.sql");
    std::fs::write(&schema, SCHEMA).unwrap();

    let ddl = schema.to_str().unwrap();
    let output = icestream(project.path(), &["discover", "--sample", "400", "--ddl", ddl, "--write", "--json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let drafts = shown["drafts"].as_array().unwrap();
    assert_eq!(drafts.len(), Table::ALL.len(), "{shown}");
    for draft in drafts {
        assert_eq!((&draft["key"], &draft["undeclarable"]), (&serde_json::json!(["id"]), &Value::Null), "{draft}");
        let columns = draft["columns"].as_array().unwrap().iter();
        let text: String = columns
            .map(|column| {
                format!("  {}: {} as {}\n", column["name"], column["type"], column["encoding"]).replace('"', "")
            })
            .collect();
        let sample = std::fs::read_to_string(format!("catalog/{}.yaml", draft["table"].as_str().unwrap())).unwrap();
        let declared = icestream::config::Config::load(Path::new("."), &Default::default(), &[]).unwrap();
        let table = declared.tables.iter().find(|table| table.name == draft["table"].as_str().unwrap()).unwrap();
        let expected: String = table.shape.as_ref().unwrap().columns.iter().fold(String::new(), |text, column| {
            format!("{text}  {}: {} as {}\n", column.name, column.column_type, column.encoding)
        });
        assert_eq!(text, expected, "the sample project's own file:\n{sample}");
    }

    let consumer: BaseConsumer =
        ClientConfig::new().set("bootstrap.servers", &brokers).set("group.id", &prefix).create().unwrap();
    let mut partitions = TopicPartitionList::new();
    partitions.add_partition(&format!("{prefix}.shop.public.orders"), 0);
    let committed = consumer.committed_offsets(partitions, Duration::from_secs(30)).unwrap();
    assert_eq!(committed.elements()[0].offset(), Offset::Invalid);

    icestream(project.path(), &["check"]);
    let output = icestream(project.path(), &["run", "--drain"]);
    let done: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&done["ingested"]["rows"], &done["ingested"]["rejected"]), (&rows.into(), &rejected.into()), "{done}");
    assert_eq!(done["built"]["silver_merges"], Table::ALL.len());
}
