use std::fmt::Write;

use clap::Args;

use super::check::check_models;
use super::diff::difference;
use super::tables::size;
use super::{Context, Outcome, lake};
use crate::error::Result;
use crate::pipeline;
use crate::pipeline::plan::{Action, Layer, Plan, TablePlan};

const AFTER_HELP: &str = "\
Examples:
  icestream plan
  icestream plan --no-source                                from the tables and the files alone
  icestream plan --json | jq '.tables[] | select(.action == \"blocked\")'

  + is made   ~ changes   ! stops until a person decides   = stays   . cannot be made yet   ? not known

The exit code is 0, whether there is something to do or not; 2 when a file or a model is wrong, as `check` would say it.
What is read counts files, rows and bytes as the tables are now: late events and truncations can make a merge read more.";

/// Show what a run would create, change, rebuild and read, without doing it
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct PlanArgs {
    /// Do not ask the brokers; what waits in the topics stays unknown
    #[arg(long)]
    pub no_source: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

pub async fn run(args: PlanArgs, context: &Context) -> Result<Outcome> {
    let config = context.config()?;
    let tables = lake::open(&config, context).await?;
    let (engine, models) = (pipeline::engine(&config)?, pipeline::models(&config)?);
    let checked = check_models(&config, &engine, Some(&tables)).await?;
    let kafka = if args.no_source { None } else { pipeline::kafka_admin(&config, None)? };
    if kafka.is_none() && !args.no_source {
        context.note("what waits in the topics is unknown: the project names no Kafka brokers to ask");
    }
    let plan = Plan::look(&tables, &config, &models, &checked.columns, kafka.as_ref()).await?;
    if let Some(problem) = &plan.source_problem {
        tracing::warn!("what waits in the topics is unknown: {problem}");
    }
    match args.json {
        true => context.stdout.print_json(&plan)?,
        false => context.stdout.print(&text(&plan))?,
    }
    Ok(Outcome::Done)
}

fn text(plan: &Plan) -> String {
    let mut text = String::new();
    for (layer, name) in [(Layer::Bronze, "bronze"), (Layer::Silver, "silver"), (Layer::Gold, "gold")] {
        let tables: Vec<&TablePlan> = plan.tables.iter().filter(|table| table.layer == layer).collect();
        if tables.is_empty() {
            continue;
        }
        let _ = writeln!(text, "{name}");
        for table in tables {
            show(table, &mut text);
        }
        text.push('\n');
    }
    if !plan.audits.is_empty() {
        text.push_str("audits\n");
        for audit in &plan.audits {
            let _ = writeln!(text, "  {} {} ({}): {}", sign(audit.action), audit.audit, audit.severity, audit.because);
        }
        text.push('\n');
    }
    text.push_str(&conclusion(plan));
    text
}

fn sign(action: Action) -> char {
    match action {
        Action::Create => '+',
        Action::Change => '~',
        Action::Blocked => '!',
        Action::Nothing => '=',
        Action::Wait => '.',
        Action::Unknown => '?',
    }
}

fn show(table: &TablePlan, text: &mut String) {
    let _ = writeln!(text, "  {} {}: {}", sign(table.action), table.table, table.because.join("; "));
    if let Some(records) = table.records_waiting.filter(|records| *records > 0) {
        let _ = writeln!(text, "      {} waiting", counted(records as u64, "record"));
    }
    if table.reads.files > 0 {
        let reads = table.reads;
        let (files, rows) = (counted(reads.files, "file"), counted(reads.rows, "row"));
        // What is read is what a rebuild would read, where a run stops.
        let who = if table.action == Action::Blocked { "a rebuild reads" } else { "reads" };
        let _ = writeln!(text, "      {who} {files}, {rows}, {}", size(Some(reads.bytes)));
    }
    if let Some(quarantine) = &table.quarantine {
        let rows = quarantine.rows.map_or("is made with it".to_string(), |rows| counted(rows, "row"));
        let _ = writeln!(text, "      quarantine {}: {rows}", quarantine.table);
    }
    for change in &table.model_changes {
        let _ = writeln!(text, "      {}:", change.part);
        let (before, after) =
            (change.before.as_deref().unwrap_or_default(), change.after.as_deref().unwrap_or_default());
        for line in difference(before, after).lines() {
            let _ = writeln!(text, "        {line}");
        }
    }
    for column in &table.columns {
        let _ = match (&column.before, &column.after) {
            (None, Some(after)) => writeln!(text, "      + {} {after}", column.column),
            (Some(before), None) => writeln!(text, "      - {} {before}", column.column),
            (before, after) => {
                let of = |name: &Option<String>| name.clone().unwrap_or_default();
                writeln!(text, "      ~ {} {} -> {}", column.column, of(before), of(after))
            }
        };
    }
    if let Some(command) = &table.command {
        let _ = writeln!(text, "      needs: {command}");
    }
}

fn conclusion(plan: &Plan) -> String {
    let actions = [
        (Action::Create, "to make"),
        (Action::Change, "to change"),
        (Action::Blocked, "for you to decide"),
        (Action::Wait, "not to be made yet"),
        (Action::Unknown, "not known"),
        (Action::Nothing, "unchanged"),
    ];
    let told = actions.into_iter().map(|(action, what)| (plan.count(action), what)).filter(|(count, _)| *count > 0);
    let told: Vec<String> = told.map(|(count, what)| format!("{count} {what}")).collect();
    match told.is_empty() {
        true => "The project has no tables yet.\n".to_string(),
        false => format!("Tables: {}. Nothing was done.\n", told.join(", ")),
    }
}

fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
