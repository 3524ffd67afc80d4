# Every target makes its own environment from a pinned lock file, once. `make help` lists the targets.

SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# Two test workers suit two cores and more: XLA itself spreads over what is left.
WORKERS ?= 2
ARGS ?=

ifneq ($(filter-out help,$(or $(MAKECMDGOALS),help)),)
INTERPRETER := $(shell requirements/interpreter.sh $(PYTHON))
ifeq ($(INTERPRETER),)
$(error PYTHON=$(PYTHON) is no interpreter that runs here; name another, such as PYTHON=python3.12)
endif
VERSION := $(shell $(INTERPRETER) -c 'import sys; print("py%d%d" % sys.version_info[:2])')
endif
LOCK := requirements/$(VERSION).lock
# The stamp names the version, so another PYTHON makes the environment anew.
STAMP := $(VENV)/installed-$(VERSION)
# The page has an environment of its own: gradio and the 25 packages that it brings are needed for nothing else.
APP_LOCK := requirements/app-$(VERSION).lock
APP_STAMP := .venv-app/installed-$(VERSION)
RUN = $(VENV)/bin/python
# Bytecode is kept, also where containers forbid it: compiling the libraries anew takes every process ten seconds.
export PYTHONDONTWRITEBYTECODE :=
# XLA takes and gives back large buffers in every update; an allocator that keeps them trains up to 1.5 times as fast on a CPU.
PRELOAD ?= $(firstword $(wildcard /usr/lib/*/libtcmalloc_minimal.so.4 /usr/lib64/libtcmalloc_minimal.so.4))

.PHONY: help demo emoji serve test smoke slow test-peers test-app fuzz lint docs dist bench lock

help:  ## List the targets and variables
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16
	@echo 'Variables: PYTHON=python3.12 (interpreter), VENV=.venv (environment), WORKERS=2 (test processes),'
	@echo '           ARGS="-k sharding" (passed on to pytest)'

demo: export LD_PRELOAD := $(PRELOAD)
demo: $(STAMP)  ## Train a small CLIP, VQGAN and DALL-E; search, reconstruct, draw and paint images (runs/demo/index.html)
	$(RUN) -m multimodal_jax demo

# TARBALLS=FOLDER: npm's tarballs are there, and nothing is downloaded.
emoji: export LD_PRELOAD := $(PRELOAD)
emoji: $(STAMP)  ## The same with drawings by five artists, which npm downloads (runs/emoji/index.html; hours on two cores)
	$(RUN) -m train_jax prepare emoji/64/held_out=none emoji/64/held_out=twemoji/languages=en+el $(if $(TARBALLS),--from=$(TARBALLS))
	$(RUN) -m multimodal_jax demo --data emoji

RUNS ?= runs/demo
serve: export LD_PRELOAD := $(PRELOAD)
serve test-app: VENV := .venv-app
serve: $(APP_STAMP)  ## Open the page of trained models in the browser (RUNS=runs/demo)
	$(RUN) -m multimodal_jax serve $(RUNS) $(ARGS)

# ARGS="-k test_page": what needs gradio and no browser.
test-app: $(APP_STAMP)  ## Test the page with gradio, and in a headless Chromium if there is one
	# gradio leaves event loops and sockets open, which are no errors of the tests.
	$(RUN) -m pytest -W ignore::pytest.PytestUnraisableExceptionWarning tests/multimodal $(ARGS)

test: $(STAMP)  ## Run the tests
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow" $(ARGS)

# What depends on the versions of interpreter and libraries: every package is imported, trained, saved, loaded and used once.
SMOKE := tests/test_imports.py tests/nn tests/train tests/data/test_stream.py tests/clip/test_clip.py tests/clip/test_cli.py \
    tests/vqgan/test_vqgan.py tests/vqgan/test_prior.py tests/vqgan/guided/test_cli.py tests/dalle/test_dalle.py \
    tests/dalle/test_cli.py --ignore tests/train/runs --ignore tests/train/sweep/test_sweep.py --ignore tests/train/test_hosts.py
smoke: $(STAMP)  ## Run the tests that use everything once
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow" $(SMOKE) $(ARGS)

slow: $(STAMP)  ## Run the tests that take long: pairs of hosts, whole models, demos, notebooks, many damaged files
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m slow $(ARGS)

test-peers: VENV := .venv-peers
test-peers:  ## Compare with the peers themselves (installs torch, transformers and others into .venv-peers)
	test -e $(VENV)/bin/python || $(INTERPRETER) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[peers,dev]'
	# Without torchvision, which they name and whose builds must be torch's: the tests replace it.
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps open_clip_torch==3.3.0 timm==1.0.31
	$(RUN) -m pytest -m peers tests/peers $(ARGS)

fuzz: $(STAMP)  ## Feed damaged files to everything that reads files (ARGS="--cases 100000 --seed 1")
	$(RUN) -m tests.fuzz.readers $(ARGS)

lint: $(STAMP)  ## Check style and formatting
	$(RUN) -m ruff check .

# Strict: a link to a page or heading that is not there fails. What that does not see, pictures and addresses, is checked after.
docs: $(STAMP)  ## Build the pages of docs/ and the reference of all public functions (build/site/index.html)
	$(RUN) -m zensical build --strict --clean
	$(RUN) -m tests.check_site build/site

# `tests/train/test_published.py` installs such a wheel and opens all configs by name. The renderer of Markdown lets twine see
# what an index would refuse of README.
dist: VENV := .venv-dist
dist:  ## Build the wheel and the archive of sources, and check that a package index would take them (dist/)
	test -e $(VENV)/bin/twine || { $(INTERPRETER) -m venv $(VENV) && \
	    $(RUN) -m pip install --quiet --disable-pip-version-check build twine 'readme_renderer[md]'; }
	rm -rf dist
	$(RUN) -m build
	$(RUN) -m twine check --strict dist/*

# Those of trained models (drawing, painting) are called by name: their docstrings tell which runs they need.
bench: $(STAMP)  ## Measure all that needs no trained model, and write docs/benchmarks.md (QUICK=1: ten minutes on two cores)
	$(RUN) -m benchmarks $(if $(QUICK),--quick) $(ARGS)

$(STAMP): $(LOCK)
$(APP_STAMP): $(APP_LOCK)
$(STAMP) $(APP_STAMP): setup.py
	$(INTERPRETER) -m venv --clear $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --no-deps -r $(filter %.lock,$^)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(@D)/bin/python -m pip check
	@touch $@

requirements/%.lock:
	@echo "no lock file for PYTHON=$(PYTHON): there are $(notdir $(wildcard requirements/*.lock))" \
	    "(choose one with PYTHON=python3.12, or run make lock)" >&2; exit 1

lock: VENV := .venv-lock
lock:  ## Resolve the dependencies afresh and rewrite the lock files of PYTHON
	$(call resolve,$(LOCK),-e '.[notebooks$(,)docs$(,)dev]')
	$(call resolve,$(APP_LOCK),-e '.[app$(,)dev]' playwright)
	rm -r $(VENV)

, := ,
define resolve
	$(INTERPRETER) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check $(2)
	$(RUN) -m pip freeze --all --exclude-editable --exclude pip > $(1).new
	mv $(1).new $(1)
endef
