use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::{Context, Outcome, lake, run};
use crate::config::Brokers;
use crate::error::{Kind, Result, Situation};
use crate::ids::TableName;
use crate::pipeline;
use crate::pipeline::verify::{self, Broker, Check, Difference, Options, Project, Report, Topics, Verdict};

const AFTER_HELP: &str = "\
Examples:
  icestream verify
  icestream verify --all orders                             every key of bronze, silver and gold `orders`
  icestream verify shop_silver.orders --sample 1000 --seed 7
  icestream verify --json | jq '.tables[].checks[] | select(.verdict == \"differs\")'

The exit code is 1 when something is not what it should be. The report shows values of rows; logs never do.";

/// Prove that nothing is missing: each table against what it was made from
///
/// Bronze has each offset once and none beyond its marker, and what the topics still hold; the records are read again for
/// that, and some of them compared by value. Silver is what folding bronze's events one by one gives, as of the
/// snapshot that its marker names; gold is what its query gives over the snapshots that it was made from. Every file is
/// there and as it is said to be. Nothing is changed.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct VerifyArgs {
    /// Tables to verify, with or without the namespace; all when none is named
    #[arg(value_name = "TABLE")]
    pub tables: Vec<String>,

    /// Compare every key of silver tables and every record of topics, and not a sample
    #[arg(long, conflicts_with = "sample")]
    pub all: bool,

    /// About how many keys of each silver table are compared, and records of each bronze table
    #[arg(long, value_name = "KEYS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub sample: u64,

    /// Chooses the sample: the same number chooses the same keys again
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub seed: u64,

    /// Insist on reading the topics again: a broker that does not answer ends it with exit code 3
    #[arg(long, conflicts_with = "no_broker")]
    pub broker: bool,

    /// Do not read the topics again
    #[arg(long)]
    pub no_broker: bool,

    /// How many differences of each check are shown one by one
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    pub show: usize,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Write a JSON summary, without values of rows, to this file
    #[arg(long, value_name = "FILE")]
    pub result: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("there is no table `{name}` to verify")]
    UnknownTable { name: String, known: String },
    #[error("the project names no Kafka brokers that can be asked")]
    NoBroker,
}

impl Situation for VerifyError {
    fn kind(&self) -> Kind {
        Kind::Config
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            VerifyError::UnknownTable { known, .. } => format!("there are {known}"),
            VerifyError::NoBroker => "leave out `--broker`, or set `source.kafka.brokers`".to_string(),
        })
    }
}

/// What a scheduler is told.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    sound: bool,
    seed: u64,
    sample: Option<u64>,
    tables: usize,
    holds: usize,
    differs: usize,
    skipped: usize,
    /// For each table that is not as it should be: the checks that say so, and how many differences each found.
    differing: BTreeMap<&'a str, BTreeMap<&'a str, u64>>,
}

pub async fn run(args: VerifyArgs, context: &Context) -> Result<Outcome> {
    let config = context.config()?;
    let tables = lake::open(&config, context).await?;
    let (engine, models) = (pipeline::engine(&config)?, pipeline::models(&config)?);
    let project = Project { lake: &tables, engine: &engine, bronze: &config.namespaces.bronze, models: &models };
    let known = verify::tables(&project).await?;
    let is = |table: &TableName, name: &String| table.name() == name || table.to_string() == *name;
    if let Some(name) = args.tables.iter().find(|name| !known.iter().any(|table| is(table, name))) {
        let known = known.iter().filter(|table| !table.name().ends_with(crate::quality::QUARANTINE_SUFFIX));
        let known = known.map(|table| format!("`{table}`")).collect::<Vec<_>>().join(", ");
        let known = if known.is_empty() { "none yet".to_string() } else { known };
        return Err(VerifyError::UnknownTable { name: name.clone(), known }.into());
    }
    let is_wanted = |table: &TableName| args.tables.is_empty() || args.tables.iter().any(|name| is(table, name));
    let options = Options { sample: (!args.all).then_some(args.sample), seed: args.seed, show: args.show };
    let bar = context.progress.bar("verifying", known.iter().filter(|table| is_wanted(table)).count() as u64);
    let kafka = if args.no_broker { None } else { pipeline::kafka_admin(&config, None)? };
    let route = |topic: &str| pipeline::route(&config, topic);
    let topics = match (&kafka, &config.kafka.brokers) {
        (Some(admin), Some(Brokers::At(brokers))) => Topics::At {
            broker: Box::new(Broker {
                admin,
                kafka: pipeline::kafka_config(&config, brokers),
                dialect: pipeline::dialect(&config),
                route: &route,
            }),
            must_answer: args.broker,
        },
        _ if args.broker => return Err(VerifyError::NoBroker.into()),
        _ if config.source_files.is_some() => Topics::Files,
        _ if args.no_broker => Topics::Skipped("it is left out by `--no-broker`".to_string()),
        _ => Topics::Skipped("the project names no Kafka brokers that can be asked".to_string()),
    };
    let step = |table: &TableName| {
        bar.advance(1);
        bar.remark(table.to_string());
    };
    let report = verify::verify(&project, &options, topics, is_wanted, step).await?;
    drop(bar);
    if let Some(path) = &args.result {
        run::write_result(path, &summary(&report))?;
    }
    match args.json {
        true => context.stdout.print_json(&report)?,
        false => context.stdout.print(&text(&report))?,
    }
    Ok(if report.is_sound() { Outcome::Done } else { Outcome::Failed })
}

fn summary(report: &Report) -> Summary<'_> {
    let mut differing: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for table in &report.tables {
        for check in table.checks.iter().filter(|check| check.verdict == Verdict::Differs) {
            differing.entry(&table.table).or_default().insert(check.check, check.differing);
        }
    }
    Summary {
        sound: report.is_sound(),
        seed: report.seed,
        sample: report.sample,
        tables: report.tables.len(),
        holds: report.count(Verdict::Holds),
        differs: report.count(Verdict::Differs),
        skipped: report.count(Verdict::Skipped),
        differing,
    }
}

/// The report for people.
pub fn text(report: &Report) -> String {
    let mut text = String::new();
    for table in &report.tables {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", table.table);
        for check in &table.checks {
            let _ = writeln!(text, "  {:<8} {:<11} {}", verdict(check), check.check, extent(check));
            let mut told = check.differences.iter().map(line).chain(check.notes.iter().cloned()).collect::<Vec<_>>();
            let more = check.differing - check.differences.len() as u64;
            if more > 0 {
                told.insert(check.differences.len(), format!("and {more} more"));
            }
            if check.verdict == Verdict::Skipped {
                // That is why, and stands beside it.
                told.clear();
            }
            for line in told {
                let _ = writeln!(text, "{:22}{line}", "");
            }
        }
    }
    let [holds, differs, skipped] = [Verdict::Holds, Verdict::Differs, Verdict::Skipped].map(|of| report.count(of));
    let tables = counted(report.tables.len() as u64, "tables");
    let _ =
        writeln!(text, "{tables}: {} hold, {differs} differ, {skipped} were skipped", counted(holds as u64, "checks"));
    if let Some(sample) = report.sample {
        let (seed, keys) = (report.seed, counted(sample, "keys"));
        let _ = writeln!(
            text,
            "Of each silver table about {keys} were compared, chosen by seed {seed}; `--all` compares every key."
        );
    }
    text
}

fn verdict(check: &Check) -> &'static str {
    match check.verdict {
        Verdict::Holds => "holds",
        Verdict::Differs => "DIFFERS",
        Verdict::Skipped => "skipped",
    }
}

fn extent(check: &Check) -> String {
    match check.verdict {
        Verdict::Holds => counted(check.checked, check.of),
        Verdict::Differs => {
            format!("{}, {}", counted(check.checked, check.of), counted(check.differing, "differences"))
        }
        Verdict::Skipped => check.notes.join("; "),
    }
}

fn counted(count: u64, of: &str) -> String {
    match count {
        1 => format!("1 {}", of.strip_suffix('s').unwrap_or(of)),
        _ => format!("{count} {of}"),
    }
}

/// One difference in a line.
fn line(difference: &Difference) -> String {
    let kind = format!("{:?}", difference.kind).to_lowercase();
    let about: Vec<&str> = [&difference.key, &difference.column].into_iter().flatten().map(String::as_str).collect();
    let mut line = format!("{kind} {}", about.join(" "));
    let what = match (&difference.expected, &difference.found) {
        (Some(expected), Some(found)) => format!(": expected {expected}, found {found}"),
        (Some(expected), None) => format!(": {expected}"),
        (None, Some(found)) => format!(": {found}"),
        (None, None) => String::new(),
    };
    line = format!("{}{what}", line.trim_end());
    if let Some(at) = &difference.at {
        let _ = write!(line, " ({}/{} at offset {})", at.topic, at.partition, at.offset);
    }
    if let Some(file) = &difference.file {
        let _ = write!(line, " in {file}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::verify::{At, Kind, TableReport};

    fn check(check: &'static str, verdict: Verdict, differing: u64, differences: Vec<Difference>) -> Check {
        Check { check, verdict, checked: 1000, of: "rows", notes: Vec::new(), differing, differences }
    }

    #[test]
    fn a_report_says_what_was_checked_and_what_differs() {
        let at = Some(At { topic: "shop.public.orders".to_string(), partition: 0, offset: 12 });
        let of = |kind: Kind| Difference { key: Some("id=7".to_string()), at: at.clone(), ..Difference::new(kind) };
        let text_of = |text: &str| Some(text.to_string());
        let differences = vec![
            Difference {
                column: text_of("status"),
                expected: text_of("paid"),
                found: text_of("PAID"),
                ..of(Kind::Differs)
            },
            Difference { expected: text_of("id=7, status=paid"), ..of(Kind::Missing) },
            Difference { found: text_of("id=7, status=paid"), ..of(Kind::Unexpected) },
            Difference { file: text_of("s3://lake/a.parquet row 3, s3://lake/b.parquet row 0"), ..of(Kind::Doubled) },
        ];
        let notes = vec!["3 offsets below the marker have no row".to_string()];
        let report = Report {
            seed: 7,
            sample: Some(1000),
            tables: vec![
                TableReport {
                    table: "shop_bronze.orders".to_string(),
                    layer: "bronze",
                    snapshot_id: Some(1),
                    checks: vec![
                        Check { checked: 1, of: "files", ..check("files", Verdict::Holds, 0, Vec::new()) },
                        Check { notes, ..check("offsets", Verdict::Holds, 0, Vec::new()) },
                    ],
                },
                TableReport {
                    table: "shop_silver.orders".to_string(),
                    layer: "silver",
                    snapshot_id: Some(2),
                    checks: vec![check("fold", Verdict::Differs, 9, differences)],
                },
                TableReport {
                    table: "shop_gold.revenue".to_string(),
                    layer: "gold",
                    snapshot_id: None,
                    checks: vec![Check::skipped("recomputed", "snapshot 5 of `shop_silver.orders` is expired")],
                },
            ],
        };
        insta::assert_snapshot!(text(&report), @"
        shop_bronze.orders
          holds    files       1 file
          holds    offsets     1000 rows
                              3 offsets below the marker have no row
        shop_silver.orders
          DIFFERS  fold        1000 rows, 9 differences
                              differs id=7 status: expected paid, found PAID (shop.public.orders/0 at offset 12)
                              missing id=7: id=7, status=paid (shop.public.orders/0 at offset 12)
                              unexpected id=7: id=7, status=paid (shop.public.orders/0 at offset 12)
                              doubled id=7 (shop.public.orders/0 at offset 12) in s3://lake/a.parquet row 3, s3://lake/b.parquet row 0
                              and 5 more
        shop_gold.revenue
          skipped  recomputed  snapshot 5 of `shop_silver.orders` is expired
        3 tables: 2 checks hold, 1 differ, 1 were skipped
        Of each silver table about 1000 keys were compared, chosen by seed 7; `--all` compares every key.
        ");
        insta::assert_snapshot!(serde_json::to_string_pretty(&summary(&report)).unwrap(), @r#"
        {
          "sound": false,
          "seed": 7,
          "sample": 1000,
          "tables": 3,
          "holds": 2,
          "differs": 1,
          "skipped": 1,
          "differing": {
            "shop_silver.orders": {
              "fold": 9
            }
          }
        }
        "#);
        insta::assert_snapshot!(serde_json::to_string_pretty(&report.tables[1]).unwrap(), @r#"
        {
          "table": "shop_silver.orders",
          "layer": "silver",
          "snapshot_id": 2,
          "checks": [
            {
              "check": "fold",
              "verdict": "differs",
              "checked": 1000,
              "of": "rows",
              "differing": 9,
              "differences": [
                {
                  "kind": "differs",
                  "key": "id=7",
                  "column": "status",
                  "expected": "paid",
                  "found": "PAID",
                  "at": {
                    "topic": "shop.public.orders",
                    "partition": 0,
                    "offset": 12
                  }
                },
                {
                  "kind": "missing",
                  "key": "id=7",
                  "expected": "id=7, status=paid",
                  "at": {
                    "topic": "shop.public.orders",
                    "partition": 0,
                    "offset": 12
                  }
                },
                {
                  "kind": "unexpected",
                  "key": "id=7",
                  "found": "id=7, status=paid",
                  "at": {
                    "topic": "shop.public.orders",
                    "partition": 0,
                    "offset": 12
                  }
                },
                {
                  "kind": "doubled",
                  "key": "id=7",
                  "at": {
                    "topic": "shop.public.orders",
                    "partition": 0,
                    "offset": 12
                  },
                  "file": "s3://lake/a.parquet row 3, s3://lake/b.parquet row 0"
                }
              ]
            }
          ]
        }
        "#);
    }
}
