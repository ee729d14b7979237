use clap::Args;

use super::{Context, Outcome, lake};
use crate::error::{Kind, Result, Situation};
use crate::ids::TableName;
use crate::table;

const AFTER_HELP: &str = "\
Examples:
  icestream drop shop_gold.revenue_per_day --yes
  icestream drop shop_bronze.orders --purge --yes";

/// Remove a table from the catalog and, with `--purge`, its files
///
/// Without `--purge` the files stay where they are, and the table can be registered again by another engine.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct DropArgs {
    /// The table, `namespace.table`
    #[arg(value_name = "NS.TABLE")]
    pub table: TableName,

    /// Delete the table's files too; they cannot be brought back
    #[arg(long)]
    pub purge: bool,

    /// Yes, really
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum DropError {
    #[error("table `{table}` was not dropped: nobody said yes")]
    NotConfirmed { table: TableName, purge: bool },
}

impl Situation for DropError {
    fn kind(&self) -> Kind {
        Kind::Config
    }

    fn hint(&self) -> Option<String> {
        let DropError::NotConfirmed { purge, .. } = self;
        Some(match purge {
            true => "add `--yes` to drop it and delete its files".to_string(),
            false => "add `--yes` to drop it; its files stay".to_string(),
        })
    }
}

impl DropArgs {
    /// Refuses when the person has not said yes.
    pub fn confirm(&self) -> Result<()> {
        if self.yes {
            return Ok(());
        }
        Err(DropError::NotConfirmed { table: self.table.clone(), purge: self.purge }.into())
    }
}

pub async fn run(args: DropArgs, context: &Context) -> Result<Outcome> {
    args.confirm()?;
    let config = context.config()?;
    let lake = lake::open(&config, context).await?;
    let deleted = match lake.drop_table(&args.table, args.purge).await {
        Err(table::Error::TableMissing { .. } | table::Error::NamespaceMissing { .. }) => {
            return Err(lake::unknown(&args.table, &config, &lake).await);
        }
        outcome => outcome?,
    };
    show(&args, args.purge.then_some(deleted as u64), context)
}

/// Says what was done. `files` is how many were deleted, where they were.
pub fn show(args: &DropArgs, files: Option<u64>, context: &Context) -> Result<Outcome> {
    let files = match files {
        Some(files) => format!("{files} files deleted"),
        None => "its files stay where they are".to_string(),
    };
    context.stdout.print(&format!("table `{}` dropped; {files}\n", args.table))?;
    Ok(Outcome::Done)
}
