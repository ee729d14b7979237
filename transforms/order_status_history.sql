/* icestream
table: order_status_history
from: orders
keys: [id]
scd: 2
track_history: [status]
*/
-- What an order's status was, from when to when.
SELECT
    id,
    customer_id,
    lower(trim(status)) AS status
FROM changes
