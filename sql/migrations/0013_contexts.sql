-- What a run of the oracle was shown, in its order: a wider context that was right where a narrower one was not tells
-- which of its nodes were needed.

ALTER TABLE learning.oracle_runs ADD COLUMN used bigint[] NOT NULL DEFAULT '{}';
