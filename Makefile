# `make demo` and `make test` each do everything from a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test lint bench peer clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: install
	$(BIN)/python recipes/demo.py

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy raymerge tests bench recipes

test: lint
	$(BIN)/pytest

# mergekit lives in an environment of its own: it is a peer to run, not a dependency.
peer: $(VENV)-peer/installed

$(VENV)-peer/installed: constraints.txt
	$(PYTHON) -m venv $(VENV)-peer
	$(VENV)-peer/bin/pip install --quiet -c constraints.txt mergekit==0.1.5
	touch $@

bench: install peer
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) $(VENV)-peer
