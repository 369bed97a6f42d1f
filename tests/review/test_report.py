"The report and the label review in a real browser, and what a report does when a part is missing."

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from tests.browser import opened
from tests.tiny import audiotag, called

from audiotag.data.competitions import load_competition
from audiotag.core.files import write_json
from audiotag.review.label_review import LabelReview, read_corrections
from audiotag.review.html_page import render_page, table_html
from audiotag.train.recipes import get_recipe
from audiotag.review.report import (
    format_table,
    average_precision,
    calibration_table,
    class_counts,
    class_table,
    confusion_table,
    report,
    report_html,
    pseudo_label_counts,
    describe_rounds,
)
from audiotag.train.run_folder import Run, open_run, run_stages
from audiotag.audio.synth import make_soundscapes
from audiotag.review.cv_check import check_cv


@pytest.fixture(scope="module")
def run(tiny_data, tiny_run):
    check_cv(Run(tiny_run / "run"), load_competition(tiny_data).of("test"), n=50)
    return Run(tiny_run / "run")


@pytest.fixture(scope="module")
def path(run):
    return report(run, clips=8)


def test_the_report_is_one_small_file(path):
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 15e6 and text.count("<audio") == 8
    for word in (
        "Stages",
        "Cross-validation",
        "Curves",
        "Classes",
        "Confusion",
        "Calibration",
        "Ledger",
        "Label review",
        "Time and memory",
        "Recipe",
        "stages.noisy.epochs",
    ):
        assert word in text


@pytest.mark.parametrize("width", [1280, 375])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_errors_and_fits_the_screen(path, width, scheme):
    with opened(path, width=width, color_scheme=scheme) as (p, faults):
        p.wait_for_timeout(200)
        assert not faults
        assert p.evaluate("document.documentElement.scrollWidth") <= width
        back, ink = (p.evaluate(f"getComputedStyle(document.body).{k}") for k in ("backgroundColor", "color"))
        assert contrast(back, ink) > 7
        assert contrast(back, p.evaluate("getComputedStyle(document.querySelector('.mute')).color")) > 4.5
        assert contrast(back, p.evaluate("getComputedStyle(document.querySelector('svg text')).fill")) > 7
        shot = p.screenshot()
        assert len(shot) > 10_000


def contrast(a, b):
    "The WCAG contrast of two css colors."

    def light(c):
        parts = [int(v) / 255 for v in c[c.index("(") + 1 : -1].split(",")[:3]]
        r, g, b = (v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    x, y = sorted((light(a), light(b)))
    return (y + 0.05) / (x + 0.05)


def test_every_table_sorts_both_ways(path):
    with opened(path) as (p, faults):
        tables = p.evaluate("document.querySelectorAll('table').length")
        assert tables > 8
        for i in range(tables):
            for column in range(p.evaluate(f"document.querySelectorAll('table')[{i}].tHead.rows[0].cells.length")):
                values = []
                for _ in range(2):
                    p.evaluate(
                        f"document.querySelectorAll('table')[{i}].tHead.rows[0].cells[{column}].querySelector('button').click()"
                    )
                    values.append(
                        p.evaluate(
                            f"[...document.querySelectorAll('table')[{i}].tBodies[0].rows].map(r => r.cells[{column}].dataset.v)"
                        )
                    )
                assert sorted(values[0]) == sorted(values[1])
                for v in values:
                    known = [o for o in v if o != ""]
                    assert v[len(known) :] == [""] * (len(v) - len(known)), "missing values come last"
                    if numbers := all_numbers(known):
                        assert numbers in (sorted(numbers), sorted(numbers, reverse=True))
                if len({o for o in values[0] if o != ""}) > 1:
                    assert values[0] != values[1]
        assert not faults


def all_numbers(values):
    try:
        return [float(v) for v in values]
    except ValueError:
        return None


def test_pressing_a_picture_plays_its_sound_alone(path):
    with opened(path) as (p, faults):
        for i in (0, 1):
            p.locator(".player button").nth(i).click()
            for _ in range(100):  # the page's own policy forbids wait_for_function
                p.wait_for_timeout(50)
                if p.evaluate(f"document.querySelectorAll('audio')[{i}].currentTime") > 0:
                    break
            assert p.evaluate(f"document.querySelectorAll('audio')[{i}].currentTime") > 0
        state = p.evaluate("[...document.querySelectorAll('audio')].map(a => !a.paused)")
        assert state[1] and sum(state) == 1 and not faults
        durations = p.evaluate("[...document.querySelectorAll('audio')].slice(0, 2).map(a => a.duration)")
        assert all(0.3 < d < 6.5 for d in durations)


def test_decisions_become_a_corrections_file(path, run, tmp_path):
    with opened(path) as (p, faults):
        cards = p.locator(".card")
        cards.nth(0).locator("[data-action=drop]").click()
        cards.nth(1).locator("[data-action=relabel]").click()
        cards.nth(1).locator(".tip").nth(0).click()
        cards.nth(1).locator("[list]").fill("Siren")
        cards.nth(1).locator("[list]").dispatch_event("change")
        cards.nth(1).locator(".note").fill('two, "at once"\n')
        cards.nth(1).locator(".note").dispatch_event("change")
        cards.nth(2).locator("[data-action=keep]").click()
        cards.nth(3).locator("[data-action=relabel]").click()  # without a label it is no decision
        p.locator("#who").fill("Ann, of the lab")
        assert p.locator("#count").inner_text().startswith("3 of ")
        with p.expect_download() as got:
            p.locator("#save").click()
        got.value.save_as(tmp_path / "corrections.csv")
        assert got.value.suggested_filename == "corrections.csv" and not faults
        p.reload()
        assert p.locator("#count").inner_text().startswith("3 of "), "the browser remembers"
    table = read_corrections(tmp_path / "corrections.csv", run.classes)
    assert list(table.action) == ["drop", "relabel", "keep"] and set(table.who) == {"Ann, of the lab"}
    assert "Siren" in table["labels"].iloc[1] and table.why.iloc[1].startswith('two, "at once"')


def test_names_cannot_become_markup(run, tmp_path):
    evil = '</script><script>document.title="owned"</script><img src=x onerror="document.title=\'owned\'">'
    clips = run.clips.head(3).assign(clip_id=[evil, "b.wav", "c.wav"], labels=[(evil,), ("Bell",), ("Bell",)])
    review = LabelReview(
        clips,
        pd.DataFrame({"clip_id": clips.clip_id, "kind": evil, "worth": 1.0, "why": evil}),
        clips[["fold"]].to_numpy() * [[0.1, 0.2]],
        (evil, "Bell"),
        name=evil,
    )
    (tmp_path / "p.html").write_text(
        render_page(evil, [(evil, review.html() + table_html(pd.DataFrame({evil: [evil]})))])
    )
    with opened(tmp_path / "p.html") as (p, faults):
        assert p.title() == evil and not faults
        assert p.evaluate("document.querySelectorAll('main img[src=x], main script[src]').length") == 0


def test_an_unfinished_run_is_a_one_line_error(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink(missing_ok=True)
    (tmp_path / "run" / "4-certain" / "fold-1" / "oof.parquet").unlink()
    done = called("report", tmp_path / "run")
    assert done.returncode == 2 and "not finished" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run" / "report.html").exists()


def test_missing_sounds_leave_a_message(run, tmp_path):
    moved = Run(run.folder)
    moved.clips = moved.clips.assign(path="/nowhere/x.wav")
    text = report(moved, tmp_path / "r.html", clips=4).read_text()
    assert "<audio" not in text and text.count('class="card"') == 4 and "no such file" in text


@pytest.mark.long
def test_the_review_is_shortened_until_the_file_fits(run, tmp_path):
    whole, small = (
        report(run, tmp_path / "a.html", clips=8).stat().st_size,
        report(run, tmp_path / "b.html", clips=0).stat().st_size,
    )
    max_bytes = small + (whole - small) * 0.6
    out = report(run, tmp_path / "c.html", clips=8, max_bytes=max_bytes)
    assert out.stat().st_size <= max_bytes and 0 < out.read_text().count("<audio") < 8


def test_every_label_is_counted_once(run):
    curated = run.clips[run.clips.source == "curated"]
    table = confusion_table(run)
    assert (
        table.sum(1).to_dict()
        == curated.explode("labels").labels.value_counts().reindex(run.classes, fill_value=0).to_dict()
    )
    truth_as_scores = (
        pd.get_dummies(run.clips.explode("labels").set_index("clip_id").labels)
        .groupby(level=0)
        .max()
        .astype(float)
        .reindex(columns=list(run.classes))
    )
    honest, Run.oof = Run.oof, lambda self, *s: truth_as_scores.loc[self.clips.clip_id]
    try:
        assert (
            confusion_table(run).to_numpy()
            == pd.DataFrame(0, run.classes, run.classes).to_numpy() + np.diag(confusion_table(run).sum(1))
        ).all()
        calibration = calibration_table(run)
        assert (calibration["mean score"] - calibration.right).abs().max() < 1e-6
    finally:
        Run.oof = honest


@pytest.mark.parametrize(
    "words", [["report", "RUN", "--json"], ["ledger", "RUN", "--json"], ["check-cv", "RUN", "--json"]]
)
def test_json_is_json_and_a_pipe_gets_no_control_characters(run, words):
    done = called(*[run.folder if w == "RUN" else w for w in words])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)
    assert not set(done.stdout + done.stderr) & set("\r\x1b\b")


def test_training_in_a_pipe_prints_lines(tiny_run):
    log = (tiny_run / "stdout").read_bytes() + (tiny_run / "stderr").read_bytes()
    assert b"epoch" in log and not set(log) & set(b"\r\x1b\b")


def test_help_lists_every_command_once_and_each_has_an_example(capsys):
    text = audiotag("--help").stdout
    from typer.main import get_command
    from audiotag import cli

    for name, _ in get_command(cli.app).visible():
        assert name == "demo" or sum(line.strip().startswith(f"{name} ") for line in text.splitlines()) == 1, name
        assert cli.main([*name.split(), "--help"]) == 0
        assert f"audiotag {name}" in capsys.readouterr().out.split("example")[-1], name


def test_completion_knows_the_commands_and_their_options():
    import subprocess
    from tests.tiny import AUDIOTAG

    script = audiotag("completion", "bash").stdout
    ask = 'COMP_WORDS=(audiotag {0}); COMP_CWORD={1}; _audiotag_completion {2}; echo "${{COMPREPLY[@]}}"'
    for words, at, wanted in (
        ("che", 1, "check-cv"),
        ("check-cv --tes", 2, "--test"),
        ("pack wei", 2, "weights"),
        ("pack weights --ow", 3, "--owner"),
        ("train --engine pro", 3, "processes"),
    ):
        lines = script + "\n" + ask.format(words, at, AUDIOTAG[0])
        done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True)
        assert done.returncode == 0 and wanted in done.stdout.split(), (words, done.stdout, done.stderr)


def test_a_closed_pipe_is_no_error():
    "`true` has ended before the command writes: an ordinary Python would print a BrokenPipeError."
    import subprocess
    from tests.tiny import AUDIOTAG

    for command in ("completion bash", "--help"):
        done = subprocess.run(f"{AUDIOTAG[0]} {command} | true", shell=True, capture_output=True, text=True)
        assert not done.stdout and not done.stderr


# rounds of pseudo-labels


@pytest.fixture(scope="module")
def rounds_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds_run")
    data = make_soundscapes(folder / "data", seed=3, n_train=24, n_test=1, n_unlabeled=2, seconds=20.0)
    changes = [
        "model.width=2",
        "front_end.n_mels=32",
        "front_end.hop_length=1280",
        "windows.frames=125",
        "windows.hop=125",
        "windows.views.1.offset=62",
        "stages.*.steps=4",
        "stages.*.batch_size=8",
        "n_folds=2",
        "mixed=null",
    ]
    with pytest.MonkeyPatch.context() as m:  # so that no series ends
        m.setattr(
            Run,
            "scores",
            lambda self, *s, fold=None: {
                "macro_auc curated": 0.5 + 0.01 * [o.name for o in self.planned.stages].index(s[0])
            },
        )
        run = run_stages(
            open_run(
                folder / "run",
                get_recipe("birdclef2024", scale="small", changes=changes),
                load_competition(data, "birdclef2024"),
            )
        )
    return run


@pytest.mark.long
@pytest.mark.parametrize(
    "scores, best, summary, gone",
    [
        (
            {"labelled": 0.6, "round1": 0.7, "round2": 0.75},
            "round2",
            "Every round gained more than 0 out of fold, so none was skipped. The best is round2.",
            (),
        ),
        (
            {"labelled": 0.6, "round1": 0.7, "round2": 0.69},
            "round1",
            "round2 gained -0.0100 out of fold, not more than 0, so the series stopped. The best is round1.",
            (),
        ),
        (
            {"labelled": 0.6, "round1": 0.5},
            "labelled",
            "round1 gained -0.1000 out of fold, not more than 0, so the series stopped without round2. The best is labelled.",
            ("round2",),
        ),
    ],
)
def test_the_report_describes_rounds_and_the_stop_rule(rounds_run, tmp_path, scores, best, summary, gone):
    shutil.copytree(
        rounds_run.folder,
        tmp_path / "run",
        ignore=lambda _, names: [n for n in names if n.endswith(gone)] if gone else [],
    )
    write_json(tmp_path / "run" / "rounds.json", scores)
    run = Run(tmp_path / "run")
    assert run.recipe.members == (best,) and describe_rounds(run) == summary
    text = report_html(run, clips=0)
    section = text.split("<h2>Rounds</h2>")[1].split("<section")[0]
    assert summary in section.replace("&#39;", "'") and "<svg" in section
    for name, score in scores.items():
        assert f">{name}<" in section and f"{score:.3f}" in section
    assert not any(f">{name}<" in section for name in gone)
    headline = text.split("<h2>")[0]
    assert f"{run.scores(best)['macro_auc curated']:.3f}" in headline


def test_the_written_labels_are_counted_by_class_and_fold(rounds_run):
    table, ledger = pseudo_label_counts(rounds_run), rounds_run.ledger("round1")
    assert list(table.columns) == ["round1", "round2"] and list(table.index) == list(rounds_run.classes)
    picked = ledger[ledger.picked]
    assert table.round1.sum() == pytest.approx(picked.labels.map(len).sum() / 2)


def test_a_run_without_rounds_has_no_such_section(path, run):
    assert "<h2>Rounds</h2>" not in path.read_text(encoding="utf-8") and describe_rounds(run) == ""


def test_average_precision_by_hand(run):
    truth = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    scores = np.array([[0.9, 0.2, 0.1], [0.8, 0.1, 0.1], [0.7, 0.3, 0.1], [0.1, 0.0, 0.1]])
    assert average_precision(truth, scores)[:2] == pytest.approx([(1 + 2 / 3) / 2, 1 / 3])
    assert np.isnan(average_precision(truth, scores)[2])
    table = class_table(run)
    assert (table.AP > 0).all() and list(table.columns[:3]) == ["lwlrap", "AP", "clips"]


def test_the_report_counts_clips_and_draws_curves_with_a_legend(path, run):
    counts = class_counts(run)
    for source in ("curated", "noisy"):
        labels = [c for labels in run.rows.labels[run.rows.source == source] for c in labels]
        assert counts[source].to_dict() == {c: labels.count(c) for c in run.classes}
    text = path.read_text(encoding="utf-8")
    assert "noisy clips</button>" in text and "Precision and recall" in text and "all classes together (AP" in text
    for word in ("fold 0", "fold 1", "learning rate, last batch", "lwlrap, validation"):
        assert word in text
    entry = json.loads((run.fold_path("noisy", 0) / "history.json").read_text())[-1]
    assert 0 < entry["lr"] < run.recipe.stages[0].lr


def test_with_one_label_a_clip_there_are_no_curves(run, monkeypatch):
    run, n = Run(run.folder), len(run.classes)
    run.recipe = run.recipe.replace(activation="softmax", metric="accuracy")
    monkeypatch.setattr("audiotag.review.report._stage_scores", lambda *args: (np.eye(n), np.eye(n)))
    assert "AP" not in class_table(run) and "f1" in class_table(run)


@pytest.mark.parametrize("width", [1280, 375])
def test_a_table_that_is_too_wide_says_that_it_scrolls(tmp_path, width):
    table = pd.DataFrame(
        [[f"{i}.{j}" * 3 for j in range(9)] for i in range(3)], columns=[f"column {j}" for j in range(9)]
    )
    page = tmp_path / "page.html"
    page.write_text(render_page("Tables", [("Wide", table_html(table)), ("Narrow", table_html(table.iloc[:, :1]))]))
    with opened(page, width=width) as (p, faults):
        p.wait_for_timeout(100)
        wide, narrow = (p.locator(".scroll").nth(i) for i in (0, 1))

        def hint(box):
            return box.evaluate("b => getComputedStyle(b, '::before').content")

        assert "scroll" not in hint(narrow)
        assert ("scroll sideways" in hint(wide)) == (width == 375)
        if width == 375:
            shadow = "b => getComputedStyle(b).boxShadow"
            at_left = wide.evaluate(shadow)
            assert "-14px" in at_left
            wide.evaluate("b => { b.scrollLeft = b.scrollWidth }")
            p.wait_for_timeout(100)
            assert "-14px" not in wide.evaluate(shadow) and wide.evaluate(shadow) != "none"
        assert p.evaluate("document.documentElement.scrollWidth") <= width and not faults


def test_a_table_of_text_is_aligned_by_what_its_columns_hold():
    table = pd.DataFrame(
        {
            "clips": [390.0, np.nan],
            "gain": [0.5, -1.0],
            "verdict": ["a gain", "worse"],
            "n": [1, 22],
            "none": [0.0, np.inf],
        },
        index=["first", "second"],
    )
    assert format_table(table).splitlines() == [
        "        clips    gain  verdict   n   none",
        "------  -----  ------  -------  --  -----",
        "first     390   0.500  a gain    1  0.000",
        "second      –  -1.000  worse    22    inf",
    ]
