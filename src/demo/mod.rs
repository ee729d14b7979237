//! A shop that never was, for `icestream demo`: its change events and its truth.
//!
//! In comes a seed, a start time and a number of events; out come records as Debezium's PostgreSQL connector would
//! have sent them, one database transaction at a time, and what bronze, silver and gold must then hold.
//!
//! `run` sends them through the real stages and compares. Besides it nothing here knows Kafka, decoding, Iceberg or SQL: the truth is worked out from the shop's own rows in plain Rust,
//! so that it can disagree with the engine. What it does know are the sample project's models (`transforms/`,
//! `sql/gold/`), whose meaning `truth` states a second time.

mod connector;
mod rows;
pub mod run;
mod shop;
mod truth;

pub use connector::{Record, RecordKind};
pub use rows::Table;
pub use shop::{SPAN_US, Shop};
pub use truth::{Expected, GOLD, SILVER, Truth, TruthError, text_rows};

#[cfg(test)]
mod tests;
