"One fold that is killed in the middle and started again: the same bytes, whatever else has a state of its own."

import re

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from safetensors.torch import load_file

from audiotag.audio.features import LogMel, Standardize
from audiotag.audio.synth import make_competition
from audiotag.augment.manifold import ManifoldMixUp
from audiotag.data.competitions import load_competition
from audiotag.core.errors import AudiotagError
from audiotag.data.loaders import fold_loaders
from audiotag.data.store import build_store
from audiotag.models.cnn import CNNModel1
from audiotag.train.fit import BestEpoch, Ema, Swa, Precision, autocast_dtype, train_fold
from audiotag.train.schedules import Cosine, Milestones, OneCycle
from audiotag.train.losses import BCE

WEIGHTS = "weights.safetensors"
OPTIONS = {
    "ema": lambda: dict(keeper=Ema(0.9)),
    "swa": lambda: dict(keeper=Swa(3)),
    "frozen and layer by layer": lambda: dict(frozen_epochs=2, lr_decay=0.5),
    "best epoch": lambda: dict(keeper=BestEpoch(patience=2)),
    "nadam, milestones": lambda: dict(schedule=Milestones(epochs=(2, 3)), optimizer="nadam"),
    "manifold mixup": lambda: dict(augment=(ManifoldMixUp(alpha=0.4, last=3),)),
    "fp16 and its scaler": lambda: dict(precision="fp16"),
}


class Kill(Callback):
    "Ctrl-C in the third epoch, behind the forward pass of its second batch."

    order = 20

    def after_pred(self):
        if self.training and self.epoch == 2 and self.iter == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("fit")
    make_competition(tmp / "data", seed=1, n_curated=40, n_noisy=4, n_test=4)
    comp = load_competition(tmp / "data")
    store = build_store(comp.clips, LogMel(n_mels=32, hop_length=1388, scaling=Standardize()), tmp / "store")
    curated = comp.clips[comp.clips.source == "curated"]

    def train(folder, cbs=(), epochs=4, **options):
        torch.manual_seed(0)
        model = CNNModel1(width=4).build(len(comp.classes))
        dls = fold_loaders(curated[8:], curated[:8], store, comp.classes, frames=32, batch_size=8, seed=5)
        options = dict(loss=BCE(), epochs=epochs, lr=3e-3, seed=5, label="example", cbs=cbs) | options
        return train_fold(model, dls, folder, **options)

    return train


@pytest.fixture(scope="module")
def plain(training, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return training(folder), (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize("name", OPTIONS)
def test_a_killed_fold_goes_on_to_the_same_bytes(training, plain, tmp_path, name):
    history = training(tmp_path / "whole", **OPTIONS[name]())
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path / "killed", cbs=[Kill()], **OPTIONS[name]())
    assert not (tmp_path / "killed" / WEIGHTS).exists()
    again = training(tmp_path / "killed", **OPTIONS[name]())
    whole = (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert (tmp_path / "killed" / WEIGHTS).read_bytes() == whole
    assert [o["train_loss"] for o in again] == [o["train_loss"] for o in history]
    if name != "best epoch":  # where the last epoch is the best one, its weights are those without a keeper
        assert whole != plain[1], f"{name} changes nothing"


@pytest.mark.long  # a backend that only records the network, as a compiler takes minutes
def test_a_compiled_network_learns_the_same(training, plain, tmp_path):
    compiled = training(tmp_path / "compiled", compile="aot_eager")
    assert compiled[-1]["valid_loss"] == pytest.approx(plain[0][-1]["valid_loss"], abs=1e-3)


GPUS = {  # name -> compute capability, has bfloat16 units, what 'auto' takes
    "GTX 1080 Ti": ((6, 1), False, None),
    "P100": ((6, 0), False, torch.float16),
    "V100": ((7, 0), False, torch.float16),
    "T4 and 2080 Ti": ((7, 5), False, torch.float16),
    "A100": ((8, 0), True, torch.bfloat16),
}


@pytest.mark.parametrize("old_torch", [False, True])
@pytest.mark.parametrize("gpu", GPUS)
def test_emulated_bfloat16_is_not_taken(monkeypatch, gpu, old_torch):
    capability, native, expected = GPUS[gpu]
    asked = (lambda: True) if old_torch else lambda including_emulation=True: including_emulation or native
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", asked)
    assert autocast_dtype("auto", "cuda") == expected
    assert autocast_dtype("fp32", "cuda") is None and autocast_dtype("bf16", "cuda") == torch.bfloat16
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)  # as on such a machine
    computing = Precision(autocast_dtype("auto", "cuda"), "cuda")
    assert computing.scaler.is_enabled() == (expected == torch.float16)


class Overflow(Callback):
    "An infinite gradient in one batch of the first epoch; notes the weights behind each step."

    order = 60

    def before_fit(self):
        self.weights, self.scales = [], []

    def after_backward(self):
        if self.epoch == 0 and self.iter == 1:
            next(self.model.parameters()).grad.fill_(float("inf"))

    def after_batch(self):
        if self.training:
            self.weights.append(next(self.model.parameters()).detach().clone())
            self.scales.append(next(c for c in self.learn.cbs if isinstance(c, Precision)).scaler.get_scale())


def test_a_step_without_finite_gradients_is_left_out(training, tmp_path):
    watch, resumed = Overflow(), Overflow()
    with pytest.raises(KeyboardInterrupt):
        training(tmp_path / "overflow", cbs=[watch, Kill()], precision="fp16")
    assert torch.equal(watch.weights[1], watch.weights[0]) and not torch.equal(watch.weights[2], watch.weights[1])
    assert watch.scales[1] == watch.scales[0] / 2 and watch.scales[2] == watch.scales[1]
    assert all(torch.isfinite(w).all() for w in watch.weights)
    training(tmp_path / "overflow", cbs=[resumed], precision="fp16")
    assert resumed.scales[0] == watch.scales[0] / 2, "the checkpoint holds the factor"


def test_where_the_best_epoch_is_looked_for():
    "Scores of eight epochs, and where training ends: the first epoch that counts, and the first that may be the last."
    from types import SimpleNamespace

    scores = [0.9, 0.2, 0.3, 0.5, 0.4, 0.4, 0.6, 0.1]

    def trained(n=len(scores), **options):
        keeper, done = BestEpoch(**options), []
        keeper._copy = lambda: None
        for epoch, score in enumerate(scores[:n]):
            if keeper.facts.get("stop"):
                break
            keeper.learn = SimpleNamespace(epoch=epoch, n_epoch=n, recorder=SimpleNamespace(log=[0, 0, 0, score]))
            keeper.after_epoch()
            done.append(epoch)
        return keeper.facts["epoch"], done[-1]

    assert trained() == (0, 7)
    assert trained(best_from=1) == (6, 7) and trained(best_from=7) == (7, 7)
    assert trained(n=3, best_from=28) == (2, 2)  # the last epoch may always be the best
    assert trained(patience=2) == (0, 2) and trained(patience=2, patience_from=6) == (0, 5)
    assert trained(patience=2, best_from=1, patience_from=4) == (3, 5)
    assert trained(patience=3, best_from=1) == (6, 7)


class Diverge(Callback):
    "The first weight becomes NaN behind the step of one batch of the second epoch."

    order = 60

    def __init__(self, batch):
        self.batch = batch

    def after_batch(self):
        if self.training and self.epoch == 1 and self.iter == self.batch:
            next(self.model.parameters()).data.fill_(float("nan"))


@pytest.mark.parametrize("batch,found", [(0, 2), (3, 4)])
def test_a_loss_that_becomes_nan_is_not_blamed_on_a_clip(training, tmp_path, batch, found):
    "Nor if it is the last step that spoils the weights: stage and fold, epoch, batch and learning rate are named."
    with pytest.raises(AudiotagError) as e:
        training(tmp_path / "stage/fold1", cbs=[Diverge(batch)], lr=1e-3)
    pattern = rf"example epoch 2/4: the loss became NaN in batch {found} of 4, at a learning rate of (\S+)$"
    assert 0 < float(re.search(pattern, e.value.what)[1]) < 1e-3
    assert "row" not in str(e.value) and "stage/fold1" in str(e.value) and "lower the learning rate" in e.value.fix


class Watch(Callback):
    "The weights after each epoch, and the learning rate of each group of parameters in each batch."

    order = 70

    def __init__(self):
        self.states, self.rates = [], []

    def after_epoch(self):
        self.states.append({k: v.clone() for k, v in self.model.state_dict().items()})

    def after_step(self):
        self.rates.append([h["lr"] for h in self.opt.hypers])


def test_swa_is_the_mean_of_the_last_epochs(training, tmp_path):
    watch = Watch()
    training(tmp_path, cbs=[watch], keeper=Swa(3))
    weights = load_file(tmp_path / WEIGHTS)
    for k in ("body.0.0.weight", "body.1.1.running_var", "head.7.bias"):
        mean = sum(s[k] for s in watch.states[1:]) / 3
        torch.testing.assert_close(weights[f"model.{k}"], mean, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(weights[f"model.{k}"], watch.states[-1][k], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", [OneCycle(), Cosine()], ids=lambda s: s.kind)
def test_a_body_that_is_frozen_and_then_learns_more_slowly(training, tmp_path, schedule):
    watch = Watch()
    training(tmp_path, cbs=[watch], schedule=schedule, frozen_epochs=2, lr_decay=0.5)
    first, second, third = (s["body.0.0.weight"] for s in watch.states[:3])
    assert torch.equal(first, second) and not torch.equal(second, third)
    assert not torch.equal(watch.states[0]["head.7.weight"], watch.states[1]["head.7.weight"])
    rates = np.array(watch.rates)
    assert rates.shape[1] == 5  # four blocks and the head
    np.testing.assert_allclose(rates[:-1, :-1] / rates[:-1, 1:], 0.5)
    assert rates.max() == pytest.approx(3e-3, rel=0.05) and (rates.argmax(1) == 4).all()
