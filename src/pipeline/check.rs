//! Plans the SQL of every model over the columns it will meet: those that a bronze table has, and those that are declared
//! for it. No row is read and nothing is written.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef, Fields, Schema, SchemaRef};

use super::{models, quality};
use crate::config::{Audit, Config, Expectation, Place, Problem, Sql};
use crate::engine::{self, Engine};
use crate::error::{Result, Situation};
use crate::evolution::TableColumns;
use crate::gold::{self, GoldModel};
use crate::ids::{TableName, check_column};
use crate::layout;
use crate::quality::{FINDINGS_TABLE, Rule, Test, unfit_rules};
use crate::silver::{self, SilverModel};
use crate::table::{self, Lake, SchemaChange};

/// What planning the models of a project found.
#[derive(Debug, Clone, Default)]
pub struct ModelCheck {
    /// How many models can be run.
    pub planned: usize,
    /// How many read what only the catalog knows, which was not asked.
    pub skipped: usize,
    /// The columns that each model's table will have, as far as they are known.
    pub columns: BTreeMap<TableName, SchemaRef>,
    pub problems: Vec<Problem>,
}

/// Plans every silver model over its bronze table's columns and every gold model over what those give. Without a lake, or
/// before a table is made, the columns are those declared; what no file describes is skipped then.
pub async fn check_models(config: &Config, engine: &Engine, lake: Option<&Lake>) -> Result<ModelCheck> {
    let all = models(config)?;
    let mut check = Check { config, engine, lake, known: BTreeMap::new(), found: ModelCheck::default() };
    for table in &config.tables {
        let name = TableName::new(&config.namespaces.bronze, &table.name).map_err(table::Error::from)?;
        let image = image_columns(config, lake, &name).await?.map_or(DataType::Utf8, DataType::Struct);
        check.known.insert(name, Known::Planned(layout::bronze_schema_with(Some(image))));
    }
    for model in &all.silver {
        check.known.insert(model.table.clone(), Known::Broken);
    }
    match silver::in_order(&all.silver) {
        Ok(ordered) => {
            for model in ordered {
                let schema = check.silver(model, &all.silver).await?;
                check.conclude(&model.table, schema).await?;
            }
        }
        Err(error) => {
            let table = match &error {
                silver::Error::Circle { table, .. } => table,
                _ => &all.silver[0].table,
            };
            check.problem(&table.clone(), told(&error), None);
        }
    }
    for model in &all.gold {
        check.known.insert(model.table.clone(), Known::Broken);
    }
    let readable: Vec<GoldModel> =
        all.gold.iter().filter(|model| check.parses(&model.table, &model.sql)).cloned().collect();
    match gold::in_order(&readable) {
        Ok(ordered) => {
            for model in ordered {
                let schema = check.gold(model).await?;
                check.conclude(&model.table, schema).await?;
            }
        }
        Err(error) => check.found.problems.push(Problem {
            place: Place::File("sql/gold".into()),
            path: String::new(),
            message: told(&error),
        }),
    }
    let of_models = all.silver.iter().map(|model| &model.table).chain(all.gold.iter().map(|model| &model.table));
    for table in of_models {
        if let Some(Known::Planned(schema)) = check.known.get(table) {
            check.found.columns.insert(table.clone(), schema.clone());
        }
    }
    let quality = TableName::new(&config.namespaces.gold, FINDINGS_TABLE).map_err(table::Error::from)?;
    check.known.insert(quality, Known::Planned(Arc::new(quality::schema())));
    for audit in &config.audits {
        check.audit(audit).await?;
    }
    for model in &all.silver {
        check.relationships(&model.table, &model.expect).await?;
    }
    for model in &all.gold {
        check.relationships(&model.table, &model.expect).await?;
    }
    Ok(check.found)
}

/// The columns that a bronze table's row images have when it is next written; `None` where they are JSON text, or not
/// known before the first records.
pub(super) async fn image_columns(config: &Config, lake: Option<&Lake>, from: &TableName) -> Result<Option<Fields>> {
    let declared = config.tables.iter().find(|table| table.name == from.name());
    let declared = declared.and_then(|table| table.shape.clone()).filter(|shape| !shape.columns.is_empty());
    let table = match lake {
        Some(lake) => lake.table_if_exists(from).await?,
        None => None,
    };
    let stored = table.map(|table| table.schema()).transpose()?;
    let stored = stored.as_ref().and_then(|schema| schema.field_with_name(layout::AFTER).ok());
    let stored = match (stored.map(|field| field.data_type()), &declared) {
        (Some(DataType::Struct(fields)), _) => fields,
        (_, declared) => return Ok(declared.as_ref().map(layout::image_fields)),
    };
    // A run gives the table what is declared and it lacks.
    let evolved = match &declared {
        Some(shape) => TableColumns::of_fields(stored, |_| false).evolve(shape).columns.fields(),
        None => Fields::empty(),
    };
    let is = |field: &FieldRef, name: &str| field.name() == name;
    let kept = stored.iter().map(|old| evolved.iter().find(|new| is(new, old.name())).unwrap_or(old));
    let added = evolved.iter().filter(|new| !stored.iter().any(|old| is(old, new.name())));
    Ok(Some(kept.chain(added).cloned().collect()))
}

struct Check<'a> {
    config: &'a Config,
    engine: &'a Engine,
    lake: Option<&'a Lake>,
    known: BTreeMap<TableName, Known>,
    found: ModelCheck,
}

/// What is known of a table before it exists.
enum Known {
    Planned(SchemaRef),
    /// Its model has a problem, and what reads it would only repeat that.
    Broken,
    /// Only the catalog could tell.
    Skipped,
}

/// What came of planning a query.
enum Planned {
    Yes(Schema),
    /// What it reads is not known, or broken.
    No(Known),
    Wrong(engine::Error),
}

impl Check<'_> {
    async fn silver(&mut self, model: &SilverModel, all: &[SilverModel]) -> Result<Known> {
        if model.sql.as_deref().is_some_and(|sql| !self.parses(&model.table, sql)) {
            return Ok(Known::Broken);
        }
        let Some(columns) = image_columns(self.config, self.lake, &model.from).await? else {
            let (table, from) = (model.table.clone(), model.from.clone());
            return Ok(self.problem(&model.table, told(&silver::Error::NoColumns { table, from }), None));
        };
        if let Err(error) = silver::check_lookups(model, all) {
            return Ok(self.problem(&model.table, told(&error), None));
        }
        let mut lookups = BTreeMap::new();
        for name in silver::lookups(model)? {
            match self.known.get(&name) {
                Some(Known::Planned(schema)) => drop(lookups.insert(name, schema.clone())),
                Some(Known::Skipped) => return Ok(Known::Skipped),
                _ => return Ok(Known::Broken),
            }
        }
        match silver::plan(self.engine, model, &columns, &lookups).await {
            Ok(schema) => {
                let unfit = silver::unfit_rules(self.engine, model, &schema).await;
                let quarantine = Arc::new(silver::quarantine_schema(&schema));
                self.known.insert(model.quarantine(), Known::Planned(quarantine));
                Ok(self.with_rules(&model.table, unfit, schema))
            }
            Err(silver::Error::Query { source, .. }) => Ok(self.query_problem(&model.table, &source)),
            Err(error) => Ok(self.problem(&model.table, told(&error), None)),
        }
    }

    async fn gold(&mut self, model: &GoldModel) -> Result<Known> {
        match self.planned(&model.sql).await? {
            Planned::No(known) => Ok(known),
            Planned::Yes(schema) => match gold::groups(model, &schema) {
                Ok(_) => {
                    let unfit = unfit_rules(self.engine, &model.expect, &schema).await;
                    Ok(self.with_rules(&model.table, unfit, schema))
                }
                Err(error) => Ok(self.problem(&model.table, told(&error), None)),
            },
            Planned::Wrong(error) => Ok(self.query_problem(&model.table, &error)),
        }
    }

    async fn audit(&mut self, audit: &Audit) -> Result<()> {
        let planned = match engine::referenced_tables(&audit.sql.text) {
            Ok(_) => self.planned(&audit.sql.text).await?,
            Err(error) => Planned::Wrong(error),
        };
        match planned {
            Planned::Yes(_) => self.found.planned += 1,
            Planned::No(Known::Skipped) => self.found.skipped += 1,
            Planned::No(_) => {}
            Planned::Wrong(error) => {
                let problem = self.problem_in(&audit.sql, &error);
                self.found.problems.push(problem);
            }
        }
        Ok(())
    }

    /// Plans a query over tables that are known.
    async fn planned(&self, sql: &str) -> Result<Planned> {
        let session = self.engine.session();
        for input in engine::referenced_tables(sql)? {
            let schema = match self.known.get(&input) {
                Some(Known::Planned(schema)) => schema.clone(),
                Some(Known::Broken) => return Ok(Planned::No(Known::Broken)),
                Some(Known::Skipped) => return Ok(Planned::No(Known::Skipped)),
                None => match self.stored(&input).await? {
                    Some(schema) => schema,
                    None if self.lake.is_none() && !self.is_own(&input) => return Ok(Planned::No(Known::Skipped)),
                    None => return Ok(Planned::Wrong(engine::Error::unknown_table(&input, self.known.keys()))),
                },
            };
            engine::register_empty(&session, &input, schema)?;
        }
        let frame = match engine::plan(&session, sql).await {
            Ok(frame) => frame,
            Err(error) => return Ok(Planned::Wrong(error)),
        };
        let schema = frame.schema().as_arrow().clone();
        // Types are only made to meet when the plan is laid out for running.
        Ok(match frame.create_physical_plan().await {
            Ok(_) => Planned::Yes(schema),
            Err(error) => Planned::Wrong(error.into()),
        })
    }

    /// Notes the rules that cannot be asked of a table's rows. What reads the table is looked at all the same.
    fn with_rules(&mut self, table: &TableName, unfit: Vec<(usize, engine::Error)>, schema: Schema) -> Known {
        for (index, error) in unfit {
            self.rule_problem(table, index, told(&error));
        }
        Known::Planned(Arc::new(schema))
    }

    fn rule_problem(&mut self, table: &TableName, index: usize, message: String) {
        let Some(expectation) = self.expectations(table).get(index) else { return };
        let (place, path) = (expectation.place.clone(), expectation.path.clone());
        self.found.problems.push(Problem { place, path, message });
    }

    fn expectations(&self, table: &TableName) -> &[Expectation] {
        let silver = self.config.silver.iter().find(|model| model.table == *table).map(|model| &model.expect);
        let gold = || self.config.gold.iter().find(|model| model.table == *table).map(|model| &model.expect);
        silver.or_else(gold).map_or(&[], Vec::as_slice)
    }

    /// Looks for the columns that relationships lead to.
    async fn relationships(&mut self, table: &TableName, rules: &[Rule]) -> Result<()> {
        for (index, rule) in rules.iter().enumerate() {
            let Test::Relationship { table: other, to, .. } = &rule.test else { continue };
            let columns = match self.known.get(other) {
                Some(Known::Planned(columns)) => Some(columns.clone()),
                Some(Known::Broken | Known::Skipped) => continue,
                None => self.stored(other).await?,
            };
            let problem = match columns {
                Some(columns) if columns.index_of(to).is_ok() => continue,
                Some(columns) => engine::unknown_column(to, &columns),
                None if self.lake.is_none() && !self.is_own(other) => continue,
                None => engine::Error::unknown_table(other, self.known.keys()),
            };
            self.rule_problem(table, index, told(&problem));
        }
        Ok(())
    }

    fn is_own(&self, table: &TableName) -> bool {
        let own = &self.config.namespaces;
        [&own.bronze, &own.silver, &own.gold].into_iter().any(|namespace| namespace == table.namespace())
    }

    /// The columns a table has in the lake.
    async fn stored(&self, name: &TableName) -> Result<Option<SchemaRef>> {
        match self.lake {
            Some(lake) => Ok(lake.table_if_exists(name).await?.map(|table| table.schema()).transpose()?),
            None => Ok(None),
        }
    }

    /// Whether the SQL can be read at all, and on its own.
    fn parses(&mut self, table: &TableName, sql: &str) -> bool {
        match engine::referenced_tables(sql) {
            Ok(_) => true,
            // A silver model reads `changes`, which is nothing to look up; what else it reads is told by `silver`.
            Err(engine::Error::NotATableName { .. }) if table.namespace() == self.config.namespaces.silver => true,
            Err(error) => {
                self.query_problem(table, &error);
                false
            }
        }
    }

    /// Looks at the columns a model gives: at their names, and at those its table has already.
    async fn conclude(&mut self, table: &TableName, known: Known) -> Result<()> {
        let known = match known {
            Known::Planned(schema) => match self.fits(table, &schema).await? {
                None => Known::Planned(schema),
                Some(message) => self.problem(table, message, None),
            },
            other => other,
        };
        match known {
            Known::Planned(_) => self.found.planned += 1,
            Known::Skipped => self.found.skipped += 1,
            Known::Broken => {}
        }
        self.known.insert(table.clone(), known);
        Ok(())
    }

    async fn fits(&self, table: &TableName, schema: &Schema) -> Result<Option<String>> {
        for field in schema.fields() {
            if check_column(field.name()).is_err() {
                return Ok(Some(format!(
                    "the column `{}` has no name that a table can have; add `AS` and a name of lower-case letters, \
                     digits and underscores",
                    field.name()
                )));
            }
        }
        let Some(lake) = self.lake else { return Ok(None) };
        let Some(stored) = lake.table_if_exists(table).await? else { return Ok(None) };
        let change = SchemaChange::to_fit(stored.schema()?.as_ref(), schema);
        Ok(stored.evolve(&change).err().map(|error| {
            let way_out = format!("give it another name, or `icestream drop {table}` and build the table again");
            format!("{}; {way_out}", told(&error))
        }))
    }

    fn query_problem(&mut self, table: &TableName, error: &engine::Error) -> Known {
        let (message, at) = told_in(error, self.sql_of(table).map_or("", |sql| &sql.text));
        self.problem(table, message, at)
    }

    fn problem_in(&self, sql: &Sql, error: &engine::Error) -> Problem {
        let (message, at) = told_in(error, &sql.text);
        Problem { place: self.place_in(sql, at), path: String::new(), message }
    }

    /// A line and column of a statement, or its beginning.
    fn place_in(&self, sql: &Sql, at: Option<(usize, usize)>) -> Place {
        let file = sql.file.strip_prefix(&self.config.project_dir).unwrap_or(&sql.file);
        let (line, column) = at.unwrap_or((1, 1));
        let file = file.display().to_string().into();
        Place::At { file, line: sql.first_line + line.saturating_sub(1), column }
    }

    fn sql_of(&self, table: &TableName) -> Option<&Sql> {
        let silver = self.config.silver.iter().find(|model| model.table == *table).map(|model| &model.sql);
        silver.or_else(|| self.config.gold.iter().find(|model| model.table == *table).map(|model| &model.sql))
    }

    /// Notes a problem at a line and column of a model's SQL, or at its beginning.
    fn problem(&mut self, table: &TableName, message: String, at: Option<(usize, usize)>) -> Known {
        let place = match self.sql_of(table) {
            Some(sql) => self.place_in(sql, at),
            // A silver table without a file of its own is what its declared table makes it.
            None => Place::File(format!("catalog/{}.yaml", table.name()).into()),
        };
        self.found.problems.push(Problem { place, path: String::new(), message });
        Known::Broken
    }
}

/// An error and its hint on one line.
fn told(error: &impl Situation) -> String {
    match error.hint() {
        Some(hint) => format!("{error}; {hint}"),
        None => error.to_string(),
    }
}

/// What is wrong with a statement, and where in it.
fn told_in(error: &engine::Error, sql: &str) -> (String, Option<(usize, usize)>) {
    match error {
        engine::Error::Syntax { position, problem } => {
            let at = position.map(|(line, column)| (line as usize, column as usize));
            (format!("the SQL has a mistake: {problem}"), at)
        }
        _ => (told(error), word_of(error).and_then(|word| locate(sql, &word))),
    }
}

/// What of the SQL an error is about.
fn word_of(error: &engine::Error) -> Option<String> {
    match error {
        engine::Error::UnknownColumn { column, .. } | engine::Error::AmbiguousColumn { column } => Some(column.clone()),
        engine::Error::UnknownTable { table, .. } => Some(table.clone()),
        engine::Error::NotATableName { name } => Some(name.clone()),
        engine::Error::Unplannable { problem } => problem.split('\'').nth(1).map(str::to_string),
        _ => None,
    }
}

/// Line and column of the first place where a word stands for itself, counted from 1.
fn locate(sql: &str, word: &str) -> Option<(usize, usize)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let word = word.to_lowercase();
    for (index, line) in sql.lines().enumerate() {
        let code = line.split("--").next().unwrap_or_default().to_lowercase();
        for (start, _) in code.match_indices(&word) {
            let (before, after) = (&code[..start], &code[start + word.len()..]);
            if !before.ends_with(is_part) && !after.starts_with(is_part) {
                return Some((index + 1, before.chars().count() + 1));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_where_it_stands_for_itself() {
        let sql = "SELECT order_id, -- id\n  \"Id\" FROM a.orders\nWHERE id > 1";
        for (word, expected) in
            [("id", Some((2, 4))), ("a.orders", Some((2, 13))), ("order", None), ("WHERE", Some((3, 1)))]
        {
            assert_eq!(locate(sql, word), expected, "{word}");
        }
    }
}
