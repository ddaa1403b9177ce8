# make report      the report of scale lite from the records in the repository: no training, no data set, no torch
# make test        the unit and integration tests; make unit: the first alone
#
# make smoke       check the machinery: train every condition on a small generated data set, then report
# make sweep       train the missing runs of a scale, with CIFAR-10 in data/; Ctrl-C stops, the same command continues
# make reproduce RUN=stage1-daa1/13
#                  retrain one recorded run on CIFAR-10 and compare it with its record
# make status      what is recorded, and the estimated remaining time
# make lab         JupyterLab on the notebooks
# make bench       measure training speed on this machine, beside a loop like the paper's (half an hour)
# make faults      the long tests: kill processes and nodes, fill disks and damage files, again and again
# make lint        style, types and import rules; make format mends the style
#
# SCALE=smoke|lite|full   how much of the study (default: lite)
# DATA=cifar10            another data set than the scale's
# DEVICE=auto|cpu|cuda    where to train (default: auto)
# OUT=DIR                 the build folder (default: build/SCALE)
# FAULTS=N                kills of each kind in make faults (default: 50)
# PYTHON=python3.12       the Python to make the environment with

SCALE  ?= lite
DATA   ?=
DEVICE ?= auto
OUT    ?=
FAULTS ?= 50
RUN    ?=
PYTHON ?= python3

STUDY := --scale $(SCALE) $(if $(DATA),--set data.name=$(DATA)) $(if $(OUT),--out '$(OUT)')
BIN   := .venv/bin
# A file's tests stay in one process, which makes its fixtures once; the slow files come first.
TESTS := $(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

ifneq ($(filter reproduce,$(MAKECMDGOALS)),)
  $(if $(RUN),,$(error name a recorded run: make reproduce RUN=stage1-daa1/13))
endif

.PHONY: report test unit smoke sweep reproduce status lab bench faults lint format constraints clean

report: .venv/.report
	$(BIN)/cifarlib report $(STUDY)

test: .venv/.installed
	$(TESTS) -m 'not long'

unit: .venv/.installed
	$(TESTS) -m unit

smoke: .venv/.installed
	$(BIN)/cifarlib sweep --scale smoke $(if $(OUT),--out '$(OUT)') --device $(DEVICE)
	$(BIN)/cifarlib report --scale smoke $(if $(OUT),--out '$(OUT)')

sweep: .venv/.installed
	$(BIN)/cifarlib sweep $(STUDY) --device $(DEVICE)

reproduce: .venv/.installed
	$(BIN)/cifarlib verify $(STUDY) --run '$(RUN)' --device $(DEVICE)

status: .venv/.report
	$(BIN)/cifarlib status $(STUDY)

lab: .venv/.installed
	$(BIN)/jupyter lab notebooks

bench: .venv/.installed
	$(BIN)/cifarlib bench --device $(DEVICE)

faults: .venv/.installed
	@mkdir -p build/faults && rm -f build/faults/log
	CIFARLIB_FAULT_LOG='$(CURDIR)/build/faults/log' CIFARLIB_FAULTS=$(FAULTS) \
	  $(BIN)/pytest -m long; \
	  result=$$?; \
	  CIFARLIB_FAULTS=$(FAULTS) $(BIN)/python tests/faults.py build/faults/log build/bench; \
	  exit $$result

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One environment, two sizes: .report reads and renders, .installed also trains and tests.
.venv/.report: pyproject.toml constraints.txt
	@echo 'Making the environment for the report in .venv: about 1 GB, a minute or two'
	$(call install,.,--no-compile)
	@touch $@

.venv/.installed: pyproject.toml constraints.txt
	@echo 'Making the whole environment in .venv: about 7 GB, some minutes'
	$(call install,.[test])
	@touch .venv/.report $@

define install
@$(PYTHON) -c 'import sys; sys.exit(not (3, 11, 5) <= sys.version_info < (3, 15) and \
  "Python 3.11.5 to 3.14 is needed, this is %s; name one: make PYTHON=python3.12" % sys.version.split()[0])'
$(PYTHON) -m venv .venv
$(BIN)/python -m pip install --quiet $(2) --constraint constraints.txt --editable '$(1)'
endef

# Pin what is newest within pyproject.toml's ranges, in an environment of its own.
constraints:
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/python -m pip install --quiet --editable '.[test]'
	{ sed -n '/^#/p' constraints.txt; \
	  .venv-constraints/bin/python -m pip freeze --exclude-editable; } > constraints.txt.new
	mv constraints.txt.new constraints.txt
	rm -rf .venv-constraints

clean:
	rm -rf .venv build/smoke
