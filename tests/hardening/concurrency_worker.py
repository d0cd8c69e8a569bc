"""Uses models, a tokenizer, a pipeline and an encoder from many threads and processes: `FRAMEWORK FOLDER CALLS`.

Prints a line of JSON: how many calls ran, how many of them equalled the serial run, and by how many bytes memory grew.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import json
import multiprocessing
import os
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
from tests.lean import leave_out
from tests.pipelines.memory_worker import WORDS, status

import longspan

LENGTHS = (9, 40, 3, 17)
THREADS = 8
#: seconds without any work of the processor after which a deadlock is taken for granted; time alone says nothing, for
#: eight processes that compile take minutes where other programs run beside
PATIENCE = 120


def ids_of(length):
    """Ids (2, S) and their mask, the second row padded at the right."""
    ids = np.random.default_rng(length).integers(3, 50, (2, length)).astype(np.int32)
    mask = np.ones_like(ids)
    mask[1, length - length // 3 :] = 0
    return ids, mask


def torch_calls():
    """Name -> (inference, gradients) of small models of every family, each a function of ids and mask."""
    import torch
    from tests.hardening.numeric_matrix import FAMILIES, make_model

    def calls_of(model):
        model.eval()
        weights = list(model.parameters())

        def infer(ids, mask):
            with torch.no_grad():
                states = model(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask)).last_hidden_state
            return [states.numpy()]

        def differentiate(ids, mask):
            states = model(torch.from_numpy(ids).long(), attention_mask=torch.from_numpy(mask)).last_hidden_state
            # not `backward`, which adds up in one place what all threads find
            found = torch.autograd.grad(states.square().mean(), weights, allow_unused=True)
            return [gradient.numpy() for gradient in found if gradient is not None]

        return infer, differentiate

    models = {name: make_model(name, FAMILIES[name][3][0]) for name in FAMILIES}
    return models, {name: calls_of(model) for name, model in models.items()}


def flax_calls():
    """The same of BERT and LongT5 in Flax; gradients are one compiled program for each length."""
    import jax
    import jax.numpy as jnp
    from tests.hardening.numeric_matrix import LONGT5, SIZES

    def calls_of(model):
        def loss(params, ids, mask):
            return jnp.square(model(ids, mask, params=params).last_hidden_state).mean()

        program = jax.jit(jax.grad(loss))

        def infer(ids, mask):
            return [np.asarray(model(ids, mask).last_hidden_state)]

        def differentiate(ids, mask):
            return [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(program(model.params, ids, mask))]

        return infer, differentiate

    models = {
        "bert": longspan.FlaxBertModel(longspan.BertConfig(**SIZES)),
        "longt5": longspan.FlaxLongT5EncoderModel(longspan.LongT5Config(**LONGT5)),
    }
    return models, {name: calls_of(model) for name, model in models.items()}


def keras_calls():
    """The same of BERT in Keras."""
    leave_out()
    from tests.keras.setting import import_keras, make

    import_keras()
    import tensorflow as tf

    model = make("TFBertModel", max_position_embeddings=64)

    def infer(ids, mask):
        return [np.asarray(model({"input_ids": ids, "attention_mask": mask}).last_hidden_state)]

    def differentiate(ids, mask):
        with tf.GradientTape() as tape:
            states = model({"input_ids": ids, "attention_mask": mask}).last_hidden_state
            loss = tf.reduce_mean(tf.square(states))
        found = tape.gradient(loss, model.trainable_weights)
        return [np.asarray(tf.convert_to_tensor(gradient)) for gradient in found if gradient is not None]

    return {"bert": model}, {"bert": (infer, differentiate)}


CALLS = {"torch": torch_calls, "flax": flax_calls, "keras": keras_calls}


def numbers(found):
    """The numbers of a pipeline's answer."""
    return np.array([entry["score"] for answer in found for entry in answer], np.float32)


def make_calls(framework, folder, lengths, differentiated):
    """(models, functions without arguments that return arrays): each kind of call at each length.

    Gradients are taken at the lengths `differentiated`.
    """
    models, of_models = CALLS[framework]()
    tokenizer = longspan.AutoTokenizer.from_pretrained(folder / "task")
    task = longspan.pipeline("text-classification", folder / "task", framework=framework)
    encoder = longspan.SentenceEncoder(folder / "encoder", framework=framework)
    calls = []
    for length in lengths:
        text = " ".join(random.Random(length).choices(WORDS, k=length))
        texts = [text, text[: len(text) // 2]]
        inputs = ids_of(length)
        for pair in of_models.values():
            kinds = pair if length in differentiated else pair[:1]
            calls += [lambda run=run, inputs=inputs: run(*inputs) for run in kinds]
        calls += [
            lambda texts=texts, length=length: [
                np.array(tokenizer(texts, padding=True, truncation=True, max_length=length).input_ids)
            ],
            lambda texts=texts: [numbers(task(texts, top_k=None))],
            lambda texts=texts: [np.asarray(encoder.encode(texts))],
        ]
    return models, calls


def agree(found, expected):
    """Whether all arrays are equal, up to the rounding of sums in another order."""
    return len(found) == len(expected) and all(
        mine.shape == theirs.shape and np.allclose(mine, theirs, rtol=0, atol=1e-5)
        for mine, theirs in zip(found, expected, strict=True)
    )


def start(*arguments):
    """In a process of its own: calls that it makes itself."""
    global calls
    _, calls = make_calls(*arguments)


def call(index):
    """Run one of the calls of this process."""
    return calls[index]()


def in_processes(context, count, orders, **arguments):
    """The results of the calls in `count` processes."""
    with multiprocessing.get_context(context).Pool(count, **arguments) as pool:
        return pool.map(call, orders, chunksize=1)


def seconds_of(process):
    """What the processor has worked for a process, 0 if it ended."""
    try:
        return sum(process.cpu_times()[:2])
    except psutil.NoSuchProcess:
        return 0.0


def watch_for_deadlocks():
    """End this process, with what every thread does, once neither it nor its children have worked for a while.

    Who started it ends the children: a pool replaces those that are killed.
    """
    this = psutil.Process()
    worked, idle = 0.0, 0
    while idle < PATIENCE:
        # if even this thread cannot run, for the interpreter's lock is part of it
        faulthandler.dump_traceback_later(3 * PATIENCE)
        time.sleep(5)
        now = sum(seconds_of(process) for process in (this, *this.children(recursive=True)))
        # this thread itself takes less. Its own waits are counted, not the clock, which goes on while a machine stands
        idle = 0 if abs(now - worked) > 0.25 else idle + 5
        worked = now
    faulthandler.dump_traceback()
    os._exit(1)


def memory_in_use():
    """Resident memory in bytes, without what is freed and kept: that is more where threads run at the same time."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return status("VmRSS")


def main(framework, folder, count):
    """Run everything, and say what came of it."""
    global calls
    is_long = count >= 2000
    # the others compile for each length, gradients above all
    lengths, differentiated = (LENGTHS, LENGTHS) if is_long or framework == "torch" else (LENGTHS[:2], LENGTHS[:1])
    models, calls = make_calls(framework, folder, lengths, differentiated)
    serial = [one() for one in calls]
    ran = held = 0

    def check(orders, results):
        nonlocal ran, held
        ran += len(orders)
        held += sum(agree(found, serial[index]) for index, found in zip(orders, results, strict=True))

    def in_threads(orders, work=call):
        native_ids = []
        with ThreadPoolExecutor(THREADS, initializer=lambda: native_ids.append(threading.get_native_id())) as pool:
            check(orders, list(pool.map(work, orders)))
        # a process that is forked while one gives back what MKL kept for it would wait for MKL's lock for ever
        while any(Path(f"/proc/self/task/{each}").exists() for each in native_ids):
            time.sleep(0)

    draw = random.Random(1)
    in_threads(draw.choices(range(len(calls)), k=count // 4))  # every thread has what it keeps
    before = memory_in_use()
    in_threads(draw.choices(range(len(calls)), k=count))
    grown = memory_in_use() - before
    orders = draw.choices(range(len(calls)), k=max(48, count // 8))
    if framework == "torch":
        with contextlib.ExitStack() as stack:
            for model in models.values():
                stack.enter_context(longspan.prepacked_weights(model))
            in_threads(orders)

        def enter_and_call(index):
            with longspan.prepacked_weights(draw.choice(list(models.values()))):
                return call(index)

        in_threads(orders, enter_and_call)
        check(orders, in_processes("fork", THREADS, orders))  # JAX and TensorFlow do not survive a fork
    if framework == "torch" or is_long:
        own = {"initializer": start, "initargs": (framework, folder, lengths, differentiated)}
        check(orders, in_processes("spawn", THREADS if is_long else 1, orders, **own))
    print(json.dumps({"cases": ran, "held": held, "grown": grown}))


if __name__ == "__main__":
    threading.Thread(target=watch_for_deadlocks, daemon=True).start()
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
