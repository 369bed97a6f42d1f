"The demo at a smaller size, and the notebooks that a user opens."

from pathlib import Path

import nbformat
import pandas as pd
import pytest

from tests.tiny import SETS

from audiotag.core.files import read_json
from audiotag.demo import demo
from audiotag.rehearse.rehearse import run_notebook
from audiotag.audio.synth import make_competition

NBS = Path(__file__).resolve().parent.parent / "nbs"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("demo")
    demo(
        where / "demo",
        bundle=where / "demo-weights",
        notebook=NBS / "kaggle" / "infer_freesound2019.ipynb",
        changes=SETS,
    )
    return where


def test_the_demo_leaves_what_it_promises(folder):
    facts = read_json(folder / "demo" / "done.json")
    assert 0.2 < facts["lwlrap_test"] <= 1
    for path in (
        "demo/working/submission.csv",
        "demo/working/infer_freesound2019.ipynb",
        "demo-weights/bundle.json",
        "demo-weights/dataset-metadata.json",
    ):
        assert (folder / path).is_file()


def test_finished_and_called_again_it_says_so(folder, capsys):
    stamp = (folder / "demo" / "working" / "submission.csv").stat().st_mtime_ns
    demo(folder / "demo", bundle=folder / "demo-weights", changes=SETS)
    said = capsys.readouterr().out
    assert "is finished" in said and "lwlrap curated" in said
    assert (folder / "demo" / "working" / "submission.csv").stat().st_mtime_ns == stamp


def test_the_training_notebook_runs_from_top_to_bottom(tmp_path):
    data = make_competition(tmp_path / "data", seed=3, n_curated=40, n_noisy=40, n_test=12)
    done = run_notebook(
        NBS / "kaggle" / "train_freesound2019.ipynb",
        tmp_path / "work",
        timeout=600,
        parameters={"DATA": str(data), "CHANGES": SETS, "WEIGHTS": str(tmp_path / "tiny-weights")},
    )
    assert not [
        o for c in nbformat.read(done, 4).cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"
    ]
    assert (tmp_path / "tiny-weights" / "bundle.json").is_file()
    assert len(pd.read_csv(tmp_path / "work" / "runs" / "freesound2019-small" / "submission.csv")) == 12
