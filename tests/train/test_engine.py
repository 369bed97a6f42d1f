"The engines: the same bytes wherever folds are trained, and what happens when nodes, workers, drivers or jobs die."

import importlib.util
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from fastai.callback.core import Callback

from tests.bounds import bounded  # noqa: F401
from tests.tiny import AUDIOTAG, SETS, called, train_words

from audiotag.train import engine as engines
from audiotag.data.competitions import load_competition
from audiotag.core.errors import AudiotagError, load_library
from audiotag.core.files import locked, write_json
from audiotag.train.engine import (
    Engine,
    SerialEngine,
    Job,
    LineWriter,
    ProcessEngine,
    RayEngine,
    claim_fold_folder,
    fold_jobs,
    get_engine,
    timeline,
    run_job,
)
from audiotag.audio.features import LogMel
from audiotag.data.streaming import read_scores, score_store
from audiotag.infer.windows import score_clips
from audiotag.kaggle.pack import pack_weights
from audiotag.train.recipes import get_recipe
from audiotag.train.run_folder import Run, open_run, run_stages, stage_groups
from audiotag.data.store import build_store

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (pip install 'audiotag[cluster]')"
)
apart = pytest.mark.apart
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
SMALL = dict(object_store_memory=80 * 2**20, include_dashboard=False)


@pytest.fixture(scope="module")
def home(tiny_data, tmp_path_factory):
    home = tmp_path_factory.mktemp("engine")
    (home / "data").symlink_to(tiny_data)
    return home


@pytest.fixture(scope="module")
def begin(home):
    "`begin('name')` begins a tiny run; all share one store."
    competition = load_competition(home / "data")
    return lambda name, sets=SETS: open_run(
        home / name, get_recipe("freesound2019", scale="small", changes=sets), competition, store=home / "store"
    )


@pytest.fixture(scope="module")
def whole(tiny_run):
    "What a run without any engine ends with."
    return content(Run(tiny_run / "run"))


@pytest.fixture(scope="module")
def cluster():
    "Three nodes on this machine: a head that takes no jobs, and two that do and may be killed; `fill()` puts others in their place."
    os.environ.update({k: ENV[k] for k in ("RAY_worker_niceness", "RAY_USAGE_STATS_ENABLED")})
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, **SMALL))
    made.victims = []
    made.fill = lambda: made.victims.extend(made.add_node(num_cpus=1, **SMALL) for _ in range(2 - len(made.victims)))
    yield made
    made.shutdown()


@pytest.fixture
def grid(cluster):
    cluster.fill()
    with RayEngine(cluster.address) as made:
        yield made


def content(run):
    "The bytes of the bundle and of all that the next stage would read."
    folder = pack_weights(run, run.folder.parent / f"{run.folder.name}-b{time.monotonic_ns()}" / "tiny-weights")
    kept = [
        p
        for name in ("oof.parquet", "weights.safetensors", "trained_on.json", "ledger.parquet")
        for p in run.folder.rglob(name)
    ]
    return {p.name: p.read_bytes() for p in folder.iterdir()} | {
        str(p.relative_to(run.folder)): p.read_bytes() for p in kept
    }


def when(ready, act, seconds=200):
    "In a thread: `act()` as soon as `ready()` is true; `join()` it."

    def wait():
        end = time.monotonic() + seconds
        while not ready() and time.monotonic() < end:
            time.sleep(0.003)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def left_alone(run):
    "No worker holds a fold, and nothing half-written is left."
    assert (
        not list(run.folder.rglob(".owner"))
        and not list(run.folder.rglob("*.part"))
        and not list(run.folder.rglob("checkpoint.*"))
    )


# --- the same numbers whichever way --------------------------------------------------------------


@pytest.mark.parametrize("way", ["serial", "processes", pytest.param("ray", marks=[apart, needs_ray])])
def test_the_same_bytes(way, begin, whole, request):
    made = (
        request.getfixturevalue("grid") if way == "ray" else get_engine(way, workers=2 if way == "processes" else None)
    )
    with made:
        run = run_stages(begin(way), engine=made)
    assert content(run) == whole
    left_alone(run)
    log = timeline(made)
    assert len(log) == 8 and log.ok.all()
    first = log[log.job.str.contains("agreed")].began.min()
    assert (log[log.job.str.contains("noisy|curated")].ended <= first).all(), "the rule of stage 3 needs all folds"
    assert log.place.nunique() == (1 if way == "serial" else 2) or way == "ray"


def test_threads_belong_to_the_run(begin):
    "A run that was begun with three threads goes on with three, wherever that is."
    run = begin("threads", SETS[1:])
    write_json(run.folder / "threads.json", {"threads": 3})
    jobs = fold_jobs(run, [("noisy", 0), ("curated", 0), ("curated", 1)])
    assert [j.threads for j in jobs] == [3, 3, 3] and jobs[1].after == (jobs[0].name,) and jobs[2].after == ()
    assert [j.threads for j in fold_jobs(begin("one"), [("noisy", 0)])] == [1]
    assert [[s.name for s in g] for g in stage_groups(run.recipe)] == [["noisy", "curated"], ["agreed"], ["certain"]]


# --- a node, a worker, a driver dies -------------------------------------------------------------

MOMENTS = {
    # one of the first stage would have ended before its node
    "a fold has just been begun": lambda run: (run / "2-curated/fold-1/.owner").exists(),
    "between two epochs of the second stage": lambda run: (run / "2-curated/fold-0/checkpoint.safetensors").exists(),
    "trained and not yet scored": lambda run: (run / "1-noisy/fold-1/weights.safetensors").exists(),
}


class Hold(Callback):
    "Holds trainings of the second stage after an epoch, as long as a file is there."

    order = 99

    def __init__(self, file):
        self.file = file

    def after_epoch(self):
        while self.file.exists() and "2-curated" in str(self.learn.checkpoint.path):
            time.sleep(0.02)


@apart
@needs_ray
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_node_costs_nothing_that_was_finished(moment, begin, whole, cluster, grid, capfd):
    run = begin("node " + moment)
    grid.begin()
    grid.ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    hold = run.folder / "hold"
    hold.touch()
    with ThreadPoolExecutor(1) as pool:  # nodes are added by the main thread
        done, end = pool.submit(run_stages, run, engine=grid, cbs=[Hold(hold)]), time.monotonic() + 200
        while not MOMENTS[moment](run.folder) and time.monotonic() < end:
            time.sleep(0.003)
        kept = {
            p: p.stat().st_mtime_ns
            for p in run.folder.rglob("weights.safetensors")
            if (p.parent / "oof.parquet").exists()
        }
        while cluster.victims:
            cluster.remove_node(cluster.victims.pop(), allow_graceful=False)
        while (
            subprocess.run(["pgrep", "-f", "^ray::stage"], stdout=subprocess.DEVNULL).returncode == 0
            and time.monotonic() < end
        ):
            time.sleep(0.02)  # a worker outlives its node for a moment, and could end its job in it
        hold.unlink()
        cluster.fill()
        done.result()
    assert content(run) == whole
    left_alone(run)
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert "its worker was lost" in capfd.readouterr().err


@pytest.mark.long
def test_a_killed_worker_is_replaced(begin, whole, capfd):
    run = begin("worker")
    with ProcessEngine(2) as made:
        killer = when(
            lambda: (run.folder / "2-curated/fold-0/checkpoint.safetensors").exists(),
            lambda: [
                os.kill(pid, signal.SIGKILL) for pool in list(made.pools.values()) for pid in list(pool._processes)
            ],
        )
        run_stages(run, engine=made)
        killer.join()
    assert content(run) == whole
    left_alone(run)
    assert "its worker was lost (TerminatedWorkerError" in capfd.readouterr().err


def command(home, run, *words):
    return [*AUDIOTAG, *train_words(home / "data", run), "--store", str(home / "store"), *words]


@pytest.mark.parametrize(
    "way", [pytest.param("processes", marks=pytest.mark.long), pytest.param("ray", marks=[apart, needs_ray])]
)
def test_a_killed_driver_goes_on_where_it_stopped(way, home, begin, whole, request):
    words = ["--engine", way, "--workers", "2"]
    if way == "ray":
        words += ["--address", request.getfixturevalue("grid").address]
    run = home / f"driver {way}"
    with open(home / "killed.log", "w") as log:
        driver = subprocess.Popen(command(home, run, *words), stdout=log, stderr=log, env=ENV)
        when(
            lambda: (run / "2-curated/fold-1/checkpoint.safetensors").exists() or driver.poll() is not None, driver.kill
        ).join()
    assert driver.wait() == -signal.SIGKILL, (home / "killed.log").read_text()[-2000:]
    assert not (run / "4-certain").exists()
    again = subprocess.run(command(home, run, *words), capture_output=True, text=True, env=ENV, timeout=200)
    assert again.returncode == 0, again.stderr[-3000:]
    # the other fold may have been slower, and in its first stage yet
    assert "stage 1/4 noisy, fold 1 (of 2)" not in again.stderr and content(begin(run.name)) == whole
    left_alone(begin(run.name))


def kill_one(kind, g, cluster):
    "One of Ray's workers, a node, both that work, or what manages a node, which the cluster sees only after seconds; others take the places of nodes."
    if kind == "worker":
        found = subprocess.run(["pgrep", "-af", "^ray::"], capture_output=True, text=True).stdout.splitlines()
        if found := [int(line.split()[0]) for line in found if "Agent" not in line]:
            os.kill(g.choice(found), signal.SIGKILL)
        return
    for _ in range(2 if kind == "nodes" else 1):
        node = cluster.victims.pop(g.randrange(len(cluster.victims)))
        if kind == "raylet":
            node.kill_raylet()
        else:
            cluster.remove_node(node, allow_graceful=False)
    cluster.fill()


@apart
@needs_ray
@pytest.mark.parametrize("seed", range(int(os.environ.get("AUDIOTAG_KILLS", "3"))))
def test_kills_at_random_moments(seed, home, begin, whole, cluster, grid):
    "One or two kills somewhere in a run of some eleven seconds. AUDIOTAG_KILLS=50 makes it fifty runs."
    g, run = random.Random(seed), home / f"random {seed}"
    words = command(home, run, "--engine", "ray", "--address", grid.address)
    with open(home / f"random {seed}.log", "w") as log:

        def drive():
            return subprocess.Popen(words, stdout=log, stderr=log, env=ENV)

        driver, began = drive(), time.monotonic()
        for at in sorted(g.uniform(4, 10.5) for _ in range(g.choice((1, 2)))):
            while time.monotonic() < began + at and driver.poll() is None:
                time.sleep(0.003)
            kind = g.choice(("node", "nodes", "raylet", "worker", "driver"))
            print(f"{kind} killed after {time.monotonic() - began:.2f} s")
            if kind == "driver":
                driver.kill()
                driver.wait()
                driver = drive()
            else:
                kill_one(kind, g, cluster)
        assert driver.wait(timeout=200) == 0, (home / f"random {seed}.log").read_text()[-3000:]
    assert content(begin(run.name)) == whole
    left_alone(begin(run.name))


# --- a store on an engine ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(home):
    "A store of many small shards, made in this process."
    return store_of(home, "plain")


def store_of(home, name, **options):
    clips = load_competition(home / "data").clips
    return build_store(
        clips,
        LogMel(sample_rate=16000, n_fft=512, hop_length=256, n_mels=32, f_max=None),
        home / f"store {name}",
        shard_mb=0.02,
        **options,
    )


def files_of(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name not in (".seen", ".lock")
    }


@pytest.mark.long
@pytest.mark.parametrize("way", ["serial", "processes", pytest.param("ray", marks=[apart, needs_ray])])
def test_the_same_store(way, home, plain, request):
    made = (
        request.getfixturevalue("grid") if way == "ray" else get_engine(way, workers=2 if way == "processes" else None)
    )
    with made:
        store = store_of(home, way, engine=made)
    assert files_of(store.folder) == files_of(plain.folder) and len(list(store.folder.rglob("*.npy"))) > 8


@apart
@needs_ray
def test_a_node_is_killed_while_it_makes_shards(home, plain, cluster, grid):
    folder = home / "store nodes"
    grid.begin()
    with ThreadPoolExecutor(1) as pool:
        done, end = pool.submit(store_of, home, "nodes", engine=grid), time.monotonic() + 100
        while len(list(folder.glob("shards/*.npy"))) < 2 and time.monotonic() < end:
            time.sleep(0.002)
        kill_one("nodes", random.Random(0), cluster)
        done.result()
    assert files_of(folder) == files_of(plain.folder)


@pytest.mark.long
def test_features_on_an_engine_by_the_command_line(home):
    words = [
        "features",
        "--recipe",
        "freesound2019",
        "--scale",
        "small",
        "--data",
        str(home / "data"),
        *[w for o in SETS for w in ("--set", o)],
    ]
    for name, more in (("a", []), ("b", ["--engine", "processes", "--workers", "2"])):
        ran = called(*words, "--store", home / f"cli {name}", *more)
        assert ran.returncode == 0, ran.stderr[-2000:]
    assert files_of(home / "cli a") == files_of(home / "cli b")
    for bad, said in (
        (["--workers", "0"], "0 workers"),
        (["--address", "auto"], "has no address"),
        (["--engine", "slurm"], "not one of 'serial', 'processes', 'ray'"),
    ):
        ran = called(*words, "--store", home / "cli c", *bad)
        assert ran.returncode == 2 and said in ran.stderr, ran.stderr[-2000:]


def test_a_machine_without_the_recordings_says_so(home, monkeypatch):
    "Else every clip would be quarantined there, as a file that is missing."
    there = os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda p: there(p) and "train" not in Path(p).name)
    with pytest.raises(AudiotagError, match=r"train_\w+: is not on .*by the same path.*; and \d+ more"):
        store_of(home, "elsewhere", engine=SerialEngine())
    monkeypatch.undo()
    assert len(store_of(home, "elsewhere").quarantine) == 0


@pytest.mark.long
def test_ctrl_c_stops_the_workers_and_leaves_checkpoints(home, begin, whole):
    run = home / "ctrl-c"
    words = command(home, run, "--engine", "processes", "--workers", "2")
    driver = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV, start_new_session=True
    )
    when(
        lambda: (run / "2-curated/fold-0/checkpoint.safetensors").exists() or driver.poll() is not None,
        lambda: os.killpg(driver.pid, signal.SIGINT),
    ).join()
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "Traceback" not in said and "the same command resumes the work" in said, said[
        -3000:
    ]
    for _ in range(100):  # they look every fifth of a second whether their driver is there
        workers = subprocess.run(
            ["pgrep", "-g", str(driver.pid), "-f", "LokyProcess"], capture_output=True, text=True
        ).stdout
        if not workers:
            break
        time.sleep(0.1)
    assert not workers, "workers of the driver are left"
    assert content(run_stages(begin("ctrl-c"))) == whole


TICK = """
import sys, time
from audiotag.train.engine import Job, get_engine
def tick(path):
    for i in range(600):
        with open(path, 'a') as f: f.write('.')
        time.sleep(.05)
get_engine(sys.argv[1], address=sys.argv[3] or None).run([Job(name='tick', call=tick, inputs={'path': sys.argv[2]})])
"""


@pytest.mark.long
@pytest.mark.parametrize("way", ["processes", pytest.param("ray", marks=[apart, needs_ray])])
def test_workers_of_a_killed_driver_stop_writing(way, tmp_path, request):
    (tmp_path / "driver.py").write_text(TICK)
    path = tmp_path / "ticks"
    address = request.getfixturevalue("grid").address if way == "ray" else ""
    driver = subprocess.Popen(
        [sys.executable, tmp_path / "driver.py", way, path, address], env=ENV, stderr=subprocess.DEVNULL
    )
    when(lambda: path.exists() and path.stat().st_size > 3, driver.kill).join()
    driver.wait()
    time.sleep(4)
    ticks = path.stat().st_size
    time.sleep(1)
    assert 3 < ticks == path.stat().st_size


def test_two_drivers_refuse_each_other(begin):
    run = begin("two")
    with locked(run.folder), pytest.raises(AudiotagError, match="in use by process"):
        run_stages(run, engine=SerialEngine())


def test_a_worker_that_was_given_up_leaves_to_the_next_one(tmp_path):
    "The one that was taken for dead holds the folder until it looks; the new one waits for it."
    left, inside = [], threading.Event()

    def old():
        try:
            with claim_fold_folder(tmp_path / "fold-0") as mine:
                inside.set()
                while True:
                    time.sleep(0.05)
                    mine.require_owner()
        except AudiotagError as e:
            left.append((time.monotonic(), str(e)))

    thread = threading.Thread(target=old)
    thread.start()
    inside.wait()
    with claim_fold_folder(tmp_path / "fold-0") as mine:
        now = time.monotonic()
        mine.require_owner()
    thread.join()
    assert left and left[0][0] <= now + 0.01 and "another worker" in left[0][1]


# --- jobs that fail ------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("way", ["processes", pytest.param("ray", marks=[apart, needs_ray])])
def test_a_job_that_fails_three_times_is_named_and_the_others_finish(way, begin, whole, request, capfd):
    made = request.getfixturevalue("grid") if way == "ray" else ProcessEngine(2)
    run = begin(f"failing {way}")
    fault = run.folder / "2-curated/fold-0/trained_on.json"
    fault.mkdir(parents=True)  # a folder where a file should be
    with pytest.raises(AudiotagError) as found:
        run_stages(run, engine=made)
    said = str(found.value)
    assert "stage 2/4 curated, fold 0 (of 2) failed 3 times" in said and "cannot write" in said and "\n" not in said
    assert (
        run.is_done("noisy", 0)
        and run.is_done("noisy", 1)
        and run.is_done("curated", 1)
        and not (run.folder / "3-agreed").exists()
    )
    assert capfd.readouterr().err.count("of 3 (") == 2
    fault.rmdir()
    assert content(run_stages(run, engine=made)) == whole
    made.close()


class Odd(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} {b}")  # does not unpickle


def odd():
    raise Odd(1, 2)


def wants_a_library():
    load_library("soundfyle")


def fine(x):
    return x


def test_failures_and_what_follows_them():
    jobs = [
        Job(name="a", call=odd, inputs={}),
        Job(name="b", call=fine, inputs={"x": 1}, after=("a",)),
        Job(name="c", call=fine, inputs={"x": 2}, after=("b",)),
        Job(name="d", call=fine, inputs={"x": 3}),
    ]
    here = SerialEngine(attempts=3)
    with pytest.raises(
        AudiotagError,
        match=r"a failed 3 times, .*Odd: 1 2 \(test_engine.py, line \d+\); left out, as they need what failed: 2",
    ):
        here.run(jobs)
    assert [o["job"] for o in here.log if o["ok"]] == ["d"] and len(here.log) == 4
    assert here.run(jobs[3:]) == {"d": 3}


class Losing(Engine):
    "Loses its worker each time."

    def can_start(self, job, n_running):
        return True

    def submit(self, job):
        future = engines.Future()
        future.set_exception(OSError("gone"))
        return future


def test_a_job_that_takes_every_worker_with_it_ends(monkeypatch):
    assert 50 < sum(map(engines._retry_delay, range(1, 10))) < 60 and engines._retry_delay(1) == 0, (
        "long enough for a cluster to see that a node is dead"
    )
    monkeypatch.setattr(engines, "_retry_delay", lambda n: 0.02 * n)
    with pytest.raises(AudiotagError, match="lost ten times"):
        Losing().run([Job(name="greedy", call=fine, inputs={"x": 1})])


class Hole(SerialEngine):
    "A node that has died and still takes jobs, for a second."

    def submit(self, job):
        self.tries, self.since = getattr(self, "tries", 0) + 1, getattr(self, "since", time.monotonic())
        if time.monotonic() > self.since + 1:
            return SerialEngine.submit(self, job)
        return Losing.submit(self, job)


def test_a_dead_node_that_still_takes_jobs_is_given_time(capfd):
    made = Hole()
    jobs = [Job(name=n, call=fine, inputs={"x": n}, after=a) for n, a in (("a", ()), ("b", ()), ("c", ("a",)))]
    assert made.run(jobs) == {"a": "a", "b": "b", "c": "c"} and made.tries <= 7
    assert "continues from its last checkpoint in 1 s" in capfd.readouterr().err


@pytest.mark.long
def test_another_version_is_refused_and_not_tried_again(begin, capfd):
    made = ProcessEngine(1)
    made.version = {**made.version, "audiotag": "0.0.9 (12345678)"}
    with made, pytest.raises(AudiotagError, match=r"worker on .* has audiotag .* and not 0.0.9 \(12345678\)"):
        made.run([Job(name="a", call=fine, inputs={"x": 1})])
    assert "attempt" not in capfd.readouterr().err
    assert run_job(Job(name="a", call=fine, inputs={"x": 1}), engines._loaded_version)["value"] == 1


@pytest.mark.long
@pytest.mark.parametrize("made", [SerialEngine, lambda: ProcessEngine(1)], ids=["here", "processes"])
def test_a_library_that_cannot_be_loaded_stops_all_jobs(made, capfd):
    "Each fold would meet it, so it is said once, and nothing else is begun."
    with made() as engine, pytest.raises(AudiotagError, match="needs soundfyle, which is not installed") as e:
        engine.run([Job(name=name, call=wants_a_library, inputs={}) for name in "abc"])
    assert e.value.kind == "library" and str(e.value).count("needs") == 1 and len(engine.log) == 1
    assert "soundfyle" not in capfd.readouterr().err


def test_what_is_missing_or_wrong_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AudiotagError, match=r"pip install 'audiotag\[cluster\]'"):
        get_engine("ray")
    for bad in (dict(name="ry"), dict(name="processes", workers=0), dict(name="serial", address="auto")):
        with pytest.raises(AudiotagError):
            get_engine(**bad)
    with pytest.raises(AudiotagError, match="not on this machine"):
        engines.train_job(str(tmp_path / "elsewhere"), "noisy", 0)


@apart
@needs_ray
def test_a_cluster_that_cannot_do_it(begin, grid):
    run = begin("gpus", [*SETS, "gpus=2"])
    with pytest.raises(AudiotagError, match="wants 2 GPUs, and no node of the cluster has more than 0"):
        run_stages(run, engine=grid)
    wide = begin("wide", [*SETS[1:], "cpus=64"])  # more threads than any node has CPUs: it is given a whole node
    assert grid.reserve(fold_jobs(wide, [("noisy", 0)])[0]) == dict(num_cpus=1, num_gpus=0)


# --- lines, shards, chunks -----------------------------------------------------------------------


def test_lines_are_whole():
    got = []
    out = LineWriter(got.append)
    for piece in ("a", "b\n", "\n", "c\nd", "e", "\n"):
        out.write(piece)
    assert got == ["ab", "c", "de"] and not out.isatty()


@pytest.mark.long
def test_each_line_is_said_once(begin, capfd):
    with ProcessEngine(2) as made:
        run_stages(begin("lines", [*SETS, "stages.*.epochs=1"]), engine=made)
    said = [s for s in capfd.readouterr().err.splitlines() if "epoch" in s]
    assert len(said) == len({s.split(":")[0] for s in said}) == 8 and all(s.startswith("stage ") for s in said)


@pytest.mark.long
def test_pieces_of_a_store_are_scored_once(tiny_run, tmp_path):
    run = Run(tiny_run / "run")
    models = [run.model("certain", k) for k in range(2)]
    options = dict(windows=run.recipe.windows, activation=run.recipe.activation, fill=run.recipe.front_end.fill)
    with ProcessEngine(2) as made:
        times = []
        for _ in range(2):
            score = partial(score_clips, models, **options)
            score_store(score, run.store, tmp_path, run.classes, by="test", piece=30, engine=made)
            times.append({p: p.stat().st_mtime_ns for p in tmp_path.glob("*.parquet")})
    assert times[0] == times[1] and len(times[0]) == -(-len(run.store) // 30) > 1
    scored = pd.concat(read_scores(tmp_path)).set_index("clip_id")
    mean = sum(run.predict("certain", k, scored.index) for k in range(2)) / 2
    assert sorted(scored.index) == sorted(run.store) and abs(mean - scored).max().max() < 1e-6
