# softAR Lab in one word each. `make` lists them; nothing is installed twice.
#
#   make lab                      all that a fresh machine with Python 3.11 or newer needs
#   make lab PYTHON=python3.12    another Python makes the virtual environment
#   make test TORCH_ARGS="--index-url <PyTorch's index of CPU wheels> --retries 0"
#                                 on Linux without a GPU: torch comes from that index, saving gigabytes;
#                                 where the index is out of reach, from the usual one
#   make robust ROBUST_ARGS="--only oldest-1 busy-2"
#                                 these settings alone; --list names them all

PYTHON ?= python3
TORCH_ARGS ?=
LAB_ARGS ?=
PYTEST_ARGS ?=
ROBUST_ARGS ?=
GPU_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
TORCH = "$$($(BIN)/python -c 'import tomllib as t; \
	print(*(d for d in t.load(open("pyproject.toml", "rb"))["project"]["dependencies"] if d[:5] == "torch"))')"
SHARED_OUT := --numprocesses auto --dist loadfile --no-loadscope-reorder  # in the order of conftest.py
AS_ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

# PyTorch's threads sleep while they wait, unless you have decided: on a busy machine spinning takes all there is.
# (The package says the same when it is imported, but whoever imports torch first is not reached by that.)
ifeq ($(OMP_WAIT_POLICY)$(GOMP_SPINCOUNT)$(KMP_BLOCKTIME),)
export OMP_WAIT_POLICY := passive
export GOMP_SPINCOUNT := 0
export KMP_BLOCKTIME := 0
endif

.DEFAULT_GOAL := help
.PHONY: help lab test quick robust browser-test gpu-test deploy-check notebooks site checkpoints bench lint venv clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

lab: $(VENV)/.installed ## set everything up and open JupyterLab on the tour
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb --LabApp.news_url= --KernelManager.transport_encryption=auto \
		$(AS_ROOT) $(LAB_ARGS)

test: $(VENV)/.installed ## set everything up and run every test, the notebooks included
	$(BIN)/python -m pytest $(SHARED_OUT) $(PYTEST_ARGS)

quick: $(VENV)/.installed ## run the tests of minutes: not the notebooks, the browser, kills, results made again (marked slow)
	$(BIN)/python -m pytest tests -m "not slow and not browser" $(SHARED_OUT) $(PYTEST_ARGS)

robust: $(VENV)/.installed ## test as other processors compute, and on a busy machine (hours; the same command goes on)
	$(BIN)/python tools/robust.py $(ROBUST_ARGS)

browser-test: $(VENV)/.installed ## use the notebooks in JupyterLab in Chromium, as a person would
	$(BIN)/python -m pytest tests/browser $(PYTEST_ARGS)

gpu-test: $(VENV)/.installed ## where there is a GPU: numerical tests, training, generation on it, with ratios (8 minutes)
	$(BIN)/python tools/gpu_test.py $(GPU_ARGS)

deploy-check: $(VENV)/.installed ## check the files in deploy/, which run a sweep on a cluster, offline
	$(BIN)/python tools/deploy_check.py

notebooks: $(VENV)/.installed ## execute every notebook and store its outputs
	$(BIN)/python tools/refresh_notebooks.py

site: $(VENV)/.installed ## write the notebooks as static pages into site/, to read without Python
	$(BIN)/python tools/site/build.py site

checkpoints: $(VENV)/.installed ## train every model in data/checkpoints again
	$(BIN)/python -m softar_studies.make_checkpoints

bench: $(VENV)/.bench-installed ## measure training, generation, work on a busy machine, attention, objectives, store, window, tokenizers and pretrained models beside their peers
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/busy.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/objectives.py
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/window.py
	$(BIN)/python benchmarks/drafting.py
	$(BIN)/python benchmarks/cutting.py
	$(BIN)/python benchmarks/pretrained.py

lint: $(VENV)/.installed ## check style and format, the notebooks included
	$(BIN)/ruff check
	$(BIN)/ruff format --check

venv: $(VENV)/.installed ## set everything up, and no more

clean: ## remove the virtual environment and every cache; runs/ stays
	rm -rf $(VENV) *.egg-info .pytest_cache .ruff_cache .hypothesis tests/browser/shots site
	find . -name __pycache__ -prune -exec rm -rf {} + -o -name .ipynb_checkpoints -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "softAR Lab needs Python 3.11 or newer, and $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
ifneq ($(strip $(TORCH_ARGS)),)
	$(BIN)/pip install $(TORCH_ARGS) $(TORCH) || echo "No torch with $(TORCH_ARGS): taking the usual one." >&2
endif
	$(BIN)/pip install --quiet --editable ".[test]"
	$(BIN)/python -c "from softar_lab.models import compiled; compiled.prepare()"
	@touch $@

$(VENV)/.bench-installed: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable ".[test,bench]"
	@touch $@
