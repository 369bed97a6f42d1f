"Several processes that train one network: the same bytes killed or not, and nobody is left waiting."

import os
import signal
import subprocess
import sys
import threading
import time

import cloudpickle
import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bounds import bounded  # noqa: F401
from tests.tiny import SETS

from audiotag.train import engine, ddp
from audiotag.data.competitions import load_competition
from audiotag.core.errors import AudiotagError
from audiotag.core.progress import say
from audiotag.train.engine import ProcessEngine, fold_jobs
from audiotag.train.recipes import get_recipe
from audiotag.train.run_folder import Run, finish_fold, open_run
from audiotag.audio.synth import make_competition
from audiotag.train.ddp import BatchShard, run_in_ranks, rank

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the processes do not import the tests
TWO = [*SETS, "gpus=2"]


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    "`begin('name', sets)` begins a tiny run; all share one store."
    home = tmp_path_factory.mktemp("together")
    competition = load_competition(make_competition(home / "data", seed=3, n_curated=40, n_noisy=40, n_test=4))
    return lambda name, sets=TWO: open_run(
        home / name, get_recipe("freesound2019", scale="small", changes=sets), competition, store=home / "store"
    )


def weights(run, stage="noisy", fold=0):
    finish_fold(run, stage, fold)
    assert not list(run.folder.rglob("checkpoint.*")) and run.is_done(stage, fold)
    return (run.fold_path(stage, fold) / "weights.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(begin):
    "The first stage of a run that nobody interrupted."
    return weights(begin("whole"))


# --- what each takes


class Rows:
    "As little of a loader as `BatchShard` needs."

    def __init__(self, n, bs, drop_last):
        self.n, self.bs, self.drop_last = n, bs, drop_last and n > bs

    def __len__(self):
        return self.n // self.bs + (0 if self.drop_last or self.n % self.bs == 0 else 1)

    def get_idxs(self):
        return range(self.n)

    def __iter__(self):
        rows = list(self.get_idxs())
        batches = [rows[i : i + self.bs] for i in range(0, len(rows), self.bs)]
        yield from (b for b in batches if len(b) == self.bs or not self.drop_last)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 9), st.booleans())
@settings(max_examples=300, deadline=None, derandomize=True)
def test_the_parts_of_a_batch_are_the_batch(n, bs, of, drop_last):
    whole, parts = Rows(n, bs, drop_last), []
    for r in range(of):
        dl = Rows(n, bs, drop_last)
        part = BatchShard(dl, r, of)
        assert len(part) == len(whole)
        parts.append(list(part))
        assert (dl.bs, len(list(dl))) == (bs, len(whole)), "the loader is as it was"
    for i, b in enumerate(whole):
        assert len({len(p[i]) for p in parts}) == 1, (
            "all have as many: none waits for a step that the others do not make"
        )
        assert [o for p in parts for o in p[i]][: len(b)] == b and {o for p in parts for o in p[i]} == set(b)
    assert {len(p) for p in parts} == {len(whole)}


def test_a_part_of_both_loaders(begin, tmp_path):
    from audiotag.data.loaders import CropLoader
    from audiotag.data.streaming import StreamLoader, write_clips

    run = begin("loaders")
    clips = run.clips.iloc[:37]
    streamed = write_clips(tmp_path / "c", [clips], run.store, run.classes)
    for make in (
        lambda: CropLoader(clips, run.store, run.classes, frames=64, batch_size=8, seed=1),
        lambda: StreamLoader(streamed, run.store, frames=64, batch_size=8, seed=1),
    ):
        whole, parts = make(), [BatchShard(make(), r, 2) for r in range(2)]
        for epoch in (0, 3):
            for dl in (whole, *parts):
                dl.set_epoch(epoch)
            for b, *ps in zip(whole, *parts, strict=True):
                (x, y), parts_x, parts_y = b, *zip(*ps)
                assert torch.equal(x, torch.cat(parts_x)) and torch.equal(
                    y.labels, torch.cat([p.labels for p in parts_y])
                )


# --- the same bytes


@pytest.mark.long
def test_in_a_worker(begin, whole, capfd):
    "The worker is no member of the group either: it starts one."
    run = begin("worker")
    with ProcessEngine(1) as made:
        made.run(fold_jobs(run, [("noisy", 0)]))
    assert weights(run) == whole, "the same seed and as many processes"
    said = capfd.readouterr().err
    assert said.count("epoch 2/2") == 1 and "stage 1/4 noisy, fold 0 (of 2), epoch 1/2: loss" in said, (
        "number 0 alone speaks, through its worker too"
    )
    assert "no GPU here: 2 processes share the CPU" in said or torch.cuda.is_available()
    assert weights(begin("alone", SETS)) != whole, "each half of a batch has its own chance"


class Once(Callback):
    "Kills one of the processes, once, in the middle of an epoch."

    order = 99

    def __init__(self, mark, epoch, who):
        self.mark, self.at, self.who = mark, epoch, who

    def after_batch(self):
        if self.epoch == self.at and self.training and rank() == self.who and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


ALL = ["stream_from=1", "stages.noisy.ema=0.9", "stages.noisy.optimizer=nadam", "stages.noisy.epochs=3"]


@pytest.mark.long
@pytest.mark.parametrize("n,who,more", [pytest.param(2, 1, [], id="two"), pytest.param(3, 0, ALL, id="three")])
def test_one_of_them_is_killed_and_the_training_goes_on(n, who, more, begin, whole, tmp_path):
    "With three, the order of a sum could differ: a resumed training has new buckets."
    sets = [*TWO, f"gpus={n}", *more]
    run, want = begin(f"killed {n}", sets), weights(begin("whole 3", sets)) if more else whole
    with pytest.raises(AudiotagError, match="processes that train together was killed"):
        finish_fold(run, "noisy", 0, cbs=[Once(tmp_path / "mark", 1, who)])
    assert time.time() - (tmp_path / "mark").stat().st_mtime < 30, "the others do not wait for it"
    assert (run.fold_path("noisy", 0) / "checkpoint.safetensors").exists()
    assert weights(run) == want


DRIVER = """
import time
from audiotag.train.ddp import run_in_ranks
run_in_ranks(2, time.sleep, 1000)
"""


def helpers(pid):
    return subprocess.run(["pgrep", "-g", str(pid), "-f", "LokyProcess"], capture_output=True, text=True).stdout.split()


def wait_for(what, seconds):
    end = time.monotonic() + seconds
    while not what() and time.monotonic() < end:
        time.sleep(0.05)
    return what()


@pytest.mark.long
def test_the_one_that_started_them_is_killed():
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stderr=subprocess.DEVNULL, start_new_session=True)
    assert wait_for(lambda: len(helpers(driver.pid)) == 2, 120)
    time.sleep(5)
    driver.kill()
    driver.wait()
    assert wait_for(lambda: not helpers(driver.pid), 120), "they have left"


# --- it is the same training


def seen():
    "Thirty steps of a network without BatchNorm on batches that do not come out even."
    import fastai.callback.progress  # noqa: F401
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    from fastai.metrics import AccumMetric

    torch.manual_seed(0)
    rows = [(torch.randn(3), torch.randn(2)) for _ in range(41)]
    mean = AccumMetric(lambda p, y: float((p - y).abs().sum()), flatten=False)
    cbs = [ddp.distributed_trainer("cpu")] if ddp.n_ranks() > 1 else []
    learn = Learner(
        DataLoaders(DataLoader(rows[:30], bs=6), DataLoader(rows[30:], bs=4)),
        torch.nn.Linear(3, 2),
        loss_func=torch.nn.MSELoss(),
        metrics=mean,
        cbs=cbs,
        lr=0.01,
    )
    with learn.no_bar(), learn.no_logging():
        learn.fit(6)
    return [p.detach().numpy() for p in learn.model.parameters()], learn.recorder.log[3]


@pytest.mark.long
def test_gradients_and_metrics_are_those_of_one_process():
    (alone, score), (shared, score2) = seen(), run_in_ranks(2, seen)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(alone, shared))  # the sums have another order
    assert abs(score - score2) < 1e-4, "11 predictions, not 12"


# --- what goes wrong is one sentence


def fails(text):
    if rank():
        raise ZeroDivisionError(text)
    torch.distributed.barrier()


@pytest.mark.long
def test_the_first_error_is_told(capfd):
    with pytest.raises(AudiotagError, match="process 2 of 2 failed .ZeroDivisionError: by hand") as e:
        run_in_ranks(2, fails, "by hand")
    assert "\n" not in str(e.value) and "in fails" in capfd.readouterr().err


@pytest.mark.long
def test_ctrl_c_ends_them():
    "In the process that waits; those that compute do not hear it."

    def press():
        time.sleep(6)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_in_ranks(2, time.sleep, 100)
    thread.join()


def test_without_accelerate(begin, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(AudiotagError, match=r"pip install 'audiotag\[gpus\]'"):
        ddp.distributed_trainer("cpu")


def test_gpus_that_make_no_sense(begin, monkeypatch):
    for bad in (1.5, -1.0, 2.5, "Infinity", "NaN"):
        with pytest.raises(AudiotagError, match="whole number"):
            get_recipe("freesound2019", scale="small", changes=[f"gpus={bad}"])
    assert [
        get_recipe("freesound2019", scale="small", changes=[f"gpus={g}"]).processes
        for g in ("null", "0", "0.5", "1", "2", "8")
    ] == [1, 1, 1, 1, 2, 8]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(AudiotagError, match="2 GPUs are wanted, and there are 1"):
        run_in_ranks(2, say, "not reached")


def test_each_worker_has_gpus_of_its_own(begin, monkeypatch):
    run = begin("places")
    job, one = fold_jobs(run, [("noisy", 0)])[0], fold_jobs(begin("ones", SETS), [("noisy", 0)])[0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    shown = lambda j: [engine._gpu_environment(slot, j)["CUDA_VISIBLE_DEVICES"] for slot in range(4)]  # noqa: E731
    assert shown(job) == ["4,5", "6,7", "4,5", "6,7"] and shown(one) == ["4", "5", "6", "7"]
    monkeypatch.setattr(engine.os, "sched_getaffinity", lambda _: range(16))
    made = ProcessEngine()
    assert [made.can_start(job, k) for k in (1, 2)] == [True, False] and made.can_start(one, 3)


def test_a_run_is_known_by_its_number_of_processes(begin):
    run = begin("number")
    with pytest.raises(AudiotagError, match="gpus"):
        begin("number", [*SETS, "gpus=3"])
    assert Run(run.folder).recipe.processes == 2
