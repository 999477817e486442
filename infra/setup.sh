#!/usr/bin/env bash
# Sets up .venv: torch, the locked packages, llama-cpp-python (compiled once, the wheel kept) and this project.
#
# Called by `make setup`. Every step leaves a stamp with the hash of what it was made from: a second run starts at once,
# a killed one resumes. Writes to .venv, to the wheel cache and to pip's cache, nowhere else.
#   PYTHON       interpreter, 3.11 or newer (default: the first that works of python3.11, python3, python3.12, …)
#   TORCH        requirement of torch (default: the version in requirements/torch.txt, its CPU build where offered)
#   TORCH_INDEX  index to take torch from (default: pip's own)
#   CMAKE_ARGS   options of llama.cpp's build (default: -DLLAVA_BUILD=OFF, the image encoder is not used)
#   RUVLLM_WHEEL_CACHE  where compiled wheels are kept (default: ${XDG_CACHE_HOME:-~/.cache}/ruvllm/wheels)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly venv=$PWD/.venv
readonly stamps=$venv/setup
readonly python=$venv/bin/python
# --no-compile: bytecode is written at first import, and only for what is imported.
readonly pip_install=("$python" -m pip install --no-compile)
readonly wheel_cache=${RUVLLM_WHEEL_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/ruvllm/wheels}
export CMAKE_ARGS=${CMAKE_ARGS--DLLAVA_BUILD=OFF}
readonly headers=$PWD/infra/llama # of ours, included before llama.cpp's sources: they say why
readonly compile_flags="-include ruvllm_amx.h"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
unset PYTHONPATH PYTHONHOME PIP_REQUIRE_VIRTUALENV

say() { printf '%s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}
digest() { sha256sum | cut -c1-16; }

# --- what the machine has to have ---------------------------------------------------------------------------------

chosen=""

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

choose_python() { # sets `chosen`: the interpreter that .venv is made with
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        usable "$PYTHON" || fail "PYTHON=$PYTHON does not run or is older than 3.11; apt-get install python3"
        chosen=$PYTHON
        return
    fi
    for candidate in python3.11 python3 python3.12 python3.13; do
        if usable "$candidate"; then
            chosen=$candidate
            return
        fi
    done
    fail "no Python of 3.11 or newer on PATH; apt-get install python3 python3-venv, or name one with PYTHON="
}

need_venv_module() {
    "$chosen" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$chosen cannot make virtual environments; apt-get install python3-venv"
}

need_compiler() {
    local missing=()
    command -v "${CC:-cc}" >/dev/null || missing+=(gcc)
    command -v "${CXX:-c++}" >/dev/null || missing+=(g++)
    [[ ${#missing[@]} -eq 0 ]] ||
        fail "llama-cpp-python is compiled from source, ${missing[*]} missing; apt-get install ${missing[*]}"
}

# --- running a long command: quiet, with a line that says how far it is ---------------------------------------------

children=() # process groups to end with this script

spawn() { # spawn LOG COMMAND…: in a process group of its own (a plain background job would ignore Ctrl-C); sets `spawned`
    local log=$1
    shift
    set -m
    "$@" >"$log" 2>&1 </dev/null &
    spawned=$!
    set +m
    children+=("$spawned")
}

end_children() {
    local child
    for child in "${children[@]}"; do kill -TERM -- "-$child" 2>/dev/null || true; done
}

progress_of() { # progress_of LOG: how far its command is, in the command's own count
    local built
    built=$(grep -oE '\[[0-9]+/[0-9]+\]' "$1" 2>/dev/null | tail -n 1) || true
    if [[ -n $built ]]; then
        printf '%s files compiled, ' "$built"
    elif built=$(grep -cE '^ *Collecting ' "$1" 2>/dev/null); then
        printf '%s packages found, ' "$built"
    fi
}

report() {
    if [[ -t 1 ]]; then
        printf '\r\033[K  %s' "$*"
    else
        say "  $*"
    fi
}

follow() { # follow PID TITLE LOG: reports until PID ends; returns its status
    local pid=$1 title=$2 log=$3 begun=$SECONDS shown=$SECONDS every=15
    if [[ -t 1 ]]; then every=1; fi
    while kill -0 "$pid" 2>/dev/null; do
        if ((SECONDS - shown >= every)); then
            shown=$SECONDS
            report "$title: $(progress_of "$log")$((SECONDS - begun)) s"
        fi
        sleep 0.2
    done
    if [[ -t 1 ]]; then printf '\r\033[K'; fi
    wait "$pid"
}

show_failure() { # show_failure TITLE LOG
    tail -n 25 "$2" >&2
    if grep -q 'Python\.h: No such file' "$2"; then
        fail "$1: the headers of $chosen are missing; apt-get install python3-dev"
    fi
    fail "$1 failed; the whole log is $2"
}

run() { # run TITLE LOG COMMAND…
    spawn "${@:2}"
    follow "$spawned" "$1" "$2" || show_failure "$1" "$2"
}

# --- steps ----------------------------------------------------------------------------------------------------------

done_already() { [[ $(cat "$stamps/$1" 2>/dev/null) == "$2" ]]; }

stamp() { # written whole or not at all
    printf '%s\n' "$2" >"$stamps/$1.new"
    mv "$stamps/$1.new" "$stamps/$1"
}

step() { # step NAME HASH TITLE FUNCTION: FUNCTION, unless it was done for HASH
    local name=$1 hash=$2 title=$3 begun=$SECONDS
    done_already "$name" "$hash" && return
    say "$title"
    "$4"
    stamp "$name" "$hash"
    say "  done in $((SECONDS - begun)) s"
}

make_venv() {
    "$chosen" -m venv --clear .venv || fail "could not make .venv with $chosen"
    mkdir -p "$stamps"
}

pinned_versions() { # the lock as constraints, without hashes, for the one install that resolves
    sed -nE 's/^([A-Za-z0-9._-]+==[^\\]*[^\\ ]) *\\?$/\1/p' requirements/lock.txt
}

install_torch() {
    local pin log=$stamps/torch.log index=()
    pin=$(grep -v '^#' requirements/torch.txt)
    if [[ -n ${TORCH_INDEX:-} ]]; then index=(--index-url "$TORCH_INDEX"); fi
    "$python" -m pip uninstall --quiet --yes torch 2>/dev/null || true
    if [[ -z ${TORCH:-} ]]; then
        spawn "$log" "${pip_install[@]}" --no-deps "${index[@]}" "$pin+cpu"
        if follow "$spawned" torch "$log"; then return; fi
        say "  no CPU build of $pin is offered here: taking the index's own build, on x86-64 usually CUDA's, several GB"
    fi
    pinned_versions >"$stamps/constraints.txt"
    run torch "$log" "${pip_install[@]}" --constraint "$stamps/constraints.txt" "${index[@]}" "${TORCH:-$pin}"
}

install_lock() {
    run packages "$stamps/lock.log" "${pip_install[@]}" --require-hashes --no-deps --requirement requirements/lock.txt
}

install_llama() {
    local wheel
    if [[ -n $builder ]]; then
        follow "$builder" llama-cpp-python "$build_log" || show_failure llama-cpp-python "$build_log"
        builder=""
    fi
    wheel=$(cached_wheel) || fail "the compiled llama-cpp-python is not in $wheel_cache/$wheel_key; run make setup again"
    run llama-cpp-python "$stamps/llama.log" "${pip_install[@]}" --no-deps --no-index --force-reinstall "$wheel"
}

install_project() {
    run ruvllm "$stamps/project.log" \
        "${pip_install[@]}" --no-deps --no-index --no-build-isolation --editable .
}

# `pip check` cannot be clean: two packages of the lock ask for what we leave out (requirements/unlocked.txt).
check_imports() {
    "$python" -m ruvllm.doctor --dependencies || fail "some packages do not work; their lines above say how to mend it"
}

# --- the compiled wheel ---------------------------------------------------------------------------------------------

# GGML compiles for the processor it runs on, so the key holds its flags; the wheel itself is py3-none.
wheel_key=$(
    {
        grep -v '^ *#' requirements/llama.txt
        uname -m
        grep -m1 -E '^(flags|Features)' /proc/cpuinfo | tr ' ' '\n' | sort || true
        getconf GNU_LIBC_VERSION || true
        printf '%s\n' "$CMAKE_ARGS" "$compile_flags" "${CXXFLAGS:-}"
        cat "$headers"/*.h || true # where it is missing the build says so
    } 2>/dev/null | digest
)
builder=""
build_log=""

cached_wheel() { # the wheel's path, where it is there and whole
    local found
    found=$(compgen -G "$wheel_cache/$wheel_key/*.whl" | head -n 1) || return 1
    "$chosen" -m zipfile --test "$found" >/dev/null 2>&1 || return 1
    printf '%s\n' "$found"
}

build_wheel() { # in a folder beside the cache's entry, renamed when whole; a second checkout waits for the first
    local scratch
    exec 8>"$wheel_cache/$wheel_key.lock"
    flock 8
    cached_wheel >/dev/null && return
    find "$wheel_cache" -maxdepth 1 -name "building-$wheel_key-*" -exec rm -rf {} +
    scratch=$(mktemp -d "$wheel_cache/building-$wheel_key-XXXXXX")
    # shellcheck disable=SC2064  # the folder as it is named now
    trap "rm -rf '$scratch'" EXIT
    "$chosen" -m venv "$scratch/venv"
    "$scratch/venv/bin/python" -m pip install --require-hashes --no-deps --requirement requirements/build.txt
    # --no-cache-dir: pip's own cache of built wheels does not know which processor they are for.
    CPATH=$headers${CPATH:+:$CPATH} CXXFLAGS="$compile_flags ${CXXFLAGS:-}" \
        TMPDIR=$scratch PATH=$scratch/venv/bin:$PATH "$scratch/venv/bin/python" -m pip wheel --verbose --no-cache-dir \
        --no-deps --no-build-isolation --require-hashes --wheel-dir "$scratch/wheel" --requirement requirements/llama.txt
    rm -rf "${wheel_cache:?}/$wheel_key"
    mv "$scratch/wheel" "$wheel_cache/$wheel_key"
}

check_build() { # sets `to_build`; ends here where a build is needed and cannot be
    to_build=no
    if cached_wheel >/dev/null; then return; fi
    to_build=yes
    need_compiler
    if ! mkdir -p "$wheel_cache" 2>/dev/null || [[ ! -w $wheel_cache ]]; then
        fail "cannot write to the wheel cache $wheel_cache; name another folder with RUVLLM_WHEEL_CACHE="
    fi
}

start_build() { # in the background, beside the downloads
    say "llama-cpp-python: compiling from source beside the downloads, about 5 minutes on two cores"
    say "  the wheel is kept in $wheel_cache"
    build_log=$stamps/build.log
    spawn "$build_log" build_wheel
    builder=$spawned
}

# --- main -----------------------------------------------------------------------------------------------------------

main() {
    local begun=$SECONDS packages everything venv_hash torch_hash to_build
    usable "$python" || rm -rf "$stamps" # the interpreter it was made with is gone
    if [[ -n ${PYTHON:-} || ! -d $stamps ]]; then choose_python; else chosen=$python; fi
    venv_hash=$({ "$chosen" -V && pwd; } | digest)
    torch_hash=$({ cat requirements/torch.txt && printf '%s\n' "${TORCH:-} ${TORCH_INDEX:-}"; } | digest)
    everything=$({ cat requirements/*.txt pyproject.toml infra/setup.sh && echo "$venv_hash $wheel_key $torch_hash"; } | digest)
    done_already all "$everything" && return

    trap end_children EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    exec 9>.venv.lock
    flock --nonblock 9 || { say "another set-up of this checkout is running; waiting for it" && flock 9; }
    packages=$(grep -cE '^[A-Za-z0-9._-]+==' requirements/lock.txt)
    if ! done_already venv "$venv_hash"; then
        choose_python
        need_venv_module
    fi
    to_build=no
    if ! done_already llama "$wheel_key"; then check_build; fi
    step venv "$venv_hash" "making .venv with $("$chosen" -V), $(command -v "$chosen")" make_venv
    if [[ $to_build == yes ]]; then start_build; fi
    step torch "$torch_hash" "installing torch" install_torch
    step lock "$(digest <requirements/lock.txt)" "installing $packages packages from the lock" install_lock
    step llama "$wheel_key" "installing llama-cpp-python" install_llama
    step project "$(digest <pyproject.toml)" "installing ruvllm, editable" install_project
    step check "$everything" "checking that every package loads" check_imports
    stamp all "$everything"
    say "set up in $((SECONDS - begun)) s"
}

main
