"""One JSON form per Iceberg type, so that the answers of different engines compare as text.

Types are given as in a metadata file: `"long"`, `"decimal(9, 2)"`, `{"type": "struct", ...}`.
"""

import json
import re
import struct
import uuid
from datetime import date, datetime, time, timezone
from decimal import Decimal


def to_json(value, type_):
    """Value as an engine gives it (through Arrow) -> canonical JSON value."""
    if value is None:
        return None
    if isinstance(type_, dict):
        return nested_to_json(value, type_)
    if type_.startswith("decimal"):
        return f"{Decimal(value):.{scale(type_)}f}"
    if type_ in ("int", "long"):
        return int(value)
    if type_ in ("float", "double"):
        return repr(float(value))
    if type_ == "boolean":
        return bool(value)
    if type_ == "string":
        return value.decode() if isinstance(value, bytes) else value
    if type_ == "uuid":
        return str(uuid.UUID(bytes=value) if isinstance(value, bytes) else uuid.UUID(str(value)))
    if type_ == "binary" or type_.startswith("fixed"):
        return bytes(value).hex()
    if type_ == "date":
        return value.isoformat()
    if type_ == "time":
        return value.isoformat(timespec="microseconds")
    if type_.startswith("timestamp"):
        return timestamp_to_json(value, type_)
    raise ValueError(f"no canonical form for type `{type_}`")


def nested_to_json(value, type_):
    if type_["type"] == "struct":
        return {f["name"]: to_json(value[f["name"]], f["type"]) for f in type_["fields"]}
    if type_["type"] == "list":
        return [to_json(element, type_["element"]) for element in value]
    pairs = value.items() if isinstance(value, dict) else value
    entries = [[to_json(k, type_["key"]), to_json(v, type_["value"])] for k, v in pairs]
    return sorted(entries, key=as_text)


def timestamp_to_json(value, type_):
    if value.tzinfo is not None:
        value = value.astimezone(timezone.utc).replace(tzinfo=None)
    text = value.isoformat(timespec="microseconds")
    if type_.endswith("_ns"):
        text += f"{getattr(value, 'nanosecond', 0):03d}"
    return text + "Z" if type_.startswith("timestamptz") else text


def from_json(value, type_):
    """Canonical JSON value -> Python value that Arrow accepts for that type."""
    if value is None:
        return None
    if isinstance(type_, dict):
        if type_["type"] == "struct":
            return {f["name"]: from_json(value.get(f["name"]), f["type"]) for f in type_["fields"]}
        if type_["type"] == "list":
            return [from_json(element, type_["element"]) for element in value]
        return [(from_json(k, type_["key"]), from_json(v, type_["value"])) for k, v in value]
    if type_.startswith("decimal"):
        return Decimal(value)
    if type_ in ("float", "double"):
        return float(value)
    if type_ == "uuid":
        return uuid.UUID(value).bytes
    if type_ == "binary" or type_.startswith("fixed"):
        return bytes.fromhex(value)
    if type_ == "date":
        return date.fromisoformat(value)
    if type_ == "time":
        return time.fromisoformat(value)
    if type_.startswith("timestamp"):
        parsed = datetime.fromisoformat(value)
        return parsed.replace(tzinfo=timezone.utc) if type_.startswith("timestamptz") else parsed
    return value


def scale(decimal_type):
    return int(re.search(r",\s*(\d+)\)", decimal_type).group(1))


def as_text(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def sorted_rows(arrow_table, type_by_column):
    """Rows of an Arrow table in canonical form, sorted by their JSON text."""
    columns = [
        [to_json(value, type_by_column[name]) for value in arrow_table[name].to_pylist()]
        for name in arrow_table.column_names
    ]
    return sorted((list(row) for row in zip(*columns)), key=as_text)


def exact_rows(table):
    """The rows of an Arrow table as objects in which nothing is lost or out of range: dates and times as
    numbers, floats as their bits, bytes in hex."""
    columns = [exact_values(table.column(name).combine_chunks()) for name in table.column_names]
    return [dict(zip(table.column_names, row)) for row in zip(*columns)]


def exact_values(array):
    import pyarrow as pa
    from pyarrow import types

    type_ = array.type
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], type_)
    if types.is_struct(type_):
        fields = [exact_values(array.field(index)) for index in range(type_.num_fields)]
        names = [type_.field(index).name for index in range(type_.num_fields)]
        rows = zip(*fields) if fields else [()] * len(array)
        valid = array.is_valid().to_pylist()
        return [dict(zip(names, row)) if is_valid else None for row, is_valid in zip(rows, valid)]
    if types.is_date(type_):
        return array.cast(pa.int32()).to_pylist()
    if types.is_timestamp(type_):
        return array.cast(pa.int64()).to_pylist()
    values = array.to_pylist()
    if types.is_float32(type_):
        return [None if value is None else struct.pack(">f", value).hex() for value in values]
    if types.is_float64(type_):
        return [None if value is None else struct.pack(">d", value).hex() for value in values]
    if types.is_decimal(type_):
        return [None if value is None else f"{value:f}" for value in values]
    if types.is_binary(type_) or types.is_large_binary(type_):
        return [None if value is None else value.hex() for value in values]
    return values
