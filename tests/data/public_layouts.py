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


def audioset_strong(m):
    for part in ("train", "eval"):
        rows = []
        for i in range(6):
            segment = f"b{i}RF{part[0]}hbpFJA_{30000 + i}"
            m.audio(f"{part}/{segment}.wav", seconds=1)
            rows += [(segment, 0.1, 0.9, "/m/09x0r"), (segment, 0.627, 1.0, ["/m/05zppz", "/m/068hy"][i % 2])]
        m.table(f"audioset_{part}_strong.tsv", "segment_id start_time_seconds end_time_seconds label", rows, sep="\t")


def audioset_with_missing_files(m):
    audioset(m)
    m.text(
        "balanced_train_segments.csv",
        (m.root / "balanced_train_segments.csv").read_text() + '-99goneQ, 0.000, 10.000, "/m/09x0r"\n',
    )


def dcase2019_task4(m):
    names, weak, strong, valid = ["Speech", "Dog", "Cat"], [], [], []
    for i in range(6):
        weak.append((f"Y{i}w_10.000_20.000.wav", ",".join(names[: i % 3 + 1])))
        strong += [(f"{i}.wav", 0.1, 0.5, names[i % 3]), (f"{i}.wav", 0.4, 0.9, "Dog")]
        valid.append((f"Y{i}v_10.000_20.000.wav", 0.1, 0.5, names[i % 3]))
        for folder, rows in (("train/weak", weak), ("train/synthetic", strong), ("validation", valid)):
            m.audio(f"audio/{folder}/{rows[-1][0]}", seconds=1)
    m.table("metadata/train/weak.tsv", "filename event_labels", weak, sep="\t")
    m.table("metadata/train/synthetic.tsv", "filename onset offset event_label", strong, sep="\t")
    m.table("metadata/validation/validation.tsv", "filename onset offset event_label", valid, sep="\t")


def xeno_canto(m):
    birds, rows = [("merula", "Common Blackbird"), ("major", "Great Tit"), ("rubecula", "European Robin")], []
    for i in range(12):
        m.audio(f"audio/XC{500123 + i}.wav")
        kind = ["song", "call", "call, song"][i % 3]
        rows.append(
            (500123 + i, "Turdus", *birds[i % 3], f"Rec {i // 2}", "Germany", kind, f"XC{500123 + i} - x.mp3", "A")
        )
    m.table("metadata.csv", "id gen sp en rec cnt type file-name q", rows)


def openmic(m):
    names, rows, keys = ["accordion", "banjo", "bass"], [], [f"{i // 3:03d}{i:03d}_{i * 3840}" for i in range(12)]
    for i, key in enumerate(keys):
        m.audio(f"audio/{key[:3]}/{key}.wav")
        rows.append((key, names[i % 3], 0.9, 3))
        rows += [(key, names[(i + 1) % 3], 0.1, 3)] if i % 2 else []
    m.table("openmic-2018-aggregated-labels.csv", "sample_key instrument relevance num_responses", rows)
    m.table("partitions/split01_train.csv", "key", [(k,) for k in keys[:8]], header=False)
    m.table("partitions/split01_test.csv", "key", [(k,) for k in keys[8:]], header=False)


def vocalsound(m):
    mids, parts = ["/m/01j3sz", "/m/07plz5l", "/m/01b_21"], dict(tr=range(9), val=range(9, 12), te=range(12, 15))
    for part, numbers in parts.items():
        data = []
        for i in numbers:
            m.audio(f"audio_16k/f{i:04d}_0_{['laughter', 'sigh', 'cough'][i % 3]}.wav")
            name = f"/data/sls/vs_processed/data_16k/f{i:04d}_0_{['laughter', 'sigh', 'cough'][i % 3]}.wav"
            data.append({"wav": name, "labels": mids[i % 3]})
        m.text(f"datafiles/{part}.json", json.dumps({"data": data}))


def tut2017(m):
    rows = []
    for i in range(24):
        scene, place = ["beach", "park", "tram"][i % 3], f"{'bpt'[i % 3]}{i // 6:03d}"
        m.audio(f"audio/{place}_{i}0_{i + 1}0.wav")
        rows.append((f"audio/{place}_{i}0_{i + 1}0.wav", scene, place))
    m.table("meta.txt", "file scene place", rows, sep="\t", header=False)
    for fold in (1, 2):
        inside = [r for i, r in enumerate(rows) if i // 6 % 2 == fold - 1]
        outside = [r[:2] for r in rows if r not in inside]
        m.table(f"evaluation_setup/fold{fold}_train.txt", "file scene", outside, sep="\t", header=False)
        m.table(f"evaluation_setup/fold{fold}_test.txt", "file", [r[:1] for r in inside], sep="\t", header=False)
        m.table(f"evaluation_setup/fold{fold}_evaluate.txt", "file s", [r[:2] for r in inside], sep="\t", header=False)


def tut_sound_events(m):
    rows, names = [], ["people walking", "car", "children"]
    for i in range(9):
        m.audio(f"audio/street/a{i:03d}.wav", seconds=2)
        rows.append((f"audio/street/a{i:03d}.wav", "street", 0.1, 0.9, names[i % 3]))
        rows.append((f"audio/street/a{i:03d}.wav", "street", 0.95, 1.9, names[(i + 1) % 3]))
        m.text(f"meta/street/a{i:03d}.ann", "0.1\t0.9\tcar\n")
    m.table("meta.txt", "a b c d e", rows, sep="\t", header=False)


def vggsound(m):
    lines, names = [], ["people marching", "playing trumpet", '"footsteps on snow, ice"']
    for i in range(15):
        m.audio(f"video/---g{i:02d}f_I2y_{i:06d}.wav")
        lines.append(f"---g{i:02d}f_I2y,{i},{names[i % 3]},{'test' if i > 11 else 'train'}")
    m.text("vggsound.csv", "\n".join(lines) + "\n")


def audio_folder(m):
    for part in ("train", "test"):
        m.audio(*(f"data/{part}/{i}.wav" for i in range(8)))
        m.table(f"data/{part}/metadata.csv", "file_name label", [(f"{i}.wav", CLASSES[i % 2]) for i in range(8)])


def anuraset(m):
    rows = []
    for i in range(16):
        name, site = f"INCT{i % 2}_20190901_{i:02d}0000_{i}_{i + 3}", f"INCT{i % 2}"
        m.audio(f"audio/{site}/{name}.wav")
        rows.append((name, site, i, i + 3, i % 2, (i + 1) % 2, int(i % 3 == 0), "train" if i < 12 else "test"))
    m.table("metadata.csv", "sample_name site min_t max_t PHYNAT BOABIS SCIPER subset", rows)


def irmas(m):
    for i in range(12):
        c = ["cel", "cla", "flu"][i % 3]
        m.audio(f"IRMAS-TrainingData/{c}/[{c}][nod]{i:04d}__{i % 3 + 1}.wav")
        m.audio(*([f"IRMAS-TestingData-Part1/Part1/({i:02d}) whale-{i}.wav"] if i < 3 else []))


def nonspeech7k(m):
    for part in ("train", "test"):
        rows = []
        for i in range(12):
            m.audio(f"{part}/S_{i}_{part}_1.wav")
            rows.append((f"S_{i}_{part}_1.wav", f"id{i // 2}", ["crying", "laugh", "cough"][i % 3], i % 3))
        m.table(f"metadata of {part} set.csv", "Filename Source_ID Classname Class_ID", rows)


def icbhi(m):
    for i in range(20):
        name = f"{101 + i // 2}_{i % 3 + 1}b1_{['Al', 'Pr'][i % 2]}_sc_Meditron"
        m.audio(f"Respiratory_Sound_Database/audio_and_txt_files/{name}.wav")
        m.text(f"Respiratory_Sound_Database/audio_and_txt_files/{name}.txt", "0.036\t0.579\t0\t0\n0.579\t2.45\t1\t0\n")
    diagnoses = [(101 + i, ["URTI", "Healthy", "COPD"][i % 3]) for i in range(10)]
    m.table("Respiratory_Sound_Database/patient_diagnosis.csv", "patient diagnosis", diagnoses, header=False)


def mtg_jamendo(m):
    tags, lines = ["genre---rock", "genre---pop", "mood/theme---dark"], ["TRACK_ID\tARTIST_ID\tPATH\tDURATION\tTAGS"]
    for i in range(9):
        m.audio(f"{i:02d}/{200 + i}.wav")
        lines.append("\t".join([f"track_{i:07d}", "artist_1", f"{i:02d}/{200 + i}.wav", "124.6", *tags[: i % 3 + 1]]))
    m.text("data/autotagging.tsv", "\n".join(lines) + "\n")


def medleydb(m):
    for i in range(8):
        song = f"Artist{i // 2}_Song{i}"
        m.audio(f"Audio/{song}/{song}_MIX.wav", *(f"Audio/{song}/{song}_STEMS/{song}_STEM_{k:02d}.wav" for k in (1, 2)))


def tess(m):
    m.audio(
        *(
            f"{s}_{e}/{s}_{w}_{e}.wav"
            for s in ("OAF", "YAF")
            for e in ("angry", "fear", "happy")
            for w in ("bar", "base", "back")
        )
    )
