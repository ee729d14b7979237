//! A draft as the text of a catalog file.

use super::draft::{Draft, DraftColumn};
use super::sample::Sample;
use crate::json;
use crate::row::Encoding;

/// An example longer than this is cut.
const LONGEST_EXAMPLE: usize = 40;

pub(super) fn render(draft: &Draft, sample: &Sample, place: Option<&str>, partition: Option<String>) -> String {
    let mut text = String::new();
    let source = match (&draft.connector, &draft.source_table) {
        (Some(connector), Some(table)) => format!(" ({connector}, table {table})"),
        (Some(connector), None) => format!(" ({connector})"),
        _ => String::new(),
    };
    let and = place.map_or(String::new(), |place| format!(" and {place}"));
    let changes = if draft.changes == 1 { "1 change".to_string() } else { format!("{} changes", draft.changes) };
    comment(&mut text, "", &format!("Drafted by `icestream discover` from {changes}{source}{and}, for review."));
    let doubtful = draft.columns.iter().filter(|column| !column.ambiguous.is_empty()).count();
    if doubtful > 0 {
        comment(&mut text, "", &format!("Columns to decide: {doubtful}; look for `ambiguous`."));
    }
    if !draft.refused.is_empty() {
        let (count, all) = (draft.refused.len(), sample.decoded.len());
        comment(&mut text, "", &format!("{count} of {all} sampled records would be rejected rows."));
    }
    text.push_str(&format!("topic: {}\n", scalar(&draft.topic)));
    if draft.key.is_empty() {
        text.push_str("# key: []\n");
    } else {
        let key: Vec<String> = draft.key.iter().map(|name| scalar(name)).collect();
        text.push_str(&format!("key: [{}]\n", key.join(", ")));
    }
    if let Some(note) = partition {
        comment(&mut text, "", &note);
    }
    text.push_str("partition: [\"day(_ingested_at)\"]\n");
    if let Some(reason) = &draft.undeclarable {
        comment(&mut text, "", &format!("Not declared, because {reason}."));
    }
    // A declaration that would reject rows is shown all the same.
    let off = if draft.undeclarable.is_some() { "# " } else { "" };
    text.push_str(&format!("{off}columns:\n"));
    for column in &draft.columns {
        if let Some(source) = &column.source {
            comment(&mut text, "  ", &format!("`{source}` at the source"));
        }
        for note in &column.notes {
            comment(&mut text, "  ", note);
        }
        for doubt in &column.ambiguous {
            comment(&mut text, "  ", &format!("ambiguous: {doubt}"));
        }
        text.push_str(&format!("{off}  - {}\n", entry(column)));
    }
    text
}

fn entry(column: &DraftColumn) -> String {
    let DraftColumn { name, column_type, encoding, doc, .. } = column;
    let mut entry = format!("{{ name: {}, type: {}", scalar(name), scalar(&column_type.to_string()));
    // Text as text and a number as a number go without saying; what is sent as something else is said even if usual.
    let is_plain = column_type.encodings()[0] == Encoding::Native && *encoding == Encoding::Native;
    if column_type.encodings().len() > 1 && !is_plain {
        entry.push_str(&format!(", encoding: {encoding}"));
    }
    if let Some(doc) = doc {
        // `${` would be taken for a variable.
        entry.push_str(&format!(", doc: {}", quoted(&doc.replace("${", "$${"))));
    }
    entry.push_str(" }");
    let nulls = match column.null_percent {
        Some(percent) if percent > 0 => Some(format!("{percent}% null")),
        _ => None,
    };
    let seen: Vec<String> =
        [Some(column.origin.clone()), column.example.clone(), nulls].into_iter().flatten().collect();
    format!("{entry:<60} # {}", printable(&seen.join(" · ")))
}

/// Text as it is, where YAML takes it for text whichever its version.
fn scalar(text: &str) -> String {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let is_word = matches!(
        text.to_ascii_lowercase().as_str(),
        "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    let starts_well = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if starts_well && !is_word && text.chars().all(is_legal) { text.to_string() } else { quoted(text) }
}

/// JSON's strings are YAML's too.
fn quoted(text: &str) -> String {
    let mut quoted = String::new();
    json::push_string(&mut quoted, text);
    printable(&quoted)
}

/// A JSON value cut to what fits a comment.
pub(super) fn shortened(value: &str) -> String {
    let mut short: String = value.chars().take(LONGEST_EXAMPLE).collect();
    if short.len() < value.len() {
        short.push('…');
    }
    short
}

/// Without characters that end a line or cannot be seen.
fn printable(text: &str) -> String {
    let is_odd = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
    text.chars().map(|c| if is_odd(c) { format!("\\u{:04x}", c as u32) } else { c.to_string() }).collect()
}

fn comment(text: &mut String, indent: &str, words: &str) {
    text.push_str(&format!("{indent}# {}\n", printable(words)));
}
