-- Hooks that hear of an execution's end, as a JSON list of names, and the deliveries that are not made yet.

ALTER TABLE executions ADD COLUMN notify TEXT NOT NULL DEFAULT '[]';
CREATE TABLE hook_deliveries (
    execution_id TEXT NOT NULL,
    hook TEXT NOT NULL,
    tries BIGINT NOT NULL,
    due_at_ms BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (execution_id, hook)
);
CREATE INDEX hook_deliveries_by_due ON hook_deliveries (hook, due_at_ms);
