//! Deleted rows stay away, and every other row stays, whatever is asked of the table.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Decimal128Array, Int32Array, Int64Array, ListBuilder, RecordBatch, StringArray,
    StringBuilder, StructArray,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use datafusion::catalog::MemorySchemaProvider;
use datafusion::datasource::MemTable;
use datafusion::physical_plan::displayable;
use datafusion::prelude::SessionContext;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::fixture::*;

fn table_schema() -> SchemaRef {
    let inner = Fields::from(vec![field(11, "a", DataType::Int32), field(12, "b", DataType::Utf8)]);
    schema([
        field(1, "id", DataType::Int64),
        field(2, "name", DataType::Utf8),
        field(3, "qty", DataType::Int32),
        field(4, "price", DataType::Decimal128(20, 2)),
        field(5, "place", DataType::Struct(inner)),
        field(6, "tags", DataType::List(field(13, "element", DataType::Utf8))),
    ])
}

fn random_rows(random: &mut StdRng, first_id: i64, count: usize) -> RecordBatch {
    let table = table_schema();
    let sorted = random.random_bool(0.5);
    let id = |random: &mut StdRng, i: usize| {
        if sorted { first_id + i as i64 } else { first_id + random.random_range(0..count as i64) }
    };
    let ids = Int64Array::from_iter_values((0..count).map(|i| id(random, i)));
    let names = (0..count).map(|_| random.random_bool(0.8).then(|| format!("name {}", random.random_range(0..300))));
    let names: StringArray = names.collect();
    let qty: Int32Array = (0..count).map(|_| random.random_bool(0.9).then(|| random.random_range(-50..50))).collect();
    let price = Decimal128Array::from_iter_values((0..count).map(|_| random.random_range(0..100_000i128)));
    let DataType::Struct(inner) = table.field(4).data_type().clone() else { unreachable!() };
    // Below a null there is nothing, as in a file; DataFusion's field access does not look at the parent.
    let a: Int32Array = (0..count).map(|i| (i % 11 != 0).then_some(i as i32 % 7)).collect();
    let b: StringArray = (0..count).map(|i| (i % 11 != 0 && i % 3 != 0).then(|| format!("b{}", i % 5))).collect();
    let valid: Vec<bool> = (0..count).map(|i| i % 11 != 0).collect();
    let place = StructArray::try_new(inner, vec![Arc::new(a), Arc::new(b)], Some(valid.into())).unwrap();
    let DataType::List(element) = table.field(5).data_type().clone() else { unreachable!() };
    let mut tags = ListBuilder::new(StringBuilder::new()).with_field(element);
    for i in 0..count {
        for j in 0..i % 3 {
            tags.values().append_value(format!("t{j}"));
        }
        tags.append(i % 13 != 0);
    }
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids),
        Arc::new(names),
        Arc::new(qty),
        Arc::new(price.with_precision_and_scale(20, 2).unwrap()),
        Arc::new(place),
        Arc::new(tags.finish()),
    ];
    RecordBatch::try_new(table, columns).unwrap()
}

fn random_deletes(random: &mut StdRng, rows: usize, row_group: usize) -> Vec<u64> {
    let rows_u64 = rows as u64;
    let mut deleted: Vec<u64> = match random.random_range(0..7) {
        0 => Vec::new(),
        1 => (0..rows_u64).filter(|_| random.random_bool(0.01)).collect(),
        2 => (0..rows_u64).filter(|_| random.random_bool(0.5)).collect(),
        // Whole row groups, and the edges of others.
        3 => (0..rows_u64).filter(|i| (i / row_group as u64).is_multiple_of(2)).collect(),
        4 => (0..rows_u64).filter(|i| [0, row_group as u64 - 1].contains(&(i % row_group as u64))).collect(),
        5 => {
            let from = random.random_range(0..rows_u64);
            (from..rows_u64.min(from + random.random_range(1..500))).collect()
        }
        _ => (0..rows_u64).collect(),
    };
    // A delete file may name positions twice and positions that are not there.
    if !deleted.is_empty() && random.random_bool(0.3) {
        deleted.push(rows_u64 + 5);
    }
    deleted
}

/// The same table, held in memory: all live rows with their places.
fn truth(files: &[(PathBuf, Vec<u64>)], batches: &[RecordBatch]) -> SessionContext {
    let fields = table_schema().fields().iter().cloned().collect::<Vec<_>>();
    let places = [Field::new("_file", DataType::Utf8, false), Field::new("_pos", DataType::Int64, false)];
    let with_places = Arc::new(Schema::new(fields.into_iter().chain(places.map(Arc::new)).collect::<Vec<_>>()));
    let live = files.iter().zip(batches).map(|((path, deleted), batch)| {
        let file: StringArray = (0..batch.num_rows()).map(|_| Some(location(path))).collect();
        let position = Int64Array::from_iter_values(0..batch.num_rows() as i64);
        let mut columns = batch.columns().to_vec();
        columns.extend([Arc::new(file) as ArrayRef, Arc::new(position)]);
        let keep: BooleanArray = (0..batch.num_rows()).map(|i| Some(!deleted.contains(&(i as u64)))).collect();
        filter_record_batch(&RecordBatch::try_new(with_places.clone(), columns).unwrap(), &keep).unwrap()
    });
    let live: Vec<RecordBatch> = live.collect();
    let plain: Vec<RecordBatch> = live.iter().map(|batch| batch.project(&[0, 1, 2, 3, 4, 5]).unwrap()).collect();
    let context = Lake::new().engine.session();
    let shop = Arc::new(MemorySchemaProvider::new());
    context.catalog("lake").unwrap().register_schema("shop", shop).unwrap();
    let table = MemTable::try_new(table_schema(), vec![plain]).unwrap();
    context.register_table("shop.orders", Arc::new(table)).unwrap();
    let table = MemTable::try_new(with_places, vec![live]).unwrap();
    context.register_table("shop.\"orders$rows\"", Arc::new(table)).unwrap();
    context
}

const FILTERS: &[&str] = &[
    "true",
    "id between 700 and 1200",
    "id = 1003",
    "id in (5, 1500, 2999, 100000)",
    "qty > 40 and id < 2000",
    "qty is null",
    "name = 'name 17'",
    "name like 'name 1%' and qty <> 3",
    "name is null or qty < -45",
    "price = 250.00 or price > 990",
    "place['a'] = 3",
    "place is null",
    "array_has(tags, 't1') and id > 300",
    "cardinality(tags) = 2 and place['b'] = 'b1'",
    "id > 1000000",
];

const PROJECTIONS: &[&str] = &[
    "id",
    "name, id",
    "count(*), sum(id), count(name), min(qty), max(price)",
    "place, tags, id",
    "count(*)",
    "price",
    "1",
];

#[tokio::test]
async fn any_deletes_with_any_query_leave_exactly_the_live_rows() {
    let seed: u64 = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let mut cut = 0;
    for round in 0..12 {
        let lake = Lake::with(random.random_range(1..6), 256 * 1024 * 1024);
        let (mut files, mut batches) = (Vec::new(), Vec::new());
        for file in 0..random.random_range(1..4) {
            let count = random.random_range(1..2500);
            let batch = random_rows(&mut random, file * 900, count);
            let row_group = random.random_range(50..900);
            let properties = WriterProperties::builder()
                .set_max_row_group_row_count(Some(row_group))
                .set_data_page_row_count_limit(random.random_range(20..300))
                .set_write_batch_size(20)
                .set_bloom_filter_enabled(random.random_bool(0.5))
                .set_offset_index_disabled(random.random_bool(0.2))
                .set_statistics_enabled(
                    *[EnabledStatistics::Page, EnabledStatistics::Chunk].choose(&mut random).unwrap(),
                );
            let path = lake.write_with(&format!("{file}.parquet"), &batch, properties);
            files.push((path, random_deletes(&mut random, count, row_group)));
            batches.push(batch);
        }
        let context = lake.session(&table_schema(), &files);
        if round % 3 > 0 {
            // Cuts files wherever it is even, also within row groups.
            context.sql("set datafusion.optimizer.repartition_file_min_size = 1").await.unwrap();
            let plan = context.sql("select id from shop.orders").await.unwrap().create_physical_plan().await.unwrap();
            let plan = displayable(plan.as_ref()).indent(true).to_string();
            cut += usize::from(plan.contains(".parquet:"));
        }
        let truth = truth(&files, &batches);
        for filter in FILTERS {
            let projection = PROJECTIONS.choose(&mut random).unwrap();
            let sql = format!("select {projection} from shop.orders where {filter}");
            let expected = sorted_rows(&truth, &sql).await;
            assert_eq!(sorted_rows(&context, &sql).await, expected, "seed {seed} round {round}: {sql}");

            let columns =
                ["_pos, _file", "_file, _pos, id, name", "_pos + 1, id", "count(*), sum(_pos), max(_file)", "id"];
            let columns = columns.choose(&mut random).unwrap();
            let more =
                ["", " and _pos > 100", " and _pos % 2 = 0 and _file like '%1.parquet'"].choose(&mut random).unwrap();
            let sql = format!("select {columns} from shop.\"orders$rows\" where ({filter}){more}");
            let expected = sorted_rows(&truth, &sql).await;
            assert_eq!(sorted_rows(&context, &sql).await, expected, "seed {seed} round {round}: {sql}");
        }
        // A limit gives as many rows as there are, and only live ones.
        for (sql, all) in [
            ("select id, name from shop.orders limit 40", "select id, name from shop.orders"),
            (
                "select id, qty from shop.orders where qty > 10 limit 40",
                "select id, qty from shop.orders where qty > 10",
            ),
            (
                "select _pos, id from shop.\"orders$rows\" where id < 1500 limit 40",
                "select _pos, id from shop.\"orders$rows\" where id < 1500",
            ),
        ] {
            let (some, all) = (rows(&context, sql).await, sorted_rows(&truth, all).await);
            assert_eq!(some.len(), all.len().min(40), "seed {seed} round {round}: {sql}");
            assert!(some.iter().all(|row| all.binary_search(row).is_ok()), "seed {seed} round {round}: {sql}");
        }
        let sql = "select id, _pos, _file from shop.\"orders$rows\" order by price desc, id, _pos, _file limit 7";
        assert_eq!(rows(&context, sql).await, rows(&truth, sql).await, "seed {seed} round {round}: {sql}");
    }
    assert!(cut > 0, "seed {seed}");
}

fn numbers(ids: std::ops::Range<i64>) -> RecordBatch {
    let half: Int32Array = ids.clone().map(|id| (id % 2 == 0).then_some(id as i32)).collect();
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(ids));
    batch([(field(1, "id", DataType::Int64), ids), (field(2, "half", DataType::Int32), Arc::new(half))])
}

#[tokio::test]
async fn counting_needs_no_data_file() {
    let lake = Lake::new();
    let table = numbers(0..0).schema();
    let one = lake.write("1.parquet", &numbers(0..1000));
    let two = lake.write("2.parquet", &numbers(1000..1500));
    let files = [(one.clone(), vec![]), (two.clone(), vec![3, 4, 9999])];
    let context = lake.session(&table, &files);
    let only_whole = lake.engine.session();
    add(&only_whole, "shop.whole", &table, &whole([one.clone()]));
    std::fs::remove_file(&one).unwrap();
    std::fs::remove_file(&two).unwrap();
    assert_eq!(rows(&context, "select count(*) from shop.orders").await, ["1498"]);
    assert_eq!(rows(&context, "select count(1) from shop.\"orders$rows\"").await, ["1498"]);
    assert_eq!(rows(&only_whole, "select count(half), count(*) from shop.whole").await, ["500|1000"]);
    let folder = lake.path("").display().to_string();
    let said =
        failure(&context, "select count(*) from shop.orders where id > 1200").await.replace(&folder, "[folder]/");
    insta::assert_snapshot!(said, @r"
    error: a data file is missing: Object at location [folder]/2.parquet not found: No such file or directory (os error 2)
      hint: a snapshot needs the files it names; use a newer snapshot, or restore the file
    ");
}

#[tokio::test]
async fn nulls_are_not_counted_from_metadata_when_rows_are_deleted() {
    let lake = Lake::new();
    let file = lake.write("1.parquet", &numbers(0..10));
    // All rows with a value are gone: as many nulls as rows are left, and as many rows as there were nulls.
    let table = numbers(0..0).schema();
    let context = lake.session(&table, &[(file.clone(), vec![1, 3, 5, 7, 9])]);
    assert_eq!(rows(&context, "select count(half), count(*) from shop.orders").await, ["5|5"]);
    assert_eq!(rows(&context, "select half from shop.orders order by 1").await, ["0", "2", "4", "6", "8"]);
    let context = lake.session(&table, &[(file, vec![0, 2, 4, 6, 8])]);
    assert_eq!(rows(&context, "select count(half), count(*) from shop.orders").await, ["0|5"]);
    assert_eq!(rows(&context, "select distinct half from shop.orders").await, ["-"]);
}

#[tokio::test]
async fn row_groups_without_a_live_row_are_not_read() {
    let lake = Lake::new();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(1000));
    let file = lake.write_with("1.parquet", &numbers(0..10_000), properties);
    let table = numbers(0..0).schema();
    let all = run(&lake.session(&table, &whole([file.clone()])), "select id, half from shop.orders").await;
    let context = lake.session(&table, &[(file, (1000..9000).collect())]);
    let some = run(&context, "select id, half from shop.orders").await;
    assert_eq!((all.rows.len(), some.rows.len()), (10_000, 2000));
    let (all, some) = (all.metric("bytes_scanned"), some.metric("bytes_scanned"));
    assert!(some < all / 2, "{some} of {all} bytes");
}

#[tokio::test]
async fn only_files_named_by_the_filter_are_planned() {
    let lake = Lake::new();
    let files: Vec<PathBuf> =
        (0..5).map(|i| lake.write(&format!("{i}.parquet"), &numbers(i * 10..i * 10 + 10))).collect();
    let context = lake.session(&numbers(0..0).schema(), &whole(files.clone()));
    let sql =
        format!("select id, _pos from shop.\"orders$rows\" where _file = '{}' and _pos in (2, 4)", location(&files[3]));
    let ran = run(&context, &sql).await;
    assert_eq!(ran.rows, ["32|2", "34|4"]);
    assert_eq!(ran.files(), 1);
}

#[tokio::test]
async fn a_column_named_like_a_place_hides_only_the_places() {
    let lake = Lake::new();
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values([7]));
    let rows_of = batch([(field(1, "_pos", DataType::Int64), ids)]);
    let file = lake.write("1.parquet", &rows_of);
    let context = lake.session(&rows_of.schema(), &whole([file.clone()]));
    assert_eq!(rows(&context, "select _pos from shop.orders").await, ["7"]);
    assert!(try_rows(&context, "select * from shop.\"orders$rows\"").await.is_err());
    // Under its new name the file's own `_pos` does not get in the way of the row's position.
    let renamed = schema([field(1, "place", DataType::Int64)]);
    let context = lake.session(&renamed, &whole([file]));
    assert_eq!(rows(&context, "select place, _pos from shop.\"orders$rows\"").await, ["7|0"]);
}
