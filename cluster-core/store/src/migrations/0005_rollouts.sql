CREATE TABLE rollouts (
    rollout_id      TEXT PRIMARY KEY,
    state           TEXT NOT NULL,
    record          TEXT NOT NULL,
    created_at_ms   BIGINT NOT NULL,
    idempotency_key TEXT UNIQUE
);
CREATE INDEX rollouts_by_state ON rollouts (state);
