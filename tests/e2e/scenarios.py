"""What the chain goes through. Each scenario ends with the lake being compared with PostgreSQL."""

import sys

import shop
from compare import compare, compare_bronze, report
from shop import Shop
from world import DATABASE, Project

LOAD = 300


class Chain:
    """PostgreSQL through Debezium and Kafka into a lake on Glue."""

    def __init__(self, world, seed):
        self.world = world
        self.shop = Shop(shop.connect(world.kafka["postgres"], DATABASE), seed)
        self.glue = Project(world, "glue", ("shop_bronze", "shop_silver", "shop_gold"))
        world.capture("shop")

    def compare(self, engines=("duckdb",)):
        """At a quiet point: every layer equals what PostgreSQL holds."""
        self.world.quiet()
        self.glue.catch_up()
        is_equal = report("silver and gold", compare(self.world, self.glue, "glue", engines))
        if not is_equal:
            sys.exit("error: the lake is not what PostgreSQL says")

    def compare_bronze(self, engines=("duckdb",)):
        if not report("bronze", compare_bronze(self.world, self.glue, "glue", engines, "shop"), "records"):
            sys.exit("error: bronze is not what the topics hold")


def life(chain):
    """Inserts, updates, deletes, changed keys, large values, a truncation, while icestream runs."""
    running = chain.glue.begin("run")
    chain.shop.live(LOAD)
    chain.shop.do("TRUNCATE order_items")
    chain.shop.live(LOAD)
    chain.glue.finish(running)
    chain.compare(chain.world.engines())
    chain.compare_bronze(chain.world.engines())


ALL = {scenario.__name__: scenario for scenario in (life,)}
