"Ways to combine: exact numbers, planted members, planted leaks, and what a stranger's combiner is refused for."

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from audiotag.core.errors import AudiotagError
from audiotag.core.config import config_from_dict
from audiotag.infer.ensemble import (
    METHODS,
    Blend,
    Given,
    Mean,
    EqualWeights,
    RankMean,
    Stack,
    Stacked,
    FittedWeights,
    combine,
    cross_fit,
    ensemble_table,
    member_means,
    parse_blend,
    start_of_stack,
)
from audiotag.core.metrics import accuracy, lwlrap, macro_auc

torch.set_num_threads(1)


def planted(n=300, classes=8, skill=(4.0, 1.0, 0.5), seed=0):
    "Truth, and members of known quality: the first is the best by far."
    g = np.random.default_rng(seed)
    truth = np.eye(classes, dtype=bool)[g.integers(classes, size=n)]
    z = np.stack([g.normal(0, 1, truth.shape) + s * truth - 3 for s in skill])
    return truth, 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("how", ["mean", "geometric", "rank"])
@pytest.mark.parametrize(
    "metric", ["lwlrap", "accuracy", "macro_auc", "padded_cmap", pytest.param("lrap", marks=pytest.mark.long)]
)
def test_weights_find_the_one_member_that_knows(how, metric):
    truth, p = planted(skill=(0.0, 6.0, 0.0))
    found = FittedWeights(how=how, metric=metric, draws=3, rounds=8).fit(p, truth)
    assert found.weights[1] > 0.85 and abs(sum(found.weights) - 1) < 1e-9 and min(found.weights) >= 0


def test_weights_beat_the_best_member_where_they_were_fitted():
    truth, p = planted(skill=(2.0, 1.8, 1.5))
    assert lwlrap(truth, FittedWeights().fit(p, truth).apply(p)) > max(lwlrap(truth, o) for o in p)


def test_same_seed_same_numbers_other_seed_others():
    truth, p = planted(skill=(1.5, 1.5, 1.5))
    folds = np.arange(300) % 4
    for method in (FittedWeights(), Stack(lr=0.01, epochs=5)):
        a, b, c = (method.fit(p, truth, folds, seed=s).to_json() for s in (1, 1, 2))
        assert a == b != c


def test_a_stack_that_may_not_train_is_the_mean():
    truth, p = planted()
    stack = Stack(epochs=0).fit(p, truth, np.arange(300) % 4)
    np.testing.assert_allclose(stack.apply(p), (1 + np.tanh(p.mean(0) - 1.6)) / 2, atol=1e-9)
    assert lwlrap(truth, stack.apply(p)) == lwlrap(truth, p.mean(0)) and accuracy(truth, stack.apply(p)) == accuracy(
        truth, p.mean(0)
    )


def test_a_stack_starts_from_the_weights_that_were_found():
    truth, p = planted(skill=(0.0, 6.0, 0.0))
    stack = Stack(epochs=0, mean=FittedWeights()).fit(p, truth, np.arange(300) % 4)
    assert stack.mean[1] > 0.9
    np.testing.assert_allclose(stack.apply(p), (1 + np.tanh(combine(p, weights=stack.mean) - 1.6)) / 2, atol=1e-9)


def test_stack_by_hand():
    "Two members, two classes, numbers that can be checked on paper."
    stack = Stacked(
        local=((0.6, 0.0, 0.8), (0.0, 1.0, 0.0)), dense=((1.0, 0.5), (0.0, 2.0)), mean=(0.25, 0.75), shift=1.0
    )
    p = np.array([[[0.4, 0.8]], [[0.8, 0.2]]])
    z1, z2 = 0.6 * 0.4 + 0.8 * (0.25 * 0.4 + 0.75 * 0.8), 0.2
    np.testing.assert_allclose(stack.apply(p), (1 + np.tanh([[z1 - 1, 0.5 * z1 + 2 * z2 - 1]])) / 2)


def test_the_stack_keeps_its_norms_and_learns_per_class():
    g = np.random.default_rng(5)
    truth = np.eye(6, dtype=bool)[g.integers(6, size=300)]
    halves = np.stack(
        [
            1 / (1 + np.exp(-(g.normal(0, 1, truth.shape) + k * truth - 3)))
            for k in (np.r_[3, 3, 3, 0, 0, 0], np.r_[0, 0, 0, 3, 3, 3])
        ]
    )
    stack = Stack(lr=0.02, epochs=40, patience=40).fit(halves, truth, np.arange(300) % 3)
    local = np.array(stack.local)
    np.testing.assert_allclose((local**2).sum(1), 1, atol=1e-4)
    assert (local[:3, 0] > local[:3, 1]).all() and (local[3:, 1] > local[3:, 0]).all()
    assert lwlrap(truth, stack.apply(halves)) > lwlrap(truth, halves.mean(0)) + 0.01


@pytest.mark.parametrize("name", METHODS)
def test_cross_fitting_leaks_nothing(name):
    "The labels of one fold are turned into nonsense: what is said of this fold must not change by a bit."
    truth, p = planted(n=120, classes=5, skill=(1.0, 1.2, 0.8))
    folds = np.arange(120) % 3
    other = truth.copy()
    other[folds == 1] = np.roll(truth[folds == 1], 2, axis=1)
    method = METHODS[name].replace(lr=0.01, epochs=4) if hasattr(METHODS[name], "lr") else METHODS[name]
    a, b = (cross_fit(method, p, t, folds) for t in (truth, other))
    assert np.array_equal(a[folds == 1], b[folds == 1])
    if hasattr(method, "metric"):
        assert not np.array_equal(a[folds != 1], b[folds != 1]), "the nonsense should have been noticed elsewhere"


def test_a_member_that_peeked_at_every_label_is_not_hidden_by_crossing():
    "Crossing is about the combiner; a member that leaks shows as too good, alone and in the ensemble."
    truth, p = planted(n=120, skill=(0.0, 0.0, 0.0))
    cheat = np.concatenate([p, truth[None] * 0.9 + 0.05])
    assert lwlrap(truth, cross_fit(FittedWeights(), cheat, truth, np.arange(120) % 3)) > 0.99


def test_groups_may_not_be_divided():
    truth, p = planted(n=120)
    with pytest.raises(AudiotagError, match="several folds"):
        cross_fit(EqualWeights(), p, truth, np.arange(120) % 3, groups=np.arange(120) // 2)
    cross_fit(EqualWeights(), p, truth, (np.arange(120) // 2) % 3, groups=np.arange(120) // 2)


@pytest.mark.parametrize("name", METHODS)
def test_what_was_fitted_survives_json_and_works_clip_by_clip(name):
    truth, p = planted(n=90)
    method = METHODS[name].replace(epochs=3) if hasattr(METHODS[name], "epochs") else METHODS[name]
    combiner = method.fit(p, truth, np.arange(90) % 3)
    back = config_from_dict(json.loads(combiner.to_json()))
    whole = combiner.apply(p)
    assert back == combiner and whole.shape == (90, 8) and (whole >= 0).all() and (whole <= 1).all()
    np.testing.assert_allclose(np.stack([back.apply(p[:, i]) for i in range(90)]), whole, atol=1e-12)
    order = [3, 1, 0, 2, 7, 6, 5, 4]
    np.testing.assert_allclose(combiner.for_classes(order).apply(p[..., order]), whole[..., order], atol=1e-12)
    with pytest.raises(AudiotagError, match="fitted to 3"):
        combiner.apply(p[:2])


def test_ranks_change_no_order_within_a_member():
    truth, p = planted(n=200, skill=(2.0,))
    extreme = p**8
    one = EqualWeights(how="rank").fit(extreme, truth)
    assert macro_auc(truth, one.apply(extreme)) == pytest.approx(macro_auc(truth, extreme[0]), abs=1e-9)
    assert lwlrap(truth, one.apply(extreme)) == pytest.approx(lwlrap(truth, extreme[0]), abs=1e-9)
    both = EqualWeights(how="rank").fit(np.stack([p[0], extreme[0]]), truth).apply(np.stack([p[0], extreme[0]]))
    np.testing.assert_allclose(both, EqualWeights(how="rank").fit(p, truth).apply(p), atol=0.03)


def test_votes_of_equal_weight_are_never_overruled():
    g = np.random.default_rng(0)
    p = g.random((5, 400, 6))
    votes = (np.arange(6) == p.argmax(-1)[..., None]).sum(0)
    won = combine(p, how="vote").argmax(1)
    assert (votes[np.arange(400), won] == votes.max(1)).all()


def test_silent_members_are_replaced_by_the_others():
    p = np.random.default_rng(0).random((4, 10, 3))
    said, owner = p.copy(), [0, 0, 1, 2]
    said[0, 2] = said[2, 5] = said[1:, 7] = np.nan
    got = member_means(said, owner, 3)
    np.testing.assert_allclose(got[:, 0], [p[:2, 0].mean(0), p[2, 0], p[3, 0]])
    np.testing.assert_allclose(got[0, 2], p[1, 2])
    np.testing.assert_allclose(got[1, 5], (p[:2, 5].mean(0) + p[3, 5]) / 2)
    np.testing.assert_allclose(got[:, 7], np.tile(p[0, 7], (3, 1)))


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Mean(weights=(0.5, 0.6)),
        lambda: Mean(weights=(1.5, -0.5)),
        lambda: Mean(weights=()),
        lambda: Mean(how="median", weights=(1.0,)),
        lambda: RankMean(levels=((0.5, 0.2),), weights=(1.0,)),
        lambda: RankMean(levels=((0.0, 0.2),), weights=(1.0,)),
        lambda: Stacked(local=((0.0, 1.0),), dense=((1.0, 0.0),), mean=(1.0,)),
        lambda: Stacked(local=((0.0, 0.0, 1.0),), dense=((1.0,),), mean=(1.0,)),
        lambda: Stacked(local=((0.0, float("nan")),), dense=((1.0,),), mean=(1.0,)),
        lambda: FittedWeights(how="vote"),
        lambda: Stack(lr=0.0),
        lambda: start_of_stack(2, 3).apply(np.zeros((2, 5, 4))),
        lambda: Mean(weights=(0.5, 0.5)).apply(np.full((2, 3, 4), np.nan)),
    ],
)
def test_refused(bad):
    with pytest.raises(AudiotagError):
        bad()


def test_the_table_is_paired():
    truth, p = planted(n=400, skill=(3.0, 3.0))
    table = ensemble_table(
        {"a": p[0], "b": p[1]}, truth, np.arange(400) % 3, methods={"mean": EqualWeights()}, draws=60
    )
    assert table.loc["mean", "gain low"] > 0, "the mean of two independent members is better than either"
    best = table.loc[["a", "b"], "lwlrap"].idxmax()
    assert table.loc[best, ["gain", "gain low", "gain high"]].tolist() == [0, 0, 0]
    assert (table.low <= table.lwlrap).all() and (table.lwlrap <= table.high).all()


def test_applying_needs_neither_torch_nor_scipy_optimize_nor_sklearn():
    code = """
import sys, numpy as np
from audiotag.infer.ensemble import Mean, RankMean, start_of_stack
for c in (Mean(weights=(.5,.5)), RankMean(levels=((.5,),(.5,)), weights=(.5,.5)), start_of_stack(2, 3)): c.apply(np.full((2,4,3), .5))
print([m for m in ('torch','scipy.optimize','sklearn') if m in sys.modules])
"""
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert out.stdout.strip() == "[]"


def test_blend_in_words():
    p = np.random.default_rng(5).random((4, 10, 3))
    blend = Blend(weights=(0.15, 0.25, 0.3, 0.3), products=((1, 3), (0, 1, 2)), product_weights=(0.3, 0.5))
    b, a1, a2, c = p
    wanted = (0.15 * b + 0.25 * a1 + 0.3 * a2 + 0.3 * c + 0.3 * np.sqrt(a1 * c) + 0.5 * (b * a1 * a2) ** (1 / 3)) / 1.8
    np.testing.assert_allclose(blend.apply(p), wanted, atol=1e-12)
    assert config_from_dict(blend.to_dict()) == blend
    with pytest.raises(AudiotagError, match="3 members"):
        blend.apply(p[:3])


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Blend(weights=()),
        lambda: Blend(weights=(-1.0, 2.0)),
        lambda: Blend(weights=(1.0, 1.0), products=((0, 2),), product_weights=(1.0,)),
        lambda: Blend(weights=(1.0, 1.0), products=((0,),), product_weights=(1.0,)),
        lambda: Blend(weights=(1.0, 1.0), products=((0, 1),)),
        lambda: Blend(weights=(0.0, 0.0)),
        lambda: Stack(mean_weights=(1.0, -1.0)),
        lambda: Stack(mean_weights=(0.0, 0.0)),
        lambda: Stack(mean_weights=(1.0, 1.0), mean=FittedWeights()),
    ],
)
def test_blends_out_of_range(bad):
    with pytest.raises(AudiotagError):
        bad()


def test_the_formulas_of_birdclef_2024():
    "The fifth's 5 : 4 : 1 and the fourth's sum with a root, as numbers and as a method that fits nothing."
    truth, p = planted(n=40, skill=(3.0, 2.0, 1.0, 0.5))
    raw, mel, hybrid = p[:3]
    fifth = parse_blend("5*a + 4*b + 1*c", ["raw", "mel", "hybrid"])
    np.testing.assert_allclose(fifth.apply(p[:3]), (5 * raw + 4 * mel + hybrid) / 10)
    b, a1, a2, c = p
    fourth = parse_blend(".15*A + .25*B + 0.3*C + .3*D+.3*sqrt(B*D)", "bacd")
    wanted = (0.15 * b + 0.25 * a1 + 0.3 * a2 + 0.3 * c + 0.3 * np.sqrt(a1 * c)) / 1.3
    for combiner in (fourth, Given(combiner=fourth).fit(p, truth), config_from_dict(fourth.to_dict())):
        np.testing.assert_allclose(combiner.apply(p), wanted)
    np.testing.assert_allclose(cross_fit(Given(combiner=fourth), p, truth, np.arange(40) % 2), wanted)
    with pytest.raises(AudiotagError, match="3 members"):
        Given(combiner=fourth).fit(p[:3], truth)


@pytest.mark.parametrize(
    "formula, said",
    [
        ("", "cannot read"),
        ("a - b", "cannot read"),
        ("a*b", "cannot read"),
        ("sqrt(a*b*c)", "cannot read"),
        ("2*", "cannot read"),
        ("a + 2*d", "'d' stands for no member"),
        ("0*a", "invalid value"),
    ],
)
def test_formulas_that_cannot_be_read(formula, said):
    with pytest.raises(AudiotagError, match=said):
        parse_blend(formula, ["run: x", "run: y", "run: z"])


def test_a_stack_starts_from_weights_found_by_hand():
    truth, p = planted(skill=(2.0, 1.0))
    stack = Stack(epochs=0, mean_weights=(2.1, 0.7)).fit(p, truth, np.arange(300) % 4)
    assert stack.mean == pytest.approx((0.75, 0.25))
    np.testing.assert_allclose(stack.apply(p), (1 + np.tanh(0.75 * p[0] + 0.25 * p[1] - 1.6)) / 2)
    with pytest.raises(AudiotagError, match="2 weights for 3 members"):
        Stack(mean_weights=(1.0, 1.0)).fit(np.concatenate([p, p[:1]]), truth)


NAN = np.nan


def test_a_member_counts_where_it_has_an_opinion():
    "Weights are scaled to sum 1 over the members that know the class: exact numbers of each way to combine."
    p = np.array([[[0.8, NAN, NAN]], [[0.2, 0.4, 0.9]], [[0.5, 0.1, NAN]]])
    w = (0.5, 0.3, 0.2)
    mean = [0.8 * 0.5 + 0.2 * 0.3 + 0.5 * 0.2, (0.4 * 0.3 + 0.1 * 0.2) / 0.5, 0.9]
    np.testing.assert_allclose(combine(p, weights=w)[0], mean)
    np.testing.assert_allclose(Mean(weights=w).apply(p)[0], mean)
    geometric = [0.8**0.5 * 0.2**0.3 * 0.5**0.2, 0.4**0.6 * 0.1**0.4, 0.9]
    np.testing.assert_allclose(combine(p, how="geometric", weights=w)[0], geometric)
    # the first and the third vote for the first class, the second for the third class, where it is alone
    votes = [(0.7 * 3 + mean[0]) / 4, mean[1] / 4, (1 * 3 + 0.9) / 4]
    np.testing.assert_allclose(combine(p, how="vote", weights=w)[0], votes)
    # where all that know a class have the weight 0, they count equally
    np.testing.assert_allclose(combine(p, weights=(1, 0, 0))[0], [0.8, 0.25, 0.9])
    blend = Blend(weights=(1, 1, 0), products=((0, 2),), product_weights=(2.0,))
    product = np.sqrt(0.8 * 0.5)
    np.testing.assert_allclose(blend.apply(p)[0], [(0.8 + 0.2 + 2 * product) / 4, (0.4 + 2 * 0.1) / 3, 0.9])
    ranks = RankMean(levels=((0.5,),) * 3, weights=w).apply(p)[0]
    np.testing.assert_allclose(ranks, mean)  # levels at which ranks are the scores themselves
    stack = start_of_stack(3, 3)
    equal = combine(p)
    np.testing.assert_allclose(stack.apply(p), (1 + np.tanh(equal - 1.6)) / 2)


def test_a_class_that_nobody_knows_and_infinite_scores_are_refused():
    with pytest.raises(AudiotagError, match="no member has an opinion"):
        combine([[[0.5, NAN]], [[0.5, NAN]]])
    with pytest.raises(AudiotagError, match="not finite"):
        Mean(weights=(0.5, 0.5)).apply([[[0.5, 0.5]], [[0.5, np.inf]]])


def test_means_of_networks_keep_what_a_member_does_not_know():
    # two folds of a member that knows the first class; another member; two clips, of which the first member scored one
    p = np.array([[[0.2, NAN], [NAN, NAN]], [[0.4, NAN], [NAN, NAN]], [[0.9, 0.7], [0.1, 0.6]]])
    np.testing.assert_allclose(member_means(p, [0, 0, 1], 2), [[[0.3, NAN], [0.1, 0.6]], [[0.9, 0.7], [0.1, 0.6]]])


def test_weights_are_fitted_where_a_member_has_opinions():
    "A specialist that is the best in its classes gets weight, and the other classes keep the numbers of the others."
    truth, p = planted(skill=(1.0, 6.0))
    specialist = p[1].copy()
    specialist[:, 3:] = NAN
    members = {"all": p[0], "some": specialist}
    found = FittedWeights(metric="macro_auc", draws=3, rounds=8).fit(np.stack(list(members.values())), truth)
    assert found.weights[1] > 0.5
    both = found.apply(np.stack(list(members.values())))
    np.testing.assert_array_equal(both[:, 3:], p[0][:, 3:])
    table = ensemble_table(members, truth, np.arange(300) % 3, metric="macro_auc", draws=10)
    known = truth[:, :3]
    assert table.loc["some", "macro_auc"] == pytest.approx(macro_auc(known, specialist[:, :3]))
    assert table.loc["some", "gain"] == pytest.approx(
        macro_auc(known, specialist[:, :3]) - macro_auc(known, p[0][:, :3])
    )
    assert table.loc["weighted", "macro_auc"] > table.loc["all", "macro_auc"] + 0.05
    assert table.notna().all().all()
    useless = {"all": p[1], "some": np.where(np.isnan(specialist), NAN, 1 - specialist)}
    found = FittedWeights(metric="macro_auc", draws=3, rounds=8).fit(np.stack(list(useless.values())), truth)
    assert found.weights[1] < 0.1
    with pytest.raises(AudiotagError, match="opinion on all classes"):
        ensemble_table({"some": specialist}, truth, np.arange(300) % 3, metric="macro_auc", draws=10)
