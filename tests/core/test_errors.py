"A library that cannot be loaded, in every shape: one sentence that names versions and the command that mends it."

import ast
import json
import importlib
import pickle
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import audiotag
import numpy as np
import pandas as pd
import pytest

from audiotag.audio.features import PCEN, LogMel
from audiotag.audio.synth import make_competition
from audiotag.data.competitions import load_competition
from audiotag.data.store import build_store
from audiotag.infer.recordings import FeatureLoader
from audiotag.infer.windows import Windows
from audiotag.train.baseline import read_statistics
from audiotag.core.errors import a_few, AudiotagError, _release_for_torch, library_error, load_library

# name as imported -> name for pip
LIBRARIES = {
    "torch": "torch",
    "torchvision": "torchvision",
    "timm": "timm",
    "fastai": "fastai",
    "librosa": "librosa",
    "numba": "numba",
    "openvino": "openvino",
    "nncf": "nncf",
    "sklearn": "scikit-learn",
    "scipy": "scipy",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "soundfile": "soundfile",
    "soxr": "soxr",
    "safetensors": "safetensors",
    "accelerate": "accelerate",
    "fsspec": "fsspec",
    "matplotlib": "matplotlib",
    "iterstrat": "iterative-stratification",
    "joblib": "joblib",
}
ERRORS = {
    "symbol": "OSError('libfoo.so: undefined symbol: _ZN2at3bar')",
    "shared object": "ImportError('libfoo.so.7: cannot open shared object file')",
    "operator": "RuntimeError('operator foo::nms does not exist')",
    "attribute": "AttributeError(\"module 'foo' has no attribute 'bar'\")",
    "abi": "ValueError('numpy.dtype size changed, may indicate binary incompatibility')",
    "name": "ImportError(\"cannot import name 'bar' from 'foo'\", name='foo')",
    "two lines": "RuntimeError('first\\nsecond')",
}


@pytest.fixture
def stub(tmp_path, monkeypatch):
    "`stub('timm', 'OSError(…)')` puts a package in the way whose loading raises that; afterwards the real one is back."
    kept = dict(sys.modules)

    def make(name, source, before=""):
        for m in [m for m in sys.modules if m.partition(".")[0] == name]:
            del sys.modules[m]
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(f"{before}\nraise {source}" if source else before)

    monkeypatch.syspath_prepend(str(tmp_path))
    yield make
    for m in set(sys.modules) - set(kept):
        del sys.modules[m]
    sys.modules.update(kept)


def loaded(name):
    importlib.invalidate_caches()
    with pytest.raises(AudiotagError) as e:
        load_library(name)
    assert e.value.kind == "library"
    return str(e.value)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", LIBRARIES)
def test_whatever_a_library_raises_becomes_one_sentence(name, error, stub):
    stub(name, ERRORS[error].replace("foo", name))
    said, version = loaded(name), metadata.version(LIBRARIES[name]).partition("+")[0]
    assert "\n" not in said and said.startswith("audiotag 0.1.0 needs ")
    assert f"needs {LIBRARIES[name]} {version}, which" in said and ERRORS[error].partition("(")[0] in said
    assert "pip install" in said and LIBRARIES[name] in said.partition("pip install")[2]
    assert ("beside numpy " + metadata.version("numpy") in said) == (error == "abi" and name not in ("torchvision",))
    if name == "torchvision":
        assert f"pip install --force-reinstall --no-deps torch==2.11.0 torchvision=={version}" in said
    assert str(pickle.loads(pickle.dumps(pytest.raises(AudiotagError, load_library, name).value))) == said


def test_the_sentence_names_the_library_that_asked(stub):
    stub("torchvision", "RuntimeError('operator torchvision::nms does not exist')")
    stub("timm", "", before="import torchvision")
    said = loaded("timm")
    assert said.startswith(
        f"timm {metadata.version('timm')} needs torchvision {metadata.version('torchvision')}, which"
    )


@pytest.mark.parametrize("version, mate", [("0.27.0", False), ("0.26.0", True), (None, False)])
def test_torchvision_for_another_torch(version, mate, stub, monkeypatch):
    real = metadata.version

    def versions(name):
        if name == "torchvision" and version is None:
            raise metadata.PackageNotFoundError(name)
        return {"torch": "2.11.0+cu130", "torchvision": version}.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", versions)
    stub("torchvision", "OSError('undefined symbol')" if version else "ModuleNotFoundError(name='torchvision')")
    said = loaded("torchvision")
    if version is None:
        assert said.endswith("torchvision, which is not installed: pip install torch==2.11.0 torchvision==0.26.0"), said
    elif mate:
        assert "torchvision 0.26.0, which cannot be loaded beside torch 2.11.0 (OSError: undefined symbol)" in said
        assert said.endswith("pip install --force-reinstall --no-deps torch==2.11.0 torchvision==0.26.0")
    else:
        assert "torchvision 0.27.0, which was built for another torch than 2.11.0 (OSError: undefined symbol)" in said
        assert said.endswith(": pip install torch==2.11.0 torchvision==0.26.0")


def test_partners_of_torch():
    "Releases that were published together."
    for torch, vision in (("2.4.1", "0.19.1"), ("2.5.0", "0.20.0"), ("2.7.1", "0.22.1"), ("2.11.0", "0.26.0")):
        assert _release_for_torch("torchvision", torch) == vision and _release_for_torch("torchaudio", torch) == torch
    assert _release_for_torch("timm", "2.11.0") == _release_for_torch("torchvision", None) == ""


def test_a_missing_library_is_named_with_what_installs_it():
    assert loaded("soundfyle").startswith("audiotag 0.1.0 needs soundfyle, which is not installed: pip install -c")
    sys.modules["nncf"], kept = None, sys.modules.get("nncf")
    try:
        assert "nncf" in loaded("nncf")
    finally:
        sys.modules.pop("nncf")
        sys.modules.update({"nncf": kept} if kept else {})


def test_no_clip_is_blamed_for_it(stub, tmp_path):
    "Store, baseline and inference write down what is wrong with a clip, and go on; here they stop."
    data = load_competition(make_competition(tmp_path / "data", n_curated=6, n_noisy=4, n_test=2))
    fe = LogMel(n_fft=512, hop_length=512, n_mels=16, pcen=PCEN())
    clips = data.of("test")
    stub("librosa", "OSError('undefined symbol')")
    for work in (
        lambda: build_store(clips, fe, tmp_path / "store"),
        lambda: read_statistics(clips, fe, workers=1),
        lambda: list(FeatureLoader(clips, fe, Windows(frames=8, hop=8)).iter_features()),
        lambda: fe(np.ones(9000, np.float32)),
    ):
        with pytest.raises(
            AudiotagError, match=r"needs librosa [\d.]+, which cannot be loaded here \(OSError: und"
        ) as e:
            work()
        assert e.value.kind == "library"
    assert not (tmp_path / "store" / "quarantine.csv").exists()


def test_settings_say_what_they_import_late():
    from audiotag.train.recipes import get_recipe

    assert LogMel().needs() == [] and LogMel(pcen=PCEN()).needs() == ["librosa.core.spectrum"]
    assert get_recipe("freesound2019").needs() == [] and get_recipe("universal2020").needs() == ["timm"]


def broken_somewhere():
    "Errors that are no library's: raised by work, or by code of our own."
    yield lambda: open("/nonexistent")
    yield lambda: importlib.import_module("audiotag.core.nothing")
    yield lambda: (_ for _ in ()).throw(RuntimeError("a cannot import name in a text"))
    yield lambda: importlib.import_module("numpy").zeros(-1)
    yield lambda: (_ for _ in ()).throw(MemoryError())


@pytest.mark.parametrize("call", list(broken_somewhere()))
def test_other_errors_are_left_alone(call):
    with pytest.raises(Exception) as e:
        call()
    assert library_error(e.value) is None
    assert library_error(AudiotagError("a file is missing")) is None


def test_a_cause_is_looked_at(stub):
    "fsspec and others hide what an import raised behind an error of their own."
    stub("s3fs", "OSError('undefined symbol')")
    with pytest.raises(RuntimeError) as e:
        try:
            importlib.import_module("s3fs")
        except OSError as cause:
            raise RuntimeError("no file system") from cause
    assert "s3fs" in str(library_error(e.value)) and "undefined symbol" in str(library_error(e.value))


def test_names_of_others_do_not_reach_a_terminal_raw_or_whole():
    name = "\x1b[2J\x9bbad\u202e.wav" + "x" * 100_000
    said = str(AudiotagError(f"{name} is odd", file=name, fix=a_few([name] * 5)))
    assert said.replace(": ", "").isprintable() and "\\x1b[2J" in said and len(said) < 2500
    assert str(AudiotagError("Vögel, 鳥 and é", file="a b.wav")) == "a b.wav: Vögel, 鳥 and é"


def test_names_reach_no_terminal_raw(capsys):
    "Neither by messages nor by results; text, tables, and spaces of any width stay."
    from audiotag.cli import print_result
    from audiotag.core.progress import say, show

    plain = "été 音\u3000声 🤔\n\ta  b"
    for f in (say, show, lambda text: print_result(False, None, text), lambda text: print_result(True, [text], "")):
        f(f"{plain}\x1b[2J\x9b\u202e\r\ud800")
        got = "".join(capsys.readouterr())
        assert not set(got) & set("\x1b\x9b\u202e\r\ud800")
        got.encode()
    assert json.loads(got) == [f"{plain}\x1b[2J\x9b\u202e\r\ud800"]
    show(plain)
    assert capsys.readouterr().out == plain + "\n"


BAD = "\x1b[2J\x9b\u202ebad" + "x" * 100_000


def objects_with_bad_names() -> list:
    "One of each class whose text holds names that somebody else has chosen."
    from audiotag.data.competitions import Competition
    from audiotag.data.guess_layout import Guess
    from audiotag.data.store import FeatureStore
    from audiotag.data.submission import Finding
    from audiotag.infer.bundle import Member
    from audiotag.infer.first_file import Report
    from audiotag.rehearse.rehearse import Limits, Rehearsal, RunResult
    from audiotag.rehearse.sandbox import Sandbox
    from audiotag.rehearse.smoke import Smoke
    from audiotag.train.baseline import Baseline
    from audiotag.train.continue_run import KeptTrainings
    from audiotag.train.plan import RunPlan

    clips, pairs = pd.DataFrame({"source": ["test"]}), {BAD: BAD}
    store, kept = FeatureStore.__new__(FeatureStore), KeptTrainings.__new__(KeptTrainings)
    store.folder, store.clips = Path(BAD), [1]
    kept.folder, kept.stages = Path(BAD), {BAD: [0]}
    kept.before = SimpleNamespace(folder=Path(BAD), planned=SimpleNamespace(n_folds=3))
    bundle = SimpleNamespace(name=BAD, member_name=lambda i: BAD)
    ran = [dict(name=BAD, precision="torch", seconds=1.0, windows=1, why=BAD, slower=BAD)]
    stage = dict(fold_s=1.0, epochs=1, batches=1)
    result = RunResult("hidden", 1, pairs, findings=[BAD], why=BAD)
    return [
        AudiotagError(BAD, file=BAD, field=BAD, fix=BAD),
        Competition("mine", Path(BAD), (BAD,), clips, clips, BAD, "accuracy"),
        store,
        kept,
        Finding(BAD, "no"),
        Member(bundle, 0, None, why=BAD),
        Report(BAD, ran=ran, left_out=pairs, prior=pairs, notes=[f"{BAD}\n{BAD}"]),
        Guess(findings=[("labels", BAD, BAD)], doubts=[BAD]),
        Smoke(Path(BAD), {"curated": 1}, {BAD: 1.0}, [BAD]),
        Rehearsal(BAD, Limits(), Sandbox("none", False, False, False), [result], problems=[BAD], notes=[BAD]),
        Baseline("accuracy", {BAD: 1.0}, BAD, clips, clips, pairs),
        RunPlan(
            stages={BAD: stage},
            folds=3,
            parallel=1,
            features=dict(seconds=1.0, bytes=1),
            disk=1,
            free=1,
            memory=1,
            gpu_memory=0,
            took=1.0,
        ),
    ]


def test_no_object_shows_a_name_raw_or_whole():
    "In a notebook, too, where `print` and the value of a cell show them without `show`."
    shown = objects_with_bad_names()
    for o in shown:
        for text in (str(o), repr(o)) if type(o).__str__ is object.__str__ else (str(o),):
            assert not set(text) & set("\x1b\x9b\u202e") and len(text) < 9000, type(o)
    own = {
        node.name
        for path in Path(audiotag.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for f in node.body
        if isinstance(f, ast.FunctionDef) and f.name in ("__str__", "__repr__")
    }
    without_names = {"Deadline", "MemberState", "ThresholdRule", "LabelReview"}
    assert own - without_names == {type(o).__name__ for o in shown}
