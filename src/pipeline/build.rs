//! One pass over silver and gold.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::quality::{Audit, Findings, Latest};
use super::{Event, Layer, Observer, Standing, Turning};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result};
use crate::gold::{self, GoldModel};
use crate::ids::TableName;
use crate::quality::{FINDINGS_TABLE, Rule, Test};
use crate::silver::{self, SilverModel};
use crate::table::Lake;

/// What is to be built.
#[derive(Debug, Clone, Default)]
pub struct Models {
    pub silver: Vec<SilverModel>,
    pub gold: Vec<GoldModel>,
    /// What is asked of the tables at the end.
    pub audits: Vec<Audit>,
    /// Where what rules and audits find is kept, if anywhere.
    pub quality: Option<KeptFindings>,
    /// How much of bronze silver tables are folded from.
    pub extent: silver::Extent,
}

/// The table that keeps findings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptFindings {
    pub table: TableName,
    /// How long they are kept.
    pub keep: Duration,
}

impl Models {
    /// Whether one of the rules or audits is the one that found this.
    pub(super) fn asks(&self, finding: &Latest) -> bool {
        let of = |table: &TableName, rules: &[Rule]| {
            table.to_string() == finding.table && rules.iter().any(|rule| rule.name == finding.rule)
        };
        match finding.kind.as_str() {
            "audit" => self.audits.iter().any(|audit| audit.name == finding.rule),
            _ => {
                self.silver.iter().any(|model| of(&model.table, &model.expect))
                    || self.gold.iter().any(|model| of(&model.table, &model.expect))
            }
        }
    }
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
/// models see one state of the silver tables, whoever commits to them meanwhile. Audits come last.
///
/// A table that fails does not hold up the others, but for those that read one whose rows break a rule; the first failure
/// is what the pass ends with.
pub async fn build(lake: &Lake, engine: &Engine, models: &Models, observer: &Observer) -> Result<BuildReport> {
    let mut report = BuildReport::default();
    let mut failures = Failures::default();
    let mut findings = Findings::new(lake, models.quality.clone());
    let mut unfit: BTreeSet<TableName> = BTreeSet::new();
    let mut lookups = silver::Lookups::default();
    let mut failed: BTreeSet<TableName> = BTreeSet::new();
    let turned = || observer(&Event::Turned(Turning::Build));
    for model in parents_first(silver::in_order(&models.silver)?) {
        turned();
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
        let asked = (&model.table, model.expect.as_slice(), model.live_rows());
        let mut present = Ok(Vec::new());
        match merged {
            Ok(silver::Outcome::Merged(commit)) => {
                present = findings.of(engine, asked, Some((commit.rows_written, &commit.findings))).await;
                observer(&Event::Merged(commit));
                report.built.push(model.table.clone());
            }
            Ok(silver::Outcome::Nothing) => {
                present = findings.of(engine, asked, None).await;
                report.unchanged.push(model.table.clone());
            }
            Ok(silver::Outcome::Yielded) => report.yielded.push(model.table.clone()),
            Err(error) => {
                if let silver::Error::Broken { findings: broken, .. } = &error {
                    findings.add(broken);
                    unfit.insert(model.table.clone());
                }
                failures.note(&model.table, error.into());
                failed.insert(model.table.clone());
            }
        }
        match present {
            Ok(broken) => {
                unfit.extend((!broken.is_empty()).then(|| model.table.clone()));
                broken.into_iter().for_each(|error| failures.note(&model.table, error));
            }
            Err(error) => failures.note(&model.table, error),
        }
    }
    for model in &models.silver {
        match findings.freshness(engine, &model.table, &model.expect).await {
            Ok(stale) => {
                unfit.extend((!stale.is_empty()).then(|| model.table.clone()));
                stale.into_iter().for_each(|error| failures.note(&model.table, error));
            }
            Err(error) => failures.note(&model.table, error),
        }
        if !report.held_back.contains(&model.table) {
            observer(&failures.of(Layer::Silver, &model.table));
        }
    }
    let own = models.silver.iter().flat_map(|model| [model.table.clone(), model.quarantine()]);
    let awaited: BTreeSet<TableName> = own.chain(models.gold.iter().map(|model| model.table.clone())).collect();
    let ordered = gold::in_order(&models.gold)?;
    let mut inputs = gold::Inputs::pin(lake, &models.gold, awaited.clone()).await;
    unfit.iter().for_each(|table| inputs.hold_back(table));
    for model in ordered {
        turned();
        let asked = (&model.table, model.expect.as_slice(), "");
        let mut present = Ok(Vec::new());
        match gold::refresh(lake, engine, model, &mut inputs).await {
            Ok(gold::Outcome::Refreshed(commit)) => {
                present = findings.of(engine, asked, Some((commit.rows, &commit.findings))).await;
                observer(&Event::Refreshed(commit));
                report.built.push(model.table.clone());
            }
            Ok(gold::Outcome::Nothing) => {
                present = findings.of(engine, asked, None).await;
                report.unchanged.push(model.table.clone());
            }
            Ok(gold::Outcome::Yielded) => report.yielded.push(model.table.clone()),
            Ok(gold::Outcome::HeldBack { by }) => {
                tracing::warn!(table = %model.table, %by, "not refreshed: a table it reads was not brought up to date");
                report.held_back.push(model.table.clone());
            }
            Err(error) => {
                if let gold::Error::Broken { findings: broken, .. } = &error {
                    findings.add(broken);
                }
                failures.note(&model.table, error.into());
            }
        }
        match present {
            Ok(broken) => {
                if !broken.is_empty() {
                    inputs.hold_back(&model.table);
                }
                broken.into_iter().for_each(|error| failures.note(&model.table, error));
            }
            Err(error) => failures.note(&model.table, error),
        }
        match findings.freshness(engine, &model.table, &model.expect).await {
            Ok(stale) => {
                if !stale.is_empty() {
                    inputs.hold_back(&model.table);
                }
                stale.into_iter().for_each(|error| failures.note(&model.table, error));
            }
            Err(error) => failures.note(&model.table, error),
        }
        if !report.held_back.contains(&model.table) {
            observer(&failures.of(Layer::Gold, &model.table));
        }
    }
    for audit in &models.audits {
        turned();
        match findings.audit(engine, audit, &awaited).await {
            Ok(None) => {}
            Ok(Some(error)) | Err(error) => failures.note_audit(&audit.name, error),
        }
    }
    match findings.keep(engine).await {
        Ok(found) if found.is_empty() => {}
        Ok(found) => observer(&Event::Checked(found)),
        Err(error) => failures.note_audit(FINDINGS_TABLE, error),
    }
    observer(&Event::Ended(Turning::Build));
    observer(&Event::Built { is_whole: failures.first.is_none() });
    match failures.first {
        None => Ok(report),
        Some(error) => Err(error),
    }
}

/// Each model after those that it has relationships to, so that it finds their new rows; as they come, where they go in a
/// circle.
///
/// They come in the order of their lookups, and stay in it: the first of those that wait has none among the others.
fn parents_first(mut waiting: Vec<&SilverModel>) -> Vec<&SilverModel> {
    let mut ordered = Vec::new();
    while !waiting.is_empty() {
        let is_waited_for = |model: &SilverModel, other: &TableName| {
            *other != model.table && waiting.iter().any(|waiting| waiting.table == *other)
        };
        let is_ready = |model: &&SilverModel| {
            let lookups = silver::lookups(model).unwrap_or_default();
            let relations = model.expect.iter().filter_map(|rule| match &rule.test {
                Test::Relationship { table, .. } => Some(table),
                _ => None,
            });
            !lookups.iter().chain(relations).any(|table| is_waited_for(model, table))
        };
        let next = waiting.iter().position(is_ready).unwrap_or(0);
        ordered.push(waiting.remove(next));
    }
    ordered
}

#[derive(Default)]
struct Failures {
    first: Option<Error>,
    /// What the first failure of each table asks for.
    tables: BTreeMap<TableName, Kind>,
}

impl Failures {
    fn note(&mut self, table: &TableName, error: Error) {
        if self.first.is_some() {
            tracing::error!(%table, %error, "another table could not be built");
        }
        self.tables.entry(table.clone()).or_insert(error.kind());
        self.keep(error);
    }

    /// How a table fared in this pass. The next one tries again, whatever it was.
    fn of(&self, layer: Layer, table: &TableName) -> Event {
        let how = self.tables.get(table).map_or(Standing::Well, |kind| Standing::TriedAgain(*kind));
        Event::Fares { layer, table: table.clone(), how }
    }

    fn note_audit(&mut self, audit: &str, error: Error) {
        if self.first.is_some() {
            tracing::error!(audit, %error, "an audit failed as well");
        }
        self.keep(error);
    }

    /// The first that a person has to look at: what trying again may mend must not hide it.
    fn keep(&mut self, error: Error) {
        match &self.first {
            Some(first) if !(first.kind().is_retryable() && error.kind() == Kind::Quality) => {}
            _ => self.first = Some(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quality::Action;
    use crate::silver::{OnDelete, Scd};

    #[test]
    fn a_model_comes_after_those_it_has_relationships_to() {
        let check = |relations: &[(&str, &str)], expected: &[&str]| {
            let model = |name: &&str| SilverModel {
                table: TableName::new("silver", *name).unwrap(),
                from: TableName::new("bronze", *name).unwrap(),
                keys: Vec::new(),
                on_delete: OnDelete::Remove,
                scd: Scd::One,
                ignore_nulls: Default::default(),
                sql: None,
                expect: relations
                    .iter()
                    .filter(|(of, _)| of == name)
                    .map(|(_, to)| Rule {
                        name: "r".to_string(),
                        test: Test::Relationship {
                            column: "x".to_string(),
                            table: TableName::new("silver", *to).unwrap(),
                            to: "id".to_string(),
                        },
                        action: Action::Warn,
                    })
                    .collect(),
            };
            let models: Vec<SilverModel> = ["a", "b", "c"].iter().map(model).collect();
            let names: Vec<&str> =
                parents_first(models.iter().collect()).iter().map(|model| model.table.name()).collect();
            assert_eq!(names, expected, "{relations:?}");
        };
        check(&[], &["a", "b", "c"]);
        check(&[("a", "c"), ("b", "a")], &["c", "a", "b"]);
        check(&[("a", "a"), ("b", "z")], &["a", "b", "c"]);
        check(&[("a", "b"), ("b", "a")], &["c", "a", "b"]);
    }
}
