"""Kafka Connect by its REST interface, and what it takes to have Debezium capture a database with it."""

import json
import sys
import urllib.error
import urllib.request


class Connect:
    def __init__(self, uri):
        self.uri = uri
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(self, path, body=None, method=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.uri + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            return json.loads(self.opener.open(request, timeout=90).read() or b"{}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return {}
            sys.exit(f"error: {path}: {error.read().decode()}")

    def create(self, name, config):
        self.ask("/connectors", {"name": name, "config": config})

    def delete(self, name):
        self.ask(f"/connectors/{name}", method="DELETE")

    def failure(self, name):
        for task in self.ask(f"/connectors/{name}/status").get("tasks", []):
            if task["state"] == "FAILED":
                lines = task["trace"].splitlines()
                causes = [line.strip() for line in lines if line.startswith("Caused by:")]
                return (causes or lines)[-1]
        return None


def postgres_connector(name, place, tables, config):
    """The connector whose slot, publication and topics carry `name`. `place` is `postgres` in kafka.json, `tables` a
    pattern of names with their schema; `config` adds to this or has its way against it."""
    return {
        "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
        "database.hostname": place["host"],
        "database.port": str(place["port"]),
        "database.user": place["user"],
        "database.password": place["password"],
        "database.dbname": place["database"],
        "plugin.name": "pgoutput",
        "topic.prefix": name,
        "slot.name": name,
        "publication.name": name,
        "publication.autocreate.mode": "filtered",
        "table.include.list": tables,
        "skipped.operations": "none",
        "poll.interval.ms": "100",
        "key.converter": "org.apache.kafka.connect.json.JsonConverter",
        "key.converter.schemas.enable": "false",
        "value.converter": "org.apache.kafka.connect.json.JsonConverter",
        "value.converter.schemas.enable": "false",
        **config,
    }
