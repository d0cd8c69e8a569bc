"""Kills saves and conversions at every file operation, and says what each left. Run by test_save_kills.py.

`python -m tests.hardening.save_kills_worker DIRECTORY JOBS`: for each `JOB=EVERY` prints the job, "killed" or "whole",
and the generation found after each kill, at every EVERY-th operation.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tests.tiny_encoder import make_sentence_model

from longspan import AutoTokenizer, BertTokenizer, SentenceEncoder
from longspan.checkpoints.convert import convert
from longspan.checkpoints.files import open_checkpoint, save_checkpoint
from longspan.checkpoints.hub import Source
from longspan.to_long import lengthen_checkpoint

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir", "os.scandir"}


def source(root: Path, generation: int) -> Path:
    """A checkpoint of a generation, which its values, names and configuration tell."""
    directory = root / f"source{generation}"
    tensors = {f"w{i}": np.full((3, 50), generation, np.float32) for i in range(2 + generation)}
    told = json.dumps({"generation": generation}).encode()
    save_checkpoint(directory, tensors, files={"config.json": told, "1_Pooling/config.json": told})
    return directory


def converted(root: Path, target: Path, generation: int) -> None:
    convert(root / f"source{generation}", target, overwrite=True, max_shard_size=700)


def told_by_pooling(target: Path) -> int:
    """The generation that the file in a folder is of."""
    generation: int = json.loads(Source(target).require("1_Pooling/config.json").read_bytes())["generation"]
    return generation


def sentence_model(root: Path, generation: int) -> Path:
    """A sentence model whose weights and pooling tell its generation."""
    origin = root / f"sentences{generation}"
    if not origin.exists():
        make_sentence_model(origin)
        pooling = origin / "1_Pooling" / "config.json"
        pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"generation": generation}))
        with open_checkpoint(origin) as reader:
            tensors = {key: reader.read(key) for key in reader}
        tensors["embeddings.LayerNorm.bias"][:] = generation
        save_checkpoint(origin, tensors)
    return origin


def lengthened(root: Path, target: Path, generation: int) -> None:
    lengthen_checkpoint(sentence_model(root, generation), target, max_length=64, attention_window=8)


def encoder_saved(root: Path, target: Path, generation: int) -> None:
    encoder = SentenceEncoder(sentence_model(root, generation))
    encoder.prompts = {"query": str(generation)}
    encoder.save_pretrained(target)


def told_by_bias(target: Path) -> int:
    """The generation that the weights are of."""
    with open_checkpoint(target) as reader:
        [key] = (key for key in reader if key.endswith("embeddings.LayerNorm.bias"))
        return int(reader.read(key)[0])


def found_longformer(target: Path) -> int:
    assert told_by_bias(target) == told_by_pooling(target)
    return told_by_bias(target)


def found_encoder(target: Path) -> int:
    generation = told_by_bias(target)
    assert SentenceEncoder(target).prompts == {"query": str(generation)}
    return generation


def found_weights(target: Path) -> int:
    """The generation of a whole checkpoint."""
    generation: int = json.loads(Source(target).require("config.json").read_bytes())["generation"]
    assert generation == told_by_pooling(target)
    with open_checkpoint(target) as reader:
        assert sorted(reader) == sorted(f"w{i}" for i in range(2 + generation))
        assert all((reader.read(key) == generation).all() for key in reader)
    return generation


def tokenizer_saved(root: Path, target: Path, generation: int) -> None:
    vocabulary = root / f"vocab{generation}.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", f"word{generation}"]))
    BertTokenizer(vocab_file=vocabulary, model_max_length=100 + generation).save_pretrained(target)


def found_tokenizer(target: Path) -> int:
    tokenizer = AutoTokenizer.from_pretrained(target)
    generation = tokenizer.model_max_length - 100
    assert f"word{generation}" in tokenizer.get_vocab()
    return generation


JOBS: dict[str, tuple[Callable[[Path, Path, int], None], Callable[[Path], int]]] = {
    "convert": (converted, found_weights),
    "tokenizer": (tokenizer_saved, found_tokenizer),
    "lengthen": (lengthened, found_longformer),
    "encoder": (encoder_saved, found_encoder),
}


def kill_job(root: Path, job: str, every: int) -> None:
    """Kill the job at one operation after the other until it comes through."""
    root.mkdir()
    act, found = JOBS[job]
    target = root / "target"
    for generation in (1, 2):
        source(root, generation)
        act(root, root / "first", generation)  # makes what is made once
    step = 1
    while True:
        act(root, target, 1)
        assert found(target) == 1
        process = os.fork()
        if not process:
            counted = [0]

            def hook(event: str, arguments: object, counted: list[int] = counted, step: int = step) -> None:
                if event in EVENTS:
                    counted[0] += 1
                    if counted[0] == step:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            act(root, target, 2)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        killed = os.WIFSIGNALED(status)
        assert killed or os.WEXITSTATUS(status) == 0
        print(job, "killed" if killed else "whole", found(target), flush=True)
        if not killed:
            return
        step += every


if __name__ == "__main__":
    os.fsync = lambda descriptor: None  # a killed process loses nothing that it wrote; only a power cut would
    for name, _, number in (word.partition("=") for word in sys.argv[2:]):
        kill_job(Path(sys.argv[1], name), name, int(number))
