"""Greedy search, sampling and beam search over a cache of a fixed size, for the arrays of any framework.

Axes: B prompts, K rows or beams of each, R = B·K rows, C candidates, P tokens of a prompt, L room for ids, V
vocabulary.

Every function here is pure. In JAX the loop is part of one program of XLA, where its state is updated in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from longspan.generation.array_rules import LoopArrays, Text, apply_rules
from longspan.generation.beams import OUT, BeamRules
from longspan.generation.rules import Rules

#: (cache, newest tokens (R,), number of tokens before them, rows to go on with (R,) or None) -> logits (R, V), cache
Step = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


@dataclass(frozen=True)
class Search:
    """The settings of a search, hashable; they are part of the program.

    Attributes:
        arrays: The functions of the framework.
        rules: What changes the scores.
        rows: K.
        returned: Rows to return for each prompt.
        beams: Settings of a beam search; `num_beams=1` for none.
        pad: Id that fills rows that ended.
    """

    arrays: LoopArrays
    rules: Rules
    rows: int
    returned: int
    beams: BeamRules
    pad: int

    def run(self, text: Text, logits: Any, cache: Any, step: Step, key: Any) -> tuple[Any, Any, Any]:
        """Generate until all rows have ended.

        Args:
            text: The prompts, each K times.
            logits: Scores that follow them, (R, V) in float32.
            cache: What the model keeps of them.
            step: Runs the model.
            key: Random key.

        Returns:
            Ids (B · returned, L), the column behind the last id of any row, and the final scores of beam search
            (B · returned,), or zeros.
        """
        search = _beam_search if self.beams.num_beams > 1 else _search
        return search(self, text, logits, cache, step, key)

    def is_end(self, tokens: Any) -> Any:
        """True where a token ends its row; same shape."""
        xp = self.arrays.xp
        return xp.isin(tokens, xp.array(self.rules.eos, tokens.dtype)) if self.rules.eos else xp.zeros_like(tokens) > 0


# -- greedy search and sampling ------------------------------------------------------------------------------------


def _search(search: Search, text: Text, logits: Any, cache: Any, step: Step, key: Any) -> tuple[Any, Any, Any]:
    arrays, xp, rows = search.arrays, search.arrays.xp, text.ids.shape[0]

    def write(text: Text, logits: Any, ended: Any) -> tuple[Any, Any, Any]:
        scores = apply_rules(arrays, search.rules, text, logits)
        tokens = arrays.draw(key, text.count, scores) if search.rules.do_sample else scores.argmax(axis=-1)
        tokens = xp.where(ended, search.pad, tokens).astype(text.ids.dtype)
        ids = arrays.write(text.ids, text.length, tokens[:, None])
        return ids, text.length + 1, ended | search.is_end(tokens)

    def goes_on(state: tuple[Any, Any, Any, Any]) -> Any:
        _, length, ended, _ = state
        return (length - text.first < text.greatest) & ~ended.all()

    def advance(state: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        ids, length, ended, cache = state
        now = text._replace(ids=ids, length=length)
        logits, cache = step(cache, now.last(arrays, 1)[:, 0], length - 1, None)
        return *write(now, logits, ended), cache

    state = (*write(text, logits, xp.zeros(rows, xp.bool_)), cache)
    ids, length, _, _ = arrays.loop(goes_on, advance, state)
    return ids, length, xp.zeros(rows)


# -- beam search ---------------------------------------------------------------------------------------------------


class Beams(NamedTuple):
    """K rows of each prompt.

    Attributes:
        ids: (B, K, L).
        scores: (B, K).
        lengths: Column behind the last id, (B, K).
    """

    ids: Any
    scores: Any
    lengths: Any

    def take(self, xp: Any, index: Any) -> Beams:
        """The rows at an index (B, K')."""
        return Beams(
            ids=xp.take_along_axis(self.ids, index[:, :, None], axis=1),
            scores=xp.take_along_axis(self.scores, index, axis=1),
            lengths=xp.take_along_axis(self.lengths, index, axis=1),
        )


class _State(NamedTuple):
    """State of the loop of beam search.

    Attributes:
        running: Beams that go on.
        finished: The best that ended.
        is_finished: Which of these exist, (B, K).
        can_improve: Prompts that may gain from going on, (B, 1).
        over: No prompt can.
        length: Column behind the last id of the running beams.
        origin: Row of the step before that each running beam continues, (R,).
        cache: What the model keeps.
    """

    running: Beams
    finished: Beams
    is_finished: Any
    can_improve: Any
    over: Any
    length: Any
    origin: Any
    cache: Any


def _beam_search(search: Search, text: Text, logits: Any, cache: Any, step: Step, key: Any) -> tuple[Any, Any, Any]:
    arrays, xp, number = search.arrays, search.arrays.xp, search.beams.num_beams
    batch = text.ids.shape[0] // number
    ids = text.ids.reshape(batch, number, -1)
    lengths = xp.broadcast_to(text.length, (batch, number))
    # all beams of a prompt are alike at first: only one may be continued
    scores = xp.where(xp.arange(number) > 0, OUT, xp.zeros((batch, number), logits.dtype))
    none = xp.zeros((batch, number), xp.bool_)
    state = _State(
        running=Beams(ids, scores, lengths),
        finished=Beams(ids, xp.full_like(scores, OUT), lengths),
        is_finished=none,
        can_improve=xp.ones((batch, 1), xp.bool_),
        over=xp.array(False),
        length=text.length,
        origin=xp.arange(batch * number),
        cache=cache,
    )
    beams = _BeamStep(search, text, key)

    def advance(state: _State) -> _State:
        newest = arrays.read(state.running.ids, state.length - 1, 1).reshape(-1)
        logits, cache = step(state.cache, newest, state.length - 1, state.origin)
        return beams(state._replace(cache=cache), logits)

    state = arrays.loop(lambda state: ~state.over, advance, beams(state, logits))
    best = Beams(*(part[:, : search.returned] for part in state.finished))
    behind = xp.arange(ids.shape[2]) >= best.lengths[:, :, None]
    sequences = xp.where(behind, search.pad, best.ids).reshape(batch * search.returned, -1)
    return sequences, best.lengths.max(), best.scores.reshape(-1)


@dataclass(frozen=True)
class _BeamStep:
    """One step of beam search, from the logits that follow the running beams.

    Attributes:
        search: Settings.
        text: The prompts.
        key: Random key.
    """

    search: Search
    text: Text
    key: Any

    def __call__(self, state: _State, logits: Any) -> _State:
        """The next state."""
        arrays, xp = self.search.arrays, self.search.arrays.xp
        candidates, origin = self._continue(state, logits)
        length = state.length + 1
        at_end = length - self.text.first == self.text.greatest
        newest = arrays.read(candidates.ids, length - 1, 1)[:, :, 0]
        ends = self.search.is_end(newest) | at_end
        finished, is_finished = self._finish(state, candidates, ends, length)
        scores = (candidates.scores + ends * OUT).astype(candidates.scores.dtype)
        going = arrays.top(scores, self.search.beams.num_beams)[1]
        running = candidates._replace(scores=scores).take(xp, going)
        state = state._replace(
            running=running,
            finished=finished,
            is_finished=is_finished,
            length=length,
            origin=xp.take_along_axis(origin, going, axis=1).reshape(-1),
        )
        return self._judge(state, at_end)

    def _continue(self, state: _State, logits: Any) -> tuple[Beams, Any]:
        """The best continuations (B, C), or draws from all, and the row that each continues (B, C)."""
        arrays, xp = self.search.arrays, self.search.arrays.xp
        batch, number, room = state.running.ids.shape
        text = self.text._replace(ids=state.running.ids.reshape(-1, room), length=state.length)
        logarithms = apply_rules(arrays, self.search.rules, text, arrays.log_softmax(logits))
        vocabulary = logarithms.shape[-1]
        totals = logarithms.reshape(batch, number, vocabulary) + state.running.scores[:, :, None]
        totals = totals.reshape(batch, -1)
        num_candidates = self.search.beams.num_candidates(len(self.search.rules.eos))
        if self.search.rules.do_sample:  # the largest of the sums with Gumbel noise are draws without replacement
            chosen = arrays.top(totals + arrays.gumbel(self.key, text.count, totals.shape), num_candidates)[1]
        else:
            chosen = arrays.top(totals, num_candidates)[1]
        beam, tokens = chosen // vocabulary, (chosen % vocabulary).astype(text.ids.dtype)
        candidates = state.running.take(xp, beam)
        ids = arrays.write(candidates.ids, state.length, tokens[:, :, None])
        scores = xp.take_along_axis(totals, chosen, axis=1)
        lengths = xp.broadcast_to(state.length + 1, scores.shape)
        return Beams(ids, scores, lengths), beam + xp.arange(batch)[:, None] * number

    def _finish(self, state: _State, candidates: Beams, ends: Any, length: Any) -> tuple[Beams, Any]:
        """Let candidates that ended among the best K compete for the finished places."""
        arrays, xp = self.search.arrays, self.search.arrays.xp
        among_best = xp.arange(ends.shape[1]) < self.search.beams.num_beams
        eligible = ends & among_best
        generated = arrays.number(length - self.text.first - self.text.prompt)
        places = {"is_finished": state.is_finished, "can_improve": state.can_improve}
        scores = self.search.beams.final_scores(candidates.scores, eligible, generated, **places)
        new = candidates._replace(scores=scores.astype(candidates.scores.dtype))
        both = Beams(*(xp.concatenate(pair, axis=1) for pair in zip(state.finished, new, strict=True)))
        best = arrays.top(both.scores, self.search.beams.num_beams)[1]
        exist = xp.concatenate([state.is_finished, eligible], axis=1)
        return both.take(xp, best), xp.take_along_axis(exist, best, axis=1)

    def _judge(self, state: _State, at_end: Any) -> _State:
        """See whether any prompt can gain from going on."""
        text = self.text
        generated, most = (
            self.search.arrays.number(number)
            for number in (state.length - text.first - text.prompt, text.greatest - text.prompt)
        )
        places = {"is_finished": state.is_finished, "can_improve": state.can_improve}
        scores = (state.running.scores, state.finished.scores)
        can_improve, over = self.search.beams.judge(self.search.arrays.xp, *scores, generated, most, **places)
        return state._replace(can_improve=can_improve, over=over | at_end)
