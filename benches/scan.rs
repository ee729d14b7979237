//! How fast a table is read, compared with DataFusion's own ListingTable over the same files.
//!
//!     cargo bench --bench scan -- --json scan.json [--rows 5000000] [--rounds 7]
//!
//! The contenders take turns in one process, so that a busy machine hurts them alike; what counts is the ratio of the
//! medians (ListingTable's time divided by ours: above 1 we are faster), of wall clock and of processor time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::prelude::{ParquetReadOptions, SessionContext};
use futures::TryStreamExt;
use icestream::clock::Clock;
use icestream::engine::{Engine, EngineOptions, query, register};
use icestream::ids::TableName;
use icestream::table::catalog::sqlite::SqliteCatalog;
use icestream::table::storage::{Storage, StorageOptions};
use icestream::table::{At, Lake, Table, TableDefinition};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roaring::RoaringTreemap;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const FILES: u64 = 8;
const DELETED_ONE_IN: u64 = 100;

const QUERIES: &[(&str, &str)] = &[
    ("aggregate_all", "select sum(id), max(name), sum(qty) from t.t"),
    ("one_column", "select sum(qty) from t.t"),
    ("filter_half", "select count(name), sum(id) from t.t where qty < 500"),
    ("filter_few", "select max(name), sum(id) from t.t where qty = 77"),
    ("lookup", "select name from t.t where id = 1234567"),
    ("count", "select count(*) from t.t"),
];

struct Options {
    json: Option<PathBuf>,
    rows: u64,
    rounds: usize,
}

fn options() -> Result<Options, Failure> {
    let mut options = Options { json: None, rows: 5_000_000, rounds: 7 };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--json" => options.json = Some(value()?.into()),
            "--rows" => options.rows = value()?.parse()?,
            "--rounds" => options.rounds = value()?.parse()?,
            // Cargo's own.
            "--bench" => {}
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    Ok(options)
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let threads = std::thread::available_parallelism()?.get();
    let runtime = icestream::memory::runtime(Some(threads))?;
    runtime.block_on(run(options, threads))
}

async fn run(options: Options, threads: usize) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let storage = Storage::new(StorageOptions::default())?;
    let warehouse = format!("file://{}/warehouse", folder.path().display());
    let catalog = SqliteCatalog::open("bench", folder.path().join("catalog.db"), warehouse, storage.clone()).await?;
    let lake = Lake::new(Arc::new(catalog), storage, Clock::system());
    let whole = fill(&lake, &"t.whole".parse()?, options.rows).await?;
    let holed = delete_some(fill(&lake, &"t.holed".parse()?, options.rows).await?).await?;
    let files = whole.view(At::Head)?.files(None).await?;
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    let data = files[0].path.trim_start_matches("file://");
    let data = data.rsplit_once('/').map_or(data, |(folder, _)| folder);

    // One engine each, so that nobody reads footers that another has cached.
    let session = |name: &str| -> Result<SessionContext, Failure> {
        let spill_dir = folder.path().join(name);
        Ok(Engine::new(&EngineOptions { memory_bytes: 2 << 30, threads, spill_dir })?.session())
    };
    let name: TableName = "t.t".parse()?;
    let listing = session("listing")?;
    listing.sql("create schema t").await?;
    listing.register_parquet("t.t", data, ParquetReadOptions::default()).await?;
    let plain = session("plain")?;
    register(&plain, &name, whole.view(At::Head)?)?;
    let deleted = session("deleted")?;
    register(&deleted, &name, holed.view(At::Head)?)?;
    let contenders = [("listing", listing), ("iceberg", plain), ("iceberg_1_percent_deleted", deleted)];

    let mut report = BTreeMap::new();
    for (title, sql) in QUERIES {
        let mut times: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
        // The first round warms up: files in the page cache, footers in ours.
        for round in 0..=options.rounds {
            for turn in 0..contenders.len() {
                let (contender, context) = &contenders[(round + turn) % contenders.len()];
                let (wall, processor) = (Instant::now(), processor_seconds()?);
                query(context, sql).await?.try_collect::<Vec<RecordBatch>>().await?;
                let spent = (wall.elapsed().as_secs_f64(), processor_seconds()? - processor);
                if round > 0 {
                    times.entry(contender).or_default().push(spent);
                }
            }
        }
        let median = |contender: &str, part: fn(&(f64, f64)) -> f64| {
            let mut values: Vec<f64> = times[contender].iter().map(part).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let mut of_query = serde_json::Map::new();
        for (contender, _) in &contenders {
            let (wall, processor) = (median(contender, |t| t.0), median(contender, |t| t.1));
            let ratio = median("listing", |t| t.0) / wall;
            let processor_ratio = median("listing", |t| t.1) / processor;
            println!(
                "{title:14} {contender:26} {:9.2} ms  cpu {:9.2} ms  ratio {ratio:5.2}  cpu ratio {processor_ratio:5.2}",
                wall * 1e3,
                processor * 1e3
            );
            let values = serde_json::json!({
                "wall_seconds": wall, "cpu_seconds": processor, "wall_ratio": ratio, "cpu_ratio": processor_ratio,
                "rows_per_second": options.rows as f64 / wall, "rounds": times[contender],
            });
            of_query.insert(contender.to_string(), values);
        }
        report.insert(*title, of_query);
    }
    let report = serde_json::json!({
        "rows": options.rows, "files": FILES, "bytes": bytes, "threads": threads, "rounds": options.rounds,
        "queries": report,
    });
    if let Some(path) = options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    Ok(())
}

/// A table of eight commits, a file each.
async fn fill(lake: &Lake, name: &TableName, rows: u64) -> Result<Table, Failure> {
    let schema = Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("name", DataType::Utf8, true),
        Field::new("qty", DataType::Int64, true),
    ]));
    let definition = TableDefinition {
        name: name.clone(),
        schema: schema.clone(),
        partition: Vec::new(),
        // A quarter of a million rows or so.
        properties: [("write.parquet.row-group-size-bytes".to_string(), (2 << 20).to_string())].into(),
    };
    let mut table = lake.create(&definition).await?;
    for number in 0..FILES {
        let mut writer = table.writer(None)?;
        let mut random = StdRng::seed_from_u64(number);
        let (mut next, end) = (number * rows / FILES, (number + 1) * rows / FILES);
        while next < end {
            let ids = next..end.min(next + 65_536);
            next = ids.end;
            let names: StringArray =
                ids.clone().map(|_| Some(format!("customer {:06}", random.random_range(0..200_000)))).collect();
            let qty: Int64Array = ids.clone().map(|_| Some(random.random_range(0..1000))).collect();
            let ids = Int64Array::from_iter_values(ids.map(|id| id as i64));
            let columns: Vec<ArrayRef> = vec![Arc::new(ids), Arc::new(names), Arc::new(qty)];
            writer.write(&RecordBatch::try_new(schema.clone(), columns)?).await?;
        }
        table = table.change().append(writer.finish().await?).commit().await?.table;
    }
    Ok(table)
}

/// Deletes rows by position, scattered over every file.
async fn delete_some(table: Table) -> Result<Table, Failure> {
    let view = table.view(At::Head)?;
    let mut random = StdRng::seed_from_u64(2);
    let rows: Vec<_> = view
        .files(None)
        .await?
        .into_iter()
        .map(|file| {
            let gone = (0..file.record_count).filter(|_| random.random_range(0..DELETED_ONE_IN) == 0);
            let gone = gone.collect::<RoaringTreemap>();
            (file, gone)
        })
        .collect();
    let deletes = table.write_deletes(&rows).await?;
    Ok(table.change().row_delta(&view, Vec::new(), deletes).commit().await?.table)
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
