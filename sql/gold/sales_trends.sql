/* icestream
refresh: full
*/
-- Sales from day to day: beside the day before, over the last seven, and so far. A day on which nothing was sold is not
-- there. It reads another gold model, which is refreshed first.
SELECT
    order_date,
    revenue,
    lag(revenue) OVER (ORDER BY order_date) AS previous_revenue,
    CAST(revenue - lag(revenue) OVER (ORDER BY order_date) AS decimal(18, 2)) AS revenue_change,
    CAST(
        sum(revenue) OVER (ORDER BY order_date ROWS BETWEEN 6 PRECEDING AND CURRENT ROW)
        / count(*) OVER (ORDER BY order_date ROWS BETWEEN 6 PRECEDING AND CURRENT ROW) AS decimal(18, 2)
    ) AS average_of_seven,
    CAST(sum(revenue) OVER (ORDER BY order_date) AS decimal(18, 2)) AS revenue_so_far,
    CAST(rank() OVER (ORDER BY revenue DESC) AS bigint) AS revenue_rank
FROM shop_gold.revenue_per_day
