"The figures of systems 1, 2 and 5 as their authors have them."

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from audiotag.audio.features import PRESETS, GlobalFeatures, Length, Peak, RawFold, Waveform
from audiotag.augment import wave
from audiotag.augment.spec import augment_batch
from audiotag.core.config import config_from_dict
from audiotag.core.errors import AudiotagError
from audiotag.infer.windows import View, Windows, batches, pool_clips
from audiotag.models.timm_backbone import Timm, has_pretrained
from audiotag.models.wavecnn import WAVE_CNNS
from audiotag.train.recipes import (
    BIRD_INPUTS,
    SYSTEMS,
    birdclef2024,
    freesound2019,
    get_recipe,
    get_system,
    recipes,
    universal2020,
    universal2020_ladder,
)
from audiotag.train.sed_loss import SEDLoss
from audiotag.train.settings import Labels, Stage


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


def test_small_freesound_learns_from_both_sources_at_once():
    "tests/bench/results/score.md has what it gains; VGG16-BN and the recipes of other competitions keep the plain form."
    small = get_recipe("freesound2019", scale="small")
    assert [s.train_on[0] for s in small.stages] == ["noisy", "curated", "curated", "curated"]
    assert small.stages[0].train_on == ("noisy", "curated") and len(small.members) == 4
    assert (small.loss.kind, small.activation, small.one_label) == ("SoftmaxCE", "softmax", False)
    assert get_recipe("universal2020", scale="small").one_label and not get_recipe("birdclef2024").one_label
    plain, vgg = freesound2019("small", plain=True), get_recipe("freesound2019_vgg16", scale="small")
    assert set(plain.diff(vgg)) == {"name", "model.kind"} and plain.activation == "sigmoid" and not plain.augment
    assert freesound2019(plain=True) == freesound2019()


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


@pytest.mark.parametrize("inputs", BIRD_INPUTS)
def test_labels_and_losses_of_system_5(inputs):
    "The fourth's secondary labels are worth .9 on spectrograms and nothing on waves, where its loss is focal."
    r, small = birdclef2024(inputs=inputs), birdclef2024("small", inputs=inputs)
    mels, waves = inputs in ("rexnet", "seresnext", "inception"), inputs in ("rows200", "rows128")
    assert r.labels == (Labels(secondary=0.9) if mels else Labels() if waves else Labels(secondary_weight=0.0))
    assert r.loss == (SEDLoss(gamma=2.0, positive=0.25) if waves else SEDLoss())
    assert (small.labels, small.loss) == (Labels(secondary_weight=0.0), SEDLoss())


def test_the_fourths_networks_on_spectrograms():
    "Pool, drop-path, optimizer, schedules and masks as in its code."
    made = {i: birdclef2024(inputs=i) for i in ("rexnet", "seresnext", "inception")}
    for r in made.values():
        stage = r.stages[0]
        assert (r.model.drop_path, r.model.dropout) == (0.2, 0.5)
        assert (stage.batch_size, stage.lr, stage.wd, stage.optimizer) == (96, 1e-3, 1e-3, "torch_adam")
        assert r.stages[1].model.drop_path == 0.2 and r.stages[1].model.pool == r.model.pool
    assert [r.model.pool for r in made.values()] == ["gem", "gem", "mean"]
    assert [r.stages[0].epochs for r in made.values()] == [20, 20, 50]
    rates = np.array([[r.stages[0].schedule.lr_factor(e, 20) for e in (0, 1, 2, 11, 19.5)] for r in made.values()])
    theirs = [(1 + np.cos(np.pi * e / 20)) / 2 * (1 - 1e-3) + 1e-3 for e in (0, 1, 2, 11, 19)]  # once an epoch
    np.testing.assert_allclose(rates, [[0, 0.5, 1, 0.5, 0.5 / 18], theirs, [0, 0.5, 1, 0.5, 0.5 / 18]], atol=1e-9)
    masks = [a for a in made["rexnet"].augment if a.kind == "SpecAugment"]
    x, g = torch.ones(4000, 1, 128, 256), torch.Generator().manual_seed(0)
    frames, bands = (1 - a(x, torch.zeros(4000, 1), g)[0][:, 0] for a in masks)
    n_frames, n_bands = frames[:, 0].sum(1), bands[:, :, 0].sum(1)
    assert n_frames.max() in (59, 60) and n_frames.mean() == pytest.approx(29.5, abs=1)
    assert n_bands.max() in (23, 24) and (n_bands == 0).float().mean() == pytest.approx(0.52, abs=0.03)


def test_the_fourths_pool_is_a_generalized_mean():
    "Of the map of five seconds; the third power, nothing below 1e-6."
    net = Timm(name="resnet10t", pool="gem").build(5)
    x = torch.randn(2, 512, 4, 8, generator=torch.Generator().manual_seed(0))
    theirs = torch.nn.functional.avg_pool2d(x.clamp(min=1e-6).pow(3), (4, 8)).pow(1 / 3)[:, :, 0, 0]
    torch.testing.assert_close(net.head[0](x), theirs)


def timm_parts(model):
    "The settings of timm networks in those of a model: itself, its backbone, or the two bodies of a hybrid."
    parts = (model, *(getattr(model, k, None) for k in ("backbone", "mel", "raw")))
    return [o for o in parts if isinstance(o, Timm) and has_pretrained(o)]


FROM_WEIGHTS = [n for n in recipes if n not in ("birdclef2025", "birdclef2026") and timm_parts(recipes[n]().model)]


@pytest.mark.parametrize("name", FROM_WEIGHTS)
def test_full_recipes_start_from_timms_weights(name, tmp_path, monkeypatch):
    "A file under timm's own names arrives in the body, all of it; without the file it is said where it is found."
    monkeypatch.chdir(tmp_path)
    model = recipes[name]().model
    parts = timm_parts(model)
    assert [o.pretrained for o in parts] == [f"pretrained/{o.name}.safetensors" for o in parts]
    with pytest.raises(AudiotagError, match=f"huggingface.co/timm/{parts[0].name}"):
        model.build(3)
    (tmp_path / "pretrained").mkdir()
    found = {}
    for i, part in enumerate(parts):
        theirs = timm.create_model(part.name).state_dict()
        found[part.name] = {
            k: torch.full_like(v, 0.01 * (i + 1)) if v.is_floating_point() else v for k, v in theirs.items()
        }
        save_file(found[part.name], part.pretrained)
    net = model.build(3)
    bodies = [net.mel, net.raw] if len(parts) > 1 else [net.body]
    for i, (part, body) in enumerate(zip(parts, bodies)):
        first = f"{timm.get_pretrained_cfg(part.name).first_conv}.weight"
        own = {k.removeprefix("1."): v for k, v in body.state_dict().items() if v.is_floating_point()}
        assert set(own) <= set(found[part.name]) and len(own) > 0.9 * sum(
            v.is_floating_point() for v in found[part.name].values()
        )
        assert all((v == 0.01 * (i + 1)).all() for k, v in own.items() if k != first)
        # the sum over the channels of the picture stays what it was
        assert torch.allclose(own[first].sum(1), torch.tensor(0.03 * (i + 1)), atol=1e-6)
    assert {"rainforest2021", "birdclef2024", "birdclef2024_hybrid"} <= set(FROM_WEIGHTS)


def test_system_4_starts_from_nothing():
    assert not any(has_pretrained(r.model) for r in (universal2020(), *universal2020_ladder()))


def test_a_recipe_can_name_every_augmentation():
    "In a fresh process that has only loaded the settings of recipes."
    code = "import sys, audiotag.train.settings as s; print(*[m for m in sys.modules if m.startswith('audiotag.augment.')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    there = {f"audiotag.augment.{p.stem}" for p in Path(wave.__file__).parent.glob("[a-z]*.py")}
    assert there == set(loaded), there - set(loaded)
