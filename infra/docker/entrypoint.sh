#!/bin/sh
# Secrets come as files: for each variable NAME_FILE the content of that file becomes NAME, then the command runs.
# What the command prints, and what `docker inspect` shows, holds no secret.
set -eu
for pair in $(env | grep -E '^[A-Z][A-Z0-9_]*_FILE=' || true); do
    name=${pair%%=*}
    file=${pair#*=}
    target=${name%_FILE}
    case $name in
    RUVLLM_*_FILE) continue ;; # a setting of ours that is a file's name
    esac
    if [ ! -r "$file" ]; then
        echo "entrypoint: $name: cannot read $file; mount the secret there, or unset $name" >&2
        exit 1
    fi
    export "$target=$(cat "$file")"
    unset "$name"
done
exec "$@"
