//! One topic's draft: which type each column gets, and why.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use bytestring::ByteString;
use serde::Serialize;

use super::ddl::{DdlColumn, DdlTable};
use super::guess::Candidate;
use super::sample::Sample;
use super::seen::{self, Seen, Sent};
use super::{declared, guess, yaml};
use crate::batch::ChangeBatchBuilder;
use crate::change::{ChangeBatch, ChangeEvent, Decoded, Op, RawRecord};
use crate::clock::Clock;
use crate::error::Result;
use crate::evolution::{Evolution, Form, TableColumns, TableImages, legal_name};
use crate::layout;
use crate::row::{Column, ColumnType, Encoding, RowShape};

/// What is drafted for one table.
#[derive(Debug, Clone, Serialize)]
pub struct Draft {
    pub table: String,
    pub topic: String,
    /// The connector's name, and the table at the source.
    pub connector: Option<String>,
    pub source_table: Option<String>,
    /// How many changes of rows were looked at.
    pub changes: usize,
    pub key: Vec<String>,
    pub columns: Vec<DraftColumn>,
    /// Why the columns are not declared, where they cannot be.
    pub undeclarable: Option<String>,
    /// Sampled records that would become rejected rows with these columns.
    pub refused: Vec<Refused>,
    /// The file's text.
    pub yaml: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct DraftColumn {
    pub name: String,
    /// What the source calls it, where that is no name for a declared column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    #[serde(rename = "type", serialize_with = "shown")]
    pub column_type: ColumnType,
    #[serde(serialize_with = "shown")]
    pub encoding: Encoding,
    pub doc: Option<String>,
    /// Where the type comes from.
    pub origin: String,
    pub example: Option<String>,
    pub values: usize,
    pub null_percent: Option<usize>,
    pub notes: Vec<String>,
    /// What a person has to decide.
    pub ambiguous: Vec<String>,
}

impl DraftColumn {
    /// The name that the records have it by.
    fn source(&self) -> &str {
        self.source.as_deref().unwrap_or(&self.name)
    }
}

/// A record that would become a rejected row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refused {
    pub partition: i32,
    pub offset: i64,
    pub reason: String,
}

fn shown<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// The draft of a topic's table, or `None` when the topic has no change of a row. What a person should know besides
/// goes to `findings`.
pub(super) fn draft(
    sample: &Sample,
    table: &str,
    declared: Option<(&str, &DdlTable)>,
    with_examples: bool,
    findings: &mut Vec<String>,
) -> Result<Option<Draft>> {
    let events: Vec<&ChangeEvent> = sample.changes().collect();
    if events.is_empty() {
        if let Some(words) = why_none(sample) {
            findings.push(words);
        }
        return Ok(None);
    }
    let connector = sample.connector();
    let tables = sample.source_tables();
    if tables.len() > 1 {
        let names: Vec<String> = tables.iter().map(told_table).collect();
        findings.push(format!("it carries rows of {} tables: {}", names.len(), names.join(", ")));
    }
    let shapes: Vec<&Arc<RowShape>> = newest_shapes(&events);
    let mut columns = Vec::new();
    for (name, seen) in seen::columns(&events) {
        let ddl = declared.and_then(|(_, table)| find(&table.columns, &name));
        let sent: Vec<&Column> = shapes.iter().filter_map(|shape| shape_column(shape, &name)).collect();
        let mut column = column(&name, &seen, &sent, ddl, connector.as_deref(), with_examples)?;
        if let (Some((file, table)), None, true) = (declared, ddl, sent.is_empty()) {
            column.notes.push(format!("not in {file}:{}", table.line));
        }
        columns.push(column);
    }
    for ddl in declared.into_iter().flat_map(|(_, table)| &table.columns) {
        if !columns.iter().any(|column| column.source().eq_ignore_ascii_case(&ddl.name)) {
            let mut column = column(&ddl.name, &Seen::default(), &[], Some(ddl), connector.as_deref(), with_examples)?;
            column.ambiguous =
                vec!["no sampled record has this column; leave it out if it is not captured".to_string()];
            columns.push(column);
        }
    }
    let undeclarable = undeclarable(&columns);
    let key = key(&events, declared.map(|(_, table)| table), &columns, findings);
    let shape = undeclarable.is_none().then(|| Arc::new(shape(&columns)));
    let refused = refused(sample, shape.as_ref(), Evolution::Evolve)?;
    let told = |what: &str, records: &[Refused]| {
        let Refused { partition, offset, reason } = records.first()?;
        let (count, all) = (records.len(), sample.decoded.len());
        Some(format!(
            "{count} of {all} sampled records {what}, the first at partition {partition} offset {offset}: {reason}"
        ))
    };
    findings.extend(told("would be rejected rows", &refused));
    if shape.is_some() {
        // What is not rejected only because the table follows its records.
        let mut others = self::refused(sample, shape.as_ref(), Evolution::Strict)?;
        others.retain(|strict| !refused.iter().any(|r| (r.partition, r.offset) == (strict.partition, strict.offset)));
        findings.extend(told("do not fit these columns", &others));
    }
    if let Some(reason) = &undeclarable {
        let rows = if events.iter().all(|event| event.shape.is_some()) {
            "are what the records' schema blocks say"
        } else if shapes.is_empty() {
            "rows stay JSON text"
        } else {
            "are known only from those records that have a schema block"
        };
        findings.push(format!("its columns are not declared, and {rows}: {reason}"));
    }
    findings.extend(sample.cut.clone());
    let doubtful = columns.iter().filter(|column| !column.ambiguous.is_empty()).count();
    if doubtful > 0 {
        findings.push(format!("{doubtful} of {} columns are ambiguous; see the draft", columns.len()));
    }
    let mut draft = Draft {
        table: table.to_string(),
        topic: sample.topic.to_string(),
        connector,
        source_table: if let [only] = tables.as_slice() { Some(told_table(only)) } else { None },
        changes: events.len(),
        key,
        columns,
        undeclarable,
        refused,
        yaml: String::new(),
    };
    let place = declared.map(|(file, table)| format!("{file}:{}", table.line));
    draft.yaml = yaml::render(&draft, sample, place.as_deref(), partition_note(sample));
    Ok(Some(draft))
}

fn told_table((schema, name): &(Option<String>, String)) -> String {
    schema.as_ref().map_or(name.clone(), |schema| format!("{schema}.{name}"))
}

/// Why a topic gives no draft.
fn why_none(sample: &Sample) -> Option<String> {
    if sample.decoded.is_empty() {
        return Some("no draft: the topic has no records".to_string());
    }
    let rejected: Vec<(&RawRecord, &str)> = sample
        .decoded
        .iter()
        .filter_map(|decoded| match decoded {
            Decoded::Rejected(rejected) => Some((&rejected.record, rejected.reason.as_str())),
            _ => None,
        })
        .collect();
    let (record, reason) = *rejected.first()?;
    Some(format!(
        "no draft: {} of {} sampled records cannot be read, the first at partition {} offset {}: {reason}",
        rejected.len(),
        sample.decoded.len(),
        record.partition,
        record.offset
    ))
}

/// The shapes that the records' own schema blocks give, each once, the newest first.
fn newest_shapes<'a>(events: &[&'a ChangeEvent]) -> Vec<&'a Arc<RowShape>> {
    let mut ordered: Vec<&ChangeEvent> = events.iter().copied().filter(|event| event.shape.is_some()).collect();
    ordered.sort_by_key(|event| (event.source_ts_us, event.record.timestamp_ms, event.record.offset));
    let mut shapes: Vec<&Arc<RowShape>> = Vec::new();
    for shape in ordered.iter().rev().filter_map(|event| event.shape.as_ref()) {
        if !shapes.contains(&shape) {
            shapes.push(shape);
        }
    }
    shapes
}

fn shape_column<'s>(shape: &'s RowShape, name: &str) -> Option<&'s Column> {
    shape.columns.iter().find(|column| column.name == name)
}

fn find<'d>(columns: &'d [DdlColumn], name: &str) -> Option<&'d DdlColumn> {
    let exact = columns.iter().find(|column| column.name == name);
    exact.or_else(|| columns.iter().find(|column| column.name.eq_ignore_ascii_case(name)))
}

/// Takes the first type that every value fits.
fn column(
    name: &str,
    seen: &Seen<'_>,
    sent: &[&Column],
    ddl: Option<&DdlColumn>,
    connector: Option<&str>,
    with_examples: bool,
) -> Result<DraftColumn> {
    // A record with a schema block is read by that; the others have to fit what the blocks make of the table.
    let has_own = |value: &Sent<'_>| value.event.shape.as_ref().is_some_and(|s| shape_column(s, name).is_some());
    let values: Vec<Sent<'_>> = seen.values.iter().copied().filter(|value| !has_own(value)).collect();
    let mut candidates: Vec<Candidate> = widest(sent).into_iter().collect();
    let by_ddl = match (ddl, connector) {
        (Some(ddl), Some(connector)) => declared::candidates(connector, &ddl.sql_type, seen),
        _ => Vec::new(),
    };
    let (origin, known) = match (candidates.is_empty(), ddl) {
        (false, _) => ("schema block".to_string(), candidates.len()),
        (true, Some(ddl)) if !by_ddl.is_empty() => (ddl.sql_type.to_string(), by_ddl.len()),
        (true, _) => ("by its values".to_string(), 0),
    };
    candidates.extend(by_ddl);
    candidates.extend(guess::candidates(name, seen));
    let choices = candidates.len();
    candidates.push(Candidate::json().ambiguous("no other type holds its values, which are kept as JSON text"));
    let mut notes = Vec::new();
    let mut ambiguous = Vec::new();
    let mut taken = None;
    for (index, candidate) in candidates.iter().enumerate() {
        match misfit(name, candidate, &values)? {
            None => {
                taken = Some((index, candidate));
                break;
            }
            Some(misfit) if index == 0 && known > 0 => notes.push(misfit),
            Some(_) => {}
        }
    }
    if let Some((index, candidate)) = taken {
        // One that takes the place of another for a reason of its own tells that reason.
        if index > 0 && candidate.about.as_deref().is_some_and(|about| about.contains(".mode=")) {
            notes.clear();
        }
        notes.extend(candidate.about.clone());
        // What the values might be otherwise is no question where a declaration says what they are.
        if known == 0 || index < known {
            ambiguous.extend(candidate.ambiguous.clone());
        }
        if sent.is_empty() {
            ambiguous.extend(other_reading(name, candidate, &candidates[index + 1..], seen)?);
        }
        if candidate.encoding == Encoding::Json && seen.unavailable > 0 {
            let doubt =
                "values that were not sent, as they are large, would be taken for the text that stands for them";
            ambiguous.push(doubt.to_string());
        }
        if index >= known && known > 0 {
            let (column_type, encoding) = (candidate.column_type, candidate.encoding);
            ambiguous
                .push(format!("its values are not what {origin} makes; {column_type} sent as {encoding} holds them"));
        }
        if sent.is_empty() && known > 0 && seen.values.is_empty() && choices > 2 {
            notes.push("no value was seen: the connector's default is assumed".to_string());
        }
    }
    let any = Candidate::json();
    let Candidate { column_type, encoding, .. } = taken.map_or(&any, |(_, candidate)| candidate);
    let (column_type, encoding) = (*column_type, *encoding);
    let legal = legal_name(name);
    let example = seen.values.first().filter(|_| with_examples).map(|value| yaml::shortened(value.json));
    let null_percent = (seen.rows > 0).then(|| (seen.nulls * 100).div_ceil(seen.rows));
    Ok(DraftColumn {
        source: (legal != name).then(|| name.to_string()),
        name: legal,
        column_type,
        encoding,
        doc: sent.first().and_then(|column| column.doc.clone()).or_else(|| ddl.and_then(|ddl| ddl.doc.clone())),
        origin,
        example,
        values: seen.values.len(),
        null_percent,
        notes,
        ambiguous,
    })
}

/// What a table gets whose records had these columns, the newest first: the newest one's type, wide enough for those of
/// the others that it can be widened for.
fn widest(sent: &[&Column]) -> Option<Candidate> {
    let alone = |column: &Column| RowShape { columns: vec![column.clone()] };
    let (newest, older) = sent.split_first()?;
    let table =
        older.iter().fold(TableColumns::of_shape(&alone(newest)), |table, older| table.evolve(&alone(older)).columns);
    Some(Candidate::new(table[0].column_type, newest.encoding))
}

/// Words on another encoding of the same type that all values, being text, fit as well. JSON text could be anything.
fn other_reading(name: &str, taken: &Candidate, others: &[Candidate], seen: &Seen<'_>) -> Result<Option<String>> {
    if !seen.is_text() {
        return Ok(None);
    }
    for other in
        others.iter().filter(|other| other.column_type == taken.column_type && other.encoding != taken.encoding)
    {
        if other.encoding != Encoding::Json && misfit(name, other, &seen.values)?.is_none() {
            let (taken, other) = (taken.encoding, other.encoding);
            return Ok(Some(format!("every value can be read as {taken} and as {other}")));
        }
    }
    Ok(None)
}

/// Words on the values that do not fit a type, with the first reason; `None` when all fit. The batch builder decides.
fn misfit(name: &str, candidate: &Candidate, values: &[Sent<'_>]) -> Result<Option<String>> {
    let Candidate { column_type, encoding, .. } = candidate;
    let column = Column { name: legal_name(name), column_type: *column_type, encoding: *encoding, doc: None };
    let shape = Arc::new(RowShape { columns: vec![column] });
    let mut builder = ChangeBatchBuilder::new(images(Some(&shape), Evolution::Strict), 0, Clock::manual(0).0);
    let topic: Arc<str> = "sample".into();
    for (offset, value) in (0..).zip(values) {
        let mut row = "{".to_string();
        crate::json::push_field(&mut row, name, value.json);
        row.push('}');
        let sent = value.event.record.clone();
        let record = RawRecord { topic: topic.clone(), partition: 0, offset, payload: None, ..sent };
        let (before, after) = (None, Some(ByteString::from(row).into()));
        let (op, shape) = (Op::Create, None);
        builder.push(Decoded::Change(ChangeEvent { record, op, before, after, shape, ..value.event.clone() }))?;
    }
    let found = errors(&builder.finish()?);
    let Some(first) = found.first() else { return Ok(None) };
    let record = &values[usize::try_from(first.offset).unwrap_or_default()].event.record;
    // The column is named already where this is read.
    let reason =
        first.reason.split_once("`: ").or_else(|| first.reason.split_once("` ")).map_or(&*first.reason, |r| r.1);
    Ok(Some(format!(
        "{} of {} values, first at partition {} offset {}: {reason}",
        found.len(),
        values.len(),
        record.partition,
        record.offset
    )))
}

/// The rejected rows of a batch.
fn errors(batch: &ChangeBatch) -> Vec<Refused> {
    let rows: &RecordBatch = &batch.rows;
    let (Some(error), Some(partition), Some(offset)) = (
        rows.column_by_name(layout::ERROR).and_then(|column| column.as_string_opt::<i32>()),
        rows.column_by_name(layout::PARTITION).and_then(|column| column.as_primitive_opt::<Int32Type>()),
        rows.column_by_name(layout::OFFSET).and_then(|column| column.as_primitive_opt::<Int64Type>()),
    ) else {
        return Vec::new();
    };
    (0..rows.num_rows())
        .filter(|row| error.is_valid(*row))
        .map(|row| Refused {
            partition: partition.value(row),
            offset: offset.value(row),
            reason: error.value(row).to_string(),
        })
        .collect()
}

/// Puts the whole sample through the batch builder, as `ingest` will into a new table.
fn refused(sample: &Sample, shape: Option<&Arc<RowShape>>, evolution: Evolution) -> Result<Vec<Refused>> {
    let mut builder = ChangeBatchBuilder::new(images(shape, evolution), 0, Clock::manual(0).0);
    for decoded in &sample.decoded {
        builder.push(decoded.clone())?;
    }
    Ok(errors(&builder.finish()?))
}

fn images(declared: Option<&Arc<RowShape>>, evolution: Evolution) -> TableImages {
    let form = declared.map_or(Form::Open, |shape| Form::Columns(TableColumns::of_shape(shape)));
    TableImages { evolution, declared: declared.cloned(), form }
}

fn shape(columns: &[DraftColumn]) -> RowShape {
    let column = |column: &DraftColumn| Column {
        name: column.name.clone(),
        column_type: column.column_type,
        encoding: column.encoding,
        doc: column.doc.clone(),
    };
    RowShape { columns: columns.iter().map(column).collect() }
}

/// A table's columns are declared all or not at all: a row with two fields for one of them is rejected.
fn undeclarable(columns: &[DraftColumn]) -> Option<String> {
    let is_double = |column: &&DraftColumn| columns.iter().filter(|other| other.name == column.name).count() > 1;
    let mut double: Vec<&DraftColumn> = columns.iter().filter(is_double).collect();
    double.sort_by_key(|column| (&column.name, column.source()));
    let told = |column: &&DraftColumn| format!("`{}`", column.source());
    let groups = double.chunk_by(|left, right| left.name == right.name).map(|group| {
        let sources: Vec<String> = group.iter().map(told).collect();
        format!("{} would be one column, `{}`", sources.join(" and "), group[0].name)
    });
    let groups: Vec<String> = groups.collect();
    (!groups.is_empty()).then(|| groups.join("; "))
}

/// The columns that identify a row: the message key's, or where there is none, the declared primary key's.
fn key(
    events: &[&ChangeEvent],
    ddl: Option<&DdlTable>,
    columns: &[DraftColumn],
    findings: &mut Vec<String>,
) -> Vec<String> {
    let mut keys: Vec<Vec<String>> = Vec::new();
    let (mut with, mut without) = (0, 0);
    for event in events {
        let Some(text) = event.key.as_deref() else {
            without += 1;
            continue;
        };
        with += 1;
        let names = seen::fields(text).into_iter().map(|(name, _)| Cow::into_owned(name)).collect::<Vec<_>>();
        if !keys.contains(&names) {
            keys.push(names);
        }
    }
    let named = |name: &String| columns.iter().find(|column| column.source() == name).map(|column| column.name.clone());
    let own = |names: &[String]| -> Vec<String> {
        let column = |name: &String| columns.iter().find(|column| column.source().eq_ignore_ascii_case(name));
        names.iter().map(|name| column(name).map_or(name.clone(), |column| column.source().to_string())).collect()
    };
    let primary = ddl.map(|table| own(&table.key)).filter(|key| !key.is_empty());
    if with > 0 && without > 0 {
        findings.push(format!("{without} of {} changes have no message key", with + without));
    }
    let key = match keys.as_slice() {
        [] => match primary {
            Some(primary) => {
                findings.push(
                    "its records have no message key; the primary key of the CREATE TABLE is drafted".to_string(),
                );
                primary
            }
            None => {
                findings.push("its records have no message key: set `key`, or silver cannot be built".to_string());
                return Vec::new();
            }
        },
        [names] if names.is_empty() => {
            findings.push("its message key is no JSON object: set `key`".to_string());
            return Vec::new();
        }
        [names] => {
            if primary
                .is_some_and(|primary| !names.iter().all(|name| primary.contains(name)) || primary.len() != names.len())
            {
                findings.push(
                    "its message key is not the primary key of the CREATE TABLE; the former is drafted".to_string(),
                );
            }
            names.clone()
        }
        _ => {
            findings.push("its message keys have different fields: set `key`".to_string());
            return Vec::new();
        }
    };
    key.iter().map(named).collect::<Option<Vec<String>>>().unwrap_or_else(|| {
        findings.push(format!("its message key ({}) is not made of its columns: set `key`", key.join(", ")));
        Vec::new()
    })
}

/// Whether another partitioning than by day would serve the table better, by how many records come in a day.
fn partition_note(sample: &Sample) -> Option<String> {
    let times = || sample.decoded.iter().filter_map(|decoded| decoded.record().timestamp_ms);
    let (first, last) = (times().min()?, times().max()?);
    let days = (last - first) / 86_400_000;
    if days < 2 {
        return None;
    }
    let a_day = sample.span / days.unsigned_abs();
    match a_day {
        0..1_000 => Some(format!("about {a_day} records a day: `month(_ingested_at)` or `[]` would give larger files")),
        500_000_000.. => {
            Some(format!("about {a_day} records a day: `hour(_ingested_at)` would give smaller partitions"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::decode::{Format, decode};
    use crate::discover::ddl::{self, Dialect};

    const DAY_MS: i64 = 86_400_000;

    /// A sample of records as a connector sends them, one a day.
    fn sample(source: &str, records: &[(Option<&str>, &str)]) -> Sample {
        let decoded = (0..).zip(records).map(|(offset, (key, after))| {
            let payload = match after.starts_with("{") {
                true => format!(r#"{{"op":"c","source":{source},"after":{after}}}"#),
                false => after.to_string(),
            };
            let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
            let record = RawRecord {
                topic: "shop.public.orders".into(),
                partition: 0,
                offset,
                timestamp_ms: Some(offset * DAY_MS),
                key: key.map(bytes),
                payload: Some(bytes(&payload)),
            };
            decode(record, Format::DebeziumJson)
        });
        Sample { topic: "shop.public.orders".into(), decoded: decoded.collect(), span: 1_000_000, cut: None }
    }

    const POSTGRES: &str = r#"{"connector":"postgresql","schema":"public","table":"orders"}"#;

    fn shown(sample: &Sample, ddl: Option<&str>) -> String {
        let read = ddl.map(|text| ddl::read(text, Some(Dialect::PostgreSql)));
        let table = read.as_ref().map(|ddl| ("schema.sql", &ddl.tables[0]));
        let mut findings = Vec::new();
        let draft = draft(sample, "orders", table, true, &mut findings).unwrap();
        let findings: String = findings.iter().map(|finding| format!("! {finding}\n")).collect();
        findings + &draft.map_or(String::new(), |draft| draft.yaml)
    }

    #[test]
    fn values_tell_kinds_and_leave_doubts() {
        let rows = [
            r#"{"id":1,"n":12,"at":1735689600123,"day":20089,"x":1.5,"ok":true,"b64":"AfQ=","when":"2025-01-01T00:00:00Z","mixed":1,"never":null,"big":"__debezium_unavailable_value","tags":[1],"free":{"scale":2,"value":"MDk="},"iso":"2025-01-01Z","note":"line\u2028\nend"}"#,
            r#"{"id":2,"n":3000000000,"at":1735689600999,"day":20090,"x":2,"ok":null,"b64":"Zg==","when":"2025-01-01T00:00:00.5Z","mixed":"one","never":null,"big":"__debezium_unavailable_value","tags":null,"free":{"scale":0,"value":"AQ=="},"iso":null,"note":"__debezium_unavailable_value"}"#,
        ];
        let records: Vec<_> = rows.iter().map(|row| (Some(r#"{"id":1}"#), *row)).collect();
        insta::assert_snapshot!(shown(&sample(POSTGRES, &records), None), @r#"
        ! 9 of 15 columns are ambiguous; see the draft
        # Drafted by `icestream discover` from 2 changes (postgresql, table public.orders), for review.
        # Columns to decide: 9; look for `ambiguous`.
        topic: shop.public.orders
        key: [id]
        partition: ["day(_ingested_at)"]
        columns:
          # fits `int` as well in the sample
          - { name: id, type: long }                                     # by its values · 2
          - { name: "n", type: long }                                    # by its values · 3000000000
          # ambiguous: a number, or a timestamp sent as millis: 1735689600999 would be 2025-01-01T00:00:00Z
          - { name: at, type: long }                                     # by its values · 1735689600999
          # ambiguous: a number, or a date sent as days: 20090 would be 2025-01-02
          - { name: day, type: long }                                    # by its values · 20090
          # ambiguous: a double, or a decimal that decimal.handling.mode=double has made one; the source's CREATE TABLE tells
          - { name: x, type: double }                                    # by its values · 2
          - { name: ok, type: boolean }                                  # by its values · true · 50% null
          # ambiguous: looks like base64: a decimal (decimal.handling.mode=precise; which scale is not in the record), bytes or text; the source's CREATE TABLE tells
          - { name: b64, type: string }                                  # by its values · "Zg=="
          - { name: when, type: timestamptz, encoding: iso }             # by its values · "2025-01-01T00:00:00.5Z"
          # ambiguous: its values are of different kinds, and each is kept as its JSON text: whole numbers, text
          - { name: mixed, type: string, encoding: json }                # by its values · "one"
          # ambiguous: no value was seen; `string` is for text, and a row with another value would be rejected
          - { name: never, type: string }                                # by its values · 100% null
          # ambiguous: its values were never sent, as they are large; `string` is for text, and a row with another value would be rejected
          - { name: big, type: string }                                  # by its values
          # JSON text
          - { name: tags, type: string, encoding: json }                 # by its values · [1] · 50% null
          # ambiguous: its type sets no scale; decimal(38,9) holds what was seen, and a value with more digits would be rejected; a `string` sent as `digits` holds every one
          - { name: free, type: "decimal(38,9)", encoding: base64 }      # by its values · {"scale":0,"value":"AQ=="}
          # ambiguous: a date (time.precision.mode=isostring), or text that looks like one
          - { name: iso, type: date, encoding: iso }                     # by its values · "2025-01-01Z" · 50% null
          - { name: note, type: string }                                 # by its values · "line\u2028\nend"
        "#);
    }

    #[test]
    fn declared_types_are_tried_on_every_value() {
        let ddl =
            "CREATE TABLE public.orders (id int PRIMARY KEY, total numeric(4,2), at timestamp(3), late timestamp, \
                   gone text, scale numeric, raw bytea, \"Id\" int, _op text);
                   COMMENT ON COLUMN public.orders.id IS 'the ${number}: \"it\"';";
        let rows = [
            r#"{"id":1,"total":"BNI=","at":1735689600123,"late":1735689600123,"scale":{"scale":2,"value":"MDk="},"raw":"00ff","new":1}"#,
            r#"{"id":2,"total":"CSfA","at":1735689600999,"late":1735689600999,"scale":null,"raw":"abcd","new":2}"#,
        ];
        let records: Vec<_> = rows.iter().map(|row| (Some(r#"{"id":1}"#), *row)).collect();
        insta::assert_snapshot!(shown(&sample(POSTGRES, &records), Some(ddl)), @r#"
        ! 6 of 9 columns are ambiguous; see the draft
        # Drafted by `icestream discover` from 2 changes (postgresql, table public.orders) and schema.sql:1, for review.
        # Columns to decide: 6; look for `ambiguous`.
        topic: shop.public.orders
        key: [id]
        partition: ["day(_ingested_at)"]
        columns:
          - { name: id, type: int, doc: "the $${number}: \"it\"" }       # int · 2
          # 1 of 2 values, first at partition 0 offset 1: does not fit decimal(4,2) sent as base64: it has more digits than the type holds
          # ambiguous: its values have more digits than were declared; it is taken to have been widened, with the same scale
          - { name: total, type: "decimal(38,2)", encoding: base64 }     # numeric(4,2) · "CSfA"
          - { name: at, type: timestamp, encoding: millis }              # timestamp(3) · 1735689600999
          # ambiguous: its type is sent as micros unless time.precision.mode says otherwise, and 1735689600999 is 2025-01-01T00:00:00Z in millis, 1970-01-21T02:08:09Z in micros, 1970-01-01T00:28:55Z in nanos; set type and encoding to what the connector sends
          - { name: late, type: long }                                   # timestamp · 1735689600999
          # ambiguous: its type sets no scale; decimal(38,9) holds what was seen, and a value with more digits would be rejected; a `string` sent as `digits` holds every one
          - { name: scale, type: "decimal(38,9)", encoding: base64 }     # numeric · {"scale":2,"value":"MDk="} · 50% null
          # ambiguous: every value could be hex as well (binary.handling.mode=hex); that would be a `string`
          - { name: raw, type: binary }                                  # bytea · "abcd"
          # fits `int` as well in the sample
          # not in schema.sql:1
          - { name: new, type: long }                                    # by its values · 2
          # ambiguous: no sampled record has this column; leave it out if it is not captured
          - { name: gone, type: string }                                 # text
          # `_op` at the source
          # ambiguous: no sampled record has this column; leave it out if it is not captured
          - { name: op, type: string }                                   # text
        "#);
    }

    #[test]
    fn a_schema_block_is_exact_and_the_newest_wins() {
        let mut sample = sample(POSTGRES, &[(Some(r#"{"id":1}"#), r#"{"id":1,"total":"AfQ=","at":1}"#); 2]);
        let column = |name: &str, text: &str, encoding| Column::new(name, text.parse().unwrap(), encoding).unwrap();
        for (index, decoded) in sample.decoded.iter_mut().enumerate() {
            let Decoded::Change(event) = decoded else { panic!("not a change") };
            let total = if index == 0 { "decimal(5,2)" } else { "decimal(10,2)" };
            let columns = vec![
                column("id", "int", None),
                column("total", total, None),
                column("at", "timestamp", Some(Encoding::Millis)),
            ];
            event.shape = Some(Arc::new(RowShape { columns }));
        }
        insta::assert_snapshot!(shown(&sample, Some("CREATE TABLE orders (id bigint, total text, at date)")), @r#"
        # Drafted by `icestream discover` from 2 changes (postgresql, table public.orders) and schema.sql:1, for review.
        topic: shop.public.orders
        key: [id]
        partition: ["day(_ingested_at)"]
        columns:
          - { name: id, type: int }                                      # schema block · 1
          - { name: total, type: "decimal(10,2)", encoding: base64 }     # schema block · "AfQ="
          - { name: at, type: timestamp, encoding: millis }              # schema block · 1
        "#);
    }

    #[test]
    fn names_that_no_column_can_have_become_ones_that_it_can() {
        let rows = [r#"{"orderId":1,"Größe":"m","_op":"x"}"#, r#"{"orderId":2,"Größe":null,"_op":"y"}"#];
        let records: Vec<_> = rows.iter().map(|row| (Some(r#"{"orderId":1}"#), *row)).collect();
        insta::assert_snapshot!(shown(&sample(POSTGRES, &records), None), @r#"
        # Drafted by `icestream discover` from 2 changes (postgresql, table public.orders), for review.
        topic: shop.public.orders
        key: [order_id]
        partition: ["day(_ingested_at)"]
        columns:
          # `orderId` at the source
          # fits `int` as well in the sample
          - { name: order_id, type: long }                               # by its values · 2
          # `Größe` at the source
          - { name: grosse, type: string }                               # by its values · "m" · 50% null
          # `_op` at the source
          - { name: op, type: string }                                   # by its values · "y"
        "#);
        let records = [(Some(r#"{"ID":1}"#), r#"{"ID":1,"id":2}"#)];
        insta::assert_snapshot!(shown(&sample(POSTGRES, &records), None), @r#"
        ! its columns are not declared, and rows stay JSON text: `ID` and `id` would be one column, `id`
        # Drafted by `icestream discover` from 1 change (postgresql, table public.orders), for review.
        topic: shop.public.orders
        key: [id]
        partition: ["day(_ingested_at)"]
        # Not declared, because `ID` and `id` would be one column, `id`.
        # columns:
          # `ID` at the source
          # fits `int` as well in the sample
        #   - { name: id, type: long }                                     # by its values · 1
          # fits `int` as well in the sample
        #   - { name: id, type: long }                                     # by its values · 2
        "#);
    }

    #[test]
    fn what_only_an_evolving_table_takes_is_told() {
        let mut sample = sample(
            POSTGRES,
            &[
                (Some(r#"{"id":1}"#), r#"{"id":1}"#),
                (Some(r#"{"id":1}"#), r#"{"id":"one"}"#),
                (Some(r#"{"id":1}"#), r#"{"id":"two"}"#),
            ],
        );
        for (decoded, column_type) in sample.decoded.iter_mut().zip([ColumnType::Int, ColumnType::String]) {
            let Decoded::Change(event) = decoded else { panic!("not a change") };
            let columns = vec![Column::new("id", column_type, None).unwrap()];
            event.shape = Some(Arc::new(RowShape { columns }));
        }
        insta::assert_snapshot!(shown(&sample, None), @r#"
        ! 1 of 3 sampled records do not fit these columns, the first at partition 0 offset 0: its columns need what `evolution: strict` does not do: added `id_v2` (int) beside `id` (string)
        # Drafted by `icestream discover` from 3 changes (postgresql, table public.orders), for review.
        topic: shop.public.orders
        key: [id]
        partition: ["day(_ingested_at)"]
        columns:
          - { name: id, type: string }                                   # schema block · "two"
        "#);
    }

    #[test]
    fn keys_and_bad_records_are_told() {
        let check = |records: &[(Option<&str>, &str)], ddl: Option<&str>| {
            let shown = shown(&sample(POSTGRES, records), ddl);
            shown.lines().filter(|line| line.starts_with('!') || line.contains("key: ")).collect::<Vec<_>>().join("\n")
        };
        let ddl = Some("CREATE TABLE orders (id int, part int, PRIMARY KEY (id, part))");
        let row = r#"{"id":1,"part":2}"#;
        insta::assert_snapshot!(check(&[(None, row)], ddl), @"
        ! its records have no message key; the primary key of the CREATE TABLE is drafted
        key: [id, part]
        ");
        insta::assert_snapshot!(check(&[(None, row), (Some(r#"{"id":1}"#), row)], ddl), @"
        ! 1 of 2 changes have no message key
        ! its message key is not the primary key of the CREATE TABLE; the former is drafted
        key: [id]
        ");
        insta::assert_snapshot!(check(&[(Some(r#"{"part":2,"id":1}"#), row)], ddl), @"key: [part, id]");
        insta::assert_snapshot!(check(&[(Some(r#"{"id":1}"#), row), (Some(r#"{"part":1}"#), row)], None), @"
        ! its message keys have different fields: set `key`
        # key: []
        ");
        insta::assert_snapshot!(check(&[(Some("7"), row)], None), @"
        ! its message key is no JSON object: set `key`
        # key: []
        ");
        insta::assert_snapshot!(check(&[(Some(r#"{"other":1}"#), row)], None), @"
        ! its message key (other) is not made of its columns: set `key`
        # key: []
        ");
        insta::assert_snapshot!(check(&[(Some(r#"{"id":1}"#), row), (None, "garbage")], None), @"
        ! 1 of 2 sampled records would be rejected rows, the first at partition 0 offset 1: the payload is not JSON: expected value at line 1 column 1
        key: [id]
        ");
        insta::assert_snapshot!(check(&[(None, "garbage"), (None, "[]")], None), @"! no draft: 2 of 2 sampled records cannot be read, the first at partition 0 offset 0: the payload is not JSON: expected value at line 1 column 1");
        insta::assert_snapshot!(check(&[], None), @"! no draft: the topic has no records");
    }

    #[test]
    fn a_quiet_topic_is_better_off_with_larger_partitions() {
        let mut sample = sample(POSTGRES, &[(Some(r#"{"id":1}"#), r#"{"id":1}"#); 11]);
        assert_eq!(partition_note(&sample), None);
        sample.span = 50;
        insta::assert_snapshot!(partition_note(&sample).unwrap(), @"about 5 records a day: `month(_ingested_at)` or `[]` would give larger files");
        sample.span = 10_000_000_000;
        insta::assert_snapshot!(partition_note(&sample).unwrap(), @"about 1000000000 records a day: `hour(_ingested_at)` would give smaller partitions");
    }
}
