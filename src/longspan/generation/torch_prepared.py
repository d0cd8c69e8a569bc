"""Feeding a decoder whose inputs somebody else prepares, as PEFT does for prompt and prefix tuning.

Axes: R rows, L tokens so far.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan.generation.torch_stepper import Stepper


class PreparedStepper(Stepper):
    """A `Stepper` that asks `model.prepare_inputs_for_generation` what the model is to be given.

    The model makes its own cache, since it is not known here what will stand before the prompt.
    """

    def __init__(self, model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.may_be_lean = False
        #: positions of the tokens of the present call; who prepares the inputs may shift them in place
        self.position: Tensor | None = None

    def step(self, tokens: Tensor) -> Any:
        """Read the next token of each row, (R,); returns an output with logits (R, 1, V)."""
        if self.use_cache:  # without a cache, `Stepper` keeps the ids itself
            self.seen_ids = torch.cat((self.seen_ids, tokens[:, None]), dim=1)
        return super().step(tokens)

    def reorder(self, rows: Tensor) -> None:
        """Go on with the rows (R,) in that order; each stays with its prompt."""
        if self.use_cache:
            self.seen_ids = self.seen_ids[rows]
        super().reorder(rows)

    def _call(self, inputs: dict[str, Any], count: int, past: int) -> Any:
        first = self.position is None
        self.position = self.position[-1:] + 1 if self.position is not None and self.use_cache else None
        if self.position is None:
            self.position = torch.arange(past, past + count, device=self.seen_ids.device)
        arguments = {name: value for name, value in inputs.items() if name != f"{self.prefix}input_ids"}
        arguments |= self.constants
        mask = f"{self.prefix}attention_mask"
        if self.mask is not None or not self.prefix:
            so_far = torch.ones_like(self.seen_ids) if self.mask is None else self.mask[:, : self.length]
            arguments[mask] = so_far
        prepared = self.model.prepare_inputs_for_generation(
            self.seen_ids,
            past_key_values=self.cache,
            cache_position=self.position,
            is_first_iteration=first or not self.use_cache,
            **arguments,
        )
        output = self.model(**{name: value for name, value in prepared.items() if name in self.names})
        if self.use_cache:
            self.cache = output.past_key_values
        return output
