//! Change events into Arrow batches.
//!
//! In: what `decode/` made of each record, and what the table's row images are, as far as that is known. Out: a
//! [`ChangeBatch`](crate::change::ChangeBatch): bronze rows, the range of offsets they stand for in each partition, and
//! counts. A row image goes from its JSON text straight into column builders; those of records that are written alike go
//! there together, one column after the other (`block.rs`).
//!
//! **A row is written whole or not at all**: an image with a value that its column does not hold exactly becomes a
//! rejected row that keeps the record's bytes. **Columns only grow**: records of other columns make the batch wider, rows
//! before them get nulls there, and rows of older columns go into what there is (`plan.rs`, by `crate::evolution`). A
//! field that no column is known for is kept as JSON beside the columns, or rejects the row where the table is strict.
//! **Every offset pushed is in the range**, whether
//! its record became a row or was consumed.
//!
//! It does not know the Kafka client, the formats of records, or Iceberg.

mod base64;
mod block;
mod builder;
mod decimal;
mod error;
mod image;
mod iso;
mod plan;
mod rows;
#[cfg(test)]
mod tests;
mod value;

pub use block::ROWS as BLOCK_ROWS;
pub use builder::ChangeBatchBuilder;
pub use error::{Error, Result};
