"""One tokenizer, many threads: no call changes another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.tokenization.conftest import Pair
from tests.tokenization.corpus import ENGLISH, TEXTS

from longspan import AutoTokenizer

TEXT_LIST = [ENGLISH * 3, *TEXTS.values()]


def test_concurrent_calls(main_pair: Pair) -> None:
    """Calls with different truncation, padding and reading, at once, return what they return alone."""
    requests: list[dict[str, Any]] = [
        {
            "truncation": length % 3 != 0,
            "max_length": length,
            "stride": length % 4,
            "padding": (False, True, "max_length")[length % 3],
            "padding_side": ("left", "right")[length % 2],
            "split_special_tokens": length % 2 == 0,
            "return_overflowing_tokens": length % 5 == 0,
            "verbose": False,
        }
        for length in range(8, 60)
    ]

    def call(index: int) -> dict[str, Any]:
        return main_pair.ours(TEXT_LIST, **requests[index % len(requests)]).data

    alone = [call(index) for index in range(len(requests))]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(call, range(4 * len(requests))))
    for index, result in enumerate(together):
        assert result == alone[index % len(requests)]
    assert len({str(result["input_ids"]) for result in alone}) > len(requests) // 2, "the requests differ"


def test_no_setting_stays_behind(main_pair: Pair) -> None:
    plain = main_pair.ours(TEXT_LIST, verbose=False).data
    main_pair.ours(TEXT_LIST, truncation=True, max_length=9, stride=2, padding=True, split_special_tokens=True)
    assert main_pair.ours(TEXT_LIST, verbose=False).data == plain


def test_tokens_added_while_others_read(checkpoints: dict[str, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["longt5"])
    before = tokenizer.encode(ENGLISH)

    def read(_: int) -> list[int]:
        return tokenizer.encode(ENGLISH, truncation=True, max_length=400)

    def add(index: int) -> list[int]:
        tokenizer.add_tokens(f"<new {index}>")
        return before

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda job: (add if job % 5 == 0 else read)(job), range(150)))
    assert all(result == before for result in results)


def test_a_backend_changed_from_outside_is_followed(checkpoints: dict[str, Path]) -> None:
    """Whoever takes the `tokenizers` object may change it; its truncation and padding stay without effect."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert_json"])
    assert tokenizer("Hello", truncation=True).input_ids == [101, 7592, 102]
    backend = tokenizer.backend_tokenizer
    backend.normalizer = None
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    assert tokenizer("Hello hello").input_ids == [101, 100, 7592, 102]
    assert tokenizer("Hello hello", truncation=True, max_length=3).input_ids == [101, 100, 102]
    tokenizer.add_tokens("Hello")
    assert tokenizer("Hello hello").input_ids == [101, 30522, 7592, 102]
    assert tokenizer.backend_tokenizer is not backend, "adding tokens makes a new object"


def test_many_lengths(checkpoints: dict[str, Path]) -> None:
    """Each length has a small tokenizer of its own; old ones are dropped."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoints["bert_json"])
    for length in (*range(3, 120), *range(3, 120)):
        assert len(tokenizer(ENGLISH * 5, truncation=True, max_length=length).input_ids) == length
    assert len(tokenizer._backend._variants) <= 32
