"""DiffLlama in PyTorch (Ye et al., 2024, https://arxiv.org/abs/2410.05258): the task classes.

Axes: B batch, S tokens, T keys, H width, A softmax maps, L layers, N classes, V vocabulary.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longspan.checkpoints.names import ParameterNames
from longspan.generation.torch_mixin import GenerationMixin
from longspan.models.diffllama.config import DiffLlamaConfig
from longspan.models.diffllama.names import QUESTION_ANSWERING_NAMES
from longspan.models.diffllama.torch_backbone import DiffLlamaModel, DiffLlamaPreTrainedModel
from longspan.nn.torch.apply import project
from longspan.nn.torch.cache import Cache, LegacyCache
from longspan.nn.torch.dropout import Dropout
from longspan.nn.torch.outputs import (
    CausalLMOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    Tensors,
    TokenClassifierOutput,
    model_output,
)
from longspan.nn.torch.tasks import CausalLMModel, QuestionAnsweringModel, SequenceClassificationModel, TaskModel


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


class DiffLlamaTask(TaskModel, DiffLlamaPreTrainedModel):
    """A DiffLlama with a head: its inputs."""

    backbone = DiffLlamaModel
    input_names: ClassVar[tuple[str, ...]] = (
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values",
        "inputs_embeds",
        "use_cache",
    )

    def __init__(self, config: DiffLlamaConfig) -> None:
        """Make the backbone and the head.

        Args:
            config: Settings; the weights are random.
        """
        super().__init__(config)

    def add_backbone(self) -> None:
        """Make the backbone, which has no pooler."""
        setattr(self, self.base_model_prefix, self.backbone(self.config))


class DiffLlamaLabelTask(DiffLlamaTask):
    """A DiffLlama with a head whose labels are one tensor, `labels`."""

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
            labels: What the loss compares the scores with, as the class says; without them there is no loss.

        Returns:
            The `output_class` of the class.
        """
        row = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        flags = (output_attentions, output_hidden_states, return_dict)
        return self.run(row, (labels,), *flags, output_differential_attentions=output_differential_attentions)


class DiffLlamaForCausalLM(GenerationMixin, CausalLMModel, DiffLlamaTask):
    """DiffLlama with a language modelling head.

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

    output_class = DiffLlamaCausalLMOutput
    output_embeddings = "lm_head"

    def add_head(self) -> None:
        """Make the head."""
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size, bias=False)

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
        **loss_arguments: Any,
    ) -> Any:
        """Run the model; other inputs as in `DiffLlamaModel.forward`.

        Args:
            labels: Ids aligned with `input_ids` (the model shifts them), -100 is ignored, (B, S).
            logits_to_keep: Compute the logits of the last `logits_to_keep` tokens only; 0 computes all. A 1-D tensor
                holds the indices of the tokens. Labels need all logits.
            **loss_arguments: `num_items_in_batch` and `shift_labels`, see `causal_lm_loss`.
        """
        row = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
        flags = (output_attentions, output_hidden_states, return_dict)
        return self.run(
            row,
            (labels,),
            *flags,
            cache_position=cache_position,
            logits_to_keep=logits_to_keep,
            output_differential_attentions=output_differential_attentions,
            loss_arguments=loss_arguments,
        )

    def head(self, outputs: Any) -> Tensor:
        """Scores of the vocabulary, (B, S, V)."""
        return project(self.lm_head, outputs.last_hidden_state)


class DiffLlamaForSequenceClassification(SequenceClassificationModel, DiffLlamaLabelTask):
    """DiffLlama with a linear classifier on the last real token of each row.

    The last real token is the rightmost one that is not `config.pad_token_id`; it is simply the last token if no
    padding id is set or if `inputs_embeds` are given. Labels are class indices (B,), targets of a regression (B,) or
    (B, N), or multi-hot floats (B, N).

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

    output_class = DiffLlamaSequenceClassifierOutput

    def add_head(self) -> None:
        """Make the head."""
        self.score = nn.Linear(self.config.hidden_size, self.config.num_labels, bias=False)

    def encode(self, inputs: dict[str, Any]) -> Any:
        """The outputs of the backbone, of whose last states the last real token's is kept, (B, H)."""
        outputs = super().encode(inputs)
        ids, padding = inputs["input_ids"], self.config.pad_token_id
        outputs.last_hidden_state = _last_token(outputs.last_hidden_state, ids, padding)
        return outputs

    def head(self, outputs: Any) -> Tensor:
        """Scores of the classes, (B, N)."""
        return self.score(outputs.last_hidden_state)


class DiffLlamaForQuestionAnswering(QuestionAnsweringModel, DiffLlamaTask):
    """DiffLlama with scores for the start and the end of an answer at each token.

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
    output_class = DiffLlamaQuestionAnsweringOutput

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
        """
        row = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, False)
        labels, flags = (start_positions, end_positions), (output_attentions, output_hidden_states, return_dict)
        return self.run(row, labels, *flags, output_differential_attentions=output_differential_attentions)


class DiffLlamaForTokenClassification(DiffLlamaLabelTask):
    """DiffLlama with a linear classifier on every token; labels are classes, -100 is ignored, (B, S).

    The dropout before it is `config.classifier_dropout`, else `config.hidden_dropout`, else 0.1, as in the reference.

    Example:
        >>> import torch
        >>> from longspan import DiffLlamaConfig, DiffLlamaForTokenClassification
        >>> config = DiffLlamaConfig(
        ...     hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1, num_labels=5
        ... )
        >>> DiffLlamaForTokenClassification(config)(torch.tensor([[1, 5, 7]])).logits.shape
        torch.Size([1, 3, 5])
    """

    output_class = DiffLlamaTokenClassifierOutput

    def add_head(self) -> None:
        """Make the head."""
        settings = (getattr(self.config, name, None) for name in ("classifier_dropout", "hidden_dropout"))
        self.dropout = Dropout(next((value for value in settings if value is not None), 0.1))
        self.score = nn.Linear(self.config.hidden_size, self.config.num_labels)

    def head(self, outputs: Any) -> Tensor:
        """Scores of the classes, (B, S, N)."""
        return self.score(self.dropout(outputs.last_hidden_state))


def _last_token(hidden_states: Tensor, input_ids: Tensor | None, pad_token_id: int | None) -> Tensor:
    """The state of each row's last real token, (B, S, H) -> (B, H)."""
    if input_ids is None or pad_token_id is None:
        return hidden_states[:, -1]
    indices = torch.arange(input_ids.shape[1], device=input_ids.device)
    last = (indices * (input_ids != pad_token_id)).argmax(dim=-1)
    return hidden_states[torch.arange(input_ids.shape[0], device=input_ids.device), last]
