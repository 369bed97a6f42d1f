# make demo: the main job on data that the project makes itself.   make test: everything that has to hold.
# make test-long: the same promises at full numbers.
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt
READY := $(VENV)/.ready
# a worker that dies, or a test that hangs, ends the run and is named: xdist would wait for ever
LOST := --max-worker-restart=0 -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true
# two files at a time, one thread each, in the order of tests/conftest.py
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder $(LOST) --durations=10

.PHONY: help demo test test-long cluster docs

help:
	@echo 'make demo   features, four stages, sealed bundle, inference notebook, submission: on synthesised sounds'
	@echo 'make test   export in sync, notebooks clean, nbdev_test, pytest: ten minutes on two cores'
	@echo 'make test-long   what takes long because it repeats: fuzz, kills, rehearsals, grids at full numbers'
	@echo 'make cluster   the tests that want a Ray cluster and an S3 server, on this machine'
	@echo 'make docs   export the package and README.md from nbs/, and clean the notebooks'

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
	@echo '1/3 the house: export in sync, notebooks clean, floors'
	@$(PY) -m pytest -q tests/test_house.py
	@echo '2/3 nbdev_test: every lesson runs'
	@$(VENV)/bin/nbdev_test --n_workers 0
	@echo '3/3 pytest: parity, faults, end to end'
	@$(PYTEST) -m 'not apart and not long' --ignore tests/test_house.py tests

test-long: $(READY)
	@$(PYTEST) -m 'long and not apart' tests

# the step that `make test` leaves out: it installs Ray and an S3 server, and nothing else may run in its process
cluster: $(READY)
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev,cluster,remote]'
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check 'moto[server]>=5' s3fs # with all the rest, pip 23's resolver gives up; without s3fs it takes a botocore that s3fs cannot use
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q --durations=10 -m apart tests/test_engine.py tests/test_remote.py

docs: $(READY)
	@$(VENV)/bin/nbdev_export
	@$(PY) tests/readme.py
	@$(VENV)/bin/nbdev_clean
