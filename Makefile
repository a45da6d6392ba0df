# What one does here. `make help` lists it.
PYTHON ?= python3
BIN := .venv/bin
export PYTHONDONTWRITEBYTECODE ?= 1

.PHONY: help demo test quick lint format golden clean
help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/run: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e .
	@touch $@

.venv/dev: .venv/run
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

demo: .venv/run ## train both models on real text and compare; QUICK=1 for a minute's version
	$(BIN)/python -m fwl_ref demo $(if $(QUICK),--quick)

test: .venv/dev ## the whole suite; QUICK=1 for fewer examples
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	HYPOTHESIS_PROFILE=$(if $(QUICK),quick,$(if $(CI),thorough,quick)) $(BIN)/python -m pytest

lint: .venv/dev ## check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: .venv/dev ## rewrite to style
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

golden: .venv/run ## write golden cases of the block to results/golden
	$(BIN)/python -m fwl_ref golden make results/golden

clean: ## remove what was built
	rm -rf .venv build *.egg-info .hypothesis
