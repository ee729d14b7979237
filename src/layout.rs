//! The columns of every bronze table: their names, order and Arrow types.
//!
//! `batch/` builds rows in them, `bronze/` creates tables with them and `silver/` reads them; this file is what they
//! agree on.

use std::sync::{Arc, LazyLock};

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

use crate::evolution::TableColumns;
use crate::row::RowShape;

pub const TOPIC: &str = "_topic";
/// Not `_partition`: Iceberg keeps that name for itself, and Spark refuses a table that has it.
pub const PARTITION: &str = "_topic_partition";
pub const OFFSET: &str = "_offset";
/// The broker's time of the record.
pub const TIMESTAMP: &str = "_timestamp";
/// Our time of the batch.
pub const INGESTED_AT: &str = "_ingested_at";
pub const KEY: &str = "_key";
pub const OP: &str = "_op";
pub const SOURCE_TS: &str = "_source_ts";
pub const POSITION: &str = "_position";
pub const EPOCH: &str = "_epoch";
pub const TX_ID: &str = "_tx_id";
pub const SOURCE: &str = "_source";
pub const BEFORE: &str = "before";
pub const AFTER: &str = "after";
/// Names of columns whose value the source did not send: `name` for one of `after`, `before.name` for one of `before`.
pub const UNAVAILABLE: &str = "_unavailable";
pub const ERROR: &str = "_error";
pub const RAW: &str = "_raw";
/// When a record that had been rejected was decoded again and became this row; null for all others.
pub const REPLAYED_AT: &str = "_replayed_at";

/// Names that icestream gives to columns of its own next to the captured ones in silver.
const SILVER_NAMES: [&str; 6] =
    ["_merged_at", "_is_deleted", "_valid_from", "_valid_to", "_is_current", crate::quality::RULES_COLUMN];

/// The schema of a bronze table whose row images have `shape`, or are JSON text where there is none or it is empty.
///
/// Only what every record has is required; a rejected record may lack all the rest.
pub fn bronze_schema(shape: Option<&RowShape>) -> SchemaRef {
    bronze_schema_with(Some(match shape {
        Some(shape) if !shape.columns.is_empty() => DataType::Struct(image_fields(shape)),
        _ => DataType::Utf8,
    }))
}

/// The schema of a bronze table whose row images are of this type; without one, it has no columns for them yet.
pub fn bronze_schema_with(image: Option<DataType>) -> SchemaRef {
    let images = [BEFORE, AFTER].map(|name| image.clone().map(|image| Field::new(name, image, true)));
    let mut fields = vec![
        Field::new(TOPIC, DataType::Utf8, false),
        Field::new(PARTITION, DataType::Int32, false),
        Field::new(OFFSET, DataType::Int64, false),
        Field::new(TIMESTAMP, instant(), true),
        Field::new(INGESTED_AT, instant(), false),
        Field::new(KEY, DataType::Utf8, true),
        Field::new(OP, DataType::Utf8, true),
        Field::new(SOURCE_TS, instant(), true),
        Field::new(POSITION, DataType::Utf8, true),
        Field::new(EPOCH, DataType::Int32, true),
        Field::new(TX_ID, DataType::Utf8, true),
        Field::new(SOURCE, DataType::Utf8, true),
    ];
    fields.extend(images.into_iter().flatten());
    fields.extend([
        Field::new(UNAVAILABLE, DataType::List(unavailable_element()), true),
        Field::new(ERROR, DataType::Utf8, true),
        Field::new(RAW, DataType::LargeBinary, true),
        Field::new(REPLAYED_AT, instant(), true),
    ]);
    Arc::new(Schema::new(fields))
}

/// Whether a column of bronze or silver that icestream fills itself has this name.
pub fn is_own_name(name: &str) -> bool {
    static BRONZE: LazyLock<SchemaRef> = LazyLock::new(|| bronze_schema_with(None));
    SILVER_NAMES.contains(&name) || BRONZE.field_with_name(name).is_ok()
}

/// The fields of `before` and `after`. All are optional: a column may be added, dropped or not sent.
pub fn image_fields(shape: &RowShape) -> Fields {
    TableColumns::of_shape(shape).fields()
}

/// The element of the list of unavailable columns, named as Iceberg names it.
pub fn unavailable_element() -> Arc<Field> {
    Arc::new(Field::new("element", DataType::Utf8, false))
}

/// The time zone of every instant, as Iceberg's Arrow types spell it.
pub const UTC: &str = "+00:00";

/// The type of every instant.
pub fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(UTC.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::{Column, ColumnType};

    #[test]
    fn the_images_are_text_unless_a_shape_is_known() {
        let schema = bronze_schema(None);
        assert_eq!(schema.field_with_name(AFTER).unwrap().data_type(), &DataType::Utf8);
        let shape = RowShape { columns: vec![Column::new("id", ColumnType::Long, None).unwrap()] };
        let typed = bronze_schema(Some(&shape));
        let expected = DataType::Struct(vec![Field::new("id", DataType::Int64, true)].into());
        assert_eq!(typed.field_with_name(BEFORE).unwrap().data_type(), &expected);
        let names = |schema: &Schema| schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
        assert_eq!(names(&schema), names(&typed));
        let required: Vec<&str> =
            schema.fields().iter().filter(|f| !f.is_nullable()).map(|f| f.name().as_str()).collect();
        assert_eq!(required, [TOPIC, PARTITION, OFFSET, INGESTED_AT]);
    }
}
