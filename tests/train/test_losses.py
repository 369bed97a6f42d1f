"Losses against formulas in 64-bit NumPy and against other people's code; gradients at the edges; weights."

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from audiotag.core.errors import AudiotagError
from audiotag.core.config import config_from_dict
from audiotag.train.losses import BCE, OHEM, BootstrappedBCE, Focal, LqLoss, SoftAUC, SoftmaxCE

LOSSES = [
    BCE(),
    BCE(label_smoothing=0.2),
    SoftmaxCE(),
    SoftmaxCE(label_smoothing=0.1),
    LqLoss(),
    LqLoss(q=1),
    LqLoss(q=0.01),
    BootstrappedBCE(),
    BootstrappedBCE(hard=False),
    Focal(),
    Focal(gamma=0.5, alpha=0.25),
    Focal(gamma=0),
]


def batch(n=16, classes=7, soft=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, classes, generator=g) < 0.3).float()
    if soft:
        targets = 0.6 * targets + 0.4 * targets[torch.randperm(n, generator=g)]
    return 3 * torch.randn(n, classes, generator=g), targets


def in_numpy(loss, z, t):
    "(clips,) by the formulas of the papers."
    p = 1 / (1 + np.exp(-z))

    def bce(t):
        return -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(1)

    if isinstance(loss, BCE):
        return bce(t * (1 - loss.label_smoothing) + loss.label_smoothing / 2)
    if isinstance(loss, SoftmaxCE):
        t = t / np.maximum(t.sum(1, keepdims=True), 1e-8)
        t = t * (1 - loss.label_smoothing) + loss.label_smoothing / t.shape[1]
        return -(t * np.log(np.exp(z) / np.exp(z).sum(1, keepdims=True))).sum(1)
    if isinstance(loss, LqLoss):
        return (t * (1 - p**loss.q) / loss.q + (1 - t) * (1 - (1 - p) ** loss.q) / loss.q).mean(1)
    if isinstance(loss, BootstrappedBCE):
        return bce(loss.beta * t + (1 - loss.beta) * ((p > 0.5) if loss.hard else p))
    yes, no = (1, 1) if loss.alpha is None else (loss.alpha, 1 - loss.alpha)
    return -(yes * t * (1 - p) ** loss.gamma * np.log(p) + no * (1 - t) * p**loss.gamma * np.log(1 - p)).mean(1)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_equals_the_formula_with_and_without_weights(loss):
    logits, targets = batch()
    each = in_numpy(loss, logits.double().numpy(), targets.double().numpy())
    assert loss(logits, targets).item() == pytest.approx(each.mean(), rel=1e-5)
    weights = torch.rand(len(logits), generator=torch.Generator().manual_seed(1))
    wanted = (each * weights.numpy()).sum() / weights.numpy().sum()
    assert loss(logits, targets, weights).item() == pytest.approx(wanted, rel=1e-5)
    assert loss(logits, targets, 7 * weights).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_weight_zero_is_as_if_the_clip_were_not_there(loss):
    logits, targets = batch()
    weights = (torch.arange(16) % 3 > 0).float()
    logits.requires_grad_()
    loss(logits, targets, weights).backward()
    assert (logits.grad[weights == 0] == 0).all() and (logits.grad[weights > 0] != 0).any(1).all()
    assert loss(logits, targets, weights).item() == pytest.approx(
        loss(logits[weights > 0], targets[weights > 0]).item(), rel=1e-5
    )
    assert loss(logits, targets, 0 * weights).item() == 0  # a batch in which no clip counts


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_gradient_is_finite_at_the_edges(loss, dtype):
    logits = torch.tensor([[0.0, -100, 100, 1e4, -1e4]] * 3, dtype=dtype).requires_grad_()
    value = loss(logits, torch.stack([torch.zeros(5), torch.ones(5), torch.full((5,), 0.3)]))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(logits.grad).all()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_other_peoples_code():
    logits, targets = batch(soft=False)
    targets[targets.sum(1) == 0, 0] = 1
    shares = targets / targets.sum(1, keepdim=True)
    for s in (0, 0.1):
        assert SoftmaxCE(label_smoothing=s)(logits, targets).item() == pytest.approx(
            F.cross_entropy(logits, shares, label_smoothing=s).item(), rel=1e-5
        )
    focal = sigmoid_focal_loss(logits, targets, alpha=0.25, gamma=2, reduction="mean").item()
    assert Focal(gamma=2, alpha=0.25)(logits, targets).item() == pytest.approx(focal, rel=1e-5)


def test_robust_losses_stop_pulling_where_cross_entropy_pulls_hardest():
    z = torch.tensor([[-8.0]], requires_grad=True)  # the network is sure of no, the label says yes

    def pull(loss):
        return torch.autograd.grad(loss(z, torch.ones(1, 1)), z)[0].abs().item()

    assert (
        pull(BCE()) > 0.999
        and pull(LqLoss()) < 0.01
        and pull(BootstrappedBCE(beta=0.7)) == pytest.approx(0.7, abs=1e-3)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: BCE(label_smoothing=1),
        lambda: BCE(label_smoothing=-0.1),
        lambda: LqLoss(q=0),
        lambda: LqLoss(q=1.1),
        lambda: BootstrappedBCE(beta=2),
        lambda: Focal(gamma=-1),
        lambda: Focal(alpha=3),
        lambda: SoftmaxCE(label_smoothing="a"),
    ],
)
def test_refuses_bad_settings(make):
    with pytest.raises(AudiotagError):
        make()


def test_refuses_shapes_that_torch_would_broadcast():
    logits, targets = batch()
    for args in (
        (logits, targets[:, :1]),
        (logits, targets[:1]),
        (logits[0], targets[0]),
        (logits, targets, torch.ones(1)),
        (logits, targets, torch.ones(16, 1)),
    ):
        with pytest.raises(AudiotagError):
            BCE()(*args)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_round_trip(loss):
    assert config_from_dict(loss.to_dict()) == loss


HARD = [
    OHEM(),
    OHEM(share=0.5),
    OHEM(of=SoftmaxCE(label_smoothing=0.1), share=0.7),
    OHEM(of=BCE(label_smoothing=0.02), share=0.31),
    OHEM(of=Focal(), share=1.0),
    OHEM(share=0.001),
]


@pytest.mark.parametrize("loss", HARD, ids=repr)
def test_ohem_is_the_mean_of_the_hardest(loss):
    for n in (1, 10, 16):
        logits, targets = batch(n)
        logits.requires_grad_()
        each = np.sort(in_numpy(loss.of, logits.detach().double().numpy(), targets.double().numpy()))[::-1]
        k = max(1, int(round(loss.share * n, 6)))
        value = loss(logits, targets)
        value.backward()
        assert value.item() == pytest.approx(each[:k].mean(), rel=1e-5)
        assert logits.grad.any(1).sum() == k and torch.isfinite(logits.grad).all()
    if isinstance(loss.of, SoftmaxCE):  # the usual way to write it
        targets[targets.sum(1) == 0, 0] = 1
        shares = targets / targets.sum(1, keepdim=True)
        usual = (
            F.cross_entropy(logits, shares, label_smoothing=loss.of.label_smoothing, reduction="none")
            .topk(k)
            .values.mean()
        )
        assert loss(logits, targets).item() == pytest.approx(usual.item(), rel=1e-5)
    assert config_from_dict(loss.to_dict()) == loss


@pytest.mark.parametrize("loss", HARD, ids=repr)
def test_ohem_with_weights(loss):
    logits, targets = batch(20)
    weights = torch.rand(20, generator=torch.Generator().manual_seed(1)) * (torch.arange(20) % 2)
    there = weights > 0
    assert loss(logits, targets, weights).item() == pytest.approx(
        loss(logits[there], targets[there], weights[there]).item(), rel=1e-5
    )
    assert loss(logits, targets, 7 * weights).item() == pytest.approx(loss(logits, targets, weights).item(), rel=1e-5)
    assert loss(logits, targets, torch.ones(20)).item() == pytest.approx(loss(logits, targets).item(), rel=1e-5)
    assert loss(logits, targets, 0 * weights).item() == 0
    each = torch.from_numpy(in_numpy(loss.of, logits.double().numpy(), targets.double().numpy()))[there]
    hard = each.topk(max(1, int(round(loss.share * int(there.sum()), 6)))).indices  # by cost, whatever the weight
    wanted = (each[hard] * weights[there][hard]).sum() / weights[there][hard].sum()
    assert loss(logits, targets, weights).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(
    "make", [lambda: OHEM(share=0.0), lambda: OHEM(share=1.1), lambda: OHEM(of=OHEM()), lambda: OHEM(of=3)]
)
def test_ohem_refuses(make):
    with pytest.raises(AudiotagError):
        make()


def test_smoothing_of_the_second_systems_entrants():
    logits, targets = batch(soft=False)
    theirs = F.binary_cross_entropy_with_logits(logits, 0.01 * (1 - targets) + 0.99 * targets)
    assert BCE(label_smoothing=0.02)(logits, targets).item() == pytest.approx(theirs.item(), rel=1e-6)


def pairwise(loss, z, t, w):
    "Soft AUC by a loop over all pairs of clips."
    n, classes = z.shape
    found = []
    for c in range(classes):
        cost = total = 0.0
        for i in range(n):
            for j in range(n):
                weight = w[i] * w[j] * t[i, c] * (1 - t[j, c]) * (i != j)
                total += weight
                cost += weight / (1 + np.exp((z[i, c] - z[j, c]) / loss.temperature))
        if total > 1e-6:
            found.append(cost / total)
    return np.mean(found) if found else 0.0


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("loss", [SoftAUC(), SoftAUC(bce=0), SoftAUC(temperature=0.3)], ids=repr)
def test_soft_auc_is_the_loop_over_pairs(loss, soft):
    logits, targets = batch(soft=soft)
    targets[:, 3] = 0  # no clip has it: it does not count
    for weights in (
        None,
        torch.rand(16, generator=torch.Generator().manual_seed(1)),
        (torch.arange(16) % 3 > 0).float(),
    ):
        w = np.ones(16) if weights is None else weights.double().numpy()
        wanted = pairwise(loss, logits.double().numpy(), targets.double().numpy(), w)
        wanted += loss.bce * BCE()(logits, targets, weights).item()
        assert loss(logits, targets, weights).item() == pytest.approx(wanted, rel=1e-4)


def test_soft_auc_at_the_edges():
    logits, targets = batch(soft=False)
    logits.requires_grad_()
    assert SoftAUC(bce=0)(logits, 0 * targets).item() == 0  # nobody has anything
    assert SoftAUC(bce=0)(logits[:1], targets[:1]).item() == 0  # one clip makes no pair
    SoftAUC()(1e4 * logits, targets).backward()
    assert logits.grad.isfinite().all()
    loss = SoftAUC(temperature=2.0)
    assert config_from_dict(loss.to_dict()) == loss
    for make in (lambda: SoftAUC(temperature=0), lambda: SoftAUC(bce=-1), lambda: OHEM(of=SoftAUC())):
        with pytest.raises(AudiotagError):
            make()
