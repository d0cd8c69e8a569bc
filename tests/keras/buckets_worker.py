"""`predict`, `fit` and calls of many lengths on the backend that the environment names: `buckets_worker.py [CLASS …]`.

Prints, as JSON, for each class how many programs served 20 lengths, and by how much padding to a bucket changes outputs
and losses.
"""

import json
import sys
from unittest import mock

import keras
import numpy as np

import longspan

SHARED = {"vocab_size": 97, "num_hidden_layers": 1}
ENCODER = {
    **SHARED,
    "hidden_size": 36,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": 100,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
#: class -> settings
CASES = {
    "BertForTokenClassification": ENCODER,
    "BertForSequenceClassification": ENCODER,
    "LongformerForMaskedLM": {**ENCODER, "attention_window": 8},
    "DiffLlamaForCausalLM": {**SHARED, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40},
    "MegaForTokenClassification": {
        **SHARED, "hidden_size": 32, "intermediate_size": 40, "nffn_hidden_size": 40, "use_chunking": True,
        "chunk_size": 16, "dropout_prob": 0.0, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        "nffn_activation_dropout_prob": 0.0,
    },
    "LongT5ForConditionalGeneration": {
        **SHARED, "d_model": 32, "d_kv": 8, "num_heads": 4, "d_ff": 40, "local_radius": 5, "global_block_size": 4,
        "encoder_attention_type": "transient-global", "dropout_rate": 0.0,
    },
}  # fmt: skip
#: classes that are trained, and the one that is called as well, operation by operation
TRAINED, CALLED = ("BertForTokenClassification", "LongT5ForConditionalGeneration"), "BertForTokenClassification"
#: from well below a bucket to above the first one
LENGTHS = range(3, 100, 5)
COMPARED = 68


def batch(name: str, length: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Inputs of a class, without a mask, and labels."""
    ids = np.random.default_rng(length).integers(3, 97, (2, length))
    if "LongT5" in name:
        return {"input_ids": ids, "decoder_input_ids": ids[:, ::2]}, ids[:, ::2]
    if "Sequence" in name:
        return {"input_ids": ids}, ids[:, 0] % 2
    return {"input_ids": ids}, ids if "LM" in name else ids % 2


def difference(first, second) -> float:
    """Greatest difference of two outputs of equal shapes."""
    assert set(first) == set(second)
    pairs = [
        (np.asarray(one), np.asarray(other))
        for name in first
        for one, other in zip(keras.tree.flatten(first[name]), keras.tree.flatten(second[name]), strict=True)
    ]
    assert all(one.shape == other.shape for one, other in pairs), [(one.shape, other.shape) for one, other in pairs]
    return max((float(np.abs(one - other).max()) for one, other in pairs), default=0.0)


def check(name: str) -> dict[str, float]:
    """How many programs there were, and how much changed."""
    keras.utils.set_random_seed(0)
    model_class = getattr(longspan, f"TF{name}")
    model = model_class(model_class.config_class(**CASES[name]))
    model.compile(keras.optimizers.SGD(0.0))
    traced = {"predict_step": 0, "train_step": 0}

    def counting(kind):
        step = getattr(model_class, kind)

        def counted(self, *arguments):
            traced[kind] += 1
            return step(self, *arguments)

        return mock.patch.object(model_class, kind, counted)

    def run(length):
        inputs, labels = batch(name, length)
        output = model.predict(inputs, verbose=0)
        return output, model.train_on_batch(inputs, labels) if name in TRAINED else 0.0

    with counting("predict_step"), counting("train_step"):
        for length in LENGTHS:
            run(length)
        programs = dict(traced)
        results = []
        for model.length_buckets in (True, False):
            results.append((*run(COMPARED), model(batch(name, COMPARED)[0]) if name == CALLED else {}))
    (output, loss, called), (exact_output, exact_loss, exact_called) = results
    return programs | {
        "output": difference(output, exact_output),
        "called": difference(called, exact_called),
        "loss": abs(float(loss) - float(exact_loss)),
    }


if __name__ == "__main__":
    chosen = sys.argv[1:] or list(CASES)
    json.dump({name: check(name) for name in chosen}, sys.stdout)
