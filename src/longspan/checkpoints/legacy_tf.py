"""From the reference's TensorFlow variable names to the canonical keys.

A variable is called `tf_bert_for_pre_training/mlm___cls/predictions/transform/dense/kernel:0`: the model's own scope,
the path, the leaf, the device. In the path, `mlm___cls` stands for `cls` and `layer_._0` for `layer/0`. `kernel`
(in, out) is `weight` (out, in); `gamma` and `embeddings` are `weight`; `beta` is `bias`.
"""

from __future__ import annotations

from longspan.checkpoints.renamed import Canonical
from longspan.errors import CheckpointError

_LEAVES = {
    "kernel": "weight",
    "gamma": "weight",
    "embeddings": "weight",
    "weight": "weight",
    "beta": "bias",
    "bias": "bias",
}


def canonical_name(name: str, num_axes: int = 2) -> Canonical:
    """Translate one variable name without the model's own scope.

    Args:
        name: E.g. `"bert/encoder/layer_._0/attention/self/query/kernel:0"`.
        num_axes: Number of axes of the array.

    Returns:
        The canonical key, and whether the array must be transposed.

    Raises:
        CheckpointError: if there is no rule for such a variable.

    Example:
        >>> canonical_name("mlm___cls/predictions/transform/dense/kernel:0")
        Canonical(key='cls.predictions.transform.dense.weight', transposed=True)
    """
    *path, leaf = name.partition(":")[0].split("/")
    if leaf not in _LEAVES or (leaf == "kernel" and num_axes != 2):
        raise CheckpointError(
            f"A TensorFlow variable must be a kernel with 2 axes or one of {', '.join(sorted(_LEAVES))}. "
            f"Received: {name} with {num_axes} axes"
        )
    modules = [module.rpartition("___")[2].replace("_._", ".") for module in path]
    return Canonical(".".join([*modules, _LEAVES[leaf]]), leaf == "kernel")


def without_scope(name: str, layer: str) -> str:
    """Drop the model's own scope, `tf_bert_model/`, from the name of a variable.

    Args:
        name: Name of the variable.
        layer: Name of the Keras layer it was saved under, such as `"bert"` or `"mlm___cls"`.

    Returns:
        The name as `canonical_name` wants it.

    Example:
        >>> without_scope("tf_bert_model_1/bert/pooler/dense/bias:0", "bert")
        'bert/pooler/dense/bias:0'
    """
    scope, _, rest = name.partition("/")
    return name if scope == layer and not rest.startswith(f"{layer}/") else rest
