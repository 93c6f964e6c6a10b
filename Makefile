# `make demo` and `make test` each do everything from a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AZURITE := 3.37.0
AZURITE_DAY := 2026-11-22

.PHONY: install demo test lint servers bench soak clean

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
	$(BIN)/mypy raymerge tests bench recipes cluster

test: lint servers $(VENV)/peer
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# S3 came with `install`. Azure's emulator is npm's, with what it needs as of a day, since it pins
# nothing itself. Without npm its tests skip, and say so.
servers: $(VENV)/azurite/$(AZURITE)

$(VENV)/azurite/$(AZURITE): $(VENV)/installed
	if ! command -v npm >/dev/null; then echo "no npm, so no Azurite" >&2; else mkdir -p $(@D) && \
		npm install --silent --ignore-scripts --no-audit --no-fund --no-save --prefix $(@D) \
		--before $(AZURITE_DAY) azurite@$(AZURITE) && touch $@; fi

# mergekit is a peer to run beside us, never imported.
$(VENV)/peer: $(VENV)/installed
	$(BIN)/pip install --quiet -c constraints.txt -e ".[peer]"
	touch $@

# RAYMERGE_SOAK=0:50 runs the first fifty.
soak: servers
	$(BIN)/pytest tests/soak -m soak -s

bench: $(VENV)/peer
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV)
