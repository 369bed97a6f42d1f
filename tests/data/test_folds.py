"Folds: groups stay whole, nothing but clips and seed decides, labels are spread evenly."

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from hypothesis import given, settings
from hypothesis import strategies as st

from audiotag.data.competitions import clip_table, load_competition
from audiotag.core.errors import AudiotagError
from audiotag.audio.synth import make_competition
from audiotag.data.folds import assign_folds, check_folds, fold_table, join_groups

LABELS = "ABCDE"


def table(seed, n=60, n_groups=30, sources=("curated", "noisy", "negative", "test", "unlabeled")):
    g = np.random.default_rng(seed)
    source = list(g.choice(sources, n))
    labels = [
        () if s in ("test", "unlabeled") else tuple(g.choice(list(LABELS), g.integers(1, 4), replace=False))
        for s in source
    ]
    ids = [f"{i:04d}.wav" for i in range(n)]
    group = [f"g{o}" for o in g.integers(0, n_groups, n)]
    return clip_table(ids, path=ids, labels=labels, source=source, group=group)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n_folds=st.integers(2, 6), n_groups=st.sampled_from([8, 20, 200]))
def test_promises(seed, n_folds, n_groups):
    clips = table(seed, n_groups=n_groups)
    before = clips.copy(deep=True)
    out = assign_folds(clips, n_folds=n_folds, seed=seed)
    pd.testing.assert_frame_equal(clips, before)
    pd.testing.assert_frame_equal(out.drop(columns="fold"), clips.drop(columns="fold"))
    train = clips.source.isin(("curated", "noisy", "negative"))
    assert (out.fold[~train] == -1).all()
    assert set(out.fold[train]) == set(range(n_folds))
    assert (out[train].groupby("group").fold.nunique() == 1).all()
    mixed = assign_folds(clips.sample(frac=1, random_state=seed), n_folds=n_folds, seed=seed)
    assert mixed.fold.sort_index().equals(out.fold)


def test_the_seed_matters():
    clips = table(0, n_groups=1000)
    assert not assign_folds(clips, n_folds=5, seed=0).fold.equals(assign_folds(clips, n_folds=5, seed=1).fold)


def test_other_rows_do_not_move_the_folds():
    "The same training clips get the same folds whether the test part was loaded or not."
    clips = table(1, n=200, n_groups=1000)
    train = clips[clips.source.isin(("curated", "noisy", "negative"))]
    folds = assign_folds(clips, n_folds=5, seed=0).fold
    assert folds[train.index].equals(assign_folds(train, n_folds=5, seed=0).fold)


def test_real_labels_are_spread_evenly(sample_set):
    clips = load_competition(sample_set("freesound")).clips
    counts = fold_table(assign_folds(clips, n_folds=5, seed=0))
    assert counts.to_numpy().sum() == clips.labels.map(len).sum()
    assert len(counts) == 40 and (counts.max(axis=1) - counts.min(axis=1)).max() <= 2
    assert (counts.max(axis=1) - counts.min(axis=1)).mean() < 1.2


def test_large_groups_do_not_fill_one_fold():
    "Forty speakers, one in eight of them with forty clips: fold sizes stay within a fifth of the mean."
    g = np.random.default_rng(0)
    size = [40 if i % 8 == 0 else 3 for i in range(80)]
    group = [f"s{i}" for i, n in enumerate(size) for _ in range(n)]
    ids = [str(i) for i in range(len(group))]
    clips = clip_table(
        ids, path=ids, labels=[(str(g.choice(list(LABELS))),) for _ in ids], source="curated", group=group
    )
    for seed in range(5):
        sizes = assign_folds(clips, n_folds=5, seed=seed).fold.value_counts()
        assert sizes.min() > 0.8 * len(ids) / 5 and sizes.max() < 1.2 * len(ids) / 5, sizes.to_dict()


def test_twins_across_sources_share_a_fold():
    clips = table(2, n=80, n_groups=10**6, sources=("curated", "noisy"))
    clips["group"] = [f"g{i // 2}" for i in range(80)]
    out = assign_folds(clips, n_folds=4, seed=0)
    assert (out.fold[::2].to_numpy() == out.fold[1::2].to_numpy()).all()


@pytest.mark.parametrize(
    "n_folds,groups,said", [(1, 5, "too few"), (0, 5, "too few"), (6, 5, "there are 5"), (2, 0, "there are 0")]
)
def test_impossible_numbers_of_folds(n_folds, groups, said):
    ids = [str(i) for i in range(10)] if groups else ["0"]
    clips = clip_table(ids, path=ids, labels=[("A",) if groups else ()] * len(ids), source="curated" if groups else "test",
                       group=[f"g{i % max(groups, 1)}" for i in range(len(ids))])  # fmt: skip
    with pytest.raises(AudiotagError, match=said):
        assign_folds(clips, n_folds=n_folds, seed=0)


def test_rare_labels_are_named(capfd):
    ids = [str(i) for i in range(10)]
    clips = clip_table(ids, path=ids, labels=[("Rare",)] * 2 + [("Often",)] * 8, source="curated")
    assign_folds(clips, n_folds=5, seed=0)
    said = capfd.readouterr().err
    assert "Rare (curated, 2)" in said and "Often" not in said


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda c: c.assign(fold=np.where(c.index == 7, -1, c.fold)), "without a fold: '0007.wav'"),
        (lambda c: c.assign(fold=np.where(c.index == 7, c.fold + 1, c.fold)), "'g3'"),
        (lambda c: c.assign(source=np.where(c.group == "g3", "test", c.source)), "not trained on"),
    ],
)
def test_bad_folds_are_refused(change, said):
    clips = table(3, n=20, n_groups=5, sources=("curated",))
    clips["group"] = [f"g{i // 2}" for i in range(20)]
    good = assign_folds(clips, n_folds=3, seed=0)
    assert check_folds(good) is good
    with pytest.raises(AudiotagError, match=said):
        check_folds(change(good))


def test_no_speaker_is_in_two_folds(sample_set):
    clips = load_competition(sample_set("speech"), "universal2020").clips
    folded = assign_folds(clips, n_folds=5, seed=0)
    train = folded[folded.fold >= 0]
    speaker = train.path.map(lambda p: p.rsplit("/", 1)[1].split("_nohash_")[0])
    assert (train.groupby(speaker).fold.nunique() == 1).all() and speaker.nunique() > 300
    sizes = train.fold.value_counts()
    assert sizes.max() < 1.15 * len(train) / 5 and sizes.min() > 0.85 * len(train) / 5
    assert (fold_table(folded) > 20).all(axis=None)


# --- clips that belong together -------------------------------------------------------------------


def own_groups(n, **columns):
    ids = [f"{i:03d}" for i in range(n)]
    return clip_table(ids, path=ids, labels=[(LABELS[i % 2],) for i in range(n)], source="curated").assign(**columns)


def test_copies_of_a_recording_share_a_fold(tmp_path):
    "A copy at another level and cut, of a curated clip among the noisy ones; nothing else is joined."
    data = make_competition(tmp_path / "data", seed=3, n_curated=16, n_noisy=16, n_test=0, sample_rate=16000)
    curated, noisy = (sorted((data / part).iterdir()) for part in ("train_curated", "train_noisy"))
    for original, copy in ((curated[0], noisy[0]), (curated[1], curated[2])):
        wave, rate = sf.read(original)
        sf.write(copy, 0.4 * wave[len(wave) // 5 :], rate)
    clips = load_competition(data).clips
    grouped = join_groups(clips, n_folds=2)
    group = grouped.clips.set_index("clip_id").group
    assert group[curated[0].name] == group[noisy[0].name] and group[curated[1].name] == group[curated[2].name]
    assert group.nunique() == len(clips) - 2 and clips.group.nunique() == len(clips), "the table given is not changed"
    assert "4 recordings are near-duplicates" in grouped.notes[0] and "author and site" in grouped.notes[1]
    assert join_groups(clips, n_folds=2, by=()).clips.group.equals(clips.group)


def test_given_groups_are_told_and_nobody_misses_the_author():
    clips = own_groups(40)
    assert "author and site of the clips are not known" in join_groups(clips, n_folds=2, by=("author", "site")).notes[0]
    given = clips.assign(group=[f"speaker {i // 4}" for i in range(40)])
    assert join_groups(given, n_folds=2, by=("author", "site")).notes == (
        "10 given groups of 40 clips: each stays in one fold",
    )


def test_authors_and_sites_share_a_fold_unless_they_hold_a_class():
    clips = own_groups(40, author=[f"a{i // 4}" for i in range(40)], site=[""] * 36 + ["pond"] * 4)
    grouped = join_groups(clips, n_folds=4, by=("author", "site"))
    assert (grouped.clips.groupby("author").group.nunique() == 1).all() and grouped.clips.group.nunique() == 10
    assert "10 authors of 40 clips: each stays in one fold" in grouped.notes
    alone = clips.assign(author=np.where(clips.labels == ("A",), "ann", ""))  # all clips of the class A
    grouped = join_groups(alone, n_folds=2, by=("author",))
    assert grouped.clips[alone.author == "ann"].group.value_counts().max() == 10, "half of the class"
    assert "except for 1 with too many clips or most of a class" in grouped.notes[0]
    folded = assign_folds(grouped.clips, n_folds=2, seed=0)
    assert (fold_table(folded) > 0).all(axis=None)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), n_folds=st.integers(2, 6), n_authors=st.integers(1, 20))
def test_groups_never_outgrow_a_fold(seed, n_folds, n_authors):
    g = np.random.default_rng(seed)
    clips = own_groups(36, author=[f"a{i}" for i in g.integers(0, n_authors, 36)])
    joined = join_groups(clips, n_folds=n_folds, by=("author",)).clips
    assert joined.group.value_counts().max() <= 36 // n_folds
    assert set(assign_folds(joined, n_folds=n_folds, seed=seed).fold) == set(range(n_folds))


def test_of_a_large_collection_the_first_seconds_are_compared(tmp_path, monkeypatch):
    "Three minutes of noise with a limit of .01 hours; the copies begin alike, so they are found in their first seconds."
    monkeypatch.setattr("audiotag.data.folds.COMPARED_HOURS", 0.012)
    g = np.random.default_rng(0)
    waves = [0.1 * g.standard_normal(16000 * 60).astype(np.float32) for _ in range(2)]
    for name, wave in zip("abc", [*waves, 0.5 * waves[0]]):
        sf.write(tmp_path / f"{name}.wav", wave, 16000)
    paths = [str(tmp_path / f"{name}.wav") for name in "abc"]
    grouped = join_groups(clip_table(list("abc"), path=paths, labels=[("A",)] * 3, source="curated"), n_folds=2)
    assert "the first 14 s were compared" in grouped.notes[0]
    assert list(zip(grouped.pairs.a, grouped.pairs.b)) == [("a", "c")]
