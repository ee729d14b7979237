//! Any histories of events in any batches: silver is what folding the events in order gives, however it came about.
//!
//! A world is a table with many histories in it, each about a few keys of its own, so that thousands of them can be
//! looked at: they share commits and merges, and nothing else. `ICESTREAM_HISTORIES` sets how many there are in all; a
//! failing one is printed with the seed of its world, which `ICESTREAM_SEED` runs again alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, Int32Array, StringArray};
use arrow::datatypes::{Int32Type, Int64Type, UInt64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use bytes::Bytes;
use datafusion::prelude::SessionContext;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use icestream::batch::ChangeBatchBuilder;
use icestream::bronze::{self, BronzeDefinition, BronzeTable};
use icestream::change::RawRecord;
use icestream::cli::verify::text as verify_text;
use icestream::clock::Clock;
use icestream::decode::{Format, decode};
use icestream::engine::{self, Engine, EngineOptions};
use icestream::evolution::Evolution;
use icestream::ids::TableName;
use icestream::offsets::TopicPartition;
use icestream::pipeline::{Models, verify};
use icestream::quality::{Action, Rule, Test};
use icestream::row::{Column, ColumnType, RowShape};
use icestream::silver::{self, Extent, IgnoreNulls, OnDelete, Scd, SilverModel};
use icestream::table::{At, ColumnStatistics, Lake, Prune};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::sqlite_lake;

const LANES: [(&str, i32); 3] = [("shop.public.parts", 0), ("shop.public.parts", 1), ("old.public.parts", 0)];
const HISTORIES_IN_A_WORLD: i32 = 100;
const KEYS_IN_A_HISTORY: i32 = 4;
/// When the broker got the records.
const SENT_MS: i64 = 1_700_000_000_000;

/// One record. Its position is where the source had it; its offset is where it stands in its partition.
#[derive(Debug, Clone)]
struct Event {
    key: i32,
    kind: Kind,
    name: u8,
    note: Option<u8>,
    /// An update without a note says that it is null, and not that it was not sent.
    nulls: bool,
    position: Option<u32>,
    lane: usize,
    batch: usize,
    /// Milliseconds; the source may not say.
    time: Option<i64>,
    /// Given when it is sent.
    epoch: i32,
    offset: i64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Create,
    /// The note may be a placeholder: not sent; or null.
    Update,
    /// An update that says which key the row had before.
    MovedFrom(i32),
    Delete,
    /// It says not of which key it is.
    Keyless,
    /// Everything at an earlier position is gone.
    Truncate,
}

/// Where an event stands in the order of all.
type Place = (i32, Option<u32>, i64, &'static str, i32);

impl Event {
    fn place(&self) -> Place {
        (self.epoch, self.position, self.offset, LANES[self.lane].0, LANES[self.lane].1)
    }

    /// Whether it says anything about the note, a null or a value.
    fn sends_note(&self) -> bool {
        self.kind != Kind::Update || self.note.is_some() || self.nulls
    }

    fn payload(&self) -> String {
        let id_of = |id: i32| if self.kind == Kind::Keyless { "null".to_string() } else { id.to_string() };
        let row = |id: i32, note: &str| format!(r#"{{"id":{},"name":"n{}","note":{note}}}"#, id_of(id), self.name);
        let note = match (self.kind, self.note) {
            (_, Some(note)) => format!("\"long {note}\""),
            (Kind::Update, None) if !self.nulls => "\"__debezium_unavailable_value\"".to_string(),
            (_, None) => "null".to_string(),
        };
        // What replica identity DEFAULT sends of a row before the change: the key and nothings.
        let before = |id: i32| format!(r#"{{"id":{id},"name":"","note":null}}"#);
        let nothing = || "null".to_string();
        let (op, before, after) = match self.kind {
            Kind::Create | Kind::Keyless => ("c", nothing(), row(self.key, &note)),
            Kind::Update => ("u", nothing(), row(self.key, &note)),
            Kind::MovedFrom(old) => ("u", before(old), row(self.key, &note)),
            Kind::Delete => ("d", before(self.key), nothing()),
            Kind::Truncate => ("t", nothing(), nothing()),
        };
        let position = match self.position {
            Some(position) => format!(r#","sequence":"[\"{position}\",\"{position}\"]","lsn":{position}"#),
            None => String::new(),
        };
        let time = self.time.map(|time| format!(r#","ts_ms":{time}"#)).unwrap_or_default();
        format!(
            r#"{{"before":{before},"after":{after},"source":{{"connector":"postgresql","db":"shop","schema":"public","table":"parts","txId":1{time}{position}}},"op":"{op}"}}"#
        )
    }
}

/// What a world is like.
struct World {
    events: Vec<Event>,
    batches: usize,
    /// Behind which batches a merge runs.
    merges: BTreeSet<usize>,
    /// From which batch on the source counts as another one.
    new_epoch: usize,
    on_delete: OnDelete,
    scd: Scd,
    ignore_nulls: IgnoreNulls,
    /// All of them give the same rows, but a row does not tell of each what the source's was.
    sql: Option<&'static str>,
    expect: Vec<Rule>,
    memory: u64,
    properties: Vec<(&'static str, &'static str)>,
}

impl World {
    fn new(seed: u64) -> World {
        let random = &mut StdRng::seed_from_u64(seed);
        let batches = random.random_range(2..9usize);
        let merges = (0..batches).filter(|_| random.random_range(0..3) > 0).collect();
        let has_positions = random.random_range(0..6);
        let lanes = random.random_range(0..4);
        let moves_at = random.random_range(0..batches);
        // Which lane a key goes through: one for all, one for each key, another from some time on, or any.
        let lane_of = |key: i32, batch: usize, random: &mut StdRng| match lanes {
            0 => 0,
            1 => key as usize % 3,
            2 if batch < moves_at => key as usize % 2,
            2 => key as usize % 3,
            _ => random.random_range(0..3),
        };
        let has_keyless = random.random_range(0..3) == 0;
        let placeholders = random.random_range(0..3) > 0;
        let nulls = random.random_range(0..3) > 0;
        let mut events = Vec::new();
        for history in 0..HISTORIES_IN_A_WORLD {
            let length = random.random_range(1..30usize);
            let mut own: Vec<Event> = Vec::new();
            for time in 0..length {
                let key = history * KEYS_IN_A_HISTORY + random.random_range(0..KEYS_IN_A_HISTORY);
                let other = history * KEYS_IN_A_HISTORY + random.random_range(0..KEYS_IN_A_HISTORY);
                let mut batch = time * batches / length;
                let mut time = time as u32 + 10;
                match random.random_range(0..20) {
                    // Sent again, byte for byte, sometimes by another way.
                    0 | 1 if !own.is_empty() => {
                        let again = own[random.random_range(0..own.len())].clone();
                        let lane = if random.random_range(0..4) == 0 { random.random_range(0..3) } else { again.lane };
                        own.push(Event { batch, lane, ..again });
                        continue;
                    }
                    // Late.
                    2 | 3 => batch = random.random_range(batch..batches),
                    // From anywhere.
                    4 => time = random.random_range(1..40),
                    _ => {}
                }
                let position = match has_positions {
                    0 => None,
                    1 if random.random_range(0..3) == 0 => None,
                    _ => Some(time * 1000 + history as u32),
                };
                let lane = lane_of(key, batch, random);
                let (name, note) = (random.random_range(0..9), random.random_range(0..2u8));
                let note = (note > 0 || !(placeholders || nulls)).then(|| random.random_range(0..9));
                let nulls = nulls && (!placeholders || random.random_range(0..2) == 0);
                let time = match random.random_range(0..10) {
                    0 => None,
                    // A clock that was set, or several events of one moment.
                    1 | 2 => Some(SENT_MS + random.random_range(1..40)),
                    _ => Some(SENT_MS + i64::from(time)),
                };
                let kind = Kind::Update;
                let event = Event { key, kind, name, note, nulls, position, lane, batch, time, epoch: 0, offset: 0 };
                let of_kind = |kind: Kind| Event { kind, ..event.clone() };
                match random.random_range(0..12) {
                    0..3 => own.push(of_kind(Kind::Create)),
                    3..6 => own.push(of_kind(Kind::Delete)),
                    // How a source that captures by primary key says that it changed.
                    6 => {
                        own.push(of_kind(Kind::Delete));
                        let lane = lane_of(other, batch, random);
                        own.push(Event { key: other, lane, ..of_kind(Kind::Create) });
                    }
                    7 if other != key => own.push(of_kind(Kind::MovedFrom(other))),
                    8 if has_keyless => own.push(of_kind(Kind::Keyless)),
                    _ => own.push(of_kind(Kind::Update)),
                }
            }
            events.extend(own);
        }
        for _ in 0..random.random_range(0..4).min(2) {
            let (time, batch) = (random.random_range(10..30), random.random_range(0..batches));
            let truncate = Event {
                key: -1,
                kind: Kind::Truncate,
                name: 0,
                note: None,
                nulls: false,
                position: Some(time * 1000 + 500),
                lane: 0,
                batch,
                time: Some(SENT_MS + i64::from(time)),
                epoch: 0,
                offset: 0,
            };
            events.insert(random.random_range(0..=events.len()), truncate);
        }
        // A stable sort: of one batch, a history's events come in the order they were made.
        events.sort_by_key(|event| event.batch);
        let new_epoch = if random.random_range(0..5) == 0 { random.random_range(0..batches) } else { batches };
        let mut offsets = [0; LANES.len()];
        for event in &mut events {
            event.epoch = i32::from(event.batch >= new_epoch);
            event.offset = offsets[event.lane];
            offsets[event.lane] += 1;
        }
        let on_delete = if random.random_range(0..2) == 0 { OnDelete::Remove } else { OnDelete::Mark };
        let mut properties = Vec::new();
        match random.random_range(0..4) {
            0 => properties.push(("write.merge.mode", "copy-on-write")),
            1 => properties.push(("write.merge.mode", "merge-on-read")),
            _ => {}
        }
        if random.random_range(0..2) == 0 {
            properties.extend([("icestream.merge.small-files-max", "3"), ("icestream.merge.delete-files-max", "2")]);
        }
        if random.random_range(0..2) == 0 {
            // Files of a few rows would else be stored anew almost always.
            properties.push(("icestream.merge.deleted-percent-max", "60"));
        }
        let scd = match random.random_range(0..4) {
            0 => Scd::Two { track_history: Vec::new() },
            1 => Scd::Two { track_history: vec!["name".to_string()] },
            _ => Scd::One,
        };
        let ignore_nulls = match random.random_range(0..5) {
            0 | 1 => IgnoreNulls::Everywhere,
            2 => IgnoreNulls::In(vec!["note".to_string()]),
            3 => IgnoreNulls::In(vec!["name".to_string()]),
            _ => IgnoreNulls::Nowhere,
        };
        // Too little for one pass. Only what needs no sort can do with so little.
        let fits_little = on_delete == OnDelete::Remove && !placeholders && (!nulls || !ignores_notes(&ignore_nulls));
        let memory = if fits_little && random.random_range(0..2) == 0 { 1 << 20 } else { 256 << 20 };
        let expect = match random.random_range(0..3) {
            0 => Vec::new(),
            _ => rules(random),
        };
        let sql = match random.random_range(0..8) {
            0 => Some("SELECT id, name AS name, note FROM changes"),
            1 => Some("SELECT id, name, note || '' AS note FROM changes"),
            2 => Some("SELECT id, concat(name, '') AS name, note FROM changes"),
            3 => Some("SELECT id, name, note FROM changes WHERE id >= 0"),
            4 => Some("SELECT *, length(note) AS size FROM changes"),
            _ => None,
        };
        World { events, batches, merges, new_epoch, on_delete, scd, ignore_nulls, sql, expect, memory, properties }
    }

    /// Whether a row with these values is in the table, or in its quarantine and why.
    fn place_of_row(&self, name: &str, note: Option<&str>) -> InTable {
        let broken = |rule: &&Rule| match rule.name.as_str() {
            "not_n3" => name == "n3",
            "no_long_5" => note == Some("long 5"),
            "not_n1" => name == "n1",
            "has_note" => note.is_none(),
            other => panic!("unknown rule `{other}`"),
        };
        let broken: Vec<&Rule> = self.expect.iter().filter(broken).collect();
        if broken.iter().any(|rule| rule.action == Action::Drop) {
            return InTable::Dropped;
        }
        let names = broken.iter().filter(|rule| rule.action == Action::Quarantine).map(|rule| rule.name.clone());
        match names.collect::<Vec<_>>() {
            names if names.is_empty() => InTable::Yes,
            names => InTable::Quarantined(names),
        }
    }

    /// The events in order, but for those that a truncation took; an update that moves a row is for the key it leaves
    /// what a delete is.
    fn in_order(&self) -> Vec<(Place, i32, &Event, bool)> {
        let truncations = self.events.iter().filter(|event| event.kind == Kind::Truncate);
        let truncated = truncations.map(|event| (event.epoch, event.position)).max();
        let changes = self.events.iter().filter(|event| !matches!(event.kind, Kind::Truncate | Kind::Keyless));
        let live = changes.filter(|event| truncated.is_none_or(|at| (event.epoch, event.position) > at));
        let mut order = Vec::new();
        for event in live {
            order.push((event.place(), event.key, event, event.kind == Kind::Delete));
            if let Kind::MovedFrom(old) = event.kind {
                order.push((event.place(), old, event, true));
            }
        }
        order.sort_by_key(|(place, key, ..)| (*place, *key));
        order
    }

    /// Whether the event says what the note is: a null may say nothing of a row that is there.
    fn says(&self, event: &Event, is_there: bool) -> bool {
        event.sends_note() && (event.note.is_some() || !is_there || !ignores_notes(&self.ignore_nulls))
    }

    /// The fold in plain Rust.
    fn truth(&self) -> Rows {
        let mut rows: Rows = BTreeMap::new();
        let mut notes: BTreeMap<i32, Option<String>> = BTreeMap::new();
        let mut there: BTreeSet<i32> = BTreeSet::new();
        for (_, key, event, is_delete) in self.in_order() {
            if is_delete {
                there.remove(&key);
                match self.on_delete {
                    OnDelete::Remove => drop(rows.remove(&key)),
                    OnDelete::Mark => {
                        if let Some(row) = rows.get_mut(&key) {
                            row.2 = true;
                        }
                    }
                }
                continue;
            }
            let sent = event.note.map(|note| format!("long {note}"));
            let was_there = !there.insert(key);
            if self.says(event, was_there) {
                notes.insert(key, sent);
            }
            let note = notes.get(&key).cloned().flatten();
            rows.insert(key, (format!("n{}", event.name), note, false));
        }
        rows
    }

    /// The rows of the table, and those of its quarantine.
    fn sides(&self) -> (Rows, Rows) {
        let (mut table, mut quarantine) = (Rows::new(), Rows::new());
        for (key, row) in self.truth() {
            match self.place_of_row(&row.0, row.1.as_deref()) {
                InTable::Yes => drop(table.insert(key, row)),
                InTable::Quarantined(_) => drop(quarantine.insert(key, row)),
                InTable::Dropped => {}
            }
        }
        (table, quarantine)
    }

    /// Where the events without a key stand, and why each row of the quarantine is there.
    fn reasons(&self) -> Reasons {
        // What a model leaves out is for neither table.
        let is_left_out = self.sql.is_some_and(|sql| sql.contains("WHERE id >= 0"));
        let keyless = self.events.iter().filter(|event| event.kind == Kind::Keyless && !is_left_out);
        let mut reasons: Reasons = keyless
            .map(|event| (None, format!("{:?} {}", LANES[event.lane], event.offset), vec!["null_key".to_string()]))
            .collect();
        for (key, row) in self.truth() {
            if let InTable::Quarantined(names) = self.place_of_row(&row.0, row.1.as_deref()) {
                reasons.insert((Some(key), String::new(), names));
            }
        }
        reasons
    }

    /// The versions of each key's row, in plain Rust; or those of them that are in quarantine.
    fn versions(&self, in_quarantine: bool) -> Versions {
        let Scd::Two { track_history } = &self.scd else { panic!("a table without versions") };
        let mut versions: Versions = BTreeMap::new();
        // A truncation comes behind everything of its position.
        #[allow(clippy::type_complexity, reason = "a step of this one computation")]
        let mut steps: Vec<(i32, (i32, Option<u32>), bool, Place, Option<&Event>, bool)> = Vec::new();
        let keys: BTreeSet<i32> = self.events.iter().map(|event| event.key).filter(|key| *key >= 0).collect();
        for event in &self.events {
            let (place, at) = (event.place(), (event.epoch, event.position));
            if event.kind == Kind::Keyless {
                continue;
            }
            if event.kind == Kind::Truncate {
                steps.extend(keys.iter().map(|key| (*key, at, true, place, Some(event), true)));
                continue;
            }
            steps.push((event.key, at, false, place, Some(event), event.kind == Kind::Delete));
            if let Kind::MovedFrom(old) = event.kind {
                steps.push((old, at, false, place, Some(event), true));
            }
        }
        steps.sort_by_key(|(key, at, truncates, place, ..)| (*key, *at, *truncates, *place));
        let mut notes: BTreeMap<i32, Option<String>> = BTreeMap::new();
        let mut there: BTreeSet<i32> = BTreeSet::new();
        let mut until: BTreeMap<i32, i64> = BTreeMap::new();
        for (key, _, truncates, _, event, ends) in steps {
            let event = event.unwrap();
            let of_key = versions.entry(key).or_default();
            let until = until.entry(key).or_insert(i64::MIN);
            let time = event.time.unwrap_or(SENT_MS) * 1000;
            let current = of_key.last_mut().filter(|version| version.to.is_none());
            let sent = event.note.map(|note| format!("long {note}"));
            if ends {
                there.remove(&key);
            } else if self.says(event, !there.insert(key)) {
                notes.insert(key, sent);
            }
            let (name, note) = (format!("n{}", event.name), notes.get(&key).cloned().flatten());
            let deletes = ends;
            let ends = ends
                || match self.place_of_row(&name, note.as_deref()) {
                    InTable::Yes => in_quarantine,
                    InTable::Quarantined(_) => !in_quarantine,
                    InTable::Dropped => true,
                };
            match current {
                None if ends => {}
                Some(version)
                    if !ends && version.name == name && (!track_history.is_empty() || version.note == note) =>
                {
                    version.note = note;
                }
                current => {
                    *until = time.max(*until);
                    let mut marker = None;
                    if let Some(version) = current {
                        version.to = Some(*until);
                        let marks = deletes && !truncates && self.on_delete == OnDelete::Mark;
                        marker = marks.then(|| Version { from: *until, is_deleted: true, ..version.clone() });
                    }
                    of_key.extend(marker);
                    if !ends {
                        of_key.push(Version { from: *until, to: None, is_deleted: false, name, note });
                    }
                }
            }
        }
        versions.retain(|_, versions| !versions.is_empty());
        for versions in versions.values_mut() {
            let pairs = versions.windows(2);
            assert!(pairs.into_iter().all(|pair| pair[0].to.is_some_and(|to| to <= pair[1].from)), "{versions:?}");
            versions.sort();
        }
        versions
    }

    /// Gives how many keys went on from their rows, and how many were folded from history.
    async fn check(&self, seed: u64) -> [u64; 2] {
        let folder = tempfile::tempdir().unwrap();
        let mut parts = Parts::open_with(folder.path(), self.memory).await;
        let (scd, ignore_nulls) = (&self.scd, &self.ignore_nulls);
        let of = |table: &str| SilverModel {
            scd: scd.clone(),
            ignore_nulls: ignore_nulls.clone(),
            sql: self.sql.map(str::to_string),
            expect: self.expect.clone(),
            ..model(table, self.on_delete)
        };
        let merged = of("merged");
        for batch in 0..self.batches {
            if batch == self.new_epoch {
                parts.start(1);
            }
            for event in self.events.iter().filter(|event| event.batch == batch) {
                parts.push(event);
            }
            parts.commit().await;
            if self.merges.contains(&batch) {
                parts.merge(&merged).await;
                if let Ok(table) = parts.lake.table(&merged.table).await
                    && let Some((name, _)) = self.properties.first()
                    && !table.properties().contains_key(*name)
                {
                    let change = self
                        .properties
                        .iter()
                        .fold(table.change(), |change, (key, value)| change.set_property(*key, *value));
                    change.commit().await.unwrap();
                }
            }
        }
        // In every other world: it takes its time.
        if self.memory > 1 << 20 && seed.is_multiple_of(2) {
            parts.merge_as_stated(&merged, seed).await;
        }
        parts.merge(&merged).await;
        let rebuilt = of("rebuilt");
        parts.merge(&rebuilt).await;
        for (how, model) in [("merged bit by bit", &merged), ("built at once", &rebuilt)] {
            self.compare_table(seed, how, &parts, model).await;
        }
        let counted = [parts.counted(&merged, "carried").await, parts.counted(&merged, "folded").await];
        if *scd == Scd::One {
            for side in [SilverModel::quarantine, |model: &SilverModel| model.table.clone()] {
                let (found, expected) = (parts.whole(&side(&merged)).await, parts.whole(&side(&rebuilt)).await);
                assert_eq!(found, expected, "{:?}\nICESTREAM_SEED={seed}", merged);
            }
        }
        // Running again changes nothing.
        let heads = async || {
            let quarantine = parts.lake.table_if_exists(&merged.quarantine()).await.unwrap();
            (parts.lake.table(&merged.table).await.unwrap().snapshot_id(), quarantine.and_then(|of| of.snapshot_id()))
        };
        let before = heads().await;
        parts.merge(&merged).await;
        assert_eq!(heads().await, before);
        // Whatever somebody does to the rows, what bronze says of their keys can be had again.
        if self.memory > 1 << 20 && before.0.is_some() {
            let has_rows = match self.scd {
                Scd::One => !parts.rows(&merged).await.is_empty(),
                Scd::Two { .. } => !parts.versions(&merged).await.is_empty(),
            };
            parts.damage(&merged).await;
            let report = parts.verify(&merged, seed).await;
            assert!(report.is_sound() != has_rows, "{}\nICESTREAM_SEED={seed}", verify_text(&report));
            parts.mend(&merged, 0).await;
            self.compare_table(seed, "mended", &parts, &merged).await;
            let after = parts.lake.table(&merged.table).await.unwrap().snapshot_id();
            parts.merge(&merged).await;
            assert_eq!(parts.lake.table(&merged.table).await.unwrap().snapshot_id(), after);
        }
        counted
    }

    async fn compare_table(&self, seed: u64, how: &str, parts: &Parts, model: &SilverModel) {
        let quarantine = SilverModel { table: model.quarantine(), ..model.clone() };
        // In some worlds: it takes its time. Too little for sorting is too little for looking at versions.
        if self.memory > 1 << 20 && seed.is_multiple_of(3) {
            let report = parts.verify(model, seed).await;
            // But for the topics: there are none.
            let skipped = report.checks().filter(|check| check.verdict == verify::Verdict::Skipped);
            assert!(
                report.is_sound() && skipped.count() <= 1,
                "{how}\n{}\nICESTREAM_SEED={seed}",
                verify_text(&report)
            );
        }
        match self.scd {
            Scd::One => {
                let (table, kept_apart) = self.sides();
                self.compare(seed, how, &parts.rows(model).await, &table);
                self.compare(seed, &format!("{how}, quarantine"), &parts.rows(&quarantine).await, &kept_apart);
                assert_eq!(parts.reasons(&quarantine).await, self.reasons(), "{how}\nICESTREAM_SEED={seed}");
            }
            Scd::Two { .. } => {
                self.compare(seed, how, &parts.versions(model).await, &self.versions(false));
                let found = parts.versions(&quarantine).await;
                self.compare(seed, &format!("{how}, quarantine"), &found, &self.versions(true));
            }
        }
    }

    fn compare<V: PartialEq + std::fmt::Debug>(
        &self,
        seed: u64,
        how: &str,
        found: &BTreeMap<i32, V>,
        expected: &BTreeMap<i32, V>,
    ) {
        let keys: BTreeSet<i32> = found.keys().chain(expected.keys()).copied().collect();
        let Some(key) = keys.into_iter().find(|key| found.get(key) != expected.get(key)) else { return };
        let history = key / KEYS_IN_A_HISTORY;
        let events: Vec<String> = self
            .events
            .iter()
            .filter(|event| event.key < 0 || event.key / KEYS_IN_A_HISTORY == history)
            .map(|event| format!("{event:?}"))
            .collect();
        panic!(
            "{how}: key {key} is {:?} and should be {:?}\n{:?}, {:?}, {:?}, merges behind batches {:?}\n{}\nICESTREAM_SEED={seed}",
            found.get(&key),
            expected.get(&key),
            self.on_delete,
            self.scd,
            self.ignore_nulls,
            self.merges,
            events.join("\n")
        );
    }
}

/// Where the row of a key is.
enum InTable {
    Yes,
    Quarantined(Vec<String>),
    Dropped,
}

/// Why rows are in quarantine: their key or, where they have none, their event; and the rules.
type Reasons = BTreeSet<(Option<i32>, String, Vec<String>)>;

fn rule(name: &str, condition: &str, action: Action) -> Rule {
    Rule { name: name.to_string(), test: Test::That(condition.to_string()), action }
}

/// Some rules, with actions that leave rows out, or only look.
fn rules(random: &mut StdRng) -> Vec<Rule> {
    let mut action = || match random.random_range(0..4) {
        0 => Action::Drop,
        1 => Action::Warn,
        _ => Action::Quarantine,
    };
    vec![
        rule("not_n3", "name <> 'n3'", action()),
        rule("no_long_5", "note <> 'long 5'", action()),
        rule("not_n1", "name NOT IN ('n1')", action()),
        Rule { name: "has_note".to_string(), test: Test::NotNull { column: "note".to_string() }, action: action() },
    ]
}

/// `id -> (name, note, is_deleted)`.
type Rows = BTreeMap<i32, (String, Option<String>, bool)>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    from: i64,
    to: Option<i64>,
    is_deleted: bool,
    name: String,
    note: Option<String>,
}

type Versions = BTreeMap<i32, Vec<Version>>;

struct Parts {
    lake: Lake,
    options: EngineOptions,
    engine: Engine,
    bronze: BronzeTable,
    builder: ChangeBatchBuilder,
    offsets: [i64; LANES.len()],
}

impl Parts {
    async fn open(folder: &std::path::Path) -> Self {
        Parts::open_with(folder, 256 << 20).await
    }

    async fn open_with(folder: &std::path::Path, memory_bytes: u64) -> Self {
        let lake = sqlite_lake(folder).await;
        let column = |name: &str, column_type| Column::new(name, column_type, None).unwrap();
        let shape = Arc::new(RowShape {
            columns: vec![
                column("id", ColumnType::Int),
                column("name", ColumnType::String),
                column("note", ColumnType::String),
            ],
        });
        let definition = BronzeDefinition {
            name: "bronze.parts".parse().unwrap(),
            shape: Some(shape),
            evolution: Evolution::Evolve,
            partition: vec!["day(_ingested_at)".to_string()],
            properties: Default::default(),
        };
        let bronze = BronzeTable::open(&lake, &definition).await.unwrap();
        let options = EngineOptions { memory_bytes, threads: 2, spill_dir: folder.join("spill") };
        let builder = ChangeBatchBuilder::new(bronze.images().unwrap(), 0, Clock::system());
        let engine = Engine::new(&options).unwrap();
        let mut parts = Parts { lake, options, engine, bronze, builder, offsets: [0; LANES.len()] };
        parts.start(0);
        parts
    }

    fn start(&mut self, epoch: i32) {
        self.start_at(epoch, Clock::system());
    }

    fn start_at(&mut self, epoch: i32, clock: Clock) {
        self.builder = ChangeBatchBuilder::new(self.bronze.images().unwrap(), epoch, clock);
        for ((topic, partition), offset) in LANES.into_iter().zip(self.offsets) {
            self.builder.start(TopicPartition::new(topic, partition), offset).unwrap();
        }
    }

    fn push(&mut self, event: &Event) {
        let key = format!(r#"{{"id":{}}}"#, event.key);
        let (topic, partition) = LANES[event.lane];
        let record = RawRecord {
            topic: topic.into(),
            partition,
            offset: event.offset,
            timestamp_ms: Some(SENT_MS),
            key: (event.kind != Kind::Truncate).then(|| Bytes::from(key)),
            payload: Some(Bytes::from(event.payload())),
        };
        self.offsets[event.lane] = event.offset + 1;
        self.builder.push(decode(record, Format::DebeziumJson)).unwrap();
    }

    async fn commit(&mut self) {
        if self.builder.has_progress() {
            let batch = self.builder.finish().unwrap();
            assert_eq!(batch.counts.rejected, 0);
            assert_eq!(self.bronze.stage(&batch).await.unwrap(), bronze::Staging::Staged);
            let outcome = self.bronze.commit(&batch.ranges, &BTreeMap::new(), batch.counts).await.unwrap();
            assert!(matches!(outcome, bronze::Outcome::Committed(_)));
        }
    }

    async fn merge(&self, model: &SilverModel) {
        let with = async |engine| silver::merge(&self.lake, engine, model, &silver::Lookups::default()).await;
        match with(&self.engine).await {
            // A mebibyte is too little for some sorts. Then nothing has happened, and whoever has more goes on from there.
            Err(silver::Error::Query { source: engine::Error::OutOfMemory { .. }, .. }) if self.has_little() => {
                with(&Engine::new(&EngineOptions { memory_bytes: 256 << 20, ..self.options.clone() }).unwrap()).await
            }
            outcome => outcome,
        }
        .unwrap();
    }

    fn has_little(&self) -> bool {
        self.options.memory_bytes <= 1 << 20
    }

    /// Merges, and has the statement that the merge stands for give the same rows.
    async fn merge_as_stated(&self, model: &SilverModel, seed: u64) {
        let Some(statement) = silver::statement(&self.lake, &self.engine, model).await.unwrap() else { return };
        let dialect = GenericDialect {};
        let (sql, at) = unpinned(&statement.sql);
        assert!(Parser::parse_sql(&dialect, &sql).is_ok(), "{:?}\n{sql}", Parser::parse_sql(&dialect, &sql));
        let before = self.lake.table_if_exists(&model.table).await.unwrap();
        self.merge(model).await;
        let after = self.lake.table(&model.table).await.unwrap();
        let columns = after.columns().into_iter().map(|column| format!("\"{}\"", column.name));
        let columns = columns.filter(|name| name != "\"_merged_at\"").collect::<Vec<_>>().join(", ");
        let session = self.engine.session();
        let bronze = self.lake.table(&model.from).await.unwrap();
        for snapshot in at {
            let name = format!("{}{AT}{snapshot}", model.from).parse().unwrap();
            engine::register(&session, &name, bronze.view(At::Snapshot(snapshot)).unwrap()).unwrap();
        }
        engine::register(&session, &"silver.after".parse().unwrap(), after.view(At::Head).unwrap()).unwrap();
        let mut expected = rows_of(&session, &format!("SELECT {columns} FROM silver.after")).await;
        let rows = unpinned(&statement.rows).0;
        let mut found = rows_of(&session, &format!("SELECT {columns} FROM ({rows}) AS stated")).await;
        if let (Some(_), Some(before)) = (statement.from, before) {
            engine::register(&session, &"silver.before".parse().unwrap(), before.view(At::Head).unwrap()).unwrap();
            let untouched = format!(
                "SELECT {columns} FROM silver.before WHERE id NOT IN (SELECT id FROM ({}) AS touched)",
                unpinned(&statement.touched).0
            );
            found.extend(rows_of(&session, &untouched).await);
        }
        found.sort();
        expected.sort();
        if let Some(at) = (0..found.len().max(expected.len())).find(|at| found.get(*at) != expected.get(*at)) {
            let (found, expected) = (found.get(at), expected.get(at));
            panic!("stated {found:?}\nmerged {expected:?}\n{:?}\n{}\nICESTREAM_SEED={seed}", model, statement.sql);
        }
    }

    /// What somebody might do to a silver table: rows are gone, doubled, and say something else.
    async fn damage(&self, model: &SilverModel) {
        let table = self.lake.table(&model.table).await.unwrap();
        let session = self.engine.session();
        engine::register(&session, &model.table, table.view(At::Head).unwrap()).unwrap();
        let sql = format!(
            "SELECT * REPLACE ('damaged' AS name) FROM {table} WHERE id % 3 <> 0 \
             UNION ALL SELECT * FROM {table} WHERE id % 5 = 0",
            table = model.table
        );
        let mut writer = table.writer(None).unwrap();
        for batch in engine::plan(&session, &sql).await.unwrap().collect().await.unwrap() {
            writer.write(&batch).await.unwrap();
        }
        table.change().replace_all(writer.finish().await.unwrap()).commit().await.unwrap();
    }

    /// Every key of bronze and of the model's tables.
    async fn verify(&self, model: &SilverModel, seed: u64) -> verify::Report {
        let models = Models { silver: vec![model.clone()], ..Models::default() };
        let options = verify::Options { sample: None, seed, show: 10 };
        let project = verify::Project { lake: &self.lake, engine: &self.engine, bronze: "bronze", models: &models };
        let topics = verify::Topics::Skipped(String::new());
        verify::verify(&project, &options, topics, |_| true, |_| {}).await.unwrap()
    }

    async fn mend(&self, model: &SilverModel, since_us: i64) {
        silver::build(&self.lake, &self.engine, model, &silver::Lookups::default(), Extent::Since(since_us))
            .await
            .unwrap();
    }

    async fn versions(&self, model: &SilverModel) -> Versions {
        let Some(table) = self.lake.table_if_exists(&model.table).await.unwrap() else { return Versions::new() };
        let session = self.engine.session();
        engine::register(&session, &model.table, table.view(At::Head).unwrap()).unwrap();
        let deleted = if model.on_delete == OnDelete::Mark { "_is_deleted" } else { "false" };
        let sql = format!(
            "SELECT id, name, note, {deleted} AS gone, cast(_valid_from AS bigint) AS since, \
             cast(_valid_to AS bigint) AS until, _is_current FROM {} WHERE id IS NOT NULL",
            model.table
        );
        let mut versions = Versions::new();
        for batch in engine::plan(&session, &sql).await.unwrap().collect().await.unwrap() {
            let text = |column: usize, row: usize| {
                let texts = batch.column(column).as_string::<i32>();
                texts.is_valid(row).then(|| texts.value(row).to_string())
            };
            let flag = |column: usize, row: usize| batch.column(column).as_boolean().value(row);
            let long = |column: usize, row: usize| {
                let longs = batch.column(column).as_primitive::<Int64Type>();
                longs.is_valid(row).then(|| longs.value(row))
            };
            for row in 0..batch.num_rows() {
                let id = batch.column(0).as_primitive::<Int32Type>().value(row);
                let version = Version {
                    from: long(4, row).unwrap(),
                    to: long(5, row),
                    is_deleted: flag(3, row),
                    name: text(1, row).unwrap(),
                    note: text(2, row),
                };
                assert_eq!(flag(6, row), version.to.is_none(), "{version:?}");
                versions.entry(id).or_default().push(version);
            }
        }
        versions.values_mut().for_each(|versions| versions.sort());
        versions
    }

    /// How many keys the table's snapshots say went one way.
    async fn counted(&self, model: &SilverModel, way: &str) -> u64 {
        let Some(table) = self.lake.table_if_exists(&model.table).await.unwrap() else { return 0 };
        let name = format!("icestream.keys-{way}");
        let counts = table.snapshots().into_iter().filter_map(|of| of.summary.get(&name)?.parse::<u64>().ok());
        counts.sum()
    }

    /// Every column of every row, but for when it was merged.
    async fn whole(&self, table: &TableName) -> Vec<String> {
        let Some(table) = self.lake.table_if_exists(table).await.unwrap() else { return Vec::new() };
        let session = self.engine.session();
        engine::register(&session, table.name(), table.view(At::Head).unwrap()).unwrap();
        let mut rows = rows_of(&session, &format!("SELECT * EXCEPT (_merged_at) FROM {}", table.name())).await;
        rows.sort();
        rows
    }

    async fn rows(&self, model: &SilverModel) -> Rows {
        let Some(table) = self.lake.table_if_exists(&model.table).await.unwrap() else { return Rows::new() };
        let session = self.engine.session();
        engine::register(&session, &model.table, table.view(At::Head).unwrap()).unwrap();
        let deleted = if model.on_delete == OnDelete::Mark { "_is_deleted" } else { "false" };
        let sql = format!("SELECT id, name, note, {deleted} AS gone FROM {} WHERE id IS NOT NULL", model.table);
        let mut rows = Rows::new();
        for batch in engine::plan(&session, &sql).await.unwrap().collect().await.unwrap() {
            let any = |index: usize| batch.column(index).as_any();
            let ids = any(0).downcast_ref::<Int32Array>().unwrap();
            let names = any(1).downcast_ref::<StringArray>().unwrap();
            let notes = any(2).downcast_ref::<StringArray>().unwrap();
            let gone = any(3).downcast_ref::<BooleanArray>().unwrap();
            for row in 0..batch.num_rows() {
                let note = notes.is_valid(row).then(|| notes.value(row).to_string());
                let value = (names.value(row).to_string(), note, gone.value(row));
                assert!(rows.insert(ids.value(row), value).is_none(), "key {} is there twice", ids.value(row));
            }
        }
        rows
    }
}

const AT: &str = "_at_";

/// The statement as our own engine can read it, each snapshot of a table under a name of its own, and those snapshots.
fn unpinned(sql: &str) -> (String, BTreeSet<i64>) {
    let mut parts = sql.split(" FOR VERSION AS OF ");
    let (mut text, mut snapshots) = (parts.next().unwrap().to_string(), BTreeSet::new());
    for part in parts {
        let digits = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        snapshots.insert(part[..digits].parse().unwrap());
        text.push_str(AT);
        text.push_str(part);
    }
    (text.replace("contains(", "array_has("), snapshots)
}

async fn rows_of(session: &SessionContext, sql: &str) -> Vec<String> {
    let frame = engine::plan(session, sql).await.unwrap_or_else(|error| panic!("{error:?}\n{sql}"));
    let batches = frame.collect().await.unwrap_or_else(|error| panic!("{error}\n{sql}"));
    let mut rows = Vec::new();
    for batch in batches {
        let options = FormatOptions::default().with_null("null");
        let columns: Vec<ArrayFormatter<'_>> =
            batch.columns().iter().map(|column| ArrayFormatter::try_new(column, &options).unwrap()).collect();
        rows.extend(
            (0..batch.num_rows())
                .map(|row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(" | ")),
        );
    }
    rows
}

fn ignores_notes(ignore_nulls: &IgnoreNulls) -> bool {
    match ignore_nulls {
        IgnoreNulls::Nowhere => false,
        IgnoreNulls::Everywhere => true,
        IgnoreNulls::In(columns) => columns.iter().any(|column| column == "note"),
    }
}

impl Parts {
    async fn reasons(&self, quarantine: &SilverModel) -> Reasons {
        let Some(table) = self.lake.table_if_exists(&quarantine.table).await.unwrap() else { return Reasons::new() };
        let session = self.engine.session();
        engine::register(&session, &quarantine.table, table.view(At::Head).unwrap()).unwrap();
        let sql =
            format!("SELECT id, _topic, _topic_partition, _offset, _rules FROM {} ORDER BY 1, 4", quarantine.table);
        let mut reasons = Reasons::new();
        for batch in engine::plan(&session, &sql).await.unwrap().collect().await.unwrap() {
            for row in 0..batch.num_rows() {
                let ids = batch.column(0).as_primitive::<Int32Type>();
                let key = ids.is_valid(row).then(|| ids.value(row));
                let lane = (batch.column(1).as_string::<i32>().value(row), batch.column(2).as_primitive::<Int32Type>());
                let event = format!(
                    "{:?} {}",
                    (lane.0, lane.1.value(row)),
                    batch.column(3).as_primitive::<Int64Type>().value(row)
                );
                let names = batch.column(4).as_list::<i32>().value(row);
                let names = names.as_string::<i32>().iter().flatten().map(str::to_string).collect();
                let event = if key.is_none() { event } else { String::new() };
                assert!(reasons.insert((key, event, names)), "a row of the quarantine is there twice");
            }
        }
        reasons
    }
}

fn model(table: &str, on_delete: OnDelete) -> SilverModel {
    SilverModel {
        table: TableName::new("silver", table).unwrap(),
        from: "bronze.parts".parse().unwrap(),
        keys: vec!["id".to_string()],
        on_delete,
        scd: Scd::One,
        ignore_nulls: IgnoreNulls::Nowhere,
        sql: None,
        expect: Vec::new(),
    }
}

/// `ICESTREAM_HISTORIES` sets how many, `ICESTREAM_SEED` runs one world.
#[test]
fn any_histories_in_any_batches_fold_to_the_same_rows() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let worlds = number("ICESTREAM_HISTORIES").unwrap_or(2000).div_ceil(HISTORIES_IN_A_WORLD as u64);
    let seeds = match number("ICESTREAM_SEED") {
        Some(seed) => vec![seed],
        None => (0..worlds).collect(),
    };
    let mut counted = [0, 0];
    for seed in &seeds {
        let of_world = runtime.block_on(World::new(*seed).check(*seed));
        counted.iter_mut().zip(of_world).for_each(|(sum, count)| *sum += count);
    }
    // A way that nothing goes is a way that nothing is known about.
    println!("{} keys went on from their rows, {} were folded from history", counted[0], counted[1]);
    assert!(seeds.len() < 20 || counted.iter().all(|count| *count > 10 * seeds.len() as u64), "{counted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_sent_comes_from_the_row_where_that_tells_and_else_from_history() {
    /// A key's events, each merged by itself: what it says the note is, if that is sent, and its place.
    async fn check(model: &SilverModel, events: &[(Kind, Option<u8>, u32)], expected: [u64; 2]) {
        let folder = tempfile::tempdir().unwrap();
        let mut parts = Parts::open(folder.path()).await;
        for (offset, (kind, note, position)) in events.iter().enumerate() {
            let event = create(7, offset as i64, *position, offset as u8);
            parts.push(&Event { kind: *kind, note: *note, ..event });
            parts.commit().await;
            parts.merge(model).await;
        }
        let found = [parts.counted(model, "carried").await, parts.counted(model, "folded").await];
        assert_eq!(found, expected, "{model:?} {events:?}");
        let merged = parts.whole(&model.table).await;
        let rebuilt = SilverModel { table: "silver.rebuilt".parse().unwrap(), ..model.clone() };
        parts.merge(&rebuilt).await;
        assert_eq!(merged, parts.whole(&rebuilt.table).await, "{model:?} {events:?}");
    }
    use Kind::{Create, Delete, Update};
    let of = |sql: &str, on_delete| SilverModel { sql: Some(sql.to_string()), ..model("merged", on_delete) };
    let (plain, computed) =
        ("SELECT id, note AS text, name FROM changes", "SELECT id, upper(note) AS note FROM changes");
    let told = [(Create, Some(1), 10), (Update, None, 20), (Update, None, 30)];
    check(&of(plain, OnDelete::Remove), &told, [2, 0]).await;
    check(&model("merged", OnDelete::Mark), &told, [2, 0]).await;
    check(&of(computed, OnDelete::Remove), &told, [0, 2]).await;
    // What the model does not read need not be known.
    check(&of("SELECT id, name FROM changes", OnDelete::Remove), &told, [2, 0]).await;
    check(&of("SELECT id, name FROM changes WHERE name <> 'n1'", OnDelete::Remove), &told, [1, 1]).await;
    // An event that was overtaken, and one that comes between.
    check(&of(plain, OnDelete::Remove), &[told[0], told[2], (Update, Some(2), 20)], [1, 1]).await;
    check(&of(plain, OnDelete::Remove), &[told[0], (Create, Some(3), 30), (Update, None, 20)], [0, 1]).await;
    // A value that was sent before the key was deleted counts, and only history has it.
    check(&of(plain, OnDelete::Remove), &[told[0], (Delete, None, 20), (Update, None, 30)], [0, 1]).await;
    let marked = [told[0], (Delete, None, 20), (Update, None, 30), (Delete, None, 40)];
    check(&of(plain, OnDelete::Mark), &marked, [3, 0]).await;
    check(&of(computed, OnDelete::Mark), &marked, [0, 3]).await;
    // Deleted, and never there.
    check(&model("merged", OnDelete::Mark), &[(Delete, None, 10), told[1]], [0, 1]).await;
    // A null that says nothing: to a row that begins, it is one.
    let ignoring = SilverModel { ignore_nulls: IgnoreNulls::Everywhere, ..model("merged", OnDelete::Remove) };
    check(&ignoring, &[(Create, None, 10), (Create, Some(1), 20), (Create, None, 30)], [2, 0]).await;
    check(&ignoring, &[told[0], (Delete, None, 20), (Create, None, 30), told[1]], [1, 1]).await;
}

fn create(key: i32, offset: i64, position: u32, name: u8) -> Event {
    let kind = Kind::Create;
    let (note, position) = (None, Some(position));
    Event { key, kind, name, note, nulls: false, position, lane: 0, batch: 0, time: None, epoch: 0, offset }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_go_on_from_rows_whether_these_are_many_of_the_table_or_few() {
    let folder = tempfile::tempdir().unwrap();
    let of = |table: &str| SilverModel { scd: Scd::Two { track_history: Vec::new() }, ..model(table, OnDelete::Mark) };
    let merged = of("merged");
    let mut parts = Parts::open(folder.path()).await;
    let mut offset = 0;
    // All, few, many, and few again, which by then have versions that ended.
    for (name, step) in [(1, 1), (2, 100), (3, 2), (4, 100)] {
        for key in (0..400).filter(|key| key % step == 0) {
            let kind = if name == 4 && key == 200 { Kind::Delete } else { Kind::Create };
            parts.push(&Event { kind, ..create(key, offset, offset as u32 + 10, name) });
            offset += 1;
        }
        parts.commit().await;
        parts.merge(&merged).await;
    }
    let rebuilt = of("rebuilt");
    parts.merge(&rebuilt).await;
    let versions = parts.versions(&merged).await;
    assert_eq!(versions, parts.versions(&rebuilt).await);
    let names = |key: i32| {
        let mut names: Vec<&str> = versions[&key].iter().map(|version| version.name.as_str()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(1), ["n1"]);
    assert_eq!(names(2), ["n1", "n3"]);
    assert_eq!(names(100), ["n1", "n2", "n3", "n4"]);
    assert_eq!(names(200), ["n1", "n2", "n3", "n3"]);
}

/// So many that both cores write, each its own keys. What comes out of a join is in no order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_with_lookups_is_that_without() {
    const KEYS: i32 = 110_000;
    let folder = tempfile::tempdir().unwrap();
    let of = |table: &str, sql: &str| SilverModel {
        scd: Scd::Two { track_history: Vec::new() },
        sql: Some(sql.to_string()),
        ..model(table, OnDelete::Remove)
    };
    let plain = of("plain", "SELECT id, name, note FROM changes WHERE name <> 'n3'");
    let looked_up = of(
        "looked_up",
        "SELECT c.id, coalesce(c.name, n.name) AS name, c.note FROM changes c \
         LEFT JOIN silver.names n ON n.id = c.id WHERE c.name <> 'n3'",
    );
    let names = model("names", OnDelete::Remove);
    let mut parts = Parts::open(folder.path()).await;
    let mut offset = 0;
    for (first, last) in [(0, 2), (3, 4)] {
        for name in first..=last {
            for key in (0..KEYS).filter(|key| name < 2 || key % 10 == 0) {
                // Far apart, as keys are in a topic.
                let key = (i64::from(key) * 7919 % i64::from(KEYS)) as i32;
                parts.push(&create(key, offset, offset as u32 + 10, name));
                offset += 1;
            }
        }
        parts.commit().await;
        parts.merge(&names).await;
        parts.merge(&plain).await;
        let mut lookups = silver::Lookups::default();
        lookups.pin(&parts.lake, &looked_up).await.unwrap();
        silver::merge(&parts.lake, &parts.engine, &looked_up, &lookups).await.unwrap();
        let versions = parts.versions(&plain).await;
        assert_eq!(versions.len(), KEYS as usize);
        assert_eq!(
            versions.values().map(Vec::len).sum::<usize>(),
            KEYS as usize * 2 + KEYS as usize / 10 * last as usize / 2
        );
        assert!(versions == parts.versions(&looked_up).await);
    }
}

/// Keeps the files in which no end is missing.
struct AllEnded;

impl Prune for AllEnded {
    fn keep(&self, statistics: &dyn ColumnStatistics) -> Vec<bool> {
        // Manifests do not count nulls.
        let Some(counts) = statistics.null_counts("_valid_to") else { return vec![true; statistics.len()] };
        counts.as_primitive::<UInt64Type>().values().iter().map(|count| *count == 0).collect()
    }
}

/// Who asks for current rows passes over those files, and so does a merge that goes on from current rows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_versions_that_end_lie_in_files_of_their_own() {
    const KEYS: i32 = 120_000;
    let folder = tempfile::tempdir().unwrap();
    let of = |table: &str| SilverModel { scd: Scd::Two { track_history: Vec::new() }, ..model(table, OnDelete::Mark) };
    let merged = of("merged");
    let mut parts = Parts::open(folder.path()).await;
    let (mut offset, mut ended_before) = (0, 0);
    for name in 1..=3 {
        for key in 0..KEYS {
            let key = (i64::from(key) * 7919 % i64::from(KEYS)) as i32;
            // Some go and come again, and some are sent again as they were.
            let kind = if name == 2 && key % 11 == 0 { Kind::Delete } else { Kind::Create };
            let name = if key % 13 == 0 { 1 } else { name };
            parts.push(&Event { kind, ..create(key, offset, offset as u32 + 10, name) });
            offset += 1;
        }
        parts.commit().await;
        parts.merge(&merged).await;
        let view = parts.lake.table(&merged.table).await.unwrap().view(At::Head).unwrap();
        let ended: u64 = view.files(Some(&AllEnded)).await.unwrap().iter().map(|file| file.record_count).sum();
        // Where a key is deleted, a row that says so comes besides the one that ends.
        let ends = |key: &i32| if name == 2 { key % 13 != 0 || key % 11 == 0 } else { key % 13 != 0 && key % 11 != 0 };
        let expected = (0..KEYS).filter(ends).count() as u64;
        let more = ended - std::mem::replace(&mut ended_before, ended);
        assert!(if name == 1 { more == 0 } else { more >= expected }, "{more} of {expected} by merge {name}");
    }
    let rebuilt = of("rebuilt");
    parts.merge(&rebuilt).await;
    let versions = parts.versions(&merged).await;
    assert_eq!(versions.len(), KEYS as usize);
    assert!(versions == parts.versions(&rebuilt).await);
    let names = |key: i32| {
        let mut names: Vec<&str> = versions[&key].iter().map(|version| version.name.as_str()).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(1), ["n1", "n2", "n3"]);
    assert_eq!(names(11), ["n1", "n1", "n3"]);
    assert_eq!(names(13), ["n1"]);
    assert_eq!(names(143), ["n1", "n1", "n1"]);
}

/// How many files lie in a folder, folders in it included.
fn files_in(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_in(&entry.path()) } else { 1 }).sum()
}

/// What a small budget cannot hold at once is laid out by key first, on disk; where there is no room for that, it is read
/// again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_do_not_fit_are_laid_out_by_key_where_there_is_room() {
    const KEYS: i32 = 6_000;
    const EVENTS: i64 = 45_000;
    for (scd, has_room) in [(Scd::One, true), (Scd::One, false), (Scd::Two { track_history: Vec::new() }, true)] {
        let folder = tempfile::tempdir().unwrap();
        let rule = Rule {
            name: "not_n7".to_string(),
            test: Test::That("name <> 'n7'".to_string()),
            action: Action::Quarantine,
        };
        let of =
            |table: &str| SilverModel { scd: scd.clone(), expect: vec![rule.clone()], ..model(table, OnDelete::Mark) };
        let mut parts = Parts::open(folder.path()).await;
        let spill_dir = folder.path().join("little");
        let little = EngineOptions { memory_bytes: 6 << 20, threads: 2, spill_dir: spill_dir.clone() };
        let little = Engine::new(&little).unwrap();
        if !has_room {
            std::fs::remove_dir_all(&spill_dir).unwrap();
        }
        let (merged, rebuilt) = (of("merged"), of("rebuilt"));
        let random = &mut StdRng::seed_from_u64(7);
        let mut null_keys = 0;
        for round in 0..2 {
            for at in 0..EVENTS {
                let offset = round * EVENTS + at;
                let key = random.random_range(0..KEYS);
                let kind = match random.random_range(0..100) {
                    0..50 => Kind::Create,
                    50..80 => Kind::Update,
                    80..90 => Kind::MovedFrom(random.random_range(0..KEYS)),
                    90..99 => Kind::Delete,
                    _ => Kind::Keyless,
                };
                let kind = if round == 0 && at == 7_000 { Kind::Truncate } else { kind };
                let note = random.random_bool(0.5).then(|| random.random_range(0..9));
                let name = random.random_range(0..250);
                parts.push(&Event { kind, note, ..create(key, offset, offset as u32 + 10, name) });
            }
            parts.commit().await;
            let watched = spill_dir.clone();
            let (ended, is_ended) = std::sync::mpsc::channel::<()>();
            let most = std::thread::spawn(move || {
                let mut most = 0;
                while is_ended.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                    most = files_in(&watched).max(most);
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
                most
            });
            let nothing = silver::Lookups::default();
            let outcome = silver::merge(&parts.lake, &little, &merged, &nothing).await;
            drop(ended);
            let most = most.join().unwrap();
            let Ok(silver::Outcome::Merged(commit)) = outcome else {
                panic!("{scd:?}, {has_room}, {round}: {outcome:?}")
            };
            null_keys += commit.null_keys;
            // There are twelve parts, and nothing else makes so many files at once.
            assert_eq!(most >= 12, has_room, "{scd:?}, {round}: {most} files at once");
            assert_eq!(files_in(&spill_dir), 0, "nothing stays");
        }
        parts.merge(&rebuilt).await;
        if scd == Scd::One {
            assert!(parts.rows(&merged).await == parts.rows(&rebuilt).await, "{has_room}");
        } else {
            let (found, expected) = (parts.versions(&merged).await, parts.versions(&rebuilt).await);
            assert!(expected.len() > KEYS as usize / 2, "{}", expected.len());
            assert!(found == expected, "{has_room}");
        }
        let quarantined = async |model: &SilverModel| {
            let session = parts.engine.session();
            let table = model.quarantine();
            engine::register(&session, &table, parts.lake.table(&table).await.unwrap().view(At::Head).unwrap())
                .unwrap();
            let mut rows = rows_of(&session, &format!("SELECT id, _topic_partition, _offset FROM {table}")).await;
            rows.sort();
            rows
        };
        let (found, expected) = (quarantined(&merged).await, quarantined(&rebuilt).await);
        assert_eq!(expected.iter().filter(|row| row.starts_with("null")).count() as u64, null_keys);
        assert!(expected.len() as u64 > null_keys && null_keys > 100, "{null_keys} of {}", expected.len());
        assert!(found == expected, "{scd:?}, {has_room}: {} and {} in quarantine", found.len(), expected.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bronze_table_made_anew_is_folded_from_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let merged = model("merged", OnDelete::Remove);
    let mut parts = Parts::open(folder.path()).await;
    for position in 1..4 {
        parts.push(&create(position as i32, i64::from(position) - 1, position, 1));
        parts.commit().await;
    }
    parts.merge(&merged).await;
    assert_eq!(parts.rows(&merged).await.len(), 3);
    parts.lake.drop_table(parts.bronze.name(), true).await.unwrap();
    let mut parts = Parts::open(folder.path()).await;
    parts.push(&create(9, 0, 1, 1));
    parts.commit().await;
    parts.merge(&merged).await;
    assert_eq!(parts.rows(&merged).await.into_keys().collect::<Vec<_>>(), [9]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_must_hold_leaves_the_table_as_it_was() {
    for scd in [Scd::One, Scd::Two { track_history: Vec::new() }] {
        let folder = tempfile::tempdir().unwrap();
        let mut parts = Parts::open(folder.path()).await;
        let expect =
            vec![rule("not_n1", "name <> 'n1'", Action::Quarantine), rule("not_n3", "name <> 'n3'", Action::Fail)];
        let merged = SilverModel { scd, expect, ..model("merged", OnDelete::Remove) };
        for (offset, name) in [(0, 0), (1, 1)] {
            parts.push(&create(offset, i64::from(offset), 10 + offset as u32, name));
        }
        parts.commit().await;
        let Ok(silver::Outcome::Merged(commit)) =
            silver::merge(&parts.lake, &parts.engine, &merged, &silver::Lookups::default()).await
        else {
            panic!("not merged")
        };
        let found: Vec<_> =
            commit.findings.iter().map(|of| (of.rule.as_str(), of.rows_checked, of.rows_failed)).collect();
        assert_eq!(found, [("not_n1", Some(2), 1), ("not_n3", Some(2), 0)]);
        let summary = parts.lake.table(&merged.table).await.unwrap().snapshots().pop().unwrap().summary;
        let noted: Vec<String> = summary
            .iter()
            .filter(|(key, _)| key.starts_with("icestream.rule") || key.ends_with("quarantined"))
            .map(|(key, value)| format!("{key} {value}"))
            .collect();
        assert_eq!(
            noted,
            ["icestream.rows-quarantined 1", "icestream.rule.not_n1 1", "icestream.rule.not_n3 0"],
            "{summary:?}"
        );
        let heads = async |parts: &Parts| {
            let mut heads = Vec::new();
            for table in [merged.table.clone(), merged.quarantine()] {
                heads.push(parts.lake.table(&table).await.unwrap().snapshot_id());
            }
            heads
        };
        let before = heads(&parts).await;
        for (offset, name) in [(2, 1), (3, 3), (4, 3)] {
            parts.push(&create(offset, i64::from(offset), 10 + offset as u32, name));
        }
        parts.commit().await;
        for _ in 0..2 {
            let error =
                silver::merge(&parts.lake, &parts.engine, &merged, &silver::Lookups::default()).await.unwrap_err();
            let error = icestream::error::Error::from(error);
            assert_eq!(error.kind().exit_code(), 4);
            insta::allow_duplicates!(insta::assert_snapshot!(error.render(), @"
            error: silver table `silver.merged` was not merged: its rows would break `not_n3` by 2 rows, the first from shop.public.parts/0 at offset 3
              the table is as it was; safe to run again
              hint: mend the source, or change what the rule does by its `else` in the model; the next build asks again
            "));
        }
        assert_eq!(heads(&parts).await, before);
        let table = parts.lake.table(&merged.table).await.unwrap();
        assert_eq!(table.orphans(i64::MAX).await.unwrap().len(), 0, "files were left behind");
        // The source mends it.
        for (offset, name) in [(5, 5), (6, 1)] {
            parts.push(&create(offset - 2, i64::from(offset), 10 + offset as u32, name));
        }
        parts.commit().await;
        match &merged.scd {
            // The row as it is now is right.
            Scd::One => {
                parts.merge(&merged).await;
                assert_eq!(parts.rows(&merged).await.into_keys().collect::<Vec<_>>(), [0, 3]);
                let quarantine = SilverModel { table: merged.quarantine(), ..merged.clone() };
                assert_eq!(parts.rows(&quarantine).await.into_keys().collect::<Vec<_>>(), [1, 2, 4]);
            }
            // It was not.
            Scd::Two { .. } => {
                silver::merge(&parts.lake, &parts.engine, &merged, &silver::Lookups::default()).await.unwrap_err();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_builders_at_once_one_yields() {
    let folder = tempfile::tempdir().unwrap();
    let mut parts = Parts::open(folder.path()).await;
    let merged = model("merged", OnDelete::Remove);
    for round in 0..4 {
        for key in 0..5 {
            parts.push(&create(key, i64::from(round) * 5 + i64::from(key), round * 10 + key as u32, round as u8));
        }
        parts.commit().await;
        let lookups = silver::Lookups::default();
        let (one, two) = tokio::join!(
            silver::merge(&parts.lake, &parts.engine, &merged, &lookups),
            silver::merge(&parts.lake, &parts.engine, &merged, &lookups)
        );
        let outcomes = [one.unwrap(), two.unwrap()];
        let merges = outcomes.iter().filter(|outcome| matches!(outcome, silver::Outcome::Merged(_))).count();
        assert_eq!(merges, 1, "{outcomes:?}");
        let rows = parts.rows(&merged).await;
        assert_eq!(rows.len(), 5);
        assert!(rows.values().all(|row| row.0 == format!("n{round}")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_model_is_taken_up_by_a_rebuild_and_not_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let mut parts = Parts::open(folder.path()).await;
    let merged = model("merged", OnDelete::Remove);
    for position in 1..4 {
        parts.push(&create(position as i32, i64::from(position) - 1, position, 1));
    }
    parts.commit().await;
    parts.merge(&merged).await;
    let before = parts.lake.table(&merged.table).await.unwrap();
    let changed = SilverModel { on_delete: OnDelete::Mark, ..merged.clone() };
    let refused = silver::merge(&parts.lake, &parts.engine, &changed, &silver::Lookups::default()).await.unwrap_err();
    assert!(matches!(refused, silver::Error::ModelChanged { .. }), "{refused}");
    let outcome = silver::rebuild(&parts.lake, &parts.engine, &changed, &silver::Lookups::default()).await.unwrap();
    assert!(matches!(outcome, silver::Outcome::Merged(_)), "{outcome:?}");
    assert_eq!(parts.rows(&changed).await.len(), 3);
    // Who reads the state of before finds it as it was.
    let mut view = before.view(At::Head).unwrap();
    assert_eq!(view.files(None).await.unwrap().iter().map(|file| file.record_count).sum::<u64>(), 3);
    view = parts.lake.table(&merged.table).await.unwrap().view(At::Head).unwrap();
    assert_ne!(view.snapshot_id(), before.snapshot_id());
    // From here on it is merged as ever, and a rebuild that has nothing to mend gives the same.
    parts.push(&create(7, 3, 4, 2));
    parts.commit().await;
    parts.merge(&changed).await;
    let rows = parts.rows(&changed).await;
    assert_eq!(rows.len(), 4);
    silver::rebuild(&parts.lake, &parts.engine, &changed, &silver::Lookups::default()).await.unwrap();
    assert_eq!(parts.rows(&changed).await, rows);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_keys_with_events_since_the_time_are_mended_and_what_is_new_comes_along() {
    for scd in [Scd::One, Scd::Two { track_history: Vec::new() }] {
        let folder = tempfile::tempdir().unwrap();
        let mut parts = Parts::open(folder.path()).await;
        let merged = SilverModel { scd: scd.clone(), ..model("merged", OnDelete::Remove) };
        let names = async |parts: &Parts| {
            let session = parts.engine.session();
            let view = parts.lake.table(&merged.table).await.unwrap().view(At::Head).unwrap();
            engine::register(&session, &merged.table, view).unwrap();
            let sql = format!("SELECT id, name FROM {} ORDER BY id, name", merged.table);
            let mut names = Vec::new();
            for batch in engine::plan(&session, &sql).await.unwrap().collect().await.unwrap() {
                let (ids, texts) = (batch.column(0).as_primitive::<Int32Type>(), batch.column(1).as_string::<i32>());
                names.extend((0..batch.num_rows()).map(|row| format!("{} {}", ids.value(row), texts.value(row))));
            }
            names
        };
        let mut offset = 0;
        for (time_us, keys) in [(1_000_000, 1..4), (2_000_000, 4..9)] {
            parts.start_at(0, Clock::manual(time_us).0);
            for key in keys {
                parts.push(&create(key, offset, offset as u32 + 10, 1));
                offset += 1;
            }
            parts.commit().await;
        }
        parts.merge(&merged).await;
        parts.damage(&merged).await;
        // Not merged yet, and of an earlier clock.
        parts.start_at(0, Clock::manual(500_000).0);
        parts.push(&create(10, offset, offset as u32 + 10, 2));
        parts.commit().await;
        let snapshots = async || parts.lake.table(&merged.table).await.unwrap().snapshots().len();
        let before = snapshots().await;
        parts.mend(&merged, 2_000_000).await;
        assert_eq!(snapshots().await, before + 1, "one commit");
        let expected = ["1 damaged", "2 damaged", "4 n1", "5 n1", "6 n1", "7 n1", "8 n1", "10 n2"];
        assert_eq!(names(&parts).await, expected, "{scd:?}: 3 is still gone");
        let outcome =
            silver::build(&parts.lake, &parts.engine, &merged, &silver::Lookups::default(), Extent::Since(3_000_000))
                .await
                .unwrap();
        assert!(matches!(outcome, silver::Outcome::Nothing), "{outcome:?}");
        parts.mend(&merged, 0).await;
        let expected = ["1 n1", "2 n1", "3 n1", "4 n1", "5 n1", "6 n1", "7 n1", "8 n1", "10 n2"];
        assert_eq!(names(&parts).await, expected, "{scd:?}");
    }
}

/// The columns go in the commit that replaces the rows; who reads the state of before still has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuild_takes_away_columns_that_the_model_does_not_give() {
    for scd in [Scd::One, Scd::Two { track_history: Vec::new() }] {
        let folder = tempfile::tempdir().unwrap();
        let mut parts = Parts::open(folder.path()).await;
        let wide = SilverModel { scd, ..model("merged", OnDelete::Mark) };
        parts.push(&create(1, 0, 1, 1));
        parts.commit().await;
        parts.merge(&wide).await;
        let before = parts.lake.table(&wide.table).await.unwrap();
        let narrow = SilverModel {
            on_delete: OnDelete::Remove,
            sql: Some("SELECT id, upper(name) AS big FROM changes".to_string()),
            ..wide.clone()
        };
        silver::rebuild(&parts.lake, &parts.engine, &narrow, &silver::Lookups::default()).await.unwrap();
        let after = parts.lake.table(&wide.table).await.unwrap();
        assert_eq!(after.snapshots().len(), before.snapshots().len() + 1, "one commit");
        let names: Vec<String> = after.columns().into_iter().map(|column| column.name).collect();
        let of_versions = ["_valid_from", "_valid_to", "_is_current"].into_iter().filter(|_| narrow.scd != Scd::One);
        let expected: Vec<&str> = ["id", "_position", "_source_ts"].into_iter().chain(of_versions).collect();
        assert_eq!(names.iter().filter(|name| *name != "big" && *name != "_merged_at").collect::<Vec<_>>(), expected);
        assert!(names.contains(&"big".to_string()), "{names:?}");
        let session = parts.engine.session();
        let view = after.view(At::Snapshot(before.snapshot_id().unwrap())).unwrap();
        engine::register(&session, &wide.table, view).unwrap();
        let sql = format!("SELECT name, _is_deleted FROM {}", wide.table);
        assert_eq!(engine::plan(&session, &sql).await.unwrap().count().await.unwrap(), 1);
        // Merges go on, and a column that comes back is another one.
        parts.push(&create(2, 1, 2, 1));
        parts.commit().await;
        parts.merge(&narrow).await;
        silver::rebuild(&parts.lake, &parts.engine, &wide, &silver::Lookups::default()).await.unwrap();
        let back = parts.lake.table(&wide.table).await.unwrap();
        let id = |table: &icestream::table::Table| {
            table.columns().into_iter().find(|column| column.name == "name").map(|column| column.id).unwrap()
        };
        assert!(id(&back) > id(&before));
        assert_eq!(parts.lake.table(&wide.table).await.unwrap().summary().records, Some(2));
    }
}
