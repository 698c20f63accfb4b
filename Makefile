# Sets up all that is needed in $(VENV), then trains the demo or runs the tests.
#   make demo                       train a small Mask R-CNN and look at what it learned
#   make test                       run the test suite; make test-slow: its slow part
#   make web                        try detectors in the browser; docs: build output/site
#   make setup                      only install
#   make lint, format, lock, clean
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
UV = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
  --custom-compile-command "make lock" --constraint requirements/constraints.txt
LOCKED = $(PIP_INSTALL) --no-deps --no-build-isolation --require-hashes
ifeq ($(DETECTRON2),)
DETECTRON2 := $(shell cat $(VENV)/.detectron2-* 2>/dev/null)
endif
DETECTRON2_STAMP := $(VENV)/.detectron2-$(firstword $(shell printf '%s' '$(DETECTRON2)' | cksum))

.PHONY: demo web docs test test-slow setup lock lint format clean

demo: $(VENV)/.package
	@$(BIN)/python examples/demo.py --output output/demo

web: $(VENV)/.package
	@$(BIN)/python examples/web.py

docs: $(VENV)/.package
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir output/site

test: $(VENV)/.package
	@$(PYTEST) -m "not slow"

test-slow: $(VENV)/.package
	@$(PYTEST) -m slow

setup: $(VENV)/.package

# The versions of constraints.txt and, of what these need, the newest, with their hashes on PyPI. Needs
# uv. Some of it asks for numpy<2 without need, some for the OpenCV that opens windows.
lock:
	@echo setuptools | $(UV) --output-file requirements/build.txt -
	@echo numpy | $(UV) --output-file requirements/lock.txt --overrides /dev/stdin \
	  --no-emit-package opencv-python \
	  --extra dev pyproject.toml requirements/detectron2-needs.txt

lint: $(VENV)/.package
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

format: $(VENV)/.package
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

$(VENV)/.locked: $(VENV)/.created requirements/build.txt requirements/lock.txt
	@echo "Installing PyTorch and the rest, checked by their hashes, which takes a minute or more"
	@$(LOCKED) --requirement requirements/build.txt
	@$(LOCKED) --requirement requirements/lock.txt
	@touch $@

# Without a choice it is a third party's upload to PyPI, sal-detectron2. That wheel is tagged for its
# compiled extension; the Python in it runs everywhere. pip takes it for another Python only with
# --target. The extension, which is built for another torch, goes.
$(DETECTRON2_STAMP): $(VENV)/.locked $(wildcard requirements/detectron2*)
	@echo "Installing Detectron2 $(DETECTRON2)"
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
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@
