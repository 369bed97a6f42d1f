"""What does each step after the network add on soundscapes? `python -m tests.bench.after_network [--save]`

Minutes are mixed from the clips of `soundscape`, three folds, and named as the competition names them, with a site and a time. A random
forest on windows that are mixed from the other folds' clips scores those of a fold. It takes some two minutes of processor time.
"""

import argparse
import datetime
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

FOLDS, RATE, DRAWS = 3, 16000, 200
HEARD, MINUTES = 24, 20  # recordings that a forest is trained on; those of each fold and world that are scored
SITES = 6
WORLDS = {  # what a recording's site and hour have to do with its species
    "without a pattern": "nothing",
    "sites and hours": "each site has half of the species, and each species calls for twelve hours of the day",
}


def habitats(classes):
    "(species of each site, first hour of each species)."
    from audiotag.core.seeding import rng

    g = rng(0, "habitats")
    half = len(classes) // 2
    return [set(g.permutation(classes)[:half]) for _ in range(SITES)], dict(
        zip(classes, g.integers(24, size=len(classes)))
    )


def mixed(clips, background, classes, world, key):
    "(name, features of each window, truth) of one recording."
    import numpy as np

    from audiotag.audio.io import read_audio
    from audiotag.core.seeding import rng
    from audiotag.data.scapes import MixedScapes, mix_scape, noise_like
    from audiotag.train.baseline import baseline_front_end, clip_statistics

    g, settings = rng(0, world, *key), MixedScapes()
    site, hour, month = g.integers(SITES), g.integers(24), g.integers(1, 13)
    if world == "sites and hours":
        lives, begins = habitats(classes)
        here = {c for c in lives[site] if (hour - begins[c]) % 24 < 12} or lives[site]
        clips = clips[[bool(set(labels) & here) for labels in clips.labels]]
        clips = clips.assign(labels=[tuple(c for c in labels if c in here) for labels in clips.labels])
    path = background[g.integers(len(background))]
    noise = noise_like(read_audio(path, sample_rate=RATE), round(settings.seconds * RATE), g)
    wave, truth, _ = mix_scape(clips, classes, settings, noise, sample_rate=RATE, g=g)
    front_end = baseline_front_end(RATE)
    cuts = wave[: len(truth) * 5 * RATE].reshape(len(truth), -1)
    name = f"{'-'.join(map(str, key))}_S{site:02d}_2025{month:02d}15_{hour:02d}0000"
    return name, np.stack([clip_statistics(front_end(cut)) for cut in cuts]), truth


def scored_worlds(data):
    "{world: (scores, truth, names, folds)} and the classes' taxonomy."
    import numpy as np

    from audiotag.core.progress import say
    from audiotag.data.competitions import load_competition, read_taxonomy
    from audiotag.data.folds import make_folds
    from audiotag.data.scapes import MixedScapes, background_files
    from audiotag.train.baseline import forest_scores

    comp = load_competition(data, "birdclef2024")
    clips, parts = make_folds(comp.clips, n_folds=FOLDS, seed=0), {w: [] for w in WORLDS}
    background = background_files(MixedScapes(), clips)
    curated = clips[clips.source == "curated"]
    for k in range(FOLDS):
        rest, mine = curated[curated.fold != k], curated[curated.fold == k]
        heard = [mixed(rest, background, comp.classes, "without a pattern", ("heard", k, i)) for i in range(HEARD)]
        asked = {w: [mixed(mine, background, comp.classes, w, ("asked", k, i)) for i in range(MINUTES)] for w in WORLDS}
        x, y = (np.concatenate([o[j] for o in heard]) for j in (1, 2))
        new = np.concatenate([x for w in WORLDS for _, x, _ in asked[w]])
        p = np.split(forest_scores(x, y.astype(int), new, trees=200, seed=k), len(WORLDS))
        for w, scores in zip(WORLDS, p):
            names, truth = [n for n, _, t in asked[w] for _ in t], np.concatenate([t for _, _, t in asked[w]])
            parts[w].append((scores, truth, np.array(names), np.full(len(truth), k)))
        say(f"fold {k} (of {FOLDS})")
    return {w: tuple(map(np.concatenate, zip(*part))) for w, part in parts.items()}, read_taxonomy(clips, comp.classes)


def families():
    "What is tried: the steps of the site, the time, the relatives, the recording's best windows and the neighbors."
    from audiotag.infer.postprocess import FAMILIES, LEARNED, FileMax

    highest = {f"mean of the highest {k}": tuple(FileMax(power=o, top=k) for o in (0.4, 1.0)) for k in (1, 2, 3)}
    return LEARNED | {k: FAMILIES[k] for k in ("delta smooth", "smooth")} | highest


def table_of(world, taxonomy):
    "(rows of the steps alone, macro-AUC before, after all together, words of what was kept)."
    from audiotag.core.metrics import macro_auc
    from audiotag.infer.postprocess import step_word, tune

    p, truth, names, folds = world
    options, rows = dict(folds=folds, taxonomy=taxonomy, draws=DRAWS), {}
    for name, family in families().items():
        found = tune(p, truth, names, families={name: family}, **options).table.iloc[0]
        rows[name] = (f"{found.gain:+.3f} ({found.low:+.3f} … {found.high:+.3f})", found.folds, found.note)
    together = tune(p, truth, names, families=families(), **options)
    words = " ".join(step_word(s) for s in together.steps) or "none"
    return rows, macro_auc(truth, p), macro_auc(truth, together.scores), words


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--save", action="store_true", help="write tests/bench/results/after_network.md")
    o = ap.parse_args()
    from tests.conftest import sample_folder

    data, reason = sample_folder("soundscape")
    if data is None:
        raise SystemExit(f"skipped: {reason}")
    worlds, taxonomy = scored_worlds(data)
    text = f"""# What do the steps after the network add on soundscapes?

`python -m tests.bench.after_network --save`, {datetime.date.today()}. `soundscape` sample set, {FOLDS} folds.

**What it is measured on.** The labeled clips of the set have neither a site nor a time, and its soundscapes no labels; the sites and times in their names
are invented. So minutes are mixed from held-out clips: {FOLDS * MINUTES} recordings a world, {FOLDS * MINUTES * 12} windows, {SITES} sites. A random forest, trained on
{HEARD} minutes that are mixed from the other folds' clips, scores them. Each step is chosen, and learns, without the fold that it is judged on; intervals are over
recordings, of one seed. The second world is *made* so that priors can help: it shows that they find what is there, and the first that they find nothing where
nothing is. How strong a real pattern is, neither can say.
"""
    for w, world in worlds.items():
        rows, before, after, words = table_of(world, taxonomy)
        lines = "\n".join(f"| {name} | {' | '.join(row)} |" for name, row in rows.items())
        text += f"""
## {w[0].upper() + w[1:]}: {WORLDS[w]}

Macro-AUC of the forest {before:.3f}; with all steps that gained, one after the other, {after:.3f}: `{words}`.

| step, alone | gain (95 %) | chosen in folds | |
|---|---|---|---|
{lines}
"""
    print(text)
    if o.save:
        (Path(__file__).parent / "results" / "after_network.md").write_text(text)


if __name__ == "__main__":
    main()
