"A corpus larger than memory: memory that does not grow, orders that are permutations, scores that go on after a kill."

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from tests.data.sparse import sparse_store

from audiotag.data import store as store_module
from audiotag.core.targets import Targets
from audiotag.core.errors import AudiotagError
from audiotag.core.files import file_sha256
from audiotag.data.crops import AroundBox
from audiotag.data.loaders import CropLoader
from audiotag.audio.features import LogMel
from audiotag.data.mmap import make_lookup, read_lookup, make_records
from audiotag.data.store import FeatureStore, build_store
from audiotag.data.streaming import (
    EpochOrder,
    Permutation,
    StreamLoader,
    plan_scores,
    read_scores,
    write_clips,
)

FRONT_END = LogMel(n_mels=128)


# --- the order


@pytest.mark.parametrize(
    "n",
    [
        1,
        2,
        3,
        4,
        5,
        7,
        8,
        9,
        31,
        32,
        33,
        255,
        257,
        1000,
        4096,
        4097,
        65537,
        pytest.param(1_000_000, marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("shuffle_window", [None, 1, 300, 5000])
def test_every_clip_once(n, shuffle_window):
    if shuffle_window and n > 70_000 and shuffle_window < 300:
        pytest.skip("slow, and no other case")
    order = EpochOrder(n, 7, shuffle_window=shuffle_window)(np.arange(n))
    assert len(order) == n and np.bincount(order, minlength=n).max() == 1 and order.min() == 0 and order.max() == n - 1


def test_the_same_seed_the_same_order_and_any_place_by_itself():
    n = 100_003
    for shuffle_window in (None, 2000):
        a, b = EpochOrder(n, 3, shuffle_window=shuffle_window), EpochOrder(n, 3, shuffle_window=shuffle_window)
        whole = a(np.arange(n))
        places = np.random.default_rng(0).integers(0, n, 500)
        np.testing.assert_array_equal(b(places), whole[places])
        assert (EpochOrder(n, 4, shuffle_window=shuffle_window)(np.arange(n)) == whole).mean() < 0.001 * (
            1 if shuffle_window is None else 2
        ), "another epoch, another order"


def test_the_order_looks_like_chance():
    n, counts = 997, np.zeros((8, 8))
    for seed in range(300):
        p = Permutation(n, seed)(np.arange(n))
        counts += np.histogram2d(np.arange(n), p, bins=8, range=[[0, n], [0, n]])[0]
    want = counts.sum() / 64
    assert ((counts - want) ** 2 / want).sum() < 110, "chi-square with 49 degrees of freedom"
    first = [int(Permutation(n, seed)(np.array([0]))[0]) for seed in range(4000)]
    assert abs(np.mean(first) / n - 0.5) < 0.02 and len(set(first)) > 900
    p = Permutation(100_000, 5)(np.arange(100_000))
    assert abs(np.corrcoef(p[:-1], p[1:])[0, 1]) < 0.02 and abs(np.corrcoef(np.arange(100_000), p)[0, 1]) < 0.02


def test_near_stays_near():
    n, shuffle_window = 100_000, 4000
    p = EpochOrder(n, 1, shuffle_window=shuffle_window)(np.arange(n))
    blocks = [len(set(p[i : i + shuffle_window] // 256)) for i in range(0, n, shuffle_window)]
    assert max(blocks) <= 3 * (shuffle_window // 256), "a slice of the epoch touches three windows at most"


# --- memory

WORKER = """
import resource, sys, time
import numpy as np, torch
from audiotag.data.mmap import resident_memory
from audiotag.data.store import FeatureStore
from audiotag.data.streaming import StreamClips, StreamLoader, plan_scores, score_piece
folder, what = sys.argv[1:]
torch.set_num_threads(1)
x = torch.zeros(64, 1, 128, 128).mean()
start = resident_memory()
limit = int(open('/proc/self/statm').read().split()[0])*4096
resource.setrlimit(resource.RLIMIT_DATA, (2*10**9+limit, -1))
began = time.perf_counter()
store, clips = FeatureStore(folder), StreamClips(folder+'-clips')
opened, most, seen = time.perf_counter()-began, 0, 0
def look():
    global most
    most = max(most, resident_memory()-start)
if what=='train':
    dl = StreamLoader(clips, store, frames=128, batch_size=64, seed=1)
    for epoch in range(2):
        dl.set_epoch(epoch)
        for i, (x, y) in enumerate(dl):
            seen += x.numel()*2
            if i%20==0: look()
            if i==300: break
else:
    def score(pairs):
        global seen
        for i, (c, x) in enumerate(pairs):
            seen += x.size*2
            if i%200==0: look()
            yield c, np.full((1, 2), x.mean(), np.float32)
    for k in plan_scores(store, folder+'-scores', ['a', 'b'], by='mean', piece=4000)[:3]: score_piece(score, store, folder+'-scores', k)
look()
print(opened, most/1e6, seen/1e6)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    "26 GB in 200 000 clips that take no room."
    folder = tmp_path_factory.mktemp("large") / "store"
    store = sparse_store(folder, clips=200_000, frames=512, front_end=FRONT_END, per_shard=1024)
    held = (
        int(subprocess.run(["du", "-sk", folder], capture_output=True, text=True, check=True).stdout.split()[0]) * 1024
    )
    size = sum(p.stat().st_size for p in (folder / "shards").iterdir())
    if held > size / 10:
        pytest.skip("this file system keeps no holes")
    assert size > 20e9
    names = ([f"clip-{i:09d}" for i in range(at, at + 50_000)] for at in range(0, 200_000, 50_000))
    write_clips(
        f"{folder}-clips",
        (pd.DataFrame({"clip_id": o, "labels": [("a",)] * 50_000, "source": "curated"}) for o in names),
        store,
        ["a", "b"],
    )
    return folder


@pytest.mark.long
@pytest.mark.parametrize("what", ["train", pytest.param("predict", marks=pytest.mark.long)])
def test_memory_does_not_grow_with_20_gigabytes(large, what):
    out = subprocess.run(
        [sys.executable, "-c", WORKER, str(large), what],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert out.returncode == 0, out.stderr
    opened, grown, seen = map(float, out.stdout.split())
    print(f"{what}: opened in {opened:.2f} s, {seen:.0f} MB looked at, grown by {grown:.0f} MB")
    assert seen > 1200, "it must look at far more than it may keep"
    assert grown < 300
    assert opened < 10


@pytest.mark.long
def test_without_giving_back_it_would_grow(large):
    out = subprocess.run(
        [
            sys.executable,
            "-c",
            "import audiotag.data.store as s; s.PageBudget.spend = lambda *o: None\n" + WORKER,
            str(large),
            "train",
        ],
        capture_output=True,
        text=True,
    )
    assert float(out.stdout.split()[1]) > 600, out.stderr


def test_a_million_clips_open_in_seconds(tmp_path):
    sparse_store(tmp_path / "store", clips=1_000_000, frames=100, front_end=LogMel(n_mels=16), per_shard=4096)
    code = """if 1:
        import sys, time
        from audiotag.data.mmap import resident_memory
        from audiotag.data.store import FeatureStore
        start, t = resident_memory(), time.perf_counter()
        store = FeatureStore(sys.argv[1])
        opened, held = time.perf_counter()-t, resident_memory()-start
        assert len(store)==1_000_000 and 'clip-000654321' in store and 'clip' not in store and store.n_frames('clip-000999999')==100
        assert store['clip-000000000'].shape==(16, 100)
        print(opened, held/1e6)"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")], capture_output=True, text=True, check=True
    )
    opened, held = map(float, out.stdout.split())
    assert opened < 6 and held < 150, f"{opened:.1f} s, {held:.0f} MB"


# --- a lookup on the disk


@pytest.fixture
def small(tmp_path):
    return sparse_store(tmp_path / "store", clips=700, frames=20, front_end=LogMel(n_mels=16), per_shard=64)


def test_mapped_and_in_memory_are_the_same(small, monkeypatch):
    monkeypatch.setattr(store_module, "LARGE", 10)
    mapped = FeatureStore(small.folder)
    (file,) = small.folder.glob(".lookup-*")
    np.testing.assert_array_equal(mapped.clips.records, small.clips.records)
    np.testing.assert_array_equal(mapped.clips.by_shard, small.clips.by_shard)
    assert list(mapped) == list(small) and mapped.clips.about["shards"] == small.clips.about["shards"]
    for k in ("names", "records", "by_shard"):  # damage is not believed
        data = bytearray((file / k).read_bytes())
        data[len(data) // 2] ^= 1
        (file / k).write_bytes(data)
        assert list(FeatureStore(small.folder)) == list(small)
        read_lookup(file)
    (file / "about.json").write_text("{}")
    assert list(FeatureStore(small.folder)) == list(small)


def test_where_one_may_not_write_it_stays_in_memory(small, monkeypatch):
    monkeypatch.setattr(store_module, "LARGE", 10)

    def refuse(*o, **k):
        raise AudiotagError("cannot write")

    monkeypatch.setattr(store_module, "write_lookup", refuse)
    assert list(FeatureStore(small.folder)) == list(small) and not list(small.folder.glob(".lookup-*"))


def test_names_are_found_whatever_they_are():
    names = sorted(
        {"", "a", "é", "z" * 300, "🎵", "a b", "a'b", *(str(i) for i in range(600))}, key=lambda o: o.encode()
    )
    zero = np.zeros(len(names), int)
    found = make_lookup(
        [
            make_records(
                names, dict(shard=zero, offset=zero, frames=zero, scale=zero, zero=zero, checksum=["0"] * len(names))
            )
        ],
        {"shards": ["x"]},
    )
    assert [found.find(o) for o in names] == list(range(len(names)))
    assert all(found.find(o) == -1 for o in ("b", "aa", "\ud800", "zz", "~", "601", 7, None))
    assert make_lookup([], {"shards": []}).find("a") == -1


# --- the loader


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    from audiotag.data.competitions import load_competition
    from audiotag.audio.synth import make_competition

    tmp = tmp_path_factory.mktemp("real")
    make_competition(tmp / "data", seed=2, n_curated=40, n_noisy=24, n_test=4)
    comp = load_competition(tmp / "data")
    clips = comp.clips[comp.clips.labels.map(len) > 0]
    return comp, clips, build_store(clips, LogMel(n_mels=32, hop_length=694), tmp / "store")


def test_the_middle_crops_are_those_of_the_crop_loader(real, tmp_path):
    comp, clips, store = real
    ours = StreamLoader(
        write_clips(tmp_path / "c", [clips], store, comp.classes), store, frames=64, batch_size=16, train=False
    )
    theirs = CropLoader(clips, store, comp.classes, frames=64, batch_size=16, train=False)
    sort = lambda dl: sorted((x.numpy().tobytes(), y.labels.numpy().tobytes()) for b in dl for x, y in zip(*b))  # noqa: E731
    assert sort(ours) == sort(theirs)


def test_the_same_batches_with_workers_and_after_a_restart(real, tmp_path):
    comp, clips, store = real
    c = write_clips(tmp_path / "c", [clips.assign(probability=0.8)], store, comp.classes)

    def epoch(n, start=0, **k):
        dl = StreamLoader(c, store, frames=64, batch_size=8, seed=5, short="random", **k)
        dl.piece = 16
        for e in range(start, n + 1):
            dl.set_epoch(e)
        return [x for x, _ in dl]

    a, b = epoch(3), epoch(3, start=3)
    assert len(a) == len(b) > 3 and all(torch.equal(p, q) for p, q in zip(a, b))
    assert all(torch.equal(p, q) for p, q in zip(a, epoch(3, prefetch=2), strict=True)), "and made ready by a thread"
    # a loader's workers are forks, and xdist's process is none to fork from
    if "PYTEST_XDIST_WORKER" not in os.environ:
        assert all(torch.equal(p, q) for p, q in zip(a, epoch(3, num_workers=2)))
    assert not torch.equal(a[0], epoch(2)[0])


def test_places_in_recordings(real, tmp_path):
    comp, clips, store = real
    long = [c for c in store if store.n_frames(c) > 80][:6]
    rows = pd.DataFrame(
        {
            "clip_id": [f"{c}#{i}" for c in long for i in (0, 1)],
            "recording": [c for c in long for _ in (0, 1)],
            "labels": [comp.classes[:1]] * 12,
            "source": "curated",
            "start_s": [0.2, 0.8] * 6,
            "end_s": [0.4, 1.0] * 6,
        }
    )
    c = write_clips(tmp_path / "c", [rows], store, comp.classes)
    np.testing.assert_array_equal(
        np.sort(c.records["first"]), np.sort(np.floor(rows.start_s * store.frame_rate).astype(int))
    )
    dl = StreamLoader(c, store, frames=32, batch_size=4, crops=AroundBox(shift=(0, 4)))
    for epoch in range(20):
        dl.set_epoch(epoch)
        found, _, starts, _ = dl._draw_piece(0)
        assert (starts <= found["first"]).all() and (starts + 32 >= found["last"]).all(), "the box is in the crop"


def test_soft_targets_come_with_their_clip(real, tmp_path):
    comp, clips, store = real
    y = (
        np.random.default_rng(0).random((len(clips), len(comp.classes))).astype(np.float32)
        * (np.arange(len(clips)) % 3 > 0)[:, None]
    )
    c = write_clips(tmp_path / "c", [(clips.iloc[:30], y[:30]), (clips.iloc[30:], y[30:])], store, comp.classes)
    crops = {}
    for x, t in StreamLoader(c, store, frames=64, batch_size=8, train=False):
        crops.update({o.numpy().tobytes(): v.numpy() for o, v in zip(x, t.labels)})
    middle = CropLoader(clips, store, comp.classes, frames=64, train=False, y=y)
    for x, t in middle:
        for o, v in zip(x, t.labels):
            np.testing.assert_array_equal(crops[o.numpy().tobytes()], v.numpy())


def test_weights_come_with_their_clip(real, tmp_path):
    comp, clips, store = real
    g = np.random.default_rng(1)
    y = Targets(*(g.random((len(clips), len(comp.classes))).astype(np.float32) for _ in range(2)))
    c = write_clips(tmp_path / "c", [(clips.iloc[:30], y[:30]), (clips.iloc[30:], y[30:])], store, comp.classes)
    (streamed,) = StreamLoader(c, store, frames=64, batch_size=len(clips), train=False)
    (held,) = CropLoader(clips, store, comp.classes, frames=64, batch_size=len(clips), train=False, y=y)
    order = [np.lexsort(b[0].flatten(1).numpy().T) for b in (streamed, held)]
    for name in ("labels", "weights"):
        ours, theirs = (getattr(b[1], name)[torch.from_numpy(o)] for b, o in zip((streamed, held), order))
        assert torch.equal(ours, theirs)


def test_a_wrong_clip_is_named(real, tmp_path):
    comp, clips, store = real
    with pytest.raises(AudiotagError, match="ghost"):
        write_clips(tmp_path / "c", [clips, clips.head(1).assign(clip_id="ghost")], store, comp.classes)
    assert not (tmp_path / "c").exists(), "nothing half written"
    with pytest.raises(AudiotagError, match="no clips"):
        write_clips(tmp_path / "c", [], store, comp.classes)


# --- scores

SCORE = """
import sys, time, numpy as np
from audiotag.data.store import FeatureStore
from audiotag.data.streaming import score_store
def score(pairs):
    for c, x in pairs: time.sleep(.002); yield c, np.float32([[len(c), x.shape[1]]])
score_store(score, FeatureStore(sys.argv[1]), sys.argv[2], ['a', 'b'], by='x', piece=50)
"""


@pytest.mark.long
def test_killed_while_scoring(small, tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    subprocess.run([sys.executable, "-c", SCORE, str(small.folder), str(whole)], check=True, stderr=subprocess.DEVNULL)
    hash_of = lambda d: {p.name: file_sha256(p) for p in d.iterdir() if not p.name.startswith(".")}  # noqa: E731
    for want in (2, 6):
        p = subprocess.Popen([sys.executable, "-c", SCORE, str(small.folder), str(again)], stderr=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while len(list(again.glob("scores-*"))) < want and p.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.002)
        p.send_signal(signal.SIGKILL)
        p.wait()
        done = {f.name: f.stat().st_mtime_ns for f in again.glob("scores-*")}
        assert want <= len(done) < 14
    subprocess.run([sys.executable, "-c", SCORE, str(small.folder), str(again)], check=True, stderr=subprocess.DEVNULL)
    assert hash_of(again) == hash_of(whole)
    assert all((again / n).stat().st_mtime_ns == t for n, t in done.items()), "what was there was not made again"
    table = pd.concat(read_scores(again))
    assert sorted(table.clip_id) == list(small) and (table.b == 20).all()


def test_scores_of_two_networks_are_not_mixed(small, tmp_path):
    plan_scores(small, tmp_path, ["a"], by="one")
    with pytest.raises(AudiotagError, match="by differs"):
        plan_scores(small, tmp_path, ["a"], by="two")
    with pytest.raises(AudiotagError, match="classes differs"):
        plan_scores(small, tmp_path, ["b"], by="one")
    with pytest.raises(AudiotagError, match="not found"):
        next(read_scores(tmp_path))


# --- in a run


def test_a_stage_on_many_clips_is_streamed(tmp_path, monkeypatch):
    from audiotag.data import streaming
    from audiotag.train import run_folder
    from audiotag.data.competitions import load_competition
    from audiotag.train.recipes import get_recipe
    from audiotag.audio.synth import make_competition

    from tests import tiny

    make_competition(tmp_path / "data", seed=1, n_curated=24, n_noisy=24, n_test=4)
    comp, loaders, weights = load_competition(tmp_path / "data"), [], {}
    real = streaming.stream_loaders
    monkeypatch.setattr(streaming, "stream_loaders", lambda *o, **k: loaders.append(1) or real(*o, **k))
    for name, more in (("plain", []), ("one", ["stream_from=1"]), ("two", ["stream_from=1"])):
        recipe = get_recipe("freesound2019", scale="small", changes=[*tiny.SETS, *more])
        run = run_folder.open_run(tmp_path / name, recipe, comp, store=tmp_path / "store")
        run_folder.finish_fold(run, "noisy", 0)
        weights[name] = (run.fold_path("noisy", 0) / "weights.safetensors").read_bytes()
    assert len(loaders) == 2 and weights["one"] == weights["two"] != weights["plain"]


def test_a_fold_is_scored_in_pieces_and_goes_on_after_a_kill(tmp_path, monkeypatch):
    from audiotag.train import run_folder
    from audiotag.data.competitions import load_competition
    from audiotag.core.files import read_parquet
    from audiotag.train.recipes import get_recipe
    from audiotag.audio.synth import make_competition

    from tests import tiny

    make_competition(tmp_path / "data", seed=1, n_curated=24, n_noisy=24, n_test=4)
    comp, recipe = load_competition(tmp_path / "data"), get_recipe("freesound2019", scale="small", changes=tiny.SETS)
    runs = [
        run_folder.open_run(tmp_path / name, recipe, comp, store=tmp_path / "store")
        for name in ("whole", "killed", "large")
    ]
    folders = [run.fold_path("noisy", 0) for run in runs]
    run_folder.finish_fold(runs[2], "noisy", 0)
    monkeypatch.setattr(run_folder, "PIECE", 7)
    run_folder.finish_fold(runs[0], "noisy", 0)
    real, asked = run_folder.Run.predict, []

    def predict(self, stage, fold, ids, **kwargs):
        asked.append(list(ids))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(self, stage, fold, ids, **kwargs)

    monkeypatch.setattr(run_folder.Run, "predict", predict)
    with pytest.raises(KeyboardInterrupt):
        run_folder.finish_fold(runs[1], "noisy", 0)
    assert not runs[1].is_done("noisy", 0) and not (folders[1] / "oof.parquet").exists()
    run_folder.finish_fold(runs[1], "noisy", 0)
    assert (
        asked[2] == asked[3]
        and len(asked) == 1 + -(-int((runs[1].clips.fold == 0).sum()) // 7)
        and max(map(len, asked)) == 7
    )
    assert (folders[0] / "oof.parquet").read_bytes() == (folders[1] / "oof.parquet").read_bytes() and not list(
        folders[1].glob(".scores-*")
    )
    pieces, one = (read_parquet(f / "oof.parquet").set_index("clip_id") for f in folders[1:])
    assert sorted(pieces.index) == sorted(one.index) and np.allclose(pieces.loc[one.index], one, atol=1e-6)
    places = [runs[1].store.clips.record(runs[1].store.row(c)) for c in pieces.index]
    assert places == sorted(places, key=lambda r: (r["shard"], r["offset"])), "each shard is read once"
