"""deploy/terraform: its syntax, its arguments against the schema of the AWS provider, its references, and the pod's policy.

`terraform validate` needs the provider's own binary, which no package registry has. What it would say of names is said here;
types of values and the provider's own checks are not looked at.
"""

import importlib.util
import json
import re
import shutil

import hcl2
import pytest
from conftest import INSTALLED, ROOT, load, run

FOLDER = ROOT / "deploy/terraform"
META = {"count", "for_each", "depends_on", "provider", "lifecycle"}


def plain(text):
    return text.strip('"')


def parts(folder=FOLDER):
    """Every block of the module: its kind, its labels, its body."""
    for file in sorted(folder.glob("*.tf")):
        for kind, blocks in hcl2.loads(file.read_text()).items():
            if kind.startswith("__"):
                continue
            for block in blocks:
                labels = []
                while kind in ("resource", "data", "variable", "output") and len(block) == 1 and len(labels) < (
                    2 if kind in ("resource", "data") else 1
                ):
                    [(label, block)] = block.items()
                    labels.append(plain(label))
                yield kind, labels, block


def misfits(body, schema, path):
    """Arguments that the provider does not take, or misses."""
    found = []
    for name, value in body.items():
        if name.startswith("__") or name in META:
            continue
        if name not in schema:
            found.append(f"{path}: no argument `{name}`")
        elif isinstance(value, list) and value and all(isinstance(one, dict) and "__is_block__" in one for one in value):
            if schema[name]["block"] is None:
                found.append(f"{path}: `{name}` is no block")
            else:
                for one in value:
                    found += misfits(one, schema[name]["block"], f"{path}.{name}")
        elif schema[name]["block"] is not None:
            found.append(f"{path}: `{name}` is a block")
    return found + [f"{path}: `{name}` is missing" for name in schema if schema[name]["required"] and name not in body]


def problems(folder=FOLDER):
    """What is wrong with the module's names."""
    schema, found, declared, text = load(INSTALLED / "provider/schema.json"), [], set(), []
    for kind, labels, body in parts(folder):
        text.append(json.dumps(body))
        if kind in ("resource", "data"):
            known = schema[kind].get(labels[0])
            address = ("data." if kind == "data" else "") + ".".join(labels)
            declared.add(address)
            found += misfits(body, known, address) if known else [f"{address}: no such {kind}"]
        elif kind == "variable":
            declared.add(f"var.{labels[0]}")
        elif kind == "locals":
            declared |= {f"local.{name}" for name in body if not name.startswith("__")}
    used = set(re.findall(r"\b(?:var|local)\.\w+|\b(?:data\.)?aws_\w+\.\w+", " ".join(text)))
    found += [f"{name} is not declared" for name in sorted(used - declared)]
    unused = {name for name in declared - used if name.startswith(("var.", "local.", "data."))}
    return found + [f"{name} is not used" for name in sorted(unused)]


def test_the_module():
    assert problems() == []
    resources = [labels[0] for kind, labels, _ in parts() if kind == "resource"]
    assert len(resources) >= 12, resources


@pytest.mark.parametrize(
    "file, old, new, told",
    [
        ("bucket.tf", "block_public_acls ", "block_public_acl ", "no argument `block_public_acl`"),
        ("bucket.tf", "noncurrent_days = var.", "days = var.", "`noncurrent_days` is missing"),
        ("bucket.tf", "    filter {}", "    filter = {}", "`filter` is a block"),
        ("bucket.tf", '"aws_s3_bucket_policy"', '"aws_s3_bucket_polices"', "no such resource"),
        ("outputs.tf", "aws_iam_role.pod.arn", "aws_iam_role.pods.arn", "aws_iam_role.pods is not declared"),
        ("catalog.tf", "local.warehouse", "local.warehose", "local.warehose is not declared"),
        ("variables.tf", 'variable "bucket"', 'variable "buckets"', "var.bucket is not declared"),
    ],
)
def test_what_is_wrong_is_found(file, old, new, told, tmp_path):
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new))
    assert any(told in problem for problem in problems(tmp_path)), problems(tmp_path)


@pytest.mark.skipif(shutil.which("terraform") is None, reason="terraform is not installed")
def test_the_format():
    ended = run(["terraform", "fmt", "-check", "-diff", FOLDER])
    assert ended.returncode == 0, ended.stdout


def check_iam():
    spec = importlib.util.spec_from_file_location("check_iam", FOLDER / "check_iam.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_policy_is_one():
    template = (FOLDER / "pod-policy.json.tftpl").read_text()
    given = {"project": "shop", "bucket": "arn:aws:s3:::lake", "glue": "arn:aws:glue:eu-central-1:123456789012"}
    identity = (FOLDER / "identity.tf").read_text()
    for name in set(re.findall(r"\$\{(\w+)\}", template)):
        assert re.search(rf"^    {name} +=", identity, re.M), f"`{name}` is not given"
    policy = json.loads(re.sub(r"\$\{(\w+)\}", lambda found: given[found[1]], template))
    resources = [resource for statement in policy["Statement"] for resource in statement["Resource"]]
    assert all(resource.startswith("arn:aws:") and resource != "*" for resource in resources)


def test_calls_are_compared_with_the_policy(tmp_path):
    check = check_iam()
    policy = (FOLDER / "pod-policy.json.tftpl").read_text()
    needed = check.allowed(policy) - set(check.RARELY)
    assert check.compare(policy, needed | set(check.WITHHELD)) == []
    assert check.compare(policy, needed | {"s3:PutBucketPolicy"}) == ["`s3:PutBucketPolicy` is called, and not allowed"]
    assert check.compare(policy, needed - {"glue:GetTable"}) == ["`glue:GetTable` is allowed, and never called"]
    assert any("wildcard" in one for one in check.compare(policy.replace("s3:GetObject", "s3:*"), needed))
    calls = tmp_path / "calls.json"
    calls.write_text(json.dumps(sorted(needed)))
    assert run([FOLDER / "check_iam.py", calls]).returncode == 0
    calls.write_text(json.dumps(["s3:GetObject", "s3:PutBucketPolicy"]))
    ended = run([FOLDER / "check_iam.py", calls])
    assert ended.returncode == 1 and "`s3:PutBucketPolicy` is called" in ended.stdout


def test_the_docs_list_the_policy():
    check = check_iam()
    documented = set(re.findall(r"`((?:glue|s3):\w+)`", (ROOT / "docs/aws.md").read_text()))
    allowed = check.allowed((FOLDER / "pod-policy.json.tftpl").read_text())
    assert documented == allowed | set(check.WITHHELD)


def test_the_program_makes_no_other_calls_to_glue():
    """What the sources can ask Glue for, whether a test gets there or not."""
    check = check_iam()
    source = (ROOT / "src/table/catalog/glue.rs").read_text().split("#[cfg(test)]")[0]
    calls = {"glue:" + "".join(part.title() for part in name.split("_")) for name in re.findall(r"client\.(\w+)\(\)", source)}
    glue = {action for action in check.allowed((FOLDER / "pod-policy.json.tftpl").read_text()) if action.startswith("glue:")}
    assert calls == glue | {action for action in check.WITHHELD if action.startswith("glue:")}
