//! Drafts of `catalog/<table>.yaml`: what the columns of a topic's table probably are, for a person to review.
//!
//! In: a sample of each topic's records, and schema files with `CREATE TABLE`. Out: a [`Draft`] for each topic that
//! carries changes of rows, and a [`Finding`] for whatever a person should know besides.
//!
//! Types come from the records' own schema blocks where they have them, else from the schema files, else from the JSON
//! values. **What values alone do not tell is said and not guessed**: a number is no date because it could be one.
//! **A draft holds its sample**: each type was tried by the real batch builder on each value, and one that did not fit
//! made way for one that does.
//!
//! Like `pipeline/` it knows the stages, of which it drives `source`, `decode` and `batch` over the sample. It does not
//! know Iceberg, the project's configuration, files or the terminal.

mod ddl;
mod declared;
mod draft;
mod guess;
mod sample;
mod seen;
mod yaml;

use std::collections::{BTreeMap, BTreeSet};

pub use draft::{Draft, DraftColumn, Refused};
pub use sample::{Sample, sample};

use crate::config::legal_name;
use crate::ids::check_part;
use ddl::{Ddl, Dialect};

/// A schema file.
#[derive(Debug, Clone)]
pub struct DdlFile {
    /// How messages call it.
    pub name: String,
    pub text: String,
}

/// The table that a topic's records go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub topic: String,
    /// The table's name without its namespace; `None` where none can be made of the topic's.
    pub table: Option<String>,
    /// Whether a file says so already.
    pub is_declared: bool,
}

/// Something a person should know that stands in no draft.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// A topic, or a place in a schema file.
    pub about: String,
    pub text: String,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Drafts {
    pub drafts: Vec<Draft>,
    pub findings: Vec<Finding>,
}

/// Makes drafts, one sample after the other, so that only few need to be in memory.
#[derive(Debug)]
pub struct Drafting {
    files: Vec<DdlFile>,
    with_examples: bool,
    names: BTreeMap<String, Name>,
    /// The schema files as read for each connector.
    schemas: BTreeMap<Option<Dialect>, Vec<Schema>>,
    /// The tables, by file and line, that a sampled topic carries.
    used: BTreeSet<(String, usize)>,
    found: Drafts,
}

/// A schema file that was read.
#[derive(Debug)]
struct Schema {
    file: String,
    ddl: Ddl,
}

/// What a topic's table is called, and why where that is not plain.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    table: String,
    reason: Option<String>,
}

impl Drafting {
    /// `targets` are all topics that will be sampled, and those of tables that are declared.
    pub fn new(targets: &[Target], files: Vec<DdlFile>, with_examples: bool) -> Self {
        Drafting {
            files,
            with_examples,
            names: names(targets),
            schemas: BTreeMap::new(),
            used: BTreeSet::new(),
            found: Drafts::default(),
        }
    }

    /// Drafts the table of a sampled topic.
    pub fn add(&mut self, sample: &Sample) -> crate::error::Result<()> {
        let Some(name) = self.names.get(&*sample.topic) else { return Ok(()) };
        let dialect = sample.connector().and_then(|connector| Dialect::of_connector(&connector));
        let files = &self.files;
        let schemas = self.schemas.entry(dialect).or_insert_with(|| read(files, dialect));
        let (declared, mut findings) = find(schemas, sample);
        self.used.extend(declared.map(|(file, table)| (file.to_string(), table.line)));
        match draft::draft(sample, &name.table, declared, self.with_examples, &mut findings)? {
            Some(draft) => {
                findings.extend(name.reason.clone());
                self.found.drafts.push(draft);
            }
            None if findings.is_empty() => findings.push("no draft: it has no change of a row".to_string()),
            None => {}
        }
        let about = |text| Finding { about: sample.topic.to_string(), text };
        self.found.findings.extend(findings.into_iter().map(about));
        Ok(())
    }

    /// What was drafted, and what of the schema files was of no use.
    pub fn finish(mut self) -> Drafts {
        if self.schemas.is_empty() {
            self.schemas.insert(None, read(&self.files, None));
        }
        let (mut skipped, mut unused, mut known) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        for Schema { file, ddl } in self.schemas.values().flatten() {
            for table in &ddl.tables {
                let place = (file.clone(), table.line);
                if !self.used.contains(&place) {
                    unused.insert(place.clone(), table.name.clone());
                }
                known.insert(place);
            }
            skipped.extend(ddl.skipped.iter().map(|skipped| ((file.clone(), skipped.line), skipped.reason.clone())));
        }
        // What one dialect cannot read may be plain in another.
        for ((file, line), reason) in skipped.into_iter().filter(|(place, _)| !known.contains(place)) {
            self.found.findings.push(Finding { about: format!("{file}:{line}"), text: format!("not read: {reason}") });
        }
        for DdlFile { name, .. } in &self.files {
            let of_file = || unused.iter().filter(|((file, _), _)| file == name);
            let text = if !known.iter().any(|(file, _)| file == name) {
                "no CREATE TABLE was found".to_string()
            } else if of_file().next().is_some() {
                let tables: Vec<String> = of_file().map(|(_, table)| format!("`{table}`")).collect();
                format!("no sampled topic carries {}", tables.join(", "))
            } else {
                continue;
            };
            self.found.findings.push(Finding { about: name.clone(), text });
        }
        self.found
    }
}

fn read(files: &[DdlFile], dialect: Option<Dialect>) -> Vec<Schema> {
    let read = |file: &DdlFile| Schema { file: file.name.clone(), ddl: ddl::read(&file.text, dialect) };
    files.iter().map(read).collect()
}

/// The one declared table that a topic carries, and words on why there is none although there might be.
fn find<'d>(schemas: &'d [Schema], sample: &Sample) -> (Option<(&'d str, &'d ddl::DdlTable)>, Vec<String>) {
    if schemas.is_empty() {
        return (None, Vec::new());
    }
    if sample.changes().next().is_none() {
        return (None, Vec::new());
    }
    let tables = sample.source_tables();
    let (schema, name) = match tables.as_slice() {
        [] => (None, sample.topic.rsplit('.').next().unwrap_or_default().to_string()),
        [(schema, name)] => (schema.clone(), name.clone()),
        _ => return (None, Vec::new()),
    };
    let all = || schemas.iter().flat_map(|Schema { file, ddl }| ddl.tables.iter().map(move |table| (&**file, table)));
    let in_schema = |table: &ddl::DdlTable| table.may_be_in(schema.as_deref());
    let exact: Vec<_> = all().filter(|(_, table)| table.name == name && in_schema(table)).collect();
    let alike: Vec<_> = all().filter(|(_, t)| t.name.eq_ignore_ascii_case(&name) && in_schema(t)).collect();
    match (exact.as_slice(), alike.as_slice()) {
        ([only], _) | ([], [only]) => (Some(*only), Vec::new()),
        ([], []) => (None, vec![format!("no CREATE TABLE of `{name}` is in the schema files")]),
        _ => {
            let places: Vec<String> = alike.iter().map(|(file, table)| format!("{file}:{}", table.line)).collect();
            (None, vec![format!("more than one CREATE TABLE could be its table's: {}", places.join(", "))])
        }
    }
}

/// The name of each topic's table. Topics that would share one, and those of which none can be made, are given more of
/// their own names.
fn names(targets: &[Target]) -> BTreeMap<String, Name> {
    let mut named: BTreeMap<String, Name> = BTreeMap::new();
    let mut taken: BTreeSet<String> = BTreeSet::new();
    for target in targets.iter().filter(|target| target.is_declared) {
        if let Some(table) = target.table.clone() {
            taken.insert(table.clone());
            named.insert(target.topic.clone(), Name { table, reason: None });
        }
    }
    let open: Vec<&Target> = targets.iter().filter(|target| !named.contains_key(&target.topic)).collect();
    let wished = |target: &Target, parts: usize| {
        if parts == 1 {
            return target.table.clone();
        }
        let all: Vec<&str> = target.topic.split('.').collect();
        let name = legal_name(&all[all.len().saturating_sub(parts)..].join("_"));
        check_part(&name).is_ok().then_some(name)
    };
    for target in &open {
        let most = target.topic.split('.').count();
        let is_free = |name: &String, parts: usize| {
            let mut others = open.iter().filter(|other| other.topic != target.topic);
            !taken.contains(name) && !others.any(|other| wished(other, parts).as_ref() == Some(name))
        };
        let own = (1..=most).find_map(|parts| wished(target, parts).filter(|name| is_free(name, parts)));
        let table = own.unwrap_or_else(|| {
            let base = wished(target, most.max(2)).unwrap_or_else(|| "topic".to_string());
            let numbered = (2..).map(|number| format!("{base}_{number}"));
            let found = std::iter::once(base.clone()).chain(numbered).find(|name| !taken.contains(name));
            found.unwrap_or(base)
        });
        let why = match &target.table {
            Some(usual) if *usual == table => None,
            Some(usual) => Some(format!("`{usual}` is another topic's as well")),
            None => Some("the last part of the topic's name is no table name".to_string()),
        };
        let reason = why.map(|why| format!("its table is called `{table}`, because {why}"));
        taken.insert(table.clone());
        named.insert(target.topic.clone(), Name { table, reason });
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_that_would_share_a_table_get_longer_names() {
        let target = |topic: &str, table: Option<&str>| Target {
            topic: topic.to_string(),
            table: table.map(str::to_string),
            is_declared: topic.starts_with("declared"),
        };
        let found = names(&[
            target("shop.public.orders", Some("orders")),
            target("shop.public.items", Some("items")),
            target("shop.archive.items", Some("items")),
            target("declared.public.stock", Some("stock")),
            target("shop.public.stock", Some("stock")),
            target("shop.public.Odd_T_ble.1", None),
            target("...", None),
        ]);
        let found: Vec<String> = found.into_iter().map(|(topic, name)| format!("{topic} → {}", name.table)).collect();
        insta::assert_snapshot!(found.join("\n"), @"
        ... → topic
        declared.public.stock → stock
        shop.archive.items → archive_items
        shop.public.Odd_T_ble.1 → odd_t_ble_1
        shop.public.items → public_items
        shop.public.orders → orders
        shop.public.stock → public_stock
        ");
    }
}
