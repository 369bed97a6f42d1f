"The command line as somebody meets it who mistypes a word, or wants a store of another kind."
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from tiny import called  # noqa: E402

from audiotag.cli import _commands, main  # noqa: E402
from audiotag.store import FeatureStore  # noqa: E402
from audiotag.synth import make_competition  # noqa: E402

WRONG = {"trian": "did you mean 'train'", "train weights": "arguments are required", "pack": "choose from kernel, weights, wheels", "pack whels DIR": "did you mean 'wheels'",
         "ledgers RUN": "did you mean 'ledger'", "stores DIR": "did you mean 'store'", "zzz": "choose from audit, baseline"}


@pytest.mark.parametrize("line", WRONG)
def test_a_mistyped_command_is_answered_with_the_nearest(line, capsys):
    try:
        code = main(line.split())
    except SystemExit as e:
        code = e.code
    said = capsys.readouterr().err
    assert code == 2 and "audiotag" in said and WRONG[line] in said.replace("\n", " ")


def test_every_command_can_be_called_and_no_word_shows_the_contents(capsys):
    for name in _commands:
        with pytest.raises(SystemExit) as e:
            main([*name.split(), "--help"])
        assert e.value.code == 0 and "example:" in capsys.readouterr().out
    with pytest.raises(SystemExit) as e:
        main([])
    assert e.value.code == 0 and "Look and listen" in capsys.readouterr().out


def test_a_store_keeps_its_number_format_and_is_replaced_only_when_asked(tmp_path):
    data, store = make_competition(tmp_path / "data", seed=3, n_curated=8, n_noisy=6, n_test=2), tmp_path / "store"
    words = ["features", "--recipe", "freesound2019", "--scale", "small", "--set", "front_end.n_mels=32", "--data", data, "--store", store]
    done = called(*words, "--dtype", "uint8")
    assert done.returncode == 0 and "uint8, off by at most" in done.stdout, done.stderr
    assert called(*words).returncode == 0 and FeatureStore(store).settings.dtype == "uint8"  # so `train --store` takes it, too
    for other in (["--dtype", "float16"], ["--set", "front_end.top_db=60"]):
        done = called(*words, *other)
        assert done.returncode == 2 and "differs" in done.stderr and "--rebuild" in done.stderr, done.stderr
    done = called(*words, "--set", "front_end.top_db=60", "--rebuild")
    assert done.returncode == 0 and FeatureStore(store).front_end.top_db == 60 and FeatureStore(store).settings.dtype == "float16"
    assert called("store", store, "--verify", "--audio").returncode == 0


@pytest.mark.parametrize("name", ["freesound", "speech", "rainforest", "soundscape"])
def test_the_doctor_knows_the_layout_by_the_template(name, sample_set, tmp_path, capsys):
    "Nobody should have to say --layout for a competition that audiotag knows."
    folder = sample_set(name)
    template = next(p for p in (folder / "sample_submission.csv", folder / "submission.csv") if p.is_file())
    (tmp_path / "submission.csv").write_bytes(template.read_bytes())
    assert main(["doctor", str(tmp_path / "submission.csv"), "--data", str(folder)]) == 0
    assert "Kaggle would score this file" in capsys.readouterr().out
