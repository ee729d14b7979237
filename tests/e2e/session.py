"""What every program here begins and ends with."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ROOT / "tests/services"
INSTALLED = Path(os.environ.get("ICESTREAM_SERVICES") or ROOT / ".services").resolve()


def in_own_python(program):
    """Goes on in the services' Python, where PostgreSQL's and Kafka's clients are."""
    python = INSTALLED / "kafka/venv/bin/python"
    if Path(sys.prefix).resolve() == (INSTALLED / "kafka/venv").resolve():
        return
    for install in (["install"], ["kafka/install", "postgres"], ["trino/install"]):
        subprocess.run([SERVICES / install[0], *install[1:]], check=True)
    os.execv(python, [str(python), program, *sys.argv[1:]])


def stop_on_signals():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop_on_signal)


def stop_on_signal(number, _):
    # Whoever presses Ctrl-C twice shall not leave services behind.
    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def keep_logs(run_dir):
    kept = Path(os.environ.get("ICESTREAM_KEEP_LOGS") or tempfile.mkdtemp(prefix="icestream-e2e-"))
    for log in run_dir.rglob("*.log"):
        if log.is_file():
            target = kept / log.relative_to(run_dir)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(log, target)
    print(f"the logs of every program are in {kept}", file=sys.stderr)
