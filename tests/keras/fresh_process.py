"""Reloads what another process saved: `fresh_process.py DIRECTORY`; prints how far each reloaded model is off."""

import json
import os
import sys
from pathlib import Path

os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

import keras
import numpy as np
import tensorflow as tf

from longspan import BertConfig, TFBertForTokenClassification


def main(directory: Path) -> None:
    stored = dict(np.load(directory / "data.npz"))
    inputs = {name: stored[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
    labels, expected = stored["labels"], stored["logits"]
    real = inputs["attention_mask"][..., None]

    def distance(logits):
        return float(np.abs((np.asarray(logits) - expected) * real).max())

    whole = keras.models.load_model(directory / "whole.keras")
    settings = json.loads((directory / "settings.json").read_text())
    by_config = TFBertForTokenClassification(BertConfig(**settings))
    by_config.load_weights(directory / "only.weights.h5")
    served = tf.saved_model.load(str(directory / "served"))
    functional = keras.models.load_model(directory / "functional.keras")
    result = {
        "keras": distance(whole(inputs).logits),
        "weights": distance(by_config(inputs).logits),
        "saved model": distance(served.serve({k: v.astype("int32") for k, v in inputs.items()})["logits"]),
        "functional": float(np.abs(np.asarray(functional(inputs)) - stored["functional"]).max()),
        "pretrained": distance(TFBertForTokenClassification.from_pretrained(directory / "pretrained")(inputs).logits),
        "loss": whole.evaluate(inputs, labels, verbose=0),
        "next": whole.fit(inputs, labels, verbose=0, shuffle=False).history["loss"][0],
    }
    np.save(directory / "after.npy", np.asarray(whole.classifier.kernel))
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
