"The frames of a target move with the sound that they describe."

import torch

from audiotag.augment.spec import SpecMix, ZoomCrop
from audiotag.augment.wave import Shift
from audiotag.core.targets import Targets


def one_call(first, last, n=32, frames=32):
    "A picture that is 1 in some frames, and its target."
    x = torch.zeros(2, 1, 8, n)
    y = torch.zeros(2, 1, frames)
    x[..., first:last] = 1
    y[..., first * frames // n : last * frames // n] = 1
    return x, Targets(torch.ones(2, 1), torch.ones(2, 1), y)


def test_a_shifted_sound():
    for wrap in (True, False):
        x, y = one_call(24, 30)
        params = dict(samples=torch.tensor([5, -8]))
        moved, target = Shift(wrap=wrap).apply(x[:, :, :1], y, params)
        assert torch.equal(moved[:, 0, 0], target.frames[:, 0]) and torch.equal(target.labels, y.labels)


def test_an_enlarged_picture():
    x, y = one_call(8, 16, n=64, frames=64)
    params = dict(zoom=torch.tensor([2.0, 1.0]), low=torch.zeros(2), left=torch.tensor([0.0, 0.3]))
    out, target = ZoomCrop(max_zoom=2).apply(x, y, params)
    assert torch.equal(target.frames[0, 0], torch.zeros(64).index_fill(0, torch.arange(16, 32), 1.0))
    assert torch.equal((out[0, 0, 0] > 0.5).float(), target.frames[0, 0]) and torch.equal(target.frames[1], y.frames[1])


def test_a_span_of_time_from_the_partner():
    "Inside of it the frames are the partner's, elsewhere his share is the height of the band; the mean is the label's share."
    x = torch.zeros(2, 1, 8, 16)
    y = Targets(torch.tensor([[1.0], [0.0]]), frames=torch.stack([torch.ones(1, 16), torch.zeros(1, 16)]))
    params = {
        "partner": torch.tensor([1, 0]),
        **{f"band_{k}": torch.tensor(v) for k, v in dict(share=[0.25, 0.25], start=[0, 0], size=[2, 2]).items()},
        **{f"time_{k}": torch.tensor(v) for k, v in dict(share=[0.25, 0.25], start=[4, 4], size=[4, 4]).items()},
    }
    _, mixed = SpecMix().apply(x, y, params)
    wanted = torch.full((16,), 0.75)
    wanted[4:8] = 0
    torch.testing.assert_close(mixed.frames[0, 0], wanted)
    torch.testing.assert_close(mixed.frames.mean(2), mixed.labels)
