"""Sequences that are longer than the memory of one device: context parallelism for Longformer, LongT5 and MEGA.

`longspan.parallel.torch` works on processes of `torch.distributed`, `longspan.parallel.flax` on devices of a mesh.
"""
