use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;

use super::diff::difference;
use super::run::RunError;
use super::{Context, Outcome};
use crate::config::{Brokers, Config};
use crate::discover::{self, DdlFile, Draft, Drafting, Drafts, Finding, Target};
use crate::error::{Kind, Result, Situation};
use crate::offsets::TopicPartition;
use crate::pipeline;
use crate::source::{KafkaConfig, KafkaSource, Source};

const AFTER_HELP: &str = "\
Examples:
  icestream discover                                     drafts of all topics, on stdout
  icestream discover shop.public.orders --sample 10000   of one topic, from more records
  icestream discover --ddl schema.sql --write            with the types of CREATE TABLE, into catalog/
  pg_dump --schema-only shop > schema.sql                makes such a file; mysqldump --no-data likewise";

/// How many topics are sampled at once.
const AT_ONCE: usize = 4;

/// How much a client may read ahead of one topic.
const QUEUE_BYTES: usize = 8 << 20;

/// Sample topics, read CREATE TABLE files, and draft `catalog/<table>.yaml` for review
///
/// Types come from the records' schema blocks, else from the CREATE TABLE files, else from the values. What the values do
/// not tell is marked `ambiguous` in the draft and never guessed. No group's offsets are moved.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct DiscoverArgs {
    /// Topics or patterns with `*` [default: the project's]
    #[arg(value_name = "TOPIC")]
    pub topics: Vec<String>,

    /// How many records of each topic to look at, the oldest and the newest of each partition
    #[arg(long, value_name = "RECORDS", default_value_t = 1000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub sample: usize,

    /// Schema files with CREATE TABLE statements of PostgreSQL, MySQL, MariaDB, SQL Server or Oracle
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub ddl: Vec<PathBuf>,

    /// Write the drafts of tables that have no file yet to `catalog/`
    #[arg(long)]
    pub write: bool,

    /// Write over files that are there, and show what differs
    #[arg(long, requires = "write")]
    pub overwrite: bool,

    /// Leave the sampled values out of the drafts
    #[arg(long)]
    pub no_examples: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    #[error("`{}` cannot be read", path.display())]
    Ddl {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("there is no topic like {wanted}")]
    NoTopics { wanted: String },
    #[error("cannot write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Situation for DiscoverError {
    fn kind(&self) -> Kind {
        Kind::Config
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            DiscoverError::Ddl { .. } => "name a text file with CREATE TABLE statements".to_string(),
            DiscoverError::NoTopics { .. } => {
                "name topics or patterns such as `shop.public.*`; Kafka's own (`__…`) are left out".to_string()
            }
            DiscoverError::Write { .. } => "check that this process may write there".to_string(),
        })
    }
}

/// What became of a draft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Fate {
    /// It was only shown.
    Shown,
    Written,
    /// A file was there and is not written over.
    Kept,
    /// A file was there with this text.
    Same,
}

#[derive(Debug, Serialize)]
struct DraftRow<'d> {
    file: String,
    fate: Fate,
    #[serde(flatten)]
    draft: &'d Draft,
}

#[derive(Debug, Serialize)]
struct Shown<'d> {
    drafts: Vec<DraftRow<'d>>,
    findings: &'d [Finding],
}

pub async fn run(args: DiscoverArgs, context: &Context) -> Result<Outcome> {
    let config = context.config()?;
    let files = args.ddl.iter().map(|path| ddl_file(path)).collect::<Result<Vec<_>>>()?;
    let kafka = kafka(&config, &args.topics)?;
    let found = draft(&config, &kafka, files, &args, context).await?;
    let mut rows = Vec::new();
    for draft in &found.drafts {
        let path = path_of(&config, draft);
        let fate = if args.write { write(&path, draft, args.overwrite, context)? } else { Fate::Shown };
        let file = path.strip_prefix(&config.project_dir).unwrap_or(&path).display().to_string();
        rows.push(DraftRow { file, fate, draft });
    }
    if args.write {
        // What was written has to be a project that every verb takes.
        context.config()?;
    }
    if args.json {
        context.stdout.print_json(&Shown { drafts: rows, findings: &found.findings })?;
        return Ok(Outcome::Done);
    }
    context.stdout.print(&text(&rows))?;
    for Finding { about, text } in &found.findings {
        context.note(&format!("{about}: {text}"));
    }
    for row in rows.iter().filter(|row| row.fate == Fate::Kept) {
        context.note(&format!("{}: is there and was left alone; `--overwrite` writes over it", row.file));
    }
    context.note(&summary(&rows, args.write));
    Ok(Outcome::Done)
}

fn text(rows: &[DraftRow<'_>]) -> String {
    let mut text = String::new();
    for row in rows {
        match row.fate {
            Fate::Shown => text.push_str(&format!("--- # {}\n{}", row.file, row.draft.yaml)),
            Fate::Written => text.push_str(&format!("{}\n", row.file)),
            Fate::Kept | Fate::Same => {}
        }
    }
    text
}

fn summary(rows: &[DraftRow<'_>], wrote: bool) -> String {
    let count = |fate: Fate| rows.iter().filter(|row| row.fate == fate).count();
    let drafts = |count: usize| if count == 1 { "1 draft".to_string() } else { format!("{count} drafts") };
    match wrote {
        false if rows.is_empty() => "no drafts".to_string(),
        false => format!("{}; `--write` puts them into `catalog/`", drafts(rows.len())),
        true => {
            format!(
                "{} written, {} left alone; next: review, then `icestream check`",
                drafts(count(Fate::Written)),
                rows.len() - count(Fate::Written)
            )
        }
    }
}

fn ddl_file(path: &Path) -> Result<DdlFile> {
    let bytes = std::fs::read(path).map_err(|source| DiscoverError::Ddl { path: path.to_path_buf(), source })?;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    Ok(DdlFile { name, text: decoded(&bytes) })
}

/// SQL Server's tools write UTF-16; others may write an encoding of old, in which names and types are ASCII all the same.
fn decoded(bytes: &[u8]) -> String {
    let wide = |from: fn([u8; 2]) -> u16| -> Vec<u16> {
        bytes[2..].chunks_exact(2).map(|pair| from([pair[0], pair[1]])).collect()
    };
    match bytes {
        [0xff, 0xfe, ..] => String::from_utf16_lossy(&wide(u16::from_le_bytes)),
        [0xfe, 0xff, ..] => String::from_utf16_lossy(&wide(u16::from_be_bytes)),
        [0xef, 0xbb, 0xbf, rest @ ..] => String::from_utf8_lossy(rest).into_owned(),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

fn kafka(config: &Config, topics: &[String]) -> Result<KafkaConfig> {
    let brokers = match &config.kafka.brokers {
        None => return Err(RunError::NoBrokers.into()),
        Some(Brokers::Embedded) => return Err(RunError::EmbeddedBroker.into()),
        Some(Brokers::At(brokers)) => brokers.clone(),
    };
    let own = || config.kafka.topics.iter().map(|pattern| pattern.as_str().to_string()).collect();
    let topics: Vec<String> = if topics.is_empty() { own() } else { topics.to_vec() };
    if topics.is_empty() {
        return Err(RunError::NoTopics.into());
    }
    Ok(KafkaConfig { topics, queue_bytes: QUEUE_BYTES, ..pipeline::kafka_config(config, &brokers) })
}

/// Samples every topic, some at a time, each with a client of its own, so that what one has read ahead goes with it.
async fn draft(
    config: &Config,
    kafka: &KafkaConfig,
    files: Vec<DdlFile>,
    args: &DiscoverArgs,
    context: &Context,
) -> Result<Drafts> {
    let partitions = KafkaSource::connect(kafka.clone())?.partitions().await?;
    let mut topics: BTreeMap<Arc<str>, Vec<TopicPartition>> = BTreeMap::new();
    for at in partitions {
        topics.entry(at.topic.clone()).or_default().push(at);
    }
    if topics.is_empty() {
        let wanted: Vec<String> = kafka.topics.iter().map(|topic| format!("`{topic}`")).collect();
        return Err(DiscoverError::NoTopics { wanted: wanted.join(", ") }.into());
    }
    let sampled = topics.keys().map(|topic| target(config, topic));
    let declared = config.tables.iter().map(|table| Target {
        topic: table.topic.clone().unwrap_or_else(|| table.name.clone()),
        table: Some(table.name.clone()),
        is_declared: true,
    });
    let targets: Vec<Target> = sampled.chain(declared).collect();
    let mut drafting = Drafting::new(&targets, files, !args.no_examples);
    let bar = context.progress.bar("topics", topics.len() as u64);
    let reading = topics.into_iter().map(|(topic, partitions)| async move {
        let mut source = KafkaSource::connect(KafkaConfig { topics: vec![topic.to_string()], ..kafka.clone() })?;
        discover::sample(&mut source, &topic, &partitions, args.sample, pipeline::format(config)).await
    });
    let mut samples = futures::stream::iter(reading).buffered(AT_ONCE);
    while let Some(sample) = samples.try_next().await? {
        drafting.add(&sample)?;
        bar.advance(1);
    }
    Ok(drafting.finish())
}

fn target(config: &Config, topic: &str) -> Target {
    Target {
        topic: topic.to_string(),
        table: pipeline::route(config, topic).map(|route| route.table.name().to_string()),
        is_declared: config.table_of_topic(topic).is_some(),
    }
}

/// The file that declares the table, or would.
fn path_of(config: &Config, draft: &Draft) -> PathBuf {
    match config.tables.iter().find(|table| table.name == draft.table) {
        Some(table) => table.file.clone(),
        None => config.project_dir.join("catalog").join(format!("{}.yaml", draft.table)),
    }
}

fn write(path: &Path, draft: &Draft, overwrite: bool, context: &Context) -> Result<Fate> {
    let refused = |source| DiscoverError::Write { path: path.to_path_buf(), source };
    match std::fs::read_to_string(path) {
        Ok(there) if there == draft.yaml => return Ok(Fate::Same),
        Ok(_) if !overwrite => return Ok(Fate::Kept),
        Ok(there) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            context.note(&format!("{name}: written over\n{}", difference(&there, &draft.yaml).trim_end()));
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(refused(error).into()),
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(refused)?;
    }
    // Nobody finds half a file, and a failure leaves the old one.
    let part = path.with_extension("part");
    std::fs::write(&part, &draft.yaml).and_then(|()| std::fs::rename(&part, path)).map_err(refused)?;
    Ok(Fate::Written)
}
