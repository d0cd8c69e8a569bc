"""What a MEGA decoder remembers between tokens.

Axes: B batch, L held tokens, Z width of queries and keys, V width of values, D width, N numbers of the EMA's state per
channel, T encoder tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from longspan.errors import InputError
from longspan.models.mega.config import MegaConfig
from longspan.nn.torch.cache import Cache, LegacyCache


class MegaLayerCache(NamedTuple):
    """What one layer remembers.

    Attributes:
        key: Keys of the tokens that the next one may attend to, (B, L, Z): all, or those of a chunk that has begun.
        value: Their values, (B, L, V).
        ema_state: (B, D, N); see `longspan.ops.torch.ema_kernels.damped_ema_step`.
        cross_key: Keys of the encoder's states, (B, T, Z), in a model with cross-attention.
        cross_value: Their values, (B, T, D).
    """

    key: Tensor
    value: Tensor
    ema_state: Tensor
    cross_key: Tensor | None = None
    cross_value: Tensor | None = None


class MegaCache(Cache):
    """The states of all layers; each call of a model returns a new one.

    Indexes and iterates like the reference's nested tuples: `cache[layer]` is (key, value, EMA state), followed by
    (cross key, cross value) in a model with cross-attention.

    Args:
        layers: One entry per layer.
        num_tokens: Tokens read so far.
        mask: Which of the held tokens are real, (B, L); None for all.
        starts: First real token of each row, (B,), from which its chunks are counted; None for 0.
    """

    def __init__(
        self,
        layers: Sequence[MegaLayerCache],
        *,
        num_tokens: int,
        mask: Tensor | None = None,
        starts: Tensor | None = None,
    ) -> None:
        self.layers = tuple(layers)
        self.num_tokens = num_tokens
        self.mask = mask
        self.starts = starts

    @classmethod
    def from_legacy_cache(cls, past_key_values: Any, config: MegaConfig, *, num_tokens: int | None) -> MegaCache:
        """Build a cache from nested tuples, sharing their tensors.

        Args:
            past_key_values: Per layer (key, value, EMA state), with cross-attention (…, cross key, cross value). A
                key and value of None mean that a chunk has just ended.
            config: Settings of the model.
            num_tokens: Tokens read so far. None if unknown: then the keys are counted.

        Raises:
            InputError: a layer holds another number of tensors, or the tokens cannot be counted.
        """
        expected = 5 if config.add_cross_attention else 3
        layers = []
        for index, layer in enumerate(past_key_values):
            if len(layer) != expected:
                names = "(key, value, EMA state" + (", cross key, cross value)" if expected == 5 else ")")
                raise InputError(
                    f"a layer of past_key_values must hold {names}. Received: {len(layer)} entries (layer {index})"
                )
            key, value, ema_state, *cross = layer
            if key is None or value is None:
                key = ema_state.new_zeros(ema_state.shape[0], 0, config.shared_representation_size)
                value = ema_state.new_zeros(ema_state.shape[0], 0, config.intermediate_size)
            layers.append(MegaLayerCache(key, value, ema_state, *cross))
        if num_tokens is None:
            if config.use_chunking and config.add_cross_attention:
                raise InputError(
                    "cross-attention with chunks needs the number of tokens read so far: pass past_key_values as the "
                    "model returned them, or an attention_mask of all tokens. Received: tuples"
                )
            num_tokens = layers[0].key.shape[1] if layers else 0
        return cls(layers, num_tokens=num_tokens)

    def get_seq_length(self, layer_index: int = 0) -> int:
        """Return how many tokens were read so far."""
        return self.num_tokens

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows `beam_idx` (B,) of the batch in that order, as beam search needs."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep only the rows `indices` of the batch, in that order."""
        self._apply(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row of the batch `repeats` times, keeping copies of one row together."""
        self._apply(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def crop(self, max_length: int) -> None:
        """Raise `InputError`: an average over all tokens cannot forget the last ones."""
        raise InputError(f"the cache of MEGA cannot be shortened. Received: max_length={max_length}")

    def _apply(self, function: Callable[[Tensor], Tensor]) -> None:
        changed: list[list[Any]] = [
            [None if tensor is None else function(tensor) for tensor in layer] for layer in self.layers
        ]
        self.layers = tuple(MegaLayerCache(*layer) for layer in changed)
        self.mask = None if self.mask is None else function(self.mask)
        self.starts = None if self.starts is None else function(self.starts)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer_index: int) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor in self.layers[layer_index] if tensor is not None)


def read_cache(
    past_key_values: Cache | LegacyCache | None, config: MegaConfig, *, new_tokens: int, mask: Tensor | None
) -> MegaCache | None:
    """Check a cache against a call.

    Args:
        past_key_values: What the caller passed.
        config: Settings of the model.
        new_tokens: Tokens of the call.
        mask: The call's attention mask, (B, new tokens) or (B, all tokens).

    Returns:
        The cache, or None if there is none.

    Raises:
        InputError: the model keeps no cache, the cache belongs to another model, or there are several new tokens.
    """
    if past_key_values is None:
        return None
    if not config.is_decoder:
        raise InputError("past_key_values needs a decoder (config.is_decoder=True). Received: is_decoder=False")
    if len(past_key_values) != config.num_hidden_layers:
        raise InputError(
            f"past_key_values must have one entry per layer, num_hidden_layers={config.num_hidden_layers}. "
            f"Received: {len(past_key_values)} entries"
        )
    if new_tokens != 1:
        raise InputError(
            f"with past_key_values, exactly one new token can be read at a time. Received: {new_tokens} tokens"
        )
    if isinstance(past_key_values, MegaCache):
        return past_key_values
    if isinstance(past_key_values, Cache):
        raise InputError(
            f"past_key_values must be a MegaCache or nested tuples. Received: {type(past_key_values).__name__}"
        )
    all_tokens = None if mask is None or mask.shape[1] == 1 else mask.shape[1] - 1
    return MegaCache.from_legacy_cache(past_key_values, config, num_tokens=all_tokens)


def _flatten(cache: MegaCache) -> tuple[list[Any], None]:
    return [[tuple(layer) for layer in cache.layers], cache.mask, cache.num_tokens, cache.starts], None


def _unflatten(values: Any, context: None) -> MegaCache:
    layers, mask, num_tokens, starts = values
    return MegaCache([MegaLayerCache(*layer) for layer in layers], num_tokens=num_tokens, mask=mask, starts=starts)


pytree.register_pytree_node(
    MegaCache,
    _flatten,
    _unflatten,
    serialized_type_name="longspan.MegaCache",
    flatten_with_keys_fn=lambda cache: (
        [(pytree.SequenceKey(index), value) for index, value in enumerate(_flatten(cache)[0])],
        None,
    ),
)
