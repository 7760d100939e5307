# Two commands: `make repro` runs the pipeline and ends with the report, `make test` runs every test.
# Both set up .venv by themselves. Variables: PROFILE, TEACHER, STUDY, OPERATOR, OPTIONS, NAME, PYTHON, TORCH, PIP_ARGS, VENV, PYTEST_ARGS (see `make help`).

PYTHON ?=
TORCH ?=
PIP_ARGS ?=
VENV ?= .venv
PROFILE ?=
TEACHER ?=
STUDY ?=
FAULT ?=
PYTEST_ARGS ?=
# From the command line alone: some systems have a NAME in their environment, which is no row's.
OPERATOR :=
OPTIONS :=
NAME :=
BIN := $(abspath $(VENV))/bin

# A value as one word of the shell, whatever stands in it.
quoted = '$(subst ','\'',$(1))'

export PATH := $(BIN):$(PATH)
# After the installation nothing asks the network: no usage reports, and no hub but for the profile that needs it.
export DVC_NO_ANALYTICS := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export HF_HUB_OFFLINE ?= $(if $(filter real paper,$(PROFILE)),0,1)
export JUPYTER_PREFER_ENV_PATH := 1
export PYTHONUNBUFFERED := 1

.PHONY: help setup report repro rehearse row study publish test faults lab bench gpu-check docs lint clean
.DEFAULT_GOAL := help

help:
	@echo "make report  render the report of the committed run from Git, within a minute, and print its path"
	@echo "make repro   run the pipeline and print the path of the report (some 40 minutes on 2 cores, said beforehand)"
	@echo "make rehearse  the same on pipelines of published shapes with random weights: does your machine carry it?"
	@echo "make row OPERATOR=path.py TEACHER=class   a row of the leaderboard from one operator's file (docs/leaderboard.md)"
	@echo "make study STUDY=plugins   a study beside the pipeline: studies/<name>/dvc.yaml"
	@echo "make publish this machine's finished run becomes the committed one: results, students, run files, README"
	@echo "make test    run every test there is on this machine, and say what was skipped and why"
	@echo "make faults  inject damage, kills, signals and full disks into tiny runs: a line for each, expected and seen"
	@echo "make lab     open JupyterLab at the tour"
	@echo "make bench   time attention against tokens on this machine: the operators, then the kernels beside their peers"
	@echo "make gpu-check   all that only a GPU shows, under ten minutes: numbers, graphs, a million tokens, times"
	@echo "make docs    the site: docs, every public function with its arguments, notebooks and the report; in half a minute"
	@echo "make lint    what CI checks besides the tests"
	@echo "make clean   remove what can be made again; the environment and DVC's cache stay"
	@echo
	@echo "  PROFILE=tiny|nano|full|real|paper   another profile, in a copy under .scratch/: nothing that is in Git changes"
	@echo "  TEACHER=class|text|text-joint  make repro for one teacher and its students alone (of real: sd15, flux, ...)"
	@echo "  OPTIONS='rows=2' NAME=bands-two   make row with options of the operator, and another name than the operator's"
	@echo "  PYTEST_ARGS='-n 0 -k window'   some of the tests, in one process (make test takes one a core, eight at most)"
	@echo "  PYTHON=/path/to/python3.12     the interpreter to build .venv with (3.11 or newer)"
	@echo "  TORCH=cpu                      a torch without CUDA: some 300 MB instead of 3 GB"
	@echo "  PIP_ARGS='--proxy ...'         options of pip's own"
	@echo "  VENV=/path                     the environment elsewhere, or one you have made (conda: VENV=\$$CONDA_PREFIX)"

setup:
	@sh .ci/setup $(call quoted,$(VENV)) $(call quoted,$(PYTHON)) $(call quoted,$(TORCH)) $(PIP_ARGS)

report: setup
	@TRANSFORMERS_VERBOSITY=error python -m linattn.report

repro: setup
	@python -m linattn.pipeline $(if $(PROFILE),--profile $(call quoted,$(PROFILE))) $(if $(TEACHER),--teacher $(call quoted,$(TEACHER)))

rehearse: setup
	@TRANSFORMERS_VERBOSITY=error python -m linattn.rehearse $(if $(TEACHER),--teacher $(call quoted,$(TEACHER)))

row: setup
	@TRANSFORMERS_VERBOSITY=error python -m linattn.row --operator=$(call quoted,$(OPERATOR)) --teacher=$(call quoted,$(TEACHER)) --options=$(call quoted,$(OPTIONS)) --name=$(call quoted,$(NAME)) $(if $(PROFILE),--profile $(call quoted,$(PROFILE)))

study: setup
	@python -m linattn.pipeline --study $(call quoted,$(STUDY))

publish: setup
	@python -m linattn.publish

test: setup
	@echo "Running the tests; those that need what this machine has not are skipped and named at the end."
	@python -m pytest -n auto --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

faults: setup
	@cd tests && python -m faults.suite $(if $(FAULT),$(call quoted,$(FAULT)))

lab: setup
	@jupyter lab --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --ServerApp.root_dir=$(call quoted,$(CURDIR)) --ContentsManager.pre_save_hook=linattn.lab.save_source notebooks/00_tour.ipynb

bench: setup
	@python -m linattn.notebooks benchmark --by-hand --teacher $(call quoted,$(or $(TEACHER),class))
	@python kernels/bench.py --out .scratch/lab/kernels

gpu-check: setup
	@python kernels/gpu_check.py --out reports/gpu

# A broken reference is an error. Everything is read again: Sphinx does not follow what an API page is made of.
docs: setup
	@rm -rf .scratch/docs
	@TRANSFORMERS_VERBOSITY=error python -m sphinx -E -W --keep-going -q -c docs -d .scratch/doctrees . .scratch/docs
	@echo "The site: $(CURDIR)/.scratch/docs/index.html"

lint: setup
	@ruff check .
	@ruff format --check .
	@pyrefly check --output-format min-text
	@nbstripout --verify notebooks/*.ipynb studies/*/*.ipynb

clean:
	@sh .ci/clean
