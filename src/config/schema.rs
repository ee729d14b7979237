//! The JSON schemas of the files, made from the settings' types, and what the other files here ask of them.

use std::sync::LazyLock;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::settings::{AuditSettings, GoldSettings, Settings, SilverSettings, TableSettings};

/// One file format: what it is called and what may stand in it.
pub(super) struct Schemas {
    pub(super) project: Value,
    pub(super) table: Value,
    pub(super) silver: Value,
    pub(super) gold: Value,
    pub(super) audit: Value,
}

pub(super) static SCHEMAS: LazyLock<Schemas> = LazyLock::new(|| Schemas {
    project: of::<Settings>(),
    table: of::<TableSettings>(),
    silver: of::<SilverSettings>(),
    gold: of::<GoldSettings>(),
    audit: of::<AuditSettings>(),
});

fn of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

/// The schema without the possibility of `null`, which means the same as not writing the key.
pub(super) fn present(schema: &Value) -> &Value {
    match schema.get("anyOf").and_then(Value::as_array) {
        Some(choices) => choices.iter().find(|choice| kind(choice) != "null").unwrap_or(schema),
        None => schema,
    }
}

/// The JSON type a schema asks for; empty for a choice between several schemas.
pub(super) fn kind(schema: &Value) -> &str {
    match schema.get("type") {
        Some(Value::String(kind)) => kind,
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).find(|k| *k != "null").unwrap_or_default(),
        _ => "",
    }
}

pub(super) fn text<'a>(schema: &'a Value, keyword: &str) -> Option<&'a str> {
    schema.get(keyword).and_then(Value::as_str)
}

pub(super) fn is_secret(schema: &Value) -> bool {
    schema.get("x-secret").is_some()
}

/// The named properties of a map; `None` for a list, a scalar, a choice, or a map whose keys are free.
pub(super) fn properties(schema: &Value) -> Option<&Map<String, Value>> {
    schema.get("properties").and_then(Value::as_object)
}

/// The words a value may be, each with its meaning; `None` where it is no choice of words.
pub(super) fn words(schema: &Value) -> Option<Vec<(&str, Option<&str>)>> {
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        return Some(words.iter().filter_map(Value::as_str).map(|word| (word, None)).collect());
    }
    if let Some(word) = text(schema, "const") {
        return Some(vec![(word, None)]);
    }
    let choices = schema.get("oneOf").and_then(Value::as_array)?;
    let words: Vec<_> =
        choices.iter().filter_map(|choice| Some((text(choice, "const")?, text(choice, "description")))).collect();
    if words.is_empty() { None } else { Some(words) }
}

/// The kinds of a map that says by its `type` which kind it is; `None` for any other schema.
pub(super) fn variants(schema: &Value) -> Option<Vec<(&str, &Value)>> {
    let choices = schema.get("oneOf").and_then(Value::as_array)?;
    let variants: Vec<_> =
        choices.iter().filter_map(|choice| Some((text(properties(choice)?.get("type")?, "const")?, choice))).collect();
    if variants.is_empty() { None } else { Some(variants) }
}

pub(super) fn is_required(schema: &Value, key: &str) -> bool {
    let required = schema.get("required").and_then(Value::as_array);
    required.is_some_and(|keys| keys.iter().any(|k| k == key))
}

/// A setting that holds no further ones.
pub(super) struct Leaf<'a> {
    pub(super) path: Vec<&'a str>,
    pub(super) schema: &'a Value,
    /// The `type` of the map it belongs to, where that has several.
    pub(super) variant: Option<&'a str>,
    pub(super) required: bool,
    /// The default as the map around it has it.
    pub(super) default: Option<&'a Value>,
}

impl Leaf<'_> {
    pub(super) fn dotted(&self) -> String {
        self.path.join(".")
    }

    /// The environment variable that sets it.
    pub(super) fn variable(&self) -> String {
        format!("{VARIABLE_PREFIX}{}", self.path.join("__").to_ascii_uppercase())
    }
}

pub(super) const VARIABLE_PREFIX: &str = "ICESTREAM_";

/// Every leaf of a file, in the order of the file's types.
pub(super) fn leaves(schema: &Value) -> Vec<Leaf<'_>> {
    let mut found = Vec::new();
    collect(schema, &[], None, schema.get("default"), &mut found);
    found
}

fn collect<'a>(
    schema: &'a Value,
    path: &[&'a str],
    variant: Option<&'a str>,
    default: Option<&'a Value>,
    found: &mut Vec<Leaf<'a>>,
) {
    let schema = present(schema);
    for (key, property) in properties(schema).into_iter().flatten() {
        let path = [path, &[key.as_str()]].concat();
        let inner = present(property);
        let default = property.get("default").or_else(|| default?.get(key)).filter(|default| !default.is_null());
        if let Some(variants) = variants(inner) {
            for (name, schema) in variants {
                collect(schema, &path, Some(name), default, found);
            }
        } else if properties(inner).is_some() {
            collect(inner, &path, variant, default, found);
        } else if !(variant.is_some() && key == "type" && found.iter().any(|leaf: &Leaf<'_>| leaf.path == path)) {
            found.push(Leaf { path, schema: inner, variant, required: is_required(schema, key), default });
        }
    }
}

/// The schema that editors and checkers use. Values may be references there, so a number may be a text too.
pub(super) fn published() -> Value {
    let mut schema = SCHEMAS.project.clone();
    let mut tables = SCHEMAS.table.clone();
    let (mut silver, mut gold) = (SCHEMAS.silver.clone(), SCHEMAS.gold.clone());
    let mut audit = SCHEMAS.audit.clone();
    [&mut schema, &mut tables, &mut silver, &mut gold, &mut audit].into_iter().for_each(allow_references);
    let mut whole = Map::new();
    whole.insert("$schema".to_string(), json!("https://json-schema.org/draft/2020-12/schema"));
    whole.insert("title".to_string(), json!("icestream.yaml"));
    if let Value::Object(keywords) = schema {
        whole.extend(keywords.into_iter().filter(|(keyword, _)| keyword != "title"));
    }
    whole.insert("$defs".to_string(), json!({ "table": tables, "silver": silver, "gold": gold, "audit": audit }));
    Value::Object(whole)
}

fn allow_references(schema: &mut Value) {
    match schema {
        Value::Object(keywords) => {
            if keywords.get("type").is_some_and(|kind| kind == "integer" || kind == "boolean") {
                let kind = keywords["type"].clone();
                keywords.insert("type".to_string(), json!([kind, "string"]));
            }
            keywords.values_mut().for_each(allow_references);
        }
        Value::Array(items) => items.iter_mut().for_each(allow_references),
        _ => {}
    }
}
