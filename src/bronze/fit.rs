//! A batch's rows under the columns that their table has by now.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, StringArray, StructArray};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;

use super::{Result, evolved, form};
use crate::evolution::{ColumnChange, Evolution, Form};
use crate::layout;
use crate::table::{EvolvedSchema, Table};

/// What it takes to have rows of one layout in a table.
pub(super) struct Fit {
    /// What columns of the rows are called in the table, where that differs. Names part where two owners made columns at
    /// once: both took the next number that was free.
    names: HashMap<String, String>,
    /// The schema that is committed with them.
    pub(super) evolved: Option<EvolvedSchema>,
    pub(super) changes: Vec<ColumnChange>,
}

impl Fit {
    /// `None` when the rows have to be read in another way.
    pub(super) fn of(table: &Table, layout: SchemaRef, evolution: Evolution) -> Result<Option<Self>> {
        let laid_out = Form::of_table(layout.fields(), |_| false);
        let mut fit = Fit { names: HashMap::new(), evolved: None, changes: Vec::new() };
        let wanted = match (form(table)?, laid_out) {
            (form, Form::Open) | (form @ Form::Text, Form::Text) => form,
            (Form::Open, laid_out) => laid_out,
            (Form::Columns(columns), Form::Columns(laid_out)) => {
                let merged = columns.merge(&laid_out);
                // The rows were held against what the table was; what it is now has to be asked for each of them.
                if evolution == Evolution::Strict && !merged.changes.is_empty() {
                    return Ok(None);
                }
                let names = laid_out.iter().zip(&merged.places);
                let names = names.map(|(column, place)| (column.name.clone(), merged.columns[*place].name.clone()));
                fit.names = names.filter(|(old, new)| old != new).collect();
                fit.changes = merged.changes;
                Form::Columns(merged.columns)
            }
            (Form::Text, Form::Columns(_)) | (Form::Columns(_), Form::Text) => return Ok(None),
        };
        fit.evolved = evolved(table, &layout::bronze_schema_with(wanted.data_type()))?;
        Ok(Some(fit))
    }

    /// The rows with the columns of their images, and what says which of them was not sent, called as the table does.
    pub(super) fn laid_out(&self, rows: &RecordBatch) -> std::result::Result<RecordBatch, ArrowError> {
        if self.names.is_empty() {
            return Ok(rows.clone());
        }
        let names: HashMap<&str, &str> = self.names.iter().map(|(old, new)| (old.as_str(), new.as_str())).collect();
        let mut fields: Vec<Arc<Field>> = Vec::new();
        let mut columns: Vec<ArrayRef> = Vec::new();
        for (field, column) in rows.schema_ref().fields().iter().zip(rows.columns()) {
            let column = match field.name().as_str() {
                layout::BEFORE | layout::AFTER => renamed_image(column.as_struct(), &names)?,
                layout::UNAVAILABLE => renamed_list(column.as_list(), &names)?,
                _ => column.clone(),
            };
            fields.push(Arc::new(field.as_ref().clone().with_data_type(column.data_type().clone())));
            columns.push(column);
        }
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
    }
}

fn renamed_image(image: &StructArray, names: &HashMap<&str, &str>) -> std::result::Result<ArrayRef, ArrowError> {
    let DataType::Struct(fields) = image.data_type() else { return Ok(Arc::new(image.clone())) };
    let fields: Fields = fields
        .iter()
        .map(|field| match names.get(field.name().as_str()) {
            Some(name) => Arc::new(field.as_ref().clone().with_name(*name)),
            None => field.clone(),
        })
        .collect();
    Ok(Arc::new(StructArray::try_new(fields, image.columns().to_vec(), image.nulls().cloned())?))
}

fn renamed_list(list: &ListArray, names: &HashMap<&str, &str>) -> std::result::Result<ArrayRef, ArrowError> {
    let before = format!("{}.", layout::BEFORE);
    let renamed = list.values().as_string::<i32>().iter().flatten().map(|name| {
        let (prefix, bare) = match name.strip_prefix(&before) {
            Some(bare) if !names.contains_key(name) => (before.as_str(), bare),
            _ => ("", name),
        };
        format!("{prefix}{}", names.get(bare).unwrap_or(&bare))
    });
    let values: StringArray = renamed.map(Some).collect();
    let element = layout::unavailable_element();
    Ok(Arc::new(ListArray::try_new(element, list.offsets().clone(), Arc::new(values), list.nulls().cloned())?))
}
