# `make demo` draws sixteen faces, `make test` runs every check; both first make the environment that they need.
#
# One environment, in the checkout, with the versions of constraints.txt; made again when those or pyproject.toml change.
# PYTHON picks the interpreter (3.10 or newer), VENV the folder.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
WHEEL_VENV := $(VENV)/wheel-check
WHEEL_STAMP := $(WHEEL_VENV)/installed
PEERS_VENV ?= $(VENV)/peers
PEERS_STAMP := $(PEERS_VENV)/installed
PEERS := $(PEERS_VENV)/bin/python
WORKERS ?= 2

# The constraints hold in every installation, so that none of them brings another torch. A relative path, for checkouts in folders
# whose names have spaces.
INSTALL := -m pip install --disable-pip-version-check --quiet --constraint constraints.txt
# Networks here are small: threads inside an operation cost more than they give, and far more on a busy machine.
export OMP_NUM_THREADS ?= 1
export NO_MKDOCS_2_WARNING := 1

.PHONY: help setup demo test lint format types unit docs serve pictures wheel bench bench-peers bench-speed bench-quality clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      draw sixteen faces, male and not smiling, into demo.png; show the energy of each term"
	@echo "make test      all of: lint types docs wheel unit"
	@echo "make format    put the code into its format"
	@echo "make serve     the documentation on a local port"
	@echo "make pictures  draw the pictures of the documentation again"
	@echo "make bench     measure speed and quality beside other libraries; write docs/benchmarks.md"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "composable-energy needs Python 3.10 or newer, $(PYTHON) is older or missing; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Making the environment $(VENV) (torch is the large part of it)."
	@$(PYTHON) -m venv "$(VENV)" || { echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python $(INSTALL) hatchling editables
	@$(BIN)/python $(INSTALL) --no-build-isolation -e ".[dev,docs,viz,diagnostics]"
	@touch $@

demo: $(STAMP)
	$(BIN)/composable-energy sample "male & ~smiling" -n 16 --seed 0 -o demo.png
	$(BIN)/composable-energy explain "male & ~smiling" demo.png

# Cheapest first; the unit tests last, so that their summary is the last word.
test: lint types docs wheel unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --cov=composable_energy --cov=composable_energy_training --cov-report=term:skip-covered --cov-fail-under=95

docs: $(STAMP)
	$(BIN)/mkdocs build --strict --quiet --site-dir site

serve: $(STAMP)
	$(BIN)/mkdocs serve

pictures: $(STAMP)
	for script in docs/gallery/*.py; do $(BIN)/python $$script || exit 1; done

# A user's installation: an environment that has nothing but what the wheel's own metadata ask for, so a dependency that was not declared
# is missed here. The dependencies (torch above all) stay between runs until pyproject.toml or constraints.txt change; the wheel is new
# each time. `-I` keeps the checkout off the path: what runs is what was installed.
wheel: $(WHEEL_STAMP)
	@rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . > /dev/null
	@$(WHEEL_VENV)/bin/python $(INSTALL) --force-reinstall --no-deps dist/*.whl
	$(WHEEL_VENV)/bin/python -I docs/scripts/run_blocks.py README.md --first
	$(WHEEL_VENV)/bin/composable-energy doctor

$(WHEEL_STAMP): $(STAMP)
	@rm -rf "$(WHEEL_VENV)" dist
	@$(BIN)/python -m build --wheel --no-isolation --outdir dist . > /dev/null
	@$(BIN)/python -m venv "$(WHEEL_VENV)"
	@$(WHEEL_VENV)/bin/python $(INSTALL) dist/*.whl
	@touch $@

# Everything is measured by one process after another, on one thread. The speed counts processor time.
bench: bench-speed bench-quality

bench-speed: $(PEERS_STAMP)
	@mkdir -p .benchmarks
	$(PEERS) -m pytest -c benchmarks/speed.ini benchmarks/test_speed.py --benchmark-json=.benchmarks/speed.json
	$(PEERS) -m benchmarks.report --speed .benchmarks/speed.json

bench-quality: $(PEERS_STAMP)
	$(PEERS) -m benchmarks.quality --peers --write
	$(PEERS) -m benchmarks.report

# An environment of its own, which has what the others need as well: nothing of theirs comes near the environment of the tests.
bench-peers: $(PEERS_STAMP)

$(PEERS_STAMP): pyproject.toml constraints.txt benchmarks/requirements-peers.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "The benchmarks need Python 3.11 or newer, $(PYTHON) is older or missing; name one: make PYTHON=python3.12 bench" >&2; exit 1; }
	@echo "Making the environment $(PEERS_VENV) (torch is the large part of it)."
	@$(PYTHON) -m venv "$(PEERS_VENV)"
	@$(PEERS) $(INSTALL) hatchling editables
	@$(PEERS) $(INSTALL) --no-build-isolation -e ".[dev]" --requirement benchmarks/requirements-peers.txt
	@touch $@

clean:
	rm -rf "$(VENV)" .ci/venv dist site demo.png .coverage .pytest_cache .ruff_cache .hypothesis
