/* icestream
refresh: full
*/
-- What lies in the warehouse. The shop takes what is ordered off the stock at once, so pieces that wait for being shipped
-- are still there and already promised.
SELECT
    p.id AS product_id,
    p.name AS name,
    CAST(p.stock_quantity AS bigint) AS available,
    coalesce(r.units, 0) AS reserved,
    p.stock_quantity + coalesce(r.units, 0) AS on_hand,
    CAST((p.stock_quantity + coalesce(r.units, 0)) * p.price AS decimal(18, 2)) AS value_on_hand,
    CASE WHEN p.stock_quantity <= 0 THEN 'out' WHEN p.stock_quantity < 20 THEN 'low' ELSE 'enough' END AS stock_level
FROM shop_silver.products AS p
LEFT JOIN (
    SELECT i.product_id, sum(i.quantity) AS units
    FROM shop_silver.order_items AS i
    JOIN shop_silver.orders AS o ON o.id = i.order_id
    WHERE o.status IN ('pending', 'paid')
    GROUP BY i.product_id
) AS r ON r.product_id = p.id
