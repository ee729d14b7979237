//! What a long history costs: commits to one table, then how long planning a scan takes.
//!
//!     cargo bench --bench plan -- [COMMITS] [RESULT.json]
//!
//! 2,000 commits unless said otherwise.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use futures::TryStreamExt;
use icestream::clock::Clock;
use icestream::table::catalog::sqlite::SqliteCatalog;
use icestream::table::storage::{Storage, StorageOptions};
use icestream::table::{At, Lake, TableDefinition};
use serde_json::json;

const ROUNDS: usize = 11;

#[tokio::main(flavor = "multi_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // `cargo bench` adds a flag of its own.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let commits: i64 = arguments.next().map_or(Ok(2_000), |text| text.parse())?;
    let result = arguments.next();

    let folder = tempfile::tempdir()?;
    let storage = Storage::new(StorageOptions::default())?;
    let warehouse = format!("file://{}/warehouse", folder.path().display());
    let catalog = SqliteCatalog::open("bench", folder.path().join("catalog.db"), warehouse, storage.clone()).await?;
    let lake = Lake::new(Arc::new(catalog), storage, Clock::system());
    let schema =
        Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, false), Field::new("note", DataType::Utf8, true)]));
    let name = "bench.history".parse()?;
    let definition = TableDefinition {
        name,
        schema: schema.clone(),
        partition: vec!["bucket(4, id)".to_string()],
        properties: Default::default(),
    };
    let mut table = lake.create(&definition).await?;

    let started = Instant::now();
    for commit in 0..commits {
        let ids: Vec<i64> = (commit * 10..commit * 10 + 10).collect();
        let notes: Vec<String> = ids.iter().map(|id| format!("note {id}")).collect();
        let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from(ids)), Arc::new(StringArray::from(notes))];
        let mut writer = table.writer(None)?;
        writer.write(&RecordBatch::try_new(schema.clone(), columns)?).await?;
        table = table.change().append(writer.finish().await?).commit().await?.table;
    }
    let commit_seconds = started.elapsed().as_secs_f64();

    let mut plan_ms = Vec::new();
    let mut files = 0;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        // From nothing: the head, its metadata, its manifests.
        let fresh = lake.table(table.name()).await?;
        files = fresh.view(At::Head)?.files(None).await?.len();
        plan_ms.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    plan_ms.sort_by(f64::total_cmp);
    let (data_manifests, delete_manifests) = table.view(At::Head)?.manifest_counts().await?;
    let listed: Vec<_> = lake.storage().list(table.location()).try_collect().await?;
    let metadata_files = listed.iter().filter(|file| file.location.ends_with(".metadata.json")).count();

    let report = json!({
        "commits": commits,
        "commit_seconds": commit_seconds,
        "commits_per_second": commits as f64 / commit_seconds,
        "files": files,
        "plan_ms": { "min": plan_ms[0], "median": plan_ms[ROUNDS / 2], "max": plan_ms[ROUNDS - 1] },
        "data_manifests": data_manifests,
        "delete_manifests": delete_manifests,
        "metadata_files": metadata_files,
    });
    let text = serde_json::to_string_pretty(&report)?;
    println!("{text}");
    if let Some(path) = result {
        std::fs::write(path, text + "\n")?;
    }
    Ok(())
}
