"Layouts: what a folder on disk becomes, and what is said when the folder is not as it should be."

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from audiotag.data.competitions import (
    CLIP_COLUMNS,
    check_clips,
    class_prior,
    clip_table,
    join_labels,
    join_same_content,
    layouts,
    load_competition,
    read_table,
    recordings,
    split_labels,
    target_weights,
    targets,
)
from audiotag.core.errors import AudiotagError
from audiotag.data.submission import check_submission, refused
from audiotag.data.folds import assign_folds
from audiotag.audio.synth import make_competition, make_rainforest, make_soundscapes, make_universal


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_competition(
        tmp_path_factory.mktemp("comp") / "c", n_curated=24, n_noisy=24, n_test=8, sample_rate=16000, seconds=(0.2, 0.3)
    )


@pytest.fixture
def root(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "c")


def lines(path):
    return path.read_text().splitlines()


def test_the_real_set_is_read_as_an_independent_reader_reads_it(sample_set):
    root = sample_set("freesound")
    comp = load_competition(root)
    assert tuple(comp.clips.columns) == CLIP_COLUMNS
    template = pd.read_csv(root / "sample_submission.csv", dtype=str)
    assert list(comp.classes) == list(template.columns[1:])
    assert list(comp.of("test").clip_id) == list(template.fname) == list(comp.template.fname)
    for source in ("curated", "noisy"):
        clips, listed = comp.of(source), pd.read_csv(root / f"train_{source}.csv", dtype=str)
        assert list(clips.clip_id) == list(listed.fname)
        assert [",".join(o) for o in clips.labels] == list(listed.labels)
        expected = np.array([[c in o.split(",") for c in comp.classes] for o in listed.labels])
        y = targets(clips, comp.classes)
        assert y.dtype == np.float32 and np.array_equal(y, expected)
        if source == "curated":
            np.testing.assert_allclose(class_prior(comp.clips, comp.classes), expected.mean(0), rtol=1e-6)
    assert comp.clips.path.map(lambda p: open(p, "rb").read(4) == b"RIFF").all()
    assert comp.clips.start_s.isna().all() and comp.clips.end_s.isna().all() and (comp.clips.fold == -1).all()
    assert comp.notes == () and comp.metric == "lwlrap" and comp.id_column == "fname"


def test_ids_stay_text(sample_set):
    table = read_table(sample_set("rainforest") / "train_tp.csv", columns=["recording_id", "t_min"])
    assert len(table) == 89
    raw = [o.split(",")[0] for o in lines(sample_set("rainforest") / "train_tp.csv")[1:]]
    assert list(table.recording_id) == raw and any(o.replace("e", "").isdigit() for o in raw)


# --- csv files in every state -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        'fname,labels\n1234e5678,NA\n007,"Bark,Meow"\n',
        '\ufefffname,labels\r\n1234e5678,NA\r\n007,"Bark,Meow"\r\n',
        'fname,labels\n\n1234e5678,NA\n   \n007,"Bark,Meow"\n\n\n',
        ' fname , labels \n 1234e5678 , NA \n 007 , "Bark,Meow" ',
        '"fname","labels"\n"1234e5678","NA"\n"007","Bark,Meow"',
        'fname,labels\r1234e5678,NA\r007,"Bark,Meow"\r',
    ],
)
def test_csv_dialects_mean_the_same(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(text.encode())
    table = read_table(tmp_path / "a.csv")
    assert list(table.columns) == ["fname", "labels"]
    assert table.to_numpy().tolist() == [["1234e5678", "NA"], ["007", "Bark,Meow"]]


@pytest.mark.parametrize(
    "data,said",
    [
        (b"", "is empty"),
        (b"\n\n\n", "is empty"),
        (b"fname;labels\na;b\n", "no column 'fname': choose from fname;labels"),
        (b"fname,labels,labels\na,b,c\n", "names the column 'labels' 2 times"),
        (b"fname,labels\na,b\n\nc\n", "row 3: has 1 cell "),
        (b"fname,labels\na,b,c\n", "row 1: has 3 cells"),
        (b'fname,labels\na,b\nc,"d\ne,f\n', "row 2: is not a valid csv"),
        ("fname,labels\na,Café\n".encode("latin-1"), "not UTF-8"),
        ("fname,labels\na,b\n".encode("utf-16"), "not UTF-8"),
        (b"fname,labels\na,b\0\n", "holds 1 NUL byte, the first in line 2"),
        (b"fname\0labels\0" * 9, "holds 18 NUL bytes, the first in line 1"),
        ("fname,labels\na,b\n".encode("utf-16-le"), "UTF-16 text"),
        (b"\x1f\x8b\x08", "gunzip"),
        (b"PK\x03\x04" + bytes(range(256)), "unzip it"),
        (b"fname,labels\na," + b"x" * 200_000, "row 1: is not a valid csv"),
    ],
)
def test_csv_faults_are_named(tmp_path, data, said):
    path = tmp_path / "train.csv"
    path.write_bytes(data)
    with pytest.raises(AudiotagError, match=said) as e:
        read_table(path, columns=["fname", "labels"])
    assert e.value.file == path


def test_csv_that_is_no_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.csv").write_text("fname,labels\n")
    with pytest.raises(AudiotagError, match="did you mean the folder .*sub"):
        read_table(tmp_path / "a.csv")
    with pytest.raises(AudiotagError, match="is a folder"):
        read_table(tmp_path)
    os.mkfifo(tmp_path / "pipe.csv")
    for odd, said in ((tmp_path / "pipe.csv", "named pipe"), ("/dev/zero", "a device"), ("/dev/tty", "a device")):
        with pytest.raises(AudiotagError, match=said):  # and comes back at once
            read_table(odd)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.one_of(st.binary(max_size=80), st.text("fname,labels\"'\r\n \tax\ufeff", max_size=80).map(str.encode)))
def test_any_bytes_are_a_table_or_one_error(tmp_path, data):
    path = tmp_path / "fuzz.csv"
    path.write_bytes(data)
    try:
        table = read_table(path)
    except AudiotagError:
        return
    assert table.columns.is_unique and table.map(lambda o: isinstance(o, str)).to_numpy().all()
    assert table.index.is_monotonic_increasing and (table.index > 0).all()


# --- faults of a competition ------------------------------------------------------------------------------------------


def edit(name, row, new):
    "Replace line `row` (0 is the header) of a csv; `{fname}` stands for the name that was there, None removes the line."

    def change(root):
        text = lines(root / name)
        new_line = None if new is None else new.format(fname=text[row].split(",")[0], above=text[row - 1].split(",")[0])
        text[row : row + 1] = [] if new_line is None else [new_line]
        (root / name).write_text("\n".join(text) + "\n")

    return change


def drop_wavs(part, n):
    def change(root):
        for path in sorted((root / part).iterdir())[:n]:
            path.unlink()

    return change


def copy_into(root, line_from, line_to):
    "A noisy row that has the name of a curated clip."
    name = lines(root / "train_curated.csv")[line_from].split(",")[0]
    shutil.copy(root / "train_curated" / name, root / "train_noisy" / name)
    edit("train_noisy.csv", line_to, f"{name},Bell")(root)


FAULTS = {
    "no such csv": (lambda r: (r / "train_noisy.csv").unlink(), "train_noisy.csv", None, "file not found"),
    "no template": (lambda r: (r / "sample_submission.csv").unlink(), "sample_submission.csv", None, "file not found"),
    "renamed column": (edit("train_curated.csv", 0, "fname,label"), "train_curated.csv", None, "did you mean 'label'"),
    "misspelled label": (edit("train_curated.csv", 5, "{fname},Bel"), "train_curated.csv", 5, "'Bel' is not a class.*did you mean 'Bell'"),
    "one of two labels": (edit("train_noisy.csv", 7, '{fname},"Bell,Clock_tik"'), "train_noisy.csv", 7, "did you mean 'Clock_tick'"),
    "no label": (edit("train_noisy.csv", 2, "{fname},"), "train_noisy.csv", 2, "empty label"),
    "empty second label": (edit("train_noisy.csv", 2, '{fname},"Bell,"'), "train_noisy.csv", 2, "empty label"),
    "label twice": (edit("train_noisy.csv", 2, '{fname},"Bell,Bell"'), "train_noisy.csv", 2, "label twice"),
    "name twice": (edit("train_noisy.csv", 3, "{above},Bell"), "train_noisy.csv", 3, "there twice.*train_noisy.csv, row 2"),
    "name in both parts": (lambda r: copy_into(r, 4, 9), "train_noisy.csv", 9, "there twice.*train_curated.csv, row 4"),
    "no name": (edit("train_noisy.csv", 3, ",Bell"), "train_noisy.csv", 3, "clip_id is empty"),
    "way out": (edit("train_noisy.csv", 3, "../test/a.wav,Bell"), "train_noisy.csv", 3, "leads out of its folder"),
    "absolute name": (edit("train_noisy.csv", 3, "/etc/passwd,Bell"), "train_noisy.csv", 3, "leads out of its folder"),
    "Windows name": (edit("train_noisy.csv", 3, "..\\test\\a.wav,Bell"), "train_noisy.csv", 3, "leads out of its folder"),
    "missing files": (drop_wavs("train_curated", 5), "train_curated.csv", 1, "5 of 48 listed files.*, …"),
    "missing folder": (lambda r: shutil.rmtree(r / "train_noisy"), "train_noisy.csv", 1, "24 of 48 listed files"),
    "nothing listed": (lambda r: (r / "train_curated.csv").write_text("fname,labels\n"), "train_curated.csv", None, "lists no clips"),
    "id column of the template": (edit("sample_submission.csv", 0, "id,A,B,C,D,E,F,G,H"), "sample_submission.csv", None, "no column 'fname'"),
    "order of the template": (edit("sample_submission.csv", 0, "A,fname,B,C,D,E,F,G,H"), "sample_submission.csv", None, "columns must be"),
    "id twice in the template": (edit("sample_submission.csv", 3, "{above},0,0,0,0,0,0,0,0"), "sample_submission.csv", 3, "there twice"),
    "way out in the template": (edit("sample_submission.csv", 3, "../x.wav,0,0,0,0,0,0,0,0"), "sample_submission.csv", 3, "leads out"),
    "template of another set": (
        lambda r: [p.rename(p.with_name("f" * 7 + f"{i}.wav")) for i, p in enumerate(sorted((r / "test").iterdir()))],
        "sample_submission.csv", None, "none of 8 ids",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_with_file_and_row(root, fault):
    change, file, row, said = FAULTS[fault]
    change(root)
    with pytest.raises(AudiotagError, match=said) as e:
        load_competition(root)
    assert str(e.value.file) == str(root / file) and e.value.row == row, str(e.value)
    assert "\n" not in str(e.value)


def test_the_number_of_like_faults_is_told(root):
    text = (root / "train_noisy.csv").read_text()
    n = text.count("Bell_backwards")
    (root / "train_noisy.csv").write_text(text.replace("Bell_backwards", "Bell_backward"))
    with pytest.raises(AudiotagError, match=rf"and {n - 1} more rows"):
        load_competition(root)


def test_unknown_layout_and_folder(tmp_path):
    assert "freesound2019" in layouts()
    with pytest.raises(AudiotagError, match="did you mean 'freesound2019'"):
        load_competition(tmp_path, "freesound2018")
    with pytest.raises(AudiotagError, match="no such folder"):
        load_competition(tmp_path / "x")


def test_a_folder_one_level_down_is_proposed(root):
    with pytest.raises(AudiotagError, match=f"did you mean the folder {root}"):
        load_competition(root.parent)


# --- the test part ----------------------------------------------------------------------------------------------------


def test_a_larger_hidden_test_gets_more_rows(root):
    some = sorted((root / "test").iterdir())
    for name in ("00000000.wav", "zz.WAV", "1234e5678.wav"):
        shutil.copy(some[0], root / "test" / name)
    (root / "test" / "readme.txt").write_text("not a sound")
    (root / "test" / "._00.wav").write_text("left by a Mac")
    (root / "test" / "folder.wav").mkdir()
    (root / "test" / os.fsdecode(b"\xff.wav")).write_text("a name that no csv can hold")
    comp = load_competition(root)
    assert list(comp.of("test").clip_id) == [p.name for p in some] + ["00000000.wav", "1234e5678.wav", "zz.WAV"]
    assert len(comp.notes) == 3 and "3 files" in comp.notes[1]  # and they equal another file
    assert "readme.txt" in comp.notes[0] and "udcff.wav" in comp.notes[0]
    out = comp.submission(np.full((11, 8), 0.5))
    assert list(out.fname) == list(comp.of("test").clip_id) and list(out.columns) == list(comp.template.columns)


def test_a_missing_test_file_keeps_its_row(root, capfd):
    ids = [o.split(",")[0] for o in lines(root / "sample_submission.csv")[1:]]
    (root / "test" / ids[2]).unlink()
    comp = load_competition(root)
    assert list(comp.of("test").clip_id) == ids
    assert "1 id of the template has no file" in capfd.readouterr().err
    out = comp.submission({o: np.zeros(8) for o in ids if o != ids[2]})
    np.testing.assert_allclose(out.iloc[2, 1:].astype(float), class_prior(comp.clips, comp.classes))
    assert (out.drop(index=2).iloc[:, 1:] == 0).all(axis=None)


@pytest.mark.parametrize("how", ["empty", "gone", "only a readme"])
def test_no_test_files_at_all(root, how):
    shutil.rmtree(root / "test")
    if how != "gone":
        (root / "test").mkdir()
    if how == "only a readme":
        (root / "test" / "readme.txt").write_text("in the rerun there are more")
    comp = load_competition(root, train=False)
    assert len(comp.of("test")) == 8 and len(comp.clips) == 8
    assert np.allclose(comp.submission({}).iloc[:, 1:].astype(float), 1 / 8)


def test_a_template_without_rows_takes_the_files(root):
    files = sorted(p.name for p in (root / "test").iterdir())
    (root / "sample_submission.csv").write_text(lines(root / "sample_submission.csv")[0] + "\n")
    assert list(load_competition(root).of("test").clip_id) == files
    shutil.rmtree(root / "test")
    comp = load_competition(root)
    for scores in ({}, np.zeros((0, 8))):
        assert comp.submission(scores).shape == (0, 9)


def test_inference_needs_no_training_part(root):
    whole = load_competition(root).of("test")
    for name in ("train_curated", "train_noisy"):
        shutil.rmtree(root / name)
        (root / f"{name}.csv").unlink()
    pd.testing.assert_frame_equal(load_competition(root, train=False).clips, whole)


def test_unlisted_training_files_are_only_reported(root):
    shutil.copy(next((root / "test").iterdir()), root / "train_noisy" / "ffffffff.wav")
    comp = load_competition(root)
    assert "ffffffff.wav" not in set(comp.clips.clip_id) and "ffffffff.wav" in comp.notes[0]


def test_no_noisy_clips(tmp_path):
    root = make_competition(tmp_path / "c", n_curated=8, n_noisy=0, n_test=0, sample_rate=16000, seconds=(0.2, 0.3))
    comp = load_competition(root)
    assert comp.clips.source.eq("curated").all() and len(comp.clips) == 8


# --- groups -----------------------------------------------------------------------------------------------------------


def test_equal_files_share_a_group_and_similar_ones_do_not(tmp_path):
    g = np.random.default_rng(0)
    base = g.integers(0, 256, 20_000, dtype=np.uint8)
    late = base.copy()
    late[-1] ^= 1  # same size, same middle
    middle = base.copy()
    middle[10_001] ^= 1
    files = {"a": base, "b": late, "c": base, "d": base[:-1], "e": middle, "f": late}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data.tobytes())
    ids = [*files, "gone"]
    clips = clip_table(ids, path=[str(tmp_path / o) for o in ids], labels=[("A",)] * 7, source="curated")
    before = clips.copy()
    joined, notes = join_same_content(clips)
    assert dict(zip(joined.clip_id, joined.group)) == {
        "a": "a",
        "b": "b",
        "c": "a",
        "d": "d",
        "e": "e",
        "f": "b",
        "gone": "gone",
    }
    assert "4 files" in notes[0]
    pd.testing.assert_frame_equal(clips, before)
    mixed = join_same_content(clips.sample(frac=1, random_state=0))[0].sort_index()
    pd.testing.assert_frame_equal(mixed, joined)


def test_groups_that_touch_become_one(tmp_path):
    "Speaker x has a file of speaker y, who has one of z: one group, also for their other clips, in whatever order they are met."
    for order in ("xyz", "zyx", "yzx"):
        folder = tmp_path / order
        folder.mkdir()
        names = {
            "1" + order[0]: b"1",
            "1" + order[1]: b"1",
            "2" + order[1]: b"22",
            "2" + order[2]: b"22",
            "3w": b"333",
            "4z": b"4444",
        }
        for name, data in names.items():
            (folder / name).write_bytes(data)
        clips = clip_table(list(names), path=[str(folder / o) for o in names], labels=[("A",)] * 6, source="curated",
                           group=[o[1] for o in names])  # fmt: skip
        groups = join_same_content(clips)[0].group
        assert list(groups) == ["x"] * 4 + ["w", "x"], order


# --- the clip table ---------------------------------------------------------------------------------------------------


@pytest.fixture
def clips(pristine):
    return load_competition(pristine).clips


def put(column, value, row=5):
    def change(clips):
        column_ = clips[column].astype(object)
        column_.iat[row] = value
        return clips.assign(**{column: column_})

    return change


@pytest.mark.parametrize(
    "change,field,row,said",
    [
        (lambda c: c.drop(columns="group"), "group", None, "no column 'group'"),
        (put("clip_id", 12), "clip_id", 6, "not text"),
        (put("clip_id", np.nan), "clip_id", 6, "not text"),
        (put("group", ""), "group", 6, "empty"),
        (put("source", "currated"), "source", 6, "choose from|did you mean"),
        (put("labels", "Bell"), "labels", 6, "not a tuple"),
        (put("labels", None), "labels", 6, "not a tuple"),
        (put("labels", ("Bell",), row=-1), "labels", 56, "test clip .* has labels"),
        (put("end_s", 0.0), "end_s", 6, "not a stretch"),
        (put("end_s", -1.0), "end_s", 6, "not a stretch"),
        (put("end_s", np.inf), "end_s", 6, "not a stretch"),
        (put("start_s", -0.1), "end_s", 6, "not a stretch"),
        (lambda c: put("start_s", 0.2)(put("end_s", 0.1)(c)), "end_s", 6, "not a stretch"),
        (put("end_s", 9.0), "end_s", 6, "lies outside"),
        (put("start_s", 9.0), "end_s", 6, "lies outside"),
        (put("fold", 0.5), "fold", 6, "whole number"),
        (put("fold", -2), "fold", 6, "whole number"),
    ],
)
def test_clip_tables_are_checked(clips, change, field, row, said):
    classes = load_classes(clips)
    assert check_clips(clips, classes) is clips
    with pytest.raises(AudiotagError, match=said) as e:
        check_clips(change(clips), classes)
    assert (e.value.field, e.value.row) == (field, row)


def load_classes(clips):
    return sorted({c for o in clips.labels for c in o})


def test_good_times_pass(clips):
    timed = clips.copy()
    timed.loc[3, ["start_s", "end_s"]] = 0.05, 0.15
    timed.loc[4, "end_s"] = 0.1
    check_clips(timed, load_classes(clips))
    check_clips(clips[:0], ["A"])


def test_targets_refuse_a_stranger(clips):
    with pytest.raises(AudiotagError, match="did you mean"):
        targets(clips, [c.replace("Bell", "Bel") for c in load_classes(clips)])


# --- the submission ---------------------------------------------------------------------------------------------------


def test_submission_has_the_template_s_form_whatever_the_order_of_scores(root):
    comp = load_competition(root)
    scores = np.random.default_rng(0).random((8, 8))
    by_row = comp.submission(scores)
    ids = list(comp.of("test").clip_id)
    by_id = comp.submission({o: scores[ids.index(o)] for o in reversed(ids)})
    pd.testing.assert_frame_equal(by_row, by_id)
    assert list(by_row.columns) == next(csv.reader(open(root / "sample_submission.csv")))
    assert np.array_equal(by_row[list(comp.classes)].to_numpy(), scores)


@pytest.mark.parametrize(
    "spoil,said",
    [
        (lambda s, ids: s[:-1], "shape"),
        (lambda s, ids: s[:, :-1], "shape"),
        (lambda s, ids: s[0], "shape"),
        (lambda s, ids: {ids[0]: s[0, :3]}, "shape"),
        (lambda s, ids: {**dict(zip(ids, s)), "x.wav": s[0]}, "'x.wav' is not a test clip"),
        (lambda s, ids: np.where(s == s.max(), np.nan, s), "NaN"),
        (lambda s, ids: np.where(s == s.max(), np.inf, s), "NaN or infinite"),
        (lambda s, ids: [["a"] * 8] * 8, "shape"),
    ],
)
def test_bad_scores_are_refused(pristine, spoil, said):
    comp = load_competition(pristine)
    with pytest.raises(AudiotagError, match=said):
        comp.submission(spoil(np.random.default_rng(0).random((8, 8)), list(comp.of("test").clip_id)))


# --- CCF 2020: a folder a class, a label a row ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    return make_universal(tmp_path_factory.mktemp("universal") / "c", n_train=24, n_test=6, n_speakers=3)


@pytest.fixture
def words(spoken, tmp_path):
    return shutil.copytree(spoken, tmp_path / "c")


def test_real_words_are_grouped_by_speaker(sample_set):
    root = sample_set("speech")
    comp = load_competition(root, "universal2020")
    files = sorted((root / "train").glob("*/*.wav"))
    clips = comp.of("curated")
    assert sorted(clips.path) == sorted(map(str, files)) and len(clips) == 1530
    by_path = clips.set_index("path")
    assert all(by_path.group[str(f)] == f.name.split("_nohash_")[0] for f in files)
    assert all(by_path.labels[str(f)] == (f.parent.name,) for f in files)
    assert comp.classes == tuple(sorted(p.name for p in (root / "train").iterdir()))
    template = pd.read_csv(root / "submission.csv", dtype=str)
    assert list(comp.of("test").clip_id) == list(template.file_name) and comp.columns == tuple(template.columns)
    out = comp.submission(np.tile(np.arange(9.0), (540, 1)))
    assert set(out.label) == {"zero"} and list(out.columns) == ["file_name", "label"]
    assert comp.notes == () and (comp.metric, comp.label_column) == ("accuracy", "label")


def test_a_label_submission_names_the_best_class(words):
    comp = load_competition(words, "universal2020")
    scores = np.random.default_rng(0).random((6, 4))
    out = comp.submission(scores)
    assert list(out.label) == [comp.classes[i] for i in scores.argmax(1)]
    assert np.array_equal(comp.read_scores(out), np.eye(4)[scores.argmax(1)])
    assert set(comp.submission({}).label) == {comp.classes[int(np.argmax(class_prior(comp.clips, comp.classes)))]}


@pytest.mark.parametrize("header,rows", [("label,file_name", "{1},{0}"), ("file_name,label", "{0},{1}")])
def test_the_template_s_order_of_columns_is_kept(words, header, rows):
    text = [header, *(rows.format(*o.split(",")) for o in lines(words / "submission.csv")[1:])]
    (words / "submission.csv").unlink()
    (words / "sample_submission.csv").write_text("\n".join(text))  # the other name that competitions give it
    comp = load_competition(words, "universal2020")
    assert ",".join(comp.submission(np.eye(6, 4)).columns) == header and comp.id_column == "file_name"


UNIVERSAL = {
    "no template": (lambda r: (r / "submission.csv").unlink(), "submission.csv", "file not found"),
    "scores wanted": (edit("submission.csv", 0, "file_name,Bell"), "submission.csv", "no column 'label'"),
    "a third column": (
        lambda r: (r / "submission.csv").write_text("\n".join(o + ",x" for o in lines(r / "submission.csv"))), "submission.csv", "columns must be"),
    "no training part": (lambda r: shutil.rmtree(r / "train"), "train", "classes are the folders"),
    "empty training part": (lambda r: [p.unlink() for p in r.glob("train/*/*.wav")], "train", "no sound files"),
    "another test": (lambda r: [p.rename(p.with_name("x" + p.name)) for p in list((r / "test").iterdir())], "submission.csv", "none of 6 ids"),
}  # fmt: skip


@pytest.mark.parametrize("fault", UNIVERSAL)
def test_faults_of_a_label_competition(words, fault):
    change, file, said = UNIVERSAL[fault]
    change(words)
    with pytest.raises(AudiotagError, match=said) as e:
        load_competition(words, "universal2020")
    assert str(e.value.file) == str(words / file)


def test_what_is_odd_in_the_folders_is_said(words):
    (words / "train" / "_background_noise_").mkdir()
    (words / "train" / "Empty").mkdir()
    one = next((words / "train" / "Bell").iterdir())
    shutil.copy(one, words / "train" / "Bell" / "nameless.wav")
    (words / "train" / "Bell" / "notes.txt").write_text("no sound")
    comp = load_competition(words, "universal2020")
    assert "Empty" in comp.classes and "_background_noise_" not in comp.classes
    assert any("1 class has no clips: Empty" in o for o in comp.notes) and any(
        "1 file does not name" in o for o in comp.notes
    )
    twins = comp.clips[comp.clips.path.isin([str(one), str(one.with_name("nameless.wav"))])]
    assert twins.group.nunique() == 1  # the same bytes: one group, whoever spoke


def test_the_bundle_s_classes_stand_in_for_a_missing_training_part(words):
    known = load_competition(words, "universal2020").classes
    shutil.rmtree(words / "train")
    comp = load_competition(words, "universal2020", train=False, classes=known)
    assert comp.classes == known and len(comp.clips) == 6
    assert len(set(comp.submission({}).label)) == 1


@pytest.mark.parametrize(
    "spoil,said",
    [
        (lambda t: t.drop(columns="label"), "no column 'label'"),
        (lambda t: t.assign(label="Bel"), "did you mean 'Bell'.*"),
        (lambda t: t.assign(label=""), "'' is not a class"),
    ],
)
def test_labels_that_are_none_are_not_read(words, spoil, said):
    comp = load_competition(words, "universal2020")
    with pytest.raises(AudiotagError, match=said):
        comp.read_scores(spoil(comp.submission({})))


@pytest.mark.parametrize("bad", ["", "nan", "inf", "a"])
def test_cells_that_are_no_scores_are_not_read(root, bad):
    comp = load_competition(root)
    table = comp.submission(np.full((8, 8), 0.5)).astype(str)
    assert np.array_equal(comp.read_scores(table), np.full((8, 8), 0.5))
    table.iloc[3, 2] = bad
    with pytest.raises(AudiotagError, match="not a finite number") as e:
        comp.read_scores(table)
    assert e.value.row == 4 and e.value.field == comp.classes[1]


# --- RFCX 2021: boxes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forest_(tmp_path_factory):
    return make_rainforest(tmp_path_factory.mktemp("rainforest") / "c", n_train=3, n_test=2, seconds=6.0)


@pytest.fixture
def forest(forest_, tmp_path):
    return shutil.copytree(forest_, tmp_path / "c")


def test_real_boxes_are_read_as_an_independent_reader_reads_them(sample_set):
    root = sample_set("rainforest")
    comp = load_competition(root, "rainforest2021")
    assert tuple(comp.clips.columns) == (*CLIP_COLUMNS, "f_min", "f_max") and comp.notes == ()
    for part, source in (("tp", "curated"), ("fp", "negative")):
        listed, clips = pd.read_csv(root / f"train_{part}.csv", dtype={"recording_id": str}), comp.of(source)
        assert list(clips.group) == list(listed.recording_id) == [p.rsplit("/", 1)[1][:-5] for p in clips.path]
        assert [o for (o,) in clips.labels] == [f"s{o}" for o in listed.species_id]
        for ours, theirs in (("start_s", "t_min"), ("end_s", "t_max"), ("f_min", "f_min"), ("f_max", "f_max")):
            assert np.array_equal(clips[ours], listed[theirs])
    template = pd.read_csv(root / "sample_submission.csv", dtype=str)
    assert list(comp.of("test").clip_id) == list(template.recording_id) and len(comp.of("unlabeled")) == 0
    whole = recordings(comp.clips)
    assert (
        len(whole) == 56
        and whole.clip_id.is_unique
        and sorted(whole.clip_id[:36]) == sorted(p.stem for p in (root / "train").iterdir())
    )
    said = (
        pd.read_csv(root / "train_tp.csv", dtype=str)
        .groupby("recording_id")
        .species_id.agg(lambda o: tuple(sorted({f"s{i}" for i in o})))
    )
    assert all(said.get(o.clip_id, ()) == o.labels for o in whole.itertuples())


def cell(name, row, column, value):
    def change(root):
        table = pd.read_csv(root / name, dtype=str)
        table.loc[row - 1, column] = value
        table.to_csv(root / name, index=False)

    return change


BOXES = {
    "ends before it starts": (cell("train_tp.csv", 2, "t_max", "0.0001"), "train_tp.csv", 2, "not a stretch"),
    "has no length": (lambda r: cell("train_fp.csv", 2, "t_max", pd.read_csv(r / "train_fp.csv", dtype=str).t_min[1])(r), "train_fp.csv", 2, "not a stretch"),
    "starts early": (cell("train_tp.csv", 2, "t_min", "-0.2"), "train_tp.csv", 2, "not a stretch"),
    "outside": (cell("train_fp.csv", 3, "t_max", "6.2"), "train_fp.csv", 3, "lies outside of .*which has 6.00 s"),
    "far outside": (lambda r: (cell("train_tp.csv", 1, "t_min", "70")(r), cell("train_tp.csv", 1, "t_max", "71")(r)), "train_tp.csv", 1, "lies outside"),
    "no number": (cell("train_tp.csv", 1, "t_min", "soon"), "train_tp.csv", 1, "'soon' is not a finite number"),
    "nan": (cell("train_tp.csv", 1, "t_max", "NaN"), "train_tp.csv", 1, "not a finite number"),
    "empty": (cell("train_tp.csv", 1, "t_max", ""), "train_tp.csv", 1, "not a finite number"),
    "inf": (cell("train_tp.csv", 1, "f_max", "inf"), "train_tp.csv", 1, "not a finite number"),
    "no band": (cell("train_fp.csv", 2, "f_max", "1"), "train_fp.csv", 2, "not a band"),
    "species": (cell("train_fp.csv", 2, "species_id", "9"), "train_fp.csv", 2, "label 's9' is not a class"),
    "no file": (lambda r: (r / "train" / (pd.read_csv(r / "train_tp.csv", dtype=str).recording_id[0] + ".flac")).unlink(), "train_tp.csv", 1, "not in the folder"),
    "way out": (cell("train_tp.csv", 2, "recording_id", "../test/a"), "train_tp.csv", 2, "leads out"),
    "column": (lambda r: pd.read_csv(r / "train_tp.csv", dtype=str).rename(columns={"t_min": "tmin"}).to_csv(r / "train_tp.csv", index=False),
               "train_tp.csv", None, "did you mean 'tmin'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BOXES)
def test_faults_of_boxes_are_named_with_their_row(forest, fault):
    change, file, row, said = BOXES[fault]
    change(forest)
    with pytest.raises(AudiotagError, match=said) as e:
        load_competition(forest, "rainforest2021")
    assert str(e.value.file) == str(forest / file) and e.value.row == row, str(e.value)


def test_recordings_that_nobody_names_are_unlabeled(forest):
    tp, fp = (pd.read_csv(forest / f"train_{o}.csv", dtype=str) for o in ("tp", "fp"))
    name = tp.recording_id[0]
    tp[tp.recording_id != name].to_csv(forest / "train_tp.csv", index=False)
    comp = load_competition(forest, "rainforest2021")
    mine = comp.clips[comp.clips.group == name]
    assert (
        set(mine.source) == {"negative"}
        and recordings(mine).labels.tolist() == [()]
        and recordings(mine).source.tolist() == ["negative"]
    )
    fp[fp.recording_id != name].to_csv(forest / "train_fp.csv", index=False)
    comp = load_competition(forest, "rainforest2021")
    assert list(comp.of("unlabeled").clip_id) == [name] and comp.of("unlabeled").path.map(os.path.isfile).all()
    assert list(assign_folds(comp.clips, n_folds=2, seed=0).query("source=='unlabeled'").fold) == [-1]


def test_a_larger_hidden_test_of_recordings(forest):
    one = next((forest / "test").iterdir())
    shutil.copy(one, forest / "test" / "1234e5678.flac")
    (forest / "test" / "notes.txt").write_text("no sound")
    comp = load_competition(forest, "rainforest2021", train=False)
    ids = [o.split(",")[0] for o in lines(forest / "sample_submission.csv")[1:]]
    assert list(comp.of("test").clip_id) == [*ids, "1234e5678"] and comp.of("test").path.map(os.path.isfile).all()


def test_negative_clips_only_count_where_they_say_something(forest):
    comp = load_competition(forest, "rainforest2021")
    negative, curated = comp.of("negative"), comp.of("curated")
    assert targets(negative, comp.classes).sum() == 0
    w = target_weights(negative, comp.classes)
    assert (w.sum(1) == 1).all() and [comp.classes[i] for i in w.argmax(1)] == [o for (o,) in negative.labels]
    assert (target_weights(curated, comp.classes) == 1).all() and (targets(curated, comp.classes).sum(1) == 1).all()


# --- BirdCLEF: windows of soundscapes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scapes_(tmp_path_factory):
    return make_soundscapes(tmp_path_factory.mktemp("soundscapes") / "c", n_train=16, seconds=15.0)


@pytest.fixture
def scapes(scapes_, tmp_path):
    return shutil.copytree(scapes_, tmp_path / "c")


def ids_of(root, **kw):
    return list(load_competition(root, "birdclef2024", **kw).of("test").clip_id)


def test_real_soundscapes_are_read_as_an_independent_reader_reads_them(sample_set):
    root = sample_set("soundscape")
    comp = load_competition(root, "birdclef2024")
    assert tuple(comp.clips.columns) == (*CLIP_COLUMNS, "author", "site", "secondary")
    assert comp.notes == () and comp.metric == "macro_auc"
    listed = pd.read_csv(root / "train.csv", dtype=str)
    clips = comp.of("curated")
    assert list(clips.clip_id) == list(listed.filename) and [o for (o,) in clips.labels] == list(listed.primary_label)
    named = [tuple(c for c in comp.classes if f"'{c}'" in o) for o in listed.secondary_labels]
    assert [tuple(sorted(o)) for o in clips.secondary] == [tuple(sorted(o)) for o in named] and sum(
        map(len, named)
    ) == 13
    template = pd.read_csv(root / "sample_submission.csv", dtype=str)
    test = comp.of("test")
    assert list(test.clip_id) == list(template.row_id) and comp.classes == tuple(template.columns[1:])
    assert all(
        o.clip_id == f"{o.group}_{o.end_s:.0f}" and o.end_s - o.start_s == 5 and o.path.endswith(f"{o.group}.ogg")
        for o in test.itertuples()
    )
    free = comp.of("unlabeled")
    assert len(free) == 120 and free.group.nunique() == 10 and (free.end_s - free.start_s == 5).all()


def test_rows_are_made_from_the_files_on_disk(scapes):
    ids = ids_of(scapes)
    assert ids == [o.split(",")[0] for o in lines(scapes / "sample_submission.csv")[1:]]
    one = scapes / "test_soundscapes" / "SYNTH_test_0001.ogg"
    shutil.copy(one, one.with_name("another_one_7.ogg"))
    shutil.copy(one, one.with_name(".hidden.ogg"))
    one.with_name("readme.txt").write_text("there are more in the rerun")
    assert ids_of(scapes) == [*ids, *(f"another_one_7_{e}" for e in (5, 10, 15))]
    head = lines(scapes / "sample_submission.csv")[0]
    for rows in ([], ["soundscape_1_5,0,0,0,0"]):  # a template without rows, and a dummy
        (scapes / "sample_submission.csv").write_text("\n".join([head, *rows]) + "\n")
        assert sorted(ids_of(scapes)) == sorted([*ids, *(f"another_one_7_{e}" for e in (5, 10, 15))])


def test_a_recording_of_the_template_that_is_gone_keeps_its_rows(scapes):
    ids = ids_of(scapes)
    (scapes / "test_soundscapes" / "SYNTH_test_0002.ogg").unlink()
    comp = load_competition(scapes, "birdclef2024", train=False)
    assert list(comp.of("test").clip_id) == ids and "1 recording of the template" in comp.notes[0]


@pytest.mark.parametrize("how", ["empty", "gone", "only a readme", "no rows either"])
def test_no_soundscapes_at_all(scapes, how):
    ids = ids_of(scapes)
    shutil.rmtree(scapes / "test_soundscapes")
    if how in ("empty", "only a readme"):
        (scapes / "test_soundscapes").mkdir()
    if how == "only a readme":
        (scapes / "test_soundscapes" / "readme.txt").write_text("in the rerun there are more")
    if how == "no rows either":
        (scapes / "sample_submission.csv").write_text(lines(scapes / "sample_submission.csv")[0] + "\n")
        ids = []
    comp = load_competition(scapes, "birdclef2024", train=False)
    assert list(comp.of("test").clip_id) == ids
    assert comp.submission({}).shape == (len(ids), 5) and comp.submission(np.zeros((len(ids), 4))).shape == (
        len(ids),
        5,
    )


@pytest.mark.parametrize(
    "seconds,ends,last",
    [(3.0, [5], 3.0), (5.2, [5], 5.0), (5.6, [5, 10], 5.6), (15.0, [5, 10, 15], 15.0), (14.7, [5, 10, 15], 14.7)],
)
def test_the_length_decides_how_many_windows(scapes, seconds, ends, last):
    sf.write(scapes / "test_soundscapes" / "new.ogg", np.zeros(round(seconds * 16000)) + 0.1, 16000)
    test = load_competition(scapes, "birdclef2024", train=False).of("test").query("group == 'new'")
    assert [o.rsplit("_", 1)[1] for o in test.clip_id] == [str(e) for e in ends]
    assert test.end_s.iloc[-1] == pytest.approx(last) and list(test.start_s) == [e - 5 for e in ends]


def test_a_broken_soundscape_gets_as_many_rows_as_the_others(scapes):
    (scapes / "test_soundscapes" / "broken.ogg").write_bytes(b"OggS" + bytes(100))
    comp = load_competition(scapes, "birdclef2024", train=False)
    assert [o for o in comp.of("test").clip_id if o.startswith("broken")] == ["broken_5", "broken_10", "broken_15"]
    assert "1 recording cannot be read" in comp.notes[0]
    (scapes / "train_soundscapes" / "silent.ogg").write_bytes(b"")
    assert len(load_competition(scapes, "birdclef2024").of("unlabeled")) == 9


def test_the_other_years_names(scapes):
    before = load_competition(scapes, "birdclef2024").clips
    (scapes / "train.csv").rename(scapes / "train_metadata.csv")
    (scapes / "train_soundscapes").rename(scapes / "unlabeled_soundscapes")
    (scapes / "taxonomy.csv").unlink()
    after = load_competition(scapes, "birdclef2024").clips
    pd.testing.assert_frame_equal(after.drop(columns="path"), before.drop(columns="path"))
    table = pd.read_csv(scapes / "train_metadata.csv", dtype=str)
    table.assign(filename=table.filename.str.split("/").str[1]).to_csv(scapes / "train_metadata.csv", index=False)
    pd.testing.assert_frame_equal(load_competition(scapes, "birdclef2024").clips, after)


def test_secondary_labels_as_share_and_as_mask(scapes):
    cell("train.csv", 2, "secondary_labels", "['bell0', 'nobody', 'bell0', '2000']")(scapes)
    comp = load_competition(scapes, "birdclef2024")
    row = comp.of("curated")[1:2]
    # not itself, not twice, not a stranger
    assert row.labels.item() == ("2000",) and row.secondary.item() == ("bell0",)
    assert "1 secondary label is not a class and is left out: nobody" in comp.notes[0]
    at = [comp.classes.index(o) for o in ("2000", "bell0")]
    assert list(targets(row, comp.classes)[0, at]) == [1, 0] and list(
        targets(row, comp.classes, secondary=0.25)[0, at]
    ) == [1, 0.25]
    assert list(target_weights(row, comp.classes, secondary=0)[0]) == [0 if i == at[1] else 1 for i in range(4)]
    assert (target_weights(row, comp.classes) == 1).all()


BIRDS = {
    "secondary": (cell("train.csv", 3, "secondary_labels", "[74113"), "train.csv", 3, "not a list of labels"),
    "code": (cell("train.csv", 3, "secondary_labels", "__import__('os').getcwd()"), "train.csv", 3, "not a list of labels"),
    "numbers": (cell("train.csv", 3, "secondary_labels", "[74113]"), "train.csv", 3, "not a list of labels"),
    "primary": (cell("train.csv", 3, "primary_label", "birdy"), "train.csv", 3, "'birdy' is not a class"),
    "no file": (lambda r: sorted((r / "train_audio").rglob("*.ogg"))[0].unlink(), "train.csv", None, "1 of 22 listed files"),
    "way out": (cell("train.csv", 2, "filename", "../a.ogg"), "train.csv", 2, "leads out"),
    "nothing": (lambda r: (r / "train.csv").write_text(lines(r / "train.csv")[0] + "\n"), "train.csv", None, "lists no clips"),
    "row id": (edit("sample_submission.csv", 2, "SYNTH_test,0,0,0,0"), "sample_submission.csv", 2, "not <recording>_<end second>"),
    "early row": (edit("sample_submission.csv", 2, "SYNTH_test_0001_3,0,0,0,0"), "sample_submission.csv", 2, "not <recording>_<end second>"),
    "row twice": (edit("sample_submission.csv", 2, "{above},0,0,0,0"), "sample_submission.csv", 2, "there twice"),
    "way out of test": (edit("sample_submission.csv", 2, "../a_5,0,0,0,0"), "test_soundscapes", 2, "leads out"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BIRDS)
def test_faults_of_soundscapes_are_named(scapes, fault):
    change, file, row, said = BIRDS[fault]
    change(scapes)
    with pytest.raises(AudiotagError, match=said) as e:
        load_competition(scapes, "birdclef2024")
    assert str(e.value.file) == str(scapes / file) and (row is None or e.value.row == row), str(e.value)


def test_rows_of_the_template_behind_the_end_of_a_file_are_kept(scapes):
    with open(scapes / "sample_submission.csv", "a") as f:
        f.write("SYNTH_test_0001_20,0,0,0,0\n")
    test = load_competition(scapes, "birdclef2024", train=False).of("test").set_index("clip_id")
    assert test.index[-1] == "SYNTH_test_0001_20" and (test.start_s.iloc[-1], test.end_s.iloc[-1]) == (15, 20)


# --- the template is echoed -------------------------------------------------------------------------------------------

NAMES = st.text("ab é\u0301,;\"'.Ö鳥-", min_size=1, max_size=6).filter(
    lambda name: name.strip(" .") and ".." not in name
)
NAMES = st.one_of(
    NAMES, st.sampled_from([" a", "a ", "NA", "007", "1e5", "row", "a\tb", '"', "True", "a,b", "e\u0301"])
)


def write_template(path, header, ids):
    "A template, and how a scorer reads its ids and its header."
    with open(path, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([header, *([id_, *["0.5"] * (len(header) - 1)] for id_ in ids)])
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return list(table.iloc[:, 0]), list(table.columns)


def echoes(root, layout, ids, header):
    "Load the folder, and let the doctor see a submission for it; the competition."
    comp = load_competition(root, layout, train=False)
    assert list(comp.of("test").clip_id)[: len(ids)] == ids and list(comp.columns) == header
    out = comp.submission(np.random.default_rng(0).random((len(comp.of("test")), len(comp.classes))))
    out.to_csv(root / "out.csv", index=False)
    assert not refused(check_submission(root / "out.csv", comp))
    again = pd.read_csv(root / "out.csv", dtype=str, keep_default_na=False)
    assert list(again.iloc[:, 0])[: len(ids)] == ids and list(again.columns) == header
    assert comp.read_scores(again).shape == out.iloc[:, 1:].shape
    return comp


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ids=st.lists(NAMES, min_size=1, max_size=5, unique_by=lambda name: name.strip()),
    classes=st.lists(NAMES.filter(str.strip), min_size=1, max_size=4, unique_by=lambda name: name.strip()),
    on_disk=st.sets(st.integers(0, 4)),
    layout=st.sampled_from([("freesound2019", "fname", ".wav"), ("rainforest2021", "recording_id", ".flac")]),
)
def test_the_ids_of_a_template_are_the_rows(tmp_path, ids, classes, on_disk, layout):
    name, first, suffix = layout
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    (tmp_path / "c" / "test").mkdir(parents=True)
    classes = [c for c in classes if c.strip() != first]
    ids = [id_ + suffix for id_ in ids] if name == "freesound2019" else ids
    if not classes or "" in [c.strip() for c in classes]:
        return
    ids, header = write_template(tmp_path / "c" / "sample_submission.csv", [first, *classes], ids)
    there = [id_ for i, id_ in enumerate(ids) if i in on_disk]
    for id_ in there:
        (tmp_path / "c" / "test" / (id_ if suffix in id_ else id_ + suffix)).write_bytes(b"")
    comp = echoes(tmp_path / "c", name, ids, header)
    assert len(comp.of("test")) == len(ids)
    assert [os.path.exists(path) for path in comp.of("test").path] == [id_ in there for id_ in ids]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stems=st.lists(NAMES.filter(lambda name: name[0] not in ". "), min_size=1, max_size=3, unique_by=str.strip),
    seconds=st.lists(st.sampled_from([0, 3, 10, 21]), min_size=3, max_size=3),
    ends=st.lists(st.tuples(st.integers(0, 2), st.sampled_from([5, 10, 15, 20, 25, 7, 33])), min_size=1, max_size=9, unique=True),
    form=st.sampled_from(["{}_{}", "{}_0{}"]),
)  # fmt: skip
def test_the_windows_of_a_template_are_the_rows(tmp_path, stems, seconds, ends, form):
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    folder = tmp_path / "c" / "test_soundscapes"
    folder.mkdir(parents=True)
    for stem, n in zip(stems, seconds):  # 0 s: a file that is not there
        if n:
            sf.write(folder / f"{stem}.ogg", np.full(n * 1000, 0.1), 8000, format="OGG", subtype="VORBIS")
    ids = [form.format(stems[i % len(stems)], end) for i, end in ends]
    ids, header = write_template(tmp_path / "c" / "sample_submission.csv", ["row_id", "a b", "c"], dict.fromkeys(ids))
    named = {id_.rpartition("_")[0] for id_ in ids}
    present = {stem for stem, n in zip(stems, seconds) if n}
    if present and not named & present:
        return  # a dummy, whose rows are left out
    test = echoes(tmp_path / "c", "birdclef2024", ids, header).of("test")
    assert set(test.group[: len(ids)]) <= named and not set(test.group[len(ids) :]) & named


def test_ids_and_files_may_differ_in_spaces_and_in_the_form_of_an_accent(root):
    ids, first = [o.split(",")[0] for o in lines(root / "sample_submission.csv")[1:3]], " e\u0301t\u00e9.wav"
    (root / "test" / ids[0]).rename(root / "test" / "\u00e9te\u0301.wav")
    text = (root / "sample_submission.csv").read_text().replace(ids[0], first).replace(ids[1], ids[1] + " ")
    (root / "sample_submission.csv").write_text(text)
    test = load_competition(root, train=False).of("test")
    assert list(test.clip_id[:2]) == [first, ids[1] + " "] and len(test) == 8
    assert all(map(os.path.exists, test.path))


# --- what one tool writes, the others read ----------------------------------------------------------------------------

CLASSES = st.lists(
    st.one_of(st.text("ab ,\"'é;\n", min_size=1, max_size=5), st.sampled_from(["a,b", "e\u0301", "é", '"a" ,b', " a", "NA"])),
    min_size=1, max_size=6, unique=True,
).map(lambda names: [name for name in names if name.strip()])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(CLASSES, st.randoms())
def test_labels_of_any_name_survive_a_cell(classes, g):
    labels = tuple(g.sample(classes, g.randint(0, len(classes))))
    assert split_labels(join_labels(labels), classes) == labels


@pytest.mark.parametrize(
    "cell,labels",
    [
        ("Bark,Meow", ("Bark", "Meow")),
        (" Bark , Meow ", ("Bark", "Meow")),
        ("Door, slam", ("Door, slam",)),
        ("Bark,Door, slam,Meow", ("Bark", "Door, slam", "Meow")),
        ('"Door, slam",Bark', ("Door, slam", "Bark")),
        ('7" single', ('7" single',)),
        ("Caf\u00e9,Bark", ("Cafe\u0301", "Bark")),
        ("Bark,Bork", ("Bark", "Bork")),
        ("", ()),
    ],
)
def test_cells_with_several_labels(cell, labels):
    assert split_labels(cell, ["Bark", "Meow", "Door, slam", '7" single', "Cafe\u0301"]) == labels


def test_labels_of_training_tables_may_be_spelled_in_another_form(root):
    template = pd.read_csv(root / "sample_submission.csv", dtype=str)
    first, second = template.columns[1:3]
    new = {first: "Caf\u00e9", second: f"{second}, loud"}
    template.rename(columns=new).to_csv(root / "sample_submission.csv", index=False)
    new[first] = "Cafe\u0301"
    for path in (root / "train_curated.csv", root / "train_noisy.csv"):
        cells = pd.read_csv(path, dtype=str)
        cells["labels"] = [",".join(new.get(c, c) for c in cell.split(",")) for cell in cells["labels"]]
        cells.to_csv(path, index=False)
    comp = load_competition(root)
    assert comp.classes[:2] == ("Caf\u00e9", f"{second}, loud")
    assert targets(comp.of("curated", "noisy"), comp.classes)[:, :2].any(0).all()


def test_boxes_that_are_there_twice_are_named(forest):
    rows = lines(forest / "train_tp.csv")
    (forest / "train_tp.csv").write_text("\n".join([*rows, rows[1]]) + "\n")
    with open(forest / "train_fp.csv", "a") as f:
        f.write(rows[2] + "\n")
    notes = " ".join(load_competition(forest, "rainforest2021").notes)
    assert f"2 rows of train_tp.csv repeat each other and count as often as they are there: 1, {len(rows)}" in notes
    assert "1 box is both in train_tp.csv and in train_fp.csv" in notes and "row 2 and row" in notes


def test_clips_of_one_author_share_a_group(scapes):
    table = pd.read_csv(scapes / "train.csv", dtype=str)
    table["author"] = [f"author {i % 11}" for i in range(len(table) - 1)] + [""]
    table.to_csv(scapes / "train.csv", index=False)
    clips = load_competition(scapes, "birdclef2024").of("curated")
    assert (clips.groupby(list(table.author)).group.nunique().drop("") == 1).all() and clips.group.iloc[
        -1
    ] == clips.clip_id.iloc[-1]
    table.assign(author="one").to_csv(scapes / "train.csv", index=False)  # too few to keep them apart
    assert load_competition(scapes, "birdclef2024").of("curated").group.nunique() == len(table)


# ---- endings ----------------------------------------------------------------------------------------------------


def put_sound(path, k=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    x = (0.3 * np.random.default_rng(k).standard_normal(8000)).astype(np.float32)
    kind = path.suffix.lower()[1:]
    kinds = {
        "opus": ("OGG", "OPUS"),
        "mp3": ("MP3", "MPEG_LAYER_III"),
        "ogg": ("OGG", "VORBIS"),
        "oga": ("OGG", "VORBIS"),
    }
    container, subtype = kinds.get(kind, ({"aif": "AIFF", "xyz": "WAV"}.get(kind, kind.upper()), "PCM_16"))
    sf.write(path, x, 8000, format=container, subtype=subtype)


ENDINGS = "wav", "WAV", "flac", "FLAC", "mp3", "ogg", "Opus", "aif", "aiff", "au", "caf", "w64", "oga"


def test_every_layout_takes_every_ending(tmp_path):
    speech, birds, forest, fs = (tmp_path / name for name in ("speech", "birds", "forest", "fs"))
    for i, ending in enumerate(ENDINGS):
        put_sound(speech / "train" / "ab"[i % 2] / f"{i}.{ending}", i)
        put_sound(speech / "test" / f"{i}.{ending}", i)
        put_sound(birds / "test_soundscapes" / f"r{i}.{ending}", i)
        put_sound(forest / "test" / f"r{i}.{ending}", i)
        put_sound(fs / "test" / f"{i}.{ending}", i)
    names = [f"{i}.{ending}" for i, ending in enumerate(ENDINGS)]
    (speech / "submission.csv").write_text("file_name,label\n" + "".join(f"{n},a\n" for n in names[:5]))
    (fs / "sample_submission.csv").write_text("fname,a,b\n" + "".join(f"{n},0,0\n" for n in names[:5]))
    (birds / "sample_submission.csv").write_text("row_id,a,b\nr0_5,0,0\n")
    (forest / "sample_submission.csv").write_text("recording_id,s0,s1\nr1,0,0\n")
    for other in (speech / "train" / "a" / "notes.txt", *(f / "README.md" for f in (speech / "test", fs / "test"))):
        other.write_text("not a sound")
    for other in (birds / "test_soundscapes" / "x.csv", forest / "test" / "y.xls"):
        other.write_text("not a sound")
    c = load_competition(speech)
    assert sorted(c.of("curated").clip_id) == sorted(f"{'ab'[i % 2]}/{n}" for i, n in enumerate(names))
    assert set(c.of("test").clip_id) == set(names)
    said = " ".join(c.notes)
    assert "a/notes.txt" in said and "README.md" in said and "no file" not in said
    for root, n in ((birds, len(ENDINGS)), (forest, len(ENDINGS)), (fs, len(ENDINGS))):
        c = load_competition(root, train=False)
        assert len(c.of("test")) == n and all(Path(p).is_file() for p in c.of("test").path), c
        assert "left out" in " ".join(c.notes) and "no file" not in " ".join(c.notes)


def test_an_id_that_is_a_file_is_there_whatever_its_ending(tmp_path):
    put_sound(tmp_path / "test" / "a.xyz")
    (tmp_path / "sample_submission.csv").write_text("fname,a,b\na.xyz,0,0\n")
    assert not load_competition(tmp_path, train=False).notes


def test_two_recordings_that_differ_only_in_the_ending_are_noted(tmp_path):
    for name in ("r.ogg", "r.flac"):
        put_sound(tmp_path / "test_soundscapes" / name)
    (tmp_path / "sample_submission.csv").write_text("row_id,a,b\n")
    c = load_competition(tmp_path, train=False)
    assert list(c.of("test").clip_id) == ["r_5"] and "r.ogg is left out: r.flac" in " ".join(c.notes)
