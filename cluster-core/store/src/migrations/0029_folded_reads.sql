-- Reads of one caller with one tool within a second are one entry: how many there were, and when the last began.

ALTER TABLE audit ADD COLUMN calls BIGINT NOT NULL DEFAULT 1;
ALTER TABLE audit ADD COLUMN last_at_ms BIGINT;
