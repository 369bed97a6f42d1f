"Selection rules, soft targets and stage lengths, on tables made by hand or at random."

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import SETS

from audiotag.augment.recorder import FilterAugment
from audiotag.augment.spec import MixUp
from audiotag.augment.wave import Gain, Noise
from audiotag.data.competitions import load_competition, targets
from audiotag.core.errors import AudiotagError
from audiotag.core.files import read_json, read_parquet, write_json, write_parquet
from audiotag.audio.features import FixedStats, Waveform
from audiotag.train.recipes import get_recipe
from audiotag.review.report import ledger_counts, ledger_overlap, selection_quality
from audiotag.train.settings import Stage, warm_up
from audiotag.train.stage_rules import AgreementRule
from audiotag.train.out_of_fold import ancestry
from audiotag.train.run_folder import Run, _data_fingerprint, open_run, run_stages
from audiotag.audio.synth import make_competition, read_truth
from audiotag.infer.windows import View, score_clips

LABELS = ["Rain", "Dog", "Bell"]
score = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1), st.just(float("nan")))
clip = st.tuples(
    st.lists(st.sampled_from(LABELS), min_size=1, max_size=3, unique=True), st.integers(0, 2), score, score
)


def table(rows):
    clips = pd.DataFrame(
        dict(
            clip_id=[f"c{i:03d}" for i in range(len(rows))],
            source="noisy",
            fold=[r[1] for r in rows],
            labels=[tuple(r[0]) for r in rows],
        )
    )
    return clips, {name: pd.Series([r[i] for r in rows], clips.clip_id) for name, i in (("noisy", 2), ("curated", 3))}


@given(st.lists(clip, min_size=1, max_size=40), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.sampled_from([None, 1, 2, 5]))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_the_rule_of_stage_3(rows, at_least, at_most):
    "The threshold is on sqrt(lwlrap1 * lwlrap2); no fold and label has more than the cap; and no clip that had room was left."
    clips, scores = table(rows)
    ledger = AgreementRule(scores=("noisy", "curated"), at_least=at_least, at_most=at_most).pick(clips, scores)
    assert list(ledger.clip_id) == list(clips.clip_id)
    geometric = np.sqrt(scores["noisy"] * scores["curated"]).reindex(ledger.clip_id).to_numpy()
    passed = geometric >= at_least - 1e-6
    assert not (ledger.picked & ~passed).any()
    per = ledger[ledger.picked].explode("labels").groupby(["fold", "labels"]).size()
    assert at_most is None or not len(per) or per.max() <= at_most
    for r in ledger[passed & ~ledger.picked].itertuples():
        assert any(per.get((r.fold, label), 0) == at_most for label in r.labels), "it had room under every label"
        better = ledger[
            ledger.picked & (ledger.fold == r.fold) & ledger.labels.map(lambda o: bool(set(o) & set(r.labels)))
        ]
        assert (better.score >= r.score - 1e-9).any()


def test_the_order_of_the_table_does_not_matter():
    rows = [(["Rain"], 0, 1.0, 1.0)] * 8
    clips, scores = table(rows)
    rule = AgreementRule(scores=("noisy", "curated"), at_least=0.5, at_most=3)
    a, b = rule.pick(clips, scores), rule.pick(clips.sample(frac=1, random_state=1), scores)
    assert list(a.clip_id[a.picked]) == list(b.clip_id[b.picked]) == ["c000", "c001", "c002"]


def test_stage_4_takes_exactly_the_perfect_ones():
    clips, scores = table([(["Rain"], 0, s, s) for s in (1.0, 0.999, 1.0 - 1e-12, 0.5)])
    ledger = AgreementRule(scores=("noisy",), at_least=1.0).pick(clips, scores)
    assert list(ledger.picked) == [True, False, True, False]


def test_a_cleaned_source_is_not_touched_by_another_rule():
    clips, scores = table([(["Rain"], 0, 1.0, 1.0)] * 2)
    clips["source"] = ["noisy", "unlabeled"]
    assert list(AgreementRule(scores=("noisy",), at_least=0).pick(clips, scores).clip_id) == ["c000"]


@pytest.mark.parametrize(
    "bad",
    [
        dict(at_least=1.5),
        dict(at_least=0.5, at_most=0),
        dict(at_least=0.5, soft=2.0),
        dict(at_least=0.5, probability=0.0),
    ],
)
def test_rules_that_make_no_sense(bad):
    with pytest.raises(AudiotagError):
        AgreementRule(scores=("noisy",), **bad)


@pytest.mark.parametrize(
    "bad",
    [
        dict(epochs=0),
        dict(lr=-1.0),
        dict(train_on=()),
        dict(name="a/b"),
        dict(patience=3),
        dict(ema=0.9, best_epoch=True),
        dict(steps=0),
    ],
)
def test_stages_that_make_no_sense(bad):
    with pytest.raises(AudiotagError):
        Stage(**{"name": "x", "train_on": ("noisy",), **bad})


def test_the_four_stages_are_the_entrants():
    noisy, curated, agreed, certain = warm_up()
    assert [s.start_from for s in (noisy, curated, agreed, certain)] == [None, "noisy", "curated", "agreed"]
    assert (noisy.train_on, curated.train_on) == (("noisy",), ("curated",))
    rule = agreed.train_on[1]
    assert agreed.train_on[0] == "curated" and (rule.scores, rule.at_least, rule.at_most) == (
        ("noisy", "curated"),
        0.5,
        5,
    )
    assert certain.train_on[1] == AgreementRule(scores=("agreed",), at_least=1.0)


@pytest.fixture(scope="module")
def soft_run(tmp_path_factory):
    "A run whose picked clips have soft targets and are drawn half of the time."
    where = tmp_path_factory.mktemp("soft")
    data = make_competition(where / "data", seed=3, n_curated=32, n_noisy=32, n_test=4)
    changes = [
        *SETS,
        "stages.certain.train_on.1.soft=0.25",
        "stages.certain.train_on.1.probability=0.5",
        "stages.certain.train_on.1.at_least=0.1",
        "stages.certain.ema=0.5",
        "stages.agreed.best_epoch=true",
        "stages.noisy.steps=5",
    ]
    run = run_stages(
        open_run(where / "run", get_recipe("freesound2019", scale="small", changes=changes), load_competition(data))
    )
    return run, data


def test_soft_targets_come_from_the_folds_own_models(soft_run):
    "A teacher that had seen fold 0 would tell its student the answers that the student is scored by."
    run, _ = soft_run
    stage = run.recipe.stages[3]
    for fold in (0, 1):
        train = run.training_clips(stage, fold)
        y, hard, own = (
            run.training_targets(stage, train, fold).labels,
            targets(train, run.classes),
            run.predict("agreed", fold, train.clip_id, dtype=run.teaching_dtype()).to_numpy(),
        )
        picked = (train.source == "noisy").to_numpy()
        assert picked.any() and (train.fold != fold).all()
        assert np.allclose(y[picked], 0.75 * hard[picked] + 0.25 * own[picked], atol=1e-6)
        assert not np.allclose(own, run.oof("agreed").loc[train.clip_id].to_numpy(), atol=1e-3)
        assert np.array_equal(y[~picked], hard[~picked])
        assert set(train.probability[picked]) == {0.5} and set(train.probability[~picked]) == {1.0}
    mine = run.clips.clip_id[run.clips.fold == 0]
    assert np.allclose(run.predict("agreed", 0, mine), run.oof("agreed").loc[mine], atol=1e-6)


def test_teachers_are_ancestors(soft_run):
    "What a teacher was trained on counts, though no weight came from it."
    recipe = soft_run[0].recipe
    alone = recipe.replace(stages=(*recipe.stages[:3], recipe.stages[3].replace(start_from=None)))
    assert [s.name for s in ancestry(alone, "certain")] == ["certain", "agreed", "curated", "noisy"]
    hard = AgreementRule(scores=("agreed",), at_least=1.0)
    assert [
        s.name
        for s in ancestry(
            alone.replace(stages=(*alone.stages[:3], alone.stages[3].replace(train_on=("curated", hard)))), "certain"
        )
    ] == ["certain"]


def test_features_computed_from_stored_waves(tmp_path):
    "The store keeps waves; they are changed, heard and seen in several views, and the same seed gives the same bytes."
    data = load_competition(make_competition(tmp_path / "data", seed=3, n_curated=24, n_noisy=8, n_test=2))
    stage = Stage(name="curated", train_on=("curated",), epochs=2, lr=3e-3, batch_size=8)
    base = get_recipe(
        "freesound2019", scale="small", changes=["model.width=4", "n_folds=2", "windows.frames=64", "windows.hop=64"]
    )
    recipe = base.replace(
        stages=(stage,),
        members=("curated",),
        features="computed",
        augment=(Gain(), Noise(p=0.5), MixUp()),
        windows=base.windows.replace(views=(View(), View(gain_db=6.0), View(shift=0.25))),
    )
    with pytest.raises(AudiotagError, match="computed"):
        recipe.replace(features="stored")
    runs = [run_stages(open_run(tmp_path / name, recipe, data)) for name in "ab"]
    assert isinstance(runs[0].store.front_end, Waveform)
    weights, scores = [
        [(r.fold_path("curated", k) / f).read_bytes() for r in runs for k in (0, 1)]
        for f in ("weights.safetensors", "oof.parquet")
    ]
    assert weights[:2] == weights[2:] and scores[:2] == scores[2:]
    one = runs[0].clips[(runs[0].clips.source == "curated") & (runs[0].clips.fold == 0)].iloc[0]
    wave = recipe.front_end.read(one.path)
    seen = dict(
        score_clips(
            [runs[0].model("curated", 0)],
            [("one", recipe.windows.view_features(recipe.front_end, wave))],
            recipe.windows,
            activation=recipe.activation,
        )
    )["one"][0]
    assert np.allclose(seen, runs[0].oof("curated").loc[one.clip_id], atol=2e-3)  # the store keeps 16 bits
    plain = score_clips(
        [runs[0].model("curated", 0)],
        [("one", recipe.front_end(wave))],
        recipe.windows.replace(views=(View(),)),
        activation=recipe.activation,
    )
    assert not np.allclose(seen, dict(plain)["one"][0], atol=1e-4)


def test_steps_take_the_place_of_epochs(soft_run):
    run, _ = soft_run
    for k in range(run.recipe.n_folds):
        clips = len(read_json(run.fold_path("noisy", k) / "trained_on.json"))
        assert len(read_json(run.fold_path("noisy", k) / "history.json")) == max(1, round(5 / max(1, clips // 16)))


def test_the_ledger_adds_up(soft_run):
    run, data = soft_run
    ledger = run.ledger("agreed")
    assert set(ledger.clip_id) == set(run.clips.clip_id[run.clips.source == "noisy"])
    assert ledger_counts(run).agreed.sum() == sum(len(o) for o in ledger.labels[ledger.picked])
    overlap = ledger_overlap(run)
    assert (
        overlap.loc["agreed", "agreed"] == ledger.picked.sum()
        and overlap.loc["agreed", "certain"] == overlap.loc["certain", "agreed"]
    )
    truth = read_truth(data, "noisy")
    quality = selection_quality(run, truth)
    right = [set(o) <= set(truth[c]) for c, o in zip(ledger.clip_id, ledger.labels)]
    assert quality.loc["agreed", "precision"] == pytest.approx(np.mean(np.array(right)[ledger.picked.to_numpy()]))
    assert quality.loc["all", "recall"] == 1


def test_what_a_rule_picked_is_trained_on_and_nothing_else(soft_run):
    run, _ = soft_run
    ledger = run.ledger("certain")
    for k in range(run.recipe.n_folds):
        trained = set(read_json(Run(run.folder).fold_path("certain", k) / "trained_on.json"))
        noisy = {c for c in trained if c in set(ledger.clip_id)}
        assert noisy == set(ledger.clip_id[ledger.picked & (ledger.fold != k)])


def test_copies_share_a_fold_and_a_begun_run_keeps_its_folds(tmp_path, capfd):
    "The second time the run is one of an older version: no `group_by` in its recipe, and folds that divide the copies."
    data = make_competition(tmp_path / "data", seed=3, n_curated=12, n_noisy=8, n_test=1, sample_rate=16000)
    first, *_, last = sorted((data / "train_curated").iterdir())
    last.write_bytes(first.read_bytes() + b"\0\0")  # other bytes, the same sound
    changes = [o for o in SETS if o != "group_by=[]"]
    recipe, competition = get_recipe("freesound2019", scale="small", changes=changes), load_competition(data)
    run = open_run(tmp_path / "run", recipe, competition)
    fold = run.clips.set_index("clip_id").fold
    assert fold[first.name] == fold[last.name] and "near-duplicates" in capfd.readouterr().err
    assert (
        read_json(run.folder / "folds.json")["near_duplicates"]
        == len(read_parquet(run.folder / "duplicates.parquet"))
        == 1
    )
    old = run.rows.assign(group=run.rows.clip_id, fold=np.arange(len(run.rows)) % 2)
    about = read_json(run.folder / "recipe.json")
    about["recipe"].pop("group_by")
    write_parquet(run.folder / "clips.parquet", old)
    write_json(run.folder / "recipe.json", {**about, "data": _data_fingerprint(old, run.store)})
    again = open_run(tmp_path / "run", recipe, competition)
    assert list(again.rows.fold) == list(old.fold) and list(again.rows.group) == list(old.clip_id)
    assert "near-duplicates" not in capfd.readouterr().err, "they are not searched again"


def test_gains_in_decibels_are_refused_where_a_unit_is_not_a_decibel(tmp_path):
    "Six standard deviations are no gain of 6 dB. A run that was begun with them still opens."
    root = make_competition(tmp_path / "data", n_curated=12, n_noisy=0, n_test=1)
    comp = load_competition(root, "freesound2019")
    changes = ["n_folds=2", "stages.*.epochs=1"]
    recipe = get_recipe("freesound2019", scale="small", changes=changes)
    recipe = recipe.replace(
        stages=(recipe.stages[0].replace(train_on=("curated",)),), members=("noisy",), augment=(FilterAugment(),)
    )
    with pytest.raises(AudiotagError, match="Standardize scales .*unit_db=15"):
        open_run(tmp_path / "run", recipe, comp)
    stated = recipe.replace(augment=(FilterAugment(unit_db=15.0),))
    folder = open_run(tmp_path / "run", stated, comp).folder
    stored = read_json(folder / "recipe.json")
    write_json(folder / "recipe.json", {**stored, "recipe": recipe.to_dict()})
    assert open_run(folder, recipe, comp).recipe.augment == (FilterAugment(),)
    for i, scaling in enumerate((None, FixedStats(mean=-40.0, std=1.0))):
        open_run(tmp_path / f"decibels-{i}", recipe.replace(front_end=recipe.front_end.replace(scaling=scaling)), comp)


def test_a_training_set_that_is_all_silent_is_an_error_at_the_start(tmp_path):
    import soundfile

    comp = load_competition(make_competition(tmp_path / "data", seed=3, n_curated=16, n_noisy=8, n_test=2))
    paths = list(comp.of("curated", "noisy").path)
    for path in paths:
        soundfile.write(path, np.zeros(22050), 44100)
    recipe = get_recipe("freesound2019", scale="small", changes=SETS)
    with pytest.raises(AudiotagError, match="24 training recordings, all silent"):
        open_run(tmp_path / "run", recipe, comp)
    soundfile.write(paths[-1], np.sin(np.arange(22050)), 44100)  # one that is not will do
    assert len(open_run(tmp_path / "other", recipe, comp).clips) == 24
