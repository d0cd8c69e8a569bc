"""Sentence encoders as the loops train them: one small module a framework, with the same functions.

`model_of(encoder, options)` gives what is trained, the transformer with the layers behind pooling: it makes vectors
(B, T, D) of length 1 of the T texts of B samples. `layers_of(model, layers)` gives these layers with the weights that
they have now, `detach(model)` the transformer alone.
"""
