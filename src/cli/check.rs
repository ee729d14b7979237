use std::fmt::Display;

use clap::Args;

use super::{Context, Outcome};
use crate::config::{Config, Problem};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result, Situation};
use crate::pipeline::{self, ModelCheck};
use crate::table::Lake;

const AFTER_HELP: &str = "\
Examples:
  icestream check                  everything
  icestream check --offline        files and SQL only, as in a pull request's checks";

/// Find every problem of the project: files, SQL, types, catalog, warehouse and brokers
///
/// All problems are reported at once. The SQL of every model is planned over the columns it will meet; no row is read.
/// Nothing is written to the lake but a probe file that is removed again.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CheckArgs {
    /// Look at the files only; ask no catalog, no storage and no brokers
    #[arg(long)]
    pub offline: bool,
}

/// One thing that was looked at: what it is, and what was found.
#[derive(Debug)]
pub struct Finding {
    what: &'static str,
    found: Result<String>,
}

impl Finding {
    pub fn new(what: &'static str, found: Result<String>) -> Self {
        Finding { what, found }
    }
}

/// What came of asking the world outside.
#[derive(Debug)]
pub struct Reached {
    pub findings: Vec<Finding>,
    /// Where tables can be looked up.
    pub lake: Option<Lake>,
}

/// What is wrong with the SQL of the models.
#[derive(Debug, thiserror::Error)]
#[error("{}", listed("the models have", problems))]
pub struct ModelError {
    problems: Vec<Problem>,
}

impl Situation for ModelError {
    fn kind(&self) -> Kind {
        Kind::Config
    }
}

/// More than one part of the project is not as it should be.
#[derive(Debug, thiserror::Error)]
#[error("{}", listed("the project has", problems))]
pub struct CheckError {
    kind: Kind,
    problems: Vec<String>,
}

fn listed(subject: &str, problems: &[impl Display]) -> String {
    match problems {
        [only] => only.to_string(),
        all => {
            let lines = all.iter().map(|problem| format!("\n  {}", problem.to_string().replace('\n', "\n  ")));
            format!("{subject} {} problems{}", all.len(), lines.collect::<String>())
        }
    }
}

impl Situation for CheckError {
    fn kind(&self) -> Kind {
        self.kind
    }
}

/// Checks the files, then through `reach` what they point to, and the models against both.
pub async fn run(
    args: CheckArgs,
    context: &Context,
    reach: impl AsyncFnOnce(&Config, &Context) -> Reached,
) -> Result<Outcome> {
    let config = context.config()?;
    let files = if config.files == 1 { "1 file".to_string() } else { format!("{} files", config.files) };
    let mut findings = vec![Finding::new("files", Ok(format!("{files}, no problem")))];
    let reached = match args.offline {
        true => Reached { findings: Vec::new(), lake: None },
        false => reach(&config, context).await,
    };
    findings.push(Finding::new("models", models(&config, reached.lake.as_ref()).await));
    findings.extend(reached.findings);
    let mut text = String::new();
    for finding in &findings {
        let found = match &finding.found {
            Ok(found) => found,
            Err(error) if error.kind().is_retryable() => "not reached",
            Err(_) => "problems",
        };
        text.push_str(&format!("{:<10} {found}\n", finding.what));
    }
    context.stdout.print(&text)?;
    conclude(findings.into_iter().filter_map(|finding| finding.found.err()).collect())
}

/// Plans every model, and says how many there are.
pub(super) async fn models(config: &Config, lake: Option<&Lake>) -> Result<String> {
    let found = check_models(config, &pipeline::engine(config)?, lake).await?;
    let planned = if found.planned == 1 { "1 model".to_string() } else { format!("{} models", found.planned) };
    Ok(match found.skipped {
        0 => format!("{planned}, no problem"),
        skipped => format!("{planned}, no problem; {skipped} not looked at: only the catalog knows what they read"),
    })
}

/// Plans every model, each of which has to be right.
pub(super) async fn check_models(config: &Config, engine: &Engine, lake: Option<&Lake>) -> Result<ModelCheck> {
    let mut found = pipeline::check_models(config, engine, lake).await?;
    match found.problems.is_empty() {
        true => Ok(found),
        false => Err(ModelError { problems: std::mem::take(&mut found.problems) }.into()),
    }
}

fn conclude(mut errors: Vec<Error>) -> Result<Outcome> {
    match errors.len() {
        0 => Ok(Outcome::Done),
        1 => Err(errors.remove(0)),
        _ => {
            // A scheduler may only try again when there is nothing that a person has to mend.
            let lasting = errors.iter().map(Error::kind).find(|kind| !kind.is_retryable());
            let kind = lasting.unwrap_or_else(|| errors[0].kind());
            let problems = errors.iter().map(|error| {
                let hint = error.hint().map_or(String::new(), |hint| format!(" (hint: {hint})"));
                format!("{error}{hint}")
            });
            Err(CheckError { kind, problems: problems.collect() }.into())
        }
    }
}
