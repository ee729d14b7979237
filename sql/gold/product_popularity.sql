/* icestream
refresh: full
*/
-- How often each product was sold. Ties in units go to the older product, so that the rank is always the same.
SELECT
    p.id AS product_id,
    p.name AS name,
    coalesce(s.orders, 0) AS orders,
    coalesce(s.units, 0) AS units_sold,
    CAST(coalesce(s.revenue, CAST(0 AS decimal(18, 2))) AS decimal(18, 2)) AS revenue,
    CAST(row_number() OVER (ORDER BY coalesce(s.units, 0) DESC, p.id) AS bigint) AS popularity_rank
FROM shop_silver.products AS p
LEFT JOIN (
    SELECT
        i.product_id,
        count(DISTINCT i.order_id) AS orders,
        sum(i.quantity) AS units,
        sum(i.line_total) AS revenue
    FROM shop_silver.order_items AS i
    JOIN shop_silver.orders AS o ON o.id = i.order_id
    WHERE o.is_sale
    GROUP BY i.product_id
) AS s ON s.product_id = p.id
