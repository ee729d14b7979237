use clap::Args;

use super::output::Grid;
use super::tables::{number, size};
use super::{Context, Outcome, lake};
use crate::error::Result;
use crate::pipeline;
use crate::pipeline::quality::Latest;
use crate::pipeline::status::{BronzeStatus, QuarantineStatus, SilverStatus, Status, TableStatus};

/// What stands in place of figures of a table that is not there.
const NOT_MADE: &str = "not made yet";

const AFTER_HELP: &str = "\
Examples:
  icestream status
  icestream status --no-source                              the tables alone
  icestream status --json | jq '.bronze[] | {table, topics}'

Lag is what the topics hold and bronze does not: in records, counted by offsets, and as the time that the oldest of them
has been waiting. Brokers that do not answer are a warning, and lag is unknown then.";

/// Show how far behind, how fresh and how sound the tables are
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct StatusArgs {
    /// Do not ask the brokers; lag stays unknown
    #[arg(long)]
    pub no_source: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

pub async fn run(args: StatusArgs, context: &Context) -> Result<Outcome> {
    let config = context.config()?;
    let tables = lake::open(&config, context).await?;
    let (engine, models) = (pipeline::engine(&config)?, pipeline::models(&config)?);
    let kafka = if args.no_source { None } else { pipeline::kafka_admin(&config, None)? };
    if kafka.is_none() && !args.no_source {
        context.note("lag is unknown: the project names no Kafka brokers to ask");
    }
    let status = Status::look(&tables, &engine, &config, &models, kafka.as_ref()).await?;
    show(&status, args.json, context)
}

pub fn show(status: &Status, json: bool, context: &Context) -> Result<Outcome> {
    if let Some(problem) = &status.source_problem {
        tracing::warn!("lag is unknown: {problem}");
    }
    if json {
        context.stdout.print_json(status)?;
        return Ok(Outcome::Done);
    }
    let width = context.stdout.width();
    let mut parts = Vec::new();
    let mut grid = grid(
        "bronze",
        &[("lag", true), ("waiting", true), ("state", false), ("rejected", true), ("columns changed", true)],
    );
    for table in &status.bronze {
        let mut row = common(&table.table);
        row.extend(of_bronze(table));
        grid.push(row);
    }
    parts.push((status.bronze.is_empty(), grid));
    let mut grid = self::grid("silver", &[("behind", false), ("quarantined", true)]);
    for table in &status.silver {
        let mut row = common(&table.table);
        row.extend([of_silver(table), quarantined(&table.quarantined)]);
        grid.push(row);
    }
    parts.push((status.silver.is_empty(), grid));
    let mut grid = self::grid("gold", &[("behind", false)]);
    for table in &status.gold {
        let what = if table.table.is_made { table.moved.join(", ") } else { NOT_MADE.to_string() };
        let mut row = common(&table.table);
        row.push(behind(table.is_behind, &what, table.seconds_behind));
        grid.push(row);
    }
    parts.push((status.gold.is_empty(), grid));
    let columns =
        [("quality", false), ("rule", false), ("kind", false), ("else", false), ("found", false), ("asked", true)];
    let mut grid = Grid::new(&columns);
    for finding in &status.quality {
        let asked = finding.checked_ms.map(|ms| (context.clock.now_ms() - ms).max(0) / 1000);
        grid.push(vec![
            finding.table.clone(),
            finding.rule.clone(),
            finding.kind.clone(),
            finding.severity.clone(),
            found(finding),
            asked.map_or(String::new(), |seconds| format!("{} ago", span(seconds))),
        ]);
    }
    parts.push((status.quality.is_empty(), grid));
    let texts: Vec<String> =
        parts.iter().filter(|(is_empty, _)| !is_empty).map(|(_, grid)| grid.render(width)).collect();
    if texts.is_empty() {
        context.note("there are no tables yet");
        return Ok(Outcome::Done);
    }
    context.stdout.print(&texts.join("\n"))?;
    Ok(Outcome::Done)
}

fn grid(layer: &str, more: &[(&str, bool)]) -> Grid {
    let columns =
        [(layer, false), ("rows", true), ("files", true), ("size", true), ("snapshots", true), ("last commit", true)];
    Grid::new(&columns.iter().chain(more).copied().collect::<Vec<_>>())
}

fn common(table: &TableStatus) -> Vec<String> {
    let files = table.data_files.zip(table.delete_files).map(|(data, deletes)| data + deletes);
    vec![
        table.table.clone(),
        number(table.rows),
        number(files),
        size(table.bytes),
        number(table.is_made.then_some(table.snapshots)),
        match table.seconds_since_commit {
            Some(seconds) => format!("{} ago", span(seconds)),
            None if table.is_made => "never".to_string(),
            None => NOT_MADE.to_string(),
        },
    ]
}

fn of_bronze(table: &BronzeStatus) -> [String; 5] {
    let waiting = table.topics.iter().filter_map(|topic| topic.lag_seconds).max();
    let mut states: Vec<&str> = table.topics.iter().map(|topic| topic.state).collect();
    states.sort();
    states.dedup();
    if states.len() > 1 {
        states.retain(|state| *state != "ok");
    }
    let rejected = &table.rejected;
    let share = if rejected.rows == 0 { String::new() } else { format!(" ({})", percent(rejected.share)) };
    let above = match &rejected.stop_above {
        Some(limit) if rejected.is_above => format!(", above {limit} lately"),
        _ => String::new(),
    };
    [
        table.lag().map_or("?".to_string(), |lag| lag.to_string()),
        waiting.map_or("?".to_string(), span),
        states.join(", "),
        format!("{}{share}{above}", rejected.rows),
        table.schema.changes.to_string(),
    ]
}

fn of_silver(table: &SilverStatus) -> String {
    if table.table.is_made {
        let commits = table.commits_behind.map_or("commits".to_string(), |commits| plural(commits, "commit"));
        let mut behind = behind(table.is_behind, &commits, table.seconds_behind);
        if !table.lookups_moved.is_empty() {
            behind.push_str(&format!("; moved: {}", table.lookups_moved.join(", ")));
        }
        if !table.fell_back.is_empty() {
            behind.push_str("; positions fell back");
        }
        return behind;
    }
    let what = match table.records_behind {
        Some(1) => format!("{NOT_MADE}; 1 record waits"),
        Some(records) => format!("{NOT_MADE}; {records} records wait"),
        None => NOT_MADE.to_string(),
    };
    behind(true, &what, table.seconds_behind)
}

/// Rows in quarantine, and how many of them are there for want of a key.
fn quarantined(of: &QuarantineStatus) -> String {
    match of.null_keys {
        0 => of.rows.to_string(),
        null_keys => format!("{} ({null_keys} without a key)", of.rows),
    }
}

/// What a rule found: of how many rows, where it looks at rows.
fn found(finding: &Latest) -> String {
    match (finding.passed, finding.kind.as_str(), finding.rows_checked) {
        (true, _, _) => "ok".to_string(),
        (false, "freshness", _) => "stale".to_string(),
        (false, _, Some(checked)) => format!("{} of {checked} rows", finding.rows_failed),
        (false, _, None) => plural(finding.rows_failed as usize, "row"),
    }
}

fn behind(is_behind: bool, what: &str, seconds: Option<i64>) -> String {
    match (is_behind, seconds) {
        (false, _) => "no".to_string(),
        (true, Some(seconds)) => format!("{what}, {}", span(seconds)),
        (true, None) => what.to_string(),
    }
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A share as people read it; one that is not nothing does not look like it.
fn percent(share: f64) -> String {
    match share * 100.0 {
        percent if percent > 0.0 && percent < 0.01 => "<0.01%".to_string(),
        percent if percent < 10.0 => format!("{percent:.2}%"),
        percent => format!("{percent:.1}%"),
    }
}

/// A time as people read it: its two largest units.
fn span(seconds: i64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_shares_are_short() {
        for (seconds, expected) in
            [(0, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (3_600, "1 h 0 min"), (90_061, "1 d 1 h")]
        {
            assert_eq!(span(seconds), expected);
        }
        for (share, expected) in
            [(0.0, "0.00%"), (0.000_01, "<0.01%"), (0.0123, "1.23%"), (0.5, "50.0%"), (1.0, "100.0%")]
        {
            assert_eq!(percent(share), expected);
        }
    }
}
