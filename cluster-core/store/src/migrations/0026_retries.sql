-- Retry policy of an execution as JSON, the retries that it has used, and the time from which it waits for a node.

ALTER TABLE executions ADD COLUMN retry TEXT;
ALTER TABLE executions ADD COLUMN retries BIGINT NOT NULL DEFAULT 0;
ALTER TABLE executions ADD COLUMN queued_at_ms BIGINT NOT NULL DEFAULT 0;
UPDATE executions SET queued_at_ms = created_at_ms;
