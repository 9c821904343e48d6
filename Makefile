# What can be done with this checkout; `make` alone lists it. Needed: Python 3.11 or newer, git,
# and the package registries. Everything goes into .venv, nothing into the system's Python.

# The first Python on this machine that is new enough; another one with `make env PYTHON=...`.
PYTHON ?= $(or $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& echo $$python && break; done),python3)
# Only `make lock` needs uv.
UV ?= uv
# ESPHome wants a newer Python than the node; without one its check is left out, and says so.
PYTHON312 ?= $(shell for python in python3.14 python3.13 python3.12 python3 \
	$(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python); do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null \
	&& echo $$python && break; done)
# What checks device configurations; each in an environment of its own, because ESPHome pins much.
ESPHOME := esphome==2026.10.0
BLARK := blark==0.8.3
# Handed on to the command behind the target: make demo ARGS='--seconds 30 --json'
ARGS ?=

BIN := .venv/bin
# Nothing is built on the way in: what a source archive needs to build is in no lock.
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
INSTALL := $(PIP) install --require-hashes --only-binary :all:
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-annotate --custom-compile-command 'make lock' \
	pyproject.toml requirements/build.in $(ARGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help env demo test-env firmware-env firmware-check services check test test-long test-podman prove-sim prove-crash prove-kill prove-tamper prove-drain prove-bill prove-certify prove-import prove-hostile prove-swap prove-line prove-teach bench bench-books bench-line bench-teach bench-packings prove-asking prove-learning prove-injection backbone panel-docs panel-shots lock dist clean

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'

env: .venv/.node ## make .venv with what a node needs, once for each change of the lock

demo: env ## a virtual line with everything behind it; options by ARGS='--parts 200 --json'
	@$(BIN)/qcnode demo $(ARGS)

test-env: .venv/.dev services firmware-env ## env, the tools of the tests, and the services they start

firmware-env: build/blark/.$(BLARK) build/esphome/.$(ESPHOME) ## ESPHome and blark, which check firmware_configs

firmware-check: test-env ## every device configuration, by everything that can look at it
	@$(BIN)/qcnode firmware validate firmware_configs $(ARGS)

check: .venv/.dev ## ruff, mypy and the layers, without the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: test-env check ## everything a merge needs, in less than 15 minutes
	$(BIN)/pytest -n auto --dist loadfile -m 'not long and not podman' $(ARGS)

test-long: test-env ## the fault runs that take minutes each
	$(BIN)/pytest -m long $(ARGS)

test-podman: test-env ## build and start the containers; needs podman, buildah and debootstrap
	$(BIN)/pytest -m podman $(ARGS)

prove-sim: .venv/.dev ## 500 simulated factories under every fault; about 4 minutes; ARGS='--from 501 --json'
	@$(BIN)/python -m tests.sim --seeds 500 $(ARGS)

prove-crash: .venv/.dev ## 2,000 states a power cut can leave a ledger in, and 1,000 that must lose entries
	@$(BIN)/python -m tests.faults.crash_states --states 2000 $(ARGS)

prove-kill: test-env ## a node killed 214 times with kill -9, under load; about 15 minutes
	$(BIN)/pytest -v -s tests/faults/test_kill.py $(ARGS)

prove-tamper: .venv/.dev ## 1,120 ways to meddle with a ledger, each found; others with QCNODE_SEED=7
	$(BIN)/pytest -v tests/faults/test_tamper.py $(ARGS)

prove-drain: test-env ## a month of entries (1.6 million) drained while the line goes on; about 10 minutes
	$(BIN)/python -m tests.faults.measure_drain $(ARGS)

prove-bill: .venv/.dev ## a million entries of ten nodes billed and verified, about 15 minutes; ARGS='--out FOLDER'
	@$(BIN)/qcnode billing prove $(ARGS)

prove-certify: .venv/.dev ## whether earned limits hold over 1,000 splits, and how soon drift is seen; 15 minutes
	@$(BIN)/python -m tests.prove_certify $(ARGS)
	@$(BIN)/python -m tests.measure_drift

prove-import: test-env ## every wrong thing said of every kind of export, some minutes; ARGS='--seeds 3'
	@$(BIN)/python -m tests.models.mismatches $(ARGS)

prove-hostile: test-env ## hostile models offered to a line in service, about 2 minutes
	@$(BIN)/python -m tests.faults.measure_hostile $(ARGS)

prove-swap: test-env ## 1,000 changes of model on a running line, about 15 minutes; ARGS='--swaps 100'
	@$(BIN)/python -m tests.faults.measure_swap $(ARGS)

prove-teach: .venv/.dev ## AUROC of `qcnode teach` against its aims, 15 runs on recorded parts, 20 minutes; ARGS='--seeds 0'
	@$(BIN)/python -m tests.models.prove_teach $(ARGS)

prove-line: test-env ## 10,000 handshakes with a PLC, and a million triggers under every fault; about 15 minutes
	$(BIN)/pytest -m long tests/lines/test_modbus.py
	@$(BIN)/python -m tests.prove_line $(ARGS)

bench-line: test-env ## trigger to action over 3,000 parts, with a broker that is well and one that hangs; 4 minutes
	@$(BIN)/python -m tests.measure_line $(ARGS)

bench: env ## the frame path against the least it could cost, as ratios; 10 minutes; ARGS='--json'
	@$(BIN)/qcnode bench $(ARGS)

bench-books: test-env ## figures of ledger, prices, sync and import, as ratios; ARGS='--json --folder /var/tmp'
	@$(BIN)/python -m tests.measure_books $(ARGS)

bench-teach: .venv/.dev ## AUROC, dirty pictures and time of teaching on recorded parts; half an hour; ARGS='--seeds 0'
	@$(BIN)/python -m tests.models.measure_teach $(ARGS)

bench-packings: .venv/.dev ## tokens of each way to show recorded parts, by each provider's formula; 4 minutes; ARGS='--parts 8'
	@$(BIN)/python -m tests.bridge.measure_packings --parts 20 --ask 6 $(ARGS)

backbone: .venv/.train .venv/.dev ## pretrain a backbone on formula pictures and set it beside the bank; torch; 10 minutes of one core
	@mkdir -p build
	@$(BIN)/python -m qcmodels.pretrain build/backbone.npz
	@$(BIN)/python -m tests.models.measure_backbone build/backbone.npz $(ARGS)

prove-asking: env ## what questions about 5 % of recorded parts are worth, three times; 6 minutes; ARGS='--seeds 0'
	@$(BIN)/python -m tests.measure_asking $(ARGS)

prove-learning: env ## teach, ask, export labels, teach again on recorded parts, three times; 10 minutes; ARGS='--seeds 0'
	@$(BIN)/python -m tests.measure_learning $(ARGS)

prove-injection: .venv/.dev ## 200 attacks printed on parts, and a provider that obeys them; 2 minutes
	$(BIN)/pytest -v tests/faults/test_injection.py $(ARGS)

panel-docs: .venv/.dev ## write docs/alarms.md and docs/panel/roles.md from the code
	@$(BIN)/python -m tests.node.panel_docs

panel-shots: test-env ## screenshots of every page into docs/panel, in both themes and languages
	@$(BIN)/python -m tests.node.panel_shots docs/panel

lock: ## solve requirements/*.lock anew, needs uv; newest versions by ARGS=--upgrade
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: pip install uv, or UV=path/to/uv" >&2; exit 1; }
	$(COMPILE) --extra cpu --output-file requirements/node.lock
	$(COMPILE) --extra cpu --extra postgres --constraint requirements/node.lock --output-file requirements/billing.lock
	$(COMPILE) --extra dev --constraint requirements/billing.lock --output-file requirements/dev.lock
	$(COMPILE) --extra cpu --extra train --constraint requirements/node.lock --output-file requirements/train.lock

dist: env ## build the wheel into dist/
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

clean: ## remove .venv, dist and every cache
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

services:
	@.ci/services

# A registry that has them not just now is no reason to test nothing else: those checks are skipped.
build/blark/.$(BLARK): | .venv/bin/python
	@rm -rf build/blark && mkdir -p build && .venv/bin/python -m venv build/blark
	@build/blark/bin/pip install --quiet $(BLARK) && touch $@ || \
		echo "MISSING: $(BLARK) could not be installed: structured text is checked by our own rules alone" >&2

build/esphome/.$(ESPHOME):
	@if [ -z "$(PYTHON312)" ]; then \
		echo "MISSING: ESPHome needs Python 3.12 or newer: make firmware-env PYTHON312=/path/to/python3" >&2; \
	else rm -rf build/esphome && mkdir -p build && $(PYTHON312) -m venv build/esphome && \
		build/esphome/bin/pip install --quiet $(ESPHOME) && touch $@ || \
		echo "MISSING: $(ESPHOME) could not be installed: its files are checked by our own rules alone" >&2; \
	fi

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "qcnode needs Python 3.11 or newer, and '$(PYTHON)' is not: make env PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "'$(PYTHON) -m venv' does not work: on Debian and Ubuntu, apt-get install python3-venv" >&2; exit 1; }

.venv/.node: requirements/node.lock pyproject.toml | .venv/bin/python
	@$(INSTALL) -r requirements/node.lock || { \
		echo "requirements/node.lock could not be installed: see above for the package; is the registry reachable?" >&2; exit 1; }
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.train: requirements/train.lock .venv/.node
	@$(INSTALL) -r requirements/train.lock || { \
		echo "requirements/train.lock could not be installed: see above for the package; is the registry reachable?" >&2; exit 1; }
	@touch $@

.venv/.dev: requirements/dev.lock .venv/.node
	@$(INSTALL) -r requirements/dev.lock || { \
		echo "requirements/dev.lock could not be installed: see above for the package; is the registry reachable?" >&2; exit 1; }
	@touch $@
