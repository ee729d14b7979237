"""The statements that `icestream sql` prints, run by Trino on copies of the tables, against what a build makes of the same
events."""

from lake import Trino
from world import ROOT

SCHEMA = "printed"
# When a row was merged is the one thing that two engines say differently.
VOLATILE = "_merged_at"


class Printed:
    def __init__(self, world, project):
        self.project = project
        self.trino = Trino(world.trino["uri"], project.name)
        self.trino.query(f"CREATE SCHEMA {SCHEMA} WITH (location = 's3://{world.aws['bucket']}/{SCHEMA}')")

    def print(self, namespace, model):
        """A statement that changes a table of ours instead of the project's own."""
        text = self.project.icestream("sql", model).stdout
        if f"{namespace}.{model} " not in text:
            raise SystemExit(f"error: that is no statement about {namespace}.{model}: {text}")
        return text.replace(f" {namespace}.{model} ", f" {SCHEMA}.{model} ", 1).strip().rstrip(";")

    def merge(self, models):
        """Has each silver table, as it is now, merged by its statement."""
        for model in models:
            self.trino.query(f"CREATE TABLE {SCHEMA}.{model} AS SELECT * FROM {self.project.silver}.{model}")
            statement = self.print(self.project.silver, model)
            if "MERGE INTO" not in statement:
                raise SystemExit(f"error: there is nothing to merge into {model}: {statement}")
            self.trino.query(statement)

    def compute(self, models):
        """Has each gold table computed by its statement."""
        for model in models:
            self.trino.query(self.print(self.project.gold, model))

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
