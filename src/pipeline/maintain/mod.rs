//! Upkeep of tables while others write to them: files are put together, old snapshots and leftovers go.
//!
//! - **Nothing it does changes a row**, and no reader has to read one again: rewrites keep the age of rows
//!   (`table::compact`), and snapshots that silver or gold go on from stay (`readers`).
//! - **Writers come first.** When the files of a rewrite change under it, its work is thrown away and planned again, some
//!   few times; merges plan again by themselves.
//! - **A file goes when nobody can need it**: what only expired snapshots named, and what no snapshot names when it is
//!   older than a commit can take.
//!
//! Any number of runs may go on at once, and end anywhere: a rewrite is one commit, and what is left of one that was
//! killed are orphans.

mod compact;
mod readers;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

pub use compact::Compacted;

use super::Models;
use crate::config::MaintainConfig;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::ids::TableName;
use crate::table::{self, Expiry, Lake, Orphan, Table};
use readers::Readers;

/// One kind of upkeep, in the order in which they are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Small data files and delete files are put together.
    Compact,
    /// Small manifests are put together.
    Manifests,
    /// Old snapshots are forgotten, with the files that only they need.
    Expire,
    /// Files that no snapshot names are found.
    Orphans,
}

impl Task {
    pub const ALL: [Task; 4] = [Task::Compact, Task::Manifests, Task::Expire, Task::Orphans];

    pub fn name(self) -> &'static str {
        match self {
            Task::Compact => "compact",
            Task::Manifests => "manifests",
            Task::Expire => "expire",
            Task::Orphans => "orphans",
        }
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Task {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Task::ALL.into_iter().find(|task| task.name() == text);
        let known: Vec<&str> = Task::ALL.iter().map(|task| task.name()).collect();
        found.ok_or_else(|| format!("there are {}", known.join(", ")))
    }
}

/// What a run does.
#[derive(Debug, Clone)]
pub struct MaintainOptions {
    pub tasks: BTreeSet<Task>,
    /// Leave tables alone that others keep in the project's namespaces.
    pub only_own: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Delete orphans, and not only list them.
    pub remove_orphans: bool,
    pub aims: MaintainConfig,
    /// No work is begun after this long.
    pub time_budget: Option<Duration>,
    /// So many bytes are stored anew, at most.
    pub bytes_budget: Option<u64>,
}

impl MaintainOptions {
    /// Everything, with no limit. Orphans are listed.
    pub fn new(aims: MaintainConfig) -> Self {
        MaintainOptions {
            tasks: Task::ALL.into(),
            only_own: false,
            dry_run: false,
            remove_orphans: false,
            aims,
            time_budget: None,
            bytes_budget: None,
        }
    }
}

/// What became of a table.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TableReport {
    pub table: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compacted: Option<Compacted>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub manifests: Option<Manifests>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expired: Option<ExpiredSnapshots>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orphans: Option<Orphans>,
    /// Whether it was left alone because icestream did not make it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub foreign: bool,
    /// What kept it from being done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Manifests that a plan has to look at.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Manifests {
    pub before: u64,
    pub after: u64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct ExpiredSnapshots {
    pub snapshots: u64,
    /// Files that were deleted with them; not known before it is done.
    pub files: Option<u64>,
    /// Snapshots that are left.
    pub snapshots_left: u64,
    /// Snapshots that are kept because silver or gold goes on from them.
    pub in_use: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Orphans {
    pub files: u64,
    pub bytes: u64,
    /// Whether they are gone.
    pub removed: bool,
    pub paths: Vec<String>,
}

/// What a run did, or would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct MaintainReport {
    pub dry_run: bool,
    pub tables: Vec<TableReport>,
    /// Tables that the budget left no time for.
    pub not_reached: Vec<String>,
}

/// Where a run is.
#[derive(Debug, Clone)]
pub struct Stage {
    pub table: TableName,
    pub task: Task,
    pub bytes_done: u64,
    pub bytes_in_all: u64,
}

/// What every part of a run needs.
struct Upkeep<'a> {
    lake: &'a Lake,
    engine: &'a Engine,
    models: &'a Models,
    options: &'a MaintainOptions,
    budget: Budget,
    observer: &'a (dyn Fn(&Stage) + Send + Sync),
}

/// What may yet be done.
struct Budget {
    until: Option<Instant>,
    bytes: Option<AtomicU64>,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
            || self.bytes.as_ref().is_some_and(|left| left.load(Ordering::Relaxed) == 0)
    }

    fn is_out_of_time(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }

    /// Whether work on so many bytes may begin. Some is done in any case, so that a small budget gets somewhere.
    fn take(&self, bytes: u64) -> bool {
        if self.is_spent() {
            return false;
        }
        if let Some(left) = &self.bytes {
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(bytes))).ok();
        }
        true
    }
}

impl Upkeep<'_> {
    fn now_ms(&self) -> i64 {
        self.lake.clock().now_ms()
    }

    fn tell(&self, table: &Table, task: Task, bytes_done: u64, bytes_in_all: u64) {
        (self.observer)(&Stage { table: table.name().clone(), task, bytes_done, bytes_in_all });
    }
}

/// Looks after tables, one after the other. One that fails does not hold up the others; the first failure is what the run
/// ends with, and the report tells of all.
pub async fn maintain(
    lake: &Lake,
    engine: &Engine,
    models: &Models,
    tables: &[TableName],
    options: &MaintainOptions,
    observer: &(dyn Fn(&Stage) + Send + Sync),
) -> (MaintainReport, Result<()>) {
    let budget = Budget {
        until: options.time_budget.map(|span| Instant::now() + span),
        bytes: options.bytes_budget.map(AtomicU64::new),
    };
    let upkeep = Upkeep { lake, engine, models, options, budget, observer };
    let mut report = MaintainReport { dry_run: options.dry_run, ..MaintainReport::default() };
    let mut failure: Option<Error> = None;
    for name in tables {
        if upkeep.budget.is_out_of_time() {
            report.not_reached.push(name.to_string());
            continue;
        }
        let mut of_table = TableReport { table: name.to_string(), ..TableReport::default() };
        match look_after(&upkeep, name, &mut of_table).await {
            Ok(()) => {}
            Err(error) => {
                of_table.problem = Some(error.to_string());
                if failure.is_some() {
                    tracing::error!(table = %name, %error, "another table could not be looked after");
                }
                failure.get_or_insert(error);
            }
        }
        report.tables.push(of_table);
    }
    (report, failure.map_or(Ok(()), Err))
}

async fn look_after(upkeep: &Upkeep<'_>, name: &TableName, report: &mut TableReport) -> Result<()> {
    // Somebody may have dropped it since it was listed.
    let Some(mut table) = upkeep.lake.table_if_exists(name).await? else { return Ok(()) };
    report.foreign = upkeep.options.only_own && table.snapshot_id().is_some() && !is_ours(&table);
    if report.foreign {
        return Ok(());
    }
    for task in &upkeep.options.tasks {
        if upkeep.budget.is_out_of_time() {
            break;
        }
        upkeep.tell(&table, *task, 0, 0);
        match task {
            Task::Compact => report.compacted = Some(compact::run(upkeep, &mut table).await?),
            Task::Manifests => report.manifests = Some(put_manifests_together(upkeep, &mut table).await?),
            Task::Expire => report.expired = Some(expire(upkeep, &mut table).await?),
            Task::Orphans => report.orphans = Some(orphans(upkeep, &table).await?),
        }
    }
    Ok(())
}

/// Every commit of ours leaves a marker.
fn is_ours(table: &Table) -> bool {
    table.properties().keys().any(|key| key.starts_with("icestream."))
}

/// Manifests that a commit has to spare, to be worth one.
const MANIFESTS_SPARED_MIN: usize = 4;

async fn put_manifests_together(upkeep: &Upkeep<'_>, table: &mut Table) -> Result<Manifests> {
    table.refresh().await?;
    let (before, after) = table.manifests_to_merge().await?;
    let mut manifests = Manifests { before: before as u64, after: before as u64 };
    if before < after + MANIFESTS_SPARED_MIN {
        return Ok(manifests);
    }
    manifests.after = after as u64;
    if upkeep.options.dry_run {
        return Ok(manifests);
    }
    match table.change().rewrite_manifests().commit().await {
        Ok(committed) => {
            tracing::info!(table = %table.name(), snapshot_id = committed.snapshot_id, before, after, "rewrote manifests");
            *table = committed.table;
        }
        // Whoever keeps it so busy merges them as well.
        Err(table::Error::Contention { .. }) => manifests.after = manifests.before,
        Err(error) => return Err(error.into()),
    }
    Ok(manifests)
}

async fn expire(upkeep: &Upkeep<'_>, table: &mut Table) -> Result<ExpiredSnapshots> {
    table.refresh().await?;
    // Asked as late as can be: what a build names from here on is younger than anything that goes.
    let readers = Readers::of(upkeep.lake, upkeep.models, table).await?;
    let expiry = expiry(table, &upkeep.options.aims, readers.snapshots, upkeep.now_ms());
    let doomed = table.expirable(&expiry);
    let present: BTreeSet<i64> = table.snapshots().iter().map(|snapshot| snapshot.id).collect();
    let without = Expiry { keep: BTreeSet::new(), ..expiry.clone() };
    let mut expired = ExpiredSnapshots {
        snapshots: doomed.len() as u64,
        files: None,
        snapshots_left: (present.len() - doomed.len()) as u64,
        in_use: (table.expirable(&without).len() - doomed.len()) as u64,
    };
    if upkeep.options.dry_run {
        return Ok(expired);
    }
    if doomed.is_empty() {
        expired.files = Some(0);
        return Ok(expired);
    }
    let done = table.expire(&expiry).await?;
    (expired.snapshots, expired.files) = (done.snapshots.len() as u64, Some(done.deleted_files as u64));
    table.refresh().await?;
    expired.snapshots_left = table.snapshots().len() as u64;
    Ok(expired)
}

/// What may go, as the table's properties say, or else the project.
fn expiry(table: &Table, aims: &MaintainConfig, keep: BTreeSet<i64>, now_ms: i64) -> Expiry {
    let property = |key: &str| table.properties().get(key).and_then(|text| text.parse::<i64>().ok());
    let own_age = property("history.expire.max-snapshot-age-ms").filter(|age| *age >= 0);
    let age = own_age.unwrap_or(i64::try_from(aims.keep_snapshots_for.as_millis()).unwrap_or(i64::MAX));
    let own_least = property("history.expire.min-snapshots-to-keep").and_then(|least| usize::try_from(least).ok());
    Expiry {
        older_than_ms: now_ms.saturating_sub(age),
        retain_last: own_least.unwrap_or(aims.keep_snapshots).max(1),
        at_most: if own_age.is_some() { 0 } else { aims.max_snapshots },
        keep,
    }
}

async fn orphans(upkeep: &Upkeep<'_>, table: &Table) -> Result<Orphans> {
    let grace = i64::try_from(upkeep.options.aims.orphans_after.as_millis()).unwrap_or(i64::MAX);
    let older_than_ms = upkeep.now_ms().saturating_sub(grace);
    let removed = upkeep.options.remove_orphans && !upkeep.options.dry_run;
    let found: Vec<Orphan> = match removed {
        true => table.remove_orphans(older_than_ms).await?,
        false => table.orphans(older_than_ms).await?,
    };
    Ok(Orphans {
        files: found.len() as u64,
        bytes: found.iter().map(|orphan| orphan.bytes).sum(),
        removed,
        paths: found.into_iter().map(|orphan| orphan.path).collect(),
    })
}
