# make demo: set up and explain a prompt; make test: set up and run the tests. The rest is for developers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TINY := build/tiny

.PHONY: help venv demo test check bench clean

help:
	@echo "make demo    set up, train a tiny model in seconds, and explain a prompt on it"
	@echo "make test    set up and run the tests"
	@echo "make check   lint, types, tests, doctests and examples"
	@echo "make bench   run the benchmarks; each prints the ratios that it claims"
	@echo "make clean   remove the environment and what was built"

venv: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

$(TINY)/config.json: examples/tiny_model.py | venv
	$(BIN)/python examples/tiny_model.py $(TINY)

demo: venv $(TINY)/config.json
	$(BIN)/secant explain "The bridge out of Marin is the" --model $(TINY)

test: venv
	$(BIN)/python -m pytest

check: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m pytest tests src --doctest-modules

bench: venv
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file; done

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
