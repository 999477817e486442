# The doors. Set-up runs by itself before whatever needs it and starts at once where nothing changed.
#
#   PYTHON=python3.12            interpreter (3.11 or newer)
#   TORCH= TORCH_INDEX=          another build of torch: a requirement, an index
#   GEMMA=no                     leave out Gemma 3 270M, the second model of the packaged ladder
#   CYCLE_FLAGS= TEST_FLAGS=     appended to `ruvllm cycle` and to pytest
#   UPGRADE=--upgrade            newest versions for `make lock`
#   BENCH_DIR= BENCH_FLAGS=      where the bench targets keep what they make, and what is added to their command
#   DATA=FOLDER                  public data for bench-router and bench-attention

SHELL := bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?=
TORCH ?=
TORCH_INDEX ?=
UPGRADE ?=
GEMMA ?= yes
CYCLE_FLAGS ?=
TEST_FLAGS ?=
BENCH_DIR ?= .ruvllm/bench
BENCH_FLAGS ?=
DATA ?=
export PYTHON TORCH TORCH_INDEX UPGRADE

# Everything stays local and quiet; an explicit setting of the caller's wins.
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false
export DO_NOT_TRACK ?= true
export MLFLOW_DISABLE_TELEMETRY ?= true
export DVC_NO_ANALYTICS ?= 1
export ORT_DISABLE_TELEMETRY ?= 1

gemma_flag := $(if $(filter no,$(GEMMA)),,--accept-gemma-terms)

.PHONY: help setup cycle test test-vllm check up down status lock audit clean
.PHONY: bench bench-memory bench-router bench-attention bench-latency bench-gateway bench-conformance bench-poisoning bench-week bench-night
.PHONY: bench-kills bench-overhead bench-fan-out screens

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make .venv with everything in it (about 7 minutes once, 5 of them compile llama.cpp)
	@infra/setup.sh

cycle: setup ## run one whole learning cycle; run it again for the next night
	@$(if $(gemma_flag),echo 'uses Gemma 3 270M under the Gemma Terms of Use (ai.google.dev/gemma/terms); "make cycle GEMMA=no" leaves it out')
	@.venv/bin/ruvllm cycle $(gemma_flag) --approve-as demo $(CYCLE_FLAGS)

test: setup ## run the whole test suite
	@.venv/bin/python -m pytest $(TEST_FLAGS)

test-vllm: setup ## test the vLLM backend on a real vLLM server, in .venv-vllm (3.4 GB, made once); not part of `make test`
	@infra/vllm.sh
	@.venv/bin/python -m pytest -m vllm tests/vllm $(TEST_FLAGS)

check: setup ## format, lint, types, tests
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/python -m pytest $(TEST_FLAGS)

up: setup ## keep Postgres, Prefect, MLflow, the flows and the gateway running
	@.venv/bin/ruvllm up

down: setup ## stop them
	@.venv/bin/ruvllm down

status: setup ## say which of them run, and where
	@.venv/bin/ruvllm status

bench: setup ## measure one request of this checkout (after `make cycle`); writes docs/first-light.md
	@.venv/bin/python -m pytest -m benchmark tests/benchmarks/test_first_light.py $(TEST_FLAGS)

bench-memory: setup ## measure memory beside other libraries; BENCH_FLAGS='--n 1000000', results and indexes in BENCH_DIR
	@.venv/bin/python -m pytest -m benchmark --keep $(BENCH_DIR) $(BENCH_FLAGS) \
	  $(addprefix tests/benchmarks/memory/,test_speed.py test_writes.py test_recall.py test_table72.py)
	@.venv/bin/python -m tests.benchmarks.memory.report $(BENCH_DIR)/results docs/memory.md

bench-router: setup ## measure routing on public outcome sets: DATA=FOLDER of them; writes docs/router-outcomes.md and .png
	@$(if $(DATA),,echo 'make bench-router: DATA is empty, want the folder that holds router/NAME.jsonl.gz' >&2; exit 1)
	@.venv/bin/python -m pytest -m benchmark --data $(DATA) --keep $(BENCH_DIR)/router $(BENCH_FLAGS) \
	  $(addprefix tests/benchmarks/router/,test_outcomes.py test_transfer.py test_compression.py test_objectives.py test_decision.py test_offpolicy.py test_training.py test_online.py test_continual.py)
	@.venv/bin/python -m tests.benchmarks.router.page $(BENCH_DIR)/router/results docs/router-outcomes.md

bench-attention: setup ## measure attention on public sets: DATA=FOLDER of them; writes docs/attention.md
	@$(if $(DATA),,echo 'make bench-attention: DATA is empty, want the folder that holds the sets' >&2; exit 1)
	@.venv/bin/python -m pytest -m benchmark --data $(DATA) --keep $(BENCH_DIR)/attention $(BENCH_FLAGS) tests/benchmarks/attention
	@.venv/bin/python -m tests.benchmarks.attention.page $(BENCH_DIR)/attention/results docs/attention.md

bench-latency: setup ## measure every tier's shape with blank weights, hours in cells; writes docs/latency.md
	@.venv/bin/python -m pytest -m benchmark -s --keep $(BENCH_DIR)/latency $(BENCH_FLAGS) tests/benchmarks/inference/test_latency.py
	@.venv/bin/python -m pytest -m benchmark -s --keep $(BENCH_DIR)/latency $(BENCH_FLAGS) tests/benchmarks/inference/test_whole_path.py
	@.venv/bin/python -m tests.benchmarks.inference.latency_page $(BENCH_DIR)/latency docs/latency.md

bench-gateway: setup ## load, overload and hot swap of the gateway; writes docs/gateway.md
	@.venv/bin/python -m tests.benchmarks.serving.load --keep $(BENCH_DIR)/gateway $(BENCH_FLAGS)
	@.venv/bin/python -m tests.benchmarks.serving.gateway_page $(BENCH_DIR)/gateway/results docs/gateway.md

bench-poisoning: setup ## two published attacks on memory, with and without its provenance; writes docs/poisoning.md
	@.venv/bin/python -m tests.benchmarks.serving.poisoning --keep $(BENCH_DIR)/poisoning $(BENCH_FLAGS)
	@.venv/bin/python -m tests.benchmarks.serving.poisoning --page $(BENCH_DIR)/poisoning/results docs/poisoning.md

bench-conformance: setup ## every operation of the gateway against its own document (schemathesis); writes docs/conformance.md
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check 'schemathesis>=4.30,<5'
	@.venv/bin/python -m tests.benchmarks.serving.schemathesis_run --keep $(BENCH_DIR)/conformance $(BENCH_FLAGS)
	@.venv/bin/python -m tests.benchmarks.serving.schemathesis_run --keep $(BENCH_DIR)/conformance --page docs/conformance.md

bench-week: setup ## a week of seven nights, and the router after it (about half an hour); writes docs/week.md, docs/router-week.md
	@.venv/bin/python -m tests.benchmarks.night.week $(BENCH_DIR)/week docs/week.md
	@.venv/bin/python -m tests.benchmarks.router.parts $(BENCH_DIR)/week docs/router-week.md

bench-night: setup ## views at 1,000,000 answers, the night's page, promoters; writes docs/analysts-speed.md
	@.venv/bin/python -m pytest -m benchmark --n 1000000 --keep $(BENCH_DIR)/night $(BENCH_FLAGS) tests/benchmarks/night/test_views.py
	@.venv/bin/python -m pytest -m benchmark --n 100000 --keep $(BENCH_DIR)/night $(BENCH_FLAGS) \
	  $(addprefix tests/benchmarks/night/,test_report_speed.py test_promoters.py)
	@.venv/bin/python -m tests.benchmarks.night.page $(BENCH_DIR)/night/results docs/analysts-speed.md

bench-kills: setup ## kill nights at their steps and compare; goes on where it was stopped; writes docs/night-kills.md
	@.venv/bin/python -m tests.benchmarks.night.kills $(BENCH_DIR)/kills docs/night-kills.md $(BENCH_FLAGS)

bench-overhead: setup ## what a night costs beside its models; writes docs/night-overhead.md
	@.venv/bin/python -m tests.benchmarks.night.overhead $(BENCH_DIR)/overhead docs/night-overhead.md $(BENCH_FLAGS)

bench-fan-out: setup ## one Dask worker, two, and one with two lanes; writes docs/fan-out.md
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check 'prefect-dask>=0.3.7,<0.4'
	@.venv/bin/python -m tests.benchmarks.night.fan_out $(BENCH_DIR)/fan-out docs/fan-out.md $(BENCH_FLAGS)

screens: setup ## pictures of the last night of bench-week (extra `browser`, a Chromium)
	@.venv/bin/python -m tests.benchmarks.night.screens $(BENCH_DIR)/week docs

audit: ## known vulnerabilities of what is pinned, and a bill of materials (.ruvllm/audit); ends with 3 where the index is out of reach
	@infra/audit.sh

lock: ## write requirements/*.txt anew, with hashes
	@infra/lock.sh

clean: ## remove the environment and caches; the state in .ruvllm stays
	@rm -rf .venv .venv.lock .venv-vllm .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
