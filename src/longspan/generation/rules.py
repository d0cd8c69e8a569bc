"""Which rules change the scores of the next token, and in which order: data for the loops of every framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from longspan.generation.config import GenerationConfig

Ids = tuple[int, ...]
#: settings that change scores, in the order of the reference, with the value that switches each off
_ORDER: dict[str, Any] = {
    "sequence_bias": (),
    "encoder_repetition_penalty": 1.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": (),
    "min_length": False,
    "prefix_allowed_tokens_fn": False,
    "forced_bos_token_id": None,
    "forced_eos_token_id": (),
    "remove_invalid_values": False,
    "exponential_decay_length_penalty": None,
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
}
#: those that shape sampling, which come behind a caller's own
_SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


def rows_per_prompt(config: GenerationConfig) -> int:
    """Rows that a search keeps of each prompt."""
    return config.num_beams if config.num_beams > 1 else config.num_return_sequences


@dataclass(frozen=True)
class Rules:
    """The settings that change scores, hashable: they may be part of a compiled program.

    Attributes:
        plain: Name and value of each rule of any strategy that is on, in order. Sequences are tuples;
            `bad_words_ids` leaves out what is a single end token, which stays possible, as in the reference.
        sampling: Likewise those that shape sampling.
        normalises: Scores become log-probabilities in the end.
        eos: Ids that end a row.
        do_sample: Draw the next token rather than take the likeliest.
        keep: Ids that sampling leaves at least; beams keep one more than there are end tokens, so that one goes on.
        forces_begin: The first id is forced.
    """

    plain: tuple[tuple[str, Any], ...]
    sampling: tuple[tuple[str, Any], ...]
    normalises: bool
    eos: Ids
    do_sample: bool
    keep: int
    forces_begin: bool

    @classmethod
    def from_config(cls, config: GenerationConfig, *, has_prefix_function: bool = False) -> Rules:
        """Take the settings that concern scores.

        Args:
            config: Settings.
            has_prefix_function: A caller's function names the ids that may come next.
        """
        eos = tuple(config.eos_token_ids)
        bias, forced, decay = config.sequence_bias or (), config.forced_eos_token_id, None
        if eos and config.exponential_decay_length_penalty is not None:
            decay = tuple(config.exponential_decay_length_penalty)
        special = {
            "sequence_bias": tuple(
                (tuple(ids), float(value)) for ids, value in (bias.items() if isinstance(bias, dict) else bias)
            ),
            "bad_words_ids": tuple(
                word for word in map(tuple, config.bad_words_ids or ()) if word not in {(end,) for end in eos}
            ),
            "min_length": bool(eos),
            "prefix_allowed_tokens_fn": has_prefix_function,
            "forced_eos_token_id": (forced,) if isinstance(forced, int) else tuple(forced or ()),
            "exponential_decay_length_penalty": decay,
            "suppress_tokens": tuple(config.suppress_tokens or ()),
            "begin_suppress_tokens": tuple(config.begin_suppress_tokens or ()),
        }

        def on(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
            values = {name: special[name] if name in special else getattr(config, name) for name in settings}
            return tuple((n, value) for n, value in values.items() if value is not None and value != settings[n])

        return cls(
            plain=on(_ORDER),
            sampling=on(_SAMPLING) if config.do_sample else (),
            normalises=config.renormalize_logits,
            eos=eos,
            do_sample=config.do_sample,
            keep=1 if config.num_beams == 1 else max(2, len(eos) + 1),
            forces_begin=config.forced_bos_token_id is not None,
        )

    @property
    def reads_source(self) -> bool:
        """A rule looks at the ids of the source."""
        return any(name.startswith("encoder_") for name, _ in self.plain)
