"""What a TensorFlow graph holds in memory."""

from __future__ import annotations

import math


def largest_tensor(function, *specs):
    """Entries of the largest tensor of known shape that a `tf.function` makes, its loops included."""
    definition = function.get_concrete_function(*specs).graph.as_graph_def(add_shapes=True)
    nodes = [*definition.node, *(node for inner in definition.library.function for node in inner.node_def)]
    shapes = [shape for node in nodes for shape in node.attr["_output_shapes"].list.shape]
    # lists of axes have unknown lengths
    sizes = [[axis.size for axis in shape.dim] for shape in shapes if not shape.unknown_rank]
    return max(math.prod(size) for size in sizes if -1 not in size)
