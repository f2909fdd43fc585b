# The two commands of the README: each sets up .venv in the checkout, then does its job.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test clean
.DELETE_ON_ERROR:

demo: .venv/base data/synthetic/dataset_info.json
	$(BIN)/python -m bcvit_jax.main --config=configs/demo.py

data/synthetic/dataset_info.json: | .venv/base
	$(BIN)/python -m data_prep.build synthetic --out data/synthetic

test: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

clean:
	rm -rf .venv data/synthetic runs/demo

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bcvit needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv .venv

.venv/base: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

.venv/test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ .venv/base
