//! Compares what was written with the schema and finds everything that is wrong with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::interpolate::{Environment, fill};
use super::location;
use super::problem::{Place, Problem, nearest, quoted};
use super::quantity::{Percent, QuantityError, Size, Span};
use super::schema::{self, is_required, is_secret, kind, leaves, present, properties, variants, words};
use super::secret::is_secret_name;
use super::table::PartitionField;
use super::yaml::{Data, Key, Node};
use crate::ids::check_part;
use crate::placeholder::Placeholder;
use crate::row::{ColumnType, Encoding};

/// Where references lead and where problems go.
pub(super) struct Checker<'a> {
    pub(super) environment: &'a Environment,
    pub(super) folder: &'a Path,
    pub(super) problems: Vec<Problem>,
    /// Variables that files refer to.
    pub(super) variables: BTreeSet<String>,
}

/// Where each setting was written, by its path.
#[derive(Debug, Clone, Default)]
pub(super) struct Places(BTreeMap<String, Place>);

impl Places {
    /// The place of a setting or, when it was not written, of the closest one around it.
    pub(super) fn nearest(&self, path: &str) -> Option<&Place> {
        let mut path = path;
        loop {
            if let Some(place) = self.0.get(path) {
                return Some(place);
            }
            if path.is_empty() {
                return None;
            }
            path = path.rfind(['.', '[']).map_or("", |end| &path[..end]);
        }
    }

    pub(super) fn exact(&self, path: &str) -> Option<&Place> {
        self.0.get(path)
    }
}

/// A file's settings and where each stands.
#[derive(Debug)]
pub(super) struct Written<T> {
    pub(super) settings: T,
    pub(super) places: Places,
}

impl<T> Written<T> {
    pub(super) fn problem(&self, path: &str, message: impl Into<String>) -> Problem {
        let place = self.places.nearest(path).cloned();
        Problem {
            place: place.unwrap_or_else(|| Place::File("".into())),
            path: path.to_string(),
            message: message.into(),
        }
    }
}

impl Checker<'_> {
    /// Reads a file's tree as its settings. `None` when problems were found in it.
    pub(super) fn read<T: DeserializeOwned>(&mut self, root: &Node, schema: &Value) -> Option<Written<T>> {
        let before = self.problems.len();
        let mut walk = Walk { checker: self, root: schema, places: Places::default() };
        let value = walk.value(root, schema, "", false);
        let places = walk.places;
        if self.problems.len() > before {
            return None;
        }
        match serde_json::from_value(value.unwrap_or_else(|| Value::Object(Map::new()))) {
            Ok(settings) => Some(Written { settings, places }),
            // The text of the failure may hold a value, and that may be a secret.
            Err(_) => {
                let message = "the settings do not fit their own schema; this is a bug, please report it".to_string();
                self.problems.push(Problem { place: root.place.clone(), path: String::new(), message });
                None
            }
        }
    }
}

struct Walk<'a, 'b> {
    checker: &'a mut Checker<'b>,
    root: &'a Value,
    places: Places,
}

impl Walk<'_, '_> {
    fn problem(&mut self, place: &Place, path: &str, message: impl Into<String>) {
        self.checker.problems.push(Problem { place: place.clone(), path: path.to_string(), message: message.into() });
    }

    fn value(&mut self, node: &Node, schema: &Value, path: &str, secret: bool) -> Option<Value> {
        let default = schema.get("default");
        let schema = present(schema);
        if node.data == Data::Null {
            return None;
        }
        self.places.0.insert(path.to_string(), node.place.clone());
        if let Data::Foreign(what) = &node.data {
            self.problem(&node.place, path, format!("{what} has no meaning here"));
            return None;
        }
        if let Some(variants) = variants(schema) {
            return self.variant(node, &variants, default, path);
        }
        match kind(schema) {
            "object" => self.map(node, schema, path, None),
            "array" => self.list(node, schema, path),
            _ => self.scalar(node, schema, path, secret || is_secret(schema)),
        }
    }

    fn map(&mut self, node: &Node, schema: &Value, path: &str, variant: Option<&str>) -> Option<Value> {
        let Data::Map(entries) = &node.data else {
            let keys = properties(schema).map(|keys| quoted(keys.keys().map(String::as_str)));
            let of = keys.map_or("of names and values".to_string(), |keys| format!("with the keys {keys}"));
            self.problem(&node.place, path, format!("must be a map {of}, not {}", called(node)));
            return None;
        };
        let mut map = Map::new();
        for (key, value) in entries {
            if !self.is_usable(key, path, entries) {
                continue;
            }
            let inner_path = join(path, &key.text);
            let (inner, secret) = match properties(schema) {
                Some(known) => match known.get(&key.text) {
                    Some(inner) => (inner, false),
                    None => {
                        let message = self.unknown(&key.text, known, variant, path);
                        self.problem(&key.place, &inner_path, message);
                        continue;
                    }
                },
                None => match schema.get("additionalProperties") {
                    Some(inner) => (inner, schema.get("x-secret-keys").is_some() && is_secret_name(&key.text)),
                    None => continue,
                },
            };
            if let Some(value) = self.value(value, inner, &inner_path, secret) {
                map.insert(key.text.clone(), value);
            }
        }
        for (key, property) in properties(schema).into_iter().flatten() {
            let written = entries.iter().any(|(k, v)| k.text == *key && v.data != Data::Null);
            if is_required(schema, key) && !written {
                let example = present(property).get("examples").and_then(|examples| examples.get(0));
                let example = example.map_or(String::new(), |e| format!(", for example `{key}: {}`", plain(e)));
                let message = format!("`{key}` is missing{example}");
                self.problem(&node.place, path, message);
            }
        }
        Some(Value::Object(map))
    }

    fn is_usable(&mut self, key: &Key, path: &str, entries: &[(Key, Node)]) -> bool {
        if key.repeated {
            let first = entries.iter().find(|(k, _)| k.text == key.text).map(|(k, _)| k.place.clone());
            let first = match first {
                Some(Place::At { line, .. }) => format!("; it stands in line {line} already"),
                _ => String::new(),
            };
            self.problem(&key.place, &join(path, &key.text), format!("is written twice{first}"));
        } else if key.text == "<<" {
            self.problem(&key.place, path, "YAML merge keys (`<<`) are not read; write the keys out");
        } else {
            return true;
        }
        false
    }

    fn unknown(&self, key: &str, known: &Map<String, Value>, variant: Option<&str>, path: &str) -> String {
        let allowed = quoted(known.keys().map(String::as_str));
        let here = variant.map_or(String::new(), |variant| format!(" for `type: {variant}`"));
        if let Some(near) = nearest(key, known.keys().map(String::as_str)) {
            return format!("unknown key{here}; did you mean `{near}`? allowed: {allowed}");
        }
        let elsewhere = leaves(self.root);
        let here_too = elsewhere.iter().find(|leaf| leaf.dotted() == join(path, key));
        let same = here_too.or_else(|| elsewhere.iter().find(|leaf| leaf.path.last() == Some(&key)));
        match same {
            Some(leaf) if here_too.is_some() => {
                let other = leaf.variant.unwrap_or_default();
                format!("unknown key{here}; `type: {other}` has it; allowed: {allowed}")
            }
            Some(leaf) => format!("unknown key{here}; did you mean `{}`? allowed: {allowed}", leaf.dotted()),
            None => format!("unknown key{here}; allowed: {allowed}"),
        }
    }

    /// A map that says by its `type` what else it holds.
    fn variant(
        &mut self,
        node: &Node,
        variants: &[(&str, &Value)],
        default: Option<&Value>,
        path: &str,
    ) -> Option<Value> {
        let names = quoted(variants.iter().map(|(name, _)| *name));
        let Data::Map(entries) = &node.data else {
            let message = format!("must be a map with a `type`, one of {names}, not {}", called(node));
            self.problem(&node.place, path, message);
            return None;
        };
        let written = entries.iter().find(|(key, value)| key.text == "type" && value.data != Data::Null);
        let name = match written {
            Some((key, value)) => {
                let Data::Text(text) = &value.data else {
                    self.problem(&key.place, &join(path, "type"), format!("must be one of {names}"));
                    return None;
                };
                self.fill(text, &value.place, &join(path, "type"), false)?.0
            }
            // A variable can set one key of a map that the file does not have; the rest is the default then.
            None if !matches!(node.place, Place::At { .. } | Place::File(_)) => {
                default.and_then(|default| default.get("type")).and_then(Value::as_str).unwrap_or_default().to_string()
            }
            None => {
                self.problem(&node.place, path, format!("`type` is missing; it is one of {names}"));
                return None;
            }
        };
        let Some((name, schema)) = variants.iter().find(|(known, _)| *known == name) else {
            let place = written.map_or(&node.place, |(_, value)| &value.place).clone();
            let message = not_a_word(&name, &variants.iter().map(|(name, _)| *name).collect::<Vec<_>>());
            self.problem(&place, &join(path, "type"), message);
            return None;
        };
        let mut value = match written {
            Some(_) => self.map(node, schema, path, Some(name))?,
            None => {
                let mut entries = entries.clone();
                let key = Key { text: "type".to_string(), place: node.place.clone(), repeated: false };
                entries.push((key, Node { place: node.place.clone(), data: Data::Text(name.to_string()) }));
                self.map(&Node { place: node.place.clone(), data: Data::Map(entries) }, schema, path, Some(name))?
            }
        };
        if let Value::Object(map) = &mut value {
            map.insert("type".to_string(), Value::String(name.to_string()));
        }
        Some(value)
    }

    fn list(&mut self, node: &Node, schema: &Value, path: &str) -> Option<Value> {
        let item = schema.get("items")?;
        let split: Vec<Node>;
        let nodes = match &node.data {
            Data::List(nodes) => nodes,
            // A variable or a flag has no other way to write a list.
            Data::Text(text) if matches!(node.place, Place::Variable(_) | Place::Flag(_)) => {
                let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
                split = texts.map(|t| Node { place: node.place.clone(), data: Data::Text(t.to_string()) }).collect();
                &split
            }
            _ => {
                let example = match &node.data {
                    Data::Text(text) => format!("; write `[{}]`", inline(text)),
                    _ => String::new(),
                };
                self.problem(&node.place, path, format!("must be a list, not {}{example}", called(node)));
                return None;
            }
        };
        let mut list = Vec::new();
        for (index, node) in nodes.iter().enumerate() {
            let path = format!("{path}[{index}]");
            if node.data == Data::Null {
                self.problem(&node.place, &path, "this entry is empty");
            }
            list.extend(self.value(node, item, &path, false));
        }
        Some(Value::Array(list))
    }

    fn scalar(&mut self, node: &Node, schema: &Value, path: &str, secret: bool) -> Option<Value> {
        let Data::Text(written) = &node.data else {
            let example = schema.get("examples").and_then(|examples| examples.get(0));
            let example = example.map_or(String::new(), |example| format!(", such as `{}`", plain(example)));
            self.problem(&node.place, path, format!("must be a single value{example}, not {}", called(node)));
            return None;
        };
        if secret && !self.may_hold_secret(&node.place, written, path) {
            return None;
        }
        let (text, shown) = self.fill(written, &node.place, path, secret)?;
        let place = &node.place;
        match kind(schema) {
            "boolean" => match text.as_str() {
                "true" => return Some(Value::Bool(true)),
                "false" => return Some(Value::Bool(false)),
                _ => self.problem(place, path, format!("`{shown}` is not `true` or `false`")),
            },
            "integer" => match text.replace('_', "").parse::<u64>() {
                Ok(number) => {
                    let least = schema.get("minimum").and_then(Value::as_u64).unwrap_or(0);
                    if number >= least {
                        return Some(Value::from(number));
                    }
                    self.problem(place, path, format!("must be at least {least}, not {number}"));
                }
                Err(_) => self.problem(place, path, format!("`{shown}` is not a whole number")),
            },
            _ => match check_text(&text, &shown, schema) {
                Ok(()) => return Some(Value::String(text)),
                Err(message) => self.problem(place, path, message),
            },
        }
        None
    }

    /// A file that goes into version control and a command line that every process can read hold no secrets.
    fn may_hold_secret(&mut self, place: &Place, written: &str, path: &str) -> bool {
        let message = match place {
            Place::Variable(_) => return true,
            Place::Flag(_) => "a secret on the command line is seen by everybody on the machine; set it by environment",
            _ if written.replace("$${", "").contains("${") => return true,
            _ => "a secret does not belong in a file; write `${VAR}` or `${file:/path}` in its place",
        };
        self.problem(place, path, message);
        false
    }

    /// The value with its references replaced, and how it may be shown in a message.
    fn fill(&mut self, written: &str, place: &Place, path: &str, secret: bool) -> Option<(String, String)> {
        // What comes by environment or flag is meant as it stands.
        if matches!(place, Place::Variable(_) | Place::Flag(_)) {
            let shown = if secret { "***".to_string() } else { written.to_string() };
            return Some((written.to_string(), shown));
        }
        match fill(written, self.checker.environment, self.checker.folder) {
            Ok(filled) => {
                self.checker.variables.extend(filled.variables);
                let shown = if secret || filled.from_file { written } else { &filled.text };
                Some((filled.text.clone(), shown.to_string()))
            }
            Err(problems) => {
                problems.into_iter().for_each(|message| self.problem(place, path, message));
                None
            }
        }
    }
}

/// Checks a text against the schema's choice of words and its format.
fn check_text(text: &str, shown: &str, schema: &Value) -> Result<(), String> {
    if let Some(words) = words(schema) {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        // `digits(20)` is one of many that are no single word.
        let is_encoding = schema::text(schema, "format") == Some("encoding") && Encoding::from_str(text).is_ok();
        return if is_encoding || words.contains(&text) { Ok(()) } else { Err(not_a_word(shown, &words)) };
    }
    let least = schema::text(schema, "x-minimum");
    let format = schema::text(schema, "format").unwrap_or_default();
    let parsed = match format {
        "size" => at_least::<Size>(text, least),
        "duration" => at_least::<Span>(text, least),
        "percent" => text.parse::<Percent>().map(drop).map_err(|error| error.to_string()),
        "name" => name(text),
        "column-type" => ColumnType::from_str(text).map(drop).map_err(|error| error.to_string()),
        "partition" => PartitionField::from_str(text).map(drop).map_err(|error| error.to_string()),
        "http-url" => location::check_http(text),
        "location" => location::check_warehouse(text),
        "file" => location::check_file(text),
        "brokers" => location::check_brokers(text),
        "listen" => location::check_listen(text),
        "placeholder" => Placeholder::parse(text).map(drop).map_err(|error| error.to_string()),
        "topic" => location::check_topic(text, false),
        "topic-pattern" => location::check_topic(text, true),
        _ => Ok(()),
    };
    // The parsers quote what they were given, which must not happen to the content of a file.
    parsed.map_err(|message| if shown == text { message } else { format!("what `{shown}` holds is not a {format}") })
}

fn at_least<Q: FromStr<Err = QuantityError> + PartialOrd + Display>(
    text: &str,
    least: Option<&str>,
) -> Result<(), String> {
    let quantity: Q = text.parse().map_err(|error: QuantityError| error.to_string())?;
    match least.and_then(|least| least.parse::<Q>().ok()) {
        Some(least) if quantity < least => Err(format!("must be at least `{least}`, not `{quantity}`")),
        _ => Ok(()),
    }
}

fn name(text: &str) -> Result<(), String> {
    check_part(text).map_err(|error| {
        let legal = legal_name(text);
        if check_part(&legal).is_ok() { format!("{error}; for example `{legal}`") } else { error.to_string() }
    })
}

/// The name somebody may have meant: `My-Shop` as `my_shop`.
pub(crate) fn legal_name(text: &str) -> String {
    let mut legal = String::new();
    for c in text.trim().chars() {
        match c.to_ascii_lowercase() {
            c if c.is_ascii_lowercase() || c.is_ascii_digit() => legal.push(c),
            _ if legal.ends_with('_') => {}
            _ => legal.push('_'),
        }
    }
    let legal = legal.trim_end_matches('_');
    if legal.starts_with(|c: char| c.is_ascii_digit()) { format!("_{legal}") } else { legal.to_string() }
}

fn not_a_word(shown: &str, words: &[&str]) -> String {
    let allowed = quoted(words.iter().copied());
    match nearest(shown, words.iter().copied()) {
        Some(near) => format!("`{shown}` is not allowed; did you mean `{near}`? allowed: {allowed}"),
        None => format!("`{shown}` is not allowed; allowed: {allowed}"),
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_string() } else { format!("{path}.{key}") }
}

fn called(node: &Node) -> &'static str {
    match node.data {
        Data::Null => "empty",
        Data::Text(_) => "a single value",
        Data::List(_) => "a list",
        Data::Map(_) => "a map",
        Data::Foreign(what) => what,
    }
}

/// A value as it would be written in a flow list.
fn inline(text: &str) -> String {
    let safe = text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    if safe { text.to_string() } else { format!("{text:?}") }
}

/// A value of the schema's own as YAML would have it on one line.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(quoted_item).collect::<Vec<_>>().join(", ")),
        Value::Object(map) if map.is_empty() => "{}".to_string(),
        Value::Object(map) => {
            let entries: Vec<String> =
                map.iter().map(|(key, value)| format!("{key}: {}", quoted_item(value))).collect();
            format!("{{ {} }}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

fn quoted_item(value: &Value) -> String {
    match value {
        Value::String(text) => inline(text),
        other => plain(other),
    }
}
