"Fixtures that several test files share."

import os
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
        subprocess.run([sys.executable, str(unpack), str(SAMPLES), name], check=True, stdout=subprocess.DEVNULL)
    return SAMPLES / name, ""


def pytest_configure(config):
    # a shell that starts us in the background says so, and our children would not hear Ctrl-C
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line(
        "markers", "apart: wants Ray or an S3 server, and a process in which nothing else runs (`make cluster`)"
    )
    config.addinivalue_line("markers", "long: repeats at full numbers what a shorter test has shown (`make test-long`)")


@pytest.fixture(scope="session")
def sample_set():
    "`sample_set('freesound')` gives the folder of an unpacked sample set, and skips the test where there is none."

    def get(name):
        folder, reason = sample_folder(name)
        if folder is None:
            pytest.skip(reason)
        return folder

    return get
