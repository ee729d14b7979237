//! What an error means for the person or scheduler that meets it.
//!
//! Every stage has its own error enum whose variants are situations. Each variant knows its [`Kind`], and this file is
//! the one place that turns a kind into an exit code and an advice whether to try again.

use std::error::Error as StdError;
use std::fmt;

/// What the reader of an error will do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Fix a file, a flag or a permission; trying again changes nothing.
    Config,
    /// A record, a schema or a query cannot be taken as it is.
    Input,
    /// Somebody else committed first and the premise no longer holds.
    Conflict,
    /// Something outside did not answer; trying again may help.
    Unavailable,
    /// What is stored contradicts itself; stop and look.
    Corrupt,
    /// A rule or an audit the user wrote did not hold.
    Quality,
    /// Our mistake; please report it.
    Bug,
}

impl Kind {
    /// The process exit code a scheduler sees.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Config => 2,
            Kind::Unavailable => 3,
            Kind::Quality => 4,
            Kind::Input | Kind::Conflict | Kind::Corrupt | Kind::Bug => 1,
        }
    }

    /// Whether running the same command again may succeed with nothing changed by hand.
    pub fn is_retryable(self) -> bool {
        matches!(self, Kind::Unavailable | Kind::Conflict)
    }
}

/// An error of a stage: a situation with a kind and, where one helps, a hint.
pub trait Situation: StdError + Send + Sync + 'static {
    fn kind(&self) -> Kind;

    /// One action that would help, without a final full stop.
    fn hint(&self) -> Option<String> {
        None
    }

    /// One line on the state of the data, when it is worth saying.
    fn state(&self) -> Option<String> {
        None
    }
}

/// Any stage's error on its way to `main`.
pub struct Error(Box<dyn Situation>);

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn kind(&self) -> Kind {
        self.0.kind()
    }

    /// The situation itself and what caused it, outermost first.
    pub fn chain(&self) -> Vec<String> {
        let mut lines = vec![self.0.to_string()];
        let mut source = self.0.source();
        while let Some(cause) = source {
            let line = cause.to_string();
            // Wrappers often repeat their source's text as their own; say each thing once.
            if !lines.iter().any(|seen| seen.contains(&line)) {
                lines.push(line);
            }
            source = cause.source();
        }
        lines
    }

    pub fn hint(&self) -> Option<String> {
        self.0.hint()
    }

    pub fn state(&self) -> Option<String> {
        self.0.state()
    }

    /// The text `main` prints to stderr.
    pub fn render(&self) -> String {
        let chain = self.chain();
        let mut text = format!("error: {}", chain[0]);
        for cause in &chain[1..] {
            text.push_str("\n  caused by: ");
            text.push_str(&cause.replace('\n', "\n             "));
        }
        if let Some(state) = self.state() {
            text.push_str("\n  ");
            text.push_str(&state);
        }
        if let Some(hint) = self.hint() {
            text.push_str("\n  hint: ");
            text.push_str(&hint);
        }
        text
    }
}

impl<S: Situation> From<S> for Error {
    fn from(situation: S) -> Self {
        Error(Box::new(situation))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain().join(": "))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("table `shop_silver.orders` cannot be read")]
    struct Unreadable(#[source] std::io::Error);

    impl Situation for Unreadable {
        fn kind(&self) -> Kind {
            Kind::Unavailable
        }
        fn hint(&self) -> Option<String> {
            Some("check that the warehouse folder is mounted".to_string())
        }
        fn state(&self) -> Option<String> {
            Some("nothing was committed; safe to run again".to_string())
        }
    }

    #[test]
    fn an_error_says_what_why_the_state_and_one_action() {
        let error = Error::from(Unreadable(std::io::Error::other("disk went away")));
        insta::assert_snapshot!(error.render(), @r"
        error: table `shop_silver.orders` cannot be read
          caused by: disk went away
          nothing was committed; safe to run again
          hint: check that the warehouse folder is mounted
        ");
        assert_eq!(error.kind().exit_code(), 3);
    }
}
