use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use clap::Args;
use futures::TryStreamExt;

use super::output::{self, Destination, Grid, RowFormat};
use super::{Context, Outcome, check, lake};
use crate::config::{CatalogConfig, Config};
use crate::demo::run as demo;
use crate::engine::{self, Engine};
use crate::error::Result;
use crate::ids::TableName;
use crate::pipeline;
use crate::table::{self, At, Lake};

const AFTER_HELP: &str = "\
Examples:
  icestream demo                                  100,000 events, the lake in ./lake
  icestream demo --events 1000000 --dir /tmp/shop
  icestream demo --json | jq .equal";

/// Run the whole way in one process: a broker, a shop, bronze, silver and gold, checked against the shop's own truth
///
/// Nothing has to be installed. The exit code is 1 when a table does not hold what the shop did.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub struct DemoArgs {
    /// How many change events the shop sends
    #[arg(long, value_name = "N", default_value = "100000", value_parser = parse_events)]
    pub events: u64,

    /// Where the lake goes
    #[arg(long, value_name = "PATH", default_value = ".")]
    pub dir: PathBuf,

    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Runs the shop, shows what came of it, and compares.
pub async fn run(args: DemoArgs, context: &Context) -> Result<Outcome> {
    demo::prepare(&args.dir)?;
    let config = Config::load(&args.dir, &context.environment, &context.assignments)?;
    check::models(&config, None).await?;
    demo::fresh_lake(&config)?;
    let lake = lake::open(&config, context).await?;
    let engine = pipeline::engine(&config)?;
    let progress = Arc::new(demo::Progress::default());
    let shown = show_progress(context, args.events, progress.clone());
    let running = demo::run(&lake, &engine, &config, args.events, progress);
    let report = tokio::select! {
        report = running => report?,
        never = shown => match never {},
    };
    if args.json {
        context.stdout.print_json(&report)?;
    } else {
        for (table, sql) in HIGHLIGHTS {
            show_rows(&lake, &engine, table, sql, context).await?;
        }
        context.stdout.print(&summary(&report, context))?;
        context.stdout.print(&next_steps(&args.dir, &config))?;
    }
    Ok(if report.equal { Outcome::Done } else { Outcome::Failed })
}

/// What a shopkeeper would want to see first.
const HIGHLIGHTS: [(&str, &str); 3] = [
    ("shop_gold.revenue_per_day", "SELECT * FROM shop_gold.revenue_per_day ORDER BY 1 DESC LIMIT 5"),
    ("shop_gold.customer_value", "SELECT * FROM shop_gold.customer_value ORDER BY lifetime_value DESC, 1 LIMIT 5"),
    ("shop_gold.product_popularity", "SELECT * FROM shop_gold.product_popularity ORDER BY revenue DESC, 1 LIMIT 5"),
];

async fn show_progress(context: &Context, events: u64, progress: Arc<demo::Progress>) -> std::convert::Infallible {
    let shop = context.progress.bar("shop", events);
    let bronze = context.progress.bar("bronze rows", events);
    let silver = context.progress.spinner("silver merges");
    let gold = context.progress.spinner("gold refreshes");
    loop {
        shop.set(progress.sent.load(Ordering::Relaxed));
        bronze.set(progress.ingested.load(Ordering::Relaxed));
        silver.remark(progress.merges.load(Ordering::Relaxed).to_string());
        gold.remark(progress.refreshes.load(Ordering::Relaxed).to_string());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn show_rows(lake: &Lake, engine: &Engine, table: &str, sql: &str, context: &Context) -> Result<()> {
    let name: TableName = table.parse().map_err(table::Error::from)?;
    let session = engine.session();
    engine::register(&session, &name, lake.table(&name).await?.view(At::Head)?)?;
    context.stdout.print(&format!("{table}\n"))?;
    let rows = engine::query(&session, sql).await?;
    let to = Destination { format: RowFormat::Table, file: None };
    output::write_rows(&to, rows.schema(), rows.map_err(engine::Error::from), None, &context.stdout).await?;
    context.stdout.print("\n")
}

fn summary(report: &demo::Report, context: &Context) -> String {
    let mut grid = Grid::new(&[("table", false), ("rows", true), ("in the shop", true), ("", false)]);
    for table in &report.tables {
        let verdict = if table.equal { "equal" } else { "DIFFERENT" };
        grid.push(vec![
            table.table.clone(),
            table.rows.to_string(),
            table.expected_rows.to_string(),
            verdict.to_string(),
        ]);
    }
    let mut text = grid.render(context.stdout.width());
    for table in report.tables.iter().filter(|table| !table.equal) {
        text.push_str(&format!("{}: {}\n", table.table, table.difference.as_deref().unwrap_or_default()));
    }
    let events = if report.events == 1 { "event" } else { "events" };
    text.push_str(&format!(
        "\n{} {events} ({} records, {} rejected) in {:.1} s: {} bronze commits, {} silver merges, {} gold refreshes\n",
        report.events,
        report.records,
        report.rejected,
        report.seconds,
        report.bronze_commits,
        report.silver_merges,
        report.gold_refreshes,
    ));
    text.push_str(match report.equal {
        true => "Every table holds what the shop did.\n",
        false => {
            "Some tables do not hold what the shop did. Where no file of the sample project was changed, this is a bug: \
             please report it.\n"
        }
    });
    text
}

fn next_steps(folder: &Path, config: &Config) -> String {
    let there = if folder == Path::new(".") { String::new() } else { format!(" --project {}", quoted(folder)) };
    let catalog = match &config.catalog {
        CatalogConfig::Sqlite { path } => path.display().to_string(),
        _ => String::new(),
    };
    format!(
        "\nThe lake is in `{lake}`. Look around:\n\
        \n  icestream{there} tables\
        \n  icestream{there} query \"select status, count(*) from shop_silver.orders group by status\"\
        \n\nor from Python, with `pip install 'pyiceberg[sql-sqlite,pyarrow]'`:\n\
        \n  from pyiceberg.catalog.sql import SqlCatalog\
        \n  lake = SqlCatalog(\"{name}\", uri=\"sqlite:///{catalog}\")\
        \n  lake.load_table(\"shop_silver.orders\").scan().to_arrow()\n",
        lake = folder.join("lake").display(),
        name = config.name,
    )
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+".contains(c);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Accepts `1_000_000` and `1,000,000` too.
fn parse_events(text: &str) -> std::result::Result<u64, String> {
    let digits = text.replace(['_', ','], "");
    match digits.parse() {
        Ok(0) => Err("there must be at least one event".to_string()),
        Ok(events) => Ok(events),
        Err(_) => Err("write a whole number, such as 100000".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_can_be_pasted_into_a_shell() {
        for (path, expected) in [("/tmp/shop", "/tmp/shop"), ("my shop", "'my shop'"), ("bob's", "'bob'\\''s'")] {
            assert_eq!(quoted(Path::new(path)), expected);
        }
    }

    #[test]
    fn numbers_may_be_grouped() {
        assert_eq!(parse_events("1,000_000"), Ok(1_000_000));
        for bad in ["0", "-1", "many", ""] {
            assert!(parse_events(bad).is_err(), "{bad} should be refused");
        }
    }
}
