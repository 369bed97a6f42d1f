"Stores and runs behind a URL: kills in the middle of a transfer, two writers, the bound of the cache, damage, no credentials."

import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from audiotag.data import remote as remote_module
from audiotag.audio.io import ReadOptions
from audiotag.core.errors import AudiotagError
from audiotag.core.files import file_sha256, write_json, write_text
from audiotag.audio.features import GlobalFeatures, Joined, LogMel, Waveform
from audiotag.data.remote import (
    Cache,
    Mirror,
    Remote,
    RemoteStore,
    _CacheFull,
    local_copy,
    build_remote,
    build_stores_at,
    open_store_at,
    repair_remote,
)
from audiotag.data.store import FeatureStore, build_store

from tests import s3_server, tiny
from tests.bounds import bounded  # noqa: F401

RATE = 16000
FRONT_END = LogMel(sample_rate=RATE, n_fft=512, hop_length=160, n_mels=32, f_max=8000)
SETTINGS = dict(shard_mb=0.05)
needs_s3 = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("moto", "s3fs", "flask"))),
    reason="needs moto[server] and s3fs (pip install audiotag[remote] moto[server])",
)
apart = pytest.mark.apart


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audio")
    for i in range(40):
        g = np.random.default_rng(i)
        sf.write(folder / f"{i:03d}.wav", g.uniform(-0.3, 0.3, round((0.6 + i % 7 * 0.2) * RATE)), RATE)
    (folder / "page.wav").write_text("<html>")
    paths = sorted(folder.glob("*.wav"))
    old = time.time() - 1000
    for p in paths:
        os.utime(p, (old, old))
    return pd.DataFrame({"clip_id": [p.stem for p in paths], "path": [str(p) for p in paths]})


@pytest.fixture(scope="module")
def reference(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference") / "store"
    build_store(clips, FRONT_END, folder, **SETTINGS)
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }


@pytest.fixture(scope="session")
def s3():
    server, env = s3_server.start()
    yield env
    server.kill()
    server.wait()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AUDIOTAG_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["file", pytest.param("s3", marks=[apart, needs_s3])])
def url(request, tmp_path, monkeypatch, own_cache):
    "A place that other processes reach, too."
    if request.param == "file":
        return f"file://{tmp_path}/far/place"
    for k, v in request.getfixturevalue("s3").items():
        monkeypatch.setenv(k, v)
    import fsspec

    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    bucket = "lab-" + os.urandom(4).hex()
    fs.mkdir(bucket)
    return f"s3://{bucket}/place"


def content(url):
    remote = Remote(url)
    return {k: remote.fs.cat_file(f"{remote.root}/{k}") for k in remote.files()}


def wait_for(what, process=None, seconds=60):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "this took too long"
        if process is not None and process.poll() is not None:
            return
        time.sleep(0.005)


BUILD = """
import json, sys, time, pandas as pd
from audiotag.core.errors import AudiotagError
from audiotag.core.config import config_from_dict
from audiotag.data import remote, store
table, url, front_end, slow = sys.argv[1:]
real = store._make_clip
def clip(*o): time.sleep(float(slow)); return real(*o)
store._make_clip = clip
sent = remote.Remote.put
def put(*o): time.sleep(8*float(slow)); return sent(*o)
remote.Remote.put = put
try: remote.build_remote(pd.read_csv(table, dtype={'clip_id': str}), config_from_dict(json.loads(front_end)), url, shard_mb=.05)
except AudiotagError as e: sys.exit(f'AudiotagError: {e}')
"""


def start_build(clips, url, cache, slow=0.0, front_end=FRONT_END):
    cache.mkdir(parents=True, exist_ok=True)
    clips.to_csv(cache / "clips.csv", index=False)
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(cache / "clips.csv"), url, front_end.to_json(), str(slow)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "AUDIOTAG_CACHE": str(cache), "OMP_NUM_THREADS": "1"},
    )


# --- stores


def test_the_same_bytes_as_in_a_folder(clips, reference, url, tmp_path):
    store = build_remote(clips, FRONT_END, url, **SETTINGS)
    assert content(url) == reference
    here = FeatureStore(Path(_written(tmp_path / "here", reference)))
    assert list(store) == list(here) and store.quarantine.equals(here.quarantine)
    for c in here:
        np.testing.assert_array_equal(store[c], here[c])
        np.testing.assert_array_equal(store.crop(c, 3, 20), here.crop(c, 3, 20))
    assert url in store.describe() and "40, and 1 in quarantine" in store.describe() and not len(store.verify())
    builds = store.cache.folder_for("builds", url)
    assert not list(builds.rglob("*.npy")), "the builder keeps no shards"
    before = Remote(url).files()
    build_remote(clips, FRONT_END, url, **SETTINGS)
    build_remote(clips, FRONT_END, url, cache=Cache(tmp_path / "other"), **SETTINGS)  # another machine
    assert {k: v for k, v in Remote(url).files().items() if k.startswith("shards/")} == {
        k: v for k, v in before.items() if k.startswith("shards/")
    }
    assert content(url) == reference


def _written(folder, files):
    for k, v in files.items():
        (folder / k).parent.mkdir(parents=True, exist_ok=True)
        (folder / k).write_bytes(v)
    return folder


@pytest.mark.long
def test_killed_while_it_sends(clips, reference, url, tmp_path):
    remote, shards = Remote(url), lambda: [k for k in Remote(url).files() if k.endswith(".npy")]
    for i, want in enumerate((1, 4, 8)):
        p = start_build(clips, url, tmp_path / f"machine{i}", slow=0.02)  # each on a machine that has nothing
        wait_for(lambda: len(shards()) >= want, p)
        p.send_signal(signal.SIGKILL)
        p.wait()
        p.stderr.close()
        for name, data in content(url).items():
            assert data == reference[name], f"{name} is not whole"
        with pytest.raises(AudiotagError, match="not there, or not finished"):
            RemoteStore(url, cache=Cache(tmp_path / "reader"))
    had = {k: v for k, v in remote.files().items() if k.startswith("shards/") and k[:-4] + "json" in remote.files()}
    p = start_build(clips, url, tmp_path / "last")
    assert p.wait() == 0, p.stderr.read()
    assert content(url) == reference
    assert had.items() <= {k: v for k, v in Remote(url).files().items()}.items(), "what was there was not sent again"


@pytest.mark.long
def test_two_builders_at_once(clips, reference, url, tmp_path):
    both = [start_build(clips, url, tmp_path / f"machine{i}", slow=0.003 * i) for i in range(2)]
    for p in both:
        assert p.wait() == 0, p.stderr.read()
    assert content(url) == reference


def test_a_changed_corpus_and_another_front_end(clips, url, tmp_path):
    build_remote(clips, FRONT_END, url, **SETTINGS)
    reader = RemoteStore(url)
    fewer = clips[clips.clip_id != "003"]
    build_remote(fewer, FRONT_END, url, **SETTINGS)
    build_store(fewer, FRONT_END, tmp_path / "here", **SETTINGS)
    here = {
        str(p.relative_to(tmp_path / "here")): p.read_bytes()
        for p in (tmp_path / "here").rglob("*")
        if p.is_file() and not p.name.startswith(".")
    }
    assert content(url) == here, "old shards went"
    gone = next(n for n in reader.clips.about["shards"] if f"shards/{n}.npy" not in here)
    with pytest.raises(AudiotagError, match="open the store again|check the spelling"):
        reader[reader.clips.name(int(reader.clips.of_shard(reader.clips.about["shards"].index(gone))[0]))]
    with pytest.raises(AudiotagError, match="top_db") as e:
        build_remote(fewer, FRONT_END.replace(top_db=40.0), url, **SETTINGS)
    assert str(e.value).startswith(url)
    with pytest.raises(AudiotagError, match="top_db"):
        build_remote(fewer, FRONT_END.replace(top_db=40.0), url, cache=Cache(tmp_path / "else"), **SETTINGS)
    assert content(url) == here
    assert (
        RemoteStore(
            build_remote(fewer, FRONT_END.replace(top_db=40.0), url, rebuild=True, **SETTINGS).url
        ).front_end.top_db
        == 40
    )


@pytest.mark.parametrize("damage", ["bit", "cut", "header", "gone"])
def test_damage_is_seen_and_repaired(clips, reference, url, tmp_path, damage):
    store = build_remote(clips, FRONT_END, url, **SETTINGS)
    name = store.clips.about["shards"][2]
    victim, other = (store.clips.name(int(store.clips.of_shard(k)[0])) for k in (2, 3))
    file, data = f"{store.remote.root}/shards/{name}.npy", bytearray(reference[f"shards/{name}.npy"])
    if damage == "gone":
        store.remote.fs.rm_file(file)
    else:
        data[{"bit": 700, "cut": 5, "header": 20}[damage]] ^= 4
        store.remote.fs.pipe_file(file, bytes(data[:-100] if damage == "cut" else data))
    fresh = RemoteStore(url, cache=Cache(tmp_path / "fresh"))
    with pytest.raises(AudiotagError, match="is damaged|is not there") as e:
        fresh[victim]
    assert name in str(e.value) and url in str(e.value) and "repair" in str(e.value)
    assert not [p for p in fresh.cache.shards.iterdir() if name in p.name], "nothing damaged is kept"
    np.testing.assert_array_equal(fresh[other], store[other])
    assert set(fresh.verify().shard) == {name}
    assert not len(repair_remote(url, cache=Cache(tmp_path / "fresh")).verify())
    assert content(url) == reference


def test_joined_front_ends(clips, own_cache, tmp_path):
    fe = Joined(main=Waveform(sample_rate=RATE), beside=(GlobalFeatures(sample_rate=RATE),))
    far, here = (
        build_stores_at(clips.head(6), fe, f"file://{tmp_path}/far/"),
        build_stores_at(clips.head(6), fe, tmp_path / "here"),
    )
    assert [o.tobytes() for o in far["003"]] == [o.tobytes() for o in here["003"]]
    assert list(open_store_at(f"file://{tmp_path}/far", fe)) == list(here)
    with pytest.raises(AudiotagError, match="trim_db"):
        open_store_at(f"file://{tmp_path}/far", fe.replace(reading=ReadOptions(trim_db=40.0)))


# --- the cache

READ = """
import random, sys, time, numpy as np
from audiotag.core.errors import AudiotagError
from audiotag.data.remote import Cache, RemoteStore
from audiotag.data.store import FeatureStore
url, here, cache, limit, seed, n = sys.argv[1:]
store, here, g = RemoteStore(url, cache=Cache(cache, int(limit))), FeatureStore(here), random.Random(int(seed))
names = list(here)
for _ in range(int(n)):
    c = g.choice(names)
    assert np.array_equal(store.crop(c, 0, 10), here.crop(c, 0, 10)), c
    assert not any('(deleted)' in l and cache in l and '.npy' in l for l in open('/proc/self/maps')), 'thrown out, and still on the disk'
print('all read')
"""


def held(cache):
    "Bytes in the cache at one moment, those of unfinished downloads included."
    if not (cache / "shards").exists():
        return 0
    with open(cache / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # nothing is thrown out, and nothing new begun, while we look
        files, n = list((cache / "shards").iterdir()), 0
        for p in files:
            try:
                n += p.stat().st_size
            except FileNotFoundError:  # a download that has ended
                n += cache.joinpath("shards", p.name[1:].rsplit(".", 2)[0]).stat().st_size if p.suffix == ".part" else 0
        return n


@pytest.mark.long
def test_the_bound_holds_with_three_readers(clips, reference, url, tmp_path):
    build_remote(clips, FRONT_END, url, **SETTINGS)
    here = _written(tmp_path / "here", reference)
    largest = max(len(v) for k, v in reference.items() if k.endswith(".npy"))
    limit, cache, most = 3 * largest, tmp_path / "small", 0
    assert sum(len(v) for k, v in reference.items() if k.endswith(".npy")) > 2 * limit
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READ, url, str(here), str(cache), str(limit), str(i), "120"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(3)
    ]
    while any(p.poll() is None for p in readers):
        most = max(most, held(cache))
        time.sleep(0.002)
    for p in readers:
        assert p.communicate()[0].strip() == "all read" and p.returncode == 0
    # we look at file after file, and one that is replaced meanwhile is seen with its successor
    assert largest < most <= limit + largest


@pytest.mark.long
def test_killed_while_it_fetches(clips, reference, own_cache, tmp_path):
    url = f"file://{tmp_path}/far"
    build_remote(clips, FRONT_END, url, **SETTINGS)
    here = _written(tmp_path / "here", reference)
    limit, cache = 300_000, tmp_path / "small"
    slow = READ.replace(
        "url, here, cache",
        "import os, shutil, audiotag.data.remote as r\ndef get(fs, a, b, **k):\n    data = open(a, 'rb').read()\n    with open(b, 'wb') as f:\n        for i in range(0, len(data), 2000): f.write(data[i:i+2000]); f.flush(); time.sleep(.002)\nfrom fsspec.implementations.local import LocalFileSystem\nLocalFileSystem.get_file = get\nurl, here, cache",
        1,
    )
    for seed in range(4):
        p = subprocess.Popen(
            [sys.executable, "-c", slow, url, str(here), str(cache), str(limit), str(seed), "100000"],
            stderr=subprocess.PIPE,
            text=True,
        )
        wait_for(
            lambda: (
                any(o.suffix == ".part" for o in (cache / "shards").glob(".*"))
                if (cache / "shards").exists()
                else False
            ),
            p,
        )
        time.sleep(0.03 * seed)
        p.send_signal(signal.SIGKILL)
        p.wait()
        assert p.returncode == -9, p.stderr.read()
        p.stderr.close()
        assert held(cache) <= limit
    done = subprocess.run(
        [sys.executable, "-c", READ, url, str(here), str(cache), str(limit), "9", "150"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "all read", done.stderr
    assert held(cache) <= limit


def test_no_room(tmp_path):
    cache = Cache(tmp_path, 3000)

    def fetch(part):
        part.write_bytes(b"x" * 1000)

    files = [cache.open(f"f{i}", 1000, fetch) for i in range(3)]
    with pytest.raises(_CacheFull):
        cache.open("f3", 1000, fetch)
    with pytest.raises(AudiotagError, match="AUDIOTAG_CACHE_GB"):
        cache.open("f4", 3001, fetch)
    files[1].close()
    cache.open("f3", 1000, fetch).close()
    assert sorted(p.name for p in cache.shards.iterdir()) == ["f0", "f2", "f3"]

    def fails(part):
        part.write_bytes(b"x")
        raise AudiotagError("cut off")

    with pytest.raises(AudiotagError, match="cut off"):
        cache.open("f9", 1000, fails)
    assert sorted(p.name for p in cache.shards.iterdir()) == ["f0", "f2"], "nothing of it stays"
    cache.open("f0", 1000, fails).close()  # it is there


def test_a_full_cache_of_others_is_told(clips, own_cache, tmp_path, monkeypatch):
    url = f"file://{tmp_path}/far"
    build_remote(clips, FRONT_END, url, **SETTINGS)
    cache = Cache(tmp_path / "c", 100_000)
    block = cache.open("mine", 99_000, lambda part: part.write_bytes(bytes(99_000)))
    real, start = time.monotonic, time.monotonic()
    # a minute in less than one
    monkeypatch.setattr(remote_module.time, "monotonic", lambda: start + 100 * (real() - start))
    with pytest.raises(AudiotagError, match="cache is full.*AUDIOTAG_CACHE_GB"):
        RemoteStore(url, cache=cache)["003"]
    block.close()
    RemoteStore(url, cache=cache)["003"]


# --- what goes wrong is one sentence


@apart
@needs_s3
def test_no_credentials(s3, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")} | {
        "AWS_ENDPOINT_URL": s3["AWS_ENDPOINT_URL"],
        "AWS_EC2_METADATA_DISABLED": "true",
        "HOME": str(tmp_path),
        "AUDIOTAG_CACHE": str(tmp_path / "c"),
    }
    for words in (
        ["store", "s3://lab/mels"],
        ["features", "--recipe", "freesound2019", "--data", "nowhere", "--store", "s3://lab/mels"],
    ):
        out = subprocess.run(
            [sys.executable, "-c", "import sys; from audiotag.cli import main; sys.exit(main(sys.argv[1:]))", *words],
            capture_output=True,
            text=True,
            env=env,
        )
        assert out.returncode == 2 and "Traceback" not in out.stderr, out.stderr
        if words[0] == "store":
            assert "s3://lab/mels" in out.stderr and "AWS_ACCESS_KEY_ID" in out.stderr, out.stderr
    out = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from audiotag.cli import main; sys.exit(main(sys.argv[1:]))",
            "store",
            "s3://no-such-bucket/mels",
        ],
        capture_output=True,
        text=True,
        env=env | s3,
    )
    assert out.returncode == 2 and "Traceback" not in out.stderr and "s3://no-such-bucket/mels" in out.stderr


@pytest.mark.parametrize(
    "url,said",
    [
        ("s9://lab/x", "pip install s3fs"),
        ("file:///proc/1/nothing/x", "not there, or not finished"),
        ("memory://nobody/here", "not there, or not finished"),
    ],
)
def test_a_url_that_is_no_store(own_cache, url, said):
    with pytest.raises(AudiotagError, match=said) as e:
        RemoteStore(url)
    assert str(e.value).startswith(url)


def test_somebody_elses_place(clips, own_cache, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far/thesis.tex").write_text("…")
    with pytest.raises(AudiotagError, match="not an audiotag store's"):
        build_remote(clips, FRONT_END, f"file://{tmp_path}/far", **SETTINGS)
    with pytest.raises(AudiotagError, match="not an audiotag run's"):
        Mirror(f"file://{tmp_path}/far").pull()
    assert [p.name for p in (tmp_path / "far").iterdir()] == ["thesis.tex"]
    build_remote(clips.head(2), FRONT_END, f"file://{tmp_path}/store", **SETTINGS)
    with pytest.raises(AudiotagError, match="is an audiotag store, not a run"):
        Mirror(f"file://{tmp_path}/store").pull()


def test_the_network_fails_and_comes_back(clips, reference, own_cache, tmp_path, monkeypatch, capfd):
    url, real, down = f"file://{tmp_path}/far", Remote.put, [True]

    def put(self, path, name):
        if down[0] and name.endswith(".npy"):
            with remote_module._translate_errors(f"{url}/{name}", "written"):
                raise ConnectionError("no route to host")
        return real(self, path, name)

    monkeypatch.setattr(Remote, "put", put)
    with pytest.raises(AudiotagError, match="no route to host.*check the network"):
        build_remote(clips, FRONT_END, url, **SETTINGS)
    down[0] = False
    build_remote(clips, FRONT_END, url, **SETTINGS)
    assert content(url) == reference


def test_no_half_file_is_seen(own_cache, tmp_path):
    url, big = f"file://{tmp_path}/far", tmp_path / "big"
    big.write_bytes(os.urandom(1 << 20) * 60)
    code = "import sys; from audiotag.data.remote import Remote\nwhile True: Remote(sys.argv[1]).put(sys.argv[2], 'weights')"
    want, seen = file_sha256(big), 0
    for wait in (0.0, 0.02, 0.1):
        p = subprocess.Popen([sys.executable, "-c", code, url, str(big)])
        wait_for(lambda: (tmp_path / "far").exists() and any((tmp_path / "far").iterdir()))
        time.sleep(wait)
        p.kill()
        p.wait()
        for name in Remote(url).files():
            assert file_sha256(tmp_path / "far" / name) == want
            seen += 1
    Remote(url).put(big, "weights")
    assert list(Remote(url).files()) == ["weights"]


# --- runs


def test_what_is_new_goes_there_and_comes_back(url, tmp_path):
    one, two = Cache(tmp_path / "one"), Cache(tmp_path / "two")
    with local_copy(url, cache=one, every=0.02) as folder:
        write_text(folder / "1-a/fold-0/checkpoint.safetensors", "1")
        wait_for(lambda: Remote(url).read("1-a/fold-0/checkpoint.safetensors") == b"1")
        write_text(folder / "1-a/fold-0/checkpoint.safetensors", "2")
        wait_for(lambda: Remote(url).read("1-a/fold-0/checkpoint.safetensors") == b"2")
        (folder / "1-a/fold-0/.hidden").write_text("")
        (folder / "1-a/fold-0/x.part").write_text("half")
        write_text(folder / "store/shards/a.npy", "a store is no part of the copy")
    assert set(Remote(url).files()) == {"audiotag.json", "1-a/fold-0/checkpoint.safetensors"}
    with local_copy(url, cache=two) as folder:
        assert (folder / "1-a/fold-0/checkpoint.safetensors").read_text() == "2"
        (folder / "1-a/fold-0/checkpoint.safetensors").unlink()
        write_text(folder / "1-a/fold-0/weights.safetensors", "done")
    assert set(Remote(url).files()) == {"audiotag.json", "1-a/fold-0/weights.safetensors"}
    with local_copy(url, cache=one) as folder:
        assert (
            not (folder / "1-a/fold-0/checkpoint.safetensors").exists()
            and (folder / "1-a/fold-0/weights.safetensors").read_text() == "done"
        )


def test_what_was_not_sent_yet_stays(own_cache, tmp_path):
    url = f"file://{tmp_path}/far"
    mirror = Mirror(url)
    write_text(mirror.pull() / "a", "first")
    mirror.push()
    write_text(mirror.folder / "a", "second")  # and the process is killed
    write_text(mirror.folder / "b", "new")
    Mirror(url).pull()
    assert (mirror.folder / "a").read_text() == "second" and (mirror.folder / "b").read_text() == "new"
    Mirror(url).push()
    assert content(url)["a"] == b"second" and content(url)["b"] == b"new"


def test_two_runs_at_one_place(own_cache, tmp_path):
    url = f"file://{tmp_path}/far"
    one, two = (Mirror(url, cache=Cache(tmp_path / k)) for k in ("one", "two"))
    for m, n in ((one, 1), (two, 2)):
        write_json(m.pull() / "recipe.json", {"n": n})
    one.push()
    with pytest.raises(AudiotagError, match="another run was begun here"):
        two.push()
    assert json.loads(content(url)["recipe.json"]) == {"n": 1}


def test_an_error_in_the_work_is_not_hidden(own_cache, tmp_path):
    with pytest.raises(ZeroDivisionError):
        with local_copy(f"file://{tmp_path}/far") as folder:
            write_text(folder / "a", "made before")
            1 / 0
    assert content(f"file://{tmp_path}/far")["a"] == b"made before"


# --- one driver at a time

DRIVE = """
import sys, time
from audiotag.data.remote import local_copy
with local_copy(sys.argv[1]) as folder:
    print('drives', flush=True)
    time.sleep(100)
"""


def lease_of(url):
    return json.loads(Remote(url).read(".driver.json") or b"null")


def elsewhere(url, **more):
    "As if a driver on another machine had written."
    Remote(url).write(
        ".driver.json",
        json.dumps({"machine": ["alpha"], "pid": 7, "began": "1", "token": "theirs", "beats": 1, **more}).encode(),
    )


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(remote_module, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(remote_module, "TIMEOUT_S", 1.0)


def test_a_second_driver_is_told_and_one_after_a_kill_goes_on_at_once(url, tmp_path):
    first = subprocess.Popen(
        [sys.executable, "-c", DRIVE, url],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "AUDIOTAG_CACHE": str(tmp_path / "one")},
    )
    assert first.stdout.readline().strip() == "drives"
    with pytest.raises(AudiotagError, match=f"is driven by process {first.pid} on .*: wait for it, or stop it") as e:
        with local_copy(url, cache=Cache(tmp_path / "two")):
            pass
    assert str(e.value).startswith(url) and "\n" not in str(e.value) and ".driver.json" not in Remote(url).files()
    assert first.poll() is None and lease_of(url)["pid"] == first.pid, "the first one is not disturbed"
    first.kill()
    began = time.monotonic()
    with local_copy(url, cache=Cache(tmp_path / "two")):  # it was not waited for: a zombie is dead, too
        assert time.monotonic() - began < 10 and lease_of(url)["pid"] == os.getpid()
    assert lease_of(url) is None
    first.wait()
    first.stdout.close()


def test_a_driver_on_another_machine(quick, own_cache, tmp_path, capfd):
    url = f"file://{tmp_path}/far"
    elsewhere(url)
    with local_copy(url):  # it says nothing any more
        assert lease_of(url)["pid"] == os.getpid()
    said = capfd.readouterr().err
    assert "process 7 on alpha drove this run; if it gives no sign of life within 1 s it is dead" in said
    stop, n = threading.Event(), [0]

    def lives():
        while not stop.wait(0.1):
            n[0] += 1
            elsewhere(url, beats=n[0])

    thread = threading.Thread(target=lives)
    thread.start()
    wait_for(lambda: n[0] > 0)
    with pytest.raises(AudiotagError, match="is driven by process 7 on alpha"):
        with local_copy(url):
            pass
    stop.set()
    thread.join()
    assert lease_of(url)["token"] == "theirs"


def test_one_that_was_taken_over_stops_and_sends_nothing(quick, own_cache, tmp_path):
    url, end = f"file://{tmp_path}/far", time.monotonic() + 60
    with pytest.raises(AudiotagError, match="has been taken over by process 7 on alpha"):
        with local_copy(url, every=0.05) as folder:
            write_text(folder / "a", "mine")
            wait_for(lambda: Remote(url).read("a") == b"mine")
            elsewhere(url)
            write_text(folder / "a", "late")
            time.sleep(60)  # it is interrupted
            raise AssertionError("it went on")
    assert time.monotonic() < end - 30 and lease_of(url)["token"] == "theirs" and Remote(url).read("a") == b"mine"


def test_of_many_at_once_one_drives(quick, own_cache, tmp_path):
    "Two that have written in the same moment may both begin; at the next sign of life one of them hears it."
    url, stayed, refused = f"file://{tmp_path}/far", [], []
    gate, over = threading.Barrier(6), threading.Event()

    def drive():
        gate.wait()
        try:
            with remote_module.Lease(Remote(url)) as lease:
                over.wait(5)
                lease.check()
                stayed.append(lease.record["token"])
        except AudiotagError as e:
            refused.append(str(e))

    threads = [threading.Thread(target=drive) for _ in range(6)]
    for t in threads:
        t.start()
    time.sleep(2)
    now = lease_of(url)["token"]
    over.set()
    for t in threads:
        t.join()
    assert stayed == [now] and len(refused) == 5 and all("process" in e for e in refused)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"pid": 1}'])
def test_a_lease_that_is_none(quick, own_cache, tmp_path, text):
    url = f"file://{tmp_path}/far"
    Remote(url).write(".driver.json", text)
    with local_copy(url):
        assert lease_of(url)["pid"] == os.getpid()


def test_a_worker_is_no_driver(quick, own_cache, tmp_path):
    url = f"file://{tmp_path}/far"
    with local_copy(url), local_copy(url, cache=Cache(tmp_path / "worker"), drive=False) as folder:
        write_text(folder / "b", "made there")
    assert Remote(url).read("b") == b"made there"


def test_the_network_goes_while_it_drives(quick, own_cache, tmp_path, monkeypatch):
    url, real = f"file://{tmp_path}/far", Remote.read

    def read(self, name):
        with remote_module._translate_errors(url, "read"):
            raise ConnectionError("no route to host")

    with local_copy(url, every=100) as folder:
        monkeypatch.setattr(Remote, "read", read)
        time.sleep(0.5)
        monkeypatch.setattr(Remote, "read", real)
        before = lease_of(url)["beats"]
        wait_for(lambda: lease_of(url)["beats"] > before)
        write_text(folder / "a", "after it")
    assert Remote(url).read("a") == b"after it" and lease_of(url) is None


SETS = [s.replace("epochs=2", "epochs=1") for s in tiny.SETS]


def train(data, run, cache, **kwargs):
    words = tiny.train_words(data, run, SETS)
    return subprocess.Popen(
        [sys.executable, "-c", "import sys; from audiotag.cli import main; sys.exit(main(sys.argv[1:]))", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "AUDIOTAG_CACHE": str(cache)},
    )


@pytest.mark.long
def test_another_machine_goes_on_with_a_run(url, tmp_path):
    from audiotag.audio.synth import make_competition

    make_competition(tmp_path / "data", seed=1, n_curated=24, n_noisy=24, n_test=4)
    p = train(tmp_path / "data", tmp_path / "whole", tmp_path / "none")
    assert p.wait() == 0, p.stdout.read()
    p = train(tmp_path / "data", url, tmp_path / "one")
    wait_for(lambda: any(k.endswith("scored.json") for k in Remote(url).files()), p, 240)
    p.kill()
    p.wait()
    p.stdout.close()
    there = Remote(url).files()
    first = {
        k: v
        for k, v in there.items()
        if k.endswith(("oof.parquet", "weights.safetensors")) and k.rsplit("/", 1)[0] + "/scored.json" in there
    }
    p = train(tmp_path / "data", url, tmp_path / "two")
    assert p.wait() == 0, p.stdout.read()
    far, compared = content(url), 0
    for path in (tmp_path / "whole").rglob("*"):
        name = str(path.relative_to(tmp_path / "whole"))
        if name.endswith(("weights.safetensors", "oof.parquet", "ledger.parquet", "trained_on.json")):
            assert far[name] == path.read_bytes(), name
            compared += 1
    assert compared >= 26
    there = Remote(url).files()
    assert first and all(there[k] == v for k, v in first.items()), "what was finished was not trained again"
    assert not [k for k in far if "checkpoint" in k] and any(k.startswith("store/shards/") for k in far)


JOB = """
import sys
from audiotag.train.engine import train_job
train_job(sys.argv[1], 'noisy', 1)
"""


@pytest.mark.long
def test_a_worker_without_the_disk_of_the_driver(url, own_cache, tmp_path):
    from audiotag.data.competitions import load_competition
    from audiotag.train.recipes import get_recipe
    from audiotag.data.remote import origin, refresh
    from audiotag.train.run_folder import open_run
    from audiotag.audio.synth import make_competition

    make_competition(tmp_path / "data", seed=1, n_curated=16, n_noisy=16, n_test=4)
    recipe = get_recipe("freesound2019", scale="small", changes=SETS)
    with local_copy(url) as folder:
        run = open_run(folder, recipe, load_competition(tmp_path / "data"), store=f"{url}/store")
        run.threads()
        assert origin(folder) == url and not run.is_done("noisy", 1)
        refresh(folder)
        subprocess.run(
            [sys.executable, "-c", JOB, url],
            check=True,
            env={**os.environ, "AUDIOTAG_CACHE": str(tmp_path / "worker"), "OMP_NUM_THREADS": "1"},
        )
        refresh(folder)
        assert run.is_done("noisy", 1) and not run.is_done("noisy", 0)
        assert list((tmp_path / "worker/shards").iterdir()), "it had shards of its own"


# --- what does not ask for a URL does not pay


def test_inference_does_not_know_it():
    code = "import sys, audiotag.infer.predict, audiotag.kaggle.paths; assert 'audiotag.data.remote' not in sys.modules; import audiotag.data.remote; assert 's3fs' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not any(
        line.startswith(("import fsspec", "from fsspec"))
        for line in Path(remote_module.__file__).read_text().splitlines()
    )
