"The figures of systems 1, 2 and 5 as their authors have them."

import numpy as np
import pytest
import torch

from audiotag.audio.features import PRESETS, GlobalFeatures, Length, Peak, RawFold, Waveform
from audiotag.augment.spec import augment_batch
from audiotag.core.config import config_from_dict
from audiotag.core.errors import AudiotagError
from audiotag.infer.windows import View, Windows, batches, pool_clips
from audiotag.models.wavecnn import WAVE_CNNS
from audiotag.train.recipes import BIRD_INPUTS, SYSTEMS, birdclef2024, get_recipe, get_system, recipes
from audiotag.train.settings import Stage


def test_system_1():
    r = recipes["freesound2019"]()
    assert [type(a).__name__ for a in r.augment] == ["ZoomCrop", "Lighting", "MixUp", "SpecMix"]
    assert r.windows == Windows(frames=128, hop=48, even=True) and r.n_folds == 10
    assert (r.front_end.hop_length, type(r.front_end.scaling).__name__) == (694, "EightBit")
    vgg = recipes["freesound2019_vgg16"]()
    assert set(r.diff(vgg)) == {"name", "model.kind"} and vgg.model.kind == "VGG16BN"


def test_pictures_first_then_mixup_then_specmix():
    """Zoom and lighting keep a constant clip, so of clips with the values 0, 1, 2 … mixup makes weighted means of two; SpecMix then
    has at most two values a clip, and each is such a mean. In another order lighting would change them."""
    r = recipes["freesound2019"]()
    x = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 32, 32).clone()
    y = torch.eye(8)
    x1, y1 = augment_batch(r.augment, x, y, torch.Generator().manual_seed(3))
    means, parts = augment_batch(r.augment[:3], x, y, torch.Generator().manual_seed(3))
    assert (means.amax((1, 2, 3)) - means.amin((1, 2, 3))).max() < 1e-5
    torch.testing.assert_close(means[:, 0, 0, 0], parts @ torch.arange(8.0), rtol=1e-4, atol=1e-4)
    for clip in x1:
        values = torch.unique((clip * 1000).round())
        assert len(values) <= 2 and all((means[:, 0, 0, 0] * 1000 - v).abs().min() < 2 for v in values)
    torch.testing.assert_close(y1.sum(1), torch.ones(8), rtol=1e-4, atol=1e-4)


def test_system_2():
    r = recipes["freesound2019_waveform"]()
    main, whole, length = r.front_end.main, *r.front_end.beside
    assert isinstance(main, Waveform) and isinstance(whole, GlobalFeatures) and isinstance(length, Length)
    assert [p.reading.trim_db for p in (r.front_end, main, whole, length)] == [None, 60.0, None, 60.0]
    noisy, curated = r.stages
    assert (noisy.epochs, noisy.best_from, noisy.patience, noisy.metric) == (35, 28, None, "lrap")
    assert (curated.epochs, curated.best_epoch, curated.patience, curated.patience_from) == (40, True, 10, 35)
    assert noisy.schedule.epochs == (8, 12, 16) and curated.schedule.epochs == (14, 21, 28)
    assert [v.only for v in r.windows.views] == ["start", "middle", "end"] and r.windows.frames == 220500
    assert r.model == WAVE_CNNS["v1mix"] and (r.model.eps, r.model.padding) == (1e-3, "same")
    stack = SYSTEMS["freesound2019_stack"]
    assert [recipes[n]().model for n in stack.recipes] == list(WAVE_CNNS.values())
    assert stack.method.mean_weights == (2.1, 1.9, 0.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("frames, starts, passes", [(100, (0, 0, 0), 3), (128, (0, 0, 0), 1), (301, (0, 86, 173), 3)])
def test_three_crops_of_a_clip(frames, starts, passes):
    "At start, middle and end, as x, x/2 rounded down and 0 samples are left over; the network sees a window once."
    w = recipes["freesound2019_waveform"]().windows.replace(frames=128, hop=64)
    x = np.random.default_rng(0).normal(size=(1, frames)).astype(np.float32)
    theirs = []
    for room in (0, int(abs(frames - 128) / 2), abs(frames - 128)):
        theirs.append(np.pad(x[0], (room, 128 - frames - room)) if frames < 128 else x[0, room : room + 128])
    got = [w.cut(x, view, fill=0.0) for view in w.views]
    assert all(np.array_equal(a[0, 0, 0], b) and len(a) == 1 for a, b in zip(got, theirs))
    assert tuple(w.places(frames, v)[0][0] for v in w.views) == starts
    [(counts, windows)] = batches([("clip", x)], w, fill=0.0)
    assert len(windows) == passes and len(counts[0][1]) == 3
    p = np.stack([o.mean((1, 2)) for o in windows])
    [(_, score)] = pool_clips(p, counts, w)
    np.testing.assert_allclose(score, np.mean([t.mean() for t in theirs]), rtol=1e-5)


def test_equal_views_are_scored_once_and_weighted():
    "A clip one frame short stands at the start in two of three views; stored views mean all windows, as before."
    x = np.zeros((1, 127), np.float32)
    three = Windows(frames=128, hop=64, views=tuple(View(only=o) for o in ("start", "middle", "end")))
    assert [(v.only, n) for v, _, n in three.distinct(three.frame_views(x))] == [("start", 2), ("end", 1)]
    offsets = Windows(frames=128, hop=64, views=(View(), View(offset=64)))
    assert [n for *_, n in offsets.distinct(offsets.frame_views(np.zeros((1, 150), np.float32)))] == [2]
    assert len(offsets.distinct(offsets.frame_views(np.zeros((1, 200), np.float32)))) == 2
    copies = [(View(), x), (View(gain_db=1.0), x.copy())]
    assert len(three.distinct(copies)) == 2  # other features
    old = {k: v for k, v in Windows().to_dict().items() if k != "even"}
    old["views"] = [{k: v for k, v in View(pad_at="end").to_dict().items() if k != "only"}]
    w = config_from_dict(old)
    assert not w.even and w.cut(np.zeros((1, 300), np.float32), w.views[0]).shape[0] == 5
    assert w.hash == Windows(views=(View(pad_at="end"),)).hash


def test_system_5():
    names = {
        i: [getattr(getattr(birdclef2024(inputs=i).model, k, None), "name", None) for k in ("mel", "raw", "backbone")]
        for i in BIRD_INPUTS
    }
    assert names["hybrid"] == ["efficientnet_b0", "hgnetv2_b0", None] and names["rows80"][2] == "hgnetv2_b0"
    assert names["rows200"][2] == "tf_efficientnet_b0"
    assert {i: birdclef2024(inputs=i).model.name for i in ("mel", "rexnet", "seresnext")} == {
        "mel": "efficientnet_b0",
        "rexnet": "rexnet_150",
        "seresnext": "seresnext26ts",
    }
    fifth = RawFold(channels=2, rows=1000, columns=80, interleaved=True, wave_scaling=Peak(above=1.0))
    fourth = RawFold(channels=1, rows=400, columns=200, every=2, wave_scaling=Peak())
    assert birdclef2024(inputs="rows80").model.front == fifth
    c = birdclef2024(inputs="rows200").model
    assert c.front == fourth and c.backbone.in_channels == 3
    moved = next(a for a in birdclef2024(inputs="rows200").augment if a.kind == "Shift")
    waves = torch.arange(160000.0).expand(64, 1, 1, -1)
    first = moved(waves, torch.zeros(64, 1), torch.Generator().manual_seed(0))[0][:, 0, 0, 2]
    assert set(first.tolist()) == {1.0, 2.0, 3.0} and 0.25 < (first == 2).float().mean() < 0.75
    hybrid = birdclef2024(inputs="hybrid").model
    assert hybrid.front.sample_rate == 32000 and hybrid.front.beside == (fifth,) and hybrid.mel.size == (256, 256)
    assert hybrid.front.main == birdclef2024().front_end == PRESETS["birdclef_mel_5th"]
    assert birdclef2024(inputs="rexnet").front_end == PRESETS["birdclef_mel_4th"]
    for inputs in BIRD_INPUTS:
        r = birdclef2024(inputs=inputs)
        seconds = r.windows.frames / (
            r.front_end.sample_rate
            if isinstance(r.front_end, Waveform)
            else r.front_end.sample_rate / r.front_end.hop_length
        )
        assert abs(seconds - 5) < 0.02
    p = np.array([0.2, 0.4, 0.6, 0.9])[:, None, None]
    fourth = get_system("birdclef2024_4th").method.combiner.apply(p).item()
    assert fourth == pytest.approx((0.15 * 0.2 + 0.25 * 0.4 + 0.3 * 0.6 + 0.3 * 0.9 + 0.3 * (0.4 * 0.9) ** 0.5) / 1.3)
    assert get_system("birdclef2024_5th").method.combiner.apply(p[:3]).item() == pytest.approx(
        (5 * 0.2 + 4 * 0.4 + 0.6) / 10
    )
    assert get_system("birdclef2024_5th").recipes == ("birdclef2024_rows80", "birdclef2024", "birdclef2024_hybrid")


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_are_of_recipes(name):
    assert set(get_system(name).recipes) <= set(recipes)
    layouts = {get_recipe(r, scale=s).layout for r in get_system(name).recipes for s in ("full", "small")}
    assert len(layouts) == 1
    with pytest.raises(AudiotagError, match="did you mean|choose from"):
        get_system(name[:-1] + "?")


@pytest.mark.parametrize(
    "wrong",
    [
        dict(best_from=3),
        dict(best_from=30, best_epoch=True),
        dict(best_from=-1, best_epoch=True),
        dict(patience_from=3),
    ],
)
def test_best_epochs_that_cannot_be(wrong):
    with pytest.raises(AudiotagError):
        Stage(name="one", train_on=("curated",), epochs=30, **wrong)


def test_small_soundscapes_are_trained_and_judged_like_their_test():
    "tests/bench/results/score.md has what it gains; the networks on waves, which were not measured, and the full scale stay as they were."
    small = birdclef2024("small")
    assert [a.kind for a in small.augment] == ["Gain", "AddClips", "Noise", "SpecAugment", "MixUp"]
    assert small.stages[0].epochs == 120 and small.stages[0].sampling[1].p == 0.6
    assert small.mixed is not None and birdclef2024().mixed is None
    waves = birdclef2024("small", inputs="rows80")
    assert [a.kind for a in waves.augment] == ["Gain", "Noise", "MixUp"] and waves.stages[0].epochs == 60


def test_small_rainforest_hears_pcen():
    small = get_recipe("rainforest2021", scale="small")
    assert small.front_end.pcen and small.model.backbone.width == 8 and small.stages[0].steps == 800
    assert get_recipe("rainforest2021").front_end == PRESETS["rainforest"]
