# `make demo` and `make test` set up what they need. Nothing here wants more than Python 3.11, make and a C compiler;
# `make extra` installs a browser, a container engine and a Supabase server first, where it may.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: help venv demo test extra lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    see it work (a minute or two after the set-up)"
	@echo "make test    unit, integration and quick recovery tests"
	@echo "make extra   the rest: end to end, browser, Supabase, containers"
	@echo "make lint    ruff, mypy, import-linter"
	@echo "make bench   measure"

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: venv
	$(BIN)/dailies demo

test: venv
	$(BIN)/pytest tests/unit --numprocesses 2 --cov --cov-report=
	$(BIN)/pytest tests/integration tests/recovery tests/captions --numprocesses 2 --cov --cov-append --cov-report=term:skip-covered --cov-fail-under=90

extra: venv
	./tests/install-browser.sh
	./tests/supabase/install.sh
	./tests/docker/install.sh
	$(BIN)/pytest tests/e2e tests/supabase tests/docker

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: venv
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build *.egg-info
