# `make` alone lists the targets. DATA_ROOT names the folder with the real data sets; see README.md.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
STAMP := .venv/.installed
PYTHON ?= python3
PROFILE ?= paper
WORKERS ?= $(shell nproc)
SET ?=
SEEDS ?=
PAPER ?=
RUN = $(PY) -m experiments
OPTIONS = --profile $(PROFILE) --set $(SET) $(if $(SEEDS),--seeds $(SEEDS))
# table-reldn-8 -> "reldn 8"; slugs hold no hyphen.
words = $(subst -, ,$*)

help:  ## list the targets
	@grep -hE '^[a-zA-Z_%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | awk -F '\t' '{ printf "  %-22s %s\n", $$1, $$2 }'

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip uv
	.venv/bin/uv pip install --quiet --python $(PY) -r requirements.lock
	.venv/bin/uv pip install --quiet --python $(PY) --no-deps --editable .
	touch $@

venv: $(STAMP)  ## make the virtual environment .venv from requirements.lock

demo: $(STAMP)  ## one headline table per paper on generated data, one seed
	$(RUN) demo

claims: $(STAMP)  ## test the papers' claims in generated worlds, five paired seeds (PAPER=reldn SEEDS="0 1 2" WORKERS=2)
	$(RUN) claims $(if $(PAPER),--paper $(PAPER)) $(if $(SEEDS),--seeds $(SEEDS)) --workers $(WORKERS)

table-%: $(STAMP)  ## make table-<paper>-<n>: train what is missing of one table and write it (SET="key=value" SEEDS="0 1" PROFILE=paper|demo|smoke WORKERS=2)
	$(RUN) table $(words) $(OPTIONS) --workers $(WORKERS)

figure-%: $(STAMP)  ## make figure-<paper>-<n>: likewise for a figure
	$(RUN) figure $(words) $(OPTIONS) --workers $(WORKERS)

plan-%: $(STAMP)  ## make plan-<paper>-<n>: list a table's runs, what is done and the expected hours; trains nothing
	$(RUN) plan $(words) $(OPTIONS)

tables: $(STAMP)  ## regenerate all tables, the overview and the page from the committed records
	$(RUN) tables

status: $(STAMP)  ## how many runs of each table are done, incomplete or absent
	$(RUN) status

data-%: $(STAMP)  ## make data-<name>: download, check and lay out one data set under DATA_ROOT
	$(PY) -m scripts.prepare $*

check-data: $(STAMP)  ## say for each data set: complete, or what is missing and the command that gets it
	$(PY) -m scripts.prepare check

bench: $(STAMP)  ## measure speed and memory as ratios against reference implementations
	$(PY) -m scripts.bench

gallery: $(STAMP)  ## draw contact sheets of all generated worlds into generated/gallery (REAL=1: of the data sets under DATA_ROOT)
	$(PY) -m scripts.gallery $(if $(REAL),--data-root "$(DATA_ROOT)")

kill-test: $(STAMP)  ## kill `make table-reldn-8` ten times at random and compare with an undisturbed run
	$(PY) -m scripts.kill_test

lint: $(STAMP)  ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

test: $(STAMP)  ## the fast tests: no GPU, no network, no real data
	$(PY) -m pytest -m "not slow and not real_data"

test-all: $(STAMP)  ## all tests; those on real data where DATA_ROOT has it
	$(PY) -m pytest

.PHONY: help venv demo claims tables status check-data bench gallery kill-test lint test test-all
