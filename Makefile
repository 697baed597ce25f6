# Everything a fresh machine needs is installed by the targets themselves: a virtual environment with the pinned packages.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
UV_VERSION := 0.13.9
STAMP := $(VENV)/.installed

.PHONY: help install demo demo-tts test lint results clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/'

install: $(STAMP)  ## create the virtual environment with the pinned packages

$(STAMP): requirements/lock.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv==$(UV_VERSION)
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q -r requirements/lock.txt
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q --no-deps --no-build-isolation -e .
	touch $@

demo: $(STAMP)  ## prepare, train, decode, score and transcribe on the embedded corpus, in under ten minutes
	PATH=$(BIN):$$PATH bash recipes/demo/run.sh

demo-tts: $(STAMP)  ## train a voice, speak, and let a recogniser read it, in under fifteen minutes
	PATH=$(BIN):$$PATH bash recipes/demo/tts.sh

lint: $(STAMP)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint  ## ruff, mypy and every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

results: $(STAMP)  ## train and score every recipe whose table is published (hours)
	PATH=$(BIN):$$PATH bash recipes/fsdd/run.sh
	PATH=$(BIN):$$PATH bash recipes/speechocean762/run.sh
	PATH=$(BIN):$$PATH bash recipes/speechocean762/families.sh
	PATH=$(BIN):$$PATH bash recipes/demo/canary.sh
	PATH=$(BIN):$$PATH bash recipes/ljspeech/run.sh
	PATH=$(BIN):$$PATH bash recipes/demo/voices.sh
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q moonshine-voice==0.0.59 # reads LJSpeech's voices
	PATH=$(BIN):$$PATH bash recipes/ljspeech/tts.sh
	PATH=$(BIN):$$PATH bash recipes/kerstin/tts.sh

clean:  ## remove the virtual environment and build files
	rm -rf $(VENV) build dist *.egg-info
