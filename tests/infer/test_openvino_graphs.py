"Graphs: kept only if they agree, judged out of fold, replayed where they run; and a stranger's graph does no harm."

import json
import re
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import audiotag.infer.openvino_graphs as ovmod
from audiotag.infer.bundle import Bundle, _size_and_hash, _compute_seal, seal
from audiotag.core.errors import AudiotagError
from audiotag.models.blocks import NetworkSettings
from audiotag.core.files import read_json, write_json
from audiotag.core.seeding import rng
from audiotag.audio.features import GlobalFeatures, Joined, LogMel, Standardize
from audiotag.models.cnn import CNNModel1, VGG16BN
from audiotag.infer.openvino_graphs import (
    Evidence,
    Gate,
    evidence_in,
    export_bundle,
    gates_of,
    graph_run,
    graph_table,
    head_of,
    judge,
    open_members,
    to_graph,
    to_int8,
)
from audiotag.audio.synth import SOUNDS, sound
from audiotag.infer.windows import View, Windows

CLASSES = tuple(SOUNDS[:4])
FRONT = LogMel(sample_rate=16000, n_fft=512, hop_length=250, n_mels=32, f_max=8000.0, scaling=Standardize())
WINDOWS = Windows(frames=64, hop=32)
NET = CNNModel1(width=8, head="writeup")


def clips(n, seed, front_end=FRONT):
    g = rng(seed, "clips")
    kinds = g.integers(0, 4, n)
    return {
        f"{seed}-{i}": front_end(
            sound(CLASSES[k], g, seconds=float(g.uniform(0.5, 2.5)), sample_rate=16000).astype("float32")
        )
        for i, k in enumerate(kinds)
    }, kinds


def trained(x, kinds, seed, steps=25):
    torch.manual_seed(seed)
    net = NET.build(4)
    y = torch.nn.functional.one_hot(torch.from_numpy(kinds), 4).float()
    opt = torch.optim.Adam(net.parameters(), 3e-3)
    x = torch.from_numpy(np.concatenate([WINDOWS.cut(f)[:1] for f in x.values()]))
    for _ in range(steps):
        at = torch.randint(0, len(x), (16,))
        loss = nn.functional.binary_cross_entropy_with_logits(net(x[at]), y[at])
        opt.zero_grad(), loss.backward(), opt.step()
    return net.eval()


@pytest.fixture(scope="session")
def world():
    "Two trained networks, clips to judge them by, and their classes."
    features, kinds = clips(60, 0)
    new, new_kinds = clips(40, 1)
    truth = {c: np.eye(4)[k] for c, k in zip(new, new_kinds)}
    nets = [trained(features, kinds, seed) for seed in (0, 1)]
    return nets, new, Evidence(new.__getitem__, [list(new)] * 2, [list(new)[:12]] * 2, truth)


def make(folder, nets, **changes):
    words = dict(
        name="toy",
        classes=CLASSES,
        front_end=FRONT,
        windows=WINDOWS,
        activation="sigmoid",
        model=NET,
        prior=[0.25] * 4,
        members=[dict(stage="curated", fold=k, oof={}, state=n.state_dict()) for k, n in enumerate(nets)],
    )
    seal(folder, **{**words, **changes})
    return folder


@pytest.fixture(scope="session")
def exported(world, tmp_path_factory):
    folder = make(tmp_path_factory.mktemp("graphs") / "toy", world[0])
    export_bundle(folder, world[2], precision=("fp32", "int8"), gate=Gate(metric_loss=1.0))
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "b")
    return tmp_path / "b"


def seal_again(folder, **changes):
    about = {**read_json(folder / "bundle.json"), **changes}
    about["files"] = {f: _size_and_hash(folder / f) for f in about["files"]}
    write_json(folder / "bundle.json", {**about, "sha256": _compute_seal(about)})


def windows_of(features, n=20):
    return np.concatenate([WINDOWS.cut(f) for f in list(features.values())[:n]])


# --- they agree -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "net",
    [CNNModel1(width=4, head="code"), CNNModel1(width=4), CNNModel1(width=4, in_channels=3), VGG16BN(width=4)],
    ids=lambda n: f"{type(n).__name__}-{n.head}-{n.in_channels}",
)
def test_every_network_of_the_first_system_exports(net):
    torch.manual_seed(0)
    module = net.build(7).eval()
    for m in module.modules():  # statistics as after training
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_(), m.running_var.uniform_(0.5, 2)
    x = np.random.default_rng(0).normal(size=(3, 1, 32, 64)).astype("float32")
    graph = to_graph(module, x)
    for shape in ((1, 1, 32, 64), (5, 1, 32, 64), (2, 1, 32, 301)):  # batch and time are open
        x = np.random.default_rng(1).normal(size=shape).astype("float32")
        want = torch.sigmoid(module(torch.from_numpy(x))).detach().numpy()
        assert np.abs(graph_run(ovmod.compiled(graph), "sigmoid")(x) - want).max() < 1e-5


@pytest.mark.parametrize("batch", [None, 4])
def test_any_number_of_windows(world, batch):
    nets, features, _ = world
    run = graph_run(
        ovmod.compiled(to_graph(nets[0], windows_of(features)[:2], batch=batch, fixed_time=True)), "softmax"
    )
    for n in (0, 1, 3, 4, 5, 9):
        x = windows_of(features)[:n]
        p = run(x)
        assert p.shape == (n, 4) and p.dtype == np.float32
        with torch.no_grad():
            assert not n or np.abs(p - nets[0](torch.from_numpy(x)).softmax(1).numpy()).max() < 1e-5, n


def test_windows_that_are_views_of_a_larger_array(world):
    nets, features, _ = world
    x = windows_of(features)
    run = graph_run(ovmod.compiled(to_graph(nets[0], x[:2])), "sigmoid")
    assert np.array_equal(run(x[::2]), run(np.ascontiguousarray(x[::2])))
    assert np.array_equal(run(np.asfortranarray(x)), run(x)) and np.array_equal(run(x.astype("float64")), run(x))


def test_the_order_of_windows_is_kept_under_load(world):
    "Requests finish in any order; rows do not."
    nets, features, _ = world
    x = np.concatenate([windows_of(features, 40)] * 5)
    run = graph_run(ovmod.compiled(to_graph(nets[0], x[:2])), "sigmoid", sub_batch=1)
    one = run(x)
    n = len(x) // 5
    for i in range(1, 5):
        assert np.abs(one[:n] - one[i * n : (i + 1) * n]).max() < 1e-6


def test_precision_is_set_by_name(world):
    "On machines with bf16 OpenVINO would take that."
    model = ovmod.compiled(to_graph(world[0][0], windows_of(world[1])[:2]), threads=1)
    assert str(model.get_property("INFERENCE_PRECISION_HINT")) in ("<Type: 'float32'>", "f32")
    assert model.get_property("INFERENCE_NUM_THREADS") == 1


def test_a_network_in_training_mode_is_refused(world):
    with pytest.raises(AudiotagError, match="training mode"):
        to_graph(CNNModel1(width=4).build(4).train(), windows_of(world[1])[:2])


def test_a_network_that_cannot_be_followed_is_one_sentence(world):
    class Odd(nn.Module):
        def forward(self, x):
            raise ValueError("cannot")

    with pytest.raises(AudiotagError, match="Odd cannot be exported"):
        to_graph(Odd().eval(), windows_of(world[1])[:2])


# --- several inputs -------------------------------------------------------------------------------


class TwoInputs(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.a, self.rnn, self.c = (
            nn.Conv2d(1, 4, 3),
            nn.GRU(12, 5, batch_first=True, bidirectional=True),
            nn.Linear(14, n),
        )

    def forward(self, x, beside):
        return self.c(torch.cat([self.a(x).relu().amax((2, 3)), self.rnn(beside[:, 0])[0].amax(1)], 1))


@dataclass(frozen=True, kw_only=True)
class TwoInputsSettings(NetworkSettings):
    def build(self, n_classes):
        return TwoInputs(n_classes)


def test_a_network_of_several_inputs(tmp_path, monkeypatch):
    front = Joined(sample_rate=16000, main=FRONT, beside=(GlobalFeatures(n_segments=16),))
    features, kinds = clips(12, 2, front)
    torch.manual_seed(0)
    nets = [TwoInputs(4).eval() for _ in range(2)]
    monkeypatch.setattr("audiotag.infer.bundle._network_settings", lambda d, where: TwoInputsSettings())
    folder = make(tmp_path / "b", nets, front_end=front, model=TwoInputsSettings())
    truth = {c: np.eye(4)[k] for c, k in zip(features, kinds)}
    evidence = Evidence(features.__getitem__, [list(features)] * 2, [list(features)] * 2, truth)
    table = export_bundle(folder, evidence, precision=("fp32", "int8"), gate=Gate(metric_loss=1.0))
    assert list(table.kept) == ["kept"] * 4, table.why.tolist()
    x = WINDOWS.cut(next(iter(features.values())))
    for precision, within in (("fp32", 1e-5), ("int8", 0.1)):
        for graph, torch_ in zip(open_members(folder, precision=precision), open_members(folder, precision="torch")):
            assert graph.precision == precision and 0 <= np.abs(graph(x) - torch_(x)).max() < within


# --- the gate -------------------------------------------------------------------------------------


def scores(p):
    return np.asarray(p), np.asarray(p)


TRUTH = np.eye(3)[[0, 1, 2, 0]]
GOOD = TRUTH * 0.8 + 0.1


@pytest.mark.parametrize(
    "precision,off,kept",
    [("fp32", 0, True), ("fp32", 0.9e-4, True), ("fp32", 1.1e-4, False), ("fp16", 0.05, True), ("int8", 0.05, True)],
)
def test_what_the_gate_keeps(precision, off, kept):
    said = judge(precision, scores(GOOD), scores(GOOD + off), gate=Gate(), truth=TRUTH)
    assert said["kept"] is kept and said["difference"] == pytest.approx(off)


def test_a_loss_of_the_metric_is_refused_and_named():
    worse = GOOD.copy()
    worse[0] = worse[0, ::-1]
    for precision in ("int8", "fp16"):
        said = judge(precision, scores(GOOD), scores(worse), gate=Gate(), truth=TRUTH)
        assert (
            not said["kept"] and said["metric"] == [1.0, pytest.approx(said["metric"][1])] and "loses" in said["said"]
        )
        loss = said["metric"][0] - said["metric"][1]
        assert judge(precision, scores(GOOD), scores(worse), gate=Gate(metric_loss=loss), truth=TRUTH)["kept"]
        assert not judge(precision, scores(GOOD), scores(worse), gate=Gate(metric_loss=loss * 0.99), truth=TRUTH)[
            "kept"
        ]


def test_a_metric_that_is_no_number_keeps_nothing():
    said = judge("int8", scores(GOOD), scores(GOOD), gate=Gate(), truth=TRUTH, metric=lambda y, p: float("nan"))
    assert not said["kept"]


def test_without_labels_only_fp32_can_pass(world, tmp_path):
    folder = make(tmp_path / "b", world[0])
    table = export_bundle(folder, evidence_in(Bundle(folder), world[1]), precision="int8")
    assert [(r.precision, r.kept) for r in table.itertuples()] == [
        ("int8", "refused"),
        ("fp16", "refused"),
        ("fp32", "kept"),
    ] * 2
    assert {m.precision for m in open_members(folder)} == {"fp32"}


def broken_int8(graph, clips, **kwargs):
    "An int8 graph that went wrong without a word: some weights of a convolution are zero."
    from openvino import opset13 as ops

    graph = graph.clone()
    conv = [o for o in graph.get_ordered_ops() if o.get_type_name() == "Convolution"][-1]
    w = conv.input_value(1).get_node()
    conv.input(1).replace_source_output(ops.constant(-np.array(w.data)).output(0))
    return graph


def test_a_graph_that_went_wrong_is_not_kept_and_the_next_precision_is(world, tmp_path, monkeypatch):
    folder = make(tmp_path / "b", world[0])
    monkeypatch.setattr(ovmod, "to_int8", broken_int8)
    table = export_bundle(folder, world[2], precision="int8")
    assert [(r.precision, r.kept) for r in table.itertuples()] == [("int8", "refused"), ("fp16", "kept")] * 2
    assert all("loses" in w for w in table.why[table.precision == "int8"])
    members = open_members(folder, precision="int8")
    assert [m.precision for m in members] == ["torch"] * 2 and "int8: loses" in members[0].why


@pytest.mark.parametrize("by,kept", [pytest.param(0.3, True, marks=pytest.mark.long), (0.6, False)])
def test_a_graph_that_says_something_else_of_the_golden_example(world, tmp_path, monkeypatch, by, kept):
    "However wide the gate, what is written is a bundle that can be opened."
    folder = make(tmp_path / "b", world[0])
    monkeypatch.setattr(Bundle, "replay_scores", lambda self, i, run, looks, within=1e-4: by)
    table = export_bundle(folder, world[2], precision="int8", gate=Gate(metric_loss=1.0))
    monkeypatch.undo()
    first = [g for g in Bundle(folder).graphs if g["precision"] == "int8"][0]
    assert first["kept"] == kept and (kept and first["golden"] == 0.5 or "golden example" in first["said"]), table


@pytest.mark.long
def test_a_plain_graph_may_be_kept_twice(world, tmp_path, monkeypatch):
    nets, _, evidence = world
    folder, calls = make(tmp_path / "b", nets), []

    # the second member's int8 loses, so that it keeps its plain graph as fp32 and as fp16
    def metric(truth, scores):
        calls.append(1)
        return 0.5 if len(calls) == 8 else 1.0

    whole = Evidence(evidence.features, evidence.held_out, evidence.calibration, evidence.truth, metric)
    table = export_bundle(folder, whole, precision=("fp32", "int8"))
    kept = table[table.kept == "kept"]
    assert [f"{m[-1]} {p}" for m, p in zip(kept.index, kept.precision)] == ["0 fp32", "0 int8", "1 fp32", "1 fp16"]
    x = WINDOWS.cut(next(iter(world[1].values())))
    for precision in ("fp32", "fp16"):
        one, two = open_members(folder, precision=precision)
        assert (
            two.precision == precision and np.abs(two(x) - open_members(folder, precision="torch")[1](x)).max() < 0.01
        )


def test_a_folded_batch_norm_in_training_mode_does_not_pass(world, tmp_path, monkeypatch):
    honest = to_graph

    def in_training(net, example, **kwargs):
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean, m.running_var = m.running_mean + 1, m.running_var * 2
        return honest(net, example, **kwargs)

    monkeypatch.setattr(ovmod, "to_graph", in_training)
    table = export_bundle(
        make(tmp_path / "b", world[0][:1]),
        Evidence(world[2].features, world[2].held_out, world[2].calibration, world[2].truth),
        precision="fp32",
    )
    assert list(table.kept) == ["refused"] and table["off by"].iloc[0] > 1e-4


def test_the_bundle_must_say_what_the_run_has_written(world, tmp_path):
    e = world[2]
    lies = Evidence(e.features, e.held_out, e.calibration, e.truth, oof=lambda i, ids: np.full((len(ids), 4), 0.5))
    folder = make(tmp_path / "b", world[0])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(AudiotagError, match="are not the out-of-fold scores"):
        export_bundle(folder, lies)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_graph_that_loses_on_mixed_recordings_is_refused(world, tmp_path):
    "Out of fold it is as good as torch; what is like the test decides."
    (nets, new, evidence), torch_said = world, []
    ids = list(new)

    def metric(truth, scores):
        if len(truth) == len(ids):
            return 0.9
        torch_said.append(scores)
        return 0.9 if len(torch_said) == 1 else 0.9 - 0.0015 * (np.abs(scores - torch_said[0]).max() > 0)

    seen = Evidence(evidence.features, [ids], [ids[:12]], evidence.truth, metric, mixed=[ids[:7]])
    table = export_bundle(make(tmp_path / "b", nets[:1]), seen, precision="int8", gate=Gate(metric_loss=0.001))
    refused = table[table.kept == "refused"]
    assert "int8" in list(refused.precision)
    assert all("loses 0.0015 on mixed recordings, a loss of 0.001" in o and "out of fold" not in o for o in refused.why)
    torch_said.clear()
    table = export_bundle(make(tmp_path / "c", nets[:1]), seen, precision="int8", gate=Gate(metric_loss=0.002))
    assert list(table.kept) == ["kept"]


def test_each_member_is_judged_on_its_own_clips(world, tmp_path):
    e, asked = world[2], []
    ids = list(world[1])
    own = Evidence(lambda c: asked.append(c) or e.features(c), [ids[:5], ids[5:11]], [ids[20:22], ids[22:24]], e.truth)
    folder = make(tmp_path / "b", world[0])
    export_bundle(folder, own, precision="fp32")
    assert asked == ids[:5] * 2 + ids[5:11] * 2  # torch, then the graph
    assert [g["clips"] for g in Bundle(folder).graphs] == [5, 6]


def test_exporting_again_replaces_what_was_there(copy, world):
    assert {p.suffix for p in copy.iterdir()} >= {".xml", ".bin"}
    export_bundle(copy, world[2], precision="fp32")
    assert sorted(p.name for p in copy.iterdir() if p.suffix in (".xml", ".bin")) == [
        "curated-fp32.bin",
        "curated-fp32.xml",
    ]
    assert [g["precision"] for g in Bundle(copy).graphs] == ["fp32"] * 2
    with pytest.raises(AudiotagError, match="fp32"):
        export_bundle(copy, world[2], precision="fp23")


def test_the_head_and_the_pooling_stay_in_32_bits(world):
    graph = to_graph(world[0][0], windows_of(world[1])[:2])
    names = head_of(graph)
    assert (
        any("ReduceMean" in n for n in names)
        and any("ReduceMax" in n for n in names)
        and sum("MatMul" in n for n in names) == 2
    )
    int8 = to_int8(graph, [windows_of(world[1])[i : i + 1] for i in range(8)])
    quantized = {
        i.get_source_output().get_node().get_type_name()
        for o in int8.get_ops()
        if o.get_type_name() == "MatMul"
        for i in o.inputs()
    }
    convs = [
        i.get_source_output().get_node().get_type_name()
        for o in int8.get_ops()
        if o.get_type_name() == "Convolution"
        for i in o.inputs()
    ]
    assert "FakeQuantize" not in quantized and convs.count("FakeQuantize") == 8


class Gated(torch.nn.Module):
    "Convolutions with activations that fall below zero, and a gate for each channel."

    def __init__(self):
        super().__init__()
        self.before, self.after, self.gate, self.head = (
            torch.nn.Conv2d(1, 8, 3, padding=1),
            torch.nn.Conv2d(8, 8, 3, padding=1),
            torch.nn.Conv2d(8, 8, 1),
            torch.nn.Linear(8, 4),
        )

    def forward(self, x):
        x = torch.nn.functional.silu(self.before(x))
        x = x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        y = self.after(x)
        # the last one is an activation, whatever it is written as
        return self.head((y * torch.sigmoid(y)).mean((2, 3)))


def test_gates_stay_in_32_bits_and_ranges_need_not_be_even():
    torch.manual_seed(0)
    net = Gated().eval()
    x = np.random.default_rng(0).normal(size=(8, 1, 16, 16)).astype("float32")
    graph = to_graph(net, x[:2])
    assert len(gates_of(graph)) == 1
    int8 = to_int8(graph, [x[i : i + 1] for i in range(8)])

    def feeds(name):
        return [
            i.get_source_output().get_node().get_type_name()
            for o in int8.get_ops()
            if o.get_friendly_name() == name
            for i in o.inputs()
        ]

    assert "FakeQuantize" not in feeds(gates_of(graph)[0])
    ranges = [
        [float(np.min(o.input_value(k).get_node().data)) for k in (1, 2)]
        for o in int8.get_ops()
        if o.get_type_name() == "FakeQuantize" and o.input_value(1).get_node().data.size == 1
    ]
    assert any(low < 0 and abs(low + high) > 0.5 * high for low, high in ranges), ranges
    with torch.no_grad():
        want = net(torch.from_numpy(x)).sigmoid().numpy()
    assert np.abs(graph_run(ovmod.compiled(int8), "sigmoid")(x) - want).max() < 0.01


# --- members that run -----------------------------------------------------------------------------


def test_members_agree_and_say_what_they_are(exported, world):
    x = windows_of(world[1])
    by = {p: open_members(exported, precision=p) for p in ("best", "int8", "fp32", "torch")}
    assert [[m.precision for m in by[p]] for p in by] == [["int8"] * 2, ["int8"] * 2, ["fp32"] * 2, ["torch"] * 2]
    for k in (0, 1):
        assert np.abs(by["fp32"][k](x) - by["torch"][k](x)).max() <= 1e-4
        assert 1e-6 < np.abs(by["int8"][k](x) - by["torch"][k](x)).mean() < 0.1
    assert np.abs(by["fp32"][0](x) - by["fp32"][1](x)).max() > 1e-3  # two outputs of one file
    assert all(
        m.precision == "torch" and m.why.startswith("fp16 was not exported")
        for m in open_members(exported, precision="fp16")
    )
    with pytest.raises(AudiotagError, match="did you mean 'int8'"):
        open_members(exported, precision="int9")


def test_without_openvino_torch_steps_in(exported, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    members = open_members(exported)
    assert [m.precision for m in members] == ["torch"] * 2 and "not installed" in members[0].why


def test_a_graph_that_disagrees_on_this_machine_is_not_used(copy, world, monkeypatch):
    honest = graph_run
    monkeypatch.setattr(ovmod, "graph_run", lambda *a, **k: lambda x: 1 - honest(*a, **k)(x))
    members = open_members(copy)
    assert [m.precision for m in members] == ["torch"] * 2 and "golden example differs" in members[0].why
    monkeypatch.undo()
    monkeypatch.setattr(ovmod, "compiled", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no such op")))
    assert "no such op" in open_members(copy)[0].why


def test_a_cache_folder_is_used(exported, tmp_path):
    open_members(exported, cache=tmp_path / "cache", precision="fp32")
    assert list((tmp_path / "cache").glob("*.blob"))


def test_a_bundle_of_graphs_opens_without_torch_but_for_the_fft(exported, tmp_path, world):
    "Nothing on the way to a member that runs by graph imports torch or nncf."
    code = f"""import sys, time; start = time.perf_counter()
import audiotag.infer.openvino_graphs; took = time.perf_counter()-start
from audiotag.infer.bundle import Bundle
b = Bundle({str(exported)!r}); b.check_files()
from audiotag.infer.openvino_graphs import _member_graph, _read_graph, compiled, graph_run
import numpy as np
x = np.zeros((3,1,32,64), 'float32')
print(graph_run(compiled(_member_graph(b, _read_graph(b, 'curated-fp32.xml'), b.graphs[0], x)), 'sigmoid')(x).shape, took, *[m for m in ('torch','nncf','fastai') if m in sys.modules])"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert said[:2] == ["(3,", "4)"] and len(said) == 3


def test_damaged_graphs_are_refused(copy):
    for name in ("curated-int8.bin", "curated-int8.xml"):
        raw = (copy / name).read_bytes()
        (copy / name).write_bytes(raw[:-1] + b"x")
        with pytest.raises(AudiotagError, match="was changed"):
            open_members(copy)
        (copy / name).write_bytes(raw)


# --- a stranger's graph ---------------------------------------------------------------------------


def edit(folder, change, name="curated-fp32.xml"):
    path = folder / name
    text = path.read_text()
    new = change(text)
    assert new != text
    path.write_text(new)
    seal_again(folder)


def sub(pattern, new):
    return lambda s: re.sub(pattern, new, s, count=1)


XML = {
    "an operation of a plug-in": sub(r'type="Convolution" version="opset1"', 'type="Convolution" version="extension"'),
    "a custom operation": sub(r'type="ReLU" version="opset1"', 'type="MyOp" version="custom_opset"'),
    "a loop": sub(r'type="ReLU"', 'type="TensorIterator"'),
    "a condition": sub(r'type="ReLU"', 'type="If"'),
    "a state": sub(r'type="ReLU"', 'type="ReadValue"'),
    "an entity": lambda s: s.replace("?>", '?><!DOCTYPE x [<!ENTITY a "' + "b" * 1000 + '">]>', 1),
    "an external entity": lambda s: s.replace("?>", '?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]>', 1),
    "a constant beyond the weights": sub(r'offset="\d+" size="(\d+)"', r'offset="999999999" size="\1"'),
    "a constant of negative place": sub(r'offset="\d+"', 'offset="-64"'),
    "a constant of 2**63": sub(r'size="\d+"', f'size="{2**63}"'),
    "a constant of strings": sub(r'element_type="f32"( shape="[^"]*" offset)', r'element_type="string"\1'),
    "a constant whose shape lies": sub(r'shape="8, 1, 3, 3"', 'shape="800000, 1, 3, 3"'),
    "no XML": lambda s: s[:2000],
    "deep nesting": lambda s: s.replace("<layers>", "<layers>" + "<a>" * 5000 + "</a>" * 5000, 1),
    "an edge to nowhere": sub(r'<edge from-layer="\d+"', '<edge from-layer="99999"'),
    "another number of bands": lambda s: s.replace('shape="?,1,32,?"', 'shape="?,7,32,?"', 1),
    "an output of another name": lambda s: s.replace('name="member-0"', 'name="member-7"'),
    "an unknown operation": sub(r'type="ReLU"', 'type="Popen"'),
}


@pytest.mark.parametrize("what", XML)
def test_a_graph_from_a_stranger(copy, what):
    edit(copy, XML[what])
    with pytest.raises(AudiotagError) as e:
        open_members(copy, precision="fp32")
    assert "curated-fp32.xml" in str(e.value) and len(str(e.value)) < 1000, str(e.value)


def graph_bundle(copy, model):
    "The bundle with another graph in the place of the first, sealed again."
    import openvino as ov

    for k, r in enumerate(model.get_results()):
        r.set_friendly_name(f"member-{k}")
    ov.save_model(model, str(copy / "curated-fp32.xml"), compress_to_fp16=False)
    seal_again(copy)
    return copy


def test_a_graph_of_another_kind_is_refused(copy):
    import openvino as ov
    from openvino import opset13 as ops

    def model(out, *inputs):
        return ov.Model([out] * 2, list(inputs), "x")

    x = ops.parameter([-1, 1, 32, -1], np.float32)
    y = ops.parameter([-1, 1, 32, -1], np.float32)
    mean = ops.reduce_mean(x, ops.constant(np.array([2, 3])), False)
    wide = ops.broadcast(ops.constant(np.float32(0)), ops.constant(np.array([2**20, 2**12])))
    three = ops.concat([mean] * 3, 1)
    odd = {
        "gives": model(three, x),
        "takes 2 inputs": model(
            ops.concat([mean, ops.reduce_mean(y, ops.constant(np.array([2, 3])), False), mean, mean], 1), x, y
        ),
        "intermediate result": model(
            ops.add(ops.concat([mean] * 4, 1), ops.reduce_sum(wide, ops.constant(np.array([0, 1])), False)), x
        ),
    }
    for word, m in odd.items():
        graph_bundle(copy, m)
        start = time.perf_counter()
        with pytest.raises(AudiotagError, match=word):
            open_members(copy, precision="fp32")
        assert time.perf_counter() - start < 20


@pytest.mark.parametrize("kind", ["broadcast", "range"])
def test_a_graph_that_is_large_while_it_is_read(copy, kind):
    "OpenVINO computes what a target shape hangs on as soon as it sees it: here forty gigabytes and more."
    import openvino as ov
    from openvino import opset13 as ops

    x, mark = ops.parameter([-1, 1, 32, -1], np.float32), 7777
    mean = ops.reduce_mean(x, ops.constant(np.array([2, 3])), False)
    if kind == "broadcast":
        many = ops.broadcast(ops.constant(np.int32(1)), ops.constant(np.array([mark])))
    else:
        many = ops.range(ops.constant(np.int64(1)), ops.constant(np.int64(mark)), ops.constant(np.int64(1)), "i32")
    one = ops.convert(ops.reduce_min(many, ops.constant(np.array([0])), True), "i64")
    out = ops.reshape(
        ops.concat([mean] * 4, 1),
        ops.concat([ops.constant(np.array([-1])), ops.multiply(one, ops.constant(np.array([4])))], 0),
        False,
    )
    graph_bundle(copy, ov.Model([out] * 2, [x], "x"))
    path = copy / "curated-fp32.bin"
    raw = path.read_bytes()
    assert raw.count(np.int64(mark).tobytes()) == 1
    path.write_bytes(raw.replace(np.int64(mark).tobytes(), np.int64(10**10).tobytes()))
    seal_again(copy)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(AudiotagError, match="curated-fp32.xml"):
        open_members(copy, precision="fp32")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # kB
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_many_large_intermediate_results(copy):
    "Each is within the bounds, and they are alive together."
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter([-1, 1, 32, -1], np.float32)
    mean = ops.reduce_mean(x, ops.constant(np.array([2, 3])), False)
    out = ops.concat([mean] * 4, 1)
    for k in range(8):
        wide = ops.broadcast(ops.constant(np.float32(k)), ops.constant(np.array([2**20, 2**8])))
        out = ops.add(out, ops.reduce_max(wide, ops.constant(np.array([0, 1])), False))
    graph_bundle(copy, ov.Model([out] * 2, [x], "x"))
    with pytest.raises(AudiotagError, match="in all"):
        open_members(copy, precision="fp32")


def test_a_graph_whose_scores_are_constant_falls_back(copy):
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter([-1, 1, 32, -1], np.float32)
    mean = ops.reduce_mean(x, ops.constant(np.array([2, 3])), False)
    graph_bundle(copy, ov.Model([ops.multiply(ops.concat([mean] * 4, 1), ops.constant(np.float32(0)))] * 2, [x], "x"))
    assert "golden example differs" in open_members(copy, precision="fp32")[0].why


def test_a_graph_that_gives_nan_falls_back(copy):
    import openvino as ov
    from openvino import opset13 as ops

    x = ops.parameter([-1, 1, 32, -1], np.float32)
    mean = ops.reduce_mean(x, ops.constant(np.array([2, 3])), False)
    nan = ops.sqrt(
        ops.subtract(ops.multiply(ops.concat([mean] * 4, 1), ops.constant(np.float32(0))), ops.constant(np.float32(1)))
    )
    graph_bundle(copy, ov.Model([nan] * 2, [x], "x"))
    assert "not finite" in open_members(copy, precision="fp32")[0].why


def test_tables_of_verdicts(exported):
    table = graph_table(Bundle(exported))
    assert (
        list(table.index) == ["curated fold 0"] * 2 + ["curated fold 1"] * 2
        and list(table.precision) == ["fp32", "int8"] * 2
    )
    assert (
        table["off by"].notna().all()
        and json.loads((exported / "bundle.json").read_text())["graphs"][0]["kept"] is True
    )
    assert list(graph_table(Bundle(exported)).columns)[-1] == "why"


def test_views_are_judged_as_they_are_scored(world, tmp_path):
    windows = Windows(frames=64, hop=32, views=(View(), View(offset=5, pad_at="end"), View(gain_db=6)))
    folder = make(tmp_path / "b", world[0], windows=windows)
    table = export_bundle(folder, world[2], precision="fp32")
    assert list(table.kept) == ["kept"] * 2
    assert {m.precision for m in open_members(folder)} == {"fp32"}


# --- from a run -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    "A run of one stage and two folds, and its bundle."
    from audiotag.data.competitions import load_competition
    from audiotag.kaggle.pack import pack_weights
    from audiotag.train.losses import BCE
    from audiotag.train.settings import Recipe, Stage
    from audiotag.train.run_folder import open_run, run_stages
    from audiotag.audio.synth import make_competition

    folder = tmp_path_factory.mktemp("run")
    make_competition(folder / "data", seed=3, n_curated=32, n_noisy=16, n_test=6)
    recipe = Recipe(
        name="toy",
        front_end=LogMel(n_mels=32, hop_length=694, scaling=Standardize()),
        model=CNNModel1(width=4, head="code"),
        loss=BCE(),
        n_folds=2,
        seed=1,
        stages=(Stage(name="curated", train_on=("curated",), epochs=3, lr=3e-3, batch_size=8),),
        windows=Windows(frames=64, hop=32),
        members=("curated",),
    )
    run = run_stages(open_run(folder / "run", recipe, load_competition(folder / "data")))
    pack_weights(run, folder / "toy-weights")
    return run, folder


@pytest.fixture
def weights(packed, tmp_path):
    shutil.copytree(packed[1] / "toy-weights", tmp_path / "toy-weights")
    return tmp_path / "toy-weights"


def test_members_are_judged_out_of_fold(packed, weights):
    run, _ = packed
    bundle = Bundle(weights)
    evidence = ovmod.evidence_of(bundle, run, calibrate_with=7)
    fold = run.clips.set_index("clip_id").fold
    source = run.clips.set_index("clip_id").source
    for m, held, shown in zip(bundle.members, evidence.held_out, evidence.calibration):
        assert (
            set(fold[held]) == {m["fold"]}
            and set(source[held]) == {"curated"}
            and len(held) == (fold[source == "curated"] == m["fold"]).sum()
        )
        assert m["fold"] not in set(fold[shown]) and len(shown) == 7
    again = ovmod.evidence_of(bundle, run, calibrate_with=7)
    assert again.held_out == evidence.held_out and again.calibration == evidence.calibration


def test_the_command_exports_and_infer_takes_it(packed, weights, capsys, tmp_path):
    from audiotag.cli import main
    from audiotag.infer.predict import infer
    from audiotag.kaggle.pack import changed_files

    run, folder = packed
    assert (
        main(
            [
                "export",
                str(run.folder),
                str(weights),
                "--precision",
                "fp32",
                "int8",
                "--metric-loss",
                "1",
                "--calibration-clips",
                "6",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert said.count("kept") >= 4 and "curated fold 1" in said and changed_files(weights) == []
    for precision in ("torch", "fp32", "int8"):
        report = infer(weights, folder / "data", tmp_path / f"{precision}.csv", precision=precision)
        assert {r["precision"] for r in report.ran} == {precision}, report
    import pandas as pd

    a, b, c = (pd.read_csv(tmp_path / f"{p}.csv", index_col=0) for p in ("torch", "fp32", "int8"))
    assert 0 < (a - b).abs().max().max() < 1e-4 < (a - c).abs().max().max() < 0.5


def test_another_run_is_refused(packed, weights, capsys):
    from audiotag.infer.bundle import reseal
    from audiotag.cli import main

    run, _ = packed
    before = {p.name: p.read_bytes() for p in weights.iterdir()}
    reseal(Bundle(weights), recipe="0" * 16)
    assert main(["export", str(run.folder), str(weights)]) == 2
    assert "was not packed from this run" in capsys.readouterr().err
    reseal(Bundle(weights), recipe=run.recipe.hash)
    assert {p.name: p.read_bytes() for p in weights.iterdir()} == before


def test_weights_of_another_training_are_refused(packed, weights):
    "Same recipe, other weights: what the run has written out of fold gives it away."
    run, _ = packed
    torch.manual_seed(9)
    bundle = Bundle(weights)
    members = [{**m, "state": run.recipe.model.build(len(run.classes)).state_dict()} for m in bundle.members]
    seal(
        weights,
        name="toy",
        classes=bundle.classes,
        front_end=bundle.front_end,
        windows=bundle.windows,
        activation="sigmoid",
        model=run.recipe.model,
        members=members,
        prior=bundle.prior,
        about={"recipe": run.recipe.hash},
        replace=True,
    )
    with pytest.raises(AudiotagError, match="are not the out-of-fold scores"):
        export_bundle(weights, ovmod.evidence_of(Bundle(weights), run), precision="fp32")


# --- packing again --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def once_exported(packed, tmp_path_factory):
    from audiotag.cli import main

    run, folder = packed
    made = shutil.copytree(folder / "toy-weights", tmp_path_factory.mktemp("exported") / "toy-weights")
    assert (
        main(
            [
                "export",
                str(run.folder),
                str(made),
                "--precision",
                "fp32",
                "int8",
                "--metric-loss",
                "1",
                "--calibrate-with",
                "6",
            ]
        )
        == 0
    )
    return made


@pytest.fixture
def with_graphs(once_exported, tmp_path):
    return shutil.copytree(once_exported, tmp_path / "toy-weights")


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def pack_again(packed, folder, capsys, **kwargs):
    "Pack the run again; what was said about graphs, and the names of the graph files that are there afterwards."
    from audiotag.kaggle.pack import changed_files, pack_weights

    capsys.readouterr()
    pack_weights(packed[0], folder, **kwargs)
    said = "\n".join(line for line in capsys.readouterr().err.splitlines() if "graphs" in line)
    assert changed_files(folder) == []
    Bundle(folder).check_files()
    return said, sorted(p.name for p in folder.iterdir() if p.suffix in (".xml", ".bin"))


BOTH = [f"curated-{p}.{kind}" for p in ("fp32", "int8") for kind in ("bin", "xml")]


def test_packing_again_keeps_the_graphs(packed, with_graphs, capsys):
    from audiotag.kaggle.pack import missing_graphs

    before = content(with_graphs)
    said, there = pack_again(packed, with_graphs, capsys)
    assert said == f"{with_graphs}: keeps the graphs of 2 networks of toy: the weights are the same" and there == BOTH
    assert content(with_graphs) == before, "the same run and the same graphs give the same bytes"
    pack_again(packed, with_graphs, capsys, owner="ann", after=())
    assert {m.precision for m in open_members(with_graphs)} == {"int8"} and missing_graphs(with_graphs) == ""


def test_graphs_of_other_weights_are_named_before_they_go(packed, with_graphs, capsys):
    from safetensors.numpy import load_file, save

    from audiotag.infer.bundle import reseal

    weights = load_file(with_graphs / "curated.safetensors")
    weights = {k: v + np.float32(1e-3) if v.dtype == np.float32 else v for k, v in weights.items()}
    reseal(Bundle(with_graphs), files={"curated.safetensors": save(weights)})
    assert len(Bundle(with_graphs).graphs) == 4
    said, there = pack_again(packed, with_graphs, capsys)
    assert there == [] and Bundle(with_graphs).graphs == []
    again = f"audiotag export {packed[0].folder} {with_graphs}"
    assert (
        said
        == f"{with_graphs}: deletes the graphs of curated fold 0, curated fold 1 of toy: their weights or settings are others now; to make new ones: {again}"
    )


def test_graphs_of_other_settings_go(packed, with_graphs, capsys):
    from audiotag.infer.bundle import reseal

    about = Bundle(with_graphs).about
    reseal(Bundle(with_graphs), windows={**about["windows"], "hop": 16})
    said, there = pack_again(packed, with_graphs, capsys)
    assert there == [] and "their weights or settings are others now" in said


def test_a_graph_that_was_changed_or_does_not_agree_goes_alone(packed, with_graphs, capsys):
    "The others stay, and so does the verdict on one that was refused."
    from audiotag.infer.bundle import reseal

    refused = {"member": 0, "precision": "fp16", "kept": False, "said": "loses .1 out of fold"}
    graphs = [{**g, "golden": 0.0} if g["precision"] == "int8" else g for g in Bundle(with_graphs).graphs]
    reseal(Bundle(with_graphs), graphs=[*graphs, refused])
    said, there = pack_again(packed, with_graphs, capsys)
    assert there == BOTH[:2] and "keeps the graphs of 2 networks" in said
    assert "of toy: its int8 graph does not run here as it did at home" in said and "golden example differs" in said
    assert refused in Bundle(with_graphs).graphs and {g["precision"] for g in Bundle(with_graphs).graphs} == {
        "fp32",
        "fp16",
    }
    (with_graphs / "curated-fp32.bin").write_bytes(b"x" + (with_graphs / "curated-fp32.bin").read_bytes()[1:])
    said, there = pack_again(packed, with_graphs, capsys)
    assert there == [] and "keeps" not in said and "their files were changed since they were sealed" in said


def test_a_bundle_that_cannot_be_opened_takes_its_graphs_with_it(packed, with_graphs, capsys):
    about = read_json(with_graphs / "bundle.json")
    write_json(with_graphs / "bundle.json", {**about, "name": "other"})
    said, there = pack_again(packed, with_graphs, capsys)
    assert (
        there == []
        and "its graphs are deleted, because the existing bundle cannot be opened" in said
        and "changed since it was packed" in said
    )


def test_a_graph_of_the_users_own_is_not_replaced(packed, with_graphs):
    from audiotag.kaggle.pack import pack_weights

    (with_graphs / "mine.xml").write_text("<net/>")
    before = content(with_graphs)
    with pytest.raises(AudiotagError, match="mine.xml"):
        pack_weights(packed[0], with_graphs)
    assert content(with_graphs) == before


def test_joining_again_keeps_the_graphs(packed, once_exported, tmp_path, capsys):
    from audiotag.infer.bundle import open_bundles
    from audiotag.kaggle.pack_ensemble import pack_ensemble
    from audiotag.kaggle.pack import missing_graphs

    run, folder = packed
    joint = tmp_path / "both-weights"
    pack_ensemble([run], joint)
    assert "both-weights: this bundle has no OpenVINO graphs" in missing_graphs(joint)
    pack_ensemble([run], joint, bundles=[once_exported])
    before = content(joint)
    assert "a.curated-int8.xml" in before and missing_graphs(joint) == ""
    for bundles in ([], [folder / "toy-weights"], [once_exported]):
        capsys.readouterr()
        given = content(folder / "toy-weights")
        pack_ensemble([run], joint, bundles=bundles)
        assert content(joint) == before and given == content(folder / "toy-weights")
        assert ("keeps the graphs of 2 networks of toy" in capsys.readouterr().err) == (bundles != [once_exported])
    write_json(joint / "a.bundle.json", {})
    pack_ensemble([run], joint)
    assert "its graphs are deleted" in capsys.readouterr().err and open_bundles(joint).bundles[0].graphs == []


def test_networks_without_graphs_are_told(packed, with_graphs, tmp_path):
    from audiotag.infer.bundle import reseal
    from audiotag.kaggle.pack import missing_graphs

    bare = packed[1] / "toy-weights"
    assert re.fullmatch(
        f"toy-weights: this bundle has no OpenVINO graphs: inference runs in torch, .*; make them with `audiotag export RUN {bare}`",
        missing_graphs(bare),
    )
    graphs = Bundle(with_graphs).graphs
    reseal(Bundle(with_graphs), graphs=[g for g in graphs if g["member"] == 0])
    assert missing_graphs(with_graphs).startswith(
        "toy-weights: an OpenVINO graph for only 1 of 2 networks: the others run in torch"
    )
    reseal(Bundle(with_graphs), graphs=[{**g, "kept": g["member"] == 0} for g in graphs])
    assert "refused them" in missing_graphs(with_graphs) and "RUN" not in missing_graphs(with_graphs)
    assert missing_graphs(tmp_path) == "" and missing_graphs(tmp_path / "nowhere") == ""


@pytest.mark.parametrize(
    "xml",
    [
        '<?xml version="1.0"?><!DOCTYPE a><net/>'.encode("utf-16"),
        "<net/>".encode("utf-16-le"),
        "<net/>".encode("utf-32-be"),
        b'<?xml version="1.0" encoding="latin-1"?><net/>',
        b"<?xml version='1.0'  encoding = 'UTF-16'?><net/>",
        b"\xef\xbb\xbf<?xml version='1.0' encoding='utf-7'?><net/>",
        b"<net>\xff</net>",
        b"<net/>\0",
    ],
)
def test_a_graph_in_another_encoding_is_not_parsed(tmp_path, xml):
    from audiotag.core.graph_files import check_graph_xml

    with pytest.raises(AudiotagError, match="UTF-8"):
        check_graph_xml(tmp_path / "a.xml", xml, 0)
