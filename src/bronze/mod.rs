//! Commits batches of change rows to bronze tables, each range of offsets once.
//!
//! In come the rows of batches, as they are built, and then the ranges of offsets they stand for; out goes a committed
//! snapshot whose marker says the next offset of every partition. It does not know how records were read or decoded.
//!
//! **Rows and marker are one commit.** **A range is committed only on top of the offset it starts at**: when another
//! owner got there first, the staged files are thrown away and the caller reads on from the marker; when offsets are
//! missing in between, nothing is committed and the error says which.

use std::collections::{BTreeMap, HashMap};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use crate::change::ChangeCounts;
use crate::error::{Kind, Situation};
use crate::ids::TableName;
use crate::offsets::{self, Contiguity, OffsetRange, Offsets, OffsetsError, RecordMark, TopicPartition};
use crate::table::{Broken, DataWriter, Lake, Premise, SchemaChange, Table, TableDefinition};

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

    #[error(transparent)]
    Table(#[from] crate::table::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Situation for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Gap { .. } | Error::Marker { .. } => Kind::Corrupt,
            Error::Table(error) => error.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::Gap { .. } => Some("start again: reading continues at the table's own marker".to_string()),
            Error::Marker { .. } => {
                Some(format!("look at the table property `{}`; icestream writes it as JSON", offsets::MARKER))
            }
            Error::Table(error) => error.hint(),
        }
    }

    fn state(&self) -> Option<String> {
        match self {
            Error::Gap { .. } => Some("nothing was committed; safe to run again".to_string()),
            Error::Marker { .. } => None,
            Error::Table(error) => error.state(),
        }
    }
}

/// How a bronze table is made when it is missing.
#[derive(Debug, Clone)]
pub struct BronzeDefinition {
    pub name: TableName,
    pub schema: SchemaRef,
    pub partition: Vec<String>,
    pub properties: BTreeMap<String, String>,
}

/// One bronze table, open for commits.
pub struct BronzeTable {
    table: Table,
    /// Rows on their way into the next commit.
    staged: Option<DataWriter>,
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
}

/// What became of a batch.
#[derive(Debug, Clone)]
pub enum Outcome {
    Committed(BronzeCommit),
    /// Another owner committed some of these offsets first. Nothing was committed; read on from here.
    Behind(Offsets),
}

impl BronzeTable {
    /// Opens the table, making it when it is missing and widening it when its columns are fewer than wanted.
    pub async fn open(lake: &Lake, definition: &BronzeDefinition) -> Result<Self> {
        let mut properties: HashMap<String, String> = HashMap::from([
            // Rows of bronze are only ever added, and read by offset or time.
            ("write.parquet.page-row-limit".to_string(), "20000".to_string()),
        ]);
        properties.extend(definition.properties.clone());
        let mut table = lake
            .ensure(&TableDefinition {
                name: definition.name.clone(),
                schema: definition.schema.clone(),
                partition: definition.partition.clone(),
                properties,
            })
            .await?;
        let change = SchemaChange::to_fit(table.schema()?.as_ref(), &definition.schema);
        if let Some(evolved) = table.evolve(&change)? {
            table = match table.change().schema(evolved).commit().await {
                Ok(committed) => committed.table,
                // Another owner of the same pipeline widens it in the same way.
                Err(error) if error.is_premise_broken() => lake.table(&definition.name).await?,
                Err(error) => return Err(error.into()),
            };
        }
        Ok(BronzeTable { table, staged: None })
    }

    pub fn name(&self) -> &TableName {
        self.table.name()
    }

    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The next offset of every partition, as of the head this was opened or committed at.
    pub fn offsets(&self) -> Result<Offsets> {
        self.parse(self.table.marker(offsets::MARKER).as_deref())
    }

    fn parse(&self, marker: Option<&str>) -> Result<Offsets> {
        let Some(text) = marker else { return Ok(Offsets::default()) };
        Offsets::parse(text).map_err(|source| Error::Marker { table: self.name().clone(), source })
    }

    /// Writes rows into files that the next commit names. They are nobody's until then.
    pub async fn stage(&mut self, rows: &RecordBatch) -> Result<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let mut writer = match self.staged.take() {
            Some(writer) => writer,
            None => self.table.writer(None)?,
        };
        if let Err(error) = writer.write(rows).await {
            writer.discard().await;
            return Err(error.into());
        }
        self.staged = Some(writer);
        Ok(())
    }

    /// How much memory the staged rows take that are not in a file yet.
    pub fn staged_bytes(&self) -> usize {
        self.staged.as_ref().map_or(0, DataWriter::buffered_bytes)
    }

    /// Throws away what is staged.
    pub async fn discard(&mut self) {
        if let Some(writer) = self.staged.take() {
            writer.discard().await;
        }
    }

    /// Takes up what others have committed.
    pub async fn refresh(&mut self) -> Result<()> {
        Ok(self.table.refresh().await?)
    }

    /// Commits what is staged with the offsets that it stands for, and the last record of each partition, by which its
    /// log is known again. Nothing is staged afterwards, whatever the outcome.
    pub async fn commit(
        &mut self,
        ranges: &BTreeMap<TopicPartition, OffsetRange>,
        last: &BTreeMap<TopicPartition, RecordMark>,
        counts: ChangeCounts,
    ) -> Result<Outcome> {
        let ranges: Vec<(TopicPartition, OffsetRange)> = ranges
            .iter()
            .filter(|(_, range)| range.next > range.from)
            .map(|(partition, range)| (partition.clone(), *range))
            .collect();
        let files = match self.staged.take() {
            Some(writer) => writer.finish().await?,
            None => Vec::new(),
        };
        fail::fail_point!("bronze-after-files");
        let (rows, bytes) = files.iter().fold((0, 0), |(rows, bytes), file| (rows + file.rows(), bytes + file.bytes()));
        let premise = Premise::new().marker(offsets::MARKER, {
            let (ranges, last) = (ranges.clone(), last.clone());
            move |found| advance(found, &ranges, &last)
        });
        let change = self.table.change().append(files.clone()).premise(premise);
        let started = tokio::time::Instant::now();
        match change.commit().await {
            Ok(committed) => {
                self.table = committed.table;
                let offsets = self.offsets()?;
                tracing::info!(
                    table = %self.name(), layer = "bronze", snapshot_id = committed.snapshot_id, rows, bytes,
                    attempts = committed.attempts, elapsed_ms = started.elapsed().as_millis() as u64, "committed"
                );
                Ok(Outcome::Committed(BronzeCommit {
                    table: self.name().clone(),
                    snapshot_id: committed.snapshot_id,
                    offsets,
                    counts,
                    rows,
                    bytes,
                }))
            }
            Err(error) if error.is_premise_broken() => {
                self.table.discard(&files).await;
                self.table.refresh().await?;
                let offsets = self.offsets()?;
                self.check_no_gap(&offsets, &ranges)?;
                tracing::warn!(table = %self.name(), layer = "bronze", %error, "another owner committed these offsets");
                Ok(Outcome::Behind(offsets))
            }
            Err(error) => {
                // An unresolved commit may name these files yet.
                if !matches!(error, crate::table::Error::Unresolved { .. }) {
                    self.table.discard(&files).await;
                }
                Err(error.into())
            }
        }
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
