"""Other engines reading what icestream wrote, found through its catalogs."""

import json
import subprocess
import urllib.request

from world import INSTALLED, ROOT

READERS = ROOT / "tests/readers"
PYTHON = INSTALLED / "venv/bin/python"
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def run(world, *command):
    log = open(world.run_dir / "readers.log", "ab")
    ended = subprocess.run([str(part) for part in [PYTHON, *command]], stdout=subprocess.PIPE, stderr=log)
    if ended.returncode != 0:
        raise SystemExit(f"error: {command[0].name} ended with {ended.returncode}; see {log.name}")
    return [json.loads(line) for line in ended.stdout.splitlines()]


def signed(aws, service):
    """What moto wants to see of a signature."""
    scope = f"{aws['access_key']}/20250101/{aws['region']}/{service}/aws4_request"
    return {"Authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=none"}


def glue_location(aws, database, table):
    """The metadata file of a table, as Glue has it."""
    headers = {
        "Content-Type": "application/x-amz-json-1.1",
        "X-Amz-Target": "AWSGlue.GetTable",
        **signed(aws, "glue"),
    }
    body = json.dumps({"DatabaseName": database, "Name": table}).encode()
    with OPENER.open(urllib.request.Request(aws["glue_endpoint"], body, headers), timeout=60) as answer:
        return json.load(answer)["Table"]["Parameters"]["metadata_location"]


def s3_json(aws, location):
    """A JSON file in S3."""
    request = urllib.request.Request(f"{aws['s3_endpoint']}/{location.removeprefix('s3://')}", headers=signed(aws, "s3"))
    with OPENER.open(request, timeout=30) as answer:
        return json.load(answer)


class Lake:
    """The tables of a project, as they are now. Rows come as lists of canonical values in the columns' order."""

    def __init__(self, world, catalog, tables):
        self.world, self.catalog, self.tables = world, catalog, tables
        if catalog == "glue":
            self.locations = {table: glue_location(world.aws, *table.split(".")) for table in tables}
        else:
            answers = self.ask_pyiceberg("locate")
            self.locations = {table: answer["metadata_location"] for table, answer in answers.items()}

    def ask_pyiceberg(self, command):
        asked = subprocess.run(
            [PYTHON, READERS / "pyiceberg_catalog.py", "--services", self.world.run_dir / "aws/services.json"]
            + ["--type", self.catalog, "session"],
            input="".join(json.dumps([command, table]) + "\n" for table in self.tables),
            stdout=subprocess.PIPE,
            stderr=open(self.world.run_dir / "readers.log", "ab"),
            text=True,
            check=True,
        )
        answers = dict(zip(self.tables, map(json.loads, asked.stdout.splitlines())))
        if wrong := [f"{table}: {answer['error']}" for table, answer in answers.items() if "error" in answer]:
            raise SystemExit(f"error: pyiceberg: {wrong}")
        return answers

    def pyiceberg(self):
        """Through the catalog."""
        return {table: answer["tables"][0] for table, answer in self.ask_pyiceberg("read").items()}

    def by_file(self, engine, *options):
        """From the metadata files."""
        aws = self.world.aws
        s3 = {"endpoint": aws["s3_endpoint"], "region": aws["region"]}
        s3 |= {"access_key": aws["access_key"], "secret_key": aws["secret_key"]}
        tables = [{"name": table, "metadata_location": location} for table, location in self.locations.items()]
        request = self.world.run_dir / f"read-{engine}.json"
        request.write_text(json.dumps({"s3": s3, "tables": tables}))
        (answer,) = run(self.world, READERS / "read.py", "--engine", engine, "--tables", request, *options)
        if wrong := [f"{table['name']}: {table['error']}" for table in answer["tables"] if "error" in table]:
            raise SystemExit(f"error: {engine}: {wrong}")
        return {table["name"]: table for table in answer["tables"]}

    def counts(self, engine):
        if engine == "trino":
            trino = Trino(self.world.trino["uri"])
            return {table: trino.query(f"SELECT count(*) FROM {self.catalog}.{table}")[1][0][0] for table in self.tables}
        return {table: answer["count"] for table, answer in self.by_file(engine, "--count-only").items()}

    def duckdb(self):
        return self.by_file("duckdb")

    def spark(self):
        return self.by_file("spark")

    def trino(self):
        """Through the catalog."""
        trino = Trino(self.world.trino["uri"])
        return {table: trino.read(f"{self.catalog}.{table}") for table in self.tables}


class Trino:
    def __init__(self, uri, catalog="system", session=""):
        self.uri, self.catalog, self.session = uri, catalog, session

    def query(self, sql):
        headers = {"X-Trino-User": "e2e", "X-Trino-Time-Zone": "UTC", "X-Trino-Catalog": self.catalog}
        headers["X-Trino-Session"] = self.session
        # Without it, times come cut to milliseconds.
        headers["X-Trino-Client-Capabilities"] = "PARAMETRIC_DATETIME"
        request = urllib.request.Request(f"{self.uri}/v1/statement", sql.encode(), headers)
        columns, rows = [], []
        while True:
            answer = json.load(OPENER.open(request, timeout=120))
            if error := answer.get("error"):
                raise SystemExit(f"error: Trino: {error['message']}: {sql}")
            columns = answer.get("columns", columns)
            rows += answer.get("data", [])
            if "nextUri" not in answer:
                return columns, rows
            request = urllib.request.Request(answer["nextUri"], headers=headers)

    def read(self, table):
        columns, rows = self.query(f"SELECT * FROM {table}")
        # What is neither a number nor a boolean comes as text already, but for zones, which PostgreSQL reads as well.
        return {"columns": [column["name"] for column in columns], "rows": rows}
