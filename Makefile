# Everything from a fresh clone: Python ≥ 3.11, make and the package registries are enough.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-unit check format bench faults fuzz lock clean

demo: .venv/installed
	$(BIN)/pipeline demo

# Side by side, more than there are cores, as tests mostly wait; a file's tests in one process, in conftest.py's order.
test: .venv/installed
	$(BIN)/pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

test-unit: .venv/installed
	$(BIN)/pytest tests/unit

check: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# BENCH="--only relay --quick": see python -m tests.benchmarks --help
bench: .venv/installed
	$(BIN)/python -m tests.benchmarks $(BENCH)

# FAULTS="--seconds 1500 --seed 20": see python -m tests.faults --help
faults: .venv/installed
	$(BIN)/python -m tests.faults $(FAULTS)

# FUZZ="--inputs 5000000 --seed 7 --only 'Avro values'"
fuzz: .venv/installed
	$(BIN)/python -m tests.fuzz $(FUZZ)

# Locked by hash; what is not in the lock is not installed.
.venv/installed: pyproject.toml requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

lock:
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra dev --generate-hashes --no-header --no-emit-index-url --output-file requirements.lock pyproject.toml

clean:
	rm -rf .venv .pipeline
