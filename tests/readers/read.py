"""Reads Iceberg tables with one engine, from their metadata files, and prints canonical JSON.

    read.py --engine pyiceberg|duckdb|chdb|spark --tables FILE [--count-only]

FILE: {"s3": {"endpoint", "access_key", "secret_key", "region"} | null,
       "tables": [{"name", "metadata_location", "columns": [...] | null}]}
Output: {"engine", "version", "tables": [{"name", "columns", "rows"} or {"name", "error"}]}; with
--count-only "count" stands in place of "rows". Types for the canonical form come from the metadata
file, values only from the engine.

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

    def scan(self, location, columns):
        from pyiceberg.table import StaticTable

        return StaticTable.from_metadata(location, self.properties or {}).scan(
            selected_fields=tuple(columns)
        )

    def rows(self, location, columns):
        return self.scan(location, columns).to_arrow().select(columns)

    def count(self, location, columns):
        return self.scan(location, columns).count()


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

    def query(self, what, location):
        return self.connection.execute(
            f"SELECT {what} FROM iceberg_scan({literal(local_path(location))})"
        ).to_arrow_table()

    def rows(self, location, columns):
        return self.query(quoted(columns), location)

    def count(self, location, columns):
        return self.query("count(*)", location)[0][0].as_py()


class ClickHouse:
    def __init__(self, s3):
        import chdb

        self.s3 = s3
        self.query = chdb.query
        self.version = self.query("SELECT version()", "TSVRaw").bytes().decode().strip()

    def select(self, what, location):
        folder, file = local_path(location).rsplit("/metadata/", 1)
        at = f"SETTINGS iceberg_metadata_file_path = {literal('metadata/' + file)}"
        if location.startswith("s3"):
            url = f"{self.s3['endpoint']}/{folder.split('://', 1)[1]}/"
            keys = f"{literal(self.s3['access_key'])}, {literal(self.s3['secret_key'])}"
            source = f"icebergS3({literal(url)}, {keys}, {at})"
        else:
            source = f"icebergLocal({literal(folder + '/')}, {at})"
        return self.query(
            f"SELECT {what} FROM {source} SETTINGS session_timezone = 'UTC', "
            "output_format_arrow_string_as_string = 0",
            "ArrowTable",
        )

    def rows(self, location, columns):
        return self.select(quoted(columns), location)

    def count(self, location, columns):
        return self.select("count()", location)[0][0].as_py()


class Spark:
    def __init__(self, s3):
        from pyspark.sql import SparkSession

        wanted = ["iceberg-spark-runtime", "sqlite-jdbc"] + (["iceberg-aws-bundle"] if s3 else [])
        jars = [jar for name in wanted for jar in JARS.glob(f"{name}-*.jar")]
        os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
        settings = {
            "spark.jars": ",".join(map(str, jars)),
            "spark.ui.enabled": "false",
            "spark.driver.memory": "1g",
            "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1",
            "spark.sql.session.timeZone": "UTC",
            "spark.sql.shuffle.partitions": "1",
            "spark.sql.defaultCatalog": "read",
            "spark.sql.catalog.read": "org.apache.iceberg.spark.SparkCatalog",
            "spark.sql.catalog.read.catalog-impl": "org.apache.iceberg.jdbc.JdbcCatalog",
            "spark.sql.catalog.read.uri": "jdbc:sqlite::memory:",
            "spark.sql.catalog.read.clients": "1",
            "spark.sql.catalog.read.jdbc.schema-version": "V1",
            "spark.sql.catalog.read.warehouse": "file:///nowhere",
            "spark.sql.catalog.read.io-impl": "org.apache.iceberg.hadoop.HadoopFileIO",
            "spark.sql.extensions": (
                "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions"
            ),
        }
        if s3:
            settings |= {
                "spark.sql.catalog.read.io-impl": "org.apache.iceberg.io.ResolvingFileIO",
                "spark.sql.catalog.read.s3.endpoint": s3["endpoint"],
                "spark.sql.catalog.read.s3.path-style-access": "true",
                "spark.sql.catalog.read.s3.access-key-id": s3["access_key"],
                "spark.sql.catalog.read.s3.secret-access-key": s3["secret_key"],
                "spark.sql.catalog.read.client.region": s3["region"],
            }
        builder = SparkSession.builder.master("local[2]")
        for key, value in settings.items():
            builder = builder.config(key, value)
        self.session = builder.getOrCreate()
        self.version = self.session.version
        self.session.sql("CREATE NAMESPACE read.tables")
        self.registered = 0

    def table(self, location, columns):
        self.registered += 1
        name = f"read.tables.t{self.registered}"
        self.session.sql(
            f"CALL read.system.register_table(table => '{name}', metadata_file => {literal(location)})"
        )
        return self.session.table(name).selectExpr(*(quoted([c], "`") for c in columns))

    def rows(self, location, columns):
        return self.table(location, columns).toArrow()

    def count(self, location, columns):
        return self.table(location, columns).count()


ENGINES = {"pyiceberg": PyIceberg, "duckdb": DuckDb, "chdb": ClickHouse, "spark": Spark}


def read(engine, table, s3, count_only):
    location = table["metadata_location"]
    types = column_types(read_metadata(location, s3))
    columns = table.get("columns") or list(types)
    if count_only:
        return {"name": table["name"], "columns": columns, "count": engine.count(location, columns)}
    arrow_table = engine.rows(location, columns)
    if arrow_table.column_names != columns:
        raise ValueError(f"asked for columns {columns}, got {arrow_table.column_names}")
    rows = canonical.sorted_rows(arrow_table, types)
    return {"name": table["name"], "columns": columns, "rows": rows}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", required=True, choices=ENGINES)
    parser.add_argument("--tables", required=True)
    parser.add_argument("--count-only", action="store_true")
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
            tables.append(read(engine, table, s3, arguments.count_only))
        except Exception as error:
            tables.append({"name": table["name"], "error": f"{type(error).__name__}: {error}"})
    answer = {"engine": arguments.engine, "version": engine.version, "tables": tables}
    with os.fdopen(answer_fd, "w") as stdout:
        stdout.write(canonical.as_text(answer) + "\n")


if __name__ == "__main__":
    main()
