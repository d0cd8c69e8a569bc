"""The source calls nothing that runs what a file says: read from the syntax tree of every module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import longspan

SOURCES = sorted(Path(longspan.__file__).parent.rglob("*.py"))
BUILTINS = {"eval", "exec", "compile", "__import__"}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml", "xmlrpc", "imp"}
#: calls of modules, by their dotted names
CALLS = {"os.system", "os.popen", "torch.load", "torch.jit.load", "pandas.read_pickle", "jsonpickle.decode"}


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression, or "" if it is no such path."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def findings(tree: ast.Module) -> list[str]:
    """What in a module runs, or may run, text or bytes from outside."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES:
            found.append(str(node.module))
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            keywords = {keyword.arg: keyword.value for keyword in node.keywords}
            if name in BUILTINS or name in CALLS:
                found.append(name)
            for keyword in ("shell", "allow_pickle"):
                value = keywords.get(keyword)
                if isinstance(value, ast.Constant) and value.value is True:
                    found.append(f"{name}({keyword}=True)")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_runs_what_a_file_says(path):
    assert findings(ast.parse(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("eval(x)", ["eval"]),
        ("import pickle", ["pickle"]),
        ("from yaml import load", ["yaml"]),
        ("os.system(x)", ["os.system"]),
        ("subprocess.run(x, shell=True)", ["subprocess.run(shell=True)"]),
        ("numpy.load(x, allow_pickle=True)", ["numpy.load(allow_pickle=True)"]),
        ("torch.load(x)", ["torch.load"]),
        ("model.eval()", []),
        ("re.compile(x)", []),
    ],
)
def test_the_search_finds_what_it_is_for(text, found):
    assert findings(ast.parse(text)) == found
