"""Beam search and beam sampling, in PyTorch.

Axes: B prompts, K beams, C candidates, L tokens so far, N generated tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.generation.beams import OUT, BeamRules
from longspan.generation.torch_loop import Run


@dataclass
class Beams:
    """K rows of each prompt.

    Attributes:
        ids: (B, K, greatest length).
        sources: Row of each step that a token came from, (B, K, greatest number of new tokens); -1 behind the end.
        scores: (B, K).
    """

    ids: Tensor
    sources: Tensor
    scores: Tensor

    def take(self, index: Tensor) -> Beams:
        """The rows at an index (B, K')."""
        return Beams(
            ids=self.ids.take_along_dim(index[:, :, None], dim=1),
            sources=self.sources.take_along_dim(index[:, :, None], dim=1),
            scores=self.scores.take_along_dim(index, dim=1),
        )


@dataclass
class BeamResult:
    """What beam search found, best first.

    Attributes:
        sequences: Ids, (B · returned rows, L).
        scores: Final scores, (B · returned rows,).
        sources: Row of each step that a token came from, (B · returned rows, N); -1 behind the end.
        num_steps: Steps that were made.
    """

    sequences: Tensor
    scores: Tensor
    sources: Tensor
    num_steps: int


class BeamSearch:
    """One beam search.

    Args:
        run: What any search needs; its rows are K for each prompt.
        rules: Its settings.
    """

    def __init__(self, run: Run, rules: BeamRules) -> None:
        self.run, self.rules, self.start = run, rules, run.length
        num_beams = rules.num_beams
        self.batch = run.ids.shape[0] // num_beams
        ids = run.ids.unflatten(0, (self.batch, num_beams))
        device = ids.device
        sources = torch.full((self.batch, num_beams, run.max_length - self.start), -1, dtype=torch.int32, device=device)
        scores = torch.zeros(self.batch, num_beams, device=device)
        scores[:, 1:] = OUT  # all beams of a prompt are alike at first: only one may be continued
        self.running = Beams(ids, sources, scores)
        self.finished = Beams(ids.clone(), sources.clone(), torch.full_like(scores, OUT))
        self.is_finished = torch.zeros_like(scores, dtype=torch.bool)
        self.can_improve = torch.ones(self.batch, 1, dtype=torch.bool, device=device)
        self.num_candidates = rules.num_candidates(0 if run.eos is None else run.eos.shape[0])
        self.rows = torch.arange(self.batch, device=device)[:, None] * num_beams

    def search(self, num_return: int) -> BeamResult:
        """Generate until no prompt has anything to gain, and return the best rows of each."""
        run = self.run
        outputs = run.first_outputs()
        while True:
            logits = run.last_logits(outputs)
            log_probabilities = logits.log_softmax(dim=-1)
            if run.processors:
                log_probabilities = run.processors(self._flat_ids(), log_probabilities)
            run.record.add(outputs, logits, log_probabilities)
            del outputs
            candidates = self._continue(log_probabilities)
            ends = self._ends(candidates)
            self._finish(candidates, ends)
            self._advance(candidates, ends)
            if self._is_over(ends):
                return self._result(num_return)
            outputs = run.stepper.step(self.running.ids[:, :, run.length - 1].flatten())

    def _flat_ids(self) -> Tensor:
        return self.running.ids[:, :, : self.run.length].flatten(0, 1)

    def _continue(self, log_probabilities: Tensor) -> Beams:
        """The best continuations (B, C), or draws from all, of log-probabilities (B · K, V)."""
        vocabulary, length = log_probabilities.shape[1], self.run.length
        totals = (log_probabilities.unflatten(0, (self.batch, -1)) + self.running.scores[:, :, None]).flatten(1)
        if self.run.do_sample:
            chosen = torch.multinomial(totals.softmax(dim=-1), self.num_candidates, generator=self.run.generator)
            scores = totals.gather(1, chosen)
        else:
            scores, chosen = totals.topk(self.num_candidates)
        beam = chosen // vocabulary
        candidates = self.running.take(beam)
        candidates.scores = scores
        candidates.ids[:, :, length] = chosen % vocabulary
        candidates.sources[:, :, length - self.start] = (beam + self.rows).to(torch.int32)
        self.run.length += 1
        return candidates

    def _ends(self, candidates: Beams) -> Tensor:
        """Which candidates have ended, (B, C)."""
        length = self.run.length
        if length == self.run.max_length:
            return torch.ones_like(candidates.scores, dtype=torch.bool)
        ends = self.run.is_end(candidates.ids[:, :, length - 1])
        if self.run.criteria:
            scores = None if self.run.record.scores is None else tuple(self.run.record.scores)
            met = self.run.criteria(candidates.ids[:, :, :length].flatten(0, 1), scores)
            ends = ends | met.unflatten(0, tuple(ends.shape))
        return ends

    def _finish(self, candidates: Beams, ends: Tensor) -> None:
        """Let candidates that ended among the best K compete for the finished places."""
        among_best = torch.arange(self.num_candidates, device=ends.device) < self.rules.num_beams
        eligible = ends & among_best
        scores = self.rules.final_scores(candidates.scores, eligible, self.run.length - self.start, **self._places())
        merged = Beams(
            ids=torch.cat((self.finished.ids, candidates.ids), dim=1),
            sources=torch.cat((self.finished.sources, candidates.sources), dim=1),
            scores=torch.cat((self.finished.scores, scores), dim=1),
        )
        best = merged.scores.topk(self.rules.num_beams).indices
        self.finished = merged.take(best)
        self.is_finished = torch.cat((self.is_finished, eligible), dim=1).take_along_dim(best, dim=1)

    def _advance(self, candidates: Beams, ends: Tensor) -> None:
        """Go on with the best K candidates that have not ended."""
        candidates.scores = candidates.scores + ends * OUT
        self.running = candidates.take(candidates.scores.topk(self.rules.num_beams).indices)
        rows = self.running.sources[:, :, self.run.length - 1 - self.start].flatten().long()
        if self.run.length < self.run.max_length:
            self.run.stepper.reorder(rows)

    def _is_over(self, ends: Tensor) -> bool:
        """True if no prompt can gain from going on."""
        scores = (self.running.scores, self.finished.scores)
        lengths = (self.run.length - self.start, self.run.max_length - self.start)
        self.can_improve, over = self.rules.judge(torch, *scores, *lengths, **self._places())
        return bool(over | ends.all())

    def _places(self) -> dict[str, Tensor]:
        return {"is_finished": self.is_finished, "can_improve": self.can_improve}

    def _result(self, num_return: int) -> BeamResult:
        ids, sources = (t[:, :num_return].flatten(0, 1) for t in (self.finished.ids, self.finished.sources))
        generated = (sources >= 0).sum(dim=1)
        longest = int(generated.max())
        ids, sources = ids[:, : self.start + longest], sources[:, :longest]
        behind = torch.arange(ids.shape[1], device=ids.device) >= self.start + generated[:, None]
        return BeamResult(
            sequences=ids.masked_fill(behind, self.run.pad),
            scores=self.finished.scores[:, :num_return].flatten(),
            sources=sources,
            num_steps=self.run.length - self.start,
        )


def beam_outputs(result: BeamResult, *, with_scores: bool) -> dict[str, Any]:
    """The fields that only beam search has."""
    return {"sequences_scores": result.scores if with_scores else None, "beam_indices": result.sources}
