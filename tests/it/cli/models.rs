//! `check` plans the SQL of a project's models.

use serde_json::json;

use super::*;

const ORDERS: (&str, &str) = (
    "catalog/orders.yaml",
    "key: [id]\ncolumns:\n  - { name: id, type: int }\n  - { name: total, type: \"decimal(10,2)\" }\n  \
     - { name: status, type: string }\n  - { name: created_at, type: timestamp }\n",
);

fn project(files: &[(&str, &str)]) -> TempDir {
    folder_with(&[&[("icestream.yaml", "name: shop"), ORDERS], files].concat())
}

#[test]
fn every_problem_of_every_model_is_found_at_its_line() {
    let project = project(&[
        ("catalog/plain.yaml", "key: [id]\n"),
        (
            "transforms/orders.sql",
            "/* icestream\nkeys: [id]\n*/\n-- the totl is wrong\nSELECT\n  id,\n  totl\nFROM changes\n",
        ),
        ("transforms/a.sql", "/* icestream\nfrom: orders\n*/\nSELECT id, total + status AS x\nFROM changes\n"),
        ("transforms/b.sql", "/* icestream\nfrom: orders\n*/\nSELECT\n  id,,\nFROM changes\n"),
        ("transforms/c.sql", "/* icestream\nfrom: orders\n*/\nSELECT id FROM changes ORDER BY id\n"),
        ("transforms/d.sql", "/* icestream\nfrom: orders\nkeys: [number]\n*/\nSELECT id FROM changes\n"),
        ("transforms/e.sql", "/* icestream\nfrom: orders\n*/\nSELECT total FROM changes\n"),
        ("transforms/f.sql", "/* icestream\nfrom: plain\n*/\nSELECT id FROM changes\n"),
        ("transforms/good.sql", "/* icestream\nfrom: orders\n*/\nSELECT id, total, status FROM changes\n"),
        ("sql/gold/a.sql", "SELECT status, count(*)\nFROM shop_silver.good\nGROUP BY status\n"),
        ("sql/gold/b.sql", "SELECT statuss, sum(total) AS total\nFROM shop_silver.good GROUP BY 1\n"),
        ("sql/gold/c.sql", "SELECT 1 AS one\nFROM shop_silver.goood\n"),
        ("sql/gold/d.sql", "-- not told twice: what it reads is broken\nSELECT x FROM shop_silver.orders\n"),
        ("sql/gold/e.sql", "SELECT abs(total + status) AS x FROM shop_silver.good\n"),
        ("sql/gold/f.sql", "SELECT * FROM\n"),
        ("sql/gold/g.sql", "SELECT totals FROM shop_gold.h\n"),
        (
            "sql/gold/i.sql",
            "/* icestream { refresh: incremental, group_by: [day] } */\nSELECT total FROM shop_silver.good\n",
        ),
        ("sql/gold/h.sql", "SELECT total FROM shop_silver.good WHERE status = 'paid'\n"),
    ]);
    let offline = run(project.path(), "check --offline");
    insta::assert_snapshot!(offline.error(2), @"
    error: the models have 14 problems
      transforms/a.sql:4:1: the query cannot be planned: cannot coerce arithmetic expression Decimal128(10, 2) + Utf8 to valid types
      transforms/b.sql:5:6: the SQL has a mistake: expected an expression, found ,
      transforms/c.sql:4:1: silver table `shop_silver.c`: a silver model is a plain SELECT: WITH, ORDER BY and LIMIT have no meaning in it
      transforms/d.sql:5:1: silver table `shop_silver.d`: its key `number` is not a column of `shop_bronze.orders`; there are `id`, `total`, `status`, `created_at`; name a column of the table as key
      transforms/e.sql:4:1: silver table `shop_silver.e`: the model does not select its key `id` as it is; add `id` to the SELECT, unchanged
      transforms/f.sql:4:1: silver table `shop_silver.f`: the rows of `shop_bronze.plain` are JSON text, and a merge needs columns; declare the columns in `catalog/plain.yaml`
      transforms/orders.sql:7:3: there is no column `totl`; did you mean `total`?
      sql/gold/f.sql:1:1: the SQL has a mistake: expected identifier, found the end
      sql/gold/a.sql:1:1: the column `count(*)` has no name that a table can have; add `AS` and a name of lower-case letters, digits and underscores
      sql/gold/b.sql:1:8: there is no column `statuss`; did you mean `status`?
      sql/gold/c.sql:2:6: there is no table `shop_silver.goood`; did you mean `shop_silver.good`?
      sql/gold/e.sql:1:1: the query cannot be planned: cannot coerce arithmetic expression Decimal128(10, 2) + Utf8 to valid types
      sql/gold/i.sql:2:1: gold table `shop_gold.i`: the model has no column `day` to group by; there are `total`; `group_by` names columns of the model's own table
      sql/gold/g.sql:1:8: there is no column `totals`; did you mean `total`?
    ");
    insta::assert_snapshot!(offline.stdout, @"
    files      20 files, no problem
    models     problems
    ");
    assert_eq!(run(project.path(), "check").error(2), offline.error(2));
}

#[test]
fn every_rule_that_cannot_be_asked_is_found_at_its_line() {
    let project = project(&[
        (
            "transforms/orders.sql",
            "/* icestream\nexpect:\n  - { name: a, that: \"totl >= 0\", else: quarantine }\n  - { name: b, that: total }\n  \
             - { name: c, that: \"sum(total) > 0\" }\n  - { name: d, that: \"total >\" }\n  - not_null: [status, statu]\n    \
             else: drop\n  - { unique: [id, stat] }\n  - { relationship: { id: shop_silver.order.id } }\n  \
             - { name: good, that: \"created_at > '2020-01-01'\" }\n  - { name: e, that: \"_is_current\" }\n  \
             - { freshness: 1h, column: created }\n*/\nSELECT id, total, status FROM changes\n",
        ),
        (
            "sql/gold/g.sql",
            "/* icestream\nexpect:\n  - { name: a, that: \"orders > 0\" }\n  - { name: b, that: \"order > 0\" }\n  \
             - { relationship: { status: shop_silver.orders.state } }\n*/\nSELECT status, count(*) AS orders FROM \
             shop_silver.orders GROUP BY status\n",
        ),
        ("sql/gold/held.sql", "SELECT _rules, _offset FROM shop_silver.orders__quarantine\n"),
    ]);
    insta::assert_snapshot!(run(project.path(), "check --offline").error(2), @"
    error: the models have 12 problems
      transforms/orders.sql:3:22 expect[0].that: there is no column `totl`; did you mean `total`?
      transforms/orders.sql:4:22 expect[1].that: the query cannot be planned: a rule is true or false, and this is a value of type Decimal128(10, 2)
      transforms/orders.sql:5:22 expect[2].that: the query cannot be planned: a rule looks at one row: aggregates, window functions and subqueries have no meaning in it
      transforms/orders.sql:6:22 expect[3].that: the SQL has a mistake: expected an expression, found the end
      transforms/orders.sql:7:15 expect[4].not_null: there is no column `statu`; did you mean `status`?
      transforms/orders.sql:9:15 expect[5].unique: there is no column `stat`; the columns are `id`, `total`, `status`, `_position`, `_source_ts`
      transforms/orders.sql:11:25 expect[7].that: there is no column `created_at`; the columns are `id`, `total`, `status`, `_position`, `_source_ts`
      transforms/orders.sql:12:22 expect[8].that: there is no column `_is_current`; the columns are `id`, `total`, `status`, `_position`, `_source_ts`
      transforms/orders.sql:13:18 expect[9].freshness: there is no column `created`; the columns are `id`, `total`, `status`, `_position`, `_source_ts`
      sql/gold/g.sql:4:22 expect[1].that: there is no column `order`; did you mean `orders`?
      transforms/orders.sql:10:21 expect[6].relationship: there is no table `shop_silver.order`; did you mean `shop_silver.orders`?
      sql/gold/g.sql:5:21 expect[2].relationship: there is no column `state`; the columns are `id`, `total`, `status`, `_position`, `_source_ts`, `_merged_at`
    ");
}

#[test]
fn models_that_read_each_other_in_a_circle() {
    let project = project(&[
        ("sql/gold/a.sql", "SELECT 1 AS x FROM shop_gold.b"),
        ("sql/gold/b.sql", "SELECT 1 AS x FROM shop_gold.a"),
    ]);
    insta::assert_snapshot!(run(project.path(), "check --offline").error(2), @"error: sql/gold: gold models read each other in a circle: `shop_gold.a` reads `shop_gold.b` reads `shop_gold.a`; let one of them read silver tables only");
}

#[tokio::test]
async fn what_only_the_catalog_knows_is_looked_up_there() {
    let (project, _) = project_with_history().await;
    let write = |path: &str, text: &str| {
        let path = project.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("sql/gold/quantities.sql", "SELECT note, sum(qty) AS qty FROM shop.orders GROUP BY 1");
    write("sql/gold/people.sql", "SELECT note FROM crm.people");
    insta::assert_snapshot!(run(project.path(), "check --offline").error(2), @"error: sql/gold/quantities.sql:1:35: there is no table `shop.orders`; `icestream tables` lists the tables there are");
    insta::assert_snapshot!(run(project.path(), "check").error(2), @"error: sql/gold/people.sql:1:18: there is no table `crm.people`; `icestream tables` lists the tables there are");
    std::fs::remove_file(project.path().join("sql/gold/people.sql")).unwrap();
    let checked = run(project.path(), "check");
    insta::assert_snapshot!(checked.normal(checked.done()), @"
    files      2 files, no problem
    models     1 model, no problem
    catalog    SQLite catalog `FOLDER/catalog.db`, 1 namespace
    warehouse  `file://FOLDER/warehouse` can be written to
    ");

    // A model that no longer fits the table it has made.
    let orders =
        "key: [id]\ncolumns: [{ name: id, type: long }, { name: qty, type: int }, { name: note, type: string }]";
    write("catalog/orders.yaml", orders);
    run(project.path(), "check").done();
    write("transforms/orders.sql", "SELECT\n  id, CAST(qty AS string) AS qty, note\nFROM changes\n");
    insta::assert_snapshot!(run(project.path(), "check").error(2), @"error: transforms/orders.sql:1:1: table `shop.orders`: column `qty` cannot go from int to string; give it another name, or `icestream drop shop.orders` and build the table again");
}

#[test]
fn a_model_over_what_nobody_can_look_up_is_skipped() {
    let project = project(&[("sql/gold/people.sql", "SELECT note FROM crm.people")]);
    insta::assert_snapshot!(run(project.path(), "check --offline").done(), @"
    files      3 files, no problem
    models     1 model, no problem; 1 not looked at: only the catalog knows what they read
    ");
}

/// What records brought is in the bronze table, and in no file.
#[test]
fn a_model_may_use_the_columns_that_evolution_made() {
    let project = folder_with(&[
        ("icestream.yaml", "name: shop\nsource: { files: { paths: [\"dump\"], topic: shop.public.orders } }\n"),
        ORDERS,
        (
            "transforms/orders.sql",
            "/* icestream\nkeys: [id]\n*/\nSELECT id, status, status_v2, weight,\n  note\nFROM changes\n",
        ),
        ("sql/gold/heavy.sql", "SELECT id, weight, status_v2 FROM shop_silver.orders"),
        ("sql/gold/raw.sql", "SELECT after['weight'] AS weight FROM shop_bronze.orders"),
    ]);
    let field = |name: &str, kind: &str| json!({"field": name, "type": kind, "optional": true});
    let fields = [field("id", "int32"), field("status", "int32"), field("weight", "double")];
    let after = json!({"field": "after", "type": "struct", "fields": fields, "optional": true});
    let event = json!({
        "schema": {"type": "struct", "fields": [after]},
        "payload": {"op": "c", "before": null, "after": {"id": 1, "status": 3, "weight": 0.5}},
    });
    std::fs::create_dir(project.path().join("dump")).unwrap();
    std::fs::write(project.path().join("dump/0.json"), event.to_string()).unwrap();
    // Before there is a table, nobody knows of the columns.
    insta::assert_snapshot!(run(project.path(), "check").error(2), @"
    error: the models have 2 problems
      transforms/orders.sql:4:20: there is no column `status_v2`; did you mean `status`?
      sql/gold/raw.sql:1:1: the query cannot be planned: field weight not found in struct
    ");
    run(project.path(), "ingest --drain").done();
    // One that no record had is still a mistake.
    insta::assert_snapshot!(run(project.path(), "check").error(2), @"error: transforms/orders.sql:5:3: there is no column `note`; the columns are `id`, `total`, `status`, `created_at`, `status_v2`, `weight`, `_position`, `_source_ts`");
    let declared = ORDERS.1.replace("{ name: status,", "{ name: note, type: string }\n  - { name: status,");
    std::fs::write(project.path().join(ORDERS.0), declared).unwrap();
    let checked = run(project.path(), "check");
    insta::assert_snapshot!(checked.done().lines().nth(1).unwrap(), @"models     3 models, no problem");
    run(project.path(), "ingest --drain").done();
    run(project.path(), "build").done();
    let mut query = icestream(project.path(), "query --format json");
    query.arg("select id, status, status_v2, weight, note from shop_silver.orders");
    insta::assert_snapshot!(Running::start(query).end().done(), @r#"{"id":1,"status":null,"status_v2":3,"weight":0.5,"note":null}"#);
}
