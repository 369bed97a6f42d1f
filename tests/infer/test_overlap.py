"Overlapping windows as strips: nothing lost, nothing twice, in order; and the gate has the last word."

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import audiotag.infer.openvino_graphs as ovmod
from audiotag.infer.bundle import Bundle, seal
from audiotag.core.errors import AudiotagError
from audiotag.core.seeding import rng
from audiotag.audio.features import LogMel, Standardize
from audiotag.models.cnn import CNNModel1, VGG16BN
from audiotag.infer.openvino_graphs import Evidence, Gate, evidence_in, export_bundle, graph_run, open_members, to_graph
from audiotag.infer.overlap import shared_pass, strips
from audiotag.infer.windows import Windows

WINDOWS = Windows(frames=64, hop=32)
CLASSES = tuple("abcd")


def clip(frames, seed=0, bands=32):
    return rng(seed, "clip").normal(size=(bands, frames)).astype("float32")


def network(spec=CNNModel1(width=4), seed=0):
    torch.manual_seed(seed)
    net = spec.build(len(CLASSES))
    for m in net.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
            m.running_mean.normal_(0, 0.1), m.running_var.uniform_(0.5, 2)
    return net.eval()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 700), min_size=0, max_size=6),
    st.sampled_from([8, 32, 48, 64]),
    st.integers(1, 9),
    st.integers(1, 5),
)
def test_strips_hold_every_window_once_and_in_order(lengths, hop, at_most, singles):
    windows = Windows(frames=64, hop=hop)
    cuts = [windows.cut(clip(n, i, bands=3)) for i, n in enumerate(lengths)]
    x = np.concatenate(cuts) if cuts else np.zeros((0, 1, 3, 64), "float32")
    seen = []
    for first, n, strip in strips(x, hop, at_most=at_most, singles=singles):
        assert first == len(seen)
        if len(strip) == n:
            seen += list(strip)
            assert n <= max(singles, 1)
        else:
            assert strip.shape == (1, 1, 3, 64 + hop * (n - 1)) and n <= at_most
            seen += [strip[0, ..., i * hop : i * hop + 64] for i in range(n)]
    assert len(seen) == len(x) and all(np.array_equal(a, b) for a, b in zip(seen, x))
    if at_most > 2 and hop < 64 and len(cuts) == 1 and len(x) > 3:
        assert len(list(strips(x, hop, at_most=at_most))) < len(x)  # they were found


def test_neighbors_of_other_clips_are_not_joined():
    x = np.concatenate([WINDOWS.cut(clip(96, 0)), WINDOWS.cut(clip(96, 1))])
    assert [n for _, n, _ in strips(x, 32)] == [2, 2]


@pytest.mark.parametrize(
    "spec", [CNNModel1(width=4), CNNModel1(width=4, head="code", in_channels=3), VGG16BN(width=4)], ids=str
)
def test_a_window_alone_is_exact_and_the_middle_of_a_strip_nearly(spec):
    net = network(spec)
    whole = clip(64 + 5 * 32)
    x = WINDOWS.cut(whole)
    shared = shared_pass(net, x, 32)
    one = torch.from_numpy(x[2:3])
    with torch.inference_mode():
        assert torch.allclose(shared(one), net(one), atol=1e-5)
        strip = shared(torch.from_numpy(whole[None, None]))
    assert strip.shape == (6, 4)
    constant = np.full((1, 1, 32, 64 + 32 * 7), 0.5, "float32")  # behind the edges all windows are alike
    with torch.inference_mode():
        p = shared(torch.from_numpy(constant))
    # five poolings: every window still sees an edge
    assert torch.allclose(p[3], p[4], atol=1e-4) or spec == VGG16BN(width=4)


def test_a_graph_of_strips_gives_what_torch_gives():
    net, x = network(), np.concatenate([WINDOWS.cut(clip(n, n)) for n in (64, 40, 300, 65, 700, 128)])
    shared = shared_pass(net, x, 32)
    run = graph_run(ovmod.compiled(to_graph(shared, x[:1]), threads=1), "sigmoid", hop=32)
    with torch.inference_mode():
        want = np.concatenate([shared(torch.from_numpy(s)).sigmoid().numpy() for _, _, s in strips(x, 32)])
    assert run(x).shape == (len(x), 4) and np.abs(run(x) - want).max() < 1e-5
    assert run(x[:0]).shape == (0, 4)


@pytest.mark.parametrize("hop", [40, 20, 1])
def test_a_hop_between_two_columns_is_refused(hop):
    with pytest.raises(AudiotagError, match="falls between"):
        shared_pass(network(), WINDOWS.cut(clip(64)), hop)


def test_a_network_without_a_map_is_refused():
    with pytest.raises(AudiotagError, match="no body"):
        shared_pass(torch.nn.Linear(3, 3).eval(), WINDOWS.cut(clip(64)), 32)


# --- behind the gate ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder, front = (
        tmp_path_factory.mktemp("shared") / "toy",
        LogMel(sample_rate=16000, n_fft=512, hop_length=250, n_mels=32, f_max=8000.0, scaling=Standardize()),
    )
    seal(
        folder,
        name="toy",
        classes=CLASSES,
        front_end=front,
        windows=WINDOWS,
        activation="sigmoid",
        model=CNNModel1(width=4),
        prior=[0.25] * 4,
        members=[dict(stage="curated", fold=0, oof={}, state=network().state_dict())],
    )
    features = {f"c{i}": clip(200 + 40 * i, i) for i in range(12)}
    truth = {c: np.eye(4)[i % 4] for i, c in enumerate(features)}
    return folder, Evidence(features.__getitem__, [list(features)], [list(features)], truth), features


def copy_of(toy, tmp_path):
    shutil.copytree(toy[0], tmp_path / "b")
    return tmp_path / "b"


def test_what_passes_is_kept_and_runs_as_it_was_judged(toy, tmp_path):
    folder = copy_of(toy, tmp_path)
    table = export_bundle(folder, toy[1], precision=("fp32", "int8"), gate=Gate(metric_loss=1.0), shared=True)
    assert list(table.precision) == ["fp32, shared", "int8, shared"] and (table.kept == "kept").all()
    graphs = Bundle(folder).graphs
    for precision in ("fp32", "int8"):
        member = open_members(folder, precision=precision)[0]
        assert member.precision == precision and not member.why
    x = WINDOWS.cut(toy[2]["c5"])
    plain, shared = (open_members(folder, precision=p)[0](x) for p in ("torch", "fp32"))
    assert (
        1e-6 < np.abs(plain - shared).max() <= next(g for g in graphs if g["precision"] == "fp32")["difference"] + 1e-6
    )


def test_what_loses_is_refused_and_the_plain_graph_takes_its_place(toy, tmp_path, monkeypatch):
    calls = []

    def metric(truth, scores):
        calls.append(1)
        return 0.9 if len(calls) % 2 else 0.8  # the graph always loses .1

    folder = copy_of(toy, tmp_path)
    evidence = Evidence(toy[1].features, toy[1].held_out, toy[1].calibration, toy[1].truth, metric)
    table = export_bundle(folder, evidence, precision="fp32", shared=True)
    assert (
        list(table.precision) == ["fp32, shared", "fp32"]
        and list(table.kept) == ["refused", "kept"]
        and "loses 0.1000" in table.why.iloc[0]
    )
    member = open_members(folder)[0]
    x = WINDOWS.cut(toy[2]["c5"])
    assert member.precision == "fp32" and np.abs(member(x) - open_members(folder, precision="torch")[0](x)).max() < 1e-5


def test_without_labels_a_shared_pass_cannot_be_judged(toy, tmp_path):
    folder = copy_of(toy, tmp_path)
    table = export_bundle(folder, evidence_in(Bundle(folder), toy[2]), precision="fp32", shared=True)
    assert list(table.kept) == ["refused", "kept"] and "no labeled clips" in table.why.iloc[0]


def test_what_cannot_be_shared_is_said_once_and_exported_window_by_window(toy, tmp_path):
    folder = tmp_path / "b"
    b = Bundle(toy[0])
    seal(
        folder,
        name="toy",
        classes=CLASSES,
        front_end=b.front_end,
        windows=Windows(frames=64, hop=20),
        activation="sigmoid",
        model=CNNModel1(width=4),
        prior=[0.25] * 4,
        members=[dict(stage="curated", fold=0, oof={}, state=network().state_dict())],
    )
    table = export_bundle(folder, toy[1], precision="fp32", shared=True)
    assert (
        list(table.precision) == ["fp32, shared", "fp32"]
        and "falls between" in table.why.iloc[0]
        and table.kept.iloc[1] == "kept"
    )


def test_fixed_sizes_and_strips_exclude_each_other(toy):
    with pytest.raises(AudiotagError, match="open sizes"):
        export_bundle(toy[0], toy[1], shared=True, batch=4)
