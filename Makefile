# Two commands on a fresh machine with Python 3.11+, make and a package index: `make demo`, `make test`.
# Everything is installed below this folder (.tools, .venv, .engines, .clients); `make clean` removes it.
SHELL := /bin/bash
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .tools/bin/uv)
RUN := .venv/bin/

.PHONY: help demo test test-engines test-focus check bench lock format clean
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.tools/bin/uv:
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9'

# Two environments' worth of stamps in one folder: `demo` needs the runtime only, `dev` everything.
.venv/.runtime: requirements.lock pyproject.toml | $(filter .tools/bin/uv,$(UV))
	@test -x .venv/bin/python || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip install --quiet --python .venv/bin/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python .venv/bin/python --no-deps --editable .
	@touch $@
.venv/.dev: requirements-dev.lock .venv/.runtime
	$(UV) pip install --quiet --python .venv/bin/python --require-hashes -r requirements-dev.lock
	@touch $@

demo: .venv/.runtime ## start the gateway, send real traffic through it, show where it went and what it cost
	$(RUN)weighbridge demo $(ARGS)

test: .venv/.dev ## everything but the vLLM engines: real Postgres, Redis protocol, llama.cpp, SDKs
	$(RUN)python -m tests.run $(ARGS)

test-engines: .venv/.dev ## the gateway before a real vLLM on CPU, single and tensor-parallel
	$(RUN)python -m tests.run --engines $(ARGS)

test-focus: .venv/.dev ## the FOCUS export before the official validator; needs a Python 3.12 or newer
	$(RUN)python -m tests.focus.validate

check: .venv/.dev ## format, lint, types, layers
	$(RUN)ruff format --check gateway tests migrations selfhost
	$(RUN)ruff check gateway tests migrations selfhost
	$(RUN)mypy
	$(RUN)lint-imports --no-logo

format: .venv/.dev ## rewrite the formatting
	$(RUN)ruff format gateway tests migrations selfhost
	$(RUN)ruff check --fix gateway tests migrations selfhost

bench: .venv/.dev ## CPU per request and per chunk beside LiteLLM and a bare pass-through
	$(RUN)weighbridge bench $(ARGS)

LOCK := pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header
lock: | $(filter .tools/bin/uv,$(UV)) ## resolve again and write the hashes (no index address is recorded)
	$(UV) $(LOCK) pyproject.toml --extra demo --extra reports -o requirements.lock
	$(UV) $(LOCK) pyproject.toml --all-extras -c requirements.lock -o requirements-dev.lock

clean: ## remove everything that was installed or built here
	rm -rf .venv .tools .engines .clients build dist .weighbridge
