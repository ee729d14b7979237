//! An embedded catalog: one SQLite file with the tables of the SQL catalog that pyiceberg, Java and Rust share.
//!
//! The file keeps SQLite's default journal. A write-ahead log would be a property of the file that every other program
//! inherits, and commits here are rare next to the files they name.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use iceberg::{TableRequirement, TableUpdate};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, named_params};

use super::{Catalog, Head, NewTable, Swap, pointer};
use crate::error::Kind;
use crate::ids::{TableName, check_part};
use crate::table::error::{Error, Result};
use crate::table::storage::{Storage, create_folder, write_kind};

/// How long a statement waits for another process's commit, which takes milliseconds.
const BUSY_TIMEOUT: Duration = Duration::from_secs(15);

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS iceberg_tables (
        catalog_name VARCHAR(255) NOT NULL,
        table_namespace VARCHAR(255) NOT NULL,
        table_name VARCHAR(255) NOT NULL,
        metadata_location VARCHAR(1000),
        previous_metadata_location VARCHAR(1000),
        iceberg_type VARCHAR(5),
        PRIMARY KEY (catalog_name, table_namespace, table_name)
    );
    CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (
        catalog_name VARCHAR(255) NOT NULL,
        namespace VARCHAR(255) NOT NULL,
        property_key VARCHAR(255) NOT NULL,
        property_value VARCHAR(1000) NOT NULL,
        PRIMARY KEY (catalog_name, namespace, property_key)
    );";

/// A catalog in an SQLite file.
///
/// Several catalogs can share a file; another program sees this one's tables when it opens the file under the same
/// `name`.
pub struct SqliteCatalog {
    name: String,
    path: PathBuf,
    warehouse: String,
    storage: Storage,
    connection: Arc<Mutex<Connection>>,
    /// Files made before views existed have no column that tells tables from views.
    typed: bool,
}

/// The file that a URI names: `lake/catalog.db`, `sqlite:lake/catalog.db` or `sqlite:///absolute/catalog.db`.
pub fn path_of(uri: &str) -> Result<PathBuf> {
    let path = match uri.strip_prefix("sqlite:") {
        Some(rest) => rest.strip_prefix("//").unwrap_or(rest),
        None => uri,
    };
    let path = path.split('?').next().unwrap_or_default();
    if path.is_empty() || path == ":memory:" || path.contains("://") {
        return Err(Error::Misconfigured {
            what: format!("`{uri}` does not name an SQLite file"),
            hint: "write a path such as `lake/catalog.db`, or `sqlite:///absolute/path/catalog.db`".to_string(),
        });
    }
    Ok(PathBuf::from(path))
}

impl SqliteCatalog {
    /// Opens the file; makes it, and its folder, when they are missing.
    pub async fn open(
        name: impl Into<String>,
        path: impl Into<PathBuf>,
        warehouse: impl Into<String>,
        storage: Storage,
    ) -> Result<Self> {
        let path: PathBuf = path.into();
        let file = path.clone();
        let (connection, typed) = blocking(move || connect(&file)).await?;
        Ok(SqliteCatalog {
            name: name.into(),
            path,
            warehouse: warehouse.into(),
            storage,
            connection: Arc::new(Mutex::new(connection)),
            typed,
        })
    }

    /// Works with the connection on a thread that may block.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> rusqlite::Result<T> {
        let connection = self.connection.clone();
        blocking(move || work(&mut connection.lock().unwrap_or_else(PoisonError::into_inner))).await
    }

    fn failed(&self, action: &'static str) -> impl Fn(rusqlite::Error) -> Error {
        let path = self.path.clone();
        move |error| failure(action, &path, error)
    }

    fn tables_only(&self) -> &'static str {
        if self.typed { "AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)" } else { "" }
    }

    async fn namespace_exists(&self, namespace: &str) -> Result<bool> {
        let (catalog, namespace) = (self.name.clone(), namespace.to_string());
        let found = self.run(move |connection| {
            let sql = "SELECT EXISTS (SELECT 1 FROM iceberg_namespace_properties
                    WHERE catalog_name = :catalog AND namespace = :namespace)
                OR EXISTS (SELECT 1 FROM iceberg_tables
                    WHERE catalog_name = :catalog AND table_namespace = :namespace)";
            let parameters = named_params! { ":catalog": catalog, ":namespace": namespace };
            connection.query_row(sql, parameters, |row| row.get(0))
        });
        found.await.map_err(self.failed("read"))
    }

    /// The pointer as it is now, or `None` where there is no such table.
    async fn pointer(&self, table: &TableName) -> Result<Option<String>> {
        let (catalog, table, only) = (self.name.clone(), table.clone(), self.tables_only());
        let found = self.run(move |connection| {
            let sql = format!(
                "SELECT metadata_location FROM iceberg_tables
                WHERE catalog_name = :catalog AND table_namespace = :namespace AND table_name = :table {only}"
            );
            let parameters =
                named_params! { ":catalog": catalog, ":namespace": table.namespace(), ":table": table.name() };
            connection.query_row(&sql, parameters, |row| row.get::<_, Option<String>>(0)).optional()
        });
        Ok(found.await.map_err(self.failed("read"))?.flatten())
    }

    fn missing(&self, table: &TableName) -> Error {
        Error::TableMissing { table: table.clone(), catalog: self.describe() }
    }
}

impl fmt::Debug for SqliteCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteCatalog")
            .field("name", &self.name)
            .field("path", &self.path)
            .field("warehouse", &self.warehouse)
            .finish()
    }
}

#[async_trait]
impl Catalog for SqliteCatalog {
    fn describe(&self) -> String {
        describe(&self.path)
    }

    async fn namespaces(&self) -> Result<Vec<String>> {
        let catalog = self.name.clone();
        let found = self.run(move |connection| {
            let sql = "SELECT namespace FROM iceberg_namespace_properties WHERE catalog_name = :catalog
                UNION SELECT table_namespace FROM iceberg_tables WHERE catalog_name = :catalog ORDER BY 1";
            let mut statement = connection.prepare(sql)?;
            let rows = statement.query_map(named_params! { ":catalog": catalog }, |row| row.get(0))?;
            rows.collect::<rusqlite::Result<Vec<String>>>()
        });
        let mut namespaces = found.await.map_err(self.failed("read"))?;
        // Nested namespaces are stored joined by dots; ours have one level.
        namespaces.retain(|namespace| !namespace.contains('.'));
        Ok(namespaces)
    }

    async fn create_namespace(&self, namespace: &str) -> Result<()> {
        check_part(namespace)?;
        let (catalog, namespace) = (self.name.clone(), namespace.to_string());
        let made = self.run(move |connection| insert_namespace(connection, &catalog, &namespace));
        made.await.map_err(self.failed("write"))
    }

    async fn tables(&self, namespace: &str) -> Result<Vec<TableName>> {
        let (catalog, space, only) = (self.name.clone(), namespace.to_string(), self.tables_only());
        let found = self.run(move |connection| {
            let sql = format!(
                "SELECT table_name FROM iceberg_tables
                WHERE catalog_name = :catalog AND table_namespace = :namespace {only} ORDER BY table_name"
            );
            let mut statement = connection.prepare(&sql)?;
            let parameters = named_params! { ":catalog": catalog, ":namespace": space };
            let rows = statement.query_map(parameters, |row| row.get(0))?;
            rows.collect::<rusqlite::Result<Vec<String>>>()
        });
        let names = found.await.map_err(self.failed("read"))?;
        if names.is_empty() && !self.namespace_exists(namespace).await? {
            return Err(Error::NamespaceMissing { namespace: namespace.to_string(), catalog: self.describe() });
        }
        Ok(super::nameable(namespace, names))
    }

    async fn head(&self, table: &TableName, known: Option<&Head>) -> Result<Head> {
        let location = self.pointer(table).await?.ok_or_else(|| self.missing(table))?;
        let metadata = pointer::read(&self.storage, table, &location, known).await?;
        Ok(Head::new(table, metadata, location))
    }

    async fn create(&self, new: NewTable) -> Result<Head> {
        let table = new.table.clone();
        let exists = || Error::TableExists { table: table.clone(), catalog: self.describe() };
        if self.pointer(&table).await?.is_some() {
            return Err(exists());
        }
        let location = new.location.clone().unwrap_or_else(|| pointer::default_location(&self.warehouse, &table));
        let staged = pointer::stage_first(&self.storage, new, location).await?;
        let (catalog, row, first, typed) = (self.name.clone(), table.clone(), staged.location.clone(), self.typed);
        let inserted = self.run(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            insert_namespace(&transaction, &catalog, row.namespace())?;
            let (column, value) = if typed { (", iceberg_type", ", 'TABLE'") } else { ("", "") };
            let sql = format!(
                "INSERT INTO iceberg_tables (catalog_name, table_namespace, table_name, metadata_location{column})
                VALUES (:catalog, :namespace, :table, :location{value})"
            );
            let parameters = named_params! {
                ":catalog": catalog, ":namespace": row.namespace(), ":table": row.name(), ":location": first,
            };
            transaction.execute(&sql, parameters)?;
            transaction.commit()
        });
        match inserted.await {
            Ok(()) => Ok(staged.into_head(&table)),
            Err(error) => {
                let code = error.sqlite_error_code();
                let failure = match code {
                    Some(ErrorCode::ConstraintViolation) => exists(),
                    _ => failure("write", &self.path, error),
                };
                // After a failed write the row may be there all the same, and name the file.
                if !matches!(code, Some(ErrorCode::SystemIoFailure) | None) {
                    pointer::discard(&self.storage, &staged).await;
                }
                Err(failure)
            }
        }
    }

    async fn swap(
        &self,
        base: &Head,
        requirements: &[TableRequirement],
        updates: &[TableUpdate],
    ) -> Result<Head, Swap> {
        let staged = pointer::stage(&self.storage, base, requirements, updates).await?;
        let (catalog, table, only) = (self.name.clone(), base.table.clone(), self.tables_only());
        let (from, to) = (base.metadata_location.clone(), staged.location.clone());
        let moved = self.run(move |connection| {
            let sql = format!(
                "UPDATE iceberg_tables SET metadata_location = :to, previous_metadata_location = :from
                WHERE catalog_name = :catalog AND table_namespace = :namespace AND table_name = :table {only}
                AND metadata_location = :from"
            );
            let parameters = named_params! {
                ":catalog": catalog, ":namespace": table.namespace(), ":table": table.name(), ":from": from, ":to": to,
            };
            connection.execute(&sql, parameters)
        });
        let swap = match moved.await {
            Ok(1) => {
                pointer::prune(&self.storage, &staged).await;
                return Ok(staged.into_head(&base.table));
            }
            Ok(_) => Swap::Lost,
            Err(error) => {
                let code = error.sqlite_error_code();
                let failure = failure("write", &self.path, error);
                match code {
                    Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Swap::Busy(failure),
                    // The journal may or may not have been taken back.
                    Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt) | None => Swap::Unknown(failure),
                    Some(_) => Swap::Failed(failure),
                }
            }
        };
        if !matches!(swap, Swap::Unknown(_)) {
            pointer::discard(&self.storage, &staged).await;
        }
        Err(swap)
    }

    async fn drop_table(&self, table: &TableName) -> Result<()> {
        let (catalog, row, only) = (self.name.clone(), table.clone(), self.tables_only());
        let deleted = self.run(move |connection| {
            let sql = format!(
                "DELETE FROM iceberg_tables
                WHERE catalog_name = :catalog AND table_namespace = :namespace AND table_name = :table {only}"
            );
            let parameters = named_params! { ":catalog": catalog, ":namespace": row.namespace(), ":table": row.name() };
            connection.execute(&sql, parameters)
        });
        match deleted.await.map_err(self.failed("write"))? {
            0 => Err(self.missing(table)),
            _ => Ok(()),
        }
    }
}

fn connect(path: &Path) -> Result<(Connection, bool)> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    if let Some(folder) = folder {
        let made = if folder.is_absolute() { create_folder(folder) } else { fs::create_dir_all(folder) };
        made.map_err(|error| Error::Storage {
            action: "create",
            location: folder.display().to_string(),
            kind: write_kind(&error),
            source: Arc::new(error),
        })?;
    }
    let failed = |error| failure("open", path, error);
    // Without `SQLITE_OPEN_URI`, which would give characters in the path a meaning of their own.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(failed)?;
    connection.busy_timeout(BUSY_TIMEOUT).map_err(failed)?;
    let there = "SELECT count(*) = 2 FROM sqlite_schema
        WHERE name IN ('iceberg_tables', 'iceberg_namespace_properties')";
    // Asked first, so that a file that may only be read can be read.
    if !connection.query_row(there, [], |row| row.get(0)).map_err(failed)? {
        connection.execute_batch(&format!("BEGIN IMMEDIATE; {TABLES} COMMIT;")).map_err(failed)?;
    }
    let typed = "SELECT count(*) = 1 FROM pragma_table_info('iceberg_tables') WHERE name = 'iceberg_type'";
    let typed = connection.query_row(typed, [], |row| row.get(0)).map_err(failed)?;
    Ok((connection, typed))
}

/// The marker row is what pyiceberg writes for a namespace without properties.
fn insert_namespace(connection: &Connection, catalog: &str, namespace: &str) -> rusqlite::Result<()> {
    let sql = "INSERT INTO iceberg_namespace_properties (catalog_name, namespace, property_key, property_value)
        SELECT :catalog, :namespace, 'exists', 'true' WHERE NOT EXISTS (
            SELECT 1 FROM iceberg_namespace_properties WHERE catalog_name = :catalog AND namespace = :namespace)";
    connection.execute(sql, named_params! { ":catalog": catalog, ":namespace": namespace })?;
    Ok(())
}

fn describe(path: &Path) -> String {
    format!("SQLite catalog `{}`", path.display())
}

fn failure(action: &'static str, path: &Path, error: rusqlite::Error) -> Error {
    let location = path.display().to_string();
    let storage = |kind, error| Error::Storage { action, location: location.clone(), kind, source: Arc::new(error) };
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Error::unreachable(describe(path), error),
        Some(ErrorCode::NotADatabase) => Error::Misconfigured {
            what: format!("`{location}` is not an SQLite file"),
            hint: "name another file as the catalog's `uri`; a missing one is created".to_string(),
        },
        Some(
            ErrorCode::ReadOnly
            | ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::AuthorizationForStatementDenied,
        ) => storage(Kind::Config, error),
        Some(ErrorCode::DatabaseCorrupt) => storage(Kind::Corrupt, error),
        Some(ErrorCode::DiskFull | ErrorCode::SystemIoFailure | ErrorCode::FileLockingProtocolFailed) => {
            storage(Kind::Unavailable, error)
        }
        // Tables of another shape under the same names.
        Some(ErrorCode::Unknown) => storage(Kind::Config, error),
        _ => storage(Kind::Bug, error),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down, and nobody is left to take an answer.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use iceberg::spec::{
        NestedField, PrimitiveType, Schema, SortOrder, Transform, Type, UnboundPartitionField, UnboundPartitionSpec,
    };
    use tempfile::TempDir;

    use super::*;
    use crate::table::storage::StorageOptions;

    async fn open(folder: &TempDir) -> SqliteCatalog {
        let warehouse = format!("file://{}/warehouse/", folder.path().display());
        let storage = Storage::new(StorageOptions::default()).unwrap();
        SqliteCatalog::open("shop", folder.path().join("lake/catalog.db"), warehouse, storage).await.unwrap()
    }

    fn orders() -> TableName {
        TableName::new("bronze", "orders").unwrap()
    }

    fn new_table(properties: &[(&str, &str)]) -> NewTable {
        let schema = Schema::builder().with_fields([
            NestedField::required(1, "id", Type::Primitive(PrimitiveType::Long)).into(),
            NestedField::optional(2, "at", Type::Primitive(PrimitiveType::Timestamptz)).into(),
        ]);
        let day =
            UnboundPartitionField::builder().source_id(2).name("at_day".to_string()).transform(Transform::Day).build();
        NewTable {
            table: orders(),
            schema: schema.build().unwrap(),
            partition_spec: UnboundPartitionSpec::builder().add_partition_fields([day]).unwrap().build(),
            sort_order: SortOrder::unsorted_order(),
            properties: properties.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            location: None,
        }
    }

    fn set(key: &str, value: &str) -> Vec<TableUpdate> {
        vec![TableUpdate::SetProperties { updates: HashMap::from([(key.to_string(), value.to_string())]) }]
    }

    fn metadata_files(folder: &TempDir) -> usize {
        fs::read_dir(folder.path().join("warehouse/bronze/orders/metadata")).unwrap().count()
    }

    #[test]
    fn a_uri_names_a_file() {
        let check = |uri: &str| path_of(uri).map(|path| path.display().to_string()).unwrap_or_default();
        assert_eq!(check("lake/catalog.db"), "lake/catalog.db");
        assert_eq!(check("sqlite:lake/x.db"), "lake/x.db");
        assert_eq!(check("sqlite:///abs/x.db?mode=rwc"), "/abs/x.db");
        assert_eq!(check("sqlite:/abs/x.db"), "/abs/x.db");
        for bad in ["", "sqlite:", "sqlite::memory:", "postgresql://host/db"] {
            assert_eq!(check(bad), "", "{bad}");
        }
        insta::assert_snapshot!(path_of("postgresql://host/db").unwrap_err(), @"`postgresql://host/db` does not name an SQLite file");
    }

    #[tokio::test]
    async fn a_table_is_made_found_moved_listed_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = open(&folder).await;
        assert!(matches!(catalog.tables("bronze").await, Err(Error::NamespaceMissing { .. })));
        assert!(matches!(catalog.head(&orders(), None).await, Err(Error::TableMissing { .. })));

        let made = catalog.create(new_table(&[("owner", "us")])).await.unwrap();
        assert_eq!(made.metadata.location(), format!("file://{}/warehouse/bronze/orders", folder.path().display()));
        assert_eq!(made.metadata.properties()["owner"], "us");
        assert_eq!(made.metadata.default_partition_spec().fields()[0].name, "at_day");
        assert!(matches!(catalog.create(new_table(&[])).await, Err(Error::TableExists { .. })));
        assert_eq!(metadata_files(&folder), 1, "the second one's file is gone");
        assert_eq!(catalog.namespaces().await.unwrap(), ["bronze"]);
        assert_eq!(catalog.tables("bronze").await.unwrap(), [orders()]);

        // Another process opens the same file.
        let other = open(&folder).await;
        let head = other.head(&orders(), None).await.unwrap();
        assert_eq!(head.metadata, made.metadata);
        let again = other.head(&orders(), Some(&head)).await.unwrap();
        assert!(Arc::ptr_eq(&again.metadata, &head.metadata), "a known head is not read again");

        let moved = other.swap(&head, &[], &set("a", "1")).await.unwrap();
        assert!(moved.metadata_location.contains("/metadata/00001-"), "{}", moved.metadata_location);
        assert_eq!(catalog.head(&orders(), Some(&made)).await.unwrap().metadata, moved.metadata);

        catalog.create_namespace("bronze").await.unwrap();
        catalog.drop_table(&orders()).await.unwrap();
        assert!(matches!(catalog.drop_table(&orders()).await, Err(Error::TableMissing { .. })));
        assert_eq!(catalog.tables("bronze").await.unwrap(), []);
        assert_eq!(metadata_files(&folder), 2, "files stay");
    }

    #[tokio::test]
    async fn of_racing_writers_one_wins_and_the_others_leave_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let head = open(&folder).await.create(new_table(&[])).await.unwrap();
        let racers = (0..8).map(|number| {
            let (folder, head) = (&folder, &head);
            async move { open(folder).await.swap(head, &[], &set("winner", &number.to_string())).await }
        });
        let outcomes = futures::future::join_all(racers).await;
        let won: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
        assert_eq!(won.len(), 1);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(_) | Err(Swap::Lost))));
        assert_eq!(open(&folder).await.head(&orders(), None).await.unwrap().metadata, won[0].metadata);
        assert_eq!(metadata_files(&folder), 2);
    }

    #[tokio::test]
    async fn a_requirement_the_base_does_not_meet_loses() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = open(&folder).await;
        let head = catalog.create(new_table(&[])).await.unwrap();
        let requirement = TableRequirement::CurrentSchemaIdMatch { current_schema_id: 7 };
        let outcome = catalog.swap(&head, &[requirement], &set("a", "1")).await;
        assert!(matches!(outcome, Err(Swap::Lost)));
        let outcome = catalog.swap(&head, &[], &[TableUpdate::SetCurrentSchema { schema_id: 7 }]).await;
        assert!(matches!(outcome, Err(Swap::Failed(Error::Change { .. }))));
        let feature = match catalog.swap(&head, &[], &set("encryption.key-id", "k")).await {
            Err(Swap::Failed(Error::Unsupported { feature, .. })) => feature,
            outcome => panic!("{outcome:?}"),
        };
        assert_eq!(feature, "encryption");
        assert_eq!(metadata_files(&folder), 1);
    }

    #[tokio::test]
    async fn metadata_files_that_fall_off_the_log_are_deleted_when_asked() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = open(&folder).await;
        let asked =
            [("write.metadata.previous-versions-max", "3"), ("write.metadata.delete-after-commit.enabled", "true")];
        let mut head = catalog.create(new_table(&asked)).await.unwrap();
        for number in 0..10 {
            head = catalog.swap(&head, &[], &set("n", &number.to_string())).await.unwrap();
        }
        assert_eq!(metadata_files(&folder), 4);
        for entry in head.metadata.metadata_log() {
            assert!(catalog.storage.exists(&entry.metadata_file).await.unwrap());
        }
        head = catalog.swap(&head, &[], &set("write.metadata.delete-after-commit.enabled", "false")).await.unwrap();
        catalog.swap(&head, &[], &set("n", "x")).await.unwrap();
        assert_eq!(metadata_files(&folder), 6);
    }

    #[tokio::test]
    async fn a_file_that_somebody_holds_is_busy_and_nothing_is_applied() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = open(&folder).await;
        let head = catalog.create(new_table(&[])).await.unwrap();
        catalog.run(|connection| connection.busy_timeout(Duration::ZERO)).await.unwrap();
        let holder = Connection::open(folder.path().join("lake/catalog.db")).unwrap();
        holder.execute_batch("BEGIN IMMEDIATE").unwrap();
        let outcome = catalog.swap(&head, &[], &set("a", "1")).await;
        assert!(matches!(outcome, Err(Swap::Busy(Error::Unreachable { .. }))), "{outcome:?}");
        assert_eq!(metadata_files(&folder), 1);
        holder.execute_batch("COMMIT").unwrap();
        catalog.swap(&head, &[], &set("a", "1")).await.unwrap();
    }

    #[tokio::test]
    async fn compressed_metadata_is_read_and_written() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = open(&folder).await;
        let head = catalog.create(new_table(&[("write.metadata.compression-codec", "gzip")])).await.unwrap();
        assert!(head.metadata_location.ends_with(".gz.metadata.json"), "{}", head.metadata_location);
        let head = catalog.head(&orders(), None).await.unwrap();
        let plain = set("write.metadata.compression-codec", "none");
        let head = catalog.swap(&head, &[], &plain).await.unwrap();
        assert!(!head.metadata_location.ends_with(".gz.metadata.json"), "{}", head.metadata_location);
        assert_eq!(catalog.head(&orders(), None).await.unwrap().metadata, head.metadata);
    }

    #[tokio::test]
    async fn a_file_without_types_and_a_table_with_another_name_for_its_metadata_work() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(&folder).await.create(new_table(&[])).await.unwrap();
        let metadata = folder.path().join("warehouse/bronze/orders/metadata");
        let hadoop = format!("{}/v3.metadata.json", first.metadata_location.rsplit_once('/').unwrap().0);
        let current = first.metadata_location.strip_prefix("file://").unwrap();
        fs::copy(current, metadata.join("v3.metadata.json")).unwrap();
        let file = folder.path().join("lake/catalog.db");
        let connection = Connection::open(&file).unwrap();
        connection.execute("ALTER TABLE iceberg_tables DROP COLUMN iceberg_type", []).unwrap();
        connection.execute("UPDATE iceberg_tables SET metadata_location = ?1", [&hadoop]).unwrap();
        connection.execute("INSERT INTO iceberg_tables VALUES ('shop', 'bronze', 'Odd-Name', 'x', NULL)", []).unwrap();
        connection.execute("INSERT INTO iceberg_tables VALUES ('other', 'bronze', 'orders', 'x', NULL)", []).unwrap();

        let catalog = open(&folder).await;
        let head = catalog.head(&orders(), None).await.unwrap();
        assert_eq!(head.metadata_location, hadoop);
        let moved = catalog.swap(&head, &[], &set("a", "1")).await.unwrap();
        assert!(moved.metadata_location.contains("/metadata/00004-"), "{}", moved.metadata_location);
        assert_eq!(moved.metadata.metadata_log().last().unwrap().metadata_file, hadoop);
        assert_eq!(catalog.tables("bronze").await.unwrap(), [orders()]);
        catalog.drop_table(&orders()).await.unwrap();
        catalog.create(new_table(&[])).await.unwrap();
    }

    #[tokio::test]
    async fn metadata_that_cannot_be_used_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let catalog = open(&folder).await;
        let head = catalog.create(new_table(&[])).await.unwrap();
        let file = head.metadata_location.strip_prefix("file://").unwrap();
        let text = fs::read_to_string(file).unwrap();
        let check = async |text: Option<&str>| {
            match text {
                Some(text) => fs::write(file, text).unwrap(),
                None => fs::remove_file(file).unwrap(),
            }
            let error = catalog.head(&orders(), None).await.unwrap_err();
            error
                .to_string()
                .replace(&folder.path().display().to_string(), "")
                .replace(file.rsplit('/').next().unwrap(), "00000.metadata.json")
        };
        let changed = text.replace("\"format-version\":2", "\"format-version\":3");
        let changed = changed.replacen('{', "{\"next-row-id\":0,", 1);
        insta::assert_snapshot!(check(Some(&changed)).await, @"table `bronze.orders` uses format version 3, which icestream does not read or write");
        let changed = text.replace("\"format-version\":2", "\"format-version\":9");
        insta::assert_snapshot!(check(Some(&changed)).await, @"table `bronze.orders` uses format version 9, which icestream does not read or write");
        insta::assert_snapshot!(check(Some("{}")).await, @"table `bronze.orders` cannot be read: its metadata file `file:///warehouse/bronze/orders/metadata/00000.metadata.json` does not parse");
        insta::assert_snapshot!(check(None).await, @"table `bronze.orders` cannot be read: its metadata file `file:///warehouse/bronze/orders/metadata/00000.metadata.json` is not there");
    }

    #[tokio::test]
    async fn a_file_that_is_something_else_is_refused_and_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::new(StorageOptions::default()).unwrap();
        let path = folder.path().join("notes.txt");
        let text = "not a database, but long enough to be taken for one at first sight: ".repeat(20);
        fs::write(&path, &text).unwrap();
        let check = async |path: &Path| {
            let error = SqliteCatalog::open("shop", path, "/tmp/w", storage.clone()).await.unwrap_err();
            crate::error::Error::from(error).render().replace(&folder.path().display().to_string(), "")
        };
        insta::assert_snapshot!(check(&path).await, @"
        error: `/notes.txt` is not an SQLite file
          hint: name another file as the catalog's `uri`; a missing one is created
        ");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        insta::assert_snapshot!(check(&path.join("catalog.db")).await, @"
        error: cannot create `/notes.txt`
          caused by: File exists (os error 17)
          hint: check that the location exists and that this process may write there
        ");
        insta::assert_snapshot!(check(folder.path()).await, @"
        error: cannot open ``
          caused by: unable to open database file: 
          caused by: Error code 14: unable to open database file
          hint: check that the location exists and that this process may write there
        ");
    }

    #[test]
    fn what_sqlite_reports_is_told_as_a_situation() {
        let check = |code: std::ffi::c_int| {
            let error = rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
            crate::error::Error::from(failure("write", Path::new("lake/catalog.db"), error)).render()
        };
        insta::assert_snapshot!(check(rusqlite::ffi::SQLITE_READONLY), @"
        error: cannot write `lake/catalog.db`
          caused by: Error code 8: attempt to write a readonly database
          hint: check that the location exists and that this process may write there
        ");
        insta::assert_snapshot!(check(rusqlite::ffi::SQLITE_BUSY), @"
        error: SQLite catalog `lake/catalog.db` does not answer
          caused by: Error code 5: database is locked
        ");
        insta::assert_snapshot!(check(rusqlite::ffi::SQLITE_FULL), @"
        error: cannot write `lake/catalog.db`
          caused by: Error code 13: database or disk is full
        ");
    }
}
