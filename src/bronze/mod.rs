//! Commits batches of change rows to bronze tables, each range of offsets once.
//!
//! In come the rows of batches, as they are built, and then the ranges of offsets they stand for; out goes a committed
//! snapshot whose marker says the next offset of every partition. It does not know how records were read or decoded.
//!
//! **Rows, marker and the columns the rows need are one commit.** **A range is committed only on top of the offset it
//! starts at**: when another owner got there first, the staged files are thrown away and the caller reads on from the
//! marker; when offsets are missing in between, nothing is committed and the error says which. **Of two owners whose rows
//! need new columns at once**, one wins, and the other reads on from the marker under what the table has become.

mod fit;
mod history;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::SchemaRef;

use crate::backfilled::{self, Backfilled, BackfilledError};
use crate::change::{ChangeBatch, ChangeCounts};
use crate::error::{Kind, Situation};
use crate::evolution::{ColumnChange, Evolution, Form, TableColumns, TableImages};
use crate::ids::TableName;
use crate::layout;
use crate::offsets::{self, Contiguity, OffsetRange, Offsets, OffsetsError, RecordMark, TopicPartition};
use crate::row::RowShape;
use crate::table::{Broken, Change, DataWriter, EvolvedSchema, Lake, Premise, SchemaChange, Table, TableDefinition};
use fit::Fit;
pub use history::Basis;

/// The entry of a snapshot's summary that says what happened to the table's columns, for people.
pub const SCHEMA_CHANGES: &str = "icestream.schema-changes";

/// How often declared columns are added anew because others changed the table's columns meanwhile.
const MOST_ROUNDS: usize = 20;

/// How many changes a snapshot's summary names.
const MOST_NAMED: usize = 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("bronze table `{table}`: offsets {} to {} of `{partition}` are missing before the ones to commit", marker, from - 1)]
    Gap { table: TableName, partition: TopicPartition, marker: i64, from: i64 },

    #[error("bronze table `{table}` has a marker that cannot be read")]
    Marker {
        table: TableName,
        #[source]
        source: OffsetsError,
    },

    #[error("bronze table `{table}` has a marker that cannot be read")]
    Backfilled {
        table: TableName,
        #[source]
        source: BackfilledError,
    },

    #[error("bronze table `{table}` keeps its rows as JSON text, and columns are declared for it")]
    RowsAreText { table: TableName },

    #[error("bronze table `{table}` keeps its rows in columns, and `evolution: json` asks for text")]
    RowsAreColumns { table: TableName },

    #[error("the rows for bronze table `{table}` do not fit together")]
    Rows {
        table: TableName,
        #[source]
        source: arrow::error::ArrowError,
    },

    #[error("bronze table `{table}` has an epoch that is no number: `{text}`")]
    Epoch { table: TableName, text: String },

    #[error(transparent)]
    Table(#[from] crate::table::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Situation for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Gap { .. } | Error::Marker { .. } | Error::Backfilled { .. } | Error::Epoch { .. } => Kind::Corrupt,
            Error::RowsAreText { .. } | Error::RowsAreColumns { .. } => Kind::Config,
            Error::Rows { .. } => Kind::Bug,
            Error::Table(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::Gap { .. } => Some("start again: reading continues at the table's own marker".to_string()),
            Error::Marker { .. } => {
                Some(format!("look at the table property `{}`; icestream writes it as JSON", offsets::MARKER))
            }
            Error::Backfilled { .. } => {
                Some(format!("look at the table property `{}`; icestream writes it as JSON", backfilled::MARKER))
            }
            Error::RowsAreText { table } => Some(format!(
                "text does not become columns: take `columns` out of `catalog/{}.yaml`, or drop the table and read its \
                 topic again",
                table.name()
            )),
            Error::RowsAreColumns { .. } => Some(
                "columns do not become text: set `evolution` to `evolve` or `strict`, or drop the table and read its \
                 topic again"
                    .to_string(),
            ),
            Error::Rows { .. } => None,
            Error::Epoch { .. } => Some(format!("set the table property `{}` to a number", offsets::EPOCH)),
            Error::Table(error) => error.hint(),
        }
    }

    fn state(&self) -> Option<String> {
        match self {
            Error::Gap { .. } | Error::Rows { .. } => Some("nothing was committed; safe to run again".to_string()),
            Error::Marker { .. }
            | Error::Backfilled { .. }
            | Error::Epoch { .. }
            | Error::RowsAreText { .. }
            | Error::RowsAreColumns { .. } => None,
            Error::Table(error) => error.state(),
        }
    }
}

/// How a bronze table is made when it is missing.
#[derive(Debug, Clone)]
pub struct BronzeDefinition {
    pub name: TableName,
    /// The declared columns of its rows.
    pub shape: Option<Arc<RowShape>>,
    pub evolution: Evolution,
    pub partition: Vec<String>,
    pub properties: BTreeMap<String, String>,
}

/// One bronze table, open for commits.
pub struct BronzeTable {
    lake: Lake,
    definition: BronzeDefinition,
    /// `None` until the first batch says what the rows are like.
    table: Option<Table>,
    /// Rows on their way into the next commit.
    staged: Option<Staged>,
    /// Columns that records stopped having, to be told with the next commit.
    dropped: Vec<ColumnChange>,
    /// What backfills had done with when this was opened or refreshed: whoever stages rows leaves it out.
    backfilled: Arc<Backfilled>,
}

impl fmt::Debug for BronzeTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BronzeTable").field("name", self.name()).finish_non_exhaustive()
    }
}

struct Staged {
    /// How the rows come, all alike.
    layout: SchemaRef,
    fit: Fit,
    writer: DataWriter,
}

/// What became of rows that were to be staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staging {
    Staged,
    /// They have other columns than those that are staged. Commit, then stage them again.
    CommitFirst,
    /// Another owner made the table such that they have to be read anew, with [`BronzeTable::images`] as they are now.
    Stale,
}

/// A batch that is durable.
#[derive(Debug, Clone)]
pub struct BronzeCommit {
    pub table: TableName,
    pub snapshot_id: Option<i64>,
    pub offsets: Offsets,
    pub counts: ChangeCounts,
    pub rows: u64,
    pub bytes: u64,
    /// When the source says that the newest of these changes happened, in microseconds since 1970.
    pub newest_change_us: Option<i64>,
    /// How long it took to end the files, and to write small ones, and to commit them.
    pub elapsed: Duration,
    /// What happened to the table's columns.
    pub changes: Vec<ColumnChange>,
}

/// What became of a batch.
#[derive(Debug, Clone)]
pub enum Outcome {
    Committed(BronzeCommit),
    /// Another owner committed some of these offsets first, or made the table such that these rows have to be read anew.
    /// Nothing was committed; read on from here, with [`BronzeTable::images`] as they are now.
    Behind(Offsets),
}

impl BronzeTable {
    /// Opens the table and gives it the declared columns it lacks. A missing one is made now where it is known what its
    /// rows are; else the first commit makes it.
    pub async fn open(lake: &Lake, definition: &BronzeDefinition) -> Result<Self> {
        let mut definition = definition.clone();
        definition.shape = definition.shape.filter(|shape| !shape.columns.is_empty());
        let table = lake.table_if_exists(&definition.name).await?;
        let backfilled = Arc::default();
        let mut bronze =
            BronzeTable { lake: lake.clone(), definition, table, staged: None, dropped: Vec::new(), backfilled };
        let declared = bronze.definition.shape.clone();
        if bronze.table.is_none() {
            match &declared {
                Some(shape) => drop(bronze.make(Form::Columns(TableColumns::of_shape(shape))).await?),
                None if bronze.definition.evolution == Evolution::Json => drop(bronze.make(Form::Text).await?),
                None => {}
            }
        }
        for _ in 0..MOST_ROUNDS {
            let Some(table) = &bronze.table else { break };
            let name = || table.name().clone();
            let next = match (&declared, form(table)?) {
                (Some(_), Form::Text) => return Err(Error::RowsAreText { table: name() }),
                (_, Form::Columns(_)) if bronze.definition.evolution == Evolution::Json => {
                    return Err(Error::RowsAreColumns { table: name() });
                }
                (None, _) => break,
                (Some(shape), Form::Open) => TableColumns::default().evolve(shape),
                (Some(shape), Form::Columns(columns)) => columns.evolve(shape),
            };
            let wanted = layout::bronze_schema_with(Form::Columns(next.columns).data_type());
            let Some(evolved) = evolved(table, &wanted)? else { break };
            match with_note(table.change().schema(evolved), &next.changes).commit().await {
                Ok(committed) => {
                    log_changes(&name(), &next.changes);
                    bronze.table = Some(committed.table);
                }
                // Another owner of the same pipeline widens it as well.
                Err(error) if error.is_premise_broken() => bronze.refresh().await?,
                Err(error) => return Err(error.into()),
            }
        }
        bronze.look_up_backfilled()?;
        Ok(bronze)
    }

    async fn make(&mut self, form: Form) -> Result<&Table> {
        let mut properties: HashMap<String, String> = HashMap::from([
            // Rows of bronze are only ever added, and read by offset or time.
            ("write.parquet.page-row-limit".to_string(), "20000".to_string()),
        ]);
        properties.extend(self.definition.properties.clone());
        let definition = TableDefinition {
            name: self.definition.name.clone(),
            schema: layout::bronze_schema_with(form.data_type()),
            partition: self.definition.partition.clone(),
            properties,
        };
        Ok(self.table.insert(self.lake.ensure(&definition).await?))
    }

    /// Takes up what others have committed.
    pub async fn refresh(&mut self) -> Result<()> {
        match &mut self.table {
            Some(table) => table.refresh().await?,
            None => self.table = self.lake.table_if_exists(&self.definition.name).await?,
        }
        self.look_up_backfilled()
    }

    fn look_up_backfilled(&mut self) -> Result<()> {
        if let Some(table) = &self.table {
            let failed = |source| Error::Backfilled { table: table.name().clone(), source };
            self.backfilled = Arc::new(Backfilled::of(table).map_err(failed)?);
        }
        Ok(())
    }

    /// What backfills had done with when this was opened or refreshed. Rows of these offsets are not to be staged by
    /// others: a commit of a range in which there are more of them by then fails, and the range is read again.
    pub fn backfilled(&self) -> &Arc<Backfilled> {
        &self.backfilled
    }

    pub fn name(&self) -> &TableName {
        &self.definition.name
    }

    /// The table as of the last commit; `None` while there is none.
    pub fn table(&self) -> Option<&Table> {
        self.table.as_ref()
    }

    /// The table, which is made now if there is none, before it is known what its rows are like.
    pub async fn made(&mut self) -> Result<Table> {
        match &self.table {
            Some(table) => Ok(table.clone()),
            None => Ok(self.make(Form::Open).await?.clone()),
        }
    }

    /// How its rows are to be read, as of the head this was opened or committed at.
    pub fn images(&self) -> Result<TableImages> {
        Ok(TableImages {
            evolution: self.definition.evolution,
            declared: self.definition.shape.clone(),
            form: self.table.as_ref().map_or(Ok(Form::Open), form)?,
        })
    }

    /// The next offset of every partition, as of the head this was opened or committed at.
    pub fn offsets(&self) -> Result<Offsets> {
        let Some(text) = self.table.as_ref().and_then(|table| table.marker(offsets::MARKER)) else {
            return Ok(Offsets::default());
        };
        Offsets::parse(&text).map_err(|source| Error::Marker { table: self.name().clone(), source })
    }

    /// The epoch that rows committed now are of, as of the same head.
    pub fn epoch(&self) -> Result<i32> {
        self.table.as_ref().map_or(Ok(0), epoch)
    }

    /// Writes rows into files that the next commit names, together with the columns they need, or keeps them until there are
    /// enough for one. They are nobody's until then.
    pub async fn stage(&mut self, batch: &ChangeBatch) -> Result<Staging> {
        if batch.rows.num_rows() == 0 {
            self.dropped.extend(batch.dropped.iter().cloned());
            return Ok(Staging::Staged);
        }
        if let Some(staged) = &self.staged
            && staged.layout != batch.rows.schema()
        {
            return Ok(Staging::CommitFirst);
        }
        let mut staged = match self.staged.take() {
            Some(staged) => staged,
            None => {
                let evolution = self.definition.evolution;
                let table = match &self.table {
                    Some(table) => table,
                    None => self.make(Form::of_table(batch.rows.schema_ref().fields(), |_| false)).await?,
                };
                let Some(fit) = Fit::of(table, batch.rows.schema(), evolution)? else {
                    tracing::warn!(
                        table = %self.name(), layer = "bronze",
                        "another owner made the table otherwise: these offsets are read again"
                    );
                    return Ok(Staging::Stale);
                };
                let writer = table.writer(fit.evolved.as_ref())?;
                Staged { layout: batch.rows.schema(), fit, writer }
            }
        };
        self.dropped.extend(batch.dropped.iter().cloned());
        let rows =
            staged.fit.laid_out(&batch.rows).map_err(|source| Error::Rows { table: self.name().clone(), source });
        let written = match rows {
            Ok(rows) => staged.writer.write(&rows).await.map_err(Error::from),
            Err(error) => Err(error),
        };
        match written {
            Ok(()) => {
                self.staged = Some(staged);
                Ok(Staging::Staged)
            }
            Err(error) => {
                staged.writer.discard().await;
                Err(error)
            }
        }
    }

    /// How much memory the staged rows take that are not in a file yet.
    pub fn staged_bytes(&self) -> usize {
        self.staged.as_ref().map_or(0, |staged| staged.writer.buffered_bytes())
    }

    /// Throws away what is staged.
    pub async fn discard(&mut self) {
        self.dropped.clear();
        if let Some(staged) = self.staged.take() {
            staged.writer.discard().await;
        }
    }

    /// Commits what is staged, with the offsets that it stands for and the last record of each partition, by which its
    /// log is known again. Nothing is staged afterwards, whatever the outcome.
    pub async fn commit(
        &mut self,
        ranges: &BTreeMap<TopicPartition, OffsetRange>,
        last: &BTreeMap<TopicPartition, RecordMark>,
        counts: ChangeCounts,
    ) -> Result<Outcome> {
        self.commit_telling(ranges, last, counts, || ()).await
    }

    /// The same; tells when all rows are in files, and so out of memory, which may be long before they are committed.
    pub async fn commit_telling(
        &mut self,
        ranges: &BTreeMap<TopicPartition, OffsetRange>,
        last: &BTreeMap<TopicPartition, RecordMark>,
        counts: ChangeCounts,
        written: impl FnOnce(),
    ) -> Result<Outcome> {
        let ranges: Vec<(TopicPartition, OffsetRange)> = ranges
            .iter()
            .filter(|(_, range)| range.next > range.from)
            .map(|(partition, range)| (partition.clone(), *range))
            .collect();
        let table = match &self.table {
            Some(table) => table.clone(),
            None => self.make(Form::Open).await?.clone(),
        };
        let premise = Premise::new().marker_is(offsets::EPOCH, table.marker(offsets::EPOCH)).marker(offsets::MARKER, {
            let (ranges, last) = (ranges.clone(), last.clone());
            move |found| advance(found, &ranges, &last)
        });
        let premise = premise.marker_holds(backfilled::MARKER, {
            let (epoch, ranges, known) = (self.epoch()?, ranges.clone(), self.backfilled.clone());
            move |found| history::nothing_new(found, epoch, &ranges, &known)
        });
        match self.commit_staged(table, premise, counts, written).await? {
            Ok(commit) => Ok(Outcome::Committed(commit)),
            Err(error) => {
                self.refresh().await?;
                let offsets = self.offsets()?;
                // The marker was found right before the columns were not: these offsets are still to be committed.
                let is_of_columns =
                    matches!(&error, crate::table::Error::PremiseBroken { broken: Broken::Schema { .. }, .. });
                if !is_of_columns {
                    self.check_no_gap(&offsets, &ranges)?;
                }
                tracing::warn!(
                    table = %self.name(), layer = "bronze", %error, "another owner was faster; reading on from its marker"
                );
                Ok(Outcome::Behind(offsets))
            }
        }
    }

    /// Commits what is staged, or throws it away and says which premise broke.
    async fn commit_staged(
        &mut self,
        table: Table,
        premise: Premise,
        counts: ChangeCounts,
        written: impl FnOnce(),
    ) -> Result<std::result::Result<BronzeCommit, crate::table::Error>> {
        let started = tokio::time::Instant::now();
        let (mut changes, dropped) = (Vec::new(), std::mem::take(&mut self.dropped));
        let (mut files, mut evolved) = (Vec::new(), None);
        if let Some(staged) = self.staged.take() {
            files = staged.writer.finish().await?;
            (changes, evolved) = (staged.fit.changes, staged.fit.evolved);
        }
        written();
        changes.extend(dropped);
        fail::fail_point!("bronze-after-files");
        let mut change = with_note(table.change(), &changes).append(files.clone()).premise(premise);
        if let Some(evolved) = evolved {
            change = change.schema(evolved);
        }
        match change.commit().await {
            Ok(committed) => {
                let newest_change_us = committed.table.newest_us(&files, layout::SOURCE_TS);
                let elapsed = started.elapsed();
                let (rows, bytes) =
                    files.iter().fold((0, 0), |(rows, bytes), file| (rows + file.rows(), bytes + file.bytes()));
                self.table = Some(committed.table);
                log_changes(self.name(), &changes);
                tracing::info!(
                    table = %self.name(), layer = "bronze", snapshot_id = committed.snapshot_id, rows, bytes,
                    attempts = committed.attempts, elapsed_ms = elapsed.as_millis() as u64, "committed"
                );
                Ok(Ok(BronzeCommit {
                    table: self.name().clone(),
                    snapshot_id: committed.snapshot_id,
                    offsets: self.offsets()?,
                    counts,
                    rows,
                    bytes,
                    newest_change_us,
                    elapsed,
                    changes,
                }))
            }
            Err(error) if error.is_premise_broken() => {
                table.discard(&files).await;
                Ok(Err(error))
            }
            Err(error) => {
                // An unresolved commit may name these files yet.
                if !matches!(error, crate::table::Error::Unresolved { .. }) {
                    table.discard(&files).await;
                }
                Err(error.into())
            }
        }
    }

    /// Writes down by which record a partition's log is to be known again, in place of one of a log that took its place:
    /// whoever starts to read finds it gone. What is staged is thrown away.
    pub async fn recall(&mut self, at: &TopicPartition, mark: RecordMark) -> Result<()> {
        self.discard().await;
        for _ in 0..MOST_ROUNDS {
            self.refresh().await?;
            let mut offsets = self.offsets()?;
            let Some(table) = self.table.as_ref().filter(|_| offsets.recall(&at.topic, at.partition, mark)) else {
                break;
            };
            let premise =
                Premise::new().marker_moves(offsets::MARKER, table.marker(offsets::MARKER), offsets.to_string());
            match table.change().premise(premise).commit().await {
                Ok(committed) => {
                    self.table = Some(committed.table);
                    break;
                }
                // Another owner has committed meanwhile.
                Err(error) if error.is_premise_broken() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn check_no_gap(&self, offsets: &Offsets, ranges: &[(TopicPartition, OffsetRange)]) -> Result<()> {
        for (partition, range) in ranges {
            if let Contiguity::Gap { marker } = offsets.contiguity(&partition.topic, partition.partition, *range) {
                let partition = partition.clone();
                return Err(Error::Gap { table: self.name().clone(), partition, marker, from: range.from });
            }
        }
        Ok(())
    }
}

/// How a table's rows are to be read once it has the declared columns.
pub fn images(table: &Table, declared: Option<Arc<RowShape>>, evolution: Evolution) -> Result<TableImages> {
    let form = match (form(table)?, &declared) {
        (Form::Open, Some(shape)) => Form::Columns(TableColumns::default().evolve(shape).columns),
        (Form::Columns(columns), Some(shape)) => Form::Columns(columns.evolve(shape).columns),
        (form, _) => form,
    };
    Ok(TableImages { evolution, declared, form })
}

/// The epoch that a bronze table's next rows are of.
pub fn epoch(table: &Table) -> Result<i32> {
    let Some(text) = table.marker(offsets::EPOCH) else { return Ok(0) };
    text.parse().map_err(|_| Error::Epoch { table: table.name().clone(), text })
}

/// What the row images of a table are.
fn form(table: &Table) -> Result<Form> {
    let fixed = table.partition_columns();
    let is_fixed = |name: &str| {
        let of_image = |image: &str| fixed.iter().any(|column| *column == format!("{image}.{name}"));
        of_image(layout::AFTER) || of_image(layout::BEFORE)
    };
    Ok(Form::of_table(table.schema()?.fields(), is_fixed))
}

/// The table's schema after it has taken in what `wanted` has more; `None` when that is nothing.
fn evolved(table: &Table, wanted: &SchemaRef) -> Result<Option<EvolvedSchema>> {
    Ok(table.evolve(&SchemaChange::to_fit(table.schema()?.as_ref(), wanted))?)
}

fn log_changes(table: &TableName, changes: &[ColumnChange]) {
    for change in changes {
        tracing::info!(%table, layer = "bronze", %change, "the columns changed");
    }
}

fn with_note(change: Change, changes: &[ColumnChange]) -> Change {
    if changes.is_empty() {
        return change;
    }
    let mut named: Vec<String> = changes.iter().take(MOST_NAMED).map(ToString::to_string).collect();
    if changes.len() > MOST_NAMED {
        named.push(format!("and {} more", changes.len() - MOST_NAMED));
    }
    change.note(SCHEMA_CHANGES, named.join("; "))
}

/// The marker after the ranges, if each starts where the marker stands.
fn advance(
    found: Option<&str>,
    ranges: &[(TopicPartition, OffsetRange)],
    last: &BTreeMap<TopicPartition, RecordMark>,
) -> std::result::Result<String, Broken> {
    let mut offsets = match found {
        Some(text) => Offsets::parse(text).map_err(|error| Broken::Other(error.to_string()))?,
        None => Offsets::default(),
    };
    for (partition, range) in ranges {
        match offsets.contiguity(&partition.topic, partition.partition, *range) {
            Contiguity::Follows => {
                let last = last.get(partition).copied();
                offsets.advance(&partition.topic, partition.partition, range.next, last);
            }
            Contiguity::Behind { marker } | Contiguity::Gap { marker } => {
                return Err(Broken::Marker {
                    key: offsets::MARKER.to_string(),
                    expected: format!("offset {} of `{partition}`", range.from),
                    found: format!("offset {marker}"),
                });
            }
        }
    }
    Ok(offsets.to_string())
}
