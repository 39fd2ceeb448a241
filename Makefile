# Two commands do everything on a fresh machine with Python 3.11 or 3.12: make demo, make test.
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-fast soak clients lint audit site bench fuzz docs format clean
demo: $(STAMP)
	$(BIN)/koe demo build/demo
	$(BIN)/koe run -c build/demo/pipeline.yaml

# Two processes of one thread each: more would wait for each other on two cores. Without reordering, or
# the files with the fewest tests, which take longest, would come last: see tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(STAMP)
	$(PYTEST)

test-fast: $(STAMP)  # the inner loop: what takes under two seconds a test
	$(PYTEST) -m "not slow" --durations 10 --durations-min 2

soak: $(STAMP)  # kills, failed requests, lost nodes, full disks, torn files; about 25 minutes
	$(BIN)/python -m tests.soak --json build/soak.json

clients: $(STAMP)  # exports in all programs that read them; builds llama.cpp the first time, in about 3 minutes on two cores
	$(BIN)/python -m tests.clients.releases --with-llama-cpp
	$(PYTEST) tests/clients

lint: $(STAMP) site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/lint-imports
	$(BIN)/basedpyright
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive koe pipeline stages training benchmarks

# Known weaknesses of the pinned packages. It asks PyPI's advisory service, so it needs the network, and
# fails where a package could not be looked up: what was not audited is not sound.
audit: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[audit]'
	@$(BIN)/pip-audit --strict --disable-pip --no-deps --progress-spinner off -r constraints.txt \
	|| { echo "make audit: a package has a known weakness, or the advisory service of PyPI could not be" \
	"asked about one (see above); only the first is a fault of the packages" >&2; exit 1; }

site: $(STAMP)  # docs/ and the docstrings in build/site; fails on a link that leads nowhere
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.dnsmos
	$(BIN)/python -m benchmarks.snac
	$(BIN)/python -m benchmarks.codec_distance
	$(BIN)/python -m benchmarks.planning
	$(BIN)/python -m benchmarks.long_recordings
	$(BIN)/python -m benchmarks.packing
	$(BIN)/python -m benchmarks.engine_overhead
	$(BIN)/python -m benchmarks.driver_memory
	$(BIN)/python -m benchmarks.loader
	$(BIN)/python -m benchmarks.run_statistics
	$(BIN)/python -m benchmarks.verifying
	$(BIN)/python -m benchmarks.scale_run
	$(BIN)/python -m benchmarks.scale_run --s3 --clips 10000 30000 100000
	$(BIN)/python -m benchmarks.interleave_scale
	$(BIN)/python -m benchmarks.object_store_requests
	$(BIN)/python -m benchmarks.trainer_gpu
	$(BIN)/python -m benchmarks.trainer_memory
	$(BIN)/python -m benchmarks.trainer_start

fuzz: $(STAMP)  # 10,000 damaged inputs for each reader; an hour or two on two cores
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	$(BIN)/python -m tests.fuzz --runs 10000

docs: $(STAMP)
	$(BIN)/python -m pipeline.config.reference

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build

$(STAMP): pyproject.toml constraints.txt setup.py stages/native/build.py
	@test -n "$(PYTHON)" || { echo "koe needs Python 3.11 or 3.12: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)
