# Sets up all that is needed in $(VENV), then trains the demo or runs the tests.
#   make demo                       train a small Mask R-CNN and look at what it learned
#   make test                       run the test suite
#   make setup                      only install; `make dev` also what tests and lint need
#   make lint, format, clean
# Variables: PYTHON=python3.11, VENV=.venv, PIP_ARGS="..." (passed to every pip install),
#   DETECTRON2='git+https://github.com/facebookresearch/detectron2.git' (build it from source)

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
DETECTRON2 ?=
PIP_ARGS ?=

BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
PINNED = $(PIP_INSTALL) --constraint requirements/constraints.txt
PINS := requirements/constraints.txt requirements/detectron2-needs.txt
ifeq ($(DETECTRON2),)
# What an earlier call chose stays, until `make clean`.
DETECTRON2 := $(shell cat $(VENV)/.detectron2-source 2>/dev/null)
endif
DETECTRON2_STAMP := $(VENV)/.detectron2-$(if $(DETECTRON2),source,wheel)

.PHONY: demo test setup dev lint format clean

demo: $(VENV)/.demo
	$(BIN)/python tools/demo.py --output output/demo

test: $(VENV)/.dev
	$(BIN)/python -m pytest

setup: $(VENV)/.package

dev: $(VENV)/.dev

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "The pinned versions need Python 3.11 or newer; $(PYTHON) is older." \
	  "Choose another: make demo PYTHON=python3.11"; exit 1; }
	@echo "Creating $(VENV) ..."
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.torch: $(VENV)/.created requirements/constraints.txt
	@echo "Installing PyTorch; this takes a minute or more ..."
	$(PINNED) torch torchvision
	touch $@

$(DETECTRON2_STAMP): $(VENV)/.torch $(PINS) requirements/detectron2.txt
	@echo "Installing Detectron2 ..."
	$(PINNED) --requirement requirements/detectron2-needs.txt
ifeq ($(DETECTRON2),)
	# The wheel is tagged for its compiled extension; the Python in it runs everywhere. pip takes
	# it for another Python only with --target. The extension, built for another torch, goes.
	$(BIN)/python -m pip uninstall --quiet --yes detectron2 2>/dev/null
	$(PIP_INSTALL) --no-deps --upgrade --only-binary=:all: --python-version 3.10 \
	  --implementation cp --abi cp310 --platform linux_x86_64 --require-hashes \
	  --target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
	  --requirement requirements/detectron2.txt
	rm -f $(VENV)/lib/python*/site-packages/detectron2/_C.*.so
else
	$(BIN)/python -m pip uninstall --quiet --yes sal-detectron2 2>/dev/null
	$(PIP_INSTALL) --no-deps --no-build-isolation '$(DETECTRON2)'
endif
	rm -f $(VENV)/.detectron2-*
	echo '$(DETECTRON2)' > $@

$(VENV)/.package: $(DETECTRON2_STAMP) setup.py
	$(PINNED) --no-build-isolation --editable '.[draw,fast-eval,hub]'
	touch $@

$(VENV)/.demo: $(VENV)/.package
	$(PINNED) --no-build-isolation --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PINNED) --no-build-isolation --editable '.[dev]'
	# It asks for numpy<2 without need.
	$(PINNED) --no-deps panopticapi-lite
	touch $@
