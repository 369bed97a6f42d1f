"""Every bench at a size that ends within 20 minutes on two cores: `python -m tests.bench.all [--save] [--only NAME …]`.

Each bench runs in a process of its own, one after the other, and prints what it prints by itself; the page has all of it below a list of
what was missed. A bench that fails, or needs more processor time than it is given, is on that list: wall time would give up all of them on a
machine that does something else besides. `--save` writes tests/bench/results/all.md.
"""

import argparse
import datetime
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MINUTES = {  # bench, with its words at this size -> after how many minutes of processor time it is given up
    "store_formats --clips 400 --reads 2000": 1,
    "startup --rounds 1": 4,
    "scoring --minutes 1": 3,
    "features --rounds 2 --clips 32": 3,
    "training --rounds 1": 5,
    "promises 4": 2,
    "memory --clips 20000": 3,
    "kernel --tiny --rounds 1 --clips 24 --minutes 2 --threads 2": 6,
    "gpu": 10,
}
ON_CPU = "gpu --device cpu --tiny"  # where there is no GPU
# they train for minutes to hours, to compare scores or to see where the time of one run goes
LONG = {"warmup", "rainforest", "soundscape", "after_network", "wins", "readme", "training_time"}


def missed_in(text: str) -> list:
    "The targets that a bench says it missed: a line `Missed: a; b`, or `… (MISSED)` in a list."
    found = [
        o.strip(" .")
        for line in re.findall(r"^Missed: (.*?)\.?(?: [0-9]+ s in all\.)?$", text, re.M)
        for o in line.split("; ")
    ]
    return found + [o.strip() for o in re.findall(r"(?:^Wanted[^:]*: |; )([^;\n]*) \(MISSED\)", text, re.M)]


def processor_seconds(session: int) -> float:
    "What the processes of a session have used, with those that have ended."
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(") ")[2].split()
        except OSError:  # it has ended
            continue
        if int(fields[3]) == session:
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def run_bench(
    words: str, minutes: float, folder
) -> tuple:  # what it printed, what was missed, wall and processor seconds
    "Run one bench; a failure is something that was missed."
    began, env = time.monotonic(), {**os.environ, "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    command, used = [sys.executable, "-m", *f"tests.bench.{words}".split()], 0.0
    with open(folder / "stdout", "w+") as out, open(folder / "stderr", "w+") as err:
        p = subprocess.Popen(command, stdout=out, stderr=err, env=env, start_new_session=True)
        try:
            while p.poll() is None and used <= 60 * minutes:
                time.sleep(0.5)
                used = max(used, processor_seconds(p.pid))
        finally:
            failed, given_up = p.poll(), p.poll() is None
            if given_up:
                os.killpg(p.pid, signal.SIGKILL)  # with all that it has started
            p.wait()
        text, errors = ((folder / name).read_text() for name in ("stdout", "stderr"))
    missed = missed_in(text)
    if given_up:
        missed.append(f"not done within {minutes:g} minutes of processor time")
    elif failed:
        missed.append(f"it failed: {(errors.strip() or 'no message').splitlines()[-1]}")
    return text, missed, time.monotonic() - began, used


def page(results: dict, began: float) -> str:
    "The page: what was missed, then what each bench printed."
    used = sum(seconds for *_, seconds in results.values())
    lines = [
        "# All benches, small\n",
        f"`python -m tests.bench.all`, {datetime.date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f} at the end, Python {platform.python_version()}; {used / 60:.1f} minutes of processor time, "
        f"{(time.monotonic() - began) / 60:.0f} of the clock. Ratios of one bench are of one run and may be compared; on a machine that does "
        "something else besides, speeds and single ratios may not. The full sizes stand in the other files of this folder.\n",
        "## Missed\n",
    ]
    missed = [f"- {words.split()[0]}: {what}" for words, (_, found, *_) in results.items() for what in found]
    missed += [
        f"- {words.split()[0]}: not run" for words in MINUTES if words.split()[0] not in {w.split()[0] for w in results}
    ]
    lines += missed or ["Nothing."]
    for words, (text, _, wall, seconds) in results.items():
        text = re.sub(r"^(#+) ", r"##\1 ", text.strip(), flags=re.M)
        spent = f"{seconds:.0f} s of processor time, {wall:.0f} s of the clock."
        lines.append(f"\n## `python -m tests.bench.{words}`\n\n{spent}\n\n{text}")
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
            results[words] = run_bench(words, minutes, Path(folder))
            if args.save:  # what was measured stays, whatever comes
                (Path(__file__).parent / "results" / "all.md").write_text(page(results, began))
    print(page(results, began))


if __name__ == "__main__":
    main()
