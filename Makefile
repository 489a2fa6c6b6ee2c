# The two commands of the README, and what people and CI run before a change lands.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format benchmarks

demo: .venv/ready
	$(BIN)/doublespec demo

test: .venv/tests
	$(BIN)/pytest -n 2

check: .venv/tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# pip would compile on one core; some files of packages are of no Python that runs them.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $@

# And Triton, in whose interpreter the kernels for a GPU are tested.
.venv/tests: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,kernels]'
	touch $@

# docs/benchmarks.md: about ten minutes, on a machine that does nothing else. SPEC_BENCH is Spec-Bench's
# question.jsonl (github.com/hemingkx/Spec-Bench), which is not part of this project.
METHODS := ar,lookup,sd,psd,double@lock-step,double@free,double,double-serial,auto
BENCH := $(BIN)/doublespec bench --peers --methods $(METHODS) --repeat 1 --max-tokens 160 --force

benchmarks: .venv/ready
	mkdir -p build
	$(BENCH) --markdown build/suite.md
	$(BENCH) --prompts $(SPEC_BENCH) --limit 80 --markdown build/spec_bench.md
	cat build/suite.md build/spec_bench.md > docs/benchmarks.md
