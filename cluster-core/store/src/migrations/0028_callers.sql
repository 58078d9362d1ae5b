-- Caller that submitted an execution, as the audit log names it.

ALTER TABLE executions ADD COLUMN caller TEXT NOT NULL DEFAULT '';
