"The demo at a smaller size."

from pathlib import Path

import pytest

from tests.tiny import SETS

from audiotag.core.files import read_json
from audiotag.demo import demo

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


@pytest.mark.long
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


@pytest.mark.long
def test_finished_and_called_again_it_says_so(folder, capsys):
    stamp = (folder / "demo" / "working" / "submission.csv").stat().st_mtime_ns
    demo(folder / "demo", bundle=folder / "demo-weights", changes=SETS)
    said = capsys.readouterr().out
    assert "is finished" in said and "lwlrap curated" in said
    assert (folder / "demo" / "working" / "submission.csv").stat().st_mtime_ns == stamp
