"A folder nobody described: `audiotag new`, a trained run, a bundle that carries the layout, and a submission."

import json
import shutil

import pandas as pd
import pytest

from audiotag.audio.synth import make_rainforest, make_soundscapes, make_universal
from audiotag.data.competitions import load_competition
from audiotag.infer.predict import bundle_layout, template_name
from audiotag.kaggle.paths import find_input
from audiotag.train.recipes import freesound2019, get_recipe, recipes
from audiotag.train.run_folder import Run
from tests.data import public_layouts
from tests.tiny import called


def test_from_a_folder_to_a_submission(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    m = public_layouts.Maker(tmp_path / "mine")
    make = m.audio
    m.audio = lambda *paths, **_: make(*paths, seconds=0.3, rate=16000)
    public_layouts.own_competition(m)
    (m.root / "sample_submission.csv").rename(m.root / "SampleSubmission.csv")
    found = called("new", "mine")
    assert found.returncode == 0, found.stderr
    assert "without the stages noisy, agreed, certain, because" in found.stderr
    assert "what" in found.stdout and "person" not in found.stderr and "next: audiotag baseline" in found.stdout
    recipe = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text("# my first\n" + recipe.replace("epochs: 60", "epochs: 1  # a look"))
    tiny = ["--set", "n_folds=2", "--set", "model.width=4"]
    words = ["--recipe", "recipe.yaml", "--data", "mine", "--layout", "layout.json", "--run", "run", "--no-baseline"]
    trained = called("train", *words, *tiny)
    assert trained.returncode == 0, trained.stderr
    run = Run("run")
    assert [s.name for s in run.recipe.stages] == ["curated"] and run.recipe.metric == "accuracy"
    assert run.recipe.stages[0].epochs == 1
    assert run.clips.groupby("group").fold.nunique().max() == 1 and run.clips.group.nunique() == 4
    assert called("pack", "weights", "run", "weights").returncode == 0

    # elsewhere, with the bundle alone: the inference notebook's lines
    there = shutil.copytree(m.root, tmp_path / "there")
    shutil.rmtree(there / "sounds")
    (there / "labels.csv").unlink()
    (there / "hidden/9.flac").write_bytes((there / "hidden/000.flac").read_bytes())
    data = find_input(there, sentinel=template_name("weights"))
    competition = load_competition(data, bundle_layout("weights"), train=False)
    assert list(competition.of("test").clip_id) == ["000.flac", "001.flac", "002.flac", "003.flac", "9.flac"]
    scored = called("infer", "--bundle", "weights", "--data", there, "--out", "submission.csv")
    assert scored.returncode == 0, scored.stderr
    table = pd.read_csv("submission.csv")
    assert list(table.columns) == ["file", *public_layouts.CLASSES] and len(table) == 5
    assert called("doctor", "submission.csv", "--data", there, "--layout", "layout.json").returncode == 0


def test_a_bundle_names_no_file_to_run(tmp_path):
    for layout in ("/x/evil.py", "layout.json", {"kind": "PythonLayout", "path": "/x/evil.py", "test": None}):
        (tmp_path / "bundle.json").write_text(json.dumps({"layout": layout}))
        assert bundle_layout(tmp_path) == ""
    (tmp_path / "bundle.json").write_text(json.dumps({"layout": "universal2020"}))
    assert bundle_layout(tmp_path) == "universal2020"


def test_recipes_from_files(tmp_path):
    shown = called("recipe", "--recipe", "universal2020", "--scale", "small")
    (tmp_path / "mine.yaml").write_text("# faster\n" + shown.stdout)
    again = called("recipe", "--recipe", tmp_path / "mine.yaml", "--set", "n_folds=3")
    changed = json.loads(again.stdout)
    assert changed == {**json.loads(shown.stdout), "n_folds": 3}
    (tmp_path / "bad.yaml").write_text("kind: Recipe\nname: [\n")
    assert "bad.yaml, row" in called("recipe", "--recipe", tmp_path / "bad.yaml").stderr
    assert "there is no such file" in called("recipe", "--recipe", tmp_path / "none.yaml").stderr
    (tmp_path / "other.yaml").write_text("kind: MixUp\n")
    assert "not a recipe" in called("recipe", "--recipe", tmp_path / "other.yaml").stderr
    listed = [line.split() for line in called("recipes").stdout.splitlines() if line.startswith("  ")]
    assert sorted(words[0] for words in listed) == sorted(recipes) and listed[0][0] == "freesound2019"


@pytest.mark.parametrize("make, name", [(make_soundscapes, "birdclef2024"), (make_rainforest, "rainforest2021")])
def test_a_folder_that_a_built_in_layout_reads_gets_the_recipe_of_its_system(make, name, tmp_path, monkeypatch):
    make(tmp_path / "data", n_train=12, n_test=2)
    monkeypatch.chdir(tmp_path)
    done = called("new", "data", "--yes")
    assert done.returncode == 0 and "a built-in layout reads this folder" in done.stdout, done.stderr
    made, preset = get_recipe(str(tmp_path / "recipe.yaml")), get_recipe(name, scale="small")
    assert made.windows == preset.windows and made.crops == preset.crops
    assert [s.name for s in made.stages] == [s.name for s in preset.stages]


def test_a_folder_for_each_class_gets_a_network_for_its_files(tmp_path, monkeypatch):
    "The layout of system 4 reads any such folder, and its recipe is made for a second at 16 kHz."
    make_universal(tmp_path / "data", n_train=16, n_test=2)
    monkeypatch.chdir(tmp_path)
    done = called("new", "data", "--yes")
    assert done.returncode == 0 and "a built-in layout reads this folder" in done.stdout, done.stderr
    made = get_recipe(str(tmp_path / "recipe.yaml"))
    assert made.windows == freesound2019("small", plain=True).windows and made.metric == "accuracy"
