"Makes the README's pictures: `python tests/pictures.py RUN` (a run whose `audiotag report` has been written) into nbs/pictures/."

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from audiotag.audio.features import LogMel, Standardize
from audiotag.audio.synth import sound
from audiotag.augment.spec import MixUp, SpecAugment, SpecMix
from audiotag.core.seeding import rng

PICTURES = Path(__file__).resolve().parent.parent / "nbs" / "pictures"


def augmentations(names=("Bell", "Bird_rising", "Fire_crackle", "Siren")):
    "Four synthesized sounds, one a column, before and after three augmentations."
    front_end = LogMel(hop_length=694, scaling=Standardize())
    waves = [sound(name, rng(1, name), seconds=2) for name in names]
    x = torch.stack([torch.from_numpy(front_end(w)[None, :, :128]) for w in waves])
    y, generator = torch.eye(len(names)), torch.Generator().manual_seed(3)
    rows = {"log-mel": x, "MixUp": MixUp(weight=0.7)(x, y, generator)[0]}
    rows["SpecMix"], rows["SpecAugment"] = (augment(x, y, generator)[0] for augment in (SpecMix(), SpecAugment()))
    fig, axes = plt.subplots(len(rows), len(names), figsize=(8, 5.2), layout="constrained")
    for row, (title, batch) in zip(axes, rows.items()):
        row[0].set_ylabel(title)
        for ax, image in zip(row, batch):
            ax.imshow(image[0], origin="lower", aspect="auto", vmin=-2, vmax=3, cmap="magma")
            ax.set(xticks=[], yticks=[])
    for ax, name in zip(axes[0], names):
        ax.set_title(name.replace("_", " ").lower())
    fig.savefig(PICTURES / "augmentations.png", dpi=110)


def report(run):
    "The top of a run's report, as a browser shows it."
    from tests.browser import opened

    with opened(Path(run) / "report.html", width=1100, height=880) as (page, _):
        page.screenshot(path=PICTURES / "report.png")


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    augmentations()
    report(sys.argv[1])
