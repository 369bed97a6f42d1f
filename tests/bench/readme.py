"""The scores in the README, by the commands that it documents: each is run on a sample set, what it prints is kept in
tests/bench/results/readme.json, and the table is written between two markers of nbs/index.ipynb.

    python -m tests.bench.readme                            # all of it, hours on two cores
    python -m tests.bench.readme --only baseline            # the random forests, a minute each
    python -m tests.bench.readme --only train universal2020
    python -m tests.bench.readme --only table               # measures nothing
    python -m tests.bench.readme --only train --runs DIR    # keeps the runs there, and continues those that it finds

The sample sets are those of tests/conftest.py.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from datetime import date
from pathlib import Path

from tests.conftest import REPO, sample_folder
from tests.readme import readme
from tests.tiny import AUDIOTAG

RESULTS = REPO / "tests" / "bench" / "results" / "readme.json"
BEGIN, END = "<!-- scores: python -m tests.bench.readme -->", "<!-- end of the scores -->"
SYSTEMS = {  # recipe -> sample set, entry, the entrant's score, what ours is
    "freesound2019": (
        "freesound",
        "System 1: Freesound 2019, 8th, four-stage warm-up",
        ".879 lwlrap, curated, out of fold",
        "lwlrap",
    ),
    "freesound2019_waveform": (
        "freesound",
        "System 2: Freesound 2019, 2nd, waveform and global features",
        ".898 lwlrap, out of fold",
        "lwlrap",
    ),
    "rainforest2021": (
        "rainforest",
        "System 3: rainforest species (RFCX), sound event detection",
        "–",
        "lwlrap of recordings",
    ),
    "universal2020": ("speech", "System 4: CCF 2020, universal classifier", ".976 accuracy", "accuracy"),
    "birdclef2024": (
        "soundscape",
        "System 5: BirdCLEF 2024, 4th and 5th, soundscapes",
        ".747 public, .688 private AUC",
        "macro AUC of clips",
    ),
}
PATTERNS = {"baseline": r" out of fold, forest on [^:]+: ([0-9.]+)", "train": r"^networks: ([0-9.]+)"}
CHANGED = "2026-11-29"  # since then folds keep near-duplicates together
OLD = (
    " The figures dated before {changed} ({names}) were measured before near-duplicates were kept in one fold, so they are "
    "optimistic. They will be measured again."
)


def printed(command: str, recipe: str, folder) -> float:
    "The best score that `audiotag baseline`, or `audiotag train`, prints for a recipe's sample set."
    data, reason = sample_folder(SYSTEMS[recipe][0])
    if data is None:
        raise SystemExit(reason)
    words = ["baseline", "--data", data, "--out", Path(folder) / "baseline.csv"]
    if command == "train":
        words = ["train", "--recipe", recipe, "--scale", "small", "--data", data, "--run", Path(folder) / "run"]
    done = subprocess.run([*AUDIOTAG, *map(str, words)], stdout=subprocess.PIPE, text=True, check=True)
    return max(map(float, re.findall(PATTERNS[command], done.stdout, re.M)))


def measure(command: str, recipes, runs=None):
    "Run a command for each recipe, and note what it printed and when; recipes of one sample set share a forest."
    known, results = {}, json.loads(RESULTS.read_text())
    for recipe in recipes:
        key = SYSTEMS[recipe][0] if command == "baseline" else recipe
        if key not in known:
            with tempfile.TemporaryDirectory() if runs is None else nullcontext(Path(runs) / recipe) as folder:
                known[key] = {"value": printed(command, recipe, folder), "measured": date.today().isoformat()}
        results.setdefault(recipe, {})[command] = known[key]
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def _score(found: dict, what: str = "") -> str:
    return f"{found['value']:.3f}".removeprefix("0") + (f" {what}" if what else "") + f" ({found['measured']})"


def scores_text() -> str:
    "The table, from the marker at its beginning to the one at its end."
    results = json.loads(RESULTS.read_text())
    lines = [
        "| recipe | entry | their score | `audiotag train --scale small`, out of fold | `audiotag baseline` |",
        "|---|---|---|---|---|",
    ]
    for recipe, (_, entry, theirs, what) in SYSTEMS.items():
        found = results[recipe]
        ours = f"{_score(found['train'], what)} | {_score(found['baseline'])}"
        lines.append(f"| `{recipe}` | {entry} | {theirs} | {ours} |")
    about = (
        "The entrants' scores are on the full competitions. Ours are on the small sets of real recordings that the "
        "project is developed with, so compare the systems with the random forest and with each other, not with the "
        "entrants."
    )
    old = [name for name, found in results.items() if any(found[command]["measured"] < CHANGED for command in PATTERNS)]
    if old:
        about += OLD.format(changed=CHANGED, names=", ".join(f"`{name}`" for name in old))
    return "\n".join([BEGIN, "", *lines, "", about, "", END])


def write_table():
    "Put the table into nbs/index.ipynb, and write README.md."
    path = REPO / "nbs" / "index.ipynb"
    nb, n = json.loads(path.read_text(encoding="utf-8")), 0
    for cell in nb["cells"]:
        text = "".join(cell["source"])
        if BEGIN in text:
            before, _, rest = text.partition(BEGIN)
            cell["source"] = (before + scores_text() + rest.partition(END)[2]).splitlines(True)
            n += 1
    assert n == 1, "nbs/index.ipynb has no markers"
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
    (REPO / "README.md").write_text(readme(), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["baseline", "train", "table"])
    parser.add_argument("--runs", help="keep the runs in this folder, and continue those that are there")
    parser.add_argument("recipes", nargs="*", metavar="RECIPE", help=f"of {', '.join(SYSTEMS)}; all by default")
    args = parser.parse_args()
    if unknown := set(args.recipes) - set(SYSTEMS):
        sys.exit(f"there is no {', '.join(unknown)} in the table")
    for command in PATTERNS:
        if args.only in (None, command):
            measure(command, args.recipes or SYSTEMS, args.runs)
    write_table()
