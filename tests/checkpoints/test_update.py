"""Several files of a directory change at once, whatever kills the process."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import longspan
from longspan.checkpoints.files import open_checkpoint, save_checkpoint
from longspan.checkpoints.hub import Source
from longspan.checkpoints.update import DirectoryUpdate, recover
from longspan.errors import UnsafeCheckpointError

WORKER = Path(__file__).with_name("kill_worker.py")


def run_worker(directory, *arguments):
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[2])}
    command = [sys.executable, str(WORKER), str(directory), *map(str, arguments)]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(how, int(found), int(low), int(high)) for how, found, low, high in lines]


def test_kill_at_every_file_operation_leaves_the_old_or_the_new(tmp_path):
    """Single file to shards, shards to single file, and back: every step of each is cut off once."""
    results = run_worker(tmp_path, "steps")
    assert [how for how, *_ in results].count("whole") == 3
    assert len(results) > 80
    assert all(found in (old, new) for _, found, old, new in results)
    killed = [found == new for how, found, _, new in results if how == "killed"]
    assert 10 < sum(killed) < len(killed) - 10


def test_kill_at_random_moments_leaves_a_whole_checkpoint(tmp_path):
    results = run_worker(tmp_path, "moments", 40)
    assert len(results) == 40
    assert all(low <= found <= high for _, found, low, high in results)
    assert results[-1][1] > 10


@pytest.fixture
def half_done(tmp_path):
    """A directory whose update was committed and cut off after one of its moves."""
    save_checkpoint(tmp_path, {"x": np.zeros(2)}, files={"config.json": b'{"old": 1}'})
    (tmp_path / "pytorch_model.bin").write_bytes(b"old")
    staging = tmp_path / ".longspan-commit"
    staging.mkdir()
    source = tmp_path / "source"
    save_checkpoint(source, {"x": np.ones(2), "y": np.ones(3)}, max_shard_size=16)
    files = sorted(path.name for path in source.iterdir())
    for name in files:
        (source / name).rename(staging / name)
    source.rmdir()
    (staging / files[0]).rename(tmp_path / files[0])
    (staging / "config.json").write_bytes(b'{"new": 1}')
    manifest = {"files": [*files, "config.json"], "remove": ["model.safetensors", "pytorch_model.bin"]}
    (staging / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def test_readers_see_a_committed_update_as_done(half_done):
    source = Source(half_done)
    assert source.require("config.json").read_bytes() == b'{"new": 1}'
    assert source.find("model.safetensors") is None
    assert source.find("pytorch_model.bin") is None
    with open_checkpoint(source) as reader:
        assert reader.keys() == ["x", "y"]
        assert reader.read("x").tolist() == [1, 1]
    assert (half_done / "model.safetensors").exists()


def test_recover_finishes_it_for_everybody(half_done):
    recover(half_done)
    names = sorted(path.name for path in half_done.iterdir())
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert names == ["config.json", *shards, "model.safetensors.index.json"]
    assert safetensors.numpy.load_file(half_done / shards[1])["y"].tolist() == [1, 1, 1]
    recover(half_done)
    assert sorted(path.name for path in half_done.iterdir()) == names


def test_the_next_update_finishes_it_first(half_done):
    with DirectoryUpdate(half_done) as update:
        assert not (half_done / ".longspan-commit").exists()
        assert (half_done / "config.json").read_bytes() == b'{"new": 1}'
        update.write("config.json", b"{}")
    assert (half_done / "config.json").read_bytes() == b"{}"


def test_a_config_saved_later_is_not_undone_by_it(half_done):
    longspan.BertConfig(vocab_size=77).save_pretrained(half_done)
    recover(half_done)
    assert longspan.BertConfig.from_pretrained(half_done).vocab_size == 77


def test_leftovers_of_killed_updates_are_cleared(tmp_path):
    leftover = tmp_path / ".longspan-new-dead"
    leftover.mkdir()
    (leftover / "model.safetensors").touch()
    with DirectoryUpdate(tmp_path) as update:
        update.write("a", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_commit_folder_without_manifest_is_done(tmp_path):
    (tmp_path / ".longspan-commit").mkdir()
    (tmp_path / "a").touch()
    assert Source(tmp_path).find("a") == tmp_path / "a"
    recover(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_error_inside_leaves_everything_as_it_was(tmp_path):
    (tmp_path / "a").write_text("old")

    def failing_update():
        with DirectoryUpdate(tmp_path) as update:
            update.write("a", b"new")
            update.remove("b")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        failing_update()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_removing_a_file_that_is_written_anew_keeps_the_new_one(tmp_path):
    (tmp_path / "a").write_text("old")
    with DirectoryUpdate(tmp_path) as update:
        update.remove("a")
        update.write("a", b"new")
        update.remove("never there")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new"}


@pytest.mark.parametrize(
    "name",
    ["../x", "/x", "a/../x", "a//b", "a/", "./a", "", "..", ".", "manifest.json", ".longspan-commit", ".longspan-new-1",
     "a/.longspan-commit"],
)  # fmt: skip
def test_names_outside_the_directory(tmp_path, name):
    with DirectoryUpdate(tmp_path) as update:
        for action in (update.path, update.remove):
            with pytest.raises(UnsafeCheckpointError, match="may only name files inside its directory. Received: "):
                action(name)


def test_files_in_folders_change_with_the_others(tmp_path):
    directory = tmp_path / "model"
    with DirectoryUpdate(directory) as update:
        update.write("folder/deep/a", b"1")
        update.write("b", b"1")
    assert Source(directory).require("folder/deep/a").read_bytes() == b"1"
    assert sorted(path.name for path in directory.iterdir()) == ["b", "folder"]
    committed = directory / ".longspan-commit"  # the next one was killed
    (committed / "folder" / "deep").mkdir(parents=True)
    (committed / "folder" / "deep" / "a").write_bytes(b"2")
    (committed / "manifest.json").write_text('{"files": ["folder/deep/a"], "remove": ["b"]}')
    assert Source(directory).require("folder/deep/a").read_bytes() == b"2"
    assert Source(directory, subfolder="folder").find("deep/a") == committed / "folder" / "deep" / "a"
    assert Source(directory).find("b") is None
    recover(directory)
    assert [path.relative_to(directory).as_posix() for path in directory.rglob("*")] == [
        "folder",
        "folder/deep",
        "folder/deep/a",
    ]
    assert (directory / "folder" / "deep" / "a").read_bytes() == b"2"


@pytest.mark.parametrize("part", ["files", "remove"])
def test_no_link_to_a_folder_leads_an_update_outside(tmp_path, part):
    directory, outside = tmp_path / "model", tmp_path / "outside"
    outside.mkdir()
    (outside / "a").write_bytes(b"mine")
    staged = directory / ".longspan-commit" / "link"
    staged.mkdir(parents=True)
    (staged / "a").write_bytes(b"theirs")
    (directory / "link").symlink_to(outside)
    names = {"files": [], "remove": []} | {part: ["link/a"]}
    (staged.parent / "manifest.json").write_text(json.dumps(names))
    with pytest.raises(UnsafeCheckpointError, match="follows no links to folders. Received: 'link/a'"):
        recover(directory)
    assert (outside / "a").read_bytes() == b"mine"


def test_a_failed_update_leaves_no_new_directory(tmp_path):
    def fail():
        with DirectoryUpdate(tmp_path / "new") as update:
            update.write("folder/a", b"1")
            raise OSError("full")

    for existed in (False, True):
        with pytest.raises(OSError, match="full"):
            fail()
        assert (tmp_path / "new").exists() == existed
        (tmp_path / "new").mkdir(exist_ok=True)


@pytest.mark.parametrize(
    "manifest",
    ['{"files": ["../x"], "remove": []}', '{"files": [], "remove": ["/x"]}', "{}", "x", '{"files": 1, "remove": []}'],
)
def test_forged_manifest_is_refused(tmp_path, manifest):
    directory = tmp_path / "model"
    committed = directory / ".longspan-commit"
    committed.mkdir(parents=True)
    (tmp_path / "x").touch()
    (committed / "manifest.json").write_text(manifest)
    message = r"may only name files inside its directory|manifest.json must list plain file names .* Received: "
    for action in (recover, lambda directory: Source(directory).find("config.json")):
        with pytest.raises(UnsafeCheckpointError, match=message):
            action(directory)
    assert (tmp_path / "x").exists()


def test_updates_take_turns(tmp_path):
    order = []
    inside = threading.Event()

    def second():
        inside.wait()
        with DirectoryUpdate(tmp_path) as update:
            order.append("second")
            update.write("a", b"2")

    thread = threading.Thread(target=second)
    thread.start()
    with DirectoryUpdate(tmp_path) as update:
        inside.set()
        thread.join(0.2)
        order.append("first")
        update.write("a", b"1")
    thread.join()
    assert order == ["first", "second"]
    assert (tmp_path / "a").read_bytes() == b"2"
