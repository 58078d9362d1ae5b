-- Resources that an execution used, as JSON.

ALTER TABLE executions ADD COLUMN usage TEXT;
