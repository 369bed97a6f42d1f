"""What is each part of the winners' systems of 2025 and 2026 worth here? `python -m tests.bench.wins [--steps 120] [--folds 2] [--save]`

Each part is added alone to the recipe before it and trained for the same number of steps on `soundscape`; its gain is measured on recordings that
are mixed from clips of the held-out fold, window by window, with an interval over recordings. `--save` writes tests/bench/results/wins.md and
wins.json after each part, from which the tutorial reads its table. Interrupted and called again with the same `--work` it goes on; no part begins
after `--minutes`, and parts that were not run say so.
"""

import argparse
import datetime
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

RESULTS = Path(__file__).parent / "results"
BASE = "a CNN with BCE"
NOT_HERE = {  # parts that need what is not on this machine, or more time than this bench has
    "distillation from a frozen audio model": "needs its embeddings: `stages.*.distill`, see `train.distill`",
    "audio-pretrained backbones": "needs a checkpoint: `freesound2019_mn10`, see `models.audioset`",
    "members with another label space": "needs a foreign graph: `audiotag foreign`",
    "one student of all folds": "needs a finished run as its teacher: `audiotag distill`",
}


def arms(steps, folds):
    "{part: (the part that it is compared with, recipe)}, each one change of the other."
    from audiotag.augment.mixing import AddClips, TimeCutMix
    from audiotag.augment.recorder import FilterAugment, FreqMixStyle
    from audiotag.augment.spec import SpecAugment
    from audiotag.data.scapes import MixedScapes
    from audiotag.data.sampling import InverseRoot, MixPartners
    from audiotag.infer.windows import View, Windows
    from audiotag.models.cnn import CNNModel1
    from audiotag.models.sed import SED
    from audiotag.train.losses import Focal, SoftAUC, SoftmaxCE
    from audiotag.train.recipes import birdclef2024, student_rounds
    from audiotag.train.settings import Labels

    small = birdclef2024("small")
    first = small.stages[0].replace(
        train_on=("curated",), sampling=(InverseRoot(),), steps=steps, batch_size=16, lr=3e-3, loss=None
    )
    frames = small.windows.frames

    def staged(first):  # with a round, which most parts do not run, so that the run has the unlabeled recordings
        return student_rounds(first, (1.0,), keep=0.0, zero=0.0, mix=1.0, target="union")

    base = small.replace(
        name="wins",
        model=CNNModel1(width=16),
        labels=Labels(),
        augment=(small.augment[0],),
        stages=staged(first),
        rounds=(),
        members=(first.name,),
        mixed=MixedScapes(n=12, n_labels=None),
        windows=Windows(frames=frames, hop=frames),
        n_folds=folds,
        after=(),
        cpus=1,
        group_by=(),
    )
    mean = base.replace(model=SED(backbone=base.model, parts=False))
    gem = mean.replace(model=mean.model.replace(pool="gem"))
    long = mean.replace(windows=Windows(frames=2 * frames, hop=frames // 2, by_frame=True, pooling="max"))
    second = first.replace(name="second_seed")  # another name draws other weights
    shifts = tuple(View(frame_shift=s) for s in (0, -frames // 10, frames // 10))
    background = first.replace(
        train_on=("curated", "unlabeled"), sampling=(InverseRoot(), MixPartners(column=None, p=0.5))
    )

    def augmented(*more):
        return base.replace(augment=(*base.augment, *more))

    return {
        BASE: ("", base),
        "clips added, labels united": (BASE, augmented(AddClips())),
        "soft AUC + .25 BCE": (BASE, base.replace(loss=SoftAUC())),
        "cross-entropy on normalized labels": (BASE, base.replace(loss=SoftmaxCE())),
        "SED head, mean over frequency": (BASE, mean),
        "10 s windows, scores averaged frame by frame": ("SED head, mean over frequency", long),
        "frame-shift TTA": (
            "10 s windows, scores averaged frame by frame",
            long.replace(windows=long.windows.replace(views=shifts)),
        ),
        "GeM over frequency": ("SED head, mean over frequency", gem),
        "noisy student: windows added to every clip, united targets": (
            BASE,
            base.replace(members=(base.stages[-1].name,)),
        ),
        "FilterAugment": (BASE, augmented(FilterAugment(unit_db=15.0))),
        "SWA over a third of the epochs": (BASE, base.replace(stages=staged(first.replace(swa=swa_epochs(steps))))),
        "two seeds": (
            BASE,
            base.replace(stages=(first, second, *staged(first)[1:]), members=(first.name, second.name)),
        ),
        "unlabeled soundscapes as background": (BASE, base.replace(stages=staged(background))),
        "SpecAugment": (BASE, augmented(SpecAugment(p=0.5))),
        "Freq-MixStyle": (BASE, augmented(FreqMixStyle())),
        "CutMix in time": (BASE, augmented(TimeCutMix())),
        "focal BCE": (BASE, base.replace(loss=Focal())),
    }


def swa_epochs(steps):
    "A third of the epochs of a fold: about 130 clips, 16 in a batch."
    return max(2, steps // 8 // 3)


def scores_of(run, *stages):
    "(truth, probabilities, recordings) of the mixed recordings of all folds; the mean over stages."
    import numpy as np
    import pandas as pd

    folds = range(run.recipe.n_folds)
    tables = [pd.concat([pd.read_parquet(run.fold_path(s, k) / "mixed.parquet") for k in folds]) for s in stages]
    truth = tables[0][[f"truth {c}" for c in run.classes]].to_numpy() > 0.5
    p = np.mean([t[[f"p {c}" for c in run.classes]].to_numpy(np.float64) for t in tables], axis=0)
    return truth, p, tables[0].recording.to_numpy()


def shifted_scores(run, recipe, stage):
    "As `scores_of`, with other windows at scoring."
    import numpy as np

    from audiotag.infer.windows import Spans, score_clips

    out = []
    for k in range(run.recipe.n_folds):
        model = run.model(stage, k)
        for (spans,), _, _ in run.mixed_recordings(k):
            views = [(view, spans.views[0][1]) for view in recipe.windows.views]
            entry = [("r", Spans(views, spans.rows))]
            ((_, p),) = score_clips([model], entry, recipe.windows, fill=recipe.front_end.fill)
            out.append(p[0])
    return np.concatenate(out).astype(np.float64)


def train(work, data, name, recipe):
    "A finished run of a part."
    from audiotag.data.competitions import load_competition
    from audiotag.train.run_folder import open_run, run_stages

    slug = "".join(c if c.isalnum() else "-" for c in name).strip("-")
    competition = load_competition(data, "birdclef2024")
    run = open_run(work / slug, recipe, competition, store=work / "store")
    return run_stages(run, until=recipe.members[-1])


def gain(truth, p, before, recordings, *, draws=1000):
    "(gain in macro-AUC, low, high) with a 95 % interval over recordings."
    import numpy as np

    from audiotag.core.metrics import METRICS
    from audiotag.core.seeding import rng

    auc, g = METRICS["macro_auc"], rng(0, "wins")
    rows = [np.flatnonzero(recordings == r) for r in dict.fromkeys(recordings)]
    found = []
    for _ in range(draws):
        i = np.concatenate([rows[k] for k in g.integers(len(rows), size=len(rows))])
        found.append(auc(truth[i], p[i]) - auc(truth[i], before[i]))
    low, high = np.nanpercentile(found, (2.5, 97.5))
    return float(auc(truth, p) - auc(truth, before)), float(low), float(high)


def scored(work, data, name, beside, recipe, of_beside):
    "(truth, probabilities, recordings, minutes of training) of a part."
    import numpy as np

    from audiotag.core.files import read_json

    stage = recipe.members[0]
    if name == "frame-shift TTA":  # no training: other windows at scoring
        run = train(work, data, beside, of_beside)
        truth, _, recordings = scores_of(run, stage)
        return truth, shifted_scores(run, recipe, stage), recordings, 0.0
    run = train(work, data, name, recipe)
    histories = run.folder.glob("*/fold-*/history.json")
    seconds = np.sum([epoch["seconds"] for path in histories for epoch in read_json(path)])
    return *scores_of(run, *recipe.members), float(seconds / 60)


def measured(work, data, steps, folds, minutes, save):
    """A row for each part: part, beside, score, gain, low, high, minutes, note. `save` is called with the rows and facts
    after each of them."""
    from audiotag.core.metrics import METRICS

    parts, scores, began = arms(steps, folds), {}, time.process_time()
    rows = {
        name: dict(part=name, beside=beside, score=None, gain=None, low=None, high=None, minutes=None)
        | dict(note="not run: the time that this bench was given was over")
        for name, (beside, _) in parts.items()
    }
    rows |= {name: dict(part=name, beside="", score=None, note=f"not run: {why}") for name, why in NOT_HERE.items()}
    for name, (beside, recipe) in parts.items():
        if beside and ((time.process_time() - began) / 60 > minutes or beside not in scores):
            continue
        row = rows[name]
        of_beside = parts[beside][1] if beside else None
        truth, p, recordings, row["minutes"] = scored(work, data, name, beside, recipe, of_beside)
        scores[name], row["note"] = p, ""
        row["score"] = float(METRICS["macro_auc"](truth, p))
        if beside:
            row["gain"], row["low"], row["high"] = gain(truth, p, scores[beside], recordings)
            row["note"] = verdict(row)
        print(f"{name}: {row['score']:.3f} {row['note']} ({row['minutes']:.1f} minutes)", flush=True)
        save(list(rows.values()), dict(windows=len(truth), recordings=len(set(recordings))))


def verdict(row):
    "Whether a part helps, by its interval."
    if row["low"] > 0:
        return "helps"
    return "hurts" if row["high"] < 0 else "the interval holds 0"


def as_markdown(found):
    "The page of results."
    head = f"""# What is each part of the winners' systems worth here?

`{found["command"]}`, {found["date"]}, one core of {found["machine"]}, {found["minutes"]:.0f} minutes of training while other work ran beside it.
`soundscape` sample set, {found["folds"]} folds, {found["steps"]} steps of 16 clips for each training, one seed.

**What it is measured on.** Macro-AUC of {found["windows"]} windows of 5 s in {found["recordings"]} recordings, which are mixed from clips of the held-out fold over
noise like that of the unlabeled soundscapes. Intervals are over recordings; what another seed would change is not in them. Networks this small, trained this briefly
on 200 clips, say whether a part works here, and not what it is worth to a system that was trained for days.

| part | added to | macro-AUC | gain (95 %) | minutes | |
|---|---|---|---|---|---|
"""
    lines = []
    for r in found["rows"]:
        if r.get("score") is None:
            lines.append(f"| {r['part']} | {r['beside']} | – | – | – | {r['note']} |")
            continue
        change = "" if r["gain"] is None else f"{r['gain']:+.3f} ({r['low']:+.3f} … {r['high']:+.3f})"
        lines.append(
            f"| {r['part']} | {r['beside']} | {r['score']:.3f} | {change} | {r['minutes']:.1f} | {r['note']} |"
        )
    return head + "\n".join(lines) + "\n"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--steps", type=int, default=120, help="optimizer steps of a training")
    ap.add_argument("--folds", type=int, default=2)
    ap.add_argument("--minutes", type=float, default=25, help="of processor time; no part begins after them")
    ap.add_argument("--work", help="folder for runs, to go on later; default: a temporary one")
    ap.add_argument("--save", action="store_true", help="write tests/bench/results/wins.md and wins.json")
    o = ap.parse_args()
    import torch

    from audiotag.core.files import write_text
    from tests.conftest import sample_folder

    data, reason = sample_folder("soundscape")
    if data is None:
        raise SystemExit(f"skipped: {reason}")

    torch.set_num_threads(1)

    def save(rows, facts):
        found = dict(
            command=f"python -m tests.bench.wins --steps {o.steps} --folds {o.folds} --save",
            date=str(datetime.date.today()),
            machine=platform.machine(),
            minutes=sum(r.get("minutes") or 0 for r in rows),
            steps=o.steps,
            folds=o.folds,
            **facts,
            rows=rows,
        )
        write_text(Path(o.work or temporary) / "wins.md", as_markdown(found))
        if o.save:
            write_text(RESULTS / "wins.md", as_markdown(found))
            write_text(RESULTS / "wins.json", json.dumps(found, indent=1) + "\n")

    with tempfile.TemporaryDirectory() as temporary:
        measured(Path(o.work or temporary), data, o.steps, o.folds, o.minutes, save)
        print((Path(o.work or temporary) / "wins.md").read_text())


if __name__ == "__main__":
    main()
