"""The Keras half alone: nothing of the older Keras is imported, a missing TensorFlow is named.

`test_saving.py` uses it where PyTorch and JAX are missing.
"""

from __future__ import annotations

import ast
from pathlib import Path

from tests.keras.alone import run_alone

SOURCE = Path(__file__).parents[2] / "src" / "longspan"


def test_a_missing_tensorflow_gives_one_line_that_names_the_extra(tmp_path):
    message = "TFBertForTokenClassification needs TensorFlow, which is not installed: pip install 'longspan[keras]'"
    assert run_alone(tmp_path, "tensorflow") == message


def test_the_older_keras_is_nowhere():
    for path in SOURCE.rglob("*.py"):
        text = path.read_text()
        assert "TF_USE_LEGACY_KERAS" not in text, path
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.partition(".")[0] == "tf_keras" for name in names), path
