# Two commands are all there is to set up: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
DATA ?= data

.PHONY: demo test test-learning bench clean

demo: $(VENV)/installed
	$(BIN)/manyviews demo

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if command -v nvidia-smi > /dev/null; then echo $(BIN)/pytest tests/test_gpu.py; $(BIN)/pytest tests/test_gpu.py; fi
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

test-learning: $(VENV)/installed-dev
	$(BIN)/pytest -m learning

# Each prints a table and writes the JSON beside it. DATA is a folder with cifar10_train.parquet and cifar10_test.parquet
# (Hugging Face's layout) and imagewoof160_mini.zip (train/*/*.jpg: any photographs). The machine must be otherwise
# idle, for an hour on two cores. Not among them: page.py, which drives a browser, and claims.py and selection.py, which
# train for hours and continue where they stopped.
bench: $(BENCH)/installed
	$(BENCH)/bin/python benchmarks/views.py --data $(DATA) --out benchmarks/views.json --gpu
	$(BENCH)/bin/python benchmarks/step.py --data $(DATA) --out benchmarks/step.json --gpu
	$(BENCH)/bin/python benchmarks/faithful.py --data $(DATA) --out benchmarks/faithful.json
	$(BENCH)/bin/python benchmarks/growth.py --data $(DATA) --out benchmarks/growth.json
	$(BENCH)/bin/python benchmarks/memory.py --out benchmarks/memory.json
	$(BENCH)/bin/python benchmarks/rescue.py --out benchmarks/rescue.json
	$(BENCH)/bin/python benchmarks/knn.py --out benchmarks/knn.json

# A virtual environment is a folder; it is made again when the project's requirements change.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "manyviews needs Python 3.11 or newer: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/installed

# The other libraries that benchmarks compare with have an environment of their own.
$(BENCH)/installed: benchmarks/peers.txt pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/peers.txt
	@touch $@

clean:
	rm -rf $(VENV) $(BENCH) .pytest_cache .mypy_cache .ruff_cache
