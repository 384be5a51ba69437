.DEFAULT_GOAL := help
SHELL := /bin/bash

PYTHON ?= python3
MODEL ?= mlp
BASE_PATH ?= models
# Processes that a target's tests run in.
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The older TensorFlow, in an environment of its own.
VENV_2_20 := .venv-2.20
INSTALLED_2_20 := $(VENV_2_20)/.installed
# Tests that need no more than the first environment.
HERE := not container and not arm64 and not tritonclient and not dist and not ray \
  and not score_image
# A Python on an emulated Raspberry Pi 4.
VENV_ARM64 := .venv-arm64
INSTALLED_ARM64 := $(VENV_ARM64)/.installed
# NVIDIA's clients, which want an older ml_dtypes than TensorFlow's.
VENV_TRITONCLIENT := .venv-tritonclient
INSTALLED_TRITONCLIENT := $(VENV_TRITONCLIENT)/.installed

# What a newcomer types ------------------------------------------------------------------

.PHONY: help
help: ## Show these lines
	@awk -F':.*## ' '/^[a-z0-9.-]+:.*## / {printf "  make %-21s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: export
export: $(INSTALLED) ## Train, export, verify, publish (MODEL=mlp or cnn)
	@$(BIN)/python -m exporter export --config configs/$(MODEL).toml --base_path $(BASE_PATH)/$(MODEL) $(ARGS)

.PHONY: train
train: $(INSTALLED) ## Train only
	@$(BIN)/python -m exporter train --config configs/$(MODEL).toml $(ARGS)

.PHONY: serve
serve: has-version $(INSTALLED) ## Serve it on localhost: gRPC 8500, REST 8501
	@$(BIN)/python -m serving embedded --port=8500 --rest_api_port=8501 \
	  --model_name=$(MODEL) --model_base_path=$(abspath $(BASE_PATH)/$(MODEL)) $(ARGS)

.PHONY: predict
predict: has-version $(INSTALLED) ## Send golden inputs to a running server
	@$(BIN)/python -m clients predict --model_name $(MODEL) --version_dir $(BASE_PATH)/$(MODEL) $(ARGS)

.PHONY: parity
parity: has-version $(INSTALLED) ## Compare every way to ask, and the device
	@$(BIN)/python -m clients parity --model_name $(MODEL) --version_dir $(BASE_PATH)/$(MODEL) --via all $(ARGS)

.PHONY: demo
demo: $(INSTALLED) ## Export, serve, predict, parity, a page to draw on
	@MODEL=$(MODEL) BASE_PATH=$(BASE_PATH) scripts/demo $(ARGS)

.PHONY: web
web: web/node_modules/.installed ## Build the pages for browsers (needs Node.js 20)
	@npm run --prefix web --silent build

# What a developer types -----------------------------------------------------------------

.PHONY: setup setup-2.20
setup: $(INSTALLED) ## Install the tested versions into .venv
setup-2.20: $(INSTALLED_2_20)

.PHONY: lint
lint: $(INSTALLED) ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(INSTALLED) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: sbom
sbom: $(INSTALLED) ## List what is installed, into build/sbom/
	@$(BIN)/python scripts/sbom $(ARGS)

.PHONY: licences
licences: $(INSTALLED) ## The same as a table of licences
	@$(BIN)/python scripts/sbom --table $(ARGS)

.PHONY: test
test: $(INSTALLED) ## All tests that need nothing but this environment
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "$(HERE)" $(ARGS)

.PHONY: test-quick
test-quick: $(INSTALLED) ## Tests that import no TensorFlow
	$(BIN)/python -m pytest -n $(WORKERS) -m "$(HERE) and not tensorflow" $(ARGS)

.PHONY: test-clients
test-clients: $(INSTALLED) ## The clients' tests without TensorFlow installed
	@scripts/test-clients-without-tensorflow -n $(WORKERS) $(ARGS)

.PHONY: test-dist
test-dist: dist ## The wheel in an empty environment per extra
	$(BIN)/python -m pytest tests/wheel -q -m dist $(ARGS)

.PHONY: test-oldest
test-oldest: $(INSTALLED) ## The contract on the oldest releases allowed
	@scripts/test-oldest $(ARGS)

.PHONY: test-tensorflow-2.20
test-tensorflow-2.20: $(INSTALLED_2_20) ## Exporter and TensorFlow engine on TensorFlow 2.20
	@scripts/test-tensorflow-2.20 -n $(WORKERS) $(ARGS)

.PHONY: test-ray
test-ray: $(INSTALLED) ## Scoring on two Ray nodes, one of which dies
	$(BIN)/python -m pytest tests/score -q -m ray $(ARGS)

.PHONY: test-arm64
test-arm64: $(INSTALLED) $(INSTALLED_ARM64) ## Both models on an emulated Raspberry Pi 4
	$(BIN)/python -m pytest tests/test_arm64.py -q -s -m arm64 $(ARGS)

.PHONY: test-tritonclient
test-tritonclient: $(INSTALLED) $(INSTALLED_TRITONCLIENT) ## NVIDIA's clients against the embedded server
	$(BIN)/python -m pytest tests/test_tritonclient.py -q -m tritonclient $(ARGS)

.PHONY: bench-export bench-accuracy bench-serving bench-clients bench-rollout bench-replicas bench-faults bench-stream bench-applications bench-page bench-tracing bench-score
bench-export: $(INSTALLED) ## make export beside a plain script
	$(BIN)/python -m benchmarks.bench_export $(ARGS)

bench-accuracy: $(INSTALLED) ## Accuracy of both configurations, three seeds
	$(BIN)/python -m benchmarks.bench_accuracy $(ARGS)

bench-serving: $(INSTALLED) ## The embedded server beside the alternatives
	$(BIN)/python -m benchmarks.bench_serving $(ARGS)

bench-rollout: $(INSTALLED) ## Promote under load: seconds, failed calls
	$(BIN)/python -m benchmarks.bench_rollout $(ARGS)

bench-replicas: $(INSTALLED) ## Replicas against cores
	$(BIN)/python -m benchmarks.bench_replicas $(ARGS)

bench-clients: $(INSTALLED) ## The clients beside what they replace
	$(BIN)/python -m benchmarks.bench_clients $(ARGS)

bench-tracing: $(INSTALLED) ## What traces and logs cost a call
	$(BIN)/python -m benchmarks.bench_tracing $(ARGS)

bench-stream: $(INSTALLED) ## Training on records larger than memory
	$(BIN)/python -m benchmarks.bench_stream $(ARGS)

bench-applications: $(INSTALLED) ## MobileNetV2, ResNet50, EfficientNetB0
	$(BIN)/python -m benchmarks.bench_applications $(ARGS)

bench-page: $(INSTALLED) ## The demo's page: first answer, stroke to bars
	$(BIN)/python -m benchmarks.bench_page $(ARGS)

bench-score: $(INSTALLED) ## clients score beside plain loops and a server
	$(BIN)/python -m benchmarks.bench_score $(ARGS)

bench-faults: $(INSTALLED) ## What must lose nothing and hold nobody up
	$(BIN)/python -m benchmarks.bench_faults $(ARGS)

.PHONY: fuzz
fuzz: $(INSTALLED) ## All parsers of strangers' bytes, by branches
	@$(BIN)/python -m benchmarks.fuzz $(ARGS)

.PHONY: bench-container
bench-container: $(INSTALLED) ## Images: size, time to ready, memory
	$(BIN)/python -m benchmarks.bench_container $(ARGS)

.PHONY: image
image: ## Build the image (TARGET=tensorflow, BASE=IMAGE)
	@deploy/build $(TARGET)

.PHONY: dist
dist: $(INSTALLED) web ## Wheel and sdist into dist/ (needs Node.js 20)
	@rm -rf dist build/lib build/bdist.* && mkdir -p build
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null || echo 315532800) \
	  $(BIN)/python -m build --no-isolation --outdir dist >build/dist.log 2>&1 || \
	  { cat build/dist.log >&2; exit 1; }
	@ls dist/*

.PHONY: images
images: ## Build both images
	@deploy/build embedded
	@deploy/build tensorflow

.PHONY: test-container
test-container: $(INSTALLED) images ## Build both images, test them on docker or podman
	$(BIN)/python -m pytest -m container $(ARGS)

.PHONY: test-score-image
test-score-image: $(INSTALLED) ## The image that scores, as KubeRay runs it
	@deploy/build score
	$(BIN)/python -m pytest tests/container/test_score_image.py -q -m score_image $(ARGS)

.PHONY: protos
# With the older environment's compiler: generated code runs with its own protobuf and newer ones.
protos: $(INSTALLED_2_20) ## Generate contract/wire again from its .proto files
	$(VENV_2_20)/bin/python -m contract.wire.generate

.PHONY: lock
lock: COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header \
  --generate-hashes --upgrade
lock: $(INSTALLED) ## Resolve the locks again, with hashes
	$(COMPILE) --all-extras pyproject.toml --group dev --output-file requirements.lock
	$(COMPILE) --all-extras pyproject.toml --group tensorflow-2-20 --output-file requirements-2.20.lock
	$(COMPILE) --group tritonclient --output-file requirements-tritonclient.lock
	$(COMPILE) --extra batch --extra remote pyproject.toml --group ray-cluster \
	  --constraint requirements.lock --output-file requirements-ray-cluster.lock

.PHONY: clean
clean: ## Remove the environments and caches; models/ stays
	rm -rf $(VENV) $(VENV_2_20) $(VENV_ARM64) $(VENV_TRITONCLIENT) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

web/node_modules/.installed: web/package.json web/package-lock.json
	@command -v npm >/dev/null || { echo "The pages in web/ are built with Node.js and npm 20 or newer, and" \
	  "there is no npm here; install them from nodejs.org or your distribution" >&2; exit 2; }
	@npm ci --prefix web --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@

# A server waits for a version to come, and says nothing meanwhile; a newcomer is told what to do, and
# before anything is installed for it.
.PHONY: has-version
has-version:
	@$(if $(findstring _dir,$(ARGS))$(findstring _base_path,$(ARGS))$(findstring _config_file,$(ARGS)),:,\
	  ls -d '$(BASE_PATH)/$(MODEL)'/[0-9]* >/dev/null 2>&1 || { echo "make $(firstword $(MAKECMDGOALS)):" \
	  "$(BASE_PATH)/$(MODEL) holds no version yet; make one first: make export$(if \
	  $(filter-out mlp,$(MODEL)), MODEL=$(MODEL))$(if $(filter-out models,$(BASE_PATH)), \
	  BASE_PATH=$(BASE_PATH))" >&2; exit 2; })

# An environment is stale as soon as its lock or the project file is newer than it. uv takes a fifth
# of pip's time; pip is there for whose index only pip has been told. A lock is whole: what it
# overrides (pyproject.toml) pip is not to look for.
$(INSTALLED): requirements.lock pyproject.toml
	$(call install,$(VENV),requirements.lock)

$(INSTALLED_2_20): requirements-2.20.lock pyproject.toml
	$(call install,$(VENV_2_20),requirements-2.20.lock)

$(INSTALLED_TRITONCLIENT): requirements-tritonclient.lock
	@test -x $(VENV_TRITONCLIENT)/bin/python || $(PYTHON) -m venv $(VENV_TRITONCLIENT)
	@$(VENV_TRITONCLIENT)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

$(INSTALLED_ARM64): requirements.lock pyproject.toml scripts/install-arm64 | $(INSTALLED)
	@scripts/install-arm64

define install
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed, and $$($(PYTHON) --version 2>&1) was found;" \
	         "name one with make PYTHON=python3.12" >&2; exit 2; }
	@echo "Installing the tested versions into $(1) (about 3 GB, half a minute to some minutes)" >&2
	@test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
	@$(PYTHON) deploy/locked.py uv > $(1)/uv.txt
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(1)/uv.txt
	@$(1)/bin/uv pip sync --quiet --compile-bytecode --python $(1)/bin/python --require-hashes $(2) || \
	  $(1)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r $(2)
	@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $(1)/.installed
endef
