//! Settings from environment variables and from `--set`, laid over those of `icestream.yaml`.

use std::collections::BTreeSet;

use serde_json::Value;

use super::interpolate::Environment;
use super::problem::{Place, Problem, nearest};
use super::schema::{Leaf, VARIABLE_PREFIX, leaves, present, properties, variants};
use super::yaml::{Data, Key, Node};

/// Variables that are flags of the command line and no settings.
pub(super) const FLAG_VARIABLES: [&str; 3] = ["ICESTREAM_PROJECT", "ICESTREAM_LOG", "ICESTREAM_LOG_FORMAT"];

/// Lays the variables over the tree.
pub(super) fn overlay(root: &mut Node, schema: &Value, environment: &Environment) {
    let leaves = leaves(schema);
    // Charts and compose files pass on variables that nobody set as empty ones.
    for (name, value) in environment.iter().filter(|(_, value)| !value.is_empty()) {
        if let Some(path) = path_of(name, &leaves) {
            put(root, &path, Place::Variable(name.clone()), value);
        }
    }
}

/// Variables that look like a setting and are none. Those that files refer to as `${VAR}` may have any name.
pub(super) fn misspelt(schema: &Value, environment: &Environment, referred: &BTreeSet<String>) -> Vec<Problem> {
    let leaves = leaves(schema);
    let known: Vec<String> = leaves.iter().map(Leaf::variable).collect();
    let mut problems = Vec::new();
    for name in environment.keys() {
        let settles = path_of(name, &leaves).is_some() || FLAG_VARIABLES.contains(&name.as_str());
        if !name.starts_with(VARIABLE_PREFIX) || settles || referred.contains(name) || is_service_link(name) {
            continue;
        }
        let near = nearest(name, known.iter().map(String::as_str).chain(FLAG_VARIABLES));
        let message = match near {
            Some(near) => format!("is no setting; did you mean `{near}`?"),
            // Two underscores are a path; anything else may be somebody else's variable.
            None if name.contains("__") => "is no setting; the path of a key is written with `__` between".to_string(),
            None => continue,
        };
        problems.push(Problem { place: Place::Variable(name.clone()), path: String::new(), message });
    }
    problems
}

/// Kubernetes gives every pod variables like these for a service that is called `icestream` or `icestream-…`.
fn is_service_link(name: &str) -> bool {
    ["_SERVICE_HOST", "_PORT"].iter().any(|end| name.ends_with(end))
        || ["_SERVICE_PORT", "_PORT_"].iter().any(|part| name.contains(part))
}

/// Lays the values of `--set key=value` over the tree.
pub(super) fn set(root: &mut Node, schema: &Value, assignments: &[String]) -> Vec<Problem> {
    let leaves = leaves(schema);
    let mut problems = Vec::new();
    for assignment in assignments {
        let mut problem = |key: &str, message: String| {
            problems.push(Problem { place: Place::Flag(key.to_string()), path: key.to_string(), message });
        };
        let Some((key, value)) = assignment.split_once('=') else {
            problem(assignment, "write `KEY=VALUE`, such as `commit.every=5s`".to_string());
            continue;
        };
        let key = key.trim();
        let known = leaves.iter().find_map(|leaf| {
            let dotted = leaf.dotted();
            if dotted == key {
                return Some(leaf.path.iter().map(|part| part.to_string()).collect());
            }
            // Whatever follows the path of a free map is a name in it, dots and all.
            let rest = key.strip_prefix(&dotted)?.strip_prefix('.').filter(|_| is_free_map(leaf.schema))?;
            Some(leaf.path.iter().map(|part| part.to_string()).chain([rest.to_string()]).collect::<Vec<_>>())
        });
        match known {
            Some(path) => put(root, &path, Place::Flag(key.to_string()), value),
            None => {
                let dotted: Vec<String> = leaves.iter().map(Leaf::dotted).collect();
                let message = match nearest(key, dotted.iter().map(String::as_str)) {
                    Some(near) => format!("unknown key; did you mean `{near}`?"),
                    None => "unknown key; write its path with dots, such as `commit.every`".to_string(),
                };
                problem(key, message);
            }
        }
    }
    problems
}

fn is_free_map(schema: &Value) -> bool {
    let schema = present(schema);
    properties(schema).is_none() && variants(schema).is_none() && schema.get("additionalProperties").is_some()
}

/// The path a variable sets.
fn path_of(variable: &str, leaves: &[Leaf<'_>]) -> Option<Vec<String>> {
    leaves.iter().find_map(|leaf| {
        let own = leaf.variable();
        let parts = leaf.path.iter().map(|part| part.to_string());
        if variable == own && !is_free_map(leaf.schema) {
            return Some(parts.collect());
        }
        // Client properties have dots, which variables cannot have.
        let rest = variable.strip_prefix(&own)?.strip_prefix("__").filter(|rest| !rest.is_empty())?;
        is_free_map(leaf.schema).then(|| parts.chain([rest.to_ascii_lowercase().replace('_', ".")]).collect())
    })
}

fn put(node: &mut Node, path: &[String], place: Place, value: &str) {
    let Some((first, rest)) = path.split_first() else {
        *node = Node { place, data: Data::Text(value.to_string()) };
        return;
    };
    if node.data == Data::Null {
        *node = Node { place: place.clone(), data: Data::Map(Vec::new()) };
    }
    // Anything else here is a mistake in the file, and stays there to be found.
    let Data::Map(entries) = &mut node.data else { return };
    let index = match entries.iter().position(|(key, _)| key.text == *first && !key.repeated) {
        Some(index) => index,
        None => {
            let key = Key { text: first.clone(), place: place.clone(), repeated: false };
            entries.push((key, Node { place: place.clone(), data: Data::Null }));
            entries.len() - 1
        }
    };
    put(&mut entries[index].1, rest, place, value);
}
