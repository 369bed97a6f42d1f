"Augmentations of waves: exact numbers, what must not change, recordings from folders and arrays, faults."

import numpy as np
import pytest
import soundfile as sf
import torch

from audiotag.augment.spec import MixUp, augment_batch
from audiotag.augment.wave import Background, Gain, Noise, Polarity, Shift, TimeMask, WaveAugment, add_at_snr, power
from audiotag.core.errors import AudiotagError
from audiotag.core.config import config_from_dict
from audiotag.infer.windows import View

RATE = 16000


def batch(n=6, samples=4001, seed=0):
    "Sounds of very different loudness, the last one silent."
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 1, samples, generator=g).cumsum(-1) * torch.logspace(-4, 0, n).view(-1, 1, 1, 1)
    x[-1] = 0
    return x, torch.eye(n)


def gen(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A folder of recordings: two rates, two channels, a subfolder, a hidden file; one shorter than the batch."
    folder, g = tmp_path_factory.mktemp("background"), np.random.default_rng(0)
    (folder / "deeper").mkdir()
    sf.write(folder / "long.wav", 0.1 * g.standard_normal(3 * RATE), RATE, subtype="FLOAT")
    sf.write(folder / "deeper" / "stereo.flac", 0.1 * g.standard_normal((2 * 44100, 2)), 44100)
    sf.write(folder / "short.wav", 0.1 * g.standard_normal(1000), RATE, subtype="FLOAT")
    (folder / ".DS_Store").write_bytes(b"Mac")
    return folder


@pytest.fixture(scope="module")
def augments(place):
    return [
        Shift(),
        Shift(wrap=False, max_share=0.5),
        Gain(),
        Noise(),
        Noise(exponent=1.0),
        Background(path=str(place), sample_rate=RATE),
        Polarity(),
        TimeMask(n=3),
    ]


def decibels(x, y):
    "SNR of y = x + noise, clip by clip, in 64 bits."
    x, noise = x.double().flatten(1), (y.double() - x.double()).flatten(1)
    return 10 * torch.log10(x.square().mean(1) / noise.square().mean(1))


@pytest.mark.parametrize("asked", [-20.0, 0.0, 12.3, 40.0])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0, -1.0, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ratio_asked_for_is_the_ratio_got(asked, exponent, dtype, place):
    x, y = batch()
    x = x.to(dtype)
    aug = (
        Background(path=str(place), sample_rate=RATE, low_db=asked, high_db=asked)
        if exponent is None
        else Noise(low_db=asked, high_db=asked, exponent=exponent)
    )
    out, _ = aug(x, y, gen())
    assert (decibels(x, out)[:-1] - asked).abs().max() < 1e-3 and torch.equal(out[-1], x[-1]) and out.dtype == dtype


def test_each_clip_gets_the_ratio_that_was_drawn():
    x, y = batch(40)
    aug = Noise(low_db=3.0, high_db=20.0, p=0.5)
    params = aug.draw(x, gen())
    out, _ = aug.apply(x, y, params)
    drawn, changed = params["snr_db"], torch.isfinite(params["snr_db"])
    assert (
        8 < changed.sum() < 32 and drawn[changed].min() >= 3 and drawn[changed].max() <= 20 and drawn[changed].std() > 3
    )
    changed[-1] = False  # silent
    assert (decibels(x, out)[changed] - drawn[changed]).abs().max() < 1e-3
    assert torch.equal(out[~changed], x[~changed])


def test_ratio_in_16_bits_and_with_silent_noise():
    x, _ = batch()
    x = x[:-1]
    out = add_at_snr(x.half(), torch.randn_like(x).half(), torch.full((5,), 10.0))
    assert out.dtype == torch.float16
    # the first are near the least number that 16 bits hold
    assert (decibels(x.half(), out)[2:] - 10).abs().max() < 0.1
    assert torch.equal(add_at_snr(x, torch.zeros_like(x), torch.zeros(5)), x)
    assert power(torch.tensor([[[[3.0, 4.0]]]])).item() == 12.5


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_color_of_noise(exponent):
    "Power in octaves: white rises by 3 dB an octave, pink stays, brown falls."
    x = torch.ones(8, 1, 1, 2**16)
    noise = (Noise(low_db=0.0, high_db=0.0, exponent=exponent)(x, torch.eye(8), gen())[0] - x).double().flatten(1)
    spectrum = torch.fft.rfft(noise).abs().square().mean(0)
    octaves = torch.stack([spectrum[2**k : 2 ** (k + 1)].sum() for k in range(7, 15)]).log10() * 10
    np.testing.assert_allclose(octaves.diff().numpy(), (1 - exponent) * 10 * np.log10(2), atol=0.4)
    assert exponent == 0 or noise.mean(1).abs().max() < 1e-6
    if exponent == 0:  # Gaussian: kurtosis 3
        assert ((noise - noise.mean()) / noise.std()).pow(4).mean().item() == pytest.approx(3, abs=0.05)


def test_noise_differs_from_clip_to_clip_and_batch_to_batch():
    x, y = torch.ones(3, 1, 1, 500), torch.eye(3)
    aug, g = Noise(low_db=0.0, high_db=0.0), gen()
    a, b = aug(x, y, g)[0], aug(x, y, g)[0]
    rows = torch.cat([a, b]).flatten(1) - 1
    assert (torch.corrcoef(rows) - torch.eye(6)).abs().max() < 0.2


@pytest.mark.parametrize("share", [0.0, 0.1, -0.1, 0.37])
@pytest.mark.parametrize("samples", [1000, 4001])
def test_shift_is_the_views(share, samples):
    x, y = batch(samples=samples)
    out, _ = Shift().apply(x, y, {"samples": torch.full((6,), round(share * samples))})
    for a, b in zip(out, x):
        np.testing.assert_array_equal(a.flatten().numpy(), View(shift=share).augment(b.flatten().numpy()))
    silent, _ = Shift(wrap=False).apply(x, y, {"samples": torch.full((6,), round(share * samples))})
    k = abs(round(share * samples))
    kept = slice(k, None) if share > 0 else slice(0, samples - k)
    assert torch.equal(silent[..., kept], out[..., kept]) and silent.count_nonzero() <= out.count_nonzero()
    assert not silent[..., : k if share > 0 else 0].any() and (share >= 0 or not silent[..., samples - k :].any())


def test_shift_draws_both_ways_up_to_its_share():
    x, _ = torch.zeros(2000, 1, 1, 1000), None
    drawn = Shift(max_share=0.1, p=0.5).draw(x, gen())["samples"]
    assert (
        drawn.min() >= -100
        and drawn.max() <= 100
        and drawn.min() < -95
        and drawn.max() > 95
        and 900 < (drawn == 0).sum() < 1110
    )


def test_gain_is_the_views_and_within_its_range():
    x, y = batch()
    out, _ = Gain().apply(x, y, {"db": torch.full((6,), -4.2)})
    np.testing.assert_allclose(out[2].flatten().numpy(), View(gain_db=-4.2).augment(x[2].flatten().numpy()), rtol=1e-6)
    many = torch.ones(1000, 1, 1, 2)
    db = 20 * Gain(low_db=-3.0, high_db=9.0)(many, torch.ones(1000, 1), gen())[0][:, 0, 0, 0].log10()
    assert -3 <= db.min() < -2.8 and 8.8 < db.max() <= 9.00001 and db.mean().item() == pytest.approx(3, abs=0.4)


def test_polarity_turns_half_of_them():
    x = torch.randn(1000, 1, 1, 3)
    out, _ = Polarity()(x, torch.ones(1000, 1), gen())
    turned = (out == -x).flatten(1).all(1)
    assert 440 < turned.sum() < 560 and torch.equal(out[~turned], x[~turned])


def test_time_mask_silences_what_was_drawn():
    x, y = torch.ones(200, 1, 1, 1000), torch.ones(200, 1)
    aug = TimeMask(n=2, max_share=0.1)
    params = aug.draw(x, gen())
    out, _ = aug.apply(x, y, params)
    for row, start, size in zip(out.flatten(1), params["start"], params["size"]):
        want = torch.ones(1000)
        for a, n in zip(start, size):
            want[a : a + n] = 0
        assert torch.equal(row, want)
    lost = (out == 0).flatten(1).sum(1)
    assert lost.max() <= 200 and lost.max() > 150 and 60 < lost.float().mean() < 110


def test_background_takes_the_samples_that_were_drawn(tmp_path):
    waves = np.stack([np.arange(1, 101), np.arange(201, 301)]).astype(np.float64)
    np.save(tmp_path / "two.npy", waves)
    aug = Background(path=str(tmp_path / "two.npy"), sample_rate=RATE)
    for samples, begin in ((40, 60), (100, 0), (250, 30)):  # the last one goes round
        x, y = torch.ones(2, 1, 1, samples), torch.eye(2)
        out, _ = aug.apply(
            x, y, {"which": torch.tensor([1, 0]), "begin": torch.tensor([begin, begin]), "snr_db": torch.zeros(2)}
        )
        for got, wave in zip(out, waves[::-1]):
            noise = np.take(wave, np.arange(begin, begin + samples), mode="wrap")
            np.testing.assert_allclose(got.flatten().numpy(), 1 + noise / np.sqrt((noise**2).mean()), rtol=1e-5)
        drawn = aug.draw(torch.ones(500, 1, 1, samples), gen())
        assert drawn["which"].unique().tolist() == [0, 1] and drawn["begin"].min() >= 0
        assert drawn["begin"].max() == (max(0, 100 - samples) if samples <= 100 else 99)


def test_background_reads_a_folder_in_order_and_at_the_rate_of_the_batch(place):
    x, y = torch.ones(3, 1, 1, 1000), torch.eye(3)
    files = ["deeper/stereo.flac", "long.wav", "short.wav"]
    out, _ = Background(path=str(place), sample_rate=RATE).apply(
        x, y, {"which": torch.arange(3), "begin": torch.zeros(3).long(), "snr_db": torch.zeros(3)}
    )
    from audiotag.audio.io import read_audio

    for got, name in zip(out, files):
        wave = read_audio(place / name, sample_rate=RATE)[:1000]
        assert np.corrcoef(got.flatten().numpy() - 1, wave)[0, 1] > 0.9999, name


def test_what_must_not_change(augments):
    for aug in augments:
        x, y = batch()
        y0, x0, state = y.clone(), x.clone(), torch.random.get_rng_state()
        params = aug.draw(x, gen())
        kept = {k: v.clone() for k, v in params.items()}
        a, b = aug.apply(x, y, params), aug.apply(x, y, params)
        assert torch.equal(x, x0) and torch.equal(y, y0) and all(torch.equal(params[k], v) for k, v in kept.items()), (
            aug
        )
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], y) and a[0].shape == x.shape and a[0].dtype == x.dtype, aug
        assert a[1] is not y and a[0].data_ptr() != x.data_ptr() and not torch.equal(a[0], x), aug
        assert torch.equal(aug(x, y, gen())[0], a[0]) and not torch.equal(aug(x, y, gen(2))[0], a[0]), aug
        assert torch.equal(torch.random.get_rng_state(), state), aug
        assert torch.equal(aug.replace(p=0.0)(x, y, gen())[0], x), aug
        assert config_from_dict(aug.to_dict()) == aug and aug.on_wave and isinstance(aug, WaveAugment)


def test_several_inputs_and_one_after_the_other(augments):
    x, y = batch()
    beside = torch.rand(6, 1, 128, 12)
    (a, b), c = augment_batch([*augments, MixUp(weight=0.7)], (x, beside), y, gen())
    assert (
        a.shape == x.shape
        and torch.isfinite(a).all()
        and not torch.equal(b, beside)
        and c.sum(1).allclose(torch.ones(6))
    )
    (_, same), _ = augment_batch(augments, (x, beside), y, gen())
    assert torch.equal(same, beside)


def test_recordings_that_cannot_be(tmp_path):
    x, y = batch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "silent").mkdir()
    sf.write(tmp_path / "silent" / "a.wav", np.zeros(1000), RATE)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "readme.txt").write_text("recorded in May")
    np.save(tmp_path / "object.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.save(tmp_path / "flat.npy", np.ones(9))
    np.save(tmp_path / "whole.npy", np.ones((2, 9), int))
    np.save(tmp_path / "nan.npy", np.full((2, 9), np.nan))
    np.save(tmp_path / "zero.npy", np.eye(3)[:, :2])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "flat.npy").read_bytes()[:40])
    for bad in [o for o in tmp_path.iterdir()] + [tmp_path / "nothing", tmp_path / "silent" / "a.wav"]:
        with pytest.raises(AudiotagError) as e:
            Background(path=str(bad), sample_rate=RATE)(x, y, gen())
        assert bad.name in str(e.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Shift(max_share=1.5),
        lambda: Gain(low_db=5.0, high_db=-5.0),
        lambda: Noise(low_db=20.0, high_db=10.0),
        lambda: Noise(exponent=9.0),
        lambda: Noise(p=2.0),
        lambda: TimeMask(n=0),
        lambda: TimeMask(max_share=-0.1),
        lambda: Background(path=""),
        lambda: Background(path="x", sample_rate=0),
        lambda: Shift(until_epoch=-1),
        lambda: Gain(high_db=float("nan")),
    ],
)
def test_refuses_bad_settings(make):
    with pytest.raises(AudiotagError):
        make()


@pytest.mark.parametrize(
    "bad",
    [
        lambda x, y, g: (x[:, 0], y, g),
        lambda x, y, g: (x, y[:2], g),
        lambda x, y, g: (x.long(), y, g),
        lambda x, y, g: (x, y, 3),
        lambda x, y, g: (x[..., :0], y, g),
    ],
)
def test_refuses_what_is_no_batch(bad):
    with pytest.raises(AudiotagError):
        Noise()(*bad(*batch(), gen()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(augments):
    x, y = batch()
    for aug in augments:
        params = aug.draw(x, gen())
        here, there = aug.apply(x, y, params)[0], aug.apply(x.cuda(), y.cuda(), params)[0]
        assert there.is_cuda
        if "seed" not in params:
            torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-6)
        else:
            assert (decibels(x, there.cpu())[:-1] - params["snr_db"][:-1]).abs().max() < 1e-3
