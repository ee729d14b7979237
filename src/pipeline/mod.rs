//! Wires the stages: from a source to bronze tables, and from there to silver and gold.
//!
//! In come routes and models as the configuration resolved them; what happens is told to an observer. Nothing is hidden
//! from this folder, and it holds no rule of its own about records, rows or tables.

pub mod backfill;
mod breaker;
mod build;
mod check;
mod event;
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
pub use event::{Event, InHand, Layer, Observer, Standing, Turning, unobserved};
pub use ingest::{CommitTriggers, Ingest, IngestReport, Route, Until};
pub use project::{
    commit_triggers, dialect, engine, files_source, format, kafka_admin, kafka_config, models, open_lake, open_storage,
    read_ahead_bytes, route,
};
pub use quality::Audit;

use crate::decode::Format;
use crate::placeholder::Placeholder;

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
