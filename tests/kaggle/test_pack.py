"Mount layouts, packed folders, wheels, and the inference notebook in a rehearsal and at home."

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from audiotag.core.errors import AudiotagError
from audiotag.core.files import read_json, write_bytes, write_json, write_text
from audiotag.kaggle.paths import find_input
from audiotag.kaggle.pack import (
    changed_files,
    check_metadata,
    check_replaceable,
    dataset_files,
    dataset_metadata,
    dataset_page,
    read_manifest,
    slug_of,
    write_manifest,
)
from audiotag.kaggle.notebook import notebook_sources, read_notebook
from audiotag.audio.synth import make_competition
from audiotag.kaggle.wheels import audiotag_wheel, pack_wheels

REPO = Path(__file__).resolve().parent.parent.parent
INFER = REPO / "nbs" / "kaggle" / "infer_freesound2019.ipynb"


# --- mounts ---------------------------------------------------------------------------------------

MOUNTS = {
    "a competition, new": ("competitions/birds", "birds"),
    "a competition, old": ("birds", "birds"),
    "a competition by its kind": ("competitions/birds", "competitions/birds"),
    "a dataset, new": ("datasets/ann/weights", "weights"),
    "a dataset, new, with its owner": ("datasets/ann/weights", "ann/weights"),
    "a dataset, old, with its owner": ("weights", "ann/weights"),
    "a dataset by its kind": ("datasets/ann/weights", "datasets/ann/weights"),
    "a notebook's output": ("notebooks/ann/features", "ann/features"),
    "a model": ("models/ann/birdnet/pytorch/small/3", "ann/birdnet"),
    "a model in full": ("models/ann/birdnet/pytorch/small/3", "ann/birdnet/pytorch/small/3"),
    "a model, old": ("birdnet/pytorch/small/3", "ann/birdnet/pytorch/small/3"),
    "a model, old, by its slug": ("birdnet/pytorch/small/3", "birdnet"),
}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "In a folder without a kaggle_datasets above it."
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.delenv("AUDIOTAG_INPUT", raising=False)


@pytest.mark.parametrize("what", MOUNTS)
@pytest.mark.parametrize("by", ["root", "AUDIOTAG_INPUT"])
def test_each_mount_is_found(tmp_path, monkeypatch, what, by):
    place, name = MOUNTS[what]
    for p in (place, "datasets/bob/others", "competitions/cats"):
        write_text(tmp_path / "in" / p / "mark.txt", p)
    if by == "AUDIOTAG_INPUT":
        monkeypatch.setenv("AUDIOTAG_INPUT", os.pathsep.join([str(tmp_path / "nowhere"), str(tmp_path / "in")]))
    root = tmp_path / "in" if by == "root" else tmp_path / "none"
    assert find_input(name, sentinel="mark.txt", root=root) == tmp_path / "in" / place


def test_at_home(tmp_path, monkeypatch):
    write_text(tmp_path / "kaggle_datasets" / "weights" / "bundle.json", "{}")
    assert (
        find_input("ann/weights", sentinel="bundle.json", root=tmp_path / "none")
        == tmp_path / "kaggle_datasets" / "weights"
    )
    assert find_input("../kaggle_datasets/weights", sentinel="bundle.json").samefile(
        tmp_path / "kaggle_datasets" / "weights"
    )
    write_text(tmp_path / "data" / "birds" / "sample_submission.csv", "")
    monkeypatch.setenv("AUDIOTAG_INPUT", str(tmp_path / "data" / "birds"))
    assert find_input("birds", sentinel="sample_submission.csv", root=tmp_path / "none") == tmp_path / "data" / "birds"


def test_two_candidates_are_an_error(tmp_path):
    root = tmp_path / "in"
    a, b = root / "datasets/ann/weights", root / "datasets/bob/weights"
    for f in (a, b):
        write_text(f / "bundle.json", f.parent.name)
    with pytest.raises(AudiotagError, match="could be any of .*ann/weights, .*bob/weights"):
        find_input("weights", sentinel="bundle.json", root=root)
    assert find_input("bob/weights", sentinel="bundle.json", root=root) == b
    write_text(root / "weights" / "bundle.json", "whose?")
    assert find_input("bob/weights", sentinel="bundle.json", root=root) == b, "the owner is written on one of them only"


def test_one_input_in_both_layouts_is_found(tmp_path):
    root = tmp_path / "in"
    new, old = root / "competitions/birds", root / "birds"
    for f in (new, old):
        write_text(f / "sample_submission.csv", "row_id\n")
        write_bytes(f / "train" / "a.wav", b"x" * 10)
    assert find_input("birds", sentinel="sample_submission.csv", root=root) == new
    write_bytes(old / "train" / "a.wav", b"x" * 11)
    with pytest.raises(AudiotagError, match="could be any of"):
        find_input("birds", sentinel="sample_submission.csv", root=root)
    shutil.rmtree(old)
    os.symlink(new, old)
    assert find_input("birds", sentinel="sample_submission.csv", root=root) == new


def test_the_same_names_and_sizes_with_other_bytes_are_two(tmp_path):
    for place, text in (("datasets/ann/w", '{"a": 1}'), ("w", '{"a": 2}')):
        write_text(tmp_path / place / "bundle.json", text)
    with pytest.raises(AudiotagError, match="could be any of"):
        find_input("w", sentinel="bundle.json", root=tmp_path)


def test_an_archive_that_was_unpacked_into_a_subfolder(tmp_path):
    write_text(tmp_path / "datasets/ann/weights/weights/bundle.json", "{}")
    assert (
        find_input("weights", sentinel="bundle.json", root=tmp_path).name == "weights"
        and find_input("weights", sentinel="bundle.json", root=tmp_path).parent.name == "weights"
    )
    write_text(tmp_path / "datasets/ann/weights/other/bundle.json", "{ }")
    with pytest.raises(AudiotagError, match="could be any of"):
        find_input("weights", sentinel="bundle.json", root=tmp_path)


def test_the_error_lists_searched_places_and_similar_names(tmp_path):
    write_text(tmp_path / "datasets/ann/bird-weights/bundle.json", "{}")
    write_text(tmp_path / "competitions/birdclef-2024/sample_submission.csv", "")
    with pytest.raises(AudiotagError) as e:
        find_input("birdclef-2042", sentinel="sample_submission.csv", root=tmp_path)
    for word in (
        "competitions/birdclef-2042",
        "datasets/*/birdclef-2042",
        "did you mean",
        str(tmp_path / "competitions/birdclef-2024"),
        "AUDIOTAG_INPUT",
    ):
        assert word in str(e.value)
    with pytest.raises(AudiotagError, match="holds no 'bundle.json', but sample_submission.csv"):
        find_input("birdclef-2024", sentinel="bundle.json", root=tmp_path)
    with pytest.raises(AudiotagError, match="ann/bird-weights"):
        find_input("bob/bird-weights", sentinel="bundle.json", root=tmp_path)


@pytest.mark.parametrize("name", ["", " ", "/", "../..x", "a b", "*", "we[i]ghts", "a/b/c/d/e/f/g"])
def test_odd_names_find_nothing(tmp_path, name):
    write_text(tmp_path / "datasets/ann/weights/bundle.json", "{}")
    if Path(name).expanduser().is_dir() and name.strip():
        return
    with pytest.raises(AudiotagError):
        find_input(name, sentinel="bundle.json", root=tmp_path)


# --- packed folders -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,slug", [("Freesound 2019_weights", "freesound-2019-weights"), ("ab", "audiotag-ab"), ("-x-" * 5, "x-x-x-x-x")]
)
def test_slugs(name, slug):
    assert slug_of(name) == slug and check_metadata(dataset_metadata(name, owner="ann"))["id"] == f"ann/{slug}"


@pytest.mark.parametrize(
    "change",
    [
        {"title": "x" * 51},
        {"title": 7},
        {"id": "a/b/c-d-e-f"},
        {"id": None},
        {"licenses": [{"name": "MIT"}, {"name": "CC0-1.0"}]},
        {"licenses": ["MIT"]},
        {"subtitle": "x" * 81},
        {"keywords": "audio"},
        {"resources": [{"name": "a"}]},
        {"id": "ann/" + "x" * 51},
        {"id": "ann/ÜberWeights"},
    ],
)
def test_metadata_that_kaggle_would_refuse(change):
    with pytest.raises(AudiotagError):
        check_metadata({**dataset_metadata("weights", owner="ann"), **change})
    with pytest.raises(AudiotagError):
        check_metadata([change])


def test_files_that_kaggle_would_refuse(tmp_path):
    f = tmp_path / "set"
    for bad in ("a&b.bin", "ä.bin", ".hidden", "kernel-metadata.json", "dataset-cover-image.png"):
        write_bytes(f / bad, b"x")
        with pytest.raises(AudiotagError):
            dataset_files(f)
        (f / bad).unlink()
    with pytest.raises(AudiotagError, match="holds no files"):
        dataset_files(f)
    write_bytes(f / "audiotag-0.1.0+local-py3-none-any.whl", b"x")
    assert dataset_files(f) == {"audiotag-0.1.0+local-py3-none-any.whl": 1}
    os.truncate(f / "audiotag-0.1.0+local-py3-none-any.whl", 201 * 10**9)  # sparse
    with pytest.raises(AudiotagError, match="201 GB"):
        dataset_files(f)


def test_the_manifest_is_the_same_again_and_sees_every_change(tmp_path):
    for n in ("a", "b"):
        write_text(tmp_path / "s" / n, n)
    write_manifest(tmp_path / "s", "weights")
    first = (tmp_path / "s" / "manifest.json").read_bytes()
    write_manifest(tmp_path / "s", "weights")
    assert (tmp_path / "s" / "manifest.json").read_bytes() == first and changed_files(tmp_path / "s") == []
    assert read_manifest(tmp_path / "s")["files"]["a"] == {"size": 1, "sha256": hashlib.sha256(b"a").hexdigest()}
    write_text(tmp_path / "s" / "a", "c")
    (tmp_path / "s" / "b").unlink()
    assert changed_files(tmp_path / "s") == ["a", "b"]
    write_text(tmp_path / "s" / "manifest.json", "[]")
    with pytest.raises(AudiotagError, match="not a manifest"):
        read_manifest(tmp_path / "s")


def test_the_users_metadata_stays(tmp_path):
    mine = {
        **dataset_metadata("weights", owner="ann", title="Weights of mine"),
        "description": "my page",
        "keywords": ["birds"],
    }
    write_json(tmp_path / "weights" / "dataset-metadata.json", mine)
    made = dataset_page(tmp_path / "weights", "new words")
    assert json.loads(made["dataset-metadata.json"]) == mine and made["README.md"] == b"new words"
    assert (
        json.loads(dataset_page(tmp_path / "weights", "new", owner="bob")["dataset-metadata.json"])["id"]
        == "bob/weights"
    )
    write_text(tmp_path / "weights" / "dataset-metadata.json", "{}")
    with pytest.raises(AudiotagError, match="dataset-metadata.json"):
        dataset_page(tmp_path / "weights", "new words")


# --- wheels ---------------------------------------------------------------------------------------


def fake_wheel(folder, name):
    package, version = name.split("-")[:2]
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as z:
        for file, text in (
            ("METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"),
            ("WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"),
            ("RECORD", ""),
        ):
            z.writestr(f"{package}-{version}.dist-info/{file}", text)
        z.writestr(f"{package}/__init__.py", "")


@pytest.fixture
def index(tmp_path, monkeypatch):
    "A folder in place of PyPI: openvino for two Pythons and a platform that the image does not have."
    for n in (
        "openvino-2026.4.1-1-cp312-cp312-manylinux_2_28_x86_64.whl",
        "openvino-2026.4.1-1-cp313-cp313-manylinux_2_28_x86_64.whl",
        "openvino-2026.4.1-1-cp311-cp311-macosx_11_0_arm64.whl",
        "openvino_telemetry-2025.2.0-py3-none-any.whl",
    ):
        fake_wheel(tmp_path / "index", n)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


REQUIREMENTS = ["openvino==2026.4.1"]


def test_wheels_for_the_kernels_python(index, tmp_path):
    folder = pack_wheels(tmp_path / "audiotag-wheels", pythons=["3.12", "3.13"], requirements=REQUIREMENTS, owner="ann")
    names = {p.name for p in folder.glob("*.whl")}
    assert (
        {n.split("-")[0] for n in names} == {"audiotag", "openvino"}
        and len(names) == 3
        and not any("macosx" in n for n in names)
    )
    assert (
        changed_files(folder) == []
        and set(read_manifest(folder)["files"]) == names | {"README.md"}
        and read_json(folder / "dataset-metadata.json")["id"] == "ann/audiotag-wheels"
        and read_json(folder / "dataset-metadata.json")["licenses"] == [{"name": "Apache 2.0"}]
    )
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    for pythons, requirements, word in (
        (["3.11"], REQUIREMENTS, "3.11"),
        (["3.12"], ["openvino==1.0"], "openvino==1.0"),
        (["2.7"], REQUIREMENTS, "2.7"),
        ([], REQUIREMENTS, "no Python version"),
    ):
        with pytest.raises(AudiotagError, match=word):
            pack_wheels(folder, pythons=pythons, requirements=requirements)
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}, "nothing half-done"
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".part")] == []
    pack_wheels(folder, pythons=["3.12"], requirements=REQUIREMENTS)
    assert (
        len(list(folder.glob("*.whl"))) == 2
        and read_json(folder / "dataset-metadata.json")["id"] == "ann/audiotag-wheels"
    )
    write_text(folder / "notes.txt", "mine")
    with pytest.raises(AudiotagError, match="notes.txt"):
        pack_wheels(folder, pythons=["3.12"], requirements=REQUIREMENTS)


def test_what_only_sends_statistics_is_never_carried(index, tmp_path, monkeypatch, capsys):
    "Not by default, not on request, and not from a folder that an older version has packed."
    monkeypatch.setattr("audiotag.kaggle.wheels._pinned_requirement", lambda name: f"{name}==2026.4.1")
    folder = pack_wheels(tmp_path / "audiotag-wheels", pythons=["3.12", "3.13"])
    assert {p.name.split("-")[0] for p in folder.glob("*.whl")} == {"audiotag", "openvino"}
    for name in ("openvino-telemetry", "OpenVINO.Telemetry==2025.2.0", " openvino_telemetry >= 1"):
        with pytest.raises(AudiotagError, match="only sends statistics.*OpenVINO works without it"):
            pack_wheels(folder, pythons=["3.12"], requirements=[*REQUIREMENTS, name])
    shutil.copy(index / "openvino_telemetry-2025.2.0-py3-none-any.whl", folder)
    write_manifest(folder, "wheels")
    capsys.readouterr()
    pack_wheels(folder, pythons=["3.12"])
    printed = capsys.readouterr().err
    assert "removed openvino_telemetry-2025.2.0-py3-none-any.whl: it only sends statistics" in printed
    assert "cp313-manylinux_2_28_x86_64.whl: not requested this time" in printed and printed.count("removed ") == 2
    assert {p.name.split("-")[0] for p in folder.glob("*.whl")} == {"audiotag", "openvino"}


def test_packing_replaces_only_what_packing_made(index, tmp_path):
    "A wheel that the user added, and a folder with other content, are not replaced."
    folder = pack_wheels(tmp_path / "audiotag-wheels", pythons=["3.12"], requirements=REQUIREMENTS)
    fake_wheel(folder, "mine-1.0-py3-none-any.whl")
    with pytest.raises(AudiotagError, match="mine-1.0-py3-none-any.whl"):
        pack_wheels(folder, pythons=["3.12"], requirements=REQUIREMENTS)
    (folder / "mine-1.0-py3-none-any.whl").unlink()
    with pytest.raises(AudiotagError, match="holds packed wheels, not weights"):
        check_replaceable(folder, "weights")
    pack_wheels(folder, pythons=["3.12"], requirements=REQUIREMENTS)


def test_our_wheel_is_what_pip_installs(tmp_path):
    wheel = audiotag_wheel(tmp_path)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        str(wheel),
    ]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import audiotag.kaggle.paths, audiotag.infer.predict; print(audiotag.kaggle.paths.__file__, audiotag.kaggle.paths.describe_environment())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert str(tmp_path / "site") in out.stdout and "audiotag 0." in out.stdout, out.stderr
    made = {
        p.relative_to(tmp_path / "site").as_posix(): p.read_bytes()
        for p in (tmp_path / "site" / "audiotag").rglob("*.py")
    }
    assert made == {
        f"audiotag/{p.relative_to(REPO / 'audiotag').as_posix()}": p.read_bytes()
        for p in (REPO / "audiotag").rglob("*.py")
    }


def test_a_wheel_may_also_lie_on_the_path(tmp_path):
    wheel = audiotag_wheel(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(wheel)!r}); import audiotag.kaggle.paths; print(audiotag.kaggle.paths.__file__)"
    assert (
        str(wheel) in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path).stdout
    )


# --- the notebook ---------------------------------------------------------------------------------


def test_what_the_notebook_names_is_what_is_pushed():
    found = notebook_sources(read_notebook(INFER))
    assert found.competitions == ["freesound-audio-tagging-2019"] and found.datasets == [
        "freesound2019-weights",
        "audiotag-wheels",
    ]


@pytest.mark.parametrize("path", sorted(INFER.parent.glob("infer_*.ipynb")), ids=lambda p: p.stem)
def test_they_begin_alike_and_nothing_in_them_is_longer_than_a_screen(path):
    cells = read_notebook(path).cells
    for cell in cells:
        lines = cell.source.splitlines()
        assert len(lines) <= 25 and all(len(line) <= 200 for line in lines)
    first, ours = (
        next(c.source for c in book if c.cell_type == "code") for book in (cells, read_notebook(INFER).cells)
    )
    assert first == ours and "--no-index" in first and "--no-deps" in first
    found = notebook_sources(read_notebook(path))
    assert len(found.competitions) == 1 and "audiotag-wheels" in found.datasets and len(found.datasets) == 2


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    "A competition, and a bundle of an untrained network."
    import torch

    from audiotag.infer.bundle import seal
    from audiotag.audio.features import LogMel, Standardize
    from audiotag.models.cnn import CNNModel1
    from audiotag.infer.windows import Windows

    tmp = tmp_path_factory.mktemp("toy")
    data = make_competition(
        tmp / "data", seed=2, n_curated=8, n_noisy=8, n_test=6, sample_rate=16000, seconds=(0.4, 0.8)
    )
    classes = list(pd.read_csv(data / "sample_submission.csv").columns[1:])
    fe, model = (
        LogMel(sample_rate=16000, n_fft=512, hop_length=128, n_mels=32, f_max=None, scaling=Standardize()),
        CNNModel1(width=4),
    )
    torch.manual_seed(0)
    seal(
        tmp / "freesound2019-weights",
        name="toy",
        classes=classes,
        front_end=fe,
        windows=Windows(frames=64, hop=32),
        activation="sigmoid",
        model=model,
        prior=np.full(len(classes), 1 / len(classes)),
        members=[dict(stage="curated", fold=0, oof={"curated": 0.5}, state=model.build(len(classes)).state_dict())],
        about={"oof": {"curated, lwlrap curated": 0.5}},
    )
    return tmp


@pytest.mark.long
@pytest.mark.parametrize("mounts", ["new", pytest.param("old", marks=pytest.mark.long)])
def test_rehearsed_with_our_wheel_alone(toy, tmp_path, mounts):
    "As on Kaggle: audiotag comes as a wheel, openvino is missing, nine files are faulty; then again without test files."
    from audiotag.rehearse.rehearse import Limits, rehearse
    from audiotag.rehearse.sandbox import find_sandbox

    if not find_sandbox().files:
        pytest.skip("no mounts without namespaces")
    (tmp_path / "audiotag-wheels").mkdir()
    audiotag_wheel(tmp_path / "audiotag-wheels")
    # an older version has packed it
    fake_wheel(tmp_path / "audiotag-wheels", "openvino_telemetry-2025.2.0-py3-none-any.whl")
    found = rehearse(
        INFER,
        competition=toy / "data",
        bundles=[toy / "freesound2019-weights", tmp_path / "audiotag-wheels"],
        out=tmp_path / "out",
        mounts=mounts,
        limits=Limits(limit="9min"),
        empty=mounts == "new",
    )
    assert found.ok and "lacks 'audiotag', imported in cell 1: installed from a wheel" in str(found), found
    assert str(found).count("note: freesound2019-weights: this bundle has no OpenVINO graphs") == 1
    book = nbformat.read(tmp_path / "out" / "hidden" / "executed.ipynb", 4)
    printed = book.cells[2].outputs[0].text
    assert "openvino_telemetry" not in str(found)
    assert "Kaggle, Batch" in printed and "openvino missing (torch takes its place)" in printed
    assert found.runs[0].files == 18 and len(found.runs[0].faults) == 9
    table = pd.read_csv(tmp_path / "out" / "hidden" / "working" / "submission.csv", index_col=0)
    scored = table.drop(
        [n for n, f in found.runs[0].faults.items() if f in ("empty file", "text in place of sound", "NaN")]
    )
    assert len(table) == 18 and not (scored.to_numpy() == pytest.approx(1 / table.shape[1], abs=1e-6))


def test_files_that_an_export_adds_are_accepted(toy, tmp_path):
    "The bundle lists them: the manifest is updated, and packing again may replace them."
    from audiotag.infer.bundle import Bundle, reseal
    from audiotag.kaggle.client import _check_packed

    shutil.copytree(toy / "freesound2019-weights", tmp_path / "w")
    write_manifest(tmp_path / "w", "weights")
    reseal(Bundle(tmp_path / "w"), files={"fold-0.xml": b"<net/>", "gate.json": b"{}"})
    assert changed_files(tmp_path / "w") == ["bundle.json", "fold-0.xml", "gate.json"]
    _check_packed(tmp_path / "w")
    assert changed_files(tmp_path / "w") == []
    check_replaceable(tmp_path / "w", "weights")
    write_bytes(tmp_path / "w" / "gate.json", b"[]")
    with pytest.raises(AudiotagError, match="gate.json"):
        _check_packed(tmp_path / "w")


@pytest.mark.long
def test_the_training_notebook_from_the_first_cell_to_the_last(tiny_data, tmp_path):
    "On a tiny competition; its last cell packs the weights and opens them."
    from tests.tiny import SETS

    from audiotag.rehearse.rehearse import run_notebook

    parameters = {"DATA": str(tiny_data), "WEIGHTS": str(tmp_path / "tiny-weights"), "CHANGES": SETS}
    done = nbformat.read(
        run_notebook(
            INFER.with_name("train_freesound2019.ipynb"),
            tmp_path / "work",
            timeout=600,
            parameters=parameters,
            env={"OMP_NUM_THREADS": "1"},
        ),
        4,
    )
    assert "30 rows, 30 scored by 6 networks" in "".join(o.get("text", "") for o in done.cells[-1].outputs)
    assert not [o for c in done.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    assert len(pd.read_csv(tmp_path / "work" / "runs" / "freesound2019-small" / "submission.csv")) == 30
    made = tmp_path / "tiny-weights"
    assert changed_files(made) == [] and "bundle.json" in dataset_files(made)
    readme = (made / "README.md").read_text()
    assert (
        "| out of fold, by stage | lwlrap noisy | lwlrap curated |" in readme
        and read_json(made / "dataset-metadata.json")["description"] == readme
    )


@pytest.mark.long
def test_at_home_unchanged_but_for_the_paths(toy, tmp_path):
    from audiotag.rehearse.rehearse import run_notebook

    done = run_notebook(
        INFER,
        tmp_path / "work",
        parameters={"DATA": str(toy / "data"), "WEIGHTS": str(toy / "freesound2019-weights"), "LIMIT": "9min"},
        env={"OMP_NUM_THREADS": "1"},
    )
    printed = nbformat.read(done, 4).cells[2].outputs[0].text
    assert printed.startswith("home: Python") and len(pd.read_csv(tmp_path / "work" / "submission.csv")) == 6


def test_links_that_lead_back_are_entered_once(tmp_path):
    "Two folders are compared file by file; with two such links in each, there would be more paths than atoms."
    for name in ("competitions/birds", "birds"):
        folder = tmp_path / "in" / name
        (folder / "inner").mkdir(parents=True)
        (folder / "mark.txt").write_text("x")
        for i in range(4):
            (folder / "inner" / f"up{i}").symlink_to("..")
    assert find_input("birds", sentinel="mark.txt", root=tmp_path / "in") == tmp_path / "in/competitions/birds"
