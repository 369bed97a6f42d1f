"The first file of a kernel: the rows and bytes of the full way, without any library, and in time on a slow core."

import json
import os
import shutil
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from audiotag.audio.synth import make_competition, make_rainforest, make_soundscapes, make_universal
from audiotag.core.errors import AudiotagError
from audiotag.data.competitions import load_competition
from audiotag.data.sample_submission import TEMPLATES, csv_rows
from audiotag.data.submission import check_submission, refused
from audiotag.infer.deadline import Deadline, as_deadline
from audiotag.infer.first_file import (
    bundle_classes,
    ends_here,
    first_file,
    first_prior,
    peek_prior,
    template_name,
)
from audiotag.infer.predict import first_submission
from audiotag.kaggle.paths import find_input

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("layouts")
    return {
        "freesound2019": make_competition(
            tmp / "a", n_curated=8, n_noisy=8, n_test=4, sample_rate=16000, seconds=(0.1, 0.2)
        ),
        "universal2020": make_universal(tmp / "b"),
        "rainforest2021": make_rainforest(tmp / "c"),
        "birdclef2024": make_soundscapes(tmp / "d"),
    }


@pytest.fixture
def folder(folders, tmp_path, request):
    "A copy of a competition's folder, with a bundle that has a prior for its classes."
    root = shutil.copytree(folders[request.param], tmp_path / "data")
    classes = load_competition(root, request.param, train=False).classes
    about = {"classes": classes, "prior": [(i + 1) / 7 for i in range(len(classes))], "layout": request.param}
    (tmp_path / "b").mkdir()
    (tmp_path / "b/bundle.json").write_text(json.dumps(about))
    return request.param, root


def template(root):
    return next(p for p in (root / "sample_submission.csv", root / "submission.csv") if p.is_file())


def sounds(root):
    return sorted((next(root.glob("test*"))).iterdir())


def quote_an_id(root):
    "An id with a comma and quotes, for a file that is not there."
    head, first, *rest = template(root).read_text().splitlines()
    name, _, cells = first.partition(",")
    stem, _, end = name.rpartition("_") if "_" in name else (name, "", "")
    template(root).write_text("\n".join([head, first, f'"{stem}, ""x""{"_" * bool(end)}{end}",{cells}', *rest]))


CHANGES = {
    "as it is": lambda root: None,
    "windows line ends": lambda root: template(root).write_bytes(template(root).read_bytes().replace(b"\n", b"\r\n")),
    "a byte order mark": lambda root: template(root).write_bytes(b"\xef\xbb\xbf" + template(root).read_bytes()),
    "spaces in the header": lambda root: template(root).write_text(template(root).read_text().replace(",", " ,", 1)),
    "a quoted id": quote_an_id,
    "a missing file": lambda root: sounds(root)[0].unlink(),
    "another ending": lambda root: sounds(root)[0].rename(sounds(root)[0].with_suffix(".WAV")),
    "composed otherwise": lambda root: sounds(root)[0].rename(
        sounds(root)[0].with_name("cafe\u0301" + sounds(root)[0].suffix)
    ),
    "no test files": lambda root: [p.unlink() for p in sounds(root)],
    "a pipe and a loop": lambda root: (
        os.mkfifo(sounds(root)[0].with_name("pipe.wav")),
        sounds(root)[0].with_name("loop.wav").symlink_to("loop.wav"),
    ),
    "an empty template": lambda root: template(root).write_text(template(root).read_text().splitlines()[0] + "\n"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("folder", TEMPLATES, indirect=True)
def test_it_has_the_bytes_of_the_full_way(folder, tmp_path, change):
    "Or it leaves the file to the full way, which it does only where recordings have to be opened or are missing."
    layout, root = folder
    CHANGES[change](root)
    report = first_file(tmp_path / "b", root, tmp_path / "s.csv")
    try:
        comp = first_submission(tmp_path / "b", root, tmp_path / "full.csv")
    except AudiotagError:
        assert report is None
        return
    if report is None:
        assert layout == "birdclef2024" and change in ("composed otherwise", "an empty template"), change
        return
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "full.csv").read_bytes()
    assert report.rows == len(report.prior) == len(comp.of("test"))
    assert not refused(check_submission(tmp_path / "s.csv", comp))


@pytest.mark.parametrize("folder", ["freesound2019"], indirect=True)
def test_a_template_with_names_of_another_form_of_unicode(folder, tmp_path):
    _, root = folder
    files = sounds(root)
    text = template(root).read_text().replace(files[0].stem, unicodedata.normalize("NFC", "cafe\u0301"))
    template(root).write_text(text)
    files[0].rename(files[0].with_name("cafe\u0301.wav"))
    assert first_file(tmp_path / "b", root, tmp_path / "s.csv").rows == len(files)
    first_submission(tmp_path / "b", root, tmp_path / "full.csv")
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "full.csv").read_bytes()


def test_lines_without_quotes_are_read_as_the_csv_module_reads_them(tmp_path):
    for text in ("a,b\r\n1,2\r3,4\n\n , \n5,", "a\n\x0b\x1cb\n \n\u2028c", "", "\n", "a"):
        path, other = tmp_path / "plain.csv", tmp_path / "quoted.csv"
        path.write_text(text, newline="")
        other.write_text(text + '\n""""', newline="")  # a last row with a quote, so that the module reads it
        assert [row for row in csv_rows(path, exact=True)] == list(csv_rows(other, exact=True))[:-1]


@pytest.mark.parametrize("folder", ["freesound2019"], indirect=True)
@pytest.mark.parametrize("layout", ["mars2031", {"kind": "KnownLayout", "name": "freesound2019"}, {"a": []}, None])
def test_whatever_the_bundle_says(folder, tmp_path, layout):
    about = json.loads((tmp_path / "b/bundle.json").read_text())
    (tmp_path / "b/bundle.json").write_text(json.dumps({**about, "layout": layout}))
    assert first_file(tmp_path / "b", folder[1], tmp_path / "s.csv").rows == 4
    (tmp_path / "b/bundle.json").unlink()
    os.mkfifo(tmp_path / "b/bundle.json")
    assert first_file(tmp_path / "b", folder[1], tmp_path / "t.csv").rows == 4
    assert template_name(tmp_path / "b") == "*submission.csv"


@pytest.mark.parametrize("folder", ["freesound2019"], indirect=True)
def test_what_it_leaves_alone(folder, tmp_path):
    "Somebody else's file, a layout of one's own, a folder that is none."
    out = tmp_path / "s.csv"
    out.write_text("chapter,pages\n1,30\n")
    assert first_file(tmp_path / "b", folder[1], out) is None and out.read_text() == "chapter,pages\n1,30\n"
    about = json.loads((tmp_path / "b/bundle.json").read_text())
    described = {"kind": "FolderLayout", "test": {"kind": "SubmissionTable", "file": "mine.csv", "path": "{id}"}}
    (tmp_path / "b/bundle.json").write_text(json.dumps({**about, "layout": described}))
    assert template_name(tmp_path / "b") == "mine.csv"
    assert first_file(tmp_path / "b", folder[1], tmp_path / "t.csv") is None
    assert first_file(tmp_path / "b", tmp_path / "nowhere", tmp_path / "t.csv") is None
    assert not (tmp_path / "t.csv").exists()


LOADED = """
import sys
from audiotag.infer.deadline import Deadline
from audiotag.infer.first_file import ends_here, first_file
report = first_file(*sys.argv[1:])
print(ends_here(report, Deadline("0.5s", started="process")), report.seconds > 0, report.limit)
print(sorted({"numpy", "pandas", "soundfile", "torch", "typer"} & set(sys.modules)))
"""


@pytest.mark.parametrize("folder", ["freesound2019"], indirect=True)
def test_no_library_is_loaded_and_a_short_deadline_ends_there(folder, tmp_path):
    words = [sys.executable, "-c", LOADED, tmp_path / "b", folder[1], tmp_path / "s.csv"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["True True 0.5", "[]"] and (tmp_path / "s.csv").exists()


@pytest.mark.parametrize("folder", ["freesound2019"], indirect=True)
def test_the_command_ends_without_pandas(folder, tmp_path):
    code = "import sys; from audiotag.cli import main; code = main(); print(code, 'pandas' in sys.modules)"
    words = ["infer", "--bundle", tmp_path / "b", "--data", folder[1], "--out", tmp_path / "s.csv", "--deadline", ".01"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False", done.stdout + done.stderr
    assert json.loads((tmp_path / "s.csv.report.json").read_text())["rows"] == 4
    assert not refused(check_submission(tmp_path / "s.csv", load_competition(folder[1], train=False)))


def test_without_a_first_file_nothing_ends():
    assert not ends_here(None, Deadline(0.001))


@pytest.mark.parametrize("folder", ["freesound2019"], indirect=True)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_waits_for_the_file(folder, tmp_path, name):
    code = f"""
import os, signal, sys
import audiotag.infer.first_file as module
honest = module.submission_rows
def slow(*args):
    os.kill(os.getpid(), signal.{name})
    return honest(*args)
module.submission_rows = slow
module.first_file(*sys.argv[1:])
print("survived")
"""
    words = [sys.executable, "-c", code, tmp_path / "b", folder[1], tmp_path / "s.csv"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode in (-getattr(signal, name), 1) and "survived" not in done.stdout
    assert not refused(check_submission(tmp_path / "s.csv", load_competition(folder[1], train=False)))


IMPORTED = """
import os, signal, sys
class Signal:
    def find_spec(self, name, *args):
        if name == "typer": # the command line is being loaded
            os.kill(os.getpid(), getattr(signal, sys.argv.pop()))
sys.meta_path.insert(0, Signal())
from audiotag.start import main
sys.exit(main())
"""


@pytest.mark.parametrize("folder", ["freesound2019"], indirect=True)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_while_the_command_line_is_loaded_waits_for_the_file(folder, tmp_path, name):
    words = ["infer", "--bundle", tmp_path / "b", "--data", folder[1], "--out", tmp_path / "s.csv", name]
    done = subprocess.run([sys.executable, "-c", IMPORTED, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == (130 if name == "SIGINT" else -getattr(signal, name)), done.stderr
    assert not refused(check_submission(tmp_path / "s.csv", load_competition(folder[1], train=False)))
    words = ["doctor", tmp_path / "s.csv", "--data", folder[1], "SIGTERM"]
    done = subprocess.run([sys.executable, "-c", IMPORTED, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGTERM and not done.stdout, "other commands end at once"


def test_limits_count_from_the_start_of_a_kernel_that_runs_as_a_batch(monkeypatch):
    "In an interactive session, which may be hours old, they count from the call."
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    session = as_deadline("1h").elapsed()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert session < 0.1 < as_deadline("1h").elapsed()
    given = Deadline("1h")
    assert as_deadline(given) is given


def test_the_kernels_write_it_before_they_load_anything():
    books = sorted((ROOT / "nbs/kaggle").glob("infer_*.ipynb"))
    assert len(books) == 6
    for book in books:
        code = "\n".join(
            "".join(c["source"]) for c in json.loads(book.read_text())["cells"] if c["cell_type"] == "code"
        )
        before = code[: code.index("first_file(weights")]
        imports = {
            line.split()[1] for line in before.splitlines() if line.startswith(("import audiotag", "from audiotag"))
        }
        assert imports == {"audiotag.kaggle.paths", "audiotag.infer.first_file"}, book


@pytest.mark.parametrize("name", ["/etc/passwd", "a\0b", ".", "../x.csv", "x" * 5000, "**x", "[a", "*/*/*.csv"])
def test_a_template_of_any_name_is_looked_for(tmp_path, name):
    "In the kernel the name that a bundle gives becomes a pattern, before the first file is written."
    (tmp_path / "b").mkdir()
    layout = {"kind": "FolderLayout", "test": {"file": name}}
    (tmp_path / "b/bundle.json").write_text(json.dumps({"layout": layout}))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/my_submission.csv").write_text("")
    sentinel = template_name(tmp_path / "b")
    if sentinel == "*submission.csv":
        assert find_input(tmp_path / "data", sentinel=sentinel) == tmp_path / "data"
        return
    with pytest.raises(AudiotagError, match="was not found"):
        find_input(tmp_path / "data", sentinel=sentinel)
    (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "data" / name).write_text("")
    assert find_input(tmp_path / "data", sentinel=sentinel) == tmp_path / "data"


@pytest.mark.parametrize("prior", [[float("nan"), 0.5], [float("inf"), 0.5], [0.5], ["x", 0.5], [[], 0.5], [2.0, -1.0]])
def test_a_prior_that_is_none(tmp_path, prior):
    "Numbers outside of 0 to 1 are moved inside; anything else gives each class the same."
    (tmp_path / "bundle.json").write_text(json.dumps({"classes": ["a", "b"], "prior": prior}))
    assert first_prior([tmp_path], ["a", "b"]) == ([1.0, 0.0] if prior == [2.0, -1.0] else [0.5, 0.5])


def test_a_class_that_no_csv_can_hold_gives_no_prior(tmp_path):
    (tmp_path / "bundle.json").write_text('{"classes": ["a", "\\ud800"], "prior": [0.1, 0.2]}')
    assert peek_prior(tmp_path) == {} and bundle_classes(tmp_path) == ()
