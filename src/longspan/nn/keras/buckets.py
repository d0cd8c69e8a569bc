"""Few lengths for the programs of JAX: batches are padded up to the next of them, outputs cut back.

A program of XLA serves one set of shapes. With padding to a bucket (`longspan.ops.patterns.bucket`), one program serves
all lengths of the bucket. TensorFlow's graphs and PyTorch's calls serve every length, and get batches as they come.

Axes: B batch, S tokens, T target tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import keras
import numpy as np
from keras import ops

from longspan.inputs import IGNORE_INDEX, longest_input, padding_of
from longspan.model_output import ModelOutput
from longspan.nn.keras.inputs import by_name, input_names
from longspan.ops.patterns import bucket

#: inputs that are padded, besides labels; a batch with any other is taken as it is
_SOURCE = ("input_ids", "attention_mask", "token_type_ids", "global_attention_mask")
_TARGET = ("decoder_input_ids", "decoder_attention_mask")
#: fields of an output without an axis of tokens
_OF_ROWS = frozenset({"loss", "pooler_output", "seq_relationship_logits"})


class Lengths(NamedTuple):
    """Tokens of a batch before it was padded; the target's are None without a decoder of its own."""

    tokens: int
    target: int | None


class LengthBuckets:
    """Mix-in of Keras models: on JAX, lengths of batches are rounded up to few.

    `predict`, `fit`, `evaluate`, their `…_on_batch` and plain calls pad `input_ids`, `decoder_input_ids`, masks,
    segments and labels of tokens, whose padding is hidden by the mask and counts in no loss, and cut the outputs back.
    They take a batch as it is where padding would be seen: if other inputs are given, attention weights are returned, a
    question is answered under a loss, a loss or metric of `compile` compares the scores of tokens, or batch statistics
    are kept. In training, dropout draws other numbers.
    """

    #: False takes every length as it is, which compiles a program for each
    length_buckets: bool = True
    #: as of `TaskTraining`
    targets: ClassVar[Mapping[str, str]]
    token_label: ClassVar[str | None]
    has_choices: ClassVar[bool]
    config: Any
    loss: Any
    predict_function: Any
    train_function: Any
    test_function: Any

    def _may_pad(self, inputs: Mapping[str, Any], *, training: bool) -> bool:
        """True if padding behind the last token, which the mask hides, changes no output of these inputs."""
        return True

    # -- functions that Keras calls for each batch ------------------------------------------------------------------

    def make_predict_function(self, force: bool = False) -> Any:
        """As of `keras.Model`, with few lengths on JAX."""
        return self._make("predict", force)

    def make_train_function(self, force: bool = False) -> Any:
        """As of `keras.Model`, with few lengths on JAX."""
        return self._make("train", force)

    def make_test_function(self, force: bool = False) -> Any:
        """As of `keras.Model`, with few lengths on JAX."""
        return self._make("test", force)

    def _make(self, kind: str, force: bool) -> Any:
        before = getattr(self, f"{kind}_function")
        parent: Any = super()
        made = getattr(parent, f"make_{kind}_function")(force)
        step = getattr(self, f"{kind}_function")
        if keras.backend.backend() != "jax" or step is before:
            return made
        setattr(self, f"{kind}_function", self._in_buckets(step, kind))
        return made

    def _in_buckets(self, step: Callable[..., Any], kind: str) -> Callable[..., Any]:
        """A function of Keras that takes the state and an iterator over batches, and runs a step or a few."""

        def run(state: Any, iterator: Iterator[Any]) -> tuple[Any, Any]:
            lengths: list[Lengths | None] = []
            outputs, state = step(state, self._padded_batches(iterator, kind, lengths))
            if kind == "predict" and lengths[-1] is not None:
                outputs = self._cut_back(outputs, lengths[-1])
            return outputs, state

        return run

    def _padded_batches(self, iterator: Iterator[Any], kind: str, lengths: list[Lengths | None]) -> Iterator[Any]:
        for batch in iterator:
            x, y, weights = keras.utils.unpack_x_y_sample_weight(batch)
            inputs = by_name(x, self._input_names())
            padded = None if inputs is None else self._pad_batch(inputs, y, weights, kind)
            lengths.append(None if padded is None else padded[1])
            yield batch if padded is None else padded[0]

    def _call_in_bucket(self, call: Callable[..., Any], first: Any, arguments: Mapping[str, Any]) -> Any:
        """The output of a plain call on padded inputs; None if it takes its inputs as they are."""
        if keras.backend.backend() != "jax" or not self.length_buckets:
            return None
        flags = {name: value for name, value in arguments.items() if isinstance(value, bool)}
        inputs = {name: value for name, value in arguments.items() if name not in flags}
        named = {} if first is None else by_name(first, self._input_names())
        refused = flags.get("training") or flags.get("output_attentions") or flags.get("return_dict") is False
        if named is None or refused or "start_positions" in inputs:
            return None
        found = self._in_bucket({**inputs, **named}, training=False)
        if found is None or self._rooms(found[1]) == found[1]:
            return None
        padded, lengths = found
        return self._cut_back(call(padded.pop("input_ids"), **padded, **flags), lengths)

    # -- padding ----------------------------------------------------------------------------------------------------

    def _pad_batch(self, inputs: dict[str, Any], y: Any, weights: Any, kind: str) -> tuple[Any, Lengths] | None:
        """The batch in its bucket and its lengths; None if it stays as it is."""
        has_labels = y is not None or any(inputs.get(name) is not None for name in self.targets)
        if kind != "predict" and not (has_labels and self._loss_allows(weights)):
            return None
        found = self._in_bucket(inputs, training=kind == "train")
        if found is None:
            return None
        padded, lengths = found
        room = self._rooms(lengths)
        y = self._pad_labels(y, room)
        if weights is not None and self._label_axis_is_long() and len(np.shape(weights)) > 1:
            weights = _pad(weights, self._label_room(room), 1, 0)
        return keras.utils.pack_x_y_sample_weight(padded, y, weights), lengths

    def _in_bucket(self, inputs: Mapping[str, Any], *, training: bool) -> tuple[dict[str, Any], Lengths] | None:
        """Inputs by name, padded, and the lengths they had; None if they stay as they are."""
        given = {name: value for name, value in inputs.items() if value is not None}
        ids, target = given.get("input_ids"), given.get("decoder_input_ids")
        axis = 2 if self.has_choices and ids is not None and len(ids.shape) == 3 else 1
        known = {*_SOURCE, *_TARGET, *self.targets}
        if not self.length_buckets or ids is None or len(ids.shape) != axis + 1 or set(given) - known:
            return None
        mask = given.get("attention_mask")
        if (mask is not None and tuple(mask.shape) != tuple(ids.shape)) or not self._names_outputs():
            return None
        if not self._may_pad(given, training=training) or not all(map(_is_array, given.values())):
            return None
        length = None
        if self._has_target():
            target = given.get("labels") if target is None else target
            if target is None:
                return None
            length = int(target.shape[1])
        lengths = Lengths(int(ids.shape[axis]), length)
        return self._pad_inputs(given, lengths, axis), lengths

    def _names_outputs(self) -> bool:
        """The model returns an output with names, and no attention weights, whose axes are others."""
        return bool(self.config.return_dict) and not self.config.output_attentions

    def _pad_inputs(self, given: dict[str, Any], lengths: Lengths, axis: int) -> dict[str, Any]:
        room, ids = self._rooms(lengths), given["input_ids"]
        if given.get("attention_mask") is None:
            given = {**given, "attention_mask": np.ones(tuple(ids.shape), "int32")}
        padded = {}
        for name, value in given.items():
            if name in self.targets:
                padded[name] = self._pad_label(name, value, room)
            elif name in _TARGET:
                padded[name] = _pad(value, room.target, 1, padding_of(name, self.config))
            else:
                padded[name] = _pad(value, room.tokens, axis, padding_of(name, self.config))
        return padded

    def _rooms(self, lengths: Lengths) -> Lengths:
        """The bucket of each length, as far as the model reaches."""
        limit = longest_input(self.config)
        room = bucket(lengths.tokens)
        if limit is not None:
            room = max(lengths.tokens, min(room, limit))
        return Lengths(room, None if lengths.target is None else bucket(lengths.target))

    # -- labels and losses --------------------------------------------------------------------------------------------

    def _input_names(self) -> tuple[str, ...]:
        return input_names(type(self).call)  # type: ignore[attr-defined]  # of keras.Model

    def _has_target(self) -> bool:
        """The model has a decoder with tokens of its own."""
        return "decoder_input_ids" in self._input_names()

    def _label_axis_is_long(self) -> bool:
        """There is a label for each token."""
        return self.token_label is not None or (self._has_target() and "labels" in self.targets)

    def _label_room(self, room: Lengths) -> int:
        return room.tokens if room.target is None else room.target

    def _loss_allows(self, weights: Any) -> bool:
        """True if neither loss nor metrics see the padding of tokens."""
        if not self.targets or "start_positions" in self.targets:
            return False
        if not self._label_axis_is_long():
            return True
        metrics = getattr(self, "_compile_metrics", None)
        counted = metrics is not None and getattr(metrics, "_user_metrics", None)
        weighted = metrics is not None and getattr(metrics, "_user_weighted_metrics", None)
        return self.loss is None and not counted and not (weighted and weights is not None)

    def _pad_labels(self, y: Any, room: Lengths) -> Any:
        """Labels in the structure in which they come."""
        if y is None:
            return None
        if isinstance(y, Mapping):
            fields = {field: label for label, field in self.targets.items()}
            return {name: self._pad_label(fields.get(name, name), value, room) for name, value in y.items()}
        if isinstance(y, list | tuple):
            names = (*self.targets, *[None] * len(y))  # too many or too few are told to be wrong by the loss
            return type(y)(self._pad_label(name, value, room) for name, value in zip(names, y, strict=False))
        return self._pad_label(next(iter(self.targets)), y, room)

    def _pad_label(self, name: str | None, value: Any, room: Lengths) -> Any:
        is_long = name is not None and (name == self.token_label or (self._has_target() and name == "labels"))
        return _pad(value, self._label_room(room), 1, IGNORE_INDEX) if is_long and len(value.shape) > 1 else value

    # -- outputs ------------------------------------------------------------------------------------------------------

    def _cut_back(self, output: Any, lengths: Lengths) -> Any:
        """The output without what belongs to padding."""
        if not isinstance(output, ModelOutput):
            raise TypeError(f"outputs of padded batches must have names. Received: {type(output).__name__}")
        rows = {field for label, field in self.targets.items() if not self._is_token_field(label)} | _OF_ROWS
        own = lengths.tokens if lengths.target is None else lengths.target
        cut = {}
        for name, value in output.items():
            length = lengths.tokens if name.startswith("encoder_") else own
            if name == "past_key_values":
                cut[name] = tuple(_cut_cache(layer, lengths) for layer in value)
            else:
                cut[name] = value if name in rows else keras.tree.map_structure(lambda x: x[:, :length], value)  # noqa: B023  # called at once
        return type(output)(**cut)

    def _is_token_field(self, label: str) -> bool:
        """A label's scores have an axis of tokens."""
        return label == self.token_label or label in ("start_positions", "end_positions") or self._has_target()


def _cut_cache(layer: Sequence[Any], lengths: Lengths) -> tuple[Any, ...]:
    """Keys and values (B, A, S, D) of one layer: its own first, then those of an encoder."""
    own = lengths.tokens if lengths.target is None else lengths.target
    return tuple(part[:, :, : own if index < 2 else lengths.tokens] for index, part in enumerate(layer))


def _is_array(value: Any) -> bool:
    """True for an array with values, which may be looked at."""
    jax = importlib.import_module("jax")
    return hasattr(value, "shape") and not isinstance(value, jax.core.Tracer | keras.KerasTensor)


def _pad(array: Any, length: int | None, axis: int, value: int) -> Any:
    """Pad an axis, on the host if the array is there or the device is a CPU."""
    missing = (length or 0) - array.shape[axis]
    if missing <= 0:
        return array
    padding = [(0, missing if number == axis else 0) for number in range(len(array.shape))]
    on_host = isinstance(array, np.ndarray) or importlib.import_module("jax").default_backend() == "cpu"
    return (
        np.pad(np.asarray(array), padding, constant_values=value)
        if on_host
        else ops.pad(array, padding, constant_values=value)
    )
