"""Do boxes pay, and rows of what is not there? `python -m tests.bench.rainforest [--work DIR] [--save]`

Trains the small recipe of system 3 on `rainforest`, in four ways that differ in nothing but what they are told: the labels of
whole recordings; boxes; boxes and false positives as known absent; boxes and false positives with the label 0. The folds, the seeds, the
network and the number of optimiser steps are the same. Interrupted and called again it goes on. (A seed takes six minutes of one quiet core.)
"""
import argparse
import datetime
import os
import platform
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

STEPS, FOLDS, SEEDS = 240, 4, (0, 1, 2)
CHANGES = ["n_folds=4", "model.backbone.width=8", "front_end.n_mels=48"]
ARMS = ("whole recordings", "boxes", "boxes + known absent", "boxes + label 0")


def recipe(name, seed, *, steps=STEPS, changes=()):
    from audiotag.data import Anywhere
    from audiotag.recipes import get_recipe
    from audiotag.stages import Labels

    base = get_recipe("rainforest2021", scale="small", changes=[*CHANGES, f"seed={seed}", *changes])
    stage = base.stages[0].replace(steps=steps)
    alone = stage.replace(train_on=("curated",), sampling=())
    made = {"whole recordings": dict(crops=Anywhere(), stages=(alone,)), "boxes": dict(stages=(alone,)), "boxes + known absent": dict(stages=(stage,)),
            "boxes + label 0": dict(stages=(stage,), labels=Labels(negatives="all"))}
    return base.replace(**made[name])


def open_arm(work, data, name, seed, **options):
    from audiotag.competitions import load_competition
    from audiotag.stages import open_run

    slug = "".join(c if c.isalnum() else "-" for c in name).replace("---", "-")
    return open_run(work / f"{slug}-{seed}", recipe(name, seed, **options), load_competition(data, "rainforest2021"))


def train(work, data, name, seed, **options):
    "One arm with one seed, on one thread."
    import torch

    from audiotag.stages import run_stages

    torch.set_num_threads(1)
    run_stages(open_arm(work, data, name, seed, **options))


def scores(run):
    "(truth, out-of-fold scores) of the recordings that have boxes, in the order of their names."
    from audiotag.competitions import targets

    clips = run.clips.sort_values("clip_id")
    return targets(clips, run.classes), run.oof(*run.recipe.members).loc[clips.clip_id].to_numpy()


def summary(runs, *, base="whole recordings", n=500):
    "A row an arm: lwlrap and macro-AUC, mean over seeds, and the gain over `base`, each with a bootstrap interval over recordings."
    import numpy as np
    import pandas as pd

    from audiotag.metrics import bootstrap_interval, lwlrap, macro_auc

    stacked = {name: [scores(r)[1] for (a, _), r in runs.items() if a == name] for name in ARMS}
    stacked = {name: p for name, p in stacked.items() if p}
    truth = scores(next(iter(runs.values())))[0]
    first, rows = stacked.get(base, next(iter(stacked.values()))), {}

    def mean(metric, y, p):
        return float(np.mean([metric(y, o) for o in p]))

    for name, p in stacked.items():
        both = np.concatenate([p, first]).transpose(1, 0, 2).reshape(len(truth), -1)

        def parts(y, o):
            o = o.reshape(len(o), -1, y.shape[1]).transpose(1, 0, 2)
            return o[:len(p)], o[len(p):]

        row = {}
        for called, metric in (("lwlrap", lwlrap), ("macro AUC", macro_auc)):
            low, high = bootstrap_interval(lambda y, o: mean(metric, y, parts(y, o)[0]), truth, both, n=n)
            row[called] = f"{mean(metric, truth, p):.3f} ({low:.3f} … {high:.3f})"
            if name != base:
                low, high = bootstrap_interval(lambda y, o: mean(metric, y, parts(y, o)[0]) - mean(metric, y, parts(y, o)[1]), truth, both, n=n)
                row[f"gain in {called}"] = f"{mean(metric, truth, p) - mean(metric, truth, first):+.3f} ({low:+.3f} … {high:+.3f})"
        row["lwlrap of the seeds' mean"] = f"{lwlrap(truth, np.mean(p, axis=0)):.3f}"
        row["minutes a seed"] = f"{np.mean([seconds(r) for (a, _), r in runs.items() if a == name]) / 60:.1f}"
        rows[name] = row
    return pd.DataFrame(rows).T.fillna("").rename_axis("trained on")


def seconds(run):
    from audiotag.core import read_json

    return sum(h["seconds"] for s in run.recipe.stages for k in range(run.recipe.n_folds) for h in read_json(run.fold_path(s.name, k) / "history.json"))


def main():
    from tests.bench.warmup import markdown

    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--work", type=Path, default=Path("runs/rainforest-bench"), help="run folders; kept, so that it can go on (default: runs/rainforest-bench)")
    ap.add_argument("--jobs", type=int, default=os.cpu_count(), help="arms that are trained side by side, one thread each")
    ap.add_argument("--seeds", type=int, default=len(SEEDS), help=f"how many of {len(SEEDS)} seeds")
    ap.add_argument("--save", action="store_true", help="write tests/bench/results/rainforest.md")
    o = ap.parse_args()
    from conftest import sample_folder
    from joblib import Parallel, delayed

    data, reason = sample_folder("rainforest")
    if data is None:
        raise SystemExit(f"skipped: {reason}")
    begin = time.time()
    jobs = [(name, seed) for seed in SEEDS[:o.seeds] for name in ARMS]
    Parallel(n_jobs=o.jobs)(delayed(train)(o.work, data, *job) for job in jobs)
    runs = {job: open_arm(o.work, data, *job) for job in jobs}
    clips = next(iter(runs.values())).clips
    text = f"""# Do boxes pay, and rows of what is not there?

`python -m tests.bench.rainforest --save`, {datetime.date.today()}, {os.cpu_count()} cores of {platform.processor() or platform.machine()}, {(time.time() - begin) / 60:.0f} minutes in this call.
`rainforest` sample set: {len(clips)} recordings with boxes, scored out of fold ({FOLDS} folds by recording); {STEPS} optimiser steps a fold in every row,
the small recipe of system 3 with an 8-wide CNN and 48 bands; {o.seeds} seeds, whose folds differ. Brackets: 95 % bootstrap interval over recordings.
Only a part of the calls is listed in the csv files, so the truth of a recording is a lower bound of what is in it.

{markdown(summary(runs))}
"""
    print(text)
    if o.save:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / "rainforest.md").write_text(text)


if __name__ == "__main__":
    main()
