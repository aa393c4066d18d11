# riverrun: everything a developer types. `make demo` is the way in; `make help` lists the rest.

PYTHON ?= python3
PYTEST_ARGS ?=
BENCH_ARGS ?= --quick
CHAOS_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
STUBS := protos/riverrun_pb2.py protos/riverrun_pb2.pyi protos/riverrun_pb2_grpc.py

# Tried first on a machine without an NVIDIA GPU: where pip is set up to find a CPU build of this version it spares a
# download of several GB. Where it can't be had, the range in pyproject.toml decides.
TORCH_WITHOUT_GPU := torch==2.13.0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo test test-long chaos lint format bench proto realsize clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

venv: $(STAMP)  ## .venv with riverrun (editable) and its development tools

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "riverrun needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1 | head -1); name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo 'Installing riverrun and its tools into $(VENV): some minutes the first time.'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@if ! nvidia-smi -L >/dev/null 2>&1 && ! $(BIN)/python -m pip show -q torch 2>/dev/null; then \
	  $(BIN)/python -m pip install -q --disable-pip-version-check '$(TORCH_WITHOUT_GPU)' \
	  || echo "$(TORCH_WITHOUT_GPU) can't be had here; taking the range in pyproject.toml"; fi
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: venv  ## a prompt becomes video, sharp video and geometry in out/, and outlives its worker
	$(BIN)/riverrun demo

test: lint  ## lint, then every test that is not marked slow
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-long: venv  ## the long forms, which are marked slow: 500 sessions ended in every way, and the like
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -m slow -s $(PYTEST_ARGS)

chaos: venv  ## real processes killed, frozen and robbed 200 times while clients stream; CHAOS_ARGS="--faults 20"
	$(BIN)/python -m tests.chaos.run $(CHAOS_ARGS)

# The root is the package, so mypy needs a folder in which it is called `riverrun`: a link outside the tree, since one
# inside would make it walk in circles.
lint: venv  ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@link=$$(mktemp -d) && trap 'rm -rf "$$link"' EXIT && ln -s "$(CURDIR)" "$$link/riverrun" && cd "$$link" && \
	  MYPYPATH="$$link" "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml" \
	  --cache-dir "$(CURDIR)/.mypy_cache" -p riverrun

format: venv  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: venv  ## every benchmark, short; BENCH_ARGS= for the full length
	$(BIN)/python -m riverrun.bench.overhead $(BENCH_ARGS)
	$(BIN)/python -m riverrun.bench.batching $(BENCH_ARGS)
	$(BIN)/python -m riverrun.bench.pacing $(BENCH_ARGS)
	$(BIN)/python -m riverrun.bench.watching $(BENCH_ARGS)
	$(BIN)/python -m riverrun.bench.horizon $(BENCH_ARGS)
	$(BIN)/python -m riverrun.bench.adherence $(BENCH_ARGS)
	$(BIN)/python -m riverrun.bench.cache $(BENCH_ARGS)

realsize: venv  ## random weights of the released shapes: predicted against measured bytes
	$(BIN)/python -m riverrun.bench.realsize
	$(BIN)/python -m riverrun.bench.realsize --meta

proto: venv  ## generate the Python stubs again after a change of protos/riverrun.proto
	@out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	  $(BIN)/python -m grpc_tools.protoc -Iriverrun/protos=protos --python_out="$$out" --pyi_out="$$out" \
	  --grpc_python_out="$$out" protos/riverrun.proto && cp "$$out"/riverrun/protos/* protos/
	@git diff --stat -- $(STUBS) || true

clean:  ## remove what was built or measured here, but not .venv
	rm -rf build dist out .mypy_cache .ruff_cache .pytest_cache
