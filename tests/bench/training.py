"Training steps with glibc's allocator as it is, and told to keep its memory (`Recipe.keep_memory`)."

import argparse
import json
import statistics
import subprocess
import sys

CODE = """
import json, sys, time, torch
from audiotag.train.losses import BCE
from audiotag.models.cnn import CNNModel1
from audiotag.core.memory import keep_memory
from audiotag.train.fit import autocast_dtype
keep, width, precision, threads = json.loads(sys.argv[1])
if keep: assert keep_memory()
torch.set_num_threads(threads); torch.manual_seed(0)
model = CNNModel1(width=width).build(80).to(memory_format=torch.channels_last)
opt, loss, dtype = torch.optim.Adam(model.parameters()), BCE(), autocast_dtype(precision)
x, y = torch.randn(32, 1, 128, 128).contiguous(memory_format=torch.channels_last), (torch.rand(32, 80) < .02).float()
def step():
    with torch.autocast('cpu', dtype=dtype, enabled=dtype is not None): p = model(x)
    loss(p.float(), y).backward(); opt.step(); opt.zero_grad()
step()
n, start = 0, time.perf_counter()
while n < 2 or time.perf_counter()-start < 4: step(); n += 1
print(32*n/(time.perf_counter()-start))
"""


def rate(keep, width, precision, threads):
    "Images per second in a process of its own: the allocator can be set once."
    words = json.dumps([keep, width, precision, threads])
    return float(subprocess.run([sys.executable, "-c", CODE, words], check=True, capture_output=True, text=True).stdout)


def allocator_rows(rounds=3, threads=2):
    "(what, images/s as it is, images/s kept, ratio): medians over interleaved rounds, 1 × 128 × 128, batch 32."
    rows = []
    for width, precision in ((64, "fp32"), (16, "fp32"), (16, "bf16")):
        both = [(rate(False, width, precision, threads), rate(True, width, precision, threads)) for _ in range(rounds)]
        plain, kept = (statistics.median(o) for o in zip(*both))
        rows.append((f"CNN-model-1, {width} wide, {precision}", plain, kept, statistics.median(k / p for p, k in both)))
    return rows


if __name__ == "__main__":
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--rounds", type=int, default=3)
    print("| training, images per second | allocator as it is | told to keep its memory | ratio |\n|---|---|---|---|")
    for what, plain, kept, ratio in allocator_rows(rounds=parse.parse_args().rounds):
        print(f"| {what} | {plain:.1f} | {kept:.1f} | {ratio:.2f} |")
