# `make demo` and `make test` each do everything from a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test lint bench clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e ".[dev]"
	$(BIN)/python -m compileall -q raymerge
	touch $@

demo: install
	$(BIN)/python recipes/demo.py

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy raymerge tests bench recipes

test: lint $(VENV)/peer
	$(BIN)/pytest

# mergekit is a peer to run beside us, never imported.
$(VENV)/peer: $(VENV)/installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[peer]"
	touch $@

bench: $(VENV)/peer
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV)
