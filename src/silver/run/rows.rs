//! New rows: the model over what the keys are, written to where they belong.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::ScalarValue;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::{ident, lit};
use futures::{StreamExt, TryStreamExt};

use super::{Run, Staged};
use crate::engine::{self, in_parallel};
use crate::ids::TableName;
use crate::layout;
use crate::silver::events::{Newest, Rows};
use crate::silver::fold::Fold;
use crate::silver::gate::{Gate, ORIGIN, Passed, origin_type};
use crate::silver::versioned::EVENT;
use crate::silver::{Error, MERGED_AT, Merged, OnDelete, Result, check_names, select};
use crate::table::{EvolvedSchema, Table, WrittenFile};

/// Rows that are worth a file of their own for each core.
pub(in crate::silver) const ROWS_TO_SPLIT: usize = 100_000;

/// Rows of new data that are made at a time.
const CHUNK_ROWS: usize = 8192;

impl Run<'_> {
    /// The model over what the last events say.
    pub(super) async fn latest(&self, newest: &Newest, numbers: &[u32]) -> Result<DataFrame> {
        let rows = newest.rows(numbers, &self.images()).map_err(|error| self.failed_arrow(error))?;
        let frame = self.model_over(rows).await?;
        match self.has_lookups {
            true => self.by_key(frame),
            false => Ok(frame),
        }
    }

    pub(super) fn by_key(&self, frame: DataFrame) -> Result<DataFrame> {
        let keys = self.keys.iter().map(|key| ident(key.as_str()).sort(true, false)).collect();
        frame.sort(keys).map_err(|error| self.failed(error.into()))
    }

    /// The model over rows. Without lookups, the rows stay in order.
    pub(in crate::silver) async fn model_over(&self, rows: Rows) -> Result<DataFrame> {
        let parts = (rows.len() / ROWS_TO_SPLIT).clamp(1, self.engine.threads());
        let bound = |part: usize| rows.len() * part / parts;
        let parts = (0..parts).map(|part| bound(part)..bound(part + 1)).collect();
        self.model_over_parts(rows, parts, false).await
    }

    /// The model over rows that are made in these parts, with the number of each where `counts` says so.
    pub(in crate::silver) async fn model_over_parts(
        &self,
        rows: Rows,
        parts: Vec<Range<usize>>,
        counts: bool,
    ) -> Result<DataFrame> {
        let failed = |error: DataFusionError| self.failed(error.into());
        let marks = self.model.on_delete == OnDelete::Mark;
        let mut fields: Vec<FieldRef> = self
            .columns
            .iter()
            .map(|column| Arc::new(Field::new(column.name(), column.data_type().clone(), true)))
            .collect();
        fields.push(Arc::new(Field::new(layout::POSITION, DataType::Utf8, true)));
        fields.push(Arc::new(Field::new(layout::SOURCE_TS, layout::instant(), true)));
        let with_origin = self.side.wants_origin(self.model);
        if with_origin {
            fields.push(Arc::new(Field::new(ORIGIN, origin_type(), true)));
        }
        if marks {
            fields.push(Arc::new(Field::new("_is_deleted", DataType::Boolean, true)));
        }
        if counts {
            fields.push(Arc::new(Field::new(EVENT, DataType::Int64, true)));
        }
        let schema = Arc::new(Schema::new(fields));
        let rows = Arc::new(rows);
        let partition = |part: Range<usize>| {
            let (rows, schema) = (rows.clone(), schema.clone());
            Arc::new(Chosen { rows, schema, from: part.start, until: part.end, marks, counts })
                as Arc<dyn PartitionStream>
        };
        let partitions = parts.into_iter().map(partition).collect();
        let table = StreamingTable::try_new(schema.clone(), partitions).map_err(failed)?;
        self.session.deregister_table("changes").map_err(failed)?;
        self.session.register_table("changes", Arc::new(table)).map_err(failed)?;
        self.selected(counts).await
    }

    /// The model's SELECT over `changes`.
    pub(super) async fn selected(&self, counts: bool) -> Result<DataFrame> {
        let hidden = counts.then_some(EVENT).into_iter();
        let hidden = hidden.chain(self.side.wants_origin(self.model).then_some(ORIGIN));
        let frame = self.frame(&select(self.model, &self.keys, &hidden.collect::<Vec<_>>())?).await?;
        check_names(self.model, &frame)?;
        Ok(frame)
    }

    /// The model over the fold of all events of some keys, sorted by key.
    pub(super) async fn fold(&self, newest: &Newest, numbers: &[u32], merged: &Merged) -> Result<DataFrame> {
        let failed = |error: DataFusionError| self.failed(error.into());
        let columns = newest.key_columns(numbers).map_err(|error| self.failed_arrow(error))?;
        let fields =
            self.keys.iter().zip(&columns).map(|(key, column)| Field::new(key, column.data_type().clone(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let batch = RecordBatch::try_new(schema.clone(), columns).map_err(|error| self.failed_arrow(error))?;
        let table = MemTable::try_new(schema, vec![vec![batch]]).map_err(failed)?;
        self.session.deregister_table("touched").map_err(failed)?;
        self.session.register_table("touched", Arc::new(table)).map_err(failed)?;
        let unavailable: Vec<String> = merged.unavailable.iter().cloned().collect();
        let fold = Fold {
            columns: self.columns.iter().map(|column| column.name().as_str()).collect(),
            keys: self.keys.iter().map(String::as_str).collect(),
            unavailable: &unavailable,
            ignores: &self.ignores,
            marks_deletes: self.model.on_delete == OnDelete::Mark,
            truncation: merged.truncation.as_ref(),
            with_origin: self.side.wants_origin(self.model),
        };
        let changes = self.frame(&fold.sql()).await?;
        self.session.deregister_table("changes").map_err(failed)?;
        self.session.register_table("changes", changes.into_view()).map_err(failed)?;
        let frame = self.selected(false).await?;
        self.by_key(frame)
    }

    /// Writes those of the rows that belong into the table.
    pub(super) async fn write(
        &self,
        staged: &mut Staged,
        frame: DataFrame,
        gate: &Arc<Gate>,
    ) -> Result<Vec<WrittenFile>> {
        let gate = gate.clone();
        let (files, passed) = self.write_with(staged, frame, move |batch| gate.pass(&batch)).await?;
        staged.passed.join(passed);
        staged.written.extend(files.iter().cloned());
        Ok(files)
    }

    /// Writes what `pass` makes of rows, on as many cores as they are spread over.
    pub(super) async fn write_with(
        &self,
        staged: &Staged,
        frame: DataFrame,
        pass: impl Fn(RecordBatch) -> Result<(RecordBatch, Passed), engine::Error> + Clone + Send + 'static,
    ) -> Result<(Vec<WrittenFile>, Passed)> {
        let (silver, evolved) = (&staged.silver, staged.evolved.as_ref());
        let failed = |error: DataFusionError| self.failed(error.into());
        let now = ScalarValue::TimestampMicrosecond(Some(self.lake.clock().now_us()), Some(layout::UTC.into()));
        let frame = frame.with_column(MERGED_AT, lit(now)).map_err(failed)?;
        let streams = frame.execute_stream_partitioned().await.map_err(failed)?;
        let (mut written, mut passed) = (Vec::new(), Passed::default());
        let work = |stream| {
            let (silver, evolved, table) = (silver.clone(), evolved.cloned(), self.model.table.clone());
            let pass = pass.clone();
            // A failure must not end the others before they have said what they wrote.
            async move { Ok(write_stream(&silver, evolved.as_ref(), &table, stream, pass).await) }
        };
        let mut failure = None;
        in_parallel(streams.len(), streams, work, |outcome: Result<(Vec<WrittenFile>, Passed)>| match outcome {
            Ok((files, of_stream)) => {
                written.extend(files);
                passed.join(of_stream);
            }
            Err(error) => drop(failure.get_or_insert(error)),
        })
        .await
        .map_err(|error| self.failed(error))?;
        match failure {
            None => Ok((written, passed)),
            Some(error) => {
                silver.discard(&written).await;
                Err(error)
            }
        }
    }
}

async fn write_stream(
    silver: &Table,
    evolved: Option<&EvolvedSchema>,
    table: &TableName,
    mut stream: SendableRecordBatchStream,
    pass: impl Fn(RecordBatch) -> Result<(RecordBatch, Passed), engine::Error>,
) -> Result<(Vec<WrittenFile>, Passed)> {
    let (mut writer, mut passed) = (silver.writer(evolved)?, Passed::default());
    loop {
        let outcome = match stream.try_next().await {
            Ok(Some(batch)) => match pass(batch) {
                Ok((batch, of_batch)) => {
                    passed.join(of_batch);
                    writer.write(&batch).await.map_err(Error::from)
                }
                Err(source) => Err(Error::Query { table: table.clone(), source }),
            },
            Ok(None) => break,
            Err(error) => Err(Error::Query { table: table.clone(), source: error.into() }),
        };
        if let Err(error) = outcome {
            writer.discard().await;
            return Err(error);
        }
    }
    Ok((writer.finish().await?, passed))
}

/// The rows of a part of the keys.
#[derive(Debug)]
struct Chosen {
    rows: Arc<Rows>,
    schema: SchemaRef,
    from: usize,
    until: usize,
    marks: bool,
    counts: bool,
}

impl PartitionStream for Chosen {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (rows, schema, until) = (self.rows.clone(), self.schema.clone(), self.until);
        let (marks, counts) = (self.marks, self.counts);
        let chunks = (self.from..until).step_by(CHUNK_ROWS).map(move |from| {
            let end = until.min(from + CHUNK_ROWS);
            let mut columns = rows.gather(from, end)?;
            if marks {
                columns.push(Arc::new(rows.gone(from, end)));
            }
            if counts {
                columns.push(Arc::new(Int64Array::from_iter_values(from as i64..end as i64)));
            }
            Ok(RecordBatch::try_new(schema.clone(), columns)?)
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), futures::stream::iter(chunks).boxed()))
    }
}
