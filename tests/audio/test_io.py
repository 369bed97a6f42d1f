"Reading: parity with soundfile and librosa, time ranges, every fault of the `broken` set and others made here."

import csv
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile as sf

from audiotag.audio import io as audio
from audiotag.audio.io import (
    ERROR_KINDS,
    QUARANTINE_COLUMNS,
    READ_PRESETS,
    ReadOptions,
    audio_extent,
    audio_info,
    crop_or_pad,
    quarantine_row,
    read_audio,
    resample,
    trim_bounds,
    trim_silence,
    write_quarantine,
)
from audiotag.core.errors import AudiotagError

GRID = [
    ("wav", "WAV", s)
    for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM")
]
GRID += [
    ("wav", "WAVEX", "PCM_16"),
    ("wav", "RF64", "PCM_24"),
    ("w64", "W64", "PCM_16"),
    ("flac", "FLAC", "PCM_S8"),
    ("flac", "FLAC", "PCM_16"),
    ("flac", "FLAC", "PCM_24"),
    ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
    ("aiff", "AIFF", "PCM_16"),
    ("aiff", "AIFF", "FLOAT"),
    ("aiff", "AIFF", "ULAW"),
    ("au", "AU", "PCM_16"),
    ("caf", "CAF", "ALAC_16"),
]
NAMES = ["-".join(g[1:]) for g in GRID]


def sound(seconds, rate, channels=1, seed=0):
    "A loud and lively test signal, (samples, channels) float32."
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    x = [
        0.4 * np.sin(2 * np.pi * (300 + 100 * c) * t * (1 + 0.2 * np.sin(2 * t))) * (np.sin(5 * t + c) > -0.5)
        + 0.03 * rng.standard_normal(len(t))
        for c in range(channels)
    ]
    return np.stack(x, 1).clip(-0.99, 0.99).astype(np.float32)


def write(path, x, rate, container, subtype, **kwargs):
    with sf.SoundFile(path, "w", rate, x.shape[1], format=container, subtype=subtype, **kwargs) as f:
        for i in range(0, len(x), 4096):
            f.write(x[i : i + 4096])
    return path


def fault(path, **kwargs):
    "The error that reading raises; its kind is one of the documented ones, and it names the file."
    with pytest.raises(AudiotagError) as e:
        read_audio(path, **kwargs)
    assert e.value.kind in ERROR_KINDS
    assert str(e.value.file) == str(path) and str(path)[:150] in str(e.value)  # long names are cut in the middle
    return e.value


# ---- the broken set ---------------------------------------------------------------------------------------------

SENSIBLE = {
    "zero_bytes": {"zero_bytes"},
    "zero_frames": {"zero_frames", "zero_bytes"},
    "truncated": {"truncated"},
    "corrupt_data": {"corrupt_data"},
    "corrupt_header": {"corrupt_header"},
    "not_audio": {"not_audio"},
    "container": {"unsupported"},
    "non_finite": {"non_finite"},
}


def test_broken_set(sample_set):
    folder = sample_set("broken")
    table = Path(__file__).resolve().parent.parent.parent.parent / "shared" / "data" / "broken.csv"
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    assert len(rows) == 51
    for row in rows:
        path, frames = folder / row["file"], int(row["frames"] or 0)
        if row["readable"] == "yes" and frames and row["kind"] != "non_finite":
            x = read_audio(path)
            assert (x.shape, x.dtype) == ((frames,), np.float32), row
            assert np.isfinite(x).all()
            info = audio_info(path)
            assert (info.sample_rate, info.channels) == (int(row["sample_rate"]), int(row["channels"])), row
        else:
            e = fault(path)
            assert e.kind in SENSIBLE[row["kind"]], (row, e.kind)


def test_broken_set_prints_nothing(sample_set):
    folder = sample_set("broken")
    code = (
        "import sys\nfrom pathlib import Path\nfrom audiotag.audio.io import read_audio\nfrom audiotag.core.errors import AudiotagError\n"
        "for p in sorted(Path(sys.argv[1]).iterdir()):\n    try: read_audio(p, sample_rate=32000)\n    except AudiotagError: pass\n"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", code, str(folder)], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "antiphase.wav: its channels cancel" not in line]
    assert (done.returncode, done.stdout, said) == (0, "", []) and "antiphase.wav" in done.stderr


# ---- parity -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("suffix,container,subtype", GRID, ids=NAMES)
def test_same_samples_as_soundfile(tmp_path, suffix, container, subtype, channels):
    if channels == 3 and (suffix in ("mp3", "w64") or "ADPCM" in subtype):
        pytest.skip("not more than two channels")
    path = write(tmp_path / f"a.{suffix}", sound(1.3, 16000, channels), 16000, container, subtype)
    x = sf.read(path, dtype="float32", always_2d=True)[0]
    # an mp3 is read in pieces, after which libmpg123 rounds the last bit otherwise
    close = partial(np.testing.assert_allclose, rtol=0, atol=1e-7 if suffix == "mp3" else 0)
    close(read_audio(path), librosa.to_mono(x.T))
    for c in range(channels):
        close(read_audio(path, reading=ReadOptions(channel=c)), x[:, c])
    assert fault(path, reading=ReadOptions(channel=channels)).kind == "no_channel"


def test_long_files_are_the_same_in_blocks(tmp_path):
    x = sound(9, 44100, 2)
    for suffix, container, subtype in (
        ("wav", "WAV", "PCM_16"),
        ("wav", "WAV", "FLOAT"),
        ("flac", "FLAC", "PCM_24"),
        ("ogg", "OGG", "VORBIS"),
    ):
        path = write(tmp_path / f"a.{suffix}", x, 44100, container, subtype)
        assert len(x) * 2 > 2**18  # several blocks
        assert np.array_equal(read_audio(path), librosa.to_mono(sf.read(path, dtype="float32")[0].T))


@pytest.mark.parametrize("to", [8000, 16000, 22050, 32000, 44100, 48000, 11025, 44101])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, 32000, 44100, 48000])
def test_resample_is_librosas(rate, to):
    for n in (1, 2, 500, rate + 7):
        x = sound(2, rate)[:n, 0]
        ours = resample(x, rate, to)
        theirs = librosa.resample(x, orig_sr=rate, target_sr=to, res_type="soxr_hq")
        assert len(ours) == -(-n * to // rate)
        n_both = min(len(ours), len(theirs))  # librosa rounds the ratio: it may add one zero
        assert abs(len(ours) - len(theirs)) <= 1
        assert np.array_equal(ours[:n_both], theirs[:n_both])


def test_as_librosa_load_and_trim(tmp_path):
    path = write(
        tmp_path / "a.ogg",
        sound(3, 44100, 2) * np.hanning(3 * 44100)[:, None].astype(np.float32) ** 8,
        44100,
        "OGG",
        "VORBIS",
    )
    theirs = librosa.effects.trim(librosa.load(path, sr=16000, res_type="soxr_hq")[0], top_db=40)[0]
    ours = read_audio(path, sample_rate=16000, reading=ReadOptions(trim_db=40))
    assert len(ours) == len(theirs) < 3 * 16000
    assert np.abs(ours - theirs).max() < 1e-6


def test_trim_is_librosas():
    rng = np.random.default_rng(5)
    edges = [1, 2, 511, 512, 513, 1023, 1024, 1025, 1535, 2047, 2048, 2049, 2560, 4096, 5000]
    cut = 0
    for i in range(800):
        n = edges[i % 15] if i < 200 else int(rng.integers(1, 60000))
        x = rng.standard_normal(n) * 10 ** rng.uniform(-6, -3) * (rng.random() < 0.8)
        for _ in range(rng.integers(0, 4)):
            a, b = sorted(rng.integers(n // 6, n - n // 6 + 1, 2))
            x[a:b] = rng.standard_normal(b - a) * 10 ** rng.uniform(-4, 0)
        x, db = x.astype(np.float32), float(rng.choice([20, 40, 60, 80, rng.uniform(1, 120)]))
        start, end = librosa.effects.trim(x, top_db=db)[1]
        assert trim_bounds(x, db) == (start, end), (i, n, db)
        cut += end - start < n
    assert cut > 200
    for n in edges:
        assert trim_bounds(np.zeros(n, np.float32), 60) == tuple(
            librosa.effects.trim(np.zeros(n, np.float32), top_db=60)[1]
        )
    assert trim_bounds(np.zeros(0, np.float32), 60) == (0, 0)
    x = np.zeros(9000, np.float32)
    x[3000:5000] = 1
    assert trim_bounds(x * np.float32(3e38), 60) == trim_bounds(x, 60) != (0, 9000)
    x[8000] = np.nan
    with pytest.raises(AudiotagError):
        trim_bounds(x, 60)


def test_trim_on_real_clips(sample_set):
    for path in sorted((sample_set("freesound") / "train_curated").glob("*.wav"))[:60]:
        x = read_audio(path)
        for db in (60, 30):
            assert trim_bounds(x, db) == tuple(librosa.effects.trim(x, top_db=db)[1]), (path, db)


def test_crop_and_pad_places():
    x = np.arange(1, 11, dtype=np.float32)
    got = {at: crop_or_pad(x, 4, at=at).tolist() for at in ("start", "middle", "end")}
    assert got == {"start": [1, 2, 3, 4], "middle": [4, 5, 6, 7], "end": [7, 8, 9, 10]}
    got = {at: np.flatnonzero(crop_or_pad(x, 15, at=at))[0] for at in ("start", "middle", "end")}
    assert got == {"start": 0, "middle": 2, "end": 5}
    for n in (4, 15):
        places = {tuple(crop_or_pad(x, n, at="random", rng=np.random.default_rng(s))) for s in range(200)}
        assert len(places) == abs(10 - n) + 1  # every place is drawn
        one, two = (crop_or_pad(x, n, at="random", rng=np.random.default_rng(3)) for _ in range(2))
        assert np.array_equal(one, two)
    for kwargs in (dict(at="center"), dict(at="random")):
        with pytest.raises(AudiotagError):
            crop_or_pad(x, 4, **kwargs)
    assert np.array_equal(x, np.arange(1, 11))


def test_padding_after_reading(tmp_path):
    path = write(tmp_path / "a.wav", sound(0.5, 16000), 16000, "WAV", "PCM_16")
    x = read_audio(path)
    for at, first in (("start", 0), ("middle", 4000), ("end", 8000)):
        y = read_audio(path, reading=ReadOptions(pad_to_s=1, pad_at=at))
        assert (
            len(y) == 16000
            and np.array_equal(y[first : first + 8000], x)
            and np.count_nonzero(y) == np.count_nonzero(x)
        )
    assert len(read_audio(path, sample_rate=8000, reading=ReadOptions(pad_to_s=0.25))) == 4000
    assert len(read_audio(path, sample_rate=32000, reading=READ_PRESETS["birdclef"])) == 160000


def test_settings_are_checked():
    for bad in (
        dict(channel=-1),
        dict(resample_quality="best"),
        dict(trim_db=0.0),
        dict(trim_db=float("nan")),
        dict(pad_to_s=-1.0),
        dict(pad_at="random"),
        dict(channel=True),
        dict(pad_to_s=float("inf")),
    ):
        with pytest.raises(AudiotagError):
            ReadOptions(**bad)
    for bad in (0, -8000, 16000.5, "16000", True, float("nan"), 10**8):
        with pytest.raises(AudiotagError):
            resample(np.zeros(10, np.float32), 16000, bad)


# ---- time ranges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [None, 32000, 48000, 16001])
@pytest.mark.parametrize("suffix,container,subtype", GRID, ids=NAMES)
def test_range_is_the_same_part_of_the_whole(tmp_path, suffix, container, subtype, to):
    rate, rng = (48000 if subtype == "OPUS" else 44100), np.random.default_rng(1)
    path = write(tmp_path / f"a.{suffix}", sound(4, rate, 2), rate, container, subtype)
    whole, out = read_audio(path, sample_rate=to), to or rate
    length = len(read_audio(path)) / rate
    for a, b in [(0, 0.5), (0.2, length), (1, 1.001), *(sorted(rng.uniform(0, 4, 2)) for _ in range(8))]:
        part = read_audio(path, sample_rate=to, start_s=a, end_s=b)
        want = whole[round(a * out) : round(b * out)]
        assert len(part) == round(b * out) - round(a * out)
        assert len(want) == len(part) and np.abs(part - want).max() < 3e-6, (a, b)
    tail = read_audio(path, sample_rate=to, start_s=3.1)
    assert np.abs(tail - whole[round(3.1 * out) :]).max() < 3e-6
    assert np.array_equal(read_audio(path, sample_rate=to, start_s=float("nan"), end_s=float("nan")), whole)


@pytest.mark.parametrize("quality", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("kind", ["lively", "quiet", "almost silent"])
def test_vorbis_ranges_where_libsndfile_is_wrong(tmp_path, kind, quality):
    "libsndfile shifts what it reads after a seek into the last page, which is long where the bit rate is low."
    rate, n = 44100, 441000
    t = np.arange(n) / rate
    x = {
        "lively": sound(10, rate)[:, 0],
        "quiet": 1e-3 * np.sin(300 * t) + 0.1 * (t % 3 < 0.01),
        "almost silent": np.where(t < 1, 0.1 * np.sin(500 * t), 0) + (t > 9) * 0.1 * np.sin(700 * t),
    }[kind]
    path = write(tmp_path / "a.ogg", x[:, None].astype(np.float32), rate, "OGG", "VORBIS", compression_level=quality)
    whole, wrong = read_audio(path), 0
    for at in [*range(0, n - 200, 9001), *range(n - 20000, n - 200, 1501)]:
        with sf.SoundFile(path) as f:
            f.seek(at)
            wrong += not np.array_equal(f.read(200, dtype="float32"), whole[at : at + 200])
        assert np.array_equal(read_audio(path, start_s=at / rate, end_s=(at + 200) / rate), whole[at : at + 200]), at
    assert wrong or kind == "lively"


def test_opus_at_a_low_bit_rate(tmp_path):
    "In its speech mode Opus does not quite forget where decoding began: it is decoded from the start."
    t = np.arange(20 * 48000) / 48000
    x = 0.3 * np.sin(2000 * t + 30 * np.sin(9 * t)) + 0.02 * np.random.default_rng(1).standard_normal(len(t))
    path = write(tmp_path / "a.opus", x[:, None].astype(np.float32), 48000, "OGG", "OPUS", compression_level=0.99)
    whole = read_audio(path)
    for at in (3, 11.3, 19.1):
        lo = round(at * 48000)
        assert np.array_equal(read_audio(path, start_s=at, end_s=at + 0.2), whole[lo : round((at + 0.2) * 48000)])


@pytest.mark.parametrize("name", ["a.wav", "a.ogg", "a.mp3"])
def test_ranges_outside_are_refused_with_the_length(tmp_path, name):
    kinds = {"wav": ("WAV", "PCM_16"), "ogg": ("OGG", "VORBIS"), "mp3": ("MP3", "MPEG_LAYER_III")}
    path = write(tmp_path / name, sound(2, 16000), 16000, *kinds[name[2:]])
    for a, b in ((0, 2.5), (2, 3), (2.5, None), (1, 1), (1.5, 1)):
        e = fault(path, start_s=a, end_s=b)
        assert e.kind == "out_of_range" and "2 s" in e.what and "32000" in e.what
    for a, b in ((-1, 1), (float("inf"), None), (0, float("inf")), ("0", 1)):
        assert fault(path, start_s=a, end_s=b).kind == "out_of_range"
    assert len(read_audio(path, start_s=0, end_s=2)) == 32000


def bytes_read(function):
    def count():
        return int(Path("/proc/self/io").read_text().split()[1])

    before = count()
    function()
    return count() - before


@pytest.mark.parametrize(
    "suffix,container,subtype", [("wav", "WAV", "PCM_16"), ("flac", "FLAC", "PCM_16"), ("ogg", "OGG", "VORBIS")]
)
def test_a_range_does_not_read_the_rest(tmp_path, monkeypatch, suffix, container, subtype):
    path = write(tmp_path / f"a.{suffix}", sound(120, 44100), 44100, container, subtype)
    now = time.time()
    monkeypatch.setattr("audiotag.audio.io.time.time", lambda: now + 10)  # the file is not being written any more
    first = bytes_read(lambda: read_audio(path, start_s=20, end_s=22))
    # the whole file is looked over once, a FLAC twice: for a second file behind it, and for the numbers of its frames
    assert first < (3 if container == "FLAC" else 2) * path.stat().st_size
    assert bytes_read(lambda: read_audio(path, start_s=80, end_s=82)) < path.stat().st_size / 3


def test_three_hours(tmp_path):
    "A sparse three-hour WAV: a range of it takes no time, and the whole no more memory than its samples."
    path = write(tmp_path / "a.wav", sound(1, 4000), 4000, "WAV", "PCM_16")
    head, n = bytearray(path.read_bytes()[:44]), 3 * 3600 * 4000
    head[4:8], head[40:44] = struct.pack("<I", 36 + 2 * n), struct.pack("<I", 2 * n)
    with path.open("wb") as f:
        f.write(head)
        f.seek(44 + 2 * (n - 4000))
        f.write((sound(1, 4000)[:, 0] * 32767).astype("<i2").tobytes())
    start = time.process_time()
    x = read_audio(path, start_s=3 * 3600 - 1)
    assert len(x) == 4000 and np.abs(x).max() > 0.2 and time.process_time() - start < 0.5
    code = (
        "import resource, sys\nfrom audiotag.audio.io import read_audio\nm = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024\n"
        "before = m(); n = len(read_audio(sys.argv[1])); print(n, m()-before)"
    )
    frames, grown = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert int(frames) == n and float(grown) < 1.1 * 4 * n / 2**20 + 20


# ---- files that are no sound ------------------------------------------------------------------------------------


@pytest.fixture
def wav(tmp_path):
    return write(tmp_path / "a.wav", sound(1, 16000), 16000, "WAV", "PCM_16")


def test_no_such_file(tmp_path, wav):
    for path in (tmp_path / "none.wav", wav / "inside.wav", ""):
        assert fault(path).kind == "missing"
    for path in ("a\0b.wav", None, float("nan")):
        with pytest.raises(AudiotagError):
            read_audio(path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert fault(tmp_path / "loop").kind == "io_error"
    assert fault(tmp_path / ("x" * 300)).kind == "io_error"


def test_folders_pipes_and_devices_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    code = (
        "import sys\nfrom audiotag.audio.io import read_audio\nfrom audiotag.core.errors import AudiotagError\nfor path in sys.argv[1:]:\n"
        "    try: read_audio(path)\n    except AudiotagError as e: print(e.kind)\n"
    )
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(tmp_path / "sock"))
        paths = [str(p) for p in (tmp_path, tmp_path / "fifo", "/dev/zero", "/dev/null", tmp_path / "sock")]
        done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["not_a_file"] * 4 + ["io_error"] and not done.stderr


def test_no_permission(wav):
    "For root every file is readable, so the child becomes somebody else first."
    os.chmod(wav, 0)
    code = (
        "import os, sys\nfrom audiotag.audio.io import read_audio\nfrom audiotag.core.errors import AudiotagError\n"
        "import soundfile\nfd = os.open(sys.argv[2], os.O_RDONLY); os.fchdir(fd)\n"
        "if os.getuid()==0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        'try: read_audio("a.wav")\nexcept AudiotagError as e: print(e.kind)\n'
    )
    wav.parent.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", code, str(wav), str(wav.parent)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("no_permission\n", "")


@pytest.mark.parametrize(
    "name",
    [
        "two  words.wav",
        "it's.wav",
        'say "hi".wav',
        "two\nlines.wav",
        "🦉 owl.wav",
        "%s {0} $HOME.wav",
        "-rf.wav",
        "no extension",
        "wrong.mp3",
        "a.raw",
        ".hidden",
        "tab\there.ogg",
        b"not utf8 \xff.wav",
    ],
    ids=repr,
)
def test_names(tmp_path, wav, name):
    path = os.path.join(os.fsencode(tmp_path), name) if isinstance(name, bytes) else str(tmp_path / name)
    os.rename(wav, path)
    assert len(read_audio(path)) == 16000 == audio_info(path).frames
    Path(os.fsdecode(path)).write_bytes(b"")
    with pytest.raises(AudiotagError) as e:
        read_audio(path)
    row = quarantine_row("7", e.value)
    write_quarantine(tmp_path / "q" / "quarantine.csv", [row])
    with open(tmp_path / "q" / "quarantine.csv", newline="", encoding="utf-8") as f:
        assert list(csv.DictReader(f)) == [row]
    assert row["kind"] == "zero_bytes" and tuple(row) == QUARANTINE_COLUMNS


def test_a_file_that_vanishes_while_we_read(wav, monkeypatch):
    read_head = audio._read_head
    monkeypatch.setattr(audio, "_read_head", lambda fd, path: (os.unlink(path), read_head(fd, path))[1])
    assert len(read_audio(wav)) == 16000  # the open file is still there
    assert fault(wav).kind == "missing"


@pytest.mark.parametrize("left", [0, 44, 5000])
def test_a_file_that_shrinks_while_we_read(wav, monkeypatch, left):
    decode = audio._decode
    monkeypatch.setattr(audio, "_decode", lambda f, *args, **kw: (os.truncate(wav, left), decode(f, *args, **kw))[1])
    assert fault(wav).kind in ("truncated", "zero_frames")


def test_a_disk_that_fails(wav, monkeypatch):
    def broken(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(audio.os, "open", broken)
    assert fault(wav).kind == "io_error"


def test_strangers(tmp_path):
    path = tmp_path / "a.wav"
    for data, kind in (
        (b"<html>404", "not_audio"),
        (b"PK\3\4....", "not_audio"),
        (b"\x1f\x8b\x08.....", "not_audio"),
        (b"a,b\n1,2\n", "not_audio"),
        (bytes(1000), "not_audio"),
        (b"RIFF\x10\0\0\0AVI LIST", "not_audio"),
        (b"RI", "truncated"),
        (b"fLaC\0\0", "truncated"),
        (b"\0\0\0\x20ftypM4A \0\0", "unsupported"),
        (b"\xff\xf1\x50\x80", "unsupported"),
        (b"\x1aE\xdf\xa3", "unsupported"),
        (b"ID3\4\0\0\0\0\0\0", "corrupt_header"),
        (b"\xff\xfb\x90\xc4", "corrupt_header"),
    ):
        path.write_bytes(data)
        assert fault(path).kind == kind, data


# ---- headers that lie -------------------------------------------------------------------------------------------


def patched(path, at, fmt, value):
    data = bytearray(path.read_bytes())
    struct.pack_into(fmt, data, at, value)
    path.write_bytes(data)
    return path


def flac_length(path, frames):
    "Set the number of samples that STREAMINFO states (36 bits)."
    data = bytearray(path.read_bytes())
    data[18:26] = (int.from_bytes(data[18:26], "big") & ~(2**36 - 1) | frames).to_bytes(8, "big")
    path.write_bytes(data)
    return path


def test_sizes_that_lie(wav):
    for at, value in ((4, 0), (4, 2**32 - 1), (4, 10), (40, 2**32 - 1), (40, 2**31), (40, 0)):
        good = wav.read_bytes()
        patched(wav, at, "<I", value)
        theirs = len(sf.read(wav)[0])
        if theirs:
            assert len(read_audio(wav)) == theirs, (at, value)
        else:
            assert len(read_audio(wav)) == 16000 == audio_extent(wav).frames  # a recorder that died leaves a 0
        wav.write_bytes(good)


@pytest.mark.parametrize("rate", [0, 2**31 - 1, 2**32 - 1, 10**9])
def test_rates_that_lie(wav, rate):
    patched(wav, 24, "<I", rate)
    assert fault(wav).kind == "corrupt_header"
    assert fault(wav, sample_rate=32000).kind == "corrupt_header"


def test_a_rate_of_one(wav):
    "One hertz is legal, but ten seconds of file may not become five hours of sound."
    patched(wav, 24, "<I", 1)
    assert len(read_audio(wav)) == 16000
    assert fault(wav, sample_rate=44100).kind == "too_long"
    assert len(read_audio(wav, sample_rate=8000, start_s=7, end_s=9)) == 16000


@pytest.mark.parametrize("channels", [0, 1000, 1024, 10000, 65535])
def test_channels_that_lie(wav, channels):
    patched(wav, 22, "<H", channels)
    try:
        x = read_audio(wav)
    except AudiotagError as e:
        assert e.kind in ("corrupt_header", "zero_frames")
    else:
        assert 0 < len(x) <= 16000


def test_flac_of_unknown_length(tmp_path):
    path = write(tmp_path / "a.flac", sound(3, 16000), 16000, "FLAC", "PCM_16")
    good = read_audio(path)
    flac_length(path, 0)
    assert sf.info(path).frames == 2**63 - 1
    assert np.array_equal(read_audio(path), good)
    assert np.array_equal(read_audio(path, start_s=1, end_s=2), good[16000:32000])
    assert len(read_audio(path, sample_rate=8000, start_s=2)) == 8000
    assert audio_info(path).frames is None
    e = fault(path, start_s=1, end_s=4)
    assert e.kind == "out_of_range" and "48000 frames" in e.what


@pytest.mark.parametrize("frames", [48001, 10**6, 2**36 - 1])
def test_flac_that_states_too_much(tmp_path, frames):
    path = flac_length(write(tmp_path / "a.flac", sound(3, 16000), 16000, "FLAC", "PCM_16"), frames)
    e = fault(path)
    assert e.kind == "truncated" and "48000 frames" in e.what
    assert len(read_audio(path, start_s=1, end_s=2)) == 16000  # what is there can be had
    assert fault(path, start_s=1, end_s=3 + 1 / 16000).kind in ("truncated", "corrupt_data")


@pytest.mark.parametrize("suffix,container,subtype", GRID, ids=NAMES)
def test_cut_anywhere(tmp_path, suffix, container, subtype):
    "A file cut at any place gives what soundfile gives, or an error; never more than there is, and never nothing."
    path = write(tmp_path / f"a.{suffix}", sound(1, 16000), 16000, container, subtype)
    data, errors = path.read_bytes(), 0
    for n in sorted({*range(0, 130, 13), *np.linspace(130, len(data) - 1, 40).astype(int)}):
        path.write_bytes(data[:n])
        try:
            theirs = len(sf.read(path)[0])
        except (sf.LibsndfileError, TypeError):
            theirs = 0
        if theirs and subtype == "ALAC_16":  # a packet of which only a part is there is decoded, too
            try:
                assert len(read_audio(path)) == theirs
            except AudiotagError as e:
                assert e.kind == "truncated" and 0 < audio_extent(path).frames <= theirs
        elif theirs:
            assert len(read_audio(path)) == theirs
        elif container == "CAF" and n > 8000:  # libsndfile refuses it, although the sound is there
            try:
                assert 0 < len(read_audio(path)) == audio_extent(path).frames <= 16000
            except AudiotagError as e:  # the table of the packets is cut
                assert subtype == "ALAC_16" and e.kind == "truncated" and "readable" in e.what
        else:
            errors += 1
            assert fault(path).kind in ("truncated", "zero_bytes", "corrupt_header", "zero_frames", "corrupt_data"), n
    assert errors >= 2


def test_what_was_readable_is_said(tmp_path):
    path = write(tmp_path / "a.flac", sound(4, 16000), 16000, "FLAC", "PCM_16")
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    path.write_bytes(data)
    e = fault(path)
    frames = int(re.search(r"readable: (\d+) frames", e.what)[1])
    assert e.kind == "corrupt_data" and 16000 < frames < 40000
    assert len(read_audio(path, start_s=0, end_s=frames / 16000)) == frames


@pytest.mark.parametrize("container,subtype", [("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("AIFF", "FLOAT")])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path, container, subtype, value):
    x = sound(1, 16000, 2).astype(np.float64)
    x[8000:8003, 1] = value
    path = write(tmp_path / "a", x, 16000, container, subtype)
    e = fault(path)
    assert e.kind == "non_finite" and "3 of 16000" in e.what and "0.500 s" in e.what
    assert len(read_audio(path, reading=ReadOptions(channel=0))) == 16000
    assert len(read_audio(path, end_s=0.5)) == 8000


def test_huge_numbers_do_not_become_infinite(tmp_path):
    x = np.full((4000, 2), 3e38, np.float64)
    assert fault(write(tmp_path / "a", x, 16000, "WAV", "FLOAT")).kind == "non_finite"  # the mean overflows
    assert fault(write(tmp_path / "b", x * 1e100, 16000, "WAV", "DOUBLE")).kind == "non_finite"
    ring = np.where(np.arange(4000) // 7 % 2, 3.4e38, -3.4e38)[:, None]
    path = write(tmp_path / "c", ring, 16000, "WAV", "FLOAT")
    assert len(read_audio(path)) == 4000
    assert fault(path, sample_rate=44100).kind == "non_finite"  # the filter overflows


def test_odd_but_sound(tmp_path):
    for name, x in (
        ("dc", np.full((8000, 1), 0.99, np.float32)),
        ("silence", np.zeros((8000, 1), np.float32)),
        ("one", np.full((1, 1), 0.5, np.float32)),
    ):
        path = write(tmp_path / name, x, 8000, "WAV", "FLOAT")
        assert np.array_equal(read_audio(path), x[:, 0])
        assert len(read_audio(path, sample_rate=16000, reading=ReadOptions(trim_db=60))) == 2 * len(x)
    path = write(tmp_path / "dc24", np.full((8000, 1), 40.0, np.float32), 8000, "WAV", "FLOAT")
    assert read_audio(path).max() == 40


# ---- MP3 --------------------------------------------------------------------------------------------------------


def vbr_without_length(path, seconds=8, quiet=0):
    "A variable-bit-rate MP3 without the frame that states its length; libsndfile guesses it from the first bit rate."
    x = sound(seconds, 44100)
    x[: quiet * 44100] *= 1e-6
    write(path, x, 44100, "MP3", "MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.3)
    data = path.read_bytes()
    path.write_bytes(data[data.find(data[:2], 100) :])
    return len(x)


def test_mp3_without_a_length(tmp_path):
    path = tmp_path / "a.mp3"
    n = vbr_without_length(path)
    assert len(sf.read(path)[0]) < 0.7 * n  # what libsndfile makes of it
    whole = read_audio(path)
    assert n <= len(whole) <= n + 2 * 1152
    assert np.abs(read_audio(path, start_s=5, end_s=6) - whole[5 * 44100 : 6 * 44100]).max() < 1e-5
    assert fault(path, start_s=5, end_s=60).kind == "out_of_range"
    path.write_bytes(b"ID3\4\0\0\0\0\x20\0" + bytes(4096) + path.read_bytes())  # a tag in front
    assert np.array_equal(read_audio(path), whole)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4] + bytes(20000))
    assert fault(path).kind == "corrupt_data"


def test_mp3_with_too_long_a_guess(tmp_path):
    path = tmp_path / "a.mp3"
    n = vbr_without_length(path, quiet=2)
    assert sf.info(path).frames > 1.3 * n
    assert n <= len(read_audio(path)) <= n + 2 * 1152 and audio_info(path).frames is None
    e = fault(path, start_s=5, end_s=9)
    assert e.kind == "out_of_range" and f"{len(read_audio(path))} frames" in e.what


def test_mp3_in_threads_and_stderr(tmp_path, capfd):
    write(tmp_path / "a.mp3", sound(4, 44100), 44100, "MP3", "MPEG_LAYER_III")
    data = (tmp_path / "a.mp3").read_bytes()
    for i in range(6):  # stated length and size disagree: libmpg123 prints a warning for each
        (tmp_path / f"{i}.mp3").write_bytes(data[: len(data) * (3 + i) // 10])
    sf.read(tmp_path / "0.mp3")
    assert "Warning" in capfd.readouterr().err  # soundfile alone lets it through
    want = [len(read_audio(tmp_path / f"{i}.mp3")) for i in range(6)]
    wrong, fds = [], len(os.listdir("/proc/self/fd"))

    def work(i):
        for _ in range(10):
            if len(read_audio(tmp_path / f"{i}.mp3")) != want[i]:
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong
    assert capfd.readouterr().err == ""
    os.write(2, b"still here")
    assert capfd.readouterr().err == "still here"
    assert len(os.listdir("/proc/self/fd")) == fds


def test_a_process_forked_meanwhile_keeps_its_stderr(tmp_path, capfd):
    with audio._stderr.muted():
        pid = os.fork()
        if not pid:
            os.write(2, b"from the child")
            with audio._stderr.muted():
                os.write(2, b"not this")
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        os.write(2, b"nor this")
    assert capfd.readouterr().err == "from the child"


def test_no_descriptor_or_thread_is_left_open(tmp_path, sample_set):
    n = vbr_without_length(tmp_path / "a.mp3")
    assert n
    fds, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    for path in [*sample_set("broken").iterdir(), tmp_path / "a.mp3"]:
        for kwargs in ({}, dict(start_s=0.1, end_s=0.2), dict(start_s=100)):
            try:
                read_audio(path, **kwargs)
            except AudiotagError:
                pass
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == (fds, threads)


# ---- quarantine -------------------------------------------------------------------------------------------------


def test_quarantine_without_rows(tmp_path):
    write_quarantine(tmp_path / "quarantine.csv", [])
    assert (tmp_path / "quarantine.csv").read_text() == "clip_id,path,kind,what\n"
    assert quarantine_row(5, AudiotagError("odd")) == {"clip_id": "5", "path": "", "kind": "error", "what": "odd"}


def test_trimmed_view_and_inputs(tmp_path):
    x = np.concatenate([np.zeros(9000, np.float32), sound(1, 8000)[:, 0]])
    copy = x.copy()
    assert 0 < len(trim_silence(x)) < len(x)
    resample(x, 8000, 16000)
    crop_or_pad(x, 20000)
    assert np.array_equal(x, copy)
