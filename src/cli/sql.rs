use clap::Args;

use super::run::chosen;
use super::{Context, Outcome, lake};
use crate::error::Result;
use crate::{gold, pipeline, silver};

const AFTER_HELP: &str = "\
Examples:
  icestream sql orders                     the MERGE that the next build of this table stands for
  icestream sql > statements.sql

The statements are in Trino's dialect and read the snapshots that the build would read. They fold the events of every touched
key by windows, which is what a build comes to, and not how it goes about it. icestream's own markers do not move by them:
look at them, or run them against tables of another name. What the dialect cannot say stands in a NOTE.";

/// Print the SQL that a build stands for, in Trino's dialect
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct SqlArgs {
    /// Tables, by name; all when none is named
    #[arg(value_name = "TABLE")]
    pub tables: Vec<String>,
}

pub async fn run(args: SqlArgs, context: &Context) -> Result<Outcome> {
    let config = context.config()?;
    let models = chosen(pipeline::models(&config)?, &args.tables)?;
    let tables = lake::open(&config, context).await?;
    let engine = pipeline::engine(&config)?;
    let mut texts = Vec::new();
    for model in &models.silver {
        texts.push(match silver::statement(&tables, &engine, model).await? {
            Some(statement) => statement.sql,
            None => format!("-- {}: {}, or a table it looks rows up in, holds nothing yet.\n", model.table, model.from),
        });
    }
    for model in gold::in_order(&models.gold)? {
        texts.push(match gold::statement(&tables, model).await {
            Ok(statement) => statement.sql,
            Err(gold::Error::InputMissing { table, input }) => format!("-- {table}: {input} is not there yet.\n"),
            Err(error) => return Err(error.into()),
        });
    }
    context.stdout.print(&texts.join("\n"))?;
    Ok(Outcome::Done)
}
