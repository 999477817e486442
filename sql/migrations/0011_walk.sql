-- The walk asks about few nodes what it asked about all. An edge's ends are of its tenant and are there (foreign keys on
-- (tenant, id)), so past the seeds only archived and untrusted nodes can be out of sight: an index of those few, mostly
-- empty, answers instead of 192 rows of a kilobyte. And the edges among what was found are told apart once, at the end.

CREATE INDEX nodes_hidden ON memory.nodes (id) WHERE archived_at IS NOT NULL OR trust = 'untrusted';

CREATE OR REPLACE FUNCTION memory.walk(
    seeds bigint[], hops int, fan int, frontier int, wanted int, only_relations smallint[], reader text,
    OUT ids bigint[], OUT at_hops smallint[], OUT scores float8[],
    OUT srcs bigint[], OUT dsts bigint[], OUT codes smallint[], OUT weights real[]
) LANGUAGE plpgsql STABLE SET plan_cache_mode = force_generic_plan AS $$
DECLARE
    hop int := 0;
    room int := wanted;           -- how many nodes may still be handed back
    met record;                   -- the edges that led to this hop: near end, its score, far end, code, weight
    best bigint[];                -- of this hop, in order, those that may be seen
    best_scores float8[];
    seen bigint[] := '{}';        -- reached by an earlier hop
    nears bigint[] := '{}';       -- the edges met so far, as `met` has them; their codes and weights are in the results
    fars bigint[] := '{}';
BEGIN
    ids := '{}'; at_hops := '{}'; scores := '{}'; codes := '{}'; weights := '{}';
    SELECT array_fill(1::float8, ARRAY[cardinality(seeds)]) AS scores, seeds AS far,
           array_fill(1::real, ARRAY[cardinality(seeds)]) AS weights INTO met;
    LOOP
        SELECT coalesce(array_agg(b.node), '{}'), coalesce(array_agg(b.score), '{}') INTO best, best_scores FROM (
            SELECT r.node, r.score FROM (
                SELECT m.node, max(m.score * m.weight) AS score
                FROM (SELECT unnest(met.far), unnest(met.scores), unnest(met.weights)) AS m (node, score, weight)
                WHERE (m.node IN (SELECT unnest(seen))) IS NOT TRUE
                GROUP BY m.node ORDER BY 2 DESC, 1
            ) AS r
            WHERE CASE
                WHEN hop = 0 THEN (
                    SELECT n.archived_at IS NULL AND (n.trust <> 'untrusted' OR EXISTS (
                        SELECT FROM memory.node_texts AS t WHERE t.node = n.id AND t.writer = reader))
                    FROM memory.nodes AS n WHERE n.id = r.node)
                ELSE (
                    SELECT n.archived_at IS NULL AND EXISTS (
                        SELECT FROM memory.node_texts AS t WHERE t.node = n.id AND t.writer = reader)
                    FROM memory.nodes AS n
                    WHERE n.id = r.node AND (n.archived_at IS NOT NULL OR n.trust = 'untrusted')) IS NOT FALSE
                END
            LIMIT greatest(CASE WHEN hop < hops THEN frontier END, room)
        ) AS b;
        ids := ids || best[:room];
        scores := scores || best_scores[:room];
        at_hops := at_hops || array_fill(hop::smallint, ARRAY[least(room, cardinality(best))]);
        room := wanted - cardinality(ids);
        IF hop > 0 THEN
            nears := nears || met.near; fars := fars || met.far;
            codes := codes || met.codes; weights := weights || met.weights;
        END IF;
        EXIT WHEN hop >= hops OR cardinality(best) = 0;
        hop := hop + 1;
        seen := seen || met.far;
        IF only_relations = '{}' THEN
            SELECT memory.concatenated(array_fill(b.node, ARRAY[least(fan, cardinality(a.neighbours))])) AS near,
                   memory.concatenated(array_fill(b.score, ARRAY[least(fan, cardinality(a.neighbours))])) AS scores,
                   memory.concatenated(a.neighbours[:fan]) AS far, memory.concatenated(a.relations[:fan]) AS codes,
                   memory.concatenated(a.weights[:fan]) AS weights INTO met
            FROM (SELECT unnest(best[:frontier]), unnest(best_scores[:frontier])) AS b (node, score)
            JOIN memory.adjacency AS a ON a.node = b.node;
        ELSE
            SELECT array_agg(b.node) AS near, array_agg(b.score) AS scores, array_agg(e.node) AS far,
                   array_agg(e.code) AS codes, array_agg(e.weight) AS weights INTO met
            FROM (SELECT unnest(best[:frontier]), unnest(best_scores[:frontier])) AS b (node, score)
            JOIN memory.adjacency AS a ON a.node = b.node CROSS JOIN LATERAL (
                SELECT u.* FROM unnest(a.neighbours, a.relations, a.weights) AS u (node, code, weight)
                WHERE abs(u.code) = ANY (only_relations) LIMIT fan
            ) AS e;
        END IF;
    END LOOP;
    SELECT coalesce(array_agg(e.src), '{}'), coalesce(array_agg(e.dst), '{}'),
           coalesce(array_agg(e.code), '{}'), coalesce(array_agg(e.weight), '{}') INTO srcs, dsts, codes, weights
    FROM (
        SELECT DISTINCT CASE WHEN m.code > 0 THEN m.near ELSE m.far END AS src,
                        CASE WHEN m.code > 0 THEN m.far ELSE m.near END AS dst, abs(m.code) AS code, m.weight
        FROM (SELECT unnest(nears), unnest(fars), unnest(codes), unnest(weights)) AS m (near, far, code, weight)
        WHERE (m.far IN (SELECT unnest(ids))) IS TRUE AND (m.near IN (SELECT unnest(ids))) IS TRUE
        ORDER BY weight DESC, src, dst, code
    ) AS e;
END $$;
