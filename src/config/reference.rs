//! The reference page and the JSON schema, made from the settings' own comments.

use serde_json::{Value, json};

use super::check::plain;
use super::schema::{Leaf, SCHEMAS, is_secret, kind, leaves, present, properties, published, text, variants, words};

/// `docs/icestream.schema.json`.
pub fn json_schema() -> String {
    let mut schema = format!("{:#}", published());
    schema.push('\n');
    schema
}

const INTRODUCTION: &str = "\
# Configuration

<!-- Made by `icestream config reference > docs/configuration.md`. Change the comments in `src/config/settings.rs`. -->

A project is a folder with a file `icestream.yaml`. Three more folders are read when they are there: `catalog/` says
what is known about the captured tables, `transforms/` how bronze becomes silver, `sql/gold/` how silver becomes gold.
`icestream init` makes a project, `icestream check` finds every problem in it, `icestream config show` prints the
settings in force and where each comes from.

**Which value wins.** `--set KEY=VALUE` on the command line, then an environment variable, then the file, then the
default. Every key of `icestream.yaml` has a variable: `ICESTREAM_` and its path in capitals, with two underscores where
the path has a dot; `commit.every` is `ICESTREAM_COMMIT__EVERY`. A list is written with commas. A Kafka property is
written with an underscore for each dot: `ICESTREAM_SOURCE__KAFKA__PROPERTIES__SASL_USERNAME`. An empty variable counts
as not set. `--project`, `--log` and `--log-format` have `ICESTREAM_PROJECT`, `ICESTREAM_LOG` and
`ICESTREAM_LOG_FORMAT`.

**References.** In any value, `${VAR}` is replaced by an environment variable, `${VAR:-default}` by the default when the
variable is not set or empty, `${file:/path}` by the content of a file (relative to the project folder, without the
last line feed). `$${` stands for `${` itself. Inside `{ … }` or `[ … ]` put such a value into double quotes.

**Secrets** stand in a file only as a reference, never as they are, and come on no command line. They are never printed:
not by `config show`, not in messages, not in logs. Keys marked *secret* below are such.

**Sizes** have a number and a unit: `B`, `kB`, `MB`, `GB`, `TB` count by 1000, `KiB`, `MiB`, `GiB`, `TiB` by 1024.
**Durations** have one or more numbers with units: `500ms`, `10s`, `1m`, `1h30m`, `2d`.

**In an editor**, `# yaml-language-server: $schema=docs/icestream.schema.json` on top of `icestream.yaml` gives completion;
`…schema.json#/$defs/table` does for the files of `catalog/`.
";

/// `docs/configuration.md`.
pub fn reference() -> String {
    let mut page = INTRODUCTION.to_string();
    heading("`icestream.yaml`", &SCHEMAS.project, &mut page);
    section(&SCHEMAS.project, "", true, &mut page);
    heading("`catalog/<table>.yaml`", &SCHEMAS.table, &mut page);
    section(&SCHEMAS.table, "", false, &mut page);
    heading("`transforms/<table>.sql`", &SCHEMAS.silver, &mut page);
    section(&SCHEMAS.silver, "", false, &mut page);
    heading("`sql/gold/<model>.sql`", &SCHEMAS.gold, &mut page);
    section(&SCHEMAS.gold, "", false, &mut page);
    heading("`sql/audits/<audit>.sql`", &SCHEMAS.audit, &mut page);
    section(&SCHEMAS.audit, "", false, &mut page);
    page
}

fn heading(title: &str, schema: &Value, page: &mut String) {
    page.push_str(&format!("\n## {title}\n\n{}\n", described(schema)));
}

/// The keys of a map: the ones that hold a value each get a paragraph, the maps among them a heading of their own.
fn section(schema: &Value, path: &str, has_variables: bool, page: &mut String) {
    let all = leaves(schema);
    let mut shown: Vec<String> = Vec::new();
    for leaf in &all {
        let groups = leaf.path.len() - 1;
        // The sections of the main file have headings; so have its keys that stand alone, or they would seem to belong
        // to the section above.
        if has_variables && groups == 0 {
            page.push_str(&format!("\n### `{}`\n", leaf.dotted()));
        }
        for depth in 1..=groups {
            let group = leaf.path[..depth].join(".");
            if !shown.contains(&group) {
                let level = "#".repeat(2 + depth);
                page.push_str(&format!("\n{level} `{group}`\n\n{}\n", described(at(schema, &leaf.path[..depth]))));
                shown.push(group);
            }
        }
        if let Some(variant) = leaf.variant {
            let group = format!("{} {variant}", leaf.path[0]);
            if leaf.path.last() != Some(&"type") && !shown.contains(&group) {
                let about =
                    variants(at(schema, &leaf.path[..1])).into_iter().flatten().find(|(name, _)| *name == variant);
                let about = about.map(|(_, schema)| described(schema)).unwrap_or_default();
                page.push_str(&format!("\n#### `type: {variant}`\n\n{about}\n"));
                shown.push(group);
            }
        }
        page.push_str(&paragraph(leaf, schema, path, has_variables));
        if kind(leaf.schema) == "array"
            && let Some(items) = leaf.schema.get("items").map(present).filter(|items| properties(items).is_some())
        {
            section(items, &format!("{}[].", leaf.dotted()), false, page);
        }
    }
}

fn paragraph(leaf: &Leaf<'_>, root: &Value, prefix: &str, has_variables: bool) -> String {
    let mut facts = vec![type_name(leaf.schema)];
    if is_secret(leaf.schema) {
        facts.push("**secret**".to_string());
    }
    let is_tag = leaf.variant.is_some() && leaf.path.last() == Some(&"type");
    if leaf.required && !is_tag {
        facts.push("required".to_string());
    } else if let Some(derived) = text(leaf.schema, "x-default") {
        facts.push(format!("default {derived}"));
    } else if let Some(default) = leaf.default.filter(|default| **default != json!([]) && **default != json!({})) {
        facts.push(format!("default `{}`", plain(default)));
    }
    if let Some(least) = leaf.schema.get("x-minimum").or_else(|| leaf.schema.get("minimum")).filter(|m| **m != 0) {
        facts.push(format!("at least `{}`", plain(least)));
    }
    if has_variables {
        let more = if kind(leaf.schema) == "object" { "__…" } else { "" };
        facts.push(format!("`{}{more}`", leaf.variable()));
    }
    let mut paragraph = format!("\n**`{prefix}{}`** — {}\n", leaf.dotted(), facts.join(" · "));
    let about = if is_tag { "Which kind of catalog it is.".to_string() } else { described(leaf.schema) };
    paragraph.push_str(&format!("\n{about}\n"));
    let allowed = if is_tag {
        variants(at(root, &leaf.path[..leaf.path.len() - 1]))
            .map(|variants| variants.iter().map(|(name, schema)| (*name, text(schema, "description"))).collect())
    } else {
        words(leaf.schema)
    };
    if let Some(allowed) = allowed {
        paragraph.push('\n');
        for (word, meaning) in allowed {
            let meaning = meaning.map_or(String::new(), |meaning| format!(": {}", meaning.replace('\n', " ")));
            paragraph.push_str(&format!("- `{word}`{meaning}\n"));
        }
    }
    if let Some(example) = leaf.schema.get("examples").and_then(|examples| examples.get(0)) {
        let key = leaf.path.last().copied().unwrap_or_default();
        paragraph.push_str(&format!("\nExample: `{key}: {}`\n", in_yaml(example)));
    }
    paragraph
}

/// The schema at a path of maps.
fn at<'a>(schema: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(present(schema), |schema, key| {
        let direct = properties(schema).and_then(|keys| keys.get(*key));
        let inside = || {
            let variants = variants(schema).into_iter().flatten();
            variants.filter_map(|(_, schema)| properties(schema)?.get(*key)).next()
        };
        present(direct.or_else(inside).unwrap_or(schema))
    })
}

fn type_name(schema: &Value) -> String {
    if words(schema).is_some() {
        return "one of the words below".to_string();
    }
    let named = match text(schema, "format").unwrap_or_default() {
        "size" => "size",
        "duration" => "duration",
        "name" => "name (lower-case letters, digits, `_`)",
        _ => match kind(schema) {
            "array" if schema.get("items").map(present).is_some_and(|items| properties(items).is_some()) => {
                "list of maps"
            }
            "array" => "list",
            "object" => "map of names and values",
            "boolean" => "`true` or `false`",
            "integer" => "whole number",
            _ => "text",
        },
    };
    named.to_string()
}

fn described(schema: &Value) -> String {
    text(schema, "description").unwrap_or_default().to_string()
}

fn in_yaml(example: &Value) -> String {
    match example {
        Value::String(text) if text.contains(": ") || text.starts_with(['*', '"', '[', '{']) => format!("{text:?}"),
        other => plain(other),
    }
}
