# Everything runs in a virtual environment inside the clone; nothing is installed elsewhere.
#   make demo    a network trained by LearnedOptimizer beside Adam, a table and a picture in demo/
#   make test    the whole test suite
#   make docs    the documentation, in build/docs/index.html
#   make wheels  wheels with compiled kernels, and the sdist, for a package index, in dist/
#   make arm64   the compiled kernels as a 64-bit ARM has them, in an emulator (Linux)
#   make sanitize   the compiled kernels under GCC's sanitizers (Linux)
# Variables: PYTHON (>= 3.10), VENV, TORCH, DEMO_ARGS, PYTEST_ARGS.

PYTHON ?= python3
VENV ?= .venv
# Pinned and installed first, so that an environment is the same from one day to the next. Any
# torch >= 2.4 will do: make test TORCH=torch==2.4.1
TORCH ?= torch==2.13.0
DEMO_ARGS ?=
PYTEST_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := learned_optim benchmarks docs examples tests
# Of kernels, but for those of their threads, which the emulator has none of.
KERNEL_TESTS := $(filter-out %_threads.py,$(wildcard tests/test_kernels*.py)) \
	tests/test_cpu_backend.py tests/test_half_state.py
# Finished parts of long benchmarks, to go on from by hand after a break.
PARTS := build/results

.PHONY: demo test arm64 sanitize wheels lint format docs results pages readme clean

demo: $(VENV)/.demo
	$(BIN)/learned-optim demo $(DEMO_ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The kernels of a 64-bit ARM in an emulator, and whether they can be compiled for macOS.
arm64: $(VENV)/.arm64
	$(BIN)/python tests/arm64.py
	PYTHONPATH=tests $(BIN)/python -m pytest -p arm64 -n 2 -k "not library" $(KERNEL_TESTS)

# Memory and undefined behaviour; of the tests, not those that look at how the library is found.
sanitize: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python tests/sanitize.py -k "not library and not sources" \
		$(KERNEL_TESTS) tests/test_kernels_threads.py tests/test_cpu_default.py \
		tests/test_matrix_stage.py $(PYTEST_ARGS)

# For Linux on both processors, macOS, and any other system, whatever this one is.
wheels: $(VENV)/.release
	PYTHONPATH=tests $(BIN)/python tests/wheels.py dist

lint: $(VENV)/.lint
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.lint
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# Warnings are errors, and so is a link that leads nowhere.
docs: $(VENV)/.docs
	$(BIN)/sphinx-build -q -W --keep-going docs build/docs
	$(BIN)/python docs/check.py build/docs

# Run every benchmark again and rewrite the tables. About seven hours of one core: two of cifar, more
# than one of default_ablations, two of real_scale, and minutes each of the others. Of what was there
# before, only the tuned rates and baselines in results/baselines are used. Needs the data sets, 8 GB
# of memory, Linux for triton, and the package index for what a new user installs. Not here:
# hand_constants, whose trial was not adopted, and step_time_cuda, which needs a GPU.
results: $(VENV)/.dev
	rm -rf $(PARTS)
	$(BIN)/python -m benchmarks.paper.features
	$(BIN)/python -m benchmarks.paper.quadratic
	$(BIN)/python -m benchmarks.paper.mnist --variants
	$(BIN)/python -m benchmarks.paper.starts --again
	$(BIN)/python -m benchmarks.paper.sweep --again
	$(BIN)/python -m benchmarks.paper.smoothing
	$(BIN)/python -m benchmarks.paper.trajectories
	$(BIN)/python -m benchmarks.paper.anatomy
	$(BIN)/python -m benchmarks.paper.failures --again
	$(BIN)/python -m benchmarks.paper.ablations --again
	$(BIN)/python -m benchmarks.paper.cifar --work $(PARTS)/cifar
	$(BIN)/python -m benchmarks.paper.neural_art --work $(PARTS)/art
	$(BIN)/python -m benchmarks.generalization --again
	$(BIN)/python -m benchmarks.generalization --split validation --again
	$(BIN)/python -m benchmarks.generalization --split fine_tuning --again
	$(BIN)/python -m benchmarks.generalization --split domains --again
	$(BIN)/python -m benchmarks.short_runs
	$(BIN)/python -m benchmarks.real_scale --folder $(PARTS)/real_scale
	$(BIN)/python -m benchmarks.default_headroom --again
	$(BIN)/python -m benchmarks.default_bases --again
	$(BIN)/python -m benchmarks.default_ablations --again
	$(BIN)/python -m benchmarks.step_time
	$(BIN)/python -m benchmarks.half_state
	$(BIN)/python -m benchmarks.triton_compile
	$(BIN)/python -m benchmarks.meta_training_throughput
	$(BIN)/python -m benchmarks.estimators
	$(BIN)/python -m benchmarks.fault_test
	$(BIN)/learned-optim demo --folder $(PARTS)/demo
	cp $(PARTS)/demo/digits.json benchmarks/results/demo_digits.json
	$(MAKE) pages
	$(MAKE) readme

# Write anew what the documentation shows of examples, faults and a new user's first steps.
pages: $(VENV)/.dev
	$(BIN)/python -m benchmarks.examples_output
	PYTHONPATH=. $(BIN)/python tests/hub_faults.py
	PYTHONPATH=. $(BIN)/python tests/new_user.py --fresh --output benchmarks/results/new_user.json

# Rewrite the tables of README.md and docs/paper.md from benchmarks/results/*.json.
readme: $(VENV)/.dev
	$(BIN)/python -m benchmarks.readme_tables
	$(BIN)/python -m benchmarks.paper.page

clean:
	rm -rf $(VENV) build dist demo *.egg-info .pytest_cache .ruff_cache

# Stamp files: each step is done again only when what it depends on has changed. The kernels are
# compiled by the install, so a change in them is one.
PACKAGE := pyproject.toml setup.py $(wildcard learned_optim/kernels/src/*)

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "Python 3.10 or later is needed; name one: make PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade pip
	$(PIP) install --quiet "$(TORCH)"
	touch $@

$(VENV)/.demo: $(VENV)/.torch $(PACKAGE)
	$(PIP) install --quiet -e ".[meta-training]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch $(PACKAGE)
	$(PIP) install --quiet -e ".[dev]"
	touch $@

$(VENV)/.arm64: $(VENV)/.torch $(PACKAGE)
	$(PIP) install --quiet -e ".[arm64]"
	touch $(VENV)/.dev $@

$(VENV)/.release: $(VENV)/.torch $(PACKAGE)
	$(PIP) install --quiet -e ".[release]"
	touch $(VENV)/.dev $(VENV)/.arm64 $@

$(VENV)/.docs: $(VENV)/.torch $(PACKAGE)
	$(PIP) install --quiet -e ".[docs]"
	touch $@

$(VENV)/.lint: $(VENV)/.torch $(PACKAGE)
	$(PIP) install --quiet -e ".[lint]"
	touch $(VENV)/.dev $@
