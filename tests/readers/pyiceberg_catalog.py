"""pyiceberg as the foreign writer: another program on the same catalog.

    pyiceberg_catalog.py CATALOG COMMAND NS.TABLE [ARGUMENT ...]

CATALOG is one of
    --name NAME --uri URI --warehouse LOCATION             SqlCatalog
    --name NAME --properties FILE                          any catalog, pyiceberg's properties as JSON
    --services SERVICES_JSON --type glue|rest              the catalogs of tests/services/up
COMMAND is one of
    create NS.TABLE FILE        {"columns": [{"name", "type", "required"}], and optionally
                                "partition": [{"column", "transform"}], "properties", "location"}
    read NS.TABLE               prints what read.py prints for one table
    locate NS.TABLE
    append NS.TABLE FILE        [{column: canonical value, ...}, ...]; missing columns are null
    delete NS.TABLE FILTER      copy-on-write delete, such as "id = 3"
    set-property NS.TABLE KEY VALUE
    add-column NS.TABLE NAME TYPE
    rename-column NS.TABLE NAME NEW
    drop-column NS.TABLE NAME
    widen NS.TABLE NAME TYPE
    partition-by NS.TABLE COLUMN TRANSFORM
    tag NS.TABLE NAME           the current snapshot
    roll-back NS.TABLE SNAPSHOT
    expire NS.TABLE             all snapshots no branch or tag points to
    session                     reads commands from stdin, each a line with a JSON list of the words
                                above, until stdin ends
All but read print {"metadata_location", "snapshot_id"}; in a session, {"error"} when it fails.
"""

import argparse
import json
import sys
from datetime import datetime, timezone
from pathlib import Path

import canonical
import pyarrow
import pyiceberg
from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import NamespaceAlreadyExistsError
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC, PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import parse_transform
from pyiceberg.types import NestedField


def catalog_properties(arguments):
    if arguments.services:
        services = json.loads(Path(arguments.services).read_text())
        storage = {
            "s3.endpoint": services["s3_endpoint"],
            "s3.access-key-id": services["access_key"],
            "s3.secret-access-key": services["secret_key"],
            "s3.region": services["region"],
        }
        if arguments.type == "glue":
            return storage | {
                "type": "glue",
                "glue.endpoint": services["glue_endpoint"],
                "glue.access-key-id": services["access_key"],
                "glue.secret-access-key": services["secret_key"],
                "glue.region": services["region"],
                "warehouse": f"s3://{services['bucket']}/glue",
            }
        return storage | {
            "type": "rest",
            "uri": services["rest_uri"],
            "warehouse": services["rest_warehouse"],
            "credential": services["rest_credential"],
        }
    if arguments.properties:
        return json.loads(Path(arguments.properties).read_text())
    return {"type": "sql", "uri": arguments.uri, "warehouse": arguments.warehouse}


def json_types(schema):
    return {f["name"]: f["type"] for f in json.loads(schema.model_dump_json())["fields"]}


def create(catalog, name, file):
    wanted = json.loads(Path(file).read_text())
    schema = Schema(
        *(
            NestedField.model_validate({"id": position, "required": False, **column})
            for position, column in enumerate(wanted["columns"], 1)
        )
    )
    spec = UNPARTITIONED_PARTITION_SPEC
    if wanted.get("partition"):
        spec = PartitionSpec(
            *(
                PartitionField(
                    source_id=schema.find_field(field["column"]).field_id,
                    field_id=position,
                    transform=parse_transform(field["transform"]),
                    name=f"{field['column']}_{field['transform'].partition('[')[0]}",
                )
                for position, field in enumerate(wanted["partition"], 1000)
            )
        )
    try:
        catalog.create_namespace(name.rpartition(".")[0])
    except NamespaceAlreadyExistsError:
        pass
    return catalog.create_table(
        name,
        schema,
        location=wanted.get("location"),
        partition_spec=spec,
        properties=wanted.get("properties", {}),
    )


def append(table, file):
    types = json_types(table.schema())
    rows = [
        {name: canonical.from_json(row.get(name), type_) for name, type_ in types.items()}
        for row in json.loads(Path(file).read_text())
    ]
    schema = schema_to_pyarrow(table.schema(), include_field_ids=False)
    table.append(pyarrow.Table.from_pylist(rows, schema=schema))


def parsed(type_):
    wanted = {"id": 1, "name": "x", "type": type_, "required": False}
    return NestedField.model_validate(wanted).field_type


def add_column(table, name, type_):
    with table.update_schema() as update:
        update.add_column(name, parsed(type_))


def rename_column(table, name, new):
    with table.update_schema() as update:
        update.rename_column(name, new)


def drop_column(table, name):
    with table.update_schema() as update:
        update.delete_column(name)


def widen(table, name, type_):
    with table.update_schema() as update:
        update.update_column(name, field_type=parsed(type_))


def partition_by(table, column, transform):
    with table.update_spec() as update:
        update.add_field(column, parse_transform(transform))


def tag(table, name):
    table.manage_snapshots().create_tag(table.current_snapshot().snapshot_id, name).commit()


def roll_back(table, snapshot):
    table.manage_snapshots().rollback_to_snapshot(int(snapshot)).commit()


def set_property(table, key, value):
    with table.transaction() as transaction:
        transaction.set_properties({key: value})


def expire(table):
    table.maintenance.expire_snapshots().older_than(datetime.now(timezone.utc)).commit()


def read(table):
    types = json_types(table.schema())
    rows = canonical.sorted_rows(table.scan().to_arrow(), types)
    answer = {"name": ".".join(table.name()), "columns": list(types), "rows": rows}
    return {"engine": "pyiceberg", "version": pyiceberg.__version__, "tables": [answer]}


CHANGES = {
    "append": append,
    "delete": lambda table, row_filter: table.delete(row_filter),
    "set-property": set_property,
    "add-column": add_column,
    "rename-column": rename_column,
    "drop-column": drop_column,
    "widen": widen,
    "partition-by": partition_by,
    "tag": tag,
    "roll-back": roll_back,
    "expire": expire,
}


def run(catalog, command, name, *rest):
    if command == "create":
        table = create(catalog, name, *rest)
    else:
        table = catalog.load_table(name)
    if command == "read":
        return read(table)
    if command in CHANGES:
        CHANGES[command](table, *rest)
    snapshot = table.refresh().current_snapshot()
    return {
        "metadata_location": table.metadata_location,
        "snapshot_id": snapshot and snapshot.snapshot_id,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", default="icestream")
    parser.add_argument("--uri")
    parser.add_argument("--warehouse")
    parser.add_argument("--properties")
    parser.add_argument("--services")
    parser.add_argument("--type", choices=["glue", "rest"])
    parser.add_argument("command", choices=["create", "read", "locate", "session", *CHANGES])
    parser.add_argument("table", nargs="?")
    parser.add_argument("argument", nargs="*")
    arguments = parser.parse_args()

    catalog = load_catalog(arguments.name, **catalog_properties(arguments))
    if arguments.command != "session":
        answer = run(catalog, arguments.command, arguments.table, *arguments.argument)
        sys.stdout.write(canonical.as_text(answer) + "\n")
        return
    for line in sys.stdin:
        try:
            answer = run(catalog, *json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(canonical.as_text(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
