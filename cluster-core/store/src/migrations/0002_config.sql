-- What nodes should run, apart from whether they are alive.

CREATE TABLE config_layers (
    scope         TEXT PRIMARY KEY,
    json          TEXT NOT NULL,
    version       TEXT NOT NULL,
    updated_at_ms BIGINT NOT NULL
);

CREATE TABLE node_assignments (
    node_id                 TEXT PRIMARY KEY,
    tenant                  TEXT,
    config_version          TEXT NOT NULL,
    config_assigned_at_ms   BIGINT NOT NULL,
    runtimes                TEXT NOT NULL,
    runtimes_assigned_at_ms BIGINT NOT NULL
);
