"Targets: the cost of a mixture is the mixture of the costs, and batches are stacked, indexed and moved as one."

import pytest
import torch
from torch.nn import functional as F

from audiotag.core.errors import AudiotagError
from audiotag.core.targets import Targets


def example(seed, frames=True):
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(6, 4, generator=g) * (torch.rand(6, 4, generator=g) < 0.7)
    return Targets(
        torch.rand(6, 4, generator=g), weights, (torch.rand(6, 4, 10, generator=g) < 0.3).float() if frames else None
    )


def summed(z, t, weights):
    return (F.binary_cross_entropy_with_logits(z, t.nan_to_num(), reduction="none") * weights).sum().item()


@pytest.mark.parametrize("share", [0.0, 0.3, 0.97, 1.0])
def test_the_cost_of_a_mixture(share):
    "Of labels and of frames, for any logits, and again for a mixture of mixtures."
    z, zf = torch.randn(6, 4), torch.randn(6, 4, 10)

    def mix(own, others):
        return share * own + (1 - share) * others

    def costs(t):
        of_frames = t.weights[..., None].expand_as(t.frames)
        return torch.tensor([summed(z, t.labels, t.weights), summed(zf, t.frames, of_frames)])

    a, b, c = example(1), example(2), example(3)
    once = a.mixed(b, mix)
    torch.testing.assert_close(costs(once), share * costs(a) + (1 - share) * costs(b), rtol=1e-4, atol=1e-4)
    twice = once.mixed(c, mix)
    torch.testing.assert_close(costs(twice), share * costs(once) + (1 - share) * costs(c), rtol=1e-4, atol=1e-4)
    assert twice.frames.isnan()[twice.weights == 0].all() and not twice.frames.isnan()[twice.weights > 0].any()


def test_frames_may_have_other_shares():
    "A span of time from the partner, as SpecMix takes it."
    one = torch.ones(1, 1)
    a, b = Targets(one, one, torch.ones(1, 1, 4)), Targets(one, one, torch.zeros(1, 1, 4))
    span = torch.tensor([1.0, 0.0, 0.0, 1.0])
    got = a.mixed(
        b, lambda own, others: 0.5 * own + 0.5 * others, lambda own, others: torch.where(span > 0, own, others)
    )
    assert got.frames.tolist() == [[[1, 0, 0, 1]]]


@pytest.mark.parametrize("frames", [True, False])
def test_stacked_indexed_and_moved(frames):
    y = example(4, frames)
    again = Targets.stack([y[i] for i in range(6)])
    for name in ("labels", "weights", "frames"):
        part, other = getattr(y, name), getattr(again, name)
        assert part is other is None or torch.equal(part, other)
    assert (again.frames is None) == (not frames)
    assert y[1:3].to(torch.float64).weights.dtype == torch.float64 and len(y[1:3]) == 2 and y.shape == (6, 4)
    copy = y.clone()
    copy.labels[:] = 0
    assert y.labels.any()


@pytest.mark.parametrize("parts", [dict(weights=torch.ones(2, 2)), dict(frames=torch.ones(2, 4, 9))])
def test_parts_that_do_not_fit(parts):
    with pytest.raises(AudiotagError, match="one for each label"):
        Targets(torch.ones(2, 3), **parts)


def test_two_sounds_heard_at_once():
    "A class of either is there, in full; for it to be absent, both have to know."
    unknown = float("nan")
    own = Targets(torch.tensor([1.0, 0.0, 0.0, 0.3, 0.0]), torch.tensor([0.5, 1.0, 1.0, 1.0, 0.0]))
    other = Targets(torch.tensor([0.0, 0.0, 0.0, 0.6, 1.0]), torch.tensor([1.0, 0.4, 0.0, 0.7, 0.0]))
    for a, b in ((own, other), (other, own)):
        both = a.united(b)
        assert both.weights.tolist() == pytest.approx([0.5, 0.4, 0.0, 0.7, 0.0])
        assert both.labels[both.weights > 0].tolist() == pytest.approx([1.0, 0.0, 0.6])
    plain = Targets(torch.tensor([1.0, 0.0, unknown])).united(Targets(torch.tensor([unknown, unknown, unknown])))
    assert plain.labels[0] == 1 and plain.labels[1:].isnan().all() and plain.weights is None


def test_frames_of_two_sounds_heard_at_once():
    a, b = example(1), example(2)
    both = a.united(b)
    known = (a.weights > 0) & (b.weights > 0)
    assert torch.equal(both.frames[known], torch.maximum(a.frames, b.frames)[known])
    one = (a.weights > 0) & (b.weights <= 0)
    assert one.any() and (both.frames[one].isnan() | (both.frames[one] == 1)).all()
    assert torch.equal(both.frames[one] == 1, a.frames[one] == 1)
