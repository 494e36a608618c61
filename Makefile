# For a newcomer: make quickstart, make test. While working: make core, make docs. Hours: make faults, make matrix, make release.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Small patches gain little from more threads, lose much beside other work, and one thread gives the same bits anywhere.
export OMP_NUM_THREADS ?= 1

.PHONY: quickstart core test faults lint matrix docs release clean

quickstart: $(VENV)/.installed
	$(BIN)/effsr doctor
	$(BIN)/python -m datasets_prep sample --pack
	$(BIN)/python -m basicsr.train -opt options/train/quickstart.yml
	$(BIN)/python -m basicsr.test -opt options/test/quickstart.yml
	$(BIN)/effsr compare -opt options/test/quickstart.yml --out results/quickstart.png

CORE := archs blocks losses data layering
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

core: lint
	$(PYTEST) -m 'not slow' $(CORE:%=tests/test_%.py)

test: lint
	$(PYTEST)

# What tests/faults has in the suite in short, at length: make faults KILLS=20 HOURS=2
KILLS ?= 20
HOURS ?= 0
faults: $(VENV)/.installed-dev
	$(PYTEST) tests/faults --kills $(KILLS) --hours $(HOURS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# On other versions: make matrix PYTHON=python3.12 PINS='torch==2.5.1 torchvision==0.20.1 numpy==1.26.4'
matrix:
	$(PYTHON) -m venv --clear $(VENV)-matrix
	$(VENV)-matrix/bin/python -m pip install -e '.[dev]' $(PINS)
	$(VENV)-matrix/bin/effsr host install
	$(VENV)-matrix/bin/python -m pytest -n 2 --dist worksteal

# The site, in site/; needs neither torch nor BasicSR.
docs:
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install -q -r docs/requirements.txt
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict --clean

# dist/, checked, and the quick start from the wheel in a bare environment, away from here. TAG=v1.2.3: that it is this.
VERSION = $(shell sed -n "s/^__version__ = '\(.*\)'/\1/p" basicsr_effsr/_version.py)
AWAY = $(CURDIR)/$(VENV)-release/away
release: $(VENV)/.installed-dev
	test '$(or $(TAG),v$(VERSION))' = 'v$(VERSION)'
	grep -q '^## $(VERSION)' CHANGELOG.md
	rm -rf dist && $(BIN)/python -m build
	$(BIN)/python -m pip install -q check-wheel-contents twine
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(PYTHON) -m venv --clear $(VENV)-release && mkdir $(AWAY)
	$(VENV)-release/bin/python -m pip install dist/*.whl
	cd $(AWAY) && PATH=$(CURDIR)/$(VENV)-release/bin:$$PATH && effsr host install && effsr doctor && effsr prepare sample --pack \
	  && effsr recipe quickstart > train.yml && effsr recipe quickstart --test > test.yml \
	  && python -m basicsr.train -opt train.yml && python -m basicsr.test -opt test.yml \
	  && effsr compare -opt test.yml --out quickstart.png

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e .
	$(BIN)/effsr host install
	touch $@

$(VENV)/.installed-dev: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e '.[dev]'
	$(BIN)/effsr host install
	touch $@ $(VENV)/.installed

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache
