"""DiffLlama in PyTorch (Ye et al., 2024, https://arxiv.org/abs/2410.05258): the task classes.

Axes: B batch, S tokens, T keys, H width, A softmax maps, L layers, N classes, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longspan.checkpoints.names import ParameterNames
from longspan.errors import InputError
from longspan.generation.torch_mixin import GenerationMixin
from longspan.models.diffllama.config import DiffLlamaConfig
from longspan.models.diffllama.names import QUESTION_ANSWERING_NAMES
from longspan.models.diffllama.torch_backbone import DiffLlamaModel, DiffLlamaPreTrainedModel
from longspan.nn.torch.apply import project
from longspan.nn.torch.cache import Cache, LegacyCache
from longspan.nn.torch.losses import (
    causal_lm_loss,
    cross_entropy,
    question_answering_loss,
    sequence_classification_loss,
)
from longspan.nn.torch.outputs import (
    CausalLMOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    Tensors,
    TokenClassifierOutput,
    finish,
    model_output,
    resolve,
)


@model_output
class DiffLlamaCausalLMOutput(CausalLMOutputWithPast):
    """`differential_attentions`: A1 − λ·A2 of each layer, L × (B, A/2, S, T)."""

    differential_attentions: Tensors | None = None


@model_output
class DiffLlamaSequenceClassifierOutput(SequenceClassifierOutputWithPast):
    """`differential_attentions`: A1 − λ·A2 of each layer, L × (B, A/2, S, T)."""

    differential_attentions: Tensors | None = None


@model_output
class DiffLlamaQuestionAnsweringOutput(QuestionAnsweringModelOutput):
    """`differential_attentions`: A1 − λ·A2 of each layer, L × (B, A/2, S, T)."""

    differential_attentions: Tensors | None = None


@model_output
class DiffLlamaTokenClassifierOutput(TokenClassifierOutput):
    """`differential_attentions`: A1 − λ·A2 of each layer, L × (B, A/2, S, T)."""

    differential_attentions: Tensors | None = None


class DiffLlamaForCausalLM(GenerationMixin, DiffLlamaPreTrainedModel):
    """DiffLlama with a language modelling head.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import DiffLlamaConfig, DiffLlamaForCausalLM
        >>> config = DiffLlamaConfig(
        ...     vocab_size=100, hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1
        ... )
        >>> model = DiffLlamaForCausalLM(config).eval()
        >>> first = model(torch.tensor([[1, 5, 7]]))
        >>> second = model(torch.tensor([[9]]), past_key_values=first.past_key_values)
        >>> second.logits.shape, second.past_key_values.get_seq_length()
        (torch.Size([1, 1, 100]), 4)
    """

    def __init__(self, config: DiffLlamaConfig) -> None:
        super().__init__(config)
        self.model = DiffLlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The projection onto the vocabulary."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Replace the projection onto the vocabulary."""
        self.lm_head = new_embeddings  # type: ignore[assignment]  # any module of its shape

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        *,
        output_differential_attentions: bool = False,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; other inputs as in `DiffLlamaModel.forward`.

        Args:
            labels: Ids aligned with `input_ids` (the model shifts them), -100 is ignored, (B, S).
            logits_to_keep: Compute the logits of the last `logits_to_keep` tokens only; 0 computes all. A 1-D tensor
                holds the indices of the tokens. Labels need all logits.

        Returns:
            `DiffLlamaCausalLMOutput`.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cache_position=cache_position,
            output_differential_attentions=output_differential_attentions,
            return_dict=True,
        )
        logits = project(self.lm_head, _kept_tokens(outputs.last_hidden_state, logits_to_keep))
        output = DiffLlamaCausalLMOutput(
            loss=None if labels is None else causal_lm_loss(logits, labels),
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            differential_attentions=outputs.differential_attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


class DiffLlamaForSequenceClassification(DiffLlamaPreTrainedModel):
    """DiffLlama with a linear classifier on the last real token of each row.

    The last real token is the rightmost one that is not `config.pad_token_id`; it is simply the last token if no
    padding id is set or if `inputs_embeds` are given.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import DiffLlamaConfig, DiffLlamaForSequenceClassification
        >>> config = DiffLlamaConfig(
        ...     hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1, pad_token_id=0
        ... )
        >>> model = DiffLlamaForSequenceClassification(config)
        >>> model(torch.tensor([[1, 5, 7], [1, 6, 0]]), labels=torch.tensor([0, 1])).logits.shape
        torch.Size([2, 2])
    """

    def __init__(self, config: DiffLlamaConfig) -> None:
        super().__init__(config)
        self.model = DiffLlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        output_differential_attentions: bool = False,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; other inputs as in `DiffLlamaModel.forward`.

        Args:
            labels: Class indices (B,), targets of a regression (B,) or (B, N), or multi-hot floats (B, N).

        Returns:
            `DiffLlamaSequenceClassifierOutput`.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            output_differential_attentions=output_differential_attentions,
            return_dict=True,
        )
        logits = self.score(_last_token(outputs.last_hidden_state, input_ids, self.config.pad_token_id))
        output = DiffLlamaSequenceClassifierOutput(
            loss=None if labels is None else sequence_classification_loss(self.config, logits, labels),
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            differential_attentions=outputs.differential_attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


class DiffLlamaForQuestionAnswering(DiffLlamaPreTrainedModel):
    """DiffLlama with scores for the start and the end of an answer at each token.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import DiffLlamaConfig, DiffLlamaForQuestionAnswering
        >>> config = DiffLlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1)
        >>> output = DiffLlamaForQuestionAnswering(config)(torch.tensor([[1, 5, 7]]))
        >>> output.start_logits.shape, output.end_logits.shape
        (torch.Size([1, 3]), torch.Size([1, 3]))
    """

    base_model_prefix: ClassVar[str] = "transformer"
    names: ClassVar[ParameterNames] = QUESTION_ANSWERING_NAMES

    def __init__(self, config: DiffLlamaConfig) -> None:
        super().__init__(config)
        self.transformer = DiffLlamaModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        output_differential_attentions: bool = False,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; other inputs as in `DiffLlamaModel.forward`.

        Args:
            start_positions: Token where each answer starts, (B,); positions outside the sequence do not count.
            end_positions: Token where each answer ends, (B,); likewise.

        Returns:
            `DiffLlamaQuestionAnsweringOutput`; the loss needs both positions.
        """
        outputs = self.transformer(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=False,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            output_differential_attentions=output_differential_attentions,
            return_dict=True,
        )
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = question_answering_loss(start_logits, end_logits, start_positions, end_positions)
        output = DiffLlamaQuestionAnsweringOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            differential_attentions=outputs.differential_attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


class DiffLlamaForTokenClassification(DiffLlamaPreTrainedModel):
    """DiffLlama with a linear classifier on every token.

    The dropout before it is `config.classifier_dropout`, else `config.hidden_dropout`, else 0.1, as in the reference.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import DiffLlamaConfig, DiffLlamaForTokenClassification
        >>> config = DiffLlamaConfig(
        ...     hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1, num_labels=5
        ... )
        >>> DiffLlamaForTokenClassification(config)(torch.tensor([[1, 5, 7]])).logits.shape
        torch.Size([1, 3, 5])
    """

    def __init__(self, config: DiffLlamaConfig) -> None:
        super().__init__(config)
        settings = (getattr(config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
        self.model = DiffLlamaModel(config)
        self.dropout = nn.Dropout(next((value for value in settings if value is not None), 0.1))
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        *,
        output_differential_attentions: bool = False,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; other inputs as in `DiffLlamaModel.forward`.

        Args:
            labels: Class of each token, -100 is ignored, (B, S).

        Returns:
            `DiffLlamaTokenClassifierOutput`.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            output_differential_attentions=output_differential_attentions,
            return_dict=True,
        )
        logits = self.score(self.dropout(outputs.last_hidden_state))
        output = DiffLlamaTokenClassifierOutput(
            loss=None if labels is None else cross_entropy(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            differential_attentions=outputs.differential_attentions,
        )
        return finish(output, resolve(return_dict, self.config.return_dict))


def _kept_tokens(hidden_states: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The states (B, S', H) whose logits are wanted: the last few, the indexed ones, or all for 0."""
    if isinstance(logits_to_keep, Tensor):
        if logits_to_keep.dim() != 1:
            raise InputError(
                f"logits_to_keep must be an int or a 1-D tensor of indices. Received: {logits_to_keep.dim()} axes"
            )
        return hidden_states[:, logits_to_keep]
    if logits_to_keep < 0:
        raise InputError(f"logits_to_keep must be 0 (all) or positive. Received: {logits_to_keep}")
    return hidden_states if logits_to_keep == 0 else hidden_states[:, -logits_to_keep:]


def _last_token(hidden_states: Tensor, input_ids: Tensor | None, pad_token_id: int | None) -> Tensor:
    """The state of each row's last real token, (B, S, H) -> (B, H)."""
    if input_ids is None or pad_token_id is None:
        return hidden_states[:, -1]
    indices = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (indices * (input_ids != pad_token_id)).argmax(dim=-1)
    return hidden_states[torch.arange(input_ids.shape[0], device=input_ids.device), last]
