use std::collections::BTreeSet;
use std::io::{BufRead, IsTerminal};
use std::str::FromStr;
use std::time::Duration;

use clap::{ArgGroup, Args, Subcommand};
use serde::Serialize;

use super::output::Grid;
use super::query::parse_time;
use super::run::RunError;
use super::{Context, Outcome, lake as lakes};
use crate::config::{Brokers, Config, Span};
use crate::engine::Engine;
use crate::error::{Error, Kind, Result, Situation};
use crate::ids::TableName;
use crate::offsets::{Offsets, Positions, TopicPartition};
use crate::pipeline::offsets::{
    Log, MovePlan, OffsetsMoveError, PartitionPosition, RowsPassed, SinkMark, Target, marker_of, plan_import,
    positions, routed_tables,
};
use crate::pipeline::{self};
use crate::source::KafkaAdmin;
use crate::table::Lake;

const AFTER_HELP: &str = "\
Examples:
  icestream offsets show orders
  icestream offsets reset orders --to -1h --rewind --dry-run
  icestream offsets reset --topic shop.public.orders --partition 0 --to 4711
  icestream offsets import --from-group connect-orders-sink";

const AFTER_HELP_RESET: &str = "\
Examples:
  icestream offsets reset orders --to latest --yes                     skip what is in the topics now
  icestream offsets reset orders --to 2026-01-31T00:00:00Z --rewind    read everything since then again
  icestream offsets reset orders --to earliest --epoch                 the topic was deleted and made anew
  icestream offsets reset orders --to -20m --restored                  the database was restored and captured anew
  icestream offsets reset orders --to earliest --rewind --dry-run      show what would be done

A table never holds a record twice. Moving back to an offset from which it holds rows needs either `--rewind`, which
deletes those rows in the same commit, so that they are read again, or `--epoch`, which keeps them and marks what comes
as belonging to another topic of the same name. `--restored` is for a source that counts its positions from an earlier
place again and has sent a snapshot since: rows from there on are deleted and read again, and silver has what they say
alone; bronze keeps the rows before. Stop ingesting meanwhile: a process that does ends with an error, and goes
on from the new offsets when it is started again.";

const AFTER_HELP_IMPORT: &str = "\
Examples:
  icestream offsets import --from-group my-consumer --dry-run
  icestream offsets import orders --from-group connect-orders-sink --yes
  icestream offsets import orders --from-connect legacy.orders --yes

Kafka Connect's Iceberg sink keeps the offsets of its control topic in the table's snapshots, and those of the source
topics in a consumer group that the snapshots name: `connect-<connector>`, or `cg-control-<connector>` with the releases
by Tabular. That group may be ahead of the table by what was announced and not committed. `--from-connect` therefore
starts no later than the time through which the table is complete (`kafka.connect.valid-through-ts`): the records since
then may be in both tables, and none is missing. Stop the connector first.";

/// Show how far the tables have read, move that, or take it over from elsewhere
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct OffsetsArgs {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Debug, Subcommand)]
pub enum What {
    Show(ShowArgs),
    Reset(ResetArgs),
    Import(ImportArgs),
}

/// Each partition: where its table reads on, what the topic holds, and how they relate
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// A bronze table; all when none is named
    #[arg(value_name = "TABLE")]
    pub table: Option<String>,

    /// Do not ask the brokers; show the tables' own offsets
    #[arg(long)]
    pub no_source: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Move the offsets at which a table reads on
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP_RESET, group(ArgGroup::new("which").args(["table", "topic"]).multiple(true).required(true)))]
pub struct ResetArgs {
    /// The bronze table; all its partitions are moved
    #[arg(value_name = "TABLE")]
    pub table: Option<String>,

    /// Move the partitions of this topic only
    #[arg(long)]
    pub topic: Option<String>,

    /// Move this partition of the topic only
    #[arg(long, value_name = "N", requires = "topic")]
    pub partition: Option<i32>,

    /// Where to: `earliest`, `latest`, an offset, a time (`2026-01-31T00:00:00Z`, `2026-01-31`), or a span back from now
    /// (`-1h`)
    #[arg(long, value_name = "WHERE", allow_hyphen_values = true)]
    pub to: To,

    /// Delete the rows from there on, so that they can be read again
    #[arg(long, conflicts_with = "epoch")]
    pub rewind: bool,

    /// The topic was made anew: keep the rows, and raise the table's epoch for what comes
    #[arg(long)]
    pub epoch: bool,

    /// The source was restored to an earlier state and captured anew: read from there on again, as all there is
    #[arg(long, conflicts_with_all = ["rewind", "epoch"])]
    pub restored: bool,

    #[command(flatten)]
    pub how: HowArgs,
}

/// Start where something else has read to: a consumer group, or Kafka Connect's Iceberg sink
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP_IMPORT, group(ArgGroup::new("from").args(["from_group", "from_connect"]).required(true)))]
pub struct ImportArgs {
    /// Bronze tables; all whose topics have offsets when none is named
    #[arg(value_name = "TABLE")]
    pub tables: Vec<String>,

    /// The consumer group whose committed offsets to take
    #[arg(long, value_name = "GROUP")]
    pub from_group: Option<String>,

    /// The table, `namespace.table`, that Kafka Connect's Iceberg sink writes to
    #[arg(long, value_name = "NS.TABLE")]
    pub from_connect: Option<TableName>,

    /// Also for tables that have read something already
    #[arg(long)]
    pub force: bool,

    #[command(flatten)]
    pub how: HowArgs,
}

#[derive(Debug, Args)]
pub struct HowArgs {
    /// Yes, do it
    #[arg(long)]
    pub yes: bool,

    /// Show what would be done, and do nothing
    #[arg(long, conflicts_with = "yes")]
    pub dry_run: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// A target as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    At(Target),
    Ago(Duration),
}

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(span) = text.strip_prefix('-') {
            return Ok(To::Ago(span.parse::<Span>().map_err(|error| error.to_string())?.0));
        }
        match text {
            "earliest" => return Ok(To::At(Target::Earliest)),
            "latest" => return Ok(To::At(Target::Latest)),
            _ => {}
        }
        if let Ok(offset) = text.parse() {
            return Ok(To::At(Target::Offset(offset)));
        }
        let unknown = "write `earliest`, `latest`, an offset, a time such as `2026-01-31T00:00:00Z`, or `-1h`";
        parse_time(text).map(|time| To::At(Target::TimeMs(time.0))).map_err(|_| unknown.to_string())
    }
}

impl To {
    fn target(self, now_ms: i64) -> Target {
        match self {
            To::At(target) => target,
            To::Ago(span) => Target::TimeMs(now_ms - i64::try_from(span.as_millis()).unwrap_or(i64::MAX)),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the offsets were not moved: nobody said yes")]
struct NotConfirmed;

impl Situation for NotConfirmed {
    fn kind(&self) -> Kind {
        Kind::Config
    }

    fn hint(&self) -> Option<String> {
        Some("add `--yes` to move them as shown".to_string())
    }
}

#[derive(Debug, Serialize)]
struct PartitionRow {
    table: String,
    topic: String,
    partition: i32,
    next: Option<i64>,
    first: Option<i64>,
    end: Option<i64>,
    lag: Option<i64>,
    state: &'static str,
}

#[derive(Debug, Serialize)]
struct MoveRow {
    table: String,
    epoch: i32,
    partitions: Vec<MovedPartition>,
    rows_deleted: u64,
    moved: bool,
}

#[derive(Debug, Serialize)]
struct MovedPartition {
    topic: String,
    partition: i32,
    from: Option<i64>,
    to: i64,
}

pub async fn run(args: OffsetsArgs, context: &Context) -> Result<Outcome> {
    let config = context.config()?;
    let lake = lakes::open(&config, context).await?;
    match args.what {
        What::Show(args) => show(args, &config, &lake, context).await,
        What::Reset(args) => reset(args, &config, &lake, context).await,
        What::Import(args) => import(args, &config, &lake, context).await,
    }
}

async fn show(args: ShowArgs, config: &Config, lake: &Lake, context: &Context) -> Result<Outcome> {
    let kafka = if args.no_source { None } else { pipeline::kafka_admin(config, None)? };
    let named = args.table.as_deref().map(|name| lakes::bronze_name(name, config)).transpose()?;
    let mut markers: Vec<(TableName, Offsets)> = Vec::new();
    for table in lakes::bronze_tables(None, config, lake).await? {
        if named.as_ref().is_none_or(|named| named == table.name()) {
            markers.push((table.name().clone(), marker_of(&table)?));
        }
    }
    let log = match &kafka {
        Some(kafka) => {
            let known: Vec<&Offsets> = markers.iter().map(|(_, marker)| marker).collect();
            match Log::look(kafka, config, &known).await {
                Ok(log) => Some(log),
                Err(error) => {
                    tracing::warn!("what the topics hold is unknown: {error}");
                    None
                }
            }
        }
        None => None,
    };
    for table in log.iter().flat_map(|log| routed_tables(config, log)) {
        let is_wanted = named.as_ref().is_none_or(|named| *named == table);
        if is_wanted && !markers.iter().any(|(known, _)| *known == table) {
            markers.push((table, Offsets::default()));
        }
    }
    if let Some(named) = named.filter(|_| markers.is_empty()) {
        return Err(lakes::unknown(&named, config, lake).await);
    }
    markers.sort_by(|(left, _), (right, _)| left.cmp(right));
    let rows: Vec<PartitionRow> = markers
        .iter()
        .flat_map(|(table, marker)| {
            positions(config, table, marker, log.as_ref()).into_iter().map(|position| partition_row(table, position))
        })
        .collect();
    if args.json {
        context.stdout.print_json(&rows)?;
        return Ok(Outcome::Done);
    }
    if rows.is_empty() {
        context.note("no table has read anything yet");
        return Ok(Outcome::Done);
    }
    let mut grid = Grid::new(&[
        ("table", false),
        ("partition", false),
        ("next", true),
        ("first", true),
        ("end", true),
        ("lag", true),
        ("state", false),
    ]);
    let number = |number: Option<i64>| number.map(|number| number.to_string()).unwrap_or_default();
    for row in &rows {
        grid.push(vec![
            row.table.clone(),
            format!("{}/{}", row.topic, row.partition),
            number(row.next),
            number(row.first),
            number(row.end),
            number(row.lag),
            row.state.to_string(),
        ]);
    }
    context.stdout.print(&grid.render(context.stdout.width()))?;
    Ok(Outcome::Done)
}

fn partition_row(table: &TableName, position: PartitionPosition) -> PartitionRow {
    PartitionRow {
        table: table.to_string(),
        topic: position.at.topic.to_string(),
        partition: position.at.partition,
        next: position.next,
        first: position.bounds.map(|bounds| bounds.first),
        end: position.bounds.map(|bounds| bounds.end),
        lag: position.lag(),
        state: position.state.as_str(),
    }
}

async fn reset(args: ResetArgs, config: &Config, lake: &Lake, context: &Context) -> Result<Outcome> {
    let kafka = brokers(config, None)?;
    let named = args.table.as_deref().map(|name| lakes::bronze_name(name, config)).transpose()?;
    let table = match (&named, &args.topic) {
        (Some(table), _) => table.clone(),
        (None, topic) => {
            let topic = topic.as_deref().unwrap_or_default();
            let route = pipeline::route(config, topic).filter(|_| config.reads_topic(topic));
            route.ok_or_else(|| RunError::TopicNotRead { topic: topic.to_string() })?.table
        }
    };
    let marker = match lakes::load(&table, config, lake).await? {
        Some(table) => marker_of(&table)?,
        None => Offsets::default(),
    };
    let mut log = Log::look(&kafka, config, &[&marker]).await?;
    if marker.is_empty() && !routed_tables(config, &log).contains(&table) {
        return Err(match lakes::load(&table, config, lake).await? {
            Some(_) => OffsetsMoveError::NoTopics { table }.into(),
            None => lakes::unknown(&table, config, lake).await,
        });
    }
    let is_chosen = |at: &TopicPartition| {
        args.topic.as_deref().is_none_or(|topic| *at.topic == *topic)
            && args.partition.is_none_or(|partition| at.partition == partition)
    };
    let of_table = positions(config, &table, &marker, Some(&log));
    let partitions: Vec<TopicPartition> = of_table.into_iter().map(|of| of.at).filter(is_chosen).collect();
    if partitions.is_empty() {
        let (topic, partition) = (args.topic.unwrap_or_default(), args.partition.unwrap_or(0));
        return Err(OffsetsMoveError::NoPartition { topic, partition }.into());
    }
    let targets = args.to.target(context.clock.now_ms()).resolve(&partitions, &log, &kafka).await?;
    let rows_passed = match (args.rewind, args.epoch, args.restored) {
        (true, ..) => RowsPassed::Delete,
        (_, true, _) => RowsPassed::NextEpoch,
        (.., true) => RowsPassed::Anew,
        _ => RowsPassed::Refuse,
    };
    if args.epoch || args.restored {
        log.recognise(&kafka, &marker).await?;
    }
    let engine = pipeline::engine(config)?;
    let plan = MovePlan::new(lake, &engine, config, &table, &targets, &log, rows_passed).await?;
    carry_out(vec![plan], &args.how, "offsets reset", lake, &engine, context).await
}

async fn import(args: ImportArgs, config: &Config, lake: &Lake, context: &Context) -> Result<Outcome> {
    let log = Log::look(&brokers(config, None)?, config, &[]).await?;
    let found = match (&args.from_group, &args.from_connect) {
        (Some(group), _) => {
            let partitions = log.partitions().cloned().collect();
            let found = brokers(config, Some(group))?.committed(partitions).await?;
            if found.is_empty() {
                return Err(OffsetsMoveError::NothingCommitted { group: group.clone() }.into());
            }
            found
        }
        (None, Some(sink)) => {
            let table = lakes::table(sink, config, lake).await?;
            SinkMark::of(&table)?.positions(sink, &log, |group| brokers(config, Some(group))).await?
        }
        (None, None) => Positions::new(),
    };
    let named = args.tables.iter().map(|name| lakes::bronze_name(name, config));
    let named: BTreeSet<TableName> = named.collect::<Result<_>>()?;
    let routed = routed_tables(config, &log);
    if let Some(table) = named.iter().find(|table| !routed.contains(table)) {
        return Err(OffsetsMoveError::NoTopics { table: table.clone() }.into());
    }
    let tables = if named.is_empty() { routed } else { named };
    let engine = pipeline::engine(config)?;
    let plans = plan_import(lake, &engine, config, &log, &found, &tables, args.force).await?;
    for at in log.partitions().filter(|at| config.reads_topic(&at.topic) && !found.contains_key(at)) {
        if pipeline::route(config, &at.topic).is_some_and(|route| tables.contains(&route.table)) {
            context.note(&format!("`{at}` has no offset there, and stays as it is"));
        }
    }
    carry_out(plans, &args.how, "offsets import", lake, &engine, context).await
}

/// Shows what is planned and, when somebody says yes, does it.
async fn carry_out(
    plans: Vec<MovePlan>,
    how: &HowArgs,
    by: &str,
    lake: &Lake,
    engine: &Engine,
    context: &Context,
) -> Result<Outcome> {
    let mut shown: Vec<MoveRow> = plans.iter().map(move_row).collect();
    if !how.json {
        context.stdout.print(&described(&plans, context))?;
    }
    let plans: Vec<MovePlan> = plans.into_iter().filter(|plan| !plan.is_empty()).collect();
    let moves = !how.dry_run && !plans.is_empty();
    if moves {
        confirm(how.yes, context)?;
        for plan in plans {
            plan.apply(lake, engine, &context.clock, by).await?;
        }
    }
    if how.json {
        shown.iter_mut().for_each(|row| row.moved = moves);
        context.stdout.print_json(&shown)?;
    } else if moves {
        context.note("moved");
    } else if how.dry_run {
        context.note("nothing was moved: `--dry-run`");
    } else {
        context.note("nothing was moved: everything is there already");
    }
    Ok(Outcome::Done)
}

fn move_row(plan: &MovePlan) -> MoveRow {
    let partitions = plan.moves.iter().map(|a_move| MovedPartition {
        topic: a_move.at.topic.to_string(),
        partition: a_move.at.partition,
        from: a_move.from,
        to: a_move.to,
    });
    MoveRow {
        table: plan.table.to_string(),
        epoch: plan.epoch.1,
        partitions: partitions.collect(),
        rows_deleted: plan.rows_deleted(),
        moved: false,
    }
}

fn described(plans: &[MovePlan], context: &Context) -> String {
    let mut grid =
        Grid::new(&[("table", false), ("partition", false), ("now", true), ("then", true), ("what it means", false)]);
    let mut notes = String::new();
    for plan in plans {
        for a_move in &plan.moves {
            let meaning = match a_move.from {
                None => "starts there".to_string(),
                Some(from) if from == a_move.to => "stays".to_string(),
                Some(from) if from < a_move.to => format!("skips {} offsets", a_move.to - from),
                Some(from) => format!("reads {} offsets again", from - a_move.to),
            };
            let deletes = match (plan.rows_deleted(), a_move.rows) {
                (0, _) | (_, 0) => String::new(),
                (_, rows) => format!(", deletes {rows} rows"),
            };
            grid.push(vec![
                plan.table.to_string(),
                a_move.at.to_string(),
                a_move.from.map_or("none".to_string(), |from| from.to_string()),
                a_move.to.to_string(),
                format!("{meaning}{deletes}"),
            ]);
        }
        if plan.epoch.0 != plan.epoch.1 {
            notes.push_str(&format!("{}: epoch {} becomes {}\n", plan.table, plan.epoch.0, plan.epoch.1));
        }
        if plan.begins_anew() {
            notes.push_str(&format!("{}: silver will hold what is read from there on, and nothing else\n", plan.table));
        } else if plan.rows_deleted() > 0 {
            notes.push_str(&format!(
                "{}: {} rows are deleted and come again when they are read; records that compaction has taken out of the \
                 topic do not. Silver is folded anew from all of bronze at the next build\n",
                plan.table,
                plan.rows_deleted()
            ));
        }
    }
    grid.render(context.stdout.width()) + &notes
}

fn confirm(yes: bool, context: &Context) -> Result<()> {
    if yes {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() || !std::io::stderr().is_terminal() {
        return Err(NotConfirmed.into());
    }
    context.progress.line("Move the offsets as shown? [y/N]");
    let mut answer = String::new();
    // Whoever closes the terminal does not say yes.
    let _ = stdin.lock().read_line(&mut answer);
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(NotConfirmed.into()),
    }
}

fn brokers(config: &Config, group: Option<&str>) -> Result<KafkaAdmin> {
    let missing = || -> Error {
        match config.kafka.brokers {
            Some(Brokers::Embedded) => RunError::EmbeddedBroker.into(),
            _ => RunError::NoBrokers.into(),
        }
    };
    pipeline::kafka_admin(config, group)?.ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_word_an_offset_a_time_or_a_span() {
        let check = |text: &str, expected: To| assert_eq!(text.parse::<To>(), Ok(expected), "{text}");
        check("earliest", To::At(Target::Earliest));
        check("latest", To::At(Target::Latest));
        check("4711", To::At(Target::Offset(4711)));
        check("2026-01-31T00:00:00Z", To::At(Target::TimeMs(1_769_817_600_000)));
        check("2026-01-31", To::At(Target::TimeMs(1_769_817_600_000)));
        check("-1h", To::Ago(Duration::from_secs(3600)));
        assert_eq!("-90s".parse::<To>().unwrap().target(100_000), Target::TimeMs(10_000));
        for bad in ["", "now", "-1", "1h", "-yesterday", "0x10"] {
            assert!(bad.parse::<To>().is_err(), "{bad} should be refused");
        }
    }
}
