"Every tutorial runs from its first cell to its last, on data that the project makes itself."

import functools
import sys
from pathlib import Path

import nbformat
import pytest

from audiotag.rehearse.rehearse import run_notebook

TUTORIALS = sorted((Path(__file__).resolve().parent.parent.parent / "nbs" / "tutorials").glob("*.ipynb"))


def test_they_are_there():
    assert {"look_and_listen", "noise_audit", "reading_oof", "new_competition"} <= {p.stem for p in TUTORIALS}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    "`executed('scale')`: the tutorial of this name as it was executed, once."

    @functools.cache
    def get(name):
        path = next(p for p in TUTORIALS if p.stem == name)
        return nbformat.read(
            run_notebook(path, tmp_path_factory.mktemp(name), timeout=300, env={"OMP_NUM_THREADS": "1"}), 4
        )

    return get


@pytest.mark.long
@pytest.mark.parametrize("name", [p.stem for p in TUTORIALS])
def test_it_runs(name, executed):
    done = executed(name)
    code = [c for c in done.cells if c.cell_type == "code"]
    assert all(c.execution_count for c in code if c.source.strip())
    assert not [o for c in code for o in c.outputs if o.output_type == "error"]
    assert done.metadata.get("kernelspec") and "skip_exec: true" in done.cells[0].source


@pytest.mark.long
def test_pictures_and_players(executed):
    "The tutorial about looking and listening shows both."
    done = executed("look_and_listen")
    data = [o.get("data", {}) for c in done.cells if c.cell_type == "code" for o in c.outputs]
    assert sum("image/png" in d for d in data) >= 6
    assert sum("<audio" in d.get("text/html", "") for d in data) >= 3


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
