//! The lake that the demo leaves, read by other engines from its catalog file: all say what `icestream query` says.

use std::path::Path;
use std::process::Command;

use icestream::clock::Clock;
use icestream::config::Config;
use icestream::demo::run as demo;
use icestream::pipeline;
use icestream::table::Table;
use serde_json::{Value, json};

use crate::canonical::{columns, select, sorted};
use crate::services::services;

fn icestream(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_icestream")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_engines_agree_with_icestream_query_on_the_demos_lake() {
    let folder = tempfile::tempdir().unwrap();
    demo::prepare(folder.path()).unwrap();
    let project = folder.path().to_str().unwrap();
    // `ICESTREAM_DEMO_EVENTS=1000000` for the long way.
    let events = std::env::var("ICESTREAM_DEMO_EVENTS").unwrap_or_else(|_| "20000".to_string());
    icestream(&["demo", "--events", &events, "--dir", project]);

    // By its catalog file, under the project's name.
    let counted =
        icestream(&["--project", project, "query", "--format", "csv", "select count(*) as n from shop_silver.orders"]);
    let orders: usize = counted.lines().nth(1).unwrap().parse().unwrap();
    let (uri, warehouse) = (format!("sqlite:///{project}/lake/catalog.db"), format!("file://{project}/lake/warehouse"));
    let catalog = ["--name", "shop", "--uri", &uri, "--warehouse", &warehouse];
    let by_catalog = python(&[&["pyiceberg_catalog.py"][..], &catalog, &["read", "shop_silver.orders"]].concat());
    assert_eq!(by_catalog["rows"].as_array().or(by_catalog["tables"][0]["rows"].as_array()).unwrap().len(), orders);

    // DuckDB folds bronze by itself, into rows and into versions.
    let folded = python(&[&["fold.py"][..], &catalog].concat());
    let tables = folded["tables"].as_array().unwrap();
    assert_eq!(tables.len(), 6);
    for table in tables {
        assert!(table["rows"].as_u64().unwrap() > 0, "{table}");
        assert_eq!((&table["missing"], &table["unexpected"]), (&json!([]), &json!([])), "{table}");
    }

    // And it runs the statements that merges stand for.
    let mut statements = serde_json::Map::new();
    for model in &pipeline::models(&Config::load(folder.path(), &Default::default(), &[]).unwrap()).unwrap().silver {
        // Rows show what a lookup said when they were merged, which no statement over its state of now can say.
        if !icestream::silver::lookups(model).unwrap().is_empty() {
            continue;
        }
        let sql = icestream(&["--project", project, "sql", &model.table.to_string()]);
        statements.insert(model.table.to_string(), json!({ "from": model.from.to_string(), "sql": sql }));
    }
    assert!(statements.len() > 3);
    let file = folder.path().join("statements.json");
    std::fs::write(&file, Value::from(statements).to_string()).unwrap();
    let stated = ["--statements", file.to_str().unwrap()];
    let ran = python(&[&["statement.py"][..], &catalog, &stated].concat());
    for table in ran["tables"].as_array().unwrap() {
        assert!(table["rows"].as_u64().unwrap() > 0, "{table}");
        assert_eq!((&table["missing"], &table["unexpected"]), (&json!([]), &json!([])), "{table}");
    }

    // Every table, row by row.
    let config = Config::load(folder.path(), &Default::default(), &[]).unwrap();
    let lake = pipeline::open_lake(&config, Clock::system()).await.unwrap();
    let mut tables: Vec<Table> = Vec::new();
    for namespace in ["shop_bronze", "shop_silver", "shop_gold"] {
        for name in lake.tables(namespace).await.unwrap() {
            tables.push(lake.table(&name).await.unwrap());
        }
    }
    assert_eq!(tables.len(), 19);
    for engine in ["pyiceberg", "duckdb", "spark"] {
        let answer = read(engine, folder.path(), &tables);
        for (table, answer) in tables.iter().zip(answer["tables"].as_array().unwrap()) {
            let rows = answer["rows"].as_array().unwrap_or_else(|| panic!("{engine}: {answer}"));
            let ours = select(table, None).await;
            assert!(sorted(rows.clone()) == ours, "{engine} reads {} otherwise", table.name());
            assert_eq!(ours.len(), if table.name().to_string() == "shop_silver.orders" { orders } else { ours.len() });
        }
    }
}

fn read(engine: &str, folder: &Path, tables: &[Table]) -> Value {
    let asked: Vec<Value> = tables
        .iter()
        .map(|table| {
            json!({
                "name": table.name().to_string(),
                "metadata_location": table.metadata_location(),
                "columns": columns(table),
            })
        })
        .collect();
    let file = folder.join(format!("{engine}.json"));
    std::fs::write(&file, json!({ "s3": null, "tables": asked }).to_string()).unwrap();
    python(&["read.py", "--engine", engine, "--tables", file.to_str().unwrap()])
}

fn python(arguments: &[&str]) -> Value {
    let scripts = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers/");
    let output = Command::new(services().python)
        .arg(format!("{scripts}{}", arguments[0]))
        .args(&arguments[1..])
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
}
