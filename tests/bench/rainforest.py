"""Do boxes pay, and rows of what is not there? `python -m tests.bench.rainforest [--work DIR] [--save]`

Trains the small recipe of system 3 on `rainforest`, in four ways that differ in nothing but what they are told: the labels of
whole recordings; boxes; boxes and false positives as known absent; boxes and false positives with the label 0. The folds, the seeds, the
network and the number of optimizer steps are the same. Interrupted and called again it goes on. (A seed takes six minutes of one quiet core.)
"""

import argparse
import datetime
import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

STEPS, FOLDS, SEEDS = 240, 4, (0, 1, 2)
CHANGES = ["n_folds=4", "model.backbone.width=8", "front_end.n_mels=48"]
ARMS = ("whole recordings", "boxes", "boxes + known absent", "boxes + label 0")


def recipe(name, seed, *, steps=STEPS, changes=()):
    from audiotag.data.crops import Anywhere
    from audiotag.train.recipes import get_recipe
    from audiotag.train.settings import Labels

    base = get_recipe("rainforest2021", scale="small", changes=[*CHANGES, f"seed={seed}", *changes])
    stage = base.stages[0].replace(steps=steps)
    alone = stage.replace(train_on=("curated",), sampling=())
    made = {
        "whole recordings": dict(crops=Anywhere(), stages=(alone,)),
        "boxes": dict(stages=(alone,)),
        "boxes + known absent": dict(stages=(stage,)),
        "boxes + label 0": dict(stages=(stage,), labels=Labels(negatives="all")),
    }
    return base.replace(**made[name])


def open_arm(work, data, name, seed, **options):
    from audiotag.data.competitions import load_competition
    from audiotag.train.run_folder import open_run

    slug = "".join(c if c.isalnum() else "-" for c in name).replace("---", "-")
    return open_run(work / f"{slug}-{seed}", recipe(name, seed, **options), load_competition(data, "rainforest2021"))


def train(work, data, name, seed, **options):
    "One arm with one seed, on one thread."
    import torch

    from audiotag.train.run_folder import run_stages

    torch.set_num_threads(1)
    run_stages(open_arm(work, data, name, seed, **options))


def scores(run):
    "(truth, out-of-fold scores) of the recordings that have boxes, in the order of their names."
    from audiotag.data.competitions import targets

    clips = run.clips.sort_values("clip_id")
    return targets(clips, run.classes), run.oof(*run.recipe.members).loc[clips.clip_id].to_numpy()


def summary(runs, *, n=500):
    "A row an arm: lwlrap and macro-AUC, mean over seeds, and gains over other arms, each with a bootstrap interval over recordings."
    import numpy as np
    import pandas as pd

    from audiotag.core.metrics import bootstrap_interval, lwlrap, macro_auc

    # (seeds, recordings, classes)
    stacked = {name: np.stack([scores(r)[1] for (a, _), r in runs.items() if a == name]) for name in ARMS}
    truth = scores(next(iter(runs.values())))[0]

    def told(metric, *arms):
        "The metric of an arm, or the gain over a second one: mean over seeds and interval."
        both = np.concatenate([stacked[a] for a in arms]).transpose(1, 0, 2).reshape(len(truth), -1)

        def value(y, flat):
            each = [metric(y, o) for o in flat.reshape(len(y), -1, y.shape[1]).transpose(1, 0, 2)]
            halves = np.split(np.array(each), len(arms))
            return float(halves[0].mean() - (halves[1].mean() if len(arms) == 2 else 0))

        sign = "+" if len(arms) == 2 else ""
        low, high = bootstrap_interval(value, truth, both, n=n)
        return f"{value(truth, both):{sign}.3f} ({low:{sign}.3f} … {high:{sign}.3f})"

    rows = {}
    for name, p in stacked.items():
        row = {
            "lwlrap": told(lwlrap, name),
            "macro AUC": told(macro_auc, name),
            "lwlrap of the seeds' mean": f"{lwlrap(truth, p.mean(0)):.3f}",
        }
        if name != ARMS[0]:
            row["lwlrap over whole recordings"] = told(lwlrap, name, ARMS[0])
        if name not in ARMS[:2]:
            row["lwlrap over boxes"] = told(lwlrap, name, ARMS[1])
        row["minutes a seed"] = f"{np.mean([seconds(r) for (a, _), r in runs.items() if a == name]) / 60:.1f}"
        rows[name] = row
    columns = [
        "lwlrap",
        "macro AUC",
        "lwlrap of the seeds' mean",
        "lwlrap over whole recordings",
        "lwlrap over boxes",
        "minutes a seed",
    ]
    return pd.DataFrame(rows).T[columns].fillna("").rename_axis("trained on")


def seconds(run):
    from audiotag.core.files import read_json

    return sum(
        h["seconds"]
        for s in run.recipe.stages
        for k in range(run.recipe.n_folds)
        for h in read_json(run.fold_path(s.name, k) / "history.json")
    )


def main():
    from tests.bench.warmup import markdown

    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument(
        "--work",
        type=Path,
        default=Path("runs/rainforest-bench"),
        help="run folders; kept, so that it can go on (default: runs/rainforest-bench)",
    )
    ap.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="arms that are trained side by side, one thread each"
    )
    ap.add_argument("--seeds", type=int, default=len(SEEDS), help=f"how many of {len(SEEDS)} seeds")
    ap.add_argument("--save", action="store_true", help="write tests/bench/results/rainforest.md")
    o = ap.parse_args()
    from tests.conftest import sample_folder
    from joblib import Parallel, delayed

    data, reason = sample_folder("rainforest")
    if data is None:
        raise SystemExit(f"skipped: {reason}")
    jobs = [(name, seed) for seed in SEEDS[: o.seeds] for name in ARMS]
    Parallel(n_jobs=o.jobs)(delayed(train)(o.work, data, *job) for job in jobs)
    runs = {job: open_arm(o.work, data, *job) for job in jobs}
    clips = next(iter(runs.values())).clips
    text = f"""# Do boxes pay, and rows of what is not there?

`python -m tests.bench.rainforest --seeds {o.seeds} --save`, {datetime.date.today()}, {os.cpu_count()} cores of {platform.processor() or platform.machine()}, {o.seeds} seeds.
`rainforest` sample set: {len(clips)} recordings with boxes, scored out of fold ({FOLDS} folds by recording); {STEPS} optimizer steps a fold in every row,
the small recipe of system 3 with an 8-wide CNN and 48 bands. Each seed has folds of its own. Minutes are those of the epochs on one thread, with whatever else the machine did. Brackets: 95 % bootstrap interval over recordings.
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
