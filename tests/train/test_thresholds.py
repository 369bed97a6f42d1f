"Thresholds against a search by hand, what a held-out fold may not change, and labels from a packed bundle."

import json

import numpy as np
import pandas as pd
import pytest

from audiotag.core.errors import AudiotagError
from audiotag.core.files import read_json
from audiotag.core.seeding import rng
from audiotag.infer.bundle import Bundle, reseal
from audiotag.infer.postprocess import NEVER, Thresholds
from audiotag.review.report import format_table
from audiotag.train.thresholds import ThresholdRule, _Chooser, choose_thresholds, readable_thresholds, threshold_rule
from tests.tiny import called

RULES = "f1", "precision=0.7", "recall=0.6", "global:f1", "global:precision=0.7", "global:recall=0.6"


def example(seed, n=120, classes=3, folds=4):
    g = rng(seed, "thresholds example")
    truth = g.random((n, classes)) < (0.4, 0.15, 0.1)
    p = 1 / (1 + np.exp(-(g.normal(size=(n, classes)) - 1 + truth * 1.5)))
    return p, truth, g.integers(folds, size=n)


def by_hand(rule, p, truth, candidates):
    "The chosen threshold of one column: the middle of the candidates that give the same labels as the best one."
    if not truth.any():
        return NEVER
    tried = []
    for t in candidates:  # falling
        given = p >= t
        tried.append(((given & truth).sum(), given.sum(), truth.sum()))
    hits, given, labeled = np.array(tried, float).T
    if rule.target == "f1":
        best = int(np.argmax(2 * hits / (given + labeled)))
    elif rule.target == "precision":
        enough = [i for i in range(len(hits)) if given[i] and hits[i] / given[i] >= rule.at_least - 1e-12]
        best = enough[-1] if enough else -1
    else:
        best = next(i for i in range(len(hits)) if hits[i] / labeled[i] >= rule.at_least - 1e-12)
    same = np.flatnonzero(given == given[best])
    return candidates[same[(len(same) - 1) // 2]] if best >= 0 else NEVER


def between(scores):
    s = np.unique(scores)[::-1]
    return [*((s[:-1] + s[1:]) / 2), 0.0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("word", RULES)
def test_each_fold_is_labeled_by_what_the_others_chose(word, seed):
    p, truth, folds = example(seed)
    rule = threshold_rule(word).replace(least=1)
    found = choose_thresholds(p, truth, list("abc"), folds, rule=rule, draws=0)
    given = np.zeros_like(truth)
    for k in [*range(4), None]:
        rest = folds != (-1 if k is None else k)
        if rule.one_for_all:
            t = by_hand(rule, p[rest].ravel(), truth[rest].ravel(), between(p))
            values = [t] * 3
        else:
            values = [by_hand(rule, p[rest, c], truth[rest, c], between(p[:, c])) for c in range(3)]
        if k is None:
            assert found.thresholds.values == pytest.approx(values)
        else:
            given[~rest] = p[~rest] >= values
    hits = (given & truth).sum(0)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(found.table.precision, hits / given.sum(0))
    np.testing.assert_allclose(found.table.recall, hits / truth.sum(0))
    np.testing.assert_allclose(found.table.f1, 2 * hits / (given.sum(0) + truth.sum(0)))
    row = found.overall.loc["all labels"]
    assert row.f1 == pytest.approx(2 * hits.sum() / (given.sum() + truth.sum()))
    assert found.overall.f1["mean of classes"] == pytest.approx(found.table.f1.mean())


@pytest.mark.parametrize("word", RULES)
def test_labels_of_a_held_out_fold_do_not_reach_its_thresholds(word):
    p, truth, folds = example(5)
    other = truth.copy()
    other[folds == 2] = ~other[folds == 2]
    a, b = (_Chooser(threshold_rule(word), p, t, folds)(np.ones(len(p)))[0] for t in (truth, other))
    assert (a[2] == b[2]).all() and (a[-1] != b[-1]).any()


def test_the_intervals_cover_the_choice():
    "They are wider than those of thresholds that stand still, and the threshold itself has one."
    p, truth, folds = example(1, n=200)
    found = choose_thresholds(p, truth, list("abc"), folds, draws=200)
    table, given = found.table, found.thresholds.apply(p)
    assert (table["threshold low"] < table["threshold high"]).all()
    draw, still = rng(0, "still"), []
    for _ in range(200):
        i = draw.integers(len(p), size=len(p))
        still.append(2 * (given & truth)[i].sum(0) / (given[i].sum(0) + truth[i].sum(0)))
    low, high = np.quantile(still, [0.025, 0.975], axis=0)
    assert (table["f1 high"] - table["f1 low"]).mean() > 1.1 * (high - low).mean()
    again = choose_thresholds(p, truth, list("abc"), folds, draws=200)
    pd.testing.assert_frame_equal(table, again.table)


def test_a_class_with_few_clips_takes_the_common_threshold():
    p, truth, folds = example(2)
    truth[:, 2] = False
    truth[:3, 2] = True
    found = choose_thresholds(p, truth, list("abc"), folds, draws=20)
    common = choose_thresholds(p, truth, list("abc"), folds, rule=ThresholdRule(one_for_all=True), draws=0)
    assert found.thresholds.values[2] == common.thresholds.values[0]
    shown = format_table(readable_thresholds(found.table))
    assert max(map(len, shown.splitlines())) <= 120 and "low" not in shown and "nan" not in shown
    assert list(found.table["chosen on"]) == ["its clips", "its clips", "all classes"]


def test_many_clips_are_not_tried_one_by_one_and_hardly_lose():
    g = rng(3, "many")
    truth = g.random((20000, 1)) < 0.02
    p = 1 / (1 + np.exp(-(g.normal(size=truth.shape) + 2.5 * truth)))
    found = choose_thresholds(p, truth, ["a"], np.arange(20000) % 5, draws=0).thresholds
    order = np.argsort(-p[:, 0])
    hits = truth[order, 0].cumsum()
    best = (2 * hits / (np.arange(20000) + 1 + truth.sum())).max()
    given = found.apply(p)
    assert 2 * (given & truth).sum() / (given.sum() + truth.sum()) > best - 0.002


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(folds=np.zeros(120, int)), "one fold only"),
        (dict(groups=np.zeros(120, int)), "several folds"),
        (dict(truth=np.zeros((120, 3))), "no clip has a label"),
        (dict(p=np.full((120, 3), 1.5)), "not probabilities"),
        (dict(classes=["a"]), "give (clips, classes)"),
    ],
)
def test_what_cannot_be_chosen_is_said(change, said):
    p, truth, folds = example(0)
    given = dict(p=p, truth=truth, classes=list("abc"), folds=folds) | change
    with pytest.raises(AudiotagError) as e:
        choose_thresholds(**given, draws=0)
    assert said in str(e.value)


# ---- of a run, in a bundle, at inference


def test_from_a_run_to_a_table_of_labels(tiny_run, tiny_data, tmp_path):
    done = called("thresholds", tiny_run / "run", "--rule", "global:recall=0.5", "--draws", 5, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    bundle = tmp_path / "bundle"
    done = called("pack", "weights", tiny_run / "run", bundle, "--thresholds", "global:recall=0.5")
    assert done.returncode == 0, done.stderr
    sealed = Bundle(bundle).thresholds
    assert sealed.to_dict() == found["thresholds"] and sealed.rule == "global:recall=0.5"

    out, labels = tmp_path / "submission.csv", tmp_path / "labels.csv"
    words = ["infer", "--bundle", bundle, "--data", tiny_data, "--out", out, "--labels"]
    done = called(*words, labels)
    assert done.returncode == 0, done.stderr
    scores, table = pd.read_csv(out), pd.read_csv(labels, keep_default_na=False)
    classes = list(scores.columns[1:])
    expected = [",".join(c for c in classes if row[c] >= sealed.values[0] - 1e-6) for _, row in scores.iterrows()]
    assert list(table.columns) == [scores.columns[0], "labels", "note"]
    assert list(table.iloc[:, 0]) == list(scores.iloc[:, 0]) and list(table.labels) == expected
    assert (table.note == "").all() and len(set(expected)) > 1

    assert "is the submission" in called(*words, out).stderr
    foreign = tmp_path / "foreign.csv"
    foreign.write_text("a,b\n")
    assert "not a table of labels" in called(*words, foreign).stderr and foreign.read_text() == "a,b\n"


def test_a_bundle_without_thresholds_says_how_to_get_them(tiny_run, tiny_data, tmp_path):
    done = called("pack", "weights", tiny_run / "run", tmp_path / "bundle", "--thresholds", "none")
    assert done.returncode == 0 and Bundle(tmp_path / "bundle").thresholds is None
    words = ["infer", "--bundle", tmp_path / "bundle", "--data", tiny_data, "--out", tmp_path / "s.csv"]
    done = called(*words, "--labels", tmp_path / "l.csv")
    assert done.returncode == 2 and "without thresholds" in done.stderr and "--thresholds f1" in done.stderr


def test_thresholds_of_other_classes_are_refused(tiny_run):
    bundle = Bundle(tiny_run / "tiny-weights")
    assert bundle.thresholds.rule == "f1"
    reseal(bundle, thresholds=Thresholds(values=(0.5,)).to_dict())
    with pytest.raises(AudiotagError, match="do not fit its classes"):
        Bundle(bundle.folder)
    assert read_json(bundle.folder / "bundle.json")["thresholds"]["values"] == [0.5]


def test_one_label_a_clip_takes_the_highest_score():
    g = np.random.default_rng(0)
    p, truth = g.random((60, 4)), np.eye(4, dtype=int)[g.integers(0, 4, 60)]
    choice = choose_thresholds(p, truth, list("abcd"), np.arange(60) % 3, rule=threshold_rule("top"), draws=5)
    given = choice.thresholds.apply(p)
    assert np.array_equal(given, p == p.max(1, keepdims=True))
    assert choice.thresholds.values == (0.0,) * 4 and choice.thresholds.at_most == 1
