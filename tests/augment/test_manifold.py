"Manifold mixup: what happens inside the kit's networks, whatever the depth; hooks that go away; faults."

import pytest
import torch
from torch import nn

from audiotag.augment.manifold import ManifoldMixUp, mixing_places
from audiotag.augment.spec import MixUp, augment_batch
from audiotag.core.errors import AudiotagError
from audiotag.core.config import config_from_dict
from audiotag.models.cnn import CNNModel1
from audiotag.models.sed import SED
from audiotag.models.timm_backbone import Timm

NETS = {
    "cnn": (CNNModel1(width=4), 4),
    "sed": (SED(backbone=CNNModel1(width=4)), 4),
    "timm": (Timm(name="test_resnet"), None),
}


def draws(n=4, share=0.6, depth=0):
    return dict(
        partner=torch.arange(n).roll(1), weight=torch.full((n,), share, dtype=torch.float64), depth=torch.tensor(depth)
    )


@pytest.mark.parametrize("name", NETS)
def test_the_map_behind_each_place_is_mixed(name):
    "Recorded by hooks of our own: behind the place, the maps of the clips are mixed; before it they are not."
    cfg, n = NETS[name]
    torch.manual_seed(0)
    net = cfg.build(3).eval()
    places = mixing_places(net)
    assert n is None or len(places) == n
    x = torch.randn(4, 1, 64, 64)
    aug = ManifoldMixUp(weight=0.6, last=len(places))
    for depth in range(len(places) + 1):
        params = draws(depth=depth)
        xi, yi = aug.apply(x, torch.eye(4, 3), params)
        torch.testing.assert_close(yi, 0.6 * torch.eye(4, 3) + 0.4 * torch.eye(4, 3).roll(1, 0))
        if depth == 0:
            torch.testing.assert_close(xi, 0.6 * x + 0.4 * x.roll(1, 0))
            continue
        assert xi is x
        seen, plain = [], []
        module = places[depth - 1]
        h = module.register_forward_hook(lambda m, i, o: plain.append(o.clone()))  # runs first
        with aug.attach(net, params), torch.no_grad():
            last = module.register_forward_hook(lambda m, i, o: seen.append(o.clone()))
            mixed = net(xi)
            last.remove()
        h.remove()
        torch.testing.assert_close(seen[0], 0.6 * plain[0] + 0.4 * plain[0].roll(1, 0))
        with torch.no_grad():
            assert not torch.allclose(mixed, net(x))
            torch.testing.assert_close(net(x), net(x))  # and nothing is left behind


def test_a_share_of_one_changes_nothing():
    torch.manual_seed(0)
    net = CNNModel1(width=4).build(3).eval()
    x = torch.randn(4, 1, 64, 64)
    for depth in range(5):
        params = draws(share=1.0, depth=depth)
        aug = ManifoldMixUp(last=4)
        with aug.attach(net, params), torch.no_grad():
            out = net(aug.apply(x, torch.eye(4, 3), params)[0])
        with torch.no_grad():
            torch.testing.assert_close(out, net(x))


def test_gradients_flow_in_training_and_in_16_bits():
    torch.manual_seed(0)
    net = CNNModel1(width=4).build(3).train()
    aug, params = ManifoldMixUp(weight=0.7, last=4), draws(share=0.7, depth=2)
    with aug.attach(net, params), torch.autocast("cpu", torch.bfloat16):
        net(torch.randn(4, 1, 64, 64)).float().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())


def test_draws_and_settings():
    aug = ManifoldMixUp(first=1, last=3, p=0.5)
    assert config_from_dict(aug.to_dict()) == aug and isinstance(aug, MixUp)
    x = torch.zeros(6, 1, 16, 16)
    a, b = (aug.draw(x, torch.Generator().manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a[k], b[k]) for k in a) and set(a) == {"partner", "weight", "depth"}
    g = torch.Generator().manual_seed(0)
    assert {int(aug.draw(x, g)["depth"]) for _ in range(60)} == {1, 2, 3}
    before = x.clone()
    augment_batch([ManifoldMixUp(last=0)], x, torch.eye(6), g)
    assert torch.equal(x, before)


@pytest.mark.parametrize("bad", [dict(first=-1), dict(first=3, last=2), dict(alpha=0.0)])
def test_settings_out_of_range(bad):
    with pytest.raises(AudiotagError):
        ManifoldMixUp(**bad)


def test_networks_that_do_not_fit():
    net = CNNModel1(width=4).build(3)
    with pytest.raises(AudiotagError, match="a body with 4 parts"):
        ManifoldMixUp(last=5).attach(net, draws(depth=5))
    with pytest.raises(AudiotagError, match="no body"):
        mixing_places(nn.Linear(2, 2))
