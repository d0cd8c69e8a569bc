"""The one vocabulary of model inputs: what each is called, its axes, kind of number, meaning, limit and padding.

Every argument of every model in every framework that carries data is an entry of `INPUTS`. Checks of shapes and ranges,
input signatures, dynamic axes of exported graphs, help texts and padding all read it; no framework is imported.

Axes by name: batch; tokens of the input; choices of multiple choice; target tokens of a decoder; source tokens that a
decoder reads; width of a state; heads and layers of a model; labels, the classes of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from longspan.errors import InputError

Kind = Literal["integer", "float", "number", "flag", "object"]
Axes = tuple[str, ...]

#: axes whose sizes differ from call to call; all others are fixed by the configuration
DYNAMIC_AXES = frozenset({"batch", "choices", "tokens", "target", "source", "past"})
IGNORE_INDEX = -100


@dataclass(frozen=True)
class Input:
    """One argument of a model.

    Attributes:
        name: Its name in every framework.
        kind: Integers, floats, either (`"number"`), a flag that is no array, or an object (a cache, other outputs).
        axes: Possible axes, the usual ones first; none for what is no array.
        meaning: One sentence.
        limit: Setting of the configuration that its values must stay below.
        padding: Value at padding, or the setting that holds it; None if it is not padded.
        folds: It has an axis of choices behind the batch in a class for multiple choice.
    """

    name: str
    kind: Kind
    axes: tuple[Axes, ...]
    meaning: str
    limit: str | None = None
    padding: int | str | None = None
    folds: bool = False

    def shape_text(self, *, rank: int | None = None) -> str:
        """The axes as errors and help texts show them, e.g. `(batch, tokens)`: those of `rank`, else the usual ones."""
        axes = self.axes_of_rank(rank)
        return f"({axes[0]},)" if len(axes) == 1 else f"({', '.join(axes)})"

    def axes_of_rank(self, rank: int | None) -> Axes:
        """The possible axes with that many of them; the usual ones if there are none."""
        return next((axes for axes in self.axes if len(axes) == rank), self.axes[0])

    def describe(self) -> str:
        """One line of help: meaning and axes."""
        shapes = " or ".join(f"({', '.join(axes)})" for axes in self.axes)
        return f"{self.meaning.rstrip('.')}, {shapes}." if shapes else self.meaning


_TOKENS = (("batch", "tokens"),)
_TARGET = (("batch", "target"),)
_HEADS = (("heads",), ("layers", "heads"))

INPUTS: dict[str, Input] = {
    entry.name: entry
    for entry in (
        Input("input_ids", "integer", _TOKENS, "Token ids.", "vocab_size", "pad_token_id", folds=True),
        Input(
            "attention_mask",
            "number",
            (("batch", "tokens"), ("batch", "tokens", "tokens")),
            "1 for real tokens, 0 for padding.",
            padding=0,
            folds=True,
        ),
        Input("token_type_ids", "integer", _TOKENS, "Segment of each token.", "type_vocab_size", 0, folds=True),
        Input(
            "position_ids",
            "integer",
            (("batch", "tokens"), ("tokens",)),
            "Position of each token.",
            "max_position_embeddings",
            padding=0,
            folds=True,
        ),
        Input("head_mask", "number", _HEADS, "1 keeps a head, 0 removes it."),
        Input("inputs_embeds", "float", (("batch", "tokens", "width"),), "Embedded tokens.", padding=0, folds=True),
        Input(
            "global_attention_mask",
            "number",
            _TOKENS,
            "Nonzero for tokens with global attention.",
            padding=0,
            folds=True,
        ),
        Input(
            "encoder_hidden_states",
            "float",
            (("batch", "source", "width"),),
            "States that cross-attention reads.",
            padding=0,
        ),
        Input(
            "encoder_attention_mask",
            "number",
            (("batch", "source"),),
            "1 for real tokens of the encoder, 0 for padding.",
            padding=0,
        ),
        Input("decoder_input_ids", "integer", _TARGET, "Target ids.", "vocab_size", "pad_token_id"),
        Input(
            "decoder_attention_mask",
            "number",
            (("batch", "target"),),
            "1 for real target tokens, 0 for padding.",
            padding=0,
        ),
        Input("decoder_position_ids", "integer", _TARGET, "Position of each target token.", padding=0),
        Input("decoder_head_mask", "number", _HEADS, "1 keeps a head of the decoder's self-attention, 0 removes it."),
        Input("cross_attn_head_mask", "number", _HEADS, "1 keeps a head of the cross-attention, 0 removes it."),
        Input("decoder_inputs_embeds", "float", (("batch", "target", "width"),), "Embedded target.", padding=0),
        Input("encoder_outputs", "object", (), "Output of the encoder, which is then not run."),
        Input("past_key_values", "object", (), "Cache of earlier tokens."),
        Input("cache_position", "integer", (("tokens",),), "Positions of the input tokens in the sequence."),
        Input(
            "labels",
            "number",
            (("batch", "tokens"), ("batch",), ("batch", "labels")),
            f"What the loss compares the scores with; {IGNORE_INDEX} is ignored.",
            padding=IGNORE_INDEX,
        ),
        Input("next_sentence_label", "integer", (("batch",),), "0 if the second segment continues the first, else 1."),
        Input("start_positions", "integer", (("batch",),), "Token where the answer starts."),
        Input("end_positions", "integer", (("batch",),), "Token where the answer ends."),
        Input("use_cache", "flag", (), "Return a cache."),
        Input("output_attentions", "flag", (), "Return attention weights."),
        Input("output_hidden_states", "flag", (), "Return the states after the embeddings and each layer."),
        Input("output_differential_attentions", "flag", (), "Return the difference of each pair of attention maps."),
        Input("return_dict", "flag", (), "Return a `ModelOutput` rather than a tuple."),
        Input("logits_to_keep", "object", (), "Compute scores for the last that many tokens, or those of a tensor."),
        Input("num_global_slots", "object", (), "Global tokens that a row has room for."),
        Input("padding_states", "flag", (), "Compute the states at padding as if it were text."),
    )
}


def get_input(name: str) -> Input:
    """The entry of one argument.

    Raises:
        InputError: there is none of that name.
    """
    try:
        return INPUTS[name]
    except KeyError:
        raise InputError(f"an input must be one of {', '.join(INPUTS)}. Received: {name!r}") from None


def axes_of(name: str, *, choices: bool = False) -> Axes:
    """The usual axes of an argument.

    Args:
        name: Name of the argument.
        choices: The model scores several choices for each row.
    """
    entry = get_input(name)
    axes: Axes = entry.axes[0] if entry.axes else ()
    return (*axes[:1], "choices", *axes[1:]) if choices and entry.folds else axes


def shape_of(name: str, sizes: Mapping[str, int | None], *, choices: bool = False) -> tuple[int | None, ...]:
    """The shape of an argument by the sizes of its axes; None where none is given (an input signature).

    Example:
        >>> from longspan.inputs import shape_of
        >>> shape_of("inputs_embeds", {"width": 768})
        (None, None, 768)
    """
    return tuple(sizes.get(axis) for axis in axes_of(name, choices=choices))


def dynamic_axes(names: Iterable[str], *, choices: bool = False) -> dict[str, dict[int, str]]:
    """Which axes of which arguments differ from call to call, as exporters of graphs ask for them.

    Args:
        names: Names of arguments; those that are no arrays are left out.
        choices: The model scores several choices for each row.

    Returns:
        For each argument, the name of each such axis by its number.

    Example:
        >>> from longspan.inputs import dynamic_axes
        >>> dynamic_axes(["input_ids", "inputs_embeds"])
        {'input_ids': {0: 'batch', 1: 'tokens'}, 'inputs_embeds': {0: 'batch', 1: 'tokens'}}
    """
    all_axes = {name: axes_of(name, choices=choices) for name in names if get_input(name).axes}
    return {
        name: {number: axis for number, axis in enumerate(axes) if axis in DYNAMIC_AXES}
        for name, axes in all_axes.items()
    }


def limit_of(name: str, config: Any) -> int | None:
    """The number that the values of an argument must stay below, or None if there is no such setting."""
    entry = get_input(name)
    return None if entry.limit is None else getattr(config, entry.limit, None)


def padding_of(name: str, config: Any) -> int:
    """The value of an argument at padding (0 for token ids if the configuration names none).

    Raises:
        InputError: the argument is not padded.
    """
    padding = get_input(name).padding
    if padding is None:
        raise InputError(f"only inputs with an axis of tokens are padded. Received: {name!r}")
    return (getattr(config, padding, None) or 0) if isinstance(padding, str) else padding


def longest_input(config: Any) -> int | None:
    """Most tokens that a model reads at once, special tokens included; None if it has no limit."""
    if isinstance(getattr(type(config), "max_length", None), property):  # its position table begins with unused rows
        return int(config.max_length)
    if config.model_type == "mega":  # chunks and rotary biases reach any length
        is_bounded = config.relative_positional_bias == "simple" and not config.use_chunking
        return int(config.bias_positions) if is_bounded else None
    limit: int | None = getattr(config, "max_position_embeddings", None)
    return limit
