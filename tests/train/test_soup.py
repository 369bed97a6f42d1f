"Soups: exact means, BatchNorm statistics, what may join, out of fold, and what is refused."

import pytest
import torch
from torch import nn

from audiotag.core.errors import AudiotagError
from audiotag.core.files import read_json
from audiotag.data.competitions import load_competition
from audiotag.kaggle.pack import pack_weights
from audiotag.infer.bundle import Bundle
from audiotag.models.soup import greedy_soup, mean_weights, recompute_norms
from audiotag.train.recipes import get_recipe
from audiotag.train.run_folder import Run, open_run, run_stages, soup_over_folds, stage_groups
from audiotag.train.settings import Stage, soup_of_seeds
from tests.tiny import SETS, SYSTEMS


def states(**values):
    return {name: {"w": torch.tensor([v]), "n": torch.tensor(7)} for name, v in values.items()}


def near(target):
    return lambda state: (-abs(state["w"].item() - target), state)


def test_a_mean_of_weights():
    s = states(a=1.0, b=2.0, c=6.0)
    before = {k: {n: t.clone() for n, t in v.items()} for k, v in s.items()}
    mean = mean_weights(list(s.values()))
    assert mean["w"].item() == 3.0 and mean["n"].item() == 7 and mean["w"].dtype == torch.float32
    assert all(torch.equal(t, before[k][n]) for k, v in s.items() for n, t in v.items())
    half = mean_weights([{"w": torch.tensor([1.0, 2.0]).half()}, {"w": torch.tensor([2.0, 4.0]).half()}])
    assert half["w"].tolist() == [1.5, 3.0] and half["w"].dtype == torch.float16
    for other in ({"w": torch.zeros(2), "n": torch.tensor(1)}, {"w": torch.zeros(1)}):
        with pytest.raises(AudiotagError, match="different networks"):
            mean_weights([s["a"], other])


def test_the_best_first_and_only_what_does_not_lower_the_score():
    s = states(a=0.0, b=3.0, c=9.0, d=1.5)
    singles = {k: near(1.5)(v)[0] for k, v in s.items()}  # d 0, a and b -1.5, c -7.5
    chosen, soup, best, tried = greedy_soup(s, near(1.5), singles)
    # d with a: .75, worse; d with b: 2.25, worse; d with c worse: the best training alone
    assert chosen == ["d"] and best == 0 and soup is s["d"] and list(tried) == ["a", "b", "c"]
    del s["d"]
    chosen, soup, best, tried = greedy_soup(s, near(1.5), singles)
    assert chosen == ["a", "b"] and soup["w"].item() == 1.5 and best == 0 and tried == {"b": 0.0, "c": -2.5}
    same = states(a=1.0, b=1.0)
    assert greedy_soup(same, near(0.0), {"a": -1.0, "b": -1.0})[0] == ["a", "b"]  # no worse is enough


def test_statistics_are_the_mean_of_the_batches_and_dropout_stays_off():
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(2, momentum=0.3))
    net.train()
    x = torch.arange(12.0).reshape(6, 2)
    out = recompute_norms(net, [(x[:3],), (x[3:],)])
    assert out is net and not any(m.training for m in net.modules()) and net[1].momentum == 0.3
    torch.testing.assert_close(net[1].running_mean, x.mean(0))
    torch.testing.assert_close(net[1].running_var, (x[:3].var(0) + x[3:].var(0)) / 2)
    assert net[1].num_batches_tracked.item() == 2
    frozen = nn.Linear(2, 2)
    recompute_norms(frozen, iter([("never read",)]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return SYSTEMS["freesound2019"][0](tmp_path_factory.mktemp("soup") / "data")


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    recipe = get_recipe("freesound2019", scale="small", changes=SETS)
    recipe = recipe.replace(stages=recipe.stages[:2], members=("curated",))  # noisy, and curated that starts from it
    recipe = soup_of_seeds(recipe, 3)
    return run_stages(
        open_run(tmp_path_factory.mktemp("soup") / "run", recipe, load_competition(data, "freesound2019"))
    )


def test_a_stage_averages_the_seeds_of_its_fold(run):
    assert run.recipe.members == ("curated_soup",) and [[s.name for s in g] for g in stage_groups(run.recipe)][-1] == [
        "curated_soup"
    ]
    for k in range(2):
        about = read_json(run.fold_path("curated_soup", k) / "soup.json")
        names = ["curated", "curated_seed2", "curated_seed3"]
        assert set(about["singles"]) == set(names) and about["chosen"][0] == max(names, key=about["singles"].get)
        for name in names:
            assert about["singles"][name] == pytest.approx(run.scores(name, fold=k)["lwlrap curated"], abs=1e-6)
        assert about["lwlrap"] == pytest.approx(run.scores("curated_soup", fold=k)["lwlrap curated"], abs=1e-6)
        assert about["lwlrap"] >= max(about["singles"].values())
        wanted = mean_weights([run.model(n, k).state_dict() for n in about["chosen"]])
        got = run.model("curated_soup", k).state_dict()
        same = [
            torch.equal(got[name], v)
            for name, v in wanted.items()
            if "running" not in name and "num_batches" not in name
        ]
        assert all(same)


def test_the_guard_knows_what_the_seeds_were_trained_on(run):
    held_out = set(run.clips.clip_id[run.clips.fold == 0])
    trained = run.trained_on("curated_soup", 0)
    assert trained >= run.trained_on("curated_seed3", 0) and not trained & held_out
    with pytest.raises(AudiotagError, match="trained on"):
        run.verify_out_of_fold("curated_soup", 0, [next(iter(run.trained_on("curated_seed2", 0)))])


def test_one_network_a_fold_is_packed_and_replays(run, tmp_path):
    bundle = Bundle(pack_weights(run, tmp_path / "weights", thresholds="none"))
    assert [(m["stage"], m["fold"]) for m in bundle.members] == [("curated_soup", 0), ("curated_soup", 1)]
    got, wanted = bundle.model(0).state_dict(), run.model("curated_soup", 0).state_dict()
    assert all(torch.equal(v, wanted[name]) for name, v in got.items())


def test_a_soup_that_is_made_again_is_the_same(run):
    path = run.fold_path("curated_soup", 1) / "weights.safetensors"
    before = path.read_bytes()
    path.unlink()
    run_stages(Run(run.folder))
    assert path.read_bytes() == before


def test_a_soup_over_folds_needs_clips_that_no_fold_has_seen(run):
    curated, noisy = (run.rows[run.rows.source == s] for s in ("curated", "noisy"))
    for clips in (curated, curated[curated.fold == 0], noisy[:3], curated[:0]):
        with pytest.raises(AudiotagError, match="can only be judged on clips that no fold has seen"):
            soup_over_folds(run, "curated", clips)  # it started from `noisy`, which has seen the noisy ones
    only = Run(run.folder)
    unseen = noisy[~noisy.group.isin(noisy.group[:4])]
    honest = only.trained_on
    only.trained_on = lambda stage, fold: honest(stage, fold) - set(unseen.clip_id)  # as if a source had been left out
    network, about = soup_over_folds(only, "curated", unseen)
    assert set(about["singles"]) == {"fold 0", "fold 1"} and not network.training


@pytest.mark.parametrize(
    "change",
    [
        dict(soup=("a",)),
        dict(soup=("a", "a")),
        dict(soup=("a", "b"), start_from="a"),
        dict(soup=("a", "b"), best_epoch=True),
    ],
)
def test_settings_that_make_no_sense(change):
    with pytest.raises(AudiotagError, match="soup"):
        Stage(name="soup", train_on=("curated",), **change)


def test_recipes_that_make_no_sense():
    recipe = get_recipe("freesound2019", scale="small")
    recipe = recipe.replace(stages=recipe.stages[:2], members=("curated",))
    unknown = Stage(name="mix", train_on=("curated",), soup=("curated", "other"))
    with pytest.raises(AudiotagError, match="other"):
        recipe.replace(stages=(*recipe.stages, unknown))
    with pytest.raises(AudiotagError, match="held-out"):
        soup_of_seeds(recipe, 2).replace(refit=True)
    with pytest.raises(AudiotagError, match="2 or more"):
        soup_of_seeds(recipe, 1)
    assert Stage(name="a", train_on=("curated",)).hash == Stage(name="a", train_on=("curated",), soup=()).hash
