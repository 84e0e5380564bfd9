# `make demo`, `make check` and `make test` work on a fresh Debian machine with Python 3.11: they make the environment first.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM = false
# Hundreds of processes of the tests import the same modules: they compile them once.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo unit check test test-all most-tests all-tests lint lint-all style types docs install clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	# torch first and alone: pip then takes a build without CUDA where one is offered
	$(BIN)/pip install --quiet --disable-pip-version-check "torch>=2.6,<2.14"
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

demo: install
	$(BIN)/sweep run experiment=demo

# Of the tests, `unit` runs those of single modules, `check` all that are quick, `test` all but the variants marked deep,
# and `test-all` those too, with no process shared. Tests wait as much as they compute: more workers than processors.
PYTEST = $(BIN)/pytest --dist loadfile --no-loadscope-reorder --durations=15 -W ignore::pytest.PytestAssertRewriteWarning

unit: install
	$(BIN)/pytest -m "not slow" tests/unit

check: install lint
	$(PYTEST) -n 2 -m "not slow and not deep"

# The types are checked beside the tests: mypy computes, and tests mostly wait.
test: install style
	$(MAKE) --jobs 2 types most-tests

test-all: install style
	$(MAKE) --jobs 2 types all-tests

most-tests: install
	$(PYTEST) -n 4 -m "not deep"

all-tests: install
	SWEEP_TESTS_COLD=1 $(PYTEST) -n 4

# Without the types of tests/bench, which is no part of the program; `make test` and CI check those as well.
lint: install style
	$(BIN)/mypy --exclude '^tests/bench/'

lint-all: style types

style: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

docs: install
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --config-file docs/site/mkdocs.yml

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis build/docs
