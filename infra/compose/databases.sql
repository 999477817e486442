-- Beside ruvllm's own: a database each for the Prefect and the MLflow server, which never read ours.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
\connect prefect
CREATE EXTENSION IF NOT EXISTS pg_trgm;
\connect ruvllm
CREATE EXTENSION IF NOT EXISTS vector;
