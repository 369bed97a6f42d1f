"Recipes and competitions that are small enough to be trained, killed and trained again in a test."

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from audiotag.demo import PLAIN
from audiotag.audio.synth import make_competition, make_rainforest, make_soundscapes, make_universal

SETS = [
    "cpus=1",
    "n_folds=2",
    "model.width=4",
    "front_end.n_mels=32",
    "windows.frames=64",
    "windows.hop=32",
    "stages.*.epochs=2",
    "stages.*.batch_size=16",
    "stages.agreed.train_on.1.at_least=0.2",
    "stages.certain.train_on.1.at_least=0.4",
    "group_by=[]",  # the search for near-duplicates has tests of its own
    *PLAIN,
]
SYSTEMS = {  # recipe -> (how a competition is made, what makes it tiny, its layout)
    "freesound2019": (lambda d: make_competition(d, seed=3, n_curated=32, n_noisy=24, n_test=6), SETS, "freesound2019"),
    "freesound2019_waveform": (
        lambda d: make_competition(d, seed=3, n_curated=32, n_noisy=24, n_test=6),
        [
            "model.width=0.0625",
            "model.stem_channels=4",
            "model.rnn=4",
            "windows.frames=22050",
            "windows.hop=22050",
            "stages.*.epochs=2",
            "stages.*.batch_size=8",
            "n_folds=2",
            "group_by=[]",
        ],
        "freesound2019",
    ),
    "rainforest2021": (
        lambda d: make_rainforest(d, seed=3, n_train=6, n_test=6, seconds=12.0),
        [
            "model.backbone.width=2",
            "front_end.n_mels=32",
            "windows.frames=64",
            "windows.hop=64",
            "crops.shift=[4,24]",
            "stages.*.steps=8",
            "stages.*.batch_size=8",
            "n_folds=2",
            "group_by=[]",
        ],
        "rainforest2021",
    ),
    "birdclef2024": (
        lambda d: make_soundscapes(d, seed=3, n_train=24, n_test=1, seconds=30.0),
        [
            "model.width=2",
            "front_end.n_mels=32",
            "front_end.hop_length=1280",
            "windows.frames=125",
            "windows.hop=125",
            "windows.views.1.offset=62",
            "mixed.n=1",
            "mixed.seconds=10",
            "rounds=[]",
            'members=["round2"]',
            "stages.*.steps=6",
            "stages.*.batch_size=8",
            "n_folds=2",
            "group_by=[]",
        ],
        "birdclef2024",
    ),
    "universal2020": (
        lambda d: make_universal(d, seed=3, n_train=24, n_test=6),
        ["model.width=4", "stages.*.epochs=2", "stages.*.batch_size=8", "n_folds=2", "group_by=[]"],
        "universal2020",
    ),
}
AUDIOTAG = [str(Path(sys.executable).parent / "audiotag")]


def train_words(data, run, sets=SETS):
    "The words behind `audiotag` that train the tiny recipe."
    changes = [w for s in sets for w in ("--set", s)]
    return [
        "train",
        "--recipe",
        "freesound2019",
        "--scale",
        "small",
        "--no-baseline",
        "--data",
        str(data),
        "--run",
        str(run),
        *changes,
    ]


def audiotag(*words, **kwargs):
    "Run the real command in a process of its own; one thread, as two tests may run side by side."
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*AUDIOTAG, *map(str, words)], capture_output=True, text=True, env=env, **kwargs)


def called(*words):
    "The same command inside of this process: it saves the seconds that importing torch and fastai take."
    from audiotag.cli import main

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main(list(map(str, words)))
        except SystemExit as e:  # of argparse
            code = e.code
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
