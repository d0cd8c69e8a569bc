"""Saves checkpoints in forked children that are killed, and looks at what each left. Run by test_update.py.

`kill_worker.py DIRECTORY steps`: kill at every file operation of a save, one after the other.
`kill_worker.py DIRECTORY moments N`: kill N children at random moments.

Prints one line per kill: how the child ended, the generation found, the generations allowed.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from longspan.checkpoints.files import open_checkpoint, save_checkpoint
from longspan.checkpoints.hub import Source

SIZE = 400


def save(directory, generation):
    """Generations differ in config, values, names and number of tensors, and in shards."""
    tensors = {f"w{i}": np.full((generation % 3 + 1, SIZE), generation, np.float32) for i in range(2 + generation % 4)}
    config = json.dumps({"generation": generation, "keys": len(tensors)}).encode()
    files = {"config.json": config, "generation_config.json": config}
    save_checkpoint(directory, tensors, files=files, max_shard_size="5GB" if generation % 2 else 4 * SIZE * 3)


def found(directory):
    """The generation that the directory holds; fails unless every part of it is whole and of that generation."""
    config = json.loads(Source(directory).require("config.json").read_text())
    assert config == json.loads(Source(directory).require("generation_config.json").read_text())
    generation = config["generation"]
    with open_checkpoint(directory) as reader:
        assert sorted(reader.keys()) == [f"w{i}" for i in range(config["keys"])]
        for key in reader:
            value = reader.read(key)
            assert value.shape == (generation % 3 + 1, SIZE)
            assert (value == generation).all(), (key, value)
    assert Source(directory).find("pytorch_model.bin") is None
    return generation


def child(action):
    """Run `action` in a fork; returns (process id)."""
    process = os.fork()
    if not process:
        action()
        os._exit(0)
    return process


def kill_at_every_step(directory):
    os.fsync = lambda descriptor: None  # a killed process loses nothing that it wrote; only a power cut would
    events = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir", "os.scandir"}
    generation = 1
    save(directory, generation)
    for old in (generation, generation + 1, generation + 2):
        step = 0
        while True:
            step += 1
            count = [0]

            def hook(event, arguments, count=count, step=step):
                if event in events:
                    count[0] += 1
                    if count[0] == step:
                        os.kill(os.getpid(), signal.SIGKILL)

            def action(hook=hook, old=old):
                sys.addaudithook(hook)
                save(directory, old + 1)

            _, status = os.waitpid(child(action), 0)
            killed = os.WIFSIGNALED(status)
            assert killed or os.WEXITSTATUS(status) == 0
            print("killed" if killed else "whole", found(directory), old, old + 1)
            if not killed:
                break
            save(directory, old)
            assert found(directory) == old
            left = sorted(path.name for path in directory.iterdir())
            assert not any(name.startswith(".longspan") for name in left), left


def kill_at_random_moments(directory, times):
    generation = 1
    save(directory, generation)
    rng = random.Random(5)
    for _ in range(times):
        first = generation + 1

        def action(first=first):
            for new in range(first, first + 1000):
                save(directory, new)

        process = child(action)
        time.sleep(rng.uniform(0.002, 0.12))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        old, generation = generation, found(directory)
        print("killed", generation, old, first + 999)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if sys.argv[2] == "steps":
        kill_at_every_step(target)
    else:
        kill_at_random_moments(target, int(sys.argv[3]))
