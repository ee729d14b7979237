//! icestream: change events from Kafka to Iceberg bronze, silver and gold tables, exactly once.
//!
//! The way of the data: `source` → `decode` → `batch` → `bronze` → `silver` → `gold`, wired by `pipeline`. Stages do not
//! import each other; they share the vocabulary of the first group below, and `table`, which alone writes Iceberg.
//! `src/README.md` is the map.

pub mod error;

pub mod amendment;
pub mod aws;
pub mod backfilled;
pub mod change;
pub mod clock;
pub mod definition;
pub mod evolution;
pub mod fingerprint;
pub mod ids;
mod json;
pub mod layout;
pub mod memory;
pub mod offsets;
pub mod placeholder;
pub mod quality;
pub mod row;
#[cfg(test)]
mod scripted_server;

pub mod table;

pub mod engine;

pub mod source;

pub mod decode;

pub mod batch;

pub mod bronze;

pub mod silver;

pub mod gold;

pub mod pipeline;

pub mod metrics;

pub mod discover;

pub mod cli;
pub mod config;
pub mod telemetry;

pub mod demo;
