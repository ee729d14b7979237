//! What is done with the images of each shape that records come in.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::image::Columns;
use crate::evolution::{ColumnChange, Evolution, Form, TableColumns, TableImages, legal_name};
use crate::row::RowShape;

/// How many shapes are kept at hand. Records have the one of before a change of their table or the one after it.
const MOST_PLANS: usize = 64;

/// The form of a table's images, and how records of each shape seen fit into it.
#[derive(Debug)]
pub(super) struct Plans {
    images: TableImages,
    made: Vec<(Arc<RowShape>, Result<Plan, String>)>,
    /// Which of them the last record needed.
    last: usize,
    /// Columns that records stopped having, and those among them that nobody was told of yet.
    dropped: BTreeSet<String>,
    untold: BTreeSet<String>,
}

/// How an image is read.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    /// `None` for JSON text.
    pub(super) columns: Option<Arc<Columns>>,
    /// The form that the table's images have to have for it, where they have another.
    pub(super) next: Option<Form>,
}

impl Plans {
    pub(super) fn new(mut images: TableImages) -> Self {
        images.declared = images.declared.filter(|shape| !shape.columns.is_empty());
        if images.evolution == Evolution::Json && images.form == Form::Open {
            images.form = Form::Text;
        }
        Plans { images, made: Vec::new(), last: 0, dropped: BTreeSet::new(), untold: BTreeSet::new() }
    }

    pub(super) fn form(&self) -> &Form {
        &self.images.form
    }

    /// How images of this shape are read, or why none can be.
    pub(super) fn plan(&mut self, shape: Option<&Arc<RowShape>>, has_image: bool) -> Result<Plan, String> {
        let as_text = |next| Ok(Plan { columns: None, next });
        if !has_image || self.images.form == Form::Text {
            return as_text(None);
        }
        let own = shape.filter(|shape| !shape.columns.is_empty());
        let Some(shape) = own.or(self.images.declared.as_ref()).cloned() else {
            return match self.images.form {
                Form::Open => as_text(Some(Form::Text)),
                _ => Err("its columns are not known: the record does not say them, and none are declared".to_string()),
            };
        };
        let is = |made: &(Arc<RowShape>, _)| Arc::ptr_eq(&made.0, &shape);
        if !self.made.get(self.last).is_some_and(is) {
            let found = self.made.iter().position(is);
            self.last = match found.or_else(|| self.made.iter().position(|made| made.0 == shape)) {
                Some(index) => index,
                None => {
                    let plan = self.make(&shape);
                    // What would change the table is only sure to be once a row was good.
                    if !matches!(&plan, Ok(Plan { next: None, .. })) {
                        return plan;
                    }
                    self.keep(shape, plan)
                }
            };
        }
        self.made[self.last].1.clone()
    }

    fn make(&self, shape: &Arc<RowShape>) -> Result<Plan, String> {
        let is_strict = self.images.evolution == Evolution::Strict;
        let (known, is_open) = match &self.images.form {
            Form::Columns(columns) => (columns.clone(), false),
            _ => (TableColumns::default(), true),
        };
        let evolved = known.evolve(shape);
        if is_strict && !is_open && !evolved.changes.is_empty() {
            let changes: Vec<String> = evolved.changes.iter().map(ToString::to_string).collect();
            return Err(format!("its columns need what `evolution: strict` does not do: {}", changes.join(", ")));
        }
        let columns = Columns::new(shape.clone(), &evolved.columns, &evolved.places, !is_strict);
        let next = (is_open || !evolved.changes.is_empty()).then_some(Form::Columns(evolved.columns));
        Ok(Plan { columns: Some(Arc::new(columns)), next })
    }

    fn keep(&mut self, shape: Arc<RowShape>, plan: Result<Plan, String>) -> usize {
        if self.made.len() >= MOST_PLANS {
            self.made.clear();
        }
        self.made.push((shape, plan));
        self.made.len() - 1
    }

    /// Makes the table's images what a row needs them to be; says whether they were something else.
    pub(super) fn adopt(&mut self, plan: &Plan, has_unexpected: bool) -> bool {
        let mut is_other = false;
        if let Some(next) = &plan.next {
            self.images.form = next.clone();
            if let Some(columns) = &plan.columns {
                let kept = Plan { columns: Some(columns.clone()), next: None };
                self.last = self.keep(columns.shape().clone(), Ok(kept));
            }
            is_other = true;
        }
        if has_unexpected
            && let Form::Columns(columns) = &mut self.images.form
            && columns.unexpected().is_none()
        {
            *columns = columns.with_unexpected().columns;
            is_other = true;
        }
        is_other
    }

    /// Compares the columns of a record with those of the one before it in its partition.
    pub(super) fn note_dropped(&mut self, before: Option<&RowShape>, now: &RowShape) {
        let Some(before) = before else { return };
        let has = |shape: &RowShape, name: &str| shape.columns.iter().any(|column| column.name == name);
        for column in now.columns.iter().filter(|column| !has(before, &column.name)) {
            self.dropped.remove(&column.name);
        }
        for column in before.columns.iter().filter(|column| !has(now, &column.name)) {
            let is_renamed = now.columns.iter().any(|other| legal_name(&other.name) == legal_name(&column.name));
            if !is_renamed && self.dropped.insert(column.name.clone()) {
                self.untold.insert(column.name.clone());
            }
        }
    }

    pub(super) fn take_dropped(&mut self) -> Vec<ColumnChange> {
        std::mem::take(&mut self.untold).into_iter().map(|column| ColumnChange::Dropped { column }).collect()
    }
}
