//! `plan` says what a run would do, and does nothing of it.

use icestream::clock::Clock;
use icestream::definition;

use super::*;

const SETTINGS: &str = "name: shop\nsource: { files: { paths: [\"dump\"], topic: shop.public.orders } }\n";
const ORDERS: &str =
    "key: [id]\ncolumns: [{ name: id, type: int }, { name: total, type: long }, { name: status, type: string }]\n";
const TRANSFORM: &str = "/* icestream\nkeys: [id]\n*/\nSELECT id, total, lower(status) AS status\nFROM changes\n";
const MARKING: &str =
    "/* icestream\nkeys: [id]\non_delete: mark\n*/\nSELECT id, total,\n  total > 1 AS is_large\nFROM changes\n";
const TOTALS: &str = "SELECT status, sum(total) AS total FROM shop_silver.orders GROUP BY status";

pub(super) struct Project(TempDir);

impl Project {
    pub(super) fn new() -> Self {
        let project = Project(folder_with(&[
            ("icestream.yaml", SETTINGS),
            ("catalog/orders.yaml", ORDERS),
            ("transforms/orders.sql", TRANSFORM),
            ("sql/gold/totals.sql", TOTALS),
        ]));
        project.send(0, 1..4);
        project
    }

    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    pub(super) fn send(&self, file: usize, ids: std::ops::Range<i32>) {
        let event =
            |id: i32| format!(r#"{{"op":"c","before":null,"after":{{"id":{id},"total":{id},"status":"PAID"}}}}"#);
        let lines: Vec<String> = ids.map(event).collect();
        self.write(&format!("dump/{file}.json"), &lines.join("\n"));
    }

    pub(super) fn run(&self, args: &str) -> Ended {
        run(self.0.path(), args)
    }

    /// The plan without sizes, which depend on how Parquet packs.
    #[track_caller]
    fn plan(&self) -> String {
        let text = self.run("plan").done().to_string();
        let without_size = |line: &str| match (line.contains("read"), line.rsplit_once(", ")) {
            (true, Some((before, size))) if size.ends_with('B') => before.to_string(),
            _ => line.to_string(),
        };
        text.lines().map(without_size).collect::<Vec<_>>().join("\n")
    }

    async fn lake(&self) -> icestream::table::Lake {
        let config = icestream::config::Config::load(self.0.path(), &Default::default(), &[]).unwrap();
        icestream::pipeline::open_lake(&config, Clock::system()).await.unwrap()
    }

    /// The heads of all tables.
    async fn heads(&self) -> Vec<String> {
        let lake = self.lake().await;
        let mut heads = Vec::new();
        for namespace in ["shop_bronze", "shop_silver", "shop_gold"] {
            for name in lake.tables(namespace).await.unwrap() {
                heads.push(lake.table(&name).await.unwrap().metadata_location().to_string());
            }
        }
        heads
    }
}

#[tokio::test]
async fn tables_that_would_be_made_are_shown_with_their_columns_and_not_made() {
    let project = Project::new();
    insta::assert_snapshot!(project.plan(), @"
    bronze
      + shop_bronze.orders: when a topic brings records for it
          + after.id int
          + after.total long
          + after.status string

    silver
      + shop_silver.orders: from `shop_bronze.orders`, which is made in the same run
          + id int
          + total long
          + status string
          + _position string
          + _source_ts timestamptz
          + _merged_at timestamptz

    gold
      + shop_gold.totals: computed for the first time
          + status string
          + total long

    Tables: 3 to make. Nothing was done.
    ");
    assert!(project.heads().await.is_empty());
    project.run("run --drain").done();
    let heads = project.heads().await;
    assert_eq!(heads.len(), 3);
    insta::assert_snapshot!(project.plan(), @"
    bronze
      ? shop_bronze.orders: what waits in its topics is not known

    silver
      = shop_silver.orders: everything of `shop_bronze.orders` is merged

    gold
      = shop_gold.totals: what it reads has not moved

    Tables: 1 not known, 2 unchanged. Nothing was done.
    ");
    project.send(1, 3..6);
    project.run("ingest --drain").done();
    insta::assert_snapshot!(project.plan(), @"
    bronze
      ? shop_bronze.orders: what waits in its topics is not known

    silver
      ~ shop_silver.orders: the new changes of `shop_bronze.orders` are merged
          reads 1 file, 3 rows

    gold
      ~ shop_gold.totals: `shop_silver.orders` will have moved: all of it is computed
          reads 1 file, 3 rows

    Tables: 2 to change, 1 not known. Nothing was done.
    ");
    let moved = project.heads().await;
    assert_eq!(moved[1..], heads[1..], "planning moves nothing");
    project.run("build").done();
    let of = |table: &serde_json::Value| (table["table"].as_str().unwrap().to_string(), table["action"].clone());
    let plan = project.run("plan --json").json();
    let actions: Vec<_> = plan["tables"].as_array().unwrap().iter().map(of).collect();
    assert_eq!(
        actions,
        [
            ("shop_bronze.orders".to_string(), "unknown".into()),
            ("shop_silver.orders".to_string(), "nothing".into()),
            ("shop_gold.totals".to_string(), "nothing".into())
        ]
    );
}

#[tokio::test]
async fn a_changed_model_is_shown_by_what_changed() {
    let project = Project::new();
    project.run("run --drain").done();
    project.write("transforms/orders.sql", MARKING);
    project
        .write("sql/gold/totals.sql", "SELECT is_large, sum(total) AS total FROM shop_silver.orders GROUP BY is_large");
    insta::assert_snapshot!(project.plan(), @"
    bronze
      ? shop_bronze.orders: what waits in its topics is not known

    silver
      ! shop_silver.orders: the model changed
          a rebuild reads 1 file, 3 rows
          on_delete:
            - remove
            + mark
          sql:
            - SELECT id, total, lower(status) AS status
            + SELECT id, total,
            +   total > 1 AS is_large
          + is_large boolean
          + _is_deleted boolean
          - status string
          needs: icestream build --full orders

    gold
      ~ shop_gold.totals: the model changed: all of it is computed; `shop_silver.orders` is read as it is until it is rebuilt
          reads 1 file, 3 rows
          sql:
            - SELECT status, sum(total) AS total FROM shop_silver.orders GROUP BY status
            + SELECT is_large, sum(total) AS total FROM shop_silver.orders GROUP BY is_large
          + is_large boolean

    Tables: 1 to change, 1 for you to decide, 1 not known. Nothing was done.
    ");
    // What a run then says.
    insta::assert_snapshot!(project.run("build orders").error(2), @"
    error: silver table `shop_silver.orders` was built by another model
      the table is as it was; safe to run again
      hint: `icestream plan` shows what changed; `icestream build --full orders` builds it anew from bronze
    ");
    project.run("build --full orders").done();
    project.run("build").done();
    assert!(project.plan().ends_with("Tables: 1 not known, 2 unchanged. Nothing was done."), "{}", project.plan());

    // A table that an older release built does not say what by; its next merge makes up for it.
    let lake = project.lake().await;
    let orders = lake.table(&"shop_silver.orders".parse().unwrap()).await.unwrap();
    orders.change().remove_property(definition::PROPERTY).commit().await.unwrap();
    project.write("transforms/orders.sql", TRANSFORM);
    project.write("sql/gold/totals.sql", TOTALS);
    insta::assert_snapshot!(project.plan(), @"
    bronze
      ? shop_bronze.orders: what waits in its topics is not known

    silver
      ! shop_silver.orders: the model changed; the table does not say what it was built by
          a rebuild reads 1 file, 3 rows
          + status string
          - is_large boolean
          - _is_deleted boolean
          needs: icestream build --full orders

    gold
      ~ shop_gold.totals: the model changed: all of it is computed; `shop_silver.orders` is read as it is until it is rebuilt
          reads 1 file, 3 rows
          sql:
            - SELECT is_large, sum(total) AS total FROM shop_silver.orders GROUP BY is_large
            + SELECT status, sum(total) AS total FROM shop_silver.orders GROUP BY status

    Tables: 1 to change, 1 for you to decide, 1 not known. Nothing was done.
    ");
    project.write("transforms/orders.sql", MARKING);
    project.send(1, 3..6);
    project.run("ingest --drain").done();
    project.run("build orders").done();
    project.write("transforms/orders.sql", TRANSFORM);
    assert!(project.plan().contains("- mark"), "{}", project.plan());
}

#[test]
fn a_wrong_model_is_told_as_check_tells_it() {
    let project = Project::new();
    project.run("run --drain").done();
    project.write("transforms/orders.sql", "SELECT id, length(status) AS status, total FROM changes");
    let told = project.run("plan").error(2);
    insta::assert_snapshot!(told, @"error: transforms/orders.sql:1:1: table `shop_silver.orders`: column `status` cannot go from string to int; give it another name, or `icestream drop shop_silver.orders` and build the table again");
    assert_eq!(project.run("check").error(2), told);
    project.write(
        "transforms/history.sql",
        "/* icestream\nfrom: orders\nkeys: [id]\nscd: 2\ntrack_history: [state]\n*/\nSELECT id, status FROM changes",
    );
    project.write("transforms/orders.sql", TRANSFORM);
    insta::assert_snapshot!(project.run("plan").error(2), @"error: transforms/history.sql:7:1: silver table `shop_silver.history`: `track_history` names `state`, which the model does not select");
}

#[tokio::test]
async fn a_lookup_that_moved_is_told_until_all_rows_are_looked_up_again() {
    let project = Project::new();
    project
        .write("transforms/labels.sql", "/* icestream\nfrom: orders\nkeys: [id]\n*/\nSELECT id, status FROM changes");
    project.write(
        "transforms/orders.sql",
        "SELECT c.id, l.status AS label FROM changes c LEFT JOIN shop_silver.labels l ON l.id = c.id + 1",
    );
    project.write("sql/gold/totals.sql", "SELECT label, count(*) AS orders FROM shop_silver.orders GROUP BY label");
    project.run("run --drain").done();
    let moved = |project: &Project| {
        let status = project.run("status --json").json();
        let silver = status["silver"].as_array().unwrap().clone();
        let orders = silver.into_iter().find(|table| table["table"] == "shop_silver.orders").unwrap();
        orders["lookups_moved"].clone()
    };
    assert_eq!(moved(&project), serde_json::Value::Null);
    project.send(1, 4..5);
    project.run("run --drain").done();
    let plan = project.plan();
    insta::assert_snapshot!(
        plan.lines().find(|line| line.contains(" shop_silver.orders: ")).unwrap().trim(),
        @"= shop_silver.orders: everything of `shop_bronze.orders` is merged; `shop_silver.labels` moved since all rows were looked up in it; `icestream build --full orders` does that again"
    );
    assert_eq!(moved(&project), serde_json::json!(["shop_silver.labels"]));
    let status = project.run("status --no-source");
    assert!(status.done().contains("| no; moved: shop_silver.labels "), "{status:?}");
    project.run("build --full orders").done();
    assert!(!project.plan().contains("moved since"));
    assert_eq!(moved(&project), serde_json::Value::Null);
}

#[test]
fn quarantines_and_audits_are_told() {
    let project = Project::new();
    let rule = "keys: [id]\nexpect:\n  - { name: is_small, that: \"total < 3\", else: quarantine }\n";
    project.write("transforms/orders.sql", &TRANSFORM.replace("keys: [id]\n", rule));
    project.write("sql/audits/open.sql", "SELECT id FROM shop_silver.orders WHERE status = 'open'");
    project.write(
        "sql/audits/held.sql",
        "/* icestream { severity: warn } */ SELECT id FROM shop_silver.orders__quarantine WHERE total > 9",
    );
    let told = || {
        let plan = project.plan();
        let lines = plan.lines().skip_while(|line| *line != "silver").filter(|line| {
            line.contains("quarantine") || line.contains("audits") || line.contains("(fail)") || line.contains("(warn)")
        });
        lines.map(str::trim_end).collect::<Vec<_>>().join("\n")
    };
    insta::assert_snapshot!(told(), @"
          quarantine shop_silver.orders__quarantine: is made with it
    audits
      ~ held (warn): asked: `shop_silver.orders__quarantine` will have moved
      ~ open (fail): asked: `shop_silver.orders` will have moved
    ");
    project.run("run --drain").done();
    insta::assert_snapshot!(told(), @"
          quarantine shop_silver.orders__quarantine: 1 row
    audits
      = held (warn): what it reads has not moved
      = open (fail): what it reads has not moved
    ");
    project.write("sql/audits/open.sql", "SELECT id FROM shop_silver.orders WHERE status = 'opened'");
    insta::assert_snapshot!(told(), @"
          quarantine shop_silver.orders__quarantine: 1 row
    audits
      = held (warn): what it reads has not moved
      ~ open (fail): asked: it or what it reads changed
    ");
    project.send(1, 4..5);
    project.run("ingest --drain").done();
    insta::assert_snapshot!(told(), @"
          quarantine shop_silver.orders__quarantine: 1 row
    audits
      ~ held (warn): asked: `shop_silver.orders__quarantine` will have moved
      ~ open (fail): asked: `shop_silver.orders` will have moved
    ");
}
