"""The DAGs of deploy/airflow in real Airflow, and every pod they start against the program and Kubernetes' schemas."""

import itertools
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, icestream, load, parses, project_of_files
from schemas import problems

AIRFLOW = ROOT / "deploy/airflow"
NOTHING = {"files": [], "from_time": None, "to_time": None, "from_offset": [], "to_offset": []}
SOURCES = [
    {"files": ["s3://bucket/topics/**/*.json.gz"]},
    {"files": ["/a/*.json", "/b/*.json.gz"]},
    {"from_time": "2026-03-01", "to_time": "-6h"},
    {"from_time": "-2d"},
    {"from_offset": ["shop.public.orders/0=12", "shop.public.orders/1=0"], "to_offset": ["shop.public.orders/0=4711"]},
]
PARAMS = [
    {**NOTHING, **source, "table": table, "epoch": epoch, "dry_run": dry_run}
    for source, table, epoch, dry_run in itertools.product(SOURCES, [None, "orders"], [None, 2], [True, False])
]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    home = tmp_path_factory.mktemp("airflow")
    (home / "broken").mkdir()
    (home / "broken/broken.py").write_text("from airflow.sdk import DAG\nDAG('x', nonsense=True)\n")
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(AIRFLOW / "plugins"),
        # Airflow itself puts these two folders where Python looks for modules.
        "PYTHONPATH": f"{AIRFLOW}/plugins:{AIRFLOW}/dags",
    }
    look = [sys.executable, ROOT / "tests/deploy/look_at_dags.py", AIRFLOW / "dags", home / "broken", json.dumps(PARAMS)]
    ended = subprocess.run(look, capture_output=True, text=True, env=environment, timeout=600, cwd=home)
    lines = [line for line in ended.stdout.splitlines() if line.startswith("FOUND")]
    assert lines, ended.stderr
    return json.loads(lines[0].removeprefix("FOUND"))


def test_airflow_takes_the_dags(found):
    assert found["errors"] == {}
    assert any("nonsense" in error for error in found["broken"].values()), "one that is broken is found"
    assert set(found["dags"]) == {"icestream", "icestream_backfill"}
    for dag in found["dags"].values():
        assert dag["serialized"]
        assert dag["max_active_runs"] == 1 and not dag["catchup"]
        assert dag["pools"] == ["icestream"], "runs of all DAGs queue for one slot"
        assert dag["retries"] == [4] and dag["failures_are_told"] and dag["without_timeout"] == []
    assert found["dags"]["icestream"]["deadlines"] == 1


def test_the_order_of_the_steps(found):
    steps = ["check", "ingest", "build", "verify", "maintain"]
    assert found["dags"]["icestream"]["tasks"] == {
        step: following for step, following in zip(steps, [*([step] for step in steps[1:]), []])
    }
    steps = ["arguments", "backfill", "is_done", "build"]
    assert found["dags"]["icestream_backfill"]["tasks"] == {
        step: following for step, following in zip(steps, [*([step] for step in steps[1:]), []])
    }


def test_the_pods(found):
    for dag_id, name, pod in [(dag, name, pod) for dag, pods in found["pods"].items() for name, pod in pods.items()]:
        assert problems({"apiVersion": "v1", "kind": "Pod", **pod}) == [], name
        spec, base = pod["spec"], pod["spec"]["containers"][0]
        assert base["name"] == "base" and not base.get("command"), "the image's entry point is the program"
        is_given = name == "backfill"
        assert is_given or parses(base["args"]) is None, (dag_id, name)
        sidecars = [container["name"] for container in spec["containers"][1:]]
        assert sidecars == (["airflow-xcom-sidecar"] if is_given or "--result" in base["args"] else [])
        mounts = [mount["mountPath"] for mount in base["volumeMounts"]]
        assert ("/airflow/xcom" in mounts) == bool(sidecars)
        assert {"/tmp", "/project/icestream.yaml", "/project/catalog", "/project/sql/gold"} <= set(mounts)
        assert base["securityContext"]["readOnlyRootFilesystem"] and spec["securityContext"]["runAsNonRoot"]
        assert spec["terminationGracePeriodSeconds"] == 120


def test_the_commands_of_backfills(found):
    assert len(found["commands"]) == len(PARAMS)
    for params, command in found["commands"]:
        assert parses(command) is None, command
        assert ("--dry-run" in command) == params["dry_run"]


def test_what_an_exit_code_does(found):
    assert found["ends"] == {
        "0": "succeeds",
        "1": "is retried",
        "2": "fails at once: exit code 2: usage or configuration; a retry cannot help",
        "3": "is retried",
        "4": "fails at once: exit code 4: a quality rule or an audit failed; a retry cannot help",
        "137": "is retried",
        "143": "is retried",
    }
    assert found["difference"] == "fails at once: exit code 1: something is not what it should be; a retry cannot help"


def test_the_steps_run(found, tmp_path):
    """The DAG's commands one after the other, as its pods have them."""
    project = project_of_files(tmp_path)
    for step, pod in found["pods"]["icestream"].items():
        arguments = pod["spec"]["containers"][0]["args"]
        result = tmp_path / f"{step}.json"
        arguments = [str(result) if argument == "/airflow/xcom/return.json" else argument for argument in arguments]
        ended = icestream("--project", project, *arguments)
        assert ended.returncode == 0, (step, ended.stderr)
        assert ("--result" not in arguments) or load(result), step
