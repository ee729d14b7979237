//! The meaning of silver and gold, told by `tests/sql/**/*.slt`: one topic a file, in the words its users use.
//!
//! A file is a sqllogictest script. Besides queries, which go to the engine, its statements are:
//!
//! - `table orders (id int, status string) key (id)`: a captured table, as `catalog/orders.yaml` would declare it. Saying it
//!   again with other columns is a schema change of the source. Without a key, its messages have none.
//! - `file transforms/orders.sql`, and its text in the lines below: a file of the project.
//! - `events orders`, and a row for each record in the lines below: they are committed to bronze, in one commit. See
//!   [`events`] for the columns. `events orders epoch 1`: of a source that was made anew.
//! - `build`, `build orders`, `build --full orders`: what `icestream build` does; `statement count N` says how many tables it
//!   committed to.
//! - `build, and a rebuild differs`: the same where the rows depend on when builds ran. Everywhere else they must not: **behind
//!   every `build` all of silver and gold is built from nothing in a second lake, and has to be the same.**
//! - `check`: what `icestream check` says of the models.
//! - `remember monday`: names the state of all tables; a query that begins with `as of monday` reads that.
//!
//! `query TT` and `what was built` tells what the last build did to each table.
//!
//! Column types are `I` (whole numbers), `R` (others), `T` (text), `B` (true or false), `D` (dates) and `P` (points in time);
//! they are checked. A null is shown as `NULL`, an empty text as `(empty)`. `ICESTREAM_SLT=late` runs the files whose path has
//! that word.

mod events;
mod shop;

use std::path::{Path, PathBuf};

use futures::StreamExt;
use sqllogictest::{Runner, TestError, strict_column_validator};

use shop::Shop;

async fn run(script: &Path) -> Result<(), TestError> {
    let mut runner = Runner::new(|| async { Ok(Shop::open()) });
    runner.with_column_validator(strict_column_validator);
    runner.run_file_async(script).await
}

fn scripts(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => scripts(&path, found),
            false => found.extend(path.extension().is_some_and(|ending| ending == "slt").then_some(path)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rule_holds_as_its_file_tells_it() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql");
    let mut found = Vec::new();
    scripts(&folder, &mut found);
    found.sort();
    let wanted = std::env::var("ICESTREAM_SLT").unwrap_or_default();
    found.retain(|script| script.strip_prefix(&folder).unwrap().to_string_lossy().contains(&wanted));
    assert!(!found.is_empty(), "no file has `{wanted}` in its path");
    let mut failures = Vec::new();
    let running = found.into_iter().map(|script| tokio::spawn(async move { run(&script).await }));
    let mut ended = futures::stream::iter(running).buffer_unordered(2);
    while let Some(outcome) = ended.next().await {
        failures.extend(outcome.unwrap().err().map(|error| error.to_string()));
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A harness that never says no proves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_expects_something_else_fails() {
    let folder = tempfile::tempdir().unwrap();
    let told = |name: &str, script: &str| {
        let path = folder.path().join(format!("{name}.slt"));
        let start = "statement ok\ntable orders (id int, status string) key (id)\n\nstatement ok\nevents orders\n\
                     op | id | status\nc | 1 | paid\n\nstatement ok\nbuild\n\n";
        std::fs::write(&path, format!("{start}{script}\n")).unwrap();
        path
    };
    let of_orders =
        |types: &str, rows: &str| format!("query {types}\nSELECT id, status FROM silver.orders\n----\n{rows}");
    for (name, script, expected) in [
        ("right", of_orders("IT", "1 paid"), None),
        ("value", of_orders("IT", "1 pending"), Some("query result mismatch")),
        ("rows", of_orders("IT", "1 paid\n2 paid"), Some("query result mismatch")),
        ("type", of_orders("TT", "1 paid"), Some("query columns mismatch")),
        (
            "count",
            "statement count 1\nbuild".to_string(),
            Some("expected to affect 1 rows, but actually affected 0 rows"),
        ),
        ("difference", "statement ok\nbuild, and a rebuild differs".to_string(), Some("a rebuild gives the same")),
        ("word", "statement ok\nbuilt".to_string(), Some("SQL")),
        ("event", "statement ok\nevents orders\nop | id | colour\nc | 1 | red".to_string(), Some("no column `colour`")),
        ("table", "statement ok\nevents parts\nop | id\nc | 1".to_string(), Some("no table `parts`")),
        ("state", "statement ok\nas of monday\nSELECT 1".to_string(), Some("nothing was remembered as `monday`")),
    ] {
        let outcome = run(&told(name, &script)).await.map_err(|error| error.to_string());
        match (&outcome, expected) {
            (Ok(()), None) => {}
            (Err(error), Some(expected)) if error.contains(expected) => {}
            _ => panic!("{name}: {outcome:?} and not {expected:?}"),
        }
    }
}

/// Rows that a rebuild would not give are found, whoever put them there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_a_rebuild_would_not_give_fails_the_build() {
    let mut shop = Shop::open();
    shop.tell("table orders (id int, status string) key (id)").await.unwrap();
    shop.tell("events orders\nop | id | status\nc | 1 | paid\nc | 2 | paid").await.unwrap();
    shop.tell("build").await.unwrap();
    shop.lose_the_rows_of("silver.orders").await;
    shop.tell("events orders\nop | id | status\nc | 3 | paid").await.unwrap();
    let told = shop.tell("build").await.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(told.contains("silver.orders: a rebuild also has: _position="), "{told}");
}
