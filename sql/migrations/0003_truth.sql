-- Tenants in every key, both faces of the graph, and the log that replicas of memory are caught up from.

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

-- A reference names the tenant too: an id alone would let one tenant's edge end at another's node.
ALTER TABLE memory.nodes ADD CONSTRAINT nodes_of_tenant UNIQUE (tenant, id);
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

SELECT memory.keep_tenants_apart(format('%I.%I', schemaname, tablename)::regclass)
FROM pg_policies WHERE policyname = 'tenant' AND schemaname IN ('memory', 'serving', 'learning');
SELECT memory.keep_tenants_apart('memory.adjacency');
SELECT memory.keep_tenants_apart('memory.changes');
GRANT USAGE ON ALL SEQUENCES IN SCHEMA memory TO ruvllm_app;

-- Statement triggers with transition tables: one row of the log a node, and a burst of edges refreshes a node once.
CREATE FUNCTION memory.log_nodes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO memory.changes (tenant, node, what) SELECT tenant, id, 'node' FROM changed ORDER BY id;
    IF FOUND THEN
        PERFORM pg_notify('ruvllm_memory', '');
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER log_insert AFTER INSERT ON memory.nodes REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.log_nodes();
CREATE TRIGGER log_update AFTER UPDATE ON memory.nodes REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.log_nodes();
CREATE TRIGGER log_delete AFTER DELETE ON memory.nodes REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.log_nodes();

-- A text is inserted with its node; only a later change of it is news.
CREATE FUNCTION memory.log_texts() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO memory.changes (tenant, node, what) SELECT tenant, node, 'node' FROM changed ORDER BY node;
    IF FOUND THEN
        PERFORM pg_notify('ruvllm_memory', '');
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER log_update AFTER UPDATE ON memory.node_texts REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION memory.log_texts();

-- Rows are locked by a statement of their own, in order, before they are computed: the next statement sees what a
-- writer of the same node committed meanwhile.
CREATE FUNCTION memory.refresh_adjacency(ends bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO memory.adjacency AS a (node, tenant)
    SELECT id, tenant FROM memory.nodes WHERE id = ANY (ends) ORDER BY id
    ON CONFLICT (node) DO UPDATE SET tenant = excluded.tenant;
    UPDATE memory.adjacency AS a SET (neighbours, weights, relations) = (
        SELECT coalesce(array_agg(e.node ORDER BY e.weight DESC, e.id), '{}'),
               coalesce(array_agg(e.weight ORDER BY e.weight DESC, e.id), '{}'),
               coalesce(array_agg(e.relation ORDER BY e.weight DESC, e.id), '{}')
        FROM (
            (SELECT id, dst AS node, weight, memory.relation_code(rel) AS relation FROM memory.edges
             WHERE src = a.node ORDER BY weight DESC, id LIMIT 64)
            UNION ALL
            (SELECT id, src, weight, (-memory.relation_code(rel))::smallint FROM memory.edges
             WHERE dst = a.node ORDER BY weight DESC, id LIMIT 64)
            ORDER BY weight DESC, id LIMIT 64
        ) AS e)
    WHERE a.node = ANY (ends);
    INSERT INTO memory.changes (tenant, node, what)
    SELECT tenant, node, 'edges' FROM memory.adjacency WHERE node = ANY (ends) ORDER BY node;
    IF FOUND THEN
        PERFORM pg_notify('ruvllm_memory', '');
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

-- What is there already: its packed rows, and no log, for no replica has a watermark yet.
SELECT memory.refresh_adjacency(array_agg(DISTINCT node))
FROM memory.edges CROSS JOIN LATERAL (VALUES (src), (dst)) AS ends (node) HAVING count(*) > 0;
