# make demo       environment, then the whole way on drawn steel: data, training, scores, submission
# make test       environment, linters and tests
# make test-all   the slow and GPU tests too
# make benchmark  tables of speed ratios, and the goals beside what was measured
# make clean      removes the environment and what the demo wrote

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: demo test test-all lint benchmark clean

$(BIN)/.installed: setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "sever needs Python 3.10 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(BIN)/.installed
	$(BIN)/sever synth $(DEMO)/data -n 320 --size 96 600
	$(BIN)/sever train -c experiments/demo.yml -s data_loader.args.data_dir=$(DEMO)/data -s testing.data_dir=$(DEMO)/data -s save_dir=$(DEMO)/saved
	@best=$$(ls -t $(DEMO)/saved/demo/*/model_best.pth | head -n 1) && set -ex && \
	$(BIN)/sever test -r $$best -o $(DEMO)/scores.json && \
	$(BIN)/sever predict -r $$best -o $(DEMO)/submission.csv --overlays $(DEMO)/overlays && \
	set +x && printf '\nThe demo wrote\n' && printf '  %s\n' \
	    "$(DEMO)/data            the drawn sheets" "$$best" \
	    "$(DEMO)/saved/runs      for tensorboard --logdir $(DEMO)/saved/runs" \
	    "$(DEMO)/scores.json     the scores on the test sheets" "$(DEMO)/submission.csv" \
	    "$(DEMO)/overlays        pictures: sheet, truth, prediction"

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

test-all: lint
	$(BIN)/python -m pytest -m 'not gpu'
	$(BIN)/python -m pytest -m gpu -n 0

benchmark: $(BIN)/.installed
	$(BIN)/python benchmarks/goals.py

clean:
	rm -rf $(VENV) $(DEMO)
