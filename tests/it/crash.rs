//! Processes that are killed while they commit, as `kill -9` does it.
//!
//! The child is this test binary again, told by its environment to be a writer. It notes every acknowledged commit in a
//! file before it starts the next one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use icestream::ids::TableName;
use icestream::table::{At, Table, TableDefinition};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::support::*;

const CHILD: &str = "ICESTREAM_TEST_CHILD_FOLDER";
const STOP_AT: &str = "ICESTREAM_TEST_CHILD_STOP_AT";

fn name() -> TableName {
    "shop.orders".parse().unwrap()
}

async fn table_in(folder: &Path) -> Table {
    let definition = TableDefinition {
        name: name(),
        schema: std::sync::Arc::new(schema()),
        partition: vec!["bucket(2, id)".to_string()],
        properties: [("commit.manifest.min-count-to-merge", "8"), ("write.metadata.previous-versions-max", "5")]
            .map(|(key, value)| (key.to_string(), value.to_string()))
            .into(),
    };
    sqlite_lake(folder).await.ensure(&definition).await.unwrap()
}

/// Not a test of its own: the body of the child process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let folder = Path::new(&folder);
    if let Ok(step) = std::env::var(STOP_AT) {
        let reached = folder.join("reached");
        fail::cfg_callback(step, move || {
            File::create(&reached).unwrap();
            loop {
                std::thread::park();
            }
        })
        .unwrap();
    }
    let mut log = OpenOptions::new().append(true).create(true).open(folder.join("acknowledged")).unwrap();
    let mut table = table_in(folder).await;
    let mut next = read(&table).await.keys().max().map_or(0, |id| id + 1);
    File::create(folder.join("started")).unwrap();
    loop {
        // Each line is what the commit after it will have done: `+ id` rows added, `= id` rows changed, `- id` deleted.
        let line = match next % 5 {
            0..=2 => {
                table = append(&table, [(next, 1), (next + 1, 1)]).await.table;
                format!("+{next} +{}", next + 1)
            }
            3 => {
                table = delete(&table, &[next - 3]).await.table;
                format!("-{}", next - 3)
            }
            _ => {
                let view = table.view(At::Head).unwrap();
                let Some(old) = view.files(None).await.unwrap().into_iter().next() else { return };
                let live: Vec<(i64, i32)> = live_rows(&table, At::Head)
                    .await
                    .into_iter()
                    .filter(|(file, ..)| file.path == old.path)
                    .map(|(_, _, id, qty)| (id, qty as i32 + 1))
                    .collect();
                let line: Vec<String> = live.iter().map(|(id, _)| format!("={id}")).collect();
                let added = write(&table, &rows(live)).await;
                table = table.change().overwrite(&view, vec![old], added).commit().await.unwrap().table;
                line.join(" ")
            }
        };
        // At once: what a kill cut short would become one line with the next.
        log.write_all(format!("{line}\n").as_bytes()).unwrap();
        next += if next % 5 < 3 { 2 } else { 1 };
    }
}

fn start_child(folder: &Path, stop_at: Option<&str>) -> Child {
    let _ = std::fs::remove_file(folder.join("started"));
    let _ = std::fs::remove_file(folder.join("reached"));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crash::child", "--nocapture"]).env(CHILD, folder).stdout(Stdio::null());
    command.stderr(Stdio::null());
    if let Some(step) = stop_at {
        command.env(STOP_AT, step);
    }
    command.spawn().unwrap()
}

/// Waits for a file the child makes.
async fn wait_for(child: &mut Child, file: &Path) {
    wait_until(child, || file.exists()).await;
}

/// Waits for something the child does, and sees to it that the child is still alive.
async fn wait_until(child: &mut Child, is_done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_done() {
        assert!(child.try_wait().unwrap().is_none(), "the child ended by itself");
        assert!(Instant::now() < deadline, "the child did not get there");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn lines_in(file: &Path) -> usize {
    std::fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

/// The rows every acknowledged commit adds up to.
fn acknowledged(folder: &Path) -> BTreeMap<i64, i64> {
    let mut rows = BTreeMap::new();
    let text = std::fs::read_to_string(folder.join("acknowledged")).unwrap_or_default();
    // A line the kill cut short was not acknowledged.
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        apply(&mut rows, line);
    }
    rows
}

fn apply(rows: &mut BTreeMap<i64, i64>, line: &str) {
    for word in line.split_whitespace() {
        let id: i64 = word[1..].parse().unwrap();
        match &word[..1] {
            "+" => assert!(rows.insert(id, 1).is_none()),
            "-" => {
                rows.remove(&id);
            }
            _ => *rows.get_mut(&id).unwrap() += 1,
        }
    }
}

/// The table must hold what was acknowledged, give or take the one commit that was under way.
async fn audit(folder: &Path) {
    let table = table_in(folder).await;
    let found = read(&table).await;
    let expected = acknowledged(folder);
    if found == expected {
        return;
    }
    // The commit under way did go through, and only its acknowledgement was lost: note what it did.
    let mut line = Vec::new();
    for (id, qty) in &found {
        match expected.get(id) {
            None => line.push(format!("+{id}")),
            Some(before) if before + 1 == *qty => line.push(format!("={id}")),
            Some(before) => assert_eq!(before, qty, "row {id}"),
        }
    }
    line.extend(expected.keys().filter(|id| !found.contains_key(id)).map(|id| format!("-{id}")));
    let kinds: std::collections::BTreeSet<&str> = line.iter().map(|word| &word[..1]).collect();
    assert_eq!(kinds.len(), 1, "more than one commit beyond the acknowledged ones: {line:?}");
    assert!(kinds.contains("=") || line.len() <= 2, "more than one commit beyond the acknowledged ones: {line:?}");
    let mut log = OpenOptions::new().append(true).open(folder.join("acknowledged")).unwrap();
    log.write_all((line.join(" ") + "\n").as_bytes()).unwrap();
    assert_eq!(acknowledged(folder), found);
}

/// Kills at random moments. `ICESTREAM_KILLS` sets how many; the seed is printed on failure.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_outlives_kills_at_random_moments() {
    let kills: u32 = std::env::var("ICESTREAM_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    let seed: u64 =
        std::env::var("ICESTREAM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("ICESTREAM_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("acknowledged");
    for _ in 0..kills {
        let mut child = start_child(folder.path(), None);
        wait_for(&mut child, &folder.path().join("started")).await;
        // However slow the machine is, some commits go through; then somewhere within the next.
        let before = lines_in(&log);
        let more = random.random_range(0..4);
        let started = Instant::now();
        wait_until(&mut child, || lines_in(&log) >= before + more).await;
        let commit = started.elapsed() / (more as u32).max(1);
        tokio::time::sleep(commit.min(Duration::from_secs(1)).mul_f64(random.random_range(0.0..1.0))).await;
        child.kill().unwrap();
        child.wait().unwrap();
        audit(folder.path()).await;
    }
    let table = table_in(folder.path()).await;
    println!("{kills} kills, {} snapshots, {} rows", table.snapshots().len(), read(&table).await.len());
    assert!(table.snapshots().len() as u32 >= kills, "the children hardly got to commit");
}

/// Kills at each step of a commit, and looks at what is left.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_between_any_two_steps_leaves_orphans_at_most() {
    let steps = [
        ("commit-after-manifests", false),
        ("commit-after-manifest-list", false),
        ("commit-before-swap", false),
        ("commit-after-metadata", false),
        ("commit-after-swap", true),
    ];
    for (step, is_applied) in steps {
        let folder = tempfile::tempdir().unwrap();
        let table = append(&table_in(folder.path()).await, [(0, 1), (1, 1)]).await.table;
        std::fs::write(folder.path().join("acknowledged"), "+0 +1\n").unwrap();
        assert_eq!(table.orphans(i64::MAX).await.unwrap(), vec![]);

        let mut child = start_child(folder.path(), Some(step));
        wait_for(&mut child, &folder.path().join("reached")).await;
        child.kill().unwrap();
        child.wait().unwrap();

        audit(folder.path()).await;
        let table = table_in(folder.path()).await;
        assert_eq!(table.snapshots().len(), if is_applied { 2 } else { 1 }, "{step}");
        let orphans = table.orphans(i64::MAX).await.unwrap();
        assert_eq!(orphans.is_empty(), is_applied, "{step}: {orphans:?}");
        // The next writer is not held up.
        let table = append(&table, [(50, 1)]).await.table;
        assert_eq!(read(&table).await.get(&50), Some(&1), "{step}");
    }
}
