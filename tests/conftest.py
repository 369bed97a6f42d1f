"Fixtures that several test files share."

import fcntl
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
SAMPLES = Path(os.environ.get("AUDIOTAG_SAMPLES", REPO / ".samples"))


def sample_folder(name):
    "The unpacked sample set `name`, or None with the reason why there is none."
    unpack = REPO.parent / "shared" / "data" / "unpack.py"
    if not (SAMPLES / name / ".unpacked").is_file():
        if not unpack.is_file():
            return None, f"the sample set {name!r} is not on this machine ({unpack} is missing)"
        SAMPLES.mkdir(parents=True, exist_ok=True)
        with open(SAMPLES / f"{name}.lock", "w") as lock:  # one worker unpacks, the others wait for it
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (SAMPLES / name / ".unpacked").is_file():
                subprocess.run([sys.executable, str(unpack), str(SAMPLES), name], check=True, stdout=subprocess.DEVNULL)
    return SAMPLES / name, ""


def pytest_configure(config):
    # a shell that starts us in the background, or nohup, says so, and our children would not hear Ctrl-C or a hangup
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)
    config.addinivalue_line(
        "markers", "apart: wants Ray or an S3 server, and a process in which nothing else runs (`make cluster`)"
    )
    config.addinivalue_line("markers", "long: repeats at full numbers what a shorter test has shown (`make test-long`)")
    config.addinivalue_line("markers", "night: a long test that is listed in tests/night.txt (`make test-night`)")


def night_tests():
    "The lines of tests/night.txt that name a test."
    lines = (REPO / "tests" / "night.txt").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


# the files that take longest, in this order: begun first, they do not keep one worker busy while the other has nothing left
LONGEST = (
    "test_systems",
    "test_rehearse",
    "test_run",
    "test_run_folder",
    "test_engine",
    "test_predict",
    "test_openvino_graphs",
    "test_pack",
    "test_remote",
    "test_client",
    "test_ddp",
    "test_tutorials",
    "test_birdclef",
    "test_demo",
    "test_store",
    "test_models",
    "test_cv_check",
    "test_report",
    "test_streaming",
    "test_bundle",
    "test_io_fuzz",
)


@pytest.hookimpl(tryfirst=True)  # before pytest selects by markers
def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))
    night = set(night_tests())
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        if item.get_closest_marker("long") and night & {name, name.partition("[")[0]}:
            item.add_marker("night")


@pytest.fixture(scope="session")
def sample_set():
    "`sample_set('freesound')` gives the folder of an unpacked sample set, and skips the test where there is none."

    def get(name):
        folder, reason = sample_folder(name)
        if folder is None:
            pytest.skip(reason)
        return folder

    return get


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    "`shared('name', make)`: a folder that `make(folder)` has filled, once for all processes of a test run. Nobody may change it."
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    home.mkdir(exist_ok=True)

    def get(name, make):
        folder, made = home / name, home / f"{name}.made"
        with open(home / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not made.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of somebody who failed half way
                folder.mkdir()
                make(folder)
                made.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def tiny_data(shared):
    "A competition for the recipe of `tiny.py`: 40 curated, 40 noisy, 30 test clips."
    from audiotag.audio.synth import make_competition

    return (
        shared(
            "tiny-data", lambda folder: make_competition(folder / "data", seed=3, n_curated=40, n_noisy=40, n_test=30)
        )
        / "data"
    )


@pytest.fixture(scope="module")
def tiny_run(shared, tiny_data, tmp_path_factory):
    "This module's own copy of a finished run of the recipe of `tiny.py` (`run`), its bundle (`tiny-weights`), and what was printed (`stdout`, `stderr`)."
    from tests import tiny

    def train(folder):
        done = tiny.called(*tiny.train_words(tiny_data, folder / "run"))
        assert done.returncode == 0, done.stderr
        for name in ("stdout", "stderr"):
            (folder / name).write_text(getattr(done, name).replace(str(folder), "HERE"))
        packed = tiny.called("pack", "weights", folder / "run", folder / "tiny-weights")
        assert packed.returncode == 0, packed.stderr

    return Path(shutil.copytree(shared("tiny-run", train), tmp_path_factory.mktemp("tiny-run") / "whole"))
