-- Amounts that a node may claim, as a JSON object; NULL where the node may claim any.

ALTER TABLE nodes ADD COLUMN bound_size TEXT;
