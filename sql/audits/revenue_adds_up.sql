/* icestream
table: shop_gold.revenue_per_day
severity: fail
*/
-- Two models count the same sales, each in a way of its own. Days on which they do not agree must not be there.
SELECT d.day, d.revenue, r.revenue AS revenue_of_orders
FROM shop_gold.daily_summary AS d
LEFT JOIN shop_gold.revenue_per_day AS r ON r.order_date = d.day
WHERE d.revenue IS DISTINCT FROM coalesce(r.revenue, CAST(0 AS decimal(18, 2)))
