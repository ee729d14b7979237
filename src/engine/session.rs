//! The one runtime all sessions share, and the way a session is built.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::{MemorySchemaProvider, SchemaProvider};
use datafusion::datasource::MemTable;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, TrackConsumersPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::{SessionConfig, SessionContext};

use super::error::{Error, Result};
use super::provider::IcebergTableProvider;
use crate::ids::TableName;
use crate::table::TableView;

/// The catalog that tables are registered in; nobody has to name it.
pub(crate) const CATALOG: &str = "lake";

/// Added to a table's name, gives the table with the place of each row: `ns."orders$rows"`.
pub(crate) const ROWS_SUFFIX: &str = "$rows";

/// Footers are small and read again and again, but they live outside the pool, so they get a fixed share.
const FOOTER_CACHE_BYTES: usize = 50 * 1024 * 1024;

/// What a process takes that nobody counts: pages being read and written, what the allocator keeps, the program. A budget
/// below 1 GiB sets aside less, and one that is hardly more than this nothing: it holds little that is not counted.
const UNCOUNTED_BYTES: usize = 128 * 1024 * 1024;

/// Planning goes down a query step by step, and asks at most steps whether so much of the stack is left; where it is not,
/// it goes on with another. A rule that takes a few steps by itself in between overflowed 128 KiB, the usual, which
/// ends the process.
const STACK_LEFT_BYTES: usize = 1024 * 1024;

/// How large the other stack is. It takes memory where it is used.
const STACK_BYTES: usize = 8 * 1024 * 1024;

#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// What the process may take; queries spill or fail before it does.
    pub memory_bytes: u64,
    /// Partitions of a query that run at the same time.
    pub threads: usize,
    /// Where sorts, joins and aggregations put what does not fit; created when missing.
    pub spill_dir: PathBuf,
}

/// Builds sessions that share one memory budget.
#[derive(Clone)]
pub struct Engine {
    runtime: Arc<RuntimeEnv>,
    config: SessionConfig,
    memory: usize,
    threads: usize,
}

impl Engine {
    pub fn new(options: &EngineOptions) -> Result<Self> {
        check_spill_dir(&options.spill_dir)?;
        recursive::set_minimum_stack_size(STACK_LEFT_BYTES);
        recursive::set_stack_allocation_size(STACK_BYTES);
        let budget = usize::try_from(options.memory_bytes).unwrap_or(usize::MAX);
        let memory = budget - UNCOUNTED_BYTES.min(budget.saturating_sub(UNCOUNTED_BYTES) / 7);
        let threads = options.threads.max(1);
        // Fair: every operator that can spill gets the same share. With a greedy pool the first sort takes everything
        // and the others die. The tracking names the largest holders when the budget is exceeded.
        let top = NonZeroUsize::MIN.saturating_add(2);
        let pool = TrackConsumersPool::new(FairSpillPool::new(memory), top);
        let disk =
            DiskManagerBuilder::default().with_mode(DiskManagerMode::Directories(vec![options.spill_dir.clone()]));
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(pool))
            .with_disk_manager_builder(disk)
            .with_metadata_cache_limit(FOOTER_CACHE_BYTES.min(memory / 8))
            .build_arc()
            .map_err(Error::from_datafusion)?;
        Ok(Engine { runtime, config: session_config(memory, threads), memory, threads })
    }

    /// A session of its own, with no tables yet.
    pub fn session(&self) -> SessionContext {
        let state = SessionStateBuilder::new()
            .with_config(self.config.clone())
            .with_runtime_env(self.runtime.clone())
            .with_default_features()
            .build();
        SessionContext::new_with_state(state)
    }

    /// What all queries together may hold, in bytes.
    pub fn memory(&self) -> usize {
        self.memory
    }

    /// Tasks that should run at the same time.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Bytes the running queries hold of the budget.
    pub fn memory_used(&self) -> usize {
        self.runtime.memory_pool.reserved()
    }
}

fn session_config(memory: usize, threads: usize) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_target_partitions(threads)
        .with_information_schema(true)
        .with_default_catalog_and_schema(CATALOG, "default");
    let options = config.options_mut();
    // What each partition of a sort sets aside for merging what it holds before it spills. Merging copies the keys; with
    // DataFusion's fixed 10 MB a sort whose keys are most of its rows fails as soon as it holds more than that. Queries of
    // more than three sorts set less aside (`query.rs`).
    options.execution.sort_spill_reservation_bytes = memory / (threads * 6);
    options.execution.time_zone = Some("+00:00".to_string());
    options.execution.planning_concurrency = threads;
    // Iceberg's writers take plain strings and binaries only.
    options.execution.parquet.schema_force_view_types = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.parquet.coerce_int96 = Some("us".to_string());
    config
}

fn check_spill_dir(dir: &Path) -> Result<()> {
    let unusable = |source| Error::SpillDirectory { path: dir.to_path_buf(), source };
    std::fs::create_dir_all(dir).map_err(unusable)?;
    let probe = dir.join(format!(".probe-{}", uuid::Uuid::new_v4()));
    std::fs::write(&probe, b"").map_err(unusable)?;
    std::fs::remove_file(&probe).map_err(unusable)
}

/// The namespace of a table in a session, which is made when it is not there.
fn namespace(context: &SessionContext, name: &TableName) -> Result<Arc<dyn SchemaProvider>> {
    let unknown = || Error::Internal { problem: format!("the session has no catalog `{CATALOG}`") };
    let catalog = context.catalog(CATALOG).ok_or_else(unknown)?;
    if let Some(namespace) = catalog.schema(name.namespace()) {
        return Ok(namespace);
    }
    let namespace: Arc<dyn SchemaProvider> = Arc::new(MemorySchemaProvider::new());
    catalog.register_schema(name.namespace(), namespace.clone()).map_err(Error::from_datafusion)?;
    Ok(namespace)
}

/// Makes a table without rows known to a session, to plan over.
pub fn register_empty(context: &SessionContext, name: &TableName, schema: SchemaRef) -> Result<()> {
    let table = MemTable::try_new(schema, vec![Vec::new()]).map_err(Error::from_datafusion)?;
    let namespace = namespace(context, name)?;
    namespace.register_table(name.name().to_string(), Arc::new(table)).map_err(Error::from_datafusion)?;
    Ok(())
}

/// Makes a table known to a session as `namespace.name`, and with the place of each row as `namespace."name$rows"`.
/// A table of that name that is already there is replaced.
pub fn register(context: &SessionContext, name: &TableName, view: TableView) -> Result<()> {
    let schema = namespace(context, name)?;
    let rows_name = format!("{}{ROWS_SUFFIX}", name.name());
    for name in [name.name(), &rows_name] {
        schema.deregister_table(name).map_err(Error::from_datafusion)?;
    }
    // A table with its own `_file` or `_pos` is still there to be queried, only not by place.
    if let Ok(rows) = IcebergTableProvider::with_row_positions(view.clone()) {
        schema.register_table(rows_name, Arc::new(rows)).map_err(Error::from_datafusion)?;
    }
    schema
        .register_table(name.name().to_string(), Arc::new(IcebergTableProvider::new(view)))
        .map_err(Error::from_datafusion)?;
    Ok(())
}
