"""Four processes that share a sequence compute what one computes, forward and backward, and keep a part each."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from tests.grid import grid
from tests.parallel.cases import CASES
from tests.processes import run_group
from tests.tolerances import TOLERANCE

HERE = Path(__file__).parent
LONG = ("LongformerForTokenClassification", "MegaForTokenClassification")
KEEPING = (*LONG, "LongT5ForConditionalGeneration")
#: of the long ones, that which looks to both sides and keeps global tokens stands for both in `make test`
LONGEST = LONG[1:]
#: windows, separators and averages as in other cases; they differ in a head or a setting
WIDE_CASES = (
    "longformer_tag",
    "longformer_answer",
    "longt5_local",
    "mega_fill_chunks",
    "mega_generate",
    "mega_truncated",
)
FURTHER = (
    "checkpointing:longformer_fill_global",
    "ddp:mega_fill",
    "undo:longformer_fill",
    "dropout:longt5_local",
    "errors",
)
OF_TWO = ("longformer_fill_global", "longt5_transient", "mega_fill")
ERRORS = {
    "family": "a sequence can be shared by models of longformer, longt5, mega. Received: BertModel",
    "multiple": "must be a multiple of the 4 processes; pad them. Received: 47 tokens",
    "first": r"context_parallel\(model\) comes first. Received: a BertModel",
    "unequal": r"must hold equal shares of a sequence, .* Received: \[\[2, 12\], \[2, 11\], \[2, 10\], \[2, 9\]\]",
    "short": "at least the 4 tokens that its neighbours see. Received: 3 tokens in each of 4 processes",
    "weights": "returns no attention weights",
    "positions": "must not be longer than max_position_embeddings.*Received: 96 tokens",
    "chunks": "must be a multiple of a chunk of 6 tokens. Received: 9 tokens",
    "left": "must be no padding. Received: a row that is padded on the left",
    "cache": "reads no cache",
    "keep": "scores all its tokens. Received: logits_to_keep",
    "generate": r"context_parallel\(model, undo=True\)",
    "norm": "normalization_type='batchnorm'",
    "features": "use_feature_dropout=True",
}


def run(*words):
    """What each group of processes says, in order; see `worker.py`."""
    root = HERE.parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    command = [sys.executable, str(HERE / "worker.py"), *words]
    done = run_group(command, env=environment, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def groups():
    """What four processes say of all cases, and what two say of some: they are started once."""
    long, memory = f"long:{LONG[0]}", [f"memory:{name}" for name in KEEPING]
    return run("4", *(name for name in CASES if name not in WIDE_CASES), long, *memory, *FURTHER, "2", *OF_TWO)


@pytest.fixture(scope="module")
def of_four(groups):
    return groups[0]


@pytest.fixture(scope="module")
def of_four_wide():
    return run("4", *WIDE_CASES, *(f"long:{name}" for name in LONGEST))[0]


def assert_equal(result, outputs):
    assert isinstance(result["gradients"], int), result["gradients"]
    assert result["gradients"] > 10
    for name in ("loss", *outputs):
        assert result[name] <= TOLERANCE["float32"], name


@pytest.mark.parametrize("name", grid(CASES, wide=WIDE_CASES))
def test_four_processes_equal_one(request, name):
    results = request.getfixturevalue("of_four_wide" if name in WIDE_CASES else "of_four")
    assert_equal(results[name], CASES[name].outputs)


def test_two_processes_equal_one(groups):
    for name in OF_TWO:
        assert_equal(groups[1][name], CASES[name].outputs)


@pytest.mark.parametrize("name", grid(LONG, wide=LONGEST))
def test_a_quarter_of_a_million_tokens(request, name):
    result = request.getfixturevalue("of_four_wide" if name in LONGEST else "of_four")[f"long:{name}"]
    assert result["tokens"] == 262_144 // 4
    assert result["loss"] == pytest.approx(result["expected"], rel=1e-6)  # a loss is computed in float32
    assert result["gradient"] <= 1e-12


@pytest.mark.parametrize("name", KEEPING)
def test_each_keeps_its_part(of_four, name):
    assert of_four[f"memory:{name}"]["part"] < 0.32  # a quarter, what crosses the borders, and the share of every input


def test_with_recomputed_activations(of_four):
    assert_equal(of_four["checkpointing:longformer_fill_global"], ["logits"])


def test_with_distributed_data_parallel(of_four):
    assert of_four["ddp:mega_fill"]["gradients"] > 10


def test_undone(of_four):
    assert of_four["undo:longformer_fill"]["logits"] == 0.0


def test_a_decoder_drops_the_same_numbers_everywhere(of_four):
    result = of_four["dropout:longt5_local"]
    assert result["spread"] == 0.0
    assert result["moved"] > 0.1


@pytest.mark.parametrize("name", ERRORS)
def test_errors(of_four, name):
    assert re.search(ERRORS[name], of_four["errors"][name]), of_four["errors"][name]
    assert of_four["errors"]["alike"], "an error that one process alone raises would leave the others waiting"


def test_no_group():
    from longspan.errors import InputError
    from longspan.parallel.torch import context_parallel

    with pytest.raises(InputError, match="needs torch.distributed.init_process_group"):
        context_parallel(CASES["mega_fill"].make())
