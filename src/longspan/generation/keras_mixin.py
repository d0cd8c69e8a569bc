"""The method `generate` of Keras models.

Axes: B prompts, P tokens of a prompt, S source tokens, L tokens of a row, R returned rows, T new tokens, V vocabulary.

Inputs and lengths are padded up to buckets, so that few programs serve many lengths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from keras import ops

from longspan.checkpoints.keras import to_numpy
from longspan.errors import InputError
from longspan.generation.array_inputs import ArrayGeneration, Inputs
from longspan.generation.array_rules import Text
from longspan.generation.config import GENERATION_CONFIG_NAME, GenerationConfig
from longspan.generation.keras_loop import ARRAYS, Array, Programs, Stepper
from longspan.nn.keras.checks import check_values
from longspan.nn.keras.outputs import TFModelOutput, model_output
from longspan.nn.keras.plain import Traced
from longspan.ops.keras import Tensor

#: of `get_config`: the model's own settings of generation
_KEPT = "generation_config"


@model_output
class TFGenerateOutput(TFModelOutput):
    """`sequences` (R, L), prompts included; of beam search also the final `sequences_scores` (R,)."""

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None


def _as_array(value: Any) -> Array:
    return value if isinstance(value, np.ndarray) else np.asarray(value if isinstance(value, list) else to_numpy(value))


def _as_indices(value: Any, *, name: str) -> Array:
    array = _as_array(value)
    if not np.issubdtype(array.dtype, np.integer):
        raise InputError(f"{name} must be integers. Received: {array.dtype}")
    return array


def _pad_tokens(array: Array, length: int) -> Array:
    return np.pad(array, [(0, length - array.shape[1] if axis == 1 else 0) for axis in range(array.ndim)])


class TFGenerationMixin(ArrayGeneration):
    """Gives a Keras model with a language modelling head the method `generate`.

    A family says how it reads prompts (`begin_generation`) and makes one step (`continue_generation`).
    """

    loop_arrays = ARRAYS
    input_rules = Inputs("Keras", _as_array, _as_indices, check_values, lambda array: True, _pad_tokens)

    def get_config(self) -> dict[str, Any]:
        """Everything that `from_config` needs to make the same model, without weights."""
        parent: Any = super()
        config: dict[str, Any] = parent.get_config()
        content = self._extra_files().get(GENERATION_CONFIG_NAME)  # looks whether what `config` says was altered
        is_own = self._generation_config is not None or self._stored_generation_config is not None
        return {**config, _KEPT: json.loads(content)} if is_own and content else config

    @classmethod
    def from_config(cls, config: Any, custom_objects: Any = None) -> Any:
        """Make a model from a configuration, or from what `get_config` returned."""
        parent: Any = super()
        stored = config.get(_KEPT) if isinstance(config, dict) else None
        if stored is None:
            return parent.from_config(config, custom_objects)
        model = parent.from_config({name: part for name, part in config.items() if name != _KEPT}, custom_objects)
        vars(model)["_stored_generation_config"] = stored
        return model

    def begin_generation(self, inputs: Mapping[str, Tensor], room: int) -> tuple[Tensor, Any, Any]:
        """Read the prompts.

        Args:
            inputs: `input_ids` (B, P) and `attention_mask` (B, P), padding on the left; of a model with an encoder,
                those of the source (B, S), and `decoder_input_ids`.
            room: Tokens that the cache has to hold, L.

        Returns:
            Logits (B, V) of what follows; nested tuples of tensors that grow from token to token, of a fixed size, the
            rows first; and what all rows of a prompt share, in any nested form.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it reads prompts")

    def continue_generation(self, tokens: Tensor, cache: Any, shared: Any, write_at: Tensor) -> tuple[Tensor, Any]:
        """Make one step.

        Args:
            tokens: (R, 1).
            cache: Of R rows, those of a prompt next to each other.
            shared: As `begin_generation` returned it, of B rows.
            write_at: Place of the tokens in the cache, 0-d.

        Returns:
            Logits (R, V) of what follows, and the cache.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it makes a step")

    def generate(
        self,
        input_ids: Any,
        generation_config: GenerationConfig | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue prompts, or write what an encoder's input asks for.

        Args:
            input_ids: Ids of the prompts or of the encoder's input, (B, P), padding on either side.
            generation_config: Settings; those it leaves open are the model's (`model.generation_config`).
            seed: Seed of sampling, which then repeats exactly.
            **kwargs: Settings of `GenerationConfig`, which win over `generation_config`; `attention_mask` (B, P), 0 at
                padding (default: what `pad_token_id` tells); with an encoder, `decoder_input_ids` (B, T), what the
                decoder begins with; for a decoder with cross-attention, `encoder_hidden_states` (B, S, H) and their
                `encoder_attention_mask` (B, S).

        Returns:
            Ids (R, L), int32: for a causal model the prompts, their padding moved to the left, and what follows. Rows
            that ended early are filled with `pad_token_id`. With `return_dict_in_generate=True`, a `TFGenerateOutput`.

        Raises:
            ConfigError: a setting breaks a rule.
            InputError: an input breaks a rule, is not known, or leaves nothing to generate; or a setting needs to look
                at every step (`max_time`, `stop_strings`, outputs of steps).

        Example:
            >>> import numpy as np
            >>> from longspan import LongT5Config, TFLongT5ForConditionalGeneration
            >>> config = LongT5Config(d_model=32, d_kv=8, num_heads=2, d_ff=64, num_layers=1)
            >>> model = TFLongT5ForConditionalGeneration(config)
            >>> tuple(model.generate(np.array([[100, 19, 3, 1]]), max_new_tokens=3, min_new_tokens=3).shape)
            (1, 4)
        """
        config, given = self._split(generation_config, kwargs)
        arrays, lengths = self._prepare(config, _as_indices(input_ids, name="input_ids"), given, exact=False)
        search = self._make_search(config)
        logits, cache, shared = self._programs().begin(arrays, rows=search.rows, room=lengths.room)
        prompts = arrays.get("decoder_input_ids", arrays["input_ids"]).astype(np.int32)
        behind = ((0, 0), (0, lengths.room - prompts.shape[1]))
        text = Text(
            ids=np.repeat(np.pad(prompts, behind, constant_values=search.pad), search.rows, axis=0),
            first=lengths.first,
            length=lengths.first + lengths.prompt,
            prompt=lengths.prompt,
            least=lengths.least,
            greatest=lengths.greatest,
            source=arrays["input_ids"] if search.rules.reads_source else None,
            source_mask=arrays["is_there"] if search.rules.reads_source else None,
        )
        step = Stepper(self._programs(), shared).step
        ids, end, scores = search.run(text, to_numpy(logits), cache, step, np.random.default_rng(seed))
        sequences = ops.convert_to_tensor(ids[:, lengths.first : int(end)].astype(np.int32))
        if not config.return_dict_in_generate:
            return sequences
        final = ops.convert_to_tensor(scores) if search.beams.num_beams > 1 else None
        return TFGenerateOutput(sequences=sequences, sequences_scores=final)

    def _programs(self) -> Programs:
        """The compiled programs, no part of what Keras saves.

        They are made when they are first used, and anew when a layer or its `call` was replaced, quantised or given an
        adapter, and for `longspan.plain`.
        """
        traced = Traced(self)
        made: tuple[Traced, Programs] | None = vars(self).get("_generation_programs")
        if made is None or made[0] != traced:
            made = (traced, Programs(self))
            vars(self)["_generation_programs"] = made
        return made[1]


class TFCausalGenerationMixin(TFGenerationMixin):
    """Gives `generate` to a Keras model that continues its prompts.

    It needs of the model `init_cache(batch_size, max_length)`, nested tuples of tensors of a fixed size, the rows
    first, and a `call` that takes these as `past_key_values`, with the `cache_position` (T,) of the new tokens, an
    `attention_mask` (R, L) and `position_ids` (R, T), and returns them filled further.
    """

    init_cache: Any
    #: arguments that keep a call from scoring more than the last token
    of_last_token: ClassVar[Mapping[str, Any]] = {}

    @property
    def first_position(self) -> int:
        """Position of a row's first token."""
        return 0

    def of_places(self, positions: Tensor, write_at: Any) -> dict[str, Any]:
        """Arguments that say where tokens stand: their positions (R, T), and the place of the first in the cache."""
        places = write_at + ops.arange(ops.shape(positions)[1], dtype="int32")
        return {"position_ids": positions + self.first_position, "cache_position": places, "use_cache": True}

    def begin_generation(self, inputs: Mapping[str, Tensor], room: int) -> tuple[Tensor, Any, Any]:
        """Read the prompts. Positions count real tokens, so that padding before a prompt changes nothing."""
        ids, mask = inputs["input_ids"], ops.cast(inputs["attention_mask"], "int32")
        batch, width = ops.shape(ids)
        shared = {name: part for name, part in inputs.items() if name.startswith("encoder_")}
        shared["attention_mask"] = ops.pad(mask, ((0, 0), (0, room - width)), constant_values=1)
        shared["ahead"] = ops.sum(mask, axis=1) - width
        positions = ops.maximum(ops.cumsum(mask, axis=1) - 1, 0)
        logits, cache = self._call_with_cache(ids, self.init_cache(batch, room), shared, positions, 0)
        return logits, cache, shared

    def continue_generation(self, tokens: Tensor, cache: Any, shared: Any, write_at: Tensor) -> tuple[Tensor, Any]:
        """Make one step; see `TFGenerationMixin.continue_generation`."""
        times = ops.shape(tokens)[0] // ops.shape(shared["ahead"])[0]
        shared = {name: ops.repeat(part, times, axis=0) for name, part in shared.items()}
        return self._call_with_cache(tokens, cache, shared, shared["ahead"][:, None] + write_at, write_at)

    def _call_with_cache(
        self, ids: Tensor, cache: Any, shared: Mapping[str, Tensor], positions: Tensor, write_at: Any
    ) -> tuple[Tensor, Any]:
        """Scores (R, V) of what follows the ids (R, T), and the cache."""
        model: Any = self
        output = model(
            ids,
            **{name: part for name, part in shared.items() if name != "ahead"},
            **self.of_places(positions, write_at),
            past_key_values=cache,
            return_dict=True,
            training=False,
            **self.of_last_token,
        )
        return output.logits[:, -1], output.past_key_values
