"The noisy student as BirdCLEF's winners run it: windows added to every clip, united targets with caps, and a refit that all folds teach."

import json

import numpy as np
import pandas as pd
import pytest
import torch

from tests.tiny import SYSTEMS

from audiotag.core.errors import AudiotagError
from audiotag.core.targets import Targets
from audiotag.data.competitions import load_competition
from audiotag.data.sampling import MixPartners
from audiotag.infer.bundle import Bundle
from audiotag.kaggle.pack import pack_weights
from audiotag.train.stage_rules import PseudoLabelRule
from audiotag.train.recipes import get_recipe
from audiotag.train.run_folder import ALL_FOLDS, _fold_loaders, is_finished, open_run, run_stages
from audiotag.train.settings import Labels, several_seeds


def test_caps_by_hand():
    rule = PseudoLabelRule(teachers=("t",), power=2.0, max_label_sum=0.5)
    p = [[0.9, 0.5, 0.0], [0.5, 0.0, 0.1]]
    first = np.array([0.81, 0.25, 0.0]) * 0.5 / 1.06
    np.testing.assert_allclose(rule.targets(p), [first, [0.25, 0, 0.01]], atol=1e-6)
    np.testing.assert_allclose(
        Labels(max_label_sum=0.5).capped(np.array([[1.0, 1.0], [0.0, 0.2]])), [[0.25, 0.25], [0, 0.2]]
    )
    assert Labels().hash == Labels(max_label_sum=None).hash
    y = Targets(torch.tensor([[1.0, 0.8, 0.7]]), torch.tensor([[1.0, 1.0, 0.0]]), torch.ones(1, 3, 4))
    capped = y.capped(0.9)  # the third is unknown and does not count
    torch.testing.assert_close(capped.labels, torch.tensor([[0.5, 0.4, 0.35]]))
    torch.testing.assert_close(capped.frames, torch.full((1, 3, 4), 0.5))


def test_partners_may_be_united():
    own, partner = Targets(torch.tensor([1.0, 0.0])), Targets(torch.tensor([0.2, 0.6]))
    assert MixPartners(share=0.25).join(own, partner).labels.tolist() == pytest.approx([0.8, 0.15])
    united = MixPartners(share=0.25, target="union")
    assert united.join(own, partner).labels.tolist() == pytest.approx([1.0, 0.6])
    assert united.replace(max_label_sum=0.8).join(own, partner).labels.tolist() == pytest.approx([0.5, 0.3])
    with pytest.raises(AudiotagError, match="together with target='union'"):
        MixPartners(max_label_sum=1.0)
    assert MixPartners().hash == MixPartners(target="share").hash


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("noisy")
    make, changes, layout = SYSTEMS["birdclef2024"]
    make(tmp / "data")
    changes = [c.replace("model.width", "model.backbone.width").replace("=6", "=3") for c in changes]
    recipe = get_recipe("birdclef2025", scale="small", changes=[*changes, "cpus=1", "precision=fp32"])
    return run_stages(open_run(tmp / "run", recipe, load_competition(tmp / "data", layout)))


def test_all_folds_teach_the_refit(run):
    "Of a window that nobody was trained on; the rounds of the folds are taught by their own models, as their scores require."
    assert is_finished(run)
    stage = run.recipe.stage("round2")
    (rule,) = stage.rules
    windows = run.rows[run.rows.source == "unlabeled"]
    by_fold = {k: run.predict("round1", k, windows.clip_id).to_numpy() for k in range(2)}
    for k in range(2):
        np.testing.assert_allclose(rule.probabilities(run, stage.name, k), by_fold[k], atol=1e-6)
    told = rule.probabilities(run, stage.name, ALL_FOLDS)
    np.testing.assert_allclose(told, (by_fold[0] + by_fold[1]) / 2, atol=1e-6)
    assert np.abs(by_fold[0] - by_fold[1]).max() > 1e-4
    trained = json.loads((run.fold_path("round2", ALL_FOLDS) / "trained_on.json").read_text())
    assert set(run.rows.clip_id[run.rows.source == "curated"]) < set(trained)


def test_windows_are_added_to_every_clip(run):
    "The sound is the mean of both, and the target holds the labels of both."
    stage = run.recipe.stage("round1")
    train = run.training_clips(stage, 0)
    loader = _fold_loaders(run, stage, 0, train, seed=1).train
    assert (loader.rows[:, 1] >= 0).all() and (loader.share == 0.5).all()
    j = 3
    (x, y), (own_x, own), (with_x, partner) = loader.create_item(j), loader._crop(j, 0), loader._crop(j, 1)
    torch.testing.assert_close(x, 0.5 * own_x + 0.5 * with_x)
    torch.testing.assert_close(y.labels, torch.maximum(own.labels, partner.labels))
    assert y.labels.max() == 1 and 0 < partner.labels.max() < 1


def test_one_network_is_packed(run, tmp_path):
    bundle = Bundle(pack_weights(run, tmp_path / "bundle"))
    assert [m["stage"] for m in bundle.members] == ["round2"]
    weights = run.model("round2", ALL_FOLDS).state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in bundle.model(0).state_dict().items())
    assert "head.pool.p" in weights and pd.notna(run.scores("round2")["macro_auc curated"])


def test_several_seeds_are_several_members():
    recipe = get_recipe("freesound2019", scale="small")
    three = several_seeds(recipe, 3)
    assert len(three.members) == 3 * len(recipe.members) and several_seeds(recipe, 1).hash == recipe.hash
    again = three.stage(f"{recipe.members[0]}_seed3")
    assert again.replace(name=recipe.members[0]).hash == recipe.stage(recipe.members[0]).hash
    with pytest.raises(AudiotagError, match="members that are not rounds"):
        several_seeds(get_recipe("birdclef2025", scale="small"), 2)
