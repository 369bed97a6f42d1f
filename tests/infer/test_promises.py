"Promised scores hold on new clips. All 200 competitions: tests/bench/promises.py, with results/promises.md."

import numpy as np
import pytest

from tests.bench.promises import competition, coverage
import pandas as pd

from audiotag.core.metrics import lwlrap
from audiotag.infer.ensemble import BEST, METHODS, describe_promise, ensemble_table, nested_choice


def test_the_choice_among_equals_is_not_flattered():
    "Ten members that know equally little: the best of them seems better, by luck; its nested score does not."
    g, flattered, honest = np.random.default_rng(0), [], []
    for _ in range(60):
        truth, folds = np.eye(5, dtype=bool)[g.integers(5, size=80)], np.arange(80) % 4
        scores = {str(i): g.random((80, 5)) for i in range(10)}
        flattered.append(max(lwlrap(truth, s) for s in scores.values()))
        honest.append(lwlrap(truth, nested_choice(scores, truth, folds)))
    chance = np.mean(1 / np.arange(1, 6))
    assert np.mean(flattered) > chance + 0.03
    assert abs(np.mean(honest) - chance) < 3 * np.std(honest) / np.sqrt(60)


def test_copies_in_two_folds_flatter_and_groups_do_not():
    "Two competitions: members that remember recordings promise .2 too much where copies lie in other folds."
    few = dict(n_test=500, draws=20)
    promised = {kept: pd.DataFrame([competition(s, grouped=kept, **few) for s in range(2)]) for kept in (True, False)}
    too_much = {kept: (found.lwlrap - found.truth).mean() for kept, found in promised.items()}
    assert too_much[False] > 0.15 and abs(too_much[True]) < 0.08, too_much


@pytest.mark.long
def test_the_printed_intervals_hold():
    found = coverage(pd.DataFrame([competition(s) for s in range(1000, 1030)]))
    printed = found.loc[["score", "gain over the best member"]]
    assert (printed.holds >= 0.83).all(), found  # 30 competitions: below .83 once in 200, if the truth is .95
    assert (printed["promised too much"] < 3 * printed["± (standard error)"]).all(), found


def test_the_table_ends_with_what_to_expect():
    g = np.random.default_rng(1)
    truth, folds = np.eye(4, dtype=bool)[g.integers(4, size=60)], np.arange(60) % 3
    members = {name: np.clip(0.4 * truth + 0.6 * g.random((60, 4)), 0, 1) for name in "ab"}
    methods = {name: METHODS[name] for name in ("mean", "geometric mean", "vote")}
    table = ensemble_table(members, truth, folds, methods=methods, draws=30)
    assert table.index[-1] == BEST and table.loc[BEST, "lwlrap"] <= table.lwlrap[list(methods)].max()
    said = describe_promise(table, "mean", chosen=True)
    assert f"{table.loc[BEST, 'lwlrap']:.3f}" in said and "over the best member" in said
    assert f"{table.loc['vote', 'lwlrap']:.3f}" in describe_promise(table, "vote", chosen=False)
    plain = ensemble_table(members, truth, folds, methods={"mean": METHODS["mean"]}, draws=30, intervals=["mean"])
    assert BEST not in plain.index and plain.low.notna().sum() == 1
