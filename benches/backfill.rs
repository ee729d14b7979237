//! How fast a history in files becomes bronze rows, by the program itself, killed on the way.
//!
//!     cargo bench --bench backfill -- --json backfill.json [--bytes 5000000000] [--kills 2] [--memory 512MiB]
//!
//! The history is what Confluent's S3 sink leaves of one topic: files of JSON lines packed with gzip, about 1 KB a record,
//! in folders by the hour. It is made first, with the sums of its columns. Then `icestream backfill` is started, killed
//! with SIGKILL after a while as often as told, and started again until it ends by itself. The time is that of all runs
//! together, so that what a kill takes back counts. At the end the rows have to be exactly those that were made: their
//! number, each offset once, and the sums of their columns. `--dir` says where all of it goes (a folder of its own under
//! the system's temporary one), `--program` which program is started.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const TOPIC: &str = "shop.public.order_lines";
const PARTITIONS: usize = 4;

/// How often a running program is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

const CATALOG: &str = "\
key: [id]
columns:
  - { name: id, type: long }
  - { name: customer_id, type: long }
  - { name: quantity, type: int }
  - { name: unit_price, type: \"decimal(12,2)\", encoding: native }
  - { name: status, type: string }
  - { name: email, type: string }
  - { name: shipping_address, type: string }
  - { name: note, type: string }
  - { name: is_gift, type: boolean }
  - { name: weight, type: double }
  - { name: placed_at, type: timestamptz }
";

/// What is asked of the rows of each partition, and what the files hold.
const SUMS: &str = "\
SELECT _topic_partition, count(*), count(DISTINCT _offset), min(_offset), max(_offset), sum(after['id']),
       sum(after['customer_id']), sum(after['quantity']), sum(after['unit_price']),
       sum(character_length(after['shipping_address'])), sum(character_length(after['note']))
FROM shop_bronze.order_lines GROUP BY 1 ORDER BY 1";

struct Options {
    bytes: u64,
    files: usize,
    kills: usize,
    memory: String,
    json: Option<PathBuf>,
    dir: Option<PathBuf>,
    program: PathBuf,
}

fn options() -> Result<Options, Failure> {
    let mut options = Options {
        bytes: 5_000_000_000,
        files: 64,
        kills: 2,
        memory: "512MiB".to_string(),
        json: None,
        dir: None,
        program: env!("CARGO_BIN_EXE_icestream").into(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
        match argument.as_str() {
            "--bytes" => options.bytes = value()?.parse()?,
            "--files" => options.files = value()?.parse()?,
            "--kills" => options.kills = value()?.parse()?,
            "--memory" => options.memory = value()?,
            "--json" => options.json = Some(value()?.into()),
            "--dir" => options.dir = Some(value()?.into()),
            "--program" => options.program = value()?.into(),
            // Cargo's own.
            "--bench" => {}
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    Ok(options)
}

/// What the records of a partition come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Sums {
    records: u64,
    ids: u64,
    customers: u64,
    quantities: u64,
    cents: u64,
    address_characters: u64,
    note_characters: u64,
}

impl Sums {
    fn add(&mut self, other: &Sums) {
        self.records += other.records;
        self.ids += other.ids;
        self.customers += other.customers;
        self.quantities += other.quantities;
        self.cents += other.cents;
        self.address_characters += other.address_characters;
        self.note_characters += other.note_characters;
    }

    /// As the query of all partitions says it.
    fn line(&self, partition: usize) -> String {
        let Sums { records, ids, customers, quantities, cents, address_characters, note_characters } = self;
        let price = format!("{}.{:02}", cents / 100, cents % 100);
        let last = records.saturating_sub(1);
        format!(
            "{partition},{records},{records},0,{last},{ids},{customers},{quantities},{price},{address_characters},{note_characters}"
        )
    }
}

/// Writes one record of Debezium's PostgreSQL connector, without schema block, and adds it to the sums.
fn record(number: u64, random: &mut StdRng, line: &mut String, sums: &mut Sums) {
    const WORDS: [&str; 8] = ["north", "river", "stone", "market", "garden", "harbour", "chapel", "mill"];
    const STATUS: [&str; 4] = ["pending", "paid", "shipped", "delivered"];
    let mut word = || WORDS[random.random_range(0..WORDS.len())];
    let address = format!("{} {} {} street, {}field, flat {}", number % 1000, word(), word(), word(), number % 97);
    let note = format!(
        "to be left in the {} by the {} when nobody opens; the {} on the left is the one that works, and number {} across \
         the road takes parcels as well, on working days until six and never on the weekend, please do ring twice there",
        word(),
        word(),
        word(),
        number % 13
    );
    let (customer, quantity) = (random.random_range(0..1_000_000_u64), random.random_range(1..20_u64));
    let (cents, weight) = (random.random_range(0..1_000_000_u64), random.random_range(1..5_000_u32));
    let (ms, lsn) = (1_767_225_600_000 + number, 26_800_000 + number * 96);
    sums.records += 1;
    sums.ids += number;
    sums.customers += customer;
    sums.quantities += quantity;
    sums.cents += cents;
    sums.address_characters += address.chars().count() as u64;
    sums.note_characters += note.chars().count() as u64;
    line.clear();
    // Writing to a text cannot fail.
    let _ = writeln!(
        line,
        r#"{{"before":null,"after":{{"id":{number},"customer_id":{customer},"quantity":{quantity},"unit_price":"{}.{:02}","status":"{}","email":"customer{customer}@example.com","shipping_address":"{address}","note":"{note}","is_gift":{},"weight":{},"placed_at":"2026-01-01T{:02}:{:02}:{:02}.{:06}Z"}},"source":{{"version":"3.0.8.Final","connector":"postgresql","name":"shop","ts_ms":{ms},"snapshot":"false","db":"shop","sequence":"[\"{}\",\"{lsn}\"]","ts_us":{ms}456,"ts_ns":{ms}456000,"schema":"public","table":"order_lines","txId":{},"lsn":{lsn},"xmin":null}},"transaction":null,"op":"c","ts_ms":{ms},"ts_us":{ms}789,"ts_ns":{ms}789000}}"#,
        cents / 100,
        cents % 100,
        STATUS[(number % 4) as usize],
        number.is_multiple_of(9),
        f64::from(weight) / 100.0,
        number / 3600 % 24,
        number / 60 % 60,
        number % 60,
        number % 1_000_000,
        lsn - 48,
        700_000 + number,
    );
}

/// Writes the files of one partition. Gives how many bytes of JSON and of packed files there are, and their sums.
fn write_partition(dir: &Path, partition: usize, files: usize, bytes: u64) -> Result<(u64, u64, Sums), Failure> {
    let (mut sums, mut unpacked, mut packed, mut offset) = (Sums::default(), 0, 0, 0_u64);
    let mut random = StdRng::seed_from_u64(partition as u64);
    let mut line = String::new();
    for file in 0..files {
        let folder = dir.join(format!("topics/{TOPIC}/year=2026/month=01/day=01/hour={:02}", file % 24));
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{TOPIC}+{partition}+{offset:010}.json.gz"));
        let mut writer = GzEncoder::new(std::io::BufWriter::new(std::fs::File::create(&path)?), Compression::default());
        let until = bytes * (file as u64 + 1) / files as u64;
        while unpacked < until {
            let mut of_record = Sums::default();
            record(offset * PARTITIONS as u64 + partition as u64, &mut random, &mut line, &mut of_record);
            sums.add(&of_record);
            writer.write_all(line.as_bytes())?;
            unpacked += line.len() as u64;
            offset += 1;
        }
        writer.finish()?.flush()?;
        packed += std::fs::metadata(&path)?.len();
    }
    Ok((unpacked, packed, sums))
}

/// How one run of the program went.
#[derive(Debug, serde::Serialize)]
struct Ran {
    seconds: f64,
    cpu_seconds: f64,
    peak_bytes: u64,
    killed: bool,
}

/// Runs the program to its end, or kills it after a while.
fn run(program: &Path, dir: &Path, kill_after: Option<Duration>) -> Result<Ran, Failure> {
    let mut child = Command::new(program)
        .current_dir(dir)
        .args(["--log", "warn", "backfill", "--files", "topics/**/*.json.gz", "--result", "result.json"])
        .stdout(Stdio::null())
        .spawn()?;
    let started = Instant::now();
    let process = PathBuf::from(format!("/proc/{}", child.id()));
    let (mut cpu_seconds, mut peak_bytes) = (0.0, 0);
    loop {
        // They are gone once it has ended, and the last values stay.
        if let Some((cpu, peak)) = usage(&process) {
            (cpu_seconds, peak_bytes) = (cpu, peak);
        }
        if let Some(status) = child.try_wait()? {
            let seconds = started.elapsed().as_secs_f64();
            return match status.success() {
                true => Ok(Ran { seconds, cpu_seconds, peak_bytes, killed: false }),
                false => Err(format!("the backfill failed: {status}").into()),
            };
        }
        if kill_after.is_some_and(|after| started.elapsed() >= after) {
            child.kill()?;
            child.wait()?;
            let seconds = started.elapsed().as_secs_f64();
            return Ok(Ran { seconds, cpu_seconds, peak_bytes, killed: true });
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Processor seconds and the peak of memory of a process until now, as Linux tells them.
fn usage(process: &Path) -> Option<(f64, u64)> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = peak.split_whitespace().next()?.parse().ok()?;
    Some((ticks / TICKS_PER_SECOND, kilobytes * 1024))
}

fn main() -> Result<(), Failure> {
    let options = options()?;
    let temporary = tempfile::tempdir()?;
    let dir = options.dir.clone().unwrap_or_else(|| temporary.path().to_path_buf());
    std::fs::create_dir_all(dir.join("catalog"))?;
    let settings = format!("name: shop\nsource: {{ format: debezium-json }}\nmemory: {}\n", options.memory);
    std::fs::write(dir.join("icestream.yaml"), settings)?;
    std::fs::write(dir.join("catalog/order_lines.yaml"), CATALOG)?;
    let (files, bytes) = (options.files.div_ceil(PARTITIONS), options.bytes / PARTITIONS as u64);
    let written: Vec<(u64, u64, Sums)> = std::thread::scope(|scope| {
        let write = |partition| {
            let dir = &dir;
            scope.spawn(move || write_partition(dir, partition, files, bytes))
        };
        let writing: Vec<_> = (0..PARTITIONS).map(write).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<_, Failure>>| {
            thread.join().map_err(|_| "a thread that writes files panicked")?
        };
        writing.into_iter().map(join).collect::<Result<_, Failure>>()
    })?;
    let unpacked: u64 = written.iter().map(|(unpacked, _, _)| unpacked).sum();
    let packed: u64 = written.iter().map(|(_, packed, _)| packed).sum();
    let records: u64 = written.iter().map(|(_, _, sums)| sums.records).sum();
    eprintln!("{records} records, {unpacked} bytes of JSON in {packed} bytes of files");

    // So that it ends after what it would take a fast one; the rest is for those that come after it.
    let kill_after = Duration::from_secs_f64(unpacked as f64 / 800e6);
    let mut runs = Vec::new();
    loop {
        let kills = runs.iter().filter(|run: &&Ran| run.killed).count();
        let run = run(&options.program, &dir, (kills < options.kills).then_some(kill_after))?;
        eprintln!("{run:?}");
        let is_over = !run.killed;
        runs.push(run);
        if is_over {
            break;
        }
    }
    let again = run(&options.program, &dir, None)?;

    let query = Command::new(&options.program).current_dir(&dir).args(["query", "--format", "csv", SUMS]).output()?;
    let found = String::from_utf8(query.stdout)?;
    let expected: Vec<String> =
        written.iter().enumerate().map(|(partition, (_, _, sums))| sums.line(partition)).collect();
    let found: Vec<&str> = found.lines().skip(1).collect();
    if found != expected {
        return Err(format!("the rows are not those that were made:\n{found:#?}\n{expected:#?}").into());
    }
    let seconds: f64 = runs.iter().map(|run| run.seconds).sum();
    let cpu_seconds: f64 = runs.iter().map(|run| run.cpu_seconds).sum();
    let peak = runs.iter().map(|run| run.peak_bytes).max().unwrap_or_default();
    let report = serde_json::json!({
        "records": records,
        "bytes_json": unpacked,
        "bytes_packed": packed,
        "files": files * PARTITIONS,
        "memory": options.memory,
        "runs": runs,
        "seconds": seconds,
        "megabytes_json_per_second": unpacked as f64 / 1e6 / seconds,
        "cpu_seconds": cpu_seconds,
        "megabytes_json_per_cpu_second": unpacked as f64 / 1e6 / cpu_seconds,
        "peak_megabytes": peak as f64 / 1e6,
        "seconds_when_all_is_there": again.seconds,
        "is_exact": true,
        "sums": written.iter().enumerate().map(|(partition, (_, _, sums))| (partition, sums.line(partition))).collect::<BTreeMap<_, _>>(),
    });
    println!("{report:#}");
    if let Some(path) = options.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    Ok(())
}
