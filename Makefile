# make demo: train on synthetic roads and show where the pictures are. make test: run the test suite.
# Both make a virtual environment first; nothing has to be installed but Python 3.10 or later.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

.PHONY: demo test clean

demo: $(VENV)/run
	$(VENV)/bin/python train.py $(ARGS)

test: $(VENV)/test
	$(VENV)/bin/python -m pytest $(ARGS)

$(VENV)/run: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -r requirements.txt
	touch $@

$(VENV)/test: requirements-dev.txt $(VENV)/run
	$(VENV)/bin/python -m pip install -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV)
