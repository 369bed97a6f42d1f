"Waves added, CutMix in time, FilterAugment and Freq-MixStyle: given parameters against NumPy, drawn ones against what was asked for."

import numpy as np
import pytest
import torch

from audiotag.augment.mixing import AddClips, TimeCutMix
from audiotag.augment.recorder import FilterAugment, FreqMixStyle
from audiotag.core.config import config_from_dict
from audiotag.core.errors import AudiotagError
from audiotag.core.targets import Targets


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def waves(n=6, samples=4000):
    x = torch.randn(n, 1, 1, samples, generator=gen(1)) * torch.logspace(-2, 0, n).view(-1, 1, 1, 1)
    return x, torch.rand(n, 5, generator=gen(2))


def pictures(n=6, channels=2, bands=40, frames=50):
    return torch.randn(n, channels, bands, frames, generator=gen(1)) * 7 - 30, torch.rand(n, 5, generator=gen(2))


def test_added_waves_have_the_level_that_was_drawn_and_all_labels():
    x, y = waves()
    x[3] = 0
    params = {
        "partner": torch.tensor([1, 2, 0, 4, 3, 5]),
        "level_db": torch.tensor([-5.0, 12.0, torch.inf, 0.0, 0.0, 3.0]),
    }
    got, labels = AddClips().apply(x, y, params)
    for i, (j, db) in enumerate(zip(params["partner"].tolist(), params["level_db"].tolist())):
        own, other = x[i].double().numpy(), x[j].double().numpy()
        gain = np.sqrt((own**2).mean() / max((other**2).mean(), 1e-300)) * 10 ** (-db / 20) if other.any() else 0.0
        np.testing.assert_allclose(got[i].double().numpy(), own + gain * other, atol=1e-5 * max(abs(own).max(), 1e-3))
        wanted = torch.maximum(y[i], y[j]) if np.isfinite(db) and own.any() and other.any() else y[i]
        assert torch.equal(labels[i], wanted)
    assert torch.equal(got[2], x[2])


@pytest.mark.parametrize("aug", [AddClips(), AddClips(p=1, max_label_sum=1.0)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_sum_is_seeded_and_keeps_its_input(aug, dtype):
    x, y = waves()
    x = x.to(dtype)
    before, state = (x.clone(), y.clone()), torch.get_rng_state()
    got, again, other = (aug(x, y, gen(seed)) for seed in (0, 0, 1))
    assert torch.equal(x, before[0]) and torch.equal(y, before[1]) and torch.equal(torch.get_rng_state(), state)
    assert got[0].dtype == dtype and got[0].shape == x.shape and got[1].dtype == y.dtype
    assert all(torch.equal(a, b) for a, b in zip(got, again)) and not torch.equal(got[0], other[0])
    nothing = aug.replace(p=0.0)(x, y, gen())
    assert torch.equal(nothing[0], x) and torch.equal(nothing[1], y)
    assert config_from_dict(aug.to_dict()) == aug and aug.on_wave


def test_label_sums_are_limited_where_clips_were_mixed_and_nowhere_else():
    x, y = waves(400)
    got, labels = AddClips(max_label_sum=1.25, p=0.5)(x, y, gen())
    mixed = (got != x).flatten(1).any(1)
    assert 0.4 < mixed.float().mean() < 0.6
    assert labels[mixed].sum(1).max() <= 1.25 + 1e-5 and torch.equal(labels[~mixed], y[~mixed])
    assert y[~mixed].sum(1).max() > 2  # the limit would have changed them
    small = AddClips(max_label_sum=1.25, p=1)(x, y / 100, gen())[1]
    assert small.sum(1).max() < 0.1  # never scaled up


def test_a_clip_is_never_its_own_partner_in_a_sum():
    x, y = waves(2)
    for seed in range(20):
        params = AddClips(p=1).draw(x, gen(seed))
        own = params["partner"] == torch.arange(2)
        assert torch.equal(own, params["level_db"].isinf())


@pytest.mark.parametrize("target", ["share", "union"])
def test_a_span_of_time_is_the_partners(target):
    x, y = pictures(3)
    params = {"partner": torch.tensor([2, 0, 1]), "start": torch.tensor([5, 0, 30]), "size": torch.tensor([10, 0, 20])}
    got, labels = TimeCutMix(target=target).apply(x, y, params)
    for i, (j, t0, t) in enumerate(zip(*(params[k].tolist() for k in ("partner", "start", "size")))):
        wanted = x[i].clone()
        wanted[..., t0 : t0 + t] = x[j][..., t0 : t0 + t]
        assert torch.equal(got[i], wanted)
        share = 1 - t / 50
        if target == "share":
            np.testing.assert_allclose(labels[i], share * y[i] + (1 - share) * y[j], atol=1e-6)
        else:
            assert torch.equal(labels[i], torch.maximum(y[i], y[j]) if t else y[i])


def test_spans_go_up_to_what_was_asked_for():
    size = TimeCutMix(p=1, max_time=0.4).draw(torch.zeros(4000, 1, 2, 100), gen())["size"]
    assert 38 <= size.max() < 40 and abs(size.float().mean() - 19.5) < 0.6


@pytest.mark.parametrize("shape", ["step", "linear"])
@pytest.mark.parametrize("bands", [1, 2, 5, 7, 40, 128])
def test_ranges_cover_all_bands_and_are_wide_enough(shape, bands):
    aug = FilterAugment(p=1, shape=shape, low_db=-10, high_db=4)
    params = aug.draw(torch.zeros(500, 1, bands, 3), gen())
    limits, gain = aug.limits(params, bands), aug.response(params, bands)
    assert (limits[:, 0] == 0).all() and (limits[:, -1] == bands).all() and (limits.diff(dim=1) >= 0).all()
    for row, n in zip(limits, params["n_ranges"].tolist()):
        widths = row.diff()[:n]
        assert widths.min() >= min(6, bands // n) - 1 and widths.min() >= 1  # limits are rounded to whole bands
    assert gain.shape == (500, bands) and gain.min() >= -10 and gain.max() <= 4
    if bands >= 40:
        assert params["n_ranges"].unique().tolist() == [3, 4, 5, 6]
        assert gain.std() > 1  # a curve, and not one gain


def test_a_response_is_added_to_every_frame_of_every_channel():
    x, y = pictures()
    aug = FilterAugment(p=0.5, unit_db=15.0, shape="step")
    params = aug.draw(x, gen(4))
    got, labels = aug.apply(x, y, params)
    response = aug.response(params, 40).numpy()
    assert {True, False} == set(params["chosen"].tolist())
    np.testing.assert_allclose(got - x, np.broadcast_to(response[:, None, :, None] / 15, x.shape), atol=1e-5)
    assert torch.equal(got[~params["chosen"]], x[~params["chosen"]]) and torch.equal(labels, y)


def test_the_style_of_each_band_is_mixed():
    x, y = pictures()
    params = {"partner": torch.tensor([1, 2, 3, 4, 5, 0]), "own": torch.tensor([0.0, 0.3, 1.0, 0.5, 0.9, 0.2])}
    got, labels = FreqMixStyle().apply(x, y, params)
    a = x.double().numpy()
    mean, std = a.mean((1, 3), keepdims=True), np.sqrt(a.var((1, 3), keepdims=True) + 1e-6)
    for i, (j, own) in enumerate(zip(params["partner"].tolist(), params["own"].tolist())):
        new_mean, new_std = (own * o[i] + (1 - own) * o[j] for o in (mean, std))
        np.testing.assert_allclose(got[i], (a[i] - mean[i]) / std[i] * new_std + new_mean, atol=1e-3)
    assert torch.equal(got[2], x[2]) and torch.equal(labels, y)


def test_a_silent_band_stays_finite():
    x, y = pictures(4)
    x[0] = x[1, :, :5] = -80.0
    for aug in (FreqMixStyle(p=1), FilterAugment(p=1), TimeCutMix(p=1)):
        assert aug(x, y, gen())[0].isfinite().all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: AddClips(low_db=2, high_db=1),
        lambda: AddClips(max_label_sum=0),
        lambda: AddClips(p=1.1),
        lambda: TimeCutMix(max_time=-0.1),
        lambda: TimeCutMix(target="maximum"),
        lambda: FilterAugment(low_db=2, high_db=1),
        lambda: FilterAugment(min_ranges=0),
        lambda: FilterAugment(max_ranges=2),
        lambda: FilterAugment(min_bands=0),
        lambda: FilterAugment(shape="cubic"),
        lambda: FilterAugment(unit_db=0),
        lambda: FreqMixStyle(alpha=0),
    ],
)
def test_refuses_bad_settings(make):
    with pytest.raises(AudiotagError) as e:
        make()
    assert e.value.fix


def targets_of(n, frames=50):
    g = gen(3)
    labels = (torch.rand(n, 5, generator=g) < 0.5).float()
    weights = (torch.rand(n, 5, generator=g) < 0.7).float()
    times = (torch.rand(n, 5, frames, generator=g) < 0.3).float() * labels[..., None]
    return Targets(labels, weights, times)


def test_targets_with_weights_and_times_are_united():
    x, _ = waves()
    y, n = targets_of(6), 6
    before = y.clone()
    params = AddClips(p=1).draw(x, gen(2))
    _, got = AddClips(max_label_sum=1.0).apply(x, y, params)
    mixed, union = params["level_db"].isfinite(), y.united(y[params["partner"]])
    assert mixed.any() and torch.equal(y.labels, before.labels) and torch.equal(y.frames, before.frames)
    assert torch.equal(got.weights, torch.where(mixed[:, None], union.weights, y.weights))
    for i in range(n):
        if not mixed[i]:
            assert torch.equal(got.labels[i], y.labels[i]) and torch.equal(got.frames[i], y.frames[i])
            continue
        scale = 1 / max(1.0, (union.labels[i] * (union.weights[i] > 0)).sum().item())
        torch.testing.assert_close(got.labels[i], union.labels[i] * scale)
        torch.testing.assert_close(got.frames[i], union.frames[i] * scale, equal_nan=True)


@pytest.mark.parametrize("target", ["share", "union"])
def test_the_times_of_a_cut_are_those_of_the_partner(target):
    x, _ = pictures(3)
    y = targets_of(3)
    params = {"partner": torch.tensor([2, 0, 1]), "start": torch.tensor([5, 0, 30]), "size": torch.tensor([10, 0, 20])}
    got = TimeCutMix(target=target).apply(x, y, params)[1]
    for i, (j, t0, t) in enumerate(zip(*(params[k].tolist() for k in ("partner", "start", "size")))):
        wanted = y.frames[i].clone()
        wanted[:, t0 : t0 + t] = y.frames[j][:, t0 : t0 + t]
        known = (y.weights[i] > 0) & (y.weights[j] > 0)
        assert torch.equal(got.frames[i][known], wanted[known])
