"Bundles: what is sealed comes back, under another torch too; what a stranger seals does no harm."

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from audiotag.infer.bundle import (
    LARGEST,
    Bundle,
    _size_and_hash,
    _compute_seal,
    by_front_end,
    open_bundle,
    open_bundles,
    reseal,
    seal,
)
from audiotag.core.errors import AudiotagError
from audiotag.models.blocks import NetworkSettings
from audiotag.core.files import read_json, write_json
from audiotag.audio.features import GlobalFeatures, Joined, Length, LogMel, Standardize, Waveform
from audiotag.models.cnn import CNNModel1
from audiotag.models.timm_backbone import Timm
from audiotag.infer.openvino_graphs import open_members
from audiotag.infer.windows import View, Windows

CLASSES = ("Bark", "Meow", "Rain")
FRONT = LogMel(sample_rate=16000, n_fft=512, hop_length=250, n_mels=32, f_max=8000.0, scaling=Standardize())
NET = CNNModel1(width=4, head="code")


def state(seed, net=NET, n=3):
    torch.manual_seed(seed)
    return net.build(n).state_dict()


def sealed(folder, **changes):
    "A bundle of two members."
    words = dict(
        name="toy",
        classes=CLASSES,
        front_end=FRONT,
        windows=Windows(frames=64, hop=32),
        activation="sigmoid",
        model=NET,
        prior=[0.4, 0.3, 0.3],
        members=[dict(stage="curated", fold=k, oof={"curated": 0.5}, state=state(k)) for k in (0, 1)],
    )
    seal(folder, **{**words, **changes})
    return folder


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    return sealed(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture
def copy(toy, tmp_path):
    shutil.copytree(toy, tmp_path / "b")
    return tmp_path / "b"


def seal_again(folder, **changes):
    "Change bundle.json, take the files as they are now, and seal it as somebody with bad intentions would."
    about = {**read_json(folder / "bundle.json"), **changes}
    if "files" not in changes:
        about["files"] = {f: _size_and_hash(folder / f) for f in about["files"] if (folder / f).is_file()}
    write_json(folder / "bundle.json", {**about, "sha256": _compute_seal(about)})


def refused(folder, *words):
    "Opening it is one sentence that names the file, and nothing was loaded."
    with pytest.raises(AudiotagError) as e:
        open_bundle(folder)
    said = str(e.value)
    assert all(w in said for w in words), said
    assert "Traceback" not in said and len(said) < 1000
    return said


# --- what is sealed comes back --------------------------------------------------------------------


def test_features_of_several_parts_are_sealed_and_replayed(tmp_path, joined_net):
    front = Joined(main=FRONT, beside=(GlobalFeatures(n_segments=16), Length()))
    front = Joined(sample_rate=16000, main=FRONT, beside=front.beside)
    members = [dict(stage="one", fold=0, oof={}, state=state(0, joined_net))]
    sealed(tmp_path / "b", front_end=front, model=joined_net, members=members)
    tensors = load_file(tmp_path / "b" / "golden.safetensors")
    assert {k: v.ndim for k, v in tensors.items()} == {
        "wave": 1,
        "features": 2,
        "beside-1": 2,
        "beside-2": 2,
        "scores": 2,
    }
    from audiotag.infer import bundle as module

    known, module._network_settings = module._network_settings, lambda d, where: joined_net
    try:
        open_bundle(tmp_path / "b")
        tensors["beside-1"] = tensors["beside-1"] + np.float32(0.1)
        save_file(tensors, tmp_path / "b" / "golden.safetensors")
        seal_again(tmp_path / "b")
        refused(tmp_path / "b", "beside-1", "front end")
    finally:
        module._network_settings = known


@pytest.fixture(scope="session")
def joined_net():
    from dataclasses import dataclass

    class Net(torch.nn.Module):
        def __init__(self, n):
            super().__init__()
            self.a, self.b, self.c = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(12, 4), torch.nn.Linear(9, n)

        def forward(self, x, segments, length):
            return self.c(torch.cat([self.a(x).amax((2, 3)), self.b(segments[:, 0]).mean(1), length[:, 0, 0]], 1))

    @dataclass(frozen=True, kw_only=True)
    class ThreeInputs(NetworkSettings):
        def build(self, n_classes):
            return Net(n_classes)

    return ThreeInputs()


def test_two_architectures_in_one_bundle(tmp_path):
    nets = {"main": NET, "wide": NET.replace(width=6)}
    members = [
        dict(stage="s", fold=0, oof={"curated": 0.5}, state=state(0)),
        dict(stage="s", fold=0, model="wide", oof={"curated": 0.6}, state=state(1, nets["wide"])),
    ]
    bundle, models = open_bundle(sealed(tmp_path / "b", model=nets, members=members))
    assert [m["file"] for m in bundle.members] == ["s.safetensors", "s-wide.safetensors"]
    assert [bundle.member_name(i) for i in (0, 1)] == ["s fold 0", "s fold 0 of wide"]
    assert [len(m.body[0][0].weight) for m in models] == [4, 6]


def test_views_are_part_of_the_golden_example(tmp_path):
    views = (View(), View(gain_db=-5), View(offset=7, pad_at="end"))
    one, three = (
        sealed(tmp_path / f"b{len(v)}", windows=Windows(frames=64, hop=32, views=v)) for v in (views[:1], views)
    )
    a, b = (load_file(f / "golden.safetensors")["scores"] for f in (one, three))
    assert not np.array_equal(a, b)
    open_bundle(three)
    seal_again(three, windows=Windows(frames=64, hop=32, views=views[:2]).to_dict())
    refused(three, "scores of member curated fold")


def test_reseal_keeps_the_rest_of_the_folder(copy):
    (copy / "README.md").write_text("mine")
    before = {p.name: p.read_bytes() for p in copy.iterdir() if p.name != "bundle.json"}
    reseal(Bundle(copy), files={"note.bin": b"1"}, note="hello")
    bundle, _ = open_bundle(copy)
    assert bundle.about["note"] == "hello" and "note.bin" in bundle.files
    assert {p.name: p.read_bytes() for p in copy.iterdir() if p.name not in ("bundle.json", "note.bin")} == before
    reseal(Bundle(copy), drop=["note.bin"])
    assert not (copy / "note.bin").exists() and "note.bin" not in Bundle(copy).files


def test_a_reseal_that_is_interrupted_leaves_the_old_bundle(copy, monkeypatch):
    import audiotag.infer.bundle as module

    before = {p.name: p.read_bytes() for p in copy.iterdir()}

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_sealed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reseal(Bundle(copy), files={"note.bin": b"1"})
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before and [p.name for p in copy.parent.iterdir()] == [
        "b"
    ]


# --- an ensemble ----------------------------------------------------------------------------------


def test_bundles_join_in_the_order_of_the_first(toy, tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 1, 32, 64)).astype("float32")
    turned = ("Rain", "Bark", "Meow")
    other = sealed(
        tmp_path / "other",
        classes=turned,
        prior=[0.1, 0.2, 0.3],
        members=[dict(stage="x", fold=0, oof={}, state=state(0))],
    )
    own = open_members(other)[0](x)
    both = open_members([toy, other])
    assert [m.bundle.name for m in both] == ["toy"] * 3 and len(both) == 3
    for j, name in enumerate(CLASSES):
        assert np.array_equal(both[2](x)[:, j], own[:, turned.index(name)])
    ensemble = open_bundles([toy, other])
    assert (
        ensemble.prior == pytest.approx(np.mean([[0.4, 0.3, 0.3], [0.2, 0.3, 0.1]], axis=0))
        and ensemble.classes == CLASSES
    )


def test_members_that_hear_the_same_are_grouped(toy, tmp_path):
    same = sealed(
        tmp_path / "same", windows=Windows(frames=32, hop=32), members=[dict(stage="x", fold=0, oof={}, state=state(3))]
    )
    other = sealed(
        tmp_path / "other",
        front_end=FRONT.replace(n_mels=40),
        members=[dict(stage="x", fold=0, oof={}, state=state(4))],
    )
    groups = by_front_end(open_members([toy, other, same]))
    assert [(fe.n_mels, len(members)) for fe, members in groups] == [(32, 3), (40, 1)]


def test_bundles_of_other_classes_do_not_join(toy, tmp_path):
    four = sealed(
        tmp_path / "four",
        classes=(*CLASSES, "Wind"),
        prior=[0.1] * 4,
        members=[dict(stage="x", fold=0, oof={}, state=state(0, n=4))],
    )
    with pytest.raises(AudiotagError, match="Wind"):
        open_bundles([toy, four])
    with pytest.raises(AudiotagError, match="twice"):
        open_bundles([toy, toy])
    with pytest.raises(AudiotagError):
        open_bundles([])


# --- from a stranger ------------------------------------------------------------------------------

BAD_JSON = {
    "deep lists": (dict(windows={"kind": "Windows", "frames": json.loads("[" * 600 + "]" * 600)}), []),
    "deep extra": (dict(note=json.loads("[" * 900 + "]" * 900)), []),
    "names that are numbers": (dict(classes=[1, 2, 3]), []),
    "a class twice": (dict(classes=["Bark", "Bark", "Rain"]), []),
    "a NaN in the prior": (dict(prior=[float("nan"), 0.3, 0.3]), []),
    "a member twice": (
        dict(
            members=[dict(stage="curated", fold=0, oof={}, model="main", file="curated.safetensors", prefix="fold-0.")]
            * 2
        ),
        [],
    ),
    "the same weights under two names": (
        dict(
            members=[
                dict(stage="curated", fold=k, oof={}, model="main", file="curated.safetensors", prefix="fold-0.")
                for k in (0, 1)
            ]
        ),
        [],
    ),
    "a score that is NaN": (
        dict(
            members=[
                dict(
                    stage="curated",
                    fold=0,
                    oof={"curated": float("nan")},
                    model="main",
                    file="curated.safetensors",
                    prefix="fold-0.",
                )
            ]
        ),
        [],
    ),
    "a fold that is true": (
        dict(
            members=[
                dict(stage="curated", fold=True, oof={}, model="main", file="curated.safetensors", prefix="fold-1.")
            ]
        ),
        [],
    ),
    "weights that are not listed": (
        dict(members=[dict(stage="curated", fold=0, oof={}, model="main", file="other.safetensors", prefix="fold-0.")]),
        [],
    ),
    "weights that are JSON": (
        dict(members=[dict(stage="curated", fold=0, oof={}, model="main", file="bundle.json", prefix="fold-0.")]),
        [],
    ),
    "a prefix that matches nothing": (
        dict(
            members=[dict(stage="curated", fold=0, oof={}, model="main", file="curated.safetensors", prefix="fold-9.")]
        ),
        ["expects"],
    ),
    "a prefix that matches too much": (
        dict(members=[dict(stage="curated", fold=0, oof={}, model="main", file="curated.safetensors", prefix="")]),
        ["expects"],
    ),
    "an unknown model": (dict(models={"main": {"kind": "Popen", "args": "true"}}), ["Popen"]),
    "a model that is a front end": (dict(models={"main": FRONT.to_dict()}), ["not a network"]),
    "a front end that is a model": (dict(front_end=NET.to_dict()), []),
    "settings of the base class": (dict(front_end={"kind": "FrontEnd"}), []),
    "a network of a billion channels": (
        dict(models={"main": {"kind": "CNNModel1", "width": 10**9, "head": "code", "in_channels": 1, "hidden": None}}),
        ["width"],
    ),
    "a dense layer of a trillion": (
        dict(models={"main": {"kind": "CNNModel1", "width": 4, "head": "code", "in_channels": 1, "hidden": 10**12}}),
        [],
    ),
    "another activation": (dict(activation="__import__('os')"), []),
    "graphs that are words": (dict(graphs=["x"]), []),
    "a graph of no member": (dict(graphs=[dict(member=7, precision="fp32", kept=False, said="")]), []),
    "a graph that is not listed": (
        dict(graphs=[dict(member=0, precision="fp32", kept=True, said="", file="x.xml", output=0, golden=0.1)]),
        [],
    ),
}


@pytest.mark.parametrize("what", BAD_JSON)
def test_json_from_a_stranger(copy, what):
    changes, words = BAD_JSON[what]
    seal_again(copy, **changes)
    refused(copy, *words)


def test_json_that_is_nested_deeper_than_python(copy):
    (copy / "bundle.json").write_text('{"schema": 1, "x": ' + "[" * 200_000 + "]" * 200_000 + "}")
    refused(copy, "bundle.json")


def test_json_with_a_key_twice(copy):
    "One reader takes the first, another the last: what was looked at may not be what is used."
    text = (copy / "bundle.json").read_text()
    (copy / "bundle.json").write_text(text.replace('"classes":', '"classes": ["x"], "classes":', 1))
    refused(copy, "bundle.json", "twice")


def test_json_that_is_too_large(copy):
    (copy / "bundle.json").write_text('{"schema": 1, "x": "' + "y" * LARGEST["bundle.json"] + '"}')
    refused(copy, "too large")


GREEDY = {
    "a filterbank of gigabytes": dict(front_end=FRONT.replace(n_fft=2**20, n_mels=8192).to_dict()),
    "a hop of one sample at a megahertz": dict(
        front_end=LogMel(sample_rate=1_000_000, n_fft=2**15, hop_length=1).to_dict()
    ),
    "a terahertz": dict(front_end=Waveform(sample_rate=10**12).to_dict()),
    "a billion segments": dict(front_end=GlobalFeatures(n_segments=10**9).to_dict()),
    "greed in a part": dict(
        front_end=Joined(sample_rate=16000, main=FRONT, beside=(GlobalFeatures(n_segments=10**9),)).to_dict()
    ),
    "a window of a million frames": dict(windows=Windows(frames=1_000_000, hop=1).to_dict()),
    "a hundred views of a large spectrogram": dict(
        front_end=LogMel(sample_rate=16000, n_fft=1024, hop_length=1, f_max=None).to_dict(),
        windows=Windows(frames=40000, hop=40000, views=tuple(View(gain_db=float(i)) for i in range(100))).to_dict(),
    ),
    "a hundred views of many windows": dict(
        front_end=Waveform(sample_rate=16000).to_dict(),
        windows=Windows(frames=200, hop=1, views=tuple(View(offset=i) for i in range(100))).to_dict(),
    ),
    "a window for each sample": dict(
        front_end=Waveform(sample_rate=44100).to_dict(), windows=Windows(frames=50_000, hop=1).to_dict()
    ),
}


@pytest.mark.parametrize("what", GREEDY)
def test_settings_that_ask_for_too_much_memory(copy, what):
    seal_again(copy, **GREEDY[what])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(copy, "too much memory")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_the_largest_network_that_timm_knows_is_not_built(copy):
    "Some have tables that are no weights; they are made as the network is, in memory, and here that would be 17 GB."
    seal_again(copy, models={"main": Timm(name="eva02_enormous_patch14_clip_224", size=(224, 224)).to_dict()})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(copy, "billion parameters")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize(
    "name",
    [
        "../other/curated.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        ".hidden.safetensors",
        "curated.safetensors\n",
        "con:x",
        "ａ.safetensors",
        "",
    ],
)
def test_names_that_lead_elsewhere(copy, name):
    about = read_json(copy / "bundle.json")
    seal_again(copy, files={**about["files"], name: {"size": 1, "sha256": ""}})
    refused(copy, "not a file name")
    members = [{**m, "file": name} for m in about["members"]]
    seal_again(copy, members=members)
    refused(copy)


@pytest.mark.parametrize("victim", ["curated.safetensors", "golden.safetensors", "bundle.json"])
def test_links_that_lead_out_of_the_folder(copy, tmp_path, victim):
    shutil.move(copy / victim, tmp_path / "elsewhere")
    (copy / victim).symlink_to(tmp_path / "elsewhere")
    refused(copy, "leads out")


def test_a_link_inside_of_the_folder_is_fine(copy):
    shutil.move(copy / "curated.safetensors", copy / "w.safetensors")
    (copy / "curated.safetensors").symlink_to("w.safetensors")
    open_bundle(copy)


def test_what_is_no_plain_file(copy):
    (copy / "curated.safetensors").unlink()
    os.mkfifo(copy / "curated.safetensors")
    refused(copy, "not found")


def test_a_sparse_file_of_terabytes(copy):
    with open(copy / "curated.safetensors", "r+b") as f:
        f.truncate(5 * 10**12)
    about = read_json(copy / "bundle.json")
    seal_again(copy, files={**about["files"], "curated.safetensors": {"size": 5 * 10**12, "sha256": "0" * 64}})
    refused(copy, "too large")


def header(path, change, data=None):
    "Rewrite the JSON header of a safetensors file."
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    text = change(json.loads(raw[8 : 8 + n]))
    text = text if isinstance(text, bytes) else json.dumps(text).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + (raw[8 + n :] if data is None else data))


def first(h):
    return next(k for k in h if k != "__metadata__")


def with_first(**changes):
    return lambda h: {**h, first(h): {**h[first(h)], **changes}}


HEADERS = {
    "a huge shape": with_first(shape=[2**40, 2**20]),
    "a shape that overflows": with_first(shape=[2**62, 4]),
    "a negative shape": with_first(shape=[-1]),
    "no elements, huge dimensions": lambda h: {
        **h,
        "fold-0.x": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]},
    },
    "offsets beyond the file": with_first(data_offsets=[0, 2**50]),
    "offsets that overlap": with_first(data_offsets=[4, 4]),
    "an unknown type": with_first(dtype="OBJECT"),
    "complex numbers": with_first(dtype="C64"),
    "a million tensors": lambda h: {
        **h,
        **{f"fold-0.{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)},
    },
    "deep JSON": lambda h: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "no JSON": lambda h: b"\xff" * 100,
    "another tensor": lambda h: {**h, "fold-0.extra": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_safetensors_header_from_a_stranger(copy, what):
    header(copy / "curated.safetensors", HEADERS[what])
    seal_again(copy)
    refused(copy, "curated.safetensors")


def test_a_header_length_that_lies(copy):
    path = copy / "curated.safetensors"
    for n in (0, 2**63, 2**64 - 1, 10**9):
        path.write_bytes(n.to_bytes(8, "little") + path.read_bytes()[8:])
        seal_again(copy)
        refused(copy, "curated.safetensors")
    path.write_bytes(b"abc")
    seal_again(copy)
    refused(copy, "curated.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(copy, value):
    tensors = load_file(copy / "curated.safetensors")
    name = next(k for k in tensors if k.endswith("weight"))
    tensors[name].reshape(-1)[0] = value
    save_file(tensors, copy / "curated.safetensors")
    seal_again(copy)
    refused(copy, "not finite", name)


GOLDEN = {
    "a wave of an hour": lambda t: {**t, "wave": np.zeros(16000 * 600, np.float32)},
    "no scores": lambda t: {k: v for k, v in t.items() if k != "scores"},
    "scores of other members": lambda t: {**t, "scores": t["scores"][:1]},
    "features of another shape": lambda t: {**t, "features": t["features"][:, :5]},
    "NaN in the features": lambda t: {**t, "features": t["features"] * np.float32("nan")},
    "scores that are a little off": lambda t: {**t, "scores": t["scores"] + np.float32(2e-4)},
    "a part more": lambda t: {**t, "beside-1": t["features"]},
}


@pytest.mark.parametrize("what", GOLDEN)
def test_a_golden_example_from_a_stranger(copy, what):
    tensors = GOLDEN[what](load_file(copy / "golden.safetensors"))
    save_file(tensors, copy / "golden.safetensors")
    seal_again(copy)
    refused(copy, "golden")


def test_a_golden_example_that_is_too_large(copy):
    save_file({"wave": np.zeros(LARGEST["golden.safetensors"] // 4, np.float32)}, copy / "golden.safetensors")
    seal_again(copy)
    refused(copy, "too large")


@pytest.mark.long
def test_nothing_is_loaded_before_the_shapes_are_known(copy):
    "A file whose tensors are not the network's is refused without reading them."
    big = {f"fold-{k}.w": np.zeros(20_000_000, np.float32) for k in (0, 1)}
    save_file(big, copy / "curated.safetensors")
    del big
    seal_again(copy)
    code = f"""import resource
from audiotag.infer.bundle import Bundle
from audiotag.core.errors import AudiotagError
import audiotag.models.cnn
b = Bundle({str(copy)!r}); b.check_files()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try: b.models(); print('opened')
except AudiotagError as e: print('refused', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)"""
    said, grown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert said == "refused" and int(grown) < 60_000


def test_every_file_is_checked_before_torch_sees_it(copy, monkeypatch):
    raw = (copy / "curated.safetensors").read_bytes()
    (copy / "curated.safetensors").write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    monkeypatch.setattr(Bundle, "model", lambda self, i: pytest.fail("was loaded"))
    refused(copy, "was changed")
    with pytest.raises(AudiotagError, match="was changed"):
        open_members(copy)


def test_a_difference_is_named_with_its_place(copy):
    seal_again(copy, front_end=FRONT.replace(f_min=60.0).to_dict())
    said = refused(copy, "features", "front end, band", "frame")
    assert "0.01 is allowed" in said
    tensors = load_file(copy / "curated.safetensors")
    name = next(k for k in tensors if k.startswith("fold-1.head") and k.endswith("bias"))
    tensors[name][2] += 1
    save_file(tensors, copy / "curated.safetensors")
    seal_again(copy, front_end=FRONT.to_dict())
    refused(copy, "curated fold 1")


# --- another torch --------------------------------------------------------------------------------

# by `sealed_small` under the torch that the folder is named after
OLD_FILES = Path(__file__).parent.parent / "old_files"


def sealed_small(folder):
    net = NET.replace(width=2)
    return sealed(
        folder,
        front_end=FRONT.replace(sample_rate=4000, n_fft=256, hop_length=64, n_mels=16, f_max=2000.0),
        model=net,
        members=[dict(stage="curated", fold=0, oof={"curated": 0.5}, state=state(0, net))],
    )


@pytest.mark.parametrize("version", ["2.4.1", "2.14.1"])
def test_what_another_torch_has_sealed(version):
    "An older and a newer one: the golden example comes out as it did there."
    bundle, models = open_bundle(OLD_FILES / f"torch-{version}")
    assert bundle.about["versions"]["torch"].split("+")[0] == version and len(models) == 1
    if torch.__version__.split("+")[0] == version:
        pytest.skip(f"this is torch {version} itself")


def test_other_torch(toy):
    """Opens under another torch: AUDIOTAG_OTHER_TORCH names Pythons that have one (and, beside it, what audiotag needs).

    A venv with `torch==2.4.1` and its nvidia packages alone, and a .pth file that names this one's site-packages, is enough.
    """
    other = os.environ.get("AUDIOTAG_OTHER_TORCH")
    if not other:
        pytest.skip("AUDIOTAG_OTHER_TORCH does not name a Python with another torch")
    code = f"""import torch; from audiotag.infer.openvino_graphs import open_members
members = open_members({str(toy)!r}, precision='torch'); print(torch.__version__, *map(str, members), sep='; ')"""
    for python in other.split(os.pathsep):
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr[-2000:]
        version, *members = done.stdout.strip().split("; ")
        assert version != torch.__version__ and members == ["toy: curated fold 0, torch", "toy: curated fold 1, torch"]


# --- what running it takes ------------------------------------------------------------------------


@pytest.mark.long
def test_a_small_network_that_takes_gigabytes_is_refused_by_running_it(tmp_path, monkeypatch):
    net = Timm(name="resnet10t", size=(48, 48))
    folder = sealed(tmp_path / "b", model=net, members=[dict(stage="curated", fold=0, oof={}, state=state(0, net))])
    about = read_json(folder / "bundle.json")
    seal_again(folder, models={"main": {**about["models"]["main"], "size": [2048, 2048]}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setattr("audiotag.infer.bundle.REPLAY_MEMORY", 5e8)  # sooner on a slow machine
    refused(folder, "memory")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB
    seal_again(folder, models={"main": {**about["models"]["main"], "size": [256, 256]}})
    monkeypatch.setattr("audiotag.infer.bundle.LARGEST_LAYER", 2**18)
    refused(folder, "numbers for one window: too much memory")


@pytest.mark.parametrize("limit", ["LARGEST_LAYER", "LARGEST_NETWORK", "LARGEST_REPLAY"])
def test_a_network_is_stopped_as_soon_as_it_computes_too_much(copy, monkeypatch, limit):
    "And not when it has ended, which may take hours."
    monkeypatch.setattr(f"audiotag.infer.bundle.{limit}", 1000)
    bundle = Bundle(copy)
    views, net, run = bundle.replay_features(), bundle.model(0), []
    last = [m for m in net.modules() if not any(m.children())][-1]
    last.register_forward_hook(lambda *args: run.append(1))
    with pytest.raises(AudiotagError, match="too much (memory|time)"):
        bundle.replay_network(0, net, views)
    assert not run


@pytest.mark.parametrize(
    "change", [dict(classes=[str(i) for i in range(100_000)], prior=[0.1] * 100_000), dict(after=[{}] * 20_000)]
)
def test_more_classes_or_steps_than_any_competition_has(copy, change):
    seal_again(copy, **change)
    refused(copy, "do not fit together")


@pytest.mark.parametrize("field", ["name", "classes", "layout"])
def test_half_of_a_surrogate_pair(copy, field):
    about = {**read_json(copy / "bundle.json"), field: ["a", "b", "HALF"] if field == "classes" else "HALF"}
    seal = _compute_seal(json.loads(json.dumps(about).replace("HALF", "\\ud800")))
    (copy / "bundle.json").write_text(json.dumps({**about, "sha256": seal}).replace("HALF", "\\ud800"))
    refused(copy, "not Unicode")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.complex64])
def test_numbers_that_numpy_lacks(copy, dtype):
    from safetensors.torch import load_file, save_file

    weights = load_file(copy / "curated.safetensors")
    save_file({k: v.to(dtype) for k, v in weights.items()}, copy / "curated.safetensors")
    seal_again(copy)
    refused(copy, "curated.safetensors")


def test_a_link_to_itself(copy):
    (copy / "golden.safetensors").unlink()
    (copy / "golden.safetensors").symlink_to("golden.safetensors")
    refused(copy, "a link that leads out")


def test_files_of_many_gigabytes_are_refused_before_one_is_hashed(copy, monkeypatch):
    for i in range(5):
        with open(copy / f"big{i}.bin", "wb") as f:
            f.truncate(4_000_000_000)
    about = read_json(copy / "bundle.json")
    big = {f"big{i}.bin": {"size": 4_000_000_000, "sha256": "0" * 64} for i in range(5)}
    seal_again(copy, files={**about["files"], **big})
    monkeypatch.setattr("audiotag.infer.bundle.file_sha256", lambda path: pytest.fail("was hashed"))
    refused(copy, "big3.bin", "too large")  # its weights and three of these are 12 GB, and some bytes
