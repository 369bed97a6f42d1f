"The documentation: built without a warning from the notebooks alone, and looked at in a real browser."

import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading

import pytest

from tests.browser import CHROMIUM
from tests.readme import REPO

pytestmark = pytest.mark.long
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers", "nbconvert", "latex2mathml", "griffe")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(
            f"the generator of the documentation is not installed ({', '.join(missing)}): `make site` installs it"
        )
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", out]
    done = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert not done.returncode and "WARNING" not in done.stderr, done.stdout + done.stderr
    return out


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def browser(site):
    "`open(name)` gives a page of the site, served from this machine, and the list of its faults."
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}/"
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])

        def open_page(name):
            page = chromium.new_page(viewport={"width": 1280, "height": 900})
            faults = []
            page.on("console", lambda m: faults.append(m.text) if m.type in ("error", "warning") else None)
            page.on("pageerror", lambda e: faults.append(str(e)))
            page.on("response", lambda r: faults.append(f"{r.status} {r.url}") if r.status >= 400 else None)
            page.on(
                "request", lambda r: faults.append(r.url) if not r.url.startswith((home, "data:", "blob:")) else None
            )
            page.goto(home + name, wait_until="networkidle")
            page.wait_for_function("document.readyState === 'complete'")  # a long page may still be read by then
            return page, faults

        yield open_page
        chromium.close()
    server.shutdown()
    server.server_close()


def test_every_notebook_has_a_page_and_every_wing_its_api(site):
    for path in (REPO / "nbs").rglob("*.ipynb"):
        parts = path.relative_to(REPO / "nbs").parts
        if not any(part.startswith((".", "_")) for part in parts):
            name = re.sub(r"^\d+_", "", path.stem) + ".html"
            assert site.joinpath(*parts[:-1], name).is_file(), path
            if parts[-1][0].isdigit():
                assert site.joinpath(*parts[:-1], "api.html").is_file(), path


def test_no_page_shows_what_only_nbdev_reads(site):
    for path in site.rglob("*.html"):
        text = re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8"))  # without the spans of the highlighter
        found = re.findall(r"^\s*#\s*\|\s*(?:export|hide|default_exp|output|slow).*", text, re.M)
        assert not found, f"{path.name}: {found[:3]}"
        assert "skip_exec" not in text, path.name


def test_the_front_page(browser):
    page, faults = browser("index.html")
    assert page.title() == "audiotag"
    assert page.locator("ol.flow li").count() >= 5  # the README's flowchart
    nav = page.locator(".md-nav--primary > ul > li").all_inner_texts()
    order = [text.strip().splitlines()[0] for text in nav]
    wings = ["Core", "Audio", "Data", "Augment", "Models", "Infer", "Train", "Review", "Kaggle", "Rehearse"]
    assert [name for name in order if name in wings] == wings and order[-1] == "Command line"
    assert not faults


def test_a_lesson_has_its_pictures_formulas_and_links(browser):
    page, faults = browser("augment/spec.html")
    assert page.title().startswith("Augmenting spectrograms")
    assert page.locator("h1").inner_text().startswith("Augmenting spectrograms")
    pictures = page.locator("article img")
    assert pictures.count() >= 8
    for picture in pictures.all():
        picture.scroll_into_view_if_needed()
        assert picture.evaluate("e => e.complete && e.naturalWidth > 100")
    assert page.locator("article math").count() >= 5 and "\\(" not in page.locator("article").inner_text()
    page.locator(".where a").first.click()
    page.wait_for_url("**/augment/api.html#audiotag.augment.spec")
    assert not faults


def test_a_tutorial_has_pictures_and_players(browser):
    page, faults = browser("tutorials/look_and_listen.html")
    assert page.title().startswith("Look and listen")
    assert page.locator("article img").count() >= 5 and page.locator("article audio").count() >= 3
    assert not faults


def test_the_api_describes_parameters_by_their_comments(browser):
    page, faults = browser("audio/api.html")
    row = (
        page.locator("#audiotag\\.audio\\.features\\.LogMel")
        .locator("xpath=following::tr[td//code='hop_length']")
        .first
    )
    assert [cell.strip() for cell in row.locator("td").all_inner_texts()] == ["hop_length", "int", "samples", "347"]
    for name in ("FrontEnd.read", "LogMel.n_frames", "PCEN"):  # the first two are patched in, as methods
        assert page.locator(f"[id='audiotag.audio.features.{name}']").count() == 1, name
    wave = page.locator("[id='audiotag.audio.features.FrontEnd.__call__']").locator("xpath=following::td[3]").first
    assert "samples" in wave.inner_text()
    assert not faults


@pytest.mark.parametrize("words, target", [("SpecMix", "augment/spec"), ("write_quarantine", "audio/api")])
def test_the_search_finds_words_and_names(browser, words, target):
    page, faults = browser("tutorials/noise_audit.html")
    page.locator("input.md-search__input").fill(words)
    hits = page.locator(".md-search-result__item a")
    hits.first.wait_for()
    assert any(target in (hit.get_attribute("href") or "") for hit in hits.all())
    assert not faults
