"Nothing is sent: the whole way, from training to a rehearsal with graphs, with a package in the environment that would send."

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nbformat
import pytest

from tests.tiny import AUDIOTAG, SETS, train_words

from audiotag.rehearse import monitor
from audiotag.core.files import read_json
from audiotag.audio.synth import make_competition

REPO = Path(__file__).resolve().parent.parent.parent
INFER = REPO / "nbs" / "kaggle" / "infer_freesound2019.ipynb"
SENDER = """import os, socket
class Telemetry:
    "As the real one does it: an id in the home folder, and a message for each event."
    def __init__(self, *args, **kwargs):
        home = os.path.join(os.path.expanduser("~"), "intel")
        os.makedirs(home, exist_ok=True)
        with open(os.path.join(home, "openvino_ga_cid"), "w") as f: f.write("an id")
        self.send_event()
    def send_event(self, *args, **kwargs):
        try: socket.create_connection(("www.google-analytics.com", 443), timeout=1)
        except OSError: pass
    send_error = start_session = end_session = send_stack_trace = send_event
    def init(self, *args, **kwargs): pass
    def force_shutdown(self, *args): pass
"""
ALONE = ["unshare", "-rn"]
ALONE = (
    ALONE if shutil.which("unshare") and not subprocess.run([*ALONE, "true"], capture_output=True).returncode else []
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "A folder on the path with the package; where it is mounted in a rehearsal, too."
    folder = tmp_path_factory.mktemp("with-sender") / "site-packages"
    (folder / "openvino_telemetry" / "backend").mkdir(parents=True)
    (folder / "openvino_telemetry" / "__init__.py").write_text(SENDER)
    for name in ("__init__", "backend_ga4"):
        (folder / "openvino_telemetry" / "backend" / f"{name}.py").touch()
    return folder


class Home:
    "Runs commands at home, in an empty home folder, and knows who reached for the network or wrote anywhere else."

    def __init__(self, tmp, site):
        self.tmp, self.home, self.log = tmp, tmp / "home", tmp / "notes.jsonl"
        self.home.mkdir()
        working = "/kaggle/working"  # find_sandbox writes there, inside the sandbox that it tries
        monitor.write_guard(
            tmp / "guard",
            Path(monitor.__file__).read_text(),
            dict(log=str(self.log), writable=[str(tmp), working], block_net=True),
        )
        caches = {
            "MPLCONFIGDIR": "matplotlib",
            "NUMBA_CACHE_DIR": "numba",
            "TMPDIR": "tmp",
            "RUSTUP_HOME": "rustup",
        }  # pip asks rustc for its version, and rustup writes when it is asked
        for name in caches.values():
            (tmp / name).mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "HF_", "XDG_"))}
        self.env = {
            **kept,
            **{k: str(tmp / v) for k, v in caches.items()},
            "HOME": str(self.home),
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            monitor.CELL: "0",
            "PYTHONPATH": os.pathsep.join(map(str, (tmp / "guard", site, REPO))),
        }

    def __call__(self, *words, alone=ALONE, **env):
        "In a network namespace of its own, where the kernel counts what finds no way out: also of programs that are no Python."
        count = ["sh", "-c", '"$@"; code=$?; cat /proc/net/snmp; exit $code', "sh"] if alone else []
        done = subprocess.run(
            [*alone, *count, *map(str, words)], cwd=self.tmp, env={**self.env, **env}, capture_output=True, text=True
        )
        assert done.returncode == 0, (words, done.stdout[-2000:], done.stderr[-2000:])
        out, mark, counted = done.stdout.partition("Ip: ")
        lost = lost_packets((mark + counted).splitlines()) if alone else 0
        return out, done.stderr, [n for n in self.notes() if n["kind"] in ("net", "write")], lost

    def notes(self):
        return monitor.read_events(self.log.read_bytes()) if self.log.is_file() else []

    def quiet(self, *words, **kwargs):
        out, err, tried, lost = self(*words, **kwargs)
        assert not tried and not lost, (words, tried, lost)
        assert not list(self.home.iterdir()), (words, list(self.home.rglob("*")))
        return out, err


def lost_packets(lines):
    names, values = (line.split()[1:] for line in lines if line.startswith("Ip:"))
    return int(dict(zip(names, values))["OutNoRoutes"])


@pytest.fixture(scope="module")
def home(tmp_path_factory, site):
    return Home(tmp_path_factory.mktemp("whole-way"), site)


def test_what_is_looked_for_is_seen(home, tmp_path, site):
    "The watch itself: OpenVINO without audiotag, and a program that is no Python."
    seen = Home(tmp_path, site)
    _, _, tried, lost = seen(
        sys.executable, "-c", "from openvino.tools.ovc import telemetry; print(type(telemetry).__module__)"
    )
    assert any(n["kind"] == "net" and "google-analytics" in n["what"] for n in tried) and (seen.home / "intel").is_dir()
    if ALONE:
        assert seen("bash", "-c", "(echo x > /dev/tcp/9.9.9.9/80) 2>/dev/null; true")[3] > 0
    _, _, tried, _ = seen(sys.executable, "-c", f"open({str(tmp_path.parent / 'elsewhere')!r}, 'w')")
    assert any(n["kind"] == "write" and n["what"].endswith("elsewhere") for n in tried)


IMPORTS = {
    "openvino": "from openvino.tools.ovc import telemetry; said = type(telemetry).__module__",
    "nncf": "from nncf.telemetry import telemetry; said = type(telemetry).__module__",
}


@pytest.mark.parametrize("module", ["core.errors", "infer.openvino_graphs", "kaggle.pack", "cli", "kaggle.wheels"])
@pytest.mark.parametrize("library", [pytest.param(n, marks=pytest.mark.long if n == "nncf" else ()) for n in IMPORTS])
def test_whatever_is_imported_first_openvino_and_nncf_find_a_stub(home, module, library):
    if library == "nncf":
        pytest.importorskip("nncf")
    out, _ = home.quiet(sys.executable, "-c", f"import audiotag.{module}\n{IMPORTS[library]}\nprint(said)")
    assert out.strip() in ("openvino.tools.ovc.telemetry_stub", "unittest.mock")


def test_openvino_that_was_there_before_is_silenced(home, tmp_path):
    "A notebook may import OpenVINO first: what audiotag then does with it sends nothing."
    package = tmp_path / "openvino_telemetry"
    (package / "utils").mkdir(parents=True)
    for name in ("__init__.py", "utils/__init__.py"):
        (package / name).touch()
    (package / "utils" / "sender.py").write_text(
        "class TelemetrySender:\n    def send(self, backend, message): print('sent', message)\n"
    )
    code = "from openvino_telemetry.utils.sender import TelemetrySender as S; s = S(); s.send(0, 'before'){}; s.send(0, 'after')"
    path = os.pathsep.join([str(tmp_path), home.env["PYTHONPATH"]])
    assert [
        home.quiet(sys.executable, "-c", code.format(more), PYTHONPATH=path)[0].split()
        for more in ("", "; import audiotag.core.config")
    ] == [["sent", "before", "sent", "after"], ["sent", "before"]]


def test_the_switches_of_other_libraries_are_off_unless_the_user_has_set_them(home):
    code = "import audiotag.core.config, os; print(os.environ['RAY_USAGE_STATS_ENABLED'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    assert home.quiet(sys.executable, "-c", code)[0].split() == ["0", "1"]
    assert home.quiet(sys.executable, "-c", code, RAY_USAGE_STATS_ENABLED="1")[0].split() == ["1", "1"]


def fake_wheels(folder):
    folder.mkdir()
    for name in (
        "openvino-2026.4.1-1-cp312-cp312-manylinux_2_28_x86_64.whl",
        "openvino_telemetry-2025.2.0-py3-none-any.whl",
    ):
        package, version = name.split("-")[:2]
        with zipfile.ZipFile(folder / name, "w") as z:
            for file, text in (
                ("METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"),
                ("WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"),
                ("RECORD", ""),
            ):
                z.writestr(f"{package}-{version}.dist-info/{file}", text)
            z.writestr(f"{package}/__init__.py", SENDER)


@pytest.fixture(scope="module")
def packed(home):
    "The README's steps at home, up to the rehearsal, each without a word to anybody: the competition, the bundle, the wheels."
    tmp = home.tmp
    data, weights = (
        make_competition(tmp / "data", seed=3, n_curated=40, n_noisy=40, n_test=4),
        tmp / "freesound2019-weights",
    )
    home.quiet(*AUDIOTAG, "baseline", "--data", data, "--out", tmp / "baseline.csv", "--trees", 5)
    home.quiet(*AUDIOTAG, *train_words(data, tmp / "run", [*SETS, "stages.*.epochs=1"]))
    home.quiet(*AUDIOTAG, "report", tmp / "run", "--clips", 2)
    home.quiet(*AUDIOTAG, "pack", "weights", tmp / "run", weights)
    home.quiet(*AUDIOTAG, "export", tmp / "run", weights, "--metric-loss", 1, "--calibrate-with", 4)
    fake_wheels(tmp / "index")
    home.quiet(
        *AUDIOTAG,
        "pack",
        "wheels",
        tmp / "audiotag-wheels",
        "--carry",
        "openvino==2026.4.1",
        PIP_NO_INDEX="1",
        PIP_FIND_LINKS=str(tmp / "index"),
    )
    return data, weights, tmp / "audiotag-wheels"


@pytest.mark.long
def test_at_home(home, packed):
    data, weights, wheels = packed
    assert len(list(weights.glob("*.xml"))) == 3
    assert {p.name.split("-")[0] for p in wheels.glob("*.whl")} == {"audiotag", "openvino"}
    home.quiet(*AUDIOTAG, "infer", "--bundle", weights, "--data", data, "--out", home.tmp / "submission.csv")


@pytest.mark.long
def test_in_a_rehearsal_with_graphs(home, packed):
    "What it finds is in its own report: the rehearsal has a sandbox of its own. Among the wheels is one that an older version has packed."
    data, weights, wheels = packed
    shutil.copy(home.tmp / "index" / "openvino_telemetry-2025.2.0-py3-none-any.whl", wheels)
    words = [
        "--competition",
        data,
        "--bundle",
        weights,
        wheels,
        "--limit",
        "30min",
        "--test-files",
        12,
        "--no-empty",
        "--image",
        "openvino",
    ]
    out, _ = home.quiet(*AUDIOTAG, "rehearse", INFER, *words, "--out", home.tmp / "rehearsal", alone=[])
    report = read_json(home.tmp / "rehearsal" / "report.json")
    assert report["ok"] and "passed" in out and not any(r["attempts"] for r in report["runs"]), out
    printed = "".join(
        o.get("text", "")
        for c in nbformat.read(home.tmp / "rehearsal" / "hidden" / "executed.ipynb", 4).cells
        for o in c.get("outputs", [])
    )
    assert printed.count(" (int8): ") == 6 and "no OpenVINO graphs" not in json.dumps(report), printed
