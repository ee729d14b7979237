/* icestream
table: orders
from: orders
keys: [id]
on_delete: remove
*/
-- Three applications write the status, each with a spelling of its own. An order counts as a sale once it is paid.
SELECT
    id,
    customer_id,
    total_amount,
    lower(trim(status)) AS status,
    lower(trim(status)) IN ('paid', 'shipped', 'delivered') AS is_sale,
    created_at,
    updated_at
FROM changes
