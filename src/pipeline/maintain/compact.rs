//! Storing rows anew: small files and those with many deleted rows, and delete files that can be one.

use std::sync::Arc;

use datafusion::common::Column;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, SortExpr};
use futures::TryStreamExt;
use serde::Serialize;

use super::readers::Readers;
use super::{Task, Upkeep};
use crate::engine::{self, IcebergTableProvider, RowReader, in_parallel, pieces};
use crate::error::{Error, Result};
use crate::silver;
use crate::table::{self, At, Change, Compaction, CompactionPolicy, FileGroup, Premise, Table, TableView, WrittenFile};

/// Files that nobody has read yet are put together all the same when they are that old, milliseconds: a reader that is
/// stuck must not hold up those of the files.
const UNREAD_MS: i64 = 3_600_000;

/// Times that a table is looked at anew because others changed the very files. They come first; what is left is for the
/// next run.
const PLANS_MAX: usize = 4;

/// Memory that storing one group takes: rows that are read, and a row group on its way to a file.
const GROUP_MEMORY_BYTES: usize = 384 << 20;

/// What compaction did to a table, or would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Compacted {
    /// Data files that were stored anew, and those that took their place.
    pub files_before: u64,
    pub files_after: u64,
    /// Delete files that went with them, or were put together.
    pub delete_files_before: u64,
    pub delete_files_after: u64,
    pub rows: u64,
    pub bytes_read: u64,
    pub bytes_written: u64,
    pub commits: u64,
    /// Times that others changed the files first, and the work was thrown away.
    pub conflicts: u64,
    /// Data files that are left for another run, because of conflicts or the budget.
    pub files_left: u64,
    /// Small files that wait until silver has read them.
    pub files_waiting: u64,
}

impl Compacted {
    fn would(&mut self, plan: &Compaction, target_bytes: u64) {
        for group in &plan.groups {
            self.files_before += group.files.len() as u64;
            self.files_after += group.bytes().div_ceil(target_bytes.max(1));
            self.delete_files_before += group.delete_files() as u64;
            self.rows += group.rows();
            self.bytes_read += group.bytes();
        }
        for file in &plan.many_deletes {
            self.delete_files_before += file.own_deletes().count() as u64;
            self.delete_files_after += 1;
        }
    }
}

/// Puts the files of a table together.
pub(super) async fn run(upkeep: &Upkeep<'_>, table: &mut Table) -> Result<Compacted> {
    let mut done = Compacted::default();
    let target_bytes = target_bytes(upkeep, table);
    // With the rows of several groups in one commit there are fewer snapshots; after a conflict, one that is disturbed
    // must not throw away the others.
    let mut commit_bytes = target_bytes.saturating_mul(8);
    for _ in 0..PLANS_MAX {
        table.refresh().await?;
        let view = table.view(At::Head)?;
        let readers = Readers::of(upkeep.lake, upkeep.models, table).await?;
        let policy = CompactionPolicy { target_bytes, read_up_to: read_up_to(&readers, table, upkeep.now_ms()) };
        let mut plan = view.compaction(&policy).await?;
        done.files_waiting = plan.files_waiting as u64;
        if upkeep.options.dry_run {
            done.would(&plan, target_bytes);
            return Ok(done);
        }
        plan.groups.reverse();
        let bytes_in_all: u64 = plan.groups.iter().map(FileGroup::bytes).sum();
        let mut is_disturbed = false;
        while let Some(first) = plan.groups.pop() {
            let mut batch = vec![first];
            let size = |batch: &[FileGroup]| batch.iter().map(FileGroup::bytes).sum::<u64>();
            while let Some(next) = plan.groups.pop_if(|next| size(&batch) + next.bytes() <= commit_bytes) {
                batch.push(next);
            }
            if !upkeep.budget.take(size(&batch)) {
                plan.groups.extend(batch);
                break;
            }
            upkeep.tell(table, Task::Compact, done.bytes_read, bytes_in_all);
            if !rewrite(upkeep, table, &view, &batch, target_bytes, &mut done).await? {
                is_disturbed = true;
                break;
            }
        }
        done.files_left = plan.groups.iter().map(|group| group.files.len() as u64).sum();
        if !is_disturbed && !upkeep.budget.is_spent() && !plan.many_deletes.is_empty() {
            is_disturbed = !put_deletes_together(table, &view, &plan, &mut done).await?;
        }
        if !is_disturbed || upkeep.budget.is_spent() {
            return Ok(done);
        }
        commit_bytes = 0;
    }
    tracing::info!(table = %table.name(), conflicts = done.conflicts, "yielded to other writers");
    Ok(done)
}

fn target_bytes(upkeep: &Upkeep<'_>, table: &Table) -> u64 {
    let property = table.properties().get("write.target-file-size-bytes").and_then(|text| text.parse().ok());
    property.filter(|bytes| *bytes > 0).unwrap_or(upkeep.options.aims.target_bytes)
}

/// Rows of different ages never share a file. Where silver is stuck, what has come since has an age of its own.
fn read_up_to(readers: &Readers, table: &Table, now_ms: i64) -> Vec<i64> {
    let mut ages = readers.read_up_to.clone();
    if let Some(last) = ages.iter().max().copied() {
        let snapshots = table.snapshots();
        let settled = snapshots.iter().filter(|snapshot| snapshot.committed_ms < now_ms - UNREAD_MS);
        ages.extend(settled.map(|snapshot| snapshot.sequence).max().filter(|sequence| *sequence > last));
    }
    ages
}

/// Stores the groups anew in one commit; false when somebody else changed the files meanwhile.
async fn rewrite(
    upkeep: &Upkeep<'_>,
    table: &Table,
    view: &TableView,
    batch: &[FileGroup],
    target_bytes: u64,
    done: &mut Compacted,
) -> Result<bool> {
    let sorted_by = silver::sort_columns(table)?;
    let written = store_anew(upkeep, table, view, batch, &sorted_by, target_bytes).await?;
    fail::fail_point!("maintain-after-files");
    let removed: Vec<_> = batch.iter().flat_map(|group| group.files.iter().cloned()).collect();
    let change = table.change().rewrite(view, removed.clone(), written.clone());
    let change = change.premise(Premise::new().schema_is(table.schema_id()));
    if !commit(table, change, &written, done).await? {
        return Ok(false);
    }
    done.files_before += removed.len() as u64;
    done.files_after += written.len() as u64;
    done.delete_files_before += batch.iter().map(|group| group.delete_files() as u64).sum::<u64>();
    done.rows += written.iter().map(WrittenFile::rows).sum::<u64>();
    done.bytes_read += batch.iter().map(FileGroup::bytes).sum::<u64>();
    done.bytes_written += written.iter().map(WrittenFile::bytes).sum::<u64>();
    Ok(true)
}

/// One delete file in the place of several, for data files that are otherwise fine.
async fn put_deletes_together(
    table: &Table,
    view: &TableView,
    plan: &Compaction,
    done: &mut Compacted,
) -> Result<bool> {
    let positions = view.deleted_positions(&plan.many_deletes).await?;
    let rows: Vec<_> = plan
        .many_deletes
        .iter()
        .filter_map(|file| Some((file.clone(), positions.get(&file.path)?.as_ref().clone())))
        .collect();
    let deletes = table.write_deletes_anew(&rows).await?;
    let written = deletes.files().to_vec();
    if !commit(table, table.change().rewrite_deletes(view, deletes), &written, done).await? {
        return Ok(false);
    }
    done.delete_files_before += rows.iter().map(|(file, _)| file.own_deletes().count() as u64).sum::<u64>();
    done.delete_files_after += written.len() as u64;
    Ok(true)
}

/// Commits, or makes way for whoever was there first.
async fn commit(table: &Table, change: Change, written: &[WrittenFile], done: &mut Compacted) -> Result<bool> {
    match change.commit().await {
        Ok(committed) => {
            done.commits += 1;
            tracing::info!(table = %table.name(), snapshot_id = committed.snapshot_id, files = written.len(), "compacted");
            Ok(true)
        }
        Err(error) if error.is_premise_broken() || matches!(error, table::Error::Contention { .. }) => {
            tracing::debug!(table = %table.name(), %error, "the files changed under a compaction");
            table.discard(written).await;
            done.conflicts += 1;
            Ok(false)
        }
        Err(error) => {
            if !matches!(error, table::Error::Unresolved { .. }) {
                table.discard(written).await;
            }
            Err(error.into())
        }
    }
}

/// Writes the live rows of the groups into new files. What was written is gone when one of them fails.
async fn store_anew(
    upkeep: &Upkeep<'_>,
    table: &Table,
    view: &TableView,
    batch: &[FileGroup],
    sorted_by: &[String],
    target_bytes: u64,
) -> Result<Vec<WrittenFile>> {
    let engine = upkeep.engine;
    // A sort uses every core by itself.
    let at_once = match sorted_by {
        [] => (engine.memory() / 2 / GROUP_MEMORY_BYTES).clamp(1, engine.threads()),
        _ => 1,
    };
    let work = |group: FileGroup| {
        let (engine, table, view, sorted_by) = (engine.clone(), table.clone(), view.clone(), sorted_by.to_vec());
        async move {
            // A failure must not end the others before they have said what they wrote.
            Ok(match sorted_by.as_slice() {
                [] => in_order_of_age(&engine, &table, &view, &group, target_bytes).await,
                columns => sorted(&engine, &table, &view, &group, columns, target_bytes).await,
            })
        }
    };
    let (mut written, mut failure) = (Vec::new(), None);
    in_parallel(at_once, batch.iter().cloned(), work, |outcome: Result<Vec<WrittenFile>>| match outcome {
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

/// One row after the other, as they came.
async fn in_order_of_age(
    engine: &engine::Engine,
    table: &Table,
    view: &TableView,
    group: &FileGroup,
    target_bytes: u64,
) -> Result<Vec<WrittenFile>> {
    let deleted = view.deleted_positions(&group.files).await?;
    let reader = RowReader::new(&engine.session(), view, view.arrow_schema().fields().to_vec());
    let mut writer = table.writer(None)?.target_bytes(target_bytes)?;
    let mut pieces = pieces(&group.files);
    pieces.sort_by_key(|piece| (piece.file, piece.start()));
    for piece in pieces {
        let file = &group.files[piece.file];
        let outcome = async {
            let mut rows = reader.read(file, &piece, deleted.get(&file.path).cloned(), None).await?;
            while let Some(batch) = rows.try_next().await? {
                writer.write(&batch).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = outcome.await {
            writer.discard().await;
            return Err(error);
        }
    }
    Ok(writer.finish().await?)
}

/// Sorted by the columns that rows are found by, so that a reader who looks for a few keys opens few files and few of
/// their pages.
async fn sorted(
    engine: &engine::Engine,
    table: &Table,
    view: &TableView,
    group: &FileGroup,
    columns: &[String],
    target_bytes: u64,
) -> Result<Vec<WrittenFile>> {
    let failed = |error: DataFusionError| Error::from(engine::Error::from(error));
    let provider = Arc::new(IcebergTableProvider::new(view.of_files(&group.files).await?));
    let by = columns.iter().map(|name| SortExpr::new(Expr::Column(Column::new_unqualified(name)), true, true));
    let frame = engine.session().read_table(provider).and_then(|rows| rows.sort(by.collect())).map_err(failed)?;
    let mut rows = frame.execute_stream().await.map_err(failed)?;
    let mut writer = table.writer(None)?.target_bytes(target_bytes)?;
    loop {
        let outcome = match rows.try_next().await {
            Ok(None) => return Ok(writer.finish().await?),
            Ok(Some(batch)) => writer.write(&batch).await.map_err(Error::from),
            Err(error) => Err(failed(error)),
        };
        if let Err(error) = outcome {
            writer.discard().await;
            return Err(error);
        }
    }
}
