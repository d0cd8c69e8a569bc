"""One fuzz target for each reader: `python -m tests.hardening.fuzz READER [ARGUMENTS OF LIBFUZZER]`.

With atheris (https://github.com/google/atheris, needed for nothing else) mutants are chosen by the code that they
reach, until one makes a reader fail; without it, a fixed number of seeded mutants is read. A reader may refuse a file
by a `LongspanError` or name what it left out; anything else that is raised is a fault.
"""

from __future__ import annotations

import contextlib
import gzip
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

try:
    import atheris

    traced = atheris.instrument_imports(include=["longspan"])
except ModuleNotFoundError:
    atheris, traced = None, contextlib.nullcontext()

with traced:
    from tests.hardening import test_mutated_checkpoints as checkpoints
    from tests.hardening.mutations import Subject, mutants

    from longspan import AutoTokenizer, BertConfig, GenerationConfig
    from longspan.documents.document import Problem
    from longspan.documents.readers import ReadOptions, read_documents
    from longspan.documents.walk import Filters, find_files
    from longspan.errors import InputError, LongspanError

Read = Callable[[Path], object]
#: kind of a document -> a sound one; PDF and Parquet files are parsed by pypdf and pyarrow in a process of their own
DOCUMENTS = {
    "txt": "a\r\nnaïve — line\x0c日本\n".encode(),
    "txt.gz": gzip.compress(b"a line\nanother line\n" * 9, mtime=0),
    "html": b"<!doctype html><meta charset=utf-8><title>t</title><p>a &amp; b<!-- c --><script>d</script><a href='e'>f",
    "csv": b'text,n\r\n"a ""quoted"", one",1\r\nb;c,2\r\n',
    "jsonl": b'{"text": "a\\u00e9", "n": [1, 2.5e3, null]}\n\n{"text": "b"}\n',
}


def read_all(path: Path) -> None:
    """Read every document of a file; what is left out with a reason counts as refused."""
    for source in find_files([path], Filters(tables=True)).files:
        for found in read_documents(source, ReadOptions()):
            if isinstance(found, Problem):
                raise InputError(found.reason)


def target(name: str, folder: Path) -> tuple[Path, Read]:
    """The sound file of a reader, written to a folder, and what reads it."""
    if name in checkpoints.FORMATS:
        return checkpoints.FORMATS[name][0](folder), lambda path: checkpoints.load(path.parent)
    if name in DOCUMENTS:
        path = folder / f"document.{name}"
        path.write_bytes(DOCUMENTS[name])
        return path, read_all
    if name == "tokenizer.json":
        checkpoints.bert_tokenizer(folder)
        return folder / name, lambda path: AutoTokenizer.from_pretrained(path.parent)
    settings = {"config.json": BertConfig, "generation_config.json": GenerationConfig}[name]
    settings().save_pretrained(folder)
    return folder / name, lambda path: settings.from_pretrained(path.parent)


READERS = (*checkpoints.FORMATS, *DOCUMENTS, "tokenizer.json", "config.json", "generation_config.json")


def make_step(path: Path, read: Read) -> Callable[[bytes], bool]:
    """A function that has some content read, and says whether it was taken."""

    def step(content: bytes) -> bool:
        path.write_bytes(content)
        try:
            read(path)
        except LongspanError:
            return False
        return True

    return step


def run_seeded(name: str, folder: Path, count: int) -> int:
    """Read `count` mutants of a sound file; gives how many of them were taken."""
    path, read = target(name, folder)
    content = path.read_bytes()
    step = make_step(path, read)
    assert step(content), "the sound file"
    subject = Subject(name, path, content, read, ((0, len(content)),))
    return sum(step(mutant) for _, mutant in mutants(subject, count, seed=5))


def main(name: str, *arguments: str) -> None:
    """Fuzz a reader until a fault is found or libFuzzer's limits are reached."""
    with tempfile.TemporaryDirectory() as name_of_folder:
        folder = Path(name_of_folder)
        if atheris is None:
            print(f"{name}: {run_seeded(name, folder, 2000)} of 2000 mutants were taken, the others refused")
            return
        path, read = target(name, folder)
        step = make_step(path, read)
        (corpus := folder / "corpus").mkdir()
        (corpus / "sound").write_bytes(path.read_bytes())
        atheris.Setup([sys.argv[0], *arguments, str(corpus)], lambda content: step(content) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
