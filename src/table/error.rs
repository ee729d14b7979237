//! What can go wrong between a change and a committed table.

use std::sync::Arc;

use crate::aws;
use crate::error::{Kind, Situation};
use crate::ids::{NameError, TableName};

pub type Result<T, E = Error> = std::result::Result<T, E>;

type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// A situation of the table layer. Cheap to clone, so that one failure can be told to several waiters.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("table `{table}` does not exist in {catalog}")]
    TableMissing { table: TableName, catalog: String },

    #[error("table `{table}` already exists in {catalog}")]
    TableExists { table: TableName, catalog: String },

    #[error("namespace `{namespace}` does not exist in {catalog}")]
    NamespaceMissing { namespace: String, catalog: String },

    #[error("`{table}` is in {catalog}, but it is not an Iceberg table ({found})")]
    NotIceberg { table: TableName, catalog: String, found: String },

    #[error("table `{table}` uses {feature}, which icestream does not read or write")]
    Unsupported { table: TableName, feature: String },

    #[error(transparent)]
    Name(#[from] NameError),

    /// The head moved in a way that takes the ground from under the change.
    #[error("table `{table}` changed meanwhile: {broken}")]
    PremiseBroken { table: TableName, broken: Broken },

    /// Every attempt lost the race; the premise still holds.
    #[error("table `{table}` was busy: {attempts} attempts to commit all lost to other writers")]
    Contention { table: TableName, attempts: u32 },

    /// The catalog neither confirmed nor refused, and could not be asked afterwards.
    #[error("it is not known whether commit `{commit_id}` of table `{table}` was applied")]
    Unresolved {
        table: TableName,
        commit_id: String,
        #[source]
        source: Box<Error>,
    },

    #[error("table `{table}`: {problem}")]
    Schema { table: TableName, problem: String },

    #[error("table `{table}`: {problem}")]
    Change { table: TableName, problem: String },

    #[error("{what} does not answer")]
    Unreachable {
        what: String,
        #[source]
        source: Cause,
    },

    #[error("{what} refused access")]
    Denied {
        what: String,
        #[source]
        source: Cause,
    },

    #[error("{what}")]
    Misconfigured { what: String, hint: String },

    #[error("cannot {action} `{location}`")]
    Storage {
        action: &'static str,
        location: String,
        kind: Kind,
        #[source]
        source: Cause,
    },

    #[error("table `{table}` cannot be read: {problem}")]
    Corrupt {
        table: TableName,
        problem: String,
        #[source]
        source: Option<Cause>,
    },

    /// The catalog gave an answer that its protocol does not know.
    #[error("{what} gave an unexpected answer: {answer}")]
    Protocol { what: String, answer: String },
}

/// Which part of a premise no longer holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("marker `{key}` is now {found}, and this change stood on {expected}")]
    Marker { key: String, expected: String, found: String },
    #[error("the head is snapshot {found}, and this change stood on {expected}")]
    Head { expected: String, found: String },
    #[error("data file `{path}` is no longer part of it")]
    FileGone { path: String },
    #[error("rows of data file `{path}` were deleted since this change was planned")]
    NewDeletes { path: String },
    #[error("its schema is now {found}, and this change was made for {expected}")]
    Schema { expected: i32, found: i32 },
    #[error("another table has taken its place")]
    Replaced,
    #[error("{0}")]
    Other(String),
}

impl Error {
    pub(crate) fn unreachable(what: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Error::Unreachable { what: what.into(), source: Arc::new(source) }
    }

    pub(crate) fn denied(what: impl Into<String>, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Error::Denied { what: what.into(), source: Arc::new(source) }
    }

    pub(crate) fn corrupt(
        table: &TableName,
        problem: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Error::Corrupt { table: table.clone(), problem: problem.into(), source: Some(Arc::new(source)) }
    }

    /// Whether the premise of the change is gone, so that the caller has to plan again.
    pub fn is_premise_broken(&self) -> bool {
        matches!(self, Error::PremiseBroken { .. })
    }
}

impl From<aws::Error> for Error {
    fn from(error: aws::Error) -> Self {
        match error {
            aws::Error::Misconfigured { what, hint } => Error::Misconfigured { what, hint },
            aws::Error::Unreachable { what, source } => Error::Unreachable { what, source },
        }
    }
}

impl Situation for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::TableMissing { .. }
            | Error::TableExists { .. }
            | Error::NamespaceMissing { .. }
            | Error::NotIceberg { .. }
            | Error::Name(_)
            | Error::Denied { .. }
            | Error::Misconfigured { .. }
            | Error::Unsupported { .. } => Kind::Config,
            Error::PremiseBroken { .. } | Error::Contention { .. } => Kind::Conflict,
            Error::Unresolved { .. } | Error::Unreachable { .. } => Kind::Unavailable,
            Error::Schema { .. } | Error::Change { .. } => Kind::Input,
            Error::Storage { kind, .. } => *kind,
            Error::Corrupt { .. } => Kind::Corrupt,
            Error::Protocol { .. } => Kind::Bug,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            Error::TableMissing { .. } => "`icestream tables` lists the tables there are".to_string(),
            Error::NamespaceMissing { .. } => {
                "check `namespaces:` in the configuration; `icestream tables` lists what there is".to_string()
            }
            Error::Unsupported { .. } => {
                "icestream works on unencrypted format version 2 tables; leave this one to the engine that made it"
                    .to_string()
            }
            Error::NotIceberg { .. } => "name a table that is in Iceberg format, or use another namespace".to_string(),
            Error::Contention { .. } => "run it again, or let fewer writers commit to this table at once".to_string(),
            Error::Unresolved { .. } => {
                "run it again: the next commit looks for this one in the table's history first".to_string()
            }
            Error::Denied { .. } => "check the credentials and what they are allowed to do".to_string(),
            Error::Misconfigured { hint, .. } => hint.clone(),
            Error::Storage { kind: Kind::Config, .. } => {
                "check that the location exists and that this process may write there".to_string()
            }
            _ => return None,
        };
        Some(hint)
    }

    fn state(&self) -> Option<String> {
        match self {
            Error::PremiseBroken { .. } | Error::Contention { .. } => {
                Some("nothing was committed; safe to run again".to_string())
            }
            _ => None,
        }
    }
}
