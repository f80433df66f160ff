# make demo     train on synthetic roads and print where the pictures are
# make test     run the test suite
# make lint     check style: ruff, configured in pyproject.toml
# make bench    compare its speed with the network as published; DEVICE=cuda for a GPU
# make soak     kill and resume a small run 210 times: a few minutes
# Each creates a virtual environment first. Only Python 3.11 or later must be installed.

PYTHON ?= python3
VENV ?= .venv
DEVICE ?= cpu
ARGS ?=

.PHONY: demo test lint bench soak clean

demo: $(VENV)/run
	$(VENV)/bin/python train.py $(ARGS)

test: $(VENV)/test
	$(VENV)/bin/python -m pytest $(ARGS)

lint: $(VENV)/test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

bench: $(VENV)/run
	$(VENV)/bin/python tools/bench.py --device $(DEVICE) $(ARGS)

soak: $(VENV)/test
	KILLS=210 timeout 3600 $(VENV)/bin/python -m pytest tests/test_resume.py -k killed $(ARGS)

$(VENV)/run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install "pip>=25.1"
	$(VENV)/bin/python -m pip install .
	touch $@

$(VENV)/test: $(VENV)/run
	$(VENV)/bin/python -m pip install --group dev
	touch $@

clean:
	rm -rf $(VENV)
