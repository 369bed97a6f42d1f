"Rules of the house that hold for every notebook and every module."

import ast
import configparser
import filecmp
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from tests.bench.readme import scores_text
from tests.conftest import night_tests
from tests.outputs import MACHINE
from tests.readme import REPO, readme

NBS = REPO / "nbs"
LESSONS = sorted(NBS.rglob("[0-9]*.ipynb"))
ALL = sorted(p for p in NBS.rglob("*.ipynb") if not any(s.startswith((".", "_")) for s in p.relative_to(NBS).parts))
KERNEL = ["audiotag.infer.predict", "audiotag.kaggle.paths"]  # what an inference notebook imports
BIN = Path(sys.executable).parent
contracts = configparser.ConfigParser()
contracts.read(REPO / ".importlinter")
WINGS = contracts["importlinter:contract:wings"]["layers"].split()[::-1]  # the lowest first


def cells(path, kind="code"):
    return ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == kind]


def exported(path):
    return [s for s in cells(path) if re.search(r"^#\|\s*export\b", s, re.M)]


def module_of(path):
    return next(re.search(r"default_exp\s+(\S+)", s).group(1) for s in cells(path) if "default_exp" in s)


MODULES = {module_of(p): p for p in LESSONS}


def place(module):
    "The wing of a module, then its number there: what is imported has a lower place than what imports it."
    return WINGS.index(module.split(".")[0]), MODULES[module].name[:2]


def imports(source):
    "The audiotag modules that a piece of Python imports."
    plain = "\n".join("pass" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())
    for node in ast.walk(ast.parse(plain)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "audiotag":
            whole = [f"{node.module}.{a.name}" for a in node.names if f"{node.module}.{a.name}"[9:] in MODULES]
            yield from (m[9:] for m in whole or [node.module])
        elif isinstance(node, ast.Import):
            yield from (a.name[9:] for a in node.names if a.name.startswith("audiotag."))


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_notebook_lies_where_its_module_does(path):
    wing, _, name = module_of(path).rpartition(".")
    assert path.parent == NBS / wing and path.stem[2:] == f"_{name}"


def test_two_notebooks_of_a_folder_have_two_numbers():
    assert not [p for p in LESSONS for q in p.parent.glob(f"{p.name[:2]}_*.ipynb") if p != q]


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_notebook_imports_only_what_comes_before_it(path):
    "In all of its cells: lower wings, and notebooks before it in its own."
    own = module_of(path)
    for source in cells(path):
        for module in imports(source):
            if module:
                assert place(module) < place(own), f"{path.name} imports {module}, which comes after it"


def lines_of(node):
    "Lines of a piece of code without the blank ones."
    return sum(1 for line in ast.unparse(node).splitlines() if line.strip())


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_exported_cells_are_short(path):
    "A cell has two screens at most; a class, which stands in one body, has more, and its methods are short."
    for source in exported(path):
        body = ast.parse(source).body
        classes = [node for node in body if isinstance(node, ast.ClassDef)]
        n = sum(1 for line in source.splitlines() if line.strip())
        n -= sum(node.end_lineno - node.lineno + 1 for node in classes)
        assert n <= 90, f"{path.name}: {n} lines in the cell that begins with {source.splitlines()[1]!r}"
        for node in classes:
            assert lines_of(node) <= 400, f"{path.name}: {node.name} has {lines_of(node)} lines"
            for method in node.body:
                assert lines_of(method) <= 60, f"{path.name}: {node.name}.{getattr(method, 'name', '')} is too long"


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_stored_outputs_do_not_show_where_they_were_made(path):
    for cell in json.loads(path.read_text())["cells"]:
        for output in cell.get("outputs", ()):
            text = re.sub(r'"image/png": "[^"]*"', "", json.dumps(output, ensure_ascii=False))
            found = MACHINE.search(text) or re.search(r"\w+Warning: ", text)
            assert not found, f"{path.name} shows {found[0]!r}: `make docs` takes it out"


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_a_notebook_is_stored_executed(path):
    outputs = [o for c in json.loads(path.read_text())["cells"] for o in c.get("outputs", ())]
    assert outputs, "run it and store what it shows (nbs/kaggle: `make notebooks`)"
    assert not [o["ename"] for o in outputs if o["output_type"] == "error"]
    if path.stem.startswith("train_") or "tutorials" in path.parts and path.stem != "new_competition":
        assert any("image/png" in o.get("data", {}) for o in outputs), "a picture says more than bare code"


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_notebook_is_a_lesson(path):
    first = cells(path, "markdown")[0].strip().splitlines()
    assert first[0].startswith("# ") and any(line.startswith("> ") for line in first), "a title and a one-line subtitle"
    assert "import *" not in "\n".join(cells(path))


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_docstring_of_a_module_names_what_is_in_it(path):
    "It is the notebook's subtitle: sentences on one line, with the main functions or classes."
    source = (REPO / "audiotag" / module_of(path).replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
    tree = ast.parse(source)
    public = next(node for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == "__all__")
    doc = ast.get_docstring(tree)
    assert doc.endswith(".") and len(source.splitlines()[0]) <= 120
    assert set(re.findall(r"`(\w+)`", doc)) & set(ast.literal_eval(public.value)), "name a function or a class of it"


def test_export_is_in_sync_and_notebooks_are_clean(tmp_path):
    for name in ("settings.ini", "setup.py", "README.md"):
        shutil.copy(REPO / name, tmp_path)
    shutil.copytree(NBS, tmp_path / "nbs", ignore=shutil.ignore_patterns(".*", "runs"))
    shutil.copytree(
        REPO / "audiotag",
        tmp_path / "audiotag",
        ignore=lambda folder, names: [n for n in names if "." in n and n not in ("__init__.py", "__main__.py")],
    )
    for command in ("nbdev_export", "nbdev_clean"):
        subprocess.run([BIN / command], cwd=tmp_path, check=True, capture_output=True)
    made = {p.relative_to(tmp_path / "audiotag") for p in (tmp_path / "audiotag").rglob("*.py")}
    ours = {p.relative_to(REPO / "audiotag") for p in (REPO / "audiotag").rglob("*.py")}
    assert made == ours
    off = [p for p in made if not filecmp.cmp(tmp_path / "audiotag" / p, REPO / "audiotag" / p, shallow=False)]
    assert not off, f"run `make docs`: {off} differ from their notebooks"
    dirty = [p for p in ALL if p.read_text() != (tmp_path / "nbs" / p.relative_to(NBS)).read_text()]
    assert not dirty, f"run `make docs`: {[p.name for p in dirty]} are not clean"


def test_everything_is_formatted():
    done = subprocess.run(
        [BIN / "ruff", "format", "--check", "--no-cache", "."], cwd=REPO, capture_output=True, text=True
    )
    assert not done.returncode, "run `make docs`: " + done.stdout


def test_ruff_check_finds_nothing():
    "The rules, with their reasons, stand in ruff.toml."
    done = subprocess.run(
        [BIN / "ruff", "check", "--no-cache", "--output-format", "concise", "."],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stdout


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_a_conditional_expression_holds_no_other(path):
    "`a if p else b if q else c` hides what an `if` would show."
    for source in exported(path):
        for node in ast.walk(ast.parse(re.sub(r"(?m)^[%!].*$", "", source))):
            if isinstance(node, ast.IfExp):
                nested = [o for o in (node.test, node.body, node.orelse) if isinstance(o, ast.IfExp)]
                assert not nested, f"{path.name}: {ast.unparse(node)[:100]}"


NOUNS = """bands batches boxes bundles bytes cells channels classes clips columns cores datasets decisions draws epochs
           files folds frames graphs groups hours ids inputs jobs labels lines members names networks notebooks numbers
           outputs packages pairs parts processes recipes recordings rounds rows runs samples shards stages teachers
           tensors threads trainings values weights wheels windows workers""".split()
PLURAL = rf"(?:\w[\w-]* )?(?:{'|'.join(NOUNS)})\b"
NOT_COUNTED = {  # what stands in an f-string before such a noun, and is no number or never 1
    "n_folds folds",
    "run.recipe.n_folds folds",
    "r.n_folds folds",
    "split.iloc[0] folds",
    "len(runs) runs",
    "found['folds'] folds",
    "n processes",
    "len(values) values",
    "len(names) files",
    "n recordings",
    "n runs",
    "len(values) rows",
    "len(cells) rows",
    "len(sizes) files",
    "len(ensemble.bundles) bundles",
    "changed.shape values",
    "shape channels",
    "counts clips",
    "source clips",
    "row.name clips",
    "rule.source clips",
    "file names",
    "r.kind groups",
}


def counts_before_plurals(source):
    "Yield the values of f-strings with the plural after them, such as 'len(clips) clips'; words and quoted names are not."
    for node in ast.walk(ast.parse(re.sub(r"(?m)^[%!].*$", "", source))):
        for value, text in zip(node.values, node.values[1:]) if isinstance(node, ast.JoinedStr) else ():
            if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant) and value.conversion < 0:
                found = re.match(f" {PLURAL}", text.value)
                if found and not value.format_spec:
                    yield f"{ast.unparse(value.value)} {found[0].split()[-1]}"


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_one_clip_is_not_called_1_clips(path):
    "Numbers and their nouns come from `counted`, also in what the lesson shows."
    for source in exported(path):
        found = {s for s in counts_before_plurals(source) if not re.match("counted\\(|.*\\.join\\(", s)} - NOT_COUNTED
        assert not found, f"{path.name}: use `counted` of audiotag.core.errors in {found}"
    for cell in json.loads(path.read_text())["cells"]:
        shown = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.get("outputs", ())]
        found = re.search(rf"(?<![\d.,/:×-])\b1 {PLURAL}", "".join(map("".join, shown)))
        assert not found, f"{path.name} shows {found[0]!r}: run it again"


BRITISH = re.compile(  # the code says normalize, color and unlabeled, so does everything else
    r"(?:(?:behavi|col|fav|flav|neighb)our|centre|centring|grey|licence|labell(?:ed|ing)|modell|travell|learnt|spelt"
    r"|(?:general|initial|maxim|minim|normal|optim|organ|quant|recogn|standard|summar|synthes|visual)"
    r"is(?:ed?|es|ers?|ing|ations?)\b|analys(?:ed?|ing)\b)\w*",
    re.I,
)
WORDS_OF_FILES = re.compile(  # the stage `labelled`, a class and a step keep the names that files have
    r"NeighbourMax|neighbour-max|[\"'`/.-]labelled(?!\w)|The best is labelled|\| labelled|Greys"
)


def prose():
    "Yield (name, text) of all that people read: notebooks, pages, tests, and what they print."
    for path in ALL:
        yield path.name, "\n".join("".join(c["source"]) for c in json.loads(path.read_text())["cells"])
    for name in tracked_files():
        path = REPO / name
        if path.suffix in (".md", ".py", ".jinja", ".css", ".js", ".yml") and not name.startswith(
            ("audiotag/", OLD_FILES)
        ):
            if path != Path(__file__).resolve():
                yield name, path.read_text(encoding="utf-8")
    for path in (REPO / "audiotag").rglob("templates/*"):
        yield path.name, path.read_text(encoding="utf-8")


def test_spelling_is_american():
    found = {f"{name}: {m[0]}" for name, text in prose() for m in BRITISH.finditer(WORDS_OF_FILES.sub("", text))}
    assert not found, sorted(found)


def test_readme_is_made_from_the_index():
    assert (REPO / "README.md").read_text(encoding="utf-8") == readme(), "run `make docs`"


def test_the_scores_in_the_readme_are_those_that_were_measured():
    assert scores_text() in (REPO / "README.md").read_text(encoding="utf-8"), (
        "python -m tests.bench.readme --only table"
    )


def test_the_init_of_a_wing_is_one_docstring():
    for wing in WINGS:
        if (REPO / "audiotag" / wing).is_dir():
            node, *imports = ast.parse((REPO / "audiotag" / wing / "__init__.py").read_text()).body
            assert ast.get_docstring(ast.Module([node], [])), wing
            # which keeps libraries from sending statistics before they are imported
            assert not imports or wing == "core"


def test_no_import_runs_up_the_wings():
    done = subprocess.run([BIN / "lint-imports", "--no-cache"], cwd=REPO, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr


def test_inference_imports_neither_fastai_nor_nbdev():
    code = f"import sys, {', '.join(KERNEL)}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd="/", check=True, capture_output=True, text=True
    ).stdout.split()
    assert "audiotag.infer.predict" in loaded
    tops = {m.split(".")[0] for m in loaded}
    assert not tops & {"fastai", "nbdev", "execnb", "ray"}, tops & {"fastai", "nbdev", "execnb", "ray"}


def kernel_modules():
    "Every module of ours that inference may load, also from inside of a function."
    graph = grimp.build_graph("audiotag", cache_dir=None)
    return sorted(m[9:] for k in KERNEL for m in {k, *graph.find_upstream_modules(k)} if m[9:] in MODULES)


def test_the_package_does_without_torchaudio():
    "A release of torchaudio that was built for another torch cannot be imported; it is for tests only."
    wanted = [
        line.strip()
        for line in (REPO / "settings.ini").read_text(encoding="utf-8").split("dev_requirements")[0].splitlines()
    ]
    assert not [w for w in wanted if w.startswith("torchaudio")]
    for path in (*(REPO / "audiotag").rglob("*.py"), *ALL):
        text = path.read_text(encoding="utf-8") if path.suffix == ".py" else "\n".join(cells(path))
        assert not re.search(r"^\s*(import|from)\b[^#\n]*\btorchaudio\b|import_module\(.torchaudio", text, re.M), path


def test_inference_unpickles_nothing():
    modules = kernel_modules()
    assert {"core.errors", "audio.io", "audio.features", "infer.bundle", "infer.predict", "models.cnn"} <= set(modules)
    for module in modules:
        source = (REPO / "audiotag" / (module.replace(".", "/") + ".py")).read_text()
        for word in ("pickle", "torch.load", "fastai", "nbdev"):
            found = [
                line
                for line in source.splitlines()
                if word in line and "AUTOGENERATED" not in line and "nbs/" not in line
            ]
            found = [line for line in found if not line.lstrip().startswith(("#", '"'))]
            assert not found, f"{module}: {found}"


ROOT = """.ci .gitignore .importlinter .pre-commit-config.yaml .github CHANGELOG.md CONTRIBUTING.md LICENSE MANIFEST.in Makefile README.md
          audiotag constraints.txt kaggle_datasets mkdocs.yml nbs ruff.toml settings.ini setup.py tests""".split()
RECORDINGS_AND_PICTURES = {".wav", ".flac", ".ogg", ".mp3", ".png", ".svg", ".jpg"}
OLD_FILES = "tests/old_files/"  # runs and bundles of older versions: they have to open


def tracked_files():
    "What git tracks, or would: a file that somebody forgot to add counts too."
    if not (REPO / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name and (REPO / name).is_file()]


def test_the_root_holds_only_what_belongs_there():
    strays = sorted({name.split("/")[0] for name in tracked_files()} - set(ROOT))
    assert not strays, f"move or remove {strays}, or add them to ROOT with a reason"


def test_no_binaries_but_recordings_and_pictures():
    for name in tracked_files():
        if Path(name).suffix in RECORDINGS_AND_PICTURES or name.startswith(OLD_FILES):
            continue
        with open(REPO / name, "rb") as f:
            assert b"\0" not in f.read(1 << 20), f"{name} is a binary: build it, or download it, where it is needed"


def test_constraints_pin_every_requirement_within_its_range():
    from packaging.requirements import Requirement

    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(REPO / "settings.ini", encoding="utf-8")
    lines = [line for name in ("requirements", "dev_requirements") for line in settings["DEFAULT"][name].splitlines()]
    wanted = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    pins = [
        Requirement(line)
        for line in (REPO / "constraints.txt").read_text().splitlines()
        if line and not line.lstrip().startswith("#")
    ]
    for python in ("3.10", "3.11", "3.12", "3.13"):
        here = {
            "python_version": python,
            "python_full_version": f"{python}.5",
            "sys_platform": "linux",
            "platform_machine": "x86_64",
        }
        pinned = {p.name: p for p in pins if p.marker is None or p.marker.evaluate(here)}
        for r in wanted:
            if r.marker is None or r.marker.evaluate(here):
                pin = pinned[r.name]
                assert r.specifier.contains(next(iter(pin.specifier)).version), (
                    f"run `make constraints`: {pin} does not fit {r} on Python {python}"
                )


def calls_of_our_own(tree, known):
    """Yield (call, function) for the calls, by their plain names, of what audiotag defines. A function's own imports hide
    those of the module."""
    for node in ast.iter_child_nodes(tree):
        inside = known
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            imported = [
                (a.asname or a.name, getattr(importlib.import_module(n.module), a.name, None))
                for n in ast.walk(node)
                if isinstance(n, ast.ImportFrom) and (n.module or "").startswith("audiotag")
                for a in n.names
            ]
            inside = {**known, **dict(imported)}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            function = known.get(node.func.id)
            is_ours = (getattr(function, "__module__", None) or "").startswith("audiotag")
            if is_ours and not (isinstance(function, type) and issubclass(function, BaseException)):
                yield node, function
        yield from calls_of_our_own(node, inside)


@pytest.mark.parametrize("module", MODULES)
def test_arguments_fit_the_functions_that_they_are_given_to(module):
    "A parameter that was renamed and a call that was forgotten, which only running it would show."
    module = importlib.import_module(f"audiotag.{module}")
    for call, function in calls_of_our_own(ast.parse(Path(module.__file__).read_text()), vars(module)):
        if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
            continue
        try:
            inspect.signature(function).bind(*call.args, **{k.arg: k for k in call.keywords})
        except TypeError as e:
            pytest.fail(f"{module.__name__}, line {call.lineno}: {function.__name__}() {e}")


def test_every_line_of_the_night_names_a_test():
    for line in night_tests():
        file, _, name = line.partition("[")[0].partition("::")
        assert f"def {name}(" in (REPO / "tests" / file).read_text(), line
