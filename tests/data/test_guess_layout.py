"`audiotag new`: folders in the layout of public sets, each with what must be taken for what."

import json
import os

import numpy as np
import pytest

from audiotag.core.errors import AudiotagError
from audiotag.data.competitions import load_competition
from audiotag.data.guess_layout import Wishes, guess_form, guess_layout, read_where
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
    "audioset_strong": (
        dict(path="train/{segment_id}.wav", start_column="start_time_seconds", end_column="end_time_seconds"),
        ("/m/05zppz", "/m/068hy", "/m/09x0r"),
        dict(curated=12, test=6),
    ),
    "dcase2019_task4": (
        dict(path="audio/train/synthetic/{filename}", label_columns=("event_label",), start_column="onset"),
        ("Cat", "Dog", "Speech"),
        dict(curated=12 + 6 + 6),
    ),
    "xeno_canto": (
        dict(path="audio/XC{id}.wav", label_columns=("en",), group_column="rec"),
        ("Common Blackbird", "European Robin", "Great Tit"),
        dict(curated=12),
    ),
    "openmic": (
        dict(path="audio/**/{sample_key}", label_columns=("instrument",), where=("relevance", ">=0.5")),
        ("accordion", "banjo", "bass"),
        dict(curated=8, test=4),
    ),
    "vocalsound": (
        dict(file="datafiles/tr.json", path="audio_16k/**/{wav}", label_columns=("labels",)),
        ("/m/01b_21", "/m/01j3sz", "/m/07plz5l"),
        dict(curated=12, test=3),
    ),
    "tut2017": (
        dict(
            label_columns=("column2",),
            fold_files=("evaluation_setup/fold1_evaluate.txt", "evaluation_setup/fold2_evaluate.txt"),
        ),
        ("beach", "park", "tram"),
        dict(curated=24),
    ),
    "tut_sound_events": (
        dict(path="{column1}", label_columns=("column5",), start_column="column3", end_column="column4"),
        ("car", "children", "people walking"),
        dict(curated=18),
    ),
    "vggsound": (
        dict(
            path="video/{column1}_{column2:0>6}.wav",
            label_columns=("column3",),
            labels="one",
            where=("column4", "train"),
        ),
        ("footsteps on snow, ice", "people marching", "playing trumpet"),
        dict(curated=12, test=3),
    ),
    "audio_folder": (
        dict(file="data/train/metadata.csv", path="data/train/{file_name}", label_columns=("label",)),
        ("dog", "rain"),
        dict(curated=8, test=8),
    ),
    "anuraset": (
        dict(path="audio/{site}/{sample_name}.wav", labels="columns", where=("subset", "train"), group_column="site"),
        ("BOABIS", "PHYNAT", "SCIPER"),
        dict(curated=12, test=4),
    ),
    "irmas": (dict(label_columns=("folder",)), ("cel", "cla", "flu"), dict(curated=12, test=3)),
    "nonspeech7k": (
        dict(path="train/{Filename}", label_columns=("Classname",), group_column="Source_ID"),
        ("cough", "crying", "laugh"),
        dict(curated=12, test=12),
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


@pytest.mark.parametrize(
    "name,says",
    [
        (
            "icbhi",
            r"have a file of their own.*patient_diagnosis.csv names part1 of the files.*--label-col: part1 \(10 v",
        ),
        ("mtg_jamendo", r"autotagging.tsv, row 2 cannot be read: has 6 cells where the header has 5.*--layout mine.py"),
        ("medleydb", r"their folders are not classes: .*--label-col: folder2 .*part3 \(2 values: MIX, STEM\)"),
    ],
)
def test_what_cannot_be_told_is_asked(tmp_path, name, says):
    getattr(public_layouts, name)(public_layouts.Maker(tmp_path / name))
    with pytest.raises(AudiotagError, match=says):
        guess_layout(tmp_path / name)


@pytest.mark.parametrize(
    "name,doubt",
    [
        ("tess", "the label could also be part3 (3 values: angry, fear, happy): --label-col part3"),
        ("tut2017", "column3 may say which clips belong together: --group-col column3"),
        ("audioset_with_missing_files", "name no file that is there; --skip-missing leaves them out"),
    ],
)
def test_what_is_unsure_is_said(tmp_path, name, doubt):
    getattr(public_layouts, name)(public_layouts.Maker(tmp_path / name))
    assert any(doubt in d for d in guess_layout(tmp_path / name).doubts)


def test_rows_without_files_are_left_out_on_demand(tmp_path):
    public_layouts.audioset_with_missing_files(public_layouts.Maker(tmp_path / "a"))
    with pytest.raises(AudiotagError, match="1 of 13 listed files are not in the folder"):
        load_competition(tmp_path / "a", guess_layout(tmp_path / "a").layout)
    competition = load_competition(tmp_path / "a", guess_layout(tmp_path / "a", Wishes(skip_missing=True)).layout)
    assert len(competition.clips) == 12
    assert "1 row of balanced_train_segments.csv without a file left out" in competition.notes


def test_rows_that_a_bound_selects(tmp_path):
    public_layouts.openmic(public_layouts.Maker(tmp_path / "o"))
    labels = {}
    for where in ("", "relevance>=0.05", "instrument=banjo,bass"):
        clips = load_competition(
            tmp_path / "o", guess_layout(tmp_path / "o", Wishes(where=read_where(where))).layout
        ).clips
        labels[where] = clips[clips.source == "curated"].labels.map(len).tolist()
    assert labels[""] == [1] * 8 and labels["relevance>=0.05"] == [1, 2] * 4
    assert sum(labels["instrument=banjo,bass"]) == 8
    assert read_where("split = train,val") == ("split", "train", "val")
    for wrong in ("split", "relevance>=high", "=1"):
        with pytest.raises(AudiotagError, match="does not say which rows"):
            read_where(wrong)


def test_folds_that_are_given_as_lists(tmp_path):
    public_layouts.tut2017(public_layouts.Maker(tmp_path / "t"))
    layout = guess_layout(tmp_path / "t").layout
    clips = load_competition(tmp_path / "t", layout).clips
    assert [int(f) for f in clips.fold] == [i // 6 % 2 for i in range(24)]
    twice = layout.replace(tables=(layout.tables[0].replace(fold_files=("meta.txt", *layout.tables[0].fold_files)),))
    with pytest.raises(AudiotagError, match="fold1_evaluate.txt, field 'fold_files': .* is in meta.txt, too"):
        load_competition(tmp_path / "t", twice)


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


def test_tables_and_lists_from_a_stranger(own, tmp_path):
    "What is not a file is not opened, and a small file does not become a table of gigabytes."
    layout = guess_layout(own).layout
    os.mkfifo(own / "pipe.json")
    os.mkfifo(own / "pipe.txt")
    (own / "wide.json").write_text(json.dumps([{f"k{i}": 1} for i in range(10_000)]))
    (own / "odd.txt").write_bytes(b"\xff")
    clips = layout.tables[0]
    for table, said in (
        (clips.replace(file="pipe.json"), "a named pipe"),
        (clips.replace(file="wide.json"), "10000 columns in 10000 rows"),
        (clips.replace(fold_files=("pipe.txt",)), "a named pipe"),
        (clips.replace(fold_files=("odd.txt",)), "not UTF-8"),
        (clips.replace(fold_files=("gone.txt",)), "not found"),
    ):
        with pytest.raises(AudiotagError, match=said):
            load_competition(own, layout.replace(tables=(table,)))
    os.truncate(os.open(tmp_path / "large.json", os.O_CREAT | os.O_WRONLY), 2**33)
    with pytest.raises(AudiotagError, match="more than 100 MB"):
        open_layout(tmp_path / "large.json")


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
    assert any("no file and will get" in n for n in competition.notes) and any(
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
