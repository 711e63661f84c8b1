# Thin: every target is one or two visible commands. `make demo` on a fresh machine is the first thing to try.
# Needs Python 3.11 or newer with venv; a C++ compiler for the native library (without one it is left out).

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
# An editable installation knows the modules that were there: with another list it is made anew.
INSTALLED := $(VENV)/.installed-$(shell find src -name '*.py' | LC_ALL=C sort | cksum | cut -d' ' -f1)
PYTEST_ARGS ?=

.PHONY: help setup demo test test-all check sanitize fmt bench docs tiny clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*) src/llavakit/core/version.py
	@test -n "$(PYTHON)" || { echo "llavakit needs Python 3.11 or newer; none was found. Name it: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,recipes,verify]'
	@rm -f $(VENV)/.installed*
	@touch $(INSTALLED)

setup: $(INSTALLED) ## create .venv with the tested versions and install llavakit there, editable

demo: $(INSTALLED) ## ask the embedded model about two pictures
	@$(BIN)/python tools/demo.py

test: $(INSTALLED) ## the tests, without the slow ones
	$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

test-all: $(INSTALLED) ## every test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(INSTALLED) ## format, lint, types, layers, sizes, freshness of the generated pages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/size_table.py
	$(BIN)/python tools/make_docs.py --check

sanitize: $(INSTALLED) ## the native library's tests under AddressSanitizer and UndefinedBehaviorSanitizer
	cmake -S . -B build/sanitize -DLLK_SANITIZE=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo
	cmake --build build/sanitize --parallel
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	LLAVAKIT_TEST_KERNELS=build/sanitize $(BIN)/python -m pytest -p no:xdist tests/unit/kernels $(PYTEST_ARGS)

fmt: $(INSTALLED) ## format the code and repair what can be repaired
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(INSTALLED) ## where the time goes with the embedded model, as shares of what the machine can do
	$(BIN)/llavakit bench llava:tiny

docs: $(INSTALLED) ## write the generated pages anew
	$(BIN)/python tools/make_docs.py

tiny: $(INSTALLED) ## train llava:tiny again from nothing (an hour and three quarters on two Zen 5 cores)
	$(BIN)/python -m recipes.tiny.train

clean: ## remove what can be built again, .venv excepted
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
