"""Feeding a decoder one token at a time, in PyTorch.

Axes: B prompts, R rows (B times the rows of each prompt), L tokens so far.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from longspan.configuration import PretrainedConfig
from longspan.errors import InputError
from longspan.generation.config import GenerationConfig
from longspan.generation.torch_lean import StepRequest, TokenOutput, TokenStep, make_token_step
from longspan.generation.torch_prompt import PER_TOKEN, Prompt, repeat_rows
from longspan.nn.torch.cache import Cache, DynamicCache, EncoderDecoderCache, StaticCache
from longspan.nn.torch.growing_cache import GrowingCache


class Stepper:
    """One run of a decoder.

    Args:
        model: A model with a language modelling head.
        prompt: What to continue.
        cache: To keep earlier tokens in; None lets the model make its own.
        rows: Rows of each prompt. All read the prompt together; `expand` then tells them apart.
        capacity: Tokens of a row at most.
        use_cache: Keep earlier tokens; otherwise each step reads all tokens again.
        encoder: Inputs of the decoder that stand for the source: `encoder_outputs` and `attention_mask`.
        outputs: `output_attentions` and `output_hidden_states`.
    """

    def __init__(
        self,
        model: Any,
        prompt: Prompt,
        *,
        cache: Cache | None,
        rows: int,
        capacity: int,
        use_cache: bool,
        encoder: dict[str, Any] | None,
        outputs: dict[str, bool],
    ) -> None:
        self.model, self.prompt, self.cache = model, prompt, cache
        self.rows, self.use_cache, self.capacity = rows, use_cache, capacity
        self.prefix = "" if encoder is None else "decoder_"
        self.names = set(inspect.signature(model.forward).parameters)
        self.batch, self.length = prompt.ids.shape[0], prompt.length
        self.constants: dict[str, Any] = {**(encoder or {}), **outputs, "return_dict": True, "use_cache": use_cache}
        self.constants |= {n: v for n, v in (prompt.extras or {}).items() if n not in PER_TOKEN}
        if "logits_to_keep" in self.names:
            self.constants["logits_to_keep"] = 1
        self.tokens: dict[str, Tensor] = self._per_token()
        self.mask = self._make_mask(capacity)
        self.seen_ids, self.seen_embeds = prompt.ids, prompt.embeds  # only without a cache
        self.may_be_lean = use_cache and not outputs and not prompt.extras
        self.lean: TokenStep | None = None

    def _per_token(self) -> dict[str, Tensor]:
        """Inputs with one value per token, (B, L): those given, and positions that skip padding."""
        extras = {n: v for n, v in (self.prompt.extras or {}).items() if n in PER_TOKEN}
        mask = self.prompt.mask
        if mask is not None and "position_ids" in self.names and "position_ids" not in extras:
            extras["position_ids"] = self.model.positions_of(mask)
        return extras

    def _make_mask(self, capacity: int) -> Tensor | None:
        """Room for the mask of all tokens to come, (B, capacity); None without padding."""
        if self.prompt.mask is None:
            return None
        mask = torch.ones(self.batch, capacity, dtype=torch.bool, device=self.prompt.mask.device)
        mask[:, : self.length] = self.prompt.mask
        return mask

    def begin(self) -> Any:
        """Read the prompts; returns the model's output, whose logits are (B, …, V)."""
        past = self._past()
        inputs = {name: value[:, past:] for name, value in self.tokens.items()}
        if self.prompt.embeds is not None:
            inputs[f"{self.prefix}inputs_embeds"] = self.prompt.embeds[:, past:]
        else:
            inputs[f"{self.prefix}input_ids"] = self.prompt.ids[:, past:]
        return self._call(inputs, self.length - past, past)

    def _past(self) -> int:
        """Tokens of the prompt that a given cache holds already."""
        past = 0 if self.cache is None else int(self.cache.get_seq_length())
        if past >= self.length:
            raise InputError(
                "the prompt must hold the tokens of past_key_values and at least one more. Received: "
                f"{self.length} tokens with a cache of {past}"
            )
        return past

    def step(self, tokens: Tensor) -> Any:
        """Read the next token of each row, (R,); returns an output with logits (R, 1, V)."""
        if self.may_be_lean:
            self.lean, self.may_be_lean = self._make_lean(tokens.shape[0]), False
        self.length += 1
        for name, values in self.tokens.items():
            last = values[:, -1:]
            following = last + 1 if name == "position_ids" else last
            self.tokens[name] = following if self.use_cache else torch.cat((values, following), dim=1)
        if self.lean is not None:
            logits = self.lean(tokens, past=self.length - 1, position_ids=self.tokens.get("position_ids"))
            return TokenOutput(logits[:, None])
        if not self.use_cache:
            return self._call(self._all_tokens(tokens[:, None]) | self.tokens, self.length, 0)
        return self._call({f"{self.prefix}input_ids": tokens[:, None], **self.tokens}, 1, self.length - 1)

    def _make_lean(self, rows: int) -> TokenStep | None:
        """The model's own way to read one token of each row, if it has one for this run."""
        if self.cache is None:
            return None
        request = StepRequest(
            cache=self.cache,
            rows=rows,
            capacity=self.capacity,
            num_tokens=self.capacity - 1 - self.length,
            mask=self.mask,
            source_mask=self.constants.get("attention_mask"),
        )
        return make_token_step(self.model, request)

    def _all_tokens(self, token: Tensor) -> dict[str, Tensor]:
        if self.seen_embeds is not None:
            new = self.model.get_input_embeddings()(token)
            self.seen_embeds = torch.cat((self.seen_embeds, new), dim=1)
            return {f"{self.prefix}inputs_embeds": self.seen_embeds}
        self.seen_ids = torch.cat((self.seen_ids, token), dim=1)
        return {f"{self.prefix}input_ids": self.seen_ids}

    def _call(self, inputs: dict[str, Any], count: int, past: int) -> Any:
        if self.mask is not None:
            inputs[f"{self.prefix}attention_mask"] = self.mask[:, : self.length]
        if self.use_cache and self.cache is not None:
            inputs["past_key_values"] = self.cache
            if self.has_fixed_size:
                device = self.prompt.ids.device
                inputs["cache_position"] = torch.arange(past, past + count, device=device)
        output = self.model(**inputs, **self.constants)
        if self.use_cache:
            self.cache = output.past_key_values
        return output

    @property
    def has_fixed_size(self) -> bool:
        """True if the cache cannot be given more rows later."""
        return self.cache is not None and self.cache.get_max_cache_shape() is not None

    def expand(self) -> None:
        """Give each prompt its rows, before or after they are read; copies stand next to each other."""
        if self.rows == 1:
            return
        times, batch = self.rows, self.batch
        if self.cache is not None and int(self.cache.get_seq_length()) > 0:
            self._own_cache().batch_repeat_interleave(times)
        self.prompt = self.prompt.repeated(times)
        self.mask = None if self.mask is None else self.mask.repeat_interleave(times, dim=0)
        self.seen_ids = self.seen_ids.repeat_interleave(times, dim=0)
        if self.seen_embeds is not None:
            self.seen_embeds = self.seen_embeds.repeat_interleave(times, dim=0)
        self.tokens = repeat_rows(self.tokens, times, batch)
        if not self.model.shares_source_between_rows:
            self.constants = repeat_rows(self.constants, times, batch)

    def _own_cache(self) -> Cache:
        """The part of the cache that differs between the rows of a prompt."""
        assert self.cache is not None
        if isinstance(self.cache, EncoderDecoderCache) and self.model.shares_source_between_rows:
            return self.cache.self_attention_cache
        return self.cache

    def reorder(self, rows: Tensor) -> None:
        """Go on with the rows (R,) in that order; each stays with its prompt."""
        if rows.device.type == "cpu" and torch.equal(rows, torch.arange(rows.shape[0])):
            return
        if not self.use_cache:
            self.seen_ids = self.seen_ids[rows]
            self.seen_embeds = None if self.seen_embeds is None else self.seen_embeds[rows]
        if not self.use_cache or self.cache is None:
            return
        # rows of a prompt share its source, and what the prompt says
        own = self.cache.self_attention_cache if isinstance(self.cache, EncoderDecoderCache) else self.cache
        if isinstance(own, GrowingCache):
            own.reorder_cache(rows, start=self.prompt.length)
        else:
            own.reorder_cache(rows)


def make_cache(config: GenerationConfig, model_config: PretrainedConfig, *, capacity: int) -> Cache:
    """An empty cache for a decoder of attention layers.

    Args:
        config: Settings.
        model_config: Gives sizes, and whether there is cross-attention.
        capacity: Tokens of a row at most.
    """
    is_static = config.cache_implementation == "static"
    own = StaticCache(model_config, max_cache_len=capacity) if is_static else GrowingCache(capacity)
    has_source = model_config.is_encoder_decoder or model_config.add_cross_attention
    return EncoderDecoderCache(own, DynamicCache()) if has_source else own
