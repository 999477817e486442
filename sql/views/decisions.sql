-- What was asked, who answered, how well, at what cost. A day is UTC's.

-- A row an answer.
CREATE VIEW analytics.decisions WITH (security_barrier) AS
SELECT i.id, i.uuid, i.request_id, i.asked_at, (i.asked_at AT TIME ZONE 'UTC')::date AS day, i.session_id, i.turn,
       i.question, i.answer, i.domain, i.tier, i.context_bin, i.temperature, i.top_p, i.decided_by, i.confidence,
       i.propensity, i.router_version, i.ladder, i.cycle_id, i.prompt_tokens, i.cached_tokens, i.completion_tokens,
       i.cost, i.total_ms, i.stage_ms, i.quality, i.quality_source, i.degraded,
       cardinality(i.retrieved) AS retrieved, cardinality(i.used) AS used
FROM serving.interactions AS i WHERE i.tenant = (SELECT analytics.my_tenant());

-- A row a day, domain and tier. `scored` answers have a quality (0 to 1); the means of quality are over them.
CREATE VIEW analytics.days WITH (security_barrier) AS
SELECT (i.asked_at AT TIME ZONE 'UTC')::date AS day, i.domain, i.tier, count(*) AS answers,
       count(i.quality) AS scored, avg(i.quality)::real AS quality, stddev_samp(i.quality)::real AS quality_sd,
       sum(i.cost)::float8 AS cost, avg(i.cost)::real AS cost_each, avg(i.total_ms)::real AS mean_ms,
       count(*) FILTER (WHERE i.total_ms > 1000) AS over_1_s,
       count(*) FILTER (WHERE i.decided_by = 'fallback') AS fallbacks,
       count(*) FILTER (WHERE i.decided_by = 'explore') AS explored,
       sum(i.completion_tokens)::bigint AS completion_tokens
FROM serving.interactions AS i WHERE i.tenant = (SELECT analytics.my_tenant())
GROUP BY 1, 2, 3;

-- A row a day and tier: exact percentiles, which sort the days that are asked for.
CREATE VIEW analytics.latency WITH (security_barrier) AS
SELECT (i.asked_at AT TIME ZONE 'UTC')::date AS day, i.tier, count(*) AS answers,
       percentile_cont(0.5) WITHIN GROUP (ORDER BY i.total_ms)::real AS p50_ms,
       percentile_cont(0.95) WITHIN GROUP (ORDER BY i.total_ms)::real AS p95_ms,
       max(i.total_ms) AS max_ms
FROM serving.interactions AS i WHERE i.tenant = (SELECT analytics.my_tenant())
GROUP BY 1, 2;

-- A row a router version: what answers got while it decided. '' is the time before the first promotion.
CREATE VIEW analytics.routers WITH (security_barrier) AS
SELECT i.router_version, min(i.asked_at) AS first_at, max(i.asked_at) AS last_at, count(*) AS answers,
       count(i.quality) AS scored, avg(i.quality)::real AS quality, avg(i.cost)::real AS cost_each,
       avg(i.total_ms)::real AS mean_ms, count(*) FILTER (WHERE i.decided_by = 'fallback') AS fallbacks
FROM serving.interactions AS i WHERE i.tenant = (SELECT analytics.my_tenant()) GROUP BY i.router_version;

-- What users said of an answer.
CREATE VIEW analytics.feedback WITH (security_barrier) AS
SELECT f.id, f.created_at, f.interaction AS decision, f.rating, f.correction, f.task_success, f.writer
FROM serving.feedback AS f WHERE f.tenant = (SELECT analytics.my_tenant());

-- What became of each answer after it was given; `outcome` is empty while it waits.
CREATE VIEW analytics.settled WITH (security_barrier) AS
SELECT o.id, o.interaction AS decision, o.kind, coalesce(o.outcome, '') AS outcome, o.node, o.attempts, o.last_error,
       o.created_at, o.done_at, o.done_at - o.created_at AS took
FROM serving.outbox AS o WHERE o.tenant = (SELECT analytics.my_tenant());

SELECT memory.hand_views_over();
