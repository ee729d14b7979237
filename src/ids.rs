//! Names of things that more than one stage speaks of.

use std::fmt;
use std::str::FromStr;

/// A table's full name, `namespace.name`.
///
/// Both parts are lower snake case: letters, digits and underscores, starting with a letter or an underscore, at most
/// 255 characters. That is what Athena, Glue, Trino and Spark all accept without quoting.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    namespace: String,
    name: String,
}

/// Why a text is not a table name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("`{text}` is not a table name: write `namespace.table`")]
    NotTwoParts { text: String },
    #[error("`{part}` is not a valid name: use lower-case letters, digits and underscores, starting with a letter")]
    Characters { part: String },
    #[error("a column cannot be called `{name}`: Iceberg keeps that name for itself")]
    Reserved { name: String },
    #[error("the name starting with `{start}` has {length} characters; 255 is the most")]
    TooLong { start: String, length: usize },
}

impl TableName {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Result<Self, NameError> {
        let (namespace, name) = (namespace.into(), name.into());
        check_part(&namespace)?;
        check_part(&name)?;
        Ok(TableName { namespace, name })
    }

    /// A table beside it in the namespace.
    pub(crate) fn with_suffix(&self, suffix: &str) -> Self {
        TableName { namespace: self.namespace.clone(), name: format!("{}{suffix}", self.name) }
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Names that Iceberg gives to columns of its own. Engines refuse tables whose top-level columns have them.
const RESERVED_COLUMNS: [&str; 7] =
    ["_file", "_pos", "_deleted", "_spec_id", "_partition", "_row_id", "_last_updated_sequence_number"];

/// Checks the name of a top-level column that we create.
pub fn check_column(name: &str) -> Result<(), NameError> {
    if RESERVED_COLUMNS.contains(&name) {
        return Err(NameError::Reserved { name: name.to_string() });
    }
    check_part(name)
}

/// Checks one part of a name (a namespace, a table or a column that we create).
pub fn check_part(part: &str) -> Result<(), NameError> {
    if part.len() > 255 {
        return Err(NameError::TooLong { start: part.chars().take(32).collect(), length: part.len() });
    }
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let starts_well = part.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if starts_well && part.chars().all(legal) { Ok(()) } else { Err(NameError::Characters { part: part.to_string() }) }
}

impl FromStr for TableName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('.') {
            Some((namespace, name)) if !name.contains('.') => TableName::new(namespace, name),
            _ => Err(NameError::NotTwoParts { text: text.to_string() }),
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_every_engine_takes_unquoted() {
        assert_eq!("shop_silver.orders".parse::<TableName>().unwrap().to_string(), "shop_silver.orders");
        for bad in
            ["orders", "a.b.c", "Shop.orders", "shop.or-ders", "shop.1orders", "shop.", ".orders", "shop.ord ers"]
        {
            assert!(bad.parse::<TableName>().is_err(), "{bad} should be refused");
        }
        assert!(TableName::new("a", "x".repeat(256)).is_err());
        assert!(check_column("_partition").is_err() && check_column("_topic_partition").is_ok());
    }
}
