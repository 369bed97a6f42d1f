"Batches made ready by a thread: the same ones, in order, bounded, and nothing is left behind."

import threading
import time

import pytest
import torch

from audiotag.data.prefetch import DeviceSender, prefetch_batches, prefetch_to_device


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("many", [0, 1, 5, 100])
def test_order_and_number(n, many):
    assert list(prefetch_batches(iter(range(many)), n=n)) == list(range(many)) and not threads()


def test_no_more_than_n_are_ready():
    made = []

    def loader():
        for i in range(20):
            made.append(i)
            yield i

    it = prefetch_batches(loader(), n=3)
    assert next(it) == 0
    time.sleep(0.3)
    assert len(made) <= 1 + 3 + 1  # taken, ready, and one in the thread's hand
    it.close()
    assert not threads()


@pytest.mark.parametrize("error", [OSError("disk"), KeyboardInterrupt(), StopIteration("by hand")])
def test_errors_come_out_where_the_batch_is_missed(error):
    class Loader:
        def __init__(self):
            self.left = 3

        def __iter__(self):
            return self

        def __next__(self):
            self.left -= 1
            if not self.left:
                raise error
            return self.left

    it = prefetch_batches(Loader())
    assert [next(it), next(it)] == [2, 1]
    with pytest.raises(type(error)):
        next(it)
    assert not threads()


def test_leaving_early_from_a_waiting_thread():
    it = prefetch_batches(iter(range(10**9)), n=1)
    next(it)
    del it
    assert not threads()


def test_an_error_of_the_consumer_ends_the_thread():
    with pytest.raises(ZeroDivisionError):
        for (x,) in prefetch_to_device(iter([(torch.zeros(1),)] * 50), "cpu"):
            1 / 0
    deadline = time.monotonic() + 3
    while threads() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not threads()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_the_batches_arrive_whole():
    batches = [(torch.full((256, 1, 128, 128), float(i)), torch.full((256,), i)) for i in range(40)]
    for i, (x, y) in enumerate(prefetch_to_device(iter(batches), "cuda")):
        busy = x @ x.transpose(-1, -2)  # the copy of the next batch runs beside this
        assert x.is_cuda and bool((x == i).all()) and bool((y == i).all()) and busy.is_cuda


def test_without_a_gpu_nothing_moves():
    s = DeviceSender("cpu")
    x = torch.zeros(3)
    assert s.receive(s.send((x,)))[0] is x
