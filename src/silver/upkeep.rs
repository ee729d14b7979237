//! What a run does for those who read the table: rows that are gone are named in delete files, until so many are, or
//! have been for so long, that storing the rest of the file anew is better; and small files are put together before
//! there are many.
//!
//! Table properties decide otherwise: `write.merge.mode` (`merge-on-read` never stores rows anew, `copy-on-write` always
//! does), `icestream.merge.deleted-percent-max`, `icestream.merge.delete-files-max` and `icestream.merge.small-files-max`.

use std::cmp::Reverse;
use std::sync::Arc;

use futures::TryStreamExt;
use roaring::RoaringTreemap;

use crate::engine::{self, Piece, RowReader, in_parallel, pieces};
use crate::table::{ScanFile, Table, TableView, WrittenDeletes, WrittenFile};

/// A file is stored anew when more of its rows than this are deleted, in percent. With as many, reading it takes 1.3 times as
/// long as without.
const DELETED_PERCENT_MAX: u64 = 10;

/// With half as many it is, once its readers have paid for it. Stepping over a deleted row costs them what reading three
/// does, and storing a file anew what reading it four times does: with a reader for each commit, and rows that went at an
/// even pace, that is when the deleted rows, times the commits since the file was added, are this many times its rows. A
/// file of more than 60 commits is stored anew with half as many whatever its pace was.
const PAID_TIMES_ROWS: u64 = 3;

/// Of the table's bytes, a run stores one in this many anew for what readers have paid, or one file: keys that change evenly
/// make all files due at once. Where a run changes more than one row in five hundred, most files come to the limit itself
/// first, and are stored in one run.
const WEARY_ONE_IN: u64 = 16;

/// Delete files of one data file, before they are put together.
const DELETE_FILES_MAX: u64 = 8;

/// Positions that are cheaper to write again than to open a file for.
const FEW_POSITIONS: u64 = 20_000;

/// A data file below this size is small.
const SMALL_BYTES: u64 = 16 << 20;

/// Small files, before they are put together.
const SMALL_FILES_MAX: u64 = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    MergeOnRead,
    CopyOnWrite,
    Cheaper,
}

/// How rows that are gone leave the table.
#[derive(Default)]
pub(super) struct Removal {
    pub(super) deletes: WrittenDeletes,
    /// Data files that go.
    pub(super) remove: Vec<ScanFile>,
    /// What takes their place.
    pub(super) add: Vec<WrittenFile>,
}

#[derive(Debug, Default)]
struct Plan {
    /// Named in one more delete file.
    named: Vec<usize>,
    /// Named in a delete file that takes the place of those before.
    named_anew: Vec<usize>,
    stored_anew: Vec<usize>,
}

/// What decides about a file.
#[derive(Debug, Clone, Copy)]
struct Load {
    rows: u64,
    bytes: u64,
    /// Rows deleted before, and the delete files that say so.
    deleted: u64,
    delete_files: u64,
    doomed: u64,
    /// Commits since it was written.
    age: u64,
}

impl Load {
    fn gone(&self) -> u64 {
        self.deleted + self.doomed
    }

    /// What readers of the deleted rows have paid, with one of them for each commit.
    fn paid(&self) -> u64 {
        self.gone().saturating_mul(self.age)
    }

    fn is_hollow(&self, limits: &Limits) -> bool {
        self.gone().saturating_mul(100) > self.rows.saturating_mul(limits.deleted_percent)
    }

    fn is_weary(&self, limits: &Limits) -> bool {
        self.doomed > 0
            && !self.is_hollow(limits)
            && self.gone().saturating_mul(200) > self.rows.saturating_mul(limits.deleted_percent)
            && self.paid() > self.rows.saturating_mul(PAID_TIMES_ROWS)
    }
}

struct Limits {
    mode: Mode,
    deleted_percent: u64,
    delete_files: u64,
    small_files: u64,
}

impl Limits {
    fn of(table: &Table) -> Self {
        let properties = table.properties();
        let number = |key: &str| properties.get(key).and_then(|text| text.parse().ok());
        let count = |key: &str, default: u64| number(key).filter(|count| *count > 0).unwrap_or(default);
        Limits {
            mode: match properties.get("write.merge.mode").map(String::as_str) {
                Some("merge-on-read") => Mode::MergeOnRead,
                Some("copy-on-write") => Mode::CopyOnWrite,
                _ => Mode::Cheaper,
            },
            // None at all is a limit as well.
            deleted_percent: number("icestream.merge.deleted-percent-max").unwrap_or(DELETED_PERCENT_MAX),
            delete_files: count("icestream.merge.delete-files-max", DELETE_FILES_MAX),
            small_files: count("icestream.merge.small-files-max", SMALL_FILES_MAX),
        }
    }
}

fn plan(files: &[Load], limits: &Limits) -> Plan {
    let mut plan = Plan::default();
    let weary = weary(files, limits);
    for (index, file) in files.iter().enumerate().filter(|(_, file)| file.doomed > 0) {
        let gone = file.gone();
        let stores_anew = match limits.mode {
            Mode::MergeOnRead => false,
            Mode::CopyOnWrite => true,
            Mode::Cheaper => file.is_hollow(limits) || weary.contains(&index),
        };
        if stores_anew || gone >= file.rows {
            plan.stored_anew.push(index);
        } else if file.delete_files >= limits.delete_files
            || (file.delete_files > 0 && file.deleted <= file.doomed * 4 + FEW_POSITIONS)
        {
            plan.named_anew.push(index);
        } else {
            plan.named.push(index);
        }
    }
    let is_small = |index: &usize| files[*index].bytes < SMALL_BYTES && !plan.stored_anew.contains(index);
    let small: Vec<usize> = (0..files.len()).filter(is_small).collect();
    if limits.mode != Mode::MergeOnRead && small.len() as u64 >= limits.small_files {
        plan.named.retain(|index| !small.contains(index));
        plan.named_anew.retain(|index| !small.contains(index));
        plan.stored_anew.extend(small);
    }
    plan
}

/// The files that a run stores anew for what their readers have paid, those first that cost them most for each row.
fn weary(files: &[Load], limits: &Limits) -> Vec<usize> {
    let mut weary: Vec<usize> = (0..files.len()).filter(|index| files[*index].is_weary(limits)).collect();
    weary.sort_by_key(|index| {
        let file = &files[*index];
        Reverse(u128::from(file.paid()) * 1000 / u128::from(file.rows.max(1)))
    });
    let share = files.iter().map(|file| file.bytes).sum::<u64>() / WEARY_ONE_IN;
    let mut bytes = 0;
    let mut fits = |index: &usize| {
        bytes += files[*index].bytes;
        bytes <= share
    };
    let count = weary.iter().take_while(|index| fits(index)).count().max(1);
    weary.truncate(count);
    weary
}

/// Writes what takes the doomed rows out of the table. What was written is added to `written` before anything can fail.
pub(super) async fn remove(
    reader: impl Fn(&TableView) -> RowReader,
    threads: usize,
    table: &Table,
    view: &TableView,
    mut doomed: Vec<(ScanFile, RoaringTreemap)>,
    written: &mut Vec<WrittenFile>,
) -> Result<Removal, engine::Error> {
    let mut removal = Removal::default();
    // Files without a doomed row count among the small ones.
    for file in view.files(None).await? {
        if !doomed.iter().any(|(known, _)| known.path == file.path) {
            doomed.push((file, RoaringTreemap::new()));
        }
    }
    let load = |(file, positions): &(ScanFile, RoaringTreemap)| Load {
        rows: file.record_count,
        bytes: file.size,
        deleted: file.own_deletes().map(|delete| delete.rows).sum(),
        delete_files: file.own_deletes().count() as u64,
        doomed: positions.len(),
        age: view.commits_since(file),
    };
    let plan = plan(&doomed.iter().map(load).collect::<Vec<_>>(), &Limits::of(table));
    let named: Vec<_> = plan.named.iter().map(|index| doomed[*index].clone()).collect();
    removal.deletes = table.write_deletes(&named).await?;
    written.extend(removal.deletes.files().iter().cloned());

    let known: Vec<ScanFile> =
        plan.named_anew.iter().chain(&plan.stored_anew).map(|index| doomed[*index].0.clone()).collect();
    let known: Vec<ScanFile> = known.into_iter().filter(|file| !file.deletes.is_empty()).collect();
    let deleted = view.deleted_positions(&known).await?;
    for index in plan.named_anew.iter().chain(&plan.stored_anew) {
        let (file, positions) = &mut doomed[*index];
        if let Some(before) = deleted.get(&file.path) {
            *positions |= before.as_ref();
        }
    }
    let named_anew: Vec<_> = plan.named_anew.iter().map(|index| doomed[*index].clone()).collect();
    let deletes = table.write_deletes_anew(&named_anew).await?;
    written.extend(deletes.files().iter().cloned());
    removal.deletes = removal.deletes.and(deletes);

    removal.remove = plan.stored_anew.iter().map(|index| doomed[*index].0.clone()).collect();
    let live: Vec<(ScanFile, Arc<RoaringTreemap>)> = plan
        .stored_anew
        .into_iter()
        .map(|index| std::mem::take(&mut doomed[index].1))
        .zip(&removal.remove)
        .filter(|(gone, file)| gone.len() < file.record_count)
        .map(|(gone, file)| (file.clone(), Arc::new(gone)))
        .collect();
    if !live.is_empty() {
        removal.add = store_anew(Arc::new(reader(view)), threads, table, live).await?;
        written.extend(removal.add.iter().cloned());
    }
    Ok(removal)
}

/// Writes the live rows of files into new ones: the parts of large files on every core, small files one after the other.
async fn store_anew(
    reader: Arc<RowReader>,
    threads: usize,
    table: &Table,
    files: Vec<(ScanFile, Arc<RoaringTreemap>)>,
) -> Result<Vec<WrittenFile>, engine::Error> {
    let all: Vec<ScanFile> = files.iter().map(|(file, _)| file.clone()).collect();
    let bytes: u64 = all.iter().map(|file| file.size).sum();
    let lanes = (bytes / SMALL_BYTES).clamp(1, threads as u64);
    let mut shares: Vec<(u64, Vec<Piece>)> = (0..lanes).map(|_| (0, Vec::new())).collect();
    for piece in pieces(&all) {
        if let Some(least) = shares.iter_mut().min_by_key(|(bytes, _)| *bytes) {
            least.0 += piece.bytes;
            least.1.push(piece);
        }
    }
    let files = Arc::new(files);
    let work = |(_, mut share): (u64, Vec<Piece>)| {
        let (reader, table, files) = (reader.clone(), table.clone(), files.clone());
        // In the order of the rows, so that what was sorted stays so.
        share.sort_by_key(|piece| piece.file);
        async move { Ok(write_live(&reader, &table, &files, share).await) }
    };
    let (mut written, mut failure) = (Vec::new(), None);
    in_parallel(threads, shares, work, |outcome: Result<Vec<WrittenFile>, engine::Error>| match outcome {
        Ok(files) => written.extend(files),
        Err(error) => drop(failure.get_or_insert(error)),
    })
    .await?;
    match failure {
        None => Ok(written),
        Some(error) => {
            table.discard(&written).await;
            Err(error)
        }
    }
}

async fn write_live(
    reader: &RowReader,
    table: &Table,
    files: &[(ScanFile, Arc<RoaringTreemap>)],
    share: Vec<Piece>,
) -> Result<Vec<WrittenFile>, engine::Error> {
    let mut writer = table.writer(None)?;
    for piece in share {
        let (file, gone) = &files[piece.file];
        let outcome = async {
            let mut rows = reader.read(file, &piece, Some(gone.clone()), None).await?;
            while let Some(batch) = rows.try_next().await? {
                writer.write(&batch).await?;
            }
            Ok(())
        };
        if let Err(error) = outcome.await {
            writer.discard().await;
            return Err(error);
        }
    }
    Ok(writer.finish().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_gets_what_is_cheapest_for_its_readers() {
        let large = Load { rows: 1_000_000, bytes: 100 << 20, deleted: 0, delete_files: 0, doomed: 0, age: 1 };
        let check_within = |deleted_percent: u64, mode: Mode, files: &[Load], expected: &str| {
            let plan = plan(files, &Limits { mode, deleted_percent, delete_files: 8, small_files: 4 });
            let found = format!("{:?} {:?} {:?}", plan.named, plan.named_anew, plan.stored_anew);
            assert_eq!(found, expected, "{deleted_percent} {mode:?} {files:?}");
        };
        let check = |mode: Mode, files: &[Load], expected: &str| check_within(10, mode, files, expected);
        let first = Load { doomed: 100, ..large };
        let untouched = Load { deleted: 500_000, delete_files: 9, ..large };
        check(Mode::Cheaper, &[first, untouched], "[0] [] []");
        check(Mode::CopyOnWrite, &[first, untouched], "[] [] [0]");
        // The positions before are few beside the new ones, or many, or in too many files.
        let second = Load { deleted: 50_000, delete_files: 1, doomed: 100, ..large };
        check(Mode::Cheaper, &[Load { deleted: 20_000, ..second }, second], "[1] [0] []");
        check(Mode::Cheaper, &[Load { delete_files: 7, ..second }, Load { delete_files: 8, ..second }], "[0] [1] []");
        // Every tenth row is gone.
        let hollow = Load { deleted: 99_900, delete_files: 8, doomed: 100, ..large };
        check(Mode::Cheaper, &[hollow, Load { doomed: 101, ..hollow }], "[] [0] [1]");
        check(Mode::MergeOnRead, &[Load { doomed: 101, ..hollow }], "[] [0] []");
        check_within(11, Mode::Cheaper, &[Load { doomed: 101, ..hollow }], "[] [0] []");
        check_within(0, Mode::Cheaper, &[first, untouched], "[] [] [0]");
        // More than half of that is gone, and has been for long enough.
        let old = Load { deleted: 59_900, delete_files: 8, doomed: 100, age: 50, ..large };
        let weary = Load { age: 51, ..old };
        check(Mode::Cheaper, &[old], "[] [0] []");
        check(Mode::Cheaper, &[weary], "[] [] [0]");
        check(Mode::Cheaper, &[Load { deleted: 49_900, age: 1000, ..old }], "[] [0] []");
        check_within(11, Mode::Cheaper, &[Load { deleted: 54_900, age: 1000, ..old }], "[] [0] []");
        check_within(11, Mode::Cheaper, &[Load { deleted: 54_901, age: 1000, ..old }], "[] [] [0]");
        check(Mode::MergeOnRead, &[weary], "[] [0] []");
        // One of them, the one that costs most for its rows, beside those that go anyway; of many, the sixteenth part.
        let wearier = Load { age: 52, ..weary };
        let larger = Load { rows: 10_000_000, deleted: 599_900, ..weary };
        check(Mode::Cheaper, &[larger, wearier], "[] [0] [1]");
        check(Mode::Cheaper, &[weary, Load { deleted: 100_000, ..weary }], "[] [] [0, 1]");
        check(Mode::Cheaper, &[weary, Load { doomed: 0, age: 99, ..wearier }, wearier, weary], "[] [0, 3] [2]");
        check(Mode::Cheaper, &[&[weary; 3][..], &[Load { doomed: 0, ..large }; 29]].concat(), "[] [2] [0, 1]");
        // A file of which nothing is left goes whatever the mode is.
        check(Mode::MergeOnRead, &[Load { doomed: 900_100, ..hollow }], "[] [] [0]");
        let small = Load { rows: 1000, bytes: 1 << 20, ..large };
        let touched = Load { doomed: 1, ..small };
        check(Mode::Cheaper, &[small, touched, small], "[1] [] []");
        check(Mode::Cheaper, &[small, first, touched, small, small], "[1] [] [0, 2, 3, 4]");
        check(Mode::MergeOnRead, &[small, first, touched, small, small], "[1, 2] [] []");
    }
}
