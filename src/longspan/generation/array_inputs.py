"""What `generate` of models with a cache of a fixed size does before its loop, for the arrays of any framework.

Axes: B prompts, P tokens of a prompt, S source tokens, L tokens of a row, H width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from longspan.errors import InputError
from longspan.generation.array_loop import Search
from longspan.generation.array_rules import LoopArrays
from longspan.generation.beams import BeamRules
from longspan.generation.config import GenerationConfig
from longspan.generation.lengths import combine, filling, greatest_length, least_length, start_tokens
from longspan.generation.rules import Rules, rows_per_prompt
from longspan.generation.stored import StoredGenerationConfig
from longspan.ops.patterns import bucket
from longspan.shapes import check_shape

#: settings that need to look at every step from outside, with the value that switches each off
_NEEDS_STEPS: dict[str, Any] = {
    "max_time": None,
    "stop_strings": None,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "output_logits": None,
}
#: inputs of a decoder with cross-attention
_STATES = ("encoder_hidden_states", "encoder_attention_mask")


@dataclass(frozen=True)
class Inputs:
    """How a framework takes inputs.

    Attributes:
        framework: Its name in errors.
        as_array: A caller's value as an array.
        as_indices: (value, name) -> the same, of integers.
        check_ids: (ids, limit, name, limit_name) raises unless all ids are below the limit.
        values_visible: The values of an array can be looked at.
        pad_tokens: (array (B, N, ...), length) -> (B, length, ...), zeros at the end.
    """

    framework: str
    as_array: Callable[[Any], Any]
    as_indices: Callable[..., Any]
    check_ids: Callable[..., None]
    values_visible: Callable[[Any], bool]
    pad_tokens: Callable[..., Any]


@dataclass(frozen=True)
class Lengths:
    """Lengths of a call.

    Attributes:
        prompt: Tokens of the decoder's prompt.
        least: Tokens of a row at least, prompt included.
        greatest: Tokens of a row at most.
        first: Column of the first token; padding lies before it.
        room: Columns.
    """

    prompt: int
    least: int
    greatest: int
    first: int
    room: int


class ArrayGeneration(StoredGenerationConfig):
    """What `generate` settles before its loop."""

    loop_arrays: ClassVar[LoopArrays]
    input_rules: ClassVar[Inputs]

    def max_positions(self) -> int | None:
        """Tokens of a row at most, or None if the model has no limit."""
        return None

    def _split(
        self, generation_config: GenerationConfig | None, kwargs: dict[str, Any]
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """Tell settings from inputs of the model, and combine the settings."""
        own = {name: kwargs.pop(name) for name in list(kwargs) if GenerationConfig.is_setting(name)}
        has_encoder = self.config.is_encoder_decoder
        known = {"attention_mask", *(("decoder_input_ids",) if has_encoder else _STATES)}
        unknown = sorted(set(kwargs) - known)
        if unknown:
            raise InputError(
                f"generate takes settings of GenerationConfig and, of inputs, {', '.join(sorted(known))}. "
                f"Received as well: {', '.join(unknown)}"
            )
        config = combine(self.generation_config, generation_config, own)
        framework = self.input_rules.framework
        for name, off in _NEEDS_STEPS.items():
            if getattr(config, name) not in (off, False):
                raise InputError(
                    f"{name} needs to look at every step, which {framework} models let no caller do; use "
                    f"the PyTorch model. Received: {name}={getattr(config, name)!r}"
                )
        if False in (own.get("use_cache"), generation_config and generation_config.use_cache):
            raise InputError(
                f"{framework} models generate with a cache of a fixed size; PyTorch's can compute every "
                "token again. Received: use_cache=False"
            )
        return config, {name: value for name, value in kwargs.items() if value is not None}

    def _make_search(self, config: GenerationConfig) -> Search:
        return Search(
            arrays=self.loop_arrays,
            rules=Rules.from_config(config),
            rows=rows_per_prompt(config),
            returned=config.num_return_sequences,
            beams=BeamRules(config.num_beams, config.length_penalty, config.early_stopping),
            pad=filling(config),
        )

    def _prepare(
        self, config: GenerationConfig, ids: Any, inputs: dict[str, Any], *, exact: bool
    ) -> tuple[dict[str, Any], Lengths]:
        """Arrays of the program, and its lengths."""
        if ids.ndim != 2 or ids.shape[1] == 0:
            raise InputError(f"input_ids must have the shape (batch, tokens), with a token. Received: {ids.shape}")
        self.input_rules.check_ids(ids, self.config.vocab_size, name="input_ids", limit_name="vocab_size")
        mask = self._mask(config, ids, inputs.get("attention_mask"))
        length = ids.shape[1]
        pad = partial(self.input_rules.pad_tokens, length=length if exact else bucket(length))
        if self.config.is_encoder_decoder:
            arrays = {"input_ids": pad(ids), "attention_mask": pad(mask), "is_there": pad(ids == ids)}
            start = self._decoder_prompt(config, ids.shape[0], inputs.get("decoder_input_ids"))
            lengths = self._lengths(config, start.shape[1], width=start.shape[1], exact=exact)
            return {**arrays, "decoder_input_ids": start}, lengths
        ids, mask = self._align_right(ids, mask)
        # reversed, what pads the end pads the beginning
        parts = {"input_ids": ids, "attention_mask": mask, "is_there": ids == ids}
        arrays = {name: pad(part[:, ::-1])[:, ::-1] for name, part in parts.items()}
        arrays |= self._states(inputs, batch=ids.shape[0], exact=exact)
        return arrays, self._lengths(config, length, width=arrays["input_ids"].shape[1], exact=exact)

    def _states(self, inputs: dict[str, Any], *, batch: int, exact: bool) -> dict[str, Any]:
        """States that the decoder's cross-attention reads, and their mask; empty without them."""
        states, mask = (inputs.get(name) for name in _STATES)
        needs = getattr(self.config, "add_cross_attention", False)
        if states is None and not needs and mask is None:
            return {}
        if states is None or not needs:
            raise InputError(
                "a decoder with cross-attention (config.add_cross_attention=True), and no other, generates from "
                f"encoder_hidden_states. Received: add_cross_attention={needs}, encoder_hidden_states="
                f"{None if states is None else np.shape(states)}"
            )
        states = self.input_rules.as_array(states)
        expected = (batch, states.shape[1] if states.ndim > 1 else 1, self.config.hidden_size)
        check_shape(states, expected, name="encoder_hidden_states", axes="(batch, tokens, hidden_size)")
        mask = np.ones(expected[:2], np.int32) if mask is None else self.input_rules.as_array(mask)
        check_shape(mask, expected[:2], name="encoder_attention_mask", axes="(batch, tokens)")
        length = expected[1] if exact else bucket(expected[1])
        padded = (self.input_rules.pad_tokens(part, length) for part in (states, mask != 0))
        return dict(zip(_STATES, padded, strict=True))

    def _decoder_prompt(self, config: GenerationConfig, batch: int, ids: Any) -> Any:
        """The start token, and what the decoder is to begin with behind it."""
        first = np.array(start_tokens(config, batch=batch), np.int32)[:, None]
        if ids is None:
            return first
        ids = self.input_rules.as_indices(ids, name="decoder_input_ids")
        check_shape(ids[:, 0], (batch,), name="decoder_input_ids", axes="(batch,) of input_ids, then tokens,")
        if self.input_rules.values_visible(ids) and bool((np.asarray(ids)[:, :1] == first).any()):
            return ids
        return self.loop_arrays.xp.concatenate([first, ids], axis=1)

    def _lengths(self, config: GenerationConfig, prompt: int, *, width: int, exact: bool) -> Lengths:
        limit = self.max_positions()
        greatest = greatest_length(config, prompt=prompt, limit=limit)
        least = least_length(config, prompt=prompt, greatest=greatest)
        new = greatest - prompt
        return Lengths(prompt, least, greatest, first=width - prompt, room=width + (new if exact else bucket(new)))

    def _mask(self, config: GenerationConfig, ids: Any, given: Any) -> Any:
        """Boolean mask of real tokens: as given, or where there is padding that does not also end rows."""
        if given is not None:
            check_shape(
                self.input_rules.as_array(given), tuple(ids.shape), name="attention_mask", axes="(batch, tokens)"
            )
            mask = self.input_rules.as_array(given) != 0
        else:
            pad = config.pad_token_id
            mask = ids == ids if pad is None or pad in config.eos_token_ids else ids != pad
        if self.input_rules.values_visible(mask) and not np.asarray(mask).any(axis=1).all():
            empty = np.flatnonzero(~np.asarray(mask).any(axis=1)).tolist()
            raise InputError(f"each prompt must have a token that attention_mask keeps. Received: none in rows {empty}")
        return mask

    def _align_right(self, ids: Any, mask: Any) -> tuple[Any, Any]:
        """Shift rows with padding at the right, so that their last token is real."""
        width = ids.shape[1]
        visible = self.input_rules.values_visible
        xp = np if visible(mask) and visible(ids) else self.loop_arrays.xp
        ids, mask = xp.asarray(ids), xp.asarray(mask)
        trailing = mask[:, ::-1].argmax(axis=1)[:, None]
        source = (xp.arange(width) - trailing) % width
        return xp.take_along_axis(ids, source, axis=1), xp.take_along_axis(mask, source, axis=1)
