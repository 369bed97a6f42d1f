"""Does the warm-up pay? `python -m tests.bench.warmup [--work DIR] [--save]`

Trains on `freesound` (real recordings; some labels of the noisy part are wrong on purpose) with one network, the same seeds
and the same number of optimizer steps in every row, and prints out-of-fold lwlrap. Interrupted and called again it goes on.
"""

import argparse
import datetime
import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

FOLDS, BATCH, FRAMES = 3, 16, 64  # crops of a second
STEPS, SEEDS = 1600, (0, 1)  # optimizer steps a fold, whatever the stages
# an option is tried at half the length with one seed, and compared with the same stages without it
OPTION_STEPS, OPTION_SEEDS = 800, (0,)
BASE, PLAIN = "curated only", "four stages, half the steps"  # what the rows of the two tables are compared with


def stages(*, steps=STEPS // 4, noisy_loss=None, picked_loss=None, ema=None, soft=0.0, probability=1.0, student=False):
    "The four stages of system 1, `steps` optimizer steps each, with options."
    from audiotag.train.settings import Stage
    from audiotag.train.stage_rules import AgreementRule

    common = dict(steps=steps, lr=3e-3, batch_size=BATCH, ema=ema)
    picked = dict(soft=soft, probability=probability)
    agreed = AgreementRule(scores=("noisy", "curated"), at_least=0.5, at_most=5, **picked)
    certain = AgreementRule(scores=("agreed",), at_least=1.0, **picked)
    if student:
        certain = AgreementRule(scores=("curated", "agreed"), at_least=0.0, soft=1.0, probability=0.5)
    return (
        Stage(name="noisy", train_on=("noisy",), loss=noisy_loss, **common),
        Stage(name="curated", train_on=("curated",), start_from="noisy", **common),
        Stage(name="agreed", train_on=("curated", agreed), start_from="curated", loss=picked_loss, **common),
        Stage(name="certain", train_on=("curated", certain), start_from="agreed", loss=picked_loss, **common),
    )


def arms():
    "name -> (stages, members of the ensemble, augmentations, seeds)."
    from audiotag.augment.spec import Lighting, MixUp, SpecAugment, SpecMix, ZoomCrop
    from audiotag.train.losses import BCE, BootstrappedBCE, LqLoss
    from audiotag.train.settings import Stage

    one = dict(lr=3e-3, batch_size=BATCH)
    alone = (Stage(name="curated", train_on=("curated",), steps=STEPS, **one),)
    three = ("curated", "agreed", "certain")
    pictures = (SpecAugment(p=0.5), ZoomCrop(), Lighting())

    def option(**how):
        return stages(steps=OPTION_STEPS // 4, **how), three

    options = {
        PLAIN: (*option(), ()),
        "+ moving average of weights (.98)": (*option(ema=0.98), ()),
        "+ L_q loss on noisy": (*option(noisy_loss=LqLoss(q=0.5)), ()),
        "+ bootstrapped targets": (
            *option(noisy_loss=BootstrappedBCE(beta=0.8), picked_loss=BootstrappedBCE(beta=0.8)),
            (),
        ),
        "+ label smoothing .1 on noisy": (*option(noisy_loss=BCE(label_smoothing=0.1)), ()),
        "+ soft targets (half) for picked": (*option(soft=0.5), ()),
        "+ picked drawn with p = .5": (*option(probability=0.5), ()),
        "+ noisy student in stage 4": (*option(student=True), ()),
        "+ mixup, SpecMix": (*option(), (MixUp(), SpecMix())),
        "+ SpecAugment, zoom, lighting": (*option(), pictures),
    }
    return {
        BASE: (alone, ("curated",), (), SEEDS),
        "curated only + SpecAugment, zoom, lighting": (alone, ("curated",), pictures, SEEDS),
        "curated + noisy, mixed": (
            (Stage(name="mixed", train_on=("curated", "noisy"), steps=STEPS, **one),),
            ("mixed",),
            (),
            SEEDS,
        ),
        "noisy, then curated": (
            (
                Stage(name="noisy", train_on=("noisy",), steps=STEPS // 2, **one),
                Stage(name="curated", train_on=("curated",), start_from="noisy", steps=STEPS // 2, **one),
            ),
            ("curated",),
            (),
            SEEDS,
        ),
        "four stages": (stages(), three, (), SEEDS),
        "four stages + SpecAugment, zoom, lighting": (stages(), three, pictures, SEEDS),
        "four stages + best options (moving average, soft targets)": (stages(ema=0.98, soft=0.5), three, (), SEEDS),
        **{name: (*how, OPTION_SEEDS) for name, how in options.items()},
    }


def recipe(name, seed):
    from audiotag.train.recipes import freesound2019
    from audiotag.infer.windows import Windows

    made, members, augment, _ = arms()[name]
    return freesound2019("small").replace(
        stages=made, members=members, augment=augment, n_folds=FOLDS, seed=seed, windows=Windows(frames=FRAMES, hop=24)
    )


def open_arm(work, data, name, seed):
    from audiotag.data.competitions import load_competition
    from audiotag.train.run_folder import open_run

    slug = "".join(c if c.isalnum() else "-" for c in name).strip("-")
    return open_run(work / f"{slug}-{seed}", recipe(name, seed), load_competition(data))


def train(work, data, name, seed):
    "One arm with one seed, on one thread."
    import torch

    from audiotag.train.run_folder import run_stages

    torch.set_num_threads(1)
    run_stages(open_arm(work, data, name, seed))


def scores(run):
    "(truth, out-of-fold scores) of the curated clips, in the order of their names."
    from audiotag.data.competitions import targets

    curated = run.clips[run.clips.source == "curated"].sort_values("clip_id")
    return targets(curated, run.classes), run.oof(*run.recipe.members).loc[curated.clip_id].to_numpy()


def summary(runs, against):
    "A row an arm: lwlrap of the ensemble, its gain over the arm `against` with an interval over clips, and the selection."
    import numpy as np
    import pandas as pd

    from audiotag.core.metrics import bootstrap_interval, lwlrap
    from audiotag.train.run_folder import stage_table

    base, rows = {seed: scores(run)[1] for (name, seed), run in runs.items() if name == against}, {}
    for name in dict.fromkeys(n for n, _ in runs):
        mine = {seed: run for (n, seed), run in runs.items() if n == name}
        if not mine:
            continue
        truth, stacked = (
            scores(next(iter(mine.values())))[0],
            np.concatenate([np.stack([scores(r)[1], base[s]]) for s, r in mine.items()]),
        )

        def each(y, p):
            return np.array([lwlrap(y, o) for o in p.reshape(len(p), -1, y.shape[1]).transpose(1, 0, 2)]).reshape(-1, 2)

        flat = stacked.transpose(1, 0, 2).reshape(len(truth), -1)
        gain = bootstrap_interval(lambda y, p: float(np.mean(each(y, p) @ [1, -1])), truth, flat, n=500)
        mean = each(truth, flat).mean(0)
        tables = [stage_table(r) for r in mine.values()]
        picked = [
            len(r.ledger(s.name).query("picked"))
            for r in mine.values()
            for s in r.recipe.stages
            if s.name in ("agreed", "certain")
        ]
        rows[name] = {
            "lwlrap curated": mean[0],
            "gain": mean[0] - mean[1],
            "95 % of the gain": f"{gain[0]:+.3f} … {gain[1]:+.3f}",
            "lwlrap noisy": np.mean([t["lwlrap noisy"].iloc[-1] for t in tables]),
            "picked": "/".join(f"{np.mean(picked[i::2]):.0f}" for i in (0, 1)) if picked else "–",
            "seeds": len(mine),
            "minutes": sum(t.minutes.sum() for t in tables) / len(tables),
        }
    return pd.DataFrame(rows).T.rename_axis("with the same number of optimizer steps")


def stage_means(runs, name):
    "The stage table of an arm, as the mean over its seeds."
    from audiotag.train.run_folder import stage_table

    tables = [stage_table(r).astype(float) for (n, _), r in runs.items() if n == name]
    return sum(tables) / len(tables)


def markdown(table, digits=3):
    cells = table.reset_index().map(lambda v: f"{v:.{digits}f}" if isinstance(v, float) else str(v))
    lines = [list(cells.columns), ["---"] * cells.shape[1], *cells.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines).replace("nan", "–")


def report(runs):
    "Both tables, the stages one by one, and the forest, as Markdown."
    from audiotag.train.baseline import baseline_table

    short = {job: run for job, run in runs.items() if arms()[job[0]][3] == OPTION_SEEDS}
    full = {job: run for job, run in runs.items() if job not in short}
    tables = [(part, base) for part, base in ((full, BASE), (short, PLAIN)) if any(name == base for name, _ in part)]
    main_table, options = ([markdown(summary(part, base)) for part, base in tables] + ["", ""])[:2]
    return f"""# Does the warm-up pay?

`python -m tests.bench.warmup --save`, {datetime.date.today()}, {os.cpu_count()} cores of {platform.processor() or platform.machine()}.
`freesound` sample set, {FOLDS} folds, {STEPS} optimizer steps a fold in every row (batch {BATCH}, 16-wide CNN-model-1, 64 × {FRAMES} crops).
The gain is over "{BASE}" with the same seeds; its interval is a bootstrap over clips.

{main_table}

The options, each alone, with {OPTION_STEPS} steps: the gain is over the same stages without it.

{options}

The four stages, one by one (mean over seeds):

{markdown(stage_means(runs, "four stages")) if ("four stages", 0) in runs else ""}

The one-minute baseline on the same folds:

{markdown(baseline_table(next(iter(runs.values()))))}
"""


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument(
        "--work",
        type=Path,
        default=Path("runs/warmup"),
        help="run folders; kept, so that it can go on (default: runs/warmup)",
    )
    ap.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="arms that are trained side by side, one thread each"
    )
    ap.add_argument("--only", default="", help="arms whose name contains this")
    ap.add_argument("--save", action="store_true", help="write tests/bench/results/warmup.md")
    o = ap.parse_args()
    from tests.conftest import sample_folder
    from joblib import Parallel, delayed

    data, reason = sample_folder("freesound")
    if data is None:
        raise SystemExit(f"skipped: {reason}")
    jobs = [(name, seed) for name, (_, _, _, seeds) in arms().items() for seed in seeds if o.only in name]
    Parallel(n_jobs=o.jobs)(delayed(train)(o.work, data, *job) for job in jobs)
    runs = {job: open_arm(o.work, data, *job) for job in jobs}
    text = report(runs)
    print(text)
    if o.save:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / "warmup.md").write_text(text)


if __name__ == "__main__":
    main()
