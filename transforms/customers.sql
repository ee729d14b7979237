/* icestream
table: customers
from: customers
keys: [id]
on_delete: remove
*/
-- The sign-up form neither trims nor folds what people type.
SELECT
    id,
    trim(name) AS name,
    lower(trim(email)) AS email,
    upper(country) AS country,
    coalesce(segment, 'unknown') AS segment,
    birth_date,
    notes,
    is_active,
    segment IS NOT NULL AND birth_date IS NOT NULL AS is_complete,
    created_at,
    updated_at
FROM changes
