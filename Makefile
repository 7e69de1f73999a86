# The commands of the project. Each installs what it needs first; `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
UV := .uv/bin/uv
RUN := .venv/bin/
ARGS ?=

.PHONY: help setup demo test quick check bench lock kafka

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: .venv/.ready ## install everything into .uv and .venv

$(UV):
	@python3 -m venv .uv 2>/dev/null || { echo "python3 -m venv failed: install Python 3.11+ with venv (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@.uv/bin/pip install --quiet --disable-pip-version-check uv

.venv/.ready: $(UV) requirements.lock pyproject.toml $(wildcard */pyproject.toml)
	@$(UV) venv --quiet --allow-existing .venv
	@$(UV) pip sync --quiet --python .venv requirements.lock
	@$(UV) pip install --quiet --python .venv --no-deps -e common -e scheduler -e worker -e client -e cli
	@touch $@

lock: $(UV) ## resolve the newest dependencies into requirements.lock
	@$(UV) lock --quiet --upgrade
	@$(UV) export --quiet --all-packages --all-groups --no-emit-workspace --no-header --no-annotate --format requirements-txt --output-file requirements.lock
	@rm -f uv.lock

kafka: .venv/.ready ## fetch Apache Kafka's jars if Java and Maven can be had
	@$(RUN)python -m sluiceway.cli.stack.kafka_jars || true

demo: .venv/.ready ## run the main job end to end: make demo ARGS="--kill -o json"
	@$(RUN)sluiceway demo $(ARGS)

test: .venv/.ready kafka ## all tests
	@$(RUN)pytest $(ARGS)

quick: .venv/.ready ## unit and property tests only
	@$(RUN)pytest tests/unit tests/property -m "not slow" $(ARGS)

check: .venv/.ready kafka ## exactly what CI runs
	@$(RUN)ruff format --check .
	@$(RUN)ruff check .
	@$(RUN)mypy
	@$(RUN)lint-imports
	@$(RUN)pytest $(ARGS)

bench: .venv/.ready kafka ## measure the delivery path against its floor
	@$(RUN)python -m benchmarks.delivery $(ARGS)
