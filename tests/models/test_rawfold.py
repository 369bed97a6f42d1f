"Where neighboring samples lie in a folded wave; raw and hybrid networks against plain arithmetic and OpenVINO; faults."

import numpy as np
import pytest
import torch
from torch import nn

from audiotag.core.errors import AudiotagError
from audiotag.core.config import config_from_dict
from audiotag.audio.features import Joined, LogMel, Peak, RawFold, Standardize
from audiotag.models.cnn import CNNModel1
from audiotag.models.rawfold import FOLDS, Hybrid, Raw
from audiotag.models.sed import SED
from audiotag.models.timm_backbone import Timm

MEL = LogMel(sample_rate=16000, n_fft=1024, hop_length=500, n_mels=64, f_max=8000, scaling=Standardize())
SMALL = RawFold(sample_rate=16000, channels=2, rows=40, columns=20)


def build(cfg, n=5, seed=0):
    torch.manual_seed(seed)
    return cfg.build(n).eval()


def waves(n, samples, seed=0):
    return torch.randn(n, 1, 1, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def pages(fold, x):
    "What the front end gives and what the network's body is given, for waves (n, 1, 1, samples)."
    seen = []
    net = build(Raw(backbone=Timm(name="test_resnet", in_channels=fold.channels), front=fold))
    net.body.register_forward_pre_hook(lambda m, a: seen.append(a[0].clone()))
    with torch.no_grad():
        net(x)
    return np.stack([fold(w.numpy()) for w in x.flatten(1)]), seen[0].numpy()


@pytest.mark.parametrize("interleaved", [False, True])
def test_neighboring_samples_lie_where_the_source_says(interleaved):
    "A stored fold without the word goes on meaning blocks; in both ways the front end and the network agree."
    fold = config_from_dict(dict(kind="RawFold", channels=2, rows=50, columns=40)).replace(interleaved=interleaved)
    n, i = 4000, np.arange(4000)
    page, seen = pages(fold, torch.arange(2.0 * n).view(2, 1, 1, n))
    assert np.array_equal(page, seen) and np.array_equal(page[1], page[0] + n)
    where = (i % 2, i // 2 // 40, i // 2 % 40) if interleaved else (i // 2000, i // 40 % 50, i % 40)
    assert np.array_equal(page[0][where], i)


def test_the_fifth_s_reshape():
    "160000 samples as 80000 pairs, transposed, as 2 x 1000 x 80; divided by the largest value if that is above 1."
    x = waves(2, 160000)
    x[1] *= 1.5 / x[1].abs().max()
    theirs = (
        x.flatten(1).reshape(2, 80000, 2).permute(0, 2, 1).reshape(2, 2, 1000, 80)
        / torch.tensor([1, 1.5])[:, None, None, None]
    )
    for page in pages(FOLDS["rows80"], x):
        np.testing.assert_allclose(page, theirs.numpy(), atol=1e-7)
    ramp = (np.arange(160000) / 160000).astype(np.float32)
    page = FOLDS["rows80"](ramp) * 160000
    assert page[:, 0, :3].round().tolist() == [[0, 2, 4], [1, 3, 5]] and page[:, 999, 79].round().tolist() == [
        159998,
        159999,
    ]


@pytest.mark.parametrize("name,rows,columns", [("rows200", 400, 200), ("rows128", 625, 128)])
def test_the_fourth_s_own_reshape_is_the_same(name, rows, columns):
    "The window over its largest absolute value, every second sample, rows of that many; one channel repeated."
    x = waves(3, 160000) - 0.01
    x[2] = 0  # silence stays silent
    theirs = x.flatten(1) / x.flatten(1).abs().amax(1, keepdim=True).clamp(min=1e-9)
    theirs = theirs[:, 0::2].reshape(3, rows, columns)
    page, seen = pages(FOLDS[name], x)
    np.testing.assert_allclose(page, theirs.numpy(), atol=1e-7)
    assert np.array_equal(seen[:, 0], page) and np.abs(page[:2]).max() <= 1 and not page[2].any()
    net = build(Raw(backbone=CNNModel1(width=2, in_channels=3), front=FOLDS[name]))
    channels = []
    net.body.register_forward_pre_hook(lambda m, a: channels.append(a[0].clone()))
    with torch.no_grad():
        net(x)
    assert channels[0].shape == (3, 3, rows, columns)
    assert all(np.array_equal(channels[0][:, k], page) for k in range(3))


def test_a_front_end_scales_the_wave_first():
    "By clip and in a batch, in any front end; and settings from before the field keep their hash."
    fe, plain = MEL.replace(wave_scaling=Peak()), MEL
    x = waves(2, 16000).flatten(1)
    wanted = np.stack([plain((w / w.abs().max()).numpy()) for w in x])
    np.testing.assert_allclose(np.stack([fe(w.numpy()) for w in x]), wanted, atol=1e-4)
    np.testing.assert_allclose(fe.layer()(x)[:, 0], wanted, atol=2e-3)
    assert fe.hash != plain.hash and "wave_scaling" not in plain.diff(plain.replace())


@pytest.mark.parametrize("samples", [159999, 160001, 80000])
def test_other_lengths_are_refused(samples):
    net = build(Raw(backbone=CNNModel1(width=2)))
    with pytest.raises(AudiotagError, match="does not fold into 1x400x200"):
        net(waves(2, samples))


def test_the_hybrid_is_one_dense_layer_on_both_features():
    cfg = Hybrid(mel=CNNModel1(width=4), raw=Timm(name="test_resnet", in_channels=2))
    net = build(cfg)
    x, page = torch.randn(3, 1, 64, 80), torch.randn(3, 2, 40, 40)
    with torch.no_grad():
        h = torch.cat([net.mel(x).mean((2, 3)), net.raw(page).mean((2, 3))], 1)
        wanted = h @ net.head[-1].weight.T + net.head[-1].bias
        torch.testing.assert_close(net(x, page), wanted)
        alone = net.head[-1].weight[:, :32] @ net.mel(x).mean((2, 3)).T
        other = net(x, page * 0 + 1)
    # the page is looked at, and so is the spectrogram
    assert (other - wanted).abs().max() > 1e-4 and alone.shape == (5, 3)
    assert (net(x * 0, page) - wanted).abs().max() > 1e-4


@pytest.mark.parametrize(
    "cfg,n",
    [
        (Raw(backbone=CNNModel1(width=2), front=RawFold(sample_rate=16000, channels=1, rows=80, columns=50)), 4000),
        (
            Hybrid(
                mel=CNNModel1(width=2),
                raw=CNNModel1(width=2),
                front=Joined(main=MEL, beside=(RawFold(sample_rate=16000, channels=1, rows=250, columns=80),)),
            ),
            20000,
        ),
    ],
)
def test_the_front_end_splits_off_and_settings_travel(cfg, n):
    assert config_from_dict(cfg.to_dict()) == cfg
    net, (front, rest) = build(cfg), cfg.split()
    assert rest.front is None
    graph = build(rest, seed=1)
    graph.load_state_dict(net.state_dict())
    x = waves(2, n)
    made = front.layer()(x.flatten(1))
    with torch.no_grad():
        torch.testing.assert_close(net(x), graph(*made) if isinstance(made, tuple) else graph(made))
    for i in range(2):  # and what the store's front end gives is what the layer gives
        stored = front(x[i, 0, 0].numpy())
        for a, b in zip(
            stored if isinstance(stored, tuple) else (stored,), made if isinstance(made, tuple) else (made,)
        ):
            np.testing.assert_allclose(a.reshape(b[i].shape), b[i].numpy(), atol=2e-3)


def test_openvino_takes_pages_and_pairs():
    ov = pytest.importorskip("openvino")
    nets = [
        (build(Raw(backbone=CNNModel1(width=2), front=None)), (torch.randn(2, 1, 80, 50),)),
        (
            build(Hybrid(mel=CNNModel1(width=2), raw=CNNModel1(width=2))),
            (torch.randn(2, 1, 64, 41), torch.randn(2, 1, 250, 80)),
        ),
    ]
    for net, inputs in nets:
        shapes = [ov.PartialShape([-1, *o.shape[1:]]) for o in inputs]
        graph = ov.convert_model(net, example_input=inputs, input=shapes)
        compiled = ov.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        more = [torch.cat([o, o * 0.5]) for o in inputs]
        with torch.no_grad():
            assert np.abs(compiled([o.numpy() for o in more])[0] - net(*more).numpy()).max() < 1e-4


def test_gradients_reach_both_bodies():
    net = build(Hybrid(mel=CNNModel1(width=2), raw=CNNModel1(width=2))).train()
    net(torch.randn(3, 1, 64, 32), torch.randn(3, 1, 64, 32)).sum().backward()
    for body in (net.mel, net.raw):
        assert all(p.grad is not None for p in body.parameters())


@pytest.mark.parametrize(
    "make,said",
    [
        (lambda: Raw(backbone=MEL), "features"),
        (lambda: Raw(backbone=CNNModel1(width=2), front=FOLDS["rows80"]), "in_channels` of 2"),
        (lambda: Raw(backbone=CNNModel1(width=2), dropout=1.0), "dropout"),
        (
            lambda: Hybrid(mel=CNNModel1(width=2), raw=CNNModel1(width=2), front=Joined(main=MEL, beside=(SMALL,))),
            "in_channels` of 2",
        ),
        (
            lambda: Hybrid(
                mel=CNNModel1(width=2),
                raw=CNNModel1(width=2),
                front=Joined(main=MEL, beside=(FOLDS["rows128"], SMALL.replace(channels=1))),
            ),
            "one front end beside",
        ),
        (lambda: Hybrid(mel=MEL, raw=CNNModel1(width=2)), "features"),
        (lambda: SED(backbone=Raw(backbone=CNNModel1(width=2))), "features"),
        (lambda: Raw(backbone=CNNModel1(width=2)).build(0), "number of classes"),
    ],
)
def test_settings_that_do_not_fit(make, said):
    with pytest.raises(AudiotagError, match=said):
        make()


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.zeros(2, 1, 64, 64),),
        (torch.zeros(2, 1, 64, 64), torch.zeros(3, 1, 64, 64)),
        (torch.zeros(2, 2, 64, 64), torch.zeros(2, 1, 64, 64)),
        (torch.zeros(2, 1, 64, 64), torch.zeros(2, 1, 8, 64)),
        (torch.zeros(2, 64, 64), torch.zeros(2, 64, 64)),
    ],
)
def test_inputs_that_do_not_fit(inputs):
    with pytest.raises(AudiotagError, match="was given"):
        build(Hybrid(mel=CNNModel1(width=2), raw=CNNModel1(width=2)))(*inputs)
    net = build(Hybrid(mel=CNNModel1(width=2), raw=CNNModel1(width=2))).train()
    assert isinstance(net, nn.Module)
    with pytest.raises(AudiotagError, match="batch of one"):
        net(torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64))
