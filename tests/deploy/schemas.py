"""What Kubernetes would say of a manifest: its published schemas, unknown fields refused."""

import json
from functools import cache
from importlib.resources import files

import jsonschema

VERSION = "v1.37.0"


@cache
def definitions():
    return json.loads(
        files("kubernetes_validate").joinpath(f"kubernetes-json-schema/{VERSION}-local-strict/_definitions.json").read_text()
    )["$defs"]


def problems(manifest):
    """What is wrong with it, each as a path and a message."""
    group, _, version = manifest["apiVersion"].rpartition("/")
    wanted = {"group": group, "version": version, "kind": manifest["kind"]}
    names = [
        name
        for name, schema in definitions().items()
        if wanted in schema.get("x-kubernetes-group-version-kind", [])
    ]
    if len(names) != 1:
        return [f"{manifest['apiVersion']} {manifest['kind']}: Kubernetes {VERSION} has no such kind"]
    schema = {"$ref": f"#/$defs/{names[0]}", "$defs": definitions()}
    errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{error.json_path}: {error.message}" for error in errors]
