"""Folds the demo's bronze tables with plain window SQL, and compares with the silver tables that icestream made.

    fold.py --uri URI --warehouse LOCATION --name NAME

DuckDB computes; it shares nothing with icestream but the Parquet files. Prints {"tables": [{"name", "rows",
"missing", "unexpected"}]}: rows of the fold that silver lacks, and rows that silver has besides, a few of each.
"""

import argparse
import json

import duckdb
from pyiceberg.catalog.sql import SqlCatalog

# The last event of each key, in the order of the source.
LATEST = """
WITH events AS (
    SELECT *, coalesce(after.id, before.id) AS id FROM {bronze}
    WHERE _error IS NULL AND _op IN ('c', 'u', 'r', 'd')
),
ranked AS (
    SELECT *, row_number() OVER (PARTITION BY id ORDER BY _epoch DESC, _position DESC NULLS LAST, _offset DESC) AS rank
    FROM events
)
SELECT {columns} FROM ranked WHERE rank = 1 AND _op <> 'd'
"""

# Versions: where the value changes, the row is made or goes, one ends and maybe another begins.
VERSIONS = """
WITH events AS (
    SELECT coalesce(after.id, before.id) AS id, _op = 'd' AS gone, {value} AS value, _source_ts AS happened, _epoch, _position, _offset
    FROM {bronze} WHERE _error IS NULL AND _op IN ('c', 'u', 'r', 'd')
),
beside AS (
    SELECT *, lag(value) OVER w AS value_before, coalesce(lag(gone) OVER w, true) AS gone_before
    FROM events WINDOW w AS (PARTITION BY id ORDER BY _epoch, _position NULLS FIRST, _offset)
),
turns AS (
    SELECT *, max(happened) OVER (PARTITION BY id ORDER BY _epoch, _position NULLS FIRST, _offset) AS turned_at
    FROM beside
    WHERE CASE WHEN gone THEN NOT gone_before ELSE gone_before OR value IS DISTINCT FROM value_before END
),
versions AS (
    SELECT *, lead(turned_at) OVER (PARTITION BY id ORDER BY _epoch, _position NULLS FIRST, _offset) AS ended_at FROM turns
)
SELECT id, value, turned_at AS valid_from, ended_at AS valid_to, ended_at IS NULL AS is_current FROM versions WHERE NOT gone
"""

ORDERS = "id, after.customer_id AS customer_id, after.total_amount AS total_amount, lower(trim(after.status)) AS status, \
after.created_at AS created_at, after.updated_at AS updated_at, _position, _source_ts"
PRODUCTS = "id, after.name AS name, after.description AS description, after.price AS price, \
after.stock_quantity AS stock_quantity, after.created_at AS created_at, after.updated_at AS updated_at, _position, _source_ts"
ITEMS = "id, after.order_id AS order_id, after.product_id AS product_id, after.quantity AS quantity, after.price AS price, \
CAST(after.quantity * after.price AS decimal(18, 2)) AS line_total, after.created_at AS created_at, _position, _source_ts"
VERSION = "id, {value} AS value, _valid_from AS valid_from, _valid_to AS valid_to, _is_current AS is_current"

FOLDS = {
    # Those with a negative total are in quarantine.
    "orders": (LATEST.format(bronze="bronze_orders", columns=ORDERS) + " AND after.total_amount >= 0", None),
    "orders__quarantine": (
        LATEST.format(bronze="bronze_orders", columns=f"{ORDERS}, _topic_partition, _offset") + " AND after.total_amount < 0",
        None,
    ),
    "products": (LATEST.format(bronze="bronze_products", columns=PRODUCTS), None),
    "order_items": (LATEST.format(bronze="bronze_order_items", columns=ITEMS), None),
    "order_status_history": (
        VERSIONS.format(bronze="bronze_orders", value="lower(trim(after.status))"),
        VERSION.format(value="status"),
    ),
    "product_price_history": (
        VERSIONS.format(bronze="bronze_products", value="after.price"),
        VERSION.format(value="price"),
    ),
}


def main():
    parser = argparse.ArgumentParser()
    for option in ("--name", "--uri", "--warehouse"):
        parser.add_argument(option, required=True)
    options = parser.parse_args()
    catalog = SqlCatalog(options.name, uri=options.uri, warehouse=options.warehouse)
    database = duckdb.connect()
    database.sql("SET TimeZone = 'UTC'")
    for name in ("orders", "products", "order_items"):
        database.register(f"bronze_{name}", catalog.load_table(f"shop_bronze.{name}").scan().to_arrow())
    tables = []
    for name, (fold, columns) in FOLDS.items():
        found = catalog.load_table(f"shop_silver.{name}").scan().to_arrow()
        database.register("found_rows", found)
        database.sql(f"CREATE OR REPLACE TEMP TABLE folded AS {fold}")
        names = columns or ", ".join(f'"{column}"' for column in database.table("folded").columns)
        database.sql(f"CREATE OR REPLACE TEMP TABLE found AS SELECT {names} FROM found_rows")
        differences = {
            what: database.sql(f"SELECT * FROM {left} EXCEPT ALL SELECT * FROM {right} ORDER BY ALL LIMIT 5").fetchall()
            for what, left, right in [("missing", "folded", "found"), ("unexpected", "found", "folded")]
        }
        tables.append({"name": name, "rows": found.num_rows, **differences})
    print(json.dumps({"tables": tables}, default=str))


if __name__ == "__main__":
    main()
