"""What tf2onnx, by which Keras writes ONNX on TensorFlow, has to be told for longspan's models."""

from __future__ import annotations

from typing import Any

import numpy as np

from longspan.errors import MissingFrameworkError


def teach_tf2onnx() -> None:
    """Say what `Erfc` is, of which the exact GELU is made: 1 − erf(x).

    Raises:
        MissingFrameworkError: tf2onnx is not installed.
    """
    try:
        from tf2onnx.handler import tf_op
    except ModuleNotFoundError as error:
        raise MissingFrameworkError(
            "export(format='onnx') on TensorFlow needs tf2onnx, which is not installed: pip install tf2onnx onnxruntime"
        ) from error

    @tf_op("Erfc")
    class Erfc:
        @classmethod
        def version_1(cls, graph: Any, node: Any, **_: Any) -> None:
            [name], [source] = node.output, node.input
            shape, dtype = graph.get_shape(name), graph.get_dtype(name)
            erf = graph.make_node("Erf", [source], shapes=[shape], dtypes=[dtype]).output[0]
            one = graph.make_const(f"{node.name}_one", np.ones((), np.float32)).output[0]
            graph.remove_node(node.name)
            graph.make_node("Sub", [one, erf], outputs=[name], name=node.name, shapes=[shape], dtypes=[dtype])
