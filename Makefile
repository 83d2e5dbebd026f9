# Everything needs only Python >= 3.11, make and pip: each target sets up .venv first, once.
.DEFAULT_GOAL := help
SHELL := /bin/sh
.DELETE_ON_ERROR:

# settings that may be given on the command line, as in `make test PYTHON=python3.12`
PYTHON ?= python3
AUDIO_MODEL ?= demo/models/stand-in-wav2vec2
TEXT_MODEL ?= demo/models/stand-in-bert
DEVICE ?= auto
PYTEST_ARGS ?=
EXTRAS ?= test,develop

BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help
help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-17s %s\n", $$1, $$2}'
	@echo 'Settings: PYTHON=python3.12; for demo AUDIO_MODEL=facebook/wav2vec2-base TEXT_MODEL=bert-base-uncased DEVICE=cuda;'
	@echo '          for test PYTEST_ARGS="tests/test_losses.py -x", and AMBER2_TEST_DATA=FOLDER with real recordings.'

.PHONY: setup
setup: $(INSTALLED)  ## create .venv and install amber2 and its tools at the versions of constraints.txt

# Debian's python3 has no ensurepip without python3-venv; there pip installs pip.
$(INSTALLED): setup.cfg pyproject.toml requirements.txt constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "amber2 needs Python 3.11 or newer; '$(PYTHON) --version' says: $$($(PYTHON) --version 2>&1 | head -n 1)." \
	    "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 \
	  || $(PYTHON) -m venv --clear .venv >/dev/null 2>&1 \
	  || { $(PYTHON) -m venv --clear --without-pip .venv && $(PYTHON) -m pip --python $(BIN)/python install pip; }
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

# 360 turns train a head in each fold, not thousands: the inputs are standardised, the steps smaller in rows and larger in
# size than the paper's.
STAND_INS := $(findstring demo/models/,$(AUDIO_MODEL) $(TEXT_MODEL))
FEATURES := demo/features/$(notdir $(AUDIO_MODEL))+$(notdir $(TEXT_MODEL)).h5
.PHONY: demo
demo: $(INSTALLED)  ## write a corpus, encode it, train AmbER² and the baseline on it, print the table, predict
	@echo '== A corpus of synthetic speech, in demo/corpus'
	@$(BIN)/python -m amber2_data.corpora.synthetic demo/corpus
	@test -z '$(STAND_INS)' || test -e demo/models/stand-in-bert/README.md || { \
	  echo '== Stand-ins for the encoders, in demo/models'; \
	  $(BIN)/python -m amber2_extract.stand_ins demo/models --words demo/corpus/utterances.csv; }
	@echo '== Stage 1: from speech and text to features'
	$(BIN)/extract-features --corpus synthetic --root demo/corpus --device $(DEVICE) --output $(FEATURES) \
	  --audio-model $(AUDIO_MODEL) --text-model $(TEXT_MODEL)
	@echo '== Stage 2: from features to heads'
	@rm -rf demo/run
	$(BIN)/train-heads --cache $(FEATURES) --output demo/run --device $(DEVICE) --kappa 2,8 --lambda-mai 0.3,0.7 \
	  --seeds 3 --inputs standardized --batch-size 64 --lr 3e-3
	@echo '== From the run folder to a page: open demo/report/report.html'
	@rm -rf demo/report
	$(BIN)/report-runs demo/run --output demo/report
	@echo '== The heads on a new sentence'
	$(BIN)/predict-emotion --heads demo/run --system amber2 --device $(DEVICE) --text 'I never said that.' \
	  --audio-model $(AUDIO_MODEL) --text-model $(TEXT_MODEL) demo/corpus/wav/Ses01/Ses01_d000_F000.wav
	@echo '== What could be reached'
	@$(BIN)/python -m amber2_data.corpora.synthetic demo/corpus
	@test -z '$(STAND_INS)' || { \
	  echo 'This corpus was encoded by stand-ins with random weights, not by pretrained encoders: the table shows that'; \
	  echo 'everything works, and nothing about real emotions. The encoders of the paper (a download of about 800 MB):'; \
	  echo '  make demo AUDIO_MODEL=facebook/wav2vec2-base TEXT_MODEL=bert-base-uncased'; }

# What Python and pytest make of the tests' source is kept, wherever it is forbidden otherwise: the next run starts
# seconds earlier.
.PHONY: test
test: export PYTHONDONTWRITEBYTECODE :=
test: $(INSTALLED)  ## run the tests; all of them, the longest too, with PYTEST_ARGS=tests
	$(BIN)/python -m pytest $(or $(PYTEST_ARGS),-m "not thorough")

.PHONY: lint
lint: $(INSTALLED)  ## check style and format with ruff
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: types
types: $(INSTALLED)  ## check types with mypy (strict)
	$(BIN)/mypy

.PHONY: docs
docs: $(INSTALLED)  ## put the commands' own help into docs/commands.md
	$(BIN)/python docs/help_texts.py

.PHONY: bench
bench: $(INSTALLED)  ## run every benchmark
	@set -e; for benchmark in $(sort $(filter-out %/made_up.py %/first_step.py %/stage2_workers.py %/plain_systems.py,$(wildcard benchmarks/*.py))); do \
	  echo "== $$benchmark"; $(BIN)/python "$$benchmark"; done

.PHONY: clean
clean:  ## remove what make and the tools made, except .venv
	rm -rf demo build dist amber2.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.PHONY: clean-all
clean-all: clean  ## remove .venv, too
	rm -rf .venv
