ALTER TABLE enrolment_tokens ADD COLUMN role TEXT NOT NULL DEFAULT 'worker';
ALTER TABLE enrolment_tokens ADD COLUMN revoked_at_ms BIGINT;
