# Every target creates and fills .venv by itself and is quick the second time: a stamp stands for an install, and a
# change in pyproject.toml or constraints.txt makes it anew.
#
#   make install      make .venv and fill it with the package and the tested versions of what it needs; nothing more
#   make quickstart   fine-tune a small base model in 4-bit on this machine, then say how to talk to it
#   make test         the tests; its last line is pytest's
#   make check        ruff, mypy and the house rules
#   make docs         write everything that is generated: recipe schema, catalogue, verb pages, notebook
#   make test-slow    the tests that take half a minute and more each: the quickstart as promised, grids, the notebook
#   make faults       the fault programme for MINUTES=40: kills, torn saves, full disks; writes docs/reliability.md's table
#   make bench        ours beside plain TRL and Unsloth on this machine's CPU for MINUTES=20: benchmarks/results/speed_*.md
#   make audit        known vulnerabilities of the packages in constraints.txt, by pip-audit; needs network
#   make test-unsloth the tests of `backend: unsloth`, in a .venv-unsloth of their own; no GPU is needed
#   make test-gpu     the tests that need a CUDA device
#   make clean        delete both .venvs and the caches; runs in outputs/ stay

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The interpreter .venv is made with: PYTHON=/path/to/python3.12 make …
PYTHON ?=
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
INSTALL_FROM := pyproject.toml constraints.txt

.PHONY: help install quickstart test check docs test-slow faults bench audit test-unsloth test-gpu clean
help:
	@sed -n 's/^#   make /  make /p' Makefile

install: $(VENV)/.stamp-core

# One thread: the tiny base gains nothing from a second one, and on a busy machine two wait for each other.
quickstart: export OMP_NUM_THREADS ?= 1
quickstart: $(VENV)/.stamp-core
	$(RUN) -m finetune.sft recipes/quickstart.yaml --overwrite
	@printf '\nTalk to it:\n  %s -m finetune.chat outputs/quickstart\nThe same without its adapter:\n  %s -m finetune.chat outputs/quickstart --base\n' $(RUN) $(RUN)

test: $(VENV)/.stamp-dev
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

check: $(VENV)/.stamp-dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(RUN) -m pytest tests/house

docs: $(VENV)/.stamp-dev
	$(RUN) -m finetune.recipe.catalogue
	$(RUN) -m finetune.recipe.documents
	$(RUN) docs/make_verb_pages.py
	$(RUN) docs/make_method_table.py
	$(RUN) notebooks/make_notebook.py

test-slow: $(VENV)/.stamp-dev
	$(RUN) -m pytest -m slow -n 2 --dist loadfile --max-worker-restart 0

# What was counted on this commit and machine is continued: call it again until the counts are full.
faults: MINUTES ?= 40
faults: $(VENV)/.stamp-dev
	$(RUN) -m tests.faults --minutes $(MINUTES)

# On all cores, and nothing else should run beside it. What was measured for this code on this machine is continued.
bench: MINUTES ?= 20
bench: $(VENV)/.stamp-dev
	$(RUN) -m benchmarks.speed --minutes $(MINUTES)

# Each pin as it stands, nothing installed; pip-audit lives in an environment of its own. A missing network is reported and does not pass.
audit: .venv-audit/.stamp-made
	@rm -f .venv-audit/report.json
	@.venv-audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off \
	  --timeout 30 --format json --output .venv-audit/report.json > .venv-audit/report.log 2>&1 || true
	@.venv-audit/bin/python .ci/audit.py .venv-audit/report.json

.venv-audit/.stamp-made: $(VENV)/.stamp-made
	$(RUN) -m venv --clear .venv-audit
	.venv-audit/bin/python -m pip --disable-pip-version-check --quiet install pip-audit==2.10.1
	@touch $@

# A place of its own, made by this file like .venv: what Unsloth changes at its import touches no other test.
test-unsloth:
	@$(MAKE) --no-print-directory VENV=.venv-unsloth .venv-unsloth/.stamp-unsloth
	.venv-unsloth/bin/python -m pytest -m unsloth --timeout 900 tests/unsloth

test-gpu: $(VENV)/.stamp-dev
	@$(MAKE) --no-print-directory VENV=.venv-unsloth .venv-unsloth/.stamp-unsloth
	$(RUN) -m pytest -m gpu tests/gpu --ignore tests/gpu/test_unsloth.py
	.venv-unsloth/bin/python -m pytest -m gpu tests/gpu/test_unsloth.py

clean:
	rm -rf $(VENV) .venv-unsloth .venv-audit .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

# torch first and alone: another package's wish for torch can bring a newer one, with several GB of CUDA packages.
# The pin has no build tag, so a machine whose index offers the CUDA build gets that one.
$(VENV)/.stamp-core: $(VENV)/.stamp-made $(INSTALL_FROM)
	@echo 'Filling $(VENV): torch first (a few minutes the first time).'
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

$(VENV)/.stamp-dev: $(VENV)/.stamp-made $(INSTALL_FROM)
	@echo 'Filling $(VENV) for development: torch first (a few minutes the first time).'
	$(PIP) torch
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/.stamp-core $@

# The extra `unsloth` without what its packages ask for beyond it: docs/unsloth.md says why.
$(VENV)/.stamp-unsloth: $(VENV)/.stamp-dev
	@echo 'Adding Unsloth to $(VENV).'
	$(RUN) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["unsloth"])' \
	  | xargs $(RUN) -m pip --disable-pip-version-check --quiet install --no-deps
	@touch $@

$(VENV)/.stamp-made:
	@suits() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; }; \
	for python in $(if $(PYTHON),'$(PYTHON)',python3 python3.13 python3.12 python3.11 python3.14); do \
	  if suits "$$python"; then break; fi; \
	  python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'Python 3.11 or newer is needed; $(if $(PYTHON),$(PYTHON),python3) is $(shell $(if $(PYTHON),$(PYTHON),python3) --version 2>&1 | head -n 1).' >&2; \
	  echo '  Install one, or name it: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)' >&2; \
	  exit 4; \
	fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2> /dev/null; then \
	  echo "$$python has no venv module, so .venv cannot be made." >&2; \
	  echo '  On Debian and Ubuntu: sudo apt-get install python3-venv' >&2; \
	  exit 4; \
	fi; \
	if ! $(RUN) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then \
	  echo "Making $(VENV) with $$("$$python" --version)."; \
	  "$$python" -m venv --clear $(VENV); \
	fi
	@touch $@
