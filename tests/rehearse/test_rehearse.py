"Notebooks with one fault each: it is stopped, and reported with its cell."

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import signal
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from audiotag.data.competitions import load_competition
from audiotag.core.errors import AudiotagError
from audiotag.rehearse.monitor import read_events
from audiotag.rehearse.hidden_test import FAULTS, hidden_test
from audiotag.rehearse.rehearse import (
    IMAGE,
    Limits,
    _process_tree,
    image_differences,
    image_packages,
    not_in_image,
    rehearse,
)
from audiotag.audio.synth import make_competition
from audiotag.rehearse.sandbox import Python, SandboxSpec, find_python, find_sandbox

TOOLS = [w for w in ("bwrap", "unshare") if find_sandbox(w).files]
ALL_TOOLS = [*TOOLS, "none"]  # the first of them in `make test`, the others in `make test-long`
EACH_TOOL = [ALL_TOOLS[0], *(pytest.param(w, marks=pytest.mark.long) for w in ALL_TOOLS[1:])]
needs_sandbox = pytest.mark.skipif(
    not TOOLS, reason="this machine allows no user namespaces: " + "; ".join(find_sandbox().missing)
)
START = """import csv, os, pathlib
homes = ['/kaggle/input', *os.environ.get('AUDIOTAG_INPUT', '').split(':')]
root = next(p for h in homes if h for p in pathlib.Path(h).glob('**/sample_submission.csv')).parent"""
WRITE = """head,*rows = csv.reader(open(root/'sample_submission.csv'))
rows = [[n, *rows[0][1:]] for n in sorted(os.listdir(root/'test')) if n.endswith('.wav')] or rows
def write(rows): csv.writer(open('submission.csv', 'w')).writerows([head, *rows])
write(rows)"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_competition(
        tmp_path_factory.mktemp("data") / "birds-2024",
        seed=1,
        n_curated=8,
        n_noisy=8,
        n_test=4,
        sample_rate=16000,
        seconds=(0.3, 0.5),
    )


@pytest.fixture
def rehearse_cells(data, tmp_path):
    "Write a notebook of these cells and rehearse it; quick, without the empty test unless asked for."

    def run(*cells, limit="40s", memory="3GB", empty=False, **kwargs):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
        nbformat.write(nb, tmp_path / "book.ipynb")
        kwargs = {"bundles": [], **kwargs}
        limits = Limits(limit=limit, memory=memory, **kwargs.pop("limits", {}))
        return rehearse(
            tmp_path / "book.ipynb", competition=data, out=tmp_path / "out", limits=limits, empty=empty, **kwargs
        )

    return run


def problem(found, *words):
    assert not found.ok
    matching = [p for p in found.problems if all(w in p for w in words)]
    assert matching, f"{words} are not in {found.problems}"
    return matching[0]


@pytest.mark.parametrize(
    "tool,mounts",
    [
        pytest.param(w, "old" if w == "none" else "new", marks=() if w == ALL_TOOLS[0] else pytest.mark.long)
        for w in ALL_TOOLS
    ],
)
def test_a_notebook_that_behaves(rehearse_cells, tool, mounts):
    found = rehearse_cells(
        START,
        WRITE,
        "import os, sys\nprint(sorted(k for k in os.environ if 'KEY' in k or 'TOKEN' in k), len(os.sched_getaffinity(0)))",
        empty=True,
        isolation=tool,
        mounts=mounts,
        limits={"cores": 1},
    )
    assert found.ok and found.runs[0].output == ["submission.csv"], found
    assert (
        [(r.finished, r.refused) for r in found.runs] == [(True, False)] * 2
        and found.runs[0].files == 13
        and found.runs[1].files == 0
    )
    assert len(found.runs[0].faults) == 9 and found.projection["files"] == 12 and found.runs[0].memory > 5e7
    assert found.sandbox.tool == tool and bool(found.sandbox.missing) == (tool == "none")
    report = found.to_dict()
    assert report["ok"] is True and report["walls"]["tool"] == tool and "submission" in str(found)


@pytest.mark.long
def test_mounts_are_kaggles(rehearse_cells, data, tmp_path, monkeypatch):
    bundle = tmp_path / "bird-weights"
    bundle.mkdir()
    (bundle / "bundle.json").write_text("{}")
    (bundle / "dataset-metadata.json").write_text(json.dumps({"title": "birds", "id": "ann/bird-weights"}))
    look = "import os\nprint([os.path.join(d, f) for d,_,n in os.walk(WHERE) for f in n if f.endswith('.json')], sorted(os.listdir('/kaggle/input')))".replace(
        "WHERE", "'/kaggle/input'"
    )
    for mounts, at in (
        ("new", "/kaggle/input/datasets/ann/bird-weights/bundle.json"),
        ("old", "/kaggle/input/bird-weights/bundle.json"),
    ):
        if not TOOLS:
            pytest.skip("no mounts without namespaces")
        rehearse_cells("DATA = 'other-name'", START, look, WRITE, bundles=[bundle], mounts=mounts)
        book = nbformat.read(tmp_path / "out" / "hidden" / "executed.ipynb", 4)
        printed = book.cells[2].outputs[0].text
        assert at in printed and ("other-name" in printed or "competitions" in printed), printed


@pytest.mark.parametrize("tool", EACH_TOOL)
def test_it_uses_the_network(rehearse_cells, tool):
    "In Python, behind a `try`; by another program; in a Python of its own."
    cells = [
        "import socket\ntry: socket.create_connection(('8.8.8.8', 53), timeout=1)\nexcept OSError as e: print(e)",
        "import urllib.request\ntry: urllib.request.urlopen('http://example.com/x', timeout=2)\nexcept OSError as e: print(e)",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import socket\\ntry: socket.create_connection((\"9.9.9.9\", 80), 1)\\nexcept OSError: pass'])",
    ]
    found = rehearse_cells(START, *cells, WRITE, isolation=tool)
    assert found.runs[0].finished
    for cell, what in ((2, "8.8.8.8:53"), (3, "example.com"), (4, "9.9.9.9:80")):
        problem(found, f"cell {cell} ", what, "tried to reach the network")


@pytest.mark.long
@needs_sandbox
def test_a_program_without_a_monitor_uses_the_network(rehearse_cells):
    "bash itself connects, which audit hooks cannot see: the count of unroutable packets shows it."
    found = rehearse_cells(
        START,
        "import subprocess\nsubprocess.run(['bash', '-c', 'echo x > /dev/tcp/9.9.9.9/80'], stderr=subprocess.DEVNULL)",
        WRITE,
    )
    problem(found, "cell 2 ", "tried to reach the network", "/dev/tcp")


@pytest.mark.parametrize("tool", EACH_TOOL)
def test_it_writes_elsewhere(rehearse_cells, data, tool):
    before = {p: p.stat().st_mtime_ns for p in data.rglob("*")}
    cells = [
        "try: open(root/'test'/'x.txt', 'w')\nexcept OSError as e: print(e)",
        "try: os.makedirs('/srv-cache/x')\nexcept OSError as e: print(e)",
        "try: os.remove(root/'sample_submission.csv')\nexcept OSError as e: print(e)",
        "import tempfile\nwith tempfile.NamedTemporaryFile() as f: f.write(b'x')",
    ]
    found = rehearse_cells(START, *cells, WRITE, isolation=tool)
    assert found.runs[0].finished
    for cell, what in ((2, "test/x.txt"), (3, "/srv-cache"), (4, "sample_submission.csv")):
        problem(found, f"cell {cell} ", what, "tried to write outside of /kaggle/working")
    assert not [p for p in found.problems if "cell 5" in p] and not os.path.exists("/srv-cache/x")
    assert before == {p: p.stat().st_mtime_ns for p in data.rglob("*")}


@needs_sandbox
@pytest.mark.parametrize("tool", [w if w == TOOLS[0] else pytest.param(w, marks=pytest.mark.long) for w in TOOLS])
def test_what_kaggle_gives_and_what_it_keeps(rehearse_cells, data, tmp_path, tool):
    "A /tmp of its own that can be written to and is gone afterwards; the tables with the answers are not there."
    assert (data / "truth/test.csv").is_file()
    (data / "test_post_competition.csv").write_text("fname,labels\n")
    found = rehearse_cells(
        START,
        "import pathlib, tempfile\nprint(os.listdir('/tmp'), tempfile.gettempdir())\npathlib.Path('/tmp/audiotag-mark').write_text('x')",
        "print(sorted(os.listdir(root)))",
        WRITE,
        isolation=tool,
    )
    (data / "test_post_competition.csv").unlink()
    assert found.ok, found
    assert any("truth/noisy.csv" in n and "test_post_competition.csv" in n for n in found.notes)
    printed = [c.outputs[0].text for c in nbformat.read(tmp_path / "out/hidden/executed.ipynb", 4).cells[1:3]]
    # the interpreter may itself lie below /tmp
    seen = sorted({Path(p).parts[2] for p in (sys.prefix, __file__) if Path(p).parts[1] == "tmp"})
    assert printed[0] in (f"{seen} /tmp\n", "[] /tmp\n") and not os.path.exists("/tmp/audiotag-mark")
    assert not (tmp_path / "out/hidden/tmp").exists()
    tables = ["sample_submission.csv", "train_curated.csv", "train_noisy.csv"]
    assert eval(printed[1]) == sorted([*tables, "test", "train_curated", "train_noisy"])


def test_the_answers_are_found_by_their_names(tmp_path):
    from audiotag.rehearse.rehearse import _link_mounts, _split_folder, withheld_tables

    hidden = ["solution.csv", "meta/Test_Labels.csv", "meta/ground-truth/eval.csv", "answers/a.json"]
    given = ["train.csv", "test/answer.wav", "meta/classes.txt", "meta/ground-truth/dev.csv", "answering.csv"]
    for name in (*hidden, *given):
        (tmp_path / "c" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "c" / name).write_text(name)
    found = withheld_tables(tmp_path / "c", kept=["meta/ground-truth/dev.csv"])
    assert [str(p) for p in found] == sorted(hidden)
    mounts = [(tmp_path / "c" / p, f"/kaggle/input/c/{p}") for p in _split_folder(tmp_path / "c", found)]
    (tmp_path / "hidden").mkdir()
    view = _link_mounts(tmp_path / "view", [*mounts, (tmp_path / "hidden", "/kaggle/input/c/test")]) / "c"
    left = sorted(os.path.relpath(p, view) for p in map(str, view.rglob("*")) if os.path.isfile(p))
    assert left == sorted(set(given) - {"test/answer.wav"}) and os.path.isdir(view / "test")


def test_the_notebook_cannot_say_that_it_has_finished(rehearse_cells):
    "Whatever it writes to the log, the runner's exit status tells how it ended."
    forged = '{"cell": 0, "kind": "end", "what": "ok", "at": 0}'
    forge = (
        "import pathlib\nfor p in pathlib.Path('.').rglob('log.jsonl'):\n"
        f"    with open(p, 'a') as f: f.write({forged!r} + chr(10))\nraise ValueError('odd')"
    )
    found = rehearse_cells(START, WRITE, forge)
    assert not found.runs[0].finished
    problem(found, "Notebook Threw Exception", "ValueError: odd", "cell 3 ")


@pytest.mark.long
@needs_sandbox
def test_a_program_without_a_monitor_writes_elsewhere(rehearse_cells):
    "A known program is recognized by its command line, any other by what it prints."
    quiet = "import subprocess\nfor c in ('touch /kaggle/input/marker', 'echo 1 > /kaggle/input/other'): subprocess.run(c, shell=True, capture_output=True)"
    found = rehearse_cells(
        START,
        quiet,
        '!perl -e \'open(F, ">/kaggle/input/third") or print "$!\\n"\'',
        "!cp /etc/hostname copy.txt",
        WRITE,
    )
    for cell, what in ((2, "/kaggle/input/marker"), (2, "/kaggle/input/other"), (3, "Read-only file system")):
        problem(found, f"cell {cell} ", "tried to write outside of /kaggle/working", what)
    assert not [p for p in found.problems if "cell 4" in p]


@needs_sandbox
def test_it_does_not_see_the_users_home(rehearse_cells, tmp_path):
    found = rehearse_cells(
        START,
        f"print(os.path.exists({str(tmp_path)!r}), os.path.exists('/root/.bashrc'), os.listdir(os.path.expanduser('~')))",
        WRITE,
    )
    book = nbformat.read(tmp_path / "out" / "hidden" / "executed.ipynb", 4)
    assert found.ok and book.cells[1].outputs[0].text == "False False []\n"


@pytest.mark.long
def test_it_exceeds_the_memory(rehearse_cells):
    found = rehearse_cells(START, "x = []\nwhile True: x.append(bytearray(10_000_000))", WRITE, memory="600MB")
    problem(found, "Notebook Exceeded Allowed Compute", "cell 2 ", "600MB")
    assert 6e8 < found.runs[0].memory < 3e9 and "Submission CSV Not Found" in str(found)


@pytest.mark.long
def test_its_children_exceed_the_memory(rehearse_cells):
    "Four processes with 150 MB each."
    eat = "import subprocess, sys\nps = [subprocess.Popen([sys.executable, '-c', 'import time; x = bytearray(150_000_000); time.sleep(60)']) for _ in range(4)]\n[p.wait() for p in ps]"
    found = rehearse_cells(START, eat, WRITE, memory="600MB")
    problem(found, "Notebook Exceeded Allowed Compute", "cell 2 ")


@pytest.mark.long
def test_it_never_ends_and_nothing_is_left_of_it(rehearse_cells, tmp_path):
    mark = f"audiotag-test-{os.getpid()}"
    start = time.monotonic()
    found = rehearse_cells(
        START,
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)', '{mark}'], start_new_session=True)\nwhile True: pass",
        limit="7s",
        empty=True,
    )
    problem(found, "Notebook Timeout", "cell 2 ", "7s")
    assert (
        time.monotonic() - start < 30
        and len(found.runs) == 1
        and any("not run without test files" in n for n in found.notes)
    )
    time.sleep(0.2)
    assert not [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]


@pytest.mark.long
def test_nothing_is_left_without_a_pid_namespace_either(rehearse_cells):
    mark = f"audiotag-test-none-{os.getpid()}"
    rehearse_cells(
        START,
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)', '{mark}'], start_new_session=True)\nwhile True: pass",
        limit="7s",
        isolation="none",
    )
    time.sleep(0.2)
    assert not [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or [])]


@pytest.mark.long
def test_it_fills_the_disk(rehearse_cells):
    found = rehearse_cells(
        START,
        "import time\nwith open('big.bin', 'wb') as f:\n    while True: f.write(bytes(5_000_000)); f.flush(); time.sleep(.05)",
        limits={"disk": "40MB"},
    )
    problem(found, "Notebook Exceeded Allowed Compute", "40MB", "cell 2 ")


def test_a_killed_runner_is_one_sentence(rehearse_cells):
    "The kernel kills its parent, as the system does when it runs out of memory."
    with pytest.raises(AudiotagError, match=r"was killed by another process \(SIGKILL\) in cell 2 .*out of memory"):
        rehearse_cells(START, "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)", WRITE, isolation="none")


def kill_runner():
    "Kill the process that executes the notebook of this test, once its kernel is there."
    for _ in range(300):
        time.sleep(0.1)
        for p in psutil.Process().children(recursive=True):
            try:
                if "audiotag_guard.run" in " ".join(p.cmdline()[:3]) and p.children():
                    p.kill()
                    return
            except psutil.Error:
                pass


@needs_sandbox
@pytest.mark.long
@pytest.mark.parametrize("tool", TOOLS)
def test_a_killed_sandbox_is_one_sentence(rehearse_cells, tool):
    "The first process inside is killed from outside."
    killer = threading.Thread(target=kill_runner)
    killer.start()
    with pytest.raises(AudiotagError, match=r"was killed by another process \(SIGKILL\)"):
        rehearse_cells(START, "import time\ntime.sleep(30)", WRITE, isolation=tool)
    killer.join()


def kernels():
    "The processes below this one that execute a notebook; one that ends while it is looked at is left out."
    found = []
    for p in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            found += [p] if "ipykernel_launcher" in " ".join(p.cmdline()) else []
    return found


def terminate_when_the_kernel_runs(over):
    "Send this process a SIGTERM once the kernel of its rehearsal is there, unless the event `over` is set before."
    while not over.wait(0.1):
        if kernels():
            os.kill(os.getpid(), signal.SIGTERM)
            return


def test_a_terminated_rehearsal_leaves_no_process(rehearse_cells):
    class Terminated(Exception):
        pass

    def terminate(number, frame):
        raise Terminated

    before, over = signal.signal(signal.SIGTERM, terminate), threading.Event()
    sender = threading.Thread(target=terminate_when_the_kernel_runs, args=(over,))
    sender.start()
    try:
        with pytest.raises(Terminated):
            rehearse_cells(START, "import time\ntime.sleep(30)", WRITE)
    finally:
        over.set()
        sender.join()
        signal.signal(signal.SIGTERM, before)
    time.sleep(0.5)
    assert not kernels()


def test_a_missing_row(rehearse_cells):
    found = rehearse_cells(START, WRITE, "write(rows[1:])", empty=True)
    problem(found, "with the hidden test: Submission Scoring Error", "missing")
    problem(found, "without test files: Submission Scoring Error")


@pytest.mark.long
def test_rows_for_the_public_test_only(rehearse_cells, data):
    "The most common failure in the rerun: the notebook writes the rows of the public template."
    public = f"open('submission.csv', 'w').write({(data / 'sample_submission.csv').read_text()!r})"
    found = rehearse_cells(START, public, empty=True)
    assert [r.refused for r in found.runs] == [True, False]
    problem(found, "with the hidden test: Submission Scoring Error")


@pytest.mark.long
def test_no_submission(rehearse_cells):
    problem(rehearse_cells(START), "Submission CSV Not Found")


@pytest.mark.long
def test_it_dies_after_a_partial_file(rehearse_cells):
    found = rehearse_cells(
        START,
        WRITE.replace("write(rows)", "write(rows[:3])").replace("def write(rows[:3])", "def write(rows)"),
        "import signal\nos.kill(os.getpid(), signal.SIGKILL)",
    )
    problem(found, "Notebook Threw Exception", "its kernel died", "cell 3 ")
    problem(found, "Kaggle would refuse the submission that it left", "missing")


@pytest.mark.long
def test_it_throws(rehearse_cells):
    found = rehearse_cells(START, WRITE, "raise ValueError('odd')", "print('never')")
    problem(found, "Notebook Threw Exception", "ValueError: odd", "cell 3 ")
    assert found.runs[0].finished is False and found.runs[0].refused is False


@pytest.mark.long
def test_an_odd_file_is_too_much_for_it(rehearse_cells):
    found = rehearse_cells(
        START, "import soundfile\nfor p in sorted((root/'test').iterdir()): soundfile.read(p)", WRITE, empty=True
    )
    problem(found, "with the hidden test: Notebook Threw Exception", "cell 2 ")


@pytest.mark.long
def test_no_test_file_is_too_much_for_it(rehearse_cells):
    found = rehearse_cells(START, "first = sorted((root/'test').glob('*.wav'))[0]", WRITE, empty=True)
    assert [r.finished for r in found.runs] == [True, False]
    problem(found, "without test files: Notebook Threw Exception", "IndexError")


@pytest.mark.long
def test_what_the_image_lacks(rehearse_cells):
    "audiotag itself is not there."
    found = rehearse_cells(
        START,
        "import importlib.util\nprint(importlib.util.find_spec('audiotag'))\ntry: import openvino\nexcept ImportError: pass",
        "import audiotag",
        WRITE,
    )
    problem(found, "ModuleNotFoundError: No module named 'audiotag'", "cell 3 ")
    assert any("'audiotag'" in n and "no wheel installed it" in n for n in found.notes)
    assert {"six", "torch", "ipykernel"} <= image_packages() and "audiotag" not in image_packages()


def test_a_wheel_is_installed_in_the_scratch_folder(rehearse_cells, tmp_path):
    "pip installs an attached wheel inside the sandbox, and its modules are found though the image lacks them."
    from audiotag.kaggle.wheels import audiotag_wheel

    wheels = tmp_path / "audiotag-wheels"
    wheels.mkdir()
    audiotag_wheel(wheels)
    install = "import glob, importlib, subprocess, sys\nw = [p for h in homes if h for p in glob.glob(h+'/**/audiotag-*.whl', recursive=True)]\nsubprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-index', '--no-deps', w[0]], check=True)\nimportlib.invalidate_caches()\nimport audiotag\nprint(audiotag.__file__)"
    found = rehearse_cells(START, install, WRITE, bundles=[wheels])
    assert found.runs[0].finished and not found.runs[0].attempts, found
    book = nbformat.read(tmp_path / "out" / "hidden" / "executed.ipynb", 4)
    assert "/.rehearse/site/audiotag/" in book.cells[1].outputs[-1].text


def test_wrong_arguments_are_one_sentence(rehearse_cells, data, tmp_path):
    for kwargs in (
        dict(limit="soon"),
        dict(memory="much"),
        dict(mounts="newest"),
        dict(isolation="brick"),
        dict(bundles=[tmp_path / "nowhere"]),
        dict(layout="birds"),
        dict(limits={"cores": 0}),
        dict(parameters={"X": 1}),
    ):
        with pytest.raises(AudiotagError):
            rehearse_cells("print(1)", **kwargs)
    (tmp_path / "book.ipynb").write_text("{")
    with pytest.raises(AudiotagError, match="not a readable notebook"):
        rehearse(tmp_path / "book.ipynb", competition=data, out=tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("words")
    (tmp_path / "book.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook()))
    with pytest.raises(AudiotagError, match="holds files"):
        rehearse(tmp_path / "book.ipynb", competition=data, out=tmp_path / "mine")


# --- in another Python ----------------------------------------------------------------------------


@pytest.fixture
def other_python(tmp_path):
    "A Python in a folder of its own: `bare`, or with all that is installed here."

    def make(bare=False):
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "other"], check=True)
        site = next((tmp_path / "other" / "lib").glob("python3*")) / "site-packages"
        if not bare:
            (site / "all.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
        return tmp_path / "other" / "bin" / "python"

    return make


@pytest.mark.parametrize("tool", EACH_TOOL)
def test_another_python_runs_the_notebook(rehearse_cells, other_python, tmp_path, tool):
    where = "import subprocess, sys\nprint(sys.executable, subprocess.run(['python', '-c', 'import sys; print(sys.prefix)'], capture_output=True, text=True).stdout)"
    found = rehearse_cells(START, where, WRITE, python=other_python(), isolation=tool)
    assert found.ok, found
    book = nbformat.read(tmp_path / "out" / "hidden" / "executed.ipynb", 4)
    assert book.cells[1].outputs[0].text.split() == [str(tmp_path / "other/bin/python"), str(tmp_path / "other")]


def test_an_unusable_python_is_one_sentence(rehearse_cells, other_python, tmp_path):
    old, text = tmp_path / "python3.9", tmp_path / "python.txt"
    old.write_text("#!/bin/sh\necho Python 3.9\n")
    old.chmod(0o755)
    text.write_text("")
    for path, message in (
        (tmp_path / "nowhere", "file not found"),
        (text, "not an executable"),
        (tmp_path, "not an executable"),
        ("/bin/true", "not a Python"),
        (old, "Python 3.9"),
        (other_python(bare=True), "lacks ipykernel and nbclient"),
    ):
        with pytest.raises(AudiotagError, match=message) as e:
            rehearse_cells("print(1)", python=path)
        assert str(path) in str(e.value) and "--python" in str(e.value)
    assert find_python(sys.executable).version == sys.version.split()[0]


def test_the_image_is_compared_with_another_python():
    "Its packages count, not those installed here, and requirement markers use its version."
    packages = {
        "torch": ("2.10.0+cpu", ["sympy", "old-thing; python_version<'3.12'"]),
        "sympy": ("1", []),
        "old-thing": ("1", []),
        "librosa": ("0.10.0", []),
        "audiotag": ("0.1", []),
        "fancy": ("1", []),
    }
    python = Python(
        "/p",
        "3.12.13",
        [],
        [],
        packages,
        {"torch": ["torch"], "sympy": ["sympy"], "frills": ["fancy"], "oldthing": ["old-thing"]},
    )
    assert not {"old-thing", "fancy", "audiotag"} & image_packages((), python) and "fancy" in image_packages(
        ("fancy",), python
    )
    assert not_in_image((), python) == (["audiotag", "frills", "oldthing"], ["audiotag", "fancy", "old-thing"])
    assert image_differences(python) == {"librosa": ("0.10.0", IMAGE["librosa"])}


# --- as an ordinary user --------------------------------------------------------------------------

AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
SITE = next((p for p in sys.path if p.endswith("site-packages")), "")


@functools.cache
def python_for_nobody():
    "A Python that an ordinary user may run: this one, or the system's of the same version with this one's packages."
    if os.getuid() or not shutil.which("setpriv"):
        return None, {}
    env = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": f"{SITE}:{Path(__file__).resolve().parent.parent.parent}",
        "OMP_NUM_THREADS": "1",
    }
    for exe in (sys.executable, "/usr/bin/python%d.%d" % sys.version_info[:2]):
        # it must be able to start itself again, as a rehearsal does: a link into a home of somebody else cannot
        code = (
            "import os, subprocess, sys, audiotag.rehearse.rehearse, nbclient; subprocess.run([sys.executable, '-c', ''], check=True); "
            "raise SystemExit(os.path.realpath(sys.executable)!=os.path.realpath(os.readlink('/proc/self/exe')))"
        )
        if (
            os.path.exists(exe)
            and subprocess.run([*AS_NOBODY, exe, "-c", code], capture_output=True, cwd="/", env=env).returncode == 0
        ):
            return exe, env
    return None, {}


@pytest.mark.long
@pytest.mark.parametrize("tool", ["bwrap", "unshare"])
def test_as_an_ordinary_user(data, tool):
    import tempfile

    exe, env = python_for_nobody()
    if exe is None:
        pytest.skip("only root can become somebody else, and that one must be able to run this Python")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as tmp:
        os.chmod(tmp, 0o777)
        shutil.copytree(data, Path(tmp) / "birds-2024")
        nb = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(c) for c in (START, WRITE, "open('/kaggle/input/x', 'w')")]
        )
        nbformat.write(nb, Path(tmp) / "book.ipynb")
        words = [
            "-c",
            "from audiotag.cli import main; raise SystemExit(main())",
            "rehearse",
            f"{tmp}/book.ipynb",
            "--competition",
            f"{tmp}/birds-2024",
            "--isolation",
            tool,
            "--no-empty",
            "--limit",
            "60s",
            "--out",
            f"{tmp}/out",
        ]
        done = subprocess.run(
            [*AS_NOBODY, exe, *words], capture_output=True, text=True, cwd=tmp, env={**env, "HOME": tmp}
        )
        assert done.returncode == 2, done.stdout + done.stderr
        assert (
            f"sandbox ({tool}): no network, read-only input" in done.stdout or "note: no namespaces (" in done.stdout
        ), done.stdout + done.stderr
        assert "Read-only file system" in done.stdout and "cell 3" in done.stdout


# --- the parts ------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize(
    "name,layout",
    [
        ("freesound", "freesound2019"),
        ("speech", "universal2020"),
        ("rainforest", "rainforest2021"),
        ("soundscape", "birdclef2024"),
    ],
)
def test_a_hidden_test_of_every_layout(sample_set, tmp_path, name, layout):
    "The loader accepts its template, the template lists its files, and every fault occurs."
    comp = load_competition(sample_set(name), layout, train=False)
    made = hidden_test(comp, tmp_path / "h", files=len({p for p in comp.of("test").path}) + 9)
    view = tmp_path / "view"
    view.mkdir()
    for o in comp.root.iterdir():
        if o.name not in (made.folder_name, made.template_name):
            os.symlink(o, view / o.name)
    os.symlink(made.test, view / made.folder_name)
    os.symlink(made.template, view / made.template_name)
    again = load_competition(view, layout, train=False)
    assert {Path(p).name for p in again.of("test").path} == {p.name for p in made.test.iterdir()}
    assert sorted(made.faults.values()) == sorted(FAULTS) and len(set(again.of("test").clip_id)) == len(
        again.of("test")
    )


def test_a_hidden_test_is_the_same_again(data, tmp_path):
    comp = load_competition(data, train=False)
    one, two = (hidden_test(comp, tmp_path / n) for n in ("a", "b"))
    contents = {p.name: p.read_bytes() for p in one.test.iterdir()}
    assert contents == {p.name: p.read_bytes() for p in two.test.iterdir()}
    assert not [name for name, content in contents.items() if b"PEAK" in content[:200]]  # with the time of writing
    assert hidden_test(comp, tmp_path / "c", files=5).files == 5


def test_incomplete_events_are_skipped():
    assert read_events(b'{"cell": 1, "kind": "net", "what": "x"}\n[1]\n{"cell": 2, "ki') == [
        {"cell": 1, "kind": "net", "what": "x"}
    ]


def test_missing_tools_are_named(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    sandbox = find_sandbox()
    assert (sandbox.tool, sandbox.net, sandbox.files) == ("none", False, False)
    assert (
        "bwrap is not installed; unshare is not installed" in sandbox.missing[0]
        and "AUDIOTAG_INPUT" in sandbox.missing[1]
    )


@needs_sandbox
def test_root_cannot_make_the_input_writable(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "work").mkdir()
    for tool in TOOLS:
        room = SandboxSpec(
            [(tmp_path / "in", "/kaggle/input")], tmp_path / "work", {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
        )
        words = find_sandbox(tool).command(
            room,
            [
                "/bin/sh",
                "-c",
                "mount -o remount,rw,bind /kaggle/input; echo 1 > /kaggle/input/x; mount -o remount,rw /kaggle/input; echo 1 > /kaggle/input/y; exit 0",
            ],
        )
        subprocess.run(words, capture_output=True)
        assert not list((tmp_path / "in").iterdir()), tool


def test_the_tree_of_a_process_that_has_ended():
    p = subprocess.Popen([sys.executable, "-c", ""])
    p.wait()
    assert _process_tree(p.pid) == []


def test_the_disk_counts_apparent_sizes_and_deleted_files_that_are_open(tmp_path):
    from audiotag.rehearse.rehearse import _disk_usage

    with open(tmp_path / "holes", "wb") as f:
        f.truncate(3_000_000_000)
    os.link(tmp_path / "holes", tmp_path / "again")
    assert 3_000_000_000 == _disk_usage(tmp_path)
    code = "import os, sys; f = open('gone', 'wb'); f.truncate(10**9); os.unlink('gone'); print(); sys.stdin.read()"
    p = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    p.stdout.readline()
    assert 4_000_000_000 == _disk_usage(tmp_path, [p])
    p.communicate()


def test_what_was_written_at_the_very_end_counts(tmp_path):
    from audiotag.rehearse.rehearse import _wait_within_limits

    spec = SandboxSpec([], tmp_path, {"AUDIOTAG_REHEARSAL": "none such"})
    p = subprocess.Popen(["truncate", "-s", "41M", "big.bin"], cwd=tmp_path)
    assert _wait_within_limits(p, spec, Limits(limit="60s", disk="40MB")).stopped == "disk"
