"`audiotag review`: keys decide, the file is written as one goes, and a reload shows what was decided."

import json
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pandas as pd
import pytest

from audiotag.data.competitions import load_competition
from audiotag.review.label_review import LabelReview, read_corrections
from audiotag.review.review_server import ReviewServer
from tests.browser import CHROMIUM

IS_SAVED = "#status:text-is('saved')"


@pytest.fixture
def served(tiny_data, tmp_path):
    competition = load_competition(tiny_data)
    clips = competition.of("curated").assign(fold=0)
    suspects = pd.DataFrame({"clip_id": clips.clip_id[:4], "kind": "doubted", "worth": 1.0, "why": "a test"})
    scores = np.tile(np.linspace(1, 0.1, len(competition.classes)), (len(clips), 1))
    server = ReviewServer(
        LabelReview(clips, suspects, scores, competition.classes, name="t"), tmp_path / "corrections.csv"
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, list(suspects.clip_id), competition.classes
    server.shutdown()
    server.server_close()


def post(server, body, **headers):
    request = urllib.request.Request(server.url + "decisions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request) as reply:
            return reply.status
    except urllib.error.HTTPError as e:
        return e.code


def test_only_the_page_itself_may_write(served):
    server, ids, classes = served
    keep = {"clip": ids[0], "decision": {"action": "keep"}, "who": "ann"}
    assert post(server, keep) == 403 and post(server, keep, **{"X-Review": "guess"}) == 403
    token = {"X-Review": server.token}
    assert post(server, keep, Host="evil.example:80", **token) == 403
    assert post(server, {"clip": "nobody", "decision": {"action": "keep"}}, **token) == 400
    assert post(server, {"clip": ids[0], "decision": {"action": "relabel", "labels": ["no class"]}}, **token) == 400
    assert post(server, ["x"], **token) == 400 and not server.decisions.path.exists()
    assert post(server, keep, **token) == 200
    assert list(read_corrections(server.decisions.path, classes).clip_id) == [ids[0]]


def test_keys_save_and_a_reload_remembers(served):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    server, ids, classes = served

    def saved():
        table = read_corrections(server.decisions.path, classes).set_index("clip_id")
        return {c: (table.action[c], table["labels"][c]) for c in table.index}

    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page, faults = browser.new_page(), []
        page.on("pageerror", lambda e: faults.append(str(e)))
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.goto(server.url)
        page.wait_for_selector(".card.at")
        for key in ("k", "d", "1"):
            page.keyboard.press(key)
        page.wait_for_selector(IS_SAVED)
        decided = {ids[0]: ("keep", ()), ids[1]: ("drop", ()), ids[2]: ("relabel", (classes[0],))}
        assert saved() == decided
        page.reload()
        page.wait_for_selector(".card.done")
        assert page.locator(".card.done").count() == 3 and "3 of 4 decided" in page.locator("#count").inner_text()
        page.keyboard.press("ArrowUp")
        page.keyboard.press("u")
        page.wait_for_selector(IS_SAVED)
        assert set(saved()) == set(ids[:2])
        browser.close()
    assert not faults


def test_the_last_decision_wins_whatever_the_server_takes_for_the_first(served, monkeypatch):
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    server, ids, classes = served
    save, waits, fails = server.decisions.set, iter([0.6]), iter([False, True])

    def slow(*args):
        if next(fails, False):
            raise OSError("the disk is full")
        time.sleep(next(waits, 0))
        save(*args)

    monkeypatch.setattr(server.decisions, "set", slow)
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_selector(".card.at")
        for key in ("k", "p", "d", "p", "1"):
            page.keyboard.press(key)
        page.wait_for_selector("#status:has-text('the disk is full')")
        assert "NOT SAVED (1 of your decisions)" in page.locator("#status").inner_text()
        page.keyboard.press("n")
        page.keyboard.press("k")
        page.wait_for_selector(IS_SAVED)
        browser.close()
    table = read_corrections(server.decisions.path, classes).set_index("clip_id")
    assert dict(table.action) == {ids[0]: "relabel", ids[1]: "keep"} and table["labels"][ids[0]] == (classes[0],)
