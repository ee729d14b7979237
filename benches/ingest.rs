//! How fast change events become committed bronze rows.
//!
//!     cargo bench --bench ingest -- --json ingest.json [--messages 500000] [--rounds 5]
//!                                   [--set write.parquet.page-size-bytes=1048576 …]
//!     cargo bench --bench ingest -- --brokers 127.0.0.1:9092 --json kafka.json [--messages 5000000]
//!                                   [--client queued.max.messages.kbytes=16384 …]
//!     cargo bench --bench ingest -- --brokers 127.0.0.1:9092 --json memory.json --tables 200 --memory 536870912
//!
//! The first form stays in memory and counts processor seconds: records of about 1 KB are decoded, made columns, encoded as
//! Parquet and committed, which is what a core has to do for a row. Since cores differ, and one does on different days, the
//! same records also go through Arrow's own JSON reader into Parquet, in turns with ours: that is what rows per second are
//! to be measured by. The second fills a topic of four partitions at a real broker and
//! drains it into a bronze table of typed columns, in a process of its own; `tests/services/kafka/up` starts a broker.
//! Rows per second count from the first question to the broker to the last commit, of all cores, the broker's part too;
//! Arrow's reader is measured after each round, on one. The third has many tables of eight
//! partitions each, the first of which gets nine of ten messages, and is about the process's peak of memory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::json::ReaderBuilder;
use bytes::Bytes;
use icestream::batch::ChangeBatchBuilder;
use icestream::bronze::{BronzeDefinition, BronzeTable, Outcome, Staging};
use icestream::change::{ChangeCounts, RawRecord};
use icestream::clock::Clock;
use icestream::decode::{Decoder, Format};
use icestream::evolution::Evolution;
use icestream::ids::TableName;
use icestream::memory;
use icestream::offsets::OffsetRange;
use icestream::pipeline::{CommitTriggers, Ingest, Route, Until, read_ahead_bytes, unobserved};
use icestream::row::{Column, RowShape};
use icestream::source::{Assignment, KafkaConfig, KafkaSource};
use icestream::table::Lake;
use icestream::table::catalog::sqlite::SqliteCatalog;
use icestream::table::storage::{Storage, StorageOptions};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use tokio::sync::watch;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const PARTITIONS: i32 = 4;
/// Rows of a commit, where the broker does not decide.
const COMMIT_ROWS: usize = 250_000;
/// Records that Arrow's reader is given beside each round with a broker.
const YARDSTICK_RECORDS: u64 = 200_000;
/// Rows that are made columns at once, as a lane does it.
const CHUNK_ROWS: usize = 8_192;

/// An order line as a shop's table may well have it.
const COLUMNS: &[(&str, &str)] = &[
    ("id", "long"),
    ("customer_id", "long"),
    ("product_id", "long"),
    ("quantity", "int"),
    ("unit_price", "decimal(12,2)"),
    ("status", "string"),
    ("email", "string"),
    ("shipping_address", "string"),
    ("note", "string"),
    ("is_gift", "boolean"),
    ("weight", "double"),
    ("placed_at", "timestamptz"),
    ("updated_at", "timestamp"),
    ("ship_on", "date"),
];

struct Options {
    brokers: Option<String>,
    /// What a process that only drains is told: the prefix of the topics.
    drain: Option<String>,
    tables: usize,
    /// The memory budget of a whole process, as `memory` in a project's settings.
    memory: usize,
    json: Option<PathBuf>,
    messages: u64,
    rounds: usize,
    /// Properties of the tables that are written in memory.
    properties: BTreeMap<String, String>,
    /// Properties of the client that reads from the broker.
    client: BTreeMap<String, String>,
}

fn options() -> Result<Options, Failure> {
    let mut options = Options {
        brokers: None,
        drain: None,
        tables: 1,
        memory: 2 << 30,
        json: None,
        messages: 500_000,
        rounds: 5,
        properties: BTreeMap::new(),
        client: BTreeMap::new(),
    };
    let mut messages = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--brokers" => options.brokers = Some(value()?),
            "--drain" => options.drain = Some(value()?),
            "--tables" => options.tables = value()?.parse()?,
            "--memory" => options.memory = value()?.parse()?,
            "--json" => options.json = Some(value()?.into()),
            "--messages" => messages = Some(value()?.parse()?),
            "--rounds" => options.rounds = value()?.parse()?,
            "--set" | "--client" => {
                let value = value()?;
                let (key, value) = value.split_once('=').ok_or("it takes KEY=VALUE")?;
                let of = if argument == "--set" { &mut options.properties } else { &mut options.client };
                of.insert(key.to_string(), value.to_string());
            }
            // Cargo's own.
            "--bench" => {}
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    let usual = if options.brokers.is_some() { 5_000_000 } else { 500_000 };
    options.messages = messages.unwrap_or(usual);
    Ok(options)
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let many = || -> Result<_, Failure> {
        let threads = std::thread::available_parallelism()?.get();
        Ok(memory::runtime(Some(threads))?)
    };
    memory::keep_within(options.memory as u64);
    let report = match (&options.brokers, &options.drain) {
        (Some(brokers), Some(prefix)) => {
            let report = many()?.block_on(drain(&options, brokers, prefix))?;
            println!("{report}");
            return Ok(());
        }
        (Some(brokers), None) => many()?.block_on(from_kafka(&options, brokers))?,
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(in_memory(&options))?
        }
    };
    if let Some(path) = options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    Ok(())
}

fn shape() -> Result<Arc<RowShape>, Failure> {
    let columns = COLUMNS.iter().map(|(name, column_type)| Ok(Column::new(name, column_type.parse()?, None)?));
    Ok(Arc::new(RowShape { columns: columns.collect::<Result<_, Failure>>()? }))
}

/// A key and a payload of about 1 KB, as Debezium's PostgreSQL connector sends them without schema blocks.
fn event(number: u64, random: &mut StdRng) -> (String, String) {
    const WORDS: [&str; 8] = ["north", "river", "stone", "market", "garden", "harbour", "chapel", "mill"];
    const STATUS: [&str; 4] = ["pending", "paid", "shipped", "delivered"];
    let mut word = || WORDS[random.random_range(0..WORDS.len())];
    let address = format!("{number} {} {} street, {}field, flat {}", word(), word(), word(), number % 97);
    let note = format!(
        "leave it behind the {} at the {} \\\"{}\\\" gate, and ring the bell of number {}; the dog of the neighbours is loud and means no harm, and whoever brings the parcel is welcome to a coffee in the kitchen",
        word(),
        word(),
        word(),
        number % 13
    );
    let (customer, product) = (random.random_range(0..1_000_000), random.random_range(0..50_000));
    let (ms, lsn) = (1_767_225_600_000 + number, 26_800_000 + number * 96);
    let price: [u8; 3] = [random.random_range(0..100), random.random(), random.random()];
    let price = base64(&price);
    let (quantity, weight) = (random.random_range(1..20), f64::from(random.random_range(1..5_000)) / 100.0);
    let after = format!(
        r#"{{"id":{number},"customer_id":{customer},"product_id":{product},"quantity":{quantity},"unit_price":"{price}","status":"{}","email":"customer{customer}@example.com","shipping_address":"{address}","note":"{note}","is_gift":{},"weight":{weight},"placed_at":"2026-01-01T{:02}:{:02}:{:02}.{:06}Z","updated_at":{}123,"ship_on":{}}}"#,
        STATUS[(number % 4) as usize],
        number.is_multiple_of(9),
        number / 3600 % 24,
        number / 60 % 60,
        number % 60,
        number % 1_000_000,
        ms,
        20_454 + number % 30
    );
    let source = format!(
        r#"{{"version":"3.0.8.Final","connector":"postgresql","name":"shop","ts_ms":{ms},"snapshot":"false","db":"shop","sequence":"[\"{}\",\"{lsn}\"]","ts_us":{ms}456,"ts_ns":{ms}456000,"schema":"public","table":"order_lines","txId":{},"lsn":{lsn},"xmin":null}}"#,
        lsn - 48,
        700 + number / 3
    );
    let handled = ms + 35;
    let payload = format!(
        r#"{{"before":null,"after":{after},"source":{source},"transaction":null,"op":"c","ts_ms":{handled},"ts_us":{handled}111,"ts_ns":{handled}111222}}"#
    );
    (format!(r#"{{"id":{number}}}"#), payload)
}

fn base64(bytes: &[u8; 3]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let group = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
    (0..4).map(|digit| char::from(ALPHABET[(group >> (18 - 6 * digit) & 63) as usize])).collect()
}

async fn lake(folder: &std::path::Path) -> Result<Lake, Failure> {
    let storage = Storage::new(StorageOptions::default())?;
    let warehouse = format!("file://{}/warehouse", folder.display());
    let catalog = SqliteCatalog::open("bench", folder.join("catalog.db"), warehouse, storage.clone()).await?;
    Ok(Lake::new(Arc::new(catalog), storage, Clock::system()))
}

/// Records as a source gives them, and how many bytes their payloads have.
fn records(count: u64) -> (Vec<RawRecord>, usize) {
    let topic: Arc<str> = "shop.public.order_lines".into();
    let mut random = StdRng::seed_from_u64(1);
    let mut bytes = 0;
    let record = |number| {
        let (key, payload) = event(number, &mut random);
        bytes += payload.len();
        RawRecord {
            topic: topic.clone(),
            partition: (number % PARTITIONS as u64) as i32,
            offset: (number / PARTITIONS as u64) as i64,
            timestamp_ms: Some(1_767_225_600_000 + number as i64),
            key: Some(Bytes::from(key)),
            payload: Some(Bytes::from(payload)),
        }
    };
    let records = (0..count).map(record).collect();
    (records, bytes)
}

async fn in_memory(options: &Options) -> Result<serde_json::Value, Failure> {
    let (records, bytes) = records(options.messages);
    println!("{} messages of {} bytes", records.len(), bytes / records.len());
    let shape = shape()?;
    let folder = tempfile::tempdir()?;
    let lake = lake(folder.path()).await?;
    let mut parts: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut decoder = Decoder::new(Format::DebeziumJson);
    for round in 0..=options.rounds {
        let given = records.clone();
        let started = processor_seconds()?;
        for record in given {
            std::hint::black_box(decoder.decode(record));
        }
        let decoded = processor_seconds()? - started;

        let definition = BronzeDefinition {
            name: TableName::new("bench", format!("round_{round}"))?,
            shape: Some(shape.clone()),
            evolution: Evolution::Evolve,
            partition: vec!["day(_ingested_at)".to_string()],
            properties: options.properties.clone(),
        };
        let mut table = BronzeTable::open(&lake, &definition).await?;
        let mut builder = ChangeBatchBuilder::new(Some(shape.clone()), 0, Clock::system());
        let (mut batch_seconds, mut write_seconds, mut rows, mut file_bytes) = (0.0, 0.0, 0, 0);
        for commit in records.chunks(COMMIT_ROWS) {
            let (mut ranges, mut counts) = (BTreeMap::<_, OffsetRange>::new(), ChangeCounts::default());
            for chunk in commit.chunks(CHUNK_ROWS) {
                let given = chunk.to_vec();
                let started = processor_seconds()?;
                builder.push_all(given.into_iter().map(|record| decoder.decode(record)))?;
                let batch = builder.finish()?;
                batch_seconds += processor_seconds()? - started;
                counts += batch.counts;
                let started = processor_seconds()?;
                match table.stage(&batch).await? {
                    Staging::Staged => {}
                    other => return Err(format!("rows were not staged: {other:?}").into()),
                }
                write_seconds += processor_seconds()? - started;
                for (partition, range) in batch.ranges {
                    ranges.entry(partition).and_modify(|known| known.next = range.next).or_insert(range);
                }
            }
            let started = processor_seconds()?;
            let Outcome::Committed(commit) = table.commit(&ranges, &BTreeMap::new(), counts).await? else {
                return Err("lost a race".into());
            };
            write_seconds += processor_seconds()? - started;
            rows += commit.rows;
            file_bytes += commit.bytes;
            if commit.counts.rejected > 0 {
                return Err(format!("{} rows were rejected", commit.counts.rejected).into());
            }
        }
        if rows != options.messages {
            return Err(format!("{rows} rows of {} messages", options.messages).into());
        }
        if round == 0 {
            println!("{} bytes a row in Parquet", file_bytes / rows);
            continue;
        }
        let yardstick = arrow_json(&records)?;
        for (part, seconds) in [
            ("arrow_json_to_parquet", yardstick),
            ("decode", decoded),
            ("decode_and_columns", batch_seconds),
            ("parquet_and_commit", write_seconds),
            ("all", batch_seconds + write_seconds),
        ] {
            parts.entry(part).or_default().push(seconds);
        }
    }
    let ratios = parts["arrow_json_to_parquet"].iter().zip(&parts["all"]).map(|(theirs, ours)| theirs / ours);
    let mut ratios: Vec<f64> = ratios.collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios[ratios.len() / 2];
    println!("{ratio:.2} times as many as Arrow's JSON reader");
    let mut report = serde_json::Map::new();
    for (part, mut seconds) in parts {
        let rounds = seconds.clone();
        seconds.sort_by(f64::total_cmp);
        let median = seconds[seconds.len() / 2];
        // What else a machine does takes time and gives none: the best round is the one that was disturbed least.
        let [rate, best] = [median, seconds[0]].map(|seconds| options.messages as f64 / seconds);
        println!("{part:24} {rate:12.0} rows/s  {:6.0} ns a row, {best:.0} in the best round", 1e9 / rate);
        report.insert(
            part.to_string(),
            serde_json::json!({
                "seconds": median, "rows_per_second": rate, "rows_per_second_in_best_round": best, "rounds": rounds,
            }),
        );
    }
    Ok(serde_json::json!({
        "messages": options.messages, "bytes_per_message": bytes / records.len(), "seconds": "of processor, all threads",
        "times_arrow_json": ratio, "parts": report,
    }))
}

/// Processor seconds in which Arrow's reader of JSON makes columns of the same records, and Parquet files of as many rows.
/// It does less: numbers in base64 and times stay as they were sent, and nothing of a record but its payload is kept.
fn arrow_json(records: &[RawRecord]) -> Result<f64, Failure> {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let number = |name: &str| Field::new(name, DataType::Int64, true);
    let row: Fields = COLUMNS
        .iter()
        .map(|(name, column_type)| match *column_type {
            "long" | "int" | "timestamp" | "date" => number(name),
            "boolean" => Field::new(*name, DataType::Boolean, true),
            "double" => Field::new(*name, DataType::Float64, true),
            _ => text(name),
        })
        .collect();
    let source = ["version", "connector", "name", "snapshot", "db", "sequence", "schema", "table"].map(text);
    let source = source.into_iter().chain(["ts_ms", "ts_us", "ts_ns", "txId", "lsn", "xmin"].map(number));
    let schema = Arc::new(Schema::new(vec![
        Field::new("before", DataType::Struct(row.clone()), true),
        Field::new("after", DataType::Struct(row), true),
        Field::new("source", DataType::Struct(source.collect()), true),
        text("op"),
        number("ts_ms"),
    ]));
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default())).build();
    let started = processor_seconds()?;
    for commit in records.chunks(COMMIT_ROWS) {
        let mut decoder = ReaderBuilder::new(schema.clone()).with_batch_size(CHUNK_ROWS).build_decoder()?;
        let mut writer = ArrowWriter::try_new(Vec::new(), schema.clone(), Some(properties.clone()))?;
        for payload in commit.iter().filter_map(|record| record.payload.as_ref()) {
            let mut left = payload.as_ref();
            while !left.is_empty() {
                let taken = decoder.decode(left)?;
                left = &left[taken..];
                if !left.is_empty()
                    && let Some(batch) = decoder.flush()?
                {
                    writer.write(&batch)?;
                }
            }
        }
        if let Some(batch) = decoder.flush()? {
            writer.write(&batch)?;
        }
        std::hint::black_box(writer.into_inner()?);
    }
    Ok(processor_seconds()? - started)
}

async fn from_kafka(options: &Options, brokers: &str) -> Result<serde_json::Value, Failure> {
    let prefix = format!("bench{}", uuid::Uuid::new_v4().simple());
    let bytes = fill(options, brokers, &prefix).await?;
    println!("{} messages of {bytes} bytes in {} topics {prefix}.public.*", options.messages, options.tables);
    let (yardstick, _) = records(YARDSTICK_RECORDS);
    let (mut rounds, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let child = std::process::Command::new(std::env::current_exe()?)
            .args(["--brokers", brokers, "--drain", &prefix])
            .args(["--messages", &options.messages.to_string(), "--memory", &options.memory.to_string()])
            .args(options.client.iter().flat_map(|(key, value)| ["--client".to_string(), format!("{key}={value}")]))
            .output()?;
        if !child.status.success() {
            return Err(format!("the drain failed: {}", String::from_utf8_lossy(&child.stderr)).into());
        }
        let mut round: serde_json::Value = serde_json::from_slice(&child.stdout)?;
        let theirs = YARDSTICK_RECORDS as f64 / arrow_json(&yardstick)?;
        let ratio = round["rows_per_second"].as_f64().unwrap_or_default() / theirs;
        round["arrow_json_to_parquet_rows_per_second"] = theirs.into();
        round["times_arrow_json_on_one_core"] = ratio.into();
        println!("{round}");
        rounds.push(round);
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    Ok(serde_json::json!({
        "messages": options.messages, "bytes_per_message": bytes, "tables": options.tables,
        "partitions_per_table": partitions(options), "compression": "lz4", "memory_budget": options.memory,
        "client": options.client, "times_arrow_json_on_one_core": ratios.get(ratios.len() / 2),
        "threads": std::thread::available_parallelism()?.get(), "rounds": rounds,
    }))
}

fn partitions(options: &Options) -> i32 {
    if options.tables == 1 { PARTITIONS } else { 2 * PARTITIONS }
}

/// Reads everything there is into bronze, as `icestream ingest --drain` does.
async fn drain(options: &Options, brokers: &str, prefix: &str) -> Result<serde_json::Value, Failure> {
    let shape = shape()?;
    let folder = tempfile::tempdir()?;
    let lake = lake(folder.path()).await?;
    let (started, processor) = (Instant::now(), processor_seconds()?);
    let source = KafkaSource::connect(KafkaConfig {
        brokers: brokers.to_string(),
        group: prefix.to_string(),
        topics: vec![format!("{prefix}.public.*")],
        assignment: Assignment::Everything,
        discover_every: Duration::from_secs(30),
        properties: options.client.clone(),
        queue_bytes: read_ahead_bytes(options.memory as u64),
        msk_iam: None,
    })?;
    let route = |topic: &str| {
        Some(Route {
            topic: topic.to_string(),
            table: TableName::new("bench", topic.rsplit('.').next()?.to_string()).ok()?,
            shape: Some(shape.clone()),
            evolution: Evolution::Evolve,
            stop_above: None,
            partition: vec!["day(_ingested_at)".to_string()],
            properties: BTreeMap::new(),
        })
    };
    // As the project's settings have it when they say nothing else.
    let triggers =
        CommitTriggers { every: Duration::from_secs(10), rows: 500_000, bytes: 256 << 20, memory: options.memory / 2 };
    let said = |error: icestream::error::Error| error.to_string();
    let mut ingest = Ingest::start(&lake, Box::new(source), route, Format::DebeziumJson, triggers, unobserved())
        .await
        .map_err(said)?;
    let end = ingest.end().await.map_err(said)?;
    let (_until, until) = watch::channel(Until::Reached(end));
    let result = ingest.run(until).await.map_err(said)?;
    let (wall, processor) = (started.elapsed().as_secs_f64(), processor_seconds()? - processor);
    if result.rows != options.messages || result.rejected > 0 {
        return Err(format!("{} rows, {} rejected, of {}", result.rows, result.rejected, options.messages).into());
    }
    Ok(serde_json::json!({
        "rows_per_second": options.messages as f64 / wall, "wall_seconds": wall, "cpu_seconds": processor,
        "commits": result.commits, "peak_rss_bytes": peak_memory()?,
    }))
}

/// Fills the topics and says how long their payloads are.
async fn fill(options: &Options, brokers: &str, prefix: &str) -> Result<usize, Failure> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let topics: Vec<String> = (0..options.tables).map(|table| format!("{prefix}.public.order_lines_{table}")).collect();
    for some in topics.chunks(20) {
        // The events' times are those of their own story, and retention goes by them.
        let new = some.iter().map(|topic| {
            NewTopic::new(topic, partitions(options), TopicReplication::Fixed(1)).set("retention.ms", "-1")
        });
        for made in admin.create_topics(&new.collect::<Vec<_>>(), &AdminOptions::new()).await? {
            made.map_err(|(topic, code)| format!("{topic}: {code}"))?;
        }
    }
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("compression.type", "lz4")
        .set("linger.ms", "50")
        .set("batch.size", "1000000")
        .set("queue.buffering.max.kbytes", "200000")
        .create()?;
    // What is sent to a topic that the broker does not know yet may be lost.
    let until = Instant::now() + Duration::from_secs(60);
    let is_known = |topic: &String| -> Result<bool, Failure> {
        let metadata = producer.client().fetch_metadata(Some(topic), Duration::from_secs(30))?;
        let found = metadata.topics().iter().flat_map(|topic| topic.partitions());
        Ok(found.filter(|partition| partition.leader() >= 0).count() == usize::try_from(partitions(options))?)
    };
    for topic in &topics {
        while !is_known(topic)? {
            if Instant::now() > until {
                return Err(format!("the broker has not made {topic}").into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    let mut random = StdRng::seed_from_u64(1);
    let mut bytes = 0;
    for number in 0..options.messages {
        let (key, payload) = event(number, &mut random);
        bytes += payload.len();
        let table = if number % 10 > 0 { 0 } else { (number / 10) as usize % topics.len() };
        let partition = (number % partitions(options) as u64) as i32;
        let mut record = BaseRecord::to(&topics[table]).partition(partition).key(&key).payload(&payload);
        while let Err((error, back)) = producer.send(record) {
            if error.rdkafka_error_code() != Some(rdkafka::types::RDKafkaErrorCode::QueueFull) {
                return Err(error.into());
            }
            record = back;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    producer.flush(Duration::from_secs(120))?;
    let mut there = 0;
    for topic in &topics {
        for partition in 0..partitions(options) {
            let (from, to) = producer.client().fetch_watermarks(topic, partition, Duration::from_secs(30))?;
            there += (to - from).unsigned_abs();
        }
    }
    if there != options.messages {
        return Err(format!("{there} of {} messages got through", options.messages).into());
    }
    Ok(bytes / options.messages.max(1) as usize)
}

/// The most memory this process ever held.
fn peak_memory() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("the system does not say VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Processor time of all threads that are alive, to the nanosecond where the system tells it.
fn processor_seconds() -> Result<f64, Failure> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let Ok(times) = std::fs::read_to_string(task?.path().join("schedstat")) else { continue };
        nanoseconds += times.split_whitespace().next().and_then(|time| time.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(nanoseconds as f64 / 1e9)
}
