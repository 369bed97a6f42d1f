"System 5: what an epoch is made of, written labels, rounds that stop, and networks that take the wave."

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback

from audiotag.core.targets import Targets
from audiotag.data.competitions import clip_table, load_competition
from audiotag.core.errors import AudiotagError
from audiotag.core.files import read_json, write_json
from audiotag.core.seeding import rng
from audiotag.data.loaders import CropLoader
from audiotag.data.submission import check_submission
from audiotag.infer.predict import infer
from audiotag.kaggle.pack import pack_weights
from audiotag.infer.postprocess import FileMax, NeighbourMax, Smooth, apply_steps
from audiotag.train.settings import compare_rounds
from audiotag.train.stage_rules import PseudoLabelRule
from audiotag.train.recipes import get_recipe
from audiotag.data.sampling import (
    InverseRoot,
    MixPartners,
    PerClass,
    RandomSubset,
    Weighted,
    class_counts,
    epoch_draw,
    systematic_sample,
)
from audiotag.train.sed_loss import SEDLoss
from audiotag.train.settings import Stage
from audiotag.train.out_of_fold import ancestry
from audiotag.train.run_folder import (
    Run,
    is_finished,
    open_run,
    round_table,
    run_stages,
    score_fold,
    score_mixed,
    score_notes,
    stage_table,
)
from audiotag.audio.synth import make_soundscapes

TINY = [
    "precision=fp32",  # teachers compute in it, too, and are compared with what is predicted
    "model.width=2",
    "front_end.n_mels=32",
    "front_end.hop_length=1280",
    "windows.frames=125",
    "windows.hop=125",
    "windows.views.1.offset=62",
    "stages.*.steps=4",
    "stages.*.batch_size=8",
    "n_folds=2",
    "mixed=null",  # a test of its own
]
SCAPES = ["mixed.n=2", "mixed.seconds=20", "mixed.calls=[2,3]"]


# ---- what an epoch is made of


def a_table(seed, n=60):
    g = rng(seed, "table")
    labels = [tuple(dict.fromkeys(g.choice(list("aabbbbc"), size=g.integers(1, 3)).tolist())) for _ in range(n)]
    source = g.choice(["curated", "curated", "negative"], n)
    table = clip_table([f"x{i}" for i in range(n)], path=["x"] * n, labels=labels, source=list(source))
    return table.assign(weight=np.where(g.random(n) < 0.3, 0, g.random(n)))


@pytest.mark.parametrize("seed", range(20))
def test_systematic_draws_are_the_expectation_rounded(seed):
    g = rng(seed, "w")
    w, size = g.random(37) * (g.random(37) < 0.8), int(g.integers(1, 200))
    n = np.bincount(systematic_sample(w, size, g), minlength=37)
    expected = size * w / w.sum()
    assert n.sum() == size and (n >= np.floor(expected - 1e-9)).all() and (n <= np.ceil(expected + 1e-9)).all()


@pytest.mark.parametrize(
    "sampler",
    [
        InverseRoot(),
        InverseRoot(power=1.0, size=25),
        PerClass(at_least=30),
        PerClass(at_most=7),
        PerClass(at_least=5, at_most=9),
        RandomSubset(n=11),
        Weighted(),
        Weighted(size=13),
    ],
    ids=str,
)
def test_samplers_do_not_look_at_the_order_of_rows(sampler):
    table = a_table(1)
    for seed in range(5):
        mixed = table.iloc[rng(seed, "mix").permutation(len(table))].reset_index(drop=True)
        a, b = (t.clip_id.to_numpy()[epoch_draw((sampler,), t)(rng(7, "draw", 3), 3)] for t in (table, mixed))
        assert list(a) == list(b)
        assert set(table.clip_id[table.source == "negative"]) <= set(a)  # nobody draws from them: all are there
    assert list(a) != list(mixed.clip_id.to_numpy()[epoch_draw((sampler,), mixed)(rng(7, "draw", 4), 4)])


@pytest.mark.parametrize("seed", range(6))
def test_least_and_most(seed):
    table = a_table(seed)
    table = table[table.source == "curated"].reset_index(drop=True)
    one = table.assign(labels=[o[:1] for o in table.labels])
    before = class_counts(one, "abc")
    n = class_counts(one.iloc[epoch_draw((PerClass(at_least=6, at_most=9),), one)(rng(seed), 0)], "abc")
    assert list(n) == [min(9, max(6, k)) if k else 0 for k in before]
    many = class_counts(table.iloc[epoch_draw((PerClass(at_least=6, at_most=9),), table)(rng(seed), 0)], "abc")
    assert (many >= np.minimum(6, np.where(class_counts(table, "abc") > 0, 6, 0))).all()


def test_the_rarest_label_decides():
    table = clip_table(list("pqrs"), path=["x"] * 4, labels=[("a",), ("a",), ("a", "b"), ("a",)], source="curated")
    assert InverseRoot(power=1.0).weights(table).tolist() == [0.25, 0.25, 1.0, 0.25]
    assert InverseRoot(power=0.0).weights(table).tolist() == [1.0] * 4


def test_rows_that_are_drawn_anew_all_come_in_time():
    table = a_table(3)
    draw, negative = (
        epoch_draw((RandomSubset(source="negative", n=4),), table),
        set(table.index[table.source == "negative"]),
    )
    seen = [set(draw(rng(0, "draw", e), e).tolist()) & negative for e in range(60)]
    assert all(len(o) == 4 for o in seen) and set().union(*seen) == negative


def test_weight_zero_never_comes():
    table = a_table(4)
    none = set(table.index[(table.weight == 0) & (table.source == "curated")])
    drawn = np.concatenate([epoch_draw((Weighted(),), table)(rng(0, "draw", e), e) for e in range(20)])
    assert none and not none & set(drawn.tolist())
    with pytest.raises(AudiotagError, match="one above 0"):
        epoch_draw((Weighted(),), table.assign(weight=0.0))(rng(0), 0)


class Waves:
    "A store of constants: clip i is i everywhere."

    def __contains__(self, c):
        return True

    def n_frames(self, c):
        return 50

    def crop(self, c, start, n, *, left=None):
        return np.full((1, n), float(c[1:]), np.float32)


def test_partners_are_mixed_in_sound_and_target_and_weight():
    table = a_table(5)
    table = table.assign(source=np.where(table.index < 40, "curated", "unlabeled"))
    y = rng(0).random((60, 3)).astype(np.float32)
    w = np.where((table.source == "unlabeled").to_numpy()[:, None], 0.0, 1.0).astype(np.float32) * np.ones_like(y)
    loader = CropLoader(
        table,
        Waves(),
        "abc",
        frames=8,
        batch_size=40,
        y=Targets(y, w),
        draw=epoch_draw((MixPartners(p=0.5, share=0.25, column=None),), table),
    )
    x, t = loader.one_batch()
    mixed = 0
    for xi, ti, wi, (i, j) in zip(x, t.labels, t.weights, loader.rows):
        i, j = int(i), int(j)
        mixed += j >= 0
        assert i < 40 and (j == -1 or j >= 40)
        assert torch.allclose(xi, torch.full_like(xi, i if j < 0 else 0.75 * i + 0.25 * j))
        assert np.allclose(ti, y[i], atol=1e-6) and np.allclose(wi, 1.0 if j < 0 else 0.75, atol=1e-6)
    assert 10 < mixed < 30
    z = torch.randn(40, 3)
    alone = torch.nn.functional.binary_cross_entropy_with_logits(
        z, torch.from_numpy(y[loader.rows[:, 0]]), reduction="none"
    )
    weight = torch.from_numpy(np.where(loader.rows[:, 1:] >= 0, 0.75, 1.0)).float()
    # background without a label changes no target
    assert torch.allclose(SEDLoss()(z, t), (alone * weight).sum() / (weight.sum() * 3), atol=1e-6)


def test_the_same_clip_twice_is_two_crops():
    class Ramp(Waves):
        def n_frames(self, c):
            return 1000

        def crop(self, c, start, n, *, left=None):
            return np.arange(start, start + n, dtype=np.float32)[None]

    table = a_table(6)
    x, _ = CropLoader(table, Ramp(), "abc", frames=4, batch_size=20, draw=lambda g, e: np.zeros(20, int)).one_batch()
    assert len({float(o.flatten()[0]) for o in x}) > 15


# ---- written labels


@pytest.mark.parametrize("power", [1.0, 1 / 0.65, 2.0])
@pytest.mark.parametrize("keep, zero", [(0.0, 0.0), (0.5, 0.0), (0.5, 0.2), (0.0, 0.3)])
def test_thresholds_look_at_what_was_said_before_the_power(power, keep, zero):
    p = rng(0, "said").random((200, 4)) ** 2
    p[0], p[1] = [0.5, 0.2, 0.3, 0.0], 0.0
    rule = PseudoLabelRule(teachers=("t",), power=power, keep=keep, zero=zero)
    clips = clip_table(
        [f"r{i // 10}_{i}" for i in range(200)],
        path=["x"] * 200,
        labels=[()] * 200,
        source="unlabeled",
        group=[f"r{i // 10}" for i in range(200)],
    )
    told, ledger = rule.targets(p), rule.pick(clips, p, "abcd")
    assert np.allclose(told, np.where(p >= zero, p**power, 0), atol=1e-6)
    assert ledger.picked.tolist() == ((p.max(1) >= keep) & (told.max(1) > 0)).tolist()
    for r, part in ledger.groupby(clips.group.to_numpy()):
        mine = told[part.index][part.picked]
        assert (
            np.isclose(part.weight.sum(), mine.max(0).sum() if len(mine) else 0, atol=1e-5)
            and (part.weight[~part.picked] == 0).all()
        )


@pytest.mark.parametrize(
    "bad",
    [dict(power=0.0), dict(keep=1.0), dict(zero=-0.1), dict(weight=0.0), dict(teachers=()), dict(teachers=("t", "t"))],
)
def test_rules_that_make_no_sense(bad):
    with pytest.raises(AudiotagError):
        PseudoLabelRule(**{"teachers": ("t",), **bad})
    with pytest.raises(AudiotagError, match="probabilities"):
        PseudoLabelRule(teachers=("t",)).targets([[1.2, 0.0]])


@pytest.mark.parametrize(
    "scores, best, stopped",
    [
        ([0.5], 0, False),
        ([0.5, 0.6, 0.7], 2, False),
        ([0.5, 0.5], 0, True),
        ([0.5, 0.6, 0.55], 1, True),
        ([0.5, 0.4, 0.9], 0, True),
    ],
)
def test_the_stop_rule(scores, best, stopped):
    found = compare_rounds({f"r{i}": s for i, s in enumerate(scores)})
    assert (found.best, found.stopped) == (f"r{best}", stopped)


def test_rounds_that_make_no_sense():
    base = get_recipe("birdclef2024", scale="small")
    for bad in (
        dict(rounds=("round1", "labelled", "round2")),
        dict(rounds=("labelled",)),
        dict(rounds=("labelled", "round1")),
        dict(crops=None),
        dict(min_gain=-1.0),
    ):
        with pytest.raises(AudiotagError):
            base.replace(**bad)
    with pytest.raises(AudiotagError, match="SEDLoss"):
        from audiotag.train.losses import BCE

        base.replace(loss=BCE())
    with pytest.raises(AudiotagError, match="sources"):
        Stage(name="a", train_on=("curated",), sampling=(RandomSubset(source="negative"),))


# ---- rounds, on a tiny run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_soundscapes(
        tmp_path_factory.mktemp("birds") / "data", seed=3, n_train=24, n_test=1, n_unlabeled=2, seconds=20.0
    )


def begin(folder, data, *changes):
    return open_run(
        folder,
        get_recipe("birdclef2024", scale="small", changes=[*TINY, *changes]),
        load_competition(data, "birdclef2024"),
    )


@pytest.fixture(scope="module")
def rising():
    "Scores that rise from round to round, so that no series ends."
    with pytest.MonkeyPatch.context() as m:
        m.setattr(
            Run,
            "scores",
            lambda self, *s, fold=None: {
                "macro_auc curated": 0.5 + 0.01 * [o.name for o in self.planned.stages].index(s[0])
            },
        )
        yield


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory, rising):
    return run_stages(begin(tmp_path_factory.mktemp("whole") / "run", data))


def bytes_of(run):
    return {
        str(p.relative_to(run.folder)): p.read_bytes()
        for p in sorted(run.folder.rglob("*"))
        if p.is_file()
        and not any(o.startswith("store") for o in p.relative_to(run.folder).parts)
        and p.name not in ("history.json", ".lock")
    }


def test_every_round_is_run_while_it_gains(whole):
    assert is_finished(whole) and whole.recipe.members == ("round2",) and len(whole.recipe.stages) == 3
    assert Run(whole.folder).recipe == whole.recipe and Run(whole.folder).planned.members == ("labelled",)
    table = round_table(whole)
    assert list(table.index) == ["labelled", "round1", "round2"] and list(table.then) == [
        "the start",
        "goes on",
        "goes on",
    ]
    assert table.loc["round1", "clips"] == 8 and table.loc["round2", "power"] == pytest.approx(1 / 0.65)
    ledger = whole.ledger("round1")
    assert len(ledger) == 2 * 8 and set(ledger.fold) == {0, 1} and set(ledger.source) == {"unlabeled"}


def test_a_fold_is_taught_by_its_own_models(whole):
    stage = whole.recipe.stages[1]
    rule = stage.train_on[1]
    said = {}
    for k in (0, 1):
        train = whole.training_clips(stage, k)
        assert (train.fold != k).all() and set(train.source) == {"curated", "unlabeled"}
        y = whole.training_targets(stage, train, k)
        at = (train.source == "unlabeled").to_numpy()
        said[k] = whole.predict("labelled", k, train.clip_id[at]).to_numpy()
        assert np.allclose(y.labels[at], rule.targets(said[k]), atol=1e-5) and (y.weights[at] == rule.weight).all()
        assert (y.weights[~at] <= 1).all() and np.isin(y.labels[~at], (0, 1)).all()
    assert not np.allclose(said[0], said[1], atol=1e-4)
    assert [s.name for s in ancestry(whole.recipe, "round2")] == ["round2", "round1", "labelled"]


@pytest.fixture(scope="module")
def mixed(data, tmp_path_factory):
    recipe = get_recipe("birdclef2024", scale="small", changes=[*TINY[:-1], *SCAPES])
    return run_stages(
        open_run(tmp_path_factory.mktemp("mixed") / "run", recipe, load_competition(data, "birdclef2024"))
    )


def test_rounds_are_judged_by_recordings_like_those_of_the_test(mixed):
    names = [s.name for s in mixed.recipe.stages]
    assert list(mixed.rounds()) == names and names[0] == "labelled"
    for stage, score in mixed.rounds().items():
        assert mixed.mixed_score(stage) == {"macro_auc mixed": pytest.approx(score)}
    assert {"macro_auc curated", "macro_auc mixed"} <= set(stage_table(mixed))
    clips, mix = score_notes(mixed)
    assert "whole clips" in clips and "2 recordings" in mix and "-3 to 12 dB" in mix
    for k in (0, 1):
        table = pd.read_parquet(mixed.fold_path("labelled", k) / "mixed.parquet")
        assert list(table.recording.unique()) == [f"{k}-0", f"{k}-1"] and len(table) == 2 * 4
        assert table.filter(like="p ").to_numpy().std() > 0


def test_graphs_are_judged_on_the_mixed_recordings_too(mixed, tmp_path):
    from audiotag.infer.bundle import Bundle
    from audiotag.infer.openvino_graphs import _held_out_scores, evidence_of, torch_run

    bundle = Bundle(pack_weights(mixed, tmp_path / "mixed-weights"))
    seen = evidence_of(bundle, mixed, calibrate_with=2)
    for i, member in enumerate(bundle.members):
        stage, fold = member["stage"], member["fold"]
        table = pd.read_parquet(mixed.fold_path(stage, fold) / "mixed.parquet")
        names = seen.sets(i)["on mixed recordings"]
        assert np.array_equal(np.stack([seen.truth[n] for n in names]), table.filter(like="truth "))
        said = _held_out_scores(torch_run(bundle.model(i), bundle.activation), bundle, seen, names)[1]
        assert np.allclose(said, table.filter(like="p "), atol=1e-5)


def test_mixed_recordings_hold_nothing_that_the_model_was_trained_on(mixed, tmp_path):
    shutil.copytree(mixed.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    before = (run.fold_path("labelled", 0) / "mixed.parquet").read_bytes()
    score_mixed(run, "labelled", 0)
    assert (run.fold_path("labelled", 0) / "mixed.parquet").read_bytes() == before
    path = run.fold_path("labelled", 0) / "trained_on.json"
    write_json(path, [*read_json(path), *run.rows.clip_id[run.rows.fold == 0]])
    with pytest.raises(AudiotagError, match="trained on"):
        score_mixed(run, "labelled", 0)


def test_a_run_without_backgrounds_does_not_begin(data, tmp_path):
    recipe = get_recipe("birdclef2024", scale="small", changes=[*TINY[:-1], "mixed.background=none"])
    with pytest.raises(AudiotagError, match="mixed=null"):
        open_run(tmp_path / "run", recipe, load_competition(data, "birdclef2024"))
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_a_leak_through_a_teacher_is_refused(whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    path = run.fold_path("labelled", 0) / "trained_on.json"
    write_json(path, [*read_json(path), run.rows.clip_id[run.rows.fold == 0].iloc[0]])
    with pytest.raises(AudiotagError, match="trained on"):
        score_fold(run, run.recipe.stages[2].name, 0)  # taught by round1, which was taught by it


def test_a_twin_of_a_held_out_clip_teaches_nothing(whole):
    run = Run(whole.folder)
    stage, held = run.recipe.stages[1], run.rows[run.rows.fold == 0].iloc[0]
    twin = run.rows.source.eq("unlabeled") & run.rows.group.eq(run.rows.group[run.rows.source == "unlabeled"].iloc[0])
    run.rows.loc[twin, "group"] = held.group
    ids = set(run.rows.clip_id[twin])
    assert (
        ids and not ids & set(run.training_clips(stage, 0).clip_id) and ids & set(run.training_clips(stage, 1).clip_id)
    )


class Kill(Callback):
    order = 95

    def __init__(self, after):
        self.left = after

    def after_epoch(self):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.long
@pytest.mark.parametrize("after", [3, pytest.param(9, marks=pytest.mark.long)])
def test_killed_and_resumed_it_ends_with_the_same_bytes(whole, data, tmp_path, after):
    with pytest.raises(KeyboardInterrupt):
        run_stages(begin(tmp_path / "run", data), cbs=[Kill(after)])
    again = run_stages(begin(tmp_path / "run", data))
    a, b = bytes_of(again), bytes_of(whole)
    assert a.keys() == b.keys()
    assert [k for k in a if a[k] != b[k]] == []
    assert any("told-unlabeled" in k for k in a)


def test_a_series_ends_when_a_round_does_not_gain(data, tmp_path, monkeypatch):
    monkeypatch.setattr(
        Run, "scores", lambda self, *s, fold=None: {"macro_auc curated": {"labelled": 0.6, "round1": 0.59}[s[0]]}
    )
    run = run_stages(begin(tmp_path / "run", data))
    assert (
        [s.name for s in run.recipe.stages] == ["labelled", "round1"]
        and run.recipe.members == ("labelled",)
        and is_finished(run)
    )
    assert not (tmp_path / "run" / "3-round2").exists()
    again = begin(tmp_path / "run", data)  # the plan is the same, and nothing is left to do
    before = bytes_of(again)
    assert bytes_of(run_stages(again)) == before and again.recipe.members == ("labelled",)
    assert list(round_table(again).then) == ["the start", "stops here"]
    assert len(stage_table(again)) == 2
    pack_weights(again, tmp_path / "tiny-weights")
    assert {m["stage"] for m in json.loads((tmp_path / "tiny-weights" / "bundle.json").read_text())["members"]} == {
        "labelled"
    }
    with pytest.raises(AudiotagError):
        begin(tmp_path / "run", data, "min_gain=0.2")


@pytest.mark.long
def test_a_round_whose_teachers_hear_nothing_is_a_round_without_windows(data, tmp_path, rising):
    run = run_stages(begin(tmp_path / "run", data, "stages.round1.train_on.1.keep=0.999"))
    assert not run.ledger("round1").picked.any() and set(run.training_clips(run.recipe.stages[1], 0).source) == {
        "curated"
    }
    assert is_finished(run)


@pytest.mark.long
def test_min_gain(data, tmp_path, monkeypatch, rising):
    run = run_stages(begin(tmp_path / "run", data, "min_gain=0.02"))
    assert run.recipe.members == ("labelled",) and "round2" not in [s.name for s in run.recipe.stages]


# ---- to the submission


def test_steps_are_sealed_and_an_empty_test_folder_works(whole, data, tmp_path):
    comp = load_competition(data, "birdclef2024", train=False)
    plain, sealed = (
        pack_weights(whole, tmp_path / f"{n}-weights", after=s)
        for n, s in (("plain", ()), ("sealed", (Smooth(), FileMax(power=0.4))))
    )

    def scores(bundle, **kw):
        infer(bundle, comp, tmp_path / "submission.csv", **kw)
        assert not [f for f in check_submission(tmp_path / "submission.csv", comp) if f.kaggle]
        return pd.read_csv(tmp_path / "submission.csv").iloc[:, 1:].to_numpy()

    test = comp.of("test")
    a = scores(plain)
    expected = apply_steps((Smooth(), FileMax(power=0.4)), a, test.path)
    assert np.allclose(scores(sealed), expected, atol=1e-6) and not np.allclose(a, expected, atol=1e-3)
    assert np.allclose(scores(sealed, after=()), a, atol=1e-6)
    assert np.allclose(scores(plain, after=(Smooth(), FileMax(power=0.4))), expected, atol=1e-6)
    own = apply_steps((NeighbourMax(share=0.25), FileMax(power=0.4)), a, test.path)
    # nobody has said: the recipe's
    assert np.allclose(scores(pack_weights(whole, tmp_path / "own-weights")), own, atol=1e-6) and not np.allclose(
        own, expected, atol=1e-4
    )
    bare = shutil.copytree(data, tmp_path / "bare")
    for f in (bare / "test_soundscapes").iterdir():
        f.unlink()
    empty = load_competition(bare, "birdclef2024", train=False)
    report = infer(sealed, empty, tmp_path / "empty.csv")
    assert report.scored == 0 and not [f for f in check_submission(tmp_path / "empty.csv", empty) if f.kaggle]
    assert len(pd.read_csv(tmp_path / "empty.csv")) == len(empty.template)


@pytest.mark.parametrize(
    "inputs, narrow",
    [
        pytest.param("rows200", ["model.backbone.width=1"], marks=pytest.mark.long),
        pytest.param("rows80", ["model.backbone.width=1"], marks=pytest.mark.long),
        ("hybrid", ["model.mel.width=1", "model.raw.width=1"]),
    ],
)
def test_networks_on_waves(inputs, narrow, data, tmp_path):
    "Trained, sealed, exported and run; a window of the test is those samples of the recording, and nothing else."
    from audiotag.infer.bundle import Bundle
    from audiotag.infer.openvino_graphs import evidence_of, export_bundle

    recipe = get_recipe(
        f"birdclef2024_{inputs}",
        scale="small",
        changes=[*narrow, "stages.*.steps=1", "stages.*.batch_size=8", "n_folds=2", "rounds=[]", "after=[]"],
    )
    recipe = recipe.replace(stages=recipe.stages[:1], windows=recipe.windows.replace(views=recipe.windows.views[:1]))
    run = run_stages(open_run(tmp_path / "run", recipe, load_competition(data, "birdclef2024")))
    folder = pack_weights(run, tmp_path / "tiny-weights")
    comp = load_competition(data, "birdclef2024", train=False)
    infer(folder, comp, tmp_path / "torch.csv", precision="torch")
    table = pd.read_csv(tmp_path / "torch.csv", index_col=0)
    row = comp.of("test").iloc[1]
    wave = recipe.front_end.read(row.path)[round(row.start_s * recipe.front_end.sample_rate) :][: recipe.windows.frames]
    with torch.inference_mode():
        p = torch.stack(
            [run.model("labelled", k)(torch.from_numpy(wave)[None, None, None]).sigmoid()[0] for k in (0, 1)]
        ).mean(0)
    assert np.allclose(table.loc[row.clip_id, list(run.classes)], p, atol=1e-4)
    bundle = Bundle(folder)
    export_bundle(bundle, evidence_of(bundle, run), precision=["fp32"])
    assert [g["kept"] for g in Bundle(folder).graphs] == [True, True]
    infer(folder, comp, tmp_path / "graph.csv", precision="fp32")
    assert abs(pd.read_csv(tmp_path / "graph.csv", index_col=0) - table).max().max() < 1e-3


# ---- features of unlabeled windows, and the ledgers: once


def test_every_fold_and_round_scores_stored_features(whole, data, monkeypatch):
    "The store holds what the front end gives for each window, and no teacher computes it again."
    from audiotag.audio.features import LogMel

    run = Run(whole.folder)
    ids = list(run.rows.clip_id[run.rows.source == "unlabeled"])
    assert set(run.segments) == set(ids)
    for row in run.rows[run.rows.source == "unlabeled"].head(3).itertuples():
        computed = run.recipe.front_end.read_features(row.path, start_s=row.start_s, end_s=row.end_s)
        stored = run.segments[row.clip_id]
        assert stored.shape == computed.shape and np.allclose(stored, computed, atol=5e-3)
    monkeypatch.setattr(LogMel, "__call__", lambda self, wave: pytest.fail("features are computed again"))
    assert len(run.predict("labelled", 0, ids)) == len(ids)
    run.segments = ()
    with pytest.raises(pytest.fail.Exception):
        run.predict("labelled", 0, ids)


def test_the_plan_scores_many_windows_of_many_more(whole, monkeypatch):
    "At full size the seconds of a window are multiplied by half a million: three of them would be noise."
    from audiotag.train.plan import measure_pace

    run, asked, predict = Run(whole.folder), [], Run.predict

    def count(self, stage, fold, ids, **options):
        asked.append(set(ids))
        return predict(self, stage, fold, ids, **options)

    monkeypatch.setattr(Run, "predict", count)
    pace = measure_pace(run)
    unlabeled = set(run.rows.clip_id[run.rows.source == "unlabeled"])
    assert len(asked[-1]) == min(64, len(unlabeled)) and asked[-1] <= unlabeled and pace.score_unlabeled > 0


def test_a_ledger_is_made_once(whole, tmp_path, monkeypatch):
    shutil.copytree(whole.folder, tmp_path / "run")
    run, made, ledger = Run(tmp_path / "run"), [], PseudoLabelRule.ledger
    for path in run.folder.rglob("ledger-unlabeled.parquet"):
        path.unlink()  # a run of an older version has none

    def count(rule, *args):
        made.append(rule)
        return ledger(rule, *args)

    monkeypatch.setattr(PseudoLabelRule, "ledger", count)
    first = run.ledger("round1")
    n = len(made)
    assert n == run.recipe.n_folds and len(first) == n * (run.rows.source == "unlabeled").sum()
    pd.testing.assert_frame_equal(first, run.ledger("round1"))
    run.training_clips(run.recipe.stage("round1"), 0)
    assert len(made) == n
    pd.testing.assert_frame_equal(first, Run(whole.folder).ledger("round1"))


def test_a_ledger_at_full_size_fits_into_memory():
    "The former one took 83 s and 2.8 GB for 594 000 windows of 182 classes; a tenth of them here."
    import tracemalloc

    g, n = rng(0, "full"), 60_000
    p = (g.random((n, 182)) ** 12).astype(np.float32)
    clips = clip_table(
        [f"c{i:06d}" for i in range(n)], path=["x"] * n, labels=[()] * n, source="unlabeled", group=np.arange(n) // 48
    )
    rule = PseudoLabelRule(teachers=("t",), power=1.5, keep=0.1, zero=0.05)
    tracemalloc.start()
    ledger = rule.pick(clips, p, [f"k{c}" for c in range(182)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(ledger) == n and peak < 4 * p.nbytes


def test_frames_of_long_windows_from_training_to_the_kernel(data, tmp_path):
    "Windows of ten seconds for rows of five: mixed recordings, pseudo-labels and the submission pool the same frames."
    from audiotag.infer.bundle import Bundle
    from audiotag.infer.openvino_graphs import evidence_of, export_bundle
    from audiotag.infer.windows import Spans, score_clips

    changes = [c.replace("model.width", "model.backbone.width") for c in TINY if not c.startswith(("windows", "mixed"))]
    views = 'windows.views=[{"kind": "View"}, {"kind": "View", "frame_shift": 12}]'
    windows = ["windows.frames=250", "windows.hop=125", "windows.by_frame=true", "windows.pooling=max", views]
    recipe = get_recipe("birdclef2025", scale="small", changes=[*changes, *windows, *SCAPES, "refit=false"])
    run = run_stages(open_run(tmp_path / "run", recipe, load_competition(data, "birdclef2024")))
    stage, fe = run.recipe.stages[0].name, recipe.front_end

    # of pseudo-labels: a segment is scored with its recording around it
    ids = list(run.rows.clip_id[run.rows.source == "unlabeled"])
    said = run.predict(stage, 0, ids[::-1]).loc[ids].to_numpy()
    recordings = list(dict.fromkeys(run.places[i][0] for i in ids))
    rows = tuple((125 * i, 125 * (i + 1)) for i in range(4))
    expected = []
    for recording in recordings:
        spans = Spans(recipe.windows.frame_views(fe(run.store[recording][0])), rows)
        ((_, p),) = score_clips([run.model(stage, 0)], [("r", spans)], recipe.windows, fill=fe.fill)
        expected.append(p[0])
    assert len(ids) == len(recordings) * 4
    np.testing.assert_allclose(said, np.concatenate(expected), atol=1e-5)

    # of mixed recordings, and the evidence that graphs are judged by
    table = pd.read_parquet(run.fold_path(stage, 0) / "mixed.parquet")
    assert len(table) == 2 * 4 and table.filter(like="p ").to_numpy().std() > 0
    bundle = Bundle(pack_weights(run, tmp_path / "weights"))
    kept = export_bundle(bundle, evidence_of(bundle, run, calibrate_with=2), precision="fp32").kept
    assert (kept == "kept").all()

    # of the kernel
    report = infer(tmp_path / "weights", data, tmp_path / "s.csv", after=(), deadline="10min")
    assert not report.prior and {m["precision"] for m in report.ran} == {"fp32"}
    got = pd.read_csv(tmp_path / "s.csv", index_col=0)
    competition = load_competition(data, "birdclef2024", train=False)
    path = competition.of("test").path.iloc[0]
    x, bundle = fe.read_features(path), Bundle(tmp_path / "weights")
    spans = Spans(recipe.windows.frame_views(x), (*rows[:3], (375, x.shape[1])))
    ((_, p),) = score_clips(bundle.models(), [("r", spans)], recipe.windows, fill=fe.fill)
    np.testing.assert_allclose(got[list(bundle.classes)].to_numpy()[:4], p.mean(0), atol=1e-4)
