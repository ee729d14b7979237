"""What the checks of deploy/ share: the repository, what is installed for them, and the program itself."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = Path(os.environ.get("ICESTREAM_SERVICES") or ROOT / ".services").resolve() / "deploy"
PROGRAM = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "debug/icestream"


def run(command, **options):
    """Runs a command to its end, without the variables that would change what icestream does."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ICESTREAM_", "AWS_"))}
    environment = {**inherited, **options.pop("env", {})}
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, env=environment, **options
    )


def icestream(*arguments, **options):
    return run([PROGRAM, *arguments], **options)


def parses(arguments):
    """Whether the program takes these arguments, by its own parser, and what it says when it does not.

    Without the project folder every verb ends with the same complaint, after its arguments were parsed and before
    anything was done.
    """
    assert "--project" not in arguments and not {"demo", "init", "config"} & set(arguments), "these need no project"
    ended = icestream("--project", "/nonexistent", *arguments)
    assert ended.returncode == 2, ended
    return None if "there is no folder `/nonexistent`" in ended.stderr else ended.stderr


def sample_project(folder, settings):
    """The repository's own project with other settings, laid out as containers get it."""
    for name in ("catalog", "transforms", "sql"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(settings, folder / "icestream.yaml")
    return folder


@pytest.fixture(scope="session", autouse=True)
def built():
    assert PROGRAM.exists(), f"{PROGRAM} is not built"


def order(number, cents=1000):
    """A created order as a sink of Kafka Connect writes it, in `shop.public.orders`."""
    size = (cents.bit_length() + 8) // 8
    amount = base64.b64encode(cents.to_bytes(size, "big", signed=True)).decode()
    times = {"created_at": 1736000000000000, "updated_at": 1736000000000000}
    after = {"id": number, "customer_id": number, "total_amount": amount, "status": "paid", **times}
    place = {"sequence": f'["{100 + number}","{100 + number}"]', "lsn": 100 + number, "txId": number}
    source = {"connector": "postgresql", "name": "shop", "schema": "public", "table": "orders", "ts_ms": 1, **place}
    value = {"before": None, "after": after, "source": source, "op": "c", "ts_ms": 1736000000000}
    at = {"topic": "shop.public.orders", "partition": 0, "offset": number - 1, "timestamp": 1736000000000}
    return json.dumps({**at, "key": {"id": number}, "value": value})


def project_of_files(folder, settings=None):
    """The sample project with five orders from a file in place of Kafka; on this machine where no settings are given."""
    (folder / "orders.json").write_text("".join(order(number) + "\n" for number in range(1, 6)))
    files = f"  files: {{ paths: ['{folder}/orders.json'], topic: shop.public.orders }}\n"
    text = settings.read_text() if settings else "name: shop\nsource:\n  kafka:\ncommit: { every: 10s }\n"
    before, kafka, after = text.partition("  kafka:\n")
    assert kafka, text
    (folder / "settings.yaml").write_text(before + files + after[after.index("commit:") :])
    return sample_project(folder / "project", folder / "settings.yaml")


class Aws:
    """Glue and S3 by moto, with versions compared as AWS does, and what it was asked for."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{port}"
        python = INSTALLED.parent / "venv/bin/python"
        server = [python, ROOT / "tests/services/moto_server.py", "--port", str(port), "--calls", folder]
        self.process = subprocess.Popen(server, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + 120
        while True:
            try:
                self.opener.open(urllib.request.Request(f"{self.endpoint}/lake", method="PUT"), timeout=30).close()
                return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, "moto does not start"
                time.sleep(0.1)

    def environment(self, **more):
        """What a pod has in its environment."""
        return {
            "AWS_ACCESS_KEY_ID": "pod",
            "AWS_SECRET_ACCESS_KEY": "pod",
            "AWS_REGION": "eu-central-1",
            "BUCKET": "lake",
            "KAFKA_BROKERS": "127.0.0.1:1",
            "ICESTREAM_CATALOG__ENDPOINT": self.endpoint,
            "ICESTREAM_STORAGE__S3__ENDPOINT": self.endpoint,
            "ICESTREAM_STORAGE__S3__PATH_STYLE": "true",
            **more,
        }

    def calls(self):
        return load(self.folder / "calls-pod.json")


@pytest.fixture(scope="session")
def aws(tmp_path_factory):
    server = Aws(tmp_path_factory.mktemp("aws"))
    yield server
    server.process.terminate()
    server.process.wait()


def load(file):
    return json.loads(Path(file).read_text())
