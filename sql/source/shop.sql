-- The shop's source database for PostgreSQL: the same tables the demo makes its events up for.
--
--     createdb shop && psql -v ON_ERROR_STOP=1 -d shop -f sql/source/shop.sql
--
-- The server needs wal_level=logical. Debezium: topic.prefix=shop, plugin.name=pgoutput, publication.name=shop.

BEGIN;

CREATE TABLE customers (
    id          serial PRIMARY KEY,
    name        varchar(255) NOT NULL,
    email       varchar(255) NOT NULL,
    country     varchar(2)   NOT NULL,
    segment     varchar(50),
    birth_date  date,
    notes       text,
    is_active   boolean      NOT NULL,
    created_at  timestamptz  NOT NULL,
    updated_at  timestamptz  NOT NULL
);

-- Notes of more than about 2,000 bytes are kept out of line and uncompressed. With the default replica identity an
-- update that does not touch them is sent with a placeholder in their place.
ALTER TABLE customers ALTER COLUMN notes SET STORAGE EXTERNAL;

CREATE TABLE products (
    id              serial PRIMARY KEY,
    name            varchar(255)   NOT NULL,
    description     text,
    price           decimal(10, 2) NOT NULL,
    stock_quantity  int            NOT NULL,
    created_at      timestamp      NOT NULL,
    updated_at      timestamp      NOT NULL
);

CREATE TABLE orders (
    id            serial PRIMARY KEY,
    -- Merging two accounts changes a customer's id; the orders follow.
    customer_id   int            NOT NULL REFERENCES customers (id) ON UPDATE CASCADE,
    total_amount  decimal(10, 2) NOT NULL,
    status        varchar(50)    NOT NULL,
    created_at    timestamp      NOT NULL,
    updated_at    timestamp      NOT NULL
);

-- Updates and deletes of orders carry the whole row before; those of the other tables at most its key.
ALTER TABLE orders REPLICA IDENTITY FULL;

CREATE TABLE order_items (
    id          serial PRIMARY KEY,
    order_id    int            NOT NULL REFERENCES orders (id),
    product_id  int            NOT NULL REFERENCES products (id),
    quantity    int            NOT NULL,
    price       decimal(10, 2) NOT NULL,
    created_at  timestamp      NOT NULL
);

CREATE INDEX orders_customer_id ON orders (customer_id);
CREATE INDEX order_items_order_id ON order_items (order_id);
CREATE INDEX order_items_product_id ON order_items (product_id);

CREATE PUBLICATION shop FOR TABLE customers, products, orders, order_items;

-- Fixed times, so that the seed is the same everywhere.
INSERT INTO customers (name, email, country, segment, birth_date, notes, is_active, created_at, updated_at) VALUES
    ('Ada Andersson',      'ada.andersson@example.com',    'SE', 'business',  '1985-12-10', NULL,
        true,  '2025-01-02 08:00:00+00', '2025-01-02 08:00:00+00'),
    (' Zoë Brown',         'Zoe.Brown@EXAMPLE.COM ',       'gb', NULL,        NULL,         repeat('asked for a quote; ', 130),
        true,  '2025-01-03 09:30:00+00', '2025-01-03 09:30:00+00'),
    ('Robert "Bob" Dubois', 'bob.dubois@example.org',      'FR', 'education', '1999-02-28', 'prefers delivery in the morning',
        false, '2025-01-04 10:45:00+00', '2025-01-04 10:45:00+00');

INSERT INTO products (name, description, price, stock_quantity, created_at, updated_at) VALUES
    ('Oak Desk Lamp',       NULL,                                    49.90,  120, '2025-01-01 00:00:00', '2025-01-01 00:00:00'),
    ('Black 27" Monitor',   '2560 × 1440',                           299.00, 40,  '2025-01-01 00:00:00', '2025-01-01 00:00:00'),
    ('Steel Bottle',        E'Keeps cold for a day\nand warm for half of one', 18.50, 300, '2025-01-01 00:00:00', '2025-01-01 00:00:00'),
    ('Blue Backpack',       '20 litres, with a sleeve for a laptop', 79.95,  75,  '2025-01-01 00:00:00', '2025-01-01 00:00:00'),
    ('Recycled Notebook',   'A5, 192 pages',                         4.20,   500, '2025-01-01 00:00:00', '2025-01-01 00:00:00');

INSERT INTO orders (customer_id, total_amount, status, created_at, updated_at) VALUES
    (1, 336.00, 'paid',     '2025-01-05 12:00:00', '2025-01-05 12:05:00'),
    (2, 79.95,  'PENDING',  '2025-01-05 18:30:00', '2025-01-05 18:30:00'),
    (1, 42.00,  'Shipped ', '2025-01-06 07:15:00', '2025-01-07 09:00:00');

INSERT INTO order_items (order_id, product_id, quantity, price, created_at) VALUES
    (1, 2, 1,  299.00, '2025-01-05 12:00:00'),
    (1, 3, 2,  18.50,  '2025-01-05 12:00:00'),
    (2, 4, 1,  79.95,  '2025-01-05 18:30:00'),
    (3, 5, 10, 4.20,   '2025-01-06 07:15:00');

COMMIT;
