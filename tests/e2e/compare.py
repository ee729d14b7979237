"""PostgreSQL says whether a lake holds what it holds.

The transforms and models are run by PostgreSQL itself over its own tables, in a transaction that is rolled back. What an
engine read of silver and gold is copied into a table of the same types, and PostgreSQL compares both as its own text.
"""

import re
from dataclasses import dataclass, field

import shop
from lake import Lake

# Rules that keep rows out of a table.
KEEPS_OUT = re.compile(r'that: "([^"]+)", else: (quarantine|drop)')
FRONT_MATTER = re.compile(r"\s*/\*\s*icestream(.*?)\*/", re.DOTALL)
SHOWN_DIFFERENCES = 5


@dataclass
class Finding:
    table: str
    in_source: int
    in_lake: int
    read_by: list = field(default_factory=list)
    differences: list = field(default_factory=list)

    def equal(self):
        return not self.differences and self.in_source == self.in_lake


def quoted(names, cast=""):
    return ", ".join(f'"{name}"{cast}' for name in names)


class Source:
    """The tables that silver and gold should be, as views in a transaction of their own."""

    def __init__(self, db, project):
        self.db, self.project = db, project

    def __enter__(self):
        self.db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        self.tables = []
        for schema in (self.project.silver, self.project.gold):
            self.db.execute(f"CREATE SCHEMA {schema}")
        for file in sorted(self.project.folder.glob("transforms/*.sql")):
            text = file.read_text()
            settings = FRONT_MATTER.match(text)[1]
            if "scd: 2" in settings:
                continue
            self.silver(f"{self.project.silver}.{file.stem}", settings, text)
        waiting = {f"{self.project.gold}.{file.stem}": file.read_text() for file in self.project.folder.glob("sql/gold/*.sql")}
        while waiting:
            ready = [model for model, text in waiting.items() if not any(other in text for other in waiting if other != model)]
            for model in sorted(ready):
                # The namespaces of the sample project stand in its models.
                self.view(model, FRONT_MATTER.sub("", waiting.pop(model), count=1))
        return self

    def silver(self, name, settings, text):
        """A table, and where a rule says so its quarantine."""
        source = re.search(r"from: (\w+)", settings)[1]
        select = f"WITH changes AS (SELECT * FROM public.{source}) {FRONT_MATTER.sub('', text, count=1)}"
        rules = KEEPS_OUT.findall(settings)
        held = " AND ".join(f"({rule}) IS NOT FALSE" for rule, _ in rules) or "true"
        self.view(name, f"SELECT * FROM ({select}) AS rows WHERE {held}")
        if kept := " OR ".join(f"({rule}) IS FALSE" for rule, otherwise in rules if otherwise == "quarantine"):
            self.view(f"{name}__quarantine", f"SELECT * FROM ({select}) AS rows WHERE {kept}")

    def view(self, name, text):
        self.db.execute(f"CREATE VIEW {name} AS {text}")
        self.tables.append(name)

    def __exit__(self, *_):
        self.db.execute("ROLLBACK")

    def columns(self, table):
        return [column.name for column in self.db.execute(f"SELECT * FROM {table} LIMIT 0").description]

    def count(self, table):
        return self.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]

    def differences(self, table, read):
        """What an engine's rows of a table and the table itself do not have in common."""
        columns = self.columns(table)
        theirs = [column for column in read["columns"] if not column.startswith("_")]
        if sorted(theirs) != sorted(columns):
            return [f"columns {theirs}, not {columns}"]
        places = [read["columns"].index(column) for column in columns]
        self.db.execute(f"CREATE TEMP TABLE seen ON COMMIT DROP AS SELECT * FROM {table} WITH NO DATA")
        with self.db.cursor() as cursor, cursor.copy(f"COPY seen ({quoted(columns)}) FROM STDIN") as copy:
            for row in read["rows"]:
                copy.write_row([as_text(row[place]) for place in places])
        texts = quoted(columns, "::text")
        ours, seen = f"SELECT {texts} FROM {table}", f"SELECT {texts} FROM seen"
        missing = self.db.execute(f"{ours} EXCEPT ALL {seen} ORDER BY 1 LIMIT 100").fetchall()
        extra = self.db.execute(f"{seen} EXCEPT ALL {ours} ORDER BY 1 LIMIT 100").fetchall()
        self.db.execute("DROP TABLE seen")
        return [*told_apart(columns, missing, extra)]


def told_apart(columns, missing, extra):
    """Rows that only one side has; where both have one that begins alike, what differs in it."""
    for row in missing:
        if other := next((other for other in extra if other[0] == row[0]), None):
            extra.remove(other)
            parts = [
                f"{column} is {short(theirs)}, not {short(ours)}"
                for column, ours, theirs in zip(columns, row, other)
                if ours != theirs
            ]
            yield f"{columns[0]} {row[0]}: {', '.join(parts)}"
        else:
            yield f"{columns[0]} {row[0]} is not in the lake"
    for row in extra:
        yield f"{columns[0]} {row[0]} is in the lake alone"


def short(value, most=60):
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}… ({len(value)} characters)"


def as_text(value):
    if isinstance(value, bool) or value is None:
        return value
    return str(value)


def compare(world, project, engines):
    """A finding for each table of silver and gold."""
    with Source(world.db, project) as source:
        lake = Lake(world, project.name, source.tables)
        findings = {table: Finding(table, source.count(table), -1) for table in source.tables}
        for engine in engines:
            for table, read in getattr(lake, engine)().items():
                finding = findings[table]
                finding.in_lake = len(read["rows"])
                finding.read_by.append(engine)
                finding.differences += [f"{engine}: {what}" for what in source.differences(table, read)]
    return list(findings.values())


def compare_bronze(world, project, engines):
    """A finding for each bronze table: as many rows as its topic has records with a value."""
    tables = {f"{project.bronze}.{table}": world.records(f"{project.prefix}.public.{table}") for table in shop.TABLES}
    lake = Lake(world, project.name, list(tables))
    findings = {table: Finding(table, count, -1) for table, count in tables.items()}
    for engine in engines:
        for table, count in lake.counts(engine).items():
            finding = findings[table]
            finding.in_lake = count
            finding.read_by.append(engine)
            if count != finding.in_source:
                finding.differences.append(f"{engine}: {count} rows")
    return list(findings.values())


def report(title, findings, source="PostgreSQL"):
    width = max(len(finding.table) for finding in findings)
    print(f"\n {title:<{width}} | {source:>10} | in the lake | values | read by")
    print(f"-{'-' * width}-+-{'-' * 10}-+-------------+--------+---------")
    for finding in findings:
        word = "equal" if finding.equal() else "DIFFER"
        print(
            f" {finding.table:<{width}} | {finding.in_source:>10} | {finding.in_lake:>11} | {word:<6} | "
            + ", ".join(finding.read_by)
        )
    for finding in findings:
        for difference in finding.differences[:SHOWN_DIFFERENCES]:
            print(f"   {finding.table}: {difference}")
        if more := len(finding.differences[SHOWN_DIFFERENCES:]):
            print(f"   {finding.table}: and {more} more")
    print(flush=True)
    return all(finding.equal() for finding in findings)
