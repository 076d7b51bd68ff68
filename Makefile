# make demo: the whole job on an embedded sample archive.  make test: every test.  make check: style, layers, types.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKSPACE ?= demo-workspace
export DO_NOT_TRACK = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test check install docs clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: install
	$(BIN)/voxbook demo $(WORKSPACE)

# Two processes, a file of tests at a time: most tests wait for a disk or for a program that they started.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: install
	$(BIN)/python -m flows.reference

clean:
	rm -rf $(VENV) build *.egg-info $(WORKSPACE)
