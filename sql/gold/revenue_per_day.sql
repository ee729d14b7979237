/* icestream
refresh: incremental
group_by: [order_date]
*/
-- Sales by the day they were placed, in UTC.
SELECT
    CAST(created_at AS DATE) AS order_date,
    count(*) AS orders,
    count(DISTINCT customer_id) AS customers,
    CAST(sum(total_amount) AS decimal(18, 2)) AS revenue,
    CAST(sum(total_amount) / count(*) AS decimal(18, 2)) AS average_order_value
FROM shop_silver.orders
WHERE is_sale
GROUP BY CAST(created_at AS DATE)
