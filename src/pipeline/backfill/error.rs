//! What can go wrong between a history and its rows.

use super::MOST_ROUNDS;
use crate::error::{Kind, Situation};
use crate::ids::TableName;
use crate::offsets::TopicPartition;
use crate::source::Bounds;

#[derive(Debug, thiserror::Error)]
pub enum BackfillError {
    #[error("`{file}` cannot be unpacked behind line {line}")]
    Damaged {
        file: String,
        line: u64,
        #[source]
        source: std::io::Error,
    },

    #[error("`{file}` holds {format}, which is not read")]
    OtherFormat { file: String, format: &'static str },

    #[error("line {line} of `{file}` has no end")]
    LongLine { file: String, line: u64 },

    #[error("line {line} of `{file}` is of `{found}`, and the file's name says `{at}`")]
    OtherPartition { file: String, line: u64, at: TopicPartition, found: TopicPartition },

    #[error("line {line} of `{file}` has offset {offset}, and those before it come to {expected}")]
    Disorder { file: String, line: u64, offset: i64, expected: i64 },

    #[error(
        "`{file}` has {deletes} deletes, and it is not known whether the records without a value behind them were left out"
    )]
    Seam { file: String, deletes: i64, held: u64 },

    #[error("topic `{}` has no partition {} on the brokers, or goes to no table that is meant", at.topic, at.partition)]
    NoPartition { at: TopicPartition },

    #[error("offset {offset} is not in `{at}`, which holds {} to {}", bounds.first, bounds.end)]
    Outside { at: TopicPartition, offset: i64, bounds: Bounds },

    #[error("the threads that decode records have ended")]
    ThreadsEnded,

    #[error("the rows of a file do not fit together")]
    Rows {
        #[source]
        source: arrow::error::ArrowError,
    },

    #[error("table `{table}` changed {MOST_ROUNDS} times while it was filled")]
    Busy { table: TableName },

    #[error("table `{table}` is in epoch {current}: which life of its topics the files are of is not known")]
    EpochUnknown { table: TableName, current: i32 },

    #[error("epoch {epoch} of table `{table}` has not begun: it is in epoch {current}")]
    EpochToCome { table: TableName, epoch: i32, current: i32 },
}

impl Situation for BackfillError {
    fn kind(&self) -> Kind {
        match self {
            BackfillError::Damaged { .. }
            | BackfillError::LongLine { .. }
            | BackfillError::OtherPartition { .. }
            | BackfillError::Disorder { .. } => Kind::Corrupt,
            BackfillError::Seam { .. } | BackfillError::OtherFormat { .. } => Kind::Input,
            BackfillError::ThreadsEnded => Kind::Unavailable,
            BackfillError::Busy { .. } => Kind::Conflict,
            BackfillError::Rows { .. } => Kind::Bug,
            BackfillError::NoPartition { .. }
            | BackfillError::Outside { .. }
            | BackfillError::EpochUnknown { .. }
            | BackfillError::EpochToCome { .. } => Kind::Config,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            BackfillError::Damaged { .. } => {
                "the file was probably cut short: put a whole one in its place and run this again".to_string()
            }
            BackfillError::OtherFormat { .. } => {
                "write its records in the same order as JSON lines or Parquet, under a name that begins like its own".to_string()
            }
            BackfillError::LongLine { .. } => "a file holds one JSON document in each line".to_string(),
            BackfillError::OtherPartition { .. } => {
                "a file holds the records of the one partition in its name: `<topic>+<partition>+<offset>`".to_string()
            }
            BackfillError::Disorder { .. } => "offsets rise from line to line".to_string(),
            BackfillError::Seam { held, .. } => format!(
                "say it with `--tombstones left-out` or `--tombstones kept`: it decides which of its lines are the {held} \
                 records that the table holds already"
            ),
            BackfillError::NoPartition { .. } => "`icestream offsets show` lists the partitions".to_string(),
            BackfillError::Outside { .. } => {
                "`icestream offsets show` says what the brokers hold; what they no longer have may be in files: `--files`"
                    .to_string()
            }
            BackfillError::EpochUnknown { current, .. } => {
                format!("say it with `--epoch`: {current} is the topics' present life, 0 the first one")
            }
            _ => return None,
        })
    }

    fn state(&self) -> Option<String> {
        match self {
            BackfillError::Damaged { .. }
            | BackfillError::LongLine { .. }
            | BackfillError::OtherPartition { .. }
            | BackfillError::Disorder { .. } => Some(
                "the other files were read, and of a large one the lines before that; safe to run again".to_string(),
            ),
            BackfillError::Seam { .. } | BackfillError::OtherFormat { .. } => {
                Some("nothing of it was committed, and the other files were read; safe to run again".to_string())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_says_what_to_do() {
        let (file, at) = (|| "s3://b/t+0+7.json.gz".to_string(), TopicPartition::new("t", 0));
        let table: TableName = "bronze.orders".parse().unwrap();
        let found = TopicPartition::new("u", 3);
        let errors = [
            BackfillError::Damaged { file: file(), line: 17, source: std::io::Error::other("corrupt gzip stream") },
            BackfillError::OtherFormat { file: "s3://b/t+0+7.avro".to_string(), format: "Avro" },
            BackfillError::LongLine { file: file(), line: 18 },
            BackfillError::OtherPartition { file: file(), line: 3, at, found },
            BackfillError::Disorder { file: file(), line: 3, offset: 8, expected: 9 },
            BackfillError::Seam { file: file(), deletes: 3, held: 40 },
            BackfillError::ThreadsEnded,
            BackfillError::Busy { table: table.clone() },
            BackfillError::EpochUnknown { table: table.clone(), current: 2 },
            BackfillError::EpochToCome { table, epoch: 3, current: 2 },
        ];
        let texts: Vec<String> = errors.into_iter().map(|error| crate::error::Error::from(error).render()).collect();
        insta::assert_snapshot!(texts.join("\n"), @r"
        error: `s3://b/t+0+7.json.gz` cannot be unpacked behind line 17
          caused by: corrupt gzip stream
          the other files were read, and of a large one the lines before that; safe to run again
          hint: the file was probably cut short: put a whole one in its place and run this again
        error: `s3://b/t+0+7.avro` holds Avro, which is not read
          nothing of it was committed, and the other files were read; safe to run again
          hint: write its records in the same order as JSON lines or Parquet, under a name that begins like its own
        error: line 18 of `s3://b/t+0+7.json.gz` has no end
          the other files were read, and of a large one the lines before that; safe to run again
          hint: a file holds one JSON document in each line
        error: line 3 of `s3://b/t+0+7.json.gz` is of `u/3`, and the file's name says `t/0`
          the other files were read, and of a large one the lines before that; safe to run again
          hint: a file holds the records of the one partition in its name: `<topic>+<partition>+<offset>`
        error: line 3 of `s3://b/t+0+7.json.gz` has offset 8, and those before it come to 9
          the other files were read, and of a large one the lines before that; safe to run again
          hint: offsets rise from line to line
        error: `s3://b/t+0+7.json.gz` has 3 deletes, and it is not known whether the records without a value behind them were left out
          nothing of it was committed, and the other files were read; safe to run again
          hint: say it with `--tombstones left-out` or `--tombstones kept`: it decides which of its lines are the 40 records that the table holds already
        error: the threads that decode records have ended
        error: table `bronze.orders` changed 100 times while it was filled
        error: table `bronze.orders` is in epoch 2: which life of its topics the files are of is not known
          hint: say it with `--epoch`: 2 is the topics' present life, 0 the first one
        error: epoch 3 of table `bronze.orders` has not begun: it is in epoch 2
        ");
    }
}
