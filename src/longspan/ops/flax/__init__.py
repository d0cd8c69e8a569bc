"""Pure functions on JAX arrays: no parameters, no configuration, no modules."""
