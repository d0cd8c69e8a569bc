"""Family × dtype × mask × implementation × length: no NaN, rows that do not depend on each other, equal bits.

`LONGSPAN_HARDENING=long` takes every length up to two blocks.
"""

from __future__ import annotations

import pytest
import torch
from tests.hardening.conftest import IS_LONG, each
from tests.hardening.numeric_matrix import ALL_LENGTHS, FAMILIES, LENGTHS, ids_of, make_model, masks
from tests.tolerances import assert_close

CASES = [(family, name) for family, (*_, implementations) in FAMILIES.items() for name in implementations]
TESTED = ALL_LENGTHS if IS_LONG else LENGTHS


#: float16 has the narrower range, so that bfloat16 is for the first implementation of a family and wide for others
WITH_DTYPES = [
    pytest.param(
        family, name, dtype, marks=pytest.mark.wide if dtype == torch.bfloat16 and which and not IS_LONG else ()
    )
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for family, (*_, implementations) in FAMILIES.items()
    for which, name in enumerate(implementations)
]


@pytest.mark.parametrize(("family", "implementation", "dtype"), WITH_DTYPES)
def test_no_nan_and_equal_bits(figures, family, implementation, dtype):
    model = make_model(family, implementation).to(dtype)
    for length in each(figures, TESTED):
        mask = masks(length)
        ids = ids_of(mask)
        states = model(ids, attention_mask=mask).last_hidden_state
        assert states.dtype == dtype
        assert bool(states[mask.bool()].isfinite().all()), f"{length} tokens"
        assert torch.equal(states, model(ids, attention_mask=mask).last_hidden_state), f"{length} tokens"
        (states.float() * mask[..., None]).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is None or bool(parameter.grad.isfinite().all()), f"{name}, {length} tokens"
        model.zero_grad()


@torch.no_grad()
@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_a_row_alone_is_what_it_is_in_a_batch(figures, family, implementation):
    model = make_model(family, implementation)
    for length in each(figures, TESTED):
        mask = masks(length)
        ids = ids_of(mask)
        together = model(ids, attention_mask=mask).last_hidden_state
        for row, keep in enumerate(mask.bool()[:6]):
            places = keep.nonzero().squeeze(1)
            part = slice(int(places[0]), int(places[-1]) + 1)
            if row == 4 or "longformer" in family or family == "bert":  # positions count from the first column
                part = slice(0, part.stop)
            alone = model(ids[row : row + 1, part], attention_mask=mask[row : row + 1, part]).last_hidden_state[0]
            assert_close(together[row, keep], alone[keep[part]], what=f"row {row} of {length} tokens")


@pytest.mark.parametrize(("family", "implementation"), CASES)
def test_nothing_but_padding(figures, family, implementation):
    model = make_model(family, implementation)
    for shape in each(figures, [(2, 9)]):
        mask = torch.zeros(shape, dtype=torch.long)
        states = model(ids_of(mask), attention_mask=mask).last_hidden_state
        assert bool(states.isfinite().all())
        states.sum().backward()
        assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
