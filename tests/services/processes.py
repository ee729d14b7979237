"""Starting, finding and ending the processes of one run, which carry the run's folder in their environment: by a name that
icestream does not take for a setting misspelt."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

READY_SECONDS = 120
GRACE_SECONDS = 20
PATIENCE_SECONDS = 180


# Below those that outgoing connections take, and one of them might until a server is there.
PORTS = range(15_000, 32_000)


def free_port():
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", random.choice(PORTS)))
            except OSError:
                continue
            return probe.getsockname()[1]


def start(run_dir, name, command, environment={}, **options):
    with open(run_dir / f"{name}.log", "ab") as log:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **environment, "TEST_RUN_DIR": str(run_dir)},
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


def until(what, is_true, seconds=PATIENCE_SECONDS):
    """Waits until something is true, and returns what that was."""
    deadline = time.monotonic() + seconds
    while not (answer := is_true()):
        if time.monotonic() > deadline:
            sys.exit(f"error: {what}: not after {seconds} s")
        time.sleep(0.2)
    return answer


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
    return state != "Z" and f"TEST_RUN_DIR={run_dir}".encode() in environment


def catches(pid, number):
    """Whether a process has something of its own to do when it is sent this signal."""
    (caught,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt:"))
    return int(caught.split()[1], 16) >> number - 1 & 1 == 1


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


def bring_down(file):
    """Ends the processes that a run's file names, the last one first."""
    if not file.exists():
        return
    services = json.loads(file.read_text())
    started = list(zip(services["pids"], services["signals"]))
    if left := [pid for pid, number in reversed(started) if not end(pid, file.parent, number)]:
        sys.exit(f"error: processes {left} do not end")
    file.unlink()


def sweep(folder):
    """Kills whatever belongs to a run in this folder or below, however it was started."""
    mark = f"TEST_RUN_DIR={folder}"
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            if any(name == mark or name.startswith(f"{mark}/") for name in environment):
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue
