"The SED head against independent arithmetic and OpenVINO; where and when its frames lie; its tables; faults."

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from audiotag.core.errors import AudiotagError
from audiotag.core.config import Config, config_from_dict
from audiotag.audio.features import LogMel, Standardize
from audiotag.models.cnn import VGG16BN, CNNModel1
from audiotag.models.sed import (
    SED,
    SEDHead,
    attention_pool,
    detections,
    features_of,
    frame_scores,
    plot_detections,
    split_parts,
)

MEL = LogMel(sample_rate=16000, n_fft=512, hop_length=160, n_mels=32, f_max=8000, scaling=Standardize())


@dataclass(frozen=True, kw_only=True)
class PlainBackbone(Config):
    "A backbone that does nothing: one frame of the map is one frame of the input."

    in_channels: int = 1

    def features(self):
        conv = nn.Conv2d(self.in_channels, self.in_channels, 1, bias=False)
        nn.init.eye_(conv.weight[:, :, 0, 0])
        return conv


@dataclass(frozen=True, kw_only=True)
class Strided(PlainBackbone):
    def features(self):
        conv = lambda a, b: nn.Conv2d(a, b, 3, stride=4, padding=1)
        return nn.Sequential(conv(self.in_channels, 8), nn.ReLU(), conv(8, 8), nn.ReLU())


def build(cfg, n=4, seed=0):
    torch.manual_seed(seed)
    return cfg.build(n)


def data(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


VARIANTS = [
    dict(),
    dict(hidden=8),
    dict(blend=True),
    dict(tanh=True),
    dict(hidden=8, blend=True, tanh=True, dropout=0.3),
    dict(output="max"),
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("backbone", [CNNModel1(width=4), VGG16BN(width=4)])
def test_the_head_in_words(variant, backbone):
    "From the state dict alone, with loops: mean over bands, (blend), (dense, ReLU), two dense layers, softmax over time."
    net = build(SED(backbone=backbone, **variant)).eval()
    x = data(2, 1, 64, 208)
    state = {k: v.double() for k, v in net.head.state_dict().items()}
    with torch.no_grad():
        h = net.body(x).double().mean(2)
        if variant.get("blend"):
            low, zero = torch.full_like(h[..., :1], -np.inf), torch.zeros_like(h[..., :1])
            neighbors = lambda edge: torch.stack(
                [torch.cat([edge, h[..., :-1]], 2), h, torch.cat([h[..., 1:], edge], 2)]
            )
            h = neighbors(low).amax(0) + neighbors(zero).sum(0) / 3
        dense = lambda x, name: (
            torch.einsum("oi,nit->not", state[f"{name}.weight"][..., 0], x) + state[f"{name}.bias"][:, None]
        )
        if variant.get("hidden"):
            h = dense(h, "dense.1").clamp(min=0)
        frame, attention = dense(h, "frame"), dense(h, "attend")
        attention = attention.tanh() if variant.get("tanh") else attention
        weight = attention.exp() / attention.exp().sum(2, keepdim=True)
        wanted = frame.amax(2) if variant.get("output") == "max" else (frame * weight).sum(2)
        torch.testing.assert_close(net(x).double(), wanted, atol=1e-5, rtol=1e-4)
        net.train()
        for m in net.modules():  # only the outermost switch: dropout and batch norm stay as in use
            if isinstance(m, (nn.Dropout, nn.BatchNorm2d)):
                m.eval()
        c, f, a = split_parts(net(x))
    for got, want in ((c, (frame * weight).sum(2)), (f, frame), (a, attention)):
        torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-4)


def test_attention_is_blind_to_a_constant_and_picks_a_peak():
    frame, attention = data(3, 4, 20), data(3, 4, 20, seed=1)
    torch.testing.assert_close(attention_pool(frame, attention + 7), attention_pool(frame, attention))
    attention[..., 5] = 200
    torch.testing.assert_close(attention_pool(frame, attention), frame[..., 5])
    assert (attention_pool(frame, attention * 0) - frame.mean(2)).abs().max() < 1e-6


def test_in_training_all_parts_come_in_one_tensor_and_gradients_reach_both_layers():
    net = build(SED(backbone=CNNModel1(width=4)))
    out = net(data(3, 1, 64, 100))
    assert out.shape == (3, 4, 1 + 2 * 6)
    split_parts(out)[0].sum().backward()
    assert net.head.frame.weight.grad.abs().sum() > 0 and net.head.attend.weight.grad.abs().sum() > 0
    plain = build(SED(backbone=CNNModel1(width=4), parts=False))
    assert plain(data(3, 1, 64, 100)).shape == (3, 4)


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 1), (2, 4, 12), (2, 4, 2)])
def test_what_is_not_the_parts_is_refused(shape):
    with pytest.raises(AudiotagError, match="not the parts"):
        split_parts(torch.zeros(*shape))


@pytest.mark.parametrize("frames", [16, 33, 512, 700])
def test_any_length_and_memory_format(frames):
    net = build(SED(backbone=CNNModel1(width=4), blend=True)).eval()
    x = data(2, 1, 64, frames)
    with torch.no_grad():
        plain = net(x)
        last = net.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert plain.shape == (2, 4) and (plain - last).abs().max() < 1e-5


@pytest.mark.parametrize("output", ["clip", "max"])
def test_openvino_gives_the_same(output):
    ov = pytest.importorskip("openvino")
    net = build(SED(backbone=CNNModel1(width=4), output=output, blend=True, hidden=8)).eval()
    graph = ov.convert_model(net, example_input=data(2, 1, 64, 128), input=[ov.PartialShape([-1, 1, 64, -1])])
    compiled = ov.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for shape in ((1, 1, 64, 128), (3, 1, 64, 320)):
        x = data(*shape)
        with torch.no_grad():
            assert np.abs(compiled(x.numpy())[0] - net(x).numpy()).max() < 1e-4


# --- frequency --------------------------------------------------------------------------------------------------------


def test_with_the_height_of_the_band_low_and_high_are_told_apart():
    "The same whistle in another band: without the front end's second channel the mean over bands cannot know."
    low, high = torch.zeros(1, 1, 256, 64), torch.zeros(1, 1, 256, 64)
    low[:, :, 96], high[:, :, 160] = 1, 1  # two cells of the map apart, and no edge in sight
    height = torch.linspace(-1, 1, 256)[:, None].expand(1, 1, 256, 64)
    for n in (1, 2):
        torch.manual_seed(0)
        net = SED(backbone=Strided(in_channels=n)).build(3).eval()
        with torch.no_grad():
            off = (net(torch.cat([low, height], 1)[:, :n]) - net(torch.cat([high, height], 1)[:, :n])).abs().max()
        assert off > 1e-4 if n == 2 else off < 1e-6, (n, off)


# --- when -------------------------------------------------------------------------------------------------------------


def listener(n_classes=2):
    "Frame logit of class 0: the mean of the bands; of class 1: its negative."
    net = build(SED(backbone=PlainBackbone()), n_classes)
    with torch.no_grad():
        net.head.frame.weight[:] = torch.tensor([1.0, -1.0])[:n_classes, None, None]
        net.head.frame.bias.zero_()
    return net


@pytest.mark.parametrize(
    "n,frames,hop", [(300, 64, 32), (300, 64, 64), (64, 64, 16), (65, 64, 1), (40, 64, 32), (301, 64, 17)]
)
@pytest.mark.parametrize("batch_size", [1, 16])
def test_frames_lie_where_the_sound_is(n, frames, hop, batch_size):
    x = data(16, n, seed=n).numpy()
    p = frame_scores(listener(), x, frames=frames, hop=hop, batch_size=batch_size)
    wanted = 1 / (1 + np.exp(-x.mean(0)))
    assert p.shape == (n, 2) and p.dtype == np.float32
    np.testing.assert_allclose(p, np.stack([wanted, 1 - wanted], 1), atol=1e-5)


def test_a_coarse_map_is_spread_over_its_frames():
    net = build(SED(backbone=CNNModel1(width=4))).eval()
    x = data(64, 160).numpy()
    with torch.no_grad():
        moments = net.moments(torch.from_numpy(x)[None, None])[0].sigmoid()[0]
    p = frame_scores(net, x, frames=160, hop=160)
    np.testing.assert_allclose(p, moments.numpy().repeat(16, 1).T, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), gap=st.integers(0, 4), least=st.integers(0, 4))
def test_detections_cover_what_is_above_the_threshold(seed, gap, least):
    g = np.random.default_rng(seed)
    p = g.random((60, 3)).astype(np.float32)
    table = detections({"r": p}, "abc", frame_s=0.5, threshold=0.6, gap_s=gap / 2, least_s=least / 2)
    for c, name in enumerate("abc"):
        on, mine = p[:, c] >= np.float32(0.6), table[table["class"] == name]
        covered = np.zeros(60, bool)
        for o in mine.itertuples():
            s, e = round(o.start * 2), round(o.end * 2)
            assert e - s >= max(1, least) and on[s] and on[e - 1] and not covered[max(0, s - gap - 1) : e].any()
            assert o.score == p[s:e, c].max()
            off = np.diff(np.flatnonzero(on[s:e]))
            assert off.size == 0 or off.max() <= gap + 1
            covered[s:e] = True
        assert on[covered].any() == bool(len(mine))
        if least <= 1:
            assert covered[on].all() and (gap or (covered == on).all())
    assert (
        list(table.columns) == ["recording", "class", "start", "end", "score"] and (table.start.diff()[1:] >= 0).all()
    )


def test_a_threshold_a_class_and_no_detection_at_all():
    p = np.full((10, 2), 0.5)
    assert len(detections({"a": p, "b": p}, "xy", frame_s=1, threshold=[0.4, 0.6])) == 2
    empty = detections({"a": p}, "xy", frame_s=1, threshold=0.9)
    assert len(empty) == 0 and len(empty.columns) == 5
    with pytest.raises(AudiotagError, match="'a' are"):
        detections({"a": p[:, :1]}, "xy", frame_s=1)
    import matplotlib

    matplotlib.use("Agg")
    axes = plot_detections(
        np.zeros((8, 10)), empty, "xy", frame_s=1.0, true=pd.DataFrame({"class": ["x"], "start": [1.0], "end": [2.0]})
    )
    assert len(axes[1].patches) == 1


def test_true_boxes_lie_on_their_frequencies():
    "A tone of 1 kHz in the spectrogram lies inside of the box from 900 to 1100 Hz that is drawn over it, and outside of that of another class."
    import matplotlib

    matplotlib.use("Agg")
    from audiotag.audio.features import LogMel

    fe = LogMel(sample_rate=16000, n_fft=1024, hop_length=256, n_mels=48, f_max=8000.0)
    x = fe(np.sin(2 * np.pi * 1000 * np.arange(32000) / 16000).astype(np.float32))
    loudest = x.mean(1).argmax() + 0.5
    true = pd.DataFrame(
        {
            "class": ["b", "a"],
            "start": [0.5, 1.0],
            "end": [1.5, 1.25],
            "f_min": [900.0, 3000.0],
            "f_max": [1100.0, 4000.0],
        }
    )
    heard = pd.DataFrame({"recording": ["r"], "class": ["b"], "start": [0.25], "end": [0.75], "score": [0.9]})
    top, below = plot_detections(x, heard, "ab", frame_s=256 / 16000, true=true, front_end=fe)
    span, tone, other = top.patches
    assert (span.get_x(), span.get_width(), span.get_y(), span.get_height()) == (0.25, 0.5, 0, 48) and span.get_fill()
    assert (
        (tone.get_x(), tone.get_width()) == (0.5, 1.0)
        and tone.get_y() < loudest < tone.get_y() + tone.get_height()
        and not tone.get_fill()
    )
    assert other.get_y() > loudest
    assert tone.get_edgecolor() != other.get_edgecolor() and tone.get_edgecolor()[:3] == span.get_facecolor()[:3]
    middles = [p.get_y() + p.get_height() / 2 for p in below.patches]
    # the first class on top
    assert middles == pytest.approx([1, 1, 0]) and below.get_ylim()[0] > below.get_ylim()[1]
    labels = [float(t.get_text()) for t in top.get_yticklabels()]
    assert labels == sorted(labels) and labels[-1] == 8 and top.get_ylabel() == "kHz"
    unknown = plot_detections(x, heard, "ab", frame_s=256 / 16000, true=true.assign(f_min=np.nan), front_end=fe)[0]
    assert [p.get_height() for p in unknown.patches] == [48] * 3


# --- faults -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Vector(Config):
    def features(self):
        return nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())


@dataclass(frozen=True, kw_only=True)
class Mute(Config):
    pass


@dataclass(frozen=True, kw_only=True)
class Fronted(PlainBackbone):
    front: LogMel | None = None


def test_backbones_that_are_none():
    with pytest.raises(AudiotagError, match="features"):
        SED(backbone=Mute())
    with pytest.raises(AudiotagError, match="2 axes"):
        SED(backbone=Vector()).build(3)
    with pytest.raises(AudiotagError, match="whole number"):
        SED(backbone=PlainBackbone()).build(0)
    with pytest.raises(AudiotagError, match="front end of its own"):
        SED(backbone=Fronted(front=MEL)).build(3)
    body, n, n_in = features_of(PlainBackbone(in_channels=3))
    assert (n, n_in, body.training) == (3, 3, True)


def test_settings_travel():
    cfg = SED(backbone=CNNModel1(width=4, in_channels=3), hidden=8, front=MEL, output="max")
    assert config_from_dict(cfg.to_dict()) == cfg
    net = cfg.build(4)
    again = cfg.build(4)
    again.load_state_dict(net.state_dict())
    with torch.device("meta"):  # as the bundle builds it
        assert {k: v.shape for k, v in cfg.build(4).state_dict().items()} == {
            k: v.shape for k, v in net.state_dict().items()
        }


@pytest.mark.parametrize(
    "shape,training,said",
    [
        ((1, 1, 64, 64), True, "batch of one"),
        ((2, 2, 64, 64), False, "was given"),
        ((2, 64, 64), False, "was given"),
        ((2, 1, 64, 8), False, "too few"),
    ],
)
def test_inputs_that_do_not_fit(shape, training, said):
    net = build(SED(backbone=CNNModel1(width=4))).train(training)
    with pytest.raises(AudiotagError, match=said):
        net(torch.zeros(*shape))


def test_the_head_starts_undecided_in_time():
    head = SEDHead(16, 3)
    assert head.frame.bias.abs().max() == 0 == head.attend.bias.abs().max()


def test_timm_backbones_and_waves():
    pytest.importorskip("timm")
    from audiotag.models.timm_backbone import Timm

    cfg = SED(backbone=Timm(name="test_resnet", in_channels=2), front=MEL.replace(frequency_channel=True))
    net = build(cfg).eval()
    wave = data(2, 1, 1, 16000)
    front, rest = cfg.split()
    graph = build(rest, seed=1).eval()
    graph.load_state_dict(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(net(wave), graph(front.layer()(wave.flatten(1))))
        frame, attention = graph.moments(front.layer()(wave.flatten(1)))
    assert frame.shape == attention.shape and frame.shape[:2] == (2, 4) and frame.shape[2] > 1


def test_the_generalized_mean_over_the_bands():
    "With the power 1 it is the mean; with its own it follows the formula; and it adds one number to the state."
    torch.manual_seed(0)
    mean = SED(backbone=CNNModel1(width=2)).build(3).eval()
    gem = SED(backbone=CNNModel1(width=2), pool="gem").build(3).eval()
    assert SED(backbone=CNNModel1(width=2)).hash == SED(backbone=CNNModel1(width=2), pool="mean").hash
    state = mean.state_dict() | {"head.pool.p": torch.tensor(1.0)}
    gem.load_state_dict(state)
    x = torch.randn(2, 1, 32, 64)
    torch.testing.assert_close(gem(x), mean(x), rtol=1e-4, atol=1e-4)
    gem.load_state_dict(state | {"head.pool.p": torch.tensor(3.0)})
    features = gem.body(x).clamp(min=1e-6)
    torch.testing.assert_close(gem.head.pool(gem.body(x)), (features**3).mean(2) ** (1 / 3))
    assert not torch.allclose(gem(x), mean(x), atol=1e-3)
