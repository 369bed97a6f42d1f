"""Stored outputs that say nothing about the machine they ran on: `python tests/outputs.py` cleans every notebook in nbs/.

Folders of this machine become `…`, and warnings of libraries, which name files and lines of an installation, go.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
NBS = REPO / "nbs"
# what names a machine, whichever: an installation, a person's home, a temporary folder with a random name, a kernel's own
MACHINE = re.compile(
    r"(?:/[\w.@+-]+)*/site-packages|/(?:root|home/\w+|Users/\w+)(?=/)"
    r"|/tmp/(?:tmp\w{8}|pytest-of-\w+|[\w-]+-\w{8})(?=[/\W])|/tmp/ipykernel_\d+"
)
WARNING = re.compile(r"^.*?:\d+: \w*Warning: .*(?:\n[ \t]+.*)*\n?", re.MULTILINE)


def own_folders():
    "This checkout, the virtual environment, and the folder for temporary files: a long path before one that it starts with."
    folders = {str(REPO), tempfile.gettempdir() if tempfile.gettempdir() != "/tmp" else ""}
    folders |= {sys.prefix} if sys.prefix != sys.base_prefix else set()
    return sorted(filter(None, folders), key=len, reverse=True)


def clean_text(text):
    "`text` without folders of this machine."
    for folder in own_folders():
        text = re.sub(re.escape(folder) + r"(?![\w-])", "…", text)
    return MACHINE.sub("…", text)


def _clean(value):
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_clean(v) for v in value]
    return value


def clean_output(output):
    "The output as it may be stored, or None if nothing of it is left."
    if output["output_type"] == "stream":
        text = "".join(output["text"])
        if output["name"] == "stderr":
            text = WARNING.sub("", text)
        text = clean_text(text)
        return {**output, "text": text.splitlines(keepends=True)} if text.strip() else None
    if "data" in output:
        data = {kind: v if kind.startswith("image/png") else _clean(v) for kind, v in output["data"].items()}
        return {**output, "data": data}
    if output["output_type"] == "error":
        return {**output, "traceback": _clean(output["traceback"])}
    return output


def clean_notebook(notebook):
    "Clean the outputs of a notebook, in place; True if something changed."
    changed = False
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            hidden = "#| output: false" in "".join(cell["source"])  # the site does not show it either
            outputs = [] if hidden else [o for o in map(clean_output, cell["outputs"]) if o is not None]
            changed, cell["outputs"] = changed or outputs != cell["outputs"], outputs
    return changed


def notebooks():
    return [p for p in sorted(NBS.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts and "_site" not in p.parts]


def main():
    for path in notebooks():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if clean_notebook(notebook):
            text = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False)
            path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
