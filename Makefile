# make demo   install what is needed into .venv, then run the whole system on three sample films
# make test   install what is needed into .venv, then run the tests
# make lint   style and types

PYTHON ?= python3
BIN := .venv/bin
FLAGS ?=
CODE := animeshooter_dataset.py animeshooter_records.py animeshooter_streams.py benchmarks curation model recipes streams tests

.PHONY: demo test lint install clean
.DELETE_ON_ERROR:

demo: install
	$(BIN)/animeshooter demo $(FLAGS)

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(FLAGS)

lint: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one with: make demo PYTHON=python3.11" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@echo "installing into .venv (about 2 GB, a minute or two with a quick connection)"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv demo animeshooter animeshooter.work .mypy_cache .ruff_cache
