PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= RUN

.PHONY: demo test test-slow check bench venv clean

## demo: tune the built-in digits workload on two mock devices and write $(RUN)/report.html
demo: venv
	$(BIN)/scaler tune digits --cluster cluster/mock-2.yaml --out $(RUN) --force

## test: every test that needs no GPU
test: venv
	$(BIN)/python -m pytest

## test-slow: further tests on real Ray, about a minute and a half
test-slow: venv
	$(BIN)/python -m pytest -m slow

## check: lint, strict types, and the rule that imports flow one way
check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit/test_layers.py

## bench: the figures in README.md, measured again
bench: venv
	$(BIN)/python benchmarks/run.py

## venv: .venv with everything that is pinned in constraints.txt
venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch numpy
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[deepspeed,dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
