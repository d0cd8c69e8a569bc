"""BERT in Keras on TensorFlow against the reference's TFBert, both under `tf.function`."""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks.cases.bert import BESIDE_FLOAT32, HEADS, INNER, RAGGED, WIDTH
from benchmarks.harness import Work, case, halved

LAYERS = 12


def models() -> tuple[Any, Any]:
    """The reference and ours, BERT-base on equal random weights, as traced functions of ids and mask."""
    os.environ["USE_TF"] = "1"  # the peer is the reference's TensorFlow half
    import tensorflow as tf

    from longspan import BertConfig, TFBertModel
    from longspan.checkpoints.keras import leaves

    config = BertConfig(
        vocab_size=1000,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
    )
    ours = TFBertModel(config, add_pooling_layer=False)
    import torch
    import transformers
    from transformers.modeling_tf_pytorch_utils import load_pytorch_weights_in_tf2_model

    peer = transformers.TFBertModel(transformers.BertConfig(**config.to_diff_dict()), add_pooling_layer=False)
    load_pytorch_weights_in_tf2_model(
        peer, {key: torch.from_numpy(leaf.read()) for key, leaf in leaves(ours).items()}, allow_missing_keys=True
    )

    def traced(model: Any) -> Any:
        def states(ids: Any, mask: Any) -> Any:
            return model(ids, attention_mask=mask).last_hidden_state

        return tf.function(states, input_signature=[tf.TensorSpec([None, None], tf.int32)] * 2, autograph=False)

    return traced(peer), traced(ours)


def forward(lengths: tuple[int, ...]) -> Work:
    """One forward pass without dropout; tracing is timed apart."""
    import numpy as np
    import tensorflow as tf

    peer, ours = models()
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype("int32")
    ids = np.random.default_rng(0).integers(0, 1000, mask.shape).astype("int32")
    inputs = tf.constant(ids), tf.constant(mask)

    def first_seconds(function: Any) -> float:
        start = time.perf_counter()
        function.get_concrete_function()
        return time.perf_counter() - start

    def difference(a: Any, b: Any) -> float:
        return float(np.abs((a - b) * mask[..., None]).max() / np.abs(a).max())

    return Work(
        peer=lambda: peer(*inputs).numpy(),
        ours=lambda: ours(*inputs).numpy(),
        difference=difference,
        tolerance=1e-5,
        extra={"peer_trace_seconds": first_seconds(peer), "ours_trace_seconds": first_seconds(ours)},
    )


@case("bert/keras/ragged/float32", "TFBert-base under tf.function, lengths 512…32", at_least=1.3, rounds=5)
def ragged_float32() -> Work:
    return forward(RAGGED)


@case("bert/keras/full/float32", "TFBert-base under tf.function, 2 × 512, no padding", rounds=5, memory=False)
def full_float32() -> Work:
    return forward((512,) * 2)


def ours_alone(dtype: str, lengths: tuple[int, ...]) -> Work:
    """Our forward pass in a dtype, with the same weights whatever that is."""
    import keras
    import numpy as np
    import tensorflow as tf

    from longspan import BertConfig, TFBertModel

    keras.config.set_dtype_policy(dtype)
    keras.utils.set_random_seed(0)
    model = TFBertModel(BertConfig(vocab_size=1000, num_hidden_layers=LAYERS), add_pooling_layer=False)
    states = tf.function(lambda ids: model(ids).last_hidden_state)
    ids = tf.constant(np.random.default_rng(0).integers(0, 1000, (len(lengths), max(lengths))).astype("int32"))

    def run() -> Any:
        return tf.cast(states(ids), "float32").numpy()

    return Work(peer=run, ours=run, difference=None)


@case(
    "bert/keras/full/bfloat16-float32",
    "TFBert-base under tf.function, 2 × 512, bfloat16 against float32, both longspan",
    at_least=BESIDE_FLOAT32,
    memory=False,
)
def full_halved() -> Work:
    return halved(lambda dtype: ours_alone(dtype, (512,) * 2))
