-- Executions that an execution runs after, as JSON. NULL once it may be placed.

ALTER TABLE executions ADD COLUMN dependencies TEXT;
