# `make demo` shows the library, `make check` takes a minute and a half between edits, `make test` is the whole suite.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BENCH := .venv-bench
AUDIT := .venv-audit
CLUSTER := .venv-cluster
DATA ?= data
TESTS := CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/pytest -n auto
empty :=
space := $(empty) $(empty)

# Methods whose files differ from the main branch's, committed or not, as pytest's -k wants them: "byol or dino".
BASE = $(shell git merge-base HEAD origin/main 2> /dev/null || git merge-base HEAD main 2> /dev/null || echo HEAD)
EDITED = $(shell git diff --name-only $(BASE); git ls-files --others --exclude-standard)
METHODS = $(filter-out method _% __init__,$(filter $(basename $(notdir $(wildcard manyviews/methods/*.py))),\
	$(sort $(basename $(notdir $(filter manyviews/methods/%.py manyviews/recipes/%.py,$(EDITED)))))))

.PHONY: demo check test lint test-learning test-papers test-faults test-cluster bench clean

demo: $(VENV)/installed
	$(BIN)/manyviews demo

check: lint
	$(TESTS) tests/test_docs.py tests/objectives
	$(if $(METHODS),$(TESTS) tests/methods/test_contract.py -k "$(subst $(space), or ,$(METHODS))")

# The suite forces nothing: MANYVIEWS_PRECISION=bfloat16 make test and MANYVIEWS_PRECISION=float32 make test do.
test: lint
	@if command -v nvidia-smi > /dev/null; then echo $(BIN)/pytest tests/test_gpu.py; $(BIN)/pytest tests/test_gpu.py; fi
	$(TESTS)

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-learning: $(VENV)/installed-dev
	$(BIN)/pytest -m learning

# Every row of the papers' tables at about a hundredth of its size.
test-papers: $(VENV)/installed-dev
	$(TESTS) -m papers

# A thousand kills, full disks, damaged files and the like. FAULTS=0.1 injects a tenth of the random ones, and SEED
# chooses others. With FAULTS=1 it writes the counts that docs/reliability.md shows (make docs).
FAULTS ?= 1
SEED ?= 0
test-faults: $(VENV)/installed-dev
	MANYVIEWS_FAULTS=$(FAULTS) MANYVIEWS_FAULTS_SEED=$(SEED) \
		$(if $(filter 1,$(FAULTS)),MANYVIEWS_FAULTS_JSON=benchmarks/faults.json) \
		CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 -m faults tests/faults tests/engine/test_sharding.py


# The jobs of examples/cluster on a local Ray, which has an environment of its own: it is large.
test-cluster: $(CLUSTER)/installed
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(CLUSTER)/bin/pytest -m cluster tests/test_cluster.py

$(CLUSTER)/installed: pyproject.toml
	$(PYTHON) -m venv $(CLUSTER)
	$(CLUSTER)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[cluster,dev]'
	@touch $@

# Each prints a table and writes the JSON beside it. DATA is a folder with cifar10_train.parquet and cifar10_test.parquet
# (Hugging Face's layout) and imagewoof160_mini.zip (train/*/*.jpg: any photographs). The machine must be otherwise
# idle, for 80 minutes on two cores. One that fails leaves the others their turn. Not among them: page.py, which drives a
# browser, speedrun.py, which trains for minutes to hours, and claims.py and selection.py, which train for hours and
# continue where they stopped, and marathon.py, which runs for a night.
bench: $(BENCH)/installed
	@failed=; \
	measure() { \
		name=$$1; shift; echo "benchmarks/$$name.py"; \
		$(BENCH)/bin/python -u "benchmarks/$$name.py" --out "benchmarks/$$name.json" "$$@" || failed="$$failed $$name"; \
	}; \
	measure views --gpu --data "$(DATA)"; \
	measure step --gpu --data "$(DATA)"; \
	measure faithful --data "$(DATA)"; \
	measure growth --data "$(DATA)"; \
	measure memory; measure rescue; measure knn; \
	test -z "$$failed" || { echo "These failed:$$failed"; exit 1; }

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
	rm -rf $(VENV) $(BENCH) $(AUDIT) $(CLUSTER) .pytest_cache .mypy_cache .ruff_cache

# Licenses of what is installed, and known weaknesses in it; says so if the service that lists these does not answer.
.PHONY: audit
audit: $(VENV)/installed-dev $(AUDIT)/installed
	$(BIN)/python scripts/audit.py $(AUDIT)

$(AUDIT)/installed:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	@touch $@

.PHONY: docs site

# What pages repeat of the code, and figures that are missing.
docs: $(VENV)/installed-dev
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/figures.py --missing

# The documentation as a website, which opens from disk: build/site/index.html.
site: $(VENV)/installed-site
	$(BIN)/python docs/website.py

$(VENV)/installed-site: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@
