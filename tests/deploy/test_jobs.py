"""docs/jobs.md: what the program promises whoever starts it, tried claim by claim."""

import json
import signal
import socket
import subprocess

import pytest
from conftest import PROGRAM, ROOT, icestream, load, project_of_files, run


@pytest.fixture
def project(tmp_path):
    """A project on this machine that reads five orders from a file."""
    return project_of_files(tmp_path)


def job(project, *arguments, **options):
    """A verb as a job: what it ended with, and its result."""
    result = project / "result.json"
    result.unlink(missing_ok=True)
    ended = icestream("--project", project, *arguments, "--result", result, **options)
    return ended.returncode, load(result) if result.exists() else None, ended.stderr


def rows(project, sql):
    ended = icestream("--project", project, "query", "--format", "json", sql)
    return [json.loads(line) for line in ended.stdout.splitlines()]


def test_a_taken_address_for_metrics_is_a_matter_of_configuration(project):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "%s:%d" % taken.getsockname()
        code, result, told = job(project, "ingest", "--drain", "--metrics", address)
    assert (code, result) == (2, None) and f"metrics cannot be served at `{address}`" in told
    assert not (project / "lake").exists(), "nothing was done"


def test_nothing_to_do_is_done(project):
    code, result, _ = job(project, "ingest", "--drain")
    assert code == 0 and result["ingested"]["rows"] == 5
    code, result, _ = job(project, "ingest", "--drain")
    assert code == 0 and result["ingested"]["rows"] == 0
    assert job(project, "build")[0] == 0
    code, result, _ = job(project, "build")
    assert code == 0 and result["built"]["silver_merges"] == 0 and result["built"]["gold_refreshes"] == 0


def test_a_result_is_also_on_stdout_and_never_half_there(project):
    ended = icestream("--project", project, "ingest", "--drain", "--result", project / "result.json")
    assert json.loads(ended.stdout) == load(project / "result.json")
    ended = icestream("--project", project, "build", "--result", project / "nowhere/result.json")
    assert ended.returncode == 2 and "cannot write the result" in ended.stderr


def test_two_at_once_do_the_work_once(project):
    # The tables' catalog is made by whoever comes first.
    icestream("--project", project, "check")
    command = [PROGRAM, "--project", project, "run", "--drain"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    for table in ("shop_bronze.orders", "shop_silver.orders"):
        assert rows(project, f"select count(*) as n from {table}") == [{"n": 5}], table


def test_configuration_is_2(project):
    (project / "icestream.yaml").write_text("name: shop\nbuild: { evry: 1m }\n")
    code, result, told = job(project, "build")
    assert (code, result) == (2, None) and "did you mean `every`?" in told
    assert icestream("bulid").returncode == 2


def test_unavailable_is_3(project):
    (project / "icestream.yaml").write_text('name: shop\ncatalog: { type: rest, uri: "http://127.0.0.1:1" }\n')
    code, result, told = job(project, "build")
    assert (code, result) == (3, None) and "does not answer" in told


def test_quality_is_4_with_a_result(project):
    assert job(project, "ingest", "--drain")[0] == 0
    (project / "sql/audits").mkdir(exist_ok=True)
    audit = "/* icestream { severity: fail } */\nselect id from shop_silver.orders where id = 3\n"
    (project / "sql/audits/no_third_order.sql").write_text(audit)
    code, result, told = job(project, "build")
    assert code == 4 and "no_third_order" in told
    assert any(finding["rows_failed"] == 1 for finding in result["built"]["quality"])
    (project / "sql/audits/no_third_order.sql").write_text(audit.replace("= 3", "= 33"))
    assert job(project, "build")[0] == 0


def test_a_killed_job_is_done_by_the_next(project):
    command = [PROGRAM, "--project", project, "run", "--drain"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while "committed" not in (line := process.stderr.readline()) and line:
        pass
    process.send_signal(signal.SIGKILL)
    process.stderr.close()
    assert process.wait() in (-signal.SIGKILL, 0)
    assert job(project, "run", "--drain")[0] == 0
    assert rows(project, "select count(*) as n from shop_silver.orders") == [{"n": 5}]


def test_sigterm_ends_a_verb_that_waits(project):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        (project / "icestream.yaml").write_text(f'name: shop\ncatalog: {{ type: rest, uri: "http://127.0.0.1:{port}" }}\n')
        process = subprocess.Popen(
            [PROGRAM, "--project", project, "build"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        connection, _ = silent.accept()
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=30)
        connection.close()
    assert code == 143


def test_what_glue_and_s3_are_asked_for_is_what_the_policy_allows(aws, tmp_path):
    project, environment = project_of_files(tmp_path, ROOT / "deploy/compose/glue.yaml"), aws.environment()
    looks = ["status --no-source", "tables", "tables orphans shop_bronze.orders", "plan"]
    for command in ["check", "run --drain", *looks, "verify", "maintain --remove-orphans"]:
        ended = icestream("--project", project, *command.split(), env=environment)
        assert ended.returncode == 0, (command, ended.stderr)
    compared = run([ROOT / "deploy/terraform/check_iam.py", aws.folder / "calls-pod.json"])
    assert compared.returncode == 0, compared.stdout
