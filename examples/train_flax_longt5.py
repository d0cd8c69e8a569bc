"""Fine-tune LongT5 in Flax on real text, on all devices of a machine, with checkpoints that resume bit for bit.

The task is LongT5's own: a span of a document is cut out, and the model writes it. The text is the documentation of
Python's standard library, which every Python has.

    python examples/train_flax_longt5.py --output run --steps 200
    python examples/train_flax_longt5.py --output run --steps 400        # goes on from step 200

The batch is divided among the devices, and parameters are on all of them: `jax.jit` inserts what they exchange. Batches
follow from the seed and the number of the step alone, so that a run that was stopped and resumed makes the very steps
that it would have made. optax does the optimisation, and orbax writes the checkpoints.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from longspan import FlaxLongT5ForConditionalGeneration, LongT5Config
from longspan.nn.flax.losses import cross_entropy

#: modules of the standard library with much to read
MODULES = (
    "argparse asyncio.events collections configparser csv dataclasses datetime decimal difflib doctest email.message "
    "fractions functools gettext heapq http.client inspect ipaddress json logging mailbox optparse os pathlib pickle "
    "plistlib pprint random re shutil smtplib socket sqlite3 ssl statistics string subprocess tarfile tempfile "
    "textwrap threading tokenize traceback turtle unittest.case urllib.request uuid warnings zipfile"
)
#: ids of bytes begin here, behind padding, the end, and the mark of what was cut out
PAD, END, MARK, FIRST = 0, 1, 2, 3


def documents() -> Iterator[str]:
    """The documentation of every module: its own, and that of its classes and functions."""
    for name in MODULES.split():
        module = importlib.import_module(name)
        parts = [inspect.getdoc(module) or ""]
        for title, item in sorted(vars(module).items()):
            if inspect.isclass(item) or inspect.isroutine(item):
                parts.append(f"{title}\n{inspect.getdoc(item) or ''}")
        yield "\n\n".join(parts)


def batch_of(text: np.ndarray, *, rows: int, length: int, span: int, seed: int) -> dict[str, np.ndarray]:
    """Rows of the text with a span cut out of each, and the spans.

    Args:
        text: Ids of all documents, (N,).
        rows: Number of rows.
        length: Tokens of a row before the cut.
        span: Tokens of a span.
        seed: Makes the batch.
    """
    rng = np.random.default_rng(seed)
    starts, cuts = rng.integers(0, len(text) - length, rows), rng.integers(0, length - span, rows)
    sources, labels = [], []
    for start, cut in zip(starts, cuts, strict=True):
        row = text[start : start + length]
        sources.append(np.concatenate([row[:cut], [MARK], row[cut + span :], [END]]))
        labels.append(np.concatenate([row[cut : cut + span], [END]]))
    return {"input_ids": np.stack(sources).astype(np.int32), "labels": np.stack(labels).astype(np.int32)}


def loss_of(model: FlaxLongT5ForConditionalGeneration, params: Any, batch: Any, key: Any) -> jax.Array:
    """Mean cross-entropy of the spans."""
    targets = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    output = model(batch["input_ids"], None, targets, params=params, train=True, dropout_rng=key)
    return cross_entropy(output.logits, batch["labels"])


def train(arguments: argparse.Namespace) -> list[float]:
    """Train up to a number of steps, from the last checkpoint if there is one; returns the losses."""
    config = LongT5Config(
        vocab_size=FIRST + 256, d_model=arguments.width, d_kv=arguments.width // 4, d_ff=2 * arguments.width,
        num_heads=4, num_layers=arguments.layers, local_radius=63, feed_forward_proj="gated-gelu",
        encoder_attention_type="transient-global", pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=PAD,
    )  # fmt: skip
    model = FlaxLongT5ForConditionalGeneration(config, _do_init=False, gradient_checkpointing=arguments.recompute)
    optimiser = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.warmup_cosine_decay_schedule(0.0, arguments.rate, 20, arguments.schedule)),
    )
    mesh = Mesh(np.array(jax.devices()), ("data",))
    everywhere, by_rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))

    @partial(jax.jit, donate_argnums=0, out_shardings=everywhere)
    def step(state: dict[str, Any], batch: dict[str, jax.Array]) -> tuple[dict[str, Any], jax.Array]:
        key = jax.random.fold_in(jax.random.PRNGKey(arguments.seed), state["step"])
        loss, gradients = jax.value_and_grad(partial(loss_of, model))(state["params"], batch, key)
        updates, optimiser_state = optimiser.update(gradients, state["optimiser"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "optimiser": optimiser_state, "step": state["step"] + 1}, loss

    def start() -> dict[str, Any]:
        params = model.init_weights(jax.random.PRNGKey(arguments.seed))
        return {"params": params, "optimiser": optimiser.init(params), "step": jnp.int32(0)}

    text = np.frombuffer("\n\n".join(documents()).encode(), np.uint8).astype(np.int32) + FIRST
    output, losses = Path(arguments.output).resolve(), []
    with ocp.CheckpointManager(output / "checkpoints", options=ocp.CheckpointManagerOptions(max_to_keep=2)) as saved:
        state = jax.jit(start, out_shardings=everywhere)()
        if saved.latest_step() is not None:
            state = saved.restore(saved.latest_step(), args=ocp.args.StandardRestore(state))
        for number in range(int(state["step"]), arguments.steps):
            batch = batch_of(text, rows=arguments.rows, length=arguments.length, span=arguments.span, seed=number)
            state, loss = step(state, jax.device_put(batch, by_rows))
            losses.append(float(loss))
            if (number + 1) % arguments.every == 0 or number + 1 == arguments.steps:
                saved.save(number + 1, args=ocp.args.StandardSave(state))
                print(json.dumps({"step": number + 1, "loss": losses[-1]}), flush=True)
    model.save_pretrained(output / "model", params=state["params"])
    return losses


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Fine-tune LongT5 in Flax on the documentation of Python's library.")
    parser.add_argument("--output", required=True, help="directory of checkpoints and of the model")
    parser.add_argument("--steps", type=int, default=200, help="number of the last step")
    parser.add_argument("--every", type=int, default=50, help="steps between two checkpoints")
    parser.add_argument("--rows", type=int, default=8, help="rows of a batch, a multiple of the number of devices")
    parser.add_argument("--length", type=int, default=1024, help="bytes of a row")
    parser.add_argument("--span", type=int, default=64, help="bytes of the span that is cut out")
    parser.add_argument("--width", type=int, default=256, help="width of the model")
    parser.add_argument("--layers", type=int, default=4, help="layers of encoder and decoder")
    parser.add_argument("--rate", type=float, default=1e-3, help="greatest learning rate")
    parser.add_argument("--schedule", type=int, default=10_000, help="steps until the learning rate is 0")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights, the batches and the dropout")
    parser.add_argument("--recompute", action="store_true", help="recompute activations in the backward pass")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    train(parse())
