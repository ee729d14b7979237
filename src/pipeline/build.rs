//! One pass over silver and gold.

use super::{Event, Observer};
use crate::engine::Engine;
use crate::error::Result;
use crate::gold::{self, GoldModel};
use crate::ids::TableName;
use crate::silver::{self, SilverModel};
use crate::table::Lake;

/// What is to be built.
#[derive(Debug, Clone, Default)]
pub struct Models {
    pub silver: Vec<SilverModel>,
    pub gold: Vec<GoldModel>,
}

/// What one pass did.
#[derive(Debug, Clone, Default)]
pub struct BuildReport {
    pub built: Vec<TableName>,
    pub unchanged: Vec<TableName>,
    /// Tables that another builder was faster with.
    pub yielded: Vec<TableName>,
}

/// Brings every silver table up to its bronze table, then every gold table up to what it reads.
pub async fn build(lake: &Lake, engine: &Engine, models: &Models, observer: &Observer) -> Result<BuildReport> {
    let mut report = BuildReport::default();
    for model in &models.silver {
        match silver::merge(lake, engine, model).await? {
            silver::Outcome::Merged(commit) => {
                observer(&Event::Merged(commit));
                report.built.push(model.table.clone());
            }
            silver::Outcome::Nothing => report.unchanged.push(model.table.clone()),
            silver::Outcome::Yielded => report.yielded.push(model.table.clone()),
        }
    }
    for model in gold::in_order(&models.gold)? {
        match gold::refresh(lake, engine, model).await? {
            gold::Outcome::Refreshed(commit) => {
                observer(&Event::Refreshed(commit));
                report.built.push(model.table.clone());
            }
            gold::Outcome::Nothing => report.unchanged.push(model.table.clone()),
            gold::Outcome::Yielded => report.yielded.push(model.table.clone()),
        }
    }
    Ok(report)
}
