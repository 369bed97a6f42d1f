"Two foreign graphs with class lists of their own, from the command line to a submission of the sealed ensemble."

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from audiotag.core.errors import AudiotagError
from audiotag.data.competitions import load_competition
from audiotag.infer.bundle import open_bundles
from audiotag.infer.predict import infer
from audiotag.kaggle.pack_ensemble import gather
from audiotag.train.run_folder import Run
from tests import tiny
from tests.onnx_file import write_onnx

RATE, SAMPLES = 16000, 8000


def bands(path, n, seed):
    "A graph of `n` outputs: random projections of the spectrum's energy in 24 bands, as logits."
    g = np.random.default_rng(seed)
    phase = 2 * np.pi * np.outer(np.arange(SAMPLES) / RATE, np.geomspace(150, 7000, 24))
    waves = np.concatenate([np.cos(phase), np.sin(phase)], 1).astype(np.float32) / SAMPLES
    mix = np.tile(g.normal(size=(24, n)), (2, 1)).astype(np.float32) * 300
    return write_onnx(
        path,
        nodes=[("MatMul", ["wave", "c"], ["a"]), ("Mul", ["a", "a"], ["p"]), ("MatMul", ["p", "m"], ["logits"])],
        constants={"c": waves, "m": mix},
        inputs={"wave": ["n", SAMPLES]},
        outputs={"logits": ["n", n]},
    )


@pytest.fixture(scope="module")
def members(tiny_data, tmp_path_factory):
    "Run folders of one that knows all classes and one that knows three of them, and the classes."
    folder = tmp_path_factory.mktemp("foreign")
    classes = load_competition(tiny_data).classes
    for name, known, n in (("all", classes, len(classes)), ("some", classes[1:6:2], 4)):
        rows = [f"class {i},{c}" for i, c in enumerate(known)]
        (folder / f"{name}.csv").write_text("theirs,ours\n" + "\n".join(rows) + "\n")
        (folder / f"{name}.txt").write_text("".join(f"class {i}\n" for i in range(n)))
        words = ["--table", folder / f"{name}.csv", "--labels", folder / f"{name}.txt", "--peak", "0.25"]
        made = tiny.called(
            "foreign", bands(folder / f"{name}.onnx", n, seed=n), "--data", tiny_data, "--out", folder / f"m-{name}",
            "--sample-rate", RATE, "--seconds", 0.5, *words,
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        assert f"opinions on {len(known)} of {len(classes)} classes" in made.stdout
        trained = tiny.called(
            "train", "--recipe", folder / f"m-{name}" / "recipe.yaml", "--data", tiny_data, "--run", folder / name,
            "--no-baseline", "--set", "n_folds=2", "--set", "group_by=[]",
        )  # fmt: skip
        assert trained.returncode == 0, trained.stderr
    return folder, classes


def test_a_run_of_a_foreign_graph_is_scored_like_any_other(members):
    folder, classes = members
    run = Run(folder / "some")
    assert run.recipe.model.masked == tuple(i for i in range(len(classes)) if i not in (1, 3, 5))
    oof = run.oof("foreign")
    clip = run.clips.iloc[0]
    fe = run.recipe.front_end
    outputs = fe(fe.read(clip.path))
    expected = (1 / (1 + np.exp(-outputs))).mean(1)[:3]
    np.testing.assert_allclose(oof.loc[clip.clip_id].iloc[[1, 3, 5]], expected, atol=2e-3)  # stored in 16 bits
    resumed = tiny.called(
        "train", "--recipe", folder / "m-some" / "recipe.yaml", "--data", run.clips.path.iloc[0].rsplit("/", 2)[0],
        "--run", folder / "some", "--no-baseline", "--set", "n_folds=2", "--set", "group_by=[]",
    )  # fmt: skip
    assert "nothing is left to train" in resumed.stderr


def test_an_ensemble_of_members_with_other_classes_is_sealed_and_scored(members, tiny_data, tmp_path):
    folder, classes = members
    gathered = gather([Run(folder / "all"), Run(folder / "some")])
    whole, partial = gathered.members.values()
    known = [1, 3, 5]
    assert np.isfinite(whole).all() and list(np.flatnonzero(~np.isnan(partial).any(0))) == known
    out = tmp_path / "both"
    done = tiny.called("ensemble", folder / "all", folder / "some", "--out", out, "--blend", "1*a + 3*b")
    assert done.returncode == 0, done.stderr
    bundles = open_bundles(out)
    assert [len(b.members) for b in bundles.bundles] == [1, 1]  # the same in all folds
    report = infer(out, tiny_data, tmp_path / "both.csv", deadline="10min")
    assert report.members == 2 and not report.prior and not report.left_out
    infer(out, tiny_data, tmp_path / "same.csv")
    both = pd.read_csv(tmp_path / "both.csv", index_col=0)
    pd.testing.assert_frame_equal(both, pd.read_csv(tmp_path / "same.csv", index_col=0))
    alone = {}
    for name in ("all", "some"):
        packed = tiny.called("pack", "weights", folder / name, tmp_path / f"{name}-weights")
        assert packed.returncode == 0, packed.stderr
        infer(tmp_path / f"{name}-weights", tiny_data, tmp_path / f"{name}.csv")
        alone[name] = pd.read_csv(tmp_path / f"{name}.csv", index_col=0)
    expected = alone["all"].copy()
    names = [classes[i] for i in known]
    expected[names] = (alone["all"][names] + 3 * alone["some"][names]) / 4
    pd.testing.assert_frame_equal(both, expected, atol=1e-6)
    # alone, a member with opinions on some classes leaves the others at the prior
    prior = json.loads((tmp_path / "some-weights" / "bundle.json").read_text())["prior"]
    unknown = [c for c in classes if c not in names]
    np.testing.assert_allclose(
        alone["some"][unknown].to_numpy(),
        np.tile(np.array(prior)[[classes.index(c) for c in unknown]], (30, 1)),
        rtol=1e-5,
    )


@pytest.mark.long
def test_the_kernels_notebook_scores_it_in_a_rehearsal(members, tiny_data, tmp_path):
    "One of our networks and a foreign graph that knows three of the classes, among hidden files of which nine are faulty."
    from audiotag.kaggle.wheels import audiotag_wheel
    from audiotag.rehearse.hidden_test import hidden_test
    from audiotag.rehearse.rehearse import Limits, rehearse
    from audiotag.rehearse.sandbox import find_sandbox

    if not find_sandbox().files:
        pytest.skip("no mounts without namespaces")
    folder, classes = members
    changes = [word for change in tiny.SETS for word in ("--set", change)]
    own = tiny.called(
        "train", "--recipe", "freesound2019", "--data", tiny_data, "--run", folder / "own", "--no-baseline", *changes
    )
    assert own.returncode == 0, own.stderr
    weights = tmp_path / "freesound2019-weights"
    done = tiny.called("ensemble", folder / "own", folder / "some", "--out", weights, "--blend", "a + b + c + 9*d")
    assert done.returncode == 0, done.stderr
    (tmp_path / "audiotag-wheels").mkdir()
    audiotag_wheel(tmp_path / "audiotag-wheels")
    notebook = Path(__file__).resolve().parents[2] / "nbs" / "kaggle" / "infer_freesound2019.ipynb"

    def rehearsed(name, **image):
        return rehearse(
            notebook,
            competition=tiny_data,
            bundles=[weights, tmp_path / "audiotag-wheels"],
            out=tmp_path / name,
            limits=Limits(limit="9min"),
            empty=False,
            **image,
        )

    found = rehearsed("with", extra_packages=["openvino"])
    assert found.ok, found
    working = tmp_path / "with" / "hidden" / "working"
    table = pd.read_csv(working / "submission.csv", index_col=0)
    report = json.loads((working / "submission.csv.report.json").read_text())
    n_own = len(Run(folder / "own").recipe.members) * 2
    assert report["members"] == n_own + 1 and not report["left_out"]
    # the same files, scored by each alone: the foreign graph counts as three of our runs where it knows the class
    data = shutil.copytree(tiny_data, tmp_path / "data")
    made = hidden_test(load_competition(tiny_data, train=False), tmp_path / "made")
    shutil.rmtree(data / "test")
    shutil.copytree(made.test, data / "test")
    shutil.copyfile(made.template, data / "sample_submission.csv")
    alone = {}
    for run in ("own", "some"):
        packed = tiny.called("pack", "weights", folder / run, tmp_path / run)
        assert packed.returncode == 0, packed.stderr
        infer(tmp_path / run, data, tmp_path / f"{run}.csv")
        alone[run] = pd.read_csv(tmp_path / f"{run}.csv", index_col=0)
    scored = [n for n in table.index if n not in report["prior"]]
    known = [classes[i] for i in (1, 3, 5)]
    expected = alone["own"].copy()
    expected[known] = (alone["own"][known] + 3 * alone["some"][known]) / 4
    assert len(scored) > 60 and set(report["prior"]) < set(table.index)
    pd.testing.assert_frame_equal(table.loc[scored], expected.loc[scored], atol=1e-5)

    # an image without OpenVINO cannot run the graph, and the rehearsal says so
    lacking = rehearsed("without")
    assert not lacking.ok and "openvino" in str(lacking.problems), lacking


def test_every_method_takes_members_with_other_classes(members):
    from audiotag.kaggle.pack_ensemble import fit_ensemble

    folder, _ = members
    gathered = gather([Run(folder / "all"), Run(folder / "some")])
    name, combiner, table = fit_ensemble(gathered, draws=10)
    assert table[gathered.metric].notna().all()
    p = np.stack(list(gathered.members.values()))
    assert np.isfinite(combiner.apply(p)).all()
    with pytest.raises(AudiotagError, match="no member has an opinion on all classes"):
        fit_ensemble(gather([Run(folder / "some")]), draws=10)


def test_mistakes_leave_nothing_behind(members, tiny_data, tmp_path):
    folder, classes = members
    (tmp_path / "map.csv").write_text(f"theirs,ours\nclass 9,{classes[0]}\n")
    (tmp_path / "labels.txt").write_text("".join(f"class {i}\n" for i in range(12)))

    def refused(match, *words):
        made = tiny.called(
            "foreign", folder / "some.onnx", "--data", tiny_data, "--out", tmp_path / "m", "--table", tmp_path / "map.csv",
            "--sample-rate", RATE, *words,
        )  # fmt: skip
        assert made.returncode == 2 and match in made.stderr, made.stderr
        assert not (tmp_path / "m").exists() or not list((tmp_path / "m").iterdir())

    refused("5 s at 16000 Hz", "--labels", tmp_path / "labels.txt")
    refused("names 12 classes, the graph has 4 outputs", "--labels", tmp_path / "labels.txt", "--seconds", 0.5)
    refused("the graph has no class 'class 9'", "--seconds", 0.5)
    (tmp_path / "map.csv").write_text(f"theirs,ours\n7,{classes[0]}\n")
    refused("names the output 7, the graph has 4", "--seconds", 0.5)


def trained(folder, data, head, run, seed=0):
    made = folder / f"m-{head}"
    if not made.exists():
        words = ["--head", head, "--sample-rate", RATE, "--seconds", 0.5, "--peak", 0.25]
        done = tiny.called("foreign", folder / "all.onnx", "--data", data, "--out", made, *words)
        assert done.returncode == 0, done.stderr
    sets = ["n_folds=2", "group_by=[]", f"seed={seed}", "cpus=1"]
    changes = [w for s in sets for w in ("--set", s)]
    done = tiny.called(
        "train", "--recipe", made / "recipe.yaml", "--data", data, "--run", run, "--store", folder / "outputs",
        "--no-baseline", *changes,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Run(run)


@pytest.mark.parametrize("head", ["linear", "mlp", pytest.param("prototype", marks=pytest.mark.long)])
def test_a_head_on_embeddings_is_a_run_like_any_other(members, tiny_data, tmp_path, head):
    "Out of fold, from one store of outputs, the same bytes again, and in a bundle the scores of its networks."
    folder, classes = members
    run = trained(folder, tiny_data, head, tmp_path / "run")
    assert run.store.location == str(folder / "outputs")
    assert run.scores("probe")["lwlrap curated"] > 0.4  # .34 by chance
    for k in (0, 1):
        held_out = set(run.clips.clip_id[run.clips.fold == k])
        assert not held_out & run.trained_on("probe", k) and len(run.trained_on("probe", k)) == 20
    again = trained(folder, tiny_data, head, tmp_path / "again")
    for k in (0, 1):
        one, two = (r.fold_path("probe", k) / "weights.safetensors" for r in (run, again))
        assert one.read_bytes() == two.read_bytes()
    packed = tiny.called("pack", "weights", tmp_path / "run", tmp_path / "weights")
    assert packed.returncode == 0, packed.stderr
    infer(tmp_path / "weights", tiny_data, tmp_path / "out.csv", deadline="10min")
    competition = load_competition(tiny_data)
    clip, fe = competition.of("test").iloc[0], run.recipe.front_end
    x = run.recipe.windows.cut(fe(fe.read(clip.path)))
    from audiotag.infer.windows import probabilities

    expected = np.mean([probabilities(run.model("probe", k), x).mean(0) for k in (0, 1)], axis=0)
    found = pd.read_csv(tmp_path / "out.csv", index_col=0).loc[clip.clip_id]
    np.testing.assert_allclose(found[list(competition.classes)], expected, atol=1e-5)


OTHERS = [pytest.param(o, marks=pytest.mark.long) for o in ("birdclef2024", "universal2020")]


@pytest.mark.parametrize("system", ["rainforest2021", *OTHERS])
def test_members_of_other_competitions(tmp_path, system):
    "Recordings with boxes, soundscapes, and one label a clip: scored on the clips of that competition's own recipe."
    from audiotag.train.foreign import foreign_member
    from audiotag.train.recipes import get_recipe
    from audiotag.train.run_folder import open_run, run_stages, scored_clips, trainable_clips

    make, _, layout = tiny.SYSTEMS[system]
    competition = load_competition(make(tmp_path / "data"), layout)
    recipe = foreign_member(
        bands(tmp_path / "g.onnx", 6, seed=1), tmp_path / "m", competition, head="ridge", sample_rate=RATE, seconds=0.5
    )
    run = run_stages(open_run(tmp_path / "run", recipe.replace(n_folds=2, group_by=()), competition))
    own = get_recipe(system, scale="small")
    rows, _ = trainable_clips(competition.clips, own)
    expected = scored_clips(rows)
    assert set(run.clips.clip_id) >= set(expected.clip_id[expected.source == "curated"])
    oof = run.oof("probe")
    assert np.isfinite(oof.to_numpy()).all() and run.recipe.metric == own.metric
    if own.one_label:
        np.testing.assert_allclose(oof.sum(1), 1, atol=1e-5)
    assert np.isfinite(next(iter({k: v for k, v in run.scores("probe").items() if "curated" in k}.values())))


def test_a_table_of_embeddings_or_probabilities_is_a_member(members, tiny_data, tmp_path):
    "From a Parquet table to a submission; a test clip that is not in the table is left to the prior."
    _, classes = members
    competition = load_competition(tiny_data)
    clips = competition.clips
    known = [classes[i] for i in (0, 2, 5)]
    score = {c: [0.9 if c in labels else 0.1 for labels in clips.labels] for c in known}
    table = pd.DataFrame({"file": [p.rsplit("/", 1)[1] for p in clips.path], **score})
    missing = competition.of("test").clip_id.iloc[3]
    table = table[table.file != missing]
    two = [table.assign(start_s=0.0), table.assign(start_s=5.0, **{c: table[c] / 2 for c in known})]
    pd.concat(two).to_parquet(tmp_path / "scores.parquet")
    (tmp_path / "map.csv").write_text("theirs,ours\n" + "".join(f"{c},{c}\n" for c in known))

    def run_of(name, *words):
        done = tiny.called(
            "foreign", tmp_path / "scores.parquet", "--data", tiny_data, "--out", tmp_path / name, *words
        )
        assert done.returncode == 0, done.stderr
        done = tiny.called(
            "train", "--recipe", tmp_path / name / "recipe.yaml", "--data", tiny_data, "--run", tmp_path / f"{name}-run",
            "--no-baseline", "--set", "n_folds=2", "--set", "group_by=[]",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        packed = tiny.called("pack", "weights", tmp_path / f"{name}-run", tmp_path / f"{name}-weights")
        assert packed.returncode == 0, packed.stderr
        return Run(tmp_path / f"{name}-run")

    run = run_of("m", "--table", tmp_path / "map.csv", "--outputs", "probabilities")
    clip = run.clips.iloc[0]
    expected = [np.mean([p, p / 2]) for p in (0.9 if c in clip.labels else 0.1 for c in known)]
    np.testing.assert_allclose(run.oof("foreign").loc[clip.clip_id, known], expected, atol=1e-3)
    (tmp_path / "m" / "table.safetensors").unlink()  # the bundle holds it
    report = infer(tmp_path / "m-weights", tiny_data, tmp_path / "out.csv", deadline="10min")
    assert list(report.prior) == [missing] and "no row for" in report.prior[missing]
    out = pd.read_csv(tmp_path / "out.csv", index_col=0)
    np.testing.assert_allclose(out.drop(missing)[known], 0.075, atol=1e-4)  # no test clip has labels here
    assert run_of("head", "--head", "ridge").scores("probe")["lwlrap curated"] > 0.4
