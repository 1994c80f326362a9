# midstream: set up, run, test. `make` alone lists the targets.
#
#   PYTHON   the interpreter that .venv is made with, 3.11 or newer
#   ARGS     passed on:  make demo ARGS="--sensors 16 --rate 100"   make test ARGS="-k framing -x"

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed
SPHINX := .venv/.sphinx
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile

export PYTHON
# Every program of a lab would compile midstream's modules anew, half a second each.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-kernels test-hosts bench bench-results check docs wheels format clean

help: ## what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

setup: $(INSTALLED) ## midstream and its development tools in .venv

$(INSTALLED): pyproject.toml bench/pyproject.toml hatch_build.py $(wildcard src/midstream/hardworker/*.[ch] src/midstream/ebpf/*.[ch] src/midstream/ebpf/*/*.h)
	@tools/packages.sh setup
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "midstream: Python 3.11 or newer is needed; name one with PYTHON=")'
	@echo "midstream: installing into .venv"
	@$(PYTHON) -m venv .venv
	@$(PIP) editables $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"])')
	@$(PIP) --no-build-isolation --editable '.[dev]' --editable './bench[receivers]'
	@touch $@

demo: setup ## three hosts on this machine, from sensor to database (as root)
	$(BIN)/midstream demo $(ARGS)

test: setup ## the tests (as root; otherwise those that need no root)
	@tools/packages.sh test
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: setup ## the long ones: a million packets, ten thousand connections, fifty kills
	@tools/packages.sh test vm
	$(BIN)/python -m pytest -m 'slow or vm' $(ARGS)
	MIDSTREAM_TESTS="own objects" $(BIN)/python -m pytest -n 2 tests/program

bench: setup ## what a message costs the hardworker, compared (as root, under 10 minutes; ARGS=--full: hours)
	@tools/packages.sh bench
	$(BIN)/midstream bench $(ARGS)

bench-results: setup ## what bench/results keeps, and the report of it (as root, an hour; what is there is not made again)
	@tools/packages.sh bench vm
	$(BIN)/midstream bench --machine --seconds 2 --output bench/results
	$(BIN)/midstream bench --minutes 0 --output bench/results
	cp bench/results/bench.md bench/docs/benchmark-run.md

test-kernels: setup ## every eBPF program on Linux 6.1, 6.12, the newest and this one; what a message costs (as root)
	@tools/packages.sh vm
	$(BIN)/python tests/vm/sweep.py --tests $(ARGS)
	$(BIN)/python -m pytest -m vm bench/tests/vm/test_gate.py

test-hosts: setup ## the services on three hosts with systemd (as root; at first some minutes)
	@tools/packages.sh hosts
	$(BIN)/python tests/hosts/layers.py
	unshare --mount --net --propagation private $(BIN)/python -m pytest -m hosts $(ARGS)

check: setup ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: setup $(SPHINX) ## the documentation as pages, in build/docs
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet --conf-dir docs -d build/doctrees . build/docs
	@echo "midstream: see build/docs/index.html"

$(SPHINX): $(INSTALLED)
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")' >$@.txt
	@$(PIP) --requirement $@.txt
	@touch $@

wheels: setup ## what is released, in dist: sources, and wheels for x86-64 and aarch64
	rm -rf dist
	for machine in x86_64 aarch64; do \
		_PYTHON_HOST_PLATFORM=linux-$$machine $(BIN)/python -m hatchling build -t wheel || exit; done
	$(BIN)/python -m hatchling build -t sdist
	cd bench && ../$(BIN)/python -m hatchling build -d ../dist
	$(BIN)/python -m twine check --strict dist/*

format: setup ## let ruff format and sort
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove everything that make has made here
	rm -f src/midstream/hardworker/_ring.abi3.so
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist
	find src tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +
