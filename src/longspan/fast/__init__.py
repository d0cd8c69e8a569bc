"""What is here for speed alone: PyTorch kernels, blocks and token steps beside the definitions in `ops` and `models`.

Nothing imports this package: `longspan.ops.fast_paths` looks its functions up by name, inside `longspan.plain()` it is
left alone, and a library without it computes the same. Each function names the definition that it replaces and is for
modules that `longspan.nn.torch.plain.is_plain` has cleared.
"""
