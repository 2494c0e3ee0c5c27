# Each target makes what it needs; the first on a fresh machine also makes the environment.
PYTHON ?= python3.11
PY := .venv/bin/python
# Where nothing is cached, every process compiles what it imports, torch, Ray and MLflow, anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env sweep test test-faults fuzz lint audit clean

env: .venv/.complete

.venv/.complete: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet uv
	.venv/bin/uv pip install --quiet --python $(PY) -r requirements-dev.txt
	touch $@

sweep: env
	$(PY) -m orchestrator sweep experiments/quickstart.yaml

test: env
	$(PY) -m pytest -m "not fault"

test-faults: env
	$(PY) -m pytest -m fault --durations=40

# How many damaged inputs each fuzz test tries, and the seed that they come from.
EXAMPLES ?= 2000
SEED ?= 0

fuzz: env
	AMLRIS_FUZZ_EXAMPLES=$(EXAMPLES) $(PY) -m pytest -m fuzz --timeout=0 --hypothesis-seed=$(SEED)

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports
	$(PY) -m mypy

audit: env
	.venv/bin/uv tool run pip-audit -r requirements-dev.txt

clean:
	rm -rf .venv runs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
