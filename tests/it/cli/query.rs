use arrow::util::display::{ArrayFormatter, FormatOptions};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::*;

const COLUMNS: &str = "select id, customer_id, total_amount, status, created_at, _source_ts, \
                       case when id % 3 = 0 then status end as hole from shop_silver.orders order by id";

fn cells<'a>(cells: impl Iterator<Item = &'a str>) -> Vec<String> {
    cells.map(|cell| cell.trim().replace("NULL", "")).collect()
}

#[test]
fn the_formats_agree_with_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.parquet");
    let mut expected: Vec<Vec<String>> = Vec::new();
    assert_eq!(query(COLUMNS, &format!("-o {}", file.display())).done(), "");
    for batch in ParquetRecordBatchReaderBuilder::try_new(File::open(&file).unwrap()).unwrap().build().unwrap() {
        let batch = batch.unwrap();
        let options = FormatOptions::default();
        let columns = batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap());
        let columns: Vec<_> = columns.collect();
        let row = |row: usize| columns.iter().map(|column| column.value(row).to_string()).collect();
        expected.extend((0..batch.num_rows()).map(row));
    }
    assert!(expected.len() > 100);

    let csv = query(COLUMNS, "--format csv");
    let csv: Vec<Vec<String>> = csv.done().lines().skip(1).map(|line| cells(line.split(','))).collect();
    assert_eq!(csv, expected);

    let table = query(COLUMNS, "");
    let table: Vec<Vec<String>> = table.done().lines().skip(2).map(|line| cells(line.split('|'))).collect();
    assert_eq!(table, expected);

    let json = query(COLUMNS, "--format json");
    let json: Vec<Vec<String>> = json
        .done()
        .lines()
        .map(|line| {
            let row: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
            let text = |value: &serde_json::Value| match value {
                serde_json::Value::Null => String::new(),
                serde_json::Value::String(text) => text.clone(),
                number => number.to_string(),
            };
            row.values().map(text).collect()
        })
        .collect();
    let as_number = |row: &Vec<String>| {
        let mut row = row.clone();
        row[2] = row[2].parse::<f64>().unwrap().to_string();
        row
    };
    // A decimal is a number in JSON, and what reads it may drop its last zero.
    assert_eq!(json.iter().map(as_number).collect::<Vec<_>>(), expected.iter().map(as_number).collect::<Vec<_>>());

    // The same bytes go to stdout and to a file.
    for ending in ["csv", "jsonl", "txt"] {
        let file = folder.path().join(format!("rows.{ending}"));
        query(COLUMNS, &format!("-o {}", file.display())).done();
        let format = ["csv", "json", "table"][["csv", "jsonl", "txt"].iter().position(|e| *e == ending).unwrap()];
        let written = std::fs::read_to_string(file).unwrap();
        assert_eq!(written, query(COLUMNS, &format!("--format {format}")).done());
    }
    let files = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files, 4, "no file that is half written stays");
}

#[test]
fn what_cannot_be_written() {
    insta::assert_snapshot!(query("select 1", "-o rows.xlsx").error(2), @"
    error: `rows.xlsx` does not say by its ending how rows are written
      hint: add `--format csv`, `json`, `parquet` or `table`
    ");
    insta::assert_snapshot!(query("select interval '1 day' as i", "-o i.parquet").error(1), @"
    error: cannot write to `i.parquet`
      caused by: NYI: Attempting to write an Arrow interval type MonthDayNano to parquet that is not yet implemented
    ");
    insta::assert_snapshot!(query("select 1", "-o /proc/nowhere/rows.csv").error(2), @"
    error: cannot write `/proc/nowhere/rows.csv`
      caused by: No such file or directory (os error 2)
      hint: check that the folder exists and that this process may write there
    ");
}

#[test]
fn a_query_can_come_from_a_file_and_be_limited() {
    let folder = folder_with(&[("q.sql", "-- the last three\nselect 1 as a union all select 2 order by a desc;\n")]);
    let file = folder.path().join("q.sql");
    let ended = run(demo_lake(), &format!("query --limit 1 --format csv -f {}", file.display()));
    assert_eq!(ended.done(), "a\n2\n");
    assert_eq!(query("select id from shop_silver.orders", "--limit 0 --format csv").done(), "id\n");
    assert_eq!(query("select 1 as a where false", "--format json").done(), "");
    let ended = query("explain select count(*) from shop_silver.orders", "");
    assert!(ended.done().starts_with("logical_plan\n  Projection: "), "{ended:?}");
}

#[test]
fn a_rejected_record_is_there_with_its_bytes() {
    let rejected = "select _error is not null as told, encode(_raw, 'hex') <> '' as kept, after is null as untyped \
                    from shop_bronze.orders where _error is not null";
    assert_eq!(query(rejected, "--format csv").done(), "told,kept,untyped\ntrue,true,true\n");
    let all = query("select * from shop_bronze.orders", "--format json");
    let first: serde_json::Value = serde_json::from_str(all.done().lines().next().unwrap()).unwrap();
    assert_eq!(first["_topic"], "shop.public.orders");
}

/// One line for each mistake: what was asked, and what the person is told.
fn told(sql: &str) -> String {
    let ended = query(sql, "");
    let code = ended.code.unwrap_or_default();
    format!("{code} {}\n{}", sql.replace('\n', " "), ended.error(code))
}

#[test]
fn mistakes_in_sql_are_explained() {
    let mistakes = [
        "select id frm shop_silver.orders",
        "select id,\n  , status from shop_silver.orders",
        "selec 1",
        "",
        "select 1; select 2",
        "select * from shop_silver.ordrs",
        "select * from orders",
        "select * from nothing",
        "select custmer_id from shop_silver.orders",
        "select xyzzy from shop_gold.revenue_per_day",
        "select lowr(status) from shop_silver.orders",
        "select id + status from shop_silver.orders",
        "select id from shop_silver.orders o join shop_silver.customers c on o.customer_id = c.id",
        "select cast(status as int) from shop_silver.orders where status = 'delivered'",
        "delete from shop_silver.orders",
        "insert into shop_silver.orders values (1)",
        "drop table shop_silver.orders",
        "copy shop_silver.orders to 'x'",
        "set datafusion.execution.batch_size = 1",
    ];
    let told: Vec<String> = mistakes.iter().map(|sql| told(sql)).collect();
    insta::assert_snapshot!(told.join("\n"), @r#"
    1 select id frm shop_silver.orders
    error: the SQL has a mistake at line 1, column 15: expected end of statement, found shop_silver

    1 select id,   , status from shop_silver.orders
    error: the SQL has a mistake at line 2, column 3: expected an expression, found ,

    1 selec 1
    error: the SQL has a mistake at line 1, column 1: expected an SQL statement, found selec

    2 
    error: there is no SQL to run
      hint: for example `icestream query "select 1"`

    1 select 1; select 2
    error: one query at a time: the text holds 2 statements

    1 select * from shop_silver.ordrs
    error: there is no table `shop_silver.ordrs`
      hint: did you mean `shop_silver.orders`?

    1 select * from orders
    error: `orders` does not name a table: write `namespace.table`
      hint: did you mean `shop_bronze.orders` or `shop_silver.orders`?

    1 select * from nothing
    error: `nothing` does not name a table: write `namespace.table`
      hint: `icestream tables` lists the tables there are

    1 select custmer_id from shop_silver.orders
    error: there is no column `custmer_id`
      hint: did you mean `customer_id`?

    1 select xyzzy from shop_gold.revenue_per_day
    error: there is no column `xyzzy`
      hint: the columns are `order_date`, `orders`, `customers`, `revenue`, `average_order_value`

    1 select lowr(status) from shop_silver.orders
    error: the query cannot be planned: invalid function 'lowr'; did you mean 'lower'?

    1 select id + status from shop_silver.orders
    error: the query cannot be planned: cannot coerce arithmetic expression Int32 + Utf8 to valid types

    1 select id from shop_silver.orders o join shop_silver.customers c on o.customer_id = c.id
    error: the column `id` is in more than one of the tables
      hint: write the table's name or alias before it

    1 select cast(status as int) from shop_silver.orders where status = 'delivered'
    error: the query failed on its data: cast error: Cannot cast string 'delivered' to value of Int32 type

    1 delete from shop_silver.orders
    error: `DELETE` is not a query: only SELECT, WITH, VALUES and EXPLAIN can be run here
      hint: tables change through `icestream` commands only

    1 insert into shop_silver.orders values (1)
    error: `INSERT` is not a query: only SELECT, WITH, VALUES and EXPLAIN can be run here
      hint: tables change through `icestream` commands only

    1 drop table shop_silver.orders
    error: `DROP` is not a query: only SELECT, WITH, VALUES and EXPLAIN can be run here
      hint: tables change through `icestream` commands only

    1 copy shop_silver.orders to 'x'
    error: `COPY` is not a query: only SELECT, WITH, VALUES and EXPLAIN can be run here
      hint: tables change through `icestream` commands only

    1 set datafusion.execution.batch_size = 1
    error: `SET` is not a query: only SELECT, WITH, VALUES and EXPLAIN can be run here
      hint: tables change through `icestream` commands only
    "#);
    // Nothing of it had an effect.
    assert_eq!(run(demo_lake(), "tables --json").json().as_array().unwrap().len(), 19);
}

#[tokio::test]
async fn the_past_can_be_read() {
    let (folder, snapshots) = project_with_history().await;
    let [(first, first_ms), (second, second_ms)] = snapshots[..] else { panic!("two snapshots") };
    let ask = |args: String| {
        let mut command = icestream(folder.path(), "query --format csv");
        command.arg("select count(*) as n, sum(qty) as qty from shop.orders").args(args.split_whitespace());
        Running::start(command).end()
    };
    let at = |ms: i64| chrono::DateTime::from_timestamp_millis(ms).unwrap().format("--as-of %FT%T%.3fZ").to_string();
    assert_eq!(ask(String::new()).done(), "n,qty\n3,60\n");
    assert_eq!(ask(format!("--snapshot {first}")).done(), "n,qty\n2,30\n");
    assert_eq!(ask(format!("--snapshot {second}")).done(), "n,qty\n3,60\n");
    assert_eq!(ask(at(second_ms)).done(), "n,qty\n3,60\n");
    if first_ms < second_ms {
        assert_eq!(ask(at(first_ms)).done(), "n,qty\n2,30\n");
    }
    insta::assert_snapshot!(ask("--as-of 2020-01-01".to_string()).error(1), @"error: table `shop.orders`: its history starts at TIME, after the time asked for");
    insta::assert_snapshot!(ask("--snapshot 17".to_string()).error(1), @"error: table `shop.orders`: there is no snapshot 17; it may have been expired");
}
