-- ruvllm_app: rows, no DDL. Every connection of ours does SET ROLE ruvllm_app; only migrations run as the owner.

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'ruvllm_app') THEN
        BEGIN
            CREATE ROLE ruvllm_app NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- roles are the whole server's: another database's migration made it at the same moment
        END;
    END IF;
    IF NOT pg_has_role(current_user, 'ruvllm_app', 'MEMBER') THEN
        EXECUTE format('GRANT ruvllm_app TO %I', current_user);
    END IF;
END $$;

GRANT USAGE ON SCHEMA memory, serving, learning, registry TO ruvllm_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA memory, serving, learning TO ruvllm_app;
GRANT SELECT, INSERT ON registry.ledger TO ruvllm_app;
REVOKE INSERT, UPDATE, DELETE ON memory.encoder FROM ruvllm_app;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA memory, serving, learning, registry TO ruvllm_app;
