"A run folder, a feature store and bundles that were written before the package had its folders: they open and give the same numbers."

from pathlib import Path

import numpy as np
import pytest

from audiotag.data.store import FeatureStore
from audiotag.infer.bundle import Bundle
from audiotag.infer.openvino_graphs import open_members
from audiotag.train.run_folder import Run, stage_table

OLD = Path(__file__).resolve().parent.parent / "old_files" / "flat-layout"
BUNDLES = ["freesound2019", "freesound2019_waveform", "rainforest2021", "universal2020", "birdclef2024"]


def test_an_old_run_opens_with_its_scores():
    run = Run(OLD / "run")
    table = stage_table(run)
    assert [s.name for s in run.recipe.stages] == ["noisy", "curated", "agreed", "certain"]
    assert np.allclose(table["lwlrap curated"], [0.689, 0.689, 0.656, 0.656, 0.656], atol=5e-4)  # as it printed them
    assert np.allclose(table["lwlrap noisy"], [0.611, 0.611, 0.611, 0.556, 0.611], atol=5e-4)
    assert run.recipe.to_json() == run.recipe.replace().to_json() and len(run.ledger("agreed"))


def test_an_old_store_is_whole():
    store = FeatureStore(OLD / "run" / "store")
    assert len(store) and not len(store.verify())


@pytest.mark.parametrize("name", BUNDLES)
def test_an_old_bundle_opens_with_its_graphs(name):
    bundle = Bundle(OLD / name)  # replays the golden example
    members = open_members(bundle)
    assert members and list((OLD / name).glob("*.xml"))
    assert all(m.precision in ("fp32", "int8") for m in members)
