# Two commands do everything: `make reproduce` and `make test`. `make help` lists the rest.

PYTHON   ?= python3
PROFILE  ?= demo
NOTEBOOKS ?=
BUDGET   ?=
# a core is enough for one of the demo's small networks: a worker a core, up to four
CLUSTER  ?= $(if $(filter demo,$(PROFILE)),$(filter 2 3 4,$(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? n : 4)))))
FRESH    ?=
SET      ?=
ARGS     ?= resnet14 --trainable bn --epochs 16 --seed 0

BIN   := .venv/bin
READY := .venv/ready

export SET          # its quotes reach bnlib as they were written

.PHONY: help setup reproduce report test test-faults test-browser lint lab train bench lock clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(READY)  ## create .venv with the locked packages: 2 minutes, 6 GB

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bnlib needs Python 3.11 or newer; set PYTHON=python3.12, say")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

reproduce: $(READY)  ## train what is missing, make all figures; PROFILE=demo, short or paper, BUDGET=30m, CLUSTER=local, FRESH=1, NOTEBOOKS="01_depth summary", SET="depths=[14,20]"
	@$(BIN)/python -m bnlib reproduce --profile $(PROFILE) $(if $(NOTEBOOKS),--notebooks "$(NOTEBOOKS)") \
		$(if $(BUDGET),--budget $(BUDGET)) $(if $(CLUSTER),--cluster "$(CLUSTER)") $(if $(FRESH),--fresh) $(if $(SET),--set "$$SET")

report: $(READY)  ## render all notebooks and figures from results/; 2 to 4 minutes
	@$(BIN)/python -m bnlib report

test: $(READY)  ## run the tests, on up to four cores
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

test-faults: $(READY)  ## kill, starve and damage runs, workers and schedulers everywhere: 8 to 15 minutes
	@BNLIB_FAULTS=full $(BIN)/python -m pytest tests/test_faults.py tests/test_cluster.py

test-browser: $(READY)  ## build the site and read it, and run JupyterLab, in Chromium: 5 minutes
	@command -v chromium chromium-browser google-chrome >/dev/null || apt-get install --yes --quiet chromium || true
	@BNLIB_BROWSER=1 $(BIN)/python -m pytest tests/test_browser.py -rs

lint: $(READY)  ## check style, notebooks and the sizes of results/ and figures/
	@$(BIN)/ruff check .
	@$(BIN)/python tests/lint.py

lab: $(READY)  ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab notebooks/summary.ipynb

train: $(READY)  ## train one network: ARGS="resnet14 --trainable bn --epochs 16 --seed 0"
	@$(BIN)/python -m bnlib train $(ARGS)

bench: $(READY)  ## measure the speed of training, side by side: 4 to 6 minutes
	@$(BIN)/python -m benchmarks.speed

lock:  # resolve requirements.lock anew (needs uv), for maintainers
	uv pip compile pyproject.toml --extra report --extra site --extra cluster --extra dev --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --upgrade -o requirements.lock

clean:  ## remove build/: checkpoints, and the weights of networks trained in full, which are nowhere else; results/ and data/ stay
	rm -rf build
