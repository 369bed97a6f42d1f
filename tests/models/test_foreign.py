"Foreign graphs: exact numbers, what is refused at home and in a bundle, and a sealed ensemble of members with other classes."

import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from audiotag.audio.features import Joined, LogMel, Peak, Waveform
from audiotag.audio.foreign import ForeignGraph, import_graph, import_table
from audiotag.core.config import config_from_dict
from audiotag.core.errors import AudiotagError
from audiotag.infer.bundle import Bundle, open_bundle, seal
from audiotag.infer.windows import Windows
from audiotag.models.foreign import ClassMap, class_columns, read_labels
from tests.onnx_file import write_onnx

torch.set_num_threads(1)
RATE, SAMPLES = 16000, 8000
WEIGHTS = np.random.default_rng(0).normal(size=(SAMPLES, 5)).astype(np.float32) / 90


def stranger(path, batch="n", samples=SAMPLES, weights=WEIGHTS, **changes):
    "Two outputs of a window: its absolute values times a matrix ('logits'), and the absolute values' sum ('loudness')."
    graph = dict(
        nodes=[
            ("Abs", ["wave"], ["size"]),
            ("MatMul", ["size", "w"], ["logits"]),
            ("MatMul", ["size", "one"], ["loudness"]),
        ],
        constants={"w": weights, "one": np.ones((len(weights), 1), np.float32)},
        inputs={"wave": [batch, samples]},
        outputs={"logits": [batch, weights.shape[1]], "loudness": [batch, 1]},
    )
    return write_onnx(path, **{**graph, **changes})


SETTINGS = dict(sample_rate=RATE, seconds=0.5, output="logits")


@pytest.fixture
def fe(tmp_path):
    return import_graph(stranger(tmp_path / "stranger.onnx"), tmp_path / "graph.xml", **SETTINGS)


def wave(n, seed=1):
    return np.random.default_rng(seed).uniform(-0.3, 0.3, n).astype(np.float32)


def test_an_onnx_graph_gives_its_numbers_window_by_window(fe):
    w = wave(20000)  # the last window ends with the wave
    expected = np.stack([np.abs(w[s : s + SAMPLES]) @ WEIGHTS for s in (0, 8000, 12000)], 1)
    np.testing.assert_allclose(fe(w), expected, atol=1e-5)
    assert fe(w).shape == (5, fe.n_frames(20000)) == (5, 3) and fe.width == 5
    short = wave(3000)
    np.testing.assert_allclose(fe(short)[:, 0], np.abs(short) @ WEIGHTS[:3000], atol=1e-5)
    many = fe.replace(hop_s=0.01)  # more windows than one call takes
    assert many(w).shape == (5, 76)
    np.testing.assert_allclose(many(w)[:, 40], np.abs(w[6400:14400]) @ WEIGHTS, atol=1e-5)


def test_windows_are_scaled_one_by_one(fe):
    w = wave(16000)
    w[8000:] *= 0.1
    scaled = fe.replace(window_scaling=Peak(), gain=0.25)(w)
    parts = [0.25 * o / np.abs(o).max() for o in (w[:8000], w[8000:])]
    np.testing.assert_allclose(scaled, np.stack([np.abs(o) @ WEIGHTS for o in parts], 1), atol=1e-5)


def test_a_graph_of_a_fixed_batch(tmp_path):
    fe = import_graph(stranger(tmp_path / "a.onnx", batch=2), tmp_path / "g.xml", **SETTINGS)
    np.testing.assert_allclose(fe(wave(24000))[:, 2], np.abs(wave(24000)[16000:]) @ WEIGHTS, atol=1e-5)


def test_a_graph_on_spectrograms_and_another_output(tmp_path):
    mel = LogMel(sample_rate=RATE, n_fft=512, hop_length=250, n_mels=8, f_max=None)
    frames = mel.n_frames(SAMPLES)
    write_onnx(
        tmp_path / "mel.onnx",
        nodes=[("Transpose", ["x"], ["t"]), ("MatMul", ["one", "t"], ["y"])],  # reverses all axes
        constants={"one": np.ones((1, frames), np.float32)},
        inputs={"x": [8, frames]},
        outputs={"y": [1, 8]},
    )
    with pytest.raises(AudiotagError, match="NFT are"):
        import_graph(
            tmp_path / "mel.onnx", tmp_path / "g.xml", sample_rate=RATE, seconds=0.5, features=mel, layout="NFT"
        )
    settings = dict(sample_rate=RATE, seconds=0.5, features=mel, layout="NFT", sha256="0" * 64, width=1)
    x = ForeignGraph(**settings).graph_inputs(wave(8000))
    np.testing.assert_array_equal(x[0], mel(wave(8000)))
    assert ForeignGraph(**{**settings, "layout": "NCTF"}).graph_inputs(wave(8000)).shape == (1, 1, frames, 8)
    loud = import_graph(stranger(tmp_path / "a.onnx"), tmp_path / "loud.xml", **{**SETTINGS, "output": 1})
    np.testing.assert_allclose(loud(wave(8000))[0, 0], np.abs(wave(8000)).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(sample_rate=32000), r"takes \[\?,8000\]; 0.5 s at 32000 Hz as NT are \(N, 16000\)"),
        (dict(seconds=1.0), r"1 s at 16000 Hz"),
        (dict(layout="NCT"), r"as NCT are \(N, 1, 8000\)"),
        (dict(output=None), r"has 2 outputs: name one of logits .*loudness"),
        (dict(output="label"), r"has no output 'label'"),
        (dict(layout="TN"), r"ForeignGraph.layout"),
        (dict(seconds=0.0), r"ForeignGraph.seconds"),
        (dict(hop_s=0.001), r"ForeignGraph.hop_s"),
        (dict(features=LogMel(sample_rate=44100)), r"ForeignGraph.features"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, changes, match):
    source = stranger(tmp_path / "stranger.onnx")
    with pytest.raises(AudiotagError, match=match):
        import_graph(source, tmp_path / "graph.xml", **{**SETTINGS, **changes})
    assert sorted(o.name for o in tmp_path.iterdir()) == ["stranger.onnx"]


def test_graphs_that_are_no_members(tmp_path):
    def refused(match, **changes):
        source = stranger(tmp_path / "a.onnx", **changes)
        with pytest.raises(AudiotagError, match=match):
            import_graph(source, tmp_path / "g.xml", **{**SETTINGS, "output": None})

    one_output = dict(
        outputs={"logits": ["n", 5]}, nodes=[("Abs", ["wave"], ["s"]), ("MatMul", ["s", "w"], ["logits"])]
    )
    refused("takes i64", inputs={"wave": (["n", SAMPLES], 7)}, outputs={"wave2": (["n", SAMPLES], 7)},
            nodes=[("Abs", ["wave"], ["wave2"])])  # fmt: skip
    refused("takes 2 inputs", inputs={"wave": ["n", SAMPLES], "w": [SAMPLES, 5]}, constants={}, **one_output)
    # a row depends on the others of its batch
    mean = [
        ("Abs", ["wave"], ["s"]),
        ("ReduceMean", ["s"], ["m"]),
        ("Sub", ["s", "m"], ["d"]),
        ("MatMul", ["d", "w"], ["logits"]),
    ]
    refused("different numbers in a batch and alone", nodes=mean, outputs={"logits": ["n", 5]})
    refused("not one row of numbers per window", nodes=[("MatMul", ["w", "wave"], ["logits"])], outputs={"logits": [SAMPLES, SAMPLES]},
            constants={"w": np.ones((3, SAMPLES, 1), np.float32)}, inputs={"wave": [1, SAMPLES]})  # fmt: skip
    (tmp_path / "b.onnx").write_bytes(b"no graph")
    with pytest.raises(AudiotagError, match="OpenVINO cannot read it"):
        import_graph(tmp_path / "b.onnx", tmp_path / "g.xml", **SETTINGS)
    with pytest.raises(AudiotagError, match="file not found"):
        import_graph(tmp_path / "c.onnx", tmp_path / "g.xml", **SETTINGS)
    (tmp_path / "g.xml").write_text("mine")
    with pytest.raises(AudiotagError, match="exists"):
        import_graph(stranger(tmp_path / "a.onnx"), tmp_path / "g.xml", **SETTINGS)
    assert (tmp_path / "g.xml").read_text() == "mine"


def test_the_hash_is_of_the_content_not_of_the_place(fe, tmp_path):
    moved = tmp_path / "moved" / "graph.xml"
    moved.parent.mkdir()
    for suffix in (".xml", ".bin"):
        shutil.copy(tmp_path / f"graph{suffix}", moved.with_suffix(suffix))
    there = fe.replace(graph=str(moved))
    assert there.hash == fe.hash and not fe.diff(there)
    assert config_from_dict(fe.to_dict()) == fe
    np.testing.assert_array_equal(there(wave(8000)), fe(wave(8000)))
    other = import_graph(stranger(tmp_path / "b.onnx", weights=WEIGHTS * 2), tmp_path / "other.xml", **SETTINGS)
    assert other.hash != fe.hash and set(fe.diff(other)) == {"sha256"}
    moved.with_suffix(".bin").unlink()
    with pytest.raises(AudiotagError, match="--set front_end.graph"):
        fe.replace(graph=str(moved), gain=3.0)(wave(8000))


def test_class_tables(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("a\nb\nc\n", encoding="utf-8-sig")
    header = tmp_path / "labels.csv"
    header.write_text("ebird2021,code\na,1\nb,2\n")
    assert read_labels(labels) == ["a", "b", "c"] and read_labels(header) == ["a", "b"]
    table = tmp_path / "map.csv"

    def columns(*rows, classes=("x", "y", "z"), several=False, names=read_labels(labels)):
        table.write_text("theirs,ours\n" + "".join(f"{row}\n" for row in rows))
        return class_columns(table, classes, names, several=several)

    assert columns("b,x", "b,z", "c,") == ((1,), (), (1,))
    assert columns("b,x", "a,x", several=True) == ((1, 0), (), ())
    assert columns("2,y", names=3) == ((), (2,), ())
    for rows, match in (
        (("d,x",), "row 1: the graph has no class 'd'"),
        (("a,x", "b,w"), "row 2: the competition has no class 'w'"),
        (("a,x", "a,x"), "row 2: 'a' is mapped to 'x' twice"),
        (("a,x", "b,x"), "row 2: 'x' has another class already, 'a'"),
        (("a,",), "maps no class"),
    ):
        with pytest.raises(AudiotagError, match=match):
            columns(*rows)
    labels.write_text("a\nb\na\n")
    with pytest.raises(AudiotagError, match="names 'a' twice"):
        read_labels(labels)
    os.mkfifo(tmp_path / "pipe.txt")
    header.write_text("code\n" + "x" * 200_000 + "\n")
    for path, said in ((tmp_path / "pipe.txt", "a named pipe"), (header, "not a valid csv")):
        with pytest.raises(AudiotagError, match=said):
            read_labels(path)


def test_class_map_numbers():
    z = np.array([[2.0, -1.0, 0.5]], np.float32)
    x, softmax = torch.from_numpy(z)[:, None, :, None], np.exp(z) / np.exp(z).sum()
    spec = ClassMap(columns=((2,), (), (0, 1)))

    def scores(**changes):
        return spec.replace(**changes).build(3)(x).sigmoid().numpy()[0]

    sigmoid = 1 / (1 + np.exp(-z[0]))
    np.testing.assert_allclose(scores(), [sigmoid[2], 1 / (1 + np.exp(30)), sigmoid[0]], atol=1e-6)
    np.testing.assert_allclose(scores(outputs="softmax")[[0, 2]], [softmax[0, 2], softmax[0, 0]], atol=1e-6)
    x = x.sigmoid()
    np.testing.assert_allclose(scores(outputs="probabilities")[[0, 2]], [sigmoid[2], sigmoid[0]], atol=1e-6)
    assert spec.masked == (1,)
    with pytest.raises(AudiotagError, match="maps to 3 classes"):
        spec.build(4)
    with pytest.raises(AudiotagError, match="gives 2 outputs"):
        spec.build(3)(x[:, :, :2])


def sealed(folder, fe, columns, *, name="foreign", classes=("x", "y", "z"), oof=0.9, **options):
    spec = ClassMap(columns=columns)
    member = dict(stage="foreign", fold=0, oof={"curated": oof}, state=spec.build(len(classes)).state_dict())
    settings = dict(
        windows=Windows(frames=1, hop=1), activation="sigmoid", model=spec, members=[member], prior=[0.2, 0.3, 0.4]
    )
    seal(folder, name=name, classes=classes, front_end=fe, **{**settings, **options})
    return folder


def test_a_bundle_holds_the_graph_and_no_path(fe, tmp_path):
    folder = sealed(tmp_path / "bundle", fe, ((3,), (), (0,)))
    assert str(tmp_path) not in (folder / "bundle.json").read_text()
    for suffix in (".xml", ".bin"):
        (tmp_path / f"graph{suffix}").unlink()
    moved = folder.rename(tmp_path / "elsewhere")
    bundle, (net,) = open_bundle(moved)
    assert bundle.front_end.hash == fe.hash and bundle.members[0]["masked"] == [1]
    expected = np.abs(wave(8000)) @ WEIGHTS
    np.testing.assert_allclose(bundle.front_end(wave(8000))[:, 0], expected, atol=1e-5)


def resealed(folder, **changes):
    from audiotag.infer.bundle import _write_sealed

    about = json.loads((folder / "bundle.json").read_text())
    del about["sha256"]
    _write_sealed(folder, {**about, **changes})


def test_what_a_strangers_bundle_is_refused_for(fe, tmp_path):
    folder = sealed(tmp_path / "bundle", fe, ((3,), (), (0,)))
    about = json.loads((folder / "bundle.json").read_text())

    def copy():
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        return shutil.copytree(folder, tmp_path / "copy")

    def refused(match, **changes):
        if changes:
            resealed(copy(), **changes)
        with pytest.raises(AudiotagError, match=match):
            open_bundle(tmp_path / "copy")

    data = (copy() / "front-end.bin").read_bytes()
    (tmp_path / "copy" / "front-end.bin").write_bytes(data[:-4] + b"\0\0\0\0")
    refused("was changed since it was packed")
    # the path that the settings name is not opened
    copy()
    resealed(tmp_path / "copy", front_end={**about["front_end"], "graph": "/etc/passwd"})
    assert Bundle(tmp_path / "copy").front_end.graph == str(tmp_path / "copy" / "front-end.xml")
    files = {k: v for k, v in about["files"].items() if k != "front-end.bin"}
    refused("lacks the graph or the table", files=files)
    refused("is another graph", front_end={**about["front_end"], "sha256": "0" * 64})
    refused("too much memory", front_end={**about["front_end"], "seconds": 120.0, "sample_rate": 1_000_000})
    refused("does not take windows", front_end={**about["front_end"], "seconds": 1.0})
    refused("the settings say 7", front_end={**about["front_end"], "width": 7})
    for masked in ([3], [1, 1], [0, 1, 2], "x", [True]):
        refused("do not fit together", members=[{**about["members"][0], "masked": masked}])
    mel = LogMel(sample_rate=RATE, f_max=None, n_fft=2**20, hop_length=1).to_dict()
    refused("too much memory", front_end={**about["front_end"], "features": mel, "layout": "NFT"})
    inner = {"main": {"kind": "CNNModel1", "front": about["front_end"]}}
    refused("CNNModel1|unknown|no field|front", models=inner)
    with pytest.raises(AudiotagError, match="cannot be one of several parts"):
        sealed(tmp_path / "joined", Joined(sample_rate=RATE, main=fe, beside=(Waveform(),)), ((3,), (), (0,)))


def test_a_graph_with_a_loop_is_refused_in_a_bundle(fe, tmp_path):
    from audiotag.audio.foreign import graph_sha256
    from audiotag.infer.bundle import _size_and_hash

    folder = sealed(tmp_path / "bundle", fe, ((3,), (), (0,)))
    path = folder / "front-end.xml"
    path.write_bytes(path.read_bytes().replace(b'type="Abs"', b'type="Loop"'))
    about = json.loads((folder / "bundle.json").read_text())
    about["files"]["front-end.xml"] = _size_and_hash(path)
    resealed(folder, files=about["files"], front_end={**about["front_end"], "sha256": graph_sha256(path)})
    with pytest.raises(AudiotagError, match="none of plain inference"):
        open_bundle(folder)


def rows(**changes):
    columns = dict(file=["b.wav", "a.wav", "a.wav"], start_s=[0.0, 5.0, 0.0], x=[1.0, 2.0, 3.0], y=[4, 5, 6])
    return pd.DataFrame({**columns, "source": ["test"] * 3, **changes})


def test_a_table_is_read_by_file_and_time(tmp_path):
    rows().to_parquet(tmp_path / "t.parquet")
    fe, columns = import_table(tmp_path / "t.parquet", tmp_path / "t.safetensors")
    assert columns == ["x", "y"] and fe.width == 2
    np.testing.assert_array_equal(fe.read_features("/far/a.wav"), [[3, 2], [6, 5]])
    np.testing.assert_array_equal(fe.read_features("a.wav", start_s=5.0), [[2], [5]])
    np.testing.assert_array_equal(fe.read_features("a.wav", start_s=0.0, end_s=5.0), [[3], [6]])
    with pytest.raises(AudiotagError, match="no row for 'c.wav'"):
        fe.read_features("c.wav")
    by_id = rows(file=["b", "a", "a"]).rename(columns={"file": "clip_id"}).set_index("clip_id")
    by_id.to_parquet(tmp_path / "ids.parquet")
    named, _ = import_table(tmp_path / "ids.parquet", tmp_path / "ids.safetensors")
    np.testing.assert_array_equal(named.read_features("b.ogg"), [[1], [4]])
    assert named.hash != fe.hash


@pytest.mark.parametrize(
    "changes, match",
    [
        (dict(start_s=[0.0, 5.0, 5.0]), "two rows for 'a.wav'"),
        (dict(x=[1.0, np.nan, 0.0]), "not finite"),
        (dict(x="1", y="2"), "holds no numbers"),
        (dict(file=None), "names no clips"),
    ],
)
def test_tables_that_are_refused(tmp_path, changes, match):
    table = rows(**changes)
    table.drop(columns=[c for c, v in changes.items() if v is None]).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(AudiotagError, match=match):
        import_table(tmp_path / "t.parquet", tmp_path / "t.safetensors")
    assert not (tmp_path / "t.safetensors").exists()


def test_a_bundle_holds_the_table(tmp_path):
    rows().to_parquet(tmp_path / "t.parquet")
    fe, _ = import_table(tmp_path / "t.parquet", tmp_path / "t.safetensors")
    folder = sealed(tmp_path / "bundle", fe, ((1,), (), (0,)))
    assert str(tmp_path) not in (folder / "bundle.json").read_text()
    (tmp_path / "t.safetensors").unlink()
    bundle, _ = open_bundle(folder)
    np.testing.assert_array_equal(bundle.front_end.read_features("b.wav"), [[1], [4]])
    path = folder / "front-end.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(AudiotagError, match="was changed since it was packed"):
        open_bundle(folder)
    with pytest.raises(AudiotagError, match="another table"):
        Bundle(folder).front_end.replace(table=str(path), sha256="1" * 64).read_features("b.wav")
