# Every target does its own set-up: a virtual environment in .venv, made when it is missing or
# older than the files that describe it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UNPACKED := build/types

.PHONY: help demo test test-slow lint types format bench clean
.DEFAULT_GOAL := help

help:  ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "equirl needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $(READY)

demo: $(READY)  ## Train, compare and plot agents in three environments (7 minutes on 2 cores)
	$(BIN)/python -m equirl.agents.demo

test: $(READY)  ## The default test suite, on all cores (4 minutes on 2 cores)
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(READY)  ## Slow tests: real agents at their published returns, resumed trainings (20 minutes)
	$(BIN)/python -m pytest -m slow -n auto --dist worksteal

lint: $(READY)  ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)  ## Static types, on an unpacked build: type checkers do not follow package_dir
	rm -rf build/lib build/bdist* $(UNPACKED)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --no-deps --target $(UNPACKED) .
	MYPYPATH=$(UNPACKED) $(BIN)/mypy -p equicore -p equirl

format: $(READY)  ## Rewrite in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## Benchmarks of cost, written to results/
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/predict.py --output results/predict
	$(BIN)/python benchmarks/symmetrize.py --output results/symmetrize
	$(BIN)/python benchmarks/methods.py --output results/methods
	$(BIN)/python benchmarks/memory.py --output results/memory
	$(BIN)/python benchmarks/top_k.py --output results/top_k
	$(BIN)/python benchmarks/peers.py --output results/peers
	$(BIN)/python benchmarks/sweep.py --output results/sweep
	$(BIN)/python benchmarks/scan.py --output results/scan_speed

clean:  ## Remove the virtual environment, builds and caches; trained agents stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
