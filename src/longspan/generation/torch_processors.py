"""What changes the scores of the next token, in PyTorch; which of it runs is in `rules.py`.

Axes: B rows, L tokens so far, V vocabulary. A processor takes the ids so far (B, L) and scores (B, V), logits or, in
beam search, log-probabilities, and returns new scores. Those that shape the distribution which the next token is drawn
from set ids that must not be drawn to -inf; at least `min_tokens_to_keep` ids stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from longspan.errors import InputError
from longspan.generation.config import GenerationConfig
from longspan.generation.rules import Rules, rows_per_prompt
from longspan.generation.scores import (
    Arrays,
    encouraged,
    keep_epsilon,
    keep_eta,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    penalised,
)

ARRAYS = Arrays(
    xp=torch,
    softmax=lambda values: values.softmax(dim=-1),
    log_softmax=lambda values: values.log_softmax(dim=-1),
    take=lambda values, index: values.gather(1, index),
    unsort=lambda marks, order: marks.scatter(1, order, marks),
    largest=lambda values, number: values.topk(number).values,
    places=lambda number, where: torch.arange(number, device=where.device),
    smallest=lambda values: torch.finfo(values.dtype).min,
)


def _check(ok: bool, rule: str, value: float) -> None:
    if not ok:
        raise InputError(f"{rule}. Received: {value}")


class LogitsProcessor:
    """Changes the scores of the next token; the base class of all such rules, a caller's own included."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return new scores.

        Args:
            input_ids: Ids so far, (B, L).
            scores: Of the next token, (B, V), float32; not to be changed in place.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement __call__")


class LogitsProcessorList(list[LogitsProcessor]):
    """Processors that run one after the other.

    Example:
        >>> import torch
        >>> from longspan import LogitsProcessorList, MinLengthLogitsProcessor, SuppressTokensLogitsProcessor
        >>> rules = LogitsProcessorList([MinLengthLogitsProcessor(4, [2]), SuppressTokensLogitsProcessor([0])])
        >>> rules(torch.tensor([[1, 1]]), torch.zeros(1, 4))
        tensor([[-inf, 0., -inf, 0.]])
    """

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Apply all processors to scores (B, V), given ids (B, L)."""
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class _IdsRule(LogitsProcessor):
    """A rule about some ids, kept where the scores are."""

    def __init__(self, ids: int | Iterable[int] | Tensor) -> None:
        if isinstance(ids, Tensor):
            ids = ids.reshape(-1).tolist()
        self.ids = torch.tensor([ids] if isinstance(ids, int) else list(ids), dtype=torch.long)

    def _on(self, scores: Tensor) -> Tensor:
        if self.ids.device != scores.device:
            self.ids = self.ids.to(scores.device)
        return self.ids

    def _without(self, scores: Tensor) -> Tensor:
        return scores.index_fill(1, self._on(scores), -math.inf)

    def _only(self, scores: Tensor) -> Tensor:
        return torch.full_like(scores, -math.inf).index_fill_(1, self._on(scores), 0.0)


class MinLengthLogitsProcessor(_IdsRule):
    """No end token before a row has `min_length` tokens.

    Args:
        min_length: Tokens, prompt included.
        eos_token_id: The id, or ids, that end a row.
    """

    def __init__(self, min_length: int, eos_token_id: int | Sequence[int] | Tensor) -> None:
        super().__init__(eos_token_id)
        self.min_length = min_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._without(scores) if input_ids.shape[1] < self.min_length else scores


class SuppressTokensLogitsProcessor(_IdsRule):
    """Some ids are never generated.

    Args:
        suppress_tokens: The ids.
    """

    def __init__(self, suppress_tokens: Sequence[int]) -> None:
        super().__init__(suppress_tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._without(scores)


class SuppressTokensAtBeginLogitsProcessor(_IdsRule):
    """Some ids are not the first to be generated.

    Args:
        begin_suppress_tokens: The ids.
        begin_index: Number of tokens before the first generated one.
    """

    def __init__(self, begin_suppress_tokens: Sequence[int], begin_index: int) -> None:
        super().__init__(begin_suppress_tokens)
        self.begin_index = begin_index

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._without(scores) if input_ids.shape[1] == self.begin_index else scores


class ForcedBOSTokenLogitsProcessor(_IdsRule):
    """The first token after a single start token is given.

    Args:
        bos_token_id: Its id.
    """

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._only(scores) if input_ids.shape[1] == 1 else scores


class ForcedEOSTokenLogitsProcessor(_IdsRule):
    """The last token of a row of the greatest length is an end token.

    Args:
        max_length: Greatest length, prompt included.
        eos_token_id: The id, or ids, to choose from.
    """

    def __init__(self, max_length: int, eos_token_id: int | Sequence[int]) -> None:
        super().__init__(eos_token_id)
        self.max_length = max_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self._only(scores) if input_ids.shape[1] == self.max_length - 1 else scores


class ExponentialDecayLengthPenalty(_IdsRule):
    """The score s of an end token becomes s + |s| (f^n − 1), n tokens after a given one.

    Args:
        exponential_decay_length_penalty: (tokens to generate before it begins, factor f).
        eos_token_id: The id, or ids, that end a row.
        input_ids_seq_length: Tokens of the prompt.
    """

    def __init__(
        self,
        exponential_decay_length_penalty: Sequence[float],
        eos_token_id: int | Sequence[int],
        input_ids_seq_length: int,
    ) -> None:
        super().__init__(eos_token_id)
        start, self.factor = exponential_decay_length_penalty
        self.start = int(start) + input_ids_seq_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        beyond = input_ids.shape[1] - self.start
        if beyond <= 0:
            return scores
        ids = self._on(scores)
        return scores.index_copy(1, ids, encouraged(ARRAYS, scores[:, ids], self.factor**beyond))


class RepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """The score s of a token that is there already becomes s/p, or s·p where s is negative (Keskar et al., 2019).

    Args:
        penalty: p; above 1 discourages repetition.

    Raises:
        InputError: p is not positive.
    """

    def __init__(self, penalty: float) -> None:
        _check(penalty > 0, "a repetition penalty must be positive", penalty)
        self.penalty = penalty

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return _penalised(scores, input_ids, self.penalty)


class EncoderRepetitionPenaltyLogitsProcessor(LogitsProcessor):
    """The inverse penalty for tokens of the source: above 1 encourages what the source says.

    Args:
        penalty: p.
        encoder_input_ids: The source, (B / beams, S).

    Raises:
        InputError: p is not positive.
    """

    def __init__(self, penalty: float, encoder_input_ids: Tensor) -> None:
        _check(penalty > 0, "an encoder repetition penalty must be positive", penalty)
        self.penalty, self.encoder_input_ids = 1.0 / penalty, encoder_input_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return _penalised(scores, _for_beams(self.encoder_input_ids, scores), self.penalty)


class NoRepeatNGramLogitsProcessor(LogitsProcessor):
    """No sequence of n tokens occurs twice in a row (Paulus et al., 2017).

    Args:
        ngram_size: n.

    Raises:
        InputError: n is not positive.
    """

    def __init__(self, ngram_size: int) -> None:
        _check(ngram_size > 0, "the size of n-grams must be positive", ngram_size)
        self.ngram_size = ngram_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return without_continuations(scores, input_ids, of=input_ids, size=self.ngram_size)


class EncoderNoRepeatNGramLogitsProcessor(LogitsProcessor):
    """No sequence of n tokens of the source is generated.

    Args:
        encoder_ngram_size: n.
        encoder_input_ids: The source, (B / beams, S).

    Raises:
        InputError: n is not positive.
    """

    def __init__(self, encoder_ngram_size: int, encoder_input_ids: Tensor) -> None:
        _check(encoder_ngram_size > 0, "the size of n-grams must be positive", encoder_ngram_size)
        self.ngram_size, self.encoder_input_ids = encoder_ngram_size, encoder_input_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        source = _for_beams(self.encoder_input_ids, scores)
        return without_continuations(scores, source, of=input_ids, size=self.ngram_size)


class SequenceBiasLogitsProcessor(LogitsProcessor):
    """A bias for the last id of a sequence, where the ids before it have just been generated.

    Args:
        sequence_bias: `{(ids): bias}` or `[[[ids], bias], ...]`.

    Raises:
        InputError: an id is not in the vocabulary (when the processor runs).
    """

    def __init__(self, sequence_bias: dict[tuple[int, ...], float] | Sequence[Sequence[Any]]) -> None:
        pairs = sequence_bias.items() if isinstance(sequence_bias, dict) else sequence_bias
        self.biases: dict[tuple[int, ...], float] = {tuple(ids): float(bias) for ids, bias in pairs}
        self._prepared: tuple[Tensor, list[tuple[Tensor, int, float]]] | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._prepared is None:
            self._prepared = self._prepare(scores)
        everywhere, sequences = self._prepared
        scores = scores + everywhere
        for before, last, bias in sequences:
            length = before.shape[0]
            if length < input_ids.shape[1]:
                matches = (input_ids[:, -length:] == before).all(dim=1)
                scores[:, last] = torch.where(matches, scores[:, last] + bias, scores[:, last])
        return scores

    def _prepare(self, scores: Tensor) -> tuple[Tensor, list[tuple[Tensor, int, float]]]:
        unknown = sorted({i for ids in self.biases for i in ids if i >= scores.shape[1]})
        if unknown:
            raise InputError(f"biased ids must be below the vocabulary's size, {scores.shape[1]}. Received: {unknown}")
        everywhere = torch.zeros_like(scores[:1])
        sequences = []
        for ids, bias in self.biases.items():
            if len(ids) == 1:
                everywhere[:, ids[0]] = bias
            else:
                sequences.append((torch.tensor(ids[:-1], device=scores.device), ids[-1], bias))
        return everywhere, sequences


class NoBadWordsLogitsProcessor(SequenceBiasLogitsProcessor):
    """Some sequences of ids are never generated.

    Args:
        bad_words_ids: The sequences.
        eos_token_id: The id, or ids, that end a row; they stay possible, as in the reference.
    """

    def __init__(self, bad_words_ids: Sequence[Sequence[int]], eos_token_id: int | Sequence[int] | None = None) -> None:
        ends = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or ())
        super().__init__({tuple(ids): -math.inf for ids in bad_words_ids if list(ids) not in [[end] for end in ends]})


class PrefixConstrainedLogitsProcessor(LogitsProcessor):
    """A caller's function names the ids that may come next.

    Args:
        prefix_allowed_tokens_fn: Called with the number of the prompt and the ids so far (L,); returns ids.
        num_beams: Rows of each prompt.
    """

    def __init__(self, prefix_allowed_tokens_fn: Callable[[int, Tensor], list[int]], num_beams: int) -> None:
        self.allowed, self.num_beams = prefix_allowed_tokens_fn, num_beams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        mask = torch.full_like(scores, -math.inf)
        for row, ids in enumerate(input_ids):
            allowed = self.allowed(row // self.num_beams, ids)
            if len(allowed) == 0:
                raise InputError(
                    "prefix_allowed_tokens_fn must allow at least one id. Received: none for prompt "
                    f"{row // self.num_beams} after {ids.tolist()}"
                )
            mask[row, allowed] = 0.0
        return scores + mask


class InfNanRemoveLogitsProcessor(LogitsProcessor):
    """NaN becomes 0, infinities become the largest numbers."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return torch.nan_to_num(scores, nan=0.0)


class LogitNormalization(LogitsProcessor):
    """Scores become log-probabilities."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.log_softmax(dim=-1)


class TemperatureLogitsWarper(LogitsProcessor):
    """Divides the scores.

    Args:
        temperature: Above 1 evens out, below 1 sharpens.

    Raises:
        InputError: it is not positive.
    """

    def __init__(self, temperature: float) -> None:
        _check(temperature > 0, "temperature must be positive", temperature)
        self.temperature = temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores / self.temperature


class _Truncation(LogitsProcessor):
    """Base of the rules that leave ids out."""

    def __init__(self, min_tokens_to_keep: int) -> None:
        _check(min_tokens_to_keep >= 1, "min_tokens_to_keep must be positive", min_tokens_to_keep)
        self.min_tokens_to_keep = min_tokens_to_keep


class TopKLogitsWarper(_Truncation):
    """Keeps the k likeliest ids (Fan et al., 2018).

    Args:
        top_k: k.
        min_tokens_to_keep: Keep at least that many.

    Raises:
        InputError: a number is not positive.
    """

    def __init__(self, top_k: int, min_tokens_to_keep: int = 1) -> None:
        super().__init__(min_tokens_to_keep)
        _check(top_k > 0, "top_k must be positive", top_k)
        self.top_k = max(top_k, min_tokens_to_keep)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return keep_top_k(ARRAYS, scores, self.top_k, self.min_tokens_to_keep)


class TopPLogitsWarper(_Truncation):
    """Keeps the likeliest ids that together reach the probability p (Holtzman et al., 2019).

    Args:
        top_p: p.
        min_tokens_to_keep: Keep at least that many.

    Raises:
        InputError: p does not lie in (0, 1].
    """

    def __init__(self, top_p: float, min_tokens_to_keep: int = 1) -> None:
        super().__init__(min_tokens_to_keep)
        _check(0 < top_p <= 1, "top_p must lie in (0, 1]", top_p)
        self.top_p = top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return keep_top_p(ARRAYS, scores, self.top_p, self.min_tokens_to_keep)


class MinPLogitsWarper(_Truncation):
    """Keeps ids at least p times as likely as the likeliest (Nguyen et al., 2024).

    Args:
        min_p: p.
        min_tokens_to_keep: Keep at least that many.

    Raises:
        InputError: p does not lie in [0, 1].
    """

    def __init__(self, min_p: float, min_tokens_to_keep: int = 1) -> None:
        super().__init__(min_tokens_to_keep)
        _check(0 <= min_p <= 1, "min_p must lie in [0, 1]", min_p)
        self.min_p = min_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return keep_min_p(ARRAYS, scores, self.min_p, self.min_tokens_to_keep)


class TypicalLogitsWarper(_Truncation):
    """Keeps the ids whose surprise is nearest the expected one and that reach a probability (Meister et al., 2022).

    Args:
        mass: The probability.
        min_tokens_to_keep: Keep at least that many.

    Raises:
        InputError: the probability does not lie in (0, 1).
    """

    def __init__(self, mass: float = 0.9, min_tokens_to_keep: int = 1) -> None:
        super().__init__(min_tokens_to_keep)
        _check(0 < mass < 1, "typical_p must lie in (0, 1)", mass)
        self.mass = mass

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return keep_typical(ARRAYS, scores, self.mass, self.min_tokens_to_keep)


class EpsilonLogitsWarper(_Truncation):
    """Keeps ids of at least some probability ε (Hewitt et al., 2022).

    Args:
        epsilon: ε.
        min_tokens_to_keep: Keep at least that many.

    Raises:
        InputError: ε does not lie in (0, 1).
    """

    def __init__(self, epsilon: float, min_tokens_to_keep: int = 1) -> None:
        super().__init__(min_tokens_to_keep)
        _check(0 < epsilon < 1, "epsilon must lie in (0, 1)", epsilon)
        self.epsilon = epsilon

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return keep_epsilon(ARRAYS, scores, self.epsilon, self.min_tokens_to_keep)


class EtaLogitsWarper(EpsilonLogitsWarper):
    """Keeps ids of at least the probability min(ε, √ε · exp(-entropy)) (Hewitt et al., 2022); arguments alike."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return keep_eta(ARRAYS, scores, self.epsilon, self.min_tokens_to_keep)


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

    Raises:
        InputError: a rule needs a source that is not there.
    """
    rules = Rules.from_config(config, has_prefix_function=allowed is not None)
    if source is None and rules.reads_source:
        raise InputError(
            "encoder_repetition_penalty and encoder_no_repeat_ngram_size need the ids of the source. "
            "Received: a source without ids"
        )
    begin = prompt + 1 if prompt == 1 and rules.forces_begin else prompt
    makers: dict[str, Callable[[Any], LogitsProcessor]] = {
        "sequence_bias": SequenceBiasLogitsProcessor,
        "encoder_repetition_penalty": lambda penalty: EncoderRepetitionPenaltyLogitsProcessor(penalty, _some(source)),
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram_size": NoRepeatNGramLogitsProcessor,
        "encoder_no_repeat_ngram_size": lambda size: EncoderNoRepeatNGramLogitsProcessor(size, _some(source)),
        "bad_words_ids": NoBadWordsLogitsProcessor,
        "min_length": lambda _: MinLengthLogitsProcessor(least, rules.eos),
        "prefix_allowed_tokens_fn": lambda _: PrefixConstrainedLogitsProcessor(_some(allowed), rows_per_prompt(config)),
        "forced_bos_token_id": ForcedBOSTokenLogitsProcessor,
        "forced_eos_token_id": lambda ids: ForcedEOSTokenLogitsProcessor(greatest, ids),
        "remove_invalid_values": lambda _: InfNanRemoveLogitsProcessor(),
        "exponential_decay_length_penalty": lambda decay: ExponentialDecayLengthPenalty(decay, rules.eos, prompt),
        "suppress_tokens": SuppressTokensLogitsProcessor,
        "begin_suppress_tokens": lambda ids: SuppressTokensAtBeginLogitsProcessor(ids, begin),
    }
    own = {type(rule): rule for rule in custom}
    made = [makers[name](value) for name, value in rules.plain if name != "min_length" or least > prompt]
    made = [own.get(type(rule), rule) for rule in made]
    made += [rule for rule in custom if not any(rule is other for other in made)]
    return LogitsProcessorList(
        [*made, *sampling_processors(rules), *([LogitNormalization()] if rules.normalises else [])]
    )


def sampling_processors(rules: Rules) -> list[LogitsProcessor]:
    """The rules that shape sampling."""
    makers: dict[str, Callable[[Any, int], LogitsProcessor]] = {
        "temperature": lambda temperature, _: TemperatureLogitsWarper(temperature),
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
        "typical_p": TypicalLogitsWarper,
        "epsilon_cutoff": EpsilonLogitsWarper,
        "eta_cutoff": EtaLogitsWarper,
    }
    return [makers[name](value, rules.keep) for name, value in rules.sampling]


def _some(value: Any) -> Any:
    """What a rule needs and has; `make_processors` has checked that it is there."""
    assert value is not None
    return value


def _penalised(scores: Tensor, ids: Tensor, penalty: float) -> Tensor:
    """Penalise the scores (B, V) of some ids (B, L)."""
    return scores.scatter(1, ids, penalised(ARRAYS, scores.gather(1, ids), penalty))


def without_continuations(scores: Tensor, source: Tensor, *, of: Tensor, size: int) -> Tensor:
    """Forbid what followed the last `size` − 1 ids of a row wherever they occur in its source.

    Args:
        scores: (B, V).
        source: Where n-grams are taken from, (B, S).
        of: The row that is continued, (B, L).
        size: n.
    """
    if source.shape[1] < size or of.shape[1] + 1 < size:
        return scores
    grams = source.unfold(1, size, 1)  # (B, S - n + 1, n)
    last = of[:, of.shape[1] - size + 1 :]
    matches = (grams[:, :, :-1] == last[:, None]).all(dim=-1)
    banned = torch.zeros_like(scores).scatter_reduce_(1, grams[:, :, -1], matches.to(scores.dtype), "amax")
    return scores.masked_fill(banned > 0, -math.inf)


def _for_beams(source: Tensor, scores: Tensor) -> Tensor:
    """The source of each row: rows of one prompt follow one another."""
    return source.repeat_interleave(scores.shape[0] // source.shape[0], dim=0)
