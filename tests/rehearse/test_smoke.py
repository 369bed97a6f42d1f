"`audiotag train --smoke`: the clips that it takes, the recipe that it shortens, and the whole way in every layout."

import numpy as np
import pandas as pd
import pytest

from audiotag.core.errors import AudiotagError
from audiotag.core.files import read_json
from audiotag.data.competitions import clip_table
from audiotag.data.folds import make_folds
from audiotag.infer.bundle import Bundle
from audiotag.rehearse.smoke import few_clips, short_recipe, smoke_folder, smoke_run
from audiotag.review.experiments import run_table
from audiotag.train.recipes import get_recipe, recipes
from audiotag.train.run_folder import Run
from audiotag.train.stage_rules import AgreementRule
from tests.data import public_layouts
from tests.tiny import SYSTEMS, called


def table(n, source, classes, *, groups=None):
    return clip_table(
        [f"{source}{i}" for i in range(n)],
        path=[f"{source}{i}.wav" for i in range(n)],
        labels=[(classes[i % len(classes)],) for i in range(n)],
        source=source,
        group=[f"{source}{i % (groups or n)}" for i in range(n)],
    )


@pytest.mark.parametrize("seed", range(5))
def test_both_folds_hold_the_classes_of_every_source(seed):
    classes = [f"c{i:03d}" for i in range(200)]
    rare = table(40, "curated", [f"rare{i}" for i in range(40)]).assign(
        clip_id=lambda t: "r" + t.clip_id, path=lambda t: "r" + t.path, group=lambda t: "r" + t.group
    )
    clips = pd.concat([rare, table(1200, "curated", classes), table(900, "noisy", classes)], ignore_index=True)
    few = few_clips(clips, get_recipe("freesound2019"), seed=seed)
    assert few.source.value_counts().to_dict() == {"curated": 16, "noisy": 16}
    assert not few.clip_id.duplicated().any() and few.group.nunique() == len(few)
    folded = make_folds(few, n_folds=2, seed=seed)
    counts = folded.explode("labels").groupby(["source", "labels", "fold"]).size().unstack(fill_value=0)
    assert len(counts) == 8 and counts.to_numpy().min() >= 1
    again = few_clips(clips, get_recipe("freesound2019"), seed=seed)
    assert list(again.clip_id) == list(few.clip_id)


def test_a_class_of_one_group_comes_last_and_folds_that_are_given_are_looked_at():
    clips = pd.concat(
        [
            table(40, "curated", ["alone"], groups=1),
            table(40, "curated", list("abcd")).assign(
                clip_id=lambda t: "x" + t.clip_id, path=lambda t: "x" + t.path, group=lambda t: "x" + t.group
            ),
        ],
        ignore_index=True,
    )
    few = few_clips(clips, get_recipe("universal2020"))
    assert {label for labels in few.labels for label in labels} == set("abcd")
    given = clips.assign(fold=np.arange(80) % 5)
    assert (few_clips(given, get_recipe("universal2020")).fold == -1).all()


@pytest.mark.parametrize("scale", ["small", "full"])
@pytest.mark.parametrize("name", recipes)
def test_every_recipe_can_be_shortened(name, scale):
    recipe = get_recipe(name, scale=scale)
    short = short_recipe(recipe)
    assert [s.name for s in short.stages] == [s.name for s in recipe.stages]
    assert (short.model, short.front_end, short.after) == (recipe.model, recipe.front_end, recipe.after)
    assert all(s.epochs == 1 and s.steps is None and s.batch_size <= 4 for s in short.stages)
    assert short.n_folds == 2 and not short.rounds and set(short.members) <= {s.name for s in short.stages}
    if recipe.rounds:
        assert short.members == recipe.rounds[-1:]
    assert all(r.at_least == 0 for s in short.stages for r in s.rules if isinstance(r, AgreementRule))


def smoke(name, data, run):
    _, sets, _ = SYSTEMS[name]
    kept = [s for s in sets if s.split("=")[0] not in ("rounds", "members", "n_folds") and "stages" not in s]
    changes = [w for s in kept for w in ("--set", s)]
    words = ["--recipe", name, "--scale", "small", "--data", data, "--run", run, *changes]
    return called("train", *words, "--smoke")


@pytest.mark.parametrize(
    "name", ["birdclef2024", *(pytest.param(n, marks=pytest.mark.long) for n in SYSTEMS if n != "birdclef2024")]
)
def test_the_whole_way_in_every_system(name, tmp_path):
    make, _, _ = SYSTEMS[name]
    data = make(tmp_path / "data")
    done = smoke(name, data, tmp_path / "runs/first")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs/first-smoke"
    run = Run(folder / "run")
    for part in ["features and folds", *(s.name for s in run.recipe.stages), "pack", "OpenVINO", "submission"]:
        assert f"smoke test: {part}" in done.stderr and f"{part} " in done.stdout.splitlines()[0]
    assert "scores mean nothing" in done.stdout and "next: the same command without --smoke" in done.stdout
    assert not (tmp_path / "runs/first").exists()
    with pytest.raises(AudiotagError, match="holds no runs"):  # `audiotag runs` lists no smoke test
        run_table(tmp_path / "runs")
    assert all(
        len(read_json(run.fold_path(s.name, k) / "history.json")) == 1 for s in run.recipe.stages for k in (0, 1)
    )
    assert any(g["kept"] for g in Bundle(folder / "weights").graphs)
    assert (folder / "submission.csv").exists()


def test_a_competition_of_ones_own_without_test_clips(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    m = public_layouts.Maker(tmp_path / "mine")
    make = m.audio
    m.audio = lambda *paths, **_: make(*paths, seconds=0.3, rate=16000)
    public_layouts.esc50(m)
    assert called("new", "mine").returncode == 0
    words = ["--recipe", "recipe.yaml", "--data", "mine", "--layout", "layout.json", "--run", "run"]
    words += ["--set", "model.width=4", "--smoke"]
    for _ in range(2):  # the second one replaces the first
        done = called("train", *words)
        assert done.returncode == 0, done.stderr
        assert "no test clips: labeled ones were scored in their place" in done.stdout
        assert len(pd.read_csv("run-smoke/submission.csv")) == 4
    (tmp_path / "other-smoke").mkdir()
    (tmp_path / "other-smoke/notes.txt").write_text("mine")
    refused = called("train", *[{"run": "other"}.get(w, w) for w in words])
    assert refused.returncode == 2 and "holds files that are not an audiotag smoke's" in refused.stderr
    assert (tmp_path / "other-smoke/notes.txt").read_text() == "mine"


def test_where_it_lies():
    assert str(smoke_folder("runs/first/")) == "runs/first-smoke"
    assert str(smoke_folder("s3://bucket/runs/first")) == "runs/first-smoke"


def test_a_failure_is_that_of_the_run(tiny_data, tmp_path):
    from audiotag.data.competitions import load_competition

    recipe = get_recipe("freesound2019", scale="small", changes=["model.width=4", 'stages.agreed.train_on=["silver"]'])
    with pytest.raises(AudiotagError, match="there are no 'silver' clips"):
        smoke_run(recipe, load_competition(tiny_data), tmp_path / "smoke")
