//! How fast changes get into a silver table, and what reading it costs afterwards.
//!
//!     cargo bench --bench merge -- --json merge.json [--rows 10000000] [--changes 1000000] [--runs 1]
//!                                  [--keys int|uuid] [--scattered] [--late 0] [--scd 1|2] [--memory-mib 1024]
//!                                  [--set write.parquet.page-row-limit=20000 …] [--rebuild] [--apart] [--no-scan]
//!                                  [--pairs 7]
//!
//! The target is written as it is, in the order of its keys, as a first merge would have written it; with `--scattered`,
//! UUIDs are in no order. The changes are bronze files as ingestion lays them out: 90 % updates of uniformly random rows,
//! 5 % inserts, 5 % deletes. What is timed is `silver::merge`, until it is committed; then a scan of every
//! column, in turns with one of a table that the same rows were freshly written to. With `--rebuild`, the changes are
//! folded into a table of their own instead. With `--apart`, a process of its own does each merge, as `icestream build`
//! does; its peak of memory has nothing in it of making the changes. `--pairs 7`, along with `--scd 2`, `--keys uuid` or
//! `--late N`, has a table like that and a plain one made that often, each by a process of its own and in turns, and says
//! how many times as long the first takes: one pair says little on a machine with other things to do.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, Float64Array, Int32Array, Int64Array, ListArray, RecordBatch, StringArray,
    StructArray, TimestampMicrosecondArray, new_null_array,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use futures::TryStreamExt;
use icestream::clock::Clock;
use icestream::engine::{Engine, EngineOptions, query, register};
use icestream::ids::TableName;
use icestream::layout;
use icestream::silver::{self, OnDelete, Outcome, SilverModel};
use icestream::table::catalog::sqlite::SqliteCatalog;
use icestream::table::storage::{Storage, StorageOptions};
use icestream::table::{At, Lake, Table, TableDefinition};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const BATCH_ROWS: u64 = 65_536;
/// Changes of one bronze commit.
const CHANGES_AT_ONCE: u64 = 1_000_000;
const SCAN_ROUNDS: usize = 5;
const SCAN: &str = "select sum(customer_id), max(status), sum(total), sum(quantity), max(note), max(created_at), \
                    max(updated_at), sum(score), count(flag), max(_position) from t.t";

struct Options {
    json: Option<PathBuf>,
    folder: Option<PathBuf>,
    rows: u64,
    changes: u64,
    runs: u64,
    late: u64,
    memory_mib: u64,
    uuid: bool,
    scattered: bool,
    versions: bool,
    rebuild: bool,
    apart: bool,
    scan: bool,
    pairs: usize,
    /// The folder of a process that only merges.
    merge: Option<PathBuf>,
    /// Properties of the silver table.
    properties: Vec<(String, String)>,
}

fn options() -> Result<Options, Failure> {
    let mut options = Options {
        json: None,
        folder: None,
        rows: 10_000_000,
        changes: 1_000_000,
        runs: 1,
        late: 0,
        memory_mib: 1024,
        uuid: false,
        scattered: false,
        versions: false,
        rebuild: false,
        apart: false,
        scan: true,
        pairs: 0,
        merge: None,
        properties: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--json" => options.json = Some(value()?.into()),
            "--folder" => options.folder = Some(value()?.into()),
            "--rows" => options.rows = value()?.parse()?,
            "--changes" => options.changes = value()?.parse()?,
            "--runs" => options.runs = value()?.parse()?,
            "--late" => options.late = value()?.parse()?,
            "--memory-mib" => options.memory_mib = value()?.parse()?,
            "--keys" => options.uuid = value()? == "uuid",
            "--scattered" => options.scattered = true,
            "--scd" => options.versions = value()? == "2",
            "--rebuild" => options.rebuild = true,
            "--apart" => options.apart = true,
            "--no-scan" => options.scan = false,
            "--pairs" => options.pairs = value()?.parse()?,
            "--merge" => options.merge = Some(value()?.into()),
            "--set" => {
                let value = value()?;
                let (key, value) = value.split_once('=').ok_or("`--set` takes KEY=VALUE")?;
                options.properties.push((key.to_string(), value.to_string()));
            }
            // Cargo's own.
            "--bench" => {}
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    Ok(options)
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    // `RUST_LOG=icestream::silver=debug` tells what a merge spends its time on.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    if options.pairs > 0 {
        return in_pairs(&options);
    }
    let threads = std::thread::available_parallelism()?.get();
    let runtime = icestream::memory::runtime(Some(threads))?;
    runtime.block_on(async {
        let Some(folder) = &options.merge else { return run(options, threads).await };
        let (lake, engine) = open(&options, folder, threads).await?;
        println!("{}", merge(&lake, &engine, &model(&options)?).await?);
        Ok(())
    })
}

async fn open(options: &Options, folder: &Path, threads: usize) -> Result<(Lake, Engine), Failure> {
    let storage = Storage::new(StorageOptions::default())?;
    let warehouse = format!("file://{}/warehouse", folder.display());
    let catalog = SqliteCatalog::open("bench", folder.join("catalog.db"), warehouse, storage.clone()).await?;
    icestream::memory::keep_within(options.memory_mib << 20);
    let spill_dir = folder.join("spill");
    let engine = Engine::new(&EngineOptions { memory_bytes: options.memory_mib << 20, threads, spill_dir })?;
    Ok((Lake::new(Arc::new(catalog), storage, Clock::system()), engine))
}

fn model(options: &Options) -> Result<SilverModel, Failure> {
    Ok(SilverModel {
        table: "silver.rows".parse()?,
        from: "bronze.rows".parse()?,
        keys: vec!["id".to_string()],
        on_delete: OnDelete::Remove,
        scd: match options.versions {
            true => silver::Scd::Two { track_history: Vec::new() },
            false => silver::Scd::One,
        },
        ignore_nulls: silver::IgnoreNulls::Nowhere,
        sql: None,
        expect: Vec::new(),
    })
}

/// One merge, and what it took.
async fn merge(lake: &Lake, engine: &Engine, model: &SilverModel) -> Result<serde_json::Value, Failure> {
    forget_peak();
    let idle = peak_mib()?;
    let before = (Instant::now(), processor_seconds()?);
    let outcome = silver::merge(lake, engine, model, &silver::Lookups::default()).await?;
    let (wall, processor) = (before.0.elapsed().as_secs_f64(), processor_seconds()? - before.1);
    let Outcome::Merged(commit) = outcome else { return Err("nothing was merged".into()) };
    let peak = peak_mib()?;
    let files = lake.table(&model.table).await?.files().await?;
    let deletes = files.iter().filter(|file| file.content != "data").count();
    Ok(serde_json::json!({
        "wall_seconds": wall, "cpu_seconds": processor, "peak_rss_mib": peak, "idle_rss_mib": idle,
        "rows_written": commit.rows_written, "rows_deleted": commit.rows_deleted, "data_files": files.len() - deletes,
        "delete_files": deletes,
    }))
}

/// The same in a process of its own.
fn merge_apart(options: &Options, folder: &Path) -> Result<serde_json::Value, Failure> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.arg("--merge").arg(folder).args(["--memory-mib", &options.memory_mib.to_string()]);
    command.args(["--scd", if options.versions { "2" } else { "1" }]);
    let ended = command.stderr(std::process::Stdio::inherit()).output()?;
    if !ended.status.success() {
        return Err(format!("the merge ended with {}", ended.status).into());
    }
    Ok(serde_json::from_slice(&ended.stdout)?)
}

/// Runs of everything as it was asked for and of a plain table, in turns.
fn in_pairs(options: &Options) -> Result<(), Failure> {
    let what = match (options.versions, options.uuid, options.late > 0) {
        (true, false, false) => "versions",
        (false, true, false) => "UUIDs",
        (false, false, true) => "late events",
        _ => return Err("`--pairs` goes with one of `--scd 2`, `--keys uuid` and `--late N`".into()),
    };
    let folder = tempfile::tempdir()?;
    let json = folder.path().join("run.json");
    let (mut given, mut special, mut left) = (Vec::new(), Vec::new(), std::env::args().skip(1));
    while let Some(argument) = left.next() {
        match argument.as_str() {
            "--pairs" | "--json" => drop(left.next()),
            "--scd" | "--keys" | "--late" => special.extend([Some(argument), left.next()].into_iter().flatten()),
            "--scattered" => special.push(argument),
            _ => given.push(argument),
        }
    }
    let run = |special: &[String]| -> Result<(f64, f64), Failure> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command.args(&given).args(special).arg("--no-scan").arg("--json").arg(&json);
        let ended = command.output()?;
        if !ended.status.success() {
            return Err(String::from_utf8_lossy(&ended.stderr).into());
        }
        let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&json)?)?;
        let sum = |what: &str| -> f64 {
            report["merges"].as_array().into_iter().flatten().filter_map(|merge| merge[what].as_f64()).sum()
        };
        Ok((sum("wall_seconds"), sum("cpu_seconds")))
    };
    let mut pairs = Vec::new();
    for round in 0..options.pairs {
        let mut pair = [(0.0, 0.0); 2];
        for turn in 0..2 {
            let which = (round + turn) % 2;
            pair[which] = run([&[][..], &special][which])?;
        }
        let [(plain, plain_cpu), (other, other_cpu)] = pair;
        println!(
            "{plain:.2} s and {other:.2} s with {what}, {:.2} times; of processor {plain_cpu:.2} and {other_cpu:.2}",
            other / plain
        );
        pairs.push(pair);
    }
    let median = |of: fn(&[(f64, f64); 2]) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let report = serde_json::json!({
        "rows": options.rows, "changes": options.changes, "with": what,
        "wall_seconds": median(|[plain, _]| plain.0), "wall_seconds_with": median(|[_, other]| other.0),
        "times_as_long": median(|[plain, other]| other.0 / plain.0),
        "times_as_much_processor": median(|[plain, other]| other.1 / plain.1),
        "pairs": pairs.iter().map(|[plain, other]| serde_json::json!({
            "wall_seconds": [plain.0, other.0], "cpu_seconds": [plain.1, other.1],
        })).collect::<Vec<_>>(),
    });
    println!("with {what}, it takes {:.2} times as long", report["times_as_long"].as_f64().unwrap_or_default());
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    Ok(())
}

async fn run(options: Options, threads: usize) -> Result<(), Failure> {
    let folder = match &options.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let (lake, engine) = open(&options, folder.path(), threads).await?;
    let model = model(&options)?;
    let mut changes = Changes {
        fields: fields(options.uuid),
        random: StdRng::seed_from_u64(1),
        rows: options.rows,
        next_id: options.rows,
        time: 1,
        offset: 0,
        uuid: options.uuid,
    };
    let definition = TableDefinition {
        name: model.from.clone(),
        schema: layout::bronze_schema_with(Some(DataType::Struct(changes.fields.clone()))),
        partition: vec!["day(_ingested_at)".to_string()],
        properties: Default::default(),
    };
    let mut bronze = lake.create(&definition).await?;
    // The first merge makes the table; what was there before is written into it as it is.
    bronze = append(bronze, &changes.batches(1)?).await?;
    silver::merge(&lake, &engine, &model, &silver::Lookups::default()).await?;
    let started = Instant::now();
    let mut target = lake.table(&model.table).await?;
    if !options.properties.is_empty() {
        let change =
            options.properties.iter().fold(target.change(), |change, (key, value)| change.set_property(key, value));
        target = change.commit().await?.table;
    }
    let target = fill(target, &options, options.rows).await?;
    let files = target.view(At::Head)?.files(None).await?.len();
    eprintln!("wrote {} rows in {files} files in {:.1} s", options.rows, started.elapsed().as_secs_f64());

    let mut runs = Vec::new();
    for number in 0..options.runs {
        // Not all at once: what is measured is the merge's memory.
        let mut left = options.changes;
        while left > 0 {
            let some = left.min(CHANGES_AT_ONCE);
            let mut batches = changes.batches(some)?;
            if options.late > 0 {
                batches = with_late(batches, (options.late * some).div_ceil(options.changes))?;
            }
            bronze = append(bronze, &batches).await?;
            left -= some;
        }
        let run = match options.apart {
            true => merge_apart(&options, folder.path())?,
            false => merge(&lake, &engine, &model).await?,
        };
        if options.runs == 1 || number % 10 == 9 {
            println!("merge {number}: {run}");
        }
        runs.push(run);
    }

    if options.rebuild {
        return rebuild(&lake, &engine, &model).await;
    }
    let scan = match options.scan {
        true => Some(scanned(&lake, &engine, &model).await?),
        false => None,
    };
    let report = serde_json::json!({
        "rows": options.rows, "changes": options.changes, "late": options.late, "scd": 1 + u64::from(options.versions), "threads": threads,
        "keys": if options.uuid { "uuid" } else { "int64" }, "scattered": options.scattered, "memory_mib": options.memory_mib, "merges": runs,
        "scan": scan,
    });
    if let Some(path) = options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    Ok(())
}

/// Scans of a table that was merged into and of one that its rows were freshly written to, in turns.
async fn scanned(lake: &Lake, engine: &Engine, model: &SilverModel) -> Result<serde_json::Value, Failure> {
    let merged = lake.table(&model.table).await?;
    let fresh = rewritten(lake, engine, &merged).await?;
    let name: TableName = "t.t".parse()?;
    let mut scans = [Vec::new(), Vec::new()];
    for round in 0..=SCAN_ROUNDS {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            let session = engine.session();
            register(&session, &name, [&merged, &fresh][which].view(At::Head)?)?;
            let before = (Instant::now(), processor_seconds()?);
            query(&session, SCAN).await?.try_collect::<Vec<RecordBatch>>().await?;
            if round > 0 {
                scans[which].push((before.0.elapsed().as_secs_f64(), processor_seconds()? - before.1));
            }
        }
    }
    let median = |which: usize, part: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = scans[which].iter().map(part).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let ratio = median(0, |scan| scan.0) / median(1, |scan| scan.0);
    let processor_ratio = median(0, |scan| scan.1) / median(1, |scan| scan.1);
    println!(
        "scan: {:.2} s, freshly written {:.2} s, ratio {ratio:.2}, cpu ratio {processor_ratio:.2}",
        median(0, |scan| scan.0),
        median(1, |scan| scan.0)
    );
    Ok(serde_json::json!({
        "wall_seconds": median(0, |scan| scan.0), "fresh_wall_seconds": median(1, |scan| scan.0),
        "ratio": ratio, "cpu_ratio": processor_ratio,
    }))
}

fn fields(uuid: bool) -> Fields {
    let id = if uuid { DataType::Utf8 } else { DataType::Int64 };
    let field = |name: &str, data_type| Field::new(name, data_type, true);
    vec![
        field("id", id),
        field("customer_id", DataType::Int64),
        field("status", DataType::Utf8),
        field("total", DataType::Decimal128(12, 2)),
        field("quantity", DataType::Int32),
        field("note", DataType::Utf8),
        field("created_at", layout::instant()),
        field("updated_at", layout::instant()),
        field("score", DataType::Float64),
        field("flag", DataType::Boolean),
    ]
    .into()
}

/// Makes changes, each after the one before.
struct Changes {
    fields: Fields,
    random: StdRng,
    rows: u64,
    next_id: u64,
    time: u64,
    offset: i64,
    uuid: bool,
}

fn ids(ids: &[u64], uuid: bool) -> ArrayRef {
    if !uuid {
        return Arc::new(Int64Array::from_iter_values(ids.iter().map(|id| *id as i64)));
    }
    Arc::new(StringArray::from_iter_values(ids.iter().map(|id| uuid_of(*id).to_string())))
}

fn uuid_of(id: u64) -> uuid::Uuid {
    uuid::Uuid::from_u64_pair(id.wrapping_mul(0x9e37_79b9_7f4a_7c15), id)
}

fn columns(of: &[u64], uuid: bool, random: &mut StdRng) -> Vec<ArrayRef> {
    const STATUS: [&str; 5] = ["pending", "paid", "packed", "shipped", "delivered"];
    const START_US: i64 = 1_700_000_000_000_000;
    let rows = of.len();
    let instants = |random: &mut StdRng| {
        let values = (0..rows).map(|_| START_US + random.random_range(0..31_536_000_000_000i64));
        Arc::new(TimestampMicrosecondArray::from_iter_values(values).with_timezone(layout::UTC)) as ArrayRef
    };
    vec![
        ids(of, uuid),
        Arc::new(Int64Array::from_iter_values((0..rows).map(|_| random.random_range(0..1_000_000)))),
        Arc::new(StringArray::from_iter_values((0..rows).map(|_| STATUS[random.random_range(0..STATUS.len())]))),
        Arc::new(
            Decimal128Array::from_iter_values((0..rows).map(|_| i128::from(random.random_range(100..1_000_000))))
                .with_data_type(DataType::Decimal128(12, 2)),
        ),
        Arc::new(Int32Array::from_iter_values((0..rows).map(|_| random.random_range(1..100)))),
        Arc::new(StringArray::from_iter_values((0..rows).map(|_| format!("{:016x}", random.random::<u64>())))),
        instants(random),
        instants(random),
        Arc::new(Float64Array::from_iter_values((0..rows).map(|_| random.random::<f64>()))),
        Arc::new(BooleanArray::from_iter((0..rows).map(|_| Some(random.random::<bool>())))),
    ]
}

fn positions(times: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(times.map(|time| format!("{:020}:{:020}", time * 96, time * 96 + 40))))
}

fn now(rows: usize) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(vec![1_760_000_000_000_000; rows]).with_timezone(layout::UTC))
}

impl Changes {
    fn batches(&mut self, count: u64) -> Result<Vec<RecordBatch>, Failure> {
        let mut batches = Vec::new();
        let mut left = count;
        while left > 0 {
            let rows = left.min(BATCH_ROWS);
            batches.push(self.batch(rows as usize)?);
            left -= rows;
        }
        Ok(batches)
    }

    fn batch(&mut self, rows: usize) -> Result<RecordBatch, Failure> {
        let mut of = Vec::with_capacity(rows);
        let mut ops = Vec::with_capacity(rows);
        for _ in 0..rows {
            let (id, op) = match self.random.random_range(0..100) {
                0..90 => (self.random.random_range(0..self.rows), "u"),
                90..95 => {
                    self.next_id += 1;
                    (self.next_id - 1, "c")
                }
                _ => (self.random.random_range(0..self.rows), "d"),
            };
            of.push(id);
            ops.push(op);
        }
        let columns = columns(&of, self.uuid, &mut self.random);
        let is_delete: Vec<bool> = ops.iter().map(|op| *op == "d").collect();
        let after = StructArray::try_new(
            self.fields.clone(),
            columns.clone(),
            Some(NullBuffer::from_iter(is_delete.iter().map(|delete| !delete))),
        )?;
        let nothings = columns.iter().skip(1).map(|column| new_null_array(column.data_type(), rows));
        let before = StructArray::try_new(
            self.fields.clone(),
            std::iter::once(columns[0].clone()).chain(nothings).collect(),
            Some(NullBuffer::from_iter(is_delete.iter().copied())),
        )?;
        let (first, offset) = (self.time, self.offset);
        self.time += rows as u64;
        self.offset += rows as i64;
        let schema = layout::bronze_schema_with(Some(DataType::Struct(self.fields.clone())));
        let texts = |text: &dyn Fn(usize) -> String| -> ArrayRef {
            Arc::new(StringArray::from_iter_values((0..rows).map(text)))
        };
        let column = |field: &Arc<Field>| -> ArrayRef {
            match field.name().as_str() {
                layout::TOPIC => texts(&|_| "shop.public.rows".to_string()),
                layout::PARTITION => Arc::new(Int32Array::from(vec![0; rows])),
                layout::OFFSET => Arc::new(Int64Array::from_iter_values(offset..offset + rows as i64)),
                layout::TIMESTAMP | layout::INGESTED_AT | layout::SOURCE_TS => now(rows),
                layout::KEY => texts(&|row| format!(r#"{{"id":{}}}"#, of[row])),
                layout::OP => Arc::new(StringArray::from(ops.clone())),
                layout::POSITION => positions(first..first + rows as u64),
                layout::EPOCH => Arc::new(Int32Array::from(vec![0; rows])),
                layout::TX_ID => texts(&|row| (first + row as u64).to_string()),
                layout::SOURCE => texts(&|_| r#"{"version":"3.0","db":"shop","schema":"public"}"#.to_string()),
                layout::BEFORE => Arc::new(before.clone()),
                layout::AFTER => Arc::new(after.clone()),
                layout::UNAVAILABLE => Arc::new(ListArray::new_null(layout::unavailable_element(), rows)),
                _ => new_null_array(field.data_type(), rows),
            }
        };
        Ok(RecordBatch::try_new(schema.clone(), schema.fields().iter().map(column).collect())?)
    }
}

/// Sends some of the changes to the end, far behind what was there before them.
fn with_late(batches: Vec<RecordBatch>, late: u64) -> Result<Vec<RecordBatch>, Failure> {
    let late_of_batch = (late as usize).div_ceil(batches.len());
    let late = |batch: &RecordBatch| -> Result<RecordBatch, Failure> {
        let rows = batch.num_rows();
        let at = batch.schema().index_of(layout::POSITION)?;
        let known = batch.column(at).as_any().downcast_ref::<StringArray>().ok_or("a position is a text")?;
        let moved = (0..rows)
            .map(|row| if row < late_of_batch { format!("{:041}", row) } else { known.value(row).to_string() });
        let mut columns = batch.columns().to_vec();
        columns[at] = Arc::new(StringArray::from_iter_values(moved));
        Ok(RecordBatch::try_new(batch.schema(), columns)?)
    };
    batches.iter().map(late).collect()
}

async fn append(table: Table, batches: &[RecordBatch]) -> Result<Table, Failure> {
    let mut writer = table.writer(None)?;
    for batch in batches {
        writer.write(batch).await?;
    }
    Ok(table.change().append(writer.finish().await?).commit().await?.table)
}

/// Writes the rows that are there before the changes.
async fn fill(table: Table, options: &Options, rows: u64) -> Result<Table, Failure> {
    let schema: SchemaRef = table.schema()?;
    let mut random = StdRng::seed_from_u64(7);
    let mut writer = table.writer(None)?;
    let mut sorted = Vec::new();
    if options.uuid && !options.scattered {
        sorted.extend(0..rows);
        sorted.sort_unstable_by_key(|id| uuid_of(*id));
    }
    for first in (0..rows).step_by(BATCH_ROWS as usize) {
        let of = first..rows.min(first + BATCH_ROWS);
        let of: Vec<u64> = match sorted.get(of.start as usize..of.end as usize) {
            Some(sorted) => sorted.to_vec(),
            None => of.collect(),
        };
        let mut columns = columns(&of, options.uuid, &mut random);
        columns.push(positions(of.iter().map(|_| 1)));
        columns.push(now(of.len()));
        if options.versions {
            let current: ArrayRef = Arc::new(BooleanArray::from(vec![true; of.len()]));
            columns.extend([now(of.len()), new_null_array(&layout::instant(), of.len()), current]);
        }
        columns.push(now(of.len()));
        let plain = Schema::new(
            schema
                .fields()
                .iter()
                .zip(&columns)
                .map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true))
                .collect::<Vec<_>>(),
        );
        writer.write(&RecordBatch::try_new(Arc::new(plain), columns)?).await?;
    }
    Ok(table.change().append(writer.finish().await?).commit().await?.table)
}

/// Folds all changes into a table of their own.
async fn rebuild(lake: &Lake, engine: &Engine, model: &SilverModel) -> Result<(), Failure> {
    forget_peak();
    let before = (Instant::now(), processor_seconds()?);
    let anew = SilverModel { table: "silver.anew".parse()?, ..model.clone() };
    silver::merge(lake, engine, &anew, &silver::Lookups::default()).await?;
    let (wall, processor) = (before.0.elapsed().as_secs_f64(), processor_seconds()? - before.1);
    println!("rebuilt: {wall:.2} s  cpu {processor:.2} s  peak {} MiB", peak_mib()?);
    let session = engine.session();
    register(&session, &anew.table, lake.table(&anew.table).await?.view(At::Head)?)?;
    let sql = "select count(*), count(distinct id), sum(id), sum(customer_id), max(_position) from silver.anew";
    let rows: Vec<RecordBatch> = query(&session, sql).await?.try_collect().await?;
    println!("{}", arrow::util::pretty::pretty_format_batches(&rows)?);
    Ok(())
}

/// The same rows in a table that was written at once.
async fn rewritten(lake: &Lake, engine: &Engine, table: &Table) -> Result<Table, Failure> {
    let definition = TableDefinition {
        name: "silver.fresh".parse()?,
        schema: table.schema()?,
        partition: Vec::new(),
        properties: table
            .properties()
            .iter()
            .filter(|(key, _)| key.starts_with("write.parquet."))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    };
    let fresh = lake.create(&definition).await?;
    let session = engine.session();
    register(&session, &"t.t".parse()?, table.view(At::Head)?)?;
    let mut rows = query(&session, "select * from t.t").await?;
    let mut writer = fresh.writer(None)?;
    while let Some(batch) = rows.try_next().await? {
        writer.write(&batch).await?;
    }
    Ok(fresh.change().append(writer.finish().await?).commit().await?.table)
}

/// Processor time of the process, threads that ended included.
fn processor_seconds() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    Ok((ticks(11) + ticks(12)) / 100.0)
}

/// Lets the peak of memory start anew. Where the system does not, the peak is that of the whole process.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

fn peak_mib() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmHWM")).ok_or("no VmHWM")?;
    Ok(line.split_whitespace().nth(1).unwrap_or("0").parse::<u64>()? / 1024)
}
