"""What the pages tell people to write and to type: projects are checked, commands are parsed."""

import re
import shlex

import pytest
from conftest import ROOT, icestream, parses

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "deploy").rglob("*.md"))]
NAMED = re.compile(r"^`([\w./-]+\.(?:yaml|sql))`:\n\n```\w+\n(.*?)^```", re.M | re.S)
SETTINGS = re.compile(r"^```yaml\n(name: .*?)^```", re.M | re.S)
COMMANDS = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)


def name(page):
    return str(page.relative_to(ROOT))


def checked(folder, files):
    """What `check` says of a project without asking anybody, with every variable that it names set."""
    text = "".join(files.values())
    environment = {variable: "value" for variable in re.findall(r"\$\{(\w+)\}", text)}
    environment |= {"KAFKA_BROKERS": "broker:9092", "CATALOG_CREDENTIAL": "id:secret"}
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    return icestream("--project", folder, "check", "--offline", env=environment)


def commands(text):
    """Every command of icestream in the blocks of shell: without comments, up to a pipe or `&&`."""
    for block in COMMANDS.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words:
                end = next((at for at, word in enumerate(words) if word in ("&&", "|", ";", ">")), len(words))
                command, words = words[:end], words[end + 1 :]
                command = command[command.index("--") + 1 :] if command[:2] == ["cargo", "run"] and "--" in command else command
                if command[:1] == ["icestream"]:
                    command = command[1:]
                elif command[:1] != ["demo"]:
                    continue
                if any(">" in word for word in command):
                    command = command[: next(at for at, word in enumerate(command) if ">" in word)]
                yield command


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_projects_are_right(page, tmp_path):
    text = page.read_text()
    named = dict(NAMED.findall(text))
    projects = [named] if "icestream.yaml" in named else []
    projects += [{"icestream.yaml": settings} for settings in SETTINGS.findall(text) if settings not in named.values()]
    for number, files in enumerate(projects):
        ended = checked(tmp_path / str(number), files)
        assert ended.returncode == 0, (files, ended.stderr)
        assert "no problem" in ended.stdout


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_are_right(page):
    for command in commands(page.read_text()):
        verb = next((word for word in command if not word.startswith("-")), "help")
        if {"--help", "--project"} & set(command) or verb in ("demo", "init", "config", "help"):
            assert verb.isupper() or icestream("help", verb).returncode == 0, command
        else:
            assert parses(command) is None, (command, parses(command))


def test_there_is_something_to_check():
    everything = [page.read_text() for page in PAGES]
    assert sum(len(list(commands(text))) for text in everything) >= 30
    assert sum(len(SETTINGS.findall(text)) for text in everything) >= 6
    assert sum(len(NAMED.findall(text)) for text in everything) >= 8


def test_what_is_wrong_is_found(tmp_path):
    assert checked(tmp_path / "a", {"icestream.yaml": "name: shop\ncomit: { every: 1s }\n"}).returncode == 2
    assert checked(tmp_path / "b", {"icestream.yaml": "name: shop\n", "catalog/orders.yaml": "topics: x\n"}).returncode == 2


@pytest.mark.parametrize("style", ["dbserver1.public", "cdc.public", "postgres-cdc.public"])
def test_topics_by_any_prefix(style, tmp_path):
    """The names in use are configuration alone: the sample project's tables, whatever their topics are called."""
    files = {"icestream.yaml": f'name: shop\nsource: {{ kafka: {{ brokers: "b:9092", topics: ["{style}.*"] }} }}\n'}
    for file in (ROOT / "catalog").glob("*.yaml"):
        files[f"catalog/{file.name}"] = file.read_text().replace("topic: shop.public.", f"topic: {style}.")
    assert checked(tmp_path, files).returncode == 0
