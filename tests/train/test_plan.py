"The plan of a run against the run: its counts, its disk, and what the progress lines say is left."

import re
import shutil

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from audiotag.audio.features import LogMel
from audiotag.core.files import read_json, write_json
from audiotag.core.progress import duration
from audiotag.data.competitions import clip_table, load_competition
from audiotag.train.plan import MeasuredPace, measure_features, measure_pace, plan_competition, plan_run
from audiotag.train.run_folder import Run, _time_left
from tests.tiny import called, train_words

PACE = MeasuredPace(
    start=1.0,
    epoch=2.0,
    batch=0.5,
    batch_size=8,
    valid=0.01,
    score=0.1,
    score_unlabeled=0.0,
    weights=10**6,
    memory=10**9,
    gpu_memory=0,
    took=0.0,
)


def test_the_sum_is_that_of_its_parts(tiny_run):
    run = Run(tiny_run / "run")
    plan = plan_run(run, pace=PACE)
    for name in ("noisy", "curated"):  # the stages whose clips are known
        stage, found = run.recipe.stage(name), plan.stages[name]
        assert found["clips"] == len(read_json(run.fold_path(name, 0) / "trained_on.json"))
        assert found["epochs"] == len(read_json(run.fold_path(name, 0) / "history.json"))
        batches = max(1, found["clips"] // stage.batch_size)
        valid = ((run.rows.fold == 0) & (run.rows.source == "curated")).sum()
        # a batch of this stage is of another size than the measured one
        epoch = 2.0 + batches * 0.5 * min(found["clips"], stage.batch_size) / 8 + valid * 0.01
        assert found["epoch_s"] == pytest.approx(epoch)
        assert found["fold_s"] == pytest.approx(1.0 + stage.epochs * epoch + len(run.clips) / 2 * 0.1)
    assert plan.seconds == pytest.approx(2 * sum(s["fold_s"] for s in plan.stages.values()))
    both = plan_run(run, pace=PACE, parallel=2)
    assert both.seconds == pytest.approx(plan.seconds / 2) and both.memory == 2 * plan.memory
    some = plan_run(run, pace=PACE, kept={"noisy": [0, 1], "curated": [0]})
    trained = plan.stages["curated"]["fold_s"] + sum(2 * plan.stages[n]["fold_s"] for n in ("agreed", "certain"))
    assert some.seconds == pytest.approx(trained) and "noisy: kept" in str(some) and "(1 fold × " in str(some)
    epochs = run.recipe.stage("curated").epochs
    assert f"1 fold × {epochs} epochs ×" in str(some)
    scores = len(run.clips) * len(run.classes) * 4 * 4
    assert plan.disk == (4 * 2 + 3) * 10**6 + scores
    assert "TOO SMALL" not in str(plan)


def test_what_is_left_is_what_has_no_scores(tiny_run, tmp_path):
    run = Run(shutil.copytree(tiny_run / "run", tmp_path / "run"))
    stages = {s.name: dict(epochs=4, epoch_s=10.0, fold_s=50.0) for s in run.recipe.stages}
    write_json(run.folder / "plan.json", {"stages": stages, "parallel": 1})
    assert _time_left(run, "certain", 1, 3, 20.0) == ", 70 s left of the run"  # three epochs, and 10 s of scoring
    for k in (0, 1):
        (run.fold_path("certain", k) / "oof.parquet").unlink()
    # the fold that waits takes twice as long as planned, like this one
    assert _time_left(run, "certain", 1, 3, 20.0) == f", {duration(70 + 100)} left of the run"
    kept = {"certain": [0]}  # from an earlier run: it will be there without training
    write_json(run.folder / "plan.json", {"stages": stages, "parallel": 1, "kept": kept})
    assert _time_left(run, "certain", 1, 3, 20.0) == ", 70 s left of the run"
    (run.folder / "plan.json").unlink()
    assert _time_left(run, "certain", 1, 3, 20.0) == ""


def test_a_run_prints_its_plan_and_every_epoch_what_is_left(tiny_run):
    lines = (tiny_run / "stderr").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("plan for this machine"))
    epochs = [i for i, line in enumerate(lines) if re.search(r"epoch \d+/\d+:", line)]
    assert at < epochs[0] and len(epochs) == 4 * 2 * 2
    assert all(re.search(r", \d[\d.]* (s|min|h) left of the run$", lines[i]) for i in epochs)
    assert read_json(tiny_run / "run" / "plan.json")["parallel"] == 1


def test_measuring_changes_nothing_and_leaves_nothing(tiny_run):
    run = Run(tiny_run / "run")
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    pace = measure_pace(run)
    assert {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()} == before
    assert pace.batch > 0 and pace.batch_size == 16 and pace.score > 0
    size = (run.fold_path("noisy", 0) / "weights.safetensors").stat().st_size
    assert abs(pace.weights - size) < 100


def test_a_plan_before_the_run_writes_nothing(tiny_run, tiny_data, tmp_path):
    done = called(*train_words(tiny_data, tmp_path / "run"), "--plan")
    assert done.returncode == 0, done.stderr
    assert "features:" in done.stdout and "in all:" in done.stdout and not (tmp_path / "run").exists()
    run = Run(tiny_run / "run")
    found = plan_competition(run.planned, load_competition(tiny_data), tmp_path / "run")
    store = sum(p.stat().st_size for p in (run.folder / "store" / "shards").glob("*.npy"))
    assert 0.6 < found.features["bytes"] / store < 1.6
    assert found.stages["noisy"]["epochs"] == 2 and abs(found.stages["noisy"]["clips"] - 20) <= 4


def test_a_few_long_recordings_among_many_short_clips(tmp_path):
    "Eight recordings of a minute are a third of the hours; each source is measured by itself."
    fe = LogMel(sample_rate=8000, n_fft=256, hop_length=80, n_mels=8, f_max=4000.0)
    for name, seconds in (("short", 1), ("long", 60)):
        sf.write(tmp_path / f"{name}.wav", np.random.default_rng(0).normal(size=seconds * 8000) * 0.1, 8000)
    many, few = 1000, 8
    short = clip_table(
        [f"s{i}" for i in range(many)], path=[tmp_path / "short.wav"] * many, labels=[("a",)] * many, source="curated"
    )
    long = clip_table(
        [f"l{i}" for i in range(few)], path=[tmp_path / "long.wav"] * few, labels=[()] * few, source="unlabeled"
    )
    clips = pd.concat([short, long], ignore_index=True)
    found = measure_features(clips, fe, headers=50)
    assert found["bytes"] == pytest.approx(
        (many * fe.n_frames(fe.sample_rate) + few * fe.n_frames(60 * fe.sample_rate)) * 8 * 2, rel=1e-6
    )
    assert found["seconds"] > 0 and measure_features(clips[:0], fe) == {"seconds": 0, "bytes": 0}
