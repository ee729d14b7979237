//! What a run has written and found, until it is committed.

use arrow::datatypes::{Schema, SchemaRef};
use roaring::RoaringTreemap;

use super::{Base, Run};
use crate::definition;
use crate::engine::RowReader;
use crate::quality::{Finding, Origin};
use crate::silver::events::Rows;
use crate::silver::gate::Passed;
use crate::silver::{
    Extent, MARKER, Marker, Merged, Outcome, Result, Scd, SilverCommit, definition as table_definition, upkeep,
};
use crate::table::{At, EvolvedSchema, Premise, ScanFile, SchemaChange, Table, TableView, WrittenFile};

/// What a run did, for the snapshot's summary. Keys that are folded anew count by how many rows they have after it.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) inserted: u64,
    pub(super) updated: u64,
    pub(super) deleted: u64,
    pub(super) late: u64,
    pub(super) duplicates: u64,
    /// Keys that went on from their rows, and that were folded from history.
    pub(super) carried: u64,
    pub(super) folded: u64,
}

impl Counts {
    /// `written` rows take the place of `replaced` ones.
    pub(super) fn add(&mut self, written: u64, replaced: u64) {
        let updated = written.min(replaced);
        self.updated += updated;
        self.inserted += written - updated;
        self.deleted += replaced - updated;
    }

    fn notes(self) -> impl Iterator<Item = (String, String)> {
        let Counts { inserted, updated, deleted, late, duplicates, carried, folded } = self;
        let keys = [("carried", carried), ("folded", folded)].into_iter().filter(|(_, count)| *count > 0);
        let keys = keys.map(|(name, count)| (format!("icestream.keys-{name}"), count.to_string()));
        [("inserted", inserted), ("updated", updated), ("deleted", deleted), ("late", late), ("duplicates", duplicates)]
            .into_iter()
            .map(|(name, count)| (format!("icestream.rows-{name}"), count.to_string()))
            .chain(keys)
    }
}

/// Files and marker of a run, about to be committed.
pub(in crate::silver) struct Staged {
    pub(in crate::silver) silver: Table,
    pub(in crate::silver) view: TableView,
    pub(in crate::silver) written: Vec<WrittenFile>,
    pub(super) doomed: Vec<(ScanFile, RoaringTreemap)>,
    pub(in crate::silver) replaces_all: bool,
    /// The columns that the commit gives the table, where they are others.
    pub(in crate::silver) evolved: Option<EvolvedSchema>,
    pub(super) counts: Counts,
    pub(in crate::silver) passed: Passed,
    /// Events that have no value for a key, and the first of them.
    pub(in crate::silver) null_keys: u64,
    pub(in crate::silver) first_null_key: Option<Origin>,
    pub(in crate::silver) merged: Merged,
}

impl Staged {
    pub(in crate::silver) fn new(silver: Table, replaces_all: bool, merged: Merged) -> Result<Self> {
        let view = silver.view(At::Head)?;
        Ok(Staged {
            silver,
            view,
            written: Vec::new(),
            doomed: Vec::new(),
            replaces_all,
            evolved: None,
            counts: Counts::default(),
            passed: Passed::default(),
            null_keys: 0,
            first_null_key: None,
            merged,
        })
    }

    pub(in crate::silver) fn changes_nothing(&self) -> bool {
        self.written.is_empty() && self.doomed.is_empty() && !self.replaces_all
    }

    /// The columns of the rows to be written.
    pub(in crate::silver) fn schema(&self) -> Result<SchemaRef> {
        Ok(match &self.evolved {
            Some(evolved) => evolved.arrow(self.silver.name())?,
            None => self.silver.schema()?,
        })
    }

    /// The table as it would be.
    pub(in crate::silver) async fn view_of_all(&self) -> Result<TableView> {
        if self.replaces_all {
            return Ok(self.view.of_staged(&self.written, self.evolved.as_ref())?);
        }
        Ok(self.view.with_staged(&self.doomed, &self.written, self.evolved.as_ref()).await?)
    }

    pub(in crate::silver) fn doom(&mut self, file: ScanFile, positions: RoaringTreemap) {
        match self.doomed.iter_mut().find(|(known, _)| known.path == file.path) {
            Some((_, known)) => *known |= positions,
            None if positions.is_empty() => {}
            None => self.doomed.push((file, positions)),
        }
    }
}

impl Run<'_> {
    /// Commits what was staged, and discards it when that is not to be.
    pub(in crate::silver) async fn commit(
        &self,
        staged: Staged,
        from: Option<String>,
        next: &Marker,
        mut findings: Vec<Finding>,
    ) -> Result<Outcome> {
        let Staged { silver, view, written, doomed, replaces_all, evolved, counts, passed, null_keys, .. } = staged;
        let rows_deleted = doomed.iter().map(|(_, positions)| positions.len()).sum();
        let rows_written = written.iter().map(WrittenFile::rows).sum();
        let mut all = written.clone();
        let columns = view.arrow_schema().fields().to_vec();
        let reader = |view: &TableView| RowReader::new(&self.session, view, columns.clone());
        let removal = match replaces_all {
            true => Ok(upkeep::Removal::default()),
            false => upkeep::remove(reader, self.engine.threads(), &silver, &view, doomed, &mut all).await,
        };
        let removal = match removal {
            Ok(removal) => removal,
            Err(error) => {
                silver.discard(&all).await;
                return Err(self.failed(error));
            }
        };
        let premise = Premise::new().marker_moves(MARKER, from, next.text()).rows_are_of(silver.snapshot_id());
        let change = match replaces_all {
            true => silver.change().replace_all(written),
            false => {
                let change = silver.change().row_delta(&view, written, removal.deletes);
                change.overwrite(&view, removal.remove, removal.add)
            }
        };
        // Versions are not rows that come, change and go.
        let notes = counts.notes().filter(|_| self.model.scd == Scd::One);
        let notes = notes.chain(quality_notes(&findings, &passed, null_keys));
        let change = notes.fold(change, |change, (name, count)| change.note(name, count));
        let change = match evolved {
            Some(evolved) => change.schema(evolved),
            None => change,
        };
        let definition = self.model.definition(self.side);
        let change = match definition.is_of(&silver) {
            true => change,
            false => change.set_property(definition::PROPERTY, definition.text()),
        };
        match change.premise(premise).commit().await {
            Ok(committed) => {
                findings.iter_mut().for_each(|finding| finding.snapshot_id = committed.snapshot_id);
                Ok(Outcome::Merged(SilverCommit {
                    table: silver.name().clone(),
                    snapshot_id: committed.snapshot_id,
                    bronze_snapshot_id: next.snapshot,
                    rows_written,
                    rows_deleted,
                    elapsed: self.started.elapsed(),
                    findings,
                    rows_quarantined: passed.quarantined + null_keys,
                    rows_dropped: passed.dropped,
                    null_keys,
                }))
            }
            Err(error) if error.is_premise_broken() => {
                silver.discard(&all).await;
                tracing::info!(table = %silver.name(), layer = "silver", %error, "yielded to another builder");
                Ok(Outcome::Yielded)
            }
            Err(error) => {
                if !matches!(error, crate::table::Error::Unresolved { .. }) {
                    silver.discard(&all).await;
                }
                Err(error.into())
            }
        }
    }

    /// Notes the events without a key and, for a quarantine, writes what they say.
    pub(super) async fn stage_keyless(
        &self,
        rows: Option<Rows>,
        (count, first): (u64, Option<Origin>),
        staged: &mut Option<Staged>,
    ) -> Result<()> {
        let Some(staged) = staged else { return Ok(()) };
        (staged.null_keys, staged.first_null_key) = (count, first);
        let Some(rows) = rows.filter(|rows| rows.len() > 0) else { return Ok(()) };
        let frame = self.model_over(rows).await?;
        let gate = self.gate(&frame).await?;
        let written = self.write_with(staged, frame, move |batch| Ok((gate.keyless(&batch)?, Passed::default())));
        let (files, _) = written.await?;
        staged.counts.inserted += files.iter().map(WrittenFile::rows).sum::<u64>();
        staged.written.extend(files);
        Ok(())
    }

    /// What was staged already, or room to stage rows of this schema.
    pub(in crate::silver) async fn staged<'s>(
        &self,
        staged: &'s mut Option<Staged>,
        silver: Option<Table>,
        rows: &Schema,
        base: Option<&Base>,
        merged: &Merged,
    ) -> Result<&'s mut Staged> {
        if let Some(staged) = staged {
            return Ok(staged);
        }
        let (table, evolved) = self.target(silver, rows).await?;
        let new = Staged::new(table, base.is_none(), merged.clone())?;
        Ok(staged.insert(Staged { evolved, ..new }))
    }

    /// The table to write to, with room for the rows. A rebuild changes its columns only in the commit that replaces the
    /// rows, and takes away those that the model does not give.
    pub(super) async fn target(&self, silver: Option<Table>, rows: &Schema) -> Result<(Table, Option<EvolvedSchema>)> {
        let Some(silver) = silver else {
            return Ok((self.lake.ensure(&table_definition(self.model, rows.clone())).await?, None));
        };
        let stored = silver.schema()?;
        let mut change = SchemaChange::to_fit(&stored, rows);
        if self.extent == Extent::Everything {
            for field in stored.fields().iter().filter(|field| rows.index_of(field.name()).is_err()) {
                match silver.evolve(&SchemaChange::new().drop_column(field.name())) {
                    Ok(_) => change = change.drop_column(field.name()),
                    Err(error) => tracing::warn!(
                        table = %self.model.table, layer = "silver", column = field.name(), %error,
                        "a column that the model does not give stays, and is null"
                    ),
                }
            }
            let evolved = silver.evolve(&change)?;
            return Ok((silver, evolved));
        }
        match silver.evolve(&change)? {
            Some(evolved) => Ok((silver.change().schema(evolved).commit().await?.table, None)),
            None => Ok((silver, None)),
        }
    }
}

/// What the rules said, for the snapshot's summary. Where none said anything, nothing is noted.
fn quality_notes(findings: &[Finding], passed: &Passed, null_keys: u64) -> impl Iterator<Item = (String, String)> {
    let counts =
        [("quarantined", passed.quarantined + null_keys), ("dropped", passed.dropped), ("null-key", null_keys)];
    let rows = counts.into_iter().filter(|(_, count)| *count > 0);
    let rows = rows.map(|(name, count)| (format!("icestream.rows-{name}"), count.to_string()));
    rows.chain(findings.iter().map(Finding::note).collect::<Vec<_>>())
}
