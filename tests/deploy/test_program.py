"""The checks themselves find what is wrong."""

from conftest import parses


def test_wrong_arguments_do_not_parse():
    assert parses(["ingest", "--drain", "--result", "/tmp/result.json"]) is None
    assert "unexpected argument '--drian'" in parses(["ingest", "--drian"])
    assert "unrecognized subcommand" in parses(["ingets"])
