# Everything runs in .venv; each target installs what it needs. Only Python >= 3.11, git and make are assumed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEPENDENCIES := pyproject.toml constraints.txt
.DEFAULT_GOAL := help

.PHONY: help demo test test-sglang check verify bench train wheel clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "tts_agent needs Python 3.11 or newer; run make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.user: $(BIN)/python $(DEPENDENCIES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded]'
	@touch $@

$(VENV)/.dev: $(BIN)/python $(DEPENDENCIES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,langchain,sglang,dev]'
	@touch $@ $(VENV)/.user

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,bench]'
	@touch $@

demo: $(VENV)/.user ## watch an agent plan by search, and compare searches at equal compute
	$(BIN)/tts-agent demo

test: $(VENV)/.dev ## run the tests
	$(BIN)/python -m pytest

test-sglang: $(VENV)/.dev ## run the tests against the real SGLang server, on the CPU
	$(BIN)/python tests/sglang/install.py
	SGLANG_TESTS=1 $(BIN)/python -m pytest tests/sglang --timeout 600

check: $(VENV)/.dev ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

verify: $(VENV)/.dev ## the full counts of the slow tests
	$(BIN)/python -m pytest -m 'verify or not verify' --timeout 1800

bench: $(VENV)/.bench ## measure sharing, the controller, the engines, nodes and middleware, beside others (40 minutes)
	$(BIN)/python -m benchmarks.sharing --json
	$(BIN)/python -m benchmarks.overhead --json
	$(BIN)/python -m benchmarks.engine --json
	$(BIN)/python -m benchmarks.nodes --json
	$(BIN)/python -m benchmarks.checkpoints --json
	$(BIN)/python -m benchmarks.middleware --json
	$(BIN)/python -m benchmarks.tracing --json
	$(BIN)/python -m benchmarks.quality --quick --json

train: $(VENV)/.dev ## train the pocket planner again, into build/pocket
	$(BIN)/python -m training.train --out build/pocket

wheel: $(BIN)/python ## build the wheel and run its demo in an empty environment
	rm -rf dist $(VENV)-wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w dist .
	$(PYTHON) -m venv $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		"$$(ls dist/*.whl)[embedded]"
	cd $(VENV)-wheel && bin/tts-agent demo --puzzles 4
	rm -rf $(VENV)-wheel

clean: ## remove what make made
	rm -rf $(VENV) $(VENV)-wheel dist build .mypy_cache .ruff_cache .pytest_cache
