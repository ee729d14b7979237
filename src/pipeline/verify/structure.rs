//! What must hold of a table whatever it was made from: its files, its markers, and that its rows do not contradict each
//! other.

use arrow::array::RecordBatch;
use futures::TryStreamExt;

use super::report::{Check, Difference, Kind, Tally};
use super::rows::text_of;
use super::{Verifier, key_text};
use crate::engine::{self, register};
use crate::error::Result;
use crate::quality::quote;
use crate::silver::{self, Scd, SilverModel};
use crate::table::{At, Table};

/// Whether its files are there and as they are said to be. Gives whether its rows can be read, too.
pub(super) async fn files(verifier: &Verifier<'_>, table: &Table) -> Result<(Check, bool)> {
    let sound = table.soundness().await?;
    let mut tally = Tally::new("files", "files", verifier.options.show);
    tally.checked = sound.data_files + sound.delete_files;
    for fault in sound.faults {
        let kind = if fault.what == "file" { Kind::Missing } else { Kind::Differs };
        tally.add(Difference {
            column: Some(fault.what.to_string()),
            expected: Some(fault.expected),
            found: Some(fault.found),
            file: fault.file,
            ..Difference::new(kind)
        });
    }
    Ok((tally.finish(), sound.is_readable))
}

/// Whether what a snapshot says of itself and what the table's properties say is the same.
pub(super) fn markers(verifier: &Verifier<'_>, table: &Table) -> Check {
    let mut tally = Tally::new("markers", "markers", verifier.options.show);
    for places in table.marker_places() {
        let (Some(in_summary), Some(in_property)) = (places.in_summary, places.in_property) else { continue };
        tally.checked += 1;
        if in_summary != in_property {
            tally.add(Difference {
                column: Some(places.key),
                expected: Some(format!("as in the snapshot: {in_summary}")),
                found: Some(format!("as a property: {in_property}")),
                ..Difference::new(Kind::Differs)
            });
        }
    }
    tally.finish()
}

/// Whether each key has one row or, of a table of versions, one present row at most and versions that do not overlap.
pub(super) async fn keys(verifier: &Verifier<'_>, model: &SilverModel, table: &Table) -> Result<Option<Check>> {
    let Some(made) = silver::made_from(model, table)? else { return Ok(None) };
    let session = verifier.engine.session();
    register(&session, table.name(), table.view(At::Head)?)?;
    let keys: Vec<String> = made.keys.iter().map(|key| quote(key)).collect();
    let listed = keys.join(", ");
    // Events that have no value for a key are rows of a quarantine, each for itself.
    let keyed: Vec<String> = keys.iter().map(|key| format!("{key} IS NOT NULL")).collect();
    let (from, keyed) = (table.name(), keyed.join(" AND "));
    let mut tally;
    let sql = match model.scd {
        Scd::One => {
            tally = Tally::new("keys", "rows", verifier.options.show);
            format!("SELECT {listed}, count(*) AS n FROM {from} WHERE {keyed} GROUP BY {listed} HAVING count(*) > 1")
        }
        Scd::Two { .. } => {
            tally = Tally::new("versions", "rows", verifier.options.show);
            format!(
                "SELECT {listed}, _valid_from, _valid_to, _is_current, later, present FROM (SELECT {listed}, _valid_from, \
                 _valid_to, _is_current, lead(_valid_from) OVER (PARTITION BY {listed} ORDER BY _valid_from, _valid_to \
                 NULLS LAST) AS later, sum(CASE WHEN _is_current THEN 1 ELSE 0 END) OVER (PARTITION BY {listed}) AS \
                 present FROM {from} WHERE {keyed}) AS versions WHERE _valid_from IS NULL OR _valid_to < _valid_from OR \
                 _valid_to > later OR (_valid_to IS NULL AND later IS NOT NULL) OR _is_current IS DISTINCT FROM \
                 (_valid_to IS NULL) OR (_is_current AND present > 1)"
            )
        }
    };
    tally.checked = table.view(At::Head)?.amount().await?.rows;
    let mut rows = engine::query(&session, &format!("{sql} ORDER BY {listed}")).await?;
    while let Some(batch) = rows.try_next().await.map_err(engine::Error::from)? {
        for row in 0..batch.num_rows() {
            tally.add(match model.scd {
                Scd::One => doubled(&batch, row, keys.len()),
                Scd::Two { .. } => at_odds(&batch, row, keys.len()),
            });
        }
    }
    Ok(Some(tally.finish()))
}

fn key_of(batch: &RecordBatch, row: usize, width: usize) -> Option<String> {
    let schema = batch.schema();
    let cells = (0..width).map(|at| format!("{}={}", schema.field(at).name(), text_of(batch.column(at), row)));
    key_text(cells.collect::<Vec<_>>().join(", "))
}

fn doubled(batch: &RecordBatch, row: usize, width: usize) -> Difference {
    Difference {
        key: key_of(batch, row, width),
        expected: Some("one row".to_string()),
        found: Some(format!("{} rows", text_of(batch.column(width), row))),
        ..Difference::new(Kind::Doubled)
    }
}

fn at_odds(batch: &RecordBatch, row: usize, width: usize) -> Difference {
    let [from, to, is_current, later, present] = [0, 1, 2, 3, 4].map(|at| text_of(batch.column(width + at), row));
    let valid = format!("a version from {from} to {to}, _is_current={is_current}");
    let (kind, expected, found) = if is_current == "true" && present != "1" {
        (Kind::Doubled, "one present version".to_string(), format!("{present}, this one from {from}"))
    } else if is_current != (to == "null").to_string() {
        (Kind::Differs, "_is_current where there is no _valid_to, and only there".to_string(), valid)
    } else if later != "null" && (to == "null" || to > later) {
        (Kind::Differs, format!("an end by {later}, when the next version begins"), valid)
    } else {
        (Kind::Differs, "a beginning that is not after the end".to_string(), valid)
    };
    Difference { key: key_of(batch, row, width), expected: Some(expected), found: Some(found), ..Difference::new(kind) }
}
