"""What the chain goes through. Each scenario ends with the lake being compared with PostgreSQL; one lake lives through all of them, in
their order."""

import shutil
import sys
import time

import shop
from compare import compare, compare_bronze, report
from printed import Printed, models
from processes import until
from shop import Shop
from world import DATABASE, PARTITIONS, Project

LOAD = 150
KILLS = 4
MOST_KILLS = 10


class Chain:
    """PostgreSQL through Debezium and Kafka into a lake on Glue, and into a second one on a REST catalog."""

    def __init__(self, world, seed):
        self.world = world
        self.shop = Shop(shop.connect(world.kafka["postgres"], DATABASE), seed)
        self.glue = Project(world, "glue", "shop", "shop_bronze")
        self.rest = Project(world, "rest", "typed", "typed_bronze")
        # This one learns the columns from what is sent.
        shutil.rmtree(self.rest.folder / "catalog")
        world.capture("shop")
        world.capture("typed", {"value.converter.schemas.enable": "true", "key.converter.schemas.enable": "true"})

    def live(self, transactions=LOAD):
        self.shop.live(transactions)

    def compare(self, engines=("duckdb",), projects=None):
        """At a quiet point every layer equals what PostgreSQL holds."""
        self.world.quiet()
        for project in projects or (self.glue,):
            project.catch_up()
            is_equal = report(f"silver and gold, {project.name}", compare(self.world, project, engines))
            # An epoch that begins anew reads records that were read before a second time.
            if not project.epochs:
                is_equal &= report(f"bronze, {project.name}", compare_bronze(self.world, project, engines), "records")
            if not is_equal:
                # Whether the lake is what the topics hold: if so, it is the topics that are not what PostgreSQL holds.
                found = project.icestream("verify", "--all", "--broker", expect=range(256)).stdout
                sys.exit(f"{found}\nerror: the lake is not what PostgreSQL says")

    def verify(self, projects=None):
        """Every table is what it was made from, bronze what the topics hold."""
        for project in projects or (self.glue,):
            print(project.icestream("verify", "--all", "--broker").stdout.splitlines()[-1])


def life(chain):
    """Inserts, updates, deletes, changed keys, large values, a truncation, while icestream runs; `verify` agrees."""
    projects = (chain.glue, chain.rest)
    running = [project.begin("run") for project in projects]
    chain.live()
    for project, process in zip(projects, running):
        project.commits(process)
    chain.shop.do("TRUNCATE order_items")
    chain.live()
    for process in running:
        chain.glue.finish(process)
    chain.compare(chain.world.engines(), (chain.glue, chain.rest))
    chain.verify((chain.glue, chain.rest))


def columns_change(chain):
    """ALTER TABLE adds a column and widens another: declared in one lake, found out in the other."""
    glue, rest = chain.glue, chain.rest
    glue.edit("catalog/customers.yaml", "columns:\n", "columns:\n  - { name: points, type: int }\n")
    glue.edit("catalog/products.yaml", "{ name: stock_quantity, type: int }", "{ name: stock_quantity, type: long }")
    for project in (glue, rest):
        project.edit("transforms/customers.sql", "    notes,\n", "    notes,\n    points,\n")
    running = [project.begin("ingest") for project in (glue, rest)]
    chain.live(LOAD // 3)
    chain.shop.do("ALTER TABLE customers ADD COLUMN points int DEFAULT 7")
    chain.shop.do("ALTER TABLE products ALTER COLUMN stock_quantity TYPE bigint")
    chain.shop.do("UPDATE customers SET points = id WHERE id %% 2 = 0")
    # Rows that were there got their default without an event: Debezium tells it with the next change of each.
    chain.shop.do("UPDATE customers SET updated_at = now()")
    chain.shop.do("UPDATE products SET stock_quantity = 3000000000 WHERE id = 2")
    chain.live(LOAD // 3)
    chain.world.quiet()
    for process in running:
        glue.finish(process)
    for project in (glue, rest):
        project.icestream("ingest", "--drain")
        project.icestream("build", "--full", "customers", "products")
    chain.compare(chain.world.engines(), (glue, rest))
    # From here on one lake is enough.
    chain.world.release("typed")


def printed(chain):
    """Trino runs the statements that `icestream sql` prints, and comes to the rows of the build that they stand for."""
    glue = chain.glue
    if "trino" not in chain.world.engines():
        return
    glue.catch_up()
    chain.live()
    chain.shop.do("UPDATE products SET price = price + 1 WHERE id %% 3 = 0")
    chain.world.quiet()
    glue.icestream("ingest", "--drain")
    statements, silver, gold = Printed(chain.world, glue), models("transforms"), models("sql/gold")
    statements.merge(silver)
    glue.icestream("build")
    statements.compute(gold)
    different = False
    for table, missing, extra, rows in [*statements.differences(glue.silver, silver), *statements.differences(glue.gold, gold)]:
        print(f" {table:<36} | {rows:>6} rows | {'equal' if not missing + extra else f'{missing} missing, {extra} extra'}")
        different |= missing + extra > 0
    if different:
        sys.exit("error: the printed statements mean something else than a build")
    statements.drop()
    chain.compare()


def connector_killed(chain):
    """kill -9 of Kafka Connect while it sends: it sends again what it had not noted as sent."""
    running = chain.glue.begin("run")
    chain.live(LOAD // 3)
    chain.glue.commits(running)
    # Killed before it has noted its first snapshot, it takes another, and never tells of rows that went in between.
    chain.world.quiet()
    for _ in range(2):
        kill_while_it_sends(chain)
    # Now and then it has noted everything the moment before the signal comes.
    for _ in range(MOST_KILLS):
        chain.world.quiet()
        chain.glue.icestream("ingest", "--drain")
        if repeated := sum(chain.glue.repeated(table) for table in shop.TABLES):
            break
        kill_while_it_sends(chain)
    else:
        sys.exit("error: nothing was sent again: the scenario shows nothing")
    chain.glue.finish(running)
    print(f"{repeated} events were sent more than once")
    chain.compare()


def kill_while_it_sends(chain):
    sent = chain.world.sent("shop")
    chain.live(LOAD // 3)
    until("Kafka Connect sends", lambda: chain.world.sent("shop") > sent)
    chain.world.kill_connect()
    chain.live(LOAD // 3)
    chain.world.restart_connect()


def partitions_added(chain):
    """A topic gets more partitions while it is read: keys move to other ones."""
    running = chain.glue.begin("run")
    chain.live(LOAD // 3)
    chain.world.quiet()
    chain.glue.commits(running)
    for table in ("orders", "customers"):
        chain.world.add_partitions(f"shop.public.{table}", PARTITIONS + 2)
    # The producer finds them when it looks at the topics the next time.
    chain.live(LOAD)
    chain.glue.finish(running)
    chain.compare()


def broker_killed(chain):
    """kill -9 of one of two brokers while everything runs."""
    running = chain.glue.begin("run")
    chain.live(LOAD // 3)
    chain.glue.commits(running)
    chain.world.kill_broker(2)
    chain.live(LOAD // 3)
    chain.world.restart_broker(2)
    chain.live(LOAD // 3)
    chain.world.quiet()
    chain.glue.finish(running)
    chain.compare()


def icestream_killed(chain):
    """kill -9 of icestream at random moments, with a second one beside it."""
    other = None
    for _ in range(KILLS):
        running = chain.glue.begin("run")
        chain.live(LOAD // KILLS)
        time.sleep(chain.shop.random.uniform(0, 3))
        running.kill()
        running.wait()
        other = other or chain.glue.begin("run")
    # It may be taking over what the last one had, which is nothing to go on with but by a retry.
    chain.glue.finish(other, (0, 3))
    chain.compare()


def topic_made_anew(chain):
    """A topic is deleted and made anew: the table stops until it is told to go on with the new one."""
    chain.compare()
    # A producer that knows more partitions than the new topic has would wait for them for ever.
    chain.world.kill_connect()
    chain.world.make_topic_anew("shop.public.products", PARTITIONS)
    chain.world.restart_connect()
    for _ in range(5):
        chain.shop.do("UPDATE products SET stock_quantity = stock_quantity + 1, updated_at = now()")
    chain.live()
    chain.world.quiet()
    refused = chain.glue.icestream("ingest", "--drain", expect=(1, 2))
    if "products" not in refused.stderr or "--epoch" not in refused.stderr:
        sys.exit(f"error: that is not what happened: {refused.stderr}")
    chain.glue.icestream("offsets", "reset", "products", "--to", "earliest", "--epoch", "--yes")
    chain.glue.epochs = True
    chain.compare()
    chain.verify()


def database_restored(chain):
    """The database goes back to an earlier state and is captured anew: that is told, and `--restored` mends it."""
    backup = chain.world.back_up_database()
    chain.shop.use(chain.world.db)
    chain.live()
    # The lake has what is about to be lost.
    chain.compare()
    chain.world.restore_database(backup)
    chain.shop.use(chain.world.db)
    restored = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(chain.world.restarted_at))
    chain.live(LOAD // 3)
    chain.world.quiet()
    chain.glue.catch_up()
    told = chain.glue.fell_back()
    print(f"status tells that positions fell back in {', '.join(told)}")
    if set(told) != {f"{chain.glue.silver}.{table}" for table in shop.TABLES}:
        sys.exit("error: these are not the tables that were restored")
    for table in shop.TABLES:
        chain.glue.icestream("offsets", "reset", table, "--to", restored, "--restored", "--yes")
    chain.glue.epochs = True
    chain.compare()
    if told := chain.glue.fell_back():
        sys.exit(f"error: positions still fell back in {told}")
    chain.verify()


def looked_after(chain):
    """`check` finds nothing wrong, `maintain` beside those who write changes no row, and `verify` proves it."""
    chain.glue.icestream("check")
    running = chain.glue.begin("run")
    chain.live(LOAD // 3)
    chain.glue.commits(running)
    # Old enough is what the last few commits are not.
    few = {"ICESTREAM_MAINTAIN__MAX_SNAPSHOTS": "3", "ICESTREAM_MAINTAIN__KEEP_SNAPSHOTS": "2"}
    chain.glue.icestream("maintain", "--remove-orphans", environment=few)
    chain.live(LOAD // 3)
    chain.glue.finish(running)
    chain.compare(chain.world.engines())
    chain.verify()


ALL = {
    scenario.__name__: scenario
    for scenario in (
        life,
        columns_change,
        printed,
        connector_killed,
        partitions_added,
        broker_killed,
        icestream_killed,
        topic_made_anew,
        database_restored,
        looked_after,
    )
}
