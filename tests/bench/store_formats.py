"""Would Arrow IPC, zarr 3 or Lance serve as the file format of the feature store? `python -m tests.bench.store_formats [--save]`.

The same features (float16, 128 bands, clips of 800 frames) are written in each format, and crops of two seconds are read at random,
which is what training does: with the pages of the files dropped first, and again with all of them in memory. Then a byte is flipped in the
middle of the largest file. A format whose package is missing is left out (`pip install zarr pylance`).
"""

import argparse
import datetime
import importlib.metadata
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from audiotag.audio.features import LogMel
from audiotag.data.store import FeatureStore
from tests.data.sparse import sparse_store

BANDS, FRAMES, CROP, PER_SHARD, SEED = 128, 800, 172, 128, 0  # 172 frames of 11.6 ms are 2 s


def make_clips(n):
    "`n` arrays (800, 128) of float16, as a store holds them."
    rng = np.random.default_rng(SEED)
    base = rng.standard_normal((FRAMES, BANDS), np.float32).cumsum(0) / 8  # neighboring frames resemble each other
    return [(base + 0.3 * rng.standard_normal((FRAMES, BANDS), np.float32)).astype(np.float16) for _ in range(n)]


class Npy:
    "What audiotag does: shards as plain .npy, memory-mapped, read through `FeatureStore`."

    name, package = "audiotag (.npy shards)", "numpy"

    def write(self, folder, clips):
        sparse_store(folder, clips=len(clips), frames=FRAMES, front_end=LogMel(n_mels=BANDS), per_shard=PER_SHARD)
        for i, file in enumerate(sorted((folder / "shards").glob("*.npy"))):
            shard = np.lib.format.open_memmap(file, mode="r+")
            shard[:] = np.concatenate(clips[i * PER_SHARD : (i + 1) * PER_SHARD])

    def open(self, folder):
        store = FeatureStore(folder)
        names = list(store)
        return lambda i, start: store.codes(names[i])[start : start + CROP]


class Arrow:
    "Arrow IPC files, memory-mapped: a record batch a clip, a fixed-size binary a frame."

    name, package = "Arrow IPC", "pyarrow"

    def write(self, folder, clips):
        import pyarrow as pa

        folder.mkdir()
        kind = pa.binary(BANDS * 2)
        schema = pa.schema([("frames", kind)])
        for s in range(0, len(clips), PER_SHARD):
            with (
                pa.OSFile(str(folder / f"{s // PER_SHARD:05d}.arrow"), "wb") as f,
                pa.ipc.new_file(f, schema) as writer,
            ):
                for clip in clips[s : s + PER_SHARD]:
                    column = pa.Array.from_buffers(kind, len(clip), [None, pa.py_buffer(clip)])
                    writer.write_batch(pa.record_batch([column], schema))

    def open(self, folder):
        import pyarrow as pa

        files = [pa.ipc.open_file(pa.memory_map(str(p))) for p in sorted(folder.glob("*.arrow"))]

        def crop(i, start):
            column = files[i // PER_SHARD].get_batch(i % PER_SHARD).column(0)
            return np.frombuffer(column.buffers()[1], np.float16).reshape(-1, BANDS)[start : start + CROP]

        return crop


class Zarr:
    "zarr 3: one array of all frames in chunks of 64, sharded, each chunk with its crc32c."

    name, package, compressors = "zarr 3, plain", "zarr", None

    def write(self, folder, clips):
        import zarr

        n = sum(map(len, clips))
        chunk, shard = (64, BANDS), (64 * 1024, BANDS)
        array = zarr.create_array(
            store=str(folder),
            shape=(n, BANDS),
            chunks=chunk,
            shards=shard,
            dtype="float16",
            compressors=self.compressors,
        )
        frames = np.concatenate(clips)
        for s in range(0, n, shard[0]):
            array[s : s + shard[0]] = frames[s : s + shard[0]]
        np.save(folder / "offsets.npy", np.cumsum([0, *map(len, clips)]))

    def open(self, folder):
        import zarr

        array, offsets = zarr.open_array(str(folder), mode="r"), np.load(folder / "offsets.npy")
        return lambda i, start: array[offsets[i] + start : min(offsets[i] + start + CROP, offsets[i + 1])]


class ZarrZstd(Zarr):
    "The same with zarr's own compression."

    name, compressors = "zarr 3, zstd", "auto"


class Lance:
    "Lance: a row a block of 64 frames of one clip, taken by number."

    name, package = "Lance", "lance"

    def write(self, folder, clips):
        import lance
        import pyarrow as pa

        kind = pa.binary(64 * BANDS * 2)
        blocks, firsts = [], [0]
        for clip in clips:
            padded = np.zeros((-(-len(clip) // 64) * 64, BANDS), np.float16)
            padded[: len(clip)] = clip
            blocks.append(padded)
            firsts.append(firsts[-1] + len(padded) // 64)
        data = np.concatenate(blocks)
        column = pa.Array.from_buffers(kind, firsts[-1], [None, pa.py_buffer(data)])
        lance.write_dataset(pa.table({"block": column}), str(folder))
        np.save(folder / "firsts.npy", firsts)
        np.save(folder / "lengths.npy", [len(c) for c in clips])

    def open(self, folder):
        import lance

        data, firsts, lengths = (
            lance.dataset(str(folder)),
            np.load(folder / "firsts.npy"),
            np.load(folder / "lengths.npy"),
        )

        def crop(i, start):
            stop = min(start + CROP, lengths[i])
            rows = list(range(firsts[i] + start // 64, firsts[i] + -(-stop // 64)))
            column = data.take(rows).column(0)
            frames = np.concatenate([np.frombuffer(v.as_py(), np.float16) for v in column]).reshape(-1, BANDS)
            return frames[start % 64 : start % 64 + stop - start]

        return crop


def drop_pages(folder):
    "Forget the pages of all files below `folder`, so that they are read from the disk again."
    for p in Path(folder).rglob("*"):
        if p.is_file():
            fd = os.open(p, os.O_RDONLY)
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def disk_bytes():
    "Bytes that this process has caused to be read from the disk."
    text = Path("/proc/self/io").read_text()
    return int(text.split("read_bytes:")[1].split()[0])


def size_of(folder):
    return sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())


def flip_a_byte(folder):
    "Change one byte in the middle of the largest file."
    file = max((p for p in Path(folder).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    with open(file, "r+b") as f:
        f.seek(file.stat().st_size // 2)
        byte = f.read(1)
        f.seek(-1, 1)
        f.write(bytes([byte[0] ^ 0xFF]))


def measure(kind, folder, clips, reads):
    "One row of the table."
    start = time.perf_counter()
    kind.write(folder, clips)
    written = time.perf_counter() - start
    rng = np.random.default_rng(SEED)
    draws = [(int(i), int(rng.integers(0, max(1, len(clips[i]) - CROP)))) for i in rng.integers(0, len(clips), reads)]
    crop = kind.open(folder)
    for i, s in draws[:50]:
        assert np.array_equal(crop(i, s), clips[i][s : s + CROP]), (kind.name, i, s)
    del crop
    drop_pages(folder)
    crop, before, start = kind.open(folder), disk_bytes(), time.perf_counter()
    for i, s in draws[: reads // 4]:
        np.asarray(crop(i, s), np.float32)
    cold, read = reads // 4 / (time.perf_counter() - start), disk_bytes() - before
    for i in range(len(clips)):  # every page into memory
        np.asarray(crop(i, 0)).max()
    warm = 0
    for _ in range(5):  # the best of five: other work on the machine only slows down
        start = time.perf_counter()
        for i, s in draws[: reads // 5]:
            np.asarray(crop(i, s), np.float32)
        warm = max(warm, reads // 5 / (time.perf_counter() - start))
    del crop
    flip_a_byte(folder)
    found = "not seen"
    try:
        crop = kind.open(folder)
        for i, c in enumerate(clips):
            for s in range(0, len(c), CROP):
                if not np.array_equal(crop(i, s), c[s : s + CROP]):
                    found = "wrong values"
    except Exception as e:  # noqa: BLE001 - any refusal counts, whatever its type
        found = f"refused ({type(e).__name__})"
    return dict(
        format=kind.name,
        package=f"{kind.package} {version_of(kind.package)}",
        write_s=round(written, 1),
        MB=round(size_of(folder) / 1e6),
        cold=round(cold),
        read_kB=round(read / (reads // 4) / 1e3),
        warm=round(warm),
        flipped=found,
    )


def version_of(package):
    return importlib.metadata.version({"lance": "pylance"}.get(package, package))


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--clips", type=int, default=1500)
    p.add_argument("--reads", type=int, default=6000)
    p.add_argument("--save", action="store_true", help="write tests/bench/results/store_formats.md")
    o = p.parse_args()
    clips, rows = make_clips(o.clips), []
    for kind in (Npy(), Arrow(), Zarr(), ZarrZstd(), Lance()):
        try:
            __import__(kind.package)
        except ImportError:
            print(f"{kind.name}: {kind.package} is not installed")
            continue
        home = Path(tempfile.mkdtemp(prefix="formats-"))
        rows.append(measure(kind, home / "store", clips, o.reads))
        shutil.rmtree(home)
        print(rows[-1], flush=True)
    heads = dict(
        format="format",
        package="package",
        write_s="written in s",
        MB="MB",
        cold="crops/s, pages dropped",
        read_kB="kB read a crop",
        warm="crops/s, in memory",
        flipped="a flipped byte",
    )
    table = ["| " + " | ".join(heads.values()) + " |", "|---" * len(heads) + "|"]
    table += ["| " + " | ".join(str(r[k]) for k in heads) + " |" for r in rows]
    print(*table, sep="\n")
    if o.save:
        file = Path(__file__).parent / "results" / "store_formats.md"
        text = (
            file.read_text()
            if file.exists()
            else "# The feature store's file format, and three others\n\n<!-- table -->\n"
        )
        head, _, tail = text.partition("<!-- table -->")
        tail = tail.partition("<!-- end -->")[2]
        about = f"{o.clips} clips, {o.reads} reads, {os.cpu_count()} cores, {datetime.date.today()}."
        file.write_text("\n".join([head + "<!-- table -->", "", *table, "", about, "", "<!-- end -->" + tail]))


if __name__ == "__main__":
    main()
