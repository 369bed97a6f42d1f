"System 4 as its entrant built it: numbers from the formulas of his code."

import numpy as np
import pytest
import torch

from audiotag.audio.features import PRESETS
from audiotag.augment.wave import NoiseShare
from audiotag.core.config import config_from_dict
from audiotag.core.errors import AudiotagError
from audiotag.infer.windows import View, Windows, pool_clips
from audiotag.models.timm_backbone import Resize, Timm
from audiotag.train.fit import OPTIMIZERS
from audiotag.train.schedules import Cosine
from audiotag.train.losses import OHEM, SoftmaxCE
from audiotag.train.recipes import UNIVERSAL_LADDER, get_recipe, recipes, universal2020, universal2020_ladder


def cubic_weights(n, size):
    "(size, n): OpenCV's INTER_CUBIC along one axis, a = -.75, pixel centers aligned, edges repeated."
    out, a = np.zeros((size, n)), -0.75
    for i in range(size):
        at = (i + 0.5) * n / size - 0.5
        for k in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            d = abs(at - k)
            near, far = (a + 2) * d**3 - (a + 3) * d**2 + 1, a * (d**3 - 5 * d**2 + 8 * d - 4)
            out[i, min(max(k, 0), n - 1)] += near if d <= 1 else far
    return out


@pytest.mark.parametrize("side", [64, 128, 224])
def test_the_picture(side):
    "librosa's mel of a clip padded at its end, 80 dB, 0 to 1, stretched to the square by cubic interpolation."
    import librosa

    wave = np.random.default_rng(1).normal(size=11_000).astype(np.float32) * np.hanning(11_000).astype(np.float32)
    recipe = universal2020(side=side)
    picture = recipe.front_end(np.r_[wave, np.zeros(5000, np.float32)])
    mel = librosa.feature.melspectrogram(y=np.r_[wave, np.zeros(5000, np.float32)], sr=16000, n_mels=side)
    db = librosa.power_to_db(mel)
    theirs = (db - db.min()) / (db.max() - db.min())
    assert theirs.shape == (side, 32)
    np.testing.assert_allclose(picture, theirs, atol=2e-4)
    stretched = Resize((side, side), "bicubic")(torch.from_numpy(theirs)[None, None]).numpy()[0, 0]
    np.testing.assert_allclose(stretched, theirs @ cubic_weights(32, side).T, atol=1e-5)
    assert recipe.model.resize == "bicubic" and recipe.model.size == (side, side)


def test_a_short_clip_is_padded_at_its_end():
    reading = PRESETS["universal"].reading
    assert (reading.pad_to_s, reading.pad_at) == (1.0, "start")  # where the sound stands


def test_noise_has_a_share_of_the_waves_own_deviation():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 1, 1, 4000, generator=g) * torch.linspace(0.01, 2, 400)[:, None, None, None] + 0.5
    noisy, _ = NoiseShare()(x, torch.zeros(400, 1), g)
    share = (noisy - x).flatten(1).std(1, correction=0) / x.flatten(1).std(1, correction=0)
    assert 0.0008 < share.min() < 0.01 and 0.28 < share.max() < 0.32  # uniform from .001 to .3
    assert share.mean() == pytest.approx(0.1505, abs=0.015)
    params = dict(share=torch.tensor([0.2, 0.0], dtype=torch.float64), seed=torch.tensor([7]))
    one, _ = NoiseShare().apply(x[:2], torch.zeros(2, 1), params)
    white = torch.randn(x[:2].shape, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(one[0], x[0] + 0.2 * x[0].std(correction=0) * white[0])
    assert torch.equal(one[1], x[1])


def test_the_logits_of_the_views_are_summed():
    z = np.random.default_rng(3).normal(size=(5, 30)) * 6
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    windows = universal2020().windows
    (_, got), *_ = pool_clips(p.astype(np.float32), [("a", [[k] for k in range(5)])], windows)
    total = z.sum(0) / 5
    np.testing.assert_allclose(got, np.exp(total) / np.exp(total).sum(), rtol=1e-4, atol=1e-7)
    assert got.argmax() == z.sum(0).argmax()
    a, b = [0.9, 0.1, 0.0], [1e-6, 0.3, 0.7]
    assert Windows().pool_views([a, b]).argmax() == 0 and windows.pool_views([a, b]).argmax() == 1
    with pytest.raises(AudiotagError, match="views_mean"):
        get_recipe("freesound2019", changes=["windows.views_mean=logits"])
    with pytest.raises(AudiotagError):
        Windows(views_mean="odds")
    old = windows.to_dict()
    del old["views_mean"]
    assert config_from_dict(old).views_mean == "probabilities"  # of a bundle that was sealed before


def test_the_views_are_the_clip_and_four_more():
    assert universal2020().windows.views == (
        View(),
        View(shift=0.1),
        View(shift=-0.1),
        View(gain_db=5.0),
        View(gain_db=-5.0),
    )


def test_the_rate_falls_from_epoch_to_epoch():
    stage = universal2020().stages[0]
    theirs = [((np.cos(e * np.pi / 9) + 1) * (3e-4 - 1e-6) / 2 + 1e-6) for e in range(10)]
    ours = [stage.lr * stage.schedule.lr_factor(e + 0.7, 10) for e in range(10)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    assert Cosine(period=10).lr_factor(2.5, 10) != Cosine(period=10).lr_factor(2.0, 10)


def test_the_stage_and_the_losses_are_his():
    recipe, smooth = universal2020(), universal2020(smooth=True)
    stage = recipe.stages[0]
    assert (stage.epochs, stage.batch_size, stage.wd, stage.lr) == (10, 32, 1e-6, 3e-4)
    assert stage.best_epoch and recipe.metric == "accuracy" and stage.metric is None
    assert recipe.loss == SoftmaxCE() and smooth.loss == OHEM(of=SoftmaxCE(label_smoothing=0.1), share=0.9)
    z, y = torch.randn(32, 30), torch.eye(30)[torch.arange(32) % 30]
    soft = 0.9 * y + 0.1 / 30
    costs = -(soft * z.log_softmax(1)).sum(1)
    assert smooth.loss(z, y).item() == pytest.approx(costs.topk(28).values.mean().item(), rel=1e-5)
    assert recipe.model.in_channels == 3


def test_torch_adam_is_the_optimizer_of_pytorch():
    torch.manual_seed(0)
    a, b = (torch.nn.Linear(4, 3) for _ in range(2))
    b.load_state_dict(a.state_dict())
    ours = OPTIMIZERS["torch_adam"](list(a.parameters()), lr=1e-2, weight_decay=0.1)
    theirs = torch.optim.Adam(b.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(5):
        x = torch.randn(8, 4)
        for net, opt in ((a, ours), (b, theirs)):
            net(x).square().mean().backward()
            opt.step()
            opt.zero_grad()
    torch.testing.assert_close(a.weight, b.weight)


def test_the_ladder():
    assert [
        (s, r.model.name, r.model.size, r.front_end.n_mels)
        for (s, *_), r in zip(UNIVERSAL_LADDER, universal2020_ladder())
    ] == [
        (0.95260, "resnet50", None, 64),
        (0.95611, "resnet50d", None, 64),
        (0.95918, "res2next50", None, 64),
        (0.96576, "res2next50", (64, 64), 64),
        (0.96971, "res2next50", (128, 128), 128),
        (0.96898, "resnest50d", (128, 128), 128),
        (0.97308, "res2next50", (224, 224), 224),
        (0.97527, "res2next50", (224, 224), 224),
        (0.97542, "res2next50", (224, 224), 224),
        (0.97586, "res2next50", (224, 224), 224),
        (0.97527, "res2next50", (224, 224), 224),
        (None, "dla60_res2next", (224, 224), 224),
    ]
    assert [len(r.windows.views) for r in universal2020_ladder()] == [1] * 9 + [5] * 3
    assert {r.name for r in universal2020_ladder()} <= set(recipes)
    assert get_recipe("universal2020_dla60_res2next_224").model.name == "dla60_res2next"
    for bad in (dict(resize="nearest"),):
        with pytest.raises(AudiotagError):
            Timm(**bad)
