"""Fine-tuning with optax on real text: Python source, each word piece tagged with its kind of token."""

from __future__ import annotations

import keyword
import time
import tokenize
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import longspan
from longspan.nn.flax.losses import cross_entropy

KINDS = ("keyword", "name", "operator", "number", "text")
LENGTH, BATCH, STEPS = 64, 16, 150
#: tokens of more pieces, docstrings most of all, are left out: they would outnumber everything
MOST_PIECES = 20


def kind_of(token: tokenize.TokenInfo) -> int | None:
    """Index into `KINDS`, or None for tokens without text."""
    if token.type == tokenize.NAME:
        return 0 if keyword.iskeyword(token.string) else 1
    kinds = {tokenize.OP: 2, tokenize.NUMBER: 3, tokenize.STRING: 4, tokenize.COMMENT: 4}
    return kinds.get(token.type)


def read(paths, tokenizer):
    """Rows of word pieces and of the kinds of the tokens they belong to, (rows, LENGTH) each."""
    pieces, kinds = [], []
    for path in paths:
        with Path(path).open("rb") as file:
            tokens = [(token.string, kind_of(token)) for token in tokenize.tokenize(file.readline)]
        tokens = [(text, kind) for text, kind in tokens if kind is not None]
        texts = [text for text, _ in tokens]
        encoded = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=MOST_PIECES + 1)["input_ids"]
        for ids, (_, kind) in zip(encoded, tokens, strict=True):
            if len(ids) <= MOST_PIECES:
                pieces += ids
                kinds += [kind] * len(ids)
    rows = len(pieces) // LENGTH
    cut = slice(0, rows * LENGTH)
    return np.array(pieces[cut]).reshape(rows, LENGTH), np.array(kinds[cut]).reshape(rows, LENGTH)


@pytest.fixture(scope="module")
def texts(minilm_dir):
    """Rows of seven modules to learn from and of two others, (ids, kinds) each, and the size of the vocabulary.

    Pieces that occur once or twice are unknown ones, as most names of other modules will be.
    """
    tokenizer = longspan.AutoTokenizer.from_pretrained(minilm_dir)
    folder = Path(tokenize.__file__).parent
    learn = ("argparse", "tokenize", "json/decoder", "configparser", "csv", "dataclasses", "heapq")
    (ids, kinds), (other_ids, other_kinds) = (
        read([folder / f"{name}.py" for name in names], tokenizer) for names in (learn, ("textwrap", "shlex"))
    )
    pieces, counts = np.unique(ids, return_counts=True)
    table = np.zeros(tokenizer.vocab_size, np.int32)
    table[pieces[counts > 2]] = np.arange(1, (counts > 2).sum() + 1)
    return (table[ids], kinds), (table[other_ids], other_kinds), int(table.max()) + 1


def test_learns_to_tag_python_tokens_and_reloads_the_same(texts, tmp_path):
    (ids, kinds), (other_ids, other_kinds), size = texts
    config = longspan.BertConfig(
        vocab_size=size,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=len(KINDS),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    start = time.process_time()
    model = longspan.FlaxBertForTokenClassification(config, input_shape=(BATCH, LENGTH))
    optimiser = optax.adamw(optax.cosine_decay_schedule(3e-3, STEPS))

    @jax.jit
    def step(params, state, ids, kinds):
        def loss(params):
            return cross_entropy(model(ids, params=params, train=True).logits, kinds)

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(gradients, state, params)
        return value, optax.apply_updates(params, updates), state

    params, state, draw = model.params, optimiser.init(model.params), np.random.default_rng(0)
    for _ in range(STEPS):
        rows = draw.integers(0, len(ids), BATCH)
        loss, params, state = step(params, state, ids[rows], kinds[rows])
    model.params = params
    logits = model(other_ids).logits
    accuracy = float((jnp.argmax(logits, axis=-1) == other_kinds).mean())
    seconds = time.process_time() - start
    majority = np.bincount(other_kinds.ravel()).max() / other_kinds.size
    assert accuracy > 0.8 > majority + 0.4, f"accuracy {accuracy:.3f}, majority {majority:.3f}, loss {float(loss):.3f}"
    assert seconds < 60  # of one core
    model.save_pretrained(tmp_path)
    again = longspan.FlaxBertForTokenClassification.from_pretrained(tmp_path)
    np.testing.assert_array_equal(again(other_ids).logits, logits)
