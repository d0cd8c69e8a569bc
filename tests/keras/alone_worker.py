"""Reloads what another process saved, with packages out of reach: `alone_worker.py DIRECTORY [BLOCKED...]`.

Prints how far each reloaded model is off, and which of the other frameworks were imported; or that TensorFlow is
missing.
"""

import importlib.abc
import json
import os
import sys
from pathlib import Path

os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
BLOCKED = sys.argv[2:]


class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, Blocker())

import numpy as np

import longspan
from longspan.errors import MissingFrameworkError


def main(directory: Path) -> None:
    try:
        model_class = longspan.TFBertForTokenClassification
    except MissingFrameworkError as error:
        print(error)
        return
    import keras
    import tensorflow as tf

    stored = dict(np.load(directory / "data.npz"))
    inputs = {name: stored[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    labels, expected = stored["labels"], stored["logits"]
    real = inputs["attention_mask"][..., None]

    def distance(logits):
        return float(np.abs((np.asarray(logits) - expected) * real).max())

    whole = keras.models.load_model(directory / "whole.keras")
    by_config = model_class(longspan.BertConfig(**json.loads((directory / "settings.json").read_text())))
    by_config.load_weights(directory / "only.weights.h5")
    served = tf.saved_model.load(str(directory / "served"))
    functional = keras.models.load_model(directory / "functional.keras")
    result = {
        "keras": distance(whole(inputs).logits),
        "weights": distance(by_config(inputs).logits),
        "saved model": distance(served.serve({k: v.astype("int32") for k, v in inputs.items()})["logits"]),
        "functional": float(np.abs(np.asarray(functional(inputs)) - stored["functional"]).max()),
        "pretrained": distance(model_class.from_pretrained(directory / "pretrained")(inputs).logits),
        "loss": whole.evaluate(inputs, labels, verbose=0),
        "next": whole.fit(inputs, labels, verbose=0, shuffle=False).history["loss"][0],
    }
    whole.save_pretrained(directory / "after")
    others = ("torch", "jax", "flax", "tf_keras", "transformers")
    print(json.dumps(result | {"imported": [name for name in others if name in sys.modules]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
