use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::output::Grid;
use super::run::{chosen_tables, write_result};
use super::tables::size;
use super::{Context, Outcome, lake};
use crate::config::{Size, Span};
use crate::error::Result;
use crate::pipeline;
use crate::pipeline::maintain::{MaintainOptions, MaintainReport, Stage, TableReport, Task, maintain};

const AFTER_HELP: &str = "\
Examples:
  icestream maintain                                   every table of the project
  icestream maintain orders --dry-run                  what would be done to `orders`, in every layer
  icestream maintain --only compact --budget 30m,50GiB
  icestream maintain --remove-orphans                  delete what crashes have left, and not only list it
  icestream maintain --result /airflow/xcom/return.json

It runs beside `run`, `ingest` and `build`: when one of them changes the files first, its own work is thrown away and
planned again. Rows stay as they are, and neither silver nor gold reads one again because it was moved. Run it every hour or
so, and more often for tables with a commit every second. Tables that others keep in the project's namespaces are looked
after when they are named.

Tasks, in the order in which they are done:
  compact    put small files, files with many deleted rows and delete files together, by partition
  manifests  put small manifests together
  expire     forget old snapshots, and delete the files that only they need
  orphans    list the files that no snapshot names; `--remove-orphans` deletes them";

/// Put small files together, forget old snapshots, find leftovers
///
/// How large files become and what is kept is said under `maintain` in `icestream.yaml`, and by table properties.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct MaintainArgs {
    /// Tables, by name, with or without their namespace; all of the project when none is named
    #[arg(value_name = "TABLE")]
    pub tables: Vec<String>,

    /// Do only these: `compact`, `manifests`, `expire`, `orphans`
    #[arg(long, value_name = "TASK", value_delimiter = ',')]
    pub only: Vec<Task>,

    /// Only say what would be done
    #[arg(long)]
    pub dry_run: bool,

    /// Delete orphans that are older than `maintain.orphans_after`; without it they are listed
    #[arg(long)]
    pub remove_orphans: bool,

    /// Begin no more work after a time (`30m`), or when so many bytes were stored anew (`50GiB`); or both: `30m,50GiB`
    #[arg(long, value_name = "LIMIT", value_delimiter = ',')]
    pub budget: Vec<Limit>,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Write a JSON summary to this file
    #[arg(long, value_name = "FILE")]
    pub result: Option<PathBuf>,
}

/// A limit of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    Time(Duration),
    Bytes(u64),
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = "write a time, such as `30m`, or a size, such as `50GiB`".to_string();
        // A size may be a number alone, which here might as well be meant as minutes.
        if text.chars().all(|c| c.is_ascii_digit()) {
            return Err(help);
        }
        if let Ok(span) = text.parse::<Span>() {
            return Ok(Limit::Time(span.0));
        }
        Ok(Limit::Bytes(text.parse::<Size>().map_err(|_| help)?.0))
    }
}

pub async fn run(args: MaintainArgs, context: &Context) -> Result<Outcome> {
    let config = context.config()?;
    let (engine, models) = (pipeline::engine(&config)?, pipeline::models(&config)?);
    let tables = lake::open(&config, context).await?;
    let known = lake::known_tables(&config, &tables).await?;
    let names = chosen_tables(known, &args.tables)?;
    let mut options = MaintainOptions::new(config.maintain);
    options.only_own = args.tables.is_empty();
    options.dry_run = args.dry_run;
    options.remove_orphans = args.remove_orphans;
    if !args.only.is_empty() {
        options.tasks = BTreeSet::from_iter(args.only.iter().copied());
    }
    for limit in &args.budget {
        match limit {
            Limit::Time(span) => options.time_budget = Some(*span),
            Limit::Bytes(bytes) => options.bytes_budget = Some(*bytes),
        }
    }
    let bar = context.progress.spinner("maintain");
    let observer = |stage: &Stage| bar.remark(remark(stage));
    let (report, ended) = maintain(&tables, &engine, &models, &names, &options, &observer).await;
    drop(bar);
    // What was done is told in any case: whoever looks into a failure wants to know.
    let shown = show(&report, args.json, context);
    if let Some(path) = &args.result {
        write_result(path, &report)?;
    }
    ended?;
    shown
}

fn remark(stage: &Stage) -> String {
    let amount = match stage.bytes_in_all {
        0 => String::new(),
        all => format!(", {} of {}", size(Some(stage.bytes_done)), size(Some(all))),
    };
    format!("{} {}{amount}", stage.task, stage.table)
}

/// Shows what was done.
pub fn show(report: &MaintainReport, json: bool, context: &Context) -> Result<Outcome> {
    if json {
        context.stdout.print_json(report)?;
        return Ok(Outcome::Done);
    }
    if report.tables.is_empty() && report.not_reached.is_empty() {
        context.note("there are no tables yet");
        return Ok(Outcome::Done);
    }
    let columns =
        [("table", false), ("compacted", false), ("manifests", true), ("snapshots expired", true), ("orphans", false)];
    let mut grid = Grid::new(&columns);
    for table in &report.tables {
        grid.push(row(table));
    }
    let mut text = grid.render(context.stdout.width());
    let listed = report.tables.iter().filter_map(|table| table.orphans.as_ref()).filter(|orphans| !orphans.removed);
    for path in listed.flat_map(|orphans| &orphans.paths) {
        text.push_str(&format!("orphan {path}\n"));
    }
    context.stdout.print(&text)?;
    if report.dry_run {
        context.note("nothing was changed: this is what a run would do");
    }
    if !report.not_reached.is_empty() {
        context.note(&format!("the budget left no time for {}", report.not_reached.join(", ")));
    }
    Ok(Outcome::Done)
}

fn files(count: u64) -> String {
    format!("{count} file{}", if count == 1 { "" } else { "s" })
}

fn row(table: &TableReport) -> Vec<String> {
    let compacted = table.compacted.as_ref().map(|done| {
        let mut parts = Vec::new();
        if done.files_before > 0 {
            let bytes = size(Some(done.bytes_read));
            parts.push(format!("{}, {bytes} -> {}", files(done.files_before), files(done.files_after)));
        }
        if done.delete_files_before > 0 {
            parts.push(format!("{} delete files -> {}", done.delete_files_before, done.delete_files_after));
        }
        if done.conflicts > 0 {
            parts.push(format!("yielded to others: {}", done.conflicts));
        }
        if done.files_left > 0 {
            parts.push(format!("{} left", files(done.files_left)));
        }
        if done.files_waiting > 0 {
            parts.push(format!("{} not read by silver yet", files(done.files_waiting)));
        }
        if parts.is_empty() { "nothing to do".to_string() } else { parts.join("; ") }
    });
    let manifests = table.manifests.map(|manifests| match manifests.before == manifests.after {
        true => manifests.after.to_string(),
        false => format!("{} -> {}", manifests.before, manifests.after),
    });
    let expired =
        table.expired.map(|expired| format!("{} of {}", expired.snapshots, expired.snapshots + expired.snapshots_left));
    let orphans = table.orphans.as_ref().map(|orphans| match (orphans.files, orphans.removed) {
        (0, _) => "none".to_string(),
        (count, true) => format!("{count} removed, {}", size(Some(orphans.bytes))),
        (count, false) => format!("{count}, {}", size(Some(orphans.bytes))),
    });
    let compacted = compacted.or_else(|| match (table.foreign, &table.problem) {
        (true, _) => Some("left alone: icestream did not make it".to_string()),
        (_, problem) => problem.as_ref().map(|_| "failed".to_string()),
    });
    let cells = [compacted, manifests, expired, orphans];
    std::iter::once(table.table.clone()).chain(cells.into_iter().map(Option::unwrap_or_default)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_time_or_a_size() {
        for (text, expected) in [
            ("30m", Ok(Limit::Time(Duration::from_secs(1800)))),
            ("2h", Ok(Limit::Time(Duration::from_secs(7200)))),
            ("50GiB", Ok(Limit::Bytes(50 << 30))),
            ("30", Err("write a time, such as `30m`, or a size, such as `50GiB`".to_string())),
        ] {
            assert_eq!(text.parse::<Limit>(), expected, "{text}");
        }
    }
}
