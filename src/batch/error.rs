//! What can go wrong while a batch is built. Bad records are no errors: they become rows.

use crate::error::{Kind, Situation};
use crate::offsets::TopicPartition;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("offset {offset} of `{partition}` was given to a batch that already stands at {next}")]
    Repeated { partition: TopicPartition, offset: i64, next: i64 },

    #[error("`{partition}` was started anew while a batch stands at its offset {next}")]
    Unfinished { partition: TopicPartition, next: i64 },

    #[error("a batch of {bytes} bytes cannot take another record of {more}")]
    Full { bytes: usize, more: usize },

    #[error("a value of column `{column}` was read as another type than the column has")]
    WrongBuilder { column: String },

    #[error("the columns of a batch do not fit together")]
    Columns(#[source] arrow::error::ArrowError),
}

impl Situation for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Full { .. } => Kind::Config,
            Error::Repeated { .. } | Error::Unfinished { .. } | Error::WrongBuilder { .. } | Error::Columns(_) => {
                Kind::Bug
            }
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::Full { .. } => Some("lower `commit.bytes` so that a batch is committed earlier".to_string()),
            _ => None,
        }
    }

    fn state(&self) -> Option<String> {
        Some("the batch was not committed; safe to run again".to_string())
    }
}
