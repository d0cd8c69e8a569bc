"""Readers of a tokenizer's files. A damaged file raises `CheckpointError`, which names it and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tokenizers import Tokenizer

from longspan.checkpoints.untrusted import read_json
from longspan.errors import CheckpointError, LongspanError


@contextmanager
def library_errors(rule: str) -> Iterator[None]:
    """Turn what the `tokenizers` library raises on damaged data into `CheckpointError`.

    It raises bare `Exception`, and where it does not check, a panic, which is a `BaseException`.

    Args:
        rule: What the data must be.
    """
    try:
        yield
    except (LongspanError, OSError):
        raise
    except Exception as error:
        raise CheckpointError(f"{rule}. Received: {str(error)[:300]}") from None
    except BaseException as error:
        if not is_panic(error):
            raise
        raise CheckpointError(f"{rule}. Received: data on which the tokenizers library gives up ({error})") from None


def is_panic(error: BaseException) -> bool:
    """True if `error` is an aborted computation of the `tokenizers` library."""
    return type(error).__name__ == "PanicException"


def read_text(path: Path) -> str:
    r"""The file's text, line ends as `\n`."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"{path} must be UTF-8 text. Received: byte {error.start} is not ({error.reason})"
        ) from None


def read_tokenizer_file(path: Path) -> Tokenizer:
    """The `tokenizers` object that a `tokenizer.json` holds."""
    text = read_text(path)
    with library_errors(f"{path} must be a file of the tokenizers library"):
        return Tokenizer.from_str(text)


def read_wordpiece(path: Path) -> dict[str, int]:
    """Ids of the tokens of a `vocab.txt`, one token a line."""
    lines = read_text(path).split("\n")
    if lines[-1] == "":
        lines.pop()
    if not lines:
        raise CheckpointError(f"{path} must hold one token a line. Received: an empty file")
    return {token: index for index, token in enumerate(lines)}


def read_bpe(vocab_path: Path, merges_path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids of the tokens of a `vocab.json`, and the pairs of a `merges.txt` in order."""
    vocab = read_json(vocab_path)
    for token, index in vocab.items():
        if not isinstance(index, int) or isinstance(index, bool) or index < 0:
            raise CheckpointError(f"{vocab_path} must give each token an id. Received: {token!r}: {index!r}")
    merges = []
    for number, line in enumerate(read_text(merges_path).split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2:
            raise CheckpointError(f"{merges_path} must hold two tokens a line. Received: line {number}: {line!r}")
        merges.append((parts[0], parts[1]))
    return vocab, merges
