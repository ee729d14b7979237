//! What the events of a table have in common, and reading them by it.
//!
//! A connector writes the events of a table one like the other: the same names in the same order, and most of the source
//! block the same as well. A skeleton is one event's text with its values left out; an event that has the same text
//! around its values is taken apart by comparing, without reading any name.
//!
//! **What a skeleton reads is what reading without one gives.** Whatever it cannot be sure of, it leaves alone.

use std::borrow::Cow;
use std::sync::Arc;

use bytestring::ByteString;

use super::debezium::{Event, Lifted, SourceBlock, op_of};
use super::payload::Fields;
use super::position;
use crate::change::{FieldNames, Image, Op, Span};
use crate::json;

/// A table's events have or lack `before` and `after`, and change their form when the table does.
const MOST_SKELETONS: usize = 8;

/// An event whose text around the values is longer has no skeleton.
const MOST_BYTES: usize = 64 << 10;

/// A skeleton that fits so many events was worth its while.
const ENOUGH_HITS: u32 = 16;

/// At most so many events are read without trying to learn from them.
const LONGEST_PAUSE: u32 = 1024;

/// The skeletons seen last, those that fit best in front.
#[derive(Debug, Default)]
pub(super) struct Skeletons {
    known: Vec<Skeleton>,
    found: Found,
    hits: u32,
    /// How many events to let pass before one is learned from, and how many were to pass before that.
    skip: u32,
    pause: u32,
}

/// Where the values of an event are; made once, and used for every event.
#[derive(Debug, Default)]
struct Found {
    /// Of an image, from its beginning on.
    values: Vec<Span>,
    /// Of the source block, in the order of a skeleton's `varying`.
    source: Vec<Span>,
}

#[derive(Debug)]
struct Skeleton {
    steps: Vec<Step>,
    tail: Box<str>,
    before: Option<Arc<FieldNames>>,
    after: Option<Arc<FieldNames>>,
    connector: Box<str>,
    /// Fields of the source block that are the same in every event, and that columns are made of.
    constant: Vec<(Box<str>, Box<str>)>,
    /// The names of the fields that are not the same.
    varying: Vec<Box<str>>,
    postgresql: Option<Postgresql>,
    rest: Option<Arc<str>>,
}

/// The fields of PostgreSQL's source blocks that are not the same in every event, by their places in `varying`. Where
/// there are these and no others, nothing has to be looked up by name.
#[derive(Debug)]
struct Postgresql {
    ts_ms: usize,
    ts_us: usize,
    ts_ns: usize,
    sequence: usize,
    tx_id: usize,
    lsn: usize,
}

/// A text, and what comes behind it.
#[derive(Debug)]
struct Step {
    literal: Literal,
    then: Then,
}

/// A text that events have. Most are short, and there are two dozen to an event: those are compared as one number.
#[derive(Debug)]
struct Literal {
    text: Box<str>,
    /// The first sixteen bytes, and which of their bits count.
    block: u128,
    counted: u128,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Op,
    /// The value of the next field of `varying`.
    Source,
    /// A value nobody needs.
    Other,
    ImageBegins,
    Value,
    BeforeEnded,
    AfterEnded,
}

impl Skeletons {
    /// The event that `text`, a part of `payload`, holds, if a skeleton fits. It has no shape.
    pub(super) fn read(&mut self, payload: &ByteString, text: &str) -> Option<Event> {
        for index in 0..self.known.len() {
            if let Some(event) = self.known[index].read(payload, text, &mut self.found) {
                self.known.swap(0, index);
                self.hits = self.hits.saturating_add(1);
                return Some(event);
            }
        }
        None
    }

    /// Keeps the skeleton of a text that was read as `event`.
    pub(super) fn learn(&mut self, text: &str, event: &Event) {
        if self.skip > 0 {
            self.skip -= 1;
            return;
        }
        // Where events are not alike, learning from each would only cost.
        let was_worth_it = std::mem::take(&mut self.hits) >= ENOUGH_HITS;
        self.pause = if was_worth_it { 0 } else { (self.pause * 2 + 1).min(LONGEST_PAUSE) };
        self.skip = self.pause;
        if let Some(skeleton) = Skeleton::of(text, event) {
            self.known.truncate(MOST_SKELETONS - 1);
            self.known.insert(0, skeleton);
        }
    }
}

impl Skeleton {
    fn of(text: &str, event: &Event) -> Option<Self> {
        let mut source = None;
        json::each_field::<()>(text, |name, value| {
            if name == "source" {
                source = Some(value);
            }
            Ok(())
        })
        .ok()?;
        let source = Fields::read(source.filter(|source| source.starts_with('{'))?)?;
        let connector = source.text("connector")?;
        let lifted = Lifted::of(&connector, &source);
        let mut skeleton = Skeleton {
            steps: Vec::new(),
            tail: "".into(),
            before: None,
            after: None,
            connector: connector.into(),
            constant: Vec::new(),
            varying: Vec::new(),
            postgresql: None,
            rest: event.source.rest.clone(),
        };
        let mut cut = Cut { text, done: 0, steps: &mut skeleton.steps };
        json::each_field::<()>(text, |name, value| {
            if matches!(name, Cow::Owned(_)) {
                return Err(());
            }
            match &*name {
                "op" => cut.value(value, Then::Op),
                "ts_ms" | "ts_us" | "ts_ns" => cut.value(value, Then::Other),
                "source" => {
                    for (name, value) in source.iter() {
                        if lifted.holds(name, value) {
                            cut.value(value, Then::Source);
                            skeleton.varying.push(name.into());
                        } else if Lifted::is_made_of(name) {
                            skeleton.constant.push((name.into(), value.into()));
                        }
                    }
                }
                "before" if value != "null" => skeleton.before = Some(cut.image(value, Then::BeforeEnded).ok_or(())?),
                "after" if value != "null" => skeleton.after = Some(cut.image(value, Then::AfterEnded).ok_or(())?),
                "before" | "after" => {}
                // Whatever else an event says is part of what is kept of it, unless it says nothing.
                _ if value == "null" => {}
                _ => return Err(()),
            }
            Ok(())
        })
        .ok()?;
        let done = cut.done;
        skeleton.tail = text.get(done..)?.into();
        skeleton.postgresql = Postgresql::of(&skeleton);
        (skeleton.bytes() <= MOST_BYTES).then_some(skeleton)
    }

    fn bytes(&self) -> usize {
        self.steps.iter().map(|step| step.literal.text.len()).sum::<usize>() + self.tail.len()
    }

    fn read(&self, payload: &ByteString, text: &str, found: &mut Found) -> Option<Event> {
        let mut rest = text.as_bytes();
        // Where what is left begins.
        let length = u32::try_from(rest.len()).ok()?;
        let at = |rest: &[u8]| length - rest.len() as u32;
        let mut begun = 0;
        let (mut op, mut before, mut after) = (None, None, None);
        found.values.clear();
        found.source.clear();
        for Step { literal, then } in &self.steps {
            rest = literal.strip(rest)?;
            let from = at(rest);
            let names = match then {
                Then::ImageBegins => {
                    begun = from;
                    continue;
                }
                Then::BeforeEnded => self.before.as_ref(),
                Then::AfterEnded => self.after.as_ref(),
                _ => {
                    let (length, escapes) = json::value_in(rest)?;
                    rest = rest.get(length..)?;
                    let to = at(rest);
                    match then {
                        Then::Value => found.values.push(Span { from: from - begun, to: to - begun, escapes }),
                        Then::Source => found.source.push(Span { from, to, escapes }),
                        Then::Op => op = Some(op_of(text.get(from as usize..to as usize)?).ok()?),
                        _ => {}
                    }
                    continue;
                }
            };
            let json = payload.slice_ref(text.get(begun as usize..from as usize)?);
            let image = Image::with_fields(json, names?.clone(), found.values.as_slice().into());
            found.values.clear();
            match then {
                Then::BeforeEnded => before = Some(image),
                _ => after = Some(image),
            }
        }
        let op = op?;
        let has_image = after.is_some() || !matches!(op, Op::Create | Op::Update | Op::Read);
        if !has_image || *rest != *self.tail.as_bytes() {
            return None;
        }
        let source = self.source_block(text, &found.source)?;
        Some(Event { op, source, before, after, shape: None })
    }

    fn source_block(&self, text: &str, found: &[Span]) -> Option<SourceBlock> {
        if let Some(block) = self.postgresql.as_ref().and_then(|fields| fields.read(text, found)) {
            return Some(SourceBlock { rest: self.rest.clone(), ..block });
        }
        let mut source = Vec::with_capacity(self.constant.len() + self.varying.len());
        source.extend(self.constant.iter().map(|(name, value)| (Cow::Borrowed(&**name), &**value)));
        for (name, span) in self.varying.iter().zip(found) {
            source.push((Cow::Borrowed(&**name), span.of(text)?));
        }
        let source = Fields::of(source);
        let lifted = Lifted::of(&self.connector, &source);
        // What is not held by a column would be missing in the rest, and what is held would be there twice.
        let constant = self.constant.len();
        let is_as_learned =
            |(index, (name, value)): (usize, (&str, &str))| lifted.holds(name, value) == (index >= constant);
        if !source.iter().enumerate().all(is_as_learned) {
            return None;
        }
        let Lifted { ts_us, position, tx_id } = lifted;
        let position = position.map(|position| position.text);
        Some(SourceBlock { ts_us, position, tx_id, rest: self.rest.clone() })
    }
}

impl Postgresql {
    fn of(skeleton: &Skeleton) -> Option<Self> {
        let place = |wanted: &str| skeleton.varying.iter().position(|name| **name == *wanted);
        let fields = Postgresql {
            ts_ms: place("ts_ms")?,
            ts_us: place("ts_us")?,
            ts_ns: place("ts_ns")?,
            sequence: place("sequence")?,
            tx_id: place("txId")?,
            lsn: place("lsn")?,
        };
        let has_no_others = skeleton.varying.len() == 6 && skeleton.constant.is_empty();
        (has_no_others && &*skeleton.connector == "postgresql").then_some(fields)
    }

    /// A block whose every field is held by a column; nothing where that is not sure.
    fn read(&self, text: &str, found: &[Span]) -> Option<SourceBlock> {
        let value = |at: usize| found.get(at)?.of(text);
        let whole = |at: usize| json::short_whole(value(at)?.as_bytes());
        let ts_us = whole(self.ts_us)?;
        // Of one moment, the longer numbers begin with the shorter ones.
        let (ms, us, ns) = (value(self.ts_ms)?, value(self.ts_us)?, value(self.ts_ns)?);
        let times_agree = (1000..=i64::MAX / 1000).contains(&ts_us)
            && us.strip_prefix(ms).is_some_and(|rest| rest.len() == 3)
            && ns.strip_suffix("000") == Some(us);
        let position = position::of_sequence(value(self.sequence)?, value(self.lsn)?)?;
        let tx_id = value(self.tx_id).filter(|id| id.starts_with(|c: char| c == '-' || c.is_ascii_digit()))?;
        times_agree.then(|| SourceBlock {
            ts_us: Some(ts_us),
            position: Some(position),
            tx_id: Some(tx_id.to_string()),
            rest: None,
        })
    }
}

impl Literal {
    const BLOCK: usize = 16;

    fn new(text: &str) -> Self {
        let (mut block, mut counted) = ([0; Literal::BLOCK], [0; Literal::BLOCK]);
        for ((byte, is_counted), of) in block.iter_mut().zip(&mut counted).zip(text.bytes()) {
            (*byte, *is_counted) = (of, u8::MAX);
        }
        Literal { text: text.into(), block: u128::from_le_bytes(block), counted: u128::from_le_bytes(counted) }
    }

    /// What comes behind it where bytes begin with it.
    #[inline]
    fn strip<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        if let Some(block) = bytes.first_chunk::<{ Literal::BLOCK }>() {
            if (u128::from_le_bytes(*block) ^ self.block) & self.counted != 0 {
                return None;
            }
            if self.text.len() <= Literal::BLOCK {
                return bytes.get(self.text.len()..);
            }
        }
        bytes.strip_prefix(self.text.as_bytes())
    }
}

/// A text being cut at its values.
struct Cut<'a, 's> {
    text: &'a str,
    done: usize,
    steps: &'s mut Vec<Step>,
}

impl Cut<'_, '_> {
    /// Goes on to a place in the text.
    fn step(&mut self, to: usize, then: Then) {
        let literal = Literal::new(self.text.get(self.done..to).unwrap_or_default());
        self.steps.push(Step { literal, then });
        self.done = to;
    }

    fn value(&mut self, value: &str, then: Then) {
        let from = self.place(value);
        self.step(from, then);
        self.done = from + value.len();
    }

    fn image(&mut self, image: &str, ended: Then) -> Option<Arc<FieldNames>> {
        let from = self.place(image);
        self.step(from, Then::ImageBegins);
        let mut names: Vec<Box<str>> = Vec::new();
        json::each_field::<()>(image, |name, value| {
            if matches!(name, Cow::Owned(_)) {
                return Err(());
            }
            names.push((*name).into());
            self.value(value, Then::Value);
            Ok(())
        })
        .ok()?;
        self.step(from + image.len(), ended);
        Some(Arc::new(FieldNames(names.into())))
    }

    /// Where a part of the text is in it.
    fn place(&self, part: &str) -> usize {
        part.as_ptr() as usize - self.text.as_ptr() as usize
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::change::{Decoded, RawRecord};
    use crate::decode::{Decoder, Format};

    fn record(payload: &str) -> RawRecord {
        let payload = Some(Bytes::copy_from_slice(payload.as_bytes()));
        RawRecord { topic: "t".into(), partition: 0, offset: 0, timestamp_ms: None, key: None, payload }
    }

    fn event(before: &str, after: &str, op: &str, number: u32) -> String {
        format!(
            r#"{{"before":{before},"after":{after},"source":{{"version":"3","connector":"postgresql","ts_ms":{number},"snapshot":"false","db":"shop","sequence":"[\"{number}\",\"{number}\"]","ts_us":{number}000,"ts_ns":{number}000000,"schema":"public","table":"orders","txId":{number},"lsn":{number},"xmin":null}},"transaction":null,"op":"{op}","ts_ms":5,"ts_us":5000,"ts_ns":5000000}}"#
        )
    }

    /// Decodes the second record knowing the first; whether its skeleton fit.
    fn check(first: &str, second: &str) -> bool {
        let mut decoder = Decoder::new(Format::DebeziumJson);
        decoder.decode(record(first));
        decoder.decode(record(first));
        let learned = decoder.skeletons.known.len();
        let hits = decoder.skeletons.hits;
        let found = decoder.decode(record(second));
        let expected = Decoder::new(Format::DebeziumJson).decode(record(second));
        assert_eq!(found, expected, "{first} then {second}");
        if let Decoded::Change(event) = found {
            for image in [event.before, event.after].into_iter().flatten() {
                let Some((names, values)) = image.fields() else { continue };
                let text = image.json();
                let values = values.iter().map(|span| {
                    let value = span.of(text).unwrap();
                    assert_eq!(json::value_in(value.as_bytes()), Some((value.len(), span.escapes)));
                    value
                });
                let fields: Vec<(String, &str)> = names.0.iter().map(|name| name.to_string()).zip(values).collect();
                let mut expected = Vec::new();
                json::each_field::<()>(text, |name, value| {
                    expected.push((name.into_owned(), value));
                    Ok(())
                })
                .unwrap();
                assert_eq!(fields, expected);
            }
        }
        learned > 0 && decoder.skeletons.hits > hits
    }

    #[test]
    fn a_text_begins_with_its_beginnings_and_nothing_else() {
        let text: String = ('!'..'g').collect();
        for length in 0..text.len() {
            let beginning = Literal::new(&text[..length]);
            for whole in [&text[..], &text[..length]] {
                assert_eq!(beginning.strip(whole.as_bytes()), Some(&whole.as_bytes()[length..]), "{length}");
            }
            assert_eq!(Literal::new(&text[..length + 1]).strip(&text.as_bytes()[..length]), None, "{length}");
            for at in 0..length {
                let other = format!("{}~{}", &text[..at], &text[at + 1..]);
                for other in [&other[..], &other[..length]] {
                    assert_eq!(beginning.strip(other.as_bytes()), None, "{length} {at}");
                }
            }
        }
    }

    #[test]
    fn events_that_are_written_alike_are_read_by_their_skeleton() {
        let first = event("null", r#"{"id":1,"note":"a","tags":[1]}"#, "c", 100);
        let other = event("null", r#"{"id":-2,"note":null,"tags":{"a":"}\""}}"#, "u", 7000);
        assert!(check(&first, &first));
        assert!(check(&first, &other));
        assert!(check(&event(r#"{"id":1}"#, "null", "d", 5), &event(r#"{"id":2}"#, "null", "d", 6)));
        assert!(check(&event(r#"{"id":1}"#, r#"{}"#, "u", 5), &event(r#"{"id":2}"#, r#"{}"#, "u", 6)));
    }

    #[test]
    fn events_that_are_not_are_read_without() {
        let after = r#"{"id":1,"note":"a"}"#;
        let first = event("null", after, "c", 100);
        let others = [
            event("null", r#"{"id":1,"nota":"a"}"#, "c", 100),
            event("null", r#"{"id":1,"note":"a","more":1}"#, "c", 100),
            event("null", r#"{"id":1,"note":"a" }"#, "c", 100),
            event("null", r#"{"id":1,"note":"a}"#, "c", 100),
            event(after, after, "u", 100),
            event("null", "null", "c", 100),
            event("null", after, "x", 100),
            // The columns no longer hold what they held.
            first.replace("\"ts_ms\":100,", "\"ts_ms\":101,"),
            first.replace("\"ts_ns\":100000000", "\"ts_ns\":100000001"),
            first.replace("\"lsn\":100", "\"lsn\":99"),
            first.replace("\"txId\":100", "\"txId\":null"),
            first.replace("\"xmin\":null", "\"xmin\":7"),
            first.replace("\"snapshot\":\"false\"", "\"snapshot\":\"last\""),
            first.replace("\"transaction\":null", "\"transaction\":{\"id\":\"5\"}"),
            format!("{first} {{}}"),
            // A value that nobody needs, and a name in it that is no text.
            first.replace("\"ts_ms\":5,", r#""ts_ms":{"\ud800":1},"#),
        ];
        for other in others {
            assert!(!check(&first, &other), "{other}");
        }
    }

    #[test]
    fn a_delete_and_a_create_may_share_one() {
        // The same text around the values, and an operation that needs a row after it.
        assert!(!check(&event(r#"{"id":1}"#, "null", "d", 5), &event(r#"{"id":1}"#, "null", "u", 5)));
    }

    #[test]
    fn events_that_are_never_alike_are_not_learned_from_for_long() {
        let mut decoder = Decoder::new(Format::DebeziumJson);
        for number in 0..5000 {
            decoder.decode(record(&event("null", &format!(r#"{{"c{number}":1}}"#), "c", number)));
        }
        assert_eq!(decoder.skeletons.pause, LONGEST_PAUSE);
        assert!(decoder.skeletons.known.len() <= MOST_SKELETONS);
    }

    proptest! {
        /// A byte changed, cut out or put in makes no difference to what comes out.
        #[test]
        fn reading_by_a_skeleton_changes_nothing(at in any::<prop::sample::Index>(), byte in any::<u8>(), how in 0..3) {
            let first = event("null", r#"{"id":1,"note":"a\u00e4","b":true}"#, "u", 100);
            let mut bytes = event("null", r#"{"id":20,"note":"b\\","b":null}"#, "u", 101).into_bytes();
            let at = at.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, byte),
            }
            if let Ok(second) = String::from_utf8(bytes) {
                check(&first, &second);
            }
        }
    }
}
