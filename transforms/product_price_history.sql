/* icestream
table: product_price_history
from: products
keys: [id]
scd: 2
track_history: [price]
*/
-- What a product cost, from when to when.
SELECT
    id,
    price
FROM changes
