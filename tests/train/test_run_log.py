"""`--log tensorboard` and `--log wandb`: what fastai's own callbacks send. The two packages are not among the requirements,
so modules that only note what they are given stand in for them here."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from audiotag.core.errors import AudiotagError
from audiotag.core.files import read_json
from audiotag.data.competitions import load_competition
from audiotag.train.run_folder import Run, open_run, run_stages
from audiotag.train.run_log import RunLog
from tests.tiny import called, train_words


class Writer:
    "Stands in for `torch.utils.tensorboard.SummaryWriter`."

    made = []

    def __init__(self, log_dir=None):
        self.log_dir, self.scalars, self.closed = log_dir, [], False
        Writer.made.append(self)

    def add_scalar(self, name, value, step):
        self.scalars.append((name, float(value), step))

    def close(self):
        self.closed = True


@pytest.fixture
def fakes(monkeypatch):
    "Modules in place of tensorboard and wandb, with what they were given."
    tensorboard, writer, wandb = (ModuleType(n) for n in ("tensorboard", "torch.utils.tensorboard", "wandb"))
    writer.SummaryWriter, Writer.made = Writer, []
    wandb.run, wandb.begun, wandb.logged, wandb.ended = None, [], [], 0
    wandb.config = SimpleNamespace(update=lambda *args, **kwargs: None)

    def init(**settings):
        wandb.begun.append(settings)
        wandb.run = SimpleNamespace(step=0, summary={})

    def finish():
        wandb.run, wandb.ended = None, wandb.ended + 1

    wandb.init, wandb.finish = init, finish
    wandb.log = lambda values, step=None: wandb.logged.append(values)
    for module in (tensorboard, writer, wandb):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("fastai.callback.tensorboard", "fastai.callback.wandb"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return SimpleNamespace(writers=Writer.made, wandb=wandb)


def one_stage(tiny_run, tiny_data, folder, cbs):
    "The first stage of the tiny run, once more."
    before = Run(tiny_run / "run")
    recipe = before.planned.replace(stages=before.planned.stages[:1], members=("noisy",))
    run = open_run(folder, recipe, load_competition(tiny_data), store=before.store.folder)
    return before, run_stages(run, cbs=cbs)


def test_losses_rate_and_metric_are_logged_and_the_weights_are_the_same(fakes, tiny_run, tiny_data, tmp_path):
    before, run = one_stage(tiny_run, tiny_data, tmp_path / "run", [RunLog(["tensorboard", "wandb", "tensorboard"])])
    for k in (0, 1):
        paths = [r.fold_path("noisy", k) / "weights.safetensors" for r in (before, run)]
        assert paths[0].read_bytes() == paths[1].read_bytes()
    assert [w.log_dir for w in fakes.writers] == [str(run.folder / f"tensorboard/noisy/fold-{k}") for k in (0, 1)]
    for k, writer in enumerate(fakes.writers):
        named = {name: [(v, s) for n, v, s in writer.scalars if n == name] for name, _, _ in writer.scalars}
        history = read_json(run.fold_path("noisy", k) / "history.json")
        assert [v for v, _ in named["lwlrap"]] == pytest.approx([h["valid_lwlrap"] for h in history])
        assert [v for v, _ in named["valid_loss"]] == pytest.approx([h["valid_loss"] for h in history])
        assert named["lr_0"][-1][0] == pytest.approx(history[-1]["lr"]) and writer.closed
        steps = [s for _, s in named["lwlrap"]]
        assert steps == sorted(set(steps)) and steps[1] == 2 * steps[0]
    begun = fakes.wandb.begun
    assert all(b["settings"] == {"quiet": True} for b in begun)
    assert [b["name"] for b in begun] == ["run noisy fold 0", "run noisy fold 1"] and fakes.wandb.ended == 2
    assert {b["mode"] for b in begun} == {"offline"} and {b["group"] for b in begun} == {"run"}
    logged = {name for values in fakes.wandb.logged for name in values}
    assert {"train_loss", "valid_loss", "lwlrap", "lr_0"} <= logged


def test_a_user_may_ask_for_the_network(fakes, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    recipe = SimpleNamespace(name="x", stage=lambda name: SimpleNamespace(to_dict=dict))
    begin = RunLog(["wandb"]).callbacks(SimpleNamespace(folder=tmp_path, planned=recipe), "noisy", 0)[0]
    assert begin.init["mode"] == "online"


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_said_before_anything_is_made(name, tiny_data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    done = called(*train_words(tiny_data, tmp_path / "run"), "--log", name)
    assert done.returncode == 2 and f"pip install 'audiotag[{name}]'" in done.stderr
    assert not (tmp_path / "run").exists()
    with pytest.raises(AudiotagError, match=f"{name}"):
        RunLog([name])
