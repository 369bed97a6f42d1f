"Windows that are longer than the rows: frame scores, averaged where windows overlap, in the kernel and out of fold."

from dataclasses import replace

import numpy as np
import pytest
import torch

import audiotag.infer.predict as predict
from audiotag.audio.features import Waveform
from audiotag.core.errors import AudiotagError
from audiotag.infer.bundle import Bundle, seal
from audiotag.infer.deadline import Pace
from audiotag.infer.predict import MemberRun, ScoreAccumulator, infer, iter_batches, iter_windows
from audiotag.infer.recordings import FeatureLoader, LoaderOptions
from audiotag.infer.windows import Spans, Tiling, View, Windows, score_clips
from audiotag.models.cnn import CNNModel1
from audiotag.models.sed import SED
from tests.infer.test_predict import FE, RATE, one_file, slowed, soundscape, table, write_long

BANDS = 16


class EachFrame(torch.nn.Module):
    "Scores of each frame by itself, of every `stride`-th frame: where a window begins changes nothing of them."

    def __init__(self, n_classes=3, stride=1):
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.stride = torch.nn.Parameter(torch.randn(n_classes, BANDS)), stride

    def as_frames(self):
        return self

    def forward(self, x):
        return (self.weight @ x[:, 0])[..., :: self.stride]


def expected(net, x, rows, windows):
    "The rows' scores from the frame scores of the whole recording at once."
    with torch.no_grad():
        p = net(torch.from_numpy(x)[None, None]).sigmoid()[0].numpy().T
    views = [[windows.pool(p[a:b]) for a, b in windows.row_frames(rows, len(p), view)] for view in windows.views]
    return np.mean(views, axis=0)


def test_numbers_by_hand():
    "Two windows of four frames in two columns, every two frames of six: the middle frames have two scores."
    w = Windows(frames=4, hop=2, by_frame=True, pooling="max")
    assert w.places(6) == [(0, 0), (2, 0)]
    p = np.array([[[0.1, 0.5]], [[0.3, 0.9]]], np.float32)  # (windows, classes, columns)
    tiling = Tiling(np.arange(2), tuple(w.places(6)), 6, ((0, 3), (2, 4), (3, 6)))
    np.testing.assert_allclose(w.frame_means(p, tiling)[:, 0], [0.1, 0.1, 0.4, 0.4, 0.9, 0.9], rtol=1e-6)
    np.testing.assert_allclose(w.pool_rows(p, tiling)[:, 0], [0.4, 0.4, 0.9], rtol=1e-6)
    mean = w.replace(pooling="mean")
    np.testing.assert_allclose(mean.pool_rows(p, tiling)[:, 0], [0.2, 0.4, 2.2 / 3], rtol=1e-6)
    # one window of the two: its frames, and beyond them the nearest
    alone = tiling.only(np.array([1]))
    np.testing.assert_allclose(w.frame_means(p[1:], alone)[:, 0], [0.3, 0.3, 0.3, 0.3, 0.9, 0.9], rtol=1e-6)
    moved = [w.row_frames([(0, 3), (3, 6)], 6, View(frame_shift=s)) for s in (1, -2, 9)]
    assert moved == [[(1, 4), (4, 6)], [(0, 1), (1, 4)], [(5, 6), (5, 6)]]


@pytest.mark.parametrize("seed", range(30))
def test_rows_do_not_depend_on_where_windows_begin(seed):
    g = np.random.default_rng(seed)
    n, frames = int(g.integers(5, 400)), int(g.integers(2, 120))
    hop, pooling = int(g.integers(1, frames + 1)), str(g.choice(["mean", "max", "geometric", "power"]))
    views = [View(offset=int(g.integers(0, 200)), pad_at=str(g.choice(["start", "middle", "end"]))) for _ in range(2)]
    views += [View(frame_shift=int(g.integers(-20, 20)))] if seed % 2 else []
    w = Windows(frames=frames, hop=hop, pooling=pooling, views=tuple(dict.fromkeys(views)), by_frame=True)
    cuts = np.unique(g.integers(0, n, 6))
    rows = tuple((int(a), int(b)) for a, b in zip(cuts, [*cuts[1:], n]))
    x, net = g.normal(size=(BANDS, n)).astype(np.float32), EachFrame()
    want = expected(net, x, rows, w)
    for batch_size in (1, 7, 1000):
        ((_, got),) = score_clips([net], [("r", Spans([(v, x) for v in w.views], rows))], w, batch_size=batch_size)
        np.testing.assert_allclose(got[0], want, atol=1e-6)
    # a clip by itself is one row
    ((_, alone),) = score_clips([net], [("clip", x)], w)
    np.testing.assert_allclose(alone[0], expected(net, x, [(0, n)], w)[0], atol=1e-6)


def test_a_stretch_of_a_recording_gives_what_the_whole_gives():
    g, net = np.random.default_rng(1), SED(backbone=CNNModel1(width=4)).build(3).eval()
    x, w = g.normal(size=(BANDS, 900)).astype(np.float32), Windows(frames=128, hop=64, by_frame=True)
    rows = ((300, 400), (400, 448))
    places = w.touching(rows, 900)
    assert places == [(192, 0), (256, 0), (320, 0), (384, 0)]
    first, end = 192, 384 + 128
    whole, part = Spans([(View(), x)], rows), Spans([(View(), x[:, first:end])], rows, first, 900)
    (_, a), (_, b) = score_clips([net], [("whole", whole), ("part", part)], w)
    np.testing.assert_allclose(a, b, atol=1e-6)


def run_of(net, comp, w, **options):
    "Rows as `Inference.score` gets them, with a torch module as the only member."

    def member(x):
        with torch.no_grad():
            return net(torch.from_numpy(np.ascontiguousarray(x))).sigmoid().numpy()

    clips = comp.of("test")
    member.windows, loader = w, FeatureLoader(clips, FE, w, options=LoaderOptions(workers=1, **options))
    run = MemberRun("toy", 0.5, Pace(), member=member, loader=loader)
    found, unreadable = ScoreAccumulator(len(clips), 3, w), {}
    for owners, x, _ in iter_batches(iter_windows(run, unreadable), 5):
        found.add(owners, member(x), unreadable)
    assert not unreadable and not found.incomplete and not found.parts
    return found.scores, run


@pytest.mark.parametrize("piece_s", [5.0, 240.0])
@pytest.mark.parametrize("views", [(View(),), (View(), View(offset=37), View(frame_shift=50))], ids=["plain", "views"])
def test_rows_of_files_are_those_of_the_whole_recording(tmp_path, piece_s, views):
    comp, net = soundscape(tmp_path / "d", seconds=30.0), EachFrame()
    w = Windows(frames=400, hop=150, by_frame=True, pooling="mean", views=views)
    got, run = run_of(net, comp, w, piece_s=piece_s)
    rows = [(250 * i, 250 * (i + 1) if i < 11 else 3001) for i in range(12)]
    want = [expected(net, FE.read_features(tmp_path / "d" / f"r{k}.wav"), rows, w) for k in range(2)]
    np.testing.assert_allclose(got, np.concatenate(want), atol=1e-5)
    if piece_s == 240.0:  # each window is scored once, for all rows and all moves
        n = len(w.places(3001)) + (len(set(w.places(3001, views[1])) - set(w.places(3001))) if len(views) > 1 else 0)
        assert run.full_windows == 2 * n


def test_few_rows_of_a_long_recording_read_what_is_around_them(tmp_path):
    comp, net = soundscape(tmp_path / "d", seconds=60.0, n=1), EachFrame()
    w = Windows(frames=400, hop=200, by_frame=True)
    every, _ = run_of(net, comp, w)
    two = replace(comp, clips=comp.clips.iloc[[3, 20]], template=comp.template.iloc[[3, 20]])
    some, run = run_of(net, two, w, piece_s=6.0)
    np.testing.assert_allclose(some, every[[3, 20]], atol=1e-5)
    assert run.full_windows < 10 and all(job.seconds < 10 for job in run.loader.jobs)


def test_a_long_row_is_divided(tmp_path):
    write_long(tmp_path / "long.flac", 61.3)
    comp, net = one_file(tmp_path, tmp_path / "long.flac"), EachFrame()
    x = FE.read_features(tmp_path / "long.flac")
    for pooling in ("mean", "max", "geometric", "power"):
        w = Windows(frames=400, hop=150, by_frame=True, pooling=pooling, views=(View(), View(frame_shift=30)))
        got, run = run_of(net, comp, w, piece_s=7.0)
        assert len(run.loader.jobs) == 9
        np.testing.assert_allclose(got, expected(net, x, [(0, x.shape[1])], w), atol=1e-5)


def sealed(folder, classes, windows, n=2):
    model, members = SED(backbone=CNNModel1(width=4)), []
    for k in range(n):
        torch.manual_seed(k)
        members.append(dict(stage="s", fold=k, oof={"curated": 0.5}, state=model.build(len(classes)).state_dict()))
    facts = dict(activation="sigmoid", model=model, members=members, prior=np.full(len(classes), 0.1))
    seal(folder, name="toy", classes=classes, front_end=FE, windows=windows, **facts)
    return folder


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("by-frame")
    comp = soundscape(root / "d", seconds=20.0)
    w = Windows(frames=800, hop=400, by_frame=True, pooling="max", views=(View(), View(frame_shift=-60)))
    return comp, sealed(root / "b", comp.classes, w)


def out_of_fold(comp, folder):
    "The rows as `score_mixed` scores them."
    b, out = Bundle(folder), []
    for path in comp.clips.path.unique():
        x = FE.read_features(path)
        rows = tuple((250 * i, 250 * (i + 1) if i < 7 else x.shape[1]) for i in range(8))
        spans = Spans(b.windows.frame_views(x), rows)
        ((_, p),) = score_clips(b.models(), [("r", spans)], b.windows, fill=FE.fill)
        out.append(p.mean(0))
    return np.concatenate(out)


@pytest.mark.parametrize("batch_size,piece_s", [(1, 240.0), (3, 6.0), (64, 240.0)])
def test_a_sealed_network_scores_rows_as_out_of_fold(toy, tmp_path, batch_size, piece_s):
    comp, folder = toy
    options = LoaderOptions(piece_s=piece_s)
    report = infer(folder, comp, tmp_path / "s.csv", batch_size=batch_size, loader_options=options, deadline="10min")
    assert report.members == 2 and not report.prior
    got = table(tmp_path / "s.csv").to_numpy()
    np.testing.assert_allclose(got, out_of_fold(comp, folder), atol=1e-5)
    assert len(np.unique(got.round(5), axis=0)) == len(got)


def test_its_graph_gives_the_same(toy, tmp_path):
    from audiotag.infer.openvino_graphs import evidence_in, export_bundle

    comp, _ = toy
    folder = sealed(tmp_path / "b", comp.classes, Bundle(toy[1]).windows)
    clips = {str(i): FE.read_features(p) for i, p in enumerate(comp.clips.path.unique())}
    verdicts = export_bundle(folder, evidence_in(Bundle(folder), clips), precision="fp32", shared=True)
    assert list(verdicts.kept) == ["refused", "kept"] * 2 and "score frames" in verdicts.why.iloc[0]
    report = infer(folder, comp, tmp_path / "s.csv")
    assert [m["precision"] for m in report.ran] == ["fp32"] * 2
    np.testing.assert_allclose(table(tmp_path / "s.csv").to_numpy(), out_of_fold(comp, folder), atol=1e-4)


def test_too_little_time_gives_every_row_a_score(toy, tmp_path, monkeypatch):
    comp, folder = toy
    slowed(monkeypatch, 0.5)
    report = infer(folder, comp, tmp_path / "s.csv", deadline="4.5s", batch_size=1, every=0.1)
    got = table(tmp_path / "s.csv").to_numpy()
    assert report.members == 1 and report.scored == len(got) and "part of the windows" in report.ran[0]["why"]
    assert np.isfinite(got).all() and report.seconds < 4.5


def test_a_stretch_that_the_network_fails_on_costs_its_rows(toy, tmp_path, monkeypatch):
    comp, folder = soundscape(tmp_path / "d", seconds=10.0, n=12), toy[1]
    honest = predict._finite_probabilities
    bad = FE.read_features(comp.clips.path.iloc[0])[0, 10]

    def fails(member, x):
        if np.isclose(x[..., 0, 10], bad).any():
            raise ValueError("odd")
        return honest(member, x)

    monkeypatch.setattr(predict, "_finite_probabilities", fails)
    report = infer(folder, comp, tmp_path / "s.csv")
    assert report.scored == 44 and sorted(report.prior) == sorted(comp.clips.clip_id[:4])


@pytest.mark.parametrize(
    "change,match",
    [
        (dict(views=(View(shift=0.1),)), "leave `shift` and `only` out"),
        (dict(views=(View(only="start"),)), "leave `shift` and `only` out"),
        (dict(by_frame=False, views=(View(frame_shift=3),)), "needs by_frame"),
    ],
)
def test_settings_that_do_not_go_together(change, match):
    with pytest.raises(AudiotagError, match=match):
        Windows(**{"by_frame": True, **change})


def test_a_network_without_frame_scores_is_refused(toy, tmp_path):
    comp, _ = toy
    model = CNNModel1(width=4)
    members = [dict(stage="s", fold=0, oof={}, state=model.build(3).state_dict())]
    facts = dict(activation="sigmoid", model=model, members=members, prior=[0.1] * 3)
    with pytest.raises(AudiotagError, match="gives no frame scores"):
        seal(tmp_path / "b", name="t", classes="abc", front_end=FE, windows=Windows(by_frame=True), **facts)


def test_rows_of_a_front_end_without_times_are_scored_alone(tmp_path):
    comp = soundscape(tmp_path / "d", seconds=10.0, n=1)
    fe = Waveform(sample_rate=RATE)
    w = Windows(frames=RATE, hop=RATE, by_frame=True)
    rows = [o for _, got in FeatureLoader(comp.clips, fe, w).iter_features() for o in got]
    assert [row for row, _ in rows] == [0, 1, 2, 3] and not any(isinstance(x, Spans) for _, x in rows)
