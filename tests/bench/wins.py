"""What is each part of the winners' systems of 2025 and 2026 worth here? `python -m tests.bench.wins [--steps 120] [--folds 2] [--save]`

Each part is added alone to the recipe before it and trained for the same number of steps on `soundscape`; its gain is measured on recordings that
are mixed from clips of the held-out fold, window by window, with an interval over recordings. `--save` writes tests/bench/results/wins.md and
wins.json, from which the tutorial reads its table. Interrupted and called again with `--work` it goes on; `--minutes` stops it before a part that
would take longer, and parts that were not run say so.
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
BASE, HEAD = "a CNN with BCE", "SED head, GeM over frequency"
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
    base = small.replace(
        name="wins",
        model=CNNModel1(width=16),
        labels=Labels(),
        augment=(small.augment[0],),
        stages=(first,),
        rounds=(),
        members=(first.name,),
        mixed=MixedScapes(n=12, n_labels=None),
        windows=Windows(frames=frames, hop=frames),
        n_folds=folds,
        after=(),
        cpus=1,
    )
    sed = base.replace(model=SED(backbone=base.model, pool="gem", parts=False))
    mean = sed.replace(model=sed.model.replace(pool="mean"))
    long = sed.replace(windows=Windows(frames=2 * frames, hop=frames // 2, by_frame=True, pooling="max"))
    shifts = tuple(View(frame_shift=s) for s in (0, -frames // 10, frames // 10))
    background = first.replace(
        train_on=("curated", "unlabeled"), sampling=(InverseRoot(), MixPartners(column=None, p=0.5))
    )
    student = student_rounds(first, (1.0,), keep=0.0, zero=0.0, mix=1.0, target="union")
    changed = {
        "SED head, mean over frequency": (BASE, mean),
        HEAD: ("SED head, mean over frequency", sed),
        "10 s windows, scores averaged frame by frame": (HEAD, long),
        "frame-shift TTA": (
            "10 s windows, scores averaged frame by frame",
            long.replace(windows=long.windows.replace(views=shifts)),
        ),
        "noisy student: windows added to every clip, united targets": (
            BASE,
            base.replace(stages=student, members=(student[-1].name,)),
        ),
        "clips added, labels united": (BASE, base.replace(augment=(*base.augment, AddClips()))),
        "unlabelled soundscapes as background": (BASE, base.replace(stages=(background,))),
        "cross-entropy on normalised labels": (BASE, base.replace(loss=SoftmaxCE())),
        "soft AUC + .25 BCE": (BASE, base.replace(loss=SoftAUC())),
        "focal BCE": (BASE, base.replace(loss=Focal())),
        "FilterAugment": (BASE, base.replace(augment=(*base.augment, FilterAugment(unit_db=15.0)))),
        "Freq-MixStyle": (BASE, base.replace(augment=(*base.augment, FreqMixStyle()))),
        "CutMix in time": (BASE, base.replace(augment=(*base.augment, TimeCutMix()))),
        "SpecAugment": (BASE, base.replace(augment=(*base.augment, SpecAugment(p=0.5)))),
        "SWA over a third of the epochs": (BASE, base.replace(stages=(first.replace(swa=swa_epochs(steps)),))),
        "two seeds": (BASE, base.replace(seed=1)),
    }
    return {BASE: ("", base), **changed}


def swa_epochs(steps):
    "A third of the epochs of a fold: about 130 clips, 16 in a batch."
    return max(2, steps // 8 // 3)


def scores_of(run, stage):
    "(truth, probabilities, recordings) of the mixed recordings of all folds."
    import numpy as np
    import pandas as pd

    tables = [pd.read_parquet(run.fold_path(stage, k) / "mixed.parquet") for k in range(run.recipe.n_folds)]
    table = pd.concat(tables, ignore_index=True)
    truth = table[[f"truth {c}" for c in run.classes]].to_numpy() > 0.5
    return truth, table[[f"p {c}" for c in run.classes]].to_numpy(np.float64), table.recording.to_numpy()


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
    return run_stages(open_run(work / slug, recipe, competition, store=work / "store"))


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


def measured(work, data, steps, folds, minutes):
    "A row for each part: part, beside, score, gain, low, high, minutes, note."
    from audiotag.core.metrics import METRICS

    scores, rows, began = {}, [], time.process_time()
    for name, (beside, recipe) in arms(steps, folds).items():
        row = dict(part=name, beside=beside, score=None, gain=None, low=None, high=None, minutes=None, note="")
        rows.append(row)
        spent = (time.process_time() - began) / 60
        if spent > minutes or (beside and beside not in scores):
            row["note"] = f"not run: {minutes:g} minutes were over"
            continue
        start = time.process_time()
        stage = recipe.members[0]
        if name == "frame-shift TTA":
            run = train(work, data, beside, arms(steps, folds)[beside][1])
            truth, _, recordings = scores_of(run, stage)
            p = shifted_scores(run, recipe, stage)
        else:
            run = train(work, data, name, recipe)
            truth, p, recordings = scores_of(run, stage)
        if name == "two seeds":
            p = (p + scores[beside]) / 2
        scores[name] = p
        row["score"] = float(METRICS["macro_auc"](truth, p))
        row["minutes"] = (time.process_time() - start) / 60
        if beside:
            row["gain"], row["low"], row["high"] = gain(truth, p, scores[beside], recordings)
            row["note"] = verdict(row)
        print(f"{name}: {row['score']:.3f} {row['note']} ({row['minutes']:.1f} minutes)", flush=True)
    rows += [dict(part=name, beside="", note=f"not run: {why}") for name, why in NOT_HERE.items()]
    facts = dict(windows=len(truth), recordings=len(set(recordings)))
    return rows, facts


def verdict(row):
    "Whether a part helps, by its interval."
    if row["low"] > 0:
        return "helps"
    return "hurts" if row["high"] < 0 else "the interval holds 0"


def as_markdown(found):
    "The page of results."
    head = f"""# What is each part of the winners' systems worth here?

`{found["command"]}`, {found["date"]}, one core of {found["machine"]}, {found["minutes"]:.0f} minutes of processor time.
`soundscape` sample set, {found["folds"]} folds, {found["steps"]} steps of 16 clips for each training, one seed.

**What it is measured on.** Macro-AUC of {found["windows"]} windows of 5 s in {found["recordings"]} recordings, which are mixed from clips of the held-out fold over
noise like that of the unlabelled soundscapes. Intervals are over recordings; what another seed would change is not in them. Networks this small, trained this briefly
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
    from tests.conftest import sample_folder

    data, reason = sample_folder("soundscape")
    if data is None:
        raise SystemExit(f"skipped: {reason}")
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        rows, facts = measured(Path(o.work or temporary), data, o.steps, o.folds, o.minutes)
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
    print(as_markdown(found))
    if o.save:
        (RESULTS / "wins.md").write_text(as_markdown(found))
        (RESULTS / "wins.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
