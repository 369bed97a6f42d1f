"The clips on the list are those whose labels are wrong, and corrections never overwrite the given labels."

import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tiny import SETS, called, train_words

from audiotag.cli import main
from audiotag.data.competitions import clip_table, load_competition
from audiotag.core.errors import AudiotagError
from audiotag.review.label_review import (
    LabelReview,
    apply_corrections,
    baseline_scores,
    correct_labels,
    read_corrections,
    find_suspects,
    write_corrections,
)
from audiotag.data.folds import assign_folds
from audiotag.train.run_folder import Run


@pytest.fixture(scope="module")
def data(tiny_data):
    return tiny_data


@pytest.fixture(scope="module")
def comp(data):
    return load_competition(data)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_planted_wrong_labels_are_on_the_list(sample_set, seed):
    "40 of the 260 curated labels of real recordings are made wrong; the first 20 curated clips of the list are mostly those."
    found = load_competition(sample_set("freesound"))
    curated, g = found.of("curated"), np.random.default_rng(seed)
    wrong = g.choice(len(curated), 40, replace=False)
    labels = list(curated.labels)
    for i in wrong:
        labels[i] = (str(g.choice([c for c in found.classes if c not in labels[i]])),)
    clips = assign_folds(curated.assign(labels=labels), n_folds=5, seed=seed)
    readable, p = baseline_scores(clips, found.classes, seed=seed)
    table = find_suspects(readable, {"baseline": p}, found.classes, n=20)
    share = table.clip_id.isin(curated.clip_id.iloc[wrong]).mean()
    assert share >= 0.6, f"{share:.0%} of the list are wrong labels; 15 % of all are"


def scores_of(clips, classes, right=0.9):
    return np.array([[right if c in labels else 0.1 for c in classes] for labels in clips.labels])


def test_each_kind_of_suspect_comes_onto_the_list(comp):
    clips = comp.of("curated", "noisy").assign(fold=0)
    p = scores_of(clips, comp.classes)
    curated, noisy = np.flatnonzero(clips.source == "curated")[0], np.flatnonzero(clips.source == "noisy")[0]
    for i in (curated, noisy):
        p[i] = 0.95 - p[i]
    free = [i for i in range(len(clips)) if i not in (curated, noisy)]
    a = free[0]
    b = next(i for i in free if set(clips["labels"][i]) != set(clips["labels"][a]))
    c, d = next(
        (i, j)
        for i in free
        for j in free
        if i < j and clips["labels"][i] == clips["labels"][j] and {i, j}.isdisjoint({a, b})
    )
    pairs = pd.DataFrame(
        {"a": clips.clip_id[[a, c]].to_list(), "b": clips.clip_id[[b, d]].to_list(), "likeness": [0.9, 0.8]}
    )
    table = find_suspects(clips, {"one": p, "two": p}, comp.classes, pairs=pairs).set_index("clip_id")
    assert table.kind[clips.clip_id[curated]] == "curated label doubted"
    assert (
        table.kind[clips.clip_id[noisy]] == "noisy label rejected" and "all stages" in table.why[clips.clip_id[noisy]]
    )
    assert sorted(table.kind) == [
        "copy with other labels",
        "curated label doubted",
        "found twice",
        "noisy label rejected",
    ]
    assert table.why[table.kind == "copy with other labels"].iloc[0].startswith("the same recording as")


def test_a_noisy_clip_that_one_stage_ranks_first_is_not_rejected(comp):
    clips = comp.of("noisy").assign(fold=0)
    good = scores_of(clips, comp.classes)
    assert not len(find_suspects(clips, {"one": 1 - good, "two": good}, comp.classes))
    assert len(find_suspects(clips, {"one": 1 - good, "two": 1 - good}, comp.classes)) == min(48, len(clips))


def corrections(path, *rows):
    path.write_text("clip_id,action,labels,who,when,why\n" + "".join(f"{r}\n" for r in rows))
    return path


def test_nothing_is_overwritten(comp, tmp_path):
    before = comp.clips.copy(deep=True)
    a, b, c = comp.of("noisy").clip_id[:3]
    path = corrections(
        tmp_path / "c.csv",
        f'{a},relabel,"Bell,Siren",ann,2026-01-01,',
        f"{b},drop,,ann,2026-01-01,",
        f"{c},keep,,bob,2026-01-02,sure",
    )
    fixed = correct_labels(comp, path).clips.set_index("clip_id")
    pd.testing.assert_frame_equal(comp.clips, before)
    given = before.set_index("clip_id").labels
    assert (
        fixed.labels[a] == ("Bell", "Siren")
        and b not in fixed.index
        and fixed.corrected[[a, c]].tolist() == ["relabel", "keep"]
    )
    assert all(fixed.given_labels[i] == given[i] for i in fixed.index)
    assert all(fixed.labels[i] == given[i] for i in fixed.index if i != a)
    twice = apply_corrections(
        fixed.reset_index(),
        read_corrections(corrections(tmp_path / "d.csv", f"{a},relabel,Bell,cy,2026-02-01,"), comp.classes),
    )
    assert twice.set_index("clip_id").given_labels[a] == given[a], (
        "correcting what was corrected keeps the first labels"
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_latest_decision_counts_and_disagreement_is_reported(comp, tmp_path, capsys, order):
    a = comp.of("noisy").clip_id[0]
    rows = [f"{a},drop,,ann,2026-01-01T10:00:00+00:00,", f"{a},relabel,Siren,bob,2026-01-02T09:00:00+00:00,"]
    fixed = correct_labels(comp, corrections(tmp_path / "c.csv", *(rows[i] for i in order)))
    assert fixed.clips.set_index("clip_id").labels[a] == ("Siren",)
    assert "1 clip with decisions that disagree" in capsys.readouterr().err


@pytest.mark.parametrize(
    "row,words",
    [
        ("ID,kep,", ["row 1", "'keep'"]),
        ("ID,relabel,Sirene", ["row 1", "'Siren'"]),
        ("ID,relabel,", ["row 1", "labels"]),
        ("who.wav,drop,", ["row 1", "who.wav"]),
        ("ID,drop", ["row 1", "cells"]),
    ],
)
def test_an_error_in_the_file_is_a_one_line_message(comp, data, tmp_path, capsys, row, words):
    path = tmp_path / "c.csv"
    path.write_text("clip_id,action,labels\n" + row.replace("ID", comp.of("curated").clip_id[0]) + "\n")
    code = main([*train_words(data, tmp_path / "run"), "--corrections", str(path)])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("audiotag: ")]
    assert code == 2 and len(errors) == 1 and "c.csv" in errors[0] and not (tmp_path / "run").exists()
    for word in words:
        assert word in errors[0]


def test_a_test_clip_cannot_be_relabeled(comp, tmp_path):
    with pytest.raises(AudiotagError, match="not a training clip"):
        correct_labels(comp, corrections(tmp_path / "c.csv", f"{comp.of('test').clip_id[0]},relabel,Siren,,,"))


def test_decisions_are_added_and_never_lost(comp, tmp_path):
    path = tmp_path / "c.csv"
    rows = [
        dict(clip_id=c, action="relabel", labels=("Bell", "Siren"), who='a "b", c', when="2026", why="x,y")
        for c in comp.of("noisy").clip_id[:3]
    ]
    write_corrections(path, pd.DataFrame(rows[:1]))
    path.write_text(path.read_text().rstrip("\n"))  # an editor that eats the last line end
    write_corrections(path, pd.DataFrame(rows[1:]))
    table = read_corrections(path, comp.classes)
    assert [tuple(r) for r in table.itertuples(index=False)] == [tuple(r.values()) for r in rows]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("ab ,\"'é\n", min_size=1, max_size=5).filter(str.strip), min_size=1, max_size=4, unique=True))
def test_classes_of_any_name_are_saved_and_read(tmp_path, classes):
    path = tmp_path / "c.csv"
    path.unlink(missing_ok=True)
    ids = [f"{c}/{i}.wav" for i, c in enumerate(classes)]
    clips = clip_table(ids, path=ids, labels=[(classes[0],)] * len(ids), source="curated")
    review = LabelReview(clips, pd.DataFrame(columns=["clip_id"]), np.zeros((len(ids), len(ids))), tuple(classes))
    for id_ in ids:
        review.decide(id_, "relabel", classes, why='a "b", c')
    review.save(path)
    fixed = apply_corrections(clips, read_corrections(path, classes))
    assert list(fixed.labels) == [tuple(classes)] * len(ids)


def test_rows_are_added_in_the_order_of_the_columns_that_are_there(comp, tmp_path):
    (tmp_path / "c.csv").write_text("action,labels,clip_id\n")
    row = dict(clip_id=comp.of("noisy").clip_id[0], action="relabel", labels=("Bell",), when="2026")
    write_corrections(tmp_path / "c.csv", pd.DataFrame([row]))
    assert list(read_corrections(tmp_path / "c.csv", comp.classes).clip_id) == [row["clip_id"]]


def test_a_recipe_trains_on_the_corrected_labels_and_remembers_the_given_ones(data, comp, tmp_path):
    a, b = comp.of("curated").clip_id[:2]
    path = corrections(tmp_path / "c.csv", f"{a},relabel,Siren,ann,2026,", f"{b},drop,,ann,2026,")
    words = [*train_words(data, tmp_path / "run", [*SETS, "stages.*.epochs=1"]), "--corrections", str(path)]
    done = called(*words)
    assert done.returncode == 0 and "1 clip relabeled" in done.stderr, done.stderr
    run = Run(tmp_path / "run")
    row = run.clips.set_index("clip_id").loc[a]
    assert (
        row["labels"] == ("Siren",)
        and tuple(row.given_labels) == comp.clips.set_index("clip_id").labels[a]
        and b not in set(run.clips.clip_id)
    )
    assert (tmp_path / "run" / "corrections.csv").read_bytes() == path.read_bytes()
    shutil.rmtree(tmp_path / "run" / "4-certain")
    assert main(train_words(data, tmp_path / "run", [*SETS, "stages.*.epochs=1"])) == 2, (
        "without the corrections it is another run"
    )


def test_audit_lists_without_training(data, tmp_path):
    done = called("audit", "--data", data, "--out", tmp_path / "a.html", "--clips", 6)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "a.csv")
    assert len(table) == 6 and (tmp_path / "a.html").read_text().count("<audio") == 6
    assert not set(done.stdout + done.stderr) & set("\r\x1b\b")
