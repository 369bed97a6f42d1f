"""How busy is the GPU? `python -m tests.bench.gpu [--save]`; without a GPU `--device cpu --tiny` tries the bench itself.

CNN-model-1, 64 wide, 80 classes, 128×128, batch 128, trained as `audiotag train` does (`train_fold`: loader, augmentation, precision, metric),
from stored log-mels and from stored waves whose log-mel is computed on the device; beside it what an entrant writes: a fastai Learner whose
DataLoader workers compute librosa's mel clip by clip. Images per second are those of the epochs after the first; the share of time in which
the GPU waits, for whatever, is 1 - (time in kernels)/(wall time) of an epoch under torch's profiler; the share in which Python waits for a
batch is measured in the epochs without it.
"""

import argparse
import datetime
import os
import platform
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from fastai.callback.core import Callback


class Fed(Callback):
    "Seconds from the end of a batch to the next one's coming, before any callback works on it."

    order, seconds, ended = -100, 0.0, 0.0

    def before_batch(self):
        self.seconds += time.perf_counter() - self.ended


class Watch(Callback):
    "Images and seconds of the training batches of each epoch, and a profile of the last one."

    order = 100

    def __init__(self, profile_at=None):
        self.rates, self.unfed, self.profile_at, self.waiting, self.fed = [], [], profile_at, None, Fed()

    def _now(self):
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def before_train(self):
        from torch.profiler import ProfilerActivity, profile

        self.profile = profile(activities=[ProfilerActivity.CUDA]) if self.epoch == self.profile_at else None
        if self.profile:
            self.profile.__enter__()
        self.n, self.fed.seconds, self.begin = 0, 0.0, self._now()
        self.fed.ended = self.begin

    def after_batch(self):
        self.n += len(self.y) if self.training else 0
        self.fed.ended = time.perf_counter()

    def after_train(self):
        seconds = self._now() - self.begin
        if not self.profile:
            self.rates.append(self.n / seconds)
            self.unfed.append(self.fed.seconds / seconds)
            return
        self.profile.__exit__(None, None, None)
        kernels = sum(e.device_time_total for e in self.profile.events() if "cuda" in str(e.device_type).lower()) / 1e6
        self.waiting = max(0.0, 1 - kernels / seconds)

    def medians(self):
        "Images per second, and the share of time without a batch, of the epochs after the first that nobody profiled."
        return statistics.median(self.rates[1:]), statistics.median(self.unfed[1:])


def sounds(n):
    from audiotag.core.seeding import rng
    from audiotag.audio.synth import SOUNDS, sound

    base = [
        sound(SOUNDS[i % len(SOUNDS)], rng(0, i), seconds=2.5, sample_rate=44100).astype("float32") for i in range(64)
    ]
    return [base[i % 64] for i in range(n)]


def clip_table(folder, n):
    import pandas as pd
    import soundfile as sf
    from audiotag.data.competitions import clip_table as table

    rows = []
    for i, wave in enumerate(sounds(n)):
        path = folder / "wav" / f"{i:05d}.wav"
        path.parent.mkdir(exist_ok=True)
        if not path.exists():
            sf.write(path, wave, 44100)
        rows.append(str(path))
    names = [Path(r).name for r in rows]
    clips = table(names, path=rows, labels=[(f"c{i % 16:02d}",) for i in range(n)], source="curated", group=names)
    return clips.assign(fold=pd.Series(range(n)) % 5)


def ours(clips, folder, o, *, precision, computed, compile=""):
    import torch
    from audiotag.augment.spec import Lighting, MixUp, SpecMix, ZoomCrop
    from audiotag.data.loaders import fold_loaders
    from audiotag.audio.features import PRESETS, Waveform
    from audiotag.train.losses import BCE
    from audiotag.models.cnn import CNNModel1
    from audiotag.data.store import build_store
    from audiotag.train.fit import train_fold

    fe = PRESETS["freesound_kernel"].replace(reading=PRESETS["freesound_kernel"].reading.replace(trim_db=None))
    stored = Waveform(sample_rate=fe.sample_rate, reading=fe.reading) if computed else fe
    store = build_store(clips, stored, folder / ("waves" if computed else "mels"), workers=os.cpu_count())
    train, valid = clips[clips.fold > 0], clips[clips.fold == 0]
    dls = fold_loaders(
        train,
        valid,
        store,
        [f"c{i:02d}" for i in range(80)],
        frames=fe.samples_for(128) if computed else 128,
        batch_size=o.batch,
    )
    dls.to(o.device)
    torch.manual_seed(0)
    watch = Watch(o.epochs - 1 if o.device == "cuda" and not compile else None)
    with tempfile.TemporaryDirectory() as run:
        train_fold(
            CNNModel1(width=o.width).build(80),
            dls,
            run,
            loss=BCE(),
            epochs=o.epochs,
            augment=(MixUp(), SpecMix(), ZoomCrop(), Lighting()),
            front_end=fe if computed else None,
            precision=precision,
            cbs=[watch, watch.fed],
            **({"compile": compile} if compile else {}),
        )
    return watch


class LibrosaItems:
    "What an entrant writes: librosa in `__getitem__`."

    def __init__(self, clips):
        self.paths, self.labels = list(clips.path), [int(o[0][1:]) for o in clips.labels]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        import librosa
        import numpy as np
        import torch

        wave, _ = librosa.load(self.paths[i], sr=44100)
        x = librosa.power_to_db(
            librosa.feature.melspectrogram(y=wave, sr=44100, n_fft=2560, hop_length=694, n_mels=128, fmin=20)
        )
        x = (x - x.mean()) / (x.std() + 1e-6)
        at = np.random.randint(x.shape[1] - 127)
        return torch.from_numpy(x[None, :, at : at + 128].astype("float32")), torch.eye(80)[self.labels[i]]


def one_thread():
    "In each worker: sixteen of them with sixteen BLAS threads each would wait for one another."
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


def theirs(clips, o, *, precision):
    import fastai.callback.fp16, fastai.callback.progress, fastai.callback.schedule  # noqa: E401, F401  they add methods to Learner
    import librosa
    import torch
    from audiotag.models.cnn import CNNModel1
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner

    torch.manual_seed(0)
    # loaded and compiled before the workers are forked
    librosa.power_to_db(librosa.feature.melspectrogram(y=librosa.load(clips.path[0], sr=44100)[0]))
    train, valid = (
        DataLoader(
            LibrosaItems(c),
            bs=o.batch,
            shuffle=s,
            num_workers=o.workers,
            wif=one_thread,
            pin_memory=o.device == "cuda",
            drop_last=s,
        )
        for c, s in ((clips[clips.fold > 0], True), (clips[clips.fold == 0], False))
    )
    watch = Watch(o.epochs - 1 if o.device == "cuda" else None)
    learn = Learner(
        DataLoaders(train, valid).to(o.device),
        CNNModel1(width=o.width).build(80),
        loss_func=torch.nn.BCEWithLogitsLoss(),
        cbs=[watch, watch.fed],
    )
    if precision == "bf16":
        learn = learn.to_bf16()
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(o.epochs)
    return watch


ENTRANT = "entrant: fastai, librosa in DataLoader workers"


def page(rows, o, name):
    "The table of what was measured so far."
    import torch

    toy = (
        " **There is no GPU here**: a toy size on the CPU, which shows that the bench runs and no speed of it."
        if o.device == "cpu"
        else ""
    )
    lines = []
    for (way, precision), watch in rows.items():
        rate, unfed = watch.medians()
        base = rows.get((ENTRANT, precision))
        lines.append(
            f"| {way} | {precision} | {rate:.0f} | {f'{rate / base.medians()[0]:.2f}' if base else '–'} | {unfed:.0%} | "
            f"{'–' if watch.waiting is None else f'{watch.waiting:.0%}'} |\n"
        )
    return f"""# How busy is the GPU?

`python -m tests.bench.gpu`, {datetime.date.today()}, {name}, {os.cpu_count()} cores, torch {torch.__version__}.
CNN-model-1, {o.width} wide, 128 × 128, batch {o.batch}, {o.clips} clips of 2.5 s; {o.workers} workers for the entrant.{toy}

| | precision | images/s | over the entrant | waits for a batch | GPU waits |
|---|---|---|---|---|---|
""" + "".join(lines)


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--save", action="store_true", help="write tests/bench/results/gpu.md")
    parse.add_argument("--device", default="cuda")
    parse.add_argument("--clips", type=int, default=8000)
    parse.add_argument("--epochs", type=int, default=4)
    parse.add_argument("--batch", type=int, default=128)
    parse.add_argument("--width", type=int, default=64)
    parse.add_argument("--workers", type=int, default=min(16, os.cpu_count()), help="of the entrant's DataLoader")
    parse.add_argument("--compile", default="inductor", help="backend of the row with torch.compile; '' leaves it out")
    parse.add_argument("--tiny", action="store_true", help="small, to try the bench itself")
    o = parse.parse_args()
    import torch

    if o.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("skipped: there is no GPU here (`--device cpu --tiny` tries the bench itself)")
    if o.tiny:
        o.clips, o.batch, o.width, o.epochs, o.workers, o.compile = 80, 16, 8, 2, 1, "aot_eager"
    name = torch.cuda.get_device_name() if o.device == "cuda" else platform.processor() or platform.machine()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        clips = clip_table(folder, o.clips)
        ways = {
            "ours, stored log-mels": partial(ours, clips, folder, o, computed=False),
            "ours, log-mel on the device": partial(ours, clips, folder, o, computed=True),
            ENTRANT: partial(theirs, clips, o),
        }
        todo = [(w, p, partial(f, precision=p)) for p in ("fp32", "bf16") for w, f in ways.items()]
        if o.compile:
            todo.append(
                (
                    "ours, stored log-mels, torch.compile",
                    "bf16",
                    partial(ours, clips, folder, o, precision="bf16", computed=False, compile=o.compile),
                )
            )
        rows = {}
        for way, precision, measure in todo:
            began = time.perf_counter()
            rows[way, precision] = watch = measure()
            print(
                f"{way}, {precision}: {watch.medians()[0]:.0f} images/s ({time.perf_counter() - began:.0f} s in all)",
                file=sys.stderr,
                flush=True,
            )
            if o.save:  # what was measured stays, whatever comes
                from audiotag.core.files import write_text

                write_text(Path(__file__).parent / "results" / "gpu.md", page(rows, o, name))
    print(page(rows, o, name))


if __name__ == "__main__":
    main()
