-- SQL for analysts: views and search functions over memory, read-only, each login in the one tenant it was given.
--
-- Who is who: ruvllm_views owns the views, may not log in, has no BYPASSRLS and is nobody's; ruvllm_reader is the group
-- of the analysts' logins. An analyst's tenant is looked up by session_user, which no SET ROLE and no SECURITY DEFINER
-- function changes; app.tenant, which any SQL user may set, is not asked. Each view says the tenant's condition too:
-- it holds even where the views could not be handed over (an owner who may not create roles).

DO $$
DECLARE name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['ruvllm_views', 'ruvllm_reader'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', name);
            EXCEPTION
                WHEN duplicate_object OR unique_violation THEN
                    NULL;  -- roles are the whole server's: another database's migration made it at the same moment
                WHEN insufficient_privilege THEN
                    RAISE EXCEPTION 'role %: % may not create it; have an administrator run: CREATE ROLE %',
                        name, current_user, name USING ERRCODE = 'insufficient_privilege';
            END;
        END IF;
        IF EXISTS (SELECT FROM pg_roles WHERE rolname = name AND (rolsuper OR rolbypassrls OR rolcanlogin)) THEN
            RAISE EXCEPTION 'role %: it may log in or pass row-level security; run: ALTER ROLE % NOLOGIN NOSUPERUSER '
                'NOBYPASSRLS', name, name;
        END IF;
    END LOOP;
END $$;

CREATE SCHEMA analytics;
GRANT USAGE ON SCHEMA analytics TO ruvllm_reader, ruvllm_views;
GRANT USAGE ON SCHEMA memory TO ruvllm_views;
SELECT '[1]'::halfvec;  -- loads pgvector: only then may who is no superuser name its settings below

-- Which login reads which tenant. Only the owner writes it (ruvllm db analyst add).
CREATE TABLE memory.analysts (
    login text PRIMARY KEY,
    tenant text NOT NULL CHECK (length(tenant) BETWEEN 1 AND 200),
    created_at timestamptz NOT NULL DEFAULT now()
);
SELECT memory.keep_tenants_apart('memory.analysts');
REVOKE ALL ON memory.analysts FROM ruvllm_app;
CREATE POLICY own_row ON memory.analysts FOR SELECT TO ruvllm_views USING (login = session_user::text);
DO $$ BEGIN
    EXECUTE format('CREATE POLICY administration ON memory.analysts TO %I USING (true) WITH CHECK (true)',
                   current_user);
END $$;
GRANT SELECT ON memory.analysts TO ruvllm_views;

CREATE FUNCTION analytics.my_tenant() RETURNS text
LANGUAGE sql STABLE PARALLEL RESTRICTED SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT tenant FROM memory.analysts WHERE login = session_user::text;
END;

-- What a table needs before a view may read it. The tenant is an uncorrelated subquery: asked once a query.
CREATE FUNCTION memory.show_to_views(relation regclass) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format('DROP POLICY IF EXISTS analyst ON %s', relation);
    EXECUTE format('CREATE POLICY analyst ON %s FOR SELECT TO ruvllm_views '
                   'USING (tenant = (SELECT analytics.my_tenant()))', relation);
    EXECUTE format('GRANT SELECT ON %s TO ruvllm_views', relation);
END $$;
REVOKE ALL ON FUNCTION memory.show_to_views FROM PUBLIC;
SELECT memory.show_to_views(format('memory.%I', name)::regclass)
FROM unnest(ARRAY['nodes', 'node_texts', 'node_usage', 'edges', 'adjacency', 'minhash_bands', 'maintained',
                  'writes', 'ingest', 'runs', 'supersessions', 'canary_queries']) AS name;
GRANT SELECT ON memory.encoder TO ruvllm_views;

-- Views. security_barrier: a function of the analyst's own sees no row before the tenant's condition has held.

CREATE VIEW analytics.me WITH (security_barrier) AS
SELECT session_user::text AS login, analytics.my_tenant() AS tenant, e.id AS encoder, e.dimension
FROM memory.encoder AS e WHERE analytics.my_tenant() IS NOT NULL;

CREATE VIEW analytics.nodes WITH (security_barrier) AS
SELECT n.id, n.uuid, n.kind, n.domain, n.trust, t.text, t.source, t.writer, t.tags, t.metadata, n.confidence, n.version,
       n.archived_at IS NULL AS live, n.superseded_by, n.archived_at, n.created_at, n.updated_at,
       now() - n.created_at AS age, n.span_start, n.span_end, coalesce(u.uses, 0) AS uses, u.last_used_at
FROM memory.nodes AS n
JOIN memory.node_texts AS t ON t.node = n.id
LEFT JOIN memory.node_usage AS u ON u.node = n.id
WHERE n.tenant = (SELECT analytics.my_tenant());

CREATE VIEW analytics.embeddings WITH (security_barrier) AS
SELECT n.id, n.embedding FROM memory.nodes AS n WHERE n.tenant = (SELECT analytics.my_tenant());

CREATE VIEW analytics.edges WITH (security_barrier) AS
SELECT e.id, e.uuid, e.src, e.dst, e.rel, e.weight, e.confidence, e.created_by, e.created_at, e.uses, e.last_used_at
FROM memory.edges AS e WHERE e.tenant = (SELECT analytics.my_tenant());

-- A node's 64 heaviest edges, a row each; place 1 is the heaviest.
CREATE VIEW analytics.neighbours WITH (security_barrier) AS
SELECT a.node, p.place::int AS place, p.neighbour,
       (ARRAY['Cites', 'Follows', 'SameTopic', 'AgentStep', 'Derived', 'Contains'])[abs(p.relation)] AS rel,
       CASE WHEN p.relation > 0 THEN 'out' ELSE 'in' END AS direction, p.weight
FROM memory.adjacency AS a
CROSS JOIN LATERAL unnest(a.neighbours, a.weights, a.relations) WITH ORDINALITY
    AS p (neighbour, weight, relation, place)
WHERE a.tenant = (SELECT analytics.my_tenant());

CREATE VIEW analytics.sources WITH (security_barrier) AS
SELECT t.source, count(*) FILTER (WHERE n.archived_at IS NULL) AS live,
       count(*) FILTER (WHERE n.archived_at IS NOT NULL) AS archived,
       count(*) FILTER (WHERE n.archived_at IS NULL AND n.trust = 'untrusted') AS untrusted,
       count(DISTINCT t.writer) AS writers, avg(n.confidence)::real AS mean_confidence,
       coalesce(sum(u.uses), 0)::bigint AS uses, min(n.created_at) AS first_at, max(n.created_at) AS last_at
FROM memory.nodes AS n
JOIN memory.node_texts AS t ON t.node = n.id
LEFT JOIN memory.node_usage AS u ON u.node = n.id
WHERE n.tenant = (SELECT analytics.my_tenant()) GROUP BY t.source;

CREATE VIEW analytics.kinds WITH (security_barrier) AS
SELECT n.kind, n.domain, n.trust, count(*) FILTER (WHERE n.archived_at IS NULL) AS live,
       count(*) FILTER (WHERE n.archived_at IS NOT NULL) AS archived, avg(n.confidence)::real AS mean_confidence,
       coalesce(sum(u.uses), 0)::bigint AS uses
FROM memory.nodes AS n LEFT JOIN memory.node_usage AS u ON u.node = n.id
WHERE n.tenant = (SELECT analytics.my_tenant()) GROUP BY n.kind, n.domain, n.trust;

-- Days are UTC's.
CREATE VIEW analytics.growth WITH (security_barrier) AS
SELECT d.day, d.kind, sum(d.added)::bigint AS added, sum(d.archived)::bigint AS archived,
       (sum(sum(d.added - d.archived)) OVER (PARTITION BY d.kind ORDER BY d.day))::bigint AS live
FROM (
    SELECT (n.created_at AT TIME ZONE 'UTC')::date AS day, n.kind, 1 AS added, 0 AS archived
    FROM memory.nodes AS n WHERE n.tenant = (SELECT analytics.my_tenant())
    UNION ALL
    SELECT (n.archived_at AT TIME ZONE 'UTC')::date, n.kind, 0, 1
    FROM memory.nodes AS n WHERE n.tenant = (SELECT analytics.my_tenant()) AND n.archived_at IS NOT NULL
) AS d GROUP BY d.day, d.kind;

-- Live nodes and how they are used; a node never read has no last_used_at.
CREATE VIEW analytics.usage WITH (security_barrier) AS
SELECT n.id AS node, n.kind, n.domain, coalesce(u.uses, 0) AS uses, u.last_used_at,
       now() - coalesce(u.last_used_at, n.created_at) AS idle
FROM memory.nodes AS n LEFT JOIN memory.node_usage AS u ON u.node = n.id
WHERE n.tenant = (SELECT analytics.my_tenant()) AND n.archived_at IS NULL;

CREATE VIEW analytics.concepts WITH (security_barrier) AS
SELECT n.id, n.uuid, t.text, n.domain, n.archived_at IS NULL AS live, n.span_start, n.span_end, n.created_at,
       (SELECT count(*) FROM memory.edges AS e WHERE e.src = n.id AND e.rel = 'Contains') AS members
FROM memory.nodes AS n JOIN memory.node_texts AS t ON t.node = n.id
WHERE n.tenant = (SELECT analytics.my_tenant()) AND n.kind = 'Concept';

-- What became part of what: the row that went, the row that stays; by, why and run where it was written down.
CREATE VIEW analytics.supersessions WITH (security_barrier) AS
SELECT n.id AS node, n.superseded_by AS heir, n.kind, n.version, n.archived_at AS at, s.by, s.why, s.run
FROM memory.nodes AS n
LEFT JOIN memory.supersessions AS s ON s.node = n.id AND s.heir = n.superseded_by AND s.undone_at IS NULL
WHERE n.tenant = (SELECT analytics.my_tenant()) AND n.superseded_by IS NOT NULL;

-- Tidying: what each run looked at, changed, and whether its canary let it stand.
CREATE VIEW analytics.runs WITH (security_barrier) AS
SELECT r.id, r.kind, r.dry_run, r.status, r.started_at, r.finished_at, r.finished_at - r.started_at AS took, r.cap,
       r.counts, r.canary_before, r.canary_after, r.reason
FROM memory.runs AS r WHERE r.tenant = (SELECT analytics.my_tenant());

-- What became of each write: written, merged, skipped, unscored.
CREATE VIEW analytics.writes WITH (security_barrier) AS
SELECT w.id, w.node, w.outcome, w.reason, w.session, w.turn, w.written_at
FROM memory.writes AS w WHERE w.tenant = (SELECT analytics.my_tenant());

-- Bursts that wait to become nodes.
CREATE VIEW analytics.waiting WITH (security_barrier) AS
SELECT i.kind, i.source, count(*) AS rows, min(i.came_at) AS oldest
FROM memory.ingest AS i WHERE i.tenant = (SELECT analytics.my_tenant()) GROUP BY i.kind, i.source;

-- The questions that guard tidying, and the node that each has to find.
CREATE VIEW analytics.canary_queries WITH (security_barrier) AS
SELECT c.id, c.question, c.expected, c.answer, c.origin, c.created_at
FROM memory.canary_queries AS c WHERE c.tenant = (SELECT analytics.my_tenant());

-- Live nodes that the search for duplicates has not come to, with the older live nodes that share a MinHash band.
CREATE VIEW analytics.duplicates_pending WITH (security_barrier) AS
SELECT mine.node, other.node AS older, count(*)::int AS shared_bands
FROM memory.minhash_bands AS mine
JOIN memory.minhash_bands AS other
    ON other.tenant = mine.tenant AND other.band = mine.band AND other.hash = mine.hash AND other.node < mine.node
       AND other.scheme = mine.scheme
WHERE mine.tenant = (SELECT analytics.my_tenant())
  AND mine.node > coalesce((SELECT m.last_node FROM memory.maintained AS m
                            WHERE m.tenant = (SELECT analytics.my_tenant())), 0)
GROUP BY mine.node, other.node;

-- Of the whole installation, sizes only: indices serve all tenants.
CREATE VIEW analytics.index_health WITH (security_barrier) AS
SELECT c.relname::text AS index, t.relname::text AS "table", m.amname::text AS method, i.indisvalid AS valid,
       c.reloptions AS parameters, pg_relation_size(c.oid) AS bytes
FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid
JOIN pg_class AS t ON t.oid = i.indrelid
JOIN pg_am AS m ON m.oid = c.relam
JOIN pg_namespace AS s ON s.oid = t.relnamespace
WHERE s.nspname = 'memory' AND analytics.my_tenant() IS NOT NULL;

-- Search. The same conditions as ruvllm.memory.filters.Filter; an analyst is nobody's reader unless the filter says so.

CREATE TYPE analytics.search_filter AS (
    kinds text[], exclude_kinds text[], domains text[], tags text[], trusts text[], since timestamptz,
    until timestamptz, min_confidence real, reader text);

CREATE TYPE analytics.found AS (
    id bigint, uuid uuid, score real, kind text, domain text, trust text, source text, writer text, tags text[],
    confidence real, created_at timestamptz, text text);

CREATE FUNCTION analytics.text_array(filters jsonb, key text, known text[] DEFAULT NULL) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    got jsonb := filters -> key;
    listed text[];
BEGIN
    IF got IS NULL THEN
        RETURN NULL;
    END IF;
    IF jsonb_typeof(got) <> 'array' OR jsonb_path_exists(got, '$[*] ? (@.type() != "string")') THEN
        RAISE EXCEPTION 'filter %: got %, want an array of texts', key, got USING ERRCODE = 'invalid_parameter_value';
    END IF;
    listed := ARRAY(SELECT jsonb_array_elements_text(got));
    IF NOT listed <@ coalesce(known, listed) THEN
        RAISE EXCEPTION 'filter %: got %, want any of %', key, got, array_to_string(known, ', ')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN nullif(listed, '{}');
END $$;

CREATE FUNCTION analytics.moment(filters jsonb, key text) RETURNS timestamptz
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE got text := filters ->> key;
BEGIN
    IF got IS NULL OR got ~ '^\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}.*(Z|[+-]\d{2}(:?\d{2})?)$' THEN
        RETURN got::timestamptz;
    END IF;
    RAISE EXCEPTION 'filter %: got "%", want a time with its zone, for example 2026-01-31T00:00:00Z', key, got
        USING ERRCODE = 'invalid_parameter_value';
END $$;

CREATE FUNCTION analytics.read_filter(filters jsonb) RETURNS analytics.search_filter
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    f analytics.search_filter;
    keys constant text[] := ARRAY['kinds', 'exclude_kinds', 'domains', 'tags', 'trusts', 'since', 'until',
                                  'min_confidence', 'reader'];
    kinds constant text[] := ARRAY['Query', 'Document', 'AgentStep', 'Fact', 'Concept'];
    unknown text;
BEGIN
    IF jsonb_typeof(filters) IS DISTINCT FROM 'object' THEN
        RAISE EXCEPTION 'filters: got %, want an object, for example {"kinds": ["Fact"]}', filters
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT string_agg(key, ', ' ORDER BY key) INTO unknown
    FROM jsonb_object_keys(filters) AS key WHERE key <> ALL (keys);
    IF unknown IS NOT NULL THEN
        RAISE EXCEPTION 'filters: unknown %; the keys are %', unknown, array_to_string(keys, ', ')
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF jsonb_typeof(coalesce(filters -> 'min_confidence', '0')) <> 'number'
       OR (filters ->> 'min_confidence')::numeric NOT BETWEEN 0 AND 1 THEN
        RAISE EXCEPTION 'filter min_confidence: got %, want a number from 0 to 1', filters -> 'min_confidence'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    f.kinds := analytics.text_array(filters, 'kinds', kinds);
    f.exclude_kinds := coalesce(analytics.text_array(filters, 'exclude_kinds', kinds), '{}');
    f.domains := analytics.text_array(filters, 'domains');
    f.tags := coalesce(analytics.text_array(filters, 'tags'), '{}');
    f.trusts := analytics.text_array(filters, 'trusts', ARRAY['system', 'corroborated', 'untrusted']);
    f.since := coalesce(analytics.moment(filters, 'since'), '-infinity');
    f.until := coalesce(analytics.moment(filters, 'until'), 'infinity');
    f.min_confidence := coalesce((filters ->> 'min_confidence')::real, 0);
    f.reader := coalesce(filters ->> 'reader', '');
    RETURN f;
END $$;

CREATE FUNCTION analytics.passes(n memory.nodes, t memory.node_texts, f analytics.search_filter) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT (f.kinds IS NULL OR n.kind = ANY (f.kinds)) AND n.kind <> ALL (f.exclude_kinds)
       AND (f.domains IS NULL OR n.domain = ANY (f.domains)) AND t.tags @> f.tags
       AND (f.trusts IS NULL OR n.trust = ANY (f.trusts))
       AND (n.trust <> 'untrusted' OR 'untrusted' = ANY (f.trusts) OR (f.reader <> '' AND t.writer = f.reader))
       AND n.created_at >= f.since AND n.created_at < f.until AND n.confidence >= f.min_confidence;
END;

-- What searches run as SQL bodies bind their names here and now: nothing in an analyst's search_path or among his
-- temporary objects can stand in for a table, a function or an operator.
CREATE FUNCTION analytics.unit_vector(query text) RETURNS halfvec LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
    SELECT CASE WHEN l2_norm(query::halfvec(${dimension})) > 0 THEN l2_normalize(query::halfvec(${dimension})) END;
END;

CREATE FUNCTION analytics.vector_of(node bigint) RETURNS halfvec LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT n.embedding FROM memory.nodes AS n WHERE n.id = node AND n.tenant = (SELECT analytics.my_tenant());
END;

CREATE FUNCTION analytics.nearest(query halfvec, k int, f analytics.search_filter) RETURNS SETOF analytics.found
LANGUAGE sql STABLE SET enable_sort = off SET hnsw.iterative_scan = strict_order
BEGIN ATOMIC
    SELECT n.id, n.uuid, (-(n.embedding <#> query))::real, n.kind, n.domain, n.trust, t.source, t.writer, t.tags,
           n.confidence, n.created_at, t.text
    FROM memory.nodes AS n JOIN memory.node_texts AS t ON t.node = n.id
    WHERE n.tenant = (SELECT analytics.my_tenant()) AND n.archived_at IS NULL AND analytics.passes(n, t, f)
    ORDER BY n.embedding <#> query LIMIT k;
END;

-- Every row is looked at: for filters so rare that the index gave up before it had k.
CREATE FUNCTION analytics.nearest_exactly(query halfvec, k int, f analytics.search_filter) RETURNS SETOF analytics.found
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT n.id, n.uuid, (-(n.embedding <#> query))::real, n.kind, n.domain, n.trust, t.source, t.writer, t.tags,
           n.confidence, n.created_at, t.text
    FROM memory.nodes AS n JOIN memory.node_texts AS t ON t.node = n.id
    WHERE n.tenant = (SELECT analytics.my_tenant()) AND n.archived_at IS NULL AND analytics.passes(n, t, f)
    ORDER BY (n.embedding <#> query) + 0, n.id LIMIT k;
END;

CREATE FUNCTION analytics.check_call(k int) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF analytics.my_tenant() IS NULL THEN
        RAISE EXCEPTION 'login %: is no analyst here; have the operator run: ruvllm db analyst add % --tenant TENANT',
            session_user, session_user USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF k IS NULL OR k NOT BETWEEN 1 AND 1000 THEN
        RAISE EXCEPTION 'k: got %, want 1 to 1000', k USING ERRCODE = 'invalid_parameter_value';
    END IF;
END $$;

CREATE FUNCTION analytics.search(query halfvec, k int, f analytics.search_filter) RETURNS SETOF analytics.found
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp SET hnsw.ef_search = 64 AS $$
DECLARE hits analytics.found[];
BEGIN
    PERFORM set_config('hnsw.ef_search', greatest(k, 64)::text, true);  -- undone at the end of this function
    hits := ARRAY(SELECT h::analytics.found FROM analytics.nearest(query, k, f) AS h);
    IF cardinality(hits) < k THEN
        RETURN QUERY SELECT * FROM analytics.nearest_exactly(query, k, f);
    ELSE
        RETURN QUERY SELECT * FROM unnest(hits);
    END IF;
END $$;

-- The k live nodes nearest to a vector literal ("ruvllm memory embed TEXT" prints one); score is the cosine.
CREATE FUNCTION analytics.memory_search(query text, k int DEFAULT 10, filters jsonb DEFAULT '{}')
RETURNS SETOF analytics.found
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    vector analytics.embeddings.embedding%TYPE;
    f analytics.search_filter := analytics.read_filter(filters);
BEGIN
    PERFORM analytics.check_call(k);
    BEGIN
        vector := analytics.unit_vector(query);
    EXCEPTION WHEN data_exception THEN
        RAISE EXCEPTION 'query: %; want the vector of a text: ruvllm memory embed TEXT', SQLERRM
            USING ERRCODE = SQLSTATE;
    END;
    IF vector IS NULL THEN
        RAISE EXCEPTION 'query: has no direction; want the vector of a text: ruvllm memory embed TEXT'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN QUERY SELECT * FROM analytics.search(vector, k, f);
END $$;

-- The k live nodes nearest to a node, itself left out.
CREATE FUNCTION analytics.memory_search_like(node bigint, k int DEFAULT 10, filters jsonb DEFAULT '{}')
RETURNS SETOF analytics.found
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    vector analytics.embeddings.embedding%TYPE;
    f analytics.search_filter := analytics.read_filter(filters);
BEGIN
    PERFORM analytics.check_call(k);
    vector := analytics.vector_of(node);
    IF vector IS NULL THEN
        RAISE EXCEPTION 'node %: there is none; want an id of the view nodes', node
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN QUERY SELECT * FROM analytics.search(vector, least(k + 1, 1000), f) AS h
                 WHERE h.id <> node LIMIT k;
END $$;

-- The k live nodes that hold the words best, as memory's own full-text search scores them: each word for itself, the
-- rare ones count most. That search asks app.tenant, so it is the analyst's while it runs and what it was afterwards.
GRANT EXECUTE ON FUNCTION memory.word_scores TO ruvllm_views;
CREATE FUNCTION analytics.holding(words text, k int, f analytics.search_filter) RETURNS SETOF analytics.found
LANGUAGE sql STABLE
BEGIN ATOMIC
    SELECT n.id, n.uuid, s.score, n.kind, n.domain, n.trust, t.source, t.writer, t.tags, n.confidence, n.created_at,
           t.text
    FROM memory.word_scores(words) AS s
    JOIN memory.nodes AS n ON n.id = s.node JOIN memory.node_texts AS t ON t.node = n.id
    WHERE n.tenant = (SELECT analytics.my_tenant()) AND n.archived_at IS NULL AND analytics.passes(n, t, f)
    ORDER BY s.score DESC, n.id LIMIT k;
END;
CREATE FUNCTION analytics.memory_search_text(words text, k int DEFAULT 10, filters jsonb DEFAULT '{}')
RETURNS SETOF analytics.found
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before text := coalesce(current_setting('app.tenant', true), '');
    f analytics.search_filter := analytics.read_filter(filters);
BEGIN
    PERFORM analytics.check_call(k);
    PERFORM set_config('app.tenant', analytics.my_tenant(), true);
    RETURN QUERY SELECT * FROM analytics.holding(words, k, f);
    PERFORM set_config('app.tenant', before, true);
END $$;

-- Gives every view, type and function of schema analytics to ruvllm_views, and what is meant for them to the readers;
-- later migrations that add views call it again. Without the right to, views stay the owner's: their own condition on
-- the tenant then keeps tenants apart, and the owner's policy lets rows through to it.
CREATE FUNCTION memory.hand_views_over() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    command text;
    -- from PostgreSQL 16 on, who made a role is its member and still may not become it
    becomes text := CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END;
    joins boolean := NOT pg_has_role(current_user, 'ruvllm_views', becomes);
BEGIN
    REVOKE ALL ON ALL FUNCTIONS IN SCHEMA analytics FROM PUBLIC;
    GRANT SELECT ON ALL TABLES IN SCHEMA analytics TO ruvllm_reader;
    GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA analytics TO ruvllm_views;
    GRANT EXECUTE ON FUNCTION analytics.my_tenant, analytics.memory_search, analytics.memory_search_like,
        analytics.memory_search_text TO ruvllm_reader;
    BEGIN
        IF joins THEN
            EXECUTE format('GRANT ruvllm_views TO %I', current_user);
        END IF;
        GRANT CREATE ON SCHEMA analytics TO ruvllm_views;
        FOR command IN
            SELECT format('ALTER VIEW %s OWNER TO ruvllm_views', c.oid::regclass)
            FROM pg_class AS c WHERE c.relnamespace = 'analytics'::regnamespace AND c.relkind = 'v'
            UNION ALL
            SELECT format('ALTER FUNCTION %s OWNER TO ruvllm_views', p.oid::regprocedure)
            FROM pg_proc AS p WHERE p.pronamespace = 'analytics'::regnamespace
        LOOP
            EXECUTE command;
        END LOOP;
        REVOKE CREATE ON SCHEMA analytics FROM ruvllm_views;
        IF joins THEN
            EXECUTE format('REVOKE ruvllm_views FROM %I', current_user);
        END IF;
    EXCEPTION WHEN insufficient_privilege THEN
        RAISE WARNING 'the views of schema analytics stay %''s: it may not give them to ruvllm_views', current_user;
        FOR command IN
            SELECT format('CREATE POLICY analyst_of_owner ON %I.%I FOR SELECT TO %I '
                          'USING (tenant = (SELECT analytics.my_tenant()))', schemaname, tablename, current_user)
            FROM pg_policies AS p WHERE policyname = 'analyst' AND NOT EXISTS (
                SELECT FROM pg_policies AS o WHERE o.policyname = 'analyst_of_owner'
                AND (o.schemaname, o.tablename) = (p.schemaname, p.tablename))
        LOOP
            EXECUTE command;
        END LOOP;
    END;
END $$;
REVOKE ALL ON FUNCTION memory.hand_views_over FROM PUBLIC;
SELECT memory.hand_views_over();
