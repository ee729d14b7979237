//! icestream: change events from Kafka to Iceberg bronze, silver and gold tables, exactly once.

pub mod error;

pub mod change;
pub mod clock;
pub mod ids;
pub mod offsets;
pub mod row;

pub mod table;

pub mod demo;
