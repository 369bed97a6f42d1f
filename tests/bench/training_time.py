"""Where does the time of a small run go? `python -m tests.bench.training_time [--recipe NAME] [--data DIR] [--steps]`

CPU seconds of one fold, by part, on one thread, so that other work on the machine changes little; and with `--steps` what bf16,
channels-last, `torch.compile` and two folds side by side change at the size of the small recipe.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from unittest.mock import patch

WHOLE = ("validation after each epoch", "scoring the fold")  # what is inside of them counts as they do


class Clock:
    "CPU seconds by part; a part that begins inside another one interrupts it."

    def __init__(self):
        self.seconds, self.stack, self.at = {}, [], time.process_time()

    def _book(self):
        now = time.process_time()
        name = self.stack[-1] if self.stack else "the rest"
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.at
        self.at = now

    @contextmanager
    def part(self, name):
        outer = next((o for o in self.stack if o in WHOLE), None)
        self._book()
        self.stack.append(outer or name)
        try:
            yield
        finally:
            self._book()
            self.stack.pop()

    def timed(self, owner, attribute, name):
        "A patch that books what a function takes."
        inner = getattr(owner, attribute)

        @wraps(inner)
        def call(*args, **kwargs):
            with self.part(name):
                return inner(*args, **kwargs)

        return patch.object(owner, attribute, call)


def parts(recipe, data, fold=0):
    "{part: CPU seconds} of one fold of all stages that need no other fold."
    import torch
    from fastai.learner import Learner

    from audiotag.data.competitions import load_competition
    from audiotag.data.loaders import CropLoader
    from audiotag.train import fit, run_folder

    torch.set_num_threads(1)
    clock = Clock()
    network = type(recipe.model.build(2))
    places = [
        (run_folder, "join_groups", "search for near-duplicates"),
        (run_folder, "build_stores_at", "computing features"),
        (CropLoader, "create_item", "loader"),
        (CropLoader, "create_batch", "loader"),
        (CropLoader, "set_epoch", "loader"),
        (fit.ApplyAugmentations, "before_batch", "augmentation, features of waves"),
        (network, "forward", "forward"),
        (Learner, "_backward", "backward"),
        (Learner, "_step", "optimizer"),
        (Learner, "_do_epoch_validate", WHOLE[0]),
        (fit.Checkpoint, "_write", "checkpoints"),
        (run_folder, "score_fold", WHOLE[1]),
    ]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as patches:
        for place in places:
            patches.enter_context(clock.timed(*place))
        run = run_folder.open_run(Path(folder) / "run", recipe, load_competition(data, recipe.layout))
        for stage in recipe.stages:
            if not stage.waits_for_all_folds:
                run_folder.finish_fold(run, stage.name, fold)
        clock._book()
    return clock.seconds


STEP = """
import json, sys, time, torch
from audiotag.train.losses import BCE
from audiotag.models.cnn import CNNModel1
from audiotag.core.memory import keep_memory
s = json.loads(sys.argv[1]); keep_memory(); torch.set_num_threads(s['threads']); torch.manual_seed(0)
form = torch.channels_last if s['channels_last'] else torch.contiguous_format
model = CNNModel1(width=16).build(20).to(memory_format=form)
if s['compile']: model.compile(backend='inductor')
opt, loss = torch.optim.Adam(model.parameters()), BCE()
x, y = torch.randn(32, 1, 64, 128).contiguous(memory_format=form), (torch.rand(32, 20) < .05).float()
def step():
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=s['bf16']): p = model(x)
    loss(p.float(), y).backward(); opt.step(); opt.zero_grad()
start = time.process_time(); step(); step(); first = time.process_time()-start
n, start, wall = 0, time.process_time(), time.perf_counter()
while n < 8: step(); n += 1
print(json.dumps([first, (time.process_time()-start)/n, n*32/(time.perf_counter()-wall)]))
"""


def begin_step(**settings):
    words = json.dumps(dict(dict(threads=1, channels_last=True, bf16=True, compile=False), **settings))
    return subprocess.Popen([sys.executable, "-c", STEP, words], stdout=subprocess.PIPE, text=True)


def step_lines(rounds=3):
    "CPU seconds of a step, and of the first two, in processes of their own; medians over interleaved rounds."
    arms = {
        "fp32": dict(channels_last=False, bf16=False),
        "fp32, channels-last": dict(bf16=False),
        "bf16": dict(channels_last=False),
        "bf16, channels-last (the default)": {},
        "bf16, channels-last, inductor": dict(compile=True),
    }
    found = {name: [] for name in arms}
    for _ in range(rounds):
        for name, settings in arms.items():
            found[name].append(json.loads(begin_step(**settings).communicate()[0]))
    for name, runs in found.items():
        first, each, _ = (statistics.median(o) for o in zip(*runs))
        yield f"{name:36} {1000 * each:7.0f} ms a step, {first:6.1f} s for the first two"


def side_by_side(rounds=5):
    "Images per second of two folds on a thread each, and of one fold on two threads."
    apart, together = [], []
    for _ in range(rounds):
        both = [begin_step(), begin_step()]
        apart.append(sum(json.loads(p.communicate()[0])[2] for p in both))
        together.append(json.loads(begin_step(threads=2).communicate()[0])[2])
    a, b = statistics.median(apart), statistics.median(together)
    ratio = statistics.median(x / y for x, y in zip(apart, together))
    return f"two folds on a thread each {a:.0f} images/s, one fold on two threads {b:.0f}; ratio {ratio:.2f}"


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--recipe", default="freesound2019")
    ap.add_argument("--data", help="default: the sample set of the recipe's layout")
    ap.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    ap.add_argument("--steps", action="store_true", help="what bf16, channels-last, compile and two processes change")
    ap.add_argument("--rounds", type=int, default=3, help="of --steps")
    o = ap.parse_args()
    began = time.process_time()
    from audiotag.train.recipes import get_recipe
    from tests.conftest import sample_folder

    imports = time.process_time() - began
    if o.steps:
        print(*step_lines(o.rounds), side_by_side(o.rounds), sep="\n")
        return
    recipe = get_recipe(o.recipe, scale="small", changes=o.set)
    sets = {
        "freesound2019": "freesound",
        "rainforest2021": "rainforest",
        "universal2020": "speech",
        "birdclef2024": "soundscape",
    }
    data = o.data or sample_folder(sets[recipe.layout])[0]
    seconds = {"imports": imports, **parts(recipe, data)}
    for name, s in sorted(seconds.items(), key=lambda o: -o[1]):
        print(f"{name:34} {s:7.1f} s {s / sum(seconds.values()):6.1%}")


if __name__ == "__main__":
    main()
