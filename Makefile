# Everything a checkout needs, by name. `make` alone prints this list.
# Needs Rust (cargo, rustfmt, clippy), Python 3.11 or later, a C compiler and make; the rest is installed into .venv.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# A pyenv shim answers `command -v` for a tool that it cannot run, so each candidate is run once.
works = $(shell $(1) --version >/dev/null 2>&1 && command -v $(1))
PYTHON ?= $(firstword $(call works,python3.11) $(call works,python3) $(call works,python))
SYSTEM_UV := $(call works,uv)

VENV := .venv
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built
RUST := $(shell find rust -name '*.rs' -o -name '*.wgsl' -o -name Cargo.toml) Cargo.toml Cargo.lock pyproject.toml

EXPERIMENTS := approximation variance regime length transfer redraw families concatenated images kernels similarity

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export UV_PYTHON_DOWNLOADS := never
export UV_HTTP_TIMEOUT := 600
unexport CONDA_PREFIX PYTHONHOME PYTHONPATH

COMPILE := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock'

.PHONY: help setup demo test test-rust test-python lint format pin bench experiments experiments-full fuzz soak wheel wheel-check lock clean distclean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(BUILT) ## create .venv, install the locked requirements, build the native module

demo: setup ## train on real globins for 2.5 minutes, score three proteins, draw the loss curve
	python examples/demo.py

test: test-rust test-python ## the whole test suite, Rust and Python

test-rust: ## the Rust tests alone
	cargo test --profile quick --workspace --locked

test-python: setup ## the Python tests alone
	python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED) ## formatting, lints and types; changes nothing
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
	cargo clippy --package protperf-python --no-default-features --locked -- -D warnings
	ruff check .
	ruff format --check .
	mypy

format: $(INSTALLED) ## reformat Rust and Python
	cargo fmt --all
	ruff check --fix .
	ruff format .

pin: setup ## hash what kernels and models compute; PIN='--write FILE' keeps it, PIN='--against FILE' compares
	python tests/pin/run.py $(PIN)

bench: setup ## time everything against bounds and peers into benches/RESULTS.md, two hours; BENCH=--quick: 15 minutes
	uv pip install --quiet --require-hashes -r requirements/bench.txt
	{ for part in attention training scoring reading startup; do printf '\n## %s\n\n' "$$part"; \
		python "benches/$$part.py" $(if $(filter startup,$$part),,$(BENCH)); done; } | tee benches/RESULTS.md

experiments: setup ## figures of the Performer article, corrected and extended, into runs/experiments, a quarter of an hour
	@for name in $(EXPERIMENTS); do echo "$$name"; python experiments/$$name/run.py $(FORM) --out runs/experiments/$$name; done

experiments-full: ## the same with longer runs, hours, into runs/experiments
	@$(MAKE) experiments FORM=--full

fuzz: setup ## fuzz every reader, and the kernels, for 60 seconds each and print the executions reached
	bash fuzz/run.sh 60
	uv pip install --quiet --require-hashes -r requirements/fuzz.txt
	python fuzz/python/run.py 60

soak: setup ## the long tests, minutes to hours
	python -m pytest -m soak

wheel: $(INSTALLED) ## build a wheel for this platform into dist/
	maturin build --release --locked --out dist

wheel-check: setup ## build sdist and wheel, install the wheel elsewhere, run it outside the checkout
	bash .ci/wheel-check

lock: | $(VENV)/bin/python ## resolve requirements/*.txt anew, with hashes
	$(COMPILE) --upgrade requirements/uv.in -o requirements/uv.txt
	$(COMPILE) --upgrade pyproject.toml -o requirements/runtime.txt
	$(COMPILE) --upgrade --constraint requirements/runtime.txt --extra h5 --extra parquet --extra plot --group dev pyproject.toml -o requirements/dev.txt
	$(COMPILE) --upgrade --group fuzz -o requirements/fuzz.txt
	$(COMPILE) --upgrade --constraint requirements/dev.txt --group bench -o requirements/bench.txt

clean: ## remove build outputs and caches
	rm -rf target dist .mypy_cache .pytest_cache .ruff_cache .hypothesis python/protperf/_native*.so $(BUILT)

distclean: clean ## also remove .venv
	rm -rf $(VENV)

$(VENV)/bin/python:
	@if [[ -z "$(PYTHON)" ]]; then echo 'python 3.11 or later was not found; install it or say make PYTHON=/path/to/python3' >&2; exit 1; fi
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo '$(PYTHON) is older than 3.11; say make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@if [[ -n "$(SYSTEM_UV)" ]]; then "$(SYSTEM_UV)" venv --quiet --clear --python "$(PYTHON)" $(VENV); else "$(PYTHON)" -m venv --clear $(VENV); fi

$(INSTALLED): requirements/dev.txt requirements/uv.txt | $(VENV)/bin/python
	@uv --version >/dev/null 2>&1 || python -m pip install --quiet --require-hashes -r requirements/uv.txt
	uv pip install --quiet --require-hashes --compile-bytecode -r requirements/dev.txt
	@touch $@

# The locked maturin builds, not one that build isolation would fetch. A checkout's module can rehearse a panic and emulate
# AVX-512, for the tests; a wheel's cannot.
$(BUILT): $(INSTALLED) $(RUST)
	@cargo --version >/dev/null 2>&1 || { echo 'cargo was not found; install Rust 1.89 or later, see https://rustup.rs' >&2; exit 1; }
	MATURIN_PEP517_ARGS='--features rehearse-panic,emulate-avx512' \
		uv pip install --quiet --no-deps --no-build-isolation --reinstall-package protperf --editable .
	@touch $@
