"""Every bench at a size that ends within 20 minutes on two cores: `python -m tests.bench.all [--save] [--only NAME …]`.

Each bench runs in a process of its own, one after the other, and prints what it prints by itself; the page has all of it below a list of
what was missed. A bench that fails, or is not done in its time, is on that list. `--save` writes tests/bench/results/all.md.
"""

import argparse
import datetime
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MINUTES = {  # bench, with its words at this size -> after how many minutes it is given up
    "startup --rounds 2": 4,
    "features --rounds 3 --clips 48": 3,
    "training": 3,
    "store_formats --clips 400 --reads 2000": 2,
    "memory --clips 20000": 3,
    "promises 10": 3,
    "kernel --tiny --rounds 1 --clips 24 --minutes 4 --threads 2": 5,
    "gpu": 10,
}
ON_CPU = "gpu --device cpu --tiny"  # where there is no GPU
# they train for minutes to hours, to compare scores or to see where the time of one run goes
LONG = {"warmup", "rainforest", "soundscape", "after_network", "readme", "training_time"}


def missed_in(text: str) -> list:
    "The targets that a bench says it missed: a line `Missed: a; b`, or `… (MISSED)` in a list."
    found = [
        o.strip(" .")
        for line in re.findall(r"^Missed: (.*?)\.?(?: [0-9]+ s in all\.)?$", text, re.M)
        for o in line.split("; ")
    ]
    return found + [o.strip() for o in re.findall(r"(?:^Wanted[^:]*: |; )([^;\n]*) \(MISSED\)", text, re.M)]


def run_bench(words: str, minutes: float, folder) -> tuple:  # what it printed, what was missed, seconds
    "Run one bench; a failure is something that was missed."
    began, env = time.monotonic(), {**os.environ, "TMPDIR": str(folder)}
    command = [sys.executable, "-m", *f"tests.bench.{words}".split()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60 * minutes)
        text, missed = done.stdout, missed_in(done.stdout)
        if done.returncode:
            missed.append(f"it failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    except subprocess.TimeoutExpired as e:
        text = (e.stdout or b"").decode() if isinstance(e.stdout, bytes) else e.stdout or ""
        missed = [*missed_in(text), f"not done within {minutes} minutes"]
    return text, missed, time.monotonic() - began


def page(results: dict, began: float) -> str:
    "The page: what was missed, then what each bench printed."
    lines = [
        "# All benches, small\n",
        f"`python -m tests.bench.all`, {datetime.date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {(time.monotonic() - began) / 60:.0f} minutes in all. Ratios of one bench are of one run and may be "
        "compared; the full sizes stand in the other files of this folder.\n",
        "## Missed\n",
    ]
    missed = [f"- {words.split()[0]}: {what}" for words, (_, found, _) in results.items() for what in found]
    lines += missed or ["Nothing."]
    for words, (text, _, seconds) in results.items():
        text = re.sub(r"^(#+) ", r"##\1 ", text.strip(), flags=re.M)
        lines.append(f"\n## `python -m tests.bench.{words}`, {seconds:.0f} s\n\n{text}")
    return "\n".join(lines) + "\n"


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--save", action="store_true", help="write tests/bench/results/all.md")
    parse.add_argument("--only", nargs="+", default=[], help="names of benches")
    args = parse.parse_args()
    import torch

    began, results = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        for words, minutes in MINUTES.items():
            if args.only and words.split()[0] not in args.only:
                continue
            if words == "gpu" and not torch.cuda.is_available():
                words, minutes = ON_CPU, 3
            print(f"{words} …", file=sys.stderr, flush=True)
            results[words] = run_bench(words, minutes, folder)
    text = page(results, began)
    print(text)
    if args.save:
        (Path(__file__).parent / "results" / "all.md").write_text(text)


if __name__ == "__main__":
    main()
