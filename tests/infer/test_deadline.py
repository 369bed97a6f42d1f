"The clock's arithmetic on machines that change their speed: no sound, no network, no waiting."

import math
import random
import subprocess
import sys
import time

import pytest

from audiotag.infer.deadline import Candidate, Deadline, MemberState, Pace, Plan, process_started, seconds_of
from audiotag.core.errors import AudiotagError


@pytest.mark.parametrize(
    "text,seconds",
    [
        ("90min", 5400),
        ("4h", 14400),
        ("1h30min", 5400),
        ("1h 30m 15s", 5415),
        (".5h", 1800),
        ("5400s", 5400),
        ("12", 12),
        (2.5, 2.5),
        ("90 MIN", 5400),
    ],
)
def test_durations(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", "soon", "-5min", "5 fortnights", "0", 0, -1, math.inf, math.nan, True, None, [], "5min and more", "1:30"),
        "1" * 60 + "!",  # a pattern that tries each way to divide it would never end
    ],
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(AudiotagError, match="not a duration"):
        seconds_of(text)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(margin=3600),
        dict(margin="2h"),
        dict(margin=-0.1),
        dict(started=1e12),
        dict(started="yesterday"),
        dict(margin=None),
    ],
)
def test_deadlines_that_make_no_sense(kwargs):
    with pytest.raises((AudiotagError, TypeError)):
        Deadline("1h", **kwargs)


def test_the_process_began_when_it_began():
    code = "import time; time.sleep(.5); from audiotag.infer.deadline import *; d = Deadline('1h', started='process'); print(d.elapsed())"
    begin = time.monotonic()
    elapsed = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.45 < elapsed < time.monotonic() - begin + 0.1
    assert process_started() < time.monotonic()


class Machine:
    "Seconds that we turn by hand; `speed(t)` is how many times longer work takes at time t."

    def __init__(self, speed=lambda t: 1.0):
        self.t, self.speed = 0.0, speed

    def work(self, seconds):
        self.t += seconds * self.speed(self.t)


def play(machine, plan, true, *, batch=64):
    "Run a plan to its end; `true[name]` is what a window takes in truth."
    while (c := plan.pick()) is not None:
        c.state, rest, why = MemberState.RUNNING, c.windows, ""
        while rest > 0:
            n = min(batch, rest)
            if why := plan.stop_reason(c, rest, n):
                break
            before = machine.t
            machine.work(n * true[c.name])
            plan.record(c, n, machine.t - before)
            rest -= n
        c.state, c.why = (MemberState.STOPPED, why) if rest > 0 else (MemberState.DONE, "")
    return [c.name for c in plan.candidates if c.state == MemberState.DONE]


def plan_of(machine, limit, members, windows=10_000, **kwargs):
    candidates = [Candidate(n, g, Pace(s), kind=(n.split()[0],), windows=windows) for n, g, s in members]
    return Plan(Deadline(limit, clock=lambda: machine.t, **kwargs), candidates)


def test_everything_runs_where_there_is_no_limit():
    m = Machine()
    assert (
        len(play(m, plan_of(m, None, [(f"a {k}", 0.8, 0.05) for k in range(7)]), {f"a {k}": 0.05 for k in range(7)}))
        == 7
    )


def test_the_greatest_gain_per_second_comes_first():
    m = Machine()
    members = [("slow", 0.95, 0.5), ("fast", 0.85, 0.05), ("faster", 0.5, 0.02), ("bad", 0.1, 0.05)]
    assert [c.name for c in plan_of(m, "100h", members).order()] == ["faster", "fast", "bad", "slow"]


def test_among_equals_another_kind_comes_first():
    m = Machine()
    plan = plan_of(m, "100h", [("cnn 0", 0.8, 0.05), ("cnn 1", 0.8, 0.05), ("vgg 0", 0.8, 0.05)])
    first = plan.pick()
    first.state = MemberState.DONE
    assert plan.pick().kind != first.kind


def test_a_member_that_does_not_fit_makes_room_for_one_that_does():
    m = Machine()
    plan = plan_of(m, 1000, [("large", 0.9, 0.2), ("small", 0.1, 0.05)])  # 2000 s and 500 s
    assert play(m, plan, {"large": 0.2, "small": 0.05}) == ["small"]


@pytest.mark.parametrize("seed", range(60))
def test_it_ends_in_time_on_any_machine(seed):
    "Members of random cost, a machine that becomes up to three times slower at a random moment, and again faster, and noise."
    g = random.Random(seed)
    limit, turn, back = 3600, g.uniform(0, 3600), g.uniform(600, 3600)
    slow = g.choice([1, 2, 3])
    m = Machine(lambda t: (slow if turn < t < turn + back else 1) * g.uniform(0.9, 1.2))
    members = [
        (f"{g.choice('abc')} {k}", g.uniform(0.3, 0.9), g.choice([0.01, 0.03, 0.1, 0.3]))
        for k in range(g.randint(1, 12))
    ]
    plan = plan_of(m, limit, members)
    done = play(m, plan, {n: s for n, _, s in members})
    assert m.t <= limit * 0.9 + 3 * 64 * 0.3 * 1.2, "the margin is not for use"
    assert m.t <= limit
    cheapest = min(s for _, _, s in members) * 10_000
    if cheapest * 3 * 1.2 < limit * 0.9:
        assert done, "one member would have fitted even on the slow machine"


def test_a_slow_machine_is_noticed_within_a_few_batches():
    m = Machine(lambda t: 3 if t > 100 else 1)
    plan = plan_of(m, 10_000, [("a 0", 0.8, 0.1)])
    c = plan.pick()
    for _ in range(40):
        before = m.t
        m.work(6.4)
        plan.record(c, 64, m.t - before)
    assert plan.slowdown == pytest.approx(3) and c.pace.recent_per_window == pytest.approx(0.3)


def test_a_member_is_given_up_for_one_that_still_fits():
    m = Machine(lambda t: 4 if t > 50 else 1)
    plan = plan_of(m, 1200, [("a", 0.9, 0.1), ("b", 0.2, 0.025)])
    plan.candidates[1].windows = 9000
    plan.candidates[0].state = MemberState.RUNNING
    c, rest = plan.candidates[0], 10_000
    while not (why := plan.stop_reason(c, rest, 64)):
        before = m.t
        m.work(6.4)
        plan.record(c, 64, m.t - before)
        rest -= 64
    assert "cheaper" in why and m.t < 300


def test_no_time_at_all():
    m = Machine()
    m.t = 0.0
    plan = plan_of(m, 10, [("a", 0.9, 0.1)])
    m.t = 9.5
    assert plan.pick() is None
