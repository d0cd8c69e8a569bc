"""What is installed is pinned: exactly, once, within the ranges of pyproject.toml, dependencies of dependencies too."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from check_package import tree_of

LISTS = [ROOT / "constraints.txt", *sorted((ROOT / "tests" / "ecosystem").glob("*.txt"))]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
GROUPS = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}


def lines_of(path):
    """The requirements of a list, without remarks."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def pins():
    """Name -> version, of the list that every installation is held to."""
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in lines_of(LISTS[0])}


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_each_line_names_one_version(path):
    found = lines_of(path)
    for pin in found:
        operators = [(one.operator, "*" in one.version) for one in pin.specifier]
        assert operators == [("==", False)], f"{pin} is no exact version"
        assert not pin.url
        assert not pin.marker
    names = [canonicalize_name(pin.name) for pin in found]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("group", GROUPS)
def test_what_the_project_asks_for_is_pinned_within_its_range(group):
    for requirement in map(Requirement, GROUPS[group]):
        name = canonicalize_name(requirement.name)
        if name != "longspan":
            assert pins().get(name), f"{name} is not in constraints.txt"
            assert requirement.specifier.contains(pins()[name], prereleases=True), requirement


def test_what_those_ask_for_is_pinned_as_well():
    """The tree of what is installed here, from the metadata on disk."""
    tree = list(tree_of([f"longspan[{','.join(PROJECT['optional-dependencies'])}]"]))
    unpinned = {name: asked for name, asked, found in tree if found and name != "longspan" and name not in pins()}
    assert not unpinned
    assert len(tree) > 100
