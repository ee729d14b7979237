//! What a run would do to each table, found out without doing it.
//!
//! Bronze is told from the configuration and, where the brokers answer, from the topics; silver and gold from their models
//! and markers. A run reads the topics first, so a table is also said to change when what it reads will. What a merge
//! finds in the events (late ones, truncations) is not known before they are read: figures are of what is read for sure.

use std::collections::{BTreeMap, BTreeSet};

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::Serialize;

use super::check::image_columns;
use super::offsets::{Log, PartitionPosition, State, marker_of, positions, routed_tables};
use super::{Audit, Models, quality};
use crate::config::Config;
use crate::definition::Difference;
use crate::engine;
use crate::error::Result;
use crate::evolution::Evolution;
use crate::gold::{self, GoldModel};
use crate::ids::TableName;
use crate::layout;
use crate::offsets::Offsets;
use crate::silver::{self, SilverModel};
use crate::source::KafkaAdmin;
use crate::table::{Amount, At, ColumnStep, Lake, SchemaChange, Table};

/// What a run would do.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Plan {
    /// Why the brokers could not be asked, where they were to be.
    pub source_problem: Option<String>,
    pub tables: Vec<TablePlan>,
    pub audits: Vec<AuditPlan>,
}

/// Whether a run would ask an audit.
#[derive(Debug, Clone, Serialize)]
pub struct AuditPlan {
    pub audit: String,
    pub severity: &'static str,
    /// `change` when it is asked.
    pub action: Action,
    pub because: String,
}

/// Where the rows of a silver table are that break a rule.
#[derive(Debug, Clone, Serialize)]
pub struct QuarantinePlan {
    pub table: String,
    /// How many there are now; `None` when it is not made yet.
    pub rows: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    Bronze,
    Silver,
    Gold,
}

/// What a run would do to a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It is made.
    Create,
    /// Rows, columns or both change.
    Change,
    /// A run stops at it; a person has to decide.
    Blocked,
    /// It stays as it is.
    Nothing,
    /// It cannot be made yet: what it reads is not there.
    Wait,
    /// The brokers were not asked whether there is something for it.
    Unknown,
}

#[derive(Debug, Clone, Serialize)]
pub struct TablePlan {
    pub layer: Layer,
    pub table: String,
    pub action: Action,
    /// Why, and what is done, in words.
    pub because: Vec<String>,
    /// Columns that come, go, or get another type; all of them for a new table.
    pub columns: Vec<ColumnStep>,
    /// In what the model differs from the one that the table was built by.
    pub model_changes: Vec<Difference>,
    /// What is read of tables, as they are now.
    pub reads: Amount,
    /// What the topics hold for it and it does not; `None` where that is not known.
    pub records_waiting: Option<i64>,
    /// Where rows are kept apart, if that is to be or has been.
    pub quarantine: Option<QuarantinePlan>,
    /// The command that gets a table on that is blocked.
    pub command: Option<String>,
}

impl TablePlan {
    fn new(layer: Layer, table: &TableName, action: Action, because: impl Into<String>) -> Self {
        TablePlan {
            layer,
            table: table.to_string(),
            action,
            because: vec![because.into()],
            columns: Vec::new(),
            model_changes: Vec::new(),
            reads: Amount::default(),
            records_waiting: None,
            quarantine: None,
            command: None,
        }
    }
}

impl Plan {
    /// Looks at every table of the project. `columns` are those that the models give, as far as they are known. Without
    /// `kafka`, bronze is told from the configuration and the tables alone.
    pub async fn look(
        lake: &Lake,
        config: &Config,
        models: &Models,
        columns: &BTreeMap<TableName, SchemaRef>,
        kafka: Option<&KafkaAdmin>,
    ) -> Result<Self> {
        let mut planning = Planning {
            lake,
            config,
            columns,
            plan: Plan::default(),
            changing: BTreeSet::new(),
            expected: BTreeSet::new(),
            blocked: BTreeSet::new(),
        };
        planning.bronze(kafka).await?;
        for model in silver::in_order(&models.silver)? {
            planning.silver(model).await?;
        }
        for model in gold::in_order(&models.gold)? {
            planning.gold(model).await?;
        }
        let kept_in = match &models.quality {
            Some(kept) => lake.table_if_exists(&kept.table).await?,
            None => None,
        };
        for audit in &models.audits {
            planning.audit(audit, kept_in.as_ref()).await?;
        }
        Ok(planning.plan)
    }

    pub fn count(&self, action: Action) -> usize {
        self.tables.iter().filter(|table| table.action == action).count()
    }
}

struct Planning<'a> {
    lake: &'a Lake,
    config: &'a Config,
    columns: &'a BTreeMap<TableName, SchemaRef>,
    plan: Plan,
    /// Tables that the run will have changed when those that read them have their turn.
    changing: BTreeSet<TableName>,
    /// Tables that may come to be.
    expected: BTreeSet<TableName>,
    /// Tables that the run stops at.
    blocked: BTreeSet<TableName>,
}

impl Planning<'_> {
    async fn bronze(&mut self, kafka: Option<&KafkaAdmin>) -> Result<()> {
        let namespace = &self.config.namespaces.bronze;
        let mut tables: BTreeMap<TableName, Table> = BTreeMap::new();
        for name in self.lake.tables(namespace).await? {
            if let Some(table) = self.lake.table_if_exists(&name).await?
                && table.schema()?.index_of(layout::ERROR).is_ok()
            {
                tables.insert(name, table);
            }
        }
        let markers: BTreeMap<&TableName, Offsets> =
            tables.iter().map(|(name, table)| Ok((name, marker_of(table)?))).collect::<Result<_>>()?;
        let log = match kafka {
            Some(kafka) => Log::look(kafka, self.config, &markers.values().collect::<Vec<_>>()).await.map(Some),
            None => Ok(None),
        };
        let log = log.unwrap_or_else(|error| {
            self.plan.source_problem = Some(error.to_string());
            None
        });
        let declared = self.config.tables.iter().filter_map(|table| TableName::new(namespace, &table.name).ok());
        let mut names: BTreeSet<TableName> = tables.keys().cloned().chain(declared).collect();
        names.extend(log.iter().flat_map(|log| routed_tables(self.config, log)));
        let nothing = Offsets::default();
        for name in names {
            let marker = markers.get(&name).unwrap_or(&nothing);
            let positions = positions(self.config, &name, marker, log.as_ref());
            self.bronze_table(&name, tables.get(&name), &positions, log.is_some()).await?;
        }
        Ok(())
    }

    async fn bronze_table(
        &mut self,
        name: &TableName,
        table: Option<&Table>,
        positions: &[PartitionPosition],
        is_log_known: bool,
    ) -> Result<()> {
        let mut topics: Vec<&str> = positions.iter().map(|position| &*position.at.topic).collect();
        topics.dedup();
        let lag = positions.iter().map(PartitionPosition::lag).sum::<Option<i64>>();
        let lag = lag.filter(|_| is_log_known && !positions.is_empty());
        let stuck = positions.iter().find(|at| matches!(at.state, State::Expired | State::PastEnd | State::Gone));
        let mut plan = match (table, stuck) {
            (Some(_), Some(at)) => {
                let because = format!("`{}` is {}: reading stops there", at.at, at.state.as_str());
                let mut plan = TablePlan::new(Layer::Bronze, name, Action::Blocked, because);
                plan.command = Some(format!("icestream offsets show {}", name.name()));
                plan
            }
            (None, _) if is_log_known && topics.is_empty() => {
                TablePlan::new(Layer::Bronze, name, Action::Wait, "no topic that is read brings records for it")
            }
            (None, _) => {
                let from = match topics.as_slice() {
                    [] => "when a topic brings records for it".to_string(),
                    topics => format!("from {}", quoted(topics)),
                };
                TablePlan::new(Layer::Bronze, name, Action::Create, from)
            }
            (Some(_), None) => {
                let (action, because) = match lag {
                    Some(0) => (Action::Nothing, "everything is read".to_string()),
                    Some(_) => (Action::Change, format!("from {}", quoted(&topics))),
                    None => (Action::Unknown, "what waits in its topics is not known".to_string()),
                };
                TablePlan::new(Layer::Bronze, name, action, because)
            }
        };
        plan.records_waiting = lag;
        plan.columns = self.bronze_columns(name, table).await?;
        let stays = matches!(plan.action, Action::Nothing | Action::Unknown);
        if stays && !plan.columns.is_empty() && !topics.is_empty() {
            plan.action = Action::Change;
            plan.because.push("`catalog/` declares other columns".to_string());
        } else if plan.action == Action::Create && plan.columns.is_empty() {
            plan.because.push("its first records say which columns it has".to_string());
        }
        let brings_rows = lag.is_some_and(|lag| lag > 0);
        let alters_columns = plan.action == Action::Change && !plan.columns.is_empty();
        if plan.action != Action::Blocked && (brings_rows || alters_columns) {
            self.changing.insert(name.clone());
        }
        if plan.action == Action::Create {
            self.expected.insert(name.clone());
        }
        self.plan.tables.push(plan);
        Ok(())
    }

    /// What declared columns make of a bronze table's own.
    async fn bronze_columns(&self, name: &TableName, table: Option<&Table>) -> Result<Vec<ColumnStep>> {
        let route = self.config.tables.iter().find(|of| of.name == name.name());
        let evolution = route.map_or(self.config.evolution, |table| table.evolution);
        if evolution == Evolution::Json {
            return Ok(Vec::new());
        }
        let Some(fields) = image_columns(self.config, Some(self.lake), name).await? else { return Ok(Vec::new()) };
        let after = |of: DataType| Schema::new(vec![Field::new(layout::AFTER, of, true)]);
        let wanted = after(DataType::Struct(fields.clone()));
        Ok(match table {
            None => SchemaChange::to_fit(&after(DataType::Struct(Default::default())), &wanted)
                .column_steps(&Schema::empty()),
            Some(table) => {
                let stored = table.schema()?;
                SchemaChange::to_fit(&stored, &wanted).column_steps(&stored)
            }
        })
    }

    fn changes(&mut self, model: &SilverModel) {
        self.changing.insert(model.table.clone());
        self.changing.extend(model.quarantines().then(|| model.quarantine()));
    }

    async fn quarantine(&self, model: &SilverModel) -> Result<Option<QuarantinePlan>> {
        let made = self.lake.table_if_exists(&model.quarantine()).await?;
        let rows = made.as_ref().map(|table| {
            let summary = table.summary();
            summary.records.unwrap_or(0).saturating_sub(summary.position_deletes.unwrap_or(0))
        });
        let is_there = rows.is_some() || model.quarantines();
        Ok(is_there.then(|| QuarantinePlan { table: model.quarantine().to_string(), rows }))
    }

    async fn audit(&mut self, audit: &Audit, kept_in: Option<&Table>) -> Result<()> {
        let (mut inputs, mut missing, mut moving) = (BTreeMap::new(), Vec::new(), Vec::new());
        for input in engine::referenced_tables(&audit.sql)? {
            match self.lake.table_if_exists(&input).await? {
                _ if self.changing.contains(&input) => moving.push(input),
                Some(table) => drop(inputs.insert(input.to_string(), table)),
                None => missing.push(input),
            }
        }
        let (action, because) = if let Some(missing) = missing.first() {
            (Action::Wait, format!("`{missing}` is not there yet"))
        } else if !moving.is_empty() {
            (Action::Change, format!("asked: {} will have moved", named(moving.iter())))
        } else if kept_in.is_some_and(|kept_in| quality::is_answered(kept_in, audit, &inputs)) {
            (Action::Nothing, "what it reads has not moved".to_string())
        } else {
            (Action::Change, "asked: it or what it reads changed".to_string())
        };
        let (name, severity) = (audit.name.clone(), audit.action.as_str());
        self.plan.audits.push(AuditPlan { audit: name, severity, action, because });
        Ok(())
    }

    async fn silver(&mut self, model: &SilverModel) -> Result<()> {
        let name = &model.table;
        let plan = |action, because: String| TablePlan::new(Layer::Silver, name, action, because);
        let Some(preview) = silver::preview(self.lake, model).await? else {
            let mut plan = match self.expected.contains(&model.from) {
                true => plan(Action::Create, format!("from `{}`, which is made in the same run", model.from)),
                false => plan(Action::Wait, format!("`{}` is not there yet", model.from)),
            };
            if plan.action == Action::Create {
                plan.columns = self.model_columns(name, None, false)?;
                plan.quarantine = self.quarantine(model).await?;
                self.changes(model);
            }
            self.plan.tables.push(plan);
            return Ok(());
        };
        let waits = self.changing.contains(&model.from);
        let from = &model.from;
        let mut plan = match preview.stand {
            silver::Stand::New => plan(Action::Create, format!("folded from all of `{from}`")),
            silver::Stand::UpToDate if waits => {
                plan(Action::Change, format!("everything of `{from}` is merged; what its topics bring comes on top"))
            }
            silver::Stand::UpToDate => plan(Action::Nothing, format!("everything of `{from}` is merged")),
            silver::Stand::Behind => plan(Action::Change, format!("the new changes of `{from}` are merged")),
            silver::Stand::CutOff => plan(
                Action::Change,
                format!("`{from}` was made anew, rolled back or rewound: all of it is folded again"),
            ),
            silver::Stand::OtherModel => {
                let what = match preview.differences.is_empty() {
                    true => "the model changed; the table does not say what it was built by",
                    false => "the model changed",
                };
                let mut plan = plan(Action::Blocked, what.to_string());
                plan.command = Some(format!("icestream build --full {}", name.name()));
                plan
            }
            silver::Stand::Foreign => {
                let mut plan = plan(Action::Blocked, "it holds rows that icestream did not build".to_string());
                plan.command = Some(format!("icestream drop {name}"));
                plan
            }
        };
        plan.columns = match preview.stand {
            silver::Stand::Foreign => Vec::new(),
            stand => self.model_columns(name, preview.table.as_ref(), stand == silver::Stand::OtherModel)?,
        };
        for lookup in self.moved_lookups(preview.table.as_ref()).await? {
            plan.because.push(format!(
                "`{lookup}` moved since all rows were looked up in it; `icestream build --full {}` does that again",
                name.name()
            ));
        }
        plan.quarantine = self.quarantine(model).await?;
        plan.model_changes = preview.differences;
        plan.reads = preview.reads;
        match plan.action {
            Action::Create | Action::Change => self.changes(model),
            Action::Blocked => drop(self.blocked.insert(name.clone())),
            Action::Nothing | Action::Wait | Action::Unknown => {}
        }
        self.plan.tables.push(plan);
        Ok(())
    }

    /// The lookups that rows of a table may be behind.
    async fn moved_lookups(&self, table: Option<&Table>) -> Result<Vec<TableName>> {
        let seen = table.map(silver::lookups_seen).transpose()?.unwrap_or_default();
        let mut moved = Vec::new();
        for (lookup, seen) in seen {
            let table = self.lake.table_if_exists(&lookup).await?;
            moved.extend((!table.is_some_and(|table| table.has_rows_of(seen.first))).then_some(lookup));
        }
        Ok(moved)
    }

    /// What a model's columns make of its table's.
    fn model_columns(&self, name: &TableName, table: Option<&Table>, is_rebuilt: bool) -> Result<Vec<ColumnStep>> {
        let Some(wanted) = self.columns.get(name) else { return Ok(Vec::new()) };
        let stored = table.map(|table| table.schema()).transpose()?.unwrap_or_else(|| Schema::empty().into());
        let mut change = SchemaChange::to_fit(&stored, wanted);
        if is_rebuilt {
            for field in stored.fields().iter().filter(|field| wanted.index_of(field.name()).is_err()) {
                change = change.drop_column(field.name());
            }
        }
        Ok(change.column_steps(&stored))
    }

    async fn gold(&mut self, model: &GoldModel) -> Result<()> {
        let name = &model.table;
        let inputs = engine::referenced_tables(&model.sql)?;
        let mut heads: BTreeMap<TableName, Option<Table>> = BTreeMap::new();
        let (mut reads, mut missing) = (Amount::default(), Vec::new());
        for input in inputs {
            match self.lake.table_if_exists(&input).await? {
                Some(table) => {
                    let amount = table.view(At::Head)?.amount().await?;
                    reads.files += amount.files;
                    reads.rows += amount.rows;
                    reads.bytes += amount.bytes;
                    heads.insert(input, Some(table));
                }
                None if self.changing.contains(&input) => drop(heads.insert(input, None)),
                None => missing.push(input),
            }
        }
        if let Some(missing) = missing.first() {
            let because = format!("`{missing}` is not there yet");
            self.plan.tables.push(TablePlan::new(Layer::Gold, name, Action::Wait, because));
            return Ok(());
        }
        let gold = self.lake.table_if_exists(name).await?;
        let changing: Vec<&TableName> = heads.keys().filter(|input| self.changing.contains(input)).collect();
        let how = match model.group_by.is_empty() {
            true => "all of it is computed".to_string(),
            false => {
                let columns: Vec<&str> = model.group_by.iter().map(String::as_str).collect();
                format!(
                    "the groups ({}) that changed rows reach are computed, all of them where that is not provable",
                    columns.join(", ")
                )
            }
        };
        let plan = |action, because: String| TablePlan::new(Layer::Gold, name, action, because);
        let mut plan = match gold::Stand::of(model, gold.as_ref(), &heads) {
            gold::Stand::New => plan(Action::Create, "computed for the first time".to_string()),
            gold::Stand::OtherModel(differences) => {
                let mut plan = plan(Action::Change, "the model changed: all of it is computed".to_string());
                plan.model_changes = differences;
                plan
            }
            gold::Stand::Moved(moved) => plan(Action::Change, format!("{} moved: {how}", named(moved.iter()))),
            gold::Stand::UpToDate if !changing.is_empty() => {
                plan(Action::Change, format!("{} will have moved: {how}", named(changing.iter().copied())))
            }
            gold::Stand::UpToDate => plan(Action::Nothing, "what it reads has not moved".to_string()),
            gold::Stand::Foreign => {
                let mut plan = plan(Action::Blocked, "it holds rows that icestream did not build".to_string());
                plan.command = Some(format!("icestream drop {name}"));
                plan
            }
        };
        if matches!(plan.action, Action::Create | Action::Change) {
            plan.columns = self.model_columns(name, gold.as_ref(), false)?;
            plan.reads = reads;
            let blocked = heads.keys().filter(|input| self.blocked.contains(input));
            plan.because.extend(blocked.map(|input| format!("`{input}` is read as it is until it is rebuilt")));
            self.changing.insert(name.clone());
        }
        self.plan.tables.push(plan);
        Ok(())
    }
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn named<'a>(tables: impl Iterator<Item = &'a TableName>) -> String {
    tables.map(|table| format!("`{table}`")).collect::<Vec<_>>().join(", ")
}
