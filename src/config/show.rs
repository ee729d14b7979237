//! The settings in force, as `config show` prints them.

use serde_json::Value;

use super::Config;
use super::check::{Places, join, plain};
use super::problem::Place;

/// Column at which the remarks stand.
const REMARK: usize = 52;

pub(super) fn show(config: &Config) -> String {
    let written = &config.settings;
    // Secrets serialize as their mask.
    let value = serde_json::to_value(&written.settings).unwrap_or_default();
    let mut text = format!(
        "# project folder: {}\n# files read: {} (catalog/: {}, transforms/: {}, sql/gold/: {})\n",
        config.project_dir.display(),
        config.files,
        config.tables.len(),
        config.silver.len(),
        config.gold.len(),
    );
    map(&value, "", 0, &written.places, &mut text);
    text
}

fn map(value: &Value, path: &str, depth: usize, places: &Places, text: &mut String) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = join(path, key);
        let indent = "  ".repeat(depth);
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                text.push_str(&format!("{indent}{key}:\n"));
                map(value, &path, depth + 1, places, text);
            }
            _ => {
                let line = format!("{indent}{key}: {}", scalar(value));
                let origin = match places.exact(&path) {
                    None => "default".to_string(),
                    Some(Place::At { line, .. }) => format!("line {line}"),
                    Some(place) => place.to_string(),
                };
                text.push_str(&format!("{line:<REMARK$} # {origin}\n"));
            }
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => {
            let plain = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-./:".contains(c))
                && !text.ends_with(':')
                && !matches!(text.as_str(), "true" | "false" | "null" | "yes" | "no");
            if plain { text.clone() } else { format!("{text:?}") }
        }
        other => plain(other),
    }
}
