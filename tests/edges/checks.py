"""What has to work with the versions of an edge: `python tests/edges/checks.py FOLDER CHECK ...` prints a line of JSON after each check.

It runs in the environment of the edge, where neither pytest nor audiotag is installed. It ends at the first check that fails, as a library that
is half imported would spoil the next one, or where a compiled library that was built for another one ends it; `run.py`, which lists the checks
of an edge, begins again behind that one.
"""

import importlib
import io
import json
import os
import re
import sys
from functools import lru_cache
from importlib import metadata
from inspect import getmodulename
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
# not tests/ too: its folder kaggle/ would hide the package kaggle
sys.path.insert(0, str(REPO))
RECIPES = ("freesound2019", "freesound2019_waveform", "rainforest2021", "birdclef2024", "universal2020")


# --- every compiled library -------------------------------------------------------------------------


def plain(name):
    return re.sub("[-_.]+", "-", name).lower()


@lru_cache
def modules():
    "{top-level module: distribution}; `packages_distributions` of Python 3.10 leaves out whatever has no top_level.txt."
    found = {}
    for dist in metadata.distributions():
        tops = (dist.read_text("top_level.txt") or "").split()
        tops = tops or {f.parts[0] if len(f.parts) > 1 else getmodulename(f.name) for f in dist.files or []}
        found |= {top: plain(dist.metadata["Name"]) for top in tops if top and top.isidentifier()}
    return found


def use_torch():
    import torch

    w = torch.ones(3, 3, requires_grad=True)
    torch.stft(torch.randn(1, 2048), 512, window=torch.hann_window(512), return_complex=True).abs().sum().item()
    (w @ w).sum().backward()


def use_torchvision():
    import torch
    from torchvision.ops import nms

    nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([0.5]), 0.5)


def use_torchaudio():
    import torch
    import torchaudio

    torchaudio.transforms.MelSpectrogram(16000)(torch.randn(1, 16000))


def use_timm():
    import timm
    import torch

    for name in ("resnet18", "res2next50", "efficientnet_b0"):
        timm.create_model(name, num_classes=3, in_chans=1)(torch.randn(2, 1, 64, 64)).sum().backward()


def add(a, b):
    return a + b


def use_librosa():
    import librosa
    import numba
    import numpy as np

    wave = np.random.default_rng(0).normal(size=22050).astype(np.float32)
    librosa.power_to_db(librosa.feature.melspectrogram(y=wave, sr=22050))
    librosa.effects.trim(wave)
    assert numba.vectorize(add)(wave, wave).shape == wave.shape  # some of librosa's functions are compiled in this way


def use_soundfile():
    import numpy as np
    import soundfile

    for kind, subtype in (("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "VORBIS")):
        file = io.BytesIO()
        soundfile.write(file, np.zeros(4410), 44100, format=kind, subtype=subtype)
        file.seek(0)
        assert len(soundfile.read(file)[0]) == 4410


def use_soxr():
    import numpy as np
    import soxr

    assert len(soxr.resample(np.zeros(44100), 44100, 16000)) == 16000


def use_scipy():
    import numpy as np
    from scipy import ndimage, optimize, signal, stats

    signal.sosfilt(signal.butter(2, 0.1, output="sos"), np.ones(100))
    ndimage.gaussian_filter(np.ones((8, 8)), 1)
    stats.rankdata(np.ones(4))
    optimize.minimize(np.linalg.norm, np.ones(2))


def use_scikit_learn():
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier

    RandomForestClassifier(4).fit(np.eye(8), np.arange(8) % 2).predict_proba(np.eye(8))


def use_pandas():
    import pandas as pd

    file = io.BytesIO()
    pd.DataFrame({"a": [1, 2], "b": ["x", None]}).to_parquet(file)
    assert pd.read_parquet(file).groupby("a").size().sum() == 2


def use_matplotlib():
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    pyplot.figure().text(0.5, 0.5, "a").figure.savefig(io.BytesIO())


def use_safetensors():
    import torch
    from safetensors.torch import load, save

    load(save({"a": torch.ones(2)}))


def use_openvino():
    import audiotag.core  # noqa: F401 - first: it keeps OpenVINO's statistics package from being loaded
    import numpy as np
    import openvino as ov
    import torch

    graph = ov.convert_model(torch.nn.Linear(2, 3), example_input=torch.ones(1, 2))
    assert ov.compile_model(graph, "CPU")(np.ones((1, 2), np.float32))[0].shape == (1, 3)


def use_fastai():
    import fastai.vision.all  # noqa: F401


def use(name):
    "Import a distribution's modules, and call what is compiled in it."
    tops = [top for top, dist in modules().items() if dist == name and not top.startswith("_")]
    if not tops:
        raise metadata.PackageNotFoundError(name)
    likely = [top for top in tops if plain(top) == name] or tops
    for top in likely:
        importlib.import_module(top)
    call = globals().get("use_" + name.replace("-", "_"))
    if call:
        call()


# --- training, export, inference --------------------------------------------------------------------


def train(name, folder):
    "One step of every stage of a recipe, on two folds."
    from audiotag.data.competitions import load_competition
    from audiotag.train.recipes import get_recipe
    from audiotag.train.run_folder import is_finished, open_run, run_stages
    from tests.tiny import SYSTEMS

    make, sets, layout = SYSTEMS[name]
    recipe = get_recipe(name, scale="small", changes=[*sets, "stages.*.steps=1"])
    run = open_run(folder / "run", recipe, load_competition(make(folder / "data"), layout))
    assert is_finished(run_stages(run))
    if name == "birdclef2024":
        other_inputs()


def other_inputs():
    "A batch through the networks of system 5 that take the wave."
    import torch
    from audiotag.train.recipes import birdclef2024

    for inputs in ("rows80", "rows200", "hybrid"):
        recipe = birdclef2024("small", inputs=inputs)
        net = recipe.model.build(3)
        loss = recipe.loss(net(torch.randn(2, 1, 1, recipe.windows.frames)), torch.eye(3)[:2])
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None), inputs


def export(folder):
    "The bundle of the first recipe gets a graph that agrees with torch."
    from audiotag.infer.bundle import Bundle
    from audiotag.kaggle.pack import pack_weights
    from audiotag.infer.openvino_graphs import evidence_of, export_bundle
    from audiotag.train.run_folder import Run

    run = Run(folder / "run")
    bundle = Bundle(pack_weights(run, folder / "tiny-weights"))
    table = export_bundle(bundle, evidence_of(bundle, run), precision="fp32")
    assert (table["kept"] == "kept").all(), table.to_string()


def notebook(folder):
    "An inference notebook on that bundle; Kaggle would score what it writes."
    from audiotag.data.competitions import load_competition
    from audiotag.data.submission import check_submission, refused
    from audiotag.rehearse.rehearse import run_notebook

    run_notebook(
        REPO / "nbs/kaggle/infer_freesound2019.ipynb",
        folder / "work",
        timeout=600,
        parameters={"DATA": str(folder / "data"), "WEIGHTS": str(folder / "tiny-weights")},
    )
    findings = check_submission(
        folder / "work/submission.csv", load_competition(folder / "data", "freesound2019", train=False)
    )
    assert not refused(findings), findings


# --- who is to blame --------------------------------------------------------------------------------


def installed(name):
    "'torch 2.11.0'"
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return name


def blamed(text):
    "The packages that a traceback, as text, runs through, from the outermost to the innermost; else those that its last line names."
    known = modules()
    absent = re.search(r"ModuleNotFoundError: No module named '([A-Za-z0-9_]+)", text)
    if absent and absent[1] not in known:
        return [f"{absent[1]}, which is not installed"]
    tops = re.findall(r"site-packages[/\\]([A-Za-z0-9_]+)", text)
    found = [known[top] for top in tops if top in known]
    if not found:
        last = (text.strip().splitlines() or [""])[-1]
        found = [
            known[word] for word in re.findall(r"[A-Za-z0-9_]+", last) if word in known and known[word] != "audiotag"
        ]
    return [installed(name) for i, name in enumerate(found) if name not in found[:i]]


def do(check, folder):
    kind, _, name = check.partition(" ")
    if kind == "import":
        use(plain(name))
    elif kind == "recipe":
        train(name, folder / name)
    elif kind == "export":
        export(folder / RECIPES[0])
    else:
        notebook(folder / RECIPES[0])


def main(folder, *todo):
    import traceback

    for check in todo:
        try:
            do(check, Path(folder))
            result = {"check": check, "ok": True}
        except BaseException as e:  # noqa: BLE001 - whatever it is, it is what this check is to tell
            text = "".join(traceback.format_exception(e))
            result = {
                "check": check,
                "ok": False,
                "error": f"{type(e).__name__}: {e}",
                "blamed": blamed(text),
                "text": text,
            }
        print("\n" + json.dumps(result), flush=True)
        if not result["ok"]:
            break
    os._exit(0)  # a library that dies while it is unloaded says nothing about the checks


if __name__ == "__main__":
    main(*sys.argv[1:])
