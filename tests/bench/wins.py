"""What is each part of the winners' systems of 2025 and 2026 worth here? `python -m tests.bench.wins [--set soundscape] [--save]`

Each part is added alone to the recipe before it and trained for the same number of steps. On `soundscape` its gain is measured on recordings that are
mixed from clips of the held-out fold, window by window; on `freesound` on the curated clips of each fold, and on `rainforest` on recordings, with an
interval over recordings (groups of near-duplicates). `--save` writes tests/bench/results/wins.md and wins.json after each part, from which the tutorial
reads its tables; sets that are not run keep theirs. Interrupted and called again with the same `--work` it goes on; no part begins after `--minutes`,
and parts that were not run say so.
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
BOXES = "a SED network with boxes, on PCEN"  # what parts are added to on `rainforest`
SETS = {  # of sample sets: (layout, metric, optimizer steps, folds, what is measured)
    "soundscape": (
        "birdclef2024",
        "macro_auc",
        160,
        2,
        "windows of 5 s of recordings that are mixed from held-out clips",
    ),
    "freesound": ("freesound2019", "lwlrap", 150, 3, "curated clips out of fold"),
    "rainforest": ("rainforest2021", "lwlrap", 100, 3, "recordings out of fold"),
}
NOT_HERE = {  # parts that need what is not on this machine, or more time than this bench has
    "distillation from a frozen audio model": "needs its embeddings: `stages.*.distill`, see `train.distill`",
    "audio-pretrained backbones": "needs a checkpoint: `freesound2019_mn10`, see `models.audioset`",
    "members with another label space": "needs a foreign graph: `audiotag foreign`",
    "one student of all folds": "needs a finished run as its teacher: `audiotag distill`; measured on `speech` in score.md",
}


def of_any_set(base, staged, first, n_clips, *, to=BASE):
    "{part: (`to`, recipe)} of the parts that every set has; `staged(first)`: the stages that begin with this one."
    from audiotag.augment.recorder import FilterAugment, FreqMixStyle
    from audiotag.augment.spec import MixUp, SpecAugment

    def augmented(*more):
        return to, base.replace(augment=(*base.augment, *more))

    epochs = first.steps * first.batch_size / n_clips
    second = first.replace(name="second_seed")  # another name draws other weights
    return {
        "mixup": augmented(MixUp(p=0.5)),
        "SpecAugment": augmented(SpecAugment(p=0.5)),
        "FilterAugment": augmented(FilterAugment(unit_db=15.0)),
        "Freq-MixStyle": augmented(FreqMixStyle()),
        "SWA over a third of the epochs": (
            to,
            base.replace(stages=staged(first.replace(swa=max(2, round(epochs / 3))))),
        ),
        "two seeds": (
            to,
            base.replace(stages=(first, second, *staged(first)[1:]), members=(first.name, second.name)),
        ),
    }


def of_any_loss(base):
    "{part: (BASE, recipe)} where the targets are labels of whole clips."
    from audiotag.augment.mixing import TimeCutMix
    from audiotag.models.sed import SED
    from audiotag.train.losses import Focal, SoftAUC, SoftmaxCE

    mean = base.replace(model=SED(backbone=base.model, parts=False))
    return {
        "soft AUC + .25 BCE": (BASE, base.replace(loss=SoftAUC())),
        "cross-entropy on normalized labels": (BASE, base.replace(loss=SoftmaxCE())),
        "focal BCE": (BASE, base.replace(loss=Focal())),
        "CutMix in time": (BASE, base.replace(augment=(*base.augment, TimeCutMix()))),
        "SED head, mean over frequency": (BASE, mean),
        "GeM over frequency": ("SED head, mean over frequency", mean.replace(model=mean.model.replace(pool="gem"))),
    }


def on_freesound(steps, folds):
    "{part: (the part that it is compared with, recipe)}, each one change of the other."
    from audiotag.augment.mixing import AddClips
    from audiotag.models.cnn import CNNModel1
    from audiotag.train.recipes import freesound2019

    small = freesound2019("small", plain=True)
    first = small.stages[0].replace(train_on=("noisy", "curated"), steps=steps)
    base = small.replace(
        name="wins", model=CNNModel1(width=8), stages=(first,), members=(first.name,), n_folds=folds, cpus=1
    )
    added = base.replace(augment=(AddClips(),), features="computed")
    return {
        BASE: ("", base),
        "clips added, labels united": (BASE, added),
        **of_any_loss(base),
        **of_any_set(base, lambda first: (first,), first, 624),
    }


def on_rainforest(steps, folds):
    "As `on_freesound`; here the targets have boxes and weights, which only `SEDLoss` takes."
    from audiotag.train.recipes import rainforest2021

    small = rainforest2021("small")
    first = small.stages[0].replace(steps=steps)
    base = small.replace(name="wins", augment=(), stages=(first,), members=(first.name,), n_folds=folds, cpus=1)
    alone = first.replace(train_on=("curated",), sampling=())
    return {
        BOXES: ("", base),
        "without rows of known absence": (BOXES, base.replace(stages=(alone,))),
        "GeM over frequency": (BOXES, base.replace(model=base.model.replace(pool="gem"))),
        "decibels in place of PCEN": (BOXES, base.replace(front_end=base.front_end.replace(pcen=None))),
        **of_any_set(base, lambda first: (first,), first, 100, to=BOXES),
    }


def on_soundscape(steps, folds):
    "As `on_freesound`."
    from audiotag.augment.mixing import AddClips
    from audiotag.data.scapes import MixedScapes
    from audiotag.data.sampling import InverseRoot, MixPartners
    from audiotag.infer.windows import View, Windows
    from audiotag.models.cnn import CNNModel1
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
    losses = of_any_loss(base)
    mean, gem = losses.pop("SED head, mean over frequency"), losses.pop("GeM over frequency")
    long = mean[1].replace(windows=Windows(frames=2 * frames, hop=frames // 2, by_frame=True, pooling="max"))
    shifts = tuple(View(frame_shift=s) for s in (0, -frames // 10, frames // 10))
    background = first.replace(
        train_on=("curated", "unlabeled"), sampling=(InverseRoot(), MixPartners(column=None, p=0.5))
    )
    return {
        BASE: ("", base),
        "clips added, labels united": (BASE, base.replace(augment=(*base.augment, AddClips()))),
        **losses,
        "SED head, mean over frequency": mean,
        "10 s windows, scores averaged frame by frame": ("SED head, mean over frequency", long),
        "frame-shift TTA": (
            "10 s windows, scores averaged frame by frame",
            long.replace(windows=long.windows.replace(views=shifts)),
        ),
        "GeM over frequency": gem,
        "noisy student: windows added to every clip, united targets": (
            BASE,
            base.replace(members=(base.stages[-1].name,)),
        ),
        "unlabeled soundscapes as background": (BASE, base.replace(stages=staged(background))),
        **of_any_set(base, staged, first, 130),
    }


def scores_of(run, *stages):
    """(truth, probabilities, recordings) of the mixed recordings of all folds, or of the curated clips out of fold; the
    mean over stages."""
    import numpy as np
    import pandas as pd

    from audiotag.data.competitions import targets

    folds = range(run.recipe.n_folds)
    if not run.recipe.mixed:
        clips = run.clips[run.clips.source == "curated"]
        return targets(clips, run.classes) > 0, run.oof(*stages).loc[clips.clip_id].to_numpy(), clips.group.to_numpy()
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
    "A finished run of a part, with the folds of the first one; features are computed once for each front end."
    from audiotag.data.competitions import load_competition
    from audiotag.train.run_folder import RunFolder, open_run, run_stages

    def slug(name):
        return "".join(c if c.isalnum() else "-" for c in name).strip("-")

    store = f"store-{recipe.features}-{recipe.front_end.hash[:8]}"
    folds_of = next((RunFolder(work / slug(o)) for o in (BASE, BOXES) if name != o and (work / slug(o)).exists()), None)
    competition = load_competition(data, recipe.layout)
    run = open_run(work / slug(name), recipe, competition, store=work / store, folds_of=folds_of)
    return run_stages(run, until=recipe.members[-1])


def gain(metric, truth, p, before, recordings, *, draws=1000):
    "(gain, low, high) with a 95 % interval over recordings."
    import numpy as np

    from audiotag.core.metrics import METRICS
    from audiotag.core.seeding import rng

    score, g = METRICS[metric], rng(0, "wins")
    rows = [np.flatnonzero(recordings == r) for r in dict.fromkeys(recordings)]
    found = []
    for _ in range(draws):
        i = np.concatenate([rows[k] for k in g.integers(len(rows), size=len(rows))])
        found.append(score(truth[i], p[i]) - score(truth[i], before[i]))
    low, high = np.nanpercentile(found, (2.5, 97.5))
    return float(score(truth, p) - score(truth, before)), float(low), float(high)


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


def measured(work, data, name_of_set, steps, folds, minutes, save):
    """A row for each part: part, beside, score, gain, low, high, minutes, note. `save` is called with the rows and facts
    after each of them."""
    from audiotag.core.metrics import METRICS

    made = {"soundscape": on_soundscape, "freesound": on_freesound, "rainforest": on_rainforest}[name_of_set]
    parts, scores, began, metric = made(steps, folds), {}, time.process_time(), SETS[name_of_set][1]
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
        row["score"] = float(METRICS[metric](truth, p))
        if beside:
            row["gain"], row["low"], row["high"] = gain(metric, truth, p, scores[beside], recordings)
            row["note"] = verdict(row)
        print(f"{name}: {row['score']:.3f} {row['note']} ({row['minutes']:.1f} minutes)", flush=True)
        save(list(rows.values()), dict(rows_scored=len(truth), recordings=len(set(recordings))))


def verdict(row):
    "Whether a part helps, by its interval."
    if row["low"] > 0:
        return "helps"
    return "hurts" if row["high"] < 0 else "the interval holds 0"


HEAD = """# What is each part of the winners' systems worth here?

Written by `python -m tests.bench.wins --save`. Each part is added alone to the part in *added to* and trained for the same number of steps. Intervals
(95 %) are over recordings, or groups of near-duplicates; what another seed would change is not in them. Networks this small, trained this briefly on a few
hundred clips, say whether a part works here, and not what it is worth to a system that was trained for days. Few steps favor what learns fast: decibels are
ahead of PCEN on `rainforest` here, and behind it after 800 steps (score.md).
"""


def as_markdown(sets):
    "The page of results of all sets that were run."
    lines = [HEAD]
    for name, found in sets.items():
        lines.append(f"""## `{name}`

`{found["command"]}`, {found["date"]}, one core of {found["machine"]}, {found["minutes"]:.0f} minutes of training while other work ran beside it:
{found["folds"]} folds, {found["steps"]} steps of each training. Measured on {found["rows_scored"]} {SETS[name][4]} ({found["recordings"]} recordings or groups).

| part | added to | {found["metric"]} | gain (95 %) | minutes | |
|---|---|---|---|---|---|""")
        for r in found["rows"]:
            if r.get("score") is None:
                lines.append(f"| {r['part']} | {r['beside']} | – | – | – | {r['note']} |")
                continue
            change = "" if r["gain"] is None else f"{r['gain']:+.3f} ({r['low']:+.3f} … {r['high']:+.3f})"
            lines.append(
                f"| {r['part']} | {r['beside']} | {r['score']:.3f} | {change} | {r['minutes']:.1f} | {r['note']} |"
            )
        lines.append("")
    return "\n".join(lines)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--set", choices=SETS, default="soundscape", help="sample set (default: soundscape)")
    ap.add_argument("--steps", type=int, help="optimizer steps of a training; default: as SETS says")
    ap.add_argument("--folds", type=int, help="default: as SETS says")
    ap.add_argument("--minutes", type=float, default=30, help="of processor time; no part begins after them")
    ap.add_argument("--work", help="folder for runs, to go on later; default: a temporary one")
    ap.add_argument("--save", action="store_true", help="write tests/bench/results/wins.md and wins.json")
    o = ap.parse_args()
    import torch

    from audiotag.core.files import write_text
    from tests.conftest import sample_folder

    _, metric, steps, folds, _ = SETS[o.set]
    steps, folds = o.steps or steps, o.folds or folds
    data, reason = sample_folder(o.set)
    if data is None:
        raise SystemExit(f"skipped: {reason}")

    torch.set_num_threads(1)

    def save(rows, facts):
        found = dict(
            command=f"python -m tests.bench.wins --set {o.set} --steps {steps} --folds {folds} --save",
            date=str(datetime.date.today()),
            machine=platform.machine(),
            minutes=sum(r.get("minutes") or 0 for r in rows),
            metric=metric,
            steps=steps,
            folds=folds,
            **facts,
            rows=rows,
        )
        write_text(Path(o.work or temporary) / "wins.md", as_markdown({o.set: found}))
        if o.save:
            path = RESULTS / "wins.json"
            sets = {**json.loads(path.read_text()), o.set: found}
            sets = {name: sets[name] for name in SETS if name in sets}
            write_text(path, json.dumps(sets, indent=1) + "\n")
            write_text(RESULTS / "wins.md", as_markdown(sets))

    with tempfile.TemporaryDirectory() as temporary:
        measured(Path(o.work or temporary), data, o.set, steps, folds, o.minutes, save)
        print((Path(o.work or temporary) / "wins.md").read_text())


if __name__ == "__main__":
    main()
