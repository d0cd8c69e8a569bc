"""Longformer in PyTorch (Beltagy et al., 2020, https://arxiv.org/abs/2004.05150): the backbone, then the task classes.

Axes: B batch, S tokens, H width, A heads, L layers, N classes, C choices, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longspan.checkpoints.names import ParameterNames
from longspan.errors import InputError
from longspan.models.longformer.config import LongformerConfig
from longspan.models.longformer.names import NAMES
from longspan.models.longformer.torch_global import after_separator, before_separator, first_token, make_plan
from longspan.models.longformer.torch_layers import LongformerEmbeddings, LongformerEncoder, LongformerLMHead
from longspan.models.longformer.torch_outputs import (
    LongformerBaseModelOutputWithPooling,
    LongformerMaskedLMOutput,
    LongformerMultipleChoiceModelOutput,
    LongformerQuestionAnsweringModelOutput,
    LongformerSequenceClassifierOutput,
    LongformerTokenClassifierOutput,
)
from longspan.nn.torch.base import PreTrainedModel
from longspan.nn.torch.checks import check_ids, check_length, check_shape, input_shape
from longspan.nn.torch.heads import FirstTokenClassificationHead, Pooler, fold_choices
from longspan.nn.torch.losses import cross_entropy, question_answering_loss, sequence_classification_loss
from longspan.nn.torch.masks import expand_head_mask
from longspan.nn.torch.outputs import finish, resolve
from longspan.ops.torch.sliding_window import DISPATCHER, is_traced


class LongformerPreTrainedModel(PreTrainedModel):
    """What all Longformer classes share."""

    config_class: ClassVar[type[LongformerConfig]] = LongformerConfig
    base_model_prefix: ClassVar[str] = "longformer"
    names: ClassVar[ParameterNames] = NAMES
    config: LongformerConfig

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=self.config.initializer_range)
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight.data[module.padding_idx].zero_()
        if isinstance(module, nn.LayerNorm):
            module.weight.data.fill_(1.0)
        if isinstance(module, nn.Linear | nn.LayerNorm | LongformerLMHead) and module.bias is not None:
            module.bias.data.zero_()

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

    def get_input_embeddings(self) -> nn.Module:
        """The word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the word embeddings."""
        self.embeddings.word_embeddings = value  # type: ignore[assignment]  # any module of its shape

    def _prune_heads(self, heads_to_prune: Mapping[int, list[int]]) -> None:
        for layer, heads in heads_to_prune.items():
            if not 0 <= layer < len(self.encoder.layer):
                raise InputError(f"layers to prune must lie in [0, {len(self.encoder.layer)}). Received: {layer}")
            block: Any = self.encoder.layer[layer]
            block.attention.prune_heads(list(heads))

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
                their number.
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
            InputError: shapes disagree, an id is out of range, the input is longer than the positions, or padding has
                global attention.
        """
        config = self.config
        shape = input_shape(input_ids, inputs_embeds)
        device = (inputs_embeds if input_ids is None else input_ids).device  # type: ignore[union-attr]  # checked
        if input_ids is not None:
            check_ids(input_ids, config.vocab_size, name="input_ids", limit_name="vocab_size")
        if token_type_ids is not None:
            check_shape(token_type_ids, shape, name="token_type_ids", axes="(batch, tokens)")
            check_ids(token_type_ids, config.type_vocab_size, name="token_type_ids", limit_name="type_vocab_size")
        plan = make_plan(
            config,
            shape=shape,
            device=device,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            needs_weights=resolve(output_attentions, config.output_attentions),
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
            check_shape(position_ids, shape, name="position_ids", axes="(batch, tokens)")
            limit = config.max_position_embeddings
            check_ids(position_ids, limit, name="position_ids", limit_name="max_position_embeddings")
            return position_ids
        padding = config.pad_token_id or 0
        if input_ids is None:
            check_length(shape[1], config.max_length, limit_name=limit_name)
            return torch.arange(padding + 1, padding + 1 + shape[1], device=device).unsqueeze(0)
        is_token = input_ids != padding
        count = is_token.cumsum(dim=1)
        if not is_traced(input_ids) and count.numel() > 0:
            check_length(int(count[:, -1].amax()), config.max_length, limit_name=limit_name)
        return count * is_token + padding


class LongformerForMaskedLM(LongformerPreTrainedModel):
    """Longformer that predicts masked tokens.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import LongformerConfig, LongformerForMaskedLM
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> LongformerForMaskedLM(config)(torch.tensor([[0, 7, 4, 2]])).logits.shape
        torch.Size([1, 4, 30522])
    """

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__(config)
        self.longformer = LongformerModel(config, add_pooling_layer=False)
        self.lm_head = LongformerLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The projection onto the vocabulary."""
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the projection onto the vocabulary and its bias."""
        self.lm_head.decoder = new_embeddings  # type: ignore[assignment]  # any module of its shape
        self.lm_head.bias = new_embeddings.bias  # type: ignore[assignment]  # any module of its shape

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
            labels: Ids of the masked tokens, -100 elsewhere, (B, S).

        Returns:
            `LongformerMaskedLMOutput`.
        """
        outputs = self.longformer(
            input_ids,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            head_mask=head_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        output = LongformerMaskedLMOutput(
            loss=None if labels is None else cross_entropy(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            global_attentions=outputs.global_attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


class LongformerForSequenceClassification(LongformerPreTrainedModel):
    """Longformer with a classification or regression head on the first token.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import LongformerConfig, LongformerForSequenceClassification
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=3)
        >>> LongformerForSequenceClassification(config)(torch.tensor([[0, 7, 8, 2]])).logits.shape
        torch.Size([1, 3])
    """

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__(config)
        self.longformer = LongformerModel(config, add_pooling_layer=False)
        self.classifier = FirstTokenClassificationHead(
            hidden_size=config.hidden_size, dropout=config.hidden_dropout_prob, num_labels=config.num_labels
        )
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
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `LongformerModel.forward`.

        Args:
            global_attention_mask: Default: the first token.
            labels: Class indices (B,), values of a regression (B,), or multi-hot floats (B, N); see `problem_type`.

        Returns:
            `LongformerSequenceClassifierOutput`.
        """
        if global_attention_mask is None:
            shape = input_shape(input_ids, inputs_embeds)
            device = (inputs_embeds if input_ids is None else input_ids).device  # type: ignore[union-attr]  # checked
            global_attention_mask = _at_real_tokens(first_token(shape, device), attention_mask)
        outputs = self.longformer(
            input_ids,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            head_mask=head_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(outputs.last_hidden_state)
        output = LongformerSequenceClassifierOutput(
            loss=None if labels is None else sequence_classification_loss(self.config, logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            global_attentions=outputs.global_attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


class LongformerForQuestionAnswering(LongformerPreTrainedModel):
    """Longformer that scores each token as start and as end of an answer.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import LongformerConfig, LongformerForQuestionAnswering
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> LongformerForQuestionAnswering(config)(torch.tensor([[0, 7, 2, 2, 8, 9, 2]])).start_logits.shape
        torch.Size([1, 7])
    """

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__(config)
        self.longformer = LongformerModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
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

        Returns:
            `LongformerQuestionAnsweringModelOutput`.
        """
        if global_attention_mask is None:
            question, lacking = before_separator(
                input_ids,
                token_type_ids,
                shape=input_shape(input_ids, inputs_embeds),
                separator=self.config.sep_token_id,
            )
            _warn_if_any(lacking, "a question: no separator and no token of segment 1")
            global_attention_mask = _at_real_tokens(question, attention_mask)
        outputs = self.longformer(
            input_ids,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            head_mask=head_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = question_answering_loss(start_logits, end_logits, start_positions, end_positions)
        output = LongformerQuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            global_attentions=outputs.global_attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


class LongformerForTokenClassification(LongformerPreTrainedModel):
    """Longformer with a classification head on every token.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import LongformerConfig, LongformerForTokenClassification
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1, num_labels=5)
        >>> LongformerForTokenClassification(config)(torch.tensor([[0, 7, 8, 2]])).logits.shape
        torch.Size([1, 4, 5])
    """

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__(config)
        self.longformer = LongformerModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
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
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `LongformerModel.forward`.

        Args:
            labels: Class index of each token, -100 is ignored, (B, S).

        Returns:
            `LongformerTokenClassifierOutput`.
        """
        outputs = self.longformer(
            input_ids,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            head_mask=head_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        output = LongformerTokenClassifierOutput(
            loss=None if labels is None else cross_entropy(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            global_attentions=outputs.global_attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


class LongformerForMultipleChoice(LongformerPreTrainedModel):
    """Longformer that scores each of several choices.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import LongformerConfig, LongformerForMultipleChoice
        >>> config = LongformerConfig(hidden_size=32, num_attention_heads=2, num_hidden_layers=1)
        >>> choices = torch.tensor([[[0, 7, 2, 2, 8, 2], [0, 7, 2, 2, 9, 2]]])
        >>> LongformerForMultipleChoice(config)(choices).logits.shape
        torch.Size([1, 2])
    """

    def __init__(self, config: LongformerConfig) -> None:
        super().__init__(config)
        self.longformer = LongformerModel(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, 1)
        self.post_init()

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

        Returns:
            `LongformerMultipleChoiceModelOutput`.
        """
        num_choices, folded = fold_choices(
            input_ids, token_type_ids, attention_mask, global_attention_mask, position_ids, inputs_embeds
        )
        input_ids, token_type_ids, attention_mask, global_attention_mask, position_ids, inputs_embeds = folded
        if global_attention_mask is None:
            choice, lacking = after_separator(
                input_ids, shape=input_shape(input_ids, inputs_embeds), separator=self.config.sep_token_id
            )
            _warn_if_any(lacking, "a choice: no separator")
            global_attention_mask = _at_real_tokens(choice, attention_mask)
        outputs = self.longformer(
            input_ids,
            attention_mask=attention_mask,
            global_attention_mask=global_attention_mask,
            head_mask=head_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            return_dict=True,
        )
        logits = self.classifier(self.dropout(outputs.pooler_output)).view(-1, num_choices)
        output = LongformerMultipleChoiceModelOutput(
            loss=None if labels is None else cross_entropy(logits, labels.reshape(-1)),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            global_attentions=outputs.global_attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


def _at_real_tokens(mask: Tensor, attention_mask: Tensor | None) -> Tensor:
    """A default global mask without padding."""
    if attention_mask is None:
        return mask
    check_shape(attention_mask, tuple(mask.shape), name="attention_mask", axes="(batch, tokens)")
    return mask.to(attention_mask.device) & (attention_mask != 0)


def _warn_if_any(lacking: Tensor, what: str) -> None:
    if not is_traced(lacking) and lacking.any():
        warnings.warn(
            f"the model cannot find {what} in {int(lacking.sum())} of {len(lacking)} rows; global attention is on "
            "their first token. Pass global_attention_mask",
            stacklevel=3,
        )
