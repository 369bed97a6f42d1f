"Class names with commas, quotes, spaces and accents, from the review of labels through training, ledger and report to the submission."

import csv
import html
import json
import unicodedata

import numpy as np
import pandas as pd

from audiotag.audio.synth import make_competition
from audiotag.data.competitions import join_labels, load_competition, split_labels
from audiotag.data.submission import check_submission
from audiotag.review.label_review import LabelReview, read_corrections
from audiotag.train.run_folder import Run
from tests.tiny import SETS, called, train_words

ODD = ["Door, slam", 'say "hi", twice', "café", "a  b"]


def rename_classes(data):
    "Give the first classes odd names, in the tables as well as in the template; `café` is composed otherwise in one of them."
    template = data / "sample_submission.csv"
    with open(template, newline="") as f:
        header, *rows = csv.reader(f)
    new = dict(zip(header[1:], [*ODD, *header[1 + len(ODD) :]]))
    with open(template, "w", newline="") as f:
        csv.writer(f).writerows([[header[0], *new.values()], *rows])
    for name in ("train_curated.csv", "train_noisy.csv"):
        table = pd.read_csv(data / name, dtype=str)
        table["labels"] = [join_labels(new[c] for c in cell.split(",")) for cell in table["labels"]]
        if name == "train_noisy.csv":
            table["labels"] = [unicodedata.normalize("NFD", cell) for cell in table["labels"]]
        table.to_csv(data / name, index=False)
    return tuple(new.values())


def test_what_one_tool_writes_the_others_read(tmp_path):
    data = make_competition(tmp_path / "data", seed=3, n_curated=32, n_noisy=24, n_test=6)
    classes = rename_classes(data)
    comp = load_competition(data)
    assert comp.classes == classes and {c for labels in comp.clips["labels"] for c in labels} == set(classes)
    curated = comp.of("curated")
    review = LabelReview(curated, pd.DataFrame(columns=["clip_id"]), np.zeros((len(curated), len(classes))), classes)
    changed = {clip_id: (name, *ODD[:1]) if name != ODD[0] else (name,) for clip_id, name in zip(curated.clip_id, ODD)}
    for clip_id, labels in changed.items():
        review.decide(clip_id, "relabel", labels)
    review.save(tmp_path / "corrections.csv")
    assert list(read_corrections(tmp_path / "corrections.csv", classes)["labels"]) == list(changed.values())

    words = train_words(data, tmp_path / "run", [*SETS, "stages.*.epochs=1"])
    done = called(*words, "--corrections", tmp_path / "corrections.csv")
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "run")
    kept = run.clips.set_index("clip_id")["labels"]
    assert run.classes == classes and {i: tuple(kept[i]) for i in changed} == changed

    done = called("ledger", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    named = set(json.loads(done.stdout)["by label"])
    assert named <= set(classes) and named & set(ODD), named
    assert called("report", tmp_path / "run").returncode == 0
    page = html.unescape(next(tmp_path.rglob("report.html")).read_text())
    assert all(name in page for name in ODD)

    assert called("pack", "weights", tmp_path / "run", tmp_path / "b").returncode == 0
    words = ("--bundle", tmp_path / "b", "--data", data, "--out", tmp_path / "s.csv", "--labels", tmp_path / "l.csv")
    done = called("infer", *words)
    assert done.returncode == 0, done.stderr
    assert not check_submission(tmp_path / "s.csv", comp)
    with open(tmp_path / "s.csv", newline="") as f:
        assert tuple(next(csv.reader(f))[1:]) == classes
    labels = pd.read_csv(tmp_path / "l.csv", dtype=str, keep_default_na=False)
    assert all(c in classes for cell in labels.iloc[:, 1] for c in split_labels(cell, classes))
