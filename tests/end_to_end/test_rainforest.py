"System 3: places in recordings, labels that say no, mixing inside the network; boxes that are wrong; the recipe, tiny, from end to end."

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


from audiotag.augment.manifold import ManifoldMixUp
from audiotag.data.competitions import load_competition, recordings
from audiotag.core.errors import AudiotagError
from audiotag.core.files import read_json, write_json
from audiotag.data.crops import Anywhere, AroundBox, CallAt, CropSettings, place_frames
from audiotag.data.loaders import CropLoader, fold_loaders
from audiotag.audio.features import LogMel, Standardize
from audiotag.train.losses import BCE
from audiotag.models.cnn import CNNModel1
from audiotag.models.sed import SED
from audiotag.train.recipes import get_recipe
from audiotag.data.sampling import OnePerRecording, RandomSubset, epoch_draw
from audiotag.train.sed_loss import SEDLoss
from audiotag.train.settings import Labels
from audiotag.train.run_folder import Run, open_run, run_stages, score_fold, scored_clips
from audiotag.data.store import build_store
from audiotag.audio.synth import make_rainforest
from audiotag.train.fit import train_fold

TINY = [
    "n_folds=2",
    "front_end.n_mels=32",
    "model.backbone.width=2",
    "windows.frames=64",
    "windows.hop=32",
    "crops.shift=[4,24]",
    "stages.boxes.steps=4",
    "stages.boxes.batch_size=8",
    "stages.boxes.sampling.0.n=5",
]


# where a crop lies

place = st.integers(1, 400).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n - 1)).flatmap(
        lambda o: st.tuples(st.just(o[0]), st.just(o[1]), st.integers(o[1] + 1, o[0]))
    )
)


@given(
    st.lists(place, min_size=1, max_size=30),
    st.integers(1, 300),
    st.sampled_from([CropSettings(), Anywhere(), AroundBox(shift=(0, 0)), AroundBox(), AroundBox(shift=(3, 40))]),
    st.one_of(st.none(), st.integers(0, 99)),
)
@settings(max_examples=300, deadline=None, derandomize=True)
def test_the_crop_holds_the_place_or_lies_inside_of_it(places, frames, crops, seed):
    length, first, last = np.array(places).T
    starts = crops.starts(first, last, length, frames, None if seed is None else np.random.default_rng(seed))
    assert starts.dtype.kind == "i" and (starts >= 0).all() and (starts <= np.maximum(length - frames, 0)).all()
    fits = (last - first <= frames) & (length >= frames)
    assert ((starts <= first) & (last <= starts + frames))[fits].all()
    longer = last - first > frames
    assert ((first <= starts) & (starts + frames <= last))[longer].all()


def test_the_center_is_moved_by_the_numbers_given():
    n, g = 4000, np.random.default_rng(0)
    first, last, length = np.full(n, 2000), np.full(n, 2040), np.full(n, 4000)
    moved = AroundBox(shift=(32, 200)).starts(first, last, length, 512, g) + 256 - 2020
    assert set(np.abs(moved)) == set(range(32, 201))
    assert 0.45 < (moved > 0).mean() < 0.55
    assert (AroundBox().starts(first, last, length, 512) == 2020 - 256).all()  # on validation it is in the middle
    assert AroundBox(shift=(2, 3)).scaled(512) == AroundBox(shift=(1024, 1536))


def test_the_middle_of_the_call_stands_at_one_of_the_entrants_frames():
    n, g = 4000, np.random.default_rng(0)
    first, last, length = np.full(n, 2000), np.full(n, 2041), np.full(n, 3750)
    at = 2020 - CallAt().starts(first, last, length, 512, g)
    assert dict(zip(*np.unique(at, return_counts=True))).keys() == {32, 64, 128, 256}
    assert (np.unique(at, return_counts=True)[1] > 0.23 * n).all()
    early = 100 - CallAt().starts(0 * first + 90, 0 * first + 110, length, 512, g)
    assert set(early) == {32, 64}  # of those that begin inside of the recording
    assert (CallAt().starts(0 * first + 10, 0 * first + 30, length, 512, g) == 0).all()
    late = CallAt().starts(0 * first + 3600, 0 * first + 3640, length, 512, g)
    assert late.max() == 3750 - 512 and (late >= 3620 - 512).all()
    assert (CallAt().starts(first, last, length, 512) == 2020 - 256).all()  # on validation it is in the middle
    assert CallAt(at=(2, 3)).scaled(512) == CallAt(at=(1024, 1536))
    for bad in (dict(at=()), dict(at=(3, 2)), dict(at=(-1,)), dict(min_overlap=1.5)):
        with pytest.raises(AudiotagError):
            CallAt(**bad)


def test_a_clip_without_times_is_drawn_anywhere():
    n, g = 2000, np.random.default_rng(0)
    starts = AroundBox().starts(np.zeros(n, int), np.full(n, 1000), np.full(n, 1000), 512, g)
    assert starts.min() < 10 and starts.max() > 478


# the loader


@pytest.fixture(scope="module")
def forest(tmp_path_factory):
    "(competition, its boxes with `recording`, a store of the recordings)."
    where = tmp_path_factory.mktemp("forest")
    competition = load_competition(make_rainforest(where / "data", seed=2, n_train=8), "rainforest2021")
    whole = recordings(competition.clips)
    rows = competition.of("curated", "negative").assign(
        recording=lambda d: d.path.map(dict(zip(whole.path, whole.clip_id)))
    )
    front_end = LogMel(sample_rate=16000, n_fft=512, hop_length=256, n_mels=32, f_max=8000, scaling=Standardize())
    return competition, rows, build_store(whole, front_end, where / "store")


def loader_of(forest, rows=None, **options):
    competition, all_rows, store = forest
    return CropLoader(
        all_rows if rows is None else rows,
        store,
        competition.classes,
        **{"frames": 128, "batch_size": 8, "crops": AroundBox(shift=(8, 40)), **options},
    )


def test_a_batch_is_what_the_store_has_at_that_place(forest):
    competition, rows, store = forest
    loader = loader_of(forest, seed=5)
    first, last = place_frames(rows, store)
    for epoch in (0, 3):
        loader.set_epoch(epoch)
        x, y = next(iter(loader))
        for j in range(8):
            i, s = loader.order[j], loader.starts[j, 0]
            assert s <= first[i] and last[i] <= s + 128
            assert np.array_equal(x[j, 0].numpy(), store[rows.recording.iloc[i]][:, s : s + 128])
            seconds = store.frame_rate
            heard = {
                c
                for o in rows.itertuples()
                if o.recording == rows.recording.iloc[i] and o.source == "curated"
                for c in o.labels
                if min(np.ceil(o.end_s * seconds), s + 128) - max(np.floor(o.start_s * seconds), s)
                >= 0.5 * (np.ceil(o.end_s * seconds) - np.floor(o.start_s * seconds))
            }
            own = set(rows.labels.iloc[i]) if rows.source.iloc[i] == "curated" else set()
            assert {competition.classes[k] for k in np.flatnonzero(y.labels[j])} == heard | own


@pytest.mark.parametrize("crops", [AroundBox(shift=(8, 40)), CallAt(at=(8, 16, 64))], ids=lambda c: type(c).__name__)
@pytest.mark.parametrize("step", [1, 4])
def test_frame_targets_are_the_times_of_the_boxes(forest, crops, step):
    competition, rows, store = forest
    loader, rate = loader_of(forest, crops=crops, target_step=step, batch_size=64), store.frame_rate
    (_, y), some = next(iter(loader)), 0
    assert y.frames.shape == (64, 4, 128 // step)
    for j in range(64):
        row, s = rows.iloc[loader.order[j]], int(loader.starts[j, 0])
        wanted = np.zeros((4, 128))
        for o in rows[(rows.recording == row.recording) & (rows.source == "curated")].itertuples():
            k = competition.classes.index(o.labels[0])
            if y.labels[j, k] and (row.source == "curated" or crops.negatives_overlap):
                a, b = int(np.floor(o.start_s * rate)) - s, int(np.ceil(o.end_s * rate)) - s
                wanted[k, max(0, a) : max(0, b)] = 1
        np.testing.assert_array_equal(y.frames[j].numpy(), wanted.reshape(4, -1, step).max(2))
        some += wanted.sum()
    assert some > 100
    negative = torch.from_numpy((rows.source.iloc[loader.order[:64]] == "negative").to_numpy())
    if not crops.negatives_overlap:
        assert not y.labels[negative].any() and not y.frames[negative].any()


def test_an_epoch_of_recordings(forest):
    "Each with a call once, and so many of those with a false positive."
    competition, rows, _ = forest
    draw = epoch_draw((OnePerRecording(source="curated"), OnePerRecording(source="negative", n=3)), rows)
    used = set()
    for epoch in range(30):
        drawn = rows.iloc[draw(np.random.default_rng(epoch), epoch)]
        curated, negative = (drawn[drawn.source == s] for s in ("curated", "negative"))
        assert sorted(curated.recording) == sorted(rows[rows.source == "curated"].recording.unique())
        assert negative.recording.nunique() == len(negative) == 3
        used |= set(drawn.clip_id)
    assert len(used) > 0.5 * len(rows)


def test_only_the_own_label_if_asked(forest):
    loader = loader_of(forest, crops=AroundBox(shift=(8, 40), min_overlap=None))
    assert all(torch.equal(loader.target(i, 0).labels, loader.y.labels[i]) for i in range(len(loader.ids)))


def test_a_label_that_is_heard_is_known(forest):
    "Where a target has a weight, the labels of other boxes in the crop get both."
    competition, rows, store = forest
    y = Labels().weighted(np.zeros((len(rows), 4), np.float32), rows.assign(source="negative"), competition.classes)
    loader, plain = loader_of(forest, y=y), loader_of(forest, y=np.zeros((len(rows), 4)))
    some = 0
    for i in range(len(rows)):
        for s in (0, 100, 300):
            told, heard = loader.target(i, s), plain.target(i, s).labels
            assert torch.equal(told.labels, heard)
            assert torch.equal(told.weights, torch.maximum(heard, loader.y.weights[i]))
            some += int(heard.sum())
    assert some


def test_faults_of_places(forest):
    competition, rows, store = forest
    with pytest.raises(AudiotagError, match="recording"):
        loader_of(forest, rows.drop(columns="recording"))
    with pytest.raises(AudiotagError, match="not in the feature store"):
        loader_of(forest, rows.assign(recording="gone"))
    with pytest.raises(AudiotagError, match="after the end of its recording"):
        loader_of(forest, rows.assign(start_s=99.0, end_s=100.0))
    for bad in (
        dict(shift=(5, 2)),
        dict(shift=(1,)),
        dict(shift=(-1, 2)),
        dict(min_overlap=0.0),
        dict(min_overlap=1.5),
    ):
        with pytest.raises(AudiotagError):
            AroundBox(**bad)


@pytest.mark.parametrize(
    "cells, said",
    [
        (dict(t_max="0.1"), "row 3"),
        (dict(t_max="61.5"), "row 3"),
        (dict(t_min="-1"), "row 3"),
        (dict(f_max="1"), "row 3"),
        (dict(species_id="9"), "row 3"),
    ],
)
@pytest.mark.parametrize("part", ["train_tp", "train_fp"])
def test_a_box_that_is_none_is_refused_by_its_row(tmp_path, part, cells, said):
    data = make_rainforest(tmp_path / "data", n_train=3, n_test=1)
    table = pd.read_csv(data / f"{part}.csv", dtype=str)
    for c, v in cells.items():
        table.loc[2, c] = v
    table.to_csv(data / f"{part}.csv", index=False)
    with pytest.raises(AudiotagError) as e:
        load_competition(data, "rainforest2021")
    assert said in str(e.value) and f"{part}.csv" in str(e.value)


# labels that say no


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_mask_never_punishes_a_species_that_the_row_does_not_name(seed):
    "The gradient of a negative row is zero for all others, in each part of the loss and after mixup with another one."
    g = np.random.default_rng(seed)
    classes = [f"s{i}" for i in range(5)]
    rows = pd.DataFrame(dict(labels=[(classes[int(g.integers(5))],) for _ in range(4)], source="negative"))
    y = Labels().weighted(np.zeros((4, 5), np.float32), rows, classes).map(torch.from_numpy)
    parts = torch.from_numpy(g.normal(size=(4, 5, 1 + 2 * 6))).float().requires_grad_()
    SEDLoss(gamma=float(g.choice([0, 2])))(parts, y).backward()
    named = np.array([[c in o for c in classes] for o in rows.labels])
    assert (parts.grad.abs().sum(2).numpy()[~named] == 0).all() and (parts.grad.abs().sum(2).numpy()[named] > 0).all()
    down = parts.grad[:, :, 0].numpy()[named]
    assert (down > 0).all()  # the clip logit of what is not there falls
    zeros = Labels(negatives="all").weighted(np.zeros((4, 5), np.float32), rows, classes).map(torch.from_numpy)
    parts.grad = None
    SEDLoss()(parts, zeros).backward()
    assert (parts.grad.abs().sum(2).numpy() > 0).all()  # the entrant's form punishes all


def test_a_recipe_says_what_the_labels_mean():
    recipe = get_recipe("rainforest2021", scale="small", changes=TINY)
    plain = recipe.model.replace(parts=False)
    with pytest.raises(AudiotagError, match="labels"):
        recipe.replace(loss=BCE(), model=plain)
    assert recipe.replace(loss=BCE(), model=plain, labels=Labels(negatives="all"))
    with pytest.raises(AudiotagError, match="labels"):
        recipe.replace(loss=BCE(), model=plain, labels=Labels(negatives="all", secondary_weight=0.5))
    trimmed = recipe.front_end.replace(reading=recipe.front_end.reading.replace(trim_db=60.0))
    with pytest.raises(AudiotagError, match="front_end"):
        recipe.replace(front_end=trimmed)
    assert recipe.replace(front_end=trimmed, crops=None)
    for bad in (dict(negatives="some"), dict(secondary=2.0)):
        with pytest.raises(AudiotagError):
            Labels(**bad)


# manifold mixup while it trains


def test_it_is_mixed_inside_and_the_network_stays_clean(forest, tmp_path):
    competition, rows, store = forest
    net = SED(backbone=CNNModel1(width=2)).build(4)
    curated = rows[rows.source == "curated"]
    dls = fold_loaders(
        curated[8:], curated[:8], store, competition.classes, frames=64, batch_size=8, crops=AroundBox(shift=(4, 16))
    )
    calls = []

    class Noting(ManifoldMixUp):
        def attach(self, net, params):
            calls.append(int(params["depth"]))
            return super().attach(net, params)

    train_fold(
        net,
        dls,
        tmp_path / "run",
        loss=SEDLoss(),
        epochs=3,
        augment=(Noting(alpha=0.4, first=1, last=3),),
        precision="fp32",
    )
    # once a training batch, never on validation
    assert len(calls) == 3 * len(dls.train) and set(calls) <= {1, 2, 3}
    assert "forward" not in vars(net) and not any(m._forward_hooks for m in net.modules())
    with pytest.raises(AudiotagError, match="depth"):
        train_fold(
            net,
            dls,
            tmp_path / "deep",
            loss=SEDLoss(),
            epochs=1,
            augment=(ManifoldMixUp(first=9, last=9),),
            precision="fp32",
        )


# a run


@pytest.fixture(scope="module")
def run(forest, tmp_path_factory):
    recipe = get_recipe("rainforest2021", scale="small", changes=TINY)
    return run_stages(open_run(tmp_path_factory.mktemp("run") / "run", recipe, forest[0]))


def test_rows_are_trained_on_and_recordings_are_scored(run, forest):
    competition = forest[0]
    assert set(run.rows.source) == {"curated", "negative"} and len(run.rows) == len(
        competition.of("curated", "negative")
    )
    assert {"f_min", "f_max", "recording"} <= set(run.rows)
    assert (
        list(run.clips.clip_id) == list(scored_clips(run.rows).clip_id)
        and len(run.store) == run.rows.recording.nunique()
    )
    for o in run.clips.itertuples():
        mine = run.rows[(run.rows.recording == o.clip_id) & (run.rows.source == "curated")]
        assert set(o.labels) == {c for t in mine.labels for c in t} and o.fold == mine.fold.iloc[0]
    assert list(run.oof("boxes").index) == list(run.clips.clip_id)
    assert (
        np.allclose(run.oof("boxes"), run.oof("boxes").to_numpy())
        and ((run.oof("boxes") > 0) & (run.oof("boxes") < 1)).all().all()
    )


def test_a_recording_is_scored_by_a_model_that_knows_none_of_its_boxes(run):
    for k in range(2):
        trained = run.rows[run.rows.clip_id.isin(run.trained_on("boxes", k))]
        assert not set(trained.recording) & set(run.clips.clip_id[run.clips.fold == k]) and len(trained)
    path = run.fold_path("boxes", 0) / "trained_on.json"
    before = read_json(path)
    box = run.rows[(run.rows.fold == 0) & (run.rows.source == "negative")].clip_id.iloc[0]  # even a negative one
    write_json(path, [*before, box])
    try:
        with pytest.raises(AudiotagError, match="would be scored by a model"):
            score_fold(run, "boxes", 0)
    finally:
        write_json(path, before)


def test_so_many_negative_rows_an_epoch_drawn_anew(run):
    stage = run.recipe.stages[0]
    assert stage.sampling == (RandomSubset(source="negative", n=5),)
    train = run.training_clips(stage, 0)
    y = run.training_targets(stage, train, 0)
    assert y.shape == y.weights.shape == (len(train), 4)
    negative = (train.source == "negative").to_numpy()
    assert (y.labels[negative] == 0).all() and (y.weights[negative].sum(1) == 1).all()
    assert (y.weights[~negative] == 1).all()


def test_the_windows_of_a_place(run):
    "Rows are scored by their stretch of the recording, recordings whole."
    row = run.rows.iloc[0]
    recording, first, last = run.places[row.clip_id]
    assert np.array_equal(run.features(row.clip_id), run.store[recording][:, first:last])
    assert np.array_equal(run.features(recording), run.store[recording])


def test_two_runs_have_the_same_bytes_and_a_copy_goes_on(run, forest, tmp_path):
    again = run_stages(open_run(tmp_path / "again", run.recipe, forest[0]))
    for k in range(2):
        for name in ("weights.safetensors", "oof.parquet"):
            assert (again.fold_path("boxes", k) / name).read_bytes() == (run.fold_path("boxes", k) / name).read_bytes()
    opened = Run(again.folder)
    assert opened.clips.equals(run.clips) and list(opened.rows.labels) == list(run.rows.labels)


def test_whole_recordings_as_those_without_boxes_train(run, forest, tmp_path):
    recipe = run.recipe
    stage = recipe.stages[0].replace(train_on=("curated",), sampling=(), steps=2)
    whole = open_run(tmp_path / "whole", recipe.replace(crops=Anywhere(), stages=(stage,)), forest[0])
    assert list(whole.rows.clip_id) == list(whole.rows.recording) and set(whole.clips.clip_id) == set(run.clips.clip_id)
    assert whole.rows.start_s.isna().all()
    y = whole.training_targets(stage, whole.training_clips(stage, 0), 0).labels
    assert y.sum() == whole.rows[whole.rows.fold != 0].labels.map(len).sum()


def test_an_unlabeled_twin_does_not_teach(forest, tmp_path):
    "A copy of a recording that no csv names has no fold of its own; it stays out of the folds that its twin is scored in."
    import shutil

    competition = forest[0]
    data = tmp_path / "data"
    shutil.copytree(competition.root, data)
    box = competition.of("curated").iloc[0]
    shutil.copy(box.path, data / "train" / "ffffffff.flac")
    recipe = get_recipe("rainforest2021", scale="small", changes=TINY)
    stage = recipe.stages[0].replace(train_on=("curated", "negative", "unlabeled"))
    run = open_run(tmp_path / "run", recipe.replace(stages=(stage,)), load_competition(data, "rainforest2021"))
    twin = run.rows[run.rows.clip_id == "ffffffff"].iloc[0]
    assert twin.fold == -1 and twin.recording == "ffffffff"
    held = int(run.rows.fold[run.rows.clip_id == box.clip_id].iloc[0])
    assert ["ffffffff" in set(run.training_clips(stage, k).clip_id) for k in (held, 1 - held)] == [False, True]


@pytest.mark.parametrize("channel", [False, True])
def test_the_channel_of_heights(forest, tmp_path, channel):
    from audiotag.models.timm_backbone import Timm

    recipe = get_recipe(
        "rainforest2021",
        scale="small",
        changes=[*TINY, f"front_end.frequency_channel={str(channel).lower()}", "stages.boxes.steps=1"],
    )
    for backbone in (CNNModel1(width=2, in_channels=1 + channel), Timm(name="test_resnet", in_channels=1 + channel)):
        run = run_stages(
            open_run(
                tmp_path / type(backbone).__name__,
                recipe.replace(model=recipe.model.replace(backbone=backbone)),
                forest[0],
            )
        )
        assert run.store.front_end.n_channels == 1 + channel
        assert 0 <= run.scores("boxes")["lwlrap curated"] <= 1


def test_the_recipes_are_the_entrants():
    full, rows = get_recipe("rainforest2021"), get_recipe("rainforest2021_rows")
    for recipe in (full, rows):
        stage = recipe.stages[0]
        assert (recipe.n_folds, recipe.windows.frames, recipe.windows.pooling) == (5, 512, "max")
        assert (stage.epochs, stage.lr, stage.batch_size, stage.schedule.period) == (50, 1e-3, 64, 10)
    assert full.crops == CallAt(at=(32, 64, 128, 256)) and rows.crops == AroundBox(shift=(32, 256))
    assert full.labels.negatives == "all" and rows.labels.negatives == "named"
    assert [(s.source, s.n) for s in full.stages[0].sampling] == [("curated", None), ("negative", 30)]
    assert rows.stages[0].sampling == (RandomSubset(source="negative", n=30),)
    assert full.loss.as_entrant and full.loss.threshold == 0.7 and not rows.loss.as_entrant
    assert full.model.backbone.pretrained and not rows.model.backbone.pretrained
    assert full.stages[0].best_epoch and full.stages[0].metric == "lrap"
    assert (full.loss.clip, full.loss.peak, full.loss.pseudo, full.loss.segment) == (1, 0.5, 1, 0.5)
    assert {type(a).__name__ for a in full.augment} == {
        "SpecAugment",
        "Gamma",
        "Lighting",
        "ManifoldMixUp",
    } and full.augment[-1].alpha == 0.1
    assert full.model.backbone.name == "resnet18" and full.model.output == "max"


def test_two_recordings_of_one_name_are_told_apart():
    from audiotag.data.competitions import clip_table

    paths = ["/d/a/x.ogg", "/d/b/x.ogg", "/d/b/y.ogg", "/d/b/y.ogg", "/d/c/z.wav", "/d/c/z.flac", "/e/c/z.flac"]
    whole = recordings(clip_table([f"c{i}" for i in range(7)], path=paths, labels=[("l",)] * 7, source="curated"))
    assert list(whole.clip_id) == ["a/x", "b/x", "y", "c/z.wav", "d/c/z.flac", "e/c/z.flac"] and whole.clip_id.is_unique


def test_a_missing_file_of_weights_is_found_before_features_are_computed(forest, tmp_path):
    with pytest.raises(AudiotagError, match="huggingface.co.*set it to nothing"):
        open_run(tmp_path / "run", get_recipe("rainforest2021"), forest[0])
    assert not list((tmp_path / "run").glob("store*"))
