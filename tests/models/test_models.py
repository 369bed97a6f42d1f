"The networks against independent arithmetic, torchvision, timm and OpenVINO; sizes, memory formats, faults."

import copy
import socket
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from audiotag.core.errors import AudiotagError
from audiotag.core.config import config_from_dict
from audiotag.core.seeding import rng
from audiotag.audio.features import PRESETS
from audiotag.models.blocks import SequenceGRU, make_pool, n_params, pool_modes, timm_backbone, timm_name
from audiotag.models.cnn import VGG16BN, CNNModel1
from audiotag.models.wavecnn import WAVE_CNNS, WaveCNN
from audiotag.models.sed import SED
from audiotag.models.timm_backbone import Timm, has_pretrained, without_pretrained
from audiotag.audio.synth import SOUNDS, sound

SETTINGS = [
    CNNModel1(width=4),
    CNNModel1(width=4, head="code"),
    CNNModel1(width=4, in_channels=3),
    VGG16BN(width=4),
    VGG16BN(width=4, head="code", in_channels=3),
]


def build(settings, n_classes=6, seed=0):
    torch.manual_seed(seed)
    return settings.build(n_classes)


def clips(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_words(net, x, head):
    "CNN-model-1 in eval mode as Table 1 says it, from the numbers in the state dict only."
    params = iter(net.state_dict().items())

    def take(n):
        return [next(params)[1] for _ in range(n)]

    def norm(x):
        scale, shift, mean, var, _ = take(5)
        by = (-1,) + (1,) * (x.ndim - 2)
        return (x - mean.view(by)) / (var.view(by) + 1e-5).sqrt() * scale.view(by) + shift.view(by)

    def dense(x):
        w, b = take(2)
        return x @ w.T + b

    for _ in range(4):
        for _ in range(2):
            w, b = take(2)
            x = norm(F.conv2d(x, w, b, padding=1)).clamp(min=0)
        x = x[..., : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
        x = (x[..., ::2, ::2] + x[..., 1::2, ::2] + x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 4
    cells = x.flatten(2)
    if head == "writeup":
        x = norm(torch.cat([cells.mean(2), cells.max(2).values], 1))
        return dense(norm(dense(x).clamp(min=0)))
    x = dense(cells.mean(2))
    (slope,) = take(1)
    return dense(norm(torch.where(x > 0, x, slope * x)))


@pytest.mark.parametrize("head", ["writeup", "code"])
@pytest.mark.parametrize("channels,size", [(1, (128, 128)), (3, (64, 99)), (1, (17, 200))])
def test_cnn_is_what_the_table_says(head, channels, size):
    net = build(CNNModel1(width=4, head=head, in_channels=channels))
    for i in range(3):  # batch norm gets a history that is not 0 and 1
        net(3 * clips(8, channels, *size, seed=i) + 1)
    x = clips(3, channels, *size, seed=9)
    with torch.no_grad():
        for p in net.parameters():  # no bias stays zero, no scale one
            p += 0.1 * torch.randn_like(p)
        torch.testing.assert_close(net.eval()(x), in_words(net, x, head), rtol=1e-4, atol=1e-4)


def test_dropout_is_where_the_descriptions_put_it():
    def drops(settings):
        return [(i, m.p) for i, m in enumerate(settings.build(3).head) if isinstance(m, nn.Dropout)]

    assert drops(CNNModel1(width=2)) == [(2, 0.25), (6, 0.5)] and drops(CNNModel1(width=2, head="code")) == [
        (1, 0.2),
        (5, 0.1),
    ]


@pytest.mark.parametrize("classes", [1, 80])
@pytest.mark.parametrize("width", [1, 16, 64])
@pytest.mark.parametrize("head,hidden", [("writeup", None), ("code", None), ("code", 77)])
def test_parameter_counts(classes, width, head, hidden):
    h = hidden or {"writeup": 512, "code": 128}[head]
    d = 8 * width
    tail = (2 * 2 * d + 2 * d * h + h + 2 * h if head == "writeup" else d * h + h + 1 + 2 * h) + h * classes + classes
    sizes = [3, width, width, 2 * width, 2 * width, 4 * width, 4 * width, d, d]
    body = sum(9 * a * b + 3 * b for a, b in zip(sizes, sizes[1:]))
    assert n_params(CNNModel1(width=width, head=head, hidden=hidden, in_channels=3).build(classes)) == body + tail
    if width < 64:
        sizes = [3] + [width] * 2 + [2 * width] * 2 + [4 * width] * 3 + [d] * 6
        body = sum(9 * a * b + 3 * b for a, b in zip(sizes, sizes[1:]))
        assert n_params(VGG16BN(width=width, head=head, hidden=hidden, in_channels=3).build(classes)) == body + tail


def test_vgg_is_torchvisions():
    from torchvision.models import vgg16_bn

    theirs, ours = vgg16_bn(weights=None).features.eval(), VGG16BN(in_channels=3).build(5).body.eval()
    ours.load_state_dict(theirs.state_dict())
    x = clips(1, 3, 128, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_any_size_from_16(settings):
    net = build(settings).eval()
    with torch.no_grad():
        for size in ((16, 16), (16, 31), (128, 128), (33, 313), (128, 16)):
            out = net(clips(2, settings.in_channels, *size))
            assert out.shape == (2, 6) and torch.isfinite(out).all()


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_refuses_what_is_no_batch_of_spectrograms(settings):
    net, c = build(settings).eval(), settings.in_channels
    for bad in (
        clips(2, c, 15, 128),
        clips(2, c, 128, 15),
        clips(c, 128, 128),
        clips(2, c + 1, 64, 64),
        torch.zeros(2, c, 64, 64, dtype=torch.long),
    ):
        with pytest.raises(AudiotagError):
            net(bad)
    with pytest.raises(AudiotagError, match="one clip"):
        net.train()(clips(1, c, 64, 64))


def test_one_channel_is_repeated_for_three():
    net = build(CNNModel1(width=4, in_channels=3)).eval()
    x = clips(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), net(x.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_channels_last_stays_and_gives_the_same(settings):
    net, x = build(settings).eval(), clips(2, settings.in_channels, 64, 80)
    with torch.no_grad():
        plain = net(x)
        net = net.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
        assert net.body(x).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(net(x), plain, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_trains_in_mixed_precision(settings):
    net, x = (
        build(settings).to(memory_format=torch.channels_last),
        clips(8, 1, 32, 32).to(memory_format=torch.channels_last),
    )
    y = (torch.arange(8)[:, None] % 6 == torch.arange(6)).float()
    adam, losses = torch.optim.Adam(net.parameters(), lr=3e-3), []
    for _ in range(25):
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x)
        loss = F.binary_cross_entropy_with_logits(out.float(), y)
        adam.zero_grad()
        loss.backward()
        losses.append(loss.item())
        assert all(torch.isfinite(p.grad).all() for p in net.parameters())
        adam.step()
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_every_weight_is_used(settings):
    net = build(settings)
    net(clips(4, 1, 64, 64)).square().sum().backward()
    # a bias before batch norm has no effect: its gradient is zero but for rounding
    idle = [n for n, p in net.named_parameters() if p.grad is None or (not p.grad.any() and not n.endswith("bias"))]
    assert not idle


@pytest.mark.parametrize("kind", [CNNModel1, VGG16BN])
@pytest.mark.parametrize(
    "bad",
    [
        dict(width=0),
        dict(width=-4),
        dict(width=2.5),
        dict(head="x"),
        dict(in_channels=65),
        dict(in_channels=0),
        dict(hidden=0),
    ],
)
def test_refuses_bad_settings(kind, bad):
    with pytest.raises(AudiotagError):
        kind(**bad)


@pytest.mark.parametrize("n_classes", [0, -1, 2.0, True, None])
def test_refuses_bad_number_of_classes(n_classes):
    with pytest.raises(AudiotagError, match="number of classes"):
        CNNModel1(width=2).build(n_classes)


@pytest.mark.parametrize("settings", SETTINGS, ids=repr)
def test_settings_round_trip_and_rebuild(settings):
    again = config_from_dict(settings.to_dict())
    assert again == settings and again.hash == settings.hash
    a, b = build(settings), build(again, seed=1)
    b.load_state_dict(a.state_dict())
    x = clips(2, 1, 32, 40)
    with torch.no_grad():
        assert torch.equal(a.eval()(x), b.eval()(x))


@pytest.mark.parametrize(
    "settings", [SETTINGS[0], *(pytest.param(s, marks=pytest.mark.long) for s in SETTINGS[1:4])], ids=repr
)
def test_openvino_takes_it_with_any_batch_and_any_time(settings):
    ov = pytest.importorskip("openvino")
    net, c = build(settings).eval(), settings.in_channels
    graph = ov.convert_model(net, example_input=clips(2, c, 128, 128), input=[ov.PartialShape([-1, c, 128, -1])])
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for n, frames in ((1, 128), (3, 96), (2, 333)):
        x = clips(n, c, 128, frames)
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(compiled(x.numpy())[0]), net(x), rtol=1e-3, atol=1e-4)


# system 2: the wave, global features, length

WAVE = [
    WaveCNN(width=0.1, stem_channels=6, rnn=5),
    WaveCNN(width=0.1, stem_channels=6, rnn=5, pools=("average", "avemax3"), concat=True),
    WaveCNN(width=0.1, stem=(3, 5, 7), stem_channels=6, rnn=5, squeeze=4, pools=("avemax4", "avemax2")),
    WaveCNN(width=0.1, stem_channels=6, rnn=0, squeeze=2, concat=True),
]
WAVE_IDS = ["plain", "concat", "multi-scale SE", "alone"]


def inputs(settings, n=3, frames=37, seed=0):
    "Random inputs for settings without `front`."
    g = torch.Generator().manual_seed(seed)
    x = 20 * torch.randn(n, 1, 32, frames, generator=g) - 40
    if not settings.rnn:
        return (x,)
    return x, torch.randn(n, 1, 128, 12, generator=g), torch.rand(n, 1, 1, 1, generator=g)


def pool_in_words(x, mode, size, stride):
    "(C, bands, frames) cell by cell; windows never reach beyond the map."
    c, bands, frames = x.shape
    before = 0 if size == stride else (size - 1) // 2

    def cells(n):
        return [range(max(0, i * stride - before), min(n, i * stride - before + size)) for i in range(-(-n // stride))]

    def over(x, axis, how):
        return np.stack([how(x.take(list(cell), axis), axis) for cell in cells(x.shape[axis])], axis)

    mean, most = np.mean, np.max
    if mode in ("max", "average"):
        how = most if mode == "max" else mean
        return np.stack(
            [[how(x[:, list(b)][:, :, list(t)], axis=(1, 2)) for t in cells(frames)] for b in cells(bands)], 0
        ).transpose(2, 0, 1)
    first, second = {
        "avemax1": ((2, mean), (1, most)),
        "avemax2": ((1, mean), (2, most)),
        "avemax3": ((1, most), (2, mean)),
        "avemax4": ((2, most), (1, mean)),
    }[mode]
    return over(over(x, *first), *second)


@pytest.mark.parametrize("mode", pool_modes)
@pytest.mark.parametrize("size,stride", [(2, 2), (3, 1), (3, 2), (1, 1), (5, 3)])
def test_pools_cell_by_cell(mode, size, stride):
    pool = make_pool(mode, size=size, stride=stride)
    for bands, frames in ((8, 12), (7, 13), (1, 1), (2, 9)):
        x = clips(2, 3, bands, frames) - 5  # all negative: padded zeros would win a maximum
        want = np.stack([pool_in_words(o.numpy(), mode, size, stride) for o in x])
        np.testing.assert_allclose(pool(x).numpy(), want, rtol=1e-5, atol=1e-6)


def pool_as_tensorflow(x, mode, size, stride):
    "(C, bands, frames), axis by axis: ceil(n/stride) windows; of the cells that they lack, the smaller half lies before the map."
    axes = {"bands": 1, "time": 2}
    for kind, which in pool_modes[mode]:
        for axis in [axes[which]] if which in axes else [1, 2]:
            n = x.shape[axis]
            lack = max(0, (-(-n // stride) - 1) * stride + size - n)
            cells = [
                range(max(0, i * stride - lack // 2), min(n, i * stride - lack // 2 + size))
                for i in range(-(-n // stride))
            ]
            how = np.max if kind == "max" else np.mean
            x = np.stack([how(x.take(list(c), axis), axis) for c in cells], axis)
    return x


@pytest.mark.parametrize("mode", pool_modes)
@pytest.mark.parametrize("size,stride", [(2, 2), (3, 1), (3, 2)])
def test_pools_as_tensorflow_pads(mode, size, stride):
    "Numbers from the rule of `same`; with an even axis the two ways of padding differ, with odd ones they do not."
    same, both = (make_pool(mode, size=size, stride=stride, padding=o) for o in ("same", "both"))
    for bands, frames in ((16, 108), (8, 12), (7, 13), (1, 1), (2, 9), (16, 54)):
        x = clips(2, 3, bands, frames) - 5
        want = np.stack([pool_as_tensorflow(o.numpy(), mode, size, stride) for o in x])
        np.testing.assert_allclose(same(x).numpy(), want, rtol=1e-5, atol=1e-6)
        # with two cells either way has one window, of both
        alike = (size, stride) != (3, 2) or not any(n % 2 == 0 and n > 2 for n in (bands, frames))
        assert torch.allclose(same(x), both(x), rtol=1e-5) == alike
    ramp = torch.arange(8.0).view(1, 1, 1, 8)
    if (mode, size, stride) == ("max", 3, 2):
        assert same(ramp).flatten().tolist() == [2, 4, 6, 7] and both(ramp).flatten().tolist() == [1, 3, 5, 7]


def test_the_networks_of_system_2_are_keras():
    "Epsilon and momenta of each batch norm, by place; settings from before these fields keep torch's epsilon."
    for name, settings in WAVE_CNNS.items():
        with torch.device("meta"):
            net = settings.build(80)
        norms = {
            k: (m.eps, m.momentum) for k, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
        }
        assert len(norms) == 10 and norms.pop("beside.norm") == (1e-3, 0.01), name
        assert set(norms.values()) == {(1e-3, 0.15)} and settings.padding == "same"
    stored = {k: v for k, v in WaveCNN().to_dict().items() if k not in ("eps", "globals_momentum", "padding")}
    with torch.device("meta"):
        net = config_from_dict(stored).build(80)
    assert {m.eps for m in net.body.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}
    assert net.beside.norm.momentum == 0.15 and config_from_dict(stored).hash == WaveCNN().hash


def test_openvino_pads_as_tensorflow():
    ov = pytest.importorskip("openvino")
    net = build(WaveCNN(front=None, width=1 / 32, stem_channels=4, rnn=0, padding="same"), seed=1).eval()
    x = clips(2, 1, 32, 44)
    graph = ov.compile_model(ov.convert_model(net, example_input=x), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        assert np.abs(graph(x.numpy())[0] - net(x).numpy()).max() < 1e-4


@pytest.mark.parametrize("size,stride", [(2, 1), (4, 2), (0, 0), (3, 0)])
def test_pools_refuse(size, stride):
    with pytest.raises(AudiotagError):
        make_pool("max", size=size, stride=stride)


def gru_in_words(x, w, reverse):
    "One direction of a GRU by its equations (reset after the product, as cuDNN has it), (steps, n_in) -> (steps, n)."
    wi, wh, bi, bh = w
    n = wh.shape[1]
    h, out = np.zeros(n), np.zeros((len(x), n))
    for t in range(len(x))[::-1] if reverse else range(len(x)):
        a, b = wi @ x[t] + bi, wh @ h + bh
        r, z = (1 / (1 + np.exp(-(a[i * n : (i + 1) * n] + b[i * n : (i + 1) * n]))) for i in (0, 1))
        h = (1 - z) * np.tanh(a[2 * n :] + r * b[2 * n :]) + z * h
        out[t] = h
    return out


def test_recurrent_branch_is_its_equations():
    torch.manual_seed(0)
    net = SequenceGRU(4, 3)
    for i in range(5):
        net(2 * clips(6, 9, 4, seed=i) + 1)
    net.eval()
    x = clips(2, 9, 4)
    p = {k: v.double().numpy() for k, v in net.state_dict().items()}
    for given, got in zip(x.double().numpy(), net(x)):
        y = (given - p["norm.running_mean"]) / np.sqrt(p["norm.running_var"] + 1e-3) * p["norm.weight"] + p["norm.bias"]
        for i in (0, 1):

            def w(end):
                return [p[f"layers.{i}.{k}_l0{end}"] for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

            y = gru_in_words(y, w(""), False) + gru_in_words(y, w("_reverse"), True)
        np.testing.assert_allclose(got.detach().numpy(), y.max(0), atol=1e-5)


def pool_each(x, mode, size, stride):
    return torch.from_numpy(np.stack([pool_in_words(o.numpy(), mode, size, stride) for o in x]))


def wave_in_words(net, settings, x, statistics=None, length=None):
    "The second system's network in eval mode, from the numbers in the state dict only."
    params = iter((k, v) for k, v in net.state_dict().items() if not k.startswith("beside"))

    def take(n):
        return [next(params)[1] for _ in range(n)]

    def norm(x):
        scale, shift, mean, var, _ = (o.view(-1, 1, 1) if o.ndim else o for o in take(5))
        return ((x - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)

    def excite(x):
        if not settings.squeeze:
            return x
        w1, b1, w2, b2 = take(4)
        return x * torch.sigmoid((x.mean((2, 3)) @ w1.T + b1).clamp(min=0) @ w2.T + b2)[:, :, None, None]

    def conv(x):
        w, b = take(2)
        return F.conv2d(x, w, b, padding=1)

    x = excite(norm(torch.cat([F.conv2d(x, w, padding=w.shape[-1] // 2) for w in take(len(settings.stem))], 1)))
    for size in (2, 2, 3, None):
        x = excite(norm(conv(x)))
        if size:
            x = pool_each(x, settings.pools[0], 3, 1)
        y = excite(norm(conv(x)))
        if settings.concat:
            w, b = take(2)
            y = torch.einsum("oi,nift->noft", w[:, :, 0, 0], torch.cat([x, y], 1)) + b[:, None, None]
        x = pool_each(y, settings.pools[1], size, 2) if size else y
    n, c, f, t = x.shape
    # the entrant's axes: frames, bands, channels
    x = x.permute(0, 3, 2, 1).reshape(n, t, f // 2, 2 * c).amax(1).mean(1)
    if settings.rnn:
        x = torch.cat([x, net.beside(statistics[:, 0]), length[:, 0, 0]], 1)
    w, b = take(2)
    return x @ w.T + b


@pytest.mark.parametrize("settings", WAVE, ids=WAVE_IDS)
def test_wave_net_is_what_the_entrants_describe(settings):
    settings = settings.replace(front=None)
    net = build(settings)
    for i in range(3):
        net(*inputs(settings, n=6, seed=i))
    with torch.no_grad():
        for p in net.parameters():
            p += 0.1 * torch.randn_like(p)
        given = inputs(settings, seed=9)
        torch.testing.assert_close(net.eval()(*given), wave_in_words(net, settings, *given), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WAVE_CNNS)
def test_the_six_have_as_many_parameters_as_keras_counts(name):
    "Keras' `count_params` of the trainable weights of each layer of the entrants' code, layer by layer."
    multi, width, se = (
        "msc" in name,
        float(name.rsplit("_", 1)[1]) if "msc" in name else 1,
        name not in ("v1mix", "max3exam"),
    )
    conv2d = lambda k, c, d, bias: k * k * c * d + d * bias
    dense = lambda c, d: (c + 1) * d
    norm = lambda d: 2 * d
    total, c = (32 * (9 + 25 + 49), 96) if multi else (conv2d(3, 1, 64, 0), 64)
    total += norm(c) + se * (dense(c, c // 4) + dense(c // 4, c))
    for filters in (96, 128, 256, 512):
        d = int(filters * width)
        for _ in range(2):
            total += conv2d(3, c, d, 1) + norm(d) + se * (dense(d, d // 4) + dense(d // 4, d))
            c = d
    total += norm(12) + sum(2 * 3 * 128 * (n + 128 + 2) for n in (12, 128)) + dense(2 * c + 128 + 1, 80)
    with torch.device("meta"):
        net = WAVE_CNNS[name].build(80)
    assert n_params(net) == total and not [k for k in net.state_dict() if k.startswith("front")]


@pytest.mark.parametrize("preset", ["waveform_mel", "waveform_mel_441"])
def test_log_mel_inside_is_the_front_ends(preset):
    mel = PRESETS[preset]
    front, worst = WAVE[0].replace(front=mel).build(2).front, []
    for name in SOUNDS:
        wave = sound(name, rng(3, name), seconds=2, sample_rate=44100)
        quiet = np.concatenate([np.zeros(20000, np.float32), 1e-3 * wave])
        for w in (wave, quiet):
            got = front(torch.from_numpy(w)[None])[0, 0].numpy()
            off = np.abs(got - mel(w)).max()
            worst.append(off)
    # dB; a frame just above the border to 64 bits may be .004 dB off, see 11_features
    assert max(worst) < 5e-3, sorted(worst)[-5:]


@pytest.mark.parametrize("settings", WAVE, ids=WAVE_IDS)
def test_wave_net_splits_without_a_change(settings):
    net = build(settings).eval()
    front, rest = settings.split()
    graph = build(rest, seed=1).eval()
    graph.load_state_dict(net.state_dict())
    x = 0.1 * clips(2, 1, 1, 30000)
    beside = inputs(settings, n=2)[1:]
    with torch.no_grad():
        torch.testing.assert_close(graph(front.layer()(x.flatten(1)), *beside), net(x, *beside))
    assert rest.split() == (None, rest)


@pytest.mark.parametrize("settings", WAVE, ids=WAVE_IDS)
def test_wave_net_is_rebuilt_without_memory(settings):
    net = build(settings).eval()
    with torch.device("meta"):
        again = settings.build(6)
    again.load_state_dict(net.state_dict(), assign=True)
    x, beside = 0.1 * clips(2, 1, 1, 30000), inputs(settings, n=2)[1:]
    with torch.no_grad():
        assert torch.equal(again.eval()(x, *beside), net(x, *beside))
    assert config_from_dict(settings.to_dict()) == settings


def test_every_input_counts():
    settings = WAVE[0].replace(front=None)
    net = build(settings)
    given = [o.requires_grad_() for o in inputs(settings)]
    net(*given).square().sum().backward()
    assert all(o.grad.any() for o in given)
    idle = [n for n, p in net.named_parameters() if p.grad is None or (not p.grad.any() and not n.endswith("bias"))]
    assert not idle


def test_wave_net_trains_in_mixed_precision():
    settings = WAVE[2].replace(front=None)
    net, y = build(settings), torch.eye(6)
    x, statistics, length = inputs(settings, n=6)
    adam, losses = torch.optim.NAdam(net.parameters(), lr=1e-2), []
    for _ in range(25):
        with torch.autocast("cpu", torch.bfloat16):
            out = net(x.contiguous(memory_format=torch.channels_last), statistics, length)
        losses.append(F.binary_cross_entropy_with_logits(out.float(), y))
        adam.zero_grad()
        losses[-1].backward()
        adam.step()
    assert losses[-1] < 0.6 * losses[0]


def test_wave_net_refuses_what_does_not_fit():
    whole, rest, alone = (
        s.build(6).eval() for s in (WAVE[0], WAVE[0].replace(front=None), WAVE[3].replace(front=None))
    )
    x, statistics, length = inputs(WAVE[0])
    wave = clips(3, 1, 1, 30000)
    for net, bad in (
        (whole, (x, statistics, length)),
        (whole, (wave,)),
        (whole, (wave, statistics)),
        (whole, (wave, length, statistics)),
        (whole, (wave[:2], statistics, length)),
        (whole, (wave, statistics[..., :3], length)),
        (rest, (wave, statistics, length)),
        (rest, (x[:, :, :24], statistics, length)),
        (alone, (x, statistics, length)),
        (alone, (x, None, length)),
        (rest.train(), (x[:1], statistics[:1], length[:1])),
    ):
        with pytest.raises(AudiotagError):
            net(*bad)


@pytest.mark.parametrize(
    "bad",
    [
        dict(pools=("max",)),
        dict(pools=("max", "x")),
        dict(stem=()),
        dict(stem=(4,)),
        dict(stem=(3, 5, 7)),
        dict(width=0),
        dict(width=17),
        dict(squeeze=-1),
        dict(rnn=-1),
        dict(momentum=0),
        dict(front=PRESETS["waveform_mel"].replace(n_mels=72)),
        dict(front=PRESETS["waveform_mel"].replace(deltas=1)),
        dict(front=PRESETS["waveform"]),
    ],
)
def test_wave_cnn_refuses_bad_settings(bad):
    with pytest.raises(AudiotagError):
        WaveCNN(**bad)


@pytest.mark.parametrize(
    "settings",
    [pytest.param(s, id=i, marks=() if i == "concat" else pytest.mark.long) for s, i in zip(WAVE[1:], WAVE_IDS[1:])],
)
def test_openvino_takes_the_graph_of_the_wave_net(settings):
    ov = pytest.importorskip("openvino")
    settings = settings.replace(front=None)
    net = build(settings)
    net(*inputs(settings, n=4))
    net.eval()
    shapes = [
        ov.PartialShape(o) for o in ([-1, 1, 32, -1], [-1, 1, 128, 12], [-1, 1, 1, 1])[: 3 if settings.rnn else 1]
    ]
    compiled = ov.Core().compile_model(
        ov.convert_model(net, example_input=inputs(settings, n=2), input=shapes),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    for n, frames in ((1, 32), (3, 45)):
        given = inputs(settings, n=n, frames=frames)
        with torch.no_grad():
            torch.testing.assert_close(
                torch.from_numpy(compiled([o.numpy() for o in given])[0]), net(*given), rtol=1e-3, atol=1e-4
            )


# networks of timm

LADDER = [
    "resnet50",
    "res2next50",
    "dla60_res2next",
    "resnest50d",
    "efficientnet_b0",
    "rexnet_150",
    "seresnext26ts",
    "resnet18",
    "densenet121",
]


@pytest.mark.parametrize("name", LADDER)
def test_timm_bodies_are_timms(name):
    with torch.device("meta"):
        ours, theirs = Timm(name=name).build(30), timm.create_model(name, in_chans=1, num_classes=30)
        assert n_params(ours) == n_params(theirs)
        body, n = timm_backbone(name, pool=False)
    assert body.eval()(torch.zeros(1, 1, 64, 96, device="meta")).shape == (1, n, 2, 3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    "Files as timm publishes them: three channels, a thousand classes."
    folder, nets = tmp_path_factory.mktemp("weights"), {}
    for name in ("mobilenetv3_small_050", "resnet10t", "levit_128s"):
        torch.manual_seed(0)
        nets[name] = timm.create_model(name).eval()
        save_file({k: v.contiguous() for k, v in nets[name].state_dict().items()}, folder / f"{name}.safetensors")
    return folder, nets


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet10t"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pretrained_weights_arrive(weights, name, channels):
    folder, nets = weights
    net = Timm(name=name, in_channels=channels, pretrained=str(folder / f"{name}.safetensors")).build(4).eval()
    x = clips(2, channels, 64, 96)
    with torch.no_grad():
        theirs = nets[name].forward_head(nets[name].forward_features(x.expand(-1, 3, -1, -1)), pre_logits=True)
        torch.testing.assert_close(net.body(x), theirs, rtol=1e-3, atol=1e-4)
        assert net(clips(2, 1, 64, 64)).shape == (2, 4)


def test_pretrained_files_that_do_not_fit(weights, tmp_path):
    folder, nets = weights
    state = {k: v.contiguous() for k, v in nets["resnet10t"].state_dict().items()}
    save_file({k: v for k, v in state.items() if k != "layer1.0.bn1.weight"}, tmp_path / "less.safetensors")
    save_file({**state, "layer9.weight": torch.zeros(3)}, tmp_path / "more.safetensors")
    save_file({**state, "conv1.0.weight": torch.zeros(9, 3, 3, 3)}, tmp_path / "shape.safetensors")
    torch.save(state, tmp_path / "pickled.pth")
    whole = (folder / "resnet10t.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "folder.safetensors").mkdir()
    for path in (*tmp_path.iterdir(), tmp_path / "none.safetensors", folder / "mobilenetv3_small_050.safetensors"):
        with pytest.raises(AudiotagError, match="huggingface.co/timm/resnet10t") as e:
            Timm(name="resnet10t", pretrained=str(path)).build(4)
        assert e.value.field == "pretrained"
    Timm(name="resnet10t", pretrained=str(folder / "resnet10t.safetensors")).build(4)


@pytest.mark.parametrize("size", [None, (64, 64)])
@pytest.mark.parametrize("pool", ["mean", "gem"])
def test_a_network_of_ones_own_is_where_another_one_begins(size, pool, tmp_path):
    "A file as a run has it: the body with a prefix, and a head for other classes, which is left behind."
    before = build(Timm(name="resnet10t", size=size, pool=pool), n_classes=7)
    save_file({k: v.contiguous() for k, v in before.state_dict().items()}, tmp_path / "weights.safetensors")
    torch.manual_seed(1)
    net = Timm(name="resnet10t", pool="gem", pretrained=str(tmp_path / "weights.safetensors")).build(3)
    own, theirs = net.body.state_dict(), before.body.state_dict()
    assert all(torch.equal(v, theirs[k if size is None else f"1.{k}"]) for k, v in own.items())
    assert net.head[-1].weight.shape == (3, 512)
    with pytest.raises(AudiotagError, match="another network than resnet18"):
        Timm(name="resnet18", pretrained=str(tmp_path / "weights.safetensors")).build(3)


def test_tables_that_older_files_hold_are_passed_over(weights, tmp_path):
    net = weights[1]["levit_128s"]
    made = {k: v.contiguous() for k, v in net.named_buffers() if k not in net.state_dict()}
    assert made
    save_file({**{k: v.contiguous() for k, v in net.state_dict().items()}, **made}, tmp_path / "old.safetensors")
    Timm(name="levit_128s", in_channels=3, pretrained=str(tmp_path / "old.safetensors"), size=(224, 224)).build(4)


@pytest.mark.parametrize(
    "settings",
    [
        Timm(name="mobilenetv3_small_050", drop_path=0.2, dropout=0.1, pretrained="/not/there.safetensors"),
        Timm(name="levit_128s", size=(64, 64)),
        Timm(name="swin_tiny_patch4_window7_224", size=(32, 64)),
        Timm(name="maxvit_rmlp_pico_rw_256", size=(64, 64)),
    ],
    ids=lambda s: s.name,
)
def test_timm_is_rebuilt_without_memory(settings):
    net = build(settings.replace(pretrained="")).eval()
    with torch.device("meta"):
        again = settings.build(6).eval()
    again.load_state_dict(net.state_dict(), assign=True)
    assert not [k for k, v in (*again.named_parameters(), *again.named_buffers()) if v.is_meta]
    x = clips(2, 1, 40, 50)
    with torch.no_grad():
        assert torch.equal(again(x), net(x))
    assert config_from_dict(settings.to_dict()) == settings


def test_timm_never_asks_the_net(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("the net was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    Timm(name="resnet10t").build(3)
    for name in (
        "hf-hub:timm/resnet10t.c3_in1k",
        "hf_hub:timm/resnet10t",
        "local-dir:/tmp",
        "",
        "resnet10",
        "../resnet10t",
        "resnet10t/x",
    ):
        with pytest.raises(AudiotagError, match="has no network"):
            Timm(name=name).build(3)


def test_timm_downloads_only_where_the_recipe_says_so(monkeypatch):
    "By its own way, and never on `meta`, where a bundle builds networks; what goes wrong there names the file to get."
    real, asked = timm.create_model, []

    def create(name, *, pretrained=False, **kwargs):
        asked.append((name, pretrained, kwargs))
        return real(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", create)
    Timm(name="resnet10t", pretrained="timm", in_channels=2, drop_path=0.1).build(3)
    assert asked == [("resnet10t", True, dict(in_chans=2, num_classes=0, drop_path_rate=0.1))]
    with torch.device("meta"):
        Timm(name="resnet10t", pretrained="timm").build(3)
    Timm(name="resnet10t").build(3)
    assert not any(pretrained for _, pretrained, _ in asked[1:])

    for error in (OSError("no connection"), ValueError("offline"), RuntimeError("no weights exist")):

        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr(timm, "create_model", fail)
        with pytest.raises(
            AudiotagError, match="cannot get the weights of resnet10t.*huggingface.co/timm/resnet10t"
        ) as e:
            Timm(name="resnet10t", pretrained="timm").build(3)
        assert e.value.field == "pretrained"


def test_settings_without_pretrained_weights():
    inner = Timm(name="resnet10t", pretrained="w.safetensors")
    assert without_pretrained(inner) == Timm(name="resnet10t")
    assert without_pretrained(SED(backbone=inner)) == SED(backbone=Timm(name="resnet10t"))
    plain = CNNModel1(width=4)
    assert without_pretrained(plain) is plain and not has_pretrained(without_pretrained(SED(backbone=inner)))


def test_renamed_networks_of_timm_are_found():
    from timm.models._registry import get_deprecated_models

    renamed = get_deprecated_models()
    assert len(renamed) > 100
    for old, new in renamed.items():
        today = timm_name(old)
        assert timm_name(today) == today and today.startswith(new) and timm.get_pretrained_cfg(today) is not None
        assert timm_name(f"{old}.{today.partition('.')[2]}") == today, "with a tag behind the old name"


@pytest.mark.parametrize(
    "name",
    ["resnet18.zzz", "resnet18.A1_in1k", "tf_efficientnet_b0_ns.zzz", "resnet18.a1_in1k.x", "hgnet_b0", "resnet18 "],
)
def test_a_wrong_name_or_tag_is_answered_with_the_nearest(name):
    with pytest.raises(AudiotagError, match="did you mean '(resnet18|tf_efficientnet_b0|hgnet)") as e:
        Timm(name=name).build(3)
    timm_name(e.value.fix.split("'")[1])  # which exists


def test_weights_of_a_renamed_network_with_one_channel(tmp_path):
    new = "tf_efficientnet_b0.ns_jft_in1k"
    save_file({k: v.clone() for k, v in timm.create_model(new).state_dict().items()}, tmp_path / "w.safetensors")
    nets = [
        Timm(name=name, pretrained=str(tmp_path / "w.safetensors")).build(3) for name in (new, "tf_efficientnet_b0_ns")
    ]
    first, second = (net.state_dict() for net in nets)
    assert all(torch.equal(v, second[k]) for k, v in first.items() if k.startswith("body"))


def test_drop_path_drops_only_in_training():
    assert n_params(Timm(name="resnet10t", drop_path=0.5).build(3)) == n_params(Timm(name="resnet10t").build(3))
    net = build(Timm(name="resnet10t", drop_path=0.9)).eval()
    drops = [m for m in net.modules() if type(m).__name__ == "DropPath"]
    assert drops and drops[-1].drop_prob == pytest.approx(0.9)
    x = clips(4, 1, 64, 64)
    with torch.no_grad():
        for p in net.parameters():  # timm starts each residual branch at zero
            p += 0.1 * torch.randn_like(p)
        assert torch.equal(net(x), net(x))
        for m in drops:
            m.train()
        assert not torch.equal(net(x), net(x))


@pytest.mark.long
def test_timm_is_imported_when_a_network_is_built():
    code = "import sys, audiotag.models.timm_backbone as m; m.Timm(); print('timm' in sys.modules); m.Timm(name='resnet10t').build(2); print('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split() == [
        "False",
        "True",
    ]


@pytest.mark.parametrize(
    "bad",
    [
        dict(in_channels=0),
        dict(drop_path=1.0),
        dict(dropout=-0.1),
        dict(size=(64,)),
        dict(size=(8, 64)),
        dict(size=64),
        dict(name=3),
    ],
)
def test_timm_refuses_bad_settings(bad):
    with pytest.raises(AudiotagError):
        Timm(**bad)


@pytest.mark.parametrize(
    "settings",
    [Timm(name="resnet10t", size=(64, 64)), pytest.param(Timm(name="mobilenetv3_small_050"), marks=pytest.mark.long)],
    ids=lambda s: s.name,
)
def test_openvino_takes_timm_with_any_batch_and_any_time(settings):
    ov = pytest.importorskip("openvino")
    net = build(settings).eval()
    compiled = ov.Core().compile_model(
        ov.convert_model(net, example_input=clips(2, 1, 64, 96), input=[ov.PartialShape([-1, 1, 64, -1])]),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32"},
    )
    for n, frames in ((1, 64), (3, 130)):
        x = clips(n, 1, 64, frames)
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(compiled(x.numpy())[0]), net(x), rtol=1e-3, atol=1e-4)


def test_any_network_hears_waves_with_its_front_end_inside():
    front = PRESETS["universal_64"]
    settings = Timm(name="mobilenetv3_small_050", front=front, size=(64, 64))
    net = build(settings).eval()
    with torch.device("meta"):
        again = settings.build(6).eval()
    again.load_state_dict(net.state_dict(), assign=True)
    wave = 0.1 * clips(2, 1, 1, 16000)
    stored = torch.from_numpy(np.stack([front(w) for w in wave.flatten(1).numpy()]))[:, None]
    graph = settings.split()[1].build(6).eval()
    graph.load_state_dict(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(net(wave), graph(stored), rtol=1e-3, atol=1e-4)
        assert torch.equal(again(wave), net(wave)) and torch.equal(copy.deepcopy(net)(wave), net(wave))
        with pytest.raises(AudiotagError, match="Waveform"):
            net(stored)
    assert set(graph.state_dict()) == set(net.state_dict()) and config_from_dict(settings.to_dict()) == settings
