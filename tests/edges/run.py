"""Do the edges of the ranges in settings.ini hold? `python tests/edges/run.py [EDGE ...]`, or `make test-edges`.

    newest        the newest versions that the ranges allow, on the newest Python of this machine
    oldest        the oldest, on the oldest Python
    kaggle        the versions of Kaggle's image; its five inference notebooks run there without a network, on bundles that are trained here,
                  with audiotag and openvino from the wheels of `audiotag pack wheels`
    tested-3.12   constraints.txt, on that Python

Each edge is installed into an environment of its own below build/edges, one after the other, and removed again (`--keep` leaves it there).
An environment takes up to 8 GB, and uv's cache as much for each version of torch. What fails is named in one line with the packages that
it fails in. The results are written to tests/bench/results/edges.md. The exit code is 1 if anything failed.
"""

import argparse
import configparser
import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
from tests.edges.checks import RECIPES, plain  # noqa: E402

BUILD = REPO / "build" / "edges"
RESULTS = REPO / "tests" / "bench" / "results" / "edges.md"
CHECKS = REPO / "tests" / "edges" / "checks.py"
KEY = (
    "torch",
    "torchvision",
    "torchaudio",
    "fastai",
    "fastcore",
    "timm",
    "librosa",
    "soundfile",
    "numpy",
    "pandas",
    "scipy",
    "scikit-learn",
    "openvino",
)
PYTHONS = ("3.13", "3.12", "3.11", "3.10")
PRINT = dict(flush=True)
VERSIONS = "import json; from importlib.metadata import distributions as d; print(json.dumps({o.metadata['Name']: o.version for o in d()}))"


def requirements(name="requirements"):
    "The lines of settings.ini."
    parser = configparser.ConfigParser(delimiters=["="])
    parser.read(REPO / "settings.ini", encoding="utf-8")
    return [line.strip() for line in parser["DEFAULT"][name].splitlines() if line.strip()]


def package(requirement):
    return plain(re.match(r"[A-Za-z0-9._-]+", requirement)[0])


@dataclass
class Edge:
    name: str
    pythons: tuple  # versions, the first that is found is taken
    words: list  # behind `uv pip install`
    checks: list  # of checks.py


def make_edge(name):
    "The edge of that name; exits with a sentence if there is none."
    imports = [f"import {package(r)}" for r in requirements()]
    everything = [*imports, *(f"recipe {r}" for r in RECIPES), "export", "notebook"]
    ranges = ["--requirements", "setup.py", "--refresh-package", "audiotag"]
    if name == "newest":
        return Edge(name, PYTHONS, [*ranges, "--resolution", "highest"], everything)
    if name == "oldest":
        return Edge(name, PYTHONS[::-1], [*ranges, "--resolution", "lowest-direct"], everything)
    if name == "kaggle":
        from audiotag.rehearse.rehearse import IMAGE

        there = [
            *(f"{n}=={v}" for n, v in IMAGE.items() if v),
            *(r for r in requirements() if package(r) != "openvino"),
            "pip",
        ]
        return Edge(
            name, ("3.12",), there, [c for c in everything if c not in ("import openvino", "export", "notebook")]
        )
    if re.fullmatch(r"tested-3\.\d+", name):
        words = [*ranges, "--extra", "dev", "--constraints", "constraints.txt"]
        return Edge(name, (name[7:],), words, [*imports, "import torchaudio", "import nncf", f"recipe {RECIPES[0]}"])
    raise SystemExit(f"there is no edge {name!r}: newest, oldest, kaggle, tested-{PYTHONS[1]}")


# --- Python and uv ----------------------------------------------------------------------------------


def run(words, **kwargs):
    return subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, **kwargs
    )


def find_python(versions, uv):
    "The path of the first of these Pythons that is on PATH, that uv knows, or that pyenv has; None if there is none."
    for version in versions:
        known = run([uv, "python", "find", "--no-project", "--no-python-downloads", "--system", version]).stdout.split()
        pyenv = sorted(
            Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob(f"versions/{version}.*/bin/python")
        )
        for path in (shutil.which(f"python{version}"), *known, *pyenv):
            try:
                if (
                    path
                    and run([path, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]).stdout.strip()
                    == version
                ):
                    return str(path)
            except OSError:
                continue
    return None


def environment():
    "For what runs in an edge: this code, no network for weights, and nothing of the user's."
    return {
        **os.environ,
        "PYTHONPATH": str(REPO),
        "PYTHONNOUSERSITE": "1",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
        "HF_HUB_OFFLINE": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",
    }


def install(edge, uv, python, folder):
    "Make the environment; returns what went wrong, or ''."
    shutil.rmtree(folder, ignore_errors=True)
    for words in (
        ["venv", "--quiet", "--no-project", "--python", python, folder],
        ["pip", "install", "--quiet", "--python", folder / "bin/python", *edge.words],
    ):
        done = run([uv, *words], cwd=REPO)
        if done.returncode:
            return "cannot be installed: " + " ".join(re.sub(r"[×╰─▶│├]", " ", done.stderr).split())[:600]
    return ""


# --- the checks -------------------------------------------------------------------------------------


def run_checks(edge, python, folder, timeout=3600):
    "What went wrong, a line each; `timeout` is in seconds, for all checks together."
    folder.mkdir(parents=True, exist_ok=True)
    todo, failures = list(edge.checks), []
    while todo:
        print(f"{edge.name}: {', '.join(todo)}", **PRINT)
        log = folder / f"{len(todo)}-left.log"
        with open(log, "w+") as out, open(log.with_suffix(".err"), "w+") as err:
            words = [python, "-X", "faulthandler", CHECKS, folder, *todo]
            try:
                how = f"the process ended with {subprocess.run(words, stdout=out, stderr=err, stdin=subprocess.DEVNULL, cwd=folder, env=environment(), timeout=timeout).returncode}"
            except subprocess.TimeoutExpired:
                how = f"not finished after {timeout} s"
        told = [json.loads(o) for o in log.read_text(errors="replace").splitlines() if o.startswith('{"check"')]
        for result in told:
            todo.remove(result["check"])
        wrong = [line(o["check"], o["blamed"], o["error"]) for o in told if not o["ok"]]
        if todo and not wrong:
            wrong = [line(todo.pop(0), died(python, log.with_suffix(".err").read_text(errors="replace")), how)]
        print(*(f"{edge.name}: {o}" for o in wrong), sep="\n", **PRINT)
        failures += wrong
        if [o for o in wrong if o.startswith((f"recipe {RECIPES[0]} ", "export "))]:
            todo = [o for o in todo if o not in ("export", "notebook")]  # they want what that one was to make
    return failures


def died(python, stderr):
    "Who is named in the traceback that faulthandler leaves, from the outermost to the innermost."
    code = f"import sys, json; sys.path.insert(0, {str(REPO)!r}); from tests.edges.checks import blamed; print(json.dumps(blamed(sys.argv[1])))"
    frames = "\n".join(reversed([o for o in stderr.splitlines() if "File " in o][:100]))
    done = run([python, "-c", code, frames], env=environment())
    return json.loads(done.stdout or "[]")


def line(name, blamed, error):
    return f"{name} fails in {' > '.join(blamed) or 'audiotag itself'}: {' '.join(error.split())[:300]}"


# --- Kaggle's notebooks -----------------------------------------------------------------------------


def audiotag(*words):
    "The command, of this repository, with the Python that runs this."
    return run(
        [sys.executable, "-c", "from audiotag.cli import main; raise SystemExit(main())", *words],
        cwd=REPO,
        env=environment(),
    )


def must(done, what):
    if done.returncode:
        raise SystemExit(f"{what}: {done.stderr.strip()[-600:]}")
    return done


def make_bundles():
    "{recipe: (competition, bundle with graphs)} and the wheels, trained and packed here, or kept from the last time if the package is the same."
    from tests.tiny import SYSTEMS

    code = b"".join(p.read_bytes() for p in [*sorted((REPO / "audiotag").rglob("*.py")), REPO / "tests/tiny.py"])
    home, made = BUILD / f"bundles-{hashlib.sha256(code).hexdigest()[:12]}", {}
    for old in BUILD.glob("bundles-*"):
        if old != home:
            shutil.rmtree(old)
    for name, (make, sets, _) in SYSTEMS.items():
        data, bundle = home / name / "data", home / name / f"{name.replace('_', '-')}-weights"
        if not (home / name / "done").exists():
            print(f"training {name}, tiny, for Kaggle's notebooks", **PRINT)
            shutil.rmtree(home / name, ignore_errors=True)
            make(data)
            changes = [w for s in sets for w in ("--set", s)]
            must(
                audiotag(
                    "train",
                    "--recipe",
                    name,
                    "--scale",
                    "small",
                    "--no-baseline",
                    "--data",
                    data,
                    "--run",
                    home / name / "run",
                    *changes,
                ),
                f"training {name}",
            )
            must(audiotag("pack", "weights", home / name / "run", bundle), f"packing {name}")
            must(audiotag("export", home / name / "run", bundle, "--precision", "fp32"), f"export of {name}")
            (home / name / "done").write_text("")
        made[name] = data, bundle
    wheels = home / "audiotag-wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    must(audiotag("pack", "wheels", wheels), "packing wheels")
    return made, wheels


def rehearse(python, name, data, bundle, wheels, out):
    "Run an inference notebook as Kaggle would; what went wrong, one line each."
    shutil.rmtree(out, ignore_errors=True)
    notebook = REPO / "nbs" / "kaggle" / f"infer_{name}.ipynb"
    done = audiotag(
        "rehearse",
        notebook,
        "--competition",
        data,
        "--bundle",
        bundle,
        wheels,
        "--python",
        python,
        "--out",
        out,
        "--set",
        f"WEIGHTS={bundle.name}",
    )
    if not (out / "report.json").is_file():
        return [f"{notebook.name}: no report, it ended with {done.returncode}: {' '.join(done.stderr.split())[-400:]}"]
    report, text = json.loads((out / "report.json").read_text()), (out / "hidden/executed.ipynb").read_text()
    wrong = [
        line(notebook.name, died(python, text.replace("\\n", "\n")) if "site-packages" in text else [], p)
        for p in report["problems"]
    ]
    if not report["walls"]["net"] or not report["walls"]["files"]:
        wrong.append(f"{notebook.name}: this machine allows no sandbox: {'; '.join(report['walls']['missing'])}")
    lacks = [
        o["module"] for o in report["runs"][0]["lacking"] if o["module"] in ("audiotag", "openvino") and not o["came"]
    ]
    if lacks:
        wrong.append(f"{notebook.name}: {' and '.join(lacks)} did not come from the wheels")
    kept = [g for g in json.loads((bundle / "bundle.json").read_text())["graphs"] if g["kept"]]
    if kept and "(fp32)" not in text:
        wrong.append(f"{notebook.name}: the bundle has OpenVINO graphs, and torch took their place")
    return wrong


# --- all of it --------------------------------------------------------------------------------------


def try_edge(edge, uv, keep):
    "(versions, failures, number of checks), or the reason why it is skipped."
    python = find_python(edge.pythons, uv)
    if python is None:
        return f"skipped: no Python {' or '.join(edge.pythons)} on PATH, with uv or with pyenv"
    home = BUILD / edge.name
    shutil.rmtree(home, ignore_errors=True)
    bundles, wheels = make_bundles() if edge.name == "kaggle" else ({}, None)
    print(f"{edge.name}: installing for {python}", **PRINT)
    wrong, versions, n = install(edge, uv, python, home / "venv"), {}, 1
    failures, inside = [wrong] if wrong else [], home / "venv/bin/python"
    if not wrong:
        versions = {plain(k): v for k, v in json.loads(run([inside, "-c", VERSIONS]).stdout).items()}
        failures += run_checks(edge, inside, home / "work")
        n += len(edge.checks) + len(bundles)
        for name, (data, bundle) in bundles.items():
            print(f"{edge.name}: infer_{name}.ipynb without a network", **PRINT)
            failures += rehearse(inside, name, data, bundle, wheels, home / f"{name}-rehearsal")
    if wheels:
        carried = [p.name.split("-")[1] for p in wheels.glob("openvino-*.whl")]
        versions["openvino"] = f"{carried[0]} (wheel)" if carried else ""
    versions["python"] = run([python, "-c", "import platform; print(platform.python_version())"]).stdout.strip()
    if not keep:
        shutil.rmtree(home)
    return versions, failures, n


HEAD = f"""# Do the edges of the requirements hold?

`make test-edges` installs each of these, imports every requirement and calls what is compiled in it, trains a step of every stage of the five
recipes, exports a bundle to OpenVINO, and runs an inference notebook; on Kaggle's versions all five inference notebooks, without a network, with
audiotag and openvino from the packed wheels. `tested-*` is constraints.txt: imports, and one recipe. A row is written when its edge was tried last.

| edge | date | Python | {" | ".join(KEY)} | result |
|{"---|" * (len(KEY) + 4)}
"""


def record(name, said):
    "Put the result of an edge into edges.md; the other edges keep theirs."
    old = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    ours = f"- {name}, "
    rows = {o.split("|")[1].strip(): o for o in old if re.match(r"\| (newest|oldest|kaggle|tested-)", o)}
    notes = [o for o in old if o.startswith("- ") and not o.startswith(ours)]
    today = datetime.date.today().isoformat()
    if isinstance(said, str):
        cells, result = [""] * (1 + len(KEY)), said
    else:
        versions, failures, n = said
        result = f"{len(failures)} failed, see below" if failures else f"all {n} checks hold"
        cells = [versions["python"], *(versions.get(k, "") for k in KEY)]
        notes += [f"{ours}Python {versions['python']}: {o}" for o in failures]
    rows[name] = f"| {' | '.join([name, today, *cells, result])} |"
    text = HEAD + "\n".join(rows[k] for k in sorted(rows)) + "\n"
    RESULTS.write_text(text + ("\n" + "\n".join(notes) + "\n" if notes else ""), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("edges", nargs="*", default=["newest", "oldest", "kaggle"])
    parser.add_argument("--uv", default="uv", help="the program")
    parser.add_argument("--keep", action="store_true", help="leave the environments and logs in build/edges")
    o = parser.parse_args()
    if not shutil.which(o.uv):
        raise SystemExit(f"{o.uv} is not a program: `make test-edges` installs uv")
    failed = []
    for edge in [make_edge(name) for name in o.edges]:
        said = try_edge(edge, shutil.which(o.uv), o.keep)
        record(edge.name, said)
        if isinstance(said, str):
            print(f"{edge.name}: {said}", **PRINT)
            continue
        versions, failures, n = said
        failed += [f"{edge.name}, Python {versions['python']}: {f}" for f in failures]
        print(f"{edge.name}: {n} checks on Python {versions['python']}, {len(failures)} failed", **PRINT)
    print(*failed, sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
