"Damaged submissions, and whether the doctor's verdict is that of a strict scorer."

import io
import math
import os
import random
import string

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiotag.data.competitions import Competition, clip_table, load_competition
from audiotag.data.submission import _explain_cell, check_submission, refused
from audiotag.audio.synth import make_competition

N = 9


@pytest.fixture(scope="module")
def comp(tmp_path_factory):
    root = tmp_path_factory.mktemp("doctor") / "data"
    make_competition(root, n_curated=4, n_noisy=4, n_test=N, sample_rate=16000, seconds=(0.3, 0.4))
    return load_competition(root, train=False)


@pytest.fixture(scope="module")
def good(comp):
    return comp.submission(np.random.default_rng(0).random((N, len(comp.classes)))).to_csv(index=False)


def verdict(tmp_path, comp, content):
    path = tmp_path / "s.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return check_submission(path, comp)


def strict(path, comp):
    "A scorer: what Kaggle's metric does before it computes anything. True if it goes on."
    try:
        t = pd.read_csv(path, dtype={comp.id_column: str}, keep_default_na=True)
    except (ValueError, OSError, UnicodeError):
        return False
    want = list(comp.template.columns)
    if list(t.columns) != want or len(t) != N or set(t[comp.id_column]) != set(comp.of("test").clip_id):
        return False
    x = t[want[1:]]
    return all(pd.api.types.is_numeric_dtype(d) and not pd.api.types.is_bool_dtype(d) for d in x.dtypes) and bool(
        np.isfinite(x.to_numpy(float)).all()
    )


def rows(good):
    return good.splitlines(True)


HARMLESS = {
    "as written": lambda g: g,
    "Windows line ends": lambda g: g.replace("\n", "\r\n"),
    "no line end at the end": lambda g: g.rstrip("\n"),
    "a byte order mark": lambda g: "\ufeff" + g,
    "blank lines at the end": lambda g: g + "\n\n",
    "quoted ids": lambda g: g.replace(".wav,", '.wav",').replace("\n", '\n"').rstrip('"'),
    "rows in another order": lambda g: "".join([rows(g)[0], *rows(g)[:0:-1]]),
    "integers": lambda g: rows(g)[0] + "".join(o.split(",")[0] + ",1" * (o.count(",")) + "\n" for o in rows(g)[1:]),
    "exponents": lambda g: "".join(
        [rows(g)[0], rows(g)[1].split(",")[0] + ",1e-3" * rows(g)[1].count(",") + "\n", *rows(g)[2:]]
    ),
    "outside of 0 to 1": lambda g: "".join(
        [rows(g)[0], rows(g)[1].split(",")[0] + ",-7" * rows(g)[1].count(",") + "\n", *rows(g)[2:]]
    ),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_what_would_be_scored(tmp_path, comp, good, what):
    found = verdict(tmp_path, comp, HARMLESS[what](good))
    assert strict(tmp_path / "s.csv", comp), "the case itself is wrong"
    assert not refused(found), found


def cell(new):
    def change(g):
        r = rows(g)
        c = r[2].split(",")
        return "".join([*r[:2], ",".join([*c[:3], new, *c[4:]]), *r[3:]])

    return change


FATAL = {
    "empty": lambda g: "",
    "blank": lambda g: "\n \n",
    "header only": lambda g: rows(g)[0],
    "no header": lambda g: "".join(rows(g)[1:]),
    "one row short": lambda g: "".join(rows(g)[:-1]),
    "cut off": lambda g: g[:-25],
    "cut off in the middle": lambda g: g[: len(g) // 2],
    "a row twice": lambda g: g + rows(g)[1],
    "a total": lambda g: g + "total" + ",1" * rows(g)[1].count(",") + "\n",
    "a remark": lambda g: g + "# written by me\n",
    "index column": lambda g: pd.read_csv(io.StringIO(g)).to_csv(),
    "semicolons": lambda g: g.replace(",", ";"),
    "tabs": lambda g: g.replace(",", "\t"),
    "upper case ids": lambda g: rows(g)[0] + "".join(rows(g)[1:]).upper(),
    "no extension": lambda g: g.replace(".wav", ""),
    "ids with spaces": lambda g: g.replace(".wav", ".wav "),
    "a space before ids": lambda g: g.replace("\n", "\n ").rstrip(" "),
    "twice quoted": lambda g: g.replace(".wav,", '.wav""",').replace("\n", '\n"""').rstrip('"'),
    "folders": lambda g: g.replace("\n", "\ntest/").removesuffix("test/"),
    "a renamed column": lambda g: g.replace("fname", "file", 1),
    "a space in the header": lambda g: g.replace("fname,", "fname, ", 1),
    "columns swapped": lambda g: "\n".join(
        ",".join([a, c, b, *rest]) for a, b, c, *rest in (o.split(",") for o in g.split("\n") if o)
    ),
    "a column twice": lambda g: "\n".join(o + "," + o.split(",")[-1] for o in g.split("\n") if o),
    "a column less": lambda g: "\n".join(o.rsplit(",", 1)[0] for o in g.split("\n") if o),
    "one cell more": lambda g: g.replace("\n", ",0\n", 3).replace(",0\n", "\n", 1),
    "a hole": cell(""),
    "nan": cell("nan"),
    "NA": cell("NA"),
    "null": cell("null"),
    "inf": cell("inf"),
    "-inf": cell("-Infinity"),
    "1e400": cell("1e400"),
    "decimal comma": cell('"0,5"'),
    "open comma": cell("0,5"),
    "bool": cell("True"),
    "text": cell("high"),
    "percent": cell("50%"),
    "underscores": cell("1_000"),
    "hex": cell("0x1F"),
    "two points": cell("0.5.1"),
    "a tuple": cell('"(0.5,)"'),
    "a tensor": cell("tensor(0.5)"),
    "Arabic digits": cell("٠.٥"),
    "a line break": cell('"0.5\n0.5"'),
    "a line break behind": cell('"0.5\n"'),
    "a tab before": cell("\t0.5"),
    "an open quote": cell('"0.5'),
    "complex": cell("1j"),
    "zip": lambda g: b"PK\3\4" + g.encode(),
    "UTF-16": lambda g: g.encode("utf-16"),
    "zeros": lambda g: bytes(5000),
    "binary": lambda g: os.urandom(3000),
    "latin": lambda g: g.replace("wav", "wäv").encode("latin-1"),
    "huge": lambda g: rows(g)[0] + "".join(rows(g)[1:]) * 3000,
    "one long line": lambda g: "0" * 3_000_000,
    "a long cell": cell("0." + "5" * 300_000),
    "JSON": lambda g: '{"fname": 1}',
    "html": lambda g: "<html>" + g,
}


@pytest.mark.parametrize("what", FATAL)
def test_what_would_be_refused(tmp_path, comp, good, what):
    found = verdict(tmp_path, comp, FATAL[what](good))
    assert refused(found) and all(f.what for f in found)
    assert {f.kaggle for f in found} <= {"", "Submission Scoring Error", "Submission CSV Not Found"}


def test_all_of_a_column_as_bool(tmp_path, comp, good):
    t = pd.read_csv(io.StringIO(good), dtype=str)
    t[comp.classes[0]] = "True"
    assert refused(verdict(tmp_path, comp, t.to_csv(index=False)))


@pytest.mark.parametrize("seed", range(150))
def test_never_milder_than_a_strict_scorer(tmp_path, comp, good, seed):
    "Random damage to bytes: whenever the doctor lets a file pass, the strict scorer does too; and it never raises."
    g = random.Random(seed)
    data = bytearray(good.encode())
    for _ in range(g.choice([1, 1, 2, 5])):
        at = g.randrange(len(data))
        kind = g.randrange(4)
        if kind == 0:
            data[at] = g.choice(b",\n\r\"' ;.0159eE+-\t\0\xff" + string.ascii_letters.encode())
        elif kind == 1:
            del data[at : at + g.choice([1, 2, 30])]
        elif kind == 2:
            data[at:at] = g.choice([b",", b"\n", b'"', b"e", b"-", b" ", b"\xe2\x80\xa8", b"#", b"1"])
        else:
            data = data[:at]
            break
    found = verdict(tmp_path, comp, bytes(data))
    if not refused(found):
        assert strict(tmp_path / "s.csv", comp), bytes(data)


def test_places_without_a_file(tmp_path, comp):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("nowhere.csv", "folder", "pipe", "loop", "nul\0byte"):
        found = check_submission(str(tmp_path / name), comp)
        assert [f.kaggle for f in found] == ["Submission CSV Not Found"], name


def test_a_file_made_for_the_public_rows(tmp_path, comp):
    import shutil

    shutil.copytree(comp.root, tmp_path / "data")
    first = sorted((tmp_path / "data/test").iterdir())[0]
    for k in range(18):
        shutil.copy(first, tmp_path / f"data/test/hidden{k}.wav")
    hidden = load_competition(tmp_path / "data", train=False)
    t = comp.submission(np.random.default_rng(0).random((N, len(comp.classes))))
    t.to_csv(tmp_path / "s.csv", index=False)
    found = check_submission(tmp_path / "s.csv", hidden)
    assert refused(found) and any("take the ids from the files" in f.what for f in found)


@pytest.mark.parametrize(
    "ids,became",
    [(["1e5", "007", "12"], ["100000.0", "7", "12.0"]), (["1234e5678", "00012", "3e1"], ["inf", "12.0", "30"])],
)
def test_ids_that_a_table_took_for_numbers(tmp_path, ids, became):
    clips = clip_table(ids, path=[""] * 3, labels=[()] * 3, source="test")
    comp = Competition(
        "toy",
        tmp_path,
        ("a", "b"),
        clips,
        pd.DataFrame([[i, "0", "0"] for i in ids], columns=["id", "a", "b"]),
        "id",
        "lwlrap",
    )

    def said(names):
        return verdict(tmp_path, comp, "id,a,b\n" + "".join(f"{n},.1,.{k}\n" for k, n in enumerate(names)))

    assert not refused(said(ids)), said(ids)
    found = said(became)
    assert refused(found) and any("3 ids: turned into numbers" in f.what for f in found), found


def test_zero_test_files_want_a_header_and_nothing_else(tmp_path, comp, good):
    import shutil

    shutil.copytree(comp.root, tmp_path / "data")
    shutil.rmtree(tmp_path / "data/test")
    (tmp_path / "data/sample_submission.csv").write_text(rows(good)[0])
    empty = load_competition(tmp_path / "data", train=False)
    assert not verdict(tmp_path, empty, rows(good)[0])
    assert refused(verdict(tmp_path, empty, good))


def test_what_looks_like_the_prior_is_said(tmp_path, comp, good):
    r = rows(good)
    same = [o.split(",")[0] + "," + r[1].split(",", 1)[1] for o in r[1:6]]
    found = verdict(tmp_path, comp, "".join([r[0], *same, *r[6:]]))
    assert not refused(found) and any(f"5 of {N} rows are equal" in f.what for f in found)


def test_the_command_ends_with_0_only_for_a_good_file(tmp_path, comp, good, capsys):
    from audiotag.cli import main

    (tmp_path / "good.csv").write_text(good)
    (tmp_path / "bad.csv").write_text(good.replace(",", ";"))
    for name, code in (("good.csv", 0), ("bad.csv", 2), ("nowhere.csv", 2)):
        assert main(["doctor", str(tmp_path / name), "--data", str(comp.root)]) == code
    assert "Submission Scoring Error" in capsys.readouterr().out


REASONS = {
    "--1": "two signs", "1e": "exponent has no digits", "1e+": "exponent has no digits", "0.1.2": "two points", "１": "Unicode",
    "٠.٥": "Unicode", "1e400": "too large", "-1e999": "too large", "": "empty", " ": "empty", "nan": "missing", "N/A": "missing",
    "inf": "infinite", "-Infinity": "infinite", "0,5": "decimal comma", "-,5": "decimal comma", "1,000.5": "separators", "1_000": "separators",
    "50%": "percentage", "0x1F": "decimal digits", "1j": "complex", "(1+2j)": "complex", "tensor(0.5)": "a list or an array",
    "[0.5]": "a list or an array", "high": "text", "True": "true or false", "0.5\n": "line break", "\t0.5": "tab",
}  # fmt: skip


@pytest.mark.parametrize("value", REASONS)
def test_a_cell_that_is_no_number_is_explained(tmp_path, comp, value):
    table = comp.submission(np.random.default_rng(0).random((N, len(comp.classes)))).astype(str)
    table.iloc[2, 3] = value
    found = verdict(tmp_path, comp, table.to_csv(index=False))
    assert refused(found) and REASONS[value] in found[0].what.rpartition("(")[2], found[0]


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text("0123456789.eE+-_, ", max_size=12), st.text(max_size=6), st.floats().map(str)))
def test_only_numbers_that_are_too_large_are_called_so(value):
    try:
        large = "_" not in value and value.isascii() and math.isinf(float(value)) and "inf" not in value.lower()
    except ValueError:
        large = False
    assert ("too large" in _explain_cell(value)) == large


def test_a_file_that_is_no_text_is_named(tmp_path, comp, good):
    said = {good.replace("0.", "0\0", 1).encode(): "1 NUL byte, the first in line 2", good.encode("utf-16"): "UTF-16"}
    said |= {b"PK\3\4": "a ZIP archive", good.replace("wav", "wäv").encode("latin-1"): "byte 0xe4 in line 2"}
    for data, what in said.items():
        assert what in verdict(tmp_path, comp, data)[0].what


@pytest.mark.parametrize("cell", ["." * 10**5 + "x", "1" * 10**5 + "x", "1." * 10**5, " " * 10**5 + "x", "1," * 10**5])
def test_a_cell_of_any_length_is_explained_soon(cell):
    "Patterns that try each way to divide it would take minutes."
    assert _explain_cell(cell)
