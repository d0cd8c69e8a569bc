"""Inference with the weights of a model laid out beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from longspan.errors import InputError
from longspan.nn.torch.plain import is_plain
from longspan.ops.fast_paths import fast_path

#: bytes of weights up to which a second copy is made unasked
MOST_BYTES = 2**30
_FUNCTIONS = ("few_rows.can_pack", "prepacked.prepack", "prepacked.release")


@contextmanager
def prepacked_weights(model: nn.Module) -> Iterator[nn.Module]:
    """Keep a second copy of the weights of linear layers in the order in which a CPU reads them fastest.

    Inside the block, calls without gradients (`torch.no_grad`) take the copies; the numbers are the same up to
    rounding. It is for many calls of one model: laying out the weights may take as long as a call. A weight that
    changes inside the block is noticed and used as it then is, without its copy; only values written through
    `weight.data` go unseen, since PyTorch does not count them. Compiled models and other devices run as ever.

    Args:
        model: A model of longspan in PyTorch, or a module that holds one.

    Yields:
        The model. `state_dict`, `save_pretrained` and copies of it do not see the second copies.

    Raises:
        InputError: `model` is not a module of PyTorch.

    Example:
        >>> import torch
        >>> import longspan
        >>> config = longspan.BertConfig(hidden_size=64, num_attention_heads=2, num_hidden_layers=1, vocab_size=100)
        >>> model = longspan.BertModel(config).eval()
        >>> with longspan.prepacked_weights(model), torch.no_grad():
        ...     model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape
        torch.Size([1, 3, 64])
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a module of PyTorch. Received: {type(model).__name__}")
    can_pack, prepack, release = (fast_path(name) for name in _FUNCTIONS)
    if can_pack is None or prepack is None or release is None:
        yield model
        return
    layers = (module for module in model.modules() if type(module) is nn.Linear and is_plain(module))
    # PyTorch does not count changes of what was made in inference mode
    added = prepack(layer.weight for layer in layers if can_pack(layer.weight) and not layer.weight.is_inference())
    try:
        yield model
    finally:
        release(added)
