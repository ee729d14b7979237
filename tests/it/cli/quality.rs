//! Rules and audits: bad data is seen, contained, and never half published.

use serde_json::{Value, json};

use super::verbs::{Parts, RIGHT, event, record};
use super::*;

const TRANSFORM: &str = "\
/* icestream
keys: [id]
expect:
  - { name: price_not_negative, that: \"price >= 0\", else: quarantine }
  - { name: has_id_below_100, that: \"id < 100\", else: drop }
  - { not_null: [name], else: warn }
  - { name: note_is_short, that: \"length(note) < 10\" }
  - { unique: [name] }
  - { freshness: 1h, else: warn }
*/
SELECT id, name, price, note FROM changes
";

const WORTH: &str = "\
/* icestream
expect:
  - { name: few_parts, that: \"parts < 4\" }
*/
SELECT count(*) AS parts, CAST(sum(price) AS decimal(18, 2)) AS worth FROM shop_silver.parts
";

/// A change of a part; one without an id has no key either.
fn part(
    offset: i64,
    op: &str,
    id: Option<i64>,
    name: Option<&str>,
    price: &str,
    note: &str,
) -> icestream::change::RawRecord {
    let row = json!({ "id": id, "name": name, "note": note }).to_string();
    let row = format!("{},\"price\":{price}}}", row.trim_end_matches('}'));
    record(0, offset, Some(&json!({ "id": id }).to_string()), &event(op, "null", &row, 100 + offset))
}

async fn project(records: &[icestream::change::RawRecord]) -> Parts {
    let parts = Parts::new(RIGHT, records).await;
    let write = |file: &str, text: &str| {
        let path = parts.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("transforms/parts.sql", TRANSFORM);
    write("sql/gold/worth.sql", WORTH);
    write(
        "sql/audits/cheap.sql",
        "/* icestream { severity: warn } */\nSELECT id FROM shop_silver.parts WHERE price < 4\n",
    );
    write(
        "sql/audits/named.sql",
        "/* icestream { table: shop_gold.worth } */\nSELECT p.id FROM shop_silver.parts AS p, shop_gold.worth WHERE name = 'bad'\n",
    );
    parts
}

fn built(parts: &Parts, code: i32) -> (Ended, Value) {
    let result = parts.path().join("result.json");
    let _ = std::fs::remove_file(&result);
    let ended = parts.run("build --result result.json");
    assert_eq!(ended.code, Some(code), "{ended:?}");
    let result = serde_json::from_slice(&std::fs::read(&result).unwrap()).unwrap();
    (ended, result)
}

/// What was found, but for the snapshots.
fn found(result: &Value) -> Vec<String> {
    let quality = result["built"]["quality"].as_array().cloned().unwrap_or_default();
    let shown = quality.iter().map(|of| {
        let text = |key: &str| of[key].as_str().map_or_else(|| of[key].to_string(), str::to_string);
        format!(
            "{} {} {} {}: {} of {}{}",
            text("table"),
            text("rule"),
            text("kind"),
            text("severity"),
            text("rows_failed"),
            text("rows_checked"),
            if of["snapshot_id"].is_null() { ", in no snapshot" } else { "" }
        )
    });
    shown.collect()
}

/// The error alone: rules that only warn are in the log before it.
fn error_of(ended: &Ended) -> String {
    ended.stderr[ended.stderr.find("error:").unwrap()..].to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_data_is_seen_and_contained() {
    let parts = project(&[
        part(0, "c", Some(1), Some("one"), "10", "a"),
        part(1, "c", Some(2), Some("two"), "-1", "b"),
        part(2, "c", None, Some("nobody"), "5", "c"),
        part(3, "c", Some(3), None, "3", "d"),
        part(4, "c", Some(100), Some("hundred"), "100", "e"),
    ])
    .await;
    parts.run("check --offline").done();
    let (_, result) = built(&parts, 0);
    insta::assert_snapshot!(found(&result).join("\n"), @"
    shop_silver.parts price_not_negative that quarantine: 1 of 4
    shop_silver.parts has_id_below_100 that drop: 1 of 4
    shop_silver.parts not_null_name not_null warn: 1 of 4
    shop_silver.parts note_is_short that fail: 0 of 4
    shop_silver.parts unique_name unique fail: 0 of 1
    shop_silver.parts freshness freshness warn: 1 of null
    shop_gold.worth few_parts that fail: 0 of 1
    shop_silver.parts cheap audit warn: 1 of null
    shop_gold.worth named audit fail: 0 of null, in no snapshot
    ");
    let built_rows = |key: &str| result["built"][key].as_u64().unwrap();
    assert_eq!(
        ["silver_rows_quarantined", "silver_null_keys", "silver_rows_dropped"].map(built_rows),
        [2, 1, 1],
        "{result}"
    );
    let silver = async || parts.rows("shop_silver.parts", "id, name, price").await;
    let gold = async || parts.rows("shop_gold.worth", "parts, worth").await;
    let kept = async || parts.rows("shop_gold.icestream_quality", "rule, rows_failed").await.len();
    let quarantine = "id, name, _topic_partition, _offset, array_to_string(_rules, '|') AS rules";
    assert_eq!(silver().await, [["1", "one", "10.00"], ["3", "null", "3.00"]]);
    assert_eq!(gold().await, [["2", "13.00"]]);
    assert_eq!(
        parts.rows("shop_silver.parts__quarantine", quarantine).await,
        [["2", "two", "0", "1", "price_not_negative"], ["null", "nobody", "0", "2", "null_key"]]
    );
    assert_eq!(kept().await, 9);
    let shown = parts.run("status --no-source").done().to_string();
    assert!(shown.contains(" 2 (1 without a key)"), "{shown}");
    let quality = shown.split("\n\n").last().unwrap().lines();
    // But for when it was asked.
    let quality: Vec<&str> = quality.map(|line| line.rsplit_once(['|', '+']).unwrap().0.trim_end()).collect();
    insta::assert_snapshot!(quality.join("\n"), @"
     quality           | rule               | kind      | else       | found
    -------------------+--------------------+-----------+------------+-------------
     shop_gold.worth   | few_parts          | that      | fail       | ok
     shop_gold.worth   | named              | audit     | fail       | ok
     shop_silver.parts | cheap              | audit     | warn       | 1 row
     shop_silver.parts | freshness          | freshness | warn       | stale
     shop_silver.parts | has_id_below_100   | that      | drop       | 1 of 4 rows
     shop_silver.parts | not_null_name      | not_null  | warn       | 1 of 4 rows
     shop_silver.parts | note_is_short      | that      | fail       | ok
     shop_silver.parts | price_not_negative | that      | quarantine | 1 of 4 rows
     shop_silver.parts | unique_name        | unique    | fail       | ok
    ");
    let status = parts.run("status --no-source --json").json();
    assert_eq!(status["silver"][0]["quarantined"], json!({ "rows": 2, "null_keys": 1 }));
    assert_eq!(status["quality"].as_array().unwrap().len(), 9, "{status}");

    // Nothing moved: nothing is asked again, and nothing is written.
    let (_, result) = built(&parts, 0);
    assert_eq!(found(&result), ["shop_silver.parts freshness freshness warn: 1 of null"]);
    assert_eq!(kept().await, 9);

    // A note that is too long, and a name that is there twice.
    parts
        .ingest(
            &[part(5, "c", Some(5), Some("one"), "5", "far too long"), part(6, "c", Some(6), Some("six"), "6", "f")],
            0,
        )
        .await;
    for _ in 0..2 {
        let (ended, result) = built(&parts, 4);
        insta::allow_duplicates!(insta::assert_snapshot!(error_of(&ended), @"
        error: silver table `shop_silver.parts` was not merged: its rows would break `note_is_short` by 1 row, from shop.public.parts/0 at offset 5; `unique_name` by 2 rows
          the table is as it was; safe to run again
          hint: mend the source, or change what the rule does by its `else` in the model; the next build asks again
        "));
        insta::allow_duplicates!(insta::assert_snapshot!(found(&result).join("\n"), @"
        shop_silver.parts price_not_negative that quarantine: 0 of 2, in no snapshot
        shop_silver.parts has_id_below_100 that drop: 0 of 2, in no snapshot
        shop_silver.parts not_null_name not_null warn: 0 of 2, in no snapshot
        shop_silver.parts note_is_short that fail: 1 of 2, in no snapshot
        shop_silver.parts unique_name unique fail: 2 of 3, in no snapshot
        shop_silver.parts freshness freshness warn: 1 of null
        "));
        assert_eq!(silver().await.len(), 2);
        assert_eq!(gold().await, [["2", "13.00"]]);
    }
    assert_eq!(parts.rows("shop_silver.parts__quarantine", "id").await.len(), 2);

    // The source mends both, and the row in quarantine; but now gold has too many.
    parts
        .ingest(&[part(7, "u", Some(5), Some("five"), "5", "short"), part(8, "u", Some(2), Some("two"), "2", "b")], 0)
        .await;
    let (ended, _) = built(&parts, 4);
    insta::assert_snapshot!(error_of(&ended), @"
    error: gold table `shop_gold.worth` was not refreshed: its rows would break `few_parts` by 1 row
      the table is as it was; safe to run again
      hint: mend what it reads, or its query, or let the rule `warn`; the next build asks again
    ");
    assert_eq!(silver().await.len(), 5);
    assert_eq!(gold().await, [["2", "13.00"]]);
    assert_eq!(parts.rows("shop_silver.parts__quarantine", "id").await, [["null"]]);

    // Two go, and one gets a name that an audit looks for.
    let gone = |offset: i64, id: i64| {
        let row = json!({ "id": id, "name": null, "note": null, "price": null }).to_string();
        record(0, offset, Some(&json!({ "id": id }).to_string()), &event("d", &row, "null", 100 + offset))
    };
    parts.ingest(&[gone(9, 6), gone(10, 5), part(11, "u", Some(1), Some("bad"), "10", "a")], 0).await;
    let (ended, _) = built(&parts, 4);
    insta::assert_snapshot!(error_of(&ended), @r#"
    error: audit `named` found 1 row
      the tables it reads are published: it is asked of what is there
      hint: to see them, run `icestream query "$(cat sql/audits/named.sql)"`
    "#);
    assert_eq!(gold().await, [["3", "15.00"]]);
    // It stays so until somebody mends it, and is not asked again.
    let before = kept().await;
    let (_, result) = built(&parts, 4);
    assert_eq!(found(&result), ["shop_silver.parts freshness freshness warn: 1 of null"]);
    assert_eq!(kept().await, before);
    parts.ingest(&[part(12, "u", Some(1), Some("good"), "10", "a")], 0).await;
    built(&parts, 0);
    let status = parts.run("status --no-source --json").json();
    let failed: Vec<&Value> =
        status["quality"].as_array().unwrap().iter().filter(|of| of["passed"] == json!(false)).collect();
    // The last merge made no row without a name: what rules about rows find is of the rows that a build made.
    assert_eq!(failed.iter().map(|of| of["rule"].as_str().unwrap()).collect::<Vec<_>>(), ["cheap", "freshness"]);
    let all = parts.run("build --full parts");
    assert_eq!(all.code, Some(0), "{all:?}");
    assert_eq!(
        parts.rows("shop_silver.parts__quarantine", quarantine).await,
        [["null", "nobody", "0", "2", "null_key"]]
    );
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_build_found_that_died_is_kept_by_the_next() {
    let parts = project(&[part(0, "c", Some(1), Some("one"), "10", "a")]).await;
    built(&parts, 0);
    let count = "count(*) FILTER (WHERE rule = 'not_null_name' AND rows_failed = 1) AS nameless, \
                 count(*) FILTER (WHERE rule = 'price_not_negative' AND rows_failed = 1) AS negative, \
                 count(*) FILTER (WHERE rule = 'few_parts') AS gold";
    let kept = async || parts.rows("shop_gold.icestream_quality", count).await;
    assert_eq!(kept().await, [["0", "0", "1"]]);
    // The quarantine, silver and gold are committed, or some of them; what was found would be the last commit.
    for (died, step) in ["commit-after-swap=2", "commit-after-swap=3", "commit-before-swap=4"].into_iter().enumerate() {
        let (at, id) = (1 + 3 * died as i64, 10 * (1 + died as i64));
        let records = [
            part(at, "c", Some(id), None, "3", "d"),
            part(at + 1, "c", Some(id + 1), Some("two"), "-1", "b"),
            // So that there are never many.
            part(at + 2, "d", Some(id), None, "3", "d"),
        ];
        let (first, gone) = records.split_at(2);
        parts.ingest(first, 0).await;
        let mut command = icestream(parts.path(), "build");
        command.env("ICESTREAM_DIE_AT", step);
        let ended = Running::start(command).end();
        assert_eq!(ended.code, None, "{step}: {ended:?}");
        let before = kept().await;
        let (_, result) = built(&parts, 0);
        let found = found(&result);
        let told = ["not_null_name not_null warn", "price_not_negative that quarantine"];
        for rule in told {
            let expected = format!("shop_silver.parts {rule}: 1 of null");
            assert!(found.contains(&expected), "{step}: {expected} is not in {found:#?}");
        }
        let now = kept().await;
        let number = |rows: &[Vec<String>], column: usize| rows[0][column].parse::<u64>().unwrap();
        for column in 0..3 {
            assert_eq!(number(&now, column), number(&before, column) + 1, "{step}, {column}: {before:?} {now:?}");
        }
        // Once, and no more.
        built(&parts, 0);
        assert_eq!(kept().await, now, "{step}");
        let status = parts.run("status --no-source --json").json();
        let failed = status["quality"].as_array().unwrap().iter().filter(|of| of["passed"] == json!(false));
        let failed: Vec<&str> = failed.map(|of| of["rule"].as_str().unwrap()).collect();
        assert_eq!(failed, ["cheap", "freshness", "not_null_name", "price_not_negative"], "{step}");
        parts.ingest(gone, 0).await;
        built(&parts, 0);
    }
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_first_build_found_that_died_is_kept_once() {
    let nameless = |offset: i64| part(offset, "c", Some(offset), None, "10", "a");
    let parts = Parts::new(RIGHT, &[nameless(0)]).await;
    let file = parts.path().join("transforms/parts.sql");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    let rule = "/* icestream\nkeys: [id]\nexpect:\n  - { not_null: [name], else: warn }\n*/\n";
    std::fs::write(file, format!("{rule}SELECT id, name FROM changes")).unwrap();
    let kept = async || parts.rows("shop_gold.icestream_quality", "rule, rows_failed").await.len();
    // Of the first, all rows of the table are asked, since nobody has asked them; of the second, the summary tells.
    for (round, expected) in [(1, "1 of 1"), (2, "1 of null")] {
        let mut command = icestream(parts.path(), "build");
        command.env("ICESTREAM_DIE_AT", "commit-after-swap=1");
        let ended = Running::start(command).end();
        assert_eq!(ended.code, None, "{round}: {ended:?}");
        let (_, result) = built(&parts, 0);
        assert_eq!(found(&result), [format!("shop_silver.parts not_null_name not_null warn: {expected}")]);
        let (_, result) = built(&parts, 0);
        assert_eq!((found(&result).len(), kept().await), (0, round));
        parts.ingest(&[nameless(round as i64)], 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relationship_finds_the_rows_of_the_same_build_and_holds_back_who_reads_its_table() {
    let parts =
        Parts::new(RIGHT, &[part(0, "c", Some(1), Some("one"), "10", "2"), part(1, "c", Some(2), None, "1", "2")])
            .await;
    let write = |file: &str, text: &str| {
        let path = parts.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let child = "/* icestream\nfrom: parts\nkeys: [id]\nexpect:\n  - { relationship: { note: shop_silver.parents.number } }\n*/\n\
                 SELECT id, note FROM changes";
    write("transforms/children.sql", child);
    write(
        "transforms/parents.sql",
        "/* icestream { from: parts, keys: [id] } */ SELECT id, CAST(id AS VARCHAR) AS number FROM changes",
    );
    write("sql/gold/a.sql", "SELECT count(*) AS rows FROM shop_silver.children");
    write("sql/gold/b.sql", "SELECT count(*) AS rows FROM shop_silver.parents");
    built(&parts, 0);
    assert_eq!(parts.rows("shop_gold.a", "rows").await, [["2"]]);
    parts.ingest(&[part(2, "c", Some(3), None, "1", "4")], 0).await;
    let (ended, _) = built(&parts, 4);
    insta::assert_snapshot!(error_of(&ended), @"
    error: silver table `shop_silver.children` was not merged: its rows would break `relationship_note` by 1 row
      the table is as it was; safe to run again
      hint: mend the source, or change what the rule does by its `else` in the model; the next build asks again
    ");
    assert_eq!(parts.rows("shop_gold.a", "rows").await, [["2"]]);
    assert_eq!(parts.rows("shop_gold.b", "rows").await, [["3"]]);
    parts.ingest(&[part(3, "c", Some(4), None, "1", "1")], 0).await;
    built(&parts, 0);
    assert_eq!(parts.rows("shop_gold.a", "rows").await, [["4"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relationship_to_a_table_that_is_not_made_yet_holds_for_no_row() {
    let parts = Parts::new(RIGHT, &[part(0, "c", Some(1), Some("one"), "10", "2")]).await;
    let children = |action: &str| {
        let rule = format!("{{ relationship: {{ note: shop_silver.parents.number }}, else: {action} }}");
        let front = format!("/* icestream\nfrom: parts\nkeys: [id]\nexpect:\n  - {rule}\n*/\n");
        std::fs::write(parts.path().join("transforms/children.sql"), front + "SELECT id, note FROM changes").unwrap();
    };
    let parents = "/* icestream { from: nobody, keys: [id] } */ SELECT id, CAST(id AS VARCHAR) AS number FROM changes";
    std::fs::create_dir_all(parts.path().join("transforms")).unwrap();
    std::fs::write(parts.path().join("transforms/parents.sql"), parents).unwrap();
    children("fail");
    let (ended, _) = built(&parts, 4);
    insta::assert_snapshot!(error_of(&ended), @"
    error: silver table `shop_silver.children` was not merged: its rows would break `relationship_note` by 1 row
      the table is as it was; safe to run again
      hint: mend the source, or change what the rule does by its `else` in the model; the next build asks again
    ");
    children("warn");
    built(&parts, 0);
    assert_eq!(parts.rows("shop_silver.children", "id, note").await, [["1", "2"]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_is_new_looks_once_at_the_rows_that_are_there() {
    let records = [part(0, "c", Some(1), Some("one"), "10", "a"), part(1, "c", Some(2), Some("one"), "-1", "b")];
    let parts = Parts::new(RIGHT, &records).await;
    let write = |file: &str, text: &str| {
        let path = parts.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let expect = |rules: &str| {
        let front = format!("/* icestream\nkeys: [id]\nexpect:\n  - {{ not_null: [name] }}\n{rules}*/\n");
        write("transforms/parts.sql", &format!("{front}SELECT id, name, price FROM changes"));
    };
    write("sql/gold/worth.sql", "SELECT count(*) AS parts FROM shop_silver.parts");
    expect("");
    built(&parts, 0);
    // Nothing moved but the rules.
    expect("  - { name: cheap, that: \"rows.price < 5\", else: warn }\n  - { unique: [name], else: warn }\n");
    let (_, result) = built(&parts, 0);
    insta::assert_snapshot!(found(&result).join("\n"), @"
    shop_silver.parts cheap that warn: 1 of 2
    shop_silver.parts unique_name unique warn: 2 of 2
    ");
    let (_, result) = built(&parts, 0);
    assert_eq!(found(&result), [""; 0]);
    expect("  - { name: positive, that: \"price > 0\" }\n");
    for _ in 0..2 {
        let (ended, result) = built(&parts, 4);
        insta::allow_duplicates!(insta::assert_snapshot!(error_of(&ended), @"
        error: table `shop_silver.parts` breaks `positive` by 1 row that it had before the rule
          the rows stay; models that read the table are held back
          hint: mend the source, or change what the rule does by its `else` in the model; the next build asks again
        "));
        assert_eq!(found(&result), ["shop_silver.parts positive that fail: 1 of 2"]);
    }
    // What comes is merged, and who reads it waits until what was there is mended.
    parts.ingest(&[part(2, "c", Some(3), Some("three"), "3", "c")], 0).await;
    let (_, result) = built(&parts, 4);
    assert!(found(&result).contains(&"shop_silver.parts positive that fail: 1 of 3".to_string()), "{result}");
    assert_eq!(parts.rows("shop_silver.parts", "id").await.len(), 3);
    assert_eq!(parts.rows("shop_gold.worth", "parts").await, [["2"]]);
    parts.ingest(&[part(3, "u", Some(2), Some("two"), "1", "b")], 0).await;
    let (_, result) = built(&parts, 0);
    assert!(found(&result).contains(&"shop_silver.parts positive that fail: 0 of 3".to_string()), "{result}");
    assert_eq!(parts.rows("shop_gold.worth", "parts").await, [["3"]]);
    parts.ingest(&[part(4, "u", Some(2), Some("two"), "2", "b")], 0).await;
    let (_, result) = built(&parts, 0);
    assert!(found(&result).contains(&"shop_silver.parts positive that fail: 0 of 1".to_string()), "{result}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn findings_are_kept_as_long_as_is_said_and_the_latest_of_each_for_good() {
    let parts = Parts::new(RIGHT, &[part(0, "c", Some(1), Some("one"), "10", "a")]).await;
    let transform = |expect: &str| {
        let text = format!("/* icestream\nkeys: [id]\nexpect:\n{expect}*/\nSELECT id, name FROM changes");
        std::fs::create_dir_all(parts.path().join("transforms")).unwrap();
        std::fs::write(parts.path().join("transforms/parts.sql"), text).unwrap();
    };
    let (stays, goes) = ("  - { not_null: [name] }\n", "  - { name: once, that: \"id > 0\", else: warn }\n");
    transform(&format!("{stays}{goes}"));
    parts.run("build").done();
    transform(stays);
    let kept = async |rule: &str| {
        let rules = parts.rows("shop_gold.icestream_quality", "rule").await;
        rules.iter().filter(|of| of[0] == rule).count()
    };
    // Until something is too old, each build adds one.
    let mut builds = 1;
    while kept("not_null_name").await == builds {
        assert!(builds < 60, "nothing ever went");
        parts.ingest(&[part(builds as i64, "u", Some(1), Some("one"), "10", "a")], 0).await;
        parts.run("build --set build.keep_findings=1s").done();
        builds += 1;
    }
    assert_eq!(kept("once").await, 1);
}
