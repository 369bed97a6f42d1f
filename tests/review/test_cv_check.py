"Near-duplicates, leaks, differences between training and test, and gains within the noise."

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf

from tests.tiny import SETS, called

from audiotag.audio import fingerprint
from audiotag.audio.io import resample
from audiotag.data.competitions import load_competition
from audiotag.core.files import read_json, write_json
from audiotag.audio.fingerprint import fingerprints, join_duplicates, near_duplicates
from audiotag.data.folds import assign_folds
from audiotag.train.recipes import get_recipe
from audiotag.review.train_test_shift import explain_shift, facts_table, separability
from audiotag.train.run_folder import Run, open_run, run_stages
from audiotag.audio.synth import SOUNDS, make_competition, sound
from audiotag.review.cv_check import compare, compare_runs, group_leaks, groups_from_names, check_cv

FORMATS = {
    "ogg": dict(format="OGG", subtype="VORBIS"),
    "mp3": dict(format="MP3", subtype="MPEG_LAYER_III"),
    "flac": dict(format="FLAC", subtype="PCM_16"),
    "opus": dict(format="OGG", subtype="OPUS"),
    "wav": dict(format="WAV", subtype="PCM_16"),
}


def degraded(path, kind, g):
    "A degraded copy: 50 to 90 % of the clip, -20 to +6 dB, another codec; as opus at 48 kHz and as wav at 22.05 kHz."
    wave, rate = sf.read(path, dtype="float32", always_2d=True)
    wave = wave.mean(1)
    n = max(int(g.uniform(0.5, 0.9) * len(wave)), min(len(wave), int(0.3 * rate)))
    start = g.integers(0, len(wave) - n + 1)
    wave = np.clip(wave[start : start + n] * 10 ** (g.uniform(-20, 6) / 20), -1, 1)
    to = {"opus": 48000, "wav": 22050}.get(kind, rate)
    wave = resample(wave, rate, to) if to != rate else wave
    file = io.BytesIO()
    lossy = {} if kind in ("flac", "wav") else dict(compression_level=g.uniform(0.3, 0.9))
    sf.write(file, wave, to, **FORMATS[kind], **lossy)
    return file.getvalue()


def plant(clips, folder, n, seed):
    "The clips and `n` copies of some of them; {copy: original}."
    g, plan = np.random.default_rng(seed), {}
    for i, row in enumerate(clips.iloc[g.permutation(len(clips))[:n]].itertuples()):
        kind = list(FORMATS)[i % len(FORMATS)]
        path = folder / f"copy{i:03d}.{'ogg' if kind == 'opus' else kind}"
        path.write_bytes(degraded(row.path, kind, g))
        plan[path.name] = row.clip_id
    copies = pd.DataFrame(
        {"clip_id": list(plan), "path": [str(folder / c) for c in plan], "start_s": np.nan, "end_s": np.nan}
    )
    return pd.concat([clips[["clip_id", "path", "start_s", "end_s"]], copies], ignore_index=True), plan


def evaluate(clips, plan):
    "(share of the copies that were found, pairs that are false, all pairs)"
    found = {tuple(sorted(o)) for o in near_duplicates(clips)[["a", "b"]].to_numpy()}
    share = np.mean([tuple(sorted((c, o))) in found for c, o in plan.items()])
    origin = lambda c: plan.get(c, c)
    known = {tuple(sorted((origin(a), origin(b)))) for a, b in found if a not in plan and b not in plan}
    wrong = [
        p
        for p in found
        if (p[0] in plan or p[1] in plan)
        and origin(p[0]) != origin(p[1])
        and tuple(sorted(map(origin, p))) not in known
    ]
    return share, wrong, found


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_planted_copies_of_synthesized_clips(tmp_path, seed):
    "Every clip is a take of its own, so every other pair is false."
    clips = load_competition(make_competition(tmp_path / "data", seed=seed, n_curated=60, n_noisy=60, n_test=0)).clips
    everything, plan = plant(clips, tmp_path, 60, seed)
    share, _, found = evaluate(everything, plan)
    false = [p for p in found if plan.get(p[0], p[0]) != plan.get(p[1], p[1])]
    assert share >= 0.95, f"{share:.1%} of the copies were found"
    assert len(false) <= 0.01 * len(found), false


@pytest.mark.long
def test_planted_copies_of_real_recordings(sample_set, tmp_path):
    "Some recordings of this set are there several times already; a copy may be paired with those that its original is paired with."
    clips = load_competition(sample_set("freesound")).of("curated")
    everything, plan = plant(clips, tmp_path, 60, 5)
    share, wrong, found = evaluate(everything, plan)
    assert share >= 0.95, f"{share:.1%} of the copies were found"
    assert len(wrong) <= 0.01 * len(found), wrong


def test_other_takes_of_one_sound_are_no_copies(tmp_path):
    rows = []
    for i in range(36):
        wave = sound(
            SOUNDS[i % 4], np.random.default_rng(i), seconds=1.5, sample_rate=16000
        ) + 0.002 * np.random.default_rng(1000 + i).standard_normal(24000)
        sf.write(tmp_path / f"{i}.wav", wave, 16000)
        rows.append(dict(clip_id=f"{i}.wav", path=str(tmp_path / f"{i}.wav"), start_s=np.nan, end_s=np.nan))
    assert not len(near_duplicates(pd.DataFrame(rows)))


def test_pairs_of_whole_files_are_verified_with_one_more_read_of_each(tmp_path, monkeypatch):
    "A clip without start and end has NaN there, which a cache would not find again."
    one = sound("Fire_crackle", np.random.default_rng(0), seconds=4.0, sample_rate=16000)
    rows, reads, n = [], [], 8
    for i in range(n):
        sf.write(tmp_path / f"{i}.wav", one[i * 2000 :] * 0.9**i, 16000)
        rows.append(dict(clip_id=f"{i}.wav", path=str(tmp_path / f"{i}.wav"), start_s=np.nan, end_s=np.nan))
    read = fingerprint._read_clip
    monkeypatch.setattr(fingerprint, "_read_clip", lambda path, *rest: (reads.append(path), read(path, *rest))[1])
    assert len(near_duplicates(pd.DataFrame(rows))) == n * (n - 1) // 2
    assert len(reads) == 2 * n
    assert fingerprint._wave_and_landmarks.cache_info().currsize == 0  # and the waves are let go


def test_the_same_hashes_are_kept_in_a_large_corpus(tmp_path):
    "One in eight hashes, chosen by the hash itself: copies still meet."
    clips = load_competition(make_competition(tmp_path / "data", seed=4, n_curated=30, n_noisy=0, n_test=0)).clips
    everything, plan = plant(clips, tmp_path, 15, 4)
    whole, eighth = fingerprints(everything), fingerprints(everything, keep=8)
    assert 0.08 < len(eighth.hashes) / len(whole.hashes) < 0.17 and set(eighth.hashes) <= set(whole.hashes)
    found = {
        tuple(sorted(o)) for o in near_duplicates(everything, table_size=len(whole.hashes) // 8)[["a", "b"]].to_numpy()
    }
    assert np.mean([tuple(sorted(p)) in found for p in plan.items()]) >= 0.8


def test_silence_and_broken_files_have_no_fingerprint_and_stop_nothing(sample_set):
    folder = sample_set("broken")
    paths = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix)
    clips = pd.DataFrame(
        {"clip_id": [p.name for p in paths], "path": [str(p) for p in paths], "start_s": np.nan, "end_s": np.nan}
    )
    prints = fingerprints(clips)
    assert {"empty.wav", "zeros.wav", "page.wav"} <= set(prints.unread)
    near_duplicates(clips)


def test_stretches_of_one_file_are_compared_as_stretches(tmp_path):
    wave = sound(
        "Fire_crackle", np.random.default_rng(0), seconds=6.0, sample_rate=16000
    ) + 0.01 * np.random.default_rng(1).standard_normal(96000)
    sf.write(tmp_path / "long.wav", wave, 16000)
    clips = pd.DataFrame(
        dict(clip_id=["a", "b", "c"], path=str(tmp_path / "long.wav"), start_s=[0.0, 1.0, 4.0], end_s=[2.0, 3.0, 6.0])
    )
    found = near_duplicates(clips)
    assert found[["a", "b"]].to_numpy().tolist() == [["a", "b"]] and abs(found.offset_s[0] - 1) < 0.01


# --- gains and noise ------------------------------------------------------------------------------


def system(truth, skill, g):
    return truth * skill + g.standard_normal(truth.shape)


def test_a_change_without_effect_is_within_the_noise_and_an_effect_is_seen():
    g, noise, seen = np.random.default_rng(0), 0, 0
    for _ in range(40):
        truth = np.eye(6)[g.integers(6, size=120)]
        common = dict(fold=np.arange(120) % 4, groups=np.arange(120) // 2, n=100)
        a = system(truth, 1.2, g)
        noise += compare(truth, a, system(truth, 1.2, g), **common)["verdict"] == "within the noise"
        seen += compare(truth, a, system(truth, 2.4, g), **common)["verdict"] == "a gain"
    assert noise >= 34 and seen >= 38, (noise, seen)


def test_clips_of_one_group_are_one_observation():
    "Every clip ten times: the interval must not shrink."
    g = np.random.default_rng(1)
    truth = np.eye(5)[g.integers(5, size=60)]
    a, b = system(truth, 1, g), system(truth, 1.6, g)
    once = compare(truth, a, b, fold=np.arange(60) % 3, groups=np.arange(60))
    tenfold = [np.repeat(o, 10, axis=0) for o in (truth, a, b)]
    grouped = compare(*tenfold, fold=np.repeat(np.arange(60) % 3, 10), groups=np.repeat(np.arange(60), 10))
    careless = compare(*tenfold, fold=np.repeat(np.arange(60) % 3, 10), groups=np.arange(600))
    width = lambda d: d["high"] - d["low"]
    assert abs(width(grouped) / width(once) - 1) < 0.15 and width(careless) < 0.5 * width(once)


# --- a run with planted faults --------------------------------------------------------------------


@pytest.fixture(scope="module")
def faulty(tmp_path_factory):
    "A run whose data hold: a curated clip again in the noisy part as mp3, and one in the test; another seed; authors in a csv."
    folder = tmp_path_factory.mktemp("trust")
    data = make_competition(folder / "data", seed=3, n_curated=40, n_noisy=40, n_test=30)
    curated, noisy, test = (sorted((data / p).iterdir()) for p in ("train_curated", "train_noisy", "test"))
    g = np.random.default_rng(0)
    for source, target in ((curated[0], noisy[0]), (curated[1], test[0])):
        decoded, rate = sf.read(io.BytesIO(degraded(source, "mp3", g)))
        sf.write(target, decoded, rate)
    competition = load_competition(data)
    first = run_stages(
        open_run(folder / "run", get_recipe("freesound2019", scale="small", changes=SETS), competition, scale="small")
    )
    run_stages(
        open_run(
            folder / "seed",
            get_recipe("freesound2019", scale="small", changes=[*SETS, "seed=5"]),
            competition,
            scale="small",
        )
    )
    return dict(
        folder=folder,
        data=data,
        run=first,
        test=competition.of("test"),
        pairs={(curated[0].name, noisy[0].name), (curated[1].name, test[0].name)},
    )


def test_planted_duplicates_are_found_and_named(faulty):
    found = check_cv(faulty["run"], faulty["test"], n=50)
    pairs = {tuple(sorted(o)): w for *o, w in found.duplicates[["a", "b", "where"]].to_numpy()}
    assert set(pairs) == {tuple(sorted(p)) for p in faulty["pairs"]}
    curated, test = next(p for p in faulty["pairs"] if p[1] in set(faulty["test"].clip_id))
    assert (
        pairs[tuple(sorted((curated, test)))] == "train and test"
        and "1 pair of near-duplicates in training and test" in found.advice[1]
    )
    assert len(found.advice) == 3 and all(o.endswith(".") for o in found.advice)
    joined = join_duplicates(faulty["run"].clips, found.duplicates)
    again = assign_folds(joined, n_folds=2, seed=0).set_index("clip_id").fold
    a, b = next(p for p in faulty["pairs"] if p[1] not in set(faulty["test"].clip_id))
    assert again[a] == again[b]


def test_leaks_of_all_kinds(faulty, tmp_path):
    import shutil

    shutil.copytree(faulty["folder"] / "run", tmp_path / "run")
    run = Run(tmp_path / "run")
    assert not len(group_leaks(run))
    about = pd.DataFrame(
        {
            "clip_id": run.clips.clip_id,
            "author": [f"a{i % 5}" for i in range(len(run.clips))],
            "fine": run.clips.fold.map(lambda k: f"site{k}").to_numpy(),
        }
    )
    assert list(group_leaks(run, about).kind) == ["author"]
    path = run.fold_path("agreed", 1) / "trained_on.json"
    write_json(path, read_json(path) + [run.clips.clip_id[run.clips.fold == 1].iloc[0]])
    leaks = group_leaks(run).set_index("kind").loc[["scored what it was trained on"]]
    assert set(leaks.clips) == {1} and leaks.example.iloc[0].startswith("stage agreed, fold 1: ")
    torn = run.clips.copy()
    torn.loc[torn.index[:2], "group"] = "same"
    torn.loc[torn.index[:2], "fold"] = [0, 1]
    run.clips = torn
    assert "group of the clip table" in set(group_leaks(run).kind)


@pytest.mark.parametrize(
    "names,groups",
    [
        (["anna_001.wav", "anna_2.wav", "bo-1.wav", "bo-7.wav"], ["anna", "anna", "bo", "bo"]),
        (
            ["0a7c_nohash_0.wav", "0a7c_nohash_1.wav", "ff_nohash_0.wav", "ff_nohash_3.wav"],
            ["0a7c", "0a7c", "ff", "ff"],
        ),
        (["0006ae4e.wav", "0019ef41.wav", "001ec0ad.wav"], None),
    ],
)
def test_names_that_carry_a_group(names, groups):
    found = groups_from_names(pd.DataFrame({"clip_id": names}))
    assert (None if found is None else list(found)) == groups


def test_another_seed_is_luck_and_not_a_gain(faulty):
    table = compare_runs(faulty["run"], [Run(faulty["folder"] / "seed")], n=50)
    assert list(table.only_seed) == [True] and list(table["differs in"]) == ["seed"]
    found = check_cv(faulty["run"], others=[Run(faulty["folder"] / "seed")], n=50)
    assert "another seed alone moved the score by" in found.advice[0] and "--test" in found.advice[2]


def test_the_command_prints_json_with_three_sentences_of_advice(faulty):
    done = called(
        "check-cv",
        faulty["folder"] / "run",
        "--test",
        faulty["data"],
        "--compare-with",
        faulty["folder"] / "seed",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (
        len(result["advice"]) == 3
        and len(result["duplicates"]) == 2
        and result == read_json(faulty["folder"] / "run" / "trust.json")
    )


# --- train against test ---------------------------------------------------------------------------


CHANGES = {
    "level (dBFS)": lambda w, r: w * 0.05,
    "bandwidth (kHz)": lambda w, r: np.fft.irfft(
        np.where(np.fft.rfftfreq(len(w), 1 / r) < 5000, np.fft.rfft(w), 0), len(w)
    ),
    "length (s)": lambda w, r: w[: len(w) // 3],
    "noise floor (dBFS)": lambda w, r: w + 0.01 * np.random.default_rng(len(w)).standard_normal(len(w)),
}


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    return load_competition(
        make_competition(
            tmp_path_factory.mktemp("alike") / "data", seed=9, n_curated=60, n_noisy=0, n_test=60, sample_rate=22050
        )
    ).clips


@pytest.mark.long
def test_similar_sets_cannot_be_told_apart(alike):
    auc, low, high = separability(facts_table(alike), (alike.source == "test").to_numpy())
    assert low < 0.6 and auc < 0.7  # the standard deviation of the AUC is about .05 with 60 and 60 clips


@pytest.mark.long
@pytest.mark.parametrize("fact", [*CHANGES, "codec"])
def test_what_was_changed_is_named(alike, tmp_path, fact):
    def changed(path):
        wave, rate = sf.read(path)
        out = tmp_path / Path(path).with_suffix(".ogg" if fact == "codec" else ".wav").name
        sf.write(out, CHANGES[fact](wave, rate) if fact in CHANGES else wave, rate)
        return str(out)

    test = (alike.source == "test").to_numpy()
    clips = alike.assign(path=[changed(p) if t else p for p, t in zip(alike.path, test)])
    facts = facts_table(clips)
    assert separability(facts, test)[0] > 0.9
    table = explain_shift(facts, test)
    assert len(table) == 5 and fact in set(table.fact[table.auc >= table.auc.max() - 0.15]), table
