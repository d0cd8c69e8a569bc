"""Runs the reference's own TensorFlow classes: `keras_reference.py DIRECTORY`.

Every folder of the directory is named like a TF class and holds a checkpoint and `inputs.npz`. The class takes the
weights, writes what it makes of the inputs to `outputs.npz`, and saves itself as `h5/tf_model.h5`. A process of its own
does this, because the reference needs the older Keras.
"""

import os
import sys
from pathlib import Path

import numpy as np

os.environ |= {"USE_TF": "1", "USE_FLAX": "0", "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
import transformers
from safetensors.numpy import load_file
from transformers.modeling_tf_pytorch_utils import load_pytorch_weights_in_tf2_model


def run(directory: Path) -> None:
    model = getattr(transformers, directory.name)(transformers.AutoConfig.from_pretrained(directory))
    weights = {key: torch.from_numpy(value) for key, value in load_file(directory / "model.safetensors").items()}
    if "cls.predictions.bias" in weights:  # the reference's converter does not know that these are one
        weights["cls.predictions.decoder.bias"] = weights["cls.predictions.bias"]
    load_pytorch_weights_in_tf2_model(model, weights, allow_missing_keys=True)
    inputs = dict(np.load(directory / "inputs.npz"))
    outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
    arrays = {}
    for name, value in outputs.items():
        if name != "past_key_values":
            parts = value if isinstance(value, tuple) else [value]
            arrays |= {f"{name}.{index}": np.asarray(part) for index, part in enumerate(parts)}
    np.savez(directory / "outputs.npz", **arrays)
    model.save_pretrained(directory / "h5", safe_serialization=False)


if __name__ == "__main__":
    for folder in sorted(Path(sys.argv[1]).iterdir()):
        run(folder)
