"""Uses the Keras half with PyTorch, JAX and Flax out of reach: `alone_worker.py DIRECTORY [BLOCKED...]`."""

import importlib.abc
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
    model = model_class.from_pretrained(directory)
    inputs = dict(np.load(directory / "inputs.npz"))
    np.save(directory / "alone.npy", np.asarray(model(inputs).logits))
    model.compile("sgd", run_eagerly=True)
    model.fit(inputs, verbose=0)
    model.save_pretrained(directory / "alone")
    print(sorted(name for name in ("torch", "jax", "flax", "tf_keras", "transformers") if name in sys.modules))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
