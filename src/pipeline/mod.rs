//! Wires the stages: from a source to bronze tables, and from there to silver and gold.
//!
//! In come routes and models as the configuration resolved them; what happens is told to an observer. Nothing is hidden
//! from this folder, and it holds no rule of its own about records, rows or tables.

pub mod backfill;
mod breaker;
mod build;
mod check;
mod ingest;
mod lane;
pub mod maintain;
mod makers;
pub mod offsets;
pub mod plan;
mod project;
pub mod quality;
pub mod rejected;
mod rows;
pub mod status;
pub mod verify;

use std::sync::Arc;

pub use breaker::{Breaker, Tripped};
pub use build::{BuildReport, KeptFindings, Models, build};
pub use check::{ModelCheck, check_models};
pub use ingest::{CommitTriggers, Ingest, IngestReport, Route, Until};
pub use project::{
    commit_triggers, dialect, engine, files_source, format, kafka_admin, kafka_config, models, open_lake, open_storage,
    route,
};
pub use quality::Audit;

use crate::bronze::BronzeCommit;
use crate::decode::Format;
use crate::gold::GoldCommit;
use crate::placeholder::Placeholder;
use crate::quality::Finding;
use crate::silver::SilverCommit;

/// How records are written.
#[derive(Debug, Clone)]
pub struct Dialect {
    pub format: Format,
    /// What stands for values that were not sent.
    pub placeholder: Arc<Placeholder>,
}

impl From<Format> for Dialect {
    fn from(format: Format) -> Self {
        Dialect { format, placeholder: Arc::default() }
    }
}

/// Something durable that happened.
#[derive(Debug, Clone)]
pub enum Event {
    Ingested(BronzeCommit),
    Merged(SilverCommit),
    Refreshed(GoldCommit),
    /// What rules and audits found in a pass, of what was committed and of what was not.
    Checked(Vec<Finding>),
}

/// Is told of every event, after it is durable.
pub type Observer = Arc<dyn Fn(&Event) + Send + Sync>;

/// An observer that looks away.
pub fn unobserved() -> Observer {
    Arc::new(|_| {})
}
