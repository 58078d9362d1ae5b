-- Bearer tokens of programs, by the hash of their value; and who did what.

CREATE TABLE access_tokens (
    name          TEXT PRIMARY KEY,
    value_hash    BYTEA NOT NULL UNIQUE,
    scope         TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL,
    used_at_ms    BIGINT
);

CREATE TABLE audit (
    sequence    BIGINT PRIMARY KEY,
    at_ms       BIGINT NOT NULL,
    door        TEXT NOT NULL,
    who         TEXT NOT NULL,
    client      TEXT,
    action      TEXT NOT NULL,
    arguments   TEXT,
    result      TEXT NOT NULL,
    duration_ms BIGINT NOT NULL
);
CREATE INDEX audit_by_time ON audit (at_ms);
