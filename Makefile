# make test    set up a virtual environment on a fresh machine, then the style checks and the quick tests, before every commit
# make test-all  the same set-up, the style checks, then all tests; make test-rest: those that `make test` leaves out, but for repetitions on further policies
# make test-gpu  the same set-up, then the tests that need a CUDA device
# make gpu-check  the same set-up, then on a CUDA device: equality, waits, speed beside `sam2`, memory; results in runs/gpu (10 minutes)
# make style   the same set-up, then ruff and mypy; what they ask for is in pyproject.toml
# make docs    the documentation site, in site/
# make demo    the same set-up, then segment the demo video; the result is in outputs/demo, and in outputs/demo/memory the same beside
#              SAM 2's own memory (fifo), which fills up with the tree and loses the fish behind it (DEMO_POLICY=... for another policy)
# make clean   remove the virtual environment, the site and the results of the demo
#
# VENV=DIR         another place for the virtual environment (also as an environment variable)
# PIP_FLAGS=...    more flags for pip, for example the CPU build of torch:
#                  make test PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"
# WORKERS=N        processes that share the test files, one thread each; default 2; 0: one after the other in this process
# PYTEST_FLAGS=... more flags for pytest

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
PYTEST_FLAGS ?=
WORKERS ?= 2
DEMO_CFG ?= configs/nano_v2.yaml
DEMO_CKPT ?=
DEMO_POLICY ?= dam4sam

PY := $(VENV)/bin/python
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check --no-compile -c constraints.txt $(PIP_FLAGS)
RECIPE := setup.py pyproject.toml constraints.txt
# Tests and checks start many processes: what they import is compiled once, whatever the caller's settings, outside the tree.
BYTECODE := PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(abspath $(VENV))/bytecode
READY := $(VENV)/.ready
READY_FOR_TESTS := $(VENV)/.ready-for-tests
READY_FOR_DOCS := $(VENV)/.ready-for-docs

.PHONY: test test-all test-rest test-gpu gpu-check style docs demo clean

# The files are handed out in the order of tests/conftest.py, those that take longest first.
test test-all test-rest: $(READY_FOR_TESTS)
	$(BYTECODE) OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TIER) tests $(PYTEST_FLAGS)

test test-all: style
test: TIER := -m "not full"
test-rest: TIER := -m "full and not extended"

test-gpu: $(READY_FOR_TESTS)
	$(PY) -c "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 'no CUDA device is visible to torch')"
	$(PY) -m pytest -q -rs -m gpu tests $(PYTEST_FLAGS)

gpu-check: $(READY_FOR_TESTS)
	$(PY) benchmarks/gpu_check.py --out runs/gpu $(CHECK_FLAGS)

style: $(READY_FOR_TESTS)
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

docs: $(READY_FOR_DOCS)
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build

demo: $(READY)
	$(PY) tools/vos_inference.py \
	    --sam2_cfg $(DEMO_CFG) $(if $(DEMO_CKPT),--sam2_checkpoint $(DEMO_CKPT)) \
	    --video notebooks/videos/demo --points 54,128 --output outputs/demo \
	    --save_overlay --contact_sheet --device cpu memory_policy=$(DEMO_POLICY)
	$(PY) tools/inspect_memory.py show --config $(DEMO_CFG) $(if $(DEMO_CKPT),--weights $(DEMO_CKPT)) \
	    --video notebooks/videos/demo --point 54,128 --policies fifo,$(DEMO_POLICY) \
	    --width 280 --out outputs/demo/memory

# The library. It is built with the environment's own setuptools, so that no second copy is fetched.
$(READY): $(RECIPE)
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) setuptools wheel
	$(PIP_INSTALL) --no-build-isolation -e .
	touch $@

# The tests also need pytest and, to compare with, the reference package; its requirements are ours, its CUDA
# extension is not needed. `sam2` is never imported outside the tests.
$(READY_FOR_TESTS): $(READY)
	$(PIP_INSTALL) --no-build-isolation -e ".[dev]"
	SAM2_BUILD_CUDA=0 $(PIP_INSTALL) --no-build-isolation --no-deps sam2==1.1.0
	touch $@

$(READY_FOR_DOCS): $(READY)
	$(PIP_INSTALL) --no-build-isolation -e ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) outputs/demo site
