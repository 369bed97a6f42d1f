# make demo: the main job on data that the project makes itself.   make test: everything that has to hold.
VENV := .venv
PY := $(VENV)/bin/python
INSTALL := $(VENV)/bin/uv pip install --python $(PY) --constraint constraints.txt
READY := $(VENV)/.ready
# a worker that dies, or a test that hangs, ends the run and is named: xdist would wait for ever
LOST := --max-worker-restart=0 -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true

.PHONY: help demo test cluster docs

help:
	@echo 'make demo   features, four stages, sealed bundle, inference notebook, submission: on synthesised sounds'
	@echo 'make test   export in sync, notebooks clean, nbdev_test, pytest'
	@echo 'make cluster   the tests that want a Ray cluster and an S3 server, on this machine'
	@echo 'make docs   export the package and README.md from nbs/, and clean the notebooks'

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
	@echo 'audiotag demo: the whole way from recordings to submission.csv, on synthesised sounds'
	@$(PY) -c 'from audiotag.demo import main; raise SystemExit(main(["demo"]))'

test: $(READY)
	@echo '1/3 the house: export in sync, notebooks clean, floors'
	@$(PY) -m pytest -q tests/test_house.py
	@echo '2/3 nbdev_test: every lesson runs'
	@$(VENV)/bin/nbdev_test --n_workers 0
	@echo '3/3 pytest: parity, faults, end to end; two files at a time, one thread each'
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q -n 2 --dist loadfile $(LOST) --durations=10 -m 'not apart' --ignore tests/test_house.py tests

# the step that `make test` leaves out: it installs Ray and an S3 server, and nothing else may run in its process
cluster: $(READY)
	@$(INSTALL) --no-build-isolation --editable '.[dev,cluster,remote]' 'moto[server]>=5'
	@OMP_NUM_THREADS=1 $(PY) -m pytest -q --durations=10 -m apart tests/test_engine.py tests/test_remote.py

docs: $(READY)
	@$(VENV)/bin/nbdev_export
	@$(PY) tests/readme.py
	@$(VENV)/bin/nbdev_clean
