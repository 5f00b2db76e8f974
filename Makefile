# Only make, Python 3.11 or newer and pip are needed. PYTHON names another interpreter: make env PYTHON=python3.12
PYTHON ?= python3
RUN := .venv/bin/python
# The suite starts databases and workers of its own, so more processes than cores slow it down.
TEST_PROCESSES ?= 2
BENCH ?= run
PYTEST := $(RUN) -m pytest
HEAVY := faults slow vllm trainers browser
CORE := not faults and not slow and not vllm and not trainers and not browser and not fresh

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help env env-test env-lock demo lint test test-all test-heavy $(HEAVY:%=test-%) test-smoke test-fresh resolve lock lock-upgrade bench faults clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

env: ## the environment in .venv, from requirements.lock, hashes checked
	@$(PYTHON) scripts/environment.py core

env-test: ## the same, and what the tests need, from tests/requirements.lock
	@$(PYTHON) scripts/environment.py test

env-lock:
	@$(PYTHON) scripts/environment.py lock

demo: env ## the main job, end to end, on a small real teacher: under three minutes
	@$(RUN) -m app.teachers.embedded_model fetch
	@$(RUN) -m app.demo

lint: env-test ## ruff, mypy --strict, the import contracts
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	.venv/bin/lint-imports

test: lint ## the test command: the linters and the core suite, on SQLite and on PostgreSQL
	$(PYTEST) -n $(TEST_PROCESSES) --dist worksteal -m "$(CORE)"

test-all: test resolve test-heavy test-fresh ## everything: the core, the heavy suites, a fresh checkout

test-heavy: $(HEAVY:%=test-%) ## the heavy suites one after the other, each in an environment of its own

$(HEAVY:%=test-%): test-%: env-test
	@scripts/suite.sh $*

faults: env-test ## kill, restart, cut off, fill up, with 10,000 prompts each: half an hour; makes the table of docs/reliability.md
	rm -f docs/faults.jsonl
	RETORT_FAULTS=full RETORT_FAULTS_REPORT=docs/faults.jsonl $(PYTEST) -n $(TEST_PROCESSES) --dist worksteal -m faults
	$(RUN) -m tests.faults.report docs/faults.jsonl docs/reliability.md

test-smoke: env-test ## a few tests of every kind, in a minute or so
	$(PYTEST) -m smoke

test-fresh: env-test ## git archive into an empty folder, and there what a new user does
	$(PYTEST) -m fresh

resolve: env-lock ## the extras resolve on every Python that they support (asks the resolver, installs nothing)
	@scripts/resolve.sh

lock: env-lock ## make the locks again after a change in pyproject.toml, keeping pins that still fit
	@scripts/lock.sh

lock-upgrade: env-lock ## make the locks again with the newest releases
	@scripts/lock.sh --upgrade

bench: env-test ## the benchmarks, about an hour, into docs/bench; BENCH="run slots --repeats 3" runs a part
	$(RUN) -m tests.bench $(BENCH)

clean: ## remove environments and caches; never the data folder
	rm -rf .venv .venv-* build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find app workers migrations tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
