# make demo | test | slow | check | docs | bench: each sets up .venv first, once, and again when the requirements change.

PYTHON ?= python3
BIN := .venv/bin
REQUIREMENTS := pyproject.toml constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2
PYTEST_ARGS ?=
MKDOCS := NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet --strict

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DELETE_ON_ERROR:
.PHONY: help demo test slow check docs bench

help:
	@echo "make demo    install fxsurgery into .venv and run its demo"
	@echo "make test    the quick tests (PYTEST_ARGS='tests/passes -x' narrows them)"
	@echo "make slow    the tests on whole real models and long searches"
	@echo "make check   ruff, mypy, the import contracts, and the documentation site in strict mode"
	@echo "make docs    build the documentation site into site/"
	@echo "make bench   how to run the benchmarks"

demo: .venv/.installed
	@echo "fxsurgery is installed in .venv; running its demo, which takes about a minute"
	@$(BIN)/fxsurgery demo

test: .venv/.installed-dev
	$(PYTEST) $(PYTEST_ARGS)

slow: .venv/.installed-dev
	$(PYTEST) -m slow $(PYTEST_ARGS)

check: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MKDOCS)

docs: .venv/.installed-dev
	$(MKDOCS)
	@echo "open site/index.html"

bench: .venv/.installed-dev
	@echo "Each benchmark is a module; --help lists its options. Tables are written to benchmarks/results/."
	@grep -ls __main__ benchmarks/*.py benchmarks/*/__main__.py | sed -E 's|/__main__||; s|benchmarks/(.*)\.py|  $(BIN)/python -m benchmarks.\1 --help|'

$(BIN)/python:
	@echo "creating the environment .venv (a few seconds)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fxsurgery needs Python 3.11 or later: make PYTHON=python3.11")'
	@$(PYTHON) -m venv .venv

.venv/.installed: $(REQUIREMENTS) | $(BIN)/python
	@$(BIN)/python tools/install.py --constraint constraints.txt --editable ".[demo]"
	@touch $@

.venv/.installed-dev: $(REQUIREMENTS) | $(BIN)/python
	@$(BIN)/python tools/install.py --constraint constraints.txt --editable ".[dev,ray,zoo]"
	@touch .venv/.installed $@
