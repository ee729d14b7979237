//! How the program speaks of what went wrong.

use std::io::Write;

use crate::error::{Error, Kind, Situation};

/// Prints an error to stderr.
pub fn print(error: &Error, color: bool) {
    let text = error.render();
    let text = if color { colored(&text) } else { text };
    // Nobody is left to tell that stderr is closed.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Says that somebody ended the program.
pub(super) fn print_interrupted(color: bool) {
    let text = "error: interrupted\n  what was committed stays; safe to run again";
    let text = if color { colored(text) } else { text.to_string() };
    let _ = writeln!(std::io::stderr(), "{text}");
}

fn colored(text: &str) -> String {
    let text = text.replacen("error:", "\x1b[1;31merror:\x1b[0m", 1);
    text.replace("\n  hint:", "\n  \x1b[1;36mhint:\x1b[0m").replace("\n  caused by:", "\n  \x1b[1mcaused by:\x1b[0m")
}

/// Makes a panic, which is always our mistake, look like every other error.
pub(super) fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().map(|text| text.to_string());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default();
        let place = info.location().map(|at| format!("{}:{}", at.file(), at.line())).unwrap_or_default();
        let _ = writeln!(std::io::stderr(), "{}", bug(&text, &place));
    }));
}

fn bug(text: &str, place: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "error: a bug in icestream {version}, at {place}\n  caused by: {}\n  \
         hint: please report it with this text and what you did before",
        text.replace('\n', "\n             ")
    )
}

/// The process could not begin.
#[derive(Debug, thiserror::Error)]
#[error("the system refused to start worker threads")]
pub(super) struct StartError {
    #[source]
    pub(super) source: std::io::Error,
}

impl Situation for StartError {
    fn kind(&self) -> Kind {
        Kind::Unavailable
    }

    fn hint(&self) -> Option<String> {
        Some("check the process and memory limits".to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_reads_like_an_error() {
        insta::assert_snapshot!(
            bug("index out of bounds", "src/batch/mod.rs:12").replace(env!("CARGO_PKG_VERSION"), "VERSION"),
            @"
            error: a bug in icestream VERSION, at src/batch/mod.rs:12
              caused by: index out of bounds
              hint: please report it with this text and what you did before
            "
        );
    }

    #[test]
    fn colors_mark_what_the_eye_looks_for() {
        let text = colored("error: a\n  caused by: b\n  hint: c");
        assert_eq!(text, "\x1b[1;31merror:\x1b[0m a\n  \x1b[1mcaused by:\x1b[0m b\n  \x1b[1;36mhint:\x1b[0m c");
    }
}
