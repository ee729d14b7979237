//! Logs: what is written, how, and where to. They go to stderr, past the progress bars; stdout belongs to data.

use std::io::{self, Write};
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::error::{Kind, Situation};

/// How a log line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One line of text, for people.
    #[default]
    Text,
    /// One JSON object per line, for log collectors.
    Json,
}

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("`{text}` is not a log level or filter")]
    Filter { text: String },
    #[error("`{text}` is not a log format")]
    Format { text: String },
}

impl FromStr for LogFormat {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        clap::ValueEnum::from_str(text, true).map_err(|_| TelemetryError::Format { text: text.to_string() })
    }
}

impl Situation for TelemetryError {
    fn kind(&self) -> Kind {
        Kind::Config
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            TelemetryError::Filter { .. } => {
                "write one of `error`, `warn`, `info`, `debug`, `trace`, `off`, or a filter such as \
                 `info,icestream::table=debug`"
            }
            TelemetryError::Format { .. } => "write `text` or `json`",
        };
        Some(hint.to_string())
    }
}

/// Starts logging. `filter` is what the user asked for; without it only `level` and worse is written. A second call
/// changes nothing.
pub fn init<W>(
    filter: Option<&str>,
    level: &str,
    format: LogFormat,
    color: bool,
    writer: W,
) -> Result<(), TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = parse(filter.unwrap_or(level))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(color).with_writer(writer);
    // Only a test process calls this twice, and the first subscriber is as good as the second.
    let _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
    };
    Ok(())
}

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];

fn parse(text: &str) -> Result<EnvFilter, TelemetryError> {
    let refused = || TelemetryError::Filter { text: text.to_string() };
    let lower = text.trim().to_ascii_lowercase();
    if LEVELS.contains(&lower.as_str()) {
        // A bare level is about icestream. The clients below it would drown it from `debug` on, and their warnings are
        // about attempts whose end icestream tells of itself.
        let below = match lower.as_str() {
            "off" => "off",
            "debug" | "trace" => "warn",
            _ => "error",
        };
        return EnvFilter::try_new(format!("{below},icestream={lower}")).map_err(|_| refused());
    }
    // A filter's grammar takes any single word as the name of a module.
    if !text.contains(['=', ',']) {
        return Err(refused());
    }
    EnvFilter::try_new(text).map_err(|_| refused())
}

/// Writes whole lines to stderr while the progress bars are off the screen.
#[derive(Clone)]
pub struct PastBars(pub indicatif::MultiProgress);

/// One line on its way to stderr.
pub struct Line {
    bars: indicatif::MultiProgress,
    text: Vec<u8>,
}

impl<'a> MakeWriter<'a> for PastBars {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { bars: self.0.clone(), text: Vec::new() }
    }
}

impl Write for Line {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let text = std::mem::take(&mut self.text);
        self.bars.suspend(|| io::stderr().write_all(&text))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Nobody is left to tell that stderr is closed.
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_level_is_about_icestream_and_a_filter_is_taken_as_it_is() {
        let check = |text: &str, expected: &str| {
            let parsed = parse(text).map_err(Error::from).unwrap().to_string();
            let mut directives: Vec<&str> = parsed.split(',').collect();
            directives.sort_unstable();
            assert_eq!(directives.join(","), expected, "{text}");
        };
        check("debug", "icestream=debug,warn");
        check("INFO", "error,icestream=info");
        check("warn", "error,icestream=warn");
        check("off", "icestream=off,off");
        check("info,icestream::table=debug", "icestream::table=debug,info");
        check("hyper=trace", "hyper=trace");
    }

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        let error = Error::from(parse("verbose").unwrap_err());
        insta::assert_snapshot!(error.render(), @"
        error: `verbose` is not a log level or filter
          hint: write one of `error`, `warn`, `info`, `debug`, `trace`, `off`, or a filter such as `info,icestream::table=debug`
        ");
        insta::assert_snapshot!(Error::from("xml".parse::<LogFormat>().unwrap_err()).render(), @"
        error: `xml` is not a log format
          hint: write `text` or `json`
        ");
        for bad in ["", "icestream=loud", "a=b=c"] {
            assert!(parse(bad).is_err(), "{bad} should be refused");
        }
    }
}
