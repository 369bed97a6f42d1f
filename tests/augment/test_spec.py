"Augmentations: given parameters against loops in NumPy, drawn ones against their distributions, and what they compose to."

import time

import numpy as np
import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from audiotag.augment.mixing import TimeCutMix
from audiotag.augment.recorder import FilterAugment, FreqMixStyle
from audiotag.augment.spec import Cutout, Gamma, Lighting, MixUp, SpecAugment, SpecMix, ZoomCrop, augment_batch
from audiotag.core.errors import AudiotagError
from audiotag.core.config import config_from_dict

ALL = [
    MixUp(),
    MixUp(weight=0.7, p=0.6),
    SpecMix(),
    SpecMix(target="pixels", p=0.5),
    SpecAugment(),
    SpecAugment(n_bands=0, n_times=3, fill="min"),
    Cutout(n=3, fill="zero"),
    ZoomCrop(),
    ZoomCrop(max_zoom=1.5, p=1),
    Lighting(),
    Lighting(max_change=0.5, p=1),
    Gamma(),
    Gamma(low=0.5, high=4, p=1),
    TimeCutMix(),
    TimeCutMix(target="union", max_time=1, p=1),
    FilterAugment(),
    FilterAugment(shape="step", min_ranges=1, max_ranges=2, unit_db=15, p=1),
    FreqMixStyle(),
    FreqMixStyle(alpha=1, p=1),
]
each = pytest.mark.parametrize("aug", ALL, ids=repr)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(n=8, channels=2, bands=24, frames=40, classes=5, dtype=torch.float32, seed=0):
    x = torch.randn(n, channels, bands, frames, generator=gen(seed)).to(dtype)
    return x, (torch.rand(n, classes, generator=gen(seed + 1)) < 0.3).float()


def ints(*values):
    return torch.tensor(values, dtype=torch.long)


# given parameters: exact numbers


def test_mixup_numbers():
    x, y = batch(3)
    partner, weight = ints(2, 0, 1), torch.tensor([0.75, 1.0, 0.5], dtype=torch.float64)
    for a, b in zip(MixUp().apply(x, y, dict(partner=partner, weight=weight)), (x, y)):
        for i in range(3):
            wanted = weight[i].item() * b[i].double() + (1 - weight[i].item()) * b[partner[i]].double()
            np.testing.assert_allclose(a[i], wanted, atol=1e-6)
        assert torch.equal(a[1], b[1])  # weight 1 changes no bit


def test_gamma_numbers():
    x, y = batch(3)
    power = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    got, same = Gamma().apply(x, y, {"power": power})
    for i in range(3):
        for c in range(2):
            o = x[i, c].double().numpy()
            wanted = ((o - o.min()) / (o.max() - o.min())) ** power[i].item() * (o.max() - o.min()) + o.min()
            np.testing.assert_allclose(got[i, c], wanted, atol=1e-5)
    assert torch.equal(got[0], x[0]) and torch.equal(same, y)
    drawn = Gamma(low=0.5, high=2, p=0.5).draw(torch.zeros(4000, 1, 2, 2), gen())["power"]
    assert 0.45 < (drawn == 1).float().mean() < 0.55 and 0.5 <= drawn.min() and drawn.max() <= 2
    assert abs(drawn[drawn != 1].log().mean()) < 0.05


@pytest.mark.parametrize("target", ["drawn", "pixels"])
def test_specmix_numbers(target):
    x, y = batch(4)
    p = dict(
        partner=ints(3, 2, 1, 0),
        band_share=torch.tensor([0.25, 0.1, 0, 0.2], dtype=torch.float64),
        band_start=ints(18, 3, 5, 0),
        band_size=ints(6, 2, 0, 4),
        time_share=torch.tensor([0.2, 0, 0.24, 0.19], dtype=torch.float64),
        time_start=ints(0, 9, 31, 33),
        time_size=ints(8, 0, 9, 7),
    )
    got_x, got_y = SpecMix(target=target).apply(x, y, p)
    for i in range(4):  # as the entrant's loop does it
        j, (f0, f, t0, t) = (
            p["partner"][i],
            (p[k][i].item() for k in ("band_start", "band_size", "time_start", "time_size")),
        )
        wanted = x[i].clone()
        wanted[:, f0 : f0 + f, :] = x[j][:, f0 : f0 + f, :]
        wanted[:, :, t0 : t0 + t] = x[j][:, :, t0 : t0 + t]
        assert torch.equal(got_x[i], wanted)
        h, w = (p["band_share"][i].item(), p["time_share"][i].item()) if target == "drawn" else (f / 24, t / 40)
        alpha = h + w - h * w
        np.testing.assert_allclose(got_y[i], (1 - alpha) * y[i].double() + alpha * y[j].double(), atol=1e-6)
        if target == "pixels":
            changed = np.zeros((24, 40), bool)
            changed[f0 : f0 + f], changed[:, t0 : t0 + t] = True, True
            assert alpha == pytest.approx(changed.mean())


FILLS = {"zero": lambda c: 0.0, "mean": lambda c: c.mean(), "min": lambda c: c.min()}


@pytest.mark.parametrize("fill", FILLS)
def test_specaugment_and_cutout_numbers(fill):
    x, y = batch(2)
    p = dict(
        band_start=ints([0, 20], [5, 7]),
        band_size=ints([3, 4], [4, 0]),
        time_start=ints([38, 10], [0, 0]),
        time_size=ints([2, 5], [40, 0]),
    )
    lines, holes = SpecAugment(fill=fill).apply(x, y, p), Cutout(n=2, fill=fill).apply(x, y, p)
    for i in range(2):
        for c in range(2):
            want_lines, want_holes, value = x[i, c].clone(), x[i, c].clone(), FILLS[fill](x[i, c])
            for k in range(2):
                f, t = (
                    slice(p[f"{o}_start"][i, k], p[f"{o}_start"][i, k] + p[f"{o}_size"][i, k]) for o in ("band", "time")
                )
                want_lines[f], want_lines[:, t], want_holes[f, t] = value, value, value
            torch.testing.assert_close(lines[0][i, c], want_lines, rtol=0, atol=1e-6)
            torch.testing.assert_close(holes[0][i, c], want_holes, rtol=0, atol=1e-6)
    assert torch.equal(lines[1], y) and torch.equal(holes[1], y)


def test_zoom_numbers():
    x, y = batch(3, bands=12, frames=9)
    zoom, low, left = (
        torch.tensor(o, dtype=torch.float64) for o in ([1.5, 1.0, 3.0], [0.3, 0.9, 1.0], [0.8, 0.1, 0.0])
    )
    got = ZoomCrop().apply(x, y, dict(zoom=zoom, low=low, left=left))[0]
    assert torch.equal(got[1], x[1])  # zoom 1 changes no bit

    def weights(n, z, where):  # (n, n): which input cells each output cell is made of
        w = np.zeros((n, n))
        for i in range(n):
            s = np.clip((i + 0.5) / z + n * (1 - 1 / z) * where - 0.5, 0, n - 1)
            a = min(int(s), n - 2)
            w[i, a], w[i, a + 1] = 1 - (s - a), s - a
        return w

    for i in (0, 2):
        for c in range(2):
            wanted = (
                weights(12, zoom[i].item(), low[i].item())
                @ x[i, c].double().numpy()
                @ weights(9, zoom[i].item(), left[i].item()).T
            )
            np.testing.assert_allclose(got[i, c], wanted, atol=1e-5)


def test_lighting_numbers():
    x, y = batch(4)
    x[3] = 0.7  # silence: nothing to light
    p = dict(
        brightness=torch.tensor([0.6, 0.5, 0.42, 0.6], dtype=torch.float64),
        contrast=torch.tensor([1.0, 1.0, 1.2, 0.8], dtype=torch.float64),
    )
    got = Lighting().apply(x, y, p)[0]
    for i in (0, 2):
        for c in range(2):
            a = x[i, c].double().numpy()
            u = np.clip((a - a.min()) / (a.max() - a.min()), 1e-7, 1 - 1e-7)
            b, k = p["brightness"][i].item(), p["contrast"][i].item()
            z = (np.log(u / (1 - u)) + np.log(b / (1 - b))) * k
            np.testing.assert_allclose(got[i, c], a.min() + (a.max() - a.min()) / (1 + np.exp(-z)), atol=1e-4)
    assert torch.equal(got[1], x[1]) and torch.equal(got[3], x[3])
    assert (got[0] > x[0]).float().mean() > 0.95  # above one half is brighter


# drawn parameters: distributions


def test_specmix_draws():
    x = torch.zeros(20_000, 1, 64, 100)
    p = {k: v.numpy() for k, v in SpecMix().draw(x, gen()).items()}
    for name, n in (("band", 64), ("time", 100)):
        share, start, size = (p[f"{name}_{o}"] for o in ("share", "start", "size"))
        assert stats.kstest(share, "uniform", (0, 0.25)).pvalue > 1e-3 and (size == np.floor(share * n)).all()
        # the entrant's [0, n - size)
        assert start.min() == 0 and (start + size).max() == n - 1 and (start + size < n).all()
        assert stats.kstest((start + np.random.default_rng(0).random(len(start))) / (n - size), "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(p["band_share"], p["time_share"])[0, 1]) < 0.03
    assert sorted(p["partner"]) == list(range(20_000))


def test_mixup_draws():
    w = MixUp(alpha=0.4).draw(torch.zeros(20_000, 1, 1, 1), gen())["weight"].numpy()
    assert (
        stats.kstest(w, lambda v: stats.beta.cdf(v, 0.4, 0.4) - stats.beta.cdf(1 - v, 0.4, 0.4)).pvalue > 1e-3
        and w.min() >= 0.5
    )
    w = MixUp(weight=0.7, p=0.6).draw(torch.zeros(20_000, 1, 1, 1), gen())["weight"].numpy()
    assert set(w) == {0.7, 1.0} and abs((w == 0.7).mean() - 0.6) < 0.015


def test_zoom_and_lighting_draws():
    p = ZoomCrop().draw(torch.zeros(20_000, 1, 1, 1), gen())
    zoom = p["zoom"].numpy()
    assert abs((zoom > 1).mean() - 0.75) < 0.015 and stats.kstest(zoom[zoom > 1], "uniform", (1, 0.05)).pvalue > 1e-3
    assert all(stats.kstest(p[k].numpy(), "uniform").pvalue > 1e-3 for k in ("low", "left"))
    p = {k: v.numpy() for k, v in Lighting().draw(torch.zeros(20_000, 1, 1, 1), gen()).items()}
    b, c = p["brightness"], p["contrast"]
    assert stats.kstest(b[b != 0.5], "uniform", (0.4, 0.2)).pvalue > 1e-3
    assert stats.kstest(np.log(c[c != 1]), "uniform", (np.log(0.8), -2 * np.log(0.8))).pvalue > 1e-3
    both = (b != 0.5), (c != 1)
    assert all(abs(o.mean() - 0.75) < 0.015 for o in both) and abs((both[0] & both[1]).mean() - 0.75**2) < 0.015


@pytest.mark.parametrize(
    "aug", [SpecMix(p=0.3), SpecAugment(p=0.3), Cutout(p=0.3), ZoomCrop(p=0.3), MixUp(p=0.3), Lighting(p=0.3)], ids=repr
)
def test_p_is_the_share_of_changed_clips(aug):
    x, y = batch(4000, 1, 64, 64)
    changed = (aug(x, y, gen())[0] != x).flatten(1).any(1).float().mean().item()
    wanted = 1 - 0.7**2 if isinstance(aug, Lighting) else 0.3
    assert wanted - 0.06 < changed < wanted + 0.03  # a mask of width 0 changes nothing
    nothing = aug.replace(p=0)(x, y, gen())
    assert torch.equal(nothing[0], x) and torch.equal(nothing[1], y)


def test_masks_have_the_widths_that_were_asked_for():
    x, y = batch(3000, 1, 40, 60)
    out = SpecAugment(n_bands=1, n_times=1, max_band=0.2, max_time=0.1, fill="zero")(x, y, gen())[0] == 0
    bands, frames = out.all(3).sum((1, 2)).numpy(), out.all(2).sum((1, 2)).numpy()
    assert bands.max() == 7 and frames.max() == 5 and abs(bands.mean() - 3.5) < 0.2 and abs(frames.mean() - 2.5) < 0.2


# what holds for all of them


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_input_untouched_type_kept_seeded(aug, dtype):
    x, y = batch(dtype=dtype)
    before = x.clone(), y.clone()
    got, again, other = (aug(x, y, gen(s)) for s in (0, 0, 1))
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    assert got[0].dtype == dtype and got[0].shape == x.shape and got[1].dtype == y.dtype and got[1].shape == y.shape
    assert torch.equal(got[0], again[0]) and torch.equal(got[1], again[1]) and not torch.equal(got[0], other[0])
    got[0].zero_(), got[1].zero_()  # what comes back is no view of what went in
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
    if dtype != torch.float32:
        wide = aug(x.float(), y, gen())[0]
        torch.testing.assert_close(again[0].float(), wide, rtol=0.02, atol=0.03)


@each
def test_apply_has_no_chance_in_it_and_leaves_its_parameters_alone(aug):
    x, y = batch()
    params = aug.draw(x, gen())
    before, state = {k: v.clone() for k, v in params.items()}, torch.get_rng_state()
    a, b = aug.apply(x, y, params), aug.apply(x, y, params)
    assert (
        torch.equal(a[0], b[0])
        and torch.equal(a[1], b[1])
        and all(torch.equal(v, before[k]) for k, v in params.items())
    )
    assert torch.equal(aug(x, y, gen())[0], a[0])
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is never asked


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **(kwargs or {}))


@each
def test_as_many_operations_for_64_clips_as_for_two(aug):
    counts = []
    for n in (2, 64):
        x, y = batch(n)
        with Ops() as ops:
            aug(x, y, gen())
        counts.append(ops.n)
    assert counts[0] == counts[1] > 3


@each
def test_small_batches_and_pictures(aug):
    for shape in ((1, 1, 24, 40), (2, 3, 1, 1), (3, 1, 2, 200)):
        x = torch.randn(*shape, generator=gen())
        out = aug(x, torch.ones(shape[0], 2), gen(1))
        assert out[0].shape == x.shape and torch.isfinite(out[0]).all() and torch.allclose(out[1], torch.ones(()))


@each
def test_round_trip_and_refusals(aug):
    assert config_from_dict(aug.to_dict()) == aug
    x, y = batch()
    for args in ((x[0], y), (x, y[:3]), (x, y[:, 0]), (x.long(), y), (x, y.long()), (x[:0], y[:0])):
        with pytest.raises(AudiotagError, match="not a batch"):
            aug(*args, gen())
    with pytest.raises(AudiotagError, match="Generator"):
        aug(x, y, 7)


@pytest.mark.parametrize(
    "make",
    [
        lambda: MixUp(alpha=0),
        lambda: MixUp(weight=1.2),
        lambda: MixUp(p=-0.1),
        lambda: SpecMix(max_band=1.1),
        lambda: SpecMix(max_time=-1),
        lambda: SpecMix(target="mean"),
        lambda: SpecAugment(n_bands=-1),
        lambda: SpecAugment(fill="noise"),
        lambda: SpecAugment(max_time=2),
        lambda: Cutout(n=0),
        lambda: Cutout(fill=""),
        lambda: ZoomCrop(max_zoom=0.9),
        lambda: ZoomCrop(p=2),
        lambda: Lighting(max_change=1),
        lambda: Lighting(p=1.5),
        lambda: MixUp(p=float("nan")),
    ],
)
def test_refuses_bad_settings(make):
    with pytest.raises(AudiotagError):
        make()


# composition


def test_up_to_four_clips_make_one_and_the_labels_are_their_pixels():
    n = 64
    # clip i is channel i: the result says who is in it
    x = torch.eye(n)[:, :, None, None].expand(n, n, 32, 32).clone()
    y = torch.eye(n)
    out_x, out_y = augment_batch((MixUp(), SpecMix(target="pixels")), x, y, gen(3))
    torch.testing.assert_close(out_y, out_x.mean((2, 3)), rtol=0, atol=1e-6)
    sources = (out_y > 1e-6).sum(1)
    assert sources.max() == 4 and (sources == 4).float().mean() > 0.6
    torch.testing.assert_close(out_y.sum(1), torch.ones(n))
    drawn = augment_batch((MixUp(), SpecMix()), x, y, gen(3))
    assert torch.equal(drawn[0], out_x)
    # the entrant rounds the widths down and not the target
    excess = (drawn[1] - drawn[0].mean((2, 3))).abs().sum(1) / 2
    assert 0.01 < excess.mean() < 0.05 and excess.max() < 2 / 32


def test_augment_batch_takes_them_from_left_to_right_with_one_generator():
    x, y = batch()
    g = gen(5)
    step = SpecAugment()(*ZoomCrop()(x, y, g), g)
    assert torch.equal(augment_batch((ZoomCrop(), SpecAugment()), x, y, gen(5))[0], step[0])
    assert augment_batch((), x, y, gen())[0] is x


def test_mixup_takes_feature_maps_too():
    features, y = torch.randn(6, 10, generator=gen()), torch.eye(6)
    params = MixUp(weight=0.5).draw(features, gen())
    out = MixUp().apply(features, y, params)
    torch.testing.assert_close(out[0], out[1] @ features)


# speed and GPU


@pytest.mark.long
def test_less_than_five_per_cent_of_a_training_step(capsys):
    from audiotag.train.losses import BCE
    from audiotag.models.cnn import CNNModel1

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x, y = batch(64, 1, 128, 128, 80)
        net = CNNModel1(width=16).build(80)  # the full network, 64 wide, takes ten times as long

        def step():
            BCE()(net(x), y).backward()

        def seconds(f, times):
            took = []
            for _ in range(times):
                start = time.perf_counter()
                f()
                took.append(time.perf_counter() - start)
            return min(took)

        whole, g = seconds(step, 3), gen()
        shares = {
            type(a).__name__: seconds(lambda: a(x, y, g), 15) / whole
            for a in (MixUp(), SpecMix(), SpecAugment(), Cutout(), ZoomCrop(), Lighting())
        }
        shares["the entrant's four"] = (
            seconds(lambda: augment_batch((ZoomCrop(), Lighting(), MixUp(), SpecMix()), x, y, g), 15) / whole
        )
    finally:
        torch.set_num_threads(threads)
    with capsys.disabled():
        print(
            f"\nof a step of the 16-wide CNN ({whole:.2f} s, batch 64, one thread): "
            + ", ".join(f"{k} {v:.2%}" for k, v in shares.items())
        )
    assert max(shares.values()) < 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each
def test_same_numbers_on_a_gpu(aug):
    x, y = batch()
    here, there = aug(x, y, gen()), aug(x.cuda(), y.cuda(), gen())
    assert there[0].is_cuda and there[1].is_cuda
    for a, b in zip(here, there):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-4, atol=1e-4)
    aug(x.cuda().bfloat16(), y.cuda(), torch.Generator("cuda").manual_seed(0))
