# make demo: depth of real photos, from nothing.   make test: the whole suite, from nothing, one process a core.   Both set up .venv by themselves.
# make fuzz: a million damaged files.   make faults, make soak: killed processes, full disks, long runs; make weights: one wrong weight at a time (docs/reliability.md).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Quiet: setuptools warns of every editable install, and a new pip passes that on.
INSTALL := PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# Bytecode by all cores, where pip takes one; what is left out is rarely loaded, and compiled then.
RARE := tests|testing|pip|setuptools|pygments|sympy/physics|transformers/models|diffusers/pipelines|diffusers/modular_pipelines|fontTools|skimage|tifffile|imageio
COMPILE := $(BIN)/python -m compileall -qq -x '/($(RARE))/'
TORCH ?= torch==2.13.0
JOBS ?= auto

.PHONY: demo test lint fuzz faults soak weights clean

$(VENV)/.export: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip "setuptools>=77"  # pip 23, which Python 3.11 brings along, takes twice as long for what follows
	$(INSTALL) $(TORCH)
	$(COMPILE) $(VENV)/lib/python*/site-packages/torch & \
	$(INSTALL) -c constraints.txt --no-build-isolation --editable ".[export,progress,bench]" "scikit-image>=0.26,<1" ftfy regex; code=$$?; wait; exit $$code
	$(INSTALL) --no-deps "open_clip_torch>=3.3,<4"  # [clip] less torchvision: its wheel is for CUDA, and transformers would stumble over it
	@$(COMPILE) -j 0 $(VENV)/lib || true
	@touch $@

$(VENV)/.dev: $(VENV)/.export
	$(INSTALL) -c constraints.txt --editable ".[dev]"
	@$(COMPILE) -j 0 $(VENV)/lib || true
	$(BIN)/python tests/torchvision_on_cpu.py
	@touch $@

demo: $(VENV)/.export
	$(BIN)/python -m fathom.benchmarks.demo.demo

test: $(VENV)/.dev
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --maxprocesses 8

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

fuzz faults soak weights: $(VENV)/.dev
	cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m hardening.$@ --record ../benchmarks/results/hardening.json

clean:
	rm -rf $(VENV) build demo *.egg-info
