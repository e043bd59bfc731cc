# Each target does its own set-up in .venv; all that is needed is make and Python 3.10 or later.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
# Processes that `make test` deals the tests to. Many wait for a command or a server: one more than cores, if those are two.
WORKERS ?= 3

.PHONY: demo test check

demo: $(VENV)/demo
	$(VENV)/bin/diptych demo $(RUN)

# Bytecode is kept, whatever the environment says: hundreds of processes of the tests would compile the tree again.
test: $(VENV)/test
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS)

check: $(VENV)/test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/codespell
	$(VENV)/bin/mypy

$(VENV)/%: setup.cfg
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -e '.[$*]'
	touch $@
