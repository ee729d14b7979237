//! Runs SQL over Iceberg tables inside one memory budget.
//!
//! In come [`TableView`](crate::table::TableView)s (a table at one snapshot: its files, their deletes and their
//! statistics) and SQL text; out go Arrow record batches. Every session is built here, on the one runtime that holds
//! the memory pool, the spill folder and the cache of Parquet footers.
//!
//! This folder does not know catalogs, manifests or metadata files; those end at `table::scan`.
//!
//! A scan goes: `provider` asks the view for the files a filter can match (`prune`) and for their deleted rows, and plans
//! one `DataSourceExec` over `source`. When a file is opened, a file that is read as it is goes to DataFusion's own
//! Parquet opener, and one with deleted rows, whose row positions are asked for, or of which others have a `share`, to
//! `position_scan`. Both read bytes through `data_file` and map the file's columns to the table's by field id through
//! `columns`. Who has to go through files row by row, without a query, uses `row_reader`, which takes single rows out of
//! pages by `pick`; who would go through them again and again puts them into `parts` first. `judge` asks conditions of rows
//! as they pass by.

pub mod error;
pub mod provider;
pub mod query;
pub mod session;
pub mod trino;

mod columns;
mod data_file;
mod judge;
mod literals;
mod parts;
mod pick;
mod position_scan;
mod prune;
mod row_reader;
mod share;
mod source;

#[cfg(test)]
mod tests;

pub use error::{Error, Result};
pub(crate) use judge::{Condition, Judge, unknown_column};
pub(crate) use parts::{PartReader, Parts, PartsFolder};
pub use provider::{FILE_COLUMN, IcebergTableProvider, POSITION_COLUMN};
pub use query::{plan, query, referenced_tables};
pub(crate) use row_reader::{Piece, RowReader, as_it_comes, in_parallel, pieces, struct_with};
pub use session::{Engine, EngineOptions, register, register_empty};
