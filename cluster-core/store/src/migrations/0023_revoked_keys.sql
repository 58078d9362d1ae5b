-- Keys of removed nodes. No node is admitted with one of them again.

CREATE TABLE revoked_keys (
    public_key BYTEA NOT NULL PRIMARY KEY,
    node_id TEXT NOT NULL,
    revoked_at_ms BIGINT NOT NULL
);
CREATE INDEX revoked_keys_by_node ON revoked_keys (node_id, revoked_at_ms);
