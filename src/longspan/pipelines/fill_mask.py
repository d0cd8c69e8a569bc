"""Filling masked tokens."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from longspan.documents.tokens import Tokens
from longspan.documents.windows import owned_ranges
from longspan.errors import InputError
from longspan.pipelines.base import Job, Pipeline, check_text
from longspan.pipelines.long.merging import Floats, softmax
from longspan.pipelines.long.rows import Row
from longspan.pipelines.options import Options, check_at_least


@dataclass(frozen=True)
class FillMaskOptions(Options):
    """Options of filling masks, besides those of every task.

    Attributes:
        top_k: How many proposals a mask gets.
        targets: Only these tokens are proposed; a text that is no token stands for its first one.
    """

    top_k: int = 5
    targets: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("top_k", self.top_k, 1)
        if self.targets is not None and not self.targets:
            raise InputError(f"targets must name at least one token. Received: targets={self.targets!r}")


class FillMaskPipeline(Pipeline):
    """Proposes tokens for each mask of texts of any length; see `Pipeline` for the arguments.

    In a long text each mask is read in the window that shows it with the most context; windows without a mask are not
    read at all. A result is a list of dicts with `score`, `token`, `token_str` and `sequence` (the text with that
    token); for several masks a list of such lists.

    Options: `FillMaskOptions`.

    Example:
        >>> from longspan import pipeline
        >>> fill = pipeline("fill-mask", "./my-bert", top_k=1)  # doctest: +SKIP
        >>> fill("The capital of France is [MASK].")  # doctest: +SKIP
        [{'score': 0.97, 'token': 3000, 'token_str': 'paris', 'sequence': 'the capital of france is paris.'}]
    """

    task: ClassVar[str] = "fill-mask"
    options_class: ClassVar[type[Options]] = FillMaskOptions

    def __init__(self, model: Any, tokenizer: Any = None, **arguments: Any) -> None:
        super().__init__(model, tokenizer, **arguments)
        if self.tokenizer.mask_token_id is None:
            raise InputError(f"fill-mask needs a tokenizer with a mask token. Received: {self.tokenizer!r}")
        self._targets: dict[Any, npt.NDArray[np.int64] | None] = {None: None}

    def __call__(self, inputs: Any, **settings: Any) -> Any:
        """Fill masks; see `Pipeline.__call__`. As in the reference, a list of one text gives that text's result."""
        result = super().__call__(inputs, **settings)
        return result[0] if isinstance(inputs, list) and len(inputs) == 1 else result

    def _texts(self, item: Any) -> list[str]:
        return [check_text(item)]

    def _alignment(self, options: Options) -> dict[str, bool]:
        return {"with_offsets": False}

    def _job(self, item: str, tokens: list[Tokens], options: FillMaskOptions) -> Job:
        document = tokens[0]
        masks = np.flatnonzero(document.ids == self.tokenizer.mask_token_id)
        if not len(masks) and self.tokenizer.mask_token not in item:
            raise InputError(
                f"A text must hold the mask token {self.tokenizer.mask_token}. Received: a text without it"
            )
        job = self._single_job(item, document, options)
        rows, windows = [], []
        for row, window, (first, last) in zip(job.rows, job.windows, owned_ranges(job.windows), strict=True):
            own = masks[(masks >= first) & (masks < last)]
            if len(own):
                rows.append(replace(row, wanted=own - window[0] + job.lead))
                windows.append(window)
        if not rows:
            raise InputError("A mask must stand in the part of the text that is read. Received: on_long='truncate' "
                             "and masks behind the beginning")  # fmt: skip
        return replace(job, rows=rows, windows=windows, extra=masks)

    def _pick(
        self, outputs: dict[str, Floats], row: Row, job: Job, options: FillMaskOptions
    ) -> tuple[Floats, npt.NDArray[np.int64]]:
        assert row.wanted is not None
        scores = softmax(outputs["logits"][: len(row.wanted)])
        targets = self._target_ids(options.targets)
        if targets is not None:
            scores = scores[:, targets]
        top_k = min(options.top_k, scores.shape[1])
        best = np.argpartition(-scores, top_k - 1, axis=1)[:, :top_k]
        values = np.take_along_axis(scores, best, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        best = np.take_along_axis(best, order, axis=1)
        return np.take_along_axis(values, order, axis=1), best if targets is None else targets[best]

    def _finish(self, job: Job, picked: list[Any], options: FillMaskOptions) -> Any:
        values = np.concatenate([scores for scores, _ in picked])
        tokens = np.concatenate([ids for _, ids in picked])
        shown = job.tokens.ids if options.on_long != "truncate" else job.tokens.ids[: job.windows[-1][1]]
        row, (lead,) = self._template(is_pair=False).wrap(shown)
        results = []
        for mask, scores, ids in zip(job.extra, values.tolist(), tokens.tolist(), strict=False):
            results.append([
                self._proposal(row.ids, lead + mask, token, score, only=len(values) == 1)
                for score, token in zip(scores, ids, strict=True)
            ])  # fmt: skip
        return results[0] if len(results) == 1 else results

    def _proposal(self, ids: npt.NDArray[np.int32], place: int, token: int, score: float, *, only: bool) -> Any:
        filled = ids.copy()
        filled[place] = token
        filled = filled[filled != self.tokenizer.pad_token_id]
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token]),
            # other masks are special tokens and would vanish
            "sequence": self.tokenizer.decode(filled.tolist(), skip_special_tokens=only),
        }

    def _target_ids(self, targets: str | Sequence[str] | None) -> npt.NDArray[np.int64] | None:
        key = tuple(targets) if isinstance(targets, list) else targets
        if key not in self._targets:
            self._targets[key] = self._look_up([targets] if isinstance(targets, str) else list(targets or ()))
        return self._targets[key]

    def _look_up(self, targets: list[str]) -> npt.NDArray[np.int64]:
        vocabulary = self.tokenizer.get_vocab()
        found: dict[int, None] = {}
        for target in targets:
            index = vocabulary.get(target)
            if index is None:
                ids = self._fast.encode(target, add_special_tokens=False).ids
                if not ids:
                    warnings.warn(f"the target {target!r} has no token and is left out", stacklevel=2)
                    continue
                index = ids[0]
                first = self._fast.id_to_token(index)
                warnings.warn(
                    f"the target {target!r} is no token; its first one, {first!r}, stands for it",
                    stacklevel=2,
                )
            found[index] = None
        if not found:
            raise InputError(f"targets must name at least one token. Received: targets={targets!r}")
        return np.fromiter(found, np.int64)
