# Everything runs in .venv, made here from any Python 3.11 to 3.13. `make` alone lists the targets.

VENV := .venv
BIN := $(VENV)/bin
TESTS ?= tests
EXTRAS ?=
# A file's tests share compiled programs, so they stay together.
PYTEST := JAX_PLATFORMS=cpu $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
SHELL := /usr/bin/env bash
# Nothing here needs PyTorch, so nobody has to read that it is missing.
export TRANSFORMERS_NO_ADVISORY_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test test-all test-tpu wheel wheel-test docs lint format typecheck clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(VENV)/.installed  ## make .venv with the library in it; EXTRAS=cuda or EXTRAS=tpu for an accelerator
	$(if $(EXTRAS),$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]")

install-dev: $(VENV)/.installed-dev  ## add ruff, mypy and the git hooks' runner

demo: $(VENV)/.installed  ## see the embedded default decode held-out prompts, a minute or two
	$(BIN)/python infer/demo.py

test: $(VENV)/.installed  ## run the tests on the CPU, but for the slow ones
	$(PYTEST) -m "not slow and not tpu_aot" $(TESTS)

test-all: $(VENV)/.installed  ## run all tests on the CPU
	$(PYTEST) -m "not tpu_aot" $(TESTS)

test-tpu: $(VENV)/.installed  ## compile for TPUs that aren't there, one program at a time; twenty minutes
	$(BIN)/python -m pip install --quiet --editable ".[test,tpu_plan]"
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m tpu_aot $(TESTS)

wheel: $(BIN)/python  ## build sdist and wheel into dist
	rm -f dist/flexdraft_jax-*
	$(BIN)/python -m pip install --quiet build
	$(BIN)/python -m build --outdir dist .

WHEEL_TEST := $(CURDIR)/build/wheel-test
wheel-test: wheel  ## install the wheel in an empty environment, and run the demo there
	rm -rf $(WHEEL_TEST)
	$(BIN)/python -m venv $(WHEEL_TEST)/venv
	$(WHEEL_TEST)/venv/bin/python -m pip install --quiet dist/flexdraft_jax-*.whl
	cd $(WHEEL_TEST) && env -u PYTHONPATH venv/bin/python -m flexdraft_jax.infer.demo

docs: $(VENV)/.installed  ## build the documentation into build/site, with every link checked
	$(BIN)/python -m pip install --quiet --editable ".[test,docs]"
	JAX_PLATFORMS=cpu $(BIN)/python docs/figures.py
	JAX_PLATFORMS=cpu $(BIN)/python docs/configuration.py
	$(BIN)/python -m mkdocs build --strict

lint: $(VENV)/.installed-dev  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(VENV)/.installed-dev  ## check types alone
	$(BIN)/mypy

clean:  ## remove the environment, caches and build products
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info

# A stamp file, so that installation happens once, and again when its inputs change.
$(VENV)/.installed: setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable ".[test,dev]"
	@touch $@

# Some names on the PATH are shims that do not run; take the first that answers with its version.
$(BIN)/python:
	@for candidate in $(PYTHON) python3.12 python3.11 python3.13 python3 python; do \
	  if "$$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	      >/dev/null 2>&1; then \
	    echo "making $(VENV) with $$("$$candidate" --version)"; \
	    exec "$$candidate" -m venv $(VENV); \
	  fi; \
	done; \
	echo "no Python 3.11, 3.12 or 3.13 found; name one with: make PYTHON=/path/to/python" >&2; exit 1
