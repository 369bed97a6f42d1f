"Systems 2, 3, 4 and 5 from end to end, tiny: the CLI, a kill, the notebooks. System 1 has test_run.py and tests/test_demo.py."

import json
import re
import signal
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tests.end_to_end.test_run import content, kill_when
from tests.tiny import SYSTEMS, called

from audiotag.data.competitions import load_competition
from audiotag.data.submission import check_submission
from audiotag.train.recipes import recipes
from audiotag.rehearse.rehearse import run_notebook

KAGGLE = Path(__file__).resolve().parent.parent.parent / "nbs" / "kaggle"
TESTED = [name for name in SYSTEMS if name != "freesound2019"]


@pytest.fixture(scope="module", params=TESTED)
def system(request, tmp_path_factory):
    "(name, data, the words of `train`, folder of a finished run, its bundle)."
    make, sets, layout = SYSTEMS[request.param]
    where = tmp_path_factory.mktemp(request.param)
    data = make(where / "data")
    words = [
        "train",
        "--recipe",
        request.param,
        "--scale",
        "small",
        "--data",
        str(data),
        *(w for s in ("cpus=1", *sets) for w in ("--set", s)),
    ]
    done = called(*words, "--run", where / "run")
    assert done.returncode == 0, done.stderr
    assert "curated" in done.stdout and "random forest" in done.stdout
    packed = called("pack", "weights", where / "run", where / "tiny-weights")
    assert packed.returncode == 0, packed.stderr
    return request.param, data, words, where / "run", where / "tiny-weights"


def test_from_the_bundle_to_a_submission(system, tmp_path):
    name, data, _, _, bundle = system
    done = called("infer", "--bundle", bundle, "--data", data, "--out", tmp_path / "submission.csv")
    assert done.returncode == 0, done.stderr
    competition = load_competition(data, SYSTEMS[name][2], train=False)
    assert not [f for f in check_submission(tmp_path / "submission.csv", competition) if f.kaggle]
    assert len(pd.read_csv(tmp_path / "submission.csv")) == 6


@pytest.mark.long
def test_killed_and_restarted_it_ends_with_the_same_bytes(system, tmp_path):
    _, _, words, run, bundle = system
    words = [*words, "--no-baseline", "--run", str(tmp_path / "run")]
    last = json.loads((run / "recipe.json").read_text())["recipe"]["stages"][-1]["name"]
    stage = next(p.name for p in run.iterdir() if p.name.endswith(f"-{last}"))
    assert (
        kill_when(words, lambda: (tmp_path / "run" / stage / "fold-0" / "checkpoint.safetensors").exists(), tmp_path)
        == -signal.SIGKILL
    )
    assert called(*words).returncode == 0
    assert called("pack", "weights", tmp_path / "run", tmp_path / "tiny-weights").returncode == 0
    assert content(tmp_path / "tiny-weights") == content(bundle)


@pytest.mark.parametrize(
    "system", [pytest.param(n, marks=() if n == "birdclef2024" else pytest.mark.long) for n in TESTED], indirect=True
)
def test_exported_it_says_the_same(system, tmp_path):
    "Through OpenVINO in fp32, or a reason why not; either way the rows are those of torch."
    import shutil

    name, data, _, run, bundle = system
    copy = tmp_path / bundle.name
    shutil.copytree(bundle, copy)
    done = called("export", run, copy, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    graphs = json.loads((copy / "bundle.json").read_text())["graphs"]
    assert graphs and list(copy.glob("*.xml")), done.stdout
    tables = []
    for b in (bundle, copy):
        out = tmp_path / f"{b.parent.name}.csv"
        assert called("infer", "--bundle", b, "--data", data, "--out", out).returncode == 0
        tables.append(pd.read_csv(out, index_col=0))
    if name == "universal2020":
        assert tables[0].equals(tables[1])
    else:
        assert abs(tables[0] - tables[1]).max().max() < 1e-3


@pytest.mark.long  # test_kaggle_pack runs that of system 1, which differs in its parameters alone
def test_the_inference_notebook_runs_from_top_to_bottom(system, tmp_path):
    name, data, _, _, bundle = system
    run_notebook(
        KAGGLE / f"infer_{name}.ipynb",
        tmp_path / "infer",
        timeout=600,
        parameters={"DATA": str(data), "WEIGHTS": str(bundle)},
    )
    assert len(pd.read_csv(tmp_path / "infer" / "submission.csv")) == 6


@pytest.mark.long
def test_the_training_notebook_runs_from_top_to_bottom(system, tmp_path):
    name, data, _, _, _ = system
    done = run_notebook(
        KAGGLE / f"train_{name}.ipynb",
        tmp_path / "train",
        timeout=600,
        parameters={"DATA": str(data), "CHANGES": SYSTEMS[name][1], "WEIGHTS": str(tmp_path / "tiny-weights")},
    )
    assert (tmp_path / "tiny-weights" / "bundle.json").is_file()
    assert not [
        o for c in nbformat.read(done, 4).cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"
    ]


def test_the_report(system):
    "With one label a clip it has each class's F1, otherwise the curves of precision and recall."
    name, _, _, run, _ = system
    done = called("report", run, "--out", run / "page.html")
    assert done.returncode == 0, done.stderr
    page = (run / "page.html").read_text()
    assert (">f1<" in page) == (name == "universal2020") and len(page) < 15e6


def test_the_inference_notebooks_are_one_notebook():
    "They differ in titles, parameters, the layout's name and the last look, and in nothing else."
    code = {}
    for path in sorted(KAGGLE.glob("infer_*.ipynb")):
        cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"][:-1]
        code[path.stem] = [
            re.sub(r'"[a-z0-9_]+", train=False|sentinel="[a-z_]+\.csv"', "LAYOUT", c)
            for c in cells
            if not c.startswith("# parameters")
        ]
        assert max(len(c.splitlines()) for c in cells) <= 30
    assert len(code) >= 3 and len({json.dumps(c) for c in code.values()}) == 1


@pytest.mark.parametrize("name", recipes)
def test_full_recipes_can_be_built(name):
    "The entrants' sizes: every network is made and gives one score a class."
    import torch

    recipe = recipes[name]("full")
    with torch.device("meta"):
        net = recipe.model.build(7)
    assert sum(p.numel() for p in net.parameters()) > 1_000_000
