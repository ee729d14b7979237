//! The program as its users meet it: the real binary, its output, its errors and its exit codes.
//!
//! Every failure is looked at in the same way by [`Ended::error`]: one error and nothing else on stderr, no panic, no
//! secret, and an end within bounded time.

mod backfill;
mod build;
mod configuration;
mod demo;
mod discover;
mod faults;
mod maintain;
mod metrics;
mod models;
mod plan;
mod quality;
mod query;
mod sql;
mod tables;
mod verbs;
mod verify;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use icestream::table::TableDefinition;
use tempfile::TempDir;

use crate::support;

/// Stands wherever a secret may be set, and must never come out again.
const SECRET: &str = "hunter2-must-not-be-seen";

/// Longer than anything here may take, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(50);

/// The program with an environment of its own. `args` are separated by blanks; those that hold blanks are added by
/// `.arg(…)`.
fn icestream(folder: &Path, args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_icestream"));
    command.env_clear().env("HOME", env!("CARGO_TARGET_TMPDIR")).env("AWS_EC2_METADATA_DISABLED", "true");
    command.env("THE_SECRET", SECRET).current_dir(folder).args(args.split_whitespace());
    command
}

/// How a program ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
    folder: PathBuf,
}

/// A program on its way, with its output in files, so that nobody has to empty pipes.
struct Running {
    child: Child,
    output: TempDir,
    folder: PathBuf,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let output = tempfile::tempdir().unwrap();
        let file = |name: &str| Stdio::from(File::create(output.path().join(name)).unwrap());
        command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        let folder = command.get_current_dir().unwrap().canonicalize().unwrap();
        Running { child: command.spawn().unwrap(), output, folder }
    }

    fn end(mut self) -> Ended {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if started.elapsed() > PATIENCE {
                self.child.kill().unwrap();
                panic!("it hangs");
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        let text =
            |name: &str| String::from_utf8_lossy(&std::fs::read(self.output.path().join(name)).unwrap()).into_owned();
        Ended { code: status.code(), stdout: text("stdout"), stderr: text("stderr"), folder: self.folder.clone() }
    }
}

fn run(folder: &Path, args: &str) -> Ended {
    Running::start(icestream(folder, args)).end()
}

impl Ended {
    /// Stdout of a program that did its work and had nothing to complain about.
    #[track_caller]
    fn done(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert!(!self.stderr.contains("error"), "{self:?}");
        &self.stdout
    }

    #[track_caller]
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.done()).unwrap()
    }

    /// The one error, as a person sees it, without what differs from run to run.
    #[track_caller]
    fn error(&self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        let errors = self.stderr.lines().filter(|line| line.starts_with("error:")).count();
        assert!(errors == 1 && self.stderr.starts_with("error:"), "{self:?}");
        for never in ["panicked", "backtrace", "a bug in icestream", SECRET] {
            assert!(!self.stderr.contains(never) && !self.stdout.contains(never), "{never}: {self:?}");
        }
        self.normal(&self.stderr)
    }

    fn normal(&self, text: &str) -> String {
        let text = text.replace(self.folder.to_str().unwrap(), "FOLDER");
        let text = shape(&text, "ffffffff-ffff-ffff-ffff-ffffffffffff", "UUID");
        let text = shape(&text, "ffffffffffffffffffffffffffffffff", "UUID");
        let text = shape(&text, "9999-99-99T99:99:99.999Z", "TIME");
        let text = shape(&text, "_day=9999-99-99", "_day=DAY");
        let text = shape(&text, "127.0.0.1:99999", "127.0.0.1:PORT");
        shape(&text, "99999999999", "ID")
    }
}

/// Replaces what has a shape: `9` stands for a digit, `f` for a hexadecimal one, and more digits may follow a `9` at the
/// end.
fn shape(text: &str, shape: &str, with: &str) -> String {
    let fits = |text: &str| {
        let mut chars = text.chars();
        let is_alike = shape.chars().all(|wanted| match (wanted, chars.next()) {
            ('9', Some(c)) => c.is_ascii_digit(),
            ('f', Some(c)) => c.is_ascii_hexdigit() && !c.is_ascii_uppercase(),
            (wanted, c) => c == Some(wanted),
        });
        is_alike.then_some(shape.len())
    };
    let (mut replaced, mut rest) = (String::new(), text);
    while let Some(c) = rest.chars().next() {
        match fits(rest) {
            Some(length) => {
                replaced.push_str(with);
                rest = &rest[length..];
                if shape.ends_with('9') {
                    rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
                }
            }
            None => {
                replaced.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    replaced
}

/// A folder with files in it.
fn folder_with(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    folder
}

/// One demo, and how it ended. Every test may read its lake, and none may change it.
fn demo() -> &'static Ended {
    static DEMO: OnceLock<Ended> = OnceLock::new();
    DEMO.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-demo");
        // A sample project of an older build is not the one of now.
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        run(&folder, "demo --events 2000")
    })
}

fn demo_lake() -> &'static Path {
    demo().done();
    &demo().folder
}

/// Runs SQL over the demo's lake.
fn query(sql: &str, args: &str) -> Ended {
    let mut command = icestream(demo_lake(), "query");
    command.arg(sql).args(args.split_whitespace());
    Running::start(command).end()
}

/// A project over a lake with two commits, `shop.orders`, and the snapshots of those.
async fn project_with_history() -> (TempDir, Vec<(i64, i64)>) {
    let settings = "name: lake\ncatalog: { type: sqlite, uri: catalog.db }\nwarehouse: warehouse\n\
                    namespaces: { silver: shop }\n";
    let folder = folder_with(&[("icestream.yaml", settings)]);
    let lake = support::sqlite_lake(folder.path()).await;
    let definition = TableDefinition {
        name: "shop.orders".parse().unwrap(),
        schema: Arc::new(support::schema()),
        partition: Vec::new(),
        properties: Default::default(),
    };
    let table = lake.create(&definition).await.unwrap();
    let table = support::append(&table, [(1, 10), (2, 20)]).await.table;
    let table = support::append(&table, [(3, 30)]).await.table;
    (folder, table.snapshots().iter().map(|snapshot| (snapshot.id, snapshot.committed_ms)).collect())
}
