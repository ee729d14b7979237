"""The programs of the chain: what starts them, stops them, hurts them, and tells when nothing is on its way any more."""

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from session import INSTALLED, ROOT, SERVICES

sys.path += [str(SERVICES), str(SERVICES / "kafka")]

import psycopg  # noqa: E402
import shop  # noqa: E402
from connect import Connect, postgres_connector  # noqa: E402
from processes import answers, catches, end, is_ours, start, sweep, until  # noqa: E402

PROFILE = os.environ.get("E2E_PROFILE") or "debug"
BINARY = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / PROFILE / "icestream"
DATABASE = "shop"
# Whoever asks AWS with this key is icestream; everybody else has the services' own.
ACCESS_KEY = "icestream"
BROKERS = 2
PARTITIONS = 3
QUIET_SECONDS = 300
END_SECONDS = 180


class World:
    def __init__(self, run_dir):
        self.run_dir = run_dir
        self.processes = []

    def start(self, trino=True):
        """Everything, but it does not wait for Trino."""
        # PostgreSQL runs as a user of its own, whom a folder of `mktemp` would not let through.
        self.run_dir.chmod(self.run_dir.stat().st_mode | 0o711)
        ups = [
            [SERVICES / "up", self.run_dir / "aws"],
            [SERVICES / "kafka/up", self.run_dir / "kafka", "--brokers", str(BROKERS), "--connect", "--postgres"],
        ]
        # A group of their own: Ctrl-C is for us to pass on, as what they started has to end with them.
        started = [subprocess.Popen([str(part) for part in up], start_new_session=True) for up in ups]
        try:
            if codes := [process.wait() for process in started if process.wait() != 0]:
                sys.exit(f"error: the services did not start: {codes}")
        except BaseException:
            for process in started:
                process.terminate()
                process.wait()
            raise
        self.aws = json.loads((self.run_dir / "aws/services.json").read_text())
        self.kafka = json.loads((self.run_dir / "kafka/kafka.json").read_text())
        self.connect = Connect(self.kafka["connect_uri"])
        self.connectors = {}
        self.trino_up = self.begin_trino() if trino else None
        shop.create(self.kafka["postgres"], DATABASE)
        self.db = shop.connect(self.kafka["postgres"], DATABASE)

    def begin_trino(self):
        if not (INSTALLED / "trino/stamp").exists():
            print("no Trino is installed (it needs Java 24): Spark reads in its place", flush=True)
            return None
        up = [SERVICES / "trino/up", self.run_dir / "trino", self.run_dir / "aws/services.json"]
        return subprocess.Popen([str(part) for part in up], start_new_session=True)

    def engines(self):
        """Who reads: the more patient ones once."""
        if self.trino_up is None:
            return ("pyiceberg", "duckdb", "spark")
        if self.trino_up.wait() != 0:
            sys.exit("error: Trino did not start")
        self.trino = json.loads((self.run_dir / "trino/trino.json").read_text())
        return ("pyiceberg", "duckdb", "trino")

    def aws_calls(self):
        """A file with what icestream has asked AWS for until now."""
        return self.run_dir / f"aws/calls-{ACCESS_KEY}.json"

    def stop(self):
        if getattr(self, "trino_up", None):
            self.trino_up.terminate()
            self.trino_up.wait()
        for process in self.processes:
            end(process.pid, self.run_dir, signal.SIGTERM)
        for down, folder in (("trino/down", "trino"), ("kafka/down", "kafka"), ("down", "aws")):
            subprocess.run([SERVICES / down, self.run_dir / folder], check=False)
        sweep(self.run_dir)

    def spawn(self, name, command, environment={}, **options):
        process = start(self.run_dir, name, command, environment, **options)
        self.processes.append(process)
        return process

    # Debezium

    def capture(self, name, config={}):
        """Adds a connector whose topics are `<name>.public.<table>`."""
        config = postgres_connector(
            name,
            {**self.kafka["postgres"], "database": DATABASE},
            ",".join(f"public.{table}" for table in shop.TABLES),
            {
                "publication.name": "shop",
                "publication.autocreate.mode": "disabled",
                "topic.creation.default.replication.factor": str(BROKERS),
                "topic.creation.default.partitions": str(PARTITIONS),
                **config,
            },
        )
        self.connectors[name] = config
        self.connect.create(name, config)

    def release(self, name):
        """Takes a connector away, with what the database keeps for it."""
        self.connect.delete(name)
        del self.connectors[name]

        def is_dropped():
            self.db.execute(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %s AND NOT active",
                [name],
            )
            slots = self.db.execute("SELECT FROM pg_replication_slots WHERE slot_name = %s", [name])
            return slots.fetchone() is None

        until(f"the slot of {name} is gone", is_dropped)

    def kill_connect(self):
        self.kill(self.kafka["connect_pid"])

    def restart_connect(self):
        self.restarted_at = time.time()
        process = self.spawn("connect", self.kafka["connect_command"])
        self.kafka["connect_pid"] = process.pid
        until("Kafka Connect answers", lambda: answers(f"{self.connect.uri}/connectors"))
        for name, config in self.connectors.items():
            self.connect.create(name, config)

    # PostgreSQL

    def stop_database(self):
        """With Kafka Connect, which would go on with the next one that answers there."""
        self.kill_connect()
        self.db.close()
        self.kill(self.kafka["postgres"]["pid"], signal.SIGINT)

    def start_database(self):
        place = self.kafka["postgres"]
        options = {"cwd": Path(place["socket"])}
        if user := place["run_as"]:
            group = pwd.getpwnam(user).pw_gid
            options |= {"user": user, "group": group, "extra_groups": [group]}
        place["pid"] = self.spawn("postgres", place["command"], **options).pid

        def connected():
            try:
                return shop.connect(place, DATABASE)
            except psycopg.OperationalError:
                return None

        self.db = until("PostgreSQL is back", connected)

    def database_files(self):
        return Path(self.kafka["postgres"]["socket"]) / "data"

    def back_up_database(self):
        """Its files, as they are at this moment."""
        self.stop_database()
        backup = self.run_dir / "backup"
        subprocess.run(["cp", "-a", self.database_files(), backup], check=True)
        self.start_database()
        self.restart_connect()
        return backup

    def restore_database(self, backup):
        """Puts the files back, and has the database captured anew: what its log says counts from an earlier place again, so
        that neither the slot nor what the connector has noted is of use."""
        self.stop_database()
        shutil.rmtree(self.database_files())
        subprocess.run(["cp", "-a", backup, self.database_files()], check=True)
        self.start_database()
        self.db.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots")
        (self.run_dir / "kafka/connect.offsets").unlink()
        self.restart_connect()

    def quiet(self):
        """Waits until Kafka has what PostgreSQL has committed: a slot's position moves once that is so."""

        def slots(condition="true", *values):
            if why := next(filter(None, map(self.connect.failure, self.connectors)), None):
                sys.exit(f"error: a connector failed: {why}")
            # A slot moves past a transaction when later ones have been sent.
            self.db.execute("SELECT pg_logical_emit_message(true, 'quiet', '')")
            found = self.db.execute(
                f"SELECT slot_name FROM pg_replication_slots WHERE active AND {condition}", list(values)
            )
            return {name for (name,) in found} >= set(self.connectors)

        # Nobody is at a slot while the first snapshot is taken, and it begins past that.
        until("every connector streams", slots, QUIET_SECONDS)
        (target,) = self.db.execute("SELECT pg_current_wal_insert_lsn()").fetchone()
        until("Kafka has everything", lambda: slots("confirmed_flush_lsn >= %s::pg_lsn", target), QUIET_SECONDS)

    # Kafka

    def client(self):
        from confluent_kafka import Consumer

        settings = {"bootstrap.servers": self.kafka["brokers"], "group.id": "e2e", "enable.auto.commit": False, "log_level": 0}
        return Consumer(settings | {"enable.partition.eof": True})

    def admin(self):
        from confluent_kafka.admin import AdminClient

        return AdminClient({"bootstrap.servers": self.kafka["brokers"], "log_level": 0})

    def add_partitions(self, topic, count):
        from confluent_kafka.admin import NewPartitions

        # Answers come only as long as it is there.
        admin = self.admin()
        for answer in admin.create_partitions([NewPartitions(topic, count)]).values():
            answer.result(30)

    def make_topic_anew(self, topic, partitions):
        from confluent_kafka.admin import NewTopic

        admin = self.admin()
        for answer in admin.delete_topics([topic]).values():
            answer.result(30)

        def is_made():
            (answer,) = admin.create_topics([NewTopic(topic, partitions, BROKERS)]).values()
            # Until the old one is gone for good.
            return answer.exception(30) is None

        until(f"{topic} is made anew", is_made)

    def kill_broker(self, node):
        self.kill(self.kafka["broker_pids"][node - 1])

    def restart_broker(self, node):
        process = self.spawn(f"broker-{node}-again", self.kafka["broker_commands"][node - 1])
        self.kafka["broker_pids"][node - 1] = process.pid
        until("the broker is back", lambda: "Kafka Server started" in process.log.read_text())

    def kill(self, pid, number=signal.SIGKILL):
        """Ends, with `kill -9`, what one of the services' scripts or `spawn` started."""
        def runs():
            return any(is_ours(pid, folder) for folder in (self.run_dir / "kafka", self.run_dir))

        if not runs():
            sys.exit(f"error: process {pid} has ended by itself")
        os.kill(pid, number)
        for process in self.processes:
            if process.pid == pid:
                process.wait()
        until(f"process {pid} is gone", lambda: not runs())

    def sent(self, name):
        """How many records a connector's topics have had until now."""
        from confluent_kafka import TopicPartition

        client = self.client()
        topics = client.list_topics(timeout=30).topics
        ends = [
            client.get_watermark_offsets(TopicPartition(topic, number), timeout=30)[1]
            for topic in (f"{name}.public.{table}" for table in shop.TABLES)
            if topic in topics
            for number in topics[topic].partitions
        ]
        client.close()
        return sum(ends)

    def records(self, topic):
        """How many records with a value a topic holds: one row of bronze each."""
        from confluent_kafka import TopicPartition

        client = self.client()
        partitions = client.list_topics(topic, timeout=30).topics[topic].partitions
        client.assign([TopicPartition(topic, number, 0) for number in partitions])
        count, unread = 0, len(partitions)
        while unread:
            message = client.poll(30)
            if message is None:
                sys.exit(f"error: {unread} partitions of {topic} do not end")
            if message.error():
                unread -= 1
            elif message.value() is not None:
                count += 1
        client.close()
        return count


class Project:
    """A project folder: the sample project with one of projects/ for its icestream.yaml.

    Its name is that of its catalog, `prefix` what its topics begin with, and `epochs` whether it has read a topic anew."""

    def __init__(self, world, name, prefix, bronze):
        self.world, self.name, self.prefix = world, name, prefix
        self.folder = world.run_dir / name
        self.bronze, self.silver, self.gold = bronze, "shop_silver", "shop_gold"
        self.epochs = False
        self.folder.mkdir()
        for part in ("catalog", "transforms", "sql/gold", "sql/audits"):
            shutil.copytree(ROOT / part, self.folder / part)
        shutil.copy(ROOT / f"tests/e2e/projects/{name}.yaml", self.folder / "icestream.yaml")
        aws = world.aws
        self.environment = {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": ACCESS_KEY,
            "AWS_REGION": aws["region"],
            "AWS_ENDPOINT": aws["s3_endpoint"],
            "BUCKET": aws["bucket"],
            "CATALOG_URI": aws["rest_uri"],
            "CATALOG_WAREHOUSE": aws["rest_warehouse"],
            "CATALOG_CREDENTIAL": aws["rest_credential"],
            "KAFKA_BROKERS": world.kafka["brokers"],
        }

    def command(self, *words):
        return [str(BINARY), "--project", str(self.folder), "--log-format", "json", *words]

    def icestream(self, *words, expect=(0,), environment={}):
        """Runs a verb to its end; any other exit code than those expected ends everything."""
        ended = subprocess.run(
            self.command(*words),
            env={**os.environ, **self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        with open(self.world.run_dir / f"{self.name}.log", "a") as log:
            log.write(f"$ icestream {' '.join(words)}\n{ended.stdout}{ended.stderr}= {ended.returncode}\n")
        if ended.returncode not in expect:
            sys.exit(f"error: `icestream {' '.join(words)}` ended with {ended.returncode}:\n{(ended.stdout + ended.stderr)[-4000:]}")
        return ended

    def begin(self, *words):
        """Starts a verb that goes on, and waits until it listens to signals."""
        log = self.world.run_dir / f"{self.name}-{words[0]}.log"
        began_at = log.stat().st_size if log.exists() else 0
        process = self.world.spawn(f"{self.name}-{words[0]}", self.command(*words), self.environment)
        process.began_at = began_at

        def listens():
            return process.poll() is not None or catches(process.pid, signal.SIGTERM)

        until(f"`icestream {words[0]}` listens to signals", listens)
        return process

    def commits(self, process):
        """Waits until such a verb has committed to bronze."""

        def has_committed():
            if process.poll() is not None:
                sys.exit(f"error: `icestream` ended with {process.returncode}; see {process.log}")
            return b'"layer":"bronze"' in process.log.read_bytes()[process.began_at :]

        until("icestream commits", has_committed)

    def finish(self, process, codes=(0,)):
        """Ends a verb as a scheduler does."""
        process.send_signal(signal.SIGTERM)
        code = process.wait(END_SECONDS)
        if code not in codes:
            sys.exit(f"error: `icestream` ended with {code} after SIGTERM; see {process.log}")

    def edit(self, file, old, new):
        """Does what its user does in an editor."""
        path = self.folder / file
        text = path.read_text()
        if old not in text:
            sys.exit(f"error: no {old!r} in {path}")
        path.write_text(text.replace(old, new, 1))

    def repeated(self, table):
        """How many events of a bronze table came before."""
        answer = self.icestream(
            "query",
            "--format",
            "csv",
            "select count(*) - count(distinct concat(_position, ' ', _op, ' ', coalesce(_key, ''))) as repeated"
            f" from {self.bronze}.{table}",
        )
        return int(answer.stdout.split()[1])

    def fell_back(self):
        """The silver tables of which `status` says that the source's positions fell back; histories left out."""
        status = json.loads(self.icestream("status", "--json").stdout)
        return [of["table"] for of in status["silver"] if of.get("fell_back") and "history" not in of["table"]]

    def catch_up(self):
        """Everything that is in the topics now, through to gold."""
        self.icestream("ingest", "--drain")
        self.icestream("build")
