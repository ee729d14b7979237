//! A project with a lake of its own, and a second lake that everything is built in from nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use icestream::batch::ChangeBatchBuilder;
use icestream::bronze::{BronzeDefinition, BronzeTable, Outcome, Staging};
use icestream::change::RawRecord;
use icestream::clock::Clock;
use icestream::config::Config;
use icestream::decode::decode;
use icestream::engine::{self, Engine, EngineOptions};
use icestream::ids::TableName;
use icestream::offsets::TopicPartition;
use icestream::pipeline::{self, Event, Models, Observer};
use icestream::quality::FINDINGS_TABLE;
use icestream::silver;
use icestream::table::{At, Lake};
use sqllogictest::{AsyncDB, ColumnType, DBOutput};

use super::events::{Captured, Log, topic};

const SETTINGS: &str = "\
name: shop
namespaces: { bronze: bronze, silver: silver, gold: gold }
catalog: { type: sqlite, uri: lake/catalog.db }
warehouse: lake/warehouse
source: { kafka: { topics: [\"shop.public.*\"] } }
";

/// What a statement says went wrong, as a user would read it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Told(String);

impl From<icestream::error::Error> for Told {
    fn from(error: icestream::error::Error) -> Self {
        Told(error.render())
    }
}

macro_rules! told {
    ($($error:ty),*) => {
        $(impl From<$error> for Told {
            fn from(error: $error) -> Self {
                icestream::error::Error::from(error).into()
            }
        })*
    };
}

told!(engine::Error, icestream::table::Error, icestream::bronze::Error, icestream::config::ConfigError);

fn say<T>(text: impl Into<String>) -> Result<T, Told> {
    Err(Told(text.into()))
}

/// The type of a result's column; see the module above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    Boolean,
    Date,
    Integer,
    Instant,
    Real,
    Text,
}

const TYPES: [(char, Type); 6] = [
    ('B', Type::Boolean),
    ('D', Type::Date),
    ('I', Type::Integer),
    ('P', Type::Instant),
    ('R', Type::Real),
    ('T', Type::Text),
];

impl ColumnType for Type {
    fn from_char(value: char) -> Option<Self> {
        TYPES.iter().find(|(name, _)| *name == value).map(|(_, of)| *of)
    }

    fn to_char(&self) -> char {
        TYPES.iter().find(|(_, of)| of == self).unwrap().0
    }
}

impl Type {
    fn of(data_type: &DataType) -> Self {
        match data_type {
            DataType::Boolean => Type::Boolean,
            DataType::Date32 => Type::Date,
            DataType::Timestamp(..) => Type::Instant,
            data_type if data_type.is_integer() => Type::Integer,
            data_type if data_type.is_numeric() => Type::Real,
            _ => Type::Text,
        }
    }
}

pub struct Shop {
    folder: tempfile::TempDir,
    engine: Engine,
    log: Log,
    /// What the last build did to each table.
    built: Vec<(String, String)>,
    remembered: BTreeMap<String, BTreeMap<TableName, Option<i64>>>,
}

impl Shop {
    pub fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("icestream.yaml"), SETTINGS).unwrap();
        let options = EngineOptions { memory_bytes: 256 << 20, threads: 2, spill_dir: folder.path().join("spill") };
        let engine = Engine::new(&options).unwrap();
        Shop { folder, engine, log: Log::default(), built: Vec::new(), remembered: BTreeMap::new() }
    }

    fn config(&self) -> Result<Config, Told> {
        Ok(Config::load(self.folder.path(), &Default::default(), &[])?)
    }

    async fn lake(&self) -> Result<Lake, Told> {
        Ok(pipeline::open_lake(&self.config()?, Clock::system()).await?)
    }

    /// The lake in which everything is built from nothing.
    async fn second_lake(&self) -> Result<Lake, Told> {
        let elsewhere = ["catalog.uri=second/catalog.db".to_string(), "warehouse=second/warehouse".to_string()];
        let config = Config::load(self.folder.path(), &Default::default(), &elsewhere)?;
        Ok(pipeline::open_lake(&config, Clock::system()).await?)
    }

    /// Carries a statement out.
    pub async fn tell(&mut self, statement: &str) -> Result<DBOutput<Type>, Told> {
        let (line, rest) = statement.split_once('\n').unwrap_or((statement, ""));
        let words: Vec<&str> = line.split_whitespace().collect();
        let done = match words.as_slice() {
            ["table", name, ..] => self.declare(name, line).map(|()| 0)?,
            ["file", path] => self.write(path, rest).map(|()| 0)?,
            ["events", table] => self.commit(table, 0, rest).await?,
            ["events", table, "epoch", epoch] => match epoch.parse() {
                Ok(epoch) => self.commit(table, epoch, rest).await?,
                Err(_) => return say(format!("`{epoch}` is no epoch")),
            },
            ["build,", "and", "a", "rebuild", "differs"] => self.build_otherwise().await?,
            ["build", "--full", names @ ..] => self.build(names, true).await?,
            ["build", names @ ..] => self.build(names, false).await?,
            ["check"] => self.check().await?,
            ["remember", name] => self.remember(name).await.map(|()| 0)?,
            ["as", "of", name] => return self.query(rest, Some(name)).await,
            ["what", "was", "built"] => return Ok(self.what_was_built()),
            _ => return self.query(statement, None).await,
        };
        Ok(DBOutput::StatementComplete(done))
    }

    fn write(&self, path: &str, text: &str) -> Result<(), Told> {
        let path = self.folder.path().join(path);
        let written =
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new(""))).and_then(|()| std::fs::write(path, text));
        written.map_err(|error| Told(error.to_string()))
    }

    /// `table NAME (COLUMN TYPE, …) key (COLUMN, …)`, as the file it would be.
    fn declare(&self, name: &str, line: &str) -> Result<(), Told> {
        let Some((columns, rest)) = line.split_once('(').and_then(|(_, rest)| split_at_closing(rest)) else {
            return say("write `table orders (id int, status string) key (id)`");
        };
        let mut yaml = format!("topic: {}\n", topic(name));
        if let Some(key) = rest.trim().strip_prefix("key") {
            yaml.push_str(&format!("key: [{}]\n", key.trim().trim_matches(['(', ')'])));
        }
        yaml.push_str("columns:\n");
        for column in split_outside_brackets(columns) {
            let Some((name, column_type)) = column.trim().split_once(' ') else {
                return say(format!("`{column}` is no column and type"));
            };
            let encoding = match column_type {
                "date" | "timestamp" | "timestamptz" => ", encoding: iso",
                of if of.starts_with("decimal") => ", encoding: native",
                _ => "",
            };
            yaml.push_str(&format!("  - {{ name: {name}, type: \"{column_type}\"{encoding} }}\n"));
        }
        self.write(&format!("catalog/{name}.yaml"), &yaml)
    }

    /// Commits rows to bronze, in both lakes.
    async fn commit(&mut self, table: &str, epoch: i32, rows: &str) -> Result<u64, Told> {
        let config = self.config()?;
        let declared = config.tables.iter().find(|declared| declared.name == table);
        let Some((declared, shape)) = declared.and_then(|declared| Some((declared, declared.shape.as_ref()?))) else {
            return say(format!("there is no table `{table}`"));
        };
        let captured = Captured { name: table, shape, key: &declared.key };
        let before: BTreeMap<i32, i64> = self.log.next(&topic(table)).collect();
        let records = self.log.records(&captured, rows).map_err(Told)?;
        for lake in [self.lake().await?, self.second_lake().await?] {
            commit(&config, &lake, table, epoch, &before, &records).await?;
        }
        Ok(records.len() as u64)
    }

    async fn build(&mut self, names: &[&str], anew: bool) -> Result<u64, Told> {
        let done = self.build_here(names, anew).await?;
        // Tables that were left out are behind.
        let compared = |table: &TableName| names.is_empty() || names.contains(&table.name());
        let differences = self.differences(compared).await?;
        match differences.is_empty() {
            true => Ok(done),
            false => say(differences.join("\n")),
        }
    }

    async fn build_otherwise(&mut self) -> Result<u64, Told> {
        let done = self.build_here(&[], false).await?;
        match self.differences(|_| true).await?.is_empty() {
            true => say("a rebuild gives the same"),
            false => Ok(done),
        }
    }

    async fn build_here(&mut self, names: &[&str], anew: bool) -> Result<u64, Told> {
        let mut models = pipeline::models(&self.config()?)?;
        let is_named = |table: &TableName| names.is_empty() || names.contains(&table.name());
        models.silver.retain(|model| is_named(&model.table));
        models.gold.retain(|model| is_named(&model.table));
        let extent = if anew { silver::Extent::Everything } else { silver::Extent::New };
        let models = Models { extent, ..models };
        let built = Arc::new(Mutex::new(Vec::new()));
        let seen = built.clone();
        let observer: Observer = Arc::new(move |event| {
            seen.lock().unwrap().extend(match event {
                Event::Merged(commit) => {
                    let (written, deleted) = (commit.rows_written, commit.rows_deleted);
                    Some((commit.table.to_string(), format!("{written} rows written, {deleted} deleted")))
                }
                Event::Refreshed(commit) => Some((commit.table.to_string(), commit.refreshed.to_string())),
                _ => None,
            });
        });
        let outcome = pipeline::build(&self.lake().await?, &self.engine, &models, &observer).await;
        self.built = std::mem::take(&mut built.lock().unwrap());
        outcome?;
        Ok(self.built.len() as u64)
    }

    /// Builds everything from nothing in the second lake, and says how that differs.
    async fn differences(&self, compared: impl Fn(&TableName) -> bool) -> Result<Vec<String>, Told> {
        let (lake, second) = (self.lake().await?, self.second_lake().await?);
        for namespace in ["silver", "gold"] {
            for table in second.tables(namespace).await? {
                second.drop_table(&table, true).await?;
            }
        }
        let models = pipeline::models(&self.config()?)?;
        pipeline::build(&second, &self.engine, &models, &pipeline::unobserved()).await?;
        let mut differences = Vec::new();
        for namespace in ["silver", "gold"] {
            let mut tables: BTreeSet<TableName> = lake.tables(namespace).await?.into_iter().collect();
            tables.extend(second.tables(namespace).await?);
            // What rules found is of the builds that asked.
            tables.retain(|table| table.name() != FINDINGS_TABLE);
            for table in tables.into_iter().filter(|table| compared(table)) {
                let (here, there) = (self.rows(&lake, &table).await?, self.rows(&second, &table).await?);
                let only = |rows: &[String], others: &[String]| -> Vec<String> {
                    let mut others = others.to_vec();
                    let is_other = |row: &&String| match others.iter().position(|other| other == *row) {
                        Some(at) => {
                            others.remove(at);
                            false
                        }
                        None => true,
                    };
                    rows.iter().filter(is_other).cloned().collect()
                };
                differences.extend(only(&here, &there).iter().map(|row| format!("{table}: a rebuild lacks: {row}")));
                differences.extend(only(&there, &here).iter().map(|row| format!("{table}: a rebuild also has: {row}")));
            }
        }
        Ok(differences)
    }

    /// A table's rows: each as its values that are not null, but for when they were merged.
    async fn rows(&self, lake: &Lake, table: &TableName) -> Result<Vec<String>, Told> {
        let Some(table) = lake.table_if_exists(table).await? else { return Ok(Vec::new()) };
        let session = self.engine.session();
        engine::register(&session, table.name(), table.view(At::Head)?)?;
        let frame = engine::plan(&session, &format!("SELECT * FROM {}", table.name())).await?;
        let batches = frame.collect().await.map_err(engine::Error::from)?;
        let mut rows = Vec::new();
        for batch in &batches {
            let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
            rows.extend(texts(batch).into_iter().map(|row| {
                let known = names.iter().zip(row).filter(|(name, value)| *name != "_merged_at" && value != "NULL");
                // A column that came later stands elsewhere in a table that was made with it.
                let mut known: Vec<String> = known.map(|(name, value)| format!("{name}={value}")).collect();
                known.sort();
                known.join(", ")
            }));
        }
        rows.sort();
        Ok(rows)
    }

    async fn check(&self) -> Result<u64, Told> {
        let lake = self.lake().await?;
        let found = pipeline::check_models(&self.config()?, &self.engine, Some(&lake)).await?;
        let problems: Vec<String> = found.problems.iter().map(ToString::to_string).collect();
        match problems.is_empty() {
            true => Ok(found.planned as u64),
            false => say(problems.join("\n")),
        }
    }

    async fn remember(&mut self, name: &str) -> Result<(), Told> {
        let lake = self.lake().await?;
        let mut state = BTreeMap::new();
        for namespace in ["bronze", "silver", "gold"] {
            for table in lake.tables(namespace).await? {
                state.insert(table.clone(), lake.table(&table).await?.snapshot_id());
            }
        }
        self.remembered.insert(name.to_string(), state);
        Ok(())
    }

    async fn query(&self, sql: &str, state: Option<&str>) -> Result<DBOutput<Type>, Told> {
        let state = match state.map(|name| (name, self.remembered.get(name))) {
            None => None,
            Some((_, Some(state))) => Some(state),
            Some((name, None)) => return say(format!("nothing was remembered as `{name}`")),
        };
        let lake = self.lake().await?;
        let session = self.engine.session();
        for name in engine::referenced_tables(sql)? {
            let at = match state {
                None => At::Head,
                Some(state) => match state.get(&name) {
                    Some(Some(snapshot)) => At::Snapshot(*snapshot),
                    _ => return say(format!("`{name}` had no rows then")),
                },
            };
            engine::register(&session, &name, lake.table(&name).await?.view(at)?)?;
        }
        let frame = engine::plan(&session, sql).await?;
        let fields = frame.schema().as_arrow().fields().clone();
        let types = fields.iter().map(|field| Type::of(field.data_type())).collect();
        let batches = frame.collect().await.map_err(engine::Error::from)?;
        Ok(DBOutput::Rows { types, rows: batches.iter().flat_map(texts).collect() })
    }

    fn what_was_built(&self) -> DBOutput<Type> {
        let rows = self.built.iter().map(|(table, what)| vec![table.clone(), what.clone()]).collect();
        DBOutput::Rows { types: vec![Type::Text, Type::Text], rows }
    }

    /// What no build would do.
    pub async fn lose_the_rows_of(&self, table: &str) {
        let table = self.lake().await.unwrap().table(&table.parse().unwrap()).await.unwrap();
        table.change().replace_all(Vec::new()).commit().await.unwrap();
    }
}

#[async_trait::async_trait]
impl AsyncDB for Shop {
    type Error = Told;
    type ColumnType = Type;

    async fn run(&mut self, statement: &str) -> Result<DBOutput<Type>, Told> {
        self.tell(statement).await
    }

    async fn shutdown(&mut self) {}
}

async fn commit(
    config: &Config,
    lake: &Lake,
    table: &str,
    epoch: i32,
    before: &BTreeMap<i32, i64>,
    records: &[RawRecord],
) -> Result<(), Told> {
    let Some(route) = pipeline::route(config, &topic(table)) else { return say("no table can have this name") };
    let definition = BronzeDefinition {
        name: route.table,
        shape: route.shape,
        evolution: route.evolution,
        partition: route.partition,
        properties: route.properties,
    };
    let mut bronze = BronzeTable::open(lake, &definition).await?;
    let mut builder = ChangeBatchBuilder::new(bronze.images()?, epoch, Clock::system());
    for (partition, next) in before {
        builder.start(TopicPartition::new(topic(table), *partition), *next).unwrap();
    }
    for record in records {
        builder.push(decode(record.clone(), pipeline::format(config))).unwrap();
    }
    let batch = builder.finish().unwrap();
    if batch.counts.rejected > 0 {
        return say("a record was rejected");
    }
    assert_eq!(bronze.stage(&batch).await?, Staging::Staged);
    let outcome = bronze.commit(&batch.ranges, &BTreeMap::new(), batch.counts).await?;
    assert!(matches!(outcome, Outcome::Committed(_)));
    Ok(())
}

fn texts(batch: &RecordBatch) -> Vec<Vec<String>> {
    let options = FormatOptions::new().with_null("NULL");
    let columns: Vec<ArrayFormatter<'_>> =
        batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
    let shown = |text: String| if text.is_empty() { "(empty)".to_string() } else { text };
    (0..batch.num_rows())
        .map(|row| columns.iter().map(|column| shown(column.value(row).to_string())).collect())
        .collect()
}

/// What stands before the bracket that closes, and behind it.
fn split_at_closing(text: &str) -> Option<(&str, &str)> {
    let mut open = 1;
    for (at, c) in text.char_indices() {
        open += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        if open == 0 {
            return Some((&text[..at], &text[at + 1..]));
        }
    }
    None
}

fn split_outside_brackets(text: &str) -> Vec<&str> {
    let mut open = 0;
    text.split(|c| {
        open += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        c == ',' && open == 0
    })
    .collect()
}
