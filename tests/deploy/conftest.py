"""What the checks of deploy/ share: the repository, what is installed for them, and the program itself."""

import json
import os
import shutil
import subprocess
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
    assert "--project" not in arguments
    ended = icestream("--project", "/nonexistent", *arguments)
    assert ended.returncode == 2, ended
    return None if "there is no folder `/nonexistent`" in ended.stderr else ended.stderr


def is_there(verb):
    """Whether the program has this verb."""
    return icestream("help", verb).returncode == 0


def sample_project(folder, settings):
    """The repository's own project with other settings, laid out as containers get it."""
    for name in ("catalog", "transforms", "sql"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(settings, folder / "icestream.yaml")
    return folder


@pytest.fixture(scope="session", autouse=True)
def built():
    assert PROGRAM.exists(), f"{PROGRAM} is not built"


def load(file):
    return json.loads(Path(file).read_text())
