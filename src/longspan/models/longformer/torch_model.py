"""Longformer in PyTorch (Beltagy et al., 2020, https://arxiv.org/abs/2004.05150): the backbone, then the task classes.

Axes: B batch, S tokens, H width, A heads, L layers, N classes, C choices, V vocabulary.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor

from longspan.checkpoints.names import ParameterNames
from longspan.models.longformer.config import LongformerConfig
from longspan.models.longformer.names import NAMES
from longspan.models.longformer.torch_layers import (
    LongformerEmbeddings,
    LongformerEncoder,
    after_separator,
    before_separator,
    first_token,
    make_plan,
)
from longspan.models.longformer.torch_outputs import (
    LongformerBaseModelOutputWithPooling,
    LongformerMaskedLMOutput,
    LongformerMultipleChoiceModelOutput,
    LongformerQuestionAnsweringModelOutput,
    LongformerSequenceClassifierOutput,
    LongformerTokenClassifierOutput,
)
from longspan.nn.torch.base import PreTrainedModel
from longspan.nn.torch.checks import check_input, check_length, check_masked, input_shape
from longspan.nn.torch.heads import LanguageModelHead, Pooler
from longspan.nn.torch.masks import expand_head_mask, finite_at_padding
from longspan.nn.torch.outputs import finish, resolve
from longspan.nn.torch.tasks import (
    FirstTokenClassificationModel,
    MultipleChoiceModel,
    QuestionAnsweringModel,
    TaskModel,
    TokenClassificationModel,
)
from longspan.ops.torch.context import running_count, token_places
from longspan.ops.torch.sliding_window import DISPATCHER, is_traced


class LongformerPreTrainedModel(PreTrainedModel):
    """What all Longformer classes share."""

    config_class: ClassVar[type[LongformerConfig]] = LongformerConfig
    base_model_prefix: ClassVar[str] = "longformer"
    names: ClassVar[ParameterNames] = NAMES
    input_embeddings: ClassVar[str] = "embeddings.word_embeddings"
    attention_in: ClassVar[tuple[str, str] | None] = ("encoder.layer", "attention")
    config: LongformerConfig

    def check_implementation(self, name: str) -> None:
        """Raise `InputError` unless `name` is an implementation of sliding-window attention."""
        DISPATCHER.check_name(name)


class LongformerModel(LongformerPreTrainedModel):
    """Longformer without a head: an encoder whose attention is linear in the length.

    Each token sees a window of neighbours; tokens with global attention see all tokens and are seen by all. Time and
    memory follow the real length of the input: nothing is padded to the window.

    Args:
        config: Settings; the weights are random.
        add_pooling_layer: Have the pooler, which gives `pooler_output`.

    Example:
        >>> import torch
        >>> from longspan import LongformerConfig, LongformerModel
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, attention_window=4)
        >>> global_attention_mask = torch.tensor([[1, 0, 0, 0, 0, 0]])
        >>> output = LongformerModel(config)(
        ...     torch.tensor([[0, 7, 8, 9, 10, 2]]), global_attention_mask=global_attention_mask, output_attentions=True
        ... )
        >>> output.last_hidden_state.shape, output.attentions[0].shape, output.global_attentions[0].shape
        (torch.Size([1, 6, 32]), torch.Size([1, 2, 6, 6]), torch.Size([1, 2, 6, 1]))
    """

    def __init__(self, config: LongformerConfig, add_pooling_layer: bool = True) -> None:
        super().__init__(config)
        self.embeddings = LongformerEmbeddings(config)
        self.encoder = LongformerEncoder(config)
        self.pooler = Pooler(hidden_size=config.hidden_size) if add_pooling_layer else None
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Token ids, (B, S). Exactly one of this and `inputs_embeds` is given.
            attention_mask: 1 for real tokens, 0 for padding, 2 for tokens with global attention, (B, S). States at
                padding are unspecified.
            global_attention_mask: Nonzero for tokens with global attention, (B, S); default: none. Rows may differ in
                their number; padding never attends, whatever this mask says there.
            head_mask: 1 keeps a head, 0 removes it, (A,) or (L, A).
            token_type_ids: Segment of each token, (B, S); default 0.
            position_ids: Position of each token, (B, S); default: counted over the ids that are not padding, from
                `pad_token_id + 1` on.
            inputs_embeds: Embedded tokens, (B, S, H).
            output_attentions: Return attention weights; L × (B, A, S, G + W + 1) and L × (B, A, S, G), see
                `LongformerBaseModelOutputWithPooling`.
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H).
            return_dict: Return a `ModelOutput` rather than a tuple.

        Returns:
            `LongformerBaseModelOutputWithPooling`.

        Raises:
            InputError: shapes disagree, an id is out of range, or the input is longer than the positions.
        """
        config = self.config
        shape = input_shape(input_ids, inputs_embeds)
        inputs_embeds = finite_at_padding(inputs_embeds, attention_mask)
        device = (inputs_embeds if input_ids is None else input_ids).device  # type: ignore[union-attr]  # checked
        sizes = {"batch": shape[0], "tokens": shape[1]}
        check_input(input_ids, "input_ids", config, **sizes)
        check_masked(input_ids, attention_mask, config.pad_token_id)
        check_input(token_type_ids, "token_type_ids", config, **sizes)
        needs_weights = resolve(output_attentions, config.output_attentions)
        if self.context_shard is not None:
            layers: Any = self.encoder.layer
            reach: int = max((layer.attention.self.radius for layer in layers), default=0)
            self.context_shard.check_call(shape, device, needs_weights=needs_weights, reach=reach)
        plan = make_plan(
            config,
            shape=shape,
            device=device,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            needs_weights=needs_weights,
            shard=self.context_shard,
        )
        hidden_states = self.embeddings(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            token_type_ids=token_type_ids,
            position_ids=self._positions(input_ids, position_ids, shape, device),
        )
        last_hidden_state, hidden, attentions, global_attentions = self.encoder(
            hidden_states,
            plan=plan,
            head_mask=expand_head_mask(
                head_mask, num_layers=config.num_hidden_layers, num_heads=config.num_attention_heads
            ),
            output_hidden_states=resolve(output_hidden_states, config.output_hidden_states),
        )
        output = LongformerBaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state,
            pooler_output=None if self.pooler is None else self.pooler(last_hidden_state),
            hidden_states=hidden,
            attentions=attentions,
            global_attentions=global_attentions,
        )
        return finish(output, resolve(return_dict, config.return_dict))

    def _positions(
        self, input_ids: Tensor | None, position_ids: Tensor | None, shape: tuple[int, int], device: torch.device
    ) -> Tensor:
        """Rows of the position table, (B, S) or (1, S)."""
        config = self.config
        limit_name = "max_position_embeddings - pad_token_id - 1"
        if position_ids is not None:
            check_input(position_ids, "position_ids", config, batch=shape[0], tokens=shape[1])
            return position_ids
        padding, shard = config.pad_token_id or 0, self.context_shard
        if input_ids is None:
            length = shape[1] * (1 if shard is None else shard.size)
            check_length(length, config.max_length, limit_name=limit_name)
            return token_places(shape[1], device, shard).unsqueeze(0) + (padding + 1)
        is_token = input_ids != padding
        count = running_count(is_token, shard)
        if not is_traced(input_ids) and count.numel() > 0:
            last = count[:, -1] if shard is None else shard.highest(count[:, -1])
            check_length(int(last.amax()), config.max_length, limit_name=limit_name)
        return count * is_token + padding


class LongformerTask(TaskModel, LongformerPreTrainedModel):
    """A Longformer with a head: its inputs, and which tokens attend globally by default."""

    backbone = LongformerModel
    input_names: ClassVar[tuple[str, ...]] = (
        "input_ids",
        "attention_mask",
        "global_attention_mask",
        "head_mask",
        "token_type_ids",
        "position_ids",
        "inputs_embeds",
    )

    def __init__(self, config: LongformerConfig) -> None:
        """Make the backbone and the head.

        Args:
            config: Settings; the weights are random.
        """
        super().__init__(config)

    @property
    def head_dropout(self) -> float:
        """Probability of the dropout before the head."""
        return self.config.hidden_dropout_prob

    def default_global_tokens(self, inputs: dict[str, Any]) -> Tensor | None:
        """Tokens with global attention if no mask says it, boolean (B, S); here none."""
        return None

    def encode(self, inputs: dict[str, Any]) -> Any:
        """The outputs of the backbone, with the default of the class where `global_attention_mask` is missing."""
        if inputs["global_attention_mask"] is None:
            inputs = {**inputs, "global_attention_mask": self.default_global_tokens(inputs)}
        return super().encode(inputs)


class LongformerLabelTask(LongformerTask):
    """A Longformer with a head whose labels are one tensor, `labels`."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `LongformerModel.forward`.

        Args:
            global_attention_mask: Default: what `default_global_tokens` of the class says.
            labels: What the loss compares the scores with, as the class says; without them there is no loss.

        Returns:
            The `output_class` of the class.
        """
        row = (input_ids, attention_mask, global_attention_mask, head_mask, token_type_ids, position_ids, inputs_embeds)
        return self.run(row, (labels,), output_attentions, output_hidden_states, return_dict)


class LongformerForMaskedLM(LongformerLabelTask):
    """Longformer that predicts masked tokens; labels are their ids, -100 elsewhere, (B, S).

    Example:
        >>> import torch
        >>> from longspan import LongformerConfig, LongformerForMaskedLM
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> LongformerForMaskedLM(config)(torch.tensor([[0, 7, 4, 2]])).logits.shape
        torch.Size([1, 4, 30522])
    """

    output_class = LongformerMaskedLMOutput
    output_embeddings = "lm_head.decoder"

    def add_head(self) -> None:
        """Make the head."""
        config = self.config
        self.lm_head = LanguageModelHead(
            hidden_size=config.hidden_size, vocab_size=config.vocab_size, layer_norm_eps=config.layer_norm_eps
        )

    def head(self, outputs: Any) -> Tensor:
        """Scores of the vocabulary, (B, S, V)."""
        return self.lm_head(outputs.last_hidden_state)


class LongformerForSequenceClassification(FirstTokenClassificationModel, LongformerLabelTask):
    """Longformer with a classification or regression head on the first token, which attends globally by default.

    Labels are class indices (B,), values of a regression (B,), or multi-hot floats (B, N); see `problem_type`.

    Example:
        >>> import torch
        >>> from longspan import LongformerConfig, LongformerForSequenceClassification
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=3)
        >>> LongformerForSequenceClassification(config)(torch.tensor([[0, 7, 8, 2]])).logits.shape
        torch.Size([1, 3])
    """

    output_class = LongformerSequenceClassifierOutput

    def default_global_tokens(self, inputs: dict[str, Any]) -> Tensor:
        """The first token."""
        return first_token(*_shape_and_device(inputs), self.context_shard)


class LongformerForQuestionAnswering(QuestionAnsweringModel, LongformerTask):
    """Longformer that scores each token as start and as end of an answer; the question attends globally by default.

    Example:
        >>> import torch
        >>> from longspan import LongformerConfig, LongformerForQuestionAnswering
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> LongformerForQuestionAnswering(config)(torch.tensor([[0, 7, 2, 2, 8, 9, 2]])).start_logits.shape
        torch.Size([1, 7])
    """

    output_class = LongformerQuestionAnsweringModelOutput

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `LongformerModel.forward`.

        Args:
            global_attention_mask: Default: the question, that is, all tokens before the first separator. A row
                without separator takes the tokens before its first one of segment 1; without that, its first token,
                with a warning.
            start_positions: Token where the answer starts, (B,); outside the sequence it does not count.
            end_positions: Token where it ends, (B,).
        """
        row = (input_ids, attention_mask, global_attention_mask, head_mask, token_type_ids, position_ids, inputs_embeds)
        return self.run(row, (start_positions, end_positions), output_attentions, output_hidden_states, return_dict)

    def default_global_tokens(self, inputs: dict[str, Any]) -> Tensor:
        """The question."""
        ids, types, separator = inputs["input_ids"], inputs["token_type_ids"], self.config.sep_token_id
        shape, shard = _shape_and_device(inputs)[0], self.context_shard
        question, lacking = before_separator(ids, types, shape=shape, separator=separator, shard=shard)
        _warn_if_any(lacking, "a question: no separator and no token of segment 1")
        return question


class LongformerForTokenClassification(TokenClassificationModel, LongformerLabelTask):
    """Longformer with a classification head on every token; labels are class indices, -100 is ignored, (B, S).

    Example:
        >>> import torch
        >>> from longspan import LongformerConfig, LongformerForTokenClassification
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=5)
        >>> LongformerForTokenClassification(config)(torch.tensor([[0, 7, 8, 2]])).logits.shape
        torch.Size([1, 4, 5])
    """

    output_class = LongformerTokenClassifierOutput


class LongformerForMultipleChoice(MultipleChoiceModel, LongformerTask):
    """Longformer that scores each of several choices; a choice attends globally by default.

    Example:
        >>> import torch
        >>> from longspan import LongformerConfig, LongformerForMultipleChoice
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> choices = torch.tensor([[[0, 7, 2, 2, 8, 2], [0, 7, 2, 2, 9, 2]]])
        >>> LongformerForMultipleChoice(config)(choices).logits.shape
        torch.Size([1, 2])
    """

    output_class = LongformerMultipleChoiceModelOutput

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `LongformerModel.forward`, each with an axis of choices: (B, C, S).

        Args:
            global_attention_mask: Default: the choice, that is, all tokens behind the first two separators. A row
                without a separator takes its first token, with a warning.
            labels: Index of the correct choice, (B,).
        """
        row = (input_ids, attention_mask, global_attention_mask, head_mask, token_type_ids, position_ids, inputs_embeds)
        return self.run(row, (labels,), output_attentions, output_hidden_states, return_dict)

    def default_global_tokens(self, inputs: dict[str, Any]) -> Tensor:
        """The choice."""
        ids, separator = inputs["input_ids"], self.config.sep_token_id
        shape, shard = _shape_and_device(inputs)[0], self.context_shard
        choice, lacking = after_separator(ids, shape=shape, separator=separator, shard=shard)
        _warn_if_any(lacking, "a choice: no separator")
        return choice


def _shape_and_device(inputs: dict[str, Any]) -> tuple[tuple[int, int], torch.device]:
    """(B, S) and where the tokens are."""
    ids, embeds = inputs["input_ids"], inputs["inputs_embeds"]
    return input_shape(ids, embeds), (embeds if ids is None else ids).device


def _warn_if_any(lacking: Tensor, what: str) -> None:
    if not is_traced(lacking) and lacking.any():
        warnings.warn(
            f"the model cannot find {what} in {int(lacking.sum())} of {len(lacking)} rows; global attention is on "
            "their first token. Pass global_attention_mask",
            stacklevel=3,
        )
