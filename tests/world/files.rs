//! Files in object storage as source, by the program itself.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use flate2::write::GzEncoder;
use icestream::clock::Clock;
use icestream::config::Config;
use icestream::offsets::{MARKER, Offsets};
use icestream::pipeline;
use serde_json::{Value, json};

use crate::auditor;
use crate::services::{namespace, services, storage};

const TOPIC: &str = "shop.public.orders";
const TIME_MS: i64 = 1_767_225_600_000;

fn gzip(text: &str) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(text.as_bytes()).unwrap();
    packed.finish().unwrap()
}

fn note(id: i64) -> String {
    format!("note {id} ü \"quoted\" {}", "x".repeat(usize::try_from(id).unwrap() % 500))
}

fn event(id: i64) -> Value {
    json!({"op": "c", "before": null, "after": {"id": id, "note": note(id)}})
}

/// Lines that are the records' values, or records as a sink writes them.
fn lines(ids: std::ops::Range<i64>, is_sink: bool) -> String {
    let line = |id: i64| match is_sink {
        false => event(id),
        true => {
            json!({"value": event(id), "key": {"id": id}, "topic": TOPIC, "partition": 0, "timestamp": TIME_MS + id})
        }
    };
    ids.map(|id| format!("{}\n", line(id))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_in_a_bucket_become_bronze_rows_once() {
    let services = &services();
    let (storage, prefix) = (storage(services), format!("s3://{}/{}", services.bucket, namespace()));
    let put = async |name: &str, bytes: Vec<u8>| {
        storage.write(&format!("{prefix}/{TOPIC}/{name}"), bytes.into()).await.unwrap();
    };
    put("part-0.json", lines(0..700, false).into_bytes()).await;
    // Two files one behind the other are one file, as gzip has it.
    put("part-1.json.gz", [gzip(&lines(700..1000, true)), gzip(&lines(1000..2000, false))].concat()).await;
    put("part-2.json.zst", zstd::encode_all(lines(2000..3000, true).as_bytes(), 0).unwrap()).await;
    put("part-2.txt", b"no record".to_vec()).await;

    let folder = tempfile::tempdir().unwrap();
    let s3 = json!({
        "endpoint": services.s3_endpoint, "region": services.region, "access_key_id": services.access_key,
        "secret_access_key": "${TEST_SECRET_KEY}", "path_style": true,
    });
    let paths = [format!("{prefix}/*/*.json"), format!("{prefix}/*/*.json.gz"), format!("{prefix}/*/*.json.zst")];
    let settings = json!({
        "name": "shop", "storage": {"s3": s3}, "source": {"files": {"paths": paths}, "format": "debezium-json"},
    });
    std::fs::write(folder.path().join("icestream.yaml"), settings.to_string()).unwrap();
    std::fs::create_dir(folder.path().join("catalog")).unwrap();
    let columns = json!([{"name": "id", "type": "long"}, {"name": "note", "type": "string"}]);
    let table = json!({"topic": TOPIC, "key": ["id"], "columns": columns});
    std::fs::write(folder.path().join("catalog/orders.yaml"), table.to_string()).unwrap();
    let secrets = BTreeMap::from([("TEST_SECRET_KEY".to_string(), services.secret_key.clone())]);
    let drain = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_icestream"));
        command.arg("--project").arg(folder.path()).args(["ingest", "--drain"]).envs(&secrets).stdin(Stdio::null());
        let output = tokio::task::block_in_place(|| command.env("ICESTREAM_COMMIT__ROWS", "400").output().unwrap());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["ingested"].clone()
    };
    let ingested = drain();
    assert_eq!((&ingested["rows"], &ingested["rejected"]), (&3000.into(), &0.into()));
    assert!(ingested["commits"].as_u64().unwrap() > 1, "{ingested}");
    assert_eq!(drain()["rows"], 0);
    put("part-3.json.gz", gzip(&lines(3000..3010, false))).await;
    assert_eq!(drain()["rows"], 10);

    let config = Config::load(folder.path(), &secrets, &[]).unwrap();
    let lake = pipeline::open_lake(&config, Clock::system()).await.unwrap();
    let table = lake.table(&"shop_bronze.orders".parse().unwrap()).await.unwrap();
    let mut rows = auditor::rows_by_engine(&table).await;
    rows.sort_by_key(|row| row["_offset"].as_i64());
    let found: Vec<Value> = rows
        .iter()
        .map(|row| json!([row["_topic"], row["_topic_partition"], row["_offset"], row["after"], row["_op"]]))
        .collect();
    // A file's place among the names, and a line in it.
    let offset = |id: i64| match id {
        0..700 => id,
        700..2000 => (1 << 32) + id - 700,
        2000..3000 => (2 << 32) + id - 2000,
        _ => (3 << 32) + id - 3000,
    };
    let expected = |id: i64| json!([TOPIC, 0, offset(id), {"id": id, "note": note(id)}, "c"]);
    assert!(found == (0..3010).map(expected).collect::<Vec<_>>(), "{:?}", &found[..3]);
    let key = |row: &crate::canonical::Row| row.get("_key").cloned().unwrap_or_default();
    assert_eq!((key(&rows[0]), key(&rows[2999])), (Value::Null, json!("{\"id\":2999}")));
    let marker = Offsets::parse(&table.marker(MARKER).unwrap()).unwrap();
    assert_eq!(marker.next(TOPIC, 0), Some(4 << 32), "behind all files");
}
