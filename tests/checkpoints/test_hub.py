"""Names resolve as `huggingface_hub` does, without a network."""

import os
import pickle
import re
import socket
import time

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from longspan.checkpoints import hub
from longspan.checkpoints.files import open_checkpoint, save_checkpoint
from longspan.checkpoints.hub import Source
from longspan.errors import CheckpointNotFoundError, UnsafeCheckpointError

FIRST, SECOND = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache as `huggingface_hub` lays it out, two commits of one repository; the network is forbidden."""
    folder = tmp_path / "hub" / "models--owner--name"
    for commit, value in ((FIRST, 1.0), (SECOND, 2.0)):
        save_checkpoint(folder / "new", {"x": np.full(2, value)}, files={"config.json": commit.encode()})
        snapshot = folder / "snapshots" / commit
        snapshot.mkdir(parents=True)
        (folder / "blobs").mkdir(exist_ok=True)
        for path in (folder / "new").iterdir():
            blob = folder / "blobs" / f"{commit}-{path.name}"
            path.rename(blob)
            (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(SECOND)
    (folder / "refs" / "v1").write_text(FIRST)

    def no_network(*arguments, **keywords):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "create_connection", no_network)
    return folder.parent


@pytest.fixture
def unreachable(monkeypatch):
    """A network on which the hub does not answer; returns the list of attempts."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    attempts = []

    def refuse(address, timeout):
        attempts.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "create_connection", refuse)
    return attempts


@pytest.fixture
def online(monkeypatch):
    """Let the probe succeed and put a function in place of `hf_hub_download`; returns the calls it got."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    calls = []

    class Connection:
        def close(self):
            pass

    monkeypatch.setattr(socket, "create_connection", lambda address, timeout: Connection())

    def install(answer):
        def download(name, filename, **keywords):
            calls.append((filename, keywords))
            return answer(filename, keywords)

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
        return calls

    return install


def hub_error(kind):
    """An error of `huggingface_hub`, which wants a response."""
    import requests

    response = requests.Response()
    response.status_code = 404
    return kind("gone", response=response)


def test_local_directory(tmp_path):
    (tmp_path / "config.json").touch()
    source = Source(tmp_path)
    assert source.is_local
    assert source.find("config.json") == tmp_path / "config.json"
    assert source.find("vocab.txt") is None
    with pytest.raises(CheckpointNotFoundError, match=rf"{re.escape(str(tmp_path))} has no file 'vocab.txt'\.(\n|$)"):
        source.require("vocab.txt")


def test_subfolder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "config.json").touch()
    assert Source(tmp_path, subfolder="sub").find("config.json") == tmp_path / "sub" / "config.json"
    assert Source(tmp_path).find("sub/config.json") == tmp_path / "sub" / "config.json"


@pytest.mark.parametrize("filename", ["../config.json", "/etc/passwd", "a/../../b"])
def test_file_outside(tmp_path, filename):
    message = f"may only name files inside its own directory. Received: {re.escape(repr(filename))}"
    with pytest.raises(UnsafeCheckpointError, match=message):
        Source(tmp_path).find(filename)
    with pytest.raises(UnsafeCheckpointError, match="may only name files inside"):
        Source(tmp_path, subfolder="..").find("config.json")


def test_file_in_place_of_a_directory(tmp_path):
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(
        CheckpointNotFoundError, match="is named by its directory. Received a file: .*model.safetensors"
    ):
        Source(path).find("config.json")


@pytest.mark.parametrize(("revision", "commit"), [(None, SECOND), ("main", SECOND), ("v1", FIRST), (FIRST, FIRST)])
def test_cached_repository(cache, revision, commit):
    source = Source("owner/name", revision=revision, cache_dir=cache, local_files_only=True)
    assert source.require("config.json").read_text() == commit
    with open_checkpoint(source) as reader:
        assert reader.read("x").tolist() == [1 + (commit == SECOND)] * 2


def test_offline_mode_of_the_environment(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = Source("owner/name", cache_dir=cache)
    assert source.is_offline
    assert source.require("config.json").read_text() == SECOND


def test_cache_of_the_environment(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    assert Source("owner/name", local_files_only=True).require("config.json").read_text() == SECOND


def test_cached_repository_without_the_file(cache):
    source = Source("owner/name", cache_dir=cache, local_files_only=True)
    assert source.find("vocab.txt") is None
    with pytest.raises(
        CheckpointNotFoundError, match=r"has no file 'vocab.txt' in the hub cache, and the hub was not asked"
    ):
        source.require("vocab.txt")


def test_cached_repository_without_weights(cache):
    for path in cache.glob("*/snapshots/*/model.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"weights in one of the files .* Received: owner/name"):
        open_checkpoint(Source("owner/name", cache_dir=cache, local_files_only=True))


@pytest.mark.parametrize(("name", "revision"), [("owner/other", None), ("owner/name", "v9"), ("owner/name", "c" * 40)])
def test_not_in_the_cache(cache, name, revision):
    at = f" at revision '{revision}'" if revision else ""
    message = (
        f"'{name}' is neither a local directory nor in the hub cache{at}, and the hub was not asked, "
        "because of local_files_only=True or HF_HUB_OFFLINE=1"
    )
    with pytest.raises(CheckpointNotFoundError, match=message):
        Source(name, revision=revision, cache_dir=cache, local_files_only=True).find("config.json")


@pytest.mark.parametrize("name", ["./no/such/dir", "/no/such/dir", "a/b/c"])
def test_path_that_does_not_exist(unreachable, name):
    with pytest.raises(CheckpointNotFoundError, match="is neither a local directory nor a repository on the hub"):
        Source(name).find("config.json")


def test_unreachable_hub_is_told_at_once(unreachable, tmp_path):
    begin = time.monotonic()
    source = Source("owner/name", cache_dir=tmp_path)
    message = (
        "'owner/name' is neither a local directory nor in the hub cache, and the hub cannot be reached: "
        "https://huggingface.co: .*Connection refused"
    )
    for _ in range(3):
        with pytest.raises(CheckpointNotFoundError, match=message):
            source.find("config.json")
    assert time.monotonic() - begin < 2
    assert unreachable == [("huggingface.co", 443)]


def test_unreachable_hub_leaves_the_cache(cache, unreachable):
    source = Source("owner/name", cache_dir=cache)
    assert source.require("config.json").read_text() == SECOND
    assert source.find("vocab.txt") is None
    assert len(unreachable) == 1


def test_probe_goes_to_the_proxy(unreachable, tmp_path, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    with pytest.raises(CheckpointNotFoundError, match="cannot be reached"):
        Source("owner/name", cache_dir=tmp_path).find("config.json")
    monkeypatch.setenv("no_proxy", "huggingface.co")
    with pytest.raises(CheckpointNotFoundError, match="cannot be reached"):
        Source("owner/name", cache_dir=tmp_path).find("config.json")
    assert unreachable == [("proxy.example", 3128), ("huggingface.co", 443)]


@pytest.mark.parametrize(
    ("url", "address"),
    [("http://mirror.example", ("mirror.example", 80)), ("https://x.example:8443/hf", ("x.example", 8443))],
)
def test_probe_goes_to_the_endpoint(unreachable, tmp_path, monkeypatch, url, address):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    with pytest.raises(CheckpointNotFoundError, match=f"cannot be reached: {url}"):
        Source("owner/name", cache_dir=tmp_path).find("config.json")
    assert unreachable == [address]


def test_force_download_needs_the_hub(cache):
    source = Source("owner/name", cache_dir=cache, local_files_only=True, force_download=True)
    with pytest.raises(CheckpointNotFoundError, match="cannot be downloaded again as force_download=True asks"):
        source.find("config.json")


def test_all_files_come_from_the_commit_of_the_first(cache, online):
    """`main` moves while a sharded checkpoint is downloaded."""

    def answer(filename, keywords):
        return str(cache / "models--owner--name" / "snapshots" / (keywords["revision"] or SECOND) / filename)

    calls = online(answer)
    source = Source("owner/name", cache_dir=cache)
    source.find("config.json")
    source.find("model.safetensors")
    assert [(filename, keywords["revision"]) for filename, keywords in calls] == [
        ("config.json", None),
        ("model.safetensors", SECOND),
    ]


def test_files_known_to_be_absent_are_not_asked_for_again(cache, online):
    folder = cache / "models--owner--name"
    calls = online(lambda filename, keywords: str(folder / "snapshots" / SECOND / filename))
    (folder / ".no_exist" / SECOND).mkdir(parents=True)
    (folder / ".no_exist" / SECOND / "model.safetensors.index.json").touch()
    source = Source("owner/name", cache_dir=cache)
    source.find("config.json")
    assert source.find("model.safetensors.index.json") is None
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            RepositoryNotFoundError,
            r"is neither a local directory nor a repository on the hub \(a private one needs token=\)",
        ),
        (GatedRepoError, "asks for its terms to be accepted on the hub, and for token="),
        (RevisionNotFoundError, "has no revision 'v9' on the hub"),
    ],
)
def test_answers_of_the_hub(cache, online, kind, message):
    def answer(filename, keywords):
        raise hub_error(kind)

    online(answer)
    with pytest.raises(CheckpointNotFoundError, match=f"^'owner/name' {message}"):
        Source("owner/name", revision="v9", cache_dir=cache).find("config.json")


def test_repository_without_the_file(cache, online):
    def answer(filename, keywords):
        raise hub_error(EntryNotFoundError)

    online(answer)
    source = Source("owner/name", cache_dir=cache)
    assert source.find("vocab.txt") is None
    with pytest.raises(CheckpointNotFoundError, match=r"^owner/name has no file 'vocab.txt'\.(\n|$)"):
        source.require("vocab.txt")


def test_other_failures_of_a_download(cache, online):
    def answer(filename, keywords):
        raise OSError(28, "No space left on device")

    online(answer)
    with pytest.raises(CheckpointNotFoundError, match="'owner/name' cannot be fetched from the hub: .*No space left"):
        Source("owner/name", cache_dir=cache).find("config.json")


def test_arguments_reach_the_hub(cache, online):
    calls = online(
        lambda filename, keywords: str(cache / "models--owner--name" / "snapshots" / FIRST / "sub" / filename)
    )
    Source("owner/name", "v1", "sub", cache, force_download=True, token="secret").find("config.json")
    assert calls == [
        (
            "sub/config.json",
            {
                "revision": "v1",
                "cache_dir": str(cache),
                "local_files_only": False,
                "force_download": True,
                "token": "secret",
            },
        )
    ]


def test_source_is_a_value(tmp_path):
    first, second = Source(tmp_path), Source(tmp_path)
    assert first == second
    assert hash(first) == hash(second)
    assert pickle.loads(pickle.dumps(first)) == first
    assert "learnt" not in repr(first)
    assert hub._commit_of("/c/snapshots/abc/deep/config.json", "deep/config.json") == "abc"
