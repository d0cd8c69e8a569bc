"""What a traced JAX function holds in memory, and what it multiplies."""

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


def product_dtypes(jaxpr):
    """Names of the dtypes that matrix products take, those of loops and inner functions included."""
    found = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found |= {str(variable.aval.dtype) for variable in equation.invars}
        for inner in jaxprs_in_params(equation.params):
            found |= product_dtypes(inner)
    return found
