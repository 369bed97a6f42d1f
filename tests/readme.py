"README.md from nbs/index.ipynb, without Quarto: `python tests/readme.py` writes it, `readme()` gives its text."

from pathlib import Path

REPO = Path(__file__).resolve().parent.parent


def readme():
    "The Markdown of index.ipynb."
    import nbformat
    from nbconvert import MarkdownExporter

    nb = nbformat.read(REPO / "nbs" / "index.ipynb", as_version=4)
    # nbdev_clean takes it out; the exporter wants it for ```python
    nb.metadata["language_info"] = {"name": "python"}
    text, resources = MarkdownExporter().from_notebook_node(nb)
    assert not resources.get("outputs"), "index.ipynb has pictures as outputs: put them into files"
    return text.strip().replace("](pictures/", "](nbs/pictures/") + "\n"


if __name__ == "__main__":
    (REPO / "README.md").write_text(readme(), encoding="utf-8")
