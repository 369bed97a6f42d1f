"A rule that is defined here, and nowhere else, is trained, resumed, planned, tried and reported like those of the package."

import json
from dataclasses import dataclass

import numpy as np
import pytest

from tests.tiny import SETS

from audiotag.audio.synth import make_competition
from audiotag.core.config import config_from_dict
from audiotag.data.competitions import load_competition
from audiotag.rehearse.smoke import short_recipe
from audiotag.review.report import ledger_counts, pseudo_label_counts, report_html
from audiotag.train.out_of_fold import ancestry
from audiotag.train.own_recipe import drop_empty_stages
from audiotag.train.plan import plan_run
from audiotag.train.recipes import get_recipe
from audiotag.train.run_folder import Run, open_run, round_table, run_stages, stage_groups
from audiotag.train.stage_rules import ClipRule


@dataclass(frozen=True, kw_only=True)
class EveryNth(ClipRule):
    "Every nth noisy clip, with half of its target."

    source: str = "noisy"
    n: int = 2

    def ledger(self, run, stage, fold):
        assert fold is None and stage == "thinned"
        clips = run.clips[run.clips.source == self.source]
        picked = np.arange(len(clips)) % self.n == 0
        return clips[["clip_id", "labels"]].assign(score=1.0, picked=picked, reason=np.where(picked, "picked", "out"))

    def new_targets(self, run, stage, fold, clips, y):
        return y / 2

    def expected_clips(self, n_clips, n_classes, n_folds):
        return n_clips // self.n

    def relaxed(self):
        return self.replace(n=1)


@dataclass(frozen=True, kw_only=True)
class LikeliestByFold(ClipRule):
    "The noisy clips that the fold's own model is surest of, with its predictions as targets."

    source: str = "noisy"
    teacher: str
    take: int = 5

    waits_for_all_folds = False

    @property
    def needed_stages(self):
        return (self.teacher,)

    teaching_stages = labeling_stages = needed_stages

    def predictions(self, run, stage, fold):
        return run.source_predictions(stage, fold, self.source, self.needed_stages)

    def ledger(self, run, stage, fold):
        p = self.predictions(run, stage, fold).max(axis=1)
        picked = p.rank(ascending=False, method="first").to_numpy() <= self.take
        labels = run.rows.set_index("clip_id").labels.loc[p.index]
        ledger = labels.reset_index().assign(score=p.to_numpy(), picked=picked)
        return ledger.assign(reason=np.where(picked, "picked", "less sure"))

    def new_targets(self, run, stage, fold, clips, y):
        return self.predictions(run, stage, fold).loc[clips.clip_id].to_numpy()

    def shown(self):
        return {"take": self.take}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    where = tmp_path_factory.mktemp("rules")
    base = get_recipe("freesound2019", scale="small", changes=[*SETS, "precision=fp32"])
    first = base.stages[0].replace(name="noisy")
    thinned = first.replace(name="thinned", train_on=("curated", EveryNth()))
    sure = first.replace(name="sure", train_on=("curated", LikeliestByFold(teacher="thinned")))
    recipe = base.replace(stages=(first, thinned, sure), members=("thinned", "sure"))
    data = load_competition(make_competition(where / "data", seed=3, n_curated=16, n_noisy=24, n_test=2))
    return run_stages(open_run(where / "run", recipe, data))


def test_they_are_trained(run):
    assert [[s.name for s in group] for group in stage_groups(run.planned)] == [["noisy"], ["thinned", "sure"]]
    noisy = run.rows.clip_id[run.rows.source == "noisy"]
    thinned, sure = run.planned.stages[1:]
    for k in range(2):
        train = run.training_clips(thinned, k)
        assert set(train.clip_id[train.source == "noisy"]) < set(noisy.iloc[::2])
        y = run.training_targets(thinned, train, k).labels
        assert (y[(train.source == "noisy").to_numpy()].max(1) == 0.5).all()
        assert (y[(train.source == "curated").to_numpy()].max(1) == 1).all()
        train = run.training_clips(sure, k)
        own = run.predict("thinned", k, noisy)
        taken = train.clip_id[train.source == "noisy"]
        assert 0 < len(taken) <= 5 and set(taken) <= set(own.max(axis=1).nlargest(5).index)
        y = run.training_targets(sure, train, k).labels[(train.source == "noisy").to_numpy()]
        assert np.allclose(y, own.loc[taken], atol=1e-6)


def test_the_proof_and_the_ledger_know_them(run):
    assert [s.name for s in ancestry(run.planned, "sure")] == ["sure", "thinned"]
    again = Run(run.folder)
    assert again.planned == run.planned
    assert again.ledger("thinned").picked.sum() == 12
    assert again.ledger("sure").groupby("fold").picked.sum().tolist() == [5, 5]
    assert ledger_counts(again)["thinned"].sum() > 0 and pseudo_label_counts(again)["sure"].sum() > 0
    rounds = round_table(again)
    assert rounds.loc["sure", ["take", "taken"]].tolist() == [5, 5] and list(rounds.index) == ["sure"]


def test_it_is_read_from_json(run):
    stored = json.loads((run.folder / "recipe.json").read_text())["recipe"]
    assert stored["stages"][1]["train_on"][1] == {"kind": "EveryNth", "source": "noisy", "n": 2}
    assert config_from_dict(stored) == run.planned


def test_they_are_planned(run):
    plan = plan_run(run)
    n_noisy = ((run.rows.source == "noisy") & (run.rows.fold != 0)).sum()
    n_curated = ((run.rows.source == "curated") & (run.rows.fold != 0)).sum()
    assert plan.stages["thinned"]["clips"] == n_curated + n_noisy // 2
    assert plan.stages["sure"]["clips"] == n_curated + n_noisy
    assert "thinned" in str(plan)


def test_a_smoke_test_and_other_recipes_take_them(run):
    short = short_recipe(run.planned)
    assert short.stages[1].train_on[1].n == 1 and short.stages[2].train_on == run.planned.stages[2].train_on
    left = drop_empty_stages(run.planned, {"curated"})
    assert [s.train_on for s in left.stages] == [("curated",)]


def test_the_report_shows_them(run):
    text = report_html(run)
    assert "thinned" in text and "EveryNth" in text and "LikeliestByFold" in text
