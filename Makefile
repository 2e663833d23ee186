# make book | pdf | test | test-data | notebooks | bench | gpu | lock | clean        (see README.md)
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
UV     := $(BIN)/uv
STAMP  := $(VENV)/.installed
JOBS   ?= 2

export PYTHONDONTWRITEBYTECODE :=
# one kernel a core: without this every worker takes all cores and they fight
export OMP_NUM_THREADS ?= 1

.PHONY: help book pdf test test-data checks notebooks bench gpu lock clean environment
help:
	@echo "make book       rerun what changed, build the book strictly into _build/html"
	@echo "make pdf        the same, and the whole book printed by Chromium into _build/paper-companion.pdf"
	@echo "make test       style, unit tests, every notebook against its stored outputs, strict build"
	@echo "make test-data  the tests that read real data, from COMPANION_DATA"
	@echo "make notebooks  rerun and store the notebooks that changed   (NB=snip: that one, whatever changed)"
	@echo "make bench      the benchmarks behind the performance page   (PEERS=1: install all peers first)"
	@echo "make gpu        what a GPU machine should show, within BUDGET=540 seconds, into OUT=runs/gpu"
	@echo "make environment  the packages alone, into .venv"
	@echo "make clean      remove what was built and cached"
	@echo "make lock       resolve requirements.lock anew from pyproject.toml"

environment: $(STAMP)

$(UV):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 14) else \
	  "PYTHON=$(PYTHON) is Python %d.%d; this project needs 3.11, 3.12, 3.13 or 3.14 (make PYTHON=python3.12 ...)" % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.8,<1'

# UV_TORCH_BACKEND=cpu takes the small CPU-only torch and torchvision. They come from another
# index and so have other hashes: the lock then holds the versions only.
$(STAMP): requirements.lock pyproject.toml | $(UV)
ifdef UV_TORCH_BACKEND
	$(UV) pip install --quiet --python $(BIN)/python --no-verify-hashes -c requirements.lock -e '.[book,sweep,test]'
else
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
endif
	@touch $@

notebooks: $(STAMP)
	$(BIN)/companion refresh $(NB) --jobs $(JOBS)

book: notebooks
	$(BIN)/companion build

pdf: notebooks
	$(BIN)/companion build --pdf

# names and contents of all files of the project: the same state has the same outcome
STATE = git ls-files -co --exclude-standard | git hash-object --stdin-paths 2>&1 | git hash-object --stdin

test: $(STAMP)
	@state="$$($(STATE)) $(COMPANION_DATA)"; \
	if [ -z "$(FORCE)" ] && [ "$$state" = "$$(cat _build/.tested 2>/dev/null)" ]; then \
	  echo "nothing changed since the last green run (make test FORCE=1 tests all the same)"; \
	else \
	  $(MAKE) --no-print-directory checks && mkdir -p _build && echo "$$state" > _build/.tested; \
	fi

# one more than cores: sweeps, kernels and schedulers are waited for
WORKERS = $(shell expr $(JOBS) + 1)

checks: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/companion build
	IPYTHONDIR="$(CURDIR)/_build/ipython" PYTHONPATH="$(CURDIR)/src" PYTHONSTARTUP= \
	  $(BIN)/pytest tests notebooks --ignore tests/book --nbval-lax --nbval-current-env \
	  --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 600 -n $(WORKERS) \
	  --dist loadfile --no-loadscope-reorder
	$(BIN)/pytest tests/book -n $(JOBS) --dist worksteal

test-data: $(STAMP)
	@[ -d "$(COMPANION_DATA)" ] || { echo "set COMPANION_DATA to the folder of the data sets"; exit 2; }
	$(BIN)/pytest tests --ignore tests/book -m real_data -n $(JOBS) --dist loadfile

bench: $(STAMP)
	@mkdir -p _build
ifdef PEERS
	$(UV) pip install --quiet --python $(BIN)/python -c requirements.lock -e '.[peers]'
	$(UV) pip install --quiet --python $(BIN)/python --no-deps torchattacks
endif
	$(BIN)/pytest tests/benchmarks -o python_files='bench_*.py' -p no:xdist \
	  --benchmark-only --benchmark-timer time.process_time --benchmark-json=_build/benchmarks.json

# with whatever Python is there: a GPU machine has its own torch, and may have no network
BUDGET ?= 540
OUT    ?= runs/gpu
gpu:
	PYTHONPATH=src $(PYTHON) -m companion gpu --budget $(BUDGET) --out $(OUT) $(if $(DATA),--data $(DATA))

lock: $(UV)
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --extra book --extra sweep --extra test pyproject.toml -o requirements.lock

clean:
	rm -rf _build .pytest_cache .ruff_cache .benchmarks
