"`audiotag new`: folders in the layout of public sets, each with what must be taken for what."

import json

import numpy as np
import pytest

from audiotag.core.errors import AudiotagError
from audiotag.data.competitions import load_competition
from audiotag.data.guess_layout import Wishes, guess_form, guess_layout
from audiotag.data.layout_file import (
    ClipTable,
    FolderLayout,
    KnownLayout,
    PythonLayout,
    SubmissionTable,
    open_layout,
    sealed_layout,
)
from tests.data import public_layouts

# set -> what the first table is read as, the classes, the number of clips by source
EXPECTED = {
    "esc50": (
        dict(file="meta/esc50.csv", path="audio/{filename}", label_columns=("category",), fold_column="fold"),
        ("chainsaw", "dog", "rain"),
        dict(curated=15),
    ),
    "urbansound8k": (
        dict(
            path="audio/fold{fold}/{slice_file_name}",
            label_columns=("class",),
            fold_column="fold",
            group_column="fsID",
            start_column="",
        ),
        ("chainsaw", "dog", "rain"),
        dict(curated=20),
    ),
    "fsd50k": (
        dict(path="FSD50K.dev_audio/{fname}.wav", label_columns=("labels",), labels="separated", sep=","),
        ("Bark", "Chainsaw_and_saw", "Rain"),
        dict(curated=12, test=12),
    ),
    "birdclef2021": (
        dict(path="train_short_audio/{primary_label}/{filename}", label_columns=("primary_label",)),
        ("21038", "afrsil1", "akepa1"),
        dict(curated=12),
    ),
    "birdclef2022": (
        dict(path="train_audio/{filename}", label_columns=("primary_label",)),
        ("21038", "afrsil1", "akepa1"),
        dict(curated=12),
    ),
    "birdclef2023": ("birdclef2024", ("afrsil1", "akepa1", "21038"), dict(curated=12, test=2)),
    "birdclef2024": ("birdclef2024", ("afrsil1", "akepa1", "21038"), dict(curated=12, unlabeled=2, test=1)),
    "birdclef2025": ("birdclef2024", ("afrsil1", "akepa1", "21038"), dict(curated=12, unlabeled=2, test=1)),
    "birdclef2026": ("birdclef2024", ("afrsil1", "akepa1", "21038"), dict(curated=12, unlabeled=2, test=1)),
    "fsdkaggle2018": (
        dict(path="audio_train/{fname}", label_columns=("label",), labels="one"),
        ("Acoustic guitar", "Bass drum", "Hi-hat"),
        dict(curated=6, noisy=6, test=12),
    ),
    "fsdkaggle2019": (
        dict(path="FSDKaggle2019.audio_train_curated/{fname}", label_columns=("labels",), labels="separated"),
        ("Bark", "Meow", "Purr"),
        dict(curated=12, noisy=12, test=12),
    ),
    "speech_commands": (
        dict(file="", path="**", label_columns=("folder",), group_column="part1"),
        ("no", "stop", "yes"),
        dict(curated=20, test=4),
    ),
    "label_studio_csv": (
        dict(path="clips/**/{audio}", label_columns=("label",), labels="list", start_column="start", end_column="end"),
        ("chainsaw", "dog", "rain"),
        dict(curated=9),
    ),
    "label_studio_json": (
        dict(path="clips/**/{audio}", label_columns=("label",), labels="list"),
        ("chainsaw", "dog", "rain"),
        dict(curated=9),
    ),
    "gtzan": (
        dict(path="genres_original/{label}/{filename}", label_columns=("label",)),
        ("blues", "jazz", "rock"),
        dict(curated=12),
    ),
    "desed": (
        dict(path="audio/train/synthetic/{filename}", start_column="onset", end_column="offset", delimiter="\t"),
        ("Cat", "Dog", "Speech"),
        dict(curated=16),
    ),
    "tau_scenes": (
        dict(path="{filename}", label_columns=("scene_label",), group_column="identifier"),
        ("airport", "bus", "park"),
        dict(curated=9, test=3),
    ),
    "audioset": (
        dict(path="balanced_train/Y{YTID}.wav", labels="separated", start_column=""),
        ("/m/05zppz", "/m/09x0r"),
        dict(curated=12),
    ),
    "nsynth": (
        dict(path="audio/{key}.wav", label_columns=("instrument_family_str",)),
        ("bass", "flute", "organ"),
        dict(curated=12),
    ),
    "magnatagatune": (
        dict(path="mp3/{mp3_path}", labels="columns"),
        ("guitar", "loud", "slow", "vocal"),
        dict(curated=12),
    ),
    "birdcall2020": (
        dict(path="train_audio/{ebird_code}/{filename}", label_columns=("ebird_code",)),
        ("aldfly", "amebit", "ameavo"),
        dict(curated=12),
    ),
    "warblr": (dict(path="wav/{itemid}.wav", label_columns=("hasbird",)), ("0", "1"), dict(curated=12)),
    "sonyc": (
        dict(labels="columns", group_column="sensor_id", where=("split", "train", "validate")),
        ("1_engine_presence", "2_impact_presence", "3_voice_presence"),
        dict(curated=8, test=4),
    ),
    "common_voice": (
        dict(path="clips/{path}", label_columns=("sentence",), group_column="client_id"),
        ("no", "yes"),
        dict(curated=12, test=12),
    ),
    "class_folders": (dict(label_columns=("folder2",)), ("chainsaw", "dog", "rain"), dict(curated=12)),
    "split_folders": (dict(label_columns=("folder",)), ("chainsaw", "dog", "rain"), dict(curated=24, test=12)),
    "own_competition": (
        dict(path="sounds/{file}", label_columns=("what",), group_column="who"),
        ("dog", "rain", "chainsaw"),
        dict(curated=12, test=4),
    ),
    "semicolons": (
        dict(path="deep/er/{Aufnahme}.mp3", label_columns=("Geräusche",), sep=";"),
        ("dog bark", "rain", "siren"),
        dict(curated=12),
    ),
    "padded_ids": (dict(path="fma_small/000/{track_id:0>6}.wav"), ("Folk", "Rock"), dict(curated=12)),
    "label_columns": (dict(label_columns=("label1", "label2")), ("chainsaw", "dog", "rain"), dict(curated=12)),
    "train_and_test_share_names": (
        dict(path="train/{clip}", label_columns=("sound",)),
        ("chainsaw", "dog", "rain"),
        dict(curated=12, test=6),
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_public_set_is_understood(tmp_path, name):
    wanted, classes, counts = EXPECTED[name]
    getattr(public_layouts, name)(public_layouts.Maker(tmp_path / name))
    guess = guess_layout(tmp_path / name)
    if isinstance(wanted, str):
        assert guess.layout == KnownLayout(name=wanted)
    else:
        table = guess.layout.tables[0]
        assert {k: getattr(table, k) for k in wanted} == wanted, str(guess)
    (tmp_path / "layout.json").write_text(guess.layout.to_json())
    competition = load_competition(tmp_path / name, str(tmp_path / "layout.json"))
    assert sorted(competition.classes) == sorted(classes)
    assert competition.clips.source.value_counts().to_dict() == counts
    alone = load_competition(tmp_path / name, guess.layout, train=False)
    assert list(alone.of("test").clip_id) == list(competition.of("test").clip_id)
    assert (competition.clips.source != "test").sum() == (
        ~competition.clips.path.isin(competition.of("test").path)
    ).sum()


def test_labels_are_those_of_the_table(tmp_path):
    public_layouts.fsd50k(public_layouts.Maker(tmp_path / "f"))
    competition = load_competition(tmp_path / "f", guess_layout(tmp_path / "f").layout)
    labels = dict(zip(competition.clips.clip_id, competition.clips.labels))
    assert labels["FSD50K.dev_audio/64761.wav"] == ("Bark", "Rain")
    assert labels["FSD50K.dev_audio/64760.wav"] == ("Bark",)


def test_names_alone_need_the_user(tmp_path):
    public_layouts.names_only(public_layouts.Maker(tmp_path / "n"))
    with pytest.raises(AudiotagError, match=r"--label-col: part1 .*part3 \(2 values: ANG, SAD\)"):
        guess_layout(tmp_path / "n")
    layout = guess_layout(tmp_path / "n", Wishes(label_cols=("part3",), group_col="part1")).layout
    assert load_competition(tmp_path / "n", layout).classes == ("ANG", "SAD")
    with pytest.raises(AudiotagError, match="no table has a column 'part9'"):
        guess_layout(tmp_path / "n", Wishes(label_cols=("part9",)))


def test_wishes_come_first(tmp_path):
    public_layouts.own_competition(public_layouts.Maker(tmp_path / "o"))
    wishes = Wishes(label_cols=("who",), group_col="what", metric="macro_auc")
    table = guess_layout(tmp_path / "o", wishes).layout.tables[0]
    assert (table.label_columns, table.group_column) == (("who",), "what")
    with pytest.raises(AudiotagError, match="no table has a column 'whoo'.*did you mean 'who'"):
        guess_layout(tmp_path / "o", Wishes(group_col="whoo"))


@pytest.mark.parametrize(
    "cells,form,sep",
    [
        (["a,b", "a", "b"], "separated", ","),
        (["a, b", "a", "b"], "separated", ","),
        (["a|b", "c"], "separated", "|"),
        (["a; b", "c"], "separated", ";"),
        (["x y", "x", "y", "x y z", "z"], "separated", " "),
        (["Chewing, mastication", "Dog"], "one", ","),
        (["dog bark", "children playing"], "one", ","),
        (["['a']", "['a', 'b']", ""], "list", ","),
        (['["a", "b"]', "[]"], "list", ","),
        (["a", "b"], "one", ","),
    ],
)
def test_what_stands_between_labels(cells, form, sep):
    assert guess_form(cells)[:2] == (form, sep)


def test_a_folder_without_sound_or_label(tmp_path):
    (tmp_path / "e").mkdir()
    with pytest.raises(AudiotagError, match="no sound file"):
        guess_layout(tmp_path / "e")
    with pytest.raises(AudiotagError, match="no such folder"):
        guess_layout(tmp_path / "none")


@pytest.fixture
def own(tmp_path):
    public_layouts.own_competition(public_layouts.Maker(tmp_path / "own"))
    return tmp_path / "own"


def test_errors_name_file_and_column(own, tmp_path):
    layout = guess_layout(own).layout
    (own / "labels.csv").write_text((own / "labels.csv").read_text().replace("003.flac,dog", "003.flac,dgo"))
    with pytest.raises(AudiotagError, match="labels.csv, row 4, field 'labels': label 'dgo'.*did you mean 'dog'"):
        load_competition(own, layout)
    wrong = layout.replace(tables=(layout.tables[0].replace(label_columns=("waht",)),))
    with pytest.raises(AudiotagError, match="labels.csv, field 'waht'.*did you mean 'what'"):
        load_competition(own, wrong)
    (tmp_path / "broken.json").write_text('{"kind": ')
    with pytest.raises(AudiotagError, match="broken.json.*not valid"):
        open_layout(tmp_path / "broken.json")
    with pytest.raises(AudiotagError, match="no such file.*audiotag new"):
        load_competition(own, "missing.json")


@pytest.mark.parametrize("where", ["../out/{id}.wav", "/etc/{id}"])
def test_a_layout_stays_in_the_folder(where):
    with pytest.raises(AudiotagError, match="below the competition's folder"):
        ClipTable(path=where)
    with pytest.raises(AudiotagError, match="below the competition's folder"):
        SubmissionTable(path="x/{id}", file=where)


def test_other_files_of_a_hidden_test_get_rows(own):
    layout = guess_layout(own).layout
    for extra in ("777.flac", "778.wav"):
        (own / "hidden" / extra).write_bytes((own / "hidden/000.flac").read_bytes())
    (own / "hidden/001.flac").unlink()
    competition = load_competition(own, layout, train=False)
    assert list(competition.of("test").clip_id) == [
        "000.flac",
        "001.flac",
        "002.flac",
        "003.flac",
        "777.flac",
        "778.wav",
    ]
    assert any("have no file" in n for n in competition.notes) and any(
        "not in the template" in n for n in competition.notes
    )


PYTHON = """
from pathlib import Path
import pandas as pd
from audiotag.data.competitions import Competition, clip_table, read_table

def _test(root, names):
    return clip_table(names, path=[str(root / "hidden" / f) for f in names], labels=[()] * len(names), source="test")

def mine(root, train):
    template = read_table(root / "sample_submission.csv")
    parts = [_test(root, list(template.file))]
    if train:
        rows = read_table(root / "labels.csv")
        parts.insert(0, clip_table([f"train-{f}" for f in rows.file], path=[str(root / "sounds" / f) for f in rows.file],
            labels=[(w,) for w in rows.what], source="curated", group=list(rows.who)))
    return Competition("mine", root, tuple(template.columns[1:]), pd.concat(parts, ignore_index=True), template, "file", "lwlrap")
"""


def test_a_python_file(own, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(PYTHON)
    competition = load_competition(own, str(path))
    assert competition.clips.source.value_counts().to_dict() == dict(curated=12, test=4)
    sealed = sealed_layout(open_layout(path), competition)
    assert isinstance(sealed, PythonLayout) and isinstance(sealed.test, FolderLayout)
    again = load_competition(own, sealed.test, train=False)
    assert list(again.of("test").path) == list(competition.of("test").path) and again.classes == competition.classes
    path.write_text(PYTHON + "\ndef other(root):\n    pass\n")
    with pytest.raises(AudiotagError, match="holds 2 functions"):
        load_competition(own, str(path))
    path.write_text("def mine(root):\n    return 3\n")
    with pytest.raises(AudiotagError, match="mine returns a int"):
        load_competition(own, str(path))


def test_given_folds_are_kept(tmp_path):
    from audiotag.data.folds import make_folds

    public_layouts.urbansound8k(public_layouts.Maker(tmp_path / "u"))
    clips = load_competition(tmp_path / "u", guess_layout(tmp_path / "u").layout).clips
    kept = make_folds(clips, n_folds=10, seed=0)
    assert [f"fold{f + 1}" for f in kept.fold] == [p.split("/")[-2] for p in kept.path]
    assert make_folds(clips, n_folds=3, seed=0).fold.nunique() == 3
    moved = make_folds(clips.assign(group="g" + (np.arange(20) // 4).astype(str).astype(object)), n_folds=5, seed=0)
    assert moved.groupby("group").fold.nunique().max() == 1


def test_a_label_studio_region_without_labels(tmp_path):
    m = public_layouts.Maker(tmp_path / "l")
    public_layouts.label_studio_json(m)
    tasks = json.loads((m.root / "project-1.json").read_text())
    tasks[0]["annotations"] = [{"result": [], "was_cancelled": True}]
    (m.root / "project-1.json").write_text(json.dumps(tasks))
    competition = load_competition(m.root, guess_layout(m.root).layout)
    assert competition.clips.source.value_counts().to_dict() == dict(curated=8, unlabeled=1)
