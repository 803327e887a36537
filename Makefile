# make demo: set up and explain a prompt; make test: set up and run the tests. The rest is for developers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ATLAS ?= build/atlas

.PHONY: help venv demo test check bench atlas clean

help:
	@echo "make demo    set up and explain a prompt on the bundled model"
	@echo "make test    set up and run the tests"
	@echo "make check   lint, types, tests, doctests and examples"
	@echo "make bench   run the benchmarks; each prints the ratios that it claims"
	@echo "make atlas   train the bundled model anew, from nothing, into $(ATLAS): about an hour on 2 cores"
	@echo "make clean   remove the environment and what was built"

venv: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: venv
	$(BIN)/secant explain "The bridge out of Marin is the"

test: venv
	$(BIN)/python -m pytest

check: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest tests src --doctest-modules

test-architectures: venv
	$(BIN)/python -m pytest tests/test_architectures.py --all-architectures

bench: venv
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file; done

atlas: venv
	$(BIN)/python tools/atlas/train.py $(ATLAS)
	$(BIN)/python tools/atlas/card.py $(ATLAS)

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
