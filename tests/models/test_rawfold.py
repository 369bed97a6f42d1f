"Where neighbouring samples lie in a folded wave; raw and hybrid networks against plain arithmetic and OpenVINO; faults."

import numpy as np
import pytest
import torch
from torch import nn

from audiotag.core.errors import AudiotagError
from audiotag.core.config import config_from_dict
from audiotag.audio.features import Joined, LogMel, RawFold, Standardize
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


@pytest.mark.parametrize("name,shape,rate", [("rows128", (1, 625, 128), 16000), ("rows80", (2, 1000, 80), 32000)])
def test_neighbouring_samples_lie_where_the_source_says(name, shape, rate):
    "5 s; sample i is channel i // (rows*columns), row i // columns % rows, column i % columns: in the front end and in the network."
    fold = FOLDS[name]
    channels, rows, columns = shape
    n = 5 * rate
    assert (fold.channels, fold.rows, fold.columns, fold.sample_rate) == (
        *shape,
        rate,
    ) and channels * rows * columns == n
    page = fold(np.arange(n, dtype=np.float32)).reshape(shape)
    i = np.arange(n)
    assert np.array_equal(page[i // (rows * columns), i // columns % rows, i % columns], i)
    assert (
        (np.diff(page, axis=2) == 1).all()
        and (np.diff(page, axis=1) == columns).all()
        and (np.diff(page, axis=0) == rows * columns).all()
    )

    seen = []
    net = build(Raw(backbone=Timm(name="test_resnet", in_channels=channels), front=fold))
    net.body.register_forward_pre_hook(lambda m, x: seen.append(x[0].clone()))
    with torch.no_grad():
        net(torch.arange(2.0 * n).view(2, 1, 1, n))
    assert seen[0].shape == (2, *shape)
    assert torch.equal(seen[0][0], torch.from_numpy(page)) and torch.equal(seen[0][1], torch.from_numpy(page + n))


def test_the_fourth_s_own_reshape_is_the_same():
    "His model: wave.view(batch, samples // 128, 128), one channel repeated."
    x = waves(3, 80000)
    net = build(Raw(backbone=CNNModel1(width=2, in_channels=3), front=FOLDS["rows128"]))
    seen = []
    net.body.register_forward_pre_hook(lambda m, a: seen.append(a[0].clone()))
    with torch.no_grad():
        net(x)
    his = x.flatten(1).view(3, 80000 // 128, 128).unsqueeze(1)
    assert torch.equal(seen[0], torch.cat([his, his, his], 1))


def test_one_sample_moves_one_cell():
    fold = FOLDS["rows80"]
    a, b = np.zeros((2, 160000), np.float32)
    b[123456] = 1
    changed = np.argwhere(fold(a) != fold(b))
    assert changed.tolist() == [[1, (123456 - 80000) // 80, 123456 % 80]]


@pytest.mark.parametrize("samples", [79999, 80001, 40000])
def test_other_lengths_are_refused(samples):
    net = build(Raw(backbone=CNNModel1(width=2)))
    with pytest.raises(AudiotagError, match="does not fold into 1x625x128"):
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
