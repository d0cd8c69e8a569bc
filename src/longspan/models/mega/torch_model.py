"""MEGA in PyTorch (Ma et al., 2022, https://arxiv.org/abs/2209.10655): the task classes.

The layers are in `torch_layers.py`, the backbone is in `torch_backbone.py`.
Axes: B batch, S tokens, D width, N classes, C choices, V vocabulary.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longspan.configuration import require
from longspan.errors import InputError
from longspan.generation.config import GenerationConfig
from longspan.generation.torch_mixin import GenerationMixin
from longspan.models.mega.config import MegaConfig
from longspan.models.mega.torch_backbone import MegaModel, MegaPreTrainedModel
from longspan.models.mega.torch_cache import MegaCache
from longspan.nn.torch.apply import project
from longspan.nn.torch.cache import Cache, LegacyCache
from longspan.nn.torch.outputs import (
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    resolve,
)
from longspan.nn.torch.tasks import (
    CausalLMModel,
    FirstTokenClassificationModel,
    MultipleChoiceModel,
    QuestionAnsweringModel,
    TaskModel,
    TokenClassificationModel,
)

__all__ = [
    "MegaCache",
    "MegaForCausalLM",
    "MegaForMaskedLM",
    "MegaForMultipleChoice",
    "MegaForQuestionAnswering",
    "MegaForSequenceClassification",
    "MegaForTokenClassification",
    "MegaModel",
    "MegaPreTrainedModel",
]


def _hidden_dense(config: MegaConfig) -> nn.Linear | None:
    """The layer before a language modelling head, if it is configured."""
    return nn.Linear(config.hidden_size, config.hidden_size) if config.add_lm_hidden_dense_layer else None


def _with_hidden_dense(dense: nn.Linear | None, states: Tensor) -> Tensor:
    return states if dense is None else torch.tanh(project(dense, states))


class MegaTask(TaskModel, MegaPreTrainedModel):
    """A MEGA with a head: its inputs."""

    backbone = MegaModel
    input_names: ClassVar[tuple[str, ...]] = (
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "inputs_embeds",
        "encoder_hidden_states",
        "encoder_attention_mask",
    )

    def __init__(self, config: MegaConfig) -> None:
        """Make the backbone and the head.

        Args:
            config: Settings; the weights are random.
        """
        super().__init__(config)


class MegaLabelTask(MegaTask):
    """A MEGA with a head whose labels are one tensor, `labels`."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `MegaModel.forward`.

        Args:
            labels: What the loss compares the scores with, as the class says; without them there is no loss.

        Returns:
            The `output_class` of the class.
        """
        row = (input_ids, attention_mask, token_type_ids, inputs_embeds)
        return self.run(row, (labels,), output_attentions, output_hidden_states, return_dict, use_cache=False)


class MegaForCausalLM(GenerationMixin, CausalLMModel, MegaTask):
    """MEGA as a causal language model; needs `config.is_decoder=True` and `config.bidirectional=False`.

    Raises:
        ConfigError: the settings would show a token its future.

    Example:
        >>> import torch
        >>> from longspan import MegaConfig, MegaForCausalLM
        >>> config = MegaConfig(num_hidden_layers=1, is_decoder=True, bidirectional=False)
        >>> output = MegaForCausalLM(config)(torch.tensor([[0, 31414, 6]]) % 30522)
        >>> output.logits.shape, output.past_key_values.get_seq_length()
        (torch.Size([1, 3, 30522]), 3)
    """

    output_class = CausalLMOutputWithCrossAttentions
    output_embeddings = "lm_head"

    def add_backbone(self) -> None:
        """Make the backbone, if it is a decoder's."""
        require(
            self.config.is_decoder,
            "MegaForCausalLM needs is_decoder=True and bidirectional=False: otherwise a token sees its future",
            is_decoder=self.config.is_decoder,
            bidirectional=self.config.bidirectional,
        )
        super().add_backbone()

    def add_head(self) -> None:
        """Make the head."""
        self.dense = _hidden_dense(self.config)
        self.lm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **loss_arguments: Any,
    ) -> Any:
        """Run the model; inputs as in `MegaModel.forward`.

        Args:
            labels: Ids, -100 is ignored, (B, S); the shift by one token happens here.
            logits_to_keep: Compute scores for the last that many tokens only, or for the token indices of a 1-D
                tensor; 0 means all.
            **loss_arguments: `num_items_in_batch` and `shift_labels`, see `causal_lm_loss`.
        """
        row = (input_ids, attention_mask, token_type_ids, inputs_embeds, encoder_hidden_states, encoder_attention_mask)
        return self.run(
            row,
            (labels,),
            output_attentions,
            output_hidden_states,
            return_dict,
            past_key_values=past_key_values,
            use_cache=resolve(use_cache, self.config.use_cache) and labels is None,
            logits_to_keep=logits_to_keep,
            loss_arguments=loss_arguments,
        )

    def head(self, outputs: Any) -> Tensor:
        """Scores of the vocabulary, (B, S, V)."""
        return project(self.lm_head, _with_hidden_dense(self.dense, outputs.last_hidden_state))

    def max_positions(self) -> int | None:
        """Tokens that a simple bias reaches; chunks and a rotary bias have no limit."""
        config = self.config
        unlimited = config.use_chunking or config.relative_positional_bias == "rotary"
        return None if unlimited else config.bias_positions

    def make_generation_cache(self, config: GenerationConfig, *, capacity: int) -> None:
        """None: each call makes a new `MegaCache`, whose size does not depend on the tokens read if there are chunks.

        Raises:
            InputError: another cache is asked for.
        """
        if config.cache_implementation is not None:
            raise InputError(
                f"MEGA keeps a cache of its own. Received: cache_implementation={config.cache_implementation!r}"
            )


class MegaForMaskedLM(MegaTask):
    """MEGA that predicts masked tokens.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import MegaConfig, MegaForMaskedLM
        >>> model = MegaForMaskedLM(MegaConfig(num_hidden_layers=1))
        >>> model(torch.tensor([[0, 133, 812, 2]])).logits.shape
        torch.Size([1, 4, 30522])
    """

    output_class = MaskedLMOutput
    output_embeddings = "mlm_head"

    def __init__(self, config: MegaConfig) -> None:
        super().__init__(config)
        if config.is_decoder:
            warnings.warn("MegaForMaskedLM should see both directions: set config.is_decoder=False", stacklevel=2)

    def add_head(self) -> None:
        """Make the head."""
        self.dense = _hidden_dense(self.config)
        self.mlm_head = nn.Linear(self.config.hidden_size, self.config.vocab_size)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `MegaModel.forward`.

        Args:
            labels: Ids of the masked tokens, -100 elsewhere, (B, S).
        """
        row = (input_ids, attention_mask, token_type_ids, inputs_embeds, encoder_hidden_states, encoder_attention_mask)
        return self.run(row, (labels,), output_attentions, output_hidden_states, return_dict, use_cache=False)

    def head(self, outputs: Any) -> Tensor:
        """Scores of the vocabulary, (B, S, V)."""
        return project(self.mlm_head, _with_hidden_dense(self.dense, outputs.last_hidden_state))


class MegaForSequenceClassification(FirstTokenClassificationModel, MegaLabelTask):
    """MEGA with a classifier or regressor on the first token.

    Labels are class indices (B,), regression targets (B,) or (B, N), or multi-hot floats (B, N).

    Args:
        config: Settings; the weights are random. `num_labels` is the number of classes, 1 for a regression.

    Example:
        >>> import torch
        >>> from longspan import MegaConfig, MegaForSequenceClassification
        >>> model = MegaForSequenceClassification(MegaConfig(num_hidden_layers=1, num_labels=3))
        >>> output = model(torch.tensor([[0, 133, 2]]), labels=torch.tensor([1]))
        >>> output.logits.shape, output.loss.shape
        (torch.Size([1, 3]), torch.Size([]))
    """


class MegaForMultipleChoice(MultipleChoiceModel, MegaTask):
    """MEGA that scores several continuations of one text.

    Example:
        >>> import torch
        >>> from longspan import MegaConfig, MegaForMultipleChoice
        >>> model = MegaForMultipleChoice(MegaConfig(num_hidden_layers=1))
        >>> model(torch.tensor([[[0, 133, 2], [0, 812, 2]]])).logits.shape
        torch.Size([1, 2])
    """

    @property
    def head_dropout(self) -> float:
        """Probability of the dropout before the head."""
        return self.config.hidden_dropout_prob

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `MegaModel.forward`, with an axis of choices: (B, C, S).

        Args:
            labels: Index of the right choice, (B,).
        """
        row = (input_ids, attention_mask, token_type_ids, inputs_embeds)
        return self.run(row, (labels,), output_attentions, output_hidden_states, return_dict, use_cache=False)


class MegaForTokenClassification(TokenClassificationModel, MegaLabelTask):
    """MEGA with a classifier on every token; labels are class indices, -100 is ignored, (B, S).

    Args:
        config: Settings; the weights are random. `num_labels` is the number of classes.

    Example:
        >>> import torch
        >>> from longspan import MegaConfig, MegaForTokenClassification
        >>> model = MegaForTokenClassification(MegaConfig(num_hidden_layers=1, num_labels=9))
        >>> model(torch.tensor([[0, 133, 2]])).logits.shape
        torch.Size([1, 3, 9])
    """


class MegaForQuestionAnswering(QuestionAnsweringModel, MegaTask):
    """MEGA that finds the span of an answer: scores of being its first and its last token.

    Example:
        >>> import torch
        >>> from longspan import MegaConfig, MegaForQuestionAnswering
        >>> output = MegaForQuestionAnswering(MegaConfig(num_hidden_layers=1))(torch.tensor([[0, 133, 2]]))
        >>> output.start_logits.shape, output.end_logits.shape
        (torch.Size([1, 3]), torch.Size([1, 3]))
    """

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model; inputs as in `MegaModel.forward`.

        Args:
            start_positions: Index of the answer's first token, (B,); positions outside the sequence do not count.
            end_positions: Index of the answer's last token, (B,).
        """
        row, labels = (input_ids, attention_mask, token_type_ids, inputs_embeds), (start_positions, end_positions)
        return self.run(row, labels, output_attentions, output_hidden_states, return_dict, use_cache=False)
