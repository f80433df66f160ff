# make demo: train on synthetic roads and show where the pictures are. make test: run the test suite.
# make bench: time it beside the network as published; on a GPU with DEVICE=cuda.
# make gpu: what one GPU can show, in one report. Where PyTorch is installed already: python tools/gpu.py
# Each makes a virtual environment first; nothing has to be installed but Python 3.11 or later.

PYTHON ?= python3
VENV ?= .venv
DEVICE ?= cpu
ARGS ?=

.PHONY: demo test bench gpu soak clean

demo: $(VENV)/run
	$(VENV)/bin/python train.py $(ARGS)

test: $(VENV)/test
	$(VENV)/bin/python -m pytest $(ARGS)

bench: $(VENV)/run
	$(VENV)/bin/python tools/bench.py --device $(DEVICE) $(ARGS)

gpu: $(VENV)/test
	$(VENV)/bin/python tools/gpu.py $(ARGS)

$(VENV)/run: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install -r requirements.txt
	touch $@

$(VENV)/test: requirements-dev.txt $(VENV)/run
	$(VENV)/bin/python -m pip install -r requirements-dev.txt
	touch $@

# Some minutes, an hour at most, of killing and resuming a small run, ten times as often as the test suite does it.
soak: $(VENV)/test
	KILLS=210 timeout 3600 $(VENV)/bin/python -m pytest tests/test_crash.py -k killed $(ARGS)

clean:
	rm -rf $(VENV)
