//! `sql` prints what a build stands for. That it means the same is shown where histories are made (`silver.rs`).

use super::plan::Project;

#[test]
fn a_build_is_shown_as_statements_over_the_snapshots_it_would_read() {
    let project = Project::new();
    insta::assert_snapshot!(project.run("sql").done(), @"
    -- shop_silver.orders: shop_bronze.orders, or a table it looks rows up in, holds nothing yet.

    -- shop_gold.totals: shop_silver.orders is not there yet.
    ");
    project.run("run --drain").done();
    project.write(
        "transforms/orders.sql",
        "/* icestream { keys: [id] } */ SELECT id, md5(status) AS code, total::string AS total FROM changes",
    );
    let rebuilt = project.run("sql orders");
    let head = rebuilt.normal(rebuilt.done()).lines().take(3).collect::<Vec<_>>().join("\n");
    insta::assert_snapshot!(head, @"
    -- shop_silver.orders: all of shop_bronze.orders up to its snapshot ID.
    -- NOTE: Trino may have no function `md5` that does the same
    CREATE OR REPLACE TABLE shop_silver.orders AS
    ");
    assert!(rebuilt.stdout.contains("CAST(total AS VARCHAR) AS total"), "{}", rebuilt.stdout);
    let gold = project.run("sql totals");
    insta::assert_snapshot!(gold.normal(gold.done()), @"
    -- shop_gold.totals: all of it, from its inputs as they are now.
    CREATE OR REPLACE TABLE shop_gold.totals AS
    SELECT status, sum(total) AS total FROM shop_silver.orders FOR VERSION AS OF ID GROUP BY status;
    ");
    assert!(project.run("sql nothing").error(2).contains("there is no model of a table `nothing`"));
}

#[test]
fn a_merge_names_the_snapshots_before_and_after() {
    let project = Project::new();
    project.run("run --drain").done();
    project.send(1, 3..6);
    project.run("ingest --drain").done();
    let merge = project.run("sql orders");
    insta::assert_snapshot!(merge.normal(merge.done()), @r#"
    -- shop_silver.orders: what a run makes of shop_bronze.orders between its snapshots ID and ID.
    MERGE INTO shop_silver.orders AS target USING (
    WITH new_events AS (
      SELECT * FROM shop_bronze.orders FOR VERSION AS OF ID AS new WHERE NOT EXISTS (
        SELECT 1 FROM shop_bronze.orders FOR VERSION AS OF ID AS old WHERE old._topic = new._topic AND old._topic_partition = new._topic_partition AND old._offset = new._offset AND old._epoch = new._epoch
      )
    ),
    touched AS (
      SELECT DISTINCT "id" FROM (
        SELECT coalesce("after"."id", "before"."id") AS "id" FROM new_events WHERE _error IS NULL AND _op IN ('c', 'u', 'r', 'd')
        UNION ALL
        SELECT coalesce("before"."id", "after"."id") AS "id" FROM new_events WHERE _error IS NULL AND _op = 'u' AND "before"."id" IS NOT NULL AND (("before"."id" IS DISTINCT FROM coalesce("after"."id", "before"."id")))
        UNION ALL
        SELECT coalesce("after"."id", "before"."id") AS "id" FROM shop_bronze.orders FOR VERSION AS OF ID WHERE _error IS NULL AND _op IN ('c', 'u', 'r', 'd') AND EXISTS (SELECT 1 FROM new_events WHERE _op = 't')
        UNION ALL
        SELECT coalesce("before"."id", "after"."id") AS "id" FROM shop_bronze.orders FOR VERSION AS OF ID WHERE _error IS NULL AND _op = 'u' AND "before"."id" IS NOT NULL AND (("before"."id" IS DISTINCT FROM coalesce("after"."id", "before"."id"))) AND EXISTS (SELECT 1 FROM new_events WHERE _op = 't')
      ) AS of_events WHERE "id" IS NOT NULL
    ),
    truncations AS (
      SELECT _epoch, _position, min(coalesce(_source_ts, _timestamp, _ingested_at)) AS _time
      FROM shop_bronze.orders FOR VERSION AS OF ID WHERE _op = 't' AND _epoch IS NOT NULL AND _position IS NOT NULL GROUP BY _epoch, _position
    ),
    all_events AS (
      SELECT coalesce("after"."id", "before"."id") AS "id", _op, _epoch, _position AS _at, 0 AS _after, _offset, _topic, _topic_partition, _source_ts, coalesce(_source_ts, _timestamp, _ingested_at) AS _time, _unavailable, "after"."total" AS "total", "after"."status" AS "status"
      FROM shop_bronze.orders FOR VERSION AS OF ID WHERE _error IS NULL AND _op IN ('c', 'u', 'r', 'd')
      UNION ALL
      SELECT coalesce("before"."id", "after"."id") AS "id", 'd' AS _op, _epoch, _position AS _at, 0 AS _after, _offset, _topic, _topic_partition, _source_ts, coalesce(_source_ts, _timestamp, _ingested_at) AS _time, _unavailable, NULL AS "total", NULL AS "status"
      FROM shop_bronze.orders FOR VERSION AS OF ID WHERE _error IS NULL AND _op = 'u' AND "before"."id" IS NOT NULL AND (("before"."id" IS DISTINCT FROM coalesce("after"."id", "before"."id")))
    ),
    last_truncation AS (SELECT * FROM truncations ORDER BY _epoch DESC, _position DESC LIMIT 1),
    events AS (
      SELECT e.* FROM all_events AS e JOIN touched ON e."id" = touched."id"
      LEFT JOIN last_truncation AS t ON true
      WHERE e."id" IS NOT NULL AND (t._epoch IS NULL OR coalesce(e._epoch, 0) > t._epoch OR
        (coalesce(e._epoch, 0) = t._epoch AND e._at > t._position))
    ),
    ordered AS (
      SELECT *, lag(_op) OVER (PARTITION BY "id" ORDER BY _epoch NULLS FIRST, _at NULLS FIRST, _after, _offset, _topic, _topic_partition) AS _op_before,
        row_number() OVER (ORDER BY "id", _epoch NULLS FIRST, _at NULLS FIRST, _after, _offset, _topic, _topic_partition) AS _event
      FROM events
    ),
    said AS (
      SELECT *
      FROM ordered
    ),
    filled AS (
      SELECT "id", _op, _epoch, _at, _after, _offset, _topic, _topic_partition, _source_ts, _time, _event, "total", "status"
      FROM said
    ),
    last AS (
      SELECT *, first_value(_op) OVER (PARTITION BY "id" ORDER BY _epoch DESC NULLS LAST, _at DESC NULLS LAST, _after DESC, _offset DESC, _topic DESC, _topic_partition DESC) AS _last_op, first_value(_at) OVER (PARTITION BY "id" ORDER BY _epoch DESC NULLS LAST, _at DESC NULLS LAST, _after DESC, _offset DESC, _topic DESC, _topic_partition DESC) AS _last_at, first_value(_source_ts) OVER (PARTITION BY "id" ORDER BY _epoch DESC NULLS LAST, _at DESC NULLS LAST, _after DESC, _offset DESC, _topic DESC, _topic_partition DESC) AS _last_source_ts
      FROM filled
    ),
    images AS (
      SELECT *, row_number() OVER (PARTITION BY "id" ORDER BY _epoch DESC NULLS LAST, _at DESC NULLS LAST, _after DESC, _offset DESC, _topic DESC, _topic_partition DESC) AS _rank FROM last WHERE _op <> 'd'
    ),
    changes AS (
      SELECT "id", "total", "status", _last_at AS _position, _last_source_ts AS _source_ts
      FROM images WHERE _rank = 1 AND _last_op <> 'd'
    ),
    folded AS (
      SELECT id, total, lower(status) AS status, "_position", "_source_ts" FROM changes
    )
    SELECT touched."id" AS "_touched_id", folded."id", folded."total", folded."status", folded."_position", folded."_source_ts"
    FROM touched LEFT JOIN folded ON folded."id" = touched."id"
    ) AS source
    ON target."id" = source."_touched_id"
    WHEN MATCHED AND source."id" IS NULL THEN DELETE
    WHEN MATCHED THEN UPDATE SET "total" = source."total", "status" = source."status", "_position" = source."_position", "_source_ts" = source."_source_ts", "_merged_at" = current_timestamp
    WHEN NOT MATCHED AND NOT (source."id" IS NULL) THEN INSERT ("id", "total", "status", "_position", "_source_ts", "_merged_at")
      VALUES (source."id", source."total", source."status", source."_position", source."_source_ts", current_timestamp);
    "#);
}
