-- What an execution may cost and has cost, its result, and how much of it is kept.

ALTER TABLE executions ADD COLUMN max_attempts BIGINT NOT NULL DEFAULT 1;
ALTER TABLE executions ADD COLUMN lost_attempts BIGINT NOT NULL DEFAULT 0;
ALTER TABLE executions ADD COLUMN sequence_base BIGINT NOT NULL DEFAULT 0;
ALTER TABLE executions ADD COLUMN iteration BIGINT NOT NULL DEFAULT 0;
ALTER TABLE executions ADD COLUMN result TEXT;
ALTER TABLE executions ADD COLUMN agent TEXT;
ALTER TABLE executions ADD COLUMN events_bytes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE executions ADD COLUMN artifacts TEXT;
CREATE INDEX executions_by_end ON executions (ended_at_ms);
