"""What tools for the reference's models ask of a model besides `forward`, `generate`, loading and saving."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from longspan.checkpoints.names import ParameterNames
from longspan.checkpoints.upload import HubSupport
from longspan.configuration import PretrainedConfig
from longspan.nn.torch.checkpointing import CheckpointedLayers, ModuleInfo, layers_of
from longspan.nn.torch.losses import causal_lm_loss, cross_entropy


class ToolSupport(ModuleInfo, HubSupport):
    """Attributes and methods of the reference's base class that accelerate, PEFT, FSDP and trainers look up.

    Most state facts, such as which modules must stay on one device. None is needed to use a model by itself.
    """

    config: PretrainedConfig
    names: ClassVar[ParameterNames]
    main_input_name: ClassVar[str]
    base_model_prefix: ClassVar[str]
    if TYPE_CHECKING:
        base_model: Any

    is_parallelizable: ClassVar[bool] = False
    model_parallel: ClassVar[bool] = False
    _is_stateful: ClassVar[bool] = False
    _supports_sdpa: ClassVar[bool] = True
    _supports_attention_backend: ClassVar[bool] = False
    _supports_flash_attn: ClassVar[bool] = False
    _supports_flash_attn_2: ClassVar[bool] = False
    _supports_flex_attn: ClassVar[bool] = False
    _supports_cache_class: ClassVar[bool] = True
    _supports_static_cache: ClassVar[bool] = False
    _skip_keys_device_placement: ClassVar[str] = "past_key_values"
    _keep_in_fp32_modules: ClassVar[list[str] | None] = None
    _keys_to_ignore_on_load_missing: ClassVar[list[str] | None] = None
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str] | None] = None
    _keys_to_ignore_on_save: ClassVar[list[str] | None] = None
    #: tags of the model on the hub; `add_model_tags` adds some
    model_tags: list[str] | None = None

    @classmethod
    def _from_config(cls, config: PretrainedConfig, dtype: torch.dtype | None = None, **settings: Any) -> Self:
        """A model with random weights; `attn_implementation` and other settings win over those of `config`."""
        config = copy.deepcopy(config)
        config.update(settings)
        model = cls(config)
        return model if dtype is None else model.to(dtype)

    @property
    def vocab_size(self) -> int:
        """Number of tokens in the vocabulary."""
        return self.config.vocab_size

    @property
    def num_labels(self) -> int:
        """Number of classes of a classification head."""
        return self.config.num_labels

    @property
    def transformer_backbone_name(self) -> str:
        """Name of the attribute that holds the base model; PEFT reads the shape of prefixes there."""
        return self.base_model_prefix

    @property
    def warnings_issued(self) -> dict[str, bool]:
        """Warnings that a tool has given once and will not give again."""
        return self.__dict__.setdefault("_warnings_issued", {})

    @property
    def _no_split_modules(self) -> list[str]:
        """Names of the classes of layers, each of which must lie on one device as a whole."""
        stacks = [module for module in self.modules() if isinstance(module, CheckpointedLayers)]
        return sorted({type(layer).__name__ for stack in stacks for layer in layers_of(stack)})

    @property
    def _tied_weights_keys(self) -> dict[str, str] | None:
        """Keys that repeat a parameter, each with the key that owns it; None if there are none."""
        pairs = {target: source for target, source in self.tied_keys() if target in self.state_dict()}
        return pairs or None

    def tied_keys(self) -> list[tuple[str, str]]:
        """Pairs (key that repeats a parameter, key that owns it) under the names that this model gives them."""
        prefix = f"{self.names.base_prefix}." if self.base_model is self and self.names.base_prefix else ""
        ties = self.names.active_ties(self.config)
        return [(pair.target.removeprefix(prefix), pair.source.removeprefix(prefix)) for pair in ties]

    def add_model_tags(self, tags: Sequence[str] | str) -> None:
        """Add tags for the model's page on the hub."""
        new = [tags] if isinstance(tags, str) else list(tags)
        self.model_tags = list(dict.fromkeys([*(self.model_tags or []), *new]))

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Count the parameters; tied ones count once.

        Args:
            only_trainable: Leave out those that take no gradient.
            exclude_embeddings: Leave out the weights of embedding modules.
        """
        embeddings = (
            {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)} if exclude_embeddings else set()
        )
        return sum(
            parameter.numel()
            for parameter in self.parameters()
            if (parameter.requires_grad or not only_trainable) and id(parameter) not in embeddings
        )

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of the parameters, and of the buffers if `return_buffers`."""
        tensors: list[Tensor] = list(self.parameters())
        tensors += list(self.buffers()) if return_buffers else []
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def estimate_tokens(self, input_dict: Mapping[str, Any]) -> int:
        """Number of the tokens (or embedded values) that a batch holds."""
        main = input_dict.get(self.main_input_name)
        return main.numel() if isinstance(main, Tensor) else 0

    def floating_point_ops(self, input_dict: Mapping[str, Any], exclude_embeddings: bool = True) -> int:
        """Operations of one forward and backward pass, 6 per token and parameter (Kaplan et al., 2020)."""
        return 6 * self.estimate_tokens(input_dict) * self.num_parameters(exclude_embeddings=exclude_embeddings)

    def loss_function(self, logits: Tensor, labels: Tensor, vocab_size: int | None = None, **kwargs: Any) -> Tensor:
        """Cross-entropy of scores (B, S, N) and labels (B, S), -100 ignored; of the next token in a causal model.

        Args:
            logits: Scores.
            labels: Labels.
            vocab_size: N, which the scores tell.
            **kwargs: `num_items_in_batch`: number by which the sum of the losses is divided; default: the labels that
                count.
        """
        causal = type(self).__name__.endswith(("ForCausalLM", "LMHeadModel"))
        loss = causal_lm_loss(logits, labels) if causal else cross_entropy(logits, labels)
        total = kwargs.get("num_items_in_batch")
        counted = labels[..., 1:] if causal else labels
        return loss if total is None else loss * (counted != -100).sum() / total
