//! How the columns of a bronze table follow the columns of the records.
//!
//! In come the columns a table has and those a record brings; out go the columns that hold both, where each value of the
//! record goes, and what changed. Nothing here reads a value, and nothing is remembered: which source column a column is
//! for stands in its documentation, so that whoever opens the table carries on where the last one stopped.
//!
//! **A table only grows.** A column is added, or widened where Iceberg reads old files under the wider type; what does
//! neither becomes a column beside the old one, `status_v2`. A narrower or older record goes into what is there.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ids::{check_column, check_part};
use crate::layout;
use crate::row::{Column, ColumnType, RowShape};

/// The field of a row image that keeps, as JSON text, what no column was declared for.
pub const UNEXPECTED: &str = "_unexpected";

/// What is done when a record's columns are others than the table's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Evolution {
    /// The table gets the columns it lacks and wider types; a column whose new type cannot hold the old values gets a
    /// second one beside it (`status_v2`). A field nobody declared is kept in `_unexpected`.
    #[default]
    Evolve,
    /// The record is rejected, with the columns and the changes they would need.
    Strict,
    /// Rows stay JSON text, whatever the records say of their columns. Only a table that is made anew can be so.
    Json,
}

/// How the row images of one table are read and stored.
#[derive(Debug, Clone)]
pub struct TableImages {
    pub evolution: Evolution,
    /// The columns of records that do not say them.
    pub declared: Option<Arc<RowShape>>,
    pub form: Form,
}

/// What the row images of a table are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Form {
    /// No image was seen yet. The first one says it.
    Open,
    /// JSON text.
    Text,
    Columns(TableColumns),
}

/// The columns of a table's row images, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TableColumns {
    columns: Vec<TableColumn>,
    /// Names of columns that another engine made, of types that no record has. They stay as they are.
    foreign: BTreeSet<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableColumn {
    pub name: String,
    pub column_type: ColumnType,
    /// The column's name at the source; `None` for [`UNEXPECTED`].
    source: Option<String>,
    doc: Option<String>,
    /// The table is partitioned by it, so that it cannot be widened.
    is_fixed: bool,
}

/// Columns that hold a table's rows as well as a record's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evolved {
    pub columns: TableColumns,
    /// For each column of the record, which of `columns` takes its values.
    pub places: Vec<usize>,
    pub changes: Vec<ColumnChange>,
}

/// What happened to a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnChange {
    Added {
        column: String,
        column_type: ColumnType,
        source: Option<String>,
    },
    Widened {
        column: String,
        from: ColumnType,
        to: ColumnType,
    },
    /// The source's column has a type that the one there cannot be widened to.
    Versioned {
        column: String,
        column_type: ColumnType,
        beside: String,
        beside_type: ColumnType,
    },
    /// The source has it no more. The column stays, and is null from there on.
    Dropped {
        column: String,
    },
}

impl From<Option<Arc<RowShape>>> for TableImages {
    /// A table made for rows of this shape, or for JSON text.
    fn from(shape: Option<Arc<RowShape>>) -> Self {
        let declared = shape.filter(|shape| !shape.columns.is_empty());
        let form = match &declared {
            Some(shape) => Form::Columns(TableColumns::of_shape(shape)),
            None => Form::Text,
        };
        TableImages { evolution: Evolution::default(), declared, form }
    }
}

impl Form {
    /// What the row images of a table of these columns are. `is_fixed` says which of them the table is partitioned by.
    pub fn of_table(columns: &Fields, is_fixed: impl Fn(&str) -> bool) -> Self {
        match columns.iter().find(|field| field.name() == layout::AFTER).map(|field| field.data_type()) {
            None => Form::Open,
            Some(DataType::Struct(fields)) => Form::Columns(TableColumns::of_fields(fields, is_fixed)),
            Some(_) => Form::Text,
        }
    }

    /// The type of `before` and `after`; `None` while there are no such columns.
    pub fn data_type(&self) -> Option<DataType> {
        match self {
            Form::Open => None,
            Form::Text => Some(DataType::Utf8),
            Form::Columns(columns) => Some(DataType::Struct(columns.fields())),
        }
    }
}

impl TableColumns {
    /// The columns of a table made for rows of one shape.
    pub fn of_shape(shape: &RowShape) -> Self {
        TableColumns::default().evolve(shape).columns
    }

    /// The columns of a row image as a table has them.
    pub fn of_fields(fields: &Fields, is_fixed: impl Fn(&str) -> bool) -> Self {
        let mut found = TableColumns::default();
        for field in fields {
            let name = field.name().clone();
            let Some(column_type) = ColumnType::from_arrow(field.data_type()) else {
                found.foreign.insert(name);
                continue;
            };
            let (doc, source) = match field.metadata().get("doc").map(|doc| (doc, sourced(doc))) {
                Some((_, Some((doc, source)))) => (doc, source),
                Some((doc, None)) => (Some(doc.clone()), name.clone()),
                None => (None, name.clone()),
            };
            let source = (name != UNEXPECTED).then_some(source);
            found.columns.push(TableColumn { is_fixed: is_fixed(&name), name, column_type, source, doc });
        }
        found
    }

    pub fn fields(&self) -> Fields {
        self.columns.iter().map(TableColumn::field).collect()
    }

    pub fn iter(&self) -> impl Iterator<Item = &TableColumn> {
        self.columns.iter()
    }

    pub fn len(&self) -> usize {
        self.columns.len()
    }

    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    /// Where [`UNEXPECTED`] is, if the table has it.
    pub fn unexpected(&self) -> Option<usize> {
        self.columns.iter().position(|column| column.source.is_none())
    }

    /// The columns for these and for a record's.
    pub fn evolve(&self, shape: &RowShape) -> Evolved {
        let wanted: Vec<Wanted<'_>> = shape.columns.iter().map(Wanted::of_record).collect();
        self.place_all(&wanted, true)
    }

    /// The columns for these and for those that rows were laid out in while the table was another.
    pub fn merge(&self, rows: &TableColumns) -> Evolved {
        let wanted: Vec<Wanted<'_>> = rows.columns.iter().map(Wanted::of_table).collect();
        // Which of nearly the same names are one was decided where the rows were laid out.
        self.place_all(&wanted, false)
    }

    pub fn with_unexpected(&self) -> Evolved {
        self.place_all(&[Wanted { source: None, column_type: ColumnType::String, doc: Some(UNEXPECTED_DOC) }], false)
    }

    fn place_all(&self, wanted: &[Wanted<'_>], takes_alike: bool) -> Evolved {
        let mut next = self.clone();
        let mut changes = Vec::new();
        let sources: BTreeSet<&str> = wanted.iter().filter_map(|wanted| wanted.source).collect();
        let mut claims: BTreeMap<String, &str> = BTreeMap::new();
        let mut places = Vec::with_capacity(wanted.len());
        for wanted in wanted {
            let [exact, mut alike] = next.kin(wanted.source, takes_alike);
            let is_free =
                |known: &str| !sources.contains(known) && claims.get(known).is_none_or(|by| wanted.source == Some(*by));
            alike.retain(|index| next.columns[*index].source.as_deref().is_some_and(is_free));
            let place = next.place(wanted, [&exact, &alike], &sources, &mut changes);
            if let (Some(known), Some(source)) = (&next.columns[place].source, wanted.source) {
                claims.insert(known.clone(), source);
            }
            places.push(place);
        }
        Evolved { columns: next, places, changes }
    }

    fn place(
        &mut self,
        wanted: &Wanted<'_>,
        kin: [&[usize]; 2],
        sources: &BTreeSet<&str>,
        changes: &mut Vec<ColumnChange>,
    ) -> usize {
        let given = wanted.column_type;
        for group in kin {
            if let Some(index) = group.iter().find(|index| holds(self.columns[**index].column_type, given)) {
                return *index;
            }
            let can_take = |index: &&usize| {
                let column = &self.columns[**index];
                !column.is_fixed && widens(column.column_type, given)
            };
            if let Some(index) = group.iter().find(can_take).copied() {
                let column = &mut self.columns[index];
                let from = std::mem::replace(&mut column.column_type, given);
                changes.push(ColumnChange::Widened { column: column.name.clone(), from, to: given });
                return index;
            }
        }
        let older = kin.into_iter().find(|group| !group.is_empty());
        let (name, source) = match (wanted.source, older) {
            (None, _) => (UNEXPECTED.to_string(), None),
            (Some(_), Some(older)) => {
                let first = &self.columns[older[0]];
                (self.free_name(&first.name, "_v", sources), first.source.clone())
            }
            (Some(source), None) => {
                let name = legal_name(source);
                let is_anothers = name != source && sources.contains(name.as_str());
                let is_free = !is_anothers && !self.is_taken(&name);
                (if is_free { name } else { self.free_name(&name, "_", sources) }, Some(source.to_string()))
            }
        };
        changes.push(match older.and_then(|older| older.last()).map(|last| &self.columns[*last]) {
            Some(last) => ColumnChange::Versioned {
                column: name.clone(),
                column_type: given,
                beside: last.name.clone(),
                beside_type: last.column_type,
            },
            None => ColumnChange::Added {
                source: source.clone().filter(|source| *source != name),
                column: name.clone(),
                column_type: given,
            },
        });
        let doc = wanted.doc.map(str::to_string);
        self.columns.push(TableColumn { name, column_type: given, source, doc, is_fixed: false });
        self.columns.len() - 1
    }

    /// The columns made for a source's column, oldest first, and those made for one of nearly its name: one that is
    /// written in another case or style. Those are the same, while no other column of the record lays claim to them.
    fn kin(&self, source: Option<&str>, takes_alike: bool) -> [Vec<usize>; 2] {
        let Some(source) = source else { return [self.unexpected().into_iter().collect(), Vec::new()] };
        let legal = legal_name(source);
        let mut kin = [Vec::new(), Vec::new()];
        for (index, column) in self.columns.iter().enumerate() {
            match column.source.as_deref() {
                Some(known) if known == source => kin[0].push(index),
                Some(known) if takes_alike && legal_name(known) == legal => kin[1].push(index),
                _ => {}
            }
        }
        kin
    }

    fn is_taken(&self, name: &str) -> bool {
        self.foreign.contains(name) || self.columns.iter().any(|column| column.name == name)
    }

    fn free_name(&self, base: &str, mark: &str, sources: &BTreeSet<&str>) -> String {
        let base: String = base.chars().take(LONGEST).collect();
        let mut number = 2u64;
        loop {
            let name = format!("{base}{mark}{number}");
            if !self.is_taken(&name) && !sources.contains(name.as_str()) {
                return name;
            }
            number += 1;
        }
    }
}

impl Index<usize> for TableColumns {
    type Output = TableColumn;

    fn index(&self, index: usize) -> &TableColumn {
        &self.columns[index]
    }
}

/// A column that values need.
struct Wanted<'a> {
    /// `None` for [`UNEXPECTED`].
    source: Option<&'a str>,
    column_type: ColumnType,
    doc: Option<&'a str>,
}

impl<'a> Wanted<'a> {
    fn of_record(column: &'a Column) -> Self {
        Wanted { source: Some(&column.name), column_type: column.column_type, doc: column.doc.as_deref() }
    }

    fn of_table(column: &'a TableColumn) -> Self {
        Wanted { source: column.source.as_deref(), column_type: column.column_type, doc: column.doc.as_deref() }
    }
}

/// Whether a column of type `column` takes every value of type `given` as it is.
fn holds(column: ColumnType, given: ColumnType) -> bool {
    column == given || widens(given, column)
}

/// The promotions of Iceberg's format version 2.
fn widens(from: ColumnType, to: ColumnType) -> bool {
    match (from, to) {
        (ColumnType::Int, ColumnType::Long) | (ColumnType::Float, ColumnType::Double) => true,
        (
            ColumnType::Decimal { precision: old, scale: old_scale },
            ColumnType::Decimal { precision: new, scale: new_scale },
        ) => new > old && new_scale == old_scale,
        _ => false,
    }
}

const SOURCE_MARK: &str = "source column ";
const UNEXPECTED_DOC: &str = "fields that no column was declared for, as JSON";

impl TableColumn {
    fn field(&self) -> Field {
        let field = Field::new(&self.name, self.column_type.to_arrow(), true);
        let marked = match &self.source {
            // A text of the user's own that reads like a mark would be taken for one.
            Some(source) if *source != self.name || self.doc.as_deref().is_some_and(|doc| sourced(doc).is_some()) => {
                let mut mark = SOURCE_MARK.to_string();
                crate::json::push_string(&mut mark, source);
                Some(self.doc.as_ref().map_or(mark.clone(), |doc| format!("{doc}; {mark}")))
            }
            _ => self.doc.clone(),
        };
        match marked {
            // The key under which Arrow schemas carry a column's documentation into Iceberg's.
            Some(doc) => field.with_metadata(HashMap::from([("doc".to_string(), doc)])),
            None => field,
        }
    }
}

/// The text and the source's name in a column's documentation; `None` where it names none.
fn sourced(doc: &str) -> Option<(Option<String>, String)> {
    // Inside a quoted name, a quotation mark has a backslash before it and cannot be mistaken.
    let start = doc.rfind(&format!("{SOURCE_MARK}\""))?;
    let source = crate::json::string(&doc[start + SOURCE_MARK.len()..])?.into_owned();
    match &doc[..start] {
        "" => Some((None, source)),
        text => Some((Some(text.strip_suffix("; ")?.to_string()), source)),
    }
}

/// What a name is cut to, so that a number still fits behind it.
const LONGEST: usize = 240;

/// The plain letters of `à` to `ÿ`, in their order.
const PLAIN_LETTERS: &[u8; 32] = b"aaaaaaaceeeeiiiidnooooo_ouuuuyty";

/// A name that every engine takes unquoted: lower snake case. One that is so already stays as it is.
pub fn legal_name(source: &str) -> String {
    if check_part(source).is_ok() && !is_reserved(source) {
        return source.to_string();
    }
    let mut name = String::with_capacity(source.len() + 4);
    let characters: Vec<char> = source.chars().collect();
    for (index, character) in characters.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| characters[before]);
        let after = characters.get(index + 1);
        // `orderId` and `OrderID` are words run together; `ORDERS` is one.
        let starts_word = character.is_uppercase()
            && before.is_some_and(|before| {
                before.is_lowercase()
                    || before.is_ascii_digit()
                    || before.is_uppercase() && after.is_some_and(|after| after.is_lowercase())
            });
        if starts_word {
            name.push('_');
        }
        for lower in character.to_lowercase() {
            match lower {
                'a'..='z' | '0'..='9' => name.push(lower),
                'ß' => name.push_str("ss"),
                'æ' => name.push_str("ae"),
                'þ' => name.push_str("th"),
                'à'..='ÿ' => name.push(char::from(PLAIN_LETTERS[lower as usize - 0xe0])),
                other if other.is_alphanumeric() => name.push_str(&format!("_x{:x}_", other as u32)),
                _ => name.push('_'),
            }
        }
    }
    let words: Vec<&str> = name.split('_').filter(|word| !word.is_empty()).collect();
    let mut name = words.join("_");
    if name.is_empty() {
        name.push_str("column");
    }
    if name.starts_with(|first: char| first.is_ascii_digit()) {
        name.insert(0, '_');
    }
    name.truncate(LONGEST);
    name
}

/// Names that mean something of their own in bronze, in silver or to Iceberg.
fn is_reserved(name: &str) -> bool {
    name == UNEXPECTED || check_column(name).is_err() || layout::is_own_name(name)
}

impl ColumnChange {
    /// Whether the table's schema is another for it.
    pub fn alters_table(&self) -> bool {
        !matches!(self, ColumnChange::Dropped { .. })
    }
}

impl fmt::Display for ColumnChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ColumnChange::Added { column, column_type, source: None } => write!(f, "added `{column}` ({column_type})"),
            ColumnChange::Added { column, column_type, source: Some(source) } => {
                write!(f, "added `{column}` ({column_type}) for `{source}`")
            }
            ColumnChange::Widened { column, from, to } => write!(f, "widened `{column}` from {from} to {to}"),
            ColumnChange::Versioned { column, column_type, beside, beside_type } => {
                write!(f, "added `{column}` ({column_type}) beside `{beside}` ({beside_type})")
            }
            ColumnChange::Dropped { column } => write!(f, "`{column}` is not sent any more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shape(text: &str) -> RowShape {
        let columns = text.split(", ").filter(|column| !column.is_empty()).map(|column| {
            let (name, column_type) = column.rsplit_once(' ').unwrap();
            Column::new(name, column_type.parse().unwrap(), None).unwrap()
        });
        RowShape { columns: columns.collect() }
    }

    fn show(columns: &TableColumns) -> String {
        let shown: Vec<String> =
            columns.iter().map(|column| format!("{} {}", column.name, column.column_type)).collect();
        shown.join(", ")
    }

    /// What becomes of a table that sees these shapes one after the other, and is opened anew after each.
    fn history(shapes: &[&str]) -> String {
        let mut table = TableColumns::default();
        let mut lines = Vec::new();
        for (index, text) in shapes.iter().enumerate() {
            let evolved = table.evolve(&shape(text));
            assert_eq!(evolved.columns.evolve(&shape(text)).changes, [], "{text} fits what was made for it");
            table = reopened(&evolved.columns);
            assert_eq!(table, evolved.columns, "the schema says it all");
            if index > 0 {
                lines.extend(evolved.changes.iter().map(ToString::to_string));
            }
        }
        lines.push(show(&table));
        lines.join("\n")
    }

    fn reopened(columns: &TableColumns) -> TableColumns {
        TableColumns::of_fields(&columns.fields(), |_| false)
    }

    #[test]
    fn columns_are_added_and_widened_and_never_go_back() {
        insta::assert_snapshot!(history(&["id int", "id long, note string", "id int", "note string"]), @"
        widened `id` from int to long
        added `note` (string)
        id long, note string
        ");
        insta::assert_snapshot!(
            history(&["a float, b decimal(10,2)", "a double, b decimal(12,2)", "a float, b decimal(11,2)"]), @"
        widened `a` from float to double
        widened `b` from decimal(10,2) to decimal(12,2)
        a double, b decimal(12,2)
        ");
    }

    #[test]
    fn what_cannot_be_widened_gets_a_column_beside_the_old_one() {
        insta::assert_snapshot!(history(&["s int", "s string", "s int", "s long", "s string", "s date"]), @"
        added `s_v2` (string) beside `s` (int)
        widened `s` from int to long
        added `s_v3` (date) beside `s_v2` (string)
        s long, s_v2 string, s_v3 date
        ");
        insta::assert_snapshot!(
            history(&["n decimal(10,2)", "n decimal(12,4)", "n decimal(14,2)", "n decimal(13,4)", "n string"]), @"
        added `n_v2` (decimal(12,4)) beside `n` (decimal(10,2))
        widened `n` from decimal(10,2) to decimal(14,2)
        widened `n_v2` from decimal(12,4) to decimal(13,4)
        added `n_v3` (string) beside `n_v2` (decimal(13,4))
        n decimal(14,2), n_v2 decimal(13,4), n_v3 string
        ");
        insta::assert_snapshot!(history(&["s int, s_v2 date", "s string, s_v2 date"]), @"
        added `s_v3` (string) beside `s` (int)
        s int, s_v2 date, s_v3 string
        ");
        insta::assert_snapshot!(history(&["s int", "s string", "s string, s_v2 date"]), @"
        added `s_v2` (string) beside `s` (int)
        added `s_v2_2` (date) for `s_v2`
        s int, s_v2 string, s_v2_2 date
        ");
    }

    #[test]
    fn a_renamed_column_is_a_new_one_unless_only_its_letters_changed_case() {
        insta::assert_snapshot!(history(&["name string", "title string"]), @"
        added `title` (string)
        name string, title string
        ");
        insta::assert_snapshot!(history(&["Name string", "name string", "NAME string"]), @"name string");
        insta::assert_snapshot!(history(&["A int", "A int, a int", "a int", "A int"]), @"
        added `a_2` (int) for `a`
        a int, a_2 int
        ");
    }

    #[test]
    fn every_name_becomes_one_that_engines_take() {
        let cases = [
            "status",
            "a__b",
            "_x",
            "orderId",
            "OrderID",
            "ORDER_ID",
            "customerIDNumber",
            "order id",
            "order-id",
            "a.b",
            "2nd",
            "größe",
            "Ærø",
            "数量",
            "",
            "   ",
            "$",
            "_offset",
            "_position",
            "_file",
            "_merged_at",
            "_unexpected",
            "after",
            "select",
            "a\"b\\c",
        ];
        let named: Vec<String> = cases.iter().map(|name| format!("{name:?} {}", legal_name(name))).collect();
        insta::assert_snapshot!(named.join("\n"), @r#"
        "status" status
        "a__b" a__b
        "_x" _x
        "orderId" order_id
        "OrderID" order_id
        "ORDER_ID" order_id
        "customerIDNumber" customer_id_number
        "order id" order_id
        "order-id" order_id
        "a.b" a_b
        "2nd" _2nd
        "größe" grosse
        "Ærø" aero
        "数量" x6570_x91cf
        "" column
        "   " column
        "$" column
        "_offset" offset
        "_position" position
        "_file" file
        "_merged_at" merged_at
        "_unexpected" unexpected
        "after" after
        "select" select
        "a\"b\\c" a_b_c
        "#);
        let long = legal_name(&"É".repeat(400));
        assert!(check_part(&long).is_ok() && long.len() == LONGEST);
    }

    #[test]
    fn names_that_meet_stay_apart() {
        insta::assert_snapshot!(history(&["A int, a int, B c int, b_c int, b-c date"]), @"a_2 int, a int, b_c_2 int, b_c int, b_c_3 date");
        insta::assert_snapshot!(history(&["_offset int, offset int", "offset long, _offset int"]), @"
        widened `offset` from int to long
        offset_2 int, offset long
        ");
    }

    #[test]
    fn a_column_a_table_is_partitioned_by_is_not_widened() {
        let table = TableColumns::of_fields(&TableColumns::of_shape(&shape("id int")).fields(), |name| name == "id");
        let evolved = table.evolve(&shape("id long"));
        assert_eq!(show(&evolved.columns), "id int, id_v2 long");
        assert_eq!(evolved.columns.evolve(&shape("id int")).places, [0]);
    }

    #[test]
    fn the_documentation_is_kept_and_says_the_source() {
        let doc = |doc: &str, name: &str| {
            let column = Column { doc: Some(doc.to_string()), ..Column::new(name, ColumnType::Int, None).unwrap() };
            let columns = TableColumns::of_shape(&RowShape { columns: vec![column] });
            assert_eq!(reopened(&columns), columns);
            columns.fields()[0].metadata()["doc"].clone()
        };
        assert_eq!(doc("in euro", "total"), "in euro");
        assert_eq!(doc("in euro", "Total"), r#"in euro; source column "Total""#);
        assert_eq!(doc(r#"source column "x""#, "total"), r#"source column "x"; source column "total""#);
        assert_eq!(doc("x", r#"a source column "b"#), r#"x; source column "a source column \"b""#);
        let unexpected = TableColumns::of_shape(&shape("id int, _unexpected int")).with_unexpected();
        assert_eq!(reopened(&unexpected.columns), unexpected.columns);
        assert_eq!(show(&unexpected.columns), "id int, unexpected int, _unexpected string");
        assert_eq!(unexpected.columns.with_unexpected().changes, []);
    }

    #[test]
    fn foreign_columns_keep_their_names() {
        let list = DataType::List(Arc::new(Field::new("element", DataType::Utf8, true)));
        let fields: Fields = vec![Field::new("tags", list, true), Field::new("id", DataType::Int32, true)].into();
        let evolved = TableColumns::of_fields(&fields, |_| false).evolve(&shape("id int, tags string"));
        assert_eq!(show(&evolved.columns), "id int, tags_2 string");
    }

    proptest! {
        /// Shapes in any order, told again in any order: each source column's values of one family stay in one column.
        #[test]
        fn any_shapes_in_any_order(shapes in prop::collection::vec(any_shape(), 1..8)) {
            let mut table = TableColumns::default();
            for shape in &shapes {
                let evolved = table.evolve(shape);
                let distinct: BTreeSet<usize> = evolved.places.iter().copied().collect();
                prop_assert_eq!(distinct.len(), shape.columns.len());
                for (place, column) in evolved.places.iter().zip(&shape.columns) {
                    let taken = &evolved.columns[*place];
                    prop_assert!(holds(taken.column_type, column.column_type));
                }
                for (old, new) in table.iter().zip(evolved.columns.iter()) {
                    prop_assert!(old.name == new.name && old.source == new.source);
                    prop_assert!(holds(new.column_type, old.column_type));
                }
                let names: BTreeSet<&str> = evolved.columns.iter().map(|column| column.name.as_str()).collect();
                prop_assert_eq!(names.len(), evolved.columns.len());
                prop_assert!(names.iter().all(|name| check_part(name).is_ok()));
                table = reopened(&evolved.columns);
                prop_assert_eq!(&table, &evolved.columns);
            }
            // Told again, they may still part what was taken for one name before both were seen; after that, nothing.
            table = shapes.iter().fold(table, |table, shape| table.evolve(shape).columns);
            for shape in &shapes {
                prop_assert_eq!(table.evolve(shape).changes, vec![]);
            }
            // Rows laid out by one owner fit the table of another that saw other shapes first.
            let other = shapes.iter().rev().fold(TableColumns::default(), |table, shape| table.evolve(shape).columns);
            let merged = other.merge(&table);
            prop_assert_eq!(merged.places.iter().collect::<BTreeSet<_>>().len(), table.len());
            prop_assert_eq!(merged.columns.merge(&table).changes, vec![]);
        }
    }

    fn any_shape() -> impl Strategy<Value = RowShape> {
        let name = prop::sample::select(vec!["a", "A", "Á", "á", "a_2", "a_v2", "b c", "b_c", "_offset", "offset", ""]);
        let column_type = prop::sample::select(vec![
            "int",
            "long",
            "float",
            "double",
            "string",
            "date",
            "decimal(5,2)",
            "decimal(9,2)",
            "decimal(9,3)",
        ]);
        prop::collection::btree_map(name, column_type, 1..6).prop_map(|columns| RowShape {
            columns: columns
                .iter()
                .map(|(name, column_type)| Column::new(name, column_type.parse().unwrap(), None).unwrap())
                .collect(),
        })
    }
}
