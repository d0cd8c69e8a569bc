"""`longspan doctor` tells what is there and what is missing, also where nothing works."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import longspan
from longspan import machine
from longspan.cli.main import app
from longspan.cli.running import run

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def test_everything_is_there(capsys):
    assert run(app, ["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["longspan"] == longspan.__version__
    assert set(found["extras"]) == set(machine.EXTRAS)
    assert found["frameworks"]["torch"]["devices"][0] == "cpu"
    assert found["frameworks"]["keras"]["backend"] == "tensorflow"
    assert "cpu" in found["frameworks"]["flax"]["devices"][0].lower()
    assert found["instructions"].startswith(("default", "avx", "neon", "sve"))
    assert found["missing"] == {}


def test_what_is_missing_comes_with_its_command(monkeypatch, capsys):
    versions = {"torch": "2.9.0"}
    monkeypatch.setattr(machine, "installed", versions.get)
    monkeypatch.setattr(machine, "ask_framework", lambda extra: {"error": "ImportError: libcudart.so.12"})
    assert run(app, ["doctor"]) == 1
    told = capsys.readouterr().out
    assert "torch (models in PyTorch): torch 2.9.0; error ImportError: libcudart.so.12" in told
    assert "flax (models in Flax (JAX)): jax missing, flax missing, optax missing" in told
    for extra in set(machine.EXTRAS) - {"torch"}:
        assert f"missing: pip install 'longspan[{extra}]'" in told
    assert "instructions" not in told


def test_a_framework_that_cannot_start_is_an_error_and_no_crash(monkeypatch):
    monkeypatch.setitem(machine.DEVICES, "torch", "raise RuntimeError('broken build')")
    assert machine.ask_framework("torch") == {"error": "RuntimeError: broken build"}


def test_extras_are_those_of_the_project():
    extras = set(PROJECT["optional-dependencies"]) - {"test", "ecosystem", "lint", "docs", "bench"}
    assert set(machine.EXTRAS) == extras
    assert machine.packages_of("flax").keys() == {"jax", "flax", "optax", "orbax-checkpoint"}


def test_version(capsys):
    assert run(app, ["--version"]) == 0
    assert capsys.readouterr().out == f"longspan {PROJECT['version']}\n"
