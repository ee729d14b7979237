"""docker-compose.yml and Dockerfile, as far as they can be checked without a Docker engine."""

import fnmatch
import json
import re
import shutil
import sys

import pytest
from conftest import INSTALLED, ROOT, icestream, load, parses, run, sample_project

COMPOSE = ROOT / "docker-compose.yml"
FOLDER = ROOT / "deploy/compose"
LOCAL = {"postgres", "kafka", "connect", "connector", "minio", "bucket", "catalog", "icestream", "trino"}
ONCE = {"connector", "bucket"}


def loaded(*profiles, file=COMPOSE):
    """The project as Docker Compose resolves it."""
    ended = run([INSTALLED / "compose", file, *profiles])
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def needed(services, *names):
    """The services that are started when these are named."""
    found, left = set(), list(names)
    while left:
        name = left.pop()
        found.add(name)
        left += [other for other in services[name].get("depends_on", {}) if other not in found]
    return found


SERVICES = loaded("aws")["services"] if (INSTALLED / "compose").exists() else {}


def test_what_starts():
    assert set(loaded()["services"]) == LOCAL
    assert set(SERVICES) == LOCAL | {"icestream-aws", "trino-aws"}
    lake = {"minio", "bucket", "catalog"}
    assert needed(SERVICES, "icestream-aws", "trino-aws") & lake == set(), "AWS has its own"
    assert {"postgres", "connector"} <= needed(SERVICES, "icestream-aws")


def test_a_broken_file_is_found(tmp_path):
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(COMPOSE.read_text().replace("healthcheck:", "healthchek:", 1))
    assert "healthchek" in run([INSTALLED / "compose", broken]).stderr
    broken.write_text(COMPOSE.read_text().replace("connector: { condition", "conector: { condition", 1))
    assert "conector" in run([INSTALLED / "compose", broken]).stderr


@pytest.mark.parametrize("name", SERVICES)
def test_a_service(name):
    service = SERVICES[name]
    for port in service.get("ports", []):
        assert port["host_ip"] == "127.0.0.1", "nothing is open to other machines"
    if "build" not in service:
        image, _, tag = service["image"].partition(":")
        assert image and re.search(r"\d", tag), "images are pinned"
    for volume in service.get("volumes", []):
        if volume["type"] == "bind":
            assert volume["read_only"] and (ROOT / volume["source"]).exists(), volume
    waiting = [other["depends_on"][name]["condition"] for other in SERVICES.values() if name in other.get("depends_on", {})]
    if name in ONCE:
        assert set(waiting) == {"service_completed_successfully"}, "`up --wait` takes its end for a failure otherwise"
    else:
        assert service["healthcheck"]["test"][0] == "CMD"
        assert set(waiting) <= {"service_healthy"}


@pytest.mark.parametrize(
    "name, settings, properties",
    [("icestream", "rest.yaml", "rest.properties"), ("icestream-aws", "glue.yaml", "glue.properties")],
)
def test_icestream_in_its_container(name, settings, properties, tmp_path):
    service = SERVICES[name]
    assert parses(service["command"]) is None
    check = service["healthcheck"]["test"]
    assert check[1] == "/usr/local/bin/icestream" and parses(check[2:]) is None
    mounted = {volume["target"]: volume["source"] for volume in service["volumes"]}
    assert mounted["/project/icestream.yaml"] == str(FOLDER / settings)
    assert {"/project/catalog", "/project/transforms", "/project/sql"} < set(mounted)
    environment = {key: value for key, value in service["environment"].items() if value}
    environment.setdefault("BUCKET", "lake")
    project = sample_project(tmp_path / "project", FOLDER / settings)
    checked = icestream("--project", project, "check", "--offline", env=environment)
    assert checked.returncode == 0, checked.stderr
    shown = icestream("--project", project, "config", "show", env=environment)
    assert "brokers: \"kafka:9092\"" in shown.stdout or "brokers: kafka:9092" in shown.stdout, shown
    trino = SERVICES[name.replace("icestream", "trino")]
    assert trino["volumes"][0]["source"] == str(FOLDER / "trino" / properties)
    used = set(re.findall(r"\$\{ENV:(\w+)\}", (FOLDER / "trino" / properties).read_text()))
    assert used and used <= set(trino["environment"])


def test_endpoints_of_their_own(tmp_path):
    """What `GLUE_ENDPOINT`, `S3_ENDPOINT` and `S3_PATH_STYLE` in the caller's environment come to."""
    ours = {"GLUE_ENDPOINT": "http://glue:1", "S3_ENDPOINT": "http://s3:2", "S3_PATH_STYLE": "true", "BUCKET": "lake"}
    ended = run([INSTALLED / "compose", COMPOSE, "aws"], env=ours)
    environment = json.loads(ended.stdout)["services"]["icestream-aws"]["environment"]
    environment = {key: value for key, value in environment.items() if value}
    project = sample_project(tmp_path / "project", FOLDER / "glue.yaml")
    shown = icestream("--project", project, "config", "show", env=environment).stdout
    for expected in ("endpoint: http://glue:1", "endpoint: http://s3:2", "path_style: true", "warehouse: s3://lake/shop"):
        assert expected in shown


def test_the_connector():
    connector = load(FOLDER / "connector.json")
    environment = SERVICES["connect"]["environment"]
    used = set(re.findall(r"\$\{env:(\w+)\}", json.dumps(connector)))
    assert used and used <= set(environment)
    assert "EnvVarConfigProvider" in environment["CONNECT_CONFIG_PROVIDERS_ENV_CLASS"]
    schema = (ROOT / "sql/source/shop.sql").read_text()
    published = re.search(r"CREATE PUBLICATION (\w+) FOR TABLE ([\w, ]+);", schema)
    assert connector["publication.name"] == published[1]
    tables = {f"public.{table.strip()}" for table in published[2].split(",")}
    assert set(connector["table.include.list"].split(",")) == tables
    topics = {re.search(r"^topic: (.*)$", file.read_text(), re.M)[1] for file in (ROOT / "catalog").glob("*.yaml")}
    assert topics == {f"{connector['topic.prefix']}.{table}" for table in tables}
    registered = SERVICES["connector"]
    assert registered["volumes"][0]["source"] == str(FOLDER / "connector.json")
    assert registered["command"][-1].endswith("/connectors/shop/config")


def test_the_dockerfile_is_clean():
    ended = run([INSTALLED / "venv/bin/hadolint", "--no-color", ROOT / "Dockerfile"])
    assert ended.returncode == 0, ended.stdout
    text = (ROOT / "Dockerfile").read_text()
    last = text[text.rindex("\nFROM ") :]
    assert ":nonroot" in last and "\nUSER 65532" in last and "RUN" not in last, "no root and no shell"


def test_the_build_context_is_enough(tmp_path):
    """Cargo reads the manifest in what .dockerignore lets through, and every file that the sources include is there."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    tracked = run(["git", "ls-files"], cwd=ROOT).stdout.split()
    kept = [
        file
        for file in tracked
        if any(fnmatch.fnmatch(file, rule[1:]) or file.startswith(rule[1:] + "/") for rule in rules[1:])
    ]
    for file in kept:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    read = run(["cargo", "metadata", "--no-deps", "--locked", "--offline", "--format-version=1"], cwd=tmp_path)
    assert read.returncode == 0, read.stderr
    for source in (tmp_path / "src").rglob("*.rs"):
        # Tests include more, and are not built there.
        if source.stem == "tests" or "tests" in source.parts:
            continue
        body = source.read_text().split("#[cfg(test)]")[0]
        for included in re.findall(r'include_(?:str|bytes)!\("([^"]+)"\)', body):
            assert (source.parent / included).resolve().is_relative_to(tmp_path), included
            assert (source.parent / included).exists(), f"{source} includes {included}"


def test_the_chain_of_the_tests_is_this_one():
    """tests/e2e runs the same connector and the same settings outside containers, only faster."""
    sys.path.insert(0, str(ROOT / "tests/services/kafka"))
    from connect import postgres_connector

    ours = load(FOLDER / "connector.json")
    place = {"host": "", "port": "", "user": "", "password": "", "database": ""}
    published = {"publication.name": "shop", "publication.autocreate.mode": "disabled"}
    theirs = postgres_connector("shop", place, ours["table.include.list"], published)
    differs = {key for key in set(ours) & set(theirs) if ours[key] != theirs[key] and not key.startswith("database.")}
    assert differs == set()
    assert set(theirs) - set(ours) == {"poll.interval.ms"}
    only_here = {key for key in set(ours) - set(theirs) if not key.startswith("topic.creation.")}
    assert only_here == {"heartbeat.interval.ms"}


def test_the_settings_of_the_tests_are_these(tmp_path):
    given = {"AWS_REGION": "us-east-1", "BUCKET": "lake", "KAFKA_BROKERS": "b:9092", "AWS_ENDPOINT": "http://s3:1"}
    endpoints = {name: "http://s3:1" for name in ("ICESTREAM_CATALOG__ENDPOINT", "ICESTREAM_STORAGE__S3__ENDPOINT")}
    more = {**endpoints, "ICESTREAM_STORAGE__S3__PATH_STYLE": "true"}
    shown = []
    for settings, environment in ((FOLDER / "glue.yaml", more), (ROOT / "tests/e2e/projects/glue.yaml", {})):
        project = sample_project(tmp_path / str(len(shown)), settings)
        text = icestream("--project", project, "config", "show", env={**given, **environment}).stdout
        shown.append([line.partition(" #")[0].rstrip() for line in text.splitlines() if not line.startswith("#")])
    slower = re.compile(r"\s*(every|memory|discover_every):")
    compose, tests = ([line for line in lines if not slower.match(line)] for lines in shown)
    assert compose == tests and len(compose) > 20
