"""How long does a user wait before something happens? `python -m tests.bench.startup [--save]`, a minute or two.

Wall and processor seconds of commands from the start of their process, on a synthesized competition with a trained bundle; beside them
what importing the libraries alone costs, which no command that needs them can be below. The least of interleaved rounds, after one that
is not counted. What is wanted is compared with the processor seconds, which are nearly those of the clock on a machine that does nothing
else. Modules are compiled, as pip leaves them: without that, imports take about twice as long.
"""

import argparse
import datetime
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.tiny import AUDIOTAG, train_words

WANTED = {  # processor seconds
    "audiotag --help": 0.3,
    "audiotag doctor": 1,
    "audiotag recipes": 0.3,
    "opening a bundle, torch loaded for it": 1,
    "audiotag infer: the first valid file": 1,
    "audiotag train: its first epoch, features made": 10,
}
OPEN = """
import sys, time
from audiotag.infer.bundle import open_bundle
began, used = time.perf_counter(), time.process_time()
open_bundle(sys.argv[1])
print(time.perf_counter() - began, time.process_time() - used)
"""


def ended(words, **kwargs) -> tuple:  # wall seconds, processor seconds
    "Run a command to its end."
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(list(map(str, words)), check=True, capture_output=True, **kwargs)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def until(words, happened) -> tuple:  # wall seconds, processor seconds
    "Run a command until `happened(line)` of what it prints, or of nothing every millisecond; then end it."
    began = time.perf_counter()
    p = subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        while not happened(p):
            if p.poll() is not None:
                raise SystemExit(f"{' '.join(map(str, words))} ended before it was done: {p.stderr.read()}")
        with open(f"/proc/{p.pid}/stat") as f:
            user, system = map(int, f.read().rpartition(") ")[2].split()[11:13])
        return time.perf_counter() - began, (user + system) / os.sysconf("SC_CLK_TCK")
    finally:
        p.kill()
        p.communicate()


def first_epoch(p) -> bool:
    line = p.stderr.readline()
    return ", epoch 1/" in line


def is_there(path):
    def happened(p):
        time.sleep(0.001)
        return path.exists()

    return happened


def prepared(folder):
    "A competition, its features, a run and a bundle."
    audiotag = AUDIOTAG[0]
    ended([audiotag, "synth", folder / "data"])
    ended([audiotag, *train_words(folder / "data", folder / "run"), "--store", folder / "store"])
    ended([audiotag, "pack", "weights", folder / "run", folder / "bundle"])


def measure(folder, round_) -> dict:  # name -> (wall, processor seconds)
    "Every row once."
    audiotag, out, data = AUDIOTAG[0], folder / f"submission-{round_}.csv", folder / "data"
    python = [sys.executable, "-c"]
    run = folder / f"again-{round_}"
    train = [audiotag, *train_words(data, run), "--store", folder / "store"]
    infer = [audiotag, "infer", "--bundle", folder / "bundle", "--data", data, "--out", out]
    opened = subprocess.run([*python, OPEN, folder / "bundle"], check=True, capture_output=True, text=True).stdout
    return {
        "audiotag --help": ended([audiotag, "--help"]),
        "audiotag doctor": ended([audiotag, "doctor", data / "sample_submission.csv", "--data", data]),
        "audiotag recipes": ended([audiotag, "recipes"]),
        "audiotag recipe": ended([audiotag, "recipe", "--recipe", "freesound2019"]),
        "audiotag runs": ended([audiotag, "runs", folder / "run"]),
        "opening a bundle, torch loaded for it": tuple(map(float, opened.split())),
        "audiotag infer: the first valid file": until(infer, is_there(out)),
        "audiotag train: its first epoch, features made": until(train, first_epoch),
        "import pandas": ended([*python, "import pandas"]),
        "import torch": ended([*python, "import torch"]),
        "import fastai.learner": ended([*python, "import fastai.learner"]),
    }


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--save", action="store_true", help="write tests/bench/results/startup.md")
    parse.add_argument("--rounds", type=int, default=3)
    args = parse.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        if sys.dont_write_bytecode:  # then those who made this environment may have compiled nothing
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
            os.environ["PYTHONPYCACHEPREFIX"] = f"{folder}/compiled"
        prepared(Path(folder))
        _, *rounds = [measure(Path(folder), i) for i in range(1 + args.rounds)]
    lines = [
        "# Before something happens\n",
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f} at the end, Python {platform.python_version()}; the least of {args.rounds} rounds.\n",
        "| | wall, s | processor, s | wanted | |",
        "|---|---|---|---|---|",
    ]
    missed = []
    for name in rounds[0]:
        wall, cpu = (min(r[name][i] for r in rounds) for i in (0, 1))
        want, verdict = WANTED.get(name), ""
        if want:
            verdict = "met" if cpu <= want else "MISSED"
        if verdict == "MISSED":
            missed.append(f"{name} ({cpu:.2f} s of {want})")
        lines.append(f"| {name} | {wall:.2f} | {cpu:.2f} | {want or ''} | {verdict} |")
    lines.append(f"\n{'Missed: ' + '; '.join(missed) if missed else 'Every time that was wanted is met.'}")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.save:
        (Path(__file__).parent / "results" / "startup.md").write_text(text)


if __name__ == "__main__":
    main()
