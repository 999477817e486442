#!/usr/bin/env bash
# Writes the locks in requirements/ anew with the hashes of every file that the index offers. Called by `make lock`.
#
# Pins that still satisfy pyproject.toml stay; UPGRADE=--upgrade takes the newest, UPGRADE="--upgrade-package NAME" one.
# uv resolves (it can leave packages out of a resolution), pip installs. No index's address gets into a file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"${PYTHON:-python3}" -m venv "$scratch"
"$scratch/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.9

compile() { # compile OUTPUT INPUT… [OPTION…]
    local output=$1
    shift
    echo "locking $output"
    # shellcheck disable=SC2086  # UPGRADE holds options
    "$scratch/bin/uv" pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --custom-compile-command "make lock" ${UPGRADE:-} "$@" --output-file "requirements/$output"
}

compile lock.txt pyproject.toml requirements/lock.in --extra dev --extra demo --extra ha --excludes requirements/unlocked.txt
compile build.txt requirements/build.in
compile llama.txt requirements/llama.in --no-deps
compile vllm.txt requirements/vllm.in --excludes requirements/vllm-unlocked.txt
