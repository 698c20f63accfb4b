# Sets up all that is needed in $(VENV), then trains the demo or runs the tests.
#   make demo                       train a small Mask R-CNN and look at what it learned
#   make test                       run the test suite; `make test-all` also what guards developers' tools
#   make setup                      only install; `make dev` also what tests and lint need
#   make lint, format, clean
# Variables: PYTHON=python3.11, VENV=.venv, PIP_ARGS="..." (passed to every pip install),
#   JOBS=2                          processes that run the tests, of 3 GB of memory each
#   DETECTRON2=<checkout or URL>    the Python part of another Detectron2, until `make clean`
#   DETECTRON2='git+https://...'    the whole of it, built by pip with your compiler

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
DETECTRON2 ?=
PIP_ARGS ?=
JOBS ?= 2

BIN := $(VENV)/bin
SITE = $$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
PYTEST = $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile
PINNED = $(PIP_INSTALL) --constraint requirements/constraints.txt
PINS := requirements/constraints.txt requirements/detectron2-needs.txt
ifeq ($(DETECTRON2),)
DETECTRON2 := $(shell cat $(VENV)/.detectron2-* 2>/dev/null)
endif
DETECTRON2_STAMP := $(VENV)/.detectron2-$(firstword $(shell printf '%s' '$(DETECTRON2)' | cksum))

.PHONY: demo test test-all setup dev lint format clean

demo: $(VENV)/.demo
	@$(BIN)/python tools/demo.py --output output/demo

test: $(VENV)/.dev
	@$(PYTEST) -m "not slow"

test-all: $(VENV)/.dev
	@$(PYTEST)

setup: $(VENV)/.package

dev: $(VENV)/.dev

lint: $(VENV)/.dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

format: $(VENV)/.dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "The pinned versions need Python 3.11 or newer; $(PYTHON) is older." \
	  "Choose another: make demo PYTHON=python3.11"; exit 1; }
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: $(VENV)/.created requirements/constraints.txt
	@echo "Installing PyTorch, which takes a minute or more"
	@$(PINNED) torch torchvision setuptools
	@touch $@

# Without a choice it is a third party's upload to PyPI, sal-detectron2. That wheel is tagged for its
# compiled extension; the Python in it runs everywhere. pip takes it for another Python only with
# --target. The extension, which is built for another torch, goes.
$(DETECTRON2_STAMP): $(VENV)/.torch $(PINS) $(wildcard requirements/detectron2*)
	@echo "Installing Detectron2 $(DETECTRON2)"
	@$(PINNED) --requirement requirements/detectron2-needs.txt
	@$(BIN)/python -m pip uninstall --quiet --yes detectron2 sal-detectron2 2>/dev/null || true
	@rm -rf $(VENV)/.detectron2-* $(VENV)/detectron2
ifeq ($(DETECTRON2),)
	@$(PIP_INSTALL) --no-deps --upgrade --only-binary=:all: --python-version 3.10 \
	  --implementation cp --abi cp310 --platform linux_x86_64 --require-hashes \
	  --target "$(SITE)" --requirement requirements/detectron2.txt
	@rm -f "$(SITE)"/detectron2/_C.*.so
else ifneq ($(filter git+%,$(DETECTRON2)),)
	@$(PIP_INSTALL) --no-deps --no-build-isolation '$(DETECTRON2)'
else
	@git clone --quiet --depth 1 '$(DETECTRON2)' $(VENV)/detectron2
	@cd $(VENV)/detectron2 && "$(abspath $(BIN))/python" \
	  "$(CURDIR)/requirements/detectron2_python.py" >build.log 2>&1 || { cat build.log; exit 1; }
	@$(PIP_INSTALL) --no-deps $(VENV)/detectron2/dist/*.whl
endif
	@echo '$(DETECTRON2)' > $@

$(VENV)/.package: $(DETECTRON2_STAMP) setup.py pyproject.toml
	@echo "Installing resnest_d2"
	@$(PINNED) --no-build-isolation --editable '.[draw,fast-eval,hub]'
	@touch $@

$(VENV)/.demo: $(VENV)/.package
	@echo "Installing what the demo needs"
	@$(PINNED) --no-build-isolation --editable '.[demo]'
	@touch $@

# panopticapi-lite asks for numpy<2 without need.
$(VENV)/.dev: $(VENV)/.demo
	@echo "Installing what the tests need"
	@$(PINNED) --no-build-isolation --editable '.[dev]'
	@$(PINNED) --no-deps panopticapi-lite
	@touch $@
