"""Has DuckDB run the statements that `icestream sql` prints, and compares with the silver tables that icestream made.

    statement.py --uri URI --warehouse LOCATION --name NAME --statements FILE

FILE holds {"silver table": {"from": "bronze table", "sql": TEXT}}, each of a table that is up to date. A statement runs
twice: over the first half of bronze into an empty table, and over the rest. Prints {"tables": [{"name", "rows",
"missing", "unexpected"}]}: rows that silver has and the statements do not give, and the other way round, a few of each.
"""

import argparse
import json
import re

import duckdb
from pyiceberg.catalog.sql import SqlCatalog

VERSION = r" FOR VERSION AS OF \d+"


def between(sql, bronze, before, after):
    """The statement over two states of bronze that are tables of their own here; and with DuckDB's name for `contains`."""
    sql = re.sub(rf"{re.escape(bronze)}{VERSION} AS old", f"{before} AS old", sql)
    return re.sub(rf"{re.escape(bronze)}{VERSION}", after, sql).replace("contains(", "list_contains(")


def main():
    parser = argparse.ArgumentParser()
    for option in ("--name", "--uri", "--warehouse", "--statements"):
        parser.add_argument(option, required=True)
    options = parser.parse_args()
    catalog = SqlCatalog(options.name, uri=options.uri, warehouse=options.warehouse)
    with open(options.statements) as file:
        statements = json.load(file)
    tables = []
    for name, statement in statements.items():
        database = duckdb.connect()
        database.sql("SET TimeZone = 'UTC'")
        database.sql(f"CREATE SCHEMA {name.split('.')[0]}")
        database.register("bronze_rows", catalog.load_table(statement["from"]).scan().to_arrow())
        database.register("silver_rows", catalog.load_table(name).scan().to_arrow())
        database.sql("CREATE TABLE whole AS SELECT * FROM bronze_rows")
        database.sql("CREATE TABLE half AS SELECT * FROM whole WHERE _offset < (SELECT median(_offset) FROM whole)")
        database.sql("CREATE TABLE nothing AS SELECT * FROM whole LIMIT 0")
        database.sql(f"CREATE TABLE {name} AS SELECT * FROM silver_rows LIMIT 0")
        for before, after in (("nothing", "half"), ("half", "whole")):
            database.execute(between(statement["sql"], statement["from"], before, after))
        columns = "* EXCLUDE (_merged_at)"
        differences = {
            what: database.sql(
                f"SELECT CAST(COLUMNS(*) AS VARCHAR) FROM (SELECT {columns} FROM {left} EXCEPT ALL "
                f"SELECT {columns} FROM {right}) ORDER BY ALL LIMIT 5"
            ).fetchall()
            for what, left, right in [("missing", "silver_rows", name), ("unexpected", name, "silver_rows")]
        }
        rows = database.sql(f"SELECT count(*) FROM {name}").fetchone()[0]
        tables.append({"name": name, "rows": rows, **differences})
    print(json.dumps({"tables": tables}, default=str))


if __name__ == "__main__":
    main()
