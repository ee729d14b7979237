use clap::{Args, Subcommand};

use super::{Context, Outcome};
use crate::config;
use crate::error::Result;

const AFTER_HELP: &str = "\
Examples:
  icestream config show                       the settings in force, and where each comes from
  icestream config reference | less           every key
  icestream config schema > schema.json       for completion in an editor";

/// Show the configuration, its reference page or its JSON schema
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct ConfigArgs {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Debug, Clone, Copy, Subcommand)]
pub enum What {
    /// Print the settings in force as YAML, each with its origin; secrets are masked
    Show,
    /// Print the page that describes every key, as Markdown
    Reference,
    /// Print the JSON schema of `icestream.yaml`
    Schema,
}

pub async fn run(args: ConfigArgs, context: &Context) -> Result<Outcome> {
    let text = match args.what {
        What::Show => context.config()?.show(),
        What::Reference => config::reference(),
        What::Schema => config::json_schema(),
    };
    context.stdout.print(&text)?;
    Ok(Outcome::Done)
}
