//! What can go wrong between a text of SQL and its rows.

use std::error::Error as StdError;
use std::io::ErrorKind;
use std::path::PathBuf;

use datafusion::common::SchemaError;
use datafusion::error::DataFusionError;
use datafusion::sql::sqlparser::parser::ParserError;

use crate::error::{Kind, Situation};
use crate::ids::TableName;
use crate::table;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the SQL has a mistake{}: {problem}", at(.position))]
    Syntax {
        /// Line and column, from 1.
        position: Option<(u64, u64)>,
        problem: String,
    },

    #[error("there is no SQL to run")]
    Empty,

    #[error("one query at a time: the text holds {count} statements")]
    SeveralStatements { count: usize },

    #[error("`{statement}` is not a query: only SELECT, WITH, VALUES and EXPLAIN can be run here")]
    NotAQuery { statement: String },

    #[error("`{name}` does not name a table: write `namespace.table`")]
    NotATableName { name: String },

    #[error("there is no table `{table}`")]
    UnknownTable { table: String, nearest: Option<String> },

    #[error("there is no column `{column}`")]
    UnknownColumn { column: String, nearest: Option<String>, known: Vec<String> },

    #[error("the column `{column}` is in more than one of the tables")]
    AmbiguousColumn { column: String },

    /// Well formed, but it makes no sense: types, functions, arguments.
    #[error("the query cannot be planned: {problem}")]
    Unplannable { problem: String },

    #[error("the query asks for something that is not supported: {problem}")]
    Unsupported { problem: String },

    /// A value that the query cannot take: a cast that fails, an overflow, a division by zero.
    #[error("the query failed on its data: {problem}")]
    Data { problem: String },

    #[error("the query needs more memory than the budget has left: {problem}")]
    OutOfMemory { problem: String },

    #[error("the query needs more room for spilled data than there is: {problem}")]
    OutOfDisk { problem: String },

    #[error("the spill folder `{path}` cannot be used", path = .path.display())]
    SpillDirectory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error(transparent)]
    Table(#[from] table::error::Error),

    #[error("a data file is missing: {problem}")]
    FileMissing { problem: String },

    #[error("a data file cannot be read: {problem}")]
    FileCorrupt { problem: String },

    #[error("the query engine failed: {problem}")]
    Internal { problem: String },
}

fn at(position: &Option<(u64, u64)>) -> String {
    position.map_or_else(String::new, |(line, column)| format!(" at line {line}, column {column}"))
}

impl Error {
    /// For a name that the catalog does not know, with the nearest of those it does.
    pub fn unknown_table<'a>(table: &TableName, known: impl IntoIterator<Item = &'a TableName>) -> Self {
        let table = table.to_string();
        let nearest = nearest(&table, known.into_iter().map(TableName::to_string));
        Error::UnknownTable { table, nearest }
    }

    /// Tells what a DataFusion error means to the one who wrote the query.
    pub(crate) fn from_datafusion(error: DataFusionError) -> Self {
        // Our own errors travel through DataFusion unharmed.
        if let Some(table) = find::<table::error::Error>(&error) {
            return Error::Table(table.clone());
        }
        if let Some(store) = find::<object_store::Error>(&error) {
            let files = "the storage of the data files";
            return match store {
                object_store::Error::NotFound { .. } => Error::FileMissing { problem: first_line(store) },
                object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                    Error::Table(table::error::Error::denied(files, error))
                }
                _ => Error::Table(table::error::Error::unreachable(files, error)),
            };
        }
        // Writers of spilled data have it under errors of Arrow.
        let is_full =
            |error: &&std::io::Error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        if let Some(full) = find::<std::io::Error>(&error).filter(is_full) {
            return Error::OutOfDisk { problem: first_line(full) };
        }
        match error.find_root() {
            DataFusionError::SQL(error, _) => syntax(error),
            DataFusionError::SchemaError(error, _) => schema(error),
            DataFusionError::Plan(problem) => Error::Unplannable { problem: lower_first(problem) },
            DataFusionError::NotImplemented(problem) => Error::Unsupported { problem: lower_first(problem) },
            DataFusionError::Configuration(problem) => Error::Unplannable { problem: lower_first(problem) },
            DataFusionError::ResourcesExhausted(problem) if problem.contains("max_temp_directory_size") => {
                Error::OutOfDisk { problem: lower_first(problem) }
            }
            DataFusionError::ResourcesExhausted(problem) => Error::OutOfMemory { problem: holders(problem) },
            DataFusionError::ParquetError(error) => Error::FileCorrupt { problem: first_line(error) },
            DataFusionError::ArrowError(error, _) => Error::Data { problem: lower_first(&first_line(error)) },
            DataFusionError::Execution(problem) => Error::Data { problem: lower_first(problem) },
            other => Error::Internal { problem: first_line(other) },
        }
    }
}

impl From<DataFusionError> for Error {
    fn from(error: DataFusionError) -> Self {
        Error::from_datafusion(error)
    }
}

/// Looks for an error of a type in a chain, through the wrappers that hide their content from `source`.
fn find<E: StdError + 'static>(error: &DataFusionError) -> Option<&E> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = match error.downcast_ref::<parquet::errors::ParquetError>() {
            Some(parquet::errors::ParquetError::External(inner)) => Some(inner.as_ref()),
            _ => match error.downcast_ref::<arrow::error::ArrowError>() {
                Some(arrow::error::ArrowError::ExternalError(inner)) => Some(inner.as_ref()),
                _ => error.source(),
            },
        };
    }
    None
}

fn syntax(error: &ParserError) -> Error {
    let text = match error {
        ParserError::TokenizerError(text) | ParserError::ParserError(text) => text,
        ParserError::RecursionLimitExceeded => "it is nested too deeply",
    };
    // "Expected: end of statement, found: x at Line: 1, Column: 8"
    let text =
        text.replace("Expected: ", "expected ").replace(", found: ", ", found ").replace("found EOF", "found the end");
    let Some((problem, place)) = text.rsplit_once(" at Line: ") else {
        return Error::Syntax { position: None, problem: lower_first(&text) };
    };
    let mut numbers = place.split(", Column: ").map(|number| number.trim().parse().ok());
    let position = match (numbers.next(), numbers.next()) {
        (Some(Some(line)), Some(Some(column))) => Some((line, column)),
        _ => None,
    };
    Error::Syntax { position, problem: lower_first(problem) }
}

fn schema(error: &SchemaError) -> Error {
    match error {
        SchemaError::FieldNotFound { field, valid_fields } => {
            let known: Vec<String> = valid_fields.iter().map(|column| column.name.clone()).collect();
            let nearest = nearest(&field.name, known.iter().cloned());
            Error::UnknownColumn { column: field.name.clone(), nearest, known }
        }
        SchemaError::AmbiguousReference { field } => Error::AmbiguousColumn { column: field.name.clone() },
        other => Error::Unplannable { problem: lower_first(&first_line(other)) },
    }
}

/// The closest of the known names, if it is close enough to be meant.
pub(crate) fn nearest(name: &str, known: impl IntoIterator<Item = String>) -> Option<String> {
    let within = (name.chars().count() / 3).max(1);
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, &candidate), candidate))
        .filter(|(distance, _)| *distance <= within)
        .min()
        .map(|(_, candidate)| candidate)
}

fn first_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().trim().to_string()
}

/// A message of DataFusion's in our way: one line, lower case, no full stop.
fn lower_first(text: &str) -> String {
    let lines = text.lines().map(|line| line.trim().trim_end_matches('.')).filter(|line| !line.is_empty());
    let lower = |line: &str| {
        let mut chars = line.chars();
        match (chars.next(), chars.clone().next()) {
            // An abbreviation or a name in capitals stays as it is.
            (Some(first), Some(second)) if first.is_uppercase() && second.is_lowercase() => {
                first.to_lowercase().chain(chars).collect()
            }
            _ => line.to_string(),
        }
    };
    lines.map(lower).collect::<Vec<_>>().join("; ")
}

/// DataFusion explains itself over many lines; what helps is who held how much and who wanted more.
fn holders(problem: &str) -> String {
    let mut lines = problem.lines().map(str::trim).filter(|line| !line.is_empty());
    let wanted = problem.lines().last().and_then(|line| line.split_once("Error: ")).map(|(_, wanted)| wanted.trim());
    let first = lines.next().unwrap_or_default().to_string();
    lower_first(wanted.unwrap_or(&first))
}

impl Situation for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Syntax { .. }
            | Error::Empty
            | Error::SeveralStatements { .. }
            | Error::NotAQuery { .. }
            | Error::NotATableName { .. }
            | Error::UnknownTable { .. }
            | Error::UnknownColumn { .. }
            | Error::AmbiguousColumn { .. }
            | Error::Unplannable { .. }
            | Error::Unsupported { .. }
            | Error::Data { .. } => Kind::Input,
            Error::OutOfMemory { .. } | Error::OutOfDisk { .. } | Error::SpillDirectory { .. } => Kind::Config,
            Error::Table(error) => error.kind(),
            Error::FileMissing { .. } | Error::FileCorrupt { .. } => Kind::Corrupt,
            Error::Internal { .. } => Kind::Bug,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::UnknownTable { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            Error::UnknownTable { nearest: None, .. } => "`icestream tables` lists the tables there are".to_string(),
            Error::UnknownColumn { nearest: Some(nearest), .. } => format!("did you mean `{nearest}`?"),
            Error::UnknownColumn { nearest: None, known, .. } if !known.is_empty() => {
                let names: Vec<String> = known.iter().map(|name| format!("`{name}`")).collect();
                format!("the columns are {}", names.join(", "))
            }
            Error::AmbiguousColumn { .. } => "write the table's name or alias before it".to_string(),
            Error::NotAQuery { .. } => "tables change through `icestream` commands only".to_string(),
            Error::OutOfMemory { .. } => {
                "raise `memory` in the configuration, or read fewer rows and columns at once".to_string()
            }
            Error::OutOfDisk { .. } => "make room in the spill folder, or read fewer rows at once".to_string(),
            Error::SpillDirectory { .. } => "name a folder that this process may write to".to_string(),
            Error::FileMissing { .. } => {
                "a snapshot needs the files it names; use a newer snapshot, or restore the file".to_string()
            }
            Error::Table(error) => return error.hint(),
            _ => return None,
        };
        Some(hint)
    }

    fn state(&self) -> Option<String> {
        match self {
            Error::Table(error) => error.state(),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_store_is_found_under_its_wrappers() {
        let check = |store: object_store::Error, kind: Kind| {
            let parquet = parquet::errors::ParquetError::External(Box::new(store));
            let error = DataFusionError::ParquetError(Box::new(parquet)).context("reading");
            let error = DataFusionError::Shared(std::sync::Arc::new(error));
            assert_eq!(Error::from(error).kind(), kind);
        };
        let source = || "no".into();
        check(object_store::Error::NotFound { path: "a".to_string(), source: source() }, Kind::Corrupt);
        check(object_store::Error::PermissionDenied { path: "a".to_string(), source: source() }, Kind::Config);
        check(object_store::Error::Generic { store: "S3", source: source() }, Kind::Unavailable);
        let full = std::io::Error::from(ErrorKind::StorageFull);
        let full = arrow::error::ArrowError::IoError("cannot write".to_string(), full);
        assert!(matches!(Error::from(DataFusionError::from(full)), Error::OutOfDisk { .. }));
        let table = table::error::Error::Contention { table: "a.b".parse().unwrap(), attempts: 2 };
        let error = DataFusionError::External(Box::new(table)).context("planning");
        assert_eq!(Error::from(error).kind(), Kind::Conflict);
    }
}
