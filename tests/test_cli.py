"The command line as somebody meets it who mistypes a word, uses an old name, or wants a store of another kind."

import re
import subprocess
import sys

import pytest
from typer.main import get_command

from tests.tiny import SETS, called, train_words

from audiotag.audio.synth import SynthSettings, make_competition
from audiotag.cli import PANELS, RECIPE_GROUPS, RESUMABLE, _renamed, app, current_names, main
from audiotag.core.metrics import METRICS
from audiotag.data.competitions import layouts, load_competition
from audiotag.data.store import DTYPES, FeatureStore
from audiotag.infer.ensemble import METHODS
from audiotag.infer.openvino_graphs import PRECISIONS
from audiotag.train.engine import ENGINES
from audiotag.train.recipes import SYSTEMS, recipes
from audiotag.train.run_folder import Run
from audiotag.train.run_log import LOGS

COMMANDS = dict(get_command(app).visible())
WRONG = {
    "trian": "Did you mean 'train'",
    "train weights": "Missing option '--recipe'",
    "train --recpie x": "--recipe",
    "pack": "Missing command",
    "pack whels DIR": "Did you mean 'wheels'",
    "ledgers RUN": "Did you mean 'ledger'",
    "stores DIR": "Did you mean 'store'",
    "zzz": "No such command 'zzz'",
    "--verison": "--version",
    "doctor a.csv b.csv --data DATA": "unexpected extra argument",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_mistyped_word_is_answered_in_one_sentence(line, capsys):
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("audiotag: ") and WRONG[line] in err and "--help" in err


def test_every_command_can_be_called_and_no_word_shows_the_contents(capsys):
    for name in COMMANDS:
        assert main([*name.split(), "--help"]) == 0 and "example:" in capsys.readouterr().out
    assert main([]) == 0
    contents = capsys.readouterr().out
    panels = re.findall(r"^(\w+)\b.*:$", contents, re.M)
    assert panels == ["Options", *PANELS]


def test_commands_that_go_on_exist():
    assert set(RESUMABLE) <= {*COMMANDS, "demo"}  # which `make demo` calls


def test_each_recipe_is_listed_once_with_a_line_of_its_own(capsys):
    assert main(["recipes"]) == 0
    shown = capsys.readouterr().out
    listed = [name for group in RECIPE_GROUPS.values() for name in group]
    lines = [line for group in RECIPE_GROUPS.values() for line in group.values()]
    assert sorted(listed) == sorted(recipes) and len(set(lines)) == len(lines)
    assert (
        all(re.search(rf"^ +{name} +\S", shown, re.M) for name in recipes) and max(map(len, shown.splitlines())) <= 120
    )


def test_python_m_audiotag_is_the_program():
    "With the signals of `infer` blocked as `audiotag.start` does it: a SIGTERM while the command line loads waits."
    code = """
import os, runpy, signal, sys, types
commands = types.ModuleType("audiotag.cli")
commands.main = lambda: os.kill(os.getpid(), signal.SIGTERM) or print(*sys.argv[1:]) or 3
sys.modules["audiotag.cli"] = commands
runpy.run_module("audiotag", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code, "infer", "x"], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("infer x\n", 3), done.stderr
    done = subprocess.run([sys.executable, "-m", "audiotag", "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("audiotag ") and done.returncode == 0


def test_every_option_says_what_it_is_for():
    for name, command in COMMANDS.items():
        for p in command.params:
            assert p.help and p.help[0].isupper(), (name, p.name)


CHOICES = {
    "new": ["full", "small", *METRICS],
    "train": ["full", "small", *ENGINES, *recipes, *LOGS],
    "features": ["full", "small", *ENGINES, *DTYPES],
    "infer": [*layouts(), "best", *PRECISIONS, "torch"],
    "export": PRECISIONS,
    "ensemble": ["best", *METHODS],
    "system": ["full", "small", *ENGINES, *SYSTEMS],
    "rehearse": ["new", "old", "auto", "bwrap", "unshare", "none"],
}


@pytest.mark.parametrize("name", CHOICES)
def test_help_lists_the_choices(name, capsys):
    "Those of the module that takes them: a new recipe or engine has to be named here, too."
    assert main([name, "--help"]) == 0
    words = re.split(r"[\s|<>,.]+", capsys.readouterr().out)
    assert not {w for choice in CHOICES[name] for w in choice.split()} - set(words)


@pytest.mark.parametrize(
    "line",
    [
        "train --recipe freesound2019 --data D --run R --engine slurm",
        "infer --bundle B --data D --precision int3",
        "export R B --precision fp32 int3",
        "doctor s.csv --data D --layout freesound",
    ],
)
def test_what_is_no_choice_is_answered_with_the_choices(line, capsys):
    assert main(line.split()) == 2
    assert re.search(r"is not one of '.*', '", capsys.readouterr().err)


# a line with each old name; the words that stand for it now
OLD = {
    "pack weights RUN DIR --after smooth": {"postprocess": ["smooth"]},
    "infer --bundle A B --data D --after smooth halve": {"bundle": ["A", "B"], "postprocess": ["smooth", "halve"]},
    "trust RUN --against R S --about=a.csv": {"compare_with": ["R", "S"], "clip_metadata": "a.csv"},
    "ensemble R S --out O --way stack": {"runs": ["R", "S"], "method": "stack"},
    "rehearse N --competition D --walls none --slower 2 --image a b --test-times 4 --true-files 9": {
        "isolation": "none",
        "slowdown": 2.0,
        "extra_packages": ["a", "b"],
        "test_size_factor": 4.0,
        "hidden_test_files": 9,
    },
    "pack wheels DIR --python 3.11 3.12 --carry a b": {"pythons": ["3.11", "3.12"], "requirements": ["a", "b"]},
    "export R B --calibrate-with 7 --shared": {"calibration_clips": 7, "share_overlap": True},
    "train --recipe r --data D --run R --engine here": {"engine": "serial"},
    "features --recipe r --data D --store trust --engine=here": {"engine": "serial", "store": "trust"},
}


@pytest.mark.parametrize("line", OLD)
def test_old_names_are_accepted_and_hidden(line, monkeypatch, capsys):
    "Each command is called with what the old line said."
    got, program = {}, get_command(app)
    name = next(n for n in COMMANDS if current_names(line.split())[: len(n.split())] == n.split())
    monkeypatch.setattr(COMMANDS[name], "callback", got.update)
    for n in name.split()[:-1]:
        program.commands[n].commands[name.split()[-1]] = COMMANDS[name]
    program.commands[name.split()[-1]] = COMMANDS[name]
    monkeypatch.setattr("audiotag.cli.get_command", lambda app: program)
    old = {w.partition("=")[0] for w in line.split()} & set(_renamed)
    assert main(line.split()) == 0
    assert {k: got[k] for k in OLD[line]} == OLD[line]
    assert main([*name.split(), "--help"]) == 0 and main(["--help"]) == 0
    shown = capsys.readouterr().out.split()
    assert not (old | {"trust"}) & set(shown)


def test_every_old_name_is_tried_above():
    assert set(_renamed) == {w.partition("=")[0] for line in OLD for w in line.split()} & set(_renamed)
    assert set(_renamed.values()) <= {o for c in COMMANDS.values() for p in c.params for o in p.opts}


def test_exit_codes(monkeypatch, capsys):
    for error, code, said in (
        (KeyboardInterrupt, 130, "no partial file is left"),
        (FileNotFoundError(2, "No such file or directory", "a.csv"), 2, "audiotag: a.csv: No such file or directory"),
        (OSError("the other side is gone"), 2, "audiotag: the other side is gone"),
    ):

        def fail(*args, **kwargs):
            raise error

        monkeypatch.setattr("audiotag.audio.synth.make_competition", fail)
        assert main(["synth", "toy"]) == code
        assert said in capsys.readouterr().err


def test_help_is_fast():
    "Neither rich nor anything that computes is loaded, and most of the time is typer's own."
    code = """
import sys, time
from audiotag.cli import main
assert main(["--help"]) == 0
print(time.process_time(), *sys.modules, file=sys.stderr)
"""

    def run(code):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(done.stderr.split()[0]), done.stderr.split()[1:]

    typer = min(run("import sys, time, typer; print(time.process_time(), file=sys.stderr)")[0] for _ in range(3))
    (seconds, loaded), *others = [run(code) for _ in range(3)]
    assert "typer" in loaded and min(seconds, *(s for s, _ in others)) < 4 * typer
    assert not {"numpy", "pandas", "torch", "rich", "librosa", "matplotlib", "fastai"} & set(loaded)


def test_a_store_keeps_its_number_format_and_is_replaced_only_when_asked(tmp_path):
    data, store = make_competition(tmp_path / "data", seed=3, n_curated=8, n_noisy=6, n_test=2), tmp_path / "store"
    words = [
        "features",
        "--recipe",
        "freesound2019",
        "--scale",
        "small",
        "--set",
        "front_end.n_mels=32",
        "--data",
        data,
        "--store",
        store,
    ]
    done = called(*words, "--dtype", "uint8")
    assert done.returncode == 0 and "uint8, off by at most" in done.stdout, done.stderr
    # so `train --store` takes it, too
    assert called(*words).returncode == 0 and FeatureStore(store).settings.dtype == "uint8"
    for other in (["--dtype", "float16"], ["--set", "front_end.top_db=60"]):
        done = called(*words, *other)
        assert done.returncode == 2 and "other settings" in done.stderr and "--rebuild" in done.stderr, done.stderr
    done = called(*words, "--set", "front_end.top_db=60", "--rebuild")
    assert (
        done.returncode == 0
        and FeatureStore(store).front_end.top_db == 60
        and FeatureStore(store).settings.dtype == "float16"
    )
    assert called("store", store, "--verify", "--audio").returncode == 0


@pytest.mark.parametrize("name", ["freesound", "speech", "rainforest", "soundscape"])
def test_the_doctor_knows_the_layout_by_the_template(name, sample_set, tmp_path, capsys):
    "Nobody should have to say --layout for a competition that audiotag knows."
    folder = sample_set(name)
    template = next(p for p in (folder / "sample_submission.csv", folder / "submission.csv") if p.is_file())
    (tmp_path / "submission.csv").write_bytes(template.read_bytes())
    assert main(["doctor", str(tmp_path / "submission.csv"), "--data", str(folder)]) == 0
    assert "Kaggle would score this file" in capsys.readouterr().out


def test_synth_makes_as_many_clips_as_asked(tmp_path, capsys):
    assert main(["synth", str(tmp_path / "toy"), "--curated", "6", "--noisy", "4", "--test", "3"]) == 0
    assert [len(list((tmp_path / "toy" / d).glob("*.wav"))) for d in ("train_curated", "train_noisy", "test")] == [
        6,
        4,
        3,
    ]
    assert main(["synth", str(tmp_path / "none"), "--curated", "0"]) == 2 and not (tmp_path / "none").exists()
    default, settings = {p.name: p.default for p in COMMANDS["synth"].params}, SynthSettings()
    for name in ("curated", "noisy", "test"):
        assert default[name] == getattr(settings, f"n_{name}"), "the numbers stand in two places"


LIGHT = """
import sys
from audiotag.cli import main

class Without:
    names = ()

    @classmethod
    def find_spec(cls, name, *_):
        assert name not in cls.names, f"{name} is imported"

def call(without, *lines):
    Without.names = without
    for line in lines:
        assert main(line.split()) == 0, line

sys.meta_path.insert(0, Without)

run, data, out = sys.argv[1:]
call(("torch", "fastai", "sklearn"), f"synth {out}/toy", f"store {run}/store", f"doctor {data}/sample_submission.csv --data {data}")
call(
    ("fastai", "sklearn", "torchvision", "timm", "matplotlib", "openvino"),
    "recipes",
    "recipe --recipe freesound2019",
    f"ledger {run}",
    f"score {run} --public .5",
    f"runs {run}/..",
    f"compare {run} {run}",
    f"pack weights {run} {out}/weights",
)
"""


def test_commands_that_train_nothing_load_no_library_that_only_training_needs(tiny_run, tiny_data, tmp_path):
    "fastai, scikit-learn and torch take most of the processor time of a command that only reads a folder."
    words = [sys.executable, "-c", LIGHT, tiny_run / "run", tiny_data, tmp_path]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_corrections_are_kept_in_the_run_and_bar_an_ensemble_with_others(tiny_run, tiny_data, tmp_path):
    "One clip is dropped, one has another label."
    first, second = load_competition(tiny_data).clips.clip_id[:2]
    (tmp_path / "c.csv").write_text(
        f"clip_id,action,labels\n{first},drop,\n{second},relabel,{Run(tiny_run / 'run').classes[0]}\n"
    )
    words = train_words(tiny_data, tmp_path / "run", [*SETS, "stages.*.epochs=1"])
    done = called(*words, "--corrections", tmp_path / "c.csv")
    assert done.returncode == 0, done.stderr
    clips = Run(tmp_path / "run").clips.set_index("clip_id")
    assert first not in clips.index and clips.corrected[second] == "relabel"
    assert (tmp_path / "run" / "corrections.csv").read_bytes() == (tmp_path / "c.csv").read_bytes()
    done = called("ensemble", tiny_run / "run", tmp_path / "run", "--out", tmp_path / "both")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr


def test_a_formula_is_sealed_and_used(tiny_run, tiny_data, tmp_path):
    "`ensemble --blend` over the members of a run: the submission is the formula of the members' own submissions."
    import numpy as np
    import pandas as pd

    from audiotag.infer.bundle import open_bundles
    from audiotag.infer.ensemble import parse_blend
    from audiotag.infer.predict import infer
    from audiotag.data.competitions import load_competition

    run, formula = tiny_run / "run", ".5*a + .3*sqrt(b*c)"
    done = called("ensemble", run, "--out", tmp_path / "blended", "--blend", formula)
    assert (
        done.returncode == 0
        and "combined by: blend" in done.stdout
        and "| blend" in (tmp_path / "blended" / "README.md").read_text()
    )
    opened = open_bundles(tmp_path / "blended")
    assert opened.combiner == parse_blend(formula, "abc")
    done = called("infer", "--bundle", tmp_path / "blended", "--data", tiny_data, "--out", tmp_path / "s.csv")
    assert done.returncode == 0, done.stderr
    p = []
    for stage in ("curated", "agreed", "certain"):
        only = [i for i, m in enumerate(opened.bundles[0].members) if m["stage"] == stage]
        runs = [opened.bundles[0].model(i) for i in only]
        p.append(stage_scores(opened.bundles[0], runs, load_competition(tiny_data, train=False)))
    a, b, c = p
    table = pd.read_csv(tmp_path / "s.csv", index_col=0)
    wanted = ((0.5 * a + 0.3 * np.sqrt(b * c)) / 0.8)[table.columns].loc[table.index]
    np.testing.assert_allclose(table, wanted, atol=1e-4)
    assert callable(infer)
    for wrong, said in (
        (["--blend", "a - b"], "cannot read"),
        (["--blend", "a + q"], "no member"),
        (["--blend", "a", "--method", "mean"], "formula"),
    ):
        done = called("ensemble", run, "--out", tmp_path / "x", *wrong)
        assert done.returncode == 2 and said in done.stderr and not (tmp_path / "x").exists()


def stage_scores(bundle, networks, competition):
    "The mean of some networks of a bundle on the test clips, clip by clip."
    import pandas as pd

    from audiotag.infer.windows import score_clips

    test = competition.of("test")
    clips = (
        (c.clip_id, bundle.windows.view_features(bundle.front_end, bundle.front_end.read(c.path)))
        for c in test.itertuples()
    )
    scores = {k: p.mean(0) for k, p in score_clips(networks, clips, bundle.windows, fill=bundle.front_end.fill)}
    return pd.DataFrame(scores, index=list(bundle.classes)).T


@pytest.mark.long
def test_a_system_is_trained_and_packed_by_one_command(tiny_data, tmp_path):
    "Version 1 of system 1, tiny: two recipes, one store, one bundle; the same command again trains nothing."
    from audiotag.infer.bundle import open_bundles

    sets = [
        "cpus=1",
        "n_folds=2",
        "model.width=4",
        "front_end.n_mels=32",
        "windows.frames=64",
        "windows.hop=32",
        "stages.*.epochs=1",
    ]
    sets += [
        "stages.*.batch_size=16",
        "stages.agreed.train_on.1.at_least=0.2",
        "stages.certain.train_on.1.at_least=0.4",
    ]
    words = [
        "system",
        "freesound2019_version1",
        "--data",
        tiny_data,
        "--run",
        tmp_path / "runs",
        "--out",
        tmp_path / "version1",
    ]
    words += ["--scale", "small", *(w for s in sets for w in ("--set", s))]
    done = called(*words)
    assert done.returncode == 0 and "2 recipes, combined by: mean" in done.stdout, done.stderr
    opened = open_bundles(tmp_path / "version1")
    # small, the first recipe has four members, and three as the entrant's and as the second
    assert len(opened.bundles) == 2 and opened.combiner.weights == pytest.approx([1 / 7] * 7)
    assert sorted(p.name[:6] for p in (tmp_path / "runs").iterdir()) == ["freeso", "freeso", "store-"]
    again = called(*words)
    assert again.returncode == 0 and "epoch" not in again.stdout + again.stderr


def test_results_are_shown_without_control_characters():
    "Every command prints by `show`; only a completion script is printed as it is."
    import ast
    import inspect

    import audiotag.cli as cli

    calls = [node for node in ast.walk(ast.parse(inspect.getsource(cli))) if isinstance(node, ast.Call)]
    assert [ast.unparse(c.args[0])[:21] for c in calls if getattr(c.func, "id", "") == "print"] == [
        "get_completion_script"
    ]


HEAVY = {"torch", "timm", "fastai", "librosa", "numba", "matplotlib", "sklearn", "scipy"}
LOADS = {  # a command, and what it may load of the libraries that take long
    "recipes": set(),
    "doctor DATA/sample_submission.csv --data DATA": {"numpy", "pandas"},
    "recipe --recipe birdclef2024": {"numpy", "pandas", "scipy", "torch"},
}


@pytest.mark.parametrize("line", LOADS)
def test_a_command_loads_only_what_it_needs(line, tmp_path):
    if "DATA" in line:
        make_competition(tmp_path / "data", n_curated=4, n_noisy=0, n_test=2)
    words = line.replace("DATA", str(tmp_path / "data")).split()
    code = "import sys; from audiotag.cli import main; print(main(sys.argv[1:]), *sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    exit_code, *loaded = done.stderr.split()
    assert exit_code == "0" and set(loaded) & (HEAVY | {"numpy", "pandas"}) <= LOADS[line]
