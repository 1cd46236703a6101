# make quickstart and make test set up everything they need in .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: quickstart test lint audit format docs bench soak clean help

help:
	@echo "make quickstart   train a small GPT on real English, offline, in a few minutes"
	@echo "make test         run the whole test suite"
	@echo "make lint         ruff, mypy, levels of imports"
	@echo "make audit        look the pinned versions up in the database of known vulnerabilities"
	@echo "make format       format the code"
	@echo "make docs         write the reference pages anew"
	@echo "make bench        run the benchmarks; TEXTS='a.parquet b.parquet' adds that of the data"
	@echo "make soak         train a run that is killed a hundred times, in about ten minutes"
	@echo "make clean        remove .venv and caches"

quickstart: $(VENV)/.installed
	$(BIN)/fromscratch quickstart

test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: $(VENV)/.installed-dev
	.ci/audit

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed
	$(BIN)/python -m fromscratch.config.reference > docs/run-file.md

bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/train.py
	$(BIN)/python benchmarks/loop.py
	$(BIN)/python benchmarks/recurrent.py
	$(BIN)/python benchmarks/processes.py
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/checkpoint.py
	$(if $(TEXTS),$(BIN)/python benchmarks/data.py $(TEXTS))

soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The build backend is pinned by the same constraints as everything else.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	PIP_CONSTRAINT=$(CURDIR)/constraints.txt $(PIP_INSTALL) --editable ".[dev]"
	@touch $(VENV)/.installed $@
