//! History out of files: what a sink left of a topic, in whatever parts and order, beside what ingestion reads itself.

use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;

use arrow::array::{
    ArrayRef, BinaryArray, Date32Array, Decimal128Array, Float64Array, Int64Array, RecordBatch, StringArray,
    StructArray, TimestampMicrosecondArray, TimestampMillisecondArray,
};
use arrow::datatypes::{DataType, Field, Fields, Schema};
use arrow::json::ReaderBuilder;
use flate2::Compression;
use flate2::write::GzEncoder;
use icestream::clock::Clock;
use icestream::config::Config;
use icestream::offsets::TopicPartition;
use icestream::pipeline;
use icestream::source::EmbeddedBroker;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::*;

const TOPIC: &str = "shop.public.orders";
const PARTITIONS: i32 = 2;
/// Records of each partition.
const RECORDS: i64 = 300;
/// Offsets of a file.
const FLUSH: i64 = 50;

/// Behind each delete stands a record without a value, which makes no row, and which the sink leaves out.
fn is_tombstone(offset: i64) -> bool {
    offset > 1 && offset % 11 == 1
}

/// The record of an offset: keys live, change and die, in the order of the source.
fn event(partition: i32, offset: i64) -> Value {
    let number = offset * i64::from(PARTITIONS) + i64::from(partition);
    let id = (offset * 7 % 40) * i64::from(PARTITIONS) + i64::from(partition);
    let row = json!({"id": id, "note": format!("{partition}/{offset}")});
    let (op, before, after) = match offset > 0 && offset % 11 == 0 {
        true => ("d", row, Value::Null),
        false => ("c", Value::Null, row),
    };
    let (lsn, ms) = (1000 + number, 1_767_225_600_000_i64 + number);
    let sequence = format!("[\"{lsn}\",\"{lsn}\"]");
    let source = json!({"connector": "postgresql", "ts_ms": ms, "lsn": lsn, "sequence": sequence});
    json!({"op": op, "before": before, "after": after, "source": source})
}

/// What bronze has to hold of a range of each partition.
fn rows_of(range: Range<i64>) -> Vec<String> {
    let row = |partition: i32, offset: i64| {
        let event = event(partition, offset);
        let op = event["op"].as_str().unwrap();
        let image = if op == "d" { &event["before"] } else { &event["after"] };
        format!("{TOPIC},{partition},{offset},{op},{},{}", image["id"], image["note"].as_str().unwrap())
    };
    let offsets = || range.clone().filter(|offset| !is_tombstone(*offset));
    (0..PARTITIONS).flat_map(|partition| offsets().map(move |offset| row(partition, offset))).collect()
}

fn all_rows() -> Vec<String> {
    rows_of(0..RECORDS)
}

/// The rows that are left when everything has happened in order.
fn expected_silver() -> Vec<String> {
    let mut rows = BTreeMap::new();
    for partition in 0..PARTITIONS {
        for offset in (0..RECORDS).filter(|offset| !is_tombstone(*offset)) {
            let event = event(partition, offset);
            match event["op"].as_str().unwrap() {
                "d" => drop(rows.remove(&event["before"]["id"].as_i64().unwrap())),
                _ => drop(rows.insert(event["after"]["id"].as_i64().unwrap(), event["after"]["note"].clone())),
            }
        }
    }
    rows.into_iter().map(|(id, note)| format!("{id},{}", note.as_str().unwrap())).collect()
}

/// A topic, the files that a sink made of it, and a project.
struct Shop {
    _broker: EmbeddedBroker,
    folder: TempDir,
    files: Vec<PathBuf>,
}

impl Shop {
    async fn new() -> Self {
        let broker = EmbeddedBroker::start().unwrap();
        broker.create_topic(TOPIC, PARTITIONS).unwrap();
        let producer = broker.producer().unwrap();
        for partition in 0..PARTITIONS {
            let at = TopicPartition::new(TOPIC, partition);
            for offset in 0..RECORDS {
                let payload = (!is_tombstone(offset)).then(|| event(partition, offset).to_string());
                let payload = payload.as_deref().map(str::as_bytes);
                producer.send(&at, None, payload, 1_767_225_600_000 + offset).await.unwrap();
            }
        }
        producer.flush().await.unwrap();
        let settings = format!(
            "name: shop\nsource: {{ kafka: {{ brokers: \"{}\", topics: [\"shop.public.*\"] }} }}\ncommit: {{ rows: 5 }}\n",
            broker.brokers()
        );
        let table = "key: [id]\ncolumns:\n  - { name: id, type: long }\n  - { name: note, type: string }\n";
        let folder = folder_with(&[("icestream.yaml", &settings), ("catalog/orders.yaml", table)]);
        let mut shop = Shop { _broker: broker, folder, files: Vec::new() };
        for partition in 0..PARTITIONS {
            for start in (0..RECORDS).step_by(FLUSH as usize) {
                shop.sink(partition, start..start + FLUSH);
            }
        }
        shop
    }

    /// Writes a file as a sink does: the layouts of two of them, and the three ways to pack. Lines of the second partition
    /// say their offsets.
    fn sink(&mut self, partition: i32, range: Range<i64>) {
        let hour = range.start / 100;
        let offsets: Vec<i64> = range.filter(|offset| !is_tombstone(*offset)).collect();
        let line = |offset: &i64| match partition {
            0 => format!("{}\n", event(partition, *offset)),
            _ => format!("{}\n", json!({"value": event(partition, *offset), "offset": offset, "topic": TOPIC})),
        };
        let (lines, from) = (offsets.iter().map(line).collect::<String>(), offsets[0]);
        let (path, bytes) = match (partition, hour % 3) {
            (0, 2) => {
                let events = offsets.iter().map(|offset| event(0, *offset));
                let path = format!(
                    "topics/{TOPIC}/year=2026/month=01/day=01/hour={hour:02}/{TOPIC}+0+{from:010}.snappy.parquet"
                );
                (path, parquet(&events.collect::<Vec<_>>(), event_type()))
            }
            (0, packing) => (
                format!("topics/{TOPIC}/year=2026/month=01/day=01/hour={hour:02}/{TOPIC}+0+{from:010}.json"),
                if packing == 0 { lines.into_bytes() } else { zstd::encode_all(lines.as_bytes(), 0).unwrap() },
            ),
            _ => (format!("topics/{TOPIC}/partition={partition}/{TOPIC}+{partition}+{from:010}.json.gz"), gzip(&lines)),
        };
        self.put(&path, bytes);
        self.files.push(self.folder.path().join(path));
    }

    fn put(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn run(&self, args: &str) -> Ended {
        run(self.folder.path(), &format!("--log off {args}"))
    }

    /// A backfill of everything, which shows what the sink left out, or of these files, which may not.
    fn backfill(&self, files: Option<&[PathBuf]>) -> Value {
        let mut command = icestream(self.folder.path(), "--log off backfill");
        match files {
            Some(files) => drop(command.args(["--tombstones", "left-out", "--files"]).args(files)),
            None => drop(command.args(["--files", "topics/**/*+*"])),
        }
        Running::start(command).end().json()["backfilled"].clone()
    }

    fn query(&self, sql: &str) -> Vec<String> {
        let mut command = icestream(self.folder.path(), "query --format csv");
        command.arg(sql);
        Running::start(command).end().done().lines().skip(1).map(str::to_string).collect()
    }

    fn bronze(&self) -> Vec<String> {
        self.query(
            "select _topic, _topic_partition, _offset, _op, coalesce(after['id'], before['id']) id, \
             coalesce(after['note'], before['note']) note from shop_bronze.orders order by 1, 2, 3",
        )
    }

    fn silver(&self) -> Vec<String> {
        self.query("select id, note from shop_silver.orders order by 1")
    }

    /// Every record came once, and silver is what the source is.
    #[track_caller]
    fn check(&self) {
        assert!(self.bronze() == all_rows());
        self.run("build").done();
        assert!(self.silver() == expected_silver());
    }

    async fn marker(&self, key: &str) -> Option<String> {
        let config = Config::load(self.folder.path(), &Default::default(), &[]).unwrap();
        let lake = pipeline::open_lake(&config, Clock::system()).await.unwrap();
        lake.table(&"shop_bronze.orders".parse().unwrap()).await.unwrap().marker(key)
    }

    fn result(&self) -> Value {
        serde_json::from_slice(&std::fs::read(self.folder.path().join("result.json")).unwrap()).unwrap()
    }
}

/// The columns of an event.
fn event_type() -> Vec<Field> {
    let image = || DataType::Struct(fields(&[("id", DataType::Int64), ("note", DataType::Utf8)]));
    let source = [
        ("connector", DataType::Utf8),
        ("ts_ms", DataType::Int64),
        ("lsn", DataType::Int64),
        ("sequence", DataType::Utf8),
    ];
    let columns = [
        ("before", image()),
        ("after", image()),
        ("source", DataType::Struct(fields(&source))),
        ("op", DataType::Utf8),
    ];
    fields(&columns).iter().map(|field| field.as_ref().clone()).collect()
}

fn fields(fields: &[(&str, DataType)]) -> Fields {
    fields.iter().map(|(name, data_type)| Field::new(*name, data_type.clone(), true)).collect()
}

/// The file that a sink makes of values, in small row groups.
fn parquet(values: &[Value], columns: Vec<Field>) -> Vec<u8> {
    let schema = Arc::new(Schema::new(columns));
    let mut decoder = ReaderBuilder::new(schema.clone()).build_decoder().unwrap();
    decoder.serialize(values).unwrap();
    packed(&decoder.flush().unwrap().unwrap())
}

fn packed(rows: &RecordBatch) -> Vec<u8> {
    let properties = WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY);
    let properties = properties.set_max_row_group_row_count(Some(20)).build();
    let mut writer = ArrowWriter::try_new(Vec::new(), rows.schema(), Some(properties)).unwrap();
    writer.write(rows).unwrap();
    writer.into_inner().unwrap()
}

fn gzip(text: &str) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(text.as_bytes()).unwrap();
    packed.finish().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn history_before_where_ingestion_began_comes_once_and_moves_no_marker() {
    let shop = Shop::new().await;
    // Ingestion begins in the middle of a file.
    shop.run(&format!("offsets reset --topic {TOPIC} --to 120 --yes")).done();
    assert_eq!(shop.run("ingest --drain").json()["ingested"]["rows"], rows_of(120..RECORDS).len());
    let dry = shop.run("backfill --files topics --dry-run --json").json();
    let part = |of: &Value| {
        let names = ["partition", "files", "first_offset", "last_file_from", "ingests_from"];
        json!(names.map(|name| of[name].clone()))
    };
    let parts: Vec<Value> = dry.as_array().unwrap().iter().map(part).collect();
    assert_eq!(parts, [json!([0, 6, 0, 250, 300]), json!([1, 6, 0, 250, 300])]);
    let grid = shop.run("backfill --files topics --dry-run").done().to_string();
    assert!(grid.contains("ingestion reads from") && grid.lines().count() == 4, "{grid}");
    let marker = shop.marker("icestream.offsets").await;
    let told = shop.run("backfill --files topics --result result.json").json();
    assert_eq!(shop.result(), told);
    let done = &told["backfilled"];
    let expected = json!([true, rows_of(0..120).len(), 0]);
    assert_eq!(json!([done["complete"], done["rows"], done["rejected"]]), expected, "{told}");
    assert!(done["commits"].as_u64().unwrap() > 1, "{told}");
    assert_eq!(done["tables"]["shop_bronze.orders"]["files_with_gaps"], 0, "{told}");
    assert_eq!(shop.marker("icestream.offsets").await, marker);
    // What was done with is left out without being read, but for each partition's last file, whose end nothing tells.
    let again = shop.backfill(None);
    assert_eq!((&again["rows"], &again["commits"]), (&json!(0), &json!(0)), "{again}");
    shop.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn ingestion_leaves_out_what_a_backfill_brought_before_it() {
    let shop = Shop::new().await;
    // Those of the first partition, from offset 100 on.
    let rows = shop.backfill(Some(&shop.files[2..6]))["rows"].as_u64().unwrap() as usize;
    assert_eq!(rows, rows_of(100..RECORDS).len() / 2);
    insta::assert_snapshot!(shop.marker("icestream.backfilled").await.unwrap(), @r#"{"0":{"shop.public.orders":{"0":[[101,300]]}}}"#);
    assert_eq!(shop.run("ingest --drain").json()["ingested"]["rows"], all_rows().len() - rows);
    assert_eq!(shop.backfill(None)["rows"], 0);
    // A rewind reads again what it deletes, also what had come by a backfill.
    shop.run(&format!("offsets reset --topic {TOPIC} --partition 0 --to 200 --rewind --yes")).done();
    insta::assert_snapshot!(
        shop.marker("icestream.backfilled").await.unwrap(),
        @r#"{"0":{"shop.public.orders":{"0":[[0,200]],"1":[[0,100],[101,199],[200,300]]}}}"#
    );
    assert_eq!(shop.run("ingest --drain").json()["ingested"]["rows"], rows_of(200..RECORDS).len() / 2);
    shop.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn history_in_any_parts_and_order_folds_to_the_same_rows() {
    let seed: u64 = std::env::var("ICESTREAM_SEED").map_or_else(|_| rand::rng().random(), |seed| seed.parse().unwrap());
    for seed in [seed, seed.wrapping_add(1), seed.wrapping_add(2)] {
        println!("ICESTREAM_SEED={seed}");
        let mut dice = SmallRng::seed_from_u64(seed);
        let shop = Shop::new().await;
        if dice.random() {
            let to = dice.random_range(0..RECORDS);
            shop.run(&format!("offsets reset --topic {TOPIC} --to {to} --yes")).done();
        }
        let mut files = shop.files.clone();
        files.shuffle(&mut dice);
        while !files.is_empty() {
            match dice.random_range(0..5) {
                0 => drop(shop.run("ingest --drain").json()),
                1 => drop(shop.run("build").done().to_string()),
                2 => {
                    let (partition, from) = (dice.random_range(0..PARTITIONS), dice.random_range(0..RECORDS));
                    let to = dice.random_range(from..=RECORDS);
                    let of = |offset: i64| format!("{TOPIC}/{partition}={offset}");
                    let ended = shop.run(&format!("backfill --from-offset {} --to-offset {}", of(from), of(to)));
                    assert!(ended.code == Some(0) || from == to, "{ended:?}");
                }
                _ => {
                    let some = files.split_off(files.len() - dice.random_range(1..=files.len().min(5)));
                    shop.backfill(Some(&some));
                }
            }
        }
        shop.run("ingest --drain").json();
        shop.check();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backfills_that_are_killed_and_run_beside_each_other_and_ingestion_double_nothing() {
    let shop = Shop::new().await;
    let mut dice = SmallRng::seed_from_u64(7);
    for _ in 0..4 {
        let start = |args: &str| Running::start(icestream(shop.folder.path(), args));
        let all = "--log warn backfill --files topics";
        let mut running = [start(all), start(all), start("--log warn ingest --drain")];
        std::thread::sleep(Duration::from_millis(dice.random_range(50..1500)));
        let killed = dice.random_range(0..3);
        running[killed].child.kill().unwrap();
        for (index, ended) in running.into_iter().map(Running::end).enumerate() {
            assert!(index == killed || ended.code == Some(0), "{ended:?}");
        }
    }
    shop.run("ingest --drain").json();
    shop.backfill(None);
    shop.check();
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_that_dies_at_any_step_goes_on_where_it_was() {
    let shop = Shop::new().await;
    let steps = [
        "bronze-after-files",
        "backfill-before-commit",
        "commit-before-swap",
        "commit-after-swap",
        "backfill-after-commit",
    ];
    for (step, time) in steps.iter().flat_map(|step| [(step, 1), (step, 2)]) {
        let mut command = icestream(shop.folder.path(), "--log warn backfill --files topics");
        command.env("ICESTREAM_DIE_AT", format!("{step}={time}"));
        let ended = Running::start(command).end();
        assert_eq!(ended.code, None, "{step} {time}: {ended:?}");
        let rows = shop.bronze();
        assert!(rows.windows(2).all(|two| two[0] != two[1]), "{step} {time}");
        if rows.len() > all_rows().len() / 2 {
            shop.run("drop shop_bronze.orders --yes").done();
        }
    }
    shop.backfill(None);
    shop.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_cut_is_told_and_the_others_are_read() {
    let shop = Shop::new().await;
    let cut = &shop.files[8];
    let whole = std::fs::read(cut).unwrap();
    std::fs::write(cut, &whole[..whole.len() / 2]).unwrap();
    let ended = shop.run("backfill --files topics --result result.json");
    insta::assert_snapshot!(ended.error(1), @"
    error: `file://FOLDER/topics/shop.public.orders/partition=1/shop.public.orders+1+0000000101.json.gz` cannot be unpacked behind line 0
      caused by: corrupt gzip stream does not have a matching checksum
      the other files were read, and of a large one the lines before that; safe to run again
      hint: the file was probably cut short: put a whole one in its place and run this again
    ");
    let told = shop.result();
    assert_eq!(told["backfilled"]["complete"], false);
    assert!(told["backfilled"]["broken_files"][0].as_str().unwrap().ends_with("orders+1+0000000101.json.gz"), "{told}");
    let (rows, all) = (shop.bronze(), all_rows());
    assert!(rows.len() < all.len() && rows.len() >= all.len() - FLUSH as usize, "{}", rows.len());
    assert!(rows.iter().all(|row| all.contains(row)), "nothing is there that is not in the files");
    std::fs::write(cut, &whole).unwrap();
    assert_eq!(shop.backfill(None)["rows"], all.len() - rows.len());
    shop.check();
}

/// An event with a row image of these columns.
fn envelope(image: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let rows = image[0].1.len();
    let of_image = |(name, values): &(&str, ArrayRef)| Arc::new(Field::new(*name, values.data_type().clone(), true));
    let image = StructArray::from(image.iter().map(|of| (of_image(of), of.1.clone())).collect::<Vec<_>>());
    let op: ArrayRef = Arc::new(StringArray::from(vec!["c"; rows]));
    let ts_ms: ArrayRef = Arc::new(Int64Array::from(vec![1_767_225_600_000; rows]));
    RecordBatch::try_from_iter_with_nullable([
        ("after", Arc::new(image) as ArrayRef, true),
        ("op", op, true),
        ("ts_ms", ts_ms, true),
    ])
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn values_in_parquet_are_those_of_the_same_history_as_json() {
    let settings = "name: shop\nsource: { kafka: { brokers: \"127.0.0.1:1\", topics: [\"shop.public.*\"] } }\n";
    let table = "key: [id]\ncolumns:\n  - { name: id, type: long }\n  - { name: total, type: \"decimal(12,2)\" }\n  \
        - { name: born, type: date }\n  - { name: at, type: timestamp, encoding: millis }\n  \
        - { name: zoned, type: timestamptz }\n  - { name: share, type: double }\n  - { name: photo, type: binary }\n";
    let folder = folder_with(&[("icestream.yaml", settings), ("catalog/orders.yaml", table)]);
    let rows = envelope(vec![
        ("id", Arc::new(Int64Array::from(vec![1, i64::MAX, 3]))),
        (
            "total",
            Arc::new(
                Decimal128Array::from(vec![Some(-1), Some(999_999_999_999), None])
                    .with_precision_and_scale(12, 2)
                    .unwrap(),
            ),
        ),
        ("born", Arc::new(Date32Array::from(vec![Some(-25_567), Some(20_454), None]))),
        (
            "at",
            Arc::new(
                TimestampMillisecondArray::from(vec![Some(-1), Some(1_767_225_600_123), None]).with_timezone("UTC"),
            ),
        ),
        (
            "zoned",
            Arc::new(StringArray::from(vec![Some("2026-01-31T23:59:59.123456Z"), Some("0099-03-01T00:00:00Z"), None])),
        ),
        ("share", Arc::new(Float64Array::from(vec![Some(0.1), Some(f64::NAN), None]))),
        ("photo", Arc::new(BinaryArray::from_opt_vec(vec![Some(b"\x00\xff"), Some(b""), None]))),
    ]);
    let put = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    put("shop.public.orders+0+0000000000.parquet", &packed(&rows));
    let json = |id: i64, rest: Value| {
        let mut after = rest;
        after["id"] = id.into();
        json!({"after": after, "op": "c", "ts_ms": 1_767_225_600_000_i64}).to_string() + "\n"
    };
    let lines = [
        json(
            1,
            json!({"total": "/w==", "born": -25_567, "at": -1, "zoned": "2026-01-31T23:59:59.123456Z", "share": 0.1, "photo": "AP8="}),
        ),
        json(
            i64::MAX,
            json!({"total": "AOjUpQ//", "born": 20_454, "at": 1_767_225_600_123_i64, "zoned": "0099-03-01T00:00:00Z", "share": "NaN", "photo": ""}),
        ),
        json(3, json!({"total": null, "born": null, "at": null, "zoned": null, "share": null, "photo": null})),
    ];
    put("shop.public.orders+1+0000000000.json", lines.concat().as_bytes());
    let told = run(folder.path(), "--log off backfill --files *+*").json();
    assert_eq!((&told["backfilled"]["rows"], &told["backfilled"]["rejected"]), (&json!(6), &json!(0)), "{told}");
    let of = |partition: i32| {
        let mut command = icestream(folder.path(), "query --format csv");
        command.arg(format!(
            "select _offset, after['id'] id, after['total'] total, after['born'] born, after['at'] at, \
             after['zoned'] zoned, after['share'] share, encode(after['photo'], 'hex') photo from shop_bronze.orders \
             where _topic_partition = {partition} order by 1"
        ));
        Running::start(command).end().done().to_string()
    };
    insta::assert_snapshot!(of(0), @"
    _offset,id,total,born,at,zoned,share,photo
    0,1,-0.01,1900-01-01,1969-12-31T23:59:59.999,2026-01-31T23:59:59.123456Z,0.1,00ff
    1,9223372036854775807,9999999999.99,2026-01-01,2026-01-01T00:00:00.123,0099-03-01T00:00:00Z,NaN,
    2,3,,,,,,
    ");
    assert_eq!(of(0), of(1));
    // Microseconds are what Connect has no type for; a file that was cut has no footer.
    let micros = TimestampMicrosecondArray::from(vec![1]);
    let wrong = packed(&envelope(vec![("id", Arc::new(Int64Array::from(vec![9]))), ("at", Arc::new(micros))]));
    put("shop.public.orders+2+0000000000.parquet", &wrong);
    let told = run(folder.path(), "--log off backfill --files *+2+*").error(2);
    let cut = packed(&rows);
    put("shop.public.orders+2+0000000000.parquet", &cut[..cut.len() / 2]);
    let also = run(folder.path(), "--log off backfill --files *+2+*").error(1);
    put("shop.public.orders+2+0000000000.avro", b"Obj\x01\x04\x16\n\n");
    std::fs::remove_file(folder.path().join("shop.public.orders+2+0000000000.parquet")).unwrap();
    let last = run(folder.path(), "--log off backfill --files *+2+*").error(1);
    insta::assert_snapshot!(told + &also + &last, @"
    error: column `after.at` of `file://FOLDER/shop.public.orders+2+0000000000.parquet` is of type Timestamp(µs), which no sink of Kafka Connect writes
      hint: its values would not come as they are in the topic: write the file as JSON lines, or with types of Connect's
    error: `file://FOLDER/shop.public.orders+2+0000000000.parquet` cannot be unpacked
      caused by: Parquet error: Invalid Parquet file. Corrupt footer
      hint: the file was probably cut short: write it again
    error: `file://FOLDER/shop.public.orders+2+0000000000.avro` holds Avro, which is not read
      nothing of it was committed, and the other files were read; safe to run again
      hint: write its records in the same order as JSON lines or Parquet, under a name that begins like its own
    ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_commits_what_is_staged_and_the_same_command_goes_on() {
    let shop = Shop::new().await;
    let event = |offset: i64| event(0, offset * 11 + 2);
    let many: String = (0..20_000).map(|offset| format!("{}\n", event(offset))).collect();
    for from in [0, 20_000] {
        shop.put(&format!("more/{TOPIC}+0+{from}.json.gz"), gzip(&many));
    }
    let running = Running::start(icestream(
        shop.folder.path(),
        "--log off --set commit.rows=500 backfill --files more --result result.json",
    ));
    // Not before it has committed something: until it begins, a signal just ends it.
    let metadata = shop.folder.path().join("lake/warehouse/shop_bronze/orders/metadata");
    let commits = || {
        let files = std::fs::read_dir(&metadata).into_iter().flatten().flatten();
        files.filter(|file| file.path().to_string_lossy().ends_with(".metadata.json")).count()
    };
    let started = Instant::now();
    while commits() < 3 {
        assert!(started.elapsed() < PATIENCE, "it never commits");
        std::thread::sleep(Duration::from_millis(5));
    }
    let told = Command::new("kill").args(["-TERM", &running.child.id().to_string()]).status().unwrap();
    let ended = running.end();
    assert!(told.success() && matches!(ended.code, Some(0 | 143)), "{ended:?}");
    let first = shop.result()["backfilled"]["rows"].as_u64().unwrap();
    assert_eq!(shop.result()["backfilled"]["complete"], first == 40_000);
    let rest = shop.run("--set commit.rows=500 backfill --files more").json()["backfilled"]["rows"].as_u64().unwrap();
    assert_eq!(first + rest, 40_000);
    let counted =
        shop.query("select count(*), count(distinct _offset), min(_offset), max(_offset) from shop_bronze.orders");
    assert_eq!(counted, ["40000,40000,0,39999"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_several_files_come_once_rejected_ones_are_rows_and_what_is_not_known_is_asked() {
    let shop = Shop::new().await;
    let lines = |range: Range<i64>| range.map(|offset| format!("{}\n", event(1, offset * 11 + 2))).collect::<String>();
    shop.put(&format!("more/{TOPIC}+1+0.json"), lines(0..100));
    shop.put(&format!("more/{TOPIC}+1+0000000050.json"), lines(50..60) + "no JSON\n" + &lines(61..62));
    let sent = |offset: i64| json!({"value": event(1, offset), "offset": offset, "key": {"id": 1}, "partition": 1});
    let sent: String = [200, 205, 209].map(|offset| format!("{}\n", sent(offset))).concat();
    shop.put(&format!("more/{TOPIC}+1+200.json"), sent + "\n");
    assert_eq!(shop.backfill(Some(&[shop.folder.path().join("more")]))["rows"], 103);
    let offsets = shop.query("select distinct _offset from shop_bronze.orders order by 1");
    let expected: Vec<String> = (0..100).chain([200, 205, 209]).map(|offset: i64| offset.to_string()).collect();
    assert_eq!(offsets, expected);
    // One file alone does not say whether something is missing behind its deletes.
    shop.run("ingest --drain").done();
    let alone = shop.files[5].to_str().unwrap();
    let messages = [
        shop.run(&format!("backfill --files {alone}")).error(1),
        shop.run("backfill --files nowhere/*.json").error(2),
        shop.run("backfill --files topics --table customers").error(2),
        shop.run("backfill --files icestream.yaml").error(2),
        shop.run("backfill --files topics --epoch 1").error(2),
        shop.run(&format!("backfill --from-offset {TOPIC}/0=5000")).error(2),
        shop.run(&format!("backfill --from-offset {TOPIC}/7=0")).error(2),
    ];
    insta::assert_snapshot!(messages.join(""), @"
    error: `file://FOLDER/topics/shop.public.orders/year=2026/month=01/day=01/hour=02/shop.public.orders+0+0000000250.snappy.parquet` has 5 deletes, and it is not known whether the records without a value behind them were left out
      nothing of it was committed, and the other files were read; safe to run again
      hint: say it with `--tombstones left-out` or `--tombstones kept`: it decides which of its lines are the 45 records that the table holds already
    error: there are no files at `nowhere/*.json`
      hint: in a pattern, `*` stands for any characters; quote it, so that the shell leaves it as it is
    error: none of the files is of a topic that goes to table `customers`; they are for `shop_bronze.orders`
      hint: name one of those
    error: `file://FOLDER/icestream.yaml` does not say in its name which records it holds
      hint: a name says it as `<topic>+<partition>+<offset>.json.gz`; `source.files` reads files of other names, as a project's source
    error: epoch 1 of table `shop_bronze.orders` has not begun: it is in epoch 0
    error: offset 5000 is not in `shop.public.orders/0`, which holds 0 to 300
      hint: `icestream offsets show` says what the brokers hold; what they no longer have may be in files: `--files`
    error: topic `shop.public.orders` has no partition 7 on the brokers, or goes to no table that is meant
      hint: `icestream offsets show` lists the partitions
    ");
    assert_eq!(shop.run(&format!("backfill --tombstones left-out --files {alone}")).json()["backfilled"]["rows"], 0);
}
