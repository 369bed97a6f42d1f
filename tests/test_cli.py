"The command line as somebody meets it who mistypes a word, uses an old name, or wants a store of another kind."

import re
import subprocess
import sys

import pytest
from typer.main import get_command

from tests.tiny import SETS, called, train_words

from audiotag.audio.synth import SynthSettings, make_competition
from audiotag.cli import _renamed, app, current_names, main
from audiotag.data.competitions import layouts, load_competition
from audiotag.data.store import DTYPES, FeatureStore
from audiotag.infer.ensemble import METHODS
from audiotag.infer.openvino_graphs import PRECISIONS
from audiotag.train.engine import ENGINES
from audiotag.train.recipes import recipes
from audiotag.train.run_folder import Run

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
    panels = re.findall(r"^(\w.*):$", contents, re.M)
    assert panels == ["Options", "Begin", "Train", "Review", "Predict", "Kaggle"]


def test_every_option_says_what_it_is_for():
    for name, command in COMMANDS.items():
        for p in command.params:
            assert p.help and p.help[0].isupper(), (name, p.name)


CHOICES = {
    "train": ["full", "small", *ENGINES, *recipes],
    "features": ["full", "small", *ENGINES, *DTYPES],
    "infer": [*layouts(), "best", *PRECISIONS, "torch"],
    "export": PRECISIONS,
    "ensemble": ["best", *METHODS],
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
    "Neither rich (0.1 s) nor anything that computes; half a second of the processor's time where 0.2 s were measured."
    code = """
import sys, time
from audiotag.cli import main
assert main(["--help"]) == 0
print(time.process_time(), *sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *loaded = done.stderr.split()
    assert "typer" in loaded and float(seconds) < 0.5
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
