from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from longspan.documents.walk import Filters, display_name, find_files
from longspan.errors import InputError


def names(root: Path, *paths: str, **filters: object) -> list[str]:
    found = find_files([root / path for path in paths] or [root], Filters(**filters))
    return [os.path.relpath(file.path, root) for file in found.files]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in [
        "b.txt",
        "a.md",
        "z/c.py",
        "z/.hidden.py",
        ".git/config.txt",
        "z/y/d.rst",
        "pic.png",
        "__pycache__/a.py",
    ]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path


def test_sorted_without_hidden_and_unknown_files(tree: Path):
    assert names(tree) == ["a.md", "b.txt", "z/c.py", "z/y/d.rst"]
    assert find_files([tree]).ignored == {".png": 1}


def test_named_files_are_taken_whatever_they_are_called(tree: Path):
    assert names(tree, "pic.png", ".git", "z/.hidden.py") == ["pic.png", ".git/config.txt", "z/.hidden.py"]


def test_a_file_reached_twice_is_taken_once(tree: Path):
    assert names(tree, "z/c.py", "z", "z/../z/c.py", ".") == ["z/c.py", "z/y/d.rst", "a.md", "b.txt"]


def test_patterns(tree: Path):
    assert names(tree, include=("*.png", "z/*")) == ["pic.png", "z/c.py", "z/y/d.rst"]
    assert names(tree, exclude=("z",)) == ["a.md", "b.txt"]
    assert names(tree, exclude=("z/y/*", "*.txt")) == ["a.md", "z/c.py"]
    assert names(tree, skip=frozenset({str(tree / "z"), str(tree / "a.md")})) == ["b.txt"]


def test_links(tree: Path, tmp_path: Path):
    (tree / "z" / "loop").symlink_to(tree)
    (tree / "link.txt").symlink_to("b.txt")
    (tree / "self.txt").symlink_to("self.txt")
    found = find_files([tree])
    assert [file.path.name for file in found.files] == ["a.md", "b.txt", "link.txt", "c.py", "d.rst"]
    assert [(Path(p.path).name, p.reason) for p in found.problems] == [("self.txt", "link to nothing")]
    assert len(names(tree, follow_links=True)) == 5


def test_linked_folders_are_entered_when_asked(tmp_path: Path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("a")
    (tmp_path / "top").mkdir()
    (tmp_path / "top" / "link").symlink_to(tmp_path / "real")
    assert names(tmp_path / "top") == []
    assert names(tmp_path / "top", follow_links=True) == ["link/a.txt"]
    assert names(tmp_path, "top/link") == ["top/link/a.txt"]


def test_folders_that_cannot_be_listed_are_reported(tree: Path, monkeypatch: pytest.MonkeyPatch):
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "y":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    (problem,) = find_files([tree]).problems
    assert problem.reason == "folder cannot be listed: Permission denied"


def test_names_that_are_no_utf8(tmp_path: Path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(path)).write_text("a")
    (file,) = find_files([tmp_path]).files
    assert file.name.endswith("caf\\xe9.txt")
    assert display_name(file.path) == file.name


def test_deep_folders(tmp_path: Path):
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(1050):
            os.mkdir("d", dir_fd=here)
            inner = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = inner
        assert find_files([tmp_path]).files == []
    finally:  # deeper than pytest can remove
        os.close(here)
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_bad_paths(tmp_path: Path):
    with pytest.raises(InputError, match="At least one file or folder must be given. Received: none"):
        find_files([])
    with pytest.raises(InputError, match="Each path must exist. Received: .*nowhere"):
        find_files([tmp_path / "nowhere"])
