//! Any history of the inputs in any steps: refreshing the groups that changed gives what computing everything gives.

use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use icestream::engine::{self, Engine, EngineOptions};
use icestream::gold::{self, GoldCommit, GoldModel, Inputs, Outcome, Refreshed, WhyFull};
use icestream::ids::TableName;
use icestream::table::{At, Expiry, Lake, SchemaChange, Table, TableDefinition};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use roaring::RoaringTreemap;

use crate::support::sqlite_lake;

/// An order: id, customer, day, amount, status and balance, which may be negative.
type Order = (i32, Option<i64>, Option<i32>, i64, Option<u8>, Option<i64>);

/// A balance of 1 in the column `large`, as a decimal of 38 digits.
const LARGE: i128 = 10_i128.pow(37);

/// Something that happens to an input.
#[derive(Debug, Clone)]
enum Step {
    Order(Vec<Order>),
    Customer(Vec<(i32, Option<u8>)>),
    /// Takes rows away by position: those whose id leaves this remainder.
    Delete {
        customers: bool,
        remainder: i32,
    },
    /// Replaces the rows of such ids, in one commit.
    Update {
        customers: bool,
        remainder: i32,
        by: i64,
    },
    /// Stores the live rows of every file anew.
    Compact {
        customers: bool,
    },
    /// Replaces everything by a few rows.
    Replace(Vec<Order>),
    /// Goes back to having nothing.
    Empty {
        customers: bool,
    },
    Refresh,
}

fn order() -> impl Strategy<Value = Order> {
    let customer = proptest::option::weighted(0.85, 0..6i64);
    let day = proptest::option::weighted(0.85, 0..5i32);
    let balance = proptest::option::weighted(0.7, -2..3i64);
    (0..20i32, customer, day, 0..50i64, proptest::option::weighted(0.8, 0..3u8), balance)
}

fn step() -> impl Strategy<Value = Step> {
    let orders = || proptest::collection::vec(order(), 1..6);
    let customer = (0..6i32, proptest::option::weighted(0.8, 0..3u8));
    prop_oneof![
        6 => orders().prop_map(Step::Order),
        4 => proptest::collection::vec(customer, 1..4).prop_map(Step::Customer),
        4 => (any::<bool>(), 0..4).prop_map(|(customers, remainder)| Step::Delete { customers, remainder }),
        4 => (any::<bool>(), 0..4, 1..5i64).prop_map(|(customers, remainder, by)| Step::Update { customers, remainder, by }),
        1 => any::<bool>().prop_map(|customers| Step::Compact { customers }),
        1 => orders().prop_map(Step::Replace),
        1 => any::<bool>().prop_map(|customers| Step::Empty { customers }),
        7 => Just(Step::Refresh),
    ]
}

/// A model, its group, and whether a change of orders and of customers can be told apart by group.
const MODELS: &[(&str, &[&str], &str, bool)] = &[
    ("by_day", &["day"], "SELECT day, count(*) AS n, sum(amount) AS total FROM silver.orders GROUP BY day", true),
    (
        "by_month",
        &["half", "status"],
        "SELECT CAST(day / 2 AS bigint) AS half, status, count(DISTINCT customer_id) AS customers, max(amount) AS most \
         FROM silver.orders WHERE amount > 10 GROUP BY CAST(day / 2 AS bigint), status HAVING count(*) > 1",
        true,
    ),
    (
        "customers",
        &["customer_id"],
        "SELECT c.id AS customer_id, c.country, coalesce(s.n, 0) AS n, s.total FROM silver.customers c LEFT JOIN \
         (SELECT customer_id, count(*) AS n, sum(amount) AS total FROM silver.orders GROUP BY customer_id) s \
         ON s.customer_id = c.id",
        true,
    ),
    (
        "joined",
        &["customer_id", "country", "day"],
        "SELECT o.customer_id, c.country, o.day, sum(o.amount) AS total, count(*) AS n FROM silver.orders o \
         JOIN silver.customers c ON o.customer_id = c.id AND o.amount > 3 GROUP BY 1, 2, 3",
        true,
    ),
    (
        "crossed",
        &["day", "country"],
        "SELECT o.day, c.country, sum(o.amount) AS total FROM silver.orders o, silver.customers c \
         WHERE o.customer_id = c.id GROUP BY o.day, c.country",
        true,
    ),
    (
        "ranked",
        &["customer_id"],
        "SELECT id, customer_id, amount, rank() OVER (PARTITION BY customer_id ORDER BY amount, id) AS place \
         FROM silver.orders",
        true,
    ),
    (
        "either",
        &["who"],
        "WITH everyone AS (SELECT customer_id AS who, amount FROM silver.orders UNION ALL \
         SELECT CAST(id AS bigint), CAST(0 AS bigint) FROM silver.customers) \
         SELECT who, count(*) AS n, sum(amount) AS total FROM everyone GROUP BY who",
        true,
    ),
    (
        "absent",
        &["customer_id"],
        "SELECT DISTINCT o.customer_id FROM silver.orders o LEFT ANTI JOIN silver.customers c ON o.customer_id = c.id",
        true,
    ),
    (
        "twice",
        &["day"],
        "SELECT a.day, count(*) AS n FROM silver.orders a JOIN silver.orders b ON a.day = b.day AND a.id < b.id \
         GROUP BY a.day",
        true,
    ),
    (
        "share",
        &["day"],
        "SELECT day, sum(amount) * 100 / (SELECT sum(amount) + 1 FROM silver.orders) AS share FROM silver.orders \
         GROUP BY day",
        false,
    ),
    ("top", &["day"], "SELECT day, amount, id FROM silver.orders ORDER BY amount, id, day, customer_id LIMIT 5", false),
    (
        "full",
        &["day"],
        "SELECT o.day, c.country, count(*) AS n FROM silver.orders o FULL JOIN silver.customers c ON o.customer_id = c.id \
         GROUP BY o.day, c.country",
        false,
    ),
];

/// Models whose rows follow from the old ones and what changed, as far as that can be told; and whether a change of
/// either input can be told apart by group.
const CARRIED: &[(&str, &[&str], &str, bool)] = &[
    (
        "all",
        &["day"],
        "SELECT day, count(*) AS n, count(balance) AS known, sum(balance) AS total, min(balance) AS least, \
         max(balance) AS most, sum(large) AS large, max(status) AS status, min(placed) AS placed \
         FROM silver.orders GROUP BY day",
        true,
    ),
    ("sum_alone", &["day"], "SELECT day, sum(balance) AS total FROM silver.orders GROUP BY day", true),
    ("large_alone", &["day"], "SELECT day, count(*) AS n, sum(large) AS total FROM silver.orders GROUP BY day", true),
    (
        "sum_uncounted",
        &["day"],
        "SELECT day, sum(balance) AS total, count(*) AS n, sum(balance) IS NULL AS none FROM silver.orders GROUP BY day",
        true,
    ),
    (
        "extremes",
        &["day", "status"],
        "SELECT day, status, min(balance) AS least, max(balance) AS most FROM silver.orders GROUP BY day, status",
        true,
    ),
    (
        "computed",
        &["day"],
        "SELECT CAST(day AS bigint) AS day, CAST(count(*) AS int) AS n, count(*) FILTER (WHERE status = 's1') AS ones, \
         CAST(sum(amount) AS decimal(20, 2)) AS spent, sum(amount) / count(*) AS mean, \
         CAST(coalesce(sum(balance), 0) AS decimal(20, 1)) AS net, sum(balance) IS NULL AS none, \
         sum(CASE WHEN balance > 0 THEN balance END) AS gains FROM silver.orders WHERE amount < 40 GROUP BY day",
        true,
    ),
    (
        "having",
        &["day"],
        "SELECT day, count(*) AS n, sum(balance) AS total, max(amount) AS most FROM silver.orders GROUP BY day \
         HAVING count(*) > 1",
        true,
    ),
    (
        "nested",
        &["d"],
        "WITH s AS (SELECT day AS d, status, sum(amount) AS t, count(*) AS n FROM silver.orders GROUP BY day, status) \
         SELECT d, status, t, n, t * 2 AS twice FROM s WHERE t > 20 ORDER BY n",
        true,
    ),
    (
        "enriched",
        &["country"],
        "SELECT c.country, count(*) AS n, sum(o.balance) AS total FROM silver.orders o \
         JOIN silver.customers c ON o.customer_id = c.id GROUP BY c.country",
        false,
    ),
    (
        "left",
        &["day", "country"],
        "SELECT o.day, c.country, count(*) AS n, count(c.id) AS known, min(o.balance) AS least, max(c.id) AS last \
         FROM silver.orders o LEFT JOIN silver.customers c ON o.customer_id = c.id GROUP BY o.day, c.country",
        false,
    ),
    (
        "known",
        &["day"],
        "SELECT day, count(*) AS n, max(amount) AS most FROM silver.orders \
         WHERE customer_id IN (SELECT id FROM silver.customers) GROUP BY day",
        false,
    ),
    // Groups that are true, false and null; that are made of several values; and of what is left of negative ones.
    (
        "signs",
        &["is_up"],
        "SELECT balance > 0 AS is_up, count(*) AS n, sum(amount) AS total, min(status) AS least, max(placed) AS last \
         FROM silver.orders GROUP BY balance > 0",
        true,
    ),
    (
        "buckets",
        &["bucket", "label", "rest"],
        "SELECT amount / 10 AS bucket, concat(status, '') AS label, balance % 2 AS rest, count(*) AS n, \
         sum(CAST(balance AS decimal(10, 2)) * CAST(0.25 AS decimal(3, 2))) AS quarter, \
         min(CAST(balance AS decimal(10, 2))) AS least FROM silver.orders \
         GROUP BY amount / 10, concat(status, ''), balance % 2",
        true,
    ),
    (
        "strangers",
        &["day"],
        "SELECT day, count(*) AS n, sum(amount) AS total FROM silver.orders o LEFT ANTI JOIN silver.customers c \
         ON o.customer_id = c.id GROUP BY day",
        false,
    ),
];

struct World {
    lake: Lake,
    engine: Engine,
}

fn name(text: &str) -> TableName {
    text.parse().unwrap()
}

fn orders_of(rows: &[Order]) -> RecordBatch {
    let statuses = rows.iter().map(|row| row.4.map(|status| format!("s{status}")));
    let large = rows.iter().map(|row| row.5.map(|balance| i128::from(balance) * LARGE));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.0)))),
        ("customer_id", Arc::new(rows.iter().map(|row| row.1).collect::<Int64Array>())),
        ("day", Arc::new(rows.iter().map(|row| row.2).collect::<Int32Array>())),
        ("amount", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.3)))),
        ("status", Arc::new(statuses.collect::<StringArray>())),
        ("placed", Arc::new(rows.iter().map(|row| row.2).collect::<Date32Array>())),
        ("balance", Arc::new(rows.iter().map(|row| row.5).collect::<Int64Array>())),
        ("large", Arc::new(large.collect::<Decimal128Array>().with_data_type(DataType::Decimal128(38, 0)))),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn customers_of(rows: &[(i32, Option<u8>)]) -> RecordBatch {
    let countries = rows.iter().map(|row| row.1.map(|country| format!("c{country}")));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("id", Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.0)))),
        ("country", Arc::new(countries.collect::<StringArray>())),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

fn table_of(customers: bool) -> TableName {
    name(if customers { "silver.customers" } else { "silver.orders" })
}

impl World {
    async fn open(folder: &std::path::Path) -> Self {
        let lake = sqlite_lake(folder).await;
        let options = EngineOptions { memory_bytes: 256 << 20, threads: 2, spill_dir: folder.join("spill") };
        let world = World { lake, engine: Engine::new(&options).unwrap() };
        world.create("silver.orders", orders_of(&[]).schema().as_ref()).await;
        world.create("silver.customers", customers_of(&[]).schema().as_ref()).await;
        world
    }

    async fn create(&self, table: &str, schema: &Schema) -> Table {
        let fields = schema.fields().iter().map(|field| Field::new(field.name(), field.data_type().clone(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let definition =
            TableDefinition { name: name(table), schema, partition: Vec::new(), properties: Default::default() };
        self.lake.create(&definition).await.unwrap()
    }

    async fn rows(&self, table: &Table, sql: &str) -> Vec<RecordBatch> {
        let session = self.engine.session();
        engine::register(&session, &name("t.t"), table.view(At::Head).unwrap()).unwrap();
        engine::plan(&session, sql).await.unwrap().collect().await.unwrap()
    }

    async fn write(&self, table: &Table, batches: &[RecordBatch]) -> Vec<icestream::table::WrittenFile> {
        let mut writer = table.writer(None).unwrap();
        for batch in batches {
            writer.write(batch).await.unwrap();
        }
        writer.finish().await.unwrap()
    }

    async fn append(&self, customers: bool, batch: RecordBatch) {
        let table = self.lake.table(&table_of(customers)).await.unwrap();
        let files = self.write(&table, &[batch]).await;
        table.change().append(files).commit().await.unwrap();
    }

    /// Deletes rows by position, and puts others in their place.
    async fn exchange(&self, table: &Table, condition: &str, replacement: Option<&str>) {
        let view = table.view(At::Head).unwrap();
        let mut positions: std::collections::BTreeMap<String, RoaringTreemap> = Default::default();
        for batch in self.rows(table, &format!("SELECT _file, _pos FROM t.\"t$rows\" WHERE {condition}")).await {
            let files = batch.column(0).as_any().downcast_ref::<StringArray>().unwrap();
            let places = batch.column(1).as_any().downcast_ref::<Int64Array>().unwrap();
            for row in 0..batch.num_rows() {
                positions.entry(files.value(row).to_string()).or_default().insert(places.value(row) as u64);
            }
        }
        if positions.is_empty() {
            return;
        }
        let new = match replacement {
            Some(columns) => self.rows(table, &format!("SELECT {columns} FROM t.t WHERE {condition}")).await,
            None => Vec::new(),
        };
        let files = view.files(None).await.unwrap();
        let doomed: Vec<_> =
            files.into_iter().filter_map(|file| positions.remove(&file.path).map(|rows| (file, rows))).collect();
        let deletes = table.write_deletes(&doomed).await.unwrap();
        let added = self.write(table, &new).await;
        table.change().row_delta(&view, added, deletes).commit().await.unwrap();
    }

    async fn take(&self, step: &Step) {
        match step {
            Step::Order(rows) => self.append(false, orders_of(rows)).await,
            Step::Customer(rows) => self.append(true, customers_of(rows)).await,
            Step::Delete { customers, remainder } => {
                let table = self.lake.table(&table_of(*customers)).await.unwrap();
                self.exchange(&table, &format!("id % 4 = {remainder}"), None).await;
            }
            Step::Update { customers, remainder, by } => {
                let table = self.lake.table(&table_of(*customers)).await.unwrap();
                let columns = match customers {
                    true => format!("id, concat(country, '{by}') AS country"),
                    false => format!(
                        "id, (customer_id + {by}) % 6 AS customer_id, day, amount + {by} AS amount, status, placed, \
                         nullif(balance + 3 - {by}, 2) AS balance, large"
                    ),
                };
                self.exchange(&table, &format!("id % 4 = {remainder}"), Some(&columns)).await;
            }
            Step::Compact { customers } => {
                let table = self.lake.table(&table_of(*customers)).await.unwrap();
                let view = table.view(At::Head).unwrap();
                let files = view.files(None).await.unwrap();
                if files.is_empty() {
                    return;
                }
                let rows = self.rows(&table, "SELECT * FROM t.t").await;
                let written = self.write(&table, &rows).await;
                table.change().rewrite(&view, files, written).commit().await.unwrap();
            }
            Step::Replace(rows) => {
                let table = self.lake.table(&table_of(false)).await.unwrap();
                let files = self.write(&table, &[orders_of(rows)]).await;
                table.change().replace_all(files).commit().await.unwrap();
            }
            Step::Empty { customers } => {
                let table = self.lake.table(&table_of(*customers)).await.unwrap();
                table.change().replace_all(Vec::new()).commit().await.unwrap();
            }
            Step::Refresh => {}
        }
    }

    async fn refresh(&self, model: &GoldModel) -> Outcome {
        let mut inputs = Inputs::pin(&self.lake, std::slice::from_ref(model), BTreeSet::new()).await;
        gold::refresh(&self.lake, &self.engine, model, &mut inputs).await.unwrap()
    }

    async fn refreshed(&self, model: &GoldModel) -> Refreshed {
        match self.refresh(model).await {
            Outcome::Refreshed(commit) => commit.refreshed,
            other => panic!("{other:?}"),
        }
    }

    /// What the table of a model holds, as lines in order.
    async fn lines(&self, table: &TableName) -> Vec<String> {
        let table = self.lake.table(table).await.unwrap();
        lines(&self.rows(&table, "SELECT * FROM t.t").await)
    }

    /// What the model's query gives now, as lines in order.
    async fn answer(&self, model: &GoldModel) -> Vec<String> {
        let session = self.engine.session();
        for input in ["silver.orders", "silver.customers"].map(name) {
            let table = self.lake.table(&input).await.unwrap();
            engine::register(&session, &input, table.view(At::Head).unwrap()).unwrap();
        }
        lines(&engine::plan(&session, &model.sql).await.unwrap().collect().await.unwrap())
    }
}

fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let options = FormatOptions::new().with_null("-");
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<ArrayFormatter<'_>> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        for row in 0..batch.num_rows() {
            lines.push(columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" "));
        }
    }
    lines.sort();
    lines
}

fn model(table: &str, sql: &str, group_by: &[&str]) -> GoldModel {
    let group_by = group_by.iter().map(|column| column.to_string()).collect();
    GoldModel { table: TableName::new("gold", table).unwrap(), sql: sql.to_string(), group_by, expect: Vec::new() }
}

async fn check(steps: Vec<Step>, of: [usize; 2]) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let world = World::open(folder.path()).await;
    let models = [&MODELS[of[0]], &CARRIED[of[1]]]
        .map(|(table, group_by, sql, by_groups)| (model(table, sql, group_by), *by_groups));
    world.take(&Step::Order(vec![(1, Some(1), Some(1), 5, None, None)])).await;
    world.take(&Step::Customer(vec![(1, None)])).await;
    for (model, _) in &models {
        let first = world.refreshed(model).await;
        prop_assert_eq!(first, Refreshed::FullBecause(WhyFull::First));
    }
    for step in steps.iter().chain([&Step::Refresh]) {
        world.take(step).await;
        if !matches!(step, Step::Refresh) {
            continue;
        }
        for (model, by_groups) in &models {
            if let Outcome::Refreshed(commit) = world.refresh(model).await {
                let went_by_groups = matches!(commit.refreshed, Refreshed::Groups { .. });
                let gathered = commit.refreshed == Refreshed::FullBecause(WhyFull::ManyDeletes);
                prop_assert!(gathered || !by_groups || went_by_groups, "{}: {}", model.table, commit.refreshed);
            }
            prop_assert_eq!(world.lines(&model.table).await, world.answer(model).await, "{}", model.table);
        }
    }
    for (model, _) in &models {
        prop_assert!(matches!(world.refresh(model).await, Outcome::Nothing));
    }
    Ok(())
}

/// `ICESTREAM_HISTORIES` sets how many; a failing one is printed whole.
#[test]
fn refreshing_changed_groups_gives_what_computing_everything_gives() {
    let histories = std::env::var("ICESTREAM_HISTORIES").ok().and_then(|text| text.parse().ok()).unwrap_or(24);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: histories, failure_persistence: None, ..Config::default() });
    let steps = proptest::collection::vec(step(), 1..25);
    let models = (0..MODELS.len(), 0..CARRIED.len());
    runner.run(&(steps, models), |(steps, (one, other))| runtime.block_on(check(steps, [one, other]))).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_whose_groups_cannot_be_told_says_why_it_is_computed_in_full() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::open(folder.path()).await;
    let order = |id: i32| Step::Order(vec![(id, Some(1), Some(id), 5, None, None)]);
    let grouped = |sql: &str| model("m", sql, &["day"]);
    let plain = "SELECT day, count(*) AS n FROM silver.orders GROUP BY day";
    world.take(&order(1)).await;
    world.take(&Step::Customer(vec![(1, None)])).await;
    let mut said = Vec::new();
    for sql in [
        plain,
        "SELECT day, count(*) AS n, max(amount) AS most FROM silver.orders GROUP BY day",
        "SELECT day, count(*) AS n, max(amount) AS most, max(now()) AS at FROM silver.orders GROUP BY day",
        "SELECT CAST(row_number() OVER (ORDER BY id) AS int) AS day, amount AS n FROM silver.orders",
    ] {
        let model = grouped(sql);
        said.push(world.refreshed(&model).await.to_string());
        world.take(&order(2)).await;
        said.push(world.refreshed(&model).await.to_string());
    }
    // The input widens; its rows are the same.
    let model = grouped(plain);
    world.refreshed(&model).await;
    let orders = world.lake.table(&name("silver.orders")).await.unwrap();
    let wider = orders.evolve(&SchemaChange::new().add(None, Field::new("more", DataType::Utf8, true))).unwrap();
    orders.change().schema(wider.unwrap()).commit().await.unwrap();
    said.push(world.refreshed(&model).await.to_string());
    // Its snapshots go.
    world.take(&order(3)).await;
    world.take(&order(4)).await;
    let orders = world.lake.table(&name("silver.orders")).await.unwrap();
    let last = Expiry { older_than_ms: i64::MAX, retain_last: 1, ..Default::default() };
    orders.expire(&last).await.unwrap();
    said.push(world.refreshed(&model).await.to_string());
    // The table is made anew.
    world.lake.drop_table(&name("silver.orders"), true).await.unwrap();
    world.create("silver.orders", orders_of(&[]).schema().as_ref()).await;
    world.take(&order(7)).await;
    said.push(world.refreshed(&model).await.to_string());
    let table = world.lake.table(&model.table).await.unwrap();
    assert_eq!(lines(&world.rows(&table, "SELECT day, n FROM t.t").await), world.answer(&model).await);
    insta::assert_snapshot!(said.join("\n"), @"
    in full: it is built for the first time
    changed groups: 1 from the changes alone, 0 from the inputs
    in full: the model changed
    changed groups: 1 from the changes alone, 0 from the inputs
    in full: the model changed
    in full: what `now` gives is not settled by its arguments
    in full: the model changed
    in full: a row of `silver.orders` may reach any group: no group column can be told from it
    in full: the columns of `silver.orders` changed
    in full: the snapshot of `silver.orders` that it was made from is gone
    in full: the snapshot of `silver.orders` that it was made from is gone
    ");
}

/// Refreshes after one step, and says how many groups followed from the changes, how many were computed from the inputs,
/// and how many rows were written and deleted.
async fn refreshed_after(sql: &str, step: Step) -> String {
    let folder = tempfile::tempdir().unwrap();
    let world = World::open(folder.path()).await;
    let orders = vec![
        (0, Some(1), Some(1), 5, Some(0), Some(2)),
        (1, Some(2), Some(1), 7, Some(1), None),
        (2, Some(1), Some(2), 9, Some(0), Some(-1)),
        (3, Some(2), Some(3), 4, None, Some(9)),
        (4, Some(1), Some(3), 6, None, None),
    ];
    world.take(&Step::Order(orders)).await;
    world.take(&Step::Customer(vec![(1, Some(1)), (2, Some(2))])).await;
    let group = if sql.contains("country") { "country" } else { "day" };
    let model = model("m", sql, &[group]);
    world.refreshed(&model).await;
    world.take(&step).await;
    let outcome = world.refresh(&model).await;
    assert_eq!(world.lines(&model.table).await, world.answer(&model).await, "{sql} after {step:?}");
    match outcome {
        Outcome::Refreshed(GoldCommit {
            rows,
            refreshed: Refreshed::Groups { rows_deleted, settled, computed },
            ..
        }) => {
            format!("{settled} {computed} +{rows} -{rows_deleted}")
        }
        Outcome::Refreshed(commit) => commit.refreshed.to_string(),
        other => format!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_only_moved_are_not_among_those_that_changed() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::open(folder.path()).await;
    let order = |id: i32, day: i32| Step::Order(vec![(id, Some(1), Some(day), 5, Some(0), Some(2))]);
    for id in 0..4 {
        world.take(&order(id, id)).await;
    }
    world.take(&Step::Customer(vec![(1, Some(1))])).await;
    let sql = "SELECT day, count(*) AS n, sum(amount) AS total FROM silver.orders GROUP BY day";
    let model = model("m", sql, &["day"]);
    world.refreshed(&model).await;
    let compact = Step::Compact { customers: false };
    for step in [&compact, &order(4, 2), &compact, &compact] {
        world.take(step).await;
    }
    let refreshed = world.refreshed(&model).await;
    assert_eq!(refreshed, Refreshed::Groups { rows_deleted: 1, settled: 1, computed: 0 });
    assert_eq!(world.lines(&model.table).await, world.answer(&model).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_changes_tell_is_not_computed_from_the_inputs() {
    let append = |day: i32, balance: Option<i64>| Step::Order(vec![(9, Some(2), Some(day), 6, Some(2), balance)]);
    let delete = |remainder: i32| Step::Delete { customers: false, remainder };
    let update = |remainder: i32| Step::Update { customers: false, remainder, by: 1 };
    let counted = "SELECT day, count(*) AS n, sum(balance) AS total FROM silver.orders GROUP BY day";
    let summed = "SELECT day, sum(balance) AS total FROM silver.orders GROUP BY day";
    let told = "SELECT day, count(*) AS n, count(balance) AS k, sum(balance) AS total FROM silver.orders GROUP BY day";
    let most = "SELECT day, count(*) AS n, max(amount) AS most FROM silver.orders GROUP BY day";
    let most_alone = "SELECT day, max(amount) AS most FROM silver.orders GROUP BY day";
    let having = "SELECT day, count(*) AS n FROM silver.orders GROUP BY day HAVING count(*) > 1";
    let large = "SELECT day, count(*) AS n, sum(large) AS total FROM silver.orders GROUP BY day";
    let mean = "SELECT day, count(*) AS n, avg(amount) AS mean FROM silver.orders GROUP BY day";
    let mean_of_kept = "SELECT day, count(*) AS n, sum(amount) AS s, sum(amount) / count(*) AS mean FROM silver.orders \
                        GROUP BY day";
    let net = "SELECT day, coalesce(sum(balance), 0) AS net FROM silver.orders GROUP BY day";
    let joined = "SELECT c.country, count(*) AS n FROM silver.orders o JOIN silver.customers c ON c.id = o.customer_id \
                  GROUP BY c.country";
    let (mut said, mut expected) = (Vec::new(), Vec::new());
    for (sql, step, outcome) in [
        (counted, append(1, Some(3)), "1 0 +1 -1"),
        (counted, append(7, None), "1 0 +1 -0"),
        // The whole of day 2 goes.
        (counted, delete(2), "1 0 +0 -1"),
        (summed, delete(2), "0 1 +0 -1"),
        // Order 1 has no balance: what is left of day 1 has the sum it had.
        (summed, delete(1), "1 0 +0 -0"),
        // Of day 3, an order without a balance is left.
        (counted, delete(3), "0 1 +1 -1"),
        (told, delete(3), "1 0 +1 -1"),
        (most, delete(0), "1 1 +2 -2"),
        (most, delete(1), "0 1 +1 -1"),
        (most_alone, delete(2), "0 1 +0 -1"),
        // A greater amount comes for the greatest that goes.
        (most, update(1), "1 0 +1 -1"),
        (most_alone, update(1), "1 0 +1 -1"),
        // Day 2 had one order, and so no row.
        (having, append(2, None), "0 1 +1 -0"),
        (having, append(1, None), "1 0 +1 -1"),
        (having, delete(1), "1 0 +0 -1"),
        // More than 38 digits.
        (large, append(3, Some(5)), "0 1 +1 -1"),
        (large, append(3, Some(-5)), "1 0 +1 -1"),
        (mean, append(1, None), "0 1 +1 -1"),
        (mean_of_kept, append(1, None), "1 0 +1 -1"),
        (net, append(3, Some(-9)), "1 0 +1 -1"),
        (net, delete(3), "0 1 +1 -1"),
        (joined, append(1, None), "1 0 +1 -1"),
        (joined, Step::Customer(vec![(2, Some(3))]), "1 0 +1 -0"),
        (joined, Step::Update { customers: true, remainder: 1, by: 1 }, "2 0 +1 -1"),
        // Rows that only moved.
        (told, Step::Compact { customers: false }, "Nothing"),
        (joined, Step::Compact { customers: true }, "Nothing"),
    ] {
        expected.push(format!("{outcome}: {sql} after {step:?}"));
        said.push(format!("{}: {sql} after {step:?}", refreshed_after(sql, step.clone()).await));
    }
    assert_eq!(said, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_model_of_a_run_reads_the_same_snapshots_and_what_the_run_made() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::open(folder.path()).await;
    let order = |id: i32| Step::Order(vec![(id, Some(1), Some(1), 5, None, None)]);
    let one = model("one", "SELECT day, count(*) AS n FROM silver.orders GROUP BY day", &["day"]);
    let two = model(
        "two",
        "SELECT o.day, g.n, count(*) AS m FROM silver.orders o JOIN gold.one g ON g.day = o.day GROUP BY 1, 2",
        &["day"],
    );
    for round in 0..3 {
        world.take(&order(round)).await;
        let models = [one.clone(), two.clone()];
        let mut inputs = Inputs::pin(&world.lake, &models, BTreeSet::new()).await;
        let first = gold::refresh(&world.lake, &world.engine, &one, &mut inputs).await.unwrap();
        // Somebody commits between the two.
        world.take(&order(10 + round)).await;
        let second = gold::refresh(&world.lake, &world.engine, &two, &mut inputs).await.unwrap();
        let (Outcome::Refreshed(first), Outcome::Refreshed(second)) = (first, second) else { panic!("two refreshes") };
        let orders = name("silver.orders");
        assert_eq!(first.inputs[&orders], second.inputs[&orders]);
        assert_eq!(Some(second.inputs[&one.table]), first.snapshot_id);
        let rows = 2 * round + 1;
        assert_eq!(world.lines(&two.table).await, [format!("1 {rows} {rows}")]);
        let marker = gold::inputs(&world.lake.table(&two.table).await.unwrap()).unwrap();
        assert_eq!(marker[&orders.to_string()], first.inputs[&orders]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_started_earlier_does_not_take_a_table_back() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::open(folder.path()).await;
    let order = |id: i32| Step::Order(vec![(id, Some(1), Some(1), 5, None, None)]);
    let of = model("m", "SELECT day, count(*) AS n FROM silver.orders GROUP BY day", &["day"]);
    let reader = model("r", "SELECT * FROM gold.m", &[]);
    world.take(&order(1)).await;
    let models = [of.clone(), reader.clone()];
    let mut early = Inputs::pin(&world.lake, &models, BTreeSet::new()).await;
    world.take(&order(2)).await;
    world.refresh(&of).await;
    let outcome = gold::refresh(&world.lake, &world.engine, &of, &mut early).await.unwrap();
    assert!(matches!(outcome, Outcome::Yielded), "{outcome:?}");
    let outcome = gold::refresh(&world.lake, &world.engine, &reader, &mut early).await.unwrap();
    assert!(matches!(&outcome, Outcome::HeldBack { by } if *by == of.table), "{outcome:?}");
    assert_eq!(world.lines(&of.table).await, ["1 2"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_builders_at_once_one_refreshes() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::open(folder.path()).await;
    let of = model("m", "SELECT day, count(*) AS n FROM silver.orders GROUP BY day", &["day"]);
    for round in 0..4 {
        world.take(&Step::Order(vec![(round, Some(1), Some(1), 5, None, None)])).await;
        let (one, two) = tokio::join!(world.refresh(&of), world.refresh(&of));
        let refreshes = [&one, &two].into_iter().filter(|outcome| matches!(outcome, Outcome::Refreshed(_))).count();
        assert_eq!(refreshes, 1, "{one:?} {two:?}");
        assert_eq!(world.lines(&of.table).await, [format!("1 {}", round + 1)]);
    }
}
