/* icestream
table: order_items
from: order_items
keys: [id]
on_delete: remove
*/
SELECT
    id,
    order_id,
    product_id,
    quantity,
    price,
    CAST(quantity * price AS decimal(18, 2)) AS line_total,
    created_at
FROM changes
