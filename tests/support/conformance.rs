//! The table layer's contract, the same for every catalog and storage.
//!
//! Each case gets a world with a namespace of its own. `conformance!` makes a test of every case.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arrow::datatypes::{DataType, Field};
use async_trait::async_trait;
use futures::TryStreamExt;
use iceberg::{TableRequirement, TableUpdate};
use icestream::clock::Clock;
use icestream::ids::TableName;
use icestream::table::catalog::{Catalog, Head, NewTable, Swap};
use icestream::table::{
    At, Broken, CompactionPolicy, Error, Expiry, Lake, Premise, SchemaChange, Table, TableDefinition,
};

use crate::support::*;

#[macro_export]
macro_rules! conformance {
    ($world:expr) => {
        $crate::conformance!($world;
            a_table_is_made_listed_loaded_and_dropped,
            rows_that_were_appended_are_read_back,
            deleted_rows_are_gone_and_counted,
            an_overwrite_replaces_files_and_their_deletes,
            an_overwrite_of_a_file_that_is_gone_is_refused,
            a_rewrite_keeps_the_rows_and_yields_to_new_deletes,
            replacing_everything_leaves_only_the_new,
            a_schema_change_is_visible_at_once_and_committed_with_rows,
            of_two_schema_changes_the_second_plans_again,
            properties_are_set_and_removed,
            a_marker_moves_with_the_rows_and_survives_expiry,
            of_two_writers_of_one_range_one_wins,
            two_writers_of_different_rows_both_win,
            eight_writers_lose_and_double_nothing,
            a_lost_response_is_found_in_the_history,
            a_commit_that_was_not_applied_is_made_again,
            expired_snapshots_take_their_files_along,
            old_states_can_be_read,
            many_commits_leave_few_manifests_and_metadata_files,
            crash_leftovers_are_listed_as_orphans,
            orphans_are_removed_past_their_grace,
            rewritten_rows_keep_their_age,
            delete_files_are_put_together_beside_new_deletes,
            manifests_are_put_together_when_asked,
            a_merge_outlives_a_rewrite_of_other_files,
            an_expiry_keeps_what_others_go_on_from,
        );
    };
    ($world:expr; $($case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                $crate::conformance::$case($world.await).await;
            }
        )*
    };
}

pub async fn a_table_is_made_listed_loaded_and_dropped(world: World) {
    let name = world.table("orders");
    assert!(world.lake.table_if_exists(&name).await.unwrap().is_none());
    assert_eq!(world.lake.tables(&world.namespace).await.unwrap(), vec![]);
    let made = world.create_with("orders", &["bucket(4, id)"], &[("owner.team", "sales")]).await;
    assert_eq!(made.properties().get("owner.team").map(String::as_str), Some("sales"));
    assert_eq!(made.summary().partition, "bucket(4, id)");
    let again = TableDefinition {
        name: name.clone(),
        schema: Arc::new(schema()),
        partition: vec![],
        properties: Default::default(),
    };
    assert!(matches!(world.lake.create(&again).await.unwrap_err(), Error::TableExists { .. }));
    world.create("customers").await;
    let names: Vec<String> =
        world.lake.tables(&world.namespace).await.unwrap().iter().map(|name| name.name().to_string()).collect();
    assert_eq!(names, ["customers", "orders"]);
    let loaded = world.lake.table(&name).await.unwrap();
    assert_eq!(loaded.metadata_location(), made.metadata_location());
    assert_eq!(loaded.snapshot_id(), None);
    assert_eq!(read(&loaded).await, BTreeMap::new());

    append(&loaded, [(1, 1)]).await;
    world.lake.drop_table(&name, true).await.unwrap();
    assert!(matches!(world.lake.table(&name).await.unwrap_err(), Error::TableMissing { .. }));
    assert!(matches!(world.lake.drop_table(&name, false).await.unwrap_err(), Error::TableMissing { .. }));
    let remade = world.create("orders").await;
    assert_eq!(read(&remade).await, BTreeMap::new());
}

pub async fn rows_that_were_appended_are_read_back(world: World) {
    let table = world.create_with("orders", &["bucket(4, id)"], &[]).await;
    let first = append(&table, (0..100).map(|id| (id, id as i32))).await;
    assert!(first.snapshot_id.is_some());
    let second = append(&first.table, (100..150).map(|id| (id, 7))).await;
    let mut expected: BTreeMap<i64, i64> = (0..100).map(|id| (id, id)).collect();
    expected.extend((100..150).map(|id| (id, 7)));
    assert_eq!(read(&second.table).await, expected);
    assert_eq!(total(&second.table, "total-records"), "150");
    assert_eq!(total(&second.table, "added-records"), "50");
    assert_eq!(total(&second.table, "total-delete-files"), "0");
    let mut reloaded = table.clone();
    reloaded.refresh().await.unwrap();
    assert_eq!(read(&reloaded).await, expected);
    assert_eq!(reloaded.snapshot_id(), second.snapshot_id);
}

pub async fn deleted_rows_are_gone_and_counted(world: World) {
    let table = world.create_with("orders", &["bucket(2, id)"], &[]).await;
    let table = append(&table, (0..20).map(|id| (id, 1))).await.table;
    let table = append(&table, (20..40).map(|id| (id, 1))).await.table;
    let table = delete(&table, &[3, 25]).await.table;
    // Deletes of rows beside deleted rows add up.
    let table = delete(&table, &[4, 26, 39]).await.table;
    let expected: BTreeSet<i64> = (0..40).filter(|id| ![3, 4, 25, 26, 39].contains(id)).collect();
    assert_eq!(read(&table).await.into_keys().collect::<BTreeSet<_>>(), expected);
    assert_eq!(total(&table, "total-records"), "40");
    assert_eq!(total(&table, "total-position-deletes"), "5");
    let operation = &table.snapshots().into_iter().find(|s| s.is_current).unwrap().operation;
    assert_eq!(operation, "delete");

    // Written anew with those before, they take the place of the delete files before.
    let view = table.view(At::Head).unwrap();
    let mut anew = positions_of(&table, &[5, 27]).await;
    let files: Vec<_> = anew.iter().map(|(file, _)| file.clone()).collect();
    let before = view.deleted_positions(&files).await.unwrap();
    for (file, positions) in &mut anew {
        if let Some(before) = before.get(&file.path) {
            *positions |= before.as_ref();
        }
    }
    let deletes = table.write_deletes_anew(&anew).await.unwrap();
    let table = table.change().row_delta(&view, vec![], deletes).commit().await.unwrap().table;
    let expected: BTreeSet<i64> = expected.into_iter().filter(|id| ![5, 27].contains(id)).collect();
    assert_eq!(read(&table).await.into_keys().collect::<BTreeSet<_>>(), expected);
    assert_eq!(total(&table, "total-position-deletes"), "7");
    for file in table.view(At::Head).unwrap().files(None).await.unwrap() {
        let is_anew = files.iter().any(|known| known.path == file.path);
        assert!(!is_anew || file.own_deletes().count() == 1, "{file:?}");
    }

    // An update is a delete and an insert in one commit, and the inserted row is not deleted by it.
    let view = table.view(At::Head).unwrap();
    let deletes = table.write_deletes(&positions_of(&table, &[10]).await).await.unwrap();
    let added = write(&table, &rows([(10, 99)])).await;
    let table = table.change().row_delta(&view, added, deletes).commit().await.unwrap().table;
    assert_eq!(read(&table).await.get(&10), Some(&99));
    assert_eq!(read(&table).await.len(), 33);
}

pub async fn an_overwrite_replaces_files_and_their_deletes(world: World) {
    let table = world.create("orders").await;
    let table = append(&table, (0..10).map(|id| (id, 1))).await.table;
    let table = append(&table, (10..20).map(|id| (id, 1))).await.table;
    let table = delete(&table, &[2]).await.table;
    let view = table.view(At::Head).unwrap();
    let doomed: Vec<_> = view.files(None).await.unwrap().into_iter().filter(|file| !file.deletes.is_empty()).collect();
    assert_eq!(doomed.len(), 1);
    let added = write(&table, &rows((0..10).filter(|id| *id != 2).map(|id| (id, 5)))).await;
    let table = table.change().overwrite(&view, doomed, added).commit().await.unwrap().table;
    let expected: BTreeMap<i64, i64> =
        (0..20).filter(|id| *id != 2).map(|id| (id, if id < 10 { 5 } else { 1 })).collect();
    assert_eq!(read(&table).await, expected);
    assert_eq!(total(&table, "total-delete-files"), "0");
    assert_eq!(total(&table, "total-data-files"), "2");
    assert_eq!(total(&table, "total-records"), "19");
    assert_eq!(total(&table, "deleted-records"), "10");
}

pub async fn an_overwrite_of_a_file_that_is_gone_is_refused(world: World) {
    let table = world.create("orders").await;
    let table = append(&table, (0..10).map(|id| (id, 1))).await.table;
    let view = table.view(At::Head).unwrap();
    let doomed = view.files(None).await.unwrap();
    let mine = write(&table, &rows([(1, 2)])).await;
    let theirs = write(&table, &rows([(1, 3)])).await;
    table.change().overwrite(&view, doomed.clone(), theirs).commit().await.unwrap();
    let error = table.change().overwrite(&view, doomed.clone(), mine.clone()).commit().await.unwrap_err();
    assert!(matches!(error, Error::PremiseBroken { broken: Broken::FileGone { .. }, .. }), "{error:?}");
    // Deletes of rows in a file that is gone are refused as well.
    let rows_of = vec![(doomed[0].clone(), roaring::RoaringTreemap::from_iter([0u64]))];
    let deletes = table.write_deletes(&rows_of).await.unwrap();
    let error = table.change().row_delta(&view, vec![], deletes).commit().await.unwrap_err();
    assert!(matches!(error, Error::PremiseBroken { broken: Broken::FileGone { .. }, .. }), "{error:?}");
    let mut table = table;
    table.refresh().await.unwrap();
    assert_eq!(read(&table).await, BTreeMap::from([(1, 3)]));
    table.discard(&mine).await;
}

pub async fn a_rewrite_keeps_the_rows_and_yields_to_new_deletes(world: World) {
    let mut table = world.create("orders").await;
    for batch in 0..4 {
        table = append(&table, (batch * 10..batch * 10 + 10).map(|id| (id, 1))).await.table;
    }
    table = delete(&table, &[5, 15]).await.table;
    let view = table.view(At::Head).unwrap();
    let old = view.files(None).await.unwrap();
    let live: Vec<(i64, i32)> = read(&table).await.into_iter().map(|(id, qty)| (id, qty as i32)).collect();
    let compacted = write(&table, &rows(live.clone())).await;

    // Rows of the old files are deleted before the rewrite commits: it would bring them back.
    let raced = delete(&table, &[7]).await.table;
    let error = table.change().rewrite(&view, old.clone(), compacted.clone()).commit().await.unwrap_err();
    assert!(matches!(error, Error::PremiseBroken { broken: Broken::NewDeletes { .. }, .. }), "{error:?}");
    raced.discard(&compacted).await;
    assert_eq!(read(&raced).await.len(), 37);

    // Planned again, it goes through; appends meanwhile do not hinder it.
    let view = raced.view(At::Head).unwrap();
    let old = view.files(None).await.unwrap();
    let live: Vec<(i64, i32)> = read(&raced).await.into_iter().map(|(id, qty)| (id, qty as i32)).collect();
    let compacted = write(&raced, &rows(live)).await;
    append(&raced, [(100, 1)]).await;
    let table = raced.change().rewrite(&view, old, compacted).commit().await.unwrap().table;
    let expected: BTreeSet<i64> = (0..40).filter(|id| ![5, 15, 7].contains(id)).chain([100]).collect();
    assert_eq!(read(&table).await.into_keys().collect::<BTreeSet<_>>(), expected);
    assert_eq!(total(&table, "total-data-files"), "2");
    assert_eq!(total(&table, "total-delete-files"), "0");
    let current = table.snapshots().into_iter().find(|snapshot| snapshot.is_current).unwrap();
    assert_eq!(current.operation, "replace");
}

pub async fn replacing_everything_leaves_only_the_new(world: World) {
    let table = world.create_with("revenue", &["bucket(2, id)"], &[]).await;
    let table = append(&table, (0..10).map(|id| (id, 1))).await.table;
    let table = delete(&table, &[1]).await.table;
    let before = table.snapshot_id();
    let added = write(&table, &rows([(1, 10), (2, 20)])).await;
    let stale = Premise::new().head_is(None);
    let error = table.change().replace_all(added.clone()).premise(stale).commit().await.unwrap_err();
    assert!(matches!(error, Error::PremiseBroken { broken: Broken::Head { .. }, .. }), "{error:?}");
    let table = table.change().replace_all(added).premise(Premise::new().head_is(before)).commit().await.unwrap().table;
    assert_eq!(read(&table).await, BTreeMap::from([(1, 10), (2, 20)]));
    assert_eq!(total(&table, "total-records"), "2");
    assert_eq!(total(&table, "total-delete-files"), "0");
    let emptied = table.change().replace_all(vec![]).commit().await.unwrap().table;
    assert_eq!(read(&emptied).await, BTreeMap::new());
    assert_eq!(total(&emptied, "total-files-size"), "0");
}

pub async fn a_schema_change_is_visible_at_once_and_committed_with_rows(world: World) {
    let table = world.create("orders").await;
    let table = append(&table, [(1, 1)]).await.table;
    // A schema alone: readers that go by the snapshot's schema see it too, because there is a new snapshot.
    let change =
        SchemaChange::new().add(None, Field::new("code", DataType::Utf8, true)).promote("qty", DataType::Int64);
    let evolved = table.evolve(&change).unwrap().unwrap();
    let before = table.snapshot_id();
    let table = table.change().schema(evolved).commit().await.unwrap().table;
    assert_ne!(table.snapshot_id(), before);
    let columns: Vec<String> = table.schema().unwrap().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(columns, ["id", "qty", "note", "code"]);
    assert_eq!(table.view(At::Head).unwrap().arrow_schema().field(1).data_type(), &DataType::Int64);
    assert!(table.evolve(&change).unwrap().is_none());

    // A schema with the rows that need it.
    let change = SchemaChange::new().add(None, Field::new("rank", DataType::Int32, true));
    let evolved = table.evolve(&change).unwrap().unwrap();
    let mut writer = table.writer(Some(&evolved)).unwrap();
    let batch = rows([(2, 2)]);
    let mut fields: Vec<_> = batch.schema().fields().iter().cloned().collect();
    fields.push(Arc::new(Field::new("rank", DataType::Int32, true)));
    let mut columns = batch.columns().to_vec();
    columns.push(Arc::new(arrow::array::Int32Array::from(vec![5])));
    let batch = arrow::array::RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields)), columns).unwrap();
    writer.write(&batch).await.unwrap();
    let files = writer.finish().await.unwrap();
    let table = table.change().append(files).schema(evolved).commit().await.unwrap().table;
    assert_eq!(read(&table).await, BTreeMap::from([(1, 1), (2, 2)]));
    assert_eq!(table.schema().unwrap().fields().len(), 5);
    // An old state shows the columns it had.
    let first = table.snapshots()[0].id;
    assert_eq!(table.view(At::Snapshot(first)).unwrap().arrow_schema().fields().len(), 3);
}

pub async fn of_two_schema_changes_the_second_plans_again(world: World) {
    let table = world.create("orders").await;
    let add = |name: &str| SchemaChange::new().add(None, Field::new(name, DataType::Utf8, true));
    let mine = table.evolve(&add("mine")).unwrap().unwrap();
    let theirs = table.evolve(&add("theirs")).unwrap().unwrap();
    table.change().schema(theirs).commit().await.unwrap();
    let error = table.change().schema(mine).commit().await.unwrap_err();
    assert!(matches!(error, Error::PremiseBroken { broken: Broken::Schema { .. }, .. }), "{error:?}");
    let mut table = table;
    table.refresh().await.unwrap();
    let mine = table.evolve(&add("mine")).unwrap().unwrap();
    let table = table.change().schema(mine).commit().await.unwrap().table;
    let columns: Vec<String> = table.schema().unwrap().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(columns, ["id", "qty", "note", "theirs", "mine"]);
}

pub async fn properties_are_set_and_removed(world: World) {
    let table = world.create("orders").await;
    let committed = table.change().set_property("a", "1").set_property("b", "2").commit().await.unwrap();
    assert_eq!(committed.snapshot_id, None);
    let committed = committed.table.change().remove_property("a").commit().await.unwrap();
    let mut table = table;
    table.refresh().await.unwrap();
    assert_eq!(table.properties().get("a"), None);
    assert_eq!(table.properties().get("b").map(String::as_str), Some("2"));
    assert_eq!(committed.table.metadata_location(), table.metadata_location());
    // With rows, in the same commit.
    let files = write(&table, &rows([(1, 1)])).await;
    let table = table.change().append(files).set_property("c", "3").commit().await.unwrap().table;
    assert_eq!(table.properties().get("c").map(String::as_str), Some("3"));
    assert_eq!(read(&table).await.len(), 1);
    assert!(matches!(table.change().commit().await.unwrap_err(), Error::Change { .. }));
}

pub async fn a_marker_moves_with_the_rows_and_survives_expiry(world: World) {
    let table = world.create("orders").await;
    assert_eq!(table.marker("icestream.offsets"), None);
    let files = write(&table, &rows([(1, 1)])).await;
    let premise = Premise::new().marker_moves("icestream.offsets", None, "10".to_string());
    let table = table.change().append(files).premise(premise).commit().await.unwrap().table;
    assert_eq!(table.marker("icestream.offsets").as_deref(), Some("10"));
    // A commit that knows nothing of the marker carries it on.
    let table = append(&table, [(2, 2)]).await.table;
    assert_eq!(total(&table, "icestream.offsets"), "10");
    let table = append(&table, [(3, 3)]).await.table;
    let expired =
        table.expire(&Expiry { older_than_ms: i64::MAX, retain_last: 1, ..Default::default() }).await.unwrap();
    assert_eq!(expired.snapshots.len(), 2);
    let mut table = table;
    table.refresh().await.unwrap();
    assert_eq!(table.marker("icestream.offsets").as_deref(), Some("10"));
    // A marker moves on its own, too: a range of records without rows.
    let premise = Premise::new().marker_moves("icestream.offsets", Some("10".to_string()), "20".to_string());
    let table = table.change().premise(premise).commit().await.unwrap().table;
    assert_eq!(table.marker("icestream.offsets").as_deref(), Some("20"));
    assert_eq!(table.properties().get("icestream.offsets").map(String::as_str), Some("20"));
}

pub async fn of_two_writers_of_one_range_one_wins(world: World) {
    let table = world.create("orders").await;
    let contender = |table: Table, qty: i32| async move {
        let files = write(&table, &rows([(1, qty), (2, qty)])).await;
        let premise = Premise::new().marker_moves("icestream.offsets", None, "2".to_string());
        let outcome = table.change().append(files.clone()).premise(premise).commit().await;
        if outcome.is_err() {
            table.discard(&files).await;
        }
        outcome
    };
    let (one, two) = tokio::join!(contender(table.clone(), 1), contender(table.clone(), 2));
    let lost: Vec<&Error> = [&one, &two].into_iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert_eq!(lost.len(), 1, "{one:?} {two:?}");
    assert!(matches!(lost[0], Error::PremiseBroken { broken: Broken::Marker { .. }, .. }), "{lost:?}");
    let mut table = table;
    table.refresh().await.unwrap();
    let found = read(&table).await;
    assert_eq!(found.len(), 2);
    assert_eq!(found.values().collect::<BTreeSet<_>>().len(), 1);
    // The loser left nothing behind.
    assert_eq!(leftovers(&table).await, [] as [String; 0]);
}

/// Files of ours that no snapshot names. A REST catalog's server writes metadata files itself, and leaves those of its
/// lost races.
async fn leftovers(table: &Table) -> Vec<String> {
    let is_the_servers =
        |path: &str| path.ends_with(".metadata.json") && table.lake().catalog().describe().contains("REST");
    let orphans = table.orphans(i64::MAX).await.unwrap();
    orphans.into_iter().map(|orphan| orphan.path).filter(|path| !is_the_servers(path)).collect()
}

pub async fn two_writers_of_different_rows_both_win(world: World) {
    let table = world.create("orders").await;
    let (one, two) = (write(&table, &rows([(1, 1)])).await, write(&table, &rows([(2, 2)])).await);
    // Both stand on the same head.
    let first = table.change().append(one).commit().await.unwrap();
    let second = table.change().append(two).commit().await.unwrap();
    assert_eq!((first.attempts, second.attempts), (1, 2));
    assert_eq!(read(&second.table).await, BTreeMap::from([(1, 1), (2, 2)]));
}

/// Every writer commits its rows one commit at a time; every acknowledged row is there once.
pub async fn eight_writers_lose_and_double_nothing(world: World) {
    let commits = std::env::var("ICESTREAM_RACE_COMMITS").ok().and_then(|text| text.parse().ok()).unwrap_or(50);
    race(world, 8, commits).await;
}

pub async fn race(world: World, writers: i64, commits: i64) {
    let table = world.create("orders").await;
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let mut table = table.clone();
        tasks.spawn(async move {
            for commit in 0..commits {
                let id = writer * 1_000_000 + commit;
                table = append(&table, [(id, writer as i32)]).await.table;
            }
        });
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome.unwrap();
    }
    let mut table = table;
    table.refresh().await.unwrap();
    let expected: BTreeMap<i64, i64> =
        (0..writers).flat_map(|writer| (0..commits).map(move |commit| (writer * 1_000_000 + commit, writer))).collect();
    assert_eq!(read(&table).await, expected);
    assert_eq!(total(&table, "total-records"), (writers * commits).to_string());
    assert_eq!(table.snapshots().len() as i64, writers * commits);
    assert_eq!(leftovers(&table).await, [] as [String; 0]);
}

/// A catalog whose answers get lost: before the request is sent, or after it was carried out.
#[derive(Debug)]
struct Forgetful {
    inner: Arc<dyn Catalog>,
    /// Answers still to be lost.
    losses: AtomicU32,
    applies: bool,
}

#[async_trait]
impl Catalog for Forgetful {
    fn describe(&self) -> String {
        self.inner.describe()
    }
    async fn namespaces(&self) -> Result<Vec<String>, Error> {
        self.inner.namespaces().await
    }
    async fn create_namespace(&self, namespace: &str) -> Result<(), Error> {
        self.inner.create_namespace(namespace).await
    }
    async fn tables(&self, namespace: &str) -> Result<Vec<TableName>, Error> {
        self.inner.tables(namespace).await
    }
    async fn head(&self, table: &TableName, known: Option<&Head>) -> Result<Head, Error> {
        self.inner.head(table, known).await
    }
    async fn create(&self, new: NewTable) -> Result<Head, Error> {
        self.inner.create(new).await
    }
    async fn swap(
        &self,
        base: &Head,
        requirements: &[TableRequirement],
        updates: &[TableUpdate],
    ) -> Result<Head, Swap> {
        let loses = self.losses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if !loses {
            return self.inner.swap(base, requirements, updates).await;
        }
        if self.applies {
            self.inner.swap(base, requirements, updates).await?;
        }
        let source = std::io::Error::other("the connection was reset");
        Err(Swap::Unknown(Error::Unreachable { what: self.describe(), source: Arc::new(source) }))
    }
    async fn drop_table(&self, table: &TableName) -> Result<(), Error> {
        self.inner.drop_table(table).await
    }
}

async fn commit_with_losses(world: World, losses: u32, applies: bool) {
    world.create("orders").await;
    let forgetful = Forgetful { inner: world.lake.catalog().clone(), losses: AtomicU32::new(losses), applies };
    let lake = Lake::new(Arc::new(forgetful), world.lake.storage().clone(), Clock::system());
    let table = lake.table(&world.table("orders")).await.unwrap();
    let committed = append(&table, [(1, 1), (2, 2)]).await;
    assert_eq!(read(&committed.table).await, BTreeMap::from([(1, 1), (2, 2)]));
    assert_eq!(committed.table.snapshots().len(), 1);
    assert_eq!(committed.snapshot_id, committed.table.snapshot_id());
    // Another writer's commit right after ours does not hide it.
    let after = append(&committed.table, [(3, 3)]).await.table;
    assert_eq!(read(&after).await.len(), 3);
    assert_eq!(after.snapshots().len(), 2);
}

pub async fn a_lost_response_is_found_in_the_history(world: World) {
    commit_with_losses(world, 1, true).await;
}

pub async fn a_commit_that_was_not_applied_is_made_again(world: World) {
    commit_with_losses(world, 3, false).await;
}

pub async fn expired_snapshots_take_their_files_along(world: World) {
    let table = world.create("orders").await;
    let table = append(&table, (0..10).map(|id| (id, 1))).await.table;
    let view = table.view(At::Head).unwrap();
    let old = view.files(None).await.unwrap();
    let old_path = old[0].path.clone();
    let added = write(&table, &rows([(1, 2)])).await;
    let table = table.change().overwrite(&view, old, added).commit().await.unwrap().table;
    let table = append(&table, [(50, 5)]).await.table;
    assert!(table.lake().storage().exists(&old_path).await.unwrap());
    assert!(
        table
            .expire(&Expiry { older_than_ms: 0, retain_last: 1, ..Default::default() })
            .await
            .unwrap()
            .snapshots
            .is_empty()
    );
    let expired =
        table.expire(&Expiry { older_than_ms: i64::MAX, retain_last: 1, ..Default::default() }).await.unwrap();
    assert_eq!(expired.snapshots.len(), 2);
    assert!(!table.lake().storage().exists(&old_path).await.unwrap());
    let mut table = table;
    table.refresh().await.unwrap();
    assert_eq!(table.snapshots().len(), 1);
    assert_eq!(read(&table).await, BTreeMap::from([(1, 2), (50, 5)]));
    assert_eq!(table.orphans(i64::MAX).await.unwrap(), vec![]);
    let table = append(&table, [(51, 5)]).await.table;
    assert_eq!(read(&table).await.len(), 3);
}

pub async fn old_states_can_be_read(world: World) {
    let table = world.create("orders").await;
    let table = append(&table, [(1, 1)]).await.table;
    let first = table.snapshot_id().unwrap();
    let table = delete(&table, &[1]).await.table;
    let table = append(&table, [(2, 2)]).await.table;
    assert_eq!(read(&table).await, BTreeMap::from([(2, 2)]));
    assert_eq!(read_at(&table, At::Snapshot(first)).await, BTreeMap::from([(1, 1)]));
    let committed_ms = table.snapshots()[0].committed_ms;
    let later = table.snapshots()[1].committed_ms;
    if later > committed_ms {
        assert_eq!(read_at(&table, At::TimeMs(committed_ms)).await, BTreeMap::from([(1, 1)]));
    }
    assert_eq!(read_at(&table, At::TimeMs(i64::MAX)).await, BTreeMap::from([(2, 2)]));
    let error = table.view(At::TimeMs(0)).err().unwrap();
    assert!(error.to_string().contains("after the time asked for"), "{error}");
    let error = table.view(At::Snapshot(1)).err().unwrap();
    assert!(error.to_string().contains("there is no snapshot 1"), "{error}");
}

pub async fn many_commits_leave_few_manifests_and_metadata_files(world: World) {
    let properties = [("commit.manifest.min-count-to-merge", "10"), ("write.metadata.previous-versions-max", "5")];
    let mut table = world.create_with("orders", &[], &properties).await;
    for id in 0..60 {
        table = append(&table, [(id, 1)]).await.table;
        if id % 7 == 0 {
            table = delete(&table, &[id]).await.table;
        }
    }
    let expected: BTreeSet<i64> = (0..60).filter(|id| id % 7 != 0).collect();
    assert_eq!(read(&table).await.into_keys().collect::<BTreeSet<_>>(), expected);
    assert_eq!(total(&table, "total-records"), "60");
    let view = table.view(At::Head).unwrap();
    let (data, deletes) = view.manifest_counts().await.unwrap();
    assert!(data <= 20 && deletes <= 20, "{data} data and {deletes} delete manifests");
    let listed: Vec<_> = world.lake.storage().list(table.location()).try_collect().await.unwrap();
    let metadata_files = listed.iter().filter(|file| file.location.ends_with(".metadata.json")).count();
    // The catalog of a server may keep its own.
    assert!(metadata_files <= 6 || world.lake.catalog().describe().contains("REST"), "{metadata_files} metadata files");
}

pub async fn crash_leftovers_are_listed_as_orphans(world: World) {
    let table = world.create("orders").await;
    let table = append(&table, [(1, 1)]).await.table;
    let leftover = write(&table, &rows([(9, 9)])).await;
    let orphans = table.orphans(i64::MAX).await.unwrap();
    assert_eq!(orphans.len(), 1, "{orphans:?}");
    assert_eq!(orphans[0].path, leftover[0].path());
    // A file younger than asked for may belong to a commit on its way.
    assert_eq!(table.orphans(0).await.unwrap(), vec![]);
    assert_eq!(read(&table).await.len(), 1);
}

pub async fn orphans_are_removed_past_their_grace(world: World) {
    let table = world.create("orders").await;
    let table = append(&table, [(1, 1)]).await.table;
    let leftover = write(&table, &rows([(9, 9)])).await;
    let modified_ms = table.orphans(i64::MAX).await.unwrap()[0].modified_ms;
    assert_eq!(table.remove_orphans(modified_ms).await.unwrap(), vec![]);
    let kept = table.change().set_property("gc.enabled", "false").commit().await.unwrap().table;
    let error = kept.remove_orphans(i64::MAX).await.unwrap_err();
    assert!(error.to_string().contains("`gc.enabled` is false"), "{error}");
    let table = kept.change().remove_property("gc.enabled").commit().await.unwrap().table;
    assert!(world.lake.storage().exists(leftover[0].path()).await.unwrap());
    let removed = table.remove_orphans(modified_ms + 1).await.unwrap();
    assert_eq!(removed.iter().map(|orphan| orphan.path.as_str()).collect::<Vec<_>>(), [leftover[0].path()]);
    assert!(!world.lake.storage().exists(leftover[0].path()).await.unwrap());
    assert_eq!(table.remove_orphans(i64::MAX).await.unwrap(), vec![]);
    assert_eq!(read(&table).await, BTreeMap::from([(1, 1)]));
}

pub async fn rewritten_rows_keep_their_age(world: World) {
    let mut table = world.create("orders").await;
    for batch in 0..6 {
        table = append(&table, [(batch, 1)]).await.table;
    }
    // Somebody has read as far as the fifth commit.
    let snapshots = table.snapshots();
    let read_up_to = snapshots[4].sequence;
    let policy = |read_up_to: &[i64]| CompactionPolicy { target_bytes: 1 << 20, read_up_to: read_up_to.to_vec() };
    let view = table.view(At::Head).unwrap();
    assert_eq!(view.compaction(&policy(&[])).await.unwrap().groups[0].files.len(), 6);
    assert_eq!(view.compaction(&policy(&[snapshots[3].sequence])).await.unwrap().groups.len(), 0);
    let plan = view.compaction(&policy(&[read_up_to])).await.unwrap();
    assert_eq!((plan.groups.len(), plan.groups[0].files.len(), plan.files_waiting), (1, 5, 1));
    let compacted = write(&table, &rows((0..5).map(|id| (id, 1)))).await;
    let before = table.snapshot_id().unwrap();
    let table = append(&table, [(6, 1)]).await.table;
    let appended = table.snapshot_id().unwrap();
    let table = table.change().rewrite(&view, plan.groups[0].files.clone(), compacted).commit().await.unwrap().table;
    let new = table.view(At::Head).unwrap().added_since(read_up_to).files(None).await.unwrap();
    assert_eq!(new.iter().map(|file| file.record_count).collect::<Vec<_>>(), [1, 1], "{new:?}");
    assert_eq!(read(&table).await.len(), 7);
    // A file is as young as the commit that added it, whatever its rows are.
    let view = table.view(At::Head).unwrap();
    let mut ages = view
        .files(None)
        .await
        .unwrap()
        .iter()
        .map(|file| (file.record_count, view.commits_since(file)))
        .collect::<Vec<_>>();
    ages.sort_unstable();
    assert_eq!(ages, [(1, 1), (1, 2), (5, 0)]);

    // The head has the rows of the snapshot before it, and of no other; also when that one is gone.
    assert!(table.has_rows_of(appended) && !table.has_rows_of(before));
    let again = table.change().rewrite_manifests().commit().await.unwrap().table;
    assert!(again.has_rows_of(appended) && again.has_rows_of(table.snapshot_id().unwrap()));
    again.expire(&Expiry { older_than_ms: i64::MAX, retain_last: 1, ..Default::default() }).await.unwrap();
    let mut again = again;
    again.refresh().await.unwrap();
    assert_eq!(again.snapshots().len(), 1);
    assert!(again.has_rows_of(appended) && !again.has_rows_of(before));
    assert!(!append(&again, [(7, 1)]).await.table.has_rows_of(appended));
}

pub async fn delete_files_are_put_together_beside_new_deletes(world: World) {
    let table = world.create("orders").await;
    let mut table = append(&table, (0..1000).map(|id| (id, 1))).await.table;
    for id in [5, 50, 500] {
        table = delete(&table, &[id]).await.table;
    }
    let view = table.view(At::Head).unwrap();
    let policy = CompactionPolicy { target_bytes: 1, read_up_to: vec![] };
    let plan = view.compaction(&policy).await.unwrap();
    assert_eq!((plan.groups.len(), plan.many_deletes.len()), (0, 1));
    let positions = view.deleted_positions(&plan.many_deletes).await.unwrap();
    let of: Vec<_> =
        plan.many_deletes.iter().map(|file| (file.clone(), positions[&file.path].as_ref().clone())).collect();
    let deletes = table.write_deletes_anew(&of).await.unwrap();
    // A row that is deleted meanwhile stays deleted.
    let raced = delete(&table, &[7]).await.table;
    let before = raced.snapshot_id().unwrap();
    let table = raced.change().rewrite_deletes(&view, deletes).commit().await.unwrap().table;
    let expected: BTreeSet<i64> = (0..1000).filter(|id| ![5, 50, 500, 7].contains(id)).collect();
    assert_eq!(read(&table).await.into_keys().collect::<BTreeSet<_>>(), expected);
    assert_eq!(total(&table, "total-delete-files"), "2");
    assert_eq!(total(&table, "total-position-deletes"), "4");
    assert!(table.has_rows_of(before));
    let refused = table.change().rewrite(&view, vec![], vec![]).row_delta(
        &view,
        vec![],
        table.write_deletes(&positions_of(&table, &[9]).await).await.unwrap(),
    );
    assert!(refused.commit().await.unwrap_err().to_string().contains("cannot delete any"));
}

pub async fn manifests_are_put_together_when_asked(world: World) {
    let properties = [("commit.manifest.min-count-to-merge", "100")];
    let mut table = world.create_with("orders", &[], &properties).await;
    for id in 0..8 {
        table = append(&table, [(id, 1)]).await.table;
    }
    table = delete(&table, &[3]).await.table;
    let ages = |files: Vec<icestream::table::FileRow>| {
        files.into_iter().map(|file| (file.path, file.sequence_number)).collect::<BTreeMap<_, _>>()
    };
    let before = ages(table.files().await.unwrap());
    assert_eq!(table.manifests_to_merge().await.unwrap(), (9, 2));
    let view = table.view(At::Head).unwrap();
    let planned = view.files(None).await.unwrap();
    let table = table.change().rewrite_manifests().commit().await.unwrap().table;
    assert_eq!(table.view(At::Head).unwrap().manifest_counts().await.unwrap(), (1, 1));
    assert_eq!(ages(table.files().await.unwrap()), before);
    assert_eq!(read(&table).await.len(), 7);
    assert_eq!(total(&table, "total-data-files"), "8");
    // What was planned on the manifests of before finds its files in those of now.
    let added = write(&table, &rows([(0, 5)])).await;
    let first = planned.iter().find(|file| file.deletes.is_empty()).unwrap().clone();
    let table = table.change().overwrite(&view, vec![first], added).commit().await.unwrap().table;
    assert_eq!(total(&table, "total-data-files"), "8");
}

pub async fn a_merge_outlives_a_rewrite_of_other_files(world: World) {
    let table = world.create("orders").await;
    let table = append(&table, (0..10).map(|id| (id, 1))).await.table;
    let table = append(&table, (10..20).map(|id| (id, 1))).await.table;
    let view = table.view(At::Head).unwrap();
    let deletes = async |table: &Table, id| table.write_deletes(&positions_of(table, &[id]).await).await.unwrap();
    let (of_first, of_second) = (deletes(&table, 5).await, deletes(&table, 15).await);
    let (new_first, new_second) = (write(&table, &rows([(5, 2)])).await, write(&table, &rows([(15, 2)])).await);
    let planned_on = table.snapshot_id();

    let second: Vec<_> = positions_of(&table, &[15]).await.into_iter().map(|(file, _)| file).collect();
    let moved = write(&table, &rows((10..20).map(|id| (id, 1)))).await;
    table.change().rewrite(&view, second, moved).commit().await.unwrap();

    let premise = || Premise::new().rows_are_of(planned_on);
    let merged = table.change().row_delta(&view, new_first, of_first).premise(premise()).commit().await.unwrap().table;
    assert_eq!(read(&merged).await.get(&5), Some(&2));
    // Rows of a file that was rewritten are somewhere else now.
    let error = table.change().row_delta(&view, new_second.clone(), of_second.clone()).commit().await.unwrap_err();
    assert!(matches!(error, Error::PremiseBroken { broken: Broken::FileGone { .. }, .. }), "{error:?}");
    // After a commit that is no rewrite, the rows are others.
    let error = table.change().row_delta(&view, new_second, of_second).premise(premise()).commit().await.unwrap_err();
    assert!(matches!(error, Error::PremiseBroken { broken: Broken::Head { .. }, .. }), "{error:?}");
    assert_eq!(read(&merged).await.len(), 20);
}

pub async fn an_expiry_keeps_what_others_go_on_from(world: World) {
    let mut table = world.create("orders").await;
    for id in 0..6 {
        table = append(&table, [(id, 1)]).await.table;
    }
    let ids: Vec<i64> = table.snapshots().iter().map(|snapshot| snapshot.id).collect();
    let keep = BTreeSet::from([ids[1]]);
    // However young they are, no more than three stay, and the one that is in use.
    let expiry = Expiry { older_than_ms: 0, retain_last: 1, at_most: 3, keep };
    assert_eq!(table.expirable(&expiry), [ids[0], ids[2]]);
    assert_eq!(table.expire(&expiry).await.unwrap().snapshots, [ids[0], ids[2]]);
    table.refresh().await.unwrap();
    let left: Vec<i64> = table.snapshots().iter().map(|snapshot| snapshot.id).collect();
    assert_eq!(left, [ids[1], ids[3], ids[4], ids[5]]);
    assert_eq!(read_at(&table, At::Snapshot(ids[1])).await.len(), 2);
    assert_eq!(read(&table).await.len(), 6);
    assert_eq!(table.orphans(i64::MAX).await.unwrap(), vec![]);
}
