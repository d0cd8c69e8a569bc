"""The docstring example: its data and its score against small cases, and a run of a few steps."""

from __future__ import annotations

import ast
import json
import sys

import pytest

from examples import docstrings_longt5 as example

SOURCE = '''
@cached
def readLines(path, max_bytes=None):
    """Read the lines of a text file.

    More about it.
    """
    return open(path).read(max_bytes).split("\\n")  # a comment
'''


def parsed(source):
    return example.read_function("package", ast.parse(source).body[0])


def test_a_function_is_read():
    function = parsed(SOURCE)
    assert function.summary == "Read the lines of a text file"
    assert function.source.startswith("def readLines(path, max_bytes=None):\n    return open(path)")
    assert "text file" not in function.source
    assert "comment" not in function.source
    assert example.as_source(function).startswith("read lines : def read lines(path, max bytes=none): return")


@pytest.mark.parametrize("summary", ["Too short.", "word " * 17, "Uses `marks` of markup here.", "Größe einer Datei."])
def test_functions_that_say_nothing_are_left_out(summary):
    assert parsed(SOURCE.replace("Read the lines of a text file.", summary)) is None


def test_a_body_of_a_docstring_only_is_left_out():
    assert parsed('def f():\n    """Read the lines of a file."""\n') is None


@pytest.mark.parametrize(
    ("candidate", "reference", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("cat the", "the cat", 0.5),
        ("read_lines(path)", "Read the lines of a file", 2 * 2 / (3 + 6)),
        ("police killed the gunman", "police kill the gunman", 0.75),
        ("the gunman kill police", "police kill the gunman", 0.5),
        ("", "something", 0.0),
    ],
)
def test_rouge_l(candidate, reference, expected):
    """The last two but one are the examples of Lin (2004)."""
    assert example.rouge_l(candidate, reference) == pytest.approx(expected)


@pytest.fixture
def few_packages(monkeypatch):
    """Some small packages of the Python library, of which two are held out."""
    found = example.packages()
    assert len(found) > 100
    assert not any("test" in part for files in found.values() for path in files for part in path.parts[-2:])
    names = ("plistlib", "gettext", "email", "http", "argparse", "shutil", "inspect", "difflib")
    monkeypatch.setattr(example, "packages", lambda: {name: found[name] for name in names})


def test_packages_are_apart_and_nothing_occurs_twice(few_packages):
    known, held_out = example.collect(1000, 60)
    assert {function.package for function in held_out} == {"plistlib", "gettext"}
    assert not {function.package for function in known} & {"plistlib", "gettext"}
    assert len(known) > 100
    texts = [example.plain(function.summary) for function in known + held_out]
    assert len(set(texts)) == len(texts)
    assert len(example.collect(20, 60)[0]) == 20


def test_a_few_steps_learn(few_packages, tmp_path, monkeypatch, capsys):
    output = tmp_path / "results.json"
    words = [
        "docstrings_longt5",
        "--steps",
        "6",
        "--batch",
        "8",
        "--width",
        "32",
        "--vocabulary",
        "400",
        "--beams",
        "2",
    ]
    monkeypatch.setattr(sys, "argv", [*words, "--output", str(output)])
    example.main()
    results = json.loads(output.read_text())
    assert results["steps"] == 6
    assert results["loss"] < 8
    assert results["held_out_packages"] == ["gettext", "plistlib"]
    assert 0 <= results["rouge_l"] < 30
    assert 5 < results["rouge_l_first_line"] < 40
    assert 5 < results["rouge_l_name"] < 40
    assert results["samples"][0].keys() == {"package", "function", "docstring", "written"}
    assert "functions to learn from" in capsys.readouterr().out
