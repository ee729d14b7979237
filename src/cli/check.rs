use std::sync::Arc;

use clap::Args;

use super::{Context, Outcome};
use crate::config::Config;
use crate::error::{Error, Kind, Result, Situation};
use crate::table::catalog::Catalog;

const AFTER_HELP: &str = "\
Examples:
  icestream check                  everything
  icestream check --offline        files only, as in a pull request's checks";

/// Find every problem of the project: files, front matter, catalog and warehouse
///
/// All problems are reported at once. Nothing is written to the lake but a probe file that is removed again.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct CheckArgs {
    /// Look at the files only; ask no catalog and no storage
    #[arg(long)]
    pub offline: bool,
}

/// One thing that was looked at: what it is, and what was found.
#[derive(Debug)]
pub struct Finding {
    pub what: &'static str,
    pub found: Result<String>,
}

/// More than one part of the world outside is not as it should be.
#[derive(Debug, thiserror::Error)]
#[error("{} problems outside of the files{}", problems.len(), problems.iter().map(|p| format!("\n  {p}")).collect::<String>())]
pub struct CheckError {
    kind: Kind,
    problems: Vec<String>,
}

impl Situation for CheckError {
    fn kind(&self) -> Kind {
        self.kind
    }
}

/// Checks the files and then, through `reach`, what they point to.
pub async fn run(
    args: CheckArgs,
    context: &Context,
    reach: impl AsyncFnOnce(&Config) -> Vec<Finding>,
) -> Result<Outcome> {
    let config = context.config()?;
    let files = if config.files == 1 { "1 file".to_string() } else { format!("{} files", config.files) };
    let mut findings = vec![Finding { what: "files", found: Ok(format!("{files}, no problem")) }];
    if !args.offline {
        findings.extend(reach(&config).await);
    }
    let mut text = String::new();
    for finding in &findings {
        let found = finding.found.as_ref().map_or("not reached", String::as_str);
        text.push_str(&format!("{:<10} {found}\n", finding.what));
    }
    context.stdout.print(&text)?;
    conclude(findings.into_iter().filter_map(|finding| finding.found.err()).collect())
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

/// Asks the catalog for its namespaces and, through `probe`, whether the warehouse can be written to.
pub async fn connectivity(
    catalog: Arc<dyn Catalog>,
    warehouse: &str,
    probe: impl AsyncFnOnce() -> Result<()>,
) -> Vec<Finding> {
    let named = match catalog.namespaces().await {
        Ok(names) => {
            let plural = if names.len() == 1 { "" } else { "s" };
            Ok(format!("{}, {} namespace{plural}", catalog.describe(), names.len()))
        }
        Err(error) => Err(error.into()),
    };
    let written = probe().await.map(|()| format!("`{warehouse}` can be written to"));
    vec![Finding { what: "catalog", found: named }, Finding { what: "warehouse", found: written }]
}
