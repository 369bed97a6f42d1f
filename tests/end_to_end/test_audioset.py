"From a checkpoint in its authors' layout to a submission through OpenVINO: frozen epochs, rates by layer, bundle, export."

import json
import shutil

import pandas as pd
import pytest
import torch

from audiotag.train.run_folder import Run
from tests import tiny
from tests.models.test_audioset import cnn14_shapes, drawn, mobilenet_shapes

SETS = [
    "cpus=1", "n_folds=2", "group_by=[]", "windows.frames=64", "windows.hop=64", "stages.*.epochs=2", "stages.*.batch_size=16",
    "stages.noisy.frozen_epochs=1", "stages.*.lr_decay=0.9", "stages.*.lr=1e-3",
]  # fmt: skip


@pytest.mark.parametrize("network", ["mn10", pytest.param("cnn14", marks=pytest.mark.long)])
def test_from_a_checkpoint_to_a_submission(network, tiny_data, tmp_path):
    shapes = mobilenet_shapes(0.1) if network == "mn10" else cnn14_shapes(4)
    state = drawn(shapes)
    torch.save(state if network == "mn10" else {"iteration": 1, "model": state}, tmp_path / "theirs.pt")
    weights = tmp_path / "weights.safetensors"
    done = tiny.called("weights", tmp_path / "theirs.pt", weights)
    assert done.returncode == 0, done.stderr
    sets = [*SETS, f"model.pretrained={weights}"]
    words = ["train", "--recipe", f"freesound2019_{network}", "--scale", "small", "--no-baseline", "--data", tiny_data]
    words += ["--run", tmp_path / "run", *(w for s in sets for w in ("--set", s))]
    done = tiny.called(*words)
    assert done.returncode == 0, done.stderr
    run, first = Run(tmp_path / "run"), "body.0.0.weight" if network == "mn10" else "body.1.0.weight"
    theirs = run.recipe.model.build(3).state_dict()[first]
    for fold in (0, 1):
        moved = (run.model("noisy", fold).state_dict()[first] - theirs).abs().max()
        assert 0 < moved < 1e-2, "it began with the checkpoint and learned slowly"
    weights.unlink()  # the kernel has no such file
    bundle = tmp_path / "tiny-weights"
    assert tiny.called("pack", "weights", tmp_path / "run", bundle).returncode == 0
    assert str(tmp_path) not in (bundle / "bundle.json").read_text()
    copy = shutil.copytree(bundle, tmp_path / "graphs" / bundle.name)
    done = tiny.called("export", tmp_path / "run", copy, "--precision", "fp32")
    assert done.returncode == 0, done.stderr
    assert json.loads((copy / "bundle.json").read_text())["graphs"], done.stdout
    tables = []
    for b in (bundle, copy):
        out = tmp_path / f"{b.parent.name}.csv"
        done = tiny.called("infer", "--bundle", b, "--data", tiny_data, "--out", out)
        assert done.returncode == 0, done.stderr
        tables.append(pd.read_csv(out, index_col=0))
    assert len(tables[0]) == 30 and tables[0].std().max() > 1e-5
    assert abs(tables[0] - tables[1]).max().max() < 1e-3
