"The table of runs, leaderboard scores, and the sentence on which score to trust."

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.tiny import called

from audiotag.core.errors import AudiotagError
from audiotag.core.files import read_json, write_json
from audiotag.review.experiments import (
    board_correlation,
    compare_pair,
    describe_pair,
    leaderboard_scores,
    plot_board,
    readable_runs,
    record_score,
    run_table,
    trust_advice,
)
from audiotag.review.report import report_html
from audiotag.train.run_folder import Run


def history(score, public, half=0.01):
    index = [f"r{i}" for i in range(len(score))]
    table = pd.DataFrame({"score": score, "public": public}, index=index, dtype=float)
    return table.assign(low=table.score - half, high=table.score + half)


RISING = np.linspace(0.6, 0.8, 8)


@pytest.mark.parametrize(
    "table,said",
    [
        (history(RISING, RISING - 0.05), "agree: the correlation of 8 runs is 1.00"),
        (history(RISING, RISING - 0.05), "0.050 below the out-of-fold score on average"),
        (history(RISING, RISING[::-1]), "do not agree"),
        (history(RISING[:3], RISING[[0, 2, 1]]), "cannot be said yet"),
        (history(RISING[:2], RISING[:2]), "2 runs have a public score"),
        (history(RISING[:1], RISING[:1]), "1 run has a public score"),
        (history(RISING[:2], [np.nan, np.nan]), "No runs have a public score"),
        (history(RISING, RISING, half=0.3), "too alike to compare"),
        (history([0.7] * 4, [0.6] * 4), "all the same"),
    ],
)
def test_which_score_to_trust(table, said):
    assert said in trust_advice(table)


def test_the_interval_of_the_correlation():
    "Fisher's interval holds the true correlation of .8 in 19 of 20 histories."
    g, held = np.random.default_rng(0), 0
    for _ in range(300):
        x, noise = g.standard_normal((2, 10))
        r, low, high, n = board_correlation(history(0.7 + 0.01 * x, 0.7 + 0.01 * (0.8 * x + 0.6 * noise)))
        assert n == 10 and low <= r <= high
        held += low <= 0.8 <= high
    assert 0.92 <= held / 300 <= 0.98


OLD = Path(__file__).resolve().parent.parent / "old_files" / "flat-layout" / "run"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    "Three folders: a small run, the same with the scores turned round and another seed, and one that cannot be read."
    folder = tmp_path_factory.mktemp("runs")
    first, second, broken = (folder / name for name in ("run", "second", "broken"))
    shutil.copytree(OLD, first)
    shutil.copytree(first, second)
    about = read_json(second / "recipe.json")
    write_json(second / "recipe.json", {**about, "recipe": {**about["recipe"], "seed": 7}})
    for path in second.glob("*-*/fold-*/oof.parquet"):
        table = pd.read_parquet(path)
        table.iloc[:, 1:] = 1 - table.iloc[:, 1:]
        table.to_parquet(path)
    shutil.copytree(first, broken, ignore=shutil.ignore_patterns("store", "*-*"))
    (broken / "recipe.json").write_text("{}")
    return folder


def test_the_table_lists_every_run_with_what_was_changed(runs):
    record_score(runs / "run", public=0.7)
    assert (
        record_score(runs / "run", private=0.6)
        == {"public": 0.7, "private": 0.6}
        == leaderboard_scores(Run(runs / "run"))
    )
    table = run_table(runs, draws=30)
    table = table.rename(index=lambda path: Path(path).name)
    assert table.index[2] == "broken" and table.score.iloc[0] >= table.score.iloc[1], "the best first"
    first = table.loc["run"]
    assert first.low <= first.score <= first.high and (first.public, first.private) == (0.7, 0.6) and first.minutes > 0
    assert first.changed["n_folds"][1] == 2 and table.changed["second"]["seed"] == (0, 7)
    assert "not complete" in table.note["broken"] and "=" in readable_runs(table).changed["run"]
    assert "mixed" not in readable_runs(table) and readable_runs(table).note.str.len().max() <= 100
    assert plot_board(table).axes[0].get_xlabel() == "out of fold"


def test_the_score_in_mixed_recordings_stands_beside_that_of_clips(runs, monkeypatch):
    monkeypatch.setattr(Run, "mixed_score", lambda self, *stages: {"lwlrap mixed": 0.25})
    assert readable_runs(run_table([runs / "run"], draws=2)).mixed.iloc[0] == 0.25


def test_two_runs_are_compared_clip_by_clip(runs):
    found = compare_pair(Run(runs / "second"), Run(runs / "run"), n=100)
    assert found["changed"] == {"seed": (7, 0)} and found["clips"] == 12
    assert (
        found["gain"] == pytest.approx(found["after"] - found["before"])
        and found["low"] <= found["gain"] <= found["high"]
    )
    assert "how much a gain can be luck" in describe_pair(found)
    same = compare_pair(Run(runs / "run"), Run(runs / "run"), n=20)
    assert same["gain"] == 0 and same["verdict"] == "within the noise"


@pytest.mark.parametrize("score", [-0.1, 71, float("nan")])
def test_what_is_no_score_is_refused(runs, score):
    with pytest.raises(AudiotagError, match="is not a score"):
        record_score(runs / "run", public=score)
    with pytest.raises(AudiotagError, match="not a run folder"):
        record_score(runs, public=0.5)
    with pytest.raises(AudiotagError, match="no score was given"):
        record_score(runs / "run")


def test_the_commands(runs, tmp_path):
    assert called("score", runs / "second", "--public", ".5").returncode == 0
    done = called("runs", runs, "--out", tmp_path / "board.png")
    assert done.returncode == 0 and "2 runs have a public score" in done.stdout and (tmp_path / "board.png").exists()
    data = json.loads(called("runs", runs, "--json").stdout)
    assert len(data["runs"]) == 3 and data["scored_runs"] == 2 and data["correlation"] is None
    done = called("compare", runs / "second", runs / "run", "--json")
    assert json.loads(done.stdout)["verdict"] in ("a gain", "a loss", "within the noise")
    assert called("runs", tmp_path / "nothing").returncode == 2


def test_the_report_shows_the_runs_beside_it(runs):
    assert "Other runs" in report_html(Run(runs / "run"), clips=0)
