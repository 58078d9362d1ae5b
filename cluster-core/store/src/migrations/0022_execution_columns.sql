-- What lists and drivers need of an execution, apart from its manifest and input, which only an order needs.
-- json_extract is SQLite's; the rest is shared with PostgreSQL.

ALTER TABLE executions ADD COLUMN image TEXT NOT NULL DEFAULT '';
ALTER TABLE executions ADD COLUMN workspace TEXT;
ALTER TABLE executions ADD COLUMN has_artifacts BIGINT NOT NULL DEFAULT 0;
ALTER TABLE executions ADD COLUMN order_bytes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE executions ADD COLUMN timeout_seconds BIGINT NOT NULL DEFAULT 0;
UPDATE executions SET
    image = json_extract(manifest, '$.image'),
    workspace = json_extract(manifest, '$.workspace'),
    has_artifacts = CASE WHEN json_array_length(manifest, '$.artifacts') > 0 THEN 1 ELSE 0 END,
    order_bytes = LENGTH(manifest) + LENGTH(input),
    timeout_seconds = COALESCE(json_extract(manifest, '$.timeout_seconds'), 0);
UPDATE executions SET input = '' WHERE state IN ('succeeded', 'failed', 'cancelled');
CREATE INDEX executions_by_creation ON executions (created_at_ms, execution_id);
