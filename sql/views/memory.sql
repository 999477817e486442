-- Memory in figures, beside the views of 0007: what is read most, how the graph is made up, what was merged.

-- How often each node was read. Narrow on purpose: take the first of these, then look up their texts in nodes.
CREATE VIEW analytics.reads WITH (security_barrier) AS
SELECT u.node, u.uses, u.last_used_at
FROM memory.node_usage AS u WHERE u.tenant = (SELECT analytics.my_tenant()) AND u.uses > 0;

-- Edges by relation.
CREATE VIEW analytics.relations WITH (security_barrier) AS
SELECT e.rel, count(*) AS edges, avg(e.weight)::real AS mean_weight, sum(e.uses)::bigint AS uses,
       max(e.last_used_at) AS last_used_at, count(DISTINCT e.created_by) AS writers
FROM memory.edges AS e WHERE e.tenant = (SELECT analytics.my_tenant()) GROUP BY e.rel;

-- What was taken in by another node: a row a day, who did it and why. A day is UTC's.
CREATE VIEW analytics.merges WITH (security_barrier) AS
SELECT (s.at AT TIME ZONE 'UTC')::date AS day, s.by, s.why, count(*) AS nodes, count(DISTINCT s.heir) AS into_nodes,
       count(*) FILTER (WHERE s.undone_at IS NOT NULL) AS undone
FROM memory.supersessions AS s WHERE s.tenant = (SELECT analytics.my_tenant()) GROUP BY 1, 2, 3;

SELECT memory.hand_views_over();
