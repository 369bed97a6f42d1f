"Networks trained on AudioSet: checkpoints in their authors' layout, written here from the published names and shapes."

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from audiotag.audio.features import PRESETS
from audiotag.core.config import config_from_dict
from audiotag.core.errors import AudiotagError
from audiotag.models.audioset import AudioSetNetwork, Cnn14, MobileNet
from audiotag.models.sed import SED
from audiotag.train.fit import layer_groups


def eight(v):
    "The multiple of eight that MobileNets take for a number of channels."
    n = max(8, int(v + 4) // 8 * 8)
    return n + 8 if n < 0.9 * v else n


def norm(name, n):
    return {f"{name}.{part}": (n,) for part in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.num_batches_tracked": ()
    }


def mobilenet_shapes(width=1.0, n_classes=527):
    "Names and shapes of the tensors in EfficientAT's files (fschmid56/EfficientAT, models/mn)."
    rows = "16 16 3 0,64 24 3 0,72 24 3 0,72 40 5 1,120 40 5 1,120 40 5 1,240 80 3 0,200 80 3 0,184 80 3 0,184 80 3 0"
    rows += ",480 112 3 1,672 112 3 1,672 160 5 1,960 160 5 1,960 160 5 1"
    n = eight(16 * width)
    out = {"features.0.0.weight": (n, 1, 3, 3), **norm("features.0.1", n)}
    for i, row in enumerate(rows.split(","), 1):
        inside, after, kernel, squeeze = map(int, row.split())
        inside, after, j = eight(inside * width), eight(after * width), 0
        block = f"features.{i}.block"
        if inside != n:
            out |= {f"{block}.0.0.weight": (inside, n, 1, 1), **norm(f"{block}.0.1", inside)}
            j = 1
        out |= {f"{block}.{j}.0.weight": (inside, 1, kernel, kernel), **norm(f"{block}.{j}.1", inside)}
        if squeeze:
            j, s, se = j + 1, eight(inside // 4), f"{block}.{j + 1}.conc_se_layers.0"
            out |= {f"{se}.fc1.weight": (s, inside), f"{se}.fc1.bias": (s,)}
            out |= {f"{se}.fc2.weight": (inside, s), f"{se}.fc2.bias": (inside,)}
        out |= {f"{block}.{j + 1}.0.weight": (after, inside, 1, 1), **norm(f"{block}.{j + 1}.1", after)}
        n = after
    out |= {"features.16.0.weight": (6 * n, n, 1, 1), **norm("features.16.1", 6 * n)}
    last = eight(1280 * width)
    out |= {"classifier.2.weight": (last, 6 * n), "classifier.2.bias": (last,)}
    return out | {"classifier.5.weight": (n_classes, last), "classifier.5.bias": (n_classes,)}


def cnn14_shapes(width=64, n_classes=527):
    "Names and shapes of the tensors in PANNs' files (qiuqiangkong/audioset_tagging_cnn, pytorch/models.py)."
    out = {f"spectrogram_extractor.stft.conv_{part}.weight": (513, 1, 1024) for part in ("real", "imag")}
    out |= {"logmel_extractor.melW": (513, 64), **norm("bn0", 64)}
    n = 1
    for i in range(1, 7):
        m = width * 2 ** (i - 1)
        out |= {f"conv_block{i}.conv1.weight": (m, n, 3, 3), f"conv_block{i}.conv2.weight": (m, m, 3, 3)}
        out |= norm(f"conv_block{i}.bn1", m) | norm(f"conv_block{i}.bn2", m)
        n = m
    return out | {
        "fc1.weight": (n, n),
        "fc1.bias": (n,),
        "fc_audioset.weight": (n_classes, n),
        "fc_audioset.bias": (n_classes,),
    }


def drawn(shapes, seed=0):
    "Random tensors of these shapes; variances are positive, and numbers of batches are whole."
    g, out = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            out[name] = torch.tensor(7)
        else:
            scale = 1 / max(1, np.prod(shape[1:])) ** 0.5
            out[name] = torch.randn(shape, generator=g) * scale
            if name.endswith(("running_var", "bn1.weight", "bn2.weight", ".1.weight", "bn0.weight")):
                out[name] = 0.5 + torch.rand(shape, generator=g)
    return out


SMALL = {
    "mn01": (MobileNet(width=0.1), drawn(mobilenet_shapes(0.1)), (1, 128, 70)),
    "cnn14": (Cnn14(width=2), drawn(cnn14_shapes(2)), (1, 64, 70)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audioset")
    for name, (_, state, _) in SMALL.items():
        save_file(state, folder / f"{name}.safetensors")
    return folder


def theirs_mobilenet(state, x):
    "EfficientAT's network as its description has it, step by step."

    def bn(name, x):
        args = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *args, eps=1e-3)

    x = F.hardswish(bn("features.0.1", F.conv2d(x, state["features.0.0.weight"], None, 2, 1)))
    for i in range(1, 16):
        block, hard, stride, y, j = f"features.{i}.block", i > 6, 2 if i in (2, 4, 7, 13) else 1, x, 0
        act = F.hardswish if hard else F.relu
        while f"{block}.{j}.0.weight" in state or f"{block}.{j}.conc_se_layers.0.fc1.weight" in state:
            last = (
                f"{block}.{j + 1}.0.weight" not in state and f"{block}.{j + 1}.conc_se_layers.0.fc1.bias" not in state
            )
            if f"{block}.{j}.0.weight" not in state:
                se = [
                    state[f"{block}.{j}.conc_se_layers.0.fc{k}.{part}"] for k in (1, 2) for part in ("weight", "bias")
                ]
                s = F.linear(F.relu(F.linear(y.mean((2, 3)), *se[:2])), *se[2:]).sigmoid()
                y = y * s[:, :, None, None]
            else:
                w = state[f"{block}.{j}.0.weight"]
                deep = w.shape[2] > 1
                y = F.conv2d(y, w, None, stride if deep else 1, w.shape[2] // 2, 1, len(w) if deep else 1)
                y = bn(f"{block}.{j}.1", y)
                y = y if last else act(y)
            j += 1
        x = y + x if stride == 1 and y.shape == x.shape else y
    x = F.hardswish(bn("features.16.1", F.conv2d(x, state["features.16.0.weight"]))).mean((2, 3))
    x = F.hardswish(F.linear(x, state["classifier.2.weight"], state["classifier.2.bias"]))
    return F.linear(x, state["classifier.5.weight"], state["classifier.5.bias"])


def theirs_cnn14(state, x):
    "PANNs' network on maps (clips, 1, frames, bands), as theirs are; logits."

    def bn(name, x):
        return F.batch_norm(
            x, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")), eps=1e-5
        )

    x = bn("bn0", x.transpose(2, 3).transpose(1, 3)).transpose(1, 3)
    for i in range(1, 7):
        for j in (1, 2):
            x = bn(f"conv_block{i}.bn{j}", F.conv2d(x, state[f"conv_block{i}.conv{j}.weight"], None, 1, 1)).relu()
        x = F.avg_pool2d(x, 2) if i < 6 else x
    x = x.mean(3)
    x = x.amax(2) + x.mean(2)
    x = F.linear(x, state["fc1.weight"], state["fc1.bias"]).relu()
    return F.linear(x, state["fc_audioset.weight"], state["fc_audioset.bias"])


@pytest.mark.parametrize("name, theirs", [("mn01", theirs_mobilenet), ("cnn14", theirs_cnn14)])
def test_a_checkpoint_gives_its_authors_numbers(name, theirs, files):
    settings, state, shape = SMALL[name]
    net = settings.replace(pretrained=str(files / f"{name}.safetensors")).build(527).eval()
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = theirs(state, x)
        torch.testing.assert_close(net(x), want, rtol=1e-3, atol=1e-4 * want.abs().max().item())
        assert want.std(0).max() > 1e-4, "the clips differ"


@pytest.mark.parametrize("name", SMALL)
def test_other_classes_and_channels(name, files):
    "The last layer is new, the rest arrives; equal channels give what one channel gives."
    settings, state, shape = SMALL[name]
    settings = settings.replace(pretrained=str(files / f"{name}.safetensors"))
    one, three = settings.build(5).eval(), settings.replace(in_channels=3).build(5).eval()
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(one.body(x), three.body(x.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)
    assert one(x).shape == three(x).shape == (2, 5)
    rows = settings.match(one, state)[1]
    assert [r.what for r in rows if "527" in r.what] == ["left out: 527 classes, ours are 5"] * 2
    assert [r.ours for r in rows if r.what == "new"] == ["head.4.weight", "head.4.bias"]
    rows = settings.replace(in_channels=3).match(three, state)[1]
    assert len([r for r in rows if "for 3 channels" in r.what]) == 1


@pytest.mark.parametrize("width, n", [(0.1, 294), (0.4, 312), (1.0, 312), (4.0, 312)])
def test_every_tensor_of_efficientat_has_a_place(width, n):
    with torch.device("meta"):
        net = MobileNet(width=width).build(527)
        state = {k: torch.empty(s) for k, s in mobilenet_shapes(width).items()}
    found, rows = MobileNet(width=width).match(net, state)
    assert len(rows) == n == len(state) and {r.what for r in rows} == {"loaded", "as 1×1 convolution"}
    assert set(found) == set(net.state_dict())


def test_every_tensor_of_panns_has_a_place():
    with torch.device("meta"):
        net = Cnn14().build(527)
        state = {k: torch.empty(s) for k, s in cnn14_shapes().items()}
    found, rows = Cnn14().match(net, state)
    assert set(found) == set(net.state_dict())
    assert len(state) == 84 and sum(v.numel() for v in state.values()) == 81_853_340  # as the authors' code has
    assert [r.what for r in rows].count("transposed") == 12
    assert [r.theirs for r in rows if not r.ours] == list(cnn14_shapes())[:3]


def test_a_batch_norm_for_other_bands():
    settings, state = Cnn14(width=2, bands=128), drawn(cnn14_shapes(2))
    state["bn0.weight"] = torch.arange(64.0)
    found, rows = settings.match(settings.build(3), state)
    want = np.interp((np.arange(128) + 0.5) / 2 - 0.5, np.arange(64), np.arange(64.0))
    np.testing.assert_allclose(found["body.0.weight"], want, atol=1e-4)
    assert {r.theirs for r in rows if r.what == "interpolated to 128 bands"} == {
        f"bn0.{part}" for part in ("weight", "bias", "running_mean", "running_var")
    }
    with pytest.raises(AudiotagError, match="64 bands instead of 128"):
        settings.build(3).eval()(torch.zeros(2, 1, 64, 64))
    with pytest.raises(AudiotagError, match="too few for CNN14"):
        settings.build(3).eval()(torch.zeros(2, 1, 128, 31))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "width", "other", "none", "text", "pickle"])
def test_files_of_other_networks(name, fault, tmp_path):
    settings, state, _ = SMALL[name]
    key = next(k for k in state if k.endswith("running_mean"))
    path = tmp_path / "w.safetensors"
    changed = {
        "missing": {k: v for k, v in state.items() if k != key},
        "unknown": {**state, "dense.weight": torch.zeros(3)},
        "shape": {**state, key: torch.zeros(9)},
        "width": state,
        "other": SMALL["cnn14" if name == "mn01" else "mn01"][1],
    }
    if fault == "pickle":
        torch.save(state, path)
    elif fault == "text":
        path.write_text("weights to come")
    elif fault != "none":
        save_file(changed[fault], path)
    if fault == "width":
        settings = settings.replace(width=settings.width * 4)
    if name == "cnn14" and fault == "shape":
        settings = settings.replace(bands=64)
        save_file({**state, "conv_block2.bn1.running_mean": torch.zeros(9)}, path)
    with pytest.raises(AudiotagError, match="audiotag weights|EfficientAT") as e:
        settings.replace(pretrained=str(path)).build(4)
    assert e.value.field == "pretrained" and str(path) in str(e.value)


@pytest.mark.parametrize("name", SMALL)
def test_rebuilt_without_the_file_and_memory(name):
    settings, _, shape = SMALL[name]
    net = settings.build(4).eval()
    with torch.device("meta"):
        again = settings.replace(pretrained="/not/there.safetensors").build(4).eval()
    again.load_state_dict(net.state_dict(), assign=True)
    x = torch.randn(2, *shape)
    with torch.no_grad():
        assert torch.equal(again(x), net(x))
    assert config_from_dict(settings.to_dict()) == settings


@pytest.mark.parametrize("name, groups", [("mn01", 18), ("cnn14", 8)])
def test_blocks_for_rates_that_fall_towards_the_input(name, groups):
    settings, _, _ = SMALL[name]
    net = settings.build(4)
    found = layer_groups(net)
    assert len(found) == groups and sum(map(len, found)) == len(list(net.parameters()))
    assert [id(p) for p in found[-1]] == [id(p) for p in net.head.parameters()]
    first = net.body[0][0].weight if name == "mn01" else net.body[0].weight
    assert found[0][0] is first


@pytest.mark.parametrize("name, preset", [("mn01", "efficientat"), ("cnn14", "panns")])
@pytest.mark.parametrize("sed", [False, True])
def test_openvino_takes_the_graph(name, preset, sed):
    ov = pytest.importorskip("openvino")
    settings, _, _ = SMALL[name]
    net = (SED(backbone=settings) if sed else settings).build(4)
    bands = PRESETS[preset].n_mels
    net(torch.randn(4, 1, bands, 64))  # batch norms have statistics of their own
    net.eval()
    graph = ov.convert_model(
        net, example_input=torch.randn(2, 1, bands, 64), input=[ov.PartialShape([-1, 1, bands, -1])]
    )
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for n, frames in ((1, 64), (3, 101)):
        x = torch.randn(n, 1, bands, frames)
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(compiled([x.numpy()])[0]), net(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        lambda: MobileNet(width=0.05),
        lambda: MobileNet(width=5.0),
        lambda: MobileNet(pool="median"),
        lambda: MobileNet(dropout=1.0),
        lambda: Cnn14(bands=16),
        lambda: Cnn14(width=0),
        lambda: Cnn14(dropout=-0.1),
        lambda: Cnn14(in_channels=0),
    ],
)
def test_bad_settings(settings):
    with pytest.raises(AudiotagError):
        settings()


def test_other_pools():
    for pool in ("mean", "gem", "attention"):
        net = MobileNet(width=0.1, pool=pool).build(4).eval()
        assert net(torch.randn(2, 1, 128, 64)).shape == (2, 4) and isinstance(net.body, nn.Sequential)
    assert issubclass(MobileNet, AudioSetNetwork)
