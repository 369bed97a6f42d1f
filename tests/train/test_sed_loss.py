"The SED loss against loops over cells; what is unknown pulls at nothing; mixtures with the unknown are unknown."

import math

import numpy as np
import pytest
import torch

from audiotag.augment.spec import MixUp
from audiotag.core.errors import AudiotagError
from audiotag.core.targets import Targets
from audiotag.core.config import config_from_dict
from audiotag.train.losses import BCE, Focal
from audiotag.models.cnn import CNNModel1
from audiotag.models.sed import SED, attention_pool, split_parts
from audiotag.train.sed_loss import SEDLoss

NAN = float("nan")


def example(seed=0, n=5, classes=3, frames=6, box_frames=0):
    g = torch.Generator().manual_seed(seed)
    frame, attention = torch.randn(n, classes, frames, generator=g) * 2, torch.randn(n, classes, frames, generator=g)
    y = (torch.rand(n, classes, generator=g) < 0.5).float()
    y[torch.rand(n, classes, generator=g) < 0.25] = NAN
    y[0] = torch.tensor([0.3, 0.7, 1.0])[:classes]
    parts = torch.cat([attention_pool(frame, attention)[..., None], frame, attention], 2)
    if box_frames:
        moments = (torch.rand(n, classes, box_frames, generator=g) < 0.3).float()
        moments[torch.rand(n, classes, box_frames, generator=g) < 0.2] = NAN
        return parts, Targets(y, frames=moments)
    return parts, Targets(y)


def cell(z, t, gamma):
    yes, no = -math.log(1 / (1 + math.exp(-z))), -math.log(1 / (1 + math.exp(z)))
    p = 1 / (1 + math.exp(-z))
    return t * yes * (1 - p) ** gamma + (1 - t) * no * p**gamma


def in_words(loss, parts, targets, weights=None):
    """Loops over cells, sums of cost times weight over sums of weights."""
    clip, frame, attention = (o.double().numpy() for o in split_parts(parts))
    y = targets.labels.double().numpy()
    moments = None if targets.frames is None else targets.frames.double().numpy()
    sums = {k: [0.0, 0.0] for k in ("clip", "peak", "pseudo", "segment")}

    def add(name, cost, w):
        sums[name][0] += cost * w
        sums[name][1] += w

    for i, c in np.ndindex(*y.shape):
        w = 1.0 if weights is None else float(weights[i] if weights.ndim == 1 else weights[i, c])
        if math.isnan(y[i, c]) or (loss.positives_only and not y[i, c] > 0):
            continue
        soft = y[i, c] * (1 - loss.label_smoothing) + loss.label_smoothing / 2
        add("clip", cell(clip[i, c], soft, loss.gamma), w)
        add("peak", cell(frame[i, c].max(), soft, loss.gamma), w)
        n = frame.shape[2]
        for m in range(n):
            said = float(frame[i, c, m] >= math.log(loss.threshold / (1 - loss.threshold)) and y[i, c] > 0)
            add("pseudo", cell(attention[i, c, m], said, loss.gamma), w)
            if moments is None:
                if y[i, c] == 0:
                    add("segment", cell(frame[i, c, m], 0.0, loss.gamma), w)
            else:
                k = moments.shape[2]
                part = moments[i, c, m * k // n : -(-(m + 1) * k // n)]
                told = part[~np.isnan(part)]
                if len(told):
                    add("segment", cell(frame[i, c, m], told.mean(), loss.gamma), w * len(told) / len(part))
    return sum(getattr(loss, k) * (s / w if w else 0) for k, (s, w) in sums.items())


LOSSES = [
    SEDLoss(),
    SEDLoss(clip=0.3, peak=2.0, pseudo=0.7, segment=1.1),
    SEDLoss(gamma=2.0),
    SEDLoss(label_smoothing=0.1),
    SEDLoss(positives_only=True),
    SEDLoss(threshold=0.8, gamma=1.0, label_smoothing=0.2),
]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
@pytest.mark.parametrize("box_frames", [0, 6, 12, 20, 4])
@pytest.mark.parametrize("weights", [None, "clip", "cell"])
def test_the_parts_in_words(loss, box_frames, weights):
    parts, y = example(box_frames=box_frames)
    w = (
        None
        if weights is None
        else torch.rand(y.shape[:1] if weights == "clip" else y.shape[:2], generator=torch.Generator().manual_seed(1))
    )
    if weights == "cell":
        got = loss(parts, Targets(y.labels, w, y.frames))
    else:
        got = loss(parts, y if box_frames else y.labels, w)
    assert got.item() == pytest.approx(in_words(loss, parts, y, w), rel=1e-4)
    assert config_from_dict(loss.to_dict()) == loss


def test_what_is_unknown_pulls_at_nothing():
    parts, y = example(seed=3)
    y = y.labels
    z = parts.clone().requires_grad_()
    SEDLoss()(z, y).backward()
    assert torch.isfinite(z.grad).all()
    assert z.grad[y.isnan()].abs().sum() == 0 and (z.grad[~y.isnan()].abs().sum(1) > 0).all()
    blind = parts.clone().requires_grad_()
    SEDLoss()(blind, torch.full_like(y, NAN)).backward()
    assert blind.grad.abs().sum() == 0


def test_the_pseudo_label_itself_has_no_gradient():
    parts, y = example(seed=4)
    z = parts.clone().requires_grad_()
    SEDLoss(clip=1e-9, peak=0.0, segment=0.0)(z, y).backward()
    _, frame, attention = split_parts(z.grad)
    assert frame.abs().max() == 0 and attention.abs().max() > 0


def test_plain_logits_are_binary_cross_entropy():
    z, y = torch.randn(8, 5), (torch.rand(8, 5) < 0.4).float()
    assert SEDLoss()(z, y).item() == pytest.approx(BCE()(z, y).item(), rel=1e-5)
    assert SEDLoss(gamma=2.0)(z, y).item() == pytest.approx(Focal(gamma=2.0)(z, y).item(), rel=1e-5)
    assert SEDLoss(label_smoothing=0.1)(z, y).item() == pytest.approx(BCE(label_smoothing=0.1)(z, y).item(), rel=1e-5)
    half = SEDLoss()(z.bfloat16(), y)
    assert half.dtype == torch.float32


def test_a_mixture_with_the_unknown_is_unknown():
    y = torch.tensor([[1.0, 0.0, NAN], [0.0, 1.0, 0.0]])
    x = torch.zeros(2, 1, 16, 16)
    params = dict(partner=torch.tensor([1, 0]), weight=torch.tensor([0.7, 0.7], dtype=torch.float64))
    _, mixed = MixUp(p=1.0).apply(x, y, params)
    torch.testing.assert_close(mixed, torch.tensor([[0.7, 0.3, NAN], [0.3, 0.7, NAN]]), equal_nan=True)
    z = torch.randn(2, 3, requires_grad=True)
    SEDLoss()(z, mixed).backward()
    assert z.grad[:, 2].abs().max() == 0 and z.grad[:, :2].abs().min() > 0


@pytest.mark.parametrize("loss", LOSSES[:3], ids=str)
def test_weights_beside_the_targets(loss):
    "Unknown is NaN, or weight 0; a weight for all labels of a clip is the weight of the clip."
    parts, y = example(seed=5)
    y = y.labels
    both = Targets(y.nan_to_num(), (~y.isnan()).float())
    assert loss(parts, both).item() == pytest.approx(loss(parts, y).item(), rel=1e-5)
    assert loss(parts[..., 0], both).item() == pytest.approx(loss(parts[..., 0], y).item(), rel=1e-5)
    of_clips = torch.tensor([1.0, 0.2, 0.0, 0.7, 0.5])
    weighted = Targets(y, of_clips[:, None].expand_as(y))
    assert loss(parts, weighted).item() == pytest.approx(loss(parts, y, of_clips).item(), rel=1e-5)
    z = parts.clone().requires_grad_()
    loss(z, both).backward()
    assert torch.isfinite(z.grad).all() and z.grad[both.weights == 0].abs().sum() == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 0.98, 1.0])
def test_mixup_of_weighted_targets_mixes_costs(share):
    g = torch.Generator().manual_seed(1)
    z, t, w = (
        torch.randn(1, 4, generator=g),
        (torch.rand(2, 4, generator=g) < 0.5).float(),
        torch.tensor([[1.0, 1, 1, 1], [0, 0, 1, 0]]),
    )
    y = Targets(t, w)
    params = dict(partner=torch.tensor([1, 0]), weight=torch.tensor([share, share], dtype=torch.float64))
    _, mixed = MixUp().apply(torch.zeros(2, 1, 16, 16), y, params)
    total = lambda y: SEDLoss()(z, y).item() * y.weights.sum().item()
    assert total(mixed[:1]) == pytest.approx(share * total(y[:1]) + (1 - share) * total(y[1:]), rel=1e-5)


def entrants_segment_loss(frame, boxes):
    "As he writes it: each of 16 frames repeated 32 times, the cost of all 512, times the target, over all cells."
    z, t = frame.repeat_interleave(32, 2), boxes
    cost = t * (-z).exp().log1p() + (1 - t) * z.exp().log1p()
    return (cost * t).mean().item()


def entrants_pseudo_loss(frame, attention):
    "The softmax over time goes into a cross-entropy of logits, against the frames of .7 and more of every class."
    a = attention.softmax(2)
    yes = (frame.sigmoid() >= 0.7).double()
    return (yes * (-a).exp().log1p() + (1 - yes) * a.exp().log1p()).mean().item()


def boxes_example():
    g = torch.Generator().manual_seed(8)
    frame, attention = (torch.randn(3, 4, 16, generator=g).double() * 2 for _ in range(2))
    labels, boxes = torch.zeros(3, 4), torch.zeros(3, 4, 512)
    for i, c, first, last in ((0, 1, 100, 163), (0, 2, 500, 512), (1, 0, 0, 300)):  # the third is a false positive
        labels[i, c], boxes[i, c, first:last] = 1, 1
    parts = torch.cat([attention_pool(frame, attention)[..., None], frame, attention], 2)
    return frame, attention, parts, Targets(labels, frames=boxes)


def test_parity_with_the_entrants_segment_and_pseudo_loss():
    frame, attention, parts, y = boxes_example()
    tiny = dict(clip=1e-12, peak=0.0, threshold=0.7, as_entrant=True)
    segment = SEDLoss(pseudo=0.0, segment=1.0, **tiny)(parts, y)
    assert segment.item() == pytest.approx(entrants_segment_loss(frame, y.frames.double()), rel=1e-5)
    mixed = y.mixed(y[[1, 2, 0]], lambda own, others: 0.7 * own + 0.3 * others)
    segment = SEDLoss(pseudo=0.0, segment=1.0, **tiny)(parts, mixed)
    assert segment.item() == pytest.approx(entrants_segment_loss(frame, mixed.frames.double()), rel=1e-5)
    pseudo = SEDLoss(pseudo=1.0, segment=0.0, **tiny)(parts, y)
    assert pseudo.item() == pytest.approx(entrants_pseudo_loss(frame, attention), rel=1e-5)


def test_frames_are_pulled_up_inside_their_box_and_nowhere_else_if_only_boxes_count():
    "It fails where the times are ignored: then labeled classes have no gradient, or all of their frames have one."
    frame, attention, parts, y = boxes_example()
    z = parts.clone().requires_grad_()
    SEDLoss(clip=1e-12, peak=0.0, pseudo=0.0, segment=1.0, as_entrant=True)(z, y).backward()
    slope, touched = z.grad[:, :, 1:17], y.frames.view(3, 4, 16, 32).mean(3)
    assert (slope[touched == 0].abs() < 1e-9).all() and (slope[touched == 1] < -1e-7).all()
    whole = z.grad[0, 1, 1 + 4].item()  # frames 128 to 159 lie in the box: -(1 - p) of 32 of 3·4·512 cells
    assert whole == pytest.approx(-(1 - frame[0, 1, 4].sigmoid().item()) * 32 / (3 * 4 * 512), rel=1e-4)


def test_frames_of_a_known_label_are_up_in_the_box_and_down_outside():
    "By default; of an absent class they are down everywhere, of an unknown one nothing moves."
    _, _, parts, y = boxes_example()
    weights = torch.ones(3, 4)
    weights[2, :3] = 0
    z = parts.clone().requires_grad_()
    SEDLoss(clip=1e-12, peak=0.0, pseudo=0.0, segment=1.0)(z, Targets(y.labels, weights, y.frames)).backward()
    slope, inside = z.grad[:, :, 1:17], y.frames.view(3, 4, 16, 32).mean(3)
    assert (slope[inside == 1] < 0).all() and (slope[weights == 0].abs() == 0).all()
    assert (slope[(inside == 0) & (weights > 0)[..., None]] > 0).all()


def test_it_trains_a_network_that_learns_when():
    "Clips of 128 frames with a stripe at one of four places; labels say whether. The frames of the stripe end above the others."
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = SED(backbone=CNNModel1(width=4)).build(1).train()
    opt = torch.optim.AdamW(net.parameters(), 1e-2)

    def batch(n):
        x, place, there = (
            torch.randn(n, 1, 16, 128, generator=g) * 0.3,
            torch.randint(4, (n,), generator=g),
            torch.rand(n, generator=g) < 0.5,
        )
        for i in range(n):
            if there[i]:
                x[i, :, 4:8, place[i] * 32 : place[i] * 32 + 32] += 2
        return x, place, there

    for _ in range(40):
        x, _, there = batch(16)
        loss = SEDLoss()(net(x), there.float()[:, None])
        opt.zero_grad()
        loss.backward()
        opt.step()
    x, place, there = batch(32)
    with torch.no_grad():
        moments = net.eval().moments(x)[0][there, 0]
    loudest = moments.view(-1, 4, 2).mean(2).argmax(1)
    assert (loudest == place[there]).float().mean() > 0.9


def test_the_focal_loss_of_birdclef_2024s_fourth():
    "A quarter of the cost of positive targets and all of that of negative ones; mixed targets mix the costs."
    z, t = np.array([[-1.5, 0.3, 2.0]]), np.array([[1.0, 0.0, 0.7]])
    p = 1 / (1 + np.exp(-z))
    theirs = t * 0.25 * (1 - p) ** 2 * -np.log(p) + (1 - t) * p**2 * -np.log(1 - p)
    ours = SEDLoss(gamma=2.0, positive=0.25)
    assert ours(torch.tensor(z), torch.tensor(t)).item() == pytest.approx(theirs.mean(), rel=1e-6)
    plain = t * 3 * -np.log(p) + (1 - t) * -np.log(1 - p)
    assert SEDLoss(positive=3.0)(torch.tensor(z), torch.tensor(t)).item() == pytest.approx(plain.mean(), rel=1e-6)
    old = {k: v for k, v in SEDLoss().to_dict().items() if k != "positive"}
    assert config_from_dict(old).hash == SEDLoss().hash


@pytest.mark.parametrize(
    "logits,targets,weights,said",
    [
        (torch.zeros(2, 3, 5), torch.zeros(2, 4), None, "targets"),
        (torch.zeros(2, 3), torch.zeros(2, 3, 1), None, "targets"),
        (torch.zeros(2, 3, 4), torch.zeros(2, 3), None, "not the parts"),
        (torch.zeros(6), torch.zeros(6), None, "logits"),
        (torch.zeros(2, 3, 5), torch.zeros(2, 3), torch.ones(3), "weights"),
        (torch.zeros(2, 3, 5), torch.zeros(2, 3), torch.ones(2, 3), "weights"),
    ],
)
def test_shapes_that_do_not_fit(logits, targets, weights, said):
    with pytest.raises(AudiotagError, match=said):
        SEDLoss()(logits, targets, weights)


@pytest.mark.parametrize(
    "bad",
    [
        dict(clip=0.0, peak=0.0),
        dict(threshold=0.0),
        dict(gamma=-1.0),
        dict(positive=-1.0),
        dict(label_smoothing=1.0),
        dict(segment=float("nan")),
    ],
)
def test_settings_out_of_range(bad):
    with pytest.raises(AudiotagError):
        SEDLoss(**bad)
