"""Outputs for the notebooks in nbs/kaggle: `python tests/kaggle_notebooks.py [SYSTEM ...]`, or `make notebooks`.

Each training notebook, and then its inference notebook with the weights that it has packed, is executed on a small competition that the project
synthesizes, and its outputs are stored beside the cells; the cells themselves stay as they are. Networks are small and train for a few epochs,
so the scores say what the notebook shows and nothing about the system. About twelve minutes on two cores.
"""

import json
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from audiotag.audio.synth import make_competition, make_rainforest, make_soundscapes, make_universal  # noqa: E402
from audiotag.demo import settings as demo_settings  # noqa: E402
from audiotag.rehearse.rehearse import run_notebook  # noqa: E402
from tests.outputs import clean_notebook  # noqa: E402
from tests.tiny import SYSTEMS  # noqa: E402

LARGEST_SOUND = 20_000  # characters: a player holds its whole sound
DATA = {
    "freesound2019": make_competition,
    "freesound2019_waveform": make_competition,
    "rainforest2021": lambda folder: make_rainforest(folder, n_train=24, n_test=6, seconds=20.0),
    "birdclef2024": lambda folder: make_soundscapes(folder, n_train=96, n_test=3, seconds=30.0),
    "birdclef2026": lambda folder: make_soundscapes(folder, n_train=96, n_test=3, seconds=30.0),
    "universal2020": lambda folder: make_universal(folder, n_train=240, n_test=24, n_speakers=30),
}


# what makes a recipe small here: the tests' tiny networks learn nothing, and a reader wants to see one that does
CHANGES = {
    "freesound2019": list(demo_settings),
    "birdclef2024": [
        "model.width=8",
        "front_end.n_mels=48",
        "mixed.n=4",
        "mixed.seconds=20",
        "stages.*.steps=100",
        "stages.*.batch_size=16",
        "n_folds=2",
        "group_by=[]",
    ],
    "birdclef2026": [
        "model.backbone.width=8",
        "front_end.n_mels=48",
        "mixed.n=4",
        "mixed.seconds=20",
        "stages.*.steps=60",
        "stages.labelled.steps=300",
        "stages.*.batch_size=16",
        "n_folds=2",
        "group_by=[]",
        "refit=false",
    ],
    "universal2020": ["model.width=8", "stages.*.epochs=12", "stages.*.batch_size=16", "n_folds=2"],
}


def changes(system):
    "The recipe's fields that make it small."
    longer = {"stages.*.epochs=2": "stages.*.epochs=6", "stages.*.steps=8": "stages.*.steps=40"}
    tiny = [longer.get(s, s) for s in SYSTEMS[system][1]] if system in SYSTEMS else []
    return ["cpus=2", *CHANGES.get(system, tiny)]


def join_streams(outputs):
    "Lines that were printed one by one as one output."
    joined = []
    for output in outputs:
        before = joined[-1] if joined else {}
        if output["output_type"] == "stream" and before.get("name") == output["name"]:
            before["text"] = ["".join(before["text"]) + "".join(output["text"])]
        else:
            joined.append(output)
    return joined


def store_outputs(source, executed):
    "Copy the outputs of the executed copy into the notebook, cell by cell."
    notebook, done = json.loads(source.read_text()), json.loads(executed.read_text())
    outputs = {c["id"]: c.get("outputs", []) for c in done["cells"]}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] = join_streams(outputs[cell["id"]])
            for output in cell["outputs"]:
                html = "".join(output.get("data", {}).get("text/html", ""))
                if "<audio" in html and len(html) > LARGEST_SOUND:
                    del output["data"]["text/html"]
                if "execution_count" in output:
                    output["execution_count"] = None
    clean_notebook(notebook)
    text = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False)
    source.write_text(text + "\n", encoding="utf-8")


def main(systems):
    for system in systems or DATA:
        with tempfile.TemporaryDirectory() as home:
            data, weights = Path(home) / "data", Path(home) / f"{system}-weights"
            DATA[system](data)
            parameters = {"DATA": str(data), "WEIGHTS": str(weights), "CHANGES": changes(system)}
            for kind in ("train", "infer"):
                notebook = REPO / "nbs" / "kaggle" / f"{kind}_{system}.ipynb"
                done = run_notebook(notebook, Path(home) / kind, parameters=parameters, timeout=1800)
                store_outputs(notebook, done)
                parameters.pop("CHANGES", None)  # the inference notebook has no such parameter
                print(notebook.name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
