"""Importing longspan is quick, imports no framework, and a missing framework is named."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import longspan

FRAMEWORKS = ["torch", "jax", "flax", "keras", "tensorflow"]
STUB = Path(longspan.__file__).with_suffix(".pyi")


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def public_names() -> dict[str, str]:
    """Public name -> module that holds it, read from the stub."""
    names = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"longspan.{node.module}" for alias in node.names}
    return names


def test_import_takes_under_300_ms_and_loads_no_framework():
    heavy = [*FRAMEWORKS, "numpy", "tokenizers"]
    code = (
        "import json, sys, time; start = time.perf_counter(); import longspan; seconds = time.perf_counter() - start\n"
        f"print(json.dumps([seconds, [name for name in {heavy} if name in sys.modules]]))"
    )
    runs = [json.loads(run(code)) for _ in range(3)]
    assert min(seconds for seconds, _ in runs) < 0.3
    assert all(loaded == [] for _, loaded in runs)


def test_facts_load_no_framework():
    modules = ["longspan.configuration", "longspan.auto", "longspan.models.bert.config", "longspan.models.bert.names"]
    code = f"import sys, {', '.join(modules)}; print([n for n in {FRAMEWORKS} if n in sys.modules])"
    assert run(code) == "[]"


@pytest.mark.parametrize(
    ("name", "blocked", "others"),
    [
        ("BertModel", "torch", ["jax", "keras"]),
        ("FlaxBertModel", "jax", ["torch", "keras"]),
        ("TFBertModel", "keras", ["torch"]),
    ],
)
def test_a_missing_framework_gives_one_line_that_names_the_extra(name, blocked, others):
    label, extra = {"torch": ("PyTorch", "torch"), "jax": ("JAX", "flax"), "keras": ("Keras", "keras")}[blocked]
    code = (
        "import sys\n"
        f"for name in {[blocked, *others]}: sys.modules[name] = None\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {[blocked, *others]}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        f"for name in {[blocked, *others]}: del sys.modules[name]\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "import longspan\n"
        "try:\n"
        f"    longspan.{name}\n"
        "except longspan.errors.MissingFrameworkError as error:\n"
        "    assert isinstance(error, ImportError)\n"
        "    print(error)\n"
    )
    code = code.replace("import longspan\n", "import longspan, longspan.errors\n", 1)
    assert run(code) == f"{name} needs {label}, which is not installed: pip install 'longspan[{extra}]'"


def test_every_public_name_is_in_the_stub_and_loads():
    names = public_names()
    assert set(longspan.__all__) == set(names)
    for name, module in names.items():
        value = getattr(longspan, name)
        assert getattr(value, "__module__", module).startswith("longspan"), name
        assert name in dir(longspan)


def test_unknown_names_raise_attribute_error():
    with pytest.raises(AttributeError, match="NoSuchModel"):
        _ = longspan.NoSuchModel


def test_a_model_loads_without_the_compiler_and_what_other_tasks_use(minilm_dir):
    heavy = ["torch._dynamo", "torch._inductor", "sympy", "pyarrow", "transformers", "jax", "keras", "pypdf"]
    code = (
        "import json, sys\nfrom longspan.embeddings.search_index import search_index\n"
        "from longspan.embeddings.sentence_encoder import SentenceEncoder\n"
        f"SentenceEncoder({str(minilm_dir)!r}).encode_query(['rotate the logs'])\n"
        f"print(json.dumps([name for name in {heavy} if name in sys.modules]))"
    )
    assert json.loads(run(code)) == []
