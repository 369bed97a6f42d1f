"The store under kill -9, full disks, two writers, damage and changed files. All sounds are synthesized."

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import soundfile as sf

from audiotag.data import store as store_module
from audiotag.core.errors import AudiotagError
from audiotag.core.files import file_sha256
from audiotag.audio.features import GlobalFeatures, LogMel, Standardize, Waveform, crop_frames
from audiotag.data.store import DTYPES, FeatureStore, build_store, decode, encode, repair_store

RATE = 16000
FRONT_END = LogMel(sample_rate=RATE, n_fft=512, hop_length=160, n_mels=32, f_max=8000)
SETTINGS = dict(shard_mb=0.05)


def sound(seed, seconds):
    g = np.random.default_rng(seed)
    t = np.arange(round(seconds * RATE)) / RATE
    wave = 0.3 * np.sin(2 * np.pi * g.uniform(200, 4000) * t) + 0.05 * g.standard_normal(len(t))
    return (wave * 32767).astype(np.int16)


def make_corpus(folder, n=48):
    "`n` clips and three files that are no sound; gives the clip table."
    folder.mkdir(parents=True)
    for i in range(n):
        sf.write(folder / f"{i:03d}.wav", sound(i, 0.6 + (i % 7) * 0.2), RATE)
    (folder / "page.wav").write_text("<html>")
    (folder / "nothing.wav").touch()
    paths = [*sorted(folder.glob("*.wav")), folder / "never_there.wav"]
    old = time.time() - 1000  # so that times are trusted
    for p in paths[:-1]:
        os.utime(p, (old, old))
    return pd.DataFrame({"clip_id": [p.stem for p in paths], "path": [str(p) for p in paths]})


def content(folder):
    "What a store is: all files but those that begin with a dot, as {name: hash}."
    return {
        str(p.relative_to(folder)): file_sha256(p)
        for p in sorted(Path(folder).rglob("*"))
        if p.is_file() and not p.name.startswith(".")
    }


def identity(folder):
    "{shard: (inode, mtime)}: a shard that was written again has another one."
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in (Path(folder) / "shards").glob("*.npy")}


def build(clips, folder, **kwargs):
    return build_store(clips, kwargs.pop("front_end", FRONT_END), folder, **{**SETTINGS, **kwargs})


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "audio")


@pytest.fixture(scope="module")
def reference(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "store"
    build(clips, folder)
    return folder


@pytest.fixture
def copy(reference, tmp_path):
    shutil.copytree(reference, tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def own(tmp_path):
    "A corpus that a test may change, and its store."
    clips = make_corpus(tmp_path / "audio", n=24)
    build(clips, tmp_path / "store")
    return clips, tmp_path / "store"


# A script without a `__main__` guard, as users write them.
SCRIPT = """
import json, sys, pandas as pd
from audiotag.core.errors import AudiotagError
from audiotag.core.config import config_from_dict
from audiotag.data.store import build_store
table, folder, workers, front_end, settings = sys.argv[1:]
try: build_store(pd.read_csv(table, dtype={'clip_id': str}), config_from_dict(json.loads(front_end)), folder, workers=int(workers), **json.loads(settings))
except AudiotagError as e: sys.exit(f'AudiotagError: {e}')
"""


def start(clips, folder, workers=1, front_end=FRONT_END, **settings):
    "Build in another process."
    table = Path(folder).parent / "clips.csv"
    clips.to_csv(table, index=False)
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            SCRIPT,
            str(table),
            str(folder),
            str(workers),
            front_end.to_json(),
            json.dumps({**SETTINGS, **settings}),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(what, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "this took too long"
        time.sleep(0.0005)


def n_shards(folder):
    return len(list((folder / "shards").glob("[!.]*.json"))) if (folder / "shards").is_dir() else 0


# --- the same bytes, whatever happens


def test_two_workers_make_the_bytes_of_one(clips, reference, tmp_path):
    assert len(content(reference)) > 16, "the corpus must give several shards"
    build(clips.sample(frac=1, random_state=0), tmp_path / "store", workers=2)  # and in another order
    assert content(tmp_path / "store") == content(reference)
    left = [
        " ".join(c.cmdline()) for c in psutil.Process().children(recursive=True) if c.status() != psutil.STATUS_ZOMBIE
    ]
    assert all("tracker" in c for c in left), "workers stay behind, with all their memory"


def test_the_order_of_the_table_does_not_matter(clips, tmp_path):
    parts = pd.concat(
        [clips.head(20).assign(clip_id=clips.clip_id + f"_{i}", start_s=i / 10, end_s=i / 10 + 0.3) for i in range(4)]
    )
    build(parts, tmp_path / "a")
    build(parts.sample(frac=1, random_state=0), tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b")
    shards = FeatureStore(tmp_path / "a").index
    assert shards.groupby(shards.path).shard.nunique().max() == 1, "the clips of a file lie together"


@pytest.mark.long
def test_killed_again_and_again(clips, reference, tmp_path):
    folder = tmp_path / "store"
    for moment in (
        lambda: any((folder / "shards").glob(".*.part")),
        lambda: n_shards(folder) >= 4,
        lambda: n_shards(folder) >= 9,
    ):
        process = start(clips, folder)
        wait_for(moment)
        process.kill()
        process.wait()
        with pytest.raises(AudiotagError, match="not finished"):
            FeatureStore(folder)
    assert 9 <= n_shards(folder) < n_shards(reference)
    whole = {k: v for k, v in identity(folder).items() if not k.startswith(".")}
    (folder / "shards" / ".0110.npy.1-abc.part").touch()  # as a kill leaves it
    build(clips, folder)
    assert content(folder) == content(reference)
    assert len(whole.items() & identity(folder).items()) >= 9, "what was finished is not made again"
    assert not list(folder.rglob("*.part"))


@pytest.mark.long
def test_killed_with_workers(clips, reference, tmp_path):
    folder = tmp_path / "store"
    process = start(clips, folder, workers=2)
    wait_for(lambda: n_shards(folder) >= 3)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    build(clips, folder)  # at once, while the orphans may still be at it
    assert content(folder) == content(reference)
    _, alive = psutil.wait_procs(children, timeout=20)
    for left in alive:
        left.kill()
    assert not alive, "workers outlive whoever asked for them"
    assert content(folder) == content(reference), "an orphan wrote into the finished store"


def test_killed_between_the_shards_and_the_index(clips, reference, copy):
    for gone in (["index.parquet"], ["index.parquet", "quarantine.csv"], ["quarantine.csv"], [".seen"]):
        for name in gone:
            (copy / name).unlink()
        before = identity(copy)
        build(clips, copy)
        assert content(copy) == content(reference) and identity(copy) == before


def test_torn_notes_are_ignored(clips, reference, copy):
    with open(copy / ".seen", "a") as f:
        f.write('\n["x", [1, 2\n[]\n{}\n["a", 1, 2, 3, 4, 5]\n\x00')
    build(clips, copy)
    assert content(copy) == content(reference)


# --- two writers, a full disk


@pytest.mark.long
def test_two_builders(clips, reference, tmp_path):
    folder = tmp_path / "store"
    first = start(clips, folder)
    wait_for(lambda: n_shards(folder) >= 2)
    first.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(AudiotagError, match=f"in use by process {first.pid}"):
            build(clips, folder)
        with pytest.raises(AudiotagError, match="in use by process"):
            repair_store(folder, clips)
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait() == 0, first.stderr.read()
    assert content(folder) == content(reference)


def test_a_reader_is_not_disturbed_by_a_rebuild(clips, copy):
    store = FeatureStore(copy)
    was = store["003"]
    names = [store._entry(c)[0] for c in store]
    other = next(c for c, n in zip(store, names) if n != store._entry("003")[0])
    build(clips, copy, front_end=FRONT_END.replace(top_db=30.0), rebuild=True)
    np.testing.assert_array_equal(store["003"], was)  # its shard is mapped
    with pytest.raises(AudiotagError, match="open the store again"):
        store[other]
    assert FeatureStore(copy).front_end.top_db == 30


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_full_disk(clips, reference, small_disk, workers):
    folder = small_disk / "store"
    with pytest.raises(AudiotagError, match="No space left on device.*free some space") as e:
        build(clips, folder, workers=workers)
    assert "\n" not in str(e.value)
    done = identity(folder)
    assert len(done) >= 2
    with pytest.raises(AudiotagError, match="No space left on device"):
        build(clips, folder)
    assert done.items() <= identity(folder).items()
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    build(clips, folder)
    assert content(folder) == content(reference) and done.items() <= identity(folder).items()


@pytest.mark.parametrize("suffix", [".npy", ".json", "index.parquet", "quarantine.csv", "store.json", "audiotag.json"])
def test_disk_full_at_any_file(clips, reference, tmp_path, monkeypatch, suffix):
    folder, real = tmp_path / "store", os.replace
    count = []

    def replace(a, b):
        if str(b).endswith(suffix):
            count.append(b)
            if len(count) == (3 if suffix in (".npy", ".json") else 1):
                raise OSError(28, "No space left on device", str(a))
        return real(a, b)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(AudiotagError, match="No space left on device"):
        build(clips, folder)
    build(clips, folder)
    assert content(folder) == content(reference)


# --- what has changed, and only that


def fresh(clips, tmp_path):
    build(clips, tmp_path / "fresh")
    return content(tmp_path / "fresh")


def test_a_changed_file(own, tmp_path):
    clips, folder = own
    before, shard = identity(folder), FeatureStore(folder)._entry("005")[0]
    sf.write(clips.path[5], sound(99, 1.6), RATE)
    store = build(clips, folder)
    gone = before.keys() - identity(folder).keys()
    assert gone == {f"{shard}.npy"}
    assert {k: v for k, v in before.items() if k not in gone}.items() <= identity(folder).items()
    np.testing.assert_allclose(store["005"], FRONT_END.read_features(clips.path[5]), atol=0.04)
    assert content(folder) == fresh(clips, tmp_path)


def test_a_changed_file_of_the_same_size_and_time(own, tmp_path):
    clips, folder = own
    path, times = clips.path[5], os.stat(clips.path[5])
    data, _ = sf.read(path, dtype="int16")
    with open(path, "r+b") as f:
        f.seek(-2 * len(data), 2)
        f.write(data[::-1].tobytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (os.stat(path).st_size, os.stat(path).st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    store = build(clips, folder)
    np.testing.assert_allclose(store["005"], FRONT_END.read_features(path), atol=0.04)
    assert content(folder) == fresh(clips, tmp_path)


def test_touched_and_moved_files_are_the_same_files(own, tmp_path):
    clips, folder = own
    before = identity(folder)
    for p in clips.path[:24]:
        os.utime(p)
    build(clips, folder)
    assert identity(folder) == before
    shutil.move(tmp_path / "audio", tmp_path / "elsewhere")
    moved = clips.assign(path=clips.path.str.replace("/audio/", "/elsewhere/"))
    store = build(moved, folder)
    assert identity(folder) == before
    assert all("/elsewhere/" in p for p in [*store.index.path, *store.quarantine.path])
    assert content(folder) == fresh(moved, tmp_path)


def test_only_the_changed_clip_is_read(own, monkeypatch):
    clips, folder = own
    read, real = [], LogMel.read_features
    monkeypatch.setattr(LogMel, "read_features", lambda self, path, **k: read.append(path) or real(self, path, **k))
    sf.write(clips.path[5], sound(99, 1.6), RATE)
    build(clips, folder)
    bad = set(clips.path[-3:])  # what is in quarantine is tried again when its shard is made again
    assert set(read) - bad == {clips.path[5]}
    read.clear()
    build(clips, folder, shard_mb=0.02)  # other shards, the same features
    assert set(read) <= bad and len(identity(folder)) > 8


def test_a_second_call_hashes_only_what_may_have_changed(own, monkeypatch):
    clips, folder = own
    hashed, real, now = [], file_sha256, time.time
    monkeypatch.setattr(store_module, "file_sha256", lambda path: hashed.append(Path(path).name) or real(path))
    build(clips, folder)
    assert len(hashed) == 26, "files that were written a moment ago are not trusted"
    monkeypatch.setattr(time, "time", lambda: now() + 100)
    build(clips, folder)
    hashed.clear()
    build(clips, folder)
    assert hashed == []
    times = os.stat(clips.path[5])
    flip(clips.path[5], -20)
    os.utime(clips.path[5], ns=(times.st_atime_ns, times.st_mtime_ns))
    before = content(folder)
    build(clips, folder)
    assert hashed == ["005.wav"] and content(folder) != before


def test_a_shard_of_nothing_but_faults(clips, tmp_path):
    store = build(clips.tail(3), tmp_path / "store")
    assert len(store) == 0 and len(store.quarantine) == 3 and "3 in quarantine" in store.describe()
    before = identity(tmp_path / "store")
    assert not len(build(clips.tail(3), tmp_path / "store").repair().verify())
    assert identity(tmp_path / "store") == before


def test_added_and_removed_clips(own, tmp_path):
    clips, folder = own
    before = identity(folder)
    sf.write(tmp_path / "new.wav", sound(77, 1.0), RATE)
    more = pd.concat([clips.drop(index=[3]), pd.DataFrame({"clip_id": ["new"], "path": [str(tmp_path / "new.wav")]})])
    store = build(more, folder)
    assert "new" in store and "003" not in store
    assert len(before.items() & identity(folder).items()) >= len(before) - 3
    assert content(folder) == fresh(more, tmp_path)


def test_a_missing_file_that_comes_back(own, tmp_path):
    clips, folder = own
    os.rename(clips.path[7], tmp_path / "hidden.wav")
    store = build(clips, folder)
    assert store.quarantine.set_index("clip_id").kind["007"] == "missing" and "007" not in store
    os.rename(tmp_path / "hidden.wav", clips.path[7])
    assert "007" in build(clips, folder)
    assert content(folder) == fresh(clips, tmp_path)


def test_a_file_that_vanishes_while_it_is_read(clips, reference, tmp_path, monkeypatch):
    def read_features(self, path, **k):
        if path == clips.path[7]:
            raise AudiotagError("file not found", file=path, kind="missing")
        return real(self, path, **k)

    real = LogMel.read_features
    monkeypatch.setattr(LogMel, "read_features", read_features)
    assert "007" not in build(clips, tmp_path / "store")
    monkeypatch.undo()
    assert "007" in build(clips, tmp_path / "store"), "a passing fault must not stay"
    assert content(tmp_path / "store") == content(reference)


def test_another_front_end(clips, reference, copy, tmp_path):
    for change, words in (
        (dict(front_end=FRONT_END.replace(hop_length=80)), "front_end.hop_length is 160 there and 80 here"),
        (dict(front_end=FRONT_END.replace(scaling=Standardize())), "front_end.scaling"),
        (dict(dtype="uint8"), "dtype is 'float16' there and 'uint8' here"),
    ):
        with pytest.raises(AudiotagError, match=words) as e:
            build(clips, copy, **change)
        assert "rebuild=True" in str(e.value)
        assert content(copy) == content(reference)
    build(clips, copy, dtype="uint8", rebuild=True)
    build(clips, tmp_path / "new", dtype="uint8")
    assert content(copy) == content(tmp_path / "new")


def test_somebody_elses_folder(clips, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("x")
    with pytest.raises(AudiotagError, match="holds files"):
        build(clips, tmp_path / "thesis")
    assert os.listdir(tmp_path / "thesis") == ["chapter1.tex"]


# --- what cannot be read


def test_quarantine(clips, reference):
    store = FeatureStore(reference)
    q = pd.read_csv(reference / "quarantine.csv")
    assert q.clip_id.tolist() == ["never_there", "nothing", "page"] == store.quarantine.clip_id.tolist()
    assert q.columns.tolist() == ["clip_id", "path", "kind", "what"]
    assert q.kind.tolist()[:2] == ["missing", "zero_bytes"] and (q.what.str.len() > 5).all()
    assert q.path.tolist() == sorted(clips.path[-3:].tolist(), key=lambda p: Path(p).stem)
    assert len(store) == 48 and "page" not in store and store.index.clip_id.is_monotonic_increasing
    with pytest.raises(AudiotagError, match="in quarantine") as e:
        store["page"]
    assert e.value.kind == q.kind[2]
    with pytest.raises(AudiotagError, match="no clip 'what'"):
        store["what"]


def test_ranges_names_and_lengths(tmp_path):
    names = ["a b.wav", 'quo"te, comma.wav', "emoji 🤔.wav", "new\nline.wav"]
    for i, n in enumerate(names):
        sf.write(tmp_path / n, sound(i, 3), RATE)
    os.rename(shutil.copy(tmp_path / names[0], tmp_path / "x"), os.fsencode(tmp_path) + b"/\xff\xfe.wav")
    clips = pd.DataFrame(
        {
            "clip_id": [*names, "part", "beyond", "bytes"],
            "path": [
                *(tmp_path / n for n in names),
                tmp_path / names[0],
                tmp_path / names[0],
                os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.wav"),
            ],
            "start_s": [np.nan] * 4 + [1.0, 2.5, np.nan],
            "end_s": [np.nan] * 4 + [2.0, 9.0, np.nan],
        }
    )
    store = build(clips, tmp_path / "store", longest_s=2.5)
    assert store.quarantine.set_index("clip_id").kind.to_dict() == {
        **{n: "too_long" for n in names},
        "beyond": "too_long",
        "bytes": "too_long",
    }
    np.testing.assert_allclose(
        store["part"], FRONT_END.read_features(tmp_path / names[0], start_s=1, end_s=2), atol=0.04
    )
    store = build(clips, tmp_path / "store")
    assert set(store.quarantine.clip_id) == {"beyond", "bytes"} and set(names) <= set(store)
    assert len(pd.read_csv(tmp_path / "store" / "quarantine.csv")) == 2


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c.drop(columns="path"), "no column 'path'"),
        (lambda c: c.head(0), "empty"),
        (lambda c: pd.concat([c, c.head(1)]), "'000' occurs twice"),
        (lambda c: c.assign(clip_id=range(len(c))), "0 is not a clip_id"),
        (lambda c: c.assign(path=None), "None is not a path"),
    ],
)
def test_no_clip_table(clips, tmp_path, change, words):
    with pytest.raises(AudiotagError, match=words):
        build(change(clips), tmp_path / "store")
    assert not (tmp_path / "store").exists()


@dataclass(frozen=True, kw_only=True)
class Deadly(LogMel):
    "A decoder that crashes, a clip that does not fit float16, a bug."

    on: str = "crash"

    def read_features(self, path, **kwargs):
        if path.endswith("005.wav"):
            if self.on == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.on == "large":
                return np.full((32, 9), 1e6, np.float32)
            if self.on == "nan":
                return np.full((32, 9), np.nan, np.float32)
            if self.on == "bands":
                return np.zeros((33, 9), np.float32)
            if self.on == "library":
                raise ModuleNotFoundError("No module named 'soxr'", name="soxr")
            raise KeyError("bug")
        return LogMel.read_features(self, path, **kwargs)


def deadly(on):
    return Deadly(
        **{k: getattr(FRONT_END, k) for k in ("sample_rate", "n_fft", "hop_length", "n_mels", "f_max")}, on=on
    )


@pytest.mark.long
def test_a_worker_that_dies_names_the_file(clips, tmp_path):
    with pytest.raises(AudiotagError, match=r"worker process died while it read .*005\.wav"):
        build(clips, tmp_path / "store", front_end=deadly("crash"), workers=2)
    assert "000" in build(clips.drop(index=[5]), tmp_path / "store", front_end=deadly("crash"))


@pytest.mark.parametrize(
    "on, words", [("large", "does not fit into float16.*float32"), ("bands", "channels and bands")]
)
def test_a_front_end_that_does_not_fit_stops_the_build(clips, tmp_path, on, words):
    with pytest.raises(AudiotagError, match=words) as e:
        build(clips, tmp_path / "store", front_end=deadly(on))
    assert "005.wav" in str(e.value)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_missing_library_is_no_fault_of_the_clips(clips, tmp_path, workers):
    with pytest.raises(AudiotagError, match="needs soxr, which is not installed: pip install") as e:
        build(clips, tmp_path / "store", front_end=deadly("library"), workers=workers)
    assert e.value.fix and not (tmp_path / "store" / "quarantine.csv").exists()


def test_a_bug_on_one_clip_does_not_stop_the_others(clips, tmp_path):
    for on, kind in (("bug", "unexpected"), ("nan", "non_finite")):
        store = build(clips, tmp_path / on, front_end=deadly(on))
        assert store.quarantine.set_index("clip_id").kind["005"] == kind and len(store) == 47


# --- numbers


@pytest.mark.parametrize("dtype", DTYPES)
def test_error_bounds(dtype):
    g = np.random.default_rng(1)
    for scale in (1e-3, 1, 60, 3e4):
        for shift in (0, -30, 100):
            x = (scale * g.standard_normal((8, 50)) + shift).clip(-65000, 65000).astype(np.float32)
            codes, a, b = encode(x, dtype)
            off = np.abs(decode(codes, a, b, (8,)).astype(np.float64) - x)
            reach = float(np.ptp(x))
            peak = float(np.abs(x).max())
            bound = {
                "float32": 0 * off,
                "float16": np.abs(x) * 2.0**-11 + 2.0**-25,
                "uint8": 0 * off + reach / 510 + peak * 3e-7,
                "int16": 0 * off + max(1, peak * 32768 / 32767) / 65536 * 1.01 + peak * 3e-7,
            }[dtype]
            assert (off <= bound).all()
            assert codes.dtype == dtype and codes.shape == (50, 8)
    for constant in (0.0, 7.25, -100.0):
        x = np.full((3, 4), constant, np.float32)
        np.testing.assert_allclose(decode(*encode(x, dtype), (3,)), x, rtol=1e-4)
    x = g.standard_normal((2, 3, 7)).astype(np.float32)
    assert decode(*encode(x, dtype), (2, 3)).shape == (2, 3, 7)


PROMISED_DB = {"float32": 140, "float16": 60, "int16": 80, "uint8": 30}  # signal to noise of noise, whatever its level


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_what_is_kept_does_not_depend_on_the_level(tmp_path, dtype, subtype):
    "Training hears what inference hears: from 0 to -120 dB, the numbers of the store lose less than they promise."
    noise = np.random.default_rng(3).standard_normal(2000)
    levels = range(0, 130, 10)
    for db in levels:
        sf.write(tmp_path / f"{db}.wav", noise / np.abs(noise).max() * 0.999 * 10 ** (-db / 20), RATE, subtype=subtype)
    names = [f"{db}.wav" for db in levels]
    clips = pd.DataFrame({"clip_id": names, "path": [tmp_path / name for name in names]})
    store = build(clips, tmp_path / "store", front_end=Waveform(sample_rate=RATE), dtype=dtype)
    for name in names:
        heard = store.front_end.read_features(tmp_path / name).ravel().astype(np.float64)
        error = store[name].ravel() - heard
        assert np.square(error).sum() <= np.square(heard).sum() * 10 ** (-PROMISED_DB[dtype] / 10), name
        assert subtype != "PCM_16" or dtype not in ("int16", "float32") or not error.any(), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0, 1e-45, -1e-40, 1e-30, 2**-126, -(2**-15), 32767 / 32768, -1.0, 1.0])
def test_extreme_levels(dtype, value):
    x = np.float32([[value, value / 2, 0]])
    codes, scale, zero = encode(x, dtype)
    assert np.isfinite([scale, zero]).all() and scale > 0
    assert np.abs(decode(codes, scale, zero, (1,)) - x).max() <= abs(value) / 250 + 2.0**-126


def test_a_wave_of_16_bits_comes_back_bit_for_bit(tmp_path):
    wave = np.r_[np.int16([-32768, 32767, 0, 1, -1]), sound(3, 1)]
    sf.write(tmp_path / "a.wav", wave, RATE)
    sf.write(tmp_path / "loud.wav", np.float32([0.5, 1.7, -1.2] * 99), RATE, subtype="FLOAT")
    clips = pd.DataFrame({"clip_id": ["a", "loud"], "path": [tmp_path / "a.wav", tmp_path / "loud.wav"]})
    store = build(clips, tmp_path / "store", front_end=Waveform(sample_rate=RATE))
    assert store.settings.dtype == "int16" and store["a"].shape == (1, len(wave))
    np.testing.assert_array_equal(store["a"][0] * 32768, wave)
    assert np.abs(store["loud"][0][:3] - [0.5, 1.7, -1.2]).max() < 1.7 / 65534 * 1.01


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8"])
def test_stated_errors_and_levels(clips, tmp_path, dtype):
    store = build(clips.head(8), tmp_path / "store", dtype=dtype)
    for r in store.index.itertuples():
        x = FRONT_END.read_features(r.path)
        assert np.abs(store[r.clip_id] - x).max() == pytest.approx(r.error, rel=1e-5)
        np.testing.assert_allclose([r.mean, r.std, r.min, r.max], [x.mean(), x.std(), x.min(), x.max()], rtol=1e-4)
        assert (r.frames, r.channels, r.bands) == (x.shape[1], 1, 32) and r.audio == file_sha256(r.path)
    assert store.index.error.max() <= {"float16": 0.03125, "float32": 0, "uint8": 60 / 510 * 1.001}[dtype]


# --- reading


def test_crops_are_those_of_the_whole_clip(clips, reference, tmp_path):
    uint8 = build(clips.head(8), tmp_path / "uint8", dtype="uint8")
    deltas = build(clips.head(8), tmp_path / "deltas", front_end=FRONT_END.replace(deltas=1))
    assert deltas["000"].shape[:2] == (2, 32)
    for store in (FeatureStore(reference), uint8, deltas):
        for c in list(store)[:8]:
            x, n = store[c], store.n_frames(c)
            assert x.dtype == np.float32 and x.shape[-1] == n
            for size in (1, 17, n - 1, n, n + 1, n + 2, 2 * n):
                for first in {0, 1, (n - size) // 2, n - size}:
                    if 0 <= first <= max(0, n - size):
                        got = store.crop(c, first, size)
                        np.testing.assert_array_equal(got, crop_frames(x, first, size))
                        assert got.dtype == np.float32 and got.flags.writeable and got.flags.c_contiguous
            for first, size in ((-1, 5), (n - 4, 5), (0, 0), (1, n)):
                with pytest.raises(AudiotagError):
                    store.crop(c, first, size)


def test_the_same_seconds_from_waves_and_spectrograms(clips, reference, tmp_path):
    mel, wave = FeatureStore(reference), build(clips, tmp_path / "waves", front_end=Waveform(sample_rate=RATE))
    assert list(mel) == list(wave)
    for c in mel:
        assert abs(mel.seconds(c) - wave.seconds(c)) < 0.011
        for start_s, length in ((0, 0.5), (0.1, 0.3), (0, 2.5)):
            m, w = mel.crop_seconds(c, start_s, length), wave.crop_seconds(c, start_s, length)
            assert (m.shape, w.shape) == ((32, round(length * 100)), (1, round(length * RATE)))
    c = max(wave, key=wave.n_frames)
    # the mel of the crop is the crop of the mel, but for its edges
    x = FRONT_END(wave.crop_seconds(c, 0.5, 0.5)[0])
    np.testing.assert_allclose(mel.crop_seconds(c, 0.5, 0.5)[:, 4:-4], x[:, 4 : 50 - 4], atol=0.05)
    assert (wave.crop_seconds("000", 0, 1.0)[0, :3] == 0).all(), "a short wave stands among zeros"


def test_frames_that_are_no_steps_in_time(clips, tmp_path):
    store = build(clips.head(4), tmp_path / "store", front_end=GlobalFeatures(sample_rate=RATE))
    with pytest.raises(AudiotagError, match="no place in time"):
        store.crop_seconds("000", 0, 1)
    assert "4, and 0 in quarantine" in store.describe() and store["000"].shape[-1] == store.n_frames("000")


def test_a_crop_is_mapped_and_not_read(tmp_path):
    g = np.random.default_rng(0)
    sf.write(tmp_path / "long.wav", g.standard_normal(RATE * 1200) * 0.1, RATE)
    clips = pd.DataFrame({"clip_id": ["long"], "path": [tmp_path / "long.wav"]})
    build(clips, tmp_path / "store", front_end=Waveform(sample_rate=RATE), dtype="float32")
    code = """if 1:
        import sys, numpy as np
        from audiotag.data.store import FeatureStore
        store = FeatureStore(sys.argv[1])
        def resident(): return int(open('/proc/self/statm').read().split()[1])*4096
        store.crop('long', 0, 100); before = resident()
        for i in range(20): store.crop('long', i*900000, 16000)
        print(resident()-before)"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")], capture_output=True, text=True, check=True
    )
    assert int(out.stdout) < 20e6, "the clip has 77 MB"


def test_travels_light_and_keeps_few_maps(reference):
    store = FeatureStore(reference, open_shards=2)
    for c in store:
        store[c]
    assert len(store._mapped_shards) == 2
    sent = pickle.dumps(store)
    assert len(sent) < 1000
    back = pickle.loads(sent)
    assert not back._mapped_shards and back.open_shards == 2
    np.testing.assert_array_equal(back["003"], store["003"])


def test_no_code_in_a_store(reference):
    source = Path(store_module.__file__).read_text()
    assert not any(word in source for word in ("pickle", "torch.load", "fastai", "nbdev."))
    for p in reference.rglob("*.npy"):
        assert np.load(p, allow_pickle=False).dtype == np.float16


# --- damage


def flip(path, at):
    with open(path, "r+b") as f:
        f.seek(at, 0 if at >= 0 else 2)
        byte = f.read(1)[0]
        f.seek(-1, 1)
        f.write(bytes([byte ^ 16]))


def test_every_damage_is_named_and_repaired(clips, reference, copy):
    store = FeatureStore(copy)
    r = store.index.iloc[9]
    npy, side = copy / "shards" / f"{r.shard}.npy", copy / "shards" / f"{r.shard}.json"
    whole = set(store.index.clip_id[store.index.shard == r.shard])
    damages = {
        "a bit": (lambda: flip(npy, 128 + r.offset * 64 + 5), {r.clip_id}),
        "the header": (lambda: flip(npy, 3), whole),
        "cut": (lambda: os.truncate(npy, 128 + r.offset * 64 + 64), whole),
        "gone": (npy.unlink, whole),
        "empty": (lambda: os.truncate(npy, 0), whole),
        "longer": (lambda: open(npy, "ab").write(b"more"), whole),
        "number format": (lambda: npy.write_bytes(npy.read_bytes().replace(b"<f2", b"<i2", 1)), whole),
        "JSON gone": (side.unlink, {""}),
        "JSON bit": (lambda: flip(side, 200), {""}),
    }
    before = identity(copy)
    for what, (damage, named) in damages.items():
        damage()
        faults = FeatureStore(copy).verify()
        assert len(faults) and set(faults.shard) == {r.shard}, what
        assert set(faults.clip_id) - {""} == named - {""} and (named != {""} or len(faults) == 1), what
        repaired = FeatureStore(copy).repair()
        assert not len(repaired.verify()) and content(copy) == content(reference), what
        others = {k: v for k, v in before.items() if k != npy.name}
        assert others.items() <= identity(copy).items(), f"{what}: other shards were touched"


def test_repair_reads_only_what_is_damaged(clips, reference, copy, monkeypatch):
    store, read, real = FeatureStore(copy), [], LogMel.read_features
    monkeypatch.setattr(LogMel, "read_features", lambda self, path, **k: read.append(path) or real(self, path, **k))
    r = store.index.iloc[9]
    flip(copy / "shards" / f"{r.shard}.npy", 128 + r.offset * 64 + 5)
    store.repair()
    assert set(read) - set(clips.path[-3:]) == {r.path} and content(copy) == content(reference)


def test_damaged_index_and_settings(clips, reference, copy):
    size = (copy / "index.parquet").stat().st_size
    for at in (0, 300, size // 2, -3):
        flip(copy / "index.parquet", at)
        with pytest.raises(AudiotagError, match="index.parquet.*damaged"):
            FeatureStore(copy)
        with pytest.raises(AudiotagError, match="give the clip table"):
            repair_store(copy)
        repair_store(copy, clips)
        assert content(copy) == content(reference)
    (copy / "store.json").write_text("{")
    with pytest.raises(AudiotagError, match="store.json"):
        build(clips, copy)
    repair_store(copy)
    assert content(copy) == content(reference)


def test_a_begun_change_of_the_front_end_is_told(clips, copy, monkeypatch):
    monkeypatch.setattr(store_module, "_build_shards", lambda *a, **k: None)
    build(clips, copy, front_end=FRONT_END.replace(top_db=30.0), rebuild=True)
    faults = FeatureStore(copy).verify()
    assert len(faults) == 1 and "top_db" in faults.what[0]


def test_verify_compares_the_audio(own):
    clips, folder = own
    sf.write(clips.path[5], sound(99, 1.6), RATE)
    os.unlink(clips.path[6])
    store = FeatureStore(folder)
    assert not len(store.verify())
    assert set(store.verify(audio=True).clip_id) == {"005", "006"}


def test_describe(reference):
    text = FeatureStore(reference).describe()
    for words in ("48, and 3 in quarantine", "1 missing", "float16, off by at most 0.0", FRONT_END.hash, "1 × 32"):
        assert words in text


# --- memory


@pytest.mark.long
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    sf.write(tmp_path / "a.wav", sound(1, 10), RATE)

    def peak(n, workers):
        ids = [f"{i:04d}" for i in range(n)]
        clips = pd.DataFrame(
            {"clip_id": ids, "path": str(tmp_path / "a.wav"), "start_s": 1.0, "end_s": [7.0 + i / n for i in range(n)]}
        )
        process = start(
            clips, tmp_path / f"store{n}{workers}", workers, Waveform(sample_rate=RATE), dtype="float32", shard_mb=1000
        )
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, process.stderr.read()
        return usage.ru_maxrss * 1024

    few, many = peak(10, 1), peak(250, 1)
    assert many - few < 25e6, f"{(many - few) / 1e6:.0f} MB more for 100 MB of features"
