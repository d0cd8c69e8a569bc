"""Choosing implementations."""

from __future__ import annotations

import logging

import pytest

from longspan.errors import InputError
from longspan.ops import dispatch


def odd(n):
    return "n must be even" if n % 2 else None


def no(n):
    return None


@pytest.fixture
def dispatcher():
    return dispatch.Dispatcher("toys", {"fast": odd, "slow": no})


def test_auto_takes_the_first_that_serves_and_says_so_once(dispatcher, caplog, monkeypatch):
    monkeypatch.setattr(dispatch, "_announced", set())
    with caplog.at_level(logging.INFO, logger="longspan"), dispatch.recording() as ran:
        assert [dispatcher.choose("auto", n) for n in (2, 4, 3)] == ["fast", "fast", "slow"]
    assert ran == ["fast", "fast", "slow"]
    assert [record.message for record in caplog.records] == [
        "toys runs attn_implementation='fast'",
        "toys runs attn_implementation='slow'",
    ]


def test_an_explicit_name_serves_or_raises(dispatcher):
    assert dispatcher.choose("slow", 2) == "slow"
    with pytest.raises(InputError, match="attn_implementation='fast' cannot serve this call of toys: n must be even"):
        dispatcher.choose("fast", 3)
    with pytest.raises(InputError, match="must be one of auto, fast, slow for toys. Received: 'flash'"):
        dispatcher.choose("flash", 2)


def test_a_name_of_the_reference_that_cannot_serve_is_a_choice_with_one_warning(caplog, monkeypatch):
    monkeypatch.setattr(dispatch, "_announced", set())
    dispatcher = dispatch.Dispatcher(
        "toys", {"fast": lambda n: None if n == 4 else "n is not 4", "sdpa": odd, "eager": no}
    )
    with caplog.at_level(logging.WARNING, logger="longspan"), dispatch.recording() as ran:
        assert [dispatcher.choose("sdpa", n) for n in (2, 3, 4, 5)] == ["sdpa", "eager", "sdpa", "eager"]
    assert ran == ["sdpa", "eager", "sdpa", "eager"]
    assert [record.message for record in caplog.records] == [
        "attn_implementation='sdpa' cannot serve this call of toys: n must be even; 'eager' serves it"
    ]


def test_recording_nests_and_ends(dispatcher):
    with dispatch.recording() as outer:
        with dispatch.recording() as inner:
            dispatcher.choose("slow", 1)
        dispatcher.choose("fast", 2)
    dispatcher.choose("slow", 1)
    assert (outer, inner) == (["slow", "fast"], ["slow"])
