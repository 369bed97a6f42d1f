"Embeddings: any head, what is behind them, and trees that are asked only what the network does not know."

import numpy as np
import pandas as pd
import pytest
import torch
from audiotag.infer.bundle import open_bundles, seal
from audiotag.cli import main
from audiotag.data.competitions import load_competition
from audiotag.core.errors import AudiotagError
from audiotag.core.files import read_json, write_json
from audiotag.train.embed import boosted_scores, embed_bundle, embedding_scores, penultimate
from audiotag.audio.features import LogMel, Standardize
from audiotag.kaggle.pack_ensemble import gather, pack_ensemble
from audiotag.train.losses import BCE
from audiotag.models.cnn import CNNModel1
from audiotag.models.sed import SEDHead, attention_pool
from audiotag.train.settings import Recipe, Stage
from audiotag.train.run_folder import open_run, run_stages
from audiotag.audio.synth import make_competition
from audiotag.infer.windows import Windows

torch.set_num_threads(1)
FE = LogMel(sample_rate=16000, n_fft=512, hop_length=256, n_mels=32, f_max=None, scaling=Standardize())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_competition(
        tmp_path_factory.mktemp("embed") / "data", seed=1, n_curated=24, n_noisy=4, n_test=4, sample_rate=16000
    )


def train(data, folder, **changes):
    stage = Stage(name="curated", train_on=("curated",), epochs=1, lr=5e-3, batch_size=8)
    base = dict(
        name="toy",
        front_end=FE,
        model=CNNModel1(width=4, hidden=16),
        loss=BCE(),
        windows=Windows(frames=48, hop=24),
        members=("curated",),
        n_folds=2,
        seed=1,
        stages=(stage,),
    )
    return run_stages(open_run(folder, Recipe(**{**base, **changes}), load_competition(data)))


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("embed") / "run")


@pytest.fixture
def bundle(run, tmp_path):
    members = [dict(stage="curated", fold=k, oof={}, state=run.model("curated", k).state_dict()) for k in range(2)]
    seal(
        tmp_path / "b",
        name="toy",
        classes=run.classes,
        front_end=FE,
        windows=run.recipe.windows,
        activation="sigmoid",
        model=run.recipe.model,
        prior=np.full(len(run.classes), 0.1),
        members=members,
    )
    return tmp_path / "b"


@pytest.mark.parametrize("head", ["writeup", "code"])
def test_times_the_last_layer_they_are_the_logits(head):
    net = CNNModel1(width=4, head=head, hidden=12).build(5).eval()
    x = torch.randn(4, 1, 32, 48)
    with torch.no_grad(), penultimate(net, 5) as caught:
        logits = net(x)
    last = [m for m in net.modules() if isinstance(m, torch.nn.Linear)][-1]
    torch.testing.assert_close(last(caught[0]), logits)
    assert caught[0].shape == (4, 12) and not any(m._forward_pre_hooks or m._forward_hooks for m in net.modules())


def test_a_head_over_time_gives_the_mean_over_time():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = SEDHead(6, 3)

        def forward(self, x):
            return attention_pool(*self.head(x))

    x = torch.randn(2, 6, 4, 9)
    net = Net().eval()
    with torch.no_grad(), penultimate(net, 3) as caught:
        net(x)
    torch.testing.assert_close(caught[0], x.mean(2).mean(2))


def test_a_network_without_a_last_layer_is_refused():
    with (
        pytest.raises(AudiotagError, match="no last layer"),
        penultimate(net := torch.nn.Sequential(torch.nn.Flatten()), 5),
    ):
        net(torch.zeros(1, 5))


def test_embed_on_the_command_line(bundle, data, tmp_path, capsys):
    comp, out = load_competition(data), tmp_path / "emb.parquet"
    (data / "test" / comp.of("test").clip_id[0]).rename(tmp_path / "away.wav")
    try:
        assert main(["embed", str(bundle), "--data", str(data), "--out", str(out), "--member", "0", "1"]) == 0
    finally:
        (tmp_path / "away.wav").rename(data / "test" / comp.of("test").clip_id[0])
    table = pd.read_parquet(out)
    assert table.shape == (24 + 4 + 3, 1 + 32) and "no embedding for" in capsys.readouterr().out
    assert table.source.value_counts().to_dict() == {"curated": 24, "noisy": 4, "test": 3}
    first, lost = embed_bundle(bundle, comp.of("curated"), members=(1,))
    np.testing.assert_allclose(table.loc[first.index].iloc[:, 17:], first, rtol=1e-4, atol=1e-5)
    other = tmp_path / "mine.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(other)
    assert main(["embed", str(bundle), "--data", str(data), "--out", str(other)]) == 2 and list(
        pd.read_parquet(other)
    ) == ["a"]


def test_a_network_that_knew_the_clips_is_found_out(run):
    path = run.fold_path("curated", 0) / "trained_on.json"
    good = read_json(path)
    mine = run.clips[(run.clips.fold == 0) & (run.clips.source == "curated")].clip_id.iloc[0]
    try:
        write_json(path, [*good, mine])
        with pytest.raises(AudiotagError, match="trained on it"):
            embedding_scores(run, "curated", trees=lambda x, y, new, seed: np.zeros((len(new), y.shape[1])))
    finally:
        write_json(path, good)


def test_boosting_keeps_the_rate_of_a_class_that_never_or_always_is():
    g = np.random.default_rng(0)
    x, y = g.normal(size=(60, 4)), np.zeros((60, 3), np.float32)
    y[:, 1], y[:, 2] = 1, 0
    y[:, 2] = g.random(60) < 0.5
    x[:, 0] += 4 * y[:, 2]
    p = boosted_scores(x[:40], y[:40], x[40:], rounds=10)
    assert (p[:, 0] == 0).all() and (p[:, 1] == 1).all() and ((p[:, 2] > 0.5) == (y[40:, 2] == 1)).mean() > 0.9


def test_runs_of_other_front_ends_and_folds_become_one_bundle(run, data, tmp_path, capsys):
    other = train(
        data,
        tmp_path / "other",
        name="coarse",
        n_folds=3,
        front_end=FE.replace(n_mels=16, hop_length=512),
        windows=Windows(frames=32, hop=16),
    )
    assert (
        main(["ensemble", str(run.folder), str(other.folder), "--out", str(tmp_path / "both"), "--method", "stack"])
        == 0
    )
    said = capsys.readouterr().out
    assert "combined by: stack" in said and "weighted geometric" in said
    e = open_bundles(tmp_path / "both")
    assert len(e.bundles) == 2 and e.combiner.members == 2 and len({b.front_end.hash for b in e.bundles}) == 2
    assert (
        main(["infer", "--bundle", str(tmp_path / "both"), "--data", str(data), "--out", str(tmp_path / "s.csv")]) == 0
    )
    p = pd.read_csv(tmp_path / "s.csv", index_col=0).to_numpy()
    assert p.shape == (4, len(run.classes)) and 0 < p.min() and p.max() < 0.5, (
        "a stack's scores: tanh(x - 1.6) moved to 0 to 1"
    )
    about = read_json(tmp_path / "both" / "bundle.json")
    write_json(tmp_path / "both" / "bundle.json", {**about, "name": "other"})
    with pytest.raises(AudiotagError, match="changed since it was packed"):
        open_bundles(tmp_path / "both")


def test_runs_that_do_not_belong_together_are_refused(run, data, tmp_path):
    strange = make_competition(tmp_path / "strange", seed=9, n_curated=24, n_noisy=4, n_test=4, sample_rate=16000)
    other = train(strange, tmp_path / "run")
    with pytest.raises(AudiotagError, match="share no clips|another label"):
        gather([run, other])
    with pytest.raises(AudiotagError, match="unknown combiner"):
        pack_ensemble([run], tmp_path / "x", method="stak")
