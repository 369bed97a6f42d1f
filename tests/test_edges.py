"What `make test-edges` says of an edge: who is named, what is recorded. The edges themselves are not tried here."

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.edges import checks, run


def test_the_packages_of_a_traceback_are_named_with_their_versions():
    text = (
        'File "/x/audiotag/features.py", line 1\n  File "/v/lib/python3.12/site-packages/librosa/core.py", line 2\n'
        'File "/v/lib/python3.12/site-packages/numba/core.py", line 3\n  File "/v/lib/python3.12/site-packages/numba/np.py"\nImportError: no'
    )
    assert checks.blamed(text) == [f"librosa {version('librosa')}", f"numba {version('numba')}"]
    assert checks.blamed("  File \"/x/audiotag/core.py\"\nAttributeError: module 'torch' has no attribute 'xyz'") == [
        f"torch {version('torch')}"
    ]
    assert checks.blamed("ValueError: 3") == []
    absent = "File \"/v/site-packages/torch/nn.py\"\nModuleNotFoundError: No module named 'no_such.thing'\n"
    assert checks.blamed(absent) == ["no_such, which is not installed"]


@pytest.mark.long
def test_a_check_that_fails_and_one_that_dies_are_one_line_each(tmp_path, monkeypatch):
    "What comes behind them is tried all the same; without its run there is no export."
    source = Path(checks.__file__).read_text()
    dying = "def use_numpy():\n    import numpy\n\n    numpy.apply_along_axis(lambda x: os.abort(), 0, numpy.ones((2, 2)))\n\n\ndef use("
    assert source.count("def use(") == 1
    monkeypatch.setattr(run, "CHECKS", tmp_path / "checks.py")
    run.CHECKS.write_text(source.replace("def use(", dying).replace("parents[2]", f"parents[0] / {str(run.REPO)!r}"))
    edge = run.Edge(
        "newest",
        (),
        [],
        ["import no-such-thing", "import soxr", "import numpy", "recipe freesound2019", "export", "import soundfile"],
    )
    (tmp_path / "work" / "freesound2019").mkdir(parents=True)
    (tmp_path / "work" / "freesound2019" / "data").write_text("in the way")
    first, second, third = run.run_checks(edge, sys.executable, tmp_path / "work")
    assert first.startswith("import no-such-thing fails in ") and "PackageNotFoundError" in first
    assert second == f"import numpy fails in numpy {version('numpy')}: the process ended with -6"
    assert third.startswith("recipe freesound2019 fails in ") and not [o for o in (first, second, third) if "\n" in o]


def test_every_requirement_is_imported_and_kaggle_has_no_openvino():
    edges = {name: run.make_edge(name) for name in ("newest", "oldest", "kaggle", "tested-3.12")}
    wanted = {f"import {run.package(r)}" for r in run.requirements()}
    assert {"import torch", "import scikit-learn", "import openvino"} <= wanted
    assert all(wanted - {"import openvino"} <= set(e.checks) for e in edges.values())
    assert "torch==2.10.0" in edges["kaggle"].words and not [
        w for w in edges["kaggle"].words if w.startswith("openvino")
    ]
    assert "constraints.txt" in edges["tested-3.12"].words and not [
        e for e in ("newest", "oldest") if "constraints.txt" in edges[e].words
    ]
    with pytest.raises(SystemExit, match="no edge 'tested'"):
        run.make_edge("tested")


def test_a_python_is_found_by_pyenv_or_the_edge_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", "/nowhere")
    assert run.find_python(("3.9",), "/bin/false") is None
    monkeypatch.setattr(run, "BUILD", tmp_path)
    assert "no Python 3.12 on PATH" in run.try_edge(run.make_edge("kaggle"), "/bin/false", keep=False)
    here = "%d.%d" % sys.version_info[:2]
    (tmp_path / "versions" / f"{here}.1" / "bin").mkdir(parents=True)
    python = tmp_path / "versions" / f"{here}.1" / "bin" / "python"
    python.symlink_to(sys.executable)
    assert run.find_python(("3.9", here), "/bin/false") == str(python)


def test_a_result_replaces_its_own_row(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RESULTS", tmp_path / "edges.md")
    run.record("newest", ({"python": "3.13.0", "torch": "2.11.0"}, ["import torch fails in torch 2.11.0: no"], 9))
    run.record("kaggle", "skipped: no Python 3.12")
    run.record("oldest", ({"python": "3.10.1", "torch": "2.4.0"}, ["export fails in torch 2.4.0: no"], 9))
    text = run.RESULTS.read_text()
    assert text.count("| newest |") == text.count("| kaggle |") == 1 and "skipped: no Python 3.12 |" in text
    assert "\n- newest, Python 3.13.0: import torch fails" in text and "\n- oldest, Python 3.10.1: export" in text
    run.record("newest", ({"python": "3.13.0", "torch": "2.11.1"}, [], 9))
    text = run.RESULTS.read_text()
    assert "- newest" not in text and "- oldest" in text and "2.11.1" in text and "all 9 checks hold" in text
    bars = {o.count("|") for o in text.splitlines() if o.startswith("|")}
    assert len(bars) == 1, bars
