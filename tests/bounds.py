"A bound for every test of a file that imports `bounded`: it fails, where it would have hung."

import faulthandler
import signal

import pytest


@pytest.fixture(autouse=True)
def bounded():
    "After five minutes the test is interrupted; if that does not help, the process says a minute later where it stands, and ends."

    def over(*_):
        raise TimeoutError("this test took five minutes")

    before = signal.signal(signal.SIGALRM, over)
    signal.alarm(300)
    faulthandler.dump_traceback_later(360, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
