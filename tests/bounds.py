"A bound for every test of a file that imports `bounded`: it fails, where it would have hung."
import faulthandler
import os
import signal

import pytest


@pytest.fixture(autouse=True)
def bounded():
    "After five minutes the test is interrupted; if that does not help, the process says a minute later where it stands, and ends unless other tests wait for it."
    def over(*_):
        raise TimeoutError("this test took five minutes")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(300)
    faulthandler.dump_traceback_later(360, exit="PYTEST_XDIST_WORKER" not in os.environ)  # pytest-xdist waits for ever for the rest of its file
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
