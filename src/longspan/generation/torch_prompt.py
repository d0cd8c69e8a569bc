"""From what a caller passes to `generate` to a batch that a decoder can continue, in PyTorch.

Axes: B prompts, L tokens of a prompt, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.errors import InputError
from longspan.shapes import check_shape


@dataclass(frozen=True)
class Prompt:
    """Rows to continue.

    Attributes:
        ids: (B, L); (B, 0) where only embeddings were given.
        mask: Boolean, True for real tokens, (B, L); None if all are.
        embeds: Embedded tokens to read instead of the ids, (B, L, H).
        extras: Further inputs of the model by their names; those in `PER_TOKEN` are (B, L).
    """

    ids: Tensor
    mask: Tensor | None = None
    embeds: Tensor | None = None
    extras: dict[str, Any] | None = None

    @property
    def length(self) -> int:
        """Tokens that the model reads."""
        return self.ids.shape[1] if self.embeds is None else self.embeds.shape[1]

    @property
    def ends_real(self) -> bool:
        """True if the last token of every row is real."""
        return self.mask is None or bool(self.mask[:, -1].all())

    def rows(self, index: Tensor) -> Prompt:
        """The rows at an index (R,) of the batch."""
        batch = self.ids.shape[0]
        return Prompt(
            ids=self.ids[index],
            mask=None if self.mask is None else self.mask[index],
            embeds=None if self.embeds is None else self.embeds[index],
            extras={n: v[index] if is_batched(n, v, batch) else v for n, v in (self.extras or {}).items()},
        )

    def repeated(self, times: int) -> Prompt:
        """Each row several times, copies next to each other."""
        return self.rows(torch.arange(self.ids.shape[0], device=self.ids.device).repeat_interleave(times))


#: inputs with one value for each token of the prompt
PER_TOKEN = ("token_type_ids", "position_ids")


def repeat_rows(inputs: dict[str, Any], times: int, batch: int) -> dict[str, Any]:
    """Repeat each row of the batched tensors among some inputs, copies next to each other."""
    return {n: v.repeat_interleave(times, dim=0) if is_batched(n, v, batch) else v for n, v in inputs.items()}


def is_batched(name: str, value: Any, batch: int) -> bool:
    """True for a tensor with one entry per row; masks of heads have layers or heads in that place."""
    is_rowwise = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch
    return is_rowwise and not name.endswith("head_mask")


def as_ids(ids: Any, *, pad: int | None, device: torch.device, left: bool) -> tuple[Tensor, Tensor | None]:
    """Bring ids to a tensor.

    Args:
        ids: (B, L) as a tensor, array or nested list, or a list of B sequences of different lengths.
        pad: Id for the empty places.
        device: Where to put them.
        left: Fill at the left rather than at the right.

    Returns:
        Ids (B, L) and, if lengths differed, the boolean mask of real tokens.

    Raises:
        InputError: the shape is wrong, or a prompt is empty.
    """
    rows = [_row(row) for row in ids] if isinstance(ids, list | tuple) and ids and _nested(ids[0]) else None
    if rows is not None:
        _check_not_empty(min(len(row) for row in rows))
    if rows is not None and len({len(row) for row in rows}) > 1:
        return _pad(rows, 0 if pad is None else pad, device=device, left=left)
    tensor = torch.as_tensor(rows if rows is not None else ids, device=device)
    if tensor.dim() != 2 or tensor.is_floating_point():
        raise InputError(
            "prompts must be ids of the shape (batch, tokens), or a list of lists of ids. "
            f"Received: {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    _check_not_empty(tensor.shape[1])
    return tensor.long(), None


def _row(row: Any) -> list[int]:
    return list(row.tolist() if hasattr(row, "tolist") else row)


def _nested(row: Any) -> bool:
    return isinstance(row, list | tuple) or getattr(row, "ndim", 0) == 1


def _check_not_empty(length: int) -> None:
    if length == 0:
        raise InputError(
            "a prompt must have at least one token; without a prompt, generation begins at bos_token_id. "
            "Received: an empty prompt"
        )


def _pad(rows: Sequence[list[int]], pad: int, *, device: torch.device, left: bool) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    fill = [([pad] * (width - len(row)), row) for row in rows]
    ids = torch.tensor([gap + row if left else row + gap for gap, row in fill], device=device)
    lengths = torch.tensor([len(row) for row in rows], device=device)[:, None]
    columns = torch.arange(width, device=device)
    return ids, columns >= width - lengths if left else columns < lengths


def as_mask(mask: Any, shape: tuple[int, int], *, device: torch.device) -> Tensor | None:
    """Bring a padding mask (B, L) to booleans; None if nothing is hidden.

    Raises:
        InputError: the shape is wrong, or a row has no real token.
    """
    mask = torch.as_tensor(mask, device=device)
    check_shape(mask, shape, name="attention_mask", axes="(batch, tokens)")
    mask = mask != 0
    if bool(mask.all()):
        return None
    if not bool(mask.any(dim=1).all()):
        empty = torch.nonzero(~mask.any(dim=1)).flatten().tolist()
        raise InputError(f"each prompt must have a token that attention_mask keeps. Received: none in rows {empty}")
    return mask


def mask_of_padding(ids: Tensor, pad: int | None, eos: Sequence[int]) -> Tensor | None:
    """The mask that padding tells, as in the reference: where there is padding and it does not also end rows."""
    if pad is None or pad in eos or not bool((ids == pad).any()):
        return None
    return as_mask(ids != pad, (ids.shape[0], ids.shape[1]), device=ids.device)


def align_right(prompt: Prompt) -> Prompt:
    """Shift rows with padding at the right, so that their last token is real."""
    if prompt.mask is None or prompt.ends_real:
        return prompt
    width = prompt.mask.shape[1]
    trailing = prompt.mask.flip(1).long().argmax(dim=1, keepdim=True)
    source = (torch.arange(width, device=prompt.mask.device) - trailing) % width

    def shift(values: Tensor) -> Tensor:
        return values.gather(1, source) if values.dim() == 2 else values[torch.arange(len(values))[:, None], source]

    extras = prompt.extras or {}
    return Prompt(
        ids=shift(prompt.ids) if prompt.ids.shape[1] else prompt.ids,
        mask=shift(prompt.mask),
        embeds=None if prompt.embeds is None else shift(prompt.embeds),
        extras={name: shift(value) if name in PER_TOKEN else value for name, value in extras.items()},
    )
