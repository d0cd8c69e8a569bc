"""The bookkeeping of beam search, for the arrays of any framework.

Axes: B prompts, K beams, C candidates. Every step scores the continuations of all beams of a prompt by the sum of the
log-probabilities of their tokens and takes the best C, enough that K of them go on whatever ends. Those that end
compete for the K finished places with sum / generated tokens ** length_penalty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: added to a score to take a candidate out of the running
OUT = -1e9


@dataclass(frozen=True)
class BeamRules:
    """Settings of a beam search, hashable.

    Attributes:
        num_beams: K.
        length_penalty: Exponent of the number of generated tokens, by which the score of a finished beam is divided.
        early_stopping: True, False or `"never"`; see `GenerationConfig`.
    """

    num_beams: int
    length_penalty: float
    early_stopping: bool | str

    def num_candidates(self, num_ends: int) -> int:
        """C, by the number of ids that end a row."""
        return max(2, 1 + num_ends) * self.num_beams

    def final_scores(self, scores: Any, eligible: Any, generated: Any, *, is_finished: Any, can_improve: Any) -> Any:
        """What candidates compete with for the finished places, (B, C).

        Args:
            scores: Sums of log-probabilities, (B, C).
            eligible: Those that ended among the best K, (B, C).
            generated: Tokens that were generated.
            is_finished: Which finished places are taken, (B, K).
            can_improve: Prompts that may gain from going on, (B, 1).
        """
        scores = scores / generated**self.length_penalty
        if self.early_stopping is True:
            scores = scores + is_finished.all(axis=1, keepdims=True) * OUT
        return scores + ~can_improve * OUT + ~eligible * OUT

    def judge(
        self, xp: Any, running: Any, finished: Any, generated: Any, most: Any, *, is_finished: Any, can_improve: Any
    ) -> tuple[Any, Any]:
        """Which prompts may still gain from going on, (B, 1), and whether the search is over.

        Args:
            xp: Namespace with NumPy's functions.
            running: Scores of the running beams, best first, (B, K).
            finished: Scores of the finished beams, (B, K).
            generated: Tokens that were generated.
            most: Tokens that can be generated.
            is_finished: Which finished places are taken, (B, K).
            can_improve: As returned by the step before.
        """
        if self.early_stopping == "never" and self.length_penalty > 0.0:
            generated = most
        best = running[:, :1] / generated**self.length_penalty
        worst = xp.where(is_finished, xp.amin(finished, axis=1, keepdims=True), OUT)
        can_improve = can_improve & (best > worst).any(axis=1, keepdims=True)
        over = ~can_improve.any()
        return can_improve, over | is_finished.all() if self.early_stopping is True else over
