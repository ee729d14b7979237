use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::LazyLock;

use super::check::Written;
use super::problem::{Problem, nearest, quoted};
use super::quantity::Percent;
use super::settings::TableSettings;
use crate::evolution::{Evolution, UNEXPECTED};
use crate::ids::check_part;
use crate::layout;
use crate::row::{Column, ColumnType, RowShape};

/// What `catalog/<table>.yaml` says about one captured table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableConfig {
    /// The table's name in each layer; the file's name.
    pub name: String,
    /// The topic that carries it; `None` for the one whose last part is the table's name.
    pub topic: Option<String>,
    /// The columns that identify a row; empty for the fields of the message key.
    pub key: Vec<String>,
    /// The captured columns; `None` where they are not declared.
    pub shape: Option<RowShape>,
    pub partition: Vec<PartitionField>,
    /// What is done with records whose columns are others.
    pub evolution: Evolution,
    /// The share of rejected records above which the table is stopped; `None` where the project's applies.
    pub stop_above: Option<Percent>,
    /// Iceberg table properties for a new table.
    pub properties: BTreeMap<String, String>,
    pub file: PathBuf,
}

/// One field of a bronze table's partition spec.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PartitionField {
    /// The column as bronze names it: one of its own, or `after.<column>` for a declared one.
    pub column: String,
    pub transform: Transform,
}

/// Iceberg's partition transforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transform {
    Identity,
    Year,
    Month,
    Day,
    Hour,
    Bucket(u32),
    Truncate(u32),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    #[error("`{text}` is not a partition; write `column`, {TRANSFORMS}")]
    Partition { text: String },
    #[error("`{text}`: there is no transform `{transform}`; write `column`, {TRANSFORMS}")]
    Transform { text: String, transform: String },
    #[error("`{text}`: `{transform}` needs a number from 1 up and a column, such as `{transform}(16, id)`")]
    Width { text: String, transform: String },
}

const TRANSFORMS: &str = "`year(column)`, `month(column)`, `day(column)`, `hour(column)`, `bucket(N, column)` or \
                          `truncate(N, column)`";

/// The columns every bronze table has besides the captured row, with the types one can partition by.
static BRONZE_COLUMNS: LazyLock<Vec<(String, Option<ColumnType>)>> = LazyLock::new(|| {
    let schema = layout::bronze_schema(None);
    let own = schema.fields().iter().filter(|field| ![layout::BEFORE, layout::AFTER].contains(&field.name().as_str()));
    own.map(|field| (field.name().clone(), ColumnType::from_arrow(field.data_type()))).collect()
});

impl PartitionField {
    fn is_time(&self) -> bool {
        matches!(self.transform, Transform::Year | Transform::Month | Transform::Day | Transform::Hour)
    }
}

impl Transform {
    fn takes(self, column: ColumnType) -> bool {
        use ColumnType::*;
        match self {
            Transform::Identity => true,
            Transform::Year | Transform::Month | Transform::Day => matches!(column, Date | Timestamp | Timestamptz),
            Transform::Hour => matches!(column, Timestamp | Timestamptz),
            Transform::Bucket(_) => !matches!(column, Boolean | Float | Double),
            Transform::Truncate(_) => matches!(column, Int | Long | Decimal { .. } | String | Binary),
        }
    }
}

impl FromStr for PartitionField {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let refused = || FieldError::Partition { text: text.to_string() };
        let Some((name, arguments)) = text.trim().split_once('(') else {
            let column = column(text).ok_or_else(refused)?;
            return Ok(PartitionField { column, transform: Transform::Identity });
        };
        let name = name.trim();
        let arguments = arguments.trim_end().strip_suffix(')').ok_or_else(refused)?;
        if name == "bucket" || name == "truncate" {
            let refused = || FieldError::Width { text: text.to_string(), transform: name.to_string() };
            let (width, of) = arguments.split_once(',').ok_or_else(refused)?;
            // Iceberg stores the width as a signed 32-bit number.
            let width = width.trim().parse::<i32>().ok().filter(|width| *width > 0).ok_or_else(refused)? as u32;
            let transform = if name == "bucket" { Transform::Bucket(width) } else { Transform::Truncate(width) };
            return Ok(PartitionField { column: column(of).ok_or_else(refused)?, transform });
        }
        let transform = match name {
            "identity" => Transform::Identity,
            "year" => Transform::Year,
            "month" => Transform::Month,
            "day" => Transform::Day,
            "hour" => Transform::Hour,
            _ => return Err(FieldError::Transform { text: text.to_string(), transform: name.to_string() }),
        };
        Ok(PartitionField { column: column(arguments).ok_or_else(refused)?, transform })
    }
}

fn column(text: &str) -> Option<String> {
    let name = text.trim();
    check_part(name).is_ok().then(|| name.to_string())
}

/// As `table::TableDefinition` takes it.
impl fmt::Display for PartitionField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let column = &self.column;
        match self.transform {
            Transform::Identity => f.write_str(column),
            Transform::Year => write!(f, "year({column})"),
            Transform::Month => write!(f, "month({column})"),
            Transform::Day => write!(f, "day({column})"),
            Transform::Hour => write!(f, "hour({column})"),
            Transform::Bucket(width) => write!(f, "bucket({width}, {column})"),
            Transform::Truncate(width) => write!(f, "truncate({width}, {column})"),
        }
    }
}

/// Makes sense of a table's file, or says what in it does not.
pub(super) fn resolve(
    name: &str,
    file: PathBuf,
    written: &Written<TableSettings>,
    default: Evolution,
) -> Result<TableConfig, Vec<Problem>> {
    let settings = &written.settings;
    let mut problems = Vec::new();
    let shape = shape(written, &mut problems);
    // What else is wrong with a broken set of columns would only follow from it.
    if !problems.is_empty() {
        return Err(problems);
    }
    let declared = |name: &str| shape.as_ref().is_none_or(|shape| shape.columns.iter().any(|c| c.name == name));
    for (index, key) in settings.key.iter().enumerate() {
        if !declared(key) {
            let names = shape.iter().flat_map(|shape| shape.columns.iter().map(|c| c.name.as_str()));
            let message = no_column(key, "declared", names);
            problems.push(written.problem(&format!("key[{index}]"), message));
        }
    }
    let evolution = match (settings.evolution, default) {
        (Some(Evolution::Json), _) if shape.is_some() => {
            let message = "`json` keeps rows as text, and `columns` are declared; leave one of them out";
            problems.push(written.problem("evolution", message));
            Evolution::Json
        }
        (Some(own), _) => own,
        (None, Evolution::Json) if shape.is_some() => Evolution::Evolve,
        (None, default) => default,
    };
    let partition: Vec<PartitionField> = settings.partition.iter().filter_map(|text| text.parse().ok()).collect();
    for (index, field) in partition.iter().enumerate() {
        let path = format!("partition[{index}]");
        let before = &partition[..index];
        match type_of(&field.column, shape.as_ref()) {
            Err(message) => problems.push(written.problem(&path, message)),
            Ok(column_type) if !field.transform.takes(column_type) => {
                let message = format!(
                    "`{field}`: `{}` has the type {column_type}, which this transform does not take",
                    field.column
                );
                problems.push(written.problem(&path, message));
            }
            Ok(_) if before.contains(field) => {
                problems.push(written.problem(&path, format!("`{field}` is there already")))
            }
            Ok(_) => {
                let other = before.iter().find(|b| b.column == field.column && b.is_time() && field.is_time());
                if let Some(other) = other {
                    let message = format!("`{field}` and `{other}` are both times of one column; keep the finer one");
                    problems.push(written.problem(&path, message));
                }
            }
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let in_bronze = |column: String| match BRONZE_COLUMNS.iter().any(|(own, _)| *own == column) {
        true => column,
        false => format!("after.{column}"),
    };
    let partition =
        partition.into_iter().map(|field| PartitionField { column: in_bronze(field.column), ..field }).collect();
    Ok(TableConfig {
        name: name.to_string(),
        topic: settings.topic.clone(),
        key: settings.key.clone(),
        shape,
        partition,
        evolution,
        stop_above: settings.rejects.stop_above,
        properties: settings.properties.clone(),
        file,
    })
}

fn shape(written: &Written<TableSettings>, problems: &mut Vec<Problem>) -> Option<RowShape> {
    let mut seen = BTreeSet::new();
    let mut columns = Vec::new();
    for (index, entry) in written.settings.columns.iter().enumerate() {
        let path = format!("columns[{index}]");
        if is_own(&entry.name) {
            let message = format!("`{}` is the name of a column of icestream's own", entry.name);
            problems.push(written.problem(&format!("{path}.name"), message));
        } else if !seen.insert(entry.name.as_str()) {
            problems.push(written.problem(&format!("{path}.name"), format!("`{}` is there already", entry.name)));
        }
        let column = entry.column_type.parse().and_then(|column_type| {
            let encoding = entry.encoding.as_deref().map(str::parse).transpose()?;
            Column::new(&entry.name, column_type, encoding)
        });
        match column {
            Ok(column) => columns.push(Column { doc: entry.doc.clone(), ..column }),
            Err(error) => problems.push(written.problem(&format!("{path}.encoding"), error.to_string())),
        }
    }
    if columns.is_empty() { None } else { Some(RowShape { columns }) }
}

/// Whether icestream itself gives this name to a column.
fn is_own(name: &str) -> bool {
    layout::is_own_name(name) || name == UNEXPECTED
}

fn type_of(name: &str, shape: Option<&RowShape>) -> Result<ColumnType, String> {
    let bronze = BRONZE_COLUMNS.iter().filter_map(|(own, column_type)| Some((own.as_str(), (*column_type)?)));
    if let Some((_, column_type)) = bronze.clone().find(|(own, _)| *own == name) {
        return Ok(column_type);
    }
    let columns = shape.map(|shape| shape.columns.as_slice()).unwrap_or_default();
    match columns.iter().find(|column| column.name == name) {
        Some(column) => Ok(column.column_type),
        None => {
            let own = bronze.map(|(own, _)| own);
            Err(no_column(name, "bronze or declared", columns.iter().map(|c| c.name.as_str()).chain(own)))
        }
    }
}

fn no_column<'a>(name: &str, which: &str, names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match nearest(name, names.iter().copied()) {
        Some(near) => format!("there is no {which} column `{name}`; did you mean `{near}`?"),
        None => format!("there is no {which} column `{name}`; there are {}", quoted(names)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_reads_back_from_its_own_text() {
        for text in
            ["region", "year(d)", "month(d)", "day(_ingested_at)", "hour(d)", "bucket(16, id)", "truncate(4, name)"]
        {
            assert_eq!(text.parse::<PartitionField>().unwrap().to_string(), text);
        }
        assert_eq!("identity( region )".parse::<PartitionField>().unwrap().to_string(), "region");
        for bad in ["", "day()", "day(a", "days(a)", "bucket(id)", "bucket(0, id)", "bucket(-1,id)", "Region", "a b"] {
            assert!(bad.parse::<PartitionField>().is_err(), "{bad} should be refused");
        }
    }
}
