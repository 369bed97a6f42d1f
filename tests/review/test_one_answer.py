"What report, check-cv, tune and train say about one run agrees, and names options that exist."

import json
import re
import warnings

import numpy as np
import pandas as pd
import pytest

from audiotag.core.errors import AudiotagError
from audiotag.core.progress import progress
from audiotag.data.folds import given_folds, with_groups
from audiotag.infer.postprocess import STEPS, FileMax, Halve, NeighbourMax, Power, Smooth, step_word, steps_named
from audiotag.review.cv_check import check_cv, score_intervals
from audiotag.review.experiments import run_table
from audiotag.review.report import plot_stages, report_html
from audiotag.train.run_folder import Run
from tests.tiny import called

PAIR = "a", "b", "offset_s", "overlap_s", "votes", "likeness"


@pytest.fixture(scope="module")
def run(tiny_run):
    return Run(tiny_run / "run")


def test_one_interval_for_one_run(run, monkeypatch):
    "The report takes the intervals of check-cv, which counts near-duplicates once."
    alone = re.findall(r"± [0-9.]+", report_html(run, clips=0))[0]
    first, second = run.clips.clip_id[run.clips.source == "curated"].iloc[:2]
    row = dict.fromkeys(PAIR, 0.9) | dict(a=first, b=second)
    pairs = pd.DataFrame([row], columns=list(PAIR))
    monkeypatch.setattr("audiotag.review.cv_check.near_duplicates", lambda clips, workers=1: pairs)
    check = check_cv(run)
    best = check.scores.iloc[-1]
    stated = f"± {(best.high - best.low) / 2:.3f}"
    assert stated in check.advice[0] and stated in report_html(run, clips=0).replace("\n", " ")
    check_file = run.folder / "trust.json"
    stale = json.loads(check_file.read_text())
    stale["scores"][-1]["score"] += 0.1
    check_file.write_text(json.dumps(stale))
    assert re.findall(r"± [0-9.]+", report_html(run, clips=0))[0] == alone
    check_file.unlink()


def test_the_table_of_runs_has_the_same_interval(run):
    row, scores = run_table([run.folder]).iloc[0], score_intervals(run).iloc[-1]
    assert (row.score, row.low, row.high) == pytest.approx((scores.score, scores.low, scores.high))


def test_leaks_are_answered_with_a_file_that_train_takes(run):
    curated = run.clips[run.clips.source == "curated"]
    metadata = pd.DataFrame({"clip_id": curated.clip_id, "author": [f"a{i % 3}" for i in range(len(curated))]})
    check = check_cv(run, clip_metadata=metadata)
    found = re.search(r"--groups (\S+)\.$", check.advice[1])
    assert found and "--groups" in called("train", "--help").stdout
    joined = with_groups(run.clips, found[1])
    of_author = dict(zip(metadata.clip_id, metadata.author))
    per_author = joined[joined.clip_id.isin(of_author)].groupby(joined.clip_id.map(of_author)).group.nunique()
    assert (per_author == 1).all() and joined.group.nunique() < run.clips.group.nunique()
    (run.folder / "groups.csv").write_text("clip_id,group\nnobody,1\n")
    with pytest.raises(AudiotagError, match="names no clip"):
        with_groups(run.clips, run.folder / "groups.csv")


def test_tune_names_steps_that_postprocess_takes(run):
    for step in (
        *STEPS.values(),
        FileMax(power=0.4),
        Smooth(kernel=(0.1, 0.8, 0.1)),
        NeighbourMax(share=0.25),
        Power(power=3.0),
    ):
        assert steps_named([step_word(step)]) == (step,)
    changed = Halve(**{k: v / 2 for k, v in Halve().to_dict().items() if isinstance(v, float)})
    assert steps_named([step_word(changed)]) == (changed,) and step_word(changed).count(":") >= 1
    said = called("tune", run.folder, "--draws", "20")
    assert said.returncode == 0
    words = said.stdout.rpartition("--postprocess ")[2].split()
    assert steps_named(words) is not None
    whole = run.scores(*run.recipe.members)[f"{run.recipe.metric} curated"]
    assert f"as in the stage table: {whole:.3f}" in said.stdout
    listed = re.search(r"gained: (.*)", said.stdout)[1]
    table = json.loads(called("tune", run.folder, "--draws", "20", "--json").stdout)
    sure = [r["kept"] for r in table["table"].values() if r["kept"] and r["low"] > 0]
    assert listed == (" ".join(sure) or "none")


def test_one_stage_makes_no_warning(run):
    from audiotag.review.cv_check import score_intervals

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_stages(run, score_intervals(run, n=5).iloc[:1])


def test_a_missing_bundle_is_named(tmp_path):
    said = called("infer", "--bundle", tmp_path / "no-such", "--data", tmp_path)
    assert said.returncode == 2 and "no such bundle" in said.stderr and "sample_submission" not in said.stderr


def test_slow_work_is_told_in_seconds_each(capsys, monkeypatch):
    clock = iter(np.arange(0, 1000, 40.0))
    monkeypatch.setattr("audiotag.core.progress.time.monotonic", lambda: float(next(clock)))
    list(progress(range(3), label="export", unit="members"))
    err = capsys.readouterr().err
    assert "40 s each" in err and "0.0 members" not in err


def test_given_folds_need_every_clip(run):
    assert given_folds(run.clips.assign(fold=-1)) is None
