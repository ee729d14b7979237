//! What keys were before a run, told by the rows they have.
//!
//! A key whose last event lacks values (a placeholder, or a null that the model ignores), or deletes a row that stays as
//! it last was, needs to know what it was before. **Where no event of the run is before one that was merged, the row that
//! the key has tells**: a column that the model gives as it is holds the value of the source. Where it does not tell, the
//! key is folded from history: of a column that the model only computes something of, and of a key without a row, if
//! its row may have been left out by a rule or a WHERE, or if values count that were sent before it was deleted.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, FieldRef};

use super::events::{Had, Newest, Otherwise, Rows};
use super::fold::{self, Usage};
use super::order::Truncation;
use super::run::{Fate, Hits, Run};
use super::{IS_DELETED, OnDelete, Result, SilverModel};
use crate::table::TableView;

/// How a model's rows tell of the source's.
pub(super) struct Tells {
    /// For each column of the source, what the model calls it where it gives it as it is.
    given: Vec<Option<String>>,
    /// Whether the model reads the column at all.
    pub(super) reads: Vec<bool>,
    /// Where rows are marked as deleted, the column that says so, if that can be seen.
    deleted: Option<String>,
    /// Whether a key that is there may have no row.
    leaves_out: bool,
}

impl Tells {
    pub(super) fn of(model: &SilverModel, columns: &[FieldRef]) -> Self {
        let usage = model.sql.as_deref().map_or_else(|| Ok(Usage::of_everything()), fold::usage);
        // A model that cannot be read says so where it is planned.
        let usage = usage.unwrap_or_default();
        let given = columns.iter().map(|column| usage.given_as(column.name())).collect();
        let reads = columns.iter().map(|column| usage.reads(column.name())).collect();
        let is_removed = model.row_rules().any(|(rule, _)| rule.action.removes());
        // It is added to a SELECT that does not give it.
        let deleted = usage.given_as(IS_DELETED).or_else(|| (!usage.gives(IS_DELETED)).then(|| IS_DELETED.to_string()));
        Tells { given, reads, deleted, leaves_out: usage.filters || is_removed }
    }
}

impl Run<'_> {
    /// For each key whether its last event does not say everything.
    pub(super) fn wanting(&self, newest: &Newest, lacks_values: bool) -> Vec<bool> {
        let is_wanting = |number: usize| match newest.is_delete(number) {
            true => self.model.on_delete == OnDelete::Mark,
            false => lacks_values && newest.lacks_any(number, &self.columns) || newest.holds_ignored_null(number),
        };
        (0..newest.keys.len()).map(is_wanting).collect()
    }

    /// The rows of the keys that carry on from what they were. Where that cannot be told, their fate is another one.
    pub(super) async fn carry(
        &self,
        newest: &Arc<Newest>,
        fates: &mut [Fate],
        target: Option<&TableView>,
        truncation: Option<&Truncation>,
    ) -> Result<Option<Rows>> {
        if !fates.contains(&Fate::Carry) {
            return Ok(None);
        }
        let sorted: Vec<u32> =
            (0..).zip(&*fates).filter(|(_, fate)| **fate == Fate::Carry).map(|(number, _)| number).collect();
        let tells = Tells::of(self.model, &self.columns);
        let had = match target {
            Some(target) => self.had(newest, fates, target, &tells).await?,
            None => Some(Had::default()),
        };
        let Some(had) = had else {
            sorted.iter().for_each(|number| fates[*number as usize] = Fate::Fold);
            return Ok(None);
        };
        let carried = newest.carry(&sorted, &had, &tells.reads, truncation, &self.images());
        let carried = carried.map_err(|error| self.failed_arrow(error))?;
        carried.untold.iter().for_each(|number| fates[*number as usize] = Fate::Fold);
        carried.nothing.iter().for_each(|number| fates[*number as usize] = Fate::Leave);
        Ok(Some(carried.rows).filter(|rows| rows.len() > 0))
    }

    /// What the table says of the keys that carry on; `None` when it cannot say, or when that takes too much memory.
    async fn had(
        &self,
        newest: &Arc<Newest>,
        fates: &[Fate],
        target: &TableView,
        tells: &Tells,
    ) -> Result<Option<Had>> {
        let schema = target.arrow_schema();
        let is_of_type = |name: &str, data_type: &DataType| {
            schema.field_with_name(name).is_ok_and(|field| field.data_type() == data_type)
        };
        let marks = self.model.on_delete == OnDelete::Mark;
        let deleted = tells.deleted.as_deref().filter(|name| is_of_type(name, &DataType::Boolean));
        if marks && deleted.is_none() {
            return Ok(None);
        }
        let told = (0..self.columns.len()).filter_map(|at| {
            let name = tells.given[at].as_deref().filter(|_| tells.reads[at])?;
            let is_key = self.keys.contains(self.columns[at].name());
            (!is_key && is_of_type(name, self.columns[at].data_type())).then_some((at, name))
        });
        let told: Vec<(usize, &str)> = told.collect();
        let names: Vec<&str> = told.iter().map(|(_, name)| *name).chain(deleted.filter(|_| marks)).collect();
        let only: Vec<Fate> =
            fates.iter().map(|fate| if *fate == Fate::Carry { Fate::Carry } else { Fate::Leave }).collect();
        let mut had = Had {
            otherwise: if tells.leaves_out { Otherwise::Unknown } else { Otherwise::NotThere },
            columns: told.iter().map(|(at, _)| (*at, Vec::new())).collect(),
            ..Had::default()
        };
        let mut batch = 0;
        let keep = |found: &mut Vec<Hits>, hits| {
            found.push(hits);
            Ok(())
        };
        for (_, found) in self.probe(target, newest, &Arc::new(only), &names, keep).await? {
            for Hits { rows, with: columns } in found {
                let bytes = columns.iter().map(|column| column.get_array_memory_size()).sum::<usize>();
                if newest.hold_more(bytes + rows.len() * size_of::<(u32, (u32, u32))>()).is_err() {
                    return Ok(None);
                }
                let is_deleted = columns.get(told.len()).and_then(|column| column.as_boolean_opt());
                for (row, (_, number)) in rows.iter().enumerate() {
                    had.rows.insert(*number, (batch, row as u32));
                    if is_deleted.is_some_and(|is_deleted| is_deleted.is_valid(row) && is_deleted.value(row)) {
                        had.deleted.insert(*number);
                    }
                }
                for ((at, _), column) in told.iter().zip(columns) {
                    had.columns.entry(*at).or_default().push(column);
                }
                batch += 1;
            }
        }
        Ok(Some(had))
    }
}
