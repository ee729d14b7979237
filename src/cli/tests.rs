//! What a person sees of the command line, without the lake.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use clap::CommandFactory;

use super::check::{CheckArgs, Finding, Reached};
use super::*;
use crate::table::At;
use crate::table::error::Error as TableError;

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<u8>>>);

impl Write for Seen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seen {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

/// A context in a folder, and what is written to its stdout.
fn context(folder: &std::path::Path) -> (Context, Seen) {
    let seen = Seen::default();
    let context = Context {
        project: folder.to_path_buf(),
        assignments: Vec::new(),
        environment: Environment::new(),
        clock: Clock::manual(0).0,
        stdout: Stdout::to(Box::new(seen.clone())),
        progress: Progress::new(false),
        quiet: true,
        signals: Signals::none(),
    };
    (context, seen)
}

fn parse(words: &[&str]) -> Result<Cli, String> {
    Cli::try_parse_from([&["icestream"], words].concat()).map_err(|error| {
        assert!(matches!(error.exit_code(), 0 | 2));
        error.to_string()
    })
}

fn usage(words: &[&str]) -> String {
    parse(words).expect_err("this is a usage error")
}

fn help(verb: &[&str]) -> String {
    let mut command = Cli::command().term_width(100);
    command.build();
    let command = verb.iter().fold(&mut command, |command, verb| command.find_subcommand_mut(verb).unwrap());
    command.render_long_help().to_string()
}

#[test]
fn the_arguments_hang_together() {
    Cli::command().debug_assert();
}

#[test]
fn help_is_what_it_was() {
    insta::assert_snapshot!(help(&[]), @"
    Change events from Kafka to Iceberg bronze, silver and gold tables, exactly once

    Usage: icestream [OPTIONS] <COMMAND>

    Commands:
      demo      Run the whole way in one process: a broker, a shop, bronze, silver and gold, checked
                against the shop's own truth
      init      Make a project folder: settings, one declared table, one transform, one gold model
      discover  Sample topics, read CREATE TABLE files, and draft `catalog/<table>.yaml` for review
      check     Find every problem of the project: files, SQL, types, catalog, warehouse and brokers
      plan      Show what a run would create, change, rebuild and read, without doing it
      run       Ingest and build, again and again
      ingest    Read Kafka into bronze tables
      build     Bring silver and gold tables up to date
      backfill  Add history to bronze tables, from files or from Kafka again, without what is there
                already
      status    Show how far behind, how fresh and how sound the tables are
      verify    Prove that nothing is missing: each table against what it was made from
      rejected  List the records that could not become rows, look at one, or decode them again
      offsets   Show how far the tables have read, move that, or take it over from elsewhere
      query     Run SQL over the lake
      sql       Print the SQL that a build stands for, in Trino's dialect
      tables    List tables; show one's columns, snapshots, files, properties or orphan files
      drop      Remove a table from the catalog and, with `--purge`, its files
      maintain  Put small files together, forget old snapshots, find leftovers
      config    Show the configuration, its reference page or its JSON schema
      help      Print this message or the help of the given subcommand(s)

    Options:
      -h, --help
              Print help (see a summary with '-h')

      -V, --version
              Print version

    Global options:
          --project <DIR>
              The project folder, the one with `icestream.yaml` [env: ICESTREAM_PROJECT] [default: the
              current folder]

          --set <KEY=VALUE>
              Override one setting, such as `commit.every=5s`; can be repeated

          --log <LEVEL>
              What to log: `error`, `warn`, `info`, `debug`, `trace`, `off`, or a filter such as
              `info,icestream::table=debug` [env: ICESTREAM_LOG] [default: warn]

          --log-format <FORMAT>
              How log lines look [env: ICESTREAM_LOG_FORMAT] [default: text]

              Possible values:
              - text: One line of text, for people
              - json: One JSON object per line, for log collectors

      -q, --quiet
              No progress bars and no notes; only results and errors

          --color <WHEN>
              Colors in messages and logs

              Possible values:
              - auto:   On a terminal, unless `NO_COLOR` is set
              - always: Always
              - never:  Never
              
              [default: auto]

    Exit codes:
      0  done, also when there was nothing to do
      1  failed
      2  usage or configuration: mend it and try again
      3  something was unavailable; a retry may help
      4  a quality rule or an audit failed
      130, 143  ended by Ctrl-C or SIGTERM

    Data goes to stdout, everything else to stderr.
    ");
    insta::assert_snapshot!(help(&["query"]), @r#"
    Run SQL over the lake

    Tables are named `namespace.table`. The result goes to stdout or, with `-o`, to a file that appears
    when it is complete.

    Usage: icestream query [OPTIONS] [SQL]

    Arguments:
      [SQL]
              The SQL

    Options:
      -f, --file <FILE>
              Read the SQL from a file; `-` is stdin

          --format <FORMAT>
              How rows are written [default: by the ending of FILE, else table]

              Possible values:
              - table:   Columns for the eye; cut to the width of a terminal
              - csv:     With a header; structs and lists as JSON
              - json:    One JSON object per line
              - parquet: Parquet, compressed with zstd

      -o, --output <FILE>
              Write to a file

          --snapshot <ID>
              Read the tables as they were in this snapshot; for queries over one table

          --as-of <TIME>
              Read the tables as they were at this time: `2025-03-01`, `2025-03-01 12:00[:00]` (both
              UTC) or `2025-03-01T12:00:00+01:00`

          --limit <N>
              Write at most this many rows

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --project <DIR>
              The project folder, the one with `icestream.yaml` [env: ICESTREAM_PROJECT] [default: the
              current folder]

          --set <KEY=VALUE>
              Override one setting, such as `commit.every=5s`; can be repeated

          --log <LEVEL>
              What to log: `error`, `warn`, `info`, `debug`, `trace`, `off`, or a filter such as
              `info,icestream::table=debug` [env: ICESTREAM_LOG] [default: warn]

          --log-format <FORMAT>
              How log lines look [env: ICESTREAM_LOG_FORMAT] [default: text]

              Possible values:
              - text: One line of text, for people
              - json: One JSON object per line, for log collectors

      -q, --quiet
              No progress bars and no notes; only results and errors

          --color <WHEN>
              Colors in messages and logs

              Possible values:
              - auto:   On a terminal, unless `NO_COLOR` is set
              - always: Always
              - never:  Never
              
              [default: auto]

    Examples:
      icestream query "select count(*) from shop_silver.orders"
      icestream query -f report.sql --format csv -o report.csv
      icestream query "select * from shop_gold.revenue_per_day" --as-of '2025-03-01 12:00'
      echo 'select 1' | icestream query -f -
    "#);
    insta::assert_snapshot!(help(&["tables"]), @"
    List tables; show one's columns, snapshots, files, properties or orphan files

    Usage: icestream tables [OPTIONS]
           icestream tables <COMMAND>

    Commands:
      list        The tables of the project's namespaces, with sizes and the last commit (the default)
      show        One table: columns, partitioning, sizes, location
      snapshots   Its snapshots, newest first
      files       The files of its current snapshot
      properties  Its properties
      orphans     Files under its location that no snapshot refers to
      help        Print this message or the help of the given subcommand(s)

    Options:
          --json
              Print JSON

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --project <DIR>
              The project folder, the one with `icestream.yaml` [env: ICESTREAM_PROJECT] [default: the
              current folder]

          --set <KEY=VALUE>
              Override one setting, such as `commit.every=5s`; can be repeated

          --log <LEVEL>
              What to log: `error`, `warn`, `info`, `debug`, `trace`, `off`, or a filter such as
              `info,icestream::table=debug` [env: ICESTREAM_LOG] [default: warn]

          --log-format <FORMAT>
              How log lines look [env: ICESTREAM_LOG_FORMAT] [default: text]

              Possible values:
              - text: One line of text, for people
              - json: One JSON object per line, for log collectors

      -q, --quiet
              No progress bars and no notes; only results and errors

          --color <WHEN>
              Colors in messages and logs

              Possible values:
              - auto:   On a terminal, unless `NO_COLOR` is set
              - always: Always
              - never:  Never
              
              [default: auto]

    Examples:
      icestream tables
      icestream tables show shop_silver.orders
      icestream tables snapshots shop_silver.orders --json | jq '.[0].snapshot_id'
      icestream tables orphans shop_bronze.orders --older-than 7d
    ");
    insta::assert_snapshot!(help(&["tables", "orphans"]), @"
    Files under its location that no snapshot refers to

    Usage: icestream tables orphans [OPTIONS] <NS.TABLE>

    Arguments:
      <NS.TABLE>
              The table, `namespace.table`

    Options:
          --older-than <DURATION>
              Leave out younger files: they may belong to a commit that is on its way
              
              [default: 3d]

          --json
              Print JSON

      -h, --help
              Print help (see a summary with '-h')

    Global options:
          --project <DIR>
              The project folder, the one with `icestream.yaml` [env: ICESTREAM_PROJECT] [default: the
              current folder]

          --set <KEY=VALUE>
              Override one setting, such as `commit.every=5s`; can be repeated

          --log <LEVEL>
              What to log: `error`, `warn`, `info`, `debug`, `trace`, `off`, or a filter such as
              `info,icestream::table=debug` [env: ICESTREAM_LOG] [default: warn]

          --log-format <FORMAT>
              How log lines look [env: ICESTREAM_LOG_FORMAT] [default: text]

              Possible values:
              - text: One line of text, for people
              - json: One JSON object per line, for log collectors

      -q, --quiet
              No progress bars and no notes; only results and errors

          --color <WHEN>
              Colors in messages and logs

              Possible values:
              - auto:   On a terminal, unless `NO_COLOR` is set
              - always: Always
              - never:  Never
              
              [default: auto]
    ");
}

#[test]
fn every_verb_has_help_and_examples() {
    for verb in ["demo", "init", "check", "query", "tables", "drop", "maintain", "config"] {
        assert!(help(&[verb]).contains("\nExamples:\n  icestream "), "{verb}");
    }
}

#[test]
fn usage_errors_say_what_is_wrong() {
    insta::assert_snapshot!(usage(&["qurey"]), @"
    error: unrecognized subcommand 'qurey'

      tip: a similar subcommand exists: 'query'

    Usage: icestream [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(usage(&["query"]), @"
    error: the following required arguments were not provided:
      <SQL>

    Usage: icestream query <SQL>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(usage(&["query", "select 1", "--as-of", "yesterday"]), @"
    error: invalid value 'yesterday' for '--as-of <TIME>': write `2025-03-01`, `2025-03-01 12:00` or `2025-03-01T12:00:00+01:00`

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(usage(&["query", "select 1", "--snapshot", "1", "--as-of", "2025-01-01"]), @"
    error: the argument '--snapshot <ID>' cannot be used with '--as-of <TIME>'

    Usage: icestream query --snapshot <ID> <SQL>

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(usage(&["query", "select 1", "--format", "xlsx"]), @"
    error: invalid value 'xlsx' for '--format <FORMAT>'
      [possible values: table, csv, json, parquet]

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(usage(&["drop", "Orders"]), @"
    error: invalid value 'Orders' for '<NS.TABLE>': `Orders` is not a table name: write `namespace.table`

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(usage(&["demo", "--events", "0"]), @"
    error: invalid value '0' for '--events <N>': there must be at least one event

    For more information, try '--help'.
    ");
    insta::assert_snapshot!(usage(&["tables", "orphans", "a.b", "--older-than", "3"]), @"
    error: invalid value '3' for '--older-than <DURATION>': `3` is not a duration; write a number and a unit, such as `500ms`, `10s`, `1m` or `2h`

    For more information, try '--help'.
    ");
}

#[test]
fn global_flags_stand_anywhere() {
    let cli = parse(&["check", "--project", "x", "--set", "memory=1GiB", "-q", "--set", "name=y"]).unwrap();
    assert_eq!(cli.global.project, Some(PathBuf::from("x")));
    assert_eq!(cli.global.set, ["memory=1GiB", "name=y"]);
    assert!(cli.global.quiet);
    assert!(parse(&["--project", "x", "tables", "--json"]).is_ok());
    assert!(parse(&["tables", "snapshots", "a.b", "--json"]).is_ok());
}

#[tokio::test]
async fn a_new_project_has_no_problems() {
    let folder = tempfile::tempdir().unwrap();
    let project = folder.path().join("Web Shop");
    let (mut context, seen) = context(folder.path());
    let init = |folder: PathBuf, name: Option<&str>| init::InitArgs { folder, name: name.map(str::to_string) };
    assert_eq!(init::run(init(project.clone(), None), &context).await.unwrap(), Outcome::Done);
    let text = seen.text().replace(folder.path().to_str().unwrap(), "");
    insta::assert_snapshot!(text, @"
    /Web Shop/icestream.yaml
    /Web Shop/catalog/orders.yaml
    /Web Shop/transforms/orders.sql
    /Web Shop/sql/gold/revenue_per_day.sql
    /Web Shop/.gitignore
    ");
    context.project = project.clone();
    let config = context.config().unwrap();
    assert_eq!(
        (config.name.as_str(), config.tables.len(), config.silver.len(), config.gold.len()),
        ("web_shop", 1, 1, 1)
    );
    assert_eq!(config.gold[0].sql.text.lines().nth(4), Some("FROM web_shop_silver.orders"));

    let again = init::run(init(project.clone(), None), &context).await.unwrap_err();
    insta::assert_snapshot!(again.render().replace(folder.path().to_str().unwrap(), ""), @"
    error: `/Web Shop` has files of a project already: `icestream.yaml`, `catalog/orders.yaml`, `transforms/orders.sql`, `sql/gold/revenue_per_day.sql`
      hint: choose another folder; nothing was written
    ");
    let named = init::run(init(folder.path().join("x"), Some("Web-Shop")), &context).await.unwrap_err();
    insta::assert_snapshot!(named.render(), @"
    error: `Web-Shop` is not a valid name: use lower-case letters, digits and underscores, starting with a letter
      hint: name the project with `--name`, such as `--name shop`
    ");
    let nameless = init::run(init(folder.path().join("---"), None), &context).await.unwrap_err();
    insta::assert_snapshot!(nameless.render(), @"
    error: no project name can be made of the folder's name `---`
      hint: name the project with `--name`, such as `--name shop`
    ");
    std::fs::write(folder.path().join("file"), "").unwrap();
    let blocked = init::run(init(folder.path().join("file"), None), &context).await.unwrap_err();
    insta::assert_snapshot!(blocked.render().replace(folder.path().to_str().unwrap(), ""), @"
    error: `/file` is no folder
      hint: choose another place
    ");
    assert_eq!((again.kind().exit_code(), blocked.kind().exit_code()), (2, 2));
}

fn refused() -> Error {
    let source = Arc::new(io::Error::from(io::ErrorKind::PermissionDenied));
    let location = "s3://lake".to_string();
    TableError::Storage { action: "write to", location, kind: crate::error::Kind::Config, source }.into()
}

fn silent() -> Error {
    TableError::unreachable("REST catalog `http://catalog`", io::Error::from(io::ErrorKind::ConnectionRefused)).into()
}

/// What `check` prints and how it ends, when the world outside is like this.
async fn checked(catalog: Result<String>, warehouse: Result<String>) -> (String, Result<Outcome>) {
    let folder = tempfile::tempdir().unwrap();
    init::write_project(folder.path(), "shop").unwrap();
    let (context, seen) = context(folder.path());
    let findings = vec![Finding::new("catalog", catalog), Finding::new("warehouse", warehouse)];
    let reach = async |_: &Config, _: &Context| Reached { findings, lake: None };
    let ended = check::run(CheckArgs { offline: false }, &context, reach).await;
    (seen.text(), ended)
}

#[tokio::test]
async fn a_check_tells_what_it_found() {
    let found = |text: &str| Ok(text.to_string());
    let (text, ended) = checked(found("3 namespaces"), found("can be written to")).await;
    insta::assert_snapshot!(text, @"
    files      4 files, no problem
    models     2 models, no problem
    catalog    3 namespaces
    warehouse  can be written to
    ");
    assert_eq!(ended.unwrap(), Outcome::Done);
}

#[tokio::test]
async fn a_check_reports_everything_that_is_wrong() {
    let (text, ended) = checked(Err(silent()), Err(refused())).await;
    insta::assert_snapshot!(text, @"
    files      4 files, no problem
    models     2 models, no problem
    catalog    not reached
    warehouse  problems
    ");
    let error = ended.unwrap_err();
    insta::assert_snapshot!(error.render(), @"
    error: the project has 2 problems
      REST catalog `http://catalog` does not answer: connection refused
      cannot write to `s3://lake`: permission denied (hint: check that the location exists and that this process may write there)
    ");
    assert_eq!(error.kind().exit_code(), 2, "a scheduler must not try again");
    let error = checked(Err(silent()), Ok(String::new())).await.1.unwrap_err();
    insta::assert_snapshot!(error.render(), @"
    error: REST catalog `http://catalog` does not answer
      caused by: connection refused
    ");
    assert_eq!(error.kind().exit_code(), 3);
}

#[tokio::test]
async fn an_offline_check_asks_nobody() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("icestream.yaml"), "name: shop").unwrap();
    let (context, seen) = context(folder.path());
    let nobody = async |_: &Config, _: &Context| -> Reached { panic!("somebody was asked") };
    check::run(CheckArgs { offline: true }, &context, nobody).await.unwrap();
    insta::assert_snapshot!(seen.text(), @"
    files      1 file, no problem
    models     0 models, no problem
    ");
}

#[tokio::test]
async fn config_prints_the_page_the_schema_and_the_settings() {
    let folder = tempfile::tempdir().unwrap();
    init::write_project(folder.path(), "shop").unwrap();
    for (word, start) in [("show", "# project folder: "), ("reference", "# Configuration\n"), ("schema", "{\n")] {
        let (context, seen) = context(folder.path());
        let Verb::Config(args) = parse(&["config", word]).unwrap().verb else { panic!("config") };
        configuration::run(args, &context).await.unwrap();
        assert!(seen.text().starts_with(start), "{word}: {}", seen.text());
    }
}

#[test]
fn a_query_is_its_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let (context, _) = context(folder.path());
    let file = folder.path().join("q.sql");
    std::fs::write(&file, "select 1;\n").unwrap();
    let request = |words: &[&str]| {
        let Verb::Query(args) = parse(&[&["query"], words].concat()).unwrap().verb else { panic!("query") };
        args.request(&context)
    };
    let made = request(&["-f", file.to_str().unwrap(), "-o", "x.parquet", "--snapshot", "-7", "--limit", "3"]).unwrap();
    assert_eq!((made.sql.as_str(), made.at, made.limit), ("select 1", At::Snapshot(-7), Some(3)));
    assert_eq!(made.to.format, output::RowFormat::Parquet);
    let made = request(&["select 2", "--as-of", "1970-01-02"]).unwrap();
    assert_eq!((made.at, made.to.format), (At::TimeMs(86_400_000), output::RowFormat::Table));
    insta::assert_snapshot!(request(&[" ; "]).unwrap_err().render(), @r#"
    error: there is no SQL to run
      hint: for example `icestream query "select 1"`
    "#);
    insta::assert_snapshot!(request(&["-f", "/no/such/file.sql"]).unwrap_err().render(), @"
    error: the SQL cannot be read from `/no/such/file.sql`
      caused by: No such file or directory (os error 2)
    ");
}

#[test]
fn a_drop_needs_a_yes() {
    let drop = |words: &[&str]| {
        let Verb::Drop(args) = parse(&[&["drop", "shop_gold.revenue"], words].concat()).unwrap().verb else {
            panic!("drop")
        };
        args.confirm()
    };
    insta::assert_snapshot!(drop(&[]).unwrap_err().render(), @"
    error: table `shop_gold.revenue` was not dropped: nobody said yes
      hint: add `--yes` to drop it; its files stay
    ");
    insta::assert_snapshot!(drop(&["--purge"]).unwrap_err().render(), @"
    error: table `shop_gold.revenue` was not dropped: nobody said yes
      hint: add `--yes` to drop it and delete its files
    ");
    assert!(drop(&["--purge", "--yes"]).is_ok());
}

#[test]
fn tables_are_shown_as_text_and_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let row = |name: &str, rows: u64| tables::TableRow {
        table: name.parse().unwrap(),
        rows: Some(rows),
        data_files: Some(3),
        delete_files: Some(0),
        bytes: Some(123_456),
        snapshots: 7,
        last_commit_ms: Some(1_740_830_400_123),
        problem: None,
    };
    let broken = tables::TableRow {
        rows: None,
        data_files: None,
        delete_files: None,
        bytes: None,
        snapshots: 0,
        last_commit_ms: None,
        problem: Some("cannot be read".to_string()),
        ..row("shop_gold.revenue", 0)
    };
    let rows = [row("shop_bronze.orders", 100_000), row("shop_silver.orders", 12), broken];
    let shown = |show: &dyn Fn(&Context)| {
        let (context, seen) = context(folder.path());
        show(&context);
        seen.text()
    };
    insta::assert_snapshot!(shown(&|context| drop(tables::show_list(&rows, false, context))), @"
     table              |   rows | data files | delete files |    size | snapshots | last commit
    --------------------+--------+------------+--------------+---------+-----------+--------------------------
     shop_bronze.orders | 100000 |          3 |            0 | 121 KiB |         7 | 2025-03-01T12:00:00.123Z
     shop_silver.orders |     12 |          3 |            0 | 121 KiB |         7 | 2025-03-01T12:00:00.123Z
     shop_gold.revenue  |        |            |              |         |         0 | ! cannot be read
    ");
    insta::assert_snapshot!(shown(&|context| drop(tables::show_list(&rows[1..], true, context))), @r#"
    [
      {
        "table": "shop_silver.orders",
        "rows": 12,
        "data_files": 3,
        "delete_files": 0,
        "bytes": 123456,
        "snapshots": 7,
        "last_commit": "2025-03-01T12:00:00.123Z"
      },
      {
        "table": "shop_gold.revenue",
        "rows": null,
        "data_files": null,
        "delete_files": null,
        "bytes": null,
        "snapshots": 0,
        "last_commit": null,
        "problem": "cannot be read"
      }
    ]
    "#);
    let detail = tables::TableDetail {
        summary: row("shop_silver.orders", 12),
        format_version: 2,
        uuid: "5b9e8d1c-0000-4000-8000-000000000000".to_string(),
        location: "s3://lake/shop_silver/orders".to_string(),
        metadata_location: "s3://lake/shop_silver/orders/metadata/00001-x.metadata.json".to_string(),
        snapshot_id: Some(42),
        partition: String::new(),
        sort: "id asc nulls first".to_string(),
        columns: vec![
            tables::ColumnRow { id: 1, name: "id".into(), column_type: "int".into(), required: true, doc: None },
            tables::ColumnRow {
                id: 12,
                name: "total_amount".into(),
                column_type: "decimal(10,2)".into(),
                required: false,
                doc: Some("with tax".into()),
            },
        ],
    };
    insta::assert_snapshot!(shown(&|context| drop(tables::show_table(&detail, false, context))), @"
    table        shop_silver.orders
    rows         12
    files        3 data, 0 delete
    size         121 KiB
    snapshots    7
    snapshot     42
    last commit  2025-03-01T12:00:00.123Z
    partition    none
    sort         id asc nulls first
    format       version 2
    uuid         5b9e8d1c-0000-4000-8000-000000000000
    location     s3://lake/shop_silver/orders
    metadata     s3://lake/shop_silver/orders/metadata/00001-x.metadata.json

     id | column       | type          | required | doc
    ----+--------------+---------------+----------+----------
      1 | id           | int           | yes      |
     12 | total_amount | decimal(10,2) |          | with tax
    ");
    let snapshot = tables::SnapshotRow {
        snapshot_id: 42,
        parent_id: None,
        committed_at_ms: Some(0),
        operation: "append".to_string(),
        added_rows: Some(12),
        deleted_rows: None,
        total_rows: Some(12),
        summary: [("added-records".to_string(), "12".to_string())].into(),
    };
    insta::assert_snapshot!(shown(&|context| drop(tables::show_snapshots(std::slice::from_ref(&snapshot), false, context))), @"
     snapshot | committed at             | operation | added rows | deleted rows | total rows
    ----------+--------------------------+-----------+------------+--------------+------------
           42 | 1970-01-01T00:00:00.000Z | append    |         12 |              |         12
    ");
    insta::assert_snapshot!(shown(&|context| drop(tables::show_snapshots(std::slice::from_ref(&snapshot), true, context))), @r#"
    [
      {
        "snapshot_id": 42,
        "parent_id": null,
        "committed_at": "1970-01-01T00:00:00.000Z",
        "operation": "append",
        "added_rows": 12,
        "deleted_rows": null,
        "total_rows": 12,
        "summary": {
          "added-records": "12"
        }
      }
    ]
    "#);
}
