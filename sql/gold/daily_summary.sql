/* icestream
refresh: incremental
group_by: [day]
*/
-- What happened on a day, in UTC: orders by what has become of them until now, and customers who signed up.
SELECT
    day,
    sum(orders) AS orders,
    sum(sales) AS sales,
    sum(cancelled) AS cancelled,
    CAST(CAST(sum(cancelled) * 100 AS decimal(18, 2)) / nullif(sum(orders), 0) AS decimal(18, 2)) AS cancelled_percent,
    CAST(coalesce(sum(revenue), CAST(0 AS decimal(18, 2))) AS decimal(18, 2)) AS revenue,
    sum(new_customers) AS new_customers
FROM (
    SELECT
        CAST(created_at AS DATE) AS day,
        1 AS orders,
        CASE WHEN is_sale THEN 1 ELSE 0 END AS sales,
        CASE WHEN status = 'cancelled' THEN 1 ELSE 0 END AS cancelled,
        CASE WHEN is_sale THEN total_amount END AS revenue,
        0 AS new_customers
    FROM shop_silver.orders
    UNION ALL
    SELECT
        CAST(created_at AS DATE) AS day,
        0 AS orders,
        0 AS sales,
        0 AS cancelled,
        CAST(NULL AS decimal(10, 2)) AS revenue,
        1 AS new_customers
    FROM shop_silver.customers
) AS happened
GROUP BY day
