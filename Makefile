# Two commands on a fresh machine: `make demo` and `make test`. Nothing else has to be installed or configured.
PYTHON ?= python3
DEMO_EPOCHS ?= 10
DEMO_SIZE ?= 128
DEMO_TRIALS ?= 2
DEMO_CATEGORIES ?= brick,gear
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
WHAT := --constraint constraints.txt --editable '.[dev]'

.PHONY: demo test lint clean

demo: .venv/installed
	$(BIN)/msad data demo demo
	$(BIN)/msad search --dataset demo --categories $(DEMO_CATEGORIES) --architectures feature_pyramid,multiscale \
	    --trials $(DEMO_TRIALS) --epochs $(DEMO_EPOCHS) --image-size $(DEMO_SIZE) --set model/base_width=8

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# uv takes a tenth of pip's time; where only pip knows the way to the packages, as to an index of one's own, pip does it.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) uv && $(BIN)/uv pip install --quiet --python $(BIN)/python $(WHAT) || $(PIP) $(WHAT)
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
