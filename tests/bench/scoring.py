"""What a round of pseudo-labels costs at corpus size: `python -m tests.bench.scoring [--minutes N] [--save]`, a minute or two.

Unlabeled soundscapes are scored as `audiotag train` does it: the features of each window are computed once and stored, all folds read them,
a batch takes windows of several recordings, and networks compute in bf16 where the processor has it. Beside it the same networks in OpenVINO, which training does not use. All in processor
seconds of one thread, which another program on the machine hardly changes; hours are for two cores that are both busy all the time.
"""

import argparse
import datetime
import os
import platform
import tempfile
import time
from pathlib import Path

CORPUS = 8444 * 12  # windows of 5 s in the minutes that BirdCLEF 2024 gave without labels
FOLDS, WANTED_H = 5, 2.0


def recordings(folder, minutes):
    "Recordings of a minute in OGG, and a clip table of their windows of 5 s."
    import numpy as np
    import soundfile as sf
    from audiotag.core.seeding import rng
    from audiotag.data.competitions import clip_table

    rows = []
    for i in range(minutes):
        path, g = folder / f"{i}.ogg", rng(0, "minute", i)
        t = np.arange(60 * 32000) / 32000
        sf.write(path, 0.05 * g.normal(size=len(t)) + 0.2 * np.sin(2 * np.pi * (2000 + 900 * np.sin(3 * t)) * t), 32000)
        rows += [(f"{i}_{end}", str(path), end - 5.0, float(end)) for end in range(5, 61, 5)]
    ids, paths, starts, ends = zip(*rows)
    return clip_table(ids, path=paths, labels=[()] * len(ids), source="unlabeled", start_s=starts, end_s=ends)


def seconds(function) -> tuple:  # processor seconds, what it returned
    began = time.process_time()
    got = function()
    return time.process_time() - began, got


def openvino_rate(net, x, precision) -> float:  # processor seconds a window
    import openvino as ov

    shape = ov.PartialShape([-1, *x.shape[1:]])
    model = ov.convert_model(net, example_input=x[:2], input=[shape])
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
    compiled = ov.Core().compile_model(model, "CPU", settings)
    parts = [x[i : i + 4].numpy() for i in range(0, len(x), 4)]
    compiled(parts[0])
    return seconds(lambda: [compiled(part) for part in parts])[0] / len(x)


def measure(clips, folder, n_mels) -> tuple:  # {what: processor seconds a window}, what bf16 changes at most
    import torch
    from audiotag.data.store import build_store
    from audiotag.infer.windows import batches, score_clips
    from audiotag.train.recipes import get_recipe

    recipe = get_recipe("birdclef2024")
    fe, windows = recipe.front_end.replace(n_mels=n_mels), recipe.windows
    torch.manual_seed(0)
    net = recipe.model.replace(pretrained="").build(182).eval().to(memory_format=torch.channels_last)
    ids, n = list(clips.clip_id), len(clips)
    fe.read_features(clips.path[0], start_s=0.0, end_s=5.0)  # libraries are loaded and filters made
    made, store = seconds(lambda: build_store(clips, fe, folder / f"store-{n_mels}"))

    def stored():
        return ((c, store[c]) for c in ids)

    read, parts = seconds(lambda: [x for _, x in batches(stored(), windows, fill=fe.fill)])
    list(score_clips([net], list(stored())[:2], windows, fill=fe.fill))
    scored, exact = seconds(lambda: list(score_clips([net], stored(), windows, fill=fe.fill)))
    list(score_clips([net], list(stored())[:2], windows, fill=fe.fill, dtype=torch.bfloat16))
    short, near = seconds(lambda: list(score_clips([net], stored(), windows, fill=fe.fill, dtype=torch.bfloat16)))
    off = max(float(abs(a - b).max()) for (_, a), (_, b) in zip(exact, near))
    alone, _ = seconds(lambda: [list(score_clips([net], [o], windows, fill=fe.fill)) for o in list(stored())[:6]])
    x = torch.from_numpy(parts[0][:8].copy())
    rows = {
        "decoding and log-mel": made / n,
        "reading and cutting": read / n,
        "network, torch, batches of several recordings": (scored - read) / n,
        "network, torch, the same in bf16": (short - read) / n,
        "network, torch, one window at a time": alone / 6 - read / n,
    }
    try:
        rows |= {f"network, OpenVINO, {p}": openvino_rate(net, x, p) for p in ("f32", "bf16")}
    except ImportError:
        print("OpenVINO is not installed")
    return rows, off


def hours(rows, network, *, folds_share=True) -> float:
    "Hours of two cores for the corpus and all folds."
    once = rows["decoding and log-mel"]
    window = FOLDS * (rows["reading and cutting"] + rows[network]) + (once if folds_share else FOLDS * once)
    return CORPUS * window / 2 / 3600


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--save", action="store_true", help="write tests/bench/results/scoring.md")
    parse.add_argument("--minutes", type=int, default=4, help="of sound")
    args = parse.parse_args()
    import torch
    from audiotag.core.memory import keep_memory
    from audiotag.train.fit import autocast_dtype

    keep_memory()
    torch.set_num_threads(1)
    lines = [
        "# A round of pseudo-labels at corpus size\n",
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start, "
        f"torch {torch.__version__}; {args.minutes} minutes of sound ({12 * args.minutes} windows of 5 s), efficientnet_b0, one thread.\n",
    ]
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        clips = recordings(Path(folder), args.minutes)
        for n_mels in (128, 512):
            rows, off = measure(clips, Path(folder), n_mels)
            plain, bf16 = "network, torch, batches of several recordings", "network, torch, the same in bf16"
            ours = bf16 if autocast_dtype("auto") is torch.bfloat16 else plain
            lines += [f"## {n_mels} × 313\n", "| processor ms a window | | over torch in batches |", "|---|---|---|"]
            for what, s in rows.items():
                ratio = f"{rows[plain] / s:.2f}" if what.startswith("network") else ""
                lines.append(f"| {what} | {1000 * s:.1f} | {ratio} |")
            alone = 1 / (rows["decoding and log-mel"] + FOLDS * (rows["reading and cutting"] + rows[ours]))
            lines.append(f"\nWindows a second on one thread, {FOLDS} folds and features once: {alone:.2f}.")
            lines.append(f"\nIn bf16 the probabilities of this untrained network change by {off:.1e} at most.")
            found = {
                "as `audiotag train` does it": hours(rows, ours),
                "in fp32": hours(rows, plain),
                "with features computed anew for each fold": hours(rows, ours, folds_share=False),
                **{
                    f"with the network in OpenVINO, {p}": hours(rows, k)
                    for p in ("f32", "bf16")
                    if (k := f"network, OpenVINO, {p}") in rows
                },
            }
            lines.append(f"\nHours of two cores for {CORPUS:,} windows × {FOLDS} folds:\n".replace(",", " "))
            lines += [f"- {what}: {h:.1f}" for what, h in found.items()]
            lines.append("")
            if (h := hours(rows, ours)) > WANTED_H:
                missed.append(f"{n_mels} mels, {FOLDS} folds ({h:.1f} h of {WANTED_H:g})")
    lines.append(f"Missed: {'; '.join(missed)}" if missed else f"{WANTED_H:g} hours, which were wanted, are enough.")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.save:
        (Path(__file__).parent / "results" / "scoring.md").write_text(text)


if __name__ == "__main__":
    main()
