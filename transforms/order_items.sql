/* icestream
table: order_items
from: order_items
keys: [id]
on_delete: remove
expect:
  # Finds items of orders that are in quarantine, and of orders that are not read yet.
  - { relationship: { order_id: shop_silver.orders.id }, else: warn }
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
