//! The statement a run stands for, in Trino's dialect.
//!
//! A run reads little and decides much (`run`); the statement says the same by windows over all events of the keys that are
//! touched, so it is right whatever order they come in. It is written by other means than the fold (`fold`) on purpose: a
//! test has both give the same rows for any history.

use std::fmt::Write;

use super::fold::{equal, list};
use super::{OnDelete, Scd, SilverModel};
use crate::ids::TableName;
use crate::quality::{literal, quote};

/// What one run over one table would do.
#[derive(Debug, Clone)]
pub struct Statement {
    pub table: TableName,
    /// The snapshots of bronze before and after; without the first, everything is folded.
    pub from: Option<i64>,
    pub to: i64,
    /// What could not be said in the dialect.
    pub notes: Vec<String>,
    /// The keys that are touched; empty where all are.
    pub touched: String,
    /// The rows that those keys have afterwards.
    pub rows: String,
    /// All of it.
    pub sql: String,
}

/// Of one key, oldest first; a truncation comes behind everything of its position.
const OLDEST_FIRST: &str = "_epoch NULLS FIRST, _at NULLS FIRST, _after, _offset, _topic, _topic_partition";
const NEWEST_FIRST: &str =
    "_epoch DESC NULLS LAST, _at DESC NULLS LAST, _after DESC, _offset DESC, _topic DESC, _topic_partition DESC";
const SO_FAR: &str = "ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW";

/// Events of rows, which have keys.
const IS_CHANGE: &str = "_error IS NULL AND _op IN ('c', 'u', 'r', 'd')";

/// What the statement is written from.
pub(super) struct Writing<'a> {
    pub(super) model: &'a SilverModel,
    /// The model's SELECT over `changes`, with the system columns, and `_event` for versions.
    pub(super) select: String,
    pub(super) keys: Vec<&'a str>,
    /// The columns of the row images.
    pub(super) columns: Vec<&'a str>,
    /// The columns of the silver table, but for `_merged_at`.
    pub(super) output: Vec<&'a str>,
    pub(super) tracked: Vec<&'a str>,
    pub(super) unavailable: &'a [String],
    pub(super) ignores: &'a [String],
    pub(super) from: Option<i64>,
    pub(super) to: i64,
}

impl Writing<'_> {
    pub(super) fn statement(&self, notes: Vec<String>) -> Statement {
        let steps = self.steps();
        let touched = match self.from {
            Some(_) => format!("WITH {}\nSELECT {} FROM touched", self.touched(), self.key_list()),
            None => String::new(),
        };
        let (with, rows) = match self.model.scd {
            Scd::One => (format!("{steps},\n{}", self.latest()), self.rows()),
            Scd::Two { .. } => (format!("{steps},\n{}", self.versions()), self.version_rows()),
        };
        let rows = format!("WITH {with}\n{rows}");
        let (table, columns) = (&self.model.table, self.inserted());
        let sql = match (&self.model.scd, self.from) {
            (_, None) => format!("CREATE OR REPLACE TABLE {table} AS\n{rows}"),
            (Scd::One, Some(_)) => self.merge(&with),
            (Scd::Two { .. }, Some(_)) => {
                let key = match self.keys.as_slice() {
                    [only] => quote(only),
                    several => format!("({})", list(several, quote)),
                };
                format!(
                    "DELETE FROM {table} WHERE {key} IN (\n{touched}\n);\n\nINSERT INTO {table} ({columns})\n{rows}"
                )
            }
        };
        let header = match self.from {
            Some(from) => format!(
                "-- {table}: what a run makes of {} between its snapshots {from} and {}.",
                self.model.from, self.to
            ),
            None => format!("-- {table}: all of {} up to its snapshot {}.", self.model.from, self.to),
        };
        let told: String = notes.iter().map(|note| format!("-- NOTE: {note}\n")).collect();
        let stages = match self.model.scd {
            Scd::One => "",
            Scd::Two { .. } => {
                "-- It has more stages than Trino takes by default: SET SESSION query_max_stage_count = 500\n"
            }
        };
        let sql = format!("{header}\n{told}{stages}{sql};\n");
        Statement { table: table.clone(), from: self.from, to: self.to, notes, touched, rows, sql }
    }

    fn key_list(&self) -> String {
        list(&self.keys, quote)
    }

    fn bronze(&self, at: i64) -> String {
        format!("{} FOR VERSION AS OF {at}", self.model.from)
    }

    fn key_value(&self, key: &str) -> String {
        format!("coalesce(\"after\".{name}, \"before\".{name})", name = quote(key))
    }

    /// The same of the key that a row had before. It is not null where this is asked for; said like the other, so that both
    /// columns are of one kind to a planner that minds.
    fn left_key_value(&self, key: &str) -> String {
        format!("coalesce(\"before\".{name}, \"after\".{name})", name = quote(key))
    }

    /// An update that takes a row from one key to another is a delete for the key it leaves.
    fn leaves_key(&self) -> String {
        let before = |key: &str| format!("\"before\".{}", quote(key));
        let known = self.keys.iter().map(|key| format!("{} IS NOT NULL", before(key))).collect::<Vec<_>>();
        let differs = self.keys.iter().map(|key| format!("({} IS DISTINCT FROM {})", before(key), self.key_value(key)));
        let differs = differs.collect::<Vec<_>>();
        format!("_error IS NULL AND _op = 'u' AND {} AND ({})", known.join(" AND "), differs.join(" OR "))
    }

    /// The keys of the new events; all keys where there is a truncation among them.
    fn touched(&self) -> String {
        let Some(from) = self.from else { return String::new() };
        let new = list(&self.keys, |key| format!("{} AS {}", self.key_value(key), quote(key)));
        let left = list(&self.keys, |key| format!("{} AS {}", self.left_key_value(key), quote(key)));
        let known = self.keys.iter().map(|key| format!("{} IS NOT NULL", quote(key))).collect::<Vec<_>>().join(" AND ");
        let same = ["_topic", "_topic_partition", "_offset", "_epoch"];
        let same = same.map(|column| format!("old.{column} = new.{column}")).join(" AND ");
        let (at, leaves) = (self.bronze(self.to), self.leaves_key());
        format!(
            "new_events AS (\n  SELECT * FROM {at} AS new WHERE NOT EXISTS (\n    SELECT 1 FROM {} AS old WHERE {same}\n  \
             )\n),\ntouched AS (\n  SELECT DISTINCT {keys} FROM (\n    SELECT {new} FROM new_events WHERE {IS_CHANGE}\n    \
             UNION ALL\n    SELECT {left} FROM new_events WHERE {leaves}\n    UNION ALL\n    SELECT {new} FROM {at} WHERE \
             {IS_CHANGE} AND EXISTS (SELECT 1 FROM new_events WHERE _op = 't')\n    UNION ALL\n    SELECT {left} FROM {at} \
             WHERE {leaves} AND EXISTS (SELECT 1 FROM new_events WHERE _op = 't')\n  ) AS of_events WHERE {known}\n)",
            self.bronze(from),
            keys = self.key_list(),
        )
    }

    /// Every event of the touched keys, with the values that its row has then (`filled`).
    fn steps(&self) -> String {
        let keys = self.key_list();
        let values: Vec<&str> = self.columns.iter().copied().filter(|name| !self.keys.contains(name)).collect();
        let more =
            |show: &dyn Fn(&str) -> String| values.iter().map(|name| format!(", {}", show(name))).collect::<String>();
        let names = more(&quote);
        let order = "_epoch, _position AS _at, 0 AS _after, _offset, _topic, _topic_partition, _source_ts, \
                     coalesce(_source_ts, _timestamp, _ingested_at) AS _time, _unavailable";
        let bronze = self.bronze(self.to);
        let mut sql = match self.from {
            Some(_) => format!("{},\n", self.touched()),
            None => String::new(),
        };
        let _ = write!(
            sql,
            "truncations AS (\n  SELECT _epoch, _position, min(coalesce(_source_ts, _timestamp, _ingested_at)) AS _time\n  \
             FROM {bronze} WHERE _op = 't' AND _epoch IS NOT NULL AND _position IS NOT NULL GROUP BY _epoch, _position\n),\n\
             all_events AS (\n  SELECT {}, _op, {order}{}\n  FROM {bronze} WHERE {IS_CHANGE}\n  UNION ALL\n  SELECT {}, 'd' \
             AS _op, {order}{}\n  FROM {bronze} WHERE {}\n)",
            list(&self.keys, |key| format!("{} AS {}", self.key_value(key), quote(key))),
            more(&|name| format!("\"after\".{name} AS {name}", name = quote(name))),
            list(&self.keys, |key| format!("{} AS {}", self.left_key_value(key), quote(key))),
            more(&|name| format!("NULL AS {}", quote(name))),
            self.leaves_key(),
        );
        let known =
            self.keys.iter().map(|key| format!("e.{} IS NOT NULL", quote(key))).collect::<Vec<_>>().join(" AND ");
        let touched = match self.from {
            Some(_) => format!(" JOIN touched ON {}", equal(&self.keys, "e", "touched")),
            None => String::new(),
        };
        match self.model.scd {
            // What a truncation took is as if it had never been.
            Scd::One => {
                let _ = write!(
                    sql,
                    ",\nlast_truncation AS (SELECT * FROM truncations ORDER BY _epoch DESC, _position DESC LIMIT 1),\n\
                     events AS (\n  SELECT e.* FROM all_events AS e{touched}\n  LEFT JOIN last_truncation AS t ON true\n  \
                     WHERE {known} AND (t._epoch IS NULL OR coalesce(e._epoch, 0) > t._epoch OR\n    (coalesce(e._epoch, 0) \
                     = t._epoch AND e._at > t._position))\n)"
                );
            }
            // It ends the version of every key.
            Scd::Two { .. } => {
                let _ = write!(
                    sql,
                    ",\nof_keys AS (SELECT e.* FROM all_events AS e{touched} WHERE {known}),\nevents AS (\n  SELECT {keys}, \
                     _op, _epoch, _at, _after, _offset, _topic, _topic_partition, _source_ts, _time, _unavailable{names}\n  \
                     FROM of_keys\n  UNION ALL\n  SELECT {}, 't' AS _op, t._epoch, t._position AS _at, 1 AS _after, 0 \
                     AS _offset, '' AS _topic, 0 AS _topic_partition, NULL AS _source_ts, t._time, NULL AS \
                     _unavailable{}\n  FROM (SELECT DISTINCT {keys} FROM of_keys) AS k CROSS JOIN truncations AS t\n)",
                    list(&self.keys, |key| format!("k.{}", quote(key))),
                    more(&|name| format!("NULL AS {}", quote(name))),
                );
            }
        }
        let by_key = format!("PARTITION BY {keys} ORDER BY {OLDEST_FIRST}");
        let _ = write!(
            sql,
            ",\nordered AS (\n  SELECT *, lag(_op) OVER ({by_key}) AS _op_before,\n    row_number() OVER (ORDER BY {keys}, \
             {OLDEST_FIRST}) AS _event\n  FROM events\n)"
        );
        // A value that an event does not say is the one that was said last.
        let kept = |name: &str| [self.unavailable, self.ignores].into_iter().flatten().any(|kept| kept == name);
        let kept: Vec<&str> = values.iter().copied().filter(|name| kept(name)).collect();
        let said = |name: &str| {
            let mut said = format!(
                "_op NOT IN ('d', 't') AND (_unavailable IS NULL OR NOT contains(_unavailable, {}))",
                literal(name)
            );
            if self.ignores.iter().any(|ignored| ignored == name) {
                let _ = write!(said, " AND ({} IS NOT NULL OR coalesce(_op_before, 'd') IN ('d', 't'))", quote(name));
            }
            said
        };
        let turns = kept.iter().enumerate().map(|(index, name)| {
            format!(",\n    sum(CASE WHEN {} THEN 1 ELSE 0 END) OVER ({by_key} {SO_FAR}) AS _said_{index}", said(name))
        });
        let turns: String = turns.collect();
        let value = |name: &str| match kept.iter().position(|kept| *kept == name) {
            Some(index) => format!(
                "first_value({name}) OVER (PARTITION BY {keys}, _said_{index} ORDER BY {OLDEST_FIRST} {SO_FAR}) AS {name}",
                name = quote(name)
            ),
            None => quote(name),
        };
        let _ = write!(
            sql,
            ",\nsaid AS (\n  SELECT *{turns}\n  FROM ordered\n),\nfilled AS (\n  SELECT {keys}, _op, _epoch, _at, _after, \
             _offset, _topic, _topic_partition, _source_ts, _time, _event{}\n  FROM said\n)",
            more(&value),
        );
        sql
    }

    /// The latest row of each key (SCD 1), and the model over it.
    fn latest(&self) -> String {
        let (keys, marks) = (self.key_list(), self.model.on_delete == OnDelete::Mark);
        let newest = format!("PARTITION BY {keys} ORDER BY {NEWEST_FIRST}");
        let last =
            ["_op", "_at", "_source_ts"].map(|name| format!("first_value({name}) OVER ({newest}) AS _last{name}"));
        let deleted = if marks { ", _last_op = 'd' AS _is_deleted" } else { "" };
        let lives = if marks { "" } else { " AND _last_op <> 'd'" };
        format!(
            "last AS (\n  SELECT *, {}\n  FROM filled\n),\nimages AS (\n  SELECT *, row_number() OVER ({newest}) AS _rank FROM \
             last WHERE _op <> 'd'\n),\nchanges AS (\n  SELECT {}, _last_at AS _position, _last_source_ts AS \
             _source_ts{deleted}\n  FROM images WHERE _rank = 1{lives}\n),\nfolded AS (\n  {}\n)",
            last.join(", "),
            list(&self.columns, quote),
            self.select,
        )
    }

    fn inserted(&self) -> String {
        format!("{}, \"_merged_at\"", list(&self.output, quote))
    }

    fn rows(&self) -> String {
        format!("SELECT {}, current_timestamp AS \"_merged_at\" FROM folded", list(&self.output, quote))
    }

    fn merge(&self, with: &str) -> String {
        let (keys, table) = (&self.keys, &self.model.table);
        let aliases = list(keys, |key| format!("touched.{} AS {}", quote(key), quote(&format!("_touched_{key}"))));
        let columns = list(&self.output, |name| format!("folded.{}", quote(name)));
        let on = keys
            .iter()
            .map(|key| format!("target.{} = source.{}", quote(key), quote(&format!("_touched_{key}"))))
            .collect::<Vec<_>>()
            .join(" AND ");
        let is_gone = format!("source.{} IS NULL", quote(keys[0]));
        let set = self.output.iter().filter(|name| !keys.contains(name));
        let set = set.map(|name| format!("{name} = source.{name}", name = quote(name))).collect::<Vec<_>>().join(", ");
        format!(
            "MERGE INTO {table} AS target USING (\nWITH {with}\nSELECT {aliases}, {columns}\nFROM touched LEFT JOIN folded ON \
             {}\n) AS source\nON {on}\nWHEN MATCHED AND {is_gone} THEN DELETE\nWHEN MATCHED THEN UPDATE SET {set}, \
             \"_merged_at\" = current_timestamp\nWHEN NOT MATCHED AND NOT ({is_gone}) THEN INSERT ({})\n  VALUES ({}, \
             current_timestamp)",
            equal(keys, "folded", "touched"),
            self.inserted(),
            list(&self.output, |name| format!("source.{}", quote(name))),
        )
    }

    /// The versions of each key (SCD 2): where one begins, and where it ends.
    fn versions(&self) -> String {
        let keys = self.key_list();
        let by_key = format!("PARTITION BY {keys} ORDER BY {OLDEST_FIRST}");
        let of_model: Vec<&str> = self.of_model();
        let others: Vec<&str> = of_model.iter().copied().filter(|name| !self.keys.contains(name)).collect();
        let deleted = if self.model.on_delete == OnDelete::Mark { ", false AS _is_deleted" } else { "" };
        let outputs = others.iter().map(|name| format!(", m.{}", quote(name))).collect::<String>();
        let differs = self
            .tracked
            .iter()
            .map(|name| format!("({name} IS DISTINCT FROM lag({name}) OVER ({by_key}))", name = quote(name)));
        let differs: Vec<String> = differs.collect();
        let differs = if differs.is_empty() { "false".to_string() } else { differs.join(" OR ") };
        format!(
            "changes AS (\n  SELECT {}, _at AS _position, _source_ts{deleted}, _event FROM filled WHERE _op NOT IN ('d', \
             't')\n),\nmodeled AS (\n  {}\n),\nsteps AS (\n  SELECT {}, f._op, f._epoch, f._at, f._after, f._offset, f._topic, \
             f._topic_partition, f._time,\n    m._event IS NOT NULL AS _is_there{outputs}\n  FROM filled AS f LEFT JOIN \
             modeled AS m ON m._event = f._event\n),\nbeside AS (\n  SELECT *, coalesce(lag(_is_there) OVER ({by_key}), false) \
             AS _was_there, ({differs}) AS _differs FROM steps\n),\nturning AS (\n  SELECT *, CASE WHEN _is_there THEN NOT \
             _was_there OR _differs ELSE _was_there END AS _turns FROM beside\n),\nnumbered AS (\n  SELECT *, sum(CASE WHEN \
             _turns THEN 1 ELSE 0 END) OVER ({by_key} {SO_FAR}) AS _version,\n    max(CASE WHEN _turns THEN _time END) OVER \
             ({by_key} {SO_FAR}) AS _turned_at\n  FROM turning\n),\nturns AS (\n  SELECT {keys}, _version, _turned_at, \
             lead(_turned_at) OVER ({of_versions}) AS _ended_at,\n    lead(_op) OVER ({of_versions}) AS _ended_by\n  FROM \
             numbered WHERE _turns\n),\nlatest AS (\n  SELECT *, row_number() OVER (PARTITION BY {keys}, _version ORDER BY \
             {NEWEST_FIRST}) AS _rank FROM numbered WHERE _is_there\n)",
            list(&self.columns, quote),
            self.select,
            list(&self.keys, |key| format!("f.{}", quote(key))),
            of_versions = format!("PARTITION BY {keys} ORDER BY _version"),
        )
    }

    /// The columns that the model gives, without those of versions.
    fn of_model(&self) -> Vec<&str> {
        let own = ["_valid_from", "_valid_to", "_is_current", "_is_deleted"];
        self.output.iter().copied().filter(|name| !own.contains(name)).collect()
    }

    fn version_rows(&self) -> String {
        let select = |deleted: &str, from: &str, to: &str, current: &str| {
            let column = |name: &str| match name {
                "_valid_from" => format!("t.{from} AS \"_valid_from\""),
                "_valid_to" => format!("t.{to} AS \"_valid_to\""),
                "_is_current" => format!("{current} AS \"_is_current\""),
                "_is_deleted" => format!("{deleted} AS \"_is_deleted\""),
                name => format!("l.{}", quote(name)),
            };
            format!(
                "SELECT {}, current_timestamp AS \"_merged_at\"\nFROM latest AS l JOIN turns AS t ON {} AND l._version = \
                 t._version\nWHERE l._rank = 1",
                list(&self.output, column),
                equal(&self.keys, "l", "t"),
            )
        };
        let mut sql = select("false", "_turned_at", "_ended_at", "t._ended_at IS NULL");
        // A delete leaves a row of its own, which lasts for no time.
        if self.model.on_delete == OnDelete::Mark {
            let _ =
                write!(sql, "\nUNION ALL\n{} AND t._ended_by = 'd'", select("true", "_ended_at", "_ended_at", "false"));
        }
        sql
    }
}
