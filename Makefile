PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-serve test test-gpu test-ray soak load-test lint docs bench clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## Install vlmbatch and its tools in .venv

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vlmbatch needs Python 3.11 or newer: try make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY) ## Answer the sample questions with both sample models, and check the answers
	@VLMBATCH=$(BIN)/vlmbatch PYTHON=$(BIN)/python samples/demo.sh

demo-serve: $(READY) ## Start the server, ask it one question with curl, and stop it
	@VLMBATCH=$(BIN)/vlmbatch samples/demo_serve.sh

test: $(READY) ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

test-gpu: $(READY) ## Run the tests that need a GPU, flash-attn and torchvision
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n6 tests/gpu --require-gpu -m 'not whole_gpu'
	$(BIN)/python -m pytest -q -n0 tests/gpu --require-gpu -m whole_gpu

test-ray: $(READY) ## Kill machines, engines and drivers of a Ray cluster in this machine
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n0 tests/ray_cluster -m ray

soak: $(READY) ## Kill runs everywhere; run 200,000 rows: memory, journal, cost of a row
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto tests -m soak
	OMP_NUM_THREADS=1 PYTHONPATH=tests/support $(BIN)/python tests/durability/test_soak.py 200000

load-test: $(READY) ## Ask the server with 64 clients for a minute, beside a run on the same rows
	OMP_NUM_THREADS=1 PYTHONPATH=tests/support $(BIN)/python tests/serve/load.py

lint: $(READY) ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(READY) ## Write the reference of commands and options, docs/cli.md, from the program
	$(BIN)/python docs/make_cli.py

bench: $(READY) ## Time vlmbatch: against a Hugging Face loop on 2,000 rows, and its own workloads
	$(BIN)/python samples/compare_with_huggingface.py --rows 2000
	$(BIN)/vlmbatch bench

clean: ## Remove .venv and everything that is built or cached
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
