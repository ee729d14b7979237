"""Reads Iceberg tables with one engine, from their metadata files, and prints canonical JSON.

    read.py --engine pyiceberg|duckdb|chdb|spark --tables FILE [--count-only | --exact]

FILE: {"s3": {"endpoint", "access_key", "secret_key", "region"} | null,
       "tables": [{"name", "metadata_location", "columns": [...] | null, "filter": text | null}]}
Output: {"engine", "version", "tables": [{"name", "columns", "rows"} or {"name", "error"}]}; with
--count-only "count" stands in place of "rows"; with --exact each row is an object with its values as
`canonical.exact_rows` gives them, in the reader's order. Types for the canonical form come from the metadata
file, values only from the engine. A filter is a condition in SQL that all engines asked understand.

Known gaps, each reported as the table's error unless said otherwise: pyiceberg has no equality
deletes; Spark has no `time`; chdb has no deletion vectors, only whole seconds in `time`, and answers
null lists, maps and structs with empty ones.
"""

import argparse
import gzip
import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import urlparse

import canonical

JARS = (
    Path(os.environ.get("ICESTREAM_SERVICES") or Path(__file__).resolve().parents[2] / ".services")
    / "jars"
)


def local_path(location):
    """`file:///a/b` or `/a/b` -> `/a/b`; engines disagree on which `file:` forms they take."""
    return "/" + location[5:].lstrip("/") if location.startswith("file:") else location


def read_metadata(location, s3):
    if location.startswith("s3"):
        from pyarrow.fs import S3FileSystem

        filesystem = S3FileSystem(
            access_key=s3["access_key"],
            secret_key=s3["secret_key"],
            region=s3["region"],
            endpoint_override=s3["endpoint"],
        )
        with filesystem.open_input_file(location.split("://", 1)[1]) as file:
            content = file.read()
    else:
        content = Path(local_path(location)).read_bytes()
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    return json.loads(content)


def column_types(metadata):
    current = metadata.get("current-schema-id", 0)
    schemas = metadata.get("schemas") or [metadata["schema"]]
    schema = next(s for s in schemas if s.get("schema-id", 0) == current)
    return {field["name"]: field["type"] for field in schema["fields"]}


def quoted(names, mark='"'):
    return ", ".join(mark + name.replace(mark, mark * 2) + mark for name in names)


def where(condition):
    return f" WHERE {condition}" if condition else ""


def literal(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "''") + "'"


class PyIceberg:
    def __init__(self, s3):
        import pyiceberg

        self.version = pyiceberg.__version__
        self.properties = s3 and {
            "s3.endpoint": s3["endpoint"],
            "s3.access-key-id": s3["access_key"],
            "s3.secret-access-key": s3["secret_key"],
            "s3.region": s3["region"],
        }

    def scan(self, location, columns, condition):
        from pyiceberg.expressions import AlwaysTrue
        from pyiceberg.table import StaticTable

        return StaticTable.from_metadata(location, self.properties or {}).scan(
            row_filter=condition or AlwaysTrue(), selected_fields=tuple(columns)
        )

    def rows(self, location, columns, condition):
        return self.scan(location, columns, condition).to_arrow().select(columns)

    def count(self, location, columns, condition):
        return self.scan(location, columns, condition).count()


class DuckDb:
    def __init__(self, s3):
        import duckdb

        self.version = duckdb.__version__
        self.connection = duckdb.connect()
        for extension in ("httpfs", "avro", "iceberg"):
            package = __import__(f"duckdb_extension_{extension}")
            (file,) = Path(package.__file__).parent.glob("extensions/*/*.duckdb_extension")
            self.connection.execute(f"LOAD {literal(str(file))}")
        self.connection.execute("SET TimeZone = 'UTC'")
        if s3:
            endpoint = urlparse(s3["endpoint"])
            self.connection.execute(
                f"CREATE SECRET (TYPE s3, KEY_ID {literal(s3['access_key'])}, "
                f"SECRET {literal(s3['secret_key'])}, REGION {literal(s3['region'])}, "
                f"ENDPOINT {literal(endpoint.netloc)}, URL_STYLE 'path', "
                f"USE_SSL {endpoint.scheme == 'https'})"
            )

    def query(self, what, location, condition):
        return self.connection.execute(
            f"SELECT {what} FROM iceberg_scan({literal(local_path(location))}){where(condition)}"
        ).to_arrow_table()

    def rows(self, location, columns, condition):
        return self.query(quoted(columns), location, condition)

    def count(self, location, columns, condition):
        return self.query("count(*)", location, condition)[0][0].as_py()


class ClickHouse:
    def __init__(self, s3):
        import chdb

        self.s3 = s3
        self.query = chdb.query
        self.version = self.query("SELECT version()", "TSVRaw").bytes().decode().strip()

    def select(self, what, location, condition):
        folder, file = local_path(location).rsplit("/metadata/", 1)
        at = f"SETTINGS iceberg_metadata_file_path = {literal('metadata/' + file)}"
        if location.startswith("s3"):
            url = f"{self.s3['endpoint']}/{folder.split('://', 1)[1]}/"
            keys = f"{literal(self.s3['access_key'])}, {literal(self.s3['secret_key'])}"
            source = f"icebergS3({literal(url)}, {keys}, {at})"
        else:
            source = f"icebergLocal({literal(folder + '/')}, {at})"
        return self.query(
            f"SELECT {what} FROM {source}{where(condition)} SETTINGS session_timezone = 'UTC', "
            "output_format_arrow_string_as_string = 0",
            "ArrowTable",
        )

    def rows(self, location, columns, condition):
        return self.select(quoted(columns), location, condition)

    def count(self, location, columns, condition):
        return self.select("count()", location, condition)[0][0].as_py()


def spark_session(catalog, catalog_settings, with_aws=False):
    """Spark with one Iceberg catalog, whose pointers are in an SQLite database."""
    from pyspark.sql import SparkSession

    wanted = ["iceberg-spark-runtime", "sqlite-jdbc"] + (["iceberg-aws-bundle"] if with_aws else [])
    jars = [jar for name in wanted for jar in JARS.glob(f"{name}-*.jar")]
    os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
    settings = {
        "spark.jars": ",".join(map(str, jars)),
        "spark.ui.enabled": "false",
        "spark.driver.memory": "1g",
        "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.defaultCatalog": catalog,
        "spark.sql.extensions": (
            "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions"
        ),
    }
    catalog_settings = {
        "": "org.apache.iceberg.spark.SparkCatalog",
        "catalog-impl": "org.apache.iceberg.jdbc.JdbcCatalog",
        "clients": "1",
        "jdbc.schema-version": "V1",
        "io-impl": "org.apache.iceberg.hadoop.HadoopFileIO",
        **catalog_settings,
    }
    builder = SparkSession.builder.master("local[2]")
    for key, value in settings.items():
        builder = builder.config(key, value)
    for key, value in catalog_settings.items():
        builder = builder.config(f"spark.sql.catalog.{catalog}.{key}".rstrip("."), value)
    return builder.getOrCreate()


class Spark:
    def __init__(self, s3):
        settings = {"uri": "jdbc:sqlite::memory:", "warehouse": "file:///nowhere"}
        if s3:
            settings |= {
                "io-impl": "org.apache.iceberg.io.ResolvingFileIO",
                "s3.endpoint": s3["endpoint"],
                "s3.path-style-access": "true",
                "s3.access-key-id": s3["access_key"],
                "s3.secret-access-key": s3["secret_key"],
                "client.region": s3["region"],
            }
        self.session = spark_session("read", settings, with_aws=bool(s3))
        self.version = self.session.version
        self.session.sql("CREATE NAMESPACE read.tables")
        self.registered = {}

    def table(self, location, columns, condition):
        name = self.registered.get(location)
        if name is None:
            name = self.registered[location] = f"read.tables.t{len(self.registered)}"
            self.session.sql(
                f"CALL read.system.register_table(table => '{name}', metadata_file => {literal(location)})"
            )
        table = self.session.table(name)
        table = table.where(condition) if condition else table
        return table.selectExpr(*(quoted([c], "`") for c in columns))

    def rows(self, location, columns, condition):
        return self.table(location, columns, condition).toArrow()

    def count(self, location, columns, condition):
        return self.table(location, columns, condition).count()


ENGINES = {"pyiceberg": PyIceberg, "duckdb": DuckDb, "chdb": ClickHouse, "spark": Spark}


def read(engine, table, s3, count_only, exact):
    location = table["metadata_location"]
    types = column_types(read_metadata(location, s3))
    columns = table.get("columns") or list(types)
    condition = table.get("filter")
    if count_only:
        count = engine.count(location, columns, condition)
        return {"name": table["name"], "columns": columns, "count": count}
    arrow_table = engine.rows(location, columns, condition)
    if arrow_table.column_names != columns:
        raise ValueError(f"asked for columns {columns}, got {arrow_table.column_names}")
    rows = canonical.exact_rows(arrow_table) if exact else canonical.sorted_rows(arrow_table, types)
    return {"name": table["name"], "columns": columns, "rows": rows}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", required=True, choices=ENGINES)
    parser.add_argument("--tables", required=True)
    parser.add_argument("--count-only", action="store_true")
    parser.add_argument("--exact", action="store_true")
    arguments = parser.parse_args()
    request = json.loads(Path(arguments.tables).read_text())
    s3 = request.get("s3")

    answer_fd = os.dup(1)
    os.dup2(2, 1)

    started = time.monotonic()
    engine = ENGINES[arguments.engine](s3)
    print(f"{arguments.engine} started in {time.monotonic() - started:.1f} s", file=sys.stderr)
    tables = []
    for table in request["tables"]:
        try:
            tables.append(read(engine, table, s3, arguments.count_only, arguments.exact))
        except Exception as error:
            tables.append({"name": table["name"], "error": f"{type(error).__name__}: {error}"})
    answer = {"engine": arguments.engine, "version": engine.version, "tables": tables}
    with os.fdopen(answer_fd, "w") as stdout:
        stdout.write(canonical.as_text(answer) + "\n")


if __name__ == "__main__":
    main()
