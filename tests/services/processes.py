"""Starting, finding and ending the processes of one run, which carry the run's folder in their environment."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

READY_SECONDS = 120
GRACE_SECONDS = 20


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(run_dir, name, command, **options):
    with open(run_dir / f"{name}.log", "ab") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "ICESTREAM_RUN": str(run_dir)},
            **options,
        )
    process.name, process.log = name, run_dir / f"{name}.log"
    return process


def wait_ready(process, is_ready):
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"error: {process.name} ended with code {process.returncode}; see {process.log}")
        if is_ready():
            return
        time.sleep(0.1)
    sys.exit(f"error: {process.name} was not ready after {READY_SECONDS} s; see {process.log}")


def answers(url):
    """Whether an HTTP server answers with success."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=10).close()
    except OSError:
        return False
    return True


def is_ours(pid, run_dir):
    """A number in a run's file may meanwhile belong to another process."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return state != "Z" and f"ICESTREAM_RUN={run_dir}".encode() in environment


def end(pid, run_dir, number=signal.SIGTERM):
    """Ends a process of the run and waits until it is gone. Returns whether it is."""
    for number, seconds in ((number, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        if not is_ours(pid, run_dir):
            return True
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return True
        deadline = time.monotonic() + seconds
        while is_ours(pid, run_dir) and time.monotonic() < deadline:
            time.sleep(0.02)
    return not is_ours(pid, run_dir)
