"""Do the printed intervals hold? 200 invented competitions with planted duplicates and useless members; for each, the score and the
gain that `ensemble_table` prints, and what the chosen ensemble does on a large test set of new recordings.

    python -m tests.bench.promises [N] [--save]     # N competitions, 200 by default; writes tests/bench/results/promises.md
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from audiotag.core.metrics import lwlrap
from audiotag.core.seeding import rng
from audiotag.data.competitions import clip_table, targets
from audiotag.data.folds import assign_folds
from audiotag.infer.ensemble import BEST, METHODS, FittedWeights, Stack, ensemble_table

CLASSES = tuple("abcdef")
FOLDS = 5
FEW = FittedWeights(draws=2, rounds=6)  # smaller than the defaults, as there are 200 competitions
QUICK = {
    **METHODS,
    "weighted": FEW,
    "weighted geometric": FEW.replace(how="geometric"),
    "weighted rank": FEW.replace(how="rank"),
    "stack": Stack(epochs=2, lr=1e-2),
    "weighted stack": Stack(epochs=2, lr=1e-2, mean=FEW),
}


class World:
    "Recordings of six classes, as many of each: a clip is its class, plus what its recording is like, plus a little of its own."

    def __init__(self, seed):
        self.g = rng(seed, "promises")
        self.centers = self.g.normal(0, self.g.uniform(0.7, 1.1), (len(CLASSES), 10))

    def clips(self, n_recordings, copies):
        "(features, labels as indicators, recording of each clip); a recording has 1 to `copies` clips."
        labels = np.eye(len(CLASSES), dtype=bool)[self.g.permutation(n_recordings) % len(CLASSES)]
        labels |= self.g.random(labels.shape) < 0.04
        recording = np.repeat(np.arange(n_recordings), self.g.integers(1, copies + 1, n_recordings))
        like = labels @ self.centers + self.g.normal(0, 1.6, (n_recordings, 10))
        return like[recording] + self.g.normal(0, 0.3, (len(recording), 10)), labels[recording], recording


def neighbors(x, y, new, columns, k):
    "Probabilities by the k nearest training clips: a member that remembers recordings."
    distance = ((new[:, None, columns] - x[None][:, :, columns]) ** 2).sum(-1)
    near = np.argpartition(distance, k, axis=1)[:, :k]
    weight = 1 / (0.05 + np.take_along_axis(distance, near, 1))
    return 0.02 + 0.96 * np.einsum("nk,nkc->nc", weight, y[near]) / weight.sum(1, keepdims=True)


def linear(x, y, new, columns, _):
    "Probabilities by ridge regression."
    a = np.c_[x[:, columns], np.ones(len(x))]
    w = np.linalg.solve(a.T @ a + 3 * np.eye(a.shape[1]), a.T @ (y - 0.2))
    return 1 / (1 + np.exp(-4 * (np.c_[new[:, columns], np.ones(len(new))] @ w)))


def members_of(g):
    "Name -> (method, its features, k): two that are good, two that are weaker, and three that know nothing."

    def some(n):
        return np.sort(g.choice(10, n, replace=False))

    found = {"near": (neighbors, some(8), 3), "linear": (linear, some(8), 0)}
    found |= {"near, less": (neighbors, some(5), 5), "linear, less": (linear, some(5), 0)}
    return found | {f"useless {i}": (None, None, i) for i in range(3)}


def predict(member, x, y, new, g):
    method, columns, k = member
    return g.uniform(0.02, 0.98, (len(new), y.shape[1])) if method is None else method(x, y, new, columns, k)


def competition(seed, *, grouped=True, n_test=1500, draws=100) -> dict:
    """What is promised and what is true of one competition. Promise: `ensemble_table`. Truth: the ensemble that is best by the table, fitted to all
    out-of-fold scores, over the members of each fold, on new recordings; the mean over folds."""
    world = World(seed)
    x, y, recording = world.clips(90, 4)
    new, truth, _ = world.clips(n_test, 1)
    ids = [f"{i:04d}" for i in range(len(x))]
    labels = [tuple(c for c, has in zip(CLASSES, row) if has) for row in y]
    clips = clip_table(
        ids, path=ids, labels=labels, source="curated", group=[f"r{i}" for i in recording] if grouped else None
    )
    folds = assign_folds(clips, n_folds=FOLDS, seed=seed, draws=2).fold.to_numpy()
    members, g = members_of(world.g), world.g
    oof = {name: np.empty(y.shape) for name in members}
    test = {name: [] for name in members}
    for k in range(FOLDS):
        rest = folds != k
        for name, member in members.items():
            oof[name][~rest] = predict(member, x[rest], y[rest], x[~rest], g)
            test[name].append(predict(member, x[rest], y[rest], new, g))
    table = ensemble_table(
        oof,
        targets(clips, CLASSES),
        folds,
        methods=QUICK,
        groups=clips.group.to_numpy(),
        draws=draws,
        intervals=[BEST],
        seed=seed,
    )
    way, best_member = table.loc[list(QUICK), "lwlrap"].idxmax(), table.loc[list(members), "lwlrap"].idxmax()
    combiner = QUICK[way].fit(np.stack(list(oof.values())), y, folds, seed=seed)
    by_fold = [lwlrap(truth, combiner.apply(np.stack([test[m][k] for m in members]))) for k in range(FOLDS)]
    score, member = np.mean(by_fold), np.mean([lwlrap(truth, p) for p in test[best_member]])
    return {
        "way": way,
        "truth": score,
        "true gain": score - member,
        "won": table.loc[way, "lwlrap"],
        "won gain": table.loc[way, "gain"],
        **table.loc[BEST].to_dict(),
    }


def coverage(found: pd.DataFrame) -> pd.DataFrame:
    "Per promise: how often the 95 % interval holds the truth, how often the truth is below it, and how much is promised too much."
    rows = {}
    for label, value, truth, (low, high) in (
        ("score", "lwlrap", "truth", ("low", "high")),
        ("gain over the best member", "gain", "true gain", ("gain low", "gain high")),
        ("score of the row that won, as before", "won", "truth", ("low", "high")),
        ("gain of the row that won, as before", "won gain", "true gain", ("gain low", "gain high")),
    ):
        shift = found[value] - found[low.replace("low", "").strip() or "lwlrap"]  # the same width around another number
        t, below, above = found[truth], found[low] + shift, found[high] + shift
        too_much = found[value] - t
        rows[label] = {
            "holds": ((below <= t) & (t <= above)).mean(),
            "truth below": (t < below).mean(),
            "promised too much": too_much.mean(),
            "± (standard error)": too_much.std() / np.sqrt(len(found)),
            "half width": ((above - below) / 2).mean(),
        }
    return pd.DataFrame(rows).T.rename_axis("promise")


INTRO = """# Do the printed intervals hold?

Made by `python -m tests.bench.promises`: {n} invented competitions of 90 recordings in 1 to 4 copies, four members that remember recordings or not, three
that know nothing, nine methods to choose from, five folds. The truth is the score of the chosen ensemble on 1500 new recordings, as the mean over the folds' members.
The printed interval is the bootstrap over groups, widened by √(1 + K/(K−1)) for K folds (Nadeau and Bengio 2003). Without that it would hold: {plain}.

"""


def as_without_widening(found: pd.DataFrame) -> pd.DataFrame:
    "The same table with the intervals of the bootstrap alone."
    wider, found = np.sqrt(1 + FOLDS / (FOLDS - 1)), found.copy()
    for value, limits in (("lwlrap", ("low", "high")), ("gain", ("gain low", "gain high"))):
        for limit in limits:
            found[limit] = found[value] + (found[limit] - found[value]) / wider
    return found


def main(n=200) -> str:
    text = ""
    for grouped in (True, False):
        found = pd.DataFrame([competition(seed, grouped=grouped) for seed in range(n if grouped else n // 4)])
        if grouped:
            plain = coverage(as_without_widening(found)).holds.iloc[:2]
            text = INTRO.format(n=n, plain=", ".join(f"{name} {share:.1%}" for name, share in plain.items()))
        name = "Clips of one recording in one fold" if grouped else "Without groups, as before"
        text += f"## {name}: {len(found)} competitions\n\n{coverage(found).round(3).to_markdown()}\n\n"
        print(text, flush=True)
    return text


if __name__ == "__main__":
    numbers = [int(w) for w in sys.argv[1:] if w != "--save"]
    pages = main(*numbers)
    if "--save" in sys.argv:
        (Path(__file__).parent / "results" / "promises.md").write_text(pages)
