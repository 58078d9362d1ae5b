-- Registered agents. The count outlives what is deleted, so that NAME@3 never means two contents.

CREATE TABLE agents (
    name         TEXT PRIMARY KEY,
    last_version BIGINT NOT NULL
);

CREATE TABLE agent_versions (
    name          TEXT NOT NULL,
    version       BIGINT NOT NULL,
    digest        TEXT NOT NULL,
    manifest      TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    PRIMARY KEY (name, version)
);
