"Small folders in the layout of public sets: the names of files and columns are theirs, the sounds are noise."

import json

import numpy as np
import pandas as pd
import soundfile as sf

CLASSES = ["dog", "rain", "chainsaw"]


class Maker:
    "Writes files below a folder."

    def __init__(self, root):
        self.root, self.g = root, np.random.default_rng(0)
        root.mkdir(parents=True, exist_ok=True)

    def audio(self, *paths, seconds=0.1, rate=8000):
        for path in paths:
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            sf.write(self.root / path, self.g.uniform(-0.1, 0.1, int(seconds * rate)), rate)

    def text(self, path, text):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def table(self, path, columns, rows, sep=",", header=True):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=columns.split()).to_csv(self.root / path, index=False, sep=sep, header=header)


def esc50(m):
    rows = []
    for i in range(15):
        name = f"{i % 5 + 1}-{1000 + i // 2}-{'AB'[i % 2]}-{i % 3}.wav"
        m.audio(f"audio/{name}")
        rows.append((name, i % 5 + 1, i % 3, CLASSES[i % 3], i % 3 == 0, 1000 + i, "AB"[i % 2]))
    m.table("meta/esc50.csv", "filename fold target category esc10 src_file take", rows)
    m.text("README.md", "ESC-50")


def urbansound8k(m):
    rows = []
    for i in range(20):
        name, fold = f"{100 + i // 2}-{i % 3}-0-{i}.wav", i // 2 % 10 + 1
        m.audio(f"audio/fold{fold}/{name}")
        rows.append((name, 100 + i // 2, 3.5 * i, 3.5 * i + 4, 1, fold, i % 3, CLASSES[i % 3]))
    m.table("metadata/UrbanSound8K.csv", "slice_file_name fsID start end salience fold classID class", rows)


def fsd50k(m):
    names, rows = ["Bark", "Rain", "Chainsaw_and_saw"], {"dev": [], "eval": []}
    for part in rows:
        for i in range(12):
            clip = 64760 + i + 100 * (part == "eval")
            m.audio(f"FSD50K.{part}_audio/{clip}.wav")
            labels = ",".join(names[: i % 3 + 1]) if i % 2 else names[i % 3]
            rows[part].append((clip, labels, "/m/1,/m/2", "train" if i % 4 else "val"))
    m.table("FSD50K.ground_truth/dev.csv", "fname labels mids split", rows["dev"])
    m.table("FSD50K.ground_truth/eval.csv", "fname labels mids", [r[:3] for r in rows["eval"]])
    m.table(
        "FSD50K.ground_truth/vocabulary.csv", "i n m", [(i, n, f"/m/{i}") for i, n in enumerate(names)], header=False
    )
    m.table(
        "FSD50K.metadata/collection/collection_dev.csv",
        "fname labels mids",
        [(r[0], names[0], "/m/1") for r in rows["dev"]],
    )


def _birds(m, year):
    birds = ["afrsil1", "akepa1", "21038"]
    folder = "train_short_audio" if year == 2021 else "train_audio"
    rows = []
    for i in range(12):
        bird, name = birds[i % 3], f"XC{1000 + i}.ogg"
        m.audio(f"{folder}/{bird}/{name}", rate=16000)
        rows.append((bird, "[]", "['call']", 1.5, "John", name if year == 2021 else f"{bird}/{name}", 4.0))
    table = "train_metadata.csv" if year < 2024 else "train.csv"
    m.table(table, "primary_label secondary_labels type latitude author filename rating", rows)
    (m.root / "test_soundscapes").mkdir()
    return birds


def birdclef2021(m):
    _birds(m, 2021)
    m.table(
        "test.csv", "row_id site audio_id seconds", [("2782_SSW_5", "SSW", 2782, 5), ("2782_SSW_10", "SSW", 2782, 10)]
    )
    m.table("sample_submission.csv", "row_id birds", [("2782_SSW_5", "nocall"), ("2782_SSW_10", "nocall")])
    m.text("test_soundscapes/test_soundscapes_README.txt", "hidden")
    m.audio("train_soundscapes/2782_SSW_20170701.ogg", rate=16000, seconds=10)


def birdclef2022(m):
    birds = _birds(m, 2022)
    m.text("scored_birds.json", json.dumps(birds))
    m.table("test.csv", "row_id file_id bird end_time", [("soundscape_1_afrsil1_5", "soundscape_1", "afrsil1", 5)])
    m.table("sample_submission.csv", "row_id target", [(f"soundscape_1_{b}_5", True) for b in birds])
    m.audio("test_soundscapes/soundscape_1.ogg", rate=16000, seconds=10)


def birdclef2023(m):
    birds = _birds(m, 2023)
    m.audio("test_soundscapes/soundscape_29201.ogg", rate=16000, seconds=10)
    m.table(
        "sample_submission.csv",
        " ".join(["row_id", *birds]),
        [("soundscape_29201_5", 0, 0, 0), ("soundscape_29201_10", 0, 0, 0)],
    )


def birdclef2024(m):
    birds = _birds(m, 2024)
    m.audio("unlabeled_soundscapes/100.ogg", rate=16000, seconds=10)
    m.text("test_soundscapes/readme.txt", "hidden")
    m.table("sample_submission.csv", " ".join(["row_id", *birds]), [("soundscape_7_5", 0, 0, 0)])


def birdclef2025(m):
    birds = _birds(m, 2025)
    m.audio("train_soundscapes/H02_20230420_074000.ogg", rate=16000, seconds=10)
    m.table("taxonomy.csv", "primary_label inat_taxon_id class_name", [(b, 1, "Aves") for b in birds])
    m.table("sample_submission.csv", " ".join(["row_id", *birds]), [("soundscape_8358733_5", 0, 0, 0)])


def birdclef2026(m):
    birdclef2025(m)
    m.table(
        "train_soundscapes_labels.csv",
        "filename start end primary_label",
        [("H02_20230420_074000.ogg", "0", "5", "akepa1")],
    )


def fsdkaggle2018(m):
    rows, test = [], []
    for i in range(12):
        m.audio(f"audio_train/{i:08x}.wav", f"audio_test/{i + 100:08x}.wav")
        rows.append((f"{i:08x}.wav", ["Hi-hat", "Acoustic guitar", "Bass drum"][i % 3], int(i > 5)))
        test.append((f"{i + 100:08x}.wav", "Laughter Hi-hat Flute"))
    m.table("train.csv", "fname label manually_verified", rows)
    m.table("sample_submission.csv", "fname label", test)


def fsdkaggle2019(m):
    for part, key in (("train_curated", 0), ("train_noisy", 100), ("test", 200)):
        rows = []
        for i in range(12):
            name = f"{i + key:08x}.wav"
            m.audio(f"FSDKaggle2019.audio_{part}/{name}")
            rows.append((name, "Bark,Meow" if i % 4 == 0 else ["Bark", "Meow", "Purr"][i % 3], i, "CC0"))
        m.table(f"FSDKaggle2019.meta/{part}_post_competition.csv", "fname labels freesound_id license", rows)


def speech_commands(m):
    files = []
    for i in range(24):
        files.append(f"{['yes', 'no', 'stop'][i % 3]}/{i // 4:08x}_nohash_{i % 2}.wav")
    m.audio(*files, "_background_noise_/white_noise.wav", rate=16000)
    m.text("testing_list.txt", "\n".join(files[:4]) + "\n")
    m.text("validation_list.txt", "\n".join(files[4:6]) + "\n")
    m.text("README.md", "speech commands")


def label_studio_csv(m):
    rows = []
    for i in range(9):
        m.audio(f"clips/yard {i}.wav", seconds=4)
        cell = json.dumps([{"start": 0.5, "end": 1.5, "channel": 0, "labels": [CLASSES[i % 3]]}])
        rows.append(
            (
                f"/data/upload/1/{i + 0xABCDEF00:08x}-yard_{i}.wav"
                if False
                else f"/data/upload/1/{i + 0xABCDEF00:08x}-yard {i}.wav",
                i,
                cell,
                1,
            )
        )
    m.table("project-1-at-2024-05-01-10-00-aaaaaaaa.csv", "audio id label annotator", rows)


def label_studio_json(m):
    tasks = []
    for i in range(9):
        m.audio(f"clips/yard_{i}.wav", seconds=4)
        choice = {"value": {"choices": [CLASSES[i % 3]]}, "type": "choices", "from_name": "c"}
        tasks.append(
            {
                "id": i,
                "data": {"audio": f"/data/upload/1/{i + 0xABCDEF00:08x}-yard_{i}.wav"},
                "annotations": [{"result": [choice]}],
            }
        )
    m.text("project-1.json", json.dumps(tasks))


# --- others -----------------------------------------------------------------------------------------------------------


def gtzan(m):
    rows = []
    for i in range(12):
        genre = ["blues", "rock", "jazz"][i % 3]
        m.audio(f"genres_original/{genre}/{genre}.{i:05d}.wav")
        rows.append((f"{genre}.{i:05d}.wav", 661794, 0.35 + i / 100, 0.08 * i, genre))
    m.table("features_30_sec.csv", "filename length chroma_stft_mean rms_mean label", rows)


def desed(m):
    rows = []
    for i in range(8):
        m.audio(f"audio/train/synthetic/{i}.wav", seconds=3)
        rows += [(f"{i}.wav", 0.2, 0.9, "Dog"), (f"{i}.wav", 1.0, 2.5, ["Speech", "Cat"][i % 2])]
    m.table("metadata/train/synthetic.tsv", "filename onset offset event_label", rows, sep="\t")


def tau_scenes(m):
    rows = []
    for i in range(12):
        scene = ["airport", "bus", "park"][i % 3]
        m.audio(f"audio/{scene}-lyon-{i}-{i}-a.wav")
        rows.append((f"audio/{scene}-lyon-{i}-{i}-a.wav", scene, f"lyon-{i // 2}", "a"))
    m.table("meta.csv", "filename scene_label identifier source_label", rows, sep="\t")
    m.table("evaluation_setup/fold1_train.csv", "filename scene_label", [r[:2] for r in rows[:9]], sep="\t")
    m.table("evaluation_setup/fold1_test.csv", "filename", [r[:1] for r in rows[9:]], sep="\t")


def audioset(m):
    lines = [
        "# Segments csv created Sun Mar  5 10:54:31 2017",
        "# num_ytids=12",
        "# YTID, start_seconds, end_seconds, positive_labels",
    ]
    for i in range(12):
        ytid = f"-{i:02d}tTm38dUQ"
        m.audio(f"balanced_train/Y{ytid}.wav")
        lines.append(f'{ytid}, {i}.000, {i + 10}.000, "/m/09x0r{",/m/05zppz" if i % 2 else ""}"')
    m.text("balanced_train_segments.csv", "\n".join(lines) + "\n")


def nsynth(m):
    notes = {}
    for i in range(12):
        name = f"{['bass', 'flute', 'organ'][i % 3]}_synthetic_{i:03d}-{i + 40:03d}-100"
        m.audio(f"audio/{name}.wav")
        notes[name] = {
            "note": i,
            "instrument_family_str": ["bass", "flute", "organ"][i % 3],
            "pitch": i + 40,
            "sample_rate": 16000,
        }
    m.text("examples.json", json.dumps(notes))


def magnatagatune(m):
    rows = []
    for i in range(12):
        m.audio(f"mp3/f/song-{i}.wav")
        rows.append((i, *[int((i + k) % 3 == 0) for k in range(4)], f"f/song-{i}.wav"))
    m.table("annotations_final.csv", "clip_id guitar vocal slow loud mp3_path", rows, sep="\t")


def birdcall2020(m):
    rows = []
    for i in range(12):
        bird = ["aldfly", "ameavo", "amebit"][i % 3]
        m.audio(f"train_audio/{bird}/XC{2000 + i}.wav")
        rows.append((4.0, "no", f"rec {i}", bird, f"XC{2000 + i}.wav", "2013-05-25", "Sam", "license"))
    m.table("train.csv", "rating playback_used title ebird_code filename date recordist license", rows)
    m.table("test.csv", "site row_id seconds audio_id", [("site_1", "site_1_0a997dff_5", 5, "0a997dff")])
    m.table("sample_submission.csv", "row_id birds", [("site_1_0a997dff_5", "a")])


def warblr(m):
    m.audio(*(f"wav/{1000 + i}.wav" for i in range(12)))
    m.table("ff1010bird_metadata.csv", "itemid datasetid hasbird", [(1000 + i, "ff1010bird", i % 2) for i in range(12)])


def sonyc(m):
    rows = []
    for i in range(12):
        m.audio(f"audio/{i % 4:02d}_{i:06d}.wav")
        for annotator in (1, 2):
            rows.append(
                (
                    ("train", "validate", "test")[i // 4],
                    i % 4,
                    f"{i % 4:02d}_{i:06d}.wav",
                    annotator,
                    i % 2,
                    (i + 1) % 2,
                    1,
                )
            )
    m.table(
        "annotations.csv",
        "split sensor_id audio_filename annotator_id 1_engine_presence 2_impact_presence 3_voice_presence",
        rows,
    )


def common_voice(m):
    for part, key in (("train", 0), ("test", 50)):
        m.audio(*(f"clips/common_voice_{i + key}.wav" for i in range(12)))
        rows = [(f"spk{i // 2}", f"common_voice_{i + key}.wav", ["yes", "no"][i % 2], 2) for i in range(12)]
        m.table(f"{part}.tsv", "client_id path sentence up_votes", rows, sep="\t")


def class_folders(m):
    m.audio(*(f"data/{c}/wav/{i}.wav" for c in CLASSES for i in range(4)))


def split_folders(m):
    for part in ("train", "val", "test"):
        m.audio(*(f"{part}/{c}/{part}{i}.wav" for c in CLASSES for i in range(4)))


def own_competition(m):
    m.audio(*(f"sounds/{i:03d}.flac" for i in range(12)), *(f"hidden/{i:03d}.flac" for i in range(4)))
    m.table("labels.csv", "file what who", [(f"{i:03d}.flac", CLASSES[i % 3], f"person{i % 4}") for i in range(12)])
    m.table("sample_submission.csv", " ".join(["file", *CLASSES]), [(f"{i:03d}.flac", 0, 0, 0) for i in range(4)])


def semicolons(m):
    m.audio(*(f"deep/er/rec{i}.mp3" for i in range(12)), rate=16000)
    rows = [(f"rec{i}", "dog bark;rain" if i % 3 == 0 else ["rain", "siren"][i % 2], 2, "x") for i in range(12)]
    m.table("Daten Übersicht.csv", "Aufnahme Geräusche Stufe Notiz", rows, sep=";")


def padded_ids(m):
    m.audio(*(f"fma_small/000/{i + 2:06d}.wav" for i in range(12)))
    m.table("tracks.csv", "track_id genre_top bit_rate", [(i + 2, ["Rock", "Folk"][i % 2], 256000) for i in range(12)])


def names_only(m):
    m.audio(
        *(f"AudioWAV/{1001 + i % 4}_DFA_{['ANG', 'SAD'][i % 2]}_{['XX', 'HI', 'LO'][i % 3]}.wav" for i in range(12))
    )


def label_columns(m):
    m.audio(*(f"x/{i}.wav" for i in range(12)))
    rows = [(f"{i}.wav", CLASSES[i % 3], CLASSES[(i + 1) % 3] if i % 2 else "") for i in range(12)]
    m.table("train.csv", "clip label1 label2", rows)


def train_and_test_share_names(m):
    m.audio(*(f"train/{i:03d}.wav" for i in range(12)), *(f"test/{i:03d}.wav" for i in range(6)))
    m.table("train.csv", "clip sound", [(f"{i:03d}.wav", CLASSES[i % 3]) for i in range(12)])
    m.table("SampleSubmission.csv", "clip sound", [(f"{i:03d}.wav", CLASSES[0]) for i in range(6)])
