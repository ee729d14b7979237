/* icestream
table: orders
from: orders
keys: [id]
on_delete: remove
expect:
  # A credit note that is booked with the wrong sign. The order is kept apart until the shop mends it.
  - { name: total_not_negative, that: "total_amount >= 0", else: quarantine }
  # What the sales figures know. A new status is nobody's mistake, but somebody has to decide what it counts as.
  - { accepted_values: { status: [pending, paid, shipped, delivered, cancelled] }, else: warn }
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
