"Post-processing against loops; recordings never mixed; the tuner's promise; steps that cannot help are named."

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiotag.core.errors import AudiotagError
from audiotag.core.config import config_from_dict
from audiotag.core.metrics import METRICS, macro_auc
from audiotag.infer.postprocess import (
    FAMILIES,
    FileMax,
    Halve,
    NeighbourMax,
    Power,
    Smooth,
    Step,
    apply_steps,
    cannot_change,
    same_order,
    tune,
)

STEPS = [
    Smooth(),
    Smooth(kernel=(0.0, 1.0, 3.0)),
    Smooth(kernel=(1.0,)),
    NeighbourMax(),
    NeighbourMax(reach=3, share=1.0),
    Halve(),
    Halve(cutoff=0.5, factor=0.0),
    FileMax(),
    FileMax(power=0.4),
    Power(),
    Power(power=0.3),
]


def table(seed, n=60, classes=4, groups=7):
    g = np.random.default_rng(seed)
    return g.random((n, classes)) * 0.4, g.choice([f"r{i}" for i in range(groups)], n)


def in_words(step, c):
    "One class of one recording, window by window."
    out = []
    for i in range(len(c)):
        if isinstance(step, Smooth):
            h = len(step.kernel) // 2
            pairs = [(w, c[i + d]) for d, w in zip(range(-h, h + 1), step.kernel) if 0 <= i + d < len(c)]
            out.append(sum(w * v for w, v in pairs) / sum(w for w, _ in pairs))
        elif isinstance(step, NeighbourMax):
            out.append((1 - step.share) * c[i] + step.share * max(c[max(0, i - step.reach) : i + step.reach + 1]))
        elif isinstance(step, Halve):
            out.append(c[i] * (1 if max(c) > step.cutoff else step.factor))
        elif isinstance(step, FileMax):
            out.append(c[i] * max(c) ** step.power)
        else:
            out.append(c[i] ** step.power)
    return out


@pytest.mark.parametrize("step", STEPS, ids=str)
@pytest.mark.parametrize("seed,groups", [(0, 7), (1, 60), (2, 1)])
def test_each_step_in_words_whatever_the_order_of_recordings(step, seed, groups):
    p, group = table(seed, groups=groups)
    before = p.copy()
    out = step(p, group)
    for name in set(group):
        rows = np.flatnonzero(group == name)
        for c in range(p.shape[1]):
            np.testing.assert_allclose(out[rows, c], in_words(step, list(p[rows, c])), atol=1e-12)
    assert (p == before).all() and out.dtype == np.float64 and (out >= 0).all() and (out <= 1).all()
    assert config_from_dict(step.to_dict()) == step


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_a_recording_s_scores_do_not_depend_on_the_others(step):
    p, group = table(3)
    rows = group == "r2"
    np.testing.assert_array_equal(step(p, group)[rows], step(p[rows], group[rows]))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), step=st.sampled_from(STEPS))
def test_probabilities_stay_probabilities(seed, step):
    g = np.random.default_rng(seed)
    p = np.clip(g.normal(0.5, 0.6, (g.integers(1, 30), 3)), 0, 1)
    out = step(p, g.integers(0, 4, len(p)))
    assert np.isfinite(out).all() and (out >= 0).all() and (out <= 1).all()


def test_steps_are_applied_in_their_order():
    p, group = table(4)
    np.testing.assert_array_equal(
        apply_steps((Smooth(), Halve(cutoff=0.2)), p, group), Halve(cutoff=0.2)(Smooth()(p, group), group)
    )
    assert not np.allclose(
        apply_steps((Smooth(), Halve(cutoff=0.2)), p, group), apply_steps((Halve(cutoff=0.2), Smooth()), p, group)
    )
    np.testing.assert_array_equal(apply_steps((), p, group), p)
    assert apply_steps(STEPS, p[:0], group[:0]).shape == (0, 4)


@pytest.mark.parametrize(
    "p,group,said",
    [
        (np.zeros(4), ["a"] * 4, "groups"),
        (np.zeros((4, 2)), ["a"] * 3, "groups"),
        (np.full((2, 2), np.nan), ["a"] * 2, "probabilities"),
        (np.full((2, 2), 1.01), ["a"] * 2, "probabilities"),
        (np.full((2, 2), -0.01), ["a"] * 2, "probabilities"),
    ],
)
def test_what_is_no_table_is_refused(p, group, said):
    for step in (*STEPS, lambda p, g: apply_steps((), p, g)):
        with pytest.raises(AudiotagError, match=said):
            step(p, group)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Smooth(kernel=()),
        lambda: Smooth(kernel=(1.0, float("nan"), 1.0)),
        lambda: Smooth(kernel=(1.0, float("inf"), 1.0)),
        lambda: NeighbourMax(reach=0),
        lambda: NeighbourMax(share=1.5),
        lambda: Halve(cutoff=-0.1),
        lambda: Halve(factor=2.0),
        lambda: FileMax(power=-1.0),
        lambda: Power(power=0.0),
        lambda: Power(power=float("nan")),
    ],
)
def test_settings_out_of_range(bad):
    with pytest.raises(AudiotagError):
        bad()


# --- what a metric cannot see -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_a_monotone_step_changes_no_metric(metric):
    g = np.random.default_rng(6)
    p, group = table(6)
    truth = g.random(p.shape) < 0.3
    truth[:, 0] |= ~truth.any(1)
    of = METRICS[metric]
    for step in STEPS:
        q = step(p, group)
        if cannot_change(step, metric):
            assert of(truth, q) == pytest.approx(of(truth, p), abs=1e-12) and same_order(p, q, metric=metric)
        elif same_order(p, q, metric=metric):
            assert of(truth, q) == pytest.approx(of(truth, p), abs=1e-12)
    assert {type(o).__name__ for o in STEPS if cannot_change(o, metric)} == {"Power"}


def test_the_order_that_counts_is_the_metric_s():
    p, _ = table(7)
    by_class, by_row = p * [1, 2, 0.5, 1], p * np.linspace(0.5, 1, len(p))[:, None]
    assert same_order(p, by_class, metric="macro_auc") and not same_order(p, by_class, metric="lwlrap")
    assert same_order(p, by_row, metric="lwlrap") and not same_order(p, by_row, metric="macro_auc")
    tied = np.round(p, 1)
    assert not same_order(p, tied, metric="macro_auc")  # new ties change it


# --- the tuner --------------------------------------------------------------------------------------------------------


def bursts(seed, n=30, windows=12, classes=5):
    g = np.random.default_rng(seed)
    truth = np.zeros((n, windows, classes), bool)
    for r in range(n):
        for c in np.flatnonzero(g.random(classes) < 0.4):
            s = g.integers(windows)
            truth[r, s : s + g.integers(2, 6), c] = True
    p = 1 / (1 + np.exp(2.5 - 2 * truth - g.normal(0, 1.5, truth.shape)))
    names = np.repeat([f"r{i}" for i in range(n)], windows)
    return p.reshape(-1, classes), truth.reshape(-1, classes), names, np.repeat(np.arange(n) % 5, windows)


def test_the_tuner_finds_what_helps_and_says_how_much():
    p, truth, group, folds = bursts(0)
    tuned = tune(p, truth, group, folds=folds, draws=100)
    assert any(isinstance(o, Smooth) for o in tuned.steps)
    row = tuned.table.loc["smooth"]
    assert (
        row.low > 0
        and row.low <= row.gain <= row.high
        and row.gain == pytest.approx(row.macro_auc - macro_auc(truth, p), abs=1e-12)
    )
    new = bursts(1, n=300)
    found = macro_auc(new[1], apply_steps(tuned.steps, new[0], new[2])) - macro_auc(new[1], new[0])
    told = macro_auc(truth, tuned.scores) - macro_auc(truth, p)
    assert found > 0.5 * told > 0
    again = tune(p, truth, group, folds=folds, draws=100)
    assert again.table.equals(tuned.table) and again.steps == tuned.steps


def test_a_fold_is_judged_by_the_choice_of_the_others():
    "Fold 3 is large and its calls alternate, so that smoothing hurts there and on the whole; the others, who want it, decide for it."
    p, truth, group, folds = bursts(2)
    g = np.random.default_rng(0)
    t = np.tile(np.arange(12)[:, None] % 2 == g.integers(2, size=5), (100, 1))
    q = 1 / (1 + np.exp(2.5 - 2 * t - g.normal(0, 1.5, t.shape)))
    p, truth, group = (
        np.vstack([p, q]),
        np.vstack([truth, t]),
        np.r_[group, np.repeat([f"x{i}" for i in range(100)], 12)],
    )
    folds = np.r_[folds, np.full(1200, 3)]
    wide = Smooth(kernel=(1.0, 1.0, 1.0))
    tuned = tune(p, truth, group, folds=folds, families={"smooth": (wide,)}, draws=20)
    assert tuned.table.folds["smooth"] == "1 of 5" and tuned.table.gain["smooth"] < 0 and tuned.steps == ()
    wanted = np.where((folds == 3)[:, None], wide(p, group), p)
    assert tuned.table.macro_auc["smooth"] == pytest.approx(macro_auc(truth, wanted), abs=1e-12)


def test_noise_is_seldom_sold_as_gain():
    "Scores without any structure in time: no step is kept with an interval above 0 more often than its level allows."
    sold = 0
    for seed in range(12):
        p, truth, group, folds = bursts(seed + 10, n=20)
        order = np.random.default_rng(seed).permutation(len(p))
        tuned = tune(
            p[order],
            truth[order],
            group,
            folds=folds,
            families={"halve": FAMILIES["halve"], "maximum": FAMILIES["file maximum"]},
            draws=60,
        )
        sold += int((tuned.table.low > 0).sum())
    assert sold <= 3, sold


def test_what_cannot_help_is_named_and_not_tried():
    class Spy(Power):
        def of_recording(self, p):
            raise AssertionError("was tried")

    p, truth, group, folds = bursts(3)
    families = {
        "sharpen": (Spy(power=2.0), Spy(power=0.5)),
        "never": (Halve(cutoff=0.0),),
        "mixed": (Spy(power=2.0), Smooth()),
    }
    tuned = tune(p, truth, group, folds=folds, families=families, draws=20)
    assert "cannot change macro_auc" in tuned.table.note["sharpen"] and tuned.table.note["never"] in (
        "not chosen in any fold",
        "kept every order here",
    )
    assert (
        "1 alternatives cannot change macro_auc" in tuned.table.note["mixed"]
        and tuned.table.gain["sharpen"] == 0 == tuned.table.gain["never"]
    )
    assert [type(o) for o in tuned.steps] == [Smooth] and tuned.table.kept["sharpen"] == ""


@pytest.mark.parametrize(
    "change,said",
    [
        (lambda d: d.update(folds=np.zeros(len(d["p"]), int)), "one fold"),
        (lambda d: d.update(folds=np.arange(len(d["p"])) % 5), "lies in several folds"),
        (lambda d: d.update(truth=d["truth"][:-1]), "truth"),
        (lambda d: d.update(folds=d["folds"][:-1]), "folds"),
        (lambda d: d.update(metric="macro_acu"), "did you mean 'macro_auc'"),
        (lambda d: d.update(p=d["p"] * 3), "probabilities"),
    ],
)
def test_the_tuner_refuses(change, said):
    p, truth, group, folds = bursts(4, n=10)
    given_ = dict(p=p, truth=truth, group=group, folds=folds)
    change(given_)
    with pytest.raises(AudiotagError, match=said):
        tune(given_.pop("p"), given_.pop("truth"), given_.pop("group"), draws=5, **given_)


def test_a_step_without_a_rule_is_refused():
    with pytest.raises(AudiotagError, match="only the base"):
        Step()(np.zeros((2, 2)), ["a", "a"])


def test_steps_take_time_in_proportion_to_the_recordings():
    "Many competitions have ten thousand recordings of a window each: no step may look at all of them for each one."

    def run(n):
        p, group = np.random.default_rng(0).random((n, 3)), [f"{i}.wav" for i in range(n)]
        times = []
        for _ in range(3):
            begin = time.process_time()
            out = Halve()(p, group)
            times.append(time.process_time() - begin)
        assert np.allclose(out, np.where(p > 0.1, p, p / 2))
        return min(times)

    assert run(32_000) < 80 * run(1000)  # 33 times as measured; 180 times where each recording is looked up in all rows


def test_the_maximum_over_a_long_reach_needs_no_copy_of_each_window():
    p = np.random.default_rng(0).random((40, 5))
    for reach in (1, 3, 39, 1000):
        want = [p[max(0, i - reach) : i + reach + 1].max(0) for i in range(len(p))]
        assert np.array_equal(NeighbourMax(reach=reach, share=1.0).of_recording(p), want)
    tracemalloc.start()
    NeighbourMax(reach=1000).of_recording(np.zeros((1000, 50)))
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_a_kernel_is_no_longer_than_any_recording():
    with pytest.raises(AudiotagError, match="2001 at most"):
        Smooth(kernel=(1.0,) * 2003)
