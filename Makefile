# make demo | test | lint | format | docs | bench | bench-pipeline | build-check | package-check | gpu-check | gpu-tune | clean
#
# Everything lives in a virtual environment of the project's own. A torch >= 2.11 that PYTHON can import is
# used there as it is; otherwise $(TORCH) is installed. For a build of torch of your own choice, install it
# for PYTHON first, or name it:  make test TORCH=/path/to/torch.whl

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
DATA ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Folders of the package are newer than the build when a module was added: the install in place lists them.
SOURCES := CMakeLists.txt $(shell find csrc kernels -type f) $(shell find python -type d -not -name __pycache__)
CPP := $(shell git ls-files '*.cpp' '*.cu' '*.cuh' '*.h' 2>/dev/null)

.PHONY: demo test lint format docs bench bench-pipeline build-check package-check gpu-check gpu-tune clean
.DELETE_ON_ERROR:

demo: $(VENV)/.built
	$(BIN)/fastseg demo fastseg_demo --overwrite

# In a process for each core, each on one thread; in this process alone where its output is asked for.
PARALLEL := $(if $(filter -s --capture=no,$(ARGS)),,OMP_NUM_THREADS=1)
test: $(VENV)/.built
	$(PARALLEL) $(BIN)/python -m pytest $(if $(PARALLEL),-n auto --dist worksteal) $(if $(DATA),--data=$(DATA)) $(ARGS)

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/.built
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

# The site, for python3 -m http.server -d build/site; a warning is an error.
docs: $(VENV)/.documents
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo wrote build/site

bench: $(VENV)/.built
	$(BIN)/python benchmarks/run.py $(ARGS)

# Training and prediction of a table of networks, from end to end. See docs/benchmarks.md.
bench-pipeline: $(VENV)/.built
	$(BIN)/python benchmarks/bench_pipeline.py $(ARGS)

# Builds as other machines do: headers of an older torch, libstdc++ static. See docs/install.md.
build-check: $(VENV)/.built
	$(BIN)/python -m tools.build_check $(ARGS)

# Builds the sdist and the wheel, and uses them in environments of their own. See docs/install.md.
package-check: $(VENV)/.depends
	$(BIN)/python -m tests.package.check --torch "$(TORCH)" $(ARGS)

# Not in .venv: it builds for PYTHON as it stands, offline. OUT=folder for the results. See docs/benchmarks.md.
gpu-check:
	$(PYTHON) -m tools.gpu_check $(if $(OUT),--out $(OUT)) $(ARGS)

# Likewise; writes kernels/tuning/sm_<architecture>.json. See docs/benchmarks.md.
gpu-tune:
	$(PYTHON) -m tools.gpu_tune $(ARGS)

clean:
	rm -rf $(VENV) build fastseg_demo

# A .pth file lets the environment see the torch of PYTHON, be that a system's, a user's or another
# environment's; packages of the environment's own come first.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "fastseg needs Python >= 3.10, $(PYTHON) is `$(PYTHON) --version 2>&1`; try make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "$(PYTHON) cannot make virtual environments: install python3-venv" >&2; exit 1; }
	@site=`$(PYTHON) -c 'import os, torch; v = [int(p) for p in torch.__version__.split(".")[:2]]; print(os.path.dirname(os.path.dirname(torch.__file__)) if v >= [2, 11] else "")' 2>/dev/null`; \
	if [ -n "$$site" ]; then \
	  echo "using the torch in $$site"; \
	  echo "$$site" > `$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'`/fastseg_torch_of_python.pth; \
	fi
	@touch $@

$(VENV)/.depends: pyproject.toml | $(VENV)/.created
	$(BIN)/python -c 'import torch' 2>/dev/null || $(PIP) install "$(TORCH)"
	$(PIP) install 'scikit-build-core>=0.11' 'pybind11>=2.13' cmake ninja
	@touch $@

$(VENV)/.built: $(VENV)/.depends $(SOURCES)
	$(PIP) install --no-compile --no-build-isolation -e '.[train,test,lint,examples]'
	@touch $@

$(VENV)/.documents: $(VENV)/.built
	$(PIP) install $$($(BIN)/python -c 'from importlib.metadata import requires; print(*(r.split(";")[0] for r in requires("fastseg") if "docs" in r.split(";")[-1]))')
	@touch $@
