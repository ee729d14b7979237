//! What a model's front matter asks of its rows, as rules.

use std::collections::BTreeMap;

use super::check::{Checker, Places, Written};
use super::problem::{Place, Problem};
use super::settings::{ExpectSettings, Otherwise};
use super::yaml::Node;
use crate::ids::{TableName, check_part};
use crate::quality::{Action, NULL_KEY, Rule, Test};

/// A rule and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    pub rule: Rule,
    pub place: Place,
    /// The key, such as `expect[0].that`.
    pub path: String,
}

const TESTS: &str = "`that`, `not_null`, `accepted_values`, `unique`, `relationship`, `freshness`";

/// What a model is made of decides what can be done about its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layer {
    Silver,
    Gold,
}

/// Takes the rules of a model out of its front matter.
pub(super) fn rules(
    expect: &[ExpectSettings],
    layer: Layer,
    written: &Written<impl Sized>,
    front: &Node,
    checker: &mut Checker<'_>,
) -> Vec<Expectation> {
    let mut rules = Vec::new();
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    for (index, settings) in expect.iter().enumerate() {
        let path = format!("expect[{index}]");
        let found = tests(settings);
        let action = action(settings.otherwise);
        let mut problems = Vec::new();
        let mut problem = |key: &str, message: String| problems.push((format!("{path}{key}"), message));
        match found.len() {
            0 => problem("", format!("says nothing to test; it takes one of {TESTS}")),
            _ if kinds(&found) > 1 => {
                problem("", format!("takes one of {TESTS}; write the others as rules of their own"))
            }
            _ => {}
        }
        if settings.column.is_some() && settings.freshness.is_none() {
            problem(".column", "only `freshness` has a column that says when".to_string());
        }
        if layer == Layer::Gold && settings.freshness.is_some() && settings.column.is_none() {
            problem(".freshness", "name the column that says when, for example `column: updated_at`".to_string());
        }
        for Tested { test, name, key } in found {
            let test = match test {
                Ok(test) => test,
                Err(message) => {
                    problem(key, message);
                    continue;
                }
            };
            let name = match (&settings.name, kinds_of_one(settings)) {
                (Some(name), 1) => name.clone(),
                (Some(name), _) => format!("{name}_{}", name_of(&test)),
                (None, _) => name,
            };
            let rule = Rule { name, test, action };
            if action.removes() && layer == Layer::Gold {
                let message = format!(
                    "a gold table has the rows its query gives: `{}` has no meaning here; leave rows out by the query, or \
                     keep them out of silver",
                    action.as_str()
                );
                problem(".else", message);
            } else if action.removes() && rule.condition().is_none() {
                let message = format!(
                    "`{}` is about the whole table, not about a row: it can only `warn` or `fail`",
                    rule.kind()
                );
                problem(".else", message);
            }
            if rule.name == NULL_KEY {
                problem(
                    ".name",
                    format!("`{NULL_KEY}` is what events without a value for a key are in quarantine for"),
                );
            }
            if matches!(rule.test, Test::That(_)) && settings.name.is_none() {
                problem(
                    "",
                    "`name` is missing: counts and messages say it, for example `name: total_not_negative`".to_string(),
                );
            } else if let Some(other) = taken.insert(rule.name.clone(), path.clone()).filter(|other| *other != path) {
                problem(".name", format!("`{other}` has the name `{}` already", rule.name));
            }
            let path = format!("{path}{key}");
            let place = written.places.nearest(&path).cloned().unwrap_or_else(|| front.place.clone());
            rules.push(Expectation { rule, place, path });
        }
        problems.dedup();
        for (path, message) in problems {
            let place = place_of(&written.places, &path, front);
            checker.problems.push(Problem { place, path, message });
        }
    }
    rules
}

fn place_of(places: &Places, path: &str, front: &Node) -> Place {
    places.nearest(path).cloned().unwrap_or_else(|| front.place.clone())
}

fn action(otherwise: Otherwise) -> Action {
    match otherwise {
        Otherwise::Warn => Action::Warn,
        Otherwise::Drop => Action::Drop,
        Otherwise::Quarantine => Action::Quarantine,
        Otherwise::Fail => Action::Fail,
    }
}

/// A test, what it is called when the user gives it no name, and the key it stands under.
struct Tested {
    test: Result<Test, String>,
    name: String,
    key: &'static str,
}

fn tests(settings: &ExpectSettings) -> Vec<Tested> {
    let mut tests = Vec::new();
    let mut push = |name: String, key: &'static str, test: Result<Test, String>| tests.push(Tested { test, name, key });
    if let Some(condition) = &settings.that {
        push(String::new(), ".that", Ok(Test::That(condition.clone())));
    }
    for column in &settings.not_null {
        push(format!("not_null_{column}"), ".not_null", Ok(Test::NotNull { column: column.clone() }));
    }
    for (column, values) in &settings.accepted_values {
        let test = match values.is_empty() {
            true => Err(format!("no value is accepted for `{column}`; list those that are")),
            false => Ok(Test::AcceptedValues { column: column.clone(), values: values.clone() }),
        };
        push(format!("accepted_values_{column}"), ".accepted_values", test);
    }
    if !settings.unique.is_empty() {
        let columns = settings.unique.clone();
        push(format!("unique_{}", columns.join("_")), ".unique", Ok(Test::Unique { columns }));
    }
    for (column, to) in &settings.relationship {
        push(format!("relationship_{column}"), ".relationship", relationship(column, to));
    }
    if let Some(within) = settings.freshness {
        let name = settings.column.as_ref().map_or("freshness".to_string(), |column| format!("freshness_{column}"));
        push(name, ".freshness", Ok(Test::Freshness { column: settings.column.clone(), within: within.0 }));
    }
    tests
}

fn relationship(column: &str, to: &str) -> Result<Test, String> {
    let parts: Vec<&str> = to.split('.').collect();
    let [namespace, table, of] = parts.as_slice() else {
        return Err(format!("`{to}` names no column of a table; write `namespace.table.column`"));
    };
    let table = TableName::new(*namespace, *table).map_err(|error| error.to_string())?;
    check_part(of).map_err(|error| error.to_string())?;
    Ok(Test::Relationship { column: column.to_string(), table, to: of.to_string() })
}

/// How many kinds of tests there are among them.
fn kinds(found: &[Tested]) -> usize {
    let mut keys: Vec<&str> = found.iter().map(|tested| tested.key).collect();
    keys.dedup();
    keys.len()
}

/// How many rules one entry makes.
fn kinds_of_one(settings: &ExpectSettings) -> usize {
    settings.not_null.len().max(settings.accepted_values.len()).max(settings.relationship.len()).max(1)
}

/// The column that tells apart the rules of one entry.
fn name_of(test: &Test) -> String {
    match test {
        Test::NotNull { column } | Test::AcceptedValues { column, .. } | Test::Relationship { column, .. } => {
            column.clone()
        }
        _ => String::new(),
    }
}
