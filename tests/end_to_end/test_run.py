"From recordings to a submission: the commands, a kill at any moment, leaks, and bad input."

import json
import os
import shutil
import signal
import subprocess
import time

import pandas as pd
import pytest

from tests.tiny import AUDIOTAG, SETS, audiotag, called, train_words

from audiotag.infer.bundle import _compute_seal, open_bundle
from audiotag.data.competitions import load_competition
from audiotag.core.errors import AudiotagError
from audiotag.core.files import read_json, write_json
from audiotag.infer.predict import infer
from audiotag.kaggle.pack import pack_weights
from audiotag.train.recipes import get_recipe
from audiotag.train.out_of_fold import ancestry, check_out_of_fold
from audiotag.train.run_folder import Run, open_run, run_stages, score_fold


@pytest.fixture(scope="module")
def data(tiny_data):
    return tiny_data


@pytest.fixture(scope="module")
def whole(tiny_run):
    "The folder with a run that nobody interrupted and its bundle, and what the training printed."
    return tiny_run, (tiny_run / "stdout").read_text()


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def copy_of(whole, tmp_path):
    shutil.copytree(whole[0] / "run", tmp_path / "run")
    return tmp_path / "run"


def test_the_stage_table_is_printed(whole):
    for word in ("noisy", "curated", "agreed", "certain", "mean of", "lwlrap curated", "pack weights"):
        assert word in whole[1]


def said_of(stdout):
    "What a training printed, up to the time that it took and the names of its folders."
    return stdout.split("run folder")[0].split("minutes")[0]


def test_finished_and_called_again_it_says_so(data, whole, tmp_path):
    run = copy_of(whole, tmp_path)
    again = called(*train_words(data, run))
    assert again.returncode == 0
    assert "nothing is left to train" in again.stderr and "epoch" not in again.stderr
    assert again.stdout.replace(str(tmp_path), "HERE") == whole[1]


def test_submission(data, whole, tmp_path):
    done = called("infer", "--bundle", whole[0] / "tiny-weights", "--data", data, "--out", tmp_path / "submission.csv")
    assert done.returncode == 0, done.stderr
    table, template = (
        pd.read_csv(p, index_col=0) for p in (tmp_path / "submission.csv", data / "sample_submission.csv")
    )
    assert list(table.columns) == list(template.columns) and list(table.index) == list(template.index)
    assert table.to_numpy().std() > 0 and ((table > 0) & (table < 1)).all().all()


def kill_when(words, ready, tmp_path, deadline=120):
    "Start a command and `kill -9` it and its children once `ready()` is true; the exit code."
    with open(tmp_path / "killed.log", "w") as log:
        p = subprocess.Popen(
            [*AUDIOTAG, *words],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        end = time.monotonic() + deadline
        while p.poll() is None and not ready() and time.monotonic() < end:
            time.sleep(0.002)
        if p.poll() is None:
            os.killpg(p.pid, signal.SIGKILL)
        return p.wait()


MOMENTS = {
    "features are computed": lambda run: (run / "store").is_dir() and any((run / "store").rglob("*.npy*")),
    "in the second stage, between two epochs": lambda run: (
        run / "2-curated" / "fold-1" / "checkpoint.safetensors"
    ).exists(),
    "trained and not yet scored": lambda run: (run / "3-agreed" / "fold-0" / "weights.safetensors").exists(),
}


@pytest.mark.long
@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_restarted_it_ends_with_the_same_bytes(data, whole, tmp_path, moment):
    run, words = tmp_path / "run", train_words(data, tmp_path / "run")
    assert kill_when(words, lambda: MOMENTS[moment](run), tmp_path) == -signal.SIGKILL, (
        "it was finished before it could be killed"
    )
    assert MOMENTS[moment](run) and not (run / "4-certain" / "fold-1" / "oof.parquet").exists()
    again = audiotag(*words)
    assert again.returncode == 0, again.stderr
    assert called("pack", "weights", run, tmp_path / "tiny-weights").returncode == 0
    assert content(tmp_path / "tiny-weights") == content(whole[0] / "tiny-weights")
    assert said_of(again.stdout) == said_of(whole[1])


def test_what_is_finished_is_not_trained_again(data, whole, tmp_path):
    run = copy_of(whole, tmp_path)
    for gone in ("oof.parquet", "weights.safetensors"):
        (run / "4-certain" / "fold-1" / gone).unlink()
    again = called(*train_words(data, run))
    said = [line for line in again.stderr.splitlines() if "epoch" in line]
    assert said and all("certain, fold 1 (of 2)" in line for line in said), again.stderr


# --- out of fold ---------------------------------------------------------------------------------


def test_no_model_scores_what_it_was_trained_on(whole):
    run = Run(whole[0] / "run")
    group = run.clips.set_index("clip_id").group
    for stage in run.recipe.stages:
        line = [s.name for s in ancestry(run.recipe, stage.name)]
        for fold in range(run.recipe.n_folds):
            trained = {c for s in line for c in read_json(run.fold_path(s, fold) / "trained_on.json")}
            scored = set(pd.read_parquet(run.fold_path(stage.name, fold) / "oof.parquet").clip_id)
            assert scored and trained and not scored & trained
            assert not set(group[list(scored)]) & set(group[list(trained)])
            assert "noisy" in set(run.clips.source[run.clips.clip_id.isin(scored)])
    assert [s.name for s in ancestry(run.recipe, "certain")] == ["certain", "agreed", "curated", "noisy"]


def test_every_clip_is_scored_once_a_stage(whole):
    run = Run(whole[0] / "run")
    for stage in run.recipe.stages:
        tables = [pd.read_parquet(run.fold_path(stage.name, k) / "oof.parquet") for k in range(run.recipe.n_folds)]
        assert sorted(pd.concat(tables).clip_id) == sorted(run.clips.clip_id)


@pytest.mark.parametrize("stage", ["noisy", "certain"])
def test_a_fold_that_is_leaked_on_purpose_stops_the_run(data, whole, tmp_path, stage):
    "A noisy clip of fold 0 was in the first stage's training: stage 1 must not score it, nor must stage 4, which carries stage 1 in its weights."
    run = Run(copy_of(whole, tmp_path))
    leaked = run.clips.clip_id[(run.clips.fold == 0) & (run.clips.source == "noisy")].iloc[0]
    path = run.fold_path("noisy", 0) / "trained_on.json"
    write_json(path, read_json(path) + [leaked])
    with pytest.raises(AudiotagError, match=leaked):
        score_fold(run, stage, 0)


def test_weights_of_another_fold_are_noticed_and_trained_again(whole, tmp_path):
    "They are whole, and `trained_on.json` beside them looks innocent: only the mark inside of them tells."
    run = Run(copy_of(whole, tmp_path))
    mine, other = (run.fold_path("noisy", k) / "weights.safetensors" for k in (0, 1))
    good = mine.read_bytes()
    shutil.copy(other, mine)
    with pytest.raises(AudiotagError, match="another fold"):
        score_fold(run, "noisy", 0)
    run_stages(run, until="noisy")
    assert mine.read_bytes() == good


def test_scores_of_a_finished_run_are_refused_once_its_files_were_changed(whole, tmp_path):
    run = Run(copy_of(whole, tmp_path))
    ids = list(run.clips.clip_id[run.clips.fold == 0])
    path = run.fold_path("noisy", 0) / "trained_on.json"
    honest = read_json(path)
    for said, words in ((honest + ids[:1], "trained on it"), (honest[1:], "other clips than trained_on.json names")):
        write_json(path, said)
        for stage in ("noisy", "certain"):
            with pytest.raises(AudiotagError, match=words):
                Run(run.folder).scores(stage)
    write_json(path, honest)
    assert Run(run.folder).scores("certain")
    shutil.rmtree(path.parent)
    shutil.copytree(run.fold_path("noisy", 1), path.parent)
    assert_one_sentence(called("report", run.folder), "fold 0")


def test_training_without_the_fold_itself_is_what_keeps_the_promise(whole, monkeypatch, tmp_path):
    "If the engine forgot to leave the fold out, the guard would stop it before anything is scored."
    run = Run(copy_of(whole, tmp_path))
    honest = Run.training_clips

    def careless(self, stage, fold):
        kept = honest(self, stage, fold)
        mine = self.clips[(self.clips.fold == fold) & (self.clips.source == "noisy")]
        return pd.concat([kept, mine.head(1)])

    monkeypatch.setattr(Run, "training_clips", careless)
    shutil.rmtree(run.stage_path("curated") / "fold-0")
    with pytest.raises(AudiotagError, match="trained on"):
        run_stages(run)


def test_a_twin_in_another_fold_counts_as_a_leak():
    clips = pd.DataFrame(dict(clip_id=["a", "b"], group=["same", "same"]))
    with pytest.raises(AudiotagError, match="'b'"):
        check_out_of_fold(["b"], ["a"], clips)


# --- bad input: one sentence, exit code 2, nothing lost -------------------------------------------


def spoil(data, tmp_path, change):
    shutil.copytree(data, tmp_path / "data")
    change(tmp_path / "data")
    return tmp_path / "data"


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def first_label(path, label):
    head, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([head, first.split(",")[0] + "," + label, *rest]) + "\n")


BAD = {
    "a csv without its column": (
        lambda d: edit(d / "train_curated.csv", "fname,labels", "fname,tags"),
        ["train_curated.csv", "labels"],
    ),
    "an unknown label": (lambda d: first_label(d / "train_noisy.csv", "Barkk"), ["train_noisy.csv", "row 1", "Barkk"]),
    "a listed file that is missing": (
        lambda d: next((d / "train_curated").glob("*.wav")).unlink(),
        ["not in the folder"],
    ),
    "a template that is missing": (
        lambda d: (d / "sample_submission.csv").unlink(),
        ["sample_submission.csv", "not found"],
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_bad_data_is_one_sentence(data, tmp_path, fault):
    change, words = BAD[fault]
    done = called(*train_words(spoil(data, tmp_path, change), tmp_path / "run"))
    assert_one_sentence(done, *words)


def assert_one_sentence(done, *words):
    assert done.returncode == 2, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("audiotag: ")]
    assert len(said) == 1 and "Traceback" not in done.stderr
    for word in words:
        assert word in said[0], said[0]


def test_unknown_names_are_one_sentence(data, tmp_path):
    train = ["train", "--data", data, "--run", tmp_path / "run"]
    assert_one_sentence(called(*train, "--recipe", "freesound2918"), "did you mean 'freesound2019'")
    assert_one_sentence(called(*train, "--recipe", "freesound2019", "--set", "model.widht=3"), "did you mean 'width'")
    assert_one_sentence(called(*train, "--recipe", "freesound2019", "--set", "model.width=many"), "width")
    assert_one_sentence(called(*train, "--recipe", "freesound2019", "--set", "stages.noisy.epochs=0"), "epochs")
    assert_one_sentence(audiotag(*train, "--recipe", "freesound2019", "--scale", "tiny"), "small")
    assert not (tmp_path / "run").exists()


def test_somebody_elses_folder_is_left_alone(data, whole, tmp_path):
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.tex").write_text("words")
    assert_one_sentence(called(*train_words(data, thesis)), "thesis", "holds files")
    assert_one_sentence(called("pack", "weights", whole[0] / "run", thesis), "chapter1.tex")
    out = tmp_path / "notes.csv"
    out.write_text("mine\n")
    assert_one_sentence(
        called("infer", "--bundle", whole[0] / "tiny-weights", "--data", data, "--out", out), "notes.csv"
    )
    assert out.read_text() == "mine\n" and [p.name for p in thesis.iterdir()] == ["chapter1.tex"]


def test_other_settings_and_other_data_are_refused(data, whole, tmp_path):
    run = copy_of(whole, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}
    assert_one_sentence(called(*train_words(data, run, [*SETS, "seed=9"])), "seed is 0 there and 9 here")
    other = spoil(data, tmp_path, lambda d: edit(d / "train_curated.csv", *[f",{c}\n" for c in two_labels(d)]))
    assert_one_sentence(called(*train_words(other, run)), "have changed")
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}


def two_labels(data):
    "A label that stands alone in train_curated.csv, and another class."
    alone = [
        line.split(",")[1] for line in (data / "train_curated.csv").read_text().splitlines()[1:] if line.count(",") == 1
    ]
    return alone[0], next(c for c in alone if c != alone[0])


def test_an_unreadable_file_is_left_out_of_training_and_gets_the_prior_in_the_test(data, whole, tmp_path):
    def change(d):
        sorted((d / "train_noisy").glob("*.wav"))[0].write_bytes(b"RIFF")
        sorted((d / "test").glob("*.wav"))[2].write_bytes(b"")

    spoilt = spoil(data, tmp_path, change)
    lost = sorted((spoilt / "train_noisy").glob("*.wav"))[0].name
    run = open_run(tmp_path / "run", get_recipe("freesound2019", scale="small", changes=SETS), load_competition(spoilt))
    assert list(run.store.quarantine.clip_id) == [lost] and lost not in set(run.clips.clip_id) and len(run.clips) == 79
    report = infer(whole[0] / "tiny-weights", spoilt, tmp_path / "submission.csv")
    name = sorted((spoilt / "test").glob("*.wav"))[2].name
    bundle = json.loads((whole[0] / "tiny-weights" / "bundle.json").read_text())
    row = pd.read_csv(tmp_path / "submission.csv", index_col=0).loc[name]
    assert list(report.prior) == [name] and report.scored == 29
    assert row.to_numpy() == pytest.approx(
        [dict(zip(bundle["classes"], bundle["prior"]))[c] for c in row.index], abs=1e-6
    )


@pytest.mark.parametrize("victim", ["curated.safetensors", "golden.safetensors", "bundle.json"])
def test_a_changed_bundle_is_refused(whole, tmp_path, victim):
    "One bit anywhere: in the weights, in the golden example, in the JSON."
    shutil.copytree(whole[0] / "tiny-weights", tmp_path / "b")
    path = tmp_path / "b" / victim
    raw = path.read_bytes()
    for at in range(0, len(raw), max(1, len(raw) // (400 if victim == "bundle.json" else 8))):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        if victim == "bundle.json" and same_json(raw, path.read_bytes()):
            continue  # white space, or a digit that no float64 sees
        with pytest.raises(AudiotagError):
            open_bundle(tmp_path / "b")


def same_json(a, b):
    try:
        return json.loads(a) == json.loads(b)
    except ValueError:
        return False


HOSTILE = {
    "lists for names": dict(
        members=[{"model": ["main"], "file": {}, "stage": 1, "fold": [], "prefix": None, "oof": {}}]
    ),
    "a huge prior": dict(prior=[10**400] * 8),
    "a negative prior": dict(prior=[-5.0] * 8),
    "a wide network": dict(
        models={"main": {"kind": "CNNModel1", "width": 10**30, "head": "code", "in_channels": 1, "hidden": None}}
    ),
    "a long window": dict(windows={"kind": "Windows", "frames": 10**10, "hop": 1, "pooling": "mean"}),
    "deep lists": dict(
        windows={"kind": "Windows", "frames": json.loads("[" * 600 + "]" * 600), "hop": 1, "pooling": "mean"}
    ),
    "no members": dict(members=[]),
    "a path that climbs": dict(files={"../data/train_curated.csv": {"size": 1, "sha256": ""}}),
    "another schema": dict(schema=True),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_bundle_from_a_stranger_is_refused_with_a_sentence(whole, tmp_path, what):
    "The JSON is sealed again, as somebody with bad intentions would do."
    shutil.copytree(whole[0] / "tiny-weights", tmp_path / "b")
    about = {**read_json(tmp_path / "b" / "bundle.json"), **HOSTILE[what]}
    write_json(tmp_path / "b" / "bundle.json", {**about, "sha256": _compute_seal(about)})
    with pytest.raises(AudiotagError):
        open_bundle(tmp_path / "b")


def test_packing_again_keeps_what_the_user_wrote(whole, tmp_path):
    run, folder = Run(whole[0] / "run"), tmp_path / "tiny-weights"
    pack_weights(run, folder)
    (folder / "README.md").write_text("my own words\n")
    edit(folder / "dataset-metadata.json", "tiny weights", "Weights of mine")
    pack_weights(run, folder, owner="ann")
    meta = read_json(folder / "dataset-metadata.json")
    assert (
        (folder / "README.md").read_text() == "my own words\n"
        and meta["title"] == "Weights of mine"
        and meta["id"] == "ann/tiny-weights"
    )
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(AudiotagError, match="notes.txt"):
        pack_weights(run, folder)


def test_weights_that_were_damaged_are_trained_again(data, whole, tmp_path):
    run, words = copy_of(whole, tmp_path), train_words(data, tmp_path / "run")
    path = run / "4-certain" / "fold-1" / "weights.safetensors"
    good = path.read_bytes()
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[: len(good) // 2]):
        path.write_bytes(bad)
        assert_one_sentence(called("pack", "weights", run, tmp_path / "w"), "not finished")
        (run / "4-certain" / "fold-1" / "oof.parquet").unlink()
        if len(bad) == len(good):
            path.unlink()  # a flipped bit is still a readable file: only its owner can say that it is wrong
        assert called(*words).returncode == 0
        assert path.read_bytes() == good


def test_an_interrupt_inside_of_a_session_leaves_nothing_behind(data, whole, tmp_path):
    "Ctrl-C in the middle of a forward pass, and all cells run again in the same kernel: the same bytes."
    import torch
    from fastai.callback.core import Callback

    class Interrupt(Callback):
        order = 20

        def after_pred(self):
            if self.training and self.epoch == 1:
                raise KeyboardInterrupt

    recipe, competition = get_recipe("freesound2019", scale="small", changes=SETS), load_competition(data)
    with pytest.raises(KeyboardInterrupt):
        run_stages(open_run(tmp_path / "run", recipe, competition), cbs=[Interrupt()])
    assert not torch.is_autocast_enabled("cpu")
    pack_weights(run_stages(open_run(tmp_path / "run", recipe, competition)), tmp_path / "tiny-weights")
    assert content(tmp_path / "tiny-weights") == content(whole[0] / "tiny-weights")


@pytest.mark.parametrize(
    "name,text",
    [
        ("recipe.json", "{}"),
        ("recipe.json", "[]"),
        ("clips.parquet", "PAR1"),
        ("1-noisy/fold-0/oof.parquet", ""),
        ("1-noisy/fold-0/trained_on.json", '["nobody.wav"]'),
    ],
)
def test_a_damaged_run_is_one_sentence(whole, tmp_path, name, text):
    run = copy_of(whole, tmp_path)
    (run / name).write_text(text)
    with pytest.raises(AudiotagError):
        opened = Run(run)
        opened.oof("noisy")
        score_fold(opened, opened.recipe.stages[0].name, 0)
