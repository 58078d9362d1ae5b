-- The operator's secrets, sealed: the key is not in here.

CREATE TABLE secrets (
    name          TEXT PRIMARY KEY,
    sealed        BYTEA NOT NULL,
    created_at_ms BIGINT NOT NULL,
    changed_at_ms BIGINT NOT NULL,
    used_at_ms    BIGINT,
    used_for      TEXT
);
