"""What pays on soundscapes? `python -m tests.bench.soundscape [--work DIR] [--save]`

Trains on `soundscape` and scores out of fold, on whole clips and on *pseudo-soundscapes*: a minute of rain, sea or fire (recordings of
the `freesound` set), into which calls are mixed that are cut out of clips of the fold. A model of fold k hears the soundscapes of fold k
and nothing that it, or its teachers, were trained on. The true test has no answers here. Interrupted and called again it goes on.
"""

import argparse
import datetime
import os
import platform
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

FOLDS, SCAPES, SECONDS, RATE = 3, 10, 60, 32000  # SCAPES a fold and kind
KINDS = {"few species": 3, "any species": None}  # how many species there are in a recording


def arms():
    "name -> recipe."
    from audiotag.core.config import set_fields
    from audiotag.train.recipes import birdclef2024
    from audiotag.data.sampling import InverseRoot, MixPartners

    def made(inputs, *, sampler=True, background=True, rounds=0, continued=False, times=1, changes=()):
        r = set_fields(birdclef2024("small", inputs=inputs), changes)
        stages = r.stages[: rounds + 1]
        drawn = (InverseRoot(),) * sampler + (MixPartners(column=None, p=0.3),) * background
        sources = ("curated", "unlabeled") if background else ("curated",)
        first = stages[0].replace(sampling=drawn, train_on=sources)
        stages = tuple(s.replace(steps=times * STEPS[inputs], batch_size=16) for s in (first, *stages[1:]))
        stages = (stages[0], *(s.replace(start_from=t.name if continued else None) for t, s in zip(stages, stages[1:])))
        names = tuple(s.name for s in stages)
        return r.replace(n_folds=FOLDS, stages=stages, rounds=names if rounds else (), members=names[:1])

    return {
        "mel CNN": made("mel", rounds=2),
        "mel CNN, students go on from the teacher's weights": made("mel", rounds=1, continued=True),
        "mel CNN, twice the steps": made("mel", times=2),
        "mel CNN, every clip once": made("mel", sampler=False),
        "mel CNN, no background": made("mel", background=False),
        "mel CNN, pink noise down to -5 dB, for half of the clips": made(
            "mel", changes=[("augment.2.p", "0.5"), ("augment.2.low_db", "-5"), ("augment.2.high_db", "20")]
        ),
        "raw, 400 × 200": made("rows200"),
        "raw, 2 × 1000 × 80": made("rows80"),
        "hybrid": made("hybrid"),
    }


STEPS = {"mel": 200, "rows200": 120, "rows80": 120, "hybrid": 120}  # optimizer steps of 16 clips


def open_arm(work, data, name):
    from audiotag.data.competitions import load_competition
    from audiotag.train.run_folder import open_run

    recipe = arms()[name]
    slug = "".join(c if c.isalnum() else "-" for c in name).strip("-")
    stored = recipe.stored
    return open_run(
        work / slug, recipe, load_competition(data, "birdclef2024"), store=work / f"store-{stored.sample_rate}"
    )


def finished(work, name):
    from audiotag.train.run_folder import Run, is_finished

    folder = work / "".join(c if c.isalnum() else "-" for c in name).strip("-")
    return (folder / "recipe.json").is_file() and is_finished(Run(folder))


def train(work, data, name):
    "One arm, on one thread."
    import torch

    from audiotag.train.run_folder import run_stages

    torch.set_num_threads(1)
    run_stages(open_arm(work, data, name))


def backgrounds(freesound):
    "Waves of rain, sea and fire."
    import numpy as np
    import pandas as pd

    from audiotag.audio.io import read_audio

    table = pd.read_csv(freesound / "train_curated.csv")
    table = table[table.labels.isin(["Rain", "Sea_waves", "Fire_crackling"])].sort_values("fname")
    waves = {
        k: [read_audio(freesound / "train_curated" / f, sample_rate=RATE) for f in g.fname]
        for k, g in table.groupby("labels")
    }
    return {k: [o / max(1e-4, float(np.sqrt(np.mean(o**2)))) for o in v] for k, v in waves.items()}


def a_minute(noises, g):
    "One noise after the other, at a root mean square of .02."
    import numpy as np

    kind = list(noises)[g.integers(len(noises))]
    parts = []
    while sum(map(len, parts)) < SECONDS * RATE:
        parts.append(noises[kind][g.integers(len(noises[kind]))])
    return 0.02 * np.concatenate(parts)[: SECONDS * RATE].astype(np.float32)


def scape(clips, classes, noises, species, g):
    "(wave, truth (windows, classes)): six to ten calls of up to 4 s, at -3 to 12 dB, with each species as likely as any other."
    import numpy as np

    from audiotag.audio.io import read_audio, trim_silence

    wave, truth = a_minute(noises, g), np.zeros((SECONDS // 5, len(classes)), bool)
    there = [c for c in classes if (clips.labels.map(lambda o: c in o)).any()]
    here = list(g.permutation(there)[:species])
    for _ in range(g.integers(6, 11)):
        c = here[g.integers(len(here))]
        mine = clips[clips.labels.map(lambda o: c in o)]
        call = trim_silence(read_audio(mine.path.iloc[g.integers(len(mine))], sample_rate=RATE), 25.0)[: 4 * RATE]
        at = int(g.integers(SECONDS * RATE - len(call)))
        around = wave[at : at + len(call)]
        call = (
            call
            / max(1e-6, float(np.sqrt(np.mean(call**2))))
            * np.sqrt(np.mean(around**2))
            * 10 ** (g.uniform(-3, 12) / 20)
        )
        wave[at : at + len(call)] += call.astype(np.float32)
        for w in range(SECONDS // 5):
            overlap = min(at + len(call), (w + 1) * 5 * RATE) - max(at, w * 5 * RATE)
            truth[w, list(classes).index(c)] |= overlap >= min(0.5 * RATE, len(call) / 2)
    return wave / max(1.0, float(np.abs(wave).max())), truth


def make_scapes(work, run, freesound):
    "{kind: table of windows with path, fold, truth}; the sound files are written once."
    import numpy as np
    import pandas as pd
    import soundfile as sf

    from audiotag.core.seeding import rng

    noises, out = backgrounds(freesound), {}
    for kind, species in KINDS.items():
        rows = []
        for fold in range(FOLDS):
            clips = run.clips[run.clips.fold == fold].sort_values("clip_id")
            for i in range(SCAPES):
                path = work / "scapes" / f"{kind.replace(' ', '-')}-{fold}-{i}.wav"
                wave, truth = scape(clips, run.classes, noises, species, rng(0, kind, fold, i))
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    sf.write(path, wave, RATE, subtype="PCM_16")
                rows += [
                    dict(path=str(path), start_s=5.0 * w, end_s=5.0 * w + 5, fold=fold, group=path.stem, truth=t)
                    for w, t in enumerate(truth.astype(np.float32))
                ]
        out[kind] = pd.DataFrame(rows)
    return out


def hear(run, stage, table, views=None):
    "Out-of-fold probabilities (windows, classes) of a table of windows, heard as the kernel hears them."
    import numpy as np

    from audiotag.infer.recordings import load_features
    from audiotag.infer.recordings import plan_jobs
    from audiotag.infer.windows import score_clips

    windows = run.recipe.windows if views is None else run.recipe.windows.replace(views=views)
    fe, out = run.recipe.front_end, np.zeros((len(table), len(run.classes)), np.float32)
    for fold in sorted(set(table.fold)):
        model = run.model(stage, fold)
        for path, mine in table[table.fold == fold].groupby("path"):
            jobs = plan_jobs(path, list(zip(mine.index, mine.start_s, mine.end_s)), fe, windows)
            seen = [o for job in jobs for o in load_features(job, fe, windows)]
            for row, p in score_clips([model], seen, windows, fill=fe.fill):
                out[row] = p[0]
    return out


def scores(work, run, name, stage, scapes):
    "{kind: (windows, classes)} of one stage, kept in the work folder."
    import numpy as np

    slug = "".join(c if c.isalnum() else "-" for c in name).strip("-")
    out = {}
    for kind, table in scapes.items():
        path = work / "scores" / f"{slug}-{stage}-{kind.replace(' ', '-')}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, hear(run, stage, table))
        out[kind] = np.load(path)
    return out


def gain(truth, p, base, group):
    "Gain in macro-AUC with its interval over recordings, as text."
    import numpy as np

    from audiotag.core.metrics import bootstrap_interval, macro_auc

    c = truth.shape[1]
    low, high = bootstrap_interval(
        lambda t, s: macro_auc(t, s[:, :c]) - macro_auc(t, s[:, c:]), truth, np.hstack([p, base]), groups=group, n=300
    )
    return f"{macro_auc(truth, p) - macro_auc(truth, base):+.3f} ({low:+.3f} … {high:+.3f})"


def network_table(runs, heard, scapes):
    import numpy as np
    import pandas as pd

    from audiotag.core.metrics import macro_auc

    base, rows = heard["mel CNN", "labelled"], {}
    for (name, stage), p in heard.items():
        run = runs[name]
        row = {
            "clips": next(v for k, v in run.scores(stage).items() if k.endswith("curated"))
            if stage != "mean"
            else np.nan
        }
        for kind, table in scapes.items():
            truth = np.stack(list(table.truth))
            row[kind] = macro_auc(truth, p[kind])
            row[f"gain, {kind}"] = "" if p is base else gain(truth, p[kind], base[kind], table.group.to_numpy())
        rows[
            "mel, hybrid, raw 625 × 128, mean 5 : 4 : 1"
            if stage == "mean"
            else name + ("" if stage == "labelled" else f", {stage}")
        ] = row
    return pd.DataFrame(rows).T.rename_axis("macro-AUC out of fold")


def mean_of_all(heard, scapes):
    "The entrants' ensembles are of networks that hear different things: 5 : 4 : 1 of mel, hybrid and raw."
    from audiotag.infer.ensemble import combine
    import numpy as np

    three = [heard["mel CNN", "labelled"], heard["hybrid", "labelled"], heard["raw, 625 × 128", "labelled"]]
    return {kind: combine(np.stack([o[kind] for o in three]), weights=[0.5, 0.4, 0.1]) for kind in scapes}


def step_tables(p, scapes):
    "{kind: what the tuner says}, with one family that cannot change the metric."
    import numpy as np

    from audiotag.infer.postprocess import FAMILIES, Power, tune

    families, out = {**FAMILIES, "sharpen": (Power(power=0.5), Power(power=2.0))}, {}
    for kind, table in scapes.items():
        table = table.assign(part=[int(o.rsplit("-", 1)[1]) % 5 for o in table.group])
        found = tune(
            p[kind],
            np.stack(list(table.truth)),
            table.group.to_numpy(),
            folds=table.part.to_numpy(),
            families=families,
            draws=300,
        )
        out[kind] = found.table.assign(
            gain=[
                f"{g:+.3f} ({a:+.3f} … {b:+.3f})"
                for g, a, b in zip(found.table.gain, found.table.low, found.table.high)
            ]
        ).drop(columns=["low", "high"])
    return out


def markdown(table, digits=3):
    cells = table.reset_index().map(lambda v: f"{v:.{digits}f}" if isinstance(v, float) else str(v))
    lines = [list(cells.columns), ["---"] * cells.shape[1], *cells.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines).replace("nan", "–")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument(
        "--work",
        type=Path,
        default=Path("runs/soundscape"),
        help="run folders; kept, so that it can go on (default: runs/soundscape)",
    )
    ap.add_argument(
        "--jobs", type=int, default=os.cpu_count(), help="arms that are trained side by side, one thread each"
    )
    ap.add_argument("--only", default="", help="arms whose name contains this")
    ap.add_argument("--finished", action="store_true", help="train nothing: tables of the arms that are finished")
    ap.add_argument("--save", action="store_true", help="write tests/bench/results/soundscape.md")
    o = ap.parse_args()
    import numpy as np
    from tests.conftest import sample_folder
    from joblib import Parallel, delayed

    from audiotag.train.settings import compare_rounds

    (data, reason), (freesound, more) = sample_folder("soundscape"), sample_folder("freesound")
    if data is None or freesound is None:
        raise SystemExit(f"skipped: {reason or more}")
    names = [n for n in arms() if o.only in n and not (o.finished and not finished(o.work, n))]
    for n in dict.fromkeys([names[0], *(n for n in names if "raw, 6" in n or "raw, 2" in n)]):
        open_arm(o.work, data, n)  # stores are made once, before arms share them
    Parallel(n_jobs=o.jobs)(delayed(train)(o.work, data, n) for n in names if not o.finished)
    runs = {n: open_arm(o.work, data, n) for n in names}
    scapes = make_scapes(o.work, runs[names[0]], freesound)
    heard = {(n, s.name): scores(o.work, run, n, s.name, scapes) for n, run in runs.items() for s in run.recipe.stages}
    if all((n, "labelled") in heard for n in ("mel CNN", "hybrid", "raw, 625 × 128")):
        heard["mel CNN", "mean"] = mean_of_all(heard, scapes)
    first = runs[names[0]]
    from audiotag.infer.windows import View

    plain = {kind: hear(first, "labelled", table, (View(),)) for kind, table in scapes.items()}
    truth = {kind: np.stack(list(t.truth)) for kind, t in scapes.items()}
    tta = {
        kind: gain(truth[kind], heard["mel CNN", "labelled"][kind], plain[kind], t.group.to_numpy())
        for kind, t in scapes.items()
    }
    from audiotag.infer.postprocess import apply_steps, steps_named

    own = steps_named(first.recipe.after)
    sealed = {
        kind: gain(truth[kind], apply_steps(own, p, t.group), p, t.group.to_numpy())
        for kind, t in scapes.items()
        for p in [heard["mel CNN", "labelled"][kind]]
    }
    steps = step_tables(heard["mel CNN", "labelled"], scapes)
    rounds = compare_rounds(first.rounds()).table
    n = {k: int(len(t)) for k, t in scapes.items()}
    text = (
        f"""# What pays on soundscapes?

`python -m tests.bench.soundscape --save`, {datetime.date.today()}, {os.cpu_count()} cores of {platform.processor() or platform.machine()}, networks 16 channels wide, those of the wave 8.
`soundscape` sample set, {FOLDS} folds, batches of 16, steps a stage: {STEPS}.

**What it is measured on.** The answers of the test are not here, and neither are those of the unlabeled soundscapes. So macro-AUC is taken
(a) of whole clips, out of fold, and (b) of pseudo-soundscapes: {SCAPES} minutes a fold and kind ({n["few species"]} windows) of rain, sea or fire
recordings from the `freesound` set, with 6 to 10 calls of up to 4 s at -3 to 12 dB, cut out of clips of the fold. In *few species* a recording has
three species, in *any species* as many as come. Intervals are over recordings; there is one seed, and what another one would change is not in them. What (b) cannot say: whether the calls, their density and the
places of the true test are like these. And the networks have heard the *unlabeled* soundscapes, whose backgrounds are other recordings.

## Networks, the sampler, a round

Gains are against the first line. `round1` and `round2` are taught by the stage before them. Students that go on from
their teacher's weights have had twice the steps: compare them with that line.

{markdown(network_table(runs, heard, scapes))}

The stop rule sees the clips alone:

{markdown(rounds)}

TTA by half a window, of the first line: {", ".join(f"{k} {v}" for k, v in tta.items())}.

## Steps of post-processing

The steps that the recipe seals ({", ".join(first.recipe.after)}), of the first line: {", ".join(f"{k} {v}" for k, v in sealed.items())}.

The tuner on the first line's scores: each family chosen on four fifths of the recordings, and judged on the other.

"""
        + "\n\n".join(f"*{kind}*\n\n{markdown(t)}" for kind, t in steps.items())
        + "\n"
    )
    print(text)
    if o.save:
        (Path(__file__).parent / "results" / "soundscape.md").write_text(text)


if __name__ == "__main__":
    main()
