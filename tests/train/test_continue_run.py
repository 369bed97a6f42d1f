"`audiotag train --corrections` goes on from the run that it corrects: what is kept is what training anew would give."

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from audiotag.audio.features import FrontEnd
from audiotag.core.errors import AudiotagError
from audiotag.core.files import file_sha256, read_json
from audiotag.data.competitions import load_competition
from audiotag.review.cv_check import compare_runs
from audiotag.review.experiments import compare_pair, describe_pair
from audiotag.review.label_review import correct_labels
from audiotag.train.continue_run import KeptTrainings, link_store
from audiotag.train.plan import measure_pace, plan_run
from audiotag.train.run_folder import Run, open_run, run_stages
from tests.tiny import called, train_words


def all_bytes(folder):
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file() and p.name != ".lock"}


def weights(run):
    return {
        (s.name, k): file_sha256(run.fold_path(s.name, k) / "weights.safetensors")
        for s in run.recipe.stages
        for k in range(run.recipe.n_folds)
    }


def decisions(path, rows):
    rows = [dict(who="", when=f"2026-01-01T00:00:0{i}+00:00", why="", **row) for i, row in enumerate(rows)]
    pd.DataFrame(rows)[["clip_id", "action", "labels", "who", "when", "why"]].to_csv(path, index=False)


@pytest.fixture(scope="module")
def corrected(tiny_run, tiny_data):
    "A run with one curated clip relabeled and another of the same fold dropped, on the command line."
    before = Run(tiny_run / "run")
    curated = before.clips[(before.clips.source == "curated") & (before.clips.fold == 0)]
    changed, dropped = curated.iloc[0], curated.iloc[1]
    other = next(c for c in before.classes if c not in changed.labels)
    file = before.folder / "corrections.csv"
    decisions(
        file,
        [
            dict(clip_id=changed.clip_id, action="relabel", labels=other),
            dict(clip_id=dropped.clip_id, action="drop", labels=""),
        ],
    )
    begun_with = all_bytes(before.folder)

    def refuse(*args, **kwargs):
        raise AssertionError("features are computed again")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrontEnd, "read_features", refuse)
        done = called(*train_words(tiny_data, tiny_run / "again"), "--corrections", file)
    assert done.returncode == 0, done.stderr
    return before, Run(tiny_run / "again"), done, begun_with, file, dropped.clip_id


def test_only_what_the_corrections_change_is_trained(corrected):
    before, run, done, begun_with, _, dropped = corrected
    assert all_bytes(before.folder) == begun_with
    kept = read_json(run.folder / "continues.json")
    assert kept["run"] == str(before.folder.absolute()) and kept["kept"]["noisy"] == [0, 1]
    assert kept["kept"]["curated"] == [0]  # this fold's network has not seen the clips
    assert "continues from" in done.stderr and "kept: the features, noisy (2 of 2 folds)" in done.stderr
    trained = [line for line in done.stderr.splitlines() if "epoch 1/" in line]
    plan = [line.strip() for line in done.stderr.splitlines() if line.startswith("  ")]
    assert "noisy: kept" in plan and [line for line in plan if re.match(r"curated: .* \(1 fold × .*; 1 kept\)$", line)]
    assert read_json(run.folder / "plan.json")["kept"] == dict(noisy=[0, 1], curated=[0], agreed=[], certain=[])
    assert not [line for line in trained if " noisy," in line or "curated, fold 0" in line]
    assert [line for line in trained if "curated, fold 1" in line]
    assert list(run.clips.set_index("clip_id").fold) == list(before.clips.set_index("clip_id").fold.drop(dropped))
    assert dropped not in run.oof("noisy").index and len(run.oof("certain")) == len(before.clips) - 1


def test_a_plan_of_corrections_counts_only_what_is_trained(corrected, tiny_data, tiny_run):
    """As many folds of each stage as the run then trained, no features, and nothing is written. The hours are those of
    these folds, so less than without corrections."""
    before, _, _, _, file, _ = corrected
    words, there = train_words(tiny_data, tiny_run / "never"), set(tiny_run.iterdir())
    plan = called(*words, "--plan", "--corrections", file)
    assert plan.returncode == 0 and set(tiny_run.iterdir()) == there, plan.stderr
    lines = [line.strip() for line in plan.stdout.splitlines()]
    assert "features: kept" in lines and "noisy: kept" in lines
    assert [line for line in lines if re.match(r"curated: .* \(1 fold × .*; 1 kept\)$", line)]
    assert [line for line in lines if re.match(r"agreed: .* \(2 folds × [^;]*\)$", line)]
    kept = KeptTrainings(before.folder)
    competition = correct_labels(load_competition(tiny_data), file)
    expected = kept.expected(kept.stand_in(before.planned, competition))
    assert expected == dict(noisy=[0, 1], curated=[0], agreed=[], certain=[])
    pace = measure_pace(before)
    whole, less = (plan_run(before, pace=pace, kept=k) for k in (None, expected))
    assert less.seconds == pytest.approx(
        whole.seconds - 2 * whole.stages["noisy"]["fold_s"] - whole.stages["curated"]["fold_s"]
    )


def test_a_comparison_names_the_labels(corrected):
    before, run, *_ = corrected
    found = compare_runs(run, [before], n=20).iloc[0]
    assert found["differs in"] == "labels of 1 clip, 1 clip is in one of them only" and not found.only_seed
    pair = describe_pair(compare_pair(before, run, n=20))
    assert "labels of 1 clip" in pair and "1 clips" not in pair and "their recipes are the same" in pair
    assert compare_runs(run, [run], n=20).iloc[0]["differs in"] == "nothing"


def test_it_is_what_training_anew_gives(corrected, tiny_data, tmp_path):
    before, run, _, _, file, _ = corrected
    competition = correct_labels(load_competition(tiny_data), file)
    anew = run_stages(open_run(tmp_path / "anew", before.planned, competition, folds_of=before))
    assert weights(anew) == weights(run) != weights(before)
    for stage in anew.recipe.stages:
        pd.testing.assert_frame_equal(anew.oof(stage.name), run.oof(stage.name))


@pytest.mark.long
def test_the_same_command_goes_on(corrected, tiny_data, tmp_path):
    before, run, _, _, file, _ = corrected
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    shutil.rmtree(copy / "3-agreed")
    shutil.rmtree(copy / "1-noisy" / "fold-1")
    done = called(*train_words(tiny_data, copy), "--corrections", file)
    assert done.returncode == 0, done.stderr
    assert weights(Run(copy)) == weights(run)


def test_another_recipe_keeps_nothing(corrected, tiny_data, tmp_path):
    before, _, _, _, file, _ = corrected
    words = [*train_words(tiny_data, tmp_path / "other"), "--set", "seed=5", "--corrections", file]
    refused = called(*words, "--continue-from", before.folder)
    assert refused.returncode == 2 and "seed is 0 there and 5 here" in refused.stderr
    groups = tmp_path / "groups.csv"
    groups.write_text(f"clip_id,group\n{before.clips.clip_id[0]},a\n")
    words = [*train_words(tiny_data, tmp_path / "other"), "--groups", groups, "--continue-from", before.folder]
    assert "leave --groups or --continue-from out" in called(*words).stderr
    assert not (tmp_path / "other").exists()
    by_itself = shutil.copytree(before.folder, tmp_path / "by-itself")
    assert not KeptTrainings(before.folder).begin(by_itself) and not (by_itself / "continues.json").exists()
    competition = load_competition(tiny_data)
    with pytest.raises(AudiotagError, match="other settings"):
        KeptTrainings(before.folder).check(before.planned.replace(seed=5), competition)
    with pytest.raises(AudiotagError, match="leave --store out"):
        KeptTrainings(before.folder).check(before.planned, competition, before.store.folder)
    with pytest.raises(AudiotagError, match="not a run folder"):
        KeptTrainings(tmp_path)


def test_clips_that_the_earlier_run_does_not_have_are_refused(corrected, tiny_data, tmp_path):
    before = corrected[0]
    part = Run(shutil.copytree(before.folder, tmp_path / "part"))
    table = pd.read_parquet(part.folder / "clips.parquet").iloc[1:]
    table.to_parquet(part.folder / "clips.parquet")
    with pytest.raises(AudiotagError, match="1 clip is not in that run"):
        open_run(tmp_path / "new", before.planned, load_competition(tiny_data), folds_of=Run(part.folder))


def test_shards_are_links_and_the_old_store_stays(tiny_run, tmp_path):
    store = Run(tiny_run / "run").store.folder
    before = all_bytes(store)
    link_store(store, tmp_path / "store")
    shards = list((tmp_path / "store").rglob("*.npy"))
    assert shards and all(p.stat().st_ino == (store / p.relative_to(tmp_path / "store")).stat().st_ino for p in shards)
    (tmp_path / "store" / ".seen").write_text("")
    assert all_bytes(store) == before
