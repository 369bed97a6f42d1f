"Rows follow the sound: whatever a header states, a row is read from its own place or keeps its reason."

import numpy as np
import pytest
import soundfile as sf

from audiotag.audio.features import LogMel, Waveform
from audiotag.audio.io import audio_extent, read_audio
from audiotag.data.competitions import load_competition
from audiotag.infer.recordings import LoaderOptions, load_features, plan_jobs
from audiotag.infer.windows import Windows

RATE, SECONDS = 8000, 62
CONTAINERS = {
    "mp3": dict(format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="CONSTANT", compression_level=0.6),
    "ogg": dict(format="OGG", subtype="VORBIS"),
    "opus": dict(format="OGG", subtype="OPUS"),
    "flac": dict(format="FLAC", subtype="PCM_16"),
    "wav": dict(format="WAV", subtype="PCM_16"),
    "aiff": dict(format="AIFF", subtype="PCM_16"),
    "caf": dict(format="CAF", subtype="PCM_16"),
    "au": dict(format="AU", subtype="PCM_16"),
    "w64": dict(format="W64", subtype="PCM_16"),
    "rf64": dict(format="RF64", subtype="PCM_16"),
}


def write(path, name, seconds=SECONDS):
    x = (0.2 * np.random.default_rng(0).standard_normal(seconds * RATE)).astype(np.float32)
    with sf.SoundFile(path, "w", RATE, 1, **CONTAINERS[name]) as f:
        for i in range(0, len(x), 8000):
            f.write(x[i : i + 8000])
    return path.read_bytes()


def without_a_length(name, data):
    if name == "mp3":
        return data[data.find(data[:2], 100) :]
    return data[:21] + bytes([data[21] & 0xF0]) + bytes(4) + data[26:]  # FLAC as a pipe gets it


def load_rows(path, front_end, windows, rows, **options):
    "{row: features, or the reason why there are none}."
    found = {}
    for job in plan_jobs(str(path), rows, front_end, windows, LoaderOptions(**options)):
        try:
            pairs = load_features(job, front_end, windows)
        except Exception as e:  # noqa: BLE001 as `FeatureLoader.load` does
            pairs = [(row, str(e)) for row in job.rows]
        found.update((row, x if isinstance(x, str) else x[0][1]) for row, x in pairs)
    return found


LOGMEL = LogMel(sample_rate=RATE, n_fft=512, hop_length=80, n_mels=16, f_min=50, f_max=4000.0, top_db=None)


@pytest.mark.parametrize("piece_s", [7, pytest.param(240, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", CONTAINERS)
@pytest.mark.parametrize(
    "front_end", [pytest.param(LOGMEL, marks=pytest.mark.long), Waveform(sample_rate=RATE)], ids=["mel", "wave"]
)
def test_rows_behind_the_last_sample_have_no_features(tmp_path, name, piece_s, front_end):
    windows = Windows(frames=500, hop=500) if front_end is LOGMEL else Windows(frames=5 * RATE, hop=5 * RATE)
    path = tmp_path / f"half.{name}"
    path.write_bytes(write(tmp_path / "whole", name)[: (tmp_path / "whole").stat().st_size // 2])
    end = audio_extent(path).seconds
    whole = read_audio(path, end_s=end)
    rows = load_rows(path, front_end, windows, [(i, 5.0 * i, 5.0 * (i + 1)) for i in range(13)], piece_s=piece_s)
    assert 20 < end < 40 and sorted(rows) == list(range(13))
    for row, x in rows.items():
        if 5 * row >= end:
            assert isinstance(x, str) and "begins at" in x
        elif front_end is not LOGMEL:
            want = whole[5 * RATE * row : 5 * RATE * (row + 1)]
            assert np.abs(x.ravel()[: len(want)] - want).max() < 1e-6, row
        else:
            assert x.shape[-1] > 100 or end - 5 * row < 1
    heard = [x for x in rows.values() if not isinstance(x, str)]
    assert len({x.tobytes() for x in heard}) == len(heard)


@pytest.mark.parametrize("name", ["mp3", "flac"])
def test_recordings_that_state_no_length(tmp_path, name):
    folder = tmp_path / "test_soundscapes"
    folder.mkdir()
    for k in "abc":
        write(folder / f"{k}.ogg", "ogg", 10)
    path = folder / f"long.{name}"
    path.write_bytes(without_a_length(name, write(path, name)))
    (tmp_path / "sample_submission.csv").write_text("row_id,abc,def\n")
    competition = load_competition(tmp_path, train=False)
    test = competition.of("test")
    assert (test.group == "long").sum() == 13 and not competition.notes
    rows = load_rows(path, LOGMEL, Windows(frames=500, hop=500), [(i, 5.0 * i, 5.0 * (i + 1)) for i in range(13)])
    assert not [x for x in rows.values() if isinstance(x, str)] and 150 < rows[12].shape[-1] < 250


def test_rows_beside_damage_are_read(tmp_path):
    "FLAC is exact behind damage: only the rows that need it are lost."
    data = write(tmp_path / "a.flac", "flac")
    at = len(data) * 22 // 62
    path = tmp_path / "b.flac"
    path.write_bytes(data[:at] + bytes(300) + data[at + 300 :])
    windows = [(i, 5.0 * i, 5.0 * (i + 1)) for i in range(12)]
    rows = load_rows(path, Waveform(sample_rate=RATE), Windows(frames=5 * RATE, hop=5 * RATE), windows)
    whole = read_audio(tmp_path / "a.flac")
    lost = [row for row, x in rows.items() if isinstance(x, str)]
    assert lost == [4] and "breaks off" in rows[4]
    for row in set(rows) - {4}:
        assert np.array_equal(rows[row].ravel(), whole[5 * RATE * row : 5 * RATE * (row + 1)]), row


def test_what_a_cut_flac_states_is_in_the_reason(tmp_path):
    data = write(tmp_path / "a.flac", "flac")
    (tmp_path / "b.flac").write_bytes(data[: len(data) // 2])
    rows = load_rows(
        tmp_path / "b.flac", LOGMEL, Windows(frames=500, hop=500), [(0, 0.0, 5.0), (1, 55.0, 60.0), (2, 20.0, 25.0)]
    )
    assert isinstance(rows[1], str) and "its header states 62.00 s" in rows[1]
    assert not isinstance(rows[0], str) and not isinstance(rows[2], str)
