//! SQL texts: what they name, what they may do, what is said when they are wrong, and the budget they run in.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use super::fixture::*;
use crate::engine::{Engine, EngineOptions, Error, plan, query, referenced_tables};
use crate::error::{Kind, Situation};
use crate::ids::TableName;

fn orders(count: i64) -> RecordBatch {
    let names: StringArray = (0..count).map(|id| Some(format!("customer {}", id * 7919 % 100_003))).collect();
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..count));
    batch([(field(1, "id", DataType::Int64), ids), (field(2, "customer", DataType::Utf8), Arc::new(names))])
}

fn shop(lake: &Lake) -> SessionContext {
    let rows = orders(3);
    let file = lake.write("orders.parquet", &rows);
    lake.session(&rows.schema(), &whole([file]))
}

#[test]
fn a_query_names_the_tables_it_reads() {
    let check = |sql: &str, expected: &[&str]| {
        let found = referenced_tables(sql).unwrap();
        assert_eq!(found.iter().map(TableName::to_string).collect::<Vec<_>>(), expected, "{sql}");
    };
    check("select 1", &[]);
    check("SELECT * FROM Shop.Orders", &["shop.orders"]);
    check("select * from lake.shop.orders", &["shop.orders"]);
    check(
        "select * from shop.orders o join shop.items i on o.id = i.order_id, shop.orders",
        &["shop.items", "shop.orders"],
    );
    check("with orders as (select * from shop.orders) select * from orders", &["shop.orders"]);
    check(
        "select (select max(id) from a.b) from c.d where x in (select y from e.f) union select 1 from g.h",
        &["a.b", "c.d", "e.f", "g.h"],
    );
    check("select _pos from shop.\"orders$rows\"", &["shop.orders"]);
    check("explain analyze select * from shop.orders", &["shop.orders"]);
    check("select * from information_schema.tables", &[]);
    assert!(matches!(referenced_tables("select * from orders"), Err(Error::NotATableName { .. })));
    assert!(matches!(referenced_tables("select * from other.shop.orders"), Err(Error::NotATableName { .. })));
    assert!(matches!(referenced_tables("delete from shop.orders"), Err(Error::NotAQuery { .. })));
}

#[tokio::test]
async fn only_queries_run() {
    let lake = Lake::new();
    let context = shop(&lake);
    for sql in [
        "insert into shop.orders values (1, 'x')",
        "with x as (select 1) insert into shop.orders select * from x",
        "delete from shop.orders",
        "update shop.orders set id = 1",
        "truncate table shop.orders",
        "create table shop.x as select 1",
        "create view shop.x as select 1",
        "create external table x stored as parquet location '/tmp/x'",
        "drop table shop.orders",
        "copy shop.orders to '/tmp/x.parquet'",
        "copy (select 1) to '/tmp/x.parquet'",
        "set datafusion.execution.batch_size = 1",
        "reset datafusion.execution.batch_size",
        "select 1 as a into shop.x",
        "explain insert into shop.orders values (1, 'x')",
        "begin",
        "prepare p as select 1",
        "execute p",
        "show tables",
    ] {
        let found = try_rows(&context, sql).await;
        assert!(
            matches!(found, Err(Error::NotAQuery { .. } | Error::Unsupported { .. } | Error::Unplannable { .. })),
            "{sql}: {found:?}"
        );
    }
    insta::assert_snapshot!(failure(&context, "drop table shop.orders").await, @r"
    error: `DROP` is not a query: only SELECT, WITH, VALUES and EXPLAIN can be run here
      hint: tables change through `icestream` commands only
    ");
    insta::assert_snapshot!(failure(&context, "select 1; select 2").await, @r"error: one query at a time: the text holds 2 statements");
    insta::assert_snapshot!(failure(&context, " -- nothing").await, @r"error: there is no SQL to run");
    assert_eq!(rows(&context, "values (1), (2)").await, ["1", "2"]);
    assert!(!rows(&context, "explain select * from shop.orders").await.is_empty());
    assert_eq!(
        rows(
            &context,
            "select table_schema, table_name from information_schema.tables where table_schema = 'shop' order by 2"
        )
        .await,
        ["shop|orders", "shop|orders$rows"]
    );
}

#[tokio::test]
async fn mistakes_in_sql_are_told_plainly() {
    let lake = Lake::new();
    let context = shop(&lake);
    let say = async |sql: &str| failure(&context, sql).await;
    insta::assert_snapshot!(say("selec * from shop.orders").await, @r"error: the SQL has a mistake at line 1, column 1: expected an SQL statement, found selec");
    insta::assert_snapshot!(say("select id,\n  from shop.orders where").await, @r"error: the SQL has a mistake: expected an expression, found the end");
    insta::assert_snapshot!(say("select 'open from shop.orders").await, @r"error: the SQL has a mistake at line 1, column 8: unterminated string literal");
    insta::assert_snapshot!(say("select * from shop.order").await, @r"
    error: there is no table `shop.order`
      hint: did you mean `shop.orders`?
    ");
    insta::assert_snapshot!(say("select * from crm.people").await, @r"
    error: there is no table `crm.people`
      hint: `icestream tables` lists the tables there are
    ");
    insta::assert_snapshot!(say("select * from orders").await, @r"error: `orders` does not name a table: write `namespace.table`");
    insta::assert_snapshot!(say("select custmer from shop.orders").await, @r"
    error: there is no column `custmer`
      hint: did you mean `customer`?
    ");
    insta::assert_snapshot!(say("select colour from shop.orders").await, @r"
    error: there is no column `colour`
      hint: the columns are `id`, `customer`
    ");
    insta::assert_snapshot!(say("select id from shop.orders a join shop.orders b on a.id = b.id").await, @r"
    error: the column `id` is in more than one of the tables
      hint: write the table's name or alias before it
    ");
    insta::assert_snapshot!(say("select uper(customer) from shop.orders").await, @r"error: the query cannot be planned: invalid function 'uper'; did you mean 'upper'?");
    insta::assert_snapshot!(say("select id from shop.orders group by customer").await, @r#"error: the query cannot be planned: column in SELECT must be in GROUP BY or an aggregate function: While expanding wildcard, column "shop.orders.id" must appear in the GROUP BY clause or must be part of an aggregate function, currently only "shop.orders.customer" appears in the SELECT clause satisfies this requirement"#);
    insta::assert_snapshot!(say("select id + interval '1 day' from shop.orders").await, @r"error: the query cannot be planned: cannot automatically convert Int64 to Interval(MonthDayNano)");
    insta::assert_snapshot!(say("select cast(customer as int) from shop.orders").await, @r"error: the query failed on its data: cast error: Cannot cast string 'customer 0' to value of Int32 type");
    insta::assert_snapshot!(say("select 1 / (id - id) from shop.orders").await, @r"error: the query failed on its data: divide by zero error");
}

#[test]
fn a_missing_table_is_compared_with_those_there_are() {
    let known: Vec<TableName> = ["shop.orders", "shop.items"].iter().map(|name| name.parse().unwrap()).collect();
    let error = Error::unknown_table(&"shop.ordres".parse().unwrap(), &known);
    insta::assert_snapshot!(crate::error::Error::from(error).render(), @r"
    error: there is no table `shop.ordres`
      hint: did you mean `shop.orders`?
    ");
}

#[tokio::test]
async fn rows_come_in_plain_types() {
    let lake = Lake::new();
    let context = shop(&lake);
    let sql = "select cast(o.id as varchar) as a, arrow_cast(customer, 'Utf8View') as b, arrow_cast('x', 'LargeBinary') as c, \
               arrow_cast(customer, 'Dictionary(Int32, Utf8)') as d, string_agg(customer, ',') over () as e, \
               make_array(arrow_cast(customer, 'LargeUtf8')) as f, o.id, p.id, \
               split_part(customer, ' ', 1) as g from shop.orders o join (select id from shop.orders) p on o.id = p.id";
    let frame = plan(&context, sql).await.unwrap();
    let types: Vec<String> = frame.schema().fields().iter().map(|field| field.data_type().to_string()).collect();
    assert_eq!(types, ["Utf8", "Utf8", "Binary", "Utf8", "Utf8", "List(Utf8)", "Int64", "Int64", "Utf8"]);
    let batches: Vec<RecordBatch> = query(&context, sql).await.unwrap().try_collect().await.unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 3);
    assert_eq!(batches[0].column(1).data_type(), &DataType::Utf8);
    let batches = plan(&context, "select customer from shop.orders").await.unwrap().collect().await.unwrap();
    assert_eq!(batches[0].column(0).data_type(), &DataType::Utf8);
}

#[tokio::test]
async fn a_sort_larger_than_the_budget_spills() {
    let lake = Lake::with(2, 16 * 1024 * 1024);
    let rows_of = orders(400_000);
    let file = lake.write("big.parquet", &rows_of);
    let context = lake.session(&rows_of.schema(), &whole([file]));
    let ran = run(&context, "select customer, id from shop.orders order by customer, id").await;
    assert_eq!(ran.rows.len(), 400_000);
    assert!(ran.rows.iter().map(|row| row.split_once('|').unwrap().0).is_sorted());
    assert_eq!(lake.engine.memory_used(), 0);
}

#[tokio::test]
async fn a_query_that_cannot_spill_says_which_knob_to_turn() {
    let lake = Lake::with(2, 2 * 1024 * 1024);
    let rows_of = orders(200_000);
    let file = lake.write("big.parquet", &rows_of);
    let context = lake.session(&rows_of.schema(), &whole([file]));
    let sql = "select count(*) from shop.orders a join shop.orders b on a.customer = b.customer";
    let error = try_rows(&context, sql).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Config);
    let said = crate::error::Error::from(error).render();
    let start = "error: the query needs more memory than the budget has left: failed to allocate additional ";
    assert!(said.starts_with(start), "{said}");
    let hint = "\n  hint: raise `memory` in the configuration, or read fewer rows and columns at once";
    assert!(said.ends_with(hint), "{said}");
}

#[tokio::test]
async fn a_query_may_have_many_sorts_of_little() {
    let folder = tempfile::tempdir().unwrap();
    let options = EngineOptions { memory_bytes: 16 << 20, threads: 2, spill_dir: folder.path().to_path_buf() };
    let session = Engine::new(&options).unwrap().session();
    for windows in [1, 3, 4, 40] {
        let ranks = (0..windows).map(|at| format!("row_number() over (partition by x % {} order by x * {at})", at + 2));
        let sql = format!("select {} from (values (1), (2), (3)) as t(x)", ranks.collect::<Vec<_>>().join(", "));
        let rows = plan(&session, &sql).await.unwrap().collect().await;
        let rows: usize =
            rows.unwrap_or_else(|error| panic!("{windows}: {error}")).iter().map(|rows| rows.num_rows()).sum();
        assert_eq!(rows, 3);
    }
}

/// A stack that overflows ends the whole process, so that this is all there is to see of it.
#[test]
fn a_query_of_many_steps_is_planned_on_a_small_stack() {
    let planned = std::thread::Builder::new().stack_size(512 << 10).spawn(|| {
        let folder = tempfile::tempdir().unwrap();
        let options = EngineOptions { memory_bytes: 64 << 20, threads: 1, spill_dir: folder.path().join("spill") };
        let session = Engine::new(&options).unwrap().session();
        let first = "t0 as (select named_struct('a', x, 'b', named_struct('c', y)) as s from (values (1, 2), (3, 4)) as t(x, y))";
        let step = |depth| format!("t{depth} as (select s from t{} where s['b']['c'] > {depth} - 50)", depth - 1);
        let steps: Vec<String> = std::iter::once(first.to_string()).chain((1..=40).map(step)).collect();
        let sql = format!("with {} select s['a'] as a, s['b']['c'] as c from t40 where s['a'] < 3", steps.join(", "));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let rows = runtime.block_on(async { plan(&session, &sql).await.unwrap().collect().await.unwrap() });
        rows.iter().map(|rows| rows.num_rows()).sum::<usize>()
    });
    assert_eq!(planned.unwrap().join().unwrap(), 1);
}

#[test]
fn a_spill_folder_that_cannot_be_made_is_found_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let options = EngineOptions { memory_bytes: 1 << 20, threads: 1, spill_dir: file.join("spill") };
    let error = Engine::new(&options).err().unwrap();
    let folder = folder.path().display().to_string();
    let said = crate::error::Error::from(error).render().replace(&folder, "[folder]");
    insta::assert_snapshot!(said, @r"
    error: the spill folder `[folder]/file/spill` cannot be used
      caused by: Not a directory (os error 20)
      hint: name a folder that this process may write to
    ");
}
