"The page of all benches: what counts as missed, and a bench that fails."

import time
from pathlib import Path

from tests.bench import all as page_of_all
from tests.bench.all import missed_in, page, run_bench


def test_what_a_bench_says_it_missed_is_found():
    assert missed_in("| a | 1 |\nMissed: decode WAV (1.20 of 2); log-mel (3 of 5). 12 s in all.\n") == [
        "decode WAV (1.20 of 2)",
        "log-mel (3 of 5)",
    ]
    said = "Wanted on two threads: cnn: 1.73 of 2 (MISSED); cnn, int8: 7.2 of 7 (met); effnet: 3 of 5 (MISSED). 9 s in all."
    assert missed_in(said) == ["cnn: 1.73 of 2", "effnet: 3 of 5"]
    assert missed_in("Every ratio that was wanted is met. 9 s in all.\nnothing Missed: here") == []


def test_a_bench_that_fails_or_takes_too_long_is_on_the_page(tmp_path):
    text, missed, *_ = run_bench("no_such_bench", 1, tmp_path)
    assert not text and len(missed) == 1 and "No module named tests.bench.no_such_bench" in missed[0]
    text, missed, wall, used = run_bench("startup", 0.001, tmp_path)
    assert missed == ["not done within 0.001 minutes of processor time"] and 0.06 < used < 60
    whole = page({"startup": ("# Title\n\nfine", ["x (2 of 1)"], 3.0, 2.0), "gpu": ("rows", [], 1.0, 1.0)}, 0.0)
    assert "- startup: x (2 of 1)" in whole and "### Title" in whole and "- gpu" not in whole
    assert "- kernel: not run" in whole and "3 s of processor time" not in whole


def _command_lines():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_text()
        except OSError:  # it has ended
            pass


def test_a_bench_that_is_given_up_ends_with_all_that_it_has_started(tmp_path, monkeypatch):
    loop = f"while True: {str(tmp_path)!r}"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {loop!r}])"
    (tmp_path / "tests" / "bench").mkdir(parents=True)
    for folder in ("tests", "tests/bench"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "tests" / "bench" / "busy.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    *_, used = run_bench("busy", 0.005, tmp_path)
    end = time.monotonic() + 20  # a killed process is there until the kernel has taken it down
    while (still := any(loop in line for line in _command_lines())) and time.monotonic() < end:
        time.sleep(0.05)
    assert 0.3 <= used and not still


def test_every_bench_is_on_the_page_or_said_to_be_long():
    there = {p.stem for p in Path(page_of_all.__file__).parent.glob("*.py")} - {"__init__", "all"}
    assert there == {w.split()[0] for w in page_of_all.MINUTES} | page_of_all.LONG
