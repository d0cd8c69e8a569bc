"""What a traced JAX function holds in memory."""

from __future__ import annotations

import math

import jax
from jax.extend.core import jaxprs_in_params


def largest_array(function, *arguments):
    """Entries of the largest array that `function` makes, its loops and inner functions included."""
    return max(math.prod(shape) for shape in _shapes(jax.make_jaxpr(function)(*arguments).jaxpr))


def _shapes(jaxpr):
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars if hasattr(variable.aval, "shape"))
        for inner in jaxprs_in_params(equation.params):
            yield from _shapes(inner)
