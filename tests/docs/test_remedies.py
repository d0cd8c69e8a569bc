"""Each error that the library raises leads to its section of the page on troubleshooting."""

from __future__ import annotations

import ast
import json
import pickle
import re
import traceback
from pathlib import Path

import pytest
from tests.docs.test_examples import BLOCK

from longspan.checkpoints.report import LoadError, LoadReport
from longspan.cli.main import app
from longspan.cli.running import run
from longspan.errors import CheckpointNotFoundError, InputError
from longspan.remedies import find_remedy, remedies

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "10-troubleshooting.md"
#: those that Python's protocols ask for, of subclasses that lack a method, and those that a caller turns into others
OTHERS = {"NotImplementedError", "KeyError", "AttributeError", "StopIteration", "StopAsyncIteration", "TypeError",
          "ValueError", "Exit", "BadParameter", "_StoppedError"}  # fmt: skip
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "src").rglob("*.py"))}


def name_of(node):
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def own_classes():
    """Class of longspan's errors -> it and its bases."""
    bases = {node.name: [name_of(base) for base in node.bases]
             for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}  # fmt: skip

    def line(name):
        above = (base for base in bases.get(name, []) if base != name)  # keras.optimizers.AdamW is of another module
        return [name, *(up for base in above for up in line(base))]

    return {name: tuple(line(name)) for name in bases if "LongspanError" in line(name)}


def message_of(node):
    """The text of a message, with `{}` for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) else "{}"


def test_every_error_has_a_section():
    classes, topics = own_classes(), []
    assert {"InputError", "ConfigError", "LoadError", "UnreadableError", "IndexFileError"} <= set(classes)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and name_of(node.func) in classes and node.args:
                found = find_remedy(message_of(node.args[0]), classes[name_of(node.func)])
                assert found is not None, f"{path}:{node.lineno}"
                topics.append(found.topic)
    assert len(topics) > 600
    assert topics.count("inputerror") < len(topics) / 5, "most have a section of their own kind"
    assert set(topics) >= {remedy.topic for remedy in remedies() if not remedy.patterns}


def test_nothing_else_is_raised():
    classes = own_classes()
    raised = {
        (path.name, name_of(node.exc.func if isinstance(node.exc, ast.Call) else node.exc))
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and node.exc is not None
    }
    named = {(file, name) for file, name in raised if name.lstrip("_")[:1].isupper()}
    assert not {(file, name) for file, name in named if name not in classes and name not in OTHERS}


def test_table_and_page_say_the_same():
    text = BLOCK.sub("", PAGE.read_text(encoding="utf-8"))
    found = re.split(r"^## (.*)$", text, flags=re.M)
    sections = {heading: " ".join(body.split()) for heading, body in zip(found[1::2], found[2::2], strict=True)}
    assert sections == {remedy.heading: remedy.advice for remedy in remedies()}


@pytest.mark.parametrize("error", [
    InputError("input_ids must lie in [0, vocab_size=50). Received: 50 at position (0, 1)"),
    CheckpointNotFoundError("models/x is neither a local directory nor in the hub cache"),
    LoadError("The checkpoint does not fit the model", report=LoadReport()),
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_a_traceback_names_the_section(error):
    for one in (error, pickle.loads(pickle.dumps(error))):
        *_, note = traceback.format_exception(one)
        assert note == f"(what to do: longspan doctor --error {one.topic})\n"
        assert str(one) == error.args[0]
    error.add_note("of a caller")
    assert traceback.format_exception(error)[-1] == "of a caller\n"


@pytest.mark.parametrize("text", [
    "input_ids-must-lie-in",
    "input_ids must lie in [0, vocab_size=50). Received: 50 at position (0, 1)",
    "Traceback ...\nlongspan.errors.InputError: input_ids must lie in [0, vocab_size=50). Received: 50",
])  # fmt: skip
def test_doctor_says_what_to_do(text, capsys):
    assert run(app, ["doctor", "--error", text]) == 0
    told = capsys.readouterr().out
    assert told.startswith("input_ids must lie in\n\nThe tokenizer is not the model's")
    assert told.endswith("10-troubleshooting.md#input_ids-must-lie-in\n")
    assert run(app, ["doctor", "--error", text, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["topic"] == "input_ids-must-lie-in"


def test_what_was_received_tells_nothing():
    assert find_remedy("top_k must be at least 1. Received: 'cache'", ("InputError",)).topic == "inputerror"
    assert find_remedy("models/.cache/hub/model.bin is damaged", ("CheckpointError",)).topic == "checkpointerror"
    assert find_remedy("something else") is None


def test_an_unknown_error_and_the_command_line(capsys):
    assert run(app, ["doctor", "--error", "out of cheese"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(
        "error: --error takes what an error said, or its topic. Received: 'out of cheese', none of which-"
    )
    assert err.endswith("(what to do: longspan doctor --error inputerror)\n")
    assert run(app, ["doctor", "--error", "out of cheese", "--json"]) == 1
    assert json.loads(capsys.readouterr().err)["error"]["topic"] == "inputerror"
