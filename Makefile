# make install   set up .venv (demo and test do this first)
# make demo      write a small data set, train a shared Faster R-CNN on it, show what it detects
# make test      run all tests (make fast: only the quick ones, at each save)
# make lint      check style and types
# make docs      build the site, with its links checked: work_dirs/site/index.html
#
# PYTHON=python3.12   the interpreter, 3.10 to 3.12
# OPS=compiled        also build mmcv's own operators (about ten minutes, needs a compiler)

PYTHON ?= python3
OPS ?= torchvision
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed-with-$(OPS)-operators
# A process for each core, up to eight, with a thread each.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal
DOCS_INSTALLED := $(VENV)/docs-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint .ci/constraints.txt
DEMO := work_dirs/demo
DEMO_CONFIG := mmshared::small/faster-rcnn_r50-narrow-shared_12e_digits.py

.PHONY: install lint docs test fast demo clean

install: $(INSTALLED)

$(INSTALLED): Makefile pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	    { echo "$(PYTHON) is not there or not Python 3.10 to 3.12: name another one, for example make PYTHON=python3.12."; exit 1; }
	@echo "1/4 creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $$($(BIN)/python -c 'import sys; print(sys.version)' 2>/dev/null | grep -qxF \
	    "$$($(PYTHON) -c 'import sys; print(sys.version)')" || echo --clear) $(VENV)
	@echo "2/4 installing mmcv as a pure wheel (without pip's cache, which may hold one built for another PyTorch)"
	@$(PIP) --no-cache-dir --no-deps --force-reinstall onedl-mmcv
	@echo "3/4 installing PyTorch, OpenMMLab and mmshared: 5 GB with the CUDA libraries, about two minutes"
	@$(PIP) --editable '.[tests,lint]'
	@$(PIP) --no-deps escnn
	@$(BIN)/python -c 'import cv2' 2>/dev/null || $(PIP) --force-reinstall --no-deps opencv-python-headless
ifeq ($(OPS),compiled)
	@echo "    building mmcv's operators, about ten minutes on two cores"
	@$(PIP) setuptools wheel ninja psutil
	@$(PIP) --no-build-isolation --no-cache-dir --force-reinstall --no-deps onedl-mmcv
endif
	@echo "4/4 checking the installation"
	@PYTHONWARNINGS=ignore $(BIN)/python -c 'import mmshared; print("mmshared", mmshared.__version__, "is ready")'
	@rm -f $(VENV)/installed-with-* && touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(DOCS_INSTALLED)
	$(BIN)/python -m mkdocs build --strict --config-file docs/mkdocs.yml

$(DOCS_INSTALLED): $(INSTALLED)
	@$(PIP) --editable '.[docs]'
	@touch $@

test: $(INSTALLED)
	$(PYTEST)

fast: $(INSTALLED)
	$(PYTEST) -m 'not slow'

demo: export PYTHONWARNINGS := ignore
demo: $(INSTALLED)
	$(BIN)/mmshared digit-scenes data/digits
	$(BIN)/mmshared train $(DEMO_CONFIG) --work-dir $(DEMO) --resume --quiet
	$(BIN)/mmshared report-run $(DEMO)

clean:
	rm -rf $(VENV) $(DEMO)
