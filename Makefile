# Daguerre's verbs. `make help` lists them; each sets up .venv by itself, once.
.DEFAULT_GOAL := help
.PHONY: help setup serve dev up down gpu test test-long test-gpu lint format bench bench-gpu clean

python := .venv/bin/python

.venv/ready: pyproject.toml tools/setup.sh
	@tools/setup.sh

help: ## list these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready ## make .venv with everything in it

serve: .venv/ready ## start the server on http://127.0.0.1:8000 with the embedded model
	@exec .venv/bin/daguerre serve $(ARGS)

dev: .venv/ready ## the same, started again at each change of the sources
	@exec .venv/bin/daguerre serve --reload $(ARGS)

up: secrets/daguerre.toml secrets/grafana_password secrets/metrics_key ## build and start the container (ARGS="--profile monitoring" adds Prometheus and Grafana)
	docker compose $(ARGS) up --detach --build

down: ## stop the container; what it keeps stays in its volumes
	docker compose --profile "*" down

secrets/daguerre.toml: deploy/daguerre.toml
	@install -d -m 700 secrets
	@[ -e $@ ] || install -m 644 $< $@  # readable in the container; here the folder keeps others out
	@touch $@

secrets/grafana_password:
	@install -d -m 700 secrets
	@head -c 24 /dev/urandom | base64 > $@
	@chmod 644 $@  # as above, whatever the umask is

secrets/metrics_key:
	@install -d -m 700 secrets
	@touch $@
	@chmod 644 $@

gpu: .venv/ready ## what cards are here, and whether torch can use them
	@nvidia-smi --query-gpu=name,memory.total,driver_version,compute_cap --format=csv || echo "no nvidia-smi here"
	@.venv/bin/daguerre doctor

test: .venv/ready ## every test that needs neither GPU nor network (at most 15 minutes on 2 cores)
	$(python) -m pytest -m "not long and not gpu" --numprocesses 3 --dist loadfile --durations 15 $(ARGS)

test-long: .venv/ready ## the heavier suites too
	$(python) -m pytest -m "not gpu" --timeout 3600 $(ARGS)

test-gpu: .venv/ready ## the tests that need an accelerator
	$(python) -m pytest -m gpu $(ARGS)

lint: .venv/ready ## ruff, mypy --strict, the import law, spelling
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
	.venv/bin/lint-imports
	.venv/bin/codespell

format: .venv/ready ## mend what ruff can mend
	$(python) -m ruff format .
	$(python) -m ruff check --fix .

bench: .venv/ready ## run the benchmarks that need no GPU; results go to benchmarks/results/
	$(python) -m benchmarks $(ARGS)

bench-gpu: .venv/ready ## the benchmarks of real model sizes, on a GPU
	$(python) -m benchmarks --gpu $(ARGS)

clean: ## remove .venv, caches and pictures
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find outputs -type f ! -name .gitkeep -delete
