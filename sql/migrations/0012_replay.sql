-- The reservoir may keep its domains apart: each has a count of its own. The stratum '' is a reservoir without strata.

ALTER TABLE learning.replay_counter
    ADD COLUMN stratum text NOT NULL DEFAULT '',
    DROP CONSTRAINT replay_counter_pkey,
    ADD PRIMARY KEY (tenant, stratum);
