"""Read docments (comments behind parameters, returns and fields) as their descriptions, and `@patch` functions as methods.

An extension of griffe, which reads the package without importing it.
"""

import ast
import io
import re
import tokenize

from griffe import (
    Docstring,
    DocstringParameter,
    DocstringReturn,
    DocstringSectionParameters,
    DocstringSectionReturns,
    Extension,
)


def comments(source):
    "The comments of Python source by line: those behind code, those alone on their line, and the code of each line."
    behind, alone, code = {}, {}, dict(enumerate(source.splitlines(), start=1))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, column = token.start
            code[line] = code[line][:column].rstrip()
            (behind if code[line] else alone)[line] = token.string.lstrip("#").strip()
    return behind, alone, code


class Docments(Extension):
    "Descriptions of parameters, returns and fields from comments, in the style of fastcore's docments."

    def __init__(self):
        self.read = {}  # path of a module → `comments` of it

    def comments_of(self, module):
        if module.filepath not in self.read:
            self.read[module.filepath] = comments(module.filepath.read_text(encoding="utf-8"))
        return self.read[module.filepath]

    def describe(self, module, first, last):
        "The comment behind line `last`, after those that stand alone above line `first`."
        behind, alone, _ = self.comments_of(module)
        above = []
        while first - 1 in alone:
            first -= 1
            above.insert(0, alone[first])
        return " ".join([*above, *filter(None, [behind.get(last)])])

    def on_attribute_instance(self, *, node, attr, **kwargs):
        if attr.docstring or not isinstance(node, (ast.Assign, ast.AnnAssign)):
            return
        text = self.describe(attr.module, node.lineno, node.end_lineno)
        if attr.annotation is not None and attr.parent.is_class:  # a field of a dataclass: a parameter of its class
            attr.extra["docments"]["description"] = text
        elif text and not (attr.parent.is_module and text.startswith("%%")):
            attr.docstring = Docstring(text, parent=attr)

    def on_function_instance(self, *, node, func, **kwargs):
        self.add_tables(node, func)
        patch = next((d for d in node.decorator_list if "patch" in ast.unparse(d).split("(")[0]), None)
        owner = func.parent.members.get(ast.unparse(node.args.args[0].annotation or node)) if patch else None
        if owner is not None and owner.is_class:
            func.parent.del_member(func.name)
            owner.set_member(func.name, func)
            func.decorators.clear()
            if "as_prop=True" in ast.unparse(patch):
                func.labels.add("property")

    def add_tables(self, node, func):
        "Parameters and return value below the docstring of a function."
        *_, code = self.comments_of(func.module)
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        given += filter(None, [node.args.vararg, node.args.kwarg])
        defaults = [*node.args.defaults, *filter(None, node.args.kw_defaults)]
        ends = [x.end_lineno for x in [*given, *defaults]]
        header = max([node.lineno, *ends, *([node.returns.end_lineno] if node.returns else [])])
        while not code[header].endswith(":"):
            header += 1
        described = {}
        for arg in given:
            lines = [arg.end_lineno, *(d.end_lineno for d in defaults if d.lineno == arg.end_lineno)]
            own_line = sum(other.lineno == arg.lineno for other in given) == 1
            if max(lines) < header and (own_line or arg is [o for o in given if o.lineno == arg.lineno][-1]):
                described[arg.arg] = self.describe(func.module, arg.lineno, max(lines))
        returned = self.comments_of(func.module)[0].get(header)
        if func.docstring:
            self.add_parameters(func, func.parameters, described)
            if returned:
                row = DocstringReturn(name="", description=returned, annotation=func.returns)
                func.docstring.parsed.append(DocstringSectionReturns([row]))

    def add_parameters(self, documented, parameters, described):
        "A table of parameters below a docstring, if at least one of them is described."
        rows = [
            DocstringParameter(
                name=re.sub(r"^\**", "", p.name),
                description=described.get(p.name.lstrip("*"), ""),
                annotation=p.annotation,
                value=None if p.default is None else str(p.default),
            )
            for p in parameters
            if p.name not in ("self", "cls")
        ]
        if any(row.description for row in rows):
            documented.docstring.parsed.append(DocstringSectionParameters(rows))

    def on_package(self, *, pkg, **kwargs):
        "Fields become parameters of their dataclass, its bases' first: griffe's own extension has made `__init__` by now."
        for module in modules_of(pkg):
            for cls in module.classes.values():
                if cls.is_alias or "__init__" not in cls.members or not cls.docstring:
                    continue
                described = {}
                for base in [*reversed(cls.mro()), cls]:
                    fields = (m for m in base.members.values() if not m.is_alias and m.is_attribute)
                    described |= {m.name: m.extra["docments"].get("description", "") for m in fields}
                if cls.members["__init__"].lineno == 0:  # made, not written
                    self.add_parameters(cls, cls.members["__init__"].parameters, described)


def modules_of(package):
    yield package
    for module in package.modules.values():
        if not module.is_alias:
            yield from modules_of(module)
