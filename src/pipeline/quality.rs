//! What rules and audits found, kept in a table, and what a project's audits are.
//!
//! One commit per pass that found anything adds its findings to `<gold namespace>.icestream_quality`. The table's marker
//! says of each audit which snapshots it was last asked of: while they are the newest, its answer stands. And it says of
//! each table which of its commits were gone through: what a run found that ended before it could keep it stands in the
//! summary of its snapshot, and is taken from there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::{cast, max};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMicrosecondType};
use datafusion::error::DataFusionError;
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::build::KeptFindings;
use super::rows;
use crate::engine::{self, Engine};
use crate::error::{Error, Kind, Result, Situation};
use crate::fingerprint::fingerprint;
use crate::ids::TableName;
use crate::layout;
use crate::quality::{Action, Finding, NULL_KEY, RULES_COLUMN, Rule, TARGET, Test, ask_whole, quote};
use crate::table::{At, Lake, Premise, Table, TableDefinition, TableView, WrittenFile};

/// The marker's key.
const MARKER: &str = "icestream.audits";

/// The table's files are put together when they are so many.
const FILES_MAX: usize = 32;

/// How often findings are added anew when others add theirs at the same time.
const ATTEMPTS: usize = 5;

/// A query that must find no row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    pub name: String,
    /// What its findings are filed under; the tables it reads, where it does not say.
    pub table: Option<TableName>,
    pub action: Action,
    pub sql: String,
}

impl Audit {
    /// Whether it reads one of some tables.
    pub fn reads(&self, is_one: impl Fn(&TableName) -> bool) -> bool {
        engine::referenced_tables(&self.sql).is_ok_and(|tables| tables.iter().any(is_one))
    }
}

#[derive(Debug, thiserror::Error)]
pub enum QualityError {
    #[error("audit `{audit}` found {}", plural(*rows))]
    Audit { audit: String, rows: u64 },
    #[error("table `{table}` breaks `{rule}`: its newest row is {age} old, and may be {within} old at most")]
    Stale { table: TableName, rule: String, age: String, within: String },
    #[error("table `{table}` breaks `{rule}`: it has no row that would be new")]
    Empty { table: TableName, rule: String },
    #[error("table `{table}` breaks `{rule}` by {} that it had before the rule", plural(*rows))]
    Present { table: TableName, rule: String, rows: u64 },
    #[error("audit `{audit}` cannot be asked")]
    Unasked {
        audit: String,
        #[source]
        source: engine::Error,
    },
    #[error("the column `{column}` of `{table}` is no time that could be fresh, but a value of type {found}")]
    NoTime { table: TableName, column: String, found: String },
}

fn plural(rows: u64) -> String {
    if rows == 1 { "1 row".to_string() } else { format!("{rows} rows") }
}

impl Situation for QualityError {
    fn kind(&self) -> Kind {
        match self {
            QualityError::Audit { .. }
            | QualityError::Present { .. }
            | QualityError::Stale { .. }
            | QualityError::Empty { .. } => Kind::Quality,
            QualityError::Unasked { source, .. } => source.kind(),
            QualityError::NoTime { .. } => Kind::Config,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            QualityError::Audit { audit, .. } => {
                Some(format!("to see them, run `icestream query \"$(cat sql/audits/{audit}.sql)\"`"))
            }
            QualityError::Present { .. } => Some(
                "mend the source, or change what the rule does by its `else` in the model; the next build asks again"
                    .to_string(),
            ),
            QualityError::Stale { .. } | QualityError::Empty { .. } => {
                Some("`icestream status` shows where the data waits".to_string())
            }
            QualityError::Unasked { source, .. } => source.hint(),
            QualityError::NoTime { .. } => Some("name a column with dates or timestamps".to_string()),
        }
    }

    fn state(&self) -> Option<String> {
        match self {
            QualityError::Audit { .. } => {
                Some("the tables it reads are published: it is asked of what is there".to_string())
            }
            QualityError::Present { .. } => Some("the rows stay; models that read the table are held back".to_string()),
            _ => None,
        }
    }
}

/// What was asked before, and what the answer was.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    audits: BTreeMap<String, Asked>,
    /// Rules about freshness that were broken, as `table rule`.
    stale: BTreeSet<String>,
    /// For each table the rules that only look and were asked of all its rows, and what they said.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    watched: BTreeMap<String, BTreeMap<String, String>>,
    /// For each table how far its commits were gone through for what they found. `None` where a version kept findings that
    /// did not note this.
    #[serde(default)]
    kept: Option<BTreeMap<String, Kept>>,
    /// When that version kept the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept_until_ms: Option<i64>,
}

/// A commit of a table, by its number; a table that was dropped and made anew counts from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    table: Uuid,
    sequence: i64,
}

impl Marker {
    fn of_nothing() -> Self {
        Marker { kept: Some(BTreeMap::new()), ..Marker::default() }
    }

    /// Whether what a commit found, made then, is kept already.
    fn has(&self, name: &str, commit: Kept, at_ms: i64) -> bool {
        match self.kept.as_ref().and_then(|kept| kept.get(name)) {
            Some(kept) => kept.table == commit.table && kept.sequence >= commit.sequence,
            None => self.kept_until_ms.is_some_and(|until| at_ms <= until),
        }
    }

    /// Notes how far a table was gone through.
    fn go_through(&mut self, name: &str, through: Kept) {
        let kept = self.kept.get_or_insert_default();
        if kept.get(name).is_none_or(|kept| kept.table != through.table || kept.sequence < through.sequence) {
            kept.insert(name.to_string(), through);
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Asked {
    sql: String,
    /// The snapshots it read, by table; -1 for a table that had none.
    inputs: BTreeMap<String, i64>,
    rows: u64,
}

/// What one pass finds.
pub(super) struct Findings {
    lake: Lake,
    /// The table that keeps them.
    kept_in: Option<KeptFindings>,
    known: Option<Marker>,
    next: BTreeMap<String, Asked>,
    stale: BTreeMap<String, bool>,
    watched: BTreeMap<String, BTreeMap<String, String>>,
    /// How far this pass has gone through the commits of each table.
    through: BTreeMap<String, Kept>,
    found: Vec<Found>,
    /// Findings about freshness that only say again what was said.
    again: Vec<Finding>,
}

struct Found {
    finding: Finding,
    told: Told,
}

/// Who else tells of a finding.
#[derive(Debug, Clone, Copy)]
enum Told {
    /// Nobody: it was asked in this pass.
    Asked,
    /// The summary of a commit, made then.
    Commit(Kept, i64),
    /// The same, of a commit that could not be looked at: the next pass takes it from there.
    Unseen,
}

impl Findings {
    pub(super) fn new(lake: &Lake, kept_in: Option<KeptFindings>) -> Self {
        Findings {
            lake: lake.clone(),
            kept_in,
            known: None,
            next: BTreeMap::new(),
            stale: BTreeMap::new(),
            watched: BTreeMap::new(),
            through: BTreeMap::new(),
            found: Vec::new(),
            again: Vec::new(),
        }
    }

    /// What was asked before; read once, and only when it matters.
    async fn known(&mut self) -> Result<&Marker> {
        if self.known.is_none() {
            let table = match &self.kept_in {
                Some(kept) => self.lake.table_if_exists(&kept.table).await?,
                None => None,
            };
            self.known = Some(table.as_ref().map_or_else(Marker::of_nothing, marker_of));
        }
        Ok(self.known.get_or_insert_default())
    }

    /// Takes what was found of rows that were not committed.
    pub(super) fn add(&mut self, findings: &[Finding]) {
        self.add_told(findings, Told::Asked);
    }

    fn add_told(&mut self, findings: &[Finding], told: Told) {
        self.found.extend(findings.iter().map(|finding| Found { finding: finding.clone(), told }));
    }

    /// Takes what was found of a table after its turn. `written` is of the commit that this pass made, if any: how many rows
    /// it wrote, and what it found of them.
    pub(super) async fn of(
        &mut self,
        engine: &Engine,
        asked: (&TableName, &[Rule], &str),
        written: Option<(u64, &[Finding])>,
    ) -> Result<Vec<Error>> {
        let (rows, own) = written.unzip();
        self.committed((asked.0, asked.1), own.unwrap_or_default()).await?;
        self.present(engine, asked, rows).await
    }

    /// Takes what the commits of a table found since it was last kept, its own and others.
    async fn committed(&mut self, (table, rules): (&TableName, &[Rule]), own: &[Finding]) -> Result<()> {
        if rules.is_empty() || self.kept_in.is_none() {
            self.add(own);
            return Ok(());
        }
        let read = async {
            let stored = self.lake.table_if_exists(table).await?;
            Ok::<_, Error>((stored, self.known().await?.clone()))
        };
        let (stored, known) = match read.await {
            Ok((Some(stored), known)) => (stored, known),
            Ok((None, _)) => {
                self.add(own);
                return Ok(());
            }
            Err(error) => {
                self.add_told(own, Told::Unseen);
                return Err(error);
            }
        };
        let name = table.to_string();
        let mut own = own.to_vec();
        let mut through = Kept { table: stored.uuid(), sequence: 0 };
        for snapshot in stored.snapshots() {
            through.sequence = snapshot.sequence;
            let (mut findings, others): (Vec<_>, Vec<_>) =
                own.into_iter().partition(|finding| finding.snapshot_id == Some(snapshot.id));
            own = others;
            if findings.is_empty() && !known.has(&name, through, snapshot.committed_ms) {
                findings = Finding::noted(table, rules, snapshot.id, &snapshot.summary);
            }
            self.add_told(&findings, Told::Commit(through, snapshot.committed_ms.saturating_mul(1000)));
        }
        // Of a commit that somebody has taken back meanwhile.
        self.add(&own);
        self.through.insert(name, through);
        Ok(())
    }

    /// Asks rules that only look of the rows that a table has, unless they were asked of them before as they are now.
    /// `live` says which rows are those of the source. A run that has just merged asked all rules of the rows it wrote,
    /// and those about the whole table of all of them.
    async fn present(
        &mut self,
        engine: &Engine,
        (table, rules, live): (&TableName, &[Rule], &str),
        written: Option<u64>,
    ) -> Result<Vec<Error>> {
        let only_looks = |rule: &&Rule| !rule.action.removes() && !matches!(rule.test, Test::Freshness { .. });
        let said = |rule: &Rule| fingerprint([rule.action.as_str(), &format!("{:?}", rule.test)]);
        let mut now: BTreeMap<String, String> =
            rules.iter().filter(only_looks).map(|rule| (rule.name.clone(), said(rule))).collect();
        if now.is_empty() || self.kept_in.is_none() {
            return Ok(Vec::new());
        }
        let known = self.known().await?.watched.get(&table.to_string()).cloned().unwrap_or_default();
        let is_new = |rule: &&Rule| known.get(&rule.name) != now.get(&rule.name);
        let new: Vec<Rule> = rules.iter().filter(only_looks).filter(is_new).cloned().collect();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let Some(stored) = self.lake.table_if_exists(table).await? else { return Ok(Vec::new()) };
        let summary = stored.summary();
        let rows = summary.records.map(|rows| rows.saturating_sub(summary.position_deletes.unwrap_or(0)));
        let mut errors = Vec::new();
        if written.is_none() || written != rows {
            let view = stored.view(At::Head)?;
            let mut found = of_stored_rows(engine, &view, &new).await?;
            if written.is_none() {
                found.extend(ask_whole(&self.lake, engine, table, &new, &view, live).await?);
            }
            for finding in &mut found {
                finding.snapshot_id = view.snapshot_id();
                let rows = finding.rows_failed;
                if finding.fails() {
                    // It is asked again, until it holds.
                    now.remove(&finding.rule);
                    let (table, rule) = (table.clone(), finding.rule.clone());
                    errors.push(QualityError::Present { table, rule, rows }.into());
                } else if rows > 0 {
                    tracing::warn!(
                        target: TARGET, %table, rule = finding.rule, severity = finding.severity, rows,
                        "rows that were there before a rule break it"
                    );
                }
            }
            // It says more than what the run found of the rows it wrote.
            let about = |of: &Finding| (of.table.clone(), of.rule.clone(), of.snapshot_id);
            let is_less = |own: &Finding| found.iter().any(|of| about(of) == about(own));
            self.found.retain(|own| !is_less(&own.finding));
            self.add(&found);
        }
        self.watched.insert(table.to_string(), now);
        Ok(errors)
    }

    /// Asks how fresh a table is, of every rule about it. What is too old is an error each.
    pub(super) async fn freshness(&mut self, engine: &Engine, table: &TableName, rules: &[Rule]) -> Result<Vec<Error>> {
        let mut errors = Vec::new();
        for rule in rules {
            let Test::Freshness { column, within } = &rule.test else { continue };
            // A table that is not made yet is behind, and `status` says so.
            let Some(stored) = self.lake.table_if_exists(table).await? else { continue };
            let column = column.as_deref().unwrap_or(layout::SOURCE_TS);
            let newest_us = newest(engine, &stored.view(At::Head)?, column).await?;
            let age_us = newest_us.map(|newest| self.lake.clock().now_us().saturating_sub(newest));
            let is_stale = age_us.is_none_or(|age| age > within.as_micros() as i64);
            let mut finding = Finding::of(table, rule, 0, u64::from(is_stale));
            (finding.rows_checked, finding.snapshot_id) = (None, stored.snapshot_id());
            let name = format!("{table} {}", rule.name);
            let was_stale = self.known().await?.stale.contains(&name);
            self.stale.insert(name, is_stale);
            match is_stale == was_stale {
                true => self.again.push(finding),
                false => self.add(&[finding]),
            }
            if !is_stale {
                continue;
            }
            let seconds = |us: i64| humantime::format_duration(Duration::from_secs((us / 1_000_000) as u64));
            let (table, rule_name) = (table.clone(), rule.name.clone());
            let error = match age_us {
                Some(age) => QualityError::Stale {
                    table,
                    rule: rule_name,
                    age: seconds(age).to_string(),
                    within: humantime::format_duration(*within).to_string(),
                },
                None => QualityError::Empty { table, rule: rule_name },
            };
            match rule.action {
                Action::Fail => errors.push(error.into()),
                _ => tracing::warn!(target: TARGET, rule = rule.name, "{error}"),
            }
        }
        Ok(errors)
    }

    /// Asks an audit, if what it reads has moved since it was last asked. An answer that stands counts again.
    pub(super) async fn audit(
        &mut self,
        engine: &Engine,
        audit: &Audit,
        may_be_missing: &BTreeSet<TableName>,
    ) -> Result<Option<Error>> {
        let unasked = |source: engine::Error| QualityError::Unasked { audit: audit.name.clone(), source };
        let mut views: BTreeMap<TableName, TableView> = BTreeMap::new();
        for name in engine::referenced_tables(&audit.sql).map_err(unasked)? {
            match self.lake.table_if_exists(&name).await? {
                Some(table) => drop(views.insert(name, table.view(At::Head)?)),
                None if may_be_missing.contains(&name) => {
                    tracing::debug!(audit = audit.name, table = %name, "not asked: a table it reads is not made yet");
                    return Ok(None);
                }
                None => return Err(unasked(engine::Error::unknown_table(&name, may_be_missing)).into()),
            }
        }
        let known = self.known().await?.audits.get(&audit.name);
        let inputs = views.iter().map(|(name, view)| {
            // Of snapshots with the same rows, the one that was asked stands for the others.
            let before = known.and_then(|known| known.inputs.get(&name.to_string()));
            let before = before.filter(|snapshot| view.has_rows_of(**snapshot)).copied();
            (name.to_string(), before.or(view.snapshot_id()).unwrap_or(-1))
        });
        let mut asked = Asked { sql: fingerprint([audit.sql.as_str()]), inputs: inputs.collect(), rows: 0 };
        let known = known.filter(|known| **known == Asked { rows: known.rows, ..asked.clone() });
        if let Some(known) = known {
            asked.rows = known.rows;
        } else {
            asked.rows = count(engine, &audit.sql, &views).await.map_err(unasked)?;
            let table = match &audit.table {
                Some(table) => table.to_string(),
                None => views.keys().map(TableName::to_string).collect::<Vec<_>>().join(", "),
            };
            let snapshot_id = match views.len() {
                1 => views.values().next().and_then(TableView::snapshot_id),
                _ => None,
            };
            self.add(&[Finding {
                table,
                rule: audit.name.clone(),
                kind: "audit",
                severity: audit.action.as_str(),
                rows_checked: None,
                rows_failed: asked.rows,
                snapshot_id,
            }]);
            self.next.insert(audit.name.clone(), asked.clone());
        }
        if asked.rows == 0 {
            return Ok(None);
        }
        let error = QualityError::Audit { audit: audit.name.clone(), rows: asked.rows };
        match audit.action {
            Action::Fail => Ok(Some(error.into())),
            _ => {
                tracing::warn!(target: TARGET, audit = audit.name, rows = asked.rows, "an audit found rows");
                Ok(None)
            }
        }
    }

    /// Adds what was found to the table that keeps it, in one commit. Gives everything that was found.
    pub(super) async fn keep(mut self, engine: &Engine) -> Result<Vec<Finding>> {
        let has_news = !self.found.is_empty();
        let again = std::mem::take(&mut self.again);
        self.add(&again);
        let all = |found: Vec<Found>| found.into_iter().map(|found| found.finding).collect();
        let Some(KeptFindings { table: name, keep }) = self.kept_in.take().filter(|_| has_news) else {
            return Ok(all(self.found));
        };
        let now_us = self.lake.clock().now_us();
        for attempt in 1.. {
            let definition = TableDefinition {
                name: name.clone(),
                schema: Arc::new(schema()),
                partition: Vec::new(),
                properties: HashMap::new(),
            };
            let table = self.lake.ensure(&definition).await?;
            let known_text = table.marker(MARKER);
            let known = marker_of(&table);
            let mut next = known.clone();
            next.audits.extend(self.next.clone());
            next.watched.extend(self.watched.clone());
            for (rule, is_stale) in &self.stale {
                match is_stale {
                    true => drop(next.stale.insert(rule.clone())),
                    false => drop(next.stale.remove(rule)),
                }
            }
            self.through.iter().for_each(|(table, through)| next.go_through(table, *through));
            let mut rows: Vec<(&Finding, i64)> = Vec::new();
            for Found { finding, told } in &self.found {
                match told {
                    Told::Asked => rows.push((finding, now_us)),
                    // Another pass has taken it from the summary meanwhile.
                    Told::Commit(commit, at_us) if known.has(&finding.table, *commit, at_us / 1000) => {}
                    Told::Commit(_, at_us) => rows.push((finding, *at_us)),
                    Told::Unseen => {}
                }
            }
            if rows.is_empty() {
                break;
            }
            // Strings and numbers always serialise.
            let next = serde_json::to_string(&next).unwrap_or_default();
            let premise = Premise::new().marker_moves(MARKER, known_text, next);
            match add(engine, &table, &rows, (now_us, keep), premise).await {
                Ok(()) => {
                    tracing::info!(table = %name, layer = "gold", rows = rows.len(), "kept what was found");
                    break;
                }
                Err(error) if error.is_premise_broken() && attempt < ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(all(self.found))
    }
}

fn marker_of(table: &Table) -> Marker {
    // One that cannot be read is as good as none: audits are asked again.
    let known: Option<Marker> = table.marker(MARKER).and_then(|text| serde_json::from_str(&text).ok());
    let mut known = known.unwrap_or_else(Marker::of_nothing);
    if known.kept.is_none() {
        known.kept_until_ms = table.snapshots().last().map(|snapshot| snapshot.committed_ms);
    }
    known
}

/// The columns of the table.
pub(super) fn schema() -> Schema {
    Schema::new(vec![
        Field::new("checked_at", layout::instant(), true),
        Field::new("table_name", DataType::Utf8, true),
        Field::new("rule", DataType::Utf8, true),
        Field::new("kind", DataType::Utf8, true),
        Field::new("severity", DataType::Utf8, true),
        Field::new("passed", DataType::Boolean, true),
        Field::new("rows_checked", DataType::Int64, true),
        Field::new("rows_failed", DataType::Int64, true),
        Field::new("snapshot_id", DataType::Int64, true),
    ])
}

fn batch_of(findings: &[(&Finding, i64)]) -> Result<RecordBatch, arrow::error::ArrowError> {
    let texts = |of: &dyn Fn(&Finding) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(findings.iter().map(|(finding, _)| of(finding))))
    };
    let longs = |of: &dyn Fn(&Finding) -> Option<i64>| -> ArrayRef {
        Arc::new(findings.iter().map(|(finding, _)| of(finding)).collect::<Int64Array>())
    };
    let times: TimestampMicrosecondArray = findings.iter().map(|(_, at_us)| Some(*at_us)).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(times.with_timezone(layout::UTC)),
        texts(&|of| of.table.clone()),
        texts(&|of| of.rule.clone()),
        texts(&|of| of.kind.to_string()),
        texts(&|of| of.severity.to_string()),
        Arc::new(BooleanArray::from_iter(findings.iter().map(|(of, _)| Some(of.rows_failed == 0)))),
        longs(&|of| of.rows_checked.map(|count| count as i64)),
        longs(&|of| Some(of.rows_failed as i64)),
        longs(&|of| of.snapshot_id),
    ];
    RecordBatch::try_new(Arc::new(schema()), columns)
}

/// Asks rules about rows of all that a table has.
async fn of_stored_rows(engine: &Engine, view: &TableView, rules: &[Rule]) -> Result<Vec<Finding>> {
    let of_rows: Vec<(&Rule, String)> = rules.iter().filter_map(|rule| Some((rule, rule.condition()?))).collect();
    if of_rows.is_empty() {
        return Ok(Vec::new());
    }
    let session = engine.session();
    // As conditions may call it.
    let provider = Arc::new(engine::IcebergTableProvider::new(view.clone()));
    session.register_table("rows", provider).map_err(engine::Error::from)?;
    // A condition may end with a comment.
    let counts = of_rows.iter().map(|(_, condition)| format!(", count(*) FILTER (WHERE NOT ({condition}\n))"));
    let sql = format!("SELECT count(*){} FROM rows", counts.collect::<String>());
    let batches = engine::plan(&session, &sql).await?.collect().await.map_err(engine::Error::from)?;
    let Some(batch) = batches.iter().find(|batch| batch.num_rows() > 0) else { return Ok(Vec::new()) };
    let count = |column: usize| batch.column(column).as_primitive::<Int64Type>().value(0) as u64;
    let found = of_rows.iter().enumerate();
    Ok(found.map(|(at, (rule, _))| Finding::of(view.name(), rule, count(0), count(at + 1))).collect())
}

/// Whether an audit was asked of the very rows of what it reads.
pub(super) fn is_answered(kept_in: &Table, audit: &Audit, inputs: &BTreeMap<String, Table>) -> bool {
    let asked = marker_of(kept_in).audits;
    let Some(asked) = asked.get(&audit.name).filter(|asked| asked.sql == fingerprint([audit.sql.as_str()])) else {
        return false;
    };
    let is_same = |name: &String, table: &Table| {
        let snapshot = asked.inputs.get(name).copied();
        snapshot.is_some_and(|of| table.snapshot_id().unwrap_or(-1) == of || table.has_rows_of(of))
    };
    asked.inputs.len() == inputs.len() && inputs.iter().all(|(name, table)| is_same(name, table))
}

/// Adds rows. When the table's files are many, or one of them has nothing that is young, they are put together, and what
/// is old goes.
async fn add(
    engine: &Engine,
    table: &Table,
    findings: &[(&Finding, i64)],
    (now_us, keep): (i64, Duration),
    premise: Premise,
) -> Result<(), crate::table::Error> {
    let view = table.view(At::Head)?;
    let files = view.files(None).await?;
    let since_us = now_us.saturating_sub(i64::try_from(keep.as_micros()).unwrap_or(i64::MAX));
    let newest = view.statistics(&files).upper("checked_at").and_then(|times| cast(&times, &DataType::Int64).ok());
    let is_old = |times: &ArrayRef| times.as_primitive::<Int64Type>().iter().flatten().any(|time| time < since_us);
    let gathers = files.len() >= FILES_MAX || newest.as_ref().is_some_and(is_old);
    let mut writer = table.writer(None)?;
    let outcome = async {
        if gathers {
            let session = engine.session();
            engine::register(&session, table.name(), view.clone()).map_err(unreadable(table))?;
            let columns: Vec<String> = schema().fields().iter().map(|field| quote(field.name())).collect();
            let sql = format!(
                "SELECT {} FROM (SELECT *, row_number() OVER (PARTITION BY table_name, rule ORDER BY checked_at DESC) AS \
                 age FROM {}) AS findings WHERE age = 1 OR CAST(checked_at AS bigint) >= {since_us} ORDER BY checked_at",
                columns.join(", "),
                table.name()
            );
            let mut stream = engine::query(&session, &sql).await.map_err(unreadable(table))?;
            while let Some(batch) =
                stream.try_next().await.map_err(|error| unreadable(table)(engine::Error::from(error)))?
            {
                writer.write(&batch).await?;
            }
        }
        let batch =
            batch_of(findings).map_err(|error| unreadable(table)(engine::Error::from(DataFusionError::from(error))))?;
        writer.write(&batch).await
    };
    let written: Vec<WrittenFile> = match outcome.await {
        Ok(()) => writer.finish().await?,
        Err(error) => {
            writer.discard().await;
            return Err(error);
        }
    };
    let change = match gathers {
        true => table.change().overwrite(&view, files, written.clone()),
        false => table.change().append(written.clone()),
    };
    match change.premise(premise).commit().await {
        Ok(_) => Ok(()),
        Err(error) => {
            if !matches!(error, crate::table::Error::Unresolved { .. }) {
                table.discard(&written).await;
            }
            Err(error)
        }
    }
}

fn unreadable(table: &Table) -> impl Fn(engine::Error) -> crate::table::Error + '_ {
    |error| match error {
        engine::Error::Table(error) => error,
        error => crate::table::Error::corrupt(table.name(), "its rows cannot be read", error),
    }
}

/// How many rows a query finds.
async fn count(engine: &Engine, sql: &str, views: &BTreeMap<TableName, TableView>) -> engine::Result<u64> {
    let session = engine.session();
    for (name, view) in views {
        engine::register(&session, name, view.clone())?;
    }
    let mut rows = engine::query(&session, sql).await?;
    let mut count = 0;
    while let Some(batch) = rows.try_next().await? {
        count += batch.num_rows() as u64;
    }
    Ok(count)
}

/// The latest time in a column, in microseconds; from the files' own figures where they tell.
async fn newest(engine: &Engine, view: &TableView, column: &str) -> Result<Option<i64>> {
    let schema = view.arrow_schema();
    let found = schema.field_with_name(column).map_err(|_| engine::unknown_column(column, &schema))?.data_type();
    if !is_time(found) {
        let (table, column, found) = (view.name().clone(), column.to_string(), found.to_string());
        return Err(QualityError::NoTime { table, column, found }.into());
    }
    let files = view.files(None).await?;
    if files.is_empty() {
        return Ok(None);
    }
    let known = view.statistics(&files).upper(column);
    let latest = match known {
        Some(upper) if upper.null_count() == 0 => micros(&upper)?,
        _ => {
            let session = engine.session();
            engine::register(&session, view.name(), view.clone())?;
            let sql = format!("SELECT max({}) FROM {}", quote(column), view.name());
            let batches = engine::plan(&session, &sql).await?.collect().await.map_err(engine::Error::from)?;
            match batches.iter().find(|batch| batch.num_rows() > 0) {
                Some(batch) => micros(batch.column(0))?,
                None => None,
            }
        }
    };
    Ok(latest)
}

pub(super) fn is_time(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Timestamp(_, _) | DataType::Date32 | DataType::Date64)
}

fn micros(times: &ArrayRef) -> Result<Option<i64>> {
    let failed = |error: arrow::error::ArrowError| engine::Error::from(DataFusionError::from(error));
    let times = cast(times, &DataType::Timestamp(TimeUnit::Microsecond, None)).map_err(failed)?;
    Ok(max(times.as_primitive::<TimestampMicrosecondType>()))
}

/// The latest finding of one rule or audit.
#[derive(Debug, Clone, Serialize)]
pub struct Latest {
    pub table: String,
    pub rule: String,
    pub kind: String,
    pub severity: String,
    pub passed: bool,
    pub rows_checked: Option<i64>,
    pub rows_failed: i64,
    pub snapshot_id: Option<i64>,
    pub checked_at: Option<String>,
    #[serde(skip)]
    pub checked_ms: Option<i64>,
}

/// The latest finding of each rule and audit that was ever asked.
pub(super) async fn latest(engine: &Engine, kept_in: &Table) -> Result<Vec<Latest>> {
    let session = engine.session();
    engine::register(&session, kept_in.name(), kept_in.view(At::Head)?)?;
    let sql = format!(
        "SELECT table_name, rule, kind, severity, passed, rows_checked, rows_failed, snapshot_id, checked_at FROM (\
         SELECT *, row_number() OVER (PARTITION BY table_name, rule ORDER BY checked_at DESC) AS age FROM {}\
         ) AS findings WHERE age = 1 ORDER BY table_name, rule",
        kept_in.name()
    );
    let batches = engine::plan(&session, &sql).await?.collect().await.map_err(engine::Error::from)?;
    let mut latest = Vec::new();
    for batch in &batches {
        let text = |column: usize| rows::texts(batch.column(column));
        let long = |column: usize| rows::longs(batch.column(column));
        let (tables, rules, kinds, severities) = (text(0), text(1), text(2), text(3));
        let passed = batch.column(4).as_boolean();
        let (checked, failed, snapshots, times) = (long(5), long(6), long(7), long(8));
        for row in 0..batch.num_rows() {
            let checked_ms = times[row].map(|us| us / 1000);
            latest.push(Latest {
                table: tables[row].clone().unwrap_or_default(),
                rule: rules[row].clone().unwrap_or_default(),
                kind: kinds[row].clone().unwrap_or_default(),
                severity: severities[row].clone().unwrap_or_default(),
                passed: passed.value(row),
                rows_checked: checked[row],
                rows_failed: failed[row].unwrap_or(0),
                snapshot_id: snapshots[row],
                checked_at: checked_ms.and_then(super::status::time),
                checked_ms,
            });
        }
    }
    Ok(latest)
}

/// How many rows a quarantine has for having no value for a key.
pub(super) async fn null_keys(engine: &Engine, quarantine: &Table) -> Result<u64> {
    let session = engine.session();
    engine::register(&session, quarantine.name(), quarantine.view(At::Head)?)?;
    let sql = format!("SELECT count(*) FROM {} WHERE array_has({RULES_COLUMN}, '{NULL_KEY}')", quarantine.name());
    let batches = engine::plan(&session, &sql).await?.collect().await.map_err(engine::Error::from)?;
    let counts = batches.iter().map(|batch| batch.column(0).as_primitive::<Int64Type>().value(0));
    Ok(counts.sum::<i64>() as u64)
}
