-- What judges said, what their word is worth, and which outcomes of the oracle they scored. Hashes, no texts.

-- One row per (answer, judge): a scoring that was stopped goes on where it was.
CREATE TABLE learning.judge_scores (
    tenant text NOT NULL,
    judge text NOT NULL CHECK (judge ~ '^[0-9a-f]{16}$'),  -- of model file and prompt
    item text NOT NULL CHECK (item ~ '^[0-9a-f]{64}$'),    -- sha256 of question, answer and passages
    -- of "1" to "5" among all next tokens; NULL: it could not be asked
    probabilities double precision[] CHECK (cardinality(probabilities) = 5 AND 0 <= ALL (probabilities)
                                            AND 1.001 >= ALL (probabilities)),
    reason text NOT NULL DEFAULT '',                       -- why there is no score
    judged_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, judge, item),
    CHECK (probabilities IS NOT NULL OR reason <> '')
);

-- A judge held against gold: the newest of a judge decides whether it may label.
CREATE TABLE learning.judge_calibrations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant text NOT NULL,
    judge text NOT NULL CHECK (judge ~ '^[0-9a-f]{16}$'),
    tier text NOT NULL,
    model_sha256 text NOT NULL CHECK (model_sha256 ~ '^[0-9a-f]{64}$'),
    template_hash text NOT NULL,
    data_digest text NOT NULL CHECK (data_digest ~ '^[0-9a-f]{64}$'),  -- of items and gold
    n int NOT NULL CHECK (n > 0),
    scores double precision[] NOT NULL,                    -- the curve's knots, 1 to 5 ...
    qualities double precision[] NOT NULL CHECK (0 <= ALL (qualities) AND 1 >= ALL (qualities)),  -- ... to 0 to 1
    agreement jsonb NOT NULL,                              -- [figures of a data set, ...]
    refusals text[] NOT NULL,                              -- why it may not label; empty: accepted
    calibrated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, id),
    CHECK (cardinality(scores) = cardinality(qualities) AND cardinality(scores) > 0)
);
CREATE INDEX judge_calibrations_judge ON learning.judge_calibrations (tenant, judge, id);

-- NULL: quality is gold's; else a judge's, calibrated so.
ALTER TABLE learning.oracle_runs
    ADD COLUMN judge_calibration bigint,
    ADD FOREIGN KEY (tenant, judge_calibration) REFERENCES learning.judge_calibrations (tenant, id);
CREATE INDEX oracle_runs_judged ON learning.oracle_runs (judge_calibration) WHERE judge_calibration IS NOT NULL;

SELECT memory.keep_tenants_apart('learning.judge_scores');
SELECT memory.keep_tenants_apart('learning.judge_calibrations');
