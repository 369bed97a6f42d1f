"Second targets: exact costs through mixing, a projection that leaves no trace, and students that keep the promise of out-of-fold scores."

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from tests.tiny import SYSTEMS

from audiotag.audio.features import LogMel, Standardize
from audiotag.audio.synth import make_competition
from audiotag.augment.mixing import AddClips
from audiotag.augment.spec import MixUp, SpecMix
from audiotag.core.errors import AudiotagError
from audiotag.core.files import read_json, write_json
from audiotag.core.targets import Targets
from audiotag.data.competitions import load_competition
from audiotag.data.crops import validated
from audiotag.data.folds import make_folds
from audiotag.infer.bundle import Bundle
from audiotag.infer.predict import infer
from audiotag.infer.windows import Windows
from audiotag.kaggle.pack import pack_weights
from audiotag.models.cnn import CNNModel1
from audiotag.train.distill import Projection, TaughtLoss, TeacherEmbeddings, TeacherProbabilities, taught
from audiotag.train.distill import embedding_cost, probability_cost
from audiotag.train.losses import BCE
from audiotag.train.recipes import changed, get_recipe
from audiotag.train.run_folder import ALL_FOLDS, Run, _fold_loaders, is_finished, open_run, run_stages
from audiotag.train.settings import Recipe, Stage
from audiotag.train.student import student_recipe, student_table, with_folds_of

STAGE = Stage(name="one", train_on=("curated",), epochs=2, lr=3e-3, batch_size=8)
RECIPE = Recipe(
    name="toy",
    front_end=LogMel(n_mels=16, hop_length=1388, scaling=Standardize()),
    model=CNNModel1(width=2),
    loss=BCE(),
    stages=(STAGE,),
    windows=Windows(frames=16, hop=16),
    members=("one",),
    n_folds=2,
    group_by=(),
    cpus=1,
    precision="fp32",
)


def test_costs_by_hand():
    z, p = torch.tensor([[0.0, 2.0, -1.0]]), torch.tensor([[0.25, torch.nan, 0.5]])
    bce = [-(0.25 * np.log(0.5) + 0.75 * np.log(0.5)), 0.5 * np.log1p(np.exp(1.0)) + 0.5 * np.log1p(np.exp(-1.0))]
    assert probability_cost(z, p).item() == pytest.approx(np.mean(bce), abs=1e-6)
    odds = np.sqrt(0.25 / 0.75)  # temperature 2
    t, q = odds / (1 + odds), 1 / (1 + np.exp(0.5))
    soft = [np.log(2), -(0.5 * np.log(q) + 0.5 * np.log(1 - q))]
    assert t == pytest.approx(0.36603, abs=1e-5)
    assert probability_cost(z, p, temperature=2.0).item() == pytest.approx(4 * np.mean(soft), abs=1e-5)
    full = torch.tensor([[0.7, 0.2, 0.1]])
    q = z.softmax(1).numpy()[0]
    kl = sum(a * np.log(a / b) for a, b in zip((0.7, 0.2, 0.1), q))
    assert probability_cost(z, full, loss="kl").item() == pytest.approx(kl, abs=1e-5)
    assert probability_cost(z, p, loss="kl").item() == 0  # not all classes are known
    x, e = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0]])
    assert embedding_cost(x, e).item() == pytest.approx(1 - np.sqrt(0.5), abs=1e-6)
    assert embedding_cost(x, e, loss="mse").item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("mix", [MixUp(p=1.0), SpecMix(p=1.0), AddClips(p=1.0)], ids=lambda m: m.kind)
def test_a_mixture_mixes_what_the_teacher_says(mix):
    "As the labels are mixed; and a clip that is mixed with one of which the teacher says nothing is not taught."
    g = torch.Generator().manual_seed(1)
    labels = (torch.rand(8, 3, generator=g) < 0.5).float()
    on_wave = isinstance(mix, AddClips)
    x = torch.randn(8, 1, 1 if on_wave else 16, 64, generator=g)
    y = Targets(labels, teacher=labels.clone(), embedding=labels.clone())
    params = mix.draw(x, g)
    _, got = mix.apply(x, y, params)
    torch.testing.assert_close(got.teacher, got.labels)
    changed = (got.labels != labels).any(1)
    if on_wave:  # labels are united, embeddings averaged
        mean = (labels + labels[params["partner"]]) / 2
        torch.testing.assert_close(got.embedding[changed], mean[changed])
    else:
        torch.testing.assert_close(got.embedding, got.labels)
    assert changed.sum() >= 2
    some = int(params["partner"][changed.nonzero()[0, 0]])
    untold = labels.clone()
    untold[some] = torch.nan
    _, got = mix.apply(x, replace(y, teacher=untold, embedding=untold), params)
    mixed_with = (params["partner"] == some) & changed
    assert got.teacher[mixed_with].isnan().all() and got.embedding[mixed_with].isnan().all()
    rest = (params["partner"] != some) & (torch.arange(8) != some)
    assert not got.teacher[rest].isnan().any()


def test_the_gradient_reaches_the_network_through_the_projection():
    net, x = CNNModel1(width=2).build(3), torch.randn(4, 1, 16, 16)
    names = list(net.state_dict())
    y = Targets(torch.zeros(4, 3), embedding=torch.randn(4, 5))
    teachers = (TeacherEmbeddings(table="e.parquet", weight=3.0, hidden=7),)
    with taught(net, BCE(), teachers, 3, 5) as loss:
        assert isinstance(loss, TaughtLoss) and [o.shape[0] for o in net.auxiliary.layers[-1].parameters()] == [5, 5]
        logits = net(x)
        expected = BCE()(logits, y.labels) + 3 * embedding_cost(net.auxiliary.output, y.embedding)
        assert loss(logits, y).item() == pytest.approx(expected.item())
        (3 * embedding_cost(net.auxiliary.output, y.embedding)).backward()
        assert net.body[0][0].weight.grad.abs().sum() > 0
        assert net.eval()(x).shape == (4, 3)
    assert list(net.state_dict()) == names and not net._forward_hooks
    with pytest.raises(AudiotagError, match="no last layer"):
        Projection(torch.nn.ReLU(), 3, 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("distill")
    make_competition(tmp / "data", seed=1, n_curated=32, n_noisy=8, n_test=4)
    return tmp


@pytest.fixture(scope="module")
def comp(folder):
    return load_competition(folder / "data")


@pytest.fixture(scope="module")
def teacher(folder, comp):
    return run_stages(open_run(folder / "teacher", RECIPE, comp))


@pytest.fixture(scope="module")
def student(folder, comp, teacher):
    recipe = student_recipe(RECIPE, [teacher.folder], weight=2.0)
    return run_stages(
        open_run(folder / "student", recipe, with_folds_of(comp, [teacher.folder]), store=folder / "teacher/store")
    )


def told(run, fold):
    return pd.read_parquet(run.fold_path("student", fold) / "told-by-runs.parquet").set_index("clip_id")


def test_each_student_hears_of_the_right_models(teacher, student):
    curated = student.rows[student.rows.source == "curated"]
    for k in range(2):
        ids = curated.clip_id[curated.fold != k]
        assert set(told(student, k).index) == set(ids)
        np.testing.assert_allclose(told(student, k).loc[ids], teacher.predict("one", k, ids), atol=1e-6)
    of_all = told(student, ALL_FOLDS)
    assert set(of_all.index) == set(curated.clip_id)
    np.testing.assert_allclose(of_all, teacher.oof("one").loc[of_all.index], atol=1e-6)


def test_a_clip_in_no_fold_is_told_by_all(teacher):
    clips = teacher.rows[teacher.rows.fold == 0].iloc[:2]
    free = clips.assign(group=["nobody", clips.group.iloc[1]], fold=-1)
    got = teacher.taught_predictions(["one"], free, ALL_FOLDS).to_numpy()
    by_fold = [teacher.predict("one", k, clips.clip_id).to_numpy() for k in range(2)]
    np.testing.assert_allclose(got[0], np.mean(by_fold, axis=0)[0], atol=1e-6)
    np.testing.assert_allclose(got[1], by_fold[0][1], atol=1e-6)  # its group was held out by fold 0


def test_teachers_compute_in_the_precision_of_the_training(teacher, monkeypatch):
    clips = teacher.rows[teacher.rows.fold == 0]
    exact, off = teacher.predict("one", 0, clips.clip_id), {}
    for precision in ("fp32", "fp16", "bf16"):
        monkeypatch.setattr(teacher, "recipe", RECIPE.replace(precision=precision))
        off[precision] = (teacher.taught_predictions(["one"], clips, 0) - exact).abs().to_numpy().max()
    assert off["fp32"] == off["fp16"] == 0 < off["bf16"] < 0.01


def test_a_leak_is_refused_before_and_after_training(folder, comp, teacher, student):
    recipe = student_recipe(RECIPE, [teacher.folder])
    other = make_folds(comp.clips.assign(fold=-1), n_folds=2, seed=99)
    leak = open_run(folder / "leak", recipe, replace(comp, clips=other), store=folder / "teacher/store")
    with pytest.raises(AudiotagError, match="would be scored by a model that was trained on (it|them)"):
        run_stages(leak)
    assert not list((folder / "leak").rglob("weights.safetensors"))
    # what the teachers were trained on counts when the scores are read, too
    path = student.fold_path("student", 0) / "taught_by.json"
    about = read_json(path)
    assert set(about["trained_on"]) == teacher.trained_on("one", 0) & set(student.clips.clip_id)
    held_out = student.clips.clip_id[student.clips.fold == 0].iloc[0]
    try:
        write_json(path, about | {"trained_on": [*about["trained_on"], held_out]})
        with pytest.raises(AudiotagError, match="would be scored by a model"):
            Run(student.folder).oof("student")
    finally:
        write_json(path, about)


def test_the_teachers_of_a_refit_have_not_seen_the_clip(folder, teacher):
    "If a model of the teaching fold was trained on the clip, the targets of the refit are refused."
    path = teacher.fold_path("one", 0) / "trained_on.json"
    ids, clips = read_json(path), teacher.rows[teacher.rows.fold == 0]
    try:
        write_json(path, [*ids, clips.clip_id.iloc[0]])
        with pytest.raises(AudiotagError, match="would be scored by a model"):
            Run(teacher.folder).taught_predictions(["one"], clips, ALL_FOLDS)
    finally:
        write_json(path, ids)


def test_one_network_packs_and_infers(folder, student, teacher):
    assert is_finished(student) and is_finished(Run(student.folder))
    bundle = Bundle(pack_weights(student, folder / "bundle", thresholds="none"))
    assert len(bundle.members) == 1 and bundle.members[0]["oof"]["curated"] == pytest.approx(
        student.scores("student")["lwlrap curated"], abs=1e-6
    )
    one = student.model("student", ALL_FOLDS).state_dict()
    assert all(torch.equal(v, one[k]) for k, v in bundle.model(0).state_dict().items())
    report = infer(folder / "bundle", folder / "data", out=folder / "submission.csv")
    assert (folder / "submission.csv").is_file(), report
    table = student_table(student, [teacher.folder], draws=20)
    assert table.networks.to_list() == [2, 1]
    (student.fold_path("student", ALL_FOLDS) / "weights.safetensors").rename(folder / "kept")
    assert not is_finished(Run(student.folder))
    again = run_stages(Run(student.folder))
    assert (again.fold_path("student", ALL_FOLDS) / "weights.safetensors").read_bytes() == (
        folder / "kept"
    ).read_bytes()


def test_a_table_of_embeddings_is_part_of_the_training(folder, comp):
    "With a table the weights are others, hold no trace of the projection, resume to the same bytes; a changed table is refused."
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(len(comp.clips), 6)).astype(np.float32))
    table = table.rename(columns=lambda i: f"e{i}").assign(clip_id=comp.clips.clip_id.to_numpy())
    path = folder / "embeddings.parquet"
    table.to_parquet(path)

    def trained(name, teachers):
        recipe = RECIPE.replace(stages=(STAGE.replace(distill=teachers, epochs=1),))
        run = run_stages(open_run(folder / name, recipe, comp, store=folder / "teacher/store"))
        return run, (run.fold_path("one", 0) / "weights.safetensors").read_bytes()

    teachers = (TeacherEmbeddings(table=str(path), weight=4.0),)
    run, taught_bytes = trained("embedded", teachers)
    assert taught_bytes != trained("plain", ())[1]
    assert set(run.model("one", 0).state_dict()) == set(CNNModel1(width=2).build(len(comp.classes)).state_dict())
    table.assign(e0=0.0).to_parquet(path)
    with pytest.raises(AudiotagError, match="teacher's table has changed"):
        open_run(folder / "embedded", run.planned, comp, store=folder / "teacher/store")


def test_settings():
    assert (
        STAGE.hash == STAGE.replace(distill=()).hash != STAGE.replace(distill=(TeacherProbabilities(table="p"),)).hash
    )
    assert RECIPE.hash == RECIPE.replace(refit=False).hash != RECIPE.replace(refit=True).hash
    with pytest.raises(AudiotagError, match="no epoch is the best"):
        RECIPE.replace(refit=True, stages=(STAGE.replace(best_epoch=True),))
    with pytest.raises(AudiotagError, match="one teacher of each kind"):
        STAGE.replace(distill=(TeacherProbabilities(table="a"), TeacherProbabilities(table="b")))
    into = RECIPE.replace(
        stages=(STAGE, STAGE.replace(name="two", start_from="one", epochs=3, best_epoch=True)), members=("two",)
    )
    with pytest.raises(AudiotagError, match="no run to learn from"):
        student_recipe(into, [])


def test_unlabeled_windows_are_taught_by_all_folds(tmp_path):
    "Their labels are unknown and have no weight; what the teachers say of them does, also in a mixture with a labeled clip."
    make, changes, layout = SYSTEMS["birdclef2024"]
    make(tmp_path / "data")
    changes = [c.replace("=6", "=3") for c in changes if not c.startswith(("members", "mixed", "rounds"))] + [
        "cpus=1",
        "precision=fp32",
    ]
    recipe = get_recipe("birdclef2024", scale="small")
    recipe = recipe.replace(stages=recipe.stages[:1], rounds=(), members=("labelled",), mixed=None)
    recipe = changed(recipe, changes)
    comp = load_competition(tmp_path / "data", layout)
    teacher = run_stages(open_run(tmp_path / "teacher", recipe, comp))
    made = student_recipe(recipe, [teacher.folder])
    same = with_folds_of(comp, [teacher.folder])
    student = run_stages(open_run(tmp_path / "student", made, same, store=tmp_path / "teacher/store"))
    windows = student.rows.clip_id[student.rows.source == "unlabeled"]
    by_fold = [teacher.predict("labelled", k, windows).to_numpy() for k in range(2)]
    np.testing.assert_allclose(told(student, ALL_FOLDS).loc[windows], np.mean(by_fold, axis=0), atol=1e-6)
    np.testing.assert_allclose(told(student, 1).loc[windows], by_fold[1], atol=1e-6)
    stage = student.recipe.stage("student")
    loader = _fold_loaders(student, stage, ALL_FOLDS, student.training_clips(stage, ALL_FOLDS), seed=1).train
    j = int(np.flatnonzero(loader.rows[:, 1] >= 0)[0])
    own, partner = (loader._crop(j, k)[-1] for k in range(2))
    assert partner.weights.max() == 0 and not partner.teacher.isnan().any()
    share = float(loader.share[j])
    torch.testing.assert_close(loader.create_item(j)[-1].teacher, (1 - share) * own.teacher + share * partner.teacher)
    assert is_finished(student) and "macro_auc" in student_table(student, [teacher.folder], draws=5)


def test_what_a_refit_is_validated_on_has_all_classes():
    "Ids are often sorted by class, and metrics such as macro AUC need several; unlabeled windows are no measure."
    names = [f"{label}/{i:03d}" for label in "abc" for i in range(100)]
    train = pd.DataFrame(dict(clip_id=names, labels=[(n[0],) for n in names]))
    train = pd.concat([train, pd.DataFrame(dict(clip_id=[f"w{i}" for i in range(500)], labels=[()] * 500))])
    valid = validated(train, None, 30)
    assert valid.labels.value_counts().to_dict() == {("a",): 10, ("b",): 10, ("c",): 10}
    assert len(validated(train[:5], None)) == 5
    with pytest.raises(AudiotagError, match="in training and in validation"):
        validated(train, train[:1])
