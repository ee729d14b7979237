//! What real Debezium connectors sent, through bronze, as pyiceberg reads it: every value is the one the database has.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::recorded::{self, COLUMNS, CONNECTORS, Row, Topic, variants};
use crate::services::services;
use crate::support::sqlite_world;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pyiceberg_reads_the_values_the_databases_have() {
    let world = sqlite_world().await;
    let mut topics = Vec::new();
    for connector in CONNECTORS {
        for variant in variants(connector) {
            topics.extend(recorded::write(&world, connector, &variant).await);
        }
    }
    let mut answers = read(&topics).into_iter();
    let (mut compared, mut wrong) = (0, Vec::new());
    for topic in &topics {
        let answer = answers.next().unwrap();
        let found = answer["rows"].as_array().unwrap_or_else(|| panic!("{}: {answer}", topic.table));
        let rows = found.iter().map(|cells| Row { cells: cells.as_object().unwrap().clone() }).collect();
        let (of_topic, differing) = recorded::compare(topic, rows);
        compared += of_topic;
        wrong.extend(differing);
    }
    assert!(wrong.is_empty(), "{} of {compared} values are wrong\n{}", wrong.len(), wrong.join("\n"));
    assert!(compared > 10_000, "only {compared} values were compared");
}

/// All tables in one process; starting it takes longer than reading.
fn read(topics: &[Topic]) -> Vec<Value> {
    let tables = topics.iter().map(|topic| {
        json!({
            "name": topic.in_bronze.name().to_string(),
            "metadata_location": topic.in_bronze.metadata_location(),
            "columns": COLUMNS,
            "filter": null,
        })
    });
    let request = json!({ "s3": null, "tables": tables.collect::<Vec<_>>() });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tables.json");
    std::fs::write(&file, request.to_string()).unwrap();
    let output = Command::new(services().python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers/read.py"))
        .args(["--engine", "pyiceberg", "--exact", "--tables"])
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        panic!("pyiceberg did not answer ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr))
    });
    answer["tables"].as_array().unwrap().clone()
}
