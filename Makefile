# Each target makes what it needs; the first on a fresh machine also makes the environment.
PYTHON ?= python3.11
PY := .venv/bin/python
# Where nothing is cached, every process compiles what it imports, torch, Ray and MLflow, anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: env smoke sweep test test-first test-second test-faults fuzz lint docs audit clean

env: .venv/.complete

.venv/.complete: requirements.txt requirements-dev.txt
	@echo "making .venv, once: one to five minutes, as fast as the connection brings 4 GB"
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet uv
	.venv/bin/uv pip install --quiet --python $(PY) -r requirements-dev.txt
	touch $@

smoke: env
	$(PY) -m orchestrator sweep experiments/smoke.yaml

sweep: env
	$(PY) -m orchestrator sweep experiments/quickstart.yaml

# In two halves at once, since a test seldom keeps two cores busy; their lines come mixed. The first
# half holds what rarely starts a Ray.
FIRST := $(addprefix tests/,aml project $(addprefix orchestrator/,config reporting storage tracking))

test: env
	$(MAKE) --no-print-directory --keep-going --jobs=2 test-first test-second

test-first: env
	$(PY) -m pytest -q -m "not fault" $(FIRST)

test-second: env
	$(PY) -m pytest -q -m "not fault" $(FIRST:%=--ignore=%)

test-faults: env
	$(PY) -m pytest -m fault --durations=40

# How many damaged inputs each fuzz test tries, and the seed that they come from.
EXAMPLES ?= 2000
SEED ?= 0

fuzz: env
	AMLRIS_FUZZ_EXAMPLES=$(EXAMPLES) $(PY) -m pytest -m fuzz --timeout=0 --hypothesis-seed=$(SEED)

# Without what Material says of the years after MkDocs 1.
SITE := NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/lint-imports
	$(PY) -m mypy
	$(SITE)

# Writes the two references anew, and the site into build/site.
docs: env
	$(PY) -m orchestrator config reference > docs/settings.md
	PYTHONPATH=. $(PY) docs/scripts/commands.py > docs/commands.md
	$(SITE)

audit: env
	.venv/bin/uv tool run pip-audit -r requirements-dev.txt

clean:
	rm -rf .venv runs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
