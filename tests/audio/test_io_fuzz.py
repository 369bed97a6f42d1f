"""Damaged files of every container: each gives finite float32 mono or an `AudiotagError`, soon, quietly and in little memory.

The cases run in a child process (this file, started as a script), so that a crash, a hang or a memory hog inside
libsndfile is a failed example with its recipe and not the end of pytest."""

import io
import json
import os
import selectors
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

SECONDS, MEGABYTES = 5, 500  # of processor time and memory for one file
WAIT = 120  # seconds until a reader counts as hanging


def judge(path, sample_rate=None, start_s=None, end_s=None, trim_db=None):
    "(kind of answer, what is wrong with it): nothing may be."
    from audiotag.audio.io import ERROR_KINDS, ReadOptions, read_audio
    from audiotag.core.errors import AudiotagError

    try:
        x = read_audio(
            path, sample_rate=sample_rate, start_s=start_s, end_s=end_s, reading=ReadOptions(trim_db=trim_db)
        )
    except AudiotagError as e:
        return e.kind, "" if e.kind in ERROR_KINDS and str(e.file) == path and e.what else f"a poor error: {e!r}"
    except BaseException as e:  # noqa: BLE001 - whatever else it raises is the fault that is looked for
        return "", f"{type(e).__name__}: {e}"
    good = x.dtype == np.float32 and x.ndim == 1 and len(x) and np.isfinite(x).all()
    return "readable", "" if good else f"{x.dtype} {x.shape}, or not finite"


def serve():
    "Read one case a line, answer with one line. `sweep` lists (offset, byte) to be tried one after the other."
    import resource

    answers = os.fdopen(os.dup(1), "w")  # stdout itself must stay empty
    for line in sys.stdin:
        case, kinds, wrong, slowest = json.loads(line), [], "", 0.0
        sweep, data = case.pop("sweep", None), Path(case["path"]).read_bytes() if Path(case["path"]).is_file() else b""
        for at, value in sweep or [(None, None)]:
            if sweep:
                Path(case["path"]).write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            start = time.process_time()  # the machine may be busy
            kind, fault = judge(**case)
            slowest = max(slowest, time.process_time() - start)
            kinds.append(kind)
            if fault:
                wrong = f"{fault} (byte {at} = {value})" if sweep else fault
        mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(dict(kinds=kinds, wrong=wrong, seconds=slowest, mb=mb)), file=answers, flush=True)


if __name__ == "__main__":
    serve()
    sys.exit()

import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


class Child:
    "A process that reads what it is told to, and is started again after it dies."

    def __init__(self, folder):
        self.folder, self.process = folder, None
        self.noise = open(folder / "noise", "w+b")

    def start(self):
        env = dict(os.environ, PYTHONPATH=str(Path(__file__).resolve().parent.parent.parent), PYTHONWARNINGS="always")
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.noise,
            text=True,
            env=env,
        )
        self.mb = self.ask(dict(path=str(self.folder)))["mb"]

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.communicate()
            self.process = None

    def ask(self, case, wait=WAIT):
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        with selectors.DefaultSelector() as s:
            s.register(self.process.stdout, selectors.EVENT_READ)
            line = self.process.stdout.readline() if s.select(wait) else None
        if line:
            return json.loads(line)
        code = self.process.poll() if line == "" or self.process.wait(1) else None
        self.stop()
        raise AssertionError(f"the reader died ({code})" if line == "" else f"no answer within {wait} s")

    def read(self, data, wait=WAIT, **case):
        "The kinds of answer; raises `AssertionError` on everything that must not happen. The file stays as `case`."
        if not self.process:
            self.start()
        path = self.folder / "case"
        path.write_bytes(data)
        answer = self.ask(dict(case, path=str(path)), wait)
        assert not answer["wrong"], answer["wrong"]
        assert answer["seconds"] < SECONDS and answer["mb"] - self.mb < MEGABYTES, answer
        return answer["kinds"]

    def said(self):
        self.noise.seek(0)
        return self.noise.read().decode(errors="replace")


@pytest.fixture(scope="module")
def child():
    memory = Path("/dev/shm")  # thousands of small files
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        c = Child(Path(folder))
        yield c
        c.stop()
        c.noise.close()


def encode(container, subtype, channels=1, **kwargs):
    rng, out = np.random.default_rng(0), io.BytesIO()
    x = (0.3 * np.sin(np.arange(6000) * 0.17) + 0.05 * rng.standard_normal(6000)).astype(np.float32)
    with sf.SoundFile(out, "w", 16000, channels, format=container, subtype=subtype, **kwargs) as f:
        for i in range(0, len(x), 1000):
            f.write(np.stack([x[i : i + 1000]] * channels, 1))
    return out.getvalue()


def without_length(mp3):
    return mp3[mp3.find(mp3[:2], 100) :]


SEEDS = {
    f"{c}-{s}-{n}": encode(c, s, n)
    for n in (1, 2)
    for c, s in (
        ("WAV", "PCM_U8"),
        ("WAV", "PCM_16"),
        ("WAV", "PCM_24"),
        ("WAV", "PCM_32"),
        ("WAV", "FLOAT"),
        ("WAV", "DOUBLE"),
        ("WAV", "ULAW"),
        ("WAV", "IMA_ADPCM"),
        ("WAV", "MS_ADPCM"),
        ("WAVEX", "PCM_16"),
        ("RF64", "PCM_16"),
        ("W64", "PCM_16"),
        ("FLAC", "PCM_S8"),
        ("FLAC", "PCM_16"),
        ("FLAC", "PCM_24"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
        ("AIFF", "PCM_16"),
        ("AIFF", "FLOAT"),
        ("AIFF", "IMA_ADPCM"),
        ("AU", "PCM_16"),
        ("CAF", "PCM_16"),
        ("CAF", "ALAC_16"),
        ("NIST", "PCM_16"),
    )
}
SEEDS |= {
    "WAV-GSM610-1": encode("WAV", "GSM610"),
    "WAV-G721-1": encode("WAV", "G721_32"),
    "MP3-no-length": without_length(encode("MP3", "MPEG_LAYER_III", bitrate_mode="VARIABLE")),
    "MP3-ID3": b"ID3\4\0\0\0\0\2\0" + bytes(256) + encode("MP3", "MPEG_LAYER_III"),
    "SDS": encode("SDS", "PCM_16"),
    "MAT5": encode("MAT5", "PCM_16"),
}
NUMBERS = [0, 1, 2, 255, 10000, 65535, 10**9, 2**31 - 1, 2**31, 2**32 - 1]
WIDE = [0, 2**40, 2**62, 2**63 - 1, 2**64 - 1]

places = st.one_of(st.integers(0, 63), st.integers(0, 400), st.integers(0, 50000))  # the header is hit more often
edits = st.one_of(
    st.tuples(st.just("cut"), places),
    st.tuples(st.just("flip"), places, st.integers(0, 7)),
    st.tuples(st.just("byte"), places, st.integers(0, 255)),
    st.tuples(st.just("size"), places, st.sampled_from(NUMBERS), st.sampled_from("<>")),
    st.tuples(st.just("wide"), places, st.sampled_from(WIDE), st.sampled_from("<>")),
    st.tuples(st.just("splice"), places, st.sampled_from(sorted(SEEDS)), places),
    st.tuples(st.just("drop"), places, st.integers(1, 200)),
    st.tuples(st.just("insert"), places, st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("twice"), places),
)


def mutate(data, edit):
    name, at, *rest = edit
    at %= max(1, len(data))
    if name == "cut":
        return data[:at]
    if name == "twice":
        return data + data[at:]
    if name == "insert":
        return data[:at] + rest[0] + data[at:]
    if name == "drop":
        return data[:at] + data[at + rest[0] :]
    if name == "splice":
        return data[:at] + SEEDS[rest[0]][rest[1] % len(SEEDS[rest[0]]) :]
    if name == "flip":
        new = bytes([data[at] ^ 1 << rest[0]]) if data else b""
    elif name == "byte":
        new = bytes(rest)
    else:
        new = struct.pack(rest[1] + ("I" if name == "size" else "Q"), rest[0])
    return data[:at] + new + data[at + len(new) :]


seen = Counter()


CASES = given(
    seed=st.sampled_from(sorted(SEEDS)),
    changes=st.lists(edits, min_size=1, max_size=5),
    sample_rate=st.sampled_from([None, None, 8000, 44100]),
    span=st.sampled_from([(None, None), (None, None), (0.1, 0.2), (0.3, None), (0, 30)]),
    trim_db=st.sampled_from([None, 60]),
)


def check_mutated(child, seed, changes, sample_rate, span, trim_db):
    data = SEEDS[seed]
    for edit in changes:
        data = mutate(data, edit)
    seen.update(child.read(data, sample_rate=sample_rate, start_s=span[0], end_s=span[1], trim_db=trim_db))
    seen[seed] += 1


@pytest.mark.parametrize("n", [250, pytest.param(2500, marks=pytest.mark.long)])
def test_mutated_files(child, n):
    seen.clear()
    settings(max_examples=n, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))(
        CASES(check_mutated)
    )(child)
    assert child.said() == ""
    assert sum(seen[s] for s in SEEDS) >= 0.8 * n and all(seen[s] >= n // 500 for s in SEEDS), seen
    assert seen["readable"] > 0.12 * n and all(
        seen[k] > n // 500 for k in ("truncated", "corrupt_header", "corrupt_data", "not_audio", "out_of_range")
    ), seen


@pytest.mark.parametrize("step", [8, pytest.param(1, marks=pytest.mark.long)])
def test_every_byte_of_every_header(child, step):
    "Each of the first bytes, or each eighth, set to 0 and to 255: the fields that say how much there is."
    kinds = Counter()
    sweep = [(at, value) for at in range(4, 64, step) for value in (0, 255)]
    for seed, data in SEEDS.items():
        if seed.endswith("-2"):
            continue
        try:
            kinds.update(child.read(data, sweep=sweep, sample_rate=44100))
        except AssertionError as e:
            raise AssertionError(f"{seed}: {e}") from None
    assert child.said() == ""
    assert (
        kinds["readable"] > 500 // step and kinds["corrupt_header"] > 100 // step and kinds["too_long"] > 5 // step
    ), kinds


def test_the_child_is_watched(child, monkeypatch):
    "This test can fail: a reader that dies, or does not answer, is noticed, and the next case runs in a new one."
    child.read(SEEDS["WAV-PCM_16-1"])
    child.process.kill()
    with pytest.raises((AssertionError, BrokenPipeError)):
        child.read(SEEDS["WAV-PCM_16-1"])
    child.stop()
    child.start()
    os.kill(child.process.pid, 19)  # SIGSTOP
    with pytest.raises((AssertionError, subprocess.TimeoutExpired)):
        child.ask(dict(path="x"), wait=0.3)
    child.stop()
    assert child.read(SEEDS["WAV-PCM_16-1"]) == ["readable"]
