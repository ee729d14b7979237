//! Turns a change into the table's next snapshot: prepare on the head, move the head from exactly there, or try again.
//!
//! - **Every attempt checks the premise again**, on the head it builds on. A premise that broke ends the commit with
//!   nothing applied; losing a race does not.
//! - **The snapshot id and the commit id stay the same through all attempts.** Whether an attempt with an unknown
//!   outcome was applied is found by looking for the commit id in the history, before anything else is tried.
//! - **Schema, files, properties and summary go in one commit**, where a change has several of them.
//!
//! It does not know what the rows mean, which catalog holds the head, or where files are stored.

mod attempt;
mod premise;
mod totals;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use iceberg::spec::TableMetadata;
use rand::Rng;
use uuid::Uuid;

pub(super) use attempt::manifests_to_merge;
pub use premise::{Advance, Premise};
pub(super) use premise::{marker, marker_in_line, marker_keys};

use super::catalog::{Head, Swap};
use super::error::{Error, Result};
use super::scan::{DeleteFile, ScanFile, TableView};
use super::schema::EvolvedSchema;
use super::writer::WrittenFile;
use super::{Table, WrittenDeletes};
use crate::error::Situation;
use attempt::{Attempt, NewManifests};

/// The summary key every commit of ours carries its id under.
pub const COMMIT_ID: &str = "icestream.commit-id";

/// How long a commit tries.
#[derive(Debug, Clone)]
pub struct CommitPolicy {
    /// Attempts that may lose to other writers before giving up.
    pub attempts: u32,
    pub pause_min: Duration,
    pub pause_max: Duration,
    /// How long to ask a catalog that does not answer what became of an attempt.
    pub resolve_within: Duration,
}

impl Default for CommitPolicy {
    fn default() -> Self {
        CommitPolicy {
            // Eight writers that never pause lose seven of eight races; a hundred in a row means something is stuck.
            attempts: 100,
            pause_min: Duration::from_millis(20),
            pause_max: Duration::from_secs(2),
            resolve_within: Duration::from_secs(60),
        }
    }
}

/// What became of a change.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The table at its new head.
    pub table: Table,
    /// `None` when the change made no snapshot: properties only.
    pub snapshot_id: Option<i64>,
    pub commit_id: Uuid,
    pub attempts: u32,
}

/// A change to a table, gathered piece by piece and applied whole by [`Change::commit`].
#[derive(Debug)]
#[must_use = "a change does nothing until it is committed"]
pub struct Change {
    table: Table,
    kind: Kind,
    add: Vec<WrittenFile>,
    remove: Vec<ScanFile>,
    /// Data files that position deletes in `add` are about.
    touched: Vec<ScanFile>,
    /// Whether those deletes are of rows that were there.
    deletes_rows: bool,
    /// Delete files of these that go, because new ones say the same and more.
    outdone: Vec<Arc<DeleteFile>>,
    /// The sequence number of the snapshot that removals and rewrites were planned on.
    planned_sequence: Option<i64>,
    schema: Option<EvolvedSchema>,
    set: BTreeMap<String, String>,
    unset: Vec<String>,
    notes: BTreeMap<String, String>,
    premise: Premise,
    policy: CommitPolicy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Rows come and go.
    Rows,
    /// The same rows in other files.
    Rewrite,
    /// The same files in fewer manifests.
    Manifests,
    /// Everything there is makes way.
    ReplaceAll,
}

impl Change {
    pub(super) fn new(table: Table) -> Self {
        Change {
            table,
            kind: Kind::Rows,
            add: Vec::new(),
            remove: Vec::new(),
            touched: Vec::new(),
            deletes_rows: false,
            outdone: Vec::new(),
            planned_sequence: None,
            schema: None,
            set: BTreeMap::new(),
            unset: Vec::new(),
            notes: BTreeMap::new(),
            premise: Premise::default(),
            policy: CommitPolicy::default(),
        }
    }

    /// Adds rows.
    pub fn append(mut self, files: Vec<WrittenFile>) -> Self {
        self.add.extend(files);
        self
    }

    /// Adds rows and deletes others by position. `view` is what the deletes were found in.
    pub fn row_delta(mut self, view: &TableView, add: Vec<WrittenFile>, deletes: WrittenDeletes) -> Self {
        self.plan_on(view);
        self.deletes_rows |= !deletes.of.is_empty();
        self.add.extend(add);
        self.add.extend(deletes.files);
        self.touched.extend(deletes.of);
        self.outdone.extend(deletes.instead_of);
        self
    }

    /// Puts `add` in the place of `remove` (copy-on-write). Rows of `remove` that were already deleted must not be in
    /// `add`; its own delete files go with it.
    pub fn overwrite(mut self, view: &TableView, remove: Vec<ScanFile>, add: Vec<WrittenFile>) -> Self {
        self.plan_on(view);
        self.remove.extend(remove);
        self.add.extend(add);
        self
    }

    /// Stores the live rows of `remove` anew in `add` (compaction). The rows keep their age, that of the youngest file
    /// among them: what is deleted by key or position after `view` still finds them, or stops the rewrite, and who reads
    /// by age does not take them for new ones.
    pub fn rewrite(mut self, view: &TableView, remove: Vec<ScanFile>, add: Vec<WrittenFile>) -> Self {
        self.kind = Kind::Rewrite;
        self.overwrite(view, remove, add)
    }

    /// Puts delete files together: `deletes` say of their data files what those they stand in for say, and no more.
    pub fn rewrite_deletes(mut self, view: &TableView, deletes: WrittenDeletes) -> Self {
        self.kind = Kind::Rewrite;
        self.plan_on(view);
        self.add.extend(deletes.files);
        self.touched.extend(deletes.of);
        self.outdone.extend(deletes.instead_of);
        self
    }

    /// Puts small manifests together. No file comes or goes.
    pub fn rewrite_manifests(mut self) -> Self {
        self.kind = Kind::Manifests;
        self
    }

    /// Puts `add` in the place of everything that is in the table when the commit succeeds. Guard it with a premise
    /// when the new rows were computed from the old.
    pub fn replace_all(mut self, add: Vec<WrittenFile>) -> Self {
        self.kind = Kind::ReplaceAll;
        self.add.extend(add);
        self
    }

    /// Changes the schema in the same commit.
    pub fn schema(mut self, schema: EvolvedSchema) -> Self {
        self.schema = Some(schema);
        self
    }

    pub fn set_property(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.set.insert(key.into(), value.into());
        self
    }

    pub fn remove_property(mut self, key: impl Into<String>) -> Self {
        self.unset.push(key.into());
        self
    }

    /// Adds an entry to the snapshot's summary.
    pub fn note(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.notes.insert(key.into(), value.into());
        self
    }

    pub fn premise(mut self, premise: Premise) -> Self {
        self.premise = self.premise.and(premise);
        self
    }

    pub fn policy(mut self, policy: CommitPolicy) -> Self {
        self.policy = policy;
        self
    }

    fn plan_on(&mut self, view: &TableView) {
        let sequence = view.sequence_number();
        self.planned_sequence = Some(self.planned_sequence.map_or(sequence, |known| known.min(sequence)));
    }

    fn makes_snapshot(&self) -> bool {
        // A schema alone makes one as well: readers that go by the snapshot's schema would not see it otherwise.
        !self.add.is_empty()
            || !self.remove.is_empty()
            || matches!(self.kind, Kind::ReplaceAll | Kind::Manifests)
            || self.schema.is_some()
            || !self.notes.is_empty()
            || self.premise.has_markers()
    }

    fn check(&self) -> Result<()> {
        let refuse =
            |problem: &str| Err(Error::Change { table: self.table.name().clone(), problem: problem.to_string() });
        if self.kind == Kind::Rewrite && self.deletes_rows {
            return refuse("a rewrite stores the same rows anew and cannot delete any");
        }
        if self.kind == Kind::Manifests && !(self.add.is_empty() && self.remove.is_empty() && self.touched.is_empty()) {
            return refuse("a rewrite of manifests leaves every file where it is");
        }
        if matches!(self.kind, Kind::Rewrite | Kind::Manifests) && self.schema.is_some() {
            return refuse("a rewrite keeps the rows as they are, and their columns");
        }
        if self.kind == Kind::ReplaceAll && (!self.remove.is_empty() || !self.touched.is_empty()) {
            return refuse("replacing everything leaves nothing to remove or delete besides");
        }
        if !self.makes_snapshot() && self.set.is_empty() && self.unset.is_empty() {
            return refuse("there is nothing to commit");
        }
        Ok(())
    }

    /// Applies the change, or explains why it was not applied. Files handed in stay the caller's when it fails: they may
    /// serve another plan, or go with [`Table::discard`].
    pub async fn commit(self) -> Result<Committed> {
        self.check()?;
        let mut commit = Commit {
            commit_id: Uuid::new_v4(),
            snapshot_id: new_snapshot_id(),
            manifests: NewManifests::default(),
            head: self.table.head.clone(),
            is_fresh: false,
            doubt: None,
            change: self,
        };
        match commit.run().await {
            // While an attempt is in doubt, nothing it may name can go. A broken premise ends the doubt: the head has
            // moved past what that attempt stood on.
            Err(error) if commit.doubt.is_some() && !error.is_premise_broken() => match error {
                Error::Unresolved { .. } => Err(error),
                error => Err(commit.unresolved(error)),
            },
            Err(error) => {
                commit.manifests.discard(&commit.change.table).await;
                Err(error)
            }
            committed => committed,
        }
    }
}

/// One commit in progress.
struct Commit {
    change: Change,
    commit_id: Uuid,
    snapshot_id: i64,
    /// Manifests of added files: written once, used by every attempt.
    manifests: NewManifests,
    head: Head,
    /// Whether `head` was read from the catalog by this commit.
    is_fresh: bool,
    /// Why the outcome of an earlier attempt is not known.
    doubt: Option<Error>,
}

impl Commit {
    async fn run(&mut self) -> Result<Committed> {
        let mut attempt = 0;
        let mut lost: Option<Attempt> = None;
        while attempt < self.change.policy.attempts {
            attempt += 1;
            if attempt > 1 {
                self.pause(attempt).await;
                self.refresh().await?;
                // Also after a plain loss: something between us and the catalog may have sent the request twice.
                if self.is_applied() {
                    return Ok(self.committed(self.head.clone(), attempt - 1));
                }
                if let Some(lost) = lost.take() {
                    lost.discard(&self.change.table).await;
                }
            }
            let prepared = match Attempt::prepare(self, attempt).await {
                Ok(prepared) => prepared,
                // The head the caller held may be old; judge the premise on the present one.
                Err(error) if error.is_premise_broken() && !self.is_fresh => {
                    self.refresh().await?;
                    Attempt::prepare(self, attempt).await?
                }
                Err(error) => return Err(error),
            };
            fail::fail_point!("commit-before-swap");
            let catalog = self.change.table.lake.catalog();
            match catalog.swap(&self.head, &prepared.requirements, &prepared.updates).await {
                Ok(head) if !self.change.makes_snapshot() || holds_commit(&head.metadata, &self.commit_id) => {
                    fail::fail_point!("commit-after-swap");
                    return Ok(self.committed(head, attempt));
                }
                Ok(_) => {
                    let answer = "success, with a head that does not have the commit".to_string();
                    self.doubt = Some(Error::Protocol { what: catalog.describe(), answer });
                }
                Err(Swap::Lost) => {
                    tracing::debug!(table = %self.head.table, attempt, "another writer committed first");
                    lost = Some(prepared);
                }
                Err(Swap::Busy(error)) => {
                    tracing::debug!(table = %self.head.table, attempt, %error, "the catalog asked to wait");
                    prepared.discard(&self.change.table).await;
                    if attempt == self.change.policy.attempts {
                        return Err(error);
                    }
                }
                Err(Swap::Failed(error)) => {
                    prepared.discard(&self.change.table).await;
                    return Err(error);
                }
                // Its files stay: the attempt may yet turn out to have been applied.
                Err(Swap::Unknown(error)) => {
                    tracing::warn!(
                        table = %self.head.table, attempt, %error, commit_id = %self.commit_id,
                        "no answer to a commit; looking for it in the table's history"
                    );
                    self.doubt = Some(error);
                }
            }
        }
        match self.doubt.take() {
            Some(source) => Err(self.unresolved(source)),
            None => Err(Error::Contention { table: self.change.table.name().clone(), attempts: attempt }),
        }
    }

    fn committed(&self, mut head: Head, attempts: u32) -> Committed {
        let makes_snapshot = self.change.makes_snapshot();
        // A commit of ours leaves it as it was.
        head.retention = self.head.retention.clone();
        Committed {
            table: Table { lake: self.change.table.lake.clone(), head },
            snapshot_id: makes_snapshot.then_some(self.snapshot_id),
            commit_id: self.commit_id,
            attempts,
        }
    }

    /// Whether the head shows that an earlier attempt went through.
    fn is_applied(&self) -> bool {
        let metadata = &self.head.metadata;
        if self.change.makes_snapshot() {
            return holds_commit(metadata, &self.commit_id);
        }
        if self.doubt.is_none() {
            return false;
        }
        // Properties have no history; what counts is that they are as asked for.
        let properties = metadata.properties();
        self.change.set.iter().all(|(key, value)| properties.get(key) == Some(value))
            && self.change.unset.iter().all(|key| !properties.contains_key(key))
    }

    /// Reads the head again. While an outcome is in doubt, a catalog that does not answer is asked for longer.
    async fn refresh(&mut self) -> Result<()> {
        let started = tokio::time::Instant::now();
        loop {
            let catalog = self.change.table.lake.catalog();
            match catalog.head(&self.head.table, Some(&self.head)).await {
                Ok(head) => {
                    if head.metadata.uuid() != self.change.table.head.metadata.uuid() {
                        return Err(premise::broken(self.change.table.name(), super::error::Broken::Replaced));
                    }
                    self.head = head;
                    self.is_fresh = true;
                    return Ok(());
                }
                Err(error) if error.kind() == crate::error::Kind::Unavailable => {
                    let Some(doubt) = &self.doubt else { return Err(error) };
                    if started.elapsed() >= self.change.policy.resolve_within {
                        return Err(self.unresolved(doubt.clone()));
                    }
                    tokio::time::sleep(self.change.policy.pause_max).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn unresolved(&self, source: Error) -> Error {
        Error::Unresolved {
            table: self.change.table.name().clone(),
            commit_id: self.commit_id.to_string(),
            source: Box::new(source),
        }
    }

    async fn pause(&self, attempt: u32) {
        let policy = &self.change.policy;
        let ceiling = policy.pause_min.saturating_mul(1 << attempt.min(16)).min(policy.pause_max);
        let share: f64 = rand::rng().random_range(0.0..1.0);
        tokio::time::sleep(policy.pause_min.max(ceiling.mul_f64(share))).await;
    }
}

/// Whether a commit of this id is in the table's history.
pub(super) fn holds_commit(metadata: &TableMetadata, commit_id: &Uuid) -> bool {
    let id = commit_id.to_string();
    metadata.snapshots().any(|snapshot| snapshot.summary().additional_properties.get(COMMIT_ID) == Some(&id))
}

/// A positive random id, as other writers make them.
fn new_snapshot_id() -> i64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    ((high ^ low) & (i64::MAX as u64)) as i64
}
