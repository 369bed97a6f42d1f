"Priors by site and time, relatives, and the steps beside them: exact numbers, nothing learned from the fold that is judged."

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audiotag.core.config import config_from_dict
from audiotag.core.errors import AudiotagError
from audiotag.core.metrics import macro_auc
from audiotag.data.competitions import read_taxonomy
from audiotag.infer.bundle import Bundle, reseal
from audiotag.infer.postprocess import (
    LEARNED,
    STEPS,
    DeltaSmooth,
    FileMax,
    LearnedStep,
    MetadataPrior,
    Smooth,
    Taxonomy,
    apply_out_of_fold,
    apply_steps,
    learn_steps,
    name_metadata,
    step_word,
    steps_named,
    tune,
)
from audiotag.infer.predict import infer

KIN = {"genus": ("Turdus", "Corvus", "Turdus", ""), "class": ("Aves", "Aves", "Aves", "Amphibia")}


def logit(p):
    return math.log(p / (1 - p))


def scape(i, site="S01", hour=3, month=6):
    return f"BC_{i:04d}_{site}_2025{month:02d}17_{hour:02d}3000"


def world(seed, n=60, windows=4, classes=4, sites=6, effect=True):
    "Recordings at sites that have their own species, or of which all have the same; every site is in every fold."
    g = np.random.default_rng(seed)
    lives = g.random((sites, classes)) < 0.5 if effect else np.ones((sites, classes), bool)
    site = g.permutation(np.arange(n) % sites)
    there = (g.random((n, classes)) < 0.5) & lives[site]
    truth = np.repeat(there, windows, 0) & (g.random((n * windows, classes)) < 0.7)
    p = 1 / (1 + np.exp(1.5 - 1.5 * truth - g.normal(0, 1.5, truth.shape)))
    names = np.array([scape(i, f"S{s:02d}", g.integers(24), g.integers(1, 13)) for i, s in enumerate(site)])
    return p, truth, np.repeat(names, windows), np.repeat(np.arange(n) % 5, windows)


def all_learned(seed=0):
    _, truth, group, _ = world(seed)
    some = [MetadataPrior(by=by, weight=w) for by, w in (("site", 0.5), ("hour", 1.0), ("month", 5.0))]
    return learn_steps([*some, Taxonomy(share=0.3), Taxonomy(rank="class", share=1.0)], truth, group, KIN)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,site,hour,month",
    [
        ("MINI_Test_0006_S04_20250415_073700", "S04", "07", "04"),
        ("/kaggle/input/x/H02_20230420_230000.ogg", "H02", "23", "04"),
        ("C:\\data\\H02_20230420_230000.ogg", "H02", "23", "04"),
        ("BC2026_Train_0001_S08_20250606_030007_15", "S08", "03", "06"),  # a row
        ("7019_COR_20190904.ogg", "COR", "", "09"),
        ("7019_COR_20190904_5", "COR", "", "09"),
        ("20210501_183000.WAV", "", "18", "05"),
        ("0012_20210501_1830.wav", "", "18", "05"),  # a serial number is no site
        ("SITE7-20210501T183000Z.wav", "SITE7", "", "05"),  # a time with a letter behind it is no time that is known
        ("SITE7-20210501T183000.wav", "SITE7", "18", "05"),
        ("S01_20251332_250000", "", "", ""),  # month 13, day 32
        ("S01_20251231_250000", "S01", "", "12"),  # hour 25
        ("XC123456.ogg", "", "", ""),
        ("soundscape_29201", "", "", ""),
        ("", "", "", ""),
    ],
)
def test_what_a_name_tells(name, site, hour, month):
    assert name_metadata(name) == {"site": site, "hour": hour, "month": month}


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=300))
def test_any_name_is_read(name):
    assert set(name_metadata(name)) == {"site", "hour", "month"}


# --- exact numbers ----------------------------------------------------------------------------------------------------


def test_a_prior_in_words():
    "Three recordings of unequal length at two sites; each counts once, by the share of its windows."
    group = [scape(0, "S01")] * 4 + [scape(1, "S01")] + [scape(2, "S02")] * 2 + ["soundscape_1"] * 3
    truth = np.array([[1, 0]] * 1 + [[0, 0]] * 3 + [[1, 0]] + [[0, 1]] * 2 + [[1, 1]] * 3)
    step = MetadataPrior(weight=1.0, shrink=3.0).learn(truth, group)
    base = [(0.25 + 1 + 0 + 0.5) / 4, (0 + 0 + 1 + 0.5) / 4]  # the recording that tells no site does not count
    wanted = [
        [logit((s + 3 * b) / (n + 3)) - logit(b) for s, b in zip(sums, base)]
        for sums, n in (([1.25, 0], 2), ([0, 1], 1))
    ]
    assert step.levels == ("S01", "S02")
    np.testing.assert_allclose(step.offsets, wanted, atol=6e-5)
    p = np.array([[0.2, 0.9], [0.5, 0.0], [0.3, 1.0], [0.3, 0.6]])
    out = step(p, [scape(9, "S01"), scape(8, "S02"), scape(8, "S02"), "soundscape_7"])
    np.testing.assert_allclose(out[0], 1 / (1 + np.exp([-logit(p[0, c]) - wanted[0][c] for c in range(2)])), atol=2e-5)
    assert out[1, 1] == 0 and out[2, 1] == 1 and (out[3] == p[3]).all()


def test_an_hour_is_informed_by_those_around_it_also_over_midnight():
    truth, group = np.array([[1], [0]]), [scape(0, hour=23), scape(1, hour=11)]
    step = MetadataPrior(by="hour", shrink=1.0, spread=2).learn(truth, group)
    assert step.levels == ("00", "01", "09", "10", "11", "12", "13", "21", "22", "23")
    for hour, near in (("23", 1), ("22", 2 / 3), ("00", 2 / 3), ("21", 1 / 3), ("01", 1 / 3)):
        assert step.offsets[step.levels.index(hour)][0] == pytest.approx(logit((near + 0.5) / (near + 1)), abs=6e-5)
    month = MetadataPrior(by="month", spread=1).learn(truth, [scape(0, month=12), scape(1, month=6)])
    assert month.levels == ("01", "05", "06", "07", "11", "12")
    alone = MetadataPrior(by="month", spread=0).learn(truth, [scape(0, month=12), scape(1, month=6)])
    assert alone.levels == ("06", "12")


def test_relatives_delta_smoothing_and_the_highest_two_in_words():
    p = np.array([[0.2, 0.4, 0.6, 0.8], [0.1, 0.1, 0.3, 0.5]])
    genus, kind = (Taxonomy(rank=r, share=0.5).learn(p > 0.3, ["a", "a"], KIN) for r in ("genus", "class"))
    np.testing.assert_allclose(genus(p, ["a", "b"])[0], [0.3, 0.4, 0.5, 0.8])
    np.testing.assert_allclose(kind(p, ["a", "b"])[0], [0.3, 0.4, 0.5, 0.8])
    np.testing.assert_allclose(kind(p, ["a", "b"])[1], [0.1 + 0.2 / 6 * 1, 0.1 + 0.2 / 6, 0.3 - 0.4 / 6, 0.5])
    # shares .5 × (1 - .8) and .5 × (1 - .5); at the ends the window stands for the neighbor that is missing
    np.testing.assert_allclose(
        DeltaSmooth(share=0.5)(p, ["a", "a"]), [0.95 * p[0] + 0.05 * p[1], 0.875 * p[1] + 0.125 * p[0]]
    )
    three = np.array([[0.1], [0.9], [0.3]])
    np.testing.assert_allclose(FileMax(power=1.0, top=2)(three, ["a"] * 3), three * 0.6)
    np.testing.assert_allclose(FileMax(power=1.0, top=5)(three, ["a"] * 3), three * three.mean())
    assert FileMax().hash == "b6f11c46f8135249"  # as it was before it had `top`


# --- properties of all steps ------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10**6), at=st.integers(0, 5 + len(STEPS) - 3))
def test_nothing_is_changed_in_place_and_columns_may_come_in_any_order(seed, at):
    "And a step that is read back does the same, and a recording's scores do not depend on the others."
    plain = [s for s in STEPS.values() if not isinstance(s, LearnedStep)]
    step, g = [*all_learned(), *plain][at], np.random.default_rng(seed)
    p = np.clip(g.normal(0.5, 0.5, (24, 4)), 0, 1)  # some are 0 or 1
    group = g.choice([scape(i, f"S{i}", 3 * i, i + 1) for i in range(7)] + ["soundscape_1"], 24)
    before, order = p.copy(), g.permutation(4)
    out = step(p, group)
    assert (
        (p == before).all() and out.dtype == np.float64 and np.isfinite(out).all() and ((out >= 0) & (out <= 1)).all()
    )
    again = config_from_dict(json.loads(json.dumps(step.to_dict())))
    assert again == step and (again(p, group) == out).all()
    np.testing.assert_allclose(step.for_classes(order)(p[:, order], group), out[:, order], atol=1e-12)
    rows = group == group[0]
    np.testing.assert_array_equal(step(p[rows], group[rows]), out[rows])


def test_steps_are_applied_in_their_order_and_the_order_matters():
    p, truth, group, _ = world(1)
    prior, smooth = MetadataPrior(weight=2.0).learn(truth, group), Smooth()
    np.testing.assert_array_equal(apply_steps((prior, smooth), p, group), smooth(prior(p, group), group))
    halve = STEPS["halve"]
    assert not np.allclose(apply_steps((prior, halve), p, group), apply_steps((halve, prior), p, group))


def test_words_leave_out_what_was_learned():
    for step in all_learned():
        (named,) = steps_named([step_word(step)])
        assert named == step.replace(**dict.fromkeys(step.learned, ())) and len(step_word(step)) < 60
    assert steps_named(["metadata-prior:by=hour:weight=1"]) == (MetadataPrior(by="hour", weight=1.0),)
    assert steps_named(["taxonomy:rank=class", "delta-smooth:share=0.1", "file-max:power=0.4:top=2"]) == (
        Taxonomy(rank="class"),
        DeltaSmooth(share=0.1),
        FileMax(power=0.4, top=2),
    )


# --- what a name does not tell ----------------------------------------------------------------------------------------


def test_a_step_says_what_it_leaves_as_it_is():
    _, truth, group, _ = world(2)
    step, said = MetadataPrior(weight=1.0).learn(truth, group), []
    asked = [scape(1, "S02"), scape(2, "NEW"), "soundscape_3", "soundscape_4", "soundscape_4"]
    p = np.full((5, 4), 0.3)
    out = apply_steps((step, FileMax(power=0.0)), p, asked, note=said.append)
    assert (out[1:] == p[1:]).all() and (out[0] != p[0]).any()
    assert said == [
        "metadata-prior:weight=1.0: of 4 recordings, 2 have no site in the name and 1 has a site of which nothing was "
        "learned: their scores stay as they are"
    ]
    apply_steps((step,), p[:1], asked[:1], note=said.append)
    assert len(said) == 1


@pytest.mark.parametrize(
    "step,group,taxonomy,why",
    [
        (MetadataPrior(), ["a", "b"], None, "tell no site"),
        (MetadataPrior(by="hour"), [scape(0), scape(1)], None, "tell one hour"),
        (Taxonomy(), ["a", "b"], None, "no taxonomy names the genus"),
        (Taxonomy(), ["a", "b"], {"class": ("Aves", "Aves")}, "no taxonomy names the genus"),
        (Taxonomy(), ["a", "b"], {"genus": ("Turdus", "Corvus")}, "no two classes have the same genus"),
    ],
)
def test_where_there_is_nothing_to_learn_from(step, group, taxonomy, why):
    with pytest.raises(AudiotagError, match=why):
        step.learn(np.eye(2), group, taxonomy)


# --- the tuner learns without the fold that it judges -----------------------------------------------------------------


def test_priors_are_found_where_they_are_and_not_where_they_are_not():
    p, truth, group, folds = world(3, n=120)
    found = tune(p, truth, group, folds=folds, families=LEARNED, taxonomy=KIN, draws=40)
    row = found.table.loc["site prior"]
    assert row.low > 0 and row.folds == "5 of 5" and row.kept.startswith("metadata-prior")
    assert {type(s) for s in found.steps} == {MetadataPrior} and all(s.width == 4 for s in found.steps)
    new = world(3, n=120)  # the sealed step has learned from all labels
    assert found.steps[0] == MetadataPrior(weight=found.steps[0].weight).learn(new[1], new[2])
    alone = {"site prior": LEARNED["site prior"]}
    once, again = (tune(p, truth, group, folds=folds, families=alone, draws=40) for _ in range(2))
    assert again.table.equals(once.table) and again.steps == once.steps == found.steps[:1]
    sold = 0
    for seed in range(5):
        p, truth, group, folds = world(seed + 10, effect=False)
        table = tune(p, truth, group, folds=folds, families=alone, draws=40).table
        sold += int((table.low > 0).sum())
    assert sold <= 1, sold


def test_a_fold_teaches_nothing_about_itself():
    "Every recording is at a site of its own: a prior that had seen the labels of the fold would find all of them."
    p, truth, group, folds = world(4)
    own = np.array([scape(i, f"S{i}") for i in np.unique(group, return_inverse=True)[1]])
    family = {"site prior": (MetadataPrior(weight=5.0, shrink=0.1),)}
    honest = tune(p, truth, own, folds=folds, families=family, draws=20)
    assert honest.table.gain["site prior"] == 0 and honest.steps == ()
    np.testing.assert_array_equal(apply_out_of_fold(family["site prior"], p, truth, own, folds=folds), p)
    leaked = family["site prior"][0].learn(truth, own)(p, own)
    assert macro_auc(truth, leaked) > macro_auc(truth, p) + 0.1


def test_what_each_fold_is_scored_with_is_learned_from_the_others():
    p, truth, group, folds = world(5)
    step = MetadataPrior(weight=1.0)
    out = apply_out_of_fold((step, Smooth()), p, truth, group, folds=folds)
    for k in range(5):
        mine = folds == k
        learned = step.learn(truth[~mine], group[~mine])
        np.testing.assert_array_equal(out[mine], Smooth()(learned(p[mine], group[mine]), group[mine]))


def test_what_cannot_be_judged_is_said():
    p, truth, group, folds = world(6)
    table = tune(p, truth, np.char.replace(group, "_2025", "-"), folds=folds, families=LEARNED, draws=5).table
    assert table.note["site prior"] == "the names of labeled recordings tell no site" and not table.gain.any()
    assert table.note["genus"] == "no taxonomy names the genus of the classes"
    two = tune(p, truth, group, folds=folds % 2, families=LEARNED, taxonomy=KIN, draws=5).table
    assert two.note["hour prior"].startswith("needs three folds") and not two.note["genus"].startswith("needs")


# --- hostile files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        dict(by="author"),
        dict(weight=-1.0),
        dict(weight=float("nan")),
        dict(weight=6.0),
        dict(shrink=0.0),
        dict(shrink=float("inf")),
        dict(spread=7),
        dict(levels=["S01"]),
        dict(levels=["S01", "S01"], offsets=[[0.0], [0.0]]),
        dict(levels=["", "S01"], offsets=[[0.0], [0.0]]),
        dict(levels=["S" * 201], offsets=[[0.0]]),
        dict(levels=["S01", "S02"], offsets=[[0.0], [0.0, 0.0]]),
        dict(levels=["S01"], offsets=[[]]),
        dict(levels=["S01"], offsets=[[float("nan")]]),
        dict(levels=["S01"], offsets=[[float("inf")]]),
        dict(levels=["S01"], offsets=[[51.0]]),
        dict(levels=["S01"], offsets=[["0"]]),
        dict(levels=[f"S{i}" for i in range(10_001)], offsets=[[0.0]] * 10_001),
        dict(levels=[f"S{i}" for i in range(1001)], offsets=[[0.0] * 1000] * 1001),
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_table_from_anywhere_is_checked(change):
    with pytest.raises(AudiotagError):
        config_from_dict({"kind": "MetadataPrior"} | change)


@pytest.mark.parametrize("bad", [dict(rank="order"), dict(share=1.5), dict(relatives=[1]), dict(share=float("nan"))])
def test_relatives_from_anywhere_are_checked(bad):
    with pytest.raises(AudiotagError):
        config_from_dict({"kind": "Taxonomy"} | bad)


@pytest.mark.parametrize("step", [MetadataPrior(), Taxonomy()], ids=str)
def test_a_step_that_has_not_learned_is_refused(step):
    for use in (lambda: step(np.zeros((2, 2)), ["a", "a"]), lambda: apply_steps((step,), np.zeros((2, 2)), ["a", "a"])):
        with pytest.raises(AudiotagError, match="has not learned anything yet"):
            use()
    with pytest.raises(AudiotagError, match="has learned 4 classes, and there are 2"):
        all_learned()[0](np.zeros((2, 2)), ["a", "a"])


# --- in a bundle ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scapes(tmp_path_factory):
    "Two recordings of which one tells a site, and a bundle for them."
    from tests.infer.test_predict import sealed, soundscape

    root = tmp_path_factory.mktemp("scapes")
    comp = soundscape(root / "d", seconds=10.0)
    names = {str(root / "d" / "r0.wav"): root / "d" / "x_S01_20250617_033000.wav"}
    for old, new in names.items():
        (root / "d" / old).rename(new)
    clips = comp.clips.assign(path=[str(names.get(path, path)) for path in comp.clips.path])
    return replace(comp, clips=clips), sealed(root / "b", ("c", "a", "b"), n=1)  # in another order than the template's


def test_sealed_steps_meet_the_columns_of_the_template_and_the_report_says_what_they_left(scapes, tmp_path):
    comp, folder = scapes
    prior = MetadataPrior(weight=1.0, levels=("S01",), offsets=((2.0, -1.0, 0.0),))  # of c, a, b
    kin = Taxonomy(share=1.0, relatives=("x", "", "x"))
    shutil.copytree(folder, tmp_path / "b")
    reseal(Bundle(tmp_path / "b"), after=[prior.to_dict(), kin.to_dict()])
    report, plain = (
        infer(tmp_path / "b", comp, tmp_path / "s.csv"),
        infer(tmp_path / "b", comp, tmp_path / "p.csv", after=()),
    )
    a, b = (pd.read_csv(tmp_path / name, index_col=0) for name in ("p.csv", "s.csv"))
    told = comp.clips.path.str.contains("S01").to_numpy()
    wanted = a.copy()
    for column, offset in (("c", 2.0), ("a", -1.0)):
        odds = np.exp(offset) * a.loc[told, column] / (1 - a.loc[told, column])
        wanted.loc[told, column] = odds / (1 + odds)
    wanted[["b", "c"]] = np.tile(wanted[["b", "c"]].mean(axis=1).to_numpy()[:, None], 2)
    np.testing.assert_allclose(b[wanted.columns], wanted, atol=2e-6)
    note = "metadata-prior:weight=1.0: of 2 recordings, 1 has no site in the name: their scores stay as they are"
    assert report.notes.count(note) == 1 and note not in plain.notes
    again = infer(tmp_path / "b", comp, tmp_path / "t.csv")
    assert again.notes == report.notes and (tmp_path / "t.csv").read_bytes() == (tmp_path / "s.csv").read_bytes()


@pytest.mark.parametrize(
    "after,said",
    [
        ([MetadataPrior().to_dict()], "has not learned anything yet"),
        ([MetadataPrior(levels=("S01",), offsets=((1.0, 1.0),)).to_dict()], "has learned 2 classes, and there are 3"),
        ([Taxonomy(relatives=("x",) * 4).to_dict()], "has learned 4 classes, and there are 3"),
        ([{"kind": "LearnedStep"}], "unknown kind 'LearnedStep'"),
        ([{"kind": "MetadataPrior", "levels": ["S01"], "offsets": [[1e9, 0.0, 0.0]]}], "invalid table of offsets"),
    ],
    ids=lambda o: o if isinstance(o, str) else "",
)
def test_a_bundle_with_a_step_that_does_not_fit_is_refused_before_anything_is_scored(scapes, tmp_path, after, said):
    comp, folder = scapes
    shutil.copytree(folder, tmp_path / "b")
    reseal(Bundle(tmp_path / "b"), after=after)
    with pytest.raises(AudiotagError, match=said):
        infer(tmp_path / "b", comp, tmp_path / "s.csv")
    assert (pd.read_csv(tmp_path / "s.csv", index_col=0)["c"].round(6) == 0.1).all()  # the prior of the class


def test_steps_from_words_that_need_labels_are_refused_in_the_kernel(scapes, tmp_path):
    with pytest.raises(AudiotagError, match="pack weights RUN DIR --postprocess"):
        infer(scapes[1], scapes[0], tmp_path / "s.csv", after=steps_named(["metadata-prior:by=hour"]))


def test_the_taxonomy_of_a_competition(tmp_path):
    (tmp_path / "train_audio" / "a").mkdir(parents=True)
    rows = (
        "primary_label,scientific_name,class_name\na,Turdus merula,Aves\nb,Turdus iliacus,Aves\n1,Aves,Aves\na,X y,Z\n"
    )
    (tmp_path / "taxonomy.csv").write_text(rows)
    clips = pd.DataFrame({"path": [str(tmp_path / "train_audio" / "a" / "x.ogg")]})
    assert read_taxonomy(clips, ["b", "a", "1", "new"]) == {
        "genus": ("Turdus", "Turdus", "", ""),
        "class": ("Aves", "Aves", "Aves", ""),
    }
    assert read_taxonomy(pd.DataFrame({"path": ["/nowhere/x.ogg"]}), ["a"]) == {} == read_taxonomy(clips[:0], ["a"])
    (tmp_path / "taxonomy.csv").write_text("primary_label,common_name,class_name\na,b,Aves\n")
    assert read_taxonomy(clips, ["a", "b"]) == {"class": ("Aves", "")}
    (tmp_path / "taxonomy.csv").write_text("label,name\na,b\n")
    with pytest.raises(AudiotagError, match="primary_label"):
        read_taxonomy(clips, ["a"])
