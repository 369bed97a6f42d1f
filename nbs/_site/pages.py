"""Make the pages of the documentation, as a hook of mkdocs: `make site` calls it through mkdocs.yml.

Each notebook becomes a page with its stored outputs (nothing is executed), each wing a page of its API. The navigation
follows the folders of `nbs/`, in the order of `.importlinter`.
"""

import ast
import configparser
import html
import logging
import re
from pathlib import Path

import nbformat
from latex2mathml.converter import convert as mathml
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

NBS = Path(__file__).resolve().parent.parent
REPO = NBS.parent
log = logging.getLogger("mkdocs.hooks")
DIRECTIVE = re.compile(r"^\s*#\s*\|\s*(\w+)(.*)\n?", re.M)  # of nbdev, such as `#| export`
TEMPLATE = """
{%- extends "markdown/index.md.j2" -%}
{%- block input %}
````python
{{ cell.source }}
````
{% endblock input -%}
{%- block stream %}
````{.text .output}
{{ output.text | strip_ansi }}
````
{% endblock stream -%}
{%- block data_text scoped %}
````{.text .output}
{{ output.data["text/plain"] | strip_ansi }}
````
{% endblock data_text -%}
{%- block data_html scoped %}
<div class="output">{{ output.data["text/html"] | plain_html }}</div>
{% endblock data_html -%}
{%- block data_png %}
![What the cell above draws]({{ output.metadata.filenames["image/png"] }})
{% endblock data_png -%}
{%- block data_jpg %}
![What the cell above draws]({{ output.metadata.filenames["image/jpeg"] }})
{% endblock data_jpg -%}
"""


def plain_html(source):
    "HTML that a cell shows, without pandas' own look and without blank lines."
    source = re.sub(r"<style scoped>.*?</style>", "", "".join(source), flags=re.S)
    source = re.sub(r'<table border="1" class="dataframe">', "<table>", source)
    return re.sub(r"\n\s*", "\n", source).strip()


EXPORTER = MarkdownExporter(raw_template=TEMPLATE, filters={"plain_html": plain_html})
EXPORTER.register_preprocessor(CoalesceStreamsPreprocessor(), enabled=True)


def without_directives(nb):
    "The notebook as a reader wants it: no hidden cells, no lines that only nbdev reads."
    cells = []
    for cell in nb.cells:
        found = dict(DIRECTIVE.findall(cell.source)) if cell.cell_type == "code" else {}
        cell.source = DIRECTIVE.sub("", cell.source).strip() if found else cell.source.strip()
        if cell.cell_type == "raw" or "hide" in found or not cell.source:
            continue
        if found.get("output", "").strip(": ") == "false":
            cell.outputs = []
        cells.append(cell)
    nb.cells = cells
    return nb


def module_of(nb):
    "What the notebook exports, such as 'audio.io'; None for a notebook that exports nothing."
    names = [re.search(r"^#\|\s*default_exp\s+(\S+)", c.source, re.M) for c in nb.cells if c.cell_type == "code"]
    return next((m[1] for m in names if m), None)


def flow(match):
    "A mermaid flowchart that is one chain, as a list: mermaid itself would be fetched from another host."
    lines = match[1].strip().splitlines()
    steps = re.findall(r'\w+\["(.*?)"\]', match[1])
    if lines[0] != "flowchart LR" or len(lines) != 2 or match[1].count("-->") != len(steps) - 1:
        raise ValueError("the site can only draw a mermaid flowchart that is one chain from left to right, on one line")
    return '<ol class="flow">' + "".join(f"<li>{step}</li>" for step in steps) + "</ol>"


def documented_names():
    "Public functions and classes with a docstring, by name: where the API has them. Names that occur twice are left out."
    places = {}
    for path in sorted((REPO / "audiotag").rglob("*.py")):
        module = ".".join(path.relative_to(REPO).with_suffix("").parts)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            patched = any("patch" in ast.unparse(d) for d in node.decorator_list)
            if ast.get_docstring(node) and not patched:
                places.setdefault(node.name, []).append(f"{module}.{node.name}")
    return {name: found[0] for name, found in places.items() if len(found) == 1}


def with_links(markdown, names):
    "Prose in which `read_audio` and `LogMel` are links to the API; plain words such as `sound` stay as they are."

    def link(match):
        place = names.get(match[1])
        return f"[{match[0]}][{place}]" if place and re.search("[A-Z_]", match[1]) else match[0]

    parts = re.split(r"(^```.*?^```|^#.*?$)", markdown, flags=re.M | re.S)  # code and headings stay as they are
    parts[::2] = [re.sub(r"(?<![\[`])`(\w+)`(?![\]`])", link, part) for part in parts[::2]]
    return "".join(parts)


class Page:
    "One notebook: where its page lies, its title, and the module that it exports."

    def __init__(self, path, titles):
        self.nb = nbformat.read(path, as_version=4)
        self.source = path.relative_to(REPO)
        self.module = module_of(self.nb)
        self.name = re.sub(r"^\d+_", "", path.stem)
        self.src = path.relative_to(NBS).with_name(self.name + ".md").as_posix()
        first = next(c.source for c in self.nb.cells if c.cell_type == "markdown")
        self.title = titles.get(self.module) or first.splitlines()[0].removeprefix("# ")
        if self.title == self.module:
            self.title = self.name.replace("_", " ").capitalize()

    def files(self, config, names):
        "The page as Markdown, and its pictures."
        nb = without_directives(self.nb)
        for cell in nb.cells:
            if cell.cell_type == "markdown":
                cell.source = with_links(cell.source, names)
        text, resources = EXPORTER.from_notebook_node(nb, {"unique_key": self.name})
        text = re.sub(r"```mermaid\n(.*?)```", flow, text, flags=re.S)
        if self.module:
            where = f"[`audiotag.{self.module}`](api.md#audiotag.{self.module}) · `{self.source}`\n{{ .where }}"
            text = re.sub(r"\A\s*# .*\n+((?:> .*\n)+)", lambda m: f"# {self.title}\n\n{m[1]}\n{where}\n", text)
        yield File.generated(config, self.src, content=text)
        for name, data in resources["outputs"].items():
            yield File.generated(config, str(Path(self.src).with_name(name)), content=data)

    def api(self):
        "What the package's docstrings say about the module, in Markdown for mkdocstrings."
        head = f"## {self.module} {{ #audiotag.{self.module} }}"
        return f"{head}\n\nLesson: [{self.title}]({self.name}.md)\n{{ .where }}\n\n::: audiotag.{self.module}\n"


def docstring_of(wing):
    return ast.get_docstring(ast.parse((REPO / "audiotag" / wing / "__init__.py").read_text(encoding="utf-8")))


def sections():
    "Name, notebooks, and (name, introduction) of the API page of each part of the navigation, in its order."
    yield "Tutorials", sorted((NBS / "tutorials").glob("[a-z]*.ipynb")), None
    yield "Competition notebooks", sorted((NBS / "kaggle").glob("[a-z]*.ipynb"), reverse=True), None
    parser = configparser.ConfigParser()
    parser.read(REPO / ".importlinter")
    for wing in reversed(parser["importlinter:contract:wings"]["layers"].split()):
        if lessons := sorted((NBS / wing).glob("[0-9]*.ipynb")):
            yield wing.capitalize(), lessons, (f"API of {wing}", docstring_of(wing))
    api = ("API of the command line", "The functions behind the commands.")
    yield "Command line", sorted(NBS.glob("[0-9]*.ipynb")), api


def on_files(files, config):
    "Add a page for each notebook and each wing, and the navigation."
    titles, names = config.extra["titles"], documented_names()
    index = Page(NBS / "index.ipynb", {})
    pages = [index]
    config.nav = [{"Overview": index.src}]
    for section, paths, api in sections():
        lessons = [Page(path, titles) for path in paths]
        pages += lessons
        entries = [{page.title: page.src} for page in lessons]
        if api:
            title, about = api
            src = str(Path(lessons[0].src).with_name("api.md"))
            content = "\n\n".join([f"# {title}", about, *(page.api() for page in lessons)])
            files.append(File.generated(config, src, content=content))
            entries.append({title: src})
        config.nav.append({section: entries})
    for page in pages:
        for file in page.files(config, names):
            files.append(file)
    for picture in sorted((NBS / "pictures").glob("*.png")):
        files.append(File.generated(config, f"pictures/{picture.name}", content=picture.read_bytes()))
    if unknown := set(titles) - {page.module for page in pages}:
        log.warning("mkdocs.yml has titles of modules that do not exist: %s", ", ".join(sorted(unknown)))
    return files


def on_page_content(content, **kwargs):
    "Formulas as MathML, which browsers draw themselves."

    def formula(match):
        display = "block" if match[1] == "div" else "inline"
        return mathml(html.unescape(match[2]).strip(), display=display)

    return re.sub(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', formula, content, flags=re.S)
