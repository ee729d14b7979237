//! One pass over silver and gold.

use std::collections::BTreeSet;

use super::{Event, Observer};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::gold::{self, GoldModel};
use crate::ids::TableName;
use crate::silver::{self, SilverModel};
use crate::table::Lake;

/// What is to be built.
#[derive(Debug, Clone, Default)]
pub struct Models {
    pub silver: Vec<SilverModel>,
    pub gold: Vec<GoldModel>,
    /// How much of bronze silver tables are folded from.
    pub extent: silver::Extent,
}

/// What one pass did.
#[derive(Debug, Clone, Default)]
pub struct BuildReport {
    pub built: Vec<TableName>,
    pub unchanged: Vec<TableName>,
    /// Tables that another builder was faster with.
    pub yielded: Vec<TableName>,
    /// Tables that read one which failed, or, of gold tables, was yielded: they stay as they are until that one is built.
    pub held_back: Vec<TableName>,
}

/// Brings every silver table up to its bronze table, then every gold table up to what it reads. All gold
/// models see one state of the silver tables, whoever commits to them meanwhile.
///
/// A table that fails does not hold up the others; the first failure is what the pass ends with.
pub async fn build(lake: &Lake, engine: &Engine, models: &Models, observer: &Observer) -> Result<BuildReport> {
    let mut report = BuildReport::default();
    let mut failures = Failures::default();
    let mut lookups = silver::Lookups::default();
    let mut failed: BTreeSet<TableName> = BTreeSet::new();
    for model in silver::in_order(&models.silver)? {
        let looked_up = silver::lookups(model).unwrap_or_default();
        if let Some(by) = looked_up.iter().find(|lookup| failed.contains(lookup)) {
            tracing::warn!(table = %model.table, %by, "not merged: a table it looks rows up in was not brought up to date");
            report.held_back.push(model.table.clone());
            failed.insert(model.table.clone());
            continue;
        }
        let pinned = lookups.pin(lake, model).await;
        // One of the run's own tables is made when there is something for it.
        let missing = lookups.missing(model).ok().flatten().filter(|_| pinned.is_ok());
        if let Some(by) = missing.filter(|table| models.silver.iter().any(|model| model.table == *table)) {
            tracing::warn!(table = %model.table, %by, "not merged: a table it looks rows up in is not there yet");
            report.held_back.push(model.table.clone());
            continue;
        }
        let merged = match pinned {
            Ok(()) => silver::build(lake, engine, model, &lookups, models.extent).await,
            Err(error) => Err(error),
        };
        match merged {
            Ok(silver::Outcome::Merged(commit)) => {
                observer(&Event::Merged(commit));
                report.built.push(model.table.clone());
            }
            Ok(silver::Outcome::Nothing) => report.unchanged.push(model.table.clone()),
            Ok(silver::Outcome::Yielded) => report.yielded.push(model.table.clone()),
            Err(error) => {
                failures.note(&model.table, error.into());
                failed.insert(model.table.clone());
            }
        }
    }
    let own = models.silver.iter().map(|model| &model.table).chain(models.gold.iter().map(|model| &model.table));
    let awaited: BTreeSet<TableName> = own.cloned().collect();
    let ordered = gold::in_order(&models.gold)?;
    let mut inputs = gold::Inputs::pin(lake, &models.gold, awaited).await;
    for model in ordered {
        match gold::refresh(lake, engine, model, &mut inputs).await {
            Ok(gold::Outcome::Refreshed(commit)) => {
                observer(&Event::Refreshed(commit));
                report.built.push(model.table.clone());
            }
            Ok(gold::Outcome::Nothing) => report.unchanged.push(model.table.clone()),
            Ok(gold::Outcome::Yielded) => report.yielded.push(model.table.clone()),
            Ok(gold::Outcome::HeldBack { by }) => {
                tracing::warn!(table = %model.table, %by, "not refreshed: a table it reads was not brought up to date");
                report.held_back.push(model.table.clone());
            }
            Err(error) => failures.note(&model.table, error.into()),
        }
    }
    match failures.first {
        None => Ok(report),
        Some(error) => Err(error),
    }
}

#[derive(Default)]
struct Failures {
    first: Option<Error>,
}

impl Failures {
    fn note(&mut self, table: &TableName, error: Error) {
        if self.first.is_some() {
            tracing::error!(%table, %error, "another table could not be built");
        }
        self.first.get_or_insert(error);
    }
}
