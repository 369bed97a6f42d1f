"""How fast is the kernel? `python -m tests.bench.kernel [--save]`; the first run trains and exports for some minutes, later ones reuse that.

From a folder of files to submission.csv, the entrant's way (librosa clip by clip, then for each fold a pass of torch eager over all windows,
glibc's allocator as it is) beside ours (a bundle, `infer`), each in a process of its own that may use so many cores, one way after the other
in every round. A number is the median over rounds, a ratio the median of the rounds' ratios. Two systems: five folds of CNN-model-1, 64 wide,
80 classes, windows of 128×128; and five folds of efficientnet_b0 on one-minute soundscapes in windows of 5 s at 32 kHz. The CNN's windows
overlap, so it also runs as one pass over each clip (`export --share-overlap`). The networks are trained here, briefly: the bench is about time, but
int8 is judged by the metric, and that wants networks that have learned something.
"""

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

# two threads
WANTED = {("cnn", "fp32"): 2, ("cnn", "int8"): 7, ("cnn", "shared"): 7, ("effnet", "fp32"): 3.2, ("effnet", "int8"): 5}
AGREE, LOSS, OPENING = 1e-4, 0.002, 1.0  # of probabilities, of the metric, seconds
FILES, CORES, LIMIT = 700, 4, 90  # BirdCLEF: one-minute files, cores, minutes
STAGES = {
    "seconds": "files to submission.csv, s",
    "opening": "opening, replay, s",
    "decode": "decoding, s (over threads)",
    "features": "features, s (over threads)",
    "network": "networks, s",
    "write": "joining, writing, s",
    "importing": "imports before that, s",
}


# --- one way, in a process of its own -------------------------------------------------------------


def theirs(job):
    "The entrant's notebook: everything in memory, one thing after the other."
    import librosa
    import numpy as np
    import pandas as pd
    import torch
    from audiotag.infer.bundle import Bundle

    first = time.perf_counter()
    torch.set_num_threads(job["threads"])
    bundle, data = Bundle(job["bundle"]), Path(job["data"])
    # it imports when it is called
    librosa.feature.melspectrogram(
        y=librosa.effects.trim(librosa.load(next((data / job["test"]).iterdir()), sr=None)[0])[0], sr=44100
    )
    first = time.perf_counter() - first
    fe, w, took = bundle.front_end, bundle.windows, dict(opening=0.0, decode=0.0, features=0.0, network=0.0)

    def image(wave):
        x = librosa.power_to_db(
            librosa.feature.melspectrogram(
                y=wave,
                sr=fe.sample_rate,
                n_fft=fe.n_fft,
                hop_length=fe.hop_length,
                n_mels=fe.n_mels,
                fmin=fe.f_min,
                fmax=fe.f_max,
            ),
            top_db=fe.top_db,
        )
        return (x - x.mean()) / (x.std() + 1e-6)

    def seen(x):
        if x.shape[1] < w.frames:
            lack = w.frames - x.shape[1]
            x = np.pad(x, ((0, 0), (lack // 2, lack - lack // 2)), constant_values=x.min())
        starts = [*range(0, x.shape[1] - w.frames, w.hop), x.shape[1] - w.frames]
        return [x[:, s : s + w.frames] for s in starts]

    begin = time.perf_counter()
    template = pd.read_csv(data / "sample_submission.csv")
    windows, counts = [], []
    for path in sorted((data / job["test"]).iterdir()):
        start = time.perf_counter()
        wave, _ = librosa.load(path, sr=fe.sample_rate)
        if job["name"] == "cnn":
            wave, _ = librosa.effects.trim(wave, top_db=60)
            lack = max(0, 2 * fe.sample_rate - len(wave))
            pieces = [np.pad(wave, (lack // 2, lack - lack // 2))]
        else:
            pieces = np.split(wave[: 60 * fe.sample_rate], 12)
        took["decode"] += time.perf_counter() - start
        start = time.perf_counter()
        for piece in pieces:
            cut = seen(image(piece))
            windows += cut
            counts.append(len(cut))
        took["features"] += time.perf_counter() - start
    start = time.perf_counter()
    nets = bundle.models()
    took["opening"] = time.perf_counter() - start
    start, total = time.perf_counter(), 0
    x = torch.from_numpy(np.stack(windows)[:, None].astype(np.float32))
    for net in nets:
        with torch.no_grad():
            total = total + torch.cat([net(x[a : a + 32]).sigmoid() for a in range(0, len(x), 32)]).numpy()
    took["network"], start = time.perf_counter() - start, time.perf_counter()
    ends = np.cumsum(counts)
    scores = np.stack([(total[e - n : e] / len(bundle.members)).mean(0) for n, e in zip(counts, ends)])
    template.iloc[:, 1:] = template.iloc[:, 1:].astype(float)
    template[template.columns[1:]] = scores
    template.to_csv(job["out"], index=False)
    return dict(
        seconds=time.perf_counter() - begin, windows=len(x), write=time.perf_counter() - start, importing=first, **took
    )


def ours(job):
    from audiotag.infer.predict import infer
    from audiotag.infer.recordings import LoaderOptions

    begin = time.perf_counter()
    report = infer(
        job["bundle"],
        job["data"],
        job["out"],
        layout=job["layout"],
        precision=job["precision"],
        threads=job["threads"],
        loader_options=LoaderOptions(together=False),
    )
    seconds = time.perf_counter() - begin
    assert not report.prior and {r["precision"] for r in report.ran} == {job["precision"]}, str(report)
    return dict(seconds=seconds, windows=report.ran[0]["windows"], busy=report.busy, **report.stages)


def way(job):
    "Run a way in a process that may use `threads` cores, with glibc's allocator as it is."
    env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | {
        k: str(job["threads"]) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.kernel", "--job", json.dumps(job)],
        capture_output=True,
        text=True,
        env=env,
        cwd=Path(__file__).parents[2],
    )
    if done.returncode:
        raise SystemExit(f"{job['way']}: {done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def work(job):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job["threads"]])
    warnings.simplefilter("ignore")
    begin = time.perf_counter()
    import torch  # noqa: F401  both ways take its FFT or its networks
    import audiotag.infer.predict  # noqa: F401

    if job["way"] == "theirs":
        import librosa  # noqa: F401
    else:
        import openvino  # noqa: F401
    importing = time.perf_counter() - begin
    done = (theirs if job["way"] == "theirs" else ours)(job)
    print(json.dumps(done | dict(importing=importing + done.get("importing", 0))))


# --- what is run ----------------------------------------------------------------------------------


def lessons(fe, n, seconds, *, seed, rate):
    "Synthesized sounds in noise: (features, kind)."
    import numpy as np
    from audiotag.core.seeding import rng
    from audiotag.audio.synth import SOUNDS, sound

    for i in range(n):
        g, k = rng(seed, i), i % len(SOUNDS)
        wave = sound(SOUNDS[k], g, seconds=seconds, sample_rate=rate)
        noise = g.standard_normal(len(wave)) * np.sqrt(np.mean(wave**2)) * 10 ** (-g.uniform(6, 24) / 20)
        yield fe((wave + noise).astype("float32")), k


def train(net, x, y, steps, seed, lr):
    "Some steps of 12 crops of up to half a window in bf16."
    import torch

    torch.manual_seed(seed)
    net, size, said = net.to(memory_format=torch.channels_last).train(), min(96, x.shape[-1] // 2), []
    opt = torch.optim.AdamW(net.parameters(), lr, weight_decay=0.01)
    cycle = torch.optim.lr_scheduler.OneCycleLR(opt, lr, total_steps=steps + 1)
    for i in range(steps):
        at, start = torch.randint(0, len(x), (12,)), int(torch.randint(0, x.shape[-1] - size, ()))
        with torch.autocast("cpu", torch.bfloat16):
            p = net(x[at, ..., start : start + size].contiguous(memory_format=torch.channels_last))
        loss = torch.nn.functional.cross_entropy(p.float(), y[at])
        opt.zero_grad(), loss.backward(), opt.step(), cycle.step()
        said.append((p.argmax(1) == y[at]).float().mean().item())
        if i % 25 == 24:
            print(f"step {i + 1} of {steps}: {sum(said[-25:]) / 25:.2f} of the crops right", flush=True)
    return net.eval()


def evidence_in(clips, held, calibrate, n_classes):
    "The clips that are trained on by name, and what graphs are judged by: the last `held` clips."
    import numpy as np
    from audiotag.infer.openvino_graphs import Evidence

    features = {f"clip-{i}": x for i, (x, _) in enumerate(clips)}
    truth = {f"clip-{i}": np.eye(n_classes)[k] for i, (_, k) in enumerate(clips)}
    shown, judged = list(features)[:-held], list(features)[-held:]
    return shown, Evidence(features.__getitem__, [judged] * 5, [shown[:calibrate]] * 5, truth)


def export(folder, evidence, precision, **how):
    from audiotag.infer.bundle import Bundle
    from audiotag.infer.openvino_graphs import Gate, export_bundle

    print(
        export_bundle(Bundle(folder), evidence, precision=precision, gate=Gate(metric_loss=1.0), **how)
        .drop(columns="why")
        .round(4)
        .to_string(),
        flush=True,
    )


def make_bundle(folder, name, spec, front_end, windows, classes, clips, held, calibrate, steps):
    "Five folds, sealed and exported: one network is trained, and each fold goes on from it for some steps; `clips` are (features, column)."
    import copy
    import numpy as np
    import torch
    from audiotag.infer.bundle import seal

    shown, evidence = evidence_in(clips, held, calibrate, len(classes))
    if not folder.exists():  # else it was interrupted while it exported
        cuts = [windows.cut(evidence.features(c))[:1] for c in shown]
        x, y = torch.from_numpy(np.concatenate(cuts)), torch.tensor([int(evidence.truth[c].argmax()) for c in shown])
        torch.manual_seed(0)
        base = train(spec.build(len(classes)), x, y, steps, 0, 2e-3)
        nets = [train(copy.deepcopy(base), x[k::2], y[k::2], max(2, steps // 20), k + 1, 2e-4) for k in range(5)]
        members = [
            dict(stage="folds", fold=k, oof={}, state={n: v.contiguous() for n, v in net.state_dict().items()})
            for k, net in enumerate(nets)
        ]
        seal(
            folder,
            name=name,
            classes=classes,
            front_end=front_end,
            windows=windows,
            activation="sigmoid",
            model=spec,
            members=members,
            prior=[1 / len(classes)] * len(classes),
        )
    export(folder, evidence, ("fp32", "int8"))


def make_shared(folder, bundle, classes, clips, held, calibrate, **_):
    "The same members with one int8 pass over overlapping windows."
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(bundle, folder)
    export(folder, evidence_in(clips, held, calibrate, len(classes))[1], "int8", shared=True)


def sample(name):
    from tests.conftest import sample_folder

    return sample_folder(name)[0]


def cnn_about(tiny):
    from audiotag.audio.features import PRESETS
    from audiotag.models.cnn import CNNModel1
    from audiotag.audio.synth import SOUNDS
    from audiotag.infer.windows import Windows

    fe = PRESETS["freesound_kernel"]
    return dict(
        name="cnn",
        spec=CNNModel1(width=8 if tiny else 64),
        front_end=fe,
        windows=Windows(frames=128, hop=48),
        classes=[*SOUNDS, *(f"class_{i:02d}" for i in range(80 - len(SOUNDS)))],
        # what is judged is longer than a window
        clips=[
            *lessons(fe, 24 if tiny else 600, 2, seed=1, rate=44100),
            *lessons(fe, 6 if tiny else 150, 4, seed=3, rate=44100),
        ],
        held=6 if tiny else 150,
        calibrate=24,
        steps=4 if tiny else 300,
    )


def cnn_files(folder, n, classes):
    "Test clips of `freesound`, or synthesized ones of the same length where there is no such set."
    import pandas as pd
    import soundfile as sf
    from audiotag.core.seeding import rng
    from audiotag.audio.synth import SOUNDS, sound

    source = sample("freesound")
    (folder / "test").mkdir(parents=True)
    for i in range(n):
        if source is not None:
            files = sorted((source / "test").iterdir())
            shutil.copy(files[i % len(files)], folder / "test" / f"{i:04d}.wav")
        else:
            sf.write(
                folder / "test" / f"{i:04d}.wav",
                sound(SOUNDS[i % 12], rng(0, i), seconds=1 + i % 6, sample_rate=44100),
                44100,
            )
    pd.DataFrame(0, index=pd.Index([f"{i:04d}.wav" for i in range(n)], name="fname"), columns=classes).to_csv(
        folder / "sample_submission.csv"
    )


def effnet_about(tiny):
    from audiotag.audio.features import PRESETS
    from audiotag.models.timm_backbone import Timm
    from audiotag.audio.synth import SOUNDS
    from audiotag.infer.windows import Windows

    fe = PRESETS["birdclef_mel"]
    return dict(
        name="effnet",
        spec=Timm(name="mobilenetv3_small_050" if tiny else "efficientnet_b0"),
        front_end=fe,
        windows=Windows(frames=313, hop=313),
        classes=[*SOUNDS, *(f"species_{i:03d}" for i in range(206 - len(SOUNDS)))],
        clips=list(lessons(fe, 30 if tiny else 1000, 5, seed=2, rate=32000)),
        held=6 if tiny else 400,
        calibrate=48,
        steps=4 if tiny else 1500,
    )


def effnet_files(folder, n, classes):
    "One-minute soundscapes in OGG."
    import numpy as np
    import pandas as pd
    import soundfile as sf
    from audiotag.core.seeding import rng
    from audiotag.audio.synth import SOUNDS, sound

    source, test = sample("soundscape"), folder / "test_soundscapes"
    test.mkdir(parents=True)
    for i in range(n):
        if source is not None:
            files = sorted((source / "test_soundscapes").glob("*.ogg"))
            shutil.copy(files[i % len(files)], test / f"soundscape_{i:04d}.ogg")
        else:
            sf.write(
                test / f"soundscape_{i:04d}.ogg",
                np.concatenate([sound(SOUNDS[j % 12], rng(0, i, j), seconds=5, sample_rate=32000) for j in range(12)]),
                32000,
            )
    rows = [f"soundscape_{i:04d}_{5 * k}" for i in range(n) for k in range(1, 13)]
    pd.DataFrame(0.0, index=pd.Index(rows, name="row_id"), columns=classes).to_csv(folder / "sample_submission.csv")


SYSTEMS = {
    "cnn": (cnn_about, cnn_files, "freesound2019", "test", "5 × CNN-model-1, 64 wide"),
    "effnet": (effnet_about, effnet_files, "birdclef2024", "test_soundscapes", "5 × efficientnet_b0, one-minute files"),
}


def prepared(root, name, tiny, n, shared=False):
    "The folders of the bundles, and of `n` files; made where they are missing."
    from audiotag.infer.bundle import Bundle
    from audiotag.core.memory import keep_memory

    folder, about = root / f"{name}{'-tiny' if tiny else ''}", None
    for f in ("bundle", "shared")[: 1 + shared]:
        if (folder / f"{f}-ready").exists():
            continue
        keep_memory()
        print(f"{name}: {f}: five networks are trained briefly and exported", flush=True)
        about = about or SYSTEMS[name][0](tiny)
        make_bundle(folder / f, **about) if f == "bundle" else make_shared(folder / f, folder / "bundle", **about)
        (folder / f"{f}-ready").touch()
    data = folder / f"data-{n}"
    if not (data / "sample_submission.csv").exists():
        shutil.rmtree(data, ignore_errors=True)
        SYSTEMS[name][1](data, n, list(Bundle(folder / "bundle").classes))
    return folder, data


# --- and what comes out ---------------------------------------------------------------------------


def limits(threads):
    "GFLOP/s of a matrix product in fp32."
    code = f"""import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{threads}])
import torch, time; torch.set_num_threads({threads}); a = torch.randn(2048, 2048); a@a; best = 9e9
for _ in range(12): t = time.perf_counter(); a@a; best = min(best, time.perf_counter()-t)
print(2*2048**3/best/1e9)"""
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def ceiling(threads):
    "What so many cores could do at most in fp32 and int8, GFLOP/s, each with a loop that touches no memory; None without a C compiler or AVX-512."
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(
                [
                    "cc",
                    "-O2",
                    "-funroll-loops",
                    "-mavx512f",
                    "-mavx512vnni",
                    str(Path(__file__).with_name("peak.c")),
                    "-o",
                    f"{folder}/peak",
                ],
                check=True,
                capture_output=True,
            )
            runs = [
                subprocess.Popen(["taskset", "-c", str(core), f"{folder}/peak"], stdout=subprocess.PIPE, text=True)
                for core in sorted(os.sched_getaffinity(0))[:threads]
            ]
            fp32, int8 = zip(*(map(float, run.communicate()[0].split()) for run in runs))
        except (OSError, subprocess.CalledProcessError, ValueError):
            return None
    # a shared pass does less than is counted
    return {"theirs": sum(fp32), "fp32": sum(fp32), "int8": sum(int8), "shared": sum(int8)}


def flops(bundle):
    "GFLOP of one window of one member (a multiplication and an addition are two)."
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    net, fe = bundle.model(0), bundle.front_end
    with FlopCounterMode(display=False) as count, torch.no_grad():
        net(torch.zeros(1, 1, fe.n_bands, bundle.windows.frames))
    return count.get_total_flops() / 1e9


def difference(a, b):
    import pandas as pd

    a, b = (pd.read_csv(p, index_col=0) for p in (a, b))
    assert list(a.index) == list(b.index) and list(a.columns) == list(b.columns)
    return float((a - b).abs().to_numpy().max())


def loss_of(folder, precision):
    from audiotag.infer.bundle import Bundle

    return max(g["metric"][0] - g["metric"][1] for g in Bundle(folder).graphs if g["precision"] == precision)


def median(values):
    return statistics.median(values)


def whole_job(took, n_files):
    "Seconds for BirdCLEF's files, by those of a part: opening is done once."
    return took["opening"] + (took["seconds"] - took["opening"]) * FILES / n_files


def system(say, root, name, args, peak, tops):
    from audiotag.infer.bundle import Bundle

    shared = args.shared and name == "cnn"
    folder, _ = prepared(root, name, args.tiny, 4, shared)
    bundle, (_, _, layout, test, title) = Bundle(folder / "bundle"), SYSTEMS[name]
    gflop, met = flops(bundle), []
    ways = {
        "theirs": ("bundle", "torch", "entrant's way"),
        "fp32": ("bundle", "fp32", "ours, fp32"),
        "int8": ("bundle", "int8", "ours, int8"),
        # folder, precision, title
        **({"shared": ("shared", "int8", "ours, int8 in a shared pass")} if shared else {}),
    }
    for threads in args.threads:
        n_files = max(1, (args.clips if name == "cnn" else args.minutes) * threads // 2)
        data = prepared(root, name, args.tiny, n_files)[1]
        kept = data / f"rounds-{threads}.json"
        got = {**{w: [] for w in ways}, **(json.loads(kept.read_text()) if args.go_on and kept.exists() else {})}
        for r in range(args.rounds):
            for w in ways:
                job = dict(
                    name=name,
                    way="theirs" if w == "theirs" else "ours",
                    precision=ways[w][1],
                    threads=threads,
                    bundle=str(folder / ways[w][0]),
                    data=str(data),
                    layout=layout,
                    test=test,
                    out=str(folder / f"{w}-{threads}.csv"),
                )
                Path(job["out"]).unlink(missing_ok=True)
                got[w].append(way(job))
            kept.write_text(json.dumps(got))
        windows = got["theirs"][0]["windows"]
        say(
            f"\n### {title}, {threads} thread{'s' if threads > 1 else ''}\n\n{n_files} files, {windows} windows, {gflop:.2f} GFLOP a window and member; "
            f"peak of the matrix product {peak[threads]:.0f} GFLOP/s; medians of {len(got['theirs'])} round{'s' if len(got['theirs']) > 1 else ''}.\n"
        )
        say(f"| | {' | '.join(o[2] for o in ways.values())} |\n|---|{'---|' * len(ways)}")
        line = {
            w: {k: median([g[k] for g in got[w] if k in g] or [float("nan")]) for k in (*STAGES, "busy")} for w in ways
        }
        for key, what in {**STAGES, "busy": "network busy, from its first batch to its last"}.items():
            say(
                f"| {what} | {' | '.join('–' if line[w][key] != line[w][key] else f'{line[w][key]:.2f}' for w in ways)} |"
            )
        rate = {w: 5 * windows / line[w]["network"] for w in ways}
        say(f"| windows/s through a network | {' | '.join(f'{rate[w]:.0f}' for w in ways)} |")
        say(f"| GFLOP/s | {' | '.join(f'{rate[w] * gflop:.0f}' for w in ways)} |")
        say(f"| share of the fp32 peak | {' | '.join(f'{rate[w] * gflop / peak[threads]:.0%}' for w in ways)} |")
        if most := tops[threads]:
            say(
                f"| share of what the cores could do at most | {' | '.join('–' if w == 'shared' else f'{rate[w] * gflop / most[w]:.0%}' for w in ways)} |"
            )
            best = {
                w: line["theirs"]["seconds"] / (line[w]["seconds"] - line[w]["network"] + 5 * windows * gflop / most[w])
                for w in ways
            }
            say(
                f"| ratio, if the networks ran at that | {' | '.join('–' if w in ('theirs', 'shared') else f'{best[w]:.2f}' for w in ways)} |"
            )
        ratio = {w: median([t["seconds"] / o["seconds"] for t, o in zip(got["theirs"], got[w])]) for w in ways}
        say(f"| **ratio, end to end** | {' | '.join(f'**{ratio[w]:.2f}**' for w in ways)} |")
        off = {w: difference(folder / f"theirs-{threads}.csv", folder / f"{w}-{threads}.csv") for w in ways}
        loss = {w: 0.0 if w == "theirs" else loss_of(folder / ways[w][0], ways[w][1]) for w in ways}
        say(f"| submissions: greatest difference | {' | '.join(f'{off[w]:.1g}' for w in ways)} |")
        say(f"| loss of lwlrap, the worst member | {' | '.join(f'{loss[w]:.4f}' for w in ways)} |")
        if name == "effnet":
            job = {w: median([whole_job(g, n_files) for g in got[w]]) for w in ways}
            ratio = {
                w: median([whole_job(t, n_files) / whole_job(o, n_files) for t, o in zip(got["theirs"], got[w])])
                for w in ways
            }
            say(f"| {FILES} one-minute files, s | {' | '.join(f'{job[w]:.0f}' for w in ways)} |")
            say(f"| **ratio for {FILES} files** | {' | '.join(f'**{ratio[w]:.2f}**' for w in ways)} |")
            say(
                f"| the same on {CORES} such cores, minutes of {LIMIT} | {' | '.join(f'{job[w] * threads / CORES / 60:.1f}' for w in ways)} |"
            )
        if threads == max(args.threads):
            met += [
                (
                    f"{ways[w][2].replace('ours', name)}: {ratio[w]:.2f} of {WANTED[name, w]}",
                    ratio[w] >= WANTED[name, w],
                )
                for w in ways
                if w != "theirs"
            ]
            busy = min(line[w]["busy"] for w in ("fp32", "int8"))
            met += [
                (f"{name} fp32 submissions differ by {off['fp32']:.1g}, {AGREE:g} allowed", off["fp32"] <= AGREE),
                *(
                    (f"{ways[w][2].replace('ours', name)} loses {loss[w]:.4f}, {LOSS} allowed", loss[w] <= LOSS)
                    for w in ways
                    if w not in ("theirs", "fp32")
                ),
                (f"{name} network busy {busy:.0%}, 90 % wanted", busy >= 0.9),
                *(
                    (
                        f"{name}, {w} opens in {line[w]['opening']:.1f} s, {OPENING:g} wanted",
                        line[w]["opening"] <= OPENING,
                    )
                    for w in ("fp32", "int8")
                ),
            ]
    say(
        f"\nTorch's lwlrap of {name}: {', '.join(sorted({format(g['metric'][0], '.3f') for g in bundle.graphs}))} on {bundle.graphs[0]['clips']} clips."
    )
    return met


def main():
    parse = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parse.add_argument("--save", action="store_true", help="write tests/bench/results/kernel.md")
    parse.add_argument("--rounds", type=int, default=3)
    parse.add_argument(
        "--clips", type=int, default=120, help="files of the CNN's test folder on two threads; half of them on one"
    )
    parse.add_argument("--minutes", type=int, default=24, help="one-minute files on two threads")
    parse.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parse.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parse.add_argument(
        "--go-on",
        action="store_true",
        help="rounds that were measured before count; with `--rounds 0` the table is made of them alone",
    )
    parse.add_argument(
        "--no-shared", dest="shared", action="store_false", help="leave out the shared convolutional pass of the CNN"
    )
    parse.add_argument("--tiny", action="store_true", help="small networks, to try the bench itself")
    parse.add_argument(
        "--folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "audiotag-kernel-bench",
        help="what was trained and exported is kept here",
    )
    parse.add_argument("--job", help=argparse.SUPPRESS)
    args = parse.parse_args()
    if args.job:
        return work(json.loads(args.job))
    warnings.simplefilter("ignore")
    lines, began = [], time.perf_counter()

    def say(text=""):
        print(text, flush=True)
        lines.append(text)

    import openvino
    import torch

    cpu = next(
        (o.split(":")[1].strip() for o in Path("/proc/cpuinfo").read_text().splitlines() if o.startswith("model name")),
        platform.processor(),
    )
    for name in args.systems:
        prepared(args.folder, name, args.tiny, 4, args.shared and name == "cnn")
    say("# Kernel\n")
    say(
        f"{datetime.date.today()}, {cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; Python {platform.python_version()}, torch {torch.__version__}, OpenVINO {openvino.__version__.split('-')[0]}."
    )
    peak, tops = {t: limits(t) for t in args.threads}, {t: ceiling(t) for t in args.threads}
    for t, top in tops.items():
        say(
            f"\nWhat {t} core{'s' if t > 1 else ''} could do at most (instructions on registers): "
            + (
                f"{top['fp32']:.0f} GFLOP/s in fp32, {top['int8']:.0f} GOP/s in int8."
                if top
                else "not measured, for want of a C compiler or of AVX-512."
            )
        )
    met = [m for name in args.systems for m in system(say, args.folder, name, args, peak, tops)]
    say(
        "\nWanted on two threads: "
        + "; ".join(f"{what} ({'met' if ok else 'MISSED'})" for what, ok in met)
        + f". {time.perf_counter() - began:.0f} s in all."
    )
    if args.save:
        from audiotag.core.files import write_text

        write_text(Path(__file__).parent / "results" / "kernel.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
