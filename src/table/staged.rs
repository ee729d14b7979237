//! A table as it would be once a change is committed.

use std::sync::Arc;

use roaring::RoaringTreemap;

use super::error::Result;
use super::scan::Selection;
use super::{EvolvedSchema, ScanFile, TableView, WrittenFile};

impl TableView {
    /// The rows that are there once a change of this view is committed: without `gone`, and with what was written. They
    /// are read under the new schema, where the change has one.
    pub async fn with_staged(
        &self,
        gone: &[(ScanFile, RoaringTreemap)],
        written: &[WrittenFile],
        schema: Option<&EvolvedSchema>,
    ) -> Result<TableView> {
        let files = self.files(None).await?;
        let mut left_out = self.deleted_positions(&files).await?;
        for (file, positions) in gone {
            let known = left_out.entry(file.path.clone()).or_default();
            Arc::make_mut(known).extend(positions.iter());
        }
        self.selection_of(files, written, left_out, schema)
    }

    /// Only the rows that were written.
    pub fn of_staged(&self, written: &[WrittenFile], schema: Option<&EvolvedSchema>) -> Result<TableView> {
        self.selection_of(Vec::new(), written, Default::default(), schema)
    }

    fn selection_of(
        &self,
        mut files: Vec<ScanFile>,
        written: &[WrittenFile],
        left_out: super::scan::DeletedPositions,
        schema: Option<&EvolvedSchema>,
    ) -> Result<TableView> {
        files.extend(written.iter().filter(|file| !file.holds_deletes()).map(|file| ScanFile {
            path: file.path().to_string(),
            size: file.bytes(),
            record_count: file.rows(),
            deletes: Vec::new(),
            data: Arc::new(file.file.clone()),
            spec_id: file.spec_id,
            sequence: self.sequence_number() + 1,
            added: self.sequence_number() + 1,
            manifest: "".into(),
        }));
        self.selecting(Selection { files, left_out }, schema.map(|evolved| evolved.schema.clone()))
    }
}
