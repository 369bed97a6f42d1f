"A recipe and a competition that are small enough to be trained, killed and trained again in a test."
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

SETS = ["cpus=1", "n_folds=2", "model.width=4", "front_end.n_mels=32", "windows.frames=64", "windows.hop=32", "stages.*.epochs=2",
        "stages.*.batch_size=16", "stages.agreed.train_on.1.at_least=0.2", "stages.certain.train_on.1.at_least=0.4"]
AUDIOTAG = [str(Path(sys.executable).parent / "audiotag")]


def train_words(data, run, sets=SETS):
    "The words behind `audiotag` that train the tiny recipe."
    changes = [w for s in sets for w in ("--set", s)]
    return ["train", "--recipe", "freesound2019", "--scale", "small", "--no-baseline", "--data", str(data), "--run", str(run), *changes]


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
