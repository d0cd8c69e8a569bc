"""From settings to what the loops of PyTorch use: lengths, processors, criteria, caches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from longspan.configuration import PretrainedConfig
from longspan.errors import InputError
from longspan.generation import torch_processors as processors
from longspan.generation import torch_samplers as samplers
from longspan.generation.config import GenerationConfig
from longspan.generation.torch_processors import LogitsProcessor, LogitsProcessorList
from longspan.generation.torch_stopping import (
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from longspan.nn.torch.cache import Cache, DynamicCache, EncoderDecoderCache, StaticCache
from longspan.nn.torch.growing_cache import GrowingCache


def make_processors(
    config: GenerationConfig,
    *,
    prompt: int,
    least: int,
    greatest: int,
    source: Tensor | None,
    allowed: Callable[[int, Tensor], list[int]] | None,
    custom: Sequence[LogitsProcessor],
) -> LogitsProcessorList:
    """The rules for scores, in the order of the reference.

    Args:
        config: Settings.
        prompt: Ids of the prompt.
        least: Ids of a row at least.
        greatest: Ids of a row at most.
        source: What the penalties for the source look at, (B, S).
        allowed: A caller's function that names the ids that may come next.
        custom: A caller's processors; one of a class that the settings ask for as well takes its place.
    """
    eos = config.eos_token_ids
    rules: list[LogitsProcessor] = []
    if config.sequence_bias is not None:
        rules.append(processors.SequenceBiasLogitsProcessor(config.sequence_bias))
    rules += _repetition_rules(config, source)
    if config.bad_words_ids is not None:
        rules.append(processors.NoBadWordsLogitsProcessor(config.bad_words_ids, eos))
    if eos and least > prompt:
        rules.append(processors.MinLengthLogitsProcessor(least, eos))
    if allowed is not None:
        rules.append(processors.PrefixConstrainedLogitsProcessor(allowed, _rows(config)))
    if config.forced_bos_token_id is not None:
        rules.append(processors.ForcedBOSTokenLogitsProcessor(config.forced_bos_token_id))
    if config.forced_eos_token_id is not None:
        rules.append(processors.ForcedEOSTokenLogitsProcessor(greatest, config.forced_eos_token_id))
    if config.remove_invalid_values:
        rules.append(processors.InfNanRemoveLogitsProcessor())
    if config.exponential_decay_length_penalty is not None and eos:
        rules.append(processors.ExponentialDecayLengthPenalty(config.exponential_decay_length_penalty, eos, prompt))
    if config.suppress_tokens:
        rules.append(processors.SuppressTokensLogitsProcessor(config.suppress_tokens))
    if config.begin_suppress_tokens:
        forced = prompt == 1 and config.forced_bos_token_id is not None
        begin = prompt + 1 if forced else prompt
        rules.append(processors.SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, begin))
    rules = _with_custom(rules, custom)
    if config.do_sample:
        rules += sampling_rules(config)
    if config.renormalize_logits:
        rules.append(processors.LogitNormalization())
    return LogitsProcessorList(rules)


def _repetition_rules(config: GenerationConfig, source: Tensor | None) -> list[LogitsProcessor]:
    rules: list[LogitsProcessor] = []
    penalty, size = config.encoder_repetition_penalty, config.encoder_no_repeat_ngram_size
    if source is None and (penalty not in (None, 1.0) or size):
        raise InputError(
            "encoder_repetition_penalty and encoder_no_repeat_ngram_size need the ids of the source. "
            "Received: a source without ids"
        )
    if source is not None and penalty not in (None, 1.0):
        rules.append(processors.EncoderRepetitionPenaltyLogitsProcessor(penalty, source))
    if config.repetition_penalty not in (None, 1.0):
        rules.append(processors.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        rules.append(processors.NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if source is not None and size:
        rules.append(processors.EncoderNoRepeatNGramLogitsProcessor(size, source))
    return rules


def sampling_rules(config: GenerationConfig) -> list[LogitsProcessor]:
    """The rules that shape sampling. Beams keep one id more than there are end tokens, so that one of them goes on."""
    keep = 1 if config.num_beams == 1 else max(2, len(config.eos_token_ids) + 1)
    rules: list[LogitsProcessor] = []
    if config.temperature not in (None, 1.0):
        rules.append(samplers.TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        rules.append(samplers.TopKLogitsWarper(config.top_k, keep))
    if config.top_p is not None and config.top_p < 1.0:
        rules.append(samplers.TopPLogitsWarper(config.top_p, keep))
    if config.min_p is not None:
        rules.append(samplers.MinPLogitsWarper(config.min_p, keep))
    if config.typical_p is not None and config.typical_p < 1.0:
        rules.append(samplers.TypicalLogitsWarper(config.typical_p, keep))
    if config.epsilon_cutoff:
        rules.append(samplers.EpsilonLogitsWarper(config.epsilon_cutoff, keep))
    if config.eta_cutoff:
        rules.append(samplers.EtaLogitsWarper(config.eta_cutoff, keep))
    return rules


def _with_custom(rules: list[LogitsProcessor], custom: Sequence[LogitsProcessor]) -> list[LogitsProcessor]:
    """A caller's processors behind ours, or in the place of ours of the same class."""
    own = {type(rule): rule for rule in custom}
    kept = [own.get(type(rule), rule) for rule in rules]
    return kept + [rule for rule in custom if not any(rule is other for other in kept)]


def _rows(config: GenerationConfig) -> int:
    """Rows of each prompt."""
    return config.num_beams if config.num_beams > 1 else config.num_return_sequences


def make_criteria(
    config: GenerationConfig, *, tokenizer: Any, custom: Sequence[StoppingCriteria]
) -> StoppingCriteriaList:
    """The rules that end rows, besides the greatest length and the end token.

    Raises:
        InputError: stop strings need a tokenizer.
    """
    criteria = StoppingCriteriaList()
    if config.max_time is not None:
        criteria.append(MaxTimeCriteria(config.max_time))
    if config.stop_strings is not None:
        if tokenizer is None:
            raise InputError(
                f"stop_strings needs tokenizer=. Received: stop_strings={config.stop_strings!r}, no tokenizer"
            )
        criteria.append(StopStringCriteria(tokenizer, config.stop_strings))
    criteria.extend(custom)
    return criteria


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
