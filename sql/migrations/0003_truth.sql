-- Tenants in every key, both faces of the graph, and the log that replicas of memory are caught up from.

-- From PostgreSQL 16 on, who made a role administers it and still may not become it, which every connection of ours does.
-- 0002 took such an owner for a member.
DO $$
BEGIN
    IF current_setting('server_version_num')::int >= 160000 AND NOT pg_has_role(current_user, 'ruvllm_app', 'SET') THEN
        EXECUTE format('GRANT ruvllm_app TO %I WITH SET TRUE', current_user);
    END IF;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE EXCEPTION 'role ruvllm_app: % may not become it; have an administrator run: GRANT ruvllm_app TO % WITH SET TRUE',
        current_user, quote_ident(current_user) USING ERRCODE = 'insufficient_privilege';
END $$;

-- Forced row-level security hides every row from an owner who is no superuser, and it does so silently: foreign keys
-- would be marked valid unread, and what is filled in below would stay empty. keep_tenants_apart forces it again.
DO $$
DECLARE relation regclass;
BEGIN
    FOR relation IN SELECT format('%I.%I', schemaname, tablename)::regclass FROM pg_policies
                    WHERE policyname = 'tenant' AND schemaname IN ('memory', 'serving', 'learning')
    LOOP
        EXECUTE format('ALTER TABLE %s NO FORCE ROW LEVEL SECURITY', relation);
    END LOOP;
END $$;

-- What every table with a tenant gets: row-level security, forced, for our roles alone. The policy of 0001 was PUBLIC's:
-- an analyst can set app.tenant too.
CREATE FUNCTION memory.keep_tenants_apart(relation regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', relation);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', relation);
    EXECUTE format('DROP POLICY IF EXISTS tenant ON %s', relation);
    EXECUTE format('CREATE POLICY tenant ON %s TO ruvllm_app, %I USING (tenant = current_setting(''app.tenant'', true)) '
                   'WITH CHECK (tenant = current_setting(''app.tenant'', true))', relation, current_user);
    EXECUTE format('GRANT SELECT, INSERT, UPDATE, DELETE ON %s TO ruvllm_app', relation);
END $$;
REVOKE ALL ON FUNCTION memory.keep_tenants_apart FROM PUBLIC;

-- A reference names the tenant too: an id alone let one tenant's edge end at another's node. Nobody could read such an
-- edge (its far end was hidden), and nobody's work made one: it goes.
DELETE FROM memory.edges AS e USING memory.nodes AS n WHERE n.id IN (e.src, e.dst) AND n.tenant <> e.tenant;
-- and with it whether a node may be walked to, without a look at its wide row
ALTER TABLE memory.nodes ADD CONSTRAINT nodes_of_tenant UNIQUE (tenant, id) INCLUDE (archived_at, trust);
ALTER TABLE memory.nodes
    DROP CONSTRAINT nodes_superseded_by_fkey,
    ADD FOREIGN KEY (tenant, superseded_by) REFERENCES memory.nodes (tenant, id) ON DELETE SET NULL (superseded_by);
ALTER TABLE memory.node_texts
    DROP CONSTRAINT node_texts_node_fkey,
    ADD FOREIGN KEY (tenant, node) REFERENCES memory.nodes (tenant, id) ON DELETE CASCADE;
ALTER TABLE memory.node_usage
    DROP CONSTRAINT node_usage_node_fkey,
    ADD FOREIGN KEY (tenant, node) REFERENCES memory.nodes (tenant, id) ON DELETE CASCADE;
ALTER TABLE memory.minhash_bands
    DROP CONSTRAINT minhash_bands_node_fkey,
    ADD FOREIGN KEY (tenant, node) REFERENCES memory.nodes (tenant, id) ON DELETE CASCADE;
ALTER TABLE memory.edges
    DROP CONSTRAINT edges_src_fkey,
    DROP CONSTRAINT edges_dst_fkey,
    ADD FOREIGN KEY (tenant, src) REFERENCES memory.nodes (tenant, id) ON DELETE CASCADE,
    ADD FOREIGN KEY (tenant, dst) REFERENCES memory.nodes (tenant, id) ON DELETE CASCADE;
ALTER TABLE serving.outbox
    DROP CONSTRAINT outbox_node_fkey,
    ADD FOREIGN KEY (tenant, node) REFERENCES memory.nodes (tenant, id) ON DELETE SET NULL (node);
CREATE INDEX nodes_superseded ON memory.nodes (superseded_by) WHERE superseded_by IS NOT NULL;
CREATE INDEX node_usage_recent ON memory.node_usage (tenant, last_used_at);

-- The time that a Concept's members span.
ALTER TABLE memory.nodes
    ADD COLUMN span_start timestamptz,
    ADD COLUMN span_end timestamptz,
    ADD CHECK (span_start <= span_end);

-- Both directions, the heaviest first, without a look at the table.
DROP INDEX memory.edges_from, memory.edges_to;
CREATE INDEX edges_from ON memory.edges (src, weight DESC, id) INCLUDE (dst, rel, tenant);
CREATE INDEX edges_to ON memory.edges (dst, weight DESC, id) INCLUDE (src, rel, tenant);

-- A relation as a small number; ruvllm.memory.records.RELATIONS holds the same order.
CREATE FUNCTION memory.relation_code(rel text) RETURNS smallint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_position(ARRAY['Cites', 'Follows', 'SameTopic', 'AgentStep', 'Derived', 'Contains'], rel)::smallint
$$;

-- A node's 64 heaviest edges in one row: two hops are two look-ups a node instead of a join of edges.
CREATE TABLE memory.adjacency (
    node bigint PRIMARY KEY,
    tenant text NOT NULL,
    neighbours bigint[] NOT NULL DEFAULT '{}',  -- the other end, the heaviest edge first
    weights real[] NOT NULL DEFAULT '{}',
    relations smallint[] NOT NULL DEFAULT '{}',  -- relation_code; negative where the node is the edge's dst
    FOREIGN KEY (tenant, node) REFERENCES memory.nodes (tenant, id) ON DELETE CASCADE
) WITH (fillfactor = 70);

-- What changed, by the transaction that changed it. A sequence alone would be read past rows that commit later.
CREATE TABLE memory.changes (
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    seq bigint GENERATED ALWAYS AS IDENTITY,
    tenant text NOT NULL,
    node bigint NOT NULL,                 -- no reference: it outlives the node
    what text NOT NULL CHECK (what IN ('node', 'edges')),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (tenant, xid, seq)
);

-- Which log this is, and from where on it is whole: a replica of before that, or of another, is built anew.
CREATE TABLE memory.change_log (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    whole_from xid8 NOT NULL DEFAULT '0'
);
INSERT INTO memory.change_log DEFAULT VALUES;
GRANT SELECT, UPDATE (whole_from) ON memory.change_log TO ruvllm_app;

-- A transaction that notifies holds up every other one that does, to the end of its commit (measured with eight writers:
-- a third of the commits). Of those under way at once only one therefore does; what the others wrote is seen by the next
-- look, which a replica takes at its interval anyway.
CREATE FUNCTION memory.wake_replicas() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF pg_try_advisory_xact_lock(7270215503) THEN
        PERFORM pg_notify('ruvllm_memory', '');
    END IF;
END $$;

-- Statement triggers with transition tables: one row of the log a node, and a burst of edges refreshes a node once.
CREATE FUNCTION memory.log_nodes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO memory.changes (tenant, node, what) SELECT tenant, id, 'node' FROM changed ORDER BY id;
    IF FOUND THEN
        PERFORM memory.wake_replicas();
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER log_insert AFTER INSERT ON memory.nodes REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.log_nodes();
CREATE TRIGGER log_update AFTER UPDATE ON memory.nodes REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.log_nodes();
CREATE TRIGGER log_delete AFTER DELETE ON memory.nodes REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.log_nodes();

-- A text that comes or goes with its node is in the log already; one that comes, changes or goes alone is news.
CREATE FUNCTION memory.log_texts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO memory.changes (tenant, node, what)
    SELECT t.tenant, t.node, 'node' FROM changed AS t JOIN memory.nodes AS n ON n.id = t.node
    WHERE TG_OP <> 'INSERT' OR n.xmin <> pg_current_xact_id()::xid
    ORDER BY t.node;
    IF FOUND THEN
        PERFORM memory.wake_replicas();
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER log_insert AFTER INSERT ON memory.node_texts REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.log_texts();
CREATE TRIGGER log_update AFTER UPDATE ON memory.node_texts REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.log_texts();
CREATE TRIGGER log_delete AFTER DELETE ON memory.node_texts REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.log_texts();

-- The rows of `ends`, there and locked in the order of their ids. A transaction that writes edges by several statements
-- calls this first, for all of them: two of those then wait for one another instead of ending in a deadlock.
CREATE FUNCTION memory.lock_adjacency(ends bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO memory.adjacency (node, tenant)
    SELECT id, tenant FROM memory.nodes WHERE id = ANY (ends) ORDER BY id ON CONFLICT (node) DO NOTHING;
    PERFORM FROM memory.adjacency WHERE node = ANY (ends) ORDER BY node FOR NO KEY UPDATE;
END $$;

-- Rows are locked by statements of their own before they are computed: the next one sees what a writer of the same node
-- committed meanwhile. A row that stays as it is (the edge is lighter than the 64 in it) is neither written nor logged.
CREATE FUNCTION memory.refresh_adjacency(ends bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM memory.lock_adjacency(ends);
    WITH refreshed AS (
        UPDATE memory.adjacency AS a
        SET neighbours = packed.neighbours, weights = packed.weights, relations = packed.relations
        FROM (SELECT DISTINCT node FROM unnest(ends) AS node) AS touched CROSS JOIN LATERAL (
            SELECT coalesce(array_agg(e.node ORDER BY e.weight DESC, e.id), '{}') AS neighbours,
                   coalesce(array_agg(e.weight ORDER BY e.weight DESC, e.id), '{}') AS weights,
                   coalesce(array_agg(e.relation ORDER BY e.weight DESC, e.id), '{}') AS relations
            FROM (
                (SELECT id, dst AS node, weight, memory.relation_code(rel) AS relation FROM memory.edges
                 WHERE src = touched.node ORDER BY weight DESC, id LIMIT 64)
                UNION ALL
                (SELECT id, src, weight, (-memory.relation_code(rel))::smallint FROM memory.edges
                 WHERE dst = touched.node ORDER BY weight DESC, id LIMIT 64)
                ORDER BY weight DESC, id LIMIT 64
            ) AS e
        ) AS packed
        WHERE a.node = touched.node
          AND (a.neighbours, a.weights, a.relations)
              IS DISTINCT FROM (packed.neighbours, packed.weights, packed.relations)
        RETURNING a.tenant, a.node
    )
    INSERT INTO memory.changes (tenant, node, what) SELECT tenant, node, 'edges' FROM refreshed ORDER BY node;
    IF FOUND THEN
        PERFORM memory.wake_replicas();
    END IF;
END $$;
CREATE FUNCTION memory.edges_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM memory.refresh_adjacency(array_agg(DISTINCT node))
    FROM changed CROSS JOIN LATERAL (VALUES (src), (dst)) AS ends (node) HAVING count(*) > 0;
    RETURN NULL;
END $$;
CREATE FUNCTION memory.edges_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN  -- counting an edge's use is no news
    PERFORM memory.refresh_adjacency(array_agg(DISTINCT ends.node))
    FROM changed AS n JOIN before AS o USING (id)
    CROSS JOIN LATERAL (VALUES (n.src), (n.dst), (o.src), (o.dst)) AS ends (node)
    WHERE (n.src, n.dst, n.rel, n.weight) IS DISTINCT FROM (o.src, o.dst, o.rel, o.weight) HAVING count(*) > 0;
    RETURN NULL;
END $$;
CREATE TRIGGER adjacency_insert AFTER INSERT ON memory.edges REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.edges_changed();
CREATE TRIGGER adjacency_update AFTER UPDATE ON memory.edges REFERENCING NEW TABLE AS changed OLD TABLE AS before
    FOR EACH STATEMENT EXECUTE FUNCTION memory.edges_updated();
CREATE TRIGGER adjacency_delete AFTER DELETE ON memory.edges REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.edges_changed();

-- ruvllm.memory.records.Walk, hop by hop over packed rows. Arrays in, arrays out: a row an edge would cost more than the
-- walk itself. Whether a node may be seen is asked best first and until enough are found: LIMIT ends the filter above
-- the sort. IS [NOT] TRUE keeps IN a hash table: as a join, of arrays taken for ten elements, the planner would loop.
CREATE AGGREGATE memory.concatenated(anycompatiblearray) (SFUNC = array_cat, STYPE = anycompatiblearray, INITCOND = '{}');
CREATE FUNCTION memory.walk(
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
    kept record;
BEGIN
    ids := '{}'; at_hops := '{}'; scores := '{}'; srcs := '{}'; dsts := '{}'; codes := '{}'; weights := '{}';
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
            WHERE (SELECT n.archived_at IS NULL AND (n.trust <> 'untrusted' OR EXISTS (
                       SELECT FROM memory.node_texts AS t WHERE t.node = n.id AND t.writer = reader))
                   FROM memory.nodes AS n WHERE n.id = r.node)
            LIMIT greatest(CASE WHEN hop < hops THEN frontier END, room)
        ) AS b;
        ids := ids || best[:room];
        scores := scores || best_scores[:room];
        at_hops := at_hops || array_fill(hop::smallint, ARRAY[least(room, cardinality(best))]);
        room := wanted - cardinality(ids);
        IF hop > 0 THEN  -- every end of these edges is of this hop or of an earlier one, so `ids` has it by now or never
            SELECT array_agg(CASE WHEN m.code > 0 THEN m.near ELSE m.far END) AS srcs,
                   array_agg(CASE WHEN m.code > 0 THEN m.far ELSE m.near END) AS dsts,
                   array_agg(abs(m.code)) AS codes, array_agg(m.weight) AS weights INTO kept
            FROM (SELECT unnest(met.near), unnest(met.far), unnest(met.codes), unnest(met.weights)
                 ) AS m (near, far, code, weight)
            WHERE (m.far IN (SELECT unnest(ids))) IS TRUE AND (m.near IN (SELECT unnest(ids))) IS TRUE;
            srcs := srcs || kept.srcs; dsts := dsts || kept.dsts;
            codes := codes || kept.codes; weights := weights || kept.weights;
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
    FROM (SELECT DISTINCT unnest(srcs) AS src, unnest(dsts) AS dst, unnest(codes) AS code, unnest(weights) AS weight
          ORDER BY weight DESC, src, dst, code) AS e;
END $$;

-- TRUNCATE is the owner's alone and tells no trigger which rows went: another log begins, and replicas are built anew.
CREATE FUNCTION memory.begin_another_log() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_RELID = 'memory.edges'::regclass THEN
        BEGIN
            TRUNCATE memory.adjacency;
        EXCEPTION WHEN object_in_use THEN
            NULL;  -- the nodes are truncated too, and with them the packed rows already
        END;
    END IF;
    UPDATE memory.change_log SET id = gen_random_uuid();
    PERFORM memory.wake_replicas();
    RETURN NULL;
END $$;
CREATE TRIGGER another_log AFTER TRUNCATE ON memory.nodes FOR EACH STATEMENT EXECUTE FUNCTION memory.begin_another_log();
CREATE TRIGGER another_log AFTER TRUNCATE ON memory.node_texts FOR EACH STATEMENT
    EXECUTE FUNCTION memory.begin_another_log();
CREATE TRIGGER another_log AFTER TRUNCATE ON memory.edges FOR EACH STATEMENT EXECUTE FUNCTION memory.begin_another_log();

-- What is there already; then the log is begun, for no replica has a watermark yet.
SELECT memory.refresh_adjacency(array_agg(DISTINCT node))
FROM memory.edges CROSS JOIN LATERAL (VALUES (src), (dst)) AS ends (node) HAVING count(*) > 0;
DELETE FROM memory.changes;

SELECT memory.keep_tenants_apart(format('%I.%I', schemaname, tablename)::regclass)
FROM pg_policies WHERE policyname = 'tenant' AND schemaname IN ('memory', 'serving', 'learning');
SELECT memory.keep_tenants_apart('memory.adjacency');
SELECT memory.keep_tenants_apart('memory.changes');
GRANT USAGE ON ALL SEQUENCES IN SCHEMA memory TO ruvllm_app;
