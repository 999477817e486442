#!/bin/sh
# Random passwords, as files that only you and the containers' user (10001) can read. What is there stays: a second run
# changes nothing. FOLDER=… writes them elsewhere.
set -eu
folder=${FOLDER:-$(dirname "$0")/secrets}
mkdir -p "$folder"
chmod 700 "$folder"
umask 077

random() { head -c 24 /dev/urandom | base64 | tr '+/' '-_'; }

keep() { # keep NAME CONTENT
    if [ ! -s "$folder/$1" ]; then
        printf '%s' "$2" >"$folder/$1"
        chmod 644 "$folder/$1" # the folder is closed; inside of a container another user reads it
        echo "made $folder/$1"
    fi
}

keep postgres_password "$(random)"
postgres=$(cat "$folder/postgres_password")
keep database_url "postgresql://ruvllm:$postgres@postgres:5432/ruvllm"
keep prefect_database_url "postgresql+asyncpg://ruvllm:$postgres@postgres:5432/prefect"
keep prefect_auth "ruvllm:$(random)"
keep mlflow_database_url "postgresql+psycopg://ruvllm:$postgres@postgres:5432/mlflow"
keep mlflow_session_key "$(random)"
keep mlflow_admin_password "$(random)"
admin=$(cat "$folder/mlflow_admin_password")
keep mlflow_auth "[mlflow]
default_permission = READ
database_uri = postgresql+psycopg://ruvllm:$postgres@postgres:5432/mlflow
admin_username = admin
admin_password = $admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"
keep mlflow_admin "[admin]
username = \"admin\"
password = \"$admin\"
"
keep mlflow_identities "$(for role in trainer promoter reviewer; do
    printf '[%s]\nusername = "ruvllm-%s"\npassword = "%s"\n\n' "$role" "$role" "$(random)"
done)
"
keep grafana_password "$(random)"
for empty in hub_token analyst_password; do # yours to fill: a hub's token, and what `ruvllm db analyst add grafana` made
    [ -e "$folder/$empty" ] || : >"$folder/$empty"
done
