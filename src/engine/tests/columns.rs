//! Columns are found by field id, whatever has happened to their names, types and places.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, Decimal128Array, DictionaryArray, Float32Array, Float64Array, Int32Array, Int64Array,
    LargeStringArray, ListArray, MapArray, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Fields, Int32Type, TimeUnit};
use futures::TryStreamExt;
use parquet::data_type::{Int64Type, Int96, Int96Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use roaring::RoaringTreemap;

use super::fixture::*;
use crate::engine::{RowReader, pieces};
use crate::table::TableView;

fn ints(values: impl IntoIterator<Item = i32>) -> ArrayRef {
    Arc::new(Int32Array::from_iter_values(values))
}

fn longs(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn texts<'a>(values: impl IntoIterator<Item = &'a str>) -> ArrayRef {
    Arc::new(StringArray::from_iter_values(values))
}

#[tokio::test]
async fn renamed_reordered_dropped_and_added_columns_read_right() {
    let lake = Lake::new();
    // First: id, name, note. Then `name` became `title`, `note` was dropped, and a new `note` was added, `price` too.
    let old = lake.write(
        "old.parquet",
        &batch([
            (field(1, "id", DataType::Int64), longs([1, 2])),
            (field(2, "name", DataType::Utf8), texts(["tea", "cup"])),
            (field(3, "note", DataType::Utf8), texts(["gone", "gone"])),
        ]),
    );
    let new = lake.write(
        "new.parquet",
        &batch([
            (field(4, "note", DataType::Utf8), texts(["new"])),
            (field(2, "title", DataType::Utf8), texts(["pot"])),
            (field(1, "id", DataType::Int64), longs([3])),
            (field(5, "price", DataType::Int32), ints([7])),
        ]),
    );
    let table = schema([
        field(1, "id", DataType::Int64),
        field(5, "price", DataType::Int32),
        field(4, "note", DataType::Utf8),
        field(2, "title", DataType::Utf8),
    ]);
    let context = lake.session(&table, &whole([old, new]));
    let all = ["1|-|-|tea", "2|-|-|cup", "3|7|new|pot"];
    assert_eq!(rows(&context, "select * from shop.orders order by id").await, all);
    for (filter, ids) in [
        ("title = 'tea'", vec!["1"]),
        ("note = 'gone'", vec![]),
        ("note is null", vec!["1", "2"]),
        ("note is not null", vec!["3"]),
        ("price > 5 or title = 'cup'", vec!["2", "3"]),
        ("coalesce(price, 0) < 7", vec!["1", "2"]),
        ("title like 'p%' and note = 'new'", vec!["3"]),
    ] {
        let sql = format!("select id from shop.orders where {filter} order by id");
        assert_eq!(rows(&context, &sql).await, ids, "{filter}");
    }
    assert_eq!(rows(&context, "select count(note), count(price), count(*) from shop.orders").await, ["1|1|3"]);
}

#[tokio::test]
async fn columns_that_exchanged_their_names_are_not_confused() {
    let lake = Lake::new();
    let file = lake.write(
        "swapped.parquet",
        &batch([
            (field(1, "a", DataType::Utf8), texts(["first", "first"])),
            (field(2, "b", DataType::Utf8), texts(["second", "other"])),
        ]),
    );
    let table = schema([field(2, "a", DataType::Utf8), field(1, "b", DataType::Utf8)]);
    let context = lake.session(&table, &whole([file.clone()]));
    assert_eq!(rows(&context, "select a, b from shop.orders").await, ["second|first", "other|first"]);
    assert_eq!(rows(&context, "select b from shop.orders where a = 'other'").await, ["first"]);
    assert_eq!(rows(&context, "select count(*) from shop.orders where b = 'other'").await, ["0"]);
    // And with a deleted row, which goes another way.
    let context = lake.session(&table, &[(file, vec![0])]);
    assert_eq!(rows(&context, "select a, b from shop.orders").await, ["other|first"]);
}

#[tokio::test]
async fn filters_on_promoted_columns_are_right() {
    let lake = Lake::new();
    let columns = |qty: ArrayRef, price: ArrayRef, cost: ArrayRef| {
        let types = [qty.data_type().clone(), price.data_type().clone(), cost.data_type().clone()];
        let [q, p, c] = types;
        batch([(field(1, "qty", q), qty), (field(2, "price", p), price), (field(3, "cost", c), cost)])
    };
    let narrow_cost = Decimal128Array::from_iter_values([150, 250, -350, 0, 99, 9_999_999_999, 1]);
    let narrow = columns(
        ints([13, 20, -5, 7, 0, 2_000_000_000, 1]),
        Arc::new(Float32Array::from(vec![0.1, 0.5, -2.5, 1e30, 0.0, 3.0, 4.0])),
        Arc::new(narrow_cost.with_precision_and_scale(10, 2).unwrap()),
    );
    let wide_cost = Decimal128Array::from_iter_values([9_999_999_999_999, 250]);
    let wide = columns(
        longs([5_000_000_000, 6_000_000_000]),
        Arc::new(Float64Array::from(vec![0.1, 1e300])),
        Arc::new(wide_cost.with_precision_and_scale(18, 2).unwrap()),
    );
    let bloom = |builder: parquet::file::properties::WriterPropertiesBuilder| builder.set_bloom_filter_enabled(true);
    let properties = WriterProperties::builder;
    let old = lake.write_with("int.parquet", &narrow, bloom(properties()));
    let new = lake.write_with("long.parquet", &wide, bloom(properties()));
    let table = schema([
        field(1, "qty", DataType::Int64),
        field(2, "price", DataType::Float64),
        field(3, "cost", DataType::Decimal128(18, 2)),
    ]);
    let count = async |context: &datafusion::prelude::SessionContext, filter: &str| {
        rows(context, &format!("select count(*) from shop.orders where {filter}")).await.concat()
    };
    for deleted in [vec![], vec![4u64]] {
        let gone = deleted.len() as i64;
        let context = lake.session(&table, &[(old.clone(), deleted), (new.clone(), vec![])]);
        // The third: how many of them the deleted row (0, 0.0, 0.99) takes away.
        for (filter, expected, of_deleted) in [
            ("qty <= 20", 6, 1),
            ("qty < 5000000000", 7, 1),
            ("qty <> 5000000000", 8, 1),
            ("qty > 5000000000", 1, 0),
            ("qty = 13", 1, 0),
            ("qty in (13, 5000000000)", 2, 0),
            ("qty not in (13, 5000000000)", 7, 1),
            ("qty between 1 and 13", 3, 0),
            ("qty + 1 > 5000000000", 2, 0),
            ("-qty > 3", 1, 0),
            ("price = 0.5", 1, 0),
            ("price = 0.1", 1, 0),
            ("price < 0.2", 4, 1),
            ("price > 1e100", 1, 0),
            ("price <> 1e300", 8, 1),
            ("cost = 2.50", 2, 0),
            ("cost > 99999999.99", 1, 0),
            ("cost = 99999999.99", 1, 0),
            ("cost in (99999999.99, 0.99)", 2, 1),
            ("cost between -3.50 and 0.99", 4, 1),
            ("cost * 2 = 3.0", 1, 0),
            ("cost <= 99999999.99", 8, 1),
            ("cost <> 99999999999.99", 8, 1),
            ("cost < 9999999999999999.99", 9, 1),
            ("cost = 0.99 and qty = 0", 1, 1),
        ] {
            assert_eq!(count(&context, filter).await, (expected - of_deleted * gone).to_string(), "{filter}");
        }
        assert_eq!(
            rows(&context, "select qty, cost from shop.orders where cost = 2.5 order by qty").await,
            ["20|2.50", "6000000000|2.50"]
        );
    }
}

#[tokio::test]
async fn nested_fields_are_found_by_id_too() {
    let lake = Lake::new();
    let inner_old = Fields::from(vec![
        field(11, "street", DataType::Utf8),
        field(12, "zip", DataType::Int32),
        field(13, "gone", DataType::Utf8),
    ]);
    let address = StructArray::try_new(
        inner_old.clone(),
        vec![texts(["high", "low"]), ints([10, 20]), texts(["x", "y"])],
        Some(vec![true, false].into()),
    )
    .unwrap();
    let item_old = Fields::from(vec![field(22, "sku", DataType::Utf8), field(23, "n", DataType::Int32)]);
    let items = StructArray::try_new(item_old.clone(), vec![texts(["a", "b", "c"]), ints([1, 2, 3])], None).unwrap();
    let element = field(21, "element", DataType::Struct(item_old));
    let lists = ListArray::try_new(element.clone(), OffsetBuffer::from_lengths([2, 1]), Arc::new(items), None).unwrap();
    let key = Arc::new(Field::clone(&field(31, "key", DataType::Utf8)).with_nullable(false));
    let entries_type = |value: DataType| {
        let fields = Fields::from(vec![key.clone(), field(32, "value", value)]);
        Arc::new(Field::new("key_value", DataType::Struct(fields), false))
    };
    let old_entries = entries_type(DataType::Int32);
    let DataType::Struct(entry_fields) = old_entries.data_type().clone() else { unreachable!() };
    let entries = StructArray::try_new(entry_fields, vec![texts(["k", "l"]), ints([1, 2])], None).unwrap();
    let map = MapArray::try_new(old_entries.clone(), OffsetBuffer::from_lengths([1, 1]), entries, None, false).unwrap();
    let file = lake.write(
        "nested.parquet",
        &batch([
            (field(1, "id", DataType::Int64), longs([1, 2])),
            (field(2, "address", DataType::Struct(inner_old)), Arc::new(address) as ArrayRef),
            (field(3, "items", DataType::List(element)), Arc::new(lists)),
            (field(4, "tags", DataType::Map(old_entries, false)), Arc::new(map)),
        ]),
    );
    // Renamed, promoted, dropped, added, reordered, at every depth.
    let geo = Fields::from(vec![field(15, "lat", DataType::Float64)]);
    let address = Fields::from(vec![
        field(12, "postcode", DataType::Int64),
        field(14, "gone", DataType::Utf8),
        field(11, "street", DataType::Utf8),
        field(16, "geo", DataType::Struct(geo)),
    ]);
    let item = Fields::from(vec![field(23, "quantity", DataType::Int64), field(22, "sku", DataType::Utf8)]);
    let table = schema([
        field(1, "id", DataType::Int64),
        field(2, "place", DataType::Struct(address)),
        field(3, "items", DataType::List(field(21, "element", DataType::Struct(item)))),
        field(4, "tags", DataType::Map(entries_type(DataType::Int64), false)),
    ]);
    for deleted in [vec![], vec![1u64]] {
        let is_whole = deleted.is_empty();
        let context = lake.session(&table, &[(file.clone(), deleted)]);
        let first =
            "1|{postcode: 10, gone: , street: high, geo: }|[{quantity: 1, sku: a}, {quantity: 2, sku: b}]|{k: 1}";
        let second = "2|-|[{quantity: 3, sku: c}]|{l: 2}";
        let expected = if is_whole { vec![first, second] } else { vec![first] };
        let found = rows(&context, "select * from shop.orders order by id").await;
        assert_eq!(
            found,
            expected.iter().map(|row| row.replace(": ,", ": -,").replace(": }", ": -}")).collect::<Vec<_>>()
        );
        let sql = "select place['street'], place['geo']['lat'], items[1]['quantity'] from shop.orders where place['postcode'] = 10";
        assert_eq!(rows(&context, sql).await, ["high|-|1"]);
    }
}

#[tokio::test]
async fn files_of_other_writers_are_read_by_their_parquet_schema() {
    let lake = Lake::new();
    let table = schema([
        field(1, "id", DataType::Int64),
        field(2, "name", DataType::Utf8),
        field(3, "at", DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))),
    ]);
    let instants = || TimestampMicrosecondArray::from(vec![1_000_001, 2_000_002]);
    // No field ids at all: by name. The embedded Arrow schema asks for a dictionary.
    let names: DictionaryArray<Int32Type> = vec!["tea", "cup"].into_iter().collect();
    let by_name = lake.write(
        "by_name.parquet",
        &arrow::array::RecordBatch::try_from_iter([
            ("name", Arc::new(names) as ArrayRef),
            ("at", Arc::new(instants().with_timezone("UTC"))),
            ("id", ints([1, 2])),
        ])
        .unwrap(),
    );
    // Large strings, as Arrow writers in other languages like to have them.
    let large = lake.write(
        "large.parquet",
        &batch([
            (field(2, "title", DataType::LargeUtf8), Arc::new(LargeStringArray::from(vec!["pot", "tea"])) as ArrayRef),
            (field(1, "id", DataType::Int64), longs([3, 4])),
            (
                field(3, "at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
                Arc::new(instants().with_timezone("UTC")),
            ),
        ]),
    );
    let context = lake.session(&table, &whole([by_name, large]));
    assert_eq!(
        rows(&context, "select * from shop.orders order by id").await,
        [
            "1|tea|1970-01-01T00:00:01.000001Z",
            "2|cup|1970-01-01T00:00:02.000002Z",
            "3|pot|1970-01-01T00:00:01.000001Z",
            "4|tea|1970-01-01T00:00:02.000002Z",
        ]
    );
    assert_eq!(rows(&context, "select id from shop.orders where name = 'tea' order by id").await, ["1", "4"]);
    let sql = "select id from shop.orders where at > timestamp '1970-01-01T00:00:01.5Z' order by id";
    assert_eq!(rows(&context, sql).await, ["2", "4"]);
}

#[tokio::test]
async fn coarser_timestamps_are_compared_in_the_tables_unit() {
    let lake = Lake::new();
    let millis = DataType::Timestamp(TimeUnit::Millisecond, None);
    let values = arrow::array::TimestampMillisecondArray::from(vec![1, 2]);
    let file = lake.write("ms.parquet", &batch([(field(1, "at", millis), Arc::new(values) as ArrayRef)]));
    let table = schema([field(1, "at", DataType::Timestamp(TimeUnit::Microsecond, None))]);
    let context = lake.session(&table, &whole([file]));
    let sql = "select count(*) from shop.orders where at < timestamp '1970-01-01T00:00:00.001500'";
    assert_eq!(rows(&context, sql).await, ["1"]);
}

/// A file with an instant of 96 bits in each of two rows, as older Spark writes them.
fn with_wide_instants(lake: &Lake) -> std::path::PathBuf {
    let path = lake.path("wide.parquet");
    let message = "message spark { optional int64 id = 1; optional int96 at = 2; }";
    let parsed = Arc::new(parse_message_type(message).unwrap());
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, parsed, Arc::new(WriterProperties::builder().build())).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[1, 2], Some(&[1, 1]), None).unwrap();
    column.close().unwrap();
    // Nanoseconds of the day, and the day: 2,440,588 is the first of 1970.
    let instant = |seconds: u32| Int96::from(vec![seconds * 1_000_000_000, 0, 2_440_588]);
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int96Type>().write_batch(&[instant(1), instant(2)], Some(&[1, 1]), None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    path
}

#[tokio::test]
async fn instants_of_96_bits_are_read_whether_the_place_of_rows_is_asked_for_or_not() {
    let lake = Lake::new();
    let file = with_wide_instants(&lake);
    let table = schema([
        field(1, "id", DataType::Int64),
        field(2, "at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
    ]);
    let context = lake.session(&table, &[(file.clone(), Vec::new())]);
    let all = ["1|1970-01-01T00:00:01Z", "2|1970-01-01T00:00:02Z"];
    assert_eq!(rows(&context, "select * from shop.orders order by id").await, all);
    let placed = "select _pos, at from shop.\"orders$rows\" order by 1";
    assert_eq!(rows(&context, placed).await, ["0|1970-01-01T00:00:01Z", "1|1970-01-01T00:00:02Z"]);
    let context = lake.session(&table, &[(file, vec![0])]);
    assert_eq!(rows(&context, "select * from shop.orders").await, all[1..]);
    assert_eq!(rows(&context, placed).await, ["1|1970-01-01T00:00:02Z"]);
}

#[tokio::test]
async fn texts_of_other_writers_are_read_row_by_row() {
    let lake = Lake::new();
    let names = ["tea", "a longer text", "cup"];
    let files = [
        lake.write("plain.parquet", &batch([(field(1, "name", DataType::Utf8), texts(names))])),
        // Others write texts as bytes, or without field ids.
        lake.write(
            "bytes.parquet",
            &batch([(field(1, "name", DataType::Binary), Arc::new(BinaryArray::from_iter_values(names)) as ArrayRef)]),
        ),
        lake.write("by_name.parquet", &arrow::array::RecordBatch::try_from_iter([("name", texts(names))]).unwrap()),
    ];
    let table = schema([field(1, "name", DataType::Utf8)]);
    let columns = vec![field(1, "name", DataType::Utf8)];
    for file in files {
        let view = TableView::from_files("shop.orders".parse().unwrap(), table.clone(), whole([file]));
        let reader = RowReader::new(&lake.session(&table, &[]), &view, columns.clone());
        let files = view.files(None).await.unwrap();
        let piece = &pieces(&files)[0];
        let deleted = Some(Arc::new(RoaringTreemap::from_iter([0])));
        let read = reader.clone().with_positions().read(&files[0], piece, deleted, None).await.unwrap();
        let read: Vec<_> = read.try_collect().await.unwrap();
        assert_eq!(lines(&read), ["a longer text|1", "cup|2"]);
        let picked = reader.rows_at(&files[0], piece, &[0, 2]).await.unwrap();
        assert_eq!(lines(&[picked[0].1.clone()]), ["tea", "cup"]);
    }
}

#[tokio::test]
async fn a_type_that_cannot_be_mapped_is_a_clear_error() {
    let lake = Lake::new();
    let file = lake.write(
        "odd.parquet",
        &batch([(field(1, "id", DataType::Int64), longs([1])), (field(2, "name", DataType::Utf8), texts(["x"]))]),
    );
    let inner = Fields::from(vec![field(3, "a", DataType::Int32)]);
    let table = schema([field(1, "id", DataType::Int64), field(2, "name", DataType::Struct(inner))]);
    let context = lake.session(&table, &whole([file]));
    // What is not asked for does not matter.
    assert_eq!(rows(&context, "select id from shop.orders").await, ["1"]);
    insta::assert_snapshot!(failure(&context, "select name from shop.orders").await, @r"error: table `shop.orders` cannot be read: column `name`: it is a struct, and a data file holds `Utf8`");
}

#[tokio::test]
async fn a_required_column_that_a_file_lacks_is_a_clear_error() {
    let lake = Lake::new();
    let file = lake.write("short.parquet", &batch([(field(1, "id", DataType::Int64), longs([1]))]));
    let required = Arc::new(Field::clone(&field(2, "name", DataType::Utf8)).with_nullable(false));
    let context = lake.session(&schema([field(1, "id", DataType::Int64), required]), &whole([file]));
    insta::assert_snapshot!(failure(&context, "select name from shop.orders").await, @r"error: table `shop.orders` cannot be read: column `name`: a data file lacks it, and it may not be null");
}

#[tokio::test]
async fn bloom_filters_of_wide_decimals_lose_no_row() {
    let lake = Lake::new();
    let wide = DataType::Decimal128(20, 2);
    let values = Decimal128Array::from_iter_values((0..1000).map(|i| i * 100 + 7));
    let values = values.with_precision_and_scale(20, 2).unwrap();
    let properties = WriterProperties::builder().set_bloom_filter_enabled(true);
    let file =
        lake.write_with("d.parquet", &batch([(field(1, "d", wide.clone()), Arc::new(values) as ArrayRef)]), properties);
    let context = lake.session(&schema([field(1, "d", wide)]), &whole([file]));
    assert_eq!(rows(&context, "select d from shop.orders where d = 123.07").await, ["123.07"]);
    assert_eq!(rows(&context, "select d from shop.orders where d = 123.08").await, [] as [&str; 0]);
}
