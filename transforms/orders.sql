/* icestream
table: orders
from: orders
keys: [id]
on_delete: remove
*/
-- Three applications write the status, each with a spelling of its own.
SELECT
    id,
    customer_id,
    total_amount,
    lower(trim(status)) AS status,
    created_at,
    updated_at
FROM changes
