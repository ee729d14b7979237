use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::check::Checker;
use super::expect::{self, Expectation, Layer};
use super::problem::{Place, Problem};
use super::schema::SCHEMAS;
use super::settings::{AuditSettings, GoldSettings, OnDelete, Refresh, Severity, SilverSettings};
use super::yaml::{self, Node};
use super::{Namespaces, TableConfig};
use crate::ids::TableName;
use crate::quality::{Action, FINDINGS_TABLE, QUARANTINE_SUFFIX};

/// How a silver table is kept: `transforms/<table>.sql`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SilverModel {
    /// The file's name without its ending.
    pub name: String,
    /// The silver table.
    pub table: TableName,
    /// The bronze table whose changes are merged.
    pub from: TableName,
    /// The columns that identify a row; empty for the fields of the message key.
    pub keys: Vec<String>,
    pub on_delete: OnDelete,
    /// Whether each version of a row is kept.
    pub keeps_versions: bool,
    /// The columns whose change begins a version; empty for all but the keys.
    pub track_history: Vec<String>,
    /// Whether a null in an update leaves the value as it was.
    pub ignore_null_updates: bool,
    /// Of these columns of the source; empty for all but the keys.
    pub ignore_null_updates_columns: Vec<String>,
    /// What its rows must be.
    pub expect: Vec<Expectation>,
    pub sql: Sql,
}

/// How a gold table is computed: `sql/gold/<model>.sql`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GoldModel {
    /// The file's name without its ending.
    pub name: String,
    /// The gold table.
    pub table: TableName,
    pub refresh: Refresh,
    /// The columns that tell a row's group; empty for a full refresh.
    pub group_by: Vec<String>,
    /// What its rows must be.
    pub expect: Vec<Expectation>,
    pub sql: Sql,
}

/// A query that must find no row: `sql/audits/<audit>.sql`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// The file's name without its ending.
    pub name: String,
    /// What its findings are filed under; the tables it reads, where it does not say.
    pub table: Option<TableName>,
    pub action: Action,
    pub sql: Sql,
}

/// A statement and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sql {
    pub file: PathBuf,
    /// The line of the file at which `text` starts, counted from 1.
    pub first_line: usize,
    /// What follows the front matter.
    pub text: String,
}

const OPENING: &str = "/* icestream";

/// A model's file taken apart.
struct Parts {
    front: Node,
    sql: Sql,
}

pub(super) fn silver(
    name: &str,
    file: (&Arc<str>, &Path),
    text: &str,
    namespaces: &Namespaces,
    tables: &[TableConfig],
    checker: &mut Checker<'_>,
) -> Option<SilverModel> {
    let parts = take_apart(file, text, checker)?;
    let written = checker.read::<SilverSettings>(&parts.front, &SCHEMAS.silver)?;
    let expect = expect::rules(&written.settings.expect, Layer::Silver, &written, &parts.front, checker);
    let settings = written.settings;
    let table = settings.table.unwrap_or_else(|| name.to_string());
    let from = settings.from.unwrap_or_else(|| table.clone());
    let mut problem = |path: &str, message: &str| {
        let place = Place::File(file.0.clone());
        checker.problems.push(Problem { place, path: path.to_string(), message: message.to_string() });
    };
    let keeps_versions = match settings.scd {
        None | Some(1) => false,
        Some(2) => true,
        Some(_) => {
            problem("scd", "there are 1 and 2");
            return None;
        }
    };
    if !keeps_versions && !settings.track_history.is_empty() {
        problem("track_history", "only a table of versions has a history: set `scd: 2` as well");
    }
    if !settings.ignore_null_updates && !settings.ignore_null_updates_columns.is_empty() {
        problem("ignore_null_updates_columns", "nulls are not ignored: set `ignore_null_updates: true` as well");
    }
    if table.ends_with(QUARANTINE_SUFFIX) {
        problem("table", "a name that ends so is for the rows that a table keeps in quarantine");
    }
    let declared = tables.iter().find(|declared| declared.name == from).map(|declared| declared.key.clone());
    Some(SilverModel {
        name: name.to_string(),
        table: full_name(&namespaces.silver, &table, file.0, checker)?,
        from: full_name(&namespaces.bronze, &from, file.0, checker)?,
        keys: if settings.keys.is_empty() { declared.unwrap_or_default() } else { settings.keys },
        on_delete: settings.on_delete,
        keeps_versions,
        track_history: settings.track_history,
        ignore_null_updates: settings.ignore_null_updates,
        ignore_null_updates_columns: settings.ignore_null_updates_columns,
        expect,
        sql: parts.sql,
    })
}

pub(super) fn gold(
    name: &str,
    file: (&Arc<str>, &Path),
    text: &str,
    namespaces: &Namespaces,
    checker: &mut Checker<'_>,
) -> Option<GoldModel> {
    let parts = take_apart(file, text, checker)?;
    let written = checker.read::<GoldSettings>(&parts.front, &SCHEMAS.gold)?;
    let expect = expect::rules(&written.settings.expect, Layer::Gold, &written, &parts.front, checker);
    let settings = written.settings;
    let problem = match (settings.refresh, settings.group_by.is_empty()) {
        (Refresh::Incremental, true) => Some("`refresh: incremental` needs the columns that tell a row's group"),
        (Refresh::Full, false) => Some("only `refresh: incremental` goes by groups"),
        _ => None,
    };
    if let Some(message) = problem {
        let place = Place::File(file.0.clone());
        checker.problems.push(Problem { place, path: "group_by".to_string(), message: message.to_string() });
    }
    let table = settings.table.unwrap_or_else(|| name.to_string());
    if table == FINDINGS_TABLE {
        let message = "the table of this name keeps what rules and audits find".to_string();
        checker.problems.push(Problem { place: Place::File(file.0.clone()), path: "table".to_string(), message });
    }
    Some(GoldModel {
        name: name.to_string(),
        table: full_name(&namespaces.gold, &table, file.0, checker)?,
        refresh: settings.refresh,
        group_by: settings.group_by,
        expect,
        sql: parts.sql,
    })
}

pub(super) fn audit(name: &str, file: (&Arc<str>, &Path), text: &str, checker: &mut Checker<'_>) -> Option<Audit> {
    let parts = take_apart(file, text, checker)?;
    let written = checker.read::<AuditSettings>(&parts.front, &SCHEMAS.audit)?;
    let table = match written.settings.table.as_deref().map(str::parse::<TableName>).transpose() {
        Ok(table) => table,
        Err(error) => {
            checker.problems.push(written.problem("table", format!("{error}; write `namespace.table`")));
            None
        }
    };
    let action = match written.settings.severity {
        Severity::Warn => Action::Warn,
        Severity::Fail => Action::Fail,
    };
    Some(Audit { name: name.to_string(), table, action, sql: parts.sql })
}

fn full_name(namespace: &str, table: &str, file: &Arc<str>, checker: &mut Checker<'_>) -> Option<TableName> {
    match TableName::new(namespace, table) {
        Ok(name) => Some(name),
        Err(error) => {
            let place = Place::File(file.clone());
            checker.problems.push(Problem { place, path: "table".to_string(), message: error.to_string() });
            None
        }
    }
}

fn take_apart(file: (&Arc<str>, &Path), text: &str, checker: &mut Checker<'_>) -> Option<Parts> {
    let (file, path) = file;
    let mut problem = |line: usize, column: usize, message: &str| {
        let place = Place::At { file: file.clone(), line, column };
        checker.problems.push(Problem { place, path: String::new(), message: message.to_string() });
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let leading = text.len() - text.trim_start().len();
    let (front, rest) = match text[leading..].strip_prefix(OPENING) {
        Some(inside) => {
            let Some(length) = inside.find("*/") else {
                let (line, column) = position(text, leading);
                problem(line, column, "the comment `/* icestream` has no closing `*/`");
                return None;
            };
            let start = leading + OPENING.len();
            (Some(start..start + length), start + length + "*/".len())
        }
        None => (None, 0),
    };
    if let Some(stray) = text[rest..].find(OPENING) {
        let (line, column) = position(text, rest + stray);
        problem(line, column, "the comment `/* icestream` must come first in the file, and only once");
        return None;
    }
    let sql = &text[rest..];
    if without_comments(sql).is_empty() {
        let (line, column) = position(text, text.trim_end().len());
        problem(line, column, "there is no SQL in this file; write a SELECT");
        return None;
    }
    let skipped = sql.len() - sql.trim_start().len();
    let (first_line, _) = position(text, rest + skipped);
    let front = match front {
        // With blanks in place of what stands before it, the YAML keeps its lines and columns.
        Some(range) => {
            let before = text[..range.start].chars().map(|c| if c == '\n' { '\n' } else { ' ' });
            let yaml: String = before.chain(text[range].chars()).collect();
            match yaml::parse(file, &yaml) {
                Ok(node) => node,
                Err(problem) => {
                    checker.problems.push(problem);
                    return None;
                }
            }
        }
        None => Node::empty(file),
    };
    let text = sql.trim().trim_end_matches(';').trim_end().to_string();
    Some(Parts { front, sql: Sql { file: path.to_path_buf(), first_line, text } })
}

/// Line and column of a byte, counted from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..at];
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Whatever of a statement is not a comment, a semicolon or a blank. A quoted `--` does no harm: it only matters here
/// whether something is left.
fn without_comments(sql: &str) -> String {
    let mut left = String::new();
    let mut rest = sql;
    loop {
        let line = rest.find("--");
        let block = rest.find("/*");
        let (start, end) = match (line, block) {
            (Some(line), block) if block.is_none_or(|block| line < block) => (line, rest[line..].find('\n')),
            (_, Some(block)) => (block, rest[block..].find("*/").map(|end| end + "*/".len())),
            _ => break,
        };
        left.push_str(&rest[..start]);
        rest = end.map_or("", |end| &rest[start + end..]);
    }
    left.push_str(rest);
    left.trim_matches(|c: char| c.is_whitespace() || c == ';').to_string()
}
