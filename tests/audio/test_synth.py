"The synthetic competition: same bytes for a seed, the layout of the original, truth that agrees with what was rendered."

import csv
import re

import numpy as np
import pytest
import soundfile as sf

from audiotag.core.errors import AudiotagError
from audiotag.audio.containers import survey_file
from audiotag.audio.synth import SOUNDS, make_competition, read_truth, sound, write_sound

SMALL = dict(n_curated=24, n_noisy=40, n_test=16, sample_rate=16000, seconds=(0.3, 0.6))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_competition(tmp_path_factory.mktemp("synth") / "c", seed=3, **SMALL)


def rows(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_seed_fixes_every_byte(root, tmp_path):
    again = content(make_competition(tmp_path / "again", seed=3, **SMALL))
    assert again == content(root)
    other = content(make_competition(tmp_path / "other", seed=4, **SMALL))
    assert not {k for k in other if k.endswith(".wav")} & set(again)


@pytest.mark.parametrize("name", ["a.ogg", "a.FLAC", "a.wav", "a.other"])
def test_a_sound_is_written_as_the_same_bytes(tmp_path, name):
    "libsndfile stamps an Ogg stream with a random number."
    wave = sound("Bird_rising", np.random.default_rng(0), seconds=1.0, sample_rate=16000)
    for folder in ("one", "two"):
        write_sound(tmp_path / folder / name, wave, 16000)
    one, two = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
    assert one == two
    sf.write(tmp_path / "plain.ogg", wave, 16000, subtype="VORBIS")
    with open(tmp_path / "one" / name, "rb") as f:
        heard, rate = sf.read(f)
    expected = sf.read(tmp_path / "plain.ogg")[0] if name == "a.ogg" else wave
    assert rate == 16000 and np.abs(heard - expected).max() < 1e-4
    if name == "a.ogg":
        assert one != (tmp_path / "plain.ogg").read_bytes() and survey_file(tmp_path / "one" / name) == survey_file(
            tmp_path / "plain.ogg"
        )


def test_layout_is_that_of_freesound_2019(root):
    classes = sorted(SOUNDS[:8])
    with open(root / "sample_submission.csv", newline="") as f:
        header, *template = list(csv.reader(f))
    assert header == ["fname", *classes]
    assert {c for o in template for c in o[1:]} == {"0"}
    assert [o[0] for o in template] == sorted(p.name for p in (root / "test").iterdir())
    seen = []
    for part, n in (("train_curated", 24), ("train_noisy", 40), ("test", 16)):
        files = sorted(p.name for p in (root / part).iterdir())
        assert len(files) == n and all(re.fullmatch(r"[0-9a-f]{8}\.wav", f) for f in files)
        seen += files
        if part != "test":
            listed = rows(root / f"{part}.csv")
            assert list(listed[0]) == ["fname", "labels"] and [o["fname"] for o in listed] == files
            given = {c for o in listed for c in o["labels"].split(",")}
            assert given == set(classes)
    assert len(set(seen)) == len(seen)
    assert re.search(r'^\w{8}\.wav,"\w+,\w+"$', (root / "train_curated.csv").read_text(), re.M)


def test_recordings_are_pcm16_of_the_asked_length(root):
    for path in root.glob("t*/*.wav"):
        info = sf.info(path)
        assert (info.subtype, info.channels, info.samplerate) == ("PCM_16", 1, 16000)
        assert 0.3 <= info.duration <= 0.6 + 0.8 + 0.001  # with silence before and after
        wave = sf.read(path)[0]
        assert 0.005 < np.abs(wave).max() < 0.999


def test_truth_says_how_each_noisy_label_is_wrong(root):
    given = {o["fname"]: set(o["labels"].split(",")) for o in rows(root / "train_noisy.csv")}
    truth = read_truth(root, "noisy")
    fault = {o["fname"]: o["fault"] for o in rows(root / "truth" / "noisy.csv")}
    assert set(truth) == set(given) == set(fault)
    assert sum(f != "" for f in fault.values()) == round(0.4 * 40)
    assert set(fault.values()) == {"", "wrong", "incomplete", "no_class"}
    for name, kind in fault.items():
        real = set(truth[name])
        assert {
            "": real == given[name],
            "wrong": real and not real & given[name],
            "incomplete": real > given[name],
            "no_class": not real,
        }[kind], (name, kind)
    assert all(truth.values() for truth in [read_truth(root, "test")]) and all(read_truth(root, "test").values())
    assert read_truth(root / "test", "noisy") is None


@pytest.mark.parametrize("rate,expected", [(0.0, 0), (1.0, 20)])
def test_noise_rate_is_exact(tmp_path, rate, expected):
    root = make_competition(tmp_path / "c", **{**SMALL, "n_noisy": 20, "n_test": 1, "noise_rate": rate})
    assert sum(o["fault"] != "" for o in rows(root / "truth" / "noisy.csv")) == expected


def test_killed_while_writing_leaves_nothing(tmp_path, monkeypatch):
    from audiotag.audio import synth

    real, calls = synth.wavfile.write, []

    def write(*args):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        real(*args)

    monkeypatch.setattr(synth.wavfile, "write", write)
    with pytest.raises(KeyboardInterrupt):
        make_competition(tmp_path / "c", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_somebody_elses_folder_is_not_touched(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.txt").write_text("mine")
    with pytest.raises(AudiotagError, match="already there"):
        make_competition(tmp_path / "c", **SMALL)
    assert content(tmp_path) == {"c/thesis.txt": b"mine"}


@pytest.mark.parametrize(
    "field,value",
    [("n_classes", 1), ("n_classes", 13), ("n_curated", 0), ("n_noisy", -1), ("sample_rate", 8000),
     ("seconds", (1.0, 0.5)), ("seconds", (0.0, 1.0)), ("seconds", 3), ("noise_rate", 1.5), ("n_test", 2.5), ("seed", "x")],
)  # fmt: skip
def test_impossible_settings_are_refused(tmp_path, field, value):
    with pytest.raises(AudiotagError, match=field):
        make_competition(tmp_path / "c", **{**SMALL, field: value})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SOUNDS)
@pytest.mark.parametrize("rate", [16000, 44100])
def test_sounds_have_the_asked_length_and_level(name, rate):
    for seed in range(5):
        wave = sound(name, np.random.default_rng(seed), seconds=0.73, sample_rate=rate)
        assert wave.dtype == np.float32 and wave.shape == (round(0.73 * rate),)
        assert np.isfinite(wave).all() and np.sqrt(np.mean(wave**2)) == pytest.approx(0.1, rel=1e-3)
    again = sound(name, np.random.default_rng(4), seconds=0.73, sample_rate=rate)
    assert np.array_equal(wave, again)


def test_pairs_differ_in_time_and_not_in_frequency():
    "A chirp read backwards falls: the pairs have one long-term spectrum, so that features without time cannot tell them."
    for a, b in (("Bird_rising", "Bird_falling"), ("Bell", "Bell_backwards")):
        for seed in range(8):
            x = sound(a, np.random.default_rng(seed), seconds=2.0, sample_rate=16000)
            y = sound(b, np.random.default_rng(seed), seconds=2.0, sample_rate=16000)
            spectrum = [np.log10(np.abs(np.fft.rfft(w)) ** 2 + 1e-3)[:8000].reshape(80, 100).mean(1) for w in (x, y)]
            assert np.corrcoef(spectrum)[0, 1] > 0.9, (a, seed)
            assert np.corrcoef(x, y)[0, 1] < 0.5, (a, seed)


def test_no_partial_is_folded_back():
    "What lies above the Nyquist frequency must be left out, not appear as a tone that nobody asked for."
    from audiotag.audio.synth import _tone

    wave = _tone(3000, 16000, 16000, {1: 1, 2: 1, 3: 1})
    spectrum = np.abs(np.fft.rfft(wave)) / 8000
    assert np.allclose(spectrum[[3000, 6000]], 1, atol=1e-6)
    assert np.delete(spectrum, [3000, 6000]).max() < 1e-6
