//! Which files are worth storing anew: small ones, and those that readers find many deleted rows in.
//!
//! Files are put together with others of their partition, and of their age where somebody reads the table by age: rows
//! that were read and rows that were not never share a file, so that nobody reads a row again because it was moved.
//!
//! **What is written grows with what came in, and not with what is there**: a file is stored anew only along with others
//! that are together as large. Each time a row is moved, the file it is in gets twice as large at least, so that it is moved
//! some few times on its way to a full one.

use std::collections::BTreeMap;
use std::collections::HashMap;

use iceberg::spec::Struct;

use super::error::Result;
use super::scan::ScanFile;
use super::{TableView, partition};

/// Small files that are put together, at least. With fewer, the commit would cost readers more than it gains them.
const FILES_MIN: usize = 5;

/// What opening a file costs, in bytes that could be read meanwhile. Files below it are all alike.
const OPENING_BYTES: u64 = 1 << 20;

/// A file with more deleted rows than one in this many is stored anew.
const DELETED_ONE_IN: u64 = 10;

/// Delete files that a reader of one data file has to open, before they are put together.
const DELETE_FILES_MAX: usize = 2;

/// A group is cut at so many times the target size: work that a conflict can undo has a bound.
const GROUP_TARGETS: u64 = 4;

/// What a compaction aims at.
#[derive(Debug, Clone)]
pub struct CompactionPolicy {
    /// The size of a full file.
    pub target_bytes: u64,
    /// How far the table's readers have read it, as sequence numbers. Files that came after the last of them wait for
    /// their readers. Empty where nobody reads by age.
    pub read_up_to: Vec<i64>,
}

/// What could be stored anew.
#[derive(Debug, Clone, Default)]
pub struct Compaction {
    /// Each is rewritten by itself.
    pub groups: Vec<FileGroup>,
    /// Files that stay, and whose delete files are put together.
    pub many_deletes: Vec<ScanFile>,
    /// Small files that wait for somebody to read them.
    pub files_waiting: usize,
}

/// Data files of one partition, in the order in which their rows came.
#[derive(Debug, Clone)]
pub struct FileGroup {
    /// `day=2026-03-01`; empty where the table has no partitions.
    pub partition: String,
    pub files: Vec<ScanFile>,
}

impl FileGroup {
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Rows of the files, deleted or not.
    pub fn rows(&self) -> u64 {
        self.files.iter().map(|file| file.record_count).sum()
    }

    pub fn delete_files(&self) -> usize {
        self.files.iter().map(|file| file.own_deletes().count()).sum()
    }
}

/// What decides about a file.
#[derive(Debug, Clone, Copy)]
struct Load {
    /// Of the rows that are left.
    bytes: u64,
    is_hollow: bool,
}

impl Load {
    fn of(file: &ScanFile) -> Load {
        let deleted: u64 = file.own_deletes().map(|delete| delete.rows).sum();
        // What a delete file about several data files says of this one is not known without reading it.
        let has_shared = file.deletes.len() > file.own_deletes().count();
        let live = file.record_count.saturating_sub(deleted);
        Load {
            bytes: (u128::from(file.size) * u128::from(live) / u128::from(file.record_count.max(1))) as u64,
            is_hollow: has_shared || deleted.saturating_mul(DELETED_ONE_IN) > file.record_count,
        }
    }
}

/// The files to store anew, by their numbers; none where it is not worth it.
fn chosen(files: &[Load], target_bytes: u64) -> Vec<usize> {
    let is_small = |file: &Load| file.bytes < target_bytes / 4 * 3;
    let mut small: Vec<usize> = (0..files.len()).filter(|index| is_small(&files[*index])).collect();
    small.sort_by_key(|index| files[*index].bytes);
    let (mut together, mut least) = (0u64, 0);
    for (place, index) in small.iter().enumerate() {
        let bytes = files[*index].bytes.max(OPENING_BYTES);
        if bytes <= together {
            least = place + 1;
        }
        together += bytes;
    }
    small.truncate(least);
    let fills_one = small.len() > 1 && small.iter().map(|index| files[*index].bytes).sum::<u64>() >= target_bytes;
    if small.len() < FILES_MIN && !fills_one {
        small.clear();
    }
    let mut chosen: Vec<usize> =
        (0..files.len()).filter(|index| files[*index].is_hollow || small.contains(index)).collect();
    chosen.sort_unstable();
    chosen
}

impl TableView {
    /// What of the table is worth storing anew.
    pub async fn compaction(&self, policy: &CompactionPolicy) -> Result<Compaction> {
        let mut ages: Vec<i64> = policy.read_up_to.clone();
        ages.sort_unstable();
        ages.dedup();
        let mut files = self.files(None).await?;
        files.sort_by_key(|file| file.sequence);
        let mut by_place: HashMap<(i32, Struct, usize), Vec<ScanFile>> = HashMap::new();
        for file in files {
            let age = ages.partition_point(|read| *read < file.sequence);
            by_place.entry((file.spec_id, file.data.partition().clone(), age)).or_default().push(file);
        }
        let mut compaction = Compaction::default();
        let mut named: BTreeMap<(String, i64), Vec<FileGroup>> = BTreeMap::new();
        for ((spec_id, values, age), files) in by_place {
            let loads: Vec<Load> = files.iter().map(Load::of).collect();
            if age == ages.len() && !ages.is_empty() {
                compaction.files_waiting +=
                    loads.iter().filter(|load| load.bytes < policy.target_bytes / 4 * 3).count();
                continue;
            }
            let chosen = chosen(&loads, policy.target_bytes);
            let kept = (0..files.len()).filter(|index| !chosen.contains(index)).map(|index| &files[index]);
            compaction.many_deletes.extend(kept.filter(|file| file.own_deletes().count() >= DELETE_FILES_MAX).cloned());
            let name = match self.metadata().partition_spec_by_id(spec_id) {
                Some(spec) => {
                    let fields = partition::described(spec, self.iceberg_schema(), &values).into_iter();
                    fields.map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("/")
                }
                None => String::new(),
            };
            let of_place: Vec<ScanFile> = chosen.into_iter().map(|index| files[index].clone()).collect();
            let groups = named.entry((name.clone(), age as i64)).or_default();
            groups.extend(
                cut(of_place, policy.target_bytes)
                    .into_iter()
                    .map(|files| FileGroup { partition: name.clone(), files }),
            );
        }
        compaction.groups = named.into_values().flatten().collect();
        compaction.many_deletes.sort_by(|left, right| left.path.cmp(&right.path));
        Ok(compaction)
    }

    /// Some of the snapshot's files as a table of their own, with the rows that are left in them.
    pub async fn of_files(&self, files: &[ScanFile]) -> Result<TableView> {
        let left_out = self.deleted_positions(files).await?;
        self.selecting(super::scan::Selection { files: files.to_vec(), left_out }, None)
    }
}

/// Cuts files into groups of a bounded size. A file that is left alone at the end goes with those before it.
fn cut(files: Vec<ScanFile>, target_bytes: u64) -> Vec<Vec<ScanFile>> {
    let most = target_bytes.saturating_mul(GROUP_TARGETS);
    let mut groups: Vec<Vec<ScanFile>> = Vec::new();
    let mut filled = u64::MAX;
    for file in files {
        let bytes = file.size;
        match groups.last_mut() {
            Some(group) if filled.saturating_add(bytes) <= most => {
                group.push(file);
                filled += bytes;
            }
            _ => {
                groups.push(vec![file]);
                filled = bytes;
            }
        }
    }
    if let [.., before, last] = groups.as_mut_slice()
        && last.len() == 1
        && !Load::of(&last[0]).is_hollow
    {
        before.append(last);
        groups.pop();
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn files_are_stored_anew_along_with_others_that_are_together_as_large() {
        let check = |mib: &[u64], expected: &[usize]| {
            let files: Vec<Load> = mib.iter().map(|mib| Load { bytes: mib * MIB, is_hollow: false }).collect();
            assert_eq!(chosen(&files, 128 * MIB), expected, "{mib:?}");
        };
        check(&[], &[]);
        check(&[1], &[]);
        check(&[1, 1, 1, 1], &[]);
        check(&[1, 1, 1, 1, 1], &[0, 1, 2, 3, 4]);
        // Files below what opening one costs are alike.
        check(&[0, 1, 0, 1, 1], &[0, 1, 2, 3, 4]);
        // One that is larger than the rest together waits until the rest has grown.
        check(&[90, 1, 1, 1, 1, 1], &[1, 2, 3, 4, 5]);
        check(&[5, 1, 1, 1, 1, 1], &[0, 1, 2, 3, 4, 5]);
        check(&[64, 32, 16, 8, 4, 2, 1, 1], &[0, 1, 2, 3, 4, 5, 6, 7]);
        check(&[65, 32, 16, 8, 4, 2, 1, 1], &[1, 2, 3, 4, 5, 6, 7]);
        // Full ones stay; two that fill one are worth it.
        check(&[128, 128, 200, 96, 96, 96], &[]);
        check(&[9, 9, 9, 9, 9], &[0, 1, 2, 3, 4]);
        check(&[8, 9, 9, 9, 9, 9], &[0, 1, 2, 3, 4, 5]);
        check(&[8, 9, 9, 9, 9, 60], &[0, 1, 2, 3, 4]);
        check(&[90, 90], &[0, 1]);
        check(&[60, 60], &[]);
    }

    #[test]
    fn a_file_with_many_deleted_rows_is_stored_anew_by_itself() {
        let full = Load { bytes: 128 * MIB, is_hollow: false };
        let hollow = Load { is_hollow: true, ..full };
        let small = Load { bytes: MIB, is_hollow: false };
        assert_eq!(chosen(&[full, hollow, full, small], 128 * MIB), [1]);
        assert_eq!(chosen(&[hollow, small, small, small, small, small], 128 * MIB), [0, 1, 2, 3, 4, 5]);
    }
}
