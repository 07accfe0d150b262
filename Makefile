# make demo      the whole path on the embedded default: train, render, score and report 12 drawn concepts
# make test      the tests, without the slow ones
# make test-all  every test
# make chaos     20 rounds in which workers, nodes and drivers are killed while the store fails
# make bench     the CPU benchmarks, an hour on an otherwise idle machine; results in .benchmarks/*.json
# make lint      ruff and pyright
# On a fresh clone each of them first makes .venv and installs into it what it needs.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PYTEST = .venv/bin/python -m pytest
INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
WORKERS ?= 2

# One OpenMP thread a process: two processes with two threads each wait for each other more than they work.
export OMP_NUM_THREADS = 1

.PHONY: demo test test-all chaos bench lint clean

demo: .venv/installed
	.venv/bin/persres-batch demo --out persres-demo

test: .venv/installed-dev
	$(PYTEST) -m "not slow" -n $(WORKERS) --dist loadgroup

test-all: .venv/installed-dev
	$(PYTEST) -n $(WORKERS) --dist loadgroup

chaos: .venv/installed-dev
	.venv/bin/python -m tests.programs.chaos --rounds 20

bench: .venv/installed-dev
	mkdir -p .benchmarks
	.venv/bin/python tests/benchmarks/bench_spriteworld.py --json .benchmarks/bench_spriteworld.json
	.venv/bin/python tests/benchmarks/submit_overhead.py --json .benchmarks/submit_overhead.json
	.venv/bin/python tests/benchmarks/plan_a_million.py --json .benchmarks/plan_a_million.json
	.venv/bin/python tests/benchmarks/noop_shards.py --json .benchmarks/noop_shards.json
	.venv/bin/python tests/benchmarks/memory_over_shards.py --json .benchmarks/memory_over_shards.json
	.venv/bin/python tests/benchmarks/iterations_to_score.py --json .benchmarks/iterations_to_score.json

lint: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/pyright

clean:
	rm -rf .venv persres-demo build *.egg-info .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "persres-batch needs Python 3.11 or newer, not " + sys.version)'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv; the first time this takes a few minutes"
	$(INSTALL) -e .
	@touch $@

# Holds what .venv/installed holds, and the tools.
.venv/installed-dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing into .venv; the first time this takes a few minutes"
	$(INSTALL) -e ".[dev]"
	@touch .venv/installed $@
