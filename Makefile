# make demo: the main job on data that the project makes itself.   make test: everything that has to hold.
# make test-long: the same promises at full numbers, and what starts many processes.   make test-night: once more, in every system.
VENV := .venv
PY := $(VENV)/bin/python
INSTALL := $(VENV)/bin/uv pip install --python $(PY) --constraint constraints.txt
READY := $(VENV)/.ready
# empty, so that compiled modules are kept: the tests start hundreds of processes, and each would compile pandas, torch and fastai (8 s)
export PYTHONDONTWRITEBYTECODE :=
# a worker that dies, or a test that hangs, ends the run and is named: xdist would wait for ever
LOST := --max-worker-restart=0 -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true
# A folder a process, two at a time, the longest first. A lesson defines its module's classes anew, so no lesson before it in the process
# may have imported them: the notebooks of a folder are in an order in which each imports only those before it.
LESSONS := $(addprefix nbs/,train infer data review rehearse audio kaggle models augment core 01_cli.ipynb 02_demo.ipynb index.ipynb)
# two files at a time, one thread each, in the order of tests/conftest.py
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(LOST) --durations=10

# uv resolves and installs; in an environment of its own, as it is also wanted when the old constraints do not fit new ranges
UV := build/uv/bin/uv
EDGES := newest oldest kaggle

.PHONY: help demo test test-long test-night test-edges constraints cluster docs notebooks site dist

help:
	@echo 'make demo   features, four stages, bundle, inference notebook, submission: on synthesized sounds'
	@echo 'make test   export in sync, notebooks clean, nbdev_test, pytest: every promise once'
	@echo 'make test-long   what takes long because it repeats or starts many processes: fuzz, kills, rehearsals, tutorials'
	@echo 'make test-night   before a release: the same in every system, container and engine, and the slow cells of the lessons'
	@echo 'make cluster   the tests that want a Ray cluster and an S3 server, on this machine'
	@echo 'make constraints   constraints.txt anew: the newest versions that the ranges of settings.ini allow'
	@echo 'make test-edges   do the newest, the oldest and Kaggle'"'"'s versions work? (EDGES=kaggle for one; an hour, 10 GB at a time)'
	@echo 'make site   the documentation from the notebooks, in _docs/'
	@echo 'make notebooks   execute the training and inference notebooks and store their outputs (SYSTEMS=rainforest2021 for one)'
	@echo 'make dist   the sdist and the wheel in dist/, checked by twine'
	@echo 'make docs   format, lint, export the package and README.md from nbs/, and clean the notebooks'

$(READY): settings.ini setup.py constraints.txt
	@echo 'Installing audiotag into $(VENV), once. Without a cache about 3.2 GB are downloaded (on Linux, PyTorch with CUDA'
	@echo 'is most of it), which takes some minutes; 6 GB on disk. Versions are those of constraints.txt.'
	@test -x $(PY) || python3 -m venv $(VENV)
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "audiotag needs Python 3.10 or later, and $(VENV) has %d.%d" % sys.version_info[:2])'
	@$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@$(INSTALL) setuptools wheel
	@$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	@echo 'audiotag demo: the whole way from recordings to submission.csv, on synthesized sounds'
	@$(PY) -c 'from audiotag.demo import main; raise SystemExit(main(["demo"]))'

test: $(READY)
	@echo '1/3 the house: export in sync, notebooks clean, formatted, imports in order'
	@$(PY) -m pytest -q tests/test_house.py
	@echo '2/3 nbdev_test: every lesson runs'
	@printf '%s\n' $(LESSONS) | OMP_NUM_THREADS=1 xargs -P 2 -n 1 $(VENV)/bin/nbdev_test --n_workers 0 --path
	@echo '3/3 pytest: parity, faults, end to end'
	@$(PYTEST) -m 'not apart and not long' --ignore tests/test_house.py tests

test-long: $(READY)
	@$(PYTEST) -m 'long and not night and not apart' tests

test-night: $(READY)
	@echo '1/2 the lessons whose slow cells `make test` leaves out, with them'
	@grep -rlE '"#\| slow' nbs --include='[0-9]*.ipynb' --exclude-dir=_site | OMP_NUM_THREADS=1 xargs -P 2 -n 1 $(VENV)/bin/nbdev_test --n_workers 0 --flags slow --path
	@echo '2/2 pytest: tests/night.txt'
	@$(PYTEST) -m 'night and not apart' tests

$(UV):
	@python3 -m venv build/uv
	@build/uv/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'

# Everything is upgraded, and the pins of before do not count. Run `make test` with the new file before it is committed.
# --refresh-package: uv remembers what setup.py asks for until setup.py itself changes, but the ranges stand in settings.ini
constraints: $(UV)
	@UV_CUSTOM_COMPILE_COMMAND='make constraints' $(UV) pip compile setup.py --extra dev --extra docs --extra cluster --extra remote --universal --python-version 3.10 \
	  --upgrade --refresh-package audiotag --no-config --quiet --output-file constraints.txt

# not a part of `make test`: it downloads three versions of torch. Results: tests/bench/results/edges.md
test-edges: $(READY) $(UV)
	@$(PY) tests/edges/run.py --uv $(UV) $(EDGES)

# the step that `make test` leaves out: it installs Ray and an S3 server, and nothing else may run in its process
cluster: $(READY)
	@$(INSTALL) --no-build-isolation --editable '.[dev,cluster,remote]' 'moto[server]>=5'
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q --durations=10 -m apart tests/train/test_engine.py tests/data/test_remote.py

docs: $(READY)
	@$(VENV)/bin/ruff format --quiet .
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/nbdev_export
	@$(PY) tests/readme.py
	@$(VENV)/bin/nbdev_clean
	@$(PY) tests/outputs.py

# the outputs of the notebooks in nbs/kaggle, from competitions that the project synthesizes: about twelve minutes
notebooks: $(READY)
	@$(PY) tests/kaggle_notebooks.py $(SYSTEMS)

# no notebook is executed: the pages show the stored outputs
site: $(READY)
	@$(INSTALL) --no-build-isolation --editable '.[dev,docs]'
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo 'Open _docs/index.html, or, for the search too, run: $(PY) -m http.server -d _docs'

dist: $(UV)
	@rm -rf dist
	@$(UV) build --quiet --out-dir dist
	@$(UV) tool run --quiet --from 'twine>=6' twine check --strict dist/*
