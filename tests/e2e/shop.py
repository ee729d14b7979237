"""The shop's life in PostgreSQL: what applications do to sql/source/shop.sql's tables, one transaction after the other."""

import random
import string
from pathlib import Path

import psycopg

SCHEMA = Path(__file__).resolve().parents[2] / "sql/source/shop.sql"
TABLES = ("customers", "products", "orders", "order_items")
STATUSES = ["PENDING", "paid", "Shipped ", " delivered", "cancelled", "paid"]
COUNTRIES = ["SE", "gb", "FR", "de", "PT"]
# A quote, a backslash, a line feed and letters of more than one byte have to arrive as they are.
WORDS = ["oak", "Zoë", "blå", 'the "best"', "C:\\temp", "two\nlines", "naïve", "日本", "O'Neil", "  wide  ", "🙂"]
# Longer than what PostgreSQL keeps in a row's own page.
LARGE = (2_500, 20_000)


def connect(place, database):
    return psycopg.connect(
        host=place["host"], port=place["port"], user=place["user"], dbname=database, autocommit=True
    )


def create(place, database):
    """A new database with the schema and its seed."""
    with connect(place, place["database"]) as server:
        server.execute(f"CREATE DATABASE {database}")
    with connect(place, database) as db:
        db.execute(SCHEMA.read_text())


class Shop:
    def __init__(self, db, seed):
        self.db = db
        self.random = random.Random(seed)
        self.changes = 0
        self.look()

    def use(self, db):
        """Goes on with another connection, over what is there now."""
        self.db = db
        self.look()

    def look(self):
        """Takes up what is there."""
        self.customers, self.products, self.orders = (
            [row[0] for row in self.db.execute(f"SELECT id FROM {table} ORDER BY id")]
            for table in ("customers", "products", "orders")
        )

    def live(self, transactions):
        for _ in range(transactions):
            does = self.random.choices(list(WEIGHTS), WEIGHTS.values())[0]
            with self.db.transaction(force_rollback=does is roll_back):
                does(self)

    def do(self, statement, *values):
        cursor = self.db.execute(statement, values)
        self.changes += max(cursor.rowcount, 0)
        return cursor.fetchall() if cursor.description else []

    def one_of(self, ids):
        return self.random.choice(ids)

    def words(self, count=3):
        return " ".join(self.random.choices(WORDS, k=count))

    def large(self):
        """Text that does not compress, so that it is kept out of line whatever the column's storage."""
        return "".join(self.random.choices(string.printable + "é漢", k=self.random.randint(*LARGE))).replace("\0", "")

    def note(self):
        return self.random.choice([None, self.words(), self.large(), ""])

    def sign(self):
        """Now and then a total is booked with the wrong one, which the sample project keeps apart."""
        return "-" if self.random.random() < 0.05 else ""

    def amount(self, most):
        return f"{self.random.randint(0, most * 100) / 100:.2f}"


def sign_up(shop):
    values = [shop.words(2), f" {shop.words(1)}@Example.COM", shop.one_of(COUNTRIES)]
    values += [shop.random.choice([None, "business", "education"]), shop.random.choice([None, "1985-12-10", "0099-03-01"])]
    (row,) = shop.do(
        "INSERT INTO customers (name, email, country, segment, birth_date, notes, is_active, created_at, updated_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, now(), now()) RETURNING id",
        *values, shop.note(), shop.random.random() < 0.9,
    )
    shop.customers.append(row[0])


def order(shop):
    (row,) = shop.do(
        "INSERT INTO orders (customer_id, total_amount, status, created_at, updated_at) VALUES (%s, %s, %s,"
        " now() - %s * interval '1 hour', now()) RETURNING id",
        shop.one_of(shop.customers), shop.sign() + shop.amount(900), shop.one_of(STATUSES), shop.random.randint(0, 700),
    )
    for product in shop.random.sample(shop.products, shop.random.randint(1, 4)):
        quantity = shop.random.randint(1, 9)
        shop.do(
            "INSERT INTO order_items (order_id, product_id, quantity, price, created_at) VALUES (%s, %s, %s, %s, now())",
            row[0], product, quantity, shop.amount(80),
        )
        shop.do("UPDATE products SET stock_quantity = stock_quantity - %s, updated_at = now() WHERE id = %s", quantity, product)
    shop.orders.append(row[0])


def advance(shop):
    shop.do("UPDATE orders SET status = %s, updated_at = now() WHERE id = %s", shop.one_of(STATUSES), shop.one_of(shop.orders))


def mend(shop):
    shop.do("UPDATE orders SET total_amount = -total_amount WHERE total_amount < 0 AND id %% 2 = 0")


def edit_customer(shop):
    """Does not touch the notes: where they are large, Debezium sends a placeholder."""
    shop.do(
        "UPDATE customers SET email = %s, is_active = NOT is_active, updated_at = now() WHERE id = %s",
        f"{shop.words(1)}@example.org", shop.one_of(shop.customers),
    )


def write_note(shop):
    shop.do("UPDATE customers SET notes = %s, updated_at = now() WHERE id = %s", shop.note(), shop.one_of(shop.customers))


def reprice(shop):
    shop.do("UPDATE products SET price = %s WHERE id = %s", shop.amount(300), shop.one_of(shop.products))


def describe(shop):
    shop.do("UPDATE products SET description = %s WHERE id = %s", shop.note(), shop.one_of(shop.products))


def list_product(shop):
    (row,) = shop.do(
        "INSERT INTO products (name, description, price, stock_quantity, created_at, updated_at)"
        " VALUES (%s, %s, %s, %s, now(), now()) RETURNING id",
        shop.words(), shop.note(), shop.amount(300), shop.random.randint(0, 500),
    )
    shop.products.append(row[0])


def merge_accounts(shop):
    """A changed primary key, which the customer's orders follow. The notes are written with it: large values that are not
    would be sent neither for the old key nor for the new one (see Limits in the README)."""
    old = shop.one_of(shop.customers)
    (row,) = shop.do(
        "UPDATE customers SET id = nextval('customers_id_seq'), notes = notes || '' WHERE id = %s RETURNING id", old
    )
    shop.customers[shop.customers.index(old)] = row[0]


def renumber_item(shop):
    shop.do("UPDATE order_items SET id = nextval('order_items_id_seq') WHERE order_id = %s", shop.one_of(shop.orders))


def forget_order(shop):
    if len(shop.orders) > 20:
        gone = shop.orders.pop(shop.random.randrange(len(shop.orders)))
        shop.do("DELETE FROM order_items WHERE order_id = %s", gone)
        shop.do("DELETE FROM orders WHERE id = %s", gone)


def forget_customer(shop):
    """One who never ordered."""
    gone = shop.do(
        "DELETE FROM customers WHERE id = (SELECT id FROM customers AS c WHERE NOT EXISTS"
        " (SELECT FROM orders WHERE customer_id = c.id) AND id > 3 ORDER BY id LIMIT 1) RETURNING id"
    )
    for (customer,) in gone:
        shop.customers.remove(customer)


def come_and_go(shop):
    """A row that lives within one transaction."""
    (row,) = shop.do(
        "INSERT INTO orders (customer_id, total_amount, status, created_at, updated_at) VALUES (%s, 1, 'x', now(), now())"
        " RETURNING id",
        shop.one_of(shop.customers),
    )
    shop.do("UPDATE orders SET status = 'y' WHERE id = %s", row[0])
    shop.do("DELETE FROM orders WHERE id = %s", row[0])


def roll_back(shop):
    """Nothing of it may be seen."""
    shop.do("UPDATE products SET price = 0")
    shop.do("DELETE FROM order_items WHERE order_id = %s", shop.one_of(shop.orders))


def sell_out(shop):
    """Many rows at once."""
    shop.do("UPDATE products SET stock_quantity = greatest(stock_quantity - 1, 0), updated_at = now()")


WEIGHTS = {
    sign_up: 12,
    order: 25,
    advance: 25,
    mend: 3,
    edit_customer: 12,
    write_note: 6,
    reprice: 6,
    describe: 4,
    list_product: 4,
    merge_accounts: 4,
    renumber_item: 3,
    forget_order: 8,
    forget_customer: 3,
    come_and_go: 2,
    roll_back: 2,
    sell_out: 1,
}
