"""The statements that `icestream sql` prints, run by Trino on copies of the tables, against what a build makes of the same
events."""

import re

from lake import Trino
from world import ROOT

SCHEMA = "printed"
# When a row was merged is the one thing that two engines say differently.
VOLATILE = "_merged_at"


class Printed:
    def __init__(self, world, project):
        self.project = project
        self.trino = Trino(world.trino["uri"], project.name, "query_max_stage_count=500")
        self.trino.query(f"CREATE SCHEMA {SCHEMA} WITH (location = 's3://{world.aws['bucket']}/{SCHEMA}')")

    def run(self, namespace, model, verb):
        """Has the printed statements change a table of ours instead of the project's own."""
        text = self.project.icestream("sql", model).stdout
        if f"{verb} {namespace}.{model} " not in text:
            raise SystemExit(f"error: there is no {verb} of {namespace}.{model}: {text}")
        # What is read has a snapshot behind it.
        text = re.sub(rf"\b{namespace}\.{model} (?!FOR )", f"{SCHEMA}.{model} ", text)
        for statement in text.strip().removesuffix(";").split(";\n"):
            self.trino.query(statement)

    def merge(self, models):
        """Has each silver table, as it is now, merged by its statements."""
        for model in models:
            self.trino.query(f"CREATE TABLE {SCHEMA}.{model} AS SELECT * FROM {self.project.silver}.{model}")
            versioned = "scd: 2" in (ROOT / f"transforms/{model}.sql").read_text()
            self.run(self.project.silver, model, "INSERT INTO" if versioned else "MERGE INTO")

    def compute(self, models):
        """Has each gold table computed by its statement."""
        for model in models:
            self.run(self.project.gold, model, "CREATE OR REPLACE TABLE")

    def differences(self, namespace, models):
        """How many rows of each table only one of both has."""
        for model in models:
            described, _ = self.trino.query(f"SELECT * FROM {namespace}.{model} LIMIT 0")
            columns = ", ".join(f'"{column["name"]}"' for column in described if column["name"] != VOLATILE)
            ours, theirs = (f"SELECT {columns} FROM {of}.{model}" for of in (namespace, SCHEMA))
            (counted,) = self.trino.query(
                f"SELECT (SELECT count(*) FROM ({ours} EXCEPT ALL {theirs})), (SELECT count(*) FROM ({theirs} EXCEPT ALL"
                f" {ours})), (SELECT count(*) FROM ({ours}))"
            )[1]
            yield f"{namespace}.{model}", *counted

    def drop(self):
        self.trino.query(f"DROP SCHEMA {SCHEMA} CASCADE")


def models(folder):
    return sorted(path.stem for path in (ROOT / folder).glob("*.sql"))
