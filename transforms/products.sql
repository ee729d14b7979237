/* icestream
table: products
from: products
keys: [id]
on_delete: remove
*/
SELECT
    id,
    trim(name) AS name,
    description,
    price,
    stock_quantity,
    stock_quantity > 0 AS is_in_stock,
    created_at,
    updated_at
FROM changes
