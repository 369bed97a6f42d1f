"Front ends against librosa, layer against front end, and what they refuse."

import copy
import dataclasses
import inspect
import math
import pickle
import subprocess
import sys
import warnings

import librosa
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from audiotag.audio.io import ReadOptions, crop_or_pad, trim_silence
from audiotag.core.errors import AudiotagError
from audiotag.core.config import Config, config_from_dict
from audiotag.audio.features import (
    PCEN,
    PERCENTILES,
    PRESETS,
    EightBit,
    FixedStats,
    FrontEnd,
    GlobalFeatures,
    Joined,
    Length,
    LogMel,
    MinMax,
    Peak,
    RawFold,
    Standardize,
    Waveform,
    _mel_filters,
    _smooth,
    crop_frames,
    front_end_parts,
    window_starts,
)

RATE = 44100


def librosa_db(fe, wave):
    "What librosa makes of `wave` with the settings of `fe`."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mel = librosa.feature.melspectrogram(
            y=wave,
            sr=fe.sample_rate,
            n_fft=fe.n_fft,
            hop_length=fe.hop_length,
            n_mels=fe.n_mels,
            fmin=fe.f_min,
            fmax=fe.f_max,
            power=fe.power,
            htk=fe.htk,
            norm=fe.norm,
            center=fe.center,
            pad_mode=fe.pad_mode,
        )
    return librosa.power_to_db(
        mel, ref=np.max if fe.reference == "max" else fe.reference, amin=fe.amin, top_db=fe.top_db
    )


def synthetic():
    "Waves that are hard in different ways, all 1.3 s or less."
    g, n = np.random.default_rng(0), int(1.3 * RATE)
    t = np.arange(n) / RATE
    noise = g.standard_normal(n)
    spectrum = np.fft.rfft(noise)
    spectrum[np.fft.rfftfreq(n, 1 / RATE) > 7000] = 0
    waves = dict(
        noise=0.1 * noise,
        tone=0.9 * np.sin(2 * np.pi * 1000 * t),
        chirp=0.5 * np.sin(2 * np.pi * (200 + 5000 * t) * t),
        decay=0.3 * noise * np.exp(-20 * t),
        lowpassed=0.1 * np.fft.irfft(spectrum, n),
        offset=0.7 + 1e-4 * noise,
        rumble=0.9 * np.sin(2 * np.pi * 5 * t) + 1e-4 * noise,
        click=np.where(np.arange(n) == n // 2, 1.0, 0.0),
        silence=np.zeros(n),
        one=np.array([0.5]),
        short=0.1 * noise[:700],
    )
    return {k: v.astype(np.float32) for k, v in waves.items()}


@pytest.fixture(scope="module")
def real(sample_set):
    "A few real clips, 3 s at most, as read_audio gives them."
    folder = sample_set("freesound")
    files = [*sorted((folder / "train_curated").iterdir())[:4], *sorted((folder / "train_noisy").iterdir())[:2]]
    return {f.name: LogMel().read(f)[: 3 * RATE] for f in files}


GRID = {
    "default": {},
    "hop 694": dict(hop_length=694, top_db=80.0),
    "1024": dict(n_fft=1024, hop_length=500, n_mels=64, top_db=80.0),
    "no power of two": dict(n_fft=1500, hop_length=441),
    "odd": dict(n_fft=1001, hop_length=333, n_mels=40),
    "prime": dict(n_fft=2003, hop_length=701, n_mels=80),
    "long": dict(n_fft=8192, hop_length=2048, n_mels=229),
    "longer than the clip": dict(n_fft=2**17, hop_length=9000),
    "hop beyond the frame": dict(n_fft=512, hop_length=800, n_mels=32),
    "empty bands": dict(n_fft=256, hop_length=128),
    "one band": dict(n_mels=1),
    "range": dict(f_min=500.0, f_max=14000.0),
    "to half the rate": dict(f_max=None, f_min=0.0),
    "htk": dict(htk=True),
    "height 1": dict(norm=None),
    "htk, height 1": dict(htk=True, norm=None, n_fft=3000, top_db=None),
    "not centered": dict(center=False, n_fft=512),
    "reflect": dict(pad_mode="reflect"),
    "edge": dict(pad_mode="edge"),
    "symmetric": dict(pad_mode="symmetric"),
    "all levels": dict(top_db=None),
    "100 dB": dict(top_db=100.0),
    "20 dB": dict(top_db=20.0),
    "to the maximum": dict(reference="max"),
    "reference 3": dict(reference=3.0, top_db=80.0),
    "small reference": dict(reference=1e-12),
    "amin": dict(amin=1e-5, top_db=None),
    "magnitude": dict(power=1.0),
    "magnitude, all levels": dict(power=1.0, top_db=None, norm=None),
    "16 kHz": dict(sample_rate=16000, f_max=8000.0),
}


@pytest.mark.parametrize("name", GRID)
def test_logmel_is_librosas(name, real):
    fe = LogMel(**GRID[name])
    for clip, wave in {**synthetic(), **real}.items():
        if not fe.center and len(wave) < fe.n_fft:
            continue
        if fe.pad_mode == "reflect" and len(wave) == 1:
            continue  # librosa itself cannot
        got, want = fe(wave), librosa_db(fe, wave)
        assert got.shape == want.shape == (fe.n_bands, fe.n_frames(len(wave))), clip
        assert got.dtype == np.float32
        assert np.abs(got - want).max() <= 0.01, clip


@pytest.mark.parametrize("name", [k for k, v in PRESETS.items() if isinstance(v, LogMel) and not v.preemphasis])
def test_presets_are_librosas(name, sample_set):
    fe = PRESETS[name]
    for path in sorted((sample_set("freesound") / "train_curated").iterdir())[4:8]:
        wave = fe.read(path)[: 4 * fe.sample_rate]
        x = librosa_db(fe, wave)
        want = {
            Standardize: lambda: (x - x.mean()) / x.std(),
            MinMax: lambda: (x - x.min()) / (x.max() - x.min()),
            EightBit: lambda: np.floor(255 * (x - x.min()) / (x.max() - x.min())) / 255,
            FixedStats: lambda: (x - fe.scaling.mean) / fe.scaling.std,
            type(None): lambda: x,
        }[type(fe.scaling)]()
        assert np.abs(fe.replace(scaling=None)(wave) - x).max() <= 0.01
        assert np.abs(fe(wave) - want).max() <= 0.01
        assert np.array_equal(fe.read_features(path, end_s=1.0), fe(fe.read(path, end_s=1.0)))


def test_any_float_and_stride(real):
    wave, fe = next(iter(real.values())), LogMel()
    kept = wave.copy()
    want = fe(wave)
    assert np.array_equal(fe(wave.astype(np.float64)), want)
    assert np.array_equal(fe(np.stack([wave, wave], 1)[:, 0]), want)
    frozen = wave.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for each in (
            fe,
            LogMel(center=False),
            LogMel(top_db=None),
            Waveform(),
            GlobalFeatures(),
            LogMel(pcen=PCEN(), deltas=2),
        ):
            each(frozen)
    assert np.array_equal(wave, kept)
    assert not np.shares_memory(Waveform()(wave), wave)


def test_pcen_and_deltas_are_librosas(real):
    for wave in {**synthetic(), **real}.values():
        fe = LogMel(hop_length=512, pcen=PCEN(gain=0.8, bias=10.0, power=0.25, time_constant=0.06))
        wave = crop_or_pad(wave, max(len(wave), 2560))
        mel = librosa.feature.melspectrogram(y=wave, sr=RATE, n_fft=2560, hop_length=512, n_mels=128, fmin=20)
        want = librosa.pcen(mel * 2**31, sr=RATE, hop_length=512, gain=0.8, bias=10, power=0.25, time_constant=0.06)
        assert np.abs(fe(wave) - want).max() <= 1e-3 * max(1, want.max())
        x = LogMel(deltas=2)(wave)
        if x.shape[-1] >= 9:
            for order in (1, 2):
                assert np.abs(x[order] - librosa.feature.delta(x[0], order=order)).max() <= 1e-4
        assert np.isfinite(x).all()


LAYERS = {
    **{k: LogMel(**v) for k, v in GRID.items() if k != "longer than the clip"},
    **{k: v for k, v in PRESETS.items() if not isinstance(v, RawFold)},
    "channels": LogMel(deltas=2, frequency_channel=True, scaling=Standardize()),
    "deltas": LogMel(deltas=1),
    "fixed": LogMel(scaling=FixedStats(mean=-20.0, std=15.0)),
    "pcen": LogMel(pcen=PCEN()),
    "pcen, scaled": LogMel(pcen=PCEN(), scaling=MinMax()),
    "short window": LogMel(win_length=1001, top_db=None, scaling=FixedStats()),
    "pre-emphasis, offset": LogMel(preemphasis=0.9, offset=1e-3, triangles="mel", scaling=FixedStats()),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_the_front_end(name, real):
    "Batch and single, for clips of one length whose levels differ by 60 dB."
    fe = LAYERS[name]
    clips = [
        crop_or_pad(w, RATE // 2, at="start") * g
        for w, g in zip([*real.values(), synthetic()["silence"]], (1, 0.001, 0.1, 1, 3, 1, 1))
    ]
    got = fe.layer()(torch.from_numpy(np.stack(clips)).float())
    assert got.dtype == torch.float32
    for clip, x in zip(clips, got.numpy()):
        want = fe(clip.astype(np.float32))
        assert x.shape == (fe.n_channels, fe.n_bands, fe.n_frames(len(clip)))
        assert np.abs(x - want).max() <= 2e-3
        assert np.abs(x - fe.layer()(torch.from_numpy(clip).float()[None])[0].numpy()).max() <= 1e-4


@pytest.fixture(scope="module")
def torchaudio():
    "torchaudio, or a skip where it is missing or was built for another torch."
    try:
        import torchaudio.functional
    except (ImportError, OSError, RuntimeError, AttributeError) as e:
        pytest.skip(f"torchaudio cannot be loaded here ({type(e).__name__}: {str(e)[:200]})")
    return torchaudio


@pytest.mark.parametrize(
    "name",
    [
        k
        for k, v in LAYERS.items()
        if type(v) is LogMel and v.pcen is None and v.n_channels == 1 and v.scaling is v.wave_scaling
    ],
)
def test_the_layer_is_torchaudios(name, torchaudio):
    "Spectrogram and decibels, values and gradients, of clips whose levels differ; torchaudio takes a maximum for each item of the first axis."
    fe = LAYERS[name]
    if fe.center and fe.pad_mode in ("symmetric", "edge"):
        pytest.skip("torchaudio does not pad like this")
    waves = np.stack(
        [synthetic()[k][:22050] * g for k, g in (("noise", 1), ("chirp", 0.01), ("decay", 3), ("silence", 1))]
    )
    layer = fe.layer()
    ours, theirs = (torch.from_numpy(waves).requires_grad_() for _ in range(2))
    power = torchaudio.functional.spectrogram(
        theirs.to(layer.window.dtype),
        0,
        layer.window,
        fe.n_fft,
        fe.hop_length,
        fe.n_fft,
        fe.power,
        False,
        center=fe.center,
        pad_mode=fe.pad_mode,
    )
    reference = 1.0 if fe.reference == "max" else fe.reference
    want = torchaudio.functional.amplitude_to_DB(
        (layer.filters @ power.float())[:, None], 10.0, fe.amin, np.log10(max(fe.amin, reference)), fe.top_db
    )
    if fe.reference == "max":
        want = want - want.amax((-2, -1), keepdim=True)
    got = layer(ours)
    assert got.shape == want.shape and (got - want).abs().max() <= 1e-4
    for x in (got, want):
        x.square().sum().backward()
    assert (ours.grad - theirs.grad).abs().max() <= 1e-4 * theirs.grad.abs().max()


@pytest.mark.parametrize("frames", [1, 2, 31, 32, 33, 500, 1024, 20000])
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.96, 0.9999])
def test_the_smoother_of_pcen_is_the_recursion(frames, keep):
    "Blocks give what a loop gives, for any length; the gradient is the recursion run backwards."
    x = torch.rand(2, 3, frames, generator=torch.Generator().manual_seed(frames), dtype=torch.float64).requires_grad_()
    got, last, want = _smooth(x, keep, 1.0), torch.ones(2, 3, dtype=torch.float64), []
    for t in range(frames):
        last = keep * last + x[..., t].detach()
        want.append(last)
    torch.testing.assert_close(got, torch.stack(want, -1), rtol=1e-12, atol=0)
    pull = torch.rand(2, 3, frames, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (got * pull).sum().backward()
    torch.testing.assert_close(x.grad, _smooth(pull.flip(-1), keep, 0.0).flip(-1), rtol=1e-12, atol=0)


def test_the_smoother_of_pcen_is_torchaudios(torchaudio):
    x = 1e6 * torch.rand(2, 128, 3000, generator=torch.Generator().manual_seed(0)) ** 8
    b = 0.04
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN rounds to TF32
        want = torchaudio.functional.lfilter(x, x.new_tensor([1.0, b - 1]), x.new_tensor([b, 0.0]), clamp=False) + (
            1 - b
        ) ** torch.arange(1, 3001)
    torch.testing.assert_close(_smooth(b * x.double(), 1 - b, 1.0).float(), want, rtol=1e-5, atol=0)


def test_a_long_clip_keeps_pcens_precision():
    "Ten minutes, where rounding could add up: the layer against librosa, frame by frame."
    fe = LogMel(sample_rate=8000, n_fft=256, hop_length=80, n_mels=16, f_max=None, pcen=PCEN())
    wave = (np.random.default_rng(0).standard_normal(600 * 8000) * np.linspace(1e-3, 1, 600 * 8000)).astype(np.float32)
    assert np.abs(fe.layer()(torch.from_numpy(wave)[None])[0, 0].numpy() - fe(wave)).max() <= 2e-3


@pytest.mark.parametrize(
    "fe",
    [
        LogMel(),
        LogMel(power=1.0),
        LogMel(top_db=None),
        LogMel(pcen=PCEN()),
        LogMel(reference="max", scaling=MinMax()),
        LogMel(pad_mode="reflect", deltas=2, scaling=Standardize()),
        GlobalFeatures(scaling=Standardize()),
    ],
    ids=lambda fe: fe.hash,
)
def test_gradients_are_finite(fe):
    noise = torch.randn(1, 20000, generator=torch.Generator().manual_seed(0)) * 0.1
    batch = torch.cat([noise, 0 * noise, torch.cat([noise[:, :9000], torch.zeros(1, 11000)], 1)]).requires_grad_()
    (fe.layer()(batch) ** 2).sum().backward()
    assert batch.grad.isfinite().all()
    assert batch.grad[0].abs().max() > 0


def test_layer_as_a_module():
    layer = LogMel(deltas=1).layer()
    assert dict(layer.state_dict()) == {} and not list(layer.parameters())
    again = pickle.loads(pickle.dumps(layer))
    wave = torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(wave), layer(wave))
    moved = copy.deepcopy(torch.nn.Sequential(layer, torch.nn.Conv2d(2, 4, 3))).to("meta")
    assert {b.device.type for b in moved.buffers()} == {"meta"} and {b.device.type for b in layer.buffers()} == {"cpu"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(wave), again(wave))
    assert torch.equal(layer(wave.double()), layer(wave))
    for bad in (wave[0], wave[:, None], wave.long(), wave[:, :0]):
        with pytest.raises(AudiotagError):
            layer(bad)
    with pytest.raises(AudiotagError):
        LogMel(center=False).layer()(wave[:, :100])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.parametrize("name", LAYERS)
def test_layer_on_the_gpu(name):
    fe = LAYERS[name]
    clips = np.stack([synthetic()[k][:20000] for k in ("noise", "chirp", "decay")])
    got = fe.layer().cuda()(torch.from_numpy(clips).cuda())
    assert got.dtype == torch.float32 and got.is_cuda
    assert np.abs(got.cpu().numpy() - fe.layer()(torch.from_numpy(clips)).numpy()).max() <= 1e-3


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("n_fft", [512, 2048, 4096])
def test_faint_bands_beside_loud_ones(n_fft, power):
    "Tones, and noise whose upper bands are all but dead, at every depth: within .01 dB of a 64-bit FFT."
    draw, seconds = np.random.default_rng(n_fft), np.arange(RATE) / RATE
    for depth in range(-7, -1):
        noise = np.fft.rfft(draw.standard_normal(RATE))
        noise[int(len(noise) * draw.uniform(0.2, 0.9)) :] *= 10.0**depth
        tone = np.sin(2 * np.pi * draw.uniform(50, 9000) * seconds) + 10.0**depth * draw.standard_normal(RATE)
        for wave in (np.fft.irfft(noise, RATE), tone):
            wave = (wave / np.abs(wave).max()).astype(np.float32)
            for top_db, norm in ((80.0, "slaney"), (None, None)):
                fe = LogMel(n_fft=n_fft, hop_length=n_fft // 4, power=power, top_db=top_db, norm=norm)
                assert np.abs(fe(wave) - librosa_db(fe, wave)).max() <= 0.01


def test_the_filterbank_is_librosas_to_the_last_bit():
    draw = np.random.default_rng(0)
    for _ in range(300):
        rate, n_fft, mels = (
            int(draw.choice([8000, 16000, 22050, 32000, 44100, 48000])),
            int(draw.choice([256, 400, 1000, 1024, 2048, 2560])),
            int(draw.integers(1, 257)),
        )
        low, high, htk, norm = (
            float(draw.choice([0, 20, 27.5, 50, 1200])),
            draw.choice([None, rate / 2, rate / 2.2, rate / 2 - 1.5]),
            bool(draw.integers(2)),
            draw.choice([None, "slaney"]),
        )
        ours = LogMel(sample_rate=rate, n_fft=n_fft, n_mels=mels, f_min=low, f_max=high, htk=htk, norm=norm)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # empty filters
            theirs = librosa.filters.mel(sr=rate, n_fft=n_fft, n_mels=mels, fmin=low, fmax=high, htk=htk, norm=norm)
        found = _mel_filters(ours._mel_settings)
        assert found.dtype == theirs.dtype and np.array_equal(found, theirs), ours


def test_a_log_mel_needs_no_librosa():
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import numpy as np, sys; from audiotag.audio.features import LogMel; LogMel()(np.ones(9000, 'f4')); print([m for m in ('librosa', 'scipy', 'numba') if m in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "[]"  # they take a second


def test_scalings():
    x = LogMel()(synthetic()["decay"])
    z = Standardize()(x)
    assert abs(z.mean()) < 1e-4 and abs(z.std() - 1) < 1e-4
    z = MinMax()(x)
    assert (z.min(), z.max()) == (0, 1)
    both = np.stack([x, 7 * x - 3])
    assert np.abs(np.diff(Standardize()(both), axis=0)).max() < 1e-4
    for constant in (-100.0, -99.99999, -37.13, 0.0, 0.1):
        flat = np.full((128, 777), constant, np.float32)
        for scaling in (Standardize(), MinMax()):
            assert not scaling(flat).any() and not scaling(torch.from_numpy(flat)).any()


BAD = [
    dict(n_fft=0),
    dict(n_fft=1),
    dict(n_fft=-5),
    dict(n_fft=2048.5),
    dict(hop_length=0),
    dict(n_mels=0),
    dict(sample_rate=0),
    dict(f_min=-1.0),
    dict(f_max=22051.0),
    dict(f_max=0.0),
    dict(sample_rate=32000),
    dict(f_min=5000.0, f_max=4000.0),
    dict(f_min=100.0, f_max=101.0),
    dict(f_min=22050.0),
    dict(f_min=float("nan")),
    dict(f_max=float("nan")),
    dict(f_max=float("inf")),
    dict(top_db=0.0),
    dict(top_db=-80.0),
    dict(top_db=float("nan")),
    dict(top_db=float("inf")),
    dict(amin=0.0),
    dict(amin=float("nan")),
    dict(reference=0.0),
    dict(reference="median"),
    dict(reference=None),
    dict(power=3.0),
    dict(norm="area"),
    dict(norm=1),
    dict(pad_mode="wrap"),
    dict(pad_mode="constant "),
    dict(deltas=3),
    dict(deltas=True),
    dict(center=1),
    dict(htk=None),
    dict(scaling="standardize"),
    dict(scaling=PCEN()),
    dict(reading=None),
    dict(pcen=True),
    dict(n_fft=True),
    dict(win_length=2),
    dict(win_length=2561),
    dict(preemphasis=-0.1),
    dict(preemphasis=1.1),
    dict(triangles="bark"),
    dict(offset=-1e-9),
    dict(offset=float("inf")),
]


@pytest.mark.parametrize("kwargs", BAD, ids=str)
def test_bad_settings(kwargs):
    with pytest.raises(AudiotagError) as e:
        LogMel(**kwargs)
    assert any(name in str(e.value) for name in kwargs) or "f_m" in str(e.value)


def test_bad_settings_of_the_others():
    for make in (
        lambda: Standardize(eps=0.0),
        lambda: MinMax(eps=-1.0),
        lambda: FixedStats(std=0.0),
        lambda: FixedStats(mean=float("nan")),
        lambda: PCEN(gain=0.0),
        lambda: PCEN(eps=float("inf")),
        lambda: RawFold(rows=0),
        lambda: GlobalFeatures(n_segments=0),
        lambda: Waveform(sample_rate=-1),
    ):
        with pytest.raises(AudiotagError):
            make()


@pytest.mark.parametrize(
    "fe",
    [LogMel(), LogMel(top_db=None), GlobalFeatures(), RawFold(channels=1, rows=2, columns=2), Waveform()],
    ids=lambda o: type(o).__name__,
)
def test_bad_waves(fe):
    good = np.zeros(4, np.float32)
    for bad in (
        None,
        [0.0, 1.0],
        torch.zeros(4),
        good[:0],
        good[None],
        good[:, None],
        np.float32(1),
        good.astype(int),
        good.astype(np.int16),
        good.astype(complex),
        good.astype(bool),
        np.array(["a"]),
        good + np.nan,
        good + np.inf,
        good - np.inf,
        good.astype(np.float64) + 1e300,
        good + 1e12,
        np.array([0, 0, 0, np.nan]),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(AudiotagError) as e:
                fe(bad)
        assert e.value.kind in ("not_a_wave", "not_finite")
    assert np.isfinite(fe(good)).all() and np.isfinite(fe(good + np.float32(1e8))).all()


def test_too_short_without_centering():
    fe = LogMel(center=False)
    assert (
        fe(np.zeros(2560, np.float32)).shape == (128, 1)
        and fe.n_frames(2560 + 346) == 1
        and fe.n_frames(2560 + 347) == 2
    )
    for do in (lambda: fe(np.zeros(2559, np.float32)), lambda: fe.n_frames(2559), lambda: LogMel().n_frames(0)):
        with pytest.raises(AudiotagError):
            do()


OTHER = dict(
    wave_scaling=Peak(),
    sample_rate=48000,
    n_fft=2048,
    hop_length=348,
    n_mels=127,
    f_min=21.0,
    f_max=22049.0,
    top_db=61.0,
    reference=2.0,
    amin=1e-9,
    power=1.0,
    htk=True,
    norm=None,
    center=False,
    pad_mode="edge",
    pcen=PCEN(),
    deltas=1,
    frequency_channel=True,
    scaling=MinMax(),
    reading=ReadOptions(trim_db=60.0),
    win_length=2000,
    symmetric=True,
    preemphasis=0.97,
    triangles="mel",
    offset=1e-5,
)


def test_every_field_changes_the_hash():
    assert set(OTHER) == {f.name for f in dataclasses.fields(LogMel)}, "a new field belongs into OTHER"
    base = LogMel()
    hashes = {base.replace(**{k: v}).hash for k, v in OTHER.items()}
    assert len(hashes | {base.hash}) == 1 + len(OTHER)
    for k, v in OTHER.items():
        assert set(n.split(".")[0] for n in base.diff(base.replace(**{k: v}))) == {k}
    deep = [
        LogMel(scaling=Standardize()),
        LogMel(scaling=Standardize(eps=1e-5)),
        LogMel(scaling=FixedStats(std=2.0)),
        LogMel(pcen=PCEN(power=0.3)),
        LogMel(reading=ReadOptions(channel=1)),
    ]
    assert len({fe.hash for fe in deep}) == len(deep)
    assert LogMel(f_min=20).hash == LogMel().hash and len({fe.hash for fe in PRESETS.values()}) == len(PRESETS)


def test_hash_is_the_same_in_another_process():
    out = subprocess.run(
        [
            sys.executable,
            "-c",
            "from audiotag.audio.features import *; import sys; print(LogMel().hash, 'torch' in sys.modules, 'librosa' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PATH": ""},
    ).stdout.split()
    assert out == [LogMel().hash, "False", "False"]


def test_every_front_end_keeps_the_contract():
    kinds = {LogMel, GlobalFeatures, RawFold, Waveform}
    ours = {
        c for c in FrontEnd.__subclasses__() if not c.__module__.endswith("foreign")
    }  # those have tests of their own
    assert {type(fe) for fe in PRESETS.values()} == kinds == ours - {Joined, Length}
    assert inspect.signature(LogMel).parameters["hop_length"].default == 347 and issubclass(FrontEnd, Config)
    for fe in PRESETS.values():
        n = fe.n_samples if isinstance(fe, RawFold) else fe.sample_rate
        x = fe(np.zeros(n, np.float32))
        assert x.shape == (fe.n_channels, fe.n_bands, fe.n_frames(n))[fe.n_channels == 1 :] and x.dtype == np.float32
        assert fe.layer()(torch.zeros(2, n)).shape == (2, fe.n_channels, fe.n_bands, fe.n_frames(n))


@pytest.mark.parametrize(
    "fe",
    [LogMel(), LogMel(n_fft=501, hop_length=100), LogMel(center=False, n_fft=512), LogMel(preemphasis=0.5), Waveform()],
)
def test_the_shortest_wave_for_so_many_frames(fe):
    for n in (1, 2, 57):
        samples = fe.samples_for(n)
        assert fe.n_frames(samples) == n and (samples == 1 or fe_frames(fe, samples - 1) < n)


def fe_frames(fe, n):
    try:
        return fe.n_frames(n)
    except AudiotagError:
        return 0


def test_joined_front_ends():
    "Every part gives what it gives alone, by clip and by batch; there is one reading, that of the whole."
    fe = Joined(
        main=LogMel(sample_rate=8000, n_fft=512, f_max=4000),
        beside=(GlobalFeatures(), Length(scale_s=2.0)),
        sample_rate=32000,
    )
    wave = np.random.default_rng(0).standard_normal(48000).astype(np.float32)
    assert [o.sample_rate for o in front_end_parts(fe)] == [32000] * 3 and front_end_parts(Length()) == (Length(),)
    for whole, part, layer in zip(fe(wave), front_end_parts(fe), fe.layer()(torch.from_numpy(np.stack([wave, -wave])))):
        assert np.array_equal(whole, part(wave)) and whole.shape == (part.n_bands, part.n_frames(len(wave)))
        np.testing.assert_allclose(layer[0, 0], whole, atol=2e-3)
    assert fe(wave)[2].item() == 48000 / 32000 / 2
    assert (
        fe.n_frames(48000) == fe.main.n_frames(48000)
        and fe.fill is None
        and Joined(main=Waveform(), beside=(Length(),)).fill == 0
    )
    again = config_from_dict(fe.to_dict())
    assert again == fe and again.hash == fe.hash
    moved = fe.replace(sample_rate=16000)
    assert moved.main.sample_rate == moved.beside[1].sample_rate == 16000 and moved.hash != fe.hash
    for wrong in (dict(beside=()), dict(beside=(fe,)), dict(scaling=MinMax())):
        with pytest.raises(AudiotagError):
            fe.replace(**wrong)


def test_a_part_of_a_joined_front_end_trims_by_itself():
    "System 2: the global features are those of the whole file, crop and length those of the trimmed one."
    trims, g = ReadOptions(trim_db=60), np.random.default_rng(0)
    fe = Joined(main=Waveform(reading=trims), beside=(GlobalFeatures(), Length(reading=trims)))
    loud = g.standard_normal(30000).astype(np.float32)
    wave = np.concatenate([np.zeros(20480, np.float32), loud, np.zeros(40960, np.float32)])
    x, whole, length = fe(wave)
    inside = trim_silence(wave, 60)
    assert len(inside) < 40000 and np.array_equal(x[0], inside) and length.item() == np.float32(len(inside) / 441000)
    assert np.array_equal(whole, GlobalFeatures()(wave)) and not np.allclose(whole, GlobalFeatures()(inside))
    assert config_from_dict(fe.to_dict()) == fe and fe.reading.trim_db is None
    # as stored before: one reading for all parts
    old = Joined(main=Waveform(), beside=(GlobalFeatures(), Length()), reading=trims)
    assert not old.trimmed_parts and {p.reading for p in front_end_parts(old)} == {trims}
    with pytest.raises(AudiotagError, match="clip by clip"):
        fe.layer()
    with pytest.raises(AudiotagError, match="trim all parts or none"):
        fe.replace(reading=ReadOptions(pad_to_s=2.0))


def test_the_kernel_s_eight_bits():
    "Standardized, then 0 to 255 cut down to whole numbers, then over 255; constant images are zeros."
    x = np.array([[0.0, 1.1, 2.1], [3.0, 4.1, 10.0]], np.float32)
    want = np.array([[0, 28, 53], [76, 104, 255]]) / 255
    assert np.abs(EightBit()(x) - want).max() < 1e-6
    assert np.abs(EightBit()(torch.from_numpy(np.stack([x, 7 * x]))).numpy()[0] - want).max() < 1e-6
    assert not EightBit()(np.full((2, 3), -7.3, np.float32)).any()
    g = np.random.default_rng(0)
    big = g.normal(-40, 15, (128, 300)).astype(np.float32)
    z = (big - big.mean()) / (big.std() + 1e-6)
    codes = (255 * (z - z.min()) / (z.max() - z.min())).astype(np.uint8)
    ours = EightBit()(big) * 255
    assert np.abs(ours - ours.round()).max() < 1e-4 and (ours.round() == codes).mean() > 0.9999


def test_the_fourth_and_the_fifth_of_birdclef_2024():
    "Their decibels from librosa's power: (dB + 80)/80, and torchaudio's filters on a power over that of the window."
    wave = (np.random.default_rng(0).standard_normal(160000) * np.linspace(0.01, 1, 160000) * 0.2).astype(np.float32)

    def decibels(power):
        x = 10 * np.log10(np.maximum(power, 1e-10))
        return np.maximum(x, x.max() - 80)

    args = dict(y=wave, sr=32000, fmin=0, fmax=16000)
    power = librosa.feature.melspectrogram(n_fft=2048, hop_length=627, n_mels=128, **args)
    got = PRESETS["birdclef_mel_4th"](wave)
    assert got.shape == (128, 256) and np.abs(got - (decibels(power) + 80) / 80).max() < 2e-4
    power = librosa.feature.melspectrogram(
        n_fft=4096, hop_length=512, n_mels=512, htk=True, norm=None, pad_mode="reflect", **args
    )
    window = np.sum(np.hanning(4097)[:-1] ** 2)
    got = PRESETS["birdclef_mel_5th"](wave)
    assert got.shape == (512, 313) and np.abs(got - decibels(power / window)).max() < 0.01


@pytest.mark.parametrize("n", [160000, 99999, 3000])
def test_the_front_end_of_efficientat(n, torchaudio):
    "Kaldi's filters by torchaudio, and the rest as its description has it."
    from torchaudio.compliance.kaldi import get_mel_banks

    wave = (np.random.default_rng(n).standard_normal(n) * np.linspace(1e-5, 0.3, n)).astype(np.float32)
    fe, x = PRESETS["efficientat"], torch.from_numpy(wave)
    window = torch.hann_window(800, periodic=False)
    spectrum = torch.stft(x[1:] - 0.97 * x[:-1], 1024, 320, 800, window, pad_mode="reflect", return_complex=True)
    banks = get_mel_banks(128, 1024, 32000.0, 0.0, 15000.0, 100.0, -500.0, 1.0)[0]
    np.testing.assert_allclose(_mel_filters(fe._mel_settings)[:, :-1], banks.numpy(), atol=2e-5)
    want = ((banks @ spectrum.abs().square()[:-1] + 1e-5).log() + 4.5) / 5
    assert want.shape == (128, fe.n_frames(n)) == (128, 1 + (n - 1) // 320)
    assert np.abs(fe(wave) - want.numpy()).max() < 2e-4
    assert np.abs(fe.layer()(x[None])[0, 0].numpy() - want.numpy()).max() < 2e-4
    assert fe(np.zeros(n, np.float32)).max() == pytest.approx((math.log(1e-5) + 4.5) / 5, abs=1e-5)


def test_the_front_end_of_panns():
    "That of its checkpoints: `melW` is the filterbank, and a second has 100 frames and one."
    fe = PRESETS["panns"]
    want = librosa.filters.mel(sr=32000, n_fft=1024, n_mels=64, fmin=50, fmax=14000)
    assert np.array_equal(_mel_filters(fe._mel_settings), want)
    silence = fe(np.zeros(32000, np.float32))
    # the logarithm of a float32 differs between processors in its last bit
    assert silence.shape == (64, 101) and np.allclose(silence, -100, rtol=1e-6)


def test_windows_at_even_steps():
    "The entrant's starts: as many windows as the hop asks for, rounded equal steps from the first frame to the last."
    for n in (128, 129, 176, 177, 300, 1000, 1293):
        s = math.ceil((n - 128) / 48) + 1
        theirs = [int(np.around((n - 128) * x / (s - 1))) if s != 1 else 0 for x in range(s)]
        assert window_starts(n, 128, 48, even=True) == theirs and len(window_starts(n, 128, 48)) == s
    assert window_starts(300, 128, 48, even=True) == [0, 43, 86, 129, 172]


def test_folds_of_system_5():
    "Where neighboring samples land."
    fe = RawFold()
    x = fe(np.arange(160000, dtype=np.float32))
    assert x.shape == (2, 1000, 80)
    assert (x[0, 0, 0], x[0, 0, 1], x[0, 1, 0], x[1, 0, 0], x[1, 999, 79]) == (0, 1, 80, 80000, 159999)
    one = RawFold(sample_rate=16000, channels=1, rows=625, columns=128)
    y = one(np.arange(80000, dtype=np.float32))
    assert y.shape == (625, 128)
    assert (y[0, 0], y[0, 1], y[0, 127], y[1, 0], y[624, 127]) == (0, 1, 127, 128, 79999)
    for each, n in ((fe, 160000), (one, 80000)):
        wave = np.random.default_rng(0).standard_normal(n).astype(np.float32)
        assert np.array_equal(each(wave).ravel(), wave)
        assert np.array_equal(each.layer()(torch.from_numpy(wave)[None])[0].numpy().squeeze(), each(wave))
        for bad in (n - 1, n + 1, 2 * n):
            with pytest.raises(AudiotagError, match="crop_or_pad"):
                each(np.zeros(bad, np.float32))
            with pytest.raises(AudiotagError):
                each.layer()(torch.zeros(1, bad))


def test_global_features_by_hand():
    "128 parts of 12 numbers, each part from half a stride before its place to one and a half after it."
    g = np.random.default_rng(0)
    for n in (128, 1000, 1280, 44100, 100003):
        wave = g.standard_normal(n).astype(np.float32)
        want = []
        for s in range(128):
            start = s * (n / 128)
            part = wave[max(0, int(start - n / 256)) : int(start + 1.5 * n / 128)]
            want.append(
                [
                    part.mean(),
                    part.std(),
                    part.max() - part.min(),
                    *np.percentile(part, [0, 1, 25, 30, 50, 60, 75, 99, 100]),
                ]
            )
        got = GlobalFeatures()(wave)
        assert got.shape == (128, 12) and np.abs(got - np.array(want)).max() < 1e-5
    assert len(PERCENTILES) == 9
    ramp = GlobalFeatures()(np.arange(1280, dtype=np.float32))
    # 20 long, every 10: neighbors overlap by half
    assert ramp[10, 3] == 95 and ramp[10, 11] == 114 and ramp[11, 3] == 105
    assert ramp[0, 3] == 0 and ramp[0, 11] == 14 and ramp[127, 11] == 1279
    for n in (1, 2, 77, 127):
        assert np.isfinite(GlobalFeatures()(np.ones(n, np.float32))).all()


def test_crops():
    x = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4) - 7
    assert np.array_equal(crop_frames(x, 1, 2), x[..., 1:3]) and np.shares_memory(crop_frames(x, 1, 2), x)
    y = crop_frames(x, 0, 7)
    assert y.shape == (2, 3, 7) and y.dtype == x.dtype
    assert (
        np.array_equal(y[..., 1:5], x) and (y[0, :, [0, 5, 6]] == x[0].min()).all() and (y[1, :, 0] == x[1].min()).all()
    )
    assert (crop_frames(x[0], 0, 9, fill=5.0)[:, [0, 1, 6, 7, 8]] == 5).all()
    assert np.array_equal(crop_frames(x[0].astype(np.float16), 0, 6), crop_frames(x[0], 0, 6))
    for start, n in ((-1, 2), (3, 2), (0, 0), (1, 5), (4, 1)):
        with pytest.raises(AudiotagError):
            crop_frames(x, start, n)


def test_windows_cover_the_clip():
    for n in range(1, 60):
        for size in (1, 2, 7, 16):
            for hop in (1, 3, 7, 20):
                starts = window_starts(n, size, hop)
                assert (
                    starts[0] == 0
                    and starts == sorted(set(starts))
                    and max(b - a for a, b in zip(starts, [*starts[1:], starts[-1]])) <= hop
                )
                if n <= size:
                    assert starts == [0]
                else:
                    assert starts[-1] + size == n
                if hop <= size:
                    assert len(set().union(*(range(s, s + size) for s in starts)) & set(range(n))) == n
                for s in starts:
                    assert crop_frames(np.zeros((2, n)), s, size).shape == (2, size)
    for bad in ((0, 1, 1), (5, 0, 1), (5, 2, 0)):
        with pytest.raises(AudiotagError):
            window_starts(*bad)


@pytest.mark.parametrize("change", [dict(), dict(htk=True, f_min=300.0, f_max=None), dict(norm=None, n_mels=40)])
def test_where_the_bands_lie(change):
    fe = LogMel(n_fft=8192, **change)
    want = librosa.mel_frequencies(
        n_mels=fe.n_mels + 2, fmin=fe.f_min, fmax=fe.f_max or fe.sample_rate / 2, htk=fe.htk
    )[1:-1]
    np.testing.assert_allclose(fe.band_hz, want)
    tone = np.sin(2 * np.pi * fe.band_hz[30] * np.arange(44100) / 44100).astype(np.float32)
    assert fe(tone)[:, 10:-10].mean(1).argmax() == 30
