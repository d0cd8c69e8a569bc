"""The method `generate` of Flax models.

Axes: B prompts, P tokens of a prompt, S source tokens, L tokens of a row, R returned rows.

The encoder, the prompt and the loop over tokens are one program of XLA, a pure function of parameters, inputs and
random key. Called outside of `jax.jit`, inputs and lengths are padded up to buckets (`longspan.nn.flax.buckets`), so
that one program serves many lengths.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from longspan.generation.array_inputs import ArrayGeneration, Inputs
from longspan.generation.array_loop import Search
from longspan.generation.array_rules import Text
from longspan.generation.config import GenerationConfig
from longspan.generation.flax_loop import ARRAYS, CausalStepper
from longspan.model_output import ModelOutput
from longspan.nn.flax.buckets import is_traced, pad_tokens
from longspan.nn.flax.checks import as_array, as_indices, check_ids, is_intercepted, values_visible
from longspan.nn.flax.outputs import model_output
from longspan.nn.flax.sharding import explicit_mesh, on_auto_axes


@model_output
class FlaxGenerateOutput(ModelOutput):
    """`sequences` (R, L), prompts included; of beam search also the final `scores` (R,)."""

    sequences: Array | None = None
    scores: Array | None = None


class FlaxGenerationMixin(ArrayGeneration):
    """Gives a Flax model with a language modelling head the method `generate`.

    The annotations name what it needs of the model.
    """

    loop_arrays = ARRAYS
    input_rules = Inputs("Flax", as_array, as_indices, check_ids, values_visible, pad_tokens)
    _variables: Callable[..., dict[str, Any]]
    _fingerprint: Callable[..., Any]

    def make_stepper(self, variables: Any, inputs: dict[str, Array], *, rows: int, room: int) -> Any:
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
            ids, end, scores = (self._generate if is_intercepted() else self._generation_program)(
                self._variables(params),
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
        variables: Any,
        key: Array,
        arrays: dict[str, Array],
        numbers: dict[str, Array],
        *,
        search: Search,
        room: int,
        fingerprint: Any,
    ) -> tuple[Array, Array, Array]:
        del fingerprint

        def write(variables: Any, key: Array, arrays: dict[str, Array], numbers: dict[str, Array]) -> Any:
            stepper = self.make_stepper(variables, arrays, rows=search.rows, room=room)
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
            write, variables, key, arrays, numbers, rows=arrays["input_ids"]
        )
        return program


class FlaxCausalGenerationMixin(FlaxGenerationMixin):
    """Gives `generate` to a Flax model that continues its prompts.

    Its module takes `attention_mask`, `position_ids` and a cache; the annotations name what it needs besides.
    """

    computing_module: nn.Module
    init_cache: Callable[..., Any]
    _cache_shapes: Callable[[int, int], Any]

    @property
    def first_position(self) -> int:
        """Position of a row's first token."""
        return 0

    def make_stepper(self, variables: Any, inputs: dict[str, Array], *, rows: int, room: int) -> CausalStepper:
        """What runs the model during `generate`."""
        shapes = self._cache_shapes(inputs["input_ids"].shape[0], room)
        return CausalStepper(self.computing_module, variables, inputs, shapes, rows, room, self.first_position)

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
