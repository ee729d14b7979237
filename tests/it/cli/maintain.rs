//! `maintain` over a small project, as somebody who runs it by hand or by a scheduler sees it.

use std::time::{Duration, SystemTime};

use icestream::config::Config;
use icestream::pipeline;

use super::*;

/// A project whose bronze table has a commit and a file for each of some dumps, all of them merged.
fn project(dumps: usize) -> TempDir {
    let project = folder_with(&[
        (
            "icestream.yaml",
            "name: shop\nsource: { files: { paths: [\"dump\"], topic: shop.public.orders } }\n\
             maintain: { keep_snapshots: 1, max_snapshots: 3 }\n",
        ),
        ("catalog/orders.yaml", "key: [id]\ncolumns: [{ name: id, type: int }, { name: status, type: string }]\n"),
        (
            "sql/gold/statuses.sql",
            "/* icestream\nrefresh: incremental\ngroup_by: [status]\n*/\n\
             SELECT status, count(*) AS n FROM shop_silver.orders GROUP BY status",
        ),
    ]);
    for number in 0..dumps {
        dump(&project, number);
    }
    project
}

/// Ten new orders and a change to one of the dump before, ingested and built.
fn dump(project: &TempDir, number: usize) {
    let event = |op: &str, id: usize, status: &str| {
        format!(r#"{{"op":"{op}","before":null,"after":{{"id":{id},"status":"{status}"}}}}"#)
    };
    // Backwards, so that the order of their keys is not the one they came in.
    let mut lines: Vec<String> = (0..10).rev().map(|id| event("c", 1000 - (number * 10 + id), "paid")).collect();
    lines.extend((number > 0).then(|| event("u", 1000 - (number * 10 - 1), "shipped")));
    std::fs::create_dir_all(project.path().join("dump")).unwrap();
    std::fs::write(project.path().join(format!("dump/{number:02}.json")), lines.join("\n")).unwrap();
    run(project.path(), "run --drain").done();
}

/// The rows of every layer.
fn rows(project: &TempDir) -> Vec<String> {
    let queries = [
        "SELECT _offset, _op, after['id'] AS id FROM shop_bronze.orders ORDER BY _offset",
        "SELECT id, status, _merged_at FROM shop_silver.orders ORDER BY id",
        "SELECT * FROM shop_gold.statuses ORDER BY status",
    ];
    let of = |sql: &str| {
        let mut command = icestream(project.path(), "query --format csv");
        command.arg(sql);
        Running::start(command).end().done().to_string()
    };
    queries.map(of).into()
}

fn snapshots(project: &TempDir) -> Vec<Option<i64>> {
    let tables = run(project.path(), "tables --json").json();
    tables.as_array().unwrap().iter().map(|table| table["snapshot_id"].as_i64()).collect()
}

#[tokio::test]
async fn tables_are_looked_after_and_nobody_has_anything_to_read_again() {
    let project = project(6);
    let before = rows(&project);
    let heads = snapshots(&project);
    let told = run(project.path(), "maintain --dry-run");
    insta::assert_snapshot!(told.normal(told.done()), @r"
     table              | compacted                                        | manifests | snapshots expired | orphans
    --------------------+--------------------------------------------------+-----------+-------------------+---------
     shop_bronze.orders | 6 files, 43.5 KiB -> 1 file                      |    6 -> 1 |            3 of 6 | none
     shop_silver.orders | 6 files, 11.9 KiB -> 1 file; 5 delete files -> 0 |   11 -> 2 |            3 of 6 | none
     shop_gold.statuses | 6 files, 5.62 KiB -> 1 file; 5 delete files -> 0 |   11 -> 2 |            3 of 6 | none
    ");
    assert_eq!((snapshots(&project), rows(&project)), (heads, before.clone()));

    let told = run(project.path(), "maintain --result result.json");
    insta::assert_snapshot!(told.normal(told.done()), @r"
     table              | compacted                                        | manifests | snapshots expired | orphans
    --------------------+--------------------------------------------------+-----------+-------------------+---------
     shop_bronze.orders | 6 files, 43.5 KiB -> 1 file                      |    7 -> 1 |            5 of 8 | none
     shop_silver.orders | 6 files, 11.9 KiB -> 1 file; 5 delete files -> 0 |   12 -> 1 |            5 of 8 | none
     shop_gold.statuses | 6 files, 5.62 KiB -> 1 file; 5 delete files -> 0 |   12 -> 1 |            5 of 8 | none
    ");
    assert_eq!(rows(&project), before);
    let result: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(project.path().join("result.json")).unwrap()).unwrap();
    assert_eq!(result["tables"][0]["table"], "shop_bronze.orders");
    assert_eq!(result["tables"][0]["compacted"]["files_before"], 6);
    assert_eq!(result["tables"][0]["compacted"]["files_after"], 1);

    // Nothing is left to do, for it and for a build.
    let again = run(project.path(), "maintain --json").json();
    for table in again["tables"].as_array().unwrap() {
        assert_eq!((&table["compacted"]["commits"], &table["expired"]["snapshots"]), (&0.into(), &0.into()), "{table}");
    }
    let heads = snapshots(&project);
    let built = run(project.path(), "build").json();
    assert_eq!(
        (&built["built"]["silver_merges"], &built["built"]["gold_refreshes"]),
        (&0.into(), &0.into()),
        "{built}"
    );
    assert_eq!(snapshots(&project), heads);
    let status = run(project.path(), "status --no-source --json").json();
    assert_eq!(status["silver"][0]["is_behind"], false, "{status}");
    assert_eq!(status["gold"][0]["is_behind"], false, "{status}");

    // What comes then is merged on top, and gold goes on from the snapshot it knows.
    dump(&project, 6);
    std::fs::write(
        project.path().join("dump/07.json"),
        r#"{"op":"u","before":null,"after":{"id":999,"status":"lost"}}"#,
    )
    .unwrap();
    let ran = run(project.path(), "run --drain").json();
    assert_eq!(ran["built"]["silver_rows_written"], 1, "{ran}");
    assert!(ran["built"]["gold_in_full"].is_null() && ran["built"]["gold_groups"].is_object(), "{ran}");

    // Bronze keeps the order in which its rows came; silver is sorted by its key.
    let config = Config::load(project.path(), &Default::default(), &[]).unwrap();
    let lake = pipeline::open_lake(&config, icestream::clock::Clock::system()).await.unwrap();
    let table = lake.table(&"shop_silver.orders".parse().unwrap()).await.unwrap();
    let largest = support::live_rows(&table, icestream::table::At::Head).await;
    let mut by_file: std::collections::BTreeMap<String, Vec<i64>> = Default::default();
    largest.iter().for_each(|(file, _, id, _)| by_file.entry(file.path.clone()).or_default().push(*id));
    let largest = by_file.values().max_by_key(|ids| ids.len()).unwrap();
    assert!(largest.len() > 50 && largest.is_sorted(), "{largest:?}");
}

#[test]
fn orphans_are_listed_and_removed_when_they_are_old_and_somebody_says_so() {
    let project = project(1);
    let folder = project.path().join("lake/warehouse/shop_bronze/orders/data");
    let now = Duration::from_millis(icestream::clock::Clock::system().now_ms() as u64);
    let old = SystemTime::UNIX_EPOCH + now - Duration::from_secs(4 * 24 * 3600);
    for (name, is_old) in [("old.parquet", true), ("young.parquet", false)] {
        let file = File::create(folder.join(name)).unwrap();
        if is_old {
            file.set_modified(old).unwrap();
        }
    }
    let there = || ["old.parquet", "young.parquet"].map(|name| folder.join(name).exists());
    let told = run(project.path(), "maintain orders --only orphans");
    insta::assert_snapshot!(told.normal(told.done()), @r"
     table              | compacted | manifests | snapshots expired | orphans
    --------------------+-----------+-----------+-------------------+---------
     shop_bronze.orders |           |           |                   | 1, 0 B
     shop_silver.orders |           |           |                   | none
    orphan file://FOLDER/lake/warehouse/shop_bronze/orders/data/old.parquet
    ");
    assert_eq!(there(), [true, true]);
    run(project.path(), "maintain --only orphans --remove-orphans --dry-run").done();
    assert_eq!(there(), [true, true]);
    run(project.path(), "maintain --only orphans,expire --remove-orphans").done();
    assert_eq!(there(), [false, true]);
    insta::assert_snapshot!(
        run(project.path(), "maintain --only orphans --set maintain.orphans_after=1m").error(2), @r"
    error: --set maintain.orphans_after: must be at least `1h`, not `1m`
      hint: `icestream config reference` describes every key
    ");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let project = project(1);
    insta::assert_snapshot!(run(project.path(), "maintain order").error(2), @r"
    error: the project has no table `order`
      hint: there are `shop_bronze.orders`, `shop_silver.orders`, `shop_gold.statuses`
    ");
    insta::assert_snapshot!(run(project.path(), "maintain --only compaction").error(2), @r"
    error: invalid value 'compaction' for '--only <TASK>': there are compact, manifests, expire, orphans

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(run(project.path(), "maintain --budget soon").error(2), @r"
    error: invalid value 'soon' for '--budget <LIMIT>': write a time, such as `30m`, or a size, such as `50GiB`

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(run(project.path(), "maintain --result no/where.json").error(2), @r"
    error: cannot write the result to `no/where.json`
      caused by: No such file or directory (os error 2)
      hint: check that the folder exists and that this process may write there
    ");
    run(project.path(), "maintain --budget 1m,1GiB shop_silver.orders").done();
}
