# One target for each task of a developer; every target sets up what it needs in .venv.
#
#   make demo     the main job, end to end, on this machine (add ARGS=--keep to leave it running)
#   make test     every test that needs no cluster and no GPU
#   make test-avx2  the tests of arithmetic once more, on the kernels of CPUs without AVX-512
#   make check    formatting, lint, types, layers, the documentation site and the tests: what CI runs
#   make e2e      the main job and faults on a real cluster (KUBECONFIG, ../shared/kube/cluster or kind)
#   make bench    the measurements of docs/benchmarks.md (BENCH_DATA=folder of tasks for accuracy and tree)
#   make gpu      the runtime on this machine's GPU, offline, with what is installed; at most eight minutes
#   make docs     build the documentation site into build/site
#   make crds     write crds/*.yaml and docs/resources.md from the types
#   make clean    remove what the other targets made
#
# PYTHON=python3.11  TORCH=cpu|cuda  HMI_PIP_ARGS="--index-url ..."  change how .venv is made.

SHELL := /bin/bash
PYTHON ?= python3
TORCH ?= cpu
VENV ?= .venv
HMI_PIP_ARGS ?=
PYTEST_ARGS ?= -n 2 --dist loadfile
ARGS ?=
# Folder of labelled tasks for the benchmarks accuracy and tree; without it the others run alone.
BENCH_DATA ?=

# Tests that compute with models, on the runtime's kernels.
NUMERIC_TESTS := $(wildcard $(addprefix tests/runtime/, models/test_*.py tables/test_*.py adapters/test_*.py \
  adapters/peft/test_*.py serving/test_load_*.py serving/test_pipeline_*.py \
  $(addprefix training/test_training_, adapter_training.py compression.py distillation.py teacher.py)))
# Variables that limit torch, oneDNN and MKL to AVX2.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2

BIN := $(VENV)/bin
DEMO := $(VENV)/.demo-$(TORCH)
DEV := $(VENV)/.dev-$(TORCH)
# What an installation depends on: among others the C++ kernels, which it compiles.
INSTALLED := pyproject.toml scripts/install runtime/build_kernels.py \
  $(wildcard $(addprefix runtime/hmi_runtime/adapters/native/, *.cpp *.h))
CODE := crds operator control_plane runtime cli
CHECKED := $(CODE) tests examples scripts benchmarks

export HMI_PIP_ARGS

.PHONY: help demo test test-avx2 check docs e2e format bench gpu crds clean

help:
	@sed -n 's/^#   make/make/p' Makefile

demo: $(DEMO)
	$(BIN)/hmi demo $(ARGS)

# Two workers on two cores: one thread each, or the workers would wait for one another.
test: $(DEV)
	@mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/pytest --junitxml=build/tests.xml $(PYTEST_ARGS); status=$$?; \
	$(BIN)/python scripts/skipped.py build/tests.xml; exit $$status

# For correctness only: it does not measure an older CPU's speed.
test-avx2: $(DEV)
	$(AVX2) OMP_NUM_THREADS=1 $(BIN)/pytest $(PYTEST_ARGS) $(NUMERIC_TESTS)

check: $(DEV)
	$(BIN)/ruff format --check $(wildcard $(CHECKED))
	$(BIN)/ruff check $(wildcard $(CHECKED))
	$(BIN)/mypy $(addprefix -p ,hmi_api hmi_operator hmi_control_plane hmi_runtime hmi_cli hmi_bench)
	$(BIN)/lint-imports
	$(MAKE) docs
	$(MAKE) test

e2e: $(DEV)
	PYTHON=$(BIN)/python scripts/e2e $(ARGS)

format: $(DEV)
	$(BIN)/ruff check --fix $(wildcard $(CHECKED))
	$(BIN)/ruff format $(wildcard $(CHECKED))

bench: $(DEV)
	PYTHONPATH=benchmarks $(BIN)/python -m hmi_bench run \
	  $(if $(BENCH_DATA),--data "$(BENCH_DATA)" --domains benchmarks/domains.json) $(ARGS)

# Installs nothing: it uses .venv if there is one, else the machine's own Python with its CUDA build of PyTorch.
gpu:
	PYTHONPATH=crds:runtime:benchmarks timeout 480 $(or $(wildcard $(BIN)/python),$(PYTHON)) -m hmi_bench gpu $(ARGS)

docs: $(DEV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

crds: $(DEV)
	$(BIN)/python -m hmi_api.resources.crd crds
	cp crds/*.yaml helm/hmi/files/crds/
	$(BIN)/python -m hmi_api.resources.reference > docs/resources.md

clean:
	rm -rf $(VENV) build dist .hmi .bench .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(DEMO): $(INSTALLED)
	PYTHON="$(PYTHON)" scripts/install "$(VENV)" "control-plane,runtime,cli,demo,$(TORCH)"
	@touch $@

$(DEV): $(INSTALLED)
	PYTHON="$(PYTHON)" scripts/install "$(VENV)" "control-plane,operator,runtime,cli,demo,bench,dev,$(TORCH)"
	@touch $@ $(DEMO)
