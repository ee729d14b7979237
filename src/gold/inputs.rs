//! The tables that the models of one run read, each at one snapshot.

use std::collections::{BTreeMap, BTreeSet};

use super::{Error, GoldModel, Result};
use crate::engine;
use crate::ids::TableName;
use crate::table::{At, Lake, Table, TableView};

/// The tables that the models of one run read. Each is looked at once, so that all models see one state of it; what the
/// run itself makes is read as the run made it.
pub struct Inputs {
    lake: Lake,
    made_here: BTreeSet<TableName>,
    /// Tables that may not be there yet.
    awaited: BTreeSet<TableName>,
    /// Tables whose rows are not fit to be read.
    held_back: BTreeSet<TableName>,
    /// `None` for a table that is not there.
    views: BTreeMap<TableName, Option<TableView>>,
}

/// What a model can read of a table.
pub(super) enum Input<'a> {
    View(&'a TableView),
    /// The table may come to be later.
    Awaited,
    /// Its own model did not get through in this run.
    NotMade,
}

impl Inputs {
    /// Looks at everything that the models read and that is not made by one of them.
    ///
    /// A table that cannot be looked at now is asked for again by the model that reads it, and fails only that one.
    pub async fn pin(lake: &Lake, models: &[GoldModel], awaited: BTreeSet<TableName>) -> Inputs {
        let made_here: BTreeSet<TableName> = models.iter().map(|model| model.table.clone()).collect();
        let mut names = BTreeSet::new();
        for model in models {
            // What cannot be read is told when its turn comes, so that the other models are built.
            names.extend(engine::referenced_tables(&model.sql).unwrap_or_default());
        }
        let (held_back, views) = (BTreeSet::new(), BTreeMap::new());
        let mut inputs = Inputs { lake: lake.clone(), made_here, awaited, held_back, views };
        for name in names {
            if let Err(error) = inputs.look_at(&name).await {
                tracing::debug!(table = %name, %error, "could not be looked at");
            }
        }
        inputs
    }

    async fn look_at(&mut self, name: &TableName) -> Result<()> {
        if !self.made_here.contains(name) && !self.views.contains_key(name) {
            let view = self.lake.table_if_exists(name).await?.map(|table| table.view(At::Head)).transpose()?;
            self.views.insert(name.clone(), view);
        }
        Ok(())
    }

    /// From here on, no model reads the table.
    pub fn hold_back(&mut self, table: &TableName) {
        self.held_back.insert(table.clone());
    }

    pub(super) async fn input(&mut self, model: &GoldModel, name: &TableName) -> Result<Input<'_>> {
        if self.held_back.contains(name) {
            return Ok(Input::NotMade);
        }
        self.look_at(name).await?;
        match self.views.get(name) {
            Some(Some(view)) => Ok(Input::View(view)),
            None if self.made_here.contains(name) => Ok(Input::NotMade),
            _ if self.awaited.contains(name) => Ok(Input::Awaited),
            _ => Err(Error::InputMissing { table: model.table.clone(), input: name.clone() }),
        }
    }

    /// What this run made of a model's table, or left as it was because it is up to date.
    pub(super) fn made(&mut self, table: &Table) -> Result<()> {
        self.views.insert(table.name().clone(), Some(table.view(At::Head)?));
        Ok(())
    }

    /// The table is not there yet, and need not be.
    pub(super) fn still_awaited(&mut self, table: &TableName) {
        self.views.insert(table.clone(), None);
    }
}
