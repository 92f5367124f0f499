# make search: the main job on the embedded digits; make test: everything quick. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
INSTALLED := $(VENV)/installed
TESTED := $(VENV)/tested
OUT ?= runs/digits

.PHONY: search test test-all test-system leaderboard leaderboard-measure lint types check clean

search: $(INSTALLED)
	$(BIN)/pocketzoo search mobilenet_v2 --data digits --macs 1M --trials 20 --out $(OUT)

test: $(TESTED) lint types
	$(BIN)/python -m pytest -n 2 -m "not slow and not system"

test-all: test
	$(BIN)/python -m pytest -n 2 -m "slow and not system" --durations=20

test-system: $(TESTED)
	$(BIN)/python -m pytest -m system --no-skips

# The committed leaderboard, from the committed records; leaderboard-measure times the whole zoo on this machine first.
leaderboard: $(INSTALLED)
	$(BIN)/python -m pocketzoo.leaderboards.networks
	$(BIN)/python -m pocketzoo.leaderboards.phones
	$(BIN)/pocketzoo leaderboard build --records leaderboards/records --out docs/leaderboard

leaderboard-measure: $(INSTALLED)
	for runtime in eager onnxruntime; do \
		$(BIN)/pocketzoo measure --zoo --runtime $$runtime --json \
		| $(BIN)/pocketzoo leaderboard add - --into leaderboards/records || exit 1; done

lint: $(TESTED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The checkout is the package, and mypy wants its root to be called pocketzoo whatever the clone is called.
types: $(TESTED)
	@mkdir -p $(VENV)/typed && ln -sfn "$(CURDIR)" $(VENV)/typed/pocketzoo
	cd $(VENV)/typed && ../bin/mypy --config-file pocketzoo/pyproject.toml pocketzoo/*.py $(addprefix pocketzoo/,graph zoo profiler packing training search compress leaderboards commands)

check: lint types

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone: the packages that follow then leave it as it is.
$(INSTALLED): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(TESTED): $(INSTALLED)
	$(PIP) -e '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
