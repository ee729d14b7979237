//! Who goes on from a table's snapshots: silver from bronze, gold from what its models read.

use std::collections::BTreeSet;

use crate::engine;
use crate::error::Result;
use crate::pipeline::Models;
use crate::table::{Lake, Table};
use crate::{gold, silver};

/// How far the readers of a table have read it.
#[derive(Debug, Default)]
pub(super) struct Readers {
    /// The snapshots that their markers name. Without them the next build computes everything anew.
    pub(super) snapshots: BTreeSet<i64>,
    /// The commits up to which those have read that read by age, as sequence numbers.
    pub(super) read_up_to: Vec<i64>,
}

impl Readers {
    /// Asks every model of the project that reads the table.
    pub(super) async fn of(lake: &Lake, models: &Models, table: &Table) -> Result<Readers> {
        let mut readers = Readers::default();
        for model in models.silver.iter().filter(|model| model.from == *table.name()) {
            for name in [model.table.clone(), model.quarantine()] {
                let Some(silver) = lake.table_if_exists(&name).await? else { continue };
                // One that merged another table under this name folds everything, whatever is kept.
                let merged = silver::progress(&silver)?.filter(|merged| merged.bronze == table.uuid());
                readers.snapshots.extend(merged.map(|merged| merged.snapshot_id));
                readers.read_up_to.extend(merged.map(|merged| merged.sequence));
            }
        }
        for model in &models.gold {
            // What cannot be read as SQL is told by `check` and `build`.
            if !engine::referenced_tables(&model.sql).is_ok_and(|inputs| inputs.contains(table.name())) {
                continue;
            }
            let Some(made) = lake.table_if_exists(&model.table).await? else { continue };
            let inputs = gold::inputs(&made).unwrap_or_default();
            let known = inputs.get(&table.name().to_string());
            readers.snapshots.extend(known.into_iter().flat_map(|snapshot| table.compared_since(*snapshot)));
        }
        Ok(readers)
    }
}
