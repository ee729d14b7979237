//! Rows that are read by their positions are those that a scan finds there.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Decimal128Array, Int32Array, Int64Array, RecordBatch, StringArray, StructArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, FieldRef, Fields, TimeUnit};
use futures::TryStreamExt;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::fixture::*;
use crate::engine::{RowReader, pieces};
use crate::table::{ScanFile, TableView};

/// The columns of a table after some of a file's were renamed and widened, and others added.
fn columns(with_struct: bool) -> Vec<FieldRef> {
    let mut columns = vec![
        field(1, "id", DataType::Int64),
        field(7, "added", DataType::Int32),
        field(2, "title", DataType::Utf8),
        field(3, "qty", DataType::Int64),
        field(4, "price", DataType::Decimal128(18, 2)),
        field(5, "at", DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))),
    ];
    if with_struct {
        columns.push(field(6, "place", DataType::Struct(Fields::from(vec![field(11, "a", DataType::Int32)]))));
    }
    columns
}

fn rows(random: &mut StdRng, count: usize) -> RecordBatch {
    let mut sometimes = |most: i64| -> Vec<Option<i64>> {
        (0..count).map(|_| random.random_bool(0.9).then(|| random.random_range(0..most))).collect()
    };
    let names: StringArray = sometimes(50).into_iter().map(|name| name.map(|name| format!("nåme {name}"))).collect();
    let qty: Int32Array = sometimes(1 << 30).into_iter().map(|qty| qty.map(|qty| qty as i32)).collect();
    let price: Decimal128Array = sometimes(1 << 30).into_iter().map(|price| price.map(i128::from)).collect();
    let at = TimestampMicrosecondArray::from(sometimes(i64::MAX)).with_timezone("+00:00");
    let a = Arc::new(Int32Array::from_iter_values(0..count as i32)) as ArrayRef;
    let place = StructArray::try_new(Fields::from(vec![field(11, "a", DataType::Int32)]), vec![a], None).unwrap();
    batch([
        (field(6, "place", place.data_type().clone()), Arc::new(place) as ArrayRef),
        (field(3, "qty", DataType::Int32), Arc::new(qty)),
        (field(1, "id", DataType::Int64), Arc::new(Int64Array::from_iter_values(0..count as i64))),
        (field(2, "name", DataType::Utf8), Arc::new(names)),
        (field(4, "price", DataType::Decimal128(10, 2)), Arc::new(price.with_precision_and_scale(10, 2).unwrap())),
        (field(5, "at", at.data_type().clone()), Arc::new(at)),
    ])
}

/// What is found at positions, with the place of each row among them, and how a scan shows these rows.
async fn check(lake: &Lake, path: PathBuf, columns: Vec<FieldRef>, positions: &[u64], is_picked: bool) {
    let view = TableView::from_files("shop.orders".parse().unwrap(), schema(columns.clone()), vec![(path, vec![])]);
    let files: Vec<ScanFile> = view.files(None).await.unwrap();
    let reader = RowReader::new(&lake.engine.session(), &view, columns);
    let (mut found, mut all) = (vec![None; positions.len()], Vec::new());
    let mut pieces = pieces(&files);
    pieces.sort_by_key(|piece| piece.start());
    for piece in pieces {
        let picked = reader.picked(&files[0], &piece, positions).await.unwrap();
        assert_eq!(picked.is_some(), is_picked);
        for (first, batch) in reader.rows_at(&files[0], &piece, positions).await.unwrap() {
            for (row, line) in lines(&[batch]).into_iter().enumerate() {
                assert_eq!(found[first + row].replace(line), None, "a row came twice");
            }
        }
        let batches: Vec<RecordBatch> =
            reader.read(&files[0], &piece, None, None).await.unwrap().try_collect().await.unwrap();
        all.extend(lines(&batches));
    }
    let expected: Vec<Option<String>> = positions.iter().map(|at| Some(all[*at as usize].clone())).collect();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn rows_at_positions_are_those_that_a_scan_finds_there() {
    let lake = Lake::new();
    for seed in 0..20 {
        let mut random = StdRng::seed_from_u64(seed);
        let count = random.random_range(1..3000);
        let batch = rows(&mut random, count);
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(random.random_range(50..2000)))
            .set_data_page_row_count_limit(random.random_range(20..300))
            .set_write_batch_size(20)
            .set_offset_index_disabled(random.random());
        let path = lake.write_with(&format!("{seed}.parquet"), &batch, properties);
        let part = [0.0, 0.005, 0.2, 1.0][random.random_range(0..4)];
        let positions: Vec<u64> = (0..batch.num_rows() as u64).filter(|_| random.random_bool(part)).collect();
        check(&lake, path.clone(), columns(false), &positions, true).await;
        // Values of structs are not looked up one by one.
        check(&lake, path, columns(true), &positions, false).await;
    }
}

#[tokio::test]
async fn a_file_of_many_pieces_gives_each_row_once() {
    let lake = Lake::new();
    let mut random = StdRng::seed_from_u64(1);
    let ids = Int64Array::from_iter_values((0..2_500_000).map(|_| random.random()));
    let batch = batch([(field(1, "id", DataType::Int64), Arc::new(ids) as ArrayRef)]);
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_compression(Compression::UNCOMPRESSED)
        .set_max_row_group_row_count(Some(400_000));
    let path = lake.write_with("large.parquet", &batch, properties);
    let positions: Vec<u64> = (0..2_500_000).step_by(997).collect();
    check(&lake, path, vec![field(1, "id", DataType::Int64)], &positions, true).await;
}
