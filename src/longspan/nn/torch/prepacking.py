"""Inference with the weights of a model laid out beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from longspan.errors import InputError
from longspan.nn.torch.linear import Linear
from longspan.ops.torch.few_rows import can_pack
from longspan.ops.torch.prepacked import prepack, release


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
    weights = (module.weight for module in model.modules() if isinstance(module, Linear))
    added = prepack(weight for weight in weights if _can_be_watched(weight) and can_pack(weight))
    try:
        yield model
    finally:
        release(added)


def _can_be_watched(weight: Tensor) -> bool:
    """True for a plain parameter whose changes PyTorch counts: none that is computed, or made in inference mode."""
    return type(weight) is nn.Parameter and not weight.is_inference()
