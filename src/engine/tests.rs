//! The engine over small tables in a temporary folder.

mod columns;
mod deletes;
mod fixture;
mod plans;
mod rows;
mod sql;
