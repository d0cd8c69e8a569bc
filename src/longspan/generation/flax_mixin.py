"""The method `generate` of Flax models.

Axes: B prompts, P tokens of a prompt, S source tokens, L tokens of a row, R returned rows.

The encoder, the prompt and the loop over tokens are one program of XLA, a pure function of parameters, inputs and
random key. Called outside of `jax.jit`, inputs and lengths are padded up to buckets (`longspan.nn.flax.buckets`), so
that one program serves many lengths.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from longspan.errors import InputError
from longspan.generation.beams import BeamRules
from longspan.generation.config import GenerationConfig
from longspan.generation.flax_loop import CausalStepper, Search
from longspan.generation.flax_rules import Text
from longspan.generation.lengths import combine, filling, greatest_length, least_length, start_tokens
from longspan.generation.rules import Rules, rows_per_prompt
from longspan.generation.stored import StoredGenerationConfig
from longspan.model_output import ModelOutput
from longspan.nn.flax.buckets import bucket, is_traced, pad_tokens, real_tokens
from longspan.nn.flax.checks import as_array, as_indices, check_ids, values_visible
from longspan.nn.flax.outputs import model_output
from longspan.nn.flax.sharding import explicit_mesh, on_auto_axes
from longspan.shapes import check_shape

#: settings that need to look at every step from outside of the program, with the value that switches each off
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


@model_output
class FlaxGenerateOutput(ModelOutput):
    """`sequences` (R, L), prompts included; of beam search also the final `scores` (R,)."""

    sequences: Array | None = None
    scores: Array | None = None


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


class FlaxGenerationMixin(StoredGenerationConfig):
    """Gives a Flax model with a language modelling head the method `generate`.

    The annotations name what it needs of the model.
    """

    params: Any
    _fingerprint: Callable[[], tuple[str, bool]]

    def max_positions(self) -> int | None:
        """Tokens of a row at most, or None if the model has no limit."""
        return None

    def make_stepper(self, params: Any, inputs: dict[str, Array], *, rows: int, room: int) -> Any:
        """What runs the model, see `longspan.generation.flax_loop`."""
        raise NotImplementedError(f"{type(self).__name__} must say how it makes one step")

    def generate(
        self,
        input_ids: Any,
        generation_config: GenerationConfig | None = None,
        prng_key: Array | None = None,
        trace: bool = True,
        params: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> FlaxGenerateOutput:
        """Continue prompts, or write what an encoder's input asks for.

        Args:
            input_ids: Ids of the prompts or of the encoder's input, (B, P), padding on either side.
            generation_config: Settings; those it leaves open are the model's (`model.generation_config`).
            prng_key: Random key of sampling; default `jax.random.PRNGKey(0)`.
            trace: False runs every operation by itself, to look into them.
            params: Parameters; default: the model's own.
            **kwargs: Settings of `GenerationConfig`, which win over `generation_config`; `attention_mask` (B, P), 0 at
                padding (default: what `pad_token_id` tells); with an encoder, `decoder_input_ids` (B, T), what the
                decoder begins with; for a decoder with cross-attention, `encoder_hidden_states` (B, S, H) and their
                `encoder_attention_mask` (B, S).

        Returns:
            `sequences` (R, L): for a causal model the prompts, their padding moved to the left, and what follows. Rows
            that ended early are filled with `pad_token_id`. Inside of `jax.jit` they are as long as the greatest
            length; elsewhere they end with the longest row.

        Raises:
            ConfigError: a setting breaks a rule.
            InputError: an input breaks a rule, is not known, or leaves nothing to generate; or a setting needs to look
                at every step (`max_time`, `stop_strings`, outputs of steps).

        Example:
            >>> import jax.numpy as jnp
            >>> from longspan import FlaxLongT5ForConditionalGeneration, LongT5Config
            >>> config = LongT5Config(d_model=32, d_kv=8, num_heads=2, d_ff=64, num_layers=1)
            >>> model = FlaxLongT5ForConditionalGeneration(config)
            >>> model.generate(jnp.array([[100, 19, 3, 1]]), max_new_tokens=3, min_new_tokens=3).sequences.shape
            (1, 4)
        """
        if is_traced(input_ids) and explicit_mesh(input_ids, params, kwargs):
            arrays = {name: kwargs.pop(name) for name in list(kwargs) if isinstance(kwargs[name], Array)}

            def write(ids: Array, key: Any, params: Any, arrays: dict[str, Array]) -> FlaxGenerateOutput:
                return self.generate(ids, generation_config, key, trace, params, **arrays, **kwargs)

            output: FlaxGenerateOutput = on_auto_axes(write, input_ids, prng_key, params, arrays, rows=input_ids)
            return output
        config, inputs = self._split(generation_config, kwargs)
        exact = is_traced(input_ids, inputs, params, prng_key)
        arrays, lengths = self._prepare(config, as_indices(input_ids, name="input_ids"), inputs, exact=exact)
        search = self._make_search(config)
        numbers = {name: getattr(lengths, name) for name in ("prompt", "least", "greatest", "first")}
        with contextlib.nullcontext() if trace else jax.disable_jit():
            ids, end, scores = self._generation_program(
                self.params if params is None else params,
                jax.random.PRNGKey(0) if prng_key is None else prng_key,
                arrays,
                {name: jnp.int32(number) for name, number in numbers.items()},
                search=search,
                room=lengths.room,
                fingerprint=self._fingerprint(),
            )
        stop = lengths.first + lengths.greatest if is_traced(end) else int(end)
        ids = ids[:, lengths.first : stop]
        return FlaxGenerateOutput(sequences=ids, scores=scores if search.beams.num_beams > 1 else None)

    # -- the program ------------------------------------------------------------------------------------------------

    @property
    def _generation_program(self) -> Any:
        """The compiled program; made when it is first used, since it cannot be pickled with the model."""
        program = vars(self).get("_compiled_generation")
        if program is None:
            program = jax.jit(self._generate, static_argnames=("search", "room", "fingerprint"))
            self._compiled_generation = program
        return program

    def _generate(
        self,
        params: Any,
        key: Array,
        arrays: dict[str, Array],
        numbers: dict[str, Array],
        *,
        search: Search,
        room: int,
        fingerprint: Any,
    ) -> tuple[Array, Array, Array]:
        del fingerprint

        def write(params: Any, key: Array, arrays: dict[str, Array], numbers: dict[str, Array]) -> Any:
            stepper = self.make_stepper(params, arrays, rows=search.rows, room=room)
            logits, cache = stepper.begin(reorders=search.beams.num_beams > 1)
            source = arrays["input_ids"] if search.rules.reads_source else None
            prompts = arrays.get("decoder_input_ids", arrays["input_ids"])
            ids = jnp.pad(prompts, ((0, 0), (0, room - prompts.shape[1])), constant_values=search.pad)
            text = Text(
                ids=jnp.repeat(ids, search.rows, axis=0),
                first=numbers["first"],
                length=numbers["first"] + numbers["prompt"],
                prompt=numbers["prompt"],
                least=numbers["least"],
                greatest=numbers["greatest"],
                source=source,
                source_mask=arrays["is_there"] if search.rules.reads_source else None,
            )
            return search.run(text, logits, cache, stepper.step, key)

        program: tuple[Array, Array, Array] = on_auto_axes(
            write, params, key, arrays, numbers, rows=arrays["input_ids"]
        )
        return program

    # -- settings and inputs ----------------------------------------------------------------------------------------

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
        for name, off in _NEEDS_STEPS.items():
            if getattr(config, name) not in (off, False):
                raise InputError(
                    f"{name} needs to look at every step, and Flax models generate in one program; use the PyTorch "
                    f"model. Received: {name}={getattr(config, name)!r}"
                )
        if False in (own.get("use_cache"), generation_config and generation_config.use_cache):
            raise InputError(
                "Flax models generate with a cache of a fixed size; PyTorch's can compute every token again. "
                "Received: use_cache=False"
            )
        return config, {name: value for name, value in kwargs.items() if value is not None}

    def _make_search(self, config: GenerationConfig) -> Search:
        return Search(
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
        check_ids(ids, self.config.vocab_size, name="input_ids", limit_name="vocab_size")
        mask = _mask(config, ids, inputs.get("attention_mask"))
        length = ids.shape[1]
        pad = partial(pad_tokens, length=length if exact else bucket(length))
        if self.config.is_encoder_decoder:
            arrays = {"input_ids": pad(ids), "attention_mask": pad(mask), "is_there": pad(ids == ids)}
            start = self._decoder_prompt(config, ids.shape[0], inputs.get("decoder_input_ids"))
            lengths = self._lengths(config, start.shape[1], width=start.shape[1], exact=exact)
            return {**arrays, "decoder_input_ids": start}, lengths
        ids, mask = _align_right(ids, mask)
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
        states = as_array(states)
        expected = (batch, states.shape[1] if states.ndim > 1 else 1, self.config.hidden_size)
        check_shape(states, expected, name="encoder_hidden_states", axes="(batch, tokens, hidden_size)")
        mask = real_tokens(None if mask is None else as_array(mask), expected[:2])
        check_shape(mask, expected[:2], name="encoder_attention_mask", axes="(batch, tokens)")
        length = expected[1] if exact else bucket(expected[1])
        return dict(zip(_STATES, (pad_tokens(states, length), pad_tokens(mask != 0, length)), strict=True))

    def _decoder_prompt(self, config: GenerationConfig, batch: int, ids: Any) -> Any:
        """The start token, and what the decoder is to begin with behind it."""
        first = np.array(start_tokens(config, batch=batch), np.int32)[:, None]
        if ids is None:
            return first
        ids = as_indices(ids, name="decoder_input_ids")
        check_shape(ids[:, 0], (batch,), name="decoder_input_ids", axes="(batch,) of input_ids, then tokens,")
        if values_visible(ids) and bool((np.asarray(ids)[:, :1] == first).any()):
            return ids
        return jnp.concatenate([first, ids], axis=1)

    def _lengths(self, config: GenerationConfig, prompt: int, *, width: int, exact: bool) -> Lengths:
        limit = self.max_positions()
        greatest = greatest_length(config, prompt=prompt, limit=limit)
        least = least_length(config, prompt=prompt, greatest=greatest)
        new = greatest - prompt
        return Lengths(prompt, least, greatest, first=width - prompt, room=width + (new if exact else bucket(new)))


class FlaxCausalGenerationMixin(FlaxGenerationMixin):
    """Gives `generate` to a Flax model that continues its prompts.

    Its module takes `attention_mask`, `position_ids` and a cache; the annotations name what it needs besides.
    """

    module: nn.Module
    init_cache: Callable[..., Any]
    _cache_shapes: Callable[[int, int], Any]

    @property
    def first_position(self) -> int:
        """Position of a row's first token."""
        return 0

    def make_stepper(self, params: Any, inputs: dict[str, Array], *, rows: int, room: int) -> CausalStepper:
        """What runs the model during `generate`."""
        shapes = self._cache_shapes(inputs["input_ids"].shape[0], room)
        return CausalStepper(self.module, params, inputs, shapes, rows, room, self.first_position)

    def prepare_inputs_for_generation(
        self, input_ids: Array, max_length: int, attention_mask: Array | None = None
    ) -> dict[str, Any]:
        """The arguments, besides the ids, of the first call of a generation by hand.

        Args:
            input_ids: The prompts, (B, S).
            max_length: Number of tokens, prompts included, that will be generated at most.
            attention_mask: 1 for real tokens, 0 for padding on the left, (B, S).

        Returns:
            `past_key_values`, `attention_mask` (B, max_length) and `position_ids` (B, S).
        """
        batch, length = input_ids.shape
        mask = jnp.ones((batch, max_length), jnp.int32)
        position_ids = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length)) + self.first_position
        if attention_mask is not None:
            # what lies behind the prompt is masked by causality, so one mask serves all steps
            mask = lax.dynamic_update_slice(mask, jnp.asarray(attention_mask, jnp.int32), (0, 0))
            position_ids = jnp.maximum(jnp.cumsum(mask[:, :length], axis=-1) - 1, 0) + self.first_position
        cache = self.init_cache(batch, max_length)
        return {"past_key_values": cache, "attention_mask": mask, "position_ids": position_ids}

    def update_inputs_for_generation(self, model_outputs: Any, model_kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the next call: the cache that the last one returned, and the next positions (B, 1)."""
        next_positions = model_kwargs["position_ids"][:, -1:] + 1
        return {**model_kwargs, "past_key_values": model_outputs.past_key_values, "position_ids": next_positions}


def _mask(config: GenerationConfig, ids: Any, given: Any) -> Any:
    """Boolean mask of real tokens: as given, or where there is padding that does not also end rows."""
    if given is not None:
        check_shape(as_array(given), tuple(ids.shape), name="attention_mask", axes="(batch, tokens)")
        mask = as_array(given) != 0
    else:
        pad = config.pad_token_id
        mask = ids == ids if pad is None or pad in config.eos_token_ids else ids != pad
    if values_visible(mask) and not np.asarray(mask).any(axis=1).all():
        empty = np.flatnonzero(~np.asarray(mask).any(axis=1)).tolist()
        raise InputError(f"each prompt must have a token that attention_mask keeps. Received: none in rows {empty}")
    return mask


def _align_right(ids: Any, mask: Any) -> tuple[Any, Any]:
    """Shift rows with padding at the right, so that their last token is real."""
    width = ids.shape[1]
    xp = np if values_visible(mask) and values_visible(ids) else jnp
    ids, mask = xp.asarray(ids), xp.asarray(mask)
    trailing = mask[:, ::-1].argmax(axis=1)[:, None]
    source = (xp.arange(width) - trailing) % width
    return xp.take_along_axis(ids, source, axis=1), xp.take_along_axis(mask, source, axis=1)
