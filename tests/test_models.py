"The networks of system 1 against independent arithmetic, torchvision and OpenVINO; sizes, memory formats, faults."
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from audiotag.core import AudiotagError, config_from_dict
from audiotag.models.blocks import n_params
from audiotag.models.cnn import VGG16BN, CNNModel1

SETTINGS = [CNNModel1(width=4), CNNModel1(width=4, head="code"), CNNModel1(width=4, in_channels=3), VGG16BN(width=4), VGG16BN(width=4, head="code", in_channels=3)]


def build(settings, n_classes=6, seed=0):
    torch.manual_seed(seed)
    return settings.build(n_classes)


def clips(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def in_words(net, x, head):
    "CNN-model-1 in eval mode as Table 1 says it, from the numbers in the state dict only."
    params = iter(net.state_dict().items())
    def take(n): return [next(params)[1] for _ in range(n)]
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
    def drops(settings): return [(i, m.p) for i, m in enumerate(settings.build(3).head) if isinstance(m, nn.Dropout)]
    assert drops(CNNModel1(width=2)) == [(2, 0.25), (6, 0.5)] and drops(CNNModel1(width=2, head="code")) == [(1, 0.2), (5, 0.1)]


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
    for bad in (clips(2, c, 15, 128), clips(2, c, 128, 15), clips(c, 128, 128), clips(2, c + 1, 64, 64), torch.zeros(2, c, 64, 64, dtype=torch.long)):
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
    net, x = build(settings).to(memory_format=torch.channels_last), clips(8, 1, 32, 32).to(memory_format=torch.channels_last)
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
@pytest.mark.parametrize("bad", [dict(width=0), dict(width=-4), dict(width=2.5), dict(head="x"), dict(in_channels=2), dict(in_channels=0), dict(hidden=0)])
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


@pytest.mark.parametrize("settings", SETTINGS[:4], ids=repr)
def test_openvino_takes_it_with_any_batch_and_any_time(settings):
    ov = pytest.importorskip("openvino")
    net, c = build(settings).eval(), settings.in_channels
    graph = ov.convert_model(net, example_input=clips(2, c, 128, 128), input=[ov.PartialShape([-1, c, 128, -1])])
    compiled = ov.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for n, frames in ((1, 128), (3, 96), (2, 333)):
        x = clips(n, c, 128, frames)
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(compiled(x.numpy())[0]), net(x), rtol=1e-3, atol=1e-4)
