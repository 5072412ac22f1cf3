# `make` alone lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
BIN := .venv/bin
DATA ?= phantom
TRAINER ?= $(if $(CLUSTER),slurm,cpu)
ARGS ?=
# make train-... SUBJECT=01 is about one person instead of all together
SUBJECT ?=
PEOPLE = $(if $(SUBJECT),sub-$(SUBJECT),all)
SUBJECT_FLAG = $(if $(SUBJECT),--data.init_args.subjects='["$(SUBJECT)"]')
# make train-... RESUME=auto (or 1) continues a run, if it was begun; OVERWRITE=1 trains a finished one anew
RUN_FLAGS := $(if $(RESUME),--run.resume=$(if $(filter auto,$(RESUME)),auto,true)) $(if $(OVERWRITE),--run.overwrite=true)
DATA_FILE = $(if $(wildcard configs/data/$(DATA).yaml),configs/data/$(DATA).yaml,$(DATA))
STAGE_FILE = $(firstword $(wildcard $(patsubst %,configs/%/$(subst -,_,$*).yaml,stage recipe)) configs/stage/$(subst -,_,$*).yaml)
# a data set and its other protocols (<name>_<protocol>.yaml); of Phantom all modalities in its own image space
PHANTOM := $(patsubst %,configs/data/%.yaml,phantom phantom_eeg phantom_meg phantom_multimodal)
PROTOCOLS = $(wildcard configs/data/$(DATA).yaml configs/data/$(DATA)_*.yaml)
DATA_FILES = $(if $(filter phantom,$(DATA)),$(filter-out %multimodal.yaml,$(PHANTOM)),$(if $(wildcard configs/data/$(DATA).yaml),$(PROTOCOLS),$(DATA)))
BRAIN_STAGES := $(patsubst %,configs/stage/%.yaml,ridge_lea ridge_mindvis ridge_direct)
LEA_STAGES := $(patsubst %,configs/stage/%.yaml,lea ridge_mindvis lea_direct ridge_pixels)
MODAL_STAGES := $(patsubst %,configs/stage/%.yaml,conversion conversion_published)
# of data sets side by side: recordings paired with wrong pictures, and from before the picture
MODAL_CONTROLS = $(wildcard configs/data/$(MODAL_DATA)_shuffled.yaml configs/data/$(MODAL_DATA)_before.yaml)
MODAL_DATA = $(if $(filter phantom,$(DATA)),phantom_multimodal,$(DATA))
# Phantom is small: so are the published encoders there; before the picture there are only 10 time points
MODAL_SMALL = $(if $(filter phantom,$(DATA)),$(foreach part,eeg meg,--neural_alignment_published.model.init_args.encoders.$(part).init_args.base=48))
MODAL_SHORT = $(foreach part,eeg meg,--neural_alignment.model.init_args.encoders.$(part).init_args.pool=5)
# what the run of an earlier stage leaves for later ones (run:<stage> in their files, or run:all/<stage>)
DATA_RUNS = runs/$(basename $(notdir $(DATA_FILE)))
final = $(DATA_RUNS)/$(PEOPLE)/$(1)/default/final.ckpt
final_of_all = $(DATA_RUNS)/all/$(1)/default/final.ckpt
DEMO_STAGES := $(patsubst %,configs/stage/%.yaml,ridge_direct contrastive)
# the image space that Phantom's data files name, made on first use
CLIP := runs/phantom_pictures/all/clip/default/open_clip
NEEDED_CLIP = $(if $(filter $(DATA_FILE) $(DATA_FILES),$(PHANTOM)),$(CLIP))
# make train-... CLUSTER=slurm submits each stage as a job, after the jobs of what it is made from, with SBATCH as options
# of sbatch; $(call neuroalign,<run folder>,<needed files>) is what starts a command of a run
CLUSTER ?=
SBATCH ?=
export SBATCH
neuroalign = $(if $(CLUSTER),experiments/$(CLUSTER)/submit.sh $(strip $(1) $(2)) --,$(BIN)/neuroalign)
FOLDER = $(dir $(call final,$(subst -,_,$*)))
ifneq ($(filter-out slurm,$(CLUSTER)),)
$(error CLUSTER is slurm or left out, not $(CLUSTER))
endif
ifneq ($(and $(CLUSTER),$(filter demo lea lea-brain neural-alignment sweep sweep-local,$(MAKECMDGOALS))),)
$(error CLUSTER=slurm submits train-... and score-..., one job a stage, and no grids)
endif
# make sweep STAGE=fmri-mae: what is given on the command line takes the place of what the file of that name says
SWEEP_FILE = configs/sweep/$(subst -,_,$(STAGE)).yaml
given = $(if $(filter file undefined,$(origin $(1))),,$(2))
SWEEP = --file=$(if $(STAGE),$(SWEEP_FILE),$(error say which stage: make $@ STAGE=fmri-mae)) $(call given,DATA,--data=$(DATA_FILE)) $(if $(COUNT),--count=$(COUNT)) $(call given,TRAINER,--trainer=configs/trainer/$(TRAINER).yaml) $(ARGS)
SWEPT = $(or $(call given,DATA,$(DATA_FILE)),$(if $(wildcard $(SWEEP_FILE)),$(shell grep -o 'configs/data/[a-z0-9_]*[.]yaml' $(SWEEP_FILE))))
SWEEP_CLIP = $(if $(filter $(SWEPT),$(PHANTOM)),$(CLIP))
# where targets that print a table leave their report
REPORTS = runs/reports/$(basename $(notdir $(DATA_FILE)))
REPORTED = $(or $(RUN),$(RUNS),$(error say which runs: make report RUN=runs/<data>/<people>/<stage>/<name>, or RUNS='<folder> <folder> ...' to compare them))
# a file of tests stays in one process; networks this small are fastest on one core
PYTEST = OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder
comma := ,
empty :=
space := $(empty) $(empty)
list = [$(subst $(space),$(comma),$(strip $1))]

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z%-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 24
	@echo "stages: $(patsubst configs/stage/%.yaml,%,$(wildcard configs/stage/*.yaml))"
	@echo "data:   $(patsubst configs/data/%.yaml,%,$(wildcard configs/data/*.yaml))"

.PHONY: setup
setup: .venv/.done ## make .venv from nothing

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed (make PYTHON=...), this is " + sys.version)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: demo
.SECONDEXPANSION:
demo: setup $$(NEEDED_CLIP) ## ridge and contrastive alignment side by side: make demo [DATA=phantom|vangerven2010|miyawaki2008]
	$(BIN)/neuroalign grid --stage='$(call list,$(DEMO_STAGES))' --data='$(call list,$(DATA_FILES))' \
		--name=demo --overwrite=true --report=$(REPORTS)/demo.html $(if $(ARGS),-- $(ARGS))

$(CLIP): | setup
	$(MAKE) --no-print-directory train-clip DATA= TRAINER=cpu CLUSTER= ARGS= RESUME= OVERWRITE=1

.PHONY: train-clip
train-clip: setup ## train Phantom's own small CLIP, on its pictures and captions [TRAINER=... ARGS=... RESUME=1 OVERWRITE=1]
	$(call neuroalign,$(dir $(CLIP))) fit -c configs/trainer/$(TRAINER).yaml -c configs/stage/clip.yaml --data configs/data/phantom_pictures.yaml $(RUN_FLAGS) $(ARGS)
	$(call neuroalign,$(dir $(CLIP)),$(dir $(CLIP))final.ckpt) test -c configs/trainer/$(TRAINER).yaml -c configs/stage/clip.yaml --data configs/data/phantom_pictures.yaml $(ARGS)

.PHONY: lea-brain
lea-brain: setup $$(NEEDED_CLIP) ## LEA without pictures against its baselines, every person: make lea-brain [DATA=... ARGS=... OVERWRITE=1]
	$(BIN)/neuroalign grid --stage='$(call list,$(BRAIN_STAGES))' --data='$(call list,$(DATA_FILE))' \
		--name=lea $(if $(OVERWRITE),--overwrite=true) $(if $(ARGS),-- $(ARGS))

.PHONY: lea
lea: setup $$(NEEDED_CLIP) ## the whole of LEA, recordings to pictures, against its baselines: make lea [DATA=... ARGS=... OVERWRITE=1]
	$(BIN)/neuroalign grid --stage='$(call list,$(LEA_STAGES))' --data='$(call list,$(DATA_FILE))' \
		--name=lea $(if $(OVERWRITE),--overwrite=true) --report=$(REPORTS)/lea.html $(if $(ARGS),-- $(ARGS))

.PHONY: neural-alignment
neural-alignment: setup $$(NEEDED_CLIP) ## decoding, encoding and all conversions, as published and better, and negative controls [DATA=... ARGS=... OVERWRITE=1]
	$(BIN)/neuroalign grid --stage='$(call list,$(MODAL_STAGES))' --data='[configs/data/$(MODAL_DATA).yaml]' \
		--reference=configs/reference/neural_alignment.yaml --name=neural_alignment $(if $(OVERWRITE),--overwrite=true) \
		--report=$(REPORTS)/neural_alignment.html -- $(MODAL_SMALL) $(ARGS)
ifneq ($(MODAL_CONTROLS),)
	$(BIN)/neuroalign grid --stage='[configs/stage/conversion.yaml]' --data='$(call list,$(MODAL_CONTROLS))' \
		--name=neural_alignment $(if $(OVERWRITE),--overwrite=true) -- $(MODAL_SHORT) $(ARGS)
endif

train-conversion: $(call final,neural_alignment)
train-conversion-published: $(call final,neural_alignment_published)
train-ridge-lea: $(call final,fmri_mae)
train-ridge-mindvis: $(call final,mindvis)
train-maskgit: $(call final,tokenizer)
train-maskgit-full: $(call final,tokenizer_full)
train-lea: $(call final,fmri_mae)
train-lea train-lea-direct: $(call final_of_all,maskgit)
$(DATA_RUNS)/$(PEOPLE)/%/default/final.ckpt: | setup
	$(MAKE) --no-print-directory train-$(subst _,-,$*) ARGS= RESUME=1 OVERWRITE=
ifdef SUBJECT
$(DATA_RUNS)/all/%/default/final.ckpt: | setup
	$(MAKE) --no-print-directory train-$(subst _,-,$*) SUBJECT= ARGS= RESUME=1 OVERWRITE=
endif

train-%: setup $$(NEEDED_CLIP) ## train a stage: make train-fmri-mae [DATA=... SUBJECT=... TRAINER=... CLUSTER=slurm ARGS=... RESUME=1 OVERWRITE=1]
	$(call neuroalign,$(FOLDER),$(filter-out setup,$^)) fit -c configs/trainer/$(TRAINER).yaml -c $(STAGE_FILE) --data $(DATA_FILE) $(SUBJECT_FLAG) $(RUN_FLAGS) $(ARGS)

.PHONY: score-%
score-%: setup ## test a trained stage: make score-ridge-direct [DATA=... SUBJECT=... TRAINER=... CLUSTER=slurm ARGS=...]
	$(call neuroalign,$(FOLDER),$(FOLDER)final.ckpt) test -c configs/trainer/$(TRAINER).yaml -c $(STAGE_FILE) --data $(DATA_FILE) $(SUBJECT_FLAG) $(ARGS)

.PHONY: sweep
sweep: setup $$(SWEEP_CLIP) ## hyper-parameters by an agent of Weights & Biases: make sweep STAGE=fmri-mae [DATA=... COUNT=... TRAINER=... ARGS=...]
	$(BIN)/neuroalign sweep $(SWEEP)

.PHONY: sweep-local
sweep-local: setup $$(SWEEP_CLIP) ## the same trials and table without a server: make sweep-local STAGE=fmri-mae [DATA=... COUNT=... TRAINER=... ARGS=...]
	$(BIN)/neuroalign sweep --local=true $(SWEEP)

.PHONY: report
report: setup ## one page of a run: make report RUN=runs/... [TO=report.html]; of several side by side: RUNS='runs/... runs/...'
	$(BIN)/neuroalign report --runs='$(call list,$(REPORTED))' $(if $(TO),--to='$(TO)')

.PHONY: convert
convert: setup $$(NEEDED_CLIP) ## convert a data set and embed its pictures: make convert DATA=...
	$(BIN)/neuroalign convert --data $(DATA_FILE) $(ARGS)

.PHONY: lint
lint: setup ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: test
test: lint ## lint, types and tests; what takes longer is in test-full
	$(PYTEST) -m "not full" $(ARGS)

.PHONY: test-full
test-full: lint ## everything
	$(PYTEST) $(ARGS)

.PHONY: clean
clean: ## remove .venv and caches; data/ and runs/ stay
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache neuroalign.egg-info
