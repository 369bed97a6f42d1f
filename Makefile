# make demo: the main job on data that the project makes itself.   make test: everything that has to hold.
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt
READY := $(VENV)/.ready
# a worker that dies, or a test that hangs, ends the run and is named: xdist would wait for ever
LOST := --max-worker-restart=0 -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true

.PHONY: help demo test cluster docs site

help:
	@echo 'make demo   features, four stages, sealed bundle, inference notebook, submission: on synthesised sounds'
	@echo 'make test   export in sync, notebooks clean, nbdev_test, pytest'
	@echo 'make cluster   the tests that want a Ray cluster and an S3 server, on this machine'
	@echo 'make site   the documentation from the notebooks, in _docs/'
	@echo 'make docs   format, export the package and README.md from nbs/, and clean the notebooks'

$(READY): settings.ini setup.py constraints.txt
	@echo 'Installing audiotag and what it needs into $(VENV) (once; a few minutes)'
	@test -x $(PY) || python3 -m venv $(VENV)
	@$(PIP) setuptools wheel
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	@echo 'audiotag demo: the whole way from recordings to submission.csv, on synthesised sounds'
	@$(PY) -c 'from audiotag.demo import main; raise SystemExit(main(["demo"]))'

test: $(READY)
	@echo '1/3 the house: export in sync, notebooks clean, formatted, imports in order'
	@$(PY) -m pytest -q tests/test_house.py
	@echo '2/3 nbdev_test: every lesson runs'
	@$(VENV)/bin/nbdev_test --n_workers 0
	@echo '3/3 pytest: parity, faults, end to end; two files at a time, one thread each'
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile $(LOST) --durations=10 -m 'not apart' --ignore tests/test_house.py tests

# the step that `make test` leaves out: it installs Ray and an S3 server, and nothing else may run in its process
cluster: $(READY)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev,cluster,remote]'
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check 'moto[server]>=5' s3fs # with all the rest, pip 23's resolver gives up; without s3fs it takes a botocore that s3fs cannot use
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q --durations=10 -m apart tests/train/test_engine.py tests/data/test_remote.py

docs: $(READY)
	@$(VENV)/bin/ruff format --quiet .
	@$(VENV)/bin/nbdev_export
	@$(PY) tests/readme.py
	@$(VENV)/bin/nbdev_clean

# no notebook is executed: the pages show the stored outputs
site: $(READY)
	@$(INSTALL) --no-build-isolation --editable '.[dev,docs]'
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet
	@echo 'Open _docs/index.html, or, for the search too, run: $(PY) -m http.server -d _docs'
