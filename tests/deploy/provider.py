"""provider.py JSII: what Terraform's AWS provider takes, of the services that deploy/terraform uses, as compact JSON.

The package describes each resource, data source and block of the provider as an interface whose properties carry
Terraform's own names in their links to the provider's reference.
"""

import json
import re
import sys

WANTED = re.compile(r"\.(s3Bucket|glueCatalog|iamRole|iamPolicy|iamOpenid|dataAws(Iam|CallerIdentity|Partition|Region))")
LINK = re.compile(r"/docs/(?:resources|data-sources)/(\w+)#(\w+) ")


def references(kind):
    """The interfaces that a property's type names."""
    if "fqn" in kind:
        return [kind["fqn"]]
    if "collection" in kind:
        return references(kind["collection"]["elementtype"])
    return [name for part in kind.get("union", {}).get("types", []) for name in references(part)]


def block(types, name):
    """The arguments of an interface: whether each must be there, and what stands in it where that is a block."""
    arguments = {}
    for own in types[name].get("properties", []):
        docs = own["docs"].get("summary", "") + " " + own["docs"].get("remarks", "")
        link = LINK.search(docs)
        if link is None:
            sys.exit(f"error: no name for {name}.{own['name']}")
        inner = [other for other in references(own["type"]) if other in types and "properties" in types[other]]
        is_block = "block." in own["docs"].get("summary", "")
        arguments[link[2]] = {
            "required": not own.get("optional", False),
            "block": block(types, inner[0]) if is_block and inner else None,
        }
    return arguments


def main():
    types = json.load(open(sys.argv[1]))["types"]
    found = {}
    for name in types:
        if name.endswith("Config") and WANTED.search(name) and types[name].get("kind") == "interface":
            if "cdktn.TerraformMetaArguments" not in types[name].get("interfaces", []):
                continue
            arguments = block(types, name)
            docs = json.dumps(types[name].get("properties", []))
            link = re.search(r"/docs/(resources|data-sources)/(\w+)#", docs)
            if link:
                kind = "data" if link[1] == "data-sources" else "resource"
                found.setdefault(kind, {})[f"aws_{link[2]}"] = arguments
    json.dump(found, sys.stdout, indent=1, sort_keys=True)


if __name__ == "__main__":
    main()
