"The templates of the pages: in the package, and escaping whatever is put into them."

import ast
from pathlib import Path

import pandas as pd
import pytest

import audiotag.review
from audiotag.review.html_page import headline_html, macros, render_page, table_html
from tests.readme import REPO

TEMPLATES = Path(audiotag.review.__file__).parent / "templates"
EVIL = "</script><img src=x onerror=alert(1)>"


def test_the_templates_are_package_data():
    "An installed audiotag has them too: setup.py names all files of the package that are not Python."
    setup = ast.parse((REPO / "setup.py").read_text(encoding="utf-8"))
    declared = next(
        ast.literal_eval(k.value) for k in ast.walk(setup) if isinstance(k, ast.keyword) and k.arg == "package_data"
    )
    found = {
        p for package, globs in declared.items() for g in globs for p in (REPO / package.replace(".", "/")).glob(g)
    }
    files = {p for p in (REPO / "audiotag").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {p for p in files if p.suffix != ".py"} == found and TEMPLATES / "page.html.jinja" in found


@pytest.mark.parametrize(
    "html",
    [
        table_html(pd.DataFrame({EVIL: [EVIL]})),
        headline_html({EVIL: EVIL}),
        macros("parts.html.jinja").figures([], EVIL),
        render_page(EVIL, [(EVIL, "<p>text</p>")]),
    ],
    ids=["table", "headline", "figures", "page"],
)
def test_values_are_escaped(html):
    assert "&lt;img src=x" in html and "<img" not in html
