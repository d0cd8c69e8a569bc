"""DiffLlama in PyTorch (Ye et al., 2024, https://arxiv.org/abs/2410.05258): the backbone, then the task classes.

Axes: B batch, S tokens, T keys, H width, A softmax maps, L layers, N classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from longspan.checkpoints.names import ParameterNames
from longspan.errors import InputError
from longspan.models.diffllama.config import DiffLlamaConfig
from longspan.models.diffllama.names import NAMES, QUESTION_ANSWERING_NAMES
from longspan.models.diffllama.torch_attention import AttentionPlan, make_cache, make_key_mask, make_positions
from longspan.models.diffllama.torch_layers import (
    LAMBDA_NAMES,
    DiffLlamaAttention,
    DiffLlamaDecoderLayer,
    DiffLlamaRMSNorm,
    DiffLlamaRotaryEmbedding,
)
from longspan.nn.torch.base import CheckpointedLayers, PreTrainedModel
from longspan.nn.torch.cache import Cache, LegacyCache
from longspan.nn.torch.checks import check_ids, input_shape
from longspan.nn.torch.losses import (
    causal_lm_loss,
    cross_entropy,
    question_answering_loss,
    sequence_classification_loss,
)
from longspan.nn.torch.outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    Tensors,
    TokenClassifierOutput,
    finish,
    model_output,
    resolve,
)
from longspan.ops.torch.differential import IMPLEMENTATIONS


@model_output
class DiffLlamaModelOutput(BaseModelOutputWithPast):
    """`differential_attentions`: A1 − λ·A2 of each layer, L × (B, A/2, S, T)."""

    differential_attentions: Tensors | None = None


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


class DiffLlamaPreTrainedModel(PreTrainedModel):
    """What all DiffLlama classes share."""

    config_class: ClassVar[type[DiffLlamaConfig]] = DiffLlamaConfig
    base_model_prefix: ClassVar[str] = "model"
    names: ClassVar[ParameterNames] = NAMES
    config: DiffLlamaConfig

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.data.normal_(mean=0.0, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.data.zero_()
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx].zero_()
        if isinstance(module, DiffLlamaRMSNorm):
            module.weight.data.fill_(1.0)
        if isinstance(module, DiffLlamaAttention):
            for name in LAMBDA_NAMES:
                getattr(module, name).data.normal_(mean=0.0, std=self.config.lambda_std_dev)

    def check_implementation(self, name: str) -> None:
        """Raise `InputError` unless `name` is an attention implementation of DiffLlama."""
        IMPLEMENTATIONS.check_name(name)


class DiffLlamaModel(DiffLlamaPreTrainedModel, CheckpointedLayers):
    """DiffLlama without a head: a causal decoder that returns hidden states.

    Args:
        config: Settings; the weights are random.

    Example:
        >>> import torch
        >>> from longspan import DiffLlamaConfig, DiffLlamaModel
        >>> config = DiffLlamaConfig(hidden_size=32, intermediate_size=64, num_attention_heads=4, num_hidden_layers=1)
        >>> output = DiffLlamaModel(config)(torch.tensor([[1, 15043, 3186]]), output_attentions=True)
        >>> output.last_hidden_state.shape, output.attentions[0].shape
        (torch.Size([1, 3, 32]), torch.Size([1, 4, 3, 3]))
    """

    def __init__(self, config: DiffLlamaConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.layers = nn.ModuleList(
            [DiffLlamaDecoderLayer(config, layer_index=index) for index in range(config.num_hidden_layers)]
        )
        self.norm = DiffLlamaRMSNorm(hidden_size=config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = DiffLlamaRotaryEmbedding(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The token embeddings."""
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings."""
        self.embed_tokens = value  # type: ignore[assignment]

    def _prune_heads(self, heads_to_prune: Mapping[int, list[int]]) -> None:
        for layer, heads in heads_to_prune.items():
            if not 0 <= layer < len(self.layers):
                raise InputError(f"layers to prune must lie in [0, {len(self.layers)}). Received: {layer}")
            self.layers[layer].self_attn.prune_heads(heads)  # type: ignore[operator,union-attr]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | LegacyCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        cache_position: Tensor | None = None,
        *,
        output_differential_attentions: bool = False,
        return_dict: bool | None = None,
    ) -> Any:
        """Run the model.

        Args:
            input_ids: Token ids, (B, S). Exactly one of this and `inputs_embeds` is given.
            attention_mask: 1 for real tokens, 0 for padding, (B, S); with a cache (B, past + S). States at padding
                are unspecified.
            position_ids: Position of each token, (B, S) or (1, S); default `cache_position`. Without a mask and a
                cache, positions that do not go up by one start a new document, which sees only itself.
            past_key_values: Cache of earlier tokens, or the older nested tuples, L × (key, value) of (B, K, past, D).
                The same format is returned.
            inputs_embeds: Embedded tokens, (B, S, H).
            use_cache: Return a cache; default as configured.
            output_attentions: Return the softmax maps before the subtraction, L × (B, A, S, T).
            output_hidden_states: Return hidden states, (L + 1) × (B, S, H): the embeddings, the output of all but the
                last layer, and the normed output of the last.
            cache_position: Positions of the input tokens in the sequence, (S,), whatever the padding; default: after
                those in the cache.
            output_differential_attentions: Return A1 − λ·A2 of each pair of maps, L × (B, A/2, S, T).
            return_dict: Return a `ModelOutput` rather than a tuple.

        Returns:
            `DiffLlamaModelOutput`.

        Raises:
            InputError: shapes disagree, an id is out of range, or the cache does not fit.
        """
        config = self.config
        batch, length = input_shape(input_ids, inputs_embeds)
        if input_ids is not None:
            check_ids(input_ids, config.vocab_size, name="input_ids", limit_name="vocab_size")
        use_cache = self._resolve_use_cache(use_cache)
        cache = make_cache(past_key_values, use_cache=use_cache, config=config)
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        positions = make_positions(
            batch=batch,
            length=length,
            device=hidden_states.device,
            position_ids=position_ids,
            cache_position=cache_position,
            attention_mask=attention_mask,
            cache=cache,
        )
        show_maps = resolve(output_attentions, config.output_attentions)
        show_states = resolve(output_hidden_states, config.output_hidden_states)
        cos, sin = self.rotary_emb(positions.position_ids, hidden_states.dtype)
        plan = AttentionPlan(
            cos=cos,
            sin=sin,
            position=positions.query_position,
            key_mask=make_key_mask(attention_mask, batch=batch, length=length, cache=cache),
            segment_ids=positions.segment_ids,
            implementation=config.attn_implementation,
            output_weights=show_maps or output_differential_attentions,
        )
        states, maps, differences = [], [], []
        for layer in self.layers:
            if show_states:
                states.append(hidden_states)
            hidden_states, weights, difference = self.run_layer(
                layer, hidden_states, plan=plan, cache=cache, cache_position=positions.cache_position
            )
            maps.append(weights)
            differences.append(difference)
        hidden_states = self.norm(hidden_states)
        legacy = isinstance(past_key_values, tuple | list)
        output = DiffLlamaModelOutput(
            last_hidden_state=hidden_states,
            past_key_values=None if not use_cache or cache is None else cache.to_legacy_cache() if legacy else cache,
            hidden_states=(*states, hidden_states) if show_states else None,
            attentions=tuple(maps) if show_maps else None,
            differential_attentions=tuple(differences) if output_differential_attentions else None,
        )
        return finish(output, resolve(return_dict, config.return_dict))

    def _resolve_use_cache(self, use_cache: bool | None) -> bool:
        """An explicit wish is refused aloud while activations are recomputed, the configured default silently."""
        if use_cache is None:
            return self.config.use_cache and not (self.checkpoint_arguments is not None and self.training)
        return self.resolve_use_cache(use_cache)


class DiffLlamaForCausalLM(DiffLlamaPreTrainedModel):
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
        self.lm_head = new_embeddings  # type: ignore[assignment]

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
        logits = self.lm_head(_kept_tokens(outputs.last_hidden_state, logits_to_keep))
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
