# make demo: set up and explain a prompt; make test: set up and run the tests. The rest is for developers.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ATLAS ?= build/atlas
CORES := -n auto --maxprocesses 4 --durations=10
# Quick tests of one file share models, so they stay together. Slow ones share little, and a few files have most of them.
FILES := $(CORES) --dist loadfile
TESTS := $(CORES) --dist worksteal

MODELS ?= build/models

# What is compiled is kept: every process and every run of the tests would compile it again.
export PYTHONDONTWRITEBYTECODE :=

PIP := --quiet --disable-pip-version-check

.PHONY: help venv demo test test-slow test-real models lint docs wheel check test-architectures test-versions test-oldest test-newest bench science atlas clean

help:
	@echo "make demo    set up and explain a prompt on the bundled model"
	@echo "make test    set up and run the tests"
	@echo "make test-slow  the tests that make test leaves out: they start or kill processes, or take long"
	@echo "make models  fetch two real language models into $(MODELS) (350 MB); make test-real: tests on these models"
	@echo "make lint    lint, prose and types; make check: also all tests, doctests and examples"
	@echo "make docs    build the documentation into build/site; make wheel: a wheel that has it, in dist"
	@echo "make test-architectures  a small model of every type that transformers registers"
	@echo "make test-versions       the tests with the oldest transformers that secant supports, and the newest"
	@echo "make bench   run the benchmarks; each prints the figures that the documentation claims"
	@echo "make science measure the paper's claims on real models: first says how long (days of a core); can be stopped and resumed"
	@echo "make atlas   train the bundled model from scratch, into $(ATLAS): about an hour on 2 cores;"
	@echo "             CHECKPOINTS=1 keeps the model every 100 steps, for secant study --model '$(ATLAS)-checkpoints/*'"
	@echo "make clean   remove the environment and what was built"

venv: $(VENV)/ready

# Modules are compiled on all cores, since pip would use one. Packages have modules that nothing imports here, and some
# files that do not compile.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP) --no-compile -c constraints.txt -e ".[dev]"
	@$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|testing|ray|scipy|sklearn|sympy)/|transformers/models/' \
		$(VENV)/lib || true
	touch $@

demo: venv
	$(BIN)/secant explain "The bridge out of Marin is the"

test: venv
	$(BIN)/python -m pytest $(FILES) -m "not slow and not real"

test-slow: venv
	$(BIN)/python -m pytest $(TESTS) -m slow

models: venv
	$(BIN)/python tools/models.py $(MODELS) $(NAMES)

# One test after the other, each with all cores.
test-real: venv
	SECANT_REAL_MODELS=$(MODELS) $(BIN)/python -m pytest --durations=10 -m real tests/test_real.py tests/test_notebooks.py

lint: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/mypy

# Also installs what only the documentation requires. The notebooks run once: the tests keep the executed copies.
docs: venv
	$(BIN)/python -m pip install $(PIP) -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# The wheel contains the documentation.
wheel: docs
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

check: lint
	$(BIN)/python -m pytest $(TESTS) tests src --doctest-modules

test-architectures: venv
	$(BIN)/python -m pytest $(TESTS) tests/test_architectures.py --all-architectures

# Each in its own environment. The oldest transformers always imports torchao, which writes to stderr there.
OLDEST := 5.0.0

test-versions: test-oldest test-newest

test-oldest test-newest: test-%:
	mkdir -p build
	$(PYTHON) -m venv --clear build/$*
	grep -Ev "^(transformers|tokenizers|huggingface-hub|torchao)=" constraints.txt > build/$*.txt
	build/$*/bin/python -m pip install $(PIP) -c build/$*.txt -e ".[dev]" \
		"transformers$(if $(filter oldest,$*),==$(OLDEST))"
	build/$*/bin/python -m pip uninstall --quiet --yes torchao
	build/$*/bin/python -m pytest $(TESTS) -p no:cacheprovider

# All scripts but two, which require folders.
bench: venv
	@set -e; for file in $$(grep -l __main__ benchmarks/*.py | grep -v -e first_study -e training); do \
		echo "== $$file"; $(BIN)/python $$file; done

# Each part adds the rows that benchmarks/results lacks. The short parts come first.
SCIENCE := $(BIN)/python benchmarks/science

science: venv
	$(SCIENCE)/measure.py --forecast
	$(SCIENCE)/mechanism.py
	$(SCIENCE)/defects.py
	$(SCIENCE)/rates.py --layers 3
	$(SCIENCE)/measure.py
	$(SCIENCE)/rates.py
	$(SCIENCE)/report.py --write

atlas: venv
	$(BIN)/python tools/atlas/train.py $(ATLAS) $(if $(CHECKPOINTS),--checkpoints)
	$(BIN)/python tools/atlas/card.py $(ATLAS)

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
