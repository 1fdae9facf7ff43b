# Everything here sets itself up: a bare Python 3.10 or newer is enough. `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
PYTEST_FLAGS ?=
DEVICE ?= cpu
NAME ?=
PAPERS ?= grokking decoupling early_dropout

BIN := $(VENV)/bin
READY := $(VENV)/.ready
FRAMEWORKS := $(VENV)/.ready-frameworks
DOCS := $(VENV)/.ready-docs
SCORES := $(VENV)/.ready-scores
RELEASE := $(VENV)/.ready-release
# DeepSpeed changes what Accelerate does, so it has an environment of its own.
ENGINES := $(VENV)/engines
ENGINES_READY := $(VENV)/.ready-engines
# The oldest pluggy and accelerate, which a test puts before those of the environment.
OLDEST := $(VENV)/oldest
PIP := $(BIN)/python -m pip --disable-pip-version-check
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 10))'

# The machine is small or the models are: one thread per process is fastest, and repeatable.
export OMP_NUM_THREADS ?= 1
# No test opens a window.
test soak matrix gpu frameworks engines: export MPLBACKEND := Agg

.DEFAULT_GOAL := help
.PHONY: help demo test lint matrix gpu soak frameworks engines bench scores papers compat docs release-check setup clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: $(READY) ## one loop with and without regularizers, on real data: a table and a picture
	$(BIN)/python examples/demo.py

# Two at a time, a file each: the tests of one file share process groups.
test: lint ## lint, types and all tests but the slow ones
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_FLAGS)

lint: $(READY) ## ruff, mypy and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# `make matrix DEVICE=cuda` trains on a GPU. Nothing else that is tested here sees one.
matrix: $(READY) ## every plugin in every regime against one float64 reference, into docs/matrix.md
	REGPLUG_PAGES=1 REGPLUG_GPU=$(if $(filter-out cpu,$(DEVICE)),1) REGPLUG_DEVICE=$(DEVICE) \
	    $(BIN)/python -m pytest -m matrix tests/matrix $(PYTEST_FLAGS)

gpu: $(READY) ## the tests that need a GPU; they are skipped where there is none
	REGPLUG_GPU=1 $(BIN)/python -m pytest tests/gpu $(PYTEST_FLAGS)

soak: $(READY) ## the slow tests that `make test` leaves out
	$(BIN)/pylint regplug plugins/regplug_builtins # no ten lines twice: two minutes
	$(BIN)/python -m pytest -m "slow or soak" $(PYTEST_FLAGS)

frameworks: $(FRAMEWORKS) ## trainers of other packages, the real ones
	$(BIN)/python -m pytest -m frameworks $(PYTEST_FLAGS)

engines: $(ENGINES_READY) ## DeepSpeed's ZeRO on two processes of a CPU: the real one
	$(ENGINES)/bin/python -m pytest tests/engines -m engines $(PYTEST_FLAGS)

# Gigabytes and minutes for each environment: `make compat ONLY="oldest newest"` tries some alone.
compat: $(READY) ## every version that regplug takes, each in an environment of its own: a table
	$(BIN)/python tests/compat/try_all.py $(ONLY)

bench: $(READY) ## what a step costs, into docs/performance.md
	$(BIN)/python tests/benchmarks/run.py
	$(BIN)/python tests/helpers/generated.py docs/performance.md "make bench" build/benchmarks/benchmarks.md

# `make papers PAPERS=grokking` tries one alone.
papers: $(READY) ## findings of papers tried again with regplug, into docs/papers.md: minutes
	$(BIN)/python examples/papers/run.py $(PAPERS) --out build/papers --page docs/papers.md

# `make scores NAME=Huber` examines those whose name has it.
scores: $(SCORES) ## public regularizers of other libraries sit the exam, into docs/scores.md
	$(BIN)/python -m tests.scores.run $(NAME)

# Each reference must lead somewhere (-n), and a warning is an error (-W).
docs: $(DOCS) ## the site, into build/site: strictly, without a network
	$(BIN)/python -m sphinx -q -E -n -W --keep-going -b html docs build/site
	@echo "open build/site/index.html"

release-check: $(RELEASE) ## what would be released: built, checked, installed, tried
	$(BIN)/python tests/helpers/release.py

setup: $(READY) ## only make the environment (in .venv)

clean: ## remove the environment and everything that tools and builds left
	rm -rf $(VENV) .compat build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An editable install keeps the entry points it was made with, so a changed pyproject installs anew.
$(READY): pyproject.toml constraints.txt tests/compat/environments.toml
	@rm -f $(READY) $(FRAMEWORKS) $(DOCS) $(SCORES) $(RELEASE) $(ENGINES_READY)
	@if ! $(BIN)/python $(NEW_ENOUGH) 2>/dev/null; then \
	    if ! $(PYTHON) $(NEW_ENOUGH) 2>/dev/null; then \
	        echo "regplug needs Python 3.10 or newer, but '$(PYTHON) --version' says:" \
	            "$$($(PYTHON) --version 2>&1 | head -n 1)" >&2; \
	        echo "Name another one, as in: make $(or $(MAKECMDGOALS),help) PYTHON=python3.12" >&2; \
	        exit 1; \
	    fi; \
	    echo "$(PYTHON) -m venv $(VENV)"; \
	    $(PYTHON) -m venv --clear $(VENV); \
	fi
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@rm -rf $(OLDEST)
	$(PIP) install --quiet --no-deps --target $(OLDEST) $$($(BIN)/python tests/compat/environments.py oldest-hooks)
	@touch $(READY)

$(FRAMEWORKS): $(READY)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,frameworks]'
	@touch $(FRAMEWORKS)

$(DOCS): $(READY)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	@touch $(DOCS)

$(SCORES): $(READY)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,scores]'
	@touch $(SCORES)

$(RELEASE): $(READY)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev,release]'
	@touch $(RELEASE)

# Without its operators, which want a compiler and are not used here; without isolation, since its
# setup.py asks the torch that is installed. Accelerate wants transformers for it.
$(ENGINES_READY): $(READY)
	$(BIN)/python -m venv --clear $(ENGINES)
	$(ENGINES)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt \
	    setuptools wheel pytest pytest-xdist 'tomli; python_version < "3.11"' transformers --editable .
	DS_BUILD_OPS=0 $(ENGINES)/bin/python -m pip --disable-pip-version-check install --quiet \
	    --constraint constraints.txt --no-build-isolation deepspeed
	@touch $(ENGINES_READY)
