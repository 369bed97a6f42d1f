"The real command line where a library cannot be loaded: exit code 2 and one sentence with versions and the mend, before any work."

import json
import os
import shutil
import subprocess
from importlib import metadata

import pytest

from tests.tiny import AUDIOTAG, SETS, called, train_words

from audiotag.audio.synth import make_competition

SYMBOL = "OSError('libfoo.so: undefined symbol: _ZN2at3bar')"
OPERATOR = "RuntimeError('operator torchvision::nms does not exist')"
MISSING = "ImportError('libfoo.so.7: cannot open shared object file')"
OWN = "AttributeError(\"module 'foo' has no attribute 'bar'\")"
TIMM = 'model={"kind": "Timm", "name": "resnet10t"}'
PCEN = 'front_end.pcen={"kind": "PCEN"}'


def version(name):
    return metadata.version(name).partition("+")[0]


@pytest.fixture
def broken(tmp_path):
    "`broken('timm', 'OSError(…)', *words)` runs a command where this library raises that when it is loaded."

    def run(name, error, *words):
        (tmp_path / "stubs" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "stubs" / name / "__init__.py").write_text(f"raise {error}\n")
        paths = [str(tmp_path / "stubs"), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
        return subprocess.run([*AUDIOTAG, *map(str, words)], capture_output=True, text=True, env=env)

    return run


def one_sentence(done, asks, name):
    "Exit code 2 and one line on stderr, about this library."
    assert done.returncode == 2, done.stderr
    (line,) = [o for o in done.stderr.splitlines() if "needs" in o]
    assert "Traceback" not in done.stderr and done.stderr.splitlines()[-1] == line
    who = f"{asks} {version(asks)}" if asks != "audiotag" else "audiotag 0.1.0"
    assert line.startswith(f"audiotag: {who} needs {name} {version(name)}, which cannot be loaded"), line
    assert "pip install" in line
    return line


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_competition(tmp_path_factory.mktemp("broken") / "data", seed=3, n_curated=24, n_noisy=16, n_test=3)


TRAIN = {
    "torch": (SYMBOL, "audiotag", "torch", SETS),
    "fastai": (MISSING, "audiotag", "fastai", SETS),
    "sklearn": (OWN, "fastai", "scikit-learn", SETS),
    "timm": (SYMBOL, "audiotag", "timm", [TIMM]),
    "torchvision": (OPERATOR, "timm", "torchvision", [TIMM]),
    "librosa": (SYMBOL, "audiotag", "librosa", [*SETS, PCEN]),
    "iterstrat": (OWN, "audiotag", "iterative-stratification", SETS),
}


@pytest.mark.parametrize(
    "name", [n if n in ("torch", "sklearn") else pytest.param(n, marks=pytest.mark.long) for n in TRAIN]
)
def test_training_says_so_before_it_begins(name, broken, data, tmp_path):
    error, asks, package, sets = TRAIN[name]
    done = broken(name, error, *train_words(data, tmp_path / "run", sets))
    line = one_sentence(done, asks, package)
    assert not (tmp_path / "run").exists()
    if name == "torchvision":
        assert f"torch=={version('torch')} torchvision==" in line


@pytest.mark.long
@pytest.mark.parametrize("name, sets", [("timm", SETS), ("librosa", SETS), ("torchaudio", [*SETS, PCEN])])
def test_what_a_recipe_does_not_use_may_be_broken(name, sets, broken, data, tmp_path):
    words = ["features", *train_words(data, tmp_path / "run", sets)[1:]]
    words = words[: words.index("--no-baseline")] + words[words.index("--no-baseline") + 1 :]
    words[words.index("--run")] = "--store"
    done = broken(name, SYMBOL, *words)
    assert done.returncode == 0, done.stderr


def test_the_command_line_starts_without_any_library(broken):
    done = broken("numpy", MISSING, "--help")
    assert done.returncode == 0 and "Evaluate" in done.stdout
    done = broken("numpy", MISSING, "recipe", "--recipe", "freesound2019")
    one_sentence(done, "audiotag", "numpy")


@pytest.fixture
def sealed(data, shared):
    "A run of one short stage, and its bundle with fp32 graphs."

    def make(folder):
        stage = {"kind": "Stage", "name": "curated", "train_on": ["curated"], "epochs": 1, "batch_size": 16}
        sets = [*SETS, f"stages={json.dumps([stage])}", 'members=["curated"]']
        for words in (
            train_words(data, folder / "run", [w for w in sets if not w.startswith("stages.")]),
            ["pack", "weights", folder / "run", folder / "bundle"],
            ["export", folder / "run", folder / "bundle", "--precision", "fp32"],
        ):
            done = called(*words)
            assert done.returncode == 0, done.stderr

    return shared("broken-sealed", make)


@pytest.mark.long
@pytest.mark.parametrize("name, error, precision", [("openvino", SYMBOL, "fp32"), ("nncf", OWN, "int8")])
def test_export_says_so_before_it_begins(name, error, precision, broken, sealed, tmp_path):
    shutil.copytree(sealed / "bundle", tmp_path / "bundle")
    done = broken(name, error, "export", sealed / "run", tmp_path / "bundle", "--precision", precision)
    one_sentence(done, "audiotag", name)
    for p in (sealed / "bundle").iterdir():
        assert p.read_bytes() == (tmp_path / "bundle" / p.name).read_bytes()


@pytest.mark.long
@pytest.mark.parametrize("error", [SYMBOL, MISSING, OWN])
def test_inference_goes_on_with_torch(error, broken, sealed, data, tmp_path):
    "The kernel has to hand in a file: without OpenVINO the networks are slower, and the report says why, once."
    words = ["infer", "--bundle", sealed / "bundle", "--data", data, "--out", tmp_path / "submission.csv"]
    done = broken("openvino", error, *words)
    assert done.returncode == 0, done.stderr
    (line,) = [o for o in done.stdout.splitlines() if "openvino" in o]
    assert (
        f"torch in place of a faster graph: audiotag 0.1.0 needs openvino {version('openvino')}, which cannot be"
        in line
    )


def test_inference_without_torch_leaves_the_first_file(broken, tiny_run, tiny_data, tmp_path):
    words = ["infer", "--bundle", tiny_run / "tiny-weights", "--data", tiny_data, "--out", tmp_path / "submission.csv"]
    done = broken("torch", SYMBOL, *words)
    one_sentence(done, "audiotag", "torch")
    assert len((tmp_path / "submission.csv").read_text().splitlines()) == 31
