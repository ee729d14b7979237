//! History out of object storage and of a real broker, by the program itself.

use std::collections::BTreeMap;
use std::process::{Command, Output, Stdio};

use icestream::clock::Clock;
use icestream::config::Config;
use icestream::pipeline;
use serde_json::{Value, json};

use crate::auditor::{self, UpTo};
use crate::project::{Project, TABLES};
use crate::services::{namespace, services, storage};

const TOPIC: &str = "shop.public.orders";

/// The summary of a backfill that was done.
fn told(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["backfilled"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_sink_left_in_a_bucket_comes_once() {
    let services = &services();
    let (storage, prefix) = (storage(services), format!("s3://{}/{}", services.bucket, namespace()));
    let line = |id: i64| {
        format!("{}\n", json!({"op": "c", "before": null, "after": {"id": id, "note": "x".repeat(id as usize % 300)}}))
    };
    // One of them is larger than what is asked for at once.
    for (from, next) in [(0, 1_000), (1_000, 40_000), (40_000, 40_100)] {
        let lines: String = (from..next).map(line).collect();
        let path = format!("{prefix}/topics/{TOPIC}/year=2026/month=01/day=02/hour=03/{TOPIC}+0+{from:010}.json");
        storage.write(&path, lines.into_bytes().into()).await.unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let s3 = json!({
        "endpoint": services.s3_endpoint, "region": services.region, "access_key_id": services.access_key,
        "secret_access_key": "${TEST_SECRET_KEY}", "path_style": true,
    });
    let settings = json!({"name": "shop", "storage": {"s3": s3}, "warehouse": format!("{prefix}/lake")});
    std::fs::write(folder.path().join("icestream.yaml"), settings.to_string()).unwrap();
    std::fs::create_dir(folder.path().join("catalog")).unwrap();
    let columns = json!([{"name": "id", "type": "long"}, {"name": "note", "type": "string"}]);
    let table = json!({"topic": TOPIC, "key": ["id"], "columns": columns});
    std::fs::write(folder.path().join("catalog/orders.yaml"), table.to_string()).unwrap();
    let secrets = BTreeMap::from([("TEST_SECRET_KEY".to_string(), services.secret_key.clone())]);
    let backfill = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_icestream"));
        command.arg("--project").arg(folder.path()).envs(&secrets).stdin(Stdio::null());
        command.args(["backfill", "--files", &format!("{prefix}/topics/**/*.json*")]);
        told(&tokio::task::block_in_place(|| command.output().unwrap()))
    };
    assert_eq!(backfill()["rows"], 40_100);
    let again = backfill();
    assert_eq!((&again["rows"], &again["tables"]["shop_bronze.orders"]["files_skipped"]), (&json!(0), &json!(2)));

    let config = Config::load(folder.path(), &secrets, &[]).unwrap();
    let lake = pipeline::open_lake(&config, Clock::system()).await.unwrap();
    let table = lake.table(&"shop_bronze.orders".parse().unwrap()).await.unwrap();
    let rows = auditor::rows_by_engine(&table).await;
    let mut ids: Vec<(i64, i64)> =
        rows.iter().map(|row| (row["_offset"].as_i64().unwrap(), row["after"]["id"].as_i64().unwrap())).collect();
    ids.sort_unstable();
    assert!(ids == (0..40_100).map(|id| (id, id)).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_of_topics_that_were_skipped_come_once_beside_ingestion() {
    let project = Project::new().await;
    project.send(400);
    let run = |args: &[&str]| tokio::task::block_in_place(|| project.command(args).output().unwrap());
    for table in TABLES {
        let moved = run(&["offsets", "reset", table, "--to", "latest", "--yes"]);
        assert!(moved.status.success(), "{moved:?}");
    }
    project.send(200);
    let topic = project.topic("orders");
    let (from, to) = (format!("{topic}/0=10"), format!("{topic}/0=60"));
    let pod = project.pod();
    let some = told(&run(&["backfill", "--from-offset", &from, "--to-offset", &to]));
    assert!(some["rows"].as_u64().unwrap() < 50, "tombstones make no rows: {some}");
    project.send(200);
    // Between what was sent at first and what was sent then.
    let time = "2026-01-01T00:00:00.500Z";
    let dry = run(&["backfill", "--to-time", time, "--table", "orders", "--dry-run", "--json"]);
    let dry: Value = serde_json::from_slice(&dry.stdout).unwrap();
    let part = |of: &Value| {
        json!([
            of["partition"],
            of["first_offset"],
            of["last_file_from"],
            of["offsets_to_read"],
            of["ingests_from"].is_i64()
        ])
    };
    let parts: Vec<Value> = dry.as_array().unwrap().iter().map(part).collect();
    assert_eq!(parts, [json!([0, 0, 100, 50, true]), json!([1, 0, 100, 100, true])]);
    told(&run(&["backfill", "--to-time", time, "--table", "orders"]));
    told(&run(&["backfill", "--from-time", "1970-01-01"]));
    assert_eq!(told(&run(&["backfill", "--from-time", "1970-01-01"]))["rows"], 0);
    project.wait_for_all().await;
    drop(pod);
    project.drain(3);
    project.audit(&project.log(), UpTo::End).await;
    let past = run(&["backfill", "--from-offset", &format!("{topic}/0=100000")]);
    assert_eq!(past.status.code(), Some(2), "{}", String::from_utf8_lossy(&past.stderr));
}
