# Two commands are enough: `make serve` and `make test`. Each makes the environment when it is missing.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Several processes, a group of tests (tests/conftest.py) in each; `make test ARGS="-n0 tests/core"` for a single one.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder

.PHONY: serve test test-fast check cuda clean

serve: $(VENV)/.installed        ## serve the model that ships with jaxserve on 127.0.0.1:8000
	$(BIN)/jaxserve serve $(ARGS)

test: $(VENV)/.tested            ## the whole suite
	$(PYTEST) $(ARGS)

# Programs that run for milliseconds are compiled quickly here; as they are served, in `make test`.
test-fast: export JAX_DISABLE_MOST_OPTIMIZATIONS := 1
test-fast: $(VENV)/.tested       ## without the slow ones
	$(PYTEST) -m "not slow" $(ARGS)

check: $(VENV)/.tested           ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

cuda: $(VENV)/.installed         ## add the CUDA plugin: NVIDIA GPUs, and compiling for one without one
	$(BIN)/pip install --quiet -e ".[$(or $(CUDA),cuda12)]"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "jaxserve needs Python 3.11 or later: make PYTHON=python3.12 serve" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@

clean:                           ## remove the environment and what tools leave behind
	rm -rf $(VENV) build *.egg-info .hypothesis .pytest_cache .ruff_cache
