/* icestream
refresh: incremental
group_by: [customer_id]
expect:
  - { unique: [customer_id], else: fail }
*/
-- What each customer has bought so far, and what kind of customer that makes them.
SELECT
    c.id AS customer_id,
    c.name AS name,
    c.country AS country,
    coalesce(s.orders, 0) AS orders,
    CAST(coalesce(s.spent, CAST(0 AS decimal(18, 2))) AS decimal(18, 2)) AS lifetime_value,
    s.first_order_date AS first_order_date,
    s.last_order_date AS last_order_date,
    CASE
        WHEN NOT c.is_active THEN 'inactive'
        WHEN s.spent >= 5000 OR s.orders >= 5 THEN 'vip'
        WHEN s.orders >= 2 THEN 'regular'
        WHEN s.orders = 1 THEN 'new'
        ELSE 'prospect'
    END AS segment
FROM shop_silver.customers AS c
LEFT JOIN (
    SELECT
        customer_id,
        count(*) AS orders,
        sum(total_amount) AS spent,
        min(CAST(created_at AS DATE)) AS first_order_date,
        max(CAST(created_at AS DATE)) AS last_order_date
    FROM shop_silver.orders
    WHERE is_sale
    GROUP BY customer_id
) AS s ON s.customer_id = c.id
