//! Where a table's current metadata is named, and how that name is moved.
//!
//! A catalog takes a set of updates with the requirements they stand on and either moves the table's head from exactly
//! the head it was shown, or does not. It knows nothing about what the updates mean, and it never rebases: trying again
//! is the business of `commit/`, which checks its premise first.
//!
//! **The contract** (`tests/support/conformance.rs` proves it for every implementation):
//!
//! - [`Catalog::swap`] succeeds for at most one of any number of racing callers that saw the same head.
//! - [`Swap::Lost`], [`Swap::Busy`] and [`Swap::Failed`] promise that nothing was applied, now or later.
//! - Whatever leaves that in doubt (a timeout, a dropped connection, a 5xx) is [`Swap::Unknown`].
//! - What other programs keep next to the table in the catalog (owner, comment, foreign parameters) stays as it is.

mod backoff;
mod pointer;

pub mod glue;
pub mod rest;
pub mod sqlite;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use iceberg::spec::{Schema, SnapshotRetention, SortOrder, TableMetadata, UnboundPartitionSpec};
use iceberg::{TableRequirement, TableUpdate};

use super::error::{Error, Result};
use crate::ids::TableName;

/// A table's current metadata as one answer of the catalog.
#[derive(Debug, Clone)]
pub struct Head {
    pub table: TableName,
    pub metadata: Arc<TableMetadata>,
    /// Where the metadata file is. Every state has a file of its own, so this also identifies the state.
    pub metadata_location: String,
    /// How long the main branch keeps its snapshots; read when it is first needed.
    pub retention: Arc<OnceLock<SnapshotRetention>>,
}

impl Head {
    pub(super) fn new(table: &TableName, metadata: Arc<TableMetadata>, metadata_location: String) -> Self {
        Head { table: table.clone(), metadata, metadata_location, retention: Arc::default() }
    }
}

/// A table to be made. Field ids in the schema are only relative: the catalog may assign its own.
#[derive(Debug, Clone)]
pub struct NewTable {
    pub table: TableName,
    pub schema: Schema,
    pub partition_spec: UnboundPartitionSpec,
    pub sort_order: SortOrder,
    pub properties: HashMap<String, String>,
    /// `None` lets the catalog choose: `<warehouse>/<namespace>/<table>`.
    pub location: Option<String>,
}

/// Why a head did not move, or may not have.
#[derive(Debug)]
pub enum Swap {
    /// Another writer moved it first. Nothing was applied.
    Lost,
    /// The catalog asked to be left alone for a while (throttling). Nothing was applied.
    Busy(Error),
    /// It refused. Nothing was applied, and trying the same again will not help.
    Failed(Error),
    /// It may or may not have been applied.
    Unknown(Error),
}

#[async_trait]
pub trait Catalog: fmt::Debug + Send + Sync {
    /// The catalog in a few words for messages, without secrets: ``SQLite catalog `lake/catalog.db` ``.
    fn describe(&self) -> String;

    async fn namespaces(&self) -> Result<Vec<String>>;

    /// Makes the namespace when it is missing.
    async fn create_namespace(&self, namespace: &str) -> Result<()>;

    /// The Iceberg tables of a namespace, sorted by name.
    async fn tables(&self, namespace: &str) -> Result<Vec<TableName>>;

    /// The table's current head. `known` is a head seen earlier: when it is still the current one, its metadata is
    /// reused and not read again.
    async fn head(&self, table: &TableName, known: Option<&Head>) -> Result<Head>;

    /// Makes a table (and its namespace when missing).
    async fn create(&self, new: NewTable) -> Result<Head>;

    /// Moves the head from `base` by `updates`, if it is still at `base` and `requirements` hold. Requirements that not
    /// even `base` meets count as lost.
    async fn swap(&self, base: &Head, requirements: &[TableRequirement], updates: &[TableUpdate])
    -> Result<Head, Swap>;

    /// Forgets the table. Its files stay where they are. Forgetting a table that is not there is an error.
    async fn drop_table(&self, table: &TableName) -> Result<()>;
}

/// The tables among `names` that have a name we can speak of. Others belong to engines with other rules.
fn nameable(namespace: &str, names: impl IntoIterator<Item = String>) -> Vec<TableName> {
    let mut tables: Vec<TableName> =
        names.into_iter().filter_map(|name| TableName::new(namespace, name).ok()).collect();
    tables.sort();
    tables
}
