-- What the oracle knows, what a decision lost against it, and what each night came to.

-- A row a question, tier and context bin that the oracle ran.
CREATE VIEW analytics.oracle WITH (security_barrier) AS
SELECT r.id, r.query, q.question, q.domain, q.split, r.cycle_id, r.ladder, r.tier, r.context_bin, r.answer, r.quality,
       r.judge_calibration IS NOT NULL AS judged, r.latency_s, r.prompt_tokens, r.completion_tokens, r.cost, r.ran_at
FROM learning.oracle_runs AS r
JOIN learning.oracle_queries AS q ON q.key = r.query AND q.tenant = r.tenant
WHERE r.tenant = (SELECT analytics.my_tenant()) AND q.tenant = (SELECT analytics.my_tenant());

-- A row a question and ladder: its newest label, and the largest utility that any choice had.
CREATE VIEW analytics.labels WITH (security_barrier) AS
SELECT DISTINCT ON (l.query, l.ladder)
       l.query, l.ladder, l.tier, l.context_bin, l.latency_weight, l.cost_weight, l.labelled_at, l.utilities,
       (SELECT max(bin.value::text::float8) FROM jsonb_each(l.utilities) AS tier, jsonb_each(tier.value) AS bin)
           AS best_utility
FROM learning.labels AS l WHERE l.tenant = (SELECT analytics.my_tenant())
ORDER BY l.query, l.ladder, l.labelled_at DESC;

-- A row a decision on a question that the oracle ran too: utility of what was chosen, as the oracle measured it, and
-- what the best choice would have had. Both are the oracle's measurements: luck of one answer is not in them.
CREATE VIEW analytics.regret WITH (security_barrier) AS
SELECT i.id AS decision, i.asked_at, (i.asked_at AT TIME ZONE 'UTC')::date AS day, i.domain, i.tier, i.context_bin,
       i.decided_by, i.router_version, l.tier AS label_tier, l.context_bin AS label_bin, c.utility, l.best_utility,
       l.best_utility - c.utility AS utility_regret
FROM serving.interactions AS i
JOIN learning.oracle_queries AS q
    ON q.question = i.question AND q.turn = i.turn AND q.history = i.history AND q.tenant = i.tenant
JOIN analytics.labels AS l ON l.query = q.key AND l.ladder = i.ladder
CROSS JOIN LATERAL (SELECT (l.utilities -> i.tier ->> i.context_bin::text)::float8 AS utility) AS c
WHERE i.tenant = (SELECT analytics.my_tenant()) AND q.tenant = (SELECT analytics.my_tenant())
  AND c.utility IS NOT NULL;

-- A row a night. Regret is of the router against the oracle on held-out questions, n_test of them.
CREATE VIEW analytics.nights WITH (security_barrier) AS
SELECT c.night, c.id AS cycle_id, c.started_at, c.finished_at, c.finished_at - c.started_at AS took,
       (s.day ->> 'questions')::int AS questions, (s.collect ->> 'runs')::int AS oracle_runs,
       (s.evaluate ->> 'n_train')::int AS n_train, (s.evaluate ->> 'n_test')::int AS n_test,
       (s.evaluate ->> 'regret_before')::float8 AS regret_before,
       (s.evaluate ->> 'regret_after')::float8 AS regret_after,
       (s.evaluate -> 'regret_after_interval' ->> 0)::float8 AS regret_low,
       (s.evaluate -> 'regret_after_interval' ->> 1)::float8 AS regret_high,
       (s.evaluate ->> 'accuracy_tier')::float8 AS accuracy_tier,
       s.propose ->> 'version' AS version, coalesce((s.promote ->> 'promoted')::boolean, false) AS promoted,
       s.promote ->> 'why' AS why_not, (s.maintain -> 'counts' ->> 'nodes')::bigint AS nodes,
       (s.maintain -> 'counts' ->> 'edges')::bigint AS edges
FROM learning.cycles AS c
LEFT JOIN LATERAL (
    SELECT (array_agg(t.result) FILTER (WHERE t.step = 'day'))[1] AS day,
           (array_agg(t.result) FILTER (WHERE t.step = 'collect'))[1] AS collect,
           (array_agg(t.result) FILTER (WHERE t.step = 'evaluate'))[1] AS evaluate,
           (array_agg(t.result) FILTER (WHERE t.step = 'propose'))[1] AS propose,
           (array_agg(t.result) FILTER (WHERE t.step = 'promote'))[1] AS promote,
           (array_agg(t.result) FILTER (WHERE t.step = 'maintain'))[1] AS maintain
    FROM learning.steps AS t WHERE t.cycle_id = c.id AND t.tenant = c.tenant
) AS s ON true
WHERE c.tenant = (SELECT analytics.my_tenant());

-- A row a step of a night.
CREATE VIEW analytics.steps WITH (security_barrier) AS
SELECT c.night, t.cycle_id, t.step, t.seconds, t.done_at, t.result
FROM learning.steps AS t JOIN learning.cycles AS c ON c.id = t.cycle_id AND c.tenant = t.tenant
WHERE t.tenant = (SELECT analytics.my_tenant()) AND c.tenant = (SELECT analytics.my_tenant());

-- A row a night and policy: the candidate (fastgrnn) beside the oracle, the champion and the baselines.
CREATE VIEW analytics.policies WITH (security_barrier) AS
SELECT c.night, t.cycle_id, (t.result ->> 'n_test')::int AS n, p.policy, p.utility, p.quality, p.latency_s, p.cost,
       p.regret, p.low, p.high, p.accuracy_tier, p.accuracy_pair
FROM learning.steps AS t JOIN learning.cycles AS c ON c.id = t.cycle_id AND c.tenant = t.tenant
CROSS JOIN LATERAL jsonb_to_recordset(t.result -> 'policies') AS p (
    policy text, utility float8, quality float8, latency_s float8, cost float8, regret float8, low float8,
    high float8, accuracy_tier float8, accuracy_pair float8)
WHERE t.step = 'evaluate' AND t.tenant = (SELECT analytics.my_tenant())
  AND c.tenant = (SELECT analytics.my_tenant());

-- A row a candidate and gate, as the night measured it.
CREATE VIEW analytics.gates WITH (security_barrier) AS
SELECT c.night, t.cycle_id, t.result ->> 'version' AS version, g.name, g.measured, g.direction, g.threshold, g.n,
       (g.interval ->> 0)::float8 AS low, (g.interval ->> 1)::float8 AS high, g.outcome, g.blocks, g.reason
FROM learning.steps AS t JOIN learning.cycles AS c ON c.id = t.cycle_id AND c.tenant = t.tenant
CROSS JOIN LATERAL jsonb_to_recordset(t.result -> 'gates') AS g (
    name text, measured float8, direction text, threshold float8, n int, interval jsonb, outcome text, blocks boolean,
    reason text)
WHERE t.step = 'propose' AND t.tenant = (SELECT analytics.my_tenant())
  AND c.tenant = (SELECT analytics.my_tenant());

-- Every change of champion, of the whole installation: who, when, why, from, to.
CREATE VIEW analytics.promotions WITH (security_barrier) AS
SELECT l.id, l.created_at AS at, l.action, l.version, l.previous, l.approved_by, l.reason, l.cycle_id, l.sha256, l.gates
FROM registry.ledger AS l WHERE analytics.my_tenant() IS NOT NULL;

SELECT memory.hand_views_over();
