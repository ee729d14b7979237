//! `verify`: what is right is found right, and what was damaged is found, by its row.

use std::future::Future;

use datafusion::prelude::Expr;
use icestream::cli::verify::text;
use icestream::clock::Clock;
use icestream::config::Config;
use icestream::engine;
use icestream::ids::TableName;
use icestream::offsets::{MARKER, Offsets};
use icestream::pipeline::verify::{self, Options, Report, Topics, Verdict};
use icestream::pipeline::{self, Models};
use icestream::table::{At, Lake, Premise, Table};

use super::*;

const SETTINGS: &str = "name: shop\nsource: { files: { paths: [\"dump\"], topic: shop.public.orders } }\n";

const COLUMNS: &str = "key: [id]\ncolumns:\n  - { name: id, type: int }\n  - { name: status, type: string }\n  \
                       - { name: amount, type: double }\n";

const HISTORY: &str = "/* icestream\nfrom: orders\nkeys: [id]\nscd: 2\non_delete: mark\ntrack_history: [status]\n*/\n\
                       SELECT id, upper(status) AS status, amount FROM changes";

const MARKED: &str = "/* icestream\nfrom: orders\nkeys: [id]\non_delete: mark\nexpect:\n  \
                      - { name: positive, that: \"amount >= 0\", else: quarantine }\n*/\n\
                      SELECT id, status, amount FROM changes";

const PER_STATUS: &str = "/* icestream { refresh: incremental, group_by: [status] } */\n\
                          SELECT status, count(*) AS n, avg(amount) AS mean FROM shop_silver.orders GROUP BY status";

const LARGE: &str = "SELECT id, amount FROM shop_silver.orders WHERE amount > 20";

/// An event of the source; `lsn` is its position.
fn event(op: &str, id: i32, status: &str, amount: f64, lsn: u32) -> String {
    let row = format!(r#"{{"id":{id},"status":"{status}","amount":{amount}}}"#);
    let (before, after) = if op == "d" { (row.as_str(), "null") } else { ("null", row.as_str()) };
    format!(
        r#"{{"op":"{op}","before":{before},"after":{after},"source":{{"connector":"postgresql","sequence":"[\"{lsn}\",\"{lsn}\"]","lsn":{lsn},"ts_ms":{time}}}}}"#,
        time = 1_700_000_000_000u64 + u64::from(lsn) * 1000
    )
}

/// Seven orders: 6 goes and comes again, 7 goes for good, 2 is sent twice, 5 breaks a rule; one record is garbage.
fn lines() -> Vec<String> {
    let mut lines: Vec<String> =
        (1..8).map(|id| event("c", id, "new", 10.1 * f64::from(id), 100 + id as u32)).collect();
    lines.push(event("u", 2, "paid", 20.5, 110));
    lines.push(event("u", 2, "paid", 20.5, 110));
    lines.push("garbage".to_string());
    lines.push(event("d", 6, "new", 60.6, 111));
    lines.push(event("c", 6, "again", 66.0, 112));
    lines.push(event("u", 3, "shipped", 30.3, 113));
    lines.push(event("d", 7, "new", 70.7, 114));
    lines.push(event("u", 5, "paid", -5.0, 115));
    lines
}

struct Project {
    folder: TempDir,
    lake: Lake,
    models: Models,
}

impl Project {
    async fn new() -> Self {
        let folder = folder_with(&[
            ("icestream.yaml", SETTINGS),
            ("catalog/orders.yaml", COLUMNS),
            (
                "transforms/orders.sql",
                "/* icestream\nfrom: orders\nkeys: [id]\n*/\nSELECT id, status, amount FROM changes",
            ),
            ("transforms/history.sql", HISTORY),
            ("transforms/marked.sql", MARKED),
            ("sql/gold/per_status.sql", PER_STATUS),
            ("sql/gold/large.sql", LARGE),
            ("dump/0.json", &lines().join("\n")),
        ]);
        run(folder.path(), "run --drain").done();
        Project::open(folder).await
    }

    async fn open(folder: TempDir) -> Self {
        let config = Config::load(folder.path(), &Default::default(), &[]).unwrap();
        let lake = pipeline::open_lake(&config, Clock::system()).await.unwrap();
        let models = pipeline::models(&config).unwrap();
        Project { folder, lake, models }
    }

    fn engine(&self) -> engine::Engine {
        pipeline::engine(&Config::load(self.folder.path(), &Default::default(), &[]).unwrap()).unwrap()
    }

    async fn verify(&self) -> Report {
        let options = Options { sample: None, ..Options::default() };
        let engine = self.engine();
        let project =
            verify::Project { lake: &self.lake, engine: &engine, bronze: "shop_bronze", models: &self.models };
        verify::verify(&project, &options, Topics::Files, |_| true, |_| {}).await.unwrap()
    }

    async fn table(&self, name: &str) -> Table {
        self.lake.table(&name.parse().unwrap()).await.unwrap()
    }

    /// Puts what a query gives in the place of a table's rows, in an order that is the same each time. It calls the
    /// table `t`.
    async fn replace(&self, name: &str, sql: &str) {
        let table = self.table(name).await;
        let session = self.engine().session();
        let t: TableName = "of.t".parse().unwrap();
        engine::register(&session, &t, table.view(At::Head).unwrap()).unwrap();
        let mut writer = table.writer(None).unwrap();
        let rows = engine::plan(&session, &sql.replace("FROM t", "FROM of.t")).await.unwrap();
        let order = rows.schema().columns().into_iter().map(|column| Expr::from(column).sort(true, true)).collect();
        for batch in rows.sort(order).unwrap().collect().await.unwrap() {
            writer.write(&batch).await.unwrap();
        }
        table.change().replace_all(writer.finish().await.unwrap()).commit().await.unwrap();
    }

    async fn path_of(&self, name: &str) -> PathBuf {
        let files = self.table(name).await.files().await.unwrap();
        PathBuf::from(files[0].path.strip_prefix("file://").unwrap())
    }

    /// What a person is told of what differs, without what is another in each run.
    fn told(&self, report: &Report) -> String {
        let folder = self.folder.path().canonicalize().unwrap();
        let mut table = String::new();
        let mut told = String::new();
        let mut differs = false;
        for line in text(report).lines() {
            if !line.starts_with(' ') {
                table = line.to_string();
            } else if !line.starts_with("    ") {
                differs = line.starts_with("  DIFFERS");
                if differs {
                    told.push_str(&format!("{table}{line}\n"));
                }
            } else if differs {
                told.push_str(&format!("{}\n", line.trim_start()));
            }
        }
        let ended = Ended { code: None, stdout: String::new(), stderr: String::new(), folder };
        let told = shape(&ended.normal(&told), "ffffffff-ffff-ffff-ffff-ffffffffffff", "UUID");
        told.trim_end().to_string()
    }
}

/// Builds a project, damages it, and gives what is told.
async fn damaged<F: Future<Output = ()>>(damage: impl FnOnce(Arc<Project>) -> F) -> String {
    let project = Arc::new(Project::new().await);
    damage(project.clone()).await;
    let report = project.verify().await;
    assert!(!report.is_sound(), "{}", text(&report));
    project.told(&report)
}

async fn with_rows(table: &'static str, sql: &'static str) -> String {
    damaged(|project| async move { project.replace(table, sql).await }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_right_is_found_right() {
    let project = Project::new().await;
    let report = project.verify().await;
    assert!(report.is_sound() && report.count(Verdict::Skipped) == 1, "{}", text(&report));
    let ended = run(project.folder.path(), "verify --result result.json");
    insta::assert_snapshot!(ended.normal(ended.done()), @"
    shop_bronze.orders
      holds    files       1 file
      holds    markers     1 marker
      holds    growth      0 commits
      holds    offsets     15 rows
      skipped  broker      the project reads files, and no topics
    shop_silver.history
      holds    files       1 file
      holds    markers     1 marker
      holds    versions    13 rows
      holds    fold        7 keys
    shop_silver.marked
      holds    files       2 files
      holds    markers     1 marker
      holds    keys        6 rows
      holds    fold        7 keys
    shop_silver.marked__quarantine
      holds    files       1 file
      holds    markers     1 marker
      holds    keys        1 row
      holds    fold        7 keys
    shop_silver.orders
      holds    files       1 file
      holds    markers     1 marker
      holds    keys        6 rows
      holds    fold        7 keys
    shop_gold.large
      holds    files       1 file
      holds    markers     1 marker
      holds    recomputed  4 rows
    shop_gold.per_status
      holds    files       1 file
      holds    markers     1 marker
      holds    recomputed  4 rows
    7 tables: 26 checks hold, 0 differ, 1 were skipped
    Of each silver table about 10000 keys were compared, chosen by seed 0; `--all` compares every key.
    ");
    insta::assert_snapshot!(std::fs::read_to_string(project.folder.path().join("result.json")).unwrap(), @r#"
    {
      "sound": true,
      "seed": 0,
      "sample": 10000,
      "tables": 7,
      "holds": 26,
      "differs": 0,
      "skipped": 1,
      "differing": {}
    }
    "#);
    let json = run(project.folder.path(), "verify --all --json orders").json();
    let tables: Vec<&str> =
        json["tables"].as_array().unwrap().iter().map(|table| table["table"].as_str().unwrap()).collect();
    assert_eq!(tables, ["shop_bronze.orders", "shop_silver.orders"]);
    insta::assert_snapshot!(run(project.folder.path(), "verify ordres").error(2), @"
    error: there is no table `ordres` to verify
      hint: there are `shop_bronze.orders`, `shop_gold.large`, `shop_gold.per_status`, `shop_silver.history`, `shop_silver.marked`, `shop_silver.orders`
    ");

    // More comes, of other columns, and a record that was rejected is replayed: none of it is a difference.
    let mut more = vec![event("u", 1, "late", 1.0, 90), event("r", 9, "new", 9.0, 120)];
    more.push(event("c", 10, "new", 1.5, 121).replace("\"amount\"", "\"note\":\"n\",\"amount\""));
    std::fs::write(project.folder.path().join("dump/1.json"), more.join("\n")).unwrap();
    run(project.folder.path(), "run --drain").done();
    let project = Project::open(project.folder).await;
    let report = project.verify().await;
    assert!(report.is_sound() && report.count(Verdict::Skipped) == 1, "{}", text(&report));
    // Half of it, chosen by a seed, and what a scheduler is told.
    run(project.folder.path(), "verify --sample 3 --seed 5").done();
}

#[test]
fn the_demos_lake_is_right() {
    let ended = run(demo_lake(), "verify --all --json");
    let report = ended.json();
    let tables = report["tables"].as_array().unwrap();
    // The demo's broker was there only while it ran.
    let holds =
        |check: &serde_json::Value| check["verdict"] == if check["check"] == "broker" { "skipped" } else { "holds" };
    let mut checks = tables.iter().flat_map(|table| table["checks"].as_array().unwrap());
    assert!(tables.len() >= 16 && checks.all(holds), "{report:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bronze_table_that_was_damaged_is_found() {
    let deleted = with_rows("shop_bronze.orders", "SELECT * FROM t WHERE _offset <> 2").await;
    insta::assert_snapshot!(deleted, @"
    shop_bronze.orders  DIFFERS  growth      1 commit, 1 difference
    missing snapshot ID: expected rows that only come, where no rewind and no replay is counted, found `overwrite`, 1 row fewer
    ");
    let doubled = with_rows("shop_bronze.orders", "SELECT * FROM t UNION ALL SELECT * FROM t WHERE _offset = 2").await;
    insta::assert_snapshot!(doubled, @"
    shop_bronze.orders  DIFFERS  growth      1 commit, 1 difference
    missing snapshot ID: expected rows that only come, where no rewind and no replay is counted, found `overwrite`
    shop_bronze.orders  DIFFERS  offsets     16 rows, 1 difference
    doubled: expected one row, found 2 rows (shop.public.orders/0 at offset 2) in file://FOLDER/lake/warehouse/shop_bronze/orders/data/_ingested_at_day=DAY/UUID.parquet row 2, file://FOLDER/lake/warehouse/shop_bronze/orders/data/_ingested_at_day=DAY/UUID.parquet row 3
    ");
    let altered =
        with_rows("shop_bronze.orders", "SELECT * REPLACE (CASE WHEN _offset = 2 THEN 'u' ELSE _op END AS _op) FROM t")
            .await;
    insta::assert_snapshot!(altered, @"
    shop_bronze.orders  DIFFERS  growth      1 commit, 1 difference
    missing snapshot ID: expected rows that only come, where no rewind and no replay is counted, found `overwrite`
    ");
    let past = damaged(|project| async move { move_marker(&project, 13).await }).await;
    let beyond: Vec<&str> =
        past.lines().filter(|line| line.starts_with("unexpected: expected offsets below 13")).collect();
    assert!(past.starts_with("shop_bronze.orders  DIFFERS  offsets     15 rows, 2 differences\n"), "{past}");
    assert!(beyond.len() == 2 && beyond[1].contains("(shop.public.orders/0 at offset 14) in file://FOLDER/"), "{past}");
    let apart = damaged(|project| async move {
        let table = project.table("shop_bronze.orders").await;
        let marker = marker(&table, 15).to_string();
        table.change().set_property(MARKER, marker).commit().await.unwrap();
    })
    .await;
    let told = "shop_bronze.orders  DIFFERS  markers     1 marker, 1 difference\n\
                differs icestream.offsets: expected as in the snapshot: ";
    assert!(apart.starts_with(told), "{apart}");
}

/// The marker, at another offset.
fn marker(table: &Table, next: i64) -> Offsets {
    let mut offsets = Offsets::parse(&table.marker(MARKER).unwrap()).unwrap();
    offsets.set("shop.public.orders", 0, next);
    offsets
}

async fn move_marker(project: &Project, next: i64) {
    let table = project.table("shop_bronze.orders").await;
    let premise = Premise::new().marker_moves(MARKER, table.marker(MARKER), marker(&table, next).to_string());
    table.change().premise(premise).commit().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_were_damaged_are_found() {
    let gone = damaged(|project| async move {
        std::fs::remove_file(project.path_of("shop_bronze.orders").await).unwrap();
    })
    .await;
    insta::assert_snapshot!(gone, @"
    shop_bronze.orders  DIFFERS  files       1 file, 1 difference
    missing file: expected a file, found none in file://FOLDER/lake/warehouse/shop_bronze/orders/data/_ingested_at_day=DAY/UUID.parquet
    shop_silver.history  DIFFERS  fold        0 rows, 1 difference
    missing: expected what it was made from, to compare with, found a data file is missing: Object at location FOLDER/lake/warehouse/shop_bronze/orders/data/_ingested_at_day=DAY/UUID.parquet not found: No such file or directory (os error 2)
    shop_silver.marked  DIFFERS  fold        0 rows, 1 difference
    missing: expected what it was made from, to compare with, found a data file is missing: Object at location FOLDER/lake/warehouse/shop_bronze/orders/data/_ingested_at_day=DAY/UUID.parquet not found: No such file or directory (os error 2)
    shop_silver.marked__quarantine  DIFFERS  fold        0 rows, 1 difference
    missing: expected what it was made from, to compare with, found a data file is missing: Object at location FOLDER/lake/warehouse/shop_bronze/orders/data/_ingested_at_day=DAY/UUID.parquet not found: No such file or directory (os error 2)
    shop_silver.orders  DIFFERS  fold        0 rows, 1 difference
    missing: expected what it was made from, to compare with, found a data file is missing: Object at location FOLDER/lake/warehouse/shop_bronze/orders/data/_ingested_at_day=DAY/UUID.parquet not found: No such file or directory (os error 2)
    ");
    let longer = damaged(|project| async move {
        let path = project.path_of("shop_silver.orders").await;
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.push(0);
        std::fs::write(&path, bytes).unwrap();
    })
    .await;
    let size = regex_free_sizes(&longer);
    insta::assert_snapshot!(size, @"
    shop_silver.orders  DIFFERS  files       1 file, 1 difference
    differs bytes: expected N found N in file://FOLDER/lake/warehouse/shop_silver/orders/data/UUID.parquet
    ");
    let beyond = damaged(|project| async move {
        let table = project.table("shop_silver.orders").await;
        let view = table.view(At::Head).unwrap();
        let files = view.files(None).await.unwrap();
        let doomed: Vec<_> = files.into_iter().map(|file| (file, [9_000_000].into_iter().collect())).collect();
        let deletes = table.write_deletes(&doomed).await.unwrap();
        table.change().row_delta(&view, Vec::new(), deletes).commit().await.unwrap();
    })
    .await;
    insta::assert_snapshot!(beyond, @"
    shop_silver.orders  DIFFERS  files       2 files, 1 difference
    differs deleted position: expected below 6, found 9000000 in file://FOLDER/lake/warehouse/shop_silver/orders/data/UUID.parquet
    ");
}

/// Sizes of files are what a Parquet writer makes of them.
fn regex_free_sizes(text: &str) -> String {
    text.split(' ')
        .map(|word| if word.trim_end_matches(',').parse::<u64>().is_ok_and(|n| n > 100) { "N" } else { word })
        .collect::<Vec<_>>()
        .join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silver_table_that_was_damaged_is_found() {
    let lost = with_rows("shop_silver.orders", "SELECT * FROM t WHERE id <> 2").await;
    insta::assert_snapshot!(lost, @"
    shop_silver.orders  DIFFERS  fold        7 keys, 1 difference
    missing id=2: id=2, status=paid, amount=20.5, _position=ID:ID, _source_ts=2023-11-14T22:15:10Z (shop.public.orders/0 at offset 8)
    ");
    let doubled = with_rows("shop_silver.orders", "SELECT * FROM t UNION ALL SELECT * FROM t WHERE id = 3").await;
    insta::assert_snapshot!(doubled, @"
    shop_silver.orders  DIFFERS  keys        7 rows, 1 difference
    doubled id=3: expected one row, found 2 rows
    shop_silver.orders  DIFFERS  fold        7 keys, 1 difference
    doubled id=3: id=3, status=shipped, amount=30.3, _position=ID:ID, _source_ts=2023-11-14T22:15:13Z (shop.public.orders/0 at offset 12)
    ");
    let altered = with_rows(
        "shop_silver.orders",
        "SELECT * REPLACE (CASE WHEN id = 1 THEN 'gone' ELSE status END AS status) FROM t",
    )
    .await;
    insta::assert_snapshot!(altered, @"
    shop_silver.orders  DIFFERS  fold        7 keys, 1 difference
    differs id=1 status: expected new, found gone (shop.public.orders/0 at offset 0)
    ");
    let undead =
        with_rows("shop_silver.orders", "SELECT * FROM t UNION ALL SELECT * REPLACE (7 AS id) FROM t WHERE id = 1")
            .await;
    insta::assert_snapshot!(undead, @"
    shop_silver.orders  DIFFERS  fold        7 keys, 1 difference
    unexpected id=7: id=7, status=new, amount=10.1, _position=ID:ID, _source_ts=2023-11-14T22:15:01Z (shop.public.orders/0 at offset 13)
    ");
    let unmarked = with_rows("shop_silver.marked", "SELECT * REPLACE (false AS _is_deleted) FROM t").await;
    insta::assert_snapshot!(unmarked, @"
    shop_silver.marked  DIFFERS  fold        7 keys, 1 difference
    differs id=7 _is_deleted: expected true, found false (shop.public.orders/0 at offset 13)
    ");
    let released = with_rows("shop_silver.marked__quarantine", "SELECT * FROM t WHERE id <> 5").await;
    insta::assert_snapshot!(released, @"
    shop_silver.marked__quarantine  DIFFERS  fold        7 keys, 1 difference
    missing id=5: id=5, status=paid, amount=-5.0, _position=ID:ID, _source_ts=2023-11-14T22:15:15Z, _is_deleted=false, _rules=[positive], _topic=shop.public.orders, _topic_partition=0, _offset=14 (shop.public.orders/0 at offset 14)
    ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_that_were_damaged_are_found() {
    let overlapping = with_rows(
        "shop_silver.history",
        "SELECT * REPLACE (CASE WHEN id = 2 THEN _valid_to + INTERVAL '1 hour' ELSE _valid_to END AS _valid_to) FROM t",
    )
    .await;
    insta::assert_snapshot!(overlapping, @"
    shop_silver.history  DIFFERS  versions    13 rows, 1 difference
    differs id=2: expected an end by 2023-11-14T22:15:10Z, when the next version begins, found a version from 2023-11-14T22:15:02Z to 2023-11-14T23:15:10Z, _is_current=false
    shop_silver.history  DIFFERS  fold        7 keys, 1 difference
    differs id=2 _valid_to: expected 2023-11-14T22:15:10Z, found 2023-11-14T23:15:10Z (shop.public.orders/0 at offset 1)
    ");
    let twice = with_rows(
        "shop_silver.history",
        "SELECT * REPLACE (CASE WHEN id = 3 THEN NULL ELSE _valid_to END AS _valid_to, CASE WHEN id = 3 THEN true ELSE \
         _is_current END AS _is_current) FROM t",
    )
    .await;
    assert!(
        twice.contains("\ndoubled id=3: expected one present version, found 2, this one from 2023-11-14T"),
        "{twice}"
    );
    assert!(twice.contains("\ndiffers id=3 _is_current: expected false, found true"), "{twice}");
    let lost = with_rows("shop_silver.history", "SELECT * FROM t WHERE NOT (id = 6 AND status = 'NEW')").await;
    assert!(
        lost.starts_with("shop_silver.history  DIFFERS  fold        7 keys, 2 differences\nmissing id=6: "),
        "{lost}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gold_table_that_was_damaged_is_found() {
    let lost = with_rows("shop_gold.per_status", "SELECT * FROM t WHERE status <> 'paid'").await;
    insta::assert_snapshot!(lost, @"
    shop_gold.per_status  DIFFERS  recomputed  4 rows, 1 difference
    missing status=paid: status=paid, n=2, mean=7.75
    ");
    let altered = with_rows("shop_gold.per_status", "SELECT * REPLACE (mean + 1 AS mean) FROM t").await;
    insta::assert_snapshot!(altered, @"
    shop_gold.per_status  DIFFERS  recomputed  4 rows, 4 differences
    differs status=again mean: expected 66.0, found 67.0
    differs status=new mean: expected 25.25, found 26.25
    differs status=paid mean: expected 7.75, found 8.75
    differs status=shipped mean: expected 30.3, found 31.3
    ");
    let extra = with_rows(
        "shop_gold.per_status",
        "SELECT * FROM t UNION ALL SELECT * REPLACE ('lost' AS status) FROM t WHERE status = 'paid'",
    )
    .await;
    insta::assert_snapshot!(extra, @"
    shop_gold.per_status  DIFFERS  recomputed  4 rows, 1 difference
    unexpected status=lost: status=lost, n=2, mean=7.75
    ");
    let no_group =
        with_rows("shop_gold.large", "SELECT * REPLACE (CASE WHEN id = 2 THEN 99.5 ELSE amount END AS amount) FROM t")
            .await;
    insta::assert_snapshot!(no_group, @"
    shop_gold.large  DIFFERS  recomputed  4 rows, 1 difference
    differs amount: expected 20.5, found 99.5
    ");
}

const LOOKED_UP: &str = "/* icestream\nfrom: orders\nkeys: [id]\n*/\n\
                         SELECT c.id, c.status, o.amount AS looked_up FROM changes AS c \
                         LEFT JOIN shop_silver.orders AS o ON o.id = c.id";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_looked_up_is_compared_while_the_lookup_stands_still() {
    let project = Project::new().await;
    std::fs::write(project.folder.path().join("transforms/looked_up.sql"), LOOKED_UP).unwrap();
    run(project.folder.path(), "build").done();
    let project = Project::open(project.folder).await;
    let report = project.verify().await;
    assert!(report.is_sound() && !text(&report).contains("not compared"), "{}", text(&report));
    let name = "shop_silver.looked_up";
    project.replace(name, "SELECT * REPLACE (CASE WHEN id = 1 THEN 0.5 ELSE looked_up END AS looked_up) FROM t").await;
    insta::assert_snapshot!(project.told(&project.verify().await), @"
    shop_silver.looked_up  DIFFERS  fold        7 keys, 1 difference
    differs id=1 looked_up: expected 10.1, found 0.5 (shop.public.orders/0 at offset 0)
    ");
    // Some rows are made anew, and look up what there is by now: which rows saw which state is not known.
    std::fs::write(project.folder.path().join("dump/1.json"), event("u", 4, "late", 4.0, 130)).unwrap();
    run(project.folder.path(), "run --drain").done();
    let report = project.verify().await;
    assert!(report.is_sound(), "{}", text(&report));
    let told = text(&report);
    let note =
        "not compared: `looked_up`; rows were looked up in `shop_silver.orders` at several of its snapshots, from ";
    assert!(told.contains(note), "{told}");
    project.replace(name, "SELECT * REPLACE (CASE WHEN id = 1 THEN 'lost' ELSE status END AS status) FROM t").await;
    insta::assert_snapshot!(project.told(&project.verify().await), @"
    shop_silver.looked_up  DIFFERS  fold        7 keys, 1 difference
    differs id=1 status: expected new, found lost (shop.public.orders/0 at offset 0)
    not compared: `looked_up`; rows were looked up in `shop_silver.orders` at several of its snapshots, from ID to ID
    ");
}
