//! What an incremental refresh of a gold table costs, beside computing all of it.
//!
//!     cargo bench --bench gold -- --json gold.json [--rows 100000000] [--customers 1000000] [--groups 10000] [--runs 3]
//!                                 [--model sums|times|extremes|mean] [--memory-mib 1024] [--folder DIR]
//!                                 [--set write.parquet.page-row-limit=20000 …]
//!
//! A silver table of orders, in order of their ids, each of a customer anywhere in the table; two gold tables of one
//! model with a row for each customer, one refreshed by groups and one in full. Each run changes one order of each of
//! `--groups` customers in one commit, as a merge does: position deletes, and new rows (90 % updates, 5 % inserts, 5 %
//! deletes). Then both are refreshed, which is timed until it is committed, and compared row by row.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{
    ArrayRef, AsArray, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::datasource::MemTable;
use futures::TryStreamExt;
use icestream::clock::Clock;
use icestream::engine::{Engine, EngineOptions, query, register};
use icestream::gold::{self, GoldModel, Inputs, Outcome};
use icestream::ids::TableName;
use icestream::layout;
use icestream::table::catalog::sqlite::SqliteCatalog;
use icestream::table::storage::{Storage, StorageOptions};
use icestream::table::{At, Lake, Table, TableDefinition};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roaring::RoaringTreemap;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const BATCH_ROWS: u64 = 65_536;
const START_US: i64 = 1_700_000_000_000_000;

/// What each model computes of a customer's orders.
const MODELS: &[(&str, &str)] = &[
    ("sums", "sum(total) AS spent, sum(quantity) AS units, sum(total) / count(*) AS mean"),
    ("times", "sum(total) AS spent, min(created_at) AS first_at, max(updated_at) AS last_at"),
    // One in as many changes as a customer has orders takes the greatest away.
    ("extremes", "sum(total) AS spent, max(total) AS most"),
    // Not told by changes: these groups are computed from the input.
    ("mean", "avg(total) AS mean"),
];

struct Options {
    json: Option<PathBuf>,
    folder: Option<PathBuf>,
    rows: u64,
    customers: u64,
    groups: u64,
    runs: u64,
    model: String,
    memory_mib: u64,
    /// Properties of the silver table.
    properties: Vec<(String, String)>,
}

fn options() -> Result<Options, Failure> {
    let mut options = Options {
        json: None,
        folder: None,
        rows: 100_000_000,
        customers: 1_000_000,
        groups: 10_000,
        runs: 3,
        model: "sums".to_string(),
        memory_mib: 1024,
        properties: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--json" => options.json = Some(value()?.into()),
            "--folder" => options.folder = Some(value()?.into()),
            "--rows" => options.rows = value()?.parse()?,
            "--customers" => options.customers = value()?.parse()?,
            "--groups" => options.groups = value()?.parse()?,
            "--runs" => options.runs = value()?.parse()?,
            "--model" => options.model = value()?,
            "--memory-mib" => options.memory_mib = value()?.parse()?,
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
    if options.groups > options.customers / 2 || options.groups > options.rows / 2 {
        return Err("`--groups` is at most half of the customers, and of the rows".into());
    }
    Ok(options)
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    // `RUST_LOG=icestream::gold=debug` tells which way a refresh takes.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let threads = std::thread::available_parallelism()?.get();
    let runtime = icestream::memory::runtime(Some(threads))?;
    runtime.block_on(run(options, threads))
}

async fn run(options: Options, threads: usize) -> Result<(), Failure> {
    let folder = match &options.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let storage = Storage::new(StorageOptions::default())?;
    let warehouse = format!("file://{}/warehouse", folder.path().display());
    let catalog = SqliteCatalog::open("bench", folder.path().join("catalog.db"), warehouse, storage.clone()).await?;
    let lake = Lake::new(Arc::new(catalog), storage, Clock::system());
    icestream::memory::keep_within(options.memory_mib << 20);
    let spill_dir = folder.path().join("spill");
    let engine = Engine::new(&EngineOptions { memory_bytes: options.memory_mib << 20, threads, spill_dir })?;

    let known = MODELS.iter().find(|(name, _)| *name == options.model);
    let (_, columns) = known.ok_or("there is no such model")?;
    let sql = format!("SELECT customer_id, count(*) AS orders, {columns} FROM silver.orders GROUP BY customer_id");
    let by_groups = GoldModel {
        table: "gold.by_groups".parse()?,
        sql,
        group_by: vec!["customer_id".to_string()],
        expect: Vec::new(),
    };
    let in_full = GoldModel { table: "gold.in_full".parse()?, group_by: Vec::new(), ..by_groups.clone() };

    let mut orders = Orders { customers: options.customers, random: StdRng::seed_from_u64(1), next: options.rows };
    let started = Instant::now();
    let mut silver = orders.fill(&lake, options.rows, &options.properties).await?;
    let files = silver.view(At::Head)?.files(None).await?.len();
    eprintln!("wrote {} rows in {files} files in {:.1} s", options.rows, started.elapsed().as_secs_f64());
    for model in [&by_groups, &in_full] {
        refresh(&lake, &engine, model).await?;
    }

    let mut runs = Vec::new();
    for number in 0..options.runs {
        silver = orders.change(&engine, silver, options.rows, options.groups).await?;
        // Neither is always the one that finds the files read already.
        let order = if number % 2 == 0 { [&by_groups, &in_full] } else { [&in_full, &by_groups] };
        let mut seen = BTreeMap::new();
        for model in order {
            seen.insert(&model.table, refresh(&lake, &engine, model).await?);
        }
        assert_alike(&lake, &engine, &by_groups.table, &in_full.table).await?;
        let (groups, full) = (&seen[&by_groups.table], &seen[&in_full.table]);
        println!(
            "refresh {number}: {:.2} s  cpu {:.2} s  peak {} MiB ({});  in full {:.2} s  cpu {:.2} s  peak {} MiB",
            groups.wall, groups.processor, groups.peak_mib, groups.how, full.wall, full.processor, full.peak_mib
        );
        runs.push(serde_json::json!({ "incremental": groups.json(), "full": full.json(),
            "wall_ratio": groups.wall / full.wall, "cpu_ratio": groups.processor / full.processor }));
    }
    let median = |of: &str| {
        let mut values: Vec<f64> = runs.iter().filter_map(|run| run[of].as_f64()).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let (wall_ratio, cpu_ratio) = (median("wall_ratio"), median("cpu_ratio"));
    println!("incremental is {:.1} % of full, {:.1} % of its processor time", wall_ratio * 100.0, cpu_ratio * 100.0);
    let report = serde_json::json!({
        "rows": options.rows, "customers": options.customers, "changed_groups": options.groups,
        "model": options.model, "threads": threads, "memory_mib": options.memory_mib,
        "refreshes": runs, "wall_ratio": wall_ratio, "cpu_ratio": cpu_ratio,
    });
    if let Some(path) = options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
    }
    Ok(())
}

/// What a refresh cost.
struct Cost {
    wall: f64,
    processor: f64,
    peak_mib: u64,
    how: String,
}

impl Cost {
    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "wall_seconds": self.wall, "cpu_seconds": self.processor, "peak_rss_mib": self.peak_mib, "how": self.how,
        })
    }
}

async fn refresh(lake: &Lake, engine: &Engine, model: &GoldModel) -> Result<Cost, Failure> {
    forget_peak();
    let before = (Instant::now(), processor_seconds()?);
    let mut inputs = Inputs::pin(lake, std::slice::from_ref(model), BTreeSet::new()).await;
    let outcome = gold::refresh(lake, engine, model, &mut inputs).await?;
    let (wall, processor) = (before.0.elapsed().as_secs_f64(), processor_seconds()? - before.1);
    let Outcome::Refreshed(commit) = outcome else { return Err("nothing was refreshed".into()) };
    Ok(Cost { wall, processor, peak_mib: peak_mib()?, how: commit.refreshed.to_string() })
}

/// Makes orders and changes them.
struct Orders {
    customers: u64,
    random: StdRng,
    next: u64,
}

/// Whose order it is: anybody's, and always the same one's.
fn customer_of(order: u64, customers: u64) -> u64 {
    let mixed = (order ^ (order >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) % customers
}

fn schema() -> SchemaRef {
    let field = |name: &str, data_type| Field::new(name, data_type, true);
    Arc::new(Schema::new(vec![
        field("id", DataType::Int64),
        field("customer_id", DataType::Int64),
        field("status", DataType::Utf8),
        field("total", DataType::Decimal128(12, 2)),
        field("quantity", DataType::Int32),
        field("note", DataType::Utf8),
        field("created_at", layout::instant()),
        field("updated_at", layout::instant()),
    ]))
}

impl Orders {
    fn batch(&mut self, ids: &[u64], updated_us: i64) -> Result<RecordBatch, Failure> {
        const STATUS: [&str; 5] = ["pending", "paid", "packed", "shipped", "delivered"];
        let random = &mut self.random;
        let instants = |values: Vec<i64>| -> ArrayRef {
            Arc::new(TimestampMicrosecondArray::from(values).with_timezone(layout::UTC))
        };
        let statuses = ids.iter().map(|_| STATUS[random.random_range(0..STATUS.len())]);
        let statuses: ArrayRef = Arc::new(StringArray::from_iter_values(statuses));
        let totals = ids.iter().map(|_| i128::from(random.random_range(100..1_000_000)));
        let totals = Decimal128Array::from_iter_values(totals).with_data_type(DataType::Decimal128(12, 2));
        let quantities = Int32Array::from_iter_values(ids.iter().map(|_| random.random_range(1..100)));
        let notes = StringArray::from_iter_values(ids.iter().map(|_| format!("{:016x}", random.random::<u64>())));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter_values(ids.iter().map(|id| *id as i64))),
            Arc::new(Int64Array::from_iter_values(ids.iter().map(|id| customer_of(*id, self.customers) as i64))),
            statuses,
            Arc::new(totals),
            Arc::new(quantities),
            Arc::new(notes),
            instants(ids.iter().map(|id| START_US + *id as i64 * 1000).collect()),
            instants(vec![updated_us; ids.len()]),
        ];
        Ok(RecordBatch::try_new(schema(), columns)?)
    }

    async fn fill(&mut self, lake: &Lake, rows: u64, properties: &[(String, String)]) -> Result<Table, Failure> {
        let definition = TableDefinition {
            name: "silver.orders".parse()?,
            schema: schema(),
            partition: Vec::new(),
            properties: icestream::silver::storage().into_iter().chain(properties.iter().cloned()).collect(),
        };
        let table = lake.create(&definition).await?;
        let mut writer = table.writer(None)?;
        let mut next = 0;
        while next < rows {
            let end = rows.min(next + BATCH_ROWS);
            let ids: Vec<u64> = (next..end).collect();
            writer.write(&self.batch(&ids, START_US)?).await?;
            next = end;
        }
        Ok(table.change().append(writer.finish().await?).commit().await?.table)
    }

    /// Changes an order of each of so many customers.
    async fn change(&mut self, engine: &Engine, silver: Table, rows: u64, groups: u64) -> Result<Table, Failure> {
        let mut customers = HashSet::new();
        let (mut old, mut new) = (Vec::new(), Vec::new());
        while (customers.len() as u64) < groups {
            let kind = self.random.random_range(0..100);
            let id = match kind {
                0..5 => self.next,
                _ => self.random.random_range(0..rows),
            };
            self.next += u64::from(kind < 5);
            if !customers.insert(customer_of(id, self.customers)) {
                continue;
            }
            match kind {
                0..5 => new.push(id),
                5..10 => old.push(id),
                _ => {
                    old.push(id);
                    new.push(id);
                }
            }
        }
        let view = silver.view(At::Head)?;
        let session = engine.session();
        register(&session, &"silver.orders".parse()?, view.clone())?;
        let wanted: ArrayRef = Arc::new(Int64Array::from_iter_values(old.iter().map(|id| *id as i64)));
        let wanted = RecordBatch::try_from_iter([("wanted", wanted)])?;
        session.register_table("changes", Arc::new(MemTable::try_new(wanted.schema(), vec![vec![wanted]])?))?;
        let places = session
            .sql("SELECT _file, _pos FROM silver.\"orders$rows\" JOIN changes ON id = wanted")
            .await?
            .collect()
            .await?;
        let mut positions: BTreeMap<String, RoaringTreemap> = BTreeMap::new();
        for batch in &places {
            let (files, rows) = (batch.column(0).as_string::<i32>(), batch.column(1).as_primitive::<Int64Type>());
            for (file, row) in files.iter().zip(rows).filter_map(|(file, row)| file.zip(row)) {
                positions.entry(file.to_string()).or_default().insert(row as u64);
            }
        }
        let files = view.files(None).await?.into_iter();
        let doomed: Vec<_> = files.filter_map(|file| positions.remove(&file.path).map(|rows| (file, rows))).collect();
        let deletes = silver.write_deletes(&doomed).await?;
        let mut writer = silver.writer(None)?;
        new.sort_unstable();
        let updated_us = START_US + self.next as i64;
        for ids in new.chunks(BATCH_ROWS as usize) {
            writer.write(&self.batch(ids, updated_us)?).await?;
        }
        let written = writer.finish().await?;
        Ok(silver.change().row_delta(&view, written, deletes).commit().await?.table)
    }
}

async fn assert_alike(lake: &Lake, engine: &Engine, one: &TableName, other: &TableName) -> Result<(), Failure> {
    let session = engine.session();
    for table in [one, other] {
        register(&session, table, lake.table(table).await?.view(At::Head)?)?;
    }
    for (left, right) in [(one, other), (other, one)] {
        let sql = format!("select count(*) from (select * from {left} except all select * from {right}) d");
        let rows: Vec<RecordBatch> = query(&session, &sql).await?.try_collect().await?;
        let differing = rows.first().map(|batch| batch.column(0).as_primitive::<Int64Type>().value(0));
        if differing != Some(0) {
            return Err(format!("{left} has {differing:?} rows that {right} has not").into());
        }
    }
    Ok(())
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
