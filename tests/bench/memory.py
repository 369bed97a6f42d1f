"""What a run holds in memory when its store is larger: `python -m tests.bench.memory [--save]`.

A run folder over a store of nothing (sparse files: every clip reads as zeros, the pages are as many as those of a real one) is trained for an
epoch of one fold and scored out of fold by `finish_fold`, as `audiotag train` does it, in a process that may not grow by more than 2 GB
(RLIMIT_DATA). The network is small, as memory is measured and not time.
"""

import argparse
import datetime
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

SETS = [
    "n_folds=10",
    "model.width=4",
    "windows.frames=128",
    "windows.hop=128",
    "stages.*.epochs=1",
    "stages.*.batch_size=128",
    "augment=[]",
    "stream_from=10000",
    "cpus=1",
    "precision=fp32",
]


def run_folder(folder, clips, frames):
    "A run over a store of `clips` clips, made without sound."
    import numpy as np
    import pandas as pd
    from audiotag.data.competitions import clip_table
    from audiotag.core.files import claim_folder, write_json, write_parquet
    from audiotag.train.recipes import get_recipe
    from tests.data.sparse import sparse_store

    recipe = get_recipe("freesound2019", scale="small", changes=SETS)
    store = sparse_store(folder / "store", clips=clips, frames=frames, front_end=recipe.stored, per_shard=1024)
    classes, names = [f"class {i:02d}" for i in range(80)], list(store)
    labels = [(classes[i % 80],) if i % 3 else (classes[i % 80], classes[i * 7 % 79]) for i in range(clips)]
    table = clip_table(
        names,
        path=[f"/corpus/{n}.wav" for n in names],
        labels=labels,
        source=np.where(np.arange(clips) % 5, "noisy", "curated"),
        group=names,
    )
    run = claim_folder(folder / "run", "run")
    write_parquet(run / "clips.parquet", table.assign(fold=pd.Series(np.arange(clips) % recipe.n_folds)))
    write_json(
        run / "recipe.json",
        {
            "recipe": recipe.to_dict(),
            "classes": classes,
            "competition": "nothing",
            "data": "",
            "scale": "small",
            "store": str(folder / "store"),
        },
    )
    return run


def watched(run):
    "In the limited process: the most that it grew while it trained, and while it scored."
    import torch
    from audiotag.data.mmap import resident_memory
    from audiotag.train.run_folder import Run, score_fold, train_stage_fold

    torch.set_num_threads(1)
    torch.nn.Conv2d(1, 4, 3)(torch.zeros(128, 1, 64, 128)).mean().backward()
    start, most, end = resident_memory(), [0], threading.Event()
    held = int(Path("/proc/self/statm").read_text().split()[5]) * 4096
    resource.setrlimit(resource.RLIMIT_DATA, (held + 2 * 10**9, -1))

    def look():
        while not end.wait(0.05):
            most[0] = max(most[0], resident_memory() - start)

    threading.Thread(target=look, daemon=True).start()

    def growth(do):
        most[0], began = 0, time.perf_counter()
        do()
        return most[0] / 1e6, time.perf_counter() - began

    made = []
    opened = growth(lambda: made.append(Run(run)))
    run, stage = made[0], made[0].recipe.stages[0]
    trained = growth(lambda: train_stage_fold(run, stage, 0, "fold 0 (of 10),"))
    scored = growth(lambda: score_fold(run, stage.name, 0))
    end.set()
    print("RESULT", *opened, *trained, *scored)


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--save", action="store_true", help="write tests/bench/results/memory.md")
    parse.add_argument("--clips", type=int, nargs="+", default=[20_000, 80_000])
    parse.add_argument("--frames", type=int, default=2048)
    parse.add_argument("--watch", help=argparse.SUPPRESS)
    o = parse.parse_args()
    if o.watch:
        return watched(o.watch)
    rows = []
    for clips in o.clips:
        with tempfile.TemporaryDirectory() as folder:
            run = run_folder(Path(folder), clips, o.frames)
            size = sum(p.stat().st_size for p in Path(folder, "store/shards").iterdir()) / 1e9
            out = subprocess.run(
                [sys.executable, "-m", "tests.bench.memory", "--watch", str(run)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            assert out.returncode == 0, out
            m = list(map(float, out.stdout.split("RESULT")[1].split()))
        rows.append(f"| {clips} | {size:.1f} | {m[0]:.0f} | {m[2]:.0f} | {m[4]:.0f} | {m[3]:.0f} | {m[5]:.0f} |\n")
        print(rows[-1], end="")
    text = f"""# What a run holds in memory

`python -m tests.bench.memory`, {datetime.date.today()}, {os.cpu_count()} cores of {platform.processor() or platform.machine()}; each row in a process that may not grow by more than 2 GB.
MB by which resident memory has grown since the libraries were loaded, at the most, while the run is opened, while one fold is trained for an epoch (nine tenths of the clips,
streamed), and while it is scored out of fold (a tenth).

| clips | store, GB | opened | trained | scored | seconds of training | of scoring |
|---|---|---|---|---|---|---|
""" + "".join(rows)
    if o.save:
        from audiotag.core.files import write_text

        write_text(Path(__file__).parent / "results" / "memory.md", text)


if __name__ == "__main__":
    main()
