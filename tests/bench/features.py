"""How fast is the way from a file to features? `python -m tests.bench.features [--save]`, under two minutes.

Audio seconds per wall second per core for decoding, resampling and log-mel, ours beside librosa's and torchaudio's, and the whole path
from file to image beside the entrants' loop. Every round runs each way over the same clips, one way after the other; a number is the median
over rounds, a ratio the median of the rounds' ratios. Each way is first checked to give the same numbers.
"""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import datetime
import multiprocessing
import platform
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import librosa
import numpy as np
import soundfile as sf
import torch
import torchaudio

from audiotag.audio.io import read_audio, resample
from audiotag.core.files import write_text
from audiotag.core.seeding import rng
from audiotag.audio.features import PRESETS, LogMel
from audiotag.audio.synth import SOUNDS, sound
from tests.conftest import sample_folder

RATE, N_FFT, HOP = 44100, 2560, 694
WANTED = {
    "log-mel, 2 s clips": 5,
    "log-mel, 15 s clips": 3,
    "WAV to image, one thread": 3.5,
    "WAV to image, two processes": 5.5,
    # two cores: the store works with processes, as threads share one GIL
    "OGG to image, one thread": 1.8,
    "OGG to image, two processes": 3.2,
}
MEL = dict(sr=RATE, n_fft=N_FFT, hop_length=HOP, n_mels=128, fmin=20, fmax=RATE // 2)


def clips(folder, n):
    "`n` waves and their files in three formats: of the freesound sample, or made here where that is missing."
    source, reason = sample_folder("freesound")
    if source is None:
        print(f"no sample set ({reason}); clips are synthesized instead")
        waves = [sound(SOUNDS[i % len(SOUNDS)], rng(0, i), seconds=1 + i % 5, sample_rate=RATE) for i in range(n)]
    else:
        waves = [sf.read(p, dtype="float32")[0] for p in sorted((source / "train_curated").iterdir())[:n]]
    files = {}
    for kind, subtype in (("wav", "PCM_16"), ("flac", "PCM_16"), ("ogg", "VORBIS")):
        files[kind] = [folder / f"{i:03d}.{kind}" for i in range(len(waves))]
        for path, wave in zip(files[kind], waves):
            sf.write(path, np.clip(wave, -1, 1 - 2**-15), RATE, subtype=subtype)
    return [read_audio(p) for p in files["wav"]], files


def rounds(ways, n):
    "{name: seconds in each of `n` rounds}, after one that does not count. Each way begins a round in turn: who comes second finds the sounds in the cache."
    seconds, names = {name: [] for name in ways}, list(ways)
    for r in range(n + 1):
        first = r % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            ways[name]()
            if r:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(s) for name, s in seconds.items()}


def agree(a, b, within, what):
    off = float(np.abs(np.asarray(a) - np.asarray(b)).max())
    assert off <= within, f"{what}: {off} apart"
    return off


def entrants_image(path):
    "From file to image as system 1 does it (system 4 with other numbers and without the trim)."
    wave, _ = librosa.load(path, sr=RATE)
    wave, _ = librosa.effects.trim(wave)
    if len(wave) < 2 * RATE:
        before = (2 * RATE - len(wave)) // 2
        wave = np.pad(wave, (before, 2 * RATE - len(wave) - before))
    x = librosa.power_to_db(librosa.feature.melspectrogram(y=wave, **MEL))
    return (x - x.mean()) / (x.std() + 1e-6)


def limits():
    "What this processor can do at most: one thread's matrix product and memory copy."
    torch.set_num_threads(1)
    a, big = torch.randn(1024, 1024), torch.randn(2**25)
    to = torch.empty_like(big)
    t = rounds({"product": lambda: a @ a, "copy": lambda: to.copy_(big)}, 15)
    return 2 * 1024**3 / np.median(t["product"]) / 1e9, 2 * big.nbytes / np.median(t["copy"]) / 1e9


class Table:
    "Rows of audio seconds per wall second, printed and kept as Markdown."

    def __init__(self):
        self.lines, self.ratios, self.wanted = [], {}, []

    def say(self, text=""):
        print(text, flush=True)
        self.lines.append(text)

    def row(self, name, seconds, t, ours="ours", base="librosa", note=""):
        per = {k: seconds / np.median(v) for k, v in t.items()}
        ratio = float(np.median(t[base] / t[ours]))
        ways = (
            [per.get(k) for k in ("ours", "librosa", "torchaudio")]
            if base == "librosa"
            else [per[ours], per[base], None]
        )
        cells = [f"{x:,.0f}".replace(",", " ") if x else "–" for x in ways]
        want = WANTED.get(name)
        self.ratios[name] = ratio
        self.wanted += [(name, want, ratio)] if want else []
        self.say(f"| {name} | {' | '.join(cells)} | {ratio:.2f} | {want or ''} | {note} |")


def decoding(table, files, seconds, n):
    def theirs(path):
        return torchaudio.load(path)

    for kind in ("wav", "flac", "ogg"):
        ways = {
            "ours": lambda: [read_audio(p) for p in files[kind]],
            "librosa": lambda: [librosa.load(p, sr=None) for p in files[kind]],
        }
        note = f"{agree(read_audio(files[kind][0]), librosa.load(files[kind][0], sr=None)[0], 1e-6, kind):.0e} apart"
        try:
            theirs(files[kind][0])
            ways["torchaudio"] = lambda: [theirs(p) for p in files[kind]]
        except Exception as e:  # noqa: BLE001 - it needs TorchCodec and a system ffmpeg
            note += f"; torchaudio.load: {type(e).__name__}"
        table.row(f"decode {kind.upper()}", seconds, rounds(ways, n), note=note)


def resampling(table, waves, files, seconds, n):
    theirs = torchaudio.transforms.Resample(RATE, 32000)
    ways = {
        "ours": lambda: [resample(w, RATE, 32000) for w in waves],
        "librosa": lambda: [librosa.resample(w, orig_sr=RATE, target_sr=32000) for w in waves],
        "torchaudio": lambda: [theirs(torch.from_numpy(w)) for w in waves],
    }
    off = agree(
        resample(waves[0], RATE, 32000), librosa.resample(waves[0], orig_sr=RATE, target_sr=32000), 1e-5, "resample"
    )
    table.row("resample 44.1 → 32 kHz", seconds, rounds(ways, n), note=f"{off:.0e} apart")
    ways = {
        "ours": lambda: [read_audio(p, sample_rate=32000) for p in files["wav"]],
        "librosa": lambda: [librosa.load(p, sr=32000) for p in files["wav"]],
    }
    table.row("decode WAV, 44.1 → 32 kHz", seconds, rounds(ways, n))


def mels(table, waves, n):
    ours = LogMel(hop_length=HOP, top_db=80.0)
    spectrogram = torchaudio.transforms.MelSpectrogram(
        sample_rate=RATE,
        n_fft=N_FFT,
        hop_length=HOP,
        n_mels=128,
        f_min=20,
        norm="slaney",
        mel_scale="slaney",
        pad_mode="constant",
    )
    decibels = torchaudio.transforms.AmplitudeToDB("power", 80)

    def by_librosa(w):
        return librosa.power_to_db(librosa.feature.melspectrogram(y=w, **MEL))

    def by_torchaudio(w):
        return decibels(spectrogram(torch.from_numpy(w)[None]))

    sound_of = np.concatenate(waves)
    for length, count in ((2, 48), (15, 8)):
        some = [np.ascontiguousarray(w) for w in np.resize(sound_of, (count, length * RATE))]
        off = max(agree(ours(w), by_librosa(w), 0.01, "log-mel") for w in some)
        t = rounds(
            {
                "ours": lambda: [ours(w) for w in some],
                "librosa": lambda: [by_librosa(w) for w in some],
                "torchaudio": lambda: [by_torchaudio(w) for w in some],
            },
            n,
        )
        table.row(f"log-mel, {length} s clips", length * count, t, note=f"{off:.0e} dB apart")
        frames = count * ours.n_frames(length * RATE)
        yield length, frames * 2.5 * N_FFT * np.log2(N_FFT) / np.median(t["ours"]) / 1e9


def image_all(front_end, some):
    for path in some:
        front_end.read_features(path)


def paths(table, files, seconds, n):
    ours = PRESETS["freesound_kernel"]
    with (
        ThreadPoolExecutor(2) as threads,
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes,
    ):
        for kind in ("wav", "flac", "ogg"):
            some = files[kind]
            halves = some[::2], some[1::2]
            off = max(agree(ours.read_features(p), entrants_image(p), 0.01, kind) for p in some[:12])
            list(processes.map(image_all, [ours] * 2, halves))
            t = rounds(
                {
                    "one": lambda: image_all(ours, some),
                    "entrants": lambda: [entrants_image(p) for p in some],
                    "two": lambda: list(threads.map(image_all, [ours] * 2, halves)),
                    "processes": lambda: list(processes.map(image_all, [ours] * 2, halves)),
                },
                n,
            )
            for way, name in (("one", "one thread"), ("two", "two threads"), ("processes", "two processes")):
                table.row(
                    f"{kind.upper()} to image, {name}",
                    seconds,
                    t,
                    ours=way,
                    base="entrants",
                    note=f"{off:.0e} apart" if way == "one" else "the entrants' loop is serial",
                )


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--save", action="store_true", help="write tests/bench/results/features.md")
    parse.add_argument("--clips", type=int, default=96)
    parse.add_argument("--rounds", type=int, default=7)
    args = parse.parse_args()
    warnings.simplefilter("ignore")
    table, began = Table(), time.perf_counter()
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    table.say("# From a file to features\n")
    table.say(
        f"{datetime.date.today()}, {cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; Python {platform.python_version()}, "
        f"NumPy {np.__version__}, torch {torch.__version__}, torchaudio {torchaudio.__version__}, librosa {librosa.__version__}.\n"
    )
    flops, copy = limits()
    with tempfile.TemporaryDirectory() as folder:
        waves, files = clips(Path(folder), args.clips)
        seconds = sum(map(len, waves)) / RATE
        table.say(
            f"{len(waves)} clips, {seconds:.0f} s of sound; medians of {args.rounds} interleaved rounds. The processor's limits, one thread: "
            f"matrix product {flops:.0f} GFLOP/s, memory copy {copy:.0f} GB/s (read and written).\n"
        )
        table.say(
            "Audio seconds per wall second, one thread unless it says two. The ratio is ours to librosa's, or to the entrants' loop "
            "(librosa.load, effects.trim, melspectrogram, power_to_db, standardized), which then stands in the second column.\n"
        )
        table.say("| | ours | librosa / entrants | torchaudio | ratio | wanted | |\n|---|---|---|---|---|---|---|")
        decoding(table, files, seconds, args.rounds)
        resampling(table, waves, files, seconds, args.rounds)
        rates = list(mels(table, waves, args.rounds))
        paths(table, files, seconds, args.rounds)
    table.say(
        "\nThe FFT's 2.5 N log2 N operations a frame alone make "
        + " and ".join(
            f"{r:.1f} GFLOP/s in the {length} s clips ({r / flops:.0%} of the matrix product)" for length, r in rates
        )
        + "."
    )

    missed = [f"{name} ({got:.2f} of {want})" for name, want, got in table.wanted if got < want]
    table.say(
        f"\n{'Missed: ' + '; '.join(missed) if missed else 'Every ratio that was wanted is met.'} {time.perf_counter() - began:.0f} s in all."
    )
    if args.save:
        out = Path(__file__).parent / "results" / "features.md"
        write_text(out, "\n".join(table.lines) + "\n")
        print(f"written to {out}")


if __name__ == "__main__":
    main()
