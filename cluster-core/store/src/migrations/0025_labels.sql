-- Labels of an execution, as a JSON list.

ALTER TABLE executions ADD COLUMN labels TEXT NOT NULL DEFAULT '[]';
