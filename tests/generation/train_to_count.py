"""Remake the small trained models in `trained/`: python -m tests.generation.train_to_count [FAMILY ...].

Each learned to go on counting for four ids and to end; LongT5 to count on from the first id of its source.
"""

from __future__ import annotations

import sys

import torch
from tests.generation.conftest import FAMILIES, OURS_ALONE, TRAINED, counting_prompts, counting_rows

import longspan

STEPS = 500


def train(family):
    """Train in float64, so that all machines learn alike, and save in float16."""
    name, config, defaults = {**FAMILIES, **OURS_ALONE}[family]
    torch.manual_seed(0)
    model = getattr(longspan, name)(getattr(longspan, config.__name__)(**defaults)).double().train()
    generator, end = torch.Generator().manual_seed(0), torch.full((32, 1), 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        rows = counting_rows(32, generator)
        if "longt5" in family:
            loss = model(input_ids=rows, labels=torch.cat((rows[:, :1] + torch.arange(1, 5), end), dim=1)).loss
        else:
            ids = torch.cat((rows, rows[:, -1:] + torch.arange(1, 5), end), dim=1)
            begin = int(torch.randint(0, 3, (), generator=generator))
            loss = model(ids[:, begin:], labels=ids[:, begin:]).loss
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / STEPS)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval().half().save_pretrained(TRAINED / family)
    return model.float(), float(loss.detach())


def main():
    for family in sys.argv[1:] or (*FAMILIES, *OURS_ALONE):
        model, loss = train(family)
        has_source = "longt5" in family
        ids, mask = counting_prompts(64, left=not has_source)
        new = model.generate(ids, attention_mask=mask, max_new_tokens=16)[:, 1 if has_source else ids.shape[1] :]
        ended = (new == 2).any(dim=1).float().mean()
        size = sum(file.stat().st_size for file in (TRAINED / family).iterdir())
        print(f"{family}: loss {loss:.2e}, {ended:.0%} of the rows end, {size} bytes")


if __name__ == "__main__":
    main()
