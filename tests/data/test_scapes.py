"Recordings like those of the test, mixed from the clips of a fold."

from functools import partial

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from audiotag.core.errors import AudiotagError
from audiotag.core.seeding import rng
from audiotag.data.scapes import MixedScapes, background_files, mix_fold, mix_scape, noise_like

RATE = 8000
CLASSES = ("a", "b", "c")


@pytest.fixture
def clips(tmp_path):
    "Tones of three classes in two folds, the second one an octave higher, and a recording of noise."
    rows, t = [], np.arange(RATE) / RATE
    for fold in (0, 1):
        for i, c in enumerate(CLASSES):
            path = tmp_path / f"{c}{fold}.wav"
            sf.write(path, 0.5 * np.sin(2 * np.pi * 400 * (i + 1) * (fold + 1) * t), RATE)
            rows.append(dict(clip_id=path.stem, path=str(path), labels=(c,), source="curated", fold=fold))
    noise = np.random.default_rng(0).standard_normal(5 * RATE)
    sf.write(tmp_path / "noise.wav", 0.01 * noise, RATE)
    rows.append(dict(clip_id="noise", path=str(tmp_path / "noise.wav"), labels=(), source="unlabeled", fold=-1))
    return pd.DataFrame(rows).assign(start_s=np.nan, end_s=np.nan)


def mixed(clips, fold, **fields):
    settings = MixedScapes(**{"n": 2, "seconds": 20.0, "window_s": 5.0, "calls": (3, 5), **fields})
    return list(mix_fold(clips, fold, CLASSES, settings, sample_rate=RATE, seed=partial(rng, 0, "mixed", fold)))


def test_the_same_seed_gives_the_same_recordings(clips):
    once, again = mixed(clips, 0), mixed(clips, 0)
    for (x, t, u), (y, v, w) in zip(once, again):
        assert np.array_equal(x, y) and np.array_equal(t, v) and u == w
    assert not np.array_equal(once[0][0], once[1][0])


@pytest.mark.parametrize("fold", [0, 1])
def test_only_clips_of_the_fold_are_heard_in_it(clips, fold):
    for wave, truth, used in mixed(clips, fold):
        assert len(wave) == 20 * RATE and truth.shape == (4, 3) and truth.any()
        assert used and {clips.set_index("clip_id").fold[c] for c in used} == {fold}


def test_the_truth_says_when_which_call_sounds(clips):
    "A tone of one second far above the noise: the windows in which its frequency stands out are those of its class."
    for wave, truth, _ in mixed(clips, 0, snr_db=(20.0, 20.0), calls=(2, 2)):
        power = np.abs(np.fft.rfft(wave.reshape(4, -1))) ** 2
        for k in range(3):
            stands_out = power[:, 400 * (k + 1) * 5] > 1000 * np.median(power, 1)
            assert (truth[:, k] <= stands_out).all()  # less than half a second of a call does not count


def test_the_level_of_a_call_is_over_the_background_around_it(clips):
    background = (0.01 * np.random.default_rng(1).standard_normal(20 * RATE)).astype(np.float32)
    settings = MixedScapes(seconds=20.0, calls=(1, 1), snr_db=(6.0, 6.0))
    of_fold = clips[clips.fold == 0]
    wave, _, _ = mix_scape(of_fold, CLASSES, settings, background, sample_rate=RATE, g=rng(0, "level"))
    added = wave - background
    first, *_, last = np.flatnonzero(added)
    assert 10 * np.log10(np.mean(added[first:last] ** 2) / np.mean(background**2)) == pytest.approx(6, abs=0.3)


def test_a_recording_has_a_number_of_labels(clips):
    for n in (1, 2):
        assert all(t.any(0).sum() <= n for _, t, _ in mixed(clips, 0, n=6, n_labels=n))
    assert max(t.any(0).sum() for _, t, _ in mixed(clips, 0, n=6, n_labels=None, calls=(12, 12))) == 3


def test_backgrounds_of_a_folder_are_used_as_they_are(clips, tmp_path):
    folder = tmp_path / "quiet"
    folder.mkdir()
    sf.write(folder / "steps.wav", np.tile([0.25, -0.25], RATE), RATE)
    for wave, truth, _ in mixed(clips, 0, background=str(folder), calls=(1, 1), snr_db=(-40.0, -40.0)):
        assert np.abs(np.abs(wave[~np.repeat(truth.any(1), 5 * RATE)]) - 0.25).max() < 0.1
    with pytest.raises(AudiotagError, match="mixed=null"):
        background_files(MixedScapes(background="nowhere"), clips)


def test_noise_takes_the_spectrum_of_what_lasts():
    g, n = np.random.default_rng(0), 20 * RATE
    low = np.convolve(g.standard_normal(n), np.ones(8) / 8, "same")
    low[n // 3 : n // 2] += 10 * np.sin(2 * np.pi * 3000 / RATE * np.arange(n // 2 - n // 3))
    x = np.abs(np.fft.rfft(noise_like(low.astype(np.float32), n, g))) ** 2
    band = lambda lo, hi: x[int(lo * 20) : int(hi * 20)].mean()  # noqa: E731
    assert band(0, 300) > 20 * band(3500, 4000)
    assert band(2950, 3050) < 3 * band(2800, 2900)  # an event of a sixth of the recording is not in it


@pytest.mark.parametrize(
    "bad",
    [dict(n=0), dict(window_s=61.0), dict(calls=(3, 2)), dict(snr_db=(5.0, 2.0)), dict(n_labels=0), dict(call_s=0.0)],
)
def test_settings_that_make_no_sense(bad):
    with pytest.raises(AudiotagError):
        MixedScapes(**bad)
