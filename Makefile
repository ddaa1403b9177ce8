# make report     the environment, every missing run of a scale, and its report
# make test       the environment and the tests
# make bench      how fast it is on this machine, beside a paper-style loop (half an hour, quiet)
# make faults     kill, fill and spoil what runs stand on, again and again (long, on quiet cores)
# make lab        JupyterLab on the notebooks
# make lint       style
#
# SCALE=smoke|lite|full   how much of the study (default smoke)
# DATA=cifar10            other data than the scale's: smoke runs on a generated stand-in set
# DEVICE=auto|cpu|cuda    where to train
# FAULTS=N                how many kills of each kind in make faults (default 50)
# OUT=DIR                 the build folder (default build/SCALE)

SCALE  ?= smoke
DATA   ?=
DEVICE ?= auto
OUT    ?=
FAULTS ?= 50
PYTHON ?= python3

STUDY := --scale $(SCALE) $(if $(DATA),--set data.name=$(DATA)) $(if $(OUT),--out '$(OUT)')
BIN   := .venv/bin

.PHONY: report sweep status test bench faults lint format lab constraints clean

report: sweep
	$(BIN)/cifarlib report $(STUDY)

sweep: .venv/.installed
	$(BIN)/cifarlib sweep $(STUDY) --device $(DEVICE)

status: .venv/.installed
	$(BIN)/cifarlib status $(STUDY)

test: .venv/.installed
	$(BIN)/pytest -n auto --dist loadgroup

bench: .venv/.installed
	$(BIN)/cifarlib bench --device $(DEVICE)

faults: .venv/.installed
	@mkdir -p build/faults && rm -f build/faults/log
	CIFARLIB_FAULT_LOG=$(CURDIR)/build/faults/log CIFARLIB_FAULTS=$(FAULTS) \
	  $(BIN)/pytest $(wildcard tests/test_faults.py tests/test_damage.py); \
	  result=$$?; \
	  CIFARLIB_FAULTS=$(FAULTS) $(BIN)/python tests/faults.py build/faults/log build/bench; \
	  exit $$result

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lab: .venv/.installed
	$(BIN)/jupyter lab notebooks

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Python 3.11 or newer is needed, this is %s; name one: make PYTHON=python3.12" % sys.version.split()[0])'
	@echo 'Making the environment in .venv: about 6 GB, a few minutes'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

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
