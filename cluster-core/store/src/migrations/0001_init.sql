-- Types are those that SQLite and PostgreSQL share: TEXT, BIGINT, BYTEA. Times are Unix
-- milliseconds, structured values are JSON text, truth values are 0 and 1.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE nodes (
    node_id           TEXT PRIMARY KEY,
    role              TEXT NOT NULL,
    public_key        BYTEA,
    desired           TEXT NOT NULL,
    observed          TEXT NOT NULL,
    capabilities      TEXT NOT NULL,
    address           TEXT NOT NULL,
    link              TEXT NOT NULL,
    site              TEXT,
    version           TEXT NOT NULL,
    sealed            BIGINT NOT NULL,
    registered_at_ms  BIGINT,
    last_heartbeat_ms BIGINT,
    drain_deadline_ms BIGINT,
    drain_on_deadline TEXT NOT NULL
);

CREATE TABLE enrolment_tokens (
    token_id      TEXT PRIMARY KEY,
    secret_hash   BYTEA NOT NULL,
    node_id       TEXT,
    created_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL,
    spent_at_ms   BIGINT,
    spent_by      TEXT
);

CREATE TABLE commands (
    command_id      TEXT PRIMARY KEY,
    node_id         TEXT NOT NULL,
    body            TEXT NOT NULL,
    created_at_ms   BIGINT NOT NULL,
    acknowledged_ms BIGINT
);
CREATE INDEX commands_open ON commands (node_id, acknowledged_ms);

CREATE TABLE executions (
    execution_id    TEXT PRIMARY KEY,
    state           TEXT NOT NULL,
    manifest        TEXT NOT NULL,
    demand          TEXT NOT NULL,
    input           TEXT NOT NULL,
    node_id         TEXT,
    attempt         BIGINT NOT NULL,
    exit_code       BIGINT,
    failure         TEXT,
    cancel_reason   TEXT,
    created_at_ms   BIGINT NOT NULL,
    started_at_ms   BIGINT,
    ended_at_ms     BIGINT,
    last_sequence   BIGINT NOT NULL,
    idempotency_key TEXT UNIQUE,
    request_digest  TEXT NOT NULL
);
CREATE INDEX executions_by_state ON executions (state);

CREATE TABLE execution_events (
    execution_id TEXT NOT NULL,
    sequence     BIGINT NOT NULL,
    event        BYTEA NOT NULL,
    PRIMARY KEY (execution_id, sequence)
);

CREATE TABLE deployments (
    deployment_id   TEXT PRIMARY KEY,
    host            TEXT NOT NULL,
    state           TEXT NOT NULL,
    record          TEXT NOT NULL,
    created_at_ms   BIGINT NOT NULL,
    idempotency_key TEXT UNIQUE
);
CREATE INDEX deployments_by_state ON deployments (state);

CREATE TABLE approved_hosts (
    host   TEXT NOT NULL,
    port   BIGINT NOT NULL,
    record TEXT NOT NULL,
    PRIMARY KEY (host, port)
);
