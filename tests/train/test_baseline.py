"The baseline on every layout of the sample sets, its memory, and what it must not touch."

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from audiotag.train.baseline import clip_statistics, fold_forests, forest_scores, run_baseline
from audiotag.cli import main
from audiotag.data.competitions import class_prior, load_competition
from audiotag.core.errors import AudiotagError
from audiotag.data.submission import check_submission
from audiotag.audio.synth import make_competition, make_rainforest


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_competition(
        tmp_path_factory.mktemp("toy") / "data", seed=2, n_curated=40, n_noisy=16, n_test=6, sample_rate=16000
    )


@pytest.mark.parametrize(
    "name, layout, at_least",
    [
        ("speech", "universal2020", 0.3),
        # these look for near-duplicates in real recordings, half a minute each: at night
        pytest.param("freesound", "freesound2019", 0.55, marks=pytest.mark.long),
        # of 33 recordings: a forest is no better than random scores there, .45
        pytest.param("rainforest", "rainforest2021", 0.2, marks=pytest.mark.long),
        pytest.param("soundscape", "birdclef2024", 0.7, marks=pytest.mark.long),
    ],
)
def test_every_layout_gets_a_score_and_a_valid_submission(sample_set, tmp_path, capsys, name, layout, at_least):
    data, out = sample_set(name), tmp_path / "submission.csv"
    assert main(["baseline", "--data", str(data), "--layout", layout, "--out", str(out), "--trees", "20"]) == 0
    said = capsys.readouterr().out
    assert max(float(line.split(": ")[1]) for line in said.splitlines() if " out of fold" in line) > at_least, said
    assert not [f for f in check_submission(out, load_competition(data, layout)) if f.kaggle]


def test_the_same_seed_gives_the_same_bytes(toy, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert (
            main(["baseline", "--data", str(toy), "--out", str(tmp_path / name), "--trees", "10", "--seed", str(seed)])
            == 0
        )
    a, b, c = ((tmp_path / n).read_bytes() for n in "abc")
    assert a == b != c


def test_broken_files_are_named_and_get_the_prior(toy, tmp_path):
    data = Path(shutil.copytree(toy, tmp_path / "data"))
    comp = load_competition(data)
    gone, cut = comp.of("test").path[0], comp.of("curated").path[0]
    Path(gone).unlink()
    Path(cut).write_bytes(b"RIFF")
    comp = load_competition(data)
    found = run_baseline(comp, trees=10, n_folds=3)
    assert set(found.unreadable) == {Path(gone).name, Path(cut).name} and len(found.test) == 6
    np.testing.assert_allclose(found.test.loc[Path(gone).name], class_prior(comp.clips, comp.classes))
    assert Path(cut).name not in found.oof.index and len(found.oof) == 39
    others = found.test.drop(Path(gone).name)
    assert np.isfinite(found.test.to_numpy()).all() and others.drop_duplicates().shape == others.shape


def test_copies_of_a_clip_are_in_one_fold(toy, tmp_path, monkeypatch):
    "As in `audiotag train`, or the forest looks better beside the network than it is."
    data, folds = Path(shutil.copytree(toy, tmp_path / "data")), {}
    table = next(data.glob("train_curated.csv"))
    one = load_competition(data).of("curated").iloc[0]
    wave, rate = sf.read(one.path)
    for k in range(4):  # louder and softer: files of the same bytes are one group as soon as they are loaded
        sf.write(Path(one.path).parent / f"copy{k}.wav", wave * (0.9 - 0.2 * k), rate)
    copies = "".join(f'copy{k}.wav,"{",".join(one.labels)}"\n' for k in range(4))
    table.write_text(table.read_text().rstrip("\n") + "\n" + copies)

    def look(clips, *args, **kwargs):
        folds.update(zip(clips.clip_id, clips.fold))
        return fold_forests(clips, *args, **kwargs)

    monkeypatch.setattr("audiotag.train.baseline.fold_forests", look)
    run_baseline(load_competition(data), trees=10, n_folds=3)
    assert len({folds[name] for name in (one.clip_id, *(f"copy{k}.wav" for k in range(4)))}) == 1


def test_boxes_are_scored_as_the_recordings_that_the_test_asks_for(tmp_path):
    comp = load_competition(make_rainforest(tmp_path / "data", seed=3, n_train=9, n_test=3, seconds=8.0))
    found = run_baseline(comp, trees=10, n_folds=3)
    assert sorted(found.oof.index) == sorted({Path(p).stem for p in comp.of("curated").path})
    assert len(found.oof) < len(comp.of("curated"))


def test_a_missing_library_is_no_fault_of_the_clips(toy, tmp_path, monkeypatch):
    def load(*a, **k):
        raise ModuleNotFoundError("No module named 'soxr'")

    monkeypatch.setattr("audiotag.audio.features.read_audio", load)
    with pytest.raises(AudiotagError, match="library is missing: No module named 'soxr'"):
        run_baseline(load_competition(toy), trees=10, n_folds=3)


def test_somebody_elses_file_is_left_alone(toy, tmp_path, capsys):
    thesis = tmp_path / "thesis.csv"
    thesis.write_text("chapter,pages\n1,30\n")
    assert main(["baseline", "--data", str(toy), "--out", str(thesis), "--trees", "2"]) == 2
    assert thesis.read_text() == "chapter,pages\n1,30\n" and "not a submission" in capsys.readouterr().err


def test_without_test_clips_no_submission_is_written(toy, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(toy, data, ignore=shutil.ignore_patterns("test", "test_*"))
    table = pd.read_csv(data / "sample_submission.csv")
    table.head(0).to_csv(data / "sample_submission.csv", index=False)
    out = tmp_path / "submission.csv"
    assert main(["baseline", "--data", str(data), "--out", str(out), "--trees", "5"]) == 0
    said = capsys.readouterr().out
    assert "has no test clips: no submission is written" in said and "Kaggle" not in said and "0 test" not in said
    assert not out.exists()


def test_trees_in_small_lots_are_a_forest():
    g = np.random.default_rng(0)
    y = np.eye(4, dtype=np.float32)[g.integers(4, size=200)]
    x = (y @ g.normal(size=(4, 30)) + g.normal(size=(200, 30))).astype(np.float32)
    p = forest_scores(x[:150], y[:150], x[150:], trees=50, at_once=7)
    assert (p.argmax(1) == y[150:].argmax(1)).mean() > 0.8 and p.min() >= 0 and p.max() <= 1
    np.testing.assert_allclose(p, forest_scores(x[:150], y[:150], x[150:], trees=50, at_once=50), atol=0.35)
    never = np.concatenate([y, np.zeros((200, 1), np.float32)], 1)
    assert not forest_scores(x, never, x, trees=3)[:, 4].any()


def test_no_forest_is_asked_about_a_clip_it_learned():
    "Labels that are pure noise: a forest that had seen them would know them by heart."
    g = np.random.default_rng(0)
    y = np.eye(5, dtype=np.float32)[g.integers(5, size=100)]
    clips = pd.DataFrame({"source": "curated", "fold": np.arange(100) % 4})
    (score, p, new), *rest = fold_forests(
        clips, g.normal(size=(100, 20)), y, metric="accuracy", x_new=np.zeros((3, 20)), trees=40
    ).values()
    assert score < 0.4 and p.shape == (100, 5) and new.shape == (3, 5) and not rest


def test_statistics_by_hand():
    x = np.array([[0.0, 1, 2, 3], [5, 5, 5, 5]], dtype=np.float32)
    got = clip_statistics(x).reshape(9, 2)
    np.testing.assert_allclose(got[:, 0], [1.5, np.std([0, 1, 2, 3]), 1, 0, 0.3, 0.75, 1.5, 2.25, 3], rtol=1e-6)
    np.testing.assert_allclose(got[:, 1], [5, 0, 0, 5, 5, 5, 5, 5, 5])
    assert len(clip_statistics((x, np.ones((128, 12)), np.ones((1, 1))))) == (2 + 12 + 1) * 9


def test_a_competition_without_training_clips_is_refused(toy):
    with pytest.raises(AudiotagError, match="no curated clips"):
        run_baseline(load_competition(toy, train=False))
