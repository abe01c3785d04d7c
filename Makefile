# Needs python3 (3.11 to 3.13) with venv, make and git; everything else is put into .uv and .venv here.

PYTHON ?= python3
# Where it is set each of the service's processes compiles everything again, and a start takes nearly three times as long.
unexport PYTHONDONTWRITEBYTECODE
# What vLLM runs on: cuda where an NVIDIA GPU answers, cpu elsewhere. `make setup BACKEND=cpu` overrides.
ifndef BACKEND
BACKEND := $(shell nvidia-smi -L 2>/dev/null | grep -q GPU && echo cuda || echo cpu)
endif

TORCH := torch==2.13.0+cpu
UV    := UV_PYTHON_DOWNLOADS=never .uv/bin/uv --quiet
PIP   := $(UV) pip install --python .venv/bin/python --no-deps
RUN   := .venv/bin/python
STAMP := .venv/.stoker-$(BACKEND)
CODE  := stoker webapi tasks models tests benchmarks

.DEFAULT_GOAL := help
.PHONY: help setup demo test chaos fuzz check audit format docs screens bench lock clean

help: ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

setup: $(STAMP) ## Put everything into .venv, real vLLM for this machine included

demo: setup ## See real answers go the whole way: HTTP, database, batch, vLLM, polling, webhook
	@$(RUN) -m stoker.demo

test: setup ## Run the whole suite; more of pytest's arguments in ARGS="-k jobs"
	@# Root on Debian gets the browser that tests of the console need; anybody else is told what is missing, here and by those tests.
	@sh requirements/programs.sh
	@env -u BASE_URL $(RUN) -m pytest $(ARGS)

fuzz: setup ## Send what the OpenAPI document allows and forbids, so many examples a call: EXAMPLES=200 SEED=1
	@env -u BASE_URL EXAMPLES=$(or $(EXAMPLES),200) SEED=$(or $(SEED),1) $(RUN) -m pytest tests/fuzz $(ARGS)

chaos: setup ## Break a real service for minutes and count what was lost: SEED=1 MINUTES=5, on SQLite with ARGS=--sqlite
	@$(RUN) -m tests.chaos --seed $(or $(SEED),1) --minutes $(or $(MINUTES),5) $(ARGS)

check: setup ## Check format, lint, types and who imports whom
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

audit: setup ## Look up whether a pinned package has a known vulnerability
	@$(RUN) requirements/audit.py

format: setup ## Format the code and mend what the linter can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

docs: setup ## Write what is generated in docs/: pages from the code, the picture from benchmarks/results
	@$(RUN) -m stoker.cli_reference docs
	@$(RUN) -m webapi.api_reference docs
	@$(RUN) -m stoker.reference docs
	@$(RUN) -m benchmarks.picture

screens: setup ## Take the pictures of the console in docs/images again
	@env -u BASE_URL $(RUN) -m tests.browser.screens $(ARGS)

bench: setup ## Run the benchmarks; one of them by ARGS="overhead"
	@$(RUN) -m benchmarks $(ARGS)

lock: .uv/bin/uv ## Resolve the versions again: requirements/cpu.txt and cuda.txt (ARGS=--upgrade for newer ones)
	sh requirements/lock.sh cpu $(ARGS)
	sh requirements/lock.sh cuda $(ARGS)

clean: ## Remove the environments and caches (not var/, which holds data)
	rm -rf .venv .uv build dist .pytest_cache .mypy_cache .ruff_cache .schemathesis .import_linter_cache .hypothesis
	find $(wildcard $(CODE)) -name __pycache__ -type d -prune -exec rm -rf {} +

.uv/bin/uv:
	@sh requirements/preflight.sh $(PYTHON) $(BACKEND)
	@rm -rf .uv
	@$(PYTHON) -m venv .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv==0.13.*'

# A stamp that is there but old: the environment is brought up to date in place, under the feet of running
# programs. No stamp (new, half made, or made for the other backend): it is made anew.
$(STAMP): pyproject.toml requirements/$(BACKEND).txt .uv/bin/uv
	@echo "setting up .venv for $(BACKEND) (the first time this downloads 1 to 4 GB)"
	@test -e $(STAMP) || $(UV) venv --clear --python "$$(command -v $(PYTHON))" .venv
	@test $(BACKEND) != cpu || $(PIP) $$(sh requirements/torch_from.sh '$(TORCH)') '$(TORCH)'
	@$(PIP) --require-hashes -r requirements/$(BACKEND).txt
	@$(PIP) --no-build-isolation --editable .
	@touch $(STAMP)
