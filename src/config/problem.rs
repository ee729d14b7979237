use std::fmt;
use std::sync::Arc;

use crate::error::{Kind, Situation};

/// Where a setting was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A position in a file, counted from 1. The file is named relative to the project folder.
    At { file: Arc<str>, line: usize, column: usize },
    /// A file as a whole.
    File(Arc<str>),
    /// An environment variable.
    Variable(String),
    /// A `--set` flag.
    Flag(String),
}

/// One thing in the configuration that cannot stay as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    /// The key, such as `commit.every`; empty where it is about no key.
    pub path: String,
    pub message: String,
}

/// Every problem of every file, in the order a reader would meet them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigProblems(Vec<Problem>);

impl ConfigProblems {
    /// `None` when there are no problems.
    pub fn from_list(mut problems: Vec<Problem>) -> Option<Self> {
        problems.sort_by_key(|problem| match &problem.place {
            Place::File(file) => (0, rank(file), file.clone(), 0, 0),
            Place::At { file, line, column } => (0, rank(file), file.clone(), *line, *column),
            Place::Variable(name) => (1, 0, name.as_str().into(), 0, 0),
            Place::Flag(key) => (2, 0, key.as_str().into(), 0, 0),
        });
        problems.dedup();
        if problems.is_empty() { None } else { Some(ConfigProblems(problems)) }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }
}

fn rank(file: &str) -> u8 {
    if file == super::FILE_NAME { 0 } else { 1 }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::At { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Place::File(file) => f.write_str(file),
            Place::Variable(name) => write!(f, "${name}"),
            Place::Flag(key) => write!(f, "--set {key}"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = !self.path.is_empty() && !matches!(&self.place, Place::Flag(key) if *key == self.path);
        if named {
            write!(f, "{} {}: {}", self.place, self.path, self.message)
        } else {
            write!(f, "{}: {}", self.place, self.message)
        }
    }
}

impl fmt::Display for ConfigProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => write!(f, "{only}"),
            all => {
                write!(f, "the configuration has {} problems", all.len())?;
                for problem in all {
                    write!(f, "\n  {problem}")?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for ConfigProblems {}

impl Situation for ConfigProblems {
    fn kind(&self) -> Kind {
        Kind::Config
    }

    fn hint(&self) -> Option<String> {
        Some("`icestream config reference` describes every key".to_string())
    }
}

/// The candidate a misspelt word most likely meant.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let word = plain(word);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| {
            let length = candidate.chars().count().max(word.chars().count());
            *distance <= (length / 3).clamp(1, 3)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `` `a`, `b`, `c` ``
pub(super) fn quoted<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    words.into_iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_near() {
        let keys = ["every", "rows", "bytes"];
        assert_eq!(nearest("evry", keys), Some("every"));
        assert_eq!(nearest("Rows", keys), Some("rows"));
        assert_eq!(nearest("row", keys), Some("rows"));
        assert_eq!(nearest("memory", keys), None);
        assert_eq!(nearest("path-style", ["path_style"]), Some("path_style"));
    }
}
