//! How a scan is planned: in parallel, and without the files, row groups and pages that a filter rules out.

use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use parquet::file::properties::WriterProperties;

use super::fixture::*;
use crate::engine::source::FILES_SKIPPED;

/// Ids in order, and a code that hops about, so that its bounds say nothing.
fn orders(ids: std::ops::Range<i64>) -> RecordBatch {
    let codes: StringArray = ids.clone().map(|id| Some(format!("c{:05}", id * 7919 % 100_000))).collect();
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(ids));
    batch([(field(1, "id", DataType::Int64), ids), (field(2, "code", DataType::Utf8), Arc::new(codes))])
}

fn ten_files(lake: &Lake) -> Vec<PathBuf> {
    (0..10).map(|i| lake.write(&format!("{i}.parquet"), &orders(i * 1000..i * 1000 + 1000))).collect()
}

#[tokio::test]
async fn files_outside_a_filters_bounds_are_not_planned() {
    let lake = Lake::new();
    let context = lake.session(&orders(0..0).schema(), &whole(ten_files(&lake)));
    for (filter, files, found) in [
        ("id = 4321", 1, "1"),
        ("id between 1999 and 3000", 3, "1002"),
        ("id < 0", 0, "0"),
        ("id in (5, 9999)", 2, "2"),
        ("id is null", 0, "0"),
        ("id > 8500 or id < 10", 3, "1509"),
        ("id <> 5", 10, "9999"),
        ("cast(id as varchar) = '5'", 1, "1"),
        ("id % 10000 = 5", 10, "1"),
        ("true", 0, "10000"),
    ] {
        let ran = run(&context, &format!("select count(*) from shop.orders where {filter}")).await;
        assert_eq!((ran.files(), ran.rows.concat().as_str()), (files, found), "{filter}");
    }
}

#[tokio::test]
async fn files_are_skipped_once_a_join_knows_its_keys() {
    let lake = Lake::new();
    let files = ten_files(&lake);
    let with_deletes = files.iter().map(|path| (path.clone(), vec![1])).collect::<Vec<_>>();
    for files in [whole(files), with_deletes] {
        let context = lake.session(&orders(0..0).schema(), &files);
        for table in ["shop.orders", "shop.\"orders$rows\""] {
            let sql = format!(
                "select o.id from {table} o join (values (4100), (4200), (4300)) as wanted(id) on o.id = wanted.id order by 1"
            );
            let ran = run(&context, &sql).await;
            assert_eq!(ran.rows, ["4100", "4200", "4300"]);
            assert_eq!((ran.files(), ran.metric(FILES_SKIPPED)), (10, 9), "{table}");
        }
    }
}

#[tokio::test]
async fn row_groups_and_pages_are_skipped_by_bounds_and_bloom_filters() {
    let lake = Lake::new();
    let properties = || {
        WriterProperties::builder()
            .set_max_row_group_row_count(Some(2000))
            .set_data_page_row_count_limit(100)
            .set_write_batch_size(100)
            .set_bloom_filter_enabled(true)
    };
    let file = lake.write_with("1.parquet", &orders(0..10_000), properties());
    for deleted in [vec![], vec![7]] {
        let context = lake.session(&orders(0..0).schema(), &[(file.clone(), deleted)]);
        for table in ["shop.orders", "shop.\"orders$rows\""] {
            let ran = run(&context, &format!("select code from {table} where id = 4321")).await;
            assert_eq!(ran.rows, ["c17999"]);
            assert_eq!(ran.pruned("row_groups_pruned_statistics"), (4, 1), "{table}");
            let (rows_pruned, rows_read) = ran.pruned("page_index_rows_pruned");
            assert_eq!((rows_pruned, rows_read), (1900, 100), "{table}");

            let ran = run(&context, &format!("select id from {table} where code = 'c17999'")).await;
            assert_eq!(ran.rows, ["4321"]);
            assert_eq!(ran.pruned("row_groups_pruned_bloom_filter"), (4, 1), "{table}");
        }
    }
}

#[tokio::test]
async fn one_big_file_is_read_by_every_partition() {
    let lake = Lake::with(4, 256 * 1024 * 1024);
    for (row_group, has_pages) in [(20_000, true), (70_000, true), (200_000, true), (20_000, false)] {
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(row_group))
            .set_offset_index_disabled(!has_pages)
            .set_dictionary_enabled(false);
        let file = lake.write_with(&format!("{row_group} {has_pages}.parquet"), &orders(0..200_000), properties);
        for deleted in [vec![], vec![0, 199_999], (0..200_000).step_by(10).collect()] {
            let gone = deleted.len();
            let context = lake.session(&orders(0..0).schema(), &[(file.clone(), deleted)]);
            let ran = run(&context, "select id, code from shop.orders").await;
            assert_eq!((ran.partitions(), ran.rows.len()), (4, 200_000 - gone));
            let each: Vec<usize> = ran.scans()[0]
                .metrics()
                .unwrap()
                .iter()
                .filter(|metric| metric.value().name() == "output_rows")
                .map(|metric| metric.value().as_usize())
                .collect();
            // Where it is not known where pages are, row groups are read whole.
            let share = (200_000 - gone) / 4;
            let most = if has_pages { 5_000 } else { 15_000 };
            assert!(each.iter().all(|rows| rows.abs_diff(share) <= most), "{row_group}: {each:?}");
        }
    }
}

#[tokio::test]
async fn a_limit_plans_only_the_files_it_needs() {
    let lake = Lake::new();
    let context = lake.session(&orders(0..0).schema(), &whole(ten_files(&lake)));
    let ran = run(&context, "select id from shop.orders limit 1500").await;
    assert_eq!((ran.files(), ran.rows.len()), (2, 1500));
    let ran = run(&context, "select id from shop.orders where id >= 0 limit 1500").await;
    assert_eq!(ran.rows.len(), 1500);
    let sql = "select count(*) from (select id from shop.orders limit 1500)";
    assert_eq!(rows(&context, sql).await, ["1500"]);
    let sql = "select count(*) from (select id from shop.orders limit 100 offset 9950)";
    assert_eq!(rows(&context, sql).await, ["50"]);
}

#[tokio::test]
async fn a_table_without_files_is_empty() {
    let lake = Lake::new();
    let context = lake.session(&orders(0..0).schema(), &[]);
    assert_eq!(rows(&context, "select * from shop.orders").await, [] as [&str; 0]);
    assert_eq!(rows(&context, "select count(*), max(id) from shop.orders").await, ["0|-"]);
    assert_eq!(rows(&context, "select _file, id from shop.\"orders$rows\"").await, [] as [&str; 0]);
}

#[tokio::test]
async fn footers_are_read_once() {
    let lake = Lake::new();
    let context = lake.session(&orders(0..0).schema(), &whole(ten_files(&lake)));
    let first = run(&context, "select id from shop.orders").await.metric("bytes_scanned");
    let second = run(&context, "select id from shop.orders").await.metric("bytes_scanned");
    assert!(second < first, "{second} {first}");
}
