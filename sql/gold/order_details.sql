/* icestream
refresh: incremental
group_by: [customer_id]
*/
-- Each order with what is known of its customer now. This is a join in gold and no lookup in silver, so that a customer who
-- moves is seen in their past orders, too.
SELECT
    o.id AS order_id,
    CAST(o.created_at AS DATE) AS order_date,
    o.status AS status,
    o.is_sale AS is_sale,
    CAST(o.total_amount AS decimal(18, 2)) AS total_amount,
    o.customer_id AS customer_id,
    c.name AS customer_name,
    c.country AS country,
    c.segment AS segment,
    c.is_active AS is_active
FROM shop_silver.orders AS o
LEFT JOIN shop_silver.customers AS c ON c.id = o.customer_id
