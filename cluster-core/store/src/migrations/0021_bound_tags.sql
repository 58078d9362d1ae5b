-- Tags that a token admits a node with, as a JSON list; NULL where the node may claim any.

ALTER TABLE enrolment_tokens ADD COLUMN tags TEXT;
ALTER TABLE nodes ADD COLUMN bound_tags TEXT;
