use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

/// The sample project, as it stands in the repository.
fn sample() -> TempDir {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(root.join("icestream.yaml"), folder.path().join("icestream.yaml")).unwrap();
    for of in ["catalog", "transforms", "sql/gold", "sql/audits"] {
        std::fs::create_dir_all(folder.path().join(of)).unwrap();
        for file in std::fs::read_dir(root.join(of)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), folder.path().join(of).join(file.file_name())).unwrap();
        }
    }
    folder
}

#[test]
fn the_lake_holds_what_the_shop_did_however_much_that_is() {
    let folder = tempfile::tempdir().unwrap();
    // The second and third run replace the lake of the one before.
    for events in [200, 1] {
        let ended = run(folder.path(), &format!("demo --json --quiet --events {events}"));
        let report = ended.json();
        assert_eq!((&report["equal"], &report["events"]), (&true.into(), &events.into()), "{ended:?}");
        let tables = report["tables"].as_array().unwrap();
        assert!(tables.len() == 19 && tables.iter().all(|table| table["equal"] == true), "{ended:?}");
        assert_eq!(ended.stderr, "");
    }
    let tables = run(folder.path(), "tables --json").json();
    assert_eq!(tables.as_array().unwrap().len(), 19);
}

#[test]
fn a_demo_ends_with_what_it_found_and_what_to_do_next() {
    let ended = demo();
    let (results, rest) = ended.done().split_once(" table ").unwrap();
    for table in ["revenue_per_day", "customer_value", "product_popularity"] {
        assert!(results.contains(&format!("shop_gold.{table}\n")), "{ended:?}");
    }
    assert_eq!(rest.matches("| equal\n").count(), 19, "{ended:?}");
    let (_, rest) = rest.split_once("gold refreshes\n").unwrap();
    insta::assert_snapshot!(ended.normal(rest), @r#"
    Every table holds what the shop did.

    The lake is in `./lake`. Look around:

      icestream tables
      icestream query "select status, count(*) from shop_silver.orders group by status"

    or from Python, with `pip install 'pyiceberg[sql-sqlite,pyarrow]'`:

      from pyiceberg.catalog.sql import SqlCatalog
      lake = SqlCatalog("shop", uri="sqlite:///FOLDER/lake/catalog.db")
      lake.load_table("shop_silver.orders").scan().to_arrow()
    "#);
}

#[test]
fn a_difference_is_shown_and_fails() {
    let project = sample();
    let transform = project.path().join("transforms/orders.sql");
    let sql = std::fs::read_to_string(&transform).unwrap();
    std::fs::write(&transform, sql.replace("lower(trim(status))", "upper(trim(status))")).unwrap();
    let ended = run(project.path(), "demo --events 150");
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let different: Vec<&str> = ended.stdout.lines().filter(|line| line.contains("| DIFFERENT")).collect();
    assert!(different.iter().any(|line| line.contains("shop_silver.orders")), "{ended:?}");
    assert!(ended.stdout.contains("\nshop_silver.orders: only in the table: "), "{ended:?}");
    assert!(ended.stdout.contains("\nSome tables do not hold what the shop did."), "{ended:?}");
    assert!(!ended.stdout.contains("Every table holds"), "{ended:?}");
}

/// Waits until a demo has come as far as to make a file.
fn wait_for(running: &mut Running, path: &Path) {
    let started = Instant::now();
    while !path.exists() {
        assert!(running.child.try_wait().unwrap().is_none(), "the demo ended early");
        assert!(started.elapsed() < PATIENCE, "the demo never made {}", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_demo_that_was_killed_can_be_run_again() {
    let folder = tempfile::tempdir().unwrap();
    for (signal, made) in [("-KILL", "shop_bronze/orders/metadata"), ("-INT", "shop_silver/orders/metadata")] {
        let mut running = Running::start(icestream(folder.path(), "demo --events 200000"));
        wait_for(&mut running, &folder.path().join("lake/warehouse").join(made));
        let pid = running.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let mut ended = running.end();
        if signal == "-INT" {
            // The broker ends with the process, and its client may notice before it is gone itself.
            let lines = ended.stderr.split_inclusive('\n');
            ended.stderr = lines.filter(|line| !line.contains(" WARN kafka client ")).collect();
            insta::assert_snapshot!(ended.error(130), @"
            error: interrupted
              what was committed stays; safe to run again
            ");
        }
        // Every table that is there can be read.
        assert!(run(folder.path(), "tables --json").json().is_array());
    }
    assert_eq!(run(folder.path(), "demo --events 120 --json").json()["equal"], true);
}

#[test]
fn a_demo_killed_before_it_has_a_lake_can_be_built_and_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let demo = "demo --events 120 --json --quiet";
    let mut running = Running::start(icestream(folder.path(), demo));
    wait_for(&mut running, &folder.path().join("icestream.yaml"));
    assert!(Command::new("kill").args(["-KILL", &running.child.id().to_string()]).status().unwrap().success());
    running.end();
    run(folder.path(), "build").done();
    assert!(folder.path().join("lake/catalog.db").exists());
    assert_eq!(run(folder.path(), demo).json()["equal"], true);
}

#[test]
fn a_demo_killed_while_it_empties_its_lake_leaves_no_table_without_files() {
    let folder = tempfile::tempdir().unwrap();
    let demo = "demo --events 120 --json --quiet";
    let (warehouse, catalog) = (folder.path().join("lake/warehouse"), folder.path().join("lake/catalog.db"));
    for attempt in 1.. {
        run(folder.path(), demo).done();
        // Enough to be met in the middle of it.
        let many = warehouse.join("shop_bronze/many");
        std::fs::create_dir(&many).unwrap();
        (0..30_000).for_each(|file| std::fs::write(many.join(file.to_string()), "").unwrap());
        let tables = ["shop_bronze/orders", "shop_silver/orders", "shop_gold/daily_summary"];
        let all: Vec<_> = tables.iter().map(|table| warehouse.join(table)).chain([catalog.clone()]).collect();
        assert!(all.iter().all(|path| path.exists()));
        let running = Running::start(icestream(folder.path(), demo));
        let started = Instant::now();
        while all.iter().all(|path| path.exists()) {
            assert!(started.elapsed() < PATIENCE, "the lake was never emptied");
        }
        assert!(Command::new("kill").args(["-KILL", &running.child.id().to_string()]).status().unwrap().success());
        running.end();
        if many.exists() {
            break;
        }
        assert!(attempt < 10, "it was never met in the middle");
    }
    run(folder.path(), "build").done();
    assert_eq!(run(folder.path(), "tables --json").json(), serde_json::json!([]));
    assert_eq!(run(folder.path(), demo).json()["equal"], true);
    assert!(!warehouse.join("shop_bronze/many").exists());
}

/// The rows of every silver and gold table, but for when they were merged.
fn tables(project: &Path) -> BTreeMap<String, Vec<String>> {
    let listed = run(project, "tables --json").json();
    let names = listed.as_array().unwrap().iter().map(|table| table["table"].as_str().unwrap().to_string());
    // What was found depends on what was there when it was asked.
    let names = names.filter(|name| !name.starts_with("shop_bronze.") && !name.ends_with(".icestream_quality"));
    names
        .map(|name| {
            let mut command = icestream(project, "query --format json");
            command.arg(format!("select * from {name}"));
            let rows = Running::start(command).end();
            let mut rows: Vec<String> = rows
                .done()
                .lines()
                .map(|line| {
                    let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
                    row.as_object_mut().unwrap().remove("_merged_at");
                    row.to_string()
                })
                .collect();
            rows.sort();
            (name, rows)
        })
        .collect()
}

/// `ICESTREAM_DEMO_KILLS` sets how many, `ICESTREAM_SEED` repeats those of a run.
#[test]
fn a_demo_killed_anywhere_leaves_what_can_be_gone_on_from_and_run_again() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let kills = number("ICESTREAM_DEMO_KILLS").unwrap_or(3);
    let seed = number("ICESTREAM_SEED").unwrap_or_else(|| rand::rng().random());
    println!("ICESTREAM_SEED={seed}");
    let random = &mut SmallRng::seed_from_u64(seed);
    let (undisturbed, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let demo = "demo --events 4000 --json --quiet";
    let started = Instant::now();
    assert_eq!(run(undisturbed.path(), demo).json()["equal"], true);
    let whole = started.elapsed();
    for _ in 0..kills {
        let running = Running::start(icestream(folder.path(), demo));
        // What it is doing then is up to the machine.
        std::thread::sleep(whole.mul_f64(random.random_range(0.0..1.0)));
        assert!(Command::new("kill").args(["-KILL", &running.child.id().to_string()]).status().unwrap().success());
        running.end();
        if !folder.path().join("icestream.yaml").exists() {
            continue;
        }
        // Silver and gold go on from whatever is there, and end where a build from nothing ends.
        run(folder.path(), "build").done();
        let went_on = tables(folder.path());
        let silver: Vec<&str> = went_on.keys().filter_map(|name| name.strip_prefix("shop_silver.")).collect();
        let silver: Vec<&str> = silver.into_iter().filter(|name| !name.ends_with("__quarantine")).collect();
        if !silver.is_empty() {
            run(folder.path(), &format!("build --full {}", silver.join(" "))).done();
            run(folder.path(), "build").done();
            for (name, rows) in tables(folder.path()) {
                assert!(rows == went_on[&name], "{name}, ICESTREAM_SEED={seed}");
            }
        }
    }
    assert_eq!(run(folder.path(), demo).json()["equal"], true);
    let (expected, found) = (tables(undisturbed.path()), tables(folder.path()));
    assert_eq!(expected.len(), 14);
    for (name, rows) in expected {
        assert!(rows == found[&name], "{name}, ICESTREAM_SEED={seed}");
    }
}

#[test]
fn a_demo_leaves_what_is_not_its_own_alone() {
    let other = folder_with(&[("icestream.yaml", "name: other")]);
    insta::assert_snapshot!(run(other.path(), "demo --events 10").error(2), @"
    error: `FOLDER` is the folder of another project, `other`
      hint: give the demo a folder of its own with `--dir`
    ");
    let foreign = folder_with(&[("lake/precious", "data")]);
    insta::assert_snapshot!(run(foreign.path(), "demo --events 10").error(2), @"
    error: `./lake` holds a lake that the demo did not make
      hint: give the demo a folder of its own with `--dir`, or move that lake away
    ");
    let files: Vec<_> = std::fs::read_dir(foreign.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["lake"], "nothing was written");
    insta::assert_snapshot!(run(foreign.path(), "demo --dir lake/precious").error(2), @"
    error: `lake/precious` is no folder
      hint: give the demo a folder of its own with `--dir`
    ");
    insta::assert_snapshot!(run(foreign.path(), "demo --dir /proc/nowhere").error(2), @"
    error: cannot write `/proc/nowhere/lake/.made-by-demo`
      caused by: No such file or directory (os error 2)
      hint: check that this process may write there
    ");
    let shop = sample();
    for (setting, problem) in [
        ("warehouse=elsewhere", "the warehouse is "),
        ("catalog.uri=elsewhere.db", "the catalog is not "),
        ("namespaces.gold=best", "the namespaces are not "),
        ("source.kafka.topics=web.*", "no pattern of `source.kafka.topics` matches `shop.public.customers`"),
    ] {
        let error = run(shop.path(), &format!("demo --events 10 --set {setting}")).error(2);
        let expected = format!("error: the demo needs the sample project's settings: {problem}");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn a_demo_looks_at_its_models_first() {
    let shop = sample();
    let file = shop.path().join("sql/gold/customer_value.sql");
    std::fs::write(&file, "SELECT lifetime FROM shop_silver.customers").unwrap();
    insta::assert_snapshot!(run(shop.path(), "demo").error(2), @"error: sql/gold/customer_value.sql:1:8: there is no column `lifetime`; the columns are `id`, `name`, `email`, `country`, `segment`, `birth_date`, `notes`, `is_active`, `is_complete`, `created_at`, `updated_at`, `_position`, `_source_ts`, `_merged_at`");
    std::fs::remove_file(&file).unwrap();
    insta::assert_snapshot!(run(shop.path(), "demo").error(2), @"
    error: the demo needs the sample project's settings: nothing makes table `shop_gold.customer_value`
      hint: run it with `--dir` in an empty folder
    ");
    assert!(!shop.path().join("lake").exists(), "nothing was touched");
}

#[test]
fn a_reader_that_closes_its_pipe_ends_the_program_quietly() {
    let mut command = icestream(demo_lake(), "query --format csv");
    command.arg("select * from shop_bronze.orders").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!((ended.status.code(), ended.stderr.as_slice()), (Some(0), &b""[..]));
}

#[test]
fn nothing_is_left_in_the_temporary_folder() {
    let temporary = tempfile::tempdir().unwrap();
    let mut command = icestream(demo_lake(), "query");
    command.arg("select status, count(*) from shop_silver.orders group by 1 order by 1");
    Running::start({
        command.env("TMPDIR", temporary.path());
        command
    })
    .end()
    .done();
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 0);
}
