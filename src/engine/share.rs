//! The part of a file that a range of its bytes stands for.
//!
//! DataFusion cuts files anywhere, and its reader takes a row group from whoever has its first byte: of eleven row groups
//! two cores get six and five. Here a row group that a cut goes through is shared at the row that lies as far in it as the
//! cut.

use std::ops::Range;

use parquet::file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData};

/// A cut nearer to an edge of a row group than this part of its rows, or than so many, is one at the edge: a page that is
/// cut is read twice.
const EDGE_ONE_IN: u64 = 16;
const EDGE_ROWS_MAX: u64 = 8192;

/// Row groups that are read one after the other.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) row_groups: Range<usize>,
    /// Of a row group that is shared, the positions in the file that are read.
    pub(super) rows: Option<Range<u64>>,
}

/// What of a file of so many bytes a range stands for. Ranges that hold each byte once hold each row once.
///
/// Where the footer does not say where pages are, whoever reads some rows of a row group reads all its bytes: then it is
/// not shared, and who has its first byte has it all.
pub(super) fn shares(footer: &ParquetMetaData, file_size: u64, range: &Range<u64>) -> Vec<Share> {
    let parts = if footer.offset_index().is_some() { Parts::Rows } else { Parts::RowGroups };
    shares_of(footer.row_groups(), parts, file_size, range)
}

/// What can be read by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parts {
    Rows,
    RowGroups,
}

fn shares_of(row_groups: &[RowGroupMetaData], parts: Parts, file_size: u64, range: &Range<u64>) -> Vec<Share> {
    if range.is_empty() {
        return Vec::new();
    }
    // Whatever is said of where row groups lie, the last range has what the others have not.
    let end = if range.end >= file_size { u64::MAX } else { range.end };
    let mut shares: Vec<Share> = Vec::new();
    let mut first = 0;
    for (index, row_group) in row_groups.iter().enumerate() {
        let count = row_group.num_rows().max(0) as u64;
        let rows = rows_before(row_group, parts, range.start)..rows_before(row_group, parts, end);
        let is_whole = rows == (0..count);
        match shares.last_mut() {
            _ if rows.is_empty() => {}
            Some(last) if is_whole && last.rows.is_none() && last.row_groups.end == index => last.row_groups.end += 1,
            _ => shares.push(Share {
                row_groups: index..index + 1,
                rows: (!is_whole).then_some(first + rows.start..first + rows.end),
            }),
        }
        first += count;
    }
    shares
}

/// How many rows of a row group lie before a cut.
fn rows_before(row_group: &RowGroupMetaData, parts: Parts, cut: u64) -> u64 {
    let count = row_group.num_rows().max(0) as u64;
    let first_page =
        |column: &ColumnChunkMetaData| column.dictionary_page_offset().unwrap_or(column.data_page_offset());
    let start = row_group.columns().first().map_or(0, |column| first_page(column).max(0) as u64);
    let bytes = row_group.compressed_size().max(0) as u64;
    if cut <= start {
        return 0;
    }
    if cut - start >= bytes || parts == Parts::RowGroups {
        return count;
    }
    let row = (u128::from(count) * u128::from(cut - start) / u128::from(bytes)) as u64;
    let edge = (count / EDGE_ONE_IN).min(EDGE_ROWS_MAX);
    if row < edge {
        0
    } else if count - row < edge {
        count
    } else {
        row
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::basic::{Repetition, Type};
    use parquet::schema::types::{SchemaDescriptor, Type as SchemaType};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Row groups by where they start, their bytes and their rows.
    fn row_groups(of: &[(u64, u64, u64)]) -> Vec<RowGroupMetaData> {
        let leaf = SchemaType::primitive_type_builder("id", Type::INT64).with_repetition(Repetition::REQUIRED);
        let root = SchemaType::group_type_builder("schema").with_fields(vec![Arc::new(leaf.build().unwrap())]);
        let schema = Arc::new(SchemaDescriptor::new(Arc::new(root.build().unwrap())));
        let row_group = |(start, bytes, rows): &(u64, u64, u64)| {
            let column = ColumnChunkMetaData::builder(schema.column(0))
                .set_data_page_offset(*start as i64)
                .set_total_compressed_size(*bytes as i64)
                .build()
                .unwrap();
            let builder = RowGroupMetaData::builder(schema.clone()).set_num_rows(*rows as i64);
            builder.set_column_metadata(vec![column]).build().unwrap()
        };
        of.iter().map(row_group).collect()
    }

    #[test]
    fn a_row_group_is_shared_where_the_cut_goes_through_it() {
        let row_groups = row_groups(&[(4, 100, 1000), (104, 200, 1000), (304, 100, 10), (404, 96, 0)]);
        let check_parts = |parts: Parts, range: Range<u64>, expected: &str| {
            let shares = shares_of(&row_groups, parts, 520, &range);
            let shown = shares.iter().map(|share| match &share.rows {
                Some(rows) => format!("{:?} of {:?}", rows, share.row_groups),
                None => format!("{:?}", share.row_groups),
            });
            assert_eq!(shown.collect::<Vec<_>>().join(" "), expected, "{range:?}");
        };
        let check = |range: Range<u64>, expected: &str| check_parts(Parts::Rows, range, expected);
        check(0..520, "0..3");
        check(0..304, "0..2");
        check(104..304, "1..2");
        check(104..204, "1000..1500 of 1..2");
        check(0..204, "0..1 1000..1500 of 1..2");
        check(204..520, "1500..2000 of 1..2 2..3");
        check(54..254, "500..1000 of 0..1 1000..1750 of 1..2");
        check(154..254, "1250..1750 of 1..2");
        check(154..255, "1250..1755 of 1..2");
        // Near an edge.
        check(0..10, "");
        check(10..300, "0..2");
        // Past everything, and less than a row.
        check(410..520, "");
        check(404..404, "");
        check(350..351, "");
        // Where there are no pages to read by themselves.
        check_parts(Parts::RowGroups, 0..204, "0..2");
        check_parts(Parts::RowGroups, 104..204, "1..2");
        check_parts(Parts::RowGroups, 105..304, "");
        check_parts(Parts::RowGroups, 204..520, "2..3");
    }

    #[test]
    fn many_cuts_in_a_row_group_are_even() {
        let row_groups = row_groups(&[(4, 640_000, 640_000)]);
        for parts in 1..=64 {
            let cut = |part: u64| 640_014 * part / parts;
            let rows = |part| shares_of(&row_groups, Parts::Rows, 640_014, &(cut(part)..cut(part + 1)));
            let rows: Vec<u64> = (0..parts)
                .flat_map(rows)
                .map(|share| share.rows.map_or(640_000, |rows| rows.end - rows.start))
                .collect();
            assert!(rows.iter().all(|rows| rows.abs_diff(640_000 / parts) < 20), "{parts}: {rows:?}");
            assert_eq!(rows.len() as u64, parts);
        }
    }

    #[test]
    fn ranges_that_hold_each_byte_once_hold_each_row_once() {
        for seed in 0..2000 {
            let mut random = StdRng::seed_from_u64(seed);
            let (mut of, mut end) = (Vec::new(), 4);
            for _ in 0..random.random_range(0..6) {
                let (bytes, rows) = (random.random_range(0..300), random.random_range(0..500));
                of.push((end, bytes, rows));
                end += bytes + random.random_range(0..20);
            }
            // Footers that are wrong about where row groups lie, or have them in another order.
            if random.random_bool(0.1) {
                of.iter_mut().for_each(|(start, bytes, _)| (*start, *bytes) = (*start * 2, *bytes * 3));
            }
            if random.random_bool(0.1) {
                of.reverse();
            }
            let row_groups = row_groups(&of);
            let size = end + random.random_range(0..100);
            let mut cuts: Vec<u64> = (0..random.random_range(0..6)).map(|_| random.random_range(0..=size)).collect();
            cuts.extend([0, size]);
            cuts.sort_unstable();
            let parts = if random.random_bool(0.8) { Parts::Rows } else { Parts::RowGroups };
            let mut read = Vec::new();
            let firsts: Vec<u64> = of
                .iter()
                .scan(0, |next, (_, _, rows)| {
                    *next += rows;
                    Some(*next - rows)
                })
                .collect();
            for cut in cuts.windows(2) {
                for share in shares_of(&row_groups, parts, size, &(cut[0]..cut[1])) {
                    match share.rows {
                        Some(rows) => {
                            let index = share.row_groups.start;
                            assert_eq!(share.row_groups, index..index + 1, "seed {seed}");
                            assert!(rows.start >= firsts[index] && rows.end <= firsts[index] + of[index].2);
                            read.extend(rows);
                        }
                        None => {
                            share.row_groups.for_each(|index| read.extend(firsts[index]..firsts[index] + of[index].2))
                        }
                    }
                }
            }
            read.sort_unstable();
            let rows: u64 = of.iter().map(|(_, _, rows)| rows).sum();
            assert_eq!(read, (0..rows).collect::<Vec<_>>(), "seed {seed}");
        }
    }
}
