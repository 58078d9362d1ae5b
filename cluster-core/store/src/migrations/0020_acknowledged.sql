-- Acknowledged commands are not kept any more.

DELETE FROM commands WHERE acknowledged_ms IS NOT NULL;
