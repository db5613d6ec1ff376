# `make demo`: samples with the shipped model. `make test`: everything that a change must pass.
# Both make their own environment in .venv; a second call installs nothing. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
# The parity tests need PyTorch, on the CPU: any build will do. TORCH is what pip is asked for, options included.
TORCH ?= torch==2.13.0
# Two processes suit two cores; the tests of one file stay together, because they share compiled functions.
PYTEST_ARGS ?= -n 2 --dist loadfile
JOBS ?= 2

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# XLA's compilations are kept between runs.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0

.PHONY: help demo table table-cpu table-quick test test-fast test-slow test-full lint format typecheck mutants wheel clean
.DEFAULT_GOAL := help

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/:/' | awk -F': +' '{printf "make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if v >= (3, 11) else f"dtc-jax needs Python 3.11 or newer, and $(PYTHON) is {v[0]}.{v[1]}: set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(PIP_INSTALL) $(TORCH)
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed  ## Sample with the shipped model and draw output/demo/sheet.png
	$(BIN)/python -m dtc_jax.demo

table: $(VENV)/.installed  ## Train and measure the paper's comparisons in miniature, at 128 pixels: for a GPU (JAX for it: [gpu])
	$(BIN)/python -m dtc_jax.tables full

table-cpu: $(VENV)/.installed  ## The rows that decide the claim, at 64 pixels: hours on 4 cores
	$(BIN)/python -m dtc_jax.tables cpu

table-quick: $(VENV)/.installed  ## The same, too briefly to mean anything: minutes, to see that it works
	$(BIN)/python -m dtc_jax.tables quick

test: lint  ## Lint, check formatting and types, run the fast tests
	@# The type check has one thread: beside the first tests it costs half its time.
	+$(MAKE) --no-print-directory --jobs=2 typecheck test-fast

test-fast: $(VENV)/.installed-dev  ## The fast tests alone
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev  ## Lint, and check the formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev  ## Format, and fix what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

typecheck: $(VENV)/.installed-dev  ## Check the types
	$(BIN)/mypy

test-slow: $(VENV)/.installed-dev  ## Run the full-size and long tests too
	$(BIN)/python -m pytest -m "slow or not slow" --timeout=3600

test-full: $(VENV)/.installed-dev  ## Compare every network at its published size with PyTorch (20 GiB of memory, 35 GB of disk)
	$(BIN)/python -m pytest -s -m slow --timeout=3600 tests/parity/test_full_size.py tests/parity/test_full_size_model.py

mutants: $(VENV)/.installed-dev  ## Break the code in known ways, one at a time, and see the tests go red
	$(BIN)/python scripts/mutants.py --jobs $(JOBS)

wheel: $(BIN)/python  ## Build the wheel into dist/
	$(PIP_INSTALL) build
	$(BIN)/python -m build --wheel --outdir dist .

clean:  ## Remove the environment, caches and builds
	rm -rf $(VENV) .cache build dist .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
