//! JSON objects read one level deep, as slices of their text.
//!
//! Change events are taken apart without a tree of values in between: an object is a walk over its fields, and a field's
//! value stays the text it was, until somebody knows its type.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

/// Why a walk over an object ended early.
#[derive(Debug)]
pub(crate) enum Stopped<E> {
    /// The text is not one JSON object.
    Syntax(serde_json::Error),
    /// The visitor did not want to go on.
    Field(E),
}

/// Calls `visit` with the name and the JSON text of each field of the object that `text` is, in order.
pub(crate) fn each_field<'a, E>(
    text: &'a str,
    mut visit: impl FnMut(Cow<'a, str>, &'a str) -> Result<(), E>,
) -> Result<(), Stopped<E>> {
    let mut refused = None;
    let mut reader = serde_json::Deserializer::from_str(text);
    let walked = reader.deserialize_map(Walk { visit: &mut visit, refused: &mut refused }).and_then(|()| reader.end());
    match (walked, refused) {
        (_, Some(error)) => Err(Stopped::Field(error)),
        (Err(error), None) => Err(Stopped::Syntax(error)),
        (Ok(()), None) => Ok(()),
    }
}

/// The text a JSON string holds; `None` when `json` is not a string, or not one of Unicode characters.
pub(crate) fn string(json: &str) -> Option<Cow<'_, str>> {
    let inside = json.strip_prefix('"')?.strip_suffix('"')?;
    if inside.contains('\\') {
        return serde_json::from_str::<String>(json).ok().map(Cow::Owned);
    }
    Some(Cow::Borrowed(inside))
}

/// The same JSON without the white space around its tokens.
pub(crate) fn compact(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    let (mut in_string, mut escaped, mut copied) = (false, false, 0);
    for (index, byte) in json.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b' ' | b'\t' | b'\n' | b'\r' if !in_string => {
                text.push_str(&json[copied..index]);
                copied = index + 1;
            }
            _ => {}
        }
    }
    text.push_str(&json[copied..]);
    text
}

/// Appends `name: value` to an object that is being written, with the comma before it where one is due.
pub(crate) fn push_field(object: &mut String, name: &str, value: &str) {
    if !object.ends_with('{') {
        object.push(',');
    }
    push_string(object, name);
    object.push(':');
    object.push_str(value);
}

/// Appends `text` as a JSON string.
pub(crate) fn push_string(json: &mut String, text: &str) {
    json.push('"');
    for character in text.chars() {
        match character {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            control if (control as u32) < 0x20 => json.push_str(&format!("\\u{:04x}", control as u32)),
            other => json.push(other),
        }
    }
    json.push('"');
}

struct Walk<'w, F, E> {
    visit: &'w mut F,
    refused: &'w mut Option<E>,
}

impl<'de, F, E> Visitor<'de> for Walk<'_, F, E>
where
    F: FnMut(Cow<'de, str>, &'de str) -> Result<(), E>,
{
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Name(name)) = map.next_key()? {
            let value: &'de RawValue = map.next_value()?;
            if let Err(error) = (self.visit)(name, value.get()) {
                *self.refused = Some(error);
                return Err(A::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Result<Vec<(String, String)>, String> {
        let mut found = Vec::new();
        each_field(text, |name, value| {
            found.push((name.into_owned(), value.to_string()));
            if found.len() > 9 { Err("too many") } else { Ok(()) }
        })
        .map_err(|stopped| match stopped {
            Stopped::Syntax(error) => error.to_string(),
            Stopped::Field(problem) => problem.to_string(),
        })?;
        Ok(found)
    }

    #[test]
    fn a_walk_gives_names_unescaped_and_values_as_they_were_written() {
        let found = fields(r#" { "a" : 1.50 , "b\u00e4" :[1, {"c":"}"}], "d":null} "#).unwrap();
        let expected = [("a", "1.50"), ("bä", r#"[1, {"c":"}"}]"#), ("d", "null")];
        assert_eq!(found, expected.map(|(name, value)| (name.to_string(), value.to_string())));
        assert_eq!(fields("{}").unwrap(), []);
    }

    #[test]
    fn a_walk_takes_one_whole_object_only() {
        for text in ["", "{", "[]", "1", "\"a\"", "{} {}", r#"{"a":1,}"#, r#"{"a" 1}"#, r#"{"a":01}"#, r#"{a:1}"#] {
            assert!(fields(text).is_err(), "{text}");
        }
        let many: Vec<String> = (0..10).map(|index| format!("\"f{index}\":0")).collect();
        assert_eq!(fields(&format!("{{{}}}", many.join(","))), Err("too many".to_string()));
    }

    #[test]
    fn a_deeply_nested_value_is_only_a_slice() {
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(50_000), "]".repeat(50_000));
        assert_eq!(fields(&deep).unwrap()[0].1.len(), 100_000);
    }

    #[test]
    fn strings_and_compact_text() {
        assert_eq!(string(r#""a\n\u00e4\ud83d\ude00/""#).unwrap(), "a\nä😀/");
        assert_eq!(string(r#""\ud800""#), None);
        assert_eq!(string("12"), None);
        assert_eq!(compact("{ \"a b\" : [ 1 ,\n\t\"c \\\" d\" ] }"), r#"{"a b":[1,"c \" d"]}"#);
        let mut object = "{".to_string();
        push_field(&mut object, "a\"\\\u{1}ä", "1");
        push_field(&mut object, "b", "[]");
        assert_eq!(object, r#"{"a\"\\\u0001ä":1,"b":[]"#);
    }
}
