//! Keys and payloads as JSON, out of their schema blocks.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use bytestring::ByteString;
use std::borrow::Cow;
use std::collections::HashSet;

use crate::json::{self, Field, Stopped};

/// Why a record is no change event. Says nothing of the values in it, since it is shown and logged.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Reason {
    #[error("the key is not JSON")]
    KeyNotJson,
    #[error("the payload is empty")]
    Empty,
    #[error("the payload is not UTF-8 text")]
    NotText,
    #[error("{what} is not JSON: {problem}")]
    NotJson { what: &'static str, problem: String },
    #[error("{what} is not a JSON object")]
    NotAnObject { what: &'static str },
    #[error("field `{name}` is given twice")]
    GivenTwice { name: String },
    #[error("the payload has no `op`, so it is not a Debezium change event")]
    NoOp,
    #[error("`op` is {found}, and not one of c, u, d, r, t, m")]
    UnknownOp { found: String },
    #[error("an event with op `{op}` has no `after`")]
    NoAfter { op: &'static str },
}

/// The fields of one JSON object, their values as JSON text.
#[derive(Debug, Default)]
pub(super) struct Fields<'a> {
    fields: Vec<Field<'a>>,
    /// The fields of those values that are objects themselves, by the value's index.
    inner: Vec<(usize, Vec<Field<'a>>)>,
}

/// A payload that holds one object.
#[derive(Debug)]
pub(super) struct Object<'a> {
    pub(super) text: &'a str,
    pub(super) fields: Fields<'a>,
    /// The schema block it came in.
    pub(super) schema: Option<&'a str>,
}

/// The text of a payload, without white space around it. Images are parts of it, and known to be text as well.
pub(super) fn text(payload: &Bytes) -> Result<ByteString, Reason> {
    if payload.is_empty() {
        return Err(Reason::Empty);
    }
    let text = ByteString::try_from(payload.clone()).map_err(|_| Reason::NotText)?;
    let trimmed = text.trim_ascii();
    Ok(if trimmed.len() == text.len() { text } else { text.slice_ref(trimmed) })
}

/// The object a payload's text holds, out of its schema block; `None` when it holds JSON's `null`.
///
/// `known` finds a schema block that was seen before at the beginning of the text, and says what it is wrapped around.
/// Blocks are longer than what they describe, and one of them comes with every record.
pub(super) fn open<'a>(
    text: &'a str,
    known: impl FnOnce(&'a str) -> Option<(&'a str, &'a str)>,
) -> Result<Option<Object<'a>>, Reason> {
    if text == "null" {
        return Ok(None);
    }
    // What follows a known block is only taken for the payload if it is one object and nothing else.
    if let Some((schema, inner)) = known(text)
        && let Some(fields) = Fields::read(inner)
    {
        return Ok(Some(Object { text: inner, fields, schema: Some(schema) }));
    }
    let fields = Fields::parse(text, "the payload")?;
    match fields.schema_and_payload() {
        None => Ok(Some(Object { text, fields, schema: None })),
        Some((_, "null")) => Ok(None),
        Some((schema, inner)) => {
            let fields = Fields::parse(inner, "`payload`")?;
            Ok(Some(Object { text: inner, fields, schema: (schema != "null").then_some(schema) }))
        }
    }
}

/// Nothing shorter is an object of a schema and a payload.
const SHORTEST_WRAPPED: usize = r#"{"schema":{},"payload":1}"#.len();

/// A look for the word spares most keys a second reading, and most are too short for it.
fn may_be_wrapped(key: &str) -> bool {
    key.len() > SHORTEST_WRAPPED && key.contains("\"payload\"")
}

/// The key as compact JSON, out of its schema block if it has one; `None` when it is JSON's `null`. A key that is not
/// JSON comes back as JSON that holds it, for the rejected row.
pub(super) fn key_text(bytes: &[u8]) -> Result<Option<String>, String> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(format!("{{\"base64\":\"{}\"}}", STANDARD.encode(bytes)));
    };
    if json::is_plain_object(text) && !may_be_wrapped(text) {
        return Ok(Some(text.to_string()));
    }
    any_key_text(text)
}

fn any_key_text(text: &str) -> Result<Option<String>, String> {
    let text = text.trim_ascii();
    if !json::is_value(text) {
        let mut kept = String::new();
        json::push_string(&mut kept, text);
        return Err(kept);
    }
    let mut key = text;
    if text.starts_with('{') && may_be_wrapped(text) {
        key = Fields::read(text).and_then(|fields| fields.schema_and_payload()).map_or(text, |(_, payload)| payload);
    }
    Ok((key != "null").then(|| json::compact(key)))
}

impl<'a> Fields<'a> {
    pub(super) fn parse(text: &'a str, what: &'static str) -> Result<Self, Reason> {
        if !text.starts_with('{') {
            // Random bytes are more often no JSON at all than JSON of another kind.
            return Err(match serde_json::from_str::<&serde_json::value::RawValue>(text) {
                Ok(_) => Reason::NotAnObject { what },
                Err(error) => Reason::NotJson { what, problem: error.to_string() },
            });
        }
        let (mut fields, mut inner) = (Vec::with_capacity(16), Vec::new());
        json::each_field_of_two_levels(text, |name, value, of_value| {
            inner.extend(of_value.map(|of_value| (fields.len(), of_value)));
            fields.push((name, value));
            Ok(())
        })
        .map_err(|stopped: Stopped<Reason>| match stopped {
            Stopped::Syntax(error) => Reason::NotJson { what, problem: error.to_string() },
            Stopped::Field(reason) => reason,
        })?;
        Fields { fields, inner }.checked()
    }

    /// The fields, if none of them is given twice.
    fn checked(self) -> Result<Self, Reason> {
        match repeated(&self.fields) {
            Some(name) => Err(Reason::GivenTwice { name: name.chars().take(64).collect() }),
            None => Ok(self),
        }
    }

    /// The fields of a field that is an object, which are read already; `None` where it is something else.
    pub(super) fn take_object(&mut self, name: &str) -> Option<Result<Fields<'a>, Reason>> {
        let index = self.fields.iter().position(|(field, _)| field == name)?;
        let (_, fields) = self.inner.iter_mut().find(|(of, _)| *of == index)?;
        Some(Fields { fields: std::mem::take(fields), inner: Vec::new() }.checked())
    }

    /// Fields that are known to have different names.
    pub(super) fn of(fields: Vec<Field<'a>>) -> Self {
        Fields { fields, inner: Vec::new() }
    }

    pub(super) fn read(text: &'a str) -> Option<Self> {
        Fields::parse(text, "").ok()
    }

    /// The JSON text of a field.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| *value)
    }

    /// The text of a field that is a JSON string.
    pub(super) fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        json::string(self.get(name)?)
    }

    /// A string's text or a number's digits.
    pub(super) fn scalar(&self, name: &str) -> Option<Cow<'a, str>> {
        match self.get(name)? {
            text if text.starts_with('"') => json::string(text),
            number if number.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => Some(Cow::Borrowed(number)),
            _ => None,
        }
    }

    /// Names and values in the order they are written.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.fields.iter().map(|(name, value)| (&**name, *value))
    }

    /// Adds a field, unless there is one of that name.
    pub(super) fn add(&mut self, name: &str, value: &'a str) -> bool {
        let is_new = self.get(name).is_none();
        if is_new {
            self.fields.push((Cow::Owned(name.to_string()), value));
        }
        is_new
    }

    /// A schema block and what it is wrapped around. A row with two columns of these names is not taken for one, because
    /// a schema is `null` or an object with a type.
    fn schema_and_payload(&self) -> Option<(&'a str, &'a str)> {
        if self.fields.len() != 2 {
            return None;
        }
        let (schema, payload) = (self.get("schema")?, self.get("payload")?);
        let is_schema = schema == "null" || Fields::read(schema).is_some_and(|schema| schema.get("type").is_some());
        is_schema.then_some((schema, payload))
    }
}

fn repeated<'a>(fields: &'a [Field<'_>]) -> Option<&'a str> {
    // Envelopes are small; a set pays only for input that is made to be large.
    if fields.len() > 64 {
        let mut seen = HashSet::new();
        return fields.iter().map(|(name, _)| &**name).find(|name| !seen.insert(*name));
    }
    // Names that differ in length or at an end are different, which is all there is to say of most.
    let mut seen = 0u64;
    for (index, (name, _)) in fields.iter().enumerate() {
        let bytes = name.as_bytes();
        let (first, last) = (bytes.first().copied().unwrap_or(0), bytes.last().copied().unwrap_or(0));
        let bit = 1 << ((bytes.len() * 7 + usize::from(first) * 3 + usize::from(last) * 5) % 64);
        if seen & bit != 0 && fields[..index].iter().any(|(earlier, _)| earlier == name) {
            return Some(name);
        }
        seen |= bit;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_key_is_compact_json_out_of_its_schema_block() {
        let check = |key: &str, expected: Result<Option<&str>, &str>| {
            let expected = expected.map(|key| key.map(str::to_string)).map_err(str::to_string);
            assert_eq!(key_text(key.as_bytes()), expected, "{key}");
        };
        check(r#"{"id":7}"#, Ok(Some(r#"{"id":7}"#)));
        check(r#" {"id" : 7 , "of":"a\"b"} "#, Ok(Some(r#"{"id":7,"of":"a\"b"}"#)));
        check(r#"{"schema":null,"payload":{"id":7}}"#, Ok(Some(r#"{"id":7}"#)));
        check(r#"{"schema":null,"payload":1234}"#, Ok(Some("1234")));
        check(r#"{"schema":null,"payload":null}"#, Ok(None));
        check(r#"{"payload":1,"id":1,"schema":2,"x":3}"#, Ok(Some(r#"{"payload":1,"id":1,"schema":2,"x":3}"#)));
        check("null", Ok(None));
        check("7", Ok(Some("7")));
        check(r#"{"id":07}"#, Err(r#""{\"id\":07}""#));
        check(r#"{"id":7}}"#, Err(r#""{\"id\":7}}""#));
        assert_eq!(key_text(&[0xff, 1]), Err(r#"{"base64":"/wE="}"#.to_string()));
    }

    proptest! {
        #[test]
        fn a_key_that_is_read_at_once_is_what_reading_it_all_gives(key in any_key()) {
            prop_assert_eq!(key_text(key.as_bytes()), any_key_text(&key), "{}", key);
        }
    }

    /// Keys of all kinds, and what is nearly one.
    fn any_key() -> impl Strategy<Value = String> {
        let name = prop::sample::select(vec!["id", "schema", "payload", "i\\u0064", "\\ud83d", "é", ""]);
        let value = prop_oneof![
            any::<i64>().prop_map(|number| number.to_string()),
            any::<String>().prop_map(|text| serde_json::Value::String(text).to_string()),
            prop::sample::select(vec![
                "null",
                "true",
                "1.50",
                "1.",
                "01",
                "-",
                "1e5",
                "{}",
                "[1, 2]",
                r#"{"id":1}"#,
                r#""\ud83d""#,
                r#""\/""#,
                "\"\t\"",
                " 1",
                "1 ",
            ])
            .prop_map(str::to_string),
        ];
        let end = prop::sample::select(vec!["}", "}", "}", "} ", "},", "", "}}"]);
        (prop::collection::vec((name, value), 0..4), end).prop_map(|(fields, end)| {
            let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
            format!("{{{}{end}", fields.join(","))
        })
    }
}
